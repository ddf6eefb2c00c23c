//! What `ichd enrol` makes, held against the real Mosquitto: every role, every topic, publish and subscribe.
//!
//! `ICHD_MOSQUITTO` names another Mosquitto than the one on the path; the files must work on 2.0 and 2.1.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::peers::{Appliance, Phantom, alone, free_port, storescu, wait_until};
use crate::wire::{Dial, Wire};

/// A site with two of everybody who could play the other.
struct Site {
    dir: TempDir,
    tls: u16,
    websockets: u16,
    password: u16,
    loopback: u16,
    broker: Option<Child>,
}

fn ichd(dir: &Path, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["enrol", "--dir"])
        .arg(dir.join("site"))
        .args(args)
        .output()
        .unwrap();
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words).into_owned();
    assert!(output.status.success(), "{args:?}: {words}");
    words
}

impl Site {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [tls, websockets, password, loopback] = [(); 4].map(|()| free_port());
        let port = |p: u16| p.to_string();
        let broker_dir = dir.path().join("site/broker");
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        ichd(
            dir.path(),
            &[
                "init",
                "--site",
                "north",
                "--broker",
                "localhost",
                "--listen",
                "127.0.0.1",
                "--port",
                &port(tls),
                "--websockets-port",
                &port(websockets),
                "--websockets-password-port",
                &port(password),
                "--loopback-port",
                &port(loopback),
                "--broker-dir",
                broker_dir.to_str().unwrap(),
                "--persistence-dir",
                state.to_str().unwrap(),
            ],
        );
        for (role, name) in [
            ("device", "ct-1"),
            ("device", "ct-2"),
            ("station", "nurse-1"),
            ("station", "nurse-2"),
            ("station", "page"),
            ("engineer", "bench"),
            ("viewer", "wall"),
            ("bridge", "gateway"),
        ] {
            ichd(dir.path(), &["add", role, name]);
        }
        ichd(dir.path(), &["add", "station", "tablet", "--password"]);
        ichd(dir.path(), &["add", "device", "ct-3", "--password"]);
        // As root Mosquitto would become somebody who may not enter this folder.
        std::fs::write(broker_dir.join("conf.d/test.conf"), "user root\n").unwrap();
        let mut site = Site { dir, tls, websockets, password, loopback, broker: None };
        let program = std::env::var_os("ICHD_MOSQUITTO").map(PathBuf::from).unwrap_or_else(|| {
            let usual = Path::new("/usr/sbin/mosquitto");
            if usual.exists() { usual.into() } else { "mosquitto".into() }
        });
        let log = std::fs::File::create(site.dir.path().join("log")).unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(site.dir.path().join("site/broker/mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("mosquitto is needed (tests/run installs it)");
        site.broker = Some(child);
        for port in [tls, websockets, password, loopback] {
            wait_until("mosquitto listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        }
        site
    }

    fn folder(&self, role: &str, name: &str) -> PathBuf {
        self.dir.path().join("site").join(role).join(name)
    }

    fn dial(&self, role: &str, name: &str) -> Dial {
        let (port, websockets) = match name {
            "tablet" => (self.password, true),
            "page" => (self.websockets, true),
            "ct-3" => (self.loopback, false),
            _ => (self.tls, false),
        };
        let mut dial = Dial { websockets, ..Dial::enrolled(port, &self.folder(role, name)) };
        if name == "ct-3" {
            dial.ca = None;
        }
        dial
    }

    fn reload(&self) {
        let pid = self.broker.as_ref().unwrap().id();
        assert!(Command::new("kill").args(["-HUP", &pid.to_string()]).status().unwrap().success());
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.broker.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "---- broker\n{}",
                std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
            );
        }
    }
}

const PEERS: [(&str, &str); 10] = [
    ("device", "ct-1"),
    ("device", "ct-2"),
    ("device", "ct-3"),
    ("station", "nurse-1"),
    ("station", "nurse-2"),
    ("station", "page"),
    ("station", "tablet"),
    ("engineer", "bench"),
    ("viewer", "wall"),
    ("bridge", "gateway"),
];
const EVERYBODY_ELSE: &[&str] = &["nurse-1", "nurse-2", "page", "tablet", "bench", "wall", "gateway"];
/// Who sees stations: the boxes, and whoever looks after them.
const SEE_STATIONS: &[&str] = &["ct-1", "ct-2", "ct-3", "bench"];

/// Topic, who may publish there, who is given it. What is not in the table's middle column is refused.
const MATRIX: &[(&str, Option<&str>, &[&str])] = &[
    ("ichd/1/north/dev/ct-1/status", Some("ct-1"), EVERYBODY_ELSE),
    ("ichd/1/north/dev/ct-1/heartbeat", Some("ct-1"), EVERYBODY_ELSE),
    ("ichd/1/north/dev/ct-1/alert/01J", Some("ct-1"), EVERYBODY_ELSE),
    ("ichd/1/north/dev/ct-1/study/5f", Some("ct-1"), EVERYBODY_ELSE),
    ("ichd/1/north/dev/ct-1/reply/nurse-1", Some("ct-1"), &["nurse-1"]),
    ("ichd/1/north/dev/ct-1/reply/tablet", Some("ct-1"), &["tablet"]),
    ("ichd/1/north/dev/ct-2/alert/01K", Some("ct-2"), EVERYBODY_ELSE),
    ("ichd/1/north/dev/ct-3/alert/01L", Some("ct-3"), EVERYBODY_ELSE),
    ("ichd/1/north/sta/nurse-1/status", Some("nurse-1"), SEE_STATIONS),
    ("ichd/1/north/sta/bench/status", Some("bench"), SEE_STATIONS),
    ("ichd/1/north/sta/nurse-1/receipt/ct-1", Some("nurse-1"), &["ct-1"]),
    ("ichd/1/north/sta/nurse-1/action/ct-1", Some("nurse-1"), &["ct-1"]),
    ("ichd/1/north/sta/nurse-2/action/ct-2", Some("nurse-2"), &["ct-2"]),
    ("ichd/1/north/sta/page/action/ct-1", Some("page"), &["ct-1"]),
    ("ichd/1/north/sta/tablet/action/ct-1", Some("tablet"), &["ct-1"]),
    ("ichd/1/north/sta/bench/action/ct-1", Some("bench"), &["ct-1"]),
    ("ichd/1/north/sta/bench/request/ct-1", Some("bench"), &["ct-1"]),
    ("ichd/1/north/sta/bench/request/ct-2", Some("bench"), &["ct-2"]),
    ("ichd/1/north/dev/ct-1/answer/bench", Some("ct-1"), &["bench"]),
    ("ichd/1/north/dev/ct-1/answer/nurse-1", Some("ct-1"), &[]),
    ("ichd/1/north/dev/ct-1/reply/bench", Some("ct-1"), &["bench"]),
    ("ichd/1/north/sta/nurse-1/request/ct-1", None, &[]),
    ("ichd/1/north/sta/wall/status", None, &[]),
    ("ichd/1/north/sta/wall/action/ct-1", None, &[]),
    ("ichd/1/north/sta/gateway/receipt/ct-1", None, &[]),
    ("ichd/1/north/sta/ct-1/action/ct-2", None, &[]),
    ("ichd/1/north/dev/nurse-1/alert/01J", None, &[]),
    ("ichd/1/north/dev/ct-1/alert/01J/more", None, &[]),
    ("ichd/1/north/dev/ct-1/other", None, &[]),
    ("ichd/1/south/dev/ct-1/alert/01J", None, &[]),
    ("ichd/2/north/dev/ct-1/alert/01J", None, &[]),
    ("anything", None, &[]),
];

#[test]
fn the_whole_acl_matrix_holds_on_the_real_broker() {
    let site = Site::start();
    let mut peers: Vec<(&str, Wire)> = PEERS
        .iter()
        .map(|(role, name)| {
            let mut wire = site.dial(role, name).connect().unwrap_or_else(|e| panic!("{name}: {e}"));
            for filter in ["#", "$SYS/#", "ichd/1/north/dev/+/alert/+", "ichd/1/+/sta/+/action/+"] {
                wire.subscribe(filter).unwrap();
            }
            for (topic, ..) in MATRIX {
                wire.subscribe(topic).unwrap();
            }
            (*name, wire)
        })
        .collect();
    let mut asked = 0;
    for (topic, publisher, _) in MATRIX {
        for (name, wire) in &mut peers {
            let answer = wire.publish(topic, &format!("{name} on {topic}"), false).unwrap();
            let allowed = matches!(answer.as_str(), "Success" | "NoMatchingSubscribers");
            assert!(allowed || answer == "NotAuthorized", "{name} on {topic}: {answer}");
            assert_eq!(allowed, *publisher == Some(*name), "{name} publishes on {topic}: {answer}");
            asked += 1;
        }
    }
    let publish = |peers: &mut Vec<(&str, Wire)>, name: &str, topic: &str| {
        let wire = &mut peers.iter_mut().find(|(n, _)| *n == name).unwrap().1;
        wire.publish(topic, "the end", false).unwrap();
    };
    publish(&mut peers, "ct-1", "ichd/1/north/dev/ct-1/status");
    publish(&mut peers, "nurse-1", "ichd/1/north/sta/nurse-1/status");
    for (name, wire) in &mut peers {
        let given: BTreeSet<(String, String)> = wire.until("the end").unwrap().into_iter().collect();
        let given: BTreeSet<&str> =
            given.iter().filter(|(_, p)| p != "the end").map(|(t, _)| t.as_str()).collect();
        let due: BTreeSet<&str> =
            MATRIX.iter().filter(|(_, _, readers)| readers.contains(name)).map(|(t, ..)| *t).collect();
        assert_eq!(given, due, "what {name} is given");
        asked += MATRIX.len();
    }
    println!("acl matrix: {asked} questions, {} identities, {} topics", PEERS.len(), MATRIX.len());
}

#[test]
fn nobody_speaks_in_the_name_of_another() {
    let site = Site::start();
    let mut ct = site.dial("device", "ct-1").connect().unwrap();
    let mut nurse = site.dial("station", "nurse-1").connect().unwrap();
    nurse.subscribe("ichd/1/north/dev/#").unwrap();

    // A forged alert, retained: refused, and not there for whoever comes later.
    let forged = "ichd/1/north/dev/ct-1/alert/FORGED";
    assert_eq!(nurse.publish(forged, "forged", true).unwrap(), "NotAuthorized");
    // As another station.
    assert_eq!(
        nurse.publish("ichd/1/north/sta/nurse-2/action/ct-1", "forged", false).unwrap(),
        "NotAuthorized"
    );
    // With another's user name in the CONNECT: the certificate decides.
    let login = Some(("ct-1".to_owned(), "x".to_owned()));
    if let Ok(mut wire) = (Dial { login, ..site.dial("station", "nurse-2") }).connect() {
        assert_eq!(wire.publish(forged, "forged", true).unwrap(), "NotAuthorized");
    }
    // With another's client identifier: the one it belongs to stays connected.
    let stolen = Dial { client_id: "ct-1".into(), ..site.dial("station", "nurse-2") };
    let thief = stolen.connect();
    assert_eq!(ct.publish("ichd/1/north/dev/ct-1/status", "alive", false).unwrap(), "Success");
    drop(thief);
    // With a will that would report a device lost.
    let will = Some(("ichd/1/north/dev/ct-1/status".to_owned(), "forged".to_owned()));
    drop((Dial { will, ..site.dial("station", "nurse-2") }).connect());

    let mut late = site.dial("viewer", "wall").connect().unwrap();
    late.subscribe("ichd/1/north/dev/#").unwrap();
    // The will of a connection that broke is out once its client is gone; a reconnection says so.
    drop(site.dial("station", "nurse-2").connect().unwrap());
    assert_eq!(ct.publish("ichd/1/north/dev/ct-1/status", "the end", false).unwrap(), "Success");
    for wire in [&mut nurse, &mut late] {
        assert!(wire.until("the end").unwrap().iter().all(|(_, p)| p != "forged"));
    }
}

#[test]
fn strangers_and_wrong_passwords_are_not_let_in() {
    let site = Site::start();
    let refused = |dial: Dial, who: &str| {
        // TLS 1.3 tells a client of its refused certificate only after the handshake.
        let answer =
            dial.connect().and_then(|mut wire| wire.publish("ichd/1/north/dev/ct-1/status", "x", false));
        assert!(answer.is_err(), "{who}: {answer:?}");
    };
    let nurse = site.dial("station", "nurse-1");
    refused(Dial { certificate: None, ..nurse.clone() }, "no certificate");
    refused(
        Dial { certificate: None, port: site.websockets, websockets: true, ..nurse.clone() },
        "no certificate, page",
    );
    let other = tempfile::tempdir().unwrap();
    ichd(other.path(), &["init", "--site", "north", "--broker", "localhost"]);
    ichd(other.path(), &["add", "device", "ct-1"]);
    let foreign = Dial::enrolled(site.tls, &other.path().join("site/device/ct-1"));
    refused(Dial { ca: nurse.ca.clone(), ..foreign }, "another authority's ct-1");
    let tablet = site.dial("station", "tablet");
    refused(Dial { login: None, ..tablet.clone() }, "anonymous");
    refused(Dial { login: Some(("tablet".into(), "wrong".into())), ..tablet.clone() }, "wrong password");
    refused(Dial { login: None, ..site.dial("device", "ct-3") }, "anonymous on the loopback");
    let (user, password) = tablet.login.clone().unwrap();
    let as_nurse = Dial { login: Some(("nurse-1".into(), password)), ..tablet };
    refused(as_nurse, &format!("{user}'s password for nurse-1"));
}

#[test]
fn who_is_revoked_is_out_after_a_reload_and_the_others_stay() {
    let site = Site::start();
    let mut ct = site.dial("device", "ct-1").connect().unwrap();
    ct.subscribe("ichd/1/north/sta/#").unwrap();
    let victims = ["nurse-2", "page", "tablet"].map(|name| (name, site.dial("station", name)));
    let mut open: Vec<Wire> = victims.iter().map(|(_, dial)| dial.connect().unwrap()).collect();
    for (name, _) in &victims {
        ichd(site.dir.path(), &["revoke", name]);
    }
    site.reload();
    for ((name, dial), wire) in victims.iter().zip(&mut open) {
        let topic = format!("ichd/1/north/sta/{name}/status");
        wait_until(&format!("{name} may do nothing on the open connection"), || {
            !matches!(
                wire.publish(&topic, "still here", false).as_deref(),
                Ok("Success" | "NoMatchingSubscribers")
            )
        });
        let again = dial.connect().and_then(|mut wire| wire.publish(&topic, "back", false));
        assert!(!matches!(again.as_deref(), Ok("Success" | "NoMatchingSubscribers")), "{name}: {again:?}");
    }
    let again = victims[0].1.connect().and_then(|mut w| w.publish("x", "x", false));
    assert!(again.is_err(), "the revocation list is read at the door: {again:?}");
    let mut nurse = site.dial("station", "nurse-1").connect().unwrap();
    nurse.publish("ichd/1/north/sta/nurse-1/status", "the end", false).unwrap();
    assert!(ct.until("the end").unwrap().iter().all(|(_, p)| p != "back"));
}

#[test]
fn the_daemon_delivers_over_mutual_tls_and_over_the_loopback_listener() {
    let _alone = alone();
    let site = Site::start();
    let mut wall = site.dial("viewer", "wall").connect().unwrap();
    wall.subscribe("ichd/1/north/dev/#").unwrap();
    let folder = site.folder("device", "ct-1");
    let file = |name: &str| folder.join(name).display().to_string();
    let tls = format!(
        "broker-host = \"localhost\"\n[alert.tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
        file("ca.crt"),
        file("device.crt"),
        file("device.key")
    );
    let password = format!("password-file = {:?}\n", site.folder("device", "ct-3").join("password"));
    for (device, port, alert) in [("ct-1", site.tls, tls), ("ct-3", site.loopback, password)] {
        let appliance = Appliance::enrolled(device, port, &alert);
        assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
        let document = wall.next("ichd.alert/1").unwrap();
        assert_eq!((document["device"].as_str(), document["site"].as_str()), (Some(device), Some("north")));
        let log = appliance.log();
        let secret = std::fs::read_to_string(site.folder("device", "ct-3").join("password")).unwrap();
        assert!(!log.contains(&secret) && !log.contains("PRIVATE KEY"), "{log}");
        while wall.next("ichd.study/1").unwrap()["disposition"] != "suspected" {}
    }
}
