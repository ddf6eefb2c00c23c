//! The three graphs behind one trait. [`tract`] is the default; others fall back to it.

#[cfg(feature = "ort")]
pub mod onnxruntime;
pub mod tract;

use std::sync::Arc;

use super::manifest::Manifest;
use super::package::{ModelError, Package};
use crate::config;

/// Columns of sequence 2: six base, six sequence 1, one spacing.
pub const SEQ2_COLUMNS: usize = 13;
/// Series length with which a backend is tried out when it is loaded.
const TRIAL_SLICES: usize = 8;

/// The base CNN's answer for one slice.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseOutput {
    /// [F].
    pub features: Vec<f32>,
    /// [6].
    pub probs: [f32; 6],
    /// [M x M], lesion probability.
    pub map: Arc<[f32]>,
}

/// What runs the graphs. Calls may come from several threads at once; one input gives one output, bit for bit.
pub trait Backend: Send + Sync {
    /// Name in the journal and in `status`.
    fn name(&self) -> &'static str;
    /// `x` [C, S, S] -> features, probabilities, lesion map.
    fn base(&self, x: &[f32]) -> Result<BaseOutput, String>;
    /// `features` [T, F] -> [T][6].
    fn seq1(&self, features: &[f32]) -> Result<Vec<[f32; 6]>, String>;
    /// `x` [T, 13] -> [T][6].
    fn seq2(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String>;

    /// Runs each graph once, so that one with other inputs or outputs than the manifest says is refused at start.
    fn try_out(&self, package: &Package) -> Result<(), ModelError> {
        let graphs = &package.manifest.graphs;
        let shapes = Shapes::of(&package.manifest);
        let refuse = |file: &String| {
            let file = file.clone();
            move |detail| ModelError::Graph { file, detail }
        };
        let x = vec![0.0; shapes.input.iter().product()];
        self.base(&x).map_err(refuse(&graphs.base.file))?;
        self.seq1(&vec![0.0; TRIAL_SLICES * shapes.features]).map_err(refuse(&graphs.seq1.file))?;
        self.seq2(&[0.0; TRIAL_SLICES * SEQ2_COLUMNS]).map_err(refuse(&graphs.seq2.file))?;
        Ok(())
    }
}

/// The backend that the configuration prefers to `tract`, if any.
pub fn preferred(
    package: &Package,
    config: &config::Infer,
    threads: usize,
) -> Option<Result<Box<dyn Backend>, String>> {
    match config.backend {
        config::Backend::Tract => None,
        #[cfg(feature = "ort")]
        config::Backend::Onnxruntime => {
            let library = config.onnxruntime_library.clone().unwrap_or_default();
            let loaded =
                onnxruntime::OnnxRuntime::load(package, &library, config.onnxruntime_provider, threads);
            Some(loaded.map(|b| Box::new(b) as Box<dyn Backend>))
        }
        #[cfg(not(feature = "ort"))]
        config::Backend::Onnxruntime => {
            let _ = (package, threads);
            Some(Err("this program was built without the cargo feature `ort`".into()))
        }
    }
}

/// What the manifest says of inputs and outputs.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// [1, C, S, S].
    pub input: [usize; 4],
    /// F.
    pub features: usize,
    /// M.
    pub map_px: usize,
}

impl Shapes {
    /// Shapes of a manifest.
    pub fn of(manifest: &Manifest) -> Self {
        let size = manifest.input.size_px;
        Shapes {
            input: [1, manifest.input.channels.len(), size, size],
            features: manifest.graphs.base.features,
            map_px: manifest.graphs.base.map_px,
        }
    }

    /// The base CNN's three outputs, in order, if they have the right lengths and hold numbers.
    pub fn base_output(&self, outputs: Vec<Vec<f32>>) -> Result<BaseOutput, String> {
        let n = outputs.len();
        let Ok([features, probs, map]) = <[Vec<f32>; 3]>::try_from(outputs) else {
            return Err(format!("base graph has {n} outputs, features, probs and map are needed"));
        };
        let (true, true, Ok(probs)) = (
            features.len() == self.features,
            map.len() == self.map_px * self.map_px,
            <[f32; 6]>::try_from(&probs[..]),
        ) else {
            return Err("base graph answered other shapes than the manifest says".into());
        };
        if !probs.iter().all(|p| (0.0..=1.0).contains(p)) {
            return Err("base graph answered something else than probabilities".into());
        }
        if !features.iter().chain(&map).all(|x| x.is_finite()) {
            return Err("base graph answered features or a map that are no numbers".into());
        }
        Ok(BaseOutput { features, probs, map: map.into() })
    }
}

/// [1, T, 6] as rows, if it holds T rows of probabilities.
pub fn rows(values: &[f32], n_slices: usize) -> Result<Vec<[f32; 6]>, String> {
    if values.len() != n_slices * 6 {
        return Err("sequence graph answered another shape than [1, T, 6]".into());
    }
    if !values.iter().all(|p| (0.0..=1.0).contains(p)) {
        return Err("sequence graph answered something else than probabilities".into());
    }
    Ok(values.chunks_exact(6).map(|row| std::array::from_fn(|c| row[c])).collect())
}
