//! Every event of ours that passes the journal is counted, so that a number cannot drift from what was said.
//!
//! Labels are the event's name and its reason: stable words of this program, never text from a peer or of a patient.
//! What is not a word becomes `other`, and there is room for a bounded number of pairs.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use log::kv::{Error, Key, Value, VisitSource};

/// Pairs of event and reason that are told apart; beyond that they are `other`.
const PAIRS_MAX: usize = 512;
const WORD_BYTES_MAX: usize = 64;
/// Upper bounds of the time from the last slice on disk to its final verdict, ms.
pub const VERDICT_MS_BOUNDS: [u64; 9] = [250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000];

/// What has been counted since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// By event and reason; the reason is empty where an event has none.
    pub events: BTreeMap<(String, String), u64>,
    /// Instances acknowledged to senders, by associations that have ended.
    pub instances: u64,
    /// Final verdicts by time since the last slice: one count per bound of [`VERDICT_MS_BOUNDS`] and one beyond.
    pub verdicts: [u64; VERDICT_MS_BOUNDS.len() + 1],
    /// Sum of those times, ms.
    pub verdict_ms_sum: u64,
}

static COUNTS: Mutex<Option<Counts>> = Mutex::new(None);

/// Counts a record of the journal.
pub fn count(record: &log::Record) {
    let mut seen = Seen::default();
    if record.key_values().visit(&mut seen).is_err() || seen.event.is_empty() {
        return;
    }
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    counts.get_or_insert_with(Counts::default).add(seen);
}

/// Counts a final verdict by the time since its last slice was on disk, ms.
pub fn final_verdict(since_last_slice_ms: u64) {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    counts.get_or_insert_with(Counts::default).add_verdict(since_last_slice_ms);
}

/// What has been counted so far.
pub fn so_far() -> Counts {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default()
}

#[derive(Debug, Default)]
struct Seen {
    event: String,
    reason: String,
    stored: u64,
}

impl<'kvs> VisitSource<'kvs> for Seen {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        match key.as_str() {
            "event" => self.event = word(&value.to_string()),
            "reason" | "end" | "status" => self.reason = word(&value.to_string()),
            "stored" => self.stored = value.to_u64().unwrap_or(0),
            _ => {}
        }
        Ok(())
    }
}

impl Counts {
    fn add(&mut self, seen: Seen) {
        self.instances += seen.stored;
        let key = (seen.event, seen.reason);
        let known = self.events.len() < PAIRS_MAX || self.events.contains_key(&key);
        let key = if known { key } else { ("other".into(), String::new()) };
        *self.events.entry(key).or_default() += 1;
    }

    fn add_verdict(&mut self, ms: u64) {
        let bucket = VERDICT_MS_BOUNDS.iter().position(|bound| ms <= *bound);
        self.verdicts[bucket.unwrap_or(VERDICT_MS_BOUNDS.len())] += 1;
        self.verdict_ms_sum += ms;
    }
}

/// A stable word as it is; anything else, which could be a peer's, as `other`.
fn word(text: &str) -> String {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':' | b'-');
    match text.len() <= WORD_BYTES_MAX && text.bytes().all(is_word) {
        true => text.to_owned(),
        false => "other".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(event: &str, reason: &str) -> Seen {
        Seen { event: word(event), reason: word(reason), ..Seen::default() }
    }

    #[test]
    fn words_of_ours_are_labels_and_other_text_is_not() {
        let mut counts = Counts::default();
        counts.add(seen("association_refused", "unknown_calling"));
        counts.add(seen("association_refused", "unknown_calling"));
        counts.add(seen("store_refused", "DOE^JANE"));
        let get = |event: &str, reason: &str| counts.events.get(&(event.into(), reason.into())).copied();
        assert_eq!(get("association_refused", "unknown_calling"), Some(2));
        assert_eq!(get("store_refused", "other"), Some(1));
    }

    #[test]
    fn a_flood_of_reasons_is_bounded() {
        let mut counts = Counts::default();
        (0..10_000).for_each(|n| counts.add(seen("x", &n.to_string())));
        assert!(counts.events.len() <= PAIRS_MAX + 1);
        assert_eq!(counts.events.values().sum::<u64>(), 10_000);
    }

    #[test]
    fn times_to_a_verdict_fall_into_their_buckets() {
        let mut counts = Counts::default();
        [0, 250, 251, 1_000_000].into_iter().for_each(|ms| counts.add_verdict(ms));
        assert_eq!((counts.verdicts[0], counts.verdicts[1], counts.verdicts[9]), (2, 1, 1));
    }
}
