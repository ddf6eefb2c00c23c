//! Scores become a verdict: operating point, tier, and the reasons not to give one. Pure: no I/O, no clock, no pixels.
//!
//! Every series ends in exactly one [`Disposition`]; [`Why`] codes are stable and documented in docs/REFERENCE.md.

pub mod driver;
pub mod suitability;

use serde::de::value::StrDeserializer;
use serde::{Deserialize, Serialize};

use crate::assemble::{Flag, Volume};
use crate::dicom::{SeriesUid, SliceId, SopInstanceUid, StudyUid};
use crate::infer::{Class, ModelId, Reading, Scores, SliceReading};

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
    /// Nothing is suspected, but a part of the head was not read.
    Incomplete,
    /// Nothing is suspected, but brain lies outside the square that the network sees.
    OutsideField,
    /// Nothing is suspected, but with a contrast agent, for which the model was not made.
    Contrast,
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
            Why::Incomplete => "incomplete",
            Why::OutsideField => "outside_field",
            Why::Contrast => "contrast",
        }
    }

    /// The reason with this code.
    pub fn of_code(code: &str) -> Option<Self> {
        Why::deserialize(StrDeserializer::<serde::de::value::Error>::new(code)).ok()
    }

    /// Whether reading showed that this one series is of no use, so that the next best of its study is read instead.
    /// Behind one with contrast there are only others with contrast.
    pub fn calls_for_another(self) -> bool {
        matches!(
            self,
            Why::NotHead
                | Why::NoBrainTissue
                | Why::Undecodable
                | Why::BlankSlice
                | Why::Crashed
                | Why::ModelFailed
                | Why::TooFewSlices
                | Why::Incomplete
                | Why::OutsideField
        )
    }
}

