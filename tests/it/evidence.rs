//! Evidence: what the ledger says of every series, and that it can be said again.

use std::process::{Command, Output};

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, free_port, storescu, wait_until};

fn ichd(appliance: &Appliance, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(args)
        .arg("--config")
        .arg(appliance.config())
        .env_remove("STATE_DIRECTORY")
        .output()
        .unwrap()
}

#[test]
fn replay_gives_the_ledgers_bytes_and_says_so_when_it_does_not() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    let row = appliance.dispositions(1).remove(0);
    assert_eq!(row["calling_ae"], serde_json::json!(["CT1"]));
    let ms = |key: &str| row[key].as_u64().unwrap_or_else(|| panic!("{key} of {row}"));
    assert!(ms("received_first_ms") <= ms("received_last_ms") && ms("received_last_ms") <= ms("decided_ms"));
    assert!(row["timings"]["total"].as_f64().unwrap() > 0.0, "{row}");

    let alert = listener.next("ichd.alert/1")["alert_id"].as_str().unwrap().to_owned();
    let series = row["series_uid"].as_str().unwrap();
    for id in [series, &alert, &row["row"].to_string()] {
        let output = ichd(&appliance, &["replay", id]);
        assert_eq!(output.status.code(), Some(0), "{id}: {output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), row["verdict"].as_str().unwrap());
    }
    assert_eq!(ichd(&appliance, &["replay", "1.2.3"]).status.code(), Some(1));

    // One stored value is changed behind everybody's back.
    let header = ichd::dicom::SliceHeader::read(&Phantom::bleed().files[15]).unwrap();
    let place = format!("spool/studies/{}/{}/{}.dcm", header.study, header.series, header.sop);
    let path = appliance.dir.path().join(place);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let output = ichd(&appliance, &["replay", series, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["equal"], false);
    assert_eq!(line["difference"], "the spool holds other instances than were read");
}

#[test]
fn prometheus_can_scrape_and_promtool_finds_nothing_to_complain_about() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let port = free_port();
    let extra = format!("free-bytes-min = 1000\n\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    let appliance = Appliance::with(broker.port, &extra);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    assert!(!storescu(appliance.port, &Phantom::bleed().files[..1], &["-aet", "STRANGER"]).0);
    let row = appliance.dispositions(1).remove(0);
    let url = format!("http://127.0.0.1:{port}/metrics");
    let mut text = String::new();
    wait_until("the association has ended and was counted", || {
        let output = Command::new("curl").args(["-fsS", &url]).output().expect("curl is needed");
        assert!(output.status.success(), "{output:?}");
        text = String::from_utf8(output.stdout).unwrap();
        text.contains("\nichd_instances_received_total 30\n")
    });
    for line in [
        "ichd_series{disposition=\"suspected\",reason=\"\"} 1",
        "ichd_open_alerts 1",
        "ichd_last_slice_to_verdict_seconds_count 1",
        "ichd_events_total{event=\"association_refused\",reason=\"unknown_calling\"} 1",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
    }
    for secret in [row["study_uid"].as_str().unwrap(), row["series_uid"].as_str().unwrap(), "PHANTOM", "CT1"]
    {
        assert!(!text.contains(secret), "{secret} in\n{text}");
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("prometheus is needed (tests/run installs it)");
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let elsewhere = Command::new("curl")
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("http://127.0.0.1:{port}/"))
        .output();
    assert_eq!(String::from_utf8_lossy(&elsewhere.unwrap().stdout), "404");
}

#[test]
fn what_is_old_is_purged_and_what_is_open_is_not() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    appliance.dispositions(2);
    appliance.kill();
    // As if it were 40 days later.
    on_database(&appliance, "UPDATE series SET decided_ms = decided_ms - 40 * 86400000");
    appliance.up();
    let purged = |appliance: &Appliance| {
        let rows = appliance.ledger().into_iter();
        rows.map(|r| (r["disposition"].as_str().unwrap().to_owned(), !r["purged_ms"].is_null()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    wait_until("the quiet head is purged", || appliance.stored() == 30);
    // The other one has an alert that nobody has taken.
    let rows = purged(&appliance);
    assert!(rows["not_suspected"] && !rows["suspected"], "{rows:?}");
    appliance.kill();
    on_database(&appliance, "UPDATE alerts SET state = 'resolved'");
    appliance.up();
    wait_until("the bleed is purged", || appliance.stored() == 0);
    assert!(purged(&appliance)["suspected"]);
    assert!(String::from_utf8_lossy(&ichd(&appliance, &["ledger"]).stdout).contains("purged"));
    // One slice of it that comes again destroys nothing, over a restart too.
    assert!(storescu(appliance.port, &Phantom::quiet().files[..1], &[]).0);
    wait_until("the late slice is recorded", || appliance.log().contains("event=late_after_purge"));
    appliance.kill();
    appliance.up();
    let rows = appliance.ledger();
    let row = rows.iter().find(|r| r["disposition"] == "not_suspected").unwrap();
    assert_eq!((&row["instances"], &row["late_instances"]), (&30.into(), &1.into()), "{row}");
    assert!(!row["purged_ms"].is_null() && row["reason"].is_null(), "{row}");
    // A purged series can be sent again, and is read again.
    assert!(storescu(appliance.port, &Phantom::quiet().files, &[]).0);
    wait_until("read again", || !purged(&appliance)["not_suspected"]);
    assert_eq!(appliance.stored(), 30);
    assert_eq!(appliance.log().matches("event=late_after_purge").count(), 1, "{}", appliance.log());
}

#[test]
fn an_enhanced_series_is_purged_like_any_other() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    let dir = tempfile::tempdir().unwrap();
    let file = crate::enhanced::enhanced("explicit", &Phantom::quiet().files, dir.path());
    assert!(crate::peers::dcmsend(appliance.port, &[file]).0);
    let row = appliance.dispositions(1).remove(0);
    assert_eq!((&row["instances"], appliance.stored()), (&1.into(), 1));
    appliance.kill();
    on_database(&appliance, "UPDATE series SET decided_ms = decided_ms - 40 * 86400000");
    appliance.up();
    wait_until("it is purged", || appliance.stored() == 0);
    assert!(!appliance.ledger()[0]["purged_ms"].is_null());
}

fn on_database(appliance: &Appliance, sql: &str) {
    let database = rusqlite::Connection::open(appliance.dir.path().join("ichd.db")).unwrap();
    database.execute_batch(sql).unwrap();
}

/// What a hospital writes into its slices, and some that should not be there.
const IDENTITY: [(&str, &str); 17] = [
    ("PatientName", "Meierhofer^Annegret"),
    ("PatientID", "PID-7391-X"),
    ("PatientBirthDate", "19530417"),
    ("AccessionNumber", "ACC-55120"),
    ("StudyID", "STID-8812"),
    ("StudyDate", "20231109"),
    ("SeriesDate", "20231108"),
    ("AcquisitionTime", "031415"),
    ("InstitutionName", "Spital Niederwald"),
    ("StationName", "CTRAUM7"),
    ("ReferringPhysicianName", "Obermoser^Karl"),
    ("OperatorsName", "Zwicknagl^Eva"),
    ("StudyDescription", "CT Schaedel Meierhofer"),
    ("ImageComments", "call Annegret at 0815-4711"),
    ("DeviceSerialNumber", "SN-998877"),
    ("ConvolutionKernel", "MEIERHOFER"),
    ("PatientAddress", "Lindengasse 12"),
];

#[test]
fn an_export_holds_no_identifier_and_no_face_and_the_brain_as_it_was() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let dir = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for file in &Phantom::quiet().files {
        let copy = dir.path().join(file.file_name().unwrap());
        std::fs::copy(file, &copy).unwrap();
        files.push(copy);
    }
    let mut dcmodify = Command::new("dcmodify");
    dcmodify.args(["-nb", "-i", "(0040,0275)[0].(0040,0007)=head of Meierhofer"]);
    for (key, value) in IDENTITY {
        dcmodify.args(["-i", &format!("{key}={value}")]);
    }
    assert!(dcmodify.args(&files).status().unwrap().success());
    assert!(storescu(appliance.port, &files, &[]).0);
    let row = appliance.dispositions(1).remove(0);
    let out = dir.path().join("out");
    let output =
        ichd(&appliance, &["export", row["study_uid"].as_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    let audited = ichd(&appliance, &["audit", "list", "--json"]);
    assert!(String::from_utf8_lossy(&audited.stdout).contains("\"export\""), "{audited:?}");

    let mut secrets: Vec<String> = IDENTITY.iter().map(|(_, value)| (*value).to_owned()).collect();
    secrets.extend(["Meierhofer", "MEIERHOFER", "Annegret", "Obermoser", "Zwicknagl"].map(str::to_owned));
    let headers: Vec<_> = files.iter().map(|f| ichd::dicom::SliceHeader::read(f).unwrap()).collect();
    for header in &headers {
        secrets
            .extend([header.study.as_str(), header.series.as_str(), header.sop.as_str()].map(str::to_owned));
    }
    secrets.push(row["input_sha256"].as_str().unwrap().to_owned());
    let mut exported = Vec::new();
    for entry in std::fs::read_dir(out.join("series-1")).unwrap().map(|e| e.unwrap().path()) {
        let bytes = std::fs::read(&entry).unwrap();
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|w| w == secret.as_bytes());
            assert!(
                !found && !entry.to_str().unwrap().contains(secret.as_str()),
                "{secret} in {}",
                entry.display()
            );
        }
        if entry.extension().is_some_and(|e| e == "dcm") {
            exported.push(entry);
        }
    }
    exported.sort();
    assert_eq!(exported.len(), files.len());
    crate::report::verify(&exported);
    let mut n_whole = 0;
    for (before, after) in files.iter().zip(&exported) {
        let hu = |path: &std::path::Path| {
            let header = ichd::dicom::SliceHeader::read(path).unwrap();
            ichd::infer::hounsfield::decode(path, &header).unwrap()
        };
        n_whole += usize::from(compare(&hu(before), &hu(after)));
    }
    assert!(n_whole >= 12, "only {n_whole} slices hold a brain as it was");
    assert!(!ichd(&appliance, &["export", "1.2.3", "--out", "/tmp"]).status.success());
}

/// Every pixel is as it was or air; what one meets first from in front is bone, not skin. Whether the
/// middle of the slice is brain and is as it was.
fn compare(before: &ichd::infer::hounsfield::HuImage, after: &ichd::infer::hounsfield::HuImage) -> bool {
    let n = before.columns;
    assert!(before.hu.iter().zip(&after.hu).all(|(b, a)| a == b || *a <= -990.0), "a pixel was changed");
    // One ray down every column: how many meet something soft first, and how many anything.
    let rays = |image: &ichd::infer::hounsfield::HuImage| {
        let first = |x: usize| (0..image.rows).map(|y| image.hu[y * n + x]).find(|hu| *hu > -500.0);
        let met: Vec<f32> = (0..n).filter_map(first).collect();
        (met.iter().filter(|hu| **hu < 150.0).count(), met.len())
    };
    let ((skin, _), (soft, met)) = (rays(before), rays(after));
    assert!(skin > 20 || met == 0, "the test sees no skin before: {skin}");
    assert!(soft * 20 <= met, "{soft} of {met} rays meet soft tissue outside the skull");
    let middle = |image: &ichd::infer::hounsfield::HuImage| -> Vec<f32> {
        let rows = before.rows * 2 / 5..before.rows * 3 / 5;
        rows.flat_map(|y| image.hu[y * n + n * 2 / 5..y * n + n * 3 / 5].to_vec()).collect()
    };
    let is_brain = middle(before).iter().all(|hu| (-20.0..200.0).contains(hu));
    is_brain && middle(before) == middle(after)
}
