//! Hard negatives: bright or odd things in a head that are no bleed. They never touch a mask.

use crate::anatomy::Anatomy;
use crate::field::{distance_mm, soften_flat};
use crate::rng::{Noise, Rng, lerp, smooth};
use crate::volume::Volume;

/// Things that look like a bleed to a careless reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoy {
    /// Calcified pineal gland.
    Pineal,
    /// Calcified choroid plexus of both atria.
    Choroid,
    /// Plates of calcium in the falx.
    FalxCalcium,
    /// Dense falx and tentorium, as in a child or a dry patient.
    DenseFalx,
    /// Calcium in both basal ganglia.
    Ganglia,
    /// Dense venous sinuses.
    Sinus,
    /// Dark and bright bands between the petrous bones.
    Beam,
    /// The head moved during some slices.
    Motion,
    /// Metal with its star of streaks.
    Metal,
    /// Blood under the scalp, outside the skull.
    Scalp,
    /// Contrast in the vessels.
    Contrast,
    /// An old infarct.
    Infarct,
    /// Clear fluid over a hemisphere.
    Hygroma,
}

impl Decoy {
    /// All of them.
    pub const ALL: [Decoy; 13] = [
        Decoy::Pineal,
        Decoy::Choroid,
        Decoy::FalxCalcium,
        Decoy::DenseFalx,
        Decoy::Ganglia,
        Decoy::Sinus,
        Decoy::Beam,
        Decoy::Motion,
        Decoy::Metal,
        Decoy::Scalp,
        Decoy::Contrast,
        Decoy::Infarct,
        Decoy::Hygroma,
    ];

    /// A short name for tables and command lines.
    pub fn name(self) -> &'static str {
        match self {
            Decoy::Pineal => "pineal",
            Decoy::Choroid => "choroid",
            Decoy::FalxCalcium => "falx-calcium",
            Decoy::DenseFalx => "dense-falx",
            Decoy::Ganglia => "ganglia",
            Decoy::Sinus => "sinus",
            Decoy::Beam => "beam",
            Decoy::Motion => "motion",
            Decoy::Metal => "metal",
            Decoy::Scalp => "scalp",
            Decoy::Contrast => "contrast",
            Decoy::Infarct => "infarct",
            Decoy::Hygroma => "hygroma",
        }
    }

    /// The decoy of a name.
    pub fn from_name(name: &str) -> Option<Self> {
        Decoy::ALL.into_iter().find(|d| d.name() == name)
    }
}

/// Adds a decoy to a volume.
pub fn add(v: &mut Volume, a: &Anatomy, decoy: Decoy, rng: &mut Rng) {
    let e = a.extent_mm;
    match decoy {
        Decoy::Pineal => {
            let p =
                place(v, a, rng.normal() * 1.0, 0.12 * e[1] + rng.normal() * 3.0, 0.5 + 0.03 * rng.normal());
            fleck(v, a, p, rng.range(1.6, 4.0), rng.range(90.0, 380.0), rng);
        }
        Decoy::Choroid => {
            let (r, hu, h) = (rng.range(1.8, 4.5), rng.range(80.0, 350.0), 0.5 + 0.04 * rng.normal());
            let (l, b) = (rng.range(0.26, 0.38) * e[0], rng.range(0.28, 0.42) * e[1]);
            for side in [-1.0, 1.0] {
                if rng.chance(0.9) {
                    let p = place(v, a, side * (l + rng.normal()), b + rng.normal() * 2.0, h);
                    fleck(v, a, p, r * rng.range(0.7, 1.2), hu, rng);
                }
            }
        }
        Decoy::Ganglia => {
            let (hu, h) = (rng.range(55.0, 130.0), 0.5 + 0.03 * rng.normal());
            for side in [-1.0, 1.0] {
                let p = place(v, a, side * 0.27 * e[0], -0.1 * e[1] + rng.normal() * 2.0, h);
                fleck(v, a, p, rng.range(2.5, 6.0), hu, rng);
            }
        }
        Decoy::FalxCalcium => falx(v, a, rng, true),
        Decoy::DenseFalx => falx(v, a, rng, false),
        Decoy::Sinus => sinus(v, a, rng, false),
        Decoy::Beam => beam(v, a, rng),
        Decoy::Motion => motion(v, rng),
        Decoy::Metal => metal(v, a, rng),
        Decoy::Scalp => scalp(v, a, rng),
        Decoy::Contrast => contrast(v, a, rng),
        Decoy::Infarct => infarct(v, a, rng),
        Decoy::Hygroma => hygroma(v, a, rng),
    }
}

