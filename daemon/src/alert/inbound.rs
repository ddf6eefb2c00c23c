//! What stations send. Untrusted: parsed strictly in size and meaning, loosely in unknown fields.

use serde::{Deserialize, Serialize};

use super::request::RequestMessage;

/// Largest document a station has reason to send, bytes.
const BYTES_MAX: usize = 16 << 10;
/// Longest name, reason or id, characters.
pub(super) const TEXT_MAX: usize = 200;
/// Shortest `action_id` that can be unique, bytes.
pub(super) const ACTION_ID_MIN: usize = 8;

/// Why a document of a station is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadDocument(pub String);

/// Whether a station can take an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Presence {
    /// A shift is on, somebody looks.
    Ready,
    /// Linked, but nobody has started a shift.
    Away,
    /// Gone; also the will.
    Offline,
}

/// `ichd.station/1`, retained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StationStatus {
    /// `ichd.station/1`.
    pub schema: String,
    /// Whether it can take an alert.
    pub state: Presence,
    /// Whom it serves, such as `nurse`.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub role: String,
    /// Where it stands.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub ward: String,
    /// Who has started the shift.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub user: Option<String>,
    /// Somebody heard the test tone.
    #[serde(default)]
    pub sound_ok: bool,
    /// The page is in front.
    #[serde(default)]
    pub visible: bool,
    /// Version of the page.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub version: String,
    /// Since when, RFC 3339.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub shift_started_at: Option<String>,
    /// `page`, `phone`, `prober`.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub kind: String,
}

/// How far an alert has come on a station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ReceiptStage {
    /// The document is there.
    Received,
    /// It is on the screen.
    Displayed,
    /// It was heard.
    Sounded,
}

/// `ichd.receipt/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ReceiptMessage {
    /// `ichd.receipt/1`.
    pub schema: String,
    /// Which alert.
    pub alert_id: String,
    /// Which revision of it.
    pub rev: u64,
    /// How far it has come.
    pub stage: ReceiptStage,
}

/// What a person does with an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Verb {
    /// "I have it": ends escalation.
    Ack,
    /// "I am looking": holds escalation for a while.
    Claim,
    /// Takes the claim back.
    Release,
    /// "Not me": the next role is told now.
    Decline,
    /// "More people": the next role is told now.
    Escalate,
    /// Done.
    Resolve,
    /// Was it right?
    Feedback,
}

/// Was the alert right?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Opinion {
    /// There was a bleed.
    Right,
    /// There was none.
    Wrong,
    /// Cannot say.
    Unsure,
}

/// `ichd.action/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ActionMessage {
    /// `ichd.action/1`.
    pub schema: String,
    /// Unique; a repetition gets the first answer again.
    #[cfg_attr(test, schemars(length(min = ACTION_ID_MIN, max = TEXT_MAX)))]
    pub action_id: String,
    /// Which alert.
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub alert_id: String,
    /// The revision that the person saw.
    pub rev: u64,
    /// What to do.
    pub verb: Verb,
    /// Named person.
    #[cfg_attr(test, schemars(length(min = 1, max = TEXT_MAX)))]
    pub user: String,
    /// Free words.
    #[serde(default)]
    #[cfg_attr(test, schemars(length(max = TEXT_MAX)))]
    pub reason: Option<String>,
    /// With verb `feedback`.
    #[serde(default)]
    pub feedback: Option<Opinion>,
    /// Wall time, RFC 3339 UTC; later the action is void.
    #[serde(default)]
    pub expires_at: Option<String>,
}

/// `ichd.command/1`: an engineer orders an update, on the topic of actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CommandMessage {
    /// `ichd.command/1`.
    pub schema: String,
    /// Unique; the reply names it.
    pub action_id: String,
    /// Named person.
    pub user: String,
    /// Compact JWS of an `ichd.order/1`.
    pub order: String,
}

