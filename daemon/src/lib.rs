//! `ichd` reads head CT beside the scanner and alerts people to a suspected intracranial hemorrhage.
//!
//! A study flows one way through the modules below, in this order; each noun knows more than the one before:
//!
//! ```text
//! receive --Instance--> spool --SliceHeader--> assemble --Volume--> infer --Reading--> decide --Verdict--> alert
//! ```
//!
//! Beside the line: `config`, `clock`, `enrol`, `health`, `ledger`, `station`. [`daemon`] starts them all.
#![forbid(unsafe_code)]

pub mod dicom;

pub mod commit;
pub mod proof;
pub mod receive;
pub mod send;
pub mod spool;

pub mod assemble;

pub mod infer;

pub mod decide;

pub mod privacy;

pub mod alert;
pub mod deliver;
pub mod forward;
pub mod ledger;
pub mod report;

pub mod enrol;

pub mod atna;
pub mod evidence;

#[cfg(test)]
mod contract;

pub mod clock;
pub mod config;
pub mod control;
pub mod health;
pub mod models;
pub mod station;
pub mod tls;
pub mod update;

pub mod cli;
pub mod daemon;

/// Program version that stands in every verdict, status document and association response.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

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

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
