//! Model packages apart from the image, with the real daemon: beside each other, in shadow, promoted, taken back.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, model, sign, storescu, wait_until};
use crate::station::Station;

/// The shipped package under another version, signed by a key of this test.
fn package(dir: &Path, version: &str) -> (String, String) {
    let to = dir.join(version);
    assert!(Command::new("cp").arg("-R").arg(model()).arg(&to).status().unwrap().success());
    let text = std::fs::read_to_string(to.join("manifest.toml")).unwrap();
    let was = text.lines().find(|l| l.starts_with("version = ")).unwrap();
    let text = text.replace(was, &format!("version = {version:?}"));
    sign(&to, &text, &dir.join("test.pub"));
    (to.to_str().unwrap().to_owned(), ichd::hex(&Sha256::digest(&text)))
}

fn run(appliance: &Appliance, arguments: &[&str]) -> (i32, Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .arg("model")
        .args(arguments)
        .args(["--json", "--config"])
        .arg(appliance.config())
        .env_remove("STATE_DIRECTORY")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or_default(), words)
}

#[test]
fn a_new_model_reads_along_in_silence_is_promoted_by_the_rule_and_taken_back_in_one_command() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    let dir = tempfile::tempdir().unwrap();
    let (new, new_sha256) = package(dir.path(), "9.0.0");
    let text = std::fs::read_to_string(appliance.config()).unwrap();
    let text =
        text.replace("trusted-keys = [", &format!("trusted-keys = [{:?}, ", dir.path().join("test.pub")));
    let models = format!(
        "\n[models]\ndirectory = {:?}\npromotion = \"rule\"\nseries-min = 2\npositives-min = 1\nread-ms-max = 600000\n",
        dir.path().join("models")
    );
    std::fs::write(appliance.config(), text + &models).unwrap();
    let list = |appliance: &Appliance| run(appliance, &["list"]).1;

    // A package of a stranger, or one that was changed on its way, is not installed.
    let changed = package(dir.path(), "9.0.1").0;
    let graph = Path::new(&changed).join("seq1.onnx");
    let mut bytes = std::fs::read(&graph).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&graph, bytes).unwrap();
    let (code, _, words) = run(&appliance, &["install", &changed]);
    assert!(code == 78 && words.contains("seq1.onnx"), "{code} {words}");
    assert_eq!(list(&appliance)["installed"], Value::Array(vec![]));

    // Installed and in shadow: it reads every series, and only the old one is heard.
    assert_eq!(run(&appliance, &["install", &new, "--shadow"]).0, 0);
    appliance.terminate();
    appliance.up();
    let listener = Listener::on(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    let rows = appliance.dispositions(2);
    assert!(rows.iter().all(|r| r["model_sha256"] != new_sha256.as_str()), "{rows:?}");
    wait_until("both series are read along", || {
        let seen = list(&appliance)["comparisons"].clone();
        seen[0]["series"] == 2 && seen[0]["agreed"] == 2
    });
    let seen = list(&appliance)["comparisons"][0].clone();
    assert_eq!(
        (&seen["current_suspected"], &seen["shadow_suspected"], &seen["failed"]),
        (&1.into(), &1.into(), &0.into())
    );
    assert!(seen["shadow_ms"].as_f64().unwrap() > 0.0, "{seen}");
    let alert = listener.next("ichd.alert/1");
    assert_ne!(alert["model"]["sha256"], new_sha256.as_str());

    // Nothing speaks against it, but somebody has not answered: it waits.
    assert_eq!(list(&appliance)["against"], Value::Array(vec![]));
    let (code, _, words) = run(&appliance, &["promote", "--by-rule"]);
    assert!(code == 75 && words.contains("alert"), "{code} {words}");

    // Somebody takes the alert: the rule promotes. After the restart the new one answers, under its own name.
    let station = Station::on_shift(broker.port, "ward-3", "nurse");
    let alert_id = alert["alert_id"].as_str().unwrap();
    wait_until("the alert at the station", || station.seen(|s| s.alerts.contains_key(alert_id)));
    station.act(alert_id, "ack", "Ann", "action-0001");
    wait_until("promotion by the rule", || match run(&appliance, &["promote", "--by-rule"]) {
        (0, ..) => list(&appliance)["image_is_current"] == false,
        (code, _, words) => {
            assert!(code == 75, "{code} {words}");
            false
        }
    });
    station.leave();
    appliance.terminate();
    appliance.up();
    let listener = Listener::on(&broker);
    while listener.next("ichd.status/1")["model"]["sha256"] != new_sha256.as_str() {}

    // Damaged on the disk: the image's own reads on, and says so.
    let installed = list(&appliance)["installed"][0]["name"].as_str().unwrap().to_owned();
    let graph = dir.path().join("models/packages").join(installed).join("seq2.onnx");
    let whole = std::fs::read(&graph).unwrap();
    std::fs::write(&graph, b"damaged").unwrap();
    appliance.terminate();
    appliance.up();
    let listener = Listener::on(&broker);
    while listener.next("ichd.alert/1")["technical"]["code"] != "model_refused" {}
    std::fs::write(&graph, whole).unwrap();

    // One command back; and a person may promote without the rule.
    assert_eq!(run(&appliance, &["rollback"]).0, 0);
    assert_eq!(list(&appliance)["image_is_current"], true);
    assert_eq!(run(&appliance, &["promote", "ichd-base-9.0.0"]).0, 0);
    assert_eq!(list(&appliance)["image_is_current"], false);
}
