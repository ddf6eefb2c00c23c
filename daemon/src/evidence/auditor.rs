//! What the door has to say to the audit log: who was turned away, and what came in. `receive` hands it over and waits for
//! nothing; here it is written down. Who floods us with refusals takes no place from what came in.
//!
//! A flood of refusals must not become a flood of rows. The first of its kind from one address is written at once; what
//! follows is counted, and written as one row when its window ends. Windows of a kind that goes on double, from a minute
//! to an hour; beyond a number of kinds at once, addresses are not told apart any more. So rows are bounded, whatever a
//! network does, and every refusal is in the count of one of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::atna::{Event, Node, Transfer};
use crate::clock;
use crate::ledger::Ledger;

const WINDOW_MIN: Duration = Duration::from_secs(60);
const WINDOW_MAX: Duration = Duration::from_secs(3600);
/// Kinds told apart by address at once.
const KINDS_MAX: usize = 32;
/// Refusals, and transfers, between `receive` and here; what does not fit is counted.
const CHANNEL_MAX: usize = 1024;
/// How often the windows are looked at.
const TICK: Duration = Duration::from_secs(1);

/// One thing that was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// What: the journal's event.
    pub event: &'static str,
    /// Why, a stable word.
    pub reason: String,
    /// From where; empty where many addresses are one.
    pub peer: String,
    /// AE title it called itself, safe to print.
    pub calling: String,
    /// AE title it called.
    pub called: String,
    /// More, without patient text.
    pub detail: String,
}

/// One row: refusals of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The first of them.
    pub first: Refusal,
    /// How many.
    pub count: u64,
    /// When the first and the last came, wall time in ms since the epoch.
    pub between_ms: [u64; 2],
}

/// The side of whoever stands at the door; clones say to the same.
#[derive(Debug, Clone)]
pub struct Auditor {
    refusals: mpsc::Sender<Refusal>,
    transfers: mpsc::Sender<(Transfer, Node)>,
    missed: Arc<Missed>,
    wants_transfers: bool,
}

/// What did not fit.
#[derive(Debug, Default)]
struct Missed {
    refusals: AtomicU64,
    transfers: AtomicU64,
}

/// The side that writes; to be run.
pub struct Minutes {
    refusals: mpsc::Receiver<Refusal>,
    transfers: mpsc::Receiver<(Transfer, Node)>,
    missed: Arc<Missed>,
}

/// Both sides.
pub fn new(wants_transfers: bool) -> (Auditor, Minutes) {
    let (refusals_tx, refusals) = mpsc::channel(CHANNEL_MAX);
    let (transfers_tx, transfers) = mpsc::channel(CHANNEL_MAX);
    let missed = Arc::<Missed>::default();
    let auditor =
        Auditor { refusals: refusals_tx, transfers: transfers_tx, missed: missed.clone(), wants_transfers };
    (auditor, Minutes { refusals, transfers, missed })
}

