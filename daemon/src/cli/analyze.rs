//! `ichd analyze`: the same stages as the daemon's, without network, spool or database.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Failure;
use super::sheet::{Sheet, Tile};
use crate::assemble::study::{self, Candidate};
use crate::assemble::{Flag, Volume, geometry};
use crate::chain;
use crate::clock;
use crate::config::{self, Profile};
use crate::decide::{
    Disposition, Finding, NamedScores, SliceScores, Stage, Verdict, Why, decide, suitability,
};
use crate::dicom::{SeriesUid, SliceId, SopInstanceUid, StudyUid};
use crate::infer::{Class, ModelId, ReadError, Reader, Reading, SeriesCache, Timings, hounsfield};
use crate::spool::Instance;

/// Arguments of `ichd analyze`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// DICOM files, or folders that are searched for them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// One JSON object per series instead of a readable line.
    #[arg(long)]
    json: bool,
    /// Model package directory.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Public key file whose signature on the manifest is trusted; may be given again.
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Configuration whose model and keys are used where the options above are absent.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write a contact sheet of every series that was read into this folder.
    #[arg(long, value_name = "DIR")]
    png: Option<PathBuf>,
    /// What the contact sheet may say and mark: `assist` or `triage`; the configuration's where absent.
    #[arg(long, value_name = "PROFILE", value_parser = parse_profile)]
    profile: Option<Profile>,
    /// Write the canonical verdict (the bytes a replay reproduces) instead of the analysis.
    #[arg(long)]
    verdict: bool,
}

fn parse_profile(text: &str) -> Result<Profile, String> {
    match text {
        "assist" => Ok(Profile::Assist),
        "triage" => Ok(Profile::Triage),
        _ => Err("assist or triage".into()),
    }
}

/// One line of `analyze --json`, schema 1.
#[derive(Debug, Serialize)]
struct Line<'a> {
    schema: u32,
    study_uid: &'a StudyUid,
    series_uid: &'a SeriesUid,
    disposition: &'static str,
    reason: Option<&'static str>,
    scores: Option<NamedScores>,
    slices: &'a [SliceScores],
    finding: Option<&'a Finding>,
    geometry: GeometryLine,
    flags: &'a [Flag],
    model: Option<&'a ModelId>,
    ms: Timings,
    startup_ms: Startup,
}

/// What this run spent before its first series, ms.
#[derive(Debug, Clone, Copy, Serialize)]
struct Startup {
    /// Verifying, loading and proving the model.
    model: f64,
    /// Headers and hashes of all files.
    files: f64,
}

#[derive(Debug, Serialize)]
struct GeometryLine {
    slices: usize,
    unplaced: usize,
    steps_mm: BTreeMap<String, usize>,
}

/// Reads, judges and prints every series found; files that are no instances are named on stderr.
pub fn analyze(args: &Args) -> Result<(), Failure> {
    let start = clock::now();
    let (infer, slices_max) = configured(args)?;
    let reader = Reader::load(&infer).map_err(|e| Failure::config(&e))?;
    let loaded = clock::now();
    let series = gather(&args.paths)?;
    let millis = |duration: std::time::Duration| duration.as_secs_f64() * 1e3;
    let startup = Startup { model: millis(loaded - start), files: millis(clock::now() - loaded) };
    if series.is_empty() {
        return Err(Failure::failed("no readable DICOM instance found"));
    }
    let volumes: Vec<Volume> =
        series.into_iter().map(|((study, series), list)| geometry::place(study, series, list)).collect();
    for study in volumes.chunk_by(|a, b| a.study == b.study) {
        for (volume, (verdict, ms)) in study.iter().zip(judge(args, study, &reader, slices_max)?) {
            print(args, volume, &verdict, ms, startup);
        }
    }
    Ok(())
}

