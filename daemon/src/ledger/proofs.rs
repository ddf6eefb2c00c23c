//! Proofs of life: a synthetic study on its way through the real port, reader, database and broker to a station.
//!
//! A study counts as a proof because its Study Instance UID was written down here before it was sent; no attribute of
//! an image can make a patient's study one, nor a proof a patient's.

use rusqlite::{OptionalExtension, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::alerts::{Revision, stored_by_id};
use super::{Ledger, LedgerError, audit, doing, integer};
use crate::alert::document::AlertState;
use crate::clock;

/// How far a proof has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Reached {
    /// Written down.
    Begun,
    /// Every instance was answered with success.
    Stored,
    /// Read, and the alert is in the outbox.
    Verdict,
    /// The broker has taken the alert.
    Broker,
    /// A station has it.
    Station,
}

impl Reached {
    fn name(self) -> &'static str {
        match self {
            Reached::Begun => "begun",
            Reached::Stored => "stored",
            Reached::Verdict => "verdict",
            Reached::Broker => "broker",
            Reached::Station => "station",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "stored" => Reached::Stored,
            "verdict" => Reached::Verdict,
            "broker" => Reached::Broker,
            "station" => Reached::Station,
            _ => Reached::Begun,
        }
    }
}

/// One proof.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Proof {
    /// Number.
    pub id: i64,
    /// When it began, RFC 3339.
    pub begun_at: String,
    /// How far it came.
    pub reached: Reached,
    /// From the beginning to its end, ms; none while it runs.
    pub took_ms: Option<u64>,
    /// Why it failed.
    pub failure: Option<String>,
}

impl Ledger {
    /// Writes a proof down before it is sent. One that was cut off by a restart has failed, and its alert is closed.
    pub fn begin_proof(&self, study_uid: &str) -> Result<i64, LedgerError> {
        self.change(|tx| {
            let now = self.clock.read();
            let interrupted = tx
                .prepare("SELECT id FROM proofs WHERE ended_ms IS NULL")
                .and_then(|mut s| s.query_map([], |r| r.get(0)).and_then(Iterator::collect::<Result<Vec<i64>, _>>))
                .map_err(doing("read proofs of life"))?;
            for id in interrupted {
                self.end(tx, id, Some("interrupted"))?;
            }
            tx.execute(
                "INSERT INTO proofs (study_uid, begun_ms, begun_elapsed_ms, reached) VALUES (?1, ?2, ?3, 'begun')",
                params![study_uid, integer(now.wall_ms), integer(self.elapsed_ms())],
            )
            .map_err(doing("write a proof of life"))?;
            Ok(tx.last_insert_rowid())
        })
    }

    /// It has come further; never back.
    pub fn proof_came_to(&self, id: i64, reached: Reached) -> Result<(), LedgerError> {
        self.change(|tx| {
            let sql = "SELECT reached FROM proofs WHERE id = ?1 AND ended_ms IS NULL";
            let was: Option<String> =
                tx.query_row(sql, [id], |r| r.get(0)).optional().map_err(doing("read proofs of life"))?;
            if was.is_some_and(|was| Reached::parse(&was) < reached) {
                tx.execute("UPDATE proofs SET reached = ?2 WHERE id = ?1", params![id, reached.name()])
                    .map_err(doing("write a proof of life"))?;
            }
            Ok(())
        })
    }

    /// The broker has taken an alert: if it is a proof's, that far it came.
    pub fn proof_at_broker(&self, alert_id: &str) -> Result<(), LedgerError> {
        let sql = "SELECT id FROM proofs WHERE alert_id = ?1 AND ended_ms IS NULL";
        let id: Option<i64> = self
            .lock()
            .query_row(sql, [alert_id], |r| r.get(0))
            .optional()
            .map_err(doing("read proofs of life"))?;
        id.map_or(Ok(()), |id| self.proof_came_to(id, Reached::Broker))
    }

    /// Its end; its alert, if it has raised one, is resolved and purged whatever came of it. A verdict that comes later
    /// raises none.
    pub fn end_proof(&self, id: i64, failure: Option<&str>) -> Result<Option<Proof>, LedgerError> {
        self.change(|tx| self.end(tx, id, failure))
    }

