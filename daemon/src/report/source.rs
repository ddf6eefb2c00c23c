//! What a result object takes over from the series it is about, and what every one of ours has in common.

use sha2::{Digest, Sha256};

use super::dataset::{Code, Dataset, code};
use super::lesion::Lesion;
use super::verdict::{Disposition, RecordedVerdict};
use crate::config::Site;
use crate::dicom::HeaderError;
use crate::dicom::dataset::{self, Tag};
use crate::spool::Instance;

/// Counts up when the same verdict would become other bytes, so that a UID never names two contents.
const FORMAT: &str = "ichd.report/1";
/// Longest value that is taken over, bytes; names and identifiers have at most 64 characters per component group.
const COPIED_BYTES_MAX: usize = 1024;

/// Patient, study and patient study attributes that are taken over unchanged. `true`: must be there, empty or not.
const COPIED: [(Tag, &str, bool); 18] = [
    ((0x0008, 0x0005), "CS", false), // Specific Character Set
    ((0x0008, 0x0020), "DA", true),  // Study Date
    ((0x0008, 0x0030), "TM", true),  // Study Time
    ((0x0008, 0x0050), "SH", true),  // Accession Number
    ((0x0008, 0x0090), "PN", true),  // Referring Physician's Name
    ((0x0008, 0x0201), "SH", false), // Timezone Offset From UTC
    ((0x0008, 0x1030), "LO", false), // Study Description
    ((0x0010, 0x0010), "PN", true),  // Patient's Name
    ((0x0010, 0x0020), "LO", true),  // Patient ID
    ((0x0010, 0x0021), "LO", false), // Issuer of Patient ID
    ((0x0010, 0x0030), "DA", true),  // Patient's Birth Date
    ((0x0010, 0x0032), "TM", false), // Patient's Birth Time
    ((0x0010, 0x0040), "CS", true),  // Patient's Sex
    ((0x0010, 0x1010), "AS", false), // Patient's Age
    ((0x0010, 0x1020), "DS", false), // Patient's Size
    ((0x0010, 0x1030), "DS", false), // Patient's Weight
    ((0x0020, 0x000d), "UI", true),  // Study Instance UID
    ((0x0020, 0x0010), "SH", true),  // Study ID
];
const TIMEZONE: Tag = (0x0008, 0x0201);

/// The series that a verdict is about, as it lies in the spool.
#[derive(Debug)]
pub struct Source {
    /// Patient and study attributes.
    pub copied: Dataset,
    /// Every instance of the series, in order of SOP Instance UID.
    pub instances: Vec<Instance>,
    /// Offset from UTC that the scanner wrote down.
    pub(super) timezone: Option<String>,
}

impl Source {
    /// Reads the attributes to take over from the first instance that can be read.
    pub fn read(mut instances: Vec<Instance>) -> Result<Self, HeaderError> {
        instances.sort_by(|a, b| a.header.sop.cmp(&b.header.sop));
        let first = instances.first().ok_or(HeaderError::Missing { attribute: "SOPInstanceUID" })?;
        let wanted: Vec<Tag> = COPIED.iter().map(|(tag, ..)| *tag).collect();
        let read = dataset::Dataset::read(&first.path, &wanted)?;
        let mut copied = Dataset::new();
        for (tag, vr, required) in COPIED {
            match read.bytes(tag).filter(|bytes| bytes.len() <= COPIED_BYTES_MAX) {
                Some(bytes) if required || !bytes.is_empty() => {
                    copied = copied.bytes(tag, vr, bytes.to_vec())
                }
                None if required => copied = copied.text(tag, vr, ""),
                _ => {}
            }
        }
        Ok(Source { copied, timezone: read.text(TIMEZONE), instances })
    }

    /// The instance of a UID.
    pub fn instance(&self, sop: &str) -> Option<&Instance> {
        self.instances.iter().find(|i| i.header.sop.as_str() == sop)
    }

    /// Any slice of the series went through lossy compression.
    pub fn is_lossy(&self) -> bool {
        self.instances.iter().any(|i| i.header.lossy)
    }
}

/// The kinds of object that go back to the PACS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Comprehensive 3D SR, TID 1500 Measurement Report.
    Report,
    /// Secondary Capture of the key slice.
    Capture,
    /// Key Object Selection.
    KeyObject,
    /// Segmentation of the lesion map; profile `assist` only.
    Segmentation,
}

