//! One association: negotiate, then commands until it ends.
//!
//! Served by one thread, which the disk may keep waiting. Memory is bounded by the largest PDU plus one chunk of the
//! spool; time by handshake, per-PDU and total limits. A refused data set is read to its end and thrown away, so that the
//! sender gets a status and the association lives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dicom_ul::pdu::{self, AssociationRQ};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, oneshot, watch};

use super::admit::{self, Admission};
use super::dimse::{
    self, C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, COMMAND_BYTES_MAX, Command, N_ACTION_RQ, N_EVENT_REPORT_RSP,
    Status,
};
use super::negotiate::{self, Context, Negotiated};
use super::upper::{self, Link, Pdu, Rejection, Stream, UpperError};
use super::{Event, Events, Shared, Titles, address_of, refused, syntax};
use crate::atna::{Node, Transfer};
use crate::commit::{self, Commitments, Held, message};
use crate::config;
use crate::dicom::nested::Encoding;
use crate::dicom::{AeTitle, SliceHeader, SopInstanceUid, StudyUid};
use crate::evidence::auditor;
use crate::spool::{FileMeta, Incoming, StoreError, Stored};
use crate::tls::Holder;

/// A connection that was let in and has not said anything yet.
pub(super) struct Guest {
    /// Non-blocking, and nobody's yet.
    pub socket: std::net::TcpStream,
    pub peer: SocketAddr,
    /// It comes from this very machine.
    pub is_own: bool,
    /// What it has to speak below DICOM, if it came to that listener.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    pub number: u64,
    /// Without one it is only told to come back later.
    pub permit: Option<OwnedSemaphorePermit>,
}

/// Refused SOP classes that are named.
const CLASSES_TOLD_MAX: usize = 8;
/// Studies of one association that are told the auditor at once.
const STUDIES_MAX: usize = 64;
/// Error Comment of what nobody here does.
const UNKNOWN: &str = "C-STORE, C-ECHO and Storage Commitment only";
/// The bit of Command Field that makes a response.
const RESPONSE: u16 = 0x8000;
/// Which way a request came.
#[derive(Debug, Clone)]
pub(super) struct Way {
    /// Over mutual TLS.
    pub is_secure: bool,
    /// Whose certificate was shown.
    pub holder: Option<Holder>,
    /// From this very machine.
    pub is_own: bool,
}

/// Serves one connection on a thread of its own, so that the disk may keep it waiting and nobody else, and no slice is
/// handed from thread to thread. Ends with the association; an error says that it did not end by itself.
pub(super) fn spawn(
    shared: Arc<Shared>,
    guest: Guest,
    shutdown: watch::Receiver<bool>,
) -> std::io::Result<oneshot::Receiver<()>> {
    let (done, ended) = oneshot::channel();
    let serve = move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return log::error!(event = "accept_failed"; "association not served: {error}"),
        };
        runtime.block_on(run(&shared, guest, shutdown));
        let _ = done.send(());
    };
    std::thread::Builder::new().name("ichd-receive".into()).spawn(serve)?;
    Ok(ended)
}

