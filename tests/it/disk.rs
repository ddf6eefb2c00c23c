//! Disks that lie, hang, fail and fill up: what was acknowledged is there, what was not is refused aloud, and when the
//! disk is well again so is the appliance.
//!
//! `powercut.c`, loaded into the daemon, is a disk that keeps what was synced and nothing else. `ICHD_POWER_CUTS` makes
//! the test longer than CI's.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use ichd_phantom::Bleed;

use crate::peers::{Appliance, Listener, Mosquitto, Phantom, alone, repository, storescu, wait_until};

/// The compiled `powercut.c`.
fn shim() -> &'static Path {
    static SHIM: OnceLock<(PathBuf, tempfile::TempDir)> = OnceLock::new();
    let (path, _dir) = SHIM.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("powercut.so");
        let built = Command::new("gcc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(&path)
            .arg(repository().join("tests/it/powercut.c"))
            .arg("-ldl")
            .status()
            .expect("gcc is needed");
        assert!(built.success());
        (path, dir)
    });
    path
}

/// What of a folder is durable, as `powercut.c` kept it.
struct Kept(PathBuf);

impl Kept {
    /// Name of a file or folder in the listing that is durable of a folder.
    fn listing(&self, folder: &str) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.0.join(folder)).unwrap_or_default();
        text.lines().filter_map(|l| l.split_once(' ')).map(|(id, name)| (id.into(), name.into())).collect()
    }

    /// The tree as the next start finds it.
    fn rebuild(&self, folder: &str, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for (id, name) in self.listing(folder) {
            match id.starts_with('d') {
                true => self.rebuild(&id, &to.join(name)),
                // A name without a sync of its file: nothing in it is promised.
                false => {
                    let bytes = std::fs::read(self.0.join(id)).unwrap_or_default();
                    std::fs::write(to.join(name), bytes).unwrap();
                }
            }
        }
    }
}

/// Inode and birth of a folder, as `powercut.c` writes them.
fn identity(folder: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(folder).unwrap();
    let born = metadata.created().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("d-{}-{}.{:09}", metadata.ino(), born.as_secs(), born.subsec_nanos())
}

/// Kills the daemon and takes from its state directory all that was not synced.
fn cut_power(appliance: &mut Appliance, kept: &Kept) {
    appliance.kill();
    let (state, old) = (appliance.state(), appliance.dir.path().join("before"));
    std::fs::rename(&state, &old).unwrap();
    kept.rebuild(&identity(&old), &state);
    std::fs::remove_dir_all(&old).unwrap();
    std::fs::remove_dir_all(&kept.0).unwrap();
    std::fs::create_dir(&kept.0).unwrap();
}

/// A state directory of its own on the disk that the shim plays.
fn on_a_disk(broker: &Mosquitto) -> Appliance {
    let mut appliance = Appliance::off(broker);
    appliance.use_own_state();
    appliance.env.push(("LD_PRELOAD", shim().to_owned()));
    appliance.env.push(("ICHD_DISK", appliance.state()));
    appliance
}

#[test]
fn a_disk_that_keeps_only_what_was_synced_loses_nothing_acknowledged() {
    let _alone = alone();
    let cuts: usize = std::env::var("ICHD_POWER_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = on_a_disk(&broker);
    let kept = Kept(appliance.dir.path().join("kept"));
    std::fs::create_dir(&kept.0).unwrap();
    appliance.env.push(("ICHD_DISK_KEPT", kept.0.clone()));
    appliance.up();
    let files = &Phantom::bleed().files;
    let pixels: HashMap<&PathBuf, Vec<f32>> = files.iter().map(|f| (f, hounsfield(f))).collect();
    let mut acknowledged: BTreeSet<&PathBuf> = BTreeSet::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut dice = move |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    for cut in 0..cuts {
        let start = (dice(files.len() as u64) as usize).min(files.len() - 8);
        let next = &files[start..start + 8];
        let (port, sent) = (appliance.port, next.to_vec());
        // All over one association; of those, as many as it had success for are safe.
        let sender = std::thread::spawn(move || storescu(port, &sent, &[]).1);
        std::thread::sleep(Duration::from_micros(dice(400_000)));
        cut_power_after(&mut appliance, &kept, sender, next, &mut acknowledged);
        for file in &acknowledged {
            let stored = appliance.stored_or_arriving(file);
            assert!(stored.is_some(), "cut {cut}: {} was acknowledged and is gone", file.display());
            assert_eq!(hounsfield(&stored.unwrap()), pixels[*file], "cut {cut}");
        }
        appliance.up();
        // The start moved on what lay under its first name.
        assert!(acknowledged.iter().all(|f| appliance.holds(f)), "cut {cut}");
    }
    assert!(
        !acknowledged.is_empty() && appliance.log().contains("recovered"),
        "the disk lost nothing at all"
    );
    for share in files.chunks(7) {
        assert!(storescu(appliance.port, share, &[]).0);
    }
    let mut alerts: BTreeSet<String> = BTreeSet::new();
    let study = loop {
        let body = listener.next_of(&["ichd.alert/1", "ichd.study/1"]);
        if body["schema"] == "ichd.alert/1" {
            // That nobody listens, which is so here, is trouble of the box and no second alarm.
            if body["kind"] == "finding" {
                alerts.insert(body["alert_id"].as_str().unwrap().to_owned());
            }
        } else if body["instances"] == 30 {
            break body;
        }
    };
    assert!(alerts.len() <= 1, "one study, one alarm: {alerts:?}");
    // In a long test power goes twice while all of it is being read: then it is not read a third time, and says so.
    match study["reason"].as_str() {
        Some("crashed") if cuts > 10 => assert_eq!(study["disposition"], "not_analysed"),
        _ => assert_eq!((&study["disposition"], alerts.len()), (&"suspected".into(), 1), "{study}"),
    }
}

/// Power goes while a sender is at it; what it had success for is noted.
fn cut_power_after<'a>(
    appliance: &mut Appliance,
    kept: &Kept,
    sender: std::thread::JoinHandle<String>,
    sent: &'a [PathBuf],
    acknowledged: &mut BTreeSet<&'a PathBuf>,
) {
    cut_power(appliance, kept);
    let words = sender.join().unwrap();
    let n = words.matches("Received Store Response (Success)").count();
    acknowledged.extend(&sent[..n]);
}

