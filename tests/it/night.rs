//! The main job on real peers: what a night shift expects.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, key, model, storescu, wait_until};

#[test]
fn a_bleed_sent_by_storescu_becomes_an_alert_at_mosquitto_sub() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let alert = listener.next("ichd.alert/1");
    assert!(alert["finding"]["subtypes"].as_array().unwrap().contains(&"intraparenchymal".into()), "{alert}");
    assert_eq!(alert["finding"]["side"], "left", "{alert}");
    let study = listener.next("ichd.study/1");
    assert_eq!(
        (&study["disposition"], &study["study_ref"]),
        (&"suspected".into(), &alert["study"]["study_ref"])
    );
    let uid = appliance.dispositions(1)[0]["study_uid"].as_str().unwrap().to_owned();
    for (topic, body) in listener.drain() {
        assert!(!topic.contains(&uid) && !body.to_string().contains(&uid), "a UID on the wire: {topic}");
    }
}

#[test]
fn a_quiet_head_raises_no_alert_and_still_has_its_disposition() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    assert_eq!(listener.next("ichd.study/1")["disposition"], "not_suspected");
    assert!(listener.drain().iter().all(|(topic, _)| !topic.contains("/alert/")));
    assert_eq!(appliance.dispositions(1)[0]["disposition"], "not_suspected");
}

#[test]
fn any_order_over_any_number_of_associations_gives_the_same_verdict_as_analyze_bit_for_bit() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let mut files = Phantom::bleed().files.clone();
    files.reverse();
    files.swap(3, 20);
    for chunk in files.chunks(7) {
        assert!(storescu(appliance.port, chunk, &[]).0);
    }
    wait_until("the whole series is judged", || {
        appliance.ledger().iter().any(|r| r["instances"] == 30 && r["stage"] == "final")
    });
    let verdict = appliance.dispositions(1)[0]["verdict"].as_str().unwrap().to_owned();
    let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["analyze", "--verdict", "--model"])
        .arg(model())
        .arg("--key")
        .arg(key())
        .args(&Phantom::bleed().files)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), verdict);
}

/// Copies with one attribute changed, and nothing else.
fn changed(files: &[PathBuf], change: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let copy = |file: &PathBuf| {
        let copy = dir.path().join(file.file_name().unwrap());
        std::fs::copy(file, &copy).unwrap();
        let status = Command::new("dcmodify").args(["-nb", "-m", change]).arg(&copy).status();
        assert!(status.expect("dcmtk is needed").success());
        copy
    };
    let copies = files.iter().map(copy).collect();
    (dir, copies)
}

#[test]
fn a_study_that_comes_again_under_another_uid_is_judged_and_alerted_as_another() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    let files = &Phantom::bleed().files;
    assert!(storescu(appliance.port, files, &[]).0);
    appliance.dispositions(1);
    // The console has corrected the patient: a new study, the same series and instances.
    let (_dir, corrected) = changed(files, "0020,000d=1.2.826.0.1.3680043.9999.1");
    assert!(storescu(appliance.port, &corrected, &[]).0);
    let rows = appliance.dispositions(2);
    assert!(rows.iter().all(|r| r["disposition"] == "suspected" && r["instances"] == 30), "{rows:?}");
    assert_eq!(rows[0]["series_uid"], rows[1]["series_uid"]);
    assert_ne!(rows[0]["study_uid"], rows[1]["study_uid"]);
    // A restart finds two studies, each as it was read.
    appliance.kill();
    appliance.up();
    wait_until("the spool is walked through", || {
        appliance.log().matches("event=spool_rescanned").count() == 2
    });
    assert!(appliance.log().contains("open=0"), "{}", appliance.log());
    let again = appliance.dispositions(2);
    assert!(again.iter().all(|r| r["revision"] == 0), "{again:?}");
}

