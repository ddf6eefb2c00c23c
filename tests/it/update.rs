//! Bundles against the real RAUC and a real bus, with files as slots. Needs root (loop mounts); left out with one line
//! where not.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, storescu, wait_until};

const COMPATIBLE: &str = "ichd-test";
const IMAGE_BYTES: usize = 3 << 20;

/// A boot loader made of files: which slot is first, what is thought of each, and which has spent its one attempt. RAUC's
/// side of GRUB names no primary that has.
const BOOT_LOADER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$1" in
get-primary) first=$(cat primary); case "$first" in A) next=B ;; *) next=A ;; esac; if [ -e "tried.$first" ]; then echo "$next"; else echo "$first"; fi ;;
set-primary) rm -f "tried.$2"; echo "$2" > primary ;;
get-state) if [ -e "tried.$2" ]; then echo bad; else cat "state.$2"; fi ;;
set-state) rm -f "tried.$2"; echo "$3" > "state.$2" ;;
get-current) echo A ;;
esac
"#;

/// Holds an installation where a file says so.
const HANDLER: &str = "#!/bin/sh\ncd \"$(dirname \"$0\")\" || exit 1\ntouch \"at.$(basename \"$0\")\"\nwhile [ -e hold ]; do sleep 0.05; done\n";

struct Machine {
    dir: TempDir,
    bus: Child,
    rauc: Option<Child>,
    /// Which slot runs.
    slot: &'static str,
    /// Of a daemon beside it, or of none.
    config: PathBuf,
}

fn left_out() -> bool {
    use std::os::unix::fs::MetadataExt;
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0);
    if !root {
        eprintln!("left out: RAUC mounts bundles, which needs root");
    }
    !root
}

