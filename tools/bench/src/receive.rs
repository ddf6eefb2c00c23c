//! Receiving: the same slices from the same sender (DCMTK's `storescu`) into ours and into its peers, in one run.
//!
//! Ours answers after each instance is synced; the others answer when it is written. So the disk's own price of a sync
//! is printed beside the figures: a sender waits for each answer, and no program can answer sooner. Two more figures say
//! what is the program and what the disk: `storescp` made to sync (`sync_on_close.c`), and all of it in memory
//! (`--disk /dev/shm`), where a sync costs nothing.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ichd::clock;
use ichd::config;
use ichd::dicom::AeTitle;
use ichd::health::Pulses;
use ichd::receive::{self, Doors, Events, RescanWanted};
use ichd::spool::{Spool, SpoolLimits};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};

use crate::whole::peak_rss_mb;
use crate::{Args, at_least, median, series};

const SLICES: usize = 300;
const CALLING: &str = "BENCH_CT";
const PATIENCE: Duration = Duration::from_secs(20);

/// Our receive stage and spool alone in this process, until it is killed; prints where it listens.
pub async fn receiver(dir: &Path) -> Result<(), String> {
    let words = |e: &dyn std::fmt::Display| e.to_string();
    let config = config::Receive {
        calling_ae_titles: vec![AeTitle::parse(CALLING).map_err(|e| words(&e))?],
        ..config::Receive::default()
    };
    let limits = SpoolLimits { free_bytes_min: 0, instance_bytes_max: config.instance_bytes_max };
    let spool = Arc::new(Spool::open(dir, limits).map_err(|e| words(&e))?);
    let plain = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.map_err(|e| words(&e))?;
    println!("{}", plain.local_addr().map_err(|e| words(&e))?);
    let (events, mut heard) = mpsc::channel(4096);
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
    let (_shutdown, watched) = watch::channel(false);
    let pulse = Pulses::new(clock::now()).register("receive");
    let events = Events::new(events, RescanWanted::default());
    let (auditor, _minutes) = ichd::evidence::auditor::new(false);
    let wiring = receive::Wiring { spool, commitments: None, events, auditor, pulse, shutdown: watched };
    receive::serve(Doors { plain, tls: None }, config, wiring).await;
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Peer {
    Ours,
    Storescp,
    StorescpFork,
    StorescpSynced,
    StorescpForkSynced,
    Orthanc,
    Pynetdicom,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Peer::Ours => "ichd, synced",
            Peer::Storescp => "storescp",
            Peer::StorescpFork => "storescp --fork",
            Peer::StorescpSynced => "storescp, synced",
            Peer::StorescpForkSynced => "--fork, synced",
            Peer::Orthanc => "Orthanc",
            Peer::Pynetdicom => "pynetdicom",
        }
    }

    /// DCMTK as Debian builds it leaves Nagle's algorithm on, on both sides; `nagle` says whether it may.
    fn start(self, args: &Args, dir: &Path, nagle: bool) -> Result<Receiver, String> {
        let mut port = free_port()?;
        let mut command = match self {
            Peer::Ours => {
                let mut command = Command::new(std::env::current_exe().map_err(|e| e.to_string())?);
                command.arg("--receiver").arg(dir).stdout(Stdio::piped());
                command
            }
            Peer::Storescp | Peer::StorescpFork | Peer::StorescpSynced | Peer::StorescpForkSynced => {
                let mut command = Command::new("storescp");
                let forks = matches!(self, Peer::StorescpFork | Peer::StorescpForkSynced);
                command.args(forks.then_some("--fork"));
                command.arg("-od").arg(dir).arg(port.to_string());
                if matches!(self, Peer::StorescpSynced | Peer::StorescpForkSynced) {
                    command.env("LD_PRELOAD", sync_on_close(dir)?);
                }
                command
            }
            Peer::Orthanc => {
                let file = dir.join("orthanc.json");
                let text = format!(
                    "{{\"StorageDirectory\": {dir:?}, \"IndexDirectory\": {dir:?}, \"HttpServerEnabled\": false, \
                     \"DicomPort\": {port}, \"DicomAet\": \"ICHD\", \"DicomAlwaysAllowStore\": true, \
                     \"DicomCheckCalledAet\": false}}"
                );
                std::fs::write(&file, text).map_err(|e| e.to_string())?;
                let mut command = Command::new("Orthanc");
                command.arg(file);
                command
            }
            Peer::Pynetdicom => {
                let mut command = Command::new(&args.python);
                command.args(["-m", "pynetdicom", "storescp", &port.to_string(), "-q", "-od"]).arg(dir);
                command
            }
        };
        command.envs((!nagle).then_some(("TCP_NODELAY", "1")));
        let spawned = command.stderr(Stdio::null()).stdin(Stdio::null());
        if self != Peer::Ours {
            spawned.stdout(Stdio::null());
        }
        let mut child = spawned.spawn().map_err(|e| format!("failed to start {}: {e}", self.name()))?;
        if let Some(stdout) = child.stdout.take() {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map_err(|e| e.to_string())?;
            port = line.trim().rsplit(':').next().and_then(|p| p.parse().ok()).ok_or("no port")?;
        }
        let receiver = Receiver { child, port };
        let since = clock::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if clock::now() - since > PATIENCE {
                return Err(format!("{} does not listen", self.name()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whatever it makes of a connection without a word.
        std::thread::sleep(Duration::from_millis(300));
        Ok(receiver)
    }
}

/// Compiles `sync_on_close.c`.
fn sync_on_close(dir: &Path) -> Result<PathBuf, String> {
    let path = dir.join("sync_on_close.so");
    let built = Command::new("gcc")
        .args(["-O1", "-shared", "-fPIC", "-o"])
        .arg(&path)
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/src/sync_on_close.c"), "-ldl"])
        .status();
    match built {
        Ok(status) if status.success() => Ok(path),
        other => Err(format!("gcc could not compile sync_on_close.c: {other:?}")),
    }
}

struct Receiver {
    child: Child,
    port: u16,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(|e| e.to_string())?;
    listener.local_addr().map(|a| a.port()).map_err(|e| e.to_string())
}

/// How the slices are sent.
#[derive(Clone, Copy)]
struct How {
    associations: usize,
    /// Nagle's algorithm left on, as it is in senders and receivers that nobody told otherwise.
    nagle: bool,
}

/// One sending: seconds, and the receiver's peak RSS, MB. What was received is left in `dir`: what is removed costs the
/// next one's syncs, which wait for the disk to be told (`discard`), and its new files (ext4 passes over young graves).
fn send(
    args: &Args,
    peer: Peer,
    how: How,
    files: &[PathBuf],
    n_bytes: u64,
    dir: &TempDir,
) -> Result<(f64, f64), String> {
    let receiver = peer.start(args, dir.path(), how.nagle)?;
    // What an earlier round left to be written is not this one's.
    let _ = Command::new("sync").status();
    let since = clock::now();
    let senders: Vec<Child> = files
        .chunks(files.len().div_ceil(how.associations))
        .map(|share| {
            let mut command = Command::new("storescu");
            command.args(["-aet", CALLING, "-aec", "ICHD", "127.0.0.1", &receiver.port.to_string()]);
            command.args(share).stdout(Stdio::null()).stderr(Stdio::null());
            command.envs((!how.nagle).then_some(("TCP_NODELAY", "1")));
            command.spawn().map_err(|e| format!("failed to start storescu: {e}"))
        })
        .collect::<Result<_, _>>()?;
    for mut sender in senders {
        let status = sender.wait().map_err(|e| e.to_string())?;
        if !status.success() {
            return Err(format!("{}: storescu says {status}", peer.name()));
        }
    }
    let seconds = (clock::now() - since).as_secs_f64();
    // storescu's exit status is 0 even where it was refused.
    let stored = bytes_in(dir.path());
    // File meta differ by a few bytes.
    if stored < n_bytes / 100 * 99 {
        return Err(format!("{} stored {stored} of {n_bytes} bytes", peer.name()));
    }
    Ok((seconds, peak_rss_mb(receiver.child.id()).unwrap_or(f64::NAN)))
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |e: std::fs::DirEntry| match e.metadata() {
        Ok(m) if m.is_dir() => bytes_in(&e.path()),
        Ok(m) => m.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
}

fn folder(args: &Args) -> Result<TempDir, String> {
    let made = match &args.disk {
        Some(disk) => tempfile::tempdir_in(disk),
        None => tempfile::tempdir(),
    };
    made.map_err(|e| format!("failed to make a folder: {e}"))
}

/// Milliseconds to write and sync half a megabyte in a new file, and to sync what is already written.
fn sync_ms(args: &Args) -> Result<(f64, f64), String> {
    let dir = folder(args)?;
    let (mut whole, mut again) = (Vec::new(), Vec::new());
    for i in 0..40 {
        let timed = || -> std::io::Result<(f64, f64)> {
            let since = clock::now();
            let mut file = std::fs::File::create(dir.path().join(i.to_string()))?;
            file.write_all(&vec![i as u8; 512 << 10])?;
            file.sync_data()?;
            let first = clock::now();
            file.sync_data()?;
            Ok(((first - since).as_secs_f64() * 1e3, (clock::now() - first).as_secs_f64() * 1e3))
        };
        let (one, two) = timed().map_err(|e| e.to_string())?;
        whole.push(one);
        again.push(two);
    }
    Ok((median(whole), median(again)))
}

/// All receivers, all ways.
pub fn receive(args: &Args) -> Result<(), String> {
    let folder = series::on_disk(&series::large(SLICES)?)?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder.path())
        .map_err(|e| e.to_string())?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    files.sort();
    let n_bytes = bytes_in(folder.path());
    println!("receiving {SLICES} slices of 512 x 512, {} MiB, from storescu", n_bytes >> 20);
    let (new, again) = sync_ms(args)?;
    println!("  this disk: half a megabyte written and synced in {new:.2} ms, an empty sync {again:.2} ms");
    let one = How { associations: 1, nagle: false };
    let four = How { associations: 4, nagle: false };
    let nagle = How { associations: 1, nagle: true };
    let peers = |how: How| match how {
        How { nagle: true, .. } => vec![Peer::Ours, Peer::Storescp],
        How { associations: 1, .. } => {
            vec![Peer::Ours, Peer::Storescp, Peer::StorescpSynced, Peer::Orthanc, Peer::Pynetdicom]
        }
        _ => vec![Peer::Ours, Peer::StorescpFork, Peer::StorescpForkSynced, Peer::Orthanc, Peer::Pynetdicom],
    };
    let mut peak_mb: f64 = 0.0;
    let mut kept = Vec::new();
    for (title, how, rounds, goals) in [
        ("one association", one, args.rounds, [(Peer::Storescp, 0.9), (Peer::Orthanc, 5.0)].as_slice()),
        ("four associations", four, args.rounds, &[(Peer::StorescpFork, 0.9)]),
        ("one association, Nagle left on", nagle, 1, &[(Peer::Storescp, 3.0)]),
    ] {
        println!("  {title}");
        let peers = peers(how);
        let mut seconds = vec![Vec::new(); peers.len()];
        for _ in 0..rounds {
            for (peer, seconds) in peers.iter().zip(&mut seconds) {
                let dir = self::folder(args)?;
                let (s, mb) = send(args, *peer, how, &files, n_bytes, &dir)?;
                kept.push(dir);
                seconds.push(s);
                if *peer == Peer::Ours {
                    peak_mb = peak_mb.max(mb);
                }
            }
        }
        let own = median(seconds[0].clone());
        for (peer, seconds) in peers.iter().zip(seconds) {
            let s = median(seconds);
            let goal = goals.iter().find(|(rival, _)| rival == peer);
            let goal = goal.map_or(String::new(), |(_, goal)| {
                format!(", goal >= {goal:.1}: {}", at_least(s / own, *goal))
            });
            let ratio = match peer {
                Peer::Ours => String::new(),
                _ => format!("; ichd {:.2} times as fast{goal}", s / own),
            };
            println!("    {:<16} {:6.0} images/s{ratio}", peer.name(), SLICES as f64 / s);
        }
    }
    println!("  peak RSS of receiving alone {peak_mb:.0} MB; goal <= 32: {}", crate::against(peak_mb, 32.0));
    println!();
    Ok(())
}
