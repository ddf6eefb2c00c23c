//! The three graphs behind one trait. `tract` runs them in pure Rust on the CPU.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex};

use tract_onnx::prelude::*;

use super::manifest::Manifest;
use super::package::{ModelError, Package, read};

/// The base CNN's answer for one slice.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseOutput {
    /// [F].
    pub features: Vec<f32>,
    /// [6].
    pub probs: [f32; 6],
    /// [M x M], lesion probability.
    pub map: Vec<f32>,
}

/// What runs the graphs. Calls may come from several threads at once.
pub trait Backend: Send + Sync {
    /// `x` [C, S, S] -> features, probabilities, lesion map.
    fn base(&self, x: &[f32]) -> Result<BaseOutput, String>;
    /// `features` [T, F] -> [T][6].
    fn seq1(&self, features: &[f32]) -> Result<Vec<[f32; 6]>, String>;
    /// `x` [T, 13] -> [T][6].
    fn seq2(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String>;
}

type Plan = Arc<TypedRunnableModel>;

/// Pure-Rust CPU backend.
pub struct Tract {
    base: Plan,
    input: [usize; 4],
    n_features: usize,
    map_px: usize,
    seq1: Sequence,
    seq2: Sequence,
}

/// Columns of sequence 2: six base, six sequence 1, one spacing.
pub const SEQ2_COLUMNS: usize = 13;
/// Optimised plans are kept for this many different series lengths.
const LENGTHS_MAX: usize = 64;

/// A sequence graph, optimised once per series length.
struct Sequence {
    bytes: Vec<u8>,
    columns: usize,
    plans: Mutex<HashMap<usize, Plan>>,
}

fn text(error: TractError) -> String {
    format!("{error:#}")
}

fn plan(bytes: &[u8], shape: &[usize]) -> Result<Plan, String> {
    let model = tract_onnx::onnx().model_for_read(&mut Cursor::new(bytes)).map_err(text)?;
    let model = model.with_input_fact(0, f32::fact(shape).into()).map_err(text)?;
    model.into_optimized().and_then(IntoRunnable::into_runnable).map_err(text)
}

fn run(plan: &Plan, shape: &[usize], x: &[f32]) -> Result<Vec<Vec<f32>>, String> {
    let input = Tensor::from_shape(shape, x).map_err(text)?;
    let outputs = plan.run(tvec!(input.into())).map_err(text)?;
    outputs
        .iter()
        .map(|t| t.to_plain_array_view::<f32>().map(|v| v.iter().copied().collect()).map_err(text))
        .collect()
}

fn rows(values: &[f32]) -> Vec<[f32; 6]> {
    values.chunks_exact(6).map(|row| std::array::from_fn(|c| row[c])).collect()
}

impl Sequence {
    fn run(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        let n_slices = x.len() / self.columns;
        let shape = [1, n_slices, self.columns];
        let plan = {
            let mut plans = self.plans.lock().map_err(|_| "poisoned")?;
            match plans.get(&n_slices) {
                Some(plan) => plan.clone(),
                None => {
                    if plans.len() >= LENGTHS_MAX {
                        plans.clear();
                    }
                    let made = plan(&self.bytes, &shape)?;
                    plans.insert(n_slices, made.clone());
                    made
                }
            }
        };
        let outputs = run(&plan, &shape, x)?;
        match outputs.first() {
            Some(values) if values.len() == n_slices * 6 => Ok(rows(values)),
            _ => Err("sequence graph answered another shape than [1, T, 6]".into()),
        }
    }
}

impl Tract {
    /// Loads the three graphs and checks their shapes against the manifest by running them once.
    pub fn load(package: &Package) -> Result<Self, ModelError> {
        let manifest: &Manifest = &package.manifest;
        let graphs = &manifest.graphs;
        let refuse = |file: &str| {
            let file = file.to_owned();
            move |detail: String| ModelError::Graph { file, detail }
        };
        let size = manifest.input.size_px;
        let input = [1, manifest.input.channels.len(), size, size];
        let sequence = |file: &str, columns| -> Result<Sequence, ModelError> {
            Ok(Sequence { bytes: read(&package.dir.join(file))?, columns, plans: Mutex::default() })
        };
        let base_bytes = read(&package.dir.join(&graphs.base.file))?;
        let tract = Tract {
            base: plan(&base_bytes, &input).map_err(refuse(&graphs.base.file))?,
            input,
            n_features: graphs.base.features,
            map_px: graphs.base.map_px,
            seq1: sequence(&graphs.seq1.file, graphs.base.features)?,
            seq2: sequence(&graphs.seq2.file, SEQ2_COLUMNS)?,
        };
        tract.base(&vec![0.0; input.iter().product()]).map_err(refuse(&graphs.base.file))?;
        tract.seq1(&vec![0.0; 8 * tract.n_features]).map_err(refuse(&graphs.seq1.file))?;
        tract.seq2(&[0.0; 8 * SEQ2_COLUMNS]).map_err(refuse(&graphs.seq2.file))?;
        Ok(tract)
    }
}

impl Backend for Tract {
    fn base(&self, x: &[f32]) -> Result<BaseOutput, String> {
        let outputs = run(&self.base, &self.input, x)?;
        let [features, probs, map] = &outputs[..] else {
            return Err(format!("base graph has {} outputs, 3 are needed", outputs.len()));
        };
        let (Ok(probs), true, true) = (
            <[f32; 6]>::try_from(&probs[..]),
            features.len() == self.n_features,
            map.len() == self.map_px * self.map_px,
        ) else {
            return Err("base graph answered other shapes than the manifest says".into());
        };
        Ok(BaseOutput { features: features.clone(), probs, map: map.clone() })
    }

    fn seq1(&self, features: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        self.seq1.run(features)
    }

    fn seq2(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        self.seq2.run(x)
    }
}
