//! Who is told when, and what is due for an alert at a moment. Pure: ages come in, steps come out.
//!
//! ```text
//!  raised --no receipt of a role that was called in receipt-s--> next roles, technical alert "nobody listening"
//!     '-----no acknowledgement by steps[n].after-s--> roles of step n, sounds again
//! ```
//!
//! Ages are measured by the ledger's elapsed time, which goes on across restarts and knows no wall-clock jumps.

use serde::Deserialize;

use super::document::{Alert, AlertState, Kind};

/// Told to everybody.
pub const EVERYONE: &str = "everyone";

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Step {
    /// Age of the alert without an acknowledgement, s.
    pub after_s: u64,
    /// Who is told then, beside those before.
    pub roles: Vec<String>,
}

/// The whole ladder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ladder {
    /// Stands in documents as `escalation.policy`.
    pub name: String,
    /// Told at once.
    pub first: Vec<String>,
    /// In order of time.
    pub steps: Vec<Step>,
}

impl Default for Ladder {
    /// As `daemon/ichd.toml` says.
    fn default() -> Self {
        let step =
            |after_s, roles: &[&str]| Step { after_s, roles: roles.iter().map(|r| (*r).into()).collect() };
        Ladder {
            name: "default".into(),
            first: vec!["nurse".into()],
            steps: vec![
                step(120, &["charge_nurse", "phone"]),
                step(300, &["physician"]),
                step(600, &[EVERYONE]),
            ],
        }
    }
}

impl Ladder {
    /// Roles told after `step` steps.
    pub fn roles(&self, step: u32) -> Vec<String> {
        let mut roles = self.first.clone();
        for role in self.steps.iter().take(step as usize).flat_map(|s| &s.roles) {
            if !roles.contains(role) {
                roles.push(role.clone());
            }
        }
        roles
    }

    /// Age at which the step after `step` is due, ms; `None` at the top.
    pub fn next_at_ms(&self, step: u32) -> Option<u64> {
        self.steps.get(step as usize).map(|s| s.after_s * 1000)
    }
}

/// Where an alert stands in time; ages in ms of elapsed time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Since it was raised.
    pub age_ms: u64,
    /// Since the ladder began: when it was raised, or raised again.
    pub since_begun_ms: u64,
    /// Age at which the next step is due.
    pub next_step_at_ms: Option<u64>,
    /// Since the last transmission was queued.
    pub since_sent_ms: u64,
    /// Transmissions of this revision that were not answered as hoped.
    pub resends: u32,
    /// Since a station first had it.
    pub since_delivered_ms: Option<u64>,
    /// Every role told has a receipt of the revision that counts.
    pub heard_by_all: bool,
    /// One of them has had one since the ladder began, or a person has acted.
    pub heard: bool,
    /// "Nobody listening" was said for this alert.
    pub called_unheard: bool,
}

/// Limits of the ladder, ms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// A receipt is due by then.
    pub receipt_ms: u64,
    /// A delivered alert lives that long.
    pub expiry_ms: u64,
}

/// What has to happen now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nobody who was called has it, whoever else may: tell the next roles, and say that nobody listens.
    Unheard,
    /// Nobody took it: tell the next roles.
    Step,
    /// Same revision again.
    Resend,
    /// Nobody took it in all the time it had.
    Expire,
    /// It was taken long ago and nobody said "done".
    Close,
}

/// First wait before a revision that was not answered goes out again, ms; doubled up to a minute.
pub const RESEND_MIN_MS: u64 = 5_000;

/// A test alert that is still open after this, ms, is a proof of life that never came to its end.
const TEST_MS: u64 = 3_600_000;

fn resend_after_ms(resends: u32) -> u64 {
    (RESEND_MIN_MS << resends.min(4)).min(60_000)
}

