//! Where slices lie: positions projected on the slice normal, steps between them, and what is odd about them. Pure.
//!
//! The result depends on the set of instances only, never on their order.

use std::collections::BTreeMap;

use super::{Flag, PlacedSlice, Volume};
use crate::decide::suitability;
use crate::dicom::{PlaneGeometry, SeriesUid, SopInstanceUid, StudyUid};
use crate::spool::Instance;

/// Two positions closer than this are one position, mm.
const SAME_POSITION_MM: f64 = 0.01;
/// A step within this fraction of a whole multiple of the usual one means missing slices.
const MULTIPLE_TOLERANCE: f64 = 0.05;
/// Directions whose cosine exceeds this are parallel (0.8 degrees).
const PARALLEL_COS: f64 = 0.9999;
/// A normal whose z component is below this is called tilted (1 degree).
const UPRIGHT_COS: f64 = 0.99985;

/// Places the instances of one series. The largest group that shares plane, matrix and pixel spacing becomes the
/// stack; the rest is `unplaced`. An instance with frames of its own counts as that many slices.
pub fn place(study: StudyUid, series: SeriesUid, instances: Vec<Instance>) -> Volume {
    let mut instances: Vec<Instance> = instances.into_iter().flat_map(Instance::into_slices).collect();
    // Not by `id`, which is made anew for each comparison.
    instances.sort_by(|a, b| order(a).cmp(&order(b)));
    // One localiser or screen save among axial images is set aside; a series of nothing else is judged as what it is.
    let (mut images, mut unplaced): (Vec<_>, Vec<_>) =
        instances.into_iter().partition(|i| suitability::is_plain_image(&i.header));
    if images.is_empty() {
        std::mem::swap(&mut images, &mut unplaced);
    }
    let mut groups: Vec<Vec<Instance>> = Vec::new();
    for instance in images {
        match instance.header.geometry {
            None => unplaced.push(instance),
            Some(_) => match groups.iter_mut().find(|g| stacks(&g[0], &instance)) {
                Some(group) => group.push(instance),
                None => groups.push(vec![instance]),
            },
        }
    }
    // Ties go to the group that holds the smallest SOP Instance UID, for max_by_key keeps the last of equals.
    let stack = (0..groups.len()).rev().max_by_key(|&i| groups[i].len());
    let stack = stack.map(|i| groups.swap_remove(i)).unwrap_or_default();
    unplaced.extend(groups.into_iter().flatten());

    let normal = stack.first().and_then(|i| i.header.geometry).map_or([0.0, 0.0, 1.0], |g| normal(&g));
    let mut slices: Vec<PlacedSlice> = stack
        .into_iter()
        .filter_map(|instance| {
            let z_mm = dot(instance.header.geometry?.position_mm, normal);
            Some(PlacedSlice { instance, z_mm })
        })
        .collect();
    // Stable, so equal positions stay in UID order.
    slices.sort_by(|a, b| a.z_mm.total_cmp(&b.z_mm));

    let mut flags = Vec::new();
    let n_slices = slices.len();
    let mut repeated = Vec::new();
    let mut kept: Vec<PlacedSlice> = Vec::with_capacity(n_slices);
    for slice in slices {
        match kept.last() {
            Some(last) if slice.z_mm - last.z_mm < SAME_POSITION_MM => repeated.push(slice.instance),
            _ => kept.push(slice),
        }
    }
    if !repeated.is_empty() {
        flags.push(Flag::RepeatedPosition);
        unplaced.extend(repeated);
    }
    let steps_mm: Vec<f64> = kept.windows(2).map(|w| w[1].z_mm - w[0].z_mm).collect();
    flags.extend(step_flags(&kept, &steps_mm));
    if normal[2] < UPRIGHT_COS {
        flags.push(Flag::Tilted);
    }
    if kept.iter().any(|s| s.instance.header.lossy) {
        flags.push(Flag::Lossy);
    }
    if kept.iter().any(|s| s.instance.header.contrast) {
        flags.push(Flag::Contrast);
    }
    flags.sort_unstable();
    flags.dedup();
    unplaced.sort_by(|a, b| order(a).cmp(&order(b)));
    Volume { study, series, unplaced, slices: kept, steps_mm, normal, flags, revision: 0 }
}

