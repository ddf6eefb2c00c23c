//! Storage SCP: the scanner's side of the house.
//!
//! An association is admitted (address, count, AE titles), every C-STORE is streamed to the spool, and success is
//! answered only after the spool has synced it. What happens to an instance afterwards is nobody's business here:
//! events are offered to `assemble` without waiting, and if they do not fit, the spool itself is read again.

pub mod admit;
mod association;
pub mod dimse;
pub mod negotiate;
pub mod syntax;
pub mod upper;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::commit::Commitments;
use crate::config;
use crate::dicom::{SeriesUid, SopInstanceUid, StudyUid};
use crate::evidence::auditor::{Auditor, Refusal};
use crate::health::Pulse;
use crate::spool::{Instance, Spool};
use crate::tls;

/// Implementation Class UID, derived once from a random UUID (PS3.5 B.2).
pub const IMPLEMENTATION_CLASS_UID: &str = "2.25.207432918640751162734096177128312645391";
/// Implementation Version Name.
pub const IMPLEMENTATION_VERSION_NAME: &str = concat!("ICHD_", env!("CARGO_PKG_VERSION"));

/// What the rest of the house learns.
#[derive(Debug, Clone)]
pub enum Event {
    /// An instance is on disk and synced.
    Stored {
        /// Number of the association that carried it, unique since the start.
        association: u64,
        /// What was stored.
        instance: Instance,
    },
    /// The same SOP Instance UID came with other content.
    Conflict {
        /// Study of the one that stays.
        study: StudyUid,
        /// Its series.
        series: SeriesUid,
        /// Its UID.
        sop: SopInstanceUid,
    },
    /// An association ended.
    Released {
        /// Which one.
        association: u64,
        /// By A-RELEASE, not by abort, time-out or a lost connection.
        orderly: bool,
    },
}

/// Set when an event did not fit; `assemble` then reads the spool again.
pub type RescanWanted = Arc<AtomicBool>;

/// Where events go without ever waiting.
#[derive(Debug, Clone)]
pub struct Events {
    channel: mpsc::Sender<Event>,
    rescan_wanted: RescanWanted,
}

impl Events {
    /// Joins channel and flag.
    pub fn new(channel: mpsc::Sender<Event>, rescan_wanted: RescanWanted) -> Self {
        Events { channel, rescan_wanted }
    }

    fn offer(&self, event: Event) {
        if self.channel.try_send(event).is_err() {
            self.rescan_wanted.store(true, Ordering::Release);
        }
    }
}

/// What every association shares.
struct Shared {
    config: config::Receive,
    spool: Arc<Spool>,
    /// Storage Commitment, where a peer is offered it.
    commitments: Option<Arc<Commitments>>,
    events: Events,
    /// Who hears of refusals, and of what came in.
    auditor: Auditor,
    /// One permit for each association that may be open; given back however the association ends.
    permits: Arc<Semaphore>,
    next: AtomicU64,
}

/// The socket that systemd passed (`ichd.socket`: port 104 without a capability), if it did; it replaces
/// `receive.listen`.
pub fn passed_listener() -> std::io::Result<Option<TcpListener>> {
    let Some(listener) = listenfd::ListenFd::from_env().take_tcp_listener(0)? else { return Ok(None) };
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener).map(Some)
}

/// Associations that are open, each until its thread has ended.
type Associations = JoinSet<Result<(), oneshot::error::RecvError>>;

/// Where associations come in.
pub struct Doors {
    /// DICOM on TCP.
    pub plain: TcpListener,
    /// DICOM on mutual TLS on TCP.
    pub tls: Option<(TcpListener, tls::Server)>,
}

/// Everything the stage is wired to.
pub struct Wiring {
    /// Owner of the instances.
    pub spool: Arc<Spool>,
    /// Storage Commitment, where a peer is offered it.
    pub commitments: Option<Arc<Commitments>>,
    /// To whoever wants to know.
    pub events: Events,
    /// Hears of refusals, and of what came in.
    pub auditor: Auditor,
    /// Beats at least once a second.
    pub pulse: Pulse,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
}

