//! Patient data: sealed for those who hold the key, and nowhere else.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, storescu};

/// Opens a compact JWE with Node's WebCrypto, the interface that browsers have.
const OPEN: &str = r#"
const [set, jwe] = require("fs").readFileSync(0, "utf8").split("\n");
const part = jwe.split("."), bytes = (i) => Buffer.from(part[i], "base64url");
const header = JSON.parse(bytes(0)), jwk = JSON.parse(set).keys.find((k) => k.kid === header.kid);
if (header.alg !== "dir" || header.enc !== "A256GCM" || part.length !== 5 || part[1] !== "") throw "not our JWE";
(async () => {
  const key = await crypto.subtle.importKey("jwk", jwk, "AES-GCM", false, ["decrypt"]);
  const how = { name: "AES-GCM", iv: bytes(2), additionalData: Buffer.from(part[0]) };
  const text = await crypto.subtle.decrypt(how, key, Buffer.concat([bytes(3), bytes(4)]));
  console.log(Buffer.from(text).toString());
})().catch(() => process.exit(1));
"#;

fn opened(set: &str, jwe: &str) -> Option<Value> {
    let mut node = Command::new("node")
        .args(["-e", OPEN])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node is needed (tests/run installs it)");
    let one_line = serde_json::from_str::<Value>(set).unwrap().to_string();
    write!(node.stdin.take().unwrap(), "{one_line}\n{jwe}").unwrap();
    let output = node.wait_with_output().unwrap();
    output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
}

fn new_keys(dir: &Path) -> String {
    for args in [&["init", "--site", "north", "--broker", "localhost"][..], &["key"]] {
        let status = Command::new(env!("CARGO_BIN_EXE_ichd"))
            .args(["enrol", "--dir"])
            .arg(dir.join("site"))
            .args(args)
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    }
    std::fs::read_to_string(dir.join("site/privacy/privacy.jwks")).unwrap()
}

/// What the phantom's patient is called; neither may be found anywhere but inside the seal.
fn patient() -> (String, String) {
    let header = ichd::dicom::SliceHeader::read(&Phantom::bleed().files[0]).unwrap();
    (header.patient_name.reveal().clone(), header.patient_id.reveal().clone())
}

#[test]
fn the_patient_is_sealed_for_the_stations_and_stands_nowhere_else() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let set = new_keys(dir.path());
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let privacy = format!(
        "[privacy]\nlevel = \"image\"\nlocation = \"CT 1\"\nkeys = {:?}\n",
        dir.path().join("site/privacy/privacy.jwks")
    );
    let appliance = Appliance::enrolled("ct-1", broker.port, &privacy);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    appliance.dispositions(1);
    let mut alert = listener.next("ichd.alert/1");
    while alert["stage"] != "final" {
        alert = listener.next("ichd.alert/1");
    }
    assert_eq!(alert["subject"]["location"], "CT 1");
    let jwe = alert["subject"]["enc"].as_str().unwrap();
    let subject = opened(&set, jwe).expect("WebCrypto opens it");
    let (name, id) = patient();
    assert_eq!(subject["name"].as_str().unwrap(), name.replace('^', " ").trim());
    assert_eq!(
        (&subject["patient_id"], &subject["study_ref"]),
        (&Value::from(id.clone()), &alert["study"]["study_ref"])
    );
    assert!(subject["picture"].as_str().unwrap().starts_with("iVBORw0KGgo"), "a PNG");

    // Neither another key nor a changed byte opens it.
    let other = tempfile::tempdir().unwrap();
    assert_eq!(opened(&new_keys(other.path()), jwe), None);
    let changed = jwe.replacen("..", "..A", 1);
    assert_eq!(opened(&set, &changed), None);

    let log = appliance.log();
    let files = [log.clone(), alert.to_string(), format!("{:?}", listener.drain())];
    for secret in [name.as_str(), id.as_str(), set.split('"').find(|k| k.len() == 43).unwrap()] {
        assert!(files.iter().all(|text| !text.contains(secret)), "{secret} leaked");
        let database = std::fs::read(appliance.dir.path().join("ichd.db")).unwrap();
        assert!(
            !database.windows(secret.len()).any(|w| w == secret.as_bytes()),
            "{secret} is in the database"
        );
    }
    assert!(
        log.contains("alert_published") || log.contains("alert is with the broker"),
        "the log was looked at: {log}"
    );
}

#[test]
fn by_default_an_alert_says_a_spoken_code_and_no_more() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let alert = listener.next("ichd.alert/1");
    let said: Vec<&String> = alert["subject"].as_object().unwrap().keys().collect();
    assert_eq!(said, ["ref"]);
}

#[test]
fn keys_that_everybody_can_read_or_that_are_none_end_with_78_and_are_not_printed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let mut open = new_keys(dir.path());
    let secret = open.split('"').find(|k| k.len() == 43).unwrap().to_owned();
    for (text, mode, wrong) in
        [(open.clone(), 0o644, "chmod"), (open.split_off(0).replace("oct", "RSA"), 0o600, "oct")]
    {
        std::fs::write(&keys, text).unwrap();
        std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(mode)).unwrap();
        let config = dir.path().join("ichd.toml");
        let text = format!(
            "[site]\nname = \"north\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n[state]\ndirectory = {:?}\n\
             [infer]\nmodel = {:?}\ntrusted-keys = [{:?}]\n[privacy]\nlevel = \"identified\"\nkeys = {keys:?}\n",
            dir.path(),
            crate::peers::model(),
            crate::peers::key()
        );
        std::fs::write(&config, text).unwrap();
        let output =
            Command::new(env!("CARGO_BIN_EXE_ichd")).args(["run", "--config"]).arg(&config).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{words}");
        assert!(
            words.contains("privacy.keys") && words.contains(wrong) && !words.contains(&secret),
            "{words}"
        );
    }
}
