//! Real people, phantoms and hostile files: every series ends in a disposition that the data's own README calls right.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::peers::{Appliance, Mosquitto, alone, analyze, dcmsend, testdata};

fn one(path: &Path) -> Value {
    let mut lines = analyze(&[path]);
    assert_eq!(lines.len(), 1, "{}: {lines:?}", path.display());
    lines.remove(0)
}

#[test]
fn people_with_a_bleed_are_suspected_and_the_one_without_is_not() {
    let Some(data) = testdata() else { return };
    let data = data.join("ct-ich-dicom");
    let disposition = |name: &str| one(&data.join(name));
    assert_eq!(disposition("P054-normal-explicit")["disposition"], "not_suspected");
    for (name, class) in [
        ("P091-iph-ivh-jpegll", "intraparenchymal"),
        ("P070-edh-rle", "epidural"),
        ("P071-sdh-iph-gaps-j2k", "subdural"),
    ] {
        let line = disposition(name);
        assert_eq!(line["disposition"], "suspected", "{name}: {}", line["scores"]);
        assert_eq!(line["finding"]["subtypes"][0], class, "{name}: {}", line["scores"]);
    }
    let gaps = disposition("P071-sdh-iph-gaps-j2k");
    assert!(gaps["flags"].as_array().unwrap().contains(&"missing_slices".into()));
    // P084 is hard (a small contusion); it must be analysed, whatever the answer.
    assert_ne!(disposition("P084-iph-sah-jpegls")["disposition"], "not_analysed");
}

#[test]
fn a_tilted_series_with_two_thicknesses_is_one_volume() {
    let Some(data) = testdata() else { return };
    let line = one(&data.join("ge-tilt-head"));
    assert_eq!(line["disposition"], "not_suspected", "{}", line["scores"]);
    assert_eq!(line["geometry"]["slices"], 28);
    let steps: Vec<&String> = line["geometry"]["steps_mm"].as_object().unwrap().keys().collect();
    assert_eq!(steps, ["1.08", "4.00", "7.00"]);
    for flag in ["mixed_steps", "overlap", "tilted"] {
        assert!(line["flags"].as_array().unwrap().contains(&flag.into()), "{flag} in {}", line["flags"]);
    }
}

#[test]
fn of_a_study_of_five_series_one_is_chosen_and_has_no_brain() {
    let Some(data) = testdata() else { return };
    let folders = [
        "S1000-localizer",
        "S2010-brain-5mm",
        "S2020-brain-1mm",
        "S2030-bone-1mm-part",
        "S4010-exam-summary",
    ];
    let folders: Vec<_> = folders.iter().map(|f| data.join("philips-phantom-study").join(f)).collect();
    let lines = analyze(&folders.iter().map(|f| f.as_path()).collect::<Vec<_>>());
    let mut reasons: HashMap<&str, usize> = HashMap::new();
    for line in &lines {
        assert_eq!(line["disposition"], "not_analysed");
        *reasons.entry(line["reason"].as_str().unwrap()).or_default() += 1;
    }
    let expected =
        [("localizer", 1), ("no_brain_tissue", 1), ("not_chosen", 1), ("bone_kernel", 1), ("not_ct", 1)];
    assert_eq!(reasons, HashMap::from(expected));
    let read = lines.iter().find(|l| l["reason"] == "no_brain_tissue").unwrap();
    assert_eq!(read["geometry"]["slices"], 28, "the 5 mm series is the one to read");
}

#[test]
fn awkward_geometry_is_measured_exactly_and_never_judged() {
    let Some(data) = testdata() else { return };
    let expected: [(&str, &[&str], &str); 4] = [
        ("siemens-tilt", &["4.85"], "too_few_slices"),
        ("siemens-tilt-missing-slice", &["0.75", "1.50"], "too_few_slices"),
        ("ge-missing-slice", &["10.00", "5.00"], "too_few_slices"),
        ("siemens-same-position", &[], "same_position"),
    ];
    for (name, steps, reason) in expected {
        let line = one(&data.join("geometry").join(name));
        let found: Vec<&String> = line["geometry"]["steps_mm"].as_object().unwrap().keys().collect();
        assert_eq!(found, steps, "{name}");
        assert_eq!(line["reason"], reason, "{name}");
    }
}

