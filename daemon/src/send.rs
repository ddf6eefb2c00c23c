//! Service class user: one association that we open, and the commands on it. For results, forwarding, proof of life,
//! answers to storage commitment, and the simulated scanner of the tools.
//!
//! Speaks through [`crate::receive::upper`], so the same limits hold in both directions, and TLS is TLS either way. What
//! the peer said is a value; nothing of it is quoted in the journal.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dicom_ul::pdu::{self, AssociationRQ, PresentationContextProposed, PresentationContextResultReason};
use dicom_ul::pdu::{RequestorRoles, UserVariableItem};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use crate::deliver::Failure;
use crate::dicom::{AeTitle, dataset};
use crate::receive::dimse::{self, COMMAND_BYTES_MAX, Status};
use crate::receive::negotiate::{self, Context};
use crate::receive::upper::{Link, Pdu, Stream, UpperError};
use crate::tls::Files;

const CONNECT: Duration = Duration::from_secs(10);
/// For one PDU either way: a PACS may index before it answers.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a peer may take over A-RELEASE.
const RELEASE: Duration = Duration::from_secs(2);
/// What we take in one PDU; answers are small.
const PDU_BYTES_MAX: u32 = 16_384;
/// Read from a file and sent at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Whom to call, and as whom.
#[derive(Debug, Clone, Copy)]
pub struct Peer<'a> {
    /// Our AE title.
    pub calling: &'a AeTitle,
    /// Its AE title.
    pub called: &'a AeTitle,
    /// `host:port`.
    pub address: &'a str,
    /// Mutual TLS with these certificates.
    pub tls: Option<&'a Files>,
}

/// One presentation context to propose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// SOP Class UID.
    pub sop_class: String,
    /// Transfer syntaxes, the preferred one first.
    pub transfer_syntaxes: Vec<String>,
}

/// A data set to be sent.
#[derive(Debug, Clone, Copy)]
pub enum DataSet<'a> {
    /// As it goes out.
    Bytes(&'a [u8]),
    /// That of a Part 10 file, as it lies there.
    File(&'a Path),
}

/// Why something was not stored, or not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No association: the peer is down, or does not want us. Nothing else is likely to get through either.
    #[error("no association: {0}")]
    NoAssociation(&'static str),
    /// The association ended, or an answer did not come.
    #[error("association lost: {0}")]
    Lost(&'static str),
    /// The peer has no use for this class, or not in this encoding.
    #[error("SOP class {0} is not accepted")]
    ClassRefused(String),
    /// The peer answered with a failure.
    #[error("refused with status {0:04X}")]
    Refused(u16),
    /// The file could not be read.
    #[error("the stored instance cannot be read")]
    Unreadable,
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        Failure { reason: error.to_string(), is_outage: error.is_outage() }
    }
}

impl SendError {
    /// Whether the peer as a whole is unreachable, rather than this one thing unwelcome.
    pub fn is_outage(&self) -> bool {
        matches!(self, SendError::NoAssociation(_))
    }
}

/// An association that the peer has accepted.
pub struct Association {
    link: Link,
    contexts: Vec<Context>,
    next_message_id: u16,
}

impl Association {
    /// Opens one for storage. A peer that takes none of what is wanted is there all the same: `ClassRefused`.
    pub async fn open(peer: Peer<'_>, wanted: &[Wanted]) -> Result<Self, SendError> {
        Self::open_as(peer, wanted, &[]).await
    }

    /// Opens one on which we are the SCP of some classes (PS3.7 D.3.3.4).
    pub async fn open_as(peer: Peer<'_>, wanted: &[Wanted], served: &[&str]) -> Result<Self, SendError> {
        let stream = tokio::time::timeout(CONNECT, connect(peer.address, peer.tls));
        let stream = stream.await.unwrap_or(Err(SendError::NoAssociation("timeout")))?;
        let mut link = Link::new(stream, PDU_BYTES_MAX, ANSWER);
        let request = pdu::Pdu::AssociationRQ(request(peer, wanted, served));
        let none = |e: UpperError| SendError::NoAssociation(e.reason());
        link.send_association(&request).await.map_err(none)?;
        let answer = link.association_answer().await.map_err(none)?;
        link.limit_sending(negotiate::peer_pdu_bytes_max(&answer.user_variables));
        let contexts: Vec<Context> = (answer.presentation_contexts.iter())
            .filter(|c| c.reason == PresentationContextResultReason::Acceptance)
            .filter_map(|c| {
                let proposed = wanted.get(usize::from(c.id / 2)).filter(|_| c.id % 2 == 1)?;
                Some(Context {
                    id: c.id,
                    abstract_syntax: proposed.sop_class.clone(),
                    transfer_syntax: c.transfer_syntax.trim_end_matches(['\0', ' ']).to_owned(),
                })
            })
            .collect();
        let association = Association { link, contexts, next_message_id: 1 };
        if association.contexts.is_empty() {
            association.release().await;
            let classes: BTreeSet<&str> = wanted.iter().map(|w| w.sop_class.as_str()).collect();
            return Err(SendError::ClassRefused(Vec::from_iter(classes).join(", ")));
        }
        Ok(association)
    }

    /// What was accepted for a class, in the order of the proposal.
    pub fn accepted<'a>(&'a self, sop_class: &'a str) -> impl Iterator<Item = &'a Context> {
        self.contexts.iter().filter(move |c| c.abstract_syntax == sop_class)
    }

    /// C-STORE; the data set is in the transfer syntax of the context.
    pub async fn store(
        &mut self,
        context: &Context,
        sop: &str,
        data_set: DataSet<'_>,
    ) -> Result<(), SendError> {
        let id = self.message_id();
        let command = dimse::store_request(&context.abstract_syntax, sop, id);
        match self.exchange(context.id, id, &command, data_set).await? {
            // Coercion and discarded elements are warnings; an instance that is there already is what we want.
            Status(0x0000 | 0x0111 | 0xb000 | 0xb006 | 0xb007) => Ok(()),
            Status(status) => Err(SendError::Refused(status)),
        }
    }

    /// A number for the next command.
    pub fn message_id(&mut self) -> u16 {
        let id = self.next_message_id;
        self.next_message_id = id.wrapping_add(1).max(1);
        id
    }

    /// Sends a command with its data set and waits for the status.
    pub async fn exchange(
        &mut self,
        context: u8,
        id: u16,
        command: &[u8],
        data_set: DataSet<'_>,
    ) -> Result<Status, SendError> {
        let lost = |e: UpperError| SendError::Lost(e.reason());
        match data_set {
            DataSet::Bytes(bytes) => {
                self.link.send_message(context, command, Some(bytes)).await.map_err(lost)?
            }
            DataSet::File(path) => {
                let opened = tokio::task::block_in_place(|| dataset::open_body(path));
                let (mut file, mut left) = opened.map_err(|_| SendError::Unreadable)?;
                self.link.send_message(context, command, None).await.map_err(lost)?;
                loop {
                    let mut chunk = vec![0; usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES)];
                    let read = tokio::task::block_in_place(|| file.read_exact(&mut chunk));
                    // Half a data set is on the wire: only an abort makes that good.
                    read.map_err(|_| SendError::Lost("unreadable"))?;
                    left -= chunk.len() as u64;
                    self.link.send_data(context, &chunk, left == 0).await.map_err(lost)?;
                    if left == 0 {
                        break;
                    }
                }
            }
        }
        self.answer(id).await
    }

    async fn answer(&mut self, id: u16) -> Result<Status, SendError> {
        let mut command = Vec::new();
        loop {
            let received = self.link.receive().await.map_err(|e| SendError::Lost(e.reason()))?;
            let Pdu::Data(values) = received else { return Err(SendError::Lost("peer_ended")) };
            for value in values {
                if !value.is_command || command.len() + value.data.len() > COMMAND_BYTES_MAX {
                    return Err(SendError::Lost("answer_out_of_place"));
                }
                command.extend_from_slice(&value.data);
                if value.is_last {
                    return match dimse::response_status(&command) {
                        Some((to, status)) if to == id => Ok(status),
                        _ => Err(SendError::Lost("answer_out_of_place")),
                    };
                }
            }
        }
    }

    /// The orderly end.
    pub async fn release(mut self) {
        if self.link.send_release_request().await.is_ok() {
            let _ = tokio::time::timeout(RELEASE, self.link.receive()).await;
        }
    }

    /// The end that fits how it went: A-RELEASE, or A-ABORT where the association is in disorder.
    pub async fn end<T>(mut self, result: &Result<T, SendError>) {
        match result {
            Err(SendError::Lost(_)) => {
                let _ = tokio::time::timeout(RELEASE, self.link.abort()).await;
            }
            _ => self.release().await,
        }
    }
}

