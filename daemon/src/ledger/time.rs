//! Elapsed time of this database: goes on across restarts and reboots, never back, and knows no wall-clock jumps.
//!
//! Escalation and expiry are measured by it. Within one run of the machine it follows the monotonic clock. Across a
//! reboot only the wall clock knows how long the box was off; that counts as elapsed, for it is better to tell the
//! next person too early than too late, but never more than a week, and never less than nothing.

use std::sync::atomic::Ordering;

use rusqlite::{OptionalExtension, Transaction};
use serde::{Deserialize, Serialize};

use super::{Ledger, LedgerError, doing};
use crate::clock;

/// A mark is left this often, so that a power cut loses no more of the time.
const MARK_MS: u64 = 10_000;
const OFF_MAX_MS: u64 = 7 * 86_400_000;

/// Elapsed time when the ledger was opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elapsed {
    base_ms: u64,
    opened_boot_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Mark {
    elapsed_ms: u64,
    wall_ms: u64,
    boot_ms: u64,
    boot_id: String,
}

impl Elapsed {
    /// Goes on from the last mark.
    pub(super) fn open(tx: &Transaction, now: clock::Reading, boot_id: &str) -> Result<Self, LedgerError> {
        let mark: Option<Vec<u8>> = tx
            .query_row("SELECT value FROM settings WHERE key = 'elapsed'", [], |r| r.get(0))
            .optional()
            .map_err(doing("read the elapsed time"))?;
        let base_ms = mark.and_then(|m| serde_json::from_slice::<Mark>(&m).ok()).map_or(0, |m| {
            let off = if m.boot_id == boot_id {
                now.boot_ms.saturating_sub(m.boot_ms)
            } else {
                now.wall_ms.saturating_sub(m.wall_ms).min(OFF_MAX_MS)
            };
            m.elapsed_ms + off
        });
        Ok(Elapsed { base_ms, opened_boot_ms: now.boot_ms })
    }
}

impl Ledger {
    /// Elapsed time of this database, ms.
    pub fn elapsed_ms(&self) -> u64 {
        self.elapsed.base_ms + self.clock.read().boot_ms.saturating_sub(self.elapsed.opened_boot_ms)
    }

    /// Leaves a mark if the last one is old: a write per second would wear the disk for nothing. While the database
    /// fails it is tried each time: that it can be written is how its recovery shows.
    pub(super) fn keep_time_now_and_then(&self, tx: &Transaction) -> Result<(), LedgerError> {
        if self.is_failing() || self.elapsed_ms() >= self.marked_ms.load(Ordering::Relaxed) + MARK_MS {
            self.keep_time(tx)
        } else {
            Ok(())
        }
    }

    /// Leaves a mark from which the next start goes on.
    pub(super) fn keep_time(&self, tx: &Transaction) -> Result<(), LedgerError> {
        let now = self.clock.read();
        let mark = Mark {
            elapsed_ms: self.elapsed_ms(),
            wall_ms: now.wall_ms,
            boot_ms: now.boot_ms,
            boot_id: self.boot_id.clone(),
        };
        self.marked_ms.store(mark.elapsed_ms, Ordering::Relaxed);
        let mark = serde_json::to_vec(&mark).map_err(LedgerError::Document)?;
        tx.execute("INSERT OR REPLACE INTO settings VALUES ('elapsed', ?1)", [mark])
            .map(|_| ())
            .map_err(doing("write the elapsed time"))
    }
}
