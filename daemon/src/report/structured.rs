//! Comprehensive 3D SR, TID 1500 Measurement Report: what was found, by which algorithm, on which images.
//!
//! ```text
//! CONTAINER  Imaging Measurement Report                       TID 1500
//!   CODE       Language, Procedure reported
//!   CODE ...   Observer: a device, with UID, name, model, serial number                     TID 1001
//!   CONTAINER  Imaging Measurements
//!     CONTAINER  Measurement Group                            TID 1501
//!       TEXT       Tracking Identifier, Tracking UID
//!       TEXT       Algorithm Name, Version, Parameters (hash of the model)                  TID 4019
//!       IMAGE      Source of Measurement: key slices, the key slice of the series first
//!       CODE       one per class = suspected | not suspected;   or analysis = not analysed, reason = CODE
//!       CODE, NUM  laterality and volume (profile assist, suspected)
//!       TEXT       comment: quality flags, and that this is no diagnosis
//! ```
//!
//! A class is a *name* and suspected or not its *value*: nothing in the tree reads as a finding by itself, so that a
//! program that ignores the value cannot take "subdural hemorrhage, not suspected" for a subdural hemorrhage.

use super::dataset::{Code, Dataset, code};
use super::source::{Kind, Making, evidence, reference, with_frame};
use super::verdict::Disposition;
use crate::config::Profile;
use crate::decide::{Side, SliceScores};
use crate::dicom::SliceId;
use crate::infer::Class;
use crate::spool::Instance;

/// Stands in every report.
pub const DISCLAIMER: &str = "Notification of a suspected finding by software. Not a diagnosis, not verified by a person. Read the whole study.";

/// Makes the report.
pub fn make(making: &Making) -> Dataset {
    let all: Vec<&Instance> = making.source.instances.iter().collect();
    let mut dataset = making
        .common(Kind::Report)
        .items((0x0008, 0x1111), vec![]) // Referenced Performed Procedure Step Sequence
        .items((0x0040, 0xa372), vec![]) // Performed Procedure Code Sequence
        .items((0x0040, 0xa375), vec![making.hierarchy(&all)])
        .text((0x0040, 0xa491), "CS", "COMPLETE")
        .text((0x0040, 0xa493), "CS", "UNVERIFIED")
        .with(root(making));
    if let Some(earlier) = making.predecessor_sha256 {
        let sop = reference(Kind::Report.sop_class(), &making.sop_of(earlier, Kind::Report));
        let series = making.series_of(earlier, Kind::Report);
        let item = evidence(making.verdict.study_uid.as_str(), &series, vec![sop]);
        dataset = dataset.items((0x0040, 0xa360), vec![item]);
    }
    dataset
}

fn root(making: &Making) -> Dataset {
    const REPORTED: Code = Code { value: "24725-4", scheme: "LN", meaning: "CT Head" };
    let mut content = vec![language(), code_item("HAS CONCEPT MOD", PROCEDURE_REPORTED, REPORTED)];
    content.extend(observer(making));
    content.push(container("CONTAINS", IMAGING_MEASUREMENTS, vec![group(making)]));
    document("1500", Code::dcm("126000", "Imaging Measurement Report"), content)
}

/// The root of a document: what a container item holds, without a relationship.
pub fn document(template: &str, title: Code, content: Vec<Dataset>) -> Dataset {
    let template = Dataset::new().text((0x0008, 0x0105), "CS", "DCMR").text((0x0040, 0xdb00), "CS", template);
    Dataset::new()
        .text((0x0040, 0xa040), "CS", "CONTAINER")
        .items((0x0040, 0xa043), vec![code(title)])
        .text((0x0040, 0xa050), "CS", "SEPARATE")
        .items((0x0040, 0xa504), vec![template])
        .items((0x0040, 0xa730), content)
}

/// TID 1204.
pub fn language() -> Dataset {
    const ENGLISH: Code = Code { value: "en", scheme: "RFC5646", meaning: "English" };
    code_item("HAS CONCEPT MOD", Code::dcm("121049", "Language of Content Item and Descendants"), ENGLISH)
}

