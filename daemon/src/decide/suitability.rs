//! Whether a series can be judged at all: first by its headers, then by its pixels. Pure.
//!
//! Body Part Examined is deliberately absent: scanners send brains tagged CSPINE and abdomens tagged CHEST.

use super::Why;
use crate::assemble::geometry::usual_step_mm;
use crate::assemble::{Flag, Volume};
use crate::infer::Tissue;

/// The sequence models need context; fewer slices are no head.
pub const SLICES_MIN: usize = 8;
/// Beyond this step the model has no evidence, mm.
pub const STEP_MAX_MM: f64 = 12.0;
/// CT Image Storage.
pub const CT_IMAGE_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.2";
/// Enhanced CT Image Storage.
pub const ENHANCED_CT_IMAGE_STORAGE: &str = "1.2.840.10008.5.1.4.1.1.2.1";

/// Image Type values (PS3.3 C.7.6.1.1.2 and vendors' own) of objects that are computed from heads but are none.
const DERIVED_KINDS: [&str; 9] =
    ["PERFUSION", "MIP", "MINIP", "VRT", "SSD", "RADIAL", "SCREEN SAVE", "BATCHMODE", "CURVED"];

/// Judges by the headers; `slices_max` comes from the configuration.
pub fn by_headers(volume: &Volume, slices_max: usize) -> Result<(), Why> {
    let headers = || volume.frames().map(|i| &i.header);
    let is_ct = |class: &str| matches!(class, CT_IMAGE_STORAGE | ENHANCED_CT_IMAGE_STORAGE);
    if headers().any(|h| !is_ct(&h.sop_class) || h.modality != "CT") {
        return Err(Why::NotCt);
    }
    // Frames that their functional groups do not describe cannot be told apart.
    if headers().any(|h| h.sop_class == ENHANCED_CT_IMAGE_STORAGE && h.frame.is_none()) {
        return Err(Why::MultiFrame);
    }
    if headers().any(|h| h.image_type.iter().any(|t| t == "LOCALIZER")) {
        return Err(Why::Localizer);
    }
    if headers().any(|h| !h.has_pixels || h.samples_per_pixel != 1 || h.frames != 1) {
        return Err(Why::NotAnImage);
    }
    if headers().any(|h| h.image_type.iter().any(|t| DERIVED_KINDS.contains(&t.as_str()))) {
        return Err(Why::Derived);
    }
    if volume.slices.is_empty() {
        return Err(Why::NoGeometry);
    }
    if volume.normal[2] < std::f64::consts::FRAC_1_SQRT_2 {
        return Err(Why::NotAxial);
    }
    if volume.flags.contains(&Flag::RepeatedPosition) && volume.unplaced.len() * 4 > volume.slices.len() {
        return Err(Why::SamePosition);
    }
    match volume.slices.len() {
        n if n < SLICES_MIN => return Err(Why::TooFewSlices),
        n if n > slices_max => return Err(Why::TooManySlices),
        _ => {}
    }
    if usual_step_mm(&volume.steps_mm).is_none_or(|s| s > STEP_MAX_MM) {
        return Err(Why::TooThick);
    }
    if headers().any(|h| h.kernel.as_deref().is_some_and(is_bone_kernel)) {
        return Err(Why::BoneKernel);
    }
    Ok(())
}

/// Whether a Convolution Kernel name is a sharp one by its vendor's scheme: GE words, Siemens H/J/Hr numbers from 60,
/// Philips Y letters, Canon FC30 and FC80 families.
pub fn is_bone_kernel(kernel: &str) -> bool {
    let kernel = kernel.trim().to_ascii_uppercase();
    let number = |prefix: &str| {
        let rest = kernel.strip_prefix(prefix)?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok()
    };
    if ["BONE", "EDGE", "LUNG", "ULTRA"].iter().any(|w| kernel.starts_with(w)) {
        return true;
    }
    if matches!(kernel.as_str(), "YA" | "YB" | "YC" | "YD" | "YE" | "D" | "E") {
        return true;
    }
    if let Some(n) = number("FC") {
        return matches!(n, 30..=39 | 80..=89);
    }
    ["HR", "HC", "H", "J", "B", "BL", "BR", "U"]
        .iter()
        .any(|p| number(p).is_some_and(|n| (60..=99).contains(&n)))
}

