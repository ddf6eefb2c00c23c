//! What an update asks of the database beside a running daemon, read-only and never waiting on it; and what it leaves there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::alerts::Speaker;
use super::{Ledger, LedgerError, audit, doing, integer, open_read_only};
use crate::alert::document::{Update, UpdatePhase};
use crate::alert::inbound::{ActionCode, CommandMessage};
use crate::update::command::Order;

/// Code of the technical alert of an update that failed.
const FAILED: &str = "update_failed";
/// An alert that is older holds no update back, ms: a box that can bring it to nobody must stay mendable.
const WAITING_MS_MAX: u64 = 12 * 3_600_000;

/// Who would be harmed by a restart now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Findings that no person has taken.
    pub alerts: u64,
    /// Series that are being read this moment (or whose reading ended the program).
    pub readings: BTreeSet<String>,
    /// Instances that each final disposition covers, by series.
    pub read: BTreeMap<String, u64>,
}

impl Ledger {
    /// Who waits, by the database of a state directory; nobody if there is none yet.
    pub fn waiting(state: &Path, now_wall_ms: u64) -> Result<Waiting, LedgerError> {
        if !state.join("ichd.db").exists() {
            return Ok(Waiting::default());
        }
        let connection = open_read_only(state)?;
        let alerts: i64 = connection
            .query_row(
                "SELECT count(*) FROM alerts WHERE state IN ('raised', 'delivered', 'escalated')
                 AND study_uid NOT LIKE 'technical:%' AND study_uid NOT IN (SELECT study_uid FROM proofs)
                 AND raised_ms >= ?1",
                [integer(now_wall_ms.saturating_sub(WAITING_MS_MAX))],
                |r| r.get(0),
            )
            .map_err(doing("read open alerts"))?;
        let mut statement =
            connection.prepare("SELECT series_uid FROM attempts").map_err(doing("read attempts"))?;
        let readings = statement
            .query_map([], |r| r.get(0))
            .and_then(Iterator::collect)
            .map_err(doing("read attempts"))?;
        let mut statement = connection
            .prepare("SELECT series_uid, instances FROM series WHERE stage = 'final'")
            .map_err(doing("read the ledger"))?;
        let read = statement
            .query_map([], |r| Ok((r.get(0)?, r.get::<_, i64>(1)?.unsigned_abs())))
            .and_then(Iterator::collect)
            .map_err(doing("read the ledger"))?;
        Ok(Waiting { alerts: alerts.unsigned_abs(), readings, read })
    }

    /// An engineer ordered an update; whether it was taken.
    pub fn note_order(
        &self,
        speaker: Speaker,
        command: &CommandMessage,
        code: ActionCode,
        order: Option<&Order>,
    ) -> Result<(), LedgerError> {
        let body = json!({
            "action_id": command.action_id, "station": speaker.station, "role": speaker.role,
            "user": command.user.trim(), "code": code, "order": order,
        });
        self.change(|tx| audit::append(tx, "update_ordered", &body).map(|_| ()))
    }

    /// What `ichd update` says of itself: an audit row, and for a failure a technical alert, in one transaction.
    pub fn note_update(&self, update: &Update) -> Result<(), LedgerError> {
        if update.phase == UpdatePhase::Installing {
            return Ok(());
        }
        self.change(|tx| {
            let body = json!({"phase": update.phase, "version": update.version, "reasons": update.reasons, "order_id": update.order_id});
            // The timer comes four times an hour and may find the same each time.
            if audit::last(tx, "update")?.as_ref() != Some(&body) {
                audit::append(tx, "update", &body)?;
            }
            let why = update.reasons.join("; ");
            match update.phase {
                UpdatePhase::Failed => self.set_technical(tx, FAILED, &format!("update failed: {why}")),
                // Who ordered it waits for it; what the timer does not find stands in the status.
                UpdatePhase::NotInstalled if update.order_id.is_some() => {
                    self.set_technical(tx, FAILED, &format!("the ordered update was not installed: {why}"))
                }
                UpdatePhase::Good => self.clear_technical(tx, FAILED, "a later update has proved itself"),
                _ => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::{Profile, Site};
    use crate::decide::Stage;
    use crate::ledger::Record;

    fn ledger(dir: &Path) -> Ledger {
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        Ledger::open(dir, &site).unwrap()
    }

    #[test]
    fn an_open_alert_and_a_reading_are_seen_from_outside() {
        let dir = tempfile::tempdir().unwrap();
        let now = crate::clock::wall_ms();
        assert_eq!(Ledger::waiting(dir.path(), now).unwrap(), Waiting::default());
        let ledger = ledger(dir.path());
        let finding = verdict(1, Stage::Final, Some(0.9));
        ledger.record(&finding, &Record { decided_wall_ms: now, ..Record::default() }).unwrap();
        ledger.begin_attempt(&(finding.study.clone(), finding.series.clone()), "00").unwrap();
        ledger.raise_technical("proof_failed", "trouble of the box waits for nobody").unwrap();
        let waiting = Ledger::waiting(dir.path(), now).unwrap();
        assert_eq!((waiting.alerts, waiting.readings.len(), waiting.read.len()), (1, 1, 1));
        let tomorrow = Ledger::waiting(dir.path(), now + 2 * WAITING_MS_MAX).unwrap();
        assert_eq!(tomorrow.alerts, 0, "a box that reaches nobody stays mendable");
    }

    #[test]
    fn a_failed_update_is_a_technical_alert_until_a_later_one_proves_itself() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = ledger(dir.path());
        let note = |phase, reason: &str| {
            let update = Update { reasons: vec![reason.into()], ..Update::new(phase) };
            ledger.note_update(&update).unwrap();
        };
        let open = || {
            let sql = "SELECT document FROM alerts WHERE study_uid = 'technical:update_failed' AND state = 'raised'";
            let connection = open_read_only(dir.path()).unwrap();
            connection.query_row(sql, [], |r| r.get::<_, String>(0)).ok()
        };
        note(UpdatePhase::Installed, "");
        assert_eq!(open(), None);
        note(UpdatePhase::Failed, "no verdict in time");
        assert!(open().unwrap().contains("no verdict in time"));
        note(UpdatePhase::Good, "");
        assert_eq!(open(), None);
        let events: Vec<String> = audit::list(dir.path()).unwrap().into_iter().map(|r| r.event).collect();
        assert_eq!(events.iter().filter(|e| *e == "update").count(), 3, "{events:?}");
    }
}
