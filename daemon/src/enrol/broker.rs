//! What Mosquitto is told (pure): listeners, who may do what, password hashes. Valid for 2.0 and 2.1.
//!
//! Deliberately absent: anonymous clients, ACL patterns (`%u` would let any role play any other), wildcards beyond one's
//! own topics, and `per_listener_settings` (deprecated in 2.1).

use std::fmt::Write as _;
use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::pbkdf2;

use super::{Identity, Proof, Role, Settings};

/// Rounds of PBKDF2. Passwords here are 120 random bits, which no rounds make safer, and the broker is one thread:
/// whoever may try passwords could stop it with costly ones.
const PASSWORD_ROUNDS: NonZeroU32 = NonZeroU32::new(101).expect("not zero");

/// Largest packet, bytes: an alert with a picture is some 100 KB. 2.0 has no limit of its own, 2.1 has 2 000 000.
const PACKET_BYTES_MAX: u32 = 1 << 20;

/// What one identity may do with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// Be given what others publish there.
    Read,
    /// Publish there.
    Write,
}

/// Topics of a role, as docs/ENROLMENT.md says. A station answers for itself only; only an engineer's sees the others and asks
/// boxes; only a device makes alerts; a bridge and a viewer say nothing.
pub fn grants(site: &str, role: Role, name: &str) -> Vec<(May, String)> {
    let root = format!("ichd/1/{site}");
    let shown = ["dev/+/status", "dev/+/heartbeat", "dev/+/alert/+", "dev/+/study/+"].map(str::to_owned);
    let (read, write): (Vec<String>, Vec<String>) = match role {
        Role::Device => (
            ["status".into(), format!("receipt/{name}"), format!("action/{name}"), format!("request/{name}")]
                .map(|t| format!("sta/+/{t}"))
                .into(),
            ["status", "heartbeat", "alert/+", "study/+", "reply/+", "answer/+"]
                .map(|t| format!("dev/{name}/{t}"))
                .into(),
        ),
        Role::Station => (
            shown.into_iter().chain([format!("dev/+/reply/{name}")]).collect(),
            ["status", "receipt/+", "action/+"].map(|t| format!("sta/{name}/{t}")).into(),
        ),
        Role::Engineer => (
            shown
                .into_iter()
                .chain([format!("dev/+/reply/{name}"), format!("dev/+/answer/{name}"), "sta/+/status".into()])
                .collect(),
            ["status", "receipt/+", "action/+", "request/+"].map(|t| format!("sta/{name}/{t}")).into(),
        ),
        Role::Viewer | Role::Bridge => (shown.into(), vec![]),
    };
    let topics = |may, list: Vec<String>| {
        let root = root.clone();
        list.into_iter().map(move |topic| (may, format!("{root}/{topic}")))
    };
    topics(May::Read, read).chain(topics(May::Write, write)).collect()
}

/// The `acl_file`: every identity by name; who is not in it may do nothing.
pub fn acl(site: &str, identities: &[Identity]) -> String {
    let mut text = format!(
        "# Who may do what on the broker of site {site}. Written by `ichd enrol`; who is not named may do nothing.\n"
    );
    for identity in identities {
        let _ = write!(text, "\n# {}\nuser {}\n", identity.role.as_str(), identity.name);
        for (may, topic) in grants(site, identity.role, &identity.name) {
            let verb = match may {
                May::Read => "read",
                May::Write => "write",
            };
            let _ = writeln!(text, "topic {verb} {topic}");
        }
    }
    text
}

/// The `password_file`.
pub fn passwords(identities: &[Identity]) -> String {
    let line = |i: &Identity| match &i.proof {
        Proof::Password { hash } => Some(format!("{}:{hash}\n", i.name)),
        Proof::Certificate { .. } => None,
    };
    identities.iter().filter_map(line).collect()
}

/// Mosquitto's `$7$`: PBKDF2 with SHA-512. 2.0 takes a salt of 12 bytes only.
pub fn password_hash(password: &str, salt: &[u8; 12]) -> String {
    let mut hash = [0; 64];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA512, PASSWORD_ROUNDS, salt, password.as_bytes(), &mut hash);
    format!("$7${PASSWORD_ROUNDS}${}${}", STANDARD.encode(salt), STANDARD.encode(hash))
}

/// The whole `mosquitto.conf`.
pub fn configuration(settings: &Settings) -> String {
    let dir = settings.broker_dir.display();
    let mut text = format!(
        "# Broker of site {site}, for Mosquitto 2.0 and 2.1. Written by `ichd enrol`: lines of your own go to conf.d/.\n\
         # 2.1 calls acl_file and password_file deprecated and reads them all the same.\n\
         allow_anonymous false\n\
         acl_file {dir}/acl\n\
         password_file {dir}/passwords\n\
         max_packet_size {PACKET_BYTES_MAX}\n\
         # What the broker loses in a power cut, devices and stations say again.\n\
         persistence true\n\
         persistence_location {persistence}/\n\
         autosave_interval 60\n\
         persistent_client_expiration 1d\n\
         log_type error\nlog_type warning\nlog_type notice\n",
        site = settings.site,
        persistence = settings.persistence_dir.display().to_string().trim_end_matches('/'),
    );
    let ports = settings.ports;
    let listener = |about: &str, port: u16, address: &str, protocol: &str| {
        format!(
            "\n# {about}\nlistener {port} {address}\nprotocol {protocol}\n\
             # A client identifier is one's own name: nobody can throw out another by taking theirs.\n\
             use_username_as_clientid true\n"
        )
    };
    let server = format!("certfile {dir}/broker.crt\nkeyfile {dir}/broker.key\n");
    let mutual = format!(
        "cafile {dir}/ca.crt\n{server}crlfile {dir}/ca.crl\nrequire_certificate true\nuse_identity_as_username true\n"
    );
    let listen = settings.listen.as_str();
    if ports.mqtt != 0 {
        text += &listener("MQTT over mutual TLS", ports.mqtt, listen, "mqtt");
        text += &mutual;
    }
    if ports.websockets != 0 {
        text += &listener("Websockets over mutual TLS", ports.websockets, listen, "websockets");
        text += &mutual;
    }
    if ports.websockets_password != 0 {
        let about = "Websockets over TLS with name and password, for browsers without a certificate";
        text += &listener(about, ports.websockets_password, listen, "websockets");
        text += &server;
    }
    if ports.loopback != 0 {
        text += &listener("This machine only: name and password", ports.loopback, "127.0.0.1", "mqtt");
    }
    let _ = write!(text, "\ninclude_dir {dir}/conf.d\n");
    text
}
