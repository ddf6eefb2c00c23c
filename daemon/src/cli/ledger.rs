//! `ichd ledger`: every series received and what became of it, read from the database beside a running daemon.

use super::{ConfigFile, Failure};
use crate::ledger::Ledger;

/// Arguments of `ichd ledger`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object per series instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints the ledger, oldest first.
pub fn ledger(args: &Args) -> Result<(), Failure> {
    let config = args.config.load()?;
    let rows = Ledger::list(&config.state.directory).map_err(|e| Failure::failed(crate::chain(&e)))?;
    for row in rows {
        if args.json {
            println!("{}", super::json(&row)?);
        } else {
            println!(
                "{}  {:13} {:16} {:4} instances  series {}  revision {}",
                crate::clock::rfc3339(row.decided_ms),
                row.disposition,
                row.reason.as_deref().unwrap_or("-"),
                row.instances,
                row.series_uid,
                row.revision
            );
        }
    }
    Ok(())
}
