//! The alerts and their way out: every transition is a row before it is a publish.
//!
//! One row per alert, in one shape whatever it is about: a study, trouble of the box, a proof of life. What changes it: a
//! verdict ([`Ledger::record`]), a station's receipt, a person's action, or time ([`Ledger::tick`]). Each is one
//! transaction with its audit row, the new revision and its place in the outbox.

mod policy;
mod row;
mod silence;

pub use policy::{Policy, Shift};
pub(super) use row::{MIGRATION, Stored, is_waiting, open_alerts, receipts, stored_by_id};
pub use silence::Silence;
pub(super) use silence::silenced;

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{OptionalExtension, Transaction, params};
use serde_json::json;
use sha2::{Digest, Sha256};

use row::{Behind, open_alerts_that, stage_name, stored};

use super::{Ledger, LedgerError, Record, audit, count, doing, integer, stage_text, ulid};
use crate::alert::action::{self, Effect};
use crate::alert::document::{
    Alert, AlertFinding, AlertState, AlertTimings, ClockInfo, DISCLAIMER, Escalation, Kind, Quality,
    StudyInfo, Subject, Technical,
};
use crate::alert::inbound::{ActionCode, ActionMessage, ActionResult, ReceiptMessage, Reply};
use crate::alert::ladder::{self, Due, EVERYONE, Limits, Standing};
use crate::alert::lifecycle::{self, Change};
use crate::clock;
use crate::config::Profile;
use crate::decide::{Disposition, Finding, NamedScores, Stage, Verdict};
use crate::hex;
use crate::infer::Class;

