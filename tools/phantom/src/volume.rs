//! The image the whole crate works on: Hounsfield units on a regular grid.
//!
//! Also the small numpy reader and writer that hands volumes to the training tools. It knows no DICOM.

use std::io::Write;
use std::path::Path;

/// Hounsfield units, index `[z][y][x]`: z from the neck to the crown, y toward the back, x toward patient left.
#[derive(Clone, Debug, PartialEq)]
pub struct Volume {
    /// Columns.
    pub nx: usize,
    /// Rows.
    pub ny: usize,
    /// Slices.
    pub nz: usize,
    /// Side of a square pixel in millimetres.
    pub pixel_mm: f32,
    /// Distance between slice centres in millimetres.
    pub step_mm: f32,
    /// `nz * ny * nx` values in Hounsfield units.
    pub hu: Vec<i16>,
}

/// Why a numpy file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// The file could not be opened, read or written.
    #[error("file {0}")]
    Io(String, #[source] std::io::Error),
    /// The content is not a C-ordered little-endian i16 array of three dimensions.
    #[error("not a three-dimensional little-endian int16 array: {0}")]
    Shape(String),
}

impl Volume {
    /// A volume of one value.
    pub fn filled(nx: usize, ny: usize, nz: usize, pixel_mm: f32, step_mm: f32, hu: i16) -> Self {
        Volume { nx, ny, nz, pixel_mm, step_mm, hu: vec![hu; nx * ny * nz] }
    }

    /// Index of a voxel.
    pub fn at(&self, x: usize, y: usize, z: usize) -> usize {
        (z * self.ny + y) * self.nx + x
    }

    /// Millilitres in one voxel.
    pub fn voxel_ml(&self) -> f32 {
        self.pixel_mm * self.pixel_mm * self.step_mm / 1000.0
    }

    /// Position of a voxel in millimetres from the middle of the grid.
    pub fn mm(&self, x: usize, y: usize, z: usize) -> [f32; 3] {
        [
            (x as f32 - (self.nx as f32 - 1.0) / 2.0) * self.pixel_mm,
            (y as f32 - (self.ny as f32 - 1.0) / 2.0) * self.pixel_mm,
            (z as f32 - (self.nz as f32 - 1.0) / 2.0) * self.step_mm,
        ]
    }

    /// Reads an int16 `[z][y][x]` numpy file (format 1 or 2).
    ///
    /// # Errors
    /// [`NpyError`] when the file cannot be read or holds something else.
    pub fn read_npy(path: &Path, pixel_mm: f32, step_mm: f32) -> Result<Self, NpyError> {
        let bytes = std::fs::read(path).map_err(|e| NpyError::Io(path.display().to_string(), e))?;
        let bad = |why: &str| NpyError::Shape(why.to_string());
        if bytes.len() < 12 || &bytes[..6] != b"\x93NUMPY" {
            return Err(bad("no numpy magic"));
        }
        let (length, start) = match bytes[6] {
            1 => (usize::from(u16::from_le_bytes([bytes[8], bytes[9]])), 10),
            _ => (u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize, 12),
        };
        let header = bytes.get(start..start + length).ok_or_else(|| bad("cut short"))?;
        let header = String::from_utf8_lossy(header);
        if !header.contains("<i2") || header.contains("True") {
            return Err(bad(&header));
        }
        let dims = header.split("'shape': (").nth(1).and_then(|s| s.split(')').next()).unwrap_or("");
        let dims: Vec<usize> = dims.split(',').filter_map(|d| d.trim().parse().ok()).collect();
        let [nz, ny, nx] = dims[..] else { return Err(bad(&header)) };
        let sized = |mm: f32| mm.is_finite() && mm > 0.0;
        if nx == 0 || ny == 0 || nz == 0 || !sized(pixel_mm) || !sized(step_mm) {
            return Err(bad("no voxels, or voxels without a size"));
        }
        let body = &bytes[start + length..];
        if nx.checked_mul(ny).and_then(|n| n.checked_mul(nz)).and_then(|n| n.checked_mul(2))
            != Some(body.len())
        {
            return Err(bad("length differs from shape"));
        }
        let hu = body.chunks_exact(2).map(|b| i16::from_le_bytes([b[0], b[1]])).collect();
        Ok(Volume { nx, ny, nz, pixel_mm, step_mm, hu })
    }

    /// Writes the volume as an int16 numpy file.
    ///
    /// # Errors
    /// [`NpyError::Io`] when the file cannot be written.
    pub fn write_npy(&self, path: &Path) -> Result<(), NpyError> {
        let body: Vec<u8> = self.hu.iter().flat_map(|v| v.to_le_bytes()).collect();
        write_npy(path, "<i2", [self.nz, self.ny, self.nx], &body)
    }
}

/// Writes raw little-endian bytes as a three-dimensional numpy file of the given element type.
///
/// # Errors
/// [`NpyError::Io`] when the file cannot be written.
pub fn write_npy(path: &Path, dtype: &str, shape: [usize; 3], body: &[u8]) -> Result<(), NpyError> {
    let [nz, ny, nx] = shape;
    let mut header = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({nz}, {ny}, {nx}), }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let io = |e| NpyError::Io(path.display().to_string(), e);
    let mut file = std::fs::File::create(path).map_err(io)?;
    file.write_all(b"\x93NUMPY\x01\x00").map_err(io)?;
    file.write_all(&(header.len() as u16).to_le_bytes()).map_err(io)?;
    file.write_all(header.as_bytes()).map_err(io)?;
    file.write_all(body).map_err(io)
}
