//! Secondary Capture of the key slice, brain window, with a caption in its pixels: it says what it is wherever it goes.
//!
//! The caption stands in a band of its own below the slice, so that it covers nothing.

use super::dataset::Dataset;
use super::font;
use super::source::{Kind, Making, source_image};
use crate::config::Profile;
use crate::infer::Class;
use crate::infer::hounsfield::{self, DecodeError, HuImage};

/// Brain window, HU.
const LOW_HU: f32 = 0.0;
const WIDTH_HU: f32 = 80.0;
/// The picture is at least this wide, so that the caption can be read.
const WIDTH_MIN_PX: usize = 512;
const SCALE_PX: usize = 2;
const MARGIN_PX: usize = 6;
const LINE_PX: usize = font::HEIGHT * SCALE_PX + 6;

/// Makes the capture; `None` where nothing is suspected.
pub fn make(making: &Making) -> Result<Option<Dataset>, DecodeError> {
    let Some(finding) = &making.verdict.finding else { return Ok(None) };
    let Some(instance) = making.source.instance(finding.key_sop_uid.as_str()) else { return Ok(None) };
    let Some(slice) = instance.frame(finding.key_frame) else { return Ok(None) };
    let image = hounsfield::decode(&slice.path, &slice.header)?;
    let picture = draw(&image, &caption(making));
    let (Ok(rows), Ok(columns)) = (u16::try_from(picture.rows), u16::try_from(picture.columns)) else {
        return Err(DecodeError::NotASlice("larger than a secondary capture can be"));
    };
    let dataset = making
        .common(Kind::Capture)
        .text((0x0008, 0x0008), "CS", "DERIVED\\SECONDARY")
        .text((0x0008, 0x0064), "CS", "WSD") // Conversion Type: workstation
        .text((0x0008, 0x2111), "ST", "Brain window of one slice with a caption; not for diagnosis")
        .items((0x0008, 0x2112), vec![source_image(instance, finding.key_frame)])
        .text((0x0018, 0x0015), "CS", "HEAD")
        .text((0x0020, 0x0020), "CS", "L\\P") // columns run to the left, rows to the back
        .short((0x0028, 0x0002), 1)
        .text((0x0028, 0x0004), "CS", "MONOCHROME2")
        .short((0x0028, 0x0010), rows)
        .short((0x0028, 0x0011), columns)
        .short((0x0028, 0x0100), 8)
        .short((0x0028, 0x0101), 8)
        .short((0x0028, 0x0102), 7)
        .short((0x0028, 0x0103), 0)
        .text((0x0028, 0x0301), "CS", "YES") // Burned In Annotation
        .text((0x0028, 0x2110), "CS", if making.source.is_lossy() { "01" } else { "00" })
        .bytes((0x7fe0, 0x0010), "OB", picture.pixels);
    Ok(Some(dataset))
}

/// The words of the profile, one entry per line.
fn caption(making: &Making) -> Vec<String> {
    let mut lines = Vec::new();
    if let (Some(finding), Profile::Assist) = (&making.verdict.finding, making.site.profile) {
        let types: Vec<&str> = finding.subtypes.iter().map(|c: &Class| c.as_str()).collect();
        let types = if types.is_empty() { "intracranial".to_owned() } else { types.join(", ") };
        lines.push(format!("suspected hemorrhage: {types}"));
        let side = finding.side.map_or(String::new(), |s| format!("{s:?}, "));
        let [first, last] = finding.slice_range;
        let volume = finding.volume_ml.map_or(String::new(), |v| format!(", about {v:.0} ml"));
        lines.push(format!(
            "{side}slices {}-{} of {}, counted from the neck up{volume}",
            first + 1,
            last + 1,
            making.verdict.slices.len()
        ));
    } else {
        lines.push("suspected intracranial hemorrhage".into());
        lines.push("read the whole study".into());
    }
    lines.push("notification by software, not for diagnosis".into());
    lines
}

struct Picture {
    rows: usize,
    columns: usize,
    pixels: Vec<u8>,
}

