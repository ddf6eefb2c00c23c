//! The machine around the daemon: sandbox, packet filter, the port that systemd holds. Real systemd and nft programs.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::peers::{Appliance, Mosquitto, Phantom, alone, free_port, repository, storescu};

const MOSQUITTO_DROP_IN: &str = "yocto/meta-ichd/recipes-connectivity/mosquitto/files/10-ichd.conf";
const MACHINE: &str = "yocto/meta-ichd/recipes-core/ichd-host/files";

/// `systemd-analyze security` in tenths, exposure 15 is 1.5; fails above it.
fn exposure_is_at_most_15(root: &Path, unit: &str) {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=15", "--no-pager"])
        .arg(format!("--root={}", root.display()))
        .arg(unit)
        .output()
        .expect("systemd-analyze is needed");
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && words.contains("Overall exposure level"), "{words}");
}

#[test]
fn the_sandbox_of_daemon_and_broker_is_tight() {
    let root = tempfile::tempdir().unwrap();
    let units = root.path().join("usr/lib/systemd/system");
    let drop_ins = root.path().join("etc/systemd/system/mosquitto.service.d");
    std::fs::create_dir_all(&units).unwrap();
    std::fs::create_dir_all(&drop_ins).unwrap();
    for unit in ["daemon/ichd.service", "daemon/ichd.socket", "tools/gateway/ichd-gateway.service"] {
        let name = Path::new(unit).file_name().unwrap();
        std::fs::copy(repository().join(unit), units.join(name)).unwrap();
    }
    std::fs::copy("/lib/systemd/system/mosquitto.service", units.join("mosquitto.service"))
        .expect("mosquitto's unit");
    std::fs::copy(repository().join(MOSQUITTO_DROP_IN), drop_ins.join("10-ichd.conf")).unwrap();
    exposure_is_at_most_15(root.path(), "ichd.service");
    exposure_is_at_most_15(root.path(), "mosquitto.service");
    exposure_is_at_most_15(root.path(), "ichd-gateway.service");
    // Nor does either see the bus, on which RAUC and systemd take orders; who is denied there is in test_host_updates.py.
    for unit in ["daemon/ichd.service", MOSQUITTO_DROP_IN] {
        let text = std::fs::read_to_string(repository().join(unit)).unwrap();
        assert!(text.lines().any(|line| line == "InaccessiblePaths=-/run/dbus"), "{unit}");
    }
}

/// In a network of its own: the box at .1, a listed scanner at .2, a stranger at .3 and a listed station at .4 of the
/// same hospital.
const STRANGER: &str = r#"
set -e
mount -t tmpfs none /run
mkdir -p /run/netns /run/site
ip link set lo up
ip netns add lan
ip link add box type veth peer name far netns lan
ip addr add 10.20.0.1/24 dev box
ip link set box up
ip -n lan addr add 10.20.0.2/24 dev far
ip -n lan addr add 10.20.0.3/24 dev far
ip -n lan addr add 10.20.0.4/24 dev far
ip -n lan link set far up
echo 'add element inet ichd scanners { 10.20.0.2 }' > /run/site/site.nft
echo 'add element inet ichd stations { 10.20.0.4 }' >> /run/site/site.nft
for file in ichd.nft ichd-site.nft; do sed 's#/etc/ichd/firewall.d#/run/site#; s#/etc/nftables#/run#' "$1/$file" > /run/$file; done
nft -f /run/ichd.nft
nft -f /run/ichd-site.nft
nft -f /run/ichd-site.nft
python3 - <<'END'
import socket, subprocess, sys
probe = "import socket,sys; socket.create_connection(('10.20.0.1', int(sys.argv[2])), 2, (sys.argv[1], 0))"
def reach(who, port):
    command = ["ip", "netns", "exec", "lan", sys.executable, "-c", probe, who, str(port)]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
scanner, stranger, station = "10.20.0.2", "10.20.0.3", "10.20.0.4"
# DICOM, DICOM over TLS; the page; MQTT and both kinds of websockets, where enrolment puts them.
servers = [socket.create_server(("10.20.0.1", port)) for port in (104, 2762, 8443, 8883, 8884, 8885)]
for port in (104, 2762):
    assert reach(scanner, port), f"the listed scanner was kept out of {port}"
for port in (8443, 8883, 8884, 8885):
    assert reach(station, port), f"the listed station was kept out of {port}"
for who, port in [(stranger, 104), (stranger, 8884), (station, 104), (scanner, 8884)]:
    assert not reach(who, port), f"{who} got into {port}"