fn hounsfield(file: &Path) -> Vec<f32> {
    let header = ichd::dicom::SliceHeader::read(file).unwrap();
    ichd::infer::hounsfield::decode(file, &header).unwrap().hu
}

#[test]
fn a_disk_that_hangs_holds_up_its_own_sender_and_nobody_else() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = on_a_disk(&broker);
    let held = appliance.dir.path().join("held");
    appliance.env.push(("ICHD_DISK_HELD", held.clone()));
    appliance.up();
    std::fs::write(&held, "").unwrap();
    let port = appliance.port;
    // More senders than the machine has cores.
    let senders: Vec<_> = Phantom::quiet().files[..6]
        .iter()
        .map(|file| {
            let file = file.clone();
            std::thread::spawn(move || storescu(port, &[file], &["-td", "60"]))
        })
        .collect();
    wait_until("six instances wait for the disk", || appliance.arriving() == 6);
    // Others are served, and the box says that it lives.
    listener.drain();
    for _ in 0..3 {
        let mut echo = Command::new("echoscu");
        echo.args(["-aet", "CT1", "-aec", "ICHD", "127.0.0.1", &port.to_string()]);
        assert!(echo.status().expect("dcmtk is needed").success());
    }
    listener.next("ichd.heartbeat/1");
    assert!(senders.iter().all(|s| !s.is_finished()), "nobody is thanked before the sync");
    assert_eq!((appliance.stored(), appliance.arriving()), (0, 6));
    std::fs::remove_file(&held).unwrap();
    for sender in senders {
        let (ok, words) = sender.join().unwrap();
        assert!(ok, "{words}");
    }
    assert_eq!(appliance.stored(), 6);
}

/// Every write fails, the database's too; then the disk is well again.
fn check_failing(errno: i32) {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = on_a_disk(&broker);
    let fails = appliance.dir.path().join("fails");
    appliance.env.push(("ICHD_DISK_FAILS", fails.clone()));
    appliance.up();
    let files = &Phantom::bleed().files;
    let (before, after) = files.split_at(18);
    assert!(storescu(appliance.port, before, &[]).0);
    std::fs::write(&fails, errno.to_string()).unwrap();
    for file in &after[..3] {
        let (ok, words) = storescu(appliance.port, std::slice::from_ref(file), &[]);
        assert!(!ok && words.contains("Refused: OutOfResources"), "{words}");
    }
    // Long enough for the incomplete series to be read and its verdict not to be written down.
    wait_until("the ledger says that it cannot write", || appliance.log().contains("ledger"));
    let fails_now = || listener.next("ichd.status/1")["reasons"].to_string().contains("ledger_failed");
    while !fails_now() {}
    std::fs::remove_file(&fails).unwrap();
    while fails_now() {}
    assert!(storescu(appliance.port, files, &[]).0, "the disk is well again");
    loop {
        let study = listener.next("ichd.study/1");
        if study["instances"] == 30 {
            assert_eq!(study["disposition"], "suspected");
            break;
        }
    }
    assert_eq!(appliance.stored(), 30);
    assert!(!appliance.log().contains("panicked"), "{}", appliance.log());
}

