//! One TOML file, one table per stage. Unknown keys are refused with the nearest right name; nothing is bound here.
//!
//! Defaults are safe: loopback only, no calling AE admitted, nothing anonymous, until the hospital says otherwise.
//! `daemon/ichd.toml` documents every key and is checked by a test.

mod check;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::alert::ladder;
use crate::dicom::AeTitle;
use crate::ledger::alerts::{Policy, Shift};
use crate::report::Kind;
use crate::update::gate::Window;

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Who this box is.
    pub site: Site,
    /// Where state lives.
    #[serde(default)]
    pub state: State,
    /// Storage SCP.
    #[serde(default)]
    pub receive: Receive,
    /// Series assembly.
    #[serde(default)]
    pub assemble: Assemble,
    /// The reader.
    #[serde(default)]
    pub infer: Infer,
    /// MQTT.
    #[serde(default)]
    pub alert: Alert,
    /// What alerts say of the patient.
    #[serde(default)]
    pub privacy: Privacy,
    /// Results to the PACS.
    #[serde(default)]
    pub report: Report,
    /// Images to further nodes; off without a rule.
    #[serde(default)]
    pub forward: Vec<crate::forward::Rule>,
    /// Who is told when.
    #[serde(default)]
    pub escalation: Escalation,
    /// Proof of life.
    #[serde(default)]
    pub proof: Proof,
    /// How long instances are kept.
    #[serde(default)]
    pub spool: crate::evidence::retention::Config,
    /// Liveness.
    #[serde(default)]
    pub health: Health,
    /// Audit messages to the hospital's repository; off if absent.
    pub atna: Option<crate::atna::Config>,
    /// Numbers for a monitor.
    #[serde(default)]
    pub metrics: crate::evidence::metrics::Config,
    /// The station page.
    #[serde(default)]
    pub station: Station,
    /// Bundles.
    #[serde(default)]
    pub update: Update,
    /// Model packages apart from the image.
    #[serde(default)]
    pub models: Models,
}

/// What surfaces may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Only that a study is suspected: no subtype, no marks.
    Triage,
    /// Type, side, slice range, heat map, volume.
    Assist,
}

/// Who this box is; both names are MQTT topic levels.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Site {
    /// Site name, a topic level: lower-case letters, digits, hyphens.
    pub name: String,
    /// Device name, a topic level, unique in the site.
    pub device: String,
    /// What surfaces may say; must be named.
    pub profile: Profile,
}

/// Where state lives.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct State {
    /// Directory of spool and database; `$STATE_DIRECTORY` (systemd) wins if set.
    pub directory: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        State { directory: "/var/lib/ichd".into() }
    }
}

/// Storage SCP.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Receive {
    /// Our AE title.
    pub ae_title: AeTitle,
    /// Where to listen.
    pub listen: SocketAddr,
    /// AE titles that may associate; empty admits nobody.
    pub calling_ae_titles: Vec<AeTitle>,
    /// `proof.ae-title`, which is admitted from this machine only; the wiring sets it.
    #[serde(skip)]
    pub proof_ae_title: Option<AeTitle>,
    /// Peer addresses that may connect; empty admits loopback only.
    pub peer_addresses: Vec<IpAddr>,
    /// Associations at once; more are rejected as transient.
    pub associations_max: usize,
    /// Largest PDU we take, bytes.
    pub pdu_bytes_max: u32,
    /// Largest instance, bytes of data set.
    pub instance_bytes_max: u64,
    /// Largest total of one association, bytes.
    pub association_bytes_max: u64,
    /// From TCP accept to A-ASSOCIATE-RQ, ms.
    pub handshake_timeout_ms: u64,
    /// Between two PDUs, ms.
    pub idle_timeout_ms: u64,
    /// Whole association, ms.
    pub total_timeout_ms: u64,
    /// Free space below which storage is refused (A700), bytes.
    pub free_bytes_min: u64,
    /// Mutual TLS on a second listener.
    pub tls: Option<ReceiveTls>,
    /// Peers that are offered Storage Commitment; none by default, since a scanner may delete what was committed.
    pub peer: Vec<Peer>,
}

