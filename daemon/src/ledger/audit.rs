//! The audit log: what was decided, said and done, in a chain of hashes inside the one database.
//!
//! A row is written in the transaction of the change it tells of, so there is no change without its row and no row
//! without its change. Each row holds the hash of the one before:
//!
//! ```text
//! hash = sha256(prev LF seq LF at_ms LF event LF body)      prev, hash: lower-case hex; numbers: decimal
//! ```
//!
//! so that anybody can check it with `sqlite3` and `sha256sum`. The first row's `prev` is 64 zeros. What the chain
//! shows: a row changed, removed, put in or moved. What it cannot show by itself: a tail cut off by somebody who also
//! mends SQLite's own counter, or a chain written anew from some row on; against those, note the head that
//! `ichd audit verify` prints somewhere else and give it back with `--expect`. The table refuses UPDATE and DELETE,
//! which stops accidents, not an intruder. No UID and no patient text belongs in a body.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, params};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{LedgerError, doing};
use crate::{clock, hex};

/// `prev` of the first row.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Migration that makes the table; run by `schema`.
pub(super) const MIGRATION: &str = "
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    event TEXT NOT NULL,
    body TEXT NOT NULL,
    prev TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_is_not_rewritten BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
";

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// 1, 2, 3 and so on, without a gap.
    pub seq: i64,
    /// Wall time of the change, ms since the epoch. The order is `seq`'s, whatever the clock did.
    pub at_ms: i64,
    /// Stable name of what happened, such as `alert_raised`.
    pub event: String,
    /// JSON object, as it was hashed.
    pub body: String,
    /// Hash of the row before.
    pub prev: String,
    /// Hash of this row.
    pub hash: String,
}

/// The last row of a chain: note it elsewhere, and a cut or rewritten chain shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Rows so far.
    pub seq: i64,
    /// Hash of the last one; [`GENESIS`] before the first.
    pub hash: String,
}

/// Where a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Rows are missing before this one.
    #[error("row {expected} is missing: the next one is {found}")]
    Gap {
        /// Sequence number that should come.
        expected: i64,
        /// The one that comes.
        found: i64,
    },
    /// The row does not follow from the one before.
    #[error("row {seq} does not follow from the row before")]
    Link {
        /// Which row.
        seq: i64,
    },
    /// What the row says is not what was hashed.
    #[error("row {seq} was changed after it was written")]
    Content {
        /// Which row.
        seq: i64,
    },
    /// The database has handed out higher numbers than the chain has rows.
    #[error("the chain ends at row {found}, but {written} were written: its end was cut off")]
    Cut {
        /// Last row there.
        found: i64,
        /// Rows ever written.
        written: i64,
    },
    /// A head that was noted earlier is not in this chain.
    #[error("row {seq} is not the one that was noted: the chain was cut or written anew")]
    Unexpected {
        /// Which row.
        seq: i64,
    },
}

/// Rows looked back on by [`last`].
const LOOK_BACK: i64 = 10_000;

/// What the latest row of that kind says, of those not long ago.
pub fn last(tx: &Transaction, event: &str) -> Result<Option<Value>, LedgerError> {
    let sql = "SELECT body FROM audit WHERE event = ?1 AND seq > (SELECT max(seq) FROM audit) - ?2
               ORDER BY seq DESC LIMIT 1";
    let body: Option<String> = tx
        .query_row(sql, params![event, LOOK_BACK], |r| r.get(0))
        .optional()
        .map_err(doing("read the audit log"))?;
    body.map(|b| serde_json::from_str(&b).map_err(LedgerError::Document)).transpose()
}

/// Appends one row in the transaction of the change it tells of. `event` is a stable name; `body` a JSON object without
/// UIDs and patient text. Returns the row's sequence number.
pub fn append(tx: &Transaction, event: &str, body: &Value) -> Result<i64, LedgerError> {
    let head = head(tx)?;
    let seq = head.seq + 1;
    let at_ms = i64::try_from(clock::wall_ms()).unwrap_or(i64::MAX);
    let body = body.to_string();
    let hash = hash(&head.hash, seq, at_ms, event, &body);
    tx.execute(
        "INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![seq, at_ms, event, body, head.hash, hash],
    )
    .map_err(doing("append to the audit log"))?;
    Ok(seq)
}

