//! What waits for the broker, in order.

use rusqlite::{OptionalExtension, Transaction, params};

use super::alerts::{closed_since, is_waiting, open_alerts, receipts, silenced};
use super::{Ledger, LedgerError, doing, integer};
use crate::alert::document::{Alert, AlertState, Kind};
use crate::alert::topic;
use crate::clock;

/// First wait after the broker refused a document, ms; doubled each time up to [`REFUSED_MAX_MS`].
pub(super) const REFUSED_MIN_MS: u64 = 5_000;
const REFUSED_MAX_MS: u64 = 300_000;
/// The broker keeps a closed alert that long, s, and who comes to it meanwhile is told. As long is it said again to a
/// broker that may have forgotten it: twice what a broker leaves between two writes to disk.
pub(super) const CLOSED_EXPIRY_S: u32 = 3_600;
/// Dispositions are news for an hour.
pub(super) const STUDY_EXPIRY_S: u32 = 3_600;
/// An answer is for somebody who waits for it.
pub const REPLY_EXPIRY_S: u32 = 60;

/// What is put into the outbox.
pub(super) struct Waiting<'a> {
    topic: String,
    payload: String,
    retain: bool,
    alert_id: Option<&'a str>,
    expiry_s: u32,
}

impl Waiting<'_> {
    /// A document that is no alert's.
    pub(super) fn of(topic: String, payload: String, expiry_s: u32) -> Self {
        Waiting { topic, payload, retain: false, alert_id: None, expiry_s }
    }
}

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
    /// How long the broker keeps it, s.
    pub expiry_s: u32,
    /// Monotonic time of the decision, ms since machine start.
    pub decided_boot_ms: u64,
}

impl Ledger {
    /// A document is state: an older one that still waits is worth nothing any more.
    pub(super) fn enqueue(&self, tx: &Transaction, document: &Alert) -> Result<(), LedgerError> {
        let id = document.alert_id.as_str();
        tx.execute("DELETE FROM outbox WHERE alert_id = ?1", [id]).map_err(doing("clear the outbox"))?;
        let open_s = self.open_expiry_s();
        let waiting = |payload| Waiting {
            topic: topic::alert(&self.site, id),
            payload,
            retain: true,
            alert_id: Some(id),
            expiry_s: if document.state.is_open() { open_s } else { CLOSED_EXPIRY_S },
        };
        queue(tx, &waiting(serde_json::to_string(document).map_err(LedgerError::Document)?))?;
        if document.state == AlertState::Resolved {
            // Retained documents are purged on resolve; who is linked now has seen the last revision before.
            queue(tx, &waiting(String::new()))?;
        }
        Ok(())
    }

    /// An open alert lasts until its next transmission renews it.
    fn open_expiry_s(&self) -> u32 {
        u32::try_from(self.policy.limits.expiry_ms / 1000).unwrap_or(u32::MAX)
    }

    /// The oldest document that waits.
    pub fn outbox_next(&self) -> Result<Option<OutboxRow>, LedgerError> {
        // Alerts go before dispositions, whatever waits.
        // What the broker has refused waits its turn, so that it holds up nobody behind it.
        let sql = "SELECT seq, topic, payload, retain, alert_id, decided_boot_ms, expiry_s FROM outbox
                   WHERE not_before_ms <= ?1 ORDER BY alert_id IS NULL, seq LIMIT 1";
        let row = |row: &rusqlite::Row| {
            let alert_id: Option<String> = row.get(4)?;
            // Queued by an older program, which had no such column.
            let usual_s = if alert_id.is_some() { self.open_expiry_s() } else { STUDY_EXPIRY_S };
            Ok(OutboxRow {
                seq: row.get(0)?,
                topic: row.get(1)?,
                payload: row.get(2)?,
                retain: row.get(3)?,
                alert_id,
                decided_boot_ms: row.get::<_, i64>(5)?.unsigned_abs(),
                expiry_s: row.get::<_, Option<u32>>(6)?.unwrap_or(usual_s),
            })
        };
        self.lock()
            .query_row(sql, [integer(self.elapsed_ms())], row)
            .optional()
            .map_err(doing("read the outbox"))
    }

    /// The broker has it.
    pub fn outbox_done(&self, seq: i64) -> Result<(), LedgerError> {
        let done = self.lock().execute("DELETE FROM outbox WHERE seq = ?1", [seq]);
        self.noted(done.map(|_| ()).map_err(doing("clear the outbox")))
    }

    /// Documents that wait for the broker.
    pub fn outbox_depth(&self) -> Result<u64, LedgerError> {
        self.number("SELECT count(*) FROM outbox")
    }

    /// A new broker may have forgotten what it was told, and one that lost its last minute holds as open what was closed
    /// in it: open alerts and those closed of late go out again, same identity, same revision.
    pub fn requeue_alerts(&self) -> Result<(), LedgerError> {
        self.change(|tx| {
            let since = self.elapsed_ms().saturating_sub(u64::from(CLOSED_EXPIRY_S) * 1000);
            for stored in open_alerts(tx)?.into_iter().chain(closed_since(tx, since)?) {
                let document = &stored.document;
                if !is_waiting(tx, &document.alert_id)? {
                    self.enqueue(tx, document)?;
                }
                if document.kind == Kind::Test && !document.state.is_open() {
                    // It must not look like a proof of life of now: what is said of it is that it has gone.
                    tx.execute(
                        "DELETE FROM outbox WHERE alert_id = ?1 AND payload <> ''",
                        [&document.alert_id],
                    )
                    .map_err(doing("clear the outbox"))?;
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
        document.escalation.muted_until =
            silenced(&connection, self.elapsed_ms(), now.wall_ms)?.map(|s| s.until);
        document.receipts = receipts(&connection, alert_id)?;
        serde_json::to_string(&document).map_err(LedgerError::Document)
    }
}

pub(super) fn queue(tx: &Transaction, row: &Waiting) -> Result<(), LedgerError> {
    tx.execute(
        "INSERT INTO outbox (topic, payload, retain, alert_id, decided_boot_ms, expiry_s)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![row.topic, row.payload, row.retain, row.alert_id, integer(clock::boot_ms()), row.expiry_s],
    )
    .map(|_| ())
    .map_err(doing("queue a document"))
}
