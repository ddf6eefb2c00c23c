//! One frame of pixel data, wherever it lies: taken out by its place, decoded as an image of one frame.
//!
//! The library is shown one whole frame in one fragment: it takes a fragment for a frame, and panics over a frame of
//! RLE in two. And only one whose codestream has the size that the header says: a JPEG of 2 KB that calls itself
//! 60000 x 60000 took 20 GB.

use dicom_core::value::PixelFragmentSequence;
use dicom_core::{DataElement, PrimitiveValue, VR, dicom_value};
use dicom_object::{FileMetaTableBuilder, InMemDicomObject};
use dicom_pixeldata::PixelDecoder;

use super::codestream;
use super::{BITS_ALLOCATED, BITS_STORED, DecodeError, Decoded, HIGH_BIT, PHOTOMETRIC, PIXEL_REPRESENTATION};
use crate::dicom::SliceHeader;
use crate::dicom::dataset::{Dataset, PixelPlace, Span, Tag};

const SAMPLES: Tag = (0x0028, 0x0002);
const FRAMES: Tag = (0x0028, 0x0008);
const ROWS: Tag = (0x0028, 0x0010);
const COLUMNS: Tag = (0x0028, 0x0011);
const PIXEL_DATA: Tag = (0x7fe0, 0x0010);
/// Tag and length before the bytes of a fragment.
const ITEM_HEAD_BYTES: u64 = 8;

/// Decodes frame `index` (from 0); `read` gives the bytes of a span.
pub(super) fn decode(
    d: &Dataset,
    header: &SliceHeader,
    index: usize,
    read: impl Fn(Span) -> std::io::Result<Vec<u8>>,
) -> Result<Decoded, DecodeError> {
    let failed = |e: std::io::Error| DecodeError::Pixels(e.to_string());
    let bits_allocated = d.short(BITS_ALLOCATED).unwrap_or(16);
    let n_frames = header.frame.as_ref().map_or(1, |f| f.of as usize);
    match &d.pixels {
        None => Err(DecodeError::NotASlice("the place of a frame is not known")),
        Some(PixelPlace::Native((offset, length))) => {
            let pixels = u64::from(header.rows) * u64::from(header.columns);
            let frame = pixels * u64::from(bits_allocated / 8);
            let start = frame * index as u64;
            let all = frame * n_frames as u64;
            // A native value of odd length is padded to even (PS3.5 8.1.1).
            if frame == 0 || index >= n_frames || ![all, all + all % 2].contains(length) {
                return Err(DecodeError::NotASlice(
                    "pixel data has another size than frames by rows by columns",
                ));
            }
            let mut bytes = read((offset + start, frame)).map_err(failed)?;
            if d.is_big_endian() && bits_allocated == 16 {
                bytes.chunks_exact_mut(2).for_each(|b| b.swap(0, 1));
            }
            Ok(Decoded { bytes, bits_allocated })
        }
        Some(PixelPlace::Fragments(spans)) => {
            let (table, fragments) = spans.split_first().ok_or(DecodeError::NotASlice("no pixel data"))?;
            let own = match fragments.len() {
                _ if n_frames == 1 => fragments,
                n if n == n_frames => &fragments[index..=index],
                _ => of_frame(&read(*table).map_err(failed)?, fragments, index)?,
            };
            let mut joined = Vec::new();
            for span in own {
                joined.extend(read(*span).map_err(failed)?);
            }
            codestream::check(&d.transfer_syntax, &joined, header)?;
            encapsulated(d, header, joined)
        }
    }
}

/// Whether the one compressed frame that there is says what the header says.
pub(super) fn check(
    d: &Dataset,
    header: &SliceHeader,
    read: impl Fn(Span) -> std::io::Result<Vec<u8>>,
) -> Result<(), DecodeError> {
    let Some(PixelPlace::Fragments(spans)) = &d.pixels else {
        return Err(DecodeError::NotASlice("pixel data is not in fragments"));
    };
    let mut joined = Vec::new();
    for span in spans.iter().skip(1) {
        joined.extend(read(*span).map_err(|e| DecodeError::Pixels(e.to_string()))?);
    }
    codestream::check(&d.transfer_syntax, &joined, header)
}

