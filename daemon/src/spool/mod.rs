//! Instances on disk: synced before anybody is thanked for them, found again after a power cut.
//!
//! ```text
//! incoming/<n>.part --parsed, synced, renamed--> studies/<study>/<series>/<sop>.dcm   read by the stages
//!                                            \-> quarantine/<sop>.<hash>.dcm          same UID, other content
//!                                             -> aside/<sop>.dcm                      not an image we read
//! ```
//!
//! An instance costs one sync. Its name in `incoming/` is durable before it comes (names are made in advance, many with
//! one sync of the folder), its preamble says how long it is and what it hashes to; so once the file is synced, a power
//! cut finds it under that name or under its last one, and the next start moves it on. Whoever is moved was synced.
//!
//! The tree is the queue: whatever is lost downstream is found here again. Owner of every instance file.

mod arrival;
mod purge;
mod sink;

pub use arrival::Arrival;
pub use purge::Purged;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use sink::{CHUNK_BYTES, Chunk, Hasher, Sink};

use crate::dicom::{HeaderError, SeriesUid, SliceHeader, SopInstanceUid, StudyUid, dataset};

/// One instance that is on disk and synced.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Parsed header.
    pub header: Arc<SliceHeader>,
    /// Part 10 file in the spool.
    pub path: PathBuf,
    /// SHA-256 of the data set bytes as received (without preamble and file meta), the slice's input hash.
    pub sha256: [u8; 32],
}

impl Instance {
    /// Reads header and input hash of a Part 10 file, wherever it lies.
    pub fn read(path: PathBuf) -> Result<Self, HeaderError> {
        let header = Arc::new(SliceHeader::read(&path)?);
        let sha256 = dataset::sha256(&path)?;
        Ok(Instance { header, path, sha256 })
    }

    /// One frame of it; itself without a number. `None` where there is no such frame.
    pub fn frame(&self, number: Option<u32>) -> Option<Instance> {
        let Some(number) = number else { return Some(self.clone()) };
        let header = Arc::new(self.header.of_frame(number)?);
        Some(Instance { header, ..self.clone() })
    }

    /// Its slices: the frames of a multi-frame image that describes them, else the instance as it is.
    pub fn into_slices(self) -> Vec<Instance> {
        let n_frames = self.header.per_frame.len() as u32;
        match n_frames {
            0 => vec![self],
            _ => (1..=n_frames).filter_map(|number| self.frame(Some(number))).collect(),
        }
    }

    /// Reads an instance of our own spool: its hash stands in the preamble, where we wrote it before anybody was
    /// thanked, so that a start need not read every pixel again.
    fn read_own(path: PathBuf) -> Result<Self, HeaderError> {
        match noted_sha256(&path).map_err(|source| HeaderError::Read { source })? {
            Some(sha256) => Ok(Instance { header: Arc::new(SliceHeader::read(&path)?), path, sha256 }),
            None => Self::read(path),
        }
    }
}

/// Instances of a series and the hashes noted in them.
pub type Noted = Vec<(SopInstanceUid, [u8; 32])>;

/// At these the spool refuses aloud.
#[derive(Debug, Clone, Copy)]
pub struct SpoolLimits {
    /// Free space below which nothing more is taken, bytes.
    pub free_bytes_min: u64,
    /// Largest data set, bytes.
    pub instance_bytes_max: u64,
}

/// Why the spool cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A folder of the spool could not be made or read.
    #[error("failed to use `{}`", without_uids(.path))]
    Folder {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// One daemon per state directory.
    #[error("`{path}` is locked: another ichd runs on this state directory")]
    Locked {
        /// Lock file.
        path: PathBuf,
    },
}

