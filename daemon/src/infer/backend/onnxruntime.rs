//! ONNX Runtime from a shared library that is opened at run time (cargo feature `ort`).
//!
//! On the CPU each reading thread has a session of its own with one thread in it: two slices on two threads scale
//! better than two threads on one slice. On a GPU there is one session. Whatever fails here is an error for
//! [`Reader`](crate::infer::Reader) to fall back from; nothing ends the program.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{CUDA, ExecutionProviderDispatch, TensorRT};
use ort::session::Session;
use ort::value::TensorRef;

use super::{Backend, BaseOutput, SEQ2_COLUMNS, Shapes, rows};
use crate::config::Provider;
use crate::infer::package::Package;

/// Backend that runs in ONNX Runtime.
pub struct OnnxRuntime {
    base: Vec<Mutex<Session>>,
    seq1: Mutex<Session>,
    seq2: Mutex<Session>,
    shapes: Shapes,
}

impl OnnxRuntime {
    /// Opens the library (of the first path this process was given) and loads the three graphs.
    pub fn load(
        package: &Package,
        library: &Path,
        provider: Provider,
        threads: usize,
    ) -> Result<Self, String> {
        // The crate panics where the library lacks what it expects.
        catch_unwind(AssertUnwindSafe(|| Self::open(package, library, provider, threads)))
            .unwrap_or_else(|_| Err("the library could not be used".into()))
    }

    fn open(package: &Package, library: &Path, provider: Provider, threads: usize) -> Result<Self, String> {
        ort::init_from(library).map_err(|e| e.to_string())?.with_name("ichd").commit();
        let graphs = &package.manifest.graphs;
        let load = |file: &str| session(package.file(file), provider).map_err(|e| format!("`{file}`: {e}"));
        let sessions = if provider == Provider::Cpu { threads.max(1) } else { 1 };
        let base: Result<Vec<_>, String> =
            (0..sessions).map(|_| load(&graphs.base.file).map(Mutex::new)).collect();
        let backend = OnnxRuntime {
            base: base?,
            seq1: Mutex::new(load(&graphs.seq1.file)?),
            seq2: Mutex::new(load(&graphs.seq2.file)?),
            shapes: Shapes::of(&package.manifest),
        };
        backend.try_out(package).map_err(|e| e.to_string())?;
        Ok(backend)
    }

    /// A session that nobody uses at the moment, or the first one to become free.
    fn free(&self) -> MutexGuard<'_, Session> {
        for session in &self.base {
            match session.try_lock() {
                Ok(session) => return session,
                Err(TryLockError::Poisoned(session)) => return session.into_inner(),
                Err(TryLockError::WouldBlock) => {}
            }
        }
        locked(&self.base[0])
    }
}

/// CUDA such that a verdict can be replayed: full 32-bit products (TF32 has 10 bits of mantissa), and convolutions
/// chosen by rule, not by a race between them at every start.
fn cuda() -> ExecutionProviderDispatch {
    let exact = CUDA::default().with_tf32(false).with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic);
    exact.build().error_on_failure()
}

fn session(graph: &[u8], provider: Provider) -> Result<Session, String> {
    let providers: Vec<ExecutionProviderDispatch> = match provider {
        Provider::Cpu => Vec::new(),
        Provider::Cuda => vec![cuda()],
        Provider::Tensorrt => vec![TensorRT::default().build().error_on_failure(), cuda()],
    };
    let text = |e: ort::Error<ort::session::builder::SessionBuilder>| e.to_string();
    let builder = Session::builder().map_err(|e| e.to_string())?;
    let builder = builder.with_intra_threads(1).map_err(text)?;
    let builder = builder.with_intra_op_spinning(false).map_err(text)?;
    let mut builder = builder.with_execution_providers(providers).map_err(text)?;
    builder.commit_from_memory(graph).map_err(|e| e.to_string())
}

