//! The wiring: broker to queues, a worker per target. A crash at any point tells again, never less.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{Client, Event as MqttEvent, MqttOptions};
use rumqttc::{Outgoing, TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Config, Target, Tls};
use crate::event::{Event, Reducer};
use crate::http::{self, Outcome};
use crate::queue::{self, Queue};
use crate::{clock, fhir, hl7, mllp, ntfy, webhook};

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
const RECONNECT: Duration = Duration::from_secs(2);
/// The broker keeps what we miss for so long; what is open it retains anyway.
const SESSION_S: u32 = 86_400;
const PACKET_BYTES_MAX: u32 = 1 << 20;
/// What may wait for the loop of the client.
const REQUESTS_MAX: usize = 64;
/// Acknowledgements that are asked for and not sent: the loop hands over ten packets for each request that it takes, and a
/// backlog would fill its channel.
const ACKS_MAX: usize = 16;

/// Tells one target of one event.
type Tell = Box<dyn Fn(&Event) -> Outcome + Send>;

/// Everything read and checked, nothing connected.
pub struct Gateway {
    config: Config,
    options: MqttOptions,
    targets: Vec<(Target, Tell)>,
}

impl Gateway {
    /// Reads certificates, secrets and tokens.
    pub fn new(config: Config) -> Result<Self, String> {
        let mqtt = &config.mqtt;
        let mut options = MqttOptions::new(mqtt.name.clone(), mqtt.host.clone(), mqtt.port);
        options.set_keep_alive(Duration::from_secs(20)).set_clean_start(false).set_manual_acks(true);
        options.set_session_expiry_interval(Some(SESSION_S));
        options.set_max_packet_size(Some(PACKET_BYTES_MAX));
        if let Some(files) = &mqtt.tls {
            let tls = TlsConfiguration::Rustls(Arc::new(tls(files)?));
            options.set_transport(Transport::tls_with_config(tls));
        }
        let targets: Result<Vec<_>, String> = config
            .target
            .iter()
            .map(|t| Ok((t.clone(), tell(t).map_err(|e| format!("target `{}`: {e}", t.name))?)))
            .collect();
        let targets = targets?;
        Ok(Gateway { config, options, targets })
    }

    /// Runs until something on this machine fails; the broker and the targets may come and go.
    pub fn run(self) -> Result<(), String> {
        let state = self.config.state_directory.clone();
        let failed = |e: std::io::Error| format!("`{}`: {e}", state.display());
        std::fs::create_dir_all(&state).map_err(failed)?;
        let mut queues = Vec::new();
        for (target, tell) in self.targets {
            let queue = Arc::new(Queue::open(&state.join(&target.name)).map_err(failed)?);
            queues.push((target.clone(), queue.clone()));
            std::thread::Builder::new()
                .name(target.name.clone())
                .spawn(move || work(&target, &tell, &queue))
                .map_err(failed)?;
        }
        let mut intake = Intake::open(state.join("held.json"), queues)?;
        let (client, mut connection) = Client::new(self.options, REQUESTS_MAX);
        let filter = format!("ichd/1/{}/dev/+/alert/+", self.config.mqtt.site);
        let mut acks = Acks::default();
        loop {
            acks.send(&client);
            match connection.recv() {
                Ok(Ok(MqttEvent::Incoming(Packet::ConnAck(_)))) => {
                    eprintln!("event=broker_connected");
                    // What was not acknowledged comes again, under identifiers of the new connection.
                    acks = Acks::default();
                    client.try_subscribe(filter.as_str(), QoS::AtLeastOnce).map_err(|e| e.to_string())?;
                }
                Ok(Ok(MqttEvent::Incoming(Packet::Publish(publish)))) => {
                    intake.take(&publish)?;
                    acks.waiting.push_back(Publish { payload: Vec::new().into(), ..publish });
                }
                Ok(Ok(MqttEvent::Outgoing(Outgoing::PubAck(_)))) => {
                    acks.asked = acks.asked.saturating_sub(1);
                }
                Ok(Ok(_)) => {}
                Ok(Err(error)) => {
                    eprintln!("event=broker_lost reason={:?}", error.to_string());
                    std::thread::sleep(RECONNECT);
                }
                Err(_) => return Err("the MQTT client ended".into()),
            }
        }
    }
}

/// Documents that are on disk and not yet acknowledged.
#[derive(Default)]
struct Acks {
    waiting: VecDeque<Publish>,
    asked: usize,
}

impl Acks {
    /// A few at a time.
    fn send(&mut self, client: &Client) {
        while self.asked < ACKS_MAX
            && let Some(publish) = self.waiting.front()
            && client.try_ack(publish).is_ok()
        {
            self.waiting.pop_front();
            self.asked += 1;
        }
    }
}

/// What is held, and the queues it feeds.
struct Intake {
    path: PathBuf,
    reducer: Reducer,
    queues: Vec<(Target, Arc<Queue>)>,
}

impl Intake {
    fn open(path: PathBuf, queues: Vec<(Target, Arc<Queue>)>) -> Result<Self, String> {
        let reducer = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| format!("`{}`: {e}", path.display()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Reducer::default(),
            Err(e) => return Err(format!("`{}`: {e}", path.display())),
        };
        Ok(Intake { path, reducer, queues })
    }

