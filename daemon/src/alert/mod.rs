//! From verdict to MQTT: one retained, revisioned document per alert, delivered from an outbox on disk.
//!
//! [`lifecycle`] (pure) says what a verdict does to the alert of its study; `ledger` writes that down together with
//! the verdict; [`publisher`] takes the outbox to the broker. Deliberately absent: events. A document is state, so
//! duplicates, reordering and lost intermediates are harmless.
//!
//! Stations answer: [`inbound`] reads what they send, [`action`] (pure) says what a person's word does, [`ladder`]
//! (pure) what is due when nobody speaks, and [`watch`] does it. Three closures are never confused: a PUBACK ends a
//! transmission, a station's receipt ends delivery, a named person's acknowledgement ends escalation.

pub mod action;
pub mod document;
pub mod inbound;
pub mod ladder;
pub mod lifecycle;
pub mod publisher;
pub mod request;
pub mod stations;
pub mod topic;
pub mod watch;
