//! A bounded walk over a Part 10 file: every declared length is held against the bytes that are really there.
//!
//! Only wanted top-level elements of at most [`VALUE_BYTES_MAX`] are kept; the rest is skipped, so a 674-byte file
//! that declares 3.7 GB costs nothing and is refused. Stops at Pixel Data. Deliberately absent: values inside
//! sequences, and any trust in a length.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::HeaderError;

/// Largest value that is kept, bytes.
pub const VALUE_BYTES_MAX: u32 = 64 << 10;
/// Deepest nesting of sequences.
const DEPTH_MAX: usize = 32;
const UNDEFINED: u32 = u32::MAX;

/// Group and element number.
pub type Tag = (u16, u16);

const PIXEL_DATA: Tag = (0x7fe0, 0x0010);
const ITEM: Tag = (0xfffe, 0xe000);
const ITEM_END: Tag = (0xfffe, 0xe00d);
const SEQUENCE_END: Tag = (0xfffe, 0xe0dd);

/// What the walk kept.
#[derive(Debug, Default)]
pub struct Dataset {
    /// Transfer Syntax UID of the file meta.
    pub transfer_syntax: String,
    values: BTreeMap<Tag, Vec<u8>>,
    big_endian: bool,
    /// Whether Pixel Data is present (and complete).
    pub has_pixels: bool,
}

impl Dataset {
    /// Walks a file and keeps the wanted top-level elements.
    pub fn read(path: &Path, wanted: &[Tag]) -> Result<Self, HeaderError> {
        let io = |source| HeaderError::Read { path: path.display().to_string(), source };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut walk = Walk {
            source: Source::Plain(BufReader::with_capacity(16 << 10, file)),
            offset: 0,
            length: Some(length),
        };
        let transfer_syntax = walk.file_meta()?;
        let mut encoding = Encoding { explicit: true, big_endian: false };
        match transfer_syntax.as_str() {
            "1.2.840.10008.1.2" => encoding.explicit = false,
            "1.2.840.10008.1.2.2" => encoding.big_endian = true,
            "1.2.840.10008.1.2.1.99" => walk = walk.inflated(),
            _ => {}
        }
        let mut dataset = Dataset { transfer_syntax, big_endian: encoding.big_endian, ..Dataset::default() };
        walk.top_level(encoding, wanted, &mut dataset)?;
        Ok(dataset)
    }

    /// First value as text, trimmed; `None` if absent or empty. Bytes beyond ASCII are replaced.
    pub fn text(&self, tag: Tag) -> Option<String> {
        let bytes = self.values.get(&tag)?;
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_matches(['\0', ' ', '\t', '\r', '\n']);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Backslash-separated values, each trimmed.
    pub fn texts(&self, tag: Tag) -> Vec<String> {
        self.text(tag).map_or_else(Vec::new, |t| t.split('\\').map(|v| v.trim().to_owned()).collect())
    }

    /// Decimal strings; `None` unless there are exactly `N` finite numbers. Also right where the VR is UN.
    pub fn decimals<const N: usize>(&self, tag: Tag) -> Option<[f64; N]> {
        let numbers: Vec<f64> = self.texts(tag).iter().filter_map(|t| t.parse().ok()).collect();
        let numbers: [f64; N] = numbers.try_into().ok()?;
        numbers.iter().all(|n| n.is_finite()).then_some(numbers)
    }

    /// First decimal string.
    pub fn decimal(&self, tag: Tag) -> Option<f64> {
        self.texts(tag).first()?.parse().ok().filter(|n: &f64| n.is_finite())
    }

    /// Unsigned short (US), in the data set's byte order.
    pub fn short(&self, tag: Tag) -> Option<u16> {
        let bytes: [u8; 2] = self.values.get(&tag)?.get(..2)?.try_into().ok()?;
        Some(if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }
}

/// SHA-256 of the data set bytes of a Part 10 file: what the sender sent, without preamble and file meta.
pub fn sha256(path: &Path) -> Result<[u8; 32], HeaderError> {
    let io = |source| HeaderError::Read { path: path.display().to_string(), source };
    let file = File::open(path).map_err(io)?;
    let mut walk = Walk { source: Source::Plain(BufReader::new(file)), offset: 0, length: None };
    walk.file_meta()?;
    let Source::Plain(mut file) = walk.source else { unreachable!("not inflated") };
    file.seek(SeekFrom::Start(walk.offset)).map_err(io)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => return Ok(hash.finalize().into()),
            n => hash.update(&buffer[..n]),
        }
    }
}

#[derive(Clone, Copy)]
struct Encoding {
    explicit: bool,
    big_endian: bool,
}

enum Source {
    Plain(BufReader<File>),
    Inflated(Box<BufReader<flate2::read::DeflateDecoder<BufReader<File>>>>),
}

