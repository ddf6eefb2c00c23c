//! Evidence: what the ledger says of every series, and that it can be said again.

use std::process::{Command, Output};

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, free_port, storescu, wait_until};

fn ichd(appliance: &Appliance, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(args)
        .arg("--config")
        .arg(appliance.config())
        .env_remove("STATE_DIRECTORY")
        .output()
        .unwrap()
}

#[test]
fn replay_gives_the_ledgers_bytes_and_says_so_when_it_does_not() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let row = appliance.dispositions(1).remove(0);
    assert_eq!(row["calling_ae"], serde_json::json!(["CT1"]));
    let ms = |key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key} of {row}"));
    assert!(ms("received_first_ms") <= ms("received_last_ms") && ms("received_last_ms") <= ms("decided_ms"));
    assert!(row["timings"]["total"].as_f64().unwrap() > 0.0, "{row}");

    let alert = listener.next("ichd.alert/1")["alert_id"].as_str().unwrap().to_owned();
    let series = row["series_uid"].as_str().unwrap();
    for id in [series, &alert, &row["row"].to_string()] {
        let output = ichd(&appliance, &["replay", id]);
        assert_eq!(output.status.code(), Some(0), "{id}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), row["verdict"].as_str().unwrap());
    }
    assert_eq!(ichd(&appliance, &["replay", "1.2.3"]).status.code(), Some(1));

    // One stored value is changed behind everybody's back.
    let header = ichd::dicom::SliceHeader::read(&Phantom::bleed().files[15]).unwrap();
    let place = format!("spool/studies/{}/{}/{}.dcm", header.study, header.series, header.sop);
    let path = appliance.dir.path().join(place);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = ichd(&appliance, &["replay", series, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["equal"], false);
    assert_eq!(line["difference"], "the spool holds other instances than were read");
}

#[test]
fn prometheus_can_scrape_and_promtool_finds_nothing_to_complain_about() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let port = free_port();
    let extra = format!("free-bytes-min = 1000\n\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    let appliance = Appliance::with(broker.port, &extra);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    assert!(!storescu(appliance.port, &Phantom::bleed().files[..1], &["-aet", "STRANGER"]).0);
    let row = appliance.dispositions(1).remove(0);
    let url = format!("http://127.0.0.1:{port}/metrics");
    let mut text = String::new();
    wait_until("the association has ended and was counted", || {
        let output = Command::new("curl").args(["-fsS", &url]).output().expect("curl is needed");
        assert!(output.status.success(), "{output:?}");
        text = String::from_utf8(output.stdout).unwrap();
        text.contains("\nichd_instances_received_total 30\n")
    });
    for line in [
        "ichd_series{disposition=\"suspected\",reason=\"\"} 1",
        "ichd_open_alerts 1",
        "ichd_last_slice_to_verdict_seconds_count 1",
        "ichd_events_total{event=\"association_refused\",reason=\"unknown_calling\"} 1",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
    }
    for secret in [row["study_uid"].as_str().unwrap(), row["series_uid"].as_str().unwrap(), "PHANTOM", "CT1"]
    {
        assert!(!text.contains(secret), "{secret} in\n{text}");
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("prometheus is needed (tests/run installs it)");
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let elsewhere = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("http://127.0.0.1:{port}/"))
        .output();
    assert_eq!(String::from_utf8_lossy(&elsewhere.unwrap().stdout), "404");
}

#[test]
fn what_is_old_is_purged_and_what_is_open_is_not() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    appliance.dispositions(2);
    appliance.kill();
    // As if it were 40 days later.
    on_database(&appliance, "UPDATE series SET decided_ms = decided_ms - 40 * 86400000");
    appliance.up();
    let purged = |appliance: &Appliance| {
        let rows = appliance.ledger().into_iter();
        rows.map(|r| (r["disposition"].as_str().unwrap().to_owned(), !r["purged_ms"].is_null()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    wait_until("the quiet head is purged", || appliance.stored() == 30);
    // The other one has an alert that nobody has taken.
    let rows = purged(&appliance);
    assert!(rows["not_suspected"] && !rows["suspected"], "{rows:?}");
    appliance.kill();
    on_database(&appliance, "UPDATE alerts SET state = 'resolved'");
    appliance.up();
    wait_until("the bleed is purged", || appliance.stored() == 0);
    assert!(purged(&appliance)["suspected"]);
    assert!(String::from_utf8_lossy(&ichd(&appliance, &["ledger"]).stdout).contains("purged"));
    // A purged series can be sent again, and is read again.
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    wait_until("read again", || !purged(&appliance)["not_suspected"]);
    assert_eq!(appliance.stored(), 30);
}

fn on_database(appliance: &Appliance, sql: &str) {
    let database = rusqlite::Connection::open(appliance.dir.path().join("ichd.db")).unwrap();
    database.execute_batch(sql).unwrap();
}
