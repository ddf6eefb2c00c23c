//! One task per destination: takes what waits in the ledger, sends it, and comes back later where that failed. For results
//! (`report`) and for images (`forward`), which differ in what they send and where it is queued.
//!
//! A destination that is down is waited for with growing pauses; one item that it will not have is tried less and less
//! often, and holds up no other. Nor does one at which the destination only seems to be down: the others come first the
//! next time. After a time both are given up, aloud.

use std::collections::{BTreeMap, HashMap, HashSet};
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
    /// No association came about: it is the destination's trouble, as far as can be told, not this item's.
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
    /// What waits, oldest first, but for some.
    fn waiting(&self, most: usize, but: &[i64]) -> Result<Vec<Self::Item>, LedgerError>;
    /// Sends one item, and says so.
    fn deliver(&self, item: &Self::Item) -> impl Future<Output = Result<(), Failure>> + Send;
    /// An attempt failed.
    fn failed(&self, seq: i64, reason: &str) -> Result<(), LedgerError>;
    /// The item needs no more attempts.
    fn settled(&self, seq: i64, how: Settled) -> Result<(), LedgerError>;
}

/// Works on a queue until shutdown.
pub async fn run<Q: Queue>(queue: Q, give_up: Duration, mut shutdown: watch::Receiver<bool>) {
    let mut task = Task { queue, give_up, refused: HashMap::new(), passed_over: HashSet::new() };
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
    /// Items at which the destination was away: the others have their turn first.
    passed_over: HashSet<i64>,
}

/// How a round ended.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Idle,
    Sent,
    Outage,
}

