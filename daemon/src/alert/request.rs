//! What an engineer's station asks of the box, and what the box answers. Nothing here changes an alert: how it stands, a
//! proof of life, the ledger, a replay.

use serde::{Deserialize, Serialize};

#[cfg(test)]
use super::inbound::{ACTION_ID_MIN, TEXT_MAX};
use crate::ledger::proofs::Proof;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Command {
    /// A proof of life, now; answered when it has ended.
    Proof,
    /// The newest series of the ledger.
    Ledger,
    /// A series read again, its verdict held against the ledger's.
    Replay,
}

/// `ichd.request/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RequestMessage {
    /// `ichd.request/1`.
    pub schema: String,
    /// Unique; stands in the answer.
    #[cfg_attr(test, schemars(length(min = ACTION_ID_MIN, max = TEXT_MAX)))]
    pub request_id: String,
    /// What is asked.
    pub command: Command,
    /// Named person.
    #[cfg_attr(test, schemars(length(min = 1, max = TEXT_MAX)))]
    pub user: String,
    /// With `replay`: which series, as `ichd.study/1` and the ledger name it.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub series_ref: Option<String>,
    /// Wall time, RFC 3339 UTC; later nobody waits for it any more.
    #[serde(default)]
    pub expires_at: Option<String>,
}

/// Whether it was done, as a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum AnswerCode {
    /// Done.
    Ok,
    /// The station is no engineer's.
    NotAllowed,
    /// Something goes before it: a study that is being read, another request.
    Busy,
    /// The request came too late.
    Expired,
    /// No such series, or no series named.
    UnknownSeries,
    /// It was tried and did not work; the message says why.
    Failed,
}

/// One series as the ledger holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LedgerLine {
    /// Keyed hash of the Study Instance UID.
    pub study_ref: String,
    /// Keyed hash of the Series Instance UID.
    pub series_ref: String,
    /// `suspected`, `not_suspected`, `not_analysed`.
    pub disposition: String,
    /// Stable reason code.
    pub reason: Option<String>,
    /// `provisional` or `final`.
    pub stage: String,
    /// Counts late slices.
    pub revision: u32,
    /// Instances of the series.
    pub instances: u64,
    /// Wall time, RFC 3339.
    pub decided_at: String,
    /// A proof of life, no patient.
    pub test: bool,
    /// Its instances were purged: it cannot be replayed.
    pub purged: bool,
}

/// What a replay found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Replay {
    /// Which series.
    pub series_ref: String,
    /// The same bytes as in the ledger.
    pub equal: bool,
    /// The likeliest reason if not.
    pub difference: Option<String>,
}

/// `ichd.answer/1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answer {
    /// `ichd.answer/1`.
    pub schema: String,
    /// Of the request.
    pub request_id: String,
    /// Whether it was done.
    pub code: AnswerCode,
    /// For people.
    pub message: String,
    /// To `proof`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// To `ledger`, newest first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledger: Option<Vec<LedgerLine>>,
    /// To `replay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
}

impl Answer {
    /// With nothing in it but the code.
    pub fn to(request: &RequestMessage, code: AnswerCode, message: &str) -> Self {
        Answer {
            schema: "ichd.answer/1".into(),
            request_id: request.request_id.clone(),
            code,
            message: message.into(),
            proof: None,
            ledger: None,
            replay: None,
        }
    }
}

/// A request on its way to whoever answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Whose; the topic level, which the broker's ACL binds to its certificate.
    pub station: String,
    /// What.
    pub request: RequestMessage,
}