fn order(instance: &Instance) -> (&SopInstanceUid, Option<u32>) {
    (&instance.header.sop, instance.header.frame.as_ref().map(|frame| frame.number))
}

/// The step that most slices keep, mm: the lower median. `None` for fewer than two slices.
pub fn usual_step_mm(steps_mm: &[f64]) -> Option<f64> {
    let mut sorted = steps_mm.to_vec();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| sorted[(sorted.len() - 1) / 2])
}

/// Distinct steps rounded to 0.01 mm with their counts, for people.
pub fn step_histogram(steps_mm: &[f64]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for step in steps_mm {
        *counts.entry(format!("{step:.2}")).or_default() += 1;
    }
    counts
}

fn step_flags(slices: &[PlacedSlice], steps_mm: &[f64]) -> Vec<Flag> {
    let mut flags = Vec::new();
    let Some(usual) = usual_step_mm(steps_mm) else { return flags };
    let multiple_of_usual = |step: f64| {
        let ratio = step / usual;
        ratio > 1.5 && (ratio - ratio.round()).abs() <= MULTIPLE_TOLERANCE * ratio.round()
    };
    let n_multiple = steps_mm.iter().filter(|&&s| multiple_of_usual(s)).count();
    let is_usual = |step: f64| (step - usual).abs() <= MULTIPLE_TOLERANCE * usual;
    let missing = n_multiple > 0 && n_multiple * 2 <= steps_mm.len();
    if missing {
        flags.push(Flag::MissingSlices);
    }
    if steps_mm.iter().any(|&s| !(is_usual(s) || missing && multiple_of_usual(s))) {
        flags.push(Flag::MixedSteps);
    }
    let overlaps = slices.windows(2).zip(steps_mm).any(|(pair, step)| {
        let thickness = |s: &PlacedSlice| s.instance.header.slice_thickness_mm;
        matches!((thickness(&pair[0]), thickness(&pair[1])), (Some(a), Some(b)) if *step < 0.5 * a.min(b))
    });
    if overlaps {
        flags.push(Flag::Overlap);
    }
    flags
}

/// Unit normal, oriented toward the head (or, for a plane that contains the body axis, along its largest component).
fn normal(g: &PlaneGeometry) -> [f64; 3] {
    let (r, c) = (g.row, g.column);
    let n = [r[1] * c[2] - r[2] * c[1], r[2] * c[0] - r[0] * c[2], r[0] * c[1] - r[1] * c[0]];
    let length = dot(n, n).sqrt();
    if length.is_nan() || length <= 0.5 {
        return [0.0, 0.0, 1.0];
    }
    let n = n.map(|x| x / length);
    let lead = if n[2].abs() > 1e-3 {
        n[2]
    } else if n[1].abs() > n[0].abs() {
        n[1]
    } else {
        n[0]
    };
    if lead < 0.0 { n.map(|x| -x) } else { n }
}

