//! Liveness: every stage beats; systemd's watchdog and the heartbeat are fed only while all of them do.

pub mod monitor;
mod pulse;

pub use pulse::{Pulse, Pulses};
