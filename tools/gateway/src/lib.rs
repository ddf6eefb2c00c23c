//! Tells other systems of alerts. One program beside the broker, enrolled with role `bridge`, which says nothing itself.
//!
//! ```text
//! broker --alert document--> event (revision rule, pure) --> queue on disk, one per target --> worker --> target
//!                                                                                               hl7 over MLLP
//!                                                                                               fhir, ntfy, webhook over HTTP
//! ```
//!
//! A document is acknowledged to the broker after every queue that wants it has it on disk. A worker tells one event at
//! a time, in order, until its target has taken it: at least once, with an identifier that lets the target see a
//! repetition. A target that refuses for good does not hold up what follows.
//!
//! Deliberately absent: keys for `subject.enc` (patient data passes sealed or not at all), acknowledgements on behalf of
//! people, and any influence on the daemon: escalation does not wait for a gateway.
#![forbid(unsafe_code)]

pub mod clock;
pub mod config;
pub mod event;
pub mod fhir;
pub mod hl7;
pub mod http;
pub mod mllp;
pub mod ntfy;
pub mod queue;
pub mod run;
pub mod webhook;

/// An error with its causes, each once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
