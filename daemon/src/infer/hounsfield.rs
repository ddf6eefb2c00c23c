//! Stored pixels -> Hounsfield units in standard orientation. Nothing the header says of them is taken on faith.
//!
//! The library decodes; rescale, padding and sign are read here, because a `UN`-typed Rescale Slope "1 " is 49 to a
//! reader that takes its bytes for a number.

mod codestream;
mod frames;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use dicom_pixeldata::PixelDecoder;

use crate::dicom::dataset::{Dataset, Span, Tag};
use crate::dicom::{HeaderError, PlaneGeometry, SliceHeader};

const PHOTOMETRIC: Tag = (0x0028, 0x0004);
const BITS_ALLOCATED: Tag = (0x0028, 0x0100);
const BITS_STORED: Tag = (0x0028, 0x0101);
const HIGH_BIT: Tag = (0x0028, 0x0102);
const PIXEL_REPRESENTATION: Tag = (0x0028, 0x0103);
const PADDING: Tag = (0x0028, 0x0120);
const PADDING_LIMIT: Tag = (0x0028, 0x0121);
const INTERCEPT: Tag = (0x0028, 0x1052);
const SLOPE: Tag = (0x0028, 0x1053);

/// Most rows or columns of a slice; CT has 512, 1024 or 2048.
const SIDE_MAX: u16 = 4096;

/// HU of air, and of pixels that the header calls padding.
pub const AIR_HU: f32 = -1000.0;

/// One slice in HU: rows from anterior to posterior, columns from the patient's right to left.
#[derive(Debug, Clone, PartialEq)]
pub struct HuImage {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Distance between rows, mm.
    pub row_mm: f64,
    /// Distance between columns, mm.
    pub column_mm: f64,
    /// Row-major.
    pub hu: Vec<f32>,
}

/// Why pixels are no Hounsfield units.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The header could not be read again.
    #[error("header")]
    Header(#[source] HeaderError),
    /// The pixel data could not be decoded.
    #[error("pixel data cannot be decoded: {0}")]
    Pixels(String),
    /// The decoder panicked; the file is at fault, the program goes on.
    #[error("the decoder gave up on this pixel data")]
    Panicked,
    /// Decodable, but no CT slice.
    #[error("{0}")]
    NotASlice(&'static str),
}

const WANTED: [Tag; 9] = [
    PHOTOMETRIC,
    BITS_ALLOCATED,
    BITS_STORED,
    HIGH_BIT,
    PIXEL_REPRESENTATION,
    PADDING,
    PADDING_LIMIT,
    INTERCEPT,
    SLOPE,
];

/// Decodes one instance, or the frame of it that the header is of.
pub fn decode(path: &Path, header: &SliceHeader) -> Result<HuImage, DecodeError> {
    let read = |source| DecodeError::Header(HeaderError::Read { source });
    if header.frame.is_none() {
        return decode_bytes(&std::fs::read(path).map_err(read)?, header);
    }
    let d = Dataset::read(path, &WANTED).map_err(DecodeError::Header)?;
    // Of hundreds of megabytes only this frame's.
    decode_frame(&d, header, |span| read_span(path, span))
}

/// Refuses a compressed image of one frame that says it is larger than its header says, before anybody makes room for it.
/// Whether it is a slice does not matter.
pub fn check_codestream(path: &Path, header: &SliceHeader) -> Result<(), DecodeError> {
    check_size(header)?;
    let d = Dataset::read(path, &WANTED).map_err(DecodeError::Header)?;
    frames::check(&d, header, |span| read_span(path, span))
}

fn read_span(path: &Path, (offset, length): Span) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// One slice as it is stored: nothing turned, nothing scaled.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSlice {
    /// Stored values with nothing but their stored bits, row-major; padding is air.
    pub values: Vec<u16>,
    /// The same in HU.
    pub hu: Vec<f32>,
    /// The stored value that is nearest to air.
    pub air: u16,
    /// Bits Stored.
    pub bits: u16,
    /// High Bit.
    pub high_bit: u16,
    /// Pixel Representation is two's complement.
    pub signed: bool,
}

