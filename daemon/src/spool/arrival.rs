//! Who sent a series and when it came, as the stored files tell: it outlives a restart and needs no table.

use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

use super::Instance;
use crate::dicom::dataset;

/// How a series came here. Not part of a verdict: the same slices from elsewhere are read the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrival {
    /// AE titles of the senders, sorted.
    pub calling: Vec<String>,
    /// When the first instance was complete on disk, wall time in ms since the epoch.
    pub first_ms: Option<u64>,
    /// The same of the last one.
    pub last_ms: Option<u64>,
}

impl Arrival {
    /// Looks at the stored files: the file meta names the sender (PS3.10 7.1), and nobody writes to a file after it is
    /// complete. What cannot be read is left out; the ledger row must not fail for it.
    pub fn of<'a>(instances: impl Iterator<Item = &'a Instance>) -> Self {
        let mut calling = BTreeSet::new();
        let mut arrival = Arrival::default();
        for instance in instances {
            calling.extend(dataset::source_ae(&instance.path).ok().flatten());
            let modified = std::fs::metadata(&instance.path).and_then(|m| m.modified()).ok();
            let at = modified.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map(|d| d.as_millis() as u64);
            let Some(at) = at else { continue };
            arrival.first_ms = Some(arrival.first_ms.map_or(at, |first| first.min(at)));
            arrival.last_ms = Some(arrival.last_ms.map_or(at, |last| last.max(at)));
        }
        arrival.calling = calling.into_iter().collect();
        arrival
    }
}