#[test]
fn a_conflict_that_comes_after_the_verdict_is_said_in_another_one() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let files = &Phantom::bleed().files;
    assert!(storescu(appliance.port, files, &[]).0);
    let flagged = |row: &Value| row["verdict"].as_str().unwrap().contains("conflicting_duplicate");
    assert!(!flagged(&appliance.dispositions(1)[0]));
    // Reconstructed again under the same UID.
    let (_dir, again) = changed(&files[3..4], "0008,103e=AGAIN");
    assert!(storescu(appliance.port, &again, &[]).0);
    wait_until("the verdict says so", || {
        appliance.ledger().iter().any(|r| r["stage"] == "final" && flagged(r))
    });
    let rows = appliance.dispositions(1);
    assert_eq!((&rows[0]["revision"], &rows[0]["disposition"]), (&1.into(), &"suspected".into()));
}

#[test]
fn broker_outage_delays_but_never_loses_an_alert() {
    let _alone = alone();
    let mut broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    broker.down();
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0, "the scanner must not notice");
    assert_eq!(appliance.dispositions(1)[0]["disposition"], "suspected");
    // Nor does a power cut while the broker is away.
    appliance.kill();
    appliance.up();
    broker.up();
    let first = Listener::on(&broker).next("ichd.alert/1");
    // The broker forgets everything; the open alert is said again under the same identity.
    broker.down();
    broker.up();
    let again = Listener::on(&broker).next("ichd.alert/1");
    assert_eq!((&first["alert_id"], &first["rev"]), (&again["alert_id"], &again["rev"]));
}

#[test]
fn a_late_slice_revises_the_same_alert() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    let files = &Phantom::bleed().files;
    assert!(storescu(appliance.port, &files[..29], &[]).0);
    let mut seen = listener.until("ichd.study/1");
    assert_eq!(seen.last().unwrap()["revision"], 0);
    let n_before = seen.len();
    assert!(storescu(appliance.port, &files[29..], &[]).0);
    seen.extend(listener.until("ichd.study/1"));
    let last = seen.last().unwrap();
    assert_eq!((&last["revision"], &last["instances"]), (&1.into(), &30.into()));
    let alerts = |documents: &[Value]| -> Vec<(String, u64)> {
        let alerts = documents.iter().filter(|d| d["schema"] == "ichd.alert/1");
        alerts.map(|d| (d["alert_id"].as_str().unwrap().to_owned(), d["rev"].as_u64().unwrap())).collect()
    };
    let all = alerts(&seen);
    assert!(all.iter().all(|(id, _)| *id == all[0].0), "one identity: {all:?}");
    assert!(all.windows(2).all(|w| w[0].1 < w[1].1), "revisions rise: {all:?}");
    assert!(!alerts(&seen[n_before..]).is_empty(), "the late slice revised it");
    assert_eq!(appliance.dispositions(1).len(), 1);
}

#[test]
fn a_drain_ends_in_order_and_says_offline() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = Appliance::alerts_to(&broker);
    wait_until("ready on MQTT", || listener.drain().iter().any(|(_, b)| b["state"] == "ready"));
    assert!(appliance.terminate().success(), "{}", appliance.log());
    wait_until("offline on MQTT", || listener.drain().iter().any(|(_, b)| b["state"] == "offline"));
}

#[test]
fn a_daemon_that_dies_is_reported_lost_by_its_will() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = Appliance::alerts_to(&broker);
    wait_until("ready on MQTT", || listener.drain().iter().any(|(_, b)| b["state"] == "ready"));
    appliance.kill();
    wait_until("lost on MQTT", || listener.drain().iter().any(|(_, b)| b["state"] == "lost"));
}

#[test]
fn systemd_is_told_when_the_daemon_is_ready_and_that_every_stage_is_alive() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(crate::peers::PATIENCE)).unwrap();
    let _appliance = Appliance::notifying(&broker, &path);
    let mut told = String::new();
    while !(told.contains("READY=1") && told.contains("WATCHDOG=1")) {
        let mut buffer = [0; 256];
        let n = socket.recv(&mut buffer).unwrap();
        told.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}
