//! The one database: what became of every series, attempts, alerts, outbox. One owner, one connection, one truth.
//!
//! Verdict, ledger row, alert revision and outbox rows are one transaction with `synchronous=FULL`: after a power cut
//! either all of them are there or none, and then the spool makes the series be read again.

pub mod alerts;
mod atna;
pub mod audit;
mod commitments;
mod desk;
pub mod evidence;
pub mod forwards;
pub mod outbox;
pub mod proofs;
pub mod records;
pub mod reports;
pub mod retention;
mod schema;
pub mod shadow;
mod time;
pub mod update;
pub mod vitals;

pub use commitments::CommitmentRow;
pub use outbox::OutboxRow;
pub use reports::Settled;

use outbox::{STUDY_EXPIRY_S, Waiting, queue};

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::alert::document::StudyDisposition;
use crate::alert::topic;
use crate::assemble::{Judged, Key};
use crate::clock;
use crate::config::Site;
use crate::decide::{Stage, Verdict, Why};
use crate::dicom::{SeriesUid, StudyUid};
use crate::hex;
use crate::infer::Timings;
use crate::report::Lesion;
use crate::spool::Arrival;

/// Why the ledger failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The database could not be opened or made.
    #[error("failed to open `{path}`")]
    Open {
        /// Database file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Written by a newer program.
    #[error(
        "state.directory: `{path}` has schema {found}, this program knows {known}; boot the newer slot or update the program"
    )]
    Newer {
        /// Database file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A statement failed.
    #[error("failed to {doing}")]
    Statement {
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// Randomness could not be read.
    #[error("failed to read randomness")]
    Random(#[source] std::io::Error),
    /// A stored or new document is not what it should be.
    #[error("failed to write or read a stored document")]
    Document(#[source] serde_json::Error),
}

fn doing(doing: &'static str) -> impl Fn(rusqlite::Error) -> LedgerError {
    move |source| LedgerError::Statement { doing, source }
}

/// What comes with a verdict and is not part of it.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Counts late slices.
    pub revision: u32,
    /// Where the time went.
    pub timings: Timings,
    /// As the scanner wrote it.
    pub acquired_at: Option<String>,
    /// Wall time of the decision, ms since the epoch.
    pub decided_wall_ms: u64,
    /// What the alert may say of the patient, by privacy level.
    pub shown: crate::privacy::Shown,
    /// Who sent it, and when it came.
    pub arrival: Arrival,
    /// A final alert is taken back only by a score below this (`any`): the operating point less the hysteresis.
    pub stands_above: Option<f32>,
    /// What the lesion map shows, for the segmentation.
    pub lesion: Option<Lesion>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Keyed hash of the study, for logs and topics.
    pub study_ref: String,
    /// Alert and revision, if the verdict changed one.
    pub alert: Option<(String, u64)>,
    /// It is about slices that came after the purge of their series; an earlier verdict stands.
    pub late: bool,
}

/// One series in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesRow {
    /// Number of the row; a late slice makes a new one.
    pub row: i64,
    /// Study Instance UID.
    pub study_uid: String,
    /// Series Instance UID.
    pub series_uid: String,
    /// Keyed hash of the study.
    pub study_ref: String,
    /// `suspected`, `not_suspected`, `not_analysed`.
    pub disposition: String,
    /// Stable reason code.
    pub reason: Option<String>,
    /// `provisional` or `final`.
    pub stage: String,
    /// Counts late slices.
    pub revision: u32,
    /// Instances of the series.
    pub instances: usize,
    /// What was read.
    pub input_sha256: String,
    /// By which model.
    pub model_sha256: Option<String>,
    /// Canonical verdict, the bytes a replay reproduces.
    pub verdict: String,
    /// Wall time, ms since the epoch.
    pub decided_ms: u64,
    /// AE titles of the senders.
    pub calling_ae: Vec<String>,
    /// When the first instance was stored, ms since the epoch.
    pub received_first_ms: Option<u64>,
    /// When the last one was.
    pub received_last_ms: Option<u64>,
    /// Where the time went, ms.
    pub timings: Timings,
    /// When its instances were purged from the spool, ms since the epoch; the row stays.
    pub purged_ms: Option<u64>,
    /// How many instances came again after that, if fewer than were judged: kept beside the verdict that stands.
    pub late_instances: Option<u64>,
    /// Final verdicts on this series that stood before this one; all are kept.
    pub replaced: u64,
}

/// The ledger; share it behind an `Arc`. Calls block on the disk.
#[derive(Debug)]
pub struct Ledger {
    connection: Mutex<Connection>,
    site: Site,
    policy: alerts::Policy,
    clock: clock::Source,
    elapsed: time::Elapsed,
    marked_ms: AtomicU64,
    /// Something failed, and nothing could be written since.
    failing: AtomicBool,
    key: [u8; 32],
    boot: u64,
    boot_id: String,
    subscription: reports::Subscription,
    /// Who gets the images.
    forward_rules: Vec<crate::forward::Rule>,
    /// Who reports to the audit record repository, where there is one.
    audit_source: Option<crate::atna::Source>,
}

impl Ledger {
    /// Opens or makes `ichd.db` and counts this start; the alert chain follows the default rules.
    pub fn open(state: &Path, site: &Site) -> Result<Self, LedgerError> {
        Self::open_with(state, site, alerts::Policy::default(), clock::Source::system(), clock::boot_id())
    }

    /// Opens or makes `ichd.db` with the rules of the alert chain and a source of time; `boot_id` names this run of
    /// the machine.
    pub fn open_with(
        state: &Path,
        site: &Site,
        policy: alerts::Policy,
        clock: clock::Source,
        boot_id: String,
    ) -> Result<Self, LedgerError> {
        let path = state.join("ichd.db");
        let open = |source| LedgerError::Open { path: path.clone(), source };
        let mut connection = Connection::open(&path).map_err(open)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(open)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(open)?;
        connection.busy_timeout(std::time::Duration::from_secs(5)).map_err(open)?;
        migrate(&mut connection, &path)?;
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(open)?;
        let key = site_key(&tx)?;
        let boot = count(&tx, "boot")?;
        let elapsed = time::Elapsed::open(&tx, clock.read(), &boot_id)?;
        tx.commit().map_err(open)?;
        Ok(Ledger {
            connection: Mutex::new(connection),
            site: site.clone(),
            policy,
            clock,
            elapsed,
            marked_ms: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            key,
            boot,
            boot_id,
            subscription: reports::Subscription::default(),
            forward_rules: Vec::new(),
            audit_source: None,
        })
    }

    /// One transaction: all of it, or on an error none.
    fn change<T>(&self, f: impl FnOnce(&Transaction) -> Result<T, LedgerError>) -> Result<T, LedgerError> {
        let change = || {
            let mut connection = self.lock();
            let tx = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .map_err(doing("begin a transaction"))?;
            let result = f(&tx)?;
            tx.commit().map_err(doing("commit a change"))?;
            Ok(result)
        };
        self.noted(change())
    }

    /// Whether the database fails: from the first error until a [`Ledger::tick`] could write again.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    fn recovered(&self) {
        self.failing.store(false, Ordering::Relaxed);
    }

    /// Remembers a failure.
    fn noted<T>(&self, result: Result<T, LedgerError>) -> Result<T, LedgerError> {
        if result.is_err() {
            self.failing.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Every series, from a database that a daemon may be writing to; oldest first.
    pub fn list(state: &Path) -> Result<Vec<SeriesRow>, LedgerError> {
        series_rows(&open_read_only(state)?, ALL, &[])
    }

    /// Every series, oldest first.
    pub fn series(&self) -> Result<Vec<SeriesRow>, LedgerError> {
        series_rows(&self.lock(), ALL, &[])
    }

    /// The series of one study, oldest first.
    pub fn series_of(&self, study_uid: &str) -> Result<Vec<SeriesRow>, LedgerError> {
        series_rows(&self.lock(), "study_uid = ?1", &[&study_uid])
    }

    /// Starts of the daemon on this database.
    pub fn boot(&self) -> u64 {
        self.boot
    }

    /// Whose documents these are.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Keyed hash of a UID: the same study has the same name on the wire, and nobody can tell which it is.
    pub fn reference(&self, uid: &str) -> String {
        hex(&self.hash(uid)[..16])
    }

    /// Writes down that reading a series is about to start; returns how often that was tried with this very input
    /// without an end. A series that has grown since starts again at 1: a power cut while it arrives is no fault of it.
    pub fn begin_attempt(&self, (study, series): &Key, input_sha256: &str) -> Result<u32, LedgerError> {
        self.lock()
            .query_row(
                "INSERT INTO attempts (study_uid, series_uid, input_sha256, count) VALUES (?1, ?2, ?3, 1)
                 ON CONFLICT (study_uid, series_uid)
                 DO UPDATE SET count = iif(input_sha256 = ?3, count + 1, 1), input_sha256 = ?3 RETURNING count",
                params![study.as_str(), series.as_str(), input_sha256],
                |row| row.get(0),
            )
            .map_err(doing("record an attempt"))
    }

    /// The reading came to an end.
    pub fn end_attempt(&self, (study, series): &Key) -> Result<(), LedgerError> {
        let sql = "DELETE FROM attempts WHERE study_uid = ?1 AND series_uid = ?2";
        let deleted = self.lock().execute(sql, [study.as_str(), series.as_str()]);
        deleted.map(|_| ()).map_err(doing("close an attempt"))
    }

    /// Whether an early look is all there is of a series: its final disposition is still to come.
    pub fn is_provisional(&self, (study, series): &Key) -> Result<bool, LedgerError> {
        let sql = "SELECT count(*) FROM series
                   WHERE study_uid = ?1 AND series_uid = ?2 AND stage = 'provisional'";
        let n = self.lock().query_row(sql, [study.as_str(), series.as_str()], |r| r.get::<_, i64>(0));
        n.map(|n| n > 0).map_err(doing("read the ledger"))
    }

    /// Every series of a study with a final disposition.
    pub fn judged_of(&self, study: &StudyUid) -> Result<HashMap<SeriesUid, Judged>, LedgerError> {
        let connection = self.lock();
        // Of a purged series the spool holds what came late.
        let sql = "SELECT s.series_uid, coalesce(l.input_sha256, s.input_sha256), s.revision, s.reason,
                       instr(coalesce(l.verdict, s.verdict), '\"conflicting_duplicate\"') > 0
                   FROM series AS s LEFT JOIN side_verdicts AS l
                       ON l.study_uid = s.study_uid AND l.series_uid = s.series_uid AND l.kind = 'late'
                       AND l.closed_ms IS NULL
                   WHERE s.study_uid = ?1 AND s.stage = 'final'";
        let mut statement = connection.prepare_cached(sql).map_err(doing("read the ledger"))?;
        let judged = |r: &rusqlite::Row| {
            let why = r.get::<_, Option<String>>(3)?.and_then(|code| Why::of_code(&code));
            let conflicting = r.get(4)?;
            let judged = Judged { input_sha256: r.get(1)?, revision: r.get(2)?, why, conflicting };
            Ok((r.get::<_, String>(0)?, judged))
        };
        let rows = statement
            .query_map([study.as_str()], judged)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(doing("read the ledger"))?;
        Ok(rows.into_iter().filter_map(|(uid, read)| Some((SeriesUid::parse(&uid).ok()?, read))).collect())
    }

    /// Records a verdict with everything that follows from it, in one transaction.
    pub fn record(&self, verdict: &Verdict, record: &Record) -> Result<Recorded, LedgerError> {
        self.change(|tx| self.write_verdict(tx, verdict, record))
    }

    fn write_verdict(
        &self,
        tx: &Transaction,
        verdict: &Verdict,
        record: &Record,
    ) -> Result<Recorded, LedgerError> {
        let study_ref = self.reference(verdict.study.as_str());
        if evidence::is_late(tx, verdict)? {
            let series_ref = self.reference(verdict.series.as_str());
            evidence::record_late(tx, verdict, record, [&study_ref, &series_ref])?;
            return Ok(Recorded { study_ref, alert: None, late: true });
        }
        evidence::keep_replaced(tx, verdict, record.decided_wall_ms)?;
        self.write_series(tx, verdict, record, &study_ref)?;
        let test = is_proof(tx, verdict.study.as_str())?;
        if !test {
            reports::queue(tx, &self.subscription, verdict, record)?;
            forwards::queue(tx, &self.forward_rules, verdict, record, &study_ref)?;
        }
        let alert = self.write_alert(tx, verdict, record, &study_ref)?;
        if verdict.stage == Stage::Final {
            let document = StudyDisposition {
                schema: "ichd.study/1".into(),
                study_ref: study_ref.clone(),
                series_ref: self.reference(verdict.series.as_str()),
                disposition: verdict.disposition.as_str().into(),
                reason: verdict.disposition.why().map(|w| w.code().into()),
                instances: verdict.instances,
                revision: record.revision,
                flags: verdict.flags.clone(),
                test,
                decided_at: clock::rfc3339(record.decided_wall_ms),
            };
            let payload = serde_json::to_string(&document).map_err(LedgerError::Document)?;
            queue(tx, &Waiting::of(topic::study(&self.site, &study_ref), payload, STUDY_EXPIRY_S))?;
            let body = json!({
                "study_ref": study_ref, "series_ref": document.series_ref, "disposition": document.disposition,
                "reason": document.reason, "revision": record.revision, "input_sha256": verdict.input_sha256,
                "model_sha256": verdict.model.as_ref().map(|m| &m.sha256), "program": verdict.program,
            });
            audit::append(tx, "disposition", &body)?;
        }
        Ok(Recorded { study_ref, alert, late: false })
    }

    fn write_series(
        &self,
        tx: &Transaction,
        v: &Verdict,
        record: &Record,
        study_ref: &str,
    ) -> Result<(), LedgerError> {
        let timings = serde_json::to_string(&record.timings).map_err(LedgerError::Document)?;
        tx.execute(
            "INSERT OR REPLACE INTO series (series_uid, study_uid, study_ref, disposition, reason, stage, revision,
                 instances, input_sha256, model_sha256, program, verdict, timings, decided_ms, calling_ae,
                 received_first_ms, received_last_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
            params![
                v.series.as_str(),
                v.study.as_str(),
                study_ref,
                v.disposition.as_str(),
                v.disposition.why().map(|w| w.code()),
                stage_text(v.stage),
                record.revision,
                i64::try_from(v.instances).unwrap_or(i64::MAX),
                v.input_sha256,
                v.model.as_ref().map(|m| m.sha256.as_str()),
                v.program,
                v.canonical_json(),
                timings,
                integer(record.decided_wall_ms),
                // No AE title holds a backslash.
                record.arrival.calling.join("\\"),
                record.arrival.first_ms.map(integer),
                record.arrival.last_ms.map(integer),
            ],
        )
        .map(|_| ())
        .map_err(doing("write a disposition"))
    }

    fn hash(&self, uid: &str) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(uid).finalize().into()
    }

    fn number(&self, sql: &str) -> Result<u64, LedgerError> {
        let number: i64 = self.lock().query_row(sql, [], |r| r.get(0)).map_err(doing("count"))?;
        Ok(number.unsigned_abs())
    }

    /// How many of each kind: rows of two words and a count, as a query of ours gives them.
    fn counts(&self, sql: &str, what: &'static str) -> Result<Vec<(String, String, u64)>, LedgerError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql).map_err(doing(what))?;
        let rows =
            statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, i64>(2)?.unsigned_abs())));
        rows.and_then(Iterator::collect).map_err(doing(what))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction rolled it back; the connection itself is sound.
        self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn is_proof(tx: &Transaction, study: &str) -> Result<bool, LedgerError> {
    let sql = "SELECT count(*) FROM proofs WHERE study_uid = ?1";
    tx.query_row(sql, [study], |r| r.get::<_, i64>(0)).map(|n| n > 0).map_err(doing("read proofs of life"))
}