/// The model, and the most slices of a series that are read.
fn configured(args: &Args) -> Result<(config::Infer, usize), Failure> {
    let (mut infer, assemble) = match &args.config {
        Some(path) => {
            let config = config::Config::load(path).map_err(|e| Failure::config(&e))?;
            (config.infer, config.assemble)
        }
        None => (config::Infer::default(), config::Assemble::default()),
    };
    if let Some(model) = &args.model {
        infer.model = model.clone();
        // A package that lies beside its `keys` folder, as in the repository, needs no second option.
        if args.key.is_empty() && args.config.is_none() {
            infer.trusted_keys = keys_beside(model);
        }
    }
    if !args.key.is_empty() {
        infer.trusted_keys = args.key.clone();
    }
    Ok((infer, assemble.slices_max))
}

fn keys_beside(model: &Path) -> Vec<PathBuf> {
    let Some(folder) = model.parent().map(|p| p.join("keys")) else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut keys: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    keys.retain(|k| k.extension().is_some_and(|e| e == "pub"));
    keys.sort();
    keys
}

type BySeries = BTreeMap<(StudyUid, SeriesUid), Vec<Instance>>;

fn gather(paths: &[PathBuf]) -> Result<BySeries, Failure> {
    let mut files = Vec::new();
    for path in paths {
        collect_files(path, &mut files)
            .map_err(|e| Failure::failed(format!("failed to read `{}`: {e}", path.display())))?;
    }
    files.sort();
    let mut seen: BTreeSet<(SeriesUid, SopInstanceUid)> = BTreeSet::new();
    let mut series = BySeries::new();
    for path in files {
        match Instance::read(path.clone()) {
            Ok(instance) => {
                let header = &instance.header;
                if seen.insert((header.series.clone(), header.sop.clone())) {
                    let key = (header.study.clone(), header.series.clone());
                    series.entry(key).or_default().push(instance);
                }
            }
            Err(error) => eprintln!("ichd: `{}` left out: {}", path.display(), chain(&error)),
        }
    }
    Ok(series)
}

fn collect_files(path: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        // Links inside a folder are not followed; they could lead round in a circle.
        if entry.file_type()?.is_dir() {
            collect_files(&entry.path(), files)?;
        } else if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// The verdicts on the series of one study: the best is read, and as long as that was in vain the next best.
fn judge(
    args: &Args,
    study: &[Volume],
    reader: &Reader,
    slices_max: usize,
) -> Result<Vec<(Verdict, Timings)>, Failure> {
    let mut verdicts: Vec<Option<(Verdict, Timings)>> = vec![None; study.len()];
    loop {
        let why = |i: usize| verdicts[i].as_ref().and_then(|(verdict, _)| verdict.disposition.why());
        let candidates: Vec<Candidate> = (0..study.len())
            .map(|i| Candidate { volume: &study[i], in_vain: why(i).filter(|why| why.calls_for_another()) })
            .collect();
        let best = study::best(&candidates, slices_max);
        let Some(i) = best.and_then(|best| study.iter().position(|v| v.series == best.series)) else { break };
        if verdicts[i].is_some() {
            break;
        }
        let read = reader.read(&study[i], &mut SeriesCache::default()).map_err(|error| {
            eprintln!("ichd: series {} could not be read: {}", study[i].series, chain(&error));
            crate::decide::driver::why(&error)
        });
        verdicts[i] = Some(verdict(args, &study[i], read, reader)?);
    }
    let all = study.iter().zip(verdicts).map(|(volume, judged)| match judged {
        Some(judged) => Ok(judged),
        None => {
            let why = suitability::by_headers(volume, slices_max).err().unwrap_or(Why::NotChosen);
            verdict(args, volume, Err(why), reader)
        }
    });
    all.collect()
}

fn verdict(
    args: &Args,
    volume: &Volume,
    reading: Result<Reading, Why>,
    reader: &Reader,
) -> Result<(Verdict, Timings), Failure> {
    let ms = reading.as_ref().map_or_else(|_| Timings::default(), |r| r.ms);
    let verdict = decide(volume, Stage::Final, reading.as_ref().map_err(|why| *why), reader.policy());
    if let (Some(folder), Ok(reading)) = (&args.png, &reading) {
        // Named by what was read, never by whom.
        let path = folder.join(format!("{}.png", &verdict.input_sha256[..16]));
        std::fs::create_dir_all(folder)
            .map_err(|e| e.to_string())
            .and_then(|()| sheet(volume, reading, &verdict, reader, profile(args)).map_err(|e| chain(&e)))
            .and_then(|sheet| sheet.write(&path))
            .map_err(|e| Failure::failed(format!("failed to write `{}`: {e}", path.display())))?;
    }
    Ok((verdict, ms))
}

/// `--profile`, or the configuration's, or the shipped example's.
fn profile(args: &Args) -> Profile {
    let configured = args.config.as_ref().and_then(|path| config::Config::load(path).ok());
    args.profile.or(configured.map(|c| c.site.profile)).unwrap_or(Profile::Assist)
}

/// Decodes the slices again: a reading keeps no pixels.
fn sheet<'a>(
    volume: &Volume,
    reading: &'a Reading,
    verdict: &'a Verdict,
    reader: &Reader,
    profile: Profile,
) -> Result<Sheet<'a>, ReadError> {
    let of = |id: &SliceId| volume.slices.iter().position(|s| s.instance.header.id() == *id);
    let mut tiles = Vec::new();
    for slice in &reading.slices {
        let Some(place) = of(&slice.slice) else { continue };
        let plane = reader.picture(&volume.slices[place])?;
        tiles.push(Tile { place, plane, any: slice.fused.of(Class::Any), map: slice.map.clone() });
    }
    let key = match verdict.disposition.finding().and_then(|f| of(&f.key())) {
        Some(place) => {
            let instance = &volume.slices[place].instance;
            let image = hounsfield::decode(&instance.path, &instance.header)
                .map_err(|source| ReadError::Decode { sop: instance.header.sop.clone(), source })?;
            Some((place, image))
        }
        None => None,
    };
    Ok(Sheet {
        tiles,
        key,
        field_mm: reader.field_mm(),
        reading,
        disposition: &verdict.disposition,
        profile,
        input_sha256: &verdict.input_sha256,
    })
}