impl Machine {
    fn boots_a() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let script = |name: &str, text: &str| {
            std::fs::write(at(name), text).unwrap();
            assert!(Command::new("chmod").arg("755").arg(at(name)).status().unwrap().success());
        };
        script("boot", BOOT_LOADER);
        script("pre-install", HANDLER);
        script("post-install", HANDLER);
        for (file, text) in [("primary", "A\n"), ("state.A", "good\n"), ("state.B", "good\n")] {
            std::fs::write(at(file), text).unwrap();
        }
        std::fs::write(at("slot-a"), vec![0; IMAGE_BYTES]).unwrap();
        std::fs::write(at("slot-b"), vec![0; IMAGE_BYTES]).unwrap();
        std::fs::create_dir(at("mnt")).unwrap();
        std::fs::create_dir(at("bin")).unwrap();
        script("bin/systemctl", "#!/bin/sh\necho \"$1\" > \"$(dirname \"$0\")/asked\"\n");
        std::fs::create_dir(at("state")).unwrap();
        key(dir.path(), "ours");
        key(dir.path(), "foreign");
        let root = dir.path().display();
        let system = format!(
            "[system]\ncompatible={COMPATIBLE}\nbootloader=custom\nmountprefix={root}/mnt\nstatusfile={root}/status\n\
             [handlers]\nbootloader-custom-backend={root}/boot\npre-install={root}/pre-install\npost-install={root}/post-install\n\
             [keyring]\npath={root}/ours.crt\n\
             [slot.rootfs.0]\ndevice={root}/slot-a\ntype=raw\nbootname=A\n[slot.rootfs.1]\ndevice={root}/slot-b\ntype=raw\nbootname=B\n"
        );
        std::fs::write(at("system.conf"), system).unwrap();
        let bus = format!(
            "<busconfig><type>system</type><listen>unix:path={root}/bus</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>\
             <allow own=\"*\"/></policy></busconfig>"
        );
        std::fs::write(at("bus.conf"), bus).unwrap();
        let bus = Command::new("dbus-daemon")
            .arg("--nofork")
            .arg(format!("--config-file={root}/bus.conf"))
            .spawn()
            .expect("dbus-daemon is needed (tests/run installs it)");
        wait_until("the bus listens", || at("bus").exists());
        let config = dir.path().join("ichd.toml");
        let mut machine = Machine { dir, bus, rauc: None, slot: "A", config };
        machine.configure("");
        machine.rauc_up();
        machine
    }

    /// With a daemon that runs beside it.
    fn beside(appliance: &Appliance) -> Self {
        let mut machine = Machine::boots_a();
        machine.config = appliance.config();
        let text = std::fs::read_to_string(&machine.config).unwrap();
        let update = format!("\n[update]\ndirectory = {:?}\n", machine.at("update"));
        std::fs::write(&machine.config, text + &update).unwrap();
        machine
    }

    /// As after a reboot, into the slot that the boot loader would take; the machine's own run goes on, so what was
    /// written in it is made to be of another.
    fn reboots(&mut self) -> &'static str {
        self.kill_rauc();
        self.slot = if self.read("primary") == "B" { "B" } else { "A" };
        std::fs::write(self.at("tried.").with_extension(self.slot), "").unwrap();
        let book = self.at("update/slots.json");
        if let Ok(text) = std::fs::read_to_string(&book) {
            std::fs::write(&book, text.replace(&ichd::clock::boot_id(), "another-run")).unwrap();
        }
        self.rauc_up();
        self.slot
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap().trim().to_owned()
    }

    fn configure(&self, update: &str) {
        let text = format!(
            "[site]\nname = \"north\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n[state]\ndirectory = {:?}\n[update]\ndirectory = {:?}\n{update}",
            self.at("state"),
            self.at("update")
        );
        std::fs::write(self.at("ichd.toml"), text).unwrap();
    }

    fn address(&self) -> String {
        format!("unix:path={}/bus", self.dir.path().display())
    }

    fn rauc_up(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.at("rauc.log")).unwrap();
        let rauc = Command::new("rauc")
            .arg("-c")
            .arg(self.at("system.conf"))
            .args(["service", &format!("--override-boot-slot={}", self.slot)])
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("rauc is needed (tests/run installs it)");
        self.rauc = Some(rauc);
        wait_until("RAUC answers", || self.ichd(&["status"]).status.success());
    }

    fn kill_rauc(&mut self) {
        let mut rauc = self.rauc.take().unwrap();
        rauc.kill().unwrap();
        rauc.wait().unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ichd"));
        command
            .arg("update")
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            // A `systemctl` that only says it was asked.
            .env("PATH", format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap()))
            .env("DBUS_SYSTEM_BUS_ADDRESS", self.address())
            .env_remove("STATE_DIRECTORY");
        command
    }

    fn ichd(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn status(&self) -> Value {
        serde_json::from_slice(&self.ichd(&["status", "--json"]).stdout).unwrap()
    }

    /// Judges the running slot; exit code and what was said.
    fn mark_good(&self, wait_s: &str, more: &[&str]) -> (i32, String) {
        let output = self.ichd(&[&["mark-good", "--wait-s", wait_s], more].concat());
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Installs; exit code and what was said on both streams.
    fn install(&self, bundle: &Path, more: &[&str]) -> (i32, String) {
        let mut arguments = vec!["install", "--json", bundle.to_str().unwrap()];
        arguments.extend(more);
        let output = self.ichd(&arguments);
        let words =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), words)
    }

    /// A signed bundle whose image is `fill` over and over.
    fn bundle(&self, version: &str, compatible: &str, signer: &str, fill: u8) -> PathBuf {
        let input = self.at("input");
        let _ = std::fs::remove_dir_all(&input);
        std::fs::create_dir(&input).unwrap();
        std::fs::write(input.join("rootfs.img"), vec![fill; IMAGE_BYTES]).unwrap();
        let manifest = format!(
            "[update]\ncompatible={compatible}\nversion={version}\n[image.rootfs]\nfilename=rootfs.img\n"
        );
        std::fs::write(input.join("manifest.raucm"), manifest).unwrap();
        let path = self.at(&format!("{signer}-{compatible}-{version}.raucb"));
        let _ = std::fs::remove_file(&path);
        let output = Command::new("rauc")
            .arg(format!("--cert={}", self.at(&format!("{signer}.crt")).display()))
            .arg(format!("--key={}", self.at(&format!("{signer}.key")).display()))
            .arg("bundle")
            .arg(&input)
            .arg(&path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    }

    fn slot_b_is(&self, fill: u8) -> bool {
        std::fs::read(self.at("slot-b")).unwrap().iter().all(|b| *b == fill)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in self.rauc.iter_mut().chain([&mut self.bus]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        // What a killed RAUC left mounted.
        let _ = Command::new("umount").arg(self.at("mnt/bundle")).stderr(Stdio::null()).status();
        if std::thread::panicking() {
            eprintln!("---- RAUC\n{}", std::fs::read_to_string(self.at("rauc.log")).unwrap_or_default());
        }
    }
}

fn key(dir: &Path, name: &str) {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"])
        .arg(format!("/O=ichd/CN={name}"))
        .arg("-keyout")
        .arg(dir.join(format!("{name}.key")))
        .arg("-out")
        .arg(dir.join(format!("{name}.crt")))
        .output()
        .expect("openssl is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_newer_signed_bundle_is_written_to_the_other_slot_and_boots_next() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let machine = Machine::boots_a();
    let before = machine.status();
    assert_eq!((&before["booted"], &before["reboot_pending"]), (&"A".into(), &false.into()), "{before}");
    // A stick with an older one, a foreign one and a newer one: the newer is found.
    let stick = machine.at("stick");
    std::fs::create_dir(&stick).unwrap();
    for bundle in [
        machine.bundle("0.0.1", COMPATIBLE, "ours", 1),
        machine.bundle("9.0.0", COMPATIBLE, "foreign", 2),
        machine.bundle("7.0.0", COMPATIBLE, "ours", 3),
    ] {
        std::fs::rename(&bundle, stick.join(bundle.file_name().unwrap())).unwrap();
    }
    let (code, words) = machine.install(&stick, &[]);
    assert_eq!(code, 0, "{words}");
    let events: Vec<Value> = words.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    assert_eq!(events[0]["version"], "7.0.0", "{words}");
    assert_eq!(events.last().unwrap()["event"], "installed", "{words}");
    assert!(machine.slot_b_is(3));
    let after = machine.status();
    assert_eq!((&after["booted"], &after["reboot_pending"]), (&"A".into(), &true.into()), "{after}");
    let slot_b = after["slots"].as_array().unwrap().iter().find(|s| s["bootname"] == "B").unwrap();
    assert_eq!(slot_b["version"], "7.0.0");
}

#[test]
fn a_foreign_truncated_incompatible_or_older_bundle_is_refused_and_nothing_is_written() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let machine = Machine::boots_a();
    let good = std::fs::read(machine.bundle("7.0.0", COMPATIBLE, "ours", 1)).unwrap();
    let truncated = machine.at("truncated.raucb");
    std::fs::write(&truncated, &good[..good.len() - 5000]).unwrap();
    let changed = machine.at("changed.raucb");
    let mut bytes = good;
    bytes[2000] ^= 1;
    std::fs::write(&changed, bytes).unwrap();
    let cases = [
        (machine.bundle("7.0.0", COMPATIBLE, "foreign", 1), "refused to read the bundle"),
        (truncated, "refused to read the bundle"),
        (changed, "refused to read the bundle"),
        (machine.bundle("7.0.0", "another-machine", "ours", 1), "incompatible"),
        (machine.bundle("0.0.1", COMPATIBLE, "ours", 1), "downgrade"),
        (machine.bundle(ichd::VERSION, COMPATIBLE, "ours", 1), "up_to_date"),
        (machine.bundle("newest", COMPATIBLE, "ours", 1), "version_unreadable"),
        (machine.at("absent.raucb"), "failed to use"),
    ];
    for (bundle, expected) in cases {
        // Not even where a person takes the responsibility for the time.
        let (code, words) = machine.install(&bundle, &["--now"]);
        assert!(code == 1 && words.contains(expected), "{}: {code} {words}", bundle.display());
    }
    assert!(machine.slot_b_is(0));
    assert_eq!(machine.read("primary"), "A");
    // A person may take an older one, knowingly.
    let (code, words) =
        machine.install(&machine.bundle("0.0.1", COMPATIBLE, "ours", 4), &["--allow-downgrade"]);
    assert_eq!((code, machine.slot_b_is(4)), (0, true), "{words}");
}

#[test]
fn an_update_waits_while_a_series_is_open_or_the_window_is_closed_and_says_why() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let machine = Machine::boots_a();
    let bundle = machine.bundle("7.0.0", COMPATIBLE, "ours", 1);
    let series = machine.at("state/spool/studies/1.2/1.2.3");
    std::fs::create_dir_all(&series).unwrap();
    let (code, words) = machine.install(&bundle, &[]);
    assert!(code == 75 && words.contains("study_open"), "{code} {words}");
    assert_eq!(machine.status()["holds"][0]["code"], "study_open");
    std::fs::remove_dir_all(machine.at("state/spool")).unwrap();
    // A window of one minute, twelve hours away.
    let hour = (ichd::clock::wall_ms() / 3_600_000 + 12) % 24;
    machine.configure(&format!("window-utc = \"{hour:02}:00-{hour:02}:01\"\nsource = {bundle:?}\n"));
    let (code, words) = machine.install(&bundle, &[]);
    assert!(code == 75 && words.contains("outside_window"), "{code} {words}");
    assert!(machine.slot_b_is(0));
    let output = machine.ichd(&["install", "--now"]);
    assert!(output.status.success() && machine.slot_b_is(1), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nobody_with_an_open_alert_is_cut_off_and_everybody_sees_what_an_update_does() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let appliance = Appliance::alerts_to(&broker);
    let machine = Machine::beside(&appliance);
    let bundle = machine.bundle("7.0.0", COMPATIBLE, "ours", 1);
    assert!(storescu(appliance.port, &Phantom::bleed().files, &[]).0);
    appliance.dispositions(1);
    let phases = |count: usize| -> Vec<Value> {
        let mut seen = Vec::new();
        while seen.len() < count {
            let update = listener.next("ichd.status/1")["update"].clone();
            if !update.is_null() && seen.last() != Some(&update) {
                seen.push(update);
            }
        }
        seen
    };
    let (code, words) = machine.install(&bundle, &[]);
    assert!(code == 75 && words.contains("alert_open"), "{code} {words}");
    let said = phases(1).remove(0);
    assert_eq!((&said["phase"], &said["version"]), (&"deferred".into(), &"7.0.0".into()));
    assert!(said["reasons"][0].as_str().unwrap().contains("alert"), "{said}");
    assert!(machine.slot_b_is(0));
    // Held in the middle, so that its progress can be seen by whoever looks.
    std::fs::write(machine.at("hold"), "").unwrap();
    let mut install = machine
        .command(&["install", "--now", bundle.to_str().unwrap()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let until = |phase: &str| {
        loop {
            let update = phases(1).remove(0);
            if update["phase"] == phase && (phase != "installing" || update["percent"].is_u64()) {
                return;
            }
        }
    };
    until("installing");
    std::fs::remove_file(machine.at("hold")).unwrap();
    until("installed");
    assert!(install.wait().unwrap().success() && machine.slot_b_is(1));
}

#[test]
fn killed_in_the_middle_the_old_slot_stays_and_the_next_attempt_succeeds() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let mut machine = Machine::boots_a();
    let bundle = machine.bundle("7.0.0", COMPATIBLE, "ours", 5);
    std::fs::write(machine.at("hold"), "").unwrap();
    // Once before a byte is written, once when all are.
    for handler in ["pre-install", "post-install"] {
        if handler == "post-install" {
            std::fs::write(machine.at("pre-install"), "#!/bin/sh\n").unwrap();
        }
        let mut install = machine
            .command(&["install", "--json", bundle.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(install.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().contains("bundle"));
        wait_until(handler, || machine.at(&format!("at.{handler}")).exists());
        machine.kill_rauc();
        let output = install.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && words.contains("install again"), "{words}");
        // What boots next is whole: the old slot before, the new one once every byte of it is there.
        let next = machine.read("primary");
        assert!(next == "A" || machine.slot_b_is(5), "{handler}: {next}");
        assert_eq!((machine.read("state.A").as_str(), next == "A"), ("good", handler == "pre-install"));
        let _ = Command::new("umount").arg(machine.at("mnt/bundle")).stderr(Stdio::null()).status();
        machine.rauc_up();
    }
    std::fs::remove_file(machine.at("hold")).unwrap();
    let (code, words) = machine.install(&bundle, &[]);
    assert_eq!((code, machine.slot_b_is(5), machine.read("primary").as_str()), (0, true, "B"), "{words}");
}

#[test]
fn a_slot_stays_only_after_proof_of_life_and_a_failed_one_is_left_aloud() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = Appliance::alerts_to(&broker);
    let mut machine = Machine::beside(&appliance);
    let mark =
        |machine: &Machine, more: &[&str]| machine.mark_good(if more.is_empty() { "60" } else { "0" }, more);
    // From the factory: nothing is proven, and nothing may be lost by a daemon that is not there.
    appliance.kill();
    let (code, words) = mark(&machine, &["--json"]);
    assert!(code == 75 && words.contains("no daemon answers"), "{code} {words}");
    assert_eq!((machine.read("primary"), machine.read("state.A")), ("A".into(), "good".into()));
    appliance.up();
    assert_eq!(mark(&machine, &[]).0, 0);
    assert_eq!(machine.status()["proven"], true);

    // A version that works: it is on trial, holds the next update back, and stays after its proof.
    let (code, words) = machine.install(&machine.bundle("7.0.0", COMPATIBLE, "ours", 1), &[]);
    assert_eq!(code, 0, "{words}");
    std::fs::write(machine.at("state.B"), "bad\n").unwrap();
    assert_eq!(machine.reboots(), "B");
    let (code, words) = machine.install(&machine.bundle("7.1.0", COMPATIBLE, "ours", 2), &[]);
    assert!(code == 75 && words.contains("on_trial"), "{code} {words}");
    let (code, words) = mark(&machine, &[]);
    assert_eq!((code, machine.read("state.B").as_str()), (0, "good"), "{words}");

    // One whose daemon does not come up: left for the slot that was proven, which says why.
    let broken = machine.bundle("8.0.0", COMPATIBLE, "ours", 3);
    assert_eq!(machine.install(&broken, &[]).0, 0);
    assert_eq!(machine.reboots(), "A");
    appliance.kill();
    let (code, words) = mark(&machine, &["--reboot"]);
    assert!(code == 1 && words.contains("no daemon answers"), "{code} {words}");
    assert_eq!(
        (machine.read("primary"), machine.read("state.A"), machine.read("bin/asked")),
        ("B".into(), "bad".into(), "reboot".into())
    );
    assert_eq!(machine.reboots(), "B");
    appliance.up();
    listener.drain();
    assert_eq!(mark(&machine, &[]).0, 0);
    let technical = loop {
        let alert = listener.next("ichd.alert/1");
        if alert["technical"]["code"] == "update_failed" {
            break alert;
        }
    };
    let text = technical["technical"]["text"].as_str().unwrap();
    assert!(text.contains("8.0.0") && text.contains("no daemon answers"), "{text}");
    let (code, words) = machine.install(&broken, &[]);
    assert!(code == 1 && words.contains("failed_before"), "{code} {words}");

    // One that is not even seen again: the boot loader gave up on it.
    let (code, words) = machine.install(&machine.bundle("8.0.1", COMPATIBLE, "ours", 4), &[]);
    assert_eq!(code, 0, "{words}");
    std::fs::write(machine.at("primary"), "B\n").unwrap();
    machine.reboots();
    assert_eq!(mark(&machine, &[]).0, 0);
    assert_eq!(machine.read("state.A"), "bad");
    let status = machine.status();
    assert_eq!((&status["failed"], &status["trial"]), (&"8.0.1".into(), &Value::Null), "{status}");
}

#[test]
fn a_proven_slot_is_kept_however_long_its_broker_is_away() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let mut broker = Mosquitto::start();
    let appliance = Appliance::alerts_to(&broker);
    let mut machine = Machine::beside(&appliance);
    assert_eq!(machine.mark_good("60", &[]).0, 0);
    // The next boot, and nobody to hear an alert.
    assert_eq!(machine.reboots(), "A");
    broker.down();
    assert_eq!(machine.status()["reboot_pending"], false, "that it is not marked is no order to leave it");
    let timer = machine.ichd(&["install", "--if-configured", "--reboot"]);
    assert_eq!((timer.status.code(), machine.at("bin/asked").exists()), (Some(0), false), "{timer:?}");
    let (code, words) = machine.mark_good("1", &[]);
    assert_eq!(code, 75, "{words}");
    assert!(!machine.at("tried.A").exists(), "its attempt was earned before");
    let status = machine.status();
    assert_eq!((&status["proven"], &status["reboot_pending"]), (&true.into(), &false.into()), "{status}");
    // While it asks, an update may be written: that may be what mends it.
    let mut asks = machine.command(&["mark-good", "--wait-s", "60"]).spawn().unwrap();
    wait_until("it asks", || asks.try_wait().unwrap().is_none());
    let (code, words) = machine.install(&machine.bundle("7.0.0", COMPATIBLE, "ours", 1), &["--now"]);
    let _ = (asks.kill(), asks.wait());
    assert_eq!(code, 0, "{words}");
}

#[test]
fn without_rauc_nothing_is_judged_and_that_has_an_exit_code_of_its_own() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let mut machine = Machine::boots_a();
    machine.kill_rauc();
    let (code, words) = machine.mark_good("0", &[]);
    assert_eq!(code, 69, "{words}");
}