/// The database of a daemon that may be running.
fn open_read_only(state: &Path) -> Result<Connection, LedgerError> {
    let path = state.join("ichd.db");
    let opened = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
    opened.map_err(|source| LedgerError::Open { path, source })
}

const ALL: &str = "true";

fn series_rows(
    connection: &Connection,
    condition: &str,
    params: &[&dyn rusqlite::ToSql],
) -> Result<Vec<SeriesRow>, LedgerError> {
    let sql = format!("SELECT study_uid, series_uid, study_ref, disposition, reason, stage, revision, instances, input_sha256,
               model_sha256, verdict, decided_ms, coalesce(calling_ae, ''), received_first_ms, received_last_ms,
               timings, purged_ms, rowid,
               (SELECT max(instances) FROM side_verdicts AS v WHERE v.study_uid = s.study_uid AND v.series_uid = s.series_uid
                AND v.kind = 'late'),
               (SELECT count(*) FROM side_verdicts AS v WHERE v.study_uid = s.study_uid AND v.series_uid = s.series_uid
                AND v.kind = 'replaced')
               FROM series AS s WHERE {condition} ORDER BY decided_ms, series_uid");
    let mut statement = connection.prepare(&sql).map_err(doing("read the ledger"))?;
    let rows = statement.query_map(params, |r| {
        Ok(SeriesRow {
            study_uid: r.get(0)?,
            series_uid: r.get(1)?,
            study_ref: r.get(2)?,
            disposition: r.get(3)?,
            reason: r.get(4)?,
            stage: r.get(5)?,
            revision: r.get(6)?,
            instances: r.get::<_, i64>(7)?.unsigned_abs() as usize,
            input_sha256: r.get(8)?,
            model_sha256: r.get(9)?,
            verdict: r.get(10)?,
            decided_ms: r.get::<_, i64>(11)?.unsigned_abs(),
            calling_ae: r
                .get::<_, String>(12)?
                .split('\\')
                .filter(|ae| !ae.is_empty())
                .map(str::to_owned)
                .collect(),
            received_first_ms: r.get::<_, Option<i64>>(13)?.map(i64::unsigned_abs),
            received_last_ms: r.get::<_, Option<i64>>(14)?.map(i64::unsigned_abs),
            timings: serde_json::from_str(&r.get::<_, String>(15)?).unwrap_or_default(),
            purged_ms: r.get::<_, Option<i64>>(16)?.map(i64::unsigned_abs),
            row: r.get(17)?,
            late_instances: r.get::<_, Option<i64>>(18)?.map(i64::unsigned_abs),
            replaced: r.get::<_, i64>(19)?.unsigned_abs(),
        })
    });
    rows.and_then(Iterator::collect).map_err(doing("read the ledger"))
}

/// SQLite's integers are signed.
fn integer(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn stage_text(stage: Stage) -> &'static str {
    match stage {
        Stage::Provisional => "provisional",
        Stage::Final => "final",
    }
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), LedgerError> {
    let open = |source| LedgerError::Open { path: path.into(), source };
    let found: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).map_err(open)?;
    if found > schema::VERSION {
        let from = readable_from(connection).map_err(open)?.unwrap_or(found);
        if from > schema::VERSION {
            return Err(LedgerError::Newer { path: path.into(), found, known: schema::VERSION });
        }
        log::warn!(event = "newer_database", found = found; "the database is a newer program's, which says that this one may use it");
        return Ok(());
    }
    for (n, sql) in schema::MIGRATIONS.iter().enumerate().skip(found.unsigned_abs() as usize) {
        let tx = connection.transaction().map_err(open)?;
        tx.execute_batch(sql).map_err(open)?;
        tx.pragma_update(None, "user_version", n as i64 + 1).map_err(open)?;
        tx.execute(
            "INSERT OR REPLACE INTO settings VALUES ('readable_from', CAST(?1 AS BLOB))",
            [schema::READABLE_FROM.min(n as i64 + 1).to_string()],
        )
        .map_err(open)?;
        tx.commit().map_err(open)?;
    }
    Ok(())
}