/// Which side of the patient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Its frame, from 1, where that instance has frames of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_frame: Option<u32>,
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

    /// What is suspected, if anything.
    pub fn finding(&self) -> Option<&Finding> {
        match self {
            Disposition::Suspected(finding) => Some(finding),
            _ => None,
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
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
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
#[cfg_attr(test, derive(schemars::JsonSchema))]
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
    /// Its frame, from 1, where the instance has frames of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<u32>,
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

/// Judges one volume. Without a reading the caller says why.
pub fn decide(volume: &Volume, stage: Stage, reading: Result<&Reading, Why>, policy: &Policy) -> Verdict {
    let judged = reading.and_then(|reading| {
        let tissue: Vec<_> = reading.slices.iter().map(|s| s.tissue).collect();
        suitability::by_pixels(&tissue).map(|()| reading)
    });
    let mut flags = volume.flags.clone();
    let (disposition, reading) = match judged {
        Err(why) => (Disposition::NotAnalysed(why), None),
        Ok(reading) => {
            // Before the end there is always something that was not read yet.
            if stage == Stage::Final {
                flags.extend(suitability::unread(volume, &reading.slices));
                flags.sort_unstable();
                flags.dedup();
            }
            match dispose(volume, reading, policy.point(stage), &policy.tiers) {
                Disposition::NotSuspected => {
                    match suitability::silence_would_mislead(reading.slices.len(), &flags) {
                        Some(why) => (Disposition::NotAnalysed(why), None),
                        None => (Disposition::NotSuspected, Some(reading)),
                    }
                }
                suspected => (suspected, Some(reading)),
            }
        }
    };
    Verdict {
        study: volume.study.clone(),
        series: volume.series.clone(),
        stage,
        disposition,
        scores: reading.map(|r| r.series),
        slices: reading.map_or_else(Vec::new, |r| r.slices.iter().map(SliceScores::from).collect()),
        flags,
        instances: volume.instances().count(),
        model: reading.map(|r| r.model.clone()),
        input_sha256: volume.input_sha256(),
        program: crate::VERSION.to_owned(),
    }
}

impl Policy {
    /// The operating point for a stage.
    pub fn point(&self, stage: Stage) -> &OperatingPoint {
        match stage {
            Stage::Provisional => &self.provisional,
            Stage::Final => &self.complete,
        }
    }
}

impl Finding {
    /// What names the key slice.
    pub fn key(&self) -> SliceId {
        SliceId { sop: self.key_sop_uid.clone(), frame: self.key_frame }
    }
}

impl From<&SliceReading> for SliceScores {
    fn from(s: &SliceReading) -> Self {
        let SliceId { sop, frame } = s.slice.clone();
        SliceScores { sop_uid: sop, frame, z_mm: s.z_mm, base: s.base, seq1: s.seq1, fused: s.fused }
    }
}

fn dispose(volume: &Volume, reading: &Reading, point: &OperatingPoint, tiers: &[TierRule]) -> Disposition {
    let any_min = point.thresholds[Class::Any.index()];
    let any = |s: &SliceReading| s.fused.of(Class::Any);
    // The first of equal slices is the key slice, so that the answer is one.
    let key = reading.slices.iter().enumerate().rev().max_by(|a, b| any(a.1).total_cmp(&any(b.1)));
    let Some((key, key_slice)) = key.filter(|_| reading.series.of(Class::Any) >= any_min) else {
        return Disposition::NotSuspected;
    };
    let mut subtypes: Vec<Class> = Class::ALL[1..]
        .iter()
        .copied()
        .filter(|c| reading.series.of(*c) >= point.thresholds[c.index()])
        .collect();
    subtypes.sort_by(|a, b| reading.series.of(*b).total_cmp(&reading.series.of(*a)));
    // The range is the run of slices around the key slice that stay above half the threshold.
    let in_run = |s: &SliceReading| any(s) >= 0.5 * any_min;
    let first = (0..=key).rev().take_while(|&i| i == key || in_run(&reading.slices[i])).last().unwrap_or(key);
    let last = (key..reading.slices.len())
        .take_while(|&i| i == key || in_run(&reading.slices[i]))
        .last()
        .unwrap_or(key);
    let run = &reading.slices[first..=last];
    let (left, right) =
        run.iter().fold((0.0, 0.0), |(l, r), s| (l + s.lesion.left_cm2, r + s.lesion.right_cm2));
    let tier = tiers.iter().find(|t| reading.series.of(Class::Any) >= t.any_min).or(tiers.last());
    Disposition::Suspected(Finding {
        side: side(left, right, subtypes.first()),
        volume_ml: (left + right > 0.0).then(|| volume_ml(reading, first, last)),
        subtypes,
        key_sop_uid: key_slice.slice.sop.clone(),
        key_frame: key_slice.slice.frame,
        slice_range: [place_of(volume, &run[0]), place_of(volume, &run[run.len() - 1])],
        tier: tier.map_or_else(
            || Tier { name: "suspected".into(), priority: 1 },
            |t| Tier { name: t.name.clone(), priority: t.priority },
        ),
    })
}

/// Thin series are read in part; ranges are given in slices of the series all the same.
pub fn place_of(volume: &Volume, slice: &SliceReading) -> usize {
    volume.slices.iter().position(|s| s.instance.header.id() == slice.slice).unwrap_or(0)
}

fn side(left_cm2: f32, right_cm2: f32, first: Option<&Class>) -> Option<Side> {
    const SHARE: f32 = 0.75;
    let total = left_cm2 + right_cm2;
    match left_cm2 / total {
        share if !share.is_finite() => None,
        share if share >= SHARE => Some(Side::Left),
        share if share <= 1.0 - SHARE => Some(Side::Right),
        _ if first == Some(&Class::Intraventricular) => Some(Side::Midline),
        _ => Some(Side::Both),
    }
}

/// Area of the lesion map times the step each slice stands for, rounded to 0.1 mL.
fn volume_ml(reading: &Reading, first: usize, last: usize) -> f32 {
    let z = |i: usize| reading.slices[i].z_mm;
    let n = reading.slices.len();
    let sum: f64 = (first..=last)
        .map(|i| {
            let (below, above) = (i.saturating_sub(1), (i + 1).min(n - 1));
            let step_cm = (z(above) - z(below)) / (above - below).max(1) as f64 / 10.0;
            let area = &reading.slices[i].lesion;
            f64::from(area.left_cm2 + area.right_cm2) * step_cm
        })
        .sum();
    (sum * 10.0).round() as f32 / 10.0
}

impl Verdict {
    /// The bytes that a replay must reproduce: one line of JSON, keys in fixed order, no times.
    pub fn canonical_json(&self) -> String {
        let finding = self.disposition.finding();
        let line = CanonicalVerdict {
            schema: 1,
            study_uid: &self.study,
            series_uid: &self.series,
            stage: self.stage,
            disposition: self.disposition.as_str(),
            reason: self.disposition.why().map(Why::code),
            scores: self.scores.as_ref().map(NamedScores::from),
            slices: &self.slices,
            finding,
            flags: &self.flags,
            instances: self.instances,
            model: self.model.as_ref(),
            input_sha256: &self.input_sha256,
            program: &self.program,
        };
        serde_json::to_string(&line).unwrap_or_else(|e| unreachable!("plain data serialises: {e}"))
    }
}

#[derive(Serialize)]
struct CanonicalVerdict<'a> {
    schema: u32,
    study_uid: &'a StudyUid,
    series_uid: &'a SeriesUid,
    stage: Stage,
    disposition: &'static str,
    reason: Option<&'static str>,
    scores: Option<NamedScores>,
    slices: &'a [SliceScores],
    finding: Option<&'a Finding>,
    flags: &'a [Flag],
    instances: usize,
    model: Option<&'a ModelId>,
    input_sha256: &'a str,
    program: &'a str,
}

/// Scores with their class names, for people and other programs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NamedScores {
    any: f32,
    epidural: f32,
    intraparenchymal: f32,
    intraventricular: f32,
    subarachnoid: f32,
    subdural: f32,
}

