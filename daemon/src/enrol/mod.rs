//! Who may speak on the site's broker: certificates, passwords, and the Mosquitto configuration that holds everybody to
//! their own topics.
//!
//! One folder is the whole truth, kept off the box by whoever enrols:
//!
//! ```text
//! enrolment.json                     site, listeners, every identity ever enrolled (no secret in it but hashes)
//! ca/ca.crt, ca.key                  the site's own authority; ca.key is what must not be lost or leaked
//! broker/mosquitto.conf, acl, passwords, ca.crt, ca.crl, broker.crt, broker.key        goes to the broker
//! broker/conf.d/                     lines of the site's own; never touched
//! privacy/privacy.jwks                keys for patient data; goes to daemons and stations, never to the broker
//! daemon/50-stations.toml             goes to every daemon: whom it may believe
//! device/NAME/40-enrolled.toml        goes to that device: its name, its broker, its page
//! device|station|engineer|viewer|bridge/NAME/ goes to the one who bears the name
//! ```
//!
//! Name = CN = MQTT user = topic level. A name is used once at a time over all roles. The ACL names every identity, so
//! who was revoked may do nothing even where a listener does not read the revocation list. Every file is 0600, synced
//! and renamed into place; an existing one is replaced only if it still is what was written last.

mod authority;
pub mod broker;
pub mod device;
mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex;
use authority::Authority;
pub use authority::password;
pub use files::create as write_secret;

/// Days that a person's or device's certificate is good for, unless asked otherwise.
pub const CLIENT_DAYS: u32 = 5 * 365;
/// Days of a server certificate: Apple's devices refuse more, whoever signed it.
pub const SERVER_DAYS: u32 = 825;

/// Where a box of ours serves the station page.
pub const PAGE_PORT: u16 = 8443;

/// What an identity is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A box with this daemon.
    Device,
    /// A page or phone that people answer on.
    Station,
    /// A station of whoever looks after the boxes: sees the other stations too, and may ask a box for its ledger, a
    /// proof of life, a replay.
    Engineer,
    /// Shows alerts, answers nothing.
    Viewer,
    /// Tells other systems (`ichd-gateway`).
    Bridge,
}

impl Role {
    /// As it stands on the command line and in folder names.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Device => "device",
            Role::Station => "station",
            Role::Engineer => "engineer",
            Role::Viewer => "viewer",
            Role::Bridge => "bridge",
        }
    }
}

/// How an identity proves itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// A client certificate with this serial number (hex).
    Certificate {
        /// Serial number.
        serial: String,
    },
    /// A password with this Mosquitto hash (`$7$...`).
    Password {
        /// Its hash.
        hash: String,
    },
}

/// One identity; a revoked one stays on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// CN, MQTT user and topic level.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// How it proves itself.
    pub proof: Proof,
    /// Wall time, ms since the epoch.
    pub enrolled_ms: u64,
    /// End of its certificate; `None` for a password.
    pub expires_ms: Option<u64>,
    /// Since when it is not welcome any more.
    pub revoked_ms: Option<u64>,
    /// Whom a station serves, as the ladder calls it.
    #[serde(default)]
    pub serves: Option<String>,
    /// Names and addresses of a device's own servers.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// What `init` decides for the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Site name: topic level.
    pub site: String,
    /// Names and addresses under which clients reach the broker.
    pub broker_names: Vec<String>,
    /// Address that the listeners bind.
    pub listen: String,
    /// Ports; 0 leaves a listener out.
    pub ports: Ports,
    /// Where the broker will find the files of `broker/`.
    pub broker_dir: PathBuf,
    /// Where the broker keeps its own state.
    pub persistence_dir: PathBuf,
}

/// Ports of the broker; 0 leaves a listener out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Mutual TLS.
    pub mqtt: u16,
    /// Websockets with mutual TLS.
    pub websockets: u16,
    /// Websockets with TLS, name and password, for browsers that handle client certificates badly.
    pub websockets_password: u16,
    /// Plain, loopback only, name and password.
    pub loopback: u16,
}

