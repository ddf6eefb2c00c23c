//! DICOM series of a volume: CT Image Storage (PS3.3 A.3), one instance a slice, valid and plainly synthetic.
//!
//! Everything follows from a seed, UIDs too (2.25 root, PS3.5 B.2), so a series can be made again bit for bit.
//! It compresses nothing and sends nothing.

use crate::anatomy::{Anatomy, AnatomyError};
use crate::decoy::{self, Decoy};
use crate::head::Head;
use crate::paint::{Kind, LesionSpec, PaintError, Side};
use crate::rng::{Rng, mix};
use crate::scan::{ScanOptions, scan};
use crate::study::Study;
use crate::volume::Volume;
use dicom_core::value::PrimitiveValue;
use dicom_core::{DataElement, Tag, VR};
use dicom_dictionary_std::{tags, uids};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};

/// How pixels and elements are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Syntax {
    /// Explicit VR Little Endian.
    #[default]
    ExplicitLe,
    /// Implicit VR Little Endian.
    ImplicitLe,
}

impl Syntax {
    /// The transfer syntax UID.
    pub fn uid(self) -> &'static str {
        match self {
            Syntax::ExplicitLe => uids::EXPLICIT_VR_LITTLE_ENDIAN,
            Syntax::ImplicitLe => uids::IMPLICIT_VR_LITTLE_ENDIAN,
        }
    }
}

/// What a series looks like and says of itself.
#[derive(Clone, Debug)]
pub struct SeriesOptions {
    /// Grid, tilt, noise and kernel of the scan.
    pub scan: ScanOptions,
    /// Hard negatives to add.
    pub decoys: Vec<Decoy>,
    /// Encoding.
    pub syntax: Syntax,
    /// Seed of the UIDs; left out, the seed of the head. Two sends of one head need different ones.
    pub uid_seed: Option<u64>,
    /// Study Instance UID to join, for several series of one study.
    pub study_uid: Option<String>,
    /// Series Number.
    pub series_number: u32,
    /// Series Description.
    pub series_description: String,
    /// Patient's Name; keep it plainly synthetic.
    pub patient_name: String,
    /// Patient ID.
    pub patient_id: String,
    /// Accession Number.
    pub accession: String,
    /// Date (YYYYMMDD) of study, series and content.
    pub date: String,
    /// Hour of acquisition (HHMMSS).
    pub time: String,
    /// Convolution Kernel as a vendor would write it.
    pub kernel: String,
    /// Body Part Examined; some scanners leave it out or wrong.
    pub body_part: Option<String>,
}

impl Default for SeriesOptions {
    fn default() -> Self {
        SeriesOptions {
            scan: ScanOptions::default(),
            decoys: Vec::new(),
            syntax: Syntax::default(),
            uid_seed: None,
            study_uid: None,
            series_number: 2,
            series_description: "HEAD 5.0 H30".into(),
            patient_name: "PHANTOM^QUIET".into(),
            patient_id: "PHANTOM-0".into(),
            accession: "PH0".into(),
            date: "20260101".into(),
            time: "030000".into(),
            kernel: "H30s".into(),
            body_part: Some("HEAD".into()),
        }
    }
}

/// A bleed to put into a head of [`study`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bleed {
    /// A quiet head.
    None,
    /// An epidural lens.
    Epidural {
        /// Patient side.
        side: Side,
        /// Millilitres of blood.
        volume_ml: f32,
    },
    /// A bleed in brain tissue.
    Intraparenchymal {
        /// Patient side.
        side: Side,
        /// Millilitres of blood.
        volume_ml: f32,
    },
    /// Blood in the ventricles.
    Intraventricular {
        /// Millilitres of blood.
        volume_ml: f32,
    },
    /// Blood in sulci.
    Subarachnoid {
        /// Patient side.
        side: Side,
        /// Millilitres of blood.
        volume_ml: f32,
    },
    /// A subdural crescent.
    Subdural {
        /// Patient side.
        side: Side,
        /// Millilitres of blood.
        volume_ml: f32,
    },
}

