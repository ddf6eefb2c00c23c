//! What the model in shadow would have said, beside what was said.

use std::path::Path;

use rusqlite::params;
use serde::Serialize;

use super::{Ledger, LedgerError, doing, open_read_only};
use crate::decide::{Disposition, Verdict};
use crate::infer::{Class, Timings};

/// Migration that makes the table; run by `schema`. A row with failure `unfinished in <boot>` was begun and not ended.
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

/// Begun in that run of the machine, and not ended.
fn unfinished(boot_id: &str) -> String {
    format!("unfinished in {boot_id}")
}

/// Begun, and the program ended with it.
const CRASHED: &str = "crashed";

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
    /// Whether it would have been suspected; none if it could not be read or would not have been analysed.
    pub shadow_suspected: Option<bool>,
    /// Its score of `any`.
    pub shadow_any: Option<f32>,
    /// Elapsed, ms, on one thread.
    pub shadow_ms: Option<f64>,
    /// Why there is no answer: the reader's error, or the reason of "not analysed".
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

    /// The other half. "Not analysed" is no answer: a model that reads no head would agree with every quiet one.
    pub fn answer(&mut self, verdict: &Verdict, ms: f64) {
        self.shadow_ms = Some(ms);
        match &verdict.disposition {
            Disposition::NotAnalysed(why) => self.failure = Some(why.code().into()),
            disposition => {
                self.shadow_suspected = Some(matches!(disposition, Disposition::Suspected(_)));
                self.shadow_any = verdict.scores.as_ref().map(|s| s.of(Class::Any));
            }
        }
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
    /// Not read, or not analysed, by the one in shadow.
    pub failed: u64,
    /// Mean time of the current model, ms.
    pub current_ms: f64,
    /// Mean time of the one in shadow, ms, on one thread.
    pub shadow_ms: f64,
}

impl Ledger {
    /// Writes down that a series is about to be read along; how often this model has ended the program.
    pub fn begin_shadow(&self, row: &Shadowed) -> Result<u64, LedgerError> {
        let begun = Shadowed { failure: Some(unfinished(&self.boot_id)), ..row.clone() };
        self.record_shadow(&begun)?;
        let sql = "SELECT count(*) FROM shadow WHERE shadow_sha256 = ?1 AND failure = ?2";
        self.lock()
            .query_row(sql, [&row.shadow_sha256, CRASHED], |r| r.get::<_, i64>(0))
            .map(i64::unsigned_abs)
            .map_err(doing("count how often the model in shadow ended the program"))
    }

    /// What was begun and not ended before this start: in this run of the machine the program ended with it, in another
    /// one the machine did, which says nothing of the model.
    pub fn settle_shadow(&self) -> Result<(), LedgerError> {
        let settle = doing("settle what the model in shadow began");
        self.change(|tx| {
            let crashed = "UPDATE shadow SET failure = ?1 WHERE failure = ?2";
            let gone = "DELETE FROM shadow WHERE failure LIKE 'unfinished%'";
            tx.execute(crashed, [CRASHED, &unfinished(&self.boot_id)])
                .and_then(|_| tx.execute(gone, []))
                .map(|_| ())
                .map_err(settle)
        })
    }

    /// The program is stopped in the middle of a series: it is left out.
    pub fn leave_out_shadow(&self, row: &Shadowed) -> Result<(), LedgerError> {
        let sql = "DELETE FROM shadow WHERE series_uid = ?1 AND current_sha256 = ?2 AND shadow_sha256 = ?3
                   AND failure LIKE 'unfinished%'";
        self.lock()
            .execute(sql, [&row.series_uid, &row.current_sha256, &row.shadow_sha256])
            .map(|_| ())
            .map_err(doing("leave out what the model in shadow began"))
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
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::{Profile, Site};
    use crate::decide::{Stage, Why};

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
            assert_eq!(ledger.begin_shadow(&row).unwrap(), 0);
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
    }

    #[test]
    fn a_shadow_that_analyses_nothing_agrees_with_nobody() {
        let mut row = Shadowed::default();
        let mut verdict = verdict(1, Stage::Final, None);
        row.answer(&verdict, 1.0);
        assert_eq!((row.shadow_suspected, row.failure.as_deref()), (Some(false), None));
        let mut row = Shadowed::default();
        verdict.disposition = Disposition::NotAnalysed(Why::NotHead);
        row.answer(&verdict, 1.0);
        assert_eq!((row.shadow_suspected, row.failure.as_deref()), (None, Some("not_head")));
    }

    #[test]
    fn only_a_program_that_ended_with_a_series_counts_against_its_model() {
        let dir = tempfile::tempdir().unwrap();
        let open = |boot: &str| {
            let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
            let (policy, clock) = (crate::ledger::alerts::Policy::default(), crate::clock::Source::system());
            let ledger = Ledger::open_with(dir.path(), &site, policy, clock, boot.into()).unwrap();
            ledger.settle_shadow().unwrap();
            ledger
        };
        let row = |uid: &str| Shadowed {
            series_uid: uid.into(),
            shadow_sha256: "bb".into(),
            ..Shadowed::default()
        };
        // Stopped in the middle of a series, ten times over.
        for n in 0..10 {
            let ledger = open("boot-1");
            assert_eq!(ledger.begin_shadow(&row(&format!("1.{n}"))).unwrap(), 0);
            ledger.leave_out_shadow(&row(&format!("1.{n}"))).unwrap();
        }
        // Power cuts.
        for n in 0..10 {
            assert_eq!(open(&format!("cut-{n}")).begin_shadow(&row(&format!("2.{n}"))).unwrap(), 0);
        }
        drop(open("boot-2"));
        assert_eq!(Ledger::comparisons(dir.path()).unwrap(), []);
        // The program ends with it.
        for n in 0..3 {
            assert_eq!(open("boot-2").begin_shadow(&row(&format!("3.{n}"))).unwrap(), n);
        }
        drop(open("boot-2"));
        assert_eq!(
            open("boot-3").begin_shadow(&row("4.1")).unwrap(),
            3,
            "nor does a new start of the machine clear it"
        );
        drop(open("boot-4"));
        assert_eq!(Ledger::comparisons(dir.path()).unwrap()[0].failed, 3);
    }
}