/// Serves until `shutdown` turns true, then lets running associations end.
pub async fn serve(doors: Doors, config: config::Receive, wiring: Wiring) {
    let Wiring { spool, commitments, events, auditor, pulse, mut shutdown } = wiring;
    let permits = Arc::new(Semaphore::new(config.associations_max));
    let shared =
        Arc::new(Shared { config, spool, commitments, events, auditor, permits, next: AtomicU64::new(1) });
    let mut associations = Associations::new();
    while !*shutdown.borrow() {
        pulse.beat();
        tokio::select! {
            accepted = doors.accept() => match accepted {
                Ok((socket, peer, tls)) => accept(&shared, socket, peer, tls, shutdown.clone(), &mut associations),
                // Out of file descriptors and the like: others may end meanwhile; never spin.
                Err(error) => {
                    log::warn!(event = "accept_failed"; "connection could not be accepted: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = associations.join_next(), if !associations.is_empty() => {
                if !matches!(ended, Ok(Ok(()))) {
                    log::error!(event = "association_crashed"; "an association ended in a panic");
                }
            }
            _ = shutdown.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
    drop(doors);
    while associations.join_next().await.is_some() {
        pulse.beat();
    }
}

impl Doors {
    /// The next connection at either door.
    async fn accept(&self) -> std::io::Result<(TcpStream, SocketAddr, Option<Arc<rustls::ServerConfig>>)> {
        let Some((listener, server)) = &self.tls else {
            return self.plain.accept().await.map(|(socket, peer)| (socket, peer, None));
        };
        tokio::select! {
            accepted = self.plain.accept() => accepted.map(|(socket, peer)| (socket, peer, None)),
            accepted = listener.accept() => accepted.map(|(socket, peer)| (socket, peer, Some(server.config()))),
        }
    }
}

/// AE titles as a peer claimed them, made safe for the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Titles {
    calling: String,
    called: String,
}

impl Titles {
    fn of(request: &dicom_ul::pdu::AssociationRQ) -> Self {
        let safe = |title: &str| title.trim().escape_debug().to_string();
        Titles { calling: safe(&request.calling_ae_title), called: safe(&request.called_ae_title) }
    }
}

/// Whoever is turned away stands in the journal exactly once, with a stable reason, and is counted in the audit log.
fn refused(auditor: &Auditor, peer: SocketAddr, refusal: &association::Refusal) {
    let association::Refusal { reason, detail, titles } = refusal;
    log::warn!(
        event = "association_refused", reason = *reason, peer = peer.ip().to_string(),
        calling = titles.calling.as_str(), called = titles.called.as_str();
        "association refused: {reason} {detail}"
    );
    auditor.refused(Refusal {
        event: "association_refused",
        reason: (*reason).into(),
        peer: address_of(peer),
        calling: titles.calling.clone(),
        called: titles.called.clone(),
        detail: detail.clone(),
    });
}

/// As it is written down: an IPv4 peer of a dual-stack listener is an IPv4 peer.
fn address_of(peer: SocketAddr) -> String {
    peer.ip().to_canonical().to_string()
}

fn accept(
    shared: &Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    shutdown: watch::Receiver<bool>,
    associations: &mut Associations,
) {
    // Closed unread: here the socket is dropped.
    let closed =
        |reason| refused(&shared.auditor, peer, &association::Refusal { reason, ..Default::default() });
    // From this very machine, by whichever of its addresses: the only place a proof of life can come from.
    let is_own = peer.ip().is_loopback() || socket.local_addr().is_ok_and(|own| own.ip() == peer.ip());
    if !is_own && !admit::peer(peer.ip(), &shared.config) {
        return closed("unknown_address");
    }
    // Twice the limit may be waiting to be told "later".
    if associations.len() >= 2 * shared.config.associations_max {
        return closed("flood");
    }
    let permit = shared.permits.clone().try_acquire_owned().ok();
    let number = shared.next.fetch_add(1, Ordering::Relaxed);
    let spawned = socket.into_std().and_then(|socket| {
        let guest = association::Guest { socket, peer, is_own, tls, number, permit };
        association::spawn(shared.clone(), guest, shutdown)
    });
    match spawned {
        Ok(ended) => drop(associations.spawn(ended)),
        Err(error) => log::error!(event = "accept_failed"; "association not served: {error}"),
    }
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests;
