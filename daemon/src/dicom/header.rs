//! What the stages need to know of one stored instance, without its pixels.

use std::path::Path;

use super::{Phi, SeriesUid, SopInstanceUid, StudyUid};

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

/// One instance as the assembler sees it. Absent or malformed optional attributes are `None`, never a guess.
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
    /// Plane of a single-frame image; `None` if any of its attributes is missing or not a number.
    pub geometry: Option<PlaneGeometry>,
    /// Rows (0028,0010); 0 if absent.
    pub rows: u16,
    /// Columns (0028,0011); 0 if absent.
    pub columns: u16,
    /// Number of Frames (0028,0008); 1 if absent.
    pub frames: u32,
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
    #[error("failed to read `{path}`")]
    Read {
        /// File asked for.
        path: String,
        /// What the system said.
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
    pub fn read(_path: &Path) -> Result<Self, HeaderError> {
        todo!()
    }
}
