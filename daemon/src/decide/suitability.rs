//! Whether a series can be judged at all: first by its headers, then by its pixels. Pure.
//!
//! Body Part Examined is deliberately absent: scanners send brains tagged CSPINE and abdomens tagged CHEST.

use super::Why;
use crate::assemble::geometry::{stacks, usual_step_mm};
use crate::assemble::study::COVERAGE_MIN_MM;
use crate::assemble::{Flag, Volume};
use crate::dicom::SliceHeader;
use crate::infer::{SliceReading, Tissue};

/// The sequence models need context; fewer slices are no head. Holds for the slices that are read: of a thin series that
/// is one in so many.
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
    // What was set aside does not decide, unless there is nothing else.
    let aside = if volume.slices.is_empty() { &volume.unplaced[..] } else { &[] };
    let headers = || volume.slices.iter().map(|s| &s.instance).chain(aside).map(|i| &i.header);
    if headers().any(|h| !is_ct(&h.sop_class) || h.modality != "CT") {
        return Err(Why::NotCt);
    }
    // Frames that their functional groups do not describe cannot be told apart.
    if headers().any(|h| h.sop_class == ENHANCED_CT_IMAGE_STORAGE && h.frame.is_none()) {
        return Err(Why::MultiFrame);
    }
    if headers().any(|h| is_localizer(h)) {
        return Err(Why::Localizer);
    }
    if headers().any(|h| !h.has_pixels || h.samples_per_pixel != 1 || h.frames != 1) {
        return Err(Why::NotAnImage);
    }
    if headers().any(|h| is_derived(h)) {
        return Err(Why::Derived);
    }
    if volume.slices.is_empty() {
        return Err(Why::NoGeometry);
    }
    if volume.normal[2] < std::f64::consts::FRAC_1_SQRT_2 {
        return Err(Why::NotAxial);
    }
    let repeated = volume.unplaced.iter().filter(|i| stacks(&volume.slices[0].instance, i)).count();
    if repeated * 4 > volume.slices.len() {
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
    if headers().any(|h| kernel(h.kernel.as_deref()) == Kernel::Sharp) {
        return Err(Why::BoneKernel);
    }
    Ok(())
}

fn is_ct(sop_class: &str) -> bool {
    matches!(sop_class, CT_IMAGE_STORAGE | ENHANCED_CT_IMAGE_STORAGE)
}

fn is_localizer(h: &SliceHeader) -> bool {
    h.image_type.iter().any(|t| t == "LOCALIZER")
}

fn is_derived(h: &SliceHeader) -> bool {
    h.image_type.iter().any(|t| DERIVED_KINDS.contains(&t.as_str()))
}

/// A localiser, screen save or map: nobody misses it in the stack.
fn lies_beside(h: &SliceHeader) -> bool {
    !is_ct(&h.sop_class) || h.samples_per_pixel != 1 || is_localizer(h) || is_derived(h)
}

/// Whether it is an image that a stack is made of.
pub fn is_plain_image(h: &SliceHeader) -> bool {
    h.has_pixels && !lies_beside(h)
}

/// Whether every slice of the stack names a kernel that is known.
pub fn is_kernel_known(volume: &Volume) -> bool {
    volume.slices.iter().all(|s| kernel(s.instance.header.kernel.as_deref()) != Kernel::Unknown)
}

/// What a Convolution Kernel name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// For soft tissue, as the models were trained on.
    Soft,
    /// For bone, lung, edges.
    Sharp,
    /// Absent, or by no scheme that is known here.
    Unknown,
}

/// Judges a kernel by its vendor's scheme: words (GE, United Imaging); Canon FC30, FC50 and FC80 families; Philips
/// letters; Siemens letters with a number that grows with sharpness (H31s, Hr40, J70h, I31f, Qr36, Hv57), sharp from 60.
pub fn kernel(name: Option<&str>) -> Kernel {
    let name = name.unwrap_or_default().trim().to_ascii_uppercase();
    let holds = |words: &[&str]| words.iter().any(|w| name.contains(w));
    if holds(&["BONE", "EDGE", "LUNG", "ULTRA", "SHARP", "INNER EAR"]) {
        return Kernel::Sharp;
    }
    if holds(&["SOFT", "STANDARD", "STD", "SMOOTH", "BRAIN", "DETAIL"]) {
        return Kernel::Soft;
    }
    match name.as_str() {
        "YA" | "YB" | "YC" | "YD" | "YE" | "D" | "E" | "L" => return Kernel::Sharp,
        "A" | "B" | "C" | "UA" | "UB" | "UC" => return Kernel::Soft,
        _ => {}
    }
    let letters = name.len() - name.trim_start_matches(|c: char| c.is_ascii_uppercase()).len();
    let (family, rest) = name.split_at(letters);
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    match (family, digits.parse::<u32>()) {
        ("FC", Ok(30..=39 | 50..=59 | 80..=89)) => Kernel::Sharp,
        ("FC", Ok(1..=99)) => Kernel::Soft,
        (family, Ok(n @ 10..=99)) if matches!(family.len(), 1 | 2) && digits.len() == 2 => {
            if n >= 60 {
                Kernel::Sharp
            } else {
                Kernel::Soft
            }
        }
        _ => Kernel::Unknown,
    }
}

