//! Feeds systemd's watchdog while every stage is alive, and says on MQTT when one is not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

use super::Pulses;
use crate::alert::document::{Heartbeat, State, Status};
use crate::alert::publisher::Link;
use crate::alert::stations::Stations;
use crate::clock;
use crate::config;
use crate::infer::Reader;
use crate::ledger::Ledger;
use crate::ledger::alerts::Silence;
use crate::ledger::vitals::{Experience, Vitals};
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
    /// Told that there is something to send.
    pub wake: Arc<Notify>,
    /// Whose free space counts.
    pub state_directory: PathBuf,
    /// Free space below which storage is refused, bytes.
    pub free_bytes_min: u64,
    /// Our certificate files, whose expiry is said ahead.
    pub certificates: Vec<PathBuf>,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
}

/// How often the ledger and the certificates are asked at least, s; more often than the heartbeat only for the status,
/// which says what is wrong when it goes wrong.
const ASK_S: u64 = 5;
/// And the week's experience: about as often as the heartbeat that carries it.
const EXPERIENCE: Duration = Duration::from_secs(15);

/// What the ledger and the disk said when they were last asked.
#[derive(Debug, Default)]
struct Asked {
    at: Option<Instant>,
    /// With the moment at which the ledger last answered: its ages go on from there while it does not.
    vitals: Option<(Instant, Vitals)>,
    free_bytes: Option<u64>,
    /// Whether the trouble `disk_low` stands in the ledger as the disk is; none until it does.
    low_told: Option<bool>,
    expiry: Option<String>,
    experience: Option<(Instant, Experience)>,
}

impl Asked {
    /// How things stood when the ledger last answered, its ages as they are by now.
    fn vitals_at(&self, now: Instant) -> Vitals {
        let Some((at, vitals)) = &self.vitals else { return Vitals::default() };
        let aged = |ms: Option<u64>| ms.map(|ms| ms + clock::ms(now - *at));
        Vitals {
            oldest_unacknowledged_ms: aged(vitals.oldest_unacknowledged_ms),
            last_proof_age_ms: aged(vitals.last_proof_age_ms),
            last_study_age_ms: aged(vitals.last_study_age_ms),
            ..vitals.clone()
        }
    }
}

