//! The documents on the wire, schema 1. Field names are a public contract. No DICOM UID and no patient text in them.

use serde::{Deserialize, Serialize};

use crate::assemble::Flag;
use crate::decide::{Finding, NamedScores, Side, Stage};
use crate::infer::{Class, ModelId};

/// Stands on every alert.
pub const DISCLAIMER: &str = "Notification of a suspected finding by software, not a diagnosis. The shipped weights \
     were trained on a small open data set and painted bleeds; not a medical device.";

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A suspected finding.
    Finding,
    /// The box itself.
    Technical,
    /// A drill.
    Test,
}

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// Raised; nobody has confirmed to have it.
    Raised,
    /// A station has shown it.
    Delivered,
    /// A named person has taken it.
    Acknowledged,
    /// Nobody took it in time; the next role was told.
    Escalated,
    /// Done.
    Resolved,
    /// The final verdict took it back.
    Withdrawn,
    /// Too old to matter.
    Expired,
}

impl AlertState {
    /// Still waits for a person.
    pub fn is_open(self) -> bool {
        !matches!(self, AlertState::Resolved | AlertState::Withdrawn | AlertState::Expired)
    }
}

/// `ichd.alert/1`: the whole state of one alert. A receiver applies it only if `rev` is higher than what it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// `ichd.alert/1`.
    pub schema: String,
    /// ULID; one per study.
    pub alert_id: String,
    /// Strictly rising.
    pub rev: u64,
    /// What it is about.
    pub kind: Kind,
    /// Provisional until the series is complete.
    pub stage: Stage,
    /// Where it stands.
    pub state: AlertState,
    /// 1 is the most urgent.
    pub priority: u8,
    /// Who raised it.
    pub device: String,
    /// Where.
    pub site: String,
    /// Starts of the daemon.
    pub boot: u64,
    /// Documents made by this database.
    pub seq: u64,
    /// Wall time, RFC 3339.
    pub raised_at: String,
    /// Wall time of this transmission.
    pub published_at: String,
    /// Age at this transmission by the monotonic clock, ms.
    pub age_ms: u64,
    /// What the wall times are worth.
    pub clock: ClockInfo,
    /// Wall time, RFC 3339.
    pub expires_at: String,
    /// Whom it concerns, by privacy level; `opaque`: a spoken code only.
    pub subject: Subject,
    /// Which study.
    pub study: StudyInfo,
    /// What is suspected; by profile.
    pub finding: AlertFinding,
    /// Which model.
    pub model: Option<ModelId>,
    /// What to know of the input.
    pub quality: Quality,
    /// How long it took.
    pub timings_ms: AlertTimings,
    /// Where the ladder stands.
    pub escalation: Escalation,
    /// Stations that have it.
    pub receipts: Vec<serde_json::Value>,
    /// Who took it.
    pub ack: Option<serde_json::Value>,
    /// Alert ids this one replaces.
    pub supersedes: Vec<String>,
    /// What was added since it was raised.
    pub addendum: Vec<String>,
    /// [`DISCLAIMER`].
    pub disclaimer: String,
}

/// What the wall times are worth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClockInfo {
    /// Whether the system clock is synchronised; `None` if not known.
    pub synced: Option<bool>,
    /// Estimated offset, ms.
    pub offset_ms: Option<i64>,
}

/// Whom it concerns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// Short code to say on the phone, such as `K7P-29`.
    pub r#ref: String,
    /// Where the scanner stands; from privacy level `location` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Compact JWE over `ichd.subject/1`; from privacy level `identified` on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enc: Option<String>,
}

/// Which study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StudyInfo {
    /// Keyed hash of the Study Instance UID.
    pub study_ref: String,
    /// As the scanner wrote it.
    pub acquired_at: Option<String>,
    /// Instances of the series.
    pub slices: usize,
}

