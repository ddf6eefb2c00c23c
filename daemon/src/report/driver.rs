//! One task per destination: takes what waits in the ledger, sends it, and comes back later where that failed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Order, make, scu};
use crate::atna::{Event, Node, Transfer};
use crate::clock;
use crate::config;
use crate::dicom::{AeTitle, SeriesUid, StudyUid};
use crate::ledger::Ledger;
use crate::ledger::reports::{ReportRow, Settled};
use crate::send::Peer;
use crate::spool;
use crate::tls::Files;

/// How often an idle task looks whether something waits.
const LOOK: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A single report that a destination will not have is tried less and less often, and holds up no other.
const REFUSED_MIN: Duration = Duration::from_secs(10);
const REFUSED_MAX: Duration = Duration::from_secs(600);
/// Reports looked at in one round.
const ROUND_MAX: usize = 64;

/// Everything the tasks are wired to.
#[derive(Clone)]
pub struct Wiring {
    /// The queue.
    pub ledger: Arc<Ledger>,
    /// Where the instances lie.
    pub spool_directory: PathBuf,
    /// Our AE title.
    pub calling: AeTitle,
    /// Certificates for destinations that are reached over TLS.
    pub tls: Option<Files>,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
}

/// Gives up what waits for nobody, then starts a task for each destination. Without one it ends with the shutdown.
pub fn spawn(config: config::Report, wiring: Wiring) -> JoinHandle<()> {
    tokio::spawn(async move {
        let names: Vec<String> = config.destination.iter().map(config::ReportDestination::name).collect();
        let orphaned = tokio::task::block_in_place(|| {
            wiring.ledger.reports_of_others_given_up(&names, clock::wall_ms())
        });
        match orphaned {
            Ok(0) => {}
            Ok(n) => {
                log::warn!(event = "reports_given_up", reason = "no_destination", count = n; "reports waited for a destination that is none any more")
            }
            Err(error) => log::error!(event = "ledger_failed"; "waiting reports could not be read: {error}"),
        }
        let mut tasks = tokio::task::JoinSet::new();
        for destination in config.destination {
            let give_up = Duration::from_secs(config.give_up_h * 3600);
            let task = Task { destination, give_up, wiring: wiring.clone(), refused: HashMap::new() };
            tasks.spawn(task.run());
        }
        let mut shutdown = wiring.shutdown;
        let _ = shutdown.wait_for(|stop| *stop).await;
        while tasks.join_next().await.is_some() {}
    })
}

struct Task {
    destination: config::ReportDestination,
    give_up: Duration,
    wiring: Wiring,
    /// Reports that were refused: when to try again, and how long to wait after that.
    refused: HashMap<i64, (Instant, Duration)>,
}

/// How a round ended.
enum Round {
    Idle,
    Sent,
    Outage,
}

