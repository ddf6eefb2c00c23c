//! What was already computed of one series. A cache: it can make a reading faster, never different.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Tissue;
use super::backend::BaseOutput;
use super::preprocess::Plane;
use crate::assemble::{PlacedSlice, Volume};
use crate::dicom::SliceId;

/// Planes kept per series, bytes; a plane beyond that is decoded again when it is needed again.
const PLANES_BYTES_MAX: usize = 48 << 20;

/// A slice with the neighbours it was read with.
pub(super) type Triple = (SliceId, SliceId, SliceId);

/// The triple of position `i`; at the ends a slice is its own neighbour.
pub(super) fn triple(chosen: &[&PlacedSlice], i: usize) -> Triple {
    (id(chosen[i.saturating_sub(1)]), id(chosen[i]), id(chosen[(i + 1).min(chosen.len() - 1)]))
}

pub(super) fn id(slice: &PlacedSlice) -> SliceId {
    slice.instance.header.id()
}

/// One slice on the network's grid and what it is made of.
#[derive(Debug)]
pub(super) struct PlaneAndTissue {
    pub hu: Plane,
    pub tissue: Tissue,
}

/// The two ends of the stack as slices arrive. An end that stays while others come is probably the end.
#[derive(Debug, Default)]
pub(super) struct Ends {
    n_slices: usize,
    lowest: Option<SliceId>,
    highest: Option<SliceId>,
    stays: [bool; 2],
}

impl Ends {
    /// Whether the lowest and the highest slice stayed when the last slice arrived.
    pub fn stay(&mut self, volume: &Volume) -> [bool; 2] {
        if volume.slices.len() != self.n_slices {
            let [lowest, highest] = [volume.slices.first(), volume.slices.last()].map(|s| s.map(id));
            self.stays = [lowest == self.lowest, highest == self.highest];
            (self.n_slices, self.lowest, self.highest) = (volume.slices.len(), lowest, highest);
        }
        self.stays
    }
}

/// What was already computed of one series, keyed by slice and by slice with its neighbours.
#[derive(Debug, Default)]
pub struct SeriesCache {
    /// Only those that a later slice may still need.
    pub(super) planes: HashMap<SliceId, Arc<PlaneAndTissue>>,
    pub(super) tissue: HashMap<SliceId, Tissue>,
    pub(super) base: HashMap<Triple, Arc<BaseOutput>>,
    pub(super) ends: Ends,
    /// Which of the reader's backends computed `base`.
    pub(super) backend: usize,
}

impl SeriesCache {
    /// Base outputs computed so far, outdated ones too.
    pub fn n_read(&self) -> usize {
        self.base.len()
    }

    /// Memory held, bytes, within a few per cent.
    pub fn bytes(&self) -> usize {
        let plane = self.planes.values().map(|p| 4 * p.hu.len()).sum::<usize>();
        let base = self.base.values().map(|b| 4 * (b.features.len() + b.map.len()) + 400).sum::<usize>();
        plane + base + 200 * self.tissue.len()
    }

    /// Holds about so many bytes.
    #[cfg(test)]
    pub(super) fn fill_for_test(&mut self, bytes: usize) {
        let sop = crate::dicom::SopInstanceUid::parse("1.2.3");
        let sop = SliceId { sop: sop.unwrap_or_else(|e| unreachable!("constant: {e}")), frame: None };
        let plane = PlaneAndTissue { hu: vec![0.0; bytes / 4], tissue: Tissue::default() };
        self.planes.insert(sop, Arc::new(plane));
    }

    /// The series is read: a slice that comes all the same pays for its neighbours again. Held for hours among what
    /// comes and goes, planes would also keep the heap in pieces.
    pub(super) fn let_planes_go(&mut self) {
        self.planes = HashMap::new();
    }

    /// Keeps of the given planes those that a slice still to come, or one not yet read, may need.
    pub(super) fn keep_planes(&mut self, chosen: &[&PlacedSlice], planes: Vec<Option<Arc<PlaneAndTissue>>>) {
        let last = chosen.len().saturating_sub(1);
        let read: HashSet<usize> =
            (0..chosen.len()).filter(|&i| self.base.contains_key(&triple(chosen, i))).collect();
        let wanted = |j: usize| {
            let settled = (j.saturating_sub(1)..=(j + 1).min(last)).all(|i| read.contains(&i));
            // A slice may yet come below the lowest or above the highest.
            !settled || j <= 1 || j + 1 >= last
        };
        let mut kept = HashMap::new();
        let mut bytes = 0;
        for (j, plane) in planes.into_iter().enumerate() {
            let plane = plane.or_else(|| self.planes.remove(&id(chosen[j])));
            if let Some(plane) = plane.filter(|_| wanted(j)) {
                bytes += 4 * plane.hu.len();
                if bytes <= PLANES_BYTES_MAX {
                    kept.insert(id(chosen[j]), plane);
                }
            }
        }
        self.planes = kept;
    }
}
