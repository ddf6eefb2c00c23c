//! Whole studies: a head, its decoys and its bleeds, with mask and labels. What trains a model and what tests use.

use crate::anatomy::Anatomy;
use crate::decoy::{self, Decoy};
use crate::paint::{Kind, Lesion, LesionSpec, paint};
use crate::rng::Rng;
use crate::volume::Volume;

/// A volume with what was put in it.
#[derive(Clone, Debug)]
pub struct Study {
    /// The image.
    pub volume: Volume,
    /// Class codes ([`Kind`] as u8), 0 where there is no bleed; of two kinds in one voxel the later one stands.
    pub mask: Vec<u8>,
    /// The bleeds, in order of painting.
    pub lesions: Vec<Lesion>,
    /// The decoys.
    pub decoys: Vec<Decoy>,
}

impl Study {
    /// A study of a head as it is.
    pub fn quiet(volume: Volume) -> Self {
        let mask = vec![0; volume.hu.len()];
        Study { volume, mask, lesions: Vec::new(), decoys: Vec::new() }
    }

    /// Paints a bleed and marks it.
    ///
    /// # Errors
    /// As [`paint`]; the study is then unchanged.
    pub fn bleed(
        &mut self,
        a: &Anatomy,
        spec: &LesionSpec,
        rng: &mut Rng,
    ) -> Result<(), crate::paint::PaintError> {
        let lesion = paint(&mut self.volume, a, spec, rng)?;
        for (m, &l) in self.mask.iter_mut().zip(&lesion.mask) {
            if l {
                *m = lesion.kind as u8;
            }
        }
        self.lesions.push(lesion);
        Ok(())
    }

    /// Per slice, whether each kind shows in the mask, in class order.
    pub fn labels(&self) -> Vec<[bool; 5]> {
        self.mask
            .chunks_exact(self.volume.nx * self.volume.ny)
            .map(|slice| Kind::ALL.map(|k| slice.contains(&(k as u8))))
            .collect()
    }

    /// Adds what chance brings: about 45 in 100 stay quiet, many with decoys; the rest get one to three bleeds.
    pub fn random(&mut self, a: &Anatomy, rng: &mut Rng) {
        let quiet = rng.chance(0.45);
        let count = match rng.unit() {
            u if u < 0.35 => 0,
            u if u < 0.75 => 1,
            u if u < 0.93 => 2,
            _ => 3,
        };
        let mut decoys: Vec<Decoy> = (0..count).map(|_| Decoy::ALL[rng.below(Decoy::ALL.len())]).collect();
        decoys.dedup();
        // Motion and streaks belong to the picture, so they come after the blood.
        let last = |d: &Decoy| matches!(d, Decoy::Motion | Decoy::Metal | Decoy::Beam);
        for &d in decoys.iter().filter(|d| !last(d)) {
            decoy::add(&mut self.volume, a, d, rng);
        }
        if !quiet {
            let mut want = match rng.unit() {
                u if u < 0.68 => 1,
                u if u < 0.92 => 2,
                _ => 3,
            };
            for _ in 0..12 {
                if want == 0 {
                    break;
                }
                let kind = Kind::ALL[rng.below(5)];
                // Twice the same film or lens is one bleed drawn oddly; brain may bleed in two places.
                if kind != Kind::Intraparenchymal && self.lesions.iter().any(|l| l.kind == kind) {
                    continue;
                }
                want -= usize::from(self.bleed(a, &LesionSpec::any(kind), rng).is_ok());
            }
        }
        for &d in decoys.iter().filter(|d| last(d)) {
            decoy::add(&mut self.volume, a, d, rng);
        }
        self.decoys.extend(decoys);
    }
}
