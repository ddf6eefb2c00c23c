//! What strangers can hand us, one `fn(&[u8])` each: no input may panic, hang or take memory by a declared length.
//!
//! libFuzzer calls them (`fuzz_targets/`), and so does an ordinary test on the stable toolchain (`stable.rs`).

use ichd::alert::document::{Alert, Heartbeat, Status, StudyDisposition};
use ichd::commit::message;
use ichd::dicom::SliceHeader;
use ichd::dicom::nested::{Encoding, Item};
use ichd::receive::dimse::{self, Command, Status as DimseStatus};
use ichd::receive::upper;

/// Name, target, and what to start from.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// Every target.
pub const ALL: [Target; 7] = [
    ("pdu", pdu, pdu_seeds),
    ("command", command, command_seeds),
    ("header", header, file_seeds),
    ("pixels", pixels, file_seeds),
    ("manifest", manifest, manifest_seeds),
    ("config", config, config_seeds),
    ("mqtt", mqtt, mqtt_seeds),
];

/// The upper layer: association PDUs, and P-DATA by its body.
pub fn pdu(bytes: &[u8]) {
    let _ = upper::parse_association(bytes);
    if let Some((kind, body)) = bytes.split_first() {
        let _ = upper::parse(*kind, body.to_vec().into());
    }
}

/// Command sets, the data set of an N-ACTION, sequences in memory.
pub fn command(bytes: &[u8]) {
    if let Ok(command) = Command::parse(bytes) {
        let response = command.response(DimseStatus::SUCCESS, "comment");
        assert_eq!(dimse::response_status(&response), Some((command.message_id, DimseStatus::SUCCESS)));
    }
    let _ = dimse::response_status(bytes);
    for explicit in [true, false] {
        let encoding = Encoding { explicit, big_endian: false };
        let _ = message::parse(bytes, encoding);
        if let Ok(item) = Item::parse(bytes, encoding) {
            let _ = item.items((0x0008, 0x1199)).len();
        }
    }
}

/// The header of a stored file, and of each of its frames.
pub fn header(bytes: &[u8]) {
    if let Ok(header) = SliceHeader::parse(bytes) {
        for number in 0..=header.per_frame.len() as u32 + 1 {
            let _ = header.of_frame(number).map(|frame| frame.id());
        }
    }
}

/// Pixels to Hounsfield units. The decoders of other crates panic; they are guarded, and must stay so.
pub fn pixels(bytes: &[u8]) {
    let Ok(header) = SliceHeader::parse(bytes) else { return };
    let frames = (1..=header.per_frame.len().min(2) as u32).filter_map(|n| header.of_frame(n));
    for header in std::iter::once(header.clone()).chain(frames) {
        if let Ok(image) = ichd::infer::hounsfield::decode_bytes(bytes, &header) {
            assert_eq!(image.hu.len(), image.rows * image.columns);
        }
    }
}

/// A model's manifest.
pub fn manifest(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ichd::infer::manifest::Manifest::parse(text);
    }
}

/// The configuration.
pub fn config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = ichd::config::Config::parse(text);
    }
}

/// Documents on the wire.
pub fn mqtt(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Alert>(bytes);
    let _ = serde_json::from_slice::<Status>(bytes);
    let _ = serde_json::from_slice::<Heartbeat>(bytes);
    let _ = serde_json::from_slice::<StudyDisposition>(bytes);
    // What stations send is the part that comes from outside.
    for topic in ["sta/w/status", "sta/w/receipt/ct-1", "sta/w/action/ct-1"] {
        let _ = ichd::alert::inbound::parse("ichd/1/north", "ct-1", &format!("ichd/1/north/{topic}"), bytes);
    }
}

