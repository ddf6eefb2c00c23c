//! Signed A/B bundles through RAUC: which slot runs, what may be installed when, and the proof that keeps a slot.
//!
//! ```text
//!  source -> RAUC checks the signature -> take? compatible, newer, did not fail here -> holds? alert or study open, window
//!     '-> RAUC writes the other slot -> holds? -> reboot -> on trial -- proof of life --> good, stays
//!                                                              '-- none within the limit --> bad, the old slot returns
//! ```
//!
//! Terms are RAUC's: slot, bundle, compatible, booted and other, mark-good. `gate`, `version` and the pages of `book` are
//! pure; `rauc` asks; `prove` keeps or leaves a slot. Deliberately absent: any of it inside the daemon, which has no right
//! to change the box. These are commands that root runs beside it; they ask it for a proof of life and tell it how far
//! they are, over its control socket, and it says so on MQTT.

pub mod book;
pub mod command;
pub mod gate;
mod prove;
mod rauc;
mod situation;
pub mod version;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use prove::{Marked, mark_good};
pub use rauc::{Progress, Rauc, RaucError, RaucStatus, Slot};
pub use situation::look;

use crate::alert::document::{Update, UpdatePhase};
use crate::clock;
use crate::control::{self, Request};
use book::{Book, Trial};
use command::{Mailbox, Order};
use gate::{Bundle, Here, Hold, Insist, Refusal, Window};
use version::Version;

/// Bundles looked at in one folder; more is no update stick.
const BUNDLES_MAX: usize = 16;
/// Orders remembered; older ones have expired.
const ORDERS_MAX: usize = 64;
/// An order that closes, a status that is written: seconds.
const BOOK_TRIES: usize = 20;
/// The daemon answers a report from memory and one write.
const TOLD: Duration = Duration::from_secs(10);

