//! Owns the assembler's timers and channels; decides nothing.
//!
//! At the start, and whenever events were lost, the spool is walked through study by study, between whatever else there
//! is to do: a patient who comes meanwhile is not kept waiting, and memory holds what is open and not what was ever read.
//! A series that the ledger has read is known by the names of its files and the hashes noted in them. What cannot be
//! read is left out, and the walk made again later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::assembler::{Action, Assembler, InVain, Limits};
use super::{Judged, input_sha256};
use crate::clock;
use crate::config;
use crate::decide::Why;
use crate::dicom::{SeriesUid, StudyUid};
use crate::evidence::retention::Forget;
use crate::health::Pulse;
use crate::ledger::{Ledger, LedgerError};
use crate::receive::Event;
use crate::spool::{Instance, Spool, SpoolError};

/// How long the driver sleeps at most, so that its pulse stays fresh.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);
/// Studies without an open series kept in memory, and their slices (some 4 KiB each); older ones are found again on disk.
const CLOSED_STUDIES_MAX: usize = 64;
const CLOSED_SLICES_MAX: usize = 8_192;
/// Between a look at the spool that did not see everything and the next one; doubles each time.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(3600);

/// Everything the driver is wired to.
pub struct Wiring {
    /// From `receive`.
    pub events: mpsc::Receiver<Event>,
    /// Set by `receive` when an event did not fit; the spool is then read again.
    pub rescan_wanted: Arc<AtomicBool>,
    /// Series that were read in vain, from `decide`.
    pub in_vain: mpsc::UnboundedReceiver<InVain>,
    /// From retention: closed series whose instances are about to go.
    pub forget: mpsc::Receiver<Forget>,
    /// To the judge.
    pub actions: mpsc::Sender<Action>,
    /// Owner of the instances.
    pub spool: Arc<Spool>,
    /// Knows what was read.
    pub ledger: Arc<Ledger>,
    /// Beats at least once a second.
    pub pulse: Pulse,
}

/// Runs until `receive` hangs up. Series still open then are found in the spool at the next start.
pub async fn run(config: config::Assemble, wiring: Wiring) {
    let assembler = Assembler::new(limits(&config));
    Driver { assembler, wiring, walk: None, again: Some(clock::now()), pause: AGAIN_MIN }.run().await;
}

fn limits(config: &config::Assemble) -> Limits {
    Limits {
        quiet: Duration::from_millis(config.quiet_ms),
        quiet_incomplete: Duration::from_millis(config.quiet_incomplete_ms),
        open_series_max: config.open_series_max,
        slices_max: config.slices_max,
        closed_studies_max: CLOSED_STUDIES_MAX,
        closed_slices_max: CLOSED_SLICES_MAX,
    }
}

struct Driver {
    assembler: Assembler,
    wiring: Wiring,
    walk: Option<Walk>,
    /// When the spool is to be walked through again.
    again: Option<Instant>,
    /// How long until then, the next time that something is missed.
    pause: Duration,
}

/// A walk through the spool.
struct Walk {
    studies: std::vec::IntoIter<StudyUid>,
    n_series: usize,
    missed: bool,
}

impl Driver {
    async fn run(mut self) {
        let mut actions = Vec::new();
        loop {
            for action in std::mem::take(&mut actions) {
                if self.wiring.actions.send(action).await.is_err() {
                    return;
                }
            }
            self.wiring.pulse.beat();
            let now = clock::now();
            if self.walk.is_none() {
                let is_wanted = self.wiring.rescan_wanted.swap(false, Ordering::AcqRel);
                if is_wanted {
                    log::warn!(event = "spool_rescan"; "stored events did not fit, reading the spool again");
                }
                if is_wanted || self.again.is_some_and(|at| at <= now) {
                    self.again = None;
                    self.begin_walk().await;
                }
            }
            let wait = self
                .assembler
                .next_deadline(now)
                .map_or(PULSE_INTERVAL, |at| at.saturating_duration_since(now).min(PULSE_INTERVAL));
            actions = tokio::select! {
                event = self.wiring.events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
                Some(read) = self.wiring.in_vain.recv() => {
                    // It stood in the ledger before it was said, so nothing is missed where it is not known.
                    self.recall(&read.key.0).await;
                    self.assembler.on_in_vain(&read).into_iter().collect()
                }
                Some((key, answer)) = self.wiring.forget.recv() => {
                    let _ = answer.send(self.assembler.forget(&key));
                    Vec::new()
                }
                () = std::future::ready(()), if self.walk.is_some() => {
                    let mut actions = self.step().await;
                    actions.extend(self.assembler.on_tick(clock::now()));
                    actions
                }
                () = tokio::time::sleep(wait) => self.assembler.on_tick(clock::now()),
            };
        }
    }

