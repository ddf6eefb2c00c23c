//! ATNA: audit messages for the hospital's audit record repository, by the Audit Trail Message Format Profile (DICOM
//! PS3.15 A.5) over syslog on TLS (A.6; RFC 5424, RFC 5425). Off unless `[atna]` is there.
//!
//! ```text
//! something happened --one transaction with its audit row--> table `atna` --TLS--> repository --it has closed--> row gone
//! ```
//!
//! Messages name patients and studies, because that is what they are for; they lie in the state directory until they are
//! sent and nowhere else. The hash chain (`ledger::audit`) is the box's own record, and does not depend on any of this.
//! Deliberately absent: queries (the box makes none) and user logins (it has none).

pub mod driver;
pub mod message;

use std::path::PathBuf;

use serde::Deserialize;

pub use message::{Event, Node, Source, Transfer};

/// `[atna]`; all files PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// Audit record repository, `host:port`; 6514 is syslog over TLS.
    pub address: String,
    /// Authority of the repository.
    pub ca: PathBuf,
    /// Our certificate.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
    /// Audit Enterprise Site ID; `site.name` if absent.
    #[serde(default)]
    pub enterprise_site: Option<String>,
    /// Messages kept while the repository is away; beyond that new ones are dropped, aloud. The hash chain has them.
    #[serde(default = "queue_max")]
    pub queue_max: u64,
}

fn queue_max() -> u64 {
    50_000
}

impl Config {
    /// The certificate files.
    pub fn files(&self) -> crate::tls::Files {
        crate::tls::Files {
            ca: Some(self.ca.clone()),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            crl: None,
        }
    }
}
