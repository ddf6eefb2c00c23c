//! The contract on the wire, generated from the types: `docs/contract/*.schema.json` and `asyncapi.json`. A test holds
//! that what is committed is what the types say;
//! `ICHD_WRITE_CONTRACT=1 cargo test -p ichd --features ichd/ort --lib contract` writes it anew.
//!
//! Every document that any end-to-end test sees on the broker is held against these files (`tests/it/peers.rs`), and so
//! is every one that the station page writes (`daemon/station/test`).

use std::path::{Path, PathBuf};

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

use crate::alert::{document, inbound, request, topic};
use crate::config::{Profile, Site};

#[path = "../../tests/schema.rs"]
mod schema;

/// A document: file name, version that stands in its `schema`, JSON Schema.
struct Document {
    name: &'static str,
    version: &'static str,
    schema: Schema,
}

/// Draft 7, as AsyncAPI has it. `written`: by the daemon, so every field is there; else what it takes from others.
fn document<T: JsonSchema>(name: &'static str, version: &'static str, written: bool) -> Document {
    let settings = SchemaSettings::draft07();
    let settings = if written { settings.for_serialize() } else { settings.for_deserialize() };
    let generator: SchemaGenerator = settings.into_generator();
    let mut schema = generator.into_root_schema_for::<T>();
    let object = schema.ensure_object();
    object.insert("title".into(), json!(version));
    if let Some(field) = object.get_mut("properties").and_then(|p| p.get_mut("schema")) {
        *field = json!({"const": version});
    }
    Document { name, version, schema }
}

/// Everything with a schema of its own.
fn documents() -> Vec<Document> {
    vec![
        document::<document::Alert>("alert", "ichd.alert/1", true),
        document::<document::StudyDisposition>("study", "ichd.study/1", true),
        document::<document::Status>("status", "ichd.status/1", true),
        document::<document::Heartbeat>("heartbeat", "ichd.heartbeat/1", true),
        document::<inbound::Reply>("reply", "ichd.reply/1", true),
        document::<inbound::StationStatus>("station", "ichd.station/1", false),
        document::<inbound::ReceiptMessage>("receipt", "ichd.receipt/1", false),
        document::<inbound::ActionMessage>("action", "ichd.action/1", false),
        document::<inbound::CommandMessage>("command", "ichd.command/1", false),
        document::<request::Answer>("answer", "ichd.answer/1", true),
        document::<request::RequestMessage>("request", "ichd.request/1", false),
        document::<crate::privacy::subject::Subject>("subject", "ichd.subject/1", true),
    ]
}

/// One topic of the table in docs/MQTT.md.
struct Channel {
    /// Of the document on it, too.
    name: &'static str,
    address: String,
    /// By the daemon; else by a station.
    sent: bool,
    qos: u8,
    retain: bool,
    expiry_s: Option<u32>,
    about: &'static str,
}

fn channels() -> Vec<Channel> {
    let site = Site { name: "{site}".into(), device: "{device}".into(), profile: Profile::Assist };
    let of_station = |rest: &str| format!("{}/sta/{{station}}/{rest}", topic::root(&site));
    let channel = |name, address, sent, about| Channel {
        name,
        address,
        sent,
        qos: 1,
        retain: false,
        expiry_s: None,
        about,
    };
    vec![
        Channel {
            retain: true,
            ..channel(
                "status",
                topic::status(&site),
                true,
                "State of the box; its will, delayed by 10 s, says `lost`.",
            )
        },
        Channel {
            qos: 0,
            expiry_s: Some(60),
            ..channel(
                "heartbeat",
                topic::heartbeat(&site),
                true,
                "Liveness of the pipeline, every 20 s. Three missing ones are an alarm.",
            )
        },
        Channel {
            retain: true,
            expiry_s: Some(43_200),
            ..channel(
                "alert",
                topic::alert(&site, "{alert_id}"),
                true,
                "The whole state of one alert. Apply it only if `rev` is higher than what is held; an empty payload \
                 purges it. Correlation data is `alert_id`, the response topic is that of receipts.",
            )
        },
        Channel {
            expiry_s: Some(3_600),
            ..channel(
                "study",
                topic::study(&site, "{study_ref}"),
                true,
                "What became of every series, with the reason if it was not analysed.",
            )
        },
        Channel {
            expiry_s: Some(60),
            ..channel(
                "reply",
                topic::reply(&site, "{station}"),
                true,
                "The result of an action; its correlation data come back, or the `action_id`.",
            )
        },
        Channel {
            expiry_s: Some(60),
            ..channel(
                "answer",
                topic::answer(&site, "{station}"),
                true,
                "To an engineer's request: a proof of life, the newest series of the ledger, a replay.",
            )
        },
        Channel {
            retain: true,
            ..channel(
                "station",
                of_station("status"),
                false,
                "Who listens; the will of a station says `offline`.",
            )
        },
        Channel {
            expiry_s: Some(600),
            ..channel(
                "receipt",
                of_station("receipt/{device}"),
                false,
                "A station has an alert. Ends delivery, never escalation.",
            )
        },
        Channel {
            expiry_s: Some(600),
            ..channel(
                "action",
                of_station("action/{device}"),
                false,
                "A named person does something with an alert. `feedback` goes with verb `feedback`, and only with it. \
                 Or an engineer orders an update (`ichd.command/1`).",
            )
        },
        Channel {
            expiry_s: Some(60),
            ..channel(
                "request",
                of_station("request/{device}"),
                false,
                "An engineer's station asks the box for something that changes no alert.",
            )
        },
    ]
}

