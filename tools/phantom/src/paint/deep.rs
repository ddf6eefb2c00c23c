//! Bleeds inside the brain: in its tissue and in the ventricles.

use super::{
    LesionSpec, PaintError, Push, Shape, Side, distance, fit, pick, shares, side_sign, slice_of, volume_or,
};
use crate::anatomy::Anatomy;
use crate::rng::{Noise, Rng, smooth};
use crate::volume::Volume;

pub(super) fn intraventricular(
    v: &Volume,
    a: &Anatomy,
    spec: &LesionSpec,
    rng: &mut Rng,
) -> Result<Shape, PaintError> {
    let room = PaintError::NoRoom("intraventricular");
    let one = match spec.side {
        Some(Side::Left) => 1.0,
        Some(Side::Right) => -1.0,
        _ => 0.0,
    };
    let all: Vec<usize> = (0..v.hu.len())
        .filter(|&i| {
            let p = v.mm(i % v.nx, i / v.nx % v.ny, i / (v.nx * v.ny));
            a.ventricle[i] && a.left_mm(p) * one >= 0.0
        })
        .collect();
    let full_ml = all.iter().map(|&i| a.fluid[i]).sum::<f32>() * v.voxel_ml();
    if full_ml < 0.8 {
        return Err(room);
    }
    let cast = !spec.plain && rng.chance(0.3);
    let wanted = volume_or(spec, rng, 0.8, (full_ml * 0.6).max(1.0));
    let tilt = rng.range(-0.15, 0.15);
    let noise = Noise(rng.bits() as u32);
    let cast_from = pick(v, a, rng, &|_, i| a.ventricle[i]).unwrap_or(a.centre_mm);
    let swell = rng.range(0.4, 1.2);
    // Blood also takes the blurred rim of the ventricle, as a cast widens it.
    let dry: Vec<bool> = {
        let mut m = vec![false; v.hu.len()];
        all.iter().for_each(|&i| m[i] = true);
        m
    };
    let near = crate::field::distance_mm(v, &dry, true);
    let share = |v: &Volume, level: f32| {
        let mut out = vec![0.0; v.hu.len()];
        for z in 0..v.nz {
            for y in 0..v.ny {
                for x in 0..v.nx {
                    let i = v.at(x, y, z);
                    if near[i] > swell + v.pixel_mm || !a.inside[i] {
                        continue;
                    }
                    let p = v.mm(x, y, z);
                    let edge = smooth(swell + v.pixel_mm, swell * 0.5, near[i]);
                    out[i] = edge
                        * if cast {
                            let d = distance(p, cast_from) + 4.0 * noise.mm(p, 9.0);
                            smooth(level, level - 3.0, d)
                        } else {
                            // Supine: blood sinks to the back and lies level.
                            let h = a.back_mm(p) + tilt * (p[2] - a.centre_mm[2]);
                            smooth(120.0 - level - 1.0, 120.0 - level + 1.5, h + 40.0)
                        };
                }
            }
        }
        out
    };
    let share = fit(v, wanted, 0.0, 160.0, &share).ok_or(room)?;
    Ok(Shape {
        share,
        hu: rng.range(55.0, 82.0),
        second_hu: None,
        texture_hu: 3.0,
        push: Push::None,
        rim_mm: 0.0,
        form: if cast { "cast" } else { "layer" },
        floor_hu: 10.0,
    })
}

pub(super) fn intraparenchymal(
    v: &Volume,
    a: &Anatomy,
    spec: &LesionSpec,
    rng: &mut Rng,
) -> Result<Shape, PaintError> {
    let room = PaintError::NoRoom("intraparenchymal");
    let side = side_sign(spec, rng);
    let deep = rng.chance(0.45);
    // Contusions: specks of blood in bruised brain, small and near the surface.
    let salt = !spec.plain && !deep && rng.chance(0.3);
    let wanted = volume_or(spec, rng, 0.6, if salt { 9.0 } else { 60.0 });
    let r = (wanted * 1000.0 / 4.19).cbrt();
    let e = a.extent_mm;
    let (low, margin) = (if rng.chance(0.15) { 0.1 } else { 0.3 }, rng.range(0.35, 0.75));
    let c = pick(v, a, rng, &|p, i| {
        let l = a.left_mm(p) * side;
        let h = a.height(slice_of(v, p));
        let place = if deep {
            (0.2 * e[0]..0.5 * e[0]).contains(&l)
                && (0.35..0.65).contains(&h)
                && a.back_mm(p).abs() < 0.4 * e[1]
        } else {
            l > 0.15 * e[0] && h > low && h < 0.85
        };
        place && a.depth_mm[i] > (r * margin).clamp(3.0, 45.0) && !a.ventricle[i]
    })
    .ok_or(room.clone())?;
    let form = [rng.range(0.7, 1.35), rng.range(0.7, 1.35), rng.range(0.7, 1.35)];
    let spin = rng.range(0.0, 3.1);
    let (sn, cs) = spin.sin_cos();
    let noise = Noise(rng.bits() as u32);
    let rough = rng.range(0.2, 0.5);
    let grain = (r * 0.9).max(5.0);
    let share = |v: &Volume, s: f32| {
        shares(v, a, c, s * 2.2 + 3.0, &|p, depth| {
            let d = [p[0] - c[0], p[1] - c[1], p[2] - c[2]];
            let q = [(cs * d[0] + sn * d[1]) / form[0], (cs * d[1] - sn * d[0]) / form[1], d[2] / form[2]];
            let len = distance(q, [0.0; 3]);
            let mut f = s * (1.0 + rough * noise.mm(p, grain) + 0.12 * noise.mm(p, 4.0)) - len;
            if salt {
                f = f.min(4.0 * noise.mm(p, 7.0) + 1.6);
            }
            f.min(depth - 1.2).min(a.left_mm(p) * side + 1.0)
        })
    };
    let share = fit(v, wanted, 0.5, 60.0, &share).ok_or(room)?;
    Ok(Shape {
        share,
        hu: rng.range(52.0, 82.0),
        second_hu: (!spec.plain && rng.chance(0.15)).then(|| rng.range(38.0, 48.0)),
        texture_hu: 3.5,
        push: if salt { Push::None } else { Push::Ball(c, r * 0.75) },
        rim_mm: rng.range(1.0, 3.0) + r * rng.range(0.05, 0.35),
        form: if salt {
            "contusion"
        } else if deep {
            "deep"
        } else {
            "lobar"
        },
        floor_hu: 8.0,
    })
}
