//! Results back into the PACS: DCMTK and Orthanc receive them, `dciodvfy` finds no error, highdicom reads them.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::peers::{
    Appliance, Listener, Mosquitto, Phantom, alone, dcmsend, free_port, repository, storescu, wait_until,
};
use crate::tls::Authority;

/// DCMTK's `storescp` into a folder.
pub struct Pacs {
    pub port: u16,
    dir: TempDir,
    pub more: Vec<String>,
    child: Option<Child>,
}

impl Pacs {
    pub fn down() -> Self {
        Pacs { port: free_port(), dir: tempfile::tempdir().unwrap(), more: Vec::new(), child: None }
    }

    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more options of `storescp`.
    pub fn with(more: &[String]) -> Self {
        let mut pacs = Self::down();
        pacs.more = more.to_vec();
        pacs.up();
        pacs
    }

    pub fn up(&mut self) {
        let child = Command::new("storescp")
            .args(["-aet", "PACS", "-uf", "-od"])
            .arg(self.dir.path())
            .args(&self.more)
            .arg(self.port.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("dcmtk is needed (tests/run installs it)");
        self.child = Some(child);
    }

    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    }

    /// Waits for `n` objects.
    pub fn received(&self, n: usize) -> Vec<PathBuf> {
        wait_until(&format!("{n} objects at the PACS"), || self.files().len() >= n);
        let files = self.files();
        assert_eq!(files.len(), n, "{files:?}");
        files
    }

    pub fn destination(&self) -> String {
        format!("\n[[report.destination]]\nae-title = \"PACS\"\naddress = \"127.0.0.1:{}\"\n", self.port)
    }
}

impl Drop for Pacs {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Orthanc as a hospital's PACS, asked over its REST interface.
pub struct Orthanc {
    dicom_port: u16,
    http_port: u16,
    child: Child,
    _dir: TempDir,
}

impl Orthanc {
    fn start() -> Self {
        Self::with("ORTHANC", serde_json::json!({}))
    }

