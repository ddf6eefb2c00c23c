//! `ichd replay`: reads the spool again and holds the verdict against the ledger's, byte for byte.
//!
//! Runs beside a daemon and changes nothing. Which series of a study was chosen is not judged again: what was read is
//! read, what stood back stands back. Input hashes are computed anew from the files, never taken from memory.

use serde::Serialize;

use super::{ConfigFile, Failure};
use crate::chain;
use crate::evidence::replay;
use crate::infer::Reader;
use crate::ledger::{SeriesRow, evidence};
use crate::models::Current;

/// Arguments of `ichd replay`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Series or study UID, alert identifier, or the number of a row of `ichd ledger`.
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object per series instead of lines.
    #[arg(long)]
    json: bool,
}

/// One line of `replay --json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    row: i64,
    series_uid: &'a str,
    equal: bool,
    /// What differs, in words; absent if nothing does.
    difference: Option<String>,
    verdict: Option<String>,
    ledger: &'a str,
}

/// Replays every row that the identifier names; succeeds only if all bytes are equal.
pub fn replay(args: &Args) -> Result<(), Failure> {
    let config = args.config.load()?;
    let rows = evidence::find(&config.state.directory, &args.id).map_err(|e| Failure::failed(chain(&e)))?;
    if rows.is_empty() {
        return Err(Failure::failed(format!("the ledger holds nothing under `{}`", args.id)));
    }
    let reader = Current::load(&config).map_err(|e| Failure::config(&e))?.reader;
    let mut n_different = 0;
    for row in &rows {
        let verdict = replay::again(row, &config.state.directory, config.assemble.slices_max, &reader, None);
        let line = line(row, verdict, &reader);
        n_different += usize::from(!line.equal);
        print(args, row, &line)?;
    }
    match n_different {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {} verdicts are not the ledger's", rows.len()))),
    }
}

fn line<'a>(row: &'a SeriesRow, verdict: Result<String, String>, reader: &Reader) -> Line<'a> {
    let equal = verdict.as_ref().is_ok_and(|v| *v == row.verdict);
    let difference = match &verdict {
        Ok(_) if equal => None,
        Err(why) => Some(why.clone()),
        Ok(verdict) => Some(replay::difference(row, verdict, reader)),
    };
    Line {
        row: row.row,
        series_uid: &row.series_uid,
        equal,
        difference,
        verdict: verdict.ok(),
        ledger: &row.verdict,
    }
}

fn print(args: &Args, row: &SeriesRow, line: &Line) -> Result<(), Failure> {
    if args.json {
        println!("{}", serde_json::to_string(line).map_err(|e| Failure::internal(e.to_string()))?);
        return Ok(());
    }
    println!("{}", line.verdict.as_deref().unwrap_or("-"));
    match &line.difference {
        None => eprintln!("row {}: bytes equal the ledger's", row.row),
        Some(difference) => eprintln!("row {}: NOT the ledger's bytes: {difference}", row.row),
    }
    Ok(())
}