#[test]
fn a_read_only_disk_is_refused_aloud_and_forgiven() {
    check_failing(30);
}

#[test]
fn a_full_disk_that_takes_the_database_with_it_is_refused_aloud_and_forgiven() {
    check_failing(28);
}

#[test]
fn a_broken_disk_is_refused_aloud_and_forgiven() {
    check_failing(5);
}

/// A state directory on a small file system of its own.
fn on_a_file_system_of(size: &str, broker: &Mosquitto) -> Appliance {
    let mut appliance = Appliance::off(broker);
    appliance.use_own_state();
    let script = format!("mount -t tmpfs -o size={size} none \"$1\" && shift && exec \"$@\"");
    let state = appliance.state().display().to_string();
    appliance.started_by = ["unshare", "--map-root-user", "--mount", "sh", "-c", &script, "sh", &state]
        .map(str::to_owned)
        .into();
    appliance
}

/// Where its state is seen from here once it runs.
fn inside(appliance: &Appliance) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root{}", appliance.pid(), appliance.state().display()))
}

/// A real file system that is really full, in the middle of an instance.
#[test]
fn a_full_file_system_keeps_what_it_acknowledged_and_takes_the_rest_once_there_is_room() {
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = on_a_file_system_of("2500k", &broker);
    appliance.up();
    let (state, inside) = (appliance.state(), inside(&appliance));
    let files = &Phantom::bleed().files;
    let mut acknowledged = Vec::new();
    for file in files {
        let (ok, words) = storescu(appliance.port, std::slice::from_ref(file), &[]);
        assert!(ok || words.contains("Refused: OutOfResources"), "{words}");
        acknowledged.extend(ok.then_some(file));
    }
    assert!((1..30).contains(&acknowledged.len()), "{} acknowledged", acknowledged.len());
    for file in acknowledged {
        let stored = inside.join(Appliance::place(file));
        assert_eq!(hounsfield(&stored), hounsfield(file));
    }
    let grown = Command::new("nsenter")
        .args(["-t", &appliance.pid().to_string(), "-U", "-m", "--preserve-credentials"])
        .args(["mount", "-o", "remount,size=64m"])
        .arg(&state)
        .status()
        .expect("nsenter is needed");
    assert!(grown.success());
    assert!(storescu(appliance.port, files, &[]).0, "there is room");
    loop {
        let study = listener.next("ichd.study/1");
        if study["instances"] == 30 {
            assert_eq!(study["disposition"], "suspected");
            break;
        }
    }
    assert!(!appliance.log().contains("panicked"), "{}", appliance.log());
}

#[test]
fn a_disk_that_fills_up_loses_the_oldest_closed_series_and_no_open_one() {
    const TARGET_BYTES: u64 = 8_000_000;
    let _alone = alone();
    let broker = Mosquitto::start();
    let listener = Listener::on(&broker);
    let mut appliance = on_a_file_system_of("64m", &broker);
    let table = format!("[spool]\nkeep-days = 0\nkeep-hours-min = 0\nfree-bytes-target = {TARGET_BYTES}\n");
    let text = std::fs::read_to_string(appliance.config()).unwrap() + &table;
    std::fs::write(appliance.config(), text).unwrap();
    appliance.up();
    let inside = inside(&appliance);
    let held = |phantom: &Phantom| {
        phantom.files.iter().filter(|f| inside.join(Appliance::place(f)).exists()).count()
    };
    // The oldest has an alert that nobody has taken.
    let (open, oldest, newest) = (Phantom::bleed(), Phantom::quiet(), &Phantom::make(13, Bleed::None));
    for phantom in [open, oldest, newest] {
        assert!(storescu(appliance.port, &phantom.files, &[]).0);
        while listener.next("ichd.study/1")["instances"] != 30 {}
    }
    assert_eq!([open, oldest, newest].map(held), [30; 3]);
    // Two megabytes less than there should be; each series has four.
    let free = ichd::spool::free_bytes(&inside).unwrap();
    std::fs::write(inside.join("filler"), vec![1; (free - TARGET_BYTES + 2_000_000) as usize]).unwrap();
    wait_until("there is room again", || ichd::spool::free_bytes(&inside).unwrap() >= TARGET_BYTES);
    wait_until("it is said", || appliance.log().contains("event=series_purged reason=space"));
    assert_eq!([open, oldest, newest].map(held), [30, 0, 30]);
    assert_eq!(appliance.log().matches("event=series_purged").count(), 1, "{}", appliance.log());
    // What was purged may come again.
    assert!(storescu(appliance.port, &oldest.files[..8], &[]).0);
    assert_eq!(held(oldest), 8);
}
