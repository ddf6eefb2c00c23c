//! `manifest.toml` of a model package, format 1. The daemon knows nothing of preprocessing that it does not say.
//!
//! A key this program does not know is refused, and so is a value it would not honour: a manifest that is signed and
//! half understood reads patients wrongly.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::Class;
use crate::decide::{OperatingPoint, Policy, TierRule};

/// The whole manifest.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Manifest {
    /// Format version; 1.
    pub format: u32,
    /// Identifier: lower-case letters, digits, `.`, `-`, `_`.
    pub id: String,
    /// Version, by the same rule.
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
    /// What was done to the probabilities, in words; all of it is inside the graphs.
    pub calibration: Option<Calibration>,
    /// What the model was made for.
    pub intended: Option<Intended>,
    /// What it was made from, in words.
    pub training: Option<Training>,
    /// Series with known answers.
    pub golden: Golden,
    /// SHA-256 (lower-case hex) of every other file of the package.
    pub files: BTreeMap<String, String>,
}

/// Preprocessing of one slice.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Input {
    /// Side of the square the network sees, pixels.
    pub size_px: usize,
    /// Side of that square in the patient, mm.
    pub field_mm: f64,
    /// What lies in the middle of the square; `image`.
    pub center: String,
    /// Resize kernel; `area`.
    pub resize: String,
    /// HU of what lies outside the image.
    pub outside_hu: f32,
    /// HU range before resizing.
    pub clip_hu: [f32; 2],
    /// Thinner series are read in part, about one slice per this distance, mm.
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
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Graphs {
    /// `x` [1, C, S, S] -> `features` [1, F], `probs` [1, 6], `map` [1, 1, M, M].
    pub base: BaseGraph,
    /// `features` [1, T, F] -> `probs` [1, T, 6].
    pub seq1: Seq1Graph,
    /// `x` [1, T, 13] -> `probs` [1, T, 6].
    pub seq2: Seq2Graph,
}

/// Base CNN.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BaseGraph {
    /// File in the package.
    pub file: String,
    /// Length of the feature vector.
    pub features: usize,
    /// Side of the lesion map.
    pub map_px: usize,
}

/// Sequence model 1.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Seq1Graph {
    /// File in the package.
    pub file: String,
}

/// Sequence model 2.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Seq2Graph {
    /// File in the package.
    pub file: String,
    /// Columns after the twelve probabilities; `["step-mm/10"]`.
    pub meta: Vec<String>,
}

/// How slices become a series score.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SeriesRule {
    /// `max`: per class the highest final probability.
    pub aggregate: String,
}

/// What was done to the probabilities. For people: whatever it is, the graphs already do it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Calibration {
    /// Name of the method.
    pub method: String,
    /// On what it was fitted.
    pub provenance: String,
}

/// What the model was made for. For people; what the daemon refuses stands in `decide::suitability`, so a manifest gives no
/// range that somebody could believe to be held.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Intended {
    /// Everything, in words.
    pub words: String,
}

/// What the model was made from, in words.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Training {
    /// Data.
    pub data: String,
    /// Limits.
    pub limits: String,
}

