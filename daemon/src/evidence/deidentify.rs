//! De-identified copies for quality review: PS3.15 annex E, Basic Application Level Confidentiality Profile with Clean
//! Pixel Data and Clean Recognizable Visual Features.
//!
//! Written as a list of what stays, not of what goes: an attribute that is not named here is not in the copy, private
//! ones, curves, overlays and sequences included. What stays are numbers, coded words, and four texts about the scanner,
//! each checked for its form; a text that holds a word of the person's name or identifiers goes too. UIDs become new
//! ones, consistent within one export and linkable by nobody, since the salt is thrown away.

use std::path::Path;

use super::face;
use crate::assemble::Volume;
use crate::decide::suitability::CT_IMAGE_STORAGE;
use crate::dicom::dataset::{Dataset as Stored, Tag};
use crate::dicom::{HeaderError, SliceHeader};
use crate::infer::hounsfield::{self, DecodeError, StoredSlice};
use crate::report::dataset::{Code, Dataset, code};
use crate::report::uid;

/// Why a series is not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The header cannot be read.
    #[error("a header cannot be read")]
    Header(#[source] HeaderError),
    /// The pixels cannot be decoded.
    #[error("a slice cannot be decoded")]
    Pixels(#[source] DecodeError),
    /// Not single-frame CT.
    #[error("not CT Image Storage")]
    NotCt,
    /// Text stands in the pixels.
    #[error("Burned In Annotation is YES")]
    BurnedIn,
    /// Without a closed skull nobody can say where the face is.
    #[error("no closed skull was found, so the face cannot be removed")]
    NoSkull,
    /// The caller could not take a slice.
    #[error("failed to write a slice")]
    Write(#[source] std::io::Error),
}

/// One export: everything in it belongs to one made-up person.
#[derive(Debug)]
pub struct Export {
    salt: String,
    pseudonym: String,
}

/// What was written of a series.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exported {
    /// Slices written.
    pub slices: usize,
    /// Slices of which nothing is kept: the face and below.
    pub blanked: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    /// Decimal or integer strings.
    Numbers,
    /// Capital letters, digits, underscore and space.
    Words,
    /// About the scanner; goes where it holds anything of the person.
    Text,
}

/// Image, acquisition and reconstruction: what a reader of the pixels needs.
const KEPT: [(Tag, &str, Form); 37] = [
    ((0x0008, 0x0008), "CS", Form::Words),   // Image Type
    ((0x0008, 0x0060), "CS", Form::Words),   // Modality
    ((0x0008, 0x0070), "LO", Form::Text),    // Manufacturer
    ((0x0008, 0x1090), "LO", Form::Text),    // Manufacturer's Model Name
    ((0x0018, 0x0015), "CS", Form::Words),   // Body Part Examined
    ((0x0018, 0x0022), "CS", Form::Words),   // Scan Options
    ((0x0018, 0x0050), "DS", Form::Numbers), // Slice Thickness
    ((0x0018, 0x0060), "DS", Form::Numbers), // KVP
    ((0x0018, 0x0088), "DS", Form::Numbers), // Spacing Between Slices
    ((0x0018, 0x0090), "DS", Form::Numbers), // Data Collection Diameter
    ((0x0018, 0x1100), "DS", Form::Numbers), // Reconstruction Diameter
    ((0x0018, 0x1120), "DS", Form::Numbers), // Gantry/Detector Tilt
    ((0x0018, 0x1130), "DS", Form::Numbers), // Table Height
    ((0x0018, 0x1140), "CS", Form::Words),   // Rotation Direction
    ((0x0018, 0x1150), "IS", Form::Numbers), // Exposure Time
    ((0x0018, 0x1151), "IS", Form::Numbers), // X-Ray Tube Current
    ((0x0018, 0x1152), "IS", Form::Numbers), // Exposure
    ((0x0018, 0x1160), "SH", Form::Text),    // Filter Type
    ((0x0018, 0x1170), "IS", Form::Numbers), // Generator Power
    ((0x0018, 0x1190), "DS", Form::Numbers), // Focal Spot(s)
    ((0x0018, 0x1210), "SH", Form::Text),    // Convolution Kernel
    ((0x0018, 0x5100), "CS", Form::Words),   // Patient Position
    ((0x0020, 0x0011), "IS", Form::Numbers), // Series Number
    ((0x0020, 0x0012), "IS", Form::Numbers), // Acquisition Number
    ((0x0020, 0x0013), "IS", Form::Numbers), // Instance Number
    ((0x0020, 0x0032), "DS", Form::Numbers), // Image Position (Patient)
    ((0x0020, 0x0037), "DS", Form::Numbers), // Image Orientation (Patient)
    ((0x0020, 0x1002), "IS", Form::Numbers), // Images in Acquisition
    ((0x0020, 0x1041), "DS", Form::Numbers), // Slice Location
    ((0x0028, 0x0030), "DS", Form::Numbers), // Pixel Spacing
    ((0x0028, 0x1050), "DS", Form::Numbers), // Window Center
    ((0x0028, 0x1051), "DS", Form::Numbers), // Window Width
    ((0x0028, 0x1052), "DS", Form::Numbers), // Rescale Intercept
    ((0x0028, 0x1053), "DS", Form::Numbers), // Rescale Slope
    ((0x0028, 0x1054), "LO", Form::Words),   // Rescale Type
    ((0x0028, 0x2110), "CS", Form::Words),   // Lossy Image Compression
    ((0x0028, 0x2114), "CS", Form::Words),   // Lossy Image Compression Method
];

/// Whose words may not stand in a text that is kept.
const IDENTIFYING: [Tag; 14] = [
    (0x0008, 0x0050), // Accession Number
    (0x0008, 0x0080), // Institution Name
    (0x0008, 0x0081), // Institution Address
    (0x0008, 0x0090), // Referring Physician's Name
    (0x0008, 0x1010), // Station Name
    (0x0008, 0x1040), // Institutional Department Name
    (0x0008, 0x1050), // Performing Physician's Name
    (0x0008, 0x1060), // Name of Physician(s) Reading Study
    (0x0008, 0x1070), // Operators' Name
    (0x0010, 0x0010), // Patient's Name
    (0x0010, 0x0020), // Patient ID
    (0x0010, 0x1000), // Other Patient IDs
    (0x0018, 0x1000), // Device Serial Number
    (0x0020, 0x0010), // Study ID
];
const CONTRAST: Tag = (0x0018, 0x0010);
const FRAME_OF_REFERENCE: Tag = (0x0020, 0x0052);
const BURNED_IN: Tag = (0x0028, 0x0301);
/// Shorter words are no identifiers: "CT", "HEAD".
const WORD_BYTES_MIN: usize = 4;

impl Export {
    /// A new made-up person; `salt` must be random and is kept nowhere.
    pub fn new(salt: [u8; 16]) -> Self {
        let salt = crate::hex(&salt);
        let number = uid(&["ichd.export/1", &salt, "pseudonym"]);
        let pseudonym = format!("EXPORT-{}", &number[number.len() - 8..]);
        Export { salt, pseudonym }
    }

    /// The new UID for an original one.
    pub fn uid(&self, original: &str) -> String {
        uid(&["ichd.export/1", &self.salt, original])
    }

    /// Gives every slice of a volume to `write`, caudal to cranial, as a Part 10 file.
    pub fn series(
        &self,
        volume: &Volume,
        mut write: impl FnMut(usize, &[u8]) -> std::io::Result<()>,
    ) -> Result<Exported, ExportError> {
        let read =
            |header: &SliceHeader, path: &Path| hounsfield::stored(path, header).map_err(ExportError::Pixels);
        let mut enclosed = Vec::new();
        for placed in &volume.slices {
            let header = &placed.instance.header;
            if header.sop_class != CT_IMAGE_STORAGE {
                return Err(ExportError::NotCt);
            }
            let stored = read(header, &placed.instance.path)?;
            enclosed.push(face::enclosed(face_slice(header, &stored.hu)?));
        }
        let inside = face::inside(&enclosed);
        if inside.iter().all(Option::is_none) {
            return Err(ExportError::NoSkull);
        }
        for (i, (placed, inside)) in volume.slices.iter().zip(&inside).enumerate() {
            let header = &placed.instance.header;
            let mut stored = read(header, &placed.instance.path)?;
            let keep = match inside {
                Some(inside) => face::keep(face_slice(header, &stored.hu)?, inside),
                None => vec![false; stored.values.len()],
            };
            let air = stored.air;
            stored.values.iter_mut().zip(&keep).filter(|(_, keep)| !**keep).for_each(|(v, _)| *v = air);
            let dataset = self.slice(header, &placed.instance.path, &stored)?;
            let file = dataset.file(CT_IMAGE_STORAGE, &self.uid(header.sop.as_str()));
            write(i, &file).map_err(ExportError::Write)?;
        }
        let blanked = inside.iter().filter(|i| i.is_none()).count();
        Ok(Exported { slices: inside.len(), blanked })
    }

    fn slice(&self, header: &SliceHeader, path: &Path, stored: &StoredSlice) -> Result<Dataset, ExportError> {
        let mut wanted: Vec<Tag> = KEPT.iter().map(|(tag, ..)| *tag).collect();
        wanted.extend(IDENTIFYING);
        wanted.extend([CONTRAST, FRAME_OF_REFERENCE, BURNED_IN]);
        let original = Stored::read(path, &wanted).map_err(ExportError::Header)?;
        if original.text(BURNED_IN).is_some_and(|b| b == "YES") {
            return Err(ExportError::BurnedIn);
        }
        let words = identifying_words(&original);
        let mut dataset = self.person();
        for (tag, vr, form) in KEPT {
            let Some(text) = original.text(tag) else { continue };
            if is_clean(&text, form, &words) {
                dataset = dataset.text(tag, vr, &text);
            }
        }
        if original.text(CONTRAST).is_some() {
            // That there was one matters to a reader; what somebody typed does not.
            dataset = dataset.text(CONTRAST, "LO", "contrast");
        }
        let frame = original.text(FRAME_OF_REFERENCE).unwrap_or_else(|| header.series.as_str().to_owned());
        let pixels = stored.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(dataset
            .text((0x0008, 0x0016), "UI", CT_IMAGE_STORAGE)
            .text((0x0008, 0x0018), "UI", &self.uid(header.sop.as_str()))
            .text((0x0020, 0x000d), "UI", &self.uid(header.study.as_str()))
            .text((0x0020, 0x000e), "UI", &self.uid(header.series.as_str()))
            .text(FRAME_OF_REFERENCE, "UI", &self.uid(&frame))
            .text((0x0020, 0x1040), "LO", "")
            .short((0x0028, 0x0002), 1)
            .text((0x0028, 0x0004), "CS", "MONOCHROME2")
            .short((0x0028, 0x0010), header.rows)
            .short((0x0028, 0x0011), header.columns)
            .short((0x0028, 0x0100), 16)
            .short((0x0028, 0x0101), stored.bits)
            .short((0x0028, 0x0102), stored.high_bit)
            .short((0x0028, 0x0103), u16::from(stored.signed))
            .bytes((0x7fe0, 0x0010), "OW", pixels))
    }

    /// Patient, study and series attributes of nobody, and what was done (PS3.15 E.1.1, E.3.1, E.3.2).
    fn person(&self) -> Dataset {
        let methods = [
            Code::dcm("113100", "Basic Application Confidentiality Profile"),
            Code::dcm("113101", "Clean Pixel Data Option"),
            Code::dcm("113102", "Clean Recognizable Visual Features Option"),
        ];
        Dataset::new()
            .text((0x0008, 0x0020), "DA", "")
            .text((0x0008, 0x0030), "TM", "")
            .text((0x0008, 0x0050), "SH", "")
            .text((0x0008, 0x0070), "LO", "")
            .text((0x0008, 0x0090), "PN", "")
            .text((0x0010, 0x0010), "PN", &self.pseudonym)
            .text((0x0010, 0x0020), "LO", &self.pseudonym)
            .text((0x0010, 0x0030), "DA", "")
            .text((0x0010, 0x0040), "CS", "")
            .text((0x0012, 0x0062), "CS", "YES")
            .text((0x0012, 0x0063), "LO", "ichd export: list of kept attributes; face removed")
            .items((0x0012, 0x0064), methods.into_iter().map(code).collect())
            .text((0x0018, 0x0060), "DS", "")
            .text((0x0020, 0x0010), "SH", "")
            .text((0x0020, 0x0011), "IS", "")
            .text((0x0020, 0x0012), "IS", "")
            .text((0x0020, 0x0013), "IS", "")
            .text((0x0028, 0x0301), "CS", "NO")
            .text((0x0028, 0x0302), "CS", "NO")
            .text((0x0028, 0x0303), "CS", "REMOVED")
    }

    /// A verdict of the ledger with new UIDs, and without the hash that only its owner could have made.
    pub fn verdict(&self, canonical: &str) -> Option<String> {
        let mut value: serde_json::Value = serde_json::from_str(canonical).ok()?;
        value.as_object_mut()?.remove("input_sha256");
        self.rename(&mut value);
        Some(value.to_string())
    }

    fn rename(&self, value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Array(list) => list.iter_mut().for_each(|v| self.rename(v)),
            serde_json::Value::Object(map) => {
                for (key, value) in map {
                    match value.as_str() {
                        Some(original) if key.ends_with("_uid") => *value = self.uid(original).into(),
                        _ => self.rename(value),
                    }
                }
            }
            _ => {}
        }
    }
}

