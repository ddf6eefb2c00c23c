//! The control socket: `ichd status` and `ichd alert` ask the running daemon. One JSON line each way, mode 0600: who
//! may open it is who runs the daemon, and root.

pub mod desk;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::alert::document::{Heartbeat, Status, Update};
use crate::alert::stations::{StationView, Stations};
use crate::ledger::alerts::Silence;
use crate::ledger::proofs::Proof;
use crate::ledger::{Ledger, LedgerError};
use crate::proof::Wanted;

const REQUEST_BYTES_MAX: u64 = 16 << 10;
const IDLE: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: usize = 16;

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "command", deny_unknown_fields)]
pub enum Request {
    /// How things stand.
    Status,
    /// A proof of life, now; answered when it has ended.
    Proof,
    /// Mutes the sound of alerts; never the record.
    Silence {
        /// `silence` or `maintenance`.
        kind: String,
        /// Who asks.
        author: String,
        /// Why.
        reason: String,
        /// For how long.
        minutes: u64,
    },
    /// Ends every silence.
    EndSilences {
        /// Who asks.
        author: String,
    },
    /// `ichd update` says how far it is.
    Update {
        /// What everybody may know of it.
        update: Update,
    },
}

/// How things stand.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Standing {
    /// The retained status document.
    pub status: Status,
    /// The last heartbeat.
    pub heartbeat: Heartbeat,
    /// Stations, as the broker tells.
    pub stations: Vec<serde_json::Value>,
    /// The last proof of life that ended.
    pub last_proof: Option<Proof>,
    /// A silence or maintenance window that is on.
    pub silence: Option<Silence>,
}

/// The answer: one of the fields is set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Answer {
    /// To `status`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<Box<Standing>>,
    /// To `proof`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// To `silence`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the control socket reaches.
#[derive(Clone)]
pub struct Control {
    /// Alerts, proofs, silences.
    pub ledger: Arc<Ledger>,
    /// Who listens.
    pub stations: Stations,
    /// The retained status document.
    pub status: watch::Sender<Status>,
    /// The last heartbeat.
    pub heartbeat: watch::Receiver<Heartbeat>,
    /// To the prover.
    pub proof_wanted: mpsc::Sender<Wanted>,
    /// Wakes the publisher.
    pub wake: Arc<Notify>,
}

/// Where the socket lies.
pub fn path(state_directory: &Path) -> PathBuf {
    state_directory.join("control.sock")
}

/// Binds the socket and serves it until shutdown. The state directory's lock says that nobody else does.
pub fn bind(
    state_directory: &Path,
    control: Control,
    shutdown: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let path = path(state_directory);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(tokio::spawn(serve(listener, control, shutdown)))
}

async fn serve(listener: UnixListener, control: Control, mut shutdown: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    let control = control.clone();
                    connections.spawn(async move { control.converse(stream).await });
                }
                Ok(_) => {}
                Err(error) => {
                    log::warn!(event = "control_failed"; "control socket: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = shutdown.changed() => return,
        }
    }
}

impl Control {
    async fn converse(self, stream: UnixStream) {
        let (read, mut write) = stream.into_split();
        let mut line = String::new();
        let mut reader = BufReader::new(read).take(REQUEST_BYTES_MAX);
        if !matches!(tokio::time::timeout(IDLE, reader.read_line(&mut line)).await, Ok(Ok(n)) if n > 0) {
            return;
        }
        let answer = match serde_json::from_str(&line) {
            Ok(request) => self.answer(request).await,
            Err(error) => Err(format!("not a request: {error}")),
        };
        let answer = answer.unwrap_or_else(|error| Answer { error: Some(error), ..Answer::default() });
        let mut text = serde_json::to_string(&answer).unwrap_or_default();
        text.push('\n');
        let _ = tokio::time::timeout(IDLE, write.write_all(text.as_bytes())).await;
    }

    async fn answer(&self, request: Request) -> Result<Answer, String> {
        let said = |e: LedgerError| crate::chain(&e);
        match request {
            Request::Status => {
                let standing = tokio::task::block_in_place(|| self.standing()).map_err(said)?;
                Ok(Answer { standing: Some(Box::new(standing)), ..Answer::default() })
            }
            Request::Proof => {
                let (tx, rx) = oneshot::channel();
                self.proof_wanted
                    .try_send(tx)
                    .map_err(|_| "a proof of life is running already".to_owned())?;
                let proof = rx.await.map_err(|_| "the daemon is stopping".to_owned())??;
                Ok(Answer { proof: Some(proof), ..Answer::default() })
            }
            Request::Silence { kind, author, reason, minutes } => {
                if author.trim().is_empty() || reason.trim().is_empty() {
                    return Err("a silence needs an author and a reason".into());
                }
                if !matches!(kind.as_str(), "silence" | "maintenance") || !(1..=1440).contains(&minutes) {
                    return Err("a silence or maintenance window lasts 1 to 1440 minutes".into());
                }
                let begin = || self.ledger.silence(&kind, author.trim(), reason.trim(), minutes);
                let silence = tokio::task::block_in_place(begin).map_err(said)?;
                self.wake.notify_one();
                Ok(Answer { silence: Some(silence), ..Answer::default() })
            }
            Request::EndSilences { author } => {
                tokio::task::block_in_place(|| self.ledger.end_silences(author.trim())).map_err(said)?;
                self.wake.notify_one();
                Ok(Answer::default())
            }
            Request::Update { update } => {
                tokio::task::block_in_place(|| self.ledger.note_update(&update)).map_err(said)?;
                self.status.send_modify(|status| status.update = Some(update));
                self.wake.notify_one();
                Ok(Answer::default())
            }
        }
    }

    fn standing(&self) -> Result<Standing, LedgerError> {
        let views = self.stations.list();
        let json = |view: &StationView| serde_json::to_value(view).map_err(LedgerError::Document);
        Ok(Standing {
            status: self.status.borrow().clone(),
            heartbeat: self.heartbeat.borrow().clone(),
            stations: views.iter().map(json).collect::<Result<_, _>>()?,
            last_proof: self.ledger.last_proof()?,
            silence: self.ledger.silenced()?,
        })
    }
}

/// Asks a running daemon; blocks until it has answered.
pub fn ask(state_directory: &Path, request: &Request) -> io::Result<Answer> {
    ask_within(state_directory, request, None)
}

/// Asks a running daemon; blocks no longer than `limit`.
pub fn ask_within(state_directory: &Path, request: &Request, limit: Option<Duration>) -> io::Result<Answer> {
    use std::io::{BufRead, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(path(state_directory))?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    let mut line = serde_json::to_string(request).map_err(io::Error::other)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    let mut answer = String::new();
    io::BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer).map_err(io::Error::other)
}
