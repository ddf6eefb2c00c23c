//! What an update leaves behind for the next boot: which slot has proved itself, which is on trial, which version failed.
//!
//! One file of root's own on the data partition, which both slots see. It is written before RAUC is told, so that a power
//! cut at any instant leaves at most a trial that turns out never to have begun. A box without the file has proved nothing
//! and goes nowhere by itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{RaucStatus, Slot};

/// A slot that was written and has to prove itself once it boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Boot name of the slot.
    pub slot: String,
    /// Version of its bundle.
    pub version: String,
    /// The run of the machine in which it was written: it cannot have booted in that one.
    pub written_in: String,
    /// Why it failed, if it came up far enough to say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// The pages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pages {
    /// What has proved itself, by boot name: [`installation`] of the slot at that time.
    #[serde(default)]
    pub proven: BTreeMap<String, String>,
    /// The slot that has to.
    #[serde(default)]
    pub trial: Option<Trial>,
    /// Version that failed here last.
    #[serde(default)]
    pub failed: Option<String>,
    /// Orders that were done, the last ones.
    #[serde(default)]
    pub orders: Vec<String>,
}

/// What is in a slot, as far as one installation can be told from another.
pub fn installation(slot: &Slot) -> String {
    let or = |text: &Option<String>, other: &str| text.clone().unwrap_or_else(|| other.into());
    format!("{} {}", or(&slot.version, "factory"), or(&slot.installed_at, "-"))
}

impl Pages {
    /// Whether a slot, as it is now, has proved itself.
    pub fn is_proven(&self, slot: &Slot) -> bool {
        let name = slot.bootname.as_deref().unwrap_or_default();
        self.proven.get(name).is_some_and(|p| *p == installation(slot))
    }

    /// A slot that the machine can go back to: the boot loader takes it, and it has proved itself before.
    pub fn refuge<'a>(&self, status: &'a RaucStatus) -> Option<&'a Slot> {
        status.other().filter(|s| s.boot_status.as_deref() == Some("good") && self.is_proven(s))
    }

    /// The running slot must still prove itself, and there is one to go back to.
    pub fn on_trial(&self, status: &RaucStatus) -> bool {
        status.running().is_some_and(|s| !self.is_proven(s)) && self.refuge(status).is_some()
    }

    /// The trial that ended without the machine staying in its slot, seen from the slot it returned to.
    pub fn fell_back(&self, status: &RaucStatus, this_run: &str) -> Option<&Trial> {
        let trial = self.trial.as_ref()?;
        let elsewhere = status.running().is_some_and(|s| s.bootname.as_ref() != Some(&trial.slot));
        let slot = status.slots.iter().find(|s| s.bootname.as_ref() == Some(&trial.slot))?;
        // Written to its end and handed to the boot loader, or else it never had its turn.
        let activated = slot.version.as_ref() == Some(&trial.version)
            && slot.activated_at.is_some()
            && slot.activated_at >= slot.installed_at;
        (elsewhere && (trial.failure.is_some() || (activated && trial.written_in != this_run)))
            .then_some(trial)
    }
}

/// The file, held by one program at a time.
#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    /// Its content.
    pub pages: Pages,
    _lock: File,
}

impl Book {
    /// Opens or makes it; `WouldBlock` if another `ichd update` is at work.
    pub fn open(directory: &Path) -> io::Result<Self> {
        make_private(directory)?;
        let lock = File::options().create(true).truncate(false).write(true).open(directory.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
            fs::TryLockError::Error(error) => error,
        })?;
        let path = directory.join("slots.json");
        Ok(Book { pages: read(&path)?, path, _lock: lock })
    }

    /// Writes it down: after a power cut there is the old one or the new one.
    pub fn save(&self) -> io::Result<()> {
        let half = self.path.with_extension("new");
        let mut file = File::create(&half)?;
        file.write_all(&serde_json::to_vec_pretty(&self.pages).map_err(io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&half, &self.path)?;
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()
    }
}