/// Why one instance was not stored; each has its DICOM status in `receive`.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Free space is below the limit.
    #[error("free space is below the limit")]
    DiskLow,
    /// Larger than the limit.
    #[error("instance is larger than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// The data set cannot be understood, or ends early.
    #[error("data set cannot be understood")]
    Header(#[source] HeaderError),
    /// Its identity differs from what the command announced.
    #[error("{attribute} in the data set differs from the command")]
    Mismatch {
        /// Which attribute.
        attribute: &'static str,
    },
    /// Writing, syncing or renaming failed.
    #[error("failed to write to the spool")]
    Io(#[source] std::io::Error),
}

/// What the sender announced; becomes the file meta (PS3.10 7.1).
#[derive(Debug, Clone)]
pub struct FileMeta {
    /// Affected SOP Class UID.
    pub sop_class: String,
    /// Affected SOP Instance UID.
    pub sop: SopInstanceUid,
    /// Transfer syntax of the presentation context.
    pub transfer_syntax: String,
    /// AE title of the sender.
    pub calling: String,
    /// Whether the stages read this SOP class; others are set aside.
    pub is_image: bool,
}

/// What became of a stored instance.
#[derive(Debug, Clone)]
pub enum Stored {
    /// On disk for the first time.
    New(Instance),
    /// The very same bytes were there already.
    Same(Instance),
    /// Another content under the same UID is there; this one is in quarantine.
    Conflict(Instance),
    /// Kept, but nothing that the stages read.
    Aside(Instance),
}

/// Folders that instances are moved to.
#[derive(Debug, Default)]
struct Places {
    /// Series folders that this process has made durable.
    durable: BTreeSet<PathBuf>,
    /// Where instances were moved to since the names in `incoming/` were last synced.
    moved_to: BTreeSet<PathBuf>,
}

/// Names made in advance with one sync of their folder.
const NAMES_AT_ONCE: usize = 64;
/// Chunks kept for the next instances; each association that is receiving one has another.
const CHUNKS_KEPT: usize = 4;

/// The spool; share it behind an `Arc`.
#[derive(Debug)]
pub struct Spool {
    root: PathBuf,
    limits: SpoolLimits,
    next: AtomicU64,
    /// Names in `incoming/` that are durable and empty.
    names: Mutex<Vec<PathBuf>>,
    /// Memory that nobody writes from at the moment: fresh memory costs as much as filling it.
    chunks: Mutex<Vec<Chunk>>,
    hasher: Arc<Hasher>,
    /// Held while a name is looked up and taken, so that of two associations with one UID exactly one is first.
    places: Mutex<Places>,
    _lock: Flock<File>,
}

impl Spool {
    /// Makes the folders, takes the lock, moves on what a crash left synced and clears what it left half written.
    pub fn open(root: &Path, limits: SpoolLimits) -> Result<Self, SpoolError> {
        let folder = |path: &Path| {
            fs::create_dir_all(path).map_err(|source| SpoolError::Folder { path: path.into(), source })
        };
        for name in ["incoming", "studies", "quarantine", "aside"] {
            folder(&root.join(name))?;
        }
        let path = root.join("lock");
        let file = File::create(&path).map_err(|source| SpoolError::Folder { path: path.clone(), source })?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => SpoolError::Locked { path: path.clone() },
            other => SpoolError::Folder { path: path.clone(), source: other.into() },
        })?;
        // The folders themselves must survive a power cut before anything in them can.
        sync_folder(root).map_err(|source| SpoolError::Folder { path: root.into(), source })?;
        let next = AtomicU64::new(0);
        let spool = Spool {
            root: root.into(),
            limits,
            next,
            names: Mutex::default(),
            chunks: Mutex::default(),
            hasher: Arc::default(),
            places: Mutex::default(),
            _lock: lock,
        };
        spool.recover()?;
        Ok(spool)
    }

    /// What was synced before a crash may have been thanked for; it goes where it was going. The rest was not.
    fn recover(&self) -> Result<(), SpoolError> {
        let incoming = self.root.join("incoming");
        let entries = fs::read_dir(&incoming)
            .map_err(|source| SpoolError::Folder { path: incoming.clone(), source })?;
        for part in entries.flatten().map(|e| e.path()) {
            match self.move_on(&part) {
                Ok(Some(Placed::New)) => {
                    log::info!(event = "recovered"; "an instance that was synced before a crash was moved on");
                }
                Ok(Some(Placed::Conflict)) => {}
                // Room, permissions and disks come back; what may have been thanked for stays until then.
                Err(StoreError::Io(error)) => {
                    log::error!(event = "spool_unsettled"; "an instance that may have been acknowledged cannot be moved on: {error}");
                    self.next.fetch_max(number_of(&part) + 1, Ordering::Relaxed);
                }
                Ok(Some(Placed::Same) | None) | Err(_) => {
                    let _ = fs::remove_file(part);
                }
            }
        }
        Ok(())
    }

    /// Settles a part that was whole and synced; `None` for one that was not, and only where the disk says so.
    fn move_on(&self, part: &Path) -> Result<Option<Placed>, StoreError> {
        let Some(sha256) = noted_sha256(part).map_err(StoreError::Io)? else { return Ok(None) };
        if dataset::sha256(part).map_err(unreadable)? != sha256 {
            return Ok(None);
        }
        let header = SliceHeader::read(part).map_err(unreadable)?;
        let is_image = crate::receive::syntax::IMAGES.contains(&header.sop_class.as_str());
        self.settle(part, &header, is_image, &sha256).map(|(placed, _)| Some(placed))
    }

    /// Bytes that may still be written; `None` if the system will not say.
    pub fn free_bytes(&self) -> Option<u64> {
        free_bytes(&self.root)
    }

    /// SOP Instance UIDs of a series by the names of its files.
    pub fn names(&self, study: &StudyUid, series: &SeriesUid) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.series_folder(study, series)) else { return Vec::new() };
        let sop = |path: PathBuf| path.file_stem().and_then(|s| s.to_str()).map(str::to_owned);
        entries.flatten().filter_map(|e| sop(e.path())).collect()
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        free_bytes(&self.root).is_none_or(|free| free > self.limits.free_bytes_min)
    }

    /// Starts one instance; the data set follows with [`Incoming::write`].
    pub fn begin(self: &Arc<Self>, meta: FileMeta) -> Result<Incoming, StoreError> {
        if !self.has_room() {
            return Err(StoreError::DiskLow);
        }
        let path = self.name().map_err(StoreError::Io)?;
        let chunk = self.chunks.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let chunk = chunk.unwrap_or_else(Chunk::aligned);
        let sink =
            Sink::open(&path, &file_meta(&meta), chunk, self.hasher.clone()).map_err(StoreError::Io)?;
        Ok(Incoming { spool: self.clone(), meta, path, sink, n_bytes: 0, moved: false })
    }

    /// A durable name in `incoming/`, of an empty file.
    fn name(&self) -> std::io::Result<PathBuf> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = names.pop() {
            return Ok(name);
        }
        let incoming = self.root.join("incoming");
        let mut made = Vec::with_capacity(NAMES_AT_ONCE);
        for _ in 0..NAMES_AT_ONCE {
            let path = incoming.join(format!("{}.part", self.next.fetch_add(1, Ordering::Relaxed)));
            File::create_new(&path)?;
            made.push(path);
        }
        // An old name must not go for good before the new one has come for good: folders are synced one by one.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        for folder in places.moved_to.iter().filter(|folder| folder.is_dir()) {
            sync_folder(folder)?;
        }
        places.moved_to.clear();
        sync_folder(&incoming)?;
        *names = made;
        names.pop().ok_or_else(|| std::io::ErrorKind::NotFound.into())
    }

    /// Takes the name that a synced instance is for if it is free; otherwise says what holds it. The part is moved
    /// unless the very same bytes are there already. Nothing is synced: until the system does it, a power cut finds
    /// the part in `incoming/`.
    fn settle(
        &self,
        part: &Path,
        header: &SliceHeader,
        is_image: bool,
        sha256: &[u8; 32],
    ) -> Result<(Placed, PathBuf), StoreError> {
        let folder = match is_image {
            true => self.series_folder(&header.study, &header.series),
            false => self.root.join("aside"),
        };
        let path = folder.join(format!("{}.dcm", header.sop.as_str()));
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let quarantine = |places: &mut Places, first: PathBuf| {
            let name = format!("{}.{}.dcm", header.sop.as_str(), &crate::hex(sha256)[..16]);
            let folder = self.root.join("quarantine");
            fs::rename(part, folder.join(name)).map_err(StoreError::Io)?;
            places.moved_to.insert(folder);
            Ok((Placed::Conflict, first))
        };
        if let Some(first) = is_image.then(|| in_another_series(&folder, &path)).flatten() {
            return quarantine(&mut places, first);
        }
        self.make_durable(&folder, &mut places)?;
        if !path.exists() {
            fs::rename(part, &path).map_err(StoreError::Io)?;
            places.moved_to.insert(folder);
            return Ok((Placed::New, path));
        }
        if dataset::sha256(&path).map_err(unreadable)? == *sha256 {
            return Ok((Placed::Same, path));
        }
        quarantine(&mut places, path)
    }

    /// Every instance in the tree at once.
    #[cfg(test)]
    pub fn rescan(&self) -> Result<Vec<Instance>, SpoolError> {
        let mut found = Vec::new();
        for study in folders(&self.root.join("studies"))? {
            for series in folders(&study)? {
                read_series(&series, Instance::read_own, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Where instances lie by SOP Instance UID, whatever their series; those in quarantine are not held.
    pub fn find<'a>(
        &self,
        wanted: impl Iterator<Item = &'a SopInstanceUid>,
    ) -> Result<HashMap<SopInstanceUid, PathBuf>, SpoolError> {
        let wanted: HashMap<String, &SopInstanceUid> =
            wanted.map(|sop| (format!("{}.dcm", sop.as_str()), sop)).collect();
        let mut found = HashMap::new();
        let mut look = |folder: &Path| -> Result<(), SpoolError> {
            let entries =
                fs::read_dir(folder).map_err(|source| SpoolError::Folder { path: folder.into(), source })?;
            for entry in entries.flatten() {
                if let Some(sop) = entry.file_name().to_str().and_then(|name| wanted.get(name)) {
                    found.insert((*sop).clone(), entry.path());
                }
            }
            Ok(())
        };
        for study in folders(&self.root.join("studies"))? {
            for series in folders(&study)? {
                look(&series)?;
            }
        }
        look(&self.root.join("aside"))?;
        Ok(found)
    }

    /// Where a set-aside instance lies, if it is there.
    pub fn set_aside_path(&self, sop: &str) -> PathBuf {
        self.root.join("aside").join(format!("{sop}.dcm"))
    }

    /// Every set-aside instance.
    pub fn set_aside(&self) -> Result<BTreeSet<PathBuf>, SpoolError> {
        let path = self.root.join("aside");
        let entries = fs::read_dir(&path).map_err(|source| SpoolError::Folder { path, source })?;
        Ok(entries
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "dcm"))
            .collect())
    }

    /// Studies of the tree, by UID.
    pub fn studies(&self) -> Result<Vec<StudyUid>, SpoolError> {
        let folders = folders(&self.root.join("studies"))?;
        Ok(folders.iter().filter_map(|f| StudyUid::parse(f.file_name()?.to_str()?).ok()).collect())
    }

    /// Series of a study, by UID; none of one that has gone.
    pub fn series_of(&self, study: &StudyUid) -> Result<Vec<SeriesUid>, SpoolError> {
        let folders = match folders(&self.root.join("studies").join(study.as_str())) {
            Err(SpoolError::Folder { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Vec::new()
            }
            folders => folders?,
        };
        Ok(folders.iter().filter_map(|f| SeriesUid::parse(f.file_name()?.to_str()?).ok()).collect())
    }

    /// Instances of a series with the hashes noted in them, without a look at header or pixels; `None` where one has no
    /// note, or could not be read. `beat` is called for each.
    pub fn noted(
        &self,
        study: &StudyUid,
        series: &SeriesUid,
        beat: &dyn Fn(),
    ) -> Result<Option<Noted>, SpoolError> {
        let mut noted = Vec::new();
        for path in files(&self.series_folder(study, series))? {
            beat();
            let sop = path.file_stem().and_then(|s| s.to_str()).and_then(|s| SopInstanceUid::parse(s).ok());
            let Some((sop, sha256)) = sop.zip(noted_sha256(&path).ok().flatten()) else { return Ok(None) };
            noted.push((sop, sha256));
        }
        Ok(Some(noted))
    }

    /// The instances of one series, and whether some could not be read that may be another time. What goes meanwhile, and
    /// a file that makes no sense, is left out. `beat` is called for each.
    pub fn read(
        &self,
        study: &StudyUid,
        series: &SeriesUid,
        beat: &dyn Fn(),
    ) -> Result<(Vec<Instance>, bool), SpoolError> {
        let (mut found, mut missed) = (Vec::new(), false);
        for path in files(&self.series_folder(study, series))? {
            beat();
            match Instance::read_own(path) {
                Ok(instance) => found.push(instance),
                Err(HeaderError::Read { source }) if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => {
                    missed |= matches!(error, HeaderError::Read { .. });
                    log::error!(event = "spool_unreadable"; "a stored instance cannot be read: {}", crate::chain(&error));
                }
            }
        }
        Ok((found, missed))
    }

    /// SOP Instance UIDs of which another content lies in quarantine.
    pub fn quarantined(&self) -> Result<HashSet<String>, SpoolError> {
        let files = files(&self.root.join("quarantine"))?;
        // `<sop>.<16 hex>.dcm`
        let sop = |path: &PathBuf| Some(path.file_stem()?.to_str()?.rsplit_once('.')?.0.to_owned());
        Ok(files.iter().filter_map(sop).collect())
    }

    /// The instances of one series.
    pub fn series(&self, study: &StudyUid, series: &SeriesUid) -> Result<Vec<Instance>, SpoolError> {
        let folder = self.series_folder(study, series);
        let mut found = Vec::new();
        if folder.is_dir() {
            read_series(&folder, Instance::read_own, &mut found)?;
        }
        Ok(found)
    }

    /// Removes every instance of a series; the caller answers for nothing of it being open. A crash in between leaves
    /// fewer instances, never a half one.
    pub fn remove_series(&self, study: &StudyUid, series: &SeriesUid) -> Result<(), SpoolError> {
        let folder = self.series_folder(study, series);
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.durable.remove(&folder);
        match fs::remove_dir_all(&folder) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(SpoolError::Folder { path: folder, source });
            }
            _ => {}
        }
        // Fails while another series of the study is there, as it should.
        let _ = folder.parent().map(fs::remove_dir);
        Ok(())
    }

    /// Makes a series folder that survives a power cut, once per process: a crash may have come between the two steps.
    fn make_durable(&self, folder: &Path, places: &mut Places) -> Result<(), StoreError> {
        // A person may have tidied up behind our back.
        if places.durable.contains(folder) && folder.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(folder).map_err(StoreError::Io)?;
        for parent in folder.ancestors().skip(1).take_while(|parent| parent.starts_with(&self.root)) {
            sync_folder(parent).map_err(StoreError::Io)?;
        }
        places.durable.insert(folder.to_owned());
        Ok(())
    }

    fn series_folder(&self, study: &StudyUid, series: &SeriesUid) -> PathBuf {
        series_folder(&self.root, study, series)
    }
}