/// A peer that we may have to call back.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Peer {
    /// Its AE title; also to be listed in `receive.calling-ae-titles`.
    pub ae_title: AeTitle,
    /// Where it listens, `host:port`.
    pub address: String,
    /// Over TLS, with the certificates of `[receive.tls]`.
    #[serde(default)]
    pub tls: bool,
}

/// Mutual TLS on the DICOM side; all PEM files, followed while the daemon runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReceiveTls {
    /// Where to listen for associations over TLS.
    pub listen: SocketAddr,
    /// Authorities whose client certificates are admitted.
    pub ca: PathBuf,
    /// Our certificate, with intermediates behind it.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
    /// AE titles that may still associate without TLS on `receive.listen`; empty means nobody may.
    #[serde(default)]
    pub plaintext_ae_titles: Vec<AeTitle>,
    /// Revocation lists of the authorities; a client certificate that no list speaks of is then refused too.
    #[serde(default)]
    pub crl: Option<PathBuf>,
    /// Which AE titles the holder of a certificate may use, by its common name or `sha256:` and its fingerprint; who is
    /// not listed may use none. Empty: every admitted title.
    #[serde(default)]
    pub ae_titles: BTreeMap<String, Vec<AeTitle>>,
}

impl ReceiveTls {
    /// The certificate files.
    pub fn files(&self) -> crate::tls::Files {
        crate::tls::Files {
            ca: Some(self.ca.clone()),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            crl: self.crl.clone(),
        }
    }
}

impl Default for Receive {
    fn default() -> Self {
        Receive {
            ae_title: AeTitle::parse("ICHD").expect("constant"),
            listen: SocketAddr::from(([127, 0, 0, 1], 11112)),
            calling_ae_titles: Vec::new(),
            proof_ae_title: None,
            peer_addresses: Vec::new(),
            associations_max: 16,
            pdu_bytes_max: 262_144,
            instance_bytes_max: 256 << 20,
            association_bytes_max: 8 << 30,
            handshake_timeout_ms: 5_000,
            idle_timeout_ms: 60_000,
            total_timeout_ms: 3_600_000,
            free_bytes_min: 1 << 30,
            tls: None,
            peer: Vec::new(),
        }
    }
}

/// Series assembly.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Assemble {
    /// Quiet time after which a series with complete evidence closes, ms.
    pub quiet_ms: u64,
    /// Quiet time after which a series without it closes (gaps, open association, count not reached), ms.
    pub quiet_incomplete_ms: u64,
    /// Series held open at once; the oldest closes first.
    pub open_series_max: usize,
    /// Slices per series; with more it is not analysed, and not looked at while it grows.
    pub slices_max: usize,
}

impl Default for Assemble {
    fn default() -> Self {
        Assemble { quiet_ms: 1_500, quiet_incomplete_ms: 10_000, open_series_max: 64, slices_max: 2_000 }
    }
}

/// The reader.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Infer {
    /// Model package directory.
    pub model: PathBuf,
    /// Ed25519 public key files (hex) whose signature on a manifest is trusted.
    pub trusted_keys: Vec<PathBuf>,
    /// Threads that read slices; 0 means one per core.
    pub threads: usize,
    /// What runs the networks.
    pub backend: Backend,
    /// Shared library of ONNX Runtime, an absolute path; for `backend = "onnxruntime"`.
    pub onnxruntime_library: Option<PathBuf>,
    /// Where ONNX Runtime runs them.
    pub onnxruntime_provider: Provider,
}

/// What runs the networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Pure Rust on the CPU.
    Tract,
    /// ONNX Runtime from a shared library; needs a program built with the cargo feature `ort`.
    Onnxruntime,
}

