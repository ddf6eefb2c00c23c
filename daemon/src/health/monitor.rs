//! Feeds systemd's watchdog while every stage is alive, and says on MQTT when one is not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::Pulses;
use crate::alert::document::{Heartbeat, State, Status};
use crate::alert::publisher::Link;
use crate::alert::stations::Stations;
use crate::clock;
use crate::config;
use crate::infer::Reader;
use crate::ledger::Ledger;
use crate::ledger::alerts::Experience;
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
    /// Who listens.
    pub stations: Stations,
    /// How often a proof of life is due, s; 0: only on demand.
    pub proof_interval_s: u64,
    /// Says when it does not run on the backend that was asked for.
    pub reader: Arc<Reader>,
    /// Outbox depth, open alerts, proofs of life.
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
    let mut experience = Experience::default();
    let mut asked = None;
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
        // It changes by the hour and costs a walk over a week of alerts.
        if asked.is_none_or(|at| clock::now() - at > Duration::from_secs(60)) {
            asked = Some(clock::now());
            experience = tokio::task::block_in_place(|| wiring.ledger.experience(7)).unwrap_or(experience);
        }
        wiring.publish(&silent, disk_ok, started, experience);
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
    fn publish(
        &mut self,
        silent: &[&'static str],
        disk_ok: bool,
        started: Instant,
        experience_week: Experience,
    ) {
        let mut reasons: Vec<String> = silent.iter().map(|stage| format!("stage_silent:{stage}")).collect();
        if !disk_ok {
            reasons.push("disk_low".into());
        }
        // A few kilobytes a second, read anew: a renewed certificate ends the warning by itself.
        let certificates = self.certificates.iter().map(PathBuf::as_path);
        reasons.extend(tls::expiry_reason(certificates, clock::wall_ms()));
        reasons.extend(self.reader.degraded().map(str::to_owned));
        reasons.extend(self.link.borrow().reasons.iter().cloned());
        let ledger = &self.ledger;
        let (open_alerts, oldest, proof, silence) = tokio::task::block_in_place(|| {
            let open = ledger.open_alert_count().unwrap_or(0);
            let oldest = if open == 0 { None } else { ledger.oldest_unacknowledged_ms().unwrap_or(None) };
            (open, oldest, ledger.last_proof_age_ms().unwrap_or(None), ledger.silenced().unwrap_or(None))
        });
        let interval_ms = self.proof_interval_s * 1000;
        let unproven = proof.unwrap_or_else(|| clock::ms(clock::now() - started));
        if interval_ms > 0 && unproven > 2 * interval_ms {
            reasons.push("proof_overdue".into());
        }
        if open_alerts > 0 && !self.stations.any_ready() {
            reasons.push("no_station_ready".into());
        }
        let state = match silence {
            _ if !reasons.is_empty() => State::Degraded,
            Some(silence) if silence.kind == "maintenance" => State::Maintenance,
            _ => State::Ready,
        };
        self.status.send_if_modified(|status| {
            let changed = status.state != state || status.reasons != reasons;
            (status.state, status.reasons) = (state, reasons);
            changed
        });
        let alive = |stage: &str| !silent.contains(&stage);
        let (outbox_depth, last_study_age_s) = tokio::task::block_in_place(|| {
            (ledger.outbox_depth().unwrap_or(0), ledger.last_decided_age_ms().map(|ms| ms / 1000))
        });
        self.heartbeat.send_replace(Heartbeat {
            uptime_s: (clock::now() - started).as_secs(),
            last_study_age_s,
            last_proof_age_s: proof.map(|ms| ms / 1000),
            proof_interval_s: self.proof_interval_s,
            outbox_depth,
            open_alerts,
            oldest_unacknowledged_s: oldest.map(|ms| ms / 1000),
            dicom_ok: alive("receive"),
            infer_ok: alive("infer"),
            disk_ok,
            experience_week,
            ..Heartbeat::default()
        });
    }
}
