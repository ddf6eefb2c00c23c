//! When a series is complete. A pure machine that is given the time; [`super::driver`] owns timers and channels.
//!
//! ```text
//!            first slice                quiet time over, or orderly release of a whole series
//!   (none) --------------> open ----------------------------------------------------------> closed
//!                           ^                                                                 |
//!                           '------------------------ late slice (revision + 1) --------------'
//! ```
//!
//! Evidence that a series is complete: its steps show no missing slice, the count the scanner announced is reached,
//! and no association that carried it is still open. With the evidence a short quiet time closes it, without it a
//! long one. One sender uses an association per study, another one per image: an orderly release therefore closes at
//! once only what that association carried more than one slice of.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::study::Candidate;
use super::{Flag, Judged, SharedVolume, geometry, study};
use crate::decide::{Why, suitability};
use crate::dicom::{SeriesUid, SopInstanceUid, StudyUid};
use crate::spool::Instance;

/// Up to so many slices a series is placed at each arrival, so that reading ahead never waits; beyond, so often at most:
/// what placing costs does not depend on who sends how much how fast.
const PLACED_EACH_MAX: usize = 256;
const PLACED_EVERY: Duration = Duration::from_millis(100);

/// Quiet times and bounds; see `config::Assemble`.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Quiet time with evidence of completeness.
    pub quiet: Duration,
    /// Quiet time without.
    pub quiet_incomplete: Duration,
    /// Open series held at once.
    pub open_series_max: usize,
    /// Slices per series.
    pub slices_max: usize,
    /// Studies whose series are all closed, remembered so that a late slice finds its fellows without a look at the disk.
    pub closed_studies_max: usize,
    /// Slices of all of them together; the last one closed is remembered however many it has.
    pub closed_slices_max: usize,
}

/// What a series is known by: a study that was corrected or merged comes again with its series' UIDs unchanged, and a
/// device may repeat them. Two studies never share a volume.
pub type Key = (StudyUid, SeriesUid);

/// What the shell must do next.
#[derive(Debug, Clone)]
pub enum Action {
    /// A slice joined an open, suitable series: read ahead.
    Arriving(SharedVolume),
    /// The series is complete and is the one of its study to read, or is unsuitable by its headers.
    Complete(SharedVolume),
    /// The series is complete, but a better one of the same study is read instead.
    NotChosen(SharedVolume),
}

/// A series that was read and turned out to be of no use ([`Why::calls_for_another`]).
#[derive(Debug, Clone)]
pub struct InVain {
    /// Which.
    pub key: Key,
    /// As it was read.
    pub revision: u32,
    /// What was found.
    pub why: Why,
}

#[derive(Debug)]
struct Series {
    instances: BTreeMap<SopInstanceUid, Instance>,
    /// Associations still open that carried it, with how many slices each.
    carriers: HashMap<u64, usize>,
    /// All carriers so far ended by an orderly release.
    orderly: bool,
    /// The most slices that one carrier brought.
    carried_max: usize,
    last_arrival: Instant,
    /// When it was last placed while it grew.
    placed: Option<Instant>,
    gap_max: Duration,
    conflicting: bool,
    closed: bool,
    /// It was given to the judge as the one of its study to read.
    given: bool,
    /// It was read in vain; the next best series of the study takes its place.
    in_vain: Option<Why>,
    revision: u32,
    /// Made anew after each change; shared with the reader.
    volume: Option<SharedVolume>,
}

impl Series {
    fn new(now: Instant) -> Self {
        Series {
            instances: BTreeMap::new(),
            carriers: HashMap::new(),
            orderly: true,
            carried_max: 0,
            last_arrival: now,
            placed: None,
            gap_max: Duration::ZERO,
            conflicting: false,
            closed: false,
            given: false,
            in_vain: None,
            revision: 0,
            volume: None,
        }
    }

    fn volume(&mut self, (study, series): &Key) -> SharedVolume {
        let make = || {
            let instances = self.instances.values().cloned().collect();
            let mut volume = geometry::place(study.clone(), series.clone(), instances);
            volume.revision = self.revision;
            if self.conflicting {
                volume.flags.push(Flag::ConflictingDuplicate);
                volume.flags.sort_unstable();
            }
            Arc::new(volume)
        };
        self.volume.get_or_insert_with(make).clone()
    }

