use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;

const NOW_MS: u64 = 1_790_000_000_000;

fn settings(dir: &Path) -> Settings {
    Settings {
        site: "north".into(),
        broker_names: vec!["broker.north.example".into()],
        listen: "0.0.0.0".into(),
        ports: Ports { mqtt: 8883, websockets: 8884, websockets_password: 8885, loopback: 1883 },
        broker_dir: dir.join("broker"),
        persistence_dir: "/var/lib/mosquitto".into(),
    }
}

fn request(role: Role, name: &str) -> Request {
    Request { role, name: name.into(), password: false, addresses: vec![], days: CLIENT_DAYS, serves: None }
}

fn enrolled() -> (tempfile::TempDir, Enrolment) {
    let dir = tempfile::tempdir().unwrap();
    let mut enrolment = Enrolment::init(dir.path(), settings(dir.path()), NOW_MS).unwrap();
    enrolment.add(&request(Role::Device, "ct-1"), NOW_MS).unwrap();
    enrolment.add(&request(Role::Station, "nurse-1"), NOW_MS).unwrap();
    (dir, enrolment)
}

fn openssl(args: &[&str], dir: &Path) -> (bool, String) {
    let output = Command::new("openssl").args(args).current_dir(dir).output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&words).into_owned())
}

#[test]
fn every_file_is_for_its_owner_only_and_folders_too() {
    fn walk(path: &Path) -> usize {
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        if path.is_dir() {
            assert_eq!(mode, 0o700, "{path:?}");
            return path.read_dir().unwrap().map(|e| walk(&e.unwrap().path())).sum();
        }
        assert_eq!(mode, 0o600, "{path:?}");
        1
    }
    let (dir, _) = enrolled();
    assert_eq!(walk(&dir.path().join("ca")) + walk(&dir.path().join("broker")), 2 + 7);
    assert_eq!(walk(&dir.path().join("device")) + walk(&dir.path().join("station")), 4 + 3);
}

#[test]
fn openssl_accepts_what_was_made_and_refuses_what_was_revoked() {
    let (dir, mut enrolment) = enrolled();
    let verify = |file: &str, purpose: &str| {
        let args = [
            "verify",
            "-crl_check",
            "-CRLfile",
            "broker/ca.crl",
            "-CAfile",
            "ca/ca.crt",
            "-purpose",
            purpose,
            file,
        ];
        openssl(&args, dir.path())
    };
    assert!(verify("device/ct-1/device.crt", "sslclient").0);
    assert!(verify("broker/broker.crt", "sslserver").0);
    assert!(!verify("device/ct-1/device.crt", "sslserver").0, "a device is no server");
    let (_, text) =
        openssl(&["x509", "-noout", "-subject", "-in", "station/nurse-1/station.crt"], dir.path());
    assert!(text.contains("CN = nurse-1") || text.contains("CN=nurse-1"), "{text}");
    let kept = dir.path().join("kept.crt");
    std::fs::copy(dir.path().join("station/nurse-1/station.crt"), &kept).unwrap();
    enrolment.revoke("nurse-1", NOW_MS + 1).unwrap();
    let (ok, text) = verify("kept.crt", "sslclient");
    assert!(!ok && text.contains("revoked"), "{text}");
    assert!(verify("device/ct-1/device.crt", "sslclient").0);
}

#[test]
fn nothing_that_is_there_is_overwritten() {
    let (dir, mut enrolment) = enrolled();
    let again = Enrolment::init(dir.path(), settings(dir.path()), NOW_MS);
    assert!(matches!(again, Err(EnrolError::Exists { .. })));
    let taken = enrolment.add(&request(Role::Viewer, "nurse-1"), NOW_MS);
    assert!(matches!(taken, Err(EnrolError::Taken { role: Role::Station, .. })), "a name is one role's");
    std::fs::write(dir.path().join("broker/acl"), "user nurse-1\ntopic #\n").unwrap();
    let edited = enrolment.add(&request(Role::Viewer, "wall"), NOW_MS);
    assert!(matches!(edited, Err(EnrolError::Edited { .. })), "{edited:?}");
}