impl Kind {
    /// Every kind, in the order in which they are sent: pictures first, so that what the report refers to is there when it
    /// arrives.
    pub const ALL: [Kind; 4] = [Kind::Capture, Kind::Segmentation, Kind::KeyObject, Kind::Report];

    /// SOP Class UID.
    pub fn sop_class(self) -> &'static str {
        match self {
            Kind::Report => "1.2.840.10008.5.1.4.1.1.88.34",
            Kind::Capture => "1.2.840.10008.5.1.4.1.1.7",
            Kind::KeyObject => "1.2.840.10008.5.1.4.1.1.88.59",
            Kind::Segmentation => "1.2.840.10008.5.1.4.1.1.66.4",
        }
    }

    fn modality(self) -> &'static str {
        match self {
            Kind::Report => "SR",
            Kind::Capture => "OT",
            Kind::KeyObject => "KO",
            Kind::Segmentation => "SEG",
        }
    }

    /// High, so that our series stand behind the scanner's.
    fn series_number(self) -> &'static str {
        match self {
            Kind::Report => "9901",
            Kind::Capture => "9902",
            Kind::KeyObject => "9903",
            Kind::Segmentation => "9904",
        }
    }

    /// Name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Report => "report",
            Kind::Capture => "capture",
            Kind::KeyObject => "key-object",
            Kind::Segmentation => "segmentation",
        }
    }
}

/// Everything that the objects of one verdict are made of.
#[derive(Debug)]
pub struct Making<'a> {
    /// The series.
    pub source: &'a Source,
    /// The verdict as the ledger holds it.
    pub verdict: &'a RecordedVerdict,
    /// SHA-256 of its bytes, hex.
    pub verdict_sha256: &'a str,
    /// When it was decided, ms since the epoch.
    pub decided_ms: u64,
    /// Whose box this is, and what it may say.
    pub site: &'a Site,
    /// SHA-256 of the verdict whose report this one follows on.
    pub predecessor_sha256: Option<&'a str>,
    /// What the lesion map shows, where something is suspected.
    pub lesion: Option<&'a Lesion>,
}

impl Making<'_> {
    /// The same verdict of the same box gives the same UID, so that what is sent again is the same object.
    pub fn uid(&self, what: &str) -> String {
        self.uid_of(self.verdict_sha256, what)
    }

    /// The UID of the same kind of thing made of another verdict.
    pub fn uid_of(&self, verdict_sha256: &str, what: &str) -> String {
        let profile = match self.site.profile {
            crate::config::Profile::Triage => "triage",
            crate::config::Profile::Assist => "assist",
        };
        uid(&[FORMAT, &self.site.name, &self.site.device, profile, verdict_sha256, what])
    }

    /// SOP Instance UID of a kind.
    pub fn sop(&self, kind: Kind) -> String {
        self.uid(kind.name())
    }

    /// SOP Instance UID of a kind for another verdict.
    pub fn sop_of(&self, verdict_sha256: &str, kind: Kind) -> String {
        self.uid_of(verdict_sha256, kind.name())
    }

    /// Series Instance UID of a kind for another verdict.
    pub fn series_of(&self, verdict_sha256: &str, kind: Kind) -> String {
        self.uid_of(verdict_sha256, &format!("{} series", kind.name()))
    }

    /// Patient, study, series, equipment and SOP common modules of an object.
    pub fn common(&self, kind: Kind) -> Dataset {
        let (date, time) = self.date_and_time();
        let series = self.series_of(self.verdict_sha256, kind);
        let dataset = Dataset::new()
            .text((0x0008, 0x0012), "DA", &date)
            .text((0x0008, 0x0013), "TM", &time)
            .text((0x0008, 0x0016), "UI", kind.sop_class())
            .text((0x0008, 0x0018), "UI", &self.sop(kind))
            .text((0x0008, 0x0021), "DA", &date)
            .text((0x0008, 0x0023), "DA", &date)
            .text((0x0008, 0x0031), "TM", &time)
            .text((0x0008, 0x0033), "TM", &time)
            .text((0x0008, 0x0060), "CS", kind.modality())
            .text((0x0008, 0x0070), "LO", "ichd")
            .text((0x0008, 0x103e), "LO", self.headline())
            .text((0x0008, 0x1090), "LO", "ichd")
            .items((0x0008, 0x0110), vec![own_scheme()])
            .text((0x0018, 0x1000), "LO", &format!("{}/{}", self.site.name, self.site.device))
            .text((0x0018, 0x1020), "LO", &self.software())
            .text((0x0020, 0x000e), "UI", &series)
            .text((0x0020, 0x0011), "IS", kind.series_number())
            .text((0x0020, 0x0013), "IS", "1");
        self.source.copied.clone().with(dataset)
    }

    /// Series Description: what a list in a viewer shows first.
    pub fn headline(&self) -> &'static str {
        match self.verdict.disposition {
            Disposition::Suspected => "ichd: hemorrhage suspected, not for diagnosis",
            Disposition::NotSuspected => "ichd: not suspected, not for diagnosis",
            Disposition::NotAnalysed => "ichd: could not be analysed",
        }
    }

    /// Program and model.
    fn software(&self) -> String {
        let program = format!("ichd {}", self.verdict.program);
        match &self.verdict.model {
            Some(model) => format!("{program}\\{} {}", model.id, model.version),
            None => program,
        }
    }

    /// DA and TM of the decision: in the scanner's zone if it wrote one down, in that of this machine otherwise.
    fn date_and_time(&self) -> (String, String) {
        use chrono::{FixedOffset, Local, TimeZone};
        let ms = i64::try_from(self.decided_ms).unwrap_or(0);
        let zone = self.source.timezone.as_deref().and_then(|z| z.parse::<FixedOffset>().ok());
        let format = "%Y%m%d %H%M%S";
        let text = match zone {
            Some(zone) => zone.timestamp_millis_opt(ms).single().map(|t| t.format(format).to_string()),
            None => Local.timestamp_millis_opt(ms).single().map(|t| t.format(format).to_string()),
        };
        let text = text.unwrap_or_else(|| "19700101 000000".into());
        let (date, time) = text.split_once(' ').unwrap_or((&text, ""));
        (date.to_owned(), time.to_owned())
    }

    /// References to instances of the series, as one item of a study > series > instance hierarchy (PS3.3 C.17.2.1).
    pub fn hierarchy(&self, of: &[&Instance]) -> Dataset {
        let instances = of.iter().map(|i| reference(&i.header.sop_class, i.header.sop.as_str())).collect();
        evidence(self.verdict.study_uid.as_str(), self.verdict.series_uid.as_str(), instances)
    }
}

