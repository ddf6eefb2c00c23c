//! DICOM over mutual TLS with DCMTK as the scanner and openssl as the hospital's authority.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, free_port, storescu, wait_until};

/// An authority and what it has signed.
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Authority { dir: tempfile::tempdir().unwrap() };
        authority.openssl(
            "req -x509 -newkey rsa:2048 -nodes -subj /CN=hospital -days 3650 -keyout ca.key -out ca.crt",
        );
        authority
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.dir.path())
            .output()
            .expect("openssl is needed (tests/run installs it)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Signs `name.crt` for `name.key`; both are put in place whole, as a careful renewal would.
    pub fn sign(&self, name: &str, days: u32) {
        self.openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={name} -keyout new.key -out new.csr"));
        std::fs::write(self.path("v3"), "basicConstraints = CA:FALSE\nsubjectAltName = IP:127.0.0.1\n")
            .unwrap();
        self.openssl(&format!(
            "x509 -req -in new.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days {days} -extfile v3 -out new.crt"
        ));
        for end in ["key", "crt"] {
            std::fs::rename(self.path(&format!("new.{end}")), self.path(&format!("{name}.{end}"))).unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A revocation list with what has been revoked so far.
    pub fn revoke(&self, name: Option<&str>) -> PathBuf {
        let config = "[ca]\ndefault_ca = a\n[a]\ndatabase = index.txt\ncrlnumber = crlnumber\ndefault_md = sha256\n\
                      default_crl_days = 30\ncertificate = ca.crt\nprivate_key = ca.key\n";
        std::fs::write(self.path("ca.cnf"), config).unwrap();
        for (file, text) in [("index.txt", ""), ("crlnumber", "01\n")] {
            if !self.path(file).exists() {
                std::fs::write(self.path(file), text).unwrap();
            }
        }
        if let Some(name) = name {
            self.openssl(&format!("ca -config ca.cnf -revoke {name}.crt"));
        }
        self.openssl("ca -config ca.cnf -gencrl -out new.crl");
        std::fs::rename(self.path("new.crl"), self.path("ca.crl")).unwrap();
        self.path("ca.crl")
    }

    /// DCMTK's options for a client of this authority.
    pub fn client(&self, name: &str) -> Vec<String> {
        let file = |end: &str| self.text(&format!("{name}.{end}"));
        vec!["+tls".into(), file("key"), file("crt"), "+cf".into(), self.text("ca.crt")]
    }

    pub fn table(&self, listen: u16, more: &str) -> String {
        format!(
            "free-bytes-min = 1000\n[receive.tls]\nlisten = \"127.0.0.1:{listen}\"\nca = {:?}\n\
             certificate = {:?}\nkey = {:?}\n{more}\n",
            self.path("ca.crt"),
            self.path("dicom.crt"),
            self.path("dicom.key")
        )
    }
}

fn echo(port: u16, options: &[String]) -> (bool, String) {
    let output = Command::new("echoscu")
        .args(["-v", "-to", "20", "-aet", "CT1", "-aec", "ICHD"])
        .args(options)
        .args(["127.0.0.1", &port.to_string()])
        .output()
        .expect("dcmtk is needed (tests/run installs it)");
    let words =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), words)
}

fn check(config: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_ichd")).args(["check", "--config"]).arg(config).output().unwrap()
}