#[test]
fn what_a_power_cut_left_half_written_is_ended_by_the_next_command() {
    let (dir, mut enrolment) = enrolled();
    let file = |name: &str| dir.path().join("broker").join(name);
    let old: Vec<_> = ["acl", "broker.crt"].map(|n| (file(n), std::fs::read(file(n)).unwrap())).into();
    enrolment.renew_broker(None, NOW_MS + 1).unwrap();
    enrolment.add(&request(Role::Viewer, "wall"), NOW_MS + 2).unwrap();
    let acl = std::fs::read_to_string(file("acl")).unwrap();
    // The index was written, the list was not: nobody's edit, and nobody is left out.
    std::fs::write(&old[0].0, &old[0].1).unwrap();
    let mut enrolment = Enrolment::open(dir.path()).unwrap();
    assert!(matches!(enrolment.revoke("nobody", NOW_MS + 3), Err(EnrolError::Unknown(_))));
    assert_eq!(std::fs::read_to_string(file("acl")).unwrap(), acl);
    // A certificate that was never written is made anew, with its key.
    let index = dir.path().join("enrolment.json");
    enrolment.renew_broker(None, NOW_MS + 4).unwrap();
    let (certificate, key) =
        (std::fs::read(file("broker.crt")).unwrap(), std::fs::read(file("broker.key")).unwrap());
    let mut document: serde_json::Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    document["before"] = document["written"].clone();
    document["written"]["broker.crt"] = "0".repeat(64).into();
    std::fs::write(&index, document.to_string()).unwrap();
    Enrolment::open(dir.path()).unwrap().add(&request(Role::Viewer, "desk"), NOW_MS + 5).unwrap();
    assert!(
        std::fs::read(file("broker.crt")).unwrap() != certificate
            && std::fs::read(file("broker.key")).unwrap() != key
    );
}

#[test]
fn what_was_enrolled_is_there_after_opening_again_and_a_revoked_name_is_free() {
    let (dir, enrolment) = enrolled();
    let mut opened = Enrolment::open(dir.path()).unwrap();
    assert_eq!(opened.identities(), enrolment.identities());
    opened.revoke("nurse-1", NOW_MS + 1).unwrap();
    assert!(matches!(opened.revoke("nurse-1", NOW_MS + 2), Err(EnrolError::Unknown(_))));
    opened.add(&request(Role::Station, "nurse-1"), NOW_MS + 3).unwrap();
    let acl = std::fs::read_to_string(dir.path().join("broker/acl")).unwrap();
    assert_eq!(acl.matches("user nurse-1\n").count(), 1);
}

#[test]
fn a_name_that_is_no_topic_level_is_refused() {
    let (_dir, mut enrolment) = enrolled();
    for name in ["", "+", "#", "a/b", "..", "Nurse", "a\ntopic write #", "a b", "-x", &"a".repeat(33)] {
        assert!(
            matches!(enrolment.add(&request(Role::Station, name), NOW_MS), Err(EnrolError::Name(_))),
            "{name:?}"
        );
    }
}

#[test]
fn a_password_stands_nowhere_but_in_its_own_file() {
    let (dir, mut enrolment) = enrolled();
    enrolment.add(&Request { password: true, ..request(Role::Station, "tablet") }, NOW_MS).unwrap();
    let password = std::fs::read_to_string(dir.path().join("station/tablet/password")).unwrap();
    assert_eq!((password.len(), password.matches('-').count()), (29, 5));
    for file in ["enrolment.json", "broker/passwords", "broker/acl", "broker/mosquitto.conf"] {
        assert!(!std::fs::read_to_string(dir.path().join(file)).unwrap().contains(&password), "{file}");
    }
}

