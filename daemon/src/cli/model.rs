//! `ichd model`: packages beside each other, one current, one in shadow. Keys: `infer.trusted-keys`. Run as root.

use std::path::PathBuf;
use std::process::Command;

use serde::Serialize;

use super::{ConfigFile, Failure, json};
use crate::clock;
use crate::config::{Config, Promotion};
use crate::ledger::Ledger;
use crate::ledger::shadow::Comparison;
use crate::models::{self, Installed, Store, StoreError};
use crate::update::{gate, look};

/// Arguments of `ichd model`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Signature, hashes, graphs and golden scores of a package, wherever it lies.
    Verify {
        #[command(flatten)]
        common: Common,
        /// Package directory.
        package: PathBuf,
    },
    /// Copies a package beside the others and verifies the copy; nothing reads with it yet.
    Install {
        #[command(flatten)]
        common: Common,
        /// Package directory.
        package: PathBuf,
        /// Let it run in shadow from the next start of the daemon on.
        #[arg(long)]
        shadow: bool,
    },
    /// Lets a package read every study along, or with --off none; it publishes nothing.
    Shadow {
        #[command(flatten)]
        common: Common,
        /// Installed package; the beginning of its name is enough.
        #[arg(required_unless_present = "off", conflicts_with = "off")]
        name: Option<String>,
        /// No package runs in shadow any more.
        #[arg(long)]
        off: bool,
    },
    /// Makes an installed package current from the next start of the daemon on.
    #[command(alias = "activate")]
    Promote {
        #[command(flatten)]
        common: Common,
        /// Installed package; the beginning of its name is enough.
        #[arg(required_unless_present = "by_rule", conflicts_with = "by_rule")]
        name: Option<String>,
        /// The one in shadow, if models.promotion is "rule" and nothing speaks against it. Exit code 75: nobody may be cut
        /// off now, ask again.
        #[arg(long)]
        by_rule: bool,
        /// Restart the daemon with it.
        #[arg(long)]
        restart: bool,
    },
    /// Returns to what was current before, from the next start of the daemon on.
    Rollback {
        #[command(flatten)]
        common: Common,
        /// Restart the daemon with it.
        #[arg(long)]
        restart: bool,
    },
    /// Installed packages, what they are for, and how the one in shadow compares.
    List {
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    config: ConfigFile,
    /// JSON instead of lines.
    #[arg(long)]
    json: bool,
}

const RESTART: &str = "from the next start on: systemctl restart ichd (nothing that was stored is lost)";

/// Runs a verb.
pub fn model(args: &Args) -> Result<(), Failure> {
    let common = match &args.verb {
        Verb::Verify { common, .. }
        | Verb::Install { common, .. }
        | Verb::Shadow { common, .. }
        | Verb::Promote { common, .. }
        | Verb::Rollback { common, .. }
        | Verb::List { common } => common,
    };
    let config = common.config.load()?;
    let (store, infer) = (Store::at(&config.models.directory), &config.infer);
    match &args.verb {
        Verb::Verify { package, .. } => {
            let id = models::prove(package, infer).map_err(failed)?;
            say(common, &id, || format!("{} {} is right, golden scores agree", id.id, id.version))
        }
        Verb::Install { package, shadow, .. } => {
            let installed = store.install(package, infer).map_err(failed)?;
            if *shadow {
                store.set_shadow(Some(&installed.name), infer).map_err(failed)?;
            }
            let reads = if *shadow { format!(", runs in shadow {RESTART}") } else { String::new() };
            say(common, &installed, || format!("{} installed{reads}", installed.name))
        }
        Verb::Shadow { name, .. } => {
            let id = store.set_shadow(name.as_deref(), infer).map_err(failed)?;
            say(common, &id, || match &id {
                Some(id) => format!("{} {} runs in shadow {RESTART}", id.id, id.version),
                None => format!("nothing runs in shadow {RESTART}"),
            })
        }
        Verb::Promote { name, restart, .. } => {
            let wanted = match name {
                Some(name) => name.clone(),
                None => match by_rule(&config, &store)? {
                    Some(name) => name,
                    None => return Ok(()),
                },
            };
            let id = store.promote(&wanted, infer).map_err(failed)?;
            say(common, &id, || format!("{} {} is current {RESTART}", id.id, id.version))?;
            if *restart { restart_daemon() } else { Ok(()) }
        }
        Verb::Rollback { restart, .. } => {
            let current = store.rollback().map_err(failed)?;
            say(common, &current, || {
                format!("{} is current {RESTART}", current.as_deref().unwrap_or("the image's own model"))
            })?;
            if *restart { restart_daemon() } else { Ok(()) }
        }
        Verb::List { .. } => list(common, &config, &store),
    }
}