/// Decodes a single-frame instance without turning it upright, for writing it again.
pub fn stored(path: &Path, header: &SliceHeader) -> Result<StoredSlice, DecodeError> {
    let read = |source| DecodeError::Header(HeaderError::Read { source });
    check_size(header)?;
    let bytes = std::fs::read(path).map_err(read)?;
    let d = Dataset::parse(&bytes, &WANTED).map_err(DecodeError::Header)?;
    let scale = Scale::new(&d)?;
    let raw = values(&d, header, &guarded(|| stored_bytes(&bytes))?)?;
    let air = scale.air();
    let values = raw.iter().map(|raw| if scale.is_padding(*raw) { air } else { scale.stored_bits(*raw) });
    Ok(StoredSlice {
        values: values.collect(),
        hu: raw.iter().map(|raw| scale.hu(*raw)).collect(),
        air,
        bits: scale.bits as u16,
        high_bit: (scale.shift + scale.bits - 1) as u16,
        signed: scale.signed,
    })
}

/// Decodes one instance, or the frame of it that the header is of, from the bytes of its file.
pub fn decode_bytes(bytes: &[u8], header: &SliceHeader) -> Result<HuImage, DecodeError> {
    let d = Dataset::parse(bytes, &WANTED).map_err(DecodeError::Header)?;
    if d.pixels.is_some() {
        return decode_frame(&d, header, |(offset, length)| {
            let end = usize::try_from(offset + length).unwrap_or(usize::MAX);
            let bytes = bytes.get(offset as usize..end);
            Ok(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?.to_vec())
        });
    }
    // Deflated: the library inflates, within the limit that the walk has held already.
    check_size(header)?;
    let scale = Scale::new(&d)?;
    let decoded = guarded(|| stored_bytes(bytes))?;
    image(&d, header, &decoded, &scale)
}

fn decode_frame(
    d: &Dataset,
    header: &SliceHeader,
    read: impl Fn(Span) -> std::io::Result<Vec<u8>>,
) -> Result<HuImage, DecodeError> {
    check_size(header)?;
    let mut scale = Scale::new(d)?;
    if let Some([slope, intercept]) = header.frame.as_ref().and_then(|frame| frame.rescale) {
        scale = scale.rescaled(slope, intercept)?;
    }
    let index = header.frame.as_ref().map_or(0, |frame| frame.number as usize - 1);
    let decoded = guarded(|| frames::decode(d, header, index, read))?;
    image(d, header, &decoded, &scale)
}

/// Decoders make room by what the header says before they look at the pixels.
fn check_size(header: &SliceHeader) -> Result<(), DecodeError> {
    match header.rows.max(header.columns) <= SIDE_MAX {
        true => Ok(()),
        false => Err(DecodeError::NotASlice("more rows or columns than any CT has")),
    }
}

fn guarded<T>(work: impl FnOnce() -> Result<T, DecodeError>) -> Result<T, DecodeError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| DecodeError::Panicked)?
}

fn image(
    d: &Dataset,
    header: &SliceHeader,
    decoded: &Decoded,
    scale: &Scale,
) -> Result<HuImage, DecodeError> {
    let (rows, columns) = (usize::from(header.rows), usize::from(header.columns));
    let hu = values(d, header, decoded)?.into_iter().map(|raw| scale.hu(raw)).collect();
    let geometry = header.geometry.ok_or(DecodeError::NotASlice("no plane geometry"))?;
    let [row_mm, column_mm] = geometry.pixel_spacing_mm;
    Ok(upright(HuImage { rows, columns, row_mm, column_mm, hu }, &geometry))
}

fn values(d: &Dataset, header: &SliceHeader, decoded: &Decoded) -> Result<Vec<u16>, DecodeError> {
    if d.text(PHOTOMETRIC).is_some_and(|p| p != "MONOCHROME2") {
        return Err(DecodeError::NotASlice("photometric interpretation is not MONOCHROME2"));
    }
    stored_values(decoded, usize::from(header.rows) * usize::from(header.columns))
}

