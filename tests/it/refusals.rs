//! Bad input: each gets its own clear answer and disturbs nothing else.

use std::path::Path;
use std::process::{Command, Output};

use dicom_ul::pdu::PDataValueType;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::peers::{
    Appliance, ByHand, Listener, Mosquitto, Phantom, alone, data_set, key, model, sign, storescu,
};

fn ichd(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ichd")).args(args).env_remove("STATE_DIRECTORY").output().unwrap()
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_unknown_ae_is_rejected_and_the_known_one_still_served() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let file = [Phantom::quiet().files[0].clone()];
    let (ok, said) = storescu(appliance.port, &file, &["-aet", "STRANGER", "-aec", "ICHD"]);
    assert!(!ok && said.contains("Calling AE Title Not Recognized"), "{said}");
    let (ok, said) = storescu(appliance.port, &file, &["-aet", "CT1", "-aec", "OTHER"]);
    assert!(!ok && said.contains("Called AE Title Not Recognized"), "{said}");
    assert!(storescu(appliance.port, &file, &[]).0);
    let echo = Command::new("echoscu")
        .args(["-aet", "CT1", "-aec", "ICHD", "127.0.0.1", &appliance.port.to_string()])
        .status()
        .unwrap();
    assert!(echo.success());
}

#[test]
fn a_full_disk_is_refused_with_a700() {
    let _alone = alone();
    let broker = Mosquitto::start();
    for limit in [
        "free-bytes-min = 9000000000000000000\n[spool]\nfree-bytes-target = 9000000000000000000",
        "free-bytes-min = 1\ninstance-bytes-max = 1000",
    ] {
        let appliance = Appliance::with(broker.port, limit);
        let (ok, said) = storescu(appliance.port, &[Phantom::quiet().files[0].clone()], &[]);
        assert!(!ok && said.contains("Refused: OutOfResources"), "{said}");
        assert_eq!(appliance.stored(), 0);
    }
}

#[test]
fn a_disk_without_room_is_said_aloud_and_taken_back() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = Appliance::with(
        broker.port,
        "free-bytes-min = 9000000000000000000\n[spool]\nfree-bytes-target = 9000000000000000000",
    );
    let of_the_disk = || {
        loop {
            let alert = listener.next("ichd.alert/1");
            if alert["technical"]["code"] == "disk_low" {
                return alert;
            }
        }
    };
    let alert = of_the_disk();
    assert_eq!((&alert["kind"], &alert["state"]), (&json!("technical"), &json!("raised")), "{alert}");
    while listener.next("ichd.heartbeat/1")["disk_ok"] != false {}
    appliance.kill();
    let config = std::fs::read_to_string(appliance.config()).unwrap();
    std::fs::write(appliance.config(), config.replace("9000000000000000000", "1000")).unwrap();
    appliance.up();
    while of_the_disk()["state"] != "resolved" {}
}

#[test]
fn a_lying_data_set_is_refused_with_c000_and_the_association_lives() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let mut bytes = std::fs::read(&Phantom::quiet().files[0]).unwrap();
    // Rows and columns stay; the pixels end early, as after a lost connection of a gateway.
    let pixels = bytes.windows(4).rposition(|w| w == [0xe0, 0x7f, 0x10, 0x00]).unwrap();
    bytes[pixels + 8..pixels + 12].copy_from_slice(&0x7fff_fff0u32.to_le_bytes());
    let liar = appliance.dir.path().join("liar.dcm");
    std::fs::write(&liar, bytes).unwrap();
    // DCMTK will not send what it cannot read; a peer that does is played by hand.
    let status = raw_store(appliance.port, &liar);
    assert_eq!(status, 0xc000);
    assert_eq!(appliance.stored(), 0);
    assert!(storescu(appliance.port, &[Phantom::quiet().files[0].clone()], &[]).0);
}

/// C-STORE of a file's data set as it is; the status that comes back.
fn raw_store(port: u16, file: &Path) -> u16 {
    let bytes = std::fs::read(file).unwrap();
    let mut scanner = ByHand::associate(port, &Phantom::quiet().files[0]);
    let command = scanner.store_request(77);
    // The command set is split over two PDVs, as the standard allows.
    let (first, second) = command.split_at(command.len() / 2);
    scanner.send(PDataValueType::Command, false, first);
    scanner.send(PDataValueType::Command, true, second);
    let chunks = data_set(&bytes).chunks(10_000);
    let n = chunks.len();
    for (i, chunk) in chunks.enumerate() {
        scanner.send(PDataValueType::Data, i + 1 == n, chunk);
    }
    let (message_id, status) = scanner.answer();
    assert_eq!(message_id, 77);
    status
}

#[test]
fn a_bad_key_in_the_configuration_ends_with_78_key_and_mend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ichd.toml");
    std::fs::write(
        &path,
        "[site]\nname = \"n\"\ndevice = \"d\"\nprofile = \"assist\"\n[receive]\nae-titel = \"X\"\n",
    )
    .unwrap();
    for command in ["run", "check"] {
        let output = ichd(&[command, "--config", path.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(78));
        assert!(words(&output).contains("did you mean `ae-title`"), "{}", words(&output));
    }
    assert_eq!(ichd(&["run", "--nonsense"]).status.code(), Some(64));
}

