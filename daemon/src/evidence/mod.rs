//! Beside the line: what can be shown afterwards. Numbers for a monitor (`metrics`), counted where the journal says
//! what happened (`counts`); what the door has to say to the audit log (`auditor`).
//!
//! Nothing in the line waits for anything here; when it fails, the alert does not notice.

pub mod auditor;
pub mod counts;
pub mod deidentify;
pub mod face;
pub mod metrics;
pub mod replay;
pub mod retention;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Starts what is configured; ends with the shutdown.
pub fn spawn(
    metrics: Option<TcpListener>,
    wiring: metrics::Wiring,
    mut shutdown: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        match metrics {
            Some(listener) => metrics::serve(listener, wiring, shutdown).await,
            None => {
                let _ = shutdown.wait_for(|stop| *stop).await;
            }
        }
    })
}
