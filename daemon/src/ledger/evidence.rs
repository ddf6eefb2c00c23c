//! The ledger as evidence: rows found by any of their names, read beside a running daemon.

use std::path::Path;

use rusqlite::OptionalExtension;

use super::{Ledger, LedgerError, SeriesRow, doing, open_read_only, series_rows};

/// The rows that an identifier names: a series or study UID, an alert identifier, or the number of a row.
pub fn find(state: &Path, id: &str) -> Result<Vec<SeriesRow>, LedgerError> {
    let connection = open_read_only(state)?;
    let study: Option<String> = connection
        .query_row("SELECT study_uid FROM alerts WHERE alert_id = ?1", [id], |r| r.get(0))
        .optional()
        .map_err(doing("look for an alert"))?;
    let mut rows = series_rows(&connection, None)?;
    rows.retain(|row| match &study {
        // What an alert rests on are the series of its study that were read.
        Some(study) => row.study_uid == *study && row.model_sha256.is_some(),
        None => row.series_uid == id || row.study_uid == id || row.row.to_string() == id,
    });
    Ok(rows)
}

impl Ledger {
    /// Series by disposition and reason; the reason is empty where there is none.
    pub fn series_counts(&self) -> Result<Vec<(String, String, u64)>, LedgerError> {
        let connection = self.lock();
        let sql =
            "SELECT disposition, coalesce(reason, ''), count(*) FROM series GROUP BY 1, 2 ORDER BY 1, 2";
        let mut statement = connection.prepare_cached(sql).map_err(doing("count series"))?;
        let rows =
            statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get::<_, i64>(2)?.unsigned_abs())));
        rows.and_then(Iterator::collect).map_err(doing("count series"))
    }
}