/// Every row in order, from a database that a daemon may be writing to.
pub fn list(state: &Path) -> Result<Vec<Row>, LedgerError> {
    rows(&open(state)?)
}

/// Checks the whole chain, and that `expect`, a head noted earlier, is in it. `Ok(Err(_))` says where it is broken.
pub fn verify(state: &Path, expect: Option<&Head>) -> Result<Result<Head, Broken>, LedgerError> {
    let connection = open(state)?;
    // One snapshot, or a daemon that writes in between would look like a cut.
    let tx = connection.unchecked_transaction().map_err(doing("begin a transaction"))?;
    let written = tx
        .query_row("SELECT seq FROM sqlite_sequence WHERE name = 'audit'", [], |r| r.get(0))
        .optional()
        .map_err(doing("read the audit log"))?;
    let rows = rows(&tx)?;
    Ok(check(&rows, written.unwrap_or(0), expect))
}

/// Pure part of [`verify`].
fn check(rows: &[Row], written: i64, expect: Option<&Head>) -> Result<Head, Broken> {
    let mut head = Head { seq: 0, hash: GENESIS.into() };
    for row in rows {
        if row.seq != head.seq + 1 {
            return Err(Broken::Gap { expected: head.seq + 1, found: row.seq });
        }
        if row.prev != head.hash {
            return Err(Broken::Link { seq: row.seq });
        }
        if row.hash != hash(&row.prev, row.seq, row.at_ms, &row.event, &row.body) {
            return Err(Broken::Content { seq: row.seq });
        }
        head = Head { seq: row.seq, hash: row.hash.clone() };
    }
    if written > head.seq {
        return Err(Broken::Cut { found: head.seq, written });
    }
    match expect {
        Some(noted) if noted.seq > 0 => {
            let there = usize::try_from(noted.seq - 1).ok().and_then(|i| rows.get(i));
            if there.is_none_or(|row| row.hash != noted.hash) {
                return Err(Broken::Unexpected { seq: noted.seq });
            }
        }
        _ => {}
    }
    Ok(head)
}

fn head(connection: &Connection) -> Result<Head, LedgerError> {
    let last = connection
        .query_row("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1", [], |r| {
            Ok(Head { seq: r.get(0)?, hash: r.get(1)? })
        })
        .optional()
        .map_err(doing("read the audit log"))?;
    Ok(last.unwrap_or_else(|| Head { seq: 0, hash: GENESIS.into() }))
}

fn rows(connection: &Connection) -> Result<Vec<Row>, LedgerError> {
    let mut statement = connection
        .prepare("SELECT seq, at_ms, event, body, prev, hash FROM audit ORDER BY seq")
        .map_err(doing("read the audit log"))?;
    let rows = statement.query_map([], |r| {
        Ok(Row {
            seq: r.get(0)?,
            at_ms: r.get(1)?,
            event: r.get(2)?,
            body: r.get(3)?,
            prev: r.get(4)?,
            hash: r.get(5)?,
        })
    });
    rows.and_then(Iterator::collect).map_err(doing("read the audit log"))
}

fn open(state: &Path) -> Result<Connection, LedgerError> {
    let path = state.join("ichd.db");
    Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|source| LedgerError::Open { path, source })
}