fn asyncapi() -> Value {
    let (mut channels_json, mut operations, mut messages) = (json!({}), json!({}), json!({}));
    for c in channels() {
        let levels = c.address.split('/').filter_map(|level| level.strip_prefix('{')?.strip_suffix('}'));
        let parameters: Value =
            levels.map(|name| (name.to_owned(), json!({"description": parameter(name)}))).collect();
        let on_it = if c.name == "action" { vec!["action", "command"] } else { vec![c.name] };
        let on_it = on_it.into_iter().map(|name| (name.to_owned(), message(name)));
        channels_json[c.name] = json!({
            "address": c.address, "description": c.about, "parameters": parameters,
            "messages": on_it.collect::<Value>(),
        });
        let mut binding = json!({"qos": c.qos, "retain": c.retain, "bindingVersion": "0.2.0"});
        if let Some(s) = c.expiry_s {
            binding["messageExpiryInterval"] = json!(s);
        }
        operations[c.name] = json!({
            "action": if c.sent { "send" } else { "receive" }, "channel": {"$ref": format!("#/channels/{}", c.name)},
            "summary": c.about, "bindings": {"mqtt": binding},
        });
    }
    for d in documents().iter().filter(|d| d.name != "subject") {
        messages[d.name] = json!({
            "name": d.version, "contentType": "application/json",
            "payload": {"schemaFormat": "application/schema+json;version=draft-07",
                        "schema": {"$ref": format!("./{}.schema.json", d.name)}},
        });
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "ichd", "version": "1.0.0", "license": {"name": "Apache-2.0"},
            "description": "Notifications of suspected findings on head CT, as seen from the daemon: it sends what \
                            stations receive. Not a diagnosis. Receivers ignore unknown fields.",
        },
        "defaultContentType": "application/json",
        "servers": {"broker": {
            "host": "broker.hospital.example:8883", "protocol": "secure-mqtt", "protocolVersion": "5",
            "description": "Mutual TLS; CN = user = topic level. `ichd enrol` makes certificates and ACL.",
            "security": [{"$ref": "#/components/securitySchemes/certificate"}],
        }},
        "channels": channels_json,
        "operations": operations,
        "components": {"messages": messages, "securitySchemes": {"certificate": {"type": "X509"}}},
    })
}

fn message(name: &str) -> Value {
    json!({"$ref": format!("#/components/messages/{name}")})
}

fn parameter(name: &str) -> &'static str {
    match name {
        "site" => "Site name, `[site] name`.",
        "device" => "Device name, `[site] device`; CN of its certificate.",
        "station" => "Station name; CN of its certificate.",
        "alert_id" => "ULID, one per study.",
        "study_ref" => "Keyed hash of the Study Instance UID.",
        other => panic!("a parameter without a word: {other}"),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/contract")
}

fn complaints(name: &str, value: &Value) -> Vec<String> {
    let document = documents().into_iter().find(|d| d.name == name).unwrap();
    schema::complaints(&document.schema.to_value(), value)
}

#[test]
fn what_is_committed_is_what_the_types_say() {
    let mut files: Vec<(String, Value)> =
        documents().into_iter().map(|d| (format!("{}.schema.json", d.name), d.schema.to_value())).collect();
    files.push(("asyncapi.json".into(), asyncapi()));
    let write = std::env::var_os("ICHD_WRITE_CONTRACT").is_some();
    for (name, value) in &files {
        let (path, text) = (folder().join(name), format!("{value:#}\n"));
        if write {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == text,
            "docs/contract/{name} is not what the types say; ICHD_WRITE_CONTRACT=1 writes it anew"
        );
    }
    assert_eq!(std::fs::read_dir(folder()).unwrap().count(), files.len(), "a file that no type makes");
}