    /// Nothing in the geometry or the headers says that slices are still to come.
    fn is_contiguous(&mut self, series: &Key) -> bool {
        let volume = self.volume(series);
        let announced = volume.instances().filter_map(|i| i.header.images_in_acquisition).max().unwrap_or(0);
        volume.slices.len() >= suitability::SLICES_MIN
            && !volume.flags.contains(&Flag::MissingSlices)
            && volume.frames().count() >= announced as usize
    }

    /// Slices came to a series that was complete, or what was read is not all that came.
    fn reopen(&mut self) {
        self.closed = false;
        self.given = false;
        self.in_vain = None;
        self.revision += 1;
    }

    /// It closes no earlier than this; nothing is placed to know it.
    fn closes_from(&self, limits: &Limits) -> Instant {
        let wait = match self.carriers.is_empty() {
            true if self.orderly && self.carried_max > 1 => Duration::ZERO,
            true => limits.quiet.min(limits.quiet_incomplete),
            false => limits.quiet_incomplete,
        };
        self.last_arrival + wait
    }

    fn closes_at(&mut self, series: &Key, limits: &Limits) -> Instant {
        let wait = match (self.is_contiguous(series), self.carriers.is_empty()) {
            (true, true) if self.orderly && self.carried_max > 1 => Duration::ZERO,
            // A slow sender shows in its own gaps; wait for at least a few of them.
            (true, true) => limits.quiet.max(self.gap_max * 3).min(limits.quiet_incomplete),
            _ => limits.quiet_incomplete,
        };
        self.last_arrival + wait
    }
}

/// The open and recently closed series. Owner of what is complete and what is not. Of a study it knows every series or
/// none, so that which of them is the best does not depend on what was forgotten.
#[derive(Debug)]
pub struct Assembler {
    limits: Limits,
    series: BTreeMap<Key, Series>,
    /// Studies by when a series of theirs was last closed, oldest first.
    closed_order: Vec<StudyUid>,
}

impl Assembler {
    /// Nothing open.
    pub fn new(limits: Limits) -> Self {
        Assembler { limits, series: BTreeMap::new(), closed_order: Vec::new() }
    }

    /// Whether the study is in memory; if not, the driver restores what the spool holds of it first.
    pub fn knows_study(&self, study: &StudyUid) -> bool {
        self.series.keys().any(|(of, _)| of == study)
    }

    /// Whether the series is in memory.
    pub fn knows(&self, key: &Key) -> bool {
        self.series.contains_key(key)
    }

    /// Forgets a closed series whose instances are about to go; `false` if it is open and must stay. One that is not
    /// known is forgotten already.
    pub fn forget(&mut self, key: &Key) -> bool {
        if self.series.get(key).is_some_and(|found| !found.closed) {
            return false;
        }
        self.series.remove(key);
        true
    }

    /// Number of open series, for health.
    pub fn n_open(&self) -> usize {
        self.series.values().filter(|s| !s.closed).count()
    }

    /// Takes over what the spool holds of one series that is not in memory. `judged` is what the ledger says of it: if
    /// nothing arrived since, and no conflict that was not read yet, the series stays closed.
    pub fn restore(
        &mut self,
        now: Instant,
        instances: Vec<Instance>,
        judged: Option<&Judged>,
        conflicting: bool,
    ) {
        let Some(first) = instances.first() else { return };
        let key = (first.header.study.clone(), first.header.series.clone());
        let mut series = Series::new(now);
        series.instances = instances.into_iter().map(|i| (i.header.sop.clone(), i)).collect();
        series.conflicting = conflicting;
        if let Some(judged) = judged {
            series.revision = judged.revision;
            series.conflicting |= judged.conflicting;
            series.closed = series.conflicting == judged.conflicting
                && series.volume(&key).input_sha256() == judged.input_sha256;
            if series.closed {
                series.given = judged.why != Some(Why::NotChosen);
                series.in_vain = judged.why.filter(|why| why.calls_for_another());
                self.closed_order.retain(|study| *study != key.0);
                self.closed_order.push(key.0.clone());
            } else {
                series.revision += 1;
                series.volume = None;
            }
        }
        self.series.insert(key, series);
    }

