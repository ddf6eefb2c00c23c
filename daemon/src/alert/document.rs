//! The documents on the wire, schema 1. Field names are a public contract. No DICOM UID and no patient text in them.

use serde::{Deserialize, Serialize};

use super::inbound::{Opinion, ReceiptStage};
use crate::assemble::Flag;
use crate::decide::{Finding, NamedScores, Side, Stage};
use crate::infer::{Class, ModelId};
use crate::ledger::alerts::Silence;
use crate::ledger::vitals::Experience;

/// Stands on every alert.
pub const DISCLAIMER: &str = "Notification of a suspected finding by software, not a diagnosis. The shipped weights \
     were trained on a small open data set and painted bleeds; not a medical device.";

/// What an alert is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Kind {
    /// A suspected finding.
    Finding,
    /// The box itself.
    Technical,
    /// A proof of life.
    Test,
}

/// Where an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum AlertState {
    /// Raised; nobody has confirmed to have it.
    Raised,
    /// A station has shown it.
    Delivered,
    /// A named person has acknowledged it.
    Acknowledged,
    /// Nobody acknowledged it in time; the next role was told.
    Escalated,
    /// Done.
    Resolved,
    /// The final verdict did not confirm it.
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    #[serde(default)]
    pub receipts: Vec<Receipt>,
    /// Who acknowledged it.
    #[serde(default)]
    pub ack: Option<Ack>,
    /// Who is looking.
    #[serde(default)]
    pub claimed_by: Option<Claim>,
    /// Whether it was right, by station.
    #[serde(default)]
    pub feedback: Vec<Feedback>,
    /// With kind `technical`.
    #[serde(default)]
    pub technical: Option<Technical>,
    /// Revision since which it shall sound (again): raised, priority risen, escalated. Acknowledged alerts never sound.
    #[serde(default)]
    pub sound_rev: u64,
    /// First alert of a storm: stations sound once for the group; nothing is left out.
    #[serde(default)]
    pub group: Option<String>,
    /// Alert ids this one replaces.
    pub supersedes: Vec<String>,
    /// What was added since it was raised.
    pub addendum: Vec<String>,
    /// [`DISCLAIMER`].
    pub disclaimer: String,
}

/// What the wall times are worth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClockInfo {
    /// Whether the system clock is synchronised; `None` if not known.
    pub synced: Option<bool>,
    /// Estimated offset, ms.
    pub offset_ms: Option<i64>,
}

/// Whom it concerns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Quality {
    /// No flag.
    pub ok: bool,
    /// Geometry and input flags.
    pub flags: Vec<Flag>,
}

/// How long it took.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AlertTimings {
    /// Last slice stored to verdict.
    pub last_slice_to_verdict: Option<u64>,
    /// Verdict to this transmission.
    pub verdict_to_publish: Option<u64>,
}

/// Where the ladder stands.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Escalation {
    /// Name of the ladder.
    pub policy: String,
    /// Steps taken.
    pub step: u32,
    /// Until the next one.
    pub next_in_ms: Option<u64>,
    /// Roles that are told so far; `everyone` is all of them.
    #[serde(default)]
    pub roles: Vec<String>,
    /// A silence or maintenance window is on until then: shown, not sounded.
    #[serde(default)]
    pub muted_until: Option<String>,
}

/// A station has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Receipt {
    /// Which one.
    pub station: String,
    /// Whom it serves.
    pub role: String,
    /// How far it has come there.
    pub stage: ReceiptStage,
    /// Which revision.
    pub rev: u64,
    /// When it came so far, wall time, RFC 3339.
    pub at: String,
}

/// A named person acknowledged it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Ack {
    /// Where.
    pub station: String,
    /// Who.
    pub user: String,
    /// By which action.
    pub action_id: String,
    /// Wall time, RFC 3339.
    pub at: String,
    /// The revision that the person saw.
    pub rev: u64,
}

/// Somebody is looking.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Claim {
    /// Where.
    pub station: String,
    /// Who.
    pub user: String,
    /// Wall time, RFC 3339.
    pub at: String,
}

/// Whether it was right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Feedback {
    /// Where.
    pub station: String,
    /// Who.
    pub user: String,
    /// What they say.
    pub value: Opinion,
    /// Wall time, RFC 3339.
    pub at: String,
}