/// What became of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ActionResult {
    /// Done.
    Accepted,
    /// Done before; this is the first answer.
    Duplicate,
    /// Not done.
    Refused,
}

/// Why, as a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ActionCode {
    /// No objection.
    Ok,
    /// The alert has changed in substance since the person saw it.
    StaleRev,
    /// No such alert.
    UnknownAlert,
    /// The action came too late.
    Expired,
    /// The station is not enrolled here.
    NotAllowed,
    /// The document is not what it should be.
    BadRequest,
    /// The alert is closed.
    Closed,
    /// Somebody else has it.
    Taken,
}

/// `ichd.reply/1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reply {
    /// `ichd.reply/1`.
    pub schema: String,
    /// Which action.
    pub action_id: String,
    /// Which alert.
    pub alert_id: String,
    /// What became of it.
    pub result: ActionResult,
    /// Why.
    pub code: ActionCode,
    /// For people.
    pub message: String,
    /// Revision of the alert now.
    pub rev: u64,
}

/// A document of a station, by the topic it came on.
#[derive(Debug, Clone, PartialEq)]
pub enum Inbound {
    /// Retained status; `None`: purged.
    Status(Option<StationStatus>),
    /// It has the alert.
    Receipt(ReceiptMessage),
    /// A person did something.
    Action(ActionMessage),
    /// An engineer orders something.
    Command(CommandMessage),
    /// An engineer asks something.
    Request(RequestMessage),
}

/// Reads what came on `sta/{station}/{kind}/...`; returns the station as well.
pub fn parse(
    root: &str,
    device: &str,
    topic: &str,
    payload: &[u8],
) -> Option<(String, Result<Inbound, BadDocument>)> {
    let mut levels = topic.strip_prefix(root)?.strip_prefix("/sta/")?.split('/');
    let (station, kind, target) = (levels.next()?, levels.next()?, levels.next());
    if station.is_empty() || station.len() > TEXT_MAX || levels.next().is_some() {
        return None;
    }
    let parsed = match (kind, target) {
        ("status", None) if payload.is_empty() => Ok(Inbound::Status(None)),
        ("status", None) => read::<StationStatus>(payload, "ichd.station/1", |s| &s.schema).and_then(|s| {
            let since = s.shift_started_at.as_deref().unwrap_or("");
            short(&[&s.role, &s.ward, &s.version, &s.kind, since, s.user.as_deref().unwrap_or("")])?;
            Ok(Inbound::Status(Some(s)))
        }),
        ("receipt", Some(to)) if to == device => {
            read::<ReceiptMessage>(payload, "ichd.receipt/1", |r| &r.schema).map(Inbound::Receipt)
        }
        ("action", Some(to)) if to == device && is_command(payload) => {
            read::<CommandMessage>(payload, COMMAND, |c| &c.schema).and_then(|c| {
                short(&[&c.action_id, &c.user])?;
                Ok(Inbound::Command(c))
            })
        }
        ("action", Some(to)) if to == device => {
            read::<ActionMessage>(payload, "ichd.action/1", |a| &a.schema)
                .and_then(check)
                .map(Inbound::Action)
        }
        ("request", Some(to)) if to == device => {
            read::<RequestMessage>(payload, "ichd.request/1", |r| &r.schema).and_then(|r| {
                short(&[&r.request_id, &r.user, r.series_ref.as_deref().unwrap_or("")])?;
                identified(&r.request_id, &r.user, r.expires_at.as_deref())?;
                Ok(Inbound::Request(r))
            })
        }
        _ => return None,
    };
    Some((station.to_owned(), parsed))
}

const COMMAND: &str = "ichd.command/1";

fn is_command(payload: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Named {
        schema: String,
    }
    let named = serde_json::from_slice::<Named>(payload.get(..BYTES_MAX).unwrap_or(payload));
    named.is_ok_and(|n| n.schema == COMMAND)
}

