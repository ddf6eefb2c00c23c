//! Owns the assembler's timers and channels; decides nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::assembler::{Action, Assembler, Limits};
use crate::clock;
use crate::config;
use crate::dicom::SeriesUid;
use crate::health::Pulse;
use crate::receive::Event;
use crate::spool::{Instance, Spool};

/// How long the driver sleeps at most, so that its pulse stays fresh.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);
/// Closed series kept in memory; older ones are found again on disk.
const CLOSED_SERIES_MAX: usize = 256;

/// What the ledger says of a series that was already read: input hash and revision.
pub type AlreadyRead = HashMap<SeriesUid, (String, u32)>;

/// Everything the driver is wired to.
pub struct Wiring {
    /// From `receive`.
    pub events: mpsc::Receiver<Event>,
    /// Set by `receive` when an event did not fit; the spool is then read again.
    pub rescan_wanted: Arc<AtomicBool>,
    /// Failed readings, from `decide`.
    pub failed: mpsc::Receiver<SeriesUid>,
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
    restore(&mut assembler, &wiring.spool, &wiring.already_read).await;
    loop {
        wiring.pulse.beat();
        if wiring.rescan_wanted.swap(false, Ordering::AcqRel) {
            rescan(&mut assembler, &wiring).await;
        }
        let now = clock::now();
        let wait = assembler
            .next_deadline()
            .map_or(PULSE_INTERVAL, |at| at.saturating_duration_since(now).min(PULSE_INTERVAL));
        let actions = tokio::select! {
            event = wiring.events.recv() => match event {
                Some(event) => on_event(&mut assembler, event, &wiring).await,
                None => return,
            },
            Some(series) = wiring.failed.recv() => assembler.on_failed(&series).into_iter().collect(),
            () = tokio::time::sleep(wait) => assembler.on_tick(clock::now()),
        };
        for action in actions {
            if wiring.actions.send(action).await.is_err() {
                return;
            }
        }
    }
}

fn limits(config: &config::Assemble) -> Limits {
    Limits {
        quiet: Duration::from_millis(config.quiet_ms),
        quiet_incomplete: Duration::from_millis(config.quiet_incomplete_ms),
        open_series_max: config.open_series_max,
        slices_max: config.slices_max,
        closed_series_max: CLOSED_SERIES_MAX,
    }
}

async fn on_event(assembler: &mut Assembler, event: Event, wiring: &Wiring) -> Vec<Action> {
    let now = clock::now();
    match event {
        Event::Stored { association, instance } => {
            if !assembler.knows(&instance.header.series) {
                let fellows = fellows(&wiring.spool, &instance).await;
                let read = wiring.already_read.get(&instance.header.series);
                assembler.restore(now, fellows, read.map(|(sha256, revision)| (sha256.as_str(), *revision)));
            }
            assembler.on_stored(now, Some(association), instance)
        }
        Event::Conflict { series, .. } => {
            assembler.on_conflict(&series);
            Vec::new()
        }
        Event::Released { association, orderly } => assembler.on_released(now, association, orderly),
        Event::Opened { .. } => Vec::new(),
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

async fn restore(assembler: &mut Assembler, spool: &Arc<Spool>, already_read: &AlreadyRead) {
    let mut by_series: BTreeMap<SeriesUid, Vec<Instance>> = BTreeMap::new();
    for instance in all(spool).await {
        by_series.entry(instance.header.series.clone()).or_default().push(instance);
    }
    let n_series = by_series.len();
    for (series, instances) in by_series {
        let read = already_read.get(&series).map(|(sha256, revision)| (sha256.as_str(), *revision));
        assembler.restore(clock::now(), instances, read);
    }
    let n_open = assembler.n_open();
    log::info!(event = "spool_rescanned", series = n_series, open = n_open; "series found in the spool");
}

/// Events were lost to a full channel: what the spool holds and the assembler does not know counts as just stored.
async fn rescan(assembler: &mut Assembler, wiring: &Wiring) {
    log::warn!(event = "spool_rescan"; "stored events did not fit, reading the spool again");
    for instance in all(&wiring.spool).await {
        if !assembler.knows(&instance.header.series)
            && wiring.already_read.contains_key(&instance.header.series)
        {
            continue;
        }
        for action in assembler.on_stored(clock::now(), None, instance) {
            let _ = wiring.actions.send(action).await;
        }
    }
}

async fn all(spool: &Arc<Spool>) -> Vec<Instance> {
    let spool = spool.clone();
    scanned(tokio::task::spawn_blocking(move || spool.rescan()).await)
}

fn scanned(
    result: Result<Result<Vec<Instance>, crate::spool::SpoolError>, tokio::task::JoinError>,
) -> Vec<Instance> {
    match result {
        Ok(Ok(instances)) => instances,
        Ok(Err(error)) => {
            log::error!(event = "spool_rescan_failed"; "the spool could not be read: {error}");
            Vec::new()
        }
        Err(error) => {
            log::error!(event = "spool_rescan_failed"; "the spool could not be read: {error}");
            Vec::new()
        }
    }
}
