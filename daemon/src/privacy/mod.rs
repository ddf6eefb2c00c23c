//! What an alert says of the patient, by level; the more it says, the fewer can read it.
//!
//! | level | `subject` on the wire |
//! |---|---|
//! | `opaque` | a short spoken code |
//! | `location` | and where the scanner stands, from the configuration |
//! | `identified` | and, encrypted in `enc`: name, id, birth date, accession number |
//! | `image` | and, encrypted with them: a small picture of the key slice |
//!
//! `enc` is a compact JWE (RFC 7516) with `alg: dir`, `enc: A256GCM`. The key is shared by the site's daemons and
//! stations and named by `kid`; the broker never has it. Deliberately absent: any way for patient text into a topic, a
//! log, a metric or a file name; an alert that waits because its patient could not be sealed.

pub mod jwe;
pub(crate) mod subject;

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::config;
use crate::decide::{Disposition, Verdict};
use crate::spool::Instance;
use jwe::KeySet;

/// How much an alert says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// A short spoken code.
    #[default]
    Opaque,
    /// Where the scanner stands.
    Location,
    /// Name and ids, encrypted.
    Identified,
    /// The key slice too, encrypted.
    Image,
}

/// What is added to the subject of an alert; empty at level `opaque`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// Where the scanner stands.
    pub location: Option<String>,
    /// Compact JWE.
    pub enc: Option<String>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown")
            .field("location", &self.location)
            .field("enc", &self.enc.as_ref().map(|_| "..."))
            .finish()
    }
}

/// Why the configured level cannot be kept; exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum PrivacyError {
    /// The keys could not be read.
    #[error("privacy.keys: failed to read `{path}`")]
    Read {
        /// Configured file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Others may read the keys.
    #[error("privacy.keys: `{path}` is readable by everybody; chmod 0600 it")]
    Open {
        /// Configured file.
        path: PathBuf,
    },
    /// Not a set of keys that can be used.
    #[error("privacy.keys: `{path}` {detail}; `ichd enrol key` makes one")]
    Keys {
        /// Configured file.
        path: PathBuf,
        /// What is wrong; never a key.
        detail: String,
    },
}

/// The configured level with its key.
#[derive(Debug)]
pub struct Privacy {
    level: Level,
    location: Option<String>,
    keys: Option<KeySet>,
}

impl Privacy {
    /// Reads the keys, where the level needs them.
    pub fn load(config: &config::Privacy) -> Result<Self, PrivacyError> {
        let keys = match (&config.keys, config.level) {
            (Some(path), Level::Identified | Level::Image) => Some(read(path)?),
            _ => None,
        };
        let location =
            (config.level >= Level::Location && !config.location.is_empty()).then(|| config.location.clone());
        Ok(Privacy { level: config.level, location, keys })
    }

    /// What the alert of a verdict may say; `study_ref` ties what is sealed to its alert. Reads the key slice from the
    /// spool; blocks.
    pub fn shown<'a>(
        &self,
        verdict: &Verdict,
        study_ref: &str,
        mut slices: impl Iterator<Item = &'a Instance>,
    ) -> Shown {
        let Disposition::Suspected(finding) = &verdict.disposition else { return Shown::default() };
        let enc = self.keys.as_ref().and_then(|keys| {
            let key_slice = slices.find(|i| i.header.id() == finding.key())?;
            self.seal(keys, study_ref, key_slice)
        });
        Shown { location: self.location.clone(), enc }
    }

    fn seal(&self, keys: &KeySet, study_ref: &str, instance: &Instance) -> Option<String> {
        let said = |detail: String| {
            log::error!(event = "subject_not_sealed"; "the alert leaves without its patient: {detail}");
        };
        let subject = subject::read(instance, study_ref, self.level >= Level::Image)
            .map_err(|e| said(crate::chain(&e)));
        let text = serde_json::to_vec(subject.ok()?.reveal()).ok()?;
        keys.seal(&text).map_err(|e| said(e.to_string())).ok()
    }
}

/// A bare name is a systemd credential (`LoadCredential=`), anything else a path.
fn read(path: &Path) -> Result<KeySet, PrivacyError> {
    use std::os::unix::fs::PermissionsExt;
    let path = match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(dir) if path.components().count() == 1 => Path::new(&dir).join(path),
        _ => path.to_owned(),
    };
    let failed = |source| PrivacyError::Read { path: path.clone(), source };
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    if path.metadata().map_err(failed)?.permissions().mode() & 0o004 != 0 {
        return Err(PrivacyError::Open { path });
    }
    KeySet::parse(&text).map_err(|detail| PrivacyError::Keys { path, detail })
}
