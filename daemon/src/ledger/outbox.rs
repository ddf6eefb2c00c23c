//! What waits for the broker, in order.

use rusqlite::{OptionalExtension, Transaction, params};

use super::alerts::{is_waiting, open_alerts, receipts, silenced};
use super::{Ledger, LedgerError, doing, integer};
use crate::alert::document::{Alert, AlertState};
use crate::alert::topic;
use crate::clock;

/// First wait after the broker refused a document, ms; doubled each time up to [`REFUSED_MAX_MS`].
pub(super) const REFUSED_MIN_MS: u64 = 5_000;
const REFUSED_MAX_MS: u64 = 300_000;

/// One document that waits for the broker.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboxRow {
    /// Order of delivery.
    pub seq: i64,
    /// Topic.
    pub topic: String,
    /// JSON; alert documents still need [`Ledger::stamp`].
    pub payload: String,
    /// Retained.
    pub retain: bool,
    /// Which alert, if one.
    pub alert_id: Option<String>,
    /// Monotonic time of the decision, ms since machine start.
    pub decided_boot_ms: u64,
}

impl Ledger {
    /// A document is state: an older one that still waits is worth nothing any more.
    pub(super) fn enqueue(&self, tx: &Transaction, document: &Alert) -> Result<(), LedgerError> {
        let id = document.alert_id.as_str();
        tx.execute("DELETE FROM outbox WHERE alert_id = ?1", [id]).map_err(doing("clear the outbox"))?;
        let payload = serde_json::to_string(document).map_err(LedgerError::Document)?;
        let topic = topic::alert(&self.site, id);
        queue(tx, &topic, &payload, true, Some(id))?;
        if document.state == AlertState::Resolved {
            // Retained documents are purged on resolve; who is linked now has seen the last revision before.
            queue(tx, &topic, "", true, Some(id))?;
        }
        Ok(())
    }

    /// The oldest document that waits.
    pub fn outbox_next(&self) -> Result<Option<OutboxRow>, LedgerError> {
        // Alerts go before dispositions, whatever waits.
        // What the broker has refused waits its turn, so that it holds up nobody behind it.
        let sql = "SELECT seq, topic, payload, retain, alert_id, decided_boot_ms FROM outbox
                   WHERE not_before_ms <= ?1 ORDER BY alert_id IS NULL, seq LIMIT 1";
        let row = |row: &rusqlite::Row| {
            Ok(OutboxRow {
                seq: row.get(0)?,
                topic: row.get(1)?,
                payload: row.get(2)?,
                retain: row.get(3)?,
                alert_id: row.get(4)?,
                decided_boot_ms: row.get::<_, i64>(5)?.unsigned_abs(),
            })
        };
        self.lock()
            .query_row(sql, [integer(self.elapsed_ms())], row)
            .optional()
            .map_err(doing("read the outbox"))
    }

    /// The broker has it.
    pub fn outbox_done(&self, seq: i64) -> Result<(), LedgerError> {
        self.lock()
            .execute("DELETE FROM outbox WHERE seq = ?1", [seq])
            .map(|_| ())
            .map_err(doing("clear the outbox"))
    }

    /// Documents that wait for the broker.
    pub fn outbox_depth(&self) -> Result<u64, LedgerError> {
        self.number("SELECT count(*) FROM outbox")
    }

    /// A new broker may have forgotten what it was told: open alerts go out again, same identity, same revision.
    pub fn requeue_open_alerts(&self) -> Result<(), LedgerError> {
        self.change(|tx| {
            for stored in open_alerts(tx)? {
                if !is_waiting(tx, &stored.document.alert_id)? {
                    self.enqueue(tx, &stored.document)?;
                }
            }
            tx.execute("UPDATE outbox SET not_before_ms = 0", []).map_err(doing("read the outbox"))?;
            Ok(())
        })
    }

    /// The broker refused it: those behind it come first for a while.
    pub fn outbox_refused(&self, seq: i64) -> Result<(), LedgerError> {
        let sql = "UPDATE outbox SET refusals = refusals + 1,
                   not_before_ms = ?2 + min(?3 << min(refusals, 10), ?4) WHERE seq = ?1";
        self.lock()
            .execute(
                sql,
                params![seq, integer(self.elapsed_ms()), integer(REFUSED_MIN_MS), integer(REFUSED_MAX_MS)],
            )
            .map(|_| ())
            .map_err(doing("write a refusal"))
    }

    /// Writes what holds at this transmission into a waiting alert document: times, receipts, mute.
    pub fn stamp(&self, row: &OutboxRow) -> Result<String, LedgerError> {
        let Some(alert_id) = row.alert_id.as_ref().filter(|_| !row.payload.is_empty()) else {
            return Ok(row.payload.clone());
        };
        let mut document: Alert = serde_json::from_str(&row.payload).map_err(LedgerError::Document)?;
        let connection = self.lock();
        let sql = "SELECT raised_elapsed_ms, next_step_at_ms FROM alerts WHERE alert_id = ?1";
        let (raised, next): (i64, Option<i64>) = connection
            .query_row(sql, [alert_id], |r| Ok((r.get(0)?, r.get(1)?)))
            .map_err(doing("read an alert"))?;
        let now = self.clock.read();
        document.age_ms = self.elapsed_ms().saturating_sub(raised.unsigned_abs());
        document.published_at = clock::rfc3339(now.wall_ms);
        document.clock.synced = now.synced;
        document.timings_ms.verdict_to_publish = now.boot_ms.checked_sub(row.decided_boot_ms);
        document.escalation.next_in_ms = next.map(|at| at.unsigned_abs().saturating_sub(document.age_ms));
        document.escalation.muted_until = silenced(&connection, self.elapsed_ms())?.map(|s| s.until);
        document.receipts = receipts(&connection, alert_id)?;
        serde_json::to_string(&document).map_err(LedgerError::Document)
    }
}

pub(super) fn queue(
    tx: &Transaction,
    topic: &str,
    payload: &str,
    retain: bool,
    alert_id: Option<&str>,
) -> Result<(), LedgerError> {
    tx.execute(
        "INSERT INTO outbox (topic, payload, retain, alert_id, decided_boot_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![topic, payload, retain, alert_id, i64::try_from(clock::boot_ms()).unwrap_or(i64::MAX)],
    )
    .map(|_| ())
    .map_err(doing("queue a document"))
}