# A line that is wrong: a reload changes nothing, and a box that starts with it is closed, not open.
open("/run/site/site.nft", "a").write("add element inet ichd scanner { 10.20.0.3 }\n")
nft = lambda file: subprocess.run(["nft", "-f", file], stderr=subprocess.DEVNULL).returncode
assert nft("/run/ichd-site.nft") != 0, "the wrong line was taken"
assert reach(scanner, 104) and not reach(stranger, 104), "a refused reload changed the filter"
subprocess.run(["nft", "flush", "ruleset"], check=True)
assert reach(stranger, 104), "without a filter everybody is in, or this test shows nothing"
assert nft("/run/ichd.nft") == 0 and nft("/run/ichd-site.nft") != 0
for who, port in [(stranger, 104), (scanner, 104), (station, 8884)]:
    assert not reach(who, port), f"{who} got into {port} of a box whose site's file is wrong"
END
"#;

#[test]
fn the_packet_filter_admits_the_listed_scanner_and_no_stranger() {
    let unit = std::fs::read_to_string(repository().join(MACHINE).join("ichd-firewall.service")).unwrap();
    let starts: Vec<&str> =
        unit.lines().filter_map(|l| l.strip_prefix("ExecStart=/usr/sbin/nft -f /etc/nftables/")).collect();
    assert_eq!(starts, ["ichd.nft", "ichd-site.nft"], "closed first");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "--mount", "sh", "-c", STRANGER, "sh"])
        .arg(repository().join(MACHINE))
        .output()
        .expect("unshare is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_port_that_systemd_holds_is_taken_over() {
    let _alone = alone();
    let broker = Mosquitto::start();
    // Only its configuration is used; the daemon itself is started by systemd's own program, on the first call.
    let mut appliance = Appliance::alerts_to(&broker);
    appliance.kill();
    let port = free_port();
    let mut held = Command::new("systemd-socket-activate")
        .args([&format!("--listen=127.0.0.1:{port}"), "--", env!("CARGO_BIN_EXE_ichd"), "run", "--config"])
        .arg(appliance.config())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("systemd-socket-activate is needed");
    let files = &Phantom::quiet().files[..2];
    let mut sent = (false, String::new());
    for _ in 0..50 {
        sent = storescu(port, files, &[]);
        if sent.0 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let _ = held.kill();
    let _ = held.wait();
    assert!(sent.0, "{}", sent.1);
}

/// As yocto/README.md says, "Commissioning": three folders of `ichd enrol` on a stick. Whatever the configuration that they
/// bring names lies on the data partition afterwards.
#[test]
fn a_stick_with_what_enrolment_made_is_all_that_a_box_needs() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let enrol = |line: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ichd"));
        let command = command.arg("enrol").arg("--dir").arg(at("site")).args(line.split(' '));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    };
    enrol("init --site north --broker 10.20.0.5");
    enrol("add device ct-1 --address 10.20.0.5");
    enrol("add station nurse-1");
    let script = r#"
        set -e
        cd "$1"
        mkdir -p stick/site bin data/etc/ichd/ichd.toml.d data/etc/ichd/firewall.d data/etc/credstore data/etc/network
        cp -r site/daemon site/broker stick/site/
        cp -r site/device/ct-1 stick/site/device
        for program in systemctl chown; do printf '#!/bin/sh\n' > bin/$program; chmod 755 bin/$program; done
        PATH=$PWD/bin:$PATH ICHD_STICK=$PWD/stick ICHD_DATA=$PWD/data sh "$2"
    "#;
    let output = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(dir.path())
        .arg(repository().join(MACHINE).join("stick"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("enrolled: "), "{said}");

    let etc = at("data/etc");
    let mut named = 0;
    for file in ["ichd/ichd.toml.d/40-enrolled.toml", "mosquitto/mosquitto.conf"] {
        for word in std::fs::read_to_string(etc.join(file)).unwrap().split([' ', '"', '\n']) {
            let below = word.strip_prefix("/etc/").map(Into::into);
            let below = below.or_else(|| {
                word.strip_prefix("/run/credentials/ichd.service/").map(|key| format!("credstore/{key}"))
            });
            if let Some(below) = below {
                named += 1;
                assert!(etc.join(&below).exists(), "{file} names {word}");
            }
        }
    }
    assert!(named > 8, "only {named} files are named");
    assert!(etc.join("ichd/ichd.toml.d/50-stations.toml").exists());
}
