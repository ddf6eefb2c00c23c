//! Who waits, as seen from outside the daemon: its database read-only, and the spool.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::gate::Situation;
use crate::clock;
use crate::ledger::Ledger;
use crate::ledger::update::Waiting;

/// Images of a series that came this recently may have more behind them.
const ARRIVING: Duration = Duration::from_secs(60);
/// A series that nothing was added to for so long is being read by nobody: the daemon that should is down, and holding
/// back its mend would keep it so.
const FORGOTTEN: Duration = Duration::from_secs(3_600);

/// Looks; what cannot be read is said and holds an update back.
pub fn look(state: &Path) -> Situation {
    let now_ms = clock::wall_ms();
    let unknown = |detail| Situation { unknown: Some(detail), ..Situation::default() };
    let waiting = match Ledger::waiting(state, now_ms) {
        Ok(waiting) => waiting,
        Err(error) => return unknown(crate::chain(&error)),
    };
    match open_series(state, &waiting, SystemTime::UNIX_EPOCH + Duration::from_millis(now_ms)) {
        Ok(open_series) => Situation { open_alerts: waiting.alerts, open_series, ..Situation::default() },
        Err(error) => Situation { open_alerts: waiting.alerts, ..unknown(format!("spool: {error}")) },
    }
}

/// Series of the spool that got an image within the last minute, or lately and have no final disposition or are being
/// read again.
fn open_series(state: &Path, waiting: &Waiting, now: SystemTime) -> std::io::Result<u64> {
    let studies = state.join("spool/studies");
    if !studies.exists() {
        return Ok(0);
    }
    let mut open = 0;
    for study in fs::read_dir(studies)? {
        let study = study?.path();
        if !study.is_dir() {
            continue;
        }
        for series in fs::read_dir(study)? {
            let series = series?;
            // Removed while we looked: nobody waits for it.
            let Ok(metadata) = series.metadata() else { continue };
            if !metadata.is_dir() {
                continue;
            }
            // A clock that was set back makes it fresh.
            let age = now.duration_since(metadata.modified()?).unwrap_or_default();
            let name = series.file_name();
            let uid = name.to_string_lossy();
            let unread = !waiting.read.contains_key(&*uid) || waiting.readings.contains(&*uid);
            open += u64::from(age < ARRIVING || (unread && age < FORGOTTEN));
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_open_while_it_arrives_and_until_it_is_read_but_not_for_ever() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(look(state.path()), Situation::default());
        let series = state.path().join("spool/studies/1.2/1.2.3");
        fs::create_dir_all(&series).unwrap();
        assert_eq!(look(state.path()).open_series, 1);
        let arrived = fs::metadata(&series).unwrap().modified().unwrap();
        let mut waiting = Waiting::default();
        let open = |waiting: &Waiting, s| {
            open_series(state.path(), waiting, arrived + Duration::from_secs(s)).unwrap()
        };
        assert_eq!((open(&waiting, 3_599), open(&waiting, 3_601)), (1, 0), "unread");
        waiting.read.insert("1.2.3".into(), 1);
        assert_eq!((open(&waiting, 59), open(&waiting, 61)), (1, 0), "read");
        waiting.readings.insert("1.2.3".into());
        assert_eq!(open(&waiting, 61), 1, "a late slice is being read");
    }

    #[test]
    fn a_state_that_cannot_be_read_holds_an_update_back() {
        let state = tempfile::tempdir().unwrap();
        let text = "no database at all, but long enough to be read as one".repeat(20);
        fs::write(state.path().join("ichd.db"), text).unwrap();
        assert!(look(state.path()).unknown.is_some());
    }
}
