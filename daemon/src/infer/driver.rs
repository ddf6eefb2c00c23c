//! The reading thread: complete volumes first, reading ahead when there is nothing else to do.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Reading;
use super::reader::{ReadError, Reader, SeriesCache};
use crate::assemble::SharedVolume;
use crate::dicom::SeriesUid;
use crate::health::Pulse;

/// Jobs waiting for the reader; reading ahead beyond that is dropped, complete volumes wait with the judge.
const JOBS_MAX: usize = 256;
/// Fewer slices than this say nothing before the series is complete.
const PROVISIONAL_SLICES_MIN: usize = 5;
/// Series whose cache is kept; the oldest goes first.
const CACHES_MAX: usize = 8;

/// What the reader is asked to do.
#[derive(Debug, Clone)]
pub enum Job {
    /// Read ahead; the series is not complete.
    Arriving(SharedVolume),
    /// Read and answer.
    Complete(SharedVolume),
    /// Forget what was read ahead of this series.
    Forget(SeriesUid),
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
pub struct Jobs(SyncSender<Job>);

impl Jobs {
    /// Offers a job; gives it back if the queue is full.
    pub fn try_send(&self, job: Job) -> Result<(), Job> {
        self.0.try_send(job).map_err(|e| match e {
            TrySendError::Full(job) | TrySendError::Disconnected(job) => job,
        })
    }
}

/// Starts the reading thread. It ends when every [`Jobs`] is dropped.
pub fn spawn(reader: Arc<Reader>, pulse: Pulse) -> std::io::Result<(Jobs, mpsc::Receiver<Outcome>)> {
    let (jobs_tx, jobs) = sync_channel(JOBS_MAX);
    let (outcomes_tx, outcomes) = mpsc::channel(64);
    let mut worker = Worker {
        reader,
        pulse,
        outcomes: outcomes_tx,
        caches: HashMap::new(),
        order: VecDeque::new(),
        looked: HashMap::new(),
    };
    std::thread::Builder::new().name("ichd-infer".into()).spawn(move || worker.run(&jobs))?;
    Ok((Jobs(jobs_tx), outcomes))
}

struct Worker {
    reader: Arc<Reader>,
    pulse: Pulse,
    outcomes: mpsc::Sender<Outcome>,
    caches: HashMap<SeriesUid, SeriesCache>,
    order: VecDeque<SeriesUid>,
    /// Slices read at the last provisional look.
    looked: HashMap<SeriesUid, usize>,
}

impl Worker {
    fn run(&mut self, jobs: &Receiver<Job>) {
        let mut complete = VecDeque::new();
        // Only the latest state of an arriving series is worth reading.
        let mut arriving: VecDeque<SharedVolume> = VecDeque::new();
        loop {
            self.pulse.beat();
            let idle = complete.is_empty() && arriving.is_empty();
            let next = if idle {
                jobs.recv_timeout(Duration::from_secs(1))
            } else {
                jobs.try_recv().map_err(|e| match e {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            };
            match next {
                Ok(Job::Complete(volume)) => {
                    arriving.retain(|v| v.series != volume.series);
                    complete.push_back(volume);
                    continue;
                }
                Ok(Job::Arriving(volume)) => {
                    arriving.retain(|v| v.series != volume.series);
                    arriving.push_back(volume);
                    continue;
                }
                Ok(Job::Forget(series)) => {
                    self.forget(&series);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) if idle => return,
                Err(_) => {}
            }
            if let Some(volume) = complete.pop_front() {
                let reading = self.reader.clone().read(&volume, self.cache(&volume.series));
                self.answer(volume, true, reading);
            } else if let Some(volume) = arriving.pop_front() {
                self.read_ahead(volume);
            }
        }
    }

    fn read_ahead(&mut self, volume: SharedVolume) {
        let reader = self.reader.clone();
        let threshold = reader.policy().provisional.thresholds[0];
        let cache = self.cache(&volume.series);
        if let Err(error) = reader.prefetch(&volume, cache) {
            // The complete reading will say so with its reason.
            log::debug!(event = "read_ahead_failed"; "reading ahead failed: {error}");
            return;
        }
        let n_read = cache.n_read();
        let worth = n_read >= PROVISIONAL_SLICES_MIN && cache.confident_pair(&volume) >= threshold;
        let looked = self.looked.get(&volume.series).copied().unwrap_or(0);
        if worth && n_read > looked {
            let reading = reader.read(&volume, self.cache(&volume.series));
            self.looked.insert(volume.series.clone(), n_read + 3);
            self.answer(volume, false, reading);
        }
    }

    fn answer(&mut self, volume: SharedVolume, complete: bool, reading: Result<Reading, ReadError>) {
        if self.outcomes.blocking_send(Outcome { volume, complete, reading }).is_err() {
            log::debug!(event = "outcome_unheard"; "the judge is gone");
        }
    }

    fn cache(&mut self, series: &SeriesUid) -> &mut SeriesCache {
        if !self.caches.contains_key(series) {
            while self.order.len() >= CACHES_MAX {
                if let Some(oldest) = self.order.pop_front() {
                    self.forget(&oldest);
                }
            }
            self.order.push_back(series.clone());
        }
        self.caches.entry(series.clone()).or_default()
    }

    fn forget(&mut self, series: &SeriesUid) {
        self.caches.remove(series);
        self.looked.remove(series);
        self.order.retain(|s| s != series);
    }
}
