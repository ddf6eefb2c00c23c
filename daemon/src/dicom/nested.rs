//! Data sets within data sets, read from memory: borrowed, lazy, and bounded by the bytes that are there.
//!
//! An item knows its elements; what a sequence holds is parsed when asked for. Nothing is allocated by a declared
//! length, and nesting deeper than [`DEPTH_MAX`] is refused.

use super::HeaderError;
use super::dataset::Tag;

/// Deepest nesting of sequences.
const DEPTH_MAX: usize = 16;
const UNDEFINED: u32 = u32::MAX;
const ITEM: Tag = (0xfffe, 0xe000);
const ITEM_END: Tag = (0xfffe, 0xe00d);
const SEQUENCE_END: Tag = (0xfffe, 0xe0dd);

/// How elements are written (PS3.5 A).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoding {
    /// Explicit VR.
    pub explicit: bool,
    /// Big endian.
    pub big_endian: bool,
}

impl Encoding {
    /// Of a transfer syntax without deflation; encapsulated ones are explicit little endian.
    pub fn of(transfer_syntax: &str) -> Self {
        Encoding {
            explicit: transfer_syntax != "1.2.840.10008.1.2",
            big_endian: transfer_syntax == "1.2.840.10008.1.2.2",
        }
    }

    fn short(self, b: [u8; 2]) -> u16 {
        if self.big_endian { u16::from_be_bytes(b) } else { u16::from_le_bytes(b) }
    }

    fn long(self, b: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(b) } else { u32::from_le_bytes(b) }
    }
}

/// One data set or sequence item; elements in the order they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item<'a> {
    elements: Vec<(Tag, &'a [u8], Encoding)>,
}

impl<'a> Item<'a> {
    /// A whole data set.
    pub fn parse(bytes: &'a [u8], encoding: Encoding) -> Result<Self, HeaderError> {
        let mut elements = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (element, value, after) = split(rest, encoding, 0)?;
            elements.push((element.tag, value, element.within(encoding)));
            rest = after;
        }
        Ok(Item { elements })
    }

    /// Value bytes.
    pub fn bytes(&self, tag: Tag) -> Option<&'a [u8]> {
        self.elements.iter().find(|(t, ..)| *t == tag).map(|(_, value, _)| *value)
    }

    /// Value as text, trimmed; `None` if absent or empty.
    pub fn text(&self, tag: Tag) -> Option<String> {
        let text = String::from_utf8_lossy(self.bytes(tag)?);
        let text = text.trim_matches(['\0', ' ', '\t', '\r', '\n']);
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// Exactly `N` decimal numbers.
    pub fn decimals<const N: usize>(&self, tag: Tag) -> Option<[f64; N]> {
        let text = self.text(tag)?;
        let numbers: Option<Vec<f64>> =
            text.split('\\').map(|t| t.trim().parse().ok().filter(|n: &f64| n.is_finite())).collect();
        numbers?.try_into().ok()
    }

    /// The items of a sequence; none if it is absent or malformed.
    pub fn items(&self, tag: Tag) -> Vec<Item<'a>> {
        let sequence = self.elements.iter().find(|(t, ..)| *t == tag);
        sequence.and_then(|(_, value, encoding)| items(value, *encoding).ok()).unwrap_or_default()
    }

    /// The first item of a sequence.
    pub fn item(&self, tag: Tag) -> Option<Item<'a>> {
        let (_, value, encoding) = self.elements.iter().find(|(t, ..)| *t == tag)?;
        let (body, encoding, _) = next_item(value, *encoding, 0).ok()??;
        Item::parse(body, encoding).ok()
    }
}

/// The items in the value of a sequence, with or without its delimiter.
pub fn items<'a>(value: &'a [u8], encoding: Encoding) -> Result<Vec<Item<'a>>, HeaderError> {
    let mut items = Vec::new();
    let mut rest = value;
    while let Some((body, within, after)) = next_item(rest, encoding, 0)? {
        items.push(Item::parse(body, within)?);
        rest = after;
    }
    Ok(items)
}

struct Element {
    tag: Tag,
    vr: [u8; 2],
    length: u32,
}

impl Element {
    /// A sequence typed UN has implicit items (PS3.5 6.2.2).
    fn within(&self, encoding: Encoding) -> Encoding {
        Encoding { explicit: encoding.explicit && &self.vr != b"UN", ..encoding }
    }
}

fn syntax(detail: &str) -> HeaderError {
    HeaderError::Syntax { detail: detail.into() }
}

/// Element head and what follows it (PS3.5 7.1).
fn head(bytes: &[u8], encoding: Encoding) -> Result<(Element, &[u8]), HeaderError> {
    let early = || syntax("ends in the middle of an element");
    let (&[a, b, c, d, e, f, g, h], rest) = bytes.split_first_chunk::<8>().ok_or_else(early)?;
    let tag = (encoding.short([a, b]), encoding.short([c, d]));
    if !encoding.explicit || tag.0 == 0xfffe {
        return Ok((Element { tag, vr: *b"  ", length: encoding.long([e, f, g, h]) }, rest));
    }
    let vr = [e, f];
    match &vr {
        b"OB" | b"OW" | b"OF" | b"OD" | b"OL" | b"OV" | b"SQ" | b"UC" | b"UR" | b"UT" | b"UN" | b"SV"
        | b"UV" => {
            let (&length, rest) = rest.split_first_chunk::<4>().ok_or_else(early)?;
            Ok((Element { tag, vr, length: encoding.long(length) }, rest))
        }
        _ => Ok((Element { tag, vr, length: u32::from(encoding.short([g, h])) }, rest)),
    }
}

