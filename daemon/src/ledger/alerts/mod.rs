//! The alerts and their way out: every transition is a row before it is a publish.
//!
//! One row per alert, in one shape whatever it is about: a study, trouble of the box, a proof of life. What changes it: a
//! verdict ([`Ledger::record`]), a station's receipt, a person's action, or time ([`Ledger::tick`]). Each is one
//! transaction with its audit row, the new revision and its place in the outbox.

mod due;
mod people;
mod policy;
mod row;
mod silence;
mod technical;

pub use people::{Heard, Speaker};
pub use policy::{Policy, Shift};
pub(super) use row::{
    MIGRATION, OPEN, Stored, closed_since, is_waiting, open_alerts, receipts, stored_by_id,
};
pub use silence::Silence;
pub(super) use silence::silenced;

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{OptionalExtension, Transaction, params};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use row::{Behind, stored};

use super::{Ledger, LedgerError, Record, audit, count, doing, integer, proofs, stage_text, ulid};
use crate::alert::document::{
    Alert, AlertFinding, AlertState, AlertTimings, ClockInfo, DISCLAIMER, Escalation, Kind, Quality,
    StudyInfo, Subject,
};
use crate::alert::ladder::EVERYONE;
use crate::alert::lifecycle::{self, Change};
use crate::assemble::Flag;
use crate::clock;
use crate::config::Profile;
use crate::decide::{Disposition, Finding, NamedScores, Side, Stage, Tier, Verdict};
use crate::hex;
use crate::infer::Class;

/// Alerts raised within [`STORM_MS`] beyond which the next ones form a group that sounds once.
const STORM_MAX: u64 = 10;
const STORM_MS: u64 = 600_000;

/// A change of an alert, as the audit log names it and as receivers take it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revision {
    event: &'static str,
    /// A person must have seen it to act on the alert.
    substance: bool,
    /// It shall sound again.
    sounds: bool,
}

impl Revision {
    pub(super) fn silent(event: &'static str) -> Self {
        Revision { event, substance: false, sounds: false }
    }

    fn sounding(event: &'static str) -> Self {
        Revision { event, substance: false, sounds: true }
    }

    fn news(event: &'static str) -> Self {
        Revision { event, substance: true, sounds: true }
    }
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
        if stored.is_none() && proofs::has_ended(tx, verdict.study.as_str())? {
            // Nobody waits for it any more, and nobody would end what it raises.
            return Ok(None);
        }
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
        // The document says what the most urgent series behind it says; of equals, one that is complete, then the one
        // that spoke first.
        let speaks =
            stored.raised_by.iter().min_by_key(|(_, b)| (b.priority, b.stage == Stage::Provisional, b.nth));
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
                    (document.ack, document.claimed_by) = (None, None);
                    document.addendum.push("suspected again after it was withdrawn".into());
                }
                // A provisional look never turns a final alert provisional again; one that was taken back is none.
                let back = document.stage == Stage::Final
                    && behind.stage == Stage::Provisional
                    && before.2 != AlertState::Withdrawn
                    && !fresh;
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
            (stored.document.ack, stored.document.claimed_by) = (None, None);
            stored.document.addendum.push("more urgent than when it was taken".into());
            self.begin_ladder(stored);
        }
        let sounds = fresh || raised_again || priority_rose;
        self.revise(tx, stored, Revision { event, substance, sounds })?;
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
            begun_elapsed_ms: 0,
            delivered_elapsed_ms: None,
            heard_elapsed_ms: None,
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
        stored.begun_elapsed_ms = self.elapsed_ms();
        (stored.called_unheard, stored.delivered_elapsed_ms, stored.heard_elapsed_ms) = (false, None, None);
    }

    /// The next step, now.
    fn step_up(&self, stored: &mut Stored) {
        let age = self.elapsed_ms().saturating_sub(stored.raised_elapsed_ms);
        let escalation = &mut stored.document.escalation;
        let ladder = self.policy.ladder_named(&escalation.policy);
        escalation.step += 1;
        if stored.document.state != AlertState::Acknowledged {
            stored.document.state = AlertState::Escalated;
        }
        if stored.document.kind != Kind::Finding {
            // Everybody is told of these from the beginning.
            return;
        }
        escalation.roles = ladder.roles(escalation.step);
        // A step taken early does not bring the next one forward beyond its own distance.
        let distance = match (ladder.next_at_ms(escalation.step), ladder.next_at_ms(escalation.step - 1)) {
            (Some(next), Some(this)) => Some(next.saturating_sub(this)),
            _ => None,
        };
        stored.next_step_at_ms = distance.map(|ms| age + ms);
    }

    /// A new revision: audit row, alert row, outbox row.
    pub(super) fn revise(
        &self,
        tx: &Transaction,
        stored: &mut Stored,
        revision: Revision,
    ) -> Result<(), LedgerError> {
        let document = &mut stored.document;
        document.rev += 1;
        document.seq = count(tx, "seq")?;
        document.boot = self.boot;
        if revision.substance {
            stored.content_rev = document.rev;
        }
        if revision.sounds {
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
        audit::append(tx, revision.event, &body)?;
        stored.save(tx)?;
        self.enqueue(tx, &stored.document)?;
        self.keep_time(tx)
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

/// What is news: while slices still arrive only type, side and urgency; in the end everything.
#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Provisional { subtypes: &'a [Class], side: Option<Side>, tier: &'a Tier },
    Final { finding: &'a Finding, flags: &'a [Flag], scores: Option<NamedScores>, instances: usize },
}

/// Number of the form of [`Content`]. A new one costs nothing but a look: what a verdict says again in the new form is
/// compared with the document itself.
const CONTENT: u32 = 2;

/// Names what is news: a hash that survives a change of the program.
fn content(verdict: &Verdict) -> String {
    let content = match (&verdict.disposition, verdict.stage) {
        (Disposition::Suspected(f), Stage::Provisional) => {
            Content::Provisional { subtypes: &f.subtypes, side: f.side, tier: &f.tier }
        }
        (Disposition::Suspected(f), Stage::Final) => Content::Final {
            finding: f,
            flags: &verdict.flags,
            scores: verdict.scores.as_ref().map(NamedScores::from),
            instances: verdict.instances,
        },
        // As it was before there was a number: an open alert has said this once, whatever program said it.
        (other, _) => return hex(&Sha256::digest(other.why().map_or("", |why| why.code()))),
    };
    let text = serde_json::to_string(&(CONTENT, content)).unwrap_or_default();
    hex(&Sha256::digest(text))
}

#[cfg(test)]
mod tests;
