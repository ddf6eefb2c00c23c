//! One association: negotiate, then commands until it ends.
//!
//! Memory is bounded by the largest PDU plus one write buffer; time by handshake, idle and total limits. A refused
//! data set is read to its end and thrown away, so that the sender gets a status and the association lives.

use std::net::SocketAddr;
use std::time::Duration;

use dicom_ul::association::server::{AccessControl, AsyncServerAssociation, ServerAssociationOptions};
use dicom_ul::association::{Association, Error};
use dicom_ul::pdu::{
    AssociationRJServiceUserReason, PDataValue, PDataValueType, Pdu, PresentationContextResultReason,
    ReadError, UserIdentity,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::admit::{self, Admission};
use super::dimse::{C_ECHO_RQ, C_STORE_RQ, COMMAND_BYTES_MAX, Command, Status};
use super::{Event, Events, Shared, syntax};
use crate::config;
use crate::dicom::SopInstanceUid;
use crate::spool::{FileMeta, Incoming, StoreError, Stored};

/// Bytes collected before they are handed to the disk.
const WRITE_BYTES: usize = 512 << 10;

type Peer = AsyncServerAssociation<TcpStream>;

/// Serves one connection from accept to close.
pub(super) async fn run(
    shared: &Shared,
    socket: TcpStream,
    peer: SocketAddr,
    number: u64,
    permit: Option<OwnedSemaphorePermit>,
    mut shutdown: watch::Receiver<bool>,
) {
    let config = &shared.config;
    let _ = socket.set_nodelay(true);
    let handshake = Duration::from_millis(config.handshake_timeout_ms);
    let Some(_permit) = permit else {
        log::warn!(event = "association_rejected", reason = "too_many", peer = peer.ip().to_string(); "as many associations as allowed are open");
        let _ = tokio::time::timeout(handshake, reject_transient(socket)).await;
        return;
    };
    let Ok(established) = tokio::time::timeout(handshake, establish(config, socket)).await else {
        log::warn!(event = "association_rejected", reason = "handshake_timeout", peer = peer.ip().to_string(); "no association request in time");
        return;
    };
    let mut association = match established {
        Ok(association) => association,
        Err(error) => {
            log::warn!(event = "association_rejected", reason = reason(&error), peer = peer.ip().to_string(); "association refused");
            return;
        }
    };
    let calling = association.peer_ae_title().trim().to_owned();
    log::info!(event = "association_opened", association = number, calling = calling.as_str(); "association accepted");
    shared.events.offer(Event::Opened { association: number });
    let mut opened = Opened { events: &shared.events, association: number, orderly: false };
    let total = Duration::from_millis(config.total_timeout_ms);
    let mut session = Session { shared, number, calling, n_bytes: 0, n_stored: 0 };
    let ended = tokio::time::timeout(total, session.serve(&mut association, &mut shutdown)).await;
    let (orderly, why) = match ended {
        Ok(End::Released) => (true, "released"),
        Ok(End::Aborted(why)) => (false, why),
        Err(_) => (false, "total_timeout"),
    };
    let n_stored = session.n_stored;
    if !orderly && why != "peer_aborted" {
        let _ = association.abort().await;
    }
    log::info!(event = "association_closed", association = number, stored = n_stored, end = why; "association ended");
    opened.orderly = orderly;
}

/// An association that was announced; its end is announced too, even if that end is a panic.
struct Opened<'a> {
    events: &'a Events,
    association: u64,
    orderly: bool,
}

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.events.offer(Event::Released { association: self.association, orderly: self.orderly });
    }
}

/// A stable word for the journal. The library's own text may quote a whole PDU, and with it a patient.
pub(super) fn reason(error: &Error) -> &'static str {
    match error {
        Error::Rejected { .. } => "rejected",
        Error::Timeout { .. } => "idle_timeout",
        Error::UnexpectedPdu { .. } | Error::UnknownPdu { .. } => "unexpected_pdu",
        Error::ReceivePdu { source: ReadError::PduTooLarge { .. }, .. } => "pdu_too_large",
        Error::ReceivePdu { source: ReadError::ReadPdu { .. }, .. } => "connection_lost",
        Error::ReceivePdu { .. } => "malformed_pdu",
        Error::Aborted { .. } => "released",
        _ => "connection_lost",
    }
}

