//! One association: negotiate, then commands until it ends.
//!
//! Memory is bounded by the largest PDU plus one write buffer; time by handshake, per-PDU and total limits. A refused
//! data set is read to its end and thrown away, so that the sender gets a status and the association lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dicom_ul::pdu::{self, AssociationRQ};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::admit::{self, Admission};
use super::dimse::{C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, COMMAND_BYTES_MAX, Command, Status};
use super::negotiate::{self, Context, Negotiated};
use super::upper::{Link, Pdu, Rejection, Stream, UpperError};
use super::{Event, Events, Shared, Titles, refused, syntax};
use crate::config;
use crate::dicom::SopInstanceUid;
use crate::spool::{FileMeta, Incoming, StoreError, Stored};

/// Bytes collected before they are handed to the disk.
const WRITE_BYTES: usize = 512 << 10;

/// A connection that was let in and has not said anything yet.
pub(super) struct Guest {
    pub socket: TcpStream,
    pub peer: SocketAddr,
    /// What it has to speak below DICOM, if it came to that listener.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub number: u64,
    /// Without one it is only told to come back later.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Serves one connection from accept to close.
pub(super) async fn run(shared: &Shared, guest: Guest, mut shutdown: watch::Receiver<bool>) {
    let Guest { socket, peer, tls, number, permit } = guest;
    let config = &shared.config;
    let _ = socket.set_nodelay(true);
    let handshake = Duration::from_millis(config.handshake_timeout_ms);
    let is_secure = tls.is_some();
    let Some(_permit) = permit else {
        refused(peer, &Refusal { reason: "too_many", ..Refusal::default() });
        let _ = tokio::time::timeout(handshake, async {
            reject_transient(&mut connect(config, socket, tls).await?).await.map_err(Refusal::from)
        })
        .await;
        return;
    };
    // TLS and A-ASSOCIATE together: neither may outlast the limit.
    let established = tokio::time::timeout(handshake, async {
        let mut link = connect(config, socket, tls).await?;
        Ok((establish(config, &mut link, is_secure).await?, link))
    });
    let timed_out = Refusal { reason: "handshake_timeout", ..Refusal::default() };
    let (Established { calling, contexts }, mut link) = match established.await.unwrap_or(Err(timed_out)) {
        Ok(established) => established,
        Err(refusal) => return refused(peer, &refusal),
    };
    log::info!(event = "association_opened", association = number, calling = calling.as_str(); "association accepted");
    shared.events.offer(Event::Opened { association: number });
    let mut opened = Opened { events: &shared.events, association: number, orderly: false };
    let total = Duration::from_millis(config.total_timeout_ms);
    let mut session = Session { shared, number, calling, contexts, n_bytes: 0, n_stored: 0 };
    let ended = tokio::time::timeout(total, session.serve(&mut link, &mut shutdown)).await;
    let (orderly, why) = match ended {
        Ok(End::Released) => (true, "released"),
        Ok(End::Aborted(why)) => (false, why),
        Err(_) => (false, "total_timeout"),
    };
    if !orderly && why != "peer_aborted" {
        let _ = link.abort().await;
    }
    log::info!(event = "association_closed", association = number, stored = session.n_stored, end = why; "association ended");
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

/// Speaks TLS where the listener does.
async fn connect(
    config: &config::Receive,
    socket: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<Link, Refusal> {
    let stream: Box<dyn Stream> = match tls {
        None => Box::new(socket),
        Some(tls) => match tokio_rustls::TlsAcceptor::from(tls).accept(socket).await {
            Ok(stream) => Box::new(stream),
            Err(error) => {
                return Err(Refusal {
                    reason: "tls_failed",
                    detail: error.to_string(),
                    ..Refusal::default()
                });
            }
        },
    };
    Ok(Link::new(stream, config.pdu_bytes_max, Duration::from_millis(config.idle_timeout_ms)))
}

/// "Come back later", once the request is in.
async fn reject_transient(link: &mut Link) -> Result<(), UpperError> {
    link.association_request().await?;
    link.reject(Rejection::LOCAL_LIMIT).await
}

/// An association that was accepted.
pub(super) struct Established {
    /// AE title of the peer.
    pub calling: String,
    /// What may be spoken on it.
    pub contexts: Vec<Context>,
}

/// One that was not, and the peer has been told.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    pub reason: &'static str,
    /// What the TLS library says of it; it knows no patient.
    pub detail: String,
    pub titles: Titles,
}

impl From<UpperError> for Refusal {
    fn from(error: UpperError) -> Self {
        Refusal { reason: error.reason(), ..Refusal::default() }
    }
}

/// Takes the request, judges it, answers it.
pub(super) async fn establish(
    config: &config::Receive,
    link: &mut Link,
    is_secure: bool,
) -> Result<Established, Refusal> {
    let request = match link.association_request().await {
        Ok(request) => request,
        Err(error) => {
            // Nobody is there to read an A-ABORT, or speaks no DICOM.
            if !matches!(error, UpperError::Lost(_) | UpperError::TlsOnPlaintext) {
                let _ = link.abort().await;
            }
            return Err(error.into());
        }
    };
    if let Some((rejection, reason)) = judge(config, &request, is_secure) {
        let titles = Titles::of(&request);
        let _ = link.reject(rejection).await;
        return Err(Refusal { reason, titles, ..Refusal::default() });
    }
    let negotiated = negotiate::negotiate(&request, syntax::is_offered);
    let answer = negotiate::answer(&request, &negotiated, config.pdu_bytes_max);
    let Negotiated { contexts, peer_pdu_bytes_max, .. } = negotiated;
    link.limit_sending(peer_pdu_bytes_max);
    link.send_association(&pdu::Pdu::AssociationAC(answer)).await?;
    Ok(Established { calling: request.calling_ae_title.trim().to_owned(), contexts })
}

/// Why a request is rejected, in the standard's words and in the journal's.
fn judge(
    config: &config::Receive,
    request: &AssociationRQ,
    is_secure: bool,
) -> Option<(Rejection, &'static str)> {
    if request.protocol_version & 1 == 0 {
        return Some((Rejection::PROTOCOL_VERSION, "protocol_version"));
    }
    if request.application_context_name.trim_end_matches(['\0', ' ']) != negotiate::APPLICATION_CONTEXT {
        return Some((Rejection::APPLICATION_CONTEXT, "application_context"));
    }
    match admit::association(&request.calling_ae_title, &request.called_ae_title, is_secure, config) {
        Admission::Accept => None,
        Admission::UnknownCalling => Some((Rejection::CALLING, "unknown_calling")),
        Admission::UnknownCalled => Some((Rejection::CALLED, "unknown_called")),
        Admission::PlaintextRefused => Some((Rejection::NO_REASON, "plaintext_refused")),
    }
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
    contexts: Vec<Context>,
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
    async fn serve(&mut self, link: &mut Link, shutdown: &mut watch::Receiver<bool>) -> End {
        let mut command_bytes: Vec<u8> = Vec::new();
        let mut storing: Option<Storing> = None;
        loop {
            // Between two instances a drain may end the association; what was acknowledged is safe.
            let idle = storing.is_none() && command_bytes.is_empty();
            let pdu = tokio::select! {
                pdu = link.receive() => pdu,
                _ = shutdown.changed(), if idle => return End::Aborted("shutting_down"),
            };
            let values = match pdu {
                Ok(Pdu::Data(values)) => values,
                Ok(Pdu::ReleaseRequest) => {
                    let _ = link.send_release_response().await;
                    return End::Released;
                }
                Ok(Pdu::Abort) => return End::Aborted("peer_aborted"),
                Ok(Pdu::ReleaseResponse) => return End::Aborted("unexpected_pdu"),
                Err(error) => return End::Aborted(error.reason()),
            };
            for value in values {
                let done = match value.is_command {
                    true => {
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
                        match self.on_command(link, command, value.context).await {
                            Ok(next) => storing = next,
                            Err(end) => return end,
                        }
                        continue;
                    }
                    false => {
                        let Some(current) = &mut storing else { return End::Aborted("data_out_of_place") };
                        if value.context != current.context {
                            return End::Aborted("context_changed");
                        }
                        self.on_data(current, &value.data);
                        value.is_last
                    }
                };
                if done
                    && let Some(finished) = storing.take()
                    && let Err(end) = self.finish(link, finished).await
                {
                    return end;
                }
            }
        }
    }

    async fn on_command(
        &mut self,
        link: &mut Link,
        command: Command,
        context: u8,
    ) -> Result<Option<Storing>, End> {
        let Some(negotiated) = self.contexts.iter().find(|c| c.id == context) else {
            return Err(End::Aborted("unknown_context"));
        };
        match command.field {
            // Nothing of ours takes long enough to be cancelled; there is no response to it (PS3.7 9.3.2.3).
            C_CANCEL_RQ => Ok(None),
            C_ECHO_RQ => {
                self.answer(link, &command, context, Status::SUCCESS, "").await?;
                Ok(None)
            }
            C_STORE_RQ if command.has_data_set => {
                let (incoming, refusal) = match self.begin(&command, negotiated) {
                    Ok(incoming) => (Some(incoming), None),
                    Err(refusal) => (None, Some(refusal)),
                };
                Ok(Some(Storing { command, context, incoming, buffer: Vec::new(), refusal }))
            }
            C_STORE_RQ => {
                self.answer(link, &command, context, Status::CANNOT_UNDERSTAND, "no data set follows")
                    .await?;
                Ok(None)
            }
            _ if !command.has_data_set => {
                self.answer(
                    link,
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

    fn begin(&self, command: &Command, negotiated: &Context) -> Result<Incoming, (Status, String)> {
        let class = negotiated.abstract_syntax.as_str();
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
            transfer_syntax: negotiated.transfer_syntax.clone(),
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

    async fn finish(&mut self, link: &mut Link, mut storing: Storing) -> Result<(), End> {
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
        self.answer(link, &storing.command, storing.context, status, &comment).await
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

    async fn answer(
        &self,
        link: &mut Link,
        command: &Command,
        context: u8,
        status: Status,
        comment: &str,
    ) -> Result<(), End> {
        let response = command.response(status, comment);
        link.send_message(context, &response, None).await.map_err(|e| End::Aborted(e.reason()))
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
