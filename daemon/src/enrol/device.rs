//! The drop-in that makes a box a member of its site: nothing is left to be typed. Pure.

use std::fmt::Write;

use super::{PAGE_PORT, Request, Settings};

/// Its name in the device's folder and in `/etc/ichd/ichd.toml.d/`; before `50-stations.toml`, and before what a site writes.
pub const DROP_IN: &str = "40-enrolled.toml";

/// Configuration of an enrolled device. Private keys are named where `ichd.service` finds its credentials; with a
/// certificate of its own for servers it has a station page, too.
pub fn drop_in(settings: &Settings, device: &Request) -> String {
    let mut text = format!(
        "# Device {} of site {}. Written by `ichd enrol`; goes to /etc/ichd/ichd.toml.d/ of that box.\n\
         [site]\nname = \"{}\"\ndevice = \"{}\"\n\n[alert]\n",
        device.name, settings.site, settings.site, device.name
    );
    let broker = settings.broker_names.first().map_or("", String::as_str);
    if device.password {
        let port = settings.ports.loopback;
        let _ = write!(
            text,
            "broker-host = \"127.0.0.1\"\nbroker-port = {port}\npassword-file = \"/run/credentials/ichd.service/password\"\n"
        );
    } else {
        let port = settings.ports.mqtt;
        let _ = write!(
            text,
            "broker-host = \"{broker}\"\nbroker-port = {port}\n[alert.tls]\nca = \"/etc/ichd/tls/ca.crt\"\n\
             certificate = \"/etc/ichd/tls/device.crt\"\nkey = \"/run/credentials/ichd.service/device.key\"\n"
        );
    }
    if !device.addresses.is_empty() && settings.ports.websockets != 0 {
        let host = if broker.contains(':') { format!("[{broker}]") } else { broker.to_owned() };
        let port = settings.ports.websockets;
        let _ = write!(
            text,
            "\n[station]\nlisten = \"0.0.0.0:{PAGE_PORT}\"\nbroker-url = \"wss://{host}:{port}\"\n[station.tls]\n\
             ca = \"/etc/ichd/tls/ca.crt\"\ncertificate = \"/etc/ichd/tls/server.crt\"\n\
             key = \"/run/credentials/ichd.service/station.key\"\n"
        );
    }
    text
}
