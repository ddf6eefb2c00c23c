//! Model packages apart from the image: installed beside each other, one of them current, one perhaps in shadow.
//!
//! ```text
//! models.directory, root's own/
//!   packages/<id>-<version>-<hash>/   never changed once it is there
//!   current  -> packages/...          what the daemon reads with; absent: `infer.model`, which the image ships
//!   previous -> packages/...          what `rollback` returns to; absent: the image's
//!   shadow   -> packages/...          reads every study as well and publishes nothing
//! ```
//!
//! A link changes by one rename: at any instant there is an old or a new one, never none. A package counts only once
//! its signature, hashes, graphs and golden scores have been found right *where it lies*, not where it came from. The
//! daemon only reads here, and verifies what it loads itself: it does not trust whoever can write.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config;
use crate::infer::manifest::Manifest;
use crate::infer::{ModelError, ModelId, Reader};
use crate::ledger::shadow::Comparison;

/// Packages kept; more must be removed by hand, so that a disk does not fill with models.
const PACKAGES_MAX: usize = 16;
/// Bytes of one package.
const PACKAGE_BYTES_MAX: u64 = 2 << 30;

/// Why a package was not taken or a link not moved.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The package may not read a patient.
    #[error("model package refused")]
    Model(#[source] ModelError),
    /// A file operation failed.
    #[error("failed to {doing} `{path}`")]
    File {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No installed package is meant, or more than one.
    #[error("`{wanted}` names {found} of the installed packages; `ichd model list` shows them")]
    Unknown {
        /// As typed.
        wanted: String,
        /// How many.
        found: usize,
    },
    /// At a limit.
    #[error("{0}")]
    Limit(String),
    /// Nothing to go back to.
    #[error("no other model was active before; the image's own is in use")]
    NoPrevious,
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::File { doing, path, source }
}

/// One installed package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// Folder name: `<id>-<version>-<first 12 digits of the hash>`.
    pub name: String,
    /// `current`, `previous`, `shadow`.
    pub roles: Vec<&'static str>,
}

/// The packages of one directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Roles are links.
const ROLES: [&str; 3] = ["current", "previous", "shadow"];

impl Store {
    /// Those of `models.directory`.
    pub fn at(directory: &Path) -> Self {
        Store { root: directory.into() }
    }

    /// Configuration of the reader with the current package in place of the image's, if there is one.
    pub fn current(&self, infer: &config::Infer) -> Option<config::Infer> {
        self.role("current", infer)
    }

    /// The same for the package in shadow.
    pub fn shadow(&self, infer: &config::Infer) -> Option<config::Infer> {
        self.role("shadow", infer)
    }

    fn role(&self, role: &str, infer: &config::Infer) -> Option<config::Infer> {
        let name = self.target(role)?;
        Some(config::Infer { model: self.packages().join(name), ..infer.clone() })
    }

    /// Everything installed, in name order.
    pub fn list(&self) -> Result<Vec<Installed>, StoreError> {
        let packages = self.packages();
        if !packages.exists() {
            return Ok(Vec::new());
        }
        let roles = ROLES.map(|role| (role, self.target(role)));
        let mut names: Vec<String> = fs::read_dir(&packages)
            .and_then(|entries| entries.map(|e| Ok(e?.file_name().to_string_lossy().into_owned())).collect())
            .map_err(file("list", &packages))?;
        // What an installation that was cut off left behind.
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        let installed = |name: String| {
            let is = |(role, target): &(&'static str, Option<String>)| {
                (target.as_ref() == Some(&name)).then_some(*role)
            };
            Installed { roles: roles.iter().filter_map(is).collect(), name }
        };
        Ok(names.into_iter().map(installed).collect())
    }

    /// Copies a package beside the others; the copy is what is verified. Installing it again changes nothing.
    pub fn install(&self, from: &Path, infer: &config::Infer) -> Result<Installed, StoreError> {
        let packages = self.packages();
        make_folder(&packages)?;
        let half = packages.join(".new");
        if half.exists() {
            fs::remove_dir_all(&half).map_err(file("remove", &half))?;
        }
        make_folder(&half)?;
        copy_package(from, &half)?;
        let id = prove(&half, infer)?;
        let name = format!("{}-{}-{}", plain(&id.id), plain(&id.version), &id.sha256[..12]);
        let to = packages.join(&name);
        if to.exists() {
            fs::remove_dir_all(&half).map_err(file("remove", &half))?;
        } else {
            if self.list()?.len() >= PACKAGES_MAX {
                let folder = packages.display();
                return Err(StoreError::Limit(format!(
                    "{PACKAGES_MAX} packages lie in `{folder}`; remove old ones"
                )));
            }
            fs::rename(&half, &to).map_err(file("move into place", &to))?;
            sync_folder(&packages)?;
        }
        self.find(&name)
    }

