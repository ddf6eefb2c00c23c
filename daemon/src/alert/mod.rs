//! From verdict to MQTT: one retained, revisioned document per alert, delivered from an outbox on disk.
//!
//! [`lifecycle`] (pure) says what a verdict does to the alert of its study; `ledger` writes that down together with
//! the verdict; [`publisher`] takes the outbox to the broker. Deliberately absent: events. A document is state, so
//! duplicates, reordering and lost intermediates are harmless.

pub mod document;
pub mod lifecycle;
pub mod publisher;
pub mod topic;
