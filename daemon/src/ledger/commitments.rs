//! Storage commitments that were asked for, until the peer has its answer.

use rusqlite::{OptionalExtension, params};
use serde_json::json;

use super::{Ledger, LedgerError, audit, doing, integer};
use crate::clock;
use crate::commit::Outcome;

/// Migration that makes the table; run by `schema`.
pub(super) const MIGRATION: &str = "
CREATE TABLE commitments (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    peer TEXT NOT NULL,
    transaction_uid TEXT NOT NULL,
    outcome TEXT NOT NULL,
    requested_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    UNIQUE (peer, transaction_uid)
) STRICT;
";

/// One answer on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitmentRow {
    /// Its number.
    pub seq: i64,
    /// AE title of who asked.
    pub peer: String,
    /// What it gets to know.
    pub outcome: Outcome,
    /// When it was asked, wall time in ms since the epoch.
    pub requested_ms: u64,
    /// Attempts on new associations so far.
    pub attempts: u32,
}

impl Ledger {
    /// Writes an answer down; asked again under the same Transaction UID, the newer answer replaces the older.
    pub fn commitment_open(&self, peer: &str, outcome: &Outcome) -> Result<i64, LedgerError> {
        let text = serde_json::to_string(outcome).map_err(LedgerError::Document)?;
        self.change(|tx| {
            tx.execute(
                "INSERT OR REPLACE INTO commitments (peer, transaction_uid, outcome, requested_ms, attempts)
                 VALUES (?1, ?2, ?3, ?4, 0)",
                params![peer, outcome.transaction, text, integer(clock::wall_ms())],
            )
            .map_err(doing("record a commitment"))?;
            let seq = tx.last_insert_rowid();
            let body =
                json!({"peer": peer, "committed": outcome.committed.len(), "failed": outcome.failed.len()});
            audit::append(tx, "storage_commitment", &body)?;
            Ok(seq)
        })
    }

    /// Answers that nobody has taken yet, oldest first.
    pub fn commitments_open(&self) -> Result<Vec<CommitmentRow>, LedgerError> {
        let connection = self.lock();
        let sql = "SELECT seq, peer, outcome, requested_ms, attempts FROM commitments ORDER BY seq";
        let mut statement = connection.prepare_cached(sql).map_err(doing("read commitments"))?;
        let rows = statement
            .query_map([], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get::<_, String>(2)?, r.get::<_, i64>(3)?, r.get(4)?))
            })
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(doing("read commitments"))?;
        rows.into_iter()
            .map(|(seq, peer, outcome, requested_ms, attempts)| {
                let outcome = serde_json::from_str(&outcome).map_err(LedgerError::Document)?;
                Ok(CommitmentRow { seq, peer, outcome, requested_ms: requested_ms.unsigned_abs(), attempts })
            })
            .collect()
    }

    /// Counts an attempt that failed.
    pub fn commitment_attempted(&self, seq: i64) -> Result<(), LedgerError> {
        let sql = "UPDATE commitments SET attempts = attempts + 1 WHERE seq = ?1";
        self.lock().execute(sql, [seq]).map(|_| ()).map_err(doing("count an attempt"))
    }

    /// The peer has its answer, or nobody will ever take it; what happened stays in the audit log.
    pub fn commitment_settle(&self, seq: i64, delivered: bool) -> Result<(), LedgerError> {
        self.change(|tx| {
            let sql = "DELETE FROM commitments WHERE seq = ?1 RETURNING peer, attempts";
            let gone: Option<(String, u32)> = tx
                .query_row(sql, [seq], |r| Ok((r.get(0)?, r.get(1)?)))
                .optional()
                .map_err(doing("settle a commitment"))?;
            if let Some((peer, attempts)) = gone {
                let event =
                    if delivered { "storage_commitment_reported" } else { "storage_commitment_given_up" };
                audit::append(tx, event, &json!({"peer": peer, "attempts": attempts}))?;
            }
            Ok(())
        })
    }
}
