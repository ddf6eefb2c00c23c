//! What a receiver of alerts holds: one revisioned document per alert. Pure; the page has the same tiny machine in
//! `daemon/station/src/reducer.ts`, and `daemon/station/vectors/*.json` hold both to one behaviour.
//!
//! - A document is applied only if its revision is higher than what is held for that alert.
//! - An empty payload purges the alert; its revision is remembered, and it comes back only with a higher one.
//! - Anything else (not JSON, another schema, an identity that is not the topic's) changes nothing.
//!
//! So duplicates, reordering, late joining and lost intermediates are harmless.

use std::collections::{BTreeMap, VecDeque};

use serde_json::Value;

/// Revisions remembered of purged alerts; the oldest are forgotten first.
pub const PURGED_MAX: usize = 4096;

/// What a message did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A higher revision: it is held now.
    Applied,
    /// The revision that is held, again.
    Repeated,
    /// A lower revision, or nothing to purge.
    Stale,
    /// The alert is held no more.
    Purged,
    /// No alert document of this topic.
    Refused,
}

impl Change {
    /// As the shared vectors spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Applied => "applied",
            Change::Repeated => "repeated",
            Change::Stale => "stale",
            Change::Purged => "purged",
            Change::Refused => "refused",
        }
    }
}

/// `{device}, {alert_id}`: a device cannot hide another's alert behind a higher revision.
type Key = (String, String);

/// Alerts as a receiver holds them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Alerts {
    held: BTreeMap<Key, (u64, Value)>,
    purged: BTreeMap<Key, u64>,
    /// Purged keys, the oldest first.
    order: VecDeque<Key>,
}

impl Alerts {
    /// Applies one message of `dev/{device}/alert/{alert_id}`.
    pub fn apply(&mut self, device: &str, alert_id: &str, payload: &[u8]) -> Change {
        let key = (device.to_owned(), alert_id.to_owned());
        if payload.is_empty() {
            let Some((rev, _)) = self.held.remove(&key) else { return Change::Stale };
            self.remember_purged(key, rev);
            return Change::Purged;
        }
        let Some((rev, document)) = read(device, alert_id, payload) else { return Change::Refused };
        if let Some((held, _)) = self.held.get(&key)
            && rev <= *held
        {
            return if rev == *held { Change::Repeated } else { Change::Stale };
        }
        if self.purged.get(&key).is_some_and(|purged| rev <= *purged) {
            return Change::Stale;
        }
        if self.purged.remove(&key).is_some() {
            self.order.retain(|k| *k != key);
        }
        self.held.insert(key, (rev, document));
        Change::Applied
    }

    /// The document held of an alert.
    pub fn get(&self, device: &str, alert_id: &str) -> Option<&Value> {
        self.held.get(&(device.to_owned(), alert_id.to_owned())).map(|(_, document)| document)
    }

    /// Device, alert id and revision of everything held.
    pub fn revisions(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.held.iter().map(|((device, id), (rev, _))| (device.as_str(), id.as_str(), *rev))
    }

    fn remember_purged(&mut self, key: Key, rev: u64) {
        if self.order.len() >= PURGED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.purged.remove(&oldest);
        }
        self.purged.insert(key.clone(), rev);
        self.order.push_back(key);
    }
}

/// Revision and document, if it is an alert document of this topic with what a receiver cannot do without.
fn read(device: &str, alert_id: &str, payload: &[u8]) -> Option<(u64, Value)> {
    let document: Value = serde_json::from_slice(payload).ok()?;
    let is_whole = document["schema"] == "ichd.alert/1"
        && document["alert_id"] == alert_id
        && document.get("device").is_none_or(|d| d == device)
        && document["state"].is_string()
        && document["kind"].is_string()
        && document["priority"].is_number()
        && document["age_ms"].is_number();
    let rev = document["rev"].as_u64()?;
    is_whole.then_some((rev, document))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn document(device: &str, id: &str, rev: &Value) -> Value {
        json!({
            "schema": "ichd.alert/1", "alert_id": id, "rev": rev, "device": device,
            "kind": "finding", "state": "raised", "priority": 1, "age_ms": 0,
        })
    }

    fn payload(step: &Value) -> Vec<u8> {
        if step["purge"] == true {
            return vec![];
        }
        if let Some(raw) = step["payload"].as_str() {
            return raw.as_bytes().to_vec();
        }
        let mut document =
            document(step["device"].as_str().unwrap(), step["id"].as_str().unwrap(), &step["rev"]);
        for (name, value) in step["document"].as_object().into_iter().flatten() {
            document[name] = value.clone();
        }
        document.to_string().into_bytes()
    }

    #[test]
    fn the_vectors_shared_with_the_page_hold() {
        let vectors = [
            include_str!("../../station/vectors/revisions.json"),
            include_str!("../../station/vectors/purge.json"),
            include_str!("../../station/vectors/refusals.json"),
        ];
        for case in vectors.iter().flat_map(|text| serde_json::from_str::<Vec<Value>>(text).unwrap()) {
            let mut alerts = Alerts::default();
            for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
                let (device, id) = (step["device"].as_str().unwrap(), step["id"].as_str().unwrap());
                let change = alerts.apply(device, id, &payload(step));
                assert_eq!(change.as_str(), step["expect"], "{}, step {i}", case["name"]);
            }
            let held: serde_json::Map<_, _> =
                alerts.revisions().map(|(d, id, rev)| (format!("{d}/{id}"), rev.into())).collect();
            assert_eq!(Value::Object(held), case["held"], "{}", case["name"]);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

        /// 10,000 documents of 40 alerts, duplicated and in any order; then everything is purged and said again.
        #[test]
        fn duplicated_and_reordered_documents_end_in_the_highest_revision(
            seen in prop::collection::vec((0..40u64, 1..500u64), 10_000),
        ) {
            let mut alerts = Alerts::default();
            let mut highest: BTreeMap<String, u64> = BTreeMap::new();
            for (alert, rev) in &seen {
                let id = format!("A{alert:02}");
                let body = document("ct-1", &id, &(*rev).into()).to_string();
                alerts.apply("ct-1", &id, body.as_bytes());
                let top = highest.entry(id).or_default();
                *top = (*top).max(*rev);
            }
            let held: BTreeMap<_, _> = alerts.revisions().map(|(_, id, rev)| (id.to_owned(), rev)).collect();
            prop_assert_eq!(&held, &highest);
            for (id, rev) in &highest {
                prop_assert_eq!(&alerts.get("ct-1", id).unwrap()["rev"], &json!(rev));
                prop_assert_eq!(alerts.apply("ct-1", id, b""), Change::Purged);
            }
            for (alert, rev) in &seen {
                let id = format!("A{alert:02}");
                alerts.apply("ct-1", &id, document("ct-1", &id, &(*rev).into()).to_string().as_bytes());
            }
            prop_assert_eq!(alerts.revisions().count(), 0);
        }
    }

    #[test]
    fn what_is_remembered_of_purged_alerts_is_bounded() {
        let mut alerts = Alerts::default();
        for n in 0..PURGED_MAX + 10 {
            let id = n.to_string();
            alerts.apply("ct-1", &id, document("ct-1", &id, &1.into()).to_string().as_bytes());
            alerts.apply("ct-1", &id, b"");
        }
        assert_eq!((alerts.purged.len(), alerts.order.len()), (PURGED_MAX, PURGED_MAX));
    }
}
