//! Mass effect: the brain is pushed aside by what is painted, within the slice.
//!
//! Each voxel is fetched from where its tissue was before; a voxel whose source would leave the skull is left alone.

use crate::anatomy::Anatomy;
use crate::field::{blur_flat, distance_mm};
use crate::volume::Volume;

/// How the brain gives way.
#[derive(Clone, Copy, Debug)]
pub enum Push {
    /// Not at all.
    None,
    /// Inward from the inner table, by the local thickness of the bleed.
    Inward,
    /// Outward from a centre (grid millimetres), as a ball of this radius in millimetres would.
    Ball([f32; 3], f32),
}

/// Displaces the brain around `share`.
pub fn push(v: &mut Volume, a: &Anatomy, share: &[f32], how: &Push) {
    match how {
        Push::None => {}
        Push::Ball(c, r) => ball(v, a, *c, *r),
        Push::Inward => inward(v, a, share),
    }
}

fn ball(v: &mut Volume, a: &Anatomy, c: [f32; 3], r: f32) {
    let from = v.clone();
    for z in 0..v.nz {
        for y in 0..v.ny {
            for x in 0..v.nx {
                let i = v.at(x, y, z);
                let depth = a.depth_mm[i];
                if !a.inside[i] || depth < 1.0 {
                    continue;
                }
                let p = v.mm(x, y, z);
                let d = [p[0] - c[0], p[1] - c[1], p[2] - c[2]];
                let len = (d[0] * d[0] + d[1] * d[1] + d[2] * d[2]).sqrt().max(0.5);
                if len > r * 6.0 {
                    continue;
                }
                // An incompressible ball of volume r^3, fading at the skull, which does not give.
                let source = (len.powi(3) - r.powi(3)).max(0.0).cbrt();
                let move_mm =
                    (len - source).min(len * 0.9) * (depth / (depth + 0.4 * r)) * (1.0 - len / (r * 6.0));
                let k = 1.0 - move_mm / len;
                fetch(v, a, &from, i, [c[0] + d[0] * k, c[1] + d[1] * k], z);
            }
        }
    }
}

fn inward(v: &mut Volume, a: &Anatomy, share: &[f32]) {
    // Thickness at the nearest blood: the largest depth of blood, spread sideways by blurring.
    let mask: Vec<bool> = share.iter().map(|&w| w >= 0.5).collect();
    if !mask.iter().any(|&m| m) {
        return;
    }
    let thick = thickness(v, a, &mask);
    let near = distance_mm(v, &mask, true);
    let mut depth: Vec<f32> = a.depth_mm.clone();
    blur_flat(&mut depth, v.nx, v.ny, (3.0 / v.pixel_mm).round().max(1.0) as usize, 2);
    let from = v.clone();
    for z in 0..v.nz {
        for y in 1..v.ny.saturating_sub(1) {
            for x in 1..v.nx.saturating_sub(1) {
                let i = v.at(x, y, z);
                let t = thick[i];
                if !a.inside[i] || mask[i] || t < 0.3 {
                    continue;
                }
                let g = [depth[i + 1] - depth[i - 1], depth[i + v.nx] - depth[i - v.nx]];
                let len = (g[0] * g[0] + g[1] * g[1]).sqrt();
                if len < 1e-3 {
                    continue;
                }
                let fade = (28.0f32).max(t * 2.2);
                let move_mm = t * 0.85 * (-near[i] / fade).exp() * (len / v.pixel_mm).min(1.0);
                let p = v.mm(x, y, z);
                let to = [p[0] - g[0] / len * move_mm, p[1] - g[1] / len * move_mm];
                fetch(v, a, &from, i, to, z);
            }
        }
    }
}

/// Local thickness of a surface bleed in millimetres, spread smoothly over the slice near it.
fn thickness(v: &Volume, a: &Anatomy, mask: &[bool]) -> Vec<f32> {
    let mut weight: Vec<f32> = mask.iter().map(|&m| f32::from(u8::from(m))).collect();
    let mut sum: Vec<f32> =
        mask.iter().zip(&a.depth_mm).map(|(&m, &d)| if m { 2.0 * d } else { 0.0 }).collect();
    let reach = (12.0 / v.pixel_mm).round().max(1.0) as usize;
    blur_flat(&mut weight, v.nx, v.ny, reach, 3);
    blur_flat(&mut sum, v.nx, v.ny, reach, 3);
    sum.iter().zip(&weight).map(|(&s, &w)| s / (w + 0.004) * (w / (w + 0.02))).collect()
}

/// Sets a voxel to the value at a grid position in its slice, if that lies inside the skull.
fn fetch(v: &mut Volume, a: &Anatomy, from: &Volume, i: usize, to: [f32; 2], z: usize) {
    let fx = to[0] / v.pixel_mm + (v.nx as f32 - 1.0) / 2.0;
    let fy = to[1] / v.pixel_mm + (v.ny as f32 - 1.0) / 2.0;
    if fx < 0.0 || fy < 0.0 || fx >= v.nx as f32 - 1.0 || fy >= v.ny as f32 - 1.0 {
        return;
    }
    let (x0, y0) = (fx as usize, fy as usize);
    let (u, w) = (fx - x0 as f32, fy - y0 as f32);
    let at = |x: usize, y: usize| {
        let j = from.at(x, y, z);
        a.inside[j].then(|| f32::from(from.hu[j]))
    };
    let (Some(a0), Some(a1), Some(b0), Some(b1)) =
        (at(x0, y0), at(x0 + 1, y0), at(x0, y0 + 1), at(x0 + 1, y0 + 1))
    else {
        return;
    };
    let top = a0 + (a1 - a0) * u;
    let low = b0 + (b1 - b0) * u;
    v.hu[i] = (top + (low - top) * w).round() as i16;
}