    async fn on_event(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Stored { association, instance } => {
                // What is not taken in now is in the spool, and found there.
                if !self.recall(&instance.header.study).await {
                    return Vec::new();
                }
                self.assembler.on_stored(clock::now(), Some(association), instance)
            }
            Event::Conflict { study, series, .. } => {
                if self.recall(&study).await {
                    self.assembler.on_conflict(clock::now(), &(study, series));
                }
                Vec::new()
            }
            Event::Released { association, orderly } => {
                self.assembler.on_released(clock::now(), association, orderly)
            }
        }
    }

    /// Takes in what the spool holds of a study that is not in memory; whether it could be read. What came just now is
    /// among it: the ledger says whether that is news.
    async fn recall(&mut self, study: &StudyUid) -> bool {
        if self.assembler.knows_study(study) {
            return true;
        }
        let Some(looked) = self.look(study.clone(), false).await else {
            self.missed();
            return false;
        };
        if looked.missed {
            self.missed();
        }
        let now = clock::now();
        for found in looked.found {
            self.assembler.restore(now, found.instances, found.judged.as_ref(), found.conflicting);
        }
        true
    }

    /// Something could not be read: there is another walk later.
    fn missed(&mut self) {
        if self.again.is_none() {
            self.again = Some(clock::now() + self.pause);
            self.pause = (self.pause * 2).min(AGAIN_MAX);
        }
    }

    async fn begin_walk(&mut self) {
        let spool = self.wiring.spool.clone();
        match tokio::task::spawn_blocking(move || spool.studies()).await {
            Ok(Ok(studies)) => {
                self.walk = Some(Walk { studies: studies.into_iter(), n_series: 0, missed: false });
            }
            Ok(Err(error)) => {
                log::error!(event = "spool_rescan_failed"; "the spool could not be read: {}", crate::chain(&error));
                self.missed();
            }
            Err(error) => {
                log::error!(event = "spool_rescan_failed"; "the spool could not be read: {error}");
                self.missed();
            }
        }
    }

    /// One study further.
    async fn step(&mut self) -> Vec<Action> {
        let Some(walk) = &mut self.walk else { return Vec::new() };
        let Some(study) = walk.studies.next() else {
            let (n_series, n_open) = (walk.n_series, self.assembler.n_open());
            if walk.missed {
                self.missed();
            } else {
                self.pause = AGAIN_MIN;
            }
            self.walk = None;
            log::info!(event = "spool_rescanned", series = n_series, open = n_open; "series found in the spool");
            return Vec::new();
        };
        let looked = self.look(study.clone(), true).await;
        let Some(walk) = &mut self.walk else { return Vec::new() };
        let Some(Looked { found, n_series, missed }) = looked else {
            walk.missed = true;
            return Vec::new();
        };
        walk.n_series += n_series;
        walk.missed |= missed;
        let mut actions = Vec::new();
        let now = clock::now();
        for Found { series, instances, judged, conflicting } in found {
            let key = (study.clone(), series);
            if !self.assembler.knows(&key) {
                self.assembler.restore(now, instances, judged.as_ref(), conflicting);
                continue;
            }
            actions.extend(instances.into_iter().flat_map(|i| self.assembler.on_stored(now, None, i)));
            if conflicting {
                self.assembler.on_conflict(now, &key);
            }
        }
        actions.extend(self.assembler.resume(&study));
        actions
    }

    /// Looks at a study on disk and in the ledger, on a thread that the disk may keep waiting; `None` where that failed.
    async fn look(&self, study: StudyUid, only_news: bool) -> Option<Looked> {
        let Wiring { spool, ledger, pulse, .. } = &self.wiring;
        let (spool, ledger, pulse) = (spool.clone(), ledger.clone(), pulse.clone());
        let is_known = self.assembler.knows_study(&study);
        let look = move || look(&spool, &ledger, &study, only_news.then_some(is_known), &|| pulse.beat());
        match tokio::task::spawn_blocking(look).await {
            Ok(Ok(looked)) => Some(looked),
            Ok(Err(LookError::Spool(error))) => {
                log::error!(event = "spool_rescan_failed"; "a study could not be read: {}", crate::chain(&error));
                None
            }
            Ok(Err(LookError::Ledger(error))) => {
                log::error!(event = "ledger_failed"; "what was read of a study is not known: {}", crate::chain(&error));
                None
            }
            Err(error) => {
                log::error!(event = "spool_rescan_failed"; "a study could not be read: {error}");
                None
            }
        }
    }
}

