//! `ichd export`: de-identified copies of a study for quality review, with faces removed. Reads the spool beside a
//! running daemon and changes nothing but the audit log: who exports what is written down first.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{ConfigFile, Failure};
use crate::assemble::geometry;
use crate::atna::Transfer;
use crate::config::Config;
use crate::dicom::{SeriesUid, StudyUid};
use crate::evidence::deidentify::Export;
use crate::ledger::{SeriesRow, evidence};
use crate::{chain, spool};

/// Arguments of `ichd export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Study or series UID, alert identifier, or the number of a row of `ichd ledger`.
    #[arg(value_name = "STUDY")]
    study: String,
    /// Folder to write to; must be empty or absent.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object per series instead of lines.
    #[arg(long)]
    json: bool,
}

/// Writes `series-N/NNNN.dcm` and `series-N/verdict.json` for every series whose face could be removed.
pub fn export(args: &Args) -> Result<(), Failure> {
    let config = args.config.load()?;
    let rows =
        evidence::find(&config.state.directory, &args.study).map_err(|e| Failure::failed(chain(&e)))?;
    if rows.is_empty() {
        return Err(Failure::failed(format!("the ledger holds nothing under `{}`", args.study)));
    }
    prepare(&args.out)?;
    note(&config, &rows)?;
    let export = Export::new(salt()?);
    let root = config.state.directory.join("spool");
    // One number per series, in order of UID, which says nothing about when.
    let by_uid: BTreeMap<&str, &SeriesRow> = rows.iter().map(|r| (r.series_uid.as_str(), r)).collect();
    let mut n_exported = 0;
    for (number, row) in (1..).zip(by_uid.values()) {
        let folder = args.out.join(format!("series-{number}"));
        let result = one(&export, row, &root, &folder);
        n_exported += usize::from(result.is_ok());
        tell(args, number, &result);
    }
    match n_exported {
        0 => Err(Failure::failed("no series of it could be exported")),
        _ => Ok(()),
    }
}

/// Who exports what goes into the audit log first.
fn note(config: &Config, rows: &[SeriesRow]) -> Result<(), Failure> {
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let mut transfer = Transfer::default();
    for row in rows.iter().filter(|row| row.purged_ms.is_none()) {
        transfer.study_uid.clone_from(&row.study_uid);
        let (Ok(study), Ok(series)) = (StudyUid::parse(&row.study_uid), SeriesUid::parse(&row.series_uid))
        else {
            continue;
        };
        let root = config.state.directory.join("spool");
        for instance in
            spool::stored_series(&root, &study, &series).map_err(|e| Failure::failed(chain(&e)))?
        {
            transfer.patient_id.clone_from(instance.header.patient_id.reveal());
            *transfer.instances.entry(instance.header.sop_class.clone()).or_default() += 1;
        }
    }
    let source = config.audit_source();
    let user = user.as_deref().unwrap_or("unknown");
    evidence::note_export(&config.state.directory, source.as_ref(), user, transfer).map_err(|e| {
        Failure::failed(format!("the export could not be written into the audit log: {}", chain(&e)))
    })
}

fn prepare(out: &Path) -> Result<(), Failure> {
    let failed = |e: std::io::Error| Failure::failed(format!("failed to use `{}`: {e}", out.display()));
    std::fs::create_dir_all(out).map_err(failed)?;
    match std::fs::read_dir(out).map_err(failed)?.next() {
        Some(_) => Err(Failure::failed(format!("`{}` is not empty", out.display()))),
        None => Ok(()),
    }
}

fn salt() -> Result<[u8; 16], Failure> {
    let mut salt = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut salt))
        .map_err(|e| Failure::internal(format!("failed to read randomness: {e}")))?;
    Ok(salt)
}

fn one(export: &Export, row: &SeriesRow, root: &Path, folder: &Path) -> Result<(usize, usize), String> {
    if row.purged_ms.is_some() {
        return Err("the instances were purged".into());
    }
    let study = StudyUid::parse(&row.study_uid).map_err(|e| e.to_string())?;
    let series = SeriesUid::parse(&row.series_uid).map_err(|e| e.to_string())?;
    let instances = spool::stored_series(root, &study, &series).map_err(|e| chain(&e))?;
    let volume = geometry::place(study, series, instances);
    let write = |i: usize, file: &[u8]| {
        // Made with the first slice: a series that is refused leaves no folder.
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(format!("{:04}.dcm", i + 1)), file)
    };
    let exported = export.series(&volume, write).map_err(|e| {
        let _ = std::fs::remove_dir_all(folder);
        chain(&e)
    })?;
    let verdict = export.verdict(&row.verdict).ok_or("the verdict cannot be read")?;
    std::fs::write(folder.join("verdict.json"), verdict + "\n").map_err(|e| e.to_string())?;
    Ok((exported.slices, exported.blanked))
}

fn tell(args: &Args, number: usize, result: &Result<(usize, usize), String>) {
    let line = match (args.json, result) {
        (true, Ok((slices, blanked))) => {
            serde_json::json!({"series": number, "slices": slices, "blanked": blanked, "left_out": null})
                .to_string()
        }
        (true, Err(why)) => {
            serde_json::json!({"series": number, "slices": 0, "blanked": 0, "left_out": why}).to_string()
        }
        (false, Ok((slices, blanked))) => {
            format!("series-{number}: {slices} slices, {blanked} of them blank (skull base and below)")
        }
        (false, Err(why)) => format!("series-{number}: left out: {why}"),
    };
    println!("{line}");
}
