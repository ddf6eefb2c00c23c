//! Slices become a volume: placed by position, gaps and duplicates named, closed when the evidence says complete.
//!
//! [`geometry`] and [`assembler`] are pure: no I/O, no clock. [`driver`] owns the timers and the channels.
//! Deliberately absent: instance number, Slice Thickness, Spacing Between Slices and the tilt tag never place a
//! slice; vendors disagree on all four.

use std::sync::Arc;

use serde::Serialize;

use crate::dicom::{SeriesUid, StudyUid};
use crate::spool::Instance;

/// A slice with its place along the normal.
#[derive(Debug, Clone)]
pub struct PlacedSlice {
    /// The stored instance.
    pub instance: Instance,
    /// Image position projected on the volume's normal, mm; ascending toward the head's vertex.
    pub z_mm: f64,
}

/// Something true of the geometry that a reader of the result should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Flag {
    /// At least one step is about a whole multiple of the usual one: slices are missing.
    MissingSlices,
    /// Steps differ otherwise: two thicknesses in one series.
    MixedSteps,
    /// Two neighbouring slices overlap by more than half a slice thickness.
    Overlap,
    /// The normal deviates from the patient's axis: gantry tilt or reformat.
    Tilted,
    /// Lossy compressed pixels.
    Lossy,
    /// A contrast agent is named in the header.
    Contrast,
    /// The same SOP Instance UID arrived with different content; the first one was read.
    ConflictingDuplicate,
}

/// All slices of one series that lie on one stack.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Study the series belongs to.
    pub study: StudyUid,
    /// The series.
    pub series: SeriesUid,
    /// Every instance of the series whose plane could not be placed with the rest (localiser, missing position).
    pub unplaced: Vec<Instance>,
    /// Caudal to cranial.
    pub slices: Vec<PlacedSlice>,
    /// Perpendicular steps between neighbours, mm; one fewer than slices.
    pub steps_mm: Vec<f64>,
    /// Unit normal of the stack in patient coordinates, oriented toward the head.
    pub normal: [f64; 3],
    /// Sorted, no duplicates.
    pub flags: Vec<Flag>,
    /// Counts up whenever a late slice reopens the series; 0 for the first close.
    pub revision: u32,
}

/// A volume shared between stages.
pub type SharedVolume = Arc<Volume>;