/// Grid millimetres of a place given left of the midline, back of the centre and height as a share.
fn place(v: &Volume, a: &Anatomy, left_mm: f32, back_mm: f32, height: f32) -> [f32; 3] {
    let z = (a.slice_at(height) - (v.nz as f32 - 1.0) / 2.0) * v.step_mm;
    // Solve for the point with two steps of descent: the midline is nearly straight.
    let mut p = [a.centre_mm[0] + left_mm, a.centre_mm[1] + back_mm, z];
    for _ in 0..8 {
        let dl = left_mm - a.left_mm(p);
        let db = back_mm - a.back_mm(p);
        p[0] += dl;
        p[1] += db;
    }
    p
}

fn each(v: &mut Volume, f: &mut dyn FnMut([f32; 3], usize, usize, f32) -> f32) {
    for z in 0..v.nz {
        for y in 0..v.ny {
            for x in 0..v.nx {
                let i = v.at(x, y, z);
                let old = f32::from(v.hu[i]);
                let new = f(v.mm(x, y, z), i, z, old);
                if new != old {
                    v.hu[i] = new.round().clamp(-1024.0, 3071.0) as i16;
                }
            }
        }
    }
}

fn fleck(v: &mut Volume, a: &Anatomy, c: [f32; 3], r: f32, hu: f32, rng: &mut Rng) {
    let noise = Noise(rng.bits() as u32);
    let half = v.step_mm * 0.5;
    each(v, &mut |p, i, _, old| {
        // The slice blurs a small thing over its thickness.
        let dz = ((p[2] - c[2]).abs() - half * 0.7).max(0.0) * 1.3;
        let d = ((p[0] - c[0]).powi(2) + (p[1] - c[1]).powi(2) + dz * dz).sqrt();
        if d > r * 2.0 + 2.0 || !a.inside[i] {
            return old;
        }
        let w = smooth(0.7, -0.7, d - r * (1.0 + 0.5 * noise.mm(p, 3.5)));
        lerp(old, hu * (1.0 + 0.3 * noise.mm(p, 2.0)), w)
    });
}

fn falx(v: &mut Volume, a: &Anatomy, rng: &mut Rng, calcium: bool) {
    let noise = Noise(rng.bits() as u32);
    let (c, len) = (rng.range(-0.8, 0.3), rng.range(0.08, 0.3));
    let h = rng.range(0.5, 0.85);
    let half = if calcium { rng.range(0.8, 2.0) } else { rng.range(0.6, 1.1) };
    let hu = if calcium { rng.range(120.0, 500.0) } else { rng.range(50.0, 64.0) };
    each(v, &mut |p, i, z, old| {
        let l = a.left_mm(p).abs();
        if l > 4.0 || !a.inside[i] || !a.falx(p, i, z) {
            return old;
        }
        let back = a.back_mm(p) / a.extent_mm[1];
        let w = smooth(half + 0.5, half - 0.5, l);
        let along = if calcium {
            smooth(len, len * 0.7, (back - c).abs() + 0.1 * noise.mm(p, 5.0))
                * smooth(0.16, 0.08, (a.height(z) - h).abs())
        } else {
            smooth(30.0, 25.0, a.depth_mm[i])
        };
        old.max(lerp(old, hu + 4.0 * noise.mm(p, 4.0), w * along))
    });
}

fn sinus(v: &mut Volume, a: &Anatomy, rng: &mut Rng, contrast: bool) {
    let hu = if contrast { rng.range(110.0, 200.0) } else { rng.range(56.0, 72.0) };
    let wide = rng.range(3.0, 5.0);
    let noise = Noise(rng.bits() as u32);
    each(v, &mut |p, i, z, old| {
        if !a.inside[i] || a.depth_mm[i] > 9.0 {
            return old;
        }
        let back = a.back_mm(p) / a.extent_mm[1];
        let l = a.left_mm(p).abs();
        let sagittal = if back > -0.4 && a.height(z) > 0.3 { l + a.depth_mm[i] * 0.6 - wide } else { 9.0 };
        let cross = if back > 0.45 && (a.height(z) - 0.24).abs() < 0.06 && l < 0.75 * a.extent_mm[0] {
            a.depth_mm[i] - wide
        } else {
            9.0
        };
        let w = smooth(0.8, -0.8, sagittal.min(cross));
        old.max(lerp(old, hu + 3.0 * noise.mm(p, 4.0), w))
    });
}

fn beam(v: &mut Volume, a: &Anatomy, rng: &mut Rng) {
    let noise = Noise(rng.bits() as u32);
    let (gain, tilt) = (rng.range(8.0, 22.0), rng.range(-0.12, 0.12));
    let middle = rng.range(0.08, 0.2);
    each(v, &mut |p, i, z, old| {
        if !a.inside[i] {
            return old;
        }
        let low = smooth(0.24, 0.04, (a.height(z) - middle).abs());
        let y = p[1] + tilt * p[0];
        let band = noise.at(0.02 * p[0], y * 0.11, z as f32 * 0.7) * 1.6 - 0.15;
        let side = smooth(1.0, 0.3, (a.left_mm(p) / a.extent_mm[0]).abs());
        old + gain * low * band * (0.4 + 0.6 * side)
    });
}

