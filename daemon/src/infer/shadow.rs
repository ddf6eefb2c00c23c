//! A second model that reads every study as well and publishes nothing: what it would have said is written beside what
//! was said, until a person or the site's rule promotes it.
//!
//! It comes last in everything. It reads on one thread, slice by slice, and only while no study arrives, waits or is being
//! read; where its queue is full a series is left out. Each series is written down before it is read along, so a model that
//! ends the program thrice is not asked a fourth time. A series that a stop of the daemon or a power cut interrupts is left
//! out and counts neither for nor against it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::reader::{ReadError, Reader};
use super::{Reading, SeriesCache, Timings};
use crate::assemble::SharedVolume;
use crate::clock;
use crate::decide::{Stage, Verdict, decide};
use crate::ledger::Ledger;
use crate::ledger::shadow::Shadowed;

/// Volumes that wait; more are left out.
const QUEUE_MAX: usize = 16;
/// Between two looks whether the reader is idle.
const LOOK: Duration = Duration::from_millis(200);
/// A series that arrives is read ahead; this long after its last slice the reader may still have work.
const ARRIVING_MS: u64 = 3_000;
/// The third end of the program is no coincidence.
const CRASHES_MAX: u64 = 3;

/// Where the judge offers what it has recorded. Never waits.
#[derive(Debug, Clone)]
pub struct Shadow {
    queue: SyncSender<(SharedVolume, Shadowed)>,
    line: Arc<Line>,
    work: Arc<Mutex<Work>>,
    ledger: Arc<Ledger>,
}

/// Held while a series is written down as begun, so that a stop meets it before or after, never between.
#[derive(Debug, Default)]
struct Work {
    stopped: bool,
    underway: Option<Shadowed>,
}

/// What the reader has before it.
#[derive(Debug, Default)]
struct Line {
    complete: AtomicUsize,
    arrived_ms: AtomicU64,
}

impl Line {
    fn is_idle(&self) -> bool {
        let quiet_ms = clock::boot_ms().saturating_sub(self.arrived_ms.load(Ordering::Relaxed));
        self.complete.load(Ordering::Relaxed) == 0 && quiet_ms >= ARRIVING_MS
    }

    fn wait(&self) {
        while !self.is_idle() {
            std::thread::sleep(LOOK);
        }
    }
}

impl Shadow {
    /// Starts the thread; it ends when every [`Shadow`] is dropped and what waits has been read.
    pub fn spawn(reader: Reader, ledger: Arc<Ledger>) -> std::io::Result<Self> {
        if let Err(error) = ledger.settle_shadow() {
            log::warn!(event = "shadow_unwritten"; "what the model in shadow had begun was not settled: {}", crate::chain(&error));
        }
        let (queue, offered) = sync_channel(QUEUE_MAX);
        let (line, work) = (Arc::new(Line::default()), Arc::default());
        let shadow = Shadow { queue, line: line.clone(), work: Arc::clone(&work), ledger: ledger.clone() };
        std::thread::Builder::new()
            .name("ichd-shadow".into())
            .spawn(move || run(&reader, &ledger, &offered, &line, &work))?;
        Ok(shadow)
    }

    /// The daemon is about to end: a series that is being read is left out, and none is begun any more.
    pub fn stop(&self) {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.stopped = true;
        if let Some(row) = work.underway.take()
            && let Err(error) = self.ledger.leave_out_shadow(&row)
        {
            log::warn!(event = "shadow_unwritten"; "a series that is read along was not left out: {}", crate::chain(&error));
        }
    }

    /// How many complete volumes the current model has before it.
    pub fn reader_has(&self, volumes: usize) {
        self.line.complete.store(volumes, Ordering::Relaxed);
    }

    /// A series is arriving.
    pub fn series_arrives(&self) {
        self.line.arrived_ms.store(clock::boot_ms(), Ordering::Relaxed);
    }

    /// Offers a series that the current model has answered.
    pub fn offer(&self, volume: &SharedVolume, verdict: &Verdict, timings: Timings) {
        let Some(current) = Shadowed::of_current(verdict, timings) else { return };
        if self.queue.try_send((volume.clone(), current)).is_err() {
            log::warn!(event = "shadow_left_out"; "the model in shadow is behind, a series is left out");
        }
    }
}

fn run(
    reader: &Reader,
    ledger: &Ledger,
    offered: &Receiver<(SharedVolume, Shadowed)>,
    line: &Line,
    work: &Mutex<Work>,
) {
    let work = || work.lock().unwrap_or_else(PoisonError::into_inner);
    while let Ok((volume, mut row)) = offered.recv() {
        line.wait();
        row.shadow_sha256.clone_from(&reader.model().sha256);
        let mut now = work();
        if now.stopped {
            return;
        }
        match ledger.begin_shadow(&row) {
            Ok(crashes) if crashes >= CRASHES_MAX => {
                log::error!(event = "shadow_stopped"; "the model in shadow has ended the program {crashes} times; it reads no more");
                if let Err(error) = ledger.leave_out_shadow(&row) {
                    log::warn!(event = "shadow_unwritten"; "a series was not left out: {}", crate::chain(&error));
                }
                return;
            }
            Ok(_) => now.underway = Some(row.clone()),
            Err(error) => {
                log::warn!(event = "shadow_unwritten"; "what the model in shadow does was not written: {}", crate::chain(&error));
                continue;
            }
        }
        drop(now);
        match read(reader, &volume, line) {
            Ok((reading, ms)) => {
                let verdict = decide(&volume, Stage::Final, Ok(&reading), reader.policy());
                row.answer(&verdict, ms);
            }
            Err(error) => row.failure = Some(crate::chain(&error)),
        }
        let mut now = work();
        if now.stopped {
            return;
        }
        now.underway = None;
        if let Err(error) = ledger.record_shadow(&row) {
            log::warn!(event = "shadow_unwritten"; "what the model in shadow said was not written: {}", crate::chain(&error));
        }
    }
}

/// Reads a volume slice by slice, making way between two; the time that it took without the waiting, ms.
fn read(reader: &Reader, volume: &SharedVolume, line: &Line) -> Result<(Reading, f64), ReadError> {
    let mut cache = SeriesCache::default();
    let mut spent = Duration::ZERO;
    let mut more = true;
    while more {
        line.wait();
        let began = clock::now();
        more = reader.prefetch(volume, &mut cache, 1)?;
        spent += clock::now() - began;
    }
    line.wait();
    let began = clock::now();
    let reading = reader.read(volume, &mut cache)?;
    spent += clock::now() - began;
    Ok((reading, spent.as_secs_f64() * 1000.0))
}
