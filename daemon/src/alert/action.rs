//! What a person's action does to an alert. Pure; idempotence (one `action_id`, one effect) is the ledger's.
//!
//! ```text
//!  raised | delivered | escalated --ack--> acknowledged --resolve--> resolved
//!        '--claim: the ladder waits--'  '--decline, escalate: the next roles are told now--'
//!  acknowledged --escalate--> escalated: who had it is looking, and the next roles are called as for one that waits
//! ```

use super::document::{Ack, Alert, AlertState, Claim, Feedback, Kind};
use super::inbound::{ActionCode, ActionMessage, Verb};

/// What else has to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing more.
    None,
    /// The ladder waits for whoever claimed it.
    Hold,
    /// The ladder goes on as if nobody had claimed it.
    Resume,
    /// The next roles are told now.
    StepNow,
    /// Escalation has ended.
    Stop,
    /// The alert is closed; its retained document is purged.
    Purge,
}

/// Refusal for the station: code and words.
pub type Refusal = (ActionCode, String);

/// Applies an action that was seen for the first time. `content_rev`: the revision since which the substance is what
/// it is; who saw an older one must look again. `at`: wall time, RFC 3339.
pub fn apply(
    alert: &mut Alert,
    content_rev: u64,
    action: &ActionMessage,
    station: &str,
    at: &str,
) -> Result<Effect, Refusal> {
    let no = |code, text: &str| Err((code, text.to_owned()));
    if action.rev > alert.rev {
        return no(ActionCode::BadRequest, "nobody can have seen this revision yet");
    }
    let user = action.user.trim().to_owned();
    if action.verb == Verb::Feedback {
        let Some(value) = action.feedback else {
            return no(ActionCode::BadRequest, "feedback without a value");
        };
        if alert.kind != Kind::Finding {
            return no(ActionCode::BadRequest, "only a finding can be right or wrong");
        }
        alert.feedback.retain(|f| f.station != station || f.user != user);
        alert.feedback.push(Feedback { station: station.into(), user, value, at: at.into() });
        return Ok(Effect::None);
    }
    if !alert.state.is_open() {
        return no(ActionCode::Closed, "the alert is closed");
    }
    if action.rev < content_rev && action.verb != Verb::Escalate {
        return no(ActionCode::StaleRev, "the alert has changed since it was shown; look again");
    }
    let taken = alert.state == AlertState::Acknowledged;
    match action.verb {
        Verb::Ack => {
            if let Some(ack) =
                alert.ack.as_ref().filter(|a| taken && (a.user != user || a.station != station))
            {
                return Err((ActionCode::Taken, format!("{} has it, at {}", ack.user, ack.station)));
            }
            acknowledge(alert, action, station, at);
            Ok(Effect::Stop)
        }
        Verb::Claim => {
            let other = alert.claimed_by.as_ref().filter(|c| c.user != user);
            if let Some(claim) = other.filter(|_| !taken) {
                return Err((ActionCode::Taken, format!("{} is looking, at {}", claim.user, claim.station)));
            }
            alert.claimed_by = Some(Claim { station: station.into(), user, at: at.into() });
            Ok(if taken { Effect::None } else { Effect::Hold })
        }
        Verb::Release => {
            if alert.claimed_by.as_ref().is_none_or(|c| c.user != user) {
                return no(ActionCode::NotAllowed, "this person has not claimed it");
            }
            alert.claimed_by = None;
            Ok(if taken { Effect::None } else { Effect::Resume })
        }
        Verb::Decline | Verb::Escalate if taken && action.verb == Verb::Decline => {
            no(ActionCode::Taken, "somebody has it already")
        }
        Verb::Decline | Verb::Escalate => {
            let what = if action.verb == Verb::Decline { "declined" } else { "more people asked for" };
            let why = reason(action).map_or_else(String::new, |why| format!(": {why}"));
            alert.addendum.push(format!("{what} by {user}, {station}{why}"));
            if let Some(ack) = alert.ack.take() {
                // Whoever has it asks for others: it has to wake them, and an acknowledged alert wakes nobody.
                alert.claimed_by = Some(Claim { station: ack.station, user: ack.user, at: at.into() });
                alert.state = AlertState::Escalated;
            }
            Ok(Effect::StepNow)
        }
        Verb::Resolve => {
            if !taken {
                acknowledge(alert, action, station, at);
            }
            alert.state = AlertState::Resolved;
            if let Some(reason) = reason(action) {
                alert.addendum.push(format!("resolved: {reason}"));
            }
            Ok(Effect::Purge)
        }
        Verb::Feedback => Ok(Effect::None),
    }
}

