//! A storage SCU that behaves like a scanner: one slice after the other at a cadence, one association per study.

use std::net::SocketAddr;
use std::time::Duration;

use dicom_ul::association::AsyncClientAssociation;
use dicom_ul::association::client::ClientAssociationOptions;
use dicom_ul::pdu::{PDataValue, PDataValueType, Pdu};
use ichd::receive::dimse::{Status, response_status, store_request};
use ichd_phantom::Instance;
use tokio::net::TcpStream;

/// Bytes per P-DATA fragment; below every acceptor's limit.
const FRAGMENT_BYTES: usize = 64 << 10;

/// Why a scan could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The association was refused or lost.
    #[error("association: {0}")]
    Association(String),
    /// The daemon answered something else than success.
    #[error("C-STORE was answered with status {0:04X}")]
    Refused(u16),
}

/// Where and as whom to send.
#[derive(Debug, Clone)]
pub struct Scanner {
    /// Acceptor.
    pub address: SocketAddr,
    /// Our AE title.
    pub calling: String,
    /// Its AE title.
    pub called: String,
    /// Pause between two slices.
    pub cadence: Duration,
}

impl Scanner {
    /// Sends a series over one association, telling `each` after every acknowledged slice.
    pub async fn send(&self, series: &[Instance], mut each: impl FnMut(usize)) -> Result<(), ScanError> {
        let Some(first) = series.first() else { return Ok(()) };
        let lost = |e: dicom_ul::association::Error| ScanError::Association(e.to_string());
        let mut association = ClientAssociationOptions::new()
            .calling_ae_title(self.calling.as_str())
            .called_ae_title(self.called.as_str())
            .with_presentation_context(first.sop_class_uid, vec![first.transfer_syntax_uid])
            .establish_async(self.address)
            .await
            .map_err(lost)?;
        let mut next = tokio::time::interval(self.cadence.max(Duration::from_millis(1)));
        for (i, instance) in series.iter().enumerate() {
            if !self.cadence.is_zero() {
                next.tick().await;
            }
            let message_id = u16::try_from(i % 65_535).unwrap_or(0) + 1;
            store(&mut association, instance, message_id).await?;
            each(i);
        }
        association.release().await.map_err(lost)
    }
}

async fn store(
    association: &mut AsyncClientAssociation<TcpStream>,
    instance: &Instance,
    message_id: u16,
) -> Result<(), ScanError> {
    let lost = |e: dicom_ul::association::Error| ScanError::Association(e.to_string());
    let context = association.presentation_contexts().first().map_or(1, |c| c.id);
    let value = |value_type, is_last, data| PDataValue {
        presentation_context_id: context,
        value_type,
        is_last,
        data,
    };
    let command = store_request(instance.sop_class_uid, &instance.sop_instance_uid, message_id);
    let pdu = Pdu::PData { data: vec![value(PDataValueType::Command, true, command)] };
    association.send(&pdu).await.map_err(lost)?;
    let n_fragments = instance.dataset_bytes.len().div_ceil(FRAGMENT_BYTES);
    for (i, chunk) in instance.dataset_bytes.chunks(FRAGMENT_BYTES).enumerate() {
        let value = value(PDataValueType::Data, i + 1 == n_fragments, chunk.to_vec());
        association.send(&Pdu::PData { data: vec![value] }).await.map_err(lost)?;
    }
    let Pdu::PData { data } = association.receive().await.map_err(lost)? else {
        return Err(ScanError::Association("no response to C-STORE".into()));
    };
    let response = data.into_iter().flat_map(|v| v.data).collect::<Vec<u8>>();
    match response_status(&response) {
        Some((id, Status::SUCCESS)) if id == message_id => Ok(()),
        Some((id, Status(code))) if id == message_id => Err(ScanError::Refused(code)),
        _ => Err(ScanError::Association("response to another message, or without a status".into())),
    }
}
