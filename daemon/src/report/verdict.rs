//! A verdict read back from the bytes that the ledger holds. A report says what was decided, not what would be today.

use serde::Deserialize;

use crate::decide::{Finding, SliceScores, Stage};
use crate::dicom::{SeriesUid, StudyUid};
use crate::infer::ModelId;

/// Canonical verdict, schema 1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RecordedVerdict {
    /// Study.
    pub study_uid: StudyUid,
    /// Series.
    pub series_uid: SeriesUid,
    /// Only final ones are reported.
    pub stage: Stage,
    /// `suspected`, `not_suspected` or `not_analysed`.
    pub disposition: Disposition,
    /// Stable code, where not analysed.
    pub reason: Option<String>,
    /// Scores of the slices that were read.
    #[serde(default)]
    pub slices: Vec<SliceScores>,
    /// What is suspected and where.
    pub finding: Option<Finding>,
    /// Stable codes of what is true of geometry and quality.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Instances of the series.
    pub instances: usize,
    /// Which model read it; `None` if none did.
    pub model: Option<ModelId>,
    /// Version of the program that decided.
    pub program: String,
}

/// One of three ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Disposition {
    /// Something is suspected.
    Suspected,
    /// Nothing above the operating point.
    NotSuspected,
    /// No answer, with a reason.
    NotAnalysed,
}

impl RecordedVerdict {
    /// Parses canonical JSON.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
}
