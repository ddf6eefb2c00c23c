//! Enhanced (multi-frame) CT: the same pixels in another object get the same answer, bit for bit.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::peers::{self, Appliance, Mosquitto, Phantom, alone, dcmsend, python, repository};

pub fn enhanced(kind: &str, files: &[PathBuf], dir: &Path) -> PathBuf {
    let out = dir.join(format!("{kind}.dcm"));
    let output = Command::new(python())
        .arg(repository().join("tests/make_enhanced.py"))
        .arg(kind)
        .arg(&out)
        .args(files)
        .output()
        .expect("python with pydicom is needed (tests/run installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    out
}

fn analyze(paths: &[PathBuf]) -> Value {
    let mut lines = peers::analyze(paths);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

/// What the pixels and their places decide, without the names of the instances.
fn answer(line: &Value) -> Value {
    let slices: Vec<Value> = line["slices"].as_array().unwrap().iter().map(nameless).collect();
    assert!(slices.len() >= 30, "{line}");
    serde_json::json!([
        line["disposition"],
        line["scores"],
        slices,
        nameless(&line["finding"]),
        line["geometry"],
        line["flags"]
    ])
}

fn nameless(of: &Value) -> Value {
    let mut of = of.clone();
    for name in ["sop_uid", "frame", "key_sop_uid", "key_frame"] {
        of.as_object_mut().map(|o| o.remove(name));
    }
    of
}

#[test]
fn an_enhanced_series_gets_the_verdict_of_the_single_frame_one_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let files = &Phantom::bleed().files;
    let single = analyze(files);
    assert_eq!(single["disposition"], "suspected");
    let key = files
        .iter()
        .position(|f| {
            let header = ichd::dicom::SliceHeader::read(f).unwrap();
            single["finding"]["key_sop_uid"] == header.sop.as_str()
        })
        .unwrap();
    for kind in ["explicit", "implicit", "rle", "split"] {
        let multi = analyze(&[enhanced(kind, files, dir.path())]);
        assert_eq!(answer(&multi), answer(&single), "{kind}");
        if kind != "implicit" {
            assert_eq!(multi["finding"]["key_frame"], key + 1, "{kind}");
        }
    }
}

/// The library takes a fragment for a frame, and panicked.
#[test]
fn a_slice_in_several_fragments_decodes_like_one_in_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = &Phantom::quiet().files[12..13];
    let split = enhanced("slice", file, dir.path());
    let decode = |path: &Path| {
        let header = ichd::dicom::SliceHeader::read(path).unwrap();
        ichd::infer::hounsfield::decode(path, &header).unwrap()
    };
    assert_eq!(ichd::dicom::SliceHeader::read(&split).unwrap().transfer_syntax, "1.2.840.10008.1.2.5");
    assert_eq!(decode(&split), decode(&file[0]));
}

#[test]
fn an_enhanced_series_over_the_network_is_one_instance_of_many_slices() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let dir = tempfile::tempdir().unwrap();
    let file = enhanced("explicit", &Phantom::bleed().files, dir.path());
    let (ok, said) = dcmsend(appliance.port, &[file]);
    assert!(ok, "{said}");
    let row = &appliance.dispositions(1)[0];
    assert_eq!((&row["disposition"], &row["instances"]), (&"suspected".into(), &1.into()));
    assert!(row["verdict"].as_str().unwrap().contains("\"key_frame\":"), "{}", row["verdict"]);
}

#[test]
fn frames_that_are_not_described_are_not_judged() {
    let dir = tempfile::tempdir().unwrap();
    let file = enhanced("explicit", &Phantom::quiet().files, dir.path());
    let mut bytes = std::fs::read(&file).unwrap();
    // One frame more than the functional groups describe.
    let at = bytes.windows(8).position(|w| w == b"\x28\0\x08\0IS\x02\0").unwrap() + 8;
    assert_eq!(&bytes[at..at + 2], b"30");
    bytes[at + 1] = b'1';
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(analyze(&[file])["reason"], "multi_frame");
}
