//! The reading thread: complete volumes first, reading ahead when there is nothing else to do.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::Reading;
use super::cache::SeriesCache;
use super::reader::{ReadError, Reader};
use crate::assemble::{Key, SharedVolume};
use crate::health::Pulse;

/// Jobs waiting for the reader; reading ahead beyond that is dropped, complete volumes wait with the judge.
const JOBS_MAX: usize = 256;
/// Outcomes waiting for the judge.
const OUTCOMES_MAX: usize = 64;
/// Fewer slices than this say nothing before the series is complete.
const PROVISIONAL_SLICES_MIN: usize = 5;
/// Slices read ahead between two looks at the jobs, per thread: a complete series waits no longer than that.
const AHEAD_PER_THREAD: usize = 1;
/// What is kept of all series together, bytes; the oldest series goes first.
const CACHES_BYTES_MAX: usize = 96 << 20;
/// Series whose cache is kept.
const CACHES_MAX: usize = 32;
/// How long a reader whose answers are not taken waits before it tries again.
const STALLED: Duration = Duration::from_millis(50);

/// What the reader is asked to do.
#[derive(Debug, Clone)]
pub enum Job {
    /// Read ahead; the series is not complete.
    Arriving(SharedVolume),
    /// Read and answer.
    Complete(SharedVolume),
    /// Forget what was read ahead of this series.
    Forget(Key),
}

/// The reader's answer.
#[derive(Debug)]
pub struct Outcome {
    /// What was read.
    pub volume: SharedVolume,
    /// Whether it was complete, or a provisional look.
    pub complete: bool,
    /// The answer.
    pub reading: Result<Reading, ReadError>,
}

/// Where jobs go. Never waits.
#[derive(Debug, Clone)]
pub struct Jobs {
    sender: SyncSender<Job>,
    idle: Idle,
}

/// Whether the reading thread has anything to do; what is not a patient waits for that.
#[derive(Debug, Clone, Default)]
pub struct Idle(Arc<AtomicBool>);

impl Idle {
    /// Refuses, in words, while something is being read.
    pub fn check(&self) -> Result<(), String> {
        if self.0.load(Ordering::Relaxed) {
            Ok(())
        } else {
            Err("a study is being read; it goes first".into())
        }
    }

    fn set(&self, idle: bool) {
        self.0.store(idle, Ordering::Relaxed);
    }
}

impl Jobs {
    /// Offers a job; gives it back if the queue is full.
    pub fn try_send(&self, job: Job) -> Result<(), Job> {
        use std::sync::mpsc::TrySendError::{Disconnected, Full};
        self.idle.set(false);
        self.sender.try_send(job).map_err(|e| match e {
            Full(job) | Disconnected(job) => job,
        })
    }

    /// Whether there is anything to do.
    pub fn idle(&self) -> Idle {
        self.idle.clone()
    }
}

/// Starts the reading thread. It ends when every [`Jobs`] is dropped.
pub fn spawn(reader: Arc<Reader>, pulse: Pulse) -> std::io::Result<(Jobs, mpsc::Receiver<Outcome>)> {
    let (jobs_tx, jobs) = sync_channel(JOBS_MAX);
    let (outcomes_tx, outcomes) = mpsc::channel(OUTCOMES_MAX);
    let mut worker = Worker::new(reader, pulse, outcomes_tx);
    let idle = worker.idle.clone();
    std::thread::Builder::new().name("ichd-infer".into()).spawn(move || worker.run(&jobs))?;
    Ok((Jobs { sender: jobs_tx, idle }, outcomes))
}

struct Worker {
    reader: Arc<Reader>,
    pulse: Pulse,
    outcomes: mpsc::Sender<Outcome>,
    caches: HashMap<Key, SeriesCache>,
    /// Series with a cache, the longest untouched first.
    order: VecDeque<Key>,
    /// Slices read at the last provisional look.
    looked: HashMap<Key, usize>,
    /// The answer to a complete series that the judge has not taken yet; nothing else is read meanwhile.
    unheard: Option<Outcome>,
    idle: Idle,
}

impl Worker {
    fn new(reader: Arc<Reader>, pulse: Pulse, outcomes: mpsc::Sender<Outcome>) -> Self {
        Worker {
            reader,
            pulse,
            outcomes,
            caches: HashMap::new(),
            order: VecDeque::new(),
            looked: HashMap::new(),
            unheard: None,
            idle: Idle::default(),
        }
    }