#[test]
fn a_missing_or_tampered_model_ends_with_78_and_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("ichd-base");
    assert!(Command::new("cp").arg("-r").arg(model()).arg(&copy).status().unwrap().success());
    let key = key();
    let analyze = |model: &std::path::Path| {
        ichd(&[
            "analyze",
            "--model",
            model.to_str().unwrap(),
            "--key",
            key.to_str().unwrap(),
            Phantom::quiet().files[0].to_str().unwrap(),
        ])
    };
    assert_eq!(analyze(&copy).status.code(), Some(0));
    let mut graph = std::fs::read(copy.join("seq2.onnx")).unwrap();
    *graph.last_mut().unwrap() ^= 1;
    std::fs::write(copy.join("seq2.onnx"), graph).unwrap();
    let output = analyze(&copy);
    assert_eq!(output.status.code(), Some(78));
    assert!(words(&output).contains("seq2.onnx"), "{}", words(&output));
    let mut manifest = std::fs::read_to_string(copy.join("manifest.toml")).unwrap();
    manifest.push('\n');
    std::fs::write(copy.join("manifest.toml"), manifest).unwrap();
    assert!(words(&analyze(&copy)).contains("trusted keys"));
    assert_eq!(analyze(&dir.path().join("nothing")).status.code(), Some(78));
}

/// The manifest with the hashes of the files as they are now.
fn hashed_anew(package: &Path, mut manifest: toml::Table) -> String {
    for (name, sha256) in manifest["files"].as_table_mut().unwrap().iter_mut() {
        if let Ok(bytes) = std::fs::read(package.join(name)) {
            *sha256 = ichd::hex(&Sha256::digest(bytes)).into();
        }
    }
    toml::to_string(&manifest).unwrap()
}

#[test]
fn a_package_that_was_signed_and_is_wrong_ends_with_78_and_says_what() {
    type Spoil = fn(&std::path::Path, &mut toml::Table);
    let wrong: [(&str, Spoil, &str); 5] = [
        ("class order", |_, m| m["classes"].as_array_mut().unwrap().swap(1, 2), "classes"),
        (
            "shape",
            |_, m| drop(m["input"].as_table_mut().unwrap().insert("size-px".into(), 100.into())),
            "base.onnx",
        ),
        (
            "graph",
            |dir, _| std::fs::copy(dir.join("seq2.onnx"), dir.join("seq1.onnx")).map(|_| ()).unwrap(),
            "seq1.onnx",
        ),
        (
            "no golden",
            |_, m| m["files"].as_table_mut().unwrap().retain(|f, _| !f.ends_with(".dcm")),
            "golden",
        ),
        (
            "other window",
            |_, m| {
                let window = m["input"]["windows"].as_array_mut().unwrap()[0].as_table_mut().unwrap();
                drop(window.insert("level-hu".into(), 60.0.into()));
            },
            "golden",
        ),
    ];
    for (what, spoil, named) in wrong {
        let dir = tempfile::tempdir().unwrap();
        let copy = dir.path().join("package");
        assert!(Command::new("cp").arg("-r").arg(model()).arg(&copy).status().unwrap().success());
        let mut manifest: toml::Table =
            toml::from_str(&std::fs::read_to_string(copy.join("manifest.toml")).unwrap()).unwrap();
        spoil(&copy, &mut manifest);
        let key = copy.join("test.pub");
        sign(&copy, &hashed_anew(&copy, manifest), &key);
        let slice = Phantom::quiet().files[0].to_str().unwrap();
        let output =
            ichd(&["analyze", "--model", copy.to_str().unwrap(), "--key", key.to_str().unwrap(), slice]);
        assert_eq!(output.status.code(), Some(78), "{what}: {}", words(&output));
        assert!(words(&output).contains(named), "{what}: {}", words(&output));
    }
}

#[test]
fn check_accepts_what_run_would_run() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    let second = ichd(&["run", "--config", appliance.config().to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(words(&second).contains("another ichd runs on this state directory"), "{}", words(&second));
    appliance.kill();
    let output = ichd(&["check", "--config", appliance.config().to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output));
}

#[test]
fn check_of_a_box_that_has_not_started_warns_of_what_only_the_unit_sees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ichd.toml");
    let tls = [
        "ca = \"Cargo.toml\"",
        "certificate = \"Cargo.toml\"",
        "key = \"/run/credentials/ichd.service/no-such.key\"",
    ];
    let text = format!(
        "[site]\nname = \"n\"\ndevice = \"d\"\nprofile = \"assist\"\n[infer]\nmodel = {:?}\ntrusted-keys = [{:?}]\n\
         [alert.stations]\nward-3 = \"nurse\"\n[privacy]\nlevel = \"identified\"\nkeys = \"no-such.jwks\"\n\
         [alert.tls]\n{}\n",
        model(),
        key(),
        tls.join("\n"),
    );
    std::fs::write(&path, &text).unwrap();
    let output = ichd(&["check", "--config", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output));
    for warning in ["alert.tls.key: not checked; `/etc/credstore/no-such.key`", "privacy.keys: not checked"] {
        assert!(String::from_utf8_lossy(&output.stdout).contains(warning), "{}", words(&output));
    }
    // A file of one's own that is not there is a mistake.
    std::fs::write(&path, text.replace("/run/credentials/ichd.service/no-such.key", "/no/such.key")).unwrap();
    let output = ichd(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(78));
    assert!(words(&output).contains("alert.tls.key: failed to read `/no/such.key`"), "{}", words(&output));
}

#[test]
fn a_command_whose_reader_has_left_ends_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["enrol", "--dir"])
        .arg(dir.path().join("site"))
        .args(["init", "--site", "north", "--broker", "127.0.0.1"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(141), ""));
}
