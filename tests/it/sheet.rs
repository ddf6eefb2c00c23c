//! The contact sheet of `ichd analyze --png`, as the file that a person opens.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::peers::{Phantom, key, model};

/// Side of a large picture and height of its caption lines, pixels.
const KEY_PX: usize = 448;
const CAPTION_PX: usize = 30;

struct Sheet {
    name: String,
    width: usize,
    rgb: Vec<u8>,
    texts: usize,
}

impl Sheet {
    /// Pixels of a large picture that are not grey, in its own coordinates; captions left out.
    fn tinted(&self, left: usize) -> Vec<(usize, usize)> {
        let inside = CAPTION_PX..KEY_PX - CAPTION_PX;
        let coloured = |x: usize, y: usize| {
            let at = (y * self.width + left + x) * 3;
            self.rgb[at].abs_diff(self.rgb[at + 2]) > 20
        };
        inside
            .clone()
            .flat_map(|y| inside.clone().map(move |x| (x, y)))
            .filter(|(x, y)| coloured(*x, *y))
            .collect()
    }
}

/// The series' line and its sheet.
fn read(files: &[PathBuf], profile: &str) -> (Value, Sheet) {
    let folder = tempfile::tempdir().unwrap();
    let mut analyze = Command::new(env!("CARGO_BIN_EXE_ichd"));
    analyze.args(["analyze", "--json", "--profile", profile, "--model"]).arg(model()).arg("--key").arg(key());
    let output = analyze.arg("--png").arg(folder.path()).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut written: Vec<PathBuf> =
        std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(written.len(), 1, "{written:?}");
    let path = written.remove(0);
    let mut image = png::Decoder::new(BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
    let mut rgb = vec![0; image.output_buffer_size().unwrap()];
    image.next_frame(&mut rgb).unwrap();
    let info = image.info();
    let texts =
        info.uncompressed_latin1_text.len() + info.compressed_latin1_text.len() + info.utf8_text.len();
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    (serde_json::from_slice(&output.stdout).unwrap(), Sheet { name, width: info.width as usize, rgb, texts })
}

#[test]
fn in_assist_the_sheet_is_hot_where_the_bleed_is() {
    let (line, sheet) = read(&Phantom::bleed().files, "assist");
    assert_eq!((&line["disposition"], &line["finding"]["side"]), (&"suspected".into(), &"left".into()));
    let tinted = sheet.tinted(KEY_PX);
    // Image right is the patient's left.
    let left_of_patient = tinted.iter().filter(|(x, _)| *x > KEY_PX / 2).count();
    assert!(
        tinted.len() > 500 && left_of_patient * 10 > tinted.len() * 9,
        "{left_of_patient} of {}",
        tinted.len()
    );
    assert!(sheet.tinted(0).is_empty(), "the key slice stands beside it as it is");
}

#[test]
fn in_triage_and_on_a_quiet_head_the_sheet_points_at_nothing() {
    for (files, profile, disposition) in [
        (&Phantom::bleed().files, "triage", "suspected"),
        (&Phantom::quiet().files, "assist", "not_suspected"),
    ] {
        let (line, sheet) = read(files, profile);
        assert_eq!(line["disposition"], disposition);
        let below_the_words = sheet.rgb.len() - sheet.width * 3 * 192 * 4;
        let grey = |p: &[u8]| p[0] == p[1] && p[1] == p[2];
        assert!(sheet.rgb[below_the_words..].chunks(3).all(grey), "{profile}: a slice is marked");
    }
}

#[test]
fn a_sheet_is_named_by_what_was_read_and_holds_no_words_of_its_own() {
    let files = &Phantom::quiet().files;
    let (_, sheet) = read(files, "assist");
    let said = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["analyze", "--verdict", "--model"])
        .arg(model())
        .arg("--key")
        .arg(key())
        .args(files)
        .output()
        .unwrap();
    let verdict: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(sheet.name, format!("{}.png", &verdict["input_sha256"].as_str().unwrap()[..16]));
    assert_eq!(sheet.texts, 0);
}