/// Decoded pixel data of one frame and the bits of one value in it.
struct Decoded {
    bytes: Vec<u8>,
    bits_allocated: u16,
}

fn stored_bytes(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let object = dicom_object::from_reader(bytes).map_err(|e| DecodeError::Pixels(e.to_string()))?;
    let pixels = object.decode_pixel_data().map_err(|e| DecodeError::Pixels(crate::chain(&e)))?;
    Ok(Decoded { bits_allocated: pixels.bits_allocated(), bytes: pixels.data().to_vec() })
}

/// The width comes from Bits Allocated, never from the length: half a 16-bit slice is no 8-bit slice.
fn stored_values(decoded: &Decoded, n: usize) -> Result<Vec<u16>, DecodeError> {
    let bytes = &decoded.bytes;
    match decoded.bits_allocated {
        16 if n > 0 && bytes.len() == 2 * n => {
            Ok(bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect())
        }
        // A native value of odd length is padded to even (PS3.5 8.1.1).
        8 if n > 0 && (bytes.len() == n || bytes.len() == n + n % 2) => {
            Ok(bytes[..n].iter().map(|b| u16::from(*b)).collect())
        }
        _ => Err(DecodeError::NotASlice("pixel data has another size than rows by columns")),
    }
}

/// Stored value -> HU.
struct Scale {
    shift: u32,
    bits: u32,
    signed: bool,
    /// As numbers of the pixels' sign, whatever Bits Stored says: some write padding beyond it.
    padding: Option<(i32, i32)>,
    slope: f64,
    intercept: f64,
}

impl Scale {
    fn new(d: &Dataset) -> Result<Self, DecodeError> {
        let allocated = u32::from(d.short(BITS_ALLOCATED).unwrap_or(16));
        let bits = u32::from(d.short(BITS_STORED).unwrap_or(16));
        let high = u32::from(d.short(HIGH_BIT).unwrap_or(bits.saturating_sub(1) as u16));
        if !matches!(allocated, 8 | 16)
            || bits == 0
            || bits > allocated
            || high + 1 < bits
            || high >= allocated
        {
            return Err(DecodeError::NotASlice("bits allocated, stored and high bit contradict each other"));
        }
        let signed = d.short(PIXEL_REPRESENTATION) == Some(1);
        let number = |tag: Tag, default: f64| match d.text(tag) {
            None => Ok(default),
            Some(_) => d.decimal(tag).ok_or(DecodeError::NotASlice("rescale is no number")),
        };
        let mut scale = Scale {
            shift: high + 1 - bits,
            bits,
            signed,
            padding: None,
            slope: number(SLOPE, 1.0)?,
            intercept: number(INTERCEPT, 0.0)?,
        };
        // Some write a negative padding value as unsigned; sixteen bits are sixteen bits.
        let padding =
            |tag| d.short(tag).map(|raw| if signed { i32::from(raw as i16) } else { i32::from(raw) });
        scale.padding = padding(PADDING).map(|value| {
            let limit = padding(PADDING_LIMIT).unwrap_or(value);
            (value.min(limit), value.max(limit))
        });
        let (slope, intercept) = (scale.slope, scale.intercept);
        scale.rescaled(slope, intercept)
    }

    /// The same pixels with another rescale.
    fn rescaled(self, slope: f64, intercept: f64) -> Result<Self, DecodeError> {
        if !(slope != 0.0 && slope.abs() <= 1e3 && intercept.abs() <= 1e5) {
            return Err(DecodeError::NotASlice("rescale is out of any range"));
        }
        Ok(Scale { slope, intercept, ..self })
    }

    fn value(&self, raw: u16) -> i32 {
        let value = u32::from(raw) >> self.shift & ((1u32 << self.bits) - 1);
        let unused = 32 - self.bits;
        if self.signed { (value << unused) as i32 >> unused } else { value as i32 }
    }

