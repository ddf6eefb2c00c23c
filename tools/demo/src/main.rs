//! `ichd-demo`: one quiet head and one bleed over real DICOM, and what a subscriber sees of them.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use ichd::config::Config;
use ichd::{clock, daemon};
use ichd_demo::broker::{self, Broker};
use ichd_demo::scanner::Scanner;
use ichd_demo::subscriber;
use ichd_phantom::{Bleed, Instance, SeriesOptions, Side};
use subscriber::Document;
use tokio::sync::{mpsc, oneshot, watch};

/// Shows the whole chain on this machine: simulated scanner -> ichd -> embedded broker -> subscriber.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Leave everything running afterwards.
    #[arg(long)]
    keep: bool,
    /// Milliseconds between two slices.
    #[arg(long, default_value_t = 100)]
    cadence_ms: u64,
    /// Model package.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/ichd-base"))]
    model: PathBuf,
    /// Seed of the phantom heads.
    #[arg(long, default_value_t = 11)]
    seed: u64,
}

/// Long enough for the slowest box to answer.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    match demo(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(message) => {
            eprintln!("ichd-demo: {message}");
            ExitCode::from(70)
        }
    }
}

async fn demo(args: Args) -> Result<bool, String> {
    println!(
        "ichd {} demo: notifications of suspected findings, not diagnoses; not a medical device.",
        ichd::VERSION
    );
    println!("The shipped weights were trained on a small open data set and painted bleeds.\n");
    let quiet = scan("a quiet head", args.seed, Bleed::None)?;
    let side = Side::Left;
    let bleed =
        scan("a head with a bleed", args.seed + 1, Bleed::Intraparenchymal { side, volume_ml: 45.0 })?;

    let state = tempfile::tempdir().map_err(|e| e.to_string())?;
    let broker = broker::start().await?;
    let mut documents = subscriber::start(broker.mqtt, clock::now);
    let config = config(state.path(), broker, &args.model)?;
    let (ready_tx, ready) = oneshot::channel();
    let (stop, stopped) = watch::channel(false);
    let daemon = tokio::spawn(daemon::run(config, ready_tx, stopped));
    let addresses = match ready.await {
        Ok(addresses) => addresses,
        Err(_) => {
            let result = daemon.await.map_err(|e| e.to_string())?;
            return Err(result.err().map_or_else(|| "the daemon ended".into(), |e| ichd::chain(&e)));
        }
    };
    println!("daemon   DICOM ICHD@{}    broker   MQTT {}", addresses.dicom, broker.mqtt);
    if let Some(page) = addresses.station.filter(|_| args.keep) {
        println!("page     http://{page}    any station name, then start a shift");
    }
    println!();

    let scanner = Scanner {
        address: addresses.dicom,
        calling: "DEMO_CT".into(),
        called: "ICHD".into(),
        cadence: Duration::from_millis(args.cadence_ms),
    };
    let quiet_ok = show("quiet head", &scanner, &quiet, &mut documents).await?;
    let bleed_ok = show("bleed", &scanner, &bleed, &mut documents).await?;
    let ok = quiet_ok.alerts.is_empty()
        && quiet_ok.disposition == "not_suspected"
        && bleed_ok.alerts.len() == 1
        && bleed_ok.disposition == "suspected"
        && quiet_ok.study != bleed_ok.study;
    println!(
        "{}",
        if ok { "The bleed raised one alert; the quiet head raised none." } else { "NOT as expected." }
    );
    if args.keep {
        println!(
            "\nStill up. Send your own:  storescu -aet DEMO_CT -aec ICHD {} {} FILE...",
            addresses.dicom.ip(),
            addresses.dicom.port()
        );
        println!(
            "Listen:                   mosquitto_sub -V 5 -p {} -t 'ichd/1/#' -v      (Ctrl-C ends)",
            broker.mqtt.port()
        );
        let _ = tokio::signal::ctrl_c().await;
    }
    let _ = stop.send(true);
    let _ = daemon.await;
    Ok(ok)
}

fn scan(what: &str, seed: u64, bleed: Bleed) -> Result<Vec<Instance>, String> {
    print!("making   {what} ...");
    let _ = std::io::stdout().flush();
    let mut options = SeriesOptions::default();
    options.scan.matrix = 256;
    options.scan.slices = 30;
    let series = ichd_phantom::study(seed, bleed, &options).map_err(|e| e.to_string())?;
    println!(" {} slices", series.len());
    Ok(series)
}