/// From accept to close.
async fn run(shared: &Shared, guest: Guest, mut shutdown: watch::Receiver<bool>) {
    let Guest { socket, peer, is_own, tls, number, permit } = guest;
    let config = &shared.config;
    let socket = match TcpStream::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return log::error!(event = "accept_failed"; "association not served: {error}"),
    };
    let _ = socket.set_nodelay(true);
    let handshake = Duration::from_millis(config.handshake_timeout_ms);
    let is_secure = tls.is_some();
    let Some(_permit) = permit else {
        refused(&shared.auditor, peer, &Refusal { reason: upper::TOO_MANY.reason, ..Refusal::default() });
        let _ = tokio::time::timeout(handshake, async {
            reject_transient(&mut connect(config, socket, tls).await?.0).await.map_err(Refusal::from)
        })
        .await;
        return;
    };
    // TLS and A-ASSOCIATE together: neither may outlast the limit.
    let established = tokio::time::timeout(handshake, async {
        let (mut link, holder) = connect(config, socket, tls).await?;
        let way = Way { is_secure, holder, is_own };
        Ok((establish(config, shared.commitments.as_deref(), &mut link, way).await?, link))
    });
    let timed_out = Refusal { reason: "handshake_timeout", ..Refusal::default() };
    let (Established { calling, contexts, refused: classes }, mut link) =
        match established.await.unwrap_or(Err(timed_out)) {
            Ok(established) => established,
            Err(refusal) => return refused(&shared.auditor, peer, &refusal),
        };
    log::info!(event = "association_opened", association = number, calling = calling.as_str(); "association accepted");
    let mut opened = Opened { events: &shared.events, association: number, orderly: false };
    let total = Duration::from_millis(config.total_timeout_ms);
    let mut session = Session {
        shared,
        number,
        peer,
        transfers: BTreeMap::new(),
        calling,
        contexts,
        n_bytes: 0,
        n_stored: 0,
        reports: Vec::new(),
        next_message_id: 1,
    };
    for (reason, classes) in ["sop_class", "transfer_syntax"].into_iter().zip(&classes) {
        if !classes.is_empty() {
            let some: Vec<&str> = classes.iter().take(CLASSES_TOLD_MAX).map(String::as_str).collect();
            log::info!(
                event = "context_refused", association = number, reason = reason, count = classes.len();
                "not accepted: {}", some.join(" ")
            );
            session.refused("context_refused", reason, &some.join(" "));
        }
    }
    let ended = tokio::time::timeout(total, session.serve(&mut link, &mut shutdown)).await;
    let (orderly, why) = match ended {
        Ok(End::Released) => (true, "released"),
        Ok(End::Aborted(why)) => (false, why),
        // A scanner that keeps its association for the next image: nothing was asked, so nothing is refused.
        Ok(End::Rested) => (false, "idle_timeout"),
        Err(_) => (false, "total_timeout"),
    };
    let has_rested = matches!(ended, Ok(End::Rested));
    if !orderly && why != "peer_aborted" {
        let _ = link.abort().await;
        if !has_rested && !matches!(why, "shutting_down" | "connection_lost") {
            session.refused("association_aborted", why, "");
        }
    }
    session.tell_transfers();
    log::info!(event = "association_closed", association = number, stored = session.n_stored, end = why; "association ended");
    opened.orderly = orderly;
}

/// An association that was accepted; its end is announced, even if that end is a panic.
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

/// Speaks TLS where the listener does; then it is known whose certificate was shown.
async fn connect(
    config: &config::Receive,
    socket: TcpStream,
    tls: Option<Arc<rustls::ServerConfig>>,
) -> Result<(Link, Option<Holder>), Refusal> {
    let (stream, holder): (Box<dyn Stream>, _) = match tls {
        None => (Box::new(socket), None),
        Some(tls) => match tokio_rustls::TlsAcceptor::from(tls).accept(socket).await {
            Ok(stream) => {
                let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                let holder = shown.map(|der| Holder::of(der));
                (Box::new(stream), holder)
            }
            Err(error) => {
                return Err(Refusal {
                    reason: "tls_failed",
                    detail: error.to_string(),
                    ..Refusal::default()
                });
            }
        },
    };
    let link = Link::new(stream, config.pdu_bytes_max, Duration::from_millis(config.idle_timeout_ms));
    Ok((link, holder))
}

/// "Come back later", once the request is in.
async fn reject_transient(link: &mut Link) -> Result<(), UpperError> {
    link.association_request().await?;
    link.reject(&upper::TOO_MANY).await
}

/// An association that was accepted.
pub(super) struct Established {
    /// AE title of the peer.
    pub calling: String,
    /// What may be spoken on it.
    pub contexts: Vec<Context>,
    /// What may not: classes that are not offered, and classes in no encoding that is.
    pub refused: [BTreeSet<String>; 2],
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
    commitments: Option<&Commitments>,
    link: &mut Link,
    way: Way,
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
    if let Some(rejection) = judge(config, &request, &way) {
        let _ = link.reject(rejection).await;
        return Err(Refusal { reason: rejection.reason, titles: Titles::of(&request), ..Refusal::default() });
    }
    let calling = request.calling_ae_title.trim().to_owned();
    let negotiated = negotiate::negotiate(&request, |class| {
        syntax::is_offered(class)
            || class == commit::SOP_CLASS && commitments.is_some_and(|c| c.serves(&calling))
    });
    let answer = negotiate::answer(&request, &negotiated, config.pdu_bytes_max);
    let refused = negotiated.refused(&request);
    let Negotiated { contexts, peer_pdu_bytes_max, .. } = negotiated;
    link.limit_sending(peer_pdu_bytes_max);
    link.send_association(&pdu::Pdu::AssociationAC(answer)).await?;
    Ok(Established { calling, contexts, refused })
}

