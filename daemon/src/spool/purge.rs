//! The end of an instance: out of sight in one step, then overwritten and removed.
//!
//! A series leaves `studies/` whole, by a rename: a crash finds all of it or nothing, never a part that would be read as
//! if the rest were still to come. What lies in `purge/` is nobody's any more and is cleared at every start.
//!
//! Overwriting keeps the data from whoever reads the free blocks of a plain disk. Flash and copying file systems may keep
//! an old block all the same; against those only an encrypted disk helps.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::UNIX_EPOCH;

use super::{Spool, SpoolError, sync_folder};
use crate::dicom::{SeriesUid, StudyUid};

/// What became of a series that was to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purged {
    /// It is gone, with so many instances.
    Gone(usize),
    /// So many files lie there, other than were judged: a late slice. They stay.
    Changed(usize),
}

/// Folders whose files are kept for nobody but the curious.
const SIDE_FOLDERS: [&str; 2] = ["aside", "quarantine"];

impl Spool {
    /// Removes a series that holds exactly `n_instances`. The caller answers for nothing of it being open, and for the
    /// assembler having forgotten it.
    pub fn purge_series(
        &self,
        study: &StudyUid,
        series: &SeriesUid,
        n_instances: usize,
    ) -> Result<Purged, SpoolError> {
        let folder = self.series_folder(study, series);
        let doomed = self.root.join("purge");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| SpoolError::Folder { path, source }
        };
        fs::create_dir_all(&doomed).map_err(io(&doomed))?;
        let target = doomed.join(series.as_str());
        {
            // Nobody may take a name in it meanwhile.
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            let files = match fs::read_dir(&folder) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Purged::Gone(0)),
                entries => entries.map_err(io(&folder))?.flatten().count(),
            };
            if files != n_instances {
                return Ok(Purged::Changed(files));
            }
            if target.exists() {
                wipe_tree(&target).map_err(io(&target))?;
            }
            fs::rename(&folder, &target).map_err(io(&folder))?;
            places.durable.remove(&folder);
            // Fails while another series of the study is there, as it should.
            let _ = folder.parent().map(fs::remove_dir);
        }
        sync_folder(&doomed).map_err(io(&doomed))?;
        wipe_tree(&target).map_err(io(&target))?;
        Ok(Purged::Gone(n_instances))
    }

    /// Finishes what a crash left half overwritten.
    pub fn finish_purge(&self) -> Result<(), SpoolError> {
        let path = self.root.join("purge");
        let io = |source| SpoolError::Folder { path: path.clone(), source };
        if !path.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(&path).map_err(io)?.flatten() {
            wipe_tree(&entry.path()).map_err(io)?;
        }
        Ok(())
    }

    /// Removes instances set aside or quarantined before `before_ms` (wall time), except those that `keep` names by
    /// SOP Instance UID; returns how many. Nobody who stores waits for the overwriting.
    pub fn purge_side_folders(
        &self,
        before_ms: u64,
        keep: &dyn Fn(&str) -> bool,
    ) -> Result<usize, SpoolError> {
        let mut n = 0;
        for name in SIDE_FOLDERS {
            let path = self.root.join(name);
            let io = |source| SpoolError::Folder { path: path.clone(), source };
            let due: Vec<PathBuf> = (fs::read_dir(&path).map_err(io)?.flatten().map(|e| e.path()))
                .filter(|file| modified_ms(file).is_some_and(|at| at < before_ms) && !keep(&sop_of(file)))
                .collect();
            if due.is_empty() {
                continue;
            }
            let doomed = self.root.join("purge").join(name);
            fs::create_dir_all(&doomed).map_err(io)?;
            for file in &due {
                let Some(name) = file.file_name() else { continue };
                // Whoever compares with it, or takes its name, does so before or after.
                let _places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
                fs::rename(file, doomed.join(name)).map_err(io)?;
                n += 1;
            }
            // No name may come back with zeros behind it.
            sync_folder(&doomed).and_then(|()| sync_folder(&path)).map_err(io)?;
            wipe_tree(&doomed).map_err(io)?;
        }
        Ok(n)
    }
}

/// `<sop>.dcm` or `<sop>.<16 hex>.dcm`.
fn sop_of(file: &Path) -> String {
    let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    match stem.rsplit_once('.') {
        Some((sop, hash)) if hash.len() == 16 && hash.bytes().any(|b| b.is_ascii_alphabetic()) => {
            sop.to_owned()
        }
        _ => stem.to_owned(),
    }
}