/// The instances of one series of a spool, which may belong to a running daemon, hashed anew.
pub fn stored_series(root: &Path, study: &StudyUid, series: &SeriesUid) -> Result<Vec<Instance>, SpoolError> {
    let folder = series_folder(root, study, series);
    let mut found = Vec::new();
    if folder.is_dir() {
        read_series(&folder, Instance::read, &mut found)?;
    }
    Ok(found)
}

/// Whether another content of this UID was set aside.
pub fn is_quarantined(root: &Path, sop: &SopInstanceUid) -> bool {
    let prefix = format!("{}.", sop.as_str());
    // `<sop>.<16 hex>.dcm`: a longer UID that starts alike has more parts.
    let mine = |name: &str| {
        let rest = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(".dcm"));
        rest.is_some_and(|hash| hash.len() == 16 && !hash.contains('.'))
    };
    let entries = fs::read_dir(root.join("quarantine"));
    entries.is_ok_and(|entries| entries.flatten().any(|e| e.file_name().to_str().is_some_and(mine)))
}

fn series_folder(root: &Path, study: &StudyUid, series: &SeriesUid) -> PathBuf {
    root.join("studies").join(study.as_str()).join(series.as_str())
}

/// Bytes that an unprivileged program may still write there; `None` if the system will not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stat = nix::sys::statvfs::statvfs(path).ok()?;
    Some(stat.blocks_available() as u64 * stat.fragment_size() as u64)
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let entries = fs::read_dir(path).map_err(|source| SpoolError::Folder { path: path.into(), source })?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    paths.sort();
    Ok(paths)
}