    /// An instance is on disk.
    pub fn on_stored(&mut self, now: Instant, association: Option<u64>, instance: Instance) -> Vec<Action> {
        let key = (instance.header.study.clone(), instance.header.series.clone());
        let series = self.series.entry(key.clone()).or_insert_with(|| Series::new(now));
        if let Some(association) = association {
            let carried = series.carriers.entry(association).or_default();
            *carried += 1;
            series.carried_max = series.carried_max.max(*carried);
        }
        if series.instances.contains_key(&instance.header.sop) {
            return Vec::new();
        }
        if series.closed {
            series.reopen();
        } else if !series.instances.is_empty() {
            series.gap_max = series.gap_max.max(now.saturating_duration_since(series.last_arrival));
        }
        series.last_arrival = now;
        series.instances.insert(instance.header.sop.clone(), instance);
        series.volume = None;
        let mut actions = Vec::new();
        let n_max = self.limits.slices_max;
        let n = series.instances.len();
        let is_due = n <= PLACED_EACH_MAX
            || series.placed.is_none_or(|at| now.saturating_duration_since(at) >= PLACED_EVERY);
        if is_due && n <= n_max {
            let volume = series.volume(&key);
            if volume.slices.len() >= 3 {
                series.placed = Some(now);
                if suitable_so_far(&volume, n_max) {
                    actions.push(Action::Arriving(volume));
                }
            }
        }
        actions.splice(0..0, self.close_surplus());
        actions
    }

    /// The same SOP Instance UID came with other content; the first one stays. A verdict that does not say so is given
    /// anew.
    pub fn on_conflict(&mut self, now: Instant, key: &Key) {
        let Some(series) = self.series.get_mut(key).filter(|series| !series.conflicting) else { return };
        series.conflicting = true;
        series.volume = None;
        if series.closed {
            series.reopen();
            series.last_arrival = now;
        }
    }

    /// An association ended.
    pub fn on_released(&mut self, now: Instant, association: u64, orderly: bool) -> Vec<Action> {
        for series in self.series.values_mut() {
            if series.carriers.remove(&association).is_some() {
                series.orderly &= orderly;
            }
        }
        self.on_tick(now)
    }

    /// Closes what is due.
    pub fn on_tick(&mut self, now: Instant) -> Vec<Action> {
        let limits = self.limits;
        let due: Vec<Key> = self
            .series
            .iter_mut()
            // Placed only where it can be due.
            .filter(|(_, s)| !s.closed && s.closes_from(&limits) <= now)
            .filter_map(|(key, s)| (s.closes_at(key, &limits) <= now).then(|| key.clone()))
            .collect();
        due.into_iter().flat_map(|key| self.close(&key)).collect()
    }

    /// When [`Assembler::on_tick`] next has something to do. `now`: what may be due by then is looked at closely.
    pub fn next_deadline(&mut self, now: Instant) -> Option<Instant> {
        let limits = self.limits;
        let open = self.series.iter_mut().filter(|(_, s)| !s.closed);
        open.map(|(key, s)| match s.closes_from(&limits) {
            at if at > now => at,
            _ => s.closes_at(key, &limits),
        })
        .min()
    }

    /// A series was read in vain: the next best of its study is completed in its place.
    pub fn on_in_vain(&mut self, read: &InVain) -> Option<Action> {
        // What is open again is another series by now.
        let series = self.series.get_mut(&read.key).filter(|s| s.closed && s.revision == read.revision)?;
        series.in_vain = Some(read.why);
        self.next_of(&read.key.0)
    }

    /// After a restart: whether a series was read in vain and the next best of this study still waits for its turn.
    pub fn resume(&mut self, study: &StudyUid) -> Option<Action> {
        let waits = self.series.iter().any(|((of, _), s)| of == study && s.in_vain.is_some());
        let next = if waits { self.next_of(study) } else { None };
        self.forget_oldest_closed();
        next
    }

    fn close(&mut self, key: &Key) -> Vec<Action> {
        let Some(series) = self.series.get_mut(key) else { return Vec::new() };
        series.closed = true;
        let (volume, study) = (series.volume(key), key.0.clone());
        self.closed_order.retain(|of| *of != study);
        self.closed_order.push(study.clone());
        let mut actions = Vec::new();
        if suitability::by_headers(&volume, self.limits.slices_max).is_err() {
            actions.push(Action::Complete(volume));
            // It may have been the best as long as it was open.
            actions.extend(self.next_of(&study));
        } else if self.best_of(&study).as_ref() == Some(key) {
            actions.extend(self.next_of(&study));
        } else {
            actions.push(Action::NotChosen(volume));
        }
        self.forget_oldest_closed();
        actions
    }

