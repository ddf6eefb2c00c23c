//! The chain as scripts of events on a clock that the test holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use proptest::prelude::*;

use super::super::Record;
use super::super::outbox::REFUSED_MIN_MS;
use super::*;
use crate::alert::inbound::{Opinion, ReceiptStage, Verb};
use crate::alert::ladder::Ladder;
use crate::alert::lifecycle::tests::verdict;
use crate::config::Site;
use crate::dicom::SeriesUid;

const NURSE: Speaker = Speaker { station: "ward-3", role: "nurse" };

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
    house.ledger.requeue_open_alerts().unwrap();
    let sent = house.drain();
    for id in &ids {
        let alert = sent.iter().rev().find(|a| a.alert_id == *id).unwrap();
        assert!(alert.state.is_open() && alert.age_ms >= 86_000_000, "{:?} {}", alert.state, alert.age_ms);
    }
    let refs: BTreeSet<&str> = sent.iter().map(|a| a.subject.r#ref.as_str()).collect();
    assert!(refs.len() >= ids.len(), "no two open alerts share a spoken code");
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
    house.heard(NURSE, &id, ReceiptStage::Displayed);
    house.act(&id, Verb::Ack, "Ann, \"RN\"", "action-1");
    house.act(&id, Verb::Ack, "=Bob", "action-2");
    house.ledger.raise_technical("disk_low", "no patient in it").unwrap();
    let records = super::super::records::list(house.dir.path()).unwrap();
    let said: Vec<_> =
        records.iter().map(|r| (r.event.as_str(), r.station.as_str(), r.detail.as_str())).collect();
    assert_eq!(said.len(), 4, "{said:?}");
    for line in [
        ("raised", "", "final"),
        ("told", "ward-3", "displayed"),
        ("ack", "ward-3", "ok"),
        ("ack", "ward-3", "taken"),
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
        let mut rev = 0;
        for (n, (what, series, flag)) in script.into_iter().enumerate() {
            match (what, &id) {
                (0 | 1, _) => {
                    let p = (what == 0 || flag).then_some(0.9);
                    if let Some((raised, _)) = house.record(series, if flag { Stage::Final } else { Stage::Provisional }, p) {
                        prop_assert_eq!(id.get_or_insert(raised.clone()), &raised);
                    }
                }
                (2, Some(id)) => drop(house.heard(NURSE, id, if flag { ReceiptStage::Displayed } else { ReceiptStage::Received })),
                (3, Some(id)) => drop(house.act(id, if flag { Verb::Ack } else { Verb::Claim }, "Ann", &format!("action-{n}"))),
                (4, Some(id)) => drop(house.act(id, if flag { Verb::Escalate } else { Verb::Release }, "Bob", &format!("action-{n}"))),
                (5, _) => house.pass_s(if flag { 3 } else { 40 }),
                (6, _) => house.reboot(if flag { 5_000 } else { 400_000 }),
                _ => drop(house.drain()),
            }
            if let Some(id) = &id {
                let alert = house.now(id);
                prop_assert!(alert.rev >= rev);
                rev = alert.rev;
                prop_assert_eq!(alert.state == AlertState::Acknowledged, alert.ack.is_some() && alert.state.is_open());
            }
        }
        prop_assert!(audit::verify(house.dir.path(), None).unwrap().is_ok());
    }
}