/// Whether and why a request is rejected.
fn judge(config: &config::Receive, request: &AssociationRQ, way: &Way) -> Option<&'static Rejection> {
    if request.protocol_version & 1 == 0 {
        return Some(&upper::PROTOCOL_VERSION);
    }
    if request.application_context_name.trim_end_matches(['\0', ' ']) != negotiate::APPLICATION_CONTEXT {
        return Some(&upper::APPLICATION_CONTEXT);
    }
    match admit::association(
        &request.calling_ae_title,
        &request.called_ae_title,
        way.is_secure,
        way.holder.as_ref(),
        way.is_own,
        config,
    ) {
        Admission::Accept => None,
        Admission::UnknownCalling => Some(&upper::UNKNOWN_CALLING),
        Admission::UnknownCalled => Some(&upper::UNKNOWN_CALLED),
        Admission::PlaintextRefused => Some(&upper::PLAINTEXT_REFUSED),
        Admission::CertificateMismatch => Some(&upper::CERTIFICATE_MISMATCH),
    }
}

enum End {
    Released,
    /// Nothing came for too long, between two commands.
    Rested,
    Aborted(&'static str),
}

struct Session<'a> {
    shared: &'a Shared,
    number: u64,
    peer: SocketAddr,
    /// What came in and was not told the auditor yet, by study.
    transfers: BTreeMap<StudyUid, Transfer>,
    /// AE title of the peer.
    calling: String,
    contexts: Vec<Context>,
    n_bytes: u64,
    n_stored: u64,
    /// Storage commitments reported on this association, by the message id they were reported under. What the peer has
    /// not confirmed when the association ends is delivered on another one.
    reports: Vec<(u16, Held)>,
    next_message_id: u16,
}

/// A command whose data set is arriving.
struct Receiving {
    command: Command,
    context: u8,
    body: Body,
    /// Once there is one, the rest of the data set is read and thrown away.
    refusal: Option<(Status, String)>,
}

/// What becomes of a data set.
enum Body {
    /// C-STORE: streamed to the spool.
    Store(Box<Incoming>),
    /// N-ACTION: kept, up to a limit.
    Action(Encoding, Vec<u8>),
    /// Refused, or the data set of a response: nothing.
    Nothing,
}

