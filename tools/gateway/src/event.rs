//! From documents to events (pure): what is new in a revision, and whether anybody wants to hear of it.
//!
//! The rule of every receiver: a document counts only if its `rev` is higher than what is held for its `alert_id`.
//! Duplicates, reordering and what the broker retained therefore tell nobody anything twice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Alerts remembered; beyond, the oldest (alert ids sort by time) are forgotten.
const REMEMBERED_MAX: usize = 10_000;

/// What has happened to an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// There is a new one.
    Raised,
    /// The complete series confirms it, or it says something else now.
    Revised,
    /// Nobody took it in time.
    Escalated,
    /// A named person has it.
    Acknowledged,
    /// Taken back.
    Withdrawn,
    /// Done.
    Resolved,
    /// Too old to matter.
    Expired,
}

impl Change {
    /// As it stands in documents and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Change::Raised => "raised",
            Change::Revised => "revised",
            Change::Escalated => "escalated",
            Change::Acknowledged => "acknowledged",
            Change::Withdrawn => "withdrawn",
            Change::Resolved => "resolved",
            Change::Expired => "expired",
        }
    }
}

/// One thing to tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// `alert_id` and `rev`: the same in every repetition.
    pub id: String,
    /// What has happened.
    pub change: Change,
    /// The document as it came.
    pub alert: Value,
    /// When it came, ms since the epoch.
    pub seen_ms: u64,
}

impl Event {
    /// A text field of the document, empty if absent; `path` as in a JSON pointer.
    pub fn text(&self, path: &str) -> &str {
        self.alert.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    /// A number of the document.
    pub fn number(&self, path: &str) -> Option<f64> {
        self.alert.pointer(path).and_then(Value::as_f64)
    }

    /// About the box itself.
    pub fn is_technical(&self) -> bool {
        self.text("/kind") == "technical"
    }

    /// One line for people; never a diagnosis, no patient.
    pub fn summary(&self) -> String {
        if self.is_technical() {
            return format!("technical: {}", self.text("/technical/text"));
        }
        let mut text = match self.change {
            Change::Withdrawn => "withdrawn: ".to_owned(),
            Change::Resolved => "resolved: ".to_owned(),
            Change::Acknowledged => "acknowledged: ".to_owned(),
            Change::Escalated => "nobody has taken it: ".to_owned(),
            _ => String::new(),
        };
        text += if self.text("/stage") == "provisional" { "provisional, suspected " } else { "suspected " };
        let subtypes: Vec<&str> = self
            .alert
            .pointer("/finding/subtypes")
            .and_then(Value::as_array)
            .map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect());
        text += if subtypes.is_empty() { "intracranial hemorrhage" } else { "" };
        text += &subtypes.join(", ");
        let side = self.text("/finding/side");
        if !side.is_empty() {
            text += &format!(" {side}");
        }
        text
    }
}

/// What is held of one alert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Held {
    rev: u64,
    state: String,
    stage: String,
    priority: u64,
    /// Of the ladder.
    step: u64,
    finding: Value,
}

/// What is held of all of them; survives a restart.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reducer {
    held: BTreeMap<String, Held>,
}

impl Reducer {
    /// Applies a document; the event, if it brings one. `Err` says why it is no alert.
    pub fn apply(&mut self, document: Value, seen_ms: u64) -> Result<Option<Event>, &'static str> {
        if document["schema"] != "ichd.alert/1" {
            return Err("not ichd.alert/1");
        }
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let (alert_id, rev) = (text("alert_id"), document["rev"].as_u64().ok_or("no rev")?);
        if alert_id.is_empty()
            || alert_id.len() > 64
            || !alert_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err("no usable alert_id");
        }
        let new = Held {
            rev,
            state: text("state"),
            stage: text("stage"),
            priority: document["priority"].as_u64().unwrap_or(9),
            step: document["escalation"]["step"].as_u64().unwrap_or(0),
            finding: document["finding"].clone(),
        };
        let old = self.held.get(&alert_id);
        if old.is_some_and(|old| old.rev >= rev) {
            return Ok(None);
        }
        let change = change(old, &new);
        self.held.insert(alert_id.clone(), new);
        if self.held.len() > REMEMBERED_MAX {
            self.held.pop_first();
        }
        Ok(change.map(|change| Event { id: format!("{alert_id}-{rev}"), change, alert: document, seen_ms }))
    }
}