/// What a look at one study brought.
#[derive(Default)]
struct Looked {
    found: Vec<Found>,
    n_series: usize,
    /// Some instances could not be read; they may be another time.
    missed: bool,
}

/// One series on disk.
struct Found {
    series: SeriesUid,
    instances: Vec<Instance>,
    judged: Option<Judged>,
    /// Another content of one of its UIDs lies in quarantine.
    conflicting: bool,
}

enum LookError {
    Spool(SpoolError),
    Ledger(LedgerError),
}

/// Every series of a study. With `only_news` those of which the ledger does not hold the verdict already; where one is
/// news, or waits for its turn, and the study is not in memory (`Some(false)`), all of them.
fn look(
    spool: &Spool,
    ledger: &Ledger,
    study: &StudyUid,
    only_news: Option<bool>,
    beat: &dyn Fn(),
) -> Result<Looked, LookError> {
    let all = spool.series_of(study).map_err(LookError::Spool)?;
    let mut judged: HashMap<SeriesUid, Judged> = ledger.judged_of(study).map_err(LookError::Ledger)?;
    let quarantined = spool.quarantined().map_err(LookError::Spool)?;
    let is_in_vain = |j: &Judged| j.why.is_some_and(Why::calls_for_another);
    let waits = judged.values().any(is_in_vain) && judged.values().any(|j| j.why == Some(Why::NotChosen));
    let n_series = all.len();
    let mut news = HashSet::new();
    for series in &all {
        let is_read = match judged.get(series).filter(|_| only_news.is_some()) {
            Some(judged) => is_as_read(spool, study, series, judged, &quarantined, beat)?,
            None => false,
        };
        if !is_read {
            news.insert(series.clone());
        }
    }
    let is_whole = only_news == Some(false) && (waits || !news.is_empty());
    let mut looked = Looked { n_series, ..Looked::default() };
    for series in all.into_iter().filter(|series| is_whole || news.contains(series)) {
        let (instances, missed) = spool.read(study, &series, beat).map_err(LookError::Spool)?;
        looked.missed |= missed;
        let conflicting = instances.iter().any(|i| quarantined.contains(i.header.sop.as_str()));
        let judged = judged.remove(&series);
        looked.found.push(Found { series, instances, judged, conflicting });
    }
    Ok(looked)
}