/// TID 1001 and 1004: the observer is a device.
pub fn observer(making: &Making) -> Vec<Dataset> {
    let site = making.site;
    let device = super::source::uid(&["ichd.device/1", &site.name, &site.device]);
    let context = |concept, text: &str| text_item("HAS OBS CONTEXT", concept, text);
    vec![
        code_item("HAS OBS CONTEXT", Code::dcm("121005", "Observer Type"), Code::dcm("121007", "Device")),
        uid_item("HAS OBS CONTEXT", Code::dcm("121012", "Device Observer UID"), &device),
        context(Code::dcm("121013", "Device Observer Name"), "ichd"),
        context(Code::dcm("121014", "Device Observer Manufacturer"), "ichd"),
        context(Code::dcm("121015", "Device Observer Model Name"), "ichd"),
        context(
            Code::dcm("121016", "Device Observer Serial Number"),
            &format!("{}/{}", site.name, site.device),
        ),
    ]
}

const PROCEDURE_REPORTED: Code = Code::dcm("121058", "Procedure reported");
const IMAGING_MEASUREMENTS: Code = Code::dcm("126010", "Imaging Measurements");
const SUSPECTED: Code = Code::sct("415684004", "Suspected");
const NOT_SUSPECTED: Code = Code::sct("428263003", "NOT suspected");

fn group(making: &Making) -> Dataset {
    let verdict = making.verdict;
    let mut content = vec![
        text_item(
            "HAS OBS CONTEXT",
            Code::dcm("112039", "Tracking Identifier"),
            "ichd reading of the series",
        ),
        uid_item(
            "HAS OBS CONTEXT",
            Code::dcm("112040", "Tracking Unique Identifier"),
            &making.uid("tracking"),
        ),
    ];
    content.extend(algorithm(making));
    for key in key_slices(making) {
        if let Some(instance) = making.source.instance(key.sop.as_str()) {
            content.push(image_item(Some(Code::dcm("121112", "Source of Measurement")), instance, key.frame));
        }
    }
    content.extend(evaluations(making));
    let flags = match verdict.flags.is_empty() {
        true => String::new(),
        false => format!(" Quality flags: {}.", verdict.flags.join(", ")),
    };
    content.push(text_item("CONTAINS", Code::dcm("121106", "Comment"), &format!("{DISCLAIMER}{flags}")));
    container("CONTAINS", Code::dcm("125007", "Measurement Group"), content)
}

/// TID 4019. Where no model read the series, the program that decided so is the algorithm.
fn algorithm(making: &Making) -> Vec<Dataset> {
    let verdict = making.verdict;
    let (name, version) = match &verdict.model {
        Some(model) => (model.id.as_str(), model.version.as_str()),
        None => ("ichd", verdict.program.as_str()),
    };
    let text = |concept, text: &str| text_item("HAS CONCEPT MOD", concept, text);
    let parameters = Code::dcm("111002", "Algorithm Parameters");
    let mut items = vec![
        text(Code::dcm("111001", "Algorithm Name"), name),
        text(Code::dcm("111003", "Algorithm Version"), version),
        text(parameters, &format!("program=ichd {}", verdict.program)),
        text(parameters, &format!("verdict sha256={}", making.verdict_sha256)),
    ];
    if let Some(model) = &verdict.model {
        items.insert(2, text(parameters, &format!("model manifest sha256={}", model.sha256)));
    }
    items
}

/// Which classes a profile may name.
fn classes(profile: Profile) -> &'static [Class] {
    match profile {
        Profile::Triage => &[Class::Any],
        Profile::Assist => &Class::ALL,
    }
}

fn is_suspected(making: &Making, class: Class) -> bool {
    let finding = making.verdict.finding.as_ref();
    finding.is_some_and(|f| class == Class::Any || f.subtypes.contains(&class))
}

/// Key slice of the series, then that of every suspected class that the profile names; each once.
pub fn key_slices(making: &Making) -> Vec<SliceId> {
    let Some(finding) = &making.verdict.finding else { return Vec::new() };
    let mut keys = vec![finding.key()];
    for class in classes(making.site.profile).iter().skip(1).filter(|c| is_suspected(making, **c)) {
        let score = |s: &SliceScores| s.fused.of(*class);
        // The first of equal slices, as everywhere.
        let best = making.verdict.slices.iter().rev().max_by(|a, b| score(a).total_cmp(&score(b)));
        let best = best.map(|s| SliceId { sop: s.sop_uid.clone(), frame: s.frame });
        keys.extend(best.filter(|key| !keys.contains(key)));
    }
    keys
}