    /// The best series of a study, if it is complete and was not given to the judge yet.
    fn next_of(&mut self, study: &StudyUid) -> Option<Action> {
        let key = self.best_of(study)?;
        let series = self.series.get_mut(&key).filter(|s| s.closed && !s.given)?;
        series.given = true;
        Some(Action::Complete(series.volume(&key)))
    }

    /// The best series of a study that can still be read, complete or not.
    fn best_of(&mut self, study: &StudyUid) -> Option<Key> {
        let slices_max = self.limits.slices_max;
        let volumes: Vec<(SharedVolume, Option<Why>)> = self
            .series
            .iter_mut()
            .filter(|((of, _), _)| of == study)
            .map(|(key, s)| (s.volume(key), s.in_vain))
            .collect();
        let candidates: Vec<Candidate> =
            volumes.iter().map(|(volume, in_vain)| Candidate { volume, in_vain: *in_vain }).collect();
        study::best(&candidates, slices_max).map(|v| (study.clone(), v.series.clone()))
    }

    fn close_surplus(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.n_open() > self.limits.open_series_max {
            let oldest = self.series.iter().filter(|(_, s)| !s.closed).min_by_key(|(_, s)| s.last_arrival);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { break };
            actions.extend(self.close(&key));
        }
        actions
    }

    fn forget_oldest_closed(&mut self) {
        // A study with an open series stays whole; its turn comes when that closes.
        let mut n_slices: HashMap<&StudyUid, usize> = HashMap::new();
        for ((study, _), series) in &self.series {
            *n_slices.entry(study).or_default() += series.instances.len();
        }
        let is_open = |study: &StudyUid| self.series.iter().any(|((of, _), s)| of == study && !s.closed);
        let closed: Vec<(StudyUid, usize)> = (self.closed_order.iter())
            .filter(|study| !is_open(study))
            .map(|study| (study.clone(), n_slices.get(study).copied().unwrap_or(0)))
            .collect();
        let mut n_studies = closed.len();
        let mut n_slices: usize = closed.iter().map(|(_, n)| n).sum();
        for (study, n) in closed {
            let is_over =
                n_studies > self.limits.closed_studies_max || n_slices > self.limits.closed_slices_max;
            if !is_over || n_studies == 1 {
                return;
            }
            self.series.retain(|(of, _), _| *of != study);
            self.closed_order.retain(|of| *of != study);
            (n_studies, n_slices) = (n_studies - 1, n_slices - n);
        }
    }
}