/// Neighbours further apart than this are a hole in which a bleed can lie, mm: two slices of 5 mm that never came are
/// read over and flagged, three are not.
pub const GAP_MAX_MM: f64 = 16.0;
/// A stack whose highest slice still encloses this part of what its largest one does ends below the vertex: of 60
/// people's complete series (CT-ICH, 5 mm) it is at most 0.29, and half of it lies 15 mm further down.
pub const CUT_ABOVE: f32 = 0.5;
/// The same for the lowest slice, which lies in the middle of the brain. It is at most 0.2 where a series begins at the
/// neck, and up to 0.7 where it begins within the posterior fossa. Between the two the base of the skull is open and
/// encloses nothing: a series that begins there is not told from a complete one.
pub const CUT_BELOW: f32 = 0.75;
/// So much brain outside the square that the network sees is more than an edge, cm2 in one slice.
pub const OUTSIDE_MAX_CM2: f32 = 2.0;

/// What a reader of a complete reading must know of what was not read; empty if that is nothing.
pub fn unread(volume: &Volume, slices: &[SliceReading]) -> Vec<Flag> {
    let mut flags = Vec::new();
    if slices.windows(2).any(|w| w[1].z_mm - w[0].z_mm > GAP_MAX_MM) {
        flags.push(Flag::LargeGap);
    }
    let largest = slices.iter().map(|s| s.tissue.enclosed_cm2).fold(0.0, f32::max);
    let is_cut = |end: Option<&SliceReading>, part: f32| {
        end.is_some_and(|s| largest > 0.0 && s.tissue.enclosed_cm2 >= part * largest)
    };
    if volume.coverage_mm() < COVERAGE_MIN_MM
        || is_cut(slices.first(), CUT_BELOW)
        || is_cut(slices.last(), CUT_ABOVE)
    {
        flags.push(Flag::PartialHead);
    }
    let first = volume.slices.first();
    let is_repeated = |i: &crate::spool::Instance| first.is_some_and(|s| stacks(&s.instance, i));
    if volume.unplaced.iter().any(|i| !lies_beside(&i.header) && !is_repeated(i)) {
        flags.push(Flag::UnreadSlices);
    }
    let announced = volume.instances().filter_map(|i| i.header.images_in_acquisition).max().unwrap_or(0);
    if volume.frames().count() < announced as usize {
        flags.push(Flag::FewerThanAnnounced);
    }
    if slices.iter().any(|s| s.tissue.outside_cm2 > OUTSIDE_MAX_CM2) {
        flags.push(Flag::OutsideField);
    }
    if !is_kernel_known(volume) {
        flags.push(Flag::UnknownKernel);
    }
    flags
}

/// Why a reading that suspects nothing is no verdict, if it is none: nobody may take silence on a part of a head for
/// silence on the head. What the scanner announced only flags: vendors count an acquisition, not a series.
pub fn silence_would_mislead(n_read: usize, flags: &[Flag]) -> Option<Why> {
    let any = |of: &[Flag]| of.iter().any(|f| flags.contains(f));
    match () {
        () if n_read < SLICES_MIN => Some(Why::TooFewSlices),
        () if any(&[Flag::PartialHead, Flag::LargeGap, Flag::UnreadSlices]) => Some(Why::Incomplete),
        () if any(&[Flag::OutsideField]) => Some(Why::OutsideField),
        () if any(&[Flag::Contrast]) => Some(Why::Contrast),
        () => None,
    }
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
        assert_eq!(check(28, |h| h.kernel = None), Ok(()));
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
        for sharp in [
            "BONE",
            "BONEPLUS",
            "HD BONE",
            "H60s",
            "H70h",
            "Hr68",
            "J70h",
            "I70f",
            "Hv70",
            "Bv60",
            "YA",
            "FC30",
            "FC52",
            "FC81",
            "SHARP",
            "B_SHARP_C",
            "H_SHARP_A",
        ] {
            assert_eq!(kernel(Some(sharp)), Kernel::Sharp, "{sharp}");
        }
        for soft in [
            "STANDARD", "STD+", "SOFT", "H31s", "J40s", "I31f", "Qr36", "Hv40", "UB", "FC21", "FC68", "Hr38",
            "B_SOFT_B",
        ] {
            assert_eq!(kernel(Some(soft)), Kernel::Soft, "{soft}");
        }
        for unknown in [None, Some(""), Some("KERNEL 7"), Some("H"), Some("HRX60"), Some("H600")] {
            assert_eq!(kernel(unknown), Kernel::Unknown, "{unknown:?}");
        }
    }

    #[test]
    fn what_lies_beside_the_stack_does_not_decide_for_it() {
        let aside = |edit: &dyn Fn(&mut SliceHeader)| {
            let mut odd = instance_at(40, 100.0);
            edit(std::sync::Arc::make_mut(&mut odd.header));
            let all = (0..28).map(|i| instance_at(i, i as f64 * 5.0)).chain([odd]).collect();
            let volume = place(study_uid(), series_uid(), all);
            (by_headers(&volume, 2_000), unread(&volume, &[]).contains(&Flag::UnreadSlices))
        };
        assert_eq!(aside(&|h| h.image_type[2] = "LOCALIZER".into()), (Ok(()), false));
        assert_eq!(aside(&|h| h.sop_class = "1.2.840.10008.5.1.4.1.1.7".into()), (Ok(()), false));
        assert_eq!(aside(&|h| h.image_type.push("MIP".into())), (Ok(()), false));
        assert_eq!(aside(&|_| ()), (Ok(()), false), "one more at a position that is taken");
        assert_eq!(aside(&|h| h.geometry = None), (Ok(()), true));
        assert_eq!(aside(&|h| h.rows = 256), (Ok(()), true));
        assert_eq!(aside(&|h| (h.has_pixels, h.geometry) = (false, None)), (Ok(()), true));
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
