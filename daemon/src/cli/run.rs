//! `ichd run`: configuration, journal, runtime, signals.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use super::{ConfigFile, Failure, journal};
use crate::chain;
use crate::daemon::{self, RunError};
use crate::ledger::LedgerError;
use crate::station::server::StationError;

/// Runs the daemon until SIGTERM or SIGINT.
pub(super) fn run(args: &ConfigFile) -> Result<(), Failure> {
    journal::install()?;
    let config = args.load()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::internal(format!("failed to start the runtime: {e}")))?;
    let result = runtime.block_on(async {
        let (ready_tx, ready_rx) = oneshot::channel();
        let (stop_tx, stop_rx) = watch::channel(false);
        let mut term = signal(SignalKind::terminate()).map_err(RunError::Signal)?;
        let mut int = signal(SignalKind::interrupt()).map_err(RunError::Signal)?;
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            log::info!(event = "stopping"; "asked to stop, draining");
            let _ = stop_tx.send(true);
        });
        tokio::spawn(async move {
            if let Ok(addresses) = ready_rx.await {
                let addresses: daemon::Addresses = addresses;
                let page = addresses.station.map_or(String::new(), |address| format!("station={address} "));
                println!("ready {page}dicom={}", addresses.dicom);
            }
        });
        daemon::run(config, ready_tx, stop_rx).await
    });
    result.map_err(|error| match error {
        RunError::Model(_)
        | RunError::OrderKeys(_)
        | RunError::Ledger(LedgerError::Newer { .. })
        | RunError::Privacy(_)
        | RunError::Tls(_)
        | RunError::ReceiveTls(_)
        | RunError::Station(StationError::Tls(_)) => Failure::config(&error),
        // An address that is not there yet, after a power cut say, comes: systemd tries again.
        _ => Failure::failed(chain(&error)),
    })
}
