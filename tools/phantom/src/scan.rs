//! The scanner: samples a head on a grid with partial volume, kernel and noise.

use crate::field::soften_flat;
use crate::head::Head;
use crate::rng::Rng;
use crate::volume::Volume;

/// The grid and the look of a scan.
#[derive(Clone, Debug)]
pub struct ScanOptions {
    /// Rows and columns.
    pub matrix: usize,
    /// Side of the square field of view in millimetres.
    pub field_mm: f32,
    /// Slices.
    pub slices: usize,
    /// Slice step and thickness in millimetres.
    pub step_mm: f32,
    /// Gantry tilt in degrees: the column direction rises by this angle toward the back of the head, and slices
    /// still follow each other along the table.
    pub tilt_deg: f32,
    /// Standard deviation of noise in Hounsfield units.
    pub noise_hu: f32,
    /// Sharp (bone) kernel instead of a soft-tissue one.
    pub bone_kernel: bool,
}

impl Default for ScanOptions {
    fn default() -> Self {
        ScanOptions {
            matrix: 256,
            field_mm: 240.0,
            slices: 32,
            step_mm: 5.0,
            tilt_deg: 0.0,
            noise_hu: 3.0,
            bone_kernel: false,
        }
    }
}

/// Height of the middle of the grid above the middle of the cranium for a scan whose top clears the crown.
fn middle_mm(o: &ScanOptions, head: &Head) -> f32 {
    let top = 76.0 * head.size[2] + o.step_mm;
    top - (o.slices as f32 - 1.0) * o.step_mm / 2.0
}

/// Scans a head: the same head, options and seed give the same voxels.
pub fn scan(head: &Head, o: &ScanOptions, seed: u64) -> Volume {
    let pixel_mm = o.field_mm / o.matrix as f32;
    let mut v = Volume::filled(o.matrix, o.matrix, o.slices, pixel_mm, o.step_mm, -1000);
    let middle = middle_mm(o, head);
    let (tilt_sin, tilt_cos) = o.tilt_deg.to_radians().sin_cos();
    let parts = if o.step_mm > 3.0 { 3 } else { 2 };
    let mut hu = vec![0.0f32; v.hu.len()];
    for z in 0..v.nz {
        for y in 0..v.ny {
            for x in 0..v.nx {
                let p = v.mm(x, y, z);
                let mut sum = 0.0;
                for k in 0..parts {
                    let dz = ((k as f32 + 0.5) / parts as f32 - 0.5) * o.step_mm;
                    let value = head.hu([p[0], p[1] * tilt_cos, p[2] + dz + middle + p[1] * tilt_sin]);
                    sum += value;
                    // Open air above, below and beside needs no second look.
                    if k == 0 && value <= -1000.0 && p[0] * p[0] + p[1] * p[1] > 108.0 * 108.0 {
                        sum = value * parts as f32;
                        break;
                    }
                }
                hu[v.at(x, y, z)] = sum / parts as f32;
            }
        }
    }
    // Point spread: about 0.7 mm whatever the pixel.
    let a = if o.bone_kernel { 0.05 } else { (0.2 / (pixel_mm * pixel_mm)).min(0.24) };
    soften_flat(&mut hu, v.nx, v.ny, a);
    finish(&mut v, &mut hu, o, seed);
    v
}

/// Adds noise with the texture of the kernel and rounds to whole Hounsfield units.
pub(crate) fn finish(v: &mut Volume, hu: &mut [f32], o: &ScanOptions, seed: u64) {
    let mut rng = Rng::new(seed).fork(2);
    let n = v.nx * v.ny;
    let (a, passes) = if o.bone_kernel {
        (0.0, 0)
    } else if v.pixel_mm < 0.7 {
        (0.25, 2)
    } else {
        (0.17, 1)
    };
    for z in 0..v.nz {
        let mut noise: Vec<f32> = (0..n).map(|_| rng.normal()).collect();
        for _ in 0..passes {
            soften_flat(&mut noise, v.nx, v.ny, a);
        }
        let rms = (noise.iter().map(|v| v * v).sum::<f32>() / n as f32).sqrt().max(1e-6);
        let level = o.noise_hu * if o.bone_kernel { 6.0 } else { 1.0 } / rms;
        for (i, grain) in noise.iter().enumerate() {
            let j = z * n + i;
            let near_air = if hu[j] < -500.0 { 0.6 } else { 1.0 };
            v.hu[j] = (hu[j] + grain * level * near_air).round().clamp(-1024.0, 3071.0) as i16;
        }
    }
}