/// Runs until shutdown; a second is short enough for the watchdog and long enough to cost nothing.
pub async fn run(config: config::Health, mut wiring: Wiring) {
    let silence_max = Duration::from_secs(config.stage_silence_max_s);
    let ask = Duration::from_secs(config.heartbeat_s.clamp(1, ASK_S));
    let started = clock::now();
    let mut was_silent: Vec<&'static str> = Vec::new();
    let mut asked = Asked::default();
    loop {
        let silent = wiring.pulses.silent(clock::now(), silence_max);
        if silent.is_empty() {
            let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Watchdog]);
        }
        if silent != was_silent {
            log::error!(event = "stages_silent", stages = silent.join(","); "stages without a pulse: {silent:?}");
            was_silent.clone_from(&silent);
        }
        if asked.at.is_none_or(|at| clock::now() - at >= ask) {
            tokio::task::block_in_place(|| wiring.ask(&mut asked));
        }
        wiring.publish(&silent, started, &asked);
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
    fn ask(&self, asked: &mut Asked) {
        let now = clock::now();
        match self.ledger.vitals() {
            Ok(vitals) => asked.vitals = Some((now, vitals)),
            Err(error) => {
                log::error!(event = "ledger_failed"; "the ledger cannot say how things stand: {}", crate::chain(&error));
            }
        }
        asked.free_bytes = free_bytes(&self.state_directory);
        self.tell_of_disk(asked);
        // Read anew: a renewed certificate ends the warning by itself.
        let certificates = self.certificates.iter().map(PathBuf::as_path);
        asked.expiry = tls::expiry_reason(certificates, clock::wall_ms());
        // It costs a walk over a week of alerts; who has just said something wants to see it counted.
        if asked.experience.is_none_or(|(at, _)| now - at > EXPERIENCE) {
            asked.experience = self.ledger.experience(7).ok().map(|experience| (now, experience));
        }
        asked.at = Some(now);
    }

    /// No room for studies is trouble that a person hears of. It is over once there is an eighth more than is needed, so
    /// that a disk at its limit does not ring each time.
    fn tell_of_disk(&self, asked: &mut Asked) {
        let Some(free) = asked.free_bytes else { return };
        let low = match asked.low_told {
            Some(true) => free <= self.free_bytes_min.saturating_add(self.free_bytes_min / 8),
            _ => free <= self.free_bytes_min,
        };
        if asked.low_told == Some(low) {
            return;
        }
        let told = if low {
            // The same words at every start: another figure would be another occasion, and ring again.
            let text = format!(
                "studies are refused (A700): less than {} MB are free",
                self.free_bytes_min / 1_000_000
            );
            self.ledger.raise_technical("disk_low", &text)
        } else {
            self.ledger.resolve_technical("disk_low", "there is room for studies again")
        };
        match told {
            Ok(()) => {
                asked.low_told = Some(low);
                self.wake.notify_one();
            }
            // Asked again in a moment: a disk that is full may have no room for this either.
            Err(error) => {
                log::error!(event = "ledger_failed"; "a full disk could not be written down: {}", crate::chain(&error));
            }
        }
    }

    fn publish(&mut self, silent: &[&'static str], started: Instant, asked: &Asked) {
        let vitals = asked.vitals_at(clock::now());
        let disk_ok = asked.free_bytes.is_none_or(|free| free > self.free_bytes_min);
        let mut reasons: Vec<String> = silent.iter().map(|stage| format!("stage_silent:{stage}")).collect();
        if !disk_ok {
            reasons.push("disk_low".into());
        }
        if self.ledger.is_failing() {
            reasons.push("ledger_failed".into());
        }
        // A month ahead nothing is wrong yet: it is said, and changes no state until it fails within a day.
        let (soon, ahead): (Vec<String>, Vec<String>) =
            asked.expiry.iter().cloned().partition(|said| tls::fails_soon(said));
        reasons.extend(soon);
        reasons.extend(self.reader.degraded().map(str::to_owned));
        reasons.extend(self.link.borrow().reasons.iter().cloned());
        let interval_ms = self.proof_interval_s * 1000;
        let proof = vitals.last_proof_age_ms;
        let unproven = proof.unwrap_or_else(|| clock::ms(clock::now() - started));
        if interval_ms > 0 && unproven > 2 * interval_ms {
            reasons.push("proof_overdue".into());
        }
        if vitals.open_alerts > 0 && !self.stations.any_ready() {
            reasons.push("no_station_ready".into());
        }
        let strangers = self.stations.misplaced();
        reasons.extend(strangers.iter().map(|name| format!("station_role:{name}")));
        let state = match &vitals.silence {
            // Somebody works on the box: that is said whatever else is wrong meanwhile, and the reasons with it.
            Some(silence) if silence.kind == "maintenance" => State::Maintenance,
            _ if !reasons.is_empty() => State::Degraded,
            _ => State::Ready,
        };
        let silence = vitals.silence.clone();
        self.status.send_if_modified(|status| {
            let changed = status.state != state
                || status.reasons != reasons
                || status.warnings != ahead
                || !is_same(status.silence.as_ref(), silence.as_ref());
            (status.state, status.reasons, status.warnings) = (state, reasons, ahead);
            if changed {
                status.silence = silence;
            }
            changed
        });
        let alive = |stage: &str| !silent.contains(&stage);
        let seconds = |ms: Option<u64>| ms.map(|ms| ms / 1000);
        self.heartbeat.send_replace(Heartbeat {
            uptime_s: (clock::now() - started).as_secs(),
            last_study_age_s: seconds(vitals.last_study_age_ms),
            last_proof_age_s: seconds(proof),
            proof_interval_s: self.proof_interval_s,
            outbox_depth: vitals.outbox_depth,
            open_alerts: vitals.open_alerts,
            oldest_unacknowledged_s: seconds(vitals.oldest_unacknowledged_ms),
            dicom_ok: alive("receive"),
            infer_ok: alive("infer"),
            disk_ok,
            experience_week: asked.experience.map(|(_, experience)| experience).unwrap_or_default(),
            ..Heartbeat::default()
        });
    }
}

/// Its end is told anew at every look, by a clock that may be set; a few seconds are no news.
fn is_same(said: Option<&Silence>, now: Option<&Silence>) -> bool {
    let (Some(said), Some(now)) = (said, now) else { return said.is_none() && now.is_none() };
    let ends = |silence: &Silence| clock::parse_rfc3339(&silence.until).unwrap_or(0);
    let who = |silence: &Silence| (silence.kind.clone(), silence.author.clone(), silence.reason.clone());
    who(said) == who(now) && ends(said).abs_diff(ends(now)) < 30_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_silence_is_news_when_it_moves() {
        let silence = |author: &str, until: &str| {
            Some(Silence {
                kind: "silence".into(),
                author: author.into(),
                reason: "scanner test".into(),
                until: until.into(),
            })
        };
        let is_same = |a: &Option<Silence>, b: &Option<Silence>| super::is_same(a.as_ref(), b.as_ref());
        let ann = silence("Ann", "2026-01-01T18:00:00Z");
        assert!(is_same(&None, &None) && is_same(&ann, &silence("Ann", "2026-01-01T18:00:01Z")));
        assert!(!is_same(&None, &ann) && !is_same(&ann, &None));
        assert!(!is_same(&ann, &silence("Bob", "2026-01-01T18:00:00Z")));
        assert!(!is_same(&ann, &silence("Ann", "2026-01-01T18:01:00Z")), "the clock was set");
    }

    #[test]
    fn ages_go_on_while_the_ledger_does_not_answer() {
        let (answered, ago) = (clock::now(), |s: u64| Some(s * 1000));
        let mut asked = Asked::default();
        assert_eq!(asked.vitals_at(answered).last_proof_age_ms, None);
        asked.vitals = Some((answered, Vitals { last_proof_age_ms: ago(100), ..Vitals::default() }));
        // Asked again and again since, in vain.
        asked.at = Some(answered + Duration::from_secs(3_600));
        let now = answered + Duration::from_secs(3_602);
        assert_eq!(asked.vitals_at(now).last_proof_age_ms, ago(3_702));
        assert_eq!(asked.vitals_at(now).last_study_age_ms, None);
    }
}