    fn end(&self, tx: &Transaction, id: i64, failure: Option<&str>) -> Result<Option<Proof>, LedgerError> {
        let changed = tx
            .execute(
                "UPDATE proofs SET ended_ms = ?2, ended_elapsed_ms = ?3, failure = ?4 WHERE id = ?1 AND ended_ms IS NULL",
                params![id, integer(self.clock.read().wall_ms), integer(self.elapsed_ms()), failure],
            )
            .map_err(doing("write a proof of life"))?;
        if changed == 0 {
            return proof(tx, BY_ID, [id]);
        }
        let alert_id: Option<String> = tx
            .query_row("SELECT alert_id FROM proofs WHERE id = ?1", [id], |r| r.get(0))
            .map_err(doing("read proofs of life"))?;
        if let Some(mut stored) = alert_id.map(|a| stored_by_id(tx, &a)).transpose()?.flatten() {
            stored.document.state = AlertState::Resolved;
            self.revise(tx, &mut stored, Revision::silent("alert_resolved"))?;
        }
        let proof = proof(tx, BY_ID, [id])?;
        let body = json!({"id": id, "reached": proof.as_ref().map(|p| p.reached), "failure": failure});
        audit::append(tx, "proof_of_life", &body)?;
        Ok(proof)
    }

    /// How a proof stands.
    pub fn proof(&self, id: i64) -> Result<Option<Proof>, LedgerError> {
        proof(&self.lock(), BY_ID, [id])
    }

    /// The last one that came to its end.
    pub fn last_proof(&self) -> Result<Option<Proof>, LedgerError> {
        proof(&self.lock(), "ended_ms IS NOT NULL ORDER BY id DESC LIMIT 1", [])
    }

    /// Since the last one that succeeded, ms.
    pub fn last_proof_age_ms(&self) -> Result<Option<u64>, LedgerError> {
        let sql = "SELECT max(ended_elapsed_ms) FROM proofs WHERE ended_ms IS NOT NULL AND failure IS NULL";
        let last: Option<i64> =
            self.lock().query_row(sql, [], |r| r.get(0)).map_err(doing("read proofs of life"))?;
        Ok(last.map(|at| self.elapsed_ms().saturating_sub(at.unsigned_abs())))
    }

    /// Whether a study is a proof of life.
    pub fn is_proof(&self, study_uid: &str) -> bool {
        let sql = "SELECT count(*) FROM proofs WHERE study_uid = ?1";
        self.lock().query_row(sql, [study_uid], |r| r.get::<_, i64>(0)).is_ok_and(|n| n > 0)
    }
}

/// A station has answered; part of the receipt's transaction.
pub(super) fn reached_station(tx: &Transaction, alert_id: &str) -> Result<(), LedgerError> {
    let sql = "UPDATE proofs SET reached = 'station' WHERE alert_id = ?1 AND ended_ms IS NULL";
    tx.execute(sql, [alert_id]).map(|_| ()).map_err(doing("write a proof of life"))
}

/// Whether a study is a proof of life that is over.
pub(super) fn has_ended(tx: &Transaction, study_uid: &str) -> Result<bool, LedgerError> {
    let sql = "SELECT count(*) FROM proofs WHERE study_uid = ?1 AND ended_ms IS NOT NULL";
    tx.query_row(sql, [study_uid], |r| r.get::<_, i64>(0))
        .map(|n| n > 0)
        .map_err(doing("read proofs of life"))
}

const BY_ID: &str = "id = ?1";

fn proof(
    connection: &rusqlite::Connection,
    condition: &str,
    params: impl rusqlite::Params,
) -> Result<Option<Proof>, LedgerError> {
    let sql = format!(
        "SELECT id, begun_ms, reached, ended_elapsed_ms - begun_elapsed_ms, failure FROM proofs WHERE {condition}"
    );
    let read = |r: &rusqlite::Row| {
        Ok(Proof {
            id: r.get(0)?,
            begun_at: clock::rfc3339(r.get::<_, i64>(1)?.unsigned_abs()),
            reached: Reached::parse(&r.get::<_, String>(2)?),
            took_ms: r.get::<_, Option<i64>>(3)?.map(i64::unsigned_abs),
            failure: r.get(4)?,
        })
    };
    connection.query_row(&sql, params, read).optional().map_err(doing("read proofs of life"))
}
