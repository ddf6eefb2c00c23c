//! The bleed generator: paints one bleed, with its mask, into any head whose anatomy is known.
//!
//! Every kind is a *share* field (0 to 1 of each voxel that is blood), found by bisection on size until it holds the
//! volume asked for; then the brain is pushed aside, and blood is laid in with texture. It does not simulate
//! clotting over time, and it never paints outside the skull.

use crate::anatomy::Anatomy;
use crate::rng::{Noise, Rng, lerp, smooth};
use crate::volume::Volume;
use crate::warp::{self, Push};

/// The five kinds of bleed; the number is the code in a mask, in class order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Between skull and dura: a lens that stops at sutures.
    Epidural = 1,
    /// In brain tissue, with oedema around it.
    Intraparenchymal = 2,
    /// In the ventricles.
    Intraventricular = 3,
    /// In sulci and cisterns.
    Subarachnoid = 4,
    /// Under the dura: a crescent that crosses sutures.
    Subdural = 5,
}

impl Kind {
    /// All kinds in class order.
    pub const ALL: [Kind; 5] =
        [Kind::Epidural, Kind::Intraparenchymal, Kind::Intraventricular, Kind::Subarachnoid, Kind::Subdural];

    /// The class name used in models, labels and messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Epidural => "epidural",
            Kind::Intraparenchymal => "intraparenchymal",
            Kind::Intraventricular => "intraventricular",
            Kind::Subarachnoid => "subarachnoid",
            Kind::Subdural => "subdural",
        }
    }

    /// The kind of a class name.
    pub fn from_name(name: &str) -> Option<Self> {
        Kind::ALL.into_iter().find(|k| k.name() == name)
    }
}

/// A side of the patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Patient left, image right.
    Left,
    /// Patient right, image left.
    Right,
    /// Both sides.
    Both,
}

/// What to paint. `None` leaves the choice to the random numbers.
#[derive(Clone, Copy, Debug)]
pub struct LesionSpec {
    /// Which kind.
    pub kind: Kind,
    /// Which side.
    pub side: Option<Side>,
    /// Volume in millilitres.
    pub volume_ml: Option<f32>,
    /// Plain acute blood only: no isodense, mixed or rare shapes. For tests and demonstrations.
    pub plain: bool,
}

impl LesionSpec {
    /// A bleed of a kind, all else left to chance.
    pub fn any(kind: Kind) -> Self {
        LesionSpec { kind, side: None, volume_ml: None, plain: false }
    }
}

/// A painted bleed.
#[derive(Clone, Debug)]
pub struct Lesion {
    /// Voxels at least half blood.
    pub mask: Vec<bool>,
    /// Its kind.
    pub kind: Kind,
    /// Where its volume lies: both when the lesser side has a fifth or more.
    pub side: Side,
    /// Volume of blood in millilitres, partial voxels counted in part.
    pub volume_ml: f32,
    /// First and last slice with a mask voxel.
    pub slices: (usize, usize),
    /// A word for the form taken: lens, crescent, parafalcine, isodense, mixed, ...
    pub form: &'static str,
}

/// Why a bleed could not be painted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PaintError {
    /// The head has no room for it, such as no visible ventricle.
    #[error("no room for {0} in this head")]
    NoRoom(&'static str),
}

/// The shape of a bleed before it is laid in.
struct Shape {
    share: Vec<f32>,
    hu: f32,
    second_hu: Option<f32>,
    texture_hu: f32,
    push: Push,
    rim_mm: f32,
    form: &'static str,
    floor_hu: f32,
}

/// Where a surface bleed may lie and how thick it is: filled by [`fit`].
type ShareAt<'a> = dyn Fn(&Volume, f32) -> Vec<f32> + 'a;

/// Paints a bleed into a volume.
///
/// # Errors
/// [`PaintError::NoRoom`] when this head cannot hold it; the volume is then unchanged.
pub fn paint(v: &mut Volume, a: &Anatomy, spec: &LesionSpec, rng: &mut Rng) -> Result<Lesion, PaintError> {
    let shape = match spec.kind {
        Kind::Epidural => epidural(v, a, spec, rng)?,
        Kind::Subdural => subdural(v, a, spec, rng)?,
        Kind::Subarachnoid => subarachnoid(v, a, spec, rng)?,
        Kind::Intraventricular => intraventricular(v, a, spec, rng)?,
        Kind::Intraparenchymal => intraparenchymal(v, a, spec, rng)?,
    };
    lay(v, a, spec.kind, shape, rng)
}

