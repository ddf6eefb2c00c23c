//! Scanners, gateways and archives that send: however they cut a study into associations, the verdict is the same.

use std::path::{Path, PathBuf};
use std::process::Command;

use dicom_ul::pdu::PDataValueType;
use ichd_phantom::{Bleed, Instance, SeriesOptions, Side};
use serde_json::Value;
use tempfile::TempDir;

use crate::peers::{Appliance, ByHand, Mosquitto, alone, data_set, dcmsend, python, storescu, wait_until};
use crate::report::Orthanc;

const SLICES: usize = 24;

/// A head with a bleed and its bone series; each `uid_seed` is another study of the same pixels.
struct Study {
    dir: TempDir,
    soft: Vec<PathBuf>,
    bone: Vec<PathBuf>,
    soft_uid: String,
}

impl Study {
    fn new(uid_seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |series: &[Instance], name: &str| -> Vec<PathBuf> {
            let of = |(i, instance): (usize, &Instance)| {
                let path = dir.path().join(format!("{name}{i:03}.dcm"));
                std::fs::write(&path, instance.file_bytes().unwrap()).unwrap();
                path
            };
            series.iter().enumerate().map(of).collect()
        };
        let mut options = SeriesOptions { uid_seed: Some(uid_seed), ..SeriesOptions::default() };
        options.scan.slices = SLICES;
        let bleed = Bleed::Intraparenchymal { side: Side::Left, volume_ml: 45.0 };
        let soft = ichd_phantom::study(12, bleed, &options).unwrap();
        options.study_uid = Some(soft[0].study_uid.clone());
        options.uid_seed = Some(uid_seed + 1_000);
        options.kernel = "H60s".into();
        options.series_number = 3;
        (options.scan.matrix, options.scan.slices) = (64, 8);
        let bone = ichd_phantom::study(12, Bleed::None, &options).unwrap();
        let (soft_files, bone_files) = (write(&soft, "soft"), write(&bone, "bone"));
        Study { soft: soft_files, bone: bone_files, soft_uid: soft[0].series_uid.clone(), dir }
    }

    fn all(&self) -> Vec<PathBuf> {
        [&self.soft[..], &self.bone[..]].concat()
    }

    /// What the ledger says of the head once all of it was read.
    fn read(&self, appliance: &Appliance) -> Value {
        let mut found = None;
        wait_until("the whole head is judged", || {
            let is_it = |r: &Value| {
                r["series_uid"] == self.soft_uid.as_str() && r["stage"] == "final" && r["instances"] == SLICES
            };
            found = appliance.ledger().into_iter().find(is_it);
            found.is_some()
        });
        found.unwrap_or_default()
    }
}

type Sender = fn(&Appliance, &Study);

fn each_ok(sent: impl IntoIterator<Item = (bool, String)>) {
    for (ok, words) in sent {
        assert!(ok, "{words}");
    }
}

fn per_study(appliance: &Appliance, study: &Study) {
    each_ok([storescu(appliance.port, &study.all(), &[])]);
}

fn per_series(appliance: &Appliance, study: &Study) {
    each_ok([&study.bone, &study.soft].map(|files| storescu(appliance.port, files, &[])));
}

fn per_image(appliance: &Appliance, study: &Study) {
    each_ok(study.all().chunks(1).map(|file| storescu(appliance.port, file, &[])));
}

fn four_in_parallel(appliance: &Appliance, study: &Study) {
    let (port, all) = (appliance.port, study.all());
    let shares: Vec<Vec<PathBuf>> =
        (0..4).map(|n| all.iter().skip(n).step_by(4).cloned().collect()).collect();
    let senders: Vec<_> =
        shares.into_iter().map(|share| std::thread::spawn(move || storescu(port, &share, &[]))).collect();
    each_ok(senders.into_iter().map(|sender| sender.join().unwrap()));
}

