//! The reader on phantom series from disk: what is read ahead never changes an answer, and what cannot be read says so.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ichd_phantom::{Bleed, SeriesOptions};
use proptest::prelude::*;

use super::backend::{Backend, BaseOutput};
use super::hounsfield::HuImage;
use super::package::{Package, read_keys};
use super::reader::Reader;
use super::{ReadError, Reading, SeriesCache};
use crate::assemble::{Volume, geometry};
use crate::config;
use crate::spool::Instance;

/// Where the shipped package and its key lie.
pub(super) fn shipped() -> config::Infer {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    config::Infer {
        model: models.join("ichd-base"),
        trusted_keys: vec![models.join("keys/ichd-base.pub")],
        ..config::Infer::default()
    }
}

/// Answers depend on every bit of the input and on nothing else.
struct Hashing;

fn hash(x: &[f32], salt: u64) -> f32 {
    let bits = x.iter().fold(salt, |h, v| (h ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01b3));
    (bits >> 40) as f32 / (1u64 << 24) as f32
}

fn row(x: &[f32], salt: u64) -> [f32; 6] {
    std::array::from_fn(|c| hash(x, salt + c as u64))
}

impl Backend for Hashing {
    fn name(&self) -> &'static str {
        "hashing"
    }

    fn base(&self, x: &[f32]) -> Result<BaseOutput, String> {
        let whole = [hash(x, 1)];
        let features = (0..256).map(|f| hash(&whole, f)).collect();
        Ok(BaseOutput { features, probs: row(&whole, 1), map: vec![hash(&whole, 9); 24 * 24].into() })
    }

    fn seq1(&self, features: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        Ok(features.chunks(256).map(|f| row(&[&f[..9], &features[..9]].concat(), 2)).collect())
    }

    fn seq2(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        Ok(x.chunks(13).map(|r| row(&[r, &x[..13]].concat(), 3)).collect())
    }
}

/// A reader with the shipped recipe on a small grid and a backend that costs nothing.
pub(crate) fn quick_reader(threads: usize) -> Reader {
    let config = shipped();
    let package = Package::open(&config.model, &read_keys(&config.trusted_keys).unwrap()).unwrap();
    Reader::with(vec![Box::new(Hashing)], &package, threads).unwrap().on_grid(48)
}

/// A phantom head on disk.
pub(super) struct OnDisk {
    dir: tempfile::TempDir,
    pub instances: Vec<Instance>,
}

impl OnDisk {
    pub fn new(slices: usize, step_mm: f32, matrix: usize) -> Self {
        let mut options = SeriesOptions::default();
        options.scan.matrix = matrix;
        options.scan.slices = slices;
        options.scan.step_mm = step_mm;
        let dir = tempfile::tempdir().unwrap();
        let series = ichd_phantom::study(3, Bleed::None, &options).unwrap();
        let instances = series.iter().enumerate().map(|(i, instance)| {
            let path = dir.path().join(format!("{i:04}.dcm"));
            std::fs::write(&path, instance.file_bytes().unwrap()).unwrap();
            Instance::read(path).unwrap()
        });
        let instances = instances.collect();
        OnDisk { dir, instances }
    }

    pub fn volume(&self, which: impl IntoIterator<Item = usize>) -> Volume {
        let instances: Vec<Instance> = which.into_iter().map(|i| self.instances[i].clone()).collect();
        let header = &self.instances[0].header;
        geometry::place(header.study.clone(), header.series.clone(), instances)
    }

    /// For tests that only want the volume: the files stay until the process ends.
    pub fn leak(self) -> &'static Self {
        Box::leak(Box::new(self))
    }

    pub fn whole(&self) -> Volume {
        self.volume(0..self.instances.len())
    }

    /// Rewrites one file with every occurrence of an element's bytes replaced.
    fn edit(&mut self, i: usize, edit: impl FnOnce(&mut Vec<u8>)) {
        let path: PathBuf = self.dir.path().join(format!("{i:04}.dcm"));
        let mut bytes = std::fs::read(&path).unwrap();
        edit(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
        self.instances[i] = Instance::read(path).unwrap();
    }
}

