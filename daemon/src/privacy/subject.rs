//! Who the patient is, from one stored instance: what is sealed, and nowhere else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dicom_encoding::text::{SpecificCharacterSet, TextCodec};
use serde::Serialize;

use crate::dicom::Phi;
use crate::dicom::dataset::{Dataset, Tag};
use crate::infer::hounsfield::{self, DecodeError, HuImage};
use crate::spool::Instance;

const CHARACTER_SET: Tag = (0x0008, 0x0005);
const ACCESSION: Tag = (0x0008, 0x0050);
const NAME: Tag = (0x0010, 0x0010);
const ID: Tag = (0x0010, 0x0020);
const BIRTH_DATE: Tag = (0x0010, 0x0030);

/// Side of the picture, pixels.
const PICTURE_PX: usize = 160;
/// Brain window, HU.
const LOW_HU: f32 = 0.0;
const WIDTH_HU: f32 = 80.0;

/// `ichd.subject/1`, the text inside `subject.enc`.
#[derive(Debug, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Subject {
    schema: &'static str,
    /// Of the alert it belongs to; a reader drops what stands in another.
    study_ref: String,
    /// Alphabetic name, components separated by blanks.
    name: Option<String>,
    /// Ideographic name, where there is one.
    name_ideographic: Option<String>,
    patient_id: Option<String>,
    /// As the scanner wrote it, `YYYYMMDD`.
    birth_date: Option<String>,
    accession_number: Option<String>,
    /// PNG of the key slice in the brain window, base 64; for orientation, not for reading.
    picture: Option<String>,
}

/// Why nothing is said of the patient.
#[derive(Debug, thiserror::Error)]
pub enum SubjectError {
    /// The instance could not be read again.
    #[error("the key slice's header could not be read")]
    Header(#[source] crate::dicom::HeaderError),
}

/// Reads the attributes, and the picture where it is asked for; without a picture rather than not at all.
pub fn read(instance: &Instance, study_ref: &str, with_picture: bool) -> Result<Phi<Subject>, SubjectError> {
    let d = Dataset::read(&instance.path, &[CHARACTER_SET, ACCESSION, NAME, ID, BIRTH_DATE])
        .map_err(SubjectError::Header)?;
    // Of several repertoires the last one holds the ideographs.
    let charset = d.texts(CHARACTER_SET).into_iter().rfind(|c| !c.is_empty()).unwrap_or_default();
    let text = |tag| d.bytes(tag).and_then(|bytes| decoded(bytes, &charset));
    let name = text(NAME).unwrap_or_default();
    let mut groups = name.split('=');
    let (alphabetic, ideographic) = (groups.next().unwrap_or_default(), groups.next().unwrap_or_default());
    let picture = with_picture.then(|| picture(instance)).and_then(|made| match made {
        Ok(png) => Some(STANDARD.encode(png)),
        Err(error) => {
            log::warn!(event = "picture_left_out"; "no picture of the key slice: {}", crate::chain(&error));
            None
        }
    });
    Ok(Phi::new(Subject {
        schema: "ichd.subject/1",
        study_ref: study_ref.into(),
        name: components(alphabetic, " "),
        name_ideographic: components(ideographic, ""),
        patient_id: text(ID),
        birth_date: text(BIRTH_DATE),
        accession_number: text(ACCESSION),
        picture,
    }))
}

/// PS3.5 6.1.2: the value's own repertoire, UTF-8 where none is named and the bytes say so.
fn decoded(bytes: &[u8], charset: &str) -> Option<String> {
    let codec = SpecificCharacterSet::from_code(charset.trim());
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if codec.is_none() || text.is_ascii() => text.to_owned(),
        _ => codec?.decode(bytes).ok()?,
    };
    let text = text.trim_matches(['\0', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

fn components(group: &str, separator: &str) -> Option<String> {
    let parts: Vec<&str> = group.split('^').map(str::trim).filter(|p| !p.is_empty()).collect();
    (!parts.is_empty()).then(|| parts.join(separator))
}

fn picture(instance: &Instance) -> Result<Vec<u8>, DecodeError> {
    let image = hounsfield::decode(&instance.path, &instance.header)?;
    png(&small(&image)).map_err(|e| DecodeError::Pixels(e.to_string()))
}

/// Mean of the pixels under each small one, in the brain window.
fn small(image: &HuImage) -> Vec<u8> {
    let span = |i: usize, n: usize| {
        let from = i * n / PICTURE_PX;
        from..((i + 1) * n / PICTURE_PX).max(from + 1).min(n.max(from + 1))
    };
    let mut pixels = Vec::with_capacity(PICTURE_PX * PICTURE_PX);
    for y in 0..PICTURE_PX {
        for x in 0..PICTURE_PX {
            let (mut sum, mut n) = (0.0f32, 0.0f32);
            for row in span(y, image.rows) {
                for column in span(x, image.columns) {
                    sum += image.hu.get(row * image.columns + column).copied().unwrap_or(hounsfield::AIR_HU);
                    n += 1.0;
                }
            }
            pixels.push((((sum / n - LOW_HU) / WIDTH_HU).clamp(0.0, 1.0) * 255.0) as u8);
        }
    }
    pixels
}

fn png(pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, PICTURE_PX as u32, PICTURE_PX as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_their_own_repertoire() {
        assert_eq!(decoded(b"DOE^JANE ", "").as_deref(), Some("DOE^JANE"));
        assert_eq!(decoded("王^小东".as_bytes(), "ISO_IR 192").as_deref(), Some("王^小东"));
        assert_eq!(decoded(&[0xcd, 0xf5, b'^', 0xd0, 0xa1], "GB18030").as_deref(), Some("王^小"));
        assert_eq!(decoded(b"M\xfcller", "ISO_IR 100").as_deref(), Some("Müller"));
        assert_eq!(decoded(b"  ", ""), None);
    }

    #[test]
    fn a_name_is_shown_without_its_carets() {
        assert_eq!(components("Wang^XiaoDong^^Dr", " ").as_deref(), Some("Wang XiaoDong Dr"));
        assert_eq!(components("王^小东", "").as_deref(), Some("王小东"));
        assert_eq!(components("^^", " "), None);
    }

    #[test]
    fn a_picture_of_any_shape_is_small_and_square() {
        for (rows, columns) in [(512, 512), (100, 300), (1, 1), (161, 159)] {
            let image =
                HuImage { rows, columns, row_mm: 1.0, column_mm: 1.0, hu: vec![40.0; rows * columns] };
            let pixels = small(&image);
            assert!(
                pixels.len() == PICTURE_PX * PICTURE_PX && pixels.iter().all(|p| *p == 127),
                "{rows}x{columns}"
            );
            assert!(png(&pixels).unwrap().starts_with(b"\x89PNG"));
        }
    }
}
