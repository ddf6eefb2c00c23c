//! Contact sheets in a grey window, for people to look at. Nothing reads them back.

use crate::volume::Volume;
use std::path::Path;

/// A display window in Hounsfield units.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Grey middle.
    pub level_hu: f32,
    /// Black to white.
    pub width_hu: f32,
}

/// The brain window: level 40, width 80.
pub const BRAIN: Window = Window { level_hu: 40.0, width_hu: 80.0 };

/// Why a picture could not be written.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The file could not be created.
    #[error("picture file")]
    Io(#[from] std::io::Error),
    /// The pixels could not be encoded.
    #[error("picture encoding")]
    Png(#[from] png::EncodingError),
}

/// Writes a sheet of the given slices, `columns` wide, each `side` pixels square.
///
/// # Errors
/// [`PictureError`] when the file cannot be written.
pub fn sheet(
    path: &Path,
    tiles: &[(&Volume, usize)],
    columns: usize,
    side: usize,
    w: Window,
) -> Result<(), PictureError> {
    let columns = columns.clamp(1, tiles.len().max(1));
    let rows = tiles.len().div_ceil(columns);
    let width = columns * side;
    let mut grey = vec![0u8; width * rows * side];
    for (i, (v, z)) in tiles.iter().enumerate() {
        let (ox, oy) = (i % columns * side, i / columns * side);
        for y in 0..side {
            for x in 0..side {
                let hu = area(v, *z, x, y, side);
                let g = ((hu - w.level_hu) / w.width_hu + 0.5).clamp(0.0, 1.0) * 255.0;
                grey[(oy + y) * width + ox + x] = g.round() as u8;
            }
        }
    }
    write_grey(path, width, rows * side, &grey)
}

/// Writes 8-bit grey pixels as PNG.
///
/// # Errors
/// [`PictureError`] when the file cannot be written.
pub fn write_grey(path: &Path, width: usize, height: usize, grey: &[u8]) -> Result<(), PictureError> {
    let file = std::io::BufWriter::new(std::fs::File::create(path)?);
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::High);
    encoder.write_header()?.write_image_data(grey)?;
    Ok(())
}

/// Mean of the voxels under one picture pixel.
fn area(v: &Volume, z: usize, x: usize, y: usize, side: usize) -> f32 {
    let span = |i: usize, n: usize| {
        let lo = i * n / side;
        (lo, ((i + 1) * n / side).max(lo + 1).min(n))
    };
    let ((x0, x1), (y0, y1)) = (span(x, v.nx), span(y, v.ny));
    let mut sum = 0.0;
    for yy in y0..y1 {
        for xx in x0..x1 {
            sum += f32::from(v.hu[v.at(xx, yy, z)]);
        }
    }
    sum / ((x1 - x0) * (y1 - y0)).max(1) as f32
}
