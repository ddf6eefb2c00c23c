//! How things stand, and what people said of the alerts.

use rusqlite::OptionalExtension;
use serde::{Deserialize, Serialize};

use super::alerts::{OPEN, Silence};
use super::{Ledger, LedgerError, doing, integer};
use crate::alert::document::Alert;
use crate::alert::inbound::Opinion;
use crate::clock;

/// The site's own experience with its alerts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Experience {
    /// Alerts of the time asked about that people judged.
    pub judged: u64,
    /// Said to be right.
    pub right: u64,
    /// Said to be wrong.
    pub wrong: u64,
    /// `right / (right + wrong)`; none without either.
    pub positive_predictive_value: Option<f64>,
}

/// How things stand, in one look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// Alerts that wait for a person.
    pub open_alerts: u64,
    /// Age of the oldest finding that nobody has acknowledged, ms.
    pub oldest_unacknowledged_ms: Option<u64>,
    /// Since the last proof of life that succeeded, ms.
    pub last_proof_age_ms: Option<u64>,
    /// Since the last verdict on a patient, ms.
    pub last_study_age_ms: Option<u64>,
    /// Documents that wait for the broker.
    pub outbox_depth: u64,
    /// A silence or maintenance window that is on.
    pub silence: Option<Silence>,
}

impl Ledger {
    /// Everything that status and heartbeat say of the ledger.
    pub fn vitals(&self) -> Result<Vitals, LedgerError> {
        self.noted(self.read_vitals())
    }

    fn read_vitals(&self) -> Result<Vitals, LedgerError> {
        let open_alerts = self.open_alert_count()?;
        let oldest = if open_alerts == 0 { None } else { self.oldest_unacknowledged_ms()? };
        Ok(Vitals {
            open_alerts,
            oldest_unacknowledged_ms: oldest,
            last_proof_age_ms: self.last_proof_age_ms()?,
            last_study_age_ms: self.last_decided_age_ms()?,
            outbox_depth: self.outbox_depth()?,
            silence: self.silenced()?,
        })
    }

    /// Alerts that wait for a person.
    pub fn open_alert_count(&self) -> Result<u64, LedgerError> {
        self.number(&format!(
            "SELECT count(*) FROM alerts WHERE {OPEN}
             AND study_uid NOT LIKE 'technical:%' AND study_uid NOT IN (SELECT study_uid FROM proofs)"
        ))
    }

    /// Age of the oldest finding that nobody has acknowledged, ms.
    pub fn oldest_unacknowledged_ms(&self) -> Result<Option<u64>, LedgerError> {
        let sql = "SELECT min(raised_elapsed_ms) FROM alerts
                   WHERE state IN ('raised', 'delivered', 'escalated') AND study_uid NOT LIKE 'technical:%'
                   AND study_uid NOT IN (SELECT study_uid FROM proofs)";
        let oldest: Option<i64> = self.lock().query_row(sql, [], |r| r.get(0)).map_err(doing("count"))?;
        Ok(oldest.map(|at| self.elapsed_ms().saturating_sub(at.unsigned_abs())))
    }

    /// What people said of the alerts of the last `days`.
    pub fn experience(&self, days: u64) -> Result<Experience, LedgerError> {
        let since = integer(self.clock.read().wall_ms.saturating_sub(days * 86_400_000));
        let connection = self.lock();
        let mut statement = connection
            .prepare("SELECT document FROM alerts WHERE raised_ms >= ?1")
            .map_err(doing("read alerts"))?;
        let documents = statement
            .query_map([since], |r| r.get::<_, String>(0))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(doing("read alerts"))?;
        let mut all = Experience::default();
        for document in documents.iter().filter_map(|d| serde_json::from_str::<Alert>(d).ok()) {
            let said = |o| document.feedback.iter().filter(|f| f.value == o).count();
            let (right, wrong) = (said(Opinion::Right), said(Opinion::Wrong));
            all.judged += u64::from(!document.feedback.is_empty());
            all.right += u64::from(right > wrong);
            all.wrong += u64::from(wrong > right);
        }
        let n = all.right + all.wrong;
        all.positive_predictive_value = (n > 0).then(|| all.right as f64 / n as f64);
        Ok(all)
    }

    /// Age of the last verdict by the wall clock, ms.
    pub fn last_decided_age_ms(&self) -> Result<Option<u64>, LedgerError> {
        // From the newest backwards, in an index: verdicts are large, and there are many.
        let sql = "SELECT decided_ms FROM series WHERE study_uid NOT IN (SELECT study_uid FROM proofs)
                   ORDER BY decided_ms DESC LIMIT 1";
        let last =
            self.lock().query_row(sql, [], |r| r.get::<_, i64>(0)).optional().map_err(doing("count"))?;
        let last = last.map(i64::unsigned_abs).filter(|ms| *ms > 0);
        Ok(last.map(|ms| clock::wall_ms().saturating_sub(ms)))
    }
}
