//! HL7 v2.6 ORU^R40, in the shape of IHE PCD-04 (Alert Communication Management). Pure. docs/GATEWAY.md has the mapping.

use std::fmt::Write as _;

use crate::event::{Change, Event};

/// Lengths of HL7 v2.6, chapter 2A: IS in PL.1, and ST.
const POINT_OF_CARE_MAX: usize = 20;
const ST_MAX: usize = 199;

/// Names in the message header.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Names {
    /// MSH-5.
    pub receiving_application: String,
    /// MSH-6.
    pub receiving_facility: String,
}

impl Default for Names {
    fn default() -> Self {
        Names { receiving_application: "ALERTS".into(), receiving_facility: "HOSPITAL".into() }
    }
}

/// The message of an event; segments end with CR.
pub fn message(event: &Event, names: &Names) -> String {
    let t = |path: &str| escape(event.text(path));
    let (device, site) = (t("/device"), t("/site"));
    let raised = timestamp(event.text("/raised_at"));
    let phase = match event.change {
        Change::Raised => "start",
        Change::Revised | Change::Acknowledged => "update",
        Change::Escalated => "escalate",
        Change::Withdrawn | Change::Resolved | Change::Expired => "end",
    };
    let state = if phase == "end" { "inactive" } else { "active" };
    let priority = match event.number("/priority") {
        Some(p) if p <= 1.0 => "PH",
        Some(p) if p <= 2.0 => "PM",
        _ => "PL",
    };
    let (kind, code) = if event.is_technical() {
        ("ST", "0^MDCX_ICHD_TECHNICAL^MDC")
    } else {
        ("SA", "0^MDCX_ICHD_SUSPECTED_INTRACRANIAL_HEMORRHAGE^MDC")
    };
    let flags = format!("A~{priority}~{kind}");
    let mut text = format!(
        "MSH|^~\\&|ICHD^{device}|{site}|{app}|{facility}|{sent}||ORU^R40^ORU_R40|{id}|{mode}|2.6|||AL|NE||UNICODE UTF-8|||\
         IHE_PCD_ACM_001^IHE PCD^1.3.6.1.4.1.19376.1.6.4.4^ISO\r",
        app = escape(&names.receiving_application),
        facility = escape(&names.receiving_facility),
        sent = timestamp(event.text("/published_at")),
        id = escape(&event.id),
        mode = if event.text("/kind") == "test" { "T" } else { "P" },
    );
    // The spoken code stands for the patient: the gateway has no key to what is sealed. Trouble of the box has no patient.
    let patient = t("/subject/ref");
    if !patient.is_empty() {
        let _ = write!(text, "PID|||{patient}^^^ICHD^AN||^^^^^^U\r");
        // The first component (point of care) takes 20 characters; the ninth (description) any place.
        let place = event.text("/subject/location");
        let point = if place.chars().count() <= POINT_OF_CARE_MAX { place } else { "" };
        let _ = write!(text, "PV1||U|{}^^^^^^^^{}\r", escape(point), escape(place));
    }
    let alert = t("/alert_id");
    let _ = write!(text, "OBR|1|{alert}^ICHD|{alert}^ICHD|196616^MDC_EVT_ALARM^MDC|||{raised}\r");
    let mut n = 0;
    let mut obx = |value_type: &str, code: &str, sub: usize, value: &str| {
        n += 1;
        let _ = write!(text, "OBX|{n}|{value_type}|{code}|1.0.0.0.{sub}|{value}|||{flags}|||R|||{raised}\r");
    };
    obx("CWE", "196616^MDC_EVT_ALARM^MDC", 1, code);
    obx("ST", "68480^MDC_ATTR_ALERT_SOURCE^MDC", 2, &device);
    obx("ST", "68481^MDC_ATTR_EVENT_PHASE^MDC", 3, phase);
    obx("ST", "68482^MDC_ATTR_ALARM_STATE^MDC", 4, state);
    obx("ST", "68483^MDC_ATTR_ALARM_INACTIVATION_STATE^MDC", 5, "enabled");
    obx("ST", "68484^MDC_ATTR_ALARM_PRIORITY^MDC", 6, priority);
    obx("ST", "68485^MDC_ATTR_ALERT_TYPE^MDC", 7, kind);
    let summary: String = event.summary().chars().take(ST_MAX).collect();
    obx("ST", "68546^MDC_ATTR_ALERT_TEXT^MDC", 8, &escape(&summary));
    let _ = write!(text, "NTE|1|L|{}\r", t("/disclaimer"));
    text
}

/// What a receiver answered.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// AA, CA.
    Accepted,
    /// AE, CE: its own trouble; worth another try.
    Error(String),
    /// AR, CR: it will never take this.
    Rejected(String),
}