/// Whether what lies there is what the verdict is about: by the names of the files and the hashes noted in them.
fn is_as_read(
    spool: &Spool,
    study: &StudyUid,
    series: &SeriesUid,
    judged: &Judged,
    quarantined: &HashSet<String>,
    beat: &dyn Fn(),
) -> Result<bool, LookError> {
    let Some(noted) = spool.noted(study, series, beat).map_err(LookError::Spool)? else { return Ok(false) };
    let is_news = !judged.conflicting && noted.iter().any(|(sop, _)| quarantined.contains(sop.as_str()));
    Ok(!is_news && input_sha256(noted) == judged.input_sha256)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Profile, Site};
    use crate::dicom::SopInstanceUid;
    use crate::health::Pulses;
    use crate::spool::{FileMeta, SpoolLimits};

    struct Bench {
        dir: tempfile::TempDir,
        spool: Arc<Spool>,
        ledger: Arc<Ledger>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let limits = SpoolLimits { free_bytes_min: 0, instance_bytes_max: 1 << 20 };
            let spool = Arc::new(Spool::open(&dir.path().join("spool"), limits).unwrap());
            let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
            let ledger = Arc::new(Ledger::open(dir.path(), &site).unwrap());
            Bench { dir, spool, ledger }
        }

        /// The first slices of a study of one series of twelve tiny ones, through the front door.
        fn study(&self, seed: u64, n: usize) -> StudyUid {
            let options = ichd_phantom::SeriesOptions {
                scan: ichd_phantom::scan::ScanOptions { matrix: 16, slices: 12, ..Default::default() },
                uid_seed: Some(seed),
                ..Default::default()
            };
            let slices = ichd_phantom::study(1, ichd_phantom::Bleed::None, &options).unwrap();
            let study = StudyUid::parse(&slices[0].study_uid).unwrap();
            for slice in slices.into_iter().take(n) {
                let meta = FileMeta {
                    sop_class: slice.sop_class_uid.into(),
                    sop: SopInstanceUid::parse(&slice.sop_instance_uid).unwrap(),
                    transfer_syntax: slice.transfer_syntax_uid.into(),
                    calling: "CT1".into(),
                    is_image: true,
                };
                let mut incoming = self.spool.begin(meta).unwrap();
                incoming.write(&slice.dataset_bytes).unwrap();
                incoming.commit().unwrap();
            }
            study
        }

        fn series(&self, study: &StudyUid) -> SeriesUid {
            self.spool.series_of(study).unwrap().remove(0)
        }

        /// A final verdict on what lies there.
        fn judge(&self, study: &StudyUid) {
            let series = self.series(study);
            let mut verdict = crate::alert::lifecycle::tests::verdict(1, crate::decide::Stage::Final, None);
            let instances = self.spool.series(study, &series).unwrap();
            verdict.instances = instances.len();
            verdict.input_sha256 = input_sha256(
                instances.into_iter().map(|i| (i.header.sop.clone(), i.sha256)).collect::<Vec<_>>(),
            );
            (verdict.study, verdict.series) = (study.clone(), series);
            self.ledger.record(&verdict, &crate::ledger::Record::default()).unwrap();
        }

        fn driver(&self) -> (Driver, mpsc::Receiver<Action>, mpsc::Sender<Event>) {
            let (events_tx, events) = mpsc::channel(16);
            let (actions, actions_rx) = mpsc::channel(256);
            let wiring = Wiring {
                events,
                rescan_wanted: Arc::default(),
                in_vain: mpsc::unbounded_channel().1,
                forget: mpsc::channel(1).1,
                actions,
                spool: self.spool.clone(),
                ledger: self.ledger.clone(),
                pulse: Pulses::new(clock::now()).register("assemble"),
            };
            let assembler = Assembler::new(limits(&config::Assemble::default()));
            let driver = Driver { assembler, wiring, walk: None, again: None, pause: AGAIN_MIN };
            (driver, actions_rx, events_tx)
        }
    }

    async fn walked(driver: &mut Driver) -> usize {
        driver.begin_walk().await;
        let mut n_steps = 0;
        while driver.walk.is_some() {
            driver.step().await;
            n_steps += 1;
        }
        n_steps
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_walk_keeps_in_memory_what_was_not_read_and_nothing_else() {
        let bench = Bench::new();
        let studies: Vec<StudyUid> = (0..40).map(|seed| bench.study(seed, 9)).collect();
        studies[1..].iter().for_each(|study| bench.judge(study));
        let (mut driver, ..) = bench.driver();
        assert_eq!(walked(&mut driver).await, 41, "study by study");
        let known = |driver: &Driver| studies.iter().filter(|s| driver.assembler.knows_study(s)).count();
        assert_eq!((known(&driver), driver.assembler.n_open()), (1, 1));
        assert!(driver.again.is_none() && driver.assembler.knows_study(&studies[0]));
        // No header was read of those that were: their pixels and text may be gone.
        for path in walk_files(bench.dir.path(), &studies[5]) {
            let length = std::fs::metadata(&path).unwrap().len() as usize;
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[48..].fill(0);
            assert_eq!(bytes.len(), length);
            std::fs::write(&path, bytes).unwrap();
        }
        let (mut driver, ..) = bench.driver();
        walked(&mut driver).await;
        assert!(driver.again.is_none() && !driver.assembler.knows_study(&studies[5]));
        // One more slice, and it is news.
        bench.study(7, 10);
        let (mut driver, ..) = bench.driver();
        walked(&mut driver).await;
        assert!(driver.assembler.knows_study(&studies[7]));
    }

    fn walk_files(dir: &std::path::Path, study: &StudyUid) -> Vec<std::path::PathBuf> {
        let of = |path: std::path::PathBuf| std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path());
        of(dir.join("spool/studies").join(study.as_str())).flat_map(of).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_study_that_goes_during_a_walk_and_one_that_cannot_be_read_lose_no_other() {
        let bench = Bench::new();
        let mut studies: Vec<StudyUid> = (0..4).map(|seed| bench.study(seed, 9)).collect();
        studies.sort();
        let (mut driver, ..) = bench.driver();
        driver.begin_walk().await;
        driver.step().await;
        // The second goes as retention or a proof of life takes it; of the third a file will not be opened (ELOOP).
        bench.spool.remove_series(&studies[1], &bench.series(&studies[1])).unwrap();
        let bad = walk_files(bench.dir.path(), &studies[2]).remove(0);
        let kept = bench.dir.path().join("kept");
        std::fs::rename(&bad, &kept).unwrap();
        std::os::unix::fs::symlink(&bad, &bad).unwrap();
        while driver.walk.is_some() {
            driver.step().await;
        }
        let known: Vec<bool> = studies.iter().map(|s| driver.assembler.knows_study(s)).collect();
        assert_eq!(known, [true, false, true, true]);
        assert!(driver.again.is_some(), "it is tried again");
        // Another time the disk gives it.
        std::fs::remove_file(&bad).unwrap();
        std::fs::rename(kept, &bad).unwrap();
        driver.again = None;
        walked(&mut driver).await;
        assert!(driver.again.is_none());
        let actions = driver.assembler.on_tick(clock::now() + Duration::from_secs(60));
        let n = |study: &StudyUid| {
            actions.iter().find_map(|action| match action {
                Action::Complete(volume) if volume.study == *study => Some(volume.instances().count()),
                _ => None,
            })
        };
        assert_eq!(n(&studies[2]), Some(9));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_forgotten_is_asked_for_when_a_slice_of_its_study_comes() {
        let bench = Bench::new();
        let study = bench.study(1, 9);
        bench.judge(&study);
        let (mut driver, ..) = bench.driver();
        walked(&mut driver).await;
        assert!(!driver.assembler.knows_study(&study));
        // A resend of an old slice: the study is as the ledger says, and nothing is read again.
        let instance = bench.spool.series(&study, &bench.series(&study)).unwrap().remove(0);
        let event = Event::Stored { association: 1, instance };
        let again = event.clone();
        driver.on_event(event).await;
        assert!(driver.assembler.knows_study(&study));
        assert_eq!(driver.assembler.n_open(), 0, "what was read is not read again");
        // One that was read since this start, and forgotten, is asked for as well.
        let other = bench.study(2, 9);
        let (mut driver, ..) = bench.driver();
        bench.judge(&other);
        let instance = bench.spool.series(&other, &bench.series(&other)).unwrap().remove(3);
        driver.on_event(Event::Stored { association: 2, instance }).await;
        assert_eq!(driver.assembler.n_open(), 0);
        // A slice that is news opens its series, as a revision.
        let path = &walk_files(bench.dir.path(), &study)[0];
        std::fs::remove_file(path).unwrap();
        let (mut driver, ..) = bench.driver();
        driver.on_event(again).await;
        assert_eq!(driver.assembler.n_open(), 1);
    }
}
