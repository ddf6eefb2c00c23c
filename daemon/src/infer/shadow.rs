//! A second model that reads every study as well and publishes nothing: what it would have said is written beside what
//! was said, until a person or the site's rule promotes it.
//!
//! It comes last in everything. It reads on one thread, slice by slice, and only while no study arrives, waits or is being
//! read; where its queue is full a series is left out. Each series is written down before it is read along, so a model that
//! ends the program thrice is not asked a fourth time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use super::reader::{ReadError, Reader};
use super::{Reading, SeriesCache, Timings};
use crate::assemble::SharedVolume;
use crate::clock;
use crate::decide::{Disposition, Stage, Verdict, decide};
use crate::ledger::Ledger;
use crate::ledger::shadow::Shadowed;

/// Volumes that wait; more are left out.
const QUEUE_MAX: usize = 16;
/// Between two looks whether the reader is idle.
const LOOK: Duration = Duration::from_millis(200);
/// A series that arrives is read ahead; this long after its last slice the reader may still have work.
const ARRIVING_MS: u64 = 3_000;
/// Series that were begun and not ended: the third end of the program is no coincidence.
const UNFINISHED_MAX: u64 = 3;

/// Where the judge offers what it has recorded. Never waits.
#[derive(Debug, Clone)]
pub struct Shadow {
    queue: SyncSender<(SharedVolume, Shadowed)>,
    line: Arc<Line>,
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
        let (queue, offered) = sync_channel(QUEUE_MAX);
        let line = Arc::new(Line::default());
        let shadow = Shadow { queue, line: line.clone() };
        std::thread::Builder::new()
            .name("ichd-shadow".into())
            .spawn(move || run(&reader, &ledger, &offered, &line))?;
        Ok(shadow)
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

fn run(reader: &Reader, ledger: &Ledger, offered: &Receiver<(SharedVolume, Shadowed)>, line: &Line) {
    while let Ok((volume, mut row)) = offered.recv() {
        line.wait();
        row.shadow_sha256.clone_from(&reader.model().sha256);
        match ledger.begin_shadow(&row) {
            Ok(n) if n > UNFINISHED_MAX => {
                log::error!(event = "shadow_stopped"; "the model in shadow has ended the program {UNFINISHED_MAX} times; it reads no more");
                return;
            }
            Ok(_) => {}
            Err(error) => {
                log::warn!(event = "shadow_unwritten"; "what the model in shadow does was not written: {}", crate::chain(&error));
                continue;
            }
        }
        match read(reader, &volume, line) {
            Ok((reading, ms)) => {
                let verdict = decide(&volume, Stage::Final, Ok(&reading), reader.policy());
                row.shadow_suspected = Some(matches!(verdict.disposition, Disposition::Suspected(_)));
                row.shadow_any = Some(reading.series.0[0]);
                row.shadow_ms = Some(ms);
            }
            Err(error) => row.failure = Some(crate::chain(&error)),
        }
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
