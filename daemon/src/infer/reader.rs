//! One volume through the three stages. Reading ahead only fills a cache, so it cannot change a result.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::Deserialize;

use super::backend::{Backend, BaseOutput, SEQ2_COLUMNS, Tract};
use super::hounsfield::{self, DecodeError};
use super::manifest::{Channel, Input};
use super::package::{ModelError, Package, read, read_keys};
use super::{LesionArea, ModelId, Reading, Scores, SliceReading, Timings, Tissue, preprocess, tissue};
use crate::assemble::{PlacedSlice, Volume, geometry};
use crate::clock;
use crate::config;
use crate::decide::Policy;
use crate::dicom::SopInstanceUid;
use crate::health::Pulse;
use crate::spool::Instance;

/// Map cells at or above this count as lesion.
const MAP_THRESHOLD: f32 = 0.5;
/// Golden scores may differ by this much between machines.
const GOLDEN_TOLERANCE: f32 = 1e-3;

/// Why a volume was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A slice could not be decoded.
    #[error("a slice could not be decoded")]
    Decode {
        /// Which one.
        sop: SopInstanceUid,
        /// Why.
        source: DecodeError,
    },
    /// Something inside panicked.
    #[error("reading panicked")]
    Panicked,
    /// A graph failed.
    #[error("the model could not be run: {detail}")]
    Model {
        /// What the backend said.
        detail: String,
    },
}

struct PlaneAndTissue {
    hu: preprocess::Plane,
    tissue: Tissue,
}

/// A slice with the neighbours it was read with.
type Triple = (SopInstanceUid, SopInstanceUid, SopInstanceUid);

/// What was already computed of one series: planes by slice, base outputs by slice and neighbours.
#[derive(Default)]
pub struct SeriesCache {
    planes: HashMap<SopInstanceUid, Arc<PlaneAndTissue>>,
    base: HashMap<Triple, Arc<BaseOutput>>,
}

impl SeriesCache {
    /// Highest base `any` of two neighbouring slices already read: how confident a provisional look would be.
    pub fn confident_pair(&self, volume: &Volume) -> f32 {
        let any = |w: &[PlacedSlice]| {
            let key = (sop(&w[0]), sop(&w[1]), sop(&w[2]));
            self.base.get(&key).map_or(0.0, |b| b.probs[0])
        };
        let any: Vec<f32> = volume.slices.windows(3).map(any).collect();
        any.windows(2).map(|w| w[0].min(w[1])).fold(0.0, f32::max)
    }

    /// One slice on the network's grid, HU, row-major; `None` if it was not read.
    pub fn plane(&self, sop: &SopInstanceUid) -> Option<&[f32]> {
        self.planes.get(sop).map(|p| p.hu.as_slice())
    }

    /// Number of slices read so far.
    pub fn n_read(&self) -> usize {
        self.base.len()
    }
}

fn sop(slice: &PlacedSlice) -> SopInstanceUid {
    slice.instance.header.sop.clone()
}

/// A loaded model that has proved itself on its golden series.
pub struct Reader {
    backend: Box<dyn Backend>,
    input: Input,
    channels: Vec<Channel>,
    map_px: usize,
    policy: Policy,
    model: ModelId,
    threads: usize,
    /// Beats with every slice, so that a long series is told from a hung graph.
    pulse: Option<Pulse>,
}

impl Reader {
    /// Opens the package (signature, hashes), builds the graphs and reads the golden series.
    pub fn load(config: &config::Infer) -> Result<Self, ModelError> {
        let package = Package::open(&config.model, &read_keys(&config.trusted_keys)?)?;
        let manifest = &package.manifest;
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let reader = Reader {
            backend: Box::new(Tract::load(&package)?),
            input: manifest.input.clone(),
            channels: manifest.channels().map_err(ModelError::Manifest)?,
            map_px: manifest.graphs.base.map_px,
            policy: manifest.policy().map_err(ModelError::Manifest)?,
            model: package.id.clone(),
            threads,
            pulse: None,
        };
        reader.prove(&package)?;
        Ok(reader)
    }

