//! Owns the assembler's timers and channels; decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Judged;
use super::assembler::{Action, Assembler, InVain, Limits};
use crate::clock;
use crate::config;
use crate::dicom::{SeriesUid, StudyUid};
use crate::evidence::retention::Forget;
use crate::health::Pulse;
use crate::receive::Event;
use crate::spool::{Instance, Spool, SpoolError};

/// How long the driver sleeps at most, so that its pulse stays fresh.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);
/// Closed series kept in memory, and their slices (some 4 KiB each); older ones are found again on disk.
const CLOSED_SERIES_MAX: usize = 64;
const CLOSED_SLICES_MAX: usize = 8_192;

/// What the ledger says of every series that was judged before this start.
pub type AlreadyRead = HashMap<SeriesUid, Judged>;

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
    /// What was read before this start.
    pub already_read: AlreadyRead,
    /// Beats at least once a second.
    pub pulse: Pulse,
}

/// Runs until `receive` hangs up. Series still open then are found in the spool at the next start.
pub async fn run(config: config::Assemble, mut wiring: Wiring) {
    let mut assembler = Assembler::new(limits(&config));
    let mut actions = take_in(&mut assembler, &wiring).await;
    loop {
        for action in actions {
            if wiring.actions.send(action).await.is_err() {
                return;
            }
        }
        wiring.pulse.beat();
        if wiring.rescan_wanted.swap(false, Ordering::AcqRel) {
            log::warn!(event = "spool_rescan"; "stored events did not fit, reading the spool again");
            actions = take_in(&mut assembler, &wiring).await;
            continue;
        }
        let now = clock::now();
        let wait = assembler
            .next_deadline()
            .map_or(PULSE_INTERVAL, |at| at.saturating_duration_since(now).min(PULSE_INTERVAL));
        actions = tokio::select! {
            event = wiring.events.recv() => match event {
                Some(event) => on_event(&mut assembler, event, &wiring).await,
                None => return,
            },
            Some(read) = wiring.in_vain.recv() => assembler.on_in_vain(&read).into_iter().collect(),
            Some((series, answer)) = wiring.forget.recv() => {
                let _ = answer.send(assembler.forget(&series));
                Vec::new()
            }
            () = tokio::time::sleep(wait) => assembler.on_tick(clock::now()),
        };
    }
}

fn limits(config: &config::Assemble) -> Limits {
    Limits {
        quiet: Duration::from_millis(config.quiet_ms),
        quiet_incomplete: Duration::from_millis(config.quiet_incomplete_ms),
        open_series_max: config.open_series_max,
        slices_max: config.slices_max,
        closed_series_max: CLOSED_SERIES_MAX,
        closed_slices_max: CLOSED_SLICES_MAX,
    }
}

async fn on_event(assembler: &mut Assembler, event: Event, wiring: &Wiring) -> Vec<Action> {
    let now = clock::now();
    match event {
        Event::Stored { association, instance } => {
            if !assembler.knows(&instance.header.series) {
                let fellows = fellows(&wiring.spool, &instance).await;
                assembler.restore(now, fellows, wiring.already_read.get(&instance.header.series));
            }
            assembler.on_stored(now, Some(association), instance)
        }
        Event::Conflict { series, .. } => {
            assembler.on_conflict(&series);
            Vec::new()
        }
        Event::Released { association, orderly } => assembler.on_released(now, association, orderly),
    }
}

/// What the spool already holds of the series of a new instance, without that instance itself.
async fn fellows(spool: &Arc<Spool>, instance: &Instance) -> Vec<Instance> {
    let (spool, header) = (spool.clone(), instance.header.clone());
    let scan = move || spool.series(&header.study, &header.series);
    let mut found = scanned(tokio::task::spawn_blocking(scan).await);
    found.retain(|i| i.header.sop != instance.header.sop);
    found
}

/// Takes in what the spool holds, at the start and whenever events were lost to a full channel: a series that the
/// assembler knows gets what it misses, another one is restored as the ledger left it.
async fn take_in(assembler: &mut Assembler, wiring: &Wiring) -> Vec<Action> {
    let mut studies: BTreeMap<StudyUid, BTreeMap<SeriesUid, Vec<Instance>>> = BTreeMap::new();
    for instance in all(&wiring.spool).await {
        let of_study = studies.entry(instance.header.study.clone()).or_default();
        of_study.entry(instance.header.series.clone()).or_default().push(instance);
    }
    let n_series: usize = studies.values().map(BTreeMap::len).sum();
    let mut actions = Vec::new();
    // Study by study: the assembler remembers only the latest.
    for (study, by_series) in studies {
        for (series, instances) in by_series {
            let now = clock::now();
            if assembler.knows(&series) {
                actions.extend(instances.into_iter().flat_map(|i| assembler.on_stored(now, None, i)));
            } else {
                assembler.restore(now, instances, wiring.already_read.get(&series));
            }
        }
        actions.extend(assembler.resume(&study));
    }
    let n_open = assembler.n_open();
    log::info!(event = "spool_rescanned", series = n_series, open = n_open; "series found in the spool");
    actions
}

async fn all(spool: &Arc<Spool>) -> Vec<Instance> {
    let spool = spool.clone();
    scanned(tokio::task::spawn_blocking(move || spool.rescan()).await)
}

fn scanned(result: Result<Result<Vec<Instance>, SpoolError>, tokio::task::JoinError>) -> Vec<Instance> {
    let error = match result {
        Ok(Ok(instances)) => return instances,
        Ok(Err(error)) => crate::chain(&error),
        Err(error) => error.to_string(),
    };
    log::error!(event = "spool_rescan_failed"; "the spool could not be read: {error}");
    Vec::new()
}
