//! A series read again from the spool, its verdict held against the ledger's, byte for byte.
//!
//! Changes nothing. Which series of a study was chosen is not judged again: what was read is read, what stood back stands
//! back. Input hashes are computed anew from the files, never taken from memory.

use std::path::Path;

use crate::assemble::{Flag, Volume, geometry};
use crate::decide::{Stage, Why, decide, driver, suitability};
use crate::dicom::{SeriesUid, StudyUid};
use crate::infer::driver::Idle;
use crate::infer::{Reader, Reading, SeriesCache};
use crate::ledger::SeriesRow;
use crate::{chain, spool};

/// The canonical verdict as this program gives it today. With `idle` it is read slice by slice, and given up as soon as
/// the line has something to do.
pub fn again(
    row: &SeriesRow,
    state_directory: &Path,
    slices_max: usize,
    reader: &Reader,
    idle: Option<&Idle>,
) -> Result<String, String> {
    if row.purged_ms.is_some() {
        return Err("the instances were purged".into());
    }
    let study = StudyUid::parse(&row.study_uid).map_err(|e| e.to_string())?;
    let series = SeriesUid::parse(&row.series_uid).map_err(|e| e.to_string())?;
    let root = state_directory.join("spool");
    let instances = spool::stored_series(&root, &study, &series).map_err(|e| chain(&e))?;
    if instances.is_empty() {
        return Err("the spool holds no instance of it".into());
    }
    let mut volume = geometry::place(study, series, instances);
    restore_conflict(&mut volume, row, &root);
    let mut cache = SeriesCache::default();
    let reading: Result<Reading, Why> = match suitability::by_headers(&volume, slices_max) {
        Err(why) => Err(why),
        Ok(()) if row.reason.as_deref() == Some(Why::NotChosen.code()) => Err(Why::NotChosen),
        Ok(()) => {
            if let Some(idle) = idle {
                // What cannot be read ahead says so in the reading itself.
                while reader.prefetch(&volume, &mut cache, reader.threads()).unwrap_or(false) {
                    idle.check()?;
                }
            }
            reader.read(&volume, &mut cache).map_err(|error| driver::why(&error))
        }
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

/// The likeliest reason first: other slices, another model, another program, another machine.
pub fn difference(row: &SeriesRow, verdict: &str, reader: &Reader) -> String {
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
