//! What the stages need to know of one stored instance, without its pixels.

use std::path::Path;
use std::sync::Arc;

use super::dataset::{self, Dataset, Tag};
use super::nested::Item;
use super::{Phi, SeriesUid, SopInstanceUid, StudyUid, UidError};

/// Most frames that are taken apart; a head has a few hundred.
const FRAMES_MAX: usize = 4096;

/// Where an image plane lies in the patient (Image Plane Module, PS3.3 C.7.6.2), in patient coordinates (LPS, mm).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlaneGeometry {
    /// Image Position (Patient): centre of the first pixel, mm.
    pub position_mm: [f64; 3],
    /// Direction of increasing column index (first triplet of Image Orientation).
    pub row: [f64; 3],
    /// Direction of increasing row index (second triplet of Image Orientation).
    pub column: [f64; 3],
    /// Pixel Spacing: distance between rows, then between columns, mm.
    pub pixel_spacing_mm: [f64; 2],
}

/// One frame of a multi-frame image, as its functional groups describe it (PS3.3 C.7.6.16).
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// Number of the frame in its instance, from 1.
    pub number: u32,
    /// How many frames the instance has.
    pub of: u32,
    /// Rescale Slope and Intercept of this frame; `None` where the groups have none.
    pub rescale: Option<[f64; 2]>,
    geometry: Option<PlaneGeometry>,
    slice_thickness_mm: Option<f64>,
    kernel: Option<String>,
    frame_type: Vec<String>,
}

/// What names one slice: an instance, or one frame of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceId {
    /// SOP Instance UID.
    pub sop: SopInstanceUid,
    /// Frame number from 1, where the instance has frames of its own.
    pub frame: Option<u32>,
}

/// One instance as the assembler sees it, or one frame of it ([`SliceHeader::frame`]). Absent or malformed optional attributes are `None`, never a guess.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceHeader {
    /// Study Instance UID.
    pub study: StudyUid,
    /// Series Instance UID.
    pub series: SeriesUid,
    /// SOP Instance UID.
    pub sop: SopInstanceUid,
    /// SOP Class UID, without padding.
    pub sop_class: String,
    /// Transfer syntax of the stored data set.
    pub transfer_syntax: String,
    /// Modality (0008,0060), upper case.
    pub modality: String,
    /// Image Type (0008,0008) values, upper case.
    pub image_type: Vec<String>,
    /// Plane of a single-frame image or of one frame; `None` if any of its attributes is missing or not a number.
    pub geometry: Option<PlaneGeometry>,
    /// Rows (0028,0010); 0 if absent.
    pub rows: u16,
    /// Columns (0028,0011); 0 if absent.
    pub columns: u16,
    /// Number of Frames (0028,0008); 1 if absent.
    pub frames: u32,
    /// Frames that functional groups describe, all of them or none; empty for a single-frame image.
    pub per_frame: Arc<[Frame]>,
    /// Which frame of the instance this is the header of; `None` for the instance as a whole.
    pub frame: Option<Frame>,
    /// Whether Pixel Data (7FE0,0010) is present.
    pub has_pixels: bool,
    /// Samples per Pixel (0028,0002); 1 if absent.
    pub samples_per_pixel: u16,
    /// Instance Number; for people, never for order.
    pub instance_number: Option<i32>,
    /// Slice Thickness (0018,0050), mm; a hint, never the step.
    pub slice_thickness_mm: Option<f64>,
    /// Convolution Kernel (0018,1210).
    pub kernel: Option<String>,
    /// Body Part Examined (0018,0015); never trusted alone.
    pub body_part: Option<String>,
    /// Whether Contrast/Bolus Agent (0018,0010) holds a value.
    pub contrast: bool,
    /// Lossy Image Compression (0028,2110) is `01`, or the transfer syntax is lossy.
    pub lossy: bool,
    /// Images in Acquisition (0020,1002): how many slices the scanner meant to make, where it says so.
    pub images_in_acquisition: Option<u32>,
    /// Acquisition date and time as the scanner wrote them (DA and TM joined), for people.
    pub acquired_at: Option<String>,
    /// Accession Number; identifies a person's examination.
    pub accession_number: Phi<String>,
    /// Patient ID.
    pub patient_id: Phi<String>,
    /// Patient's Name.
    pub patient_name: Phi<String>,
}

