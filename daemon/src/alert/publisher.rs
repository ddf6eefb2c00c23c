//! Takes the outbox to the broker. Client and event loop live for one connection and are thrown away on any error,
//! because `rumqttc` clears its queue silently when a session is lost and no publish of its can be awaited.
//!
//! One document is in flight at a time; its row leaves the outbox only on a PUBACK that says the broker took it.
//! Never `publish().await` while polling: a full request channel would wait for the loop that waits for it.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    LastWill, LastWillProperties, Packet, PubAckReason, Publish, PublishProperties,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::document::{Heartbeat, State, Status};
use super::topic;
use crate::clock;
use crate::config;
use crate::dicom::Phi;
use crate::health::Pulse;
use crate::infer::ModelId;
use crate::ledger::{Ledger, OutboxRow};

const KEEP_ALIVE: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// After a document was denied, wait before the same one is tried again.
const DENIED_PAUSE: Duration = Duration::from_secs(5);
const WILL_DELAY_S: u32 = 10;
/// Dispositions are news for an hour.
const STUDY_EXPIRY_S: u32 = 3_600;
const REQUESTS_MAX: usize = 64;
/// Reasons that only an alert somebody takes can clear: a disposition that passes says nothing about alerts.
const ABOUT_ALERTS: [&str; 2] = ["nobody_listening", "alert_too_large"];

/// Why the publisher cannot start; exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum PublisherError {
    /// A certificate or key could not be read or used.
    #[error("alert.tls.{key}: {detail}")]
    Tls {
        /// Configuration key.
        key: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The password could not be read.
    #[error("alert.password-file: failed to read `{path}`")]
    Password {
        /// Configured file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// State of the link, for health.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// The broker has accepted us.
    pub connected: bool,
    /// Stable codes of what is wrong.
    pub reasons: Vec<String>,
}

/// How the rest of the house talks to a running publisher.
pub struct Links {
    /// State of the link.
    pub link: watch::Receiver<Link>,
    /// The retained status; set it, it is sent.
    pub status: watch::Sender<Status>,
    /// The heartbeat that is sent next.
    pub heartbeat: watch::Sender<Heartbeat>,
    /// Ends after shutdown.
    pub task: JoinHandle<()>,
}

/// The publisher before it runs.
pub struct Publisher {
    config: config::Alert,
    heartbeat: Duration,
    transport: Transport,
    password: Option<Phi<String>>,
    ledger: Arc<Ledger>,
    model: ModelId,
}

impl Publisher {
    /// Reads the TLS material; connects to nothing.
    pub fn new(
        config: &config::Alert,
        health: &config::Health,
        ledger: Arc<Ledger>,
        model: ModelId,
    ) -> Result<Self, PublisherError> {
        let transport = match &config.tls {
            None => Transport::Tcp,
            Some(tls) => Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(client_tls(tls)?))),
        };
        let read = |path: &std::path::PathBuf| {
            let text = std::fs::read_to_string(path)
                .map_err(|source| PublisherError::Password { path: path.clone(), source })?;
            Ok(Phi::new(text.trim_end_matches(['\r', '\n']).to_owned()))
        };
        let password = config.password_file.as_ref().map(read).transpose()?;
        let heartbeat = Duration::from_secs(health.heartbeat_s);
        Ok(Publisher { config: config.clone(), heartbeat, transport, password, ledger, model })
    }

    /// Starts publishing.
    pub fn spawn(self, wake: Arc<Notify>, pulse: Pulse, shutdown: watch::Receiver<bool>) -> Links {
        let status = Status {
            schema: "ichd.status/1".into(),
            state: State::Init,
            boot: self.ledger.boot(),
            conn: 0,
            version: crate::VERSION.into(),
            slot: None,
            model: Some(self.model.clone()),
            reasons: vec![],
        };
        let unreachable = Link { connected: false, reasons: vec!["broker_unreachable".into()] };
        let (link_tx, link) = watch::channel(unreachable);
        let (status_tx, status) = watch::channel(status);
        let (heartbeat_tx, heartbeat) = watch::channel(Heartbeat::default());
        let run =
            Run { publisher: self, wake, pulse, shutdown, link: link_tx, status, beats: heartbeat, conn: 0 };
        Links { link, status: status_tx, heartbeat: heartbeat_tx, task: tokio::spawn(run.run()) }
    }
}

