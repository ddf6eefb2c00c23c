//! One volume through the three stages. Reading ahead only fills a cache, so it cannot change a result.
//!
//! A slice is one task: decode what is missing of it and its neighbours, then run the base CNN. Threads take tasks in
//! order, so decoding of one slice goes on while another is in the network, and a plane lives only as long as a
//! neighbour needs it. The sequence models run once over all slices.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::backend::tract::Tract;
use super::backend::{self, Backend, BaseOutput, SEQ2_COLUMNS};
use super::cache::{PlaneAndTissue, SeriesCache, id, triple};
use super::hounsfield::{self, DecodeError, HuImage};
use super::manifest::{Channel, Input, ManifestError};
use super::package::{ModelError, Package, read_keys};
use super::{
    Golden, LesionArea, LesionMap, ModelId, Reading, Scores, SliceReading, Timings, choose, golden,
    preprocess, tissue,
};
use crate::assemble::{PlacedSlice, Volume};
use crate::clock;
use crate::config;
use crate::decide::Policy;
use crate::dicom::SopInstanceUid;
use crate::health::Pulse;

/// Map cells at or above this count as lesion.
pub const MAP_THRESHOLD: f32 = 0.5;

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
    /// A slice holds one single value; no network is asked about it.
    #[error("a slice holds one single value")]
    Blank {
        /// Which one.
        sop: SopInstanceUid,
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

/// A loaded model that has proved itself on its golden series, on every backend it may run on.
pub struct Reader {
    /// The preferred one first; each falls back to the one after it, the last is `tract`.
    backends: Vec<Box<dyn Backend>>,
    /// Position of the one at work.
    at_work: AtomicUsize,
    /// Why it is not the one that was asked for, as a reason of the status document.
    degraded: OnceLock<String>,
    input: Input,
    channels: Vec<Channel>,
    map_px: usize,
    policy: Policy,
    model: ModelId,
    threads: usize,
    golden: Golden,
    /// Beats with every slice, so that a long series is told from a hung graph.
    pulse: Option<Pulse>,
}

impl Reader {
    /// Opens the package (signature, hashes), builds the graphs and reads the golden series.
    pub fn load(config: &config::Infer) -> Result<Self, ModelError> {
        let package = Package::open(&config.model, &read_keys(&config.trusted_keys)?)?;
        let threads = match config.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let tract: Box<dyn Backend> = Box::new(Tract::load(&package)?);
        let mut plain = Self::with(vec![tract], &package, threads).map_err(ModelError::Manifest)?;
        plain.golden = golden::prove(&plain, &package)?;
        let proven = |backend| {
            let alone = Self::with(vec![backend], &package, threads).map_err(|e| e.to_string())?;
            golden::prove(&alone, &package).map_err(|e| e.to_string())?;
            Ok(alone.backends)
        };
        match backend::preferred(&package, config, threads) {
            None => Ok(plain),
            Some(preferred) => match preferred.and_then(proven) {
                Ok(backends) => {
                    Ok(Reader { backends: backends.into_iter().chain(plain.backends).collect(), ..plain })
                }
                Err(detail) => {
                    plain.say_degraded(config.backend.as_str(), &detail);
                    Ok(plain)
                }
            },
        }
    }

    pub(super) fn with(
        backends: Vec<Box<dyn Backend>>,
        package: &Package,
        threads: usize,
    ) -> Result<Self, ManifestError> {
        let manifest = &package.manifest;
        Ok(Reader {
            backends,
            at_work: AtomicUsize::new(0),
            degraded: OnceLock::new(),
            input: manifest.input.clone(),
            channels: manifest.channels()?,
            map_px: manifest.graphs.base.map_px,
            policy: manifest.policy()?,
            model: package.id.clone(),
            threads,
            golden: Golden::default(),
            pulse: None,
        })
    }

    /// The same recipe on a smaller grid, for tests whose backend does not mind.
    #[cfg(test)]
    pub(super) fn on_grid(mut self, size_px: usize) -> Self {
        self.input.size_px = size_px;
        self
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

    /// The golden series, which was answered rightly at the start.
    pub fn golden(&self) -> &Golden {
        &self.golden
    }

    /// Identity of the model.
    pub fn model(&self) -> &ModelId {
        &self.model
    }

    /// Name of the backend at work.
    pub fn backend(&self) -> &'static str {
        self.backends[self.at_work.load(Ordering::Relaxed)].name()
    }

    /// Why that is not the one that was asked for, as a reason of the status document.
    pub fn degraded(&self) -> Option<&str> {
        self.degraded.get().map(String::as_str)
    }

    fn say_degraded(&self, failed: &str, detail: &str) {
        log::error!(event = "backend_failed", backend = failed; "backend {failed} failed, tract reads on: {detail}");
        let _ = self.degraded.set(format!("backend_failed:{failed}"));
    }

    /// Runs `work` on the backend at work. Where that one fails, the next one starts afresh: a reading is never made
    /// of two backends' answers.
    fn on_backend<T>(
        &self,
        cache: &mut SeriesCache,
        work: impl Fn(&dyn Backend, &mut SeriesCache) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        loop {
            let at = self.at_work.load(Ordering::Relaxed);
            if cache.backend != at {
                cache.base.clear();
                cache.backend = at;
            }
            let backend = &*self.backends[at];
            match guarded(|| work(backend, cache)) {
                Err(ReadError::Model { detail }) if at + 1 < self.backends.len() => {
                    self.say_degraded(backend.name(), &detail);
                    self.at_work.store(at + 1, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
    }

    /// Side of the square that planes and lesion maps cover, mm, centred on the image.
    pub fn field_mm(&self) -> f64 {
        self.input.field_mm
    }

    /// Threads that read slices.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Reads ahead at most `slices_max` slices whose neighbours are known; says whether there are more.
    pub fn prefetch(
        &self,
        volume: &Volume,
        cache: &mut SeriesCache,
        slices_max: usize,
    ) -> Result<bool, ReadError> {
        let ahead = choose::ahead(volume, self.input.step_mm_min, cache.ends.stay(volume));
        let mut wanted = ahead.ready;
        wanted.retain(|&i| !cache.base.contains_key(&triple(&ahead.slices, i)));
        let more = wanted.len() > slices_max;
        wanted.truncate(slices_max);
        if !wanted.is_empty() {
            let ms = &Mutex::default();
            self.on_backend(cache, |backend, cache| self.fill(backend, &ahead.slices, &wanted, cache, ms))?;
        }
        Ok(more)
    }

    /// Highest base `any` of two neighbouring slices already read: how confident a provisional look would be.
    pub fn confident_pair(&self, volume: &Volume, cache: &SeriesCache) -> f32 {
        let chosen = choose::slices(volume, self.input.step_mm_min);
        let any = |i| cache.base.get(&triple(&chosen, i)).map_or(0.0, |b| b.probs[0]);
        let any: Vec<f32> = (0..chosen.len()).map(any).collect();
        any.windows(2).map(|w| w[0].min(w[1])).fold(0.0, f32::max)
    }

    /// Reads a whole volume; what the cache holds is not computed again.
    pub fn read(&self, volume: &Volume, cache: &mut SeriesCache) -> Result<Reading, ReadError> {
        self.on_backend(cache, |backend, cache| self.read_on(backend, volume, cache))
    }

    fn read_on(
        &self,
        backend: &dyn Backend,
        volume: &Volume,
        cache: &mut SeriesCache,
    ) -> Result<Reading, ReadError> {
        let start = clock::now();
        let spent = Mutex::default();
        let chosen = choose::slices(volume, self.input.step_mm_min);
        let all: Vec<usize> = (0..chosen.len()).collect();
        self.fill(backend, &chosen, &all, cache, &spent)?;
        let sequence_start = clock::now();
        let base: Vec<Arc<BaseOutput>> =
            all.iter().map(|&i| cache.base[&triple(&chosen, i)].clone()).collect();
        let features: Vec<f32> = base.iter().flat_map(|b| b.features.iter().copied()).collect();
        let model = |detail| ReadError::Model { detail };
        let seq1 = backend.seq1(&features).map_err(model)?;
        let mut x = Vec::with_capacity(chosen.len() * SEQ2_COLUMNS);
        for (i, (b, s)) in base.iter().zip(&seq1).enumerate() {
            x.extend(b.probs.iter().chain(s));
            x.push(step_meta(&chosen, i));
        }
        let fused = backend.seq2(&x).map_err(model)?;
        let mut ms: Timings = *locked(&spent);
        ms.sequence = millis(sequence_start);
        let slices: Vec<SliceReading> = all
            .iter()
            .map(|&i| SliceReading {
                slice: id(chosen[i]),
                z_mm: chosen[i].z_mm,
                base: Scores(base[i].probs),
                seq1: Scores(seq1[i]),
                fused: Scores(fused[i]),
                tissue: cache.tissue[&id(chosen[i])],
                lesion: self.lesion_area(&base[i].map, cache.tissue[&id(chosen[i])].middle_mm),
                map: LesionMap { px: self.map_px, p: base[i].map.clone() },
            })
            .collect();
        let mut series = Scores::default();
        for slice in &slices {
            series.0.iter_mut().zip(slice.fused.0).for_each(|(max, p)| *max = max.max(p));
        }
        ms.total = millis(start);
        Ok(Reading { series, slices, model: self.model.clone(), ms })
    }

    /// One slice on the network's grid, HU, row-major [S x S], for pictures; decoded anew.
    pub fn picture(&self, slice: &PlacedSlice) -> Result<preprocess::Plane, ReadError> {
        let plane = guarded(|| self.plane(slice, &Mutex::default()))?;
        Ok(Arc::into_inner(plane).map_or_else(Vec::new, |p| p.hu))
    }

    /// Computes what is missing for the wanted slices, on all threads.
    fn fill(
        &self,
        backend: &dyn Backend,
        chosen: &[&PlacedSlice],
        wanted: &[usize],
        cache: &mut SeriesCache,
        spent: &Mutex<Timings>,
    ) -> Result<(), ReadError> {
        let todo: Vec<usize> =
            wanted.iter().copied().filter(|&i| !cache.base.contains_key(&triple(chosen, i))).collect();
        let slots = Slots::new(chosen, &todo, cache);
        let outputs = self.parallel(todo.len(), |n| {
            let i = todo[n];
            let planes = slots.neighbours(i, |j| self.plane(chosen[j], spent))?;
            let start = clock::now();
            let x = preprocess::tensor(
                [&planes[0].hu, &planes[1].hu, &planes[2].hu],
                &self.channels,
                &self.input,
            );
            drop(planes);
            slots.done(i);
            let windowed_ms = millis(start);
            let output = backend.base(&x).map_err(|detail| ReadError::Model { detail })?;
            let mut spent = locked(spent);
            spent.preprocess += windowed_ms;
            spent.base += millis(start) - windowed_ms;
            Ok(Arc::new(output))
        });
        let planes = slots.into_planes(chosen, cache);
        for (&i, output) in todo.iter().zip(outputs?) {
            cache.base.insert(triple(chosen, i), output);
        }
        cache.keep_planes(chosen, planes);
        Ok(())
    }

    fn plane(&self, slice: &PlacedSlice, spent: &Mutex<Timings>) -> Result<Arc<PlaneAndTissue>, ReadError> {
        let start = clock::now();
        let header = &slice.instance.header;
        let image = hounsfield::decode(&slice.instance.path, header)
            .map_err(|source| ReadError::Decode { sop: header.sop.clone(), source })?;
        let decode_ms = millis(start);
        let plane = self.measured(&image);
        let mut spent = locked(spent);
        spent.decode += decode_ms;
        spent.preprocess += millis(start) - decode_ms;
        if plane.tissue.blank {
            Err(ReadError::Blank { sop: header.sop.clone() })
        } else {
            Ok(Arc::new(plane))
        }
    }

    /// One decoded slice on the network's grid.
    pub(super) fn measured(&self, image: &HuImage) -> PlaneAndTissue {
        let blank = image.hu.windows(2).all(|w| w[0] == w[1]);
        let (seen, whole) = (self.input.grid(), tissue::grid(image));
        let hu = preprocess::plane(image, &seen);
        let other = (whole != seen).then(|| preprocess::plane(image, &whole));
        let tissue = tissue::measure(other.as_ref().unwrap_or(&hu), &whole, seen.field_mm, blank);
        PlaneAndTissue { hu, tissue }
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
                let result = work(i);
                let failed = result.is_err();
                done.push((i, result));
                if let Some(pulse) = &self.pulse {
                    pulse.beat();
                }
                if failed {
                    // Tasks are taken in order, so every one before this has been taken; the rest is in vain.
                    next.store(n, Ordering::Relaxed);
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

    /// Columns run to the patient's left after [`hounsfield`] has turned the slice upright. Sides are those of the
    /// head, which need not lie in the middle of the image.
    fn lesion_area(&self, map: &[f32], middle_mm: f32) -> LesionArea {
        let cell_mm = self.input.field_mm / self.map_px as f64;
        let cell_cm2 = (cell_mm * cell_mm / 100.0) as f32;
        let mut area = LesionArea::default();
        for i in map.iter().enumerate().filter(|(_, p)| **p >= MAP_THRESHOLD).map(|(i, _)| i) {
            let right_edge_mm = (i % self.map_px) as f64 * cell_mm - self.input.field_mm / 2.0;
            let on_right = ((f64::from(middle_mm) - right_edge_mm) / cell_mm).clamp(0.0, 1.0) as f32;
            area.right_cm2 += cell_cm2 * on_right;
            area.left_cm2 += cell_cm2 * (1.0 - on_right);
        }
        area
    }
}

/// The planes of one call, each decoded once by whichever task needs it first, and gone after the last one.
struct Slots {
    slots: Vec<Mutex<Slot>>,
}

#[derive(Default)]
struct Slot {
    plane: Option<Arc<PlaneAndTissue>>,
    tissue: Option<super::Tissue>,
    /// Tasks of this call that still need it.
    uses: usize,
    /// A slice that is not read in this call may need it later.
    later: bool,
}

impl Slots {
    fn new(chosen: &[&PlacedSlice], todo: &[usize], cache: &SeriesCache) -> Self {
        let last = chosen.len().saturating_sub(1);
        let mut slots: Vec<Slot> = (0..chosen.len())
            .map(|j| Slot {
                plane: cache.planes.get(&id(chosen[j])).cloned(),
                later: j <= 1 || j + 1 >= last,
                ..Slot::default()
            })
            .collect();
        let mut now = vec![false; chosen.len()];
        todo.iter().for_each(|&i| now[i] = true);
        for (i, is_now) in now.into_iter().enumerate() {
            let read = is_now || cache.base.contains_key(&triple(chosen, i));
            for j in Self::around(i, chosen.len()) {
                slots[j].uses += usize::from(is_now);
                slots[j].later |= !read;
            }
        }
        Slots { slots: slots.into_iter().map(Mutex::new).collect() }
    }

    /// Position `i` and its neighbours, each once.
    fn around(i: usize, n: usize) -> std::ops::RangeInclusive<usize> {
        i.saturating_sub(1)..=(i + 1).min(n - 1)
    }

    /// The planes below, at and above `i`; of several that fail the lowest is named, whoever came first.
    fn neighbours(
        &self,
        i: usize,
        decode: impl Fn(usize) -> Result<Arc<PlaneAndTissue>, ReadError>,
    ) -> Result<[Arc<PlaneAndTissue>; 3], ReadError> {
        let [below, above] = [i.saturating_sub(1), (i + 1).min(self.slots.len() - 1)];
        // Below comes last: its decoding is most likely under way in another thread.
        let [own, up, down] = [i, above, below].map(|j| self.plane(j, &decode));
        let down = down?;
        Ok([down, own?, up?])
    }

    fn plane(
        &self,
        j: usize,
        decode: impl Fn(usize) -> Result<Arc<PlaneAndTissue>, ReadError>,
    ) -> Result<Arc<PlaneAndTissue>, ReadError> {
        let mut slot = locked(&self.slots[j]);
        if let Some(plane) = &slot.plane {
            return Ok(plane.clone());
        }
        let plane = decode(j)?;
        slot.tissue = Some(plane.tissue);
        slot.plane = Some(plane.clone());
        Ok(plane)
    }

    fn done(&self, i: usize) {
        for j in Self::around(i, self.slots.len()) {
            let mut slot = locked(&self.slots[j]);
            slot.uses = slot.uses.saturating_sub(1);
            if slot.uses == 0 && !slot.later {
                slot.plane = None;
            }
        }
    }

    fn into_planes(
        self,
        chosen: &[&PlacedSlice],
        cache: &mut SeriesCache,
    ) -> Vec<Option<Arc<PlaneAndTissue>>> {
        let slots = self.slots.into_iter().map(|s| s.into_inner().unwrap_or_else(PoisonError::into_inner));
        let mut planes = Vec::with_capacity(chosen.len());
        for (slice, slot) in chosen.iter().zip(slots) {
            if let Some(tissue) = slot.tissue {
                cache.tissue.insert(id(slice), tissue);
            }
            planes.push(slot.plane);
        }
        planes
    }
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

/// What these locks guard is whole at any moment; a panic elsewhere is reported as such.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A panic while reading one series is that series' trouble alone.
fn guarded<T>(work: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(ReadError::Panicked))
}
