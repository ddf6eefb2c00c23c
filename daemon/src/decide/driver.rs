//! The judge: takes complete volumes to the reader and its answers to the ledger. Owns the order of those two.
//!
//! The happy path: `Complete(volume)` -> suitable by headers -> attempt written -> read -> decided -> recorded with
//! its alert in one transaction -> publisher woken. Every other path ends in a recorded reason as well.
//! Deliberately absent: nothing here waits for the network, and nothing upstream waits for the reader.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::{Disposition, Policy, Stage, Verdict, Why, decide, suitability};
use crate::assemble::assembler::{Action, InVain};
use crate::assemble::{Key, SharedVolume};
use crate::clock;
use crate::evidence::counts;
use crate::health::Pulse;
use crate::infer::driver::{Job, Jobs, Outcome};
use crate::infer::{ReadError, Shadow, Timings};
use crate::ledger::{Ledger, Record};
use crate::privacy::Privacy;
use crate::report::Lesion;
use crate::spool::Arrival;

/// A series whose reading ended the program this often is not tried again.
pub const CRASHES_MAX: u32 = 2;
/// Volumes given to the reader at once; the rest waits here, so that the reader's queue can never be full.
const READING_MAX: usize = 2;
/// Series that stood back and are remembered.
const STOOD_BACK_MAX: usize = 64;

/// Everything the judge is wired to.
pub struct Wiring {
    /// From `assemble`.
    pub actions: mpsc::Receiver<Action>,
    /// To the reader.
    pub jobs: Jobs,
    /// From the reader.
    pub outcomes: mpsc::Receiver<Outcome>,
    /// Where every disposition is recorded.
    pub ledger: Arc<Ledger>,
    /// What alerts say of the patient.
    pub privacy: Privacy,
    /// Operating points and tiers of the model in use.
    pub policy: Policy,
    /// Back to `assemble`: this series was read in vain, take the next best of the study. Unbounded, so that the two
    /// never wait for each other; it holds a series once at most for each time that it was read.
    pub in_vain: mpsc::UnboundedSender<InVain>,
    /// Wakes the publisher.
    pub wake: Arc<Notify>,
    /// Slices per series that are read.
    pub slices_max: usize,
    /// A late slice takes a final alert back only if the score falls this far below the operating point.
    pub hysteresis: f32,
    /// Side of the square that lesion maps cover, mm.
    pub field_mm: f64,
    /// A model that reads along, if there is one.
    pub shadow: Option<Shadow>,
    /// Beats at least once a second.
    pub pulse: Pulse,
}

struct Judge {
    wiring: Wiring,
    waiting: VecDeque<SharedVolume>,
    reading: usize,
    /// Series with an attempt on record since this start.
    attempted: HashSet<Key>,
    /// Series that may not be read again.
    crashed: HashSet<Key>,
    /// Verdicts that the database did not take; tried again each second. While one waits, so do later ones of its series.
    unrecorded: VecDeque<Unrecorded>,
    /// Series that stood back lately: an early look at one may still be on its way.
    stood_back: VecDeque<SharedVolume>,
}

/// A verdict on its way into the database.
struct Unrecorded {
    volume: SharedVolume,
    verdict: Verdict,
    timings: Timings,
    lesion: Option<Lesion>,
}

/// Runs until `assemble` hangs up and the reader has answered everything it was given.
pub async fn run(wiring: Wiring) {
    let mut judge = Judge::new(wiring);
    let mut upstream_open = true;
    // Of its own, so that studies that keep coming do not put it off.
    let mut second = tokio::time::interval(std::time::Duration::from_secs(1));
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while upstream_open || judge.reading > 0 || !judge.waiting.is_empty() {
        judge.wiring.pulse.beat();
        tokio::select! {
            action = judge.wiring.actions.recv(), if upstream_open => match action {
                Some(action) => judge.on_action(action),
                None => upstream_open = false,
            },
            outcome = judge.wiring.outcomes.recv() => match outcome {
                Some(outcome) => judge.on_outcome(outcome),
                None => return,
            },
            _ = second.tick() => judge.record_again(),
        }
        judge.feed_reader();
        if let Some(shadow) = &judge.wiring.shadow {
            shadow.reader_has(judge.reading + judge.waiting.len());
        }
    }
}

impl Judge {
    fn new(wiring: Wiring) -> Self {
        Judge {
            wiring,
            waiting: VecDeque::new(),
            reading: 0,
            attempted: HashSet::new(),
            crashed: HashSet::new(),
            unrecorded: VecDeque::new(),
            stood_back: VecDeque::new(),
        }
    }