fn evaluations(making: &Making) -> Vec<Dataset> {
    let verdict = making.verdict;
    if verdict.disposition == Disposition::NotAnalysed {
        let reason = verdict.reason.as_deref().unwrap_or("unknown");
        let meaning = reason.replace('_', " ");
        let not_analysed = Code::own("not_analysed", "could not be analysed");
        return vec![
            code_item(
                "CONTAINS",
                Code::own("analysis", "Analysis for intracranial hemorrhage"),
                not_analysed,
            ),
            code_item("CONTAINS", Code::own("reason", "Reason"), Code::own(reason, &meaning)),
        ];
    }
    let mut items: Vec<Dataset> = classes(making.site.profile)
        .iter()
        .map(|class| {
            let value = if is_suspected(making, *class) { SUSPECTED } else { NOT_SUSPECTED };
            code_item("CONTAINS", concept(*class), value)
        })
        .collect();
    if let (Some(finding), Profile::Assist) = (&verdict.finding, making.site.profile) {
        items.extend(
            finding.side.map(|s| code_item("CONTAINS", Code::sct("272741003", "Laterality"), side(s))),
        );
        items.extend(finding.volume_ml.map(volume_item));
    }
    items
}

/// Public terminologies name diseases ("subdural hematoma"); what is said here is what the classes mean, no more.
fn concept(class: Class) -> Code<'static> {
    match class {
        Class::Any => Code::own("any", "Intracranial hemorrhage, any"),
        Class::Epidural => Code::own("epidural", "Epidural hemorrhage"),
        Class::Intraparenchymal => Code::own("intraparenchymal", "Intraparenchymal hemorrhage"),
        Class::Intraventricular => Code::own("intraventricular", "Intraventricular hemorrhage"),
        Class::Subarachnoid => Code::own("subarachnoid", "Subarachnoid hemorrhage"),
        Class::Subdural => Code::own("subdural", "Subdural hemorrhage"),
    }
}

fn side(side: Side) -> Code<'static> {
    match side {
        Side::Left => Code::sct("7771000", "Left"),
        Side::Right => Code::sct("24028007", "Right"),
        Side::Both => Code::sct("51440002", "Right and left"),
        Side::Midline => Code::sct("399488007", "Midline"),
    }
}

fn volume_item(volume_ml: f32) -> Dataset {
    const MILLILITRE: Code = Code { value: "ml", scheme: "UCUM", meaning: "milliliter" };
    let measured = Dataset::new()
        .text((0x0040, 0xa30a), "DS", &format!("{volume_ml:.1}"))
        .items((0x0040, 0x08ea), vec![code(MILLILITRE)]);
    item("CONTAINS", "NUM", Some(Code::sct("118565006", "Volume"))).items((0x0040, 0xa300), vec![measured])
}

fn item(relationship: &str, value_type: &str, concept: Option<Code>) -> Dataset {
    let item =
        Dataset::new().text((0x0040, 0xa010), "CS", relationship).text((0x0040, 0xa040), "CS", value_type);
    match concept {
        Some(concept) => item.items((0x0040, 0xa043), vec![code(concept)]),
        None => item,
    }
}

fn container(relationship: &str, concept: Code, content: Vec<Dataset>) -> Dataset {
    item(relationship, "CONTAINER", Some(concept))
        .text((0x0040, 0xa050), "CS", "SEPARATE")
        .items((0x0040, 0xa730), content)
}

fn code_item(relationship: &str, concept: Code, value: Code) -> Dataset {
    item(relationship, "CODE", Some(concept)).items((0x0040, 0xa168), vec![code(value)])
}

/// A text item.
pub fn text_item(relationship: &str, concept: Code, text: &str) -> Dataset {
    item(relationship, "TEXT", Some(concept)).text((0x0040, 0xa160), "UT", text)
}

fn uid_item(relationship: &str, concept: Code, uid: &str) -> Dataset {
    item(relationship, "UIDREF", Some(concept)).text((0x0040, 0xa124), "UI", uid)
}

/// An image reference, to one frame where the image has frames.
pub fn image_item(concept: Option<Code>, instance: &Instance, frame: Option<u32>) -> Dataset {
    let reference = reference(&instance.header.sop_class, instance.header.sop.as_str());
    item("CONTAINS", "IMAGE", concept).items((0x0008, 0x1199), vec![with_frame(reference, frame)])
}