fn draw(image: &HuImage, caption: &[String]) -> Picture {
    let zoom = WIDTH_MIN_PX.div_ceil(image.columns.max(1)).max(1);
    let columns = image.columns * zoom;
    let per_line = (columns - 2 * MARGIN_PX.min(columns / 2)) / (font::ADVANCE * SCALE_PX);
    let lines: Vec<String> = caption.iter().flat_map(|line| wrap(line, per_line)).collect();
    let band_top = image.rows * zoom;
    let rows = band_top + 2 * MARGIN_PX + lines.len() * LINE_PX;
    let mut pixels = vec![0; rows * columns];
    for y in 0..band_top {
        for x in 0..columns {
            let hu = image.hu[y / zoom * image.columns + x / zoom];
            pixels[y * columns + x] = (((hu - LOW_HU) / WIDTH_HU).clamp(0.0, 1.0) * 255.0) as u8;
        }
    }
    for (n, line) in lines.iter().enumerate() {
        write(&mut pixels, columns, band_top + MARGIN_PX + n * LINE_PX, line);
    }
    Picture { rows, columns, pixels }
}

/// Breaks at spaces; a word longer than a line is cut.
fn wrap(line: &str, per_line: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let last = lines.last().map_or(0, String::len);
        if last > 0 && last + 1 + word.len() > per_line {
            lines.push(String::new());
        }
        if let Some(current) = lines.last_mut() {
            if !current.is_empty() {
                current.push(' ');
            }
            current.push_str(word);
        }
    }
    lines
}

fn write(pixels: &mut [u8], columns: usize, top: usize, line: &str) {
    for (n, character) in line.chars().enumerate() {
        let left = MARGIN_PX + n * font::ADVANCE * SCALE_PX;
        for (row, bits) in font::glyph(character).iter().enumerate() {
            for column in (0..5).filter(|column| bits & (0x10 >> column) != 0) {
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let (y, x) = (top + row * SCALE_PX + dy, left + column * SCALE_PX + dx);
                    if x < columns {
                        pixels[y * columns + x] = 255;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caption_covers_nothing_of_the_slice_and_is_there() {
        let image =
            HuImage { rows: 256, columns: 256, row_mm: 1.0, column_mm: 1.0, hu: vec![40.0; 256 * 256] };
        let words = ["suspected hemorrhage: intraparenchymal, intraventricular, subarachnoid".to_owned()];
        let picture = draw(&image, &words);
        assert_eq!(picture.columns, 512);
        let (slice, band) = picture.pixels.split_at(512 * 512);
        assert!(slice.iter().all(|p| *p == 127));
        assert!(band.contains(&255) && band.len() > 512 * 2 * LINE_PX, "wrapped to two lines");
    }

    #[test]
    fn the_caption_counts_the_slices_that_were_read_whatever_object_they_came_in() {
        use crate::alert::lifecycle::tests::verdict;
        use crate::report::{RecordedVerdict, source::Source};
        let mut verdict = verdict(1, crate::decide::Stage::Final, Some(0.9));
        if let crate::decide::Disposition::Suspected(finding) = &mut verdict.disposition {
            finding.slice_range = [11, 19];
        }
        let mut recorded = RecordedVerdict::parse(&verdict.canonical_json()).unwrap();
        let none = crate::infer::Scores([0.0; 6]);
        let slice = crate::decide::SliceScores {
            sop_uid: crate::dicom::SopInstanceUid::parse("1.2.3.1.1").unwrap(),
            frame: None,
            z_mm: 0.0,
            base: none,
            seq1: none,
            fused: none,
        };
        // Thirty frames of one Enhanced CT.
        (recorded.instances, recorded.slices) = (1, vec![slice; 30]);
        let source = Source { copied: Dataset::new(), instances: Vec::new(), timezone: None };
        let site = crate::config::Site { name: "n".into(), device: "d".into(), profile: Profile::Assist };
        let lines = caption(&Making {
            source: &source,
            verdict: &recorded,
            verdict_sha256: "00",
            decided_ms: 0,
            site: &site,
            predecessor_sha256: None,
            lesion: None,
        });
        assert!(lines[1].contains("slices 12-20 of 30"), "{lines:?}");
    }

    #[test]
    fn lines_are_broken_at_spaces() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("unbreakable", 4), ["unbreakable"]);
    }
}
