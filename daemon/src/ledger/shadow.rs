//! What the model in shadow would have said, beside what was said.

use std::path::Path;

use rusqlite::params;
use serde::Serialize;

use super::{Ledger, LedgerError, doing, open_read_only};
use crate::decide::{Disposition, Verdict};
use crate::infer::{Class, Timings};

/// Migration that makes the table; run by `schema`. A row with failure `unfinished` was begun and not ended.
pub(super) const MIGRATION: &str = "
CREATE TABLE shadow (
    series_uid TEXT NOT NULL,
    current_sha256 TEXT NOT NULL,
    shadow_sha256 TEXT NOT NULL,
    input_sha256 TEXT NOT NULL,
    current_suspected INTEGER NOT NULL,
    current_any REAL NOT NULL,
    current_ms REAL NOT NULL,
    shadow_suspected INTEGER,
    shadow_any REAL,
    shadow_ms REAL,
    failure TEXT,
    PRIMARY KEY (series_uid, current_sha256, shadow_sha256)
) STRICT;
";

const UNFINISHED: &str = "unfinished";

/// One series, read by two models.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shadowed {
    /// Series Instance UID.
    pub series_uid: String,
    /// Which model answered, SHA-256 of its manifest.
    pub current_sha256: String,
    /// Which model read along.
    pub shadow_sha256: String,
    /// What both read.
    pub input_sha256: String,
    /// Whether it was suspected.
    pub current_suspected: bool,
    /// Series score of `any`.
    pub current_any: f32,
    /// Elapsed, ms.
    pub current_ms: f64,
    /// Whether it would have been suspected; none if it could not be read.
    pub shadow_suspected: Option<bool>,
    /// Its score of `any`.
    pub shadow_any: Option<f32>,
    /// Elapsed, ms, on one thread.
    pub shadow_ms: Option<f64>,
    /// Why it could not be read.
    pub failure: Option<String>,
}

impl Shadowed {
    /// The current model's half; none where it gave no answer to compare with.
    pub fn of_current(verdict: &Verdict, timings: Timings) -> Option<Self> {
        let suspected = match &verdict.disposition {
            Disposition::Suspected(_) => true,
            Disposition::NotSuspected => false,
            Disposition::NotAnalysed(_) => return None,
        };
        Some(Shadowed {
            series_uid: verdict.series.as_str().into(),
            current_sha256: verdict.model.as_ref()?.sha256.clone(),
            input_sha256: verdict.input_sha256.clone(),
            current_suspected: suspected,
            current_any: verdict.scores.as_ref()?.of(Class::Any),
            current_ms: timings.total,
            ..Shadowed::default()
        })
    }
}

/// Two models over all series that both have read.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Comparison {
    /// Model that answered, SHA-256 of its manifest.
    pub current_sha256: String,
    /// Model that read along.
    pub shadow_sha256: String,
    /// Series.
    pub series: u64,
    /// Of them, with the same answer.
    pub agreed: u64,
    /// Suspected by the current model.
    pub current_suspected: u64,
    /// Would have been suspected by the one in shadow.
    pub shadow_suspected: u64,
    /// Suspected by the current model alone: what promotion would have kept silent.
    pub only_current: u64,
    /// Could not be read by the one in shadow.
    pub failed: u64,
    /// Mean time of the current model, ms.
    pub current_ms: f64,
    /// Mean time of the one in shadow, ms, on one thread.
    pub shadow_ms: f64,
}

impl Ledger {
    /// Writes down that a series is about to be read along; how many were begun with this model and not ended.
    pub fn begin_shadow(&self, row: &Shadowed) -> Result<u64, LedgerError> {
        let begun = Shadowed { failure: Some(UNFINISHED.into()), ..row.clone() };
        self.record_shadow(&begun)?;
        let sql = "SELECT count(*) FROM shadow WHERE shadow_sha256 = ?1 AND failure = ?2";
        self.lock()
            .query_row(sql, [&row.shadow_sha256, UNFINISHED], |r| r.get::<_, i64>(0))
            .map(i64::unsigned_abs)
            .map_err(doing("count what the model in shadow began"))
    }

