//! What is where in a head CT, found from Hounsfield units alone, so that it works on a phantom and on a person.
//!
//! Terms: *inside* is the space within the skull, sealed against sutures and foramina; *depth* is the distance from
//! its boundary; the *midline* is a vertical plane found by mirror symmetry. It names no structures beyond these.

use crate::field::{FAR_MM, blur_flat, distance_mm, parts};
use crate::rng::smooth;
use crate::volume::Volume;

/// Masks and distances of one head, on the grid of its volume.
#[derive(Clone, Debug)]
pub struct Anatomy {
    /// Bone and metal.
    pub bone: Vec<bool>,
    /// Space within the skull.
    pub inside: Vec<bool>,
    /// Distance in millimetres from the boundary of `inside`; 0 outside.
    pub depth_mm: Vec<f32>,
    /// Fluid share of each voxel within the skull, 0 to 1.
    pub fluid: Vec<f32>,
    /// Ventricles: deep fluid near the midline.
    pub ventricle: Vec<bool>,
    /// Middle Hounsfield value of brain.
    pub brain_hu: f32,
    /// Centre of `inside` in grid millimetres.
    pub centre_mm: [f32; 3],
    /// Lowest and highest slice with `inside`.
    pub slices: (usize, usize),
    /// Half the width (x), half the length (y) and the height above the lowest slice (z) in millimetres.
    pub extent_mm: [f32; 3],
    step_mm: f32,
    mid: (f32, f32, f32),
}

/// Why no anatomy could be found.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AnatomyError {
    /// No closed skull with brain in it.
    #[error("no closed skull with brain inside")]
    NoBrain,
}

impl Anatomy {
    /// Finds the anatomy of a head.
    ///
    /// # Errors
    /// [`AnatomyError::NoBrain`] when no slice shows a skull closed around at least 15 cm² of brain.
    pub fn from_volume(v: &Volume) -> Result<Self, AnatomyError> {
        let mut smoothed: Vec<f32> = v.hu.iter().map(|&h| f32::from(h).clamp(-200.0, 300.0)).collect();
        blur_flat(&mut smoothed, v.nx, v.ny, (1.0 / v.pixel_mm).round().max(1.0) as usize, 1);
        let bone: Vec<bool> = v.hu.iter().map(|&h| h > 150).collect();
        let inside = inside(v, &bone, &smoothed);
        let count = inside.iter().filter(|&&i| i).count();
        if (count as f32) * v.voxel_ml() < 60.0 {
            return Err(AnatomyError::NoBrain);
        }
        let outside: Vec<bool> = inside.iter().map(|&i| !i).collect();
        let mut depth_mm = distance_mm(v, &outside, false);
        // The grid's own faces are no boundary, but a volume full of brain would be endless.
        depth_mm.iter_mut().for_each(|d| *d = (*d - v.pixel_mm / 2.0).clamp(0.0, 90.0));
        let brain_hu = brain_hu(&smoothed, &depth_mm);
        let fluid: Vec<f32> = smoothed
            .iter()
            .zip(&inside)
            .map(|(&h, &i)| if i && h > -40.0 { smooth(brain_hu - 9.0, brain_hu - 22.0, h) } else { 0.0 })
            .collect();
        let mut a = Anatomy {
            bone,
            inside,
            depth_mm,
            fluid,
            ventricle: Vec::new(),
            brain_hu,
            centre_mm: [0.0; 3],
            slices: (0, 0),
            extent_mm: [0.0; 3],
            step_mm: v.step_mm,
            mid: (1.0, 0.0, 0.0),
        };
        a.measure(v);
        a.mid = midline(v, &a);
        a.ventricle = a.ventricles(v);
        Ok(a)
    }

    /// Signed distance in millimetres from the midline plane, positive to the left of the patient.
    pub fn left_mm(&self, p: [f32; 3]) -> f32 {
        p[0] * self.mid.0 + p[1] * self.mid.1 - self.mid.2
    }

    /// Distance in millimetres toward the back of the patient from the centre, along the midline.
    pub fn back_mm(&self, p: [f32; 3]) -> f32 {
        (p[1] - self.centre_mm[1]) * self.mid.0 - (p[0] - self.centre_mm[0]) * self.mid.1
    }

    /// Height as a share of the cranium, about 0 at the foramen magnum and 1 at the crown, measured down from the
    /// crown because scans begin anywhere.
    pub fn height(&self, z: usize) -> f32 {
        1.0 - (self.slices.1 as f32 - z as f32) * self.step_mm / self.tall_mm()
    }

    /// Height of the cranium guessed from its width and length, millimetres.
    pub fn tall_mm(&self) -> f32 {
        0.95 * self.extent_mm[0] + 0.75 * self.extent_mm[1]
    }

    /// The fractional slice at a height.
    pub fn slice_at(&self, height: f32) -> f32 {
        self.slices.1 as f32 - (1.0 - height) * self.tall_mm() / self.step_mm
    }

    /// Whether the falx runs here: near the vault, and everywhere above the ventricles.
    pub fn falx(&self, p: [f32; 3], i: usize, z: usize) -> bool {
        let back = self.back_mm(p) / self.extent_mm[1];
        let high = self.height(z);
        high > 0.4 && self.depth_mm[i] < 30.0 && (back.abs() > 0.42 || high > 0.7)
    }

