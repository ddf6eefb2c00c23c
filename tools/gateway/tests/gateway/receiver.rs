//! Every change of every kind of alert, before the judgement of libraries that hospitals build receivers from.

use super::*;

#[test]
fn hl7apy_and_fhir_resources_find_nothing_to_complain_of_in_any_message() {
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    let python = if venv.exists() { venv } else { "python3".into() };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway/receiver.py");
    let mut receiver =
        Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let printed = BufReader::new(receiver.stdout.take().unwrap()).lines();
    let _receiver = Process(receiver);
    let (tx, lines) = channel::<Value>();
    std::thread::spawn(move || {
        printed.map_while(Result::ok).for_each(|l| drop(tx.send(serde_json::from_str(&l).unwrap())))
    });
    let ports = lines.recv_timeout(PATIENCE).expect("the packages of tests/requirements.txt are needed");
    let broker = Broker::start();
    let all = "tell = [\"raised\", \"revised\", \"escalated\", \"acknowledged\", \"withdrawn\", \"resolved\", \"expired\"]\ntests = true\n";
    let gateway = Gateway::start(
        &broker,
        &format!(
            "[[target]]\nname = \"hl7\"\n{all}mllp = {{address = \"127.0.0.1:{}\"}}\n\
             [[target]]\nname = \"fhir\"\n{all}fhir = {{url = \"http://127.0.0.1:{}/Communication\"}}\n",
            ports["mllp"], ports["fhir"]
        ),
    );
    gateway.waits_for("broker_connected");

    let mut told = Vec::new();
    let mut tell = |alert: Value| {
        broker.publish(&alert);
        told.push(format!("{}-{}", alert["alert_id"].as_str().unwrap(), alert["rev"]));
    };
    for (kind, id) in [("finding", "01JA"), ("technical", "01JB"), ("test", "01JC")] {
        for (rev, state) in ["raised", "escalated", "acknowledged", "resolved"].iter().enumerate() {
            let mut alert = alert(id, rev as u64 + 1, state);
            alert["kind"] = json!(kind);
            alert["subject"]["location"] = json!("CT 1 | emergency ^ 急诊");
            if kind == "technical" {
                alert["subject"] = json!({"ref": ""});
                alert["finding"] = Value::Null;
                alert["disclaimer"] = json!("");
                alert["technical"] = json!({"code": "nobody_listening", "text": "Nobody listens to K7P-29"});
            }
            tell(alert);
        }
    }
    let mut revised = alert("01JD", 1, "raised");
    revised["stage"] = json!("provisional");
    tell(revised);
    for (rev, state) in [(2, "raised"), (3, "withdrawn"), (4, "raised"), (5, "expired")] {
        tell(alert("01JD", rev, state));
    }

    let (mut hl7, mut fhir) = (Vec::new(), Vec::new());
    while hl7.len() < told.len() || fhir.len() < told.len() {
        let line = lines.recv_timeout(PATIENCE).unwrap();
        assert_eq!(line["wrong"], Value::Null, "{line}");
        let id = line["id"].as_str().unwrap();
        if line["kind"] == "hl7" {
            let technical = id.starts_with("01JB");
            assert_eq!(line["patient"], if technical { Value::Null } else { json!("K7P-29") }, "{line}");
            assert_eq!(line["values"].as_array().unwrap().len(), 8, "{line}");
            hl7.push(id.to_owned());
        } else {
            let status = line["status"].as_str().unwrap();
            assert!(["in-progress", "completed", "stopped"].contains(&status), "{line}");
            fhir.push(id.strip_prefix("identifier=urn:ichd:event|").unwrap().to_owned());
        }
    }
    assert_eq!((&hl7, &fhir), (&told, &told));
}
