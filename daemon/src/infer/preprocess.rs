//! HU -> what the network sees, exactly as the manifest says: clip, area resize of the central field, windows.

use super::hounsfield::HuImage;
use super::manifest::{Channel, Input};

/// One slice on a grid, HU, [S x S] row-major.
pub type Plane = Vec<f32>;

/// A square in the middle of an image, and what is done to the pixels on the way into it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grid {
    /// Pixels a side.
    pub size_px: usize,
    /// Side of the square in the patient, mm.
    pub field_mm: f64,
    /// HU range before resizing.
    pub clip_hu: [f32; 2],
    /// HU of what lies outside the image.
    pub outside_hu: f32,
}

impl Input {
    /// What the network sees.
    pub fn grid(&self) -> Grid {
        let Input { size_px, field_mm, clip_hu, outside_hu, .. } = *self;
        Grid { size_px, field_mm, clip_hu, outside_hu }
    }
}

/// Resizes one slice by exact area overlap; what lies outside the image is `outside_hu`.
pub fn plane(image: &HuImage, input: &Grid) -> Plane {
    let size = input.size_px;
    let horizontal = overlaps(image.columns, image.column_mm, input);
    let vertical = overlaps(image.rows, image.row_mm, input);
    let [low, high] = input.clip_hu;
    let mut narrow = vec![0f32; image.rows * size];
    for (row, out) in image.hu.chunks_exact(image.columns).zip(narrow.chunks_exact_mut(size)) {
        for (value, (start, weights)) in out.iter_mut().zip(&horizontal) {
            let pixels = row[*start..].iter().zip(weights);
            *value = pixels.map(|(hu, w)| (hu.clamp(low, high) - input.outside_hu) * w).sum();
        }
    }
    let mut plane = vec![0f32; size * size];
    for (out, (start, weights)) in plane.chunks_exact_mut(size).zip(&vertical) {
        for (w, row) in weights.iter().zip(narrow[start * size..].chunks_exact(size)) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o += v * w);
        }
        out.iter_mut().for_each(|o| *o += input.outside_hu);
    }
    plane
}

/// For each output pixel the first input pixel it overlaps and the overlaps, as fractions of an output pixel.
fn overlaps(n_in: usize, spacing_mm: f64, input: &Grid) -> Vec<(usize, Vec<f32>)> {
    let pitch = input.field_mm / input.size_px as f64 / spacing_mm;
    let start = n_in as f64 / 2.0 - input.size_px as f64 * pitch / 2.0;
    (0..input.size_px)
        .map(|i| {
            let low = start + pitch * i as f64;
            let first = low.floor().clamp(0.0, n_in as f64) as usize;
            let end = (low + pitch).ceil().clamp(0.0, n_in as f64) as usize;
            let overlap = |j: usize| (low + pitch).min(j as f64 + 1.0) - low.max(j as f64);
            (first, (first..end.max(first)).map(|j| (overlap(j).max(0.0) / pitch) as f32).collect())
        })
        .collect()
}

/// The network's input [C, S, S] from a slice and its neighbours (below, itself, above).
pub fn tensor(neighbours: [&Plane; 3], channels: &[Channel], input: &Input) -> Vec<f32> {
    let mut x = Vec::with_capacity(channels.len() * input.size_px * input.size_px);
    for channel in channels {
        let windowed =
            |hu: &f32| (((hu - channel.low_hu) / channel.width_hu).clamp(0.0, 1.0) - input.mean) / input.std;
        x.extend(neighbours[channel.neighbour].iter().map(windowed));
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn input(size_px: usize, field_mm: f64) -> Grid {
        Grid { size_px, field_mm, outside_hu: -1000.0, clip_hu: [-1024.0, 3071.0] }
    }

    fn image(n: usize, mm: f64, hu: impl Fn(usize, usize) -> f32) -> HuImage {
        let hu = (0..n * n).map(|i| hu(i / n, i % n)).collect();
        HuImage { rows: n, columns: n, row_mm: mm, column_mm: mm, hu }
    }

    #[test]
    fn the_same_grid_is_left_as_it_is() {
        let i = image(8, 1.0, |y, x| (y * 8 + x) as f32);
        assert_eq!(plane(&i, &input(8, 8.0)), i.hu);
    }

    #[test]
    fn halving_averages_four_pixels_and_a_small_image_is_framed_in_air() {
        let half = plane(&image(4, 1.0, |y, x| (y * 4 + x) as f32), &input(2, 4.0));
        assert_eq!(half, [2.5, 4.5, 10.5, 12.5]);
        let framed = plane(&image(2, 1.0, |_, _| 40.0), &input(4, 4.0));
        assert_eq!(framed[0], -1000.0);
        assert_eq!(framed[5], 40.0);
    }

    proptest! {
        #[test]
        fn a_constant_image_stays_constant_at_any_spacing(mm in 0.3f64..1.2, n in 200usize..300) {
            let p = plane(&image(n, mm, |_, _| 40.0), &input(16, 50.0));
            prop_assert!(p.iter().all(|v| (v - 40.0).abs() < 0.05), "{:?}", p);
        }
    }
}