/// Files of a folder; none of one that has gone.
fn files(folder: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    match fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
            .map_err(|source| SpoolError::Folder { path: folder.into(), source }),
    }
}

fn read_series(
    folder: &Path,
    read: impl Fn(PathBuf) -> Result<Instance, HeaderError>,
    found: &mut Vec<Instance>,
) -> Result<(), SpoolError> {
    let entries =
        fs::read_dir(folder).map_err(|source| SpoolError::Folder { path: folder.into(), source })?;
    for path in entries.flatten().map(|e| e.path()) {
        match read(path) {
            Ok(instance) => found.push(instance),
            Err(error) => {
                log::error!(event = "spool_unreadable"; "a stored instance cannot be read: {}", crate::chain(&error))
            }
        }
    }
    Ok(())
}

/// One instance on its way to disk. Dropped before [`Incoming::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Incoming {
    spool: Arc<Spool>,
    meta: FileMeta,
    path: PathBuf,
    sink: Sink,
    n_bytes: u64,
    moved: bool,
}

impl Incoming {
    /// Appends data set bytes exactly as received.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let before = self.n_bytes;
        self.n_bytes += bytes.len() as u64;
        let limit = self.spool.limits.instance_bytes_max;
        if self.n_bytes > limit {
            return Err(StoreError::TooLarge { limit });
        }
        // Looked at again with every chunk of a large one.
        let chunk = CHUNK_BYTES as u64;
        if before / chunk != self.n_bytes / chunk && !self.spool.has_room() {
            return Err(StoreError::DiskLow);
        }
        self.sink.write(bytes).map_err(StoreError::Io)
    }

    /// Checks, syncs, renames. Only after this may anybody be thanked.
    pub fn commit(mut self) -> Result<Stored, StoreError> {
        // Checked first: what a crash leaves synced has passed.
        let header = match self.sink.whole() {
            Some(file) => SliceHeader::parse(file),
            None => {
                self.sink.write_out().map_err(StoreError::Io)?;
                SliceHeader::read(&self.path)
            }
        };
        let header = header.map_err(unreadable)?;
        if header.sop != self.meta.sop {
            return Err(StoreError::Mismatch { attribute: "SOPInstanceUID" });
        }
        if header.sop_class != self.meta.sop_class {
            return Err(StoreError::Mismatch { attribute: "SOPClassUID" });
        }
        if self.meta.is_image && !header.has_pixels {
            return Err(StoreError::Header(HeaderError::Missing { attribute: "PixelData" }));
        }
        let sha256 = self.sink.finish(note).map_err(StoreError::Io)?;
        let (placed, path) = self.spool.settle(&self.path, &header, self.meta.is_image, &sha256)?;
        self.moved = !matches!(placed, Placed::Same);
        Ok(match placed {
            // Said of the one that stays.
            Placed::Conflict => Stored::Conflict(Instance::read(path).map_err(unreadable)?),
            _ if !self.meta.is_image => Stored::Aside(Instance { header: Arc::new(header), path, sha256 }),
            Placed::Same => Stored::Same(Instance { header: Arc::new(header), path, sha256 }),
            Placed::New => Stored::New(Instance { header: Arc::new(header), path, sha256 }),
        })
    }
}

