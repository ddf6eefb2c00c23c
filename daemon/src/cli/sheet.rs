//! `--png`: a contact sheet of the slices that were read, in the brain window, the suspected range framed.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use crate::decide::Finding;
use crate::infer::Reading;

/// Brain window, HU.
const LOW_HU: f32 = 0.0;
const WIDTH_HU: f32 = 80.0;
const TILES_PER_ROW: usize = 6;
const FRAME_PX: usize = 3;
const RED: [u8; 3] = [220, 40, 40];
const AMBER: [u8; 3] = [230, 170, 30];

/// Writes one sheet; the key slice is framed red, the rest of the suspected range amber.
pub fn write(
    path: &Path,
    reading: &Reading,
    planes: &[Vec<f32>],
    finding: Option<&Finding>,
) -> Result<(), String> {
    let Some(first) = planes.first() else { return Err("nothing was read".into()) };
    let size = first.len().isqrt();
    let (width, height) = (size * TILES_PER_ROW, size * planes.len().div_ceil(TILES_PER_ROW));
    let mut pixels = vec![0u8; width * height * 3];
    for (i, plane) in planes.iter().enumerate() {
        let frame = finding.and_then(|f| match &reading.slices[i] {
            s if s.slice == f.key() => Some(RED),
            _ if (f.slice_range[0]..=f.slice_range[1]).contains(&i) => Some(AMBER),
            _ => None,
        });
        let (left, top) = (i % TILES_PER_ROW * size, i / TILES_PER_ROW * size);
        for (n, hu) in plane.iter().enumerate() {
            let (y, x) = (n / size, n % size);
            let border = y.min(x).min(size - 1 - y).min(size - 1 - x) < FRAME_PX;
            let grey = (((hu - LOW_HU) / WIDTH_HU).clamp(0.0, 1.0) * 255.0) as u8;
            let colour = frame.filter(|_| border).unwrap_or([grey; 3]);
            let at = ((top + y) * width + left + x) * 3;
            pixels[at..at + 3].copy_from_slice(&colour);
        }
    }
    let file = File::create(path).map_err(|e| e.to_string())?;
    let side = |n: usize| u32::try_from(n).map_err(|e| e.to_string());
    let mut encoder = png::Encoder::new(BufWriter::new(file), side(width)?, side(height)?);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().map_err(|e| e.to_string())?;
    writer.write_image_data(&pixels).map_err(|e| e.to_string())
}