#[test]
fn a_series_over_mutual_tls_is_read_and_plaintext_is_for_the_named_only() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let authority = Authority::new();
    authority.sign("dicom", 365);
    authority.sign("ct1", 365);
    let port = free_port();
    let appliance = Appliance::with(broker.port, &authority.table(port, ""));
    let client = authority.client("ct1");
    let options: Vec<&str> = client.iter().map(String::as_str).collect();
    let (ok, said) = storescu(port, &Phantom::quiet().files, &options);
    assert!(ok, "{said}");
    assert_eq!(appliance.dispositions(1)[0]["disposition"], "not_suspected");

    // The same title without TLS, on the port where that is spoken.
    let (ok, said) = echo(appliance.port, &[]);
    assert!(!ok && said.contains("Reject"), "{said}");
    // A certificate of somebody else, and none at all.
    let stranger = Authority::new();
    stranger.sign("ct1", 365);
    let mut foreign = stranger.client("ct1");
    foreign[4] = authority.text("ca.crt");
    assert!(!echo(port, &foreign).0);
    let anonymous = ["+tla".into(), "+cf".into(), authority.text("ca.crt")];
    assert!(!echo(port, &anonymous).0);
    // TLS to the plaintext port and plaintext to the TLS port: told apart, and nobody else notices.
    assert!(!echo(appliance.port, &client).0);
    assert!(!echo(port, &[]).0);
    let (ok, said) = echo(port, &client);
    assert!(ok, "{said}");
    for (reason, times) in [("plaintext_refused", 1), ("tls_failed", 3), ("tls_on_plaintext", 1)] {
        assert_eq!(
            appliance.log().matches(&format!("reason={reason}")).count(),
            times,
            "{}",
            appliance.log()
        );
    }

    let named =
        Appliance::with(broker.port, &authority.table(free_port(), "plaintext-ae-titles = [\"CT1\"]"));
    let (ok, said) = echo(named.port, &[]);
    assert!(ok, "{said}");
}

/// Every cipher that openssl knows, however bad.
const ANY_CIPHER: &str = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";

/// Version and cipher that openssl agrees upon as a client, if it does.
fn handshake(authority: &Authority, port: u16, options: &[&str]) -> Option<String> {
    let output = Command::new("openssl")
        .args([
            "s_client",
            "-brief",
            "-connect",
            &format!("127.0.0.1:{port}"),
            "-CAfile",
            &authority.text("ca.crt"),
        ])
        .args(["-cert", &authority.text("ct1.crt"), "-key", &authority.text("ct1.key")])
        .args(options)
        .stdin(std::process::Stdio::null())
        .output()
        .expect("openssl is needed (tests/run installs it)");
    let words = String::from_utf8_lossy(&output.stderr);
    let said = |what: &str| words.lines().find_map(|l| l.strip_prefix(what)).map(str::trim);
    Some(format!("{} {}", said("Protocol version:")?, said("Ciphersuite:")?))
}

/// BCP 195 (RFC 9325): nothing before TLS 1.2, and there only ECDHE with AEAD.
#[test]
fn no_handshake_succeeds_that_bcp_195_does_not_recommend() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let authority = Authority::new();
    authority.sign("dicom", 365);
    authority.sign("ct1", 365);
    let (port, lax_port) = (free_port(), free_port());
    let _appliance = Appliance::with(broker.port, &authority.table(port, ""));
    // What this openssl is able to speak at all is seen at a server that takes everything.
    let mut lax = Command::new("openssl")
        .args(["s_server", "-quiet", "-accept", &format!("127.0.0.1:{lax_port}"), "-cipher", ANY_CIPHER])
        .args(["-cert", &authority.text("dicom.crt"), "-key", &authority.text("dicom.key")])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the lax server listens", || std::net::TcpStream::connect(("127.0.0.1", lax_port)).is_ok());
    let list = Command::new("openssl").args(["ciphers", "-s", "-tls1_2", ANY_CIPHER]).output().unwrap();
    let old: Vec<String> =
        String::from_utf8(list.stdout).unwrap().trim().split(':').map(str::to_owned).collect();
    let new = ["AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256", "AES_128_CCM_SHA256"];
    let all = |port: u16| {
        let of_version = |version| handshake(&authority, port, &[version, "-cipher", ANY_CIPHER]);
        let one = |cipher: &String| {
            handshake(&authority, port, &["-tls1_2", "-cipher", &format!("{cipher}:@SECLEVEL=0")])
        };
        let suite = |suite: &&str| {
            handshake(&authority, port, &["-tls1_3", "-ciphersuites", &format!("TLS_{suite}")])
        };
        let mut agreed: Vec<String> = ["-tls1", "-tls1_1"].into_iter().filter_map(of_version).collect();
        agreed.extend(old.iter().filter_map(one));
        agreed.extend(new.iter().filter_map(suite));
        agreed.sort();
        agreed
    };
    let (ours, everything) = (all(port), all(lax_port));
    let _ = lax.kill();
    let _ = lax.wait();
    assert_eq!(
        ours,
        [
            "TLSv1.2 ECDHE-RSA-AES128-GCM-SHA256",
            "TLSv1.2 ECDHE-RSA-AES256-GCM-SHA384",
            "TLSv1.2 ECDHE-RSA-CHACHA20-POLY1305",
            "TLSv1.3 TLS_AES_128_GCM_SHA256",
            "TLSv1.3 TLS_AES_256_GCM_SHA384",
            "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256",
        ]
    );
    for bad in ["TLSv1 ", "TLSv1.1 ", "TLSv1.2 AES128-SHA", "TLSv1.2 ECDHE-RSA-AES128-SHA"] {
        assert!(everything.iter().any(|a| a.starts_with(bad)), "{bad} was never spoken: {everything:?}");
    }
}