/// Why a stored file is not an instance this program can place.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The file could not be read.
    #[error("failed to read the file")]
    Read {
        /// What the system said. Which file it was stays out of the journal: its name is a UID.
        source: std::io::Error,
    },
    /// Not a DICOM Part 10 file or not a data set in its transfer syntax.
    #[error("not a readable DICOM data set: {detail}")]
    Syntax {
        /// What was found and where (byte offset, tag).
        detail: String,
    },
    /// A type 1 attribute that identifies the instance is missing.
    #[error("{attribute} is missing")]
    Missing {
        /// Name of the attribute by the standard's dictionary.
        attribute: &'static str,
    },
    /// An identifying attribute is present but malformed.
    #[error("{attribute} is malformed: {detail}")]
    Malformed {
        /// Name of the attribute by the standard's dictionary.
        attribute: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

impl SliceHeader {
    /// Reads the header of one stored instance, in memory bounded by a constant whatever lengths the file declares.
    pub fn read(path: &Path) -> Result<Self, HeaderError> {
        Self::from_dataset(Dataset::read(path, &tag::WANTED)?)
    }

    /// The same of a Part 10 file that is in memory.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        Self::from_dataset(Dataset::parse(bytes, &tag::WANTED)?)
    }

    fn from_dataset(d: Dataset) -> Result<Self, HeaderError> {
        let upper = |t: Option<String>| t.unwrap_or_default().to_ascii_uppercase();
        let frames = d.text(tag::FRAMES).and_then(|t| t.parse().ok()).unwrap_or(1);
        Ok(SliceHeader {
            study: uid(&d, tag::STUDY, "StudyInstanceUID", StudyUid::parse)?,
            series: uid(&d, tag::SERIES, "SeriesInstanceUID", SeriesUid::parse)?,
            sop: uid(&d, tag::SOP, "SOPInstanceUID", SopInstanceUid::parse)?,
            sop_class: d.text(tag::SOP_CLASS).ok_or(HeaderError::Missing { attribute: "SOPClassUID" })?,
            modality: upper(d.text(tag::MODALITY)),
            image_type: d.texts(tag::IMAGE_TYPE).iter().map(|t| t.to_ascii_uppercase()).collect(),
            geometry: geometry(&d),
            rows: d.short(tag::ROWS).unwrap_or(0),
            columns: d.short(tag::COLUMNS).unwrap_or(0),
            frames,
            per_frame: per_frame(&d, frames).into(),
            frame: None,
            has_pixels: d.has_pixels,
            samples_per_pixel: d.short(tag::SAMPLES).unwrap_or(1),
            instance_number: d.text(tag::INSTANCE_NUMBER).and_then(|t| t.parse().ok()),
            slice_thickness_mm: d.decimal(tag::THICKNESS).filter(|t| *t > 0.0),
            kernel: d.texts(tag::KERNEL).into_iter().next(),
            body_part: d.text(tag::BODY_PART),
            contrast: d.text(tag::CONTRAST).is_some_and(|t| names_an_agent(&t))
                || !d.items(dataset::CONTRAST_AGENTS).is_empty(),
            lossy: d.text(tag::LOSSY).is_some_and(|t| t == "01") || is_lossy(&d.transfer_syntax),
            images_in_acquisition: d.text(tag::IMAGES_IN_ACQUISITION).and_then(|t| t.parse().ok()),
            acquired_at: d
                .text(tag::ACQUISITION_DATE)
                .map(|date| format!("{date}{}", d.text(tag::ACQUISITION_TIME).unwrap_or_default()))
                .or_else(|| d.text(tag::ACQUISITION_DATE_TIME)),
            accession_number: Phi::new(d.text(tag::ACCESSION).unwrap_or_default()),
            patient_id: Phi::new(d.text(tag::PATIENT_ID).unwrap_or_default()),
            patient_name: Phi::new(d.text(tag::PATIENT_NAME).unwrap_or_default()),
            transfer_syntax: d.transfer_syntax,
        })
    }
}

