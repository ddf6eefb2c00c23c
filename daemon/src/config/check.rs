//! What a configuration may not say, table by table. Each refusal names the key, what is wrong with it, and how to fix it.

use std::net::IpAddr;

use super::{
    Alert, Assemble, Backend, Config, ConfigError, Infer, Models, Receive, ReceiveTls, Site, Station, Update,
};
use crate::privacy::Level;

const LEVEL_MEND: &str = "use 1 to 32 lower-case letters, digits and hyphens";
const LIST_MEND: &str = "list it in both, or in neither";

/// Refuses the key unless the condition holds.
fn must(holds: bool, key: &'static str, problem: &str, mend: &str) -> Result<(), ConfigError> {
    match holds {
        true => Ok(()),
        false => Err(ConfigError::Value { key, problem: problem.into(), mend: mend.into() }),
    }
}

/// The whole configuration, after its drop-ins.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    site(&config.site)?;
    receive(&config.receive)?;
    assemble(&config.assemble)?;
    infer(&config.infer)?;
    report(config)?;
    forward(config)?;
    spool(config)?;
    watched(config)?;
    privacy(config)?;
    alert(&config.alert)?;
    must(config.proof.limit_s > 0, "proof.limit-s", "is 0", "give a proof of life some time, such as 120")?;
    let interval_s = config.proof.interval_s;
    let long_enough = interval_s == 0 || interval_s >= 60;
    must(long_enough, "proof.interval-s", "is too short", "use at least 60, or 0 for on demand only")?;
    config.chain_policy()?;
    update(&config.update)?;
    models(&config.models)?;
    station(&config.station)
}

fn site(site: &Site) -> Result<(), ConfigError> {
    must(is_level(&site.name), "site.name", "is not a topic level", LEVEL_MEND)?;
    must(is_level(&site.device), "site.device", "is not a topic level", LEVEL_MEND)
}

fn receive(receive: &Receive) -> Result<(), ConfigError> {
    let pdu = (4_096..=1 << 20).contains(&receive.pdu_bytes_max);
    must(pdu, "receive.pdu-bytes-max", "is out of range", "choose 4096 to 1048576 bytes")?;
    let some = receive.associations_max > 0;
    must(some, "receive.associations-max", "is 0", "allow at least 1 association")?;
    let timed =
        receive.handshake_timeout_ms > 0 && receive.idle_timeout_ms > 0 && receive.total_timeout_ms > 0;
    must(timed, "receive", "has a timeout of 0", "give handshake-, idle- and total-timeout-ms at least 1")?;
    if let Some(tls) = &receive.tls {
        receive_tls(receive, tls)?;
    }
    for peer in &receive.peer {
        address(&peer.address, "receive.peer.address")?;
        must(
            receive.calling_ae_titles.contains(&peer.ae_title),
            "receive.peer.ae-title",
            "is not in receive.calling-ae-titles",
            "a peer has to be admitted before it can ask; list it there too",
        )?;
        certified(peer.tls, receive, "receive.peer.tls")?;
    }
    Ok(())
}

fn receive_tls(receive: &Receive, tls: &ReceiveTls) -> Result<(), ConfigError> {
    let own_port = tls.listen != receive.listen || tls.listen.port() == 0;
    let mend = "give TLS a port of its own, such as 2762";
    must(own_port, "receive.tls.listen", "is receive.listen", mend)?;
    let admitted = |t| receive.calling_ae_titles.contains(t);
    let stranger = "names a title that is not in receive.calling-ae-titles";
    let bound = tls.ae_titles.values().flatten().all(admitted);
    must(bound, "receive.tls.ae-titles", stranger, LIST_MEND)?;
    let plain = tls.plaintext_ae_titles.iter().all(admitted);
    must(plain, "receive.tls.plaintext-ae-titles", stranger, LIST_MEND)
}

fn assemble(assemble: &Assemble) -> Result<(), ConfigError> {
    must(
        assemble.quiet_ms <= assemble.quiet_incomplete_ms,
        "assemble.quiet-ms",
        "exceeds quiet-incomplete-ms",
        "lower it, or raise the other",
    )?;
    let any = assemble.slices_max >= 2 && assemble.open_series_max > 0;
    must(any, "assemble", "allows no series", "set slices-max >= 2 and open-series-max >= 1")
}

fn infer(infer: &Infer) -> Result<(), ConfigError> {
    if infer.backend != Backend::Onnxruntime {
        return Ok(());
    }
    must(
        cfg!(feature = "ort"),
        "infer.backend",
        "is not in this program",
        "choose `tract`, or build with the cargo feature `ort`",
    )?;
    must(
        infer.onnxruntime_library.as_ref().is_some_and(|path| path.is_absolute()),
        "infer.onnxruntime-library",
        "is no absolute path",
        "name the shared library, such as /usr/lib/libonnxruntime.so",
    )
}

fn report(config: &Config) -> Result<(), ConfigError> {
    for destination in &config.report.destination {
        address(&destination.address, "report.destination.address")?;
        certified(destination.tls, &config.receive, "report.destination.tls")?;
        let some = !destination.objects.is_empty();
        let mend = "name at least one kind, or leave it out";
        must(some, "report.destination.objects", "is empty", mend)?;
    }
    Ok(())
}