/// Everything of a reading that a verdict is made of, as bits.
fn bits(reading: &Reading) -> Vec<u32> {
    let of_slice = |s: &super::SliceReading| {
        let scores = s.base.0.into_iter().chain(s.seq1.0).chain(s.fused.0);
        scores.chain([s.lesion.left_cm2, s.lesion.right_cm2, s.tissue.brain_cm2]).map(f32::to_bits).collect()
    };
    let slices = reading.slices.iter().flat_map(|s| -> Vec<u32> { of_slice(s) });
    slices.chain(reading.series.0.map(f32::to_bits)).collect()
}

fn check_any_arrival(on_disk: &OnDisk, reader: &Reader, keys: &[u32], at_once: usize, looks: &[bool]) {
    let n = on_disk.instances.len();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&i| (keys[i % keys.len()].wrapping_mul(i as u32 | 1), i));
    let mut cache = SeriesCache::default();
    for k in 1..=n {
        let volume = on_disk.volume(order[..k].iter().copied());
        reader.prefetch(&volume, &mut cache, at_once).unwrap();
        if looks[k % looks.len()] {
            reader.read(&volume, &mut cache).unwrap();
        }
    }
    let streamed = reader.read(&on_disk.whole(), &mut cache).unwrap();
    let cold = reader.read(&on_disk.whole(), &mut SeriesCache::default()).unwrap();
    assert_eq!(bits(&streamed), bits(&cold), "order {order:?}");
    assert_eq!(streamed.slices.len(), cold.slices.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn reading_while_slices_arrive_in_any_order_equals_reading_at_once_bit_for_bit(
        keys in prop::collection::vec(any::<u32>(), 1..40),
        at_once in 1usize..5,
        looks in prop::collection::vec(any::<bool>(), 1..9),
        thin in any::<bool>(),
    ) {
        use std::sync::OnceLock;
        static SERIES: OnceLock<[OnDisk; 2]> = OnceLock::new();
        let series = SERIES.get_or_init(|| [OnDisk::new(14, 5.0, 32), OnDisk::new(36, 0.8, 32)]);
        check_any_arrival(&series[usize::from(thin)], &quick_reader(2), &keys, at_once, &looks);
    }
}

#[test]
fn the_shipped_model_reads_a_series_the_same_whether_it_streams_or_not() {
    let reader = Reader::load(&shipped()).unwrap();
    check_any_arrival(&OnDisk::new(10, 6.0, 128), &reader, &[7, 3, 1_000_003, 11], 2, &[false, false, true]);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let series = OnDisk::new(14, 5.0, 32);
    let read =
        |threads| bits(&quick_reader(threads).read(&series.whole(), &mut SeriesCache::default()).unwrap());
    assert_eq!(read(1), read(3));
    assert_eq!(read(1), read(64));
}

#[test]
fn in_arrival_order_all_but_the_moving_end_is_read_ahead_and_hardly_a_plane_is_held() {
    for (descending, step_mm, n) in [(false, 5.0, 20), (true, 5.0, 20), (false, 0.8, 60), (true, 0.8, 60)] {
        let series = OnDisk::new(n, step_mm, 32);
        let reader = quick_reader(1);
        let mut cache = SeriesCache::default();
        for k in 1..=n {
            let volume = series.volume((0..k).map(|i| if descending { n - 1 - i } else { i }));
            while reader.prefetch(&volume, &mut cache, 1).unwrap() {}
            assert!(cache.planes.len() <= 12, "{} planes held after {k} slices", cache.planes.len());
        }
        let read_ahead = cache.n_read();
        let n_read = reader.read(&series.whole(), &mut cache).unwrap().slices.len();
        // The two slices that end at the one that came last.
        let left = cache.n_read() - read_ahead;
        assert!(left <= 2, "{left} of {n_read} left, step {step_mm}, descending {descending}");
        assert!(cache.n_read() <= n_read + 6, "{} runs for {n_read} slices", cache.n_read());
    }
}