fn motion(v: &mut Volume, rng: &mut Rng) {
    let n = v.nx * v.ny;
    let from = rng.below(v.nz);
    let run = 2 + rng.below(5);
    let noise = Noise(rng.bits() as u32);
    for z in from..(from + run).min(v.nz) {
        let old: Vec<f32> = v.hu[z * n..(z + 1) * n].iter().map(|&h| f32::from(h)).collect();
        let (dx, dy) =
            ((rng.normal() * 3.0 / v.pixel_mm) as isize, (rng.normal() * 3.0 / v.pixel_mm) as isize);
        let blend = rng.range(0.25, 0.5);
        let angle = rng.range(0.0, 3.1);
        let (s, c) = angle.sin_cos();
        for y in 0..v.ny {
            for x in 0..v.nx {
                let sx = (x as isize + dx).clamp(0, v.nx as isize - 1) as usize;
                let sy = (y as isize + dy).clamp(0, v.ny as isize - 1) as usize;
                let p = v.mm(x, y, z);
                let streak =
                    6.0 * noise.at((c * p[0] + s * p[1]) * 0.25, (c * p[1] - s * p[0]) * 0.02, z as f32);
                let (here, there) = (old[y * v.nx + x], old[sy * v.nx + sx]);
                let hu = lerp(here, there, blend) + if here > -500.0 { streak } else { 0.0 };
                v.hu[z * n + y * v.nx + x] = hu.round().clamp(-1024.0, 3071.0) as i16;
            }
        }
    }
}

fn metal(v: &mut Volume, a: &Anatomy, rng: &mut Rng) {
    let high = rng.range(0.0, 0.7);
    let angle = rng.range(0.0, std::f32::consts::TAU);
    let far = 1.06
        * (angle.cos().powi(2) * a.extent_mm[0].powi(2) + angle.sin().powi(2) * a.extent_mm[1].powi(2))
            .sqrt();
    let c = place(v, a, far * angle.cos(), far * angle.sin(), high);
    let r = rng.range(1.5, 4.0);
    let noise = Noise(rng.bits() as u32);
    let gain = rng.range(40.0, 160.0);
    each(v, &mut |p, _, z, old| {
        let dz = (p[2] - c[2]).abs();
        if dz > r + 7.0 {
            return old;
        }
        let d = [p[0] - c[0], p[1] - c[1]];
        let len = (d[0] * d[0] + d[1] * d[1]).sqrt();
        if len < r && dz < r + 2.5 {
            return 3071.0;
        }
        let ray = noise.at(d[1].atan2(d[0]) * 7.0, z as f32 * 0.6, 0.0);
        let body = smooth(-700.0, -100.0, old);
        old + body * gain * ray * (12.0 / (len + 6.0)) * smooth(8.0, 1.0, dz)
    });
}

fn scalp(v: &mut Volume, a: &Anatomy, rng: &mut Rng) {
    // Outside: beyond the outer table, found as the far side of the bone that borders the inside.
    let n = v.nx * v.ny;
    let near_inside = distance_mm(v, &a.inside, true);
    let shell: Vec<bool> =
        (0..v.hu.len()).map(|i| a.inside[i] || (a.bone[i] && near_inside[i] < 16.0)).collect();
    let out = distance_mm(v, &shell, true);
    let side = rng.sign();
    let h = rng.range(0.35, 0.85);
    let back = rng.range(-0.9, 0.9);
    let c = place(v, a, side * a.extent_mm[0] * (1.0 - back * back * 0.8).sqrt(), back * a.extent_mm[1], h);
    let (s, t) = (rng.range(14.0, 38.0), rng.range(5.0, 13.0));
    let hu = rng.range(42.0, 72.0);
    let noise = Noise(rng.bits() as u32);
    // Free air about the head, so that sinuses stay as they are.
    let air: Vec<bool> = v.hu.iter().map(|&h| h < -300).collect();
    let (label, _) = crate::field::parts(v, &air, true);
    let open: Vec<u32> = (0..v.nz).map(|z| label[z * n]).collect();
    each(v, &mut |p, i, z, old| {
        let d = ((p[0] - c[0]).powi(2) + (p[1] - c[1]).powi(2) + (p[2] - c[2]).powi(2)).sqrt() / s;
        if d > 1.3 || shell[i] || out[i] > t + 3.0 {
            return old;
        }
        let thick = t * (1.0 - d * d) * (1.0 + 0.3 * noise.mm(p, 12.0));
        let free = !air[i] || label[i] == open[z];
        if !free || old > 150.0 {
            return old;
        }
        let w = smooth(-0.5, 0.5, thick - out[i]);
        let skin = smooth(-1.8, -1.2, thick - out[i]) * (1.0 - w);
        let filled = lerp(old, hu + 8.0 * noise.mm(p, 5.0), w);
        if old < -200.0 { lerp(filled, 20.0, skin) } else { filled }
    });
}

