//! Forwarding: images that came here go on to further nodes, by rules. Off unless `[[forward]]` is there.
//!
//! ```text
//! final verdict --rules, one transaction--> row in the ledger --[driver]--> node: every instance of the series
//! set aside     --rules, looked for---------^
//! ```
//!
//! A rule waits for the verdict, because a series is whole then, and because who must see it may depend on it. What goes is
//! the file as it was received; only a node that does not take its encoding gets another one, and then that is said
//! (`recode`). Rows wait across restarts; while they do, retention leaves the instances alone. Sending again is harmless.
//!
//! Deliberately absent: a copy of anything (the spool has it), and any change to what is sent.

mod driver;
mod recode;

use serde::Deserialize;

use crate::dicom::AeTitle;

pub use driver::{Wiring, spawn};

/// `[[forward]]`: one node and what it gets.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rule {
    /// Its AE title.
    pub ae_title: AeTitle,
    /// Where it listens, `host:port`.
    pub address: String,
    /// Over TLS, with the certificates of `[receive.tls]`.
    #[serde(default)]
    pub tls: bool,
    /// AE titles of senders whose series go; empty: every.
    #[serde(default)]
    pub from: Vec<AeTitle>,
    /// Dispositions of series that go; empty: every.
    #[serde(default)]
    pub dispositions: Vec<Disposition>,
    /// What was set aside goes too: dose reports, secondary captures. With `dispositions`, that of studies of which a
    /// series goes.
    #[serde(default = "yes")]
    pub set_aside: bool,
    /// Nothing is sent; journal and metrics say what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// How long a series is tried, h.
    #[serde(default = "give_up_h")]
    pub give_up_h: u64,
}

fn yes() -> bool {
    true
}

fn give_up_h() -> u64 {
    72
}

/// How a series ended, as rules name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disposition {
    /// Something is suspected.
    Suspected,
    /// Nothing above the operating point.
    NotSuspected,
    /// No answer.
    NotAnalysed,
}

impl Disposition {
    fn as_str(self) -> &'static str {
        match self {
            Disposition::Suspected => "suspected",
            Disposition::NotSuspected => "not_suspected",
            Disposition::NotAnalysed => "not_analysed",
        }
    }
}

impl Rule {
    /// Name in the queue, journal and metrics.
    pub fn name(&self) -> String {
        format!("{}@{}", self.ae_title, self.address)
    }

    /// Whether what these senders sent goes at all.
    pub fn takes_from(&self, senders: &[String]) -> bool {
        self.from.is_empty() || self.from.iter().any(|title| senders.iter().any(|s| s == title.as_str()))
    }

    /// Whether a series with this verdict goes.
    pub fn takes(&self, senders: &[String], disposition: &str) -> bool {
        let is_one = || self.dispositions.iter().any(|d| d.as_str() == disposition);
        self.takes_from(senders) && (self.dispositions.is_empty() || is_one())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_takes_what_it_names_and_everything_where_it_names_nothing() {
        let rule = |text: &str| -> Rule {
            toml::from_str(&format!("ae-title = \"ARCHIVE\"\naddress = \"h:104\"\n{text}")).unwrap()
        };
        let ct1 = ["CT1".to_owned()];
        assert!(rule("").takes(&ct1, "not_analysed") && rule("").takes(&[], "suspected"));
        let bleeds = rule("dispositions = [\"suspected\"]");
        assert!(bleeds.takes(&ct1, "suspected") && !bleeds.takes(&ct1, "not_suspected"));
        let from = rule("from = [\"CT2\", \"CT3\"]");
        assert!(!from.takes(&ct1, "suspected") && from.takes(&["CT1".into(), "CT3".into()], "suspected"));
    }
}
