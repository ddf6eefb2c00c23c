//! Does what time demands of open alerts, once a second: resend, escalate, say that nobody listens, expire.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::health::Pulse;
use crate::ledger::Ledger;

/// Runs until shutdown.
pub async fn run(ledger: Arc<Ledger>, wake: Arc<Notify>, pulse: Pulse, mut shutdown: watch::Receiver<bool>) {
    loop {
        pulse.beat();
        match tokio::task::block_in_place(|| ledger.tick()) {
            Ok(0) => {}
            Ok(_) => wake.notify_one(),
            Err(error) => {
                log::error!(event = "ledger_failed"; "open alerts could not be looked after: {}", crate::chain(&error));
            }
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
            _ = shutdown.changed() => return,
        }
    }
}
