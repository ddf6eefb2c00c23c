//! Instances on disk: synced before anybody is thanked for them, found again after a power cut.
//!
//! Stub: replaced by the spool's owner.

use std::path::PathBuf;
use std::sync::Arc;

use crate::dicom::SliceHeader;

/// One instance that is on disk and synced.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Parsed header.
    pub header: Arc<SliceHeader>,
    /// Part 10 file in the spool.
    pub path: PathBuf,
    /// SHA-256 of the data set bytes as received (without preamble and file meta), the slice's input hash.
    pub sha256: [u8; 32],
}
