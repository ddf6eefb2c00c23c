//! Takes the outbox to the broker. Client and event loop live for one connection and are thrown away on any error,
//! because `rumqttc` clears its queue silently when a session is lost and no publish of its can be awaited.
//!
//! One document is in flight at a time; its row leaves the outbox only on a PUBACK that says the broker took it.
//! Never `publish().await` while polling: a full request channel would wait for the loop that waits for it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    Filter, LastWill, LastWillProperties, Packet, PubAckReason, Publish, PublishProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use super::document::{Heartbeat, State, Status};
use super::inbound::{self, ActionCode, ActionResult, CommandMessage, Inbound, Reply};
use super::request::{Answer, AnswerCode, Asked};
use super::stations::Stations;
use super::topic;
use crate::clock;
use crate::config;
use crate::dicom::Phi;
use crate::health::Pulse;
use crate::infer::ModelId;
use crate::ledger::alerts::{Heard, Speaker};
use crate::ledger::outbox::REPLY_EXPIRY_S;
use crate::ledger::{Ledger, LedgerError, OutboxRow};
use crate::update::command::{LeaveError, Mailbox, Void};

const KEEP_ALIVE: Duration = Duration::from_secs(5);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
const WILL_DELAY_S: u32 = 10;
const SESSION_EXPIRY_S: u32 = 3_600;
const REQUESTS_MAX: usize = 64;
/// Documents of stations that the broker may have on the way to us at once. Mosquitto 2.0 sends that many for each
/// acknowledgement, so it is a limit for others only.
const RECEIVE_MAX: u16 = 16;
/// Acknowledgements that are asked for and not sent. The loop hands over ten packets for each request it takes: those of
/// a backlog would fill its channel, and stand before an alert.
const ACKS_MAX: usize = 16;
/// Role that a station must be enrolled with to ask for something or to order an update.
const ENGINEER: &str = "engineer";
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
    stations: Stations,
    mailbox: Option<Mailbox>,
    desk: Option<mpsc::Sender<Asked>>,
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
        let stations = Stations::new(config);
        Ok(Publisher {
            config: config.clone(),
            heartbeat,
            transport,
            password,
            ledger,
            model,
            stations,
            mailbox: None,
            desk: None,
        })
    }

    /// Takes an engineer's orders.
    pub fn ordering(self, mailbox: Mailbox) -> Self {
        Publisher { mailbox: Some(mailbox), ..self }
    }

    /// Who listens.
    pub fn stations(&self) -> Stations {
        self.stations.clone()
    }

    /// Who answers an engineer's requests; without one they are refused.
    pub fn asking(self, desk: mpsc::Sender<Asked>) -> Self {
        Publisher { desk: Some(desk), ..self }
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
            warnings: vec![],
            update: None,
            silence: None,
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

fn code_of(error: &LeaveError) -> ActionCode {
    match error {
        LeaveError::NotAllowed | LeaveError::Void(Void::NoKeys | Void::Signature) => ActionCode::NotAllowed,
        LeaveError::Void(Void::Time) => ActionCode::Expired,
        LeaveError::Void(Void::Unreadable(_) | Void::OtherBox { .. }) | LeaveError::Write(_) => {
            ActionCode::BadRequest
        }
    }
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
    /// Publishes of ours that are on the way without a row (status): their PUBACKs are not for the outbox. Those that
    /// were asked for before the row.
    others: usize,
    /// Those that were asked for after the row, which has no packet identifier yet. They may be sent after it has landed
    /// and the next one waits: they count before that one.
    behind: usize,
    /// Their packet identifiers, once sent.
    foreign: HashSet<u16>,
    /// Largest packet this broker takes; `None` without a limit.
    bytes_max: Option<u32>,
    /// An alert was set aside on this connection.
    too_large: bool,
    /// Documents that are on disk and not yet acknowledged.
    acks: VecDeque<Publish>,
    /// Acknowledgements that were asked for and not sent.
    acks_asked: usize,
}

impl InFlight {
    /// A publish without a row was asked for, unless the channel was full.
    fn not_ours(&mut self, sent: bool) {
        let before = self.row.is_none() || self.pkid.is_some();
        *(if before { &mut self.others } else { &mut self.behind }) += usize::from(sent);
    }

    /// The loop has sent a publish. It sends in the order of the requests: what was asked before our row is somebody
    /// else's.
    fn sent(&mut self, pkid: u16) {
        if self.others > 0 {
            self.others -= 1;
            self.foreign.insert(pkid);
        } else if self.row.is_some() && self.pkid.is_none() {
            self.pkid = Some(pkid);
            self.others = std::mem::take(&mut self.behind);
        }
    }

    /// Acknowledges what is on disk, a few at a time.
    fn acknowledge(&mut self, client: &AsyncClient) {
        while self.acks_asked < ACKS_MAX
            && let Some(publish) = self.acks.front()
            && client.try_ack(publish).is_ok()
        {
            self.acks.pop_front();
            self.acks_asked += 1;
        }
    }

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
        // The broker keeps for us what people do while we are away. A will waits for its delay while the session lives.
        options.set_keep_alive(KEEP_ALIVE).set_clean_start(false).set_connection_timeout(5);
        options.set_session_expiry_interval(Some(SESSION_EXPIRY_S));
        options.set_receive_maximum(Some(RECEIVE_MAX));
        options.set_max_packet_size(Some(config.inbound_bytes_max));
        // A station's word is acknowledged when it is on disk, not when it is in memory.
        options.set_manual_acks(true);
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
        loop {
            self.pulse.beat();
            flight.acknowledge(&client);
            if flight.row.is_none()
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
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        if let Err(reason) = self.on_publish(&client, &publish, &mut flight) {
                            return End::Error(reason);
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(ack))) => {
                        if ack.return_codes.iter().any(|c| !matches!(c, SubscribeReasonCode::Success(_))) {
                            self.say("subscribe_denied");
                        }
                    }
                    Ok(event) => self.on_event(&event, &mut flight),
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
        let filter = |topic| Filter::new(topic, QoS::AtLeastOnce);
        let subscriptions = topic::subscriptions(self.publisher.ledger.site()).map(filter);
        if client.try_subscribe_many(subscriptions).is_err() {
            self.say("subscribe_denied");
        }
        self.publisher.stations.relinked();
        // The broker may keep nothing on disk, or have lost its last minute: what is open or was closed of late is said
        // again.
        if let Err(error) = tokio::task::block_in_place(|| self.publisher.ledger.requeue_alerts()) {
            log::error!(event = "ledger_failed"; "alerts could not be queued: {}", crate::chain(&error));
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
            message_expiry_interval: Some(row.expiry_s),
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

    /// Adds a reason to the link's.
    fn say(&self, reason: &str) {
        self.link.send_if_modified(|link| {
            let news = !link.reasons.iter().any(|r| r == reason);
            if news {
                link.reasons.push(reason.into());
            }
            news
        });
    }

    /// What a station says is written down, then acknowledged. On a failure the link is built anew, and the broker,
    /// which keeps our session, tells it again.
    fn on_publish(
        &self,
        client: &AsyncClient,
        publish: &Publish,
        flight: &mut InFlight,
    ) -> Result<(), String> {
        let topic = String::from_utf8_lossy(&publish.topic);
        tokio::task::block_in_place(|| self.take(client, &topic, publish, flight))
            .map_err(|e| crate::chain(&e))?;
        // Quality of service 0 asks for none.
        if publish.qos != QoS::AtMostOnce {
            flight.acks.push_back(Publish { payload: Vec::new().into(), ..publish.clone() });
        }
        Ok(())
    }

    fn take(
        &self,
        client: &AsyncClient,
        topic: &str,
        publish: &Publish,
        flight: &mut InFlight,
    ) -> Result<(), LedgerError> {
        let ledger = &self.publisher.ledger;
        let site = ledger.site();
        let parsed = inbound::parse(&topic::root(site), &site.device, topic, &publish.payload);
        let Some((station, document)) = parsed else { return Ok(()) };
        let stations = &self.publisher.stations;
        let role = stations.role(&station);
        let speaker = Speaker { station: &station, role: &role };
        match document {
            Err(bad) => {
                log::warn!(event = "station_refused", station = station.as_str(); "a document of a station is refused: {bad}");
            }
            Ok(Inbound::Status(status)) => stations.heard(&station, status),
            Ok(Inbound::Receipt(receipt)) if stations.admits(&station) => {
                if ledger.receipt(speaker, &receipt)? == Heard::Delivered {
                    self.wake.notify_one();
                }
            }
            Ok(Inbound::Receipt(_)) => {
                log::warn!(event = "station_refused", station = station.as_str(); "a receipt of a station that is not enrolled");
            }
            Ok(Inbound::Request(request)) => {
                log::info!(event = "request", station = station.as_str(); "{:?} asked for", request.command);
                let allowed = stations.admits(&station) && role == ENGINEER;
                let asked = Asked { station: station.clone(), request };
                let refused = match &self.publisher.desk {
                    Some(desk) if allowed => desk.try_send(asked.clone()).err().map(|_| AnswerCode::Busy),
                    _ => Some(AnswerCode::NotAllowed),
                };
                if let Some(code) = refused {
                    ledger.answer(&asked, &Answer::to(&asked.request, code, ""))?;
                    self.wake.notify_one();
                }
            }
            Ok(Inbound::Action(action)) => {
                let reply = ledger.act(speaker, &action, stations.admits(&station))?;
                log::info!(event = "action", alert_id = action.alert_id.as_str(), station = station.as_str(); "{:?}: {:?}", action.verb, reply.code);
                self.wake.notify_one();
                self.reply(client, &station, publish, &reply, flight)?;
            }
            Ok(Inbound::Command(command)) => {
                let reply = self.order(speaker, &command)?;
                self.reply(client, &station, publish, &reply, flight)?;
            }
        }
        Ok(())
    }

    /// An engineer's order is left for root, or refused; either way it is in the audit log.
    fn order(&self, speaker: Speaker, command: &CommandMessage) -> Result<Reply, LedgerError> {
        let Publisher { stations, mailbox, ledger, .. } = &self.publisher;
        let engineer = stations.enrolled_role(speaker.station) == Some(ENGINEER);
        let left = match mailbox {
            Some(mailbox) if engineer => mailbox.leave(&command.order, clock::wall_ms()),
            _ => Err(LeaveError::NotAllowed),
        };
        let (result, code, message) = match &left {
            Ok(_) => (ActionResult::Accepted, ActionCode::Ok, String::new()),
            Err(error) => (ActionResult::Refused, code_of(error), error.to_string()),
        };
        log::info!(event = "order", station = speaker.station; "an order to update: {code:?}");
        ledger.note_order(speaker, command, code, left.as_ref().ok())?;
        Ok(Reply {
            schema: "ichd.reply/1".into(),
            action_id: command.action_id.clone(),
            alert_id: String::new(),
            result,
            code,
            message,
            rev: 0,
        })
    }

    fn reply(
        &self,
        client: &AsyncClient,
        station: &str,
        publish: &Publish,
        reply: &Reply,
        flight: &mut InFlight,
    ) -> Result<(), LedgerError> {
        let correlation = publish.properties.as_ref().and_then(|p| p.correlation_data.clone());
        let properties = PublishProperties {
            message_expiry_interval: Some(REPLY_EXPIRY_S),
            correlation_data: correlation.or_else(|| Some(reply.action_id.clone().into_bytes().into())),
            ..json()
        };
        let payload = serde_json::to_string(reply).map_err(LedgerError::Document)?;
        let topic = topic::reply(self.publisher.ledger.site(), station);
        let sent = client.try_publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties);
        flight.not_ours(sent.is_ok());
        Ok(())
    }

    /// A document that this broker will never take must not hold up those behind it; every new connection tries again
    /// while its alert is open.
    fn set_aside(&self, row: &OutboxRow, bytes: usize, flight: &mut InFlight) {
        log::error!(event = "document_too_large", bytes = bytes, limit = flight.bytes_max.unwrap_or(0); "the broker takes no packet of this size; the document is set aside");
        if row.alert_id.is_some() {
            flight.too_large = true;
            self.say("alert_too_large");
        }
        self.clear(row);
    }

    fn clear(&self, row: &OutboxRow) {
        if let Err(error) = tokio::task::block_in_place(|| self.publisher.ledger.outbox_done(row.seq)) {
            log::error!(event = "ledger_failed"; "outbox could not be cleared: {}", crate::chain(&error));
        }
    }

    fn on_event(&mut self, event: &Event, flight: &mut InFlight) {
        match event {
            Event::Outgoing(Outgoing::PubAck(_)) => {
                flight.acks_asked = flight.acks_asked.saturating_sub(1);
            }
            Event::Outgoing(Outgoing::Publish(pkid)) if *pkid != 0 => flight.sent(*pkid),
            Event::Incoming(Packet::PubAck(ack)) if flight.pkid == Some(ack.pkid) => {
                if let Some(row) = flight.landed() {
                    self.on_puback(&row, ack.reason, flight.too_large);
                }
            }
            Event::Incoming(Packet::PubAck(ack))
                if flight.foreign.remove(&ack.pkid)
                    && !matches!(ack.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers) =>
            {
                self.say("status_denied");
            }
            _ => {}
        }
    }

    fn on_puback(&self, row: &OutboxRow, reason: PubAckReason, too_large: bool) {
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
            if let Err(error) = tokio::task::block_in_place(|| self.publisher.ledger.outbox_refused(row.seq))
            {
                log::error!(event = "ledger_failed"; "a refusal could not be written down: {}", crate::chain(&error));
            }
            return;
        }
        if let Some(alert_id) = &row.alert_id {
            log::info!(event = "alert_published", alert_id = alert_id.as_str(); "alert is with the broker");
            if let Err(error) =
                tokio::task::block_in_place(|| self.publisher.ledger.proof_at_broker(alert_id))
            {
                log::error!(event = "ledger_failed"; "a proof of life could not be written down: {}", crate::chain(&error));
            }
        }
        self.clear(row);
    }

    fn send_status(&self, client: &AsyncClient, flight: &mut InFlight, state: Option<State>) {
        let site = self.publisher.ledger.site();
        let payload = serde_json::to_string(&self.status_now(state)).unwrap_or_default();
        let sent =
            client.try_publish_with_properties(topic::status(site), QoS::AtLeastOnce, true, payload, json());
        flight.not_ours(sent.is_ok());
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