impl Session<'_> {
    /// Something the peer asked for was refused: into the audit log, without waiting.
    fn refused(&self, event: &'static str, reason: &str, detail: &str) {
        self.shared.auditor.refused(auditor::Refusal {
            event,
            reason: reason.into(),
            peer: address_of(self.peer),
            calling: self.calling.escape_debug().to_string(),
            called: String::new(),
            detail: detail.into(),
        });
    }

    /// A command was refused: into the journal and the audit log.
    fn command_refused(&self, command: &Command, (status, comment): &(Status, String)) {
        let is_store = command.field == C_STORE_RQ;
        let event = if is_store { "store_refused" } else { "command_refused" };
        log::warn!(
            event = event, association = self.number, field = format!("{:04X}", command.field),
            status = format!("{:04X}", status.0);
            "refused: {comment}"
        );
        self.refused(event, &format!("{:04X}", status.0), comment);
    }

    /// Counts an instance for the audit log, where somebody wants to hear of it.
    fn note_transfer(&mut self, header: &SliceHeader) {
        // A proof of life is about nobody.
        let is_proof = |title: &AeTitle| title.as_str() == self.calling;
        if !self.shared.auditor.wants_transfers()
            || self.shared.config.proof_ae_title.as_ref().is_some_and(is_proof)
        {
            return;
        }
        let transfer = self.transfers.entry(header.study.clone()).or_insert_with(|| Transfer {
            study_uid: header.study.as_str().into(),
            patient_id: header.patient_id.reveal().clone(),
            ..Transfer::default()
        });
        *transfer.instances.entry(header.sop_class.clone()).or_default() += 1;
    }

    fn tell_transfers(&mut self) {
        for (_, transfer) in std::mem::take(&mut self.transfers) {
            let from = Node { ae_title: self.calling.clone(), host: address_of(self.peer) };
            self.shared.auditor.received(transfer, from);
        }
    }

    async fn serve(&mut self, link: &mut Link, shutdown: &mut watch::Receiver<bool>) -> End {
        let mut command_bytes: Vec<u8> = Vec::new();
        let mut receiving: Option<Receiving> = None;
        loop {
            // Between two instances a drain may end the association; what was acknowledged is safe.
            let idle = receiving.is_none() && command_bytes.is_empty();
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
                Err(UpperError::Timeout) if idle && link.is_at_rest() => return End::Rested,
                Err(error) => return End::Aborted(error.reason()),
            };
            for value in values {
                let done = match value.is_command {
                    true => {
                        if receiving.is_some() || command_bytes.len() + value.data.len() > COMMAND_BYTES_MAX {
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
                            Ok(next) => receiving = next,
                            Err(end) => return end,
                        }
                        continue;
                    }
                    false => {
                        let Some(current) = &mut receiving else { return End::Aborted("data_out_of_place") };
                        if value.context != current.context {
                            return End::Aborted("context_changed");
                        }
                        self.on_data(current, &value.data);
                        value.is_last
                    }
                };
                if done
                    && let Some(finished) = receiving.take()
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
    ) -> Result<Option<Receiving>, End> {
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
                let begun = self.begin(&command, negotiated).map(|incoming| Body::Store(Box::new(incoming)));
                Ok(Some(Receiving::new(command, context, begun)))
            }
            N_ACTION_RQ if command.has_data_set => {
                let begun = begin_action(&command, negotiated).map(|of| Body::Action(of, Vec::new()));
                Ok(Some(Receiving::new(command, context, begun)))
            }
            C_STORE_RQ | N_ACTION_RQ => {
                let refusal = (Status::CANNOT_UNDERSTAND, "no data set follows".to_owned());
                self.command_refused(&command, &refusal);
                self.answer(link, &command, context, refusal.0, &refusal.1).await?;
                Ok(None)
            }
            N_EVENT_REPORT_RSP => {
                self.on_report_taken(&command);
                Ok(command.has_data_set.then(|| Receiving::new(command, context, Ok(Body::Nothing))))
            }
            // A response to nothing of ours.
            field if field & RESPONSE != 0 => Err(End::Aborted("unexpected_response")),
            _ if !command.has_data_set => {
                let refusal = (Status::UNRECOGNIZED_OPERATION, UNKNOWN.to_owned());
                self.command_refused(&command, &refusal);
                self.answer(link, &command, context, refusal.0, &refusal.1).await?;
                Ok(None)
            }
            _ => {
                let refusal = Err((Status::UNRECOGNIZED_OPERATION, UNKNOWN.to_owned()));
                Ok(Some(Receiving::new(command, context, refusal)))
            }
        }
    }

    fn begin(&self, command: &Command, negotiated: &Context) -> Result<Incoming, (Status, String)> {
        let class = negotiated.abstract_syntax.as_str();
        if command.sop_class != class || class == syntax::VERIFICATION || class == commit::SOP_CLASS {
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
        self.shared.spool.begin(meta).map_err(|e| refusal(&e))
    }

    fn on_data(&mut self, receiving: &mut Receiving, bytes: &[u8]) {
        self.n_bytes += bytes.len() as u64;
        if receiving.refusal.is_some() {
            return;
        }
        let refused = match &mut receiving.body {
            Body::Store(incoming) => incoming.write(bytes).err().map(|error| refusal(&error)),
            Body::Action(_, kept) if kept.len() + bytes.len() > message::REQUEST_BYTES_MAX => {
                Some((Status::RESOURCE_LIMITATION, "too many references".into()))
            }
            Body::Action(_, kept) => {
                kept.extend_from_slice(bytes);
                None
            }
            Body::Nothing => None,
        };
        if refused.is_some() {
            receiving.refusal = refused;
            receiving.body = Body::Nothing;
        }
    }

    async fn finish(&mut self, link: &mut Link, receiving: Receiving) -> Result<(), End> {
        let Receiving { command, context, body, refusal: refused } = receiving;
        let done = match (refused, body) {
            (Some(refused), _) => Err(refused),
            (None, Body::Store(incoming)) => incoming.commit().map_err(|e| refusal(&e)).map(|stored| {
                self.n_stored += 1;
                self.tell(stored);
            }),
            (None, Body::Action(encoding, request)) => match self.commit(&request, encoding) {
                Ok(held) => {
                    self.answer(link, &command, context, Status::SUCCESS, "").await?;
                    return self.report(link, context, encoding, held).await;
                }
                Err(refused) => Err(refused),
            },
            (None, Body::Nothing) => return Ok(()),
        };
        let (status, comment) = match done {
            Ok(()) => (Status::SUCCESS, String::new()),
            Err(refusal) => {
                self.command_refused(&command, &refusal);
                refusal
            }
        };
        if self.transfers.len() >= STUDIES_MAX {
            self.tell_transfers();
        }
        self.answer(link, &command, context, status, &comment).await
    }

    /// Storage Commitment: what is in the spool, and in writing before anybody is told.
    fn commit(&self, bytes: &[u8], encoding: Encoding) -> Result<Held, (Status, String)> {
        let Some(commitments) = &self.shared.commitments else {
            return Err((Status::NO_SUCH_ACTION, "not offered".into()));
        };
        let request =
            message::parse(bytes, encoding).map_err(|e| (Status::INVALID_ARGUMENT, e.to_string()))?;
        commitments.answer(&self.calling, &request).map_err(|error| {
            log::error!(event = "commitment_failed"; "{}", crate::chain(&error));
            (Status::PROCESSING_FAILURE, error.to_string())
        })
    }

    /// N-EVENT-REPORT on the association that asked. The peer may release it instead of listening; then the answer is
    /// still held here and goes out on another association.
    async fn report(
        &mut self,
        link: &mut Link,
        context: u8,
        encoding: Encoding,
        held: Held,
    ) -> Result<(), End> {
        let message_id = self.next_message_id;
        self.next_message_id = message_id.wrapping_add(1).max(1);
        let event_type = message::event_type(&held.outcome);
        let command =
            dimse::event_report_request(commit::SOP_CLASS, commit::SOP_INSTANCE, message_id, event_type);
        let data_set = message::report(&held.outcome, encoding.explicit);
        self.reports.push((message_id, held));
        let sent = link.send_message(context, &command, Some(&data_set)).await;
        sent.map_err(|e| End::Aborted(e.reason()))
    }

    fn on_report_taken(&mut self, command: &Command) {
        let Some(at) = self.reports.iter().position(|(id, _)| *id == command.message_id) else { return };
        let (_, held) = self.reports.swap_remove(at);
        match command.status {
            Some(0) => held.delivered(),
            status => log::warn!(
                event = "commitment_undelivered", peer = self.calling.as_str(), attempts = 0;
                "storage commitment was refused with status {:04X}", status.unwrap_or_default()
            ),
        }
    }

    fn tell(&mut self, stored: Stored) {
        match stored {
            Stored::New(instance) | Stored::Same(instance) => {
                self.note_transfer(&instance.header);
                self.shared.events.offer(Event::Stored { association: self.number, instance });
            }
            Stored::Conflict(instance) => {
                log::warn!(event = "conflicting_duplicate", association = self.number; "same UID, other content: quarantined");
                let header = &instance.header;
                let (study, series) = (header.study.clone(), header.series.clone());
                self.shared.events.offer(Event::Conflict { study, series, sop: header.sop.clone() });
            }
            Stored::Aside(instance) => {
                self.note_transfer(&instance.header);
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

impl Receiving {
    fn new(command: Command, context: u8, begun: Result<Body, (Status, String)>) -> Self {
        let (body, refusal) = match begun {
            Ok(body) => (body, None),
            Err(refusal) => (Body::Nothing, Some(refusal)),
        };
        Receiving { command, context, body, refusal }
    }
}

/// Whether an N-ACTION is one that we know.
fn begin_action(command: &Command, negotiated: &Context) -> Result<Encoding, (Status, String)> {
    if command.sop_class != negotiated.abstract_syntax || negotiated.abstract_syntax != commit::SOP_CLASS {
        return Err((
            Status::SOP_CLASS_NOT_SUPPORTED,
            "SOP class differs from the presentation context".into(),
        ));
    }
    if command.sop_instance != commit::SOP_INSTANCE {
        return Err((Status::NO_SUCH_INSTANCE, "not the well-known instance".into()));
    }
    match command.action_type {
        Some(1) => Ok(Encoding::of(&negotiated.transfer_syntax)),
        _ => Err((Status::NO_SUCH_ACTION, "Request Storage Commitment only".into())),
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