/// After a closed alert was sent a last time, stations may still ask for it for that long, s.
pub const CLOSED_EXPIRY_S: u32 = 3_600;
/// How long a claim holds the ladder, ms.
const CLAIM_HOLD_MS: u64 = 180_000;
/// Alerts raised within [`STORM_MS`] beyond which the next ones form a group that sounds once.
const STORM_MAX: u64 = 10;
const STORM_MS: u64 = 600_000;

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
    /// What a verdict does to the alert of its study; part of [`Ledger::record`]'s transaction.
    pub(super) fn write_alert(
        &self,
        tx: &Transaction,
        verdict: &Verdict,
        record: &Record,
        study_ref: &str,
    ) -> Result<Option<(String, u64)>, LedgerError> {
        let mut stored = stored(tx, verdict.study.as_str())?;
        let existing = stored.as_ref().map(Stored::existing);
        let news = content(verdict);
        let Some(change) = lifecycle::change(existing.as_ref(), verdict, &news) else { return Ok(None) };
        if let (Change::Withdraw, Some(alert)) = (change, &stored)
            && alert.document.stage == Stage::Final
            && record.stands_above.zip(verdict.scores).is_some_and(|(p, s)| s.of(Class::Any) >= p)
        {
            // Hysteresis: what one late slice tips over by a hair stays an alert.
            return Ok(None);
        }
        let (stored, fresh) = match (&mut stored, &verdict.disposition) {
            (Some(alert), _) => (alert, false),
            (none, Disposition::Suspected(finding)) => {
                (none.insert(self.new_finding(tx, verdict, record, study_ref, finding)?), true)
            }
            (None, _) => return Ok(None),
        };
        if let Disposition::Suspected(finding) = &verdict.disposition {
            let nth = stored.raised_by.values().map(|b| b.nth + 1).max().unwrap_or(0);
            let nth = stored.raised_by.get(&verdict.series).map_or(nth, |b| b.nth);
            stored.raised_by.insert(verdict.series.clone(), self.behind(verdict, record, finding, nth));
        } else if change == Change::Withdraw {
            stored.raised_by.remove(&verdict.series);
        }
        // The document says what the most urgent series behind it says; of equals, the one that spoke first.
        let speaks = stored.raised_by.iter().min_by_key(|(_, b)| (b.priority, b.nth));
        let speaks = speaks.map(|(series, behind)| (series.clone(), behind.clone()));
        let document = &mut stored.document;
        let before = (document.priority, document.finding.subtypes.clone(), document.state);
        match (change, speaks) {
            (Change::FinalUnread, _) => {
                document.quality.ok = false;
                let why = verdict.disposition.why().map_or("unknown", |w| w.code());
                document.addendum.push(format!("the complete series could not be analysed: {why}"));
            }
            (_, None) => {
                document.state = AlertState::Withdrawn;
                document.stage = Stage::Final;
                document.addendum.push("withdrawn: the final verdict is not suspected".into());
            }
            (_, Some((series, behind))) => {
                if document.state == AlertState::Withdrawn {
                    document.state = AlertState::Raised;
                    document.ack = None;
                    document.addendum.push("suspected again after it was withdrawn".into());
                }
                // A provisional look never turns a final alert provisional again.
                let back = document.stage == Stage::Final && behind.stage == Stage::Provisional && !fresh;
                let same = document.finding == behind.finding && document.stage == behind.stage;
                if !fresh && document.state == before.2 && (back || same) {
                    // Stands behind it, and changes nothing of what it says.
                    if series == verdict.series {
                        stored.content = news;
                    }
                    stored.save(tx)?;
                    return Ok(None);
                }
                if !back {
                    (document.stage, document.priority) = (behind.stage, behind.priority);
                    (document.finding, document.quality) = (behind.finding, behind.quality);
                    document.study.slices = behind.slices;
                    (document.subject.location, document.subject.enc) = (behind.location, behind.enc);
                    document.model.clone_from(&verdict.model);
                }
            }
        }
        stored.content = news;
        let document = &stored.document;
        let priority_rose = document.priority < before.0;
        let raised_again = before.2 == AlertState::Withdrawn && document.state == AlertState::Raised;
        let substance = fresh || raised_again || priority_rose || document.finding.subtypes != before.1;
        let event = match (fresh, document.state) {
            (true, _) => "alert_raised",
            (_, AlertState::Withdrawn) => "alert_withdrawn",
            _ => "alert_revised",
        };
        if raised_again {
            self.begin_ladder(stored);
        } else if priority_rose
            && matches!(
                stored.document.state,
                AlertState::Acknowledged | AlertState::Resolved | AlertState::Expired
            )
        {
            // Whoever took it, or was done with it, knew of something less urgent.
            stored.document.state = AlertState::Raised;
            stored.document.ack = None;
            stored.document.addendum.push("more urgent than when it was taken".into());
            self.begin_ladder(stored);
        }
        self.revise(tx, stored, event, substance, fresh || raised_again || priority_rose)?;
        Ok(Some((stored.document.alert_id.clone(), stored.document.rev)))
    }

    fn behind(&self, verdict: &Verdict, record: &Record, finding: &Finding, nth: u64) -> Behind {
        let point = stage_text(verdict.stage);
        let said = match self.site.profile {
            Profile::Assist => {
                AlertFinding::assist(finding, verdict.scores.as_ref().map(NamedScores::from), point)
            }
            Profile::Triage => AlertFinding { operating_point: point.into(), ..AlertFinding::default() },
        };
        Behind {
            priority: finding.tier.priority,
            stage: verdict.stage,
            finding: said,
            quality: Quality { ok: verdict.flags.is_empty(), flags: verdict.flags.clone() },
            slices: verdict.instances,
            location: record.shown.location.clone(),
            enc: record.shown.enc.clone(),
            nth,
        }
    }

    fn new_finding(
        &self,
        tx: &Transaction,
        verdict: &Verdict,
        record: &Record,
        study_ref: &str,
        finding: &Finding,
    ) -> Result<Stored, LedgerError> {
        let proof: Option<i64> = tx
            .query_row("SELECT id FROM proofs WHERE study_uid = ?1", [verdict.study.as_str()], |r| r.get(0))
            .optional()
            .map_err(doing("read proofs of life"))?;
        let mut alert = self.new_alert(
            tx,
            verdict.study.as_str(),
            if proof.is_some() { Kind::Test } else { Kind::Finding },
        )?;
        if let Some(id) = proof {
            alert.document.addendum.push("proof of life: a synthetic study, no patient".into());
            tx.execute(
                "UPDATE proofs SET alert_id = ?2, reached = 'verdict' WHERE id = ?1",
                params![id, alert.document.alert_id],
            )
            .map_err(doing("write a proof of life"))?;
        }
        let document = &mut alert.document;
        document.stage = verdict.stage;
        document.priority = finding.tier.priority;
        document.study = StudyInfo {
            study_ref: study_ref.into(),
            acquired_at: record.acquired_at.clone(),
            slices: verdict.instances,
        };
        document.model.clone_from(&verdict.model);
        document.subject.r#ref = self.spoken_code(tx, verdict.study.as_str())?;
        document.timings_ms.last_slice_to_verdict = record
            .arrival
            .last_ms
            .and_then(|last| record.decided_wall_ms.checked_sub(last))
            .filter(|ms| *ms < 86_400_000);
        if document.kind == Kind::Finding {
            let since = integer(self.elapsed_ms().saturating_sub(STORM_MS));
            let (recent, first): (i64, Option<String>) = tx
                .query_row(
                    "SELECT count(*), min(alert_id) FROM alerts WHERE raised_elapsed_ms >= ?1
                     AND study_uid NOT LIKE 'technical:%'",
                    [since],
                    |r| Ok((r.get(0)?, r.get(1)?)),
                )
                .map_err(doing("count alerts"))?;
            document.group = first.filter(|_| recent.unsigned_abs() >= STORM_MAX);
        }
        Ok(alert)
    }

    fn new_alert(&self, tx: &Transaction, subject: &str, kind: Kind) -> Result<Stored, LedgerError> {
        let now = self.clock.read();
        let document = Alert {
            schema: "ichd.alert/1".into(),
            alert_id: ulid(now.wall_ms)?,
            rev: 0,
            kind,
            stage: Stage::Final,
            state: AlertState::Raised,
            priority: 9,
            device: self.site.device.clone(),
            site: self.site.name.clone(),
            boot: self.boot,
            seq: count(tx, "seq")?,
            raised_at: clock::rfc3339(now.wall_ms),
            published_at: String::new(),
            age_ms: 0,
            clock: ClockInfo::default(),
            expires_at: clock::rfc3339(now.wall_ms + self.policy.limits.expiry_ms),
            subject: Subject { r#ref: String::new(), location: None, enc: None },
            study: StudyInfo { study_ref: String::new(), acquired_at: None, slices: 0 },
            finding: AlertFinding::default(),
            model: None,
            quality: Quality { ok: true, flags: vec![] },
            timings_ms: AlertTimings::default(),
            escalation: Escalation::default(),
            receipts: vec![],
            ack: None,
            claimed_by: None,
            feedback: vec![],
            technical: None,
            sound_rev: 0,
            group: None,
            supersedes: vec![],
            addendum: vec![],
            disclaimer: DISCLAIMER.into(),
        };
        let mut stored = Stored {
            subject: subject.into(),
            document,
            raised_by: BTreeMap::new(),
            content: String::new(),
            raised_wall_ms: now.wall_ms,
            raised_elapsed_ms: self.elapsed_ms(),
            next_step_at_ms: None,
            sent_elapsed_ms: 0,
            resends: 0,
            delivered_elapsed_ms: None,
            content_rev: 0,
            called_unheard: false,
        };
        self.begin_ladder(&mut stored);
        Ok(stored)
    }

    /// From the bottom, counted from now.
    fn begin_ladder(&self, stored: &mut Stored) {
        let ladder = self.policy.ladder_at(self.clock.read().wall_ms);
        let escalation = &mut stored.document.escalation;
        (escalation.policy, escalation.step) = (ladder.name.clone(), 0);
        match stored.document.kind {
            Kind::Finding => {
                escalation.roles = ladder.roles(0);
                let age = self.elapsed_ms().saturating_sub(stored.raised_elapsed_ms);
                stored.next_step_at_ms = ladder.next_at_ms(0).map(|ms| age + ms);
            }
            Kind::Technical | Kind::Test => {
                escalation.roles = vec![EVERYONE.into()];
                stored.next_step_at_ms = None;
            }
        }
        (stored.called_unheard, stored.delivered_elapsed_ms) = (false, None);
    }

    /// The next step, now.
    fn step_up(&self, stored: &mut Stored) {
        let age = self.elapsed_ms().saturating_sub(stored.raised_elapsed_ms);
        let escalation = &mut stored.document.escalation;
        let ladder = self.policy.ladder_named(&escalation.policy);
        escalation.step += 1;
        escalation.roles = ladder.roles(escalation.step);
        // A step taken early does not bring the next one forward beyond its own distance.
        let distance = match (ladder.next_at_ms(escalation.step), ladder.next_at_ms(escalation.step - 1)) {
            (Some(next), Some(this)) => Some(next.saturating_sub(this)),
            _ => None,
        };
        stored.next_step_at_ms = distance.map(|ms| age + ms);
        if stored.document.state != AlertState::Acknowledged {
            stored.document.state = AlertState::Escalated;
        }
    }

    /// A new revision: audit row, alert row, outbox row. `substance`: what a person must have seen to act on it.
    pub(super) fn revise(
        &self,
        tx: &Transaction,
        stored: &mut Stored,
        event: &str,
        substance: bool,
        sounds: bool,
    ) -> Result<(), LedgerError> {
        let document = &mut stored.document;
        document.rev += 1;
        document.seq = count(tx, "seq")?;
        document.boot = self.boot;
        if substance {
            stored.content_rev = document.rev;
        }
        if sounds {
            document.sound_rev = document.rev;
        }
        if !document.state.is_open() || document.state == AlertState::Acknowledged {
            stored.next_step_at_ms = None;
        }
        (stored.sent_elapsed_ms, stored.resends) = (self.elapsed_ms(), 0);
        let body = json!({
            "alert_id": document.alert_id, "rev": document.rev, "kind": document.kind, "state": document.state,
            "stage": document.stage, "priority": document.priority, "study_ref": document.study.study_ref,
            "step": document.escalation.step, "roles": document.escalation.roles,
            "code": document.technical.as_ref().map(|t| &t.code),
        });
        audit::append(tx, event, &body)?;
        stored.save(tx)?;
        self.enqueue(tx, &stored.document)?;
        self.keep_time(tx)
    }

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
                 ON CONFLICT (alert_id, station) DO UPDATE SET role = ?3, stage = ?4, rev = ?5",
                params![receipt.alert_id, speaker.station, speaker.role, stage_name(stage), integer(rev), integer(now.wall_ms), integer(self.elapsed_ms())],
            )
            .map_err(doing("write a receipt"))?;
            if known.as_ref().is_none_or(|r| r.stage < stage) {
                let body = json!({"alert_id": receipt.alert_id, "rev": rev, "station": speaker.station, "role": speaker.role, "stage": stage});
                audit::append(tx, "alert_receipt", &body)?;
            }
            if stored.document.kind == Kind::Test {
                self.proof_reached_station(tx, &mut stored)?;
                return Ok(Heard::Delivered);
            }
            if stored.delivered_elapsed_ms.is_some() || !stored.document.state.is_open() {
                return Ok(Heard::Noted);
            }
            stored.delivered_elapsed_ms = Some(self.elapsed_ms());
            if stored.document.state == AlertState::Raised {
                stored.document.state = AlertState::Delivered;
            }
            // Further receipts make no revision: each would be answered by receipts again.
            self.revise(tx, &mut stored, "alert_delivered", false, false)?;
            if stored.document.kind == Kind::Finding {
                self.clear_technical(tx, "nobody_listening", "a station has answered")?;
            }
            Ok(Heard::Delivered)
        })
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
        let (event, sounds) = match effect {
            Effect::None => ("alert_feedback", false),
            Effect::Hold => {
                stored.next_step_at_ms = stored.next_step_at_ms.map(|at| at.max(age + CLAIM_HOLD_MS));
                ("alert_claimed", false)
            }
            Effect::Resume => {
                let ladder = self.policy.ladder_named(&stored.document.escalation.policy);
                let planned = ladder.next_at_ms(stored.document.escalation.step);
                stored.next_step_at_ms = planned.map(|at| at.max(age));
                ("alert_released", false)
            }
            Effect::StepNow => {
                self.step_up(stored);
                ("alert_escalated", true)
            }
            Effect::Stop => ("alert_acknowledged", false),
            Effect::Purge => ("alert_resolved", false),
        };
        self.revise(tx, stored, event, false, sounds)
    }

    /// Does everything that is due; returns how many alerts changed or go out again.
    pub fn tick(&self) -> Result<usize, LedgerError> {
        self.change(|tx| {
            let mut done = 0;
            for mut stored in self.possibly_due(tx)? {
                let standing = self.standing(tx, &stored)?;
                let Some(due) = ladder::due(&stored.document, &standing, self.policy.limits) else {
                    continue;
                };
                done += 1;
                match due {
                    Due::Unheard => {
                        stored.called_unheard = true;
                        self.step_up(&mut stored);
                        self.revise(tx, &mut stored, "alert_unheard", false, true)?;
                        let text = format!(
                            "no station has shown alert {} after {} s",
                            stored.document.subject.r#ref,
                            standing.age_ms / 1000
                        );
                        self.set_technical(tx, "nobody_listening", &text)?;
                    }
                    Due::Step => {
                        self.step_up(&mut stored);
                        self.revise(tx, &mut stored, "alert_escalated", false, true)?;
                    }
                    Due::Resend => {
                        (stored.sent_elapsed_ms, stored.resends) =
                            (self.elapsed_ms(), stored.resends.saturating_add(1));
                        stored.save(tx)?;
                        self.enqueue(tx, &stored.document)?;
                    }
                    Due::Expire => {
                        stored.document.state = AlertState::Expired;
                        stored.document.addendum.push("expired: nobody acknowledged it".into());
                        self.revise(tx, &mut stored, "alert_expired", false, false)?;
                        let text = format!(
                            "alert {} expired without an acknowledgement",
                            stored.document.subject.r#ref
                        );
                        self.set_technical(tx, "expired_unacknowledged", &text)?;
                    }
                    Due::Close => {
                        stored.document.state = AlertState::Resolved;
                        stored.document.addendum.push("closed by time".into());
                        self.revise(tx, &mut stored, "alert_resolved", false, false)?;
                    }
                }
            }
            self.keep_time_now_and_then(tx)?;
            Ok(done)
        })
    }

    /// Open alerts of which something may be due; a storm of others costs nothing.
    fn possibly_due(&self, tx: &Transaction) -> Result<Vec<Stored>, LedgerError> {
        let Limits { receipt_ms, expiry_ms } = self.policy.limits;
        let condition = "AND (raised_elapsed_ms + next_step_at_ms <= ?1 OR sent_elapsed_ms + ?2 <= ?1
             OR delivered_elapsed_ms + ?4 <= ?1
             OR (delivered_elapsed_ms IS NULL AND NOT called_unheard AND raised_elapsed_ms + ?3 <= ?1))";
        let limits = [self.elapsed_ms(), ladder::RESEND_MIN_MS, receipt_ms, expiry_ms].map(integer);
        open_alerts_that(tx, condition, &limits)
    }

    fn standing(&self, tx: &Transaction, stored: &Stored) -> Result<Standing, LedgerError> {
        let now = self.elapsed_ms();
        let heard = receipts(tx, &stored.document.alert_id)?;
        let has = |role: &String| {
            let mut of_rev = heard.iter().filter(|r| r.rev >= stored.content_rev);
            of_rev.any(|r| role == EVERYONE || r.role == *role)
        };
        // The last transmission may still wait for the broker; it is not lost before it was sent.
        let waits = is_waiting(tx, &stored.document.alert_id)?;
        Ok(Standing {
            age_ms: now.saturating_sub(stored.raised_elapsed_ms),
            next_step_at_ms: stored.next_step_at_ms,
            since_sent_ms: if waits { 0 } else { now.saturating_sub(stored.sent_elapsed_ms) },
            resends: stored.resends,
            since_delivered_ms: stored.delivered_elapsed_ms.map(|at| now.saturating_sub(at)),
            heard_by_all: stored.document.escalation.roles.iter().all(has),
            called_unheard: stored.called_unheard,
        })
    }

    /// Raises trouble of the box, once per code while it is open.
    pub fn raise_technical(&self, code: &str, text: &str) -> Result<(), LedgerError> {
        self.change(|tx| self.set_technical(tx, code, text))
    }

    /// The trouble is over.
    pub fn resolve_technical(&self, code: &str, text: &str) -> Result<(), LedgerError> {
        self.change(|tx| self.clear_technical(tx, code, text))
    }

    pub(super) fn set_technical(&self, tx: &Transaction, code: &str, text: &str) -> Result<(), LedgerError> {
        let subject = format!("technical:{code}");
        if let Some(old) = stored(tx, &subject)? {
            if old.document.state.is_open() {
                return Ok(());
            }
            // A new occasion is a new alert; the row of the old one makes room, its audit rows stay.
            tx.execute(
                "UPDATE alerts SET study_uid = ?2 WHERE study_uid = ?1",
                params![subject, format!("{subject}:{}", old.document.alert_id)],
            )
            .map_err(doing("write an alert"))?;
        }
        let mut alert = self.new_alert(tx, &subject, Kind::Technical)?;
        alert.document.technical = Some(Technical { code: code.into(), text: text.into() });
        alert.document.subject.r#ref = code.into();
        self.revise(tx, &mut alert, "alert_raised", true, true)
    }

    pub(super) fn clear_technical(
        &self,
        tx: &Transaction,
        code: &str,
        text: &str,
    ) -> Result<(), LedgerError> {
        let Some(mut alert) = stored(tx, &format!("technical:{code}"))? else { return Ok(()) };
        if !alert.document.state.is_open() {
            return Ok(());
        }
        alert.document.state = AlertState::Resolved;
        alert.document.addendum.push(text.into());
        self.revise(tx, &mut alert, "alert_resolved", false, false)
    }

    /// A short code to say on the phone: letters and digits that cannot be mistaken for one another; no two open alerts
    /// share one.
    fn spoken_code(&self, tx: &Transaction, uid: &str) -> Result<String, LedgerError> {
        let taken: BTreeSet<String> =
            open_alerts(tx)?.into_iter().map(|s| s.document.subject.r#ref).collect();
        let mut codes =
            (0u32..).map(|n| spoken(&self.hash(&if n == 0 { uid.to_owned() } else { format!("{uid}#{n}") })));
        Ok(codes.find(|code| !taken.contains(code)).unwrap_or_default())
    }
}

