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
                "{:5}  {}  {:13} {:16} {:4} instances  from {}  series {}  revision {}{}{}",
                row.row,
                crate::clock::rfc3339(row.decided_ms),
                row.disposition,
                row.reason.as_deref().unwrap_or("-"),
                row.instances,
                if row.calling_ae.is_empty() { "-".to_owned() } else { row.calling_ae.join(", ") },
                row.series_uid,
                row.revision,
                if row.purged_ms.is_some() { "  purged" } else { "" },
                row.late_instances.map_or(String::new(), |n| format!("  {n} came again later")),
            );
        }
    }
    Ok(())
}
