//! Bleeds between bone and brain: the epidural lens and the subdural crescent, along the vault or the falx.

use super::{
    LesionSpec, PaintError, Push, Shape, distance, fit, pick, shares, side_sign, slice_of, volume_or,
};
use crate::anatomy::Anatomy;
use crate::rng::{Noise, Rng, smooth};
use crate::volume::Volume;

pub(super) fn epidural(
    v: &Volume,
    a: &Anatomy,
    spec: &LesionSpec,
    rng: &mut Rng,
) -> Result<Shape, PaintError> {
    let side = side_sign(spec, rng);
    let low = if spec.plain { 0.4 } else { 0.18 };
    let c = pick(v, a, rng, &|p, i| {
        let h = a.height(slice_of(v, p));
        a.depth_mm[i] < v.pixel_mm.max(1.0)
            && a.left_mm(p) * side > 0.35 * a.extent_mm[0]
            && h > low
            && h < 0.85
    })
    .ok_or(PaintError::NoRoom("epidural"))?;
    let wanted = volume_or(spec, rng, 1.5, 55.0);
    let ratio = rng.range(0.38, 0.62);
    let noise = Noise(rng.bits() as u32);
    let share = |v: &Volume, s: f32| {
        shares(v, a, c, s + 2.0, &|p, depth| {
            let r = distance(p, c) / (s * (1.0 + 0.12 * noise.mm(p, 22.0)));
            let lens = s * ratio * (1.0 - r * r);
            (lens - depth).min((a.left_mm(p) * side - 2.0) * 0.8)
        })
    };
    let share = fit(v, wanted, 4.0, 60.0, &share).ok_or(PaintError::NoRoom("epidural"))?;
    let swirl = !spec.plain && rng.chance(0.2);
    Ok(Shape {
        share,
        hu: rng.range(55.0, 80.0),
        second_hu: swirl.then(|| rng.range(35.0, 48.0)),
        texture_hu: 3.0,
        push: Push::Inward,
        rim_mm: 0.0,
        form: if swirl { "swirl" } else { "lens" },
        floor_hu: 0.0,
    })
}

pub(super) fn subdural(
    v: &Volume,
    a: &Anatomy,
    spec: &LesionSpec,
    rng: &mut Rng,
) -> Result<Shape, PaintError> {
    let side = side_sign(spec, rng);
    let falcine = !spec.plain && rng.chance(0.18);
    let wanted = if falcine { volume_or(spec, rng, 2.0, 12.0) } else { volume_or(spec, rng, 4.0, 110.0) };
    let noise = Noise(rng.bits() as u32);
    let room = PaintError::NoRoom("subdural");
    let e = a.extent_mm;
    let mut turn = rng.range(-0.45, 0.45);
    let high = rng.range(0.4, 0.65);
    if spec.plain {
        turn *= 0.5;
    }
    let share = if falcine {
        let from = rng.range(-0.7, 0.1);
        let share = |v: &Volume, t: f32| {
            shares(v, a, a.centre_mm, 200.0, &|p, depth| {
                let back = a.back_mm(p) / e[1];
                let ends = smooth(from - 0.1, from + 0.15, back) * smooth(32.0, 22.0, depth);
                let high = smooth(0.42, 0.55, a.height(slice_of(v, p)));
                let d = a.left_mm(p) * side;
                let thick = t * ends * high * (1.0 + 0.4 * noise.mm(p, 24.0));
                if d < -1.0 { -9.0 } else { (thick - d).min(depth - 0.5) }
            })
        };
        fit(v, wanted, 0.2, 14.0, &share)
    } else {
        // A long arc over the hemisphere, thickest in its middle, thinning to the ends; low fossae stay free.
        // Thickness follows volume and the arc is fitted, so that a small one is short rather than a film.
        let t = (1.9 * wanted.powf(0.42) * rng.range(0.8, 1.3)).clamp(2.5, 26.0);
        let tall = rng.range(0.42, 0.6);
        let share = |v: &Volume, reach: f32| {
            shares(v, a, a.centre_mm, 200.0, &|p, depth| {
                if depth > t * 1.5 + 1.0 {
                    return -9.0;
                }
                let across = a.left_mm(p) * side / e[0];
                let back = a.back_mm(p) / e[1];
                let angle = back.atan2(across.max(0.001)) / std::f32::consts::FRAC_PI_2 - turn;
                let level = a.height(slice_of(v, p));
                let height = level - high;
                // The fossae have floors and ridges that face upward and inward: a crescent keeps to the vault.
                let rim = across.hypot(back) + smooth(0.3, 0.5, level);
                let vault = smooth(0.6, 0.78, rim) * smooth(0.16, 0.3, level);
                let s = ((angle / reach).powi(2) + (height / (tall * reach.min(1.2))).powi(2)).sqrt();
                let thick = t * (1.0 - s.powi(4)) * (1.0 + 0.25 * noise.mm(p, 30.0)) * vault - (1.0 - vault);
                (thick - depth).min(across * e[0] - 2.0)
            })
        };
        fit(v, wanted, 0.08, 2.5, &share)
    };
    let share = share.ok_or(room)?;
    let u = if spec.plain { 0.0 } else { rng.unit() };
    let (hu, second, form) = if u < 0.62 {
        (rng.range(55.0, 78.0), None, if falcine { "parafalcine" } else { "crescent" })
    } else if u < 0.76 {
        (rng.range(34.0, 46.0), None, "isodense")
    } else if u < 0.92 {
        (rng.range(55.0, 72.0), Some(rng.range(20.0, 38.0)), "mixed")
    } else {
        (rng.range(18.0, 28.0), None, "chronic")
    };
    Ok(Shape {
        share,
        hu,
        second_hu: second,
        texture_hu: 2.5,
        push: if falcine { Push::None } else { Push::Inward },
        rim_mm: 0.0,
        form,
        floor_hu: 0.0,
    })
}