#[test]
fn an_engineer_orders_a_version_over_mqtt_and_nobody_else_can() {
    if left_out() {
        return;
    }
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = Appliance::alerts_to(&broker);
    let machine = Machine::beside(&appliance);
    let sign = |key: &str, more: &[&str]| {
        std::fs::write(machine.at("order.key"), key.repeat(64)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
            .args(["update", "sign", "--key"])
            .arg(machine.at("order.key"))
            .args(more)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    std::fs::write(machine.at("order.pub"), sign("a", &["--public"])).unwrap();
    let stick = machine.at("stick");
    std::fs::create_dir(&stick).unwrap();
    for (version, fill) in [("7.0.0", 1), ("7.1.0", 2)] {
        let bundle = machine.bundle(version, COMPATIBLE, "ours", fill);
        std::fs::rename(&bundle, stick.join(bundle.file_name().unwrap())).unwrap();
    }
    let text = std::fs::read_to_string(&machine.config).unwrap()
        + &format!("source = {stick:?}\ncommand-keys = [{:?}]\n", machine.at("order.pub"))
        + "[alert.stations]\nbench = \"engineer\"\nward-3 = \"nurse\"\n";
    std::fs::write(&machine.config, text).unwrap();
    appliance.terminate();
    appliance.up();
    let n_sent = std::cell::Cell::new(0);
    let send = |station: &str, order: &str| {
        n_sent.set(n_sent.get() + 1);
        let id = format!("order-{:04}", n_sent.get());
        let command =
            serde_json::json!({"schema": "ichd.command/1", "action_id": id, "user": "Eve", "order": order});
        let sent = Command::new("mosquitto_pub")
            .args(["-V", "5", "-q", "1", "-p", &broker.port.to_string()])
            .args(["-t", &format!("ichd/1/north/sta/{station}/action/ct-1"), "-m", &command.to_string()])
            .status()
            .unwrap();
        assert!(sent.success());
        let reply = listener.next("ichd.reply/1");
        assert_eq!(reply["action_id"], id.as_str());
        format!("{} {}", reply["result"].as_str().unwrap(), reply["code"].as_str().unwrap())
    };
    let box_of = |device: &'static str| ["--site", "north", "--device", device, "--version", "7.0.0"];
    let order = sign("a", &box_of("ct-1"));
    assert_eq!(send("ward-3", &order), "refused not_allowed", "a nurse's station");
    assert_eq!(send("stranger", &order), "refused not_allowed", "a station that is not enrolled");
    assert_eq!(send("bench", &sign("b", &box_of("ct-1"))), "refused not_allowed", "another key");
    assert_eq!(send("bench", &sign("a", &box_of("ct-2"))), "refused bad_request", "another box");
    assert_eq!(send("bench", &order), "accepted ok");
    // The ordered version, not the newest one, and once.
    let output = machine.ichd(&["install", "--if-configured"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(machine.slot_b_is(1));
    assert_eq!(send("bench", &order), "accepted ok", "the box forgets nothing, the daemon need not know");
    assert!(machine.ichd(&["install", "--if-configured"]).status.success());
    assert!(machine.slot_b_is(2), "the old order is done; the source's newest was taken");
    // One that cannot be met: whoever gave it is told, on the wire and for good.
    assert_eq!(
        send("bench", &sign("a", &["--site", "north", "--device", "ct-1", "--version", "9.9.9"])),
        "accepted ok"
    );
    assert_eq!(machine.ichd(&["install", "--if-configured"]).status.code(), Some(1));
    let text = loop {
        let alert = listener.next("ichd.alert/1");
        if alert["technical"]["code"] == "update_failed" {
            break alert["technical"]["text"].as_str().unwrap().to_owned();
        }
    };
    assert!(text.contains("ordered") && text.contains("not_ordered"), "{text}");
}

#[test]
fn an_older_program_leaves_a_newer_database_alone_and_says_what_to_do() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let mut appliance = Appliance::alerts_to(&broker);
    appliance.terminate();
    let path = appliance.dir.path().join("ichd.db");
    let database = rusqlite::Connection::open(&path).unwrap();
    database
        .execute_batch("PRAGMA user_version = 900; UPDATE settings SET value = CAST('900' AS BLOB) WHERE key = 'readable_from'")
        .unwrap();
    drop(database);
    let before = std::fs::read(&path).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["run", "--config"])
        .arg(appliance.config())
        .env_remove("STATE_DIRECTORY")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{words}");
    assert!(
        words.contains("state.directory") && words.contains("900") && words.contains("newer slot"),
        "{words}"
    );
    assert!(std::fs::read(&path).unwrap() == before, "not a byte was changed");
}