/// Why an update did not happen.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// RAUC.
    #[error("update through RAUC")]
    Rauc(#[source] RaucError),
    /// The bundle is not for us.
    #[error(transparent)]
    Refused(Refusal),
    /// The file or folder cannot be used.
    #[error("failed to use `{path}` as a source of bundles")]
    Source {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder without a bundle.
    #[error("`{0}` holds no *.raucb bundle")]
    Empty(PathBuf),
    /// Somebody else is at it.
    #[error("{0}; ask again when it is done")]
    Busy(String),
    /// What updates remember could not be read or written.
    #[error("failed to use update.directory `{path}`")]
    Book {
        /// Configured directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// What `ichd update status` says.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Version of this program.
    pub program: &'static str,
    /// Version of the running image.
    pub version: Option<String>,
    /// RAUC's side.
    #[serde(flatten)]
    pub rauc: RaucStatus,
    /// Another slot boots next.
    pub reboot_pending: bool,
    /// The running slot has passed its proof of life.
    pub proven: bool,
    /// The slot that has to, once it boots or now.
    pub trial: Option<Trial>,
    /// Version that failed here last.
    pub failed: Option<String>,
    /// Why an update would wait now.
    pub holds: Vec<Hold>,
}

/// Where things lie and when the box may change.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The daemon's state directory, which tells who waits.
    pub state: PathBuf,
    /// Root's own directory, seen by both slots.
    pub directory: PathBuf,
    /// Maintenance window; none means any time.
    pub window: Option<Window>,
    /// What a person asked for beside the rules.
    pub insist: Insist,
    /// A person takes the responsibility for alerts, studies and window.
    pub now: bool,
}

impl Plan {
    /// Why the box must not change now.
    pub fn holds(&self, on_trial: bool) -> Vec<Hold> {
        let mut situation = look(&self.state);
        situation.on_trial = on_trial;
        if self.now { Vec::new() } else { gate::holds(&situation, self.window, clock::wall_ms()) }
    }

    fn book(&self) -> Result<Book, UpdateError> {
        Book::open(&self.directory).map_err(|source| match source.kind() {
            std::io::ErrorKind::WouldBlock => UpdateError::Busy("another `ichd update` is at work".into()),
            _ => self.unusable(source),
        })
    }

    /// The book, when whoever holds it lets go of it within a while.
    async fn book_soon(&self) -> Result<Book, UpdateError> {
        for _ in 0..BOOK_TRIES {
            match self.book() {
                Err(UpdateError::Busy(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
                other => return other,
            }
        }
        self.book()
    }

    fn unusable(&self, source: std::io::Error) -> UpdateError {
        UpdateError::Book { path: self.directory.clone(), source }
    }

    /// Tells the running daemon, which tells everybody. Whether it has taken note; a box without one updates all the same.
    fn tell(&self, update: Update) -> bool {
        let request = Request::Update { update };
        let answer = control::ask_within(&self.state, &request, Some(TOLD));
        match &answer {
            Ok(answer) => answer.error.is_none(),
            Err(_) => false,
        }
    }
}

/// What happens, in order; the command line prints it.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A bundle was chosen.
    Bundle(Bundle),
    /// It waits.
    Deferred {
        /// For what.
        reasons: Vec<Hold>,
    },
    /// It is being written.
    Progress(Progress),
    /// It is written and boots next.
    Installed {
        /// Its version.
        version: String,
    },
}

/// How an installation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Written; boots next.
    Installed(Version),
    /// Not now.
    Deferred(Vec<Hold>),
}

/// Asks RAUC and looks who waits.
pub async fn status(plan: &Plan) -> Result<Status, UpdateError> {
    let rauc = Rauc::connect().await.map_err(UpdateError::Rauc)?;
    let status = rauc.status().await.map_err(UpdateError::Rauc)?;
    let pages = book::look(&plan.directory).map_err(|e| plan.unusable(e))?;
    Ok(Status {
        program: crate::VERSION,
        version: running_version(&status).map(|v| v.to_string()),
        reboot_pending: status.reboot_pending(),
        proven: status.running().is_some_and(|s| pages.is_proven(s)),
        holds: plan.holds(pages.on_trial(&status)),
        rauc: status,
        trial: pages.trial,
        failed: pages.failed,
    })
}

/// Installs from a bundle file, a folder of them (an update stick) or an HTTPS address, if the rules allow it.
pub async fn install(source: &str, plan: &Plan, mut say: impl FnMut(Event)) -> Result<Outcome, UpdateError> {
    let rauc = Rauc::connect().await.map_err(UpdateError::Rauc)?;
    let status = rauc.status().await.map_err(UpdateError::Rauc)?;
    if status.operation != "idle" {
        return Err(UpdateError::Busy(format!("RAUC is {} already", status.operation)));
    }
    let mut book = plan.book()?;
    let here = Here {
        compatible: status.compatible.clone(),
        running: running_version(&status),
        failed: book.pages.failed.as_deref().and_then(Version::parse),
    };
    let (source, bundle) = choose(&rauc, source, &here, &plan.insist).await?;
    say(Event::Bundle(bundle.clone()));
    let version = gate::take(&bundle, &here, &plan.insist).map_err(UpdateError::Refused)?;
    let about = |phase| Update { version: Some(bundle.version.clone()), ..Update::new(phase) };
    let holds = plan.holds(book.pages.on_trial(&status));
    if !holds.is_empty() {
        say(Event::Deferred { reasons: holds.clone() });
        plan.tell(Update { reasons: said(&holds), ..about(UpdatePhase::Deferred) });
        return Ok(Outcome::Deferred(holds));
    }
    // Before RAUC begins: it goes on by itself where this program is killed.
    let other = status.other().and_then(|s| s.bootname.clone()).unwrap_or_default();
    // What was proven there is overwritten; `prove` of the host goes by this where the program there cannot judge itself.
    book.pages.proven.remove(&other);
    book.pages.trial = Some(Trial {
        slot: other,
        version: bundle.version.clone(),
        written_in: clock::boot_id(),
        failure: None,
    });
    book.save().map_err(|e| plan.unusable(e))?;
    log::info!(event = "update_started", version = bundle.version.as_str(); "installing {version}");
    rauc.install(&source, &bundle, |progress| {
        plan.tell(Update { percent: u8::try_from(progress.percent).ok(), ..about(UpdatePhase::Installing) });
        say(Event::Progress(progress.clone()));
    })
    .await
    .map_err(UpdateError::Rauc)?;
    log::info!(event = "update_installed", version = bundle.version.as_str(); "installed {version}, boots next");
    plan.tell(about(UpdatePhase::Installed));
    say(Event::Installed { version: bundle.version });
    Ok(Outcome::Installed(version))
}

/// Says on every channel of the daemon that nothing was installed, and why: whoever gave the order reads no journal.
pub fn tell_refused(plan: &Plan, order: Option<&Order>, why: &str) {
    plan.tell(Update {
        version: order.and_then(|o| o.version.clone()),
        reasons: vec![why.to_owned()],
        order_id: order.map(|o| o.order_id.clone()),
        ..Update::new(UpdatePhase::NotInstalled)
    });
}

/// The order that lies in the mailbox, unless it was done before; what is void is thrown away.
pub fn ordered(plan: &Plan, mailbox: &Mailbox) -> Option<Order> {
    let order = match mailbox.look(clock::wall_ms())? {
        Ok(order) => order,
        Err(void) => {
            log::warn!(event = "order_void"; "an order is thrown away: {void}");
            mailbox.clear();
            return None;
        }
    };
    if book::look(&plan.directory).is_ok_and(|pages| pages.orders.contains(&order.order_id)) {
        mailbox.clear();
        return None;
    }
    Some(order)
}

/// An order has come to its end, whatever that was.
pub fn close_order(plan: &Plan, mailbox: &Mailbox, order: &Order) -> Result<(), UpdateError> {
    let mut book = plan.book()?;
    let orders = &mut book.pages.orders;
    orders.push(order.order_id.clone());
    let surplus = orders.len().saturating_sub(ORDERS_MAX);
    orders.drain(..surplus);
    book.save().map_err(|e| plan.unusable(e))?;
    mailbox.clear();
    Ok(())
}

fn said(holds: &[Hold]) -> Vec<String> {
    holds.iter().map(ToString::to_string).collect()
}

/// The bundle that a source stands for. Of a folder's, the newest that may be taken, or else the first that may not.
async fn choose(
    rauc: &Rauc,
    source: &str,
    here: &Here,
    insist: &Insist,
) -> Result<(String, Bundle), UpdateError> {
    if source.starts_with("https://") {
        let bundle = rauc.inspect(source).await.map_err(UpdateError::Rauc)?;
        return Ok((source.to_owned(), bundle));
    }
    let unusable = |source_error| UpdateError::Source { path: source.into(), source: source_error };
    // RAUC is another process with another working directory.
    let path = std::fs::canonicalize(source).map_err(unusable)?;
    let files = if path.is_dir() { bundles(&path).map_err(unusable)? } else { vec![path.clone()] };
    let mut best: Option<(Option<Version>, String, Bundle)> = None;
    let mut failure = None;
    for file in files {
        let file = file.to_string_lossy().into_owned();
        match rauc.inspect(&file).await {
            Ok(bundle) => {
                let version = gate::take(&bundle, here, insist).ok();
                if best.as_ref().is_none_or(|(v, ..)| version > *v) {
                    best = Some((version, file, bundle));
                }
            }
            // One bad file on a stick must not hide a good one.
            Err(error) => failure = Some(error),
        }
    }
    match (best, failure) {
        (Some((_, file, bundle)), _) => Ok((file, bundle)),
        (None, Some(error)) => Err(UpdateError::Rauc(error)),
        (None, None) => Err(UpdateError::Empty(path)),
    }
}

fn bundles(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|f| f.extension().is_some_and(|e| e == "raucb"));
    files.sort();
    files.truncate(BUNDLES_MAX);
    Ok(files)
}

/// Version of what runs: of the bundle that was installed there; of an image from the factory its `IMAGE_VERSION`.
fn running_version(status: &RaucStatus) -> Option<Version> {
    let installed = status.running().and_then(|s| s.version.clone());
    let factory = || {
        let text = std::fs::read_to_string("/etc/os-release").ok()?;
        let value = text.lines().find_map(|l| l.strip_prefix("IMAGE_VERSION="))?;
        Some(value.trim_matches('"').to_owned())
    };
    Version::parse(&installed.or_else(factory).unwrap_or_else(|| crate::VERSION.into()))
}

/// The slot that the boot loader has booted (`rauc.slot=` on the kernel's command line), on a machine with slots.
pub fn booted_slot() -> Option<String> {
    let line = std::fs::read_to_string("/proc/cmdline").ok()?;
    line.split_whitespace().find_map(|word| word.strip_prefix("rauc.slot=")).map(str::to_owned)
}