/// Series with known answers.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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
        plain_name("id", &manifest.id)?;
        plain_name("version", &manifest.version)?;
        if manifest.classes != Class::ALL {
            return refuse(
                "classes",
                "has another order than any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural",
            );
        }
        manifest.input.check()?;
        manifest.graphs.check()?;
        known("series.aggregate", &manifest.series.aggregate, "max")?;
        manifest.check_words()?;
        manifest.check_files()?;
        manifest.channels()?;
        manifest.policy()?;
        Ok(manifest)
    }

    fn check_words(&self) -> Result<(), ManifestError> {
        if let Some(c) = &self.calibration {
            spoken("calibration.method", &c.method)?;
            spoken("calibration.provenance", &c.provenance)?;
        }
        if let Some(i) = &self.intended {
            spoken("intended.words", &i.words)?;
        }
        if let Some(t) = &self.training {
            spoken("training.data", &t.data)?;
            spoken("training.limits", &t.limits)?;
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), ManifestError> {
        for (file, sha256) in &self.files {
            let plain = Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
            if !plain || file.is_empty() {
                return refuse("files", format!("names `{file}`, which does not lie in the package"));
            }
            if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                return refuse("files", format!("has no SHA-256 in lower-case hex for `{file}`"));
            }
        }
        let graphs = [&self.graphs.base.file, &self.graphs.seq1.file, &self.graphs.seq2.file];
        for file in graphs.into_iter().chain([&self.golden.expected]) {
            if !self.files.contains_key(file) {
                return refuse("files", format!("does not list `{file}`"));
            }
        }
        if self.golden_files().next().is_none() {
            return refuse("golden.series", "has no file under [files]");
        }
        Ok(())
    }

    /// Names of the golden DICOM files, all of them signed.
    pub fn golden_files(&self) -> impl Iterator<Item = &String> {
        let folder = format!("{}/", self.golden.series.trim_end_matches('/'));
        self.files.keys().filter(move |f| f.starts_with(&folder))
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
            match self.input.windows.iter().find(|w| w.name == window) {
                Some(w) => {
                    Ok(Channel { neighbour, low_hu: w.level_hu - w.width_hu / 2.0, width_hu: w.width_hu })
                }
                None => refuse("input.windows", format!("has no `{window}`")),
            }
        };
        self.input.channels.iter().map(resolve).collect()
    }

    /// Operating points and tiers.
    pub fn policy(&self) -> Result<Policy, ManifestError> {
        let point = |name: &str| {
            let mut named = self.operating_points.iter().filter(|p| p.name == name);
            let (Some(point), None) = (named.next(), named.next()) else {
                return refuse("operating-points", format!("must have exactly one `{name}`"));
            };
            // A threshold of 0 suspects everybody, one above 1 nobody.
            if !point.thresholds.iter().all(|t| *t > 0.0 && *t <= 1.0) {
                return refuse("operating-points", format!("has a threshold of `{name}` outside 0 to 1"));
            }
            spoken("operating-points.provenance", &point.provenance)?;
            Ok(point.clone())
        };
        let policy = Policy {
            complete: point("final")?,
            provisional: point("provisional")?,
            tiers: self.tiers.clone(),
        };
        if self.operating_points.len() != 2 {
            return refuse("operating-points", "has others than `final` and `provisional`");
        }
        for class in Class::ALL {
            let [provisional, complete] =
                [&policy.provisional, &policy.complete].map(|p| p.thresholds[class.index()]);
            if provisional < complete {
                return refuse(
                    "operating-points",
                    format!("has a `provisional` that is less strict than `final` for {}", class.as_str()),
                );
            }
        }
        self.check_tiers()?;
        Ok(policy)
    }

    /// The first match from the top wins, so the rules must descend and the last one must catch the rest.
    fn check_tiers(&self) -> Result<(), ManifestError> {
        for tier in &self.tiers {
            spoken("tiers.name", &tier.name)?;
            if !(0.0..=1.0).contains(&tier.any_min) || tier.priority == 0 {
                return refuse(
                    "tiers",
                    format!("has an any-min or priority out of range in `{}`", tier.name),
                );
            }
        }
        let falling = |w: &[TierRule]| w[0].any_min > w[1].any_min && w[0].priority < w[1].priority;
        if !self.tiers.windows(2).all(falling) {
            return refuse("tiers", "is not ordered from most to least urgent");
        }
        match self.tiers.last() {
            Some(last) if last.any_min == 0.0 => Ok(()),
            _ => refuse("tiers", "does not end with any-min = 0.0"),
        }
    }
}

