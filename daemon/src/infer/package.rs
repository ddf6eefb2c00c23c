//! A model package on disk: signature, then hashes, then meaning. Nothing of it is trusted before that order is done.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

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

/// A package whose signature and hashes are right, with the very bytes that were hashed: nothing is read twice.
#[derive(Debug)]
pub struct Package {
    /// What it says.
    pub manifest: Manifest,
    /// Identity, with the hash of the manifest.
    pub id: ModelId,
    files: BTreeMap<String, Vec<u8>>,
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
        let mut files = BTreeMap::new();
        for (file, sha256) in &manifest.files {
            let bytes = read(&dir.join(file))?;
            if hex(&Sha256::digest(&bytes)) != *sha256 {
                return Err(ModelError::Hash { file: file.clone() });
            }
            files.insert(file.clone(), bytes);
        }
        let id = ModelId {
            id: manifest.id.clone(),
            version: manifest.version.clone(),
            sha256: hex(&Sha256::digest(&bytes)),
        };
        Ok(Package { manifest, id, files })
    }

    /// The verified bytes of a file that the manifest names.
    pub fn file(&self, name: &str) -> &[u8] {
        self.files.get(name).map_or(&[], Vec::as_slice)
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
fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    fs::read(path).map_err(|source| ModelError::Read { path: path.into(), source })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config;
    use crate::infer::Reader;
    use ed25519_dalek::{Signer, SigningKey};

    /// The shipped package in a folder of its own, changed and then signed anew by a key made for the test.
    pub(crate) struct Forged {
        dir: tempfile::TempDir,
    }

    impl Forged {
        pub(crate) fn new(edit: impl FnOnce(&Path, &mut toml::Table)) -> Self {
            let forged = Forged { dir: tempfile::tempdir().unwrap() };
            let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/ichd-base");
            let text = fs::read_to_string(shipped.join("manifest.toml")).unwrap();
            let mut manifest: toml::Table = text.parse().unwrap();
            let names: Vec<String> = manifest["files"].as_table().unwrap().keys().cloned().collect();
            for name in &names {
                let to = forged.path().join(name);
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(shipped.join(name), to).unwrap();
            }
            edit(forged.path(), &mut manifest);
            let hashes = manifest["files"].as_table_mut().unwrap();
            for (name, sha256) in hashes.iter_mut() {
                if let Ok(bytes) = fs::read(forged.dir.path().join(name)) {
                    *sha256 = hex(&Sha256::digest(bytes)).into();
                }
            }
            let key = SigningKey::from_bytes(&[7; 32]);
            let text = toml::to_string(&manifest).unwrap();
            fs::write(forged.path().join("manifest.sig"), key.sign(text.as_bytes()).to_bytes()).unwrap();
            fs::write(forged.path().join("manifest.toml"), text).unwrap();
            fs::write(forged.path().join("test.pub"), hex(key.verifying_key().as_bytes())).unwrap();
            forged
        }

        pub(crate) fn path(&self) -> &Path {
            self.dir.path()
        }

        fn load(&self) -> Result<Reader, ModelError> {
            Reader::load(&config::Infer {
                model: self.path().into(),
                trusted_keys: vec![self.path().join("test.pub")],
                ..config::Infer::default()
            })
        }

        fn refusal(&self) -> String {
            self.load().map(|_| ()).map_err(|e| crate::chain(&e)).expect_err("must be refused")
        }
    }

    fn table<'a>(manifest: &'a mut toml::Table, path: &[&str]) -> &'a mut toml::Table {
        path.iter().fold(manifest, |t, key| t[*key].as_table_mut().unwrap())
    }

    #[test]
    fn a_package_signed_anew_is_read() {
        Forged::new(|_, _| ()).load().unwrap();
    }

    #[test]
    fn a_byte_changed_in_any_file_is_named_and_so_is_a_file_that_is_gone() {
        let forged = Forged::new(|_, _| ());
        for name in ["base.onnx", "seq1.onnx", "seq2.onnx", "golden/expected.json", "golden/series/0001.dcm"]
        {
            let path = forged.path().join(name);
            let whole = fs::read(&path).unwrap();
            let mut changed = whole.clone();
            let middle = changed.len() / 2;
            changed[middle] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(matches!(forged.load().err(), Some(ModelError::Hash { file }) if file == name));
            fs::remove_file(&path).unwrap();
            assert!(forged.refusal().contains(name));
            fs::write(&path, whole).unwrap();
        }
    }

    #[test]
    fn a_manifest_changed_after_signing_or_signed_by_a_stranger_is_refused() {
        let forged = Forged::new(|_, _| ());
        let path = forged.path().join("manifest.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("name = \"final\"\n", "name = \"final\" \n")).unwrap();
        assert!(matches!(forged.load().err(), Some(ModelError::Signature { .. })));
        fs::write(&path, text).unwrap();
        let stranger = SigningKey::from_bytes(&[8; 32]).verifying_key();
        fs::write(forged.path().join("test.pub"), hex(stranger.as_bytes())).unwrap();
        assert!(matches!(forged.load().err(), Some(ModelError::Signature { .. })));
        fs::write(forged.path().join("test.pub"), "no key").unwrap();
        assert!(matches!(forged.load().err(), Some(ModelError::Key { .. })));
    }

    #[test]
    fn graphs_of_other_shapes_than_the_manifest_says_are_refused() {
        let swapped =
            Forged::new(|dir, _| fs::copy(dir.join("seq2.onnx"), dir.join("seq1.onnx")).map(|_| ()).unwrap());
        assert!(swapped.refusal().contains("seq1.onnx"));
        let garbage = Forged::new(|dir, _| fs::write(dir.join("base.onnx"), b"not a graph").unwrap());
        assert!(garbage.refusal().contains("base.onnx"));
        type Edit = fn(&mut toml::Table);
        let edits: [Edit; 4] = [
            |m| drop(table(m, &["graphs", "base"]).insert("features".into(), 128.into())),
            |m| drop(table(m, &["graphs", "base"]).insert("map-px".into(), 7.into())),
            |m| drop(table(m, &["input"]).insert("size-px".into(), 100.into())),
            |m| table(m, &["input"])["channels"].as_array_mut().unwrap().truncate(6),
        ];
        for edit in edits {
            assert!(matches!(Forged::new(|_, m| edit(m)).load().err(), Some(ModelError::Graph { .. })));
        }
    }

    #[test]
    fn a_package_that_does_not_suspect_its_own_golden_series_is_refused() {
        let strict = Forged::new(|_, manifest| {
            for point in manifest["operating-points"].as_array_mut().unwrap() {
                point["thresholds"] = vec![1.0; 6].into();
            }
        });
        let refusal = strict.refusal();
        assert!(refusal.contains("not suspected by the package's own operating point"), "{refusal}");
    }

    #[test]
    fn a_golden_series_that_is_missing_or_answered_otherwise_is_refused() {
        let other = Forged::new(|dir, _| {
            let path = dir.join("golden/expected.json");
            let text = fs::read_to_string(&path).unwrap();
            let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
            let was = json["final"][3][0].as_f64().unwrap();
            json["final"][3][0] = (if was > 0.5 { was - 0.002 } else { was + 0.002 }).into();
            fs::write(path, json.to_string()).unwrap();
        });
        assert!(other.refusal().contains("final of slice 3"), "{}", other.refusal());
        let fewer =
            Forged::new(|_, manifest| drop(table(manifest, &["files"]).remove("golden/series/0005.dcm")));
        assert!(fewer.refusal().contains("slices read"));
        let none = Forged::new(|_, manifest| table(manifest, &["files"]).retain(|f, _| !f.ends_with(".dcm")));
        assert!(none.refusal().contains("golden.series"));
        // Another step order or window shows in the golden scores, whatever else is right.
        let windows = Forged::new(|_, manifest| {
            let windows = table(manifest, &["input"])["windows"].as_array_mut().unwrap();
            drop(windows[0].as_table_mut().unwrap().insert("level-hu".into(), 60.0.into()));
        });
        assert!(matches!(windows.load().err(), Some(ModelError::Golden { .. })));
    }
}
