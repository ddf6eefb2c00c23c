//! What stations and people say of an alert: receipts and actions.

use rusqlite::{OptionalExtension, Transaction, params};
use serde_json::json;

use super::super::{Ledger, LedgerError, audit, doing, integer, proofs};
use super::Revision;
use super::row::{Stored, receipts, stage_name, stored_by_id};
use crate::alert::action::{self, Effect};
use crate::alert::document::{AlertState, Kind};
use crate::alert::inbound::{ActionCode, ActionMessage, ActionResult, ReceiptMessage, Reply};
use crate::clock;

/// How long a claim holds the ladder, ms.
const CLAIM_HOLD_MS: u64 = 180_000;

/// What a receipt led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// No such alert: an old retained message of a station, or nonsense.
    UnknownAlert,
    /// Written down.
    Noted,
    /// The first one: the alert is delivered.
    Delivered,
}

/// A station as the daemon knows it when it speaks.
#[derive(Debug, Clone, Copy)]
pub struct Speaker<'a> {
    /// Its name: the topic level, which the broker's ACL binds to its certificate.
    pub station: &'a str,
    /// Whom it serves.
    pub role: &'a str,
}

impl Ledger {
    /// A station says that it has an alert.
    pub fn receipt(&self, speaker: Speaker, receipt: &ReceiptMessage) -> Result<Heard, LedgerError> {
        self.change(|tx| {
            let Some(mut stored) = stored_by_id(tx, &receipt.alert_id)? else { return Ok(Heard::UnknownAlert) };
            let now = self.clock.read();
            let rev = receipt.rev.min(stored.document.rev);
            let known = receipts(tx, &receipt.alert_id)?.into_iter().find(|r| r.station == speaker.station);
            let stage = known.as_ref().map_or(receipt.stage, |r| r.stage.max(receipt.stage));
            if known.as_ref().is_some_and(|r| r.rev >= rev && r.stage == stage && r.role == speaker.role) {
                return Ok(Heard::Noted);
            }
            let rev = known.as_ref().map_or(rev, |r| r.rev.max(rev));
            tx.execute(
                "INSERT INTO receipts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (alert_id, station) DO UPDATE
                     SET role = ?3, stage = ?4, rev = ?5, at_ms = iif(stage = ?4, at_ms, ?6)",
                params![receipt.alert_id, speaker.station, speaker.role, stage_name(stage), integer(rev), integer(now.wall_ms), integer(self.elapsed_ms())],
            )
            .map_err(doing("write a receipt"))?;
            if known.as_ref().is_none_or(|r| r.stage < stage) {
                let body = json!({"alert_id": receipt.alert_id, "rev": rev, "station": speaker.station, "role": speaker.role, "stage": stage});
                audit::append(tx, "alert_receipt", &body)?;
            }
            if stored.document.kind == Kind::Test {
                proofs::reached_station(tx, &receipt.alert_id)?;
                return Ok(Heard::Delivered);
            }
            if !stored.document.state.is_open() {
                return Ok(Heard::Noted);
            }
            // A screen somewhere is a delivery; that somebody listens is said by one of those who were called.
            let called = stored.calls(speaker.role) && rev >= stored.content_rev;
            let heard = called && self.is_heard(tx, &mut stored)?;
            if stored.delivered_elapsed_ms.is_some() {
                if heard {
                    stored.save(tx)?;
                }
                return Ok(Heard::Noted);
            }
            stored.delivered_elapsed_ms = Some(self.elapsed_ms());
            if stored.document.state == AlertState::Raised {
                stored.document.state = AlertState::Delivered;
            }
            // Further receipts make no revision: each would be answered by receipts again.
            self.revise(tx, &mut stored, Revision::silent("alert_delivered"))?;
            Ok(Heard::Delivered)
        })
    }

    /// Somebody who was called has it; whether that is news. The caller saves.
    fn is_heard(&self, tx: &Transaction, stored: &mut Stored) -> Result<bool, LedgerError> {
        if stored.heard_elapsed_ms.is_some() {
            return Ok(false);
        }
        stored.heard_elapsed_ms = Some(self.elapsed_ms());
        if stored.document.kind == Kind::Finding {
            self.clear_technical(tx, "nobody_listening", "a station has answered")?;
        }
        Ok(true)
    }

