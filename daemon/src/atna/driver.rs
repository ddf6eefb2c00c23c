//! Takes what waits to the repository: a connection for each batch, and a row goes only when the repository has closed it.
//!
//! Syslog knows no receipt (RFC 5425). A receiver that has read everything answers our close_notify with its own end; one
//! that died in between does not, or resets the connection, and then the batch is sent again: at least once, in order.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::Config;
use crate::ledger::Ledger;

const LOOK: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// From TCP to the end of the connection.
const ATTEMPT: Duration = Duration::from_secs(30);
/// Messages in one connection.
const BATCH_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("certificates cannot be used")]
    Tls(#[source] crate::tls::TlsError),
    #[error("`atna.address` names no host")]
    Address,
    #[error("connection failed")]
    Io(#[from] std::io::Error),
    #[error("no end within {ATTEMPT:?}")]
    Timeout,
}

/// Runs until shutdown, and sends what is there once more then: the stop of the application is among it.
pub async fn run(config: Option<Config>, ledger: Arc<Ledger>, mut shutdown: watch::Receiver<bool>) {
    let Some(config) = config else {
        let _ = shutdown.wait_for(|stop| *stop).await;
        return;
    };
    let mut wait = LOOK;
    let mut is_away = false;
    loop {
        let stopping = *shutdown.borrow();
        match round(&config, &ledger).await {
            Ok(0) => wait = LOOK,
            Ok(_) => {
                if std::mem::take(&mut is_away) {
                    log::info!(event = "atna_back"; "the audit record repository takes messages again");
                }
                wait = Duration::ZERO;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_away, true) {
                    log::warn!(event = "atna_away"; "audit messages wait: {}", crate::chain(&error));
                }
                wait = (wait * 2).clamp(LOOK, BACKOFF_MAX);
            }
        }
        if stopping {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
    }
}

/// One batch; how many messages the repository has now.
async fn round(config: &Config, ledger: &Ledger) -> Result<usize, SendError> {
    let waiting = tokio::task::block_in_place(|| ledger.atna_waiting(BATCH_MAX)).unwrap_or_else(|error| {
        log::error!(event = "ledger_failed"; "waiting audit messages could not be read: {error}");
        Vec::new()
    });
    let Some((last, _)) = waiting.last() else { return Ok(0) };
    let sent = tokio::time::timeout(ATTEMPT, deliver(config, waiting.iter().map(|(_, m)| m.as_str())));
    sent.await.unwrap_or(Err(SendError::Timeout))?;
    if let Err(error) = tokio::task::block_in_place(|| ledger.atna_done(*last)) {
        // They are sent again, which a repository has to bear.
        log::error!(event = "ledger_failed"; "sent audit messages could not be cleared: {error}");
    }
    Ok(waiting.len())
}

async fn deliver(config: &Config, messages: impl Iterator<Item = &str>) -> Result<(), SendError> {
    let client = tokio::task::block_in_place(|| config.files().client_config()).map_err(SendError::Tls)?;
    let host = config.address.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|_| SendError::Address)?;
    let socket = TcpStream::connect(&config.address).await?;
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, socket).await?;
    let mut frames = Vec::new();
    for message in messages {
        // RFC 5425 4.3: the length in bytes, a space, the message.
        frames.extend(format!("{} ", message.len()).as_bytes());
        frames.extend(message.as_bytes());
    }
    stream.write_all(&frames).await?;
    stream.shutdown().await?;
    let mut rest = [0; 256];
    loop {
        match stream.read(&mut rest).await {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            // Closed without a close_notify of its own; everything before it was read.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