/// An abort after half of it, then all of it again, then once more.
fn aborted_and_resent(appliance: &Appliance, study: &Study) {
    each_ok([storescu(appliance.port, &study.soft[..SLICES / 2], &["--abort"])]);
    for _ in 0..2 {
        each_ok([storescu(appliance.port, &study.all(), &[])]);
    }
}

fn by_dcmsend(appliance: &Appliance, study: &Study) {
    let (ok, words) = dcmsend(appliance.port, &[study.dir.path().to_owned()]);
    assert!(ok, "{words}");
}

fn by_dcmsend_per_image(appliance: &Appliance, study: &Study) {
    each_ok(study.all().iter().map(|file| dcmsend(appliance.port, std::slice::from_ref(file))));
}

fn by_pynetdicom(appliance: &Appliance, study: &Study) {
    let output = Command::new(python())
        .args(["-m", "pynetdicom", "storescu", "127.0.0.1", &appliance.port.to_string()])
        .arg(study.dir.path())
        .args(["-aet", "CT1", "-aec", "ICHD"])
        .output()
        .expect("python with pynetdicom is needed (tests/run installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn by_orthanc(appliance: &Appliance, study: &Study) {
    let destination = serde_json::json!({"DicomModalities": {"box": ["ICHD", "127.0.0.1", appliance.port]}});
    let orthanc = Orthanc::with("CT1", destination);
    let mut parent = None;
    for file in study.all() {
        let stored = orthanc.post("/instances", &std::fs::read(file).unwrap());
        parent = stored["ParentStudy"].as_str().map(str::to_owned);
    }
    let sent = orthanc.post("/modalities/box/store", parent.unwrap().as_bytes());
    let all = SLICES + study.bone.len();
    assert_eq!((&sent["InstancesCount"], &sent["FailedInstancesCount"]), (&all.into(), &0.into()), "{sent}");
}

/// Scores of the verdict in a ledger row.
fn scores(row: &Value) -> Value {
    let verdict: Value = serde_json::from_str(row["verdict"].as_str().unwrap()).unwrap();
    assert_eq!(row["disposition"], "suspected", "{row}");
    verdict["scores"].clone()
}

#[test]
fn whoever_sends_and_however_it_is_cut_into_associations_the_verdict_is_the_same() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let senders: [(&str, Sender); 9] = [
        ("one association per study", per_study),
        ("per series", per_series),
        ("per image", per_image),
        ("four in parallel", four_in_parallel),
        ("aborted in the middle and sent again, twice", aborted_and_resent),
        ("dcmsend", by_dcmsend),
        ("dcmsend, per image", by_dcmsend_per_image),
        ("pynetdicom", by_pynetdicom),
        ("Orthanc", by_orthanc),
    ];
    let mut first = None;
    for (n, (name, send)) in senders.into_iter().enumerate() {
        let study = Study::new(5_000 + n as u64);
        send(&appliance, &study);
        let scores = scores(&study.read(&appliance));
        assert_eq!(first.get_or_insert_with(|| scores.clone()), &scores, "{name}");
    }
    let bones = appliance.ledger().iter().filter(|r| r["reason"] == "bone_kernel").count();
    assert_eq!(bones, 9);
}

/// A lost connection, not even an abort: what was acknowledged stays, the rest is sent again.
#[test]
fn a_sender_that_dies_in_the_middle_of_a_slice_leaves_nothing_half() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let study = Study::new(5_100);
    half_a_slice(appliance.port, &study.soft[0]);
    wait_until("the half slice is gone", || {
        appliance.arriving() == 0 && appliance.log().contains("connection_lost")
    });
    assert_eq!(appliance.stored(), 0);
    per_study(&appliance, &study);
    scores(&study.read(&appliance));
}

fn half_a_slice(port: u16, file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    let mut scanner = ByHand::associate(port, file);
    let command = scanner.store_request(1);
    scanner.send(PDataValueType::Command, true, &command);
    let data_set = data_set(&bytes);
    for chunk in data_set[..data_set.len() / 2].chunks(16_000) {
        scanner.send(PDataValueType::Data, false, chunk);
    }
}