    fn on_action(&mut self, action: Action) {
        match action {
            Action::Arriving(volume) => {
                if let Some(shadow) = &self.wiring.shadow {
                    shadow.series_arrives();
                }
                if self.may_read(&volume) {
                    // Reading ahead is a favour; a full queue just means the reader is busy with complete series.
                    let _ = self.wiring.jobs.try_send(Job::Arriving(volume));
                }
            }
            // What an early look at it raised, its own complete reading confirms or takes back.
            Action::NotChosen(volume) if self.has_looked(&volume) => self.read(volume),
            Action::NotChosen(volume) => {
                self.not_analysed(volume.clone(), Why::NotChosen);
                self.stood_back.push_back(volume);
                self.stood_back.drain(..self.stood_back.len().saturating_sub(STOOD_BACK_MAX));
            }
            Action::Complete(volume) => {
                self.stood_back.retain(|v| v.key() != volume.key());
                log::info!(
                    event = "series_closed", slices = volume.slices.len(), revision = volume.revision;
                    "series complete"
                );
                self.read(volume);
            }
        }
    }

    fn read(&mut self, volume: SharedVolume) {
        match suitability::by_headers(&volume, self.wiring.slices_max) {
            Err(why) => self.not_analysed(volume, why),
            Ok(()) if !self.may_read(&volume) => self.not_analysed(volume, Why::Crashed),
            Ok(()) => self.waiting.push_back(volume),
        }
    }

    /// Whether an early look at the series is all that the ledger holds of it.
    fn has_looked(&self, volume: &SharedVolume) -> bool {
        let waits = self.unrecorded.iter().any(|u| u.volume.key() == volume.key());
        waits
            || blocking(|| self.wiring.ledger.is_provisional(&volume.key())).unwrap_or_else(|error| {
                log::error!(event = "ledger_failed"; "the ledger could not be read: {error}");
                false
            })
    }

    /// Writes the attempt down before the first reading of a series, so that a crash leaves its trace.
    fn may_read(&mut self, volume: &SharedVolume) -> bool {
        let key = &volume.key();
        if self.crashed.contains(key) {
            return false;
        }
        if self.attempted.contains(key) {
            return true;
        }
        let ledger = &self.wiring.ledger;
        let attempts = blocking(|| ledger.begin_attempt(key, &volume.input_sha256()));
        match attempts {
            Ok(n) if n > CRASHES_MAX => {
                self.crashed.insert(key.clone());
                false
            }
            Ok(_) => self.attempted.insert(key.clone()),
            Err(error) => {
                log::error!(event = "ledger_failed"; "attempt could not be recorded: {error}");
                true
            }
        }
    }

    fn feed_reader(&mut self) {
        while self.reading < READING_MAX {
            let Some(volume) = self.waiting.pop_front() else { return };
            match self.wiring.jobs.try_send(Job::Complete(volume)) {
                Ok(()) => self.reading += 1,
                Err(Job::Complete(volume)) => return self.waiting.push_front(volume),
                Err(_) => return,
            }
        }
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        let Outcome { volume, complete, reading } = outcome;
        let stage = if complete { Stage::Final } else { Stage::Provisional };
        if complete {
            self.reading = self.reading.saturating_sub(1);
        }
        let (result, timings) = match &reading {
            Ok(reading) => (Ok(reading), reading.ms),
            Err(error) => {
                log::error!(event = "reading_failed"; "series could not be read: {error}");
                (Err(why(error)), Timings::default())
            }
        };
        let verdict = decide(&volume, stage, result, &self.wiring.policy);
        if stage == Stage::Provisional && !matches!(verdict.disposition, Disposition::Suspected(_)) {
            return;
        }
        let lesion = match (&reading, verdict.disposition.finding()) {
            (Ok(reading), Some(finding)) if complete => {
                Lesion::of(reading, &volume, finding, self.wiring.field_mm)
            }
            _ => None,
        };
        let key = volume.key();
        self.record(Unrecorded { volume, verdict, timings, lesion });
        if stage == Stage::Provisional
            && let Some(at) = self.stood_back.iter().position(|v| v.key() == key)
            && let Some(whole) = self.stood_back.remove(at)
        {
            self.read(whole);
        }
    }

    /// In the order in which they were given, so that none overtakes another of its series.
    fn record_again(&mut self) {
        for waiting in std::mem::take(&mut self.unrecorded) {
            self.record(waiting);
        }
    }

    fn not_analysed(&mut self, volume: SharedVolume, why: Why) {
        let verdict = decide(&volume, Stage::Final, Err(why), &self.wiring.policy);
        self.record(Unrecorded { volume, verdict, timings: Timings::default(), lesion: None });
    }

