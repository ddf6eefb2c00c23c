//! The judge: takes complete volumes to the reader and its answers to the ledger. Owns the order of those two.
//!
//! The happy path: `Complete(volume)` -> suitable by headers -> attempt written -> read -> decided -> recorded with
//! its alert in one transaction -> publisher woken. Every other path ends in a recorded reason as well.
//! Deliberately absent: nothing here waits for the network, and nothing upstream waits for the reader.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use super::{Disposition, Policy, Stage, Verdict, Why, decide, suitability};
use crate::assemble::SharedVolume;
use crate::assemble::assembler::{Action, InVain};
use crate::clock;
use crate::dicom::SeriesUid;
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
    attempted: HashSet<SeriesUid>,
    /// Series that may not be read again.
    crashed: HashSet<SeriesUid>,
    /// Verdicts that the database did not take; tried again each second.
    unrecorded: VecDeque<(SharedVolume, Verdict, Timings, Option<Lesion>)>,
}

/// Runs until `assemble` hangs up and the reader has answered everything it was given.
pub async fn run(wiring: Wiring) {
    let mut judge = Judge {
        wiring,
        waiting: VecDeque::new(),
        reading: 0,
        attempted: HashSet::new(),
        crashed: HashSet::new(),
        unrecorded: VecDeque::new(),
    };
    let mut upstream_open = true;
    while upstream_open || judge.reading > 0 || !judge.waiting.is_empty() {
        judge.wiring.pulse.beat();
        let tick = tokio::time::sleep(std::time::Duration::from_secs(1));
        tokio::select! {
            action = judge.wiring.actions.recv(), if upstream_open => match action {
                Some(action) => judge.on_action(action).await,
                None => upstream_open = false,
            },
            outcome = judge.wiring.outcomes.recv() => match outcome {
                Some(outcome) => judge.on_outcome(outcome).await,
                None => return,
            },
            () = tick => judge.record_again().await,
        }
        judge.feed_reader();
        if let Some(shadow) = &judge.wiring.shadow {
            shadow.reader_has(judge.reading + judge.waiting.len());
        }
    }
}

impl Judge {
    async fn on_action(&mut self, action: Action) {
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
            Action::NotChosen(volume) => self.not_analysed(&volume, Why::NotChosen).await,
            Action::Complete(volume) => {
                log::info!(
                    event = "series_closed", slices = volume.slices.len(), revision = volume.revision;
                    "series complete"
                );
                match suitability::by_headers(&volume, self.wiring.slices_max) {
                    Err(why) => self.not_analysed(&volume, why).await,
                    Ok(()) if !self.may_read(&volume) => self.not_analysed(&volume, Why::Crashed).await,
                    Ok(()) => self.waiting.push_back(volume),
                }
            }
        }
    }

    /// Writes the attempt down before the first reading of a series, so that a crash leaves its trace.
    fn may_read(&mut self, volume: &SharedVolume) -> bool {
        let series = &volume.series;
        if self.crashed.contains(series) {
            return false;
        }
        if self.attempted.contains(series) {
            return true;
        }
        let ledger = &self.wiring.ledger;
        let attempts = blocking(|| ledger.begin_attempt(series, &volume.input_sha256()));
        match attempts {
            Ok(n) if n > CRASHES_MAX => {
                self.crashed.insert(series.clone());
                false
            }
            Ok(_) => self.attempted.insert(series.clone()),
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

    async fn on_outcome(&mut self, outcome: Outcome) {
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
        self.record(&volume, &verdict, timings, lesion).await;
    }

    /// In the order in which they were given, so that none overtakes another of its series.
    async fn record_again(&mut self) {
        for _ in 0..self.unrecorded.len() {
            let Some((volume, verdict, timings, lesion)) = self.unrecorded.pop_front() else { return };
            self.record(&volume, &verdict, timings, lesion).await;
        }
    }

    async fn not_analysed(&mut self, volume: &SharedVolume, why: Why) {
        let verdict = decide(volume, Stage::Final, Err(why), &self.wiring.policy);
        self.record(volume, &verdict, Timings::default(), None).await;
    }

    async fn record(
        &mut self,
        volume: &SharedVolume,
        verdict: &Verdict,
        timings: Timings,
        lesion: Option<Lesion>,
    ) {
        let study_ref = self.wiring.ledger.reference(verdict.study.as_str());
        let record = Record {
            shown: blocking(|| self.wiring.privacy.shown(verdict, &study_ref, volume.frames())),
            revision: volume.revision,
            timings,
            acquired_at: volume.instances().find_map(|i| i.header.acquired_at.clone()),
            decided_wall_ms: clock::wall_ms(),
            stands_above: Some(self.wiring.policy.complete.thresholds[0] - self.wiring.hysteresis),
            arrival: blocking(|| Arrival::of(volume.instances())),
            lesion,
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
                self.unrecorded.push_back((volume.clone(), verdict.clone(), timings, record.lesion));
                return;
            }
        }
        if verdict.stage == Stage::Provisional {
            return;
        }
        if let Some(shadow) = &self.wiring.shadow
            && !blocking(|| ledger.is_proof(verdict.study.as_str()))
        {
            shadow.offer(volume, verdict, timings);
        }
        if let Some(last_ms) = record.arrival.last_ms {
            counts::final_verdict(record.decided_wall_ms.saturating_sub(last_ms));
        }
        self.attempted.remove(&volume.series);
        if verdict.disposition.why() != Some(Why::Crashed)
            && let Err(error) = blocking(|| ledger.end_attempt(&volume.series))
        {
            log::error!(event = "ledger_failed"; "attempt could not be closed: {error}");
        }
        let _ = self.wiring.jobs.try_send(Job::Forget(volume.series.clone()));
        if let Some(why) = verdict.disposition.why().filter(|why| why.calls_for_another()) {
            let series = volume.series.clone();
            let _ = self.wiring.in_vain.send(InVain { series, revision: volume.revision, why });
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