fn side_sign(spec: &LesionSpec, rng: &mut Rng) -> f32 {
    let random = rng.sign();
    match spec.side {
        Some(Side::Left) => 1.0,
        Some(Side::Right) => -1.0,
        _ => random,
    }
}

fn volume_or(spec: &LesionSpec, rng: &mut Rng, lo: f32, hi: f32) -> f32 {
    let u = rng.unit();
    spec.volume_ml.unwrap_or(lo * (hi / lo).powf(u)).max(0.05)
}

/// Bisects a size until the share field holds the volume.
fn fit(v: &Volume, wanted_ml: f32, lo: f32, hi: f32, share: &ShareAt<'_>) -> Option<(f32, Vec<f32>)> {
    let ml = |s: &[f32]| s.iter().sum::<f32>() * v.voxel_ml();
    let (mut lo, mut hi) = (lo, hi);
    let mut best: Option<(f32, f32, Vec<f32>)> = None;
    for _ in 0..12 {
        let mid = (lo + hi) / 2.0;
        let s = share(v, mid);
        let got = ml(&s);
        let miss = (got - wanted_ml).abs() / wanted_ml;
        if best.as_ref().is_none_or(|b| miss < b.0) {
            best = Some((miss, mid, s));
        }
        if miss < 0.02 {
            break;
        }
        if got < wanted_ml {
            lo = mid;
        } else {
            hi = mid;
        }
    }
    best.filter(|b| b.0 < 0.35).map(|b| (b.1, b.2))
}

/// Evaluates a signed distance (millimetres, positive in blood) on every voxel inside the skull within `reach_mm`
/// of a centre, three times through the slice thickness, as a share.
fn shares(v: &Volume, a: &Anatomy, c: [f32; 3], reach_mm: f32, f: &dyn Fn([f32; 3], f32) -> f32) -> Vec<f32> {
    let mut out = vec![0.0; v.hu.len()];
    let span = |c: f32, n: usize, pitch: f32| {
        let mid = c / pitch + (n as f32 - 1.0) / 2.0;
        let lo = (mid - reach_mm / pitch).floor().max(0.0) as usize;
        let hi = (mid + reach_mm / pitch).ceil().min(n as f32 - 1.0).max(0.0) as usize;
        lo..(hi + 1)
    };
    for z in span(c[2], v.nz, v.step_mm) {
        for y in span(c[1], v.ny, v.pixel_mm) {
            for x in span(c[0], v.nx, v.pixel_mm) {
                let i = v.at(x, y, z);
                if !a.inside[i] {
                    continue;
                }
                let p = v.mm(x, y, z);
                let mut sum = 0.0;
                for k in [-1i32, 0, 1] {
                    let dz = k as f32 * v.step_mm / 3.0;
                    let j = match k {
                        -1 if z > 0 => i - v.nx * v.ny,
                        1 if z + 1 < v.nz => i + v.nx * v.ny,
                        _ => i,
                    };
                    let depth = lerp(a.depth_mm[i], a.depth_mm[j], if j == i { 0.0 } else { 1.0 / 3.0 });
                    sum += smooth(-0.6, 0.6, f([p[0], p[1], p[2] + dz], depth));
                }
                out[i] = sum / 3.0;
            }
        }
    }
    out
}

fn distance(p: [f32; 3], q: [f32; 3]) -> f32 {
    ((p[0] - q[0]).powi(2) + (p[1] - q[1]).powi(2) + (p[2] - q[2]).powi(2)).sqrt()
}

/// A random voxel inside the skull that `f` accepts, in grid millimetres.
fn pick(v: &Volume, a: &Anatomy, rng: &mut Rng, f: &dyn Fn([f32; 3], usize) -> bool) -> Option<[f32; 3]> {
    for _ in 0..60_000 {
        let i = rng.below(v.hu.len());
        if a.inside[i] {
            let p = v.mm(i % v.nx, i / v.nx % v.ny, i / (v.nx * v.ny));
            if f(p, i) {
                return Some(p);
            }
        }
    }
    None
}

fn slice_of(v: &Volume, p: [f32; 3]) -> usize {
    (p[2] / v.step_mm + (v.nz as f32 - 1.0) / 2.0).round().clamp(0.0, v.nz as f32 - 1.0) as usize
}