/// Judges by what the pixels are made of, slice by slice.
pub fn by_pixels(tissue: &[Tissue]) -> Result<(), Why> {
    if tissue.iter().any(|t| t.blank) {
        return Err(Why::BlankSlice);
    }
    // A quarter of the slices (at least three) must cross a closed skull; the lowest and highest ones never do.
    let needed = (tissue.len() / 4).max(3);
    let enclosed = |t: &&Tissue| t.enclosed_cm2 >= ENCLOSED_MIN_CM2;
    if tissue.iter().filter(enclosed).count() < needed {
        return Err(Why::NotHead);
    }
    let brain = |t: &&Tissue| enclosed(t) && t.brain_cm2 >= 0.5 * t.enclosed_cm2;
    if tissue.iter().filter(brain).count() < needed {
        return Err(Why::NoBrainTissue);
    }
    Ok(())
}

/// A closed skull holds at least this much in a slice, cm2; a spinal canal or a vertebra holds far less.
const ENCLOSED_MIN_CM2: f32 = 35.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::geometry::place;
    use crate::assemble::testing::{instance_at, series_uid, study_uid};
    use crate::dicom::SliceHeader;

    fn check(n: usize, edit: impl Fn(&mut SliceHeader)) -> Result<(), Why> {
        let instances = (0..n)
            .map(|i| {
                let mut instance = instance_at(i, i as f64 * 5.0);
                edit(std::sync::Arc::make_mut(&mut instance.header));
                instance
            })
            .collect();
        by_headers(&place(study_uid(), series_uid(), instances), 2000)
    }

    #[test]
    fn each_unsuitable_series_has_its_own_reason() {
        assert_eq!(check(28, |_| ()), Ok(()));
        assert_eq!(check(4, |_| ()), Err(Why::TooFewSlices));
        assert_eq!(check(2001, |_| ()), Err(Why::TooManySlices));
        assert_eq!(check(28, |h| h.modality = "MR".into()), Err(Why::NotCt));
        assert_eq!(check(28, |h| h.sop_class = ENHANCED_CT_IMAGE_STORAGE.into()), Err(Why::MultiFrame));
        assert_eq!(check(1, |h| h.image_type[2] = "LOCALIZER".into()), Err(Why::Localizer));
        assert_eq!(check(28, |h| h.has_pixels = false), Err(Why::NotAnImage));
        assert_eq!(check(28, |h| h.geometry = None), Err(Why::NoGeometry));
        assert_eq!(check(28, |h| h.kernel = Some("BONEPLUS".into())), Err(Why::BoneKernel));
        assert_eq!(check(28, |h| h.geometry.as_mut().unwrap().position_mm[2] *= 3.0), Err(Why::TooThick));
        assert_eq!(check(28, |h| h.geometry.as_mut().unwrap().position_mm[2] = 0.0), Err(Why::SamePosition));
        let sagittal = |h: &mut SliceHeader| {
            let g = h.geometry.as_mut().unwrap();
            g.position_mm = [g.position_mm[2], 0.0, 0.0];
            (g.row, g.column) = ([0.0, 1.0, 0.0], [0.0, 0.0, -1.0]);
        };
        assert_eq!(check(28, sagittal), Err(Why::NotAxial));
    }

    #[test]
    fn a_brain_tagged_as_spine_is_still_suitable() {
        assert_eq!(check(28, |h| h.body_part = Some("CSPINE".into())), Ok(()));
    }

    #[test]
    fn kernels_are_told_apart_by_their_vendors_schemes() {
        for bone in ["BONE", "BONEPLUS", "H60s", "H70h", "Hr68", "J70h", "YA", "FC30", "FC81"] {
            assert!(is_bone_kernel(bone), "{bone}");
        }
        for soft in ["STANDARD", "SOFT", "H31s", "J40s", "UB", "FC21", "FC68", "Hr38"] {
            assert!(!is_bone_kernel(soft), "{soft}");
        }
    }

    #[test]
    fn a_skull_full_of_air_is_no_brain_and_a_belly_is_no_head() {
        let slice = |enclosed_cm2, brain_cm2| Tissue {
            enclosed_cm2,
            brain_cm2,
            body_cm2: 200.0,
            ..Tissue::default()
        };
        assert_eq!(by_pixels(&[slice(150.0, 140.0); 20]), Ok(()));
        assert_eq!(by_pixels(&[slice(150.0, 2.0); 20]), Err(Why::NoBrainTissue));
        assert_eq!(by_pixels(&[slice(3.0, 2.0); 20]), Err(Why::NotHead));
        let mut blank = [slice(150.0, 140.0); 20];
        blank[7].blank = true;
        assert_eq!(by_pixels(&blank), Err(Why::BlankSlice));
    }
}