impl Bleed {
    /// What to paint, plain and acute; `None` for a quiet head.
    pub fn spec(self) -> Option<LesionSpec> {
        let spec =
            |kind, side, volume_ml| Some(LesionSpec { kind, side, volume_ml: Some(volume_ml), plain: true });
        match self {
            Bleed::None => None,
            Bleed::Epidural { side, volume_ml } => spec(Kind::Epidural, Some(side), volume_ml),
            Bleed::Intraparenchymal { side, volume_ml } => {
                spec(Kind::Intraparenchymal, Some(side), volume_ml)
            }
            Bleed::Intraventricular { volume_ml } => spec(Kind::Intraventricular, None, volume_ml),
            Bleed::Subarachnoid { side, volume_ml } => spec(Kind::Subarachnoid, Some(side), volume_ml),
            Bleed::Subdural { side, volume_ml } => spec(Kind::Subdural, Some(side), volume_ml),
        }
    }
}

/// One SOP instance, ready to send or to write.
#[derive(Clone, Debug)]
pub struct Instance {
    /// SOP Class UID: CT Image Storage.
    pub sop_class_uid: &'static str,
    /// SOP Instance UID.
    pub sop_instance_uid: String,
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Transfer syntax of `dataset_bytes`.
    pub transfer_syntax_uid: &'static str,
    /// The data set without file meta information, as C-STORE carries it.
    pub dataset_bytes: Vec<u8>,
}