fn config(state: &Path, broker: Broker, model: &Path) -> Result<Config, String> {
    let keys: Vec<PathBuf> = std::fs::read_dir(model.with_file_name("keys"))
        .map_err(|e| format!("no public keys beside `{}`: {e}", model.display()))?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "pub"))
        .collect();
    let text = format!(
        "[site]\nname = \"demo\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n[state]\ndirectory = {state:?}\n\
         [receive]\nlisten = \"127.0.0.1:0\"\ncalling-ae-titles = [\"DEMO_CT\"]\nfree-bytes-min = 0\n\
         [infer]\nmodel = {model:?}\ntrusted-keys = {keys:?}\n\
         [proof]\ninterval-s = 0\n[alert]\nbroker-host = \"127.0.0.1\"\nbroker-port = {}\n\
         [station]\nlisten = \"127.0.0.1:0\"\nbroker-url = \"ws://{}/mqtt\"\n",
        broker.mqtt.port(),
        broker.websockets
    );
    Config::parse(&text)
}

/// What a subscriber saw of one study.
#[derive(Default)]
struct Seen {
    /// Keyed hash of the study, as its disposition names it.
    study: String,
    /// Identities of the alerts of this study.
    alerts: BTreeSet<String>,
    disposition: String,
}

/// Sends one series and prints what happens, in milliseconds from the last slice (negative: before it).
async fn show(
    name: &str,
    scanner: &Scanner,
    series: &[Instance],
    documents: &mut mpsc::Receiver<Document>,
) -> Result<Seen, String> {
    print!("{name}: sending {} slices ", series.len());
    let mut last_slice = clock::now();
    let sent = scanner
        .send(series, |_| {
            print!(".");
            let _ = std::io::stdout().flush();
            last_slice = clock::now();
        })
        .await;
    println!();
    sent.map_err(|e| e.to_string())?;
    let mut seen = Seen::default();
    println!("  {:>8}  last slice stored", "0 ms");
    let deadline = last_slice + PATIENCE;
    // After the disposition, wait a little for an alert revision that may still be on its way.
    let mut until = deadline;
    while let Ok(Some(document)) =
        tokio::time::timeout(until.saturating_duration_since(clock::now()), documents.recv()).await
    {
        let body = &document.body;
        let at = offset(document.at, last_slice);
        match body["schema"].as_str() {
            Some("ichd.alert/1") if body["kind"] == "finding" => {
                let study = body["study"]["study_ref"].as_str().unwrap_or("").to_owned();
                if !seen.study.is_empty() && seen.study != study {
                    return Err("an alert came that is of another study".into());
                }
                seen.study = study;
                seen.alerts.insert(body["alert_id"].as_str().unwrap_or("").to_owned());
                println!(
                    "  {at:>8}  ALERT {} rev {}: {}",
                    body["subject"]["ref"].as_str().unwrap_or(""),
                    body["rev"],
                    headline(body)
                );
            }
            Some("ichd.study/1") => {
                let study = body["study_ref"].as_str().unwrap_or("");
                if !seen.alerts.is_empty() && seen.study != study {
                    return Err("the disposition is of another study than the alert".into());
                }
                seen.study = study.to_owned();
                seen.disposition = body["disposition"].as_str().unwrap_or("").to_owned();
                println!(
                    "  {at:>8}  disposition {}{}",
                    seen.disposition,
                    body["reason"].as_str().map_or(String::new(), |r| format!(" ({r})"))
                );
                until = clock::now() + Duration::from_millis(700);
            }
            _ => {}
        }
    }
    println!();
    Ok(seen)
}

fn offset(at: Instant, zero: Instant) -> String {
    match at.checked_duration_since(zero) {
        Some(after) => format!("{} ms", after.as_millis()),
        None => format!("-{} ms", zero.duration_since(at).as_millis()),
    }
}

fn headline(alert: &serde_json::Value) -> String {
    let finding = &alert["finding"];
    let list = |v: &serde_json::Value| {
        v.as_array()
            .map_or(String::new(), |a| a.iter().filter_map(|s| s.as_str()).collect::<Vec<_>>().join(", "))
    };
    let any = finding["p"]["any"].as_f64().unwrap_or(0.0);
    // People count slices from 1.
    let place = |n: usize| finding["slice_range"].get(n).and_then(|v| v.as_u64()).map(|v| v + 1);
    let range = match (place(0), place(1)) {
        (Some(first), Some(last)) => format!(", slices {first}-{last}"),
        _ => String::new(),
    };
    let volume = finding["volume_ml"].as_f64().map_or(String::new(), |v| format!(", about {v:.0} mL"));
    format!(
        "{} {}, suspected {} {}{range}{volume} (any {any:.2})",
        alert["stage"].as_str().unwrap_or(""),
        alert["state"].as_str().unwrap_or(""),
        list(&finding["subtypes"]),
        finding["side"].as_str().unwrap_or("")
    )
}
