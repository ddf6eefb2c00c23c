//! `ichd-phantom`: synthetic head CT from the command line.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use ichd_phantom::anatomy::Anatomy;
use ichd_phantom::head::Head;
use ichd_phantom::rng::{Rng, mix};
use ichd_phantom::scan::{ScanOptions, scan};
use ichd_phantom::study::Study;
use ichd_phantom::volume::{Volume, write_npy};
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Synthetic head CT: an analytic head, a bleed generator and what is made from them.
#[derive(Parser)]
#[command(name = "ichd-phantom", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Many random phantom studies with masks and labels, for training.
    Dataset(DatasetArgs),
    /// Random bleeds or decoys painted into a real head given as a numpy volume.
    Paint(PaintArgs),
}

#[derive(Args)]
struct DatasetArgs {
    /// How many studies.
    #[arg(long)]
    count: usize,
    /// Seed of the first study; the rest follow from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// First study to make, so that several processes can share one set.
    #[arg(long, default_value_t = 0)]
    from: usize,
    /// Rows and columns.
    #[arg(long, default_value_t = 256)]
    matrix: usize,
    /// Field of view in millimetres.
    #[arg(long, default_value_t = 240.0)]
    field_mm: f32,
    /// Slice step in millimetres; left out, it varies from 3 to 6.
    #[arg(long)]
    step_mm: Option<f32>,
    /// Folder to write; one folder per study is made in it.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct PaintArgs {
    /// int16 numpy volume [z][y][x] in Hounsfield units, lowest slice first, image left = patient right.
    #[arg(long = "in")]
    input: PathBuf,
    /// Side of a pixel in millimetres.
    #[arg(long)]
    pixel_mm: f32,
    /// Slice step in millimetres.
    #[arg(long)]
    step_mm: f32,
    /// Seed of the first result.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many differently painted copies.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Folder to write; with a count above 1, one folder per copy.
    #[arg(long)]
    out: PathBuf,
}

fn main() {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Dataset(a) => dataset(&a),
        Command::Paint(a) => paint(&a),
    };
    if let Err(e) = done {
        let mut text = e.to_string();
        let mut cause = e.source();
        while let Some(c) = cause {
            let _ = write!(text, ": {c}");
            cause = c.source();
        }
        eprintln!("ichd-phantom: {text}");
        std::process::exit(1);
    }
}

fn dataset(a: &DatasetArgs) -> Result<(), Box<dyn Error>> {
    for i in a.from..a.from + a.count {
        let seed = mix(a.seed.wrapping_mul(0x9e37_79b9).wrapping_add(i as u64));
        let mut rng = Rng::new(seed);
        let step_mm = a.step_mm.unwrap_or([3.0, 4.0, 5.0, 5.0, 5.0, 6.0][rng.below(6)]);
        let options = ScanOptions {
            matrix: a.matrix,
            field_mm: a.field_mm,
            slices: ((rng.range(130.0, 170.0)) / step_mm) as usize,
            step_mm,
            tilt_deg: if rng.chance(0.4) { rng.range(-18.0, 18.0) } else { 0.0 },
            noise_hu: rng.range(2.0, 5.0),
            bone_kernel: false,
        };
        let head = Head::random(seed);
        let mut study = Study::quiet(scan(&head, &options, seed));
        if let Ok(anatomy) = Anatomy::from_volume(&study.volume) {
            study.random(&anatomy, &mut rng);
        }
        write(&study, &a.out.join(format!("{i:05}")))?;
    }
    Ok(())
}

fn paint(a: &PaintArgs) -> Result<(), Box<dyn Error>> {
    let volume = Volume::read_npy(&a.input, a.pixel_mm, a.step_mm)?;
    let anatomy = Anatomy::from_volume(&volume)?;
    for i in 0..a.count {
        let mut study = Study::quiet(volume.clone());
        study.random(&anatomy, &mut Rng::new(mix(a.seed.wrapping_add(i as u64))));
        let out = if a.count == 1 { a.out.clone() } else { a.out.join(format!("{i:05}")) };
        write(&study, &out)?;
    }
    Ok(())
}

/// Writes volume.npy, mask.npy, labels.csv and info.json.
fn write(study: &Study, out: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(out)?;
    let v = &study.volume;
    v.write_npy(&out.join("volume.npy"))?;
    write_npy(&out.join("mask.npy"), "|u1", [v.nz, v.ny, v.nx], &study.mask)?;
    let mut csv = String::from("slice,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural\n");
    for (z, row) in study.labels().iter().enumerate() {
        let any = u8::from(row.iter().any(|&r| r));
        let row = row.map(|r| u8::from(r).to_string()).join(",");
        writeln!(csv, "{z},{any},{row}")?;
    }
    std::fs::write(out.join("labels.csv"), csv)?;
    let lesions: Vec<String> = study
        .lesions
        .iter()
        .map(|l| {
            format!(
                "{{\"kind\":\"{}\",\"form\":\"{}\",\"side\":\"{:?}\",\"volume_ml\":{:.2},\"slices\":[{},{}]}}",
                l.kind.name(),
                l.form,
                l.side,
                l.volume_ml,
                l.slices.0,
                l.slices.1
            )
            .replace("\"Left\"", "\"left\"")
            .replace("\"Right\"", "\"right\"")
            .replace("\"Both\"", "\"both\"")
        })
        .collect();
    let decoys: Vec<String> = study.decoys.iter().map(|d| format!("\"{}\"", d.name())).collect();
    let info = format!(
        "{{\"pixel_mm\":{},\"step_mm\":{},\"lesions\":[{}],\"decoys\":[{}]}}\n",
        v.pixel_mm,
        v.step_mm,
        lesions.join(","),
        decoys.join(",")
    );
    std::fs::write(out.join("info.json"), info)?;
    Ok(())
}
