//! Audit messages to a real repository: rsyslog with GnuTLS, which asks for our certificate.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::peers::{Appliance, Mosquitto, Phantom, alone, free_port, repository, storescu, wait_until};
use crate::report::Pacs;
use crate::tls::Authority;

/// rsyslog that writes every message as it came, one a line.
struct Repository {
    port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl Repository {
    fn down(authority: &Authority) -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let at = |name: &str| dir.path().join(name);
        let config = format!(
            "global(workDirectory={:?} maxMessageSize=\"64k\" defaultNetstreamDriverCAFile={:?}\n\
             defaultNetstreamDriverCertFile={:?} defaultNetstreamDriverKeyFile={:?})\n\
             module(load=\"imtcp\" streamDriver.name=\"gtls\" streamDriver.mode=\"1\" streamDriver.authMode=\"x509/certvalid\")\n\
             input(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\")\n\
             template(name=\"raw\" type=\"string\" string=\"%rawmsg%\\n\")\n\
             *.* action(type=\"omfile\" file={:?} template=\"raw\")\n",
            dir.path(),
            authority.text("ca.crt"),
            authority.text("audit.crt"),
            authority.text("audit.key"),
            at("audit.log"),
        );
        std::fs::write(at("rsyslog.conf"), config).unwrap();
        Repository { port, dir, child: None }
    }