/// The oldest schema whose programs may use this database.
fn readable_from(connection: &Connection) -> rusqlite::Result<Option<i64>> {
    let sql = "SELECT CAST(value AS TEXT) FROM settings WHERE key = 'readable_from'";
    let text: Option<String> = connection.query_row(sql, [], |r| r.get(0)).optional()?;
    Ok(text.and_then(|t| t.parse().ok()))
}

/// The secret behind references on the wire; made once per database.
fn site_key(tx: &Transaction) -> Result<[u8; 32], LedgerError> {
    let stored: Option<Vec<u8>> = tx
        .query_row("SELECT value FROM settings WHERE key = 'site_key'", [], |r| r.get(0))
        .optional()
        .map_err(doing("read the site key"))?;
    if let Some(Ok(key)) = stored.map(<[u8; 32]>::try_from) {
        return Ok(key);
    }
    let key: [u8; 32] = random()?;
    tx.execute("INSERT OR REPLACE INTO settings VALUES ('site_key', ?1)", [key.as_slice()])
        .map_err(doing("write the site key"))?;
    Ok(key)
}

/// Counts up a number in the settings; first value 1.
fn count(tx: &Transaction, key: &str) -> Result<u64, LedgerError> {
    let sql = "INSERT INTO settings VALUES (?1, CAST(1 AS BLOB))
               ON CONFLICT (key) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS BLOB)
               RETURNING CAST(value AS INTEGER)";
    let number: i64 = tx.query_row(sql, [key], |r| r.get(0)).map_err(doing("count"))?;
    Ok(number.unsigned_abs())
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], LedgerError> {
    use std::io::Read;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .map_err(LedgerError::Random)?;
    Ok(bytes)
}