impl<Q: Queue> Task<Q> {
    /// Tries everything that is due, until the destination as a whole is away.
    async fn round(&mut self) -> Round {
        let mut waiting = self.waiting();
        if waiting.is_empty() && !self.passed_over.is_empty() {
            self.passed_over.clear();
            waiting = self.waiting();
        }
        let mut round = Round::Idle;
        for item in waiting {
            match self.queue.deliver(&item).await {
                Ok(()) => {
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

    /// What is due: however many have to wait, those behind them are seen.
    fn waiting(&self) -> Vec<Q::Item> {
        let now = clock::now();
        let refused = self.refused.iter().filter(|(_, (at, _))| now < *at).map(|(seq, _)| *seq);
        let but: Vec<i64> = refused.chain(self.passed_over.iter().copied()).collect();
        tokio::task::block_in_place(|| self.queue.waiting(ROUND_MAX, &but)).unwrap_or_else(|error| {
            log::error!(event = "ledger_failed"; "what waits could not be read: {error}");
            Vec::new()
        })
    }

    fn failed(&mut self, item: &Q::Item, failure: &Failure) {
        let (destination, reason) = (self.queue.destination(), failure.reason.as_str());
        log::warn!(event = Q::EVENTS.failed, destination = destination.as_str(), reason = reason; "not delivered, will be tried again");
        if clock::wall_ms().saturating_sub(item.since_ms()) > clock::ms(self.give_up) {
            log::error!(event = Q::EVENTS.given_up, reason = "too_old", destination = destination.as_str(); "given up");
            return self.settle(item, Settled::GivenUp);
        }
        if failure.is_outage {
            self.passed_over.insert(item.seq());
        } else {
            let again = |(_, wait): &(Instant, Duration)| (*wait * 2).min(REFUSED_MAX);
            let wait = self.refused.get(&item.seq()).map_or(REFUSED_MIN, again);
            self.refused.insert(item.seq(), (clock::now() + wait, wait));
        }
        if let Err(error) = tokio::task::block_in_place(|| self.queue.failed(item.seq(), reason)) {
            log::error!(event = "ledger_failed"; "a failed attempt could not be noted: {error}");
        }
    }

    fn settle(&mut self, item: &Q::Item, how: Settled) {
        self.refused.remove(&item.seq());
        self.passed_over.remove(&item.seq());
        if let Err(error) = tokio::task::block_in_place(|| self.queue.settled(item.seq(), how)) {
            // It will be sent again, which is harmless.
            log::error!(event = "ledger_failed"; "what was delivered could not be settled: {error}");
        }
    }
}

/// What went out on one association.
#[derive(Debug, Default)]
pub struct Sent {
    /// Instances that the destination has answered for, by SOP Class UID.
    pub taken: BTreeMap<String, usize>,
    /// A data set was begun, whatever became of it.
    pub is_begun: bool,
}

impl Sent {
    /// An instance is about to go.
    pub fn begin(&mut self) {
        self.is_begun = true;
    }

    /// It has arrived.
    pub fn took(&mut self, sop_class: &str) {
        *self.taken.entry(sop_class.into()).or_default() += 1;
    }
}

/// Into the audit log of the house: a transfer was begun, and how it ended, with what had left until then. What cannot
/// be told of is delivered all the same; an attempt that sent nothing is none.
pub fn tell(
    ledger: &Ledger,
    transfer: Transfer,
    (ae_title, address): (&AeTitle, &str),
    began_ms: u64,
    sent: Sent,
    failure: Option<String>,
) {
    if !sent.is_begun {
        return;
    }
    let to = Node { ae_title: ae_title.to_string(), host: host_of(address).into() };
    let arrived = Transfer { instances: sent.taken, ..transfer.clone() };
    let events = [
        (began_ms, Event::Begin { transfer, to: to.clone() }),
        (clock::wall_ms(), Event::Sent { transfer: arrived, to, failure }),
    ];
    if let Err(error) = tokio::task::block_in_place(|| ledger.atna(&events)) {
        log::error!(event = "ledger_failed"; "an audit message could not be queued: {error}");
    }
}

/// Host of `host:port`.
fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What each attempt at each item meets; an item without an entry is taken.
    type Fate = Box<dyn Fn(i64) -> Option<Failure> + Send + Sync>;

    #[derive(Clone)]
    struct Fake {
        waiting: Arc<Mutex<Vec<i64>>>,
        tried: Arc<Mutex<Vec<i64>>>,
        fate: Arc<Fate>,
    }

    struct Thing(i64);

    impl Item for Thing {
        fn seq(&self) -> i64 {
            self.0
        }

        fn since_ms(&self) -> u64 {
            clock::wall_ms()
        }
    }

    impl Queue for Fake {
        type Item = Thing;
        const EVENTS: Events = Events { failed: "test_failed", given_up: "test_given_up" };

        fn destination(&self) -> String {
            "PACS@h:104".into()
        }

        fn waiting(&self, most: usize, but: &[i64]) -> Result<Vec<Thing>, LedgerError> {
            let waiting = self.waiting.lock().unwrap();
            Ok(waiting.iter().filter(|seq| !but.contains(seq)).take(most).map(|seq| Thing(*seq)).collect())
        }

        async fn deliver(&self, item: &Thing) -> Result<(), Failure> {
            self.tried.lock().unwrap().push(item.0);
            (self.fate)(item.0).map_or(Ok(()), Err)
        }

        fn failed(&self, _: i64, _: &str) -> Result<(), LedgerError> {
            Ok(())
        }

        fn settled(&self, seq: i64, _: Settled) -> Result<(), LedgerError> {
            self.waiting.lock().unwrap().retain(|s| *s != seq);
            Ok(())
        }
    }

    fn task(n: i64, fate: impl Fn(i64) -> Option<Failure> + Send + Sync + 'static) -> Task<Fake> {
        let queue = Fake {
            waiting: Arc::new(Mutex::new((1..=n).collect())),
            tried: Arc::default(),
            fate: Arc::new(Box::new(fate)),
        };
        let give_up = Duration::from_secs(3600);
        Task { queue, give_up, refused: HashMap::new(), passed_over: HashSet::new() }
    }

    fn failure(is_outage: bool) -> Option<Failure> {
        Some(Failure { reason: "no".into(), is_outage })
    }

    fn left(task: &Task<Fake>) -> Vec<i64> {
        task.queue.waiting.lock().unwrap().clone()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_destination_will_not_have_holds_up_no_other_however_much_of_it_there_is() {
        let mut task = task(200, |seq| failure(false).filter(|_| seq <= 150));
        for _ in 0..4 {
            task.round().await;
        }
        assert_eq!(left(&task), (1..=150).collect::<Vec<_>>());
        assert_eq!(task.queue.tried.lock().unwrap().len(), 200, "each once: nothing is due again yet");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_at_which_the_destination_seems_to_be_away_holds_up_no_other() {
        let mut task = task(4, |seq| failure(true).filter(|_| seq <= 2));
        assert_eq!(task.round().await, Round::Outage);
        assert_eq!(task.round().await, Round::Outage);
        assert_eq!(task.round().await, Round::Sent);
        assert_eq!(left(&task), [1, 2]);
        // And they keep being tried.
        assert_eq!(task.round().await, Round::Outage);
        assert_eq!(task.round().await, Round::Outage);
        assert_eq!(*task.queue.tried.lock().unwrap(), [1, 2, 3, 4, 1, 2]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_destination_that_is_away_is_asked_once_a_round_and_gets_everything_afterwards() {
        let is_up = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let up = is_up.clone();
        let down = move |_| failure(true).filter(|_| !up.load(std::sync::atomic::Ordering::Relaxed));
        let mut task = task(3, down);
        for round in 1..=5 {
            assert_eq!(task.round().await, Round::Outage);
            assert_eq!(task.queue.tried.lock().unwrap().len(), round);
        }
        is_up.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(task.round().await, Round::Sent);
        assert_eq!(task.round().await, Round::Sent);
        assert_eq!(task.round().await, Round::Idle);
        assert_eq!(left(&task), [0; 0]);
    }
}
