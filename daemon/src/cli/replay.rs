//! `ichd replay`: reads the spool again and holds the verdict against the ledger's, byte for byte.
//!
//! Runs beside a daemon and changes nothing. Which series of a study was chosen is not judged again: what was read is
//! read, what stood back stands back. Input hashes are computed anew from the files, never taken from memory.

use std::path::Path;

use serde::Serialize;

use super::{ConfigFile, Failure};
use crate::assemble::{Flag, Volume, geometry};
use crate::config::Config;
use crate::decide::{Stage, Why, decide, driver, suitability};
use crate::dicom::{SeriesUid, StudyUid};
use crate::infer::{Reader, Reading, SeriesCache};
use crate::ledger::{SeriesRow, evidence};
use crate::models::Current;
use crate::{chain, spool};

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
        let verdict = again(row, &config, &reader);
        let line = line(row, verdict, &reader);
        n_different += usize::from(!line.equal);
        print(args, row, &line)?;
    }
    match n_different {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {} verdicts are not the ledger's", rows.len()))),
    }
}

/// The canonical verdict as this program gives it today.
fn again(row: &SeriesRow, config: &Config, reader: &Reader) -> Result<String, String> {
    if row.purged_ms.is_some() {
        return Err("the instances were purged".into());
    }
    let study = StudyUid::parse(&row.study_uid).map_err(|e| e.to_string())?;
    let series = SeriesUid::parse(&row.series_uid).map_err(|e| e.to_string())?;
    let root = config.state.directory.join("spool");
    let instances = spool::stored_series(&root, &study, &series).map_err(|e| chain(&e))?;
    if instances.is_empty() {
        return Err("the spool holds no instance of it".into());
    }
    let mut volume = geometry::place(study, series, instances);
    restore_conflict(&mut volume, row, &root);
    let reading: Result<Reading, Why> = match suitability::by_headers(&volume, config.assemble.slices_max) {
        Err(why) => Err(why),
        Ok(()) if row.reason.as_deref() == Some(Why::NotChosen.code()) => Err(Why::NotChosen),
        Ok(()) => reader.read(&volume, &mut SeriesCache::default()).map_err(|error| driver::why(&error)),
    };
    let verdict = decide(&volume, Stage::Final, reading.as_ref().map_err(|why| *why), reader.policy());
    Ok(verdict.canonical_json())
}

/// That another content came under a UID is known from the quarantine, if it came before the verdict.
fn restore_conflict(volume: &mut Volume, row: &SeriesRow, root: &Path) {
    let said = row.verdict.contains("\"conflicting_duplicate\"");
    let is_quarantined = volume.instances().any(|i| spool::is_quarantined(root, &i.header.sop));
    if said && is_quarantined {
        volume.flags.push(Flag::ConflictingDuplicate);
        volume.flags.sort_unstable();
    }
}

fn line<'a>(row: &'a SeriesRow, verdict: Result<String, String>, reader: &Reader) -> Line<'a> {
    let equal = verdict.as_ref().is_ok_and(|v| *v == row.verdict);
    let difference = match &verdict {
        Ok(_) if equal => None,
        Err(why) => Some(why.clone()),
        Ok(verdict) => Some(difference(row, verdict, reader)),
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

/// The likeliest reason first: other slices, another model, another program, another machine.
fn difference(row: &SeriesRow, verdict: &str, reader: &Reader) -> String {
    let model = &reader.model().sha256;
    if !verdict.contains(&format!("\"input_sha256\":\"{}\"", row.input_sha256)) {
        "the spool holds other instances than were read".into()
    } else if row.model_sha256.as_ref().is_some_and(|m| m != model) {
        format!("read by another model: {}", row.model_sha256.as_deref().unwrap_or_default())
    } else if !row.verdict.contains(&format!("\"program\":\"{}\"", crate::VERSION)) {
        "decided by another version of this program".into()
    } else if row.stage != "final" {
        "the ledger's verdict is provisional".into()
    } else {
        "same slices, model and program; scores differ where the vector instructions of machines do".into()
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