    /// Lets every slice that is read beat this pulse.
    pub fn beating(mut self, pulse: Pulse) -> Self {
        self.pulse = Some(pulse);
        self
    }

    /// Operating points and tiers.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Identity of the model.
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// Reads ahead: every slice whose two neighbours have arrived and lie no further away than the usual step.
    pub fn prefetch(&self, volume: &Volume, cache: &mut SeriesCache) -> Result<(), ReadError> {
        let Some(usual_mm) = geometry::usual_step_mm(&volume.steps_mm) else { return Ok(()) };
        if usual_mm < self.input.step_mm_min {
            // Which slices of a thin series are read is known only when it is complete.
            return Ok(());
        }
        let chosen: Vec<&PlacedSlice> = volume.slices.iter().collect();
        let near = |i: usize| volume.steps_mm[i] <= 1.5 * usual_mm;
        let ready: Vec<usize> =
            (1..chosen.len().saturating_sub(1)).filter(|&i| near(i - 1) && near(i)).collect();
        guarded(|| self.fill(&chosen, &ready, cache, &mut Timings::default()))
    }

    /// Reads a whole volume; what the cache holds is not computed again.
    pub fn read(&self, volume: &Volume, cache: &mut SeriesCache) -> Result<Reading, ReadError> {
        guarded(|| self.read_unguarded(volume, cache))
    }

    fn read_unguarded(&self, volume: &Volume, cache: &mut SeriesCache) -> Result<Reading, ReadError> {
        let start = clock::now();
        let mut ms = Timings::default();
        let chosen = self.choose(volume);
        let all: Vec<usize> = (0..chosen.len()).collect();
        self.fill(&chosen, &all, cache, &mut ms)?;
        let sequence_start = clock::now();
        let base: Vec<Arc<BaseOutput>> =
            all.iter().map(|&i| cache.base[&triple(&chosen, i)].clone()).collect();
        let features: Vec<f32> = base.iter().flat_map(|b| b.features.iter().copied()).collect();
        let model = |detail| ReadError::Model { detail };
        let seq1 = self.backend.seq1(&features).map_err(model)?;
        let mut x = Vec::with_capacity(chosen.len() * SEQ2_COLUMNS);
        for (i, (b, s)) in base.iter().zip(&seq1).enumerate() {
            x.extend(b.probs.iter().chain(s));
            x.push(step_meta(&chosen, i));
        }
        let fused = self.backend.seq2(&x).map_err(model)?;
        ms.sequence = millis(sequence_start);
        let slices: Vec<SliceReading> = all
            .iter()
            .map(|&i| SliceReading {
                sop: sop(chosen[i]),
                z_mm: chosen[i].z_mm,
                base: Scores(base[i].probs),
                seq1: Scores(seq1[i]),
                fused: Scores(fused[i]),
                tissue: cache.planes[&sop(chosen[i])].tissue,
                lesion: self.lesion_area(&base[i].map),
            })
            .collect();
        let mut series = Scores::default();
        for slice in &slices {
            series.0.iter_mut().zip(slice.fused.0).for_each(|(max, p)| *max = max.max(p));
        }
        if !series.0.iter().all(|p| p.is_finite()) {
            return Err(ReadError::Model { detail: "a probability is not a number".into() });
        }
        ms.total = millis(start);
        Ok(Reading { series, slices, model: self.model.clone(), ms })
    }

