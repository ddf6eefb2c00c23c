//! Images on their way to further nodes: one row for each series with a final verdict, or set-aside instance, and node.

use rusqlite::{Transaction, params};

use super::{Ledger, LedgerError, Record, Settled, doing, integer};
use crate::decide::{Stage, Verdict};
use crate::forward::Rule;

/// Migration that makes the table; run by `schema`. One of `series_uid` and `sop_uid` is empty. `state`: waiting, delivered,
/// given_up, dry_run.
pub(super) const MIGRATION: &str = "
CREATE TABLE forwards (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    destination TEXT NOT NULL,
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    sop_uid TEXT NOT NULL,
    input_sha256 TEXT NOT NULL,
    queued_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    detail TEXT,
    settled_ms INTEGER,
    UNIQUE (destination, study_uid, series_uid, sop_uid, input_sha256)
) STRICT;
CREATE INDEX forwards_by_series ON forwards (series_uid);
";

/// One series, or set-aside instance, that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardRow {
    /// Order of delivery.
    pub seq: i64,
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID; empty for a set-aside instance.
    pub series_uid: String,
    /// SOP Instance UID of a set-aside instance.
    pub sop_uid: Option<String>,
    /// Since when, ms since the epoch.
    pub queued_ms: u64,
}

/// Queues a series for every node whose rule takes it; the same instances again are the same row.
pub(super) fn queue(
    tx: &Transaction,
    rules: &[Rule],
    verdict: &Verdict,
    record: &Record,
    study_ref: &str,
) -> Result<(), LedgerError> {
    if verdict.stage != Stage::Final {
        return Ok(());
    }
    let taken = rules.iter().filter(|r| r.takes(&record.arrival.calling, verdict.disposition.as_str()));
    for rule in taken {
        let of = [verdict.study.as_str(), verdict.series.as_str(), "", &verdict.input_sha256];
        if insert(tx, rule, of, record.decided_wall_ms)? && rule.dry_run {
            log::info!(
                event = "forward_dry_run", destination = rule.name().as_str(), study = study_ref,
                count = verdict.instances; "{} instances would be forwarded", verdict.instances
            );
        }
    }
    Ok(())
}

fn insert(tx: &Transaction, rule: &Rule, of: [&str; 4], at_ms: u64) -> Result<bool, LedgerError> {
    let [study_uid, series_uid, sop_uid, input_sha256] = of;
    let state = if rule.dry_run { "dry_run" } else { "waiting" };
    let n = tx
        .execute(
            "INSERT OR IGNORE INTO forwards (destination, study_uid, series_uid, sop_uid, input_sha256, queued_ms, state,
                 attempts) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, 0)",
            params![rule.name(), study_uid, series_uid, sop_uid, input_sha256, integer(at_ms), state],
        )
        .map_err(doing("queue a series"))?;
    Ok(n == 1)
}

impl Ledger {
    /// Lets series be forwarded from now on.
    pub fn forwarding(mut self, rules: Vec<Rule>) -> Self {
        self.forward_rules = rules;
        self
    }

    /// Queues a set-aside instance, unless its rule waits for a series of the study that goes; whether it is settled.
    pub fn forward_set_aside(
        &self,
        rule: &Rule,
        study_uid: &str,
        sop_uid: &str,
        at_ms: u64,
    ) -> Result<bool, LedgerError> {
        let queued = self.change(|tx| {
            if !rule.dispositions.is_empty() {
                let sql = "SELECT count(*) FROM forwards WHERE destination = ?1 AND study_uid = ?2 AND series_uid <> ''";
                let n: i64 = tx
                    .query_row(sql, params![rule.name(), study_uid], |r| r.get(0))
                    .map_err(doing("look for a forwarded series"))?;
                if n == 0 {
                    return Ok(None);
                }
            }
            insert(tx, rule, [study_uid, "", sop_uid, ""], at_ms).map(Some)
        })?;
        if queued == Some(true) && rule.dry_run {
            log::info!(
                event = "forward_dry_run", destination = rule.name().as_str(),
                study = self.reference(study_uid).as_str(), count = 1; "1 set-aside instance would be forwarded"
            );
        }
        Ok(queued.is_some())
    }

