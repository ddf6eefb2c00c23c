//! A minimal subscriber: what a nurse station does first. It applies a document only if its revision is higher.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tokio::sync::mpsc;

/// One document that was news.
#[derive(Debug, Clone)]
pub struct Document {
    /// Topic.
    pub topic: String,
    /// JSON.
    pub body: serde_json::Value,
    /// When it arrived.
    pub at: Instant,
}

/// Subscribes to everything of every site; ends when the receiver is dropped.
pub fn start(broker: SocketAddr, now: fn() -> Instant) -> mpsc::Receiver<Document> {
    let (tx, rx) = mpsc::channel(256);
    tokio::spawn(async move {
        let mut options = MqttOptions::new("ichd-demo-station", broker.ip().to_string(), broker.port());
        options.set_keep_alive(Duration::from_secs(5)).set_max_packet_size(Some(1 << 20));
        let (client, mut events) = AsyncClient::new(options, 16);
        let mut revisions: HashMap<String, u64> = HashMap::new();
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    let _ = client.try_subscribe("ichd/1/#", QoS::AtLeastOnce);
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                    let Ok(body) = serde_json::from_slice::<serde_json::Value>(&publish.payload) else {
                        continue;
                    };
                    if let (Some(id), Some(rev)) = (body["alert_id"].as_str(), body["rev"].as_u64()) {
                        let held = revisions.entry(id.to_owned()).or_default();
                        if rev <= *held {
                            continue;
                        }
                        *held = rev;
                    }
                    if tx.send(Document { topic, body, at: now() }).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    });
    rx
}
