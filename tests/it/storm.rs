//! Alerts at full rate while broker and sender are killed every few seconds: none lost, none shown twice.
//!
//! The sender is this very program run again as a child ([`chain`]): the real ledger, outbox, publisher and watch, fed
//! with verdicts, so that fifty studies a second need no fifty scanners. `ICHD_STORM_S` makes it longer than CI's.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ichd::alert::publisher::Publisher;
use ichd::clock;
use ichd::config;
use ichd::decide::{Disposition, Finding, Stage, Tier, Verdict};
use ichd::dicom::{SeriesUid, SopInstanceUid, StudyUid};
use ichd::health::Pulses;
use ichd::infer::{Class, ModelId, Scores};
use ichd::ledger::{Ledger, Record};
use tokio::sync::{Notify, watch};

use crate::peers::{Mosquitto, alone};
use crate::station::Station;

const PER_S: u64 = 50;

fn seconds() -> u64 {
    std::env::var("ICHD_STORM_S").ok().and_then(|s| s.parse().ok()).unwrap_or(12)
}

fn site() -> config::Site {
    toml::from_str("name = \"north\"\ndevice = \"ct-1\"\nprofile = \"assist\"").unwrap()
}

fn verdict(n: u64) -> Verdict {
    let finding = Finding {
        subtypes: vec![Class::Subdural],
        key_sop_uid: SopInstanceUid::parse("1.2.3.4.5").unwrap(),
        key_frame: None,
        slice_range: [3, 9],
        side: None,
        volume_ml: None,
        tier: Tier { name: "urgent".into(), priority: 1 },
    };
    Verdict {
        study: StudyUid::parse(&format!("1.2.9.{n}")).unwrap(),
        series: SeriesUid::parse(&format!("1.2.9.{n}.1")).unwrap(),
        stage: Stage::Final,
        disposition: Disposition::Suspected(finding),
        scores: Some(Scores([0.9; 6])),
        slices: vec![],
        flags: vec![],
        instances: 30,
        model: None,
        input_sha256: "00".into(),
        program: "test".into(),
    }
}

/// The child: raises alerts until it is killed, and writes down the identity of each that is in the ledger.
#[test]
#[ignore = "the sender of the storm, run by it"]
fn chain() {
    let Ok(dir) = std::env::var("ICHD_STORM_DIR") else { return };
    let port = std::env::var("ICHD_STORM_PORT").unwrap().parse().unwrap();
    let dir = std::path::Path::new(&dir);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ledger = Arc::new(Ledger::open(dir, &site()).unwrap());
        let model = ModelId { id: "m".into(), version: "1".into(), sha256: "00".into() };
        let alert = config::Alert { broker_port: port, ..config::Alert::default() };
        let publisher = Publisher::new(&alert, &config::Health::default(), ledger.clone(), model).unwrap();
        let wake = Arc::new(Notify::new());
        let (_keep, shutdown) = watch::channel(false);
        let mut pulses = Pulses::new(clock::now());
        let _links = publisher.spawn(wake.clone(), pulses.register("alert"), shutdown.clone());
        tokio::spawn(ichd::alert::watch::run(
            ledger.clone(),
            wake.clone(),
            pulses.register("watch"),
            shutdown,
        ));
        let mut raised =
            std::fs::OpenOptions::new().create(true).append(true).open(dir.join("raised")).unwrap();
        let record = |n| {
            let record = Record { decided_wall_ms: clock::wall_ms(), ..Record::default() };
            let recorded = tokio::task::block_in_place(|| ledger.record(&verdict(n), &record)).unwrap();
            wake.notify_one();
            recorded.alert
        };
        let mut n = std::fs::read_to_string(dir.join("raised")).unwrap().lines().count() as u64 * 1_000;
        // What was being read when the program was killed is read again.
        if let Some(last) = std::fs::read_to_string(dir.join("last")).ok().and_then(|n| n.parse().ok())
            && let Some((id, _)) = record(last)
        {
            raised.write_all(format!("{id}\n").as_bytes()).unwrap();
        }
        let mut beat = tokio::time::interval(Duration::from_millis(1000 / PER_S));
        while !dir.join("enough").exists() {
            beat.tick().await;
            n += 1;
            std::fs::write(dir.join("last"), n.to_string()).unwrap();
            raised.write_all(format!("{}\n", record(n).unwrap().0).as_bytes()).unwrap();
        }
        std::future::pending::<()>().await;
    });
}

fn sender(dir: &std::path::Path, port: u16) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "storm::chain", "--ignored", "--nocapture"])
        .env("ICHD_STORM_DIR", dir)
        .env("ICHD_STORM_PORT", port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_storm_of_alerts_loses_none_and_shows_none_twice_whoever_is_killed() {
    storm(Mosquitto::start());
}

#[test]
fn a_storm_of_alerts_over_a_durable_broker_loses_none_and_shows_none_twice() {
    storm(Mosquitto::durable());
}

fn storm(mut broker: Mosquitto) {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let station = Station::on_shift(broker.port, "ward-3", "nurse");
    let mut child = sender(dir.path(), broker.port);
    for round in 0..seconds() / 3 {
        std::thread::sleep(Duration::from_millis(2_700 + 37 * (round % 11)));
        if round % 2 == 0 {
            // One that keeps nothing on disk has lost what it had taken; the other what came since it last wrote.
            broker.down();
            broker.up();
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
            child = sender(dir.path(), broker.port);
        }
    }
    std::fs::write(dir.path().join("enough"), "").unwrap();
    let raised = || std::fs::read_to_string(dir.path().join("raised")).unwrap();
    let lost = || {
        let raised = raised();
        station.seen(|s| raised.lines().filter(|id| !s.alerts.contains_key(*id)).count())
    };
    let end = clock::now() + Duration::from_secs(90);
    while lost() > 0 && clock::now() < end {
        std::thread::sleep(Duration::from_millis(200));
    }
    let _ = child.kill();
    let _ = child.wait();
    let n = raised().lines().count();
    println!(
        "{n} alerts in {} s, {} lost, {} shown twice",
        seconds(),
        lost(),
        station.seen(|s| s.shown.values().filter(|as_new| as_new.len() > 1).count())
    );
    assert!(n as u64 > PER_S, "only {n} alerts were raised");
    assert_eq!(lost(), 0, "of {n} alerts raised");
    // A kill may come between the ledger and the list of what was raised.
    assert!(station.seen(|s| s.shown.len()) >= n, "no alert has two studies");
    assert!(station.seen(|s| s.shown.values().all(|as_new| as_new.len() == 1)));
}
