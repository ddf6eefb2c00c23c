//! Segmentation of the lesion map (PS3.3 A.51), profile `assist`: one binary segment in the geometry of the slices that it
//! was found on, one frame for each of them. An estimate of where the model looks, as the volume is; the thin slices
//! between those that were read have none.

use super::dataset::{Code, Dataset, code};
use super::source::{Kind, Making, evidence_series, reference, with_frame};
use crate::config::Profile;
use crate::dicom::dataset::{self, Tag};
use crate::dicom::{PlaneGeometry, SliceHeader};
use crate::infer::LesionMap;
use crate::infer::hounsfield::Turn;
use crate::infer::reader::MAP_THRESHOLD;
use crate::spool::Instance;

const FRAME_OF_REFERENCE: Tag = (0x0020, 0x0052);
const POSITION_REFERENCE: Tag = (0x0020, 0x1040);
const LOSSY_RATIO: Tag = (0x0028, 0x2112);
const LOSSY_METHOD: Tag = (0x0028, 0x2114);
/// Segment Identification Sequence and Referenced Segment Number; Plane Position Sequence and Image Position (Patient).
const DIMENSIONS: [([u16; 4], &str); 2] =
    [([0x0062, 0x000b, 0x0062, 0x000a], "Segment"), ([0x0020, 0x0032, 0x0020, 0x9113], "Position")];

/// One source slice and what of it is marked.
struct Frame<'a> {
    instance: &'a Instance,
    number: Option<u32>,
    header: SliceHeader,
    geometry: PlaneGeometry,
    mask: Vec<bool>,
}

/// Makes the segmentation; `None` in profile `triage`, and where the map shows nothing.
pub fn make(making: &Making) -> Option<Dataset> {
    making.verdict.finding.as_ref().filter(|_| making.site.profile == Profile::Assist)?;
    let lesion = making.lesion?;
    let frames: Vec<Frame> = lesion
        .maps()
        .filter_map(|(slice, map)| {
            let instance = making.source.instance(slice.sop.as_str())?;
            let header = (*instance.frame(slice.frame)?.header).clone();
            let geometry = header.geometry?;
            let mask = mask(&header, &geometry, &map, lesion.field_mm);
            Some(Frame { instance, number: slice.frame, header, geometry, mask })
        })
        .filter(|frame| frame.mask.contains(&true))
        .collect();
    let first = frames.first()?;
    let same = |f: &&Frame| (f.header.rows, f.header.columns) == (first.header.rows, first.header.columns);
    let frames: Vec<&Frame> = frames.iter().filter(same).collect();
    let read = dataset::Dataset::read(
        &first.instance.path,
        &[FRAME_OF_REFERENCE, POSITION_REFERENCE, LOSSY_RATIO, LOSSY_METHOD],
    )
    .ok()?;
    let copied = |tag, vr, mut dataset: Dataset| {
        if let Some(bytes) = read.bytes(tag) {
            dataset = dataset.bytes(tag, vr, bytes.to_vec());
        }
        dataset
    };
    let is_lossy = making.source.is_lossy();
    let organization = making.uid("segmentation dimensions");
    let mut dataset = making
        .common(Kind::Segmentation)
        .text((0x0008, 0x0008), "CS", "DERIVED\\PRIMARY")
        .items((0x0008, 0x1115), vec![sources(making, &frames)])
        .items((0x0020, 0x9221), vec![Dataset::new().text((0x0020, 0x9164), "UI", &organization)])
        .items((0x0020, 0x9222), DIMENSIONS.iter().map(|d| dimension(d, &organization)).collect())
        .short((0x0028, 0x0002), 1)
        .text((0x0028, 0x0004), "CS", "MONOCHROME2")
        .text((0x0028, 0x0008), "IS", &frames.len().to_string())
        .short((0x0028, 0x0010), first.header.rows)
        .short((0x0028, 0x0011), first.header.columns)
        .short((0x0028, 0x0100), 1)
        .short((0x0028, 0x0101), 1)
        .short((0x0028, 0x0102), 0)
        .short((0x0028, 0x0103), 0)
        .text((0x0028, 0x2110), "CS", if is_lossy { "01" } else { "00" })
        .text((0x0062, 0x0001), "CS", "BINARY")
        .items((0x0062, 0x0002), vec![segment(making)])
        .text((0x0062, 0x0013), "CS", "NO") // Segments Overlap
        .text((0x0070, 0x0080), "CS", "LESION_MAP")
        .text((0x0070, 0x0081), "LO", "where software suspects hemorrhage, an estimate")
        .text((0x0070, 0x0084), "PN", "")
        .items((0x5200, 0x9229), vec![shared(first)])
        .items((0x5200, 0x9230), (1..).zip(&frames).map(|(n, frame)| per_frame(frame, n)).collect())
        .bytes((0x7fe0, 0x0010), "OB", packed(&frames));
    if is_lossy {
        dataset = copied(LOSSY_METHOD, "CS", copied(LOSSY_RATIO, "DS", dataset));
    }
    if read.text(FRAME_OF_REFERENCE).is_some() {
        dataset = copied(FRAME_OF_REFERENCE, "UI", dataset.text(POSITION_REFERENCE, "LO", ""));
        dataset = copied(POSITION_REFERENCE, "LO", dataset);
    }
    Some(dataset)
}