    /// Makes a package current once it has proved itself on its golden series; the old one is remembered.
    pub fn promote(&self, wanted: &str, infer: &config::Infer) -> Result<ModelId, StoreError> {
        let package = self.find(wanted)?;
        let id = prove(&self.packages().join(&package.name), infer)?;
        let old = self.target("current");
        if old.as_ref() != Some(&package.name) {
            // First what to return to, then the step: a power cut between them leaves the old model current.
            self.point("previous", old.as_deref())?;
            self.point("current", Some(&package.name))?;
        }
        if self.target("shadow").as_ref() == Some(&package.name) {
            self.point("shadow", None)?;
        }
        Ok(id)
    }

    /// Returns to what was current before; from the first activated package to the image's own, and from there to it
    /// again.
    pub fn rollback(&self) -> Result<Option<String>, StoreError> {
        let (current, previous) = (self.target("current"), self.target("previous"));
        if current.is_none() && previous.is_none() {
            return Err(StoreError::NoPrevious);
        }
        self.point("current", previous.as_deref())?;
        // A second rollback goes forth again.
        self.point("previous", current.as_deref())?;
        Ok(previous)
    }

    /// Lets a package run in shadow, or none.
    pub fn set_shadow(
        &self,
        wanted: Option<&str>,
        infer: &config::Infer,
    ) -> Result<Option<ModelId>, StoreError> {
        let Some(wanted) = wanted else {
            self.point("shadow", None)?;
            return Ok(None);
        };
        let package = self.find(wanted)?;
        let id = prove(&self.packages().join(&package.name), infer)?;
        self.point("shadow", Some(&package.name))?;
        Ok(Some(id))
    }

    /// The package that a name, or its unambiguous beginning, means.
    fn find(&self, wanted: &str) -> Result<Installed, StoreError> {
        let all = self.list()?;
        let mut meant: Vec<Installed> = all.iter().filter(|p| p.name == wanted).cloned().collect();
        if meant.is_empty() && !wanted.is_empty() {
            meant = all.into_iter().filter(|p| p.name.starts_with(wanted)).collect();
        }
        match <[Installed; 1]>::try_from(meant) {
            Ok([one]) => Ok(one),
            Err(meant) => Err(StoreError::Unknown { wanted: wanted.into(), found: meant.len() }),
        }
    }

    fn packages(&self) -> PathBuf {
        self.root.join("packages")
    }

    /// Hash of the manifest of the package in a role.
    pub fn sha256(&self, role: &str) -> Option<String> {
        manifest_sha256(&self.packages().join(self.target(role)?))
    }

    /// Name of the package that a role's link points to.
    pub fn target(&self, role: &str) -> Option<String> {
        let target = fs::read_link(self.root.join(role)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }

    /// Moves a link by one rename.
    fn point(&self, role: &'static str, name: Option<&str>) -> Result<(), StoreError> {
        let link = self.root.join(role);
        match name {
            Some(name) => {
                let new = self.root.join(format!(".{role}"));
                let _ = fs::remove_file(&new);
                let target = Path::new("packages").join(name);
                std::os::unix::fs::symlink(target, &new).map_err(file("make", &new))?;
                fs::rename(&new, &link).map_err(file("move", &link))?;
            }
            None => match fs::remove_file(&link) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file("remove", &link)(error));
                }
                _ => {}
            },
        }
        sync_folder(&self.root)
    }
}

/// What the daemon reads with.
pub struct Current {
    /// The reader.
    pub reader: Reader,
    /// Why it is not the current package.
    pub refused: Option<String>,
}

impl Current {
    /// Loads the current package, or the image's own. One that is no longer right must not stop the reading: the image's
    /// own was proven with this very program.
    pub fn load(config: &config::Config) -> Result<Self, ModelError> {
        let own = |refused| Reader::load(&config.infer).map(|reader| Current { reader, refused });
        let Some(current) = Store::at(&config.models.directory).current(&config.infer) else {
            return own(None);
        };
        match Reader::load(&current) {
            Ok(reader) => Ok(Current { reader, refused: None }),
            Err(error) => {
                let package = current.model.display();
                let why = format!(
                    "the current model package `{package}` is refused, reading with the image's own: {}",
                    crate::chain(&error)
                );
                log::error!(event = "model_refused"; "{why}");
                own(Some(why))
            }
        }
    }

    /// The package in shadow, on one thread. One that is not right reads nothing, and says so.
    pub fn shadow(config: &config::Config) -> Option<Reader> {
        let shadow = Store::at(&config.models.directory).shadow(&config.infer)?;
        Reader::load(&config::Infer { threads: 1, ..shadow })
            .map_err(|error| log::error!(event = "shadow_refused"; "the model in shadow is refused and reads nothing: {}", crate::chain(&error)))
            .ok()
    }
}