/// Looks into it without holding it.
pub fn look(directory: &Path) -> io::Result<Pages> {
    read(&directory.join("slots.json"))
}

/// A file that cannot be read says nothing, which is what a box that has proved nothing says.
fn read(path: &Path) -> io::Result<Pages> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Pages::default()),
        Err(error) => Err(error),
    }
}

fn make_private(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if directory.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(bootname: &str, state: &str, version: Option<&str>) -> Slot {
        Slot {
            name: format!("rootfs.{bootname}"),
            bootname: Some(bootname.into()),
            state: state.into(),
            boot_status: Some("good".into()),
            version: version.map(Into::into),
            installed_at: version.map(|_| "2026-01-02T03:04:05Z".into()),
            activated_at: version.map(|_| "2026-01-02T03:04:06Z".into()),
        }
    }

    fn runs(running: &str, b_version: Option<&str>) -> RaucStatus {
        let state = |name| if name == running { "booted" } else { "inactive" };
        let slots = vec![slot("A", state("A"), None), slot("B", state("B"), b_version)];
        RaucStatus { slots, ..RaucStatus::default() }
    }

    fn proven(names: &[(&str, Option<&str>)]) -> Pages {
        let proven = names.iter().map(|(n, v)| ((*n).to_owned(), installation(&slot(n, "", *v)))).collect();
        Pages { proven, ..Pages::default() }
    }

    #[test]
    fn a_slot_is_on_trial_only_where_there_is_a_proven_one_to_go_back_to() {
        let now = runs("B", Some("2.0.0"));
        assert!(!Pages::default().on_trial(&now), "a box that lost its book goes nowhere");
        assert!(proven(&[("A", None)]).on_trial(&now));
        assert!(
            proven(&[("A", None), ("B", Some("1.0.0"))]).on_trial(&now),
            "proven was another installation"
        );
        assert!(!proven(&[("A", None), ("B", Some("2.0.0"))]).on_trial(&now));
        let mut bad = now;
        bad.slots[0].boot_status = Some("bad".into());
        assert!(!proven(&[("A", None)]).on_trial(&bad), "the boot loader would not take it");
    }

    #[test]
    fn a_trial_has_failed_when_the_machine_is_back_in_the_other_slot_after_another_boot() {
        let mut pages = Pages {
            trial: Some(Trial {
                slot: "B".into(),
                version: "2.0.0".into(),
                written_in: "one".into(),
                failure: None,
            }),
            ..Pages::default()
        };
        assert_eq!(pages.fell_back(&runs("A", Some("2.0.0")), "one"), None, "not rebooted yet");
        assert!(pages.fell_back(&runs("A", Some("2.0.0")), "two").is_some());
        assert_eq!(pages.fell_back(&runs("B", Some("2.0.0")), "two"), None, "it is having its turn");
        assert_eq!(
            pages.fell_back(&runs("A", Some("1.0.0")), "two"),
            None,
            "it was never written to its end"
        );
        let mut halfway = runs("A", Some("2.0.0"));
        halfway.slots[1].activated_at = Some("2025-01-01T00:00:00Z".into());
        assert_eq!(pages.fell_back(&halfway, "two"), None, "written, not handed to the boot loader");
        pages.trial.as_mut().unwrap().failure = Some("no verdict".into());
        assert!(pages.fell_back(&halfway, "one").is_some(), "it said so itself");
    }

    #[test]
    fn a_book_is_one_programs_and_survives_being_torn() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book::open(dir.path()).unwrap();
        assert_eq!(Book::open(dir.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        book.pages = proven(&[("A", None)]);
        book.save().unwrap();
        drop(book);
        assert_eq!(Book::open(dir.path()).unwrap().pages, proven(&[("A", None)]));
        fs::write(dir.path().join("slots.json"), "{\"prov").unwrap();
        assert_eq!(Book::open(dir.path()).unwrap().pages, Pages::default());
    }
}