struct Walk {
    source: Source,
    offset: u64,
    /// Total bytes, where known.
    length: Option<u64>,
}

struct Element {
    tag: Tag,
    vr: [u8; 2],
    length: u32,
}

fn syntax(detail: impl Into<String>) -> HeaderError {
    HeaderError::Syntax { detail: detail.into() }
}

impl Walk {
    fn inflated(self) -> Self {
        let Source::Plain(mut file) = self.source else { return self };
        // Stand exactly behind the file meta: BufReader keeps its place.
        let _ = file.stream_position();
        let inflater = flate2::read::DeflateDecoder::new(file);
        Walk { source: Source::Inflated(Box::new(BufReader::new(inflater))), offset: 0, length: None }
    }

    fn buffer(&mut self) -> std::io::Result<&[u8]> {
        match &mut self.source {
            Source::Plain(r) => r.fill_buf(),
            Source::Inflated(r) => r.fill_buf(),
        }
    }

    fn consume(&mut self, n: usize) {
        self.offset += n as u64;
        match &mut self.source {
            Source::Plain(r) => r.consume(n),
            Source::Inflated(r) => r.consume(n),
        }
    }

    fn bytes(&mut self, into: &mut [u8]) -> Result<(), HeaderError> {
        let (at, mut filled) = (self.offset, 0);
        while filled < into.len() {
            let available = self.buffer().map_err(|e| syntax(format!("unreadable at byte {at}: {e}")))?;
            if available.is_empty() {
                return Err(syntax(format!(
                    "ends at byte {} in the middle of an element",
                    at + filled as u64
                )));
            }
            let n = available.len().min(into.len() - filled);
            into[filled..filled + n].copy_from_slice(&available[..n]);
            self.consume(n);
            filled += n;
        }
        Ok(())
    }

    fn at_end(&mut self) -> bool {
        self.buffer().is_ok_and(<[u8]>::is_empty)
    }

    fn require(&self, length: u64, tag: Tag) -> Result<(), HeaderError> {
        match self.length {
            Some(total) if self.offset + length > total => Err(syntax(format!(
                "({:04X},{:04X}) declares {length} bytes at byte {}, {} are left",
                tag.0,
                tag.1,
                self.offset,
                total.saturating_sub(self.offset)
            ))),
            _ => Ok(()),
        }
    }

    fn skip(&mut self, length: u64, tag: Tag) -> Result<(), HeaderError> {
        self.require(length, tag)?;
        if let Source::Plain(r) = &mut self.source {
            let step = i64::try_from(length).map_err(|_| syntax("length beyond any file"))?;
            r.seek_relative(step).map_err(|e| syntax(format!("unreadable at byte {}: {e}", self.offset)))?;
            self.offset += length;
            return Ok(());
        }
        let mut left = length;
        while left > 0 {
            let n = self
                .buffer()
                .map_err(|e| syntax(e.to_string()))?
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            if n == 0 {
                return Err(syntax(format!("({:04X},{:04X}) ends early", tag.0, tag.1)));
            }
            self.consume(n);
            left -= n as u64;
        }
        Ok(())
    }

