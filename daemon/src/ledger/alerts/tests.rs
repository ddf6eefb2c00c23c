//! The chain as scripts of events on a clock that the test holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::super::Record;
use super::super::outbox::REFUSED_MIN_MS;
use super::technical::ADDENDA_MAX;
use super::*;
use crate::alert::inbound::{
    ActionCode, ActionMessage, ActionResult, Opinion, ReceiptMessage, ReceiptStage, Reply, Verb,
};
use crate::alert::ladder::{EVERYONE, Ladder};
use crate::alert::lifecycle::tests::verdict;
use crate::config::Site;
use crate::dicom::SeriesUid;

const NURSE: Speaker = Speaker { station: "ward-3", role: "nurse" };
const ENGINEER: Speaker = Speaker { station: "it-2", role: "engineer" };
const PHYSICIAN: Speaker = Speaker { station: "on-call", role: "physician" };

/// A ledger and the clocks around it.
struct House {
    dir: tempfile::TempDir,
    wall_ms: Arc<AtomicU64>,
    boot_ms: Arc<AtomicU64>,
    synced: Arc<AtomicBool>,
    ledger: Ledger,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (wall_ms, boot_ms) =
            (Arc::new(AtomicU64::new(1_700_000_000_000)), Arc::new(AtomicU64::new(5_000)));
        let synced = Arc::new(AtomicBool::new(true));
        let ledger = Self::open(&dir, &wall_ms, &boot_ms, &synced, "boot-1");
        House { dir, wall_ms, boot_ms, synced, ledger }
    }

    fn open(
        dir: &tempfile::TempDir,
        wall: &Arc<AtomicU64>,
        boot: &Arc<AtomicU64>,
        synced: &Arc<AtomicBool>,
        boot_id: &str,
    ) -> Ledger {
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        let (wall, boot, synced) = (wall.clone(), boot.clone(), synced.clone());
        let clock = clock::Source::scripted(move || clock::Reading {
            wall_ms: wall.load(Ordering::Relaxed),
            boot_ms: boot.load(Ordering::Relaxed),
            synced: Some(synced.load(Ordering::Relaxed)),
        });
        Ledger::open_with(dir.path(), &site, Policy::default(), clock, boot_id.into()).unwrap()
    }

    /// The machine was off for a while; its monotonic clock begins anew.
    fn reboot(&mut self, off_ms: u64) {
        self.wall_ms.fetch_add(off_ms, Ordering::Relaxed);
        self.boot_ms.store(100, Ordering::Relaxed);
        self.ledger = Self::open(&self.dir, &self.wall_ms, &self.boot_ms, &self.synced, "boot-2");
    }

    /// Time passes, the broker takes everything at once, and what is due is done each second.
    fn pass_s(&self, seconds: u64) {
        for _ in 0..seconds {
            self.wall_ms.fetch_add(1000, Ordering::Relaxed);
            self.boot_ms.fetch_add(1000, Ordering::Relaxed);
            self.ledger.tick().unwrap();
            self.drain();
        }
    }

    fn drain(&self) -> Vec<Alert> {
        let mut sent = Vec::new();
        while let Some(row) = self.ledger.outbox_next().unwrap() {
            if row.alert_id.is_some() && !row.payload.is_empty() {
                sent.push(serde_json::from_str(&self.ledger.stamp(&row).unwrap()).unwrap());
            }
            self.ledger.outbox_done(row.seq).unwrap();
        }
        sent
    }

    fn raise(&self) -> String {
        self.record(1, Stage::Final, Some(0.9)).unwrap().0
    }

    fn record(&self, n: u8, stage: Stage, p: Option<f32>) -> Option<(String, u64)> {
        let record = Record { decided_wall_ms: self.wall_ms.load(Ordering::Relaxed), ..Record::default() };
        self.ledger.record(&verdict(n, stage, p), &record).unwrap().alert
    }

    fn now(&self, id: &str) -> Alert {
        self.ledger.change(|tx| Ok(stored_by_id(tx, id)?.unwrap().document)).unwrap()
    }

    fn technical(&self, code: &str) -> Option<Alert> {
        self.ledger.change(|tx| Ok(stored(tx, &format!("technical:{code}"))?.map(|s| s.document))).unwrap()
    }

    fn heard(&self, speaker: Speaker, id: &str, stage: ReceiptStage) -> Heard {
        let rev = self.now(id).rev;
        let receipt = ReceiptMessage { schema: "ichd.receipt/1".into(), alert_id: id.into(), rev, stage };
        self.ledger.receipt(speaker, &receipt).unwrap()
    }

    fn act(&self, id: &str, verb: Verb, user: &str, action_id: &str) -> Reply {
        self.ledger.act(NURSE, &self.action(id, verb, user, action_id), true).unwrap()
    }

    fn action(&self, id: &str, verb: Verb, user: &str, action_id: &str) -> ActionMessage {
        ActionMessage {
            schema: "ichd.action/1".into(),
            action_id: action_id.into(),
            alert_id: id.into(),
            rev: self.now(id).rev,
            verb,
            user: user.into(),
            reason: None,
            feedback: (verb == Verb::Feedback).then_some(Opinion::Right),
            expires_at: None,
        }
    }
}