fn reason(action: &ActionMessage) -> Option<&str> {
    action.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty())
}

fn acknowledge(alert: &mut Alert, action: &ActionMessage, station: &str, at: &str) {
    alert.state = AlertState::Acknowledged;
    alert.claimed_by = None;
    alert.ack = Some(Ack {
        station: station.into(),
        user: action.user.trim().into(),
        action_id: action.action_id.clone(),
        at: at.into(),
        rev: action.rev,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::document::tests::alert;
    use crate::alert::inbound::Opinion;

    fn action(verb: Verb, user: &str, rev: u64) -> ActionMessage {
        ActionMessage {
            schema: "ichd.action/1".into(),
            action_id: "a-000001".into(),
            alert_id: alert().alert_id,
            rev,
            verb,
            user: user.into(),
            reason: None,
            feedback: (verb == Verb::Feedback).then_some(Opinion::Wrong),
            expires_at: None,
        }
    }

    fn act(alert: &mut Alert, verb: Verb, user: &str) -> Result<Effect, ActionCode> {
        let rev = alert.rev;
        apply(alert, 1, &action(verb, user, rev), "ward-3", "now").map_err(|r| r.0)
    }

    #[test]
    fn one_named_person_has_it() {
        let mut a = alert();
        assert_eq!(act(&mut a, Verb::Ack, "Ann"), Ok(Effect::Stop));
        assert_eq!(a.ack.as_ref().map(|k| k.user.as_str()), Some("Ann"));
        assert_eq!(act(&mut a, Verb::Ack, "Bob"), Err(ActionCode::Taken));
        assert_eq!(act(&mut a, Verb::Decline, "Bob"), Err(ActionCode::Taken));
        assert_eq!(act(&mut a, Verb::Resolve, "Bob"), Ok(Effect::Purge));
        assert_eq!(act(&mut a, Verb::Ack, "Ann"), Err(ActionCode::Closed));
        assert_eq!(act(&mut a, Verb::Feedback, "Ann"), Ok(Effect::None), "an opinion may come later");
    }

    #[test]
    fn who_saw_an_older_substance_must_look_again() {
        let mut a = Alert { rev: 5, ..alert() };
        assert_eq!(
            apply(&mut a, 4, &action(Verb::Ack, "Ann", 3), "w", "now").map_err(|r| r.0),
            Err(ActionCode::StaleRev)
        );
        assert_eq!(
            apply(&mut a, 4, &action(Verb::Ack, "Ann", 6), "w", "now").map_err(|r| r.0),
            Err(ActionCode::BadRequest)
        );
        assert_eq!(
            apply(&mut a, 4, &action(Verb::Ack, "Ann", 4), "w", "now").map_err(|r| r.0),
            Ok(Effect::Stop)
        );
    }

    #[test]
    fn who_has_it_and_asks_for_more_people_gets_them_woken() {
        let mut a = alert();
        act(&mut a, Verb::Ack, "Ann").unwrap();
        assert_eq!(act(&mut a, Verb::Escalate, "Ann"), Ok(Effect::StepNow));
        assert_eq!((a.state, a.ack.as_ref()), (AlertState::Escalated, None), "it waits for somebody again");
        assert_eq!(a.claimed_by.as_ref().map(|c| c.user.as_str()), Some("Ann"), "and Ann is there meanwhile");
        assert_eq!(act(&mut a, Verb::Ack, "Dr Wu"), Ok(Effect::Stop));
        assert_eq!((a.state, a.claimed_by.as_ref()), (AlertState::Acknowledged, None));
    }

    #[test]
    fn why_somebody_declines_is_said_to_the_others() {
        let mut a = alert();
        let decline = ActionMessage { reason: Some(" busy ".into()), ..action(Verb::Decline, "Ann", 1) };
        assert_eq!(apply(&mut a, 1, &decline, "ward-3", "now"), Ok(Effect::StepNow));
        assert_eq!(a.addendum, ["declined by Ann, ward-3: busy"]);
    }

    #[test]
    fn a_claim_holds_the_ladder_until_it_is_released() {
        let mut a = alert();
        assert_eq!(act(&mut a, Verb::Claim, "Ann"), Ok(Effect::Hold));
        assert_eq!(act(&mut a, Verb::Claim, "Bob"), Err(ActionCode::Taken));
        assert_eq!(act(&mut a, Verb::Release, "Bob"), Err(ActionCode::NotAllowed));
        assert_eq!(act(&mut a, Verb::Release, "Ann"), Ok(Effect::Resume));
        assert_eq!(act(&mut a, Verb::Decline, "Bob"), Ok(Effect::StepNow));
    }
}
