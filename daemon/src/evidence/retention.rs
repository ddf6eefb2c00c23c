//! The spool is a buffer, not an archive: what is old goes, and what is judged goes before a scanner is refused for want
//! of room. Never anything open: a series undecided or not whole, an alert that wants somebody, a report or a commitment
//! on its way.
//!
//! ```text
//! purgeable --marked in the ledger--> forgotten by the assembler --> out of studies/ in one step --> overwritten, removed
//! ```
//!
//! The mark comes first and takes the conditions with it in one transaction; a crash after it is mended at the next
//! start. A late slice at any point makes the series differ from what was judged, and then it stays.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::{mpsc, oneshot, watch};

use crate::assemble::Key;
use crate::clock;
use crate::dicom::{SeriesUid, StudyUid};
use crate::ledger::Ledger;
use crate::ledger::retention::Judged;
use crate::spool::{Purged, Spool};

/// `[spool]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Instances are purged so long after their verdict; 0 keeps them until space is needed.
    pub keep_days: u64,
    /// Below this much free space the oldest judged series go, bytes.
    pub free_bytes_target: u64,
    /// Nothing is purged for space that was judged less than so long ago: slices may still come.
    pub keep_hours_min: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { keep_days: 30, free_bytes_target: 4 << 30, keep_hours_min: 1 }
    }
}

/// Asks the assembler to forget a closed series; `false` if it is open.
pub type Forget = (Key, oneshot::Sender<bool>);

const INTERVAL: Duration = Duration::from_secs(30);
const HOUR_MS: u64 = 3_600_000;
/// Series looked at in one round.
const ROUND_MAX: usize = 256;

/// What retention works on.
pub struct Wiring {
    /// Owner of the instances.
    pub spool: Arc<Spool>,
    /// Who knows what is open.
    pub ledger: Arc<Ledger>,
    /// To the assembler.
    pub forget: mpsc::Sender<Forget>,
}

/// Looks every half minute until shutdown.
pub async fn run(config: Config, wiring: Wiring, mut shutdown: watch::Receiver<bool>) {
    wiring.mend().await;
    loop {
        tokio::select! {
            () = wiring.round(&config, clock::wall_ms()) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            _ = shutdown.wait_for(|stop| *stop) => return,
        }
    }
}

/// Why a series goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    Age,
    Space,
}

/// Whether a series must go, by the time since its verdict and by the room there is. Pure.
fn due(config: &Config, age_ms: u64, is_short: bool) -> Option<Because> {
    if config.keep_days > 0 && age_ms >= config.keep_days * 24 * HOUR_MS {
        return Some(Because::Age);
    }
    (is_short && age_ms >= config.keep_hours_min * HOUR_MS).then_some(Because::Space)
}

impl Wiring {
    /// Finishes what a crash interrupted.
    async fn mend(&self) {
        if let Err(error) = tokio::task::block_in_place(|| self.spool.finish_purge()) {
            log::error!(event = "purge_failed"; "a purge could not be finished: {}", crate::chain(&error));
        }
        match tokio::task::block_in_place(|| self.ledger.marked_purged()) {
            Ok(marked) => {
                for judged in marked {
                    self.remove(&judged).await;
                }
            }
            Err(error) => log::error!(event = "ledger_failed"; "purged series could not be read: {error}"),
        }
    }

    async fn round(&self, config: &Config, now_ms: u64) {
        let is_short = || self.spool.free_bytes().is_some_and(|free| free < config.free_bytes_target);
        let read = tokio::task::block_in_place(|| {
            Ok::<_, crate::ledger::LedgerError>((
                self.ledger.promised()?,
                self.ledger.purgeable(now_ms, ROUND_MAX)?,
            ))
        });
        let (promised, purgeable) = match read {
            Ok(read) => read,
            Err(error) => {
                log::error!(event = "ledger_failed"; "what may be purged could not be read: {error}");
                return;
            }
        };
        let is_promised = |sop: &str| promised.iter().any(|text| text.contains(sop));
        // What nobody reads goes first.
        let side_hours = if is_short() { config.keep_hours_min } else { config.keep_days * 24 };
        if side_hours > 0 {
            let before_ms = now_ms.saturating_sub(side_hours * HOUR_MS);
            let wiped =
                tokio::task::block_in_place(|| self.spool.purge_side_folders(before_ms, &is_promised));
            match wiped {
                Ok(0) => {}
                Ok(n) => {
                    log::info!(event = "side_folders_purged", count = n; "instances set aside were purged")
                }
                Err(error) => {
                    log::error!(event = "purge_failed"; "side folders could not be purged: {}", crate::chain(&error))
                }
            }
        }
        for judged in purgeable {
            let age_ms = now_ms.saturating_sub(judged.decided_ms);
            let Some(because) = due(config, age_ms, is_short()) else { break };
            if !promised.is_empty() && self.holds_promised(&judged, &is_promised) {
                continue;
            }
            self.purge(&judged, because, now_ms).await;
        }
    }