#[test]
fn three_closures_are_never_confused() {
    let house = House::new();
    let id = house.raise();
    assert_eq!(house.drain().len(), 1, "the broker has it");
    assert_eq!(house.now(&id).state, AlertState::Raised, "a PUBACK is no delivery");
    assert_eq!(house.heard(NURSE, &id, ReceiptStage::Received), Heard::Delivered);
    assert_eq!(house.now(&id).state, AlertState::Delivered);
    house.pass_s(125);
    assert_eq!(house.now(&id).state, AlertState::Escalated, "a receipt is no acknowledgement");
    assert_eq!(house.act(&id, Verb::Ack, "Ann", "action-1").result, ActionResult::Accepted);
    house.pass_s(700);
    let alert = house.now(&id);
    assert_eq!(
        (alert.state, alert.escalation.step),
        (AlertState::Acknowledged, 1),
        "a person ends escalation"
    );
    assert_eq!(house.ledger.open_alert_count().unwrap(), 1, "and it stays open until it is resolved");
}

#[test]
fn nobody_listening_is_said_within_ten_seconds_and_taken_back_when_somebody_does() {
    let house = House::new();
    let id = house.raise();
    house.drain();
    house.pass_s(9);
    assert!(house.technical("nobody_listening").is_none());
    house.pass_s(2);
    let alert = house.now(&id);
    assert!(alert.escalation.roles.contains(&"charge_nurse".to_owned()), "{:?}", alert.escalation);
    assert_eq!(alert.sound_rev, alert.rev, "it sounds again");
    assert!(house.technical("nobody_listening").unwrap().state.is_open());
    house.heard(NURSE, &id, ReceiptStage::Displayed);
    assert_eq!(house.technical("nobody_listening").unwrap().state, AlertState::Resolved);
}

#[test]
fn a_screen_of_somebody_who_was_not_called_is_nobody_listening() {
    let house = House::new();
    let id = house.raise();
    house.drain();
    assert_eq!(house.heard(ENGINEER, &id, ReceiptStage::Sounded), Heard::Delivered);
    house.pass_s(11);
    assert_eq!(
        house.now(&id).escalation.step,
        1,
        "the next people are called after ten seconds, not after two minutes"
    );
    assert!(house.technical("nobody_listening").unwrap().state.is_open());
    house.heard(ENGINEER, &id, ReceiptStage::Sounded);
    assert!(house.technical("nobody_listening").unwrap().state.is_open(), "still");
    house.heard(Speaker { station: "desk", role: "charge_nurse" }, &id, ReceiptStage::Received);
    assert_eq!(house.technical("nobody_listening").unwrap().state, AlertState::Resolved);
}

#[test]
fn what_is_raised_again_has_its_ten_seconds_again() {
    let house = House::new();
    let id = house.raise();
    house.heard(NURSE, &id, ReceiptStage::Displayed);
    house.pass_s(60);
    house.record(1, Stage::Final, None);
    house.pass_s(60);
    house.record(1, Stage::Final, Some(0.9));
    house.pass_s(9);
    assert!(house.technical("nobody_listening").is_none(), "two minutes old, and said nine seconds ago");
    house.pass_s(2);
    assert!(house.technical("nobody_listening").is_some());
}

