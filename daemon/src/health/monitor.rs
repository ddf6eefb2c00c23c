//! Feeds systemd's watchdog while every stage is alive, and says on MQTT when one is not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Pulses;
use crate::alert::document::{Heartbeat, State, Status};
use crate::alert::publisher::Link;
use crate::clock;
use crate::config;
use crate::ledger::Ledger;
use crate::spool::free_bytes;
use crate::tls;

/// What the monitor looks at and where it tells.
pub struct Wiring {
    /// One pulse per stage.
    pub pulses: Pulses,
    /// The link to the broker, from the publisher.
    pub link: watch::Receiver<Link>,
    /// To the publisher: the retained status document.
    pub status: watch::Sender<Status>,
    /// To the publisher: the heartbeat it sends next.
    pub heartbeat: watch::Sender<Heartbeat>,
    /// Outbox depth and open alerts.
    pub ledger: Arc<Ledger>,
    /// Whose free space counts.
    pub state_directory: PathBuf,
    /// Free space below which storage is refused, bytes.
    pub free_bytes_min: u64,
    /// Our certificate files, whose expiry is said ahead.
    pub certificates: Vec<PathBuf>,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
}

/// Runs until shutdown; a second is short enough for the watchdog and long enough to cost nothing.
pub async fn run(config: config::Health, mut wiring: Wiring) {
    let silence_max = Duration::from_secs(config.stage_silence_max_s);
    let started = clock::now();
    let mut was_silent: Vec<&'static str> = Vec::new();
    loop {
        let silent = wiring.pulses.silent(clock::now(), silence_max);
        if silent.is_empty() {
            let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
        }
        if silent != was_silent {
            log::error!(event = "stages_silent", stages = silent.join(","); "stages without a pulse: {silent:?}");
            was_silent.clone_from(&silent);
        }
        let disk_ok = free_bytes(&wiring.state_directory).is_none_or(|free| free > wiring.free_bytes_min);
        wiring.publish(&silent, disk_ok, started);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            changed = wiring.shutdown.changed() => {
                if changed.is_err() || *wiring.shutdown.borrow() {
                    return;
                }
            }
        }
    }
}

impl Wiring {
    fn publish(&mut self, silent: &[&'static str], disk_ok: bool, started: Instant) {
        let mut reasons: Vec<String> = silent.iter().map(|stage| format!("stage_silent:{stage}")).collect();
        if !disk_ok {
            reasons.push("disk_low".into());
        }
        // A few kilobytes a second, read anew: a renewed certificate ends the warning by itself.
        let certificates = self.certificates.iter().map(PathBuf::as_path);
        reasons.extend(tls::expiry_reason(certificates, clock::wall_ms()));
        reasons.extend(self.link.borrow().reasons.iter().cloned());
        let state = if reasons.is_empty() { State::Ready } else { State::Degraded };
        self.status.send_if_modified(|status| {
            let changed = status.state != state || status.reasons != reasons;
            (status.state, status.reasons) = (state, reasons);
            changed
        });
        let alive = |stage: &str| !silent.contains(&stage);
        let ledger = &self.ledger;
        let (outbox_depth, open_alerts) = tokio::task::block_in_place(|| {
            (ledger.outbox_depth().unwrap_or(0), ledger.open_alert_count().unwrap_or(0))
        });
        let last_study_age_s = ledger.last_decided_age_ms().map(|ms| ms / 1000);
        self.heartbeat.send_replace(Heartbeat {
            uptime_s: (clock::now() - started).as_secs(),
            last_study_age_s,
            last_proof_age_s: None,
            outbox_depth,
            open_alerts,
            dicom_ok: alive("receive"),
            infer_ok: alive("infer"),
            disk_ok,
            ..Heartbeat::default()
        });
    }
}
