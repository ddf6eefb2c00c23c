//! The real daemon between a simulated scanner and a subscriber: from the last slice received to the alert.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ichd::clock;
use ichd_demo::broker;
use ichd_demo::scanner::Scanner;
use ichd_demo::subscriber::{self, Document};
use tokio::sync::mpsc;

use crate::whole::peak_rss_mb;
use crate::{Args, against, median, series};

const SLICES: usize = 36;
const PATIENCE: Duration = Duration::from_secs(60);

struct Appliance {
    child: Child,
    address: SocketAddr,
}

impl Appliance {
    fn start(args: &Args, dir: &std::path::Path, broker_port: u16) -> Result<Self, String> {
        let config = series::config(args, dir, broker_port)?;
        let mut child = Command::new(&args.ichd)
            .args(["run", "--config"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("failed to start `{}`: {e}", args.ichd.display()))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(|e| e.to_string())?;
        }
        let port = line.trim().rsplit(':').next().and_then(|p| p.parse().ok());
        let port: u16 = port.ok_or_else(|| format!("the daemon did not come up, it said `{line}`"))?;
        Ok(Appliance { child, address: SocketAddr::from(([127, 0, 0, 1], port)) })
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Milliseconds from the last slice's acknowledgement, negative before it.
struct Seen {
    first_alert: Option<f64>,
    final_alert: f64,
}

/// Both cadences.
pub async fn latency(args: &Args) -> Result<(), String> {
    println!("last slice received -> final alert at a subscriber, {SLICES} slices of 512 x 512");
    for (name, cadence, rounds) in [
        ("4 per s", Duration::from_millis(250), args.rounds.div_ceil(2)),
        ("burst", Duration::ZERO, args.rounds),
    ] {
        let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
        let broker = broker::start().await?;
        let mut documents = subscriber::start(broker.mqtt, clock::now);
        let appliance = Appliance::start(args, dir.path(), broker.mqtt.port())?;
        let scanner = Scanner {
            address: appliance.address,
            calling: "BENCH_CT".into(),
            called: "ICHD".into(),
            cadence,
        };
        let (mut all, mut told) = (Vec::new(), BTreeSet::new());
        for round in 0..=rounds {
            let seen = one(&scanner, round as u64 + 100, &mut documents, &mut told).await?;
            // The first study meets cold caches and an empty database; it is not counted.
            if round > 0 {
                all.push(seen);
            }
        }
        let last = median(all.iter().map(|s| s.final_alert).collect());
        let worst = all.iter().map(|s| s.final_alert).fold(0.0, f64::max);
        let first = median(all.iter().filter_map(|s| s.first_alert).collect());
        let early = all.iter().filter(|s| s.first_alert.is_some_and(|ms| ms < 0.0)).count();
        let goal = if cadence.is_zero() {
            String::new()
        } else {
            format!("; goal <= 150: {}", against(last, 150.0))
        };
        println!("  {name:<8} median {last:.0} ms, worst {worst:.0} ms{goal}");
        println!(
            "           first alert at {first:.0} ms, before the last slice in {early} of {}",
            all.len()
        );
        if let Some(mb) = peak_rss_mb(appliance.child.id()) {
            println!("           peak RSS of the daemon {mb:.0} MB");
        }
    }
    println!();
    Ok(())
}

/// One study; `told`: the alerts of those before it, which go on being escalated.
async fn one(
    scanner: &Scanner,
    uid_seed: u64,
    documents: &mut mpsc::Receiver<Document>,
    told: &mut BTreeSet<String>,
) -> Result<Seen, String> {
    let instances = series::bleed(SLICES, 5.0, uid_seed)?;
    let mut last_slice = clock::now();
    scanner.send(&instances, |_| last_slice = clock::now()).await.map_err(|e| e.to_string())?;
    let ms = |at: Instant| match at.checked_duration_since(last_slice) {
        Some(after) => after.as_secs_f64() * 1e3,
        None => -(last_slice - at).as_secs_f64() * 1e3,
    };
    let mut first_alert = None;
    let mut final_alert = None;
    let mut disposed = false;
    let mut its_alerts = BTreeSet::new();
    while final_alert.is_none() || !disposed {
        let document = tokio::time::timeout(PATIENCE, documents.recv()).await;
        let Ok(Some(document)) = document else { return Err("no final alert in time".into()) };
        match document.body["schema"].as_str() {
            Some("ichd.alert/1") if document.body["kind"] == "finding" => {
                let id = document.body["alert_id"].as_str().unwrap_or_default().to_owned();
                if told.contains(&id) {
                    continue;
                }
                its_alerts.insert(id);
                first_alert.get_or_insert(ms(document.at));
                if document.body["stage"] == "final" {
                    final_alert.get_or_insert(ms(document.at));
                }
            }
            Some("ichd.study/1") => disposed = true,
            _ => {}
        }
    }
    told.append(&mut its_alerts);
    Ok(Seen { first_alert, final_alert: final_alert.unwrap_or(f64::NAN) })
}