    /// What waits for a node, oldest first, but for some rows.
    pub fn forwards_waiting(
        &self,
        destination: &str,
        most: usize,
        but: &[i64],
    ) -> Result<Vec<ForwardRow>, LedgerError> {
        let sql = "SELECT seq, study_uid, series_uid, nullif(sop_uid, ''), queued_ms FROM forwards
                   WHERE destination = ?1 AND state = 'waiting' AND seq NOT IN (SELECT value FROM json_each(?3))
                   ORDER BY seq LIMIT ?2";
        let but = serde_json::to_string(but).map_err(LedgerError::Document)?;
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql).map_err(doing("read waiting series"))?;
        let rows = statement.query_map(params![destination, integer(most as u64), but], |r| {
            Ok(ForwardRow {
                seq: r.get(0)?,
                study_uid: r.get(1)?,
                series_uid: r.get(2)?,
                sop_uid: r.get(3)?,
                queued_ms: r.get::<_, i64>(4)?.unsigned_abs(),
            })
        });
        rows.and_then(Iterator::collect).map_err(doing("read waiting series"))
    }

    /// An attempt failed; `detail` is a stable word.
    pub fn forward_failed(&self, seq: i64, detail: &str) -> Result<(), LedgerError> {
        let sql = "UPDATE forwards SET attempts = attempts + 1, detail = ?2 WHERE seq = ?1";
        self.lock().execute(sql, params![seq, detail]).map(|_| ()).map_err(doing("note a failed attempt"))
    }

    /// The row needs no more attempts.
    pub fn forward_settled(&self, seq: i64, how: Settled, at_ms: u64) -> Result<(), LedgerError> {
        let sql = "UPDATE forwards SET state = ?2, settled_ms = ?3, attempts = attempts + 1 WHERE seq = ?1";
        self.lock()
            .execute(sql, params![seq, how.as_str(), integer(at_ms)])
            .map(|_| ())
            .map_err(doing("settle a series"))
    }

    /// Gives up what waits for nodes that are none any more; returns how many rows that were.
    pub fn forwards_of_others_given_up(
        &self,
        destinations: &[String],
        at_ms: u64,
    ) -> Result<usize, LedgerError> {
        let names = serde_json::to_string(destinations).map_err(LedgerError::Document)?;
        let sql = "UPDATE forwards SET state = 'given_up', detail = 'no_destination', settled_ms = ?2
                   WHERE state = 'waiting' AND destination NOT IN (SELECT value FROM json_each(?1))";
        self.lock().execute(sql, params![names, integer(at_ms)]).map_err(doing("give up series"))
    }

    /// Rows by destination and state, for metrics.
    pub fn forward_counts(&self) -> Result<Vec<(String, String, u64)>, LedgerError> {
        let sql =
            "SELECT destination, state, count(*) FROM forwards GROUP BY destination, state ORDER BY 1, 2";
        self.counts(sql, "count series")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::{Profile, Site};

    fn rule(text: &str) -> Rule {
        toml::from_str(&format!("ae-title = \"A\"\naddress = \"h:104\"\n{text}")).unwrap()
    }

    fn open(dir: &std::path::Path, rules: Vec<Rule>) -> Ledger {
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        Ledger::open(dir, &site).unwrap().forwarding(rules)
    }

    #[test]
    fn a_series_waits_across_a_restart_keeps_its_instances_and_goes_once() {
        let dir = tempfile::tempdir().unwrap();
        let judged = verdict(1, Stage::Final, None);
        {
            let ledger = open(dir.path(), vec![rule("")]);
            ledger.record(&judged, &Record::default()).unwrap();
            ledger.record(&judged, &Record::default()).unwrap();
        }
        let ledger = open(dir.path(), vec![rule("")]);
        let waiting = ledger.forwards_waiting("A@h:104", 9, &[]).unwrap();
        assert_eq!(waiting.iter().map(|r| r.series_uid.as_str()).collect::<Vec<_>>(), ["1.2.3.1"]);
        assert!(ledger.purgeable(u64::MAX, 9).unwrap().is_empty(), "it waits");
        ledger.forward_failed(waiting[0].seq, "connection_refused").unwrap();
        ledger.forward_settled(waiting[0].seq, Settled::Delivered, 7).unwrap();
        assert!(ledger.forwards_waiting("A@h:104", 9, &[]).unwrap().is_empty());
        assert_eq!(ledger.purgeable(u64::MAX, 9).unwrap().len(), 1);
    }

    #[test]
    fn a_dry_run_waits_for_nothing_and_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path(), vec![rule("dry-run = true")]);
        ledger.record(&verdict(1, Stage::Final, None), &Record::default()).unwrap();
        assert!(ledger.forwards_waiting("A@h:104", 9, &[]).unwrap().is_empty());
        assert_eq!(ledger.forward_counts().unwrap(), [("A@h:104".into(), "dry_run".into(), 1)]);
        assert_eq!(ledger.purgeable(u64::MAX, 9).unwrap().len(), 1);
    }

    #[test]
    fn what_was_set_aside_follows_the_series_its_rule_waits_for() {
        let dir = tempfile::tempdir().unwrap();
        let bleeds = rule("dispositions = [\"suspected\"]");
        let ledger = open(dir.path(), vec![bleeds.clone()]);
        assert!(!ledger.forward_set_aside(&bleeds, "1.2.3", "9.9", 1).unwrap());
        ledger.record(&verdict(1, Stage::Final, Some(0.9)), &Record::default()).unwrap();
        assert!(ledger.forward_set_aside(&bleeds, "1.2.3", "9.9", 1).unwrap());
        assert!(ledger.forward_set_aside(&rule(""), "1.2.4", "9.8", 1).unwrap(), "any study");
        let waiting = ledger.forwards_waiting("A@h:104", 9, &[]).unwrap();
        assert_eq!(waiting.len(), 3);
        let but: Vec<i64> = waiting[..2].iter().map(|row| row.seq).collect();
        assert_eq!(ledger.forwards_waiting("A@h:104", 1, &but).unwrap(), waiting[2..]);
        assert!(ledger.promised().unwrap().iter().any(|text| text.contains("9.9")), "it is not purged");
        assert_eq!(ledger.forwards_of_others_given_up(&[], 5).unwrap(), 3);
    }
}