/// What `list` shows and the folder keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Index {
    schema: String,
    settings: Settings,
    identities: Vec<Identity>,
    /// Counts revocation lists.
    crl_number: u64,
    /// End of the broker's certificate, ms since the epoch.
    broker_expires_ms: u64,
    /// What was written last into `broker/`, so that a hand's edit is seen: file name to SHA-256.
    written: BTreeMap<String, String>,
    /// The same before that: a power cut may leave some files of each.
    #[serde(default)]
    before: BTreeMap<String, String>,
}

const SCHEMA: &str = "ichd.enrolment/1";

/// Why an enrolment did not happen.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Reading or writing a file failed.
    #[error("failed to {doing} `{path}`")]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something is there that we would have to overwrite.
    #[error("`{path}` is there already; nothing is overwritten: move it away, or choose another folder")]
    Exists {
        /// Which file or folder.
        path: PathBuf,
    },
    /// A broker file was edited by hand.
    #[error(
        "`{path}` was changed by hand since it was written; put lines of your own into conf.d/ and remove the file"
    )]
    Edited {
        /// Which file.
        path: PathBuf,
    },
    /// The folder holds no enrolment of this version.
    #[error("`{path}` is not an enrolment that this program knows: {detail}")]
    Index {
        /// Its index.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A name is no topic level.
    #[error("`{0}` cannot be a name; use 1 to 32 lower-case letters, digits and hyphens")]
    Name(String),
    /// The name is borne by somebody.
    #[error("`{name}` is enrolled as {}; revoke it first", .role.as_str())]
    Taken {
        /// The name.
        name: String,
        /// By what.
        role: Role,
    },
    /// Nobody bears the name.
    #[error("`{0}` is not enrolled, or was revoked already")]
    Unknown(String),
    /// The request makes no sense.
    #[error("{0}")]
    Request(String),
    /// A key or certificate could not be made or read.
    #[error("failed to {doing}: {detail}")]
    Certificate {
        /// What was tried.
        doing: &'static str,
        /// What the library said.
        detail: String,
    },
}

/// What somebody new is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Folder with everything that goes to the bearer of the name.
    pub folder: PathBuf,
    /// Names of the files in it.
    pub files: Vec<String>,
}

/// What is asked for with `add`.
#[derive(Debug, Clone)]
pub struct Request {
    /// What it may do.
    pub role: Role,
    /// CN, MQTT user and topic level.
    pub name: String,
    /// A password instead of a certificate.
    pub password: bool,
    /// Names and addresses of a device's own servers (station page, DICOM over TLS).
    pub addresses: Vec<String>,
    /// Days that the certificate is good for.
    pub days: u32,
    /// Whom a station serves, as the ladder calls it; `None`: `nurse`.
    pub serves: Option<String>,
}

/// An enrolment folder.
#[derive(Debug)]
pub struct Enrolment {
    root: PathBuf,
    index: Index,
}

impl Enrolment {
    /// Makes authority, broker certificate and broker configuration in a folder that holds none.
    pub fn init(root: &Path, settings: Settings, now_ms: u64) -> Result<Self, EnrolError> {
        level(&settings.site)?;
        if settings.broker_names.is_empty() {
            return Err(EnrolError::Request("name the broker: --broker NAME, as clients reach it".into()));
        }
        for path in [root.join("enrolment.json"), root.join("ca"), root.join("broker")] {
            if path.exists() {
                return Err(EnrolError::Exists { path });
            }
        }
        let authority = Authority::make(&settings.site)?;
        files::create(&root.join("ca/ca.key"), authority.key_pem().as_bytes())?;
        files::create(&root.join("ca/ca.crt"), authority.certificate_pem().as_bytes())?;
        files::folder(&root.join("broker/conf.d"))?;
        let (certificate, key, broker_expires_ms) = authority.server(&settings.broker_names, now_ms)?;
        let mut enrolment = Enrolment {
            root: root.into(),
            index: Index {
                schema: SCHEMA.into(),
                settings,
                identities: vec![],
                crl_number: 0,
                broker_expires_ms,
                written: BTreeMap::new(),
                before: BTreeMap::new(),
            },
        };
        enrolment.replace(&[("broker.crt", certificate), ("broker.key", key)])?;
        enrolment.publish(&authority, now_ms)?;
        Ok(enrolment)
    }

