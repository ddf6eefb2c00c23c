//! Pure Rust on the CPU: the default, and what every other backend falls back to.

use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, Mutex};

use tract_onnx::prelude::*;

use super::{Backend, BaseOutput, SEQ2_COLUMNS, Shapes, rows};
use crate::infer::package::{ModelError, Package};

type Plan = Arc<TypedRunnableModel>;

/// Pure-Rust CPU backend.
pub struct Tract {
    base: Plan,
    shapes: Shapes,
    seq1: Sequence,
    seq2: Sequence,
}

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
        rows(outputs.first().map_or(&[], Vec::as_slice), n_slices)
    }
}

impl Tract {
    /// Loads the three graphs and checks their shapes against the manifest by running them once.
    pub fn load(package: &Package) -> Result<Self, ModelError> {
        let graphs = &package.manifest.graphs;
        let shapes = Shapes::of(&package.manifest);
        let base = plan(package.file(&graphs.base.file), &shapes.input)
            .map_err(|detail| ModelError::Graph { file: graphs.base.file.clone(), detail })?;
        let sequence = |file: &str, columns| Sequence {
            bytes: package.file(file).into(),
            columns,
            plans: Mutex::default(),
        };
        let tract = Tract {
            base,
            seq1: sequence(&graphs.seq1.file, shapes.features),
            seq2: sequence(&graphs.seq2.file, SEQ2_COLUMNS),
            shapes,
        };
        tract.try_out(package)?;
        Ok(tract)
    }
}

impl Backend for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn base(&self, x: &[f32]) -> Result<BaseOutput, String> {
        self.shapes.base_output(run(&self.base, &self.shapes.input, x)?)
    }

    fn seq1(&self, features: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        self.seq1.run(features)
    }

    fn seq2(&self, x: &[f32]) -> Result<Vec<[f32; 6]>, String> {
        self.seq2.run(x)
    }
}
