//! An MQTT 5 broker inside this process, on a free loopback port. For the demo only; sites run Mosquitto.

use std::net::SocketAddr;

use mqtt5::broker::MqttBroker;
use mqtt5::broker::config::{BrokerConfig, StorageBackend, StorageConfig};

/// Starts the broker; it lives as long as the runtime.
pub async fn start() -> Result<SocketAddr, String> {
    let storage =
        StorageConfig { backend: StorageBackend::Memory, enable_persistence: false, ..Default::default() };
    let config = BrokerConfig::default()
        .with_bind_address(SocketAddr::from(([127, 0, 0, 1], 0)))
        .with_storage(storage);
    let mut broker = MqttBroker::with_config(config).await.map_err(|e| e.to_string())?;
    let address = broker.local_addr().ok_or("the broker has no address")?;
    tokio::spawn(async move {
        if let Err(error) = broker.run().await {
            eprintln!("ichd-demo: broker ended: {error}");
        }
    });
    Ok(address)
}
