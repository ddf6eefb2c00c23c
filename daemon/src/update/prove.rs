//! The proof that keeps a slot. Runs once after every boot, in whichever slot came up.
//!
//! ```text
//!   proven before, as it is now --> marked good at once: its attempt was earned; then as below, staying in any case
//!   asks the daemon for a proof of life until one succeeds --> slot marked good, and written down as proven
//!      '-- none within the limit --+-- on trial, a proven slot is there --> marked bad, the other one boots next
//!                                  '-- otherwise --> stays as it is, unmarked; ask again
//! ```
//!
//! A slot that has proved itself before is never left because of one bad boot: a broker or network that is down then
//! would move the box to an older program. A failure is written down before RAUC is told, so that the old slot can say
//! why it is back, however the new one ended.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::book::{self, installation};
use super::{Plan, Rauc, RaucError, RaucStatus, UpdateError};
use crate::alert::document::{Update, UpdatePhase};
use crate::clock;
use crate::control::{self, Request};
use crate::ledger::proofs::{Proof, Reached};

/// Between two questions to a daemon that is not there yet or has just failed.
const AGAIN: Duration = Duration::from_secs(2);

/// After a boot RAUC and its bus may take a while.
const RAUC_UP: Duration = Duration::from_secs(60);

/// What became of the slot that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Marked {
    /// It has proved itself and stays.
    Good {
        /// RAUC's words.
        words: String,
    },
    /// It has not, and the other slot takes over at the reboot.
    Bad {
        /// What was missing.
        reason: String,
    },
    /// It has not, and does not have to: it was proven before, or there is nowhere to go.
    Unproven {
        /// What was missing.
        reason: String,
    },
}

/// Waits for a proof of life of what runs now, and marks the slot accordingly.
pub async fn mark_good(plan: &Plan, wait: Duration) -> Result<Marked, UpdateError> {
    let (rauc, status) = reach(wait.min(RAUC_UP)).await.map_err(UpdateError::Rauc)?;
    let pages = book::look(&plan.directory).map_err(|e| plan.unusable(e))?;
    let (on_trial, proven) = (pages.on_trial(&status), status.running().is_some_and(|s| pages.is_proven(s)));
    if proven {
        // The boot loader took its one attempt; neither a power cycle nor a restart may now move the box to an older
        // program because a broker is away.
        rauc.mark("good", "booted").await.map_err(UpdateError::Rauc)?;
    }
    // Nobody holds the book meanwhile: what ends a failing proof may be an update.
    let proof = prove(&plan.state, wait).await;
    let mut book = plan.book_soon().await?;
    let missing = match proof {
        Ok(()) => {
            let words = rauc.mark("good", "booted").await.map_err(UpdateError::Rauc)?;
            if let Some(slot) = status.running() {
                book.pages.proven.insert(slot.bootname.clone().unwrap_or_default(), installation(slot));
            }
            if book.pages.fell_back(&status, &clock::boot_id()).is_some() {
                // So that no boot loader that runs out of attempts here tries it again.
                rauc.mark("bad", "other").await.map_err(UpdateError::Rauc)?;
            }
            settle(plan, &mut book.pages, &status);
            book.save().map_err(|e| plan.unusable(e))?;
            log::info!(event = "slot_good", slot = status.running_name(); "{words}");
            if !proven {
                plan.tell(Update { version: version(&status), ..Update::new(UpdatePhase::Good) });
            }
            return Ok(Marked::Good { words });
        }
        Err(missing) => missing,
    };
    if !on_trial {
        log::error!(event = "slot_unproven", reason = missing.as_str(); "no proof of life; this slot stays");
        return Ok(Marked::Unproven { reason: missing });
    }
    let failed = version(&status);
    book.pages.trial = Some(super::Trial {
        slot: status.running_name(),
        version: failed.clone().unwrap_or_default(),
        written_in: clock::boot_id(),
        failure: Some(missing.clone()),
    });
    book.pages.failed.clone_from(&failed);
    book.save().map_err(|e| plan.unusable(e))?;
    rauc.mark("bad", "booted").await.map_err(UpdateError::Rauc)?;
    rauc.mark("active", "other").await.map_err(UpdateError::Rauc)?;
    log::error!(event = "slot_bad", reason = missing.as_str(); "no proof of life; the other slot takes over");
    plan.tell(Update { version: failed, reasons: vec![missing.clone()], ..Update::new(UpdatePhase::Failed) });
    Ok(Marked::Bad { reason: missing })
}