#[test]
fn who_has_it_and_needs_more_people_has_them_called() {
    let house = House::new();
    let id = house.raise();
    house.heard(NURSE, &id, ReceiptStage::Displayed);
    house.act(&id, Verb::Ack, "Ann", "action-1");
    house.drain();
    assert_eq!(house.act(&id, Verb::Escalate, "Ann", "action-2").code, ActionCode::Ok);
    let told = house.drain().pop().unwrap();
    assert_eq!(
        (told.state, told.ack.as_ref()),
        (AlertState::Escalated, None),
        "an acknowledged alert wakes nobody"
    );
    assert_eq!(told.claimed_by.as_ref().map(|c| c.user.as_str()), Some("Ann"));
    assert_eq!((told.sound_rev, told.escalation.step), (told.rev, 1));
    assert!(told.escalation.next_in_ms.is_some(), "and the ladder goes on from there");
    house.pass_s(181);
    assert!(house.now(&id).escalation.roles.contains(&"physician".to_owned()));
    let action = house.action(&id, Verb::Ack, "Dr Wu", "action-3");
    assert_eq!(house.ledger.act(PHYSICIAN, &action, true).unwrap().code, ActionCode::Ok);
    assert_eq!((house.now(&id).state, house.now(&id).claimed_by), (AlertState::Acknowledged, None));
}

#[test]
fn trouble_is_for_everybody_however_often_more_people_are_asked_for() {
    let house = House::new();
    house.ledger.raise_technical("proof_failed", "the chain is broken: broker").unwrap();
    let id = house.technical("proof_failed").unwrap().alert_id;
    house.act(&id, Verb::Escalate, "Ann", "action-1");
    assert_eq!(house.now(&id).escalation.roles, [EVERYONE]);
}

#[test]
fn what_was_closed_of_late_is_said_again_to_a_broker_that_may_have_forgotten_it() {
    let house = House::new();
    let (withdrawn, before) = (house.raise(), house.drain().len());
    house.record(1, Stage::Final, None);
    assert_eq!((before, house.drain().len()), (1, 1));
    house.ledger.requeue_alerts().unwrap();
    let again = house.drain();
    assert_eq!(again.len(), 1);
    assert_eq!((&again[0].alert_id, again[0].rev, again[0].state), (&withdrawn, 2, AlertState::Withdrawn));
    house.boot_ms.fetch_add(3_601_000, Ordering::Relaxed);
    house.ledger.requeue_alerts().unwrap();
    assert!(house.drain().is_empty(), "the broker itself has let go of it by now");
    // A proof of life that is over is taken away again, and looks like none.
    let proof = house.ledger.begin_proof("1.2.4").unwrap();
    let mut v = verdict(1, Stage::Final, Some(0.9));
    v.study = crate::dicom::StudyUid::parse("1.2.4").unwrap();
    v.series = SeriesUid::parse("1.2.4.1").unwrap();
    house.ledger.record(&v, &Record::default()).unwrap();
    house.ledger.end_proof(proof, None).unwrap();
    house.drain();
    house.ledger.requeue_alerts().unwrap();
    let row = house.ledger.outbox_next().unwrap().unwrap();
    assert_eq!((row.payload.as_str(), row.retain), ("", true));
    house.ledger.outbox_done(row.seq).unwrap();
    assert_eq!(house.ledger.outbox_next().unwrap(), None);
}

#[test]
fn of_two_series_the_complete_one_speaks_when_the_other_could_not_be_read() {
    let house = House::new();
    let id = house.record(1, Stage::Provisional, Some(0.9)).unwrap().0;
    let mut thin = verdict(1, Stage::Final, None);
    thin.disposition = Disposition::NotAnalysed(crate::decide::Why::NotChosen);
    house.ledger.record(&thin, &Record::default()).unwrap().alert.expect("it is said");
    assert!(house.record(2, Stage::Final, Some(0.8)).is_some(), "and so is the confirmation");
    let alert = house.now(&id);
    assert_eq!((alert.stage, alert.finding.volume_ml, alert.quality.ok), (Stage::Final, Some(0.8), true));
    assert_eq!(house.record(3, Stage::Provisional, Some(0.95)), None, "no look makes it provisional again");
}

#[test]
fn an_open_alert_of_an_older_program_is_no_news() {
    let house = House::new();
    house.raise();
    let older = |tx: &Transaction| tx.execute("UPDATE alerts SET content = '00'", []).map_err(doing("test"));
    house.ledger.change(older).unwrap();
    assert_eq!(house.record(1, Stage::Final, Some(0.9)), None);
    assert!(house.record(1, Stage::Final, Some(0.95)).is_some());
}

#[test]
fn what_was_taken_back_and_is_suspected_again_says_what_is_suspected_now() {
    let house = House::new();
    let id = house.raise();
    house.act(&id, Verb::Claim, "Ann", "action-1");
    house.record(1, Stage::Final, None);
    house.record(1, Stage::Provisional, Some(0.7)).unwrap();
    let alert = house.now(&id);
    assert_eq!((alert.state, alert.stage), (AlertState::Raised, Stage::Provisional));
    assert_eq!((alert.finding.volume_ml, alert.claimed_by), (Some(0.7), None));
    let mut failed = verdict(1, Stage::Final, None);
    failed.disposition = Disposition::NotAnalysed(crate::decide::Why::Crashed);
    assert!(
        house.ledger.record(&failed, &Record::default()).unwrap().alert.is_some(),
        "nor is a failure hidden"
    );
}