impl Auditor {
    /// Somebody was refused. Never waits.
    pub fn refused(&self, refusal: Refusal) {
        if self.refusals.try_send(refusal).is_err() {
            self.missed.refusals.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether anybody wants to hear of [`Auditor::received`].
    pub fn wants_transfers(&self) -> bool {
        self.wants_transfers
    }

    /// An association brought something. Never waits: what does not fit, because the database has stood for a thousand of
    /// these, is not told the repository, and the journal says how much that was.
    pub fn received(&self, transfer: Transfer, from: Node) {
        if self.transfers.try_send((transfer, from)).is_err() {
            self.missed.transfers.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Minutes {
    /// Writes until nobody is left who could say anything.
    pub async fn run(self, ledger: Arc<Ledger>) {
        let received = |transfer, from| {
            let event = Event::Received { transfer, from };
            let queued = tokio::task::block_in_place(|| ledger.atna(&[(clock::wall_ms(), event)]));
            if let Err(error) = queued {
                log::error!(event = "ledger_failed"; "an audit message could not be queued: {error}");
            }
        };
        self.take(tokio::time::interval(TICK), |entries| write(&ledger, &entries), received).await;
    }

    /// The same for whoever writes. Windows are counted in ticks of a clock of their own, which what is said does not
    /// touch.
    async fn take(
        mut self,
        mut tick: tokio::time::Interval,
        mut write: impl FnMut(Vec<Entry>),
        mut received: impl FnMut(Transfer, Node),
    ) {
        let mut tallies = Tallies::default();
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut now = clock::now();
        loop {
            let entries = tokio::select! {
                refusal = self.refusals.recv() => match refusal {
                    Some(refusal) => tallies.take(now, clock::wall_ms(), refusal, 1).into_iter().collect(),
                    None => break,
                },
                Some((transfer, from)) = self.transfers.recv() => {
                    received(transfer, from);
                    Vec::new()
                }
                _ = tick.tick() => {
                    now += TICK;
                    tallies.due(now)
                }
            };
            write(entries);
            let missed = self.missed.refusals.swap(0, Ordering::Relaxed);
            if missed > 0 {
                let refusal =
                    Refusal { event: "refused", reason: "too_many_to_tell".into(), ..Refusal::default() };
                write(tallies.take(now, clock::wall_ms(), refusal, missed).into_iter().collect());
            }
            let missed = self.missed.transfers.swap(0, Ordering::Relaxed);
            if missed > 0 {
                log::error!(event = "atna_missed", count = missed; "{missed} transfers came faster than they could be told the repository");
            }
        }
        while let Some((transfer, from)) = self.transfers.recv().await {
            received(transfer, from);
        }
        write(tallies.all());
    }

    /// The next refusal that was said.
    #[cfg(test)]
    pub(crate) async fn refusal(&mut self) -> Option<Refusal> {
        self.refusals.recv().await
    }

    /// How many were said and not looked at.
    #[cfg(test)]
    pub(crate) fn n_refusals(&self) -> usize {
        self.refusals.len()
    }
}

fn write(ledger: &Ledger, entries: &[Entry]) {
    for entry in entries {
        if let Err(error) = tokio::task::block_in_place(|| ledger.refused(entry)) {
            log::error!(event = "ledger_failed"; "a refusal could not be written down: {error}");
        }
    }
}

/// Event, reason, address.
type Kind = (&'static str, String, String);

#[derive(Debug)]
struct Tally {
    window: Duration,
    ends: Instant,
    /// Since the last row of this kind.
    since: Option<Entry>,
}

/// Counts of what is not written yet. Pure.
#[derive(Debug, Default)]
struct Tallies(BTreeMap<Kind, Tally>);

impl Tallies {
    /// Takes refusals of one kind in; a row where it is the first of it.
    fn take(&mut self, now: Instant, wall_ms: u64, refusal: Refusal, count: u64) -> Option<Entry> {
        let mut kind = (refusal.event, refusal.reason.clone(), refusal.peer.clone());
        let mut refusal = refusal;
        if !self.0.contains_key(&kind) && self.0.len() >= KINDS_MAX {
            kind.2.clear();
            refusal = Refusal {
                peer: String::new(),
                calling: String::new(),
                called: String::new(),
                detail: String::new(),
                ..refusal
            };
        }
        let entry = Entry { first: refusal, count, between_ms: [wall_ms, wall_ms] };
        let Some(tally) = self.0.get_mut(&kind) else {
            self.0.insert(kind, Tally { window: WINDOW_MIN, ends: now + WINDOW_MIN, since: None });
            return Some(entry);
        };
        match &mut tally.since {
            Some(since) => {
                since.count += count;
                since.between_ms[1] = wall_ms;
            }
            none => *none = Some(entry),
        }
        None
    }

    /// Rows of the windows that have ended. A kind that was quiet for a whole window is forgotten.
    fn due(&mut self, now: Instant) -> Vec<Entry> {
        let mut entries = Vec::new();
        self.0.retain(|_, tally| {
            if now < tally.ends {
                return true;
            }
            let Some(entry) = tally.since.take() else { return false };
            entries.push(entry);
            tally.window = (tally.window * 2).min(WINDOW_MAX);
            tally.ends = now + tally.window;
            true
        });
        entries
    }

    /// What is left at the end.
    fn all(self) -> Vec<Entry> {
        self.0.into_values().filter_map(|tally| tally.since).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(peer: &str, reason: &str) -> Refusal {
        Refusal {
            event: "association_refused",
            reason: reason.into(),
            peer: peer.into(),
            calling: "X".into(),
            ..Refusal::default()
        }
    }

    #[test]
    fn a_flood_is_a_few_rows_that_count_every_one_of_it() {
        let t0 = clock::now();
        let mut tallies = Tallies::default();
        let mut rows = Vec::new();
        let mut said = 0;
        // A day: ten refusals a second from one address, and now and then a stranger.
        for second in 0..86_400u64 {
            let now = t0 + Duration::from_secs(second);
            for _ in 0..10 {
                rows.extend(tallies.take(now, second * 1000, refusal("10.0.0.1", "unknown_calling"), 1));
                said += 1;
            }
            if second % 600 == 0 {
                rows.extend(tallies.take(now, second * 1000, refusal("10.0.0.2", "unknown_address"), 1));
                said += 1;
            }
            rows.extend(tallies.due(now));
        }
        rows.extend(tallies.all());
        assert_eq!(rows.iter().map(|r| r.count).sum::<u64>(), said);
        let flood = rows.iter().filter(|r| r.first.peer == "10.0.0.1").count();
        assert!((2..=32).contains(&flood), "{flood} rows of one flood");
        assert_eq!(rows[0].count, 1, "the first is written at once");
        assert_eq!(rows.len() - flood, 144, "a rare one is a row each time");
    }

    #[tokio::test]
    async fn a_flood_is_written_down_while_it_lasts_and_a_stranger_in_it_by_name() {
        let (auditor, minutes) = new(true);
        let (rows_tx, mut rows) = mpsc::unbounded_channel();
        let (came_tx, mut came) = mpsc::unbounded_channel();
        // A second that takes a millisecond, and never one of them without a word.
        let taken = tokio::spawn(minutes.take(
            tokio::time::interval(Duration::from_millis(1)),
            move |entries| entries.into_iter().for_each(|entry| drop(rows_tx.send(entry))),
            move |transfer, _| drop(came_tx.send(transfer)),
        ));
        let (mut said, mut written) = (0, Vec::<Entry>::new());
        let of = |written: &[Entry], peer: &str| written.iter().filter(|e| e.first.peer == peer).count();
        // As many kinds as are told apart, then one of them without end.
        for n in 0..KINDS_MAX {
            auditor.refused(refusal(&format!("10.0.1.{n}"), "unknown_calling"));
            said += 1;
        }
        let mut n_sent = 0;
        while of(&written, "10.0.1.0") < 4 {
            assert!(said < 20_000_000, "nothing is written down as long as the flood lasts");
            auditor.refused(refusal("10.0.1.0", "unknown_calling"));
            said += 1;
            if said % 100 == 0 {
                auditor.received(Transfer::default(), Node::default());
                n_sent += 1;
            }
            tokio::task::yield_now().await;
            written.extend(std::iter::from_fn(|| rows.try_recv().ok()));
        }
        // The quiet kinds are forgotten by now, so that there is room for a new one.
        auditor.refused(refusal("10.0.2.9", "unknown_address"));
        said += 1;
        drop(auditor);
        taken.await.unwrap();
        written.extend(std::iter::from_fn(|| rows.try_recv().ok()));
        assert_eq!(of(&written, "10.0.2.9"), 1);
        assert_eq!(written.iter().map(|e| e.count).sum::<u64>(), said);
        assert_eq!(std::iter::from_fn(|| came.try_recv().ok()).count(), n_sent);
    }

    #[tokio::test]
    async fn nobody_at_the_door_waits_for_the_database() {
        let (auditor, mut minutes) = new(true);
        for _ in 0..CHANNEL_MAX + 7 {
            auditor.refused(refusal("10.0.0.1", "flood"));
        }
        for _ in 0..CHANNEL_MAX + 3 {
            auditor.received(Transfer::default(), Node::default());
        }
        assert!(minutes.refusal().await.is_some() && minutes.n_refusals() == CHANNEL_MAX - 1);
        let missed = |n: &AtomicU64| n.load(Ordering::Relaxed);
        assert_eq!((missed(&minutes.missed.refusals), missed(&minutes.missed.transfers)), (7, 3));
    }

    #[test]
    fn a_thousand_addresses_are_not_a_thousand_rows_a_minute() {
        let t0 = clock::now();
        let mut tallies = Tallies::default();
        let mut rows = Vec::new();
        for n in 0..1000 {
            rows.extend(tallies.take(t0, 5, refusal(&format!("10.0.{}.{}", n / 250, n % 250), "flood"), 1));
        }
        rows.extend(tallies.due(t0 + WINDOW_MIN));
        assert_eq!(rows.iter().map(|r| r.count).sum::<u64>(), 1000);
        assert!(rows.len() <= KINDS_MAX + 2, "{}", rows.len());
        assert!(rows.iter().any(|r| r.first.peer.is_empty() && r.first.calling.is_empty()));
    }
}
