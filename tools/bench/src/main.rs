//! `ichd-bench`: reading a whole series, the time from the last slice to the alert, and memory; each against a rival in
//! the same run, since the figures of another day or machine say little.
#![forbid(unsafe_code)]

mod appliance;
mod receive;
mod series;
mod whole;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Measures `ichd` against the same model in Python, pydicom and ONNX Runtime.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// What to measure; everything if absent.
    #[arg(value_parser = ["whole", "latency", "memory", "receive"])]
    what: Vec<String>,
    /// The program to measure; build it with `cargo build --release -p ichd`.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/release/ichd"))]
    ichd: PathBuf,
    /// Python with numpy, pydicom and onnxruntime.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/venv/bin/python"))]
    python: PathBuf,
    /// Model package; its keys lie beside it in `keys`.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/ichd-base"))]
    model: PathBuf,
    /// Threads for both.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder on the disk that receivers write to; the system's temporary folder if absent.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Receives into a folder and does nothing else: one of the things that are measured.
    #[arg(long, hide = true)]
    receiver: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |what: &str| args.what.is_empty() || args.what.iter().any(|w| w == what);
    let done = async {
        if let Some(folder) = &args.receiver {
            return receive::receiver(folder).await;
        }
        if wanted("whole") {
            whole::reading(&args)?;
        }
        if wanted("latency") {
            appliance::latency(&args).await?;
        }
        if wanted("memory") {
            whole::memory(&args)?;
        }
        if wanted("receive") {
            receive::receive(&args)?;
        }
        Ok::<(), String>(())
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("ichd-bench: {message}");
            ExitCode::from(1)
        }
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The other way round.
fn at_least(value: f64, goal: f64) -> &'static str {
    against(goal, value)
}

/// Whether a goal is met, for people.
fn against(value: f64, goal: f64) -> &'static str {
    if value <= goal { "met" } else { "NOT met" }
}