#[test]
fn what_is_not_a_head_and_what_is_broken_is_never_judged() {
    let Some(data) = testdata() else { return };
    for folder in ["not-a-head", "odd-heads", "malformed", "syntaxes"] {
        for line in analyze(&[&data.join(folder)]) {
            assert_eq!(line["disposition"], "not_analysed", "{folder}: {line}");
            assert!(line["reason"].is_string());
        }
    }
}

#[test]
fn every_series_a_scanner_can_send_ends_in_the_disposition_that_analyze_gives() {
    let Some(data) = testdata() else { return };
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let folders: Vec<_> = ["ct-ich-dicom", "ge-tilt-head", "geometry"].iter().map(|f| data.join(f)).collect();
    let expected = analyze(&folders.iter().map(|f| f.as_path()).collect::<Vec<_>>());
    let (ok, said) = dcmsend(appliance.port, &folders);
    assert!(ok, "{said}");
    let rows = appliance.dispositions(expected.len());
    assert_eq!(rows.len(), expected.len());
    for line in &expected {
        let row = rows.iter().find(|r| r["series_uid"] == line["series_uid"]).unwrap();
        assert_eq!(
            (&row["disposition"], &row["reason"]),
            (&line["disposition"], &line["reason"]),
            "{}",
            line["series_uid"]
        );
    }
}

/// HU of one file as the reader sees them.
fn hounsfield(path: &Path) -> Vec<f32> {
    let header = ichd::dicom::SliceHeader::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    ichd::infer::hounsfield::decode(path, &header).unwrap_or_else(|e| panic!("{}: {e}", path.display())).hu
}

fn range(hu: &[f32]) -> (f32, f32) {
    hu.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)))
}

#[test]
fn every_offered_encoding_decodes_to_the_same_numbers() {
    let Some(data) = testdata() else { return };
    let data = data.join("syntaxes");
    let reference = hounsfield(&data.join("1.2.840.10008.1.2.1-explicit-le.dcm"));
    // The padding value -1500 is air to us; what is left is what the scanner measured.
    assert_eq!(range(&reference), (-1023.0, 1761.0));
    let mut n_compared = 0;
    for entry in std::fs::read_dir(&data).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let syntax = name.split('-').next().unwrap();
        if !ichd::receive::syntax::TRANSFER.contains(&syntax) || syntax.ends_with(".81") {
            continue;
        }
        let hu = hounsfield(&entry.path());
        let worst = hu.iter().zip(&reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // Lossy JPEG 2000 may turn a padding pixel into tissue-free air and back; its own limit is 6.
        let differing = hu.iter().zip(&reference).filter(|(a, b)| (*a - *b).abs() > 6.0).count();
        match syntax.ends_with(".91") {
            true => assert!(differing * 100 < hu.len() * 30, "{name}: {differing} pixels differ"),
            false => assert_eq!(worst, 0.0, "{name}"),
        }
        n_compared += 1;
    }
    assert!(n_compared >= 10, "{n_compared} encodings compared");
}

#[test]
fn odd_headers_still_give_right_hounsfield_units() {
    let Some(data) = testdata() else { return };
    let of = |path: &str| range(&hounsfield(&data.join(path)));
    assert_eq!(of("odd-heads/hitachi-head-j2k-pixelrep-mismatch.dcm"), (-2000.0, 1896.0));
    assert_eq!(of("malformed/explicit_VR-UN.dcm"), (-1024.0, 1186.0));
}

#[test]
fn a_small_file_that_declares_gigabytes_is_refused() {
    let Some(data) = testdata() else { return };
    assert!(ichd::dicom::SliceHeader::read(&data.join("malformed/UN_sequence.dcm")).is_err());
}
