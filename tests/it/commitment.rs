//! Storage Commitment with pynetdicom as the scanner.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::peers::{Appliance, Mosquitto, Phantom, alone, free_port, python, repository, wait_until};
use crate::tls::Authority;

/// `tests/commitment_scu.py`; see there.
fn scanner(port: u16, listen: u16, mode: &str, files: &[PathBuf]) -> Value {
    scanner_with(&[], port, listen, mode, files)
}

fn scanner_with(
    environment: &[(&str, String)],
    port: u16,
    listen: u16,
    mode: &str,
    files: &[PathBuf],
) -> Value {
    let output = Command::new(python())
        .envs(environment.iter().cloned())
        .arg(repository().join("tests/commitment_scu.py"))
        .args([&port.to_string(), &listen.to_string(), mode])
        .args(files)
        .output()
        .expect("python with pynetdicom is needed (tests/run installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn peer(listen: u16) -> String {
    format!("free-bytes-min = 1000\n[[receive.peer]]\nae-title = \"CT1\"\naddress = \"127.0.0.1:{listen}\"\n")
}

/// Files that were sent are committed, the one that was not has failed with "no such object instance".
fn assert_told(asked: &Value, told: &Value, files: &[PathBuf]) {
    let reports = told["reports"].as_array().unwrap();
    assert_eq!(reports.len(), 1, "{told}");
    let report = &reports[0];
    assert_eq!((&asked["status"], &report["event"]), (&0.into(), &2.into()), "{told}");
    assert_eq!(report["transaction"], asked["asked"]);
    let sops: Vec<String> =
        files.iter().map(|f| ichd::dicom::SliceHeader::read(f).unwrap().sop.to_string()).collect();
    assert_eq!(report["committed"], serde_json::json!(sops));
    assert_eq!(report["failed"], serde_json::json!([["1.2.3.4.5.6.7", 0x0112]]));
}

#[test]
fn what_is_in_the_spool_is_committed_on_the_same_association_or_on_a_new_one() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listen = free_port();
    let appliance = Appliance::with(broker.port, &peer(listen));
    let files = &Phantom::quiet().files[..3];
    let told = scanner(appliance.port, listen, "same", files);
    assert_told(&told, &told, files);
    let told = scanner(appliance.port, listen, "later", files);
    assert_told(&told, &told, files);
    assert_eq!(appliance.log().matches("event=commitment_delivered").count(), 1, "{}", appliance.log());
}

#[test]
fn both_directions_may_be_mutual_tls() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let authority = Authority::new();
    authority.sign("dicom", 365);
    authority.sign("ct1", 365);
    let (port, listen) = (free_port(), free_port());
    let peer = format!("[[receive.peer]]\nae-title = \"CT1\"\naddress = \"127.0.0.1:{listen}\"\ntls = true");
    let appliance = Appliance::with(broker.port, &authority.table(port, &peer));
    let files = &Phantom::quiet().files[..2];
    let tls = ["ca.crt", "ct1.crt", "ct1.key"].map(|name| authority.text(name)).join(" ");
    let told = scanner_with(&[("TLS", tls)], port, listen, "later", files);
    assert_told(&told, &told, files);
    assert_eq!(appliance.log().matches("event=commitment_delivered").count(), 1, "{}", appliance.log());
}

#[test]
fn an_answer_that_nobody_takes_survives_a_power_cut() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listen = free_port();
    let mut appliance = Appliance::with(broker.port, &peer(listen));
    let files = &Phantom::quiet().files[..2];
    let asked = scanner(appliance.port, listen, "ask", files);
    assert_eq!((&asked["status"], asked["reports"].as_array().unwrap().len()), (&0.into(), 0));
    wait_until("an attempt has failed", || appliance.log().contains("event=commitment_undelivered"));
    appliance.kill();
    appliance.up();
    let told = scanner(appliance.port, listen, "listen", &[]);
    assert_told(&asked, &told, files);
}

#[test]
fn nobody_is_offered_a_commitment_who_is_not_named() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let told = scanner(appliance.port, free_port(), "same", &[]);
    assert_eq!(told["offered"], false);
}