impl Backend {
    /// Name in configuration, journal and status.
    pub fn as_str(self) -> &'static str {
        match self {
            Backend::Tract => "tract",
            Backend::Onnxruntime => "onnxruntime",
        }
    }
}

/// Execution provider of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// CPU.
    Cpu,
    /// NVIDIA CUDA.
    Cuda,
    /// NVIDIA TensorRT, CUDA for what it does not know.
    Tensorrt,
}

impl Default for Infer {
    fn default() -> Self {
        Infer {
            model: "/usr/share/ichd/models/ichd-base".into(),
            trusted_keys: vec!["/usr/share/ichd/models/keys/ichd-base.pub".into()],
            threads: 0,
            backend: Backend::Tract,
            onnxruntime_library: None,
            onnxruntime_provider: Provider::Cpu,
        }
    }
}

/// MQTT.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Alert {
    /// Broker host name or address.
    pub broker_host: String,
    /// Broker port.
    pub broker_port: u16,
    /// Mutual TLS to the broker; may be absent only on loopback.
    pub tls: Option<AlertTls>,
    /// Password for the broker, where it asks for one; the user is `site.device`.
    pub password_file: Option<PathBuf>,
    /// Largest inbound MQTT packet, bytes.
    pub inbound_bytes_max: u32,
    /// How long a PUBACK may take before the connection is rebuilt, ms.
    pub puback_timeout_ms: u64,
    /// How long an alert lives after a station first had it, s.
    pub expiry_s: u32,
    /// A late slice takes a final alert back only if the score falls this far below the operating point.
    pub hysteresis: f32,
    /// Enrolled stations and whom they serve. Without TLS to the broker, an empty table admits every station that the
    /// broker (on this machine) admits; with TLS it admits none.
    pub stations: BTreeMap<String, String>,
}

impl Default for Alert {
    fn default() -> Self {
        Alert {
            broker_host: "127.0.0.1".into(),
            broker_port: 1883,
            tls: None,
            password_file: None,
            inbound_bytes_max: 1 << 20,
            puback_timeout_ms: 5_000,
            expiry_s: 43_200,
            hysteresis: 0.05,
            stations: BTreeMap::new(),
        }
    }
}

/// Who is told when.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Escalation {
    /// A station's receipt is due by then, s; else the next roles are told and nobody is listening.
    pub receipt_s: u64,
    /// Roles told at once.
    pub first: Vec<String>,
    /// Roles told while nobody acknowledges.
    pub steps: Vec<ladder::Step>,
    /// Local time of the shifts, minutes ahead of UTC.
    pub utc_offset_min: i32,
    /// Other ladders for some hours; the first that fits is taken.
    #[serde(rename = "shift")]
    pub shifts: Vec<EscalationShift>,
}

/// A ladder for some hours of the day.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EscalationShift {
    /// Stands in documents as `escalation.policy`.
    pub name: String,
    /// Begins, `HH:MM` local time.
    pub from: String,
    /// Ends, `HH:MM` local time.
    pub to: String,
    /// Roles told at once.
    pub first: Vec<String>,
    /// Roles told while nobody acknowledges.
    pub steps: Vec<ladder::Step>,
}

impl Default for Escalation {
    fn default() -> Self {
        let ladder = ladder::Ladder::default();
        Escalation {
            receipt_s: 10,
            first: ladder.first,
            steps: ladder.steps,
            utc_offset_min: 0,
            shifts: vec![],
        }
    }
}

/// Proof of life: a synthetic study through the whole chain.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Proof {
    /// How often, s; 0 only on demand.
    pub interval_s: u64,
    /// It must have reached a station (or, where none is on, the broker) by then, s.
    pub limit_s: u64,
    /// AE title it is sent as; admitted from this machine only.
    pub ae_title: AeTitle,
}

