//! What an engineer's station may see of the ledger over the broker: no UID, and who asked is in the audit log.

use rusqlite::params;
use serde_json::json;

use super::outbox::{REPLY_EXPIRY_S, Waiting, queue};
use super::{Ledger, LedgerError, SeriesRow, audit, doing, series_rows};
use crate::alert::request::{Answer, Asked, LedgerLine};
use crate::alert::topic;
use crate::clock;

impl Ledger {
    /// The newest series.
    pub fn newest(&self, limit: u32) -> Result<Vec<LedgerLine>, LedgerError> {
        let connection = self.lock();
        let sql = "SELECT study_ref, series_uid, disposition, reason, stage, revision, instances, decided_ms,
                   purged_ms IS NOT NULL, study_uid IN (SELECT study_uid FROM proofs)
                   FROM series ORDER BY decided_ms DESC, series_uid LIMIT ?1";
        let mut statement = connection.prepare_cached(sql).map_err(doing("read the ledger"))?;
        let rows = statement.query_map([limit], |r| {
            Ok(LedgerLine {
                study_ref: r.get(0)?,
                series_ref: self.reference(&r.get::<_, String>(1)?),
                disposition: r.get(2)?,
                reason: r.get(3)?,
                stage: r.get(4)?,
                revision: r.get(5)?,
                instances: r.get::<_, i64>(6)?.unsigned_abs(),
                decided_at: clock::rfc3339(r.get::<_, i64>(7)?.unsigned_abs()),
                purged: r.get(8)?,
                test: r.get(9)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(doing("read the ledger"))
    }

    /// The series that is called so on the wire.
    pub fn series_by_reference(&self, series_ref: &str) -> Result<Option<SeriesRow>, LedgerError> {
        let connection = self.lock();
        let mut statement =
            connection.prepare_cached("SELECT series_uid FROM series").map_err(doing("read the ledger"))?;
        let uids = statement
            .query_map([], |r| r.get::<_, String>(0))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(doing("read the ledger"))?;
        let Some(uid) = uids.into_iter().find(|uid| self.reference(uid) == series_ref) else {
            return Ok(None);
        };
        Ok(series_rows(&connection, "series_uid = ?1", params![uid])?.pop())
    }

    /// Writes down who asked what, and sends the answer on its way.
    pub fn answer(&self, asked: &Asked, answer: &Answer) -> Result<(), LedgerError> {
        self.change(|tx| {
            let Asked { station, request } = asked;
            let body = json!({
                "request_id": request.request_id, "command": request.command, "series_ref": request.series_ref,
                "station": station, "user": request.user.trim(), "code": answer.code,
            });
            audit::append(tx, "request", &body)?;
            let payload = serde_json::to_string(answer).map_err(LedgerError::Document)?;
            queue(tx, &Waiting::of(topic::answer(&self.site, station), payload, REPLY_EXPIRY_S))
        })
    }
}