    /// Opens a folder that [`Enrolment::init`] made.
    pub fn open(root: &Path) -> Result<Self, EnrolError> {
        let path = root.join("enrolment.json");
        let text = std::fs::read_to_string(&path).map_err(|source| EnrolError::File {
            doing: "read",
            path: path.clone(),
            source,
        })?;
        let index: Index = serde_json::from_str(&text)
            .map_err(|e| EnrolError::Index { path: path.clone(), detail: e.to_string() })?;
        if index.schema != SCHEMA {
            return Err(EnrolError::Index { path, detail: format!("it says `{}`", index.schema) });
        }
        Ok(Enrolment { root: root.into(), index })
    }

    /// Everybody ever enrolled, oldest first.
    pub fn identities(&self) -> &[Identity] {
        &self.index.identities
    }

    /// What `init` decided.
    pub fn settings(&self) -> &Settings {
        &self.index.settings
    }

    /// End of the broker's certificate, ms since the epoch.
    pub fn broker_expires_ms(&self) -> u64 {
        self.index.broker_expires_ms
    }

    /// Folder of the files that go to the broker.
    pub fn broker_folder(&self) -> PathBuf {
        self.root.join("broker")
    }

    /// Drop-in for every daemon of the site: the stations that it may believe, and whom they serve.
    pub fn stations_file(&self) -> PathBuf {
        self.root.join("daemon/50-stations.toml")
    }

    /// Enrols somebody: certificate or password, and a place in the ACL.
    pub fn add(&mut self, request: &Request, now_ms: u64) -> Result<Added, EnrolError> {
        level(&request.name)?;
        if let Some(taken) = self.active().find(|i| i.name == request.name) {
            return Err(EnrolError::Taken { name: request.name.clone(), role: taken.role });
        }
        self.check(request)?;
        self.ready(now_ms)?;
        let authority = self.authority()?;
        let folder = self.root.join(request.role.as_str()).join(&request.name);
        if folder.exists() {
            return Err(EnrolError::Exists { path: folder });
        }
        let mut given: Vec<(String, String)> = vec![("ca.crt".into(), authority.certificate_pem().into())];
        let (proof, expires_ms) = if request.password {
            let password = authority::password()?;
            let hash = broker::password_hash(&password, &authority::random()?);
            given.push(("password".into(), password));
            (Proof::Password { hash }, None)
        } else {
            let made = authority.client(&request.name, request.role.as_str(), request.days, now_ms)?;
            given.push((format!("{}.crt", request.role.as_str()), made.certificate));
            given.push((format!("{}.key", request.role.as_str()), made.key));
            (Proof::Certificate { serial: made.serial }, Some(made.expires_ms))
        };
        if !request.addresses.is_empty() {
            let (certificate, key, _) = authority.server(&request.addresses, now_ms)?;
            given.push(("server.crt".into(), certificate));
            given.push(("server.key".into(), key));
        }
        if request.role == Role::Device {
            given.push((device::DROP_IN.into(), device::drop_in(&self.index.settings, request)));
        }
        for (name, content) in &given {
            files::create(&folder.join(name), content.as_bytes())?;
        }
        self.index.identities.push(Identity {
            name: request.name.clone(),
            role: request.role,
            proof,
            enrolled_ms: now_ms,
            expires_ms,
            revoked_ms: None,
            serves: match request.role {
                Role::Station => Some(request.serves.clone().unwrap_or_else(|| "nurse".into())),
                Role::Engineer => Some("engineer".into()),
                Role::Device | Role::Viewer | Role::Bridge => None,
            },
            addresses: request.addresses.clone(),
        });
        self.publish(&authority, now_ms)?;
        Ok(Added { folder, files: given.into_iter().map(|(name, _)| name).collect() })
    }

    fn check(&self, request: &Request) -> Result<(), EnrolError> {
        let ports = self.index.settings.ports;
        let refuse = |text: &str| Err(EnrolError::Request(text.into()));
        match request.role {
            _ if !request.addresses.is_empty() && request.role != Role::Device => {
                refuse("--address is for devices, which serve the station page")
            }
            Role::Device if request.password && ports.loopback == 0 => refuse(
                "a device with a password needs the loopback listener: `ichd enrol init --loopback-port 1883`",
            ),
            Role::Bridge if request.password => refuse("a bridge bears a certificate"),
            Role::Station | Role::Engineer | Role::Viewer
                if request.password && ports.websockets_password == 0 =>
            {
                refuse("passwords need their listener: `ichd enrol init --websockets-password-port 8885`")
            }
            _ if request.serves.as_deref().is_some_and(|serves| !is_word(serves)) => {
                refuse("--serves takes a role of the ladder: lower-case letters, digits and underscores")
            }
            role if request.serves.is_some() && role != Role::Station => {
                refuse("--serves is for stations: whom a ladder calls")
            }
            _ => Ok(()),
        }
    }

