//! The command line: one subcommand, one file. Exit codes are part of the interface.

mod alert;
mod analyze;
mod audit;
mod check;
mod enrol;
mod export;
mod journal;
mod ledger;
mod model;
mod records;
mod replay;
mod run;
mod sheet;
mod status;
mod update;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;

/// Reads head CT beside the scanner and notifies people of a suspected intracranial hemorrhage.
///
/// A notification, never a diagnosis; not a medical device.
#[derive(Debug, Parser)]
#[command(name = "ichd", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The daemon.
    Run(ConfigFile),
    /// Everything on one machine with nothing installed (runs `ichd-demo` beside this program).
    #[command(disable_help_flag = true)]
    Demo {
        /// Arguments for `ichd-demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
    /// Reads folders or files off-line; one line per series.
    Analyze(analyze::Args),
    /// Validates configuration, model and state directory without binding anything.
    Check(check::Args),
    /// How things stand, asked of the running daemon.
    Status(status::Args),
    /// Proves the chain on demand, or mutes its sound for a while.
    Alert(alert::Args),
    /// Every series received, with its disposition and reason.
    Ledger(ledger::Args),
    /// Who may speak on the site's broker: authority, certificates, Mosquitto configuration.
    Enrol(enrol::Args),
    /// Who was told of which finding, when, by what means, and who acknowledged it.
    Records(records::Args),
    /// The hash-chained audit log: check it, print it.
    Audit(audit::Args),
    /// De-identified copies of a study, faces removed, for quality review.
    Export(export::Args),
    /// Reads stored series again and says whether the verdict is the ledger's, byte for byte.
    Replay(replay::Args),
    /// Model packages: verify, install, shadow, promote, rollback, list.
    Model(model::Args),
    /// Image bundles through RAUC: status, install, mark-good.
    Update(update::Args),
}

/// Deferred or not proven yet: ask again (EX_TEMPFAIL).
const LATER: u8 = 75;
/// What the command stands on does not answer, so nothing was decided (EX_UNAVAILABLE).
const UNAVAILABLE: u8 = 69;

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/ichd/ichd.toml")]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failure> {
        Config::load(&self.config).map_err(|e| Failure::config(&e))
    }
}

/// Why a command did not succeed, with the exit code that systemd and scripts rely on.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Did not succeed (1).
    pub fn failed(message: impl Into<String>) -> Self {
        Failure { code: 1, message: message.into() }
    }

    /// An internal error (70, EX_SOFTWARE).
    pub fn internal(message: impl Into<String>) -> Self {
        Failure { code: 70, message: message.into() }
    }

    /// The configuration or model cannot be used (78, EX_CONFIG).
    pub fn config(error: &dyn std::error::Error) -> Self {
        Failure { code: 78, message: crate::chain(error) }
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|e| Failure::internal(e.to_string()))
}

/// Whoever reads our output may stop, as `head` does: then the command ends as SIGPIPE would end it. `println!` panics
/// then, and the signal's own action could be restored in unsafe code only.
fn end_when_nobody_reads() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(141);
        }
        otherwise(panic);
    }));
}

/// Parses the command line and runs it.
pub fn main() -> ExitCode {
    end_when_nobody_reads();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Demo { args } => demo(&args),
        Command::Analyze(args) => analyze::analyze(&args),
        Command::Check(args) => check::check(&args),
        Command::Status(args) => status::status(&args),
        Command::Alert(args) => alert::alert(&args),
        Command::Ledger(args) => ledger::ledger(&args),
        Command::Enrol(args) => enrol::enrol(&args),
        Command::Records(args) => records::records(&args),
        Command::Audit(args) => audit::audit(&args),
        Command::Export(args) => export::export(&args),
        Command::Replay(args) => replay::replay(&args),
        Command::Model(args) => model::model(&args),
        Command::Update(args) => update::update(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("ichd: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// The demo carries a broker and a scanner, which the production program must not; it is a program of its own.
fn demo(args: &[std::ffi::OsString]) -> Result<(), Failure> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("ichd-demo")));
    let program = beside.filter(|p| p.exists()).unwrap_or_else(|| "ichd-demo".into());
    match std::process::Command::new(&program).args(args).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::failed(format!("ichd-demo ended with {status}"))),
        Err(error) => Err(Failure::failed(format!(
            "failed to start `{}` ({error}); build it with `cargo build --release -p ichd-demo`",
            program.display()
        ))),
    }
}