impl Task {
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        let mut shutdown = self.wiring.shutdown.clone();
        while !*shutdown.borrow() {
            let round = tokio::select! {
                round = self.round() => round,
                _ = shutdown.wait_for(|stop| *stop) => return,
            };
            let wait = match round {
                Round::Idle => LOOK,
                Round::Sent => Duration::ZERO,
                Round::Outage => backoff,
            };
            backoff = match round {
                Round::Outage => (backoff * 2).min(BACKOFF_MAX),
                _ => BACKOFF_MIN,
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = shutdown.wait_for(|stop| *stop) => return,
            }
        }
    }

    /// Tries everything that is due, until the destination as a whole is away.
    async fn round(&mut self) -> Round {
        let name = self.destination.name();
        let waiting = tokio::task::block_in_place(|| self.wiring.ledger.reports_waiting(&name, ROUND_MAX));
        let waiting = waiting.unwrap_or_else(|error| {
            log::error!(event = "ledger_failed"; "waiting reports could not be read: {error}");
            Vec::new()
        });
        self.refused.retain(|seq, _| waiting.iter().any(|row| row.seq == *seq));
        let mut round = Round::Idle;
        for row in waiting {
            if self.refused.get(&row.seq).is_some_and(|(at, _)| clock::now() < *at) {
                continue;
            }
            match self.deliver(&row).await {
                Ok(()) => {
                    self.refused.remove(&row.seq);
                    self.settle(&row, Settled::Delivered);
                    log::info!(event = "report_delivered", destination = name.as_str(), study = self.wiring.ledger.reference(&row.study_uid).as_str(); "report delivered");
                    round = Round::Sent;
                }
                Err((reason, outage)) => {
                    log::warn!(event = "report_failed", destination = name.as_str(), reason = reason.as_str(); "report not delivered, will be tried again");
                    self.failed(&row, &reason, outage);
                    if outage {
                        return Round::Outage;
                    }
                }
            }
        }
        round
    }

    /// What went wrong in a stable word, and whether it is the destination's trouble or this report's.
    async fn deliver(&self, row: &ReportRow) -> Result<(), (String, bool)> {
        let objects = tokio::task::block_in_place(|| self.objects(row)).map_err(|error| {
            log::error!(event = "report_not_made"; "report could not be made: {error}");
            ("not_made".to_owned(), false)
        })?;
        let destination = &self.destination;
        let peer = Peer {
            calling: &self.wiring.calling,
            called: &destination.ae_title,
            address: &destination.address,
            tls: self.wiring.tls.as_ref().filter(|_| destination.tls),
        };
        let began_ms = clock::wall_ms();
        let transfer = self.wiring.ledger.is_audited().then(|| transfer(row, &objects));
        let sent = scu::send(peer, &objects).await;
        if let (Some(transfer), Ok(_)) = (transfer, &sent) {
            let to = Node {
                ae_title: destination.ae_title.to_string(),
                host: host_of(&destination.address).into(),
            };
            self.tell(&[
                (began_ms, Event::Begin { transfer: transfer.clone(), to: to.clone() }),
                (clock::wall_ms(), Event::Sent { transfer, to, failure: None }),
            ]);
        }
        let left_out = sent.map_err(|error| (error.to_string(), error.is_outage()))?;
        for class in left_out {
            log::warn!(event = "report_object_left_out", destination = destination.name().as_str(), class = class; "the destination does not take SOP class {class}, the rest was delivered");
        }
        Ok(())
    }

    /// Into the audit log of the house. A report that cannot be told of is delivered all the same.
    fn tell(&self, events: &[(u64, Event)]) {
        if let Err(error) = tokio::task::block_in_place(|| self.wiring.ledger.atna(events)) {
            log::error!(event = "ledger_failed"; "an audit message could not be queued: {error}");
        }
    }

    fn objects(&self, row: &ReportRow) -> Result<Vec<scu::Object>, String> {
        let study = StudyUid::parse(&row.study_uid).map_err(|e| e.to_string())?;
        let series = SeriesUid::parse(&row.series_uid).map_err(|e| e.to_string())?;
        let instances = spool::stored_series(&self.wiring.spool_directory, &study, &series)
            .map_err(|e| crate::chain(&e))?;
        let site = self.wiring.ledger.site();
        let order = Order { row, instances, site, kinds: &self.destination.objects };
        make(order).map_err(|e| crate::chain(&e))
    }

    fn failed(&mut self, row: &ReportRow, reason: &str, outage: bool) {
        let age_ms = clock::wall_ms().saturating_sub(row.decided_ms);
        if age_ms > clock::ms(self.give_up) {
            log::error!(event = "reports_given_up", reason = "too_old", destination = self.destination.name().as_str(); "report given up");
            return self.settle(row, Settled::GivenUp);
        }
        if !outage {
            let wait =
                self.refused.get(&row.seq).map_or(REFUSED_MIN, |(_, wait)| (*wait * 2).min(REFUSED_MAX));
            self.refused.insert(row.seq, (clock::now() + wait, wait));
        }
        let noted = tokio::task::block_in_place(|| self.wiring.ledger.report_failed(row.seq, reason));
        if let Err(error) = noted {
            log::error!(event = "ledger_failed"; "a failed report could not be noted: {error}");
        }
    }

    fn settle(&self, row: &ReportRow, how: Settled) {
        let settled =
            tokio::task::block_in_place(|| self.wiring.ledger.report_settled(row.seq, how, clock::wall_ms()));
        if let Err(error) = settled {
            // It will be sent again, which is harmless.
            log::error!(event = "ledger_failed"; "a report could not be settled: {error}");
        }
    }
}

/// What the audit log is told of a report.
fn transfer(row: &ReportRow, objects: &[scu::Object]) -> Transfer {
    let mut transfer = Transfer { study_uid: row.study_uid.clone(), ..Transfer::default() };
    for object in objects {
        transfer.patient_id = object.dataset.string((0x0010, 0x0020)).unwrap_or_default();
        *transfer.instances.entry(object.sop_class.into()).or_default() += 1;
    }
    transfer
}

/// Host of `host:port`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}