    /// Addresses of the station page that fill in name and role of whoever is set up with them, one for each box that
    /// serves a page; the box is called `BOX` where none is enrolled.
    pub fn setup_links(&self, name: &str) -> Vec<String> {
        let found = self.index.identities.iter().filter(|i| i.revoked_ms.is_none());
        let Some(identity) = found.clone().find(|i| i.name == name) else { return vec![] };
        let role = match identity.role {
            Role::Station | Role::Engineer => identity.serves.as_deref().unwrap_or("nurse"),
            Role::Viewer => "viewer",
            Role::Device | Role::Bridge => return vec![],
        };
        let pages: Vec<&str> = found.filter_map(|i| i.addresses.first()).map(String::as_str).collect();
        let pages = if pages.is_empty() { vec!["BOX"] } else { pages };
        let host = |page: &str| if page.contains(':') { format!("[{page}]") } else { page.to_owned() };
        let link = |page: &&str| format!("https://{}:{PAGE_PORT}/#station={name}&role={role}", host(page));
        pages.iter().map(link).collect()
    }

    /// Puts somebody out: revocation list, ACL and password file. What was given is moved out of the way.
    pub fn revoke(&mut self, name: &str, now_ms: u64) -> Result<Identity, EnrolError> {
        self.ready(now_ms)?;
        let found = self.index.identities.iter_mut().find(|i| i.name == name && i.revoked_ms.is_none());
        let Some(identity) = found else { return Err(EnrolError::Unknown(name.into())) };
        identity.revoked_ms = Some(now_ms);
        let identity = identity.clone();
        let authority = self.authority()?;
        self.publish(&authority, now_ms)?;
        let folder = self.root.join(identity.role.as_str()).join(name);
        if folder.exists() {
            let aside = self.root.join("revoked").join(format!("{name}-{now_ms}"));
            files::folder(&self.root.join("revoked"))?;
            std::fs::rename(&folder, aside).map_err(|source| EnrolError::File {
                doing: "move away",
                path: folder,
                source,
            })?;
        }
        Ok(identity)
    }

    /// A new key for patient data in front of the older ones: `privacy/privacy.jwks`, for daemons and stations, never
    /// for the broker. Returns the file.
    pub fn rotate_key(&self, now_ms: u64) -> Result<PathBuf, EnrolError> {
        let path = self.root.join("privacy/privacy.jwks");
        let old = path
            .exists()
            .then(|| std::fs::read_to_string(&path))
            .transpose()
            .map_err(|source| EnrolError::File { doing: "read", path: path.clone(), source })?;
        let date = crate::clock::rfc3339(now_ms);
        let kid = format!("{}-{}", date.get(..10).unwrap_or_default(), hex(&authority::random::<3>()?));
        let set = crate::privacy::jwe::rotated(old.as_deref(), &kid)
            .map_err(|detail| EnrolError::Certificate { doing: "make a key for patient data", detail })?;
        files::replace(&path, set.as_bytes())?;
        Ok(path)
    }

    /// A new certificate for the broker, with the names that clients use now (`None`: as before).
    pub fn renew_broker(&mut self, names: Option<Vec<String>>, now_ms: u64) -> Result<(), EnrolError> {
        self.ready(now_ms)?;
        if let Some(names) = names {
            self.index.settings.broker_names = names;
        }
        let authority = self.authority()?;
        self.certify_broker(&authority, now_ms)?;
        self.publish(&authority, now_ms)
    }

    fn certify_broker(&mut self, authority: &Authority, now_ms: u64) -> Result<(), EnrolError> {
        let (certificate, key, expires_ms) = authority.server(&self.index.settings.broker_names, now_ms)?;
        self.index.broker_expires_ms = expires_ms;
        self.replace(&[("broker.crt", certificate), ("broker.key", key)])
    }

