//! One TOML file; unknown keys are refused. `tools/gateway/gateway.toml` shows every key.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::event::{Change, Event};
use crate::http::Http;
use crate::{hl7, ntfy};

/// The whole configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The broker.
    pub mqtt: Mqtt,
    /// Folder of the queues.
    pub state_directory: PathBuf,
    /// Whom to tell.
    #[serde(default)]
    pub target: Vec<Target>,
}

/// The broker.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mqtt {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Site name, a topic level.
    pub site: String,
    /// Name under which this gateway is enrolled as a bridge.
    pub name: String,
    /// Mutual TLS; may be absent only on this machine.
    #[serde(default)]
    pub tls: Option<Tls>,
}

/// What `ichd enrol add bridge NAME` made.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Tls {
    /// `ca.crt`.
    pub ca: PathBuf,
    /// `bridge.crt`.
    pub certificate: PathBuf,
    /// `bridge.key`.
    pub key: PathBuf,
}

/// One system to tell.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Target {
    /// Folder of its queue and name in the log.
    pub name: String,
    /// Changes that are told.
    #[serde(default = "told")]
    pub tell: Vec<Change>,
    /// Drills and proofs of life as well.
    #[serde(default)]
    pub tests: bool,
    /// An event older than this is not told any more, s.
    #[serde(default = "give_up_s")]
    pub give_up_s: u64,
    /// What it is; exactly one.
    #[serde(default)]
    pub mllp: Option<Mllp>,
    /// FHIR server.
    #[serde(default)]
    pub fhir: Option<Http>,
    /// ntfy topic.
    #[serde(default)]
    pub ntfy: Option<Ntfy>,
    /// Signed webhook.
    #[serde(default)]
    pub webhook: Option<Webhook>,
}

fn told() -> Vec<Change> {
    vec![Change::Raised, Change::Escalated, Change::Acknowledged, Change::Withdrawn, Change::Resolved]
}

fn give_up_s() -> u64 {
    43_200
}

/// HL7 v2 over MLLP.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Mllp {
    /// `host:port`.
    pub address: String,
    /// Names in the message header.
    #[serde(default)]
    pub names: hl7::Names,
}

/// An ntfy topic.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ntfy {
    /// Server and topic.
    pub http: Http,
    /// How much a notification says.
    #[serde(default)]
    pub says: ntfy::Says,
}

/// A signed webhook.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Webhook {
    /// Where.
    pub http: Http,
    /// File with the shared secret, at least 16 bytes.
    pub secret_file: PathBuf,
}

impl Config {
    /// Reads and checks a file; the message names the key and how to fix it.
    pub fn load(path: &Path) -> Result<Self, String> {
        let config: Config =
            toml::from_str(&crate::http::read(path)?).map_err(|e| format!("in `{}`: {e}", path.display()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let level = |s: &str| {
            (1..=32).contains(&s.len())
                && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !level(&self.mqtt.site) || !level(&self.mqtt.name) {
            return Err("mqtt.site and mqtt.name are 1 to 32 lower-case letters, digits and hyphens".into());
        }
        let local = self.mqtt.host == "localhost"
            || self.mqtt.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if self.mqtt.tls.is_none() && !local {
            return Err("mqtt.tls is missing though the broker is not on this machine".into());
        }
        if self.target.is_empty() {
            return Err("no [[target]]: nobody would be told".into());
        }
        for (i, target) in self.target.iter().enumerate() {
            let kinds = [
                target.mllp.is_some(),
                target.fhir.is_some(),
                target.ntfy.is_some(),
                target.webhook.is_some(),
            ];
            if !level(&target.name) || self.target[..i].iter().any(|t| t.name == target.name) {
                return Err(format!("target name `{}` is no name, or stands twice", target.name));
            }
            if kinds.iter().filter(|k| **k).count() != 1 {
                return Err(format!(
                    "target `{}` needs exactly one of mllp, fhir, ntfy, webhook",
                    target.name
                ));
            }
        }
        Ok(())
    }
}

impl Target {
    /// Whether it wants to hear of an event.
    pub fn wants(&self, event: &Event) -> bool {
        self.tell.contains(&event.change) && (self.tests || event.text("/kind") != "test")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_example_is_accepted() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway.toml");
        assert_eq!(Config::load(&path).unwrap().target.len(), 4);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let base = "state-directory = \"/x\"\n[mqtt]\nhost = \"127.0.0.1\"\nport = 1\nsite = \"north\"\nname = \"gateway\"\n";
        let check = |text: &str| {
            toml::from_str::<Config>(&format!("{base}{text}"))
                .map_err(|e| e.to_string())
                .and_then(|c| c.check())
        };
        let mllp = "[[target]]\nname = \"a\"\nmllp = {address = \"h:1\"}\n";
        assert_eq!(check(mllp), Ok(()));
        assert!(check("").unwrap_err().contains("nobody"));
        assert!(check(&format!("{mllp}{mllp}")).unwrap_err().contains("twice"));
        assert!(check("[[target]]\nname = \"a\"\n").unwrap_err().contains("exactly one"));
        assert!(check("[[target]]\nname = \"../a\"\nmllp = {address = \"h:1\"}\n").is_err());
        assert!(check("[[target]]\nname = \"a\"\nmlp = {address = \"h:1\"}\n").unwrap_err().contains("mlp"));
    }
}
