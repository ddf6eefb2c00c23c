//! One simulated appliance: what a real one says to a broker, and nothing that is read. Documents are those of the wire
//! (`ichd::alert::document`, held by a test), privacy level opaque.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{LastWill, Packet};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::json;

/// What all appliances count together.
#[derive(Debug, Default)]
pub struct Counts {
    /// Linked to the broker at this moment.
    pub linked: AtomicU64,
    /// Links made so far.
    pub links: AtomicU64,
    /// Alerts for which the broker has answered.
    pub acknowledged: AtomicU64,
    /// Publishes that did not fit into an appliance's queue: the simulation is too slow, not the broker.
    pub dropped: AtomicU64,
}

/// The publishing half; the other one runs by itself.
#[derive(Debug, Clone)]
pub struct Appliance {
    name: String,
    client: AsyncClient,
}

/// Appliances of one site, as a hospital group would have.
const PER_SITE: usize = 10;

impl Appliance {
    /// Links appliance `n` to the broker, and again whenever the link breaks.
    pub fn start(n: usize, broker: (&str, u16), counts: Arc<Counts>) -> Self {
        let name = format!("ichd/1/site-{}/dev/ct-{}", n / PER_SITE, n % PER_SITE);
        let mut options =
            MqttOptions::new(format!("site-{}-ct-{}", n / PER_SITE, n % PER_SITE), broker.0, broker.1);
        options
            .set_keep_alive(Duration::from_secs(60))
            .set_clean_start(true)
            .set_max_packet_size(Some(1 << 20));
        // The library makes room for as many unanswered publishes as it may have: 65535 of each of 10 000 boxes are too many.
        options.set_outgoing_inflight_upper_limit(16);
        let will = LastWill::new(format!("{name}/status"), status("lost", n), QoS::AtLeastOnce, true, None);
        options.set_last_will(will);
        let (client, mut events) = AsyncClient::new(options, 16);
        let appliance = Appliance { name: name.clone(), client: client.clone() };
        tokio::spawn(async move {
            let mut linked = false;
            // Real boxes do not all come back in the same instant either; where each stands in the queue is fixed.
            let patience = Duration::from_millis(500 + (n as u64 * 7919) % 4500);
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        linked = true;
                        counts.linked.fetch_add(1, Ordering::Relaxed);
                        counts.links.fetch_add(1, Ordering::Relaxed);
                        let _ = client.try_publish(
                            format!("{name}/status"),
                            QoS::AtLeastOnce,
                            true,
                            status("ready", n),
                        );
                    }
                    Ok(Event::Incoming(Packet::PubAck(_))) => {
                        counts.acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(_) => {}
                    Err(_) => {
                        if std::mem::take(&mut linked) {
                            counts.linked.fetch_sub(1, Ordering::Relaxed);
                        }
                        tokio::time::sleep(patience).await;
                    }
                }
            }
        });
        appliance
    }

    /// A sign of life; false if the queue is full.
    pub fn heartbeat(&self, uptime_s: u64) -> bool {
        let topic = format!("{}/heartbeat", self.name);
        self.client.try_publish(topic, QoS::AtMostOnce, false, heartbeat(uptime_s)).is_ok()
    }

    /// An open alert, retained.
    pub fn alert(&self, id: &str) -> bool {
        let topic = format!("{}/alert/{id}", self.name);
        self.client.try_publish(topic, QoS::AtLeastOnce, true, alert(id)).is_ok()
    }

    /// The alert is over: the broker forgets it.
    pub fn purge(&self, id: &str) -> bool {
        let topic = format!("{}/alert/{id}", self.name);
        self.client.try_publish(topic, QoS::AtLeastOnce, true, "").is_ok()
    }
}

fn status(state: &str, n: usize) -> String {
    json!({
        "schema": "ichd.status/1", "state": state, "boot": 1, "conn": 1, "version": "0.1.0", "slot": if n.is_multiple_of(2) { "A" } else { "B" },
        "model": {"id": "ichd-base", "version": "0.1.0", "sha256": "0".repeat(64)}, "reasons": []
    })
    .to_string()
}

fn heartbeat(uptime_s: u64) -> String {
    json!({
        "schema": "ichd.heartbeat/1", "uptime_s": uptime_s, "last_study_age_s": 1234, "last_proof_age_s": 1800,
        "proof_interval_s": 3600, "outbox_depth": 0, "open_alerts": 1, "oldest_unacknowledged_s": 40, "dicom_ok": true,
        "infer_ok": true, "disk_ok": true
    })
    .to_string()
}

fn alert(id: &str) -> String {
    json!({
        "schema": "ichd.alert/1", "alert_id": id, "rev": 3, "kind": "finding", "stage": "final", "state": "raised",
        "priority": 1, "device": "ct-1", "site": "site-1", "boot": 1, "seq": 3, "raised_at": "2026-01-01T00:00:00.000Z",
        "published_at": "2026-01-01T00:00:01.000Z", "age_ms": 1000, "clock": {"synced": true, "offset_ms": 1},
        "expires_at": "2026-01-01T12:00:00.000Z", "subject": {"ref": "K7P-29"},
        "study": {"study_ref": "0123456789abcdef", "acquired_at": null, "slices": 32},
        "finding": {
            "subtypes": ["intraparenchymal"],
            "p": {"any": 0.97, "epidural": 0.01, "intraparenchymal": 0.95, "intraventricular": 0.2, "subarachnoid": 0.1, "subdural": 0.05},
            "side": "left", "slice_range": [11, 17], "volume_ml": 24.0, "operating_point": "final"
        },
        "model": {"id": "ichd-base", "version": "0.1.0", "sha256": "0".repeat(64)}, "quality": {"ok": true, "flags": []},
        "timings_ms": {"last_slice_to_verdict": 900, "verdict_to_publish": 3},
        "escalation": {"policy": "default", "step": 0, "next_in_ms": 120_000, "roles": ["nurse"]}, "receipts": [], "sound_rev": 1,
        "supersedes": [], "addendum": [],
        "disclaimer": "Notification of a suspected finding by software, not a diagnosis. Not a medical device."
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_simulated_is_what_the_daemon_says() {
        let _: ichd::alert::document::Status = serde_json::from_str(&status("ready", 1)).unwrap();
        let _: ichd::alert::document::Heartbeat = serde_json::from_str(&heartbeat(5)).unwrap();
        let alert: ichd::alert::document::Alert =
            serde_json::from_str(&alert("01JDZ0000000000000000000AA")).unwrap();
        assert!(alert.state.is_open() && alert.subject.enc.is_none());
    }
}
