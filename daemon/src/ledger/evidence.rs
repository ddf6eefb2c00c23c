//! The ledger as evidence: rows found by any of their names, read beside a running daemon, and verdicts that no other
//! verdict destroys.
//!
//! `series` holds the verdict that stands. One that stood before, and what came of a purged series again without being as
//! much as was judged, are kept beside it in `side_verdicts`.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use serde_json::json;

use super::{Ledger, LedgerError, Record, SeriesRow, audit, doing, integer, open_read_only, series_rows};
use crate::atna::{Event, Node, Source, Transfer};
use crate::clock;
use crate::decide::{Disposition, Stage, Verdict};
use crate::evidence::auditor::Entry;

/// Characters of a refusal's detail that are kept.
const DETAIL_MAX: usize = 200;

/// Migration that makes table and columns; run by `schema`. `kind` is `replaced` (stood before) or `late` (came after the
/// purge, never stood); `closed_ms`: its instances have gone, or belong to the verdict that stands.
pub(super) const MIGRATION: &str = "
CREATE INDEX series_by_study ON series (study_uid);
ALTER TABLE series ADD COLUMN purge_ended_ms INTEGER;
UPDATE series SET purge_ended_ms = purged_ms;
CREATE TABLE side_verdicts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    instances INTEGER NOT NULL,
    input_sha256 TEXT NOT NULL,
    revision INTEGER NOT NULL,
    verdict TEXT NOT NULL,
    calling_ae TEXT NOT NULL,
    decided_ms INTEGER NOT NULL,
    closed_ms INTEGER
) STRICT;
CREATE INDEX side_verdicts_by_series ON side_verdicts (series_uid);
CREATE UNIQUE INDEX late_once ON side_verdicts (series_uid, input_sha256) WHERE kind = 'late';
";

/// The rows that an identifier names: a series or study UID, an alert identifier, or the number of a row. What an alert
/// rests on are the series of its study that were read.
pub fn find(state: &Path, id: &str) -> Result<Vec<SeriesRow>, LedgerError> {
    let sql = "series_uid = ?1 OR study_uid = ?1 OR rowid = ?2 OR
               study_uid = (SELECT study_uid FROM alerts WHERE alert_id = ?1) AND model_sha256 IS NOT NULL";
    series_rows(&open_read_only(state)?, sql, params![id, id.parse::<i64>().ok()])
}

/// Writes down that de-identified copies are about to be made, beside a running daemon, for ourselves and for the audit
/// record repository where there is one. Without this nothing is exported.
pub fn note_export(
    state: &Path,
    source: Option<&Source>,
    user: &str,
    transfer: Transfer,
) -> Result<(), LedgerError> {
    let path = state.join("ichd.db");
    let mut connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|source| LedgerError::Open { path: path.clone(), source })?;
    connection.busy_timeout(Duration::from_secs(5)).map_err(doing("wait for the daemon"))?;
    let tx = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(doing("begin a transaction"))?;
    let n: usize = transfer.instances.values().sum();
    audit::append(&tx, "export", &json!({"user": user, "instances": n}))?;
    if let Some(source) = source {
        let event = Event::Export { transfer, user: user.into() };
        super::atna::queue(&tx, source, &[(clock::wall_ms(), event)])?;
    }
    tx.commit().map_err(doing("note an export"))
}

/// Keeps the final verdict that stands before another takes its place.
pub(super) fn keep_replaced(tx: &Transaction, verdict: &Verdict, at_ms: u64) -> Result<(), LedgerError> {
    tx.execute(
        "INSERT INTO side_verdicts (kind, study_uid, series_uid, instances, input_sha256, revision, verdict, calling_ae,
             decided_ms, closed_ms)
         SELECT 'replaced', study_uid, series_uid, instances, input_sha256, revision, verdict, coalesce(calling_ae, ''),
             decided_ms, ?3
         FROM series WHERE study_uid = ?4 AND series_uid = ?1 AND stage = 'final' AND verdict <> ?2",
        params![
            verdict.series.as_str(),
            verdict.canonical_json(),
            integer(at_ms),
            verdict.study.as_str()
        ],
    )
    .map_err(doing("keep a verdict"))?;
    close_late(tx, verdict, at_ms)
}

/// What came late has gone, or belongs to another verdict now.
fn close_late(tx: &Transaction, verdict: &Verdict, at_ms: u64) -> Result<(), LedgerError> {
    let sql = "UPDATE side_verdicts SET closed_ms = ?2
               WHERE study_uid = ?3 AND series_uid = ?1 AND kind = 'late' AND closed_ms IS NULL";
    tx.execute(sql, params![verdict.series.as_str(), integer(at_ms), verdict.study.as_str()])
        .map(|_| ())
        .map_err(doing("close a late verdict"))
}