fn locked(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Outputs by name, in the order asked for.
fn run<const N: usize>(
    session: &mut Session,
    shape: &[usize],
    x: &[f32],
    names: [&str; N],
) -> Result<Vec<Vec<f32>>, String> {
    let shape: Vec<i64> = shape.iter().map(|d| i64::try_from(*d).unwrap_or(i64::MAX)).collect();
    let input = TensorRef::from_array_view((shape, x)).map_err(|e| e.to_string())?;
    let outputs = session.run(ort::inputs![input]).map_err(|e| e.to_string())?;
    let of = |name: &str| {
        let value = outputs.get(name).ok_or_else(|| format!("the graph has no output `{name}`"))?;
        value.try_extract_tensor::<f32>().map(|(_, values)| values.to_vec()).map_err(|e| e.to_string())
    };
    names.into_iter().map(of).collect()
}

fn sequence(session: &Mutex<Session>, columns: usize, x: &[f32]) -> Result<Vec<[f32; 6]>, String> {
    let n_slices = x.len() / columns;
    let outputs = run(&mut locked(session), &[1, n_slices, columns], x, ["probs"])?;
    rows(outputs.first().map_or(&[], Vec::as_slice), n_slices)
}

impl Backend for OnnxRuntime {
    fn name(&self) -> &'static str {
        "onnxruntime"
    }

    fn base(&self, x: &[f32]) -> Result<BaseOutput, String> {
        let outputs = run(&mut self.free(), &self.shapes.input, x, ["features", "probs", "map"])?;
        self.shapes.base_output(outputs)
    }

    fn seq1(&self, features: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        sequence(&self.seq1, self.shapes.features, features)
    }

    fn seq2(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        sequence(&self.seq2, SEQ2_COLUMNS, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::infer::reader_tests::{OnDisk, shipped};
    use crate::infer::{Reader, Reading, SeriesCache};
    use std::path::PathBuf;

    /// The shared library of the `onnxruntime` wheel: `$ICHD_ONNXRUNTIME`, or where tests/run installs it.
    fn library() -> Option<PathBuf> {
        let found = std::env::var_os("ICHD_ONNXRUNTIME").map(PathBuf::from).or_else(|| {
            let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/lib");
            let python = std::fs::read_dir(lib).ok()?.filter_map(|e| Some(e.ok()?.path()));
            let mut libraries =
                python.filter_map(|p| std::fs::read_dir(p.join("site-packages/onnxruntime/capi")).ok());
            let files = libraries.next()?.filter_map(|e| Some(e.ok()?.path()));
            let is_library = |p: &PathBuf| {
                p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("libonnxruntime.so"))
            };
            files.into_iter().find(is_library)
        });
        let found = found.and_then(|path| path.canonicalize().ok());
        if found.is_none() {
            eprintln!(
                "left out: no ONNX Runtime library (tests/run installs the `onnxruntime` wheel in target/venv)"
            );
        }
        found
    }

    /// On the CPU, or where `$ICHD_ONNXRUNTIME_PROVIDER` says: `cuda`, `tensorrt`.
    fn onnxruntime(library: PathBuf) -> config::Infer {
        let provider = match std::env::var("ICHD_ONNXRUNTIME_PROVIDER").as_deref() {
            Ok("cuda") => Provider::Cuda,
            Ok("tensorrt") => Provider::Tensorrt,
            _ => Provider::Cpu,
        };
        config::Infer {
            backend: config::Backend::Onnxruntime,
            onnxruntime_library: Some(library),
            onnxruntime_provider: provider,
            ..shipped()
        }
    }

    fn scores(reading: &Reading) -> Vec<f32> {
        reading.slices.iter().flat_map(|s| s.base.0.into_iter().chain(s.seq1.0).chain(s.fused.0)).collect()
    }

    #[test]
    fn both_backends_agree_to_a_thousandth_on_every_probability_of_every_slice() {
        let Some(library) = library() else { return };
        let reader = Reader::load(&onnxruntime(library)).unwrap();
        assert_eq!((reader.backend(), reader.degraded()), ("onnxruntime", None));
        let tract = Reader::load(&shipped()).unwrap();
        assert_eq!(tract.backend(), "tract");
        for (slices, step_mm) in [(24, 5.0), (60, 1.0)] {
            let series = OnDisk::new(slices, step_mm, 128);
            let read = |r: &Reader| r.read(&series.whole(), &mut SeriesCache::default()).unwrap();
            let (ours, theirs) = (scores(&read(&tract)), scores(&read(&reader)));
            assert_eq!(ours.len(), theirs.len());
            let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= 1e-3, "{worst}");
            // One input, one output: also with ONNX Runtime streaming must equal cold reading.
            assert_eq!(theirs, scores(&read(&reader)));
        }
    }
}