/// Why a study could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SeriesError {
    /// No anatomy was found in the head.
    #[error("anatomy")]
    Anatomy(#[from] AnatomyError),
    /// The bleed does not fit this head or its few slices.
    #[error("bleed")]
    Paint(#[from] PaintError),
    /// The data set could not be encoded.
    #[error("encode data set")]
    Encode(String),
}

impl Instance {
    /// The instance as a DICOM file (PS3.10): preamble, file meta information, data set.
    ///
    /// # Errors
    /// [`SeriesError::Encode`] when the meta information cannot be encoded.
    pub fn file_bytes(&self) -> Result<Vec<u8>, SeriesError> {
        let meta = FileMetaTableBuilder::new()
            .media_storage_sop_class_uid(self.sop_class_uid)
            .media_storage_sop_instance_uid(self.sop_instance_uid.as_str())
            .transfer_syntax(self.transfer_syntax_uid)
            .implementation_class_uid(uid(0, "implementation", 0))
            .implementation_version_name("ICHD_PHANTOM")
            .build()
            .map_err(|e| SeriesError::Encode(e.to_string()))?;
        let mut bytes = vec![0u8; 128];
        bytes.extend_from_slice(b"DICM");
        meta.write(&mut bytes).map_err(|e| SeriesError::Encode(e.to_string()))?;
        bytes.extend_from_slice(&self.dataset_bytes);
        Ok(bytes)
    }
}

/// A head of `seed` with a bleed, as instances in slice order, lowest first. The same arguments give the same bytes.
///
/// # Errors
/// [`SeriesError`] when the bleed does not fit the head, which takes few slices or an unlikely volume.
pub fn study(seed: u64, bleed: Bleed, options: &SeriesOptions) -> Result<Vec<Instance>, SeriesError> {
    let study = head_study(seed, bleed, options)?;
    series(&study.volume, seed, options)
}

/// The volume behind [`study`], with its mask and lesions.
///
/// # Errors
/// As [`study`].
pub fn head_study(seed: u64, bleed: Bleed, options: &SeriesOptions) -> Result<Study, SeriesError> {
    let head = Head::random(seed);
    let mut study = Study::quiet(scan(&head, &options.scan, seed));
    if bleed == Bleed::None && options.decoys.is_empty() {
        return Ok(study);
    }
    let anatomy = Anatomy::from_volume(&study.volume)?;
    for (i, &d) in options.decoys.iter().enumerate() {
        decoy::add(&mut study.volume, &anatomy, d, &mut Rng::new(seed).fork(100 + i as u64));
        study.decoys.push(d);
    }
    if let Some(spec) = bleed.spec() {
        // A few tries: a place picked by chance may be too small for the volume.
        let mut last = Ok(());
        for attempt in 0..6 {
            last = study.bleed(&anatomy, &spec, &mut Rng::new(seed).fork(200 + attempt));
            if last.is_ok() {
                break;
            }
        }
        last?;
    }
    Ok(study)
}

/// A UID under 2.25 from a seed, a name and a number: the decimal form of a version 4 UUID.
pub fn uid(seed: u64, name: &str, number: u64) -> String {
    let tail = name.bytes().fold(number, |h, b| mix(h ^ u64::from(b).wrapping_mul(0x0100_0000_01b3)));
    let (hi, lo) = (mix(seed ^ mix(tail)), mix(tail ^ mix(seed.wrapping_add(1))));
    let hi = (hi & !0xf000) | 0x4000;
    let lo = (lo & !(0b11 << 62)) | (0b10 << 62);
    format!("2.25.{}", (u128::from(hi) << 64) | u128::from(lo))
}

/// Encodes a volume as instances in slice order, lowest first.
///
/// # Errors
/// [`SeriesError::Encode`] when the writer refuses.
pub fn series(v: &Volume, seed: u64, o: &SeriesOptions) -> Result<Vec<Instance>, SeriesError> {
    let uid_seed = o.uid_seed.unwrap_or(seed);
    let study_uid = o.study_uid.clone().unwrap_or_else(|| uid(uid_seed, "study", 0));
    let series_uid = uid(uid_seed, "series", u64::from(o.series_number));
    let frame_uid = uid(uid_seed, "frame", 0);
    let syntax = dicom_transfer_syntax_registry::entries::EXPLICIT_VR_LITTLE_ENDIAN.erased();
    let implicit = dicom_transfer_syntax_registry::entries::IMPLICIT_VR_LITTLE_ENDIAN.erased();
    let syntax = if o.syntax == Syntax::ImplicitLe { implicit } else { syntax };
    (0..v.nz)
        .map(|z| {
            let sop = uid(uid_seed, "instance", (u64::from(o.series_number) << 32) | z as u64);
            let mut obj = InMemDicomObject::new_empty();
            patient_and_study(&mut obj, o, &study_uid);
            series_and_equipment(&mut obj, o, &series_uid, &frame_uid);
            plane(&mut obj, v, o, z);
            pixels(&mut obj, v, z);
            text(&mut obj, tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE);
            text(&mut obj, tags::SOP_INSTANCE_UID, VR::UI, &sop);
            let mut dataset_bytes = Vec::new();
            obj.write_dataset_with_ts(&mut dataset_bytes, &syntax)
                .map_err(|e| SeriesError::Encode(e.to_string()))?;
            Ok(Instance {
                sop_class_uid: uids::CT_IMAGE_STORAGE,
                sop_instance_uid: sop,
                study_uid: study_uid.clone(),
                series_uid: series_uid.clone(),
                transfer_syntax_uid: o.syntax.uid(),
                dataset_bytes,
            })
        })
        .collect()
}

fn text(obj: &mut InMemDicomObject, tag: Tag, vr: VR, value: &str) {
    let value = if value.is_empty() { PrimitiveValue::Empty } else { PrimitiveValue::from(value) };
    obj.put(DataElement::new(tag, vr, value));
}

fn word(obj: &mut InMemDicomObject, tag: Tag, value: u16) {
    obj.put(DataElement::new(tag, VR::US, PrimitiveValue::from(value)));
}

/// Decimal strings of at most 16 characters (PS3.5 6.2).
fn decimals(obj: &mut InMemDicomObject, tag: Tag, values: &[f64]) {
    let text: Vec<String> = values
        .iter()
        .map(|v| {
            let v = if v.abs() < 5e-7 { 0.0 } else { *v };
            let s = format!("{v:.6}");
            s.trim_end_matches('0').trim_end_matches('.').to_string()
        })
        .collect();
    obj.put(DataElement::new(tag, VR::DS, PrimitiveValue::Strs(text.into())));
}

fn patient_and_study(obj: &mut InMemDicomObject, o: &SeriesOptions, study_uid: &str) {
    for (tag, vr, value) in [
        (tags::PATIENT_NAME, VR::PN, o.patient_name.as_str()),
        (tags::PATIENT_ID, VR::LO, &o.patient_id),
        (tags::PATIENT_BIRTH_DATE, VR::DA, "19000101"),
        (tags::PATIENT_SEX, VR::CS, "O"),
        (tags::PATIENT_COMMENTS, VR::LT, "Synthetic phantom, no person"),
        (tags::STUDY_INSTANCE_UID, VR::UI, study_uid),
        (tags::STUDY_DATE, VR::DA, &o.date),
        (tags::STUDY_TIME, VR::TM, &o.time),
        (tags::STUDY_ID, VR::SH, "1"),
        (tags::STUDY_DESCRIPTION, VR::LO, "SYNTHETIC HEAD CT"),
        (tags::ACCESSION_NUMBER, VR::SH, &o.accession),
        (tags::REFERRING_PHYSICIAN_NAME, VR::PN, ""),
    ] {
        text(obj, tag, vr, value);
    }
}

fn series_and_equipment(obj: &mut InMemDicomObject, o: &SeriesOptions, series_uid: &str, frame_uid: &str) {
    for (tag, vr, value) in [
        (tags::MODALITY, VR::CS, "CT"),
        (tags::SERIES_INSTANCE_UID, VR::UI, series_uid),
        (tags::SERIES_NUMBER, VR::IS, &o.series_number.to_string()),
        (tags::SERIES_DATE, VR::DA, &o.date),
        (tags::SERIES_TIME, VR::TM, &o.time),
        (tags::SERIES_DESCRIPTION, VR::LO, &o.series_description),
        (tags::PROTOCOL_NAME, VR::LO, "HEAD"),
        (tags::PATIENT_POSITION, VR::CS, "HFS"),
        (tags::FRAME_OF_REFERENCE_UID, VR::UI, frame_uid),
        (tags::POSITION_REFERENCE_INDICATOR, VR::LO, ""),
        (tags::MANUFACTURER, VR::LO, "ICHD PHANTOM"),
        (tags::MANUFACTURER_MODEL_NAME, VR::LO, "ANALYTIC HEAD"),
        (tags::DEVICE_SERIAL_NUMBER, VR::LO, "0"),
        (tags::SOFTWARE_VERSIONS, VR::LO, env!("CARGO_PKG_VERSION")),
        (tags::STATION_NAME, VR::SH, "PHANTOM"),
        (tags::INSTITUTION_NAME, VR::LO, "SYNTHETIC"),
    ] {
        text(obj, tag, vr, value);
    }
    if let Some(part) = &o.body_part {
        text(obj, tags::BODY_PART_EXAMINED, VR::CS, part);
    }
    if o.decoys.contains(&Decoy::Contrast) {
        text(obj, tags::CONTRAST_BOLUS_AGENT, VR::LO, "SYNTHETIC CONTRAST");
    }
}

fn plane(obj: &mut InMemDicomObject, v: &Volume, o: &SeriesOptions, z: usize) {
    let corner = v.mm(0, 0, z).map(f64::from);
    let (s, c) = f64::from(o.scan.tilt_deg).to_radians().sin_cos();
    let number = (z + 1).to_string();
    // A tenth of a second a slice, within the minute.
    let time = format!("{}.{:06}", o.time, (z % 10) * 100_000);
    for (tag, vr, value) in [
        (tags::IMAGE_TYPE, VR::CS, "ORIGINAL\\PRIMARY\\AXIAL"),
        (tags::INSTANCE_NUMBER, VR::IS, &number),
        (tags::ACQUISITION_NUMBER, VR::IS, "1"),
        (tags::ACQUISITION_DATE, VR::DA, &o.date),
        (tags::ACQUISITION_TIME, VR::TM, &time),
        (tags::CONTENT_DATE, VR::DA, &o.date),
        (tags::CONTENT_TIME, VR::TM, &time),
        (tags::IMAGE_COMMENTS, VR::LT, "Synthetic image made by ichd-phantom. Not a patient."),
        (tags::BURNED_IN_ANNOTATION, VR::CS, "NO"),
        (tags::LOSSY_IMAGE_COMPRESSION, VR::CS, "00"),
        (tags::SCAN_OPTIONS, VR::CS, "AXIAL MODE"),
        (tags::CONVOLUTION_KERNEL, VR::SH, &o.kernel),
        (tags::ROTATION_DIRECTION, VR::CS, "CW"),
        (tags::EXPOSURE_TIME, VR::IS, "1000"),
        (tags::X_RAY_TUBE_CURRENT, VR::IS, "300"),
        (tags::FILTER_TYPE, VR::SH, "HEAD"),
        (tags::RESCALE_TYPE, VR::LO, "HU"),
    ] {
        text(obj, tag, vr, value);
    }
    let (pixel, step) = (f64::from(v.pixel_mm), f64::from(v.step_mm));
    for (tag, values) in [
        (tags::PIXEL_SPACING, &[pixel, pixel][..]),
        (tags::IMAGE_ORIENTATION_PATIENT, &[1.0, 0.0, 0.0, 0.0, c, s]),
        (tags::IMAGE_POSITION_PATIENT, &[corner[0], corner[1] * c, corner[2] + corner[1] * s]),
        (tags::SLICE_THICKNESS, &[step]),
        (tags::SLICE_LOCATION, &[corner[2]]),
        (tags::KVP, &[120.0]),
        (tags::DATA_COLLECTION_DIAMETER, &[500.0]),
        (tags::RECONSTRUCTION_DIAMETER, &[pixel * v.nx as f64]),
        (tags::GANTRY_DETECTOR_TILT, &[f64::from(o.scan.tilt_deg)]),
        (tags::TABLE_HEIGHT, &[150.0]),
        (tags::WINDOW_CENTER, &[40.0]),
        (tags::WINDOW_WIDTH, &[80.0]),
        (tags::RESCALE_INTERCEPT, &[-1024.0]),
        (tags::RESCALE_SLOPE, &[1.0]),
    ] {
        decimals(obj, tag, values);
    }
}

fn pixels(obj: &mut InMemDicomObject, v: &Volume, z: usize) {
    text(obj, tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    for (tag, value) in [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, v.ny as u16),
        (tags::COLUMNS, v.nx as u16),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, 12),
        (tags::HIGH_BIT, 11),
        (tags::PIXEL_REPRESENTATION, 0),
    ] {
        word(obj, tag, value);
    }
    let n = v.nx * v.ny;
    let stored: Vec<u16> =
        v.hu[z * n..(z + 1) * n].iter().map(|&h| (i32::from(h) + 1024).clamp(0, 4095) as u16).collect();
    obj.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(stored.into())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use dicom_object::DefaultDicomObject;

    fn small() -> SeriesOptions {
        SeriesOptions {
            scan: ScanOptions { matrix: 128, slices: 20, step_mm: 7.0, ..ScanOptions::default() },
            ..SeriesOptions::default()
        }
    }

    #[test]
    fn series_reads_back_with_the_same_pixels() {
        for syntax in [Syntax::ExplicitLe, Syntax::ImplicitLe] {
            let o = SeriesOptions { syntax, ..small() };
            let made = head_study(5, Bleed::None, &o).expect("study");
            let instances = series(&made.volume, 5, &o).expect("series");
            assert_eq!(instances.len(), 20);
            let n = made.volume.nx * made.volume.ny;
            for (z, i) in instances.iter().enumerate() {
                let bytes = i.file_bytes().expect("file");
                let obj: DefaultDicomObject = dicom_object::from_reader(&bytes[128..]).expect("parsed");
                assert_eq!(obj.meta().transfer_syntax(), syntax.uid());
                let stored =
                    obj.element(tags::PIXEL_DATA).expect("pixels").to_multi_int::<u16>().expect("u16");
                let hu: Vec<i16> = stored.iter().map(|&s| s as i16 - 1024).collect();
                assert_eq!(hu, made.volume.hu[z * n..(z + 1) * n]);
                let position = obj.element(tags::IMAGE_POSITION_PATIENT).expect("position");
                let position = position.to_multi_float64().expect("numbers");
                assert!((position[2] - f64::from(made.volume.mm(0, 0, z)[2])).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn same_seed_gives_the_same_bytes_and_another_uid_seed_only_other_uids() {
        let a = study(9, Bleed::None, &small()).expect("study");
        let b = study(9, Bleed::None, &small()).expect("study");
        assert!(a.iter().zip(&b).all(|(a, b)| a.dataset_bytes == b.dataset_bytes));
        let c = study(9, Bleed::None, &SeriesOptions { uid_seed: Some(1), ..small() }).expect("study");
        assert_ne!(a[0].sop_instance_uid, c[0].sop_instance_uid);
        let tail = |i: &Instance| i.dataset_bytes[i.dataset_bytes.len() - 128 * 128 * 2..].to_vec();
        assert_eq!(tail(&a[7]), tail(&c[7]));
    }

    #[test]
    fn uids_are_valid_and_distinct() {
        let mut all: Vec<String> = (0..200).map(|n| uid(3, "instance", n)).collect();
        assert!(all.iter().all(|u| u.len() <= 64 && u.starts_with("2.25.")));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 200);
    }
}