/// Whether a verdict is only about slices that came again after their series was judged and purged. Fewer than were
/// judged say nothing against what was decided of all; that they are suspected would be news all the same.
pub(super) fn is_late(tx: &Transaction, verdict: &Verdict) -> Result<bool, LedgerError> {
    if verdict.stage == Stage::Provisional || matches!(verdict.disposition, Disposition::Suspected(_)) {
        return Ok(false);
    }
    let sql = "SELECT instances FROM series
         WHERE study_uid = ?1 AND series_uid = ?2 AND stage = 'final' AND purged_ms IS NOT NULL";
    let judged: Option<i64> = tx
        .query_row(sql, [verdict.study.as_str(), verdict.series.as_str()], |r| r.get(0))
        .optional()
        .map_err(doing("read the ledger"))?;
    Ok(judged.is_some_and(|n| (verdict.instances as u64) < n.unsigned_abs()))
}

/// Writes late slices down beside the verdict that stands.
pub(super) fn record_late(
    tx: &Transaction,
    verdict: &Verdict,
    record: &Record,
    [study_ref, series_ref]: [&str; 2],
) -> Result<(), LedgerError> {
    close_late(tx, verdict, record.decided_wall_ms)?;
    tx.execute(
        "INSERT INTO side_verdicts (kind, study_uid, series_uid, instances, input_sha256, revision, verdict, calling_ae,
             decided_ms)
         VALUES ('late', ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (study_uid, series_uid, input_sha256) WHERE kind = 'late'
         DO UPDATE SET closed_ms = NULL, decided_ms = excluded.decided_ms",
        params![
            verdict.study.as_str(),
            verdict.series.as_str(),
            integer(verdict.instances as u64),
            verdict.input_sha256,
            record.revision,
            verdict.canonical_json(),
            record.arrival.calling.join("\\"),
            integer(record.decided_wall_ms),
        ],
    )
    .map_err(doing("write a late verdict"))?;
    let body = json!({
        "study_ref": study_ref, "series_ref": series_ref, "instances": verdict.instances,
        "input_sha256": verdict.input_sha256, "disposition": verdict.disposition.as_str(),
        "reason": verdict.disposition.why().map(|w| w.code()),
    });
    audit::append(tx, "late_after_purge", &body).map(|_| ())
}

impl Ledger {
    /// Writes refusals down, for ourselves and for the audit record repository.
    pub fn refused(&self, entry: &Entry) -> Result<(), LedgerError> {
        let Entry { first, count, between_ms } = entry;
        let [first_at, last_at] = between_ms.map(clock::rfc3339);
        let detail: String = first.detail.chars().take(DETAIL_MAX).collect();
        let mut description = format!("{} {}: {detail}", first.event, first.reason);
        if *count > 1 {
            description += &format!(" ({count} times, {first_at} to {last_at})");
        }
        let body = json!({
            "what": first.event, "reason": first.reason, "peer": first.peer, "calling": first.calling,
            "called": first.called, "detail": detail, "count": count, "first_at": first_at, "last_at": last_at,
        });
        let event = Event::Refused {
            at_the_door: first.event == "association_refused",
            by: Node { ae_title: first.calling.clone(), host: first.peer.clone() },
            description,
        };
        self.change(|tx| {
            audit::append(tx, "refused", &body)?;
            self.atna_queue(tx, event)
        })
    }