/// Reading ahead is worth while unless something other than "not enough slices yet" speaks against it.
fn suitable_so_far(volume: &super::Volume, slices_max: usize) -> bool {
    matches!(suitability::by_headers(volume, slices_max), Ok(()) | Err(Why::TooFewSlices | Why::TooThick))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::testing::{instance_at, series_uid, study_uid};
    use proptest::prelude::*;

    const LIMITS: Limits = Limits {
        quiet: Duration::from_millis(1_500),
        quiet_incomplete: Duration::from_millis(10_000),
        open_series_max: 4,
        slices_max: 100,
        closed_studies_max: 8,
        closed_slices_max: 30,
    };

    fn key() -> Key {
        (study_uid(), series_uid())
    }

    /// A script of the night: events at t milliseconds.
    struct Night {
        t0: Instant,
        assembler: Assembler,
    }

    impl Night {
        fn new() -> Self {
            Night { t0: crate::clock::now(), assembler: Assembler::new(LIMITS) }
        }

        fn at(&self, ms: u64) -> Instant {
            self.t0 + Duration::from_millis(ms)
        }

        fn store(&mut self, ms: u64, association: u64, index: usize) -> Vec<Action> {
            let instance = instance_at(index, index as f64 * 5.0);
            self.assembler.on_stored(self.at(ms), Some(association), instance)
        }

        fn completes(actions: &[Action]) -> Vec<usize> {
            let complete = |a: &Action| match a {
                Action::Complete(v) => Some(v.slices.len()),
                _ => None,
            };
            actions.iter().filter_map(complete).collect()
        }

        fn tick(&mut self, ms: u64) -> Vec<usize> {
            Self::completes(&self.assembler.on_tick(self.at(ms)))
        }

        fn release(&mut self, ms: u64, association: u64) -> Vec<usize> {
            Self::completes(&self.assembler.on_released(self.at(ms), association, true))
        }
    }

    #[test]
    fn one_association_per_study_closes_at_its_release() {
        let mut night = Night::new();
        for i in 0..20 {
            night.store(i as u64 * 250, 1, i);
        }
        assert!(night.tick(5_000).is_empty(), "the association is still open");
        assert_eq!(night.release(5_010, 1), [20]);
        assert_eq!(night.assembler.next_deadline(night.at(90_000)), None);
    }

    #[test]
    fn one_association_per_image_waits_for_the_quiet_time() {
        let mut night = Night::new();
        for i in 0..20 {
            night.store(i as u64 * 100, 100 + i as u64, i);
            assert!(night.release(i as u64 * 100 + 10, 100 + i as u64).is_empty());
        }
        assert!(night.tick(1_900 + 1_499).is_empty());
        assert_eq!(night.tick(1_900 + 1_500), [20]);
    }

    #[test]
    fn a_gap_waits_longer_and_is_then_read_with_a_flag() {
        let mut night = Night::new();
        for i in (0..20).filter(|i| *i != 7) {
            night.store(i as u64 * 100, 1, i);
        }
        assert!(night.release(2_000, 1).is_empty());
        assert!(night.tick(11_899).is_empty());
        assert_eq!(night.tick(11_900), [19]);
    }

    #[test]
    fn late_slice_reopens_the_series() {
        let mut night = Night::new();
        for i in 0..12 {
            night.store(0, 1, i);
        }
        assert_eq!(night.release(1, 1), [12]);
        night.store(60_000, 2, 12);
        let actions = night.assembler.on_tick(night.at(70_000));
        let [Action::Complete(volume)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!((volume.slices.len(), volume.revision), (13, 1));
    }

    #[test]
    fn a_duplicate_changes_nothing() {
        let mut night = Night::new();
        for i in 0..12 {
            night.store(0, 1, i);
        }
        night.release(1, 1);
        assert!(night.store(60_000, 2, 3).is_empty());
        assert_eq!(night.assembler.next_deadline(night.at(90_000)), None);
    }

    #[test]
    fn only_a_closed_series_is_forgotten() {
        let mut night = Night::new();
        (0..12).for_each(|i| drop(night.store(i, 1, i as usize)));
        assert!(!night.assembler.forget(&key()), "it is open");
        let _ = night.assembler.on_released(night.at(100), 1, true);
        assert_eq!(night.assembler.n_open(), 0);
        assert!(night.assembler.forget(&key()) && !night.assembler.knows(&key()));
        assert!(night.assembler.forget(&key()), "again is harmless");
    }

    /// Slice `i` of one series of a study.
    fn slice_of(study: &str, series: &str, i: usize) -> Instance {
        let mut instance = instance_at(i, i as f64 * 5.0);
        let header = Arc::make_mut(&mut instance.header);
        header.study = StudyUid::parse(study).unwrap();
        header.series = SeriesUid::parse(series).unwrap();
        instance
    }

    #[test]
    fn closed_studies_are_remembered_whole_up_to_a_number_of_slices_and_the_last_one_in_any_case() {
        let mut night = Night::new();
        let study = |n: u64| format!("1.8.{n}");
        for (n, slices) in [(0, 10), (1, 10), (2, 15), (3, 40)] {
            for i in 0..slices {
                // Two series of each.
                let instance = slice_of(&study(n), &format!("1.9.{}", i % 2), i);
                night.assembler.on_stored(night.at(n * 100), Some(n), instance);
            }
            let _ = night.assembler.on_released(night.at(n * 100 + 1), n, true);
            night.tick(n * 100 + 90_000);
            let knows = |n: &u64| night.assembler.knows_study(&StudyUid::parse(&study(*n)).unwrap());
            let known: Vec<u64> = (0..4).filter(knows).collect();
            let expected: &[u64] = [&[0][..], &[0, 1], &[1, 2], &[3]][n as usize];
            assert_eq!(known, expected, "after study {n}");
            assert!(night.assembler.series.len() == 2 * known.len(), "whole or not at all");
        }
    }

    #[test]
    fn a_study_that_comes_again_under_another_uid_is_another_study() {
        let mut night = Night::new();
        for (association, study) in [(1, "1.8.1"), (2, "1.8.2")] {
            // The same series and instances, as a console sends them after it corrected the patient.
            for i in 0..12 {
                night.assembler.on_stored(
                    night.at(association),
                    Some(association),
                    slice_of(study, "1.9.1", i),
                );
            }
            let actions = night.assembler.on_released(night.at(association + 10), association, true);
            let [Action::Complete(volume)] = &actions[..] else { panic!("{actions:?}") };
            assert_eq!((volume.study.as_str(), volume.slices.len()), (study, 12));
            assert!(volume.instances().all(|i| i.header.study.as_str() == study), "nobody's slices mix");
        }
    }

    #[test]
    fn a_conflict_after_the_verdict_is_said_in_another_one() {
        let mut night = Night::new();
        (0..12).for_each(|i| drop(night.store(0, 1, i)));
        assert_eq!(night.release(1, 1), [12]);
        night.assembler.on_conflict(night.at(60_000), &key());
        assert_eq!(night.assembler.n_open(), 1);
        let actions = night.assembler.on_tick(night.at(70_001));
        let [Action::Complete(volume)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!((volume.revision, volume.flags.contains(&Flag::ConflictingDuplicate)), (1, true));
        night.assembler.on_conflict(night.at(80_000), &key());
        assert_eq!(night.assembler.n_open(), 0, "it has been said");
        // After a restart too, whether it was said or not.
        let instances: Vec<Instance> = (0..12).map(|i| instance_at(i, i as f64 * 5.0)).collect();
        for (said, is_open) in [(false, 1), (true, 0)] {
            let input_sha256 = volume.input_sha256();
            let judged = Judged { input_sha256, revision: 0, why: None, conflicting: said };
            let mut night = Night::new();
            night.assembler.restore(night.at(0), instances.clone(), Some(&judged), true);
            assert_eq!(night.assembler.n_open(), is_open);
        }
    }

    #[test]
    fn what_an_arrival_costs_does_not_grow_with_what_came_before() {
        let mut night = Night::new();
        let limits = Limits { slices_max: 4_000, ..LIMITS };
        night.assembler = Assembler::new(limits);
        let mut n_placed = 0;
        for i in 0..10_000u64 {
            // One second of a sender without end, far beyond the slices of a series.
            let instance = slice_of("1.8.1", "1.9.1", 0);
            let mut instance = Instance { path: format!("{i}.dcm").into(), ..instance };
            let header = Arc::make_mut(&mut instance.header);
            header.sop = SopInstanceUid::parse(&format!("1.9.1.{}", i + 1)).unwrap();
            header.geometry.as_mut().unwrap().position_mm[2] = i as f64;
            night.assembler.on_stored(night.at(i / 10), Some(1), instance);
            let key = night.assembler.series.keys().next().unwrap().clone();
            n_placed += usize::from(night.assembler.series[&key].volume.is_some());
            assert!(night.assembler.next_deadline(night.at(i / 10)).is_some());
            assert!(night.assembler.on_tick(night.at(i / 10)).is_empty());
        }
        assert!(n_placed <= PLACED_EACH_MAX + 20, "placed {n_placed} times");
        let actions = night.assembler.on_released(night.at(30_000), 1, true);
        let [Action::Complete(volume)] = &actions[..] else { panic!("{actions:?}") };
        assert_eq!(suitability::by_headers(volume, limits.slices_max), Err(Why::TooManySlices));
        assert_eq!(volume.instances().count(), 10_000);
    }

    #[test]
    fn a_restart_reopens_only_what_was_not_read() {
        let mut night = Night::new();
        let instances: Vec<_> = (0..12).map(|i| instance_at(i, i as f64 * 5.0)).collect();
        let sha256 = geometry::place(instances[0].header.study.clone(), series_uid(), instances.clone())
            .input_sha256();
        let judged = Judged { input_sha256: sha256, revision: 0, why: None, conflicting: false };
        night.assembler.restore(night.at(0), instances.clone(), Some(&judged), false);
        assert_eq!(night.assembler.next_deadline(night.at(90_000)), None);
        let mut fresh = Night::new();
        fresh.assembler.restore(fresh.at(0), instances, None, false);
        assert_eq!(fresh.tick(1_500), [12]);
    }

    /// Slices of series `uid` of the one study, 5 mm apart.
    fn stack(uid: &str, n: usize) -> Vec<Instance> {
        let of = |i: usize| {
            let mut instance = instance_at(i, i as f64 * 5.0);
            let header = Arc::make_mut(&mut instance.header);
            header.series = SeriesUid::parse(uid).unwrap();
            header.sop = SopInstanceUid::parse(&format!("{uid}.{}", i + 1)).unwrap();
            instance
        };
        (0..n).map(of).collect()
    }

    /// What became of the series: `read` or `stood back`, in order.
    fn said(actions: &[Action]) -> Vec<(String, &'static str)> {
        let word = |a: &Action| match a {
            Action::Complete(v) => Some((v.series.to_string(), "read")),
            Action::NotChosen(v) => Some((v.series.to_string(), "stood back")),
            Action::Arriving(_) => None,
        };
        actions.iter().filter_map(word).collect()
    }

    fn expect(actions: &[Action], words: &[(&str, &'static str)]) {
        let words: Vec<_> = words.iter().map(|(uid, word)| ((*uid).to_owned(), *word)).collect();
        assert_eq!(said(actions), words);
    }

    /// All of a series over an association of its own, and its release.
    fn send(night: &mut Night, ms: u64, association: u64, uid: &str, n: usize) -> Vec<Action> {
        for instance in stack(uid, n) {
            night.assembler.on_stored(night.at(ms), Some(association), instance);
        }
        night.assembler.on_released(night.at(ms + 1), association, true)
    }

    fn in_vain(uid: &str, why: Why) -> InVain {
        InVain { key: (study_uid(), SeriesUid::parse(uid).unwrap()), revision: 0, why }
    }

    const HEAD: (&str, usize) = ("1.9.2", 12);
    const NECK: (&str, usize) = ("1.9.1", 18);

    #[test]
    fn a_head_is_read_though_its_study_holds_a_longer_neck_whichever_comes_first() {
        let not_head = in_vain(NECK.0, Why::NotHead);
        // The neck first: it was found to be none when the head comes.
        let mut night = Night::new();
        expect(&send(&mut night, 0, 1, NECK.0, NECK.1), &[(NECK.0, "read")]);
        assert!(night.assembler.on_in_vain(&not_head).is_none(), "there is nothing else yet");
        expect(&send(&mut night, 60_000, 2, HEAD.0, HEAD.1), &[(HEAD.0, "read")]);
        // The head comes while the neck is being read.
        let mut night = Night::new();
        expect(&send(&mut night, 0, 1, NECK.0, NECK.1), &[(NECK.0, "read")]);
        expect(&send(&mut night, 10, 2, HEAD.0, HEAD.1), &[(HEAD.0, "stood back")]);
        let next = night.assembler.on_in_vain(&not_head);
        expect(next.as_slice(), &[(HEAD.0, "read")]);
        // The head first: it was read, and is not read again.
        let mut night = Night::new();
        expect(&send(&mut night, 0, 1, HEAD.0, HEAD.1), &[(HEAD.0, "read")]);
        expect(&send(&mut night, 60_000, 2, NECK.0, NECK.1), &[(NECK.0, "read")]);
        assert!(night.assembler.on_in_vain(&not_head).is_none());
        // Both in one association.
        let mut night = Night::new();
        for instance in [stack(HEAD.0, HEAD.1), stack(NECK.0, NECK.1)].concat() {
            night.assembler.on_stored(night.at(0), Some(1), instance);
        }
        let actions = night.assembler.on_released(night.at(1), 1, true);
        expect(&actions, &[(NECK.0, "read"), (HEAD.0, "stood back")]);
        expect(night.assembler.on_in_vain(&not_head).as_slice(), &[(HEAD.0, "read")]);
        let again = night.assembler.on_in_vain(&in_vain(HEAD.0, Why::Undecodable));
        assert!(again.is_none(), "nothing is left: {again:?}");
    }

    #[test]
    fn a_restart_in_between_keeps_whose_turn_it_is() {
        let judged = |uid: &str, n: usize, why: Option<Why>| {
            let instances = stack(uid, n);
            let series = SeriesUid::parse(uid).unwrap();
            let sha256 = geometry::place(instances[0].header.study.clone(), series, instances.clone());
            (instances, Judged { input_sha256: sha256.input_sha256(), revision: 0, why, conflicting: false })
        };
        for (neck, head, turn) in [
            (Some(Why::NotHead), Some(Why::NotChosen), true),
            (Some(Why::NotHead), None, false),
            (None, Some(Why::NotChosen), false),
        ] {
            let mut night = Night::new();
            let now = night.at(0);
            for ((uid, n), why) in [(NECK, neck), (HEAD, head)] {
                let (instances, judged) = judged(uid, n, why);
                night.assembler.restore(now, instances, Some(&judged), false);
            }
            let study = study_uid();
            let next = night.assembler.resume(&study);
            expect(next.as_slice(), if turn { &[(HEAD.0, "read")] } else { &[] });
            assert!(night.assembler.resume(&study).is_none(), "once");
        }
    }

    #[test]
    fn one_that_is_unsuitable_once_it_is_complete_makes_way_too() {
        let mut night = Night::new();
        let mut longer = stack(NECK.0, NECK.1);
        let mut last = longer.pop().unwrap();
        for instance in longer {
            night.assembler.on_stored(night.at(0), Some(1), instance);
        }
        expect(&send(&mut night, 0, 2, HEAD.0, HEAD.1), &[(HEAD.0, "stood back")]);
        Arc::make_mut(&mut last.header).kernel = Some("H60s".into());
        night.assembler.on_stored(night.at(1), Some(1), last);
        let actions = night.assembler.on_released(night.at(2), 1, true);
        expect(&actions, &[(NECK.0, "read"), (HEAD.0, "read")]);
    }

    #[test]
    fn what_was_found_of_an_earlier_state_of_a_series_does_not_count() {
        let mut night = Night::new();
        send(&mut night, 0, 1, HEAD.0, HEAD.1);
        let late = stack(HEAD.0, HEAD.1 + 1).pop().unwrap();
        night.assembler.on_stored(night.at(50), Some(2), late);
        assert!(night.assembler.on_in_vain(&in_vain(HEAD.0, Why::Undecodable)).is_none());
        let actions = night.assembler.on_released(night.at(60_000), 2, true);
        expect(&actions, &[(HEAD.0, "read")]);
    }

    #[test]
    fn too_many_open_series_close_the_oldest() {
        let mut night = Night::new();
        for n in 0..6 {
            let mut instance = instance_at(0, 0.0);
            Arc::make_mut(&mut instance.header).series = SeriesUid::parse(&format!("1.9.{n}")).unwrap();
            night.assembler.on_stored(night.at(n), Some(n), instance);
        }
        assert_eq!(night.assembler.n_open(), 4);
    }

    proptest! {
        /// Promise 2: any order, split and duplication ends in the same volume, and every series closes.
        #[test]
        fn any_arrival_ends_in_the_same_volume(order in Just((0..16usize).collect::<Vec<_>>()).prop_shuffle(),
                                               split in 1usize..16, twice in any::<prop::sample::Index>()) {
            let mut night = Night::new();
            let mut order = order;
            order.push(order[twice.index(16)]);
            let mut last = None;
            let mut ms = 0;
            for (n, chunk) in order.chunks(split).enumerate() {
                let mut actions = Vec::new();
                for &i in chunk {
                    ms += 50;
                    actions.extend(night.store(ms, n as u64, i));
                }
                actions.extend(night.assembler.on_released(night.at(ms), n as u64, true));
                last = actions.into_iter().filter_map(|a| match a { Action::Complete(v) => Some(v), _ => None }).last().or(last);
            }
            let closing = night.assembler.on_tick(night.at(ms + 20_000));
            let last = closing.into_iter().filter_map(|a| match a { Action::Complete(v) => Some(v), _ => None }).last().or(last);
            let whole = geometry::place(last.as_ref().unwrap().study.clone(), series_uid(), (0..16).map(|i| instance_at(i, i as f64 * 5.0)).collect());
            prop_assert_eq!(last.unwrap().input_sha256(), whole.input_sha256());
            prop_assert_eq!(night.assembler.n_open(), 0);
        }
    }
}