/// What is suspected. Profile `triage` leaves everything but the operating point out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AlertFinding {
    /// Most probable first.
    pub subtypes: Vec<Class>,
    /// Series scores.
    pub p: Option<NamedScores>,
    /// Patient's side.
    pub side: Option<Side>,
    /// First and last slice, 0-based, caudal to cranial.
    pub slice_range: Option<[usize; 2]>,
    /// Estimate, mL.
    pub volume_ml: Option<f32>,
    /// `final` or `provisional`.
    pub operating_point: String,
}

impl AlertFinding {
    /// Everything, for profile `assist`.
    pub fn assist(finding: &Finding, p: Option<NamedScores>, operating_point: &str) -> Self {
        AlertFinding {
            subtypes: finding.subtypes.clone(),
            p,
            side: finding.side,
            slice_range: Some(finding.slice_range),
            volume_ml: finding.volume_ml,
            operating_point: operating_point.into(),
        }
    }
}

/// What to know of the input.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// No flag.
    pub ok: bool,
    /// Geometry and input flags.
    pub flags: Vec<Flag>,
}

/// How long it took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AlertTimings {
    /// Last slice stored to verdict.
    pub last_slice_to_verdict: Option<u64>,
    /// Verdict to this transmission.
    pub verdict_to_publish: Option<u64>,
}

/// Where the ladder stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Escalation {
    /// Name of the ladder.
    pub policy: String,
    /// Steps taken.
    pub step: u32,
    /// Until the next one.
    pub next_in_ms: Option<u64>,
}

/// `ichd.study/1`: what became of one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StudyDisposition {
    /// `ichd.study/1`.
    pub schema: String,
    /// Keyed hash of the Study Instance UID.
    pub study_ref: String,
    /// Keyed hash of the Series Instance UID.
    pub series_ref: String,
    /// `suspected`, `not_suspected`, `not_analysed`.
    pub disposition: String,
    /// Stable reason code.
    pub reason: Option<String>,
    /// Instances of the series.
    pub instances: usize,
    /// Counts late slices.
    pub revision: u32,
    /// Geometry and input flags.
    pub flags: Vec<Flag>,
    /// Wall time, RFC 3339.
    pub decided_at: String,
}

/// State of the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Starting.
    Init,
    /// All well.
    Ready,
    /// Works with reasons for concern.
    Degraded,
    /// On purpose.
    Maintenance,
    /// Stopped in order.
    Offline,
    /// The will: gone without a word.
    Lost,
}

/// `ichd.status/1`, retained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// `ichd.status/1`.
    pub schema: String,
    /// State.
    pub state: State,
    /// Starts of the daemon.
    pub boot: u64,
    /// Connections since this start.
    pub conn: u64,
    /// Program version.
    pub version: String,
    /// Booted slot, where there are slots.
    pub slot: Option<String>,
    /// Model in use.
    pub model: Option<ModelId>,
    /// Why it is not ready.
    pub reasons: Vec<String>,
}

/// `ichd.heartbeat/1`: liveness of the pipeline, not of the socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// `ichd.heartbeat/1`.
    pub schema: String,
    /// Since this start.
    pub uptime_s: u64,
    /// Since the last verdict.
    pub last_study_age_s: Option<u64>,
    /// Since the last proof of life.
    pub last_proof_age_s: Option<u64>,
    /// Documents waiting for the broker.
    pub outbox_depth: u64,
    /// Alerts that wait for a person.
    pub open_alerts: u64,
    /// Since the oldest of them was raised.
    pub oldest_unacknowledged_s: Option<u64>,
    /// The receiver beats.
    pub dicom_ok: bool,
    /// The reader beats.
    pub infer_ok: bool,
    /// There is room for more.
    pub disk_ok: bool,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Heartbeat {
            schema: "ichd.heartbeat/1".into(),
            uptime_s: 0,
            last_study_age_s: None,
            last_proof_age_s: None,
            outbox_depth: 0,
            open_alerts: 0,
            oldest_unacknowledged_s: None,
            dicom_ok: false,
            infer_ok: false,
            disk_ok: false,
        }
    }
}
