//! What is no head, or none that can be read, gets its reason and never a score; what can be read says what is odd about
//! it. Synthetic bodies, through the whole of `ichd analyze`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use ichd_phantom::decoy::Decoy;
use ichd_phantom::{Bleed, Body, Instance, SeriesOptions, Side};
use serde_json::Value;
use tempfile::TempDir;

use crate::peers::{Appliance, Mosquitto, alone, analyze, key, model, storescu, wait_until};

fn on_disk(series: &[Instance]) -> (TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let of = |(i, instance): (usize, &Instance)| {
        let path = dir.path().join(format!("{i:04}.dcm"));
        std::fs::write(&path, instance.file_bytes().unwrap()).unwrap();
        path
    };
    let files = series.iter().enumerate().map(of).collect();
    (dir, files)
}

fn head(edit: impl FnOnce(&mut SeriesOptions)) -> Vec<Instance> {
    let mut options = SeriesOptions::default();
    options.scan.matrix = 128;
    options.scan.slices = 24;
    edit(&mut options);
    ichd_phantom::study(7, Bleed::None, &options).unwrap()
}

/// The one line that `analyze` says of a series.
fn line(series: &[Instance]) -> Value {
    let (dir, _files) = on_disk(series);
    let mut lines = analyze(&[dir.path()]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[test]
fn a_body_that_is_no_head_is_told_by_its_pixels_whatever_its_tag_says() {
    for body in Body::ALL {
        let mut options = SeriesOptions { body_part: Some("HEAD".into()), ..SeriesOptions::default() };
        options.scan.matrix = 256;
        options.scan.slices = 16;
        options.scan.field_mm = body.field_mm();
        let volume = ichd_phantom::body::scan(body, &options.scan, 3);
        let line = line(&ichd_phantom::series::series(&volume, 3, &options).unwrap());
        let reason = if body == Body::WaterSkull { "no_brain_tissue" } else { "not_head" };
        assert_eq!(
            (&line["disposition"], &line["reason"]),
            (&"not_analysed".into(), &reason.into()),
            "{body:?}"
        );
    }
}

#[test]
fn a_head_is_read_whatever_its_tag_says() {
    for tag in [None, Some("CSPINE"), Some("ABDOMEN")] {
        let line = line(&head(|o| o.body_part = tag.map(str::to_owned)));
        assert_ne!(line["disposition"], "not_analysed", "{tag:?}: {line}");
    }
}

#[test]
fn what_cannot_be_judged_says_why() {
    let reason = |series: &[Instance]| {
        let line = line(series);
        assert_eq!(line["disposition"], "not_analysed", "{line}");
        line["reason"].as_str().unwrap().to_owned()
    };
    assert_eq!(reason(&head(|o| o.scan.slices = 1)), "too_few_slices");
    assert_eq!(reason(&head(|o| o.scan.slices = 7)), "too_few_slices");
    assert_eq!(reason(&head(|o| (o.scan.slices, o.scan.step_mm) = (10, 14.0))), "too_thick");
    let bone = |o: &mut SeriesOptions| (o.kernel, o.scan.bone_kernel) = ("H60s".into(), true);
    assert_eq!(reason(&head(bone)), "bone_kernel");
}

#[test]
fn what_is_odd_and_can_be_judged_is_flagged() {
    let flagged = |series: &[Instance], flag: &str| {
        let line = line(series);
        assert_ne!(line["disposition"], "not_analysed", "{flag}: {line}");
        assert!(line["flags"].as_array().unwrap().contains(&flag.into()), "{flag}: {}", line["flags"]);
    };
    let mut gaps = head(|_| ());
    gaps.drain(9..11);
    flagged(&gaps, "missing_slices");
    flagged(&head(|o| o.scan.tilt_deg = 12.0), "tilted");
    flagged(&edited(head(|_| ()), [0x28, 0, 0x10, 0x21], b"CS", b"01"), "lossy");
    flagged(&head(|o| o.kernel = "KERNEL 7".into()), "unknown_kernel");
    flagged(&edited(head(|_| ()), [0x20, 0, 0x02, 0x10], b"IS", b"40"), "fewer_than_announced");
}

fn edited(series: Vec<Instance>, tag: [u8; 4], vr: &[u8; 2], value: &[u8]) -> Vec<Instance> {
    let insert = |mut instance: Instance| {
        insert_element(&mut instance.dataset_bytes, tag, vr, value);
        instance
    };
    series.into_iter().map(insert).collect()
}

#[test]
fn silence_on_a_part_of_a_head_is_no_verdict() {
    let said = |series: &[Instance]| {
        let line = line(series);
        assert!(line["scores"].is_null() == (line["disposition"] == "not_analysed"), "{line}");
        let reason = line["reason"].as_str().or(line["disposition"].as_str());
        (reason.unwrap().to_owned(), line["flags"].clone())
    };
    let incomplete = |series: &[Instance], flag: &str| {
        let (reason, flags) = said(series);
        assert_eq!(reason, "incomplete", "{flag}: {flags}");
        assert!(flags.as_array().unwrap().contains(&flag.into()), "{flag}: {flags}");
    };
    assert_eq!(said(&head(|o| o.scan.slices = 30)).0, "not_suspected");
    let mut hole = head(|_| ());
    hole.drain(9..12);
    incomplete(&hole, "large_gap");
    incomplete(&head(|o| o.scan.slices = 30)[..12], "partial_head");
    incomplete(&head(|o| o.scan.slices = 30)[..21], "partial_head");
    // 10 mm of a head, in 16 slices.
    let thin = head(|o| (o.scan.slices, o.scan.step_mm) = (224, 0.625));
    assert_eq!(said(&thin[150..166]).0, "too_few_slices");
    let mut two_matrices = head(|_| ());
    two_matrices.splice(..5, head(|o| o.scan.matrix = 96).drain(..5));
    incomplete(&two_matrices, "unread_slices");
    let agent = [0x18, 0, 0x10, 0];
    let contrast = edited(head(|o| o.decoys = vec![Decoy::Contrast]), agent, b"LO", b"IOHEXOL ");
    assert_eq!(said(&contrast).0, "contrast");
    // The same lowest slices, but with blood in them.
    let mut options = SeriesOptions::default();
    (options.scan.matrix, options.scan.slices) = (128, 30);
    let bleeds = Bleed::Intraparenchymal { side: Side::Left, volume_ml: 45.0 };
    let mut part = ichd_phantom::study(12, bleeds, &options).unwrap();
    part.truncate(21);
    let (disposition, flags) = said(&part);
    assert_eq!(disposition, "suspected");
    assert!(flags.as_array().unwrap().contains(&"partial_head".into()), "{flags}");
}

/// A head with a bleed, and a chest that is longer: one study, as after a fall.
fn head_and_chest(uid_seed: u64) -> [Vec<Instance>; 2] {
    let mut options = SeriesOptions { uid_seed: Some(uid_seed), ..SeriesOptions::default() };
    (options.scan.matrix, options.scan.slices) = (128, 28);
    let bleed = Bleed::Intraparenchymal { side: Side::Left, volume_ml: 45.0 };
    let head = ichd_phantom::study(12, bleed, &options).unwrap();
    options.study_uid = Some(head[0].study_uid.clone());
    options.uid_seed = Some(uid_seed + 1_000);
    (options.scan.matrix, options.scan.slices) = (128, 40);
    options.scan.field_mm = Body::Chest.field_mm();
    let chest = ichd_phantom::body::scan(Body::Chest, &options.scan, 3);
    [head, ichd_phantom::series::series(&chest, 3, &options).unwrap()]
}

#[test]
fn a_head_is_read_though_its_study_holds_a_longer_chest_whatever_comes_first() {
    let expected = |lines: &[Value], [head, chest]: &[Vec<Instance>; 2]| {
        let of = |series: &[Instance]| {
            let uid = series[0].series_uid.as_str();
            let line = lines.iter().find(|l| l["series_uid"] == uid && l["stage"] != "provisional")?;
            Some((line["disposition"].as_str()?.to_owned(), line["reason"].as_str().map(str::to_owned)))
        };
        of(head) == Some(("suspected".into(), None))
            && of(chest) == Some(("not_analysed".into(), Some("not_head".into())))
    };
    let study = head_and_chest(7_100);
    let (dir, _files) = on_disk(&study.concat());
    let lines = analyze(&[dir.path()]);
    assert!(expected(&lines, &study), "{lines:?}");

    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    for (n, order) in ["head first", "chest first", "at once", "killed at once"].into_iter().enumerate() {
        let study = head_and_chest(7_101 + n as u64);
        let [head, chest] = [0, 1].map(|i| on_disk(&study[i]));
        let all = [&chest.1[..], &head.1[..]].concat();
        let associations: &[&[PathBuf]] = match order {
            "head first" => &[&head.1, &chest.1],
            "chest first" => &[&chest.1, &head.1],
            _ => &[&all],
        };
        for files in associations {
            assert!(storescu(appliance.port, files, &[]).0);
        }
        if order == "killed at once" {
            appliance.kill();
            appliance.up();
        }
        wait_until(order, || expected(&appliance.ledger(), &study));
    }
}

/// Puts an element in its place, or in that of the one that is there, among the top-level ones of an explicit VR little endian data set.
fn insert_element(data_set: &mut Vec<u8>, tag: [u8; 4], vr: &[u8; 2], value: &[u8]) {
    let order = |t: &[u8]| (u16::from_le_bytes([t[0], t[1]]), u16::from_le_bytes([t[2], t[3]]));
    let (mut at, mut end) = (0, 0);
    while end + 8 <= data_set.len() && order(&data_set[end..]) <= order(&tag) {
        at = end;
        let long = matches!(&data_set[at + 4..at + 6], b"OB" | b"OW" | b"SQ" | b"UN" | b"UT");
        let (head, length) = match long {
            true => (12, u32::from_le_bytes(data_set[at + 8..at + 12].try_into().unwrap()) as usize),
            false => (8, usize::from(u16::from_le_bytes([data_set[at + 6], data_set[at + 7]]))),
        };
        end = at + head + length;
        if order(&data_set[at..]) < order(&tag) {
            at = end;
        }
    }
    let element = [&tag[..], vr, &(value.len() as u16).to_le_bytes(), value].concat();
    data_set.splice(at..end, element);
}

/// The most memory that a reading may hold, MB, whatever comes.
const PEAK_MB: f64 = 400.0;

#[test]
fn two_thousand_slices_are_read_in_bounded_memory_and_one_more_is_refused() {
    let series = |slices: usize| {
        on_disk(&head(|o| {
            (o.scan.matrix, o.scan.slices) = (64, slices);
            o.scan.step_mm = 160.0 / slices as f32;
        }))
    };
    let (dir, _files) = series(2_000);
    let mut child = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["analyze", "--json", "--model"])
        .arg(model())
        .arg("--key")
        .arg(key())
        .arg(dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut peak_mb = 0.0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        peak_mb = peak
            .and_then(|p| p.split_whitespace().next()?.parse().ok())
            .map_or(peak_mb, |kb: f64| kb / 1024.0);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(line["disposition"], "not_analysed", "{}", line["reason"]);
    assert_eq!(line["geometry"]["slices"], 2_000);
    assert!(peak_mb > 1.0 && peak_mb <= PEAK_MB, "{peak_mb} MB");
    eprintln!("2000 slices: peak RSS {peak_mb:.0} MB");
    let (dir, _files) = series(2_001);
    assert_eq!(analyze(&[dir.path()])[0]["reason"], "too_many_slices");
}