/// ULID: 48 bits of wall time and 80 of randomness in Crockford's base 32.
fn ulid(wall_ms: u64) -> Result<String, LedgerError> {
    const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let random: [u8; 10] = random()?;
    let low = random.iter().fold(0u128, |n, b| n << 8 | u128::from(*b));
    let value = u128::from(wall_ms & 0xffff_ffff_ffff) << 80 | low;
    Ok((0..26).rev().map(|i| char::from(DIGITS[(value >> (5 * i)) as usize & 31])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::document::{Alert, AlertFinding, AlertState};
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::Profile;
    use crate::decide::Disposition;
    use proptest::prelude::*;

    fn site() -> Site {
        Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist }
    }

    fn alert_of(ledger: &Ledger) -> Option<Alert> {
        let row = ledger.outbox_next().unwrap().filter(|r| r.alert_id.is_some())?;
        Some(serde_json::from_str(&ledger.stamp(&row).unwrap()).unwrap())
    }

    #[test]
    fn a_verdict_and_its_alert_survive_a_restart_together() {
        let dir = tempfile::tempdir().unwrap();
        let first = {
            let ledger = Ledger::open(dir.path(), &site()).unwrap();
            ledger.record(&verdict(1, Stage::Final, Some(0.9)), &Record::default()).unwrap()
        };
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        let alert = alert_of(&ledger).unwrap();
        assert_eq!(Some((alert.alert_id.clone(), alert.rev)), first.alert);
        assert_eq!((ledger.boot(), ledger.open_alert_count().unwrap()), (2, 1));
        assert_eq!(ledger.judged_of(&verdict(1, Stage::Final, None).study).unwrap().len(), 1);
        assert_eq!(ledger.reference("1.2.3"), first.study_ref);
    }

    #[test]
    fn nothing_on_the_wire_holds_a_uid() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        ledger.record(&verdict(1, Stage::Final, Some(0.9)), &Record::default()).unwrap();
        while let Some(row) = ledger.outbox_next().unwrap() {
            assert!(!row.topic.contains("1.2.3") && !row.payload.contains("1.2.3"), "{row:?}");
            ledger.outbox_done(row.seq).unwrap();
        }
    }

    #[test]
    fn profile_triage_says_neither_type_nor_side() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &Site { profile: Profile::Triage, ..site() }).unwrap();
        ledger.record(&verdict(1, Stage::Final, Some(0.9)), &Record::default()).unwrap();
        let alert = alert_of(&ledger).unwrap();
        assert_eq!(alert.finding, AlertFinding { operating_point: "final".into(), ..Default::default() });
    }

    #[test]
    fn a_third_attempt_is_counted_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let key = |study: &str| (StudyUid::parse(study).unwrap(), SeriesUid::parse("1.2.3.1").unwrap());
        let (series, other) = (key("1.2.3"), key("1.2.4"));
        for n in 1..=3 {
            let ledger = Ledger::open(dir.path(), &site()).unwrap();
            assert_eq!(ledger.begin_attempt(&series, "00").unwrap(), n);
        }
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        ledger.end_attempt(&series).unwrap();
        assert_eq!(ledger.begin_attempt(&series, "00").unwrap(), 1);
        assert_eq!(ledger.begin_attempt(&other, "00").unwrap(), 1, "another study's");
    }

    #[test]
    fn one_series_under_two_studies_is_two_rows_two_alerts_and_two_verdicts() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        let first = verdict(1, Stage::Final, Some(0.9));
        let second = Verdict { study: StudyUid::parse("1.2.4").unwrap(), ..first.clone() };
        let alerts = [&first, &second, &first].map(|v| ledger.record(v, &Record::default()).unwrap().alert);
        assert_eq!(ledger.series().unwrap().len(), 2);
        let id = |n: usize| alerts[n].as_ref().map(|(id, _)| id.clone());
        assert!(id(0).is_some() && id(1).is_some() && id(0) != id(1), "{alerts:?}");
        for v in [&first, &second] {
            assert_eq!(ledger.judged_of(&v.study).unwrap().len(), 1);
            assert_eq!(ledger.series_of(v.study.as_str()).unwrap()[0].study_uid, v.study.as_str());
        }
        assert!(evidence::find(dir.path(), "1.2.3.1").unwrap().len() == 2, "by the series' UID both");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Ledger::open(dir.path(), &site()).unwrap());
        let connection = Connection::open(dir.path().join("ichd.db")).unwrap();
        connection.execute("DELETE FROM settings WHERE key = 'readable_from'", []).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        assert!(matches!(Ledger::open(dir.path(), &site()), Err(LedgerError::Newer { found: 99, .. })));
    }

    #[test]
    fn an_older_program_goes_on_with_a_newer_database_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        ledger.record(&verdict(1, Stage::Final, Some(0.9)), &Record::default()).unwrap();
        drop(ledger);
        // What a later program with one more table would have left.
        let connection = Connection::open(dir.path().join("ichd.db")).unwrap();
        connection.execute_batch("CREATE TABLE later (x INTEGER) STRICT").unwrap();
        connection.pragma_update(None, "user_version", schema::VERSION + 1).unwrap();
        let says = |from: i64| {
            let sql = "INSERT OR REPLACE INTO settings VALUES ('readable_from', CAST(?1 AS BLOB))";
            connection.execute(sql, [from.to_string()]).unwrap();
        };
        says(schema::VERSION + 1);
        assert!(matches!(Ledger::open(dir.path(), &site()), Err(LedgerError::Newer { .. })));
        says(schema::VERSION);
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        assert_eq!(ledger.open_alert_count().unwrap(), 1);
        ledger.record(&verdict(2, Stage::Final, None), &Record::default()).unwrap();
        let version: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0)).unwrap();
        assert_eq!(version, schema::VERSION + 1, "left as it is for the newer program");
    }

    #[test]
    fn a_database_of_the_first_version_is_taken_over_with_its_rows() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join("ichd.db")).unwrap();
        connection.execute_batch(schema::MIGRATIONS[0]).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        connection
            .execute_batch(
                "INSERT INTO series VALUES ('1.2.3.1', '1.2.3', 'ref', 'not_suspected', NULL, 'final', 0, 30, '00',
                 NULL, '0.1.0', '{}', '{}', 5)",
            )
            .unwrap();
        drop(connection);
        drop(Ledger::open(dir.path(), &site()).unwrap());
        let rows = Ledger::list(dir.path()).unwrap();
        assert_eq!((rows.len(), rows[0].decided_ms, rows[0].received_last_ms), (1, 5, None));
        assert!(rows[0].calling_ae.is_empty());
    }

    #[test]
    fn ulids_sort_by_time() {
        let (a, b) = (ulid(1_000).unwrap(), ulid(2_000).unwrap());
        assert!(a.len() == 26 && a < b);
    }

    #[test]
    fn a_series_that_joins_does_not_change_what_counts_as_news() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        let record = |n, p| ledger.record(&verdict(n, Stage::Final, p), &Record::default()).unwrap().alert;
        assert_eq!(record(1, Some(0.9)).unwrap().1, 1);
        assert_eq!(record(2, Some(0.8)), None, "stands behind it");
        assert_eq!(record(1, Some(0.9)), None, "says the same again");
    }

    #[test]
    fn what_an_alert_says_is_what_a_series_that_stands_behind_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        let record = |n, stage, p| ledger.record(&verdict(n, stage, p), &Record::default()).unwrap().alert;
        record(1, Stage::Provisional, Some(0.9)).unwrap();
        record(2, Stage::Final, Some(0.8));
        record(1, Stage::Final, None);
        record(2, Stage::Final, Some(0.8));
        let alert = alert_of(&ledger).unwrap();
        assert_eq!((alert.state, alert.stage), (AlertState::Raised, Stage::Final));
        assert_eq!(alert.finding.volume_ml, Some(0.8));
    }

    #[test]
    fn a_failed_final_reading_is_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        ledger.record(&verdict(1, Stage::Provisional, Some(0.9)), &Record::default()).unwrap();
        let mut failed = verdict(1, Stage::Final, None);
        failed.disposition = Disposition::NotAnalysed(crate::decide::Why::Crashed);
        assert!(ledger.record(&failed, &Record::default()).unwrap().alert.is_some());
        assert_eq!(ledger.record(&failed, &Record::default()).unwrap().alert, None);
    }

    #[test]
    fn a_verdict_and_its_audit_rows_are_one_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path(), &site()).unwrap();
        ledger.record(&verdict(1, Stage::Final, Some(0.9)), &Record::default()).unwrap();
        let rows = audit::list(dir.path()).unwrap();
        let events: Vec<&str> = rows.iter().map(|r| r.event.as_str()).collect();
        assert_eq!(events, ["alert_raised", "disposition"]);
        assert!(rows.iter().all(|r| !r.body.contains("1.2.3")), "no UID: {rows:?}");
        assert_eq!(audit::verify(dir.path(), None).unwrap().unwrap().seq, 2);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Promise 4: whatever the verdicts, one identity per study, and revisions only rise.
        #[test]
        fn one_study_one_alarm(script in prop::collection::vec((1u8..4, any::<bool>(), prop::option::of(0.5f32..1.0)), 1..12)) {
            let dir = tempfile::tempdir().unwrap();
            let ledger = Ledger::open(dir.path(), &site()).unwrap();
            let (mut id, mut rev) = (None, 0);
            for (n, provisional, p) in script {
                let stage = if provisional { Stage::Provisional } else { Stage::Final };
                if let Some((alert_id, new_rev)) = ledger.record(&verdict(n, stage, p), &Record::default()).unwrap().alert {
                    prop_assert_eq!(id.get_or_insert(alert_id.clone()), &alert_id);
                    prop_assert!(new_rev > rev);
                    rev = new_rev;
                }
            }
        }
    }
}