impl NamedScores {
    /// Probability of one class.
    pub fn of(&self, class: Class) -> f32 {
        match class {
            Class::Any => self.any,
            Class::Epidural => self.epidural,
            Class::Intraparenchymal => self.intraparenchymal,
            Class::Intraventricular => self.intraventricular,
            Class::Subarachnoid => self.subarachnoid,
            Class::Subdural => self.subdural,
        }
    }
}

impl From<&Scores> for NamedScores {
    fn from(scores: &Scores) -> Self {
        let [any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural] = scores.0;
        NamedScores { any, epidural, intraparenchymal, intraventricular, subarachnoid, subdural }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::geometry::place;
    use crate::assemble::testing::{instance_at, series_uid, study_uid};
    use crate::infer::{LesionArea, LesionMap, Timings, Tissue};
    use proptest::prelude::*;

    pub(super) fn policy() -> Policy {
        let point = |name: &str, any: f32| OperatingPoint {
            name: name.into(),
            thresholds: [any, 0.5, 0.5, 0.5, 0.5, 0.5],
            provenance: "test".into(),
        };
        let tier = |name: &str, any_min, priority| TierRule { name: name.into(), any_min, priority };
        Policy {
            complete: point("final", 0.5),
            provisional: point("provisional", 0.9),
            tiers: vec![tier("urgent", 0.9, 1), tier("prompt", 0.0, 2)],
        }
    }

    pub(super) fn volume(n: usize) -> Volume {
        place(study_uid(), series_uid(), (0..n).map(|i| instance_at(i, i as f64 * 5.0)).collect())
    }

    pub(super) fn reading(volume: &Volume, any: &[f32], subdural: f32, left_cm2: f32) -> Reading {
        let slices = volume.slices.iter().zip(any).map(|(s, &p)| {
            let scores = Scores([p, 0.0, 0.1, 0.0, 0.0, p * subdural]);
            SliceReading {
                slice: s.instance.header.id(),
                z_mm: s.z_mm,
                base: scores,
                seq1: scores,
                fused: scores,
                tissue: Tissue {
                    enclosed_cm2: 150.0,
                    brain_cm2: 140.0,
                    body_cm2: 200.0,
                    ..Tissue::default()
                },
                lesion: LesionArea { left_cm2: if p > 0.5 { left_cm2 } else { 0.0 }, right_cm2: 0.0 },
                map: LesionMap::default(),
            }
        });
        let slices: Vec<_> = slices.collect();
        let mut series = Scores::default();
        for s in &slices {
            for c in 0..6 {
                series.0[c] = series.0[c].max(s.fused.0[c]);
            }
        }
        let model = ModelId { id: "m".into(), version: "1".into(), sha256: "00".into() };
        Reading { series, slices, model, ms: Timings::default() }
    }

    #[test]
    fn a_run_of_suspected_slices_becomes_type_side_range_and_volume() {
        let volume = volume(10);
        let any = [0.0, 0.1, 0.3, 0.8, 0.95, 0.8, 0.1, 0.0, 0.0, 0.0];
        let verdict = decide(&volume, Stage::Final, Ok(&reading(&volume, &any, 0.9, 4.0)), &policy());
        let Disposition::Suspected(finding) = &verdict.disposition else { panic!("{verdict:?}") };
        assert_eq!(finding.subtypes, [Class::Subdural]);
        assert_eq!(finding.slice_range, [2, 5]);
        assert_eq!(finding.side, Some(Side::Left));
        assert_eq!(finding.volume_ml, Some(6.0));
        assert_eq!(finding.key_sop_uid, volume.slices[4].instance.header.sop);
        assert_eq!(finding.tier.name, "urgent");
    }

    #[test]
    fn the_provisional_point_is_stricter() {
        let volume = volume(10);
        let r = reading(&volume, &[0.7; 10], 0.0, 0.0);
        assert_eq!(
            decide(&volume, Stage::Provisional, Ok(&r), &policy()).disposition,
            Disposition::NotSuspected
        );
        assert_eq!(decide(&volume, Stage::Final, Ok(&r), &policy()).disposition.as_str(), "suspected");
    }

    #[test]
    fn a_failed_reading_is_never_not_suspected() {
        let volume = volume(10);
        let verdict = decide(&volume, Stage::Final, Err(Why::Crashed), &policy());
        assert_eq!(verdict.disposition, Disposition::NotAnalysed(Why::Crashed));
        assert!(verdict.canonical_json().contains("\"reason\":\"crashed\""));
        let mut air = reading(&volume, &[0.0; 10], 0.0, 0.0);
        air.slices.iter_mut().for_each(|s| s.tissue.brain_cm2 = 0.0);
        let verdict = decide(&volume, Stage::Final, Ok(&air), &policy());
        assert_eq!(verdict.disposition, Disposition::NotAnalysed(Why::NoBrainTissue));
        assert_eq!(verdict.scores, None);
    }

    /// A head of 30 slices: little enclosed at its ends, brain in between.
    fn head(edit: impl FnOnce(&mut Vec<crate::spool::Instance>)) -> Volume {
        let mut instances: Vec<_> = (0..30).map(|i| instance_at(i, i as f64 * 5.0)).collect();
        edit(&mut instances);
        place(study_uid(), series_uid(), instances)
    }

    fn judged(volume: &Volume, any: f32, edit: impl FnOnce(&mut Vec<SliceReading>)) -> (String, Vec<Flag>) {
        let mut reading = reading(volume, &vec![any; volume.slices.len()], 0.0, 0.0);
        for slice in &mut reading.slices {
            let near_an_end = slice.z_mm < 12.0 || slice.z_mm > 137.0;
            slice.tissue.enclosed_cm2 = if near_an_end { 25.0 } else { 150.0 };
        }
        edit(&mut reading.slices);
        let verdict = decide(volume, Stage::Final, Ok(&reading), &policy());
        let words = verdict.disposition.why().map_or(verdict.disposition.as_str(), Why::code);
        (words.to_owned(), verdict.flags)
    }

    #[test]
    fn silence_on_a_part_of_a_head_is_no_verdict_and_a_suspicion_on_it_stands() {
        use Flag::{
            Contrast, FewerThanAnnounced, LargeGap, MissingSlices, OutsideField, PartialHead, UnreadSlices,
        };
        let each = |instances: &mut Vec<crate::spool::Instance>,
                    edit: &dyn Fn(&mut crate::dicom::SliceHeader)| {
            instances.iter_mut().for_each(|i| edit(std::sync::Arc::make_mut(&mut i.header)));
        };
        let whole = |_: &mut Vec<_>| ();
        let cases: [(&str, Volume, &str, &[Flag]); 9] = [
            ("whole", head(whole), "not_suspected", &[]),
            ("one slice missing", head(|i| drop(i.remove(9))), "not_suspected", &[MissingSlices]),
            ("two side by side", head(|i| drop(i.drain(9..11))), "not_suspected", &[MissingSlices]),
            ("three", head(|i| drop(i.drain(9..12))), "incomplete", &[MissingSlices, LargeGap]),
            ("the lowest twelve", head(|i| i.truncate(12)), "incomplete", &[PartialHead]),
            ("the lowest twenty", head(|i| i.truncate(20)), "incomplete", &[PartialHead]),
            ("the highest twenty", head(|i| drop(i.drain(..10))), "incomplete", &[PartialHead]),
            (
                "announced",
                head(|i| each(i, &|h| h.images_in_acquisition = Some(40))),
                "not_suspected",
                &[FewerThanAnnounced],
            ),
            ("contrast", head(|i| each(i, &|h| h.contrast = true)), "contrast", &[Contrast]),
        ];
        for (name, volume, quiet, flags) in cases {
            assert_eq!(judged(&volume, 0.1, |_| ()), (quiet.to_owned(), flags.to_vec()), "{name}");
            assert_eq!(judged(&volume, 0.9, |_| ()), ("suspected".to_owned(), flags.to_vec()), "{name}");
        }
        let coarse = head(|i| {
            std::sync::Arc::make_mut(&mut i[9].header).rows = 256;
        });
        assert_eq!(
            judged(&coarse, 0.1, |_| ()),
            ("incomplete".to_owned(), vec![MissingSlices, UnreadSlices])
        );
        let outside = |slices: &mut Vec<SliceReading>| slices[14].tissue.outside_cm2 = 5.0;
        assert_eq!(judged(&head(whole), 0.1, outside), ("outside_field".to_owned(), vec![OutsideField]));
        assert_eq!(judged(&head(whole), 0.9, outside), ("suspected".to_owned(), vec![OutsideField]));
        // Of a thin series one in so many is read.
        let few = |slices: &mut Vec<SliceReading>| drop(slices.drain(1..24));
        assert_eq!(judged(&head(whole), 0.1, few).0, "too_few_slices");
    }

    proptest! {
        #[test]
        fn raising_a_probability_never_lowers_the_alarm(any in prop::collection::vec(0.0f32..1.0, 10), at in 0usize..10) {
            let volume = volume(10);
            let suspected = |any: &[f32]| decide(&volume, Stage::Final, Ok(&reading(&volume, any, 0.5, 1.0)), &policy()).disposition.as_str() == "suspected";
            let mut raised = any.clone();
            raised[at] = 1.0;
            prop_assert!(suspected(&raised));
            prop_assert_eq!(suspected(&any), any.iter().any(|p| *p >= 0.5));
        }
    }
}