#[test]
fn a_slice_that_arrives_late_makes_only_its_neighbours_run_again() {
    let series = OnDisk::new(14, 5.0, 32);
    let reader = quick_reader(2);
    let mut cache = SeriesCache::default();
    reader.read(&series.volume((0..14).filter(|i| *i != 6)), &mut cache).unwrap();
    assert_eq!(cache.n_read(), 13);
    reader.read(&series.whole(), &mut cache).unwrap();
    assert_eq!(cache.n_read(), 16);
}

/// Explicit VR little endian, as the phantom writes it.
fn replace(bytes: &mut Vec<u8>, tag: [u8; 4], vr: &[u8; 2], value: &[u8]) {
    let head = [&tag[..], vr].concat();
    let at = bytes.windows(6).position(|w| w == head).expect("the phantom writes this element");
    let old = usize::from(u16::from_le_bytes([bytes[at + 6], bytes[at + 7]]));
    bytes[at + 6..at + 8].copy_from_slice(&(value.len() as u16).to_le_bytes());
    bytes.splice(at + 8..at + 8 + old, value.iter().copied());
}

#[test]
fn a_slice_that_is_no_number_or_one_single_number_gets_a_reason_and_never_a_score() {
    let reader = quick_reader(2);
    let read = |series: &OnDisk| reader.read(&series.whole(), &mut SeriesCache::default());
    let pixels_of = |bytes: &Vec<u8>| bytes.len() - 2 * 32 * 32;
    let mut constant = OnDisk::new(14, 5.0, 32);
    constant.edit(9, |bytes| {
        let at = pixels_of(bytes);
        bytes[at..].fill(0);
    });
    let sop = constant.instances[9].header.sop.clone();
    assert!(matches!(read(&constant), Err(ReadError::Blank { sop: s }) if s == sop));
    for slope in ["NaN ", "inf ", "1e40", "0 "] {
        let mut series = OnDisk::new(14, 5.0, 32);
        series.edit(4, |bytes| replace(bytes, [0x28, 0, 0x53, 0x10], b"DS", slope.as_bytes()));
        let sop = series.instances[4].header.sop.clone();
        let answer = read(&series);
        assert!(matches!(&answer, Err(ReadError::Decode { sop: s, .. }) if *s == sop), "{slope}: {answer:?}");
    }
}

#[test]
fn of_several_bad_slices_the_lowest_is_named_however_the_series_came() {
    let mut series = OnDisk::new(14, 5.0, 32);
    for i in [11, 5, 6] {
        series.edit(i, |bytes| {
            let at = bytes.len() - 2 * 32 * 32;
            bytes[at..].fill(0);
        });
    }
    let lowest = series.instances[5].header.sop.clone();
    for threads in [1, 2, 5] {
        let reader = quick_reader(threads);
        let mut cache = SeriesCache::default();
        for k in (0..14).rev() {
            let _ = reader.prefetch(&series.volume(k..14), &mut cache, 2);
        }
        for cache in [&mut cache, &mut SeriesCache::default()] {
            let answer = reader.read(&series.whole(), cache);
            assert!(matches!(&answer, Err(ReadError::Blank { sop }) if *sop == lowest), "{answer:?}");
        }
    }
}

