//! `ichd check`: everything that can be wrong before the first patient, said before the first patient.

use std::path::Path;

use super::{ConfigFile, Failure};
use crate::config::{Config, State};
use crate::models::Current;

/// Where `ichd.service` finds its credentials while it runs.
const CREDENTIALS: &str = "/run/credentials/ichd.service";
/// Where systemd takes them from (`LoadCredential=`).
const CREDSTORE: &str = "/etc/credstore";

/// Arguments of `ichd check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object instead of lines.
    #[arg(long)]
    json: bool,
}

/// Validates configuration, model package (signature, hashes, golden scores), certificates and state directory.
pub fn check(args: &Args) -> Result<(), Failure> {
    let mut config = args.config.load()?;
    let mut warnings = Vec::new();
    let unseen = credentials(&mut config, &mut warnings);
    let sees = |key: &str| !unseen.contains(&key);
    let Current { reader, refused } = Current::load(&config).map_err(|e| Failure::config(&e))?;
    if sees("privacy.keys") {
        crate::privacy::Privacy::load(&config.privacy).map_err(|e| Failure::config(&e))?;
    }
    let model = reader.model();
    let tls = config.alert.tls.as_ref();
    let files = [
        ("alert.tls.ca", tls.map(|tls| &tls.ca)),
        ("alert.tls.certificate", tls.map(|tls| &tls.certificate)),
        ("alert.tls.key", tls.map(|tls| &tls.key)),
        ("alert.password-file", config.alert.password_file.as_ref()),
    ];
    for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path?))).filter(|f| sees(f.0)) {
        std::fs::File::open(path).map_err(|e| Failure {
            code: 78,
            message: format!("{key}: failed to read `{}`: {e}", path.display()),
        })?;
    }
    if let Some(tls) = config.receive.tls.as_ref().filter(|_| sees("receive.tls.key")) {
        crate::tls::Server::load(tls.files())
            .map_err(|e| Failure { code: 78, message: format!("receive.tls.{e}") })?;
    }
    if let Some(files) = config.station.files().filter(|_| sees("station.tls.key")) {
        crate::tls::Server::load(files)
            .map_err(|e| Failure { code: 78, message: format!("station.tls.{e}") })?;
    }
    if let Some(atna) = config.atna.as_ref().filter(|_| sees("atna.key")) {
        atna.files().client_config().map_err(|e| Failure { code: 78, message: format!("atna.{e}") })?;
    }
    let state = &config.state.directory;
    if !state.is_dir() {
        let message = format!("state.directory `{}` is no directory", state.display());
        if *state != State::default().directory {
            return Err(Failure { code: 78, message: format!("{message}; create it") });
        }
        warnings.push(format!("{message} that can be seen; systemd makes it when ichd.service starts"));
    }
    if config.receive.calling_ae_titles.is_empty() {
        warnings.push("receive.calling-ae-titles is empty: nobody is admitted".into());
    }
    warnings.extend(refused);
    let certificates = config.certificates();
    let expiry = crate::tls::expiry_reason(certificates.iter().map(|p| p.as_path()), crate::clock::wall_ms());
    warnings.extend(expiry);
    if args.json {
        let line = serde_json::json!({
            "ok": true, "config": args.config.config, "model": model, "state": state, "warnings": warnings,
        });
        println!("{line}");
    } else {
        println!("configuration  {} ok", args.config.config.display());
        println!("model          {} {} ok, golden scores agree", model.id, model.version);
        println!("state          {} ok", state.display());
        warnings.iter().for_each(|w| println!("warning        {w}"));
    }
    Ok(())
}

/// A credential is there only while the unit runs: until then the file that it will be made from is checked in its place.
/// Where that cannot be read either, a warning says so; returned are those keys of the configuration.
fn credentials(config: &mut Config, warnings: &mut Vec<String>) -> Vec<&'static str> {
    let secrets = [
        ("alert.tls.key", config.alert.tls.as_mut().map(|tls| &mut tls.key)),
        ("alert.password-file", config.alert.password_file.as_mut()),
        ("receive.tls.key", config.receive.tls.as_mut().map(|tls| &mut tls.key)),
        ("station.tls.key", config.station.tls.as_mut().map(|tls| &mut tls.key)),
        ("atna.key", config.atna.as_mut().map(|atna| &mut atna.key)),
        ("privacy.keys", config.privacy.keys.as_mut()),
    ];
    let mut unseen = Vec::new();
    for (key, path) in secrets.into_iter().filter_map(|(key, path)| Some((key, path?))) {
        // A bare name is a credential, too.
        let bare = path.components().count() == 1 && std::env::var_os("CREDENTIALS_DIRECTORY").is_none();
        let name = if bare { Some(path.as_path()) } else { path.strip_prefix(CREDENTIALS).ok() };
        let Some(name) = name else { continue };
        let (running, stored) = (Path::new(CREDENTIALS).join(name), Path::new(CREDSTORE).join(name));
        match [running, stored.clone()].into_iter().find(|file| std::fs::File::open(file).is_ok()) {
            Some(file) => *path = file,
            None => {
                unseen.push(key);
                warnings.push(format!(
                    "{key}: not checked; `{}` cannot be read, from which ichd.service gets it when it starts",
                    stored.display()
                ));
            }
        }
    }
    unseen
}
