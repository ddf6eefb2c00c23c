//! Evidence: what the ledger says of every series, and that it can be said again.

use std::process::{Command, Output};

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, storescu};

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
