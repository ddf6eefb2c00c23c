//! The bytes of one instance on their way to its file.
//!
//! They are collected in memory that is used again and go out in whole blocks past the page cache (`O_DIRECT`): finding
//! fresh pages for the cache costs more than the disk does, and a slice has to be on the disk anyway before anybody is
//! thanked. What fills no block goes through the cache, so that the file always has its true length. A file system that
//! does not know `O_DIRECT` gets everything that way.

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;

/// What memory, place and length of a direct write are multiples of; no disk asks for more.
const BLOCK_BYTES: usize = 4096;
/// Collected before it goes out: a slice whole, more than that in pieces.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Memory for one chunk, which begins at a multiple of [`BLOCK_BYTES`].
#[derive(Debug, Default)]
pub struct Chunk {
    /// Never grows: it would move.
    memory: Vec<u8>,
    start: usize,
}

impl Chunk {
    pub fn new() -> Self {
        let mut memory: Vec<u8> = Vec::with_capacity(BLOCK_BYTES + CHUNK_BYTES);
        // Where it cannot be said, direct writes are refused and the others are not.
        let start = memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        memory.resize(start, 0);
        Chunk { memory, start }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    fn room(&self) -> usize {
        CHUNK_BYTES - self.bytes().len()
    }

    fn clear(&mut self) {
        self.memory.truncate(self.start);
    }
}

/// A file that is written from its beginning.
#[derive(Debug)]
pub struct Sink {
    file: File,
    /// The same file past the page cache, where that goes.
    direct: Option<File>,
    chunk: Chunk,
    n_written: u64,
}

impl Sink {
    /// Onto an empty file; it is made if it is not there.
    pub fn open(path: &Path, chunk: Chunk) -> Result<Self> {
        let mut options = File::options();
        // Empty as it is: truncating it would be one more change for the sync to carry.
        let file = options.write(true).create(true).truncate(false).open(path)?;
        let direct = options.custom_flags(OFlag::O_DIRECT.bits()).open(path).ok();
        Ok(Sink { file, direct, chunk, n_written: 0 })
    }

    /// Appends.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        loop {
            let (now, later) = bytes.split_at(bytes.len().min(self.chunk.room()));
            self.chunk.memory.extend_from_slice(now);
            if later.is_empty() {
                return Ok(());
            }
            self.write_out()?;
            bytes = later;
        }
    }

    /// Everything that was appended, while nothing of it is in the file.
    pub fn whole(&self) -> Option<&[u8]> {
        (self.n_written == 0).then(|| self.chunk.bytes())
    }

    /// Bytes that were appended.
    pub fn len(&self) -> u64 {
        self.n_written + self.chunk.bytes().len() as u64
    }

    /// Puts other bytes in the place of the first ones.
    pub fn overwrite_start(&mut self, bytes: &[u8]) -> Result<()> {
        match self.n_written {
            0 => self.chunk.memory[self.chunk.start..][..bytes.len()].copy_from_slice(bytes),
            _ => self.file.write_all_at(bytes, 0)?,
        }
        Ok(())
    }

    /// Into the file with what was collected; the end of it may fill no block, so nothing may follow but a sync.
    pub fn write_out(&mut self) -> Result<()> {
        let bytes = self.chunk.bytes();
        let blocks = &bytes[..bytes.len() - bytes.len() % BLOCK_BYTES];
        let mut n = 0;
        if let Some(direct) = &self.direct {
            match direct.write_all_at(blocks, self.n_written) {
                Ok(()) => n = blocks.len(),
                Err(error) if is_refusal(&error) => self.direct = None,
                Err(error) => return Err(error),
            }
        }
        self.file.write_all_at(&bytes[n..], self.n_written + n as u64)?;
        self.n_written += bytes.len() as u64;
        self.chunk.clear();
        Ok(())
    }

    /// Everything is in the file and will be after a power cut.
    pub fn sync(&mut self) -> Result<()> {
        self.write_out()?;
        self.file.sync_data()
    }

    /// Its memory, empty, for the next file; nothing may be appended to this one any more.
    pub fn take_chunk(&mut self) -> Chunk {
        self.chunk.clear();
        std::mem::take(&mut self.chunk)
    }
}

/// Not that it failed: it is not done here.
fn is_refusal(error: &Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EINVAL | Errno::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory of which the kernel writes nothing directly: as a file system that refuses.
    fn crooked() -> Chunk {
        let mut chunk = Chunk::new();
        chunk.start = if chunk.start == 0 { 1 } else { chunk.start - 1 };
        chunk.memory.resize(chunk.start, 0);
        chunk
    }

    #[test]
    fn a_file_holds_what_was_written_whether_direct_writes_are_taken_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let data: Vec<u8> = (0..3 * CHUNK_BYTES as u32).map(|i| (i / 7) as u8).collect();
        let (b, c) = (BLOCK_BYTES, CHUNK_BYTES);
        for n in [0, 1, b - 1, b, b + 1, 132 * b + 17, c - 1, c, c + 1, 2 * c, 2 * c + b + 5] {
            for chunk in [Chunk::new(), crooked()] {
                let _ = std::fs::remove_file(&path);
                let mut sink = Sink::open(&path, chunk).unwrap();
                for piece in data[..n].chunks(100_000) {
                    sink.write(piece).unwrap();
                }
                assert_eq!((sink.len(), sink.whole().is_some()), (n as u64, n <= c));
                let mut expected = data[..n].to_vec();
                if n > 8 {
                    sink.overwrite_start(b"in front").unwrap();
                    expected[..8].copy_from_slice(b"in front");
                }
                sink.sync().unwrap();
                assert!(std::fs::read(&path).unwrap() == expected, "{n} bytes");
                let chunk = sink.take_chunk();
                assert!(chunk.bytes().is_empty() && chunk.memory.capacity() == b + c);
            }
        }
    }
}