    /// Under an AE title, with more options.
    pub fn with(ae_title: &str, more: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (dicom_port, http_port) = (free_port(), free_port());
        let mut config = serde_json::json!({
            "StorageDirectory": dir.path(), "IndexDirectory": dir.path(), "DicomAet": ae_title,
            "DicomPort": dicom_port, "HttpPort": http_port, "RemoteAccessAllowed": false,
            "AuthenticationEnabled": false, "DicomAlwaysAllowStore": true, "DicomCheckCalledAet": true,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let path = dir.path().join("orthanc.json");
        std::fs::write(&path, config.to_string()).unwrap();
        let program = ["/usr/sbin/Orthanc", "Orthanc"].into_iter().find(|p| Path::new(p).exists());
        let child = Command::new(program.unwrap_or("Orthanc"))
            .arg(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("orthanc is needed (tests/run installs it)");
        let orthanc = Orthanc { dicom_port, http_port, child, _dir: dir };
        wait_until("Orthanc answers", || orthanc.get("/system").is_some());
        orthanc
    }

    fn get(&self, path: &str) -> Option<Value> {
        self.ask(&format!("GET {path} HTTP/1.0\r\n\r\n"), &[])
    }

    pub fn post(&self, path: &str, body: &[u8]) -> Value {
        let head = format!("POST {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        self.ask(&head, body).unwrap_or_else(|| panic!("Orthanc has no answer to {path}"))
    }

    fn ask(&self, head: &str, body: &[u8]) -> Option<Value> {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", self.http_port)).ok()?;
        socket.write_all(&[head.as_bytes(), body].concat()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }
}

impl Drop for Orthanc {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reporting(broker: &Mosquitto, destinations: &str) -> Appliance {
    Appliance::with(broker.port, &format!("free-bytes-min = 1000\n{destinations}"))
}

/// `dciodvfy` finds no error; its warnings are about what the phantom's own slices leave out.
pub fn verify(files: &[PathBuf]) {
    for file in files {
        let output = Command::new("dciodvfy")
            .arg(file)
            .output()
            .expect("dicom3tools is needed (tests/run installs it)");
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(!words.contains("Error"), "{}: {words}", file.display());
        assert!(output.status.success(), "{}: {words}", file.display());
    }
}

/// What highdicom and pydicom make of the objects, one JSON object per file.
fn read(files: &[PathBuf]) -> Vec<Value> {
    let venv = repository().join("target/venv/bin/python");
    let python = if venv.exists() { venv } else { PathBuf::from("python3") };
    let output = Command::new(python)
        .arg(repository().join("tests/read_report.py"))
        .args(files)
        .output()
        .expect("python is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn one<'a>(objects: &'a [Value], modality: &str) -> &'a Value {
    let mut of = objects.iter().filter(|o| o["modality"] == modality);
    let first = of.next().unwrap_or_else(|| panic!("no {modality}: {objects:?}"));
    assert!(of.next().is_none(), "more than one {modality}");
    first
}

fn sop(file: &Path) -> String {
    ichd::dicom::SliceHeader::read(file).unwrap().sop.as_str().to_owned()
}

#[test]
fn a_bleed_comes_back_as_report_capture_key_object_and_segmentation_that_peers_can_read() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let pacs = Pacs::start();
    let appliance = reporting(&broker, &pacs.destination());
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let row = appliance.dispositions(1).remove(0);
    let files = pacs.received(4);
    verify(&files);
    let objects = read(&files);
    let source = read(&Phantom::bleed().files[..1]).remove(0);
    for object in &objects {
        for key in ["study", "patient_name", "patient_id", "birth_date", "accession", "study_date"] {
            assert_eq!(object[key], source[key], "{key} of {object}");
        }
        assert_ne!(object["series"], source["series"]);
    }
    let verdict: Value = serde_json::from_str(row["verdict"].as_str().unwrap()).unwrap();
    let report = one(&objects, "SR");
    assert_eq!(report["algorithm"]["name"], verdict["model"]["id"]);
    assert_eq!(report["algorithm"]["version"], verdict["model"]["version"]);
    let hash = verdict["model"]["sha256"].as_str().unwrap();
    assert!(report["algorithm"]["parameters"].to_string().contains(hash), "{report}");
    assert_eq!(report["evaluations"]["any"], "415684004", "{report}");
    assert_eq!(report["evaluations"]["intraparenchymal"], "415684004", "{report}");
    assert_eq!(report["evaluations"]["epidural"], "428263003", "{report}");
    assert_eq!(report["evaluations"].as_object().unwrap().len(), 7, "six classes and a side: {report}");
    let key = verdict["finding"]["key_sop_uid"].as_str().unwrap();
    assert_eq!(report["images"][0], key);
    assert_eq!(report["evidence"].as_array().unwrap().len(), 30);
    assert!(report["volume_ml"].as_f64().is_some());
    assert_eq!(one(&objects, "KO")["images"][0], key);
    let capture = one(&objects, "OT");
    assert_eq!((&capture["burned_in"], &capture["images"][0]), (&"YES".into(), &key.into()));
    // The mask lies on the slices of the finding, in their geometry, where the bleed was painted: on the left.
    let mask = one(&objects, "SEG");
    assert_eq!((&mask["rows"], &mask["columns"], &mask["segments"]), (&256.into(), &256.into(), &1.into()));
    let slices: Vec<String> = verdict["slices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["sop_uid"].as_str().unwrap().to_owned())
        .collect();
    let range = &verdict["finding"]["slice_range"];
    let range = range[0].as_u64().unwrap() as usize..=range[1].as_u64().unwrap() as usize;
    let marked = mask["images"].as_array().unwrap();
    assert!(marked.iter().all(|u| slices[range.clone()].iter().any(|s| u == s)), "{mask}");
    assert!(marked.iter().any(|u| u == key), "{mask}");
    assert!(mask["middle"][0].as_f64().unwrap() > 5.0, "x grows to the patient's left: {mask}");
    let step_mm = 5.0;
    let ml = mask["volume_cells"].as_f64().unwrap() * step_mm / 1000.0;
    let said = report["volume_ml"].as_f64().unwrap();
    assert!((ml - said).abs() < 0.35 * said + 1.0, "{ml} ml in the mask, {said} in the report");
}

/// In an Enhanced CT every slice has the same SOP Instance UID: a reference without its frame points at nothing.
#[test]
fn results_on_enhanced_ct_name_the_frame() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let pacs = Pacs::start();
    let appliance = reporting(&broker, &pacs.destination());
    let dir = tempfile::tempdir().unwrap();
    let file = crate::enhanced::enhanced("explicit", &Phantom::bleed().files, dir.path());
    assert!(crate::peers::dcmsend(appliance.port, std::slice::from_ref(&file)).0);
    let row = appliance.dispositions(1).remove(0);
    let verdict: Value = serde_json::from_str(row["verdict"].as_str().unwrap()).unwrap();
    let key = &verdict["finding"]["key_frame"];
    let files = pacs.received(4);
    verify(&files);
    let objects = read(&files);
    for modality in ["SR", "KO", "OT"] {
        let object = one(&objects, modality);
        assert_eq!(
            (&object["images"][0], &object["image_frames"][0]),
            (&sop(&file).into(), key),
            "{modality}"
        );
    }
    let frames = one(&objects, "SEG")["source_frames"].as_array().unwrap();
    assert!(frames.contains(key) && !frames.contains(&0.into()), "{frames:?}");
}

#[test]
fn results_go_over_mutual_tls_where_that_is_asked_for() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let authority = Authority::new();
    authority.sign("dicom", 365);
    authority.sign("pacs", 365);
    let pacs = Pacs::with(&authority.client("pacs"));
    // Another authority's: it is not talked to.
    let stranger = Authority::new();
    stranger.sign("pacs", 365);
    let foreign = Pacs::with(&stranger.client("pacs"));
    let destination = |pacs: &Pacs| format!("{}tls = true\n", pacs.destination());
    let more = format!("plaintext-ae-titles = [\"CT1\"]\n{}{}", destination(&foreign), destination(&pacs));
    let appliance = Appliance::with(broker.port, &authority.table(free_port(), &more));
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    pacs.received(4);
    wait_until("the other one has failed", || appliance.log().contains("no association: tls_failed"));
    assert!(foreign.files().is_empty());
}

#[test]
fn a_series_that_was_compressed_with_loss_says_so_in_verdict_alert_and_every_result() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let pacs = Pacs::start();
    let appliance = reporting(&broker, &pacs.destination());
    let dir = tempfile::tempdir().unwrap();
    for file in &Phantom::bleed().files {
        let out = dir.path().join(file.file_name().unwrap());
        // JPEG-LS near-lossless: at most two units from the truth.
        let made = Command::new("dcmcjpls").args(["+en", "+md", "2"]).arg(file).arg(&out).status();
        assert!(made.expect("dcmtk is needed").success());
    }
    let (ok, said) = dcmsend(appliance.port, &[dir.path().to_owned()]);
    assert!(ok, "{said}");
    let is_flagged = |flags: &Value| flags.as_array().is_some_and(|f| f.contains(&"lossy".into()));
    loop {
        let alert = listener.next("ichd.alert/1");
        assert!(is_flagged(&alert["quality"]["flags"]), "{alert}");
        if alert["stage"] == "final" {
            break;
        }
    }
    let row = appliance.dispositions(1).remove(0);
    let verdict: Value = serde_json::from_str(row["verdict"].as_str().unwrap()).unwrap();
    assert_eq!(verdict["disposition"], "suspected", "{verdict}");
    assert!(is_flagged(&verdict["flags"]), "{verdict}");
    let files = pacs.received(4);
    verify(&files);
    let modality = |file: &PathBuf| ichd::dicom::SliceHeader::read(file).unwrap().modality;
    for file in files.iter().filter(|f| ["SC", "OT", "SEG"].contains(&modality(f).as_str())) {
        assert!(ichd::dicom::SliceHeader::read(file).unwrap().lossy, "{}", file.display());
    }
    let report = files.iter().find(|f| modality(f) == "SR").unwrap();
    let printed = Command::new("dsrdump").arg("+Pl").arg(report).output().expect("dcmtk is needed");
    assert!(String::from_utf8_lossy(&printed.stdout).contains("lossy"));
}

#[test]
fn a_pacs_that_knows_no_segmentations_gets_the_report_all_the_same() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("storescp.cfg");
    let text = "[[TransferSyntaxes]]\n[Plain]\nTransferSyntax1 = LittleEndianImplicit\n\
                [[PresentationContexts]]\n[Old]\nPresentationContext1 = Comprehensive3DSRStorage\\Plain\n\
                PresentationContext2 = SecondaryCaptureImageStorage\\Plain\n\
                [[Profiles]]\n[Default]\nPresentationContexts = Old\n";
    std::fs::write(&profile, text).unwrap();
    let pacs = Pacs::with(&["-xf".into(), profile.display().to_string(), "Default".into()]);
    let appliance = reporting(&broker, &pacs.destination());
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let files = pacs.received(2);
    verify(&files);
    wait_until("it is settled", || appliance.log().contains("event=report_delivered"));
    assert_eq!(appliance.log().matches("event=report_object_left_out").count(), 2, "{}", appliance.log());
}

#[test]
fn a_pacs_that_wants_captures_only_gets_the_bleed_behind_a_quiet_head() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let pacs = Pacs::start();
    let destination = pacs.destination() + "objects = [\"capture\", \"key-object\"]\n";
    let appliance = reporting(&broker, &destination);
    // Nothing is made of this one.
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    appliance.dispositions(1);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    verify(&pacs.received(2));
    assert!(!appliance.log().contains("event=report_failed"), "{}", appliance.log());
}

#[test]
fn not_suspected_and_not_analysed_are_reported_too_and_scouts_are_not() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let pacs = Pacs::start();
    let appliance = reporting(&broker, &pacs.destination());
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    // Too few slices to be read.
    assert!(storescu(appliance.port, &Phantom::bleed().files[..4], &[]).0);
    let rows = appliance.dispositions(2);
    assert!(rows.iter().any(|r| r["reason"] == "too_few_slices"), "{rows:?}");
    let files = pacs.received(2);
    verify(&files);
    let objects = read(&files);
    let evaluations: Vec<&Value> = objects.iter().map(|o| &o["evaluations"]).collect();
    assert!(
        evaluations.iter().any(|e| e["any"] == "428263003" && e["subdural"] == "428263003"),
        "{objects:?}"
    );
    assert!(
        evaluations.iter().any(|e| e["analysis"] == "not_analysed" && e["reason"] == "too_few_slices"),
        "{objects:?}"
    );
}

#[test]
fn a_destination_that_is_down_loses_nothing_over_a_kill_and_holds_up_no_other() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let (up, mut late) = (Pacs::start(), Pacs::down());
    let mut appliance = reporting(&broker, &format!("{}{}", late.destination(), up.destination()));
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let first: Vec<PathBuf> = up.received(4);
    appliance.kill();
    appliance.up();
    late.up();
    let second = late.received(4);
    let name = |p: &PathBuf| p.file_name().unwrap().to_owned();
    assert_eq!(first.iter().map(name).collect::<Vec<_>>(), second.iter().map(name).collect::<Vec<_>>());
    // The same verdict is the same object: bytes and all.
    for (a, b) in first.iter().zip(&second) {
        let hash = |p: &Path| ichd::dicom::dataset::sha256(p).unwrap();
        assert_eq!((sop(a), hash(a)), (sop(b), hash(b)));
    }
    assert_eq!(up.files().len(), 4, "what was delivered is not sent again");
}

#[test]
fn orthanc_files_the_results_with_the_study_they_belong_to() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let orthanc = Orthanc::start();
    let address = format!("127.0.0.1:{}", orthanc.dicom_port);
    let appliance = reporting(
        &broker,
        &format!("\n[[report.destination]]\nae-title = \"ORTHANC\"\naddress = \"{address}\"\n"),
    );
    let files = &Phantom::bleed().files;
    let sent = Command::new("storescu")
        .args(["-aec", "ORTHANC", "127.0.0.1", &orthanc.dicom_port.to_string()])
        .args(files)
        .status()
        .unwrap();
    assert!(sent.success());
    assert!(storescu(appliance.port, files, &[]).0);
    let series = || orthanc.get("/series?expand").and_then(|s| s.as_array().cloned()).unwrap_or_default();
    wait_until("scan and four results in Orthanc", || series().len() == 5);
    assert_eq!(orthanc.get("/studies").unwrap().as_array().unwrap().len(), 1, "one study");
    let mut modalities: Vec<String> =
        series().iter().map(|s| s["MainDicomTags"]["Modality"].as_str().unwrap().to_owned()).collect();
    modalities.sort();
    assert_eq!(modalities, ["CT", "KO", "OT", "SEG", "SR"]);
}
