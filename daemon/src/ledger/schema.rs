//! Migrations: frozen, one way. A newer schema than this program knows is refused, never guessed at, unless its own
//! program has written down that older ones may use it: an update that fails its proof of life must not leave the slot
//! that returns without its database.

/// Version after all migrations; `PRAGMA user_version`.
pub const VERSION: i64 = MIGRATIONS.len() as i64;

/// Oldest schema whose programs may still use a database of [`VERSION`]: what came since has only added tables, indexes,
/// or columns with defaults to tables that are written by column name. Nobody's, unless somebody has looked at the last
/// migration and said so here.
pub const READABLE_FROM: i64 = if REVIEWED.0 == VERSION { REVIEWED.1 } else { VERSION };

/// The last version that was looked at, and the oldest whose programs may use it. 9 takes columns away that a program of
/// 8 writes with every alert, and 11 keys series and attempts by study as well, which a program of 10 does not: after an
/// update across one of them, the slot that returns refuses the database (78).
const REVIEWED: (i64, i64) = (11, 11);

/// `MIGRATIONS[n]` takes version n to n + 1.
pub const MIGRATIONS: &[&str] = &[
    "
CREATE TABLE settings (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE series (
    series_uid TEXT PRIMARY KEY,
    study_uid TEXT NOT NULL,
    study_ref TEXT NOT NULL,
    disposition TEXT NOT NULL,
    reason TEXT,
    stage TEXT NOT NULL,
    revision INTEGER NOT NULL,
    instances INTEGER NOT NULL,
    input_sha256 TEXT NOT NULL,
    model_sha256 TEXT,
    program TEXT NOT NULL,
    verdict TEXT NOT NULL,
    timings TEXT NOT NULL,
    decided_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE attempts (series_uid TEXT PRIMARY KEY, input_sha256 TEXT NOT NULL, count INTEGER NOT NULL) STRICT;
CREATE TABLE alerts (
    study_uid TEXT PRIMARY KEY,
    alert_id TEXT NOT NULL UNIQUE,
    rev INTEGER NOT NULL,
    state TEXT NOT NULL,
    stage TEXT NOT NULL,
    raised_by TEXT NOT NULL,
    content TEXT NOT NULL,
    document TEXT NOT NULL,
    raised_ms INTEGER NOT NULL,
    raised_boot_id TEXT NOT NULL,
    raised_boot_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    payload TEXT NOT NULL,
    retain INTEGER NOT NULL,
    alert_id TEXT,
    decided_boot_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_by_alert ON outbox (alert_id);
",
    super::audit::MIGRATION,
    // Evidence: who sent a series and when, and when it was purged. Results on their way to the PACS.
    "
ALTER TABLE series ADD COLUMN calling_ae TEXT;
ALTER TABLE series ADD COLUMN received_first_ms INTEGER;
ALTER TABLE series ADD COLUMN received_last_ms INTEGER;
ALTER TABLE series ADD COLUMN purged_ms INTEGER;
CREATE TABLE reports (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    destination TEXT NOT NULL,
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    verdict TEXT NOT NULL,
    verdict_sha256 TEXT NOT NULL,
    lesion BLOB,
    decided_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    detail TEXT,
    settled_ms INTEGER,
    UNIQUE (destination, verdict_sha256)
) STRICT;
CREATE INDEX reports_by_series ON reports (series_uid);
CREATE TABLE atna (seq INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL) STRICT;
",
    super::commitments::MIGRATION,
    super::alerts::MIGRATION,
    super::evidence::MIGRATION,
    super::shadow::MIGRATION,
    super::forwards::MIGRATION,
    // Elapsed time took the place of the machine's own.
    "
ALTER TABLE alerts DROP COLUMN raised_boot_id;
ALTER TABLE alerts DROP COLUMN raised_boot_ms;
",
    // Who was called and has it, beside whoever has it. How long the broker keeps a document. What is open, and what was
    // decided last, is asked for every second.
    "
ALTER TABLE alerts ADD COLUMN begun_elapsed_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN heard_elapsed_ms INTEGER;
UPDATE alerts SET begun_elapsed_ms = raised_elapsed_ms, heard_elapsed_ms = delivered_elapsed_ms;
ALTER TABLE outbox ADD COLUMN expiry_s INTEGER;
CREATE INDEX alerts_by_state ON alerts (state);
CREATE INDEX series_by_decision ON series (decided_ms, study_uid);
",
    // A series is known by its study and its UID: a study that was corrected comes again with the same series. Attempts
    // that were open start again at one.
    "
CREATE TABLE series_keyed (
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    study_ref TEXT NOT NULL,
    disposition TEXT NOT NULL,
    reason TEXT,
    stage TEXT NOT NULL,
    revision INTEGER NOT NULL,
    instances INTEGER NOT NULL,
    input_sha256 TEXT NOT NULL,
    model_sha256 TEXT,
    program TEXT NOT NULL,
    verdict TEXT NOT NULL,
    timings TEXT NOT NULL,
    decided_ms INTEGER NOT NULL,
    calling_ae TEXT,
    received_first_ms INTEGER,
    received_last_ms INTEGER,
    purged_ms INTEGER,
    purge_ended_ms INTEGER,
    PRIMARY KEY (study_uid, series_uid)
) STRICT;
INSERT INTO series_keyed (rowid, study_uid, series_uid, study_ref, disposition, reason, stage, revision, instances,
    input_sha256, model_sha256, program, verdict, timings, decided_ms, calling_ae, received_first_ms, received_last_ms,
    purged_ms, purge_ended_ms)
SELECT rowid, study_uid, series_uid, study_ref, disposition, reason, stage, revision, instances, input_sha256,
    model_sha256, program, verdict, timings, decided_ms, calling_ae, received_first_ms, received_last_ms, purged_ms,
    purge_ended_ms FROM series;
DROP TABLE series;
ALTER TABLE series_keyed RENAME TO series;
CREATE INDEX series_by_uid ON series (series_uid);
CREATE INDEX series_by_decision ON series (decided_ms, study_uid);
DROP TABLE attempts;
CREATE TABLE attempts (
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    input_sha256 TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (study_uid, series_uid)
) STRICT;
DROP INDEX late_once;
CREATE UNIQUE INDEX late_once ON side_verdicts (study_uid, series_uid, input_sha256) WHERE kind = 'late';
",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rusqlite::Connection;

    use super::*;

    /// Columns by table and name: whether a row can be written without it.
    fn columns(version: i64) -> BTreeMap<(String, String), bool> {
        let database = Connection::open_in_memory().unwrap();
        for migration in &MIGRATIONS[..usize::try_from(version).unwrap()] {
            database.execute_batch(migration).unwrap();
        }
        let sql = "SELECT t.name, c.name, c.\"notnull\" = 0 OR c.dflt_value IS NOT NULL OR c.pk > 0
                   FROM sqlite_schema t, pragma_table_info(t.name) c WHERE t.type = 'table'";
        let mut statement = database.prepare(sql).unwrap();
        let rows = statement.query_map([], |r| Ok(((r.get(0)?, r.get(1)?), r.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    /// A program of that version finds every column that it knows, and may leave out every one that it does not.
    fn usable_from(version: i64) -> bool {
        let (old, new) = (columns(version), columns(VERSION));
        old.keys().all(|column| new.contains_key(column))
            && new.iter().all(|(column, optional)| {
                *optional || old.contains_key(column) || !old.keys().any(|(table, _)| *table == column.0)
            })
    }

    #[test]
    fn the_last_migration_was_looked_at_for_the_slot_that_returns() {
        assert_eq!(
            REVIEWED.0, VERSION,
            "may a program of the version before use this database? say so in REVIEWED"
        );
        assert!((READABLE_FROM..=VERSION).all(usable_from), "an older program misses or must fill a column");
        assert!(!usable_from(8), "9 took columns away");
    }
}
