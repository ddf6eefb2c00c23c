//! The alert chain to its end: a station, a named person, and what happens when nobody is there.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, storescu, wait_until};
use crate::station::Station;

fn ichd(appliance: &Appliance, args: &[&str]) -> (bool, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(args)
        .args(["--json", "--config"])
        .arg(appliance.config())
        .output()
        .unwrap();
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

#[test]
fn an_alert_ends_at_a_named_person_and_every_station_sees_who() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let (ward, desk) = (
        Station::on_shift(broker.port, "ward-3", "nurse"),
        Station::on_shift(broker.port, "desk", "charge_nurse"),
    );
    let mut appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    wait_until("the alert is delivered", || {
        desk.seen(|s| s.alerts.values().any(|a| a["state"] == "delivered" && a["stage"] == "final"))
    });
    let id = desk.seen(|s| s.alerts.keys().next().cloned()).unwrap();
    ward.act(&id, "ack", "Ann", "action-0001");
    wait_until("the other station sees who has it", || desk.seen(|s| s.alerts[&id]["ack"]["user"] == "Ann"));
    wait_until("the answer is there", || ward.seen(|s| s.replies.iter().any(|r| r["result"] == "accepted")));
    desk.act(&id, "ack", "Bob", "action-0002");
    wait_until("one person has it", || desk.seen(|s| s.replies.iter().any(|r| r["code"] == "taken")));
    // A restart forgets nothing of it.
    appliance.kill();
    appliance.up();
    ward.act(&id, "ack", "Ann", "action-0001");
    wait_until("a repetition gets the first answer", || {
        ward.seen(|s| s.replies.iter().any(|r| r["result"] == "duplicate"))
    });
    ward.act(&id, "resolve", "Ann", "action-0003");
    wait_until("the retained document is purged", || desk.seen(|s| s.purged.contains(&id)));
    let late = Listener::on(&broker);
    std::thread::sleep(Duration::from_millis(500));
    assert!(
        late.drain().iter().all(|(topic, _)| !topic.contains("/alert/")),
        "nothing is left for who comes later"
    );
    assert!(desk.seen(|s| s.shown.values().all(|as_new| as_new.len() == 1)), "shown once");
    let receipts = desk.seen(|s| s.alerts[&id]["receipts"].as_array().map_or(0, Vec::len));
    assert_eq!(receipts, 2, "who has it stands in the document");
}

#[test]
fn when_nobody_listens_that_is_said_within_its_limit() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let technical = loop {
        let alert = listener.next("ichd.alert/1");
        if alert["kind"] == "technical" {
            break alert;
        }
    };
    assert_eq!(technical["technical"]["code"], "nobody_listening", "{technical}");
    // By the box's own clock: ten seconds, and not the two minutes of the next step.
    let words = technical["technical"]["text"].as_str().unwrap();
    let after =
        words.strip_suffix(" s").and_then(|w| w.rsplit(' ').next()).and_then(|s| s.parse::<u64>().ok());
    assert!(after.is_some_and(|s| (10..=20).contains(&s)), "{words}");
    let (ready, status) = ichd(&appliance, &["status"]);
    assert!(!ready, "{status}");
    assert!(status["status"]["reasons"].to_string().contains("no_station_ready"), "{status}");
}