async fn connect(address: &str, tls: Option<&Files>) -> Result<Box<dyn Stream>, SendError> {
    let down = |_| SendError::NoAssociation("connection_refused");
    let socket = TcpStream::connect(address).await.map_err(down)?;
    let _ = socket.set_nodelay(true);
    let Some(files) = tls else { return Ok(Box::new(socket)) };
    let failed = |what: &str| {
        log::warn!(event = "tls_failed", peer = address; "TLS to {address} failed: {what}");
        SendError::NoAssociation("tls_failed")
    };
    let config = tokio::task::block_in_place(|| files.client_config()).map_err(|e| failed(&e.to_string()))?;
    let host = address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(&e.to_string()))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await;
    Ok(Box::new(stream.map_err(|e| failed(&e.to_string()))?))
}

fn request(peer: Peer, wanted: &[Wanted], served: &[&str]) -> AssociationRQ {
    let mut user_variables = negotiate::user_information(PDU_BYTES_MAX);
    for class in served {
        let roles = RequestorRoles { scu: false, scp: true };
        user_variables.push(UserVariableItem::ScuScpRoleSelectionSubItem((*class).into(), roles));
    }
    let presentation_contexts = wanted
        .iter()
        .take(negotiate::CONTEXTS_MAX)
        .enumerate()
        .map(|(n, wanted)| PresentationContextProposed {
            id: u8::try_from(2 * n + 1).unwrap_or(u8::MAX),
            abstract_syntax: wanted.sop_class.clone(),
            transfer_syntaxes: wanted.transfer_syntaxes.clone(),
        })
        .collect();
    AssociationRQ {
        protocol_version: 1,
        calling_ae_title: peer.calling.as_str().into(),
        called_ae_title: peer.called.as_str().into(),
        application_context_name: negotiate::APPLICATION_CONTEXT.into(),
        presentation_contexts,
        user_variables,
    }
}
