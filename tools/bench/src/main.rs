//! `ichd-bench`: reading a whole series, the time from the last slice to the alert, and memory; each against a rival in
//! the same run, since the figures of another day or machine say little.
#![forbid(unsafe_code)]

mod appliance;
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
    #[arg(value_parser = ["whole", "latency", "memory"])]
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
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let wanted = |what: &str| args.what.is_empty() || args.what.iter().any(|w| w == what);
    let done = async {
        if wanted("whole") {
            whole::reading(&args)?;
        }
        if wanted("latency") {
            appliance::latency(&args).await?;
        }
        if wanted("memory") {
            whole::memory(&args)?;
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

/// Whether a goal is met, for people.
fn against(value: f64, goal: f64) -> &'static str {
    if value <= goal { "met" } else { "NOT met" }
}
