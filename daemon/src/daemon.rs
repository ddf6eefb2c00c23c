//! The wiring: every task is built and started here. It reads top to bottom in the order the data flows.
//!
//! Build everything (a bad model or key ends here, before a port is bound), bind, announce, serve, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::alert::publisher;
use crate::commit::Commitments;
use crate::config::{self, Config};
use crate::health::{self, Pulses};
use crate::infer::{self, ModelError, Shadow};
use crate::ledger::{Ledger, LedgerError};
use crate::models::Current;
use crate::privacy::{Privacy, PrivacyError};
use crate::spool::{Spool, SpoolError, SpoolLimits};
use crate::tls::{Server, TlsError};
use crate::update::command::Mailbox;
use crate::{
    alert, assemble, atna, clock, commit, control, decide, evidence, forward, proof, receive, report,
    station, update,
};

/// Where the daemon listens, once it does.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Storage SCP.
    pub dicom: SocketAddr,
    /// Storage SCP over TLS.
    pub dicom_tls: Option<SocketAddr>,
    /// Station page, where there is one.
    pub station: Option<SocketAddr>,
}

/// Why the daemon could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Model package refused.
    #[error("failed to load the model")]
    Model(#[source] ModelError),
    /// The configuration contradicts itself.
    #[error("configuration refused")]
    Config(#[source] crate::config::ConfigError),
    /// Spool refused, or another daemon owns the state directory.
    #[error("failed to open the spool")]
    Spool(#[source] SpoolError),
    /// Keys of who may order updates refused.
    #[error("update.command-keys")]
    OrderKeys(#[source] ModelError),
    /// Privacy keys refused.
    #[error("failed to read the privacy keys")]
    Privacy(#[source] PrivacyError),
    /// Database refused.
    #[error("failed to open the ledger")]
    Ledger(#[source] LedgerError),
    /// Certificates refused.
    #[error("failed to prepare TLS to the broker")]
    Tls(#[source] publisher::PublisherError),
    /// Certificates of the DICOM side refused.
    #[error("failed to prepare receive.tls")]
    ReceiveTls(#[source] TlsError),
    /// Certificates for audit messages refused.
    #[error("failed to prepare atna")]
    Atna(#[source] TlsError),
    /// The station page cannot be served.
    #[error("failed to prepare the station page")]
    Station(#[source] station::server::StationError),
    /// A port could not be bound.
    #[error("failed to listen on {address} (receive.listen, receive.tls.listen, metrics.listen)")]
    Bind {
        /// Configured address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The control socket could not be bound.
    #[error("failed to bind the control socket")]
    Control(#[source] std::io::Error),
    /// The reading thread could not be started.
    #[error("failed to start the reading thread")]
    Thread(#[source] std::io::Error),
    /// Signals could not be watched.
    #[error("failed to watch signals")]
    Signal(#[source] std::io::Error),
    /// A stage ended that must not end.
    #[error("stage `{0}` ended by itself")]
    StageEnded(&'static str),
}

/// Events between `receive` and `assemble`; beyond that the spool is the queue.
const EVENTS_MAX: usize = 4096;
/// How long the last audit messages may take; what is not taken is sent after the next start.
const AUDIT_STOP: Duration = Duration::from_secs(2);
/// Actions and outcomes are few and small.
const ACTIONS_MAX: usize = 256;

/// Runs until `shutdown` turns true, then drains within `health.drain-ms`.
pub async fn run(
    config: Config,
    ready: oneshot::Sender<Addresses>,
    shutdown: watch::Receiver<bool>,
) -> Result<(), RunError> {
    // Build.
    let started = clock::now();
    let mut pulses = Pulses::new(started);
    let infer_pulse = pulses.register("infer");
    let Current { reader, refused } = Current::load(&config).map_err(RunError::Model)?;
    let reader = reader.beating(infer_pulse.clone());
    let reader = Arc::new(reader);
    let limits = SpoolLimits {
        free_bytes_min: config.receive.free_bytes_min,
        instance_bytes_max: config.receive.instance_bytes_max,
    };
    let spool_dir = config.state.directory.join("spool");
    let spool = Arc::new(Spool::open(&spool_dir, limits).map_err(RunError::Spool)?);
    let ledger = Ledger::open_with(
        &config.state.directory,
        &config.site,
        config.chain_policy().map_err(RunError::Config)?,
        clock::Source::system(),
        clock::boot_id(),
    )
    .map_err(RunError::Ledger)?;
    let ledger = ledger
        .reporting(report::subscription(&config.report))
        .auditing(config.audit_source())
        .forwarding(config.forward.clone());
    let ledger = Arc::new(ledger);
    if let Some(atna) = &config.atna {
        atna.files().client_config().map_err(RunError::Atna)?;
    }
    match &refused {
        Some(why) => ledger.raise_technical("model_refused", why),
        None => ledger.resolve_technical("model_refused", "the current model package is in use"),
    }
    .map_err(RunError::Ledger)?;
    let shadow = Current::shadow(&config).map(|reader| Shadow::spawn(reader, ledger.clone()));
    let shadow = shadow.transpose().map_err(RunError::Thread)?;
    let reads_along = shadow.clone();
    let order_keys = infer::package::read_keys(&config.update.command_keys).map_err(RunError::OrderKeys)?;
    let privacy = Privacy::load(&config.privacy).map_err(RunError::Privacy)?;

    let certificates = config.receive.tls.as_ref().map(|tls| Server::load(tls.files()));
    let certificates = certificates.transpose().map_err(RunError::ReceiveTls)?;

    // Bind.
    let address = config.receive.listen;
    let bind = |address| move |source| RunError::Bind { address, source };
    let plain = match receive::passed_listener().map_err(bind(address))? {
        Some(listener) => listener,
        None => TcpListener::bind(address).await.map_err(bind(address))?,
    };
    let tls = match config.receive.tls.as_ref().map(|tls| tls.listen).zip(certificates) {
        Some((at, server)) => Some((TcpListener::bind(at).await.map_err(bind(at))?, server)),
        None => None,
    };
    let page = station::server::bind(&config).await.map_err(RunError::Station)?;
    let addresses = Addresses {
        dicom: plain.local_addr().map_err(bind(address))?,
        dicom_tls: tls.as_ref().and_then(|(listener, _)| listener.local_addr().ok()),
        station: page.as_ref().map(|page| page.address),
    };

    let metrics = match config.metrics.listen {
        Some(at) => Some(TcpListener::bind(at).await.map_err(bind(at))?),
        None => None,
    };

    // Wire, downstream first, so that nobody talks to a stage that is not there.
    let wake = Arc::new(Notify::new());
    let publisher =
        publisher::Publisher::new(&config.alert, &config.health, ledger.clone(), reader.model().clone())
            .map_err(RunError::Tls)?
            .ordering(Mailbox::new(&config.state.directory, &config.site, order_keys));
    let (asked_tx, asked) = mpsc::channel(control::desk::WAITING_MAX);
    let publisher = publisher.asking(asked_tx);
    let stations = publisher.stations();
    let links = publisher.spawn(wake.clone(), pulses.register("alert"), shutdown.clone());
    links.status.send_modify(|status| status.slot = update::booted_slot());
    let reports = report::spawn(
        config.report.clone(),
        report::Wiring {
            ledger: ledger.clone(),
            spool: spool.clone(),
            calling: config.receive.ae_title.clone(),
            tls: config.receive.tls.as_ref().map(|tls| tls.files()),
            shutdown: shutdown.clone(),
        },
    );

    let forwards = forward::spawn(
        config.forward.clone(),
        forward::Wiring {
            ledger: ledger.clone(),
            spool: spool.clone(),
            calling: config.receive.ae_title.clone(),
            tls: config.receive.tls.as_ref().map(|tls| tls.files()),
            shutdown: shutdown.clone(),
        },
    );

    let (jobs, outcomes) = infer::driver::spawn(reader.clone(), infer_pulse).map_err(RunError::Thread)?;
    let idle = jobs.idle();
    let (actions_tx, actions) = mpsc::channel(ACTIONS_MAX);
    let (in_vain_tx, in_vain) = mpsc::unbounded_channel();
    let (forget_tx, forget) = mpsc::channel(ACTIONS_MAX);
    let judge = tokio::spawn(decide::driver::run(decide::driver::Wiring {
        actions,
        jobs,
        outcomes,
        ledger: ledger.clone(),
        privacy,
        policy: reader.policy().clone(),
        in_vain: in_vain_tx,
        wake: wake.clone(),
        slices_max: config.assemble.slices_max,
        hysteresis: config.alert.hysteresis,
        field_mm: reader.field_mm(),
        shadow,
        pulse: pulses.register("decide"),
    }));
    let (events_tx, events) = mpsc::channel(EVENTS_MAX);
    let rescan_wanted = receive::RescanWanted::default();
    let assembler = tokio::spawn(assemble::driver::run(
        config.assemble.clone(),
        assemble::driver::Wiring {
            events,
            rescan_wanted: rescan_wanted.clone(),
            in_vain,
            forget,
            actions: actions_tx,
            spool: spool.clone(),
            ledger: ledger.clone(),
            pulse: pulses.register("assemble"),
        },
    ));
    let commitments = Arc::new(Commitments::new(spool.clone(), ledger.clone(), config.receive.peer.clone()));
    let committer = tokio::spawn(commit::driver::run(commit::driver::Wiring {
        commitments: commitments.clone(),
        ae_title: config.receive.ae_title.clone(),
        tls: config.receive.tls.as_ref().map(|tls| tls.files()),
        pulse: pulses.register("commit"),
        shutdown: shutdown.clone(),
    }));
    let (auditor, minutes) = evidence::auditor::new(ledger.is_audited());
    let minutes = tokio::spawn(minutes.run(ledger.clone()));
    let receiver = tokio::spawn(receive::serve(
        receive::Doors { plain, tls },
        config::Receive { proof_ae_title: Some(config.proof.ae_title.clone()), ..config.receive.clone() },
        receive::Wiring {
            spool: spool.clone(),
            commitments: Some(commitments),
            events: receive::Events::new(events_tx, rescan_wanted),
            auditor,
            pulse: pulses.register("receive"),
            shutdown: shutdown.clone(),
        },
    ));
    let watcher = tokio::spawn(alert::watch::run(
        ledger.clone(),
        wake.clone(),
        pulses.register("watch"),
        shutdown.clone(),
    ));
    let (proof_wanted, proofs) = mpsc::channel(1);
    let prover = proof::Prover {
        config: config.proof.clone(),
        called: config.receive.ae_title.clone(),
        address: addresses.dicom,
        golden: reader.golden().clone(),
        ledger: ledger.clone(),
        spool: spool.clone(),
        stations: stations.clone(),
    };
    let prover = tokio::spawn(prover.run(proofs, shutdown.clone()));
    let desk = control::desk::Desk {
        ledger: ledger.clone(),
        proof_wanted: proof_wanted.clone(),
        reader: reader.clone(),
        idle,
        state_directory: config.state.directory.clone(),
        slices_max: config.assemble.slices_max,
        wake: wake.clone(),
    };
    let desk = tokio::spawn(desk.run(asked, shutdown.clone()));
    let control = control::Control {
        ledger: ledger.clone(),
        stations: stations.clone(),
        status: links.status.clone(),
        heartbeat: links.heartbeat.subscribe(),
        proof_wanted,
        wake: wake.clone(),
    };
    let control =
        control::bind(&config.state.directory, control, shutdown.clone()).map_err(RunError::Control)?;
    let page = page.map(|page| tokio::spawn(page.serve(pulses.register("station"), shutdown.clone())));
    let monitor = tokio::spawn(health::monitor::run(
        config.health.clone(),
        health::monitor::Wiring {
            pulses: pulses.clone(),
            link: links.link.clone(),
            status: links.status,
            heartbeat: links.heartbeat,
            stations,
            proof_interval_s: config.proof.interval_s,
            reader: reader.clone(),
            ledger: ledger.clone(),
            wake,
            state_directory: config.state.directory.clone(),
            free_bytes_min: config.receive.free_bytes_min,
            certificates: config.certificates(),
            shutdown: shutdown.clone(),
        },
    ));

    let retention = tokio::spawn(evidence::retention::run(
        config.spool.clone(),
        evidence::retention::Wiring { spool, ledger: ledger.clone(), forget: forget_tx },
        shutdown.clone(),
    ));
    let evidence = evidence::spawn(
        metrics,
        evidence::metrics::Wiring {
            ledger: ledger.clone(),
            model: reader.model().clone(),
            pulses,
            link: links.link,
            state_directory: config.state.directory.clone(),
            started,
        },
        shutdown.clone(),
    );

    let (audit_stop, audit_stopped) = watch::channel(false);
    let audit = tokio::spawn(atna::driver::run(config.atna.clone(), ledger.clone(), audit_stopped));

    // Announce.
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    log::info!(
        event = "ready", dicom = addresses.dicom.to_string(), model = reader.model().id.as_str(),
        startup_ms = clock::ms(clock::now() - started);
        "ready, receiving on {}", addresses.dicom
    );
    let _ = ready.send(addresses);
    application(&ledger, true);

    // Serve and drain, upstream first: each stage ends when the one before it has hung up.
    let mut stages = vec![
        ("receive", receiver),
        ("auditor", minutes),
        ("commit", committer),
        ("assemble", assembler),
        ("decide", judge),
        ("health", monitor),
        ("proof", prover),
        ("watch", watcher),
        ("control", control),
        ("desk", desk),
        ("alert", links.task),
        ("report", reports),
        ("forward", forwards),
        ("retention", retention),
        ("evidence", evidence),
    ];
    stages.extend(page.map(|page| ("station", page)));
    let result = serve(stages, shutdown, Duration::from_millis(config.health.drain_ms)).await;
    if let Some(shadow) = reads_along {
        tokio::task::block_in_place(|| shadow.stop());
    }
    // Last, so that the stop is told too.
    application(&ledger, false);
    let _ = audit_stop.send(true);
    let _ = tokio::time::timeout(AUDIT_STOP, audit).await;
    result
}

/// Application Activity, for the audit record repository.
fn application(ledger: &Ledger, started: bool) {
    let event = (clock::wall_ms(), atna::Event::Application { started });
    let queued = tokio::task::block_in_place(|| ledger.atna(&[event]));
    if let Err(error) = queued {
        log::error!(event = "ledger_failed"; "an audit message could not be queued: {error}");
    }
}

/// Waits for shutdown or for a stage that ends by itself; then lets every stage finish within the deadline.
async fn serve(
    mut stages: Vec<(&'static str, JoinHandle<()>)>,
    mut shutdown: watch::Receiver<bool>,
    drain: Duration,
) -> Result<(), RunError> {
    let mut ended = None;
    while !*shutdown.borrow() && ended.is_none() {
        tokio::select! {
            changed = shutdown.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(Duration::from_millis(500)) => {
                ended = stages.iter().find(|(_, task)| task.is_finished()).map(|(name, _)| *name);
            }
        }
    }
    if let Some(stage) = ended {
        log::error!(event = "stage_ended", stage = stage; "a stage ended by itself");
        return Err(RunError::StageEnded(stage));
    }
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    let drained = tokio::time::timeout(drain, async {
        for (stage, task) in &mut stages {
            let _ = task.await;
            log::info!(event = "drained", stage = *stage; "stage ended");
        }
    });
    if drained.await.is_err() {
        // Nothing is lost: what was acknowledged is in the spool, what was decided is in the outbox.
        log::warn!(event = "drain_timeout"; "drain took too long, stopping all the same");
    }
    Ok(())
}
