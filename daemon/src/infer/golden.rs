//! The golden series must be answered as it was when the package was made, before a model may read a patient; and it
//! must be suspected by the package's own operating point, for every proof of life asks that of the whole chain.

use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::cache::SeriesCache;
use super::package::{ModelError, Package};
use super::reader::Reader;
use super::{Class, Reading, Scores, SliceReading, hounsfield};
use crate::assemble::{Volume, geometry};
use crate::decide::{Disposition, Stage, Why, decide, suitability};
use crate::dicom::SliceHeader;
use crate::spool::Instance;

/// Golden scores may differ by this much between machines and backends.
pub const TOLERANCE: f32 = 1e-3;

/// The golden series and its answer, for a proof of life.
#[derive(Debug, Clone, Default)]
pub struct Golden {
    /// DICOM files.
    pub files: Arc<[Vec<u8>]>,
    /// Series score of `any`.
    pub any: f32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    base: Vec<[f32; 6]>,
    seq1: Vec<[f32; 6]>,
    r#final: Vec<[f32; 6]>,
}

/// Reads the golden series from the package's verified bytes, compares every probability of every stage, and judges it.
pub(super) fn prove(reader: &Reader, package: &Package) -> Result<Golden, ModelError> {
    let golden = |detail: String| ModelError::Golden { detail };
    let expected: Expected = serde_json::from_slice(package.file(&package.manifest.golden.expected))
        .map_err(|e| golden(format!("expected scores: {e}")))?;
    let mut instances = Vec::new();
    let mut cache = SeriesCache::default();
    for file in package.manifest.golden_files() {
        let bytes = package.file(file);
        let fault = |e: &dyn std::error::Error| golden(format!("`{file}`: {}", crate::chain(e)));
        let header = SliceHeader::parse(bytes).map_err(|e| fault(&e))?;
        let image = hounsfield::decode_bytes(bytes, &header).map_err(|e| fault(&e))?;
        let plane = reader.measured(&image);
        cache.tissue.insert(header.id(), plane.tissue);
        cache.planes.insert(header.id(), Arc::new(plane));
        let sha256 = Sha256::digest(bytes).into();
        instances.push(Instance { header: Arc::new(header), path: file.into(), sha256 });
    }
    let Some(first) = instances.first() else { return Err(golden("holds no files".into())) };
    let (study, series) = (first.header.study.clone(), first.header.series.clone());
    let volume = geometry::place(study, series, instances);
    let reading = reader.read(&volume, &mut cache).map_err(|e| golden(crate::chain(&e)))?;
    type Stage<'a> = (&'a str, &'a [[f32; 6]], fn(&SliceReading) -> Scores);
    let stages: [Stage; 3] = [
        ("base", &expected.base, |s| s.base),
        ("seq1", &expected.seq1, |s| s.seq1),
        ("final", &expected.r#final, |s| s.fused),
    ];
    for (stage, expected, of) in stages {
        if expected.len() != reading.slices.len() {
            return Err(golden(format!("{} slices read, {} expected", reading.slices.len(), expected.len())));
        }
        for (i, (slice, want)) in reading.slices.iter().zip(expected).enumerate() {
            for (got, want) in of(slice).0.iter().zip(want) {
                let difference = (got - want).abs();
                if difference.is_nan() || difference > TOLERANCE {
                    return Err(golden(format!("{stage} of slice {i} is {got}, expected {want}")));
                }
            }
        }
    }
    suspected(reader, &volume, &reading).map_err(golden)?;
    let files = package.manifest.golden_files().map(|file| package.file(file).to_vec()).collect();
    let any = expected.r#final.iter().map(|p| p[0]).fold(0.0, f32::max);
    Ok(Golden { files, any })
}

/// The daemon's own judgement of the golden series must be "suspected".
fn suspected(reader: &Reader, volume: &Volume, reading: &Reading) -> Result<(), String> {
    let not_analysed =
        |why: Why| format!("would not be analysed ({}), so no proof of life could pass", why.code());
    suitability::by_headers(volume, usize::MAX).map_err(not_analysed)?;
    match decide(volume, Stage::Final, Ok(reading), reader.policy()).disposition {
        Disposition::Suspected(_) => Ok(()),
        // What would be `incomplete` and so on if nothing is suspected comes to the same here.
        Disposition::NotSuspected
        | Disposition::NotAnalysed(Why::Incomplete | Why::OutsideField | Why::Contrast) => Err(format!(
            "is not suspected by the package's own operating point (any {:.3}, `final` wants {:.3}), so no proof of life \
             could pass; package it with a series that the model suspects, or with thresholds that were measured",
            reading.series.of(Class::Any),
            reader.policy().complete.thresholds[Class::Any.index()],
        )),
        Disposition::NotAnalysed(why) => Err(not_analysed(why)),
    }
}
