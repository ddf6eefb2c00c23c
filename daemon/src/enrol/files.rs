//! Files that hold secrets: 0600 from their first byte, synced, whole or not there at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::EnrolError;

/// Makes a folder that only its owner enters.
pub fn folder(path: &Path) -> Result<(), EnrolError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| EnrolError::File {
        doing: "make",
        path: path.into(),
        source,
    })
}

/// Writes a file that must not be there yet.
pub fn create(path: &Path, content: &[u8]) -> Result<(), EnrolError> {
    if path.exists() {
        return Err(EnrolError::Exists { path: path.into() });
    }
    replace(path, content)
}

/// Writes a file, in the place of an older one.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), EnrolError> {
    let failed = |doing| move |source| EnrolError::File { doing, path: path.into(), source };
    let parent = path.parent().unwrap_or(Path::new("."));
    folder(parent)?;
    let temporary = path.with_extension("new");
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed("write"))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed("write"))?;
    fs::rename(&temporary, path).map_err(failed("write"))?;
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed("sync"))
}
