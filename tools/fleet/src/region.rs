//! The region's side: one subscriber to everything, which measures how long an alert takes from box to region.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::Packet;
use rumqttc::v5::{AsyncClient, Event, MqttOptions};

use crate::clock;

/// What it has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// When each alert was handed to its appliance's link; removed when it arrives.
    sent: Mutex<HashMap<String, Instant>>,
    took: Mutex<Vec<Duration>>,
    /// Publishes of any kind.
    pub messages: AtomicU64,
    /// Bytes of their topics and payloads.
    pub bytes: AtomicU64,
}

impl Seen {
    /// An alert leaves its appliance now.
    pub fn leaves(&self, id: &str) {
        lock(&self.sent).insert(id.to_owned(), clock::now());
    }

    /// Alerts on their way.
    pub fn under_way(&self) -> usize {
        lock(&self.sent).len()
    }

    /// How long the alerts took that have arrived since this was asked last, shortest first.
    pub fn take(&self) -> Vec<Duration> {
        let mut took = std::mem::take(&mut *lock(&self.took));
        took.sort();
        took
    }

    fn arrives(&self, topic: &str, payload: &[u8]) {
        self.messages.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add((topic.len() + payload.len()) as u64, Ordering::Relaxed);
        if payload.is_empty() {
            return;
        }
        if let Some((_, id)) = topic.split_once("/alert/")
            && let Some(at) = lock(&self.sent).remove(id)
        {
            lock(&self.took).push(clock::now() - at);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Subscribes to everything of every site, and again whenever the link breaks.
pub fn watch(broker: (&str, u16)) -> Arc<Seen> {
    let seen = Arc::new(Seen::default());
    let mut options = MqttOptions::new("region", broker.0, broker.1);
    options
        .set_keep_alive(Duration::from_secs(60))
        .set_max_packet_size(Some(1 << 20))
        .set_receive_maximum(Some(1000));
    let (client, mut events) = AsyncClient::new(options, 16);
    let noted = seen.clone();
    tokio::spawn(async move {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    let _ = client.try_subscribe("ichd/1/#", QoS::AtLeastOnce);
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    noted.arrives(&String::from_utf8_lossy(&publish.topic), &publish.payload);
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    });
    seen
}

/// The value that a share of all does not exceed, ms.
pub fn percentile_ms(sorted: &[Duration], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = ((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1).min(last);
    sorted.get(at).map_or(f64::NAN, |d| d.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile_ms(&values, 0.5), 50.0);
        assert_eq!(percentile_ms(&values, 0.99), 99.0);
        assert_eq!(percentile_ms(&values, 1.0), 100.0);
        assert!(percentile_ms(&[], 0.5).is_nan());
    }

    #[test]
    fn an_alert_is_measured_once_and_a_purge_not_at_all() {
        let seen = Seen::default();
        seen.leaves("x");
        seen.arrives("ichd/1/s/dev/d/alert/x", b"");
        assert_eq!(seen.under_way(), 1);
        seen.arrives("ichd/1/s/dev/d/alert/x", b"{}");
        seen.arrives("ichd/1/s/dev/d/alert/x", b"{}");
        assert_eq!((seen.under_way(), seen.take().len(), seen.take().len()), (0, 1, 0));
    }
}
