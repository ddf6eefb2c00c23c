//! The only reader of time.
#![expect(clippy::disallowed_methods, reason = "this is the one place that reads time")]

use std::time::Instant;

/// Now.
pub fn now() -> Instant {
    Instant::now()
}
