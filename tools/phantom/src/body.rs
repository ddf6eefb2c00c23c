//! What is no head, analytically: bodies and test objects that a scanner sends all day. They are there to be refused.
//!
//! Plain shapes with the bones where they matter: rings that are open, rings that are small, a closed ring of bone with
//! water in it. Nothing here is anatomy to learn from.

use crate::field::soften_flat;
use crate::scan::{ScanOptions, finish};
use crate::volume::Volume;

/// A part of a body, or a test object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// Lungs, heart, ribs, spine.
    Chest,
    /// Liver, kidneys, gas in bowel, spine.
    Abdomen,
    /// A ring of bone that a finger's width keeps open.
    Pelvis,
    /// Two legs.
    Knees,
    /// Acrylic full of water, as quality assurance scans each morning.
    Water,
    /// A skull of plastic bone full of water: the shape of a head and no brain.
    WaterSkull,
}

impl Body {
    /// All of them.
    pub const ALL: [Body; 6] =
        [Body::Chest, Body::Abdomen, Body::Pelvis, Body::Knees, Body::Water, Body::WaterSkull];

    /// Side of a square field of view that holds it, mm.
    pub fn field_mm(self) -> f32 {
        match self {
            Body::Chest | Body::Abdomen | Body::Pelvis | Body::Knees => 400.0,
            Body::Water | Body::WaterSkull => 240.0,
        }
    }

    /// Hounsfield units at a point, mm from the middle: x to the left, y to the back, z up.
    pub fn hu(self, [x, y, z]: [f32; 3]) -> f32 {
        match self {
            Body::Chest => {
                let heart = ellipse(x - 20.0, y + 25.0, 45.0, 40.0);
                let lung = ellipse(x.abs() - 78.0, y, 62.0, 88.0);
                let ribs = ellipse(x, y, 158.0, 110.0);
                let slot = (y.atan2(x) * 4.0 + z / 9.0).sin() > 0.2;
                match () {
                    () if heart < 1.0 => 45.0,
                    () if lung < 1.0 => -850.0,
                    () if (0.90..1.0).contains(&ribs) && slot => 600.0,
                    () => spine(x, y - 72.0).unwrap_or_else(|| trunk(x, y)),
                }
            }
            Body::Abdomen => {
                let liver = ellipse(x + 60.0, y + 20.0, 75.0, 60.0);
                let kidney = ellipse(x.abs() - 60.0, y - 45.0, 26.0, 32.0);
                let gas = ellipse(x - 50.0, y + 60.0 + 12.0 * (z / 20.0).sin(), 30.0, 18.0);
                match () {
                    () if gas < 1.0 => -950.0,
                    () if liver < 1.0 => 60.0,
                    () if kidney < 1.0 => 35.0,
                    () => spine(x, y - 62.0).unwrap_or_else(|| trunk(x, y)),
                }
            }
            Body::Pelvis => {
                let ring = ellipse(x, y, 115.0, 75.0);
                let open = y > 0.0 && (12.0..40.0).contains(&x.abs());
                match () {
                    () if (0.82..1.0).contains(&ring) && !open => 900.0,
                    () if ring < 0.82 => 35.0,
                    () => trunk(x, y),
                }
            }
            Body::Knees => {
                let r = (x.abs() - 90.0).hypot(y);
                match r {
                    r if r < 11.0 => -40.0,
                    r if r < 17.0 => 1300.0,
                    r if r < 52.0 => 55.0,
                    r if r < 62.0 => -100.0,
                    _ => -1000.0,
                }
            }
            Body::Water => match x.hypot(y) {
                r if r < 100.0 => 0.0,
                r if r < 107.0 => 120.0,
                _ => -1000.0,
            },
            Body::WaterSkull => match ellipse(x, y, 75.0, 92.0) {
                e if e < 0.90 => 0.0,
                e if e < 1.0 => 950.0,
                e if e < 1.05 => 110.0,
                _ => -1000.0,
            },
        }
    }
}

/// Below 1 inside.
fn ellipse(x: f32, y: f32, a: f32, b: f32) -> f32 {
    (x / a).hypot(y / b)
}

/// Muscle in fat in air.
fn trunk(x: f32, y: f32) -> f32 {
    match ellipse(x, y, 175.0, 125.0) {
        e if e < 0.93 => 50.0,
        e if e < 1.0 => -100.0,
        _ => -1000.0,
    }
}

/// A vertebra around its canal; `None` beside it.
fn spine(x: f32, y: f32) -> Option<f32> {
    let (body, canal) = (x.hypot(y), x.hypot(y - 31.0));
    match () {
        () if canal < 9.0 => Some(30.0),
        () if canal < 14.0 => Some(700.0),
        () if body < 18.0 => Some(180.0),
        () if body < 21.0 => Some(600.0),
        () => None,
    }
}

/// Scans a body or an object; the grid's own field of view is used, noise and kernel are those of [`crate::scan`].
pub fn scan(body: Body, o: &ScanOptions, seed: u64) -> Volume {
    let pixel_mm = o.field_mm / o.matrix as f32;
    let mut v = Volume::filled(o.matrix, o.matrix, o.slices, pixel_mm, o.step_mm, -1000);
    let mut hu: Vec<f32> = Vec::with_capacity(v.hu.len());
    for z in 0..v.nz {
        for y in 0..v.ny {
            hu.extend((0..v.nx).map(|x| body.hu(v.mm(x, y, z))));
        }
    }
    let a = if o.bone_kernel { 0.05 } else { (0.2 / (pixel_mm * pixel_mm)).min(0.24) };
    soften_flat(&mut hu, v.nx, v.ny, a);
    finish(&mut v, &mut hu, o, seed);
    v
}