#[test]
fn a_backend_that_fails_or_panics_is_the_series_trouble_alone() {
    struct Failing;
    impl Backend for Failing {
        fn name(&self) -> &'static str {
            "failing"
        }
        fn base(&self, x: &[f32]) -> Result<BaseOutput, String> {
            if x[0] > 1e9 { Err("never".into()) } else { panic!("on purpose") }
        }
        fn seq1(&self, _: &[f32]) -> Result<Vec<[f32; 6]>, String> {
            Err("never asked".into())
        }
        fn seq2(&self, _: &[f32]) -> Result<Vec<[f32; 6]>, String> {
            Err("never asked".into())
        }
    }
    let config = shipped();
    let package = Package::open(&config.model, &read_keys(&config.trusted_keys).unwrap()).unwrap();
    let reader = Reader::with(vec![Box::new(Failing)], &package, 2).unwrap().on_grid(48);
    let series = OnDisk::new(14, 5.0, 32);
    let answer = reader.read(&series.whole(), &mut SeriesCache::default());
    assert!(matches!(answer, Err(ReadError::Panicked)), "{answer:?}");
}

#[test]
fn a_backend_that_fails_in_the_middle_of_a_series_is_replaced_and_none_of_its_answers_is_kept() {
    /// Answers otherwise than [`Hashing`], so often, and then fails.
    struct Breaking(AtomicUsize);
    impl Backend for Breaking {
        fn name(&self) -> &'static str {
            "breaking"
        }
        fn base(&self, x: &[f32]) -> Result<BaseOutput, String> {
            if self.0.fetch_add(1, Ordering::Relaxed) >= 9 {
                return Err("the GPU has fallen off the bus".into());
            }
            Ok(BaseOutput { probs: [0.25; 6], ..Hashing.base(x)? })
        }
        fn seq1(&self, features: &[f32]) -> Result<Vec<[f32; 6]>, String> {
            Hashing.seq1(features)
        }
        fn seq2(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String> {
            Hashing.seq2(x)
        }
    }
    let config = shipped();
    let package = Package::open(&config.model, &read_keys(&config.trusted_keys).unwrap()).unwrap();
    let backends: Vec<Box<dyn Backend>> = vec![Box::new(Breaking(AtomicUsize::new(0))), Box::new(Hashing)];
    let reader = Reader::with(backends, &package, 2).unwrap().on_grid(48);
    let series = OnDisk::new(14, 5.0, 32);
    let mut cache = SeriesCache::default();
    reader.prefetch(&series.volume(0..8), &mut cache, 4).unwrap();
    assert_eq!((reader.backend(), reader.degraded(), cache.n_read()), ("breaking", None, 4));
    let reading = reader.read(&series.whole(), &mut cache).unwrap();
    assert_eq!((reader.backend(), reader.degraded()), ("hashing", Some("backend_failed:breaking")));
    let alone = quick_reader(2).read(&series.whole(), &mut SeriesCache::default()).unwrap();
    assert_eq!(bits(&reading), bits(&alone));
}

#[test]
fn whether_it_is_a_head_does_not_depend_on_what_the_network_sees() {
    let reader = quick_reader(1);
    // A skull with brain in it, so far beside the middle of an image of 400 mm.
    let tissue = |beside_mm: f64| {
        let hu = (0..512 * 512).map(|i| {
            let mm = |at: usize| (at as f64 + 0.5 - 256.0) * 400.0 / 512.0;
            match (mm(i % 512) - beside_mm).hypot(mm(i / 512)) {
                r if r < 70.0 => 35.0,
                r if r < 77.0 => 1000.0,
                _ => -1000.0,
            }
        });
        let mm = 400.0 / 512.0;
        let image = HuImage { rows: 512, columns: 512, row_mm: mm, column_mm: mm, hu: hu.collect() };
        reader.measured(&image).tissue
    };
    let (middle, beside) = (tissue(0.0), tissue(80.0));
    assert!((middle.enclosed_cm2 - beside.enclosed_cm2).abs() < 2.0, "{middle:?} {beside:?}");
    assert_eq!(middle.outside_cm2, 0.0);
    assert!(beside.outside_cm2 > 20.0, "{beside:?}");
    assert!((beside.middle_mm - 80.0).abs() < 1.0, "{beside:?}");
}
