//! What stands around the daemon in the demo and in tests: a broker, a scanner, a subscriber. None of it is in the
//! production daemon's dependency tree.
#![forbid(unsafe_code)]

pub mod broker;
pub mod scanner;
pub mod subscriber;
