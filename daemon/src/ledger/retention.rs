//! What may leave the spool. A row stays for good and says when its instances were purged.

use rusqlite::params;

use super::{Ledger, LedgerError, doing, integer};

/// A series whose final verdict stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Instances that were judged.
    pub instances: usize,
    /// When, ms since the epoch.
    pub decided_ms: u64,
    /// The late verdict that this is, beside the one that stands.
    pub late: Option<i64>,
}

/// An alert that still wants somebody, a report or the series itself on its way: it stays.
const OPEN: &str = "EXISTS (SELECT 1 FROM alerts AS a WHERE a.study_uid = s.study_uid
                        AND a.state NOT IN ('resolved', 'withdrawn', 'expired'))
                    OR EXISTS (SELECT 1 FROM reports AS r WHERE r.study_uid = s.study_uid
                        AND r.series_uid = s.series_uid AND r.state = 'waiting')
                    OR EXISTS (SELECT 1 FROM forwards AS f WHERE f.study_uid = s.study_uid
                        AND f.series_uid = s.series_uid AND f.state = 'waiting')";

impl Ledger {
    /// Finally judged series of which nothing is open, decided before `before_ms`, oldest first.
    pub fn purgeable(&self, before_ms: u64, most: usize) -> Result<Vec<Judged>, LedgerError> {
        let sql = format!(
            "SELECT study_uid, series_uid, instances, decided_ms, NULL FROM series AS s
             WHERE stage = 'final' AND purged_ms IS NULL AND decided_ms < ?1 AND NOT ({OPEN})
             UNION ALL SELECT study_uid, series_uid, instances, decided_ms, seq FROM side_verdicts AS s
             WHERE kind = 'late' AND closed_ms IS NULL AND decided_ms < ?1 AND NOT ({OPEN})
             ORDER BY decided_ms LIMIT ?2"
        );
        self.judged(&sql, params![integer(before_ms), integer(most as u64)])
    }

    /// Series whose purge was begun and not ended: a crash came before their files went.
    pub fn marked_purged(&self) -> Result<Vec<Judged>, LedgerError> {
        self.judged(
            "SELECT study_uid, series_uid, instances, decided_ms, NULL FROM series
             WHERE purged_ms IS NOT NULL AND purge_ended_ms IS NULL",
            params![],
        )
    }

    /// The files have gone.
    pub fn purge_ended(&self, judged: &Judged, at_ms: u64) -> Result<(), LedgerError> {
        if judged.late.is_some() {
            return Ok(());
        }
        let sql = "UPDATE series SET purge_ended_ms = ?2
                   WHERE study_uid = ?3 AND series_uid = ?1 AND purged_ms IS NOT NULL";
        self.lock()
            .execute(sql, params![judged.series_uid, integer(at_ms), judged.study_uid])
            .map(|_| ())
            .map_err(doing("end a purge"))
    }

    /// Marks a series as purged unless something of it has opened meanwhile; returns whether it was marked.
    pub fn mark_purged(&self, judged: &Judged, at_ms: u64) -> Result<bool, LedgerError> {
        // A late verdict that lost its files to a crash is found in the spool and recorded anew.
        let sql = match judged.late {
            Some(_) => format!(
                "UPDATE side_verdicts AS s SET closed_ms = ?3
                 WHERE study_uid = ?4 AND series_uid = ?1 AND decided_ms = ?2 AND kind = 'late' AND closed_ms IS NULL AND NOT ({OPEN})"
            ),
            None => format!(
                "UPDATE series AS s SET purged_ms = ?3, purge_ended_ms = NULL
                 WHERE study_uid = ?4 AND series_uid = ?1 AND decided_ms = ?2 AND stage = 'final' AND purged_ms IS NULL AND NOT ({OPEN})"
            ),
        };
        self.change(|tx| {
            tx.execute(
                &sql,
                params![judged.series_uid, integer(judged.decided_ms), integer(at_ms), judged.study_uid],
            )
            .map(|n| n == 1)
            .map_err(doing("mark a purge"))
        })
    }

    /// Takes the mark back: the series was not what was judged any more, and stayed.
    pub fn unmark_purged(&self, judged: &Judged) -> Result<(), LedgerError> {
        let connection = self.lock();
        let undone = match judged.late {
            Some(seq) => {
                connection.execute("UPDATE side_verdicts SET closed_ms = NULL WHERE seq = ?1", [seq])
            }
            None => connection.execute(
                "UPDATE series SET purged_ms = NULL WHERE study_uid = ?1 AND series_uid = ?2",
                [&judged.study_uid, &judged.series_uid],
            ),
        };
        undone.map(|_| ()).map_err(doing("take back a purge"))
    }

