//! CONFORMANCE.md says what the program does: its tables are made from the ones the program runs on.
//!
//! `ICHD_WRITE_CONFORMANCE=1 cargo test -p ichd conformance` writes them anew.

use std::fmt::Write;

use dicom_core::dictionary::UidDictionary;
use dicom_dictionary_std::StandardSopClassDictionary;
use dicom_encoding::TransferSyntaxIndex;
use dicom_transfer_syntax_registry::TransferSyntaxRegistry;

use super::{IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, dimse, syntax, upper};
use crate::commit;
use crate::config;
use crate::report::Kind;

fn sop_class(uid: &str) -> &'static str {
    StandardSopClassDictionary.by_uid(uid).unwrap_or_else(|| panic!("{uid} is no SOP class")).name
}

fn row(cells: &[&str]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn head(cells: &[&str]) -> String {
    format!("{}|{}\n", row(cells), "---|".repeat(cells.len()))
}

/// SOP classes that associations may be opened for.
fn scp() -> String {
    let mut table = head(&["SOP class", "UID", "role", "what becomes of it"]);
    let kinds: [(&[&str], &str); 4] = [
        (&[syntax::VERIFICATION], "answered"),
        (&syntax::IMAGES, "stored, assembled, analysed"),
        (&syntax::ASIDE, "stored and set aside, not analysed"),
        (&[commit::SOP_CLASS], "answered; only for peers named in `[[receive.peer]]`"),
    ];
    for (classes, what) in kinds {
        for class in classes {
            assert!(syntax::is_offered(class) != (*class == commit::SOP_CLASS));
            table += &row(&[sop_class(class), class, "SCP", what]);
        }
    }
    table
}

/// Transfer syntaxes by preference.
fn transfer_syntaxes() -> String {
    let mut table = head(&["preference", "transfer syntax", "UID", "accepted for"]);
    for (n, uid) in syntax::TRANSFER.iter().enumerate() {
        let is_for = |class: &str| syntax::transfer(class).any(|t| t == *uid);
        let whom = match (is_for(syntax::VERIFICATION), is_for(syntax::IMAGES[1]), is_for(syntax::IMAGES[0]))
        {
            (true, true, true) => "every SOP class",
            (false, true, true) => "storage",
            (false, false, true) => "storage but for Enhanced CT",
            other => panic!("{uid}: {other:?}"),
        };
        let name = TransferSyntaxRegistry.get(uid).expect("checked beside the list").name();
        table += &row(&[&(n + 1).to_string(), name, uid, whom]);
    }
    table
}

fn rejections() -> String {
    let mut table = head(&["result", "source", "reason", "when", "journal"]);
    for upper::Rejection { code, reason, when } in upper::REJECTIONS {
        let [result, source, why] = code.map(|n| n.to_string());
        table += &row(&[&result, &source, &why, when, &format!("`{reason}`")]);
    }
    table
}

fn statuses() -> String {
    let mut table = head(&["status", "meaning", "in answer to", "when"]);
    for (dimse::Status(code), name, to, when) in dimse::STATUSES {
        table += &row(&[&format!("{code:04X}H"), name, to, when]);
    }
    table
}

fn failure_reasons() -> String {
    let mut table = head(&["Failure Reason", "when"]);
    table += &row(&[
        &format!("{:04X}H", commit::failure::NO_SUCH_INSTANCE),
        "no instance of this UID is in the spool, or only one in quarantine",
    ]);
    table += &row(&[
        &format!("{:04X}H", commit::failure::CLASS_INSTANCE_CONFLICT),
        "the instance is there under another SOP class",
    ]);
    table
}

/// What is sent to `[[report.destination]]`.
fn scu() -> String {
    let mut table = head(&["SOP class", "UID", "role", "transfer syntaxes proposed"]);
    for kind in Kind::ALL {
        let uid = kind.sop_class();
        table += &row(&[sop_class(uid), uid, "SCU", "Explicit VR Little Endian, Implicit VR Little Endian"]);
    }
    table
}

fn identification() -> String {
    let version = IMPLEMENTATION_VERSION_NAME.rsplit_once('_').expect("ICHD_version").0;
    head(&["", ""])
        + &row(&["Application Context Name", super::negotiate::APPLICATION_CONTEXT])
        + &row(&["Implementation Class UID", IMPLEMENTATION_CLASS_UID])
        + &row(&["Implementation Version Name", &format!("{version}_ and the program's version")])
}

fn configuration() -> String {
    let r = config::Receive::default();
    let mut table = head(&["parameter", "key", "default"]);
    let rows: [(&str, &str, String); 12] = [
        ("AE title", "ae-title", r.ae_title.as_str().into()),
        ("TCP address and port", "listen", r.listen.to_string()),
        ("calling AE titles admitted", "calling-ae-titles", "none".into()),
        ("addresses admitted", "peer-addresses", "loopback".into()),
        ("simultaneous associations", "associations-max", r.associations_max.to_string()),
        ("largest PDU received, bytes", "pdu-bytes-max", r.pdu_bytes_max.to_string()),
        ("largest data set, bytes", "instance-bytes-max", r.instance_bytes_max.to_string()),
        ("largest association, bytes", "association-bytes-max", r.association_bytes_max.to_string()),
        (
            "TCP accept to A-ASSOCIATE-RQ, TLS included, ms",
            "handshake-timeout-ms",
            r.handshake_timeout_ms.to_string(),
        ),
        ("one whole PDU, ms", "idle-timeout-ms", r.idle_timeout_ms.to_string()),
        ("whole association, ms", "total-timeout-ms", r.total_timeout_ms.to_string()),
        ("free space below which storage is refused, bytes", "free-bytes-min", r.free_bytes_min.to_string()),
    ];
    for (what, key, default) in rows {
        table += &row(&[what, &format!("`receive.{key}`"), &default]);
    }
    table
}

#[test]
fn the_conformance_statement_says_what_the_program_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../CONFORMANCE.md");
    let mut text = std::fs::read_to_string(path).unwrap();
    let tables: [(&str, String); 8] = [
        ("scp", scp()),
        ("transfer-syntaxes", transfer_syntaxes()),
        ("identification", identification()),
        ("rejections", rejections()),
        ("statuses", statuses()),
        ("failure-reasons", failure_reasons()),
        ("scu", scu()),
        ("configuration", configuration()),
    ];
    let mut stale = String::new();
    for (name, table) in tables {
        let (begin, end) = (format!("<!-- table: {name} -->\n"), "<!-- end -->");
        let start = text.find(&begin).unwrap_or_else(|| panic!("no table {name}")) + begin.len();
        let length = text[start..].find(end).unwrap_or_else(|| panic!("table {name} has no end"));
        if text[start..start + length] != table {
            let _ = write!(stale, "\n{name}:\n{table}");
            text.replace_range(start..start + length, &table);
        }
    }
    if std::env::var_os("ICHD_WRITE_CONFORMANCE").is_some() {
        std::fs::write(path, text).unwrap();
    } else {
        assert!(stale.is_empty(), "CONFORMANCE.md is stale (ICHD_WRITE_CONFORMANCE=1 writes it):{stale}");
    }
}

/// A status that is answered and not listed would be missing from the statement.
#[test]
fn every_status_and_rejection_is_listed() {
    let constants =
        |source: &str, of: &str| source.lines().filter(|l| l.contains("pub const") && l.contains(of)).count();
    assert_eq!(constants(include_str!("dimse.rs"), ": Status ="), dimse::STATUSES.len());
    assert_eq!(constants(include_str!("upper.rs"), ": Rejection ="), upper::REJECTIONS.len());
}
