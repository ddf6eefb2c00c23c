//! The bytes of one instance on their way to its file, and their hash.
//!
//! They are collected in memory that is used again and go out in whole blocks past the page cache (`O_DIRECT`): finding
//! fresh pages for the cache costs more than the disk does, and a slice has to be on the disk anyway before anybody is
//! thanked. The first block, which is written again, and what fills no block go through the cache, so that the file
//! always has its true length. A file system that does not know `O_DIRECT` gets everything that way.
//!
//! What a slice takes to be hashed is about what it takes to be written, so the one is done beside the other.

use std::fs::File;
use std::io::{Error, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, OnceLock};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use sha2::{Digest, Sha256};

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
    pub fn aligned() -> Self {
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

/// One thread that hashes for whoever waits for the disk; it ends with its owner.
#[derive(Debug, Default)]
pub struct Hasher(OnceLock<SyncSender<Job>>);

#[derive(Debug)]
struct Job {
    chunk: Arc<Chunk>,
    from: usize,
    hash: Sha256,
    done: Sender<Sha256>,
}

impl Hasher {
    /// Hashes a chunk from some byte on while `work` is done; after it, if the thread has somebody else's in hand.
    fn beside<T>(
        &self,
        chunk: &Arc<Chunk>,
        from: usize,
        hash: Sha256,
        work: impl FnOnce() -> T,
    ) -> (Sha256, T) {
        let (done, hashed) = channel();
        let job = Job { chunk: chunk.clone(), from, hash: hash.clone(), done };
        // A job that is not taken is gone at once, and `hashed` hears of it.
        let _ = self.0.get_or_init(Self::start).try_send(job);
        let worked = work();
        let here = |_| hash.chain_update(&chunk.bytes()[from..]);
        (hashed.recv().unwrap_or_else(here), worked)
    }

    fn start() -> SyncSender<Job> {
        // Nothing is queued: it is taken at once or not at all.
        let (jobs, taken) = sync_channel::<Job>(0);
        let work = move || {
            while let Ok(Job { chunk, from, hash, done }) = taken.recv() {
                let hash = hash.chain_update(&chunk.bytes()[from..]);
                // The memory is given back before anybody is told.
                drop(chunk);
                let _ = done.send(hash);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("ichd-hash".into()).spawn(work) {
            log::warn!(event = "hasher_failed"; "instances are hashed after they are written: {error}");
        }
        jobs
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
    hasher: Arc<Hasher>,
    hash: Sha256,
    /// Bytes at the beginning of the chunk that are not hashed.
    unhashed: usize,
}

impl Sink {
    /// Onto an empty file, made if it is not there; it begins with bytes that are not hashed.
    pub fn open(path: &Path, front: &[u8], chunk: Chunk, hasher: Arc<Hasher>) -> Result<Self> {
        let mut options = File::options();
        // Empty as it is: truncating it would be one more change for the sync to carry.
        let file = options.write(true).create(true).truncate(false).open(path)?;
        let direct = options.custom_flags(OFlag::O_DIRECT.bits()).open(path).ok();
        let (hash, unhashed) = (Sha256::new(), front.len());
        let mut sink = Sink { file, direct, chunk, n_written: 0, hasher, hash, unhashed };
        sink.write(front)?;
        Ok(sink)
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

    /// Into the file with what was collected, and into the hash; what comes after a part of a chunk is the end.
    pub fn write_out(&mut self) -> Result<()> {
        let chunk = Arc::new(std::mem::take(&mut self.chunk));
        let (bytes, from, hash) = (chunk.bytes(), self.unhashed, std::mem::take(&mut self.hash));
        let put = || put(&self.file, &mut self.direct, self.n_written, bytes);
        let (hash, written) = self.hasher.beside(&chunk, from, hash, put);
        self.hash = hash;
        self.unhashed = 0;
        self.n_written += bytes.len() as u64;
        self.chunk = Arc::into_inner(chunk).unwrap_or_default();
        self.chunk.clear();
        written
    }

    /// Everything is in the file and will be after a power cut, under a note in front, made of length and hash.
    pub fn finish(&mut self, note: impl FnOnce(u64, &[u8; 32]) -> Vec<u8>) -> Result<[u8; 32]> {
        self.write_out()?;
        let sha256 = std::mem::take(&mut self.hash).finalize().into();
        self.file.write_all_at(&note(self.n_written, &sha256), 0)?;
        self.file.sync_data()?;
        Ok(sha256)
    }

    /// Its memory, for the next file; nothing may be appended to this one any more.
    pub fn take_chunk(&mut self) -> Chunk {
        self.chunk.clear();
        std::mem::take(&mut self.chunk)
    }
}

/// Writes at a place that is a multiple of the block size.
fn put(file: &File, direct: &mut Option<File>, at: u64, bytes: &[u8]) -> Result<()> {
    let end = bytes.len() - bytes.len() % BLOCK_BYTES;
    let start = if at == 0 { BLOCK_BYTES.min(end) } else { 0 };
    let (mut head, mut tail) = (&bytes[..start], &bytes[end..]);
    if let Some(to) = direct {
        match to.write_all_at(&bytes[start..end], at + start as u64) {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => *direct = None,
            Err(error) => return Err(error),
        }
    }
    if direct.is_none() {
        (head, tail) = (bytes, &[]);
    }
    file.write_all_at(head, at)?;
    file.write_all_at(tail, at + end as u64)
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
        let mut chunk = Chunk::aligned();
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
        let hasher = Arc::<Hasher>::default();
        for n in [8, b - 1, b, b + 1, 2 * b - 1, 132 * b + 17, c - 1, c, c + 1, 2 * c, 2 * c + b + 5] {
            for chunk in [Chunk::aligned(), crooked()] {
                let _ = std::fs::remove_file(&path);
                let mut sink = Sink::open(&path, &data[..8], chunk, hasher.clone()).unwrap();
                for piece in data[8..n].chunks(100_000) {
                    sink.write(piece).unwrap();
                }
                assert_eq!(sink.whole().is_some(), n <= c);
                let note = |length: u64, _: &[u8; 32]| length.to_le_bytes().to_vec();
                assert_eq!(sink.finish(note).unwrap()[..], Sha256::digest(&data[8..n])[..]);
                let file = std::fs::read(&path).unwrap();
                assert!(file[8..] == data[8..n] && file[..8] == (n as u64).to_le_bytes(), "{n} bytes");
                let chunk = sink.take_chunk();
                assert!(chunk.bytes().is_empty() && chunk.memory.capacity() == b + c);
            }
        }
    }

    #[test]
    fn who_finds_the_hasher_busy_gets_the_same_hash() {
        let hasher = Hasher::default();
        let mut chunk = Chunk::aligned();
        chunk.memory.extend(vec![7; 100_000]);
        let chunk = Arc::new(chunk);
        let expected = Sha256::digest(&chunk.bytes()[3..]);
        let hash = || hasher.beside(&chunk, 3, Sha256::new(), std::thread::yield_now).0.finalize();
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..50).all(|_| hash() == expected))).collect();
            assert!(all.into_iter().all(|thread| thread.join().unwrap()));
        });
    }
}