/// The fragments of one frame by the Basic Offset Table (PS3.5 A.4), which counts from the first fragment's item.
fn of_frame<'a>(table: &[u8], fragments: &'a [Span], index: usize) -> Result<&'a [Span], DecodeError> {
    let unknown = DecodeError::NotASlice("fragments that belong to no known frame");
    let mut offsets = table.chunks_exact(4).map(|b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let Some(first) = fragments.first() else { return Err(unknown) };
    let place = |offset: u64| {
        fragments.iter().position(|(at, _)| at - ITEM_HEAD_BYTES == offset + first.0 - ITEM_HEAD_BYTES)
    };
    let start = offsets.nth(index).and_then(place);
    let end = match offsets.next() {
        Some(next) => place(next),
        None => Some(fragments.len()),
    };
    start.zip(end).and_then(|(start, end)| fragments.get(start..end)).filter(|f| !f.is_empty()).ok_or(unknown)
}

/// An image of this one frame, for the library to decode.
fn encapsulated(d: &Dataset, header: &SliceHeader, frame: Vec<u8>) -> Result<Decoded, DecodeError> {
    let failed = |e: &dyn std::error::Error| DecodeError::Pixels(crate::chain(e));
    let tag = |(group, element)| dicom_core::Tag(group, element);
    let mut object = InMemDicomObject::new_empty();
    let photometric = d.text(PHOTOMETRIC).unwrap_or_else(|| "MONOCHROME2".into());
    object.put(DataElement::new(tag(PHOTOMETRIC), VR::CS, PrimitiveValue::from(photometric)));
    object.put(DataElement::new(tag(FRAMES), VR::IS, PrimitiveValue::from("1")));
    let bits_allocated = d.short(BITS_ALLOCATED).unwrap_or(16);
    let bits_stored = d.short(BITS_STORED).unwrap_or(bits_allocated);
    for (of, value) in [
        (SAMPLES, 1),
        (ROWS, header.rows),
        (COLUMNS, header.columns),
        (BITS_ALLOCATED, bits_allocated),
        (BITS_STORED, bits_stored),
        (HIGH_BIT, d.short(HIGH_BIT).unwrap_or(bits_stored.saturating_sub(1))),
        (PIXEL_REPRESENTATION, d.short(PIXEL_REPRESENTATION).unwrap_or(0)),
    ] {
        object.put(DataElement::new(tag(of), VR::US, dicom_value!(U16, value)));
    }
    let fragments = PixelFragmentSequence::new_fragments(vec![frame]);
    object.put(DataElement::new(tag(PIXEL_DATA), VR::OB, fragments));
    let meta = FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(header.sop_class.as_str())
        .media_storage_sop_instance_uid(header.sop.as_str())
        .transfer_syntax(d.transfer_syntax.as_str());
    let object = object.with_meta(meta).map_err(|e| failed(&e))?;
    let pixels = object.decode_pixel_data().map_err(|e| failed(&e))?;
    Ok(Decoded { bits_allocated: pixels.bits_allocated(), bytes: pixels.data().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_given_to_frames_by_the_offset_table() {
        // Three fragments of 10 bytes: two of the first frame, one of the second.
        let fragments = [(108, 10), (126, 10), (144, 10)];
        let table = [0u32, 36].map(u32::to_le_bytes).concat();
        assert_eq!(of_frame(&table, &fragments, 0).unwrap(), &fragments[..2]);
        assert_eq!(of_frame(&table, &fragments, 1).unwrap(), &fragments[2..]);
        for (table, index) in [(&table[..], 2), (&[][..], 0), (&[1, 0, 0, 0], 0)] {
            assert!(of_frame(table, &fragments, index).is_err());
        }
    }
}
