//! Storage SCU: a few objects over one association. What the peer said is a value; nothing of it is quoted in the journal.

use std::time::Duration;

use dicom_ul::association::Error;
use dicom_ul::association::client::{AsyncClientAssociation, ClientAssociationOptions};
use dicom_ul::pdu::{PDataValue, PDataValueType, Pdu, PresentationContextResultReason};
use tokio::net::TcpStream;

use super::dataset::{Dataset, EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN};
use crate::dicom::AeTitle;
use crate::receive::dimse::{self, COMMAND_BYTES_MAX, Status};

const CONNECT: Duration = Duration::from_secs(10);
/// A PACS may index before it answers.
const ANSWER: Duration = Duration::from_secs(60);
/// A whole attempt; a few objects of about a megabyte each.
const ATTEMPT: Duration = Duration::from_secs(300);
/// What we take in one PDU; answers are small.
const PDU_BYTES_MAX: u32 = 65_536;
/// Fixed part of a P-DATA-TF PDU with one value: PDV length, context and control header.
const PDV_OVERHEAD: usize = 6;

/// One object on its way.
#[derive(Debug)]
pub struct Object {
    /// SOP Class UID.
    pub sop_class: &'static str,
    /// SOP Instance UID.
    pub sop: String,
    /// What it holds.
    pub dataset: Dataset,
}

/// Why an attempt ended without every object being stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// No association: the destination is down, or does not want us. Nothing else will get through either.
    #[error("no association: {0}")]
    NoAssociation(&'static str),
    /// The association ended, or an answer did not come.
    #[error("association lost: {0}")]
    Lost(&'static str),
    /// The peer has no use for objects of this class.
    #[error("SOP class {0} is not accepted")]
    ClassRefused(&'static str),
    /// The peer answered with a failure.
    #[error("refused with status {0:04X}")]
    Refused(u16),
}

impl SendError {
    /// Whether the destination as a whole is unreachable, rather than this one report unwelcome.
    pub fn is_outage(&self) -> bool {
        matches!(self, SendError::NoAssociation(_) | SendError::Lost(_))
    }
}

/// Sends every object; the first failure ends the attempt. Sending again is harmless, the UIDs stay the same.
pub async fn send(
    calling: &AeTitle,
    called: &AeTitle,
    address: &str,
    objects: &[Object],
) -> Result<(), SendError> {
    let attempt = async {
        let mut options = ClientAssociationOptions::new()
            .calling_ae_title(calling.as_str())
            .called_ae_title(called.as_str())
            .strict(true)
            .max_pdu_length(PDU_BYTES_MAX)
            .connection_timeout(CONNECT)
            .read_timeout(ANSWER)
            .write_timeout(ANSWER);
        let mut classes: Vec<&str> = objects.iter().map(|o| o.sop_class).collect();
        classes.dedup();
        for class in classes {
            options = options
                .with_presentation_context(class, vec![EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN]);
        }
        let mut peer =
            options.establish_async(address).await.map_err(|e| SendError::NoAssociation(why(&e)))?;
        let mut result = Ok(());
        for (object, id) in objects.iter().zip(1u16..) {
            result = store(&mut peer, object, id).await;
            if result.is_err() {
                break;
            }
        }
        match &result {
            Err(SendError::Lost(_)) => {
                let _ = peer.abort().await;
            }
            _ => {
                let _ = peer.release().await;
            }
        }
        result
    };
    tokio::time::timeout(ATTEMPT, attempt).await.unwrap_or(Err(SendError::Lost("timeout")))
}

async fn store(
    peer: &mut AsyncClientAssociation<TcpStream>,
    object: &Object,
    id: u16,
) -> Result<(), SendError> {
    let accepted = peer.presentation_contexts().iter().find(|c| {
        c.reason == PresentationContextResultReason::Acceptance
            && c.abstract_syntax.trim_end_matches('\0') == object.sop_class
    });
    let Some(accepted) = accepted else { return Err(SendError::ClassRefused(object.sop_class)) };
    let explicit = accepted.transfer_syntax.trim_end_matches('\0') == EXPLICIT_LITTLE_ENDIAN;
    let context = accepted.id;
    let command = dimse::store_request(object.sop_class, &object.sop, id);
    put(peer, context, PDataValueType::Command, command).await?;
    put(peer, context, PDataValueType::Data, object.dataset.encode(explicit)).await?;
    match answer(peer, id).await? {
        // Coercion and discarded elements are warnings; an instance that is there already is what we want.
        Status(0x0000 | 0x0111 | 0xb000 | 0xb006 | 0xb007) => Ok(()),
        Status(status) => Err(SendError::Refused(status)),
    }
}

async fn put(
    peer: &mut AsyncClientAssociation<TcpStream>,
    context: u8,
    value_type: PDataValueType,
    bytes: Vec<u8>,
) -> Result<(), SendError> {
    let most = (peer.acceptor_max_pdu_length() as usize).clamp(1024, 1 << 20) - PDV_OVERHEAD;
    let n = bytes.len().div_ceil(most).max(1);
    for i in 0..n {
        let part = &bytes[i * most..bytes.len().min((i + 1) * most)];
        let value = PDataValue {
            presentation_context_id: context,
            value_type: value_type.clone(),
            is_last: i + 1 == n,
            data: part.to_vec(),
        };
        let sent = peer.send(&Pdu::PData { data: vec![value] }).await;
        sent.map_err(|_| SendError::Lost("connection_lost"))?;
    }
    Ok(())
}

async fn answer(peer: &mut AsyncClientAssociation<TcpStream>, id: u16) -> Result<Status, SendError> {
    let mut command = Vec::new();
    loop {
        let pdu = peer.receive().await.map_err(|e| SendError::Lost(why(&e)))?;
        let Pdu::PData { data } = pdu else { return Err(SendError::Lost("peer_ended")) };
        for value in data {
            if command.len() + value.data.len() > COMMAND_BYTES_MAX {
                return Err(SendError::Lost("answer_too_long"));
            }
            command.extend(value.data);
            if value.is_last {
                return match dimse::response_status(&command) {
                    Some((to, status)) if to == id => Ok(status),
                    _ => Err(SendError::Lost("answer_out_of_place")),
                };
            }
        }
    }
}

/// Stable word for an error; its own text may quote the peer.
fn why(error: &Error) -> &'static str {
    match error {
        Error::ToAddress { .. } => "address_unknown",
        Error::Connect { .. } => "connection_refused",
        Error::Rejected { .. } => "rejected",
        Error::NoAcceptedPresentationContexts { .. } => "nothing_accepted",
        Error::Timeout { .. } => "timeout",
        Error::ReceivePdu { .. } | Error::SendPdu { .. } => "connection_lost",
        _ => "protocol",
    }
}
