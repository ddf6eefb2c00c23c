//! Which slices of a volume are read, and which can be read before it is complete. Pure.
//!
//! Thin series are read in part. Slots (positions in units of the usual step) are numbered from the patient's origin,
//! not from the lowest slice, so that a slice arriving later moves nothing: `k` slots form a bin, and the lowest slice
//! of each bin is read.

use crate::assemble::geometry::usual_step_mm;
use crate::assemble::{PlacedSlice, Volume};

/// Neighbours further apart than this many usual steps may still get a slice in between.
const NEAR_STEPS: f64 = 1.5;

/// Part of a step at which the numbering of slots is cut.
const PHASE_CUT: f64 = 0.4142;

/// What can be read of a volume that is not complete.
pub(super) struct Ahead<'a> {
    /// The slices that would be read if no more came, caudal to cranial.
    pub slices: Vec<&'a PlacedSlice>,
    /// Positions in `slices` whose neighbours will most likely stay what they are.
    pub ready: Vec<usize>,
}

/// The slices that are read.
pub(super) fn slices(volume: &Volume, step_mm_min: f64) -> Vec<&PlacedSlice> {
    match Grid::of(volume, step_mm_min) {
        Some(grid) => grid.lowest_of_bins(volume).into_iter().map(|(_, slice)| slice).collect(),
        None => volume.slices.iter().collect(),
    }
}

/// What can be read already. `stays` says of the lowest and the highest slice whether it will probably stay the end.
pub(super) fn ahead(volume: &Volume, step_mm_min: f64, stays: [bool; 2]) -> Ahead<'_> {
    // Inner ones first: an end is the guess that is most often wrong.
    let order = |n: usize| {
        let ends =
            stays.into_iter().zip([0, n.saturating_sub(1)]).filter_map(|(stays, end)| stays.then_some(end));
        (1..n.saturating_sub(1)).chain(ends.filter(move |_| n > 1))
    };
    let Some(grid) = Grid::of(volume, step_mm_min) else {
        let usual_mm = usual_step_mm(&volume.steps_mm).unwrap_or(0.0);
        let near = |i: usize| volume.steps_mm.get(i).is_none_or(|step_mm| *step_mm <= NEAR_STEPS * usual_mm);
        let ready = order(volume.slices.len()).filter(|&i| near(i.wrapping_sub(1)) && near(i)).collect();
        return Ahead { slices: volume.slices.iter().collect(), ready };
    };
    let picked = grid.lowest_of_bins(volume);
    let lowest_slot = picked.first().map_or(0, |(slot, _)| *slot);
    let bin = |i: usize| picked[i].0.div_euclid(grid.slots_per_bin);
    // A pick stands once nothing lower can join its bin: it lies at the bin's foot, or slices below it have come.
    let stands = |i: usize| {
        let slot = picked[i].0;
        let at_foot = slot.rem_euclid(grid.slots_per_bin) == 0;
        at_foot || slot - lowest_slot >= grid.slots_per_bin || i == 0 && stays[0]
    };
    let settled = |i: usize| {
        let around = i.saturating_sub(1)..=(i + 1).min(picked.len() - 1);
        around.clone().all(stands)
            && bin(*around.end()) - bin(*around.start()) == (around.end() - around.start()) as i64
    };
    let ready = order(picked.len()).filter(|&i| settled(i)).collect();
    Ahead { slices: picked.into_iter().map(|(_, slice)| slice).collect(), ready }
}

/// Slots and bins of a thin series.
struct Grid {
    step_mm: f64,
    /// Where slot 0 lies between two steps from the patient's origin, as a part of a step.
    phase: f64,
    slots_per_bin: i64,
}

impl Grid {
    /// `None` if the usual step is wide enough: then every slice is read, overlaps and all.
    fn of(volume: &Volume, step_mm_min: f64) -> Option<Grid> {
        let step_mm = usual_step_mm(&volume.steps_mm).filter(|s| *s < step_mm_min - 1e-3)?;
        // The circular mean of where slices lie between steps; one odd slice does not turn it.
        let (sin, cos) = volume.slices.iter().fold((0.0, 0.0), |(sin, cos), slice| {
            let angle = std::f64::consts::TAU * slice.z_mm / step_mm;
            (sin + angle.sin(), cos + angle.cos())
        });
        let phase = sin.atan2(cos) / std::f64::consts::TAU;
        // The cut between two numberings lies where no scanner puts its slices; at one half every centred stack lies.
        let phase = if phase > PHASE_CUT { phase - 1.0 } else { phase };
        Some(Grid { step_mm, phase, slots_per_bin: (step_mm_min / step_mm - 1e-3).ceil() as i64 })
    }