/// Whether two images belong on one stack: same plane, matrix and pixel spacing.
pub fn stacks(a: &Instance, b: &Instance) -> bool {
    let (Some(ga), Some(gb)) = (a.header.geometry, b.header.geometry) else { return false };
    let near = |x: f64, y: f64| (x - y).abs() <= 1e-3 * x.abs().max(1e-6);
    dot(ga.row, gb.row) > PARALLEL_COS
        && dot(ga.column, gb.column) > PARALLEL_COS
        && (a.header.rows, a.header.columns) == (b.header.rows, b.header.columns)
        && near(ga.pixel_spacing_mm[0], gb.pixel_spacing_mm[0])
        && near(ga.pixel_spacing_mm[1], gb.pixel_spacing_mm[1])
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::testing::{instance_at, series_uid, study_uid};
    use proptest::prelude::*;

    fn check(z_mm: &[f64]) -> Volume {
        let instances = z_mm.iter().enumerate().map(|(i, z)| instance_at(i, *z)).collect();
        place(study_uid(), series_uid(), instances)
    }

    #[test]
    fn a_regular_stack_has_no_flags() {
        let volume = check(&[10.0, 0.0, 5.0, 15.0]);
        assert_eq!(volume.steps_mm, [5.0, 5.0, 5.0]);
        assert_eq!(volume.flags, []);
        assert_eq!(volume.slices[0].z_mm, 0.0);
    }

    #[test]
    fn a_double_step_is_a_missing_slice_and_an_odd_one_is_mixed() {
        assert_eq!(check(&[0.0, 5.0, 10.0, 20.0]).flags, [Flag::MissingSlices]);
        assert_eq!(check(&[0.0, 0.75, 2.25]).flags, [Flag::MissingSlices, Flag::Overlap]);
        assert_eq!(check(&[0.0, 4.0, 8.0, 15.0, 22.0]).flags, [Flag::MixedSteps]);
    }

    #[test]
    fn images_at_one_position_are_counted_once() {
        let volume = check(&[0.0, 0.0, 0.0, 5.0]);
        assert_eq!((volume.slices.len(), volume.unplaced.len()), (2, 2));
        assert!(volume.flags.contains(&Flag::RepeatedPosition));
    }

    #[test]
    fn a_localiser_among_axial_images_is_set_aside_and_a_series_of_localisers_is_one() {
        let localiser = |i: usize| {
            let mut instance = instance_at(i, i as f64 * 5.0);
            std::sync::Arc::make_mut(&mut instance.header).image_type[2] = "LOCALIZER".into();
            instance
        };
        let all = (0..12).map(|i| instance_at(i, i as f64 * 5.0)).chain([localiser(12)]).collect();
        let volume = place(study_uid(), series_uid(), all);
        assert_eq!((volume.slices.len(), volume.unplaced.len()), (12, 1));
        let volume = place(study_uid(), series_uid(), (0..3).map(localiser).collect());
        assert_eq!((volume.slices.len(), volume.unplaced.len()), (3, 0));
    }

    #[test]
    fn an_oblique_slice_does_not_join_the_stack() {
        let mut odd = instance_at(9, 5.0);
        let header = std::sync::Arc::make_mut(&mut odd.header);
        header.geometry.as_mut().unwrap().row = [0.0, 1.0, 0.0];
        header.geometry.as_mut().unwrap().column = [0.0, 0.0, -1.0];
        let volume = place(study_uid(), series_uid(), vec![odd, instance_at(0, 0.0), instance_at(1, 5.0)]);
        assert_eq!((volume.slices.len(), volume.unplaced.len()), (2, 1));
    }

    proptest! {
        #[test]
        fn any_order_gives_the_same_volume(z in prop::collection::vec(-200.0f64..200.0, 1..40), seed in any::<u64>()) {
            let mut instances: Vec<_> = z.iter().enumerate().map(|(i, z)| instance_at(i, *z)).collect();
            let sorted = place(study_uid(), series_uid(), instances.clone());
            let mut state = seed | 1;
            for i in (1..instances.len()).rev() {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                instances.swap(i, (state >> 33) as usize % (i + 1));
            }
            let shuffled = place(study_uid(), series_uid(), instances);
            let sops = |v: &Volume| v.slices.iter().map(|s| s.instance.header.sop.clone()).collect::<Vec<_>>();
            prop_assert_eq!(sops(&sorted), sops(&shuffled));
            prop_assert_eq!(&sorted.steps_mm, &shuffled.steps_mm);
            prop_assert_eq!(&sorted.flags, &shuffled.flags);
            prop_assert_eq!(sorted.input_sha256(), shuffled.input_sha256());
        }
    }
}