/// When a model in shadow may take over by itself. Pure.
impl config::Models {
    /// What still speaks against it; empty: it may.
    pub fn against(&self, seen: &Comparison) -> Vec<String> {
        let mut against = Vec::new();
        let mut say = |wrong: bool, text: String| against.extend(wrong.then_some(text));
        let agreement = if seen.series == 0 { 0.0 } else { seen.agreed as f64 / seen.series as f64 };
        say(seen.series < self.series_min, format!("{} of {} series", seen.series, self.series_min));
        say(
            seen.current_suspected < self.positives_min,
            format!(
                "{} of {} series that the current model suspects",
                seen.current_suspected, self.positives_min
            ),
        );
        say(
            agreement < self.agreement_min,
            format!("agreement {:.1} % of at least {:.1} %", agreement * 100.0, self.agreement_min * 100.0),
        );
        say(
            seen.only_current > self.missed_max,
            format!("{} findings of the current model alone, at most {}", seen.only_current, self.missed_max),
        );
        say(seen.failed > 0, format!("{} series not read or not analysed", seen.failed));
        say(
            seen.shadow_ms > self.read_ms_max as f64,
            format!("{:.0} ms a series on one thread, at most {}", seen.shadow_ms, self.read_ms_max),
        );
        against
    }
}

/// Hash of a package's manifest, which stands in every verdict; nothing is verified.
pub fn manifest_sha256(package: &Path) -> Option<String> {
    fs::read(package.join("manifest.toml")).ok().map(|bytes| crate::hex(&Sha256::digest(bytes)))
}

/// Signature, hashes, graphs, golden series: its scores, and that it is suspected.
pub fn prove(package: &Path, infer: &config::Infer) -> Result<ModelId, StoreError> {
    let config = config::Infer { model: package.into(), ..infer.clone() };
    Reader::load(&config).map(|reader| reader.model().clone()).map_err(StoreError::Model)
}

/// Copies the manifest, its signature and every file that it names, nothing else; each is synced.
fn copy_package(from: &Path, to: &Path) -> Result<(), StoreError> {
    let manifest = from.join("manifest.toml");
    let text = fs::read_to_string(&manifest).map_err(file("read", &manifest))?;
    let parsed = Manifest::parse(&text).map_err(|e| StoreError::Model(ModelError::Manifest(e)))?;
    let mut left = PACKAGE_BYTES_MAX;
    let names = ["manifest.toml", "manifest.sig"];
    for name in names.into_iter().chain(parsed.files.keys().map(String::as_str)) {
        let (source, target) = (from.join(name), to.join(name));
        // The manifest is not verified yet: a name must not lead out of the folder.
        let inside = Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)));
        if !inside {
            return Err(StoreError::Limit(format!(
                "the manifest names `{name}`, which is no file of a package"
            )));
        }
        if let Some(folder) = target.parent().filter(|f| !f.exists()) {
            make_folder(folder)?;
        }
        let mut input = File::open(&source).map_err(file("read", &source))?;
        let mut output = File::create(&target).map_err(file("write", &target))?;
        let copied = io::copy(&mut io::Read::take(&mut input, left + 1), &mut output)
            .map_err(file("copy", &target))?;
        left = left.checked_sub(copied).ok_or_else(|| {
            StoreError::Limit(format!("the package is larger than {PACKAGE_BYTES_MAX} bytes"))
        })?;
        readable(&target, 0o644)?;
        output.sync_all().map_err(file("sync", &target))?;
    }
    sync_folder(to)
}

/// The daemon is another user than whoever installs.
fn make_folder(path: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(path).map_err(file("make", path))?;
    readable(path, 0o755)
}

fn readable(path: &Path, mode: u32) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(file("set the rights of", path))
}

fn sync_folder(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|f| f.sync_all()).map_err(file("sync", path))
}

