//! The plug is pulled at random moments; nothing acknowledged is lost, and there is one alert.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, storescu, wait_until};

#[test]
fn fifty_kills_while_a_series_is_sent_lose_nothing_and_leave_one_alert() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = Appliance::alerts_to(&broker);
    let files = &Phantom::bleed().files;
    let mut acknowledged: HashSet<PathBuf> = HashSet::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut alerts: HashSet<String> = HashSet::new();
    for kill in 0..50 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let after = Duration::from_micros((state >> 33) % 120_000);
        let port = appliance.port;
        // One association per image, at most as many rounds as there are kills; what fails is sent again next time.
        let next: Vec<PathBuf> = files
            .iter()
            .filter(|f| !acknowledged.contains(*f))
            .chain(files.iter())
            .take(1 + kill % 4)
            .cloned()
            .collect();
        let sender = std::thread::spawn(move || {
            next.into_iter().filter(|f| storescu(port, std::slice::from_ref(f), &[]).0).collect::<Vec<_>>()
        });
        std::thread::sleep(after);
        appliance.kill();
        acknowledged.extend(sender.join().unwrap());
        for file in &acknowledged {
            assert!(appliance.holds(file), "an acknowledged instance is gone after kill {kill}");
        }
        appliance.up();
    }
    for file in files {
        assert!(storescu(appliance.port, std::slice::from_ref(file), &[]).0);
    }
    wait_until("the whole series is suspected", || {
        appliance
            .ledger()
            .iter()
            .any(|r| r["instances"] == 30 && r["disposition"] == "suspected" && r["stage"] == "final")
    });
    assert_eq!(appliance.stored(), 30);
    while alerts.is_empty() {
        alerts.insert(listener.next("ichd.alert/1")["alert_id"].as_str().unwrap().to_owned());
    }
    // What came since, and what the database says: there is no second identity anywhere.
    alerts
        .extend(listener.drain().iter().filter_map(|(_, body)| Some(body["alert_id"].as_str()?.to_owned())));
    let database = rusqlite::Connection::open(appliance.dir.path().join("ichd.db")).unwrap();
    let n: i64 = database.query_row("SELECT count(*) FROM alerts", [], |row| row.get(0)).unwrap();
    assert_eq!(n, 1);
    assert_eq!(alerts.len(), 1, "one study, one alarm");
}

#[test]
fn a_series_that_crashed_the_reader_twice_is_not_read_again_and_says_so() {
    let _alone = alone();
    let mut broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    let files = &Phantom::quiet().files;
    assert!(storescu(appliance.port, files, &[]).0);
    appliance.dispositions(1);
    appliance.kill();
    // As two crashes of the reader would have left it: two attempts with this very input and no disposition.
    let database = rusqlite::Connection::open(appliance.dir.path().join("ichd.db")).unwrap();
    database
        .execute_batch(
            "INSERT INTO attempts SELECT study_uid, series_uid, input_sha256, 2 FROM series; DELETE FROM series;",
        )
        .unwrap();
    drop(database);
    appliance.up();
    let row = appliance.dispositions(1).remove(0);
    assert_eq!((&row["disposition"], &row["reason"]), (&"not_analysed".into(), &"crashed".into()));
    broker.down();
}
