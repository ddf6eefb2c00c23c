//! `ichd records`: who was told of which finding, when, by what means, and who acknowledged it.

use super::{ConfigFile, Failure};
use crate::ledger::records;

/// Arguments of `ichd records`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object per line.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// RFC 4180 with a header, for a spreadsheet.
    #[arg(long)]
    csv: bool,
}

/// Prints the records, oldest first.
pub fn records(args: &Args) -> Result<(), Failure> {
    let config = args.config.load()?;
    let rows = records::list(&config.state.directory).map_err(|e| Failure::failed(crate::chain(&e)))?;
    if args.csv {
        print!("{}", records::csv(&rows));
        return Ok(());
    }
    for r in &rows {
        if args.json {
            println!("{}", super::json(r)?);
        } else {
            println!(
                "{}  {}  {:9} {:12} {:14} {:16} {}",
                r.at, r.code, r.event, r.station, r.role, r.user, r.detail
            );
        }
    }
    Ok(())
}