fn forward(config: &Config) -> Result<(), ConfigError> {
    for rule in &config.forward {
        address(&rule.address, "forward.address")?;
        certified(rule.tls, &config.receive, "forward.tls")?;
        let once = config.forward.iter().filter(|other| other.name() == rule.name()).count() == 1;
        must(once, "forward", "names a node twice", "put both rules into one")?;
    }
    Ok(())
}

fn spool(config: &Config) -> Result<(), ConfigError> {
    must(
        config.spool.free_bytes_target >= config.receive.free_bytes_min,
        "spool.free-bytes-target",
        "is below receive.free-bytes-min",
        "raise it: scanners would be refused before anything is purged",
    )
}

/// Those who look on: the audit repository, metrics, health.
fn watched(config: &Config) -> Result<(), ConfigError> {
    if let Some(atna) = &config.atna {
        address(&atna.address, "atna.address")?;
        must(atna.queue_max > 0, "atna.queue-max", "is 0", "allow at least 1 message to wait")?;
    }
    must(
        config.metrics.listen.is_none_or(|address| address.ip().is_loopback()),
        "metrics.listen",
        "is not on loopback",
        "use 127.0.0.1, with a proxy where others must ask",
    )?;
    let health = &config.health;
    let paced = health.heartbeat_s > 0 && health.stage_silence_max_s > 0;
    must(paced, "health", "has a zero interval", "use at least 1 s")
}

fn privacy(config: &Config) -> Result<(), ConfigError> {
    let privacy = &config.privacy;
    must(
        privacy.level != Level::Location || !privacy.location.is_empty(),
        "privacy.location",
        "is missing",
        "say where the scanner stands, or choose level opaque",
    )?;
    let sealed = privacy.level <= Level::Location || privacy.keys.is_some();
    must(sealed, "privacy.keys", "is missing", "name the JWK Set that `ichd enrol key` makes")
}

fn alert(alert: &Alert) -> Result<(), ConfigError> {
    let loopback = alert.broker_host == "localhost"
        || alert.broker_host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    must(
        alert.tls.is_some() || loopback,
        "alert.tls",
        "is missing though the broker is not on this machine",
        "add [alert.tls] with ca, certificate and key",
    )?;
    let timed = alert.puback_timeout_ms > 0 && alert.expiry_s >= 60;
    must(
        timed,
        "alert",
        "has a time that is too short",
        "give puback-timeout-ms at least 1 and expiry-s at least 60",
    )?;
    let hysteresis = (0.0..=0.5).contains(&alert.hysteresis);
    must(hysteresis, "alert.hysteresis", "is out of range", "choose 0.0 to 0.5")?;
    match alert.stations.keys().find(|name| !is_level(name)) {
        Some(name) => must(false, "alert.stations", &format!("`{name}` is not a topic level"), LEVEL_MEND),
        None => Ok(()),
    }
}

fn update(update: &Update) -> Result<(), ConfigError> {
    must(
        update.window_utc.is_none() || update.window().is_some(),
        "update.window-utc",
        "is no part of the day",
        "write HH:MM-HH:MM, such as 01:00-04:00",
    )?;
    let plain = |s: &str| s.starts_with('/') || s.starts_with("https://");
    let from = update.source.as_deref().is_none_or(plain);
    must(from, "update.source", "is neither a path nor https", "write /media/usb or https://...")
}

fn models(models: &Models) -> Result<(), ConfigError> {
    must(
        (0.5..=1.0).contains(&models.agreement_min) && models.series_min > 0 && models.positives_min > 0,
        "models",
        "has a rule that any model would pass",
        "use series-min and positives-min >= 1 and agreement-min from 0.5 to 1.0",
    )
}

fn station(station: &Station) -> Result<(), ConfigError> {
    let Some(listen) = station.listen else { return Ok(()) };
    let leaves = !listen.ip().is_loopback();
    must(
        station.tls.is_some() || !leaves,
        "station.tls",
        "is missing though the page leaves this machine",
        "add [station.tls] with ca, certificate and key, or listen on 127.0.0.1",
    )?;
    let named = station.tls.as_ref().is_some_and(|tls| tls.ca.is_some());
    must(
        named || !leaves || station.allow_anonymous,
        "station.tls.ca",
        "is missing though the page leaves this machine",
        "set it, or say allow-anonymous = true in [station]",
    )?;
    // It stands in a header of every answer.
    let is_url = |prefix| {
        station.broker_url.strip_prefix(prefix).is_some_and(|rest: &str| {
            !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || b".:-_/[]".contains(&b))
        })
    };
    must(
        is_url("wss://") || (station.tls.is_none() && is_url("ws://")),
        "station.broker-url",
        "is no address of a broker that the page may use",
        "write wss://host:port, the broker's websockets listener as a station reaches it",
    )?;
    let levels = station.devices.iter().all(|d| is_level(d));
    must(levels, "station.devices", "names what is no topic level", LEVEL_MEND)
}

/// Somebody we call: a host and a port.
fn address(address: &str, key: &'static str) -> Result<(), ConfigError> {
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    must(port.is_some_and(|port| port > 0), key, "names no port", "write it as \"10.1.2.3:104\"")
}

/// Whoever is called over TLS is shown the certificates of `[receive.tls]`.
fn certified(tls: bool, receive: &Receive, key: &'static str) -> Result<(), ConfigError> {
    must(!tls || receive.tls.is_some(), key, "needs certificates", "add [receive.tls]")
}

/// A name that may be a level of an MQTT topic.
fn is_level(s: &str) -> bool {
    !s.is_empty()
        && s.len() <= 32
        && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}