/// One element: head, value, what follows. The value of a sequence of undefined length is what stands before its
/// delimiter.
fn split(bytes: &[u8], encoding: Encoding, depth: usize) -> Result<(Element, &[u8], &[u8]), HeaderError> {
    let (element, rest) = head(bytes, encoding)?;
    if element.length != UNDEFINED {
        let (value, rest) = rest
            .split_at_checked(element.length as usize)
            .ok_or_else(|| syntax("an element is longer than what holds it"))?;
        return Ok((element, value, rest));
    }
    if depth > DEPTH_MAX {
        return Err(syntax("sequences nested too deep"));
    }
    let within = element.within(encoding);
    let mut after = rest;
    while let Some((_, _, next)) = next_item(after, within, depth)? {
        after = next;
    }
    let value = &rest[..rest.len() - after.len()];
    // The delimiter itself.
    let after = after.get(8..).ok_or_else(|| syntax("a sequence has no end"))?;
    Ok((element, value, after))
}

/// Body of an item, its encoding, what follows it.
type NextItem<'a> = (&'a [u8], Encoding, &'a [u8]);

/// The next item of a sequence; `None` at the end.
fn next_item(bytes: &[u8], encoding: Encoding, depth: usize) -> Result<Option<NextItem<'_>>, HeaderError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (item, rest) = head(bytes, encoding)?;
    match item.tag {
        SEQUENCE_END => Ok(None),
        ITEM if item.length != UNDEFINED => {
            let (body, rest) = rest
                .split_at_checked(item.length as usize)
                .ok_or_else(|| syntax("an item is longer than its sequence"))?;
            Ok(Some((body, encoding, rest)))
        }
        ITEM => {
            let mut after = rest;
            loop {
                if let Ok((Element { tag: ITEM_END, .. }, next)) = head(after, encoding) {
                    return Ok(Some((&rest[..rest.len() - after.len()], encoding, next)));
                }
                after = split(after, encoding, depth + 1)?.2;
            }
        }
        _ => Err(syntax("something else where an item is expected")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXPLICIT: Encoding = Encoding { explicit: true, big_endian: false };
    const SEQUENCE: Tag = (0x0008, 0x1199);
    const UID: Tag = (0x0008, 0x1155);

    fn element(tag: Tag, vr: &[u8; 2], value: &[u8], length: u32) -> Vec<u8> {
        let mut bytes = [tag.0.to_le_bytes(), tag.1.to_le_bytes()].concat();
        match vr {
            b"SQ" | b"UN" => {
                bytes.extend(vr);
                bytes.extend([0, 0]);
                bytes.extend(length.to_le_bytes());
            }
            b"  " => bytes.extend(length.to_le_bytes()),
            _ => {
                bytes.extend(vr);
                bytes.extend((length as u16).to_le_bytes());
            }
        }
        bytes.extend(value);
        bytes
    }

    fn whole(tag: Tag, vr: &[u8; 2], value: &[u8]) -> Vec<u8> {
        element(tag, vr, value, value.len() as u32)
    }

    fn ended(tag: Tag, vr: &[u8; 2], value: &[u8], end: Tag) -> Vec<u8> {
        [element(tag, vr, value, UNDEFINED), whole(end, b"  ", &[])].concat()
    }

    #[test]
    fn items_of_either_length_are_read_alike() {
        let uid = whole(UID, b"UI", b"1.2.3\0");
        for items in [
            [whole(ITEM, b"  ", &uid), whole(ITEM, b"  ", &uid)].concat(),
            [ended(ITEM, b"  ", &uid, ITEM_END), whole(ITEM, b"  ", &uid)].concat(),
        ] {
            for sequence in [whole(SEQUENCE, b"SQ", &items), ended(SEQUENCE, b"SQ", &items, SEQUENCE_END)] {
                let bytes = [sequence, whole((0x0020, 0x0010), b"SH", b"7 ")].concat();
                let item = Item::parse(&bytes, EXPLICIT).unwrap();
                let found: Vec<_> = item.items(SEQUENCE).iter().map(|i| i.text(UID)).collect();
                assert_eq!(found, [Some("1.2.3".to_owned()), Some("1.2.3".to_owned())]);
                assert_eq!(item.item(SEQUENCE).unwrap().text(UID).as_deref(), Some("1.2.3"));
                assert_eq!(item.decimals::<1>((0x0020, 0x0010)), Some([7.0]));
            }
        }
    }

    #[test]
    fn a_sequence_typed_un_has_implicit_items() {
        let uid = whole(UID, b"  ", b"1.2.3\0");
        let bytes = ended(SEQUENCE, b"UN", &whole(ITEM, b"  ", &uid), SEQUENCE_END);
        let item = Item::parse(&bytes, EXPLICIT).unwrap();
        assert_eq!(item.item(SEQUENCE).unwrap().text(UID).as_deref(), Some("1.2.3"));
    }

    #[test]
    fn what_ends_early_or_nests_without_end_is_refused() {
        let uid = whole(UID, b"UI", b"1.2.3\0");
        let bytes = ended(SEQUENCE, b"SQ", &ended(ITEM, b"  ", &uid, ITEM_END), SEQUENCE_END);
        for cut in 1..bytes.len() {
            assert!(Item::parse(&bytes[..cut], EXPLICIT).is_err(), "cut at {cut}");
        }
        let mut deep = Vec::new();
        for _ in 0..100_000 {
            deep.extend(element(SEQUENCE, b"SQ", &[], UNDEFINED));
            deep.extend(element(ITEM, b"  ", &[], UNDEFINED));
        }
        assert!(Item::parse(&deep, EXPLICIT).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), explicit in any::<bool>()) {
            if let Ok(item) = Item::parse(&bytes, Encoding { explicit, big_endian: false }) {
                let _ = item.items(SEQUENCE);
            }
        }
    }
}
