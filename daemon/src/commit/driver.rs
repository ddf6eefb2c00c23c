//! Delivers answers that no association is left to deliver: a new one to the peer, until it has taken the answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dicom_ul::pdu::{self, AssociationRQ, PresentationContextProposed, PresentationContextResultReason};
use dicom_ul::pdu::{RequestorRoles, UserVariableItem};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::{Commitments, SOP_CLASS, SOP_INSTANCE, message};
use crate::clock;
use crate::config;
use crate::dicom::AeTitle;
use crate::health::Pulse;
use crate::ledger::CommitmentRow;
use crate::receive::dimse::{self, COMMAND_BYTES_MAX, Status};
use crate::receive::negotiate;
use crate::receive::upper::{Link, Pdu, Stream, UpperError};
use crate::tls::{Files, TlsError};

/// One attempt, from TCP to the release; shorter than what the watchdog allows a stage.
const ATTEMPT: Duration = Duration::from_secs(20);
/// Between the first failure and the next attempt; doubles with every failure.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// Never longer than this between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(30 * 60);
/// A scanner that has not listened for this long has given up on us.
const GIVE_UP_MS: u64 = 72 * 3_600_000;
/// What we take in one PDU; answers are small.
const PDU_BYTES_MAX: u32 = 16_384;
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
    #[error("failed to connect")]
    Connect(#[source] std::io::Error),
    #[error("certificates cannot be used")]
    Tls(#[source] TlsError),
    #[error("association failed")]
    Upper(#[from] UpperError),
    #[error("the peer does not accept Storage Commitment from its SCP")]
    ContextRefused,
    #[error("refused with status {0:04X}")]
    Refused(u16),
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
        let mut link = Link::new(self.connect(peer).await?, PDU_BYTES_MAX, ATTEMPT);
        link.send_association(&pdu::Pdu::AssociationRQ(self.request(peer))).await?;
        let answer = link.association_answer().await?;
        link.limit_sending(negotiate::peer_pdu_bytes_max(&answer.user_variables));
        let accepted = answer
            .presentation_contexts
            .iter()
            .find(|c| c.id == 1 && c.reason == PresentationContextResultReason::Acceptance)
            .ok_or(DeliverError::ContextRefused)?;
        let is_explicit = accepted.transfer_syntax.trim_end_matches(['\0', ' ']) == EXPLICIT;
        let event = message::event_type(&row.outcome);
        let command = dimse::event_report_request(SOP_CLASS, SOP_INSTANCE, 1, event);
        link.send_message(1, &command, Some(&message::report(&row.outcome, is_explicit))).await?;
        let status = response(&mut link).await?;
        let _ = link.send_release_request().await;
        let _ = tokio::time::timeout(Duration::from_secs(1), link.receive()).await;
        match status {
            Status::SUCCESS => Ok(()),
            Status(other) => Err(DeliverError::Refused(other)),
        }
    }

    async fn connect(&self, peer: &config::Peer) -> Result<Box<dyn Stream>, DeliverError> {
        let socket = TcpStream::connect(&peer.address).await.map_err(DeliverError::Connect)?;
        let _ = socket.set_nodelay(true);
        let Some(files) = self.tls.as_ref().filter(|_| peer.tls) else { return Ok(Box::new(socket)) };
        let client = tokio::task::block_in_place(|| files.client_config()).map_err(DeliverError::Tls)?;
        let host = peer.address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
        let invalid = |e| DeliverError::Connect(std::io::Error::new(std::io::ErrorKind::InvalidInput, e));
        let name = ServerName::try_from(host.to_owned()).map_err(invalid)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, socket).await;
        Ok(Box::new(stream.map_err(DeliverError::Connect)?))
    }

    /// We ask for the association and are the SCP on it (PS3.7 D.3.3.4).
    fn request(&self, peer: &config::Peer) -> AssociationRQ {
        let mut user_variables = negotiate::user_information(PDU_BYTES_MAX);
        let roles = RequestorRoles { scu: false, scp: true };
        user_variables.push(UserVariableItem::ScuScpRoleSelectionSubItem(SOP_CLASS.into(), roles));
        AssociationRQ {
            protocol_version: 1,
            calling_ae_title: self.ae_title.as_str().into(),
            called_ae_title: peer.ae_title.as_str().into(),
            application_context_name: negotiate::APPLICATION_CONTEXT.into(),
            presentation_contexts: vec![PresentationContextProposed {
                id: 1,
                abstract_syntax: SOP_CLASS.into(),
                transfer_syntaxes: vec![EXPLICIT.into(), IMPLICIT.into()],
            }],
            user_variables,
        }
    }
}

/// Status of the N-EVENT-REPORT-RSP.
async fn response(link: &mut Link) -> Result<Status, UpperError> {
    let mut command = Vec::new();
    loop {
        let Pdu::Data(values) = link.receive().await? else { return Err(UpperError::Unexpected) };
        for value in values {
            if !value.is_command || command.len() + value.data.len() > COMMAND_BYTES_MAX {
                return Err(UpperError::Unexpected);
            }
            command.extend_from_slice(&value.data);
            if value.is_last {
                return dimse::response_status(&command)
                    .map(|(_, status)| status)
                    .ok_or(UpperError::Malformed);
            }
        }
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
