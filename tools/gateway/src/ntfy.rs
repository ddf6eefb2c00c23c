//! ntfy: wakes a phone. By default it says nothing but that there is something; what and who stands on the page.

use serde::Deserialize;

use crate::event::{Change, Event};

/// How much a notification says. Whoever runs the ntfy server, and Apple's or Google's push service behind it, can read
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Says {
    /// That there is a notification.
    #[default]
    Nothing,
    /// And the spoken code.
    Code,
    /// And where the scanner stands.
    Location,
}

/// A notification: body and the headers of ntfy's HTTP interface.
#[derive(Debug, PartialEq, Eq)]
pub struct Notification {
    /// Text.
    pub body: String,
    /// Title, priority (1 to 5), tags.
    pub headers: [(&'static str, String); 3],
}

/// The notification of an event.
pub fn notification(event: &Event, says: Says) -> Notification {
    let urgent = matches!(event.change, Change::Raised | Change::Escalated) && event.text("/kind") != "test";
    let mut body = match event.change {
        Change::Raised => "New notification.",
        Change::Escalated => "A notification still waits.",
        _ => "A notification has changed.",
    }
    .to_owned();
    let code = (says != Says::Nothing).then(|| event.text("/subject/ref"));
    let place = (says == Says::Location).then(|| event.text("/subject/location"));
    for part in [code, place].into_iter().flatten().filter(|p| !p.is_empty()) {
        body += &format!(" {part}.");
    }
    body += " Open the station page.";
    let title = if event.text("/kind") == "test" { "ichd test" } else { "ichd" };
    Notification {
        body,
        headers: [
            ("Title", title.into()),
            ("Priority", if urgent { "5" } else { "3" }.into()),
            ("Tags", if urgent { "rotating_light" } else { "information_source" }.into()),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_wake_up_says_only_what_it_was_allowed() {
        let event = Event {
            id: "01J-1".into(),
            change: Change::Raised,
            seen_ms: 0,
            alert: json!({"kind": "finding", "subject": {"ref": "K7P-29", "location": "CT 1", "enc": "sealed"},
                          "finding": {"subtypes": ["subdural"]}}),
        };
        let said = |says| notification(&event, says).body;
        assert_eq!(said(Says::Nothing), "New notification. Open the station page.");
        assert_eq!(said(Says::Code), "New notification. K7P-29. Open the station page.");
        assert_eq!(said(Says::Location), "New notification. K7P-29. CT 1. Open the station page.");
    }
}