    fn holds_promised(&self, judged: &Judged, is_promised: &dyn Fn(&str) -> bool) -> bool {
        let Some((study, series)) = uids(judged) else { return true };
        let names = tokio::task::block_in_place(|| self.spool.names(&study, &series));
        names.iter().any(|sop| is_promised(sop))
    }

    async fn purge(&self, judged: &Judged, because: Because, now_ms: u64) {
        let mark = || self.ledger.mark_purged(judged, now_ms);
        match tokio::task::block_in_place(mark) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                log::error!(event = "ledger_failed"; "a purge could not be marked: {error}");
                return;
            }
        }
        let reason = if because == Because::Age { "age" } else { "space" };
        if self.remove(judged).await {
            log::info!(
                event = "series_purged", reason = reason, instances = judged.instances,
                study = self.ledger.reference(&judged.study_uid).as_str(); "instances purged, the ledger row stays"
            );
        }
    }

    /// Removes a marked series, or takes the mark back where it is not what was judged; whether it is gone.
    async fn remove(&self, judged: &Judged) -> bool {
        let Some((study, series)) = uids(judged) else { return false };
        let (answer_tx, answer) = oneshot::channel();
        let key = (study.clone(), series.clone());
        let forgotten = match self.forget.send((key, answer_tx)).await {
            Ok(()) => answer.await.unwrap_or(false),
            Err(_) => false,
        };
        let purged = match forgotten {
            true => {
                tokio::task::block_in_place(|| self.spool.purge_series(&study, &series, judged.instances))
            }
            false => Ok(Purged::Changed(usize::MAX)),
        };
        match purged {
            // Fewer than were judged: those have gone, and others of the series came after that.
            Ok(Purged::Gone(_)) => return self.ended(judged),
            Ok(Purged::Changed(n)) if n < judged.instances => return self.ended(judged),
            Ok(Purged::Changed(_)) => {}
            Err(error) => {
                log::error!(event = "purge_failed"; "a series could not be purged: {}", crate::chain(&error))
            }
        }
        if let Err(error) = tokio::task::block_in_place(|| self.ledger.unmark_purged(judged)) {
            log::error!(event = "ledger_failed"; "a purge could not be taken back: {error}");
        }
        false
    }

    fn ended(&self, judged: &Judged) -> bool {
        let ended = tokio::task::block_in_place(|| self.ledger.purge_ended(judged, clock::wall_ms()));
        if let Err(error) = ended {
            log::error!(event = "ledger_failed"; "the end of a purge could not be written down: {error}");
        }
        true
    }
}

fn uids(judged: &Judged) -> Option<(StudyUid, SeriesUid)> {
    Some((StudyUid::parse(&judged.study_uid).ok()?, SeriesUid::parse(&judged.series_uid).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_and_want_of_room_let_a_series_go_and_a_fresh_one_stays() {
        let config = Config { keep_days: 2, free_bytes_target: 1, keep_hours_min: 1 };
        assert_eq!(due(&config, 48 * HOUR_MS, false), Some(Because::Age));
        assert_eq!(due(&config, 47 * HOUR_MS, false), None);
        assert_eq!(due(&config, HOUR_MS, true), Some(Because::Space));
        assert_eq!(due(&config, HOUR_MS - 1, true), None);
        assert_eq!(due(&Config { keep_days: 0, ..config }, u64::MAX, false), None);
    }
}
