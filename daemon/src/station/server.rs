//! The HTTPS listener. Plain HTTP only on loopback; where it leaves the box, a browser shows a certificate of the
//! site's CA unless the configuration says that anybody may load the page.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::IF_NONE_MATCH;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::pages::{Body, Pages};
use crate::config::Config;
use crate::health::Pulse;
use crate::tls::{self, TlsError};

/// A ward has some tens of stations, and each holds a connection only while it loads.
const CONNECTIONS_MAX: usize = 256;
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
const HEADERS_MAX: Duration = Duration::from_secs(5);
/// However slow the network, the page is on the station by then.
const CONNECTION_MAX: Duration = Duration::from_secs(120);
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Stations reload by themselves; nobody waits for them at shutdown.
const DRAIN_MAX: Duration = Duration::from_millis(500);

/// Why the page cannot be served; exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum StationError {
    /// Certificates refused.
    #[error("station.tls")]
    Tls(#[source] TlsError),
    /// The port could not be bound.
    #[error("failed to listen on {address} (station.listen)")]
    Bind {
        /// Configured address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A page that is bound and not yet served.
#[derive(Debug)]
pub struct Page {
    /// Where it listens.
    pub address: SocketAddr,
    listener: TcpListener,
    tls: Option<tls::Server>,
    pages: Arc<Pages>,
}

/// Loads certificates and binds; `None` where the configuration wants no page.
pub async fn bind(config: &Config) -> Result<Option<Page>, StationError> {
    let Some(address) = config.station.listen else { return Ok(None) };
    let files = config.station.files();
    let tls = files.map(tls::Server::load).transpose().map_err(StationError::Tls)?;
    let bind = |source| StationError::Bind { address, source };
    let listener = TcpListener::bind(address).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let pages = Arc::new(Pages::new(config));
    Ok(Some(Page { address, listener, tls, pages }))
}

impl Page {
    /// Serves until `shutdown` turns true.
    pub async fn serve(self, pulse: Pulse, mut shutdown: watch::Receiver<bool>) {
        let mut connections = JoinSet::new();
        while !*shutdown.borrow() {
            pulse.beat();
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    // Over the limit the connection is closed; the service worker shows the page all the same.
                    Ok((socket, _)) if connections.len() < CONNECTIONS_MAX => {
                        let tls = self.tls.as_ref().map(|tls| TlsAcceptor::from(tls.config()));
                        connections.spawn(connection(socket, tls, self.pages.clone()));
                    }
                    Ok(_) => log::warn!(event = "station_flood"; "too many connections to the station page"),
                    // Out of file descriptors and the like: others may end meanwhile; never spin.
                    Err(error) => {
                        log::warn!(event = "accept_failed"; "connection could not be accepted: {error}");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = connections.join_next(), if !connections.is_empty() => {
                    if ended.is_err() {
                        log::error!(event = "station_crashed"; "a connection ended in a panic");
                    }
                }
                _ = shutdown.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        drop(self.listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(DRAIN_MAX, drained).await;
    }
}

/// A peer that is slow, rude or gone costs a permit for a bounded time and nothing else.
async fn connection(socket: TcpStream, tls: Option<TlsAcceptor>, pages: Arc<Pages>) {
    let served = async {
        match tls {
            None => http(socket, pages).await,
            Some(tls) => {
                if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE_MAX, tls.accept(socket)).await {
                    http(stream, pages).await;
                }
            }
        }
    };
    let _ = tokio::time::timeout(CONNECTION_MAX, served).await;
}

async fn http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, pages: Arc<Pages>) {
    let service = service_fn(move |request| {
        let response = respond(&pages, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_MAX).max_buf_size(HEADER_BYTES_MAX);
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

fn respond(pages: &Pages, request: &hyper::Request<Incoming>) -> hyper::Response<Full<Bytes>> {
    let none_match = request.headers().get(IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let answer = pages.answer(request.method().as_str(), request.uri().path(), none_match);
    let mut builder = hyper::Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        builder = builder.header(name, value);
    }
    let body = match answer.body {
        Body::Empty => Bytes::new(),
        Body::Embedded(bytes) => Bytes::from_static(bytes),
        Body::Made(text) => Bytes::from(text),
    };
    builder.body(Full::new(body)).unwrap_or_else(|_| {
        // Cannot be: names are constants and the configuration allows no value that is no header.
        let mut response = hyper::Response::new(Full::default());
        *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}