    /// What names instances that are still wanted: answers to storage commitment that nobody has taken, set-aside
    /// instances on their way to another node. A SOP Instance UID that stands in one of them is not purged.
    pub fn promised(&self) -> Result<Vec<String>, LedgerError> {
        let connection = self.lock();
        let sql = "SELECT outcome FROM commitments
                   UNION ALL SELECT sop_uid FROM forwards WHERE state = 'waiting' AND sop_uid <> ''";
        let mut statement = connection.prepare(sql).map_err(doing("read commitments"))?;
        let rows = statement.query_map([], |r| r.get(0)).map_err(doing("read commitments"))?;
        rows.collect::<Result<_, _>>().map_err(doing("read commitments"))
    }

    fn judged(&self, sql: &str, params: &[&dyn rusqlite::ToSql]) -> Result<Vec<Judged>, LedgerError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql).map_err(doing("read judged series"))?;
        let rows = statement.query_map(params, |r| {
            Ok(Judged {
                study_uid: r.get(0)?,
                series_uid: r.get(1)?,
                instances: r.get::<_, i64>(2)?.unsigned_abs() as usize,
                decided_ms: r.get::<_, i64>(3)?.unsigned_abs(),
                late: r.get(4)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(doing("read judged series"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Record;
    use super::super::reports::{Settled, Subscription};
    use super::*;
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::{Profile, Site};
    use crate::decide::Stage;

    fn ledger(dir: &std::path::Path) -> Ledger {
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        let subscription = Subscription { destinations: vec!["A".into()], ..Subscription::default() };
        Ledger::open(dir, &site).unwrap().reporting(subscription)
    }

    fn purgeable(ledger: &Ledger) -> Vec<String> {
        ledger.purgeable(u64::MAX, 10).unwrap().into_iter().map(|j| j.series_uid).collect()
    }

    #[test]
    fn nothing_open_is_purged() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let record = Record { decided_wall_ms: 1_000, ..Record::default() };
        ledger.record(&verdict(1, Stage::Provisional, Some(0.9)), &record).unwrap();
        assert!(purgeable(&ledger).is_empty(), "undecided");
        ledger.record(&verdict(1, Stage::Final, Some(0.9)), &record).unwrap();
        let report = ledger.reports_waiting("A", 1, &[]).unwrap().remove(0);
        ledger.report_settled(report.seq, Settled::Delivered, 1).unwrap();
        assert!(purgeable(&ledger).is_empty(), "its alert is open");
        let judged = |decided_ms| Judged {
            study_uid: "1.2.3".into(),
            series_uid: "1.2.3.1".into(),
            instances: 1,
            decided_ms,
            late: None,
        };
        assert!(!ledger.mark_purged(&judged(1_000), 2_000).unwrap());
        ledger.record(&verdict(1, Stage::Final, None), &record).unwrap();
        assert!(purgeable(&ledger).is_empty(), "a report waits");
        let report = ledger.reports_waiting("A", 1, &[]).unwrap().remove(0);
        ledger.report_settled(report.seq, Settled::GivenUp, 1).unwrap();
        assert_eq!(purgeable(&ledger), ["1.2.3.1"]);
        assert!(ledger.purgeable(1_000, 10).unwrap().is_empty(), "too young");
        assert!(!ledger.mark_purged(&judged(999), 2_000).unwrap(), "judged again meanwhile");
        assert!(ledger.mark_purged(&judged(1_000), 2_000).unwrap());
        assert!(purgeable(&ledger).is_empty());
        assert_eq!(ledger.marked_purged().unwrap().len(), 1, "begun and not ended");
        ledger.purge_ended(&judged(1_000), 2_000).unwrap();
        assert!(ledger.marked_purged().unwrap().is_empty(), "what is sent again is no part of it");
        let row = ledger.series().unwrap().remove(0);
        assert_eq!((row.purged_ms, row.disposition.as_str()), (Some(2_000), "not_suspected"));
        // Slices that come again make a new row, and it is not purged.
        ledger.record(&verdict(1, Stage::Final, Some(0.8)), &record).unwrap();
        assert_eq!(ledger.series().unwrap()[0].purged_ms, None);
    }
}