/// One study, one series, some instances.
pub fn evidence(study: &str, series: &str, instances: Vec<Dataset>) -> Dataset {
    let series = evidence_series(series, (0x0008, 0x1199), instances);
    Dataset::new().text((0x0020, 0x000d), "UI", study).items((0x0008, 0x1115), vec![series])
}

/// One series and some instances of it, in the sequence that the module in question has for them.
pub fn evidence_series(series: &str, sequence: Tag, instances: Vec<Dataset>) -> Dataset {
    Dataset::new().text((0x0020, 0x000e), "UI", series).items(sequence, instances)
}

/// Referenced SOP Class and Instance UID.
pub fn reference(sop_class: &str, sop: &str) -> Dataset {
    Dataset::new().text((0x0008, 0x1150), "UI", sop_class).text((0x0008, 0x1155), "UI", sop)
}

/// A reference to one frame, where the instance has frames (PS3.3 table 10-3).
pub fn with_frame(reference: Dataset, frame: Option<u32>) -> Dataset {
    match frame {
        Some(number) => reference.text((0x0008, 0x1160), "IS", &number.to_string()),
        None => reference,
    }
}

/// Item of Source Image Sequence.
pub fn source_image(instance: &Instance, frame: Option<u32>) -> Dataset {
    let purpose = Code::dcm("121322", "Source image for image processing operation");
    with_frame(reference(&instance.header.sop_class, instance.header.sop.as_str()), frame)
        .items((0x0040, 0xa170), vec![code(purpose)])
}

/// Who answers for our private codes (PS3.3 C.12.1.1.7).
fn own_scheme() -> Dataset {
    Dataset::new()
        .text((0x0008, 0x0102), "SH", super::dataset::OWN_SCHEME)
        .text((0x0008, 0x0115), "ST", "ichd private codes")
        .text((0x0008, 0x0116), "ST", "ichd project")
}

/// A UID of the form 2.25.n (PS3.5 B.2), n a version 8 UUID (RFC 9562) over a hash.
pub fn uid(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    format!("2.25.{}", u128::from_be_bytes(bytes))
}