    /// Series by disposition and reason; the reason is empty where there is none.
    pub fn series_counts(&self) -> Result<Vec<(String, String, u64)>, LedgerError> {
        let sql =
            "SELECT disposition, coalesce(reason, ''), count(*) FROM series GROUP BY 1, 2 ORDER BY 1, 2";
        self.counts(sql, "count series")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::{Profile, Site};
    use crate::decide::Why;

    fn ledger(dir: &Path) -> Ledger {
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        Ledger::open(dir, &site).unwrap()
    }

    fn at(decided_wall_ms: u64) -> Record {
        Record { decided_wall_ms, ..Record::default() }
    }

    fn late(instances: usize, input: &str) -> Verdict {
        let mut late = verdict(1, Stage::Final, None);
        late.disposition = Disposition::NotAnalysed(Why::TooFewSlices);
        (late.instances, late.input_sha256) = (instances, input.into());
        late
    }

    /// A series that was judged and purged.
    fn purged(dir: &Path) -> (Ledger, String) {
        let ledger = ledger(dir);
        let judged = verdict(1, Stage::Final, None);
        ledger.record(&judged, &at(1_000)).unwrap();
        let row = ledger.purgeable(u64::MAX, 10).unwrap().remove(0);
        assert!(ledger.mark_purged(&row, 2_000).unwrap());
        ledger.purge_ended(&row, 2_000).unwrap();
        (ledger, judged.canonical_json())
    }

    #[test]
    fn rows_are_found_by_every_one_of_their_names_and_by_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let model = crate::infer::ModelId { id: "m".into(), version: "1".into(), sha256: "00".into() };
        let read = |n, p| Verdict { model: Some(model.clone()), ..verdict(n, Stage::Final, p) };
        let alert = ledger.record(&read(1, Some(0.9)), &at(1)).unwrap().alert.unwrap().0;
        ledger.record(&read(2, None), &at(2)).unwrap();
        let mut unread = verdict(3, Stage::Final, None);
        unread.disposition = Disposition::NotAnalysed(Why::Localizer);
        ledger.record(&unread, &at(3)).unwrap();
        let found = |id: &str| -> Vec<String> {
            find(dir.path(), id).unwrap().into_iter().map(|r| r.series_uid).collect()
        };
        assert_eq!(found("1.2.3.2"), ["1.2.3.2"]);
        assert_eq!(found("1.2.3").len(), 3);
        assert_eq!(found(&alert), ["1.2.3.1", "1.2.3.2"], "what was read");
        let row = ledger.series().unwrap()[2].row;
        assert_eq!(found(&row.to_string()), ["1.2.3.3"]);
        for nobody in ["", "1.2", "%", "99", "' OR 1 = 1 --"] {
            assert!(found(nobody).is_empty(), "{nobody}");
        }
    }

    #[test]
    fn a_slice_that_comes_again_after_the_purge_destroys_no_evidence() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, judged) = purged(dir.path());
        let recorded = ledger.record(&late(1, "aa"), &at(3_000)).unwrap();
        assert!(recorded.late && recorded.alert.is_none());
        let row = ledger.series().unwrap().remove(0);
        assert_eq!((&row.verdict, row.purged_ms, row.late_instances), (&judged, Some(2_000), Some(1)));
        let events: Vec<String> = audit::list(dir.path()).unwrap().into_iter().map(|r| r.event).collect();
        assert_eq!(events, ["disposition", "late_after_purge"]);
        // A restart does not read it again: what lies in the spool is what was recorded.
        let read = ledger.judged_of(&late(1, "aa").study).unwrap();
        assert_eq!(read.values().next().unwrap().input_sha256, "aa");
        // It goes like anything else, and the row still stands.
        ledger.record(&late(2, "bb"), &at(4_000)).unwrap();
        let due = ledger.purgeable(u64::MAX, 10).unwrap();
        assert_eq!(due.iter().map(|j| (j.instances, j.decided_ms)).collect::<Vec<_>>(), [(2, 4_000)]);
        assert!(ledger.mark_purged(&due[0], 5_000).unwrap());
        assert!(ledger.purgeable(u64::MAX, 10).unwrap().is_empty());
        assert_eq!(ledger.series().unwrap()[0].verdict, judged);
    }

    #[test]
    fn the_whole_series_again_is_judged_again_and_what_stood_before_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, judged) = purged(dir.path());
        ledger.record(&late(1, "aa"), &at(3_000)).unwrap();
        let again = verdict(1, Stage::Final, Some(0.9));
        assert!(ledger.record(&again, &at(4_000)).unwrap().alert.is_some());
        let row = ledger.series().unwrap().remove(0);
        assert_eq!((row.verdict, row.purged_ms, row.replaced), (again.canonical_json(), None, 1));
        let sql = "SELECT verdict FROM side_verdicts WHERE kind = 'replaced'";
        let kept: String = ledger.lock().query_row(sql, [], |r| r.get(0)).unwrap();
        assert_eq!(kept, judged);
        let due = ledger.purgeable(u64::MAX, 10).unwrap();
        assert!(due.is_empty(), "its alert is open, and what came late is part of it: {due:?}");
    }

    #[test]
    fn fewer_slices_that_are_suspected_are_news() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = purged(dir.path());
        let mut part = verdict(1, Stage::Final, Some(0.9));
        part.instances = 1;
        let recorded = ledger.record(&part, &at(3_000)).unwrap();
        assert!(!recorded.late && recorded.alert.is_some());
    }
}