    fn up(&mut self) {
        let program =
            ["/usr/sbin/rsyslogd", "rsyslogd"].into_iter().find(|p| std::path::Path::new(p).exists());
        let child = Command::new(program.unwrap_or("rsyslogd"))
            .arg("-n")
            .arg("-f")
            .arg(self.dir.path().join("rsyslog.conf"))
            .arg("-i")
            .arg(self.dir.path().join("pid"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("rsyslog with rsyslog-gnutls is needed (tests/run installs them)");
        self.child = Some(child);
        wait_until("rsyslog listens", || std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    /// Our messages, the XML of each.
    fn messages(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap_or_default();
        let ours = text.lines().filter(|l| l.contains(" ichd ") && l.contains(" DICOM+RFC3881 - "));
        ours.map(|l| l[l.find("<?xml").unwrap_or_else(|| panic!("{l}"))..].to_owned()).collect()
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn table(authority: &Authority, repository: &Repository) -> String {
    format!(
        "\n[atna]\naddress = \"127.0.0.1:{}\"\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        repository.port,
        authority.text("ca.crt"),
        authority.text("dicom.crt"),
        authority.text("dicom.key")
    )
}

/// The schema of PS3.15 A.5.1.1 by libxml2.
fn assert_valid(messages: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> = (0..messages.len()).map(|n| dir.path().join(format!("{n}.xml"))).collect();
    files.iter().zip(messages).for_each(|(file, message)| std::fs::write(file, message).unwrap());
    let output = Command::new("xmllint")
        .args(["--noout", "--relaxng"])
        .arg(repository().join("tests/atna.rng"))
        .args(&files)
        .output()
        .expect("libxml2-utils is needed (tests/run installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_happens_reaches_the_repository_over_tls_even_if_it_was_away_and_we_were_killed() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let authority = Authority::new();
    authority.sign("dicom", 365);
    authority.sign("audit", 365);
    let mut audit = Repository::down(&authority);
    let pacs = Pacs::start();
    let more = format!("free-bytes-min = 1000\n{}{}", pacs.destination(), table(&authority, &audit));
    let mut appliance = Appliance::with(broker.port, &more);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    assert!(!storescu(appliance.port, &Phantom::bleed().files[..1], &["-aet", "STRANGER"]).0);
    let row = appliance.dispositions(1).remove(0);
    pacs.received(4);
    wait_until("the report is settled", || appliance.log().contains("event=report_delivered"));
    assert!(appliance.log().contains("event=atna_away"), "{}", appliance.log());
    appliance.kill();
    audit.up();
    appliance.up();
    let of = |code: &str| -> Vec<String> {
        let of = format!("<EventID csd-code=\"{code}\"");
        audit.messages().into_iter().filter(|m| m.contains(&of)).collect()
    };
    wait_until("both starts are told", || of("110100").len() == 2);
    let study = format!("ParticipantObjectID=\"{}\"", row["study_uid"].as_str().unwrap());
    let transferred = of("110104");
    let received: Vec<_> = transferred.iter().filter(|m| m.contains("EventActionCode=\"C\"")).collect();
    assert_eq!(received.len(), 1, "{transferred:?}");
    for part in [
        study.as_str(),
        "AlternativeUserID=\"AETITLES=CT1\" UserIsRequestor=\"true\" NetworkAccessPointID=\"127.0.0.1\"",
        "<SOPClass UID=\"1.2.840.10008.5.1.4.1.1.2\" NumberOfInstances=\"30\"/>",
        "EventOutcomeIndicator=\"0\"",
    ] {
        assert!(received[0].contains(part), "{part} in {}", received[0]);
    }
    let sent: Vec<_> = transferred.iter().filter(|m| m.contains("EventActionCode=\"R\"")).collect();
    assert!(sent.len() == 1 && sent[0].contains(&study) && sent[0].contains("AETITLES=PACS"), "{sent:?}");
    assert_eq!(of("110102").len(), 1, "begin");
    let alerts = of("110113");
    let stranger: Vec<_> = alerts.iter().filter(|m| m.contains("AETITLES=STRANGER")).collect();
    assert_eq!(stranger.len(), 1, "{alerts:?}");
    assert!(stranger[0].contains("association_refused unknown_calling"), "{stranger:?}");
    let dir = tempfile::tempdir().unwrap();
    let exported = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["export", row["study_uid"].as_str().unwrap(), "--out"])
        .arg(dir.path())
        .arg("--config")
        .arg(appliance.config())
        .env("SUDO_USER", "erika")
        .output()
        .unwrap();
    assert!(exported.status.success(), "{exported:?}");
    wait_until("the export is told", || of("110106").len() == 1);
    assert!(of("110106")[0].contains("UserID=\"erika\"") && of("110106")[0].contains("<Anonymized>true"));
    assert!(appliance.terminate().success());
    wait_until("the stop is told", || of("110100").iter().any(|m| m.contains("csd-code=\"110121\"")));
    let messages = audit.messages();
    assert_valid(&messages);
    let mut once = messages.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), messages.len(), "nothing is told twice while the repository listens");
}

#[test]
fn every_refusal_is_in_the_hash_chain_and_a_flood_is_a_count() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    let echo = |title: &str| {
        let output = Command::new("echoscu")
            .args(["-aet", title, "-aec", "ICHD", "127.0.0.1", &appliance.port.to_string()])
            .output()
            .expect("dcmtk is needed");
        assert!(!output.status.success());
    };
    for _ in 0..40 {
        echo("STRANGER");
    }
    // A class that is not offered: nothing goes in, and that is written down too.
    let (ok, _) = storescu(appliance.port, &Phantom::quiet().files[..1], &["-aec", "OTHER"]);
    assert!(!ok);
    assert!(
        !Command::new("findscu")
            .args(["-S", "-aet", "CT1", "-aec", "ICHD", "-k", "0008,0052=STUDY", "127.0.0.1"])
            .arg(appliance.port.to_string())
            .output()
            .expect("dcmtk is needed")
            .status
            .success()
    );
    // What is counted and not written yet is written at the end.
    assert!(appliance.terminate().success());
    let log = appliance.log();
    assert_eq!(log.matches("event=association_refused").count(), 41, "each is one line of the journal");
    let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["audit", "list", "--json", "--config"])
        .arg(appliance.config())
        .output()
        .unwrap();
    let rows: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .filter(|r| r["event"] == "refused")
        .map(|r| serde_json::from_str(r["body"].as_str().unwrap()).unwrap())
        .collect();
    let of =
        |reason: &str| -> Vec<&serde_json::Value> { rows.iter().filter(|r| r["reason"] == reason).collect() };
    let flood = of("unknown_calling");
    let count: u64 = flood.iter().map(|r| r["count"].as_u64().unwrap()).sum();
    assert_eq!((flood.len(), count), (2, 40), "{rows:?}");
    assert_eq!((&flood[0]["calling"], &flood[0]["peer"]), (&"STRANGER".into(), &"127.0.0.1".into()));
    assert_eq!(of("unknown_called").len(), 1, "{rows:?}");
    let class = of("sop_class");
    assert_eq!(class.len(), 1, "{rows:?}");
    assert_eq!(class[0]["detail"], "1.2.840.10008.5.1.4.1.2.2.1");
    let verified = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["audit", "verify", "--config"])
        .arg(appliance.config())
        .output()
        .unwrap();
    assert!(verified.status.success(), "{verified:?}");
}