/// Trouble of the box itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Technical {
    /// Stable code.
    pub code: String,
    /// For people.
    pub text: String,
}

/// `ichd.study/1`: what became of one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// A proof of life, no patient.
    #[serde(default)]
    pub test: bool,
    /// Wall time, RFC 3339.
    pub decided_at: String,
}

/// State of the appliance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// What will be a reason if nobody sees to it, such as `certificate_expires:30`.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What an update is doing or has done since this start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
    /// The silence or maintenance window that is on: no alert sounds until it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Silence>,
}

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum UpdatePhase {
    /// It waits; the reasons say for what.
    Deferred,
    /// The other slot is being written.
    Installing,
    /// It was not to be had, was refused or could not be written; the running slot is untouched.
    NotInstalled,
    /// Written; boots next.
    Installed,
    /// It has booted and proved itself.
    Good,
    /// It has not; the old slot runs or takes over.
    Failed,
}

/// An update, as `ichd update` tells the daemon and the status tells everybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Update {
    /// How far it is.
    pub phase: UpdatePhase,
    /// Version of the bundle.
    #[serde(default)]
    pub version: Option<String>,
    /// While it is written, 0 to 100.
    #[serde(default)]
    pub percent: Option<u8>,
    /// For people: what it waits for, or why it failed.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// The order that it follows, if an engineer gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_id: Option<String>,
}

impl Update {
    /// A phase of which nothing more is known.
    pub fn new(phase: UpdatePhase) -> Self {
        Update { phase, version: None, percent: None, reasons: vec![], order_id: None }
    }
}

/// `ichd.heartbeat/1`: liveness of the pipeline, not of the socket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Heartbeat {
    /// `ichd.heartbeat/1`.
    pub schema: String,
    /// Since this start.
    pub uptime_s: u64,
    /// Since the last verdict.
    pub last_study_age_s: Option<u64>,
    /// Since the last proof of life that reached a station (or the broker, where no station is on).
    pub last_proof_age_s: Option<u64>,
    /// How often one is due; a station calls it overdue at twice that.
    pub proof_interval_s: u64,
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
    /// What people said of the alerts of the last seven days.
    #[serde(default)]
    pub experience_week: Experience,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Heartbeat {
            schema: "ichd.heartbeat/1".into(),
            uptime_s: 0,
            last_study_age_s: None,
            last_proof_age_s: None,
            proof_interval_s: 0,
            outbox_depth: 0,
            open_alerts: 0,
            oldest_unacknowledged_s: None,
            dicom_ok: false,
            infer_ok: false,
            disk_ok: false,
            experience_week: Experience::default(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A raised finding.
    pub fn alert() -> Alert {
        Alert {
            schema: "ichd.alert/1".into(),
            alert_id: "01JDZ0000000000000000000AA".into(),
            rev: 1,
            kind: Kind::Finding,
            stage: Stage::Final,
            state: AlertState::Raised,
            priority: 1,
            device: "ct-1".into(),
            site: "north".into(),
            boot: 1,
            seq: 1,
            raised_at: "2026-01-01T00:00:00.000Z".into(),
            published_at: String::new(),
            age_ms: 0,
            clock: ClockInfo::default(),
            expires_at: "2026-01-01T12:00:00.000Z".into(),
            subject: Subject { r#ref: "K7P-29".into(), location: None, enc: None },
            study: StudyInfo { study_ref: "00".into(), acquired_at: None, slices: 30 },
            finding: AlertFinding::default(),
            model: None,
            quality: Quality::default(),
            timings_ms: AlertTimings::default(),
            escalation: Escalation::default(),
            receipts: vec![],
            ack: None,
            claimed_by: None,
            feedback: vec![],
            technical: None,
            sound_rev: 1,
            group: None,
            supersedes: vec![],
            addendum: vec![],
            disclaimer: DISCLAIMER.into(),
        }
    }

    #[test]
    fn a_document_of_an_older_program_is_still_read() {
        let mut old = serde_json::to_value(alert()).unwrap();
        for key in ["receipts", "ack", "claimed_by", "feedback", "technical", "sound_rev", "group"] {
            old.as_object_mut().unwrap().remove(key);
        }
        let read: Alert = serde_json::from_value(old).unwrap();
        assert_eq!(read, Alert { sound_rev: 0, ..alert() });
    }
}
