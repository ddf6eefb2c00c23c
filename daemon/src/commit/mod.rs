//! Storage Commitment Push Model SCP (PS3.4 annex J): the box says in writing which instances it holds.
//!
//! ```text
//! N-ACTION --answer()--> row in the ledger --N-EVENT-REPORT on the same association--> settled
//!                            |                        '-- association ends first --.
//!                            '-- restart ------------------------------------------+--> driver: a new association,
//!                                                                                       again and again --> settled
//! ```
//!
//! Only peers named in `[[receive.peer]]` are offered the class: a scanner may delete what was committed, so somebody
//! has to want that. What is committed is what lies synced in the spool under its UID and class; nothing else is.
//! Deliberately absent: a promise beyond the spool's retention. Owner of the table `commitments`.

pub mod driver;
pub mod message;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::config;
use crate::dicom::{SliceHeader, SopInstanceUid};
use crate::ledger::{Ledger, LedgerError};
use crate::spool::{Spool, SpoolError};

/// Storage Commitment Push Model SOP Class.
pub const SOP_CLASS: &str = "1.2.840.10008.1.20.1";
/// Its well-known SOP Instance.
pub const SOP_INSTANCE: &str = "1.2.840.10008.1.20.1.1";

/// Failure Reasons (PS3.3 C.14.1.1).
pub mod failure {
    /// The instance is not here.
    pub const NO_SUCH_INSTANCE: u16 = 0x0112;
    /// It is here under another SOP class.
    pub const CLASS_INSTANCE_CONFLICT: u16 = 0x0119;
}

/// One instance that a peer asks about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// SOP Class UID.
    pub class: String,
    /// SOP Instance UID.
    pub sop: SopInstanceUid,
}

/// What a peer asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Transaction UID, the peer's name for this.
    pub transaction: String,
    /// Which instances.
    pub references: Vec<Reference>,
}

/// What it gets to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Transaction UID of the request.
    pub transaction: String,
    /// Held here.
    pub committed: Vec<Reference>,
    /// Not held, each with its Failure Reason.
    pub failed: Vec<(Reference, u16)>,
}

/// Why a request could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The spool would not be read.
    #[error("failed to look into the spool")]
    Spool(#[source] SpoolError),
    /// The answer could not be written down.
    #[error("failed to record a commitment")]
    Ledger(#[source] LedgerError),
}

/// Answers requests and remembers which answers still have to be delivered. Calls block on the disk.
#[derive(Debug)]
pub struct Commitments {
    spool: Arc<Spool>,
    ledger: Arc<Ledger>,
    peers: Vec<config::Peer>,
    /// Answers that an open association is delivering; the driver keeps its hands off them.
    held: Mutex<HashSet<i64>>,
    /// There may be something to deliver.
    wake: Notify,
}

impl Commitments {
    /// Offered to these peers and nobody else.
    pub fn new(spool: Arc<Spool>, ledger: Arc<Ledger>, peers: Vec<config::Peer>) -> Self {
        Commitments { spool, ledger, peers, held: Mutex::default(), wake: Notify::new() }
    }

    /// Whether this AE title is offered the class.
    pub fn serves(&self, calling: &str) -> bool {
        self.peer(calling).is_some()
    }

    fn peer(&self, title: &str) -> Option<&config::Peer> {
        self.peers.iter().find(|p| p.ae_title.as_str() == title)
    }

    /// Looks what is there and writes the answer down, held for the association that asked.
    pub fn answer(self: &Arc<Self>, calling: &str, request: &Request) -> Result<Held, CommitError> {
        let outcome = self.look(request).map_err(CommitError::Spool)?;
        // Held before it is in the table: the driver must not see it in between.
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = self.ledger.commitment_open(calling, &outcome).map_err(CommitError::Ledger)?;
        held.insert(seq);
        drop(held);
        let (n_committed, n_failed) = (outcome.committed.len(), outcome.failed.len());
        log::info!(
            event = "commitment_requested", peer = calling, committed = n_committed, failed = n_failed;
            "{n_committed} instances committed, {n_failed} not"
        );
        Ok(Held { commitments: self.clone(), seq, outcome })
    }

    fn look(&self, request: &Request) -> Result<Outcome, SpoolError> {
        let here = self.spool.find(request.references.iter().map(|r| &r.sop))?;
        let mut outcome =
            Outcome { transaction: request.transaction.clone(), committed: Vec::new(), failed: Vec::new() };
        for reference in &request.references {
            let header = here.get(&reference.sop).and_then(|path| SliceHeader::read(path).ok());
            match header {
                Some(header) if header.sop_class == reference.class => {
                    outcome.committed.push(reference.clone());
                }
                Some(_) => outcome.failed.push((reference.clone(), failure::CLASS_INSTANCE_CONFLICT)),
                None => outcome.failed.push((reference.clone(), failure::NO_SUCH_INSTANCE)),
            }
        }
        Ok(outcome)
    }

    fn is_held(&self, seq: i64) -> bool {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).contains(&seq)
    }

    fn settle(&self, seq: i64, delivered: bool) {
        if let Err(error) = self.ledger.commitment_settle(seq, delivered) {
            log::error!(event = "ledger_failed"; "commitment could not be settled: {error}");
        }
    }
}

/// An answer that one association is delivering; dropped, it is the driver's.
#[derive(Debug)]
pub struct Held {
    commitments: Arc<Commitments>,
    seq: i64,
    /// What to say.
    pub outcome: Outcome,
}

impl Held {
    /// The peer has it.
    pub fn delivered(self) {
        self.commitments.settle(self.seq, true);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.commitments.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.seq);
        self.commitments.wake.notify_one();
    }
}
