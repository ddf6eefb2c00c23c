//! Subarachnoid blood: what fluid there is in sulci and cisterns turns bright.

use super::{LesionSpec, PaintError, Push, Shape, distance, fit, pick, side_sign, slice_of, volume_or};
use crate::anatomy::Anatomy;
use crate::rng::{Noise, Rng, smooth};
use crate::volume::Volume;

pub(super) fn subarachnoid(
    v: &Volume,
    a: &Anatomy,
    spec: &LesionSpec,
    rng: &mut Rng,
) -> Result<Shape, PaintError> {
    let room = PaintError::NoRoom("subarachnoid");
    let side = side_sign(spec, rng);
    let basal = spec.side.is_none() && rng.chance(0.35);
    let e = a.extent_mm;
    let c = if basal {
        let z = a.slice_at(rng.range(0.27, 0.4));
        let mut p = a.centre_mm;
        p[1] -= e[1] * rng.range(0.05, 0.2);
        p[2] = (z - (v.nz as f32 - 1.0) / 2.0) * v.step_mm;
        p
    } else {
        let low = rng.range(0.25, 0.6);
        pick(v, a, rng, &|p, i| {
            let h = a.height(slice_of(v, p));
            (4.0..16.0).contains(&a.depth_mm[i]) && a.left_mm(p) * side > 0.18 * e[0] && h > low && h < 0.9
        })
        .ok_or(room.clone())?
    };
    let noise = Noise(rng.bits() as u32);
    let fold = Noise(rng.bits() as u32);
    let mut wanted = volume_or(spec, rng, 1.5, if basal { 25.0 } else { 16.0 });
    let one_side = !basal;
    // Fluid that can be seen, or, in tight young brains, thin folds where sulci must be.
    let n = v.nx * v.ny;
    let wet = |i: usize, p: [f32; 3]| -> f32 {
        if a.ventricle[i] {
            return 0.0;
        }
        let mut f = a.fluid[i];
        for j in [i.wrapping_sub(1), i + 1, i.wrapping_sub(v.nx), i + v.nx] {
            f = f.max(a.fluid.get(j).copied().unwrap_or(0.0) * 0.75);
        }
        let depth = a.depth_mm[i];
        // Folds run inward from the surface: noise is read where the ray from the middle meets the skull.
        let d = [p[0] - a.centre_mm[0], p[1] - a.centre_mm[1], p[2] - a.centre_mm[2]];
        let k = 1.0 + depth / distance(d, [0.0; 3]).max(1.0);
        let sheet = (fold.mm(d.map(|d| d * k), 15.0) + 0.25 * noise.mm(p, 8.0)).abs() * 8.0;
        let thin = smooth(1.5, 0.4, sheet) * smooth(20.0, 12.0, depth) * if basal { 0.0 } else { 0.8 };
        let film = smooth(1.9, 0.8, depth) * if basal { 0.0 } else { 0.45 };
        let shallow = if basal { 1.0 } else { smooth(28.0, 20.0, depth) };
        (f * shallow).max(thin).max(film)
    };
    let share = |v: &Volume, r: f32| {
        let mut out = vec![0.0; v.hu.len()];
        for z in 0..v.nz {
            for y in 0..v.ny {
                for x in 0..v.nx {
                    let i = z * n + y * v.nx + x;
                    if !a.inside[i] {
                        continue;
                    }
                    let p = v.mm(x, y, z);
                    let q =
                        [(p[0] - c[0]) / if basal { 1.3 } else { 1.0 }, p[1] - c[1], (p[2] - c[2]) * 1.15];
                    let d = distance(q, [0.0; 3]) + 7.0 * noise.mm(p, 16.0);
                    if d > r || (one_side && a.left_mm(p) * side < -1.0) {
                        continue;
                    }
                    out[i] = wet(i, p) * smooth(r, r - 7.0, d);
                }
            }
        }
        out
    };
    if spec.volume_ml.is_none() {
        wanted = wanted.min(0.7 * share(v, 85.0).iter().sum::<f32>() * v.voxel_ml());
        if wanted < 1.0 {
            return Err(room);
        }
    }
    let share = fit(v, wanted, 5.0, 85.0, &share).ok_or(room)?;
    Ok(Shape {
        share,
        hu: rng.range(54.0, 76.0),
        second_hu: None,
        texture_hu: 3.0,
        push: Push::None,
        rim_mm: 0.0,
        form: if basal { "cisternal" } else { "sulcal" },
        floor_hu: if spec.plain { 12.0 } else { 7.0 },
    })
}
