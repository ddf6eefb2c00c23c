//! `ichd-phantom`: synthetic head CT from the command line.
#![forbid(unsafe_code)]

use clap::{Args, Parser, Subcommand};
use ichd_phantom::anatomy::Anatomy;
use ichd_phantom::decoy::{self, Decoy};
use ichd_phantom::head::Head;
use ichd_phantom::paint::LesionSpec;
use ichd_phantom::picture;
use ichd_phantom::rng::{Rng, mix};
use ichd_phantom::scan::{ScanOptions, scan};
use ichd_phantom::study::Study;
use ichd_phantom::volume::{Volume, write_npy};
use ichd_phantom::{Bleed, Kind, SeriesOptions, Side, Syntax};
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
    /// One phantom series as DICOM files.
    Series(SeriesArgs),
    /// Contact sheets from the phantom, one per kind of bleed.
    Picture(PictureArgs),
    /// Random bleeds or decoys painted into a real head given as a numpy volume.
    Paint(PaintArgs),
}

#[derive(Args)]
struct SeriesArgs {
    /// Seed of the head, the bleed and, unless told otherwise, the UIDs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seed of the UIDs alone, to send one head again as a new study.
    #[arg(long)]
    uid_seed: Option<u64>,
    /// none, epidural, intraparenchymal, intraventricular, subarachnoid or subdural.
    #[arg(long, default_value = "none")]
    bleed: String,
    /// left or right (of the patient).
    #[arg(long, default_value = "left")]
    side: String,
    /// Millilitres of blood.
    #[arg(long, default_value_t = 25.0)]
    volume_ml: f32,
    /// Hard negatives, by name: pineal, choroid, falx-calcium, dense-falx, ganglia, sinus, beam, motion, metal,
    /// scalp, contrast, infarct, hygroma.
    #[arg(long = "decoy")]
    decoys: Vec<String>,
    /// Slices.
    #[arg(long, default_value_t = 32)]
    slices: usize,
    /// Rows and columns.
    #[arg(long, default_value_t = 512)]
    matrix: usize,
    /// Side of the image in the patient in millimetres.
    #[arg(long, default_value_t = 240.0)]
    field_mm: f32,
    /// Slice step and thickness in millimetres.
    #[arg(long, default_value_t = 5.0)]
    step_mm: f32,
    /// Gantry tilt in degrees.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    tilt_deg: f32,
    /// Sharp kernel, as for bone.
    #[arg(long)]
    bone_kernel: bool,
    /// Implicit VR Little Endian instead of Explicit.
    #[arg(long)]
    implicit: bool,
    /// Folder to write 0001.dcm, 0002.dcm, ... to.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
struct PictureArgs {
    /// Seed of the first head.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder to write PNG files to.
    #[arg(long)]
    out: PathBuf,
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
        Command::Series(a) => series(&a),
        Command::Picture(a) => picture(&a),
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
        let step_mm = a.step_mm.unwrap_or([3.0, 4.0, 5.0, 5.0, 5.0, 6.0][rng.below(6)]).clamp(0.5, 20.0);
        let options = ScanOptions {
            matrix: a.matrix.clamp(64, 1024),
            field_mm: a.field_mm.clamp(100.0, 500.0),
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

fn series(a: &SeriesArgs) -> Result<(), Box<dyn Error>> {
    let side = match a.side.as_str() {
        "left" => Side::Left,
        "right" => Side::Right,
        other => return Err(format!("side {other}: left or right").into()),
    };
    let volume_ml = a.volume_ml;
    let bleed = match a.bleed.as_str() {
        "none" => Bleed::None,
        "epidural" => Bleed::Epidural { side, volume_ml },
        "intraparenchymal" => Bleed::Intraparenchymal { side, volume_ml },
        "intraventricular" => Bleed::Intraventricular { volume_ml },
        "subarachnoid" => Bleed::Subarachnoid { side, volume_ml },
        "subdural" => Bleed::Subdural { side, volume_ml },
        other => return Err(format!("bleed {other}: none or one of the five class names").into()),
    };
    let decoys = a
        .decoys
        .iter()
        .map(|d| Decoy::from_name(d).ok_or_else(|| format!("decoy {d}: see --help for the names")))
        .collect::<Result<Vec<_>, _>>()?;
    let quiet = bleed == Bleed::None;
    let options = SeriesOptions {
        scan: ScanOptions {
            matrix: a.matrix.clamp(64, 1024),
            field_mm: a.field_mm.clamp(100.0, 500.0),
            slices: a.slices.clamp(1, 2000),
            step_mm: a.step_mm.clamp(0.5, 20.0),
            tilt_deg: a.tilt_deg.clamp(-30.0, 30.0),
            bone_kernel: a.bone_kernel,
            ..ScanOptions::default()
        },
        decoys,
        syntax: if a.implicit { Syntax::ImplicitLe } else { Syntax::ExplicitLe },
        uid_seed: a.uid_seed,
        kernel: if a.bone_kernel { "H70h" } else { "H30s" }.into(),
        series_description: format!("HEAD {:.1} {}", a.step_mm, if a.bone_kernel { "H70" } else { "H30" }),
        patient_name: if quiet { "PHANTOM^QUIET" } else { "PHANTOM^BLEED" }.into(),
        patient_id: format!("PHANTOM-{}", a.seed),
        ..SeriesOptions::default()
    };
    std::fs::create_dir_all(&a.out)?;
    for (z, instance) in ichd_phantom::study(a.seed, bleed, &options)?.iter().enumerate() {
        std::fs::write(a.out.join(format!("{:04}.dcm", z + 1)), instance.file_bytes()?)?;
    }
    Ok(())
}

/// Sheets of six slices of two heads for each kind, and of quiet heads, decoys included.
fn picture(a: &PictureArgs) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(&a.out)?;
    let options = ScanOptions { noise_hu: 2.0, ..ScanOptions::default() };
    for (k, kind) in Kind::ALL.into_iter().enumerate() {
        let mut shown = Vec::new();
        for seed in (a.seed + 100 * k as u64..).take(20) {
            let mut study = Study::quiet(scan(&Head::random(seed), &options, seed));
            let anatomy = Anatomy::from_volume(&study.volume)?;
            // The first head shows the kind at its plainest.
            let plain = shown.is_empty();
            let volume_ml = [25.0, 20.0, 3.0, 9.0, 50.0][k];
            let spec = LesionSpec { plain, volume_ml: plain.then_some(volume_ml), ..LesionSpec::any(kind) };
            if study.bleed(&anatomy, &spec, &mut Rng::new(seed)).is_ok() {
                shown.push(study);
            }
            if shown.len() == 3 {
                break;
            }
        }
        let tiles: Vec<_> = shown
            .iter()
            .flat_map(|s| {
                let (lo, hi) = s.lesions[0].slices;
                (0..6).map(move |i| (&s.volume, lo + ((hi - lo) * (2 * i + 1) + 6) / 12))
            })
            .collect();
        picture::sheet(&a.out.join(format!("{}.png", kind.name())), &tiles, 6, 128, picture::BRAIN)?;
    }
    let heads: Vec<Volume> = (0..2).map(|i| scan(&Head::random(a.seed + i), &options, a.seed + i)).collect();
    let tiles: Vec<_> =
        heads.iter().flat_map(|v| (0..12).map(move |i| (v, 1 + (v.nz - 4) * i / 11))).collect();
    picture::sheet(&a.out.join("quiet.png"), &tiles, 6, 128, picture::BRAIN)?;
    let mut decoys = Vec::new();
    for (i, d) in Decoy::ALL.into_iter().enumerate() {
        let seed = a.seed + 900 + i as u64;
        let mut v = scan(&Head::random(seed), &options, seed);
        let anatomy = Anatomy::from_volume(&v)?;
        let before = v.clone();
        decoy::add(&mut v, &anatomy, d, &mut Rng::new(seed));
        // The slice that changed most shows it best.
        let n = v.nx * v.ny;
        let change = |z: usize| -> i64 {
            (z * n..(z + 1) * n)
                .map(|i| i64::from(v.hu[i].clamp(-20, 120) - before.hu[i].clamp(-20, 120)).abs())
                .sum()
        };
        let z = (0..v.nz).max_by_key(|&z| change(z)).unwrap_or(0);
        decoys.push((v, z));
    }
    let tiles: Vec<_> = decoys.iter().map(|(v, z)| (v, *z)).collect();
    picture::sheet(&a.out.join("decoys.png"), &tiles, 5, 160, picture::BRAIN)?;
    Ok(())
}

fn paint(a: &PaintArgs) -> Result<(), Box<dyn Error>> {
    let volume = Volume::read_npy(&a.input, a.pixel_mm, a.step_mm)?;
    let anatomy = Anatomy::from_volume(&volume)?;
    let head = volume.hu.iter().fold(0u64, |h, &v| h.wrapping_mul(0x0100_0000_01b3) ^ u64::from(v as u16));
    for i in 0..a.count {
        let mut study = Study::quiet(volume.clone());
        // The head is part of the seed: two heads given one seed get different bleeds.
        let seed = mix(mix(a.seed.wrapping_add(i as u64)) ^ head);
        study.random(&anatomy, &mut Rng::new(seed));
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
    let mut csv =
        String::from("slice,any,epidural,intraparenchymal,intraventricular,subarachnoid,subdural\n");
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