/// What `list --json` says.
#[derive(Serialize)]
struct Listed {
    /// The model of the image.
    image: PathBuf,
    /// Whether that one is in use.
    image_is_current: bool,
    /// Beside it.
    installed: Vec<Installed>,
    /// Pairs of models that read the same series.
    comparisons: Vec<Comparison>,
    /// What speaks against promoting the one in shadow by the rule.
    against: Vec<String>,
}

fn list(common: &Common, config: &Config, store: &Store) -> Result<(), Failure> {
    let comparisons =
        Ledger::comparisons(&config.state.directory).map_err(|e| Failure::failed(crate::chain(&e)))?;
    let of_shadow = in_shadow(config, store)?;
    let listed = Listed {
        image: config.infer.model.clone(),
        image_is_current: store.current(&config.infer).is_none(),
        installed: store.list().map_err(failed)?,
        against: of_shadow.map_or_else(Vec::new, |c| config.models.against(&c)),
        comparisons,
    };
    if common.json {
        println!("{}", json(&listed)?);
        return Ok(());
    }
    let own = if listed.image_is_current { "current" } else { "" };
    println!("{:60} {own}", listed.image.display());
    listed.installed.iter().for_each(|p| println!("{:60} {}", p.name, p.roles.join(" ")));
    for c in &listed.comparisons {
        println!(
            "{} answered, {} read along: {} series, {} with the same answer; suspected {} and {}, {} by the first alone; \
             {} not read or not analysed; {:.0} ms and {:.0} ms on one thread",
            &c.current_sha256[..12.min(c.current_sha256.len())],
            &c.shadow_sha256[..12.min(c.shadow_sha256.len())],
            c.series,
            c.agreed,
            c.current_suspected,
            c.shadow_suspected,
            c.only_current,
            c.failed,
            c.current_ms,
            c.shadow_ms
        );
    }
    listed.against.iter().for_each(|why| println!("against promotion by rule: {why}"));
    Ok(())
}

/// How the package in shadow compares with what reads now; none if nothing is in shadow.
fn in_shadow(config: &Config, store: &Store) -> Result<Option<Comparison>, Failure> {
    let Some(shadow) = store.sha256("shadow") else { return Ok(None) };
    let current = match store.sha256("current") {
        Some(current) => current,
        None => models::manifest_sha256(&config.infer.model).unwrap_or_default(),
    };
    let all = Ledger::comparisons(&config.state.directory).map_err(|e| Failure::failed(crate::chain(&e)))?;
    let pair = all.into_iter().find(|c| c.shadow_sha256 == shadow && c.current_sha256 == current);
    Ok(Some(pair.unwrap_or(Comparison {
        current_sha256: current,
        shadow_sha256: shadow,
        ..Comparison::default()
    })))
}

/// The package in shadow, if the site's rule promotes it now.
fn by_rule(config: &Config, store: &Store) -> Result<Option<String>, Failure> {
    if config.models.promotion != Promotion::Rule {
        return Ok(None);
    }
    let Some(seen) = in_shadow(config, store)? else { return Ok(None) };
    if !config.models.against(&seen).is_empty() {
        return Ok(None);
    }
    let holds = gate::holds(&look(&config.state.directory), config.update.window(), clock::wall_ms());
    if !holds.is_empty() {
        let reasons: Vec<String> = holds.iter().map(ToString::to_string).collect();
        return Err(Failure { code: super::LATER, message: format!("deferred: {}", reasons.join("; ")) });
    }
    Ok(store.target("shadow"))
}

fn restart_daemon() -> Result<(), Failure> {
    match Command::new("systemctl").args(["restart", "ichd.service"]).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::failed(format!("systemctl restart ichd.service ended with {status}"))),
        Err(error) => Err(Failure::failed(format!("failed to start systemctl: {error}"))),
    }
}

fn say(common: &Common, value: &impl Serialize, words: impl FnOnce() -> String) -> Result<(), Failure> {
    println!("{}", if common.json { json(value)? } else { words() });
    Ok(())
}

fn failed(error: StoreError) -> Failure {
    match error {
        StoreError::Model(_) => Failure::config(&error),
        other => Failure::failed(crate::chain(&other)),
    }
}