#[test]
fn every_reference_of_the_asyncapi_document_leads_somewhere() {
    fn walk(value: &Value, root: &Value, found: &mut usize) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(to)) = map.get("$ref") {
                    *found += 1;
                    match to.strip_prefix('#') {
                        Some(pointer) => assert!(root.pointer(pointer).is_some(), "{to}"),
                        None => assert!(folder().join(to).is_file(), "{to}"),
                    }
                }
                map.values().for_each(|v| walk(v, root, found));
            }
            Value::Array(list) => list.iter().for_each(|v| walk(v, root, found)),
            _ => {}
        }
    }
    let (root, mut found) = (asyncapi(), 0);
    walk(&root, &root, &mut found);
    assert!(found > 20, "{found}");
}

/// What the schema lets pass, the daemon reads, and the other way round, but for what no schema says well.
#[test]
fn the_schema_of_what_stations_say_is_the_daemons_own_judgement() {
    let action = json!({"schema": "ichd.action/1", "action_id": "a-000001", "alert_id": "01J", "rev": 2, "verb": "ack",
                        "user": "Ann", "reason": null, "feedback": null, "expires_at": "2026-01-01T00:00:00Z"});
    let receipt = json!({"schema": "ichd.receipt/1", "alert_id": "01J", "rev": 2, "stage": "displayed"});
    let station = json!({"schema": "ichd.station/1", "state": "ready"});
    let with = |base: &Value, key: &str, value: Value| {
        let mut changed = base.clone();
        changed[key] = value;
        changed
    };
    let without = |base: &Value, key: &str| {
        let mut changed = base.clone();
        changed.as_object_mut().unwrap().remove(key);
        changed
    };
    let request = json!({"schema": "ichd.request/1", "request_id": "r-000001", "command": "replay", "user": "Ann",
                         "series_ref": "5f"});
    let long = "x".repeat(201);
    let cases = [
        ("action", action.clone()),
        ("action", without(&action, "expires_at")),
        ("action", without(&action, "reason")),
        ("action", without(&action, "user")),
        ("action", without(&action, "rev")),
        ("action", with(&action, "rev", json!(-1))),
        ("action", with(&action, "rev", json!("2"))),
        ("action", with(&action, "user", json!(""))),
        ("action", with(&action, "user", json!(long))),
        ("action", with(&action, "action_id", json!("short"))),
        ("action", with(&action, "reason", json!(long))),
        ("action", with(&action, "verb", json!("discharge"))),
        ("action", with(&action, "verb", json!(null))),
        ("action", with(&action, "schema", json!("ichd.action/2"))),
        ("action", with(&action, "of_a_later_version", json!(1))),
        ("request", request.clone()),
        ("request", without(&request, "series_ref")),
        ("request", without(&request, "user")),
        ("request", with(&request, "command", json!("shutdown"))),
        ("request", with(&request, "request_id", json!("short"))),
        ("receipt", receipt.clone()),
        ("receipt", without(&receipt, "stage")),
        ("receipt", with(&receipt, "stage", json!("read"))),
        ("receipt", with(&receipt, "schema", json!("ichd.alert/1"))),
        ("station", station.clone()),
        ("station", with(&station, "state", json!("asleep"))),
        ("station", with(&station, "ward", json!(long))),
        ("station", with(&station, "sound_ok", json!("yes"))),
        ("station", without(&station, "schema")),
    ];
    let (mut n_valid, mut n_refused) = (0, 0);
    for (name, case) in cases {
        let topic = match name {
            "station" => "ichd/1/north/sta/ward-3/status".to_owned(),
            other => format!("ichd/1/north/sta/ward-3/{other}/ct-1"),
        };
        let (_, read) = inbound::parse("ichd/1/north", "ct-1", &topic, case.to_string().as_bytes()).unwrap();
        let valid = complaints(name, &case).is_empty();
        assert_eq!(valid, read.is_ok(), "{name} {case}: {read:?}");
        *(if valid { &mut n_valid } else { &mut n_refused }) += 1;
    }
    assert!(n_valid >= 6 && n_refused >= 12, "{n_valid} {n_refused}");
}

#[test]
fn what_the_daemon_writes_is_what_the_schema_says() {
    let alert = document::tests::alert();
    let checked = |name: &str, value: Value| {
        assert_eq!(complaints(name, &value), Vec::<String>::new(), "{name}");
        let bare = json!({"schema": value["schema"]});
        assert!(!complaints(name, &bare).is_empty(), "a schema that asks for nothing");
    };
    checked("alert", json!(alert));
    checked("heartbeat", json!(document::Heartbeat::default()));
}
