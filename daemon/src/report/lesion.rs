//! The lesion map on its way to the PACS: what the reader saw of the suspected slices, kept with the report that waits.
//!
//! A verdict holds no map, and a report may be sent long after the reading. Only slices on which the map shows something
//! are kept, one byte for each cell; a head takes some tens of kilobytes, and goes when the report is settled.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::assemble::Volume;
use crate::decide::{Finding, place_of};
use crate::dicom::{SliceId, SopInstanceUid};
use crate::infer::reader::MAP_THRESHOLD;
use crate::infer::{LesionMap, Reading};

/// The maps of the suspected slices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lesion {
    /// Side of the square that a map covers, mm, centred on the image.
    pub field_mm: f64,
    /// Side of the grid, cells.
    px: usize,
    /// Caudal to cranial.
    slices: Vec<Slice>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Slice {
    sop_uid: SopInstanceUid,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    frame: Option<u32>,
    /// Base 64 of [px x px] probabilities, 0 to 255.
    map: String,
}

impl Lesion {
    /// What a finding's slices show; `None` where the map shows nothing.
    pub fn of(reading: &Reading, volume: &Volume, finding: &Finding, field_mm: f64) -> Option<Self> {
        let [first, last] = finding.slice_range;
        let slices: Vec<Slice> = reading
            .slices
            .iter()
            .filter(|s| (first..=last).contains(&place_of(volume, s)))
            .filter(|s| s.map.p.iter().any(|p| *p >= MAP_THRESHOLD))
            .map(|s| {
                let cells: Vec<u8> = s.map.p.iter().map(|p| (p * 255.0).round() as u8).collect();
                let SliceId { sop, frame } = s.slice.clone();
                Slice { sop_uid: sop, frame, map: STANDARD.encode(cells) }
            })
            .collect();
        let px = reading.slices.first()?.map.px;
        (!slices.is_empty()).then_some(Lesion { field_mm, px, slices })
    }

    /// Every slice with its map; one that cannot be read back is left out.
    pub fn maps(&self) -> impl Iterator<Item = (SliceId, LesionMap)> {
        self.slices.iter().filter_map(|s| {
            let cells = STANDARD.decode(&s.map).ok().filter(|c| c.len() == self.px * self.px)?;
            let p = cells.into_iter().map(|c| f32::from(c) / 255.0).collect();
            Some((SliceId { sop: s.sop_uid.clone(), frame: s.frame }, LesionMap { px: self.px, p }))
        })
    }
}
