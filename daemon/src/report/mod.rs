//! Results back into the PACS: a structured report, a captioned capture, a key object selection, a segmentation.
//!
//! A final verdict and its report rows are one transaction of the ledger; from there on nothing is lost. Each
//! destination has a task of its own, so that one that is down holds up no other. Objects are made when they are sent,
//! from the verdict's bytes and the spool; their UIDs follow from the verdict, so that sending again is harmless.
//! Off unless a destination is configured. Nothing upstream waits for anything here, and nothing here is a stage whose
//! silence restarts the daemon.
//!
//! Deliberately absent: provisional verdicts. A PACS cannot take a document back.

mod capture;
pub(crate) mod dataset;
mod driver;
pub(crate) mod font;
mod key_object;
mod lesion;
pub(crate) mod scu;
mod segmentation;
mod source;
mod structured;
mod verdict;

pub use driver::{Wiring, spawn};
pub use lesion::Lesion;
pub use source::Kind;
pub(crate) use source::uid;
pub use verdict::RecordedVerdict;

use crate::config;
use crate::decide::Why;
use crate::ledger::reports::Subscription;
use crate::spool::Instance;

/// Reasons of series that never were candidates; their disposition is in the ledger and on MQTT, and one report per
/// scout and reformat would bury the one that matters.
const NEVER_CANDIDATES: [Why; 6] =
    [Why::NotCt, Why::NotAnImage, Why::Localizer, Why::Derived, Why::NotChosen, Why::BoneKernel];

/// Who is told of what, by the configuration.
pub fn subscription(config: &config::Report) -> Subscription {
    let silent = match config.not_analysed {
        config::NotAnalysed::All => &[][..],
        config::NotAnalysed::Candidates => &NEVER_CANDIDATES,
    };
    Subscription {
        destinations: config.destination.iter().map(config::ReportDestination::name).collect(),
        silent_reasons: silent.iter().map(|w| w.code()).collect(),
    }
}