    fn measure(&mut self, v: &Volume) {
        let (mut sum, mut n) = ([0.0f64; 3], 0.0f64);
        let (mut lo, mut hi) = ([f32::MAX; 3], [f32::MIN; 3]);
        let (mut first, mut last) = (v.nz, 0);
        for z in 0..v.nz {
            for y in 0..v.ny {
                for x in 0..v.nx {
                    if self.inside[v.at(x, y, z)] {
                        let p = v.mm(x, y, z);
                        for k in 0..3 {
                            sum[k] += f64::from(p[k]);
                            lo[k] = lo[k].min(p[k]);
                            hi[k] = hi[k].max(p[k]);
                        }
                        n += 1.0;
                        first = first.min(z);
                        last = last.max(z);
                    }
                }
            }
        }
        self.centre_mm = sum.map(|s| (s / n.max(1.0)) as f32);
        self.slices = (first.min(last), last);
        self.extent_mm = [(hi[0] - lo[0]) / 2.0, (hi[1] - lo[1]) / 2.0, hi[2] - lo[2]];
    }

    fn ventricles(&self, v: &Volume) -> Vec<bool> {
        let mut mask = vec![false; v.hu.len()];
        for z in 0..v.nz {
            let h = self.height(z);
            if !(0.22..0.82).contains(&h) {
                continue;
            }
            for y in 0..v.ny {
                for x in 0..v.nx {
                    let i = v.at(x, y, z);
                    let p = v.mm(x, y, z);
                    let deep = self.depth_mm[i] > 0.3 * self.extent_mm[0];
                    let near = self.left_mm(p).abs() < 0.55 * self.extent_mm[0];
                    let back = self.back_mm(p) / self.extent_mm[1];
                    // Low and central before the stem is cistern, not ventricle.
                    let cistern = h < 0.38 && back < 0.1 && self.left_mm(p).abs() < 0.3 * self.extent_mm[0];
                    mask[i] =
                        self.fluid[i] > 0.45 && deep && near && !cistern && (-0.6..0.75).contains(&back);
                }
            }
        }
        let (label, sizes) = parts(v, &mask, false);
        let least = (0.12 / v.voxel_ml()) as usize;
        label.iter().map(|&l| l > 0 && sizes[l as usize] > least).collect()
    }
}

/// Median of smoothed tissue well inside the skull.
fn brain_hu(smoothed: &[f32], depth: &[f32]) -> f32 {
    let mut bins = [0usize; 100];
    for (&h, &d) in smoothed.iter().zip(depth) {
        if d > 6.0 && (0.0..100.0).contains(&h) {
            bins[h as usize] += 1;
        }
    }
    let half = bins.iter().sum::<usize>() / 2;
    let mut seen = 0;
    for (h, n) in bins.iter().enumerate() {
        seen += n;
        if seen > half {
            return h as f32 + 0.5;
        }
    }
    33.0
}

/// Closes the skull slice by slice, then follows the brain up and down from its widest slice.
fn inside(v: &Volume, bone: &[bool], smoothed: &[f32]) -> Vec<bool> {
    let area_px = |mm2: f32| (mm2 / (v.pixel_mm * v.pixel_mm)) as usize;
    let mut best = vec![false; bone.len()];
    // A wide seal bridges sutures and canals; a narrow one keeps corners. Take what either closes.
    let near = distance_mm(v, bone, true);
    let n = v.nx * v.ny;
    for seal_mm in [2.0f32, 5.0, 9.0, 16.0, 22.0] {
        let mut core = closed(v, &near, seal_mm);
        if seal_mm > 10.0 {
            // The widest seal, for fontanelles and missing flaps, only where nothing narrower closed.
            for z in 0..v.nz {
                let found = best[z * n..(z + 1) * n].iter().filter(|&&b| b).count();
                if found > area_px(2500.0) {
                    core[z * n..(z + 1) * n].fill(false);
                }
            }
        }
        // Grow back to the bone, no farther than the seal took away.
        let back = distance_mm(v, &core, true);
        for i in 0..bone.len() {
            best[i] |= !bone[i] && back[i] <= seal_mm + v.pixel_mm;
        }
    }
    let tissue: Vec<bool> =
        best.iter().zip(smoothed).map(|(&b, &h)| b && (-25.0..140.0).contains(&h)).collect();
    let opened = open_flat(v, &tissue, 3.5);
    follow(v, &opened, &tissue, area_px(1500.0), area_px(500.0))
}

/// What bone, thickened by a seal, shuts off from the edge of each slice.
fn closed(v: &Volume, near_bone_mm: &[f32], seal_mm: f32) -> Vec<bool> {
    let free: Vec<bool> = near_bone_mm.iter().map(|&d| d > seal_mm).collect();
    let (label, _) = parts(v, &free, true);
    let n = v.nx * v.ny;
    let mut core = vec![false; free.len()];
    for z in 0..v.nz {
        let l = &label[z * n..(z + 1) * n];
        let mut open = std::collections::HashSet::new();
        for x in 0..v.nx {
            open.insert(l[x]);
            open.insert(l[n - 1 - x]);
        }
        for y in 0..v.ny {
            open.insert(l[y * v.nx]);
            open.insert(l[(y + 1) * v.nx - 1]);
        }
        for i in 0..n {
            core[z * n + i] = l[i] != 0 && !open.contains(&l[i]);
        }
    }
    core
}

