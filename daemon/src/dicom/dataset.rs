//! A bounded walk over a Part 10 file: every declared length is held against the bytes that are really there.
//!
//! Only wanted top-level elements of at most [`VALUE_BYTES_MAX`] are kept, a few wanted sequences of at most
//! [`SEQUENCE_BYTES_MAX`]; the rest is skipped, so a 674-byte file that declares 3.7 GB costs nothing and is refused.
//! Stops at Pixel Data, whose place is noted. Deliberately absent: any trust in a length.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::HeaderError;
use super::nested::{self, Encoding, Item};

/// Largest value that is kept, bytes.
pub const VALUE_BYTES_MAX: u32 = 64 << 10;
/// Largest wanted sequence that is kept, bytes; functional groups of 2000 frames have about 4 MiB.
pub const SEQUENCE_BYTES_MAX: usize = 16 << 20;
/// Shared Functional Groups Sequence.
pub const SHARED_GROUPS: Tag = (0x5200, 0x9229);
/// Per-frame Functional Groups Sequence.
pub const FRAME_GROUPS: Tag = (0x5200, 0x9230);
/// Contrast/Bolus Agent Sequence.
pub const CONTRAST_AGENTS: Tag = (0x0018, 0x0012);
/// Sequences that are kept where they are wanted; in implicit VR nothing else tells them from other elements.
const SEQUENCES: [Tag; 3] = [SHARED_GROUPS, FRAME_GROUPS, CONTRAST_AGENTS];
/// Most fragments of pixel data that are noted.
const FRAGMENTS_MAX: usize = 1 << 16;
/// Most that a deflated data set may inflate to, bytes; a few kilobytes can otherwise become terabytes.
pub const INFLATED_BYTES_MAX: u64 = 512 << 20;
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
    explicit: bool,
    /// Whether Pixel Data is present (and complete).
    pub has_pixels: bool,
    /// Where Pixel Data lies in the file; `None` where it is deflated.
    pub pixels: Option<PixelPlace>,
}

/// Bytes of a file: where they start, how many they are.
pub type Span = (u64, u64);

/// Where Pixel Data lies in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PixelPlace {
    /// As it is.
    Native(Span),
    /// In fragments (PS3.5 A.4); the first one is the offset table.
    Fragments(Vec<Span>),
}

impl Dataset {
    /// Walks a file and keeps the wanted top-level elements.
    pub fn read(path: &Path, wanted: &[Tag]) -> Result<Self, HeaderError> {
        let io = |source| HeaderError::Read { source };
        let file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        Self::walk(Box::new(file), length, wanted)
    }

    /// Walks a Part 10 file that is in memory.
    pub fn parse(bytes: &[u8], wanted: &[Tag]) -> Result<Self, HeaderError> {
        Self::walk(Box::new(Cursor::new(bytes)), bytes.len() as u64, wanted)
    }

    fn walk(bytes: Box<dyn ReadSeek + '_>, length: u64, wanted: &[Tag]) -> Result<Self, HeaderError> {
        let io = |source| HeaderError::Read { source };
        let mut walk = Walk::new(Source::Plain(BufReader::with_capacity(16 << 10, bytes)));
        walk.length = Some(length);
        let FileMeta { transfer_syntax, .. } = walk.file_meta()?;
        let mut encoding = Encoding { explicit: true, big_endian: false };
        match transfer_syntax.as_str() {
            "1.2.840.10008.1.2" => encoding.explicit = false,
            "1.2.840.10008.1.2.2" => encoding.big_endian = true,
            "1.2.840.10008.1.2.1.99" => walk = walk.inflated().map_err(io)?,
            _ => {}
        }
        let mut dataset = Dataset {
            transfer_syntax,
            big_endian: encoding.big_endian,
            explicit: encoding.explicit,
            ..Dataset::default()
        };
        walk.top_level(encoding, wanted, &mut dataset)?;
        walk.finish()?;
        Ok(dataset)
    }