/// RAUC, once it answers.
async fn reach(wait: Duration) -> Result<(Rauc, RaucStatus), RaucError> {
    let until = clock::now() + wait;
    loop {
        let answer = async {
            let rauc = Rauc::connect().await?;
            let status = rauc.status().await?;
            Ok((rauc, status))
        };
        match answer.await {
            Err(_) if clock::now() + AGAIN < until => tokio::time::sleep(AGAIN).await,
            answer => return answer,
        }
    }
}

fn version(status: &RaucStatus) -> Option<String> {
    super::running_version(status).map(|v| v.to_string())
}

/// Closes a trial: it was ours and is won, it ended in the other slot, which is said aloud, or it never began.
fn settle(plan: &Plan, pages: &mut super::book::Pages, status: &RaucStatus) {
    let Some(trial) = pages.trial.clone() else { return };
    let this_run = clock::boot_id();
    if pages.fell_back(status, &this_run).is_some() {
        let why = trial.failure.clone().unwrap_or_else(|| "it did not come up".into());
        let reason = format!(
            "version {} in slot {}: {why}; slot {} runs again",
            trial.version,
            trial.slot,
            status.running_name()
        );
        let update = Update {
            version: Some(trial.version.clone()),
            reasons: vec![reason],
            ..Update::new(UpdatePhase::Failed)
        };
        pages.failed = Some(trial.version);
        // Whoever has to be told has been, or will be at the next boot.
        if plan.tell(update) {
            pages.trial = None;
        }
    } else if trial.slot == status.running_name() || trial.written_in != this_run {
        pages.trial = None;
    }
}

/// Asks the running daemon for proofs of life until one succeeds; what was missing last, if none does in time.
async fn prove(state: &Path, wait: Duration) -> Result<(), String> {
    let until = clock::now() + wait;
    loop {
        let left = until.saturating_duration_since(clock::now());
        let missing = match ask(state, left.max(AGAIN)).await {
            Ok(proof) if is_well(&proof) => return Ok(()),
            Ok(proof) => proof.failure.unwrap_or_default(),
            Err(missing) => missing,
        };
        if clock::now() + AGAIN >= until {
            return Err(missing);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn ask(state: &Path, limit: Duration) -> Result<Proof, String> {
    let state = state.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        control::ask_within(&state, &Request::Proof, Some(limit))
            .map_err(|e| format!("no daemon answers ({e})"))
            .and_then(|answer| answer.proof.ok_or_else(|| answer.error.unwrap_or_default()))
    });
    asked.await.unwrap_or_else(|e| Err(e.to_string()))
}

/// The box is well if a synthetic study was taken, read rightly and its alert handed to the broker. A station that is
/// linked and does not answer is no fault of an image, and must not send a box back to an older one.
fn is_well(proof: &Proof) -> bool {
    proof.failure.is_none() || proof.reached >= Reached::Broker
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_station_is_no_fault_of_the_image_but_a_silent_broker_is() {
        let proof = |reached, failure: Option<&str>| Proof {
            id: 1,
            begun_at: String::new(),
            reached,
            took_ms: Some(1),
            failure: failure.map(Into::into),
        };
        assert!(is_well(&proof(Reached::Station, None)));
        assert!(is_well(&proof(Reached::Broker, Some("station: linked, and has not answered"))));
        assert!(!is_well(&proof(Reached::Verdict, Some("broker: the alert was not taken"))));
        assert!(!is_well(&proof(Reached::Begun, Some("dicom: refused"))));
    }

    #[tokio::test]
    async fn without_a_daemon_nothing_is_proven() {
        let dir = tempfile::tempdir().unwrap();
        assert!(prove(dir.path(), Duration::ZERO).await.unwrap_err().contains("no daemon answers"));
    }
}