    fn record(&mut self, unrecorded: Unrecorded) {
        let Unrecorded { volume, verdict, timings, lesion } = &unrecorded;
        if self.unrecorded.iter().any(|u| u.volume.key() == volume.key()) {
            self.unrecorded.push_back(unrecorded);
            return;
        }
        let study_ref = self.wiring.ledger.reference(verdict.study.as_str());
        let record = Record {
            shown: blocking(|| self.wiring.privacy.shown(verdict, &study_ref, volume.frames())),
            revision: volume.revision,
            timings: *timings,
            acquired_at: volume.instances().find_map(|i| i.header.acquired_at.clone()),
            decided_wall_ms: clock::wall_ms(),
            stands_above: Some(self.wiring.policy.complete.thresholds[0] - self.wiring.hysteresis),
            arrival: blocking(|| Arrival::of(volume.instances())),
            lesion: lesion.clone(),
        };
        let ledger = &self.wiring.ledger;
        let recorded = blocking(|| ledger.record(verdict, &record));
        match recorded {
            Ok(recorded) if recorded.late => {
                log::warn!(
                    event = "late_after_purge", study = recorded.study_ref.as_str(), instances = verdict.instances;
                    "slices of a purged series came again; the earlier verdict stands"
                );
            }
            Ok(recorded) => {
                log::info!(
                    event = "verdict",
                    study = recorded.study_ref.as_str(),
                    disposition = verdict.disposition.as_str(),
                    reason = verdict.disposition.why().map_or("", Why::code);
                    "{} {}",
                    verdict.disposition.as_str(),
                    verdict.disposition.why().map_or("", Why::code)
                );
                self.wiring.wake.notify_one();
            }
            Err(error) => {
                // The instances are in the spool: even if it never succeeds, the next start reads the series again.
                log::error!(event = "ledger_failed"; "verdict could not be recorded: {}", crate::chain(&error));
                self.unrecorded.push_back(unrecorded);
                return;
            }
        }
        if verdict.stage == Stage::Provisional {
            return;
        }
        if let Some(shadow) = &self.wiring.shadow
            && !blocking(|| ledger.is_proof(verdict.study.as_str()))
        {
            shadow.offer(volume, verdict, *timings);
        }
        if let Some(last_ms) = record.arrival.last_ms {
            counts::final_verdict(record.decided_wall_ms.saturating_sub(last_ms));
        }
        self.attempted.remove(&volume.key());
        if verdict.disposition.why() != Some(Why::Crashed)
            && let Err(error) = blocking(|| ledger.end_attempt(&volume.key()))
        {
            log::error!(event = "ledger_failed"; "attempt could not be closed: {error}");
        }
        let _ = self.wiring.jobs.try_send(Job::Forget(volume.key()));
        if let Some(why) = verdict.disposition.why().filter(|why| why.calls_for_another()) {
            let (key, revision) = (volume.key(), volume.revision);
            let _ = self.wiring.in_vain.send(InVain { key, revision, why });
        }
    }
}

/// What a failed reading means to the clinic.
pub fn why(error: &ReadError) -> Why {
    match error {
        ReadError::Decode { .. } => Why::Undecodable,
        ReadError::Blank { .. } => Why::BlankSlice,
        ReadError::Panicked => Why::Crashed,
        ReadError::Model { .. } => Why::ModelFailed,
    }
}

