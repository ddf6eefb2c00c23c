//! Scores become a verdict: operating point, tier, and the reasons not to give one. Pure: no I/O, no clock, no pixels.
//!
//! Every series ends in exactly one [`Disposition`]; [`Why`] codes are stable and documented in SPECIFICATION.md.

pub mod suitability;

use serde::{Deserialize, Serialize};

use crate::assemble::{Flag, Volume};
use crate::dicom::{SeriesUid, SopInstanceUid, StudyUid};
use crate::infer::{Class, ModelId, Reading, Scores};

/// Why a series was not analysed; the text form is a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Modality or SOP class is not CT Image Storage.
    NotCt,
    /// Enhanced (multi-frame) CT, which this version stores but does not read.
    MultiFrame,
    /// No pixel data, or colour.
    NotAnImage,
    /// A localiser (scout).
    Localizer,
    /// Derived: reformat, perfusion map, screen save.
    Derived,
    /// No usable plane geometry.
    NoGeometry,
    /// The stack is not within 45 degrees of axial.
    NotAxial,
    /// Several images at one position (perfusion, repeated acquisition).
    SamePosition,
    /// Fewer slices than the sequence models can judge.
    TooFewSlices,
    /// More slices than the limit.
    TooManySlices,
    /// Slices further apart than the model's intended input.
    TooThick,
    /// Sharp (bone) reconstruction kernel.
    BoneKernel,
    /// Another series of the study is better suited and was read.
    NotChosen,
    /// Pixels and geometry show something else than a head.
    NotHead,
    /// A skull without brain tissue in it.
    NoBrainTissue,
    /// The pixels could not be decoded.
    Undecodable,
    /// A slice holds one single value or no number.
    BlankSlice,
    /// Reading this series ended the program twice, or panicked.
    Crashed,
    /// The model could not be run.
    ModelFailed,
}

impl Why {
    /// Stable code in documents, ledger and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Why::NotCt => "not_ct",
            Why::MultiFrame => "multi_frame",
            Why::NotAnImage => "not_an_image",
            Why::Localizer => "localizer",
            Why::Derived => "derived",
            Why::NoGeometry => "no_geometry",
            Why::NotAxial => "not_axial",
            Why::SamePosition => "same_position",
            Why::TooFewSlices => "too_few_slices",
            Why::TooManySlices => "too_many_slices",
            Why::TooThick => "too_thick",
            Why::BoneKernel => "bone_kernel",
            Why::NotChosen => "not_chosen",
            Why::NotHead => "not_head",
            Why::NoBrainTissue => "no_brain_tissue",
            Why::Undecodable => "undecodable",
            Why::BlankSlice => "blank_slice",
            Why::Crashed => "crashed",
            Why::ModelFailed => "model_failed",
        }
    }
}

/// Which side of the patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Patient's left.
    Left,
    /// Patient's right.
    Right,
    /// Separate areas on both sides.
    Both,
    /// Close to the midline plane.
    Midline,
}

/// How urgent, from the manifest's tiers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tier {
    /// Name, for people.
    pub name: String,
    /// 1 is the most urgent.
    pub priority: u8,
}

/// What is suspected and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Subtypes at or above their thresholds, most probable first; may be empty when only `any` is.
    pub subtypes: Vec<Class>,
    /// Slice with the highest final `any`.
    pub key_sop_uid: SopInstanceUid,
    /// First and last slice (0-based, caudal to cranial) of the suspected range.
    pub slice_range: [usize; 2],
    /// Side by the lesion map; `None` if the map shows nothing.
    pub side: Option<Side>,
    /// Volume by the lesion map, mL; an estimate.
    pub volume_ml: Option<f32>,
    /// How urgent.
    pub tier: Tier,
}

/// Exactly one per series.
#[derive(Debug, Clone, PartialEq)]
pub enum Disposition {
    /// Notify people.
    Suspected(Finding),
    /// Nothing above the operating point; never "normal".
    NotSuspected,
    /// No verdict, because.
    NotAnalysed(Why),
}

impl Disposition {
    /// Stable word in documents and ledger.
    pub fn as_str(&self) -> &'static str {
        match self {
            Disposition::Suspected(_) => "suspected",
            Disposition::NotSuspected => "not_suspected",
            Disposition::NotAnalysed(_) => "not_analysed",
        }
    }

    /// The reason, if there was no verdict.
    pub fn why(&self) -> Option<Why> {
        match self {
            Disposition::NotAnalysed(why) => Some(*why),
            _ => None,
        }
    }
}

/// A named operating point of the model manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OperatingPoint {
    /// `final` or `provisional`.
    pub name: String,
    /// Per class; index 0 decides "suspected", the others name subtypes.
    pub thresholds: [f32; 6],
    /// How it was chosen, on what.
    pub provenance: String,
}

/// A tier of the model manifest; first match from the top wins.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TierRule {
    /// Name, for people.
    pub name: String,
    /// Series `any` at or above which it applies.
    pub any_min: f32,
    /// 1 is the most urgent.
    pub priority: u8,
}

/// What `decide` needs of a model manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Used when the series is complete.
    pub complete: OperatingPoint,
    /// Stricter: may alert before the series is complete.
    pub provisional: OperatingPoint,
    /// From most to least urgent.
    pub tiers: Vec<TierRule>,
}

/// Whether the series was complete when it was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Slices were still arriving.
    Provisional,
    /// The series was complete.
    Final,
}

/// Six probabilities per stage for one slice, as documents carry them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SliceScores {
    /// Which slice.
    pub sop_uid: SopInstanceUid,
    /// Position along the normal, mm.
    pub z_mm: f64,
    /// Base CNN.
    pub base: Scores,
    /// Sequence model 1.
    pub seq1: Scores,
    /// Final answer.
    #[serde(rename = "final")]
    pub fused: Scores,
}

/// The answer for one series, with what is needed to give it again.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Study.
    pub study: StudyUid,
    /// Series.
    pub series: SeriesUid,
    /// Complete or not.
    pub stage: Stage,
    /// The answer.
    pub disposition: Disposition,
    /// Series scores; `None` if not read.
    pub scores: Option<Scores>,
    /// Slice scores; empty if not read.
    pub slices: Vec<SliceScores>,
    /// Geometry and quality flags.
    pub flags: Vec<Flag>,
    /// How many instances the series held.
    pub instances: usize,
    /// Model that answered; `None` if not read.
    pub model: Option<ModelId>,
    /// SHA-256 over the sorted (SOP Instance UID, data set hash) pairs, hex.
    pub input_sha256: String,
    /// Program version.
    pub program: String,
}

#[expect(unused_imports, reason = "filled in next")]
use {Reading as _, Volume as _};