impl Input {
    fn check(&self) -> Result<(), ManifestError> {
        if !(32..=1024).contains(&self.size_px) {
            return refuse("input.size-px", "is not within 32 to 1024");
        }
        if !(50.0..=1000.0).contains(&self.field_mm) {
            return refuse("input.field-mm", "is not within 50 to 1000");
        }
        known("input.center", &self.center, "image")?;
        known("input.resize", &self.resize, "area")?;
        let [low, high] = self.clip_hu;
        if !(-32_768.0..0.0).contains(&low) || !(100.0..=32_767.0).contains(&high) {
            return refuse("input.clip-hu", "is no range of HU from air to bone");
        }
        if !(low..=0.0).contains(&self.outside_hu) {
            return refuse("input.outside-hu", "is not within clip-hu and at most 0");
        }
        if !(0.1..=20.0).contains(&self.step_mm_min) {
            return refuse("input.step-mm-min", "is not within 0.1 to 20");
        }
        if !(-10.0..=10.0).contains(&self.mean) {
            return refuse("input.mean", "is not within -10 to 10");
        }
        if !(1e-3..=10.0).contains(&self.std) {
            return refuse("input.std", "is not within 0.001 to 10");
        }
        if !(1..=32).contains(&self.channels.len()) || !self.channels.iter().any(|c| c.starts_with("self:")) {
            return refuse("input.channels", "must be 1 to 32, one of them of the slice itself");
        }
        for (i, window) in self.windows.iter().enumerate() {
            spoken("input.windows.name", &window.name)?;
            if self.windows[..i].iter().any(|w| w.name == window.name) {
                return refuse("input.windows", format!("has `{}` twice", window.name));
            }
            if !(-2_000.0..=4_000.0).contains(&window.level_hu) || !(1.0..=8_000.0).contains(&window.width_hu)
            {
                return refuse("input.windows", format!("has an implausible `{}`", window.name));
            }
        }
        Ok(())
    }
}

impl Graphs {
    fn check(&self) -> Result<(), ManifestError> {
        if !(8..=4096).contains(&self.base.features) {
            return refuse("graphs.base.features", "is not within 8 to 4096");
        }
        if !(1..=512).contains(&self.base.map_px) {
            return refuse("graphs.base.map-px", "is not within 1 to 512");
        }
        if self.seq2.meta != ["step-mm/10"] {
            return refuse("graphs.seq2.meta", "is not [\"step-mm/10\"], which this program computes");
        }
        let (base, seq1, seq2) = (&self.base.file, &self.seq1.file, &self.seq2.file);
        if base == seq1 || base == seq2 || seq1 == seq2 {
            return refuse("graphs", "names one file twice");
        }
        Ok(())
    }
}

fn known(field: &str, value: &str, only: &str) -> Result<(), ManifestError> {
    if value == only { Ok(()) } else { refuse(field, format!("is `{value}`, this program knows `{only}`")) }
}

/// What becomes part of file names and documents.
fn plain_name(field: &str, value: &str) -> Result<(), ManifestError> {
    let plain = |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'+');
    if (1..=64).contains(&value.len()) && value.bytes().all(plain) && !value.starts_with('.') {
        return Ok(());
    }
    refuse(field, "is not 1 to 64 of a-z, 0-9, `.`, `-`, `_`, `+`")
}