fn plain(text: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    text.chars().map(keep).take(40).collect::<String>().trim_start_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::package::tests::Forged;

    struct Box {
        state: tempfile::TempDir,
        infer: config::Infer,
    }

    impl Box {
        fn new(key: &Forged) -> Self {
            let trusted_keys = vec![key.path().join("test.pub")];
            Box {
                state: tempfile::tempdir().unwrap(),
                infer: config::Infer { trusted_keys, threads: 1, ..config::Infer::default() },
            }
        }

        fn store(&self) -> Store {
            Store::at(&self.state.path().join("models"))
        }

        fn roles(&self) -> Vec<(String, Vec<&'static str>)> {
            let version = |name: &str| name.split('-').nth(2).unwrap().to_owned();
            self.store().list().unwrap().into_iter().map(|p| (version(&p.name), p.roles)).collect()
        }
    }

    fn version(version: &'static str) -> Forged {
        Forged::new(move |_, manifest| {
            manifest.insert("version".into(), version.into());
        })
    }

    #[test]
    fn packages_lie_side_by_side_and_one_command_goes_back() {
        let (old, new) = (version("1.0.0"), version("1.1.0"));
        let here = Box::new(&old);
        let store = here.store();
        assert!(store.current(&here.infer).is_none(), "the image's own");
        store.install(old.path(), &here.infer).unwrap();
        store.install(old.path(), &here.infer).unwrap();
        store.install(new.path(), &here.infer).unwrap();
        assert_eq!(here.roles(), [("1.0.0".into(), vec![]), ("1.1.0".into(), vec![])]);
        store.promote("ichd-base-1.0.0", &here.infer).unwrap();
        store.set_shadow(Some("ichd-base-1.1.0"), &here.infer).unwrap();
        assert_eq!(here.roles(), [("1.0.0".into(), vec!["current"]), ("1.1.0".into(), vec!["shadow"])]);
        store.promote("ichd-base-1.1.0", &here.infer).unwrap();
        assert_eq!(here.roles(), [("1.0.0".into(), vec!["previous"]), ("1.1.0".into(), vec!["current"])]);
        assert!(store.current(&here.infer).unwrap().model.ends_with(&store.list().unwrap()[1].name));
        store.rollback().unwrap();
        assert_eq!(here.roles(), [("1.0.0".into(), vec!["current"]), ("1.1.0".into(), vec!["previous"])]);
        // What the daemon reads with is the package that was proven.
        assert_eq!(Reader::load(&store.current(&here.infer).unwrap()).unwrap().model().version, "1.0.0");
    }

    #[test]
    fn the_first_activation_goes_back_to_the_images_own() {
        let package = version("1.0.0");
        let here = Box::new(&package);
        let store = here.store();
        assert!(matches!(store.rollback(), Err(StoreError::NoPrevious)));
        store.install(package.path(), &here.infer).unwrap();
        store.promote("ichd", &here.infer).unwrap();
        assert_eq!(store.rollback().unwrap(), None);
        assert!(store.current(&here.infer).is_none());
        assert!(store.rollback().unwrap().is_some(), "again: forth");
        assert_eq!(here.roles(), [("1.0.0".into(), vec!["current"])]);
        assert_eq!(store.rollback().unwrap(), None);
    }

    #[test]
    fn a_rule_promotes_only_a_model_that_agrees_misses_nothing_and_is_fast_enough() {
        let rule = config::Models { series_min: 100, read_ms_max: 20_000, ..config::Models::default() };
        let good = Comparison {
            series: 100,
            agreed: 99,
            current_suspected: 10,
            shadow_ms: 9_000.0,
            ..Comparison::default()
        };
        assert!(rule.against(&good).is_empty(), "{:?}", rule.against(&good));
        for worse in [
            Comparison { series: 99, ..good.clone() },
            Comparison { agreed: 90, ..good.clone() },
            Comparison { current_suspected: 9, ..good.clone() },
            Comparison { only_current: 1, ..good.clone() },
            Comparison { failed: 1, ..good.clone() },
            Comparison { shadow_ms: 20_001.0, ..good.clone() },
        ] {
            assert_eq!(rule.against(&worse).len(), 1, "{worse:?}");
        }
        assert!(!rule.against(&Comparison::default()).is_empty());
    }

    #[test]
    fn a_package_that_is_not_right_leaves_everything_as_it_was() {
        let good = version("1.0.0");
        let here = Box::new(&good);
        let store = here.store();
        store.install(good.path(), &here.infer).unwrap();
        store.promote("ichd", &here.infer).unwrap();
        // Another answer on the golden series, signed properly.
        let wrong = Forged::new(|dir, manifest| {
            manifest.insert("version".into(), "2.0.0".into());
            let path = dir.join("golden/expected.json");
            let text = fs::read_to_string(&path).unwrap();
            let mut scores: serde_json::Value = serde_json::from_str(&text).unwrap();
            scores["final"][3][0] = 0.123.into();
            fs::write(&path, scores.to_string()).unwrap();
        });
        assert!(matches!(
            store.install(wrong.path(), &here.infer),
            Err(StoreError::Model(ModelError::Golden { .. }))
        ));
        // Changed on the disk after it was installed.
        let installed = store.current(&here.infer).unwrap().model;
        let other = version("1.1.0");
        let name = store.install(other.path(), &here.infer).unwrap().name;
        let graph = here.state.path().join("models/packages").join(&name).join("base.onnx");
        let mut bytes = fs::read(&graph).unwrap();
        bytes[100] ^= 1;
        fs::write(&graph, bytes).unwrap();
        assert!(store.promote(&name, &here.infer).is_err());
        assert_eq!(store.current(&here.infer).unwrap().model, installed);
        assert!(matches!(store.promote("ichd", &here.infer), Err(StoreError::Unknown { found: 2, .. })));
    }
}
