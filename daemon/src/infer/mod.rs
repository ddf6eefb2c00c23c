//! Three networks over one volume: base CNN per slice, sequence 1 over features, sequence 2 over probabilities.

pub mod backend;
mod cache;
mod choose;
pub mod driver;
mod golden;
pub mod hounsfield;
pub mod manifest;
pub mod package;
pub mod preprocess;
pub mod reader;
mod shadow;
pub mod tissue;

#[cfg(test)]
pub(crate) mod reader_tests;

pub use cache::SeriesCache;
pub use golden::Golden;
pub use package::ModelError;
pub use reader::{ReadError, Reader};
pub use shadow::Shadow;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::dicom::SliceId;

/// The RSNA-2019 classes, in the order in which every tensor, document and table holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Class {
    /// Any hemorrhage.
    Any,
    /// Between skull and dura.
    Epidural,
    /// Within the brain.
    Intraparenchymal,
    /// Within the ventricles.
    Intraventricular,
    /// In sulci and cisterns.
    Subarachnoid,
    /// Between dura and brain.
    Subdural,
}

impl Class {
    /// All classes in contract order.
    pub const ALL: [Class; 6] = [
        Class::Any,
        Class::Epidural,
        Class::Intraparenchymal,
        Class::Intraventricular,
        Class::Subarachnoid,
        Class::Subdural,
    ];

    /// Position in [`Scores`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// Name in documents and manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Any => "any",
            Class::Epidural => "epidural",
            Class::Intraparenchymal => "intraparenchymal",
            Class::Intraventricular => "intraventricular",
            Class::Subarachnoid => "subarachnoid",
            Class::Subdural => "subdural",
        }
    }
}

/// Six probabilities in [`Class`] order.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scores(pub [f32; 6]);

impl Scores {
    /// Probability of one class.
    pub fn of(&self, class: Class) -> f32 {
        self.0[class.index()]
    }
}

/// What the pixels of one slice are made of, measured in HU before any network; decides whether this is a head.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Tissue {
    /// Area enclosed by bone (sealed by a small closing against sutures), cm2.
    pub enclosed_cm2: f32,
    /// Part of the enclosed area whose HU is that of brain, blood or fluid (0 to 90), cm2.
    pub brain_cm2: f32,
    /// Part of the enclosed area that lies outside the square that the network sees, cm2.
    pub outside_cm2: f32,
    /// Area of everything denser than air (above -500 HU), cm2.
    pub body_cm2: f32,
    /// Where the head's middle lies, mm from the image's middle toward the patient's left: the centroid of the enclosed
    /// area, or of the body where nothing much is enclosed.
    pub middle_mm: f32,
    /// Whether all pixels hold one and the same value, or one is not a number.
    pub blank: bool,
}

/// What the lesion map of one slice shows; for side, range and volume, never for the decision itself.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct LesionArea {
    /// Area above the map threshold on the patient's left, cm2.
    pub left_cm2: f32,
    /// The same on the right, cm2.
    pub right_cm2: f32,
}

/// Where the base CNN sees a lesion in one slice: probabilities on a coarse grid over the network's field, row-major,
/// rows from front to back, columns from the patient's right to left. For pictures, never for the decision itself.
#[derive(Debug, Clone, PartialEq)]
pub struct LesionMap {
    /// Side of the grid, cells.
    pub px: usize,
    /// [px x px], 0 to 1.
    pub p: Arc<[f32]>,
}

impl LesionMap {
    /// Probability at a point of the field, both coordinates 0 to 1 (right to left, front to back); bilinear.
    pub fn at(&self, x: f64, y: f64) -> f32 {
        let Some(last) = self.px.checked_sub(1) else { return 0.0 };
        let along = |at: f64| {
            let at = (at * self.px as f64 - 0.5).clamp(0.0, last as f64);
            (at.floor() as usize, (at.floor() as usize + 1).min(last), at.fract() as f32)
        };
        let ((left, right, fx), (top, bottom, fy)) = (along(x), along(y));
        let row = |y: usize| self.p[y * self.px + left] * (1.0 - fx) + self.p[y * self.px + right] * fx;
        row(top) * (1.0 - fy) + row(bottom) * fy
    }
}

impl Default for LesionMap {
    fn default() -> Self {
        LesionMap { px: 0, p: Arc::from([]) }
    }
}

/// The three stages' answer for one slice.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceReading {
    /// Which slice.
    pub slice: SliceId,
    /// Position along the slice normal, mm.
    pub z_mm: f64,
    /// Base CNN.
    pub base: Scores,
    /// Sequence model 1.
    pub seq1: Scores,
    /// Sequence model 2, the final answer.
    pub fused: Scores,
    /// Pixel measures.
    pub tissue: Tissue,
    /// Lesion map measures.
    pub lesion: LesionArea,
    /// Lesion map.
    pub map: LesionMap,
}

/// Which model answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelId {
    /// Identifier from the manifest.
    pub id: String,
    /// Version from the manifest.
    pub version: String,
    /// SHA-256 of `manifest.toml`, hex; it holds the hashes of everything else.
    pub sha256: String,
}

/// Where the time went, ms of wall time summed over slices (stages overlap across threads; `total` is elapsed).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Decoding pixel data to HU.
    pub decode: f64,
    /// Resampling and windowing.
    pub preprocess: f64,
    /// Base CNN.
    pub base: f64,
    /// Both sequence models.
    pub sequence: f64,
    /// From start to end.
    pub total: f64,
}

/// The answer for one volume.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Per class, aggregated over the slices as the manifest says.
    pub series: Scores,
    /// Slices that were read, caudal to cranial.
    pub slices: Vec<SliceReading>,
    /// Which model answered.
    pub model: ModelId,
    /// Where the time went; never part of a verdict.
    pub ms: Timings,
}