/// The one thing that is due, the gravest first.
pub fn due(alert: &Alert, at: &Standing, limits: Limits) -> Option<Due> {
    if !alert.state.is_open() {
        return None;
    }
    let taken = alert.state == AlertState::Acknowledged;
    let finding = alert.kind == Kind::Finding;
    // What no station ever had cannot have expired: after a day without a broker it is still said.
    if at.since_delivered_ms.is_some_and(|ms| ms >= limits.expiry_ms) {
        return Some(if taken || !finding { Due::Close } else { Due::Expire });
    }
    if alert.kind == Kind::Test && at.age_ms >= TEST_MS {
        return Some(Due::Close);
    }
    if finding && !taken {
        if !at.heard && !at.called_unheard && at.since_begun_ms >= limits.receipt_ms {
            return Some(Due::Unheard);
        }
        if at.next_step_at_ms.is_some_and(|ms| at.age_ms >= ms) {
            return Some(Due::Step);
        }
    }
    // The broker's copy must not run out while the alert is open, and who has not answered may not have it.
    let stale = at.since_sent_ms >= limits.expiry_ms / 2;
    let unheard = !taken && !at.heard_by_all && at.since_sent_ms >= resend_after_ms(at.resends);
    (stale || unheard).then_some(Due::Resend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::document::tests::alert;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { receipt_ms: 10_000, expiry_ms: 43_200_000 };

    fn standing(age_ms: u64) -> Standing {
        Standing {
            age_ms,
            since_begun_ms: age_ms,
            next_step_at_ms: Some(120_000),
            since_sent_ms: 0,
            resends: 0,
            since_delivered_ms: Some(age_ms),
            heard_by_all: true,
            heard: true,
            called_unheard: false,
        }
    }

    #[test]
    fn nobody_listening_is_said_once_and_within_its_limit() {
        let mut at = Standing { heard_by_all: false, heard: false, ..standing(9_999) };
        assert_eq!(due(&alert(), &at, LIMITS), None);
        at.since_begun_ms = 10_000;
        assert_eq!(due(&alert(), &at, LIMITS), Some(Due::Unheard));
        at.called_unheard = true;
        assert_eq!(due(&alert(), &at, LIMITS), None);
    }

    #[test]
    fn steps_come_by_age_until_somebody_takes_it() {
        assert_eq!(due(&alert(), &standing(119_999), LIMITS), None);
        assert_eq!(due(&alert(), &standing(120_000), LIMITS), Some(Due::Step));
        let taken = Alert { state: AlertState::Acknowledged, ..alert() };
        assert_eq!(due(&taken, &standing(120_000), LIMITS), None);
    }

    #[test]
    fn what_nobody_ever_had_never_expires() {
        let day = 86_400_000;
        let never = Standing {
            since_delivered_ms: None,
            called_unheard: true,
            next_step_at_ms: None,
            ..standing(day)
        };
        assert_ne!(due(&alert(), &never, LIMITS), Some(Due::Expire));
        assert_eq!(due(&alert(), &standing(day), LIMITS), Some(Due::Expire));
        let taken = Alert { state: AlertState::Acknowledged, ..alert() };
        assert_eq!(due(&taken, &standing(day), LIMITS), Some(Due::Close));
    }

    #[test]
    fn the_default_ladder_is_the_designs() {
        let ladder = Ladder::default();
        assert_eq!(ladder.roles(0), ["nurse"]);
        assert_eq!(ladder.roles(1), ["nurse", "charge_nurse", "phone"]);
        assert!(ladder.roles(3).contains(&EVERYONE.to_owned()));
        assert_eq!(
            (ladder.next_at_ms(0), ladder.next_at_ms(2), ladder.next_at_ms(3)),
            (Some(120_000), Some(600_000), None)
        );
    }

    #[test]
    fn a_test_alert_that_nobody_ended_ends_by_itself() {
        let test = Alert { kind: Kind::Test, ..alert() };
        let at = |age_ms| Standing { since_delivered_ms: None, ..standing(age_ms) };
        assert_eq!(due(&test, &at(TEST_MS - 1), LIMITS), None);
        assert_eq!(due(&test, &at(TEST_MS), LIMITS), Some(Due::Close));
    }

    proptest! {
        #[test]
        fn an_open_alert_that_was_not_heard_is_said_again_within_a_minute(resends in 0u32..1000, age in 10_000u64..1_000_000) {
            let at = Standing { heard_by_all: false, since_delivered_ms: None, called_unheard: true, next_step_at_ms: None, resends, since_sent_ms: 60_000, ..standing(age) };
            prop_assert_eq!(due(&alert(), &at, LIMITS), Some(Due::Resend));
        }

        #[test]
        fn a_closed_alert_is_left_alone(age in any::<u64>(), state in prop::sample::select(vec![AlertState::Resolved, AlertState::Withdrawn, AlertState::Expired])) {
            prop_assert_eq!(due(&Alert { state, ..alert() }, &standing(age), LIMITS), None);
        }
    }
}
