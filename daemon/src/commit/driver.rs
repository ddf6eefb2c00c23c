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
            let mut shutdown = wiring.shutdown.clone();
            let tried = tokio::select! {
                tried = wiring.attempt(row) => tried,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            let again = clock::now() + wait(row.attempts + 1);
            if tried.is_open {
                due.insert(row.seq, again);
            }
            if tried.is_away {
                // Whoever does not listen now does not take the next one either, and keeps nobody else waiting.
                for other in open.iter().filter(|other| other.peer == row.peer && other.seq != row.seq) {
                    let at = due.entry(other.seq).or_insert(again);
                    *at = again.max(*at);
                }
            }
        }
        tokio::select! {
            () = wiring.commitments.wake.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = wiring.shutdown.changed() => {}
        }
    }
}

/// How an attempt ended.
struct Tried {
    /// There is to be another one.
    is_open: bool,
    /// No association came about, or it hung.
    is_away: bool,
}

impl Wiring {
    /// One attempt.
    async fn attempt(&self, row: &CommitmentRow) -> Tried {
        let delivered = tokio::time::timeout(ATTEMPT, self.deliver(row)).await;
        let commitments = &self.commitments;
        let error = match delivered.unwrap_or(Err(DeliverError::Timeout)) {
            Ok(()) => {
                log::info!(event = "commitment_delivered", peer = row.peer.as_str(), attempts = row.attempts; "the peer has it");
                tokio::task::block_in_place(|| commitments.settle(row.seq, true));
                return Tried { is_open: false, is_away: false };
            }
            Err(error) => error,
        };
        let is_away = match &error {
            DeliverError::Unknown => false,
            DeliverError::Send(error) => error.is_outage(),
            DeliverError::Timeout => true,
        };
        log::warn!(
            event = "commitment_undelivered", peer = row.peer.as_str(), attempts = row.attempts;
            "storage commitment could not be reported: {}", crate::chain(&error)
        );
        let is_late = clock::wall_ms().saturating_sub(row.requested_ms) > GIVE_UP_MS;
        if is_late || matches!(error, DeliverError::Unknown) {
            log::error!(event = "commitment_given_up", peer = row.peer.as_str(); "nobody takes this storage commitment");
            tokio::task::block_in_place(|| commitments.settle(row.seq, false));
            return Tried { is_open: false, is_away };
        }
        let counted = tokio::task::block_in_place(|| commitments.ledger.commitment_attempted(row.seq));
        if let Err(error) = counted {
            log::error!(event = "ledger_failed"; "attempt could not be counted: {error}");
        }
        Tried { is_open: true, is_away }
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
    use super::super::Outcome;
    use super::*;
    use crate::config;
    use crate::ledger::Ledger;
    use crate::spool::{Spool, SpoolLimits};

    #[test]
    fn attempts_come_quickly_at_first_and_never_stop_coming() {
        assert_eq!([1, 2, 3].map(|n| wait(n).as_secs()), [2, 4, 8]);
        assert_eq!(wait(1_000), RETRY_MAX);
    }

    /// A peer that takes connections and ends them, with how many there were.
    async fn deaf() -> (String, watch::Receiver<usize>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (count, counted) = watch::channel(0);
        tokio::spawn(async move {
            while listener.accept().await.is_ok() {
                count.send_modify(|n| *n += 1);
            }
        });
        (address, counted)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_peer_that_does_not_listen_is_asked_once_and_keeps_no_other_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let ((off, off_asked), (other, mut other_asked)) = (deaf().await, deaf().await);
        let site =
            config::Site { name: "north".into(), device: "ct-1".into(), profile: config::Profile::Assist };
        let ledger = Arc::new(Ledger::open(dir.path(), &site).unwrap());
        let limits = SpoolLimits { free_bytes_min: 0, instance_bytes_max: 1 };
        let spool = Arc::new(Spool::open(&dir.path().join("spool"), limits).unwrap());
        let peer = |ae_title: &str, address: &str| -> config::Peer {
            toml::from_str(&format!("ae-title = \"{ae_title}\"\naddress = \"{address}\"")).unwrap()
        };
        let outcome = Outcome { transaction: "1.2".into(), committed: Vec::new(), failed: Vec::new() };
        for _ in 0..20 {
            ledger.commitment_open("OFF", &outcome).unwrap();
        }
        ledger.commitment_open("OTHER", &outcome).unwrap();
        let peers = vec![peer("OFF", &off), peer("OTHER", &other)];
        let (stop, shutdown) = watch::channel(false);
        let running = tokio::spawn(run(Wiring {
            commitments: Arc::new(Commitments::new(spool, ledger, peers)),
            ae_title: AeTitle::parse("ICHD").unwrap(),
            tls: None,
            pulse: crate::health::Pulses::new(clock::now()).register("commit"),
            shutdown,
        }));
        other_asked.wait_for(|n| *n == 1).await.unwrap();
        assert_eq!(*off_asked.borrow(), 1, "one of its twenty speaks for all");
        stop.send(true).unwrap();
        running.await.unwrap();
    }
}
