//! Of several series of one study, which one is read. Pure.
//!
//! The rule, in order: no contrast agent before contrast; at least [`COVERAGE_MIN_MM`] of head before less; steps of
//! 2.5 to 6 mm (what the models were trained on) before thinner before thicker; then the greater coverage; then the
//! smaller Series Instance UID, so that the answer never depends on the order of arrival.

use std::cmp::Ordering;

use super::geometry::usual_step_mm;
use super::{Flag, Volume};
use crate::decide::suitability;

/// Less than this is a part of a head.
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
        (v.flags.contains(&Flag::Contrast), v.coverage_mm() < COVERAGE_MIN_MM, thickness)
    };
    class(a).cmp(&class(b)).then(b.coverage_mm().total_cmp(&a.coverage_mm())).then(a.series.cmp(&b.series))
}

/// The series to read among those of one study that are suitable by their headers.
pub fn best<'a>(volumes: impl Iterator<Item = &'a Volume>, slices_max: usize) -> Option<&'a Volume> {
    volumes.filter(|v| suitability::by_headers(v, slices_max).is_ok()).min_by(|a, b| compare(a, b))
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
    fn equal_series_are_told_apart_by_uid() {
        assert_eq!(compare(&series("1.1", 28, 5.0), &series("1.2", 28, 5.0)), Ordering::Less);
    }
}