/// Erosion then dilation in the slice: drops thin strips such as the marrow and the soft tissue between face bones.
fn open_flat(v: &Volume, mask: &[bool], radius_mm: f32) -> Vec<bool> {
    let outside: Vec<bool> = mask.iter().map(|&m| !m).collect();
    let d = distance_mm(v, &outside, true);
    let core: Vec<bool> = d.iter().map(|&d| d > radius_mm && d < FAR_MM).collect();
    let back = distance_mm(v, &core, true);
    back.iter().zip(mask).map(|(&d, &m)| m && d <= radius_mm + v.pixel_mm).collect()
}

/// Starts at the slice with the largest part and takes in each next slice the parts that lie under the last ones.
fn follow(v: &Volume, opened: &[bool], tissue: &[bool], seed_px: usize, part_px: usize) -> Vec<bool> {
    let n = v.nx * v.ny;
    let (label, sizes) = parts(v, opened, true);
    let mut out = vec![false; opened.len()];
    let largest = (0..n * v.nz).filter(|&i| label[i] > 0).max_by_key(|&i| sizes[label[i] as usize]);
    let Some(largest) = largest else { return out };
    if sizes[label[largest] as usize] < seed_px {
        return out;
    }
    let seed = largest / n;
    let take = |z: usize, from: Option<usize>, out: &mut Vec<bool>| {
        let mut keep = std::collections::HashMap::<u32, usize>::new();
        for i in 0..n {
            let l = label[z * n + i];
            let under = from.is_none_or(|f| out[f * n + i]);
            if l > 0 && under {
                *keep.entry(l).or_default() += 1;
            }
        }
        let most = keep.keys().map(|&l| sizes[l as usize]).max().unwrap_or(0);
        for i in 0..n {
            let l = label[z * n + i];
            if l > 0 {
                let size = sizes[l as usize];
                let shared = keep.get(&l).copied().unwrap_or(0);
                let whole = if from.is_none() { size == most } else { shared * 10 > size * 6 };
                out[z * n + i] = tissue[z * n + i] && whole && (size >= part_px || size == most);
            }
        }
    };
    take(seed, None, &mut out);
    for z in seed + 1..v.nz {
        take(z, Some(z - 1), &mut out);
    }
    for z in (0..seed).rev() {
        take(z, Some(z + 1), &mut out);
    }
    out
}

/// The vertical plane of best mirror symmetry of skull and brain: (cos, sin, offset) of its left-pointing normal.
fn midline(v: &Volume, a: &Anatomy) -> (f32, f32, f32) {
    let c = a.centre_mm;
    let mut points = Vec::new();
    let stride = (3.0 / v.pixel_mm).round().max(1.0) as usize;
    let (lo, hi) = a.slices;
    let span = hi - lo;
    for z in [lo + span / 3, lo + span / 2, lo + span * 2 / 3] {
        for y in (0..v.ny).step_by(stride) {
            for x in (0..v.nx).step_by(stride) {
                let i = v.at(x, y, z);
                if a.inside[i] && a.depth_mm[i] < 12.0 || a.fluid[i] > 0.5 {
                    points.push((v.mm(x, y, z), z, a.depth_mm[i], a.fluid[i]));
                }
            }
        }
    }
    let mut best = (f32::MAX, (1.0, 0.0, c[0]));
    for step in -24i32..=24 {
        let angle = step as f32 * 1.25f32.to_radians();
        let (s, k) = angle.sin_cos();
        for shift in -6i32..=6 {
            let offset = c[0] * k + c[1] * s + shift as f32 * 1.2;
            let mut cost = 0.0;
            for &(p, z, depth, fluid) in &points {
                let d = p[0] * k + p[1] * s - offset;
                let q = [p[0] - 2.0 * d * k, p[1] - 2.0 * d * s];
                let x = (q[0] / v.pixel_mm + (v.nx as f32 - 1.0) / 2.0).round();
                let y = (q[1] / v.pixel_mm + (v.ny as f32 - 1.0) / 2.0).round();
                let inside = x >= 0.0 && y >= 0.0 && x < v.nx as f32 && y < v.ny as f32;
                let j = if inside { Some(v.at(x as usize, y as usize, z)) } else { None };
                cost += match j {
                    Some(j) if a.inside[j] => {
                        ((depth - a.depth_mm[j]).abs() / 6.0).min(1.0) + 0.3 * (fluid - a.fluid[j]).abs()
                    }
                    _ => 1.2,
                };
            }
            // The head is longer than wide and seldom turned far: of equals, take the straighter.
            cost *= 1.0 + 0.002 * step.unsigned_abs() as f32;
            if cost < best.0 {
                best = (cost, (k, s, offset));
            }
        }
    }
    best.1
}