fn pdu_seeds() -> Vec<Vec<u8>> {
    use dicom_ul::pdu::{AssociationRQ, PDataValue, PDataValueType, Pdu, PresentationContextProposed};
    let request = Pdu::AssociationRQ(AssociationRQ {
        protocol_version: 1,
        calling_ae_title: "CT1".into(),
        called_ae_title: "ICHD".into(),
        application_context_name: "1.2.840.10008.3.1.1.1".into(),
        presentation_contexts: vec![PresentationContextProposed {
            id: 1,
            abstract_syntax: "1.2.840.10008.5.1.4.1.1.2".into(),
            transfer_syntaxes: vec!["1.2.840.10008.1.2.1".into(), "1.2.840.10008.1.2".into()],
        }],
        user_variables: ichd::receive::negotiate::user_information(16_384),
    });
    let data = Pdu::PData {
        data: vec![PDataValue {
            presentation_context_id: 1,
            value_type: PDataValueType::Command,
            is_last: true,
            data: vec![7; 40],
        }],
    };
    let written = |pdu: &Pdu| {
        let mut bytes = Vec::new();
        dicom_ul::pdu::write_pdu(&mut bytes, pdu).expect("a PDU of ours");
        bytes
    };
    let data = written(&data);
    vec![written(&request), [&[4], &data[6..]].concat(), vec![7, 0, 0, 0, 0, 4, 0, 0, 0, 0]]
}

fn command_seeds() -> Vec<Vec<u8>> {
    let reference = |sop: &str| ichd::commit::Reference {
        class: "1.2.840.10008.5.1.4.1.1.2".into(),
        sop: ichd::dicom::SopInstanceUid::parse(sop).expect("constant"),
    };
    let outcome = ichd::commit::Outcome {
        transaction: "2.25.7".into(),
        committed: vec![reference("1.2.3"), reference("1.2.4")],
        failed: vec![(reference("1.2.5"), 0x0112)],
    };
    vec![
        dimse::store_request("1.2.840.10008.5.1.4.1.1.2", "1.2.3", 7),
        dimse::event_report_request(ichd::commit::SOP_CLASS, ichd::commit::SOP_INSTANCE, 1, 2),
        message::report(&outcome, true),
        message::report(&outcome, false),
    ]
}

/// A small slice of the phantom in several encodings; the first regression inputs lie in `corpus/`.
fn file_seeds() -> Vec<Vec<u8>> {
    let options = ichd_phantom::SeriesOptions {
        scan: ichd_phantom::scan::ScanOptions { matrix: 32, slices: 1, ..Default::default() },
        uid_seed: Some(1),
        ..Default::default()
    };
    let slice = ichd_phantom::study(1, ichd_phantom::Bleed::None, &options).expect("a phantom").remove(0);
    vec![slice.file_bytes().expect("a Part 10 file")]
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../models/ichd-base/manifest.toml").to_vec()]
}

fn config_seeds() -> Vec<Vec<u8>> {
    let shipped = include_str!("../../daemon/ichd.toml");
    // With every commented key in force.
    let all: String = shipped.lines().map(|l| format!("{}\n", l.strip_prefix("# ").unwrap_or(l))).collect();
    vec![shipped.into(), all.into_bytes()]
}

fn mqtt_seeds() -> Vec<Vec<u8>> {
    let of = |value: serde_json::Value| value.to_string().into_bytes();
    vec![
        serde_json::to_vec(&Heartbeat::default()).expect("plain data"),
        of(serde_json::json!({"schema": "ichd.alert/1", "alert_id": "01J", "rev": 1, "kind": "finding",
            "finding": {"subtypes": ["subdural"], "p": {"any": 0.5}, "slice_range": [1, 2]}})),
        of(
            serde_json::json!({"schema": "ichd.action/1", "action_id": "a-000001", "alert_id": "01J", "rev": 2,
            "verb": "ack", "user": "Ann", "reason": null, "expires_at": "2026-01-01T00:00:00.000Z"}),
        ),
        of(
            serde_json::json!({"schema": "ichd.receipt/1", "alert_id": "01J", "rev": 2, "stage": "displayed"}),
        ),
        of(serde_json::json!({"schema": "ichd.station/1", "state": "ready", "role": "nurse", "user": "Ann"})),
        of(
            serde_json::json!({"schema": "ichd.status/1", "state": "ready", "boot": 1, "conn": 2, "reasons": []}),
        ),
    ]
}