/// "Come back later": A-ASSOCIATE-RJ, transient, presentation related, local limit exceeded (PS3.8 9.3.4). The
/// library knows no transient rejection, so its ten bytes are written here, after the request has been taken in.
async fn reject_transient(mut socket: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = socket.read(&mut request).await?;
    socket.write_all(&[3, 0, 0, 0, 0, 4, 0, 2, 3, 2]).await?;
    socket.shutdown().await?;
    while socket.read(&mut request).await? > 0 {}
    Ok(())
}

/// Our admission rules in the library's terms.
struct Access<'a> {
    config: &'a config::Receive,
}

impl AccessControl for Access<'_> {
    fn check_access(
        &self,
        _this: &str,
        calling: &str,
        called: &str,
        _identity: Option<&UserIdentity>,
    ) -> Result<(), AssociationRJServiceUserReason> {
        let (refusal, reason) = match admit::association(calling, called, self.config) {
            Admission::Accept => return Ok(()),
            Admission::UnknownCalling => {
                (AssociationRJServiceUserReason::CallingAETitleNotRecognized, "unknown_calling")
            }
            Admission::UnknownCalled => {
                (AssociationRJServiceUserReason::CalledAETitleNotRecognized, "unknown_called")
            }
        };
        let (calling, called) = (calling.escape_debug().to_string(), called.escape_debug().to_string());
        log::warn!(
            event = "association_rejected", reason = reason, calling = calling.as_str(), called = called.as_str();
            "AE title is not admitted"
        );
        Err(refusal)
    }
}

pub(super) async fn establish(config: &config::Receive, socket: TcpStream) -> Result<Peer, Error> {
    let mut options = ServerAssociationOptions::new()
        .ae_access_control(Access { config })
        .ae_title(config.ae_title.as_str())
        // Strict: a longer PDU is an error before it is buffered.
        .strict(true)
        .max_pdu_length(config.pdu_bytes_max)
        .read_timeout(Duration::from_millis(config.idle_timeout_ms))
        .write_timeout(Duration::from_millis(config.idle_timeout_ms))
        .with_abstract_syntax(syntax::VERIFICATION);
    for class in syntax::IMAGES.iter().chain(&syntax::ASIDE) {
        options = options.with_abstract_syntax(*class);
    }
    for transfer in syntax::TRANSFER {
        options = options.with_transfer_syntax(*transfer);
    }
    options.establish_async(socket).await
}

enum End {
    Released,
    Aborted(&'static str),
}

struct Session<'a> {
    shared: &'a Shared,
    number: u64,
    /// AE title of the peer.
    calling: String,
    n_bytes: u64,
    n_stored: u64,
}

/// A C-STORE whose data set is arriving.
struct Storing {
    command: Command,
    context: u8,
    /// `None` once it is refused; the rest of the data set is then read and thrown away.
    incoming: Option<Incoming>,
    buffer: Vec<u8>,
    refusal: Option<(Status, String)>,
}

