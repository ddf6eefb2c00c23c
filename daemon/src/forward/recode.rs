//! Another encoding of a stored instance, for a node that does not take the one it came in: uncompressed, little endian.
//! Values stay what they are, and so do the UIDs; what was lost in a lossy encoding stays lost, and marked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use dicom_core::value::{PixelFragmentSequence, Value};
use dicom_core::{DataElement, PrimitiveValue, Tag, VR, dicom_value};
use dicom_encoding::{TransferSyntax, TransferSyntaxIndex};
use dicom_object::DefaultDicomObject;
use dicom_pixeldata::Transcode;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use crate::dicom::SliceHeader;
use crate::infer::hounsfield;

/// Explicit and implicit VR little and big endian, deflated: encodings without compressed pixels.
pub const NATIVE: [&str; 4] =
    ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"];

const SAMPLES: Tag = Tag(0x0028, 0x0002);
const PHOTOMETRIC: Tag = Tag(0x0028, 0x0004);
const PLANAR: Tag = Tag(0x0028, 0x0006);
const PIXELS: Tag = Tag(0x7fe0, 0x0010);

/// Encodings that we make, the preferred one first.
pub const MADE: [&str; 2] = [NATIVE[0], NATIVE[1]];

/// The data set of a Part 10 file in one of [`MADE`].
pub fn recoded(path: &Path, header: &SliceHeader, to: &str) -> Result<Vec<u8>, String> {
    if !NATIVE.contains(&header.transfer_syntax.as_str()) {
        if header.frames != 1 {
            return Err("compressed frames are sent as they are or not at all".into());
        }
        // The library makes room by what a codestream says of itself.
        hounsfield::check_codestream(path, header).map_err(|e| crate::chain(&e))?;
    }
    let work = || {
        let syntax = TransferSyntaxRegistry.get(to).ok_or("not a transfer syntax")?;
        let mut object = dicom_object::open_file(path).map_err(|e| e.to_string())?;
        if !NATIVE.contains(&header.transfer_syntax.as_str()) {
            decompress(&mut object, header, syntax)?;
        }
        let mut bytes = Vec::new();
        object.write_dataset_with_ts(&mut bytes, syntax).map_err(|e| e.to_string())?;
        Ok(bytes)
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the decoder gave up on this".into()))
}

/// Pixels as they were before they were compressed; one frame, whose codestream was looked at.
fn decompress(
    object: &mut DefaultDicomObject,
    header: &SliceHeader,
    syntax: &TransferSyntax,
) -> Result<(), String> {
    let failed = |e: &dyn std::error::Error| crate::chain(e);
    let photometric =
        object.element(PHOTOMETRIC).map_err(|e| failed(&e))?.to_str().map_err(|e| failed(&e))?;
    let photometric = photometric.trim_end_matches(['\0', ' ']).to_owned();
    match (header.samples_per_pixel, photometric.as_str(), header.transfer_syntax.as_str()) {
        (1, ..) | (3, "RGB", "1.2.840.10008.1.2.5") => {}
        // The codec undoes its own transform. That of JPEG is a matter of opinion.
        (3, "RGB" | "YBR_RCT" | "YBR_ICT", "1.2.840.10008.1.2.4.90" | "1.2.840.10008.1.2.4.91") => {}
        _ => return Err(format!("{photometric} may come out in other colours")),
    }
    // The library takes a fragment for a frame.
    let element = object.element(PIXELS).map_err(|e| failed(&e))?;
    if let Value::PixelSequence(sequence) = element.value()
        && sequence.fragments().len() > 1
    {
        let joined = PixelFragmentSequence::new_fragments(vec![sequence.fragments().concat()]);
        object.put(DataElement::new(PIXELS, VR::OB, joined));
    }
    object.transcode(syntax).map_err(|e| failed(&e))?;
    if header.samples_per_pixel == 1 {
        // A palette is a palette; the library would call it grey.
        object.put(DataElement::new(PHOTOMETRIC, VR::CS, PrimitiveValue::from(photometric)));
    } else {
        object.put(DataElement::new(SAMPLES, VR::US, dicom_value!(U16, header.samples_per_pixel)));
        object.put(DataElement::new(PLANAR, VR::US, dicom_value!(U16, 0)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::report::dataset::Dataset;

    const CAPTURE: &str = "1.2.840.10008.5.1.4.1.1.7";
    const SIDE: u16 = 15;

    /// A secondary capture without position; `samples` bytes a pixel, an odd number of them in all.
    fn capture(samples: u16, photometric: &str) -> (Vec<u8>, Vec<u8>) {
        let n = usize::from(SIDE) * usize::from(SIDE) * usize::from(samples);
        let pixels: Vec<u8> = (0..n).map(|i| (i * 37 % 251) as u8).collect();
        let mut dataset = Dataset::new()
            .text((0x0008, 0x0016), "UI", CAPTURE)
            .text((0x0008, 0x0018), "UI", "1.2.3.1.1")
            .text((0x0020, 0x000d), "UI", "1.2.3")
            .text((0x0020, 0x000e), "UI", "1.2.3.1")
            .short((0x0028, 0x0002), samples)
            .text((0x0028, 0x0004), "CS", photometric)
            .short((0x0028, 0x0010), SIDE)
            .short((0x0028, 0x0011), SIDE)
            .short((0x0028, 0x0100), 8)
            .short((0x0028, 0x0101), 8)
            .short((0x0028, 0x0102), 7)
            .short((0x0028, 0x0103), 0);
        if samples == 3 {
            dataset = dataset.short((0x0028, 0x0006), 0);
        }
        let file = dataset.bytes((0x7fe0, 0x0010), "OB", pixels.clone()).file(CAPTURE, "1.2.3.1.1");
        (file, pixels)
    }

    #[test]
    fn a_compressed_secondary_capture_comes_out_as_it_went_in() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, packed) = (dir.path().join("plain.dcm"), dir.path().join("packed.dcm"));
        let jpeg = ["dcmcjpeg", "+e1"];
        for (samples, photometric, tools) in
            [(1, "MONOCHROME2", &[&["dcmcrle"][..], &jpeg][..]), (3, "RGB", &[&["dcmcrle"]])]
        {
            for tool in tools {
                let (file, pixels) = capture(samples, photometric);
                std::fs::write(&plain, file).unwrap();
                let status = Command::new(tool[0]).args(&tool[1..]).arg(&plain).arg(&packed).status();
                assert!(status.expect("dcmtk is needed").success());
                let header = SliceHeader::read(&packed).unwrap();
                assert!(!NATIVE.contains(&header.transfer_syntax.as_str()) && header.geometry.is_none());
                for to in MADE {
                    let bytes = recoded(&packed, &header, to).unwrap();
                    let ts = TransferSyntaxRegistry.get(to).unwrap();
                    let object =
                        dicom_object::InMemDicomObject::read_dataset_with_ts(&bytes[..], ts).unwrap();
                    let out = object.element(PIXELS).unwrap().to_bytes().unwrap();
                    assert_eq!(out.len() % 2, 0);
                    assert_eq!(&out[..pixels.len()], pixels, "{tool:?} {photometric} {to}");
                    let says = object.element(PHOTOMETRIC).unwrap().to_str().unwrap();
                    assert_eq!(says.trim_end(), photometric);
                }
            }
        }
    }

    #[test]
    fn colours_that_nobody_can_vouch_for_are_not_recoded() {
        let dir = tempfile::tempdir().unwrap();
        let (plain, packed) = (dir.path().join("plain.dcm"), dir.path().join("packed.dcm"));
        std::fs::write(&plain, capture(3, "YBR_FULL").0).unwrap();
        assert!(Command::new("dcmcrle").arg(&plain).arg(&packed).status().unwrap().success());
        let header = SliceHeader::read(&packed).unwrap();
        assert!(recoded(&packed, &header, MADE[0]).unwrap_err().contains("YBR_FULL"));
        // A JPEG of three components may be RGB or not, whatever the header says.
        std::fs::write(&plain, capture(3, "RGB").0).unwrap();
        assert!(Command::new("dcmcjpeg").arg("+e1").arg(&plain).arg(&packed).status().unwrap().success());
        assert!(recoded(&packed, &SliceHeader::read(&packed).unwrap(), MADE[0]).is_err());
    }
}