    fn run(&mut self, jobs: &Receiver<Job>) {
        let mut queue = Queue::default();
        loop {
            self.pulse.beat();
            self.say_unheard();
            let wait = match (&self.unheard, queue.is_empty()) {
                (Some(_), _) => STALLED,
                (None, true) => Duration::from_secs(1),
                (None, false) => Duration::ZERO,
            };
            self.idle.set(self.unheard.is_none() && queue.is_empty());
            match jobs.recv_timeout(wait) {
                Ok(job) => {
                    self.idle.set(false);
                    self.take_in(&mut queue, job);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) if self.unheard.is_some() => std::thread::sleep(STALLED),
                Err(RecvTimeoutError::Disconnected) if queue.is_empty() => return,
                Err(_) => {}
            }
            self.work(&mut queue);
        }
    }

    fn take_in(&mut self, queue: &mut Queue, job: Job) {
        match job {
            Job::Complete(volume) => {
                queue.arriving.retain(|v| v.key() != volume.key());
                queue.complete.push_back(volume);
            }
            Job::Arriving(volume) => match queue.arriving.iter_mut().find(|v| v.key() == volume.key()) {
                Some(older) => *older = volume,
                None => queue.arriving.push_back(volume),
            },
            Job::Forget(key) => {
                queue.arriving.retain(|v| v.key() != key);
                self.forget(&key);
            }
        }
    }

    /// One piece of work: a complete series, or a few slices of an arriving one.
    fn work(&mut self, queue: &mut Queue) {
        if self.unheard.is_some() {
            return;
        }
        if let Some(volume) = queue.complete.pop_front() {
            let reading = self.reader.clone().read(&volume, self.cache(&volume.key()));
            self.cache(&volume.key()).let_planes_go();
            self.unheard = Some(Outcome { volume, complete: true, reading });
            self.bound_caches();
        } else if let Some(volume) = queue.arriving.pop_front()
            && self.read_ahead(&volume)
        {
            queue.arriving.push_front(volume);
        }
    }

    /// Reads a few slices ahead; says whether there are more.
    fn read_ahead(&mut self, volume: &SharedVolume) -> bool {
        let reader = self.reader.clone();
        let at_once = AHEAD_PER_THREAD * reader.threads();
        let threshold = reader.policy().provisional.thresholds[0];
        let cache = self.cache(&volume.key());
        let more = match reader.prefetch(volume, cache, at_once) {
            Ok(more) => more,
            Err(error) => {
                // The complete reading will say so with its reason.
                log::debug!(event = "read_ahead_failed"; "reading ahead failed: {error}");
                return false;
            }
        };
        let n_read = cache.n_read();
        let worth = n_read >= PROVISIONAL_SLICES_MIN && reader.confident_pair(volume, cache) >= threshold;
        let looked = self.looked.get(&volume.key()).copied().unwrap_or(0);
        if worth && n_read > looked {
            let reading = reader.read(volume, self.cache(&volume.key()));
            self.looked.insert(volume.key(), n_read + 3);
            let outcome = Outcome { volume: volume.clone(), complete: false, reading };
            if let Err(TrySendError::Full(_)) = self.outcomes.try_send(outcome) {
                log::warn!(event = "provisional_dropped"; "the judge is busy, a provisional look is dropped");
            }
        }
        self.bound_caches();
        more
    }

    /// Offers the judge what it has not taken, without waiting: a stalled judge must not look like a hung reader.
    fn say_unheard(&mut self) {
        let Some(outcome) = self.unheard.take() else { return };
        match self.outcomes.try_send(outcome) {
            Ok(()) => {}
            Err(TrySendError::Full(outcome)) => self.unheard = Some(outcome),
            Err(TrySendError::Closed(_)) => {
                log::debug!(event = "outcome_unheard"; "the judge is gone");
            }
        }
    }

    fn cache(&mut self, series: &Key) -> &mut SeriesCache {
        self.order.retain(|s| s != series);
        self.order.push_back(series.clone());
        self.caches.entry(series.clone()).or_default()
    }

    /// Lets the longest untouched series go until the rest is within bounds; the one at hand stays.
    fn bound_caches(&mut self) {
        let mut bytes: usize = self.caches.values().map(SeriesCache::bytes).sum();
        while self.order.len() > 1 && (bytes > CACHES_BYTES_MAX || self.order.len() > CACHES_MAX) {
            let Some(oldest) = self.order.front().cloned() else { return };
            bytes = bytes.saturating_sub(self.caches.get(&oldest).map_or(0, SeriesCache::bytes));
            self.forget(&oldest);
        }
    }