impl Session<'_> {
    async fn serve(&mut self, peer: &mut Peer, shutdown: &mut watch::Receiver<bool>) -> End {
        let mut command_bytes: Vec<u8> = Vec::new();
        let mut storing: Option<Storing> = None;
        loop {
            // Between two instances a drain may end the association; what was acknowledged is safe.
            let idle = storing.is_none() && command_bytes.is_empty();
            let pdu = tokio::select! {
                pdu = peer.receive() => pdu,
                _ = shutdown.changed(), if idle => return End::Aborted("shutting_down"),
            };
            let values = match pdu {
                Ok(Pdu::PData { data }) => data,
                Ok(Pdu::ReleaseRQ) => {
                    let _ = peer.send(&Pdu::ReleaseRP).await;
                    return End::Released;
                }
                Ok(Pdu::AbortRQ { .. }) => return End::Aborted("peer_aborted"),
                Ok(_) => return End::Aborted("unexpected_pdu"),
                Err(error) => return End::Aborted(reason(&error)),
            };
            for value in values {
                let done = match value.value_type {
                    PDataValueType::Command => {
                        if storing.is_some() || command_bytes.len() + value.data.len() > COMMAND_BYTES_MAX {
                            return End::Aborted("command_out_of_place");
                        }
                        command_bytes.extend(&value.data);
                        if !value.is_last {
                            continue;
                        }
                        let parsed = Command::parse(&command_bytes);
                        command_bytes.clear();
                        let Ok(command) = parsed else { return End::Aborted("malformed_command") };
                        match self.on_command(peer, command, value.presentation_context_id).await {
                            Ok(next) => storing = next,
                            Err(end) => return end,
                        }
                        continue;
                    }
                    PDataValueType::Data => {
                        let Some(current) = &mut storing else { return End::Aborted("data_out_of_place") };
                        if value.presentation_context_id != current.context {
                            return End::Aborted("context_changed");
                        }
                        self.on_data(current, &value.data);
                        value.is_last
                    }
                };
                if done
                    && let Some(finished) = storing.take()
                    && let Err(end) = self.finish(peer, finished).await
                {
                    return end;
                }
            }
        }
    }

    async fn on_command(
        &mut self,
        peer: &mut Peer,
        command: Command,
        context: u8,
    ) -> Result<Option<Storing>, End> {
        let negotiated = peer
            .presentation_contexts()
            .iter()
            .find(|c| c.id == context && c.reason == PresentationContextResultReason::Acceptance)
            .map(|c| {
                (
                    c.abstract_syntax.trim_end_matches(['\0', ' ']).to_owned(),
                    c.transfer_syntax.trim_end_matches(['\0', ' ']).to_owned(),
                )
            });
        let Some((class, transfer_syntax)) = negotiated else { return Err(End::Aborted("unknown_context")) };
        match command.field {
            C_ECHO_RQ => {
                self.answer(peer, &command, context, Status::SUCCESS, "").await?;
                Ok(None)
            }
            C_STORE_RQ if command.has_data_set => {
                let (incoming, refusal) = match self.begin(&command, &class, &transfer_syntax) {
                    Ok(incoming) => (Some(incoming), None),
                    Err(refusal) => (None, Some(refusal)),
                };
                Ok(Some(Storing { command, context, incoming, buffer: Vec::new(), refusal }))
            }
            C_STORE_RQ => {
                self.answer(peer, &command, context, Status::CANNOT_UNDERSTAND, "no data set follows")
                    .await?;
                Ok(None)
            }
            _ if !command.has_data_set => {
                self.answer(
                    peer,
                    &command,
                    context,
                    Status::UNRECOGNIZED_OPERATION,
                    "C-STORE and C-ECHO only",
                )
                .await?;
                Ok(None)
            }
            _ => {
                let refusal = Some((Status::UNRECOGNIZED_OPERATION, "C-STORE and C-ECHO only".to_owned()));
                Ok(Some(Storing { command, context, incoming: None, buffer: Vec::new(), refusal }))
            }
        }
    }

    fn begin(
        &self,
        command: &Command,
        class: &str,
        transfer_syntax: &str,
    ) -> Result<Incoming, (Status, String)> {
        if command.sop_class != class || class == syntax::VERIFICATION {
            return Err((
                Status::SOP_CLASS_NOT_SUPPORTED,
                "SOP class differs from the presentation context".into(),
            ));
        }
        let sop = SopInstanceUid::parse(&command.sop_instance)
            .map_err(|e| (Status::INVALID_SOP_INSTANCE, e.to_string()))?;
        if self.n_bytes >= self.shared.config.association_bytes_max {
            return Err((Status::OUT_OF_RESOURCES, "too many bytes on this association".into()));
        }
        let meta = FileMeta {
            sop_class: class.to_owned(),
            sop,
            transfer_syntax: transfer_syntax.to_owned(),
            calling: self.calling.clone(),
            is_image: syntax::IMAGES.contains(&class),
        };
        tokio::task::block_in_place(|| self.shared.spool.begin(meta)).map_err(|e| refusal(&e))
    }

    fn on_data(&mut self, storing: &mut Storing, bytes: &[u8]) {
        self.n_bytes += bytes.len() as u64;
        if storing.refusal.is_some() {
            return;
        }
        storing.buffer.extend_from_slice(bytes);
        if storing.buffer.len() >= WRITE_BYTES {
            flush(storing);
        }
    }

    async fn finish(&mut self, peer: &mut Peer, mut storing: Storing) -> Result<(), End> {
        flush(&mut storing);
        let stored = match (storing.refusal.take(), storing.incoming.take()) {
            (None, Some(incoming)) => {
                tokio::task::block_in_place(|| incoming.commit()).map_err(|e| refusal(&e))
            }
            (Some(refused), _) => Err(refused),
            (None, None) => Err((Status::CANNOT_UNDERSTAND, "nothing to store".into())),
        };
        let (status, comment) = match stored {
            Ok(stored) => {
                self.n_stored += 1;
                self.tell(stored);
                (Status::SUCCESS, String::new())
            }
            Err((status, comment)) => {
                log::warn!(
                    event = "store_refused", association = self.number, status = format!("{:04X}", status.0);
                    "instance refused: {comment}"
                );
                (status, comment)
            }
        };
        self.answer(peer, &storing.command, storing.context, status, &comment).await
    }

    fn tell(&self, stored: Stored) {
        match stored {
            Stored::New(instance) | Stored::Same(instance) => {
                self.shared.events.offer(Event::Stored { association: self.number, instance });
            }
            Stored::Conflict(instance) => {
                log::warn!(event = "conflicting_duplicate", association = self.number; "same UID, other content: quarantined");
                let (series, sop) = (instance.header.series.clone(), instance.header.sop.clone());
                self.shared.events.offer(Event::Conflict { series, sop });
            }
            Stored::Aside => {
                log::info!(event = "set_aside", association = self.number; "not an image we read")
            }
        }
    }

    /// One PDU, one write: split responses meet Nagle and delayed ACK at 40 ms a piece.
    async fn answer(
        &self,
        peer: &mut Peer,
        command: &Command,
        context: u8,
        status: Status,
        comment: &str,
    ) -> Result<(), End> {
        let data = command.response(status, comment);
        let value = PDataValue {
            presentation_context_id: context,
            value_type: PDataValueType::Command,
            is_last: true,
            data,
        };
        peer.send(&Pdu::PData { data: vec![value] }).await.map_err(|_| End::Aborted("connection_lost"))
    }
}

/// Hands the buffer to the disk; a failure becomes the refusal that the sender gets at the end.
fn flush(storing: &mut Storing) {
    if let (Some(incoming), false) = (&mut storing.incoming, storing.buffer.is_empty()) {
        let written = tokio::task::block_in_place(|| incoming.write(&storing.buffer));
        storing.buffer.clear();
        if let Err(error) = written {
            storing.refusal = Some(refusal(&error));
            storing.incoming = None;
        }
    }
}

/// Each way to fail has its status (PS3.4 table B.2-1) and a comment without patient text.
fn refusal(error: &StoreError) -> (Status, String) {
    match error {
        StoreError::DiskLow => (Status::OUT_OF_RESOURCES, "disk space is low".into()),
        StoreError::TooLarge { limit } => {
            (Status::OUT_OF_RESOURCES, format!("instance exceeds {limit} bytes"))
        }
        StoreError::Header(source) => (Status::CANNOT_UNDERSTAND, source.to_string()),
        StoreError::Mismatch { attribute } => {
            (Status::DATA_SET_MISMATCH, format!("{attribute} differs from the command"))
        }
        StoreError::Io(source) => (Status::OUT_OF_RESOURCES, format!("storage failed: {}", source.kind())),
    }
}
