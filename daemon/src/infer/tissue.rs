//! What a slice is made of: is there a closed skull, and is there brain in it. Measured in HU, before any network, and on
//! a grid of its own, so that the answer does not depend on what a network sees.

use super::Tissue;
use super::hounsfield::HuImage;
use super::preprocess::{Grid, Plane};

/// Pitch of the grid, mm.
const PITCH_MM: f64 = 1.25;
/// Least and most of an image that is measured: a head with air around it, a body. A header that says more is not believed.
const FIELD_MM: std::ops::RangeInclusive<f64> = 240.0..=600.0;

const BONE_HU: f32 = 250.0;
/// Sutures, fractures and partial volume are sealed up to about this width, mm.
const SEAL_MM: f64 = 4.0;

/// Brain with its fluid; water, of which test objects are full, lies below but for its noise.
const BRAIN_HU: std::ops::RangeInclusive<f32> = 5.0..=90.0;

/// An enclosed area below this does not show where the head's middle is, cm2.
const MIDDLE_MIN_CM2: f32 = 35.0;

/// The grid that holds the whole of an image.
pub fn grid(image: &HuImage) -> Grid {
    let side_mm = (image.columns as f64 * image.column_mm).max(image.rows as f64 * image.row_mm);
    let side_mm = if side_mm.is_finite() { side_mm } else { 0.0 };
    let side_mm = side_mm.clamp(*FIELD_MM.start(), *FIELD_MM.end());
    // In whole pixels on both sides of the middle: a larger image moves no pixel.
    let size_px = 2 * (side_mm / 2.0 / PITCH_MM - 1e-6).ceil() as usize;
    Grid { size_px, field_mm: size_px as f64 * PITCH_MM, clip_hu: [-1024.0, 3071.0], outside_hu: -1000.0 }
}

/// Measures one plane; `network_mm` is the side of the square in its middle that the network sees.
pub fn measure(plane: &Plane, grid: &Grid, network_mm: f64, blank: bool) -> Tissue {
    let (size, pixel_mm) = (grid.size_px, grid.field_mm / grid.size_px as f64);
    let pixel_cm2 = (pixel_mm * pixel_mm / 100.0) as f32;
    let radius = (SEAL_MM / 2.0 / pixel_mm).round().max(1.0) as usize;
    let bone: Vec<bool> = plane.iter().map(|hu| *hu > BONE_HU).collect();
    let sealed = grow(&bone, size, radius);
    let outside = flood(&sealed, size);
    // What neither the flood reached nor the seal covers, grown back by what the seal took.
    let core: Vec<bool> = outside.iter().zip(&sealed).map(|(o, s)| !o && !s).collect();
    let enclosed = grow(&core, size, radius);
    let count =
        |test: &dyn Fn(usize) -> bool| (0..plane.len()).filter(|&i| test(i)).count() as f32 * pixel_cm2;
    let enclosed_cm2 = count(&|i| enclosed[i] && !bone[i]);
    let is_outside =
        |at: usize| ((at as f64 + 0.5) * pixel_mm - grid.field_mm / 2.0).abs() > network_mm / 2.0;
    let middle = |test: &dyn Fn(usize) -> bool| {
        let columns = (0..plane.len()).filter(|&i| test(i)).map(|i| i % size);
        let (n, sum) = columns.fold((0usize, 0usize), |(n, sum), column| (n + 1, sum + column));
        if n == 0 { 0.0 } else { ((sum as f64 / n as f64 + 0.5 - size as f64 / 2.0) * pixel_mm) as f32 }
    };
    Tissue {
        enclosed_cm2,
        middle_mm: if enclosed_cm2 >= MIDDLE_MIN_CM2 {
            middle(&|i| enclosed[i])
        } else {
            middle(&|i| plane[i] > -500.0)
        },
        brain_cm2: count(&|i| enclosed[i] && BRAIN_HU.contains(&plane[i])),
        outside_cm2: count(&|i| enclosed[i] && !bone[i] && (is_outside(i % size) || is_outside(i / size))),
        body_cm2: count(&|i| plane[i] > -500.0),
        blank: blank || plane.iter().any(|hu| !hu.is_finite()),
    }
}