#[test]
fn the_alert_of_a_proof_that_was_cut_off_is_closed_and_a_late_verdict_raises_none() {
    let mut house = House::new();
    house.ledger.begin_proof("1.2.3").unwrap();
    let id = house.raise();
    house.reboot(60_000);
    let next = house.ledger.begin_proof("1.2.4").unwrap();
    assert_eq!(house.now(&id).state, AlertState::Resolved);
    house.ledger.end_proof(next, Some("reader: no verdict in time")).unwrap();
    let mut v = verdict(1, Stage::Final, Some(0.9));
    v.study = crate::dicom::StudyUid::parse("1.2.4").unwrap();
    v.series = SeriesUid::parse("1.2.4.1").unwrap();
    assert_eq!(house.ledger.record(&v, &Record::default()).unwrap().alert, None);
    // One that nothing ends ends by itself.
    house.ledger.begin_proof("1.2.5").unwrap();
    v.study = crate::dicom::StudyUid::parse("1.2.5").unwrap();
    v.series = SeriesUid::parse("1.2.5.1").unwrap();
    let id = house.ledger.record(&v, &Record::default()).unwrap().alert.unwrap().0;
    house.boot_ms.fetch_add(3_601_000, Ordering::Relaxed);
    house.ledger.tick().unwrap();
    assert_eq!(house.now(&id).state, AlertState::Resolved);
}

#[test]
fn the_second_occasion_of_an_open_trouble_is_said_too() {
    let house = House::new();
    let raise = |text: &str| house.ledger.raise_technical("expired_unacknowledged", text).unwrap();
    raise("alert A");
    let first = house.technical("expired_unacknowledged").unwrap();
    raise("alert A");
    assert_eq!(house.technical("expired_unacknowledged").unwrap().rev, first.rev, "the same is no news");
    house.act(&first.alert_id, Verb::Ack, "Ann", "action-1");
    raise("alert B");
    let second = house.technical("expired_unacknowledged").unwrap();
    assert_eq!(
        (&second.alert_id, second.state, second.ack.as_ref()),
        (&first.alert_id, AlertState::Raised, None)
    );
    assert_eq!(
        (second.technical.unwrap().text.as_str(), second.addendum),
        ("alert B", vec!["alert A".to_owned()])
    );
    assert_eq!(second.sound_rev, second.rev);
    for n in 0..100 {
        raise(&format!("alert {n}"));
    }
    assert_eq!(house.technical("expired_unacknowledged").unwrap().addendum.len(), ADDENDA_MAX);
}

#[test]
fn a_database_that_fails_says_so_until_it_can_be_written() {
    let house = House::new();
    // As on a full disk: a transaction begins, and no write in it succeeds.
    let sql = |sql| house.ledger.lock().execute_batch(sql).unwrap();
    assert!(!house.ledger.is_failing());
    sql(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON main.settings BEGIN SELECT RAISE(ABORT, 'disk is full'); END",
    );
    assert!(house.ledger.raise_technical("proof_failed", "x").is_err());
    assert!(house.ledger.is_failing());
    assert!(house.ledger.tick().is_err(), "that nothing is due is no recovery");
    assert!(house.ledger.is_failing());
    sql("DROP TRIGGER full");
    house.ledger.tick().unwrap();
    assert!(!house.ledger.is_failing());
}

#[test]
fn the_age_of_an_alert_goes_on_over_a_restart_whatever_the_wall_clock_says() {
    let mut house = House::new();
    let id = house.raise();
    house.boot_ms.fetch_add(600_000, Ordering::Relaxed);
    house.wall_ms.fetch_sub(86_400_000, Ordering::Relaxed);
    house.ledger.change(|tx| house.ledger.keep_time(tx)).unwrap();
    house.reboot(60_000);
    house.ledger.requeue_alerts().unwrap();
    let said = house.drain().into_iter().find(|a| a.alert_id == id).unwrap();
    assert_eq!(said.age_ms, 660_000, "ten minutes and the minute it was off");
}

