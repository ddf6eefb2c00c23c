//! Makes and sends what waits for one destination; [`crate::deliver`] says when.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Order, make, scu};
use crate::atna::Transfer;
use crate::clock;
use crate::config;
use crate::deliver::{self, Events, Failure, Queue, Sent};
use crate::dicom::{AeTitle, SeriesUid, StudyUid};
use crate::ledger::reports::ReportRow;
use crate::ledger::{Ledger, LedgerError, Settled};
use crate::send::{Peer, SendError};
use crate::spool::Spool;
use crate::tls::Files;

/// Everything the tasks are wired to.
#[derive(Clone)]
pub struct Wiring {
    /// The queue.
    pub ledger: Arc<Ledger>,
    /// Owner of the instances.
    pub spool: Arc<Spool>,
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
            let queue = Reports { destination, wiring: wiring.clone() };
            let give_up = Duration::from_secs(config.give_up_h * 3600);
            tasks.spawn(deliver::run(queue, give_up, wiring.shutdown.clone()));
        }
        let mut shutdown = wiring.shutdown;
        let _ = shutdown.wait_for(|stop| *stop).await;
        while tasks.join_next().await.is_some() {}
    })
}

struct Reports {
    destination: config::ReportDestination,
    wiring: Wiring,
}

impl deliver::Item for ReportRow {
    fn seq(&self) -> i64 {
        self.seq
    }

    fn since_ms(&self) -> u64 {
        self.decided_ms
    }
}

impl Queue for Reports {
    type Item = ReportRow;
    const EVENTS: Events = Events { failed: "report_failed", given_up: "reports_given_up" };

    fn destination(&self) -> String {
        self.destination.name()
    }

    fn waiting(&self, most: usize, but: &[i64]) -> Result<Vec<ReportRow>, LedgerError> {
        self.wiring.ledger.reports_waiting(&self.destination.name(), most, but)
    }

    async fn deliver(&self, row: &ReportRow) -> Result<(), Failure> {
        let objects = tokio::task::block_in_place(|| self.objects(row)).map_err(|error| {
            log::error!(event = "report_not_made"; "report could not be made: {error}");
            Failure { reason: "not_made".into(), is_outage: false }
        })?;
        // A destination that wants captures only gets nothing of a quiet head.
        if objects.is_empty() {
            return Ok(());
        }
        let (destination, name) = (&self.destination, self.destination.name());
        let peer = Peer {
            calling: &self.wiring.calling,
            called: &destination.ae_title,
            address: &destination.address,
            tls: self.wiring.tls.as_ref().filter(|_| destination.tls),
        };
        let began_ms = clock::wall_ms();
        let mut sent = Sent::default();
        let result = scu::send(peer, &objects, &mut sent).await;
        self.tell(row, &objects, began_ms, sent, result.as_ref().err().map(SendError::to_string));
        let left_out = result?;
        for class in left_out {
            log::warn!(event = "report_object_left_out", destination = name.as_str(), class = class; "the destination does not take SOP class {class}, the rest was delivered");
        }
        log::info!(event = "report_delivered", destination = name.as_str(), study = self.wiring.ledger.reference(&row.study_uid).as_str(); "report delivered");
        Ok(())
    }

    fn failed(&self, seq: i64, reason: &str) -> Result<(), LedgerError> {
        self.wiring.ledger.report_failed(seq, reason)
    }

    fn settled(&self, seq: i64, how: Settled) -> Result<(), LedgerError> {
        self.wiring.ledger.report_settled(seq, how, clock::wall_ms())
    }
}

impl Reports {
    fn objects(&self, row: &ReportRow) -> Result<Vec<scu::Object>, String> {
        let study = StudyUid::parse(&row.study_uid).map_err(|e| e.to_string())?;
        let series = SeriesUid::parse(&row.series_uid).map_err(|e| e.to_string())?;
        // Not hashed again with every attempt: no report says a hash of an instance.
        let instances = self.wiring.spool.series(&study, &series).map_err(|e| crate::chain(&e))?;
        let site = self.wiring.ledger.site();
        let order = Order { row, instances, site, kinds: &self.destination.objects };
        make(order).map_err(|e| crate::chain(&e))
    }

    /// Into the audit log of the house. A report that cannot be told of is delivered all the same.
    fn tell(
        &self,
        row: &ReportRow,
        objects: &[scu::Object],
        began_ms: u64,
        sent: Sent,
        failure: Option<String>,
    ) {
        let ledger = &self.wiring.ledger;
        if !ledger.is_audited() {
            return;
        }
        let mut transfer = Transfer { study_uid: row.study_uid.clone(), ..Transfer::default() };
        for object in objects {
            transfer.patient_id = object.dataset.string((0x0010, 0x0020)).unwrap_or_default();
            *transfer.instances.entry(object.sop_class.into()).or_default() += 1;
        }
        let to = (&self.destination.ae_title, self.destination.address.as_str());
        deliver::tell(ledger, transfer, to, began_ms, sent, failure);
    }
}