/// Reads an ACK; `Err` if it is none, or for another message.
pub fn answer(ack: &str, id: &str) -> Result<Answer, String> {
    let msa = ack.split('\r').find(|s| s.starts_with("MSA|")).ok_or("the answer has no MSA segment")?;
    let fields: Vec<&str> = msa.split('|').collect();
    if fields.get(2) != Some(&escape(id).as_str()) {
        return Err(format!("the answer is for another message: {}", fields.get(2).unwrap_or(&"")));
    }
    let words = fields.get(3).unwrap_or(&"").to_string();
    match fields.get(1) {
        Some(&("AA" | "CA")) => Ok(Answer::Accepted),
        Some(&("AE" | "CE")) => Ok(Answer::Error(words)),
        Some(&("AR" | "CR")) => Ok(Answer::Rejected(words)),
        other => Err(format!("acknowledgement code {}", other.unwrap_or(&""))),
    }
}

/// HL7 v2.6 2.7.1; control characters become blanks.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' => escaped += "\\F\\",
            '^' => escaped += "\\S\\",
            '&' => escaped += "\\T\\",
            '~' => escaped += "\\R\\",
            '\\' => escaped += "\\E\\",
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// RFC 3339 UTC to HL7 DTM: `2026-11-25T22:01:30.123Z` is `20261125220130.123+0000`.
fn timestamp(rfc3339: &str) -> String {
    let digits: String = rfc3339.chars().filter(|c| c.is_ascii_digit() || *c == '.').collect();
    if digits.len() < 14 { String::new() } else { format!("{digits}+0000") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event() -> Event {
        Event {
            id: "01J-3".into(),
            change: Change::Raised,
            seen_ms: 0,
            alert: json!({"device": "ct-1", "site": "north", "alert_id": "01J", "kind": "finding", "stage": "final",
                "priority": 1, "raised_at": "2026-11-25T22:01:30.123Z", "published_at": "2026-11-25T22:01:31.000Z",
                "subject": {"ref": "K7P-29", "location": "CT 1 | east^wing"}, "disclaimer": "not a diagnosis",
                "finding": {"subtypes": ["subdural"], "side": "left"}}),
        }
    }

    #[test]
    fn an_alert_becomes_oru_r40() {
        let text = message(&event(), &Names::default());
        let segments: Vec<&str> = text.trim_end().split('\r').collect();
        assert!(segments[0].starts_with(
            "MSH|^~\\&|ICHD^ct-1|north|ALERTS|HOSPITAL|20261125220131.000+0000||ORU^R40^ORU_R40|01J-3|P|2.6|"
        ));
        assert_eq!(segments[1], "PID|||K7P-29^^^ICHD^AN||^^^^^^U");
        assert_eq!(segments[2], "PV1||U|CT 1 \\F\\ east\\S\\wing^^^^^^^^CT 1 \\F\\ east\\S\\wing");
        assert_eq!(
            segments[6],
            "OBX|3|ST|68481^MDC_ATTR_EVENT_PHASE^MDC|1.0.0.0.3|start|||A~PH~SA|||R|||20261125220130.123+0000"
        );
        assert!(segments[11].contains("|suspected subdural left|"));
        let mut far = event();
        far.alert["subject"]["location"] = json!("CT 1, emergency department");
        assert!(message(&far, &Names::default()).contains("PV1||U|^^^^^^^^CT 1, emergency department\r"));
        let mut technical = event();
        technical.alert["subject"]["ref"] = json!("");
        assert!(!message(&technical, &Names::default()).contains("PID|"));
    }

    #[test]
    fn nothing_in_a_document_can_start_a_segment_or_a_field() {
        let mut event = event();
        event.alert["subject"]["ref"] = json!("A\rOBX|9|evil\n~&");
        let text = message(&event, &Names::default());
        assert_eq!(text.matches("\rOBX|9").count(), 0);
        assert_eq!(text.matches('\r').count(), 13);
    }

    #[test]
    fn acknowledgements_are_told_apart() {
        let ack = |code: &str, id: &str| answer(&format!("MSH|^~\\&|A\rMSA|{code}|{id}|why\r"), "01J-3");
        assert_eq!(ack("AA", "01J-3"), Ok(Answer::Accepted));
        assert_eq!(ack("AE", "01J-3"), Ok(Answer::Error("why".into())));
        assert_eq!(ack("AR", "01J-3"), Ok(Answer::Rejected("why".into())));
        assert!(ack("AA", "01J-2").is_err() && ack("XX", "01J-3").is_err() && answer("", "01J-3").is_err());
    }
}