#[test]
fn a_silence_ends_by_elapsed_time_and_says_so_by_the_clock_of_now() {
    let house = House::new();
    let id = house.raise();
    house.ledger.silence("silence", "Ann", "scanner test", 10).unwrap();
    house.wall_ms.fetch_sub(3_600_000, Ordering::Relaxed);
    let muted = house.drain().into_iter().find(|a| a.alert_id == id).unwrap();
    let until = clock::rfc3339(house.wall_ms.load(Ordering::Relaxed) + 600_000);
    assert_eq!(muted.escalation.muted_until, Some(until));
}

#[test]
fn an_alert_goes_out_again_until_every_role_told_has_a_receipt() {
    let house = House::new();
    let id = house.raise();
    house.drain();
    let mut sent = 0;
    for _ in 0..60 {
        house.wall_ms.fetch_add(1000, Ordering::Relaxed);
        house.boot_ms.fetch_add(1000, Ordering::Relaxed);
        house.ledger.tick().unwrap();
        sent += house.drain().iter().filter(|a| a.alert_id == id).count();
    }
    assert!(sent >= 4, "sent again {sent} times in a minute");
    for role in ["nurse", "charge_nurse", "phone"] {
        house.heard(Speaker { station: role, role }, &id, ReceiptStage::Displayed);
    }
    house.drain();
    let rev = house.now(&id).rev;
    house.pass_s(55);
    assert_eq!((house.now(&id).rev, house.drain().len()), (rev, 0), "everybody told has it");
}

#[test]
fn a_restart_and_a_clock_that_jumps_neither_stop_nor_speed_up_the_ladder() {
    let mut house = House::new();
    let id = house.raise();
    house.heard(NURSE, &id, ReceiptStage::Displayed);
    house.pass_s(60);
    house.wall_ms.fetch_add(3_600_000, Ordering::Relaxed);
    house.pass_s(30);
    assert_eq!(house.now(&id).escalation.step, 0, "an hour forward is no hour");
    house.wall_ms.fetch_sub(7_200_000, Ordering::Relaxed);
    house.pass_s(31);
    assert_eq!(house.now(&id).escalation.step, 1, "nor does an hour back stop it");
    house.reboot(240_000);
    house.pass_s(1);
    assert_eq!(house.now(&id).escalation.step, 2, "the time it was off counts");
}