    fn slot(&self, slice: &PlacedSlice) -> i64 {
        (slice.z_mm / self.step_mm - self.phase).round() as i64
    }

    fn lowest_of_bins<'a>(&self, volume: &'a Volume) -> Vec<(i64, &'a PlacedSlice)> {
        let mut picked: Vec<(i64, &PlacedSlice)> = Vec::new();
        for slice in &volume.slices {
            let slot = self.slot(slice);
            let bin = |slot: i64| slot.div_euclid(self.slots_per_bin);
            if picked.last().is_none_or(|(last, _)| bin(*last) != bin(slot)) {
                picked.push((slot, slice));
            }
        }
        picked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assemble::geometry::place;
    use crate::assemble::testing::{instance_at, series_uid, study_uid};

    fn volume(z_mm: impl IntoIterator<Item = f64>) -> Volume {
        let instances = z_mm.into_iter().enumerate().map(|(i, z)| instance_at(i, z)).collect();
        place(study_uid(), series_uid(), instances)
    }

    fn z(slices: &[&PlacedSlice]) -> Vec<f64> {
        slices.iter().map(|s| s.z_mm).collect()
    }

    #[test]
    fn a_series_of_usual_steps_is_read_in_full() {
        let volume = volume((0..10).map(|i| f64::from(i) * 2.5));
        assert_eq!(slices(&volume, 2.5).len(), 10);
        assert_eq!(ahead(&volume, 2.5, [false; 2]).ready, (1..9).collect::<Vec<_>>());
    }

    #[test]
    fn of_a_thin_series_one_slice_in_so_many_is_read_at_equal_steps() {
        for (step_mm, k) in [(1.0, 3.0), (0.625, 4.0), (0.5, 5.0), (1.25, 2.0), (2.0, 2.0)] {
            let volume = volume((0..200).map(|i| -7.3 + f64::from(i) * step_mm));
            let z = z(&slices(&volume, 2.5));
            let inner = &z[1..];
            assert!(
                inner.windows(2).all(|w| (w[1] - w[0] - k * step_mm).abs() < 1e-6),
                "step {step_mm}: {z:?}"
            );
        }
    }

    #[test]
    fn a_missing_slice_of_a_thin_series_costs_its_bin_one_step_at_most() {
        let all = volume((0..90).map(f64::from));
        let foot = z(&slices(&all, 2.5))[10];
        let without = volume((0..90).map(f64::from).filter(|z| *z != foot));
        assert_eq!(z(&slices(&without, 2.5))[10], foot + 1.0);
        assert_eq!(slices(&without, 2.5).len(), slices(&all, 2.5).len());
    }

    #[test]
    fn what_is_read_ahead_of_a_thin_series_is_what_its_complete_reading_needs() {
        let all: Vec<f64> = (0..90).map(|i| 11.4 + f64::from(i) * 0.75).collect();
        let complete = z(&slices(&volume(all.iter().copied()), 2.5));
        let is_needed =
            |w: [f64; 3]| complete.windows(3).any(|c| c.iter().zip(w).all(|(a, b)| (a - b).abs() < 1e-9));
        for descending in [false, true] {
            let mut arrived = Vec::new();
            let mut seen = 0;
            for i in 0..all.len() {
                arrived.push(if descending { all[all.len() - 1 - i] } else { all[i] });
                let volume = volume(arrived.iter().copied());
                let ahead = ahead(&volume, 2.5, [false; 2]);
                for &i in &ahead.ready {
                    let w = [ahead.slices[i - 1].z_mm, ahead.slices[i].z_mm, ahead.slices[i + 1].z_mm];
                    assert!(is_needed(w), "{w:?} of {complete:?}");
                }
                seen = ahead.ready.len();
            }
            assert!(seen + 3 >= complete.len(), "{seen} of {} read ahead", complete.len());
        }
    }

    #[test]
    fn a_slice_beside_a_gap_waits() {
        let volume = volume([0.0, 5.0, 10.0, 20.0, 25.0, 30.0]);
        assert_eq!(ahead(&volume, 2.5, [false; 2]).ready, [1, 4]);
        assert_eq!(ahead(&volume, 2.5, [true; 2]).ready, [1, 4, 0, 5]);
    }
}
