//! Another encoding of a stored instance, for a node that does not take the one it came in: uncompressed, little endian.
//! Values stay what they are, and so do the UIDs; what was lost in a lossy encoding stays lost, and marked.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use dicom_encoding::TransferSyntaxIndex;
use dicom_pixeldata::Transcode;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use crate::dicom::SliceHeader;
use crate::infer::hounsfield;

/// Explicit and implicit VR little and big endian, deflated: encodings without compressed pixels.
pub const NATIVE: [&str; 4] =
    ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"];

/// Encodings that we make, the preferred one first.
pub const MADE: [&str; 2] = [NATIVE[0], NATIVE[1]];

/// The data set of a Part 10 file in one of [`MADE`].
pub fn recoded(path: &Path, header: &SliceHeader, to: &str) -> Result<Vec<u8>, String> {
    if !NATIVE.contains(&header.transfer_syntax.as_str()) {
        // The library makes room by what a codestream says of itself; our own decoder has looked at that first.
        if header.frames != 1 {
            return Err("compressed frames are sent as they are or not at all".into());
        }
        hounsfield::decode(path, header).map_err(|e| crate::chain(&e))?;
    }
    let work = || {
        let syntax = TransferSyntaxRegistry.get(to).ok_or("not a transfer syntax")?;
        let mut object = dicom_object::open_file(path).map_err(|e| e.to_string())?;
        if !NATIVE.contains(&header.transfer_syntax.as_str()) {
            object.transcode(syntax).map_err(|e| e.to_string())?;
        }
        let mut bytes = Vec::new();
        object.write_dataset_with_ts(&mut bytes, syntax).map_err(|e| e.to_string())?;
        Ok(bytes)
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err("the decoder gave up on this".into()))
}