impl SliceHeader {
    /// What names this slice.
    pub fn id(&self) -> SliceId {
        SliceId { sop: self.sop.clone(), frame: self.frame.as_ref().map(|f| f.number) }
    }

    /// The header of one frame; `None` where functional groups describe no such frame.
    pub fn of_frame(&self, number: u32) -> Option<SliceHeader> {
        let frame = self.per_frame.get((number as usize).checked_sub(1)?)?;
        let or_common = |own: &[String], common: &[String]| {
            if own.is_empty() { common.to_vec() } else { own.to_vec() }
        };
        Some(SliceHeader {
            geometry: frame.geometry,
            slice_thickness_mm: frame.slice_thickness_mm.or(self.slice_thickness_mm),
            kernel: frame.kernel.clone().or_else(|| self.kernel.clone()),
            image_type: or_common(&frame.frame_type, &self.image_type),
            frames: 1,
            per_frame: Arc::default(),
            frame: Some(frame.clone()),
            ..self.clone()
        })
    }
}

/// Plane, rescale and kind of every frame, from its own functional groups or the shared ones; nothing unless all frames
/// are described.
fn per_frame(d: &Dataset, frames: u32) -> Vec<Frame> {
    let groups = d.items(dataset::FRAME_GROUPS);
    if groups.is_empty() || groups.len() != frames as usize || groups.len() > FRAMES_MAX {
        return Vec::new();
    }
    let shared = d.items(dataset::SHARED_GROUPS);
    let shared = shared.first();
    groups
        .iter()
        .zip(1..)
        .map(|(own, number)| {
            let group = |tag: Tag| own.item(tag).or_else(|| shared.and_then(|s| s.item(tag)));
            let measures = group(group::PIXEL_MEASURES);
            let thickness = measures.as_ref().and_then(|m| m.decimals::<1>(tag::THICKNESS));
            let frame_type = group(group::FRAME_TYPE).and_then(|g| g.text(group::FRAME_TYPE_VALUES));
            Frame {
                number,
                of: frames,
                rescale: group(group::TRANSFORMATION).and_then(|t| {
                    let [slope] = t.decimals(group::SLOPE)?;
                    let [intercept] = t.decimals(group::INTERCEPT)?;
                    Some([slope, intercept])
                }),
                geometry: frame_geometry(group, measures.as_ref()),
                slice_thickness_mm: thickness.map(|[t]| t).filter(|t| *t > 0.0),
                kernel: group(group::RECONSTRUCTION)
                    .and_then(|r| r.text(tag::KERNEL))
                    .and_then(|k| k.split('\\').next().map(|k| k.trim().to_owned())),
                frame_type: frame_type
                    .map(|t| t.split('\\').map(|v| v.trim().to_ascii_uppercase()).collect())
                    .unwrap_or_default(),
            }
        })
        .collect()
}

fn frame_geometry<'a>(
    group: impl Fn(Tag) -> Option<Item<'a>>,
    measures: Option<&Item>,
) -> Option<PlaneGeometry> {
    plane(
        group(group::ORIENTATION)?.decimals(tag::ORIENTATION)?,
        measures?.decimals(tag::PIXEL_SPACING)?,
        group(group::POSITION)?.decimals(tag::POSITION)?,
    )
}

fn uid<T>(
    d: &Dataset,
    tag: Tag,
    attribute: &'static str,
    parse: impl Fn(&str) -> Result<T, UidError>,
) -> Result<T, HeaderError> {
    let text = d.text(tag).ok_or(HeaderError::Missing { attribute })?;
    parse(&text).map_err(|e| HeaderError::Malformed { attribute, detail: e.to_string() })
}