/// Why the objects of a verdict could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The stored verdict is none.
    #[error("the verdict in the ledger cannot be read")]
    Verdict(#[source] serde_json::Error),
    /// The spool does not hold the series, or its first instance cannot be read.
    #[error("the series cannot be read from the spool")]
    Source(#[source] crate::dicom::HeaderError),
    /// The key slice cannot be decoded.
    #[error("the key slice cannot be decoded")]
    Slice(#[source] crate::infer::hounsfield::DecodeError),
}

/// One report that waits, with the instances of its series.
#[derive(Debug)]
pub struct Order<'a> {
    /// What was decided and when.
    pub row: &'a crate::ledger::reports::ReportRow,
    /// The series as it lies in the spool.
    pub instances: Vec<Instance>,
    /// Whose box this is, and what it may say.
    pub site: &'a config::Site,
    /// What the destination wants.
    pub kinds: &'a [Kind],
}

/// Makes the objects of one report in the order in which they are sent.
fn make(order: Order) -> Result<Vec<scu::Object>, MakeError> {
    let row = order.row;
    let verdict = RecordedVerdict::parse(&row.verdict).map_err(MakeError::Verdict)?;
    let source = source::Source::read(order.instances).map_err(MakeError::Source)?;
    let lesion = row.lesion.as_deref().map(serde_json::from_slice::<Lesion>).transpose();
    let lesion = lesion.map_err(MakeError::Verdict)?;
    let making = source::Making {
        source: &source,
        verdict: &verdict,
        verdict_sha256: &row.verdict_sha256,
        decided_ms: row.decided_ms,
        site: order.site,
        predecessor_sha256: row.predecessor_sha256.as_deref(),
        lesion: lesion.as_ref(),
    };
    let mut objects = Vec::new();
    for kind in Kind::ALL {
        if !order.kinds.contains(&kind) {
            continue;
        }
        let dataset = match kind {
            Kind::Capture => capture::make(&making).map_err(MakeError::Slice)?,
            Kind::KeyObject => key_object::make(&making),
            Kind::Segmentation => segmentation::make(&making),
            Kind::Report => Some(structured::make(&making)),
        };
        objects.extend(dataset.map(|dataset| scu::Object {
            sop_class: kind.sop_class(),
            sop: making.sop(kind),
            dataset,
            // Old systems know no segmentations; the report is what must get through, where it is wanted at all.
            is_optional: kind != Kind::Report && order.kinds.contains(&Kind::Report),
        }));
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Profile, Site};
    use crate::decide::{Disposition, Stage, Verdict};
    use crate::ledger::reports::ReportRow;

    /// One slice of a person whose name is not ASCII, and a suspected bleed on it.
    fn order_of(dir: &std::path::Path) -> (Instance, Verdict) {
        let options = ichd_phantom::SeriesOptions {
            scan: ichd_phantom::scan::ScanOptions { matrix: 64, slices: 1, ..Default::default() },
            ..Default::default()
        };
        let slice = ichd_phantom::study(1, ichd_phantom::Bleed::None, &options).unwrap().remove(0);
        let path = dir.join("slice.dcm");
        std::fs::write(&path, slice.file_bytes().unwrap()).unwrap();
        let instance = Instance::read(path).unwrap();
        let mut verdict = crate::alert::lifecycle::tests::verdict(1, Stage::Final, Some(0.9));
        if let Disposition::Suspected(finding) = &mut verdict.disposition {
            finding.key_sop_uid = instance.header.sop.clone();
            finding.subtypes = vec![crate::infer::Class::Subdural];
            finding.side = Some(crate::decide::Side::Left);
        }
        (instance, verdict)
    }

    fn objects(instance: &Instance, verdict: &Verdict, profile: Profile) -> Vec<scu::Object> {
        let row = ReportRow {
            seq: 1,
            study_uid: verdict.study.as_str().into(),
            series_uid: verdict.series.as_str().into(),
            verdict: verdict.canonical_json(),
            verdict_sha256: "00".into(),
            lesion: Some(hot_corner(instance)),
            decided_ms: 1_700_000_000_000,
            predecessor_sha256: Some("11".into()),
        };
        let site = Site { name: "north".into(), device: "ct-1".into(), profile };
        make(Order { row: &row, instances: vec![instance.clone()], site: &site, kinds: &Kind::ALL }).unwrap()
    }

    /// A map of 4 x 4 cells that is hot in the patient's left front corner.
    fn hot_corner(instance: &Instance) -> Vec<u8> {
        let sop = instance.header.sop.as_str();
        // 16 bytes: 255 at index 3.
        let map = "AAAA/wAAAAAAAAAAAAAAAA==";
        format!(r#"{{"field_mm":240.0,"px":4,"slices":[{{"sop_uid":"{sop}","map":"{map}"}}]}}"#).into_bytes()
    }

    fn holds(bytes: &[u8], text: &[u8]) -> bool {
        bytes.windows(text.len()).any(|w| w == text)
    }

    #[test]
    fn profile_triage_names_neither_type_nor_side_nor_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (instance, verdict) = order_of(dir.path());
        let told = |profile, words: &str| {
            let all = objects(&instance, &verdict, profile);
            assert_eq!(all.len(), if profile == Profile::Assist { 4 } else { 3 });
            all.iter().any(|o| holds(&o.dataset.encode(true), words.as_bytes()))
        };
        for words in ["Subdural", "Laterality", "milliliter"] {
            assert!(told(Profile::Assist, words), "{words}");
            assert!(!told(Profile::Triage, words), "{words}");
        }
        assert!(told(Profile::Triage, "Intracranial hemorrhage, any"));
    }

    #[test]
    fn the_same_verdict_is_the_same_object_and_another_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let (instance, mut verdict) = order_of(dir.path());
        let once = objects(&instance, &verdict, Profile::Assist);
        let again = objects(&instance, &verdict, Profile::Assist);
        for (a, b) in once.iter().zip(&again) {
            assert_eq!((&a.sop, a.dataset.encode(true)), (&b.sop, b.dataset.encode(true)));
            assert!(crate::dicom::SopInstanceUid::parse(&a.sop).is_ok() && a.sop.starts_with("2.25."));
        }
        assert_ne!(once[0].sop, objects(&instance, &verdict, Profile::Triage)[0].sop);
        // The report says which one it follows on.
        assert!(holds(&once[3].dataset.encode(true), &[0x40, 0x00, 0x60, 0xa3]));
        verdict.disposition = Disposition::NotAnalysed(Why::NotHead);
        let unread = objects(&instance, &verdict, Profile::Assist);
        assert_eq!(unread.len(), 1, "a report only");
        assert!(holds(&unread[0].dataset.encode(true), b"not_head"));
    }

    #[test]
    fn a_name_goes_back_in_the_bytes_it_came_in() {
        let dir = tempfile::tempdir().unwrap();
        // ISO 2022 IR 87: nobody here decodes it, and nobody has to.
        let name = b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B".to_vec();
        let slice = dataset::Dataset::new()
            .bytes((8, 5), "CS", b"\\ISO 2022 IR 87".to_vec())
            .text((8, 0x16), "UI", "1.2.840.10008.5.1.4.1.1.2")
            .text((8, 0x18), "UI", "1.2.3.1.1")
            .bytes((0x10, 0x10), "PN", name.clone())
            .text((0x20, 0x0d), "UI", "1.2.3")
            .text((0x20, 0x0e), "UI", "1.2.3.1");
        let path = dir.path().join("slice.dcm");
        std::fs::write(&path, slice.file("1.2.840.10008.5.1.4.1.1.2", "1.2.3.1.1")).unwrap();
        let mut verdict = crate::alert::lifecycle::tests::verdict(1, Stage::Final, None);
        verdict.disposition = Disposition::NotSuspected;
        let report = &objects(&Instance::read(path).unwrap(), &verdict, Profile::Assist)[0];
        let bytes = report.dataset.encode(true);
        assert!(holds(&bytes, &name) && holds(&bytes, b"\\ISO 2022 IR 87"));
    }
}