impl Default for Proof {
    fn default() -> Self {
        Proof { interval_s: 3_600, limit_s: 120, ae_title: AeTitle::parse("ICHD_PROOF").expect("constant") }
    }
}

/// Mutual TLS material; all PEM files.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct AlertTls {
    /// Certificate authority of the broker.
    pub ca: PathBuf,
    /// Our certificate; its CN is our device name.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

/// What alerts say of the patient.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Privacy {
    /// How much.
    pub level: crate::privacy::Level,
    /// Where the scanner stands, in the words of the house; shown from level `location` on.
    pub location: String,
    /// JWK Set of the site, a path or the bare name of a systemd credential; needed from level `identified` on.
    pub keys: Option<PathBuf>,
}

/// Results to the PACS; off without a destination.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Report {
    /// Which series that were not analysed are reported.
    pub not_analysed: NotAnalysed,
    /// How long a report is tried, h.
    pub give_up_h: u64,
    /// Where results go.
    pub destination: Vec<ReportDestination>,
}

impl Default for Report {
    fn default() -> Self {
        Report { not_analysed: NotAnalysed::Candidates, give_up_h: 72, destination: Vec::new() }
    }
}

/// Which series that were not analysed are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotAnalysed {
    /// Not scouts, reformats, bone kernels and series that stood back behind a better one.
    Candidates,
    /// Every series.
    All,
}

/// A storage SCP that takes results.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ReportDestination {
    /// Its AE title.
    pub ae_title: AeTitle,
    /// Host and port.
    pub address: String,
    /// Over TLS, with the certificates of `[receive.tls]`.
    #[serde(default)]
    pub tls: bool,
    /// What it wants.
    #[serde(default = "all_kinds")]
    pub objects: Vec<Kind>,
}

fn all_kinds() -> Vec<Kind> {
    Kind::ALL.to_vec()
}

impl ReportDestination {
    /// Name in the queue, journal and metrics.
    pub fn name(&self) -> String {
        format!("{}@{}", self.ae_title, self.address)
    }
}

/// Liveness.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Health {
    /// Heartbeat on MQTT, s.
    pub heartbeat_s: u64,
    /// A stage that does not beat for this long makes the watchdog starve, s.
    pub stage_silence_max_s: u64,
    /// How long a drain may take after SIGTERM, ms.
    pub drain_ms: u64,
}

impl Default for Health {
    fn default() -> Self {
        Health { heartbeat_s: 20, stage_silence_max_s: 30, drain_ms: 10_000 }
    }
}

/// The station page; off unless `listen` is set.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Station {
    /// Where to serve the page; nowhere if not set.
    pub listen: Option<SocketAddr>,
    /// TLS; may be absent only on loopback.
    pub tls: Option<StationTls>,
    /// Anybody who reaches the port may load the page (there is no secret in it; the broker still asks who they are).
    pub allow_anonymous: bool,
    /// MQTT over websockets, as the page reaches it: `wss://host:port`.
    pub broker_url: String,
    /// Devices whose silence the page alarms; this one if empty.
    pub devices: Vec<String>,
}

/// TLS of the station page; all PEM files.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct StationTls {
    /// Authorities of the stations: who shows no certificate of theirs gets no page.
    pub ca: Option<PathBuf>,
    /// Our certificate, with intermediates behind it.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
}

impl Station {
    /// The certificate files; where anybody may load the page nobody is asked who he is.
    pub fn files(&self) -> Option<crate::tls::Files> {
        let tls = self.tls.as_ref()?;
        Some(crate::tls::Files {
            ca: tls.ca.clone().filter(|_| !self.allow_anonymous),
            certificate: tls.certificate.clone(),
            key: tls.key.clone(),
            crl: None,
        })
    }
}