    /// Thin series are read in part: from the lowest slice up, the next one at `step-mm-min` or more.
    fn choose<'a>(&self, volume: &'a Volume) -> Vec<&'a PlacedSlice> {
        let mut last = f64::NEG_INFINITY;
        let far = |slice: &&PlacedSlice| {
            let take = slice.z_mm >= last + self.input.step_mm_min - 1e-3;
            if take {
                last = slice.z_mm;
            }
            take
        };
        // A series whose usual step is wide enough is read in full, overlaps and all.
        if geometry::usual_step_mm(&volume.steps_mm).is_some_and(|s| s >= self.input.step_mm_min) {
            return volume.slices.iter().collect();
        }
        volume.slices.iter().filter(far).collect()
    }

    /// Computes what is missing for the wanted slices, on all threads.
    fn fill(
        &self,
        chosen: &[&PlacedSlice],
        wanted: &[usize],
        cache: &mut SeriesCache,
        ms: &mut Timings,
    ) -> Result<(), ReadError> {
        let mut missing: Vec<&PlacedSlice> = Vec::new();
        for &i in wanted {
            for j in [i.saturating_sub(1), i, (i + 1).min(chosen.len() - 1)] {
                let known = cache.planes.contains_key(&sop(chosen[j]));
                if !known && !missing.iter().any(|m| std::ptr::eq(*m, chosen[j])) {
                    missing.push(chosen[j]);
                }
            }
        }
        let spent = Mutex::new(Timings::default());
        for (slice, plane) in
            missing.iter().zip(self.parallel(missing.len(), |i| self.plane(missing[i], &spent))?)
        {
            cache.planes.insert(sop(slice), plane);
        }
        let todo: Vec<usize> =
            wanted.iter().copied().filter(|&i| !cache.base.contains_key(&triple(chosen, i))).collect();
        let outputs = self.parallel(todo.len(), |n| {
            let key = triple(chosen, todo[n]);
            let start = clock::now();
            let hu = |sop: &SopInstanceUid| &cache.planes[sop].hu;
            let x = preprocess::tensor([hu(&key.0), hu(&key.1), hu(&key.2)], &self.channels, &self.input);
            let windowed_ms = millis(start);
            let output = self.backend.base(&x).map_err(|detail| ReadError::Model { detail })?;
            if let Ok(mut spent) = spent.lock() {
                spent.preprocess += windowed_ms;
                spent.base += millis(start) - windowed_ms;
            }
            Ok(Arc::new(output))
        })?;
        for (&i, output) in todo.iter().zip(outputs) {
            cache.base.insert(triple(chosen, i), output);
        }
        if let Ok(spent) = spent.lock() {
            ms.decode += spent.decode;
            ms.preprocess += spent.preprocess;
            ms.base += spent.base;
        }
        Ok(())
    }

    fn plane(&self, slice: &PlacedSlice, spent: &Mutex<Timings>) -> Result<Arc<PlaneAndTissue>, ReadError> {
        let start = clock::now();
        let header = &slice.instance.header;
        let image = hounsfield::decode(&slice.instance.path, header)
            .map_err(|source| ReadError::Decode { sop: header.sop.clone(), source })?;
        let decode_ms = millis(start);
        let blank = image.hu.windows(2).all(|w| w[0] == w[1]);
        let hu = preprocess::plane(&image, &self.input);
        let pixel_mm = self.input.field_mm / self.input.size_px as f64;
        let tissue = tissue::measure(&hu, self.input.size_px, pixel_mm, blank);
        if let Ok(mut spent) = spent.lock() {
            spent.decode += decode_ms;
            spent.preprocess += millis(start) - decode_ms;
        }
        Ok(Arc::new(PlaneAndTissue { hu, tissue }))
    }

    /// Runs `work(0..n)` on the reader's threads; results stay in order, the first error by index wins.
    fn parallel<T: Send>(
        &self,
        n: usize,
        work: impl Fn(usize) -> Result<T, ReadError> + Sync,
    ) -> Result<Vec<T>, ReadError> {
        let next = AtomicUsize::new(0);
        let worker = || {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= n {
                    return done;
                }
                done.push((i, work(i)));
                if let Some(pulse) = &self.pulse {
                    pulse.beat();
                }
            }
        };
        let mut all: Vec<(usize, Result<T, ReadError>)> = std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..self.threads.min(n)).map(|_| scope.spawn(worker)).collect();
            let mut all = worker();
            for helper in helpers {
                match helper.join() {
                    Ok(done) => all.extend(done),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            all
        });
        all.sort_by_key(|(i, _)| *i);
        all.into_iter().map(|(_, result)| result).collect()
    }

    /// Image right is the patient's left after [`hounsfield`] has turned the slice upright.
    fn lesion_area(&self, map: &[f32]) -> LesionArea {
        let cell_cm = self.input.field_mm / self.map_px as f64 / 10.0;
        let cell_cm2 = (cell_cm * cell_cm) as f32;
        let mut area = LesionArea::default();
        for (i, p) in map.iter().enumerate() {
            if *p >= MAP_THRESHOLD {
                let side =
                    if i % self.map_px >= self.map_px / 2 { &mut area.left_cm2 } else { &mut area.right_cm2 };
                *side += cell_cm2;
            }
        }
        area
    }

    /// The golden series must be answered as it was when the package was made.
    fn prove(&self, package: &Package) -> Result<(), ModelError> {
        #[derive(Deserialize)]
        struct Expected {
            base: Vec<[f32; 6]>,
            seq1: Vec<[f32; 6]>,
            r#final: Vec<[f32; 6]>,
        }
        let golden = |detail: String| ModelError::Golden { detail };
        let expected = read(&package.dir.join(&package.manifest.golden.expected))?;
        let expected: Expected =
            serde_json::from_slice(&expected).map_err(|e| golden(format!("expected scores: {e}")))?;
        let mut instances = Vec::new();
        for path in package.golden_files() {
            instances.push(Instance::read(path).map_err(|e| golden(crate::chain(&e)))?);
        }
        let Some(first) = instances.first() else { return Err(golden("holds no files".into())) };
        let (study, series) = (first.header.study.clone(), first.header.series.clone());
        let volume = geometry::place(study, series, instances);
        let reading =
            self.read(&volume, &mut SeriesCache::default()).map_err(|e| golden(crate::chain(&e)))?;
        type Stage<'a> = (&'a str, &'a [[f32; 6]], fn(&SliceReading) -> Scores);
        let stages: [Stage; 3] = [
            ("base", &expected.base, |s| s.base),
            ("seq1", &expected.seq1, |s| s.seq1),
            ("final", &expected.r#final, |s| s.fused),
        ];
        for (stage, expected, of) in stages {
            if expected.len() != reading.slices.len() {
                return Err(golden(format!(
                    "{} slices read, {} expected",
                    reading.slices.len(),
                    expected.len()
                )));
            }
            for (i, (slice, want)) in reading.slices.iter().zip(expected).enumerate() {
                for (got, want) in of(slice).0.iter().zip(want) {
                    if got.is_nan() || (got - want).abs() > GOLDEN_TOLERANCE {
                        return Err(golden(format!("{stage} of slice {i} is {got}, expected {want}")));
                    }
                }
            }
        }
        Ok(())
    }
}

fn triple(chosen: &[&PlacedSlice], i: usize) -> Triple {
    (sop(chosen[i.saturating_sub(1)]), sop(chosen[i]), sop(chosen[(i + 1).min(chosen.len() - 1)]))
}

/// Distance to the slice below (lowest: to the one above) / 10 mm, clipped to [0, 2].
fn step_meta(chosen: &[&PlacedSlice], i: usize) -> f32 {
    if chosen.len() < 2 {
        return 0.0;
    }
    let above = i.max(1);
    ((chosen[above].z_mm - chosen[above - 1].z_mm) / 10.0).clamp(0.0, 2.0) as f32
}

fn millis(since: Instant) -> f64 {
    (clock::now() - since).as_secs_f64() * 1e3
}

/// A panic while reading one series is that series' trouble alone.
fn guarded<T>(work: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ReadError::Panicked))
}