/// SQLite syncs to disk; let the runtime move its other tasks away meanwhile.
fn blocking<T>(f: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(f)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{policy, reading, volume};
    use super::*;
    use crate::config::Site;
    use crate::health::Pulses;
    use crate::infer::reader_tests::quick_reader;
    use crate::ledger::SeriesRow;

    /// A judge with a ledger of its own, and a reader whose answers nobody waits for.
    fn judge(dir: &std::path::Path) -> (Judge, Arc<Ledger>, mpsc::UnboundedReceiver<InVain>) {
        let site =
            Site { name: "north".into(), device: "ct-1".into(), profile: crate::config::Profile::Assist };
        let ledger = Arc::new(Ledger::open(dir, &site).unwrap());
        let mut pulses = Pulses::new(clock::now());
        let (jobs, outcomes) =
            crate::infer::driver::spawn(Arc::new(quick_reader(1)), pulses.register("infer")).unwrap();
        let (in_vain, failed) = mpsc::unbounded_channel();
        let wiring = Wiring {
            actions: mpsc::channel(1).1,
            jobs,
            outcomes,
            ledger: ledger.clone(),
            privacy: Privacy::load(&crate::config::Privacy::default()).unwrap(),
            policy: policy(),
            in_vain,
            wake: Arc::default(),
            slices_max: 2_000,
            hysteresis: 0.05,
            field_mm: 240.0,
            shadow: None,
            pulse: pulses.register("decide"),
        };
        (Judge::new(wiring), ledger, failed)
    }

    /// What the reader would say: `any` of every slice.
    fn outcome(n: usize, revision: u32, complete: bool, any: f32) -> Outcome {
        let mut volume = volume(n);
        volume.revision = revision;
        let mut reading = reading(&volume, &vec![any; n], 0.5, 4.0);
        for end in [0, n - 1] {
            reading.slices[end].tissue.enclosed_cm2 = 20.0;
        }
        Outcome { volume: Arc::new(volume), complete, reading: Ok(reading) }
    }

    fn row(ledger: &Ledger) -> SeriesRow {
        let mut rows = ledger.series().unwrap();
        assert_eq!(rows.len(), 1);
        rows.remove(0)
    }

    fn in_database(dir: &std::path::Path, sql: &str) {
        rusqlite::Connection::open(dir.join("ichd.db")).unwrap().execute_batch(sql).unwrap();
    }

    const REFUSE: &str = "CREATE TRIGGER refuse BEFORE INSERT ON series BEGIN SELECT RAISE(ABORT, 'no'); END";

    #[tokio::test(flavor = "multi_thread")]
    async fn a_verdict_that_the_database_refused_once_never_overtakes_a_newer_one_of_its_series() {
        let dir = tempfile::tempdir().unwrap();
        let (mut judge, ledger, _failed) = judge(dir.path());
        in_database(dir.path(), REFUSE);
        judge.on_outcome(outcome(20, 0, true, 0.3));
        assert_eq!(judge.unrecorded.len(), 1);
        // A late slice; the database is well again.
        in_database(dir.path(), "DROP TRIGGER refuse");
        judge.on_outcome(outcome(21, 1, true, 0.8));
        assert!(ledger.series().unwrap().is_empty(), "it waits for the older one");
        judge.record_again();
        assert!(judge.unrecorded.is_empty());
        assert_eq!((row(&ledger).revision, row(&ledger).disposition.as_str()), (1, "suspected"));
        assert_eq!(ledger.open_alert_count().unwrap(), 1, "raised, and not withdrawn");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_series_that_raised_an_alert_and_stands_back_is_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut judge, ledger, _failed) = judge(dir.path());
        judge.on_outcome(outcome(12, 0, false, 0.95));
        assert_eq!((row(&ledger).stage.as_str(), ledger.open_alert_count().unwrap()), ("provisional", 1));
        let whole = outcome(20, 0, true, 0.3);
        judge.on_action(Action::NotChosen(whole.volume.clone()));
        assert_eq!((judge.waiting.len(), row(&ledger).stage.as_str()), (1, "provisional"));
        judge.on_outcome(whole);
        assert_eq!(row(&ledger).disposition, "not_suspected");
        assert_eq!(ledger.open_alert_count().unwrap(), 0, "withdrawn aloud");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_early_look_that_comes_after_its_series_stood_back_has_it_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (mut judge, ledger, _failed) = judge(dir.path());
        let whole = outcome(20, 0, true, 0.95);
        judge.on_action(Action::NotChosen(whole.volume.clone()));
        assert_eq!(row(&ledger).reason.as_deref(), Some("not_chosen"));
        judge.on_outcome(outcome(12, 0, false, 0.95));
        assert_eq!((judge.waiting.len(), row(&ledger).stage.as_str()), (1, "provisional"));
        judge.on_outcome(whole);
        assert_eq!((row(&ledger).stage.as_str(), ledger.open_alert_count().unwrap()), ("final", 1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_read_in_vain_is_said_to_the_assembler() {
        let dir = tempfile::tempdir().unwrap();
        let (mut judge, ledger, mut failed) = judge(dir.path());
        let mut body = outcome(20, 3, true, 0.9);
        body.reading.as_mut().unwrap().slices.iter_mut().for_each(|s| s.tissue.enclosed_cm2 = 3.0);
        judge.on_outcome(body);
        assert_eq!(row(&ledger).reason.as_deref(), Some("not_head"));
        let said = failed.try_recv().unwrap();
        assert_eq!((said.revision, said.why), (3, Why::NotHead));
        judge.on_outcome(outcome(20, 4, true, 0.1));
        assert!(failed.try_recv().is_err(), "that one was of use");
    }
}
