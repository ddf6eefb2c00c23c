//! Results on their way to the PACS: one row for each final verdict and destination, written with the verdict.

use rusqlite::{OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

use super::{Ledger, LedgerError, Record, doing, integer};
use crate::decide::{Stage, Verdict};
use crate::hex;

/// Who is told of what. Empty by default: nothing is reported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subscription {
    /// Names of the destinations.
    pub destinations: Vec<String>,
    /// Reason codes of series that are not worth a report.
    pub silent_reasons: Vec<&'static str>,
}

/// One report that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportRow {
    /// Order of delivery.
    pub seq: i64,
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Canonical verdict.
    pub verdict: String,
    /// Its hash, hex.
    pub verdict_sha256: String,
    /// Lesion map, where there is one: JSON of [`crate::report::Lesion`].
    pub lesion: Option<Vec<u8>>,
    /// When it was decided, ms since the epoch.
    pub decided_ms: u64,
    /// Hash of the last verdict on this series that this destination has.
    pub predecessor_sha256: Option<String>,
}

/// How something that waited ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The destination has all of it.
    Delivered,
    /// It never took it, or is no destination any more.
    GivenUp,
}

impl Settled {
    /// Name of the state.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Settled::Delivered => "delivered",
            Settled::GivenUp => "given_up",
        }
    }
}

/// Queues a final verdict for every destination; the same verdict again is the same report.
pub(super) fn queue(
    tx: &Transaction,
    subscription: &Subscription,
    verdict: &Verdict,
    record: &Record,
) -> Result<(), LedgerError> {
    let silent = verdict.disposition.why().is_some_and(|w| subscription.silent_reasons.contains(&w.code()));
    if verdict.stage != Stage::Final || silent || subscription.destinations.is_empty() {
        return Ok(());
    }
    let json = verdict.canonical_json();
    let sha256 = hex(&Sha256::digest(&json));
    let lesion = record.lesion.as_ref().map(serde_json::to_vec).transpose().map_err(LedgerError::Document)?;
    for destination in &subscription.destinations {
        tx.execute(
            "INSERT OR IGNORE INTO reports (destination, study_uid, series_uid, verdict, verdict_sha256, lesion,
                 decided_ms, state, attempts)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 'waiting', 0)",
            params![
                destination,
                verdict.study.as_str(),
                verdict.series.as_str(),
                json,
                sha256,
                lesion,
                integer(record.decided_wall_ms),
            ],
        )
        .map_err(doing("queue a report"))?;
    }
    Ok(())
}

impl Ledger {
    /// Lets final verdicts be reported from now on.
    pub fn reporting(mut self, subscription: Subscription) -> Self {
        self.subscription = subscription;
        self
    }

