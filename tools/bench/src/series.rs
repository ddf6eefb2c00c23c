//! Phantom series on disk, and the configuration with which `ichd` reads them.

use std::path::{Path, PathBuf};

use ichd_phantom::{Bleed, Instance, SeriesOptions, Side};
use tempfile::TempDir;

use crate::Args;

/// A bleed that the model sees, in 512 x 512 slices as scanners make them. Each `uid_seed` is another study.
pub fn bleed(slices: usize, step_mm: f32, uid_seed: u64) -> Result<Vec<Instance>, String> {
    let mut options = SeriesOptions { uid_seed: Some(uid_seed), ..SeriesOptions::default() };
    options.scan.matrix = 512;
    options.scan.slices = slices;
    options.scan.step_mm = step_mm;
    let bleed = Bleed::Intraparenchymal { side: Side::Left, volume_ml: 45.0 };
    ichd_phantom::study(12, bleed, &options).map_err(|e| e.to_string())
}

/// A quiet head in thin slices of 512 x 512.
pub fn large(slices: usize) -> Result<Vec<Instance>, String> {
    let mut options = SeriesOptions::default();
    options.scan.matrix = 512;
    options.scan.slices = slices;
    options.scan.step_mm = 0.6;
    ichd_phantom::study(12, Bleed::None, &options).map_err(|e| e.to_string())
}

/// Writes a series into a folder of its own.
pub fn on_disk(series: &[Instance]) -> Result<TempDir, String> {
    let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
    for (i, instance) in series.iter().enumerate() {
        let bytes = instance.file_bytes().map_err(|e| e.to_string())?;
        std::fs::write(dir.path().join(format!("{i:04}.dcm")), bytes).map_err(|e| e.to_string())?;
    }
    Ok(dir)
}

/// Writes a configuration for a daemon that alerts to a broker on this port.
pub fn config(args: &Args, dir: &Path, broker_port: u16) -> Result<PathBuf, String> {
    let absolute = |path: &Path| path.canonicalize().map_err(|e| format!("`{}`: {e}", path.display()));
    let model = absolute(&args.model)?;
    let keys: Vec<PathBuf> = std::fs::read_dir(model.with_file_name("keys"))
        .map_err(|e| e.to_string())?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "pub"))
        .collect();
    let text = format!(
        "[site]\nname = \"bench\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n[state]\ndirectory = {dir:?}\n\
         [receive]\nlisten = \"127.0.0.1:0\"\ncalling-ae-titles = [\"BENCH_CT\"]\nfree-bytes-min = 0\n\
         [infer]\nmodel = {model:?}\ntrusted-keys = {keys:?}\nthreads = {}\n\
         [alert]\nbroker-host = \"127.0.0.1\"\nbroker-port = {broker_port}\n",
        args.threads
    );
    let path = dir.join("ichd.toml");
    std::fs::write(&path, text).map_err(|e| e.to_string())?;
    Ok(path)
}