fn read<T: serde::de::DeserializeOwned>(
    payload: &[u8],
    schema: &str,
    of: impl Fn(&T) -> &str,
) -> Result<T, BadDocument> {
    if payload.len() > BYTES_MAX {
        return Err(BadDocument(format!("larger than {BYTES_MAX} bytes")));
    }
    let document: T =
        serde_json::from_slice(payload).map_err(|e| BadDocument(format!("not {schema}: {e}")))?;
    if of(&document) != schema {
        return Err(BadDocument(format!("schema is not {schema}")));
    }
    Ok(document)
}

fn short(texts: &[&str]) -> Result<(), BadDocument> {
    let long = |t: &&str| t.chars().count() > TEXT_MAX || t.chars().any(char::is_control);
    if texts.iter().any(long) {
        return Err(BadDocument(format!(
            "a text is longer than {TEXT_MAX} characters, or holds control characters"
        )));
    }
    Ok(())
}

fn check(action: ActionMessage) -> Result<ActionMessage, BadDocument> {
    short(&[&action.action_id, &action.alert_id, &action.user, action.reason.as_deref().unwrap_or("")])?;
    identified(&action.action_id, &action.user, action.expires_at.as_deref())?;
    if (action.verb == Verb::Feedback) != action.feedback.is_some() {
        return Err(BadDocument("feedback goes with verb feedback, and only with it".into()));
    }
    Ok(action)
}

/// It is told from every other, and it is somebody's.
fn identified(id: &str, user: &str, expires_at: Option<&str>) -> Result<(), BadDocument> {
    if id.len() < ACTION_ID_MIN {
        return Err(BadDocument(format!("its id is shorter than {ACTION_ID_MIN} characters")));
    }
    if user.trim().is_empty() {
        return Err(BadDocument("user is empty: a named person acts".into()));
    }
    if expires_at.is_some_and(|t| crate::clock::parse_rfc3339(t).is_none()) {
        return Err(BadDocument("expires_at is not RFC 3339 in UTC".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: &str = "ichd/1/north";
    const ACTION: &str = r#"{"schema":"ichd.action/1","action_id":"a-000001","alert_id":"01J","rev":2,"verb":"ack","user":"Ann"}"#;

    fn at(topic: &str, payload: &str) -> Option<Result<Inbound, BadDocument>> {
        parse(ROOT, "ct-1", topic, payload.as_bytes()).map(|(station, inbound)| {
            assert_eq!(station, "ward-3");
            inbound
        })
    }

    #[test]
    fn an_action_names_its_station_by_the_topic_and_its_person() {
        assert!(
            matches!(at("ichd/1/north/sta/ward-3/action/ct-1", ACTION), Some(Ok(Inbound::Action(a))) if a.user == "Ann")
        );
        assert!(matches!(
            at("ichd/1/north/sta/ward-3/action/ct-1", &ACTION.replace("Ann", " ")),
            Some(Err(_))
        ));
        assert!(matches!(
            at("ichd/1/north/sta/ward-3/action/ct-1", &ACTION.replace("ack", "feedback")),
            Some(Err(_))
        ));
        assert!(matches!(
            at("ichd/1/north/sta/ward-3/action/ct-1", &ACTION.replace("action/1", "action/2")),
            Some(Err(_))
        ));
        assert!(at("ichd/1/north/sta/ward-3/action/ct-2", ACTION).is_none(), "for another device");
        assert!(at("ichd/1/south/sta/ward-3/action/ct-1", ACTION).is_none(), "of another site");
    }

    #[test]
    fn a_purged_status_is_a_station_that_is_gone() {
        assert_eq!(at("ichd/1/north/sta/ward-3/status", ""), Some(Ok(Inbound::Status(None))));
    }

    proptest! {
        #[test]
        fn anything_may_come(topic in "(ichd/1/north/sta/[a-z/]{0,20}|.{0,40})", payload in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(ROOT, "ct-1", &topic, &payload);
        }
    }
}