#[test]
fn a_certificate_opens_the_door_for_its_own_titles_and_not_once_it_is_revoked() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let authority = Authority::new();
    for name in ["dicom", "ct1", "ct2"] {
        authority.sign(name, 365);
    }
    let port = free_port();
    let list = authority.revoke(None);
    let more = format!("crl = {list:?}\n[receive.tls.ae-titles]\nct1 = [\"CT1\"]\n");
    let appliance = Appliance::with(broker.port, &authority.table(port, &more));
    let (ok, said) = echo(port, &authority.client("ct1"));
    assert!(ok, "{said}");
    // As good a certificate, and somebody else's title.
    let (ok, said) = echo(port, &authority.client("ct2"));
    assert!(!ok && said.contains("Calling AE Title Not Recognized"), "{said}");
    assert!(appliance.log().contains("reason=certificate_mismatch"), "{}", appliance.log());
    // Lists are followed like certificates.
    authority.revoke(Some("ct1"));
    let (ok, said) = echo(port, &authority.client("ct1"));
    assert!(!ok, "{said}");
    assert!(appliance.log().contains("reason=tls_failed"), "{}", appliance.log());
}

#[test]
fn a_renewed_certificate_needs_no_restart_and_an_expiry_is_said_ahead() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let authority = Authority::new();
    authority.sign("dicom", 5);
    authority.sign("ct1", 365);
    let port = free_port();
    let mut appliance = Appliance::with(broker.port, &authority.table(port, ""));
    let client = authority.client("ct1");
    assert!(echo(port, &client).0);
    let is_said = |warning: &str| {
        // A box that works is not degraded for what comes in a week.
        listener.drain().iter().any(|(_, body)| {
            let warned = body["warnings"].as_array().is_some_and(|w| w.contains(&warning.into()));
            warned && body["state"] == "ready"
        })
    };
    wait_until("the expiry is said", || is_said("certificate_expires:7"));
    let checked = check(&appliance.config());
    assert!(String::from_utf8_lossy(&checked.stdout).contains("certificate_expires:7"));

    authority.sign("dicom", 365);
    wait_until("the warning ends", || {
        listener.drain().iter().any(|(_, body)| {
            body["state"] == "ready" && body["warnings"].as_array().is_some_and(Vec::is_empty)
        })
    });
    let (ok, said) = echo(port, &client);
    assert!(ok, "{said}");
    assert!(appliance.log().contains("certificates_reloaded"), "{}", appliance.log());

    // What cannot be used is found before anything is bound.
    appliance.kill();
    std::fs::write(authority.path("dicom.key"), "no key").unwrap();
    for command in ["check", "run"] {
        let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
            .args([command, "--config"])
            .arg(appliance.config())
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{words}");
        assert!(words.contains("receive.tls") && words.contains("dicom.key"), "{words}");
    }
}