    /// A person did something. Idempotent: an `action_id` that was seen gets its first answer again.
    pub fn act(&self, speaker: Speaker, action: &ActionMessage, allowed: bool) -> Result<Reply, LedgerError> {
        self.change(|tx| {
            let first: Option<String> = tx
                .query_row("SELECT reply FROM actions WHERE action_id = ?1 AND station = ?2", [&action.action_id, speaker.station], |r| r.get(0))
                .optional()
                .map_err(doing("read actions"))?;
            if let Some(first) = first {
                let mut reply: Reply = serde_json::from_str(&first).map_err(LedgerError::Document)?;
                if reply.result == ActionResult::Accepted {
                    reply.result = ActionResult::Duplicate;
                }
                return Ok(reply);
            }
            let now = self.clock.read();
            let at = clock::rfc3339(now.wall_ms);
            let mut stored = stored_by_id(tx, &action.alert_id)?;
            let late = action.expires_at.as_deref().and_then(clock::parse_rfc3339).is_some_and(|t| t < now.wall_ms);
            let outcome = match &mut stored {
                _ if !allowed => Err((ActionCode::NotAllowed, "this station is not enrolled here (alert.stations)".to_owned())),
                // A box whose own clock is wrong must not refuse people; the broker's expiry holds then.
                _ if late && now.synced == Some(true) => Err((ActionCode::Expired, "the action came too late".to_owned())),
                None => Err((ActionCode::UnknownAlert, "no such alert".to_owned())),
                Some(stored) => action::apply(&mut stored.document, stored.content_rev, action, speaker.station, &at),
            };
            let taken = tx
                .query_row("SELECT count(*) FROM actions WHERE action_id = ?1", [&action.action_id], |r| r.get::<_, i64>(0))
                .map_err(doing("read actions"))?;
            let outcome = if taken > 0 { Err((ActionCode::BadRequest, "another station has used this action_id".to_owned())) } else { outcome };
            let (result, code, message) = match &outcome {
                Ok(_) => (ActionResult::Accepted, ActionCode::Ok, String::new()),
                Err((code, words)) => (ActionResult::Refused, *code, words.clone()),
            };
            let body = json!({
                "action_id": action.action_id, "alert_id": action.alert_id, "rev": action.rev, "verb": action.verb,
                "station": speaker.station, "role": speaker.role, "user": action.user.trim(), "code": code,
            });
            audit::append(tx, "action", &body)?;
            if let (Ok(effect), Some(stored)) = (&outcome, &mut stored) {
                self.take_effect(tx, stored, *effect)?;
            }
            let reply = Reply {
                schema: "ichd.reply/1".into(),
                action_id: action.action_id.clone(),
                alert_id: action.alert_id.clone(),
                result,
                code,
                message,
                rev: stored.as_ref().map_or(0, |s| s.document.rev),
            };
            if taken == 0 && code != ActionCode::NotAllowed {
                let text = |v: &serde_json::Value| v.as_str().map(str::to_owned);
                tx.execute(
                    "INSERT INTO actions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                    params![
                        action.action_id, action.alert_id, speaker.station, speaker.role, action.user.trim(),
                        text(&json!(action.verb)), text(&json!(action.feedback)), action.reason, integer(action.rev),
                        serde_json::to_string(&reply).map_err(LedgerError::Document)?, integer(now.wall_ms),
                    ],
                )
                .map_err(doing("write an action"))?;
            }
            Ok(reply)
        })
    }

    fn take_effect(&self, tx: &Transaction, stored: &mut Stored, effect: Effect) -> Result<(), LedgerError> {
        let age = self.elapsed_ms().saturating_sub(stored.raised_elapsed_ms);
        // A person at a station has seen it, whether or not a receipt came through.
        stored.delivered_elapsed_ms.get_or_insert(self.elapsed_ms());
        self.is_heard(tx, stored)?;
        let revision = match effect {
            Effect::None => Revision::silent("alert_feedback"),
            Effect::Hold => {
                stored.next_step_at_ms = stored.next_step_at_ms.map(|at| at.max(age + CLAIM_HOLD_MS));
                Revision::silent("alert_claimed")
            }
            Effect::Resume => {
                let ladder = self.policy.ladder_named(&stored.document.escalation.policy);
                let planned = ladder.next_at_ms(stored.document.escalation.step);
                stored.next_step_at_ms = planned.map(|at| at.max(age));
                Revision::silent("alert_released")
            }
            Effect::StepNow => {
                self.step_up(stored);
                Revision::sounding("alert_escalated")
            }
            Effect::Stop => Revision::silent("alert_acknowledged"),
            Effect::Purge => Revision::silent("alert_resolved"),
        };
        self.revise(tx, stored, revision)
    }
}
