//! Of several series of one study, which one is read. Pure.
//!
//! The rule, in order: no contrast agent before contrast; at least [`COVERAGE_MIN_MM`] of head before less; a kernel that
//! is known to be soft before an unknown one; steps of 2.5 to 6 mm (what the models were trained on) before thinner
//! before thicker; then the greater coverage; then the smaller Series Instance UID, so that the answer never depends on
//! the order of arrival.
//!
//! Headers do not tell a head from a neck. A series that was read in vain ([`Why::calls_for_another`]) makes way for
//! the next best, until one was read or none is left.

use std::cmp::Ordering;

use super::geometry::usual_step_mm;
use super::{Flag, Volume};
use crate::decide::{Why, suitability};

/// Less than this is a part of a head; a newborn's is about 90.
pub const COVERAGE_MIN_MM: f64 = 80.0;

/// `Less` means `a` is the better series to read.
pub fn compare(a: &Volume, b: &Volume) -> Ordering {
    let class = |v: &Volume| {
        let step_mm = usual_step_mm(&v.steps_mm).unwrap_or(f64::INFINITY);
        let thickness = match step_mm {
            s if s < 2.5 => 1,
            s if s <= 6.0 => 0,
            _ => 2,
        };
        let contrast = v.flags.contains(&Flag::Contrast);
        (contrast, v.coverage_mm() < COVERAGE_MIN_MM, !suitability::is_kernel_known(v), thickness)
    };
    class(a).cmp(&class(b)).then(b.coverage_mm().total_cmp(&a.coverage_mm())).then(a.series.cmp(&b.series))
}

/// A series of a study, and why reading it was in vain, if it was.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The series.
    pub volume: &'a Volume,
    /// `None` if it was not read yet, or was of use.
    pub in_vain: Option<Why>,
}

/// The series to read among those of one study: the best that is suitable by its headers and was not read in vain.
/// Another slice thickness of a scan without brain in it is passed over; it would say the same.
pub fn best<'a>(candidates: &[Candidate<'a>], slices_max: usize) -> Option<&'a Volume> {
    let without_brain = |f: &&Candidate| f.in_vain == Some(Why::NoBrainTissue);
    let says_the_same = |c: &Candidate| {
        let mut read = candidates.iter().filter(without_brain);
        read.any(|f| same_scan(f.volume, c.volume) && compare(f.volume, c.volume) == Ordering::Less)
    };
    let readable = candidates
        .iter()
        .filter(|c| c.in_vain.is_none() && suitability::by_headers(c.volume, slices_max).is_ok())
        .filter(|c| !says_the_same(c));
    readable.map(|c| c.volume).min_by(|a, b| compare(a, b))
}

/// Whether two series are reconstructions of one scan that differ in slice thickness alone: same kind of image, same
/// kernel, and the greater part of the shorter one lies within the longer one.
fn same_scan(a: &Volume, b: &Volume) -> bool {
    let look = |v: &Volume| {
        let header = v.slices.first().map(|s| s.instance.header.clone());
        header.map(|h| (h.kernel.clone(), h.image_type.iter().take(3).cloned().collect::<Vec<_>>()))
    };
    let ends = |v: &Volume| Some((v.slices.first()?.z_mm, v.slices.last()?.z_mm));
    let (Some((a_low, a_high)), Some((b_low, b_high))) = (ends(a), ends(b)) else { return false };
    let shared_mm = a_high.min(b_high) - a_low.max(b_low);
    look(a) == look(b) && shared_mm > 0.5 * (a_high - a_low).min(b_high - b_low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::geometry::place;
    use crate::assemble::testing::{instance_at, study_uid};
    use crate::dicom::SeriesUid;

    fn series(uid: &str, n: usize, step_mm: f64) -> Volume {
        let instances = (0..n).map(|i| instance_at(i, i as f64 * step_mm)).collect();
        place(study_uid(), SeriesUid::parse(uid).unwrap(), instances)
    }

    #[test]
    fn a_five_millimetre_series_is_preferred_to_a_thin_one_and_a_whole_head_to_a_part() {
        let (five, thin, part) = (series("1.1", 28, 5.0), series("1.2", 140, 1.0), series("1.3", 6, 5.0));
        assert_eq!(compare(&five, &thin), Ordering::Less);
        assert_eq!(compare(&thin, &five), Ordering::Greater);
        assert_eq!(compare(&thin, &part), Ordering::Less);
    }

    #[test]
    fn a_kernel_that_is_not_known_stands_behind_one_that_is() {
        let named = |uid: &str, n, step_mm, kernel: &str| {
            let mut volume = series(uid, n, step_mm);
            for slice in &mut volume.slices {
                std::sync::Arc::make_mut(&mut slice.instance.header).kernel = Some(kernel.into());
            }
            volume
        };
        let (map, plain) = (named("1.1", 28, 5.0, "IODINE"), named("1.2", 140, 1.0, "Hr38"));
        assert_eq!(compare(&plain, &map), Ordering::Less);
    }

    #[test]
    fn who_was_read_in_vain_makes_way_and_who_would_say_the_same_is_passed_over() {
        let (neck, head, thin) = (series("1.1", 60, 5.0), series("1.2", 28, 5.0), series("1.3", 140, 1.0));
        let best = |neck_why, head_why| {
            let of = |volume, in_vain| Candidate { volume, in_vain };
            let candidates = [of(&thin, None), of(&head, head_why), of(&neck, neck_why)];
            best(&candidates, 2_000).map(|v| v.series.as_str().to_owned())
        };
        assert_eq!(best(None, None).as_deref(), Some("1.1"));
        assert_eq!(best(Some(Why::NotHead), None).as_deref(), Some("1.2"));
        assert_eq!(best(Some(Why::NotHead), Some(Why::Undecodable)).as_deref(), Some("1.3"));
        assert_eq!(best(Some(Why::NotHead), Some(Why::NoBrainTissue)), None);
    }

    #[test]
    fn equal_series_are_told_apart_by_uid() {
        assert_eq!(compare(&series("1.1", 28, 5.0), &series("1.2", 28, 5.0)), Ordering::Less);
    }
}