    /// Without what else lies in the cell: an overlay, or padding that is wider than the stored bits.
    fn stored_bits(&self, raw: u16) -> u16 {
        raw & (((1u32 << self.bits) - 1) << self.shift) as u16
    }

    fn is_padding(&self, raw: u16) -> bool {
        // A padding value that the stored bits cannot hold stands in the whole cell; one that they can, in them.
        let cell = if self.signed { i32::from(raw as i16) } else { i32::from(raw) };
        let is_padding = |v| self.padding.is_some_and(|(low, high)| (low..=high).contains(&v));
        is_padding(self.value(raw)) || is_padding(cell)
    }

    fn hu(&self, raw: u16) -> f32 {
        if self.is_padding(raw) {
            return AIR_HU;
        }
        (f64::from(self.value(raw)) * self.slope + self.intercept) as f32
    }

    /// The stored value nearest to air, as it lies in a cell.
    fn air(&self) -> u16 {
        let wanted = ((f64::from(AIR_HU) - self.intercept) / self.slope).round();
        let (low, high) = match self.signed {
            true => (-(1i64 << (self.bits - 1)), (1i64 << (self.bits - 1)) - 1),
            false => (0, (1i64 << self.bits) - 1),
        };
        let value = (wanted as i64).clamp(low, high);
        self.stored_bits(((value as u32) << self.shift) as u16)
    }
}

/// Flips and transposes until columns run to the patient's left and rows to the back.
fn upright(image: HuImage, g: &PlaneGeometry) -> HuImage {
    let Turn { transpose, mirror_x, mirror_y } = Turn::of(g);
    if !transpose && !mirror_x && !mirror_y {
        return image;
    }
    let (rows, columns) = if transpose { (image.columns, image.rows) } else { (image.rows, image.columns) };
    let mut hu = Vec::with_capacity(image.hu.len());
    for y in 0..rows {
        let y = if mirror_y { rows - 1 - y } else { y };
        for x in 0..columns {
            let x = if mirror_x { columns - 1 - x } else { x };
            hu.push(if transpose {
                image.hu[x * image.columns + y]
            } else {
                image.hu[y * image.columns + x]
            });
        }
    }
    let (row_mm, column_mm) =
        if transpose { (image.column_mm, image.row_mm) } else { (image.row_mm, image.column_mm) };
    HuImage { rows, columns, row_mm, column_mm, hu }
}

/// How a stored image is turned upright: by swapping rows and columns first, then mirroring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    transpose: bool,
    mirror_x: bool,
    mirror_y: bool,
}

impl Turn {
    /// The turn of a plane.
    pub fn of(g: &PlaneGeometry) -> Self {
        let transpose = g.row[1].abs() > g.row[0].abs();
        let (right, down) = if transpose { (g.column[0], g.row[1]) } else { (g.row[0], g.column[1]) };
        Turn { transpose, mirror_x: right < 0.0, mirror_y: down < 0.0 }
    }