/// Where the map is at or above its threshold, pixel by pixel of the stored image.
fn mask(header: &SliceHeader, geometry: &PlaneGeometry, map: &LesionMap, field_mm: f64) -> Vec<bool> {
    let (rows, columns) = (usize::from(header.rows), usize::from(header.columns));
    let turn = Turn::of(geometry);
    let pixels = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    pixels
        .map(|(row, column)| {
            let [x, y] = turn.offset_mm([row, column], [rows, columns], geometry.pixel_spacing_mm);
            let (x, y) = (x / field_mm + 0.5, y / field_mm + 0.5);
            let inside = (0.0..1.0).contains(&x) && (0.0..1.0).contains(&y);
            inside && map.at(x, y) >= MAP_THRESHOLD
        })
        .collect()
}

/// One bit for each pixel, the first pixel in the lowest bit, frames without a gap (PS3.5 8.1.1).
fn packed(frames: &[&Frame]) -> Vec<u8> {
    let bits: Vec<bool> = frames.iter().flat_map(|f| f.mask.iter().copied()).collect();
    let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    bits.chunks(8).map(byte).collect()
}

fn segment(making: &Making) -> Dataset {
    let (name, version) = match &making.verdict.model {
        Some(model) => (model.id.as_str(), model.version.as_str()),
        None => ("ichd", making.verdict.program.as_str()),
    };
    let algorithm = Dataset::new()
        .text((0x0066, 0x0031), "LO", version)
        .items((0x0066, 0x002f), vec![code(Code::dcm("123110", "Artificial Intelligence"))])
        .text((0x0066, 0x0036), "LO", name);
    Dataset::new()
        .items((0x0062, 0x0003), vec![code(Code::sct("49755003", "Morphologically Abnormal Structure"))])
        .short((0x0062, 0x0004), 1)
        .text((0x0062, 0x0005), "LO", "Suspected hemorrhage")
        .items((0x0062, 0x0007), vec![algorithm])
        .text((0x0062, 0x0008), "CS", "AUTOMATIC")
        .text((0x0062, 0x0009), "LO", name)
        .items((0x0062, 0x000f), vec![code(Code::sct("50960005", "Hemorrhage"))])
        .text((0x0062, 0x0020), "UT", "ichd reading of the series")
        .text((0x0062, 0x0021), "UI", &making.uid("tracking"))
}

fn sources(making: &Making, frames: &[&Frame]) -> Dataset {
    let mut instances: Vec<&Instance> = frames.iter().map(|f| f.instance).collect();
    instances.dedup_by(|a, b| a.header.sop == b.header.sop);
    let items = instances.iter().map(|i| reference(&i.header.sop_class, i.header.sop.as_str())).collect();
    evidence_series(making.verdict.series_uid.as_str(), (0x0008, 0x114a), items)
}

fn dimension(([a, b, c, d], label): &([u16; 4], &str), organization: &str) -> Dataset {
    let tag = |group: u16, element: u16| [group.to_le_bytes(), element.to_le_bytes()].concat();
    Dataset::new()
        .text((0x0020, 0x9164), "UI", organization)
        .bytes((0x0020, 0x9165), "AT", tag(*a, *b))
        .bytes((0x0020, 0x9167), "AT", tag(*c, *d))
        .text((0x0020, 0x9421), "LO", label)
}

fn shared(first: &Frame) -> Dataset {
    let g = &first.geometry;
    let orientation: Vec<f64> = g.row.iter().chain(&g.column).copied().collect();
    let mut measures = Dataset::new().text((0x0028, 0x0030), "DS", &decimals(&g.pixel_spacing_mm));
    if let Some(thickness) = first.header.slice_thickness_mm {
        measures = measures.text((0x0018, 0x0050), "DS", &decimals(&[thickness]));
    }
    Dataset::new()
        .items((0x0020, 0x9116), vec![Dataset::new().text((0x0020, 0x0037), "DS", &decimals(&orientation))])
        .items((0x0028, 0x9110), vec![measures])
        .items((0x0062, 0x000a), vec![Dataset::new().short((0x0062, 0x000b), 1)])
}

fn per_frame(frame: &Frame, n: u32) -> Dataset {
    let purpose = Code::dcm("121322", "Source image for image processing operation");
    let source = with_frame(
        reference(&frame.instance.header.sop_class, frame.instance.header.sop.as_str()),
        frame.number,
    )
    .text((0x0028, 0x135a), "CS", "YES") // Spatial Locations Preserved
    .items((0x0040, 0xa170), vec![code(purpose)]);
    let derivation = Dataset::new()
        .items((0x0008, 0x2112), vec![source])
        .items((0x0008, 0x9215), vec![code(Code::dcm("113076", "Segmentation"))]);
    let position = Dataset::new().text((0x0020, 0x0032), "DS", &decimals(&frame.geometry.position_mm));
    Dataset::new()
        .items((0x0008, 0x9124), vec![derivation])
        .items((0x0020, 0x9111), vec![Dataset::new().longs((0x0020, 0x9157), &[1, n])])
        .items((0x0020, 0x9113), vec![position])
}

/// Decimal strings, the shortest that say the number; at most 16 characters each.
fn decimals(values: &[f64]) -> String {
    let one = |v: &f64| {
        let shortest = v.to_string();
        match shortest.len() {
            ..=16 => shortest,
            _ => (0..=14).rev().map(|n| format!("{v:.n$}")).find(|t| t.len() <= 16).unwrap_or_default(),
        }
    };
    values.iter().map(one).collect::<Vec<_>>().join("\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_said_in_sixteen_characters() {
        let text = decimals(&[0.48828125, -0.1234567890123456, 1234567.0, -1e-20, 1e-7]);
        assert!(text.split('\\').all(|t| t.len() <= 16 && t.parse::<f64>().is_ok()), "{text}");
        assert!(text.starts_with("0.48828125\\-0.1234567890123\\1234567\\"), "{text}");
    }
}