/// Dilation by a square, separable.
fn grow(mask: &[bool], size: usize, radius: usize) -> Vec<bool> {
    let along = |mask: &[bool], step: usize, across: usize| {
        let mut out = vec![false; mask.len()];
        for line in 0..size {
            for at in 0..size {
                if mask[line * across + at * step] {
                    for to in at.saturating_sub(radius)..(at + radius + 1).min(size) {
                        out[line * across + to * step] = true;
                    }
                }
            }
        }
        out
    };
    along(&along(mask, 1, size), size, 1)
}

/// What can be reached from the border without crossing `wall`.
fn flood(wall: &[bool], size: usize) -> Vec<bool> {
    let mut reached = vec![false; wall.len()];
    let border = (0..size).flat_map(|i| [i, (size - 1) * size + i, i * size, i * size + size - 1]);
    let mut stack: Vec<usize> = border.filter(|&i| !wall[i]).collect();
    while let Some(i) = stack.pop() {
        if reached[i] || wall[i] {
            continue;
        }
        reached[i] = true;
        let (y, x) = (i / size, i % size);
        if x > 0 {
            stack.push(i - 1);
        }
        if x + 1 < size {
            stack.push(i + 1);
        }
        if y > 0 {
            stack.push(i - size);
        }
        if y + 1 < size {
            stack.push(i + size);
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ring of bone of 60 mm radius with `inside` in it and a gap of `gap_px`.
    fn head(inside: f32, gap_px: usize) -> Tissue {
        head_seen(inside, gap_px, 240.0)
    }

    fn head_seen(inside: f32, gap_px: usize, network_mm: f64) -> Tissue {
        let size = 192;
        let plane = (0..size * size)
            .map(|i| {
                let (y, x) = ((i / size) as f64 - 96.0, (i % size) as f64 - 96.0);
                let r = (x * x + y * y).sqrt() * 1.25;
                match r {
                    r if r < 60.0 => inside,
                    r if r < 67.0 && !(y.abs() * 2.0 < gap_px as f64 && x > 0.0) => 1000.0,
                    r if r < 67.0 => 40.0,
                    _ => -1000.0,
                }
            })
            .collect();
        measure(
            &plane,
            &Grid { size_px: size, field_mm: 240.0, clip_hu: [-1024.0, 3071.0], outside_hu: -1000.0 },
            network_mm,
            false,
        )
    }

    #[test]
    fn a_skull_encloses_its_area_even_with_a_suture() {
        for gap in [0, 2] {
            let t = head(35.0, gap);
            assert!((t.enclosed_cm2 - 113.0).abs() < 8.0, "{t:?}");
            assert!((t.brain_cm2 - 113.0).abs() < 8.0, "{t:?}");
        }
    }

    #[test]
    fn brain_that_the_network_does_not_see_is_measured() {
        assert_eq!(head_seen(35.0, 0, 125.0).outside_cm2, 0.0);
        // A square of 100 mm leaves four caps of a circle of 60 mm radius.
        let caps = 4.0 * (36.0 * (5.0f32 / 6.0).acos() - 5.0 * 11f32.sqrt());
        assert!((head_seen(35.0, 0, 100.0).outside_cm2 - caps).abs() < 3.0, "{caps}");
    }

    #[test]
    fn the_grid_holds_the_image_and_moves_no_pixel() {
        let image =
            |n: usize, mm: f64| HuImage { rows: n, columns: n, row_mm: mm, column_mm: mm, hu: vec![] };
        let of = |n, mm| (grid(&image(n, mm)).size_px, grid(&image(n, mm)).field_mm);
        assert_eq!(of(512, 0.46), (192, 240.0));
        assert_eq!(of(512, 300.0 / 512.0), (240, 300.0));
        assert_eq!(of(512, 0.5), (206, 257.5));
        assert_eq!(of(512, 1e9), (480, 600.0));
        assert_eq!(of(512, f64::NAN), (192, 240.0));
    }

    #[test]
    fn an_empty_skull_has_no_brain_and_an_open_ring_encloses_nothing() {
        assert!(head(-990.0, 0).brain_cm2 < 5.0);
        assert!(head(2.0, 0).brain_cm2 < 5.0, "water");
        assert!(head(35.0, 20).enclosed_cm2 < 5.0);
    }
}