    /// Where a pixel [row, column] of the stored image lies in the upright one: mm from the middle toward the patient's
    /// left and toward the back. `spacing_mm`: between rows, between columns.
    pub fn offset_mm(self, pixel: [usize; 2], size: [usize; 2], spacing_mm: [f64; 2]) -> [f64; 2] {
        let from_middle = |i: usize| (pixel[i] as f64 + 0.5 - size[i] as f64 / 2.0) * spacing_mm[i];
        let (x, y) = match self.transpose {
            true => (from_middle(0), from_middle(1)),
            false => (from_middle(1), from_middle(0)),
        };
        [if self.mirror_x { -x } else { x }, if self.mirror_y { -y } else { y }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(signed: bool, bits: u32) -> Scale {
        Scale { shift: 0, bits, signed, padding: Some((-2000, -2000)), slope: 1.0, intercept: -24.0 }
    }

    #[test]
    fn stored_bits_are_sign_extended_and_padding_is_air() {
        assert_eq!(scale(true, 16).hu(0xffff), -25.0);
        assert_eq!(scale(true, 13).hu(0x1fff), -25.0);
        assert_eq!(scale(false, 12).hu(0xf001), -23.0);
        assert_eq!(scale(true, 16).hu(63536), AIR_HU);
    }

    #[test]
    fn padding_beyond_the_stored_bits_is_found_in_the_whole_cell_and_never_mistaken_for_tissue() {
        let padded = |signed, bits, value| Scale { padding: Some((value, value)), ..scale(signed, bits) };
        // Unsigned 12 bits, padding 63536 (-2000 written as unsigned): its low 12 bits, 2096, are bone.
        let unsigned = padded(false, 12, 63536);
        assert_eq!(unsigned.hu(63536), AIR_HU);
        assert_eq!(unsigned.hu(2096), 2072.0);
        // Unsigned 12 bits, padding 0, overlay bits above the stored ones.
        assert_eq!(padded(false, 12, 0).hu(0xf000), AIR_HU);
        // Signed 12 bits cannot hold -3000; the cell can.
        let signed = padded(true, 12, -3000);
        assert_eq!(signed.hu((-3000i16) as u16), AIR_HU);
        assert_eq!(signed.hu(((-3000i16) as u16) & 0x0fff), 1096.0 - 24.0);
    }

    #[test]
    fn half_a_slice_is_refused_and_never_read_as_eight_bit() {
        let decoded = |bits_allocated, n| Decoded { bytes: vec![0; n], bits_allocated };
        assert!(stored_values(&decoded(16, 32), 16).is_ok());
        assert!(stored_values(&decoded(8, 16), 16).is_ok() && stored_values(&decoded(8, 10), 9).is_ok());
        for (bits, n) in [(16, 16), (16, 34), (8, 32), (8, 15), (32, 64)] {
            assert!(stored_values(&decoded(bits, n), 16).is_err(), "{bits} bits, {n} bytes");
        }
    }

    #[test]
    fn an_image_stored_upside_down_is_turned_upright() {
        let image =
            HuImage { rows: 2, columns: 3, row_mm: 1.0, column_mm: 2.0, hu: vec![1., 2., 3., 4., 5., 6.] };
        let plane =
            |row, column| PlaneGeometry { position_mm: [0.0; 3], row, column, pixel_spacing_mm: [1.0, 2.0] };
        let turned = upright(image.clone(), &plane([-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]));
        assert_eq!(turned.hu, [6., 5., 4., 3., 2., 1.]);
        let turned = upright(image.clone(), &plane([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]));
        assert_eq!((turned.rows, turned.columns, turned.row_mm), (3, 2, 2.0));
        assert_eq!(turned.hu, [1., 4., 2., 5., 3., 6.]);
        assert_eq!(upright(image.clone(), &plane([1.0, 0.0, 0.0], [0.0, 1.0, 0.0])), image);
        // Where a stored pixel lies is where the upright image has it.
        for (row, column) in [
            ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
            ([-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
            ([1.0, 0.0, 0.0], [0.0, -1.0, 0.0]),
            ([0.0, 1.0, 0.0], [1.0, 0.0, 0.0]),
            ([0.0, -1.0, 0.0], [1.0, 0.0, 0.0]),
            ([0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]),
        ] {
            let plane = plane(row, column);
            let turned = upright(image.clone(), &plane);
            for at in 0..image.hu.len() {
                let pixel = [at / image.columns, at % image.columns];
                let spacing = [image.row_mm, image.column_mm];
                let [x, y] = Turn::of(&plane).offset_mm(pixel, [image.rows, image.columns], spacing);
                let index = |mm: f64, each: f64, n: usize| (mm / each + n as f64 / 2.0).floor() as usize;
                let (x, y) =
                    (index(x, turned.column_mm, turned.columns), index(y, turned.row_mm, turned.rows));
                assert_eq!(turned.hu[y * turned.columns + x], image.hu[at], "{row:?} {column:?}");
            }
        }
    }
}