fn epidural(v: &Volume, a: &Anatomy, spec: &LesionSpec, rng: &mut Rng) -> Result<Shape, PaintError> {
    let side = side_sign(spec, rng);
    let low = if spec.plain { 0.4 } else { 0.18 };
    let c = pick(v, a, rng, &|p, i| {
        let h = a.height(slice_of(v, p));
        a.depth_mm[i] < 1.8 && a.left_mm(p) * side > 0.35 * a.extent_mm[0] && h > low && h < 0.85
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
    let (s, share) = fit(v, wanted, 4.0, 60.0, &share).ok_or(PaintError::NoRoom("epidural"))?;
    let swirl = !spec.plain && rng.chance(0.2);
    let _ = s;
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

fn subdural(v: &Volume, a: &Anatomy, spec: &LesionSpec, rng: &mut Rng) -> Result<Shape, PaintError> {
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
                let angle = (back).atan2(across.max(0.001)) / 1.5708 - turn;
                let height = a.height(slice_of(v, p)) - high;
                let s = ((angle / reach).powi(2) + (height / (tall * reach.min(1.2))).powi(2)).sqrt();
                let thick = t * (1.0 - s.powi(4)) * (1.0 + 0.25 * noise.mm(p, 30.0));
                (thick - depth).min(across * e[0] - 2.0)
            })
        };
        fit(v, wanted, 0.08, 2.5, &share)
    };
    let (_, share) = share.ok_or(room)?;
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

fn subarachnoid(v: &Volume, a: &Anatomy, spec: &LesionSpec, rng: &mut Rng) -> Result<Shape, PaintError> {
    let room = PaintError::NoRoom("subarachnoid");
    let side = side_sign(spec, rng);
    let basal = spec.side.is_none() && rng.chance(0.35);
    let e = a.extent_mm;
    let c = if basal {
        let (lo, hi) = a.slices;
        let z = lo as f32 + (hi - lo) as f32 * rng.range(0.28, 0.4);
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
    let wanted = volume_or(spec, rng, 1.5, if basal { 25.0 } else { 16.0 });
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
        let sheet = fold.mm([p[0], p[1], p[2] * 0.7], 10.5).abs() * 6.0;
        let thin = smooth(1.5, 0.4, sheet) * smooth(20.0, 12.0, depth) * 0.8;
        let film = smooth(1.9, 0.8, depth) * 0.45;
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
    let (_, share) = fit(v, wanted, 5.0, 85.0, &share).ok_or(room)?;
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

fn intraventricular(v: &Volume, a: &Anatomy, spec: &LesionSpec, rng: &mut Rng) -> Result<Shape, PaintError> {
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
                            let h = e_back(a, p) + tilt * (p[2] - a.centre_mm[2]);
                            smooth(120.0 - level - 1.0, 120.0 - level + 1.5, h + 40.0)
                        };
                }
            }
        }
        out
    };
    let (_, share) = fit(v, wanted, 0.0, 160.0, &share).ok_or(room)?;
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

fn e_back(a: &Anatomy, p: [f32; 3]) -> f32 {
    a.back_mm(p)
}