fn modified_ms(path: &Path) -> Option<u64> {
    let modified = fs::metadata(path).and_then(|m| m.modified()).ok()?;
    modified.duration_since(UNIX_EPOCH).ok().map(|d| d.as_millis() as u64)
}

fn wipe_tree(folder: &Path) -> std::io::Result<()> {
    let files: Vec<PathBuf> = fs::read_dir(folder)?.flatten().map(|e| e.path()).collect();
    files.iter().try_for_each(|file| wipe(file))?;
    fs::remove_dir(folder)
}

/// Zeros over every byte, synced, then the name goes.
fn wipe(file: &Path) -> std::io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let mut open: File = OpenOptions::new().write(true).open(file)?;
    let mut left = open.metadata()?.len();
    while left > 0 {
        let n = left.min(ZEROS.len() as u64);
        open.write_all(&ZEROS[..n as usize])?;
        left -= n;
    }
    open.sync_data()?;
    fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use super::super::{SpoolLimits, tests::stored};
    use super::*;
    use std::sync::Arc;

    fn spool(dir: &Path) -> Arc<Spool> {
        Arc::new(Spool::open(dir, SpoolLimits { free_bytes_min: 0, instance_bytes_max: 1 << 20 }).unwrap())
    }

    #[test]
    fn a_purged_series_is_gone_and_one_that_changed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let first = stored(&spool);
        let (study, series) = (&first.header.study, &first.header.series);
        assert_eq!(spool.purge_series(study, series, 2).unwrap(), Purged::Changed(1));
        assert_eq!(spool.rescan().unwrap().len(), 1);
        assert_eq!(spool.purge_series(study, series, 1).unwrap(), Purged::Gone(1));
        assert!(spool.rescan().unwrap().is_empty() && !first.path.exists());
        assert_eq!(fs::read_dir(dir.path().join("purge")).unwrap().count(), 0);
        assert_eq!(spool.purge_series(study, series, 1).unwrap(), Purged::Gone(0), "again is harmless");
        // The same series may come again.
        stored(&spool);
        assert_eq!(spool.rescan().unwrap().len(), 1);
    }

    #[test]
    fn what_a_crash_left_to_purge_is_cleared_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let first = stored(&spool);
        let left = dir.path().join("purge/1.2.3");
        fs::create_dir_all(&left).unwrap();
        fs::rename(&first.path, left.join("x.dcm")).unwrap();
        assert!(spool.rescan().unwrap().is_empty(), "nothing of it is read again");
        spool.finish_purge().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("purge")).unwrap().count(), 0);
    }

    #[test]
    fn bytes_are_overwritten_before_the_name_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other_name) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&file, vec![7; 100_000]).unwrap();
        fs::hard_link(&file, &other_name).unwrap();
        wipe(&file).unwrap();
        assert!(!file.exists());
        assert_eq!(fs::read(&other_name).unwrap(), vec![0; 100_000]);
    }

    #[test]
    fn side_folders_lose_what_is_old_and_not_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let aside = dir.path().join("aside");
        for name in ["1.2.3.dcm", "1.2.4.dcm"] {
            fs::write(aside.join(name), b"x").unwrap();
        }
        assert_eq!(spool.purge_side_folders(0, &|_| false).unwrap(), 0, "not old");
        assert_eq!(spool.purge_side_folders(u64::MAX, &|sop| sop == "1.2.4").unwrap(), 1);
        assert!(aside.join("1.2.4.dcm").exists());
        assert_eq!(sop_of(Path::new("1.2.3.0123456789abcdef.dcm")), "1.2.3");
        assert_eq!(fs::read_dir(dir.path().join("purge")).unwrap().count(), 0);
    }

    #[test]
    fn nobody_who_stores_waits_for_what_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        // To open it for writing waits until somebody reads: a disk that takes its time.
        let slow = dir.path().join("aside/1.2.9.dcm");
        assert!(std::process::Command::new("mkfifo").arg(&slow).status().unwrap().success());
        std::thread::scope(|scope| {
            let purge = scope.spawn(|| spool.purge_side_folders(u64::MAX, &|_| false));
            let doomed = dir.path().join("purge/aside/1.2.9.dcm");
            while !doomed.exists() {
                std::thread::yield_now();
            }
            stored(&spool);
            drop(File::open(&doomed).unwrap());
            // A pipe cannot be synced; what is left is finished by whoever starts next.
            let _ = purge.join().unwrap();
        });
        fs::remove_file(dir.path().join("purge/aside/1.2.9.dcm")).unwrap();
        fs::write(dir.path().join("purge/aside/1.2.8.dcm"), b"x").unwrap();
        spool.finish_purge().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("purge")).unwrap().count(), 0);
    }
}