    /// First value as text, trimmed; `None` if absent or empty. Bytes beyond ASCII are replaced.
    pub fn text(&self, tag: Tag) -> Option<String> {
        let bytes = self.values.get(&tag)?;
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_matches(['\0', ' ', '\t', '\r', '\n']);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Value as it stands in the file; its repertoire is (0008,0005)'s.
    pub fn bytes(&self, tag: Tag) -> Option<&[u8]> {
        self.values.get(&tag).map(Vec::as_slice)
    }

    /// Whether the data set, and native pixel data with it, is big endian.
    pub fn is_big_endian(&self) -> bool {
        self.big_endian
    }

    /// Items of a sequence that was wanted; none if it is absent, too large or malformed.
    pub fn items(&self, tag: Tag) -> Vec<Item<'_>> {
        let encoding = Encoding { explicit: self.explicit, big_endian: self.big_endian };
        self.values.get(&tag).and_then(|bytes| nested::items(bytes, encoding).ok()).unwrap_or_default()
    }

    /// Backslash-separated values, each trimmed.
    pub fn texts(&self, tag: Tag) -> Vec<String> {
        self.text(tag).map_or_else(Vec::new, |t| t.split('\\').map(|v| v.trim().to_owned()).collect())
    }

    /// Decimal strings; `None` unless there are exactly `N` finite numbers. Also right where the VR is UN.
    pub fn decimals<const N: usize>(&self, tag: Tag) -> Option<[f64; N]> {
        let numbers: Result<Vec<f64>, _> = self.texts(tag).iter().map(|t| t.parse()).collect();
        let numbers: [f64; N] = numbers.ok()?.try_into().ok()?;
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

/// AE title of whoever sent a Part 10 file, from its file meta (0002,0016); `None` where nobody wrote it down.
pub fn source_ae(path: &Path) -> Result<Option<String>, HeaderError> {
    let file = File::open(path).map_err(|source| HeaderError::Read { source })?;
    let source = Source::Plain(BufReader::with_capacity(1 << 10, Box::new(file)));
    Walk::new(source).file_meta().map(|meta| meta.source_ae)
}

/// A Part 10 file at its data set, and how many bytes that has.
pub fn open_body(path: &Path) -> Result<(File, u64), HeaderError> {
    let io = |source| HeaderError::Read { source };
    let mut file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    let mut walk = Walk::new(Source::Plain(BufReader::new(Box::new(&mut file))));
    walk.file_meta()?;
    let offset = walk.offset;
    drop(walk);
    file.seek(SeekFrom::Start(offset)).map_err(io)?;
    Ok((file, length.saturating_sub(offset)))
}

/// SHA-256 of the data set bytes of a Part 10 file: what the sender sent, without preamble and file meta.
pub fn sha256(path: &Path) -> Result<[u8; 32], HeaderError> {
    let io = |source| HeaderError::Read { source };
    let file: Box<dyn ReadSeek> = Box::new(File::open(path).map_err(io)?);
    let source = Source::Plain(BufReader::new(file));
    let mut walk = Walk::new(source);
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

/// What we read of the file meta group (PS3.10 7.1).
struct FileMeta {
    transfer_syntax: String,
    source_ae: Option<String>,
}

/// A file, or bytes in memory.
trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

type Plain<'a> = BufReader<Box<dyn ReadSeek + 'a>>;

enum Source<'a> {
    Plain(Plain<'a>),
    Inflated(Box<BufReader<std::io::Take<flate2::read::DeflateDecoder<Plain<'a>>>>>),
}

struct Walk<'a> {
    source: Source<'a>,
    /// Bytes peeked at across the end of the source's own buffer; they come before the source.
    ahead: Vec<u8>,
    offset: u64,
    /// Total bytes, where known.
    length: Option<u64>,
    /// What is taken is also kept here, while a sequence is wanted; `None` again once it is too large.
    record: Option<Vec<u8>>,
}

struct Element {
    tag: Tag,
    vr: [u8; 2],
    length: u32,
}

impl Source<'_> {
    fn buffer(&mut self) -> std::io::Result<&[u8]> {
        match self {
            Source::Plain(r) => r.fill_buf(),
            Source::Inflated(r) => r.fill_buf(),
        }
    }

    fn consume(&mut self, n: usize) {
        match self {
            Source::Plain(r) => r.consume(n),
            Source::Inflated(r) => r.consume(n),
        }
    }
}

fn syntax(detail: impl Into<String>) -> HeaderError {
    HeaderError::Syntax { detail: detail.into() }
}

impl<'a> Walk<'a> {
    fn new(source: Source<'a>) -> Self {
        Walk { source, ahead: Vec::new(), offset: 0, length: None, record: None }
    }
}

impl Walk<'_> {
    fn inflated(self) -> std::io::Result<Self> {
        let Source::Plain(mut file) = self.source else { return Ok(self) };
        // Stand exactly behind the file meta, whatever was peeked at.
        file.seek(SeekFrom::Start(self.offset))?;
        let inflater = flate2::read::DeflateDecoder::new(file).take(INFLATED_BYTES_MAX);
        let source = Source::Inflated(Box::new(BufReader::new(inflater)));
        Ok(Walk::new(source))
    }

    /// Reads a deflated stream to its end: only there is it known to be whole and within the limit.
    fn finish(&mut self) -> Result<(), HeaderError> {
        if matches!(self.source, Source::Plain(_)) {
            return Ok(());
        }
        loop {
            match self.buffer().map_err(|e| syntax(format!("deflated data set is broken: {e}")))?.len() {
                0 if self.offset >= INFLATED_BYTES_MAX => {
                    return Err(syntax(format!("inflates to more than {INFLATED_BYTES_MAX} bytes")));
                }
                0 => return Ok(()),
                n => self.consume(n),
            }
        }
    }

    fn buffer(&mut self) -> std::io::Result<&[u8]> {
        if self.ahead.is_empty() { self.source.buffer() } else { Ok(&self.ahead) }
    }

    /// The next `n` bytes without taking them, fewer only at the end. A buffer may end between any two bytes.
    fn peek(&mut self, n: usize) -> std::io::Result<&[u8]> {
        if !self.ahead.is_empty() || self.source.buffer()?.len() < n {
            while self.ahead.len() < n {
                let more = self.source.buffer()?;
                let taken = more.len().min(n - self.ahead.len());
                if taken == 0 {
                    break;
                }
                self.ahead.extend_from_slice(&more[..taken]);
                self.source.consume(taken);
            }
        }
        self.buffer()
    }

    /// Takes `n` bytes, at most as many as [`Walk::buffer`] gave.
    fn consume(&mut self, n: usize) {
        self.offset += n as u64;
        if let Some(mut record) = self.record.take() {
            let taken = self.buffer().unwrap_or_default();
            record.extend_from_slice(taken.get(..n).unwrap_or_default());
            self.record = Some(record).filter(|record| record.len() <= SEQUENCE_BYTES_MAX);
        }
        if self.ahead.is_empty() {
            self.source.consume(n);
        } else {
            self.ahead.drain(..n);
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
        let mut left = length;
        if let (Source::Plain(r), None) = (&mut self.source, &self.record) {
            let peeked = left.min(self.ahead.len() as u64);
            self.ahead.drain(..peeked as usize);
            let step = i64::try_from(left - peeked).map_err(|_| syntax("length beyond any file"))?;
            r.seek_relative(step).map_err(|e| syntax(format!("unreadable at byte {}: {e}", self.offset)))?;
            self.offset += length;
            left = 0;
        }
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

    /// Reads preamble and file meta (PS3.10 7.1) and stands at the data set.
    fn file_meta(&mut self) -> Result<FileMeta, HeaderError> {
        let mut head = [0; 132];
        self.bytes(&mut head).map_err(|_| syntax("shorter than a DICOM preamble"))?;
        if &head[128..] != b"DICM" {
            return Err(syntax("no DICM prefix after the preamble"));
        }
        let (mut transfer_syntax, mut source_ae) = (None, None);
        // The meta ends where the group is no longer 0002.
        while let Ok([2, 0, ..]) = self.peek(2) {
            let element = self.element(Encoding { explicit: true, big_endian: false })?;
            if element.length > VALUE_BYTES_MAX {
                return Err(syntax("file meta element too long"));
            }
            let mut value = vec![0; element.length as usize];
            self.bytes(&mut value)?;
            let text = || String::from_utf8_lossy(&value).trim_matches(['\0', ' ']).to_owned();
            match element.tag {
                (2, 0x10) => transfer_syntax = Some(text()),
                (2, 0x16) => source_ae = Some(text()).filter(|ae| !ae.is_empty()),
                _ => {}
            }
        }
        let transfer_syntax =
            transfer_syntax.ok_or(HeaderError::Missing { attribute: "TransferSyntaxUID" })?;
        Ok(FileMeta { transfer_syntax, source_ae })
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
                let place = match element.length {
                    UNDEFINED => PixelPlace::Fragments(self.fragments(encoding)?),
                    length => {
                        let place = PixelPlace::Native((self.offset, u64::from(length)));
                        self.skip(u64::from(length), element.tag)?;
                        place
                    }
                };
                into.has_pixels = true;
                into.pixels = Some(place).filter(|_| matches!(self.source, Source::Plain(_)));
                return Ok(());
            }
            let is_kept = SEQUENCES.contains(&element.tag) && wanted.contains(&element.tag);
            if element.length == UNDEFINED || is_kept {
                self.record = is_kept.then(Vec::new);
                match element.length {
                    UNDEFINED => self.sequence(encoding_within(&element, encoding), 0)?,
                    length => self.skip(u64::from(length), element.tag)?,
                }
                if let Some(bytes) = self.record.take() {
                    into.values.insert(element.tag, bytes);
                }
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
        matches!(self.peek(6), Ok([g0, g1, _, _, a, b, ..]) if [*g0, *g1] != [0xfe, 0xff] && is_vr([*a, *b]))
    }

    /// Encapsulated pixel data (PS3.5 A.4).
    fn fragments(&mut self, encoding: Encoding) -> Result<Vec<Span>, HeaderError> {
        let mut spans = Vec::new();
        loop {
            let item = self.element(encoding)?;
            match (item.tag, item.length) {
                (SEQUENCE_END, _) => return Ok(spans),
                (ITEM, length) if length != UNDEFINED && spans.len() < FRAGMENTS_MAX => {
                    spans.push((self.offset, u64::from(length)));
                    self.skip(u64::from(length), item.tag)?;
                }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const ROWS: Tag = (0x0028, 0x0010);

    fn meta(syntax: &str) -> Vec<u8> {
        let mut bytes = vec![0; 128];
        bytes.extend(b"DICM");
        let mut value = syntax.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(0);
        }
        bytes.extend([2, 0, 0x10, 0, b'U', b'I', value.len() as u8, 0]);
        bytes.extend(value);
        bytes
    }

    /// Explicit VR little endian.
    fn short_form(group: u16, element: u16, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        let mut bytes = [group.to_le_bytes(), element.to_le_bytes()].concat();
        bytes.extend(vr);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn long_form(group: u16, element: u16, vr: &[u8; 2], length: u32, value: &[u8]) -> Vec<u8> {
        let mut bytes = [group.to_le_bytes(), element.to_le_bytes()].concat();
        bytes.extend(vr);
        bytes.extend([0, 0]);
        bytes.extend(length.to_le_bytes());
        bytes.extend(value);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Dataset, HeaderError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Dataset::read(file.path(), &[ROWS])
    }

    fn deflated(data_set: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data_set).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_deflated_data_set_is_accepted_only_whole() {
        let pixels: Vec<u8> =
            (0..4096u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 7).to_le_bytes()).collect();
        let mut data_set = short_form(0x0028, 0x0010, b"US", &[64, 0]);
        data_set.extend(long_form(0x7fe0, 0x0010, b"OW", pixels.len() as u32, &pixels));
        let body = deflated(&data_set);
        let file = |body: &[u8]| [meta("1.2.840.10008.1.2.1.99"), body.to_vec()].concat();
        let whole = read(&file(&body)).unwrap();
        assert!(whole.has_pixels && whole.short(ROWS) == Some(64));
        for cut in (0..body.len()).step_by(211).chain([body.len() - 1]) {
            let read = read(&file(&body[..cut]));
            assert!(!read.is_ok_and(|d| d.has_pixels), "accepted when cut at byte {cut} of {}", body.len());
        }
        // Pixels that the stream does not hold, although the stream itself is whole.
        let mut liar = short_form(0x0028, 0x0010, b"US", &[64, 0]);
        liar.extend(long_form(0x7fe0, 0x0010, b"OW", 1 << 20, &pixels));
        assert!(read(&file(&deflated(&liar))).is_err());
    }

    #[test]
    fn a_deflated_bomb_is_refused_at_the_limit() {
        let mut encoder =
            flate2::write::DeflateEncoder::new(meta("1.2.840.10008.1.2.1.99"), flate2::Compression::fast());
        let length = u32::try_from(INFLATED_BYTES_MAX).unwrap() + 2;
        encoder.write_all(&long_form(0x7fe0, 0x0010, b"OW", length, &[])).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..=INFLATED_BYTES_MAX >> 20 {
            encoder.write_all(&zeros).unwrap();
        }
        assert!(read(&encoder.finish().unwrap()).is_err());
    }

    /// The walk looks ahead by a few bytes; where the read buffer happens to end must not matter.
    #[test]
    fn no_position_of_the_buffer_changes_what_is_read() {
        for filler in (16_120..16_240u32).step_by(2) {
            let mut file = meta("1.2.840.10008.1.2.1");
            file.extend(long_form(0x0009, 0x0010, b"OB", filler, &vec![1; filler as usize]));
            // A sequence typed UN whose items keep explicit VRs, against PS3.5 6.2.2 and met in the field.
            file.extend(long_form(0x0009, 0x1010, b"UN", UNDEFINED, &[]));
            file.extend([0xfe, 0xff, 0x00, 0xe0, 0xff, 0xff, 0xff, 0xff]);
            file.extend(short_form(0x0009, 0x1011, b"LO", b"word"));
            file.extend([0xfe, 0xff, 0x0d, 0xe0, 0, 0, 0, 0]);
            file.extend([0xfe, 0xff, 0xdd, 0xe0, 0, 0, 0, 0]);
            file.extend(short_form(0x0028, 0x0010, b"US", &[64, 0]));
            let read = read(&file).unwrap_or_else(|e| panic!("filler of {filler} bytes: {e}"));
            assert_eq!(read.short(ROWS), Some(64), "filler of {filler} bytes");
        }
    }

    #[test]
    fn a_list_with_one_bad_number_is_no_list_of_the_good_ones() {
        let mut dataset = Dataset::default();
        dataset.values.insert(ROWS, b"1\\x\\2\\3".to_vec());
        assert_eq!(dataset.decimals::<3>(ROWS), None);
    }

    #[test]
    fn a_length_beyond_the_file_is_refused_wherever_it_stands() {
        for element in [
            long_form(0x0009, 0x0010, b"UN", 3_700_000_000, &[0; 8]),
            long_form(0x7fe0, 0x0010, b"OW", 0xffff_fffe, &[0; 8]),
            short_form(0x0028, 0x0010, b"US", &[])[..6].iter().copied().chain([255, 255]).collect(),
        ] {
            assert!(read(&[meta("1.2.840.10008.1.2.1"), element].concat()).is_err());
        }
    }
}