#[test]
fn a_proof_of_life_goes_through_the_whole_chain_and_names_the_link_that_is_broken() {
    let _alone = alone();
    let mut broker = Mosquitto::start();
    let station = Station::on_shift(broker.port, "ward-3", "nurse");
    let appliance = Appliance::alerts_to(&broker);
    wait_until("the station is known", || ichd(&appliance, &["status"]).1["stations"][0]["name"] == "ward-3");
    let (proved, answer) = ichd(&appliance, &["alert", "test"]);
    assert!(proved && answer["proof"]["reached"] == "station", "{answer} {}", appliance.log());
    assert!(station.seen(|s| s.alerts.values().any(|a| a["kind"] == "test")));
    wait_until("stations are told how long ago that was", || {
        let heartbeat = &ichd(&appliance, &["status"]).1["heartbeat"];
        heartbeat["last_proof_age_s"].as_u64().is_some_and(|s| s < 60) && heartbeat["open_alerts"] == 0
    });
    assert_eq!(appliance.stored(), 0, "and leaves nothing in the spool");
    station.leave();
    wait_until("the station is gone", || {
        ichd(&appliance, &["status"]).1["stations"]
            .as_array()
            .is_some_and(|s| s.iter().all(|s| s["state"] == "offline"))
    });
    let (proved, answer) = ichd(&appliance, &["alert", "test"]);
    assert!(proved && answer["proof"]["reached"] == "broker", "{answer}");
    broker.down();
    let text = std::fs::read_to_string(appliance.config()).unwrap();
    assert!(text.contains("limit-s = 15"), "{text}");
    let (proved, answer) = ichd(&appliance, &["alert", "test"]);
    assert!(
        !proved && answer["proof"]["failure"].as_str().is_some_and(|f| f.starts_with("broker")),
        "{answer}"
    );
}

#[test]
fn a_silence_has_an_author_and_an_end_and_the_record_goes_on() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let station = Station::on_shift(broker.port, "ward-3", "nurse");
    let appliance = Appliance::alerts_to(&broker);
    let silence = ["alert", "silence", "--minutes", "10", "--author", "Ann", "--reason", "scanner test"];
    assert!(ichd(&appliance, &silence).0);
    wait_until("everybody can see who silenced the alerts", || {
        listener
            .drain()
            .iter()
            .any(|(topic, body)| topic.ends_with("/status") && body["silence"]["author"] == "Ann")
    });
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    wait_until("the alert is there, muted", || {
        station.seen(|s| s.alerts.values().any(|a| a["escalation"]["muted_until"].is_string()))
    });
    assert!(ichd(&appliance, &["alert", "unsilence", "--author", "Ann"]).0);
    wait_until("it may sound again", || {
        station.seen(|s| s.alerts.values().any(|a| a["escalation"]["muted_until"].is_null()))
    });
    wait_until("and that it is over", || {
        let over =
            |(topic, body): &(String, Value)| topic.ends_with("dev/ct-1/status") && body["silence"].is_null();
        listener.drain().iter().any(over)
    });
}

#[test]
fn an_engineers_station_asks_for_ledger_replay_and_proof_and_a_nurses_may_not() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let (bench, ward) = (
        Station::on_shift(broker.port, "bench", "engineer"),
        Station::on_shift(broker.port, "ward-3", "nurse"),
    );
    let appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let uid = appliance.dispositions(1)[0]["series_uid"].as_str().unwrap().to_owned();
    let lines = bench.ask("request-1", "ledger", None)["ledger"].clone();
    assert_eq!(lines.as_array().map(Vec::len), Some(1), "{lines}");
    let line = &lines[0];
    assert_eq!(
        (line["disposition"].as_str(), line["instances"].as_u64()),
        (Some("suspected"), Some(30)),
        "{line}"
    );
    assert!(!lines.to_string().contains(&uid), "no UID on the wire");
    let replayed = bench.ask("request-2", "replay", line["series_ref"].as_str());
    assert_eq!(
        (replayed["code"].as_str(), replayed["replay"]["equal"].as_bool()),
        (Some("ok"), Some(true)),
        "{replayed}"
    );
    let proof = bench.ask("request-3", "proof", None);
    assert_eq!(proof["proof"]["reached"], "station", "{proof}");
    let lines = bench.ask("request-4", "ledger", None)["ledger"].clone();
    assert_eq!(
        (lines[0]["test"].as_bool(), lines[1]["test"].as_bool()),
        (Some(true), Some(false)),
        "{lines}"
    );
    assert_eq!(bench.ask("request-5", "replay", Some("0000"))["code"], "unknown_series");
    for (n, command) in ["ledger", "replay", "proof"].iter().enumerate() {
        assert_eq!(ward.ask(&format!("request-9{n}"), command, None)["code"], "not_allowed");
    }
    assert!(listener.drain().iter().any(|(_, d)| d["schema"] == "ichd.answer/1"), "held against its schema");
}
