//! End-to-end tests: the real `ichd` between real peers (DCMTK, Mosquitto). `cargo it`.
//!
//! What they send is the project's own phantom; series of real people are read from `../shared/testdata` beside the
//! repository (or `$ICHD_TESTDATA`) where present, and left out with one line where not.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its peers has failed")]

mod atna;
#[cfg(feature = "ort")]
mod backends;
mod chain;
mod chaos;
mod commitment;
mod contract;
mod disk;
mod enhanced;
mod enrolment;
mod evidence;
mod forward;
mod host;
mod models;
mod night;
mod peers;
mod privacy;
mod refusals;
mod report;
mod senders;
mod sheet;
mod soak;
mod station;
mod storm;
mod suitability;
mod testdata;
mod tls;
mod update;
mod wire;
