//! A model package on disk: signature, then hashes, then meaning. Nothing of it is trusted before that order is done.

use std::fs;
use std::path::{Component, Path, PathBuf};

use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest, Sha256};

use super::ModelId;
use super::manifest::{Manifest, ManifestError};
use crate::hex;

/// Why a model may not read a patient; exit code 78.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file of the package or a key could not be read.
    #[error("failed to read `{path}`")]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A public key file is not 64 hex digits of an Ed25519 key.
    #[error("`{path}` is no Ed25519 public key (64 hex digits)")]
    Key {
        /// Which one.
        path: PathBuf,
    },
    /// No trusted key made the signature.
    #[error(
        "manifest.sig of `{dir}` was made by none of the trusted keys (infer.trusted-keys); install a package signed for this site"
    )]
    Signature {
        /// Package.
        dir: PathBuf,
    },
    /// A file differs from what was signed.
    #[error("`{file}` has another SHA-256 than the signed manifest says; install the package again")]
    Hash {
        /// Which one.
        file: String,
    },
    /// A file is used but not covered by the signature.
    #[error("`{file}` is not listed under [files] of the manifest")]
    Unlisted {
        /// Which one.
        file: String,
    },
    /// The manifest is signed and still unusable.
    #[error("manifest refused")]
    Manifest(#[source] ManifestError),
    /// A graph could not be loaded, or has other inputs or outputs than the manifest says.
    #[error("graph `{file}` refused: {detail}")]
    Graph {
        /// ONNX file.
        file: String,
        /// What was found.
        detail: String,
    },
    /// The golden series was not answered as the manifest says.
    #[error("golden series: {detail}")]
    Golden {
        /// What differed, by how much.
        detail: String,
    },
}

/// A package whose signature and hashes are right.
#[derive(Debug)]
pub struct Package {
    /// Where it lies.
    pub dir: PathBuf,
    /// What it says.
    pub manifest: Manifest,
    /// Identity, with the hash of the manifest.
    pub id: ModelId,
}

impl Package {
    /// Verifies a package against the trusted keys.
    pub fn open(dir: &Path, keys: &[VerifyingKey]) -> Result<Self, ModelError> {
        let bytes = read(&dir.join("manifest.toml"))?;
        let signature = read(&dir.join("manifest.sig"))?;
        let signed = Signature::from_slice(&signature)
            .is_ok_and(|s| keys.iter().any(|k| k.verify_strict(&bytes, &s).is_ok()));
        if !signed {
            return Err(ModelError::Signature { dir: dir.into() });
        }
        let text = String::from_utf8_lossy(&bytes);
        let manifest = Manifest::parse(&text).map_err(ModelError::Manifest)?;
        for (file, sha256) in &manifest.files {
            let plain = Path::new(file).components().all(|c| matches!(c, Component::Normal(_)));
            if !plain || hex(&Sha256::digest(read(&dir.join(file))?)) != *sha256 {
                return Err(ModelError::Hash { file: file.clone() });
            }
        }
        let graphs = &manifest.graphs;
        for file in [&graphs.base.file, &graphs.seq1.file, &graphs.seq2.file, &manifest.golden.expected] {
            if !manifest.files.contains_key(file) {
                return Err(ModelError::Unlisted { file: file.clone() });
            }
        }
        let id = ModelId {
            id: manifest.id.clone(),
            version: manifest.version.clone(),
            sha256: hex(&Sha256::digest(&bytes)),
        };
        Ok(Package { dir: dir.into(), manifest, id })
    }

    /// The golden DICOM files, all of them signed.
    pub fn golden_files(&self) -> Vec<PathBuf> {
        let folder = format!("{}/", self.manifest.golden.series.trim_end_matches('/'));
        self.manifest.files.keys().filter(|f| f.starts_with(&folder)).map(|f| self.dir.join(f)).collect()
    }
}

/// Reads trusted public keys: one line of 64 hex digits per file.
pub fn read_keys(paths: &[PathBuf]) -> Result<Vec<VerifyingKey>, ModelError> {
    let parse = |path: &PathBuf| {
        let bad = || ModelError::Key { path: path.clone() };
        let text = String::from_utf8(read(path)?).map_err(|_| bad())?;
        let digits = text.trim();
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        VerifyingKey::from_bytes(&bytes).map_err(|_| bad())
    };
    paths.iter().map(parse).collect()
}

/// Reads one file, with its path in the error.
pub fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    fs::read(path).map_err(|source| ModelError::Read { path: path.into(), source })
}