/// Model packages apart from the image, and when one in shadow may take over by itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Models {
    /// Root's own directory, on the partition that both slots see.
    pub directory: PathBuf,
    /// Who promotes a model in shadow.
    pub promotion: Promotion,
    /// Series that both models have read.
    pub series_min: u64,
    /// Of them, suspected by the current model: quiet heads alone show nothing of what would be missed.
    pub positives_min: u64,
    /// Share of series with the same answer.
    pub agreement_min: f64,
    /// Findings of the current model that the one in shadow would have kept silent about.
    pub missed_max: u64,
    /// Mean reading time on one thread, ms.
    pub read_ms_max: u64,
}

/// Who promotes a model in shadow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Promotion {
    /// A person, with `ichd model promote`.
    #[default]
    Person,
    /// `ichd model promote --by-rule`, once nothing speaks against it any more.
    Rule,
}

impl Default for Models {
    fn default() -> Self {
        Models {
            directory: "/var/lib/ichd-models".into(),
            promotion: Promotion::Person,
            series_min: 200,
            positives_min: 10,
            agreement_min: 0.98,
            missed_max: 0,
            read_ms_max: 60_000,
        }
    }
}

/// Bundles; read by `ichd update`, by the daemon only who may order one.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Update {
    /// Where bundles come from: an https address, or a folder such as an update stick's mount point.
    pub source: Option<String>,
    /// Maintenance window, `HH:MM-HH:MM` in UTC; absent means any time at which nobody waits.
    pub window_utc: Option<String>,
    /// Root's own directory, on the partition that both slots see.
    pub directory: PathBuf,
    /// Public keys of who may order updates over MQTT; empty: nobody.
    pub command_keys: Vec<PathBuf>,
}

impl Default for Update {
    fn default() -> Self {
        Update {
            source: None,
            window_utc: None,
            directory: "/var/lib/ichd-update".into(),
            command_keys: vec![],
        }
    }
}

impl Update {
    /// The window; validated when the configuration was read.
    pub fn window(&self) -> Option<Window> {
        self.window_utc.as_deref().and_then(Window::parse)
    }
}

/// Why a configuration cannot be used; exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("failed to read configuration `{path}`")]
    Read {
        /// File asked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML, or a key is unknown, missing or of the wrong type.
    #[error("in `{path}`: {detail}")]
    Parse {
        /// File in which it stands.
        path: PathBuf,
        /// Line, key, and the nearest right name where there is one.
        detail: String,
    },
    /// A value is out of its range.
    #[error("{key} {problem}; {mend}")]
    Value {
        /// Table and key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
        /// What to write instead.
        mend: String,
    },
}