    fn short(&mut self, big_endian: bool) -> Result<u16, HeaderError> {
        let mut b = [0; 2];
        self.bytes(&mut b)?;
        Ok(if big_endian { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) })
    }

    fn long(&mut self, big_endian: bool) -> Result<u32, HeaderError> {
        let mut b = [0; 4];
        self.bytes(&mut b)?;
        Ok(if big_endian { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) })
    }

    /// PS3.5 7.1. An unknown VR in an explicit data set is read as implicit: some devices mix the two.
    fn element(&mut self, encoding: Encoding) -> Result<Element, HeaderError> {
        let be = encoding.big_endian;
        let tag = (self.short(be)?, self.short(be)?);
        if !encoding.explicit || tag.0 == 0xfffe {
            return Ok(Element { tag, vr: *b"  ", length: self.long(be)? });
        }
        let mut vr = [0; 2];
        self.bytes(&mut vr)?;
        let length = match &vr {
            b"OB" | b"OW" | b"OF" | b"OD" | b"OL" | b"OV" | b"SQ" | b"UC" | b"UR" | b"UT" | b"UN" | b"SV"
            | b"UV" => {
                self.short(be)?;
                self.long(be)?
            }
            _ if is_vr(vr) => u32::from(self.short(be)?),
            _ => {
                let high = self.short(be)?;
                let low = if be { u16::from_be_bytes(vr) } else { u16::from_le_bytes(vr) };
                if be {
                    u32::from(low) << 16 | u32::from(high)
                } else {
                    u32::from(high) << 16 | u32::from(low)
                }
            }
        };
        Ok(Element { tag, vr, length })
    }

    /// Reads preamble and file meta (PS3.10 7.1), stands at the data set, returns the transfer syntax.
    fn file_meta(&mut self) -> Result<String, HeaderError> {
        let mut head = [0; 132];
        self.bytes(&mut head).map_err(|_| syntax("shorter than a DICOM preamble"))?;
        if &head[128..] != b"DICM" {
            return Err(syntax("no DICM prefix after the preamble"));
        }
        let mut transfer_syntax = None;
        // Peek at the group: the meta ends where it is no longer 0002.
        while let Ok([2, 0, ..]) = self.buffer() {
            let element = self.element(Encoding { explicit: true, big_endian: false })?;
            if element.length > VALUE_BYTES_MAX {
                return Err(syntax("file meta element too long"));
            }
            let mut value = vec![0; element.length as usize];
            self.bytes(&mut value)?;
            if element.tag == (2, 0x10) {
                let text = String::from_utf8_lossy(&value);
                transfer_syntax = Some(text.trim_matches(['\0', ' ']).to_owned());
            }
        }
        transfer_syntax.ok_or(HeaderError::Missing { attribute: "TransferSyntaxUID" })
    }

    fn top_level(
        &mut self,
        encoding: Encoding,
        wanted: &[Tag],
        into: &mut Dataset,
    ) -> Result<(), HeaderError> {
        while !self.at_end() {
            let element = self.element(encoding)?;
            if element.tag == PIXEL_DATA {
                match element.length {
                    UNDEFINED => self.fragments(encoding)?,
                    length => self.require(u64::from(length), element.tag)?,
                }
                into.has_pixels = true;
                return Ok(());
            }
            if element.length == UNDEFINED {
                self.sequence(encoding_within(&element, encoding), 0)?;
            } else if wanted.contains(&element.tag) && element.length <= VALUE_BYTES_MAX {
                self.require(u64::from(element.length), element.tag)?;
                let mut value = vec![0; element.length as usize];
                self.bytes(&mut value)?;
                into.values.insert(element.tag, value);
            } else {
                self.skip(u64::from(element.length), element.tag)?;
            }
        }
        Ok(())
    }

    /// Items of an undefined-length sequence, up to its delimiter.
    fn sequence(&mut self, encoding: Encoding, depth: usize) -> Result<(), HeaderError> {
        if depth > DEPTH_MAX {
            return Err(syntax("sequences nested too deep"));
        }
        loop {
            let item = self.element(encoding)?;
            match item.tag {
                SEQUENCE_END => return Ok(()),
                ITEM if item.length == UNDEFINED => self.item(encoding, depth)?,
                ITEM => self.skip(u64::from(item.length), item.tag)?,
                tag => {
                    return Err(syntax(format!("({:04X},{:04X}) where an item is expected", tag.0, tag.1)));
                }
            }
        }
    }

    fn item(&mut self, encoding: Encoding, depth: usize) -> Result<(), HeaderError> {
        loop {
            let explicit = encoding.explicit || self.looks_explicit();
            let element = self.element(Encoding { explicit, ..encoding })?;
            match (element.tag, element.length) {
                (ITEM_END, _) => return Ok(()),
                (_, UNDEFINED) => self.sequence(encoding_within(&element, encoding), depth + 1)?,
                (tag, length) => self.skip(u64::from(length), tag)?,
            }
        }
    }

    /// Inside a UN sequence the standard says implicit (PS3.5 6.2.2); some writers keep explicit all the same.
    fn looks_explicit(&mut self) -> bool {
        matches!(self.buffer(), Ok([g0, g1, _, _, a, b, ..]) if [*g0, *g1] != [0xfe, 0xff] && is_vr([*a, *b]))
    }

    /// Encapsulated pixel data (PS3.5 A.4).
    fn fragments(&mut self, encoding: Encoding) -> Result<(), HeaderError> {
        loop {
            let item = self.element(encoding)?;
            match (item.tag, item.length) {
                (SEQUENCE_END, _) => return Ok(()),
                (ITEM, length) if length != UNDEFINED => self.skip(u64::from(length), item.tag)?,
                _ => return Err(syntax("encapsulated pixel data without a proper fragment")),
            }
        }
    }
}

fn encoding_within(element: &Element, encoding: Encoding) -> Encoding {
    Encoding { explicit: encoding.explicit && &element.vr != b"UN", ..encoding }
}

fn is_vr(vr: [u8; 2]) -> bool {
    const KNOWN: [&[u8; 2]; 34] = [
        b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"OB", b"OD",
        b"OF", b"OL", b"OV", b"OW", b"PN", b"SH", b"SL", b"SQ", b"SS", b"ST", b"SV", b"TM", b"UC", b"UI",
        b"UL", b"UN", b"UR", b"US", b"UT", b"UV",
    ];
    KNOWN.contains(&&vr)
}