fn spoken(hash: &[u8; 32]) -> String {
    const LETTERS: &[u8; 20] = b"ACDEFGHJKLMNPRTUVWXY";
    const DIGITS: &[u8; 8] = b"23456789";
    let letter = |i: usize| char::from(LETTERS[usize::from(hash[i]) % LETTERS.len()]);
    let digit = |i: usize| char::from(DIGITS[usize::from(hash[i]) % DIGITS.len()]);
    format!("{}{}{}-{}{}", letter(20), digit(21), letter(22), digit(23), digit(24))
}

/// Hash of what is news: while slices still arrive only type, side and urgency; in the end everything.
fn content(verdict: &Verdict) -> String {
    let text = match (&verdict.disposition, verdict.stage) {
        (Disposition::Suspected(f), Stage::Provisional) => {
            format!("provisional {:?} {:?} {:?}", f.subtypes, f.side, f.tier)
        }
        (Disposition::Suspected(f), Stage::Final) => format!(
            "final {} {:?} {:?} {}",
            serde_json::to_string(f).unwrap_or_default(),
            verdict.flags,
            verdict.scores,
            verdict.instances
        ),
        (other, _) => other.why().map_or_else(String::new, |why| why.code().to_owned()),
    };
    hex(&Sha256::digest(text))
}

#[cfg(test)]
mod tests;