fn geometry(d: &Dataset) -> Option<PlaneGeometry> {
    plane(d.decimals(tag::ORIENTATION)?, d.decimals(tag::PIXEL_SPACING)?, d.decimals(tag::POSITION)?)
}

fn plane(
    [rx, ry, rz, cx, cy, cz]: [f64; 6],
    pixel_spacing_mm: [f64; 2],
    position_mm: [f64; 3],
) -> Option<PlaneGeometry> {
    let plane = PlaneGeometry { position_mm, row: [rx, ry, rz], column: [cx, cy, cz], pixel_spacing_mm };
    let unit = |v: [f64; 3]| (v.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 0.01;
    let plausible = pixel_spacing_mm.iter().all(|s| (0.01..100.0).contains(s));
    (unit(plane.row) && unit(plane.column) && plausible).then_some(plane)
}

/// Transfer syntaxes that lose information whatever the header says.
fn is_lossy(transfer_syntax: &str) -> bool {
    matches!(
        transfer_syntax.strip_prefix("1.2.840.10008.1.2.4."),
        Some("50" | "51" | "81" | "91" | "93" | "112" | "203")
    )
}

/// Functional groups (PS3.3 C.7.6.16.2, C.8.15.3) and what is in them.
mod group {
    use super::Tag;

    pub const POSITION: Tag = (0x0020, 0x9113);
    pub const ORIENTATION: Tag = (0x0020, 0x9116);
    pub const PIXEL_MEASURES: Tag = (0x0028, 0x9110);
    pub const TRANSFORMATION: Tag = (0x0028, 0x9145);
    pub const INTERCEPT: Tag = (0x0028, 0x1052);
    pub const SLOPE: Tag = (0x0028, 0x1053);
    pub const RECONSTRUCTION: Tag = (0x0018, 0x9314);
    pub const FRAME_TYPE: Tag = (0x0018, 0x9329);
    pub const FRAME_TYPE_VALUES: Tag = (0x0008, 0x9007);
}

mod tag {
    use super::{Tag, dataset};

    pub const IMAGE_TYPE: Tag = (0x0008, 0x0008);
    pub const SOP_CLASS: Tag = (0x0008, 0x0016);
    pub const SOP: Tag = (0x0008, 0x0018);
    pub const ACQUISITION_DATE: Tag = (0x0008, 0x0022);
    pub const ACQUISITION_DATE_TIME: Tag = (0x0008, 0x002a);
    pub const ACQUISITION_TIME: Tag = (0x0008, 0x0032);
    pub const ACCESSION: Tag = (0x0008, 0x0050);
    pub const MODALITY: Tag = (0x0008, 0x0060);
    pub const PATIENT_NAME: Tag = (0x0010, 0x0010);
    pub const PATIENT_ID: Tag = (0x0010, 0x0020);
    pub const CONTRAST: Tag = (0x0018, 0x0010);
    pub const BODY_PART: Tag = (0x0018, 0x0015);
    pub const THICKNESS: Tag = (0x0018, 0x0050);
    pub const KERNEL: Tag = (0x0018, 0x1210);
    pub const STUDY: Tag = (0x0020, 0x000d);
    pub const SERIES: Tag = (0x0020, 0x000e);
    pub const INSTANCE_NUMBER: Tag = (0x0020, 0x0013);
    pub const POSITION: Tag = (0x0020, 0x0032);
    pub const ORIENTATION: Tag = (0x0020, 0x0037);
    pub const IMAGES_IN_ACQUISITION: Tag = (0x0020, 0x1002);
    pub const SAMPLES: Tag = (0x0028, 0x0002);
    pub const FRAMES: Tag = (0x0028, 0x0008);
    pub const ROWS: Tag = (0x0028, 0x0010);
    pub const COLUMNS: Tag = (0x0028, 0x0011);
    pub const PIXEL_SPACING: Tag = (0x0028, 0x0030);
    pub const LOSSY: Tag = (0x0028, 0x2110);

    /// Everything a header is made of.
    pub const WANTED: [Tag; 29] = [
        dataset::SHARED_GROUPS,
        dataset::FRAME_GROUPS,
        dataset::CONTRAST_AGENTS,
        ACQUISITION_DATE_TIME,
        IMAGE_TYPE,
        SOP_CLASS,
        SOP,
        ACQUISITION_DATE,
        ACQUISITION_TIME,
        ACCESSION,
        MODALITY,
        PATIENT_NAME,
        PATIENT_ID,
        CONTRAST,
        BODY_PART,
        THICKNESS,
        KERNEL,
        STUDY,
        SERIES,
        INSTANCE_NUMBER,
        POSITION,
        ORIENTATION,
        IMAGES_IN_ACQUISITION,
        SAMPLES,
        FRAMES,
        ROWS,
        COLUMNS,
        PIXEL_SPACING,
        LOSSY,
    ];
}

/// Scanners also write that there was none.
fn names_an_agent(text: &str) -> bool {
    let none = ["NONE", "NO", "N", "NO CONTRAST", "NON CONTRAST", "NON-CONTRAST", "WITHOUT", "W/O", "-", "0"];
    !none.contains(&text.to_ascii_uppercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Real data, where it lies beside the repository.
    fn testdata() -> Option<PathBuf> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/testdata");
        let path = std::env::var_os("ICHD_TESTDATA").map_or(beside, PathBuf::from);
        if path.is_dir() {
            return Some(path);
        }
        eprintln!("left out: no test data of real people beside the repository");
        None
    }

    fn files(folder: &Path, into: &mut Vec<PathBuf>) {
        for path in std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                files(&path, into);
            } else if path.extension().is_some_and(|e| e == "dcm") {
                into.push(path);
            }
        }
    }

    /// What its README calls broken or without a file header, and two whose UIDs are none (hashed, or left out).
    const REFUSED: [&str; 13] = [
        "malformed/ExplVR_BigEndNoMeta.dcm",
        "malformed/ExplVR_LitEndNoMeta.dcm",
        "malformed/MR_truncated.dcm",
        "malformed/UN_sequence.dcm",
        "malformed/bad_sequence.dcm",
        "malformed/empty_charset_LEI.dcm",
        "malformed/meta_missing_tsyntax.dcm",
        "malformed/nested_priv_SQ.dcm",
        "malformed/no_meta.dcm",
        "malformed/no_meta_group_length.dcm",
        "malformed/rtplan_truncated.dcm",
        "malformed/truncated-ct-dose-report.dcm",
        "not-a-head/rtstruct-object.dcm",
    ];

    #[test]
    fn that_there_was_no_agent_is_no_agent() {
        for none in ["NONE", "None", "no", "W/O", "0"] {
            assert!(!names_an_agent(none), "{none}");
        }
        for agent in ["IOHEXOL", "OMNI 350", "YES", "CONTRAST", "APPLIED"] {
            assert!(names_an_agent(agent), "{agent}");
        }
    }

    #[test]
    fn of_all_real_files_exactly_the_broken_ones_are_refused() {
        let Some(root) = testdata() else { return };
        let mut all = Vec::new();
        files(&root, &mut all);
        let mut refused = Vec::new();
        for path in &all {
            let name = path.strip_prefix(&root).unwrap().display().to_string();
            if SliceHeader::read(path).is_err() {
                refused.push(name);
            }
        }
        refused.sort();
        assert_eq!(refused, REFUSED);
        assert!(all.len() > 300, "{} files", all.len());
    }

    #[test]
    fn undefined_length_sequences_in_a_mix_of_encodings_are_walked_past() {
        let Some(root) = testdata() else { return };
        let read = |name: &str| SliceHeader::read(&root.join("malformed").join(name)).unwrap();
        assert!(read("ct-undefined-length-sequences.dcm").has_pixels);
        // Pixel Spacing typed UN is text all the same.
        assert!(read("explicit_VR-UN.dcm").geometry.is_some());
    }
}