fn spoken(field: &str, value: &str) -> Result<(), ManifestError> {
    if value.trim().is_empty() { refuse(field, "is empty") } else { Ok(()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The shipped manifest's text.
    fn shipped() -> String {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/ichd-base/manifest.toml");
        std::fs::read_to_string(path).unwrap()
    }

    /// The shipped manifest with one line replaced; the line is named by how it starts.
    fn edited(start: &str, line: &str) -> Result<Manifest, String> {
        let text = shipped();
        let mut lines: Vec<&str> = text.lines().collect();
        let at = lines.iter().position(|l| l.starts_with(start)).unwrap_or_else(|| panic!("no line {start}"));
        lines[at] = line;
        Manifest::parse(&lines.join("\n")).map_err(|e| e.to_string())
    }

    #[test]
    fn the_shipped_manifest_is_accepted() {
        let manifest = Manifest::parse(&shipped()).unwrap();
        assert!(manifest.channels().unwrap().len().is_multiple_of(3));
        assert!(manifest.golden_files().count() >= 8);
    }

    #[test]
    fn a_key_that_this_program_does_not_know_is_refused_in_every_table() {
        for (start, key) in [
            ("format", "flips = true"),
            ("size-px", "gamma = 2.0"),
            ("level-hu", "colour = \"red\""),
            ("map-px", "batch = 4"),
            ("aggregate", "top = 3"),
            ("any-min", "sound = 1"),
            ("provenance", "until = 3"),
            ("words", "age = 3"),
            ("expected", "until = 3"),
        ] {
            let text = shipped();
            let line = text.lines().find(|l| l.starts_with(start)).unwrap();
            let said = edited(start, &format!("{line}\n{key}")).expect_err(key);
            let name = key.split(' ').next().unwrap();
            assert!(said.contains("unknown field") && said.contains(name), "{key}: {said}");
        }
    }

    #[test]
    fn a_value_that_this_program_would_not_honour_is_refused_by_name() {
        for (start, line, field) in [
            ("format", "format = 2", "format"),
            ("id", "id = \"../evil\"", "id"),
            ("version", "version = \"\"", "version"),
            ("size-px", "size-px = 0", "input.size-px"),
            ("field-mm", "field-mm = nan", "input.field-mm"),
            ("center", "center = \"skull\"", "input.center"),
            ("resize", "resize = \"bilinear\"", "input.resize"),
            ("outside-hu", "outside-hu = -3000.0", "input.outside-hu"),
            ("clip-hu", "clip-hu = [3071.0, -1024.0]", "input.clip-hu"),
            ("clip-hu", "clip-hu = [-1024.0, nan]", "input.clip-hu"),
            ("step-mm-min", "step-mm-min = 0.0", "input.step-mm-min"),
            ("mean", "mean = inf", "input.mean"),
            ("std", "std = 0.0", "input.std"),
            ("std", "std = nan", "input.std"),
            ("channels", "channels = [\"prev:brain\"]", "input.channels"),
            ("channels", "channels = [\"self:brain\", \"before:brain\"]", "input.channels"),
            ("channels", "channels = [\"self:liver\"]", "input.windows"),
            ("width-hu", "width-hu = 0.0", "input.windows"),
            ("level-hu", "level-hu = nan", "input.windows"),
            ("features", "features = 0", "graphs.base.features"),
            ("map-px", "map-px = 0", "graphs.base.map-px"),
            ("meta", "meta = []", "graphs.seq2.meta"),
            ("aggregate", "aggregate = \"mean\"", "series.aggregate"),
            ("words =", "words = \"\"", "intended.words"),
            ("words =", "thickness-mm = [2.5, 10.0]", "thickness-mm"),
            ("any-min", "any-min = 1.5", "tiers"),
            ("priority", "priority = 0", "tiers"),
            ("file = \"seq1", "file = \"base.onnx\"", "graphs"),
            ("file = \"seq1", "file = \"other.onnx\"", "files"),
            ("series =", "series = \"nowhere\"", "golden.series"),
            ("\"base.onnx\"", "\"base.onnx\" = \"00\"", "files"),
            ("\"MODEL_CARD.md\"", "\"../MODEL_CARD.md\" = \"00\"", "files"),
        ] {
            let said = edited(start, line).expect_err(line);
            assert!(said.contains(&format!("`{field}`")), "{line}: {said}");
        }
        let swapped = r#"classes = ["epidural", "any", "intraparenchymal", "intraventricular", "subarachnoid", "subdural"]"#;
        assert!(edited("classes", swapped).unwrap_err().contains("`classes`"));
    }

    #[test]
    fn the_provisional_point_must_be_as_strict_as_the_final_one_for_every_class() {
        let points = |provisional: &str| {
            let text = shipped();
            let (head, tail) = text.split_once("name = \"provisional\"").unwrap();
            let (_, tail) = tail.split_once("provenance").unwrap();
            let text = format!("{head}name = \"provisional\"\nthresholds = {provisional}\nprovenance{tail}");
            Manifest::parse(&text).map_err(|e| e.to_string())
        };
        points("[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]").unwrap();
        for class in Class::ALL {
            let mut thresholds = [1.0f32; 6];
            thresholds[class.index()] = 0.01;
            let said = points(&format!("{thresholds:?}")).unwrap_err();
            assert!(said.contains(class.as_str()), "{said}");
        }
        assert!(points("[1.0, 1.0, 1.0, 1.0, 1.0, 1.01]").is_err());
        assert!(points("[1.0, 1.0, 1.0, 1.0, 1.0]").is_err());
    }
}
