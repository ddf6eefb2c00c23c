//! FHIR R4 `Communication`. Pure. docs/GATEWAY.md has the mapping.

use serde_json::{Value, json};

use crate::event::{Change, Event};

/// Namespace of our identifiers.
pub const SYSTEM: &str = "urn:ichd:event";

/// The resource of an event.
pub fn communication(event: &Event) -> Value {
    let status = match event.change {
        Change::Raised | Change::Revised | Change::Escalated => "in-progress",
        Change::Acknowledged | Change::Resolved => "completed",
        Change::Withdrawn | Change::Expired => "stopped",
    };
    let priority = match event.number("/priority") {
        Some(p) if p <= 1.0 => "stat",
        Some(p) if p <= 2.0 => "asap",
        _ => "urgent",
    };
    let mut resource = json!({
        "resourceType": "Communication",
        "identifier": [{"system": SYSTEM, "value": event.id}],
        "status": status,
        "category": [{"coding": [{
            "system": "http://terminology.hl7.org/CodeSystem/communication-category", "code": "alert", "display": "Alert"}]}],
        "priority": priority,
        "topic": {"text": format!("ichd alert {}, {}", event.text("/alert_id"), event.change.as_str())},
        "sent": event.text("/published_at"),
        "sender": {"display": format!("ichd {}/{}", event.text("/site"), event.text("/device"))},
        "payload": [{"contentString": event.summary()}],
    });
    // FHIR knows no empty strings, and trouble of the box has no patient.
    if !event.text("/subject/ref").is_empty() {
        resource["subject"] =
            json!({"identifier": {"system": "urn:ichd:ref", "value": event.text("/subject/ref")}});
    }
    if !event.text("/disclaimer").is_empty() {
        resource["note"] = json!([{"text": event.text("/disclaimer")}]);
    }
    if event.text("/kind") == "finding" {
        resource["reasonCode"] = json!([{
            "coding": [{"system": "http://snomed.info/sct", "code": "1386000", "display": "Intracranial hemorrhage"}],
            "text": "suspected intracranial hemorrhage"}]);
    }
    if event.text("/kind") == "test" {
        resource["meta"] = json!({"tag": [{
            "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HTEST", "display": "test health data"}]});
    }
    resource
}
