//! The bleed generator: paints one bleed, with its mask, into any head whose anatomy is known.
//!
//! Every kind is a *share* field (0 to 1 of each voxel that is blood), found by bisection on size until it holds the
//! volume asked for; then the brain is pushed aside, and blood is laid in with texture. It does not simulate
//! clotting over time, and it never paints outside the skull.

mod deep;
mod sulci;
mod surface;

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
        Kind::Epidural => surface::epidural(v, a, spec, rng)?,
        Kind::Subdural => surface::subdural(v, a, spec, rng)?,
        Kind::Subarachnoid => sulci::subarachnoid(v, a, spec, rng)?,
        Kind::Intraventricular => deep::intraventricular(v, a, spec, rng)?,
        Kind::Intraparenchymal => deep::intraparenchymal(v, a, spec, rng)?,
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

/// How far, as a share, a painted volume may miss the one asked for.
pub const MISS_MAX: f32 = 0.25;

/// Bisects a size until the share field holds the volume.
fn fit(v: &Volume, wanted_ml: f32, lo: f32, hi: f32, share: &ShareAt<'_>) -> Option<Vec<f32>> {
    let ml = |s: &[f32]| s.iter().sum::<f32>() * v.voxel_ml();
    let (mut lo, mut hi) = (lo, hi);
    let mut best: Option<(f32, Vec<f32>)> = None;
    for _ in 0..12 {
        let mid = (lo + hi) / 2.0;
        let s = share(v, mid);
        let got = ml(&s);
        let miss = (got - wanted_ml).abs() / wanted_ml;
        if best.as_ref().is_none_or(|b| miss < b.0) {
            best = Some((miss, s));
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
    best.filter(|b| b.0 < MISS_MAX).map(|b| b.1)
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
    for (i, &near_mm) in near.iter().enumerate() {
        if near_mm > rim_mm * 1.8 || !a.inside[i] || a.fluid[i] > 0.5 || a.depth_mm[i] < 2.0 {
            continue;
        }
        let p = v.mm(i % v.nx, i / v.nx % v.ny, i / (v.nx * v.ny));
        let wide = rim_mm * (1.0 + 0.6 * noise.mm(p, 12.0));
        let w = smooth(wide, wide * 0.5, near_mm);
        v.hu[i] = (f32::from(v.hu[i]) - dark * w).round() as i16;
    }
}
