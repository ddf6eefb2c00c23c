//! One task per destination: takes what waits in the ledger, sends it, and comes back later where that failed. For results
//! (`report`) and for images (`forward`), which differ in what they send and where it is queued.
//!
//! A destination that is down is waited for with growing pauses; one item that it will not have is tried less and less
//! often, and holds up no other. After a time both are given up, aloud.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::atna::{Event, Node, Transfer};
use crate::clock;
use crate::dicom::AeTitle;
use crate::ledger::{Ledger, LedgerError, Settled};

/// How often an idle task looks whether something waits.
const LOOK: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const REFUSED_MIN: Duration = Duration::from_secs(10);
const REFUSED_MAX: Duration = Duration::from_secs(600);
/// Items looked at in one round.
const ROUND_MAX: usize = 64;

/// One thing that waits.
pub trait Item: Send + Sync {
    /// Its number in the queue.
    fn seq(&self) -> i64;
    /// Since when it waits, wall time in ms.
    fn since_ms(&self) -> u64;
}

/// Why something was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// A stable word or two.
    pub reason: String,
    /// It is the destination's trouble, not this item's.
    pub is_outage: bool,
}

/// What the journal calls it.
#[derive(Debug, Clone, Copy)]
pub struct Events {
    /// An attempt has failed.
    pub failed: &'static str,
    /// There will be no other.
    pub given_up: &'static str,
}

/// A queue of one destination.
pub trait Queue: Send + Sync + 'static {
    /// What waits in it.
    type Item: Item;
    /// What the journal calls it.
    const EVENTS: Events;
    /// Name in queue, journal and metrics.
    fn destination(&self) -> String;
    /// What waits, oldest first.
    fn waiting(&self, most: usize) -> Result<Vec<Self::Item>, LedgerError>;
    /// Sends one item, and says so.
    fn deliver(&self, item: &Self::Item) -> impl Future<Output = Result<(), Failure>> + Send;
    /// An attempt failed.
    fn failed(&self, seq: i64, reason: &str) -> Result<(), LedgerError>;
    /// The item needs no more attempts.
    fn settled(&self, seq: i64, how: Settled) -> Result<(), LedgerError>;
}

/// Works on a queue until shutdown.
pub async fn run<Q: Queue>(queue: Q, give_up: Duration, mut shutdown: watch::Receiver<bool>) {
    let mut task = Task { queue, give_up, refused: HashMap::new() };
    let mut backoff = BACKOFF_MIN;
    while !*shutdown.borrow() {
        let round = tokio::select! {
            round = task.round() => round,
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

struct Task<Q> {
    queue: Q,
    give_up: Duration,
    /// Items that were refused: when to try again, and how long to wait after that.
    refused: HashMap<i64, (Instant, Duration)>,
}

/// How a round ended.
enum Round {
    Idle,
    Sent,
    Outage,
}

impl<Q: Queue> Task<Q> {
    /// Tries everything that is due, until the destination as a whole is away.
    async fn round(&mut self) -> Round {
        let waiting = tokio::task::block_in_place(|| self.queue.waiting(ROUND_MAX)).unwrap_or_else(|error| {
            log::error!(event = "ledger_failed"; "what waits could not be read: {error}");
            Vec::new()
        });
        self.refused.retain(|seq, _| waiting.iter().any(|item| item.seq() == *seq));
        let mut round = Round::Idle;
        for item in waiting {
            if self.refused.get(&item.seq()).is_some_and(|(at, _)| clock::now() < *at) {
                continue;
            }
            match self.queue.deliver(&item).await {
                Ok(()) => {
                    self.refused.remove(&item.seq());
                    self.settle(&item, Settled::Delivered);
                    round = Round::Sent;
                }
                Err(failure) => {
                    self.failed(&item, &failure);
                    if failure.is_outage {
                        return Round::Outage;
                    }
                }
            }
        }
        round
    }

    fn failed(&mut self, item: &Q::Item, failure: &Failure) {
        let (destination, reason) = (self.queue.destination(), failure.reason.as_str());
        log::warn!(event = Q::EVENTS.failed, destination = destination.as_str(), reason = reason; "not delivered, will be tried again");
        if clock::wall_ms().saturating_sub(item.since_ms()) > clock::ms(self.give_up) {
            log::error!(event = Q::EVENTS.given_up, reason = "too_old", destination = destination.as_str(); "given up");
            return self.settle(item, Settled::GivenUp);
        }
        if !failure.is_outage {
            let again = |(_, wait): &(Instant, Duration)| (*wait * 2).min(REFUSED_MAX);
            let wait = self.refused.get(&item.seq()).map_or(REFUSED_MIN, again);
            self.refused.insert(item.seq(), (clock::now() + wait, wait));
        }
        if let Err(error) = tokio::task::block_in_place(|| self.queue.failed(item.seq(), reason)) {
            log::error!(event = "ledger_failed"; "a failed attempt could not be noted: {error}");
        }
    }

    fn settle(&self, item: &Q::Item, how: Settled) {
        if let Err(error) = tokio::task::block_in_place(|| self.queue.settled(item.seq(), how)) {
            // It will be sent again, which is harmless.
            log::error!(event = "ledger_failed"; "what was delivered could not be settled: {error}");
        }
    }
}

/// Into the audit log of the house: a transfer was begun and has ended well. What cannot be told of is delivered all the
/// same.
pub fn tell(ledger: &Ledger, transfer: Transfer, ae_title: &AeTitle, address: &str, began_ms: u64) {
    let to = Node { ae_title: ae_title.to_string(), host: host_of(address).into() };
    let events = [
        (began_ms, Event::Begin { transfer: transfer.clone(), to: to.clone() }),
        (clock::wall_ms(), Event::Sent { transfer, to, failure: None }),
    ];
    if let Err(error) = tokio::task::block_in_place(|| ledger.atna(&events)) {
        log::error!(event = "ledger_failed"; "an audit message could not be queued: {error}");
    }
}

/// Host of `host:port`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}