fn contrast(v: &mut Volume, a: &Anatomy, rng: &mut Rng) {
    sinus(v, a, rng, true);
    let noise = Noise(rng.bits() as u32);
    let hu = rng.range(130.0, 260.0);
    let e = a.extent_mm;
    let up = rng.range(1.0, 5.0);
    // Vessels: where two noises cross zero together is a set of winding threads.
    let other = Noise(rng.bits() as u32);
    each(v, &mut |p, i, z, old| {
        if !a.inside[i] {
            return old;
        }
        let h = a.height(z);
        let l = a.left_mm(p).abs() / e[0];
        let b = a.back_mm(p) / e[1];
        let round = ((l / 0.17).powi(2) + ((b + 0.1) / 0.19).powi(2)).sqrt();
        let ring = ((round - 1.0).abs() * 13.0).max((h - 0.32).abs() * 120.0 - 2.0);
        let q = [p[0], p[1], p[2] * 0.6];
        let thread = (noise.mm(q, 17.0).powi(2) + other.mm(q, 17.0).powi(2)).sqrt() * 17.0;
        let sylvian = smooth(0.35, 0.5, l) * smooth(0.4, 0.2, b.abs()) * smooth(0.2, 0.1, (h - 0.42).abs());
        let surface = smooth(10.0, 4.0, a.depth_mm[i]);
        // Threads narrower than nothing: no vessels inside the white matter.
        let width = 2.6 * sylvian.max(surface * 0.65) - 0.9;
        let w = smooth(0.7, -0.7, thread - width).max(smooth(2.0, 0.5, ring));
        lerp(old + up * (1.0 - a.fluid[i]), hu, w * 0.9)
    });
}

fn infarct(v: &mut Volume, a: &Anatomy, rng: &mut Rng) {
    let side = rng.sign();
    let e = a.extent_mm;
    let c =
        place(v, a, side * e[0] * rng.range(0.4, 0.9), e[1] * rng.range(-0.5, 0.6), rng.range(0.35, 0.75));
    let r = rng.range(8.0, 34.0);
    let old_one = rng.chance(0.5);
    let noise = Noise(rng.bits() as u32);
    let drop = rng.range(6.0, 13.0);
    each(v, &mut |p, i, _, old| {
        if !a.inside[i] || a.left_mm(p) * side < 1.0 {
            return old;
        }
        let d = ((p[0] - c[0]).powi(2) + (p[1] - c[1]).powi(2) + (p[2] - c[2]).powi(2)).sqrt();
        let w = smooth(1.5, -1.5, d - r * (1.0 + 0.35 * noise.mm(p, 18.0)));
        if w <= 0.0 {
            old
        } else if old_one {
            lerp(old, 9.0 + (old - a.brain_hu) * 0.3, w * 0.9)
        } else {
            old - drop * w * (1.0 - a.fluid[i])
        }
    });
}

fn hygroma(v: &mut Volume, a: &Anatomy, rng: &mut Rng) {
    let both = rng.chance(0.5);
    let side = rng.sign();
    let t = rng.range(2.5, 9.0);
    let noise = Noise(rng.bits() as u32);
    let e = a.extent_mm;
    let share: Vec<f32> = {
        let mut s = vec![0.0; v.hu.len()];
        for z in 0..v.nz {
            for y in 0..v.ny {
                for x in 0..v.nx {
                    let i = v.at(x, y, z);
                    let p = v.mm(x, y, z);
                    let l = a.left_mm(p) / e[0] * side;
                    let l = if both { l.abs() } else { l };
                    if !a.inside[i] || l < 0.05 {
                        continue;
                    }
                    let front = smooth(0.7, -0.3, a.back_mm(p) / e[1]) * smooth(0.35, 0.5, a.height(z));
                    let thick = t * front * (1.0 + 0.25 * noise.mm(p, 25.0));
                    s[i] = smooth(-0.6, 0.6, thick - a.depth_mm[i]) * smooth(0.3, 0.9, thick);
                }
            }
        }
        s
    };
    crate::warp::push(v, a, &share, &crate::warp::Push::Inward);
    let hu = rng.range(3.0, 11.0);
    let mut grain: Vec<f32> = (0..v.hu.len()).map(|_| rng.normal() * 3.0).collect();
    soften_flat(&mut grain, v.nx, v.ny, 0.15);
    each(v, &mut |_, i, _, old| if share[i] > 0.0 { lerp(old, hu + grain[i], share[i]) } else { old });
}