fn print(args: &Args, volume: &Volume, verdict: &Verdict, ms: Timings, startup_ms: Startup) {
    let finding = verdict.disposition.finding();
    if args.verdict {
        println!("{}", verdict.canonical_json());
    } else if args.json {
        let line = Line {
            schema: 1,
            study_uid: &verdict.study,
            series_uid: &verdict.series,
            disposition: verdict.disposition.as_str(),
            reason: verdict.disposition.why().map(Why::code),
            scores: verdict.scores.as_ref().map(NamedScores::from),
            slices: &verdict.slices,
            finding,
            geometry: GeometryLine {
                slices: volume.slices.len(),
                unplaced: volume.unplaced.len(),
                steps_mm: geometry::step_histogram(&volume.steps_mm),
            },
            flags: &verdict.flags,
            model: verdict.model.as_ref(),
            ms,
            startup_ms,
        };
        println!("{}", serde_json::to_string(&line).unwrap_or_else(|e| unreachable!("plain data: {e}")));
    } else {
        println!("{}", sentence(volume, verdict, finding, ms));
    }
}

/// One readable line; the words are those of every other surface.
fn sentence(volume: &Volume, verdict: &Verdict, finding: Option<&Finding>, ms: Timings) -> String {
    let answer = match (&verdict.disposition, finding) {
        (Disposition::NotAnalysed(why), _) => format!("not analysed: {}", why.code()),
        (_, Some(finding)) => {
            let types: Vec<_> = finding.subtypes.iter().map(|c| c.as_str()).collect();
            let types = if types.is_empty() { "hemorrhage".to_owned() } else { types.join(", ") };
            let [first, last] = finding.slice_range;
            let side =
                finding.side.map_or(String::new(), |s| format!(", {}", format!("{s:?}").to_lowercase()));
            let volume_ml = finding.volume_ml.map_or(String::new(), |v| format!(", about {v} mL"));
            format!("suspected: {types}{side}, slices {}-{}{volume_ml}", first + 1, last + 1)
        }
        _ => "not suspected".to_owned(),
    };
    let any = verdict.scores.map_or(String::new(), |s| format!(" any {:.3}", s.0[0]));
    format!(
        "{}  {} slices  {answer}{any}  {:.0} ms (notification, not a diagnosis)",
        verdict.series,
        volume.slices.len() + volume.unplaced.len(),
        ms.total
    )
}