/// BCP 195: TLS 1.2 and 1.3 with ring's suites; the broker must show a certificate of our CA, we show ours.
fn client_tls(tls: &config::AlertTls) -> Result<rustls::ClientConfig, PublisherError> {
    let bad = |key, detail: String| PublisherError::Tls { key, detail };
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::pem_file_iter(&tls.ca).map_err(|e| bad("ca", e.to_string()))?;
    for certificate in ca {
        let certificate = certificate.map_err(|e| bad("ca", e.to_string()))?;
        roots.add(certificate).map_err(|e| bad("ca", e.to_string()))?;
    }
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&tls.certificate)
        .map_err(|e| bad("certificate", e.to_string()))?
        .collect();
    let chain = chain.map_err(|e| bad("certificate", e.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|e| bad("key", e.to_string()))?;
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("ca", e.to_string()))?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|e| bad("certificate", e.to_string()))
}

fn json() -> PublishProperties {
    PublishProperties {
        payload_format_indicator: Some(1),
        content_type: Some("application/json".into()),
        ..PublishProperties::default()
    }
}

/// Why a connection ended.
enum End {
    Shutdown,
    Error(String),
}

struct Run {
    publisher: Publisher,
    wake: Arc<Notify>,
    pulse: Pulse,
    shutdown: watch::Receiver<bool>,
    link: watch::Sender<Link>,
    status: watch::Receiver<Status>,
    beats: watch::Receiver<Heartbeat>,
    conn: u64,
}

/// What one connection is waiting for.
#[derive(Default)]
struct InFlight {
    row: Option<OutboxRow>,
    /// Known once the loop has sent it.
    pkid: Option<u16>,
    since: Option<std::time::Instant>,
    /// Publishes of ours that are on the way without a row (status): their PUBACKs are not for the outbox.
    others: usize,
    /// Largest packet this broker takes; `None` without a limit.
    bytes_max: Option<u32>,
    /// An alert was set aside on this connection.
    too_large: bool,
}

impl InFlight {
    /// Nothing of the outbox is on the way; what is known of the connection stays.
    fn landed(&mut self) -> Option<OutboxRow> {
        (self.pkid, self.since) = (None, None);
        self.row.take()
    }
}

