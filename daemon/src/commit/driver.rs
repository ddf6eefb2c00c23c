//! Delivers answers that no association is left to deliver: a new one to the peer, until it has taken the answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Commitments, SOP_CLASS, SOP_INSTANCE, message};
use crate::clock;
use crate::dicom::AeTitle;
use crate::health::Pulse;
use crate::ledger::CommitmentRow;
use crate::receive::dimse::{self, Status};
use crate::send::{Association, DataSet, Peer, SendError, Wanted};
use crate::tls::Files;

/// One attempt, from TCP to the release; shorter than what the watchdog allows a stage.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Between the first failure and the next attempt; doubles with every failure.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Never longer than this between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(30 * 60);
/// A scanner that has not listened for this long has given up on us.
const GIVE_UP_MS: u64 = 72 * 3_600_000;
const EXPLICIT: &str = "1.2.840.10008.1.2.1";
const IMPLICIT: &str = "1.2.840.10008.1.2";

/// Who delivers.
pub struct Wiring {
    /// What there is to deliver.
    pub commitments: Arc<Commitments>,
    /// Our AE title.
    pub ae_title: AeTitle,
    /// Certificates for peers that are reached over TLS.
    pub tls: Option<Files>,
    /// Beats at least once a second, and between attempts.
    pub pulse: Pulse,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
}

/// Why an answer was not taken.
#[derive(Debug, thiserror::Error)]
enum DeliverError {
    #[error("peer is not configured any more")]
    Unknown,
    #[error("association failed")]
    Send(#[from] SendError),
    #[error("no end within {ATTEMPT:?}")]
    Timeout,
}

/// How long to wait after `attempts` failures.
fn wait(attempts: u32) -> Duration {
    RETRY_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(RETRY_MAX)
}

/// Runs until shutdown; what is open then is open after the next start.
pub async fn run(mut wiring: Wiring) {
    let mut due: HashMap<i64, Instant> = HashMap::new();
    while !*wiring.shutdown.borrow() {
        wiring.pulse.beat();
        let open = tokio::task::block_in_place(|| wiring.commitments.ledger.commitments_open());
        let open = open.unwrap_or_else(|error| {
            log::error!(event = "ledger_failed"; "open commitments could not be read: {error}");
            Vec::new()
        });
        due.retain(|seq, _| open.iter().any(|row| row.seq == *seq));
        for row in &open {
            let is_due = due.get(&row.seq).is_none_or(|at| *at <= clock::now());
            if !is_due || wiring.commitments.is_held(row.seq) || *wiring.shutdown.borrow() {
                continue;
            }
            wiring.pulse.beat();
            if let Some(retry) = wiring.attempt(row).await {
                due.insert(row.seq, clock::now() + retry);
            }
        }
        tokio::select! {
            () = wiring.commitments.wake.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = wiring.shutdown.changed() => {}
        }
    }
}

impl Wiring {
    /// One attempt; how long to wait for the next one, if there is to be one.
    async fn attempt(&self, row: &CommitmentRow) -> Option<Duration> {
        let delivered = tokio::time::timeout(ATTEMPT, self.deliver(row)).await;
        let commitments = &self.commitments;
        let error = match delivered.unwrap_or(Err(DeliverError::Timeout)) {
            Ok(()) => {
                log::info!(event = "commitment_delivered", peer = row.peer.as_str(), attempts = row.attempts; "the peer has it");
                tokio::task::block_in_place(|| commitments.settle(row.seq, true));
                return None;
            }
            Err(error) => error,
        };
        log::warn!(
            event = "commitment_undelivered", peer = row.peer.as_str(), attempts = row.attempts;
            "storage commitment could not be reported: {}", crate::chain(&error)
        );
        let is_late = clock::wall_ms().saturating_sub(row.requested_ms) > GIVE_UP_MS;
        if is_late || matches!(error, DeliverError::Unknown) {
            log::error!(event = "commitment_given_up", peer = row.peer.as_str(); "nobody takes this storage commitment");
            tokio::task::block_in_place(|| commitments.settle(row.seq, false));
            return None;
        }
        let counted = tokio::task::block_in_place(|| commitments.ledger.commitment_attempted(row.seq));
        if let Err(error) = counted {
            log::error!(event = "ledger_failed"; "attempt could not be counted: {error}");
        }
        Some(wait(row.attempts + 1))
    }

    async fn deliver(&self, row: &CommitmentRow) -> Result<(), DeliverError> {
        let peer = self.commitments.peer(&row.peer).ok_or(DeliverError::Unknown)?;
        let wanted =
            Wanted { sop_class: SOP_CLASS.into(), transfer_syntaxes: vec![EXPLICIT.into(), IMPLICIT.into()] };
        let whom = Peer {
            calling: &self.ae_title,
            called: &peer.ae_title,
            address: &peer.address,
            tls: self.tls.as_ref().filter(|_| peer.tls),
        };
        // We ask for the association and are the SCP on it.
        let mut association = Association::open_as(whom, &[wanted], &[SOP_CLASS]).await?;
        let result = tell(&mut association, row).await;
        association.end(&result).await;
        Ok(result?)
    }
}

/// N-EVENT-REPORT and its answer.
async fn tell(association: &mut Association, row: &CommitmentRow) -> Result<(), SendError> {
    let refused = || SendError::ClassRefused(SOP_CLASS.into());
    let context = association.accepted(SOP_CLASS).next().cloned().ok_or_else(refused)?;
    let id = association.message_id();
    let event = message::event_type(&row.outcome);
    let command = dimse::event_report_request(SOP_CLASS, SOP_INSTANCE, id, event);
    let report = message::report(&row.outcome, context.transfer_syntax == EXPLICIT);
    match association.exchange(context.id, id, &command, DataSet::Bytes(&report)).await? {
        Status::SUCCESS => Ok(()),
        Status(other) => Err(SendError::Refused(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_quickly_at_first_and_never_stop_coming() {
        assert_eq!([1, 2, 3].map(|n| wait(n).as_secs()), [2, 4, 8]);
        assert_eq!(wait(1_000), RETRY_MAX);
    }
}
