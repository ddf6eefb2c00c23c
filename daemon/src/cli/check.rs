//! `ichd check`: everything that can be wrong before the first patient, said before the first patient.

use super::{ConfigFile, Failure};
use crate::models::Current;

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
    let config = args.config.load()?;
    let Current { reader, refused } = Current::load(&config).map_err(|e| Failure::config(&e))?;
    crate::privacy::Privacy::load(&config.privacy).map_err(|e| Failure::config(&e))?;
    let model = reader.model();
    if let Some(tls) = &config.alert.tls {
        for (key, path) in [("ca", &tls.ca), ("certificate", &tls.certificate), ("key", &tls.key)] {
            std::fs::metadata(path).map_err(|e| Failure {
                code: 78,
                message: format!("alert.tls.{key}: failed to read `{}`: {e}", path.display()),
            })?;
        }
    }
    if let Some(tls) = &config.receive.tls {
        crate::tls::Server::load(tls.files())
            .map_err(|e| Failure { code: 78, message: format!("receive.tls.{e}") })?;
    }
    if let Some(files) = config.station.files() {
        crate::tls::Server::load(files)
            .map_err(|e| Failure { code: 78, message: format!("station.tls.{e}") })?;
    }
    if let Some(atna) = &config.atna {
        atna.files().client_config().map_err(|e| Failure { code: 78, message: format!("atna.{e}") })?;
    }
    let state = &config.state.directory;
    if !state.is_dir() {
        return Err(Failure {
            code: 78,
            message: format!("state.directory `{}` is no directory; create it", state.display()),
        });
    }
    let mut warnings = Vec::new();
    if config.receive.calling_ae_titles.is_empty() {
        warnings.push("receive.calling-ae-titles is empty: nobody is admitted");
    }
    warnings.extend(refused.as_deref());
    let certificates = config.certificates();
    let expiry = crate::tls::expiry_reason(certificates.iter().map(|p| p.as_path()), crate::clock::wall_ms());
    warnings.extend(expiry.as_deref());
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