fn change(old: Option<&Held>, new: &Held) -> Option<Change> {
    let by_state = match new.state.as_str() {
        "escalated" => Some(Change::Escalated),
        "acknowledged" => Some(Change::Acknowledged),
        "withdrawn" => Some(Change::Withdrawn),
        "resolved" => Some(Change::Resolved),
        "expired" => Some(Change::Expired),
        _ => None,
    };
    let Some(old) = old else {
        // What was over before we first heard of it is no news.
        return match by_state {
            Some(Change::Withdrawn | Change::Resolved | Change::Expired) => None,
            Some(change) => Some(change),
            None => Some(Change::Raised),
        };
    };
    if old.state != new.state {
        if by_state.is_some() {
            return by_state;
        }
        // Out of somebody's hands, or back from where it was over: people have to be called again.
        if !["raised", "delivered", "escalated"].contains(&old.state.as_str()) {
            return Some(Change::Raised);
        }
    }
    if new.state == "escalated" && new.step > old.step {
        return Some(Change::Escalated);
    }
    let news = old.stage != new.stage || old.finding != new.finding || new.priority < old.priority;
    news.then_some(Change::Revised)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(rev: u64, state: &str) -> Value {
        json!({"schema": "ichd.alert/1", "alert_id": "01J", "rev": rev, "state": state, "stage": "final", "priority": 1,
               "kind": "finding", "finding": {"subtypes": ["subdural"], "side": "left"}})
    }

    fn told(script: &[(u64, &str)]) -> Vec<&'static str> {
        let mut reducer = Reducer::default();
        let apply = |(rev, state): &(u64, &str)| reducer.apply(document(*rev, state), 0).unwrap();
        script.iter().filter_map(apply).map(|e| e.change.as_str()).collect()
    }

    #[test]
    fn every_change_is_told_once_whatever_comes_twice_or_late() {
        let script = [
            (1, "raised"),
            (1, "raised"),
            (3, "escalated"),
            (2, "delivered"),
            (4, "acknowledged"),
            (4, "acknowledged"),
            (5, "resolved"),
        ];
        assert_eq!(told(&script), ["raised", "escalated", "acknowledged", "resolved"]);
    }

    #[test]
    fn a_receipt_is_no_news_and_what_was_over_is_none() {
        assert_eq!(told(&[(1, "raised"), (2, "delivered"), (3, "delivered")]), ["raised"]);
        assert!(told(&[(9, "resolved")]).is_empty());
        assert_eq!(
            told(&[(1, "raised"), (2, "withdrawn"), (3, "raised")]),
            ["raised", "withdrawn", "raised"]
        );
    }

    #[test]
    fn what_comes_back_calls_people_again_however_it_was_over() {
        for over in ["acknowledged", "resolved", "withdrawn", "expired"] {
            assert_eq!(
                told(&[(1, "raised"), (2, over), (3, "raised"), (4, "delivered")]),
                ["raised", over, "raised"]
            );
        }
        // Who has it asks for more people.
        let told = told(&[(1, "raised"), (2, "acknowledged"), (3, "escalated")]);
        assert_eq!(told, ["raised", "acknowledged", "escalated"]);
    }

    #[test]
    fn every_step_of_the_ladder_is_told() {
        let mut reducer = Reducer::default();
        let mut apply = |rev, step: u64| {
            let mut d = document(rev, "escalated");
            d["escalation"] = json!({"step": step});
            reducer.apply(d, 0).unwrap().map(|e| e.change.as_str())
        };
        assert_eq!([apply(1, 1), apply(2, 1), apply(3, 2)], [Some("escalated"), None, Some("escalated")]);
    }

    #[test]
    fn confirmation_and_a_higher_priority_are_news_a_lower_one_is_not() {
        let mut reducer = Reducer::default();
        let mut apply = |rev, stage: &str, priority: u64| {
            let mut d = document(rev, "raised");
            (d["stage"], d["priority"]) = (json!(stage), json!(priority));
            reducer.apply(d, 0).unwrap().map(|e| e.change.as_str())
        };
        assert_eq!(apply(1, "provisional", 2), Some("raised"));
        assert_eq!(apply(2, "final", 2), Some("revised"));
        assert_eq!(apply(3, "final", 1), Some("revised"));
        assert_eq!(apply(4, "final", 2), None);
    }

    #[test]
    fn a_reducer_read_back_from_disk_goes_on() {
        let mut reducer = Reducer::default();
        reducer.apply(document(4, "raised"), 0).unwrap();
        let text = serde_json::to_string(&reducer).unwrap();
        let mut reducer: Reducer = serde_json::from_str(&text).unwrap();
        assert_eq!(reducer.apply(document(4, "raised"), 0), Ok(None));
        assert!(reducer.apply(document(5, "acknowledged"), 0).unwrap().is_some());
    }

    #[test]
    fn what_is_no_alert_is_refused() {
        let mut reducer = Reducer::default();
        for bad in [
            json!(null),
            json!({"schema": "ichd.alert/2"}),
            json!({"schema": "ichd.alert/1", "alert_id": "a"}),
            json!({"schema": "ichd.alert/1", "alert_id": "../x", "rev": 1}),
        ] {
            assert!(reducer.apply(bad.clone(), 0).is_err(), "{bad}");
        }
    }
}