fn face_slice<'a>(header: &SliceHeader, hu: &'a [f32]) -> Result<face::Slice<'a>, ExportError> {
    let geometry = header.geometry.ok_or(ExportError::Pixels(DecodeError::NotASlice("no plane geometry")))?;
    let [row_mm, column_mm] = geometry.pixel_spacing_mm;
    Ok(face::Slice { hu, columns: usize::from(header.columns), row_mm, column_mm })
}

/// Words of names and identifiers, in capitals.
fn identifying_words(original: &Stored) -> Vec<String> {
    let text = |tag: &Tag| original.text(*tag).unwrap_or_default().to_uppercase();
    let words = IDENTIFYING.iter().map(text);
    let words = words
        .flat_map(|text| text.split(|c: char| !c.is_alphanumeric()).map(str::to_owned).collect::<Vec<_>>());
    words.filter(|word| word.len() >= WORD_BYTES_MIN).collect()
}

fn is_clean(text: &str, form: Form, words: &[String]) -> bool {
    let holds_word = || {
        let capitals = text.to_uppercase();
        words.iter().any(|word| capitals.contains(word.as_str()))
    };
    match form {
        Form::Numbers => text.split('\\').all(|n| n.trim().parse::<f64>().is_ok_and(f64::is_finite)),
        Form::Words => {
            let is_word =
                |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'_' | b' ' | b'\\');
            text.len() <= 128 && text.bytes().all(is_word) && !holds_word()
        }
        Form::Text => text.len() <= 64 && text.is_ascii() && !holds_word(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_value_has_the_form_it_should_have_and_names_nobody() {
        let words = vec!["MEIER".to_owned()];
        assert!(is_clean("-1.5\\2e3", Form::Numbers, &words));
        assert!(!is_clean("1.5\\Meier", Form::Numbers, &words) && !is_clean("NaN", Form::Numbers, &words));
        assert!(is_clean("ORIGINAL\\PRIMARY\\AXIAL", Form::Words, &words));
        assert!(!is_clean("ORIGINAL\\MEIER_AXIAL", Form::Words, &words));
        assert!(is_clean("H31s", Form::Text, &words) && !is_clean("for Dr. Meier", Form::Text, &words));
    }

    #[test]
    fn a_verdict_keeps_its_answer_and_loses_its_names() {
        let export = Export::new([7; 16]);
        let text = r#"{"study_uid":"1.2.3","scores":null,"input_sha256":"ab","slices":[{"sop_uid":"1.2.3.4"}],"reason":"crashed"}"#;
        let out = export.verdict(text).unwrap();
        assert!(!out.contains("1.2.3") && !out.contains("input_sha256") && out.contains("crashed"), "{out}");
        assert!(out.contains(&export.uid("1.2.3.4")));
        assert_ne!(export.uid("1.2.3"), Export::new([8; 16]).uid("1.2.3"), "two exports cannot be joined");
    }
}
