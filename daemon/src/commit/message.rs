//! The two data sets of a storage commitment: N-ACTION information in, N-EVENT-REPORT information out. Pure.

use super::{Outcome, Reference, Request};
use crate::dicom::dataset::Tag;
use crate::dicom::nested::{Encoding, Item};
use crate::dicom::{HeaderError, SopInstanceUid};

/// Largest N-ACTION information taken, bytes: about 25 000 references.
pub const REQUEST_BYTES_MAX: usize = 4 << 20;

const REFERENCED_CLASS: Tag = (0x0008, 0x1150);
const REFERENCED_SOP: Tag = (0x0008, 0x1155);
const TRANSACTION: Tag = (0x0008, 0x1195);
const FAILURE_REASON: Tag = (0x0008, 0x1197);
const FAILED: Tag = (0x0008, 0x1198);
const REFERENCED: Tag = (0x0008, 0x1199);
const ITEM: Tag = (0xfffe, 0xe000);

/// Reads what a peer asks.
pub fn parse(bytes: &[u8], encoding: Encoding) -> Result<Request, HeaderError> {
    let data_set = Item::parse(bytes, encoding)?;
    let uid = |item: &Item, tag, attribute| {
        let text = item.text(tag).ok_or(HeaderError::Missing { attribute })?;
        SopInstanceUid::parse(&text).map_err(|e| HeaderError::Malformed { attribute, detail: e.to_string() })
    };
    let transaction = uid(&data_set, TRANSACTION, "TransactionUID")?.as_str().to_owned();
    let references = data_set
        .items(REFERENCED)
        .iter()
        .map(|item| {
            Ok(Reference {
                class: uid(item, REFERENCED_CLASS, "ReferencedSOPClassUID")?.as_str().to_owned(),
                sop: uid(item, REFERENCED_SOP, "ReferencedSOPInstanceUID")?,
            })
        })
        .collect::<Result<Vec<_>, HeaderError>>()?;
    if references.is_empty() {
        return Err(HeaderError::Missing { attribute: "ReferencedSOPSequence" });
    }
    Ok(Request { transaction, references })
}

/// Event Type ID (PS3.4 J.3.3): 1 if everything is committed, 2 if failures exist.
pub fn event_type(outcome: &Outcome) -> u16 {
    if outcome.failed.is_empty() { 1 } else { 2 }
}

/// Writes what the peer gets to know; little endian.
pub fn report(outcome: &Outcome, explicit: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let writer = Writer { explicit };
    writer.uid(&mut bytes, TRANSACTION, &outcome.transaction);
    let item = |reference: &Reference, reason: Option<u16>| {
        let mut item = Vec::with_capacity(160);
        writer.uid(&mut item, REFERENCED_CLASS, &reference.class);
        writer.uid(&mut item, REFERENCED_SOP, reference.sop.as_str());
        if let Some(reason) = reason {
            writer.element(&mut item, FAILURE_REASON, b"US", &reason.to_le_bytes());
        }
        item
    };
    writer.sequence(&mut bytes, FAILED, outcome.failed.iter().map(|(r, reason)| item(r, Some(*reason))));
    writer.sequence(&mut bytes, REFERENCED, outcome.committed.iter().map(|r| item(r, None)));
    bytes
}

struct Writer {
    explicit: bool,
}

impl Writer {
    fn uid(&self, into: &mut Vec<u8>, tag: Tag, uid: &str) {
        let mut value = uid.as_bytes().to_vec();
        value.resize(value.len() + value.len() % 2, 0);
        self.element(into, tag, b"UI", &value);
    }

    /// Nothing where there are no items.
    fn sequence(&self, into: &mut Vec<u8>, tag: Tag, items: impl Iterator<Item = Vec<u8>>) {
        let mut value = Vec::new();
        for item in items {
            head(&mut value, ITEM);
            value.extend(u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes());
            value.extend(item);
        }
        if !value.is_empty() {
            self.element(into, tag, b"SQ", &value);
        }
    }

    fn element(&self, into: &mut Vec<u8>, tag: Tag, vr: &[u8; 2], value: &[u8]) {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        head(into, tag);
        match (self.explicit, vr) {
            (true, b"SQ") => {
                into.extend(vr);
                into.extend([0, 0]);
                into.extend(length.to_le_bytes());
            }
            (true, _) => {
                into.extend(vr);
                into.extend((length as u16).to_le_bytes());
            }
            (false, _) => into.extend(length.to_le_bytes()),
        }
        into.extend(value);
    }
}

fn head(into: &mut Vec<u8>, tag: Tag) {
    into.extend(tag.0.to_le_bytes());
    into.extend(tag.1.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commit::failure;

    fn reference(sop: &str) -> Reference {
        Reference { class: "1.2.840.10008.5.1.4.1.1.2".into(), sop: SopInstanceUid::parse(sop).unwrap() }
    }

    #[test]
    fn a_report_reads_back_in_either_encoding() {
        let outcome = Outcome {
            transaction: "2.25.7".into(),
            committed: vec![reference("1.2.3"), reference("1.2.34")],
            failed: vec![(reference("1.2.5"), failure::NO_SUCH_INSTANCE)],
        };
        assert_eq!(event_type(&outcome), 2);
        for explicit in [true, false] {
            let bytes = report(&outcome, explicit);
            let encoding = Encoding { explicit, big_endian: false };
            // The committed half has the form of a request.
            let request = parse(&bytes, encoding).unwrap();
            assert_eq!(request.transaction, outcome.transaction);
            assert_eq!(request.references, outcome.committed);
            let failed = Item::parse(&bytes, encoding).unwrap().item(FAILED).unwrap();
            assert_eq!(failed.text(REFERENCED_SOP).as_deref(), Some("1.2.5"));
            assert_eq!(failed.bytes(FAILURE_REASON), Some(&[0x12, 0x01][..]));
        }
    }

    #[test]
    fn a_request_without_references_or_with_a_bad_uid_is_refused() {
        let outcome = Outcome { transaction: "1.2".into(), committed: vec![], failed: vec![] };
        let encoding = Encoding { explicit: true, big_endian: false };
        assert!(parse(&report(&outcome, true), encoding).is_err());
        let mut bytes = report(&Outcome { committed: vec![reference("1.2.3456")], ..outcome }, true);
        let at = bytes.windows(8).position(|w| w == b"1.2.3456").unwrap();
        bytes[at] = b'/';
        assert!(parse(&bytes, encoding).is_err());
    }
}
