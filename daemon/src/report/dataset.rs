//! A data set to be sent: elements in tag order, written with defined lengths. Small on purpose.
//!
//! Values that are copied from a stored instance stay the bytes they were, with the Specific Character Set they came
//! with: no name is decoded and encoded again on its way back to the PACS. Our own text is ASCII, which every character
//! set of the standard holds.

use std::collections::BTreeMap;

use crate::dicom::dataset::Tag;

/// Value representations that are written with a 32-bit length in explicit VR (PS3.5 7.1.2).
const LONG: [&str; 6] = ["OB", "OW", "SQ", "UN", "UT", "UC"];

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Bytes(&'static str, Vec<u8>),
    Items(Vec<Dataset>),
}

/// Elements by tag.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dataset(BTreeMap<Tag, Value>);

impl Dataset {
    /// No elements.
    pub fn new() -> Self {
        Dataset::default()
    }

    /// Text, padded to an even length as its VR wants. Empty text is an empty value (type 2).
    pub fn text(mut self, tag: Tag, vr: &'static str, text: &str) -> Self {
        self.put(tag, vr, text.as_bytes().to_vec());
        self
    }

    /// An unsigned short.
    pub fn short(mut self, tag: Tag, value: u16) -> Self {
        self.put(tag, "US", value.to_le_bytes().to_vec());
        self
    }

    /// Unsigned longs.
    pub fn longs(mut self, tag: Tag, values: &[u32]) -> Self {
        self.put(tag, "UL", values.iter().flat_map(|v| v.to_le_bytes()).collect());
        self
    }

    /// Pixel data and the like.
    pub fn bytes(mut self, tag: Tag, vr: &'static str, bytes: Vec<u8>) -> Self {
        self.put(tag, vr, bytes);
        self
    }

    /// A sequence.
    pub fn items(mut self, tag: Tag, items: Vec<Dataset>) -> Self {
        self.0.insert(tag, Value::Items(items));
        self
    }

    /// All elements of another data set too; where both have one, the other's wins.
    pub fn with(mut self, other: Dataset) -> Self {
        self.0.extend(other.0);
        self
    }

    /// A text value of ours or one that was copied; what is no UTF-8 is replaced.
    pub fn string(&self, tag: Tag) -> Option<String> {
        match self.0.get(&tag)? {
            Value::Bytes(_, bytes) => {
                Some(String::from_utf8_lossy(bytes).trim_end_matches([' ', '\0']).to_owned())
            }
            Value::Items(_) => None,
        }
    }

    fn put(&mut self, tag: Tag, vr: &'static str, mut bytes: Vec<u8>) {
        if bytes.len() % 2 == 1 {
            bytes.push(if matches!(vr, "UI" | "OB" | "OW" | "UN") { 0 } else { b' ' });
        }
        self.0.insert(tag, Value::Bytes(vr, bytes));
    }

    /// The bytes in explicit or implicit VR little endian.
    pub fn encode(&self, explicit: bool) -> Vec<u8> {
        let mut out = Vec::new();
        for (tag, value) in &self.0 {
            let (vr, bytes) = match value {
                Value::Bytes(vr, bytes) => (*vr, bytes.clone()),
                Value::Items(items) => ("SQ", encode_items(items, explicit)),
            };
            head(&mut out, *tag, vr, bytes.len(), explicit);
            out.extend(bytes);
        }
        out
    }

    /// A Part 10 file in explicit VR little endian.
    pub fn file(&self, sop_class: &str, sop: &str) -> Vec<u8> {
        let meta = Dataset::new()
            .bytes((2, 1), "OB", vec![0, 1])
            .text((2, 2), "UI", sop_class)
            .text((2, 3), "UI", sop)
            .text((2, 0x10), "UI", EXPLICIT_LITTLE_ENDIAN)
            .text((2, 0x12), "UI", crate::receive::IMPLEMENTATION_CLASS_UID)
            .text((2, 0x13), "SH", crate::receive::IMPLEMENTATION_VERSION_NAME)
            .encode(true);
        let length = Dataset::new().longs((2, 0), &[u32::try_from(meta.len()).unwrap_or(u32::MAX)]);
        let mut file = vec![0; 128];
        file.extend(b"DICM");
        file.extend(length.encode(true));
        file.extend(meta);
        file.extend(self.encode(true));
        file
    }
}

