//! Silences and maintenance windows: sound is muted, the record is not.

use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::{Ledger, LedgerError, audit, doing, integer};
use super::Revision;
use super::row::open_alerts;
use crate::clock;

/// A silence or maintenance window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Silence {
    /// `silence` or `maintenance`.
    pub kind: String,
    /// Who asked for it.
    pub author: String,
    /// Why.
    pub reason: String,
    /// Wall time, RFC 3339.
    pub until: String,
}

impl Ledger {
    /// Begins a silence or maintenance window: sound is muted, the record is not.
    pub fn silence(
        &self,
        kind: &str,
        author: &str,
        reason: &str,
        minutes: u64,
    ) -> Result<Silence, LedgerError> {
        self.change(|tx| {
            let now = self.clock.read();
            let until_ms = now.wall_ms + minutes * 60_000;
            tx.execute(
                "INSERT INTO silences (kind, author, reason, from_ms, until_ms, until_elapsed_ms) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![kind, author, reason, integer(now.wall_ms), integer(until_ms), integer(self.elapsed_ms() + minutes * 60_000)],
            )
            .map_err(doing("write a silence"))?;
            audit::append(tx, "silence", &json!({"kind": kind, "author": author, "reason": reason, "minutes": minutes}))?;
            self.resend_open(tx)?;
            Ok(Silence { kind: kind.into(), author: author.into(), reason: reason.into(), until: clock::rfc3339(until_ms) })
        })
    }

    /// Ends every silence and maintenance window.
    pub fn end_silences(&self, author: &str) -> Result<(), LedgerError> {
        self.change(|tx| {
            let now = integer(self.elapsed_ms());
            let ended = tx
                .execute("UPDATE silences SET until_elapsed_ms = ?1 WHERE until_elapsed_ms > ?1", [now])
                .map_err(doing("end silences"))?;
            if ended > 0 {
                audit::append(tx, "silence_ended", &json!({"author": author}))?;
                self.resend_open(tx)?;
            }
            Ok(())
        })
    }

    /// The silence or maintenance window that is on and lasts longest.
    pub fn silenced(&self) -> Result<Option<Silence>, LedgerError> {
        silenced(&self.lock(), self.elapsed_ms(), self.clock.read().wall_ms)
    }

    /// Open alerts as a new revision, for what is written at transmission (mute) to reach stations.
    fn resend_open(&self, tx: &Transaction) -> Result<(), LedgerError> {
        for mut stored in open_alerts(tx)? {
            self.revise(tx, &mut stored, Revision::silent("alert_revised"))?;
        }
        Ok(())
    }
}

/// The silence that is on at a moment of the daemon's own time. It ends by that time: its end by the wall clock is
/// reckoned when it is said, for that clock may have been set since.
pub(in crate::ledger) fn silenced(
    connection: &Connection,
    elapsed_ms: u64,
    wall_ms: u64,
) -> Result<Option<Silence>, LedgerError> {
    let sql = "SELECT kind, author, reason, until_elapsed_ms FROM silences WHERE until_elapsed_ms > ?1
               ORDER BY until_elapsed_ms DESC LIMIT 1";
    let silence = |r: &Row| {
        Ok(Silence {
            kind: r.get(0)?,
            author: r.get(1)?,
            reason: r.get(2)?,
            until: clock::rfc3339(wall_ms + r.get::<_, i64>(3)?.unsigned_abs().saturating_sub(elapsed_ms)),
        })
    };
    connection.query_row(sql, [integer(elapsed_ms)], silence).optional().map_err(doing("read silences"))
}