impl Config {
    /// Reads the file and the drop-ins of `<file>.d/*.toml` in name order (tables merge, later values win).
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut merged = read_table(path)?;
        let drop_ins = path.with_extension("toml.d");
        if drop_ins.is_dir() {
            let read = |source| ConfigError::Read { path: drop_ins.clone(), source };
            let mut files: Vec<PathBuf> =
                std::fs::read_dir(&drop_ins).map_err(read)?.filter_map(|e| Some(e.ok()?.path())).collect();
            files.retain(|f| f.extension().is_some_and(|e| e == "toml"));
            files.sort();
            for file in files {
                merge(&mut merged, read_table(&file)?);
            }
        }
        let text = toml::to_string(&merged)
            .map_err(|e| ConfigError::Parse { path: path.into(), detail: e.to_string() })?;
        Self::parse(&text).map_err(|detail| ConfigError::Parse { path: path.into(), detail }).and_then(
            |mut c| {
                if let Some(dir) = std::env::var_os("STATE_DIRECTORY").filter(|dir| !dir.is_empty()) {
                    c.state.directory = dir.into();
                }
                check::check(&c)?;
                Ok(c)
            },
        )
    }

    /// Parses configuration text; the message names the key and the nearest right one.
    pub fn parse(text: &str) -> Result<Self, String> {
        toml::from_str(text).map_err(|e| with_suggestion(e.message()))
    }

    /// Every certificate of ours whose expiry somebody has to hear of.
    pub fn certificates(&self) -> Vec<PathBuf> {
        let dicom = self.receive.tls.as_ref().map(|tls| tls.certificate.clone());
        let broker = self.alert.tls.as_ref().map(|tls| tls.certificate.clone());
        let page = self.station.tls.as_ref().map(|tls| tls.certificate.clone());
        let audit = self.atna.as_ref().map(|atna| atna.certificate.clone());
        dicom.into_iter().chain(broker).chain(page).chain(audit).collect()
    }

    /// Who reports to the audit record repository, where there is one.
    pub fn audit_source(&self) -> Option<crate::atna::Source> {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        self.atna.as_ref().map(|atna| crate::atna::Source {
            enterprise_site: atna.enterprise_site.clone().unwrap_or_else(|| self.site.name.clone()),
            source: format!("{}/{}", self.site.name, self.site.device),
            ae_title: self.receive.ae_title.as_str().into(),
            host: host.trim().into(),
            process: std::process::id(),
            queue_max: atna.queue_max,
        })
    }

    /// The rules of the alert chain.
    pub fn chain_policy(&self) -> Result<Policy, ConfigError> {
        let bad = |key, problem: String, mend: &str| ConfigError::Value { key, problem, mend: mend.into() };
        let ladder = |name: &str, first: &[String], steps: &[ladder::Step]| {
            if first.is_empty() {
                return Err(bad(
                    "escalation.first",
                    format!("of `{name}` names no role"),
                    "name at least one, such as \"nurse\"",
                ));
            }
            if steps.windows(2).any(|w| w[0].after_s >= w[1].after_s) {
                return Err(bad(
                    "escalation.steps",
                    format!("of `{name}` are not in order of after-s"),
                    "sort them, each later than the one before",
                ));
            }
            Ok(ladder::Ladder { name: name.into(), first: first.into(), steps: steps.into() })
        };
        let minutes = |text: &str| {
            let (h, m) = text.split_once(':')?;
            let (h, m) = (h.parse::<u32>().ok()?, m.parse::<u32>().ok()?);
            (h < 24 && m < 60).then_some(h * 60 + m)
        };
        let escalation = &self.escalation;
        let shift = |s: &EscalationShift| {
            let time = |text: &str| {
                minutes(text).ok_or_else(|| {
                    bad("escalation.shift", format!("`{text}` is no time of day"), "write it as HH:MM")
                })
            };
            Ok(Shift {
                from_min: time(&s.from)?,
                to_min: time(&s.to)?,
                utc_offset_min: escalation.utc_offset_min,
                ladder: ladder(&s.name, &s.first, &s.steps)?,
            })
        };
        Ok(Policy {
            shifts: escalation.shifts.iter().map(shift).collect::<Result<_, _>>()?,
            ladder: ladder("default", &escalation.first, &escalation.steps)?,
            limits: ladder::Limits {
                receipt_ms: escalation.receipt_s * 1000,
                expiry_ms: u64::from(self.alert.expiry_s) * 1000,
            },
            hysteresis: self.alert.hysteresis,
        })
    }
}

fn read_table(path: &Path) -> Result<toml::Table, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    text.parse().map_err(|e: toml::de::Error| ConfigError::Parse { path: path.into(), detail: e.to_string() })
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Adds "did you mean" to serde's "unknown field `x`, expected one of `a`, `b`".
fn with_suggestion(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(wrong)) = (message.starts_with("unknown field"), quoted.next()) else {
        return message.to_owned();
    };
    let nearest = quoted.map(|name| (strsim::osa_distance(wrong, name), name)).min();
    match nearest {
        Some((distance, name)) if distance <= 3.max(wrong.len() / 3) => {
            format!("unknown key `{wrong}`, did you mean `{name}`?")
        }
        _ => message.replacen("unknown field", "unknown key", 1),
    }
}
