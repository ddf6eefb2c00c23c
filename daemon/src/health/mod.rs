//! Liveness: every stage beats; systemd's watchdog and the heartbeat are fed only while all of them do.

mod pulse;

pub use pulse::{Pulse, Pulses};