impl Run {
    async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            self.conn += 1;
            let started = clock::now();
            match self.connection().await {
                End::Shutdown => return,
                End::Error(reason) => {
                    let was = self
                        .link
                        .send_replace(Link { connected: false, reasons: vec!["broker_unreachable".into()] });
                    if was.connected || self.conn == 1 {
                        log::warn!(event = "broker_lost"; "no link to the broker: {reason}");
                    }
                }
            }
            if clock::now() - started > BACKOFF_MAX {
                backoff = BACKOFF_MIN;
            }
            self.pulse.beat();
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                _ = self.shutdown.changed() => return,
            }
            // Hundreds of boxes must not return to a broker in step.
            let jitter = clock::boot_ms() % 100;
            backoff = (backoff * 2).min(BACKOFF_MAX) + Duration::from_millis(jitter);
        }
    }

    fn status_now(&self, state: Option<State>) -> Status {
        let mut status = self.status.borrow().clone();
        status.conn = self.conn;
        status.state = state.unwrap_or(status.state);
        status
    }

    fn options(&self) -> MqttOptions {
        let site = self.publisher.ledger.site();
        let config = &self.publisher.config;
        let id = format!("ichd-{}-{}", site.name, site.device);
        let mut options = MqttOptions::new(id, config.broker_host.clone(), config.broker_port);
        options.set_transport(self.publisher.transport.clone());
        if let Some(password) = &self.publisher.password {
            // `MqttOptions` prints it in `Debug`: never log the options.
            options.set_credentials(site.device.clone(), password.reveal().clone());
        }
        options.set_keep_alive(KEEP_ALIVE).set_clean_start(true).set_connection_timeout(5);
        // A will waits for its delay only while the session lives.
        options.set_session_expiry_interval(Some(WILL_DELAY_S));
        options.set_max_packet_size(Some(config.inbound_bytes_max));
        let lost = serde_json::to_string(&self.status_now(Some(State::Lost))).unwrap_or_default();
        let properties = LastWillProperties {
            delay_interval: Some(WILL_DELAY_S),
            payload_format_indicator: Some(1),
            message_expiry_interval: None,
            content_type: Some("application/json".into()),
            response_topic: None,
            correlation_data: None,
            user_properties: vec![],
        };
        options.set_last_will(LastWill::new(
            topic::status(site),
            lost,
            QoS::AtLeastOnce,
            true,
            Some(properties),
        ));
        options
    }

    async fn connection(&mut self) -> End {
        let (client, mut events) = AsyncClient::new(self.options(), REQUESTS_MAX);
        let mut heartbeat = tokio::time::interval(self.publisher.heartbeat);
        let mut flight = InFlight::default();
        match self.handshake(&mut events).await {
            Ok(Some(Event::Incoming(Packet::ConnAck(ack)))) => {
                flight.bytes_max = ack.properties.and_then(|p| p.max_packet_size);
            }
            Ok(Some(_)) => return End::Error("the broker did not begin with a CONNACK".into()),
            Ok(None) => return End::Shutdown,
            Err(error) => return End::Error(error.to_string()),
        }
        self.on_connected(&client, &mut flight);
        let mut pause_until = clock::now();
        loop {
            self.pulse.beat();
            if flight.row.is_none()
                && clock::now() >= pause_until
                && let Err(reason) = self.send_next(&client, &mut flight)
            {
                return End::Error(reason);
            }
            let timeout = Duration::from_millis(self.publisher.config.puback_timeout_ms);
            if flight.since.is_some_and(|since| clock::now() - since > timeout) {
                return End::Error("no PUBACK in time".into());
            }
            tokio::select! {
                event = events.poll() => match event {
                    Ok(event) => {
                        if let Err(pause) = self.on_event(&event, &mut flight) {
                            pause_until = clock::now() + pause;
                        }
                    }
                    Err(error) => return End::Error(error.to_string()),
                },
                () = self.wake.notified() => {}
                changed = self.status.changed() => {
                    if changed.is_ok() { self.send_status(&client, &mut flight, None); }
                }
                _ = heartbeat.tick() => self.send_heartbeat(&client),
                _ = self.shutdown.changed() => {
                    self.say_goodbye(&client, &mut events).await;
                    return End::Shutdown;
                }
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    /// TCP, TLS and CONNACK all happen inside one `poll`, which must not be dropped while they do: a slow broker would
    /// be begun again for ever. `None` means shutdown.
    async fn handshake(&mut self, events: &mut EventLoop) -> Result<Option<Event>, ConnectionError> {
        let mut poll = std::pin::pin!(events.poll());
        loop {
            self.pulse.beat();
            tokio::select! {
                event = &mut poll => return event.map(Some),
                _ = self.shutdown.changed() => return Ok(None),
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    fn on_connected(&mut self, client: &AsyncClient, flight: &mut InFlight) {
        self.link.send_replace(Link { connected: true, reasons: vec![] });
        log::info!(event = "broker_connected", conn = self.conn; "linked to the broker");
        self.status.mark_unchanged();
        self.send_status(client, flight, None);
        // The broker may keep nothing on disk; what is open is said again.
        if let Err(error) = tokio::task::block_in_place(|| self.publisher.ledger.requeue_open_alerts()) {
            log::error!(event = "ledger_failed"; "open alerts could not be queued: {}", crate::chain(&error));
        }
    }

    fn send_next(&self, client: &AsyncClient, flight: &mut InFlight) -> Result<(), String> {
        let ledger = &self.publisher.ledger;
        let stamped = tokio::task::block_in_place(|| match ledger.outbox_next()? {
            Some(row) => ledger.stamp(&row).map(|payload| Some((row, payload))),
            None => Ok(None),
        });
        let Some((row, payload)) = stamped.map_err(|e| crate::chain(&e))? else { return Ok(()) };
        let site = ledger.site();
        let properties = PublishProperties {
            message_expiry_interval: Some(if row.retain {
                self.publisher.config.expiry_s
            } else {
                STUDY_EXPIRY_S
            }),
            correlation_data: row.alert_id.as_ref().map(|id| id.clone().into_bytes().into()),
            response_topic: row.alert_id.as_ref().map(|_| topic::receipt(site)),
            ..json()
        };
        let packet = Publish {
            pkid: 1,
            ..Publish::new(&row.topic, QoS::AtLeastOnce, payload.clone(), Some(properties.clone()))
        };
        if flight.bytes_max.is_some_and(|max| packet.size() > max as usize) {
            self.set_aside(&row, packet.size(), flight);
            return Ok(());
        }
        client
            .try_publish_with_properties(row.topic.clone(), QoS::AtLeastOnce, row.retain, payload, properties)
            .map_err(|_| "request channel is full".to_owned())?;
        (flight.row, flight.pkid, flight.since) = (Some(row), None, Some(clock::now()));
        Ok(())
    }

    /// A document that this broker will never take must not hold up those behind it; every new connection tries again
    /// while its alert is open.
    fn set_aside(&self, row: &OutboxRow, bytes: usize, flight: &mut InFlight) {
        log::error!(event = "document_too_large", bytes = bytes, limit = flight.bytes_max.unwrap_or(0); "the broker takes no packet of this size; the document is set aside");
        if row.alert_id.is_some() {
            flight.too_large = true;
            self.link.send_if_modified(|link| {
                let news = !link.reasons.iter().any(|r| r == "alert_too_large");
                if news {
                    link.reasons.push("alert_too_large".into());
                }
                news
            });
        }
        self.clear(row);
    }

    fn clear(&self, row: &OutboxRow) {
        if let Err(error) = tokio::task::block_in_place(|| self.publisher.ledger.outbox_done(row.seq)) {
            log::error!(event = "ledger_failed"; "outbox could not be cleared: {}", crate::chain(&error));
        }
    }

    /// `Err` carries how long to wait before the next try of a refused document.
    fn on_event(&mut self, event: &Event, flight: &mut InFlight) -> Result<(), Duration> {
        match event {
            // The loop sends in the order of the requests: what was asked before our row is somebody else's.
            Event::Outgoing(Outgoing::Publish(pkid)) if *pkid != 0 => {
                if flight.others > 0 {
                    flight.others -= 1;
                } else if flight.row.is_some() && flight.pkid.is_none() {
                    flight.pkid = Some(*pkid);
                }
            }
            Event::Incoming(Packet::PubAck(ack)) if flight.pkid == Some(ack.pkid) => {
                let Some(row) = flight.landed() else { return Ok(()) };
                return self.on_puback(&row, ack.reason, flight.too_large);
            }
            _ => {}
        }
        Ok(())
    }

    fn on_puback(&self, row: &OutboxRow, reason: PubAckReason, too_large: bool) -> Result<(), Duration> {
        let code = match reason {
            PubAckReason::Success => None,
            PubAckReason::NoMatchingSubscribers => Some("nobody_listening"),
            PubAckReason::NotAuthorized => Some("publish_denied"),
            PubAckReason::QuotaExceeded => Some("broker_quota"),
            _ => Some("publish_refused"),
        };
        self.link.send_if_modified(|link| {
            let is_alert = row.alert_id.is_some();
            let mut reasons = link.reasons.clone();
            reasons.retain(|r| match r.as_str() {
                "alert_too_large" => too_large,
                r => !is_alert && ABOUT_ALERTS.contains(&r),
            });
            // A disposition that nobody listens to is no concern; an alert is.
            reasons.extend(code.filter(|c| is_alert || *c != "nobody_listening").map(Into::into));
            std::mem::replace(&mut link.reasons, reasons.clone()) != reasons
        });
        if !matches!(reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) {
            log::error!(event = "publish_refused", reason = code.unwrap_or(""); "the broker refused a document; it stays in the outbox");
            return Err(DENIED_PAUSE);
        }
        if let Some(alert_id) = &row.alert_id {
            log::info!(event = "alert_published", alert_id = alert_id.as_str(); "alert is with the broker");
        }
        self.clear(row);
        Ok(())
    }

    fn send_status(&self, client: &AsyncClient, flight: &mut InFlight, state: Option<State>) {
        let site = self.publisher.ledger.site();
        let payload = serde_json::to_string(&self.status_now(state)).unwrap_or_default();
        if client
            .try_publish_with_properties(topic::status(site), QoS::AtLeastOnce, true, payload, json())
            .is_ok()
            && (flight.row.is_none() || flight.pkid.is_some())
        {
            flight.others += 1;
        }
    }

    fn send_heartbeat(&self, client: &AsyncClient) {
        let payload = serde_json::to_string(&*self.beats.borrow()).unwrap_or_default();
        let properties = PublishProperties { message_expiry_interval: Some(60), ..json() };
        let topic = topic::heartbeat(self.publisher.ledger.site());
        let _ = client.try_publish_with_properties(topic, QoS::AtMostOnce, false, payload, properties);
    }

    /// Says "offline" itself, so that the will need not say "lost".
    async fn say_goodbye(&self, client: &AsyncClient, events: &mut EventLoop) {
        self.send_status(client, &mut InFlight::default(), Some(State::Offline));
        let _ = client.try_disconnect();
        let _ = tokio::time::timeout(Duration::from_secs(2), async { while events.poll().await.is_ok() {} })
            .await;
    }
}

#[cfg(test)]
#[path = "publisher_tests.rs"]
mod tests;