    /// Queues first, memory second: a crash between them may tell twice, under the same identifier.
    fn take(&mut self, publish: &Publish) -> Result<(), String> {
        if publish.payload.is_empty() {
            return Ok(());
        }
        let document = serde_json::from_slice(&publish.payload).unwrap_or_default();
        let event = match self.reducer.apply(document, clock::wall_ms()) {
            Ok(Some(event)) => event,
            Ok(None) => return self.save(),
            Err(why) => {
                eprintln!("event=document_refused reason={why:?}");
                return Ok(());
            }
        };
        for (target, queue) in self.queues.iter().filter(|(target, _)| target.wants(&event)) {
            queue.push(&event).map_err(|e| format!("queue of `{}`: {e}", target.name))?;
        }
        self.save()?;
        eprintln!("event=taken id={} change={}", event.id, event.change.as_str());
        Ok(())
    }

    fn save(&self) -> Result<(), String> {
        let bytes = serde_json::to_vec(&self.reducer).map_err(|e| e.to_string())?;
        queue::write(&self.path, &bytes).map_err(|e| format!("`{}`: {e}", self.path.display()))
    }
}

/// One event at a time, in order, until its target has it, will never have it, or it is too old.
fn work(target: &Target, tell: &Tell, queue: &Queue) {
    let mut backoff = BACKOFF_MIN;
    loop {
        let mark = queue.mark();
        let (number, event) = match queue.first() {
            Ok(Some(first)) => first,
            Ok(None) => {
                queue.wait(mark, BACKOFF_MAX);
                continue;
            }
            Err(error) => {
                eprintln!("event=queue_failed target={} reason={:?}", target.name, error.to_string());
                std::thread::sleep(BACKOFF_MAX);
                continue;
            }
        };
        let age_ms = clock::wall_ms().saturating_sub(event.seen_ms);
        let outcome = if age_ms > target.give_up_s.saturating_mul(1000) {
            Outcome::Never("too old".into())
        } else {
            tell(&event)
        };
        let ended = match &outcome {
            Outcome::Taken => {
                eprintln!("event=told target={} id={}", target.name, event.id);
                queue.done(number)
            }
            Outcome::Never(why) => {
                eprintln!("event=refused target={} id={} reason={why:?}", target.name, event.id);
                queue.refuse(number)
            }
            Outcome::Later(why) => {
                eprintln!(
                    "event=later target={} id={} reason={why:?} wait_s={}",
                    target.name,
                    event.id,
                    backoff.as_secs()
                );
                std::thread::sleep(backoff);
                backoff = (backoff * 2).min(BACKOFF_MAX);
                continue;
            }
        };
        backoff = BACKOFF_MIN;
        if let Err(error) = ended {
            eprintln!("event=queue_failed target={} reason={:?}", target.name, error.to_string());
            std::thread::sleep(BACKOFF_MAX);
        }
    }
}

fn tell(target: &Target) -> Result<Tell, String> {
    if let Some(to) = target.mllp.clone() {
        return Ok(Box::new(move |e| mllp::send(&to.address, &hl7::message(e, &to.names), &e.id)));
    }
    if let Some(to) = &target.fhir {
        let client = http::Client::new(to)?;
        return Ok(Box::new(move |e| {
            // Conditional create: a repetition finds the resource and makes no second one.
            let once = [("If-None-Exist", format!("identifier={}|{}", fhir::SYSTEM, e.id))];
            client.post("application/fhir+json", &once, &fhir::communication(e).to_string())
        }));
    }
    if let Some(to) = &target.ntfy {
        let (client, says) = (http::Client::new(&to.http)?, to.says);
        return Ok(Box::new(move |e| {
            let notification = ntfy::notification(e, says);
            client.post("text/plain; charset=utf-8", &notification.headers, &notification.body)
        }));
    }
    let to = target.webhook.as_ref().ok_or("is nothing")?;
    let (client, secret) = (http::Client::new(&to.http)?, http::read(&to.secret_file)?.trim().to_owned());
    if secret.len() < 16 {
        return Err(format!("the secret in `{}` is shorter than 16 bytes", to.secret_file.display()));
    }
    Ok(Box::new(move |e| {
        let body = webhook::body(e);
        let signature = webhook::signature(secret.as_bytes(), clock::wall_ms() / 1000, &body);
        let headers = [("X-Ichd-Signature", signature), ("X-Ichd-Delivery", e.id.clone())];
        client.post("application/json", &headers, &body)
    }))
}

fn tls(files: &Tls) -> Result<rustls::ClientConfig, String> {
    let bad = |path: &Path, e: String| format!("`{}`: {e}", path.display());
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>, String> {
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| bad(path, e.to_string()))
    };
    let mut roots = rustls::RootCertStore::empty();
    for ca in certificates(&files.ca)? {
        roots.add(ca).map_err(|e| bad(&files.ca, e.to_string()))?;
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| bad(&files.key, e.to_string()))?;
    rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates(&files.certificate)?, key)
        .map_err(|e| bad(&files.certificate, e.to_string()))
}
