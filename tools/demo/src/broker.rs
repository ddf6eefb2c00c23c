//! An MQTT 5 broker inside this process, on a free loopback port. For the demo only; sites run Mosquitto.

use std::net::SocketAddr;

use mqtt5::broker::MqttBroker;
use mqtt5::broker::config::{BrokerConfig, StorageBackend, StorageConfig, WebSocketConfig};

/// Where the broker listens.
#[derive(Debug, Clone, Copy)]
pub struct Broker {
    /// MQTT over TCP.
    pub mqtt: SocketAddr,
    /// MQTT over websockets, for the station page.
    pub websockets: SocketAddr,
}

/// Starts the broker; it lives as long as the runtime.
pub async fn start() -> Result<Broker, String> {
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let storage =
        StorageConfig { backend: StorageBackend::Memory, enable_persistence: false, ..Default::default() };
    let config = BrokerConfig::default()
        .with_bind_address(free)
        .with_websocket(WebSocketConfig::new().with_bind_address(free))
        .with_storage(storage);
    let mut broker = MqttBroker::with_config(config).await.map_err(|e| e.to_string())?;
    let no_address = "the broker has no address";
    let mqtt = broker.local_addr().ok_or(no_address)?;
    let websockets = broker.ws_local_addr().ok_or(no_address)?;
    tokio::spawn(async move {
        if let Err(error) = broker.run().await {
            eprintln!("ichd-demo: broker ended: {error}");
        }
    });
    Ok(Broker { mqtt, websockets })
}
