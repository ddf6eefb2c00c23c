//! `ichd-gateway`: exit codes as `ichd`: 1 did not succeed, 64 usage, 78 configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ichd_gateway::config::Config;
use ichd_gateway::run::Gateway;

/// Tells other systems of alerts: HL7 v2 over MLLP, FHIR, ntfy, signed webhooks.
#[derive(Debug, Parser)]
#[command(name = "ichd-gateway", version)]
struct Cli {
    /// Configuration file.
    #[arg(long, default_value = "/etc/ichd-gateway/gateway.toml")]
    config: PathBuf,
    /// Validate the configuration and all it names, connect to nothing.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let gateway = match Config::load(&cli.config).and_then(Gateway::new) {
        Ok(gateway) => gateway,
        Err(error) => {
            eprintln!("ichd-gateway: {error}");
            return ExitCode::from(78);
        }
    };
    if cli.check {
        println!("configuration can be used");
        return ExitCode::SUCCESS;
    }
    match gateway.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ichd-gateway: {error}");
            ExitCode::FAILURE
        }
    }
}
