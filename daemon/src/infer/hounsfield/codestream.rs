//! How large a compressed image says it is, before anybody makes room for it.

use super::DecodeError;
use crate::dicom::SliceHeader;

/// RLE Lossless.
const RLE: &str = "1.2.840.10008.1.2.5";

/// Rows, columns, components.
type Size = (u32, u32, u32);

/// Refuses a codestream whose size is not that of the header, or that does not say.
pub(super) fn check(transfer_syntax: &str, bytes: &[u8], header: &SliceHeader) -> Result<(), DecodeError> {
    let of = [header.rows, header.columns, header.samples_per_pixel].map(u32::from);
    check_size(transfer_syntax, bytes, of.into())
}

fn check_size(transfer_syntax: &str, bytes: &[u8], wanted: Size) -> Result<(), DecodeError> {
    let sizes = match transfer_syntax.strip_prefix("1.2.840.10008.1.2.4.") {
        Some("90" | "91") => jpeg_2000(bytes).map(|size| vec![size]),
        Some(_) => jpeg(bytes),
        // RLE has no size of its own; the library holds the header's against the bytes.
        None if transfer_syntax == RLE && !is_rle(bytes) => None,
        None => return Ok(()),
    };
    match sizes {
        Some(sizes) if !sizes.is_empty() && sizes.iter().all(|size| *size == wanted) => Ok(()),
        Some(_) => Err(DecodeError::NotASlice("the codestream has another size than rows by columns")),
        None => Err(DecodeError::NotASlice("the codestream is malformed")),
    }
}

/// Whether there are as many segments as there may be (PS3.5 G.5): the library makes room for as many as it is told.
fn is_rle(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|n| (1..=15).contains(&u32::from_le_bytes(*n)))
}

/// Rows, columns and components of the SIZ segment (ISO/IEC 15444-1 A.5.1), which comes first.
fn jpeg_2000(bytes: &[u8]) -> Option<Size> {
    let siz = bytes.strip_prefix(&[0xff, 0x4f, 0xff, 0x51])?;
    let number = |at: usize| Some(u32::from_be_bytes(siz.get(at..at + 4)?.try_into().ok()?));
    // Lsiz and Rsiz, then the grid's width and height, then the image's offset in it.
    let (width, height, left, top) = (number(4)?, number(8)?, number(12)?, number(16)?);
    let components = u16::from_be_bytes(siz.get(36..38)?.try_into().ok()?);
    Some((height.checked_sub(top)?, width.checked_sub(left)?, components.into()))
}

/// Rows, columns and components of every frame header (ISO/IEC 10918-1 B.2.2, ISO/IEC 14495-1 C.2.2): one in an honest image.
fn jpeg(bytes: &[u8]) -> Option<Vec<Size>> {
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    let mut sizes = Vec::new();
    loop {
        // Fill bytes may stand before a marker.
        while rest.first_chunk() == Some(&[0xff, 0xff]) {
            rest = &rest[1..];
        }
        let (&[0xff, marker], after) = rest.split_first_chunk::<2>()? else { return None };
        if marker == 0xd9 {
            return Some(sizes);
        }
        let (&length, _) = after.split_first_chunk::<2>()?;
        let (segment, after) = after.split_at_checked(usize::from(u16::from_be_bytes(length)))?;
        if is_frame(marker) {
            let &[_, _, _, r1, r0, c1, c0, components, ..] = segment else { return None };
            let [rows, columns] = [[r1, r0], [c1, c0]].map(|n| u32::from(u16::from_be_bytes(n)));
            sizes.push((rows, columns, components.into()));
        }
        rest = after;
        if marker == 0xda {
            // In coded data a marker is FF and 80H or more; what is less is stuffing (JPEG-LS) or 00H (JPEG). Restart
            // markers belong to it.
            let is_marker =
                |w: &[u8]| w[0] == 0xff && w[1] >= 0x80 && !(0xd0..=0xd7).contains(&w[1]) && w[1] != 0xff;
            match rest.windows(2).position(is_marker) {
                Some(at) => rest = &rest[at..],
                // No end of image: some writers forget it.
                None => return Some(sizes),
            }
        }
    }
}

fn is_frame(marker: u8) -> bool {
    matches!(marker, 0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf | 0xf7)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSSLESS: &str = "1.2.840.10008.1.2.4.70";

    fn jpeg_of(frames: &[(u16, u16)], tail: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xff, 0xd8, 0xff, 0xe0, 0, 4, 0xff, 0xc3];
        for (rows, columns) in frames {
            bytes.extend([0xff, 0xc3, 0, 11, 16]);
            bytes.extend(rows.to_be_bytes());
            bytes.extend(columns.to_be_bytes());
            bytes.extend([1, 1, 0x11, 0]);
        }
        bytes.extend([0xff, 0xda, 0, 8, 1, 1, 0, 1, 0, 0, 0x12, 0xff, 0x00, 0xff, 0xd0, 0x34]);
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn only_the_size_that_the_header_says_is_let_through() {
        let end = [0xff, 0xd9];
        let check = |bytes: &[u8]| check_size(LOSSLESS, bytes, (512, 256, 1)).is_ok();
        assert!(check_size(LOSSLESS, &jpeg_of(&[(512, 256)], &end), (512, 256, 3)).is_err());
        assert!(check(&jpeg_of(&[(512, 256)], &end)) && check(&jpeg_of(&[(512, 256)], &[])));
        assert!(!check(&jpeg_of(&[(60_000, 60_000)], &end)));
        // A second frame header, before or behind the coded data of the first.
        assert!(!check(&jpeg_of(&[(512, 256), (60_000, 60_000)], &end)));
        let second = jpeg_of(&[(60_000, 60_000)], &end);
        assert!(!check(&jpeg_of(&[(512, 256)], &second[8..])));
        assert!(!check(&jpeg_of(&[], &end)) && !check(b"no JPEG"));
    }

    #[test]
    fn more_segments_than_rle_has_are_refused() {
        let check = |segments: u32| check_size(RLE, &segments.to_le_bytes(), (512, 512, 1)).is_ok();
        assert!(check(2) && check(15) && !check(16) && !check(0) && !check(0xdcdc_dcdc));
        assert!(check_size(RLE, &[], (512, 512, 1)).is_err());
    }

    #[test]
    fn jpeg_2000_says_its_size_first() {
        let mut bytes = vec![0xff, 0x4f, 0xff, 0x51, 0, 41, 0, 0];
        for n in [300u32, 520, 44, 8, 256, 512, 0, 0] {
            bytes.extend(n.to_be_bytes());
        }
        bytes.extend(1u16.to_be_bytes());
        assert_eq!(jpeg_2000(&bytes), Some((512, 256, 1)));
        assert!(check_size("1.2.840.10008.1.2.4.90", &bytes, (512, 256, 1)).is_ok());
        assert!(check_size("1.2.840.10008.1.2.4.91", &bytes, (512, 512, 1)).is_err());
        // Components cost as much as rows do.
        assert!(check_size("1.2.840.10008.1.2.4.91", &bytes, (512, 256, 3)).is_err());
        *bytes.last_mut().unwrap() = 200;
        assert!(check_size("1.2.840.10008.1.2.4.90", &bytes, (512, 256, 1)).is_err());
        assert_eq!(jpeg_2000(&bytes[..20]), None);
    }
}