    /// Writes one comparison; a series that is read again replaces it.
    pub fn record_shadow(&self, row: &Shadowed) -> Result<(), LedgerError> {
        self.lock()
            .execute(
                "INSERT OR REPLACE INTO shadow VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
                params![
                    row.series_uid,
                    row.current_sha256,
                    row.shadow_sha256,
                    row.input_sha256,
                    row.current_suspected,
                    f64::from(row.current_any),
                    row.current_ms,
                    row.shadow_suspected,
                    row.shadow_any.map(f64::from),
                    row.shadow_ms,
                    row.failure,
                ],
            )
            .map(|_| ())
            .map_err(doing("write what the model in shadow said"))
    }

    /// Every pair of models that have read the same series, from a database that a daemon may be writing to.
    pub fn comparisons(state: &Path) -> Result<Vec<Comparison>, LedgerError> {
        if !state.join("ichd.db").exists() {
            return Ok(Vec::new());
        }
        let connection = open_read_only(state)?;
        let count = |row: &rusqlite::Row, n| row.get::<_, i64>(n).map(i64::unsigned_abs);
        let sql =
            "SELECT current_sha256, shadow_sha256, count(*), sum(shadow_suspected IS current_suspected),
                   sum(current_suspected), coalesce(sum(shadow_suspected), 0),
                   sum(current_suspected AND NOT coalesce(shadow_suspected, 0)), sum(failure IS NOT NULL),
                   avg(current_ms), coalesce(avg(shadow_ms), 0.0)
                   FROM shadow GROUP BY current_sha256, shadow_sha256 ORDER BY max(rowid)";
        let read = |row: &rusqlite::Row| {
            Ok(Comparison {
                current_sha256: row.get(0)?,
                shadow_sha256: row.get(1)?,
                series: count(row, 2)?,
                agreed: count(row, 3)?,
                current_suspected: count(row, 4)?,
                shadow_suspected: count(row, 5)?,
                only_current: count(row, 6)?,
                failed: count(row, 7)?,
                current_ms: row.get(8)?,
                shadow_ms: row.get(9)?,
            })
        };
        let mut statement = connection.prepare(sql).map_err(doing("compare models"))?;
        statement.query_map([], read).and_then(Iterator::collect).map_err(doing("compare models"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Profile, Site};

    #[test]
    fn agreement_and_what_would_have_been_silent_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Ledger::comparisons(dir.path()).unwrap(), []);
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        let ledger = Ledger::open(dir.path(), &site).unwrap();
        let row = |uid: &str, current, shadow: Option<bool>| Shadowed {
            series_uid: uid.into(),
            current_sha256: "aa".into(),
            shadow_sha256: "bb".into(),
            current_suspected: current,
            current_ms: 100.0,
            shadow_suspected: shadow,
            shadow_ms: shadow.map(|_| 300.0),
            failure: shadow.is_none().then(|| "model".into()),
            ..Shadowed::default()
        };
        for row in [
            row("1.1", true, Some(true)),
            row("1.2", true, Some(false)),
            row("1.3", false, Some(true)),
            row("1.4", false, Some(false)),
            row("1.5", true, None),
            row("1.5", true, None),
        ] {
            assert_eq!(ledger.begin_shadow(&row).unwrap(), 1);
            ledger.record_shadow(&row).unwrap();
        }
        let expected = Comparison {
            current_sha256: "aa".into(),
            shadow_sha256: "bb".into(),
            series: 5,
            agreed: 2,
            current_suspected: 3,
            shadow_suspected: 2,
            only_current: 2,
            failed: 1,
            current_ms: 100.0,
            shadow_ms: 300.0,
        };
        assert_eq!(Ledger::comparisons(dir.path()).unwrap(), [expected]);
        assert_eq!(ledger.begin_shadow(&row("1.6", true, None)).unwrap(), 1, "a crash here");
        assert_eq!(ledger.begin_shadow(&row("1.7", true, None)).unwrap(), 2, "and one there are two");
    }
}
