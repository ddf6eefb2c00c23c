//! One folder per target: an event is a file, named by its order, from before the broker is answered until the target
//! has taken it. What a target refused for good lies in `refused/` for a person to look at.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::event::Event;

/// A queue on disk; one writer, one reader.
#[derive(Debug)]
pub struct Queue {
    dir: PathBuf,
    /// Number of the next file, and the event that was put in last.
    next: Mutex<(u64, String)>,
    arrived: Condvar,
}

impl Queue {
    /// Opens or makes the folder.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join("refused"))?;
        let last = numbers(dir)?.last().copied().unwrap_or(0);
        let refused = numbers(&dir.join("refused"))?.last().copied().unwrap_or(0);
        let newest: Option<Event> =
            fs::read(dir.join(name(last))).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let next = (last.max(refused) + 1, newest.map_or_else(String::new, |event| event.id));
        Ok(Queue { dir: dir.into(), next: Mutex::new(next), arrived: Condvar::new() })
    }

    /// Puts an event at the end; on disk when this returns. The same one again, after a crash, is one.
    pub fn push(&self, event: &Event) -> io::Result<()> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        if next.1 == event.id {
            return Ok(());
        }
        write(&self.path(next.0), &serde_json::to_vec(event)?)?;
        *next = (next.0 + 1, event.id.clone());
        self.arrived.notify_one();
        Ok(())
    }

    /// The oldest event with its number.
    pub fn first(&self) -> io::Result<Option<(u64, Event)>> {
        for number in numbers(&self.dir)? {
            match serde_json::from_slice(&fs::read(self.path(number))?) {
                Ok(event) => return Ok(Some((number, event))),
                Err(_) => self.refuse(number)?,
            }
        }
        Ok(None)
    }

    /// Taken by the target.
    pub fn done(&self, number: u64) -> io::Result<()> {
        fs::remove_file(self.path(number))
    }

    /// Refused by the target for good.
    pub fn refuse(&self, number: u64) -> io::Result<()> {
        fs::rename(self.path(number), self.dir.join("refused").join(name(number)))
    }

    /// What [`Queue::wait`] compares with; ask before looking for the first event.
    pub fn mark(&self) -> u64 {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits for a push since `mark`, at most so long. A push between looking and waiting is not missed.
    pub fn wait(&self, mark: u64, at_most: Duration) {
        let guard = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.arrived.wait_timeout_while(guard, at_most, |next| next.0 == mark));
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(name(number))
    }
}

fn name(number: u64) -> String {
    format!("{number:020}.json")
}

fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok();
    let mut numbers: Vec<u64> = fs::read_dir(dir)?.flatten().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Whole or not there at all, and synced.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Change;

    fn event(id: &str) -> Event {
        Event { id: id.into(), change: Change::Raised, alert: serde_json::json!({}), seen_ms: 0 }
    }

    #[test]
    fn order_and_content_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        {
            let queue = Queue::open(dir.path()).unwrap();
            for id in ["a", "b", "c", "d"] {
                queue.push(&event(id)).unwrap();
            }
            queue.done(queue.first().unwrap().unwrap().0).unwrap();
            queue.refuse(queue.first().unwrap().unwrap().0).unwrap();
        }
        let queue = Queue::open(dir.path()).unwrap();
        queue.push(&event("d")).unwrap();
        queue.push(&event("e")).unwrap();
        let mut ids = Vec::new();
        while let Some((number, event)) = queue.first().unwrap() {
            ids.push(event.id);
            queue.done(number).unwrap();
        }
        assert_eq!(ids, ["c", "d", "e"]);
        assert_eq!(numbers(&dir.path().join("refused")).unwrap().len(), 1);
    }

    #[test]
    fn a_push_between_looking_and_waiting_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        let mark = queue.mark();
        assert!(queue.first().unwrap().is_none());
        queue.push(&event("a")).unwrap();
        // Would hang the test if it were.
        queue.wait(mark, Duration::from_secs(3600));
    }

    #[test]
    fn half_a_file_does_not_hold_up_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        fs::write(queue.path(1), b"{\"id\":").unwrap();
        fs::write(dir.path().join("00000000000000000009.new"), b"half").unwrap();
        let queue = Queue::open(dir.path()).unwrap();
        queue.push(&event("next")).unwrap();
        assert_eq!(queue.first().unwrap().unwrap().1.id, "next");
    }
}
