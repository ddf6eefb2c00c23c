//! `manifest.toml` of a model package, format 1. The daemon knows nothing of preprocessing that it does not say.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Class;
use crate::decide::{OperatingPoint, Policy, TierRule};

/// The whole manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manifest {
    /// Format version; 1.
    pub format: u32,
    /// Identifier.
    pub id: String,
    /// Version.
    pub version: String,
    /// Class order; must be ours.
    pub classes: [Class; 6],
    /// Preprocessing.
    pub input: Input,
    /// The three graphs.
    pub graphs: Graphs,
    /// How slices become a series score.
    pub series: SeriesRule,
    /// `final` and `provisional`.
    pub operating_points: Vec<OperatingPoint>,
    /// From most to least urgent.
    pub tiers: Vec<TierRule>,
    /// Series with known answers.
    pub golden: Golden,
    /// SHA-256 (hex) of every other file of the package.
    pub files: BTreeMap<String, String>,
}

/// Preprocessing of one slice.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Input {
    /// Side of the square the network sees, pixels.
    pub size_px: usize,
    /// Side of that square in the patient, mm, centred on the image centre.
    pub field_mm: f64,
    /// Resize kernel; `area`.
    pub resize: String,
    /// HU of what lies outside the image.
    pub outside_hu: f32,
    /// HU range before resizing.
    pub clip_hu: [f32; 2],
    /// Thinner series are read in part: next slice at this distance or more, mm.
    pub step_mm_min: f64,
    /// `<neighbour>:<window>` per channel.
    pub channels: Vec<String>,
    /// Subtracted after windowing to 0..1.
    pub mean: f32,
    /// Divided by.
    pub std: f32,
    /// The windows that channels name.
    pub windows: Vec<Window>,
}

/// A display window.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Window {
    /// Name used by channels.
    pub name: String,
    /// Centre, HU.
    pub level_hu: f32,
    /// Width, HU.
    pub width_hu: f32,
}

/// The three ONNX files.
#[derive(Debug, Clone, Deserialize)]
pub struct Graphs {
    /// `x` [1, C, S, S] -> `features` [1, F], `probs` [1, 6], `map` [1, 1, M, M].
    pub base: BaseGraph,
    /// `features` [1, T, F] -> `probs` [1, T, 6].
    pub seq1: SequenceGraph,
    /// `x` [1, T, 13] -> `probs` [1, T, 6].
    pub seq2: SequenceGraph,
}

/// Base CNN.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BaseGraph {
    /// File in the package.
    pub file: String,
    /// Length of the feature vector.
    pub features: usize,
    /// Side of the lesion map.
    pub map_px: usize,
}

/// A sequence model.
#[derive(Debug, Clone, Deserialize)]
pub struct SequenceGraph {
    /// File in the package.
    pub file: String,
}

/// How slices become a series score.
#[derive(Debug, Clone, Deserialize)]
pub struct SeriesRule {
    /// `max`: per class the highest final probability.
    pub aggregate: String,
}

/// Series with known answers.
#[derive(Debug, Clone, Deserialize)]
pub struct Golden {
    /// Folder of DICOM files.
    pub series: String,
    /// JSON with `base`, `seq1` and `final`, each [slices][6].
    pub expected: String,
}

/// Which slice a channel comes from, and its window as a factor and an offset on HU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Channel {
    /// 0 the slice below, 1 itself, 2 the slice above.
    pub neighbour: usize,
    /// Lower edge of the window, HU.
    pub low_hu: f32,
    /// Width, HU.
    pub width_hu: f32,
}

/// Why a manifest is refused: the field and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manifest field `{field}` {problem}")]
pub struct ManifestError {
    field: String,
    problem: String,
}

fn refuse<T>(field: &str, problem: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError { field: field.into(), problem: problem.into() })
}

impl Manifest {
    /// Parses and checks everything that needs no file.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let manifest: Manifest = match toml::from_str(text) {
            Ok(manifest) => manifest,
            Err(error) => {
                return refuse("manifest.toml", format!("cannot be understood: {}", error.message()));
            }
        };
        if manifest.format != 1 {
            return refuse("format", format!("is {}, this program reads 1", manifest.format));
        }
        if manifest.classes != Class::ALL {
            return refuse(
                "classes",
                "has another order than any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural",
            );
        }
        let input = &manifest.input;
        if !(32..=1024).contains(&input.size_px) || !(50.0..=1000.0).contains(&input.field_mm) {
            return refuse("input", "has an implausible size-px or field-mm");
        }
        if input.resize != "area" {
            return refuse("input.resize", format!("is `{}`, this program knows `area`", input.resize));
        }
        if input.std.is_nan() || input.std <= 0.0 {
            return refuse("input.std", "must be above 0");
        }
        if manifest.series.aggregate != "max" {
            return refuse("series.aggregate", "must be `max`");
        }
        if !(8..=4096).contains(&manifest.graphs.base.features)
            || !(1..=512).contains(&manifest.graphs.base.map_px)
        {
            return refuse("graphs.base", "has implausible features or map-px");
        }
        manifest.channels()?;
        manifest.policy()?;
        Ok(manifest)
    }

    /// The channel recipe resolved.
    pub fn channels(&self) -> Result<Vec<Channel>, ManifestError> {
        let resolve = |text: &String| {
            let Some((neighbour, window)) = text.split_once(':') else {
                return refuse("input.channels", format!("holds `{text}`, not `<neighbour>:<window>`"));
            };
            let neighbour = match neighbour {
                "prev" => 0,
                "self" => 1,
                "next" => 2,
                _ => return refuse("input.channels", format!("names `{neighbour}`; prev, self or next")),
            };
            match self.input.windows.iter().find(|w| w.name == window && w.width_hu > 0.0) {
                Some(w) => {
                    Ok(Channel { neighbour, low_hu: w.level_hu - w.width_hu / 2.0, width_hu: w.width_hu })
                }
                None => refuse("input.windows", format!("has no `{window}` with a width above 0")),
            }
        };
        self.input.channels.iter().map(resolve).collect()
    }

    /// Operating points and tiers.
    pub fn policy(&self) -> Result<Policy, ManifestError> {
        let point = |name: &str| match self.operating_points.iter().find(|p| p.name == name) {
            Some(p) if p.thresholds.iter().all(|t| (0.0..=1.0).contains(t)) => Ok(p.clone()),
            Some(_) => refuse("operating-points", format!("has a threshold of `{name}` outside 0 to 1")),
            None => refuse("operating-points", format!("has no `{name}`")),
        };
        let policy = Policy {
            complete: point("final")?,
            provisional: point("provisional")?,
            tiers: self.tiers.clone(),
        };
        if policy.provisional.thresholds[0] < policy.complete.thresholds[0] {
            return refuse("operating-points", "has a `provisional` that is less strict than `final`");
        }
        if policy.tiers.is_empty() {
            return refuse("tiers", "is empty");
        }
        Ok(policy)
    }
}
