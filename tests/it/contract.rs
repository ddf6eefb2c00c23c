//! The contract on the wire, as others would use it: the committed schemas, the example that ships.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::peers::{
    Appliance, Listener, Mosquitto, Phantom, alone, python, repository, storescu, wait_until,
};

#[path = "../schema.rs"]
mod schema;

/// `docs/contract`, by the `schema` of a document.
fn schemas() -> &'static BTreeMap<String, Value> {
    static SCHEMAS: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    SCHEMAS.get_or_init(|| {
        let files = std::fs::read_dir(repository().join("docs/contract")).unwrap().map(|f| f.unwrap().path());
        files
            .filter(|path| path.to_string_lossy().ends_with(".schema.json"))
            .map(|path| {
                let schema: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                let version = schema["title"].as_str().unwrap().to_owned();
                (version, schema)
            })
            .collect()
    })
}

/// What is wrong with a document by its schema; a document of no known schema is wrong.
pub fn complaints(document: &Value) -> Vec<String> {
    let version = document["schema"].as_str().unwrap_or_default();
    match schemas().get(version) {
        None => vec![format!("no schema for `{version}`")],
        Some(schema) => schema::complaints(schema, document),
    }
}

struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every document is held against its schema by [`Listener`].
#[test]
fn the_example_subscriber_takes_an_alert_by_name() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    let example = Command::new(python())
        .arg(repository().join("docs/examples/subscriber.py"))
        .args(["--site", "north", "--station", "pager-1", "--user", "Li Na", "--acknowledge"])
        .args(["--port", &broker.port.to_string()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let example = Example(example);
    let mut seen = BTreeMap::<String, u32>::new();
    let count = |seen: &mut BTreeMap<String, u32>, document: &Value| {
        *seen.entry(document["schema"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    };
    let before = listener.until("ichd.station/1");
    before.iter().for_each(|document| count(&mut seen, document));
    let station = before.last().unwrap();
    assert_eq!((station["state"].as_str(), station["user"].as_str()), (Some("ready"), Some("Li Na")));
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let mut acknowledged = Value::Null;
    wait_until("the alert is acknowledged by the example, and the daemon says so", || {
        for (_, document) in listener.drain() {
            count(&mut seen, &document);
            if document["ack"]["user"] == "Li Na" {
                acknowledged = document;
            }
        }
        acknowledged["state"] == "acknowledged" && seen.contains_key("ichd.study/1")
    });
    drop(example);
    assert_eq!(listener.next("ichd.station/1")["state"], "offline", "said by its will");
    for schema in [
        "ichd.alert/1",
        "ichd.status/1",
        "ichd.heartbeat/1",
        "ichd.receipt/1",
        "ichd.action/1",
        "ichd.reply/1",
    ] {
        assert!(seen.contains_key(schema), "{schema} was not on the wire: {seen:?}");
    }
}
