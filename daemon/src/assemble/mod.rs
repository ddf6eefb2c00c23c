//! Slices become a volume: placed by position, gaps and duplicates named, closed when the evidence says complete.
//!
//! [`geometry`] and [`assembler`] are pure: no I/O, no clock. [`driver`] owns the timers and the channels.
//! Deliberately absent: instance number, Slice Thickness, Spacing Between Slices and the tilt tag never place a
//! slice; vendors disagree on all four.

pub mod assembler;
pub mod driver;
pub mod geometry;
pub mod study;

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::decide::Why;
pub use assembler::Key;

use crate::dicom::{SeriesUid, SopInstanceUid, StudyUid};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Several images lie at one position; one of each was read.
    RepeatedPosition,
    /// Two neighbouring slices that were read lie further apart than a bleed of some size.
    LargeGap,
    /// The slices do not cover a head: too short a stack, or its end lies in the middle of the skull.
    PartialHead,
    /// Images of the series fit no place in the stack (another plane, matrix or spacing, no position): not read.
    UnreadSlices,
    /// The scanner announced more images of this acquisition than came.
    FewerThanAnnounced,
    /// Brain lies outside the square that the network sees.
    OutsideField,
    /// The reconstruction kernel has no name, or one that is not known to be soft or sharp.
    UnknownKernel,
}

/// All slices of one series that lie on one stack.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Study the series belongs to.
    pub study: StudyUid,
    /// The series.
    pub series: SeriesUid,
    /// Every instance of the series that is no image of the stack (localiser, screen save) or could not be placed with
    /// the rest (another plane or matrix, missing position, a position that another one has).
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

impl Volume {
    /// Every slice of the series, placed or not: instances, and single frames of multi-frame ones.
    pub fn frames(&self) -> impl Iterator<Item = &Instance> {
        self.slices.iter().map(|s| &s.instance).chain(&self.unplaced)
    }

    /// Every instance of the series once, placed or not.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        let mut seen = HashSet::new();
        self.frames().filter(move |i| i.header.frame.is_none() || seen.insert(&i.header.sop))
    }

    /// SHA-256 over the sorted (SOP Instance UID, data set hash) pairs, hex: what was read, whatever order it came in.
    pub fn input_sha256(&self) -> String {
        input_sha256(self.instances().map(|i| (i.header.sop.clone(), i.sha256)).collect())
    }

    /// What it is known by.
    pub fn key(&self) -> Key {
        (self.study.clone(), self.series.clone())
    }

    /// Distance from the lowest to the highest slice, mm.
    pub fn coverage_mm(&self) -> f64 {
        self.steps_mm.iter().sum()
    }
}

/// What the ledger says of a series that was judged before this start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Input hash of the verdict.
    pub input_sha256: String,
    /// Counts late slices.
    pub revision: u32,
    /// Why it was not analysed, if it was not.
    pub why: Option<Why>,
    /// It says that another content of one of its instances came.
    pub conflicting: bool,
}

/// SHA-256 over the sorted (SOP Instance UID, data set hash) pairs, hex.
pub fn input_sha256(mut pairs: Vec<(SopInstanceUid, [u8; 32])>) -> String {
    pairs.sort();
    let mut hash = Sha256::new();
    for (sop, sha256) in pairs {
        hash.update(sop.as_str());
        hash.update([0]);
        hash.update(sha256);
    }
    crate::hex(&hash.finalize())
}

/// A volume shared between stages.
pub type SharedVolume = Arc<Volume>;

#[cfg(test)]
pub(crate) mod testing {
    //! Instances without files, for tests of the pure stages.

    use super::*;
    use crate::dicom::{Phi, PlaneGeometry, SliceHeader};

    pub fn study_uid() -> StudyUid {
        StudyUid::parse("1.2.3").unwrap()
    }

    pub fn series_uid() -> SeriesUid {
        SeriesUid::parse("1.2.3.4").unwrap()
    }

    /// An axial 512 x 512 slice of 5 mm at height `z_mm`; UIDs sort by `index`.
    pub fn instance_at(index: usize, z_mm: f64) -> Instance {
        Instance {
            header: Arc::new(SliceHeader {
                study: study_uid(),
                series: series_uid(),
                sop: SopInstanceUid::parse(&format!("1.2.3.4.{}", 1000 + index)).unwrap(),
                sop_class: "1.2.840.10008.5.1.4.1.1.2".into(),
                transfer_syntax: "1.2.840.10008.1.2.1".into(),
                modality: "CT".into(),
                image_type: vec!["ORIGINAL".into(), "PRIMARY".into(), "AXIAL".into()],
                geometry: Some(PlaneGeometry {
                    position_mm: [-120.0, -120.0, z_mm],
                    row: [1.0, 0.0, 0.0],
                    column: [0.0, 1.0, 0.0],
                    pixel_spacing_mm: [0.47, 0.47],
                }),
                rows: 512,
                columns: 512,
                frames: 1,
                per_frame: Arc::default(),
                frame: None,
                has_pixels: true,
                samples_per_pixel: 1,
                instance_number: Some(index as i32),
                slice_thickness_mm: Some(5.0),
                kernel: Some("H31s".into()),
                body_part: Some("HEAD".into()),
                contrast: false,
                lossy: false,
                images_in_acquisition: None,
                acquired_at: None,
                accession_number: Phi::default(),
                patient_id: Phi::default(),
                patient_name: Phi::default(),
            }),
            path: format!("{index}.dcm").into(),
            sha256: [index as u8; 32],
        }
    }
}