#[test]
fn the_daemon_is_told_whom_it_may_believe_by_a_drop_in_of_its_configuration() {
    let (dir, mut enrolment) = enrolled();
    let serving =
        |name: &str, serves: &str| Request { serves: Some(serves.into()), ..request(Role::Station, name) };
    enrolment.add(&serving("desk-1", "charge_nurse"), NOW_MS).unwrap();
    enrolment.add(&request(Role::Engineer, "bench"), NOW_MS).unwrap();
    enrolment.add(&request(Role::Viewer, "wall"), NOW_MS).unwrap();
    for wrong in ["Nurse", "", "a b", "x\"\n[alert]"] {
        assert!(
            matches!(enrolment.add(&serving("odd", wrong), NOW_MS), Err(EnrolError::Request(_))),
            "{wrong}"
        );
    }
    let told = |enrolment: &Enrolment| {
        let base = dir.path().join("ichd.toml");
        std::fs::write(&base, "[site]\nname = \"north\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n").unwrap();
        let drop_in = dir.path().join("ichd.toml.d/50-stations.toml");
        std::fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
        std::fs::copy(enrolment.stations_file(), drop_in).unwrap();
        let stations = crate::config::Config::load(&base).unwrap().alert.stations;
        stations.into_iter().map(|(name, serves)| format!("{name} {serves}")).collect::<Vec<_>>()
    };
    assert_eq!(told(&enrolment), ["bench engineer", "desk-1 charge_nurse", "nurse-1 nurse"]);
    // And the page, by an address: nobody types a name or picks a role.
    let links = |name| enrolment.setup_links(name).join(" ");
    assert!(links("desk-1").contains(":8443/#station=desk-1&role=charge_nurse"), "{}", links("desk-1"));
    assert!(links("bench").ends_with("#station=bench&role=engineer"));
    assert!(links("wall").ends_with("#station=wall&role=viewer"));
    assert_eq!(links("ct-1") + &links("nobody"), "");
    enrolment.revoke("nurse-1", NOW_MS + 1).unwrap();
    assert_eq!(told(&enrolment), ["bench engineer", "desk-1 charge_nurse"], "who is revoked is not believed");
}

#[test]
fn a_device_is_given_the_configuration_that_makes_it_a_member_of_the_site() {
    let (dir, mut enrolment) = enrolled();
    let addresses = vec!["ichd.example".to_owned()];
    enrolment.add(&Request { addresses, ..request(Role::Device, "ct-2") }, NOW_MS).unwrap();
    let page = "https://ichd.example:8443/#station=nurse-1&role=nurse";
    assert_eq!(enrolment.setup_links("nurse-1"), [page], "where the box serves its page");
    enrolment.add(&Request { password: true, ..request(Role::Device, "ct-3") }, NOW_MS).unwrap();
    let base = dir.path().join("ichd.toml");
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("ichd.toml");
    let of = |name: &str| {
        std::fs::copy(&example, &base).unwrap();
        std::fs::create_dir_all(dir.path().join("ichd.toml.d")).unwrap();
        let given = dir.path().join("device").join(name).join(device::DROP_IN);
        std::fs::copy(given, dir.path().join("ichd.toml.d").join(device::DROP_IN)).unwrap();
        crate::config::Config::load(&base).unwrap()
    };
    let config = of("ct-2");
    assert_eq!((config.site.name.as_str(), config.site.device.as_str()), ("north", "ct-2"));
    assert_eq!((config.alert.broker_host.as_str(), config.alert.broker_port), ("broker.north.example", 8883));
    let key = config.alert.tls.unwrap().key;
    assert!(
        key.starts_with("/run/credentials/ichd.service"),
        "a dynamic user reads no file of root's: {key:?}"
    );
    assert_eq!(config.station.broker_url, "wss://broker.north.example:8884");
    let config = of("ct-3");
    assert_eq!((config.alert.broker_port, config.alert.tls.is_none()), (1883, true));
    assert!(config.alert.password_file.is_some() && config.station.listen.is_none());
}