#[test]
fn a_day_without_a_broker_expires_nothing() {
    let house = House::new();
    let ids: Vec<String> = (1..=200)
        .map(|n| {
            let mut v = verdict(1, Stage::Final, Some(0.9));
            v.study = crate::dicom::StudyUid::parse(&format!("1.2.9.{n}")).unwrap();
            v.series = SeriesUid::parse(&format!("1.2.9.{n}.1")).unwrap();
            house.ledger.record(&v, &Record::default()).unwrap().alert.unwrap().0
        })
        .collect();
    for _ in 0..48 {
        house.wall_ms.fetch_add(1_800_000, Ordering::Relaxed);
        house.boot_ms.fetch_add(1_800_000, Ordering::Relaxed);
        house.ledger.tick().unwrap();
    }
    house.ledger.requeue_alerts().unwrap();
    let sent = house.drain();
    for id in &ids {
        let alert = sent.iter().rev().find(|a| a.alert_id == *id).unwrap();
        assert!(alert.state.is_open() && alert.age_ms >= 86_000_000, "{:?} {}", alert.state, alert.age_ms);
    }
    let findings = sent.iter().filter(|a| a.kind == Kind::Finding);
    let refs: BTreeSet<&str> = findings.map(|a| a.subject.r#ref.as_str()).collect();
    assert_eq!(refs.len(), ids.len(), "no two open alerts share a spoken code");
    assert!(sent.iter().any(|a| a.group.is_some()), "a storm is grouped, not dropped");
}

#[test]
fn what_nobody_acknowledged_expires_aloud() {
    let house = House::new();
    let id = house.raise();
    house.heard(NURSE, &id, ReceiptStage::Displayed);
    for _ in 0..13 {
        house.wall_ms.fetch_add(3_600_000, Ordering::Relaxed);
        house.boot_ms.fetch_add(3_600_000, Ordering::Relaxed);
        house.ledger.tick().unwrap();
    }
    assert_eq!(house.now(&id).state, AlertState::Expired);
    assert!(house.technical("expired_unacknowledged").unwrap().state.is_open());
}

#[test]
fn an_action_has_one_effect_and_one_answer() {
    let house = House::new();
    let id = house.raise();
    let first = house.act(&id, Verb::Ack, "Ann", "action-1");
    let rev = house.now(&id).rev;
    let again = house.act(&id, Verb::Ack, "Ann", "action-1");
    assert_eq!((first.result, again.result), (ActionResult::Accepted, ActionResult::Duplicate));
    assert_eq!((again.rev, house.now(&id).rev), (first.rev, rev));
    assert_eq!(house.act(&id, Verb::Ack, "Bob", "action-2").code, ActionCode::Taken);
    // Another station that replays somebody's action has no part in it.
    let thief = Speaker { station: "ward-9", role: "nurse" };
    let replay = house.ledger.act(thief, &house.action(&id, Verb::Resolve, "Ann", "action-1"), true).unwrap();
    assert_eq!(replay.code, ActionCode::BadRequest);
    assert_eq!(house.now(&id).state, AlertState::Acknowledged);
}

#[test]
fn a_forged_or_stale_action_does_nothing() {
    let house = House::new();
    let id = house.raise();
    let action = house.action(&id, Verb::Ack, "Mallory", "action-1");
    assert_eq!(house.ledger.act(NURSE, &action, false).unwrap().code, ActionCode::NotAllowed);
    assert_eq!(
        house.ledger.act(NURSE, &ActionMessage { rev: 99, ..action.clone() }, true).unwrap().code,
        ActionCode::BadRequest
    );
    house.record(1, Stage::Final, None);
    house.record(1, Stage::Final, Some(0.95));
    let stale = ActionMessage { action_id: "action-3".into(), rev: 1, ..action };
    assert_eq!(house.ledger.act(NURSE, &stale, true).unwrap().code, ActionCode::StaleRev);
    assert_eq!(house.now(&id).state, AlertState::Raised);
}

#[test]
fn a_late_action_is_void_unless_the_box_itself_has_lost_the_time() {
    let house = House::new();
    let id = house.raise();
    let expires_at = Some(clock::rfc3339(house.wall_ms.load(Ordering::Relaxed) + 300_000));
    let action =
        |n: &str| ActionMessage { expires_at: expires_at.clone(), ..house.action(&id, Verb::Ack, "Ann", n) };
    // Recorded by somebody, and played back an hour later.
    let recorded = action("action-1");
    house.wall_ms.fetch_add(3_600_000, Ordering::Relaxed);
    assert_eq!(house.ledger.act(NURSE, &recorded, true).unwrap().code, ActionCode::Expired);
    assert_eq!(house.now(&id).state, AlertState::Raised);
    // Without a synchronised clock nobody is refused for the box's own mistake, and documents say what times are worth.
    house.synced.store(false, Ordering::Relaxed);
    assert_eq!(house.ledger.act(NURSE, &action("action-2"), true).unwrap().code, ActionCode::Ok);
    let said = house.drain().pop().unwrap();
    assert_eq!((said.clock.synced, said.state), (Some(false), AlertState::Acknowledged));
    assert!(said.age_ms < 1_000, "age is elapsed time, whatever the clock says: {}", said.age_ms);
}

#[test]
fn resolving_purges_the_retained_document() {
    let house = House::new();
    let id = house.raise();
    house.drain();
    house.act(&id, Verb::Resolve, "Ann", "action-1");
    let last = house.ledger.outbox_next().unwrap().unwrap();
    assert!(last.payload.contains("\"state\":\"resolved\""));
    house.ledger.outbox_done(last.seq).unwrap();
    let row = house.ledger.outbox_next().unwrap().unwrap();
    assert_eq!((row.payload.as_str(), row.retain, row.topic == last.topic), ("", true, true));
    assert_eq!(house.act(&id, Verb::Feedback, "Ann", "action-2").result, ActionResult::Accepted);
    let week = house.ledger.experience(7).unwrap();
    assert_eq!((week.right, week.positive_predictive_value), (1, Some(1.0)));
}

#[test]
fn a_silence_mutes_the_sound_and_never_the_record() {
    let house = House::new();
    let id = house.raise();
    house.drain();
    house.ledger.silence("silence", "Ann", "scanner test", 10).unwrap();
    let muted = house.drain().into_iter().find(|a| a.alert_id == id).unwrap();
    assert!(muted.escalation.muted_until.is_some() && muted.state == AlertState::Raised);
    house.pass_s(130);
    assert!(house.now(&id).escalation.step > 0, "escalation goes on");
    house.pass_s(600);
    assert_eq!(house.ledger.silenced().unwrap(), None);
}

#[test]
fn one_refused_document_holds_up_nobody() {
    let house = House::new();
    house.raise();
    let refused = house.ledger.outbox_next().unwrap().unwrap();
    house.ledger.outbox_refused(refused.seq).unwrap();
    let next = house.ledger.outbox_next().unwrap().unwrap();
    assert_ne!(next.seq, refused.seq, "the disposition behind it goes first");
    house.ledger.outbox_done(next.seq).unwrap();
    assert_eq!(house.ledger.outbox_next().unwrap(), None);
    house.boot_ms.fetch_add(REFUSED_MIN_MS, Ordering::Relaxed);
    assert_eq!(house.ledger.outbox_next().unwrap().unwrap().seq, refused.seq, "and is tried again");
}

#[test]
fn a_more_urgent_series_is_heard_and_what_it_said_goes_with_it() {
    let house = House::new();
    let mut routine = verdict(1, Stage::Final, Some(0.6));
    let Disposition::Suspected(finding) = &mut routine.disposition else { unreachable!() };
    finding.tier.priority = 2;
    let id = house.ledger.record(&routine, &Record::default()).unwrap().alert.unwrap().0;
    house.act(&id, Verb::Ack, "Ann", "action-1");
    house.record(2, Stage::Final, Some(0.9)).unwrap();
    let alert = house.now(&id);
    assert_eq!(
        (alert.priority, alert.state, alert.ack),
        (1, AlertState::Raised, None),
        "sounds again: priority rose"
    );
    house.record(2, Stage::Final, None).unwrap();
    let alert = house.now(&id);
    assert_eq!(
        (alert.priority, alert.finding.volume_ml),
        (2, Some(0.6)),
        "the refuted finding is gone at once"
    );
    assert_eq!(alert.state, AlertState::Raised);
}

#[test]
fn what_was_done_with_comes_back_only_if_it_is_more_urgent() {
    let house = House::new();
    let mut routine = verdict(1, Stage::Final, Some(0.6));
    let Disposition::Suspected(finding) = &mut routine.disposition else { unreachable!() };
    finding.tier.priority = 2;
    let id = house.ledger.record(&routine, &Record::default()).unwrap().alert.unwrap().0;
    house.act(&id, Verb::Resolve, "Ann", "action-1");
    routine.instances += 1;
    house.ledger.record(&routine, &Record::default()).unwrap();
    assert_eq!(house.now(&id).state, AlertState::Resolved, "a late slice that changes nothing of weight");
    house.record(1, Stage::Final, Some(0.9)).unwrap();
    assert_eq!(house.now(&id).state, AlertState::Raised);
}

#[test]
fn a_late_slice_takes_nothing_back_by_a_hair() {
    let house = House::new();
    let id = house.raise();
    let mut below = verdict(1, Stage::Final, None);
    below.scores = Some(crate::infer::Scores([0.24; 6]));
    let record = |stands_above| Record { stands_above, ..Record::default() };
    assert_eq!(house.ledger.record(&below, &record(Some(0.2))).unwrap().alert, None);
    assert_eq!(house.now(&id).state, AlertState::Raised);
    assert!(house.ledger.record(&below, &record(Some(0.25))).unwrap().alert.is_some());
    assert_eq!(house.now(&id).state, AlertState::Withdrawn);
}

#[test]
fn a_proof_of_life_is_a_test_and_never_a_patient() {
    let house = House::new();
    let proof = house.ledger.begin_proof("1.2.3").unwrap();
    let id = house.raise();
    assert_eq!(house.now(&id).kind, Kind::Test);
    assert_eq!(house.ledger.open_alert_count().unwrap(), 0);
    let sent = house.drain();
    assert_eq!(sent.len(), 1);
    house.ledger.proof_at_broker(&id).unwrap();
    house.heard(NURSE, &id, ReceiptStage::Received);
    use super::super::proofs::Reached;
    assert_eq!(house.ledger.proof(proof).unwrap().unwrap().reached, Reached::Station);
    let ended = house.ledger.end_proof(proof, None).unwrap().unwrap();
    assert_eq!(ended.failure, None);
    house.pass_s(5);
    assert_eq!(house.ledger.last_proof_age_ms().unwrap(), Some(5_000));
    assert!(!house.now(&id).state.is_open());
}

#[test]
fn the_records_say_who_was_told_and_who_took_it() {
    let house = House::new();
    let id = house.raise();
    house.heard(NURSE, &id, ReceiptStage::Received);
    house.pass_s(1_200);
    let step = house.now(&id).escalation.step;
    assert!(step > 0);
    house.heard(NURSE, &id, ReceiptStage::Displayed);
    let at = |stage| house.drain().pop().unwrap().receipts.into_iter().find(|r| r.stage == stage).unwrap().at;
    let decline =
        ActionMessage { reason: Some("busy".into()), ..house.action(&id, Verb::Decline, "Cao", "action-0") };
    house.ledger.act(NURSE, &decline, true).unwrap();
    let displayed = at(ReceiptStage::Displayed);
    assert_eq!(
        displayed,
        clock::rfc3339(house.wall_ms.load(Ordering::Relaxed)),
        "when somebody came to look"
    );
    house.act(&id, Verb::Ack, "Ann, \"RN\"", "action-1");
    house.act(&id, Verb::Ack, "=Bob", "action-2");
    house.ledger.raise_technical("disk_low", "no patient in it").unwrap();
    house.record(1, Stage::Final, None);
    let records = super::super::records::list(house.dir.path()).unwrap();
    let said: Vec<_> =
        records.iter().map(|r| (r.event.as_str(), r.station.as_str(), r.detail.as_str())).collect();
    assert_eq!(said.len(), 7 + step as usize + 1, "{said:?}");
    for line in [
        ("raised", "", "final"),
        ("told", "ward-3", "received"),
        ("told", "ward-3", "displayed"),
        ("escalated", "", "nurse charge_nurse phone physician"),
        ("escalated", "", "nurse charge_nurse phone physician everyone"),
        ("decline", "ward-3", "ok: busy"),
        ("ack", "ward-3", "ok"),
        ("ack", "ward-3", "taken"),
        ("withdrawn", "", "final"),
    ] {
        assert!(said.contains(&line), "{line:?} in {said:?}");
    }
    let csv = super::super::records::csv(&records);
    assert!(csv.contains("\"Ann, \"\"RN\"\"\"") && csv.contains("'=Bob") && !csv.contains("1.2.3"), "{csv}");
}

#[test]
fn a_shift_may_cross_midnight() {
    let shift = Shift { from_min: 22 * 60, to_min: 7 * 60, utc_offset_min: 480, ladder: Ladder::default() };
    let at = |h: u64, m: u64| ((h + 24 - 8) % 24 * 60 + m) * 60_000;
    assert!(
        shift.holds(at(23, 0))
            && shift.holds(at(6, 59))
            && !shift.holds(at(7, 0))
            && !shift.holds(at(21, 59))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever verdicts, receipts, actions, ticks and restarts come in whatever order: revisions only rise, the audit
    /// chain holds, and an alert leaves "open" only by a person, a withdrawal or its time.
    #[test]
    fn any_night_ends_well(script in prop::collection::vec((0u8..8, 1u8..3, any::<bool>()), 1..25)) {
        let mut house = House::new();
        let mut id = None;
        let (mut rev, mut open) = (0, false);
        for (n, (what, series, flag)) in script.into_iter().enumerate() {
            match (what, &id) {
                (0 | 1, _) => {
                    let stage = if what == 1 || flag { Stage::Final } else { Stage::Provisional };
                    if let Some((raised, _)) = house.record(series, stage, (what == 0 || flag).then_some(0.9)) {
                        prop_assert_eq!(id.get_or_insert(raised.clone()), &raised);
                    }
                }
                (2, Some(id)) => drop(house.heard(NURSE, id, if flag { ReceiptStage::Displayed } else { ReceiptStage::Received })),
                (3, Some(id)) => drop(house.act(id, if flag { Verb::Ack } else { Verb::Claim }, "Ann", &format!("action-{n}"))),
                (4, Some(id)) => drop(house.act(id, if flag { Verb::Escalate } else { Verb::Release }, "Bob", &format!("action-{n}"))),
                (5, _) => house.pass_s(if flag { 3 } else { 40 }),
                (6, _) => house.reboot(if flag { 5_000 } else { 400_000 }),
                (7, Some(id)) if flag => drop(house.act(id, Verb::Resolve, "Cao", &format!("action-{n}"))),
                _ => drop(house.drain()),
            }
            if let Some(id) = &id {
                let alert = house.now(id);
                prop_assert!(alert.rev >= rev);
                rev = alert.rev;
                prop_assert_eq!(alert.state == AlertState::Acknowledged, alert.ack.is_some() && alert.state.is_open());
                if std::mem::replace(&mut open, alert.state.is_open()) && !open {
                    // No script is as long as an alert lives.
                    let by = match (what, flag) { (1, false) => AlertState::Withdrawn, (7, true) => AlertState::Resolved, _ => AlertState::Raised };
                    prop_assert_eq!(alert.state, by);
                }
            }
        }
        prop_assert!(audit::verify(house.dir.path(), None).unwrap().is_ok());
    }
}