/// Explicit VR Little Endian.
pub const EXPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2.1";
/// Implicit VR Little Endian.
pub const IMPLICIT_LITTLE_ENDIAN: &str = "1.2.840.10008.1.2";

fn head(out: &mut Vec<u8>, tag: Tag, vr: &str, length: usize, explicit: bool) {
    out.extend(tag.0.to_le_bytes());
    out.extend(tag.1.to_le_bytes());
    // Everything written here is made here; the largest is one picture.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    match (explicit, LONG.contains(&vr)) {
        (true, true) => {
            out.extend(vr.as_bytes());
            out.extend([0, 0]);
            out.extend(length.to_le_bytes());
        }
        (true, false) => {
            out.extend(vr.as_bytes());
            out.extend((length as u16).to_le_bytes());
        }
        (false, _) => out.extend(length.to_le_bytes()),
    }
}

fn encode_items(items: &[Dataset], explicit: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for item in items {
        let bytes = item.encode(explicit);
        head(&mut out, (0xfffe, 0xe000), "", bytes.len(), false);
        out.extend(bytes);
    }
    out
}

/// A code as an item of a code sequence (PS3.3 table 8.8-1).
pub fn code(code: Code) -> Dataset {
    // Code Value is a short string; a longer one has a place of its own.
    let (tag, vr) = if code.value.len() <= 16 { ((8, 0x100), "SH") } else { ((8, 0x119), "UC") };
    Dataset::new().text(tag, vr, code.value).text((8, 0x102), "SH", code.scheme).text(
        (8, 0x104),
        "LO",
        code.meaning,
    )
}

/// A coded concept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code<'a> {
    /// Code Value.
    pub value: &'a str,
    /// Coding Scheme Designator.
    pub scheme: &'a str,
    /// Code Meaning.
    pub meaning: &'a str,
}

impl<'a> Code<'a> {
    /// A concept of DICOM's own dictionary (PS3.16 annex D).
    pub const fn dcm(value: &'a str, meaning: &'a str) -> Self {
        Code { value, scheme: "DCM", meaning }
    }

    /// A SNOMED CT concept.
    pub const fn sct(value: &'a str, meaning: &'a str) -> Self {
        Code { value, scheme: "SCT", meaning }
    }

    /// A concept of our own.
    pub const fn own(value: &'a str, meaning: &'a str) -> Self {
        Code { value, scheme: OWN_SCHEME, meaning }
    }
}

/// Private coding scheme (PS3.16 8.2); what it holds is listed in docs/REFERENCE.md.
pub const OWN_SCHEME: &str = "99ICHD";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_in_order_even_and_read_back_by_the_bounded_reader() {
        let sop = "1.2.3";
        let dataset = Dataset::new()
            .text((0x20, 0x0d), "UI", "1.2")
            .text((8, 0x18), "UI", sop)
            .items((8, 0x1140), vec![Dataset::new().text((8, 0x1150), "UI", "1.2.840")])
            .short((0x28, 0x10), 3)
            .bytes((0x7fe0, 0x10), "OW", vec![1, 2, 3]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.dcm");
        std::fs::write(&path, dataset.file("1.2.840.10008.5.1.4.1.1.7", sop)).unwrap();
        let wanted = [(8, 0x18), (0x20, 0x0d), (0x28, 0x10)];
        let read = crate::dicom::dataset::Dataset::read(&path, &wanted).unwrap();
        assert_eq!(read.text((8, 0x18)).as_deref(), Some("1.2.3"));
        assert_eq!((read.text((0x20, 0x0d)).as_deref(), read.short((0x28, 0x10))), (Some("1.2"), Some(3)));
        assert!(read.has_pixels);
        assert_eq!(dataset.encode(true).len() % 2, 0);
        assert_ne!(dataset.encode(true), dataset.encode(false));
    }
}