fn hash(prev: &str, seq: i64, at_ms: i64, event: &str, body: &str) -> String {
    // Neither a name nor compact JSON holds a line feed, so no two rows hash the same text.
    hex(&Sha256::digest(format!("{prev}\n{seq}\n{at_ms}\n{event}\n{body}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(events: &[&str]) -> (tempfile::TempDir, Connection) {
        let dir = tempfile::tempdir().unwrap();
        let mut connection = Connection::open(dir.path().join("ichd.db")).unwrap();
        connection.execute_batch(MIGRATION).unwrap();
        for event in events {
            let tx = connection.transaction().unwrap();
            append(&tx, event, &json!({"alert_id": "01J", "rev": 1})).unwrap();
            tx.commit().unwrap();
        }
        (dir, connection)
    }

    const NIGHT: [&str; 4] = ["alert_raised", "receipt", "escalated", "acknowledged"];

    fn tampered(sql: &str) -> Result<Head, Broken> {
        let (dir, connection) = written(&NIGHT);
        connection
            .execute_batch("DROP TRIGGER audit_is_not_rewritten; DROP TRIGGER audit_is_not_deleted")
            .unwrap();
        connection.execute_batch(sql).unwrap();
        verify(dir.path(), None).unwrap()
    }

    #[test]
    fn an_untouched_chain_holds_and_names_its_head() {
        let (dir, _connection) = written(&NIGHT);
        let head = verify(dir.path(), None).unwrap().unwrap();
        assert_eq!(head.seq, 4);
        assert_eq!(verify(dir.path(), Some(&head)).unwrap().as_ref(), Ok(&head));
        let (empty, _connection) = written(&[]);
        assert_eq!(verify(empty.path(), None).unwrap(), Ok(Head { seq: 0, hash: GENESIS.into() }));
    }

    #[test]
    fn every_way_to_tamper_is_named() {
        assert_eq!(tampered("UPDATE audit SET body = '{}' WHERE seq = 2"), Err(Broken::Content { seq: 2 }));
        assert_eq!(
            tampered("UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 1"),
            Err(Broken::Content { seq: 1 })
        );
        assert_eq!(tampered("UPDATE audit SET event = 'x' WHERE seq = 4"), Err(Broken::Content { seq: 4 }));
        assert_eq!(tampered("DELETE FROM audit WHERE seq = 2"), Err(Broken::Gap { expected: 2, found: 3 }));
        assert_eq!(tampered("DELETE FROM audit WHERE seq > 2"), Err(Broken::Cut { found: 2, written: 4 }));
        assert_eq!(tampered("DELETE FROM audit"), Err(Broken::Cut { found: 0, written: 4 }));
        let swap = "UPDATE audit SET seq = 9 WHERE seq = 2; UPDATE audit SET seq = 2 WHERE seq = 3;
                    UPDATE audit SET seq = 3 WHERE seq = 9";
        assert_eq!(tampered(swap), Err(Broken::Link { seq: 2 }));
    }

    #[test]
    fn a_changed_row_with_its_hash_mended_breaks_the_next() {
        let (dir, connection) = written(&NIGHT);
        let rows = rows(&connection).unwrap();
        let mended = hash(&rows[1].prev, 2, rows[1].at_ms, "receipt", "{}");
        connection.execute_batch("DROP TRIGGER audit_is_not_rewritten").unwrap();
        connection.execute("UPDATE audit SET body = '{}', hash = ?1 WHERE seq = 2", [mended]).unwrap();
        assert_eq!(verify(dir.path(), None).unwrap(), Err(Broken::Link { seq: 3 }));
    }

    #[test]
    fn a_chain_written_anew_does_not_hold_the_head_that_was_noted() {
        let (dir, _connection) = written(&NIGHT);
        let noted = verify(dir.path(), None).unwrap().unwrap();
        let (forged, _connection) = written(&["alert_raised", "receipt", "acknowledged", "resolved"]);
        assert!(verify(forged.path(), None).unwrap().is_ok(), "sound in itself");
        assert_eq!(verify(forged.path(), Some(&noted)).unwrap(), Err(Broken::Unexpected { seq: 4 }));
    }

    #[test]
    fn the_table_refuses_to_be_rewritten() {
        let (_dir, connection) = written(&NIGHT);
        for sql in ["UPDATE audit SET body = '{}'", "DELETE FROM audit WHERE seq = 4"] {
            assert!(connection.execute(sql, []).unwrap_err().to_string().contains("append-only"));
        }
    }

    #[test]
    fn a_change_that_is_rolled_back_leaves_no_row() {
        let (dir, mut connection) = written(&NIGHT);
        let tx = connection.transaction().unwrap();
        append(&tx, "resolved", &json!({})).unwrap();
        tx.rollback().unwrap();
        assert_eq!(verify(dir.path(), None).unwrap().unwrap().seq, 4);
    }
}