fn intraparenchymal(v: &Volume, a: &Anatomy, spec: &LesionSpec, rng: &mut Rng) -> Result<Shape, PaintError> {
    let room = PaintError::NoRoom("intraparenchymal");
    let side = side_sign(spec, rng);
    let wanted = volume_or(spec, rng, 0.6, 60.0);
    let r = (wanted * 1000.0 / 4.19).cbrt();
    let e = a.extent_mm;
    let deep = rng.chance(0.45);
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
    let salt = !spec.plain && !deep && rng.chance(0.3);
    let share = |v: &Volume, s: f32| {
        shares(v, a, c, s * 2.2 + 3.0, &|p, depth| {
            let d = [p[0] - c[0], p[1] - c[1], p[2] - c[2]];
            let q = [(cs * d[0] + sn * d[1]) / form[0], (cs * d[1] - sn * d[0]) / form[1], d[2] / form[2]];
            let len = distance(q, [0.0; 3]);
            let mut f = s * (1.0 + rough * noise.mm(p, grain) + 0.12 * noise.mm(p, 4.0)) - len;
            if salt {
                f = f.min(3.5 * noise.mm(p, 6.0) + 1.0);
            }
            f.min(depth - 1.2).min(a.left_mm(p) * side + 1.0)
        })
    };
    let (_, share) = fit(v, wanted, 0.5, 60.0, &share).ok_or(room)?;
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

/// Moves the brain, lays in rim and blood, and measures what was painted.
fn lay(v: &mut Volume, a: &Anatomy, kind: Kind, s: Shape, rng: &mut Rng) -> Result<Lesion, PaintError> {
    let mut share = s.share;
    keep_visible_slices(v, &mut share);
    let mask: Vec<bool> = share.iter().map(|&w| w >= 0.5).collect();
    let n = v.nx * v.ny;
    let first = mask.iter().position(|&m| m).ok_or(PaintError::NoRoom(kind.name()))? / n;
    let last = mask.iter().rposition(|&m| m).unwrap_or(0) / n;
    warp::push(v, a, &share, &s.push);
    if s.rim_mm > 0.0 {
        rim(v, a, &mask, s.rim_mm, rng);
    }
    let noise = Noise(rng.bits() as u32);
    let (mut left, mut right) = (0.0f32, 0.0f32);
    for z in 0..v.nz {
        for y in 0..v.ny {
            for x in 0..v.nx {
                let i = v.at(x, y, z);
                let w = share[i];
                if w <= 0.01 {
                    continue;
                }
                let p = v.mm(x, y, z);
                if a.left_mm(p) > 0.0 {
                    left += w
                } else {
                    right += w
                }
                let mut hu = s.hu + s.texture_hu * noise.mm(p, 6.0) + 1.5 * noise.mm(p, 2.5);
                if let Some(other) = s.second_hu {
                    // Older blood: swirls, and settled toward the front when supine.
                    let t = noise.mm([p[0], p[1], p[2] * 0.5], 15.0) - 0.01 * a.back_mm(p);
                    hu = lerp(hu, other, smooth(-0.05, 0.3, t));
                }
                let old = f32::from(v.hu[i]);
                // Keep the scanner's own noise: blood replaces the mean, not the grain.
                let grain = (old - local_mean(v, x, y, z)).clamp(-9.0, 9.0);
                let mut new = lerp(old, hu + grain, w);
                if s.floor_hu > 0.0 && w >= 0.5 {
                    new = new.max(a.brain_hu + s.floor_hu + grain);
                }
                v.hu[i] = new.round() as i16;
            }
        }
    }
    let volume_ml = (left + right) * v.voxel_ml();
    let lesser = left.min(right) / (left + right).max(1e-6);
    let side = if lesser > 0.2 {
        Side::Both
    } else if left > right {
        Side::Left
    } else {
        Side::Right
    };
    Ok(Lesion { mask, kind, side, volume_ml, slices: (first, last), form: s.form })
}

/// Least area in a slice for the slice to count as showing the bleed, square millimetres.
pub const SLICE_MM2_MIN: f32 = 12.0;

/// Drops shares in slices where less than [`SLICE_MM2_MIN`] would reach the mask: labels and mask then agree.
fn keep_visible_slices(v: &Volume, share: &mut [f32]) {
    for slice in share.chunks_exact_mut(v.nx * v.ny) {
        let area = slice.iter().filter(|&&w| w >= 0.5).count() as f32 * v.pixel_mm * v.pixel_mm;
        if area < SLICE_MM2_MIN {
            slice.iter_mut().for_each(|w| *w = if area > 0.0 { w.min(0.2) } else { w.min(0.45) * 0.5 });
        }
    }
}

fn local_mean(v: &Volume, x: usize, y: usize, z: usize) -> f32 {
    let (mut sum, mut n) = (0.0, 0.0);
    for yy in y.saturating_sub(1)..=(y + 1).min(v.ny - 1) {
        for xx in x.saturating_sub(1)..=(x + 1).min(v.nx - 1) {
            sum += f32::from(v.hu[v.at(xx, yy, z)]);
            n += 1.0;
        }
    }
    sum / n
}

/// Oedema: darker brain around the bleed, wider in places.
fn rim(v: &mut Volume, a: &Anatomy, mask: &[bool], rim_mm: f32, rng: &mut Rng) {
    let near = crate::field::distance_mm(v, mask, false);
    let noise = Noise(rng.bits() as u32);
    let dark = rng.range(7.0, 13.0);
    for i in 0..v.hu.len() {
        if near[i] > rim_mm * 1.8 || !a.inside[i] || a.fluid[i] > 0.5 || a.depth_mm[i] < 2.0 {
            continue;
        }
        let p = v.mm(i % v.nx, i / v.nx % v.ny, i / (v.nx * v.ny));
        let wide = rim_mm * (1.0 + 0.6 * noise.mm(p, 12.0));
        let w = smooth(wide, wide * 0.5, near[i]);
        v.hu[i] = (f32::from(v.hu[i]) - dark * w).round() as i16;
    }
}