/// A SOP Instance UID is unique in the world (PS3.5 9); of two series of a study that claim one, the first has it.
fn in_another_series(folder: &Path, path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?;
    let others = fs::read_dir(folder.parent()?).ok()?.flatten().map(|e| e.path());
    others.filter(|other| other != folder).map(|other| other.join(name)).find(|other| other.exists())
}

/// Number of `<n>.part`.
fn number_of(part: &Path) -> u64 {
    part.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok()).unwrap_or(0)
}

enum Placed {
    New,
    Same,
    Conflict,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut chunks = self.spool.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if chunks.len() < CHUNKS_KEPT {
            chunks.push(self.sink.take_chunk());
        }
        drop(chunks);
        if !self.moved {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file that the system will not read is our trouble; one that makes no sense is the sender's.
fn unreadable(error: HeaderError) -> StoreError {
    match error {
        HeaderError::Read { source, .. } => StoreError::Io(source),
        other => StoreError::Header(other),
    }
}

/// First bytes of a preamble that holds the hash of the data set: this mark, the length of the file (u64, little
/// endian), the SHA-256. The preamble is free for an application's own use (PS3.10 7.1).
const NOTED: &[u8; 8] = b"ICHD\0\0\0\x01";

fn note(file_bytes: u64, sha256: &[u8; 32]) -> Vec<u8> {
    [&NOTED[..], &file_bytes.to_le_bytes(), sha256].concat()
}

/// The hash that stands in the preamble of a file which still has the length it had then; `None` where there is none.
fn noted_sha256(path: &Path) -> std::io::Result<Option<[u8; 32]>> {
    let file = File::open(path)?;
    let mut note = [0; 48];
    match file.read_exact_at(&mut note, 0) {
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let (mark, rest) = note.split_at(NOTED.len());
    let (length, sha256) = rest.split_at(8);
    let is_ours = mark == NOTED && length == file.metadata()?.len().to_le_bytes();
    Ok(sha256.try_into().ok().filter(|_| is_ours))
}

/// A path as far as it names no examination: folders and files of the spool are named by UIDs.
fn without_uids(path: &Path) -> String {
    let is_uid = |part: &std::ffi::OsStr| {
        let text = part.to_string_lossy();
        let mut numbers = text.split('.').map(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
        numbers.next() == Some(true) && numbers.next() == Some(true)
    };
    let known: PathBuf = path.components().take_while(|part| !is_uid(part.as_os_str())).collect();
    if known == path { path.display().to_string() } else { known.join("...").display().to_string() }
}

/// Preamble and file meta group (PS3.10 7.1), explicit VR little endian.
fn file_meta(meta: &FileMeta) -> Vec<u8> {
    let mut group = Vec::with_capacity(256);
    element(&mut group, 0x0001, b"OB", &[0, 1]);
    element(&mut group, 0x0002, b"UI", meta.sop_class.as_bytes());
    element(&mut group, 0x0003, b"UI", meta.sop.as_str().as_bytes());
    element(&mut group, 0x0010, b"UI", meta.transfer_syntax.as_bytes());
    element(&mut group, 0x0012, b"UI", crate::receive::IMPLEMENTATION_CLASS_UID.as_bytes());
    element(&mut group, 0x0013, b"SH", crate::receive::IMPLEMENTATION_VERSION_NAME.as_bytes());
    element(&mut group, 0x0016, b"AE", meta.calling.as_bytes());
    let mut bytes = vec![0; 128];
    bytes.extend(b"DICM");
    bytes.extend([2, 0, 0, 0, b'U', b'L', 4, 0]);
    bytes.extend(u32::try_from(group.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(group);
    bytes
}

fn element(into: &mut Vec<u8>, element: u16, vr: &[u8; 2], value: &[u8]) {
    let padded = value.len() + value.len() % 2;
    into.extend([2, 0]);
    into.extend(element.to_le_bytes());
    into.extend(vr);
    if vr == b"OB" {
        into.extend([0, 0]);
        into.extend((padded as u32).to_le_bytes());
    } else {
        into.extend((padded as u16).to_le_bytes());
    }
    into.extend(value);
    if value.len() % 2 == 1 {
        into.push(if matches!(vr, b"SH" | b"AE") { b' ' } else { 0 });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: SpoolLimits = SpoolLimits { free_bytes_min: 0, instance_bytes_max: 1 << 20 };

    fn phantom() -> ichd_phantom::Instance {
        let options = ichd_phantom::SeriesOptions {
            scan: ichd_phantom::scan::ScanOptions { matrix: 32, slices: 1, ..Default::default() },
            ..Default::default()
        };
        ichd_phantom::study(1, ichd_phantom::Bleed::None, &options).unwrap().remove(0)
    }

    fn meta(instance: &ichd_phantom::Instance) -> FileMeta {
        FileMeta {
            sop_class: instance.sop_class_uid.into(),
            sop: SopInstanceUid::parse(&instance.sop_instance_uid).unwrap(),
            transfer_syntax: instance.transfer_syntax_uid.into(),
            calling: "CT1".into(),
            is_image: true,
        }
    }

    impl Spool {
        /// Instances on their way; names made in advance are none.
        pub fn n_arriving(&self) -> usize {
            let entries = fs::read_dir(self.root.join("incoming")).unwrap();
            entries.flatten().filter(|e| e.metadata().is_ok_and(|m| m.len() > 0)).count()
        }
    }

    fn store(spool: &Arc<Spool>, meta: FileMeta, bytes: &[u8]) -> Result<Stored, StoreError> {
        let mut incoming = spool.begin(meta)?;
        incoming.write(bytes)?;
        incoming.commit()
    }

    #[test]
    fn a_stored_instance_is_found_again_and_its_duplicate_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        let Stored::New(first) = store(&spool, meta(&p), &p.dataset_bytes).unwrap() else { panic!() };
        assert!(matches!(store(&spool, meta(&p), &p.dataset_bytes).unwrap(), Stored::Same(_)));
        let mut other = p.dataset_bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        assert!(matches!(store(&spool, meta(&p), &other).unwrap(), Stored::Conflict(_)));
        drop(spool);
        let found = Spool::open(dir.path(), LIMITS).unwrap().rescan().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].header, found[0].sha256), (&first.header, first.sha256));
    }

    /// One instance in the spool, for tests of the modules beside.
    pub fn stored(spool: &Arc<Spool>) -> Instance {
        let p = phantom();
        match store(spool, meta(&p), &p.dataset_bytes).unwrap() {
            Stored::New(instance) | Stored::Same(instance) => instance,
            other => panic!("{other:?}"),
        }
    }

    /// As a power cut leaves it that took the rename with it: the synced part under its first name.
    #[test]
    fn what_was_synced_before_a_crash_is_moved_on_and_what_was_not_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        let first = stored(&spool);
        let other = FileMeta { is_image: false, ..meta(&p) };
        assert!(matches!(store(&spool, other, &p.dataset_bytes).unwrap(), Stored::Aside(_)));
        drop(spool);
        let part = |n: u32| dir.path().join(format!("incoming/{n}.part"));
        let bytes = fs::read(&first.path).unwrap();
        fs::rename(&first.path, part(900)).unwrap();
        for (n, cut) in [(901, 1), (902, 0)] {
            let mut torn = bytes.clone();
            // A length that was written and a page that was not.
            torn[bytes.len() - 600..].fill(cut);
            fs::write(part(n), &torn[..bytes.len() - cut as usize]).unwrap();
        }
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        let found = spool.rescan().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((&found[0].path, found[0].sha256), (&first.path, first.sha256));
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
        assert!(matches!(store(&spool, meta(&p), &p.dataset_bytes).unwrap(), Stored::Same(_)));
        // Again, with the rename done and the old name still there: nothing is lost and nothing is twice.
        drop(spool);
        fs::copy(&first.path, part(3)).unwrap();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        assert_eq!((spool.rescan().unwrap().len(), spool.n_arriving()), (1, 0));
    }

    #[test]
    fn a_start_takes_the_hash_from_the_preamble_and_evidence_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        let first = stored(&spool);
        assert_eq!(dataset::sha256(&first.path).unwrap(), first.sha256, "the preamble is not part of it");
        let (study, series) = (&first.header.study, &first.header.series);
        let mut bytes = fs::read(&first.path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&first.path, &bytes).unwrap();
        assert_eq!(spool.rescan().unwrap()[0].sha256, first.sha256, "not hashed again");
        let anew = stored_series(dir.path(), study, series).unwrap().remove(0);
        assert_ne!(anew.sha256, first.sha256);
        // A file of another length, or without the mark, is hashed.
        bytes.extend([0, 0]);
        fs::write(&first.path, &bytes).unwrap();
        assert_eq!(noted_sha256(&first.path).unwrap(), None);
        bytes[..48].fill(0);
        fs::write(&first.path, &bytes).unwrap();
        assert_eq!(noted_sha256(&first.path).unwrap(), None);
    }

    #[test]
    fn a_start_removes_nothing_that_the_disk_will_not_let_it_read() {
        let dir = tempfile::tempdir().unwrap();
        drop(Spool::open(dir.path(), LIMITS).unwrap());
        let part = |n: u32| dir.path().join(format!("incoming/{n}.part"));
        // A name that leads to itself: opened, it is an error (ELOOP), as a bad block or a lost permission would be.
        std::os::unix::fs::symlink(part(5), part(5)).unwrap();
        fs::write(part(6), b"torn").unwrap();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        assert!(part(5).symlink_metadata().is_ok(), "nobody knows that it was not acknowledged");
        assert!(!part(6).exists(), "it never was whole");
        // And its name is not given away.
        (0..3).for_each(|_| drop(stored(&spool)));
        assert!(part(5).symlink_metadata().is_ok());
    }

    #[test]
    fn no_error_of_the_spool_names_an_examination() {
        let place = |path: &str| SpoolError::Folder {
            path: path.into(),
            source: std::io::ErrorKind::NotFound.into(),
        };
        let told = place("/var/lib/ichd/spool/studies/1.2.840.1/1.2.840.2").to_string();
        assert_eq!(told, "failed to use `/var/lib/ichd/spool/studies/...`");
        assert_eq!(without_uids(Path::new("/s/quarantine/1.2.3.0123456789abcdef.dcm")), "/s/quarantine/...");
        assert_eq!(without_uids(Path::new("/srv/ichd-1.2/spool")), "/srv/ichd-1.2/spool");
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Spool::open(dir.path(), LIMITS).unwrap();
        assert!(matches!(Spool::open(dir.path(), LIMITS), Err(SpoolError::Locked { .. })));
    }

    #[test]
    fn limits_refuse_aloud() {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom();
        let spool =
            Arc::new(Spool::open(dir.path(), SpoolLimits { instance_bytes_max: 10, ..LIMITS }).unwrap());
        assert!(matches!(store(&spool, meta(&p), &p.dataset_bytes), Err(StoreError::TooLarge { limit: 10 })));
        drop(spool);
        let full = SpoolLimits { free_bytes_min: u64::MAX, ..LIMITS };
        let spool = Arc::new(Spool::open(dir.path(), full).unwrap());
        assert!(matches!(store(&spool, meta(&p), &p.dataset_bytes), Err(StoreError::DiskLow)));
    }

    #[test]
    fn of_two_associations_with_one_uid_exactly_one_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        for round in 0..12 {
            let (study, series) = (StudyUid::parse(&p.study_uid), SeriesUid::parse(&p.series_uid));
            let place = spool.series_folder(&study.unwrap(), &series.unwrap());
            let _ = fs::remove_dir_all(&place);
            let barrier = std::sync::Barrier::new(6);
            let stored: Vec<Stored> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..6u8)
                    .map(|n| {
                        let (mut bytes, spool, barrier, meta) =
                            (p.dataset_bytes.clone(), &spool, &barrier, meta(&p));
                        *bytes.last_mut().unwrap() ^= n;
                        scope.spawn(move || {
                            let mut incoming = spool.begin(meta).unwrap();
                            incoming.write(&bytes).unwrap();
                            barrier.wait();
                            incoming.commit().unwrap()
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let n_new = stored.iter().filter(|s| matches!(s, Stored::New(_))).count();
            let n_conflict = stored.iter().filter(|s| matches!(s, Stored::Conflict(_))).count();
            assert_eq!((n_new, n_conflict), (1, 5), "round {round}");
        }
    }

    #[test]
    fn nothing_set_aside_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        let meta = || FileMeta { is_image: false, ..meta(&p) };
        assert!(matches!(store(&spool, meta(), &p.dataset_bytes).unwrap(), Stored::Aside(_)));
        assert!(matches!(store(&spool, meta(), &p.dataset_bytes).unwrap(), Stored::Aside(_)));
        let mut other = p.dataset_bytes.clone();
        *other.last_mut().unwrap() ^= 1;
        assert!(matches!(store(&spool, meta(), &other).unwrap(), Stored::Conflict(_)));
        assert!(is_quarantined(dir.path(), &SopInstanceUid::parse(&p.sop_instance_uid).unwrap()));
        assert!(!is_quarantined(dir.path(), &SopInstanceUid::parse("1.2").unwrap()));
        let n = |folder: &str| fs::read_dir(dir.path().join(folder)).unwrap().count();
        assert_eq!((n("aside"), n("quarantine"), spool.n_arriving()), (1, 1, 0));
    }

    #[test]
    fn a_removed_series_is_gone_and_may_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let p = phantom();
        let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
        let Stored::New(first) = store(&spool, meta(&p), &p.dataset_bytes).unwrap() else { panic!() };
        let (study, series) = (&first.header.study, &first.header.series);
        spool.remove_series(study, series).unwrap();
        spool.remove_series(study, series).unwrap();
        assert!(spool.rescan().unwrap().is_empty() && spool.series(study, series).unwrap().is_empty());
        assert!(matches!(store(&spool, meta(&p), &p.dataset_bytes).unwrap(), Stored::New(_)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Promise 1 from the other side: what is cut anywhere is refused and leaves nothing behind.
        #[test]
        fn a_data_set_cut_at_any_byte_leaves_nothing(cut in any::<prop::sample::Index>()) {
            let dir = tempfile::tempdir().unwrap();
            let p = phantom();
            let spool = Arc::new(Spool::open(dir.path(), LIMITS).unwrap());
            let n = cut.index(p.dataset_bytes.len());
            let stored = store(&spool, meta(&p), &p.dataset_bytes[..n]);
            prop_assert!(matches!(stored, Err(StoreError::Header(_))), "{:?}", stored);
            prop_assert!(spool.rescan().unwrap().is_empty());
            prop_assert_eq!(spool.n_arriving(), 0);
        }
    }
}