    fn forget(&mut self, series: &Key) {
        self.caches.remove(series);
        self.looked.remove(series);
        self.order.retain(|s| s != series);
    }
}

/// What was taken in and not yet read.
#[derive(Default)]
struct Queue {
    complete: VecDeque<SharedVolume>,
    /// One per series: only its latest state is worth reading.
    arriving: VecDeque<SharedVolume>,
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.complete.is_empty() && self.arriving.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::testing::study_uid;
    use crate::dicom::SeriesUid;
    use crate::health::Pulses;
    use crate::infer::reader_tests::{OnDisk, quick_reader};

    fn worker() -> (Worker, mpsc::Receiver<Outcome>) {
        let (outcomes, heard) = mpsc::channel(1);
        let pulse = Pulses::new(crate::clock::now()).register("infer");
        (Worker::new(Arc::new(quick_reader(1)), pulse, outcomes), heard)
    }

    fn series(n: usize, step_mm: f32) -> SharedVolume {
        Arc::new(OnDisk::new(n, step_mm, 32).leak().whole())
    }

    fn other(volume: &SharedVolume, uid: &str) -> SharedVolume {
        let mut volume = (**volume).clone();
        volume.series = SeriesUid::parse(uid).unwrap();
        Arc::new(volume)
    }

    #[test]
    fn a_forgotten_series_is_not_read_ahead_any_more() {
        let (mut worker, _heard) = worker();
        let mut queue = Queue::default();
        let volume = series(14, 5.0);
        worker.take_in(&mut queue, Job::Arriving(volume.clone()));
        worker.work(&mut queue);
        assert!(worker.caches.contains_key(&volume.key()) && !queue.is_empty());
        worker.take_in(&mut queue, Job::Forget(volume.key()));
        assert!(queue.is_empty() && worker.caches.is_empty() && worker.order.is_empty());
    }

    #[test]
    fn a_complete_series_waits_for_one_slice_of_another_and_not_for_all() {
        let (mut worker, mut heard) = worker();
        let mut queue = Queue::default();
        let arriving = series(14, 5.0);
        worker.take_in(&mut queue, Job::Arriving(arriving.clone()));
        worker.work(&mut queue);
        assert_eq!(worker.caches[&arriving.key()].n_read(), 1);
        worker.take_in(&mut queue, Job::Complete(other(&arriving, "1.2.9")));
        worker.work(&mut queue);
        worker.say_unheard();
        let outcome = heard.try_recv().unwrap();
        assert!(outcome.complete && outcome.volume.series.as_str() == "1.2.9");
        assert!(!queue.is_empty(), "the arriving one goes on afterwards");
    }

    #[test]
    fn a_judge_that_does_not_listen_stops_reading_but_not_the_reader() {
        let (mut worker, mut heard) = worker();
        let mut queue = Queue::default();
        let first = series(10, 5.0);
        for uid in ["1.2.1", "1.2.2", "1.2.3"] {
            worker.take_in(&mut queue, Job::Complete(other(&first, uid)));
        }
        for _ in 0..5 {
            worker.say_unheard();
            worker.work(&mut queue);
        }
        assert_eq!(queue.complete.len(), 1, "one is heard, one waits to be heard, one to be read");
        let mut answered = Vec::new();
        for _ in 0..3 {
            worker.say_unheard();
            worker.work(&mut queue);
            worker.say_unheard();
            answered.extend(heard.try_recv().map(|o| o.volume.series.to_string()));
        }
        assert_eq!(answered, ["1.2.1", "1.2.2", "1.2.3"]);
    }

    #[test]
    fn caches_are_bounded_by_what_they_hold_and_the_series_at_hand_stays() {
        let (mut worker, _heard) = worker();
        let uid = |i: usize| (study_uid(), SeriesUid::parse(&format!("1.2.{i}")).unwrap());
        for i in 1..=CACHES_MAX + 5 {
            worker.cache(&uid(i));
            worker.bound_caches();
        }
        assert_eq!((worker.caches.len(), worker.order.len()), (CACHES_MAX, CACHES_MAX));
        for i in 100..104 {
            worker.cache(&uid(i)).fill_for_test(CACHES_BYTES_MAX / 3);
            worker.bound_caches();
        }
        let held: usize = worker.caches.values().map(SeriesCache::bytes).sum();
        assert!(held <= CACHES_BYTES_MAX && worker.caches.contains_key(&uid(103)), "{held}");
        worker.cache(&uid(200)).fill_for_test(2 * CACHES_BYTES_MAX);
        worker.bound_caches();
        assert_eq!(worker.order, [uid(200)]);
    }
}