    /// Reports that wait for a destination, oldest first; of each series only the first, so that a later verdict never
    /// overtakes the one it follows on. Some rows are left out.
    pub fn reports_waiting(
        &self,
        destination: &str,
        most: usize,
        but: &[i64],
    ) -> Result<Vec<ReportRow>, LedgerError> {
        let sql = "SELECT seq, study_uid, series_uid, verdict, verdict_sha256, lesion, decided_ms,
                       (SELECT verdict_sha256 FROM reports AS e WHERE e.destination = r.destination AND
                        e.study_uid = r.study_uid AND e.series_uid = r.series_uid AND e.seq < r.seq AND e.state = 'delivered'
                        ORDER BY e.seq DESC LIMIT 1)
                   FROM reports AS r WHERE destination = ?1 AND state = 'waiting' AND NOT EXISTS
                       (SELECT 1 FROM reports AS e WHERE e.destination = r.destination AND
                        e.study_uid = r.study_uid AND e.series_uid = r.series_uid AND e.seq < r.seq AND e.state = 'waiting')
                       AND seq NOT IN (SELECT value FROM json_each(?3))
                   ORDER BY seq LIMIT ?2";
        let but = serde_json::to_string(but).map_err(LedgerError::Document)?;
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql).map_err(doing("read waiting reports"))?;
        let rows = statement.query_map(params![destination, integer(most as u64), but], |r| {
            Ok(ReportRow {
                seq: r.get(0)?,
                study_uid: r.get(1)?,
                series_uid: r.get(2)?,
                verdict: r.get(3)?,
                verdict_sha256: r.get(4)?,
                lesion: r.get(5)?,
                decided_ms: r.get::<_, i64>(6)?.unsigned_abs(),
                predecessor_sha256: r.get(7)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(doing("read waiting reports"))
    }

    /// An attempt failed; `detail` is a stable word.
    pub fn report_failed(&self, seq: i64, detail: &str) -> Result<(), LedgerError> {
        let sql = "UPDATE reports SET attempts = attempts + 1, detail = ?2 WHERE seq = ?1";
        self.lock().execute(sql, params![seq, detail]).map(|_| ()).map_err(doing("note a failed report"))
    }

    /// The report needs no more attempts.
    pub fn report_settled(&self, seq: i64, how: Settled, at_ms: u64) -> Result<(), LedgerError> {
        let sql = "UPDATE reports SET state = ?2, settled_ms = ?3, attempts = attempts + 1, lesion = NULL WHERE seq = ?1";
        self.lock()
            .execute(sql, params![seq, how.as_str(), integer(at_ms)])
            .map(|_| ())
            .map_err(doing("settle a report"))
    }

    /// Gives up what waits for destinations that are none any more; returns how many reports that were.
    pub fn reports_of_others_given_up(
        &self,
        destinations: &[String],
        at_ms: u64,
    ) -> Result<usize, LedgerError> {
        let names = serde_json::to_string(destinations).map_err(LedgerError::Document)?;
        let sql =
            "UPDATE reports SET state = 'given_up', detail = 'no_destination', settled_ms = ?2, lesion = NULL
                   WHERE state = 'waiting' AND destination NOT IN (SELECT value FROM json_each(?1))";
        self.lock().execute(sql, params![names, integer(at_ms)]).map_err(doing("give up reports"))
    }

    /// Reports by destination and state, for health and metrics.
    pub fn report_counts(&self) -> Result<Vec<(String, String, u64)>, LedgerError> {
        let sql =
            "SELECT destination, state, count(*) FROM reports GROUP BY destination, state ORDER BY 1, 2";
        self.counts(sql, "count reports")
    }

    /// Whether the report of a series is on its way.
    pub fn is_report_waiting(&self, series_uid: &str) -> Result<bool, LedgerError> {
        let sql = "SELECT 1 FROM reports WHERE series_uid = ?1 AND state = 'waiting' LIMIT 1";
        let found: Option<i64> = self
            .lock()
            .query_row(sql, [series_uid], |r| r.get(0))
            .optional()
            .map_err(doing("look for a report"))?;
        Ok(found.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::{Profile, Site};
    use crate::decide::{Disposition, Why};

    fn open(dir: &std::path::Path) -> Ledger {
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        Ledger::open(dir, &site).unwrap().reporting(Subscription {
            destinations: vec!["A".into(), "B".into()],
            silent_reasons: vec!["localizer"],
        })
    }

    fn waiting(ledger: &Ledger, destination: &str) -> Vec<ReportRow> {
        ledger.reports_waiting(destination, 10, &[]).unwrap()
    }

    #[test]
    fn a_final_verdict_waits_for_every_destination_across_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let final_verdict = verdict(1, Stage::Final, Some(0.9));
        let lesion: crate::report::Lesion =
            serde_json::from_str(r#"{"field_mm":240.0,"px":1,"slices":[{"sop_uid":"1.2.3","map":"/w=="}]}"#)
                .unwrap();
        {
            let ledger = open(dir.path());
            ledger.record(&verdict(1, Stage::Provisional, Some(0.9)), &Record::default()).unwrap();
            assert!(waiting(&ledger, "A").is_empty(), "provisional verdicts are not reported");
            let record = Record { lesion: Some(lesion.clone()), ..Record::default() };
            ledger.record(&final_verdict, &record).unwrap();
            ledger.record(&final_verdict, &record).unwrap();
        }
        let ledger = open(dir.path());
        let row = waiting(&ledger, "A").remove(0);
        assert_eq!(row.verdict, final_verdict.canonical_json());
        assert_eq!(row.lesion.as_deref(), Some(&serde_json::to_vec(&lesion).unwrap()[..]));
        ledger.report_settled(row.seq, Settled::Delivered, 7).unwrap();
        assert!(waiting(&ledger, "A").is_empty());
        assert_eq!(waiting(&ledger, "B").len(), 1, "one destination does not speak for another");
        assert!(ledger.is_report_waiting("1.2.3.1").unwrap());
        assert_eq!(ledger.reports_of_others_given_up(&["A".into()], 8).unwrap(), 1);
        assert!(!ledger.is_report_waiting("1.2.3.1").unwrap());
    }

    #[test]
    fn a_later_verdict_waits_for_the_one_it_follows_on() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        ledger.record(&verdict(1, Stage::Final, Some(0.9)), &Record::default()).unwrap();
        ledger.record(&verdict(1, Stage::Final, Some(0.7)), &Record::default()).unwrap();
        ledger.record(&verdict(2, Stage::Final, None), &Record::default()).unwrap();
        let rows = waiting(&ledger, "A");
        assert_eq!(rows.iter().map(|r| r.series_uid.as_str()).collect::<Vec<_>>(), ["1.2.3.1", "1.2.3.2"]);
        let others = ledger.reports_waiting("A", 10, &[rows[0].seq]).unwrap();
        assert_eq!(others, rows[1..], "what follows on one that is left out waits for it");
        ledger.report_settled(rows[0].seq, Settled::Delivered, 7).unwrap();
        let next = waiting(&ledger, "A").remove(0);
        assert_eq!(next.predecessor_sha256.as_ref(), Some(&rows[0].verdict_sha256));
    }

    #[test]
    fn a_series_that_was_never_a_candidate_is_not_reported() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let mut unread = verdict(1, Stage::Final, None);
        unread.disposition = Disposition::NotAnalysed(Why::Localizer);
        ledger.record(&unread, &Record::default()).unwrap();
        assert!(waiting(&ledger, "A").is_empty());
        unread.disposition = Disposition::NotAnalysed(Why::NotHead);
        ledger.record(&unread, &Record::default()).unwrap();
        assert_eq!(waiting(&ledger, "A").len(), 1);
    }
}
