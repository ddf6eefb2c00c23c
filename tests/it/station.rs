//! A station as a small program would be: holds the highest revision of every alert, answers each document with
//! receipts, acts when told to. Over the real broker.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, Packet};
use rumqttc::v5::{Client, Event, MqttOptions};
use serde_json::{Value, json};

/// What a station has seen.
#[derive(Default)]
pub struct Seen {
    /// Highest revision of every alert.
    pub alerts: BTreeMap<String, Value>,
    /// What appeared as new of each study: its alert, and whatever else a person would take for another one.
    pub shown: BTreeMap<String, BTreeSet<String>>,
    /// Retained documents that were purged.
    pub purged: Vec<String>,
    /// Answers to actions.
    pub replies: Vec<Value>,
    /// Answers to requests.
    pub answers: Vec<Value>,
}

pub struct Station {
    pub name: String,
    client: Client,
    seen: Arc<Mutex<Seen>>,
    gone: Arc<AtomicBool>,
    offline: String,
}

impl Station {
    /// Links to a broker on this machine and starts a shift; links again for ever.
    pub fn on_shift(broker_port: u16, name: &str, role: &str) -> Self {
        let mut options = MqttOptions::new(format!("sta-{name}"), "127.0.0.1", broker_port);
        options.set_keep_alive(Duration::from_secs(5)).set_clean_start(true);
        options.set_max_packet_size(Some(1 << 20));
        let status = |state: &str| {
            json!({"schema": "ichd.station/1", "state": state, "role": role, "ward": "3", "user": "Ann", "sound_ok": true,
                   "visible": true, "version": "test"})
            .to_string()
        };
        let topic = format!("ichd/1/north/sta/{name}/status");
        options.set_last_will(LastWill::new(topic.clone(), status("offline"), QoS::AtLeastOnce, true, None));
        let (client, mut connection) = Client::new(options, 10_000);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (gone, offline) = (Arc::new(AtomicBool::new(false)), status("offline"));
        let station = Station {
            name: name.into(),
            client: client.clone(),
            seen: seen.clone(),
            gone: gone.clone(),
            offline,
        };
        let (ready, name) = (status("ready"), name.to_owned());
        std::thread::spawn(move || {
            for event in connection.iter() {
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        let _ = client.try_publish(topic.clone(), QoS::AtLeastOnce, true, ready.clone());
                        let _ = client.try_subscribe("ichd/1/north/dev/+/alert/+", QoS::AtLeastOnce);
                        let _ = client
                            .try_subscribe(format!("ichd/1/north/dev/+/reply/{name}"), QoS::AtLeastOnce);
                        let _ = client
                            .try_subscribe(format!("ichd/1/north/dev/+/answer/{name}"), QoS::AtLeastOnce);
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => {
                        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                        take(&client, &name, &seen, &topic, &publish.payload);
                    }
                    Ok(_) => {}
                    // Its test is over, or the broker is down.
                    Err(_) if Arc::strong_count(&seen) == 1 || gone.load(Ordering::Relaxed) => return,
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        });
        station
    }

    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    /// A person at this station does something with the revision it shows.
    pub fn act(&self, alert_id: &str, verb: &str, user: &str, action_id: &str) {
        let rev = self.seen(|s| s.alerts.get(alert_id).and_then(|a| a["rev"].as_u64()).unwrap_or(1));
        let action = json!({"schema": "ichd.action/1", "action_id": action_id, "alert_id": alert_id, "rev": rev,
                            "verb": verb, "user": user});
        let topic = format!("ichd/1/north/sta/{}/action/ct-1", self.name);
        self.client.publish(topic, QoS::AtLeastOnce, false, action.to_string()).unwrap();
    }

    /// Asks the box for something and waits for its answer.
    pub fn ask(&self, request_id: &str, command: &str, series_ref: Option<&str>) -> Value {
        let request = json!({"schema": "ichd.request/1", "request_id": request_id, "command": command, "user": "Ann",
                             "series_ref": series_ref});
        let topic = format!("ichd/1/north/sta/{}/request/ct-1", self.name);
        self.client.publish(topic, QoS::AtLeastOnce, false, request.to_string()).unwrap();
        let answer = || self.seen(|s| s.answers.iter().find(|a| a["request_id"] == request_id).cloned());
        crate::peers::wait_until("an answer", || answer().is_some());
        answer().unwrap()
    }

    /// The end of the shift, in order.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
        let topic = format!("ichd/1/north/sta/{}/status", self.name);
        self.client.publish(topic, QoS::AtLeastOnce, true, self.offline.clone()).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let _ = self.client.disconnect();
    }
}

fn take(client: &Client, name: &str, seen: &Mutex<Seen>, topic: &str, payload: &[u8]) {
    let mut seen = seen.lock().unwrap();
    if topic.contains("/answer/") {
        seen.answers.extend(serde_json::from_slice(payload).ok());
        return;
    }
    if topic.contains("/reply/") {
        seen.replies.extend(serde_json::from_slice(payload).ok());
        return;
    }
    let Some(alert_id) = topic.rsplit('/').next().map(str::to_owned) else { return };
    if payload.is_empty() {
        return seen.purged.push(alert_id);
    }
    let Ok(document) = serde_json::from_slice::<Value>(payload) else { return };
    let rev = document["rev"].as_u64().unwrap_or(0);
    let held = seen.alerts.get(&alert_id).and_then(|a| a["rev"].as_u64());
    if held.is_none_or(|held| rev > held) {
        let again = if seen.purged.contains(&alert_id) { " after it was purged" } else { "" };
        // Trouble of the box has no study, and a code that may come again.
        if let Some(study) = document["study"]["study_ref"].as_str().filter(|s| !s.is_empty()) {
            seen.shown.entry(study.to_owned()).or_default().insert(format!("{alert_id}{again}"));
        }
        seen.alerts.insert(alert_id.clone(), document);
    }
    // One that comes again is answered again: the first receipt may have been lost.
    for stage in ["received", "displayed"] {
        let receipt = json!({"schema": "ichd.receipt/1", "alert_id": alert_id, "rev": rev, "stage": stage});
        let topic = format!("ichd/1/north/sta/{name}/receipt/ct-1");
        let _ = client.try_publish(topic, QoS::AtLeastOnce, false, receipt.to_string());
    }
}
