//! A whole series from files to verdict, and the memory that takes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::{Args, against, median, series};

const STAGES: [&str; 4] = ["decode", "preprocess", "base", "sequence"];

/// One reading by `ichd analyze`, and the most memory it held, MB.
fn ours(args: &Args, folder: &Path) -> Result<(Value, f64), String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    let config = series::config(args, dir.path(), 1)?;
    let mut child = Command::new(&args.ichd)
        .args(["analyze", "--json", "--config"])
        .arg(&config)
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("failed to start `{}`: {e}", args.ichd.display()))?;
    let mut peak_mb = 0.0;
    while child.try_wait().map_err(|e| e.to_string())?.is_none() {
        peak_mb = peak_rss_mb(child.id()).unwrap_or(peak_mb);
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().map_err(|e| e.to_string())?;
    let line = String::from_utf8_lossy(&output.stdout);
    let json: Value = serde_json::from_str(line.trim()).map_err(|e| format!("analyze said `{line}`: {e}"))?;
    if json["disposition"] != "suspected" {
        return Err(format!("the bleed was not suspected: {line}"));
    }
    Ok((json, peak_mb))
}

/// Several readings by the rival in one process.
fn theirs(args: &Args, folder: &Path, rounds: usize) -> Result<Vec<Value>, String> {
    let output = Command::new(&args.python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/rival.py"))
        .arg(&args.model)
        .args([args.threads.to_string(), rounds.to_string()])
        .arg(folder)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("failed to start `{}`: {e}", args.python.display()))?;
    let lines = String::from_utf8_lossy(&output.stdout);
    lines.lines().map(|l| serde_json::from_str(l).map_err(|e| format!("the rival said `{l}`: {e}"))).collect()
}

/// `VmHWM` of a process.
pub fn peak_rss_mb(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// Time of a whole series, ours by the rival's.
pub fn reading(args: &Args) -> Result<(), String> {
    let slices = 36;
    let folder = series::on_disk(&series::bleed(slices, 5.0, 1)?)?;
    let (mut own, mut rival) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        own.push(ours(args, folder.path())?.0);
        // The first reading of a process warms up; the second counts.
        rival.extend(theirs(args, folder.path(), 2)?.pop());
    }
    let of = |all: &[Value], path: &dyn Fn(&Value) -> f64| median(all.iter().map(path).collect());
    println!(
        "whole series: {slices} slices of 512 x 512, {} threads each, median of {}",
        args.threads, args.rounds
    );
    println!("  {:<30}{:>10}{:>10}", "ms", "ichd", "rival");
    let files = of(&own, &|v| number(&v["startup_ms"]["files"]));
    println!("  {:<30}{files:>10.0}{:>10}", "headers and hashes", "");
    for stage in STAGES {
        let (a, b) = (of(&own, &|v| number(&v["ms"][stage])), of(&rival, &|v| number(&v["ms"][stage])));
        let summed =
            if stage == "sequence" { stage.to_owned() } else { format!("{stage} (summed over threads)") };
        println!("  {summed:<30}{a:>10.0}{b:>10.0}");
    }
    let total = files + of(&own, &|v| number(&v["ms"]["total"]));
    let rival_total = of(&rival, &|v| number(&v["ms"]["total"]));
    println!("  {:<30}{total:>10.0}{rival_total:>10.0}", "total, model loaded");
    let ratio = total / rival_total;
    println!("  ratio {ratio:.2}, goal <= 1.0: {}", against(ratio, 1.0));
    let load = of(&own, &|v| number(&v["startup_ms"]["model"]));
    println!(
        "  model load {load:.0} ms (golden series included), rival {:.0} ms (imports included); goal <= 1000: {}",
        of(&rival, &|v| number(&v["load_ms"])),
        against(load, 1000.0)
    );
    let differ = (number(&own[0]["scores"]["any"]) - number(&rival[0]["any"])).abs();
    println!("  both read the same: any differs by {differ:.1e}\n");
    if differ > 1e-3 { Err("the rival read something else".into()) } else { Ok(()) }
}

/// Most memory of a reading.
pub fn memory(args: &Args) -> Result<(), String> {
    println!("memory, peak RSS");
    for (slices, step_mm, goal_mb) in [(40, 4.0, 250.0), (300, 0.6, 400.0)] {
        let folder = series::on_disk(&series::bleed(slices, step_mm, 2)?)?;
        let (_, own_mb) = ours(args, folder.path())?;
        let rival = theirs(args, folder.path(), 1)?;
        let rival_mb = rival.first().map_or(f64::NAN, |v| number(&v["peak_rss_mb"]));
        println!(
            "  {slices} slices: ichd {own_mb:.0} MB, rival {rival_mb:.0} MB, ratio {:.2}; goal <= {goal_mb:.0}: {}",
            own_mb / rival_mb,
            against(own_mb, goal_mb)
        );
    }
    println!();
    Ok(())
}