    /// Asked before anything is made: no file of `broker/` was changed by hand since it was written, and what a command
    /// before this one began and could not end is ended.
    fn ready(&mut self, now_ms: u64) -> Result<(), EnrolError> {
        let mut unfinished = Vec::new();
        for (name, written) in &self.index.written {
            let path = self.root.join("broker").join(name);
            // One that was taken away is written anew, as the message of `Edited` asks for.
            match std::fs::read(&path).map(|there| hex(&Sha256::digest(&there))) {
                Ok(there) if there == *written => {}
                Ok(there) if self.index.before.get(name) != Some(&there) => {
                    return Err(EnrolError::Edited { path });
                }
                _ => unfinished.push(name.clone()),
            }
        }
        if unfinished.is_empty() {
            return Ok(());
        }
        let authority = self.authority()?;
        if unfinished.iter().any(|name| name.starts_with("broker.")) {
            self.certify_broker(&authority, now_ms)?;
        }
        self.publish(&authority, now_ms)
    }

    fn active(&self) -> impl Iterator<Item = &Identity> {
        self.index.identities.iter().filter(|i| i.revoked_ms.is_none())
    }

    fn authority(&self) -> Result<Authority, EnrolError> {
        let read = |name: &str| {
            let path = self.root.join("ca").join(name);
            std::fs::read_to_string(&path).map_err(|source| EnrolError::File { doing: "read", path, source })
        };
        Authority::load(&self.index.settings.site, read("ca.crt")?, &read("ca.key")?)
    }

    /// Writes what follows from the index into `broker/`, then the index itself.
    fn publish(&mut self, authority: &Authority, now_ms: u64) -> Result<(), EnrolError> {
        self.index.crl_number += 1;
        let revoked: Vec<(String, u64)> = self
            .index
            .identities
            .iter()
            .filter_map(|i| match &i.proof {
                Proof::Certificate { serial } => Some((serial.clone(), i.revoked_ms?)),
                Proof::Password { .. } => None,
            })
            .collect();
        let crl = authority.revocation_list(&revoked, self.index.crl_number, now_ms)?;
        let active: Vec<Identity> = self.active().cloned().collect();
        let settings = self.index.settings.clone();
        self.replace(&[
            ("ca.crt", authority.certificate_pem().into()),
            ("ca.crl", crl),
            ("acl", broker::acl(&settings.site, &active)),
            ("passwords", broker::passwords(&active)),
            ("mosquitto.conf", broker::configuration(&settings)),
        ])?;
        files::replace(&self.stations_file(), stations(&settings.site, &active).as_bytes())
    }

    /// Writes files of `broker/`; [`Self::ready`] was asked before. The index goes first: what it says is put into the
    /// files by the next command, if power goes in between.
    fn replace(&mut self, files: &[(&str, String)]) -> Result<(), EnrolError> {
        self.index.before.clone_from(&self.index.written);
        for (name, content) in files {
            self.index.written.insert((*name).into(), hex(&Sha256::digest(content)));
        }
        let index = serde_json::to_string_pretty(&self.index).map_err(|e| EnrolError::Index {
            path: self.root.join("enrolment.json"),
            detail: e.to_string(),
        })?;
        files::replace(&self.root.join("enrolment.json"), index.as_bytes())?;
        files.iter().try_for_each(|(name, content)| {
            files::replace(&self.root.join("broker").join(name), content.as_bytes())
        })
    }
}

/// `[alert.stations]`: whom the daemon may believe.
fn stations(site: &str, active: &[Identity]) -> String {
    let mut text = format!(
        "# Stations of site {site} and whom they serve. Written by `ichd enrol`; goes to /etc/ichd/ichd.toml.d/ of every\n\
         # daemon, then restart ichd.\n[alert.stations]\n"
    );
    for identity in active {
        // Stations that were enrolled before anybody asked serve a nurse.
        let serves = identity.serves.as_deref().or((identity.role == Role::Station).then_some("nurse"));
        if let Some(serves) = serves {
            text += &format!("{} = \"{serves}\"\n", identity.name);
        }
    }
    text
}

/// A role of the ladder.
fn is_word(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Names and sites are topic levels; nothing that could be a wildcard, a path or a line break.
fn level(name: &str) -> Result<(), EnrolError> {
    let good = (1..=32).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-');
    if good { Ok(()) } else { Err(EnrolError::Name(name.into())) }
}

#[cfg(test)]
mod tests;
