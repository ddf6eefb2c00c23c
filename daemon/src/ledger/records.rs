//! Who was told of a finding, when, by what means, and who acknowledged it: what an audit of critical results asks for. Read
//! beside a running daemon; no patient in it, the spoken code and the keyed hash of the study name the case.

use std::path::Path;

use serde::Serialize;

use super::{LedgerError, doing, open_read_only};
use crate::clock;

/// One line: one thing that happened to one alert.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Wall time, RFC 3339.
    pub at: String,
    /// Which alert.
    pub alert_id: String,
    /// The code that is said on the phone.
    pub code: String,
    /// Keyed hash of the study.
    pub study_ref: String,
    /// `raised`, `told`, `escalated`, `withdrawn`, `expired`, or the verb of a person: `ack`, `decline` and so on.
    pub event: String,
    /// Where: a station, or nothing where the box itself acted.
    pub station: String,
    /// Whom that station serves.
    pub role: String,
    /// Who acted by name.
    pub user: String,
    /// `received`, `displayed`, `sounded` for one who was told, a line each; the roles that were called by then; the
    /// outcome for one who acted, and their reason.
    pub detail: String,
}

/// The columns of [`csv`], in order.
pub const COLUMNS: [&str; 9] =
    ["at", "alert_id", "code", "study_ref", "event", "station", "role", "user", "detail"];

/// Every record of every finding, oldest first.
pub fn list(state: &Path) -> Result<Vec<Record>, LedgerError> {
    let connection = open_read_only(state)?;
    let findings =
        "FROM alerts a JOIN (SELECT alert_id AS id, json_extract(document, '$.subject.ref') AS code,
        json_extract(document, '$.study.study_ref') AS ref FROM alerts
        WHERE json_extract(document, '$.kind') = 'finding') f ON f.id = a.alert_id";
    // What was told and what the box did stands in the audit log, each with its own time; what people said and why, in
    // the table of actions.
    let sql = format!(
        "SELECT u.at_ms AS at, a.alert_id, code, ref, e.word, json_extract(u.body, '$.station') AS station,
             json_extract(u.body, '$.role') AS role, '' AS user,
             CASE e.word WHEN 'escalated' THEN (SELECT group_concat(value, ' ') FROM json_each(u.body, '$.roles'))
                 ELSE json_extract(u.body, '$.stage') END AS detail
             {findings} JOIN audit u ON json_extract(u.body, '$.alert_id') = a.alert_id
             JOIN (SELECT column1 AS event, column2 AS word FROM (VALUES
                 ('alert_raised', 'raised'), ('alert_receipt', 'told'), ('alert_escalated', 'escalated'),
                 ('alert_unheard', 'escalated'), ('alert_withdrawn', 'withdrawn'), ('alert_expired', 'expired'))) e
             ON e.event = u.event
         UNION ALL
         SELECT c.at_ms, c.alert_id, code, ref, c.verb, c.station, c.role, c.user,
             coalesce(c.value || ' ', '') || json_extract(c.reply, '$.code') || coalesce(': ' || nullif(c.reason, ''), '')
             {findings} JOIN actions c ON c.alert_id = a.alert_id
         ORDER BY 1, 2, 5"
    );
    let mut statement = connection.prepare(&sql).map_err(doing("read the records"))?;
    let rows = statement.query_map([], |r| {
        let text = |i| Ok::<_, rusqlite::Error>(r.get::<_, Option<String>>(i)?.unwrap_or_default());
        Ok(Record {
            at: clock::rfc3339(r.get::<_, i64>(0)?.unsigned_abs()),
            alert_id: text(1)?,
            code: text(2)?,
            study_ref: text(3)?,
            event: text(4)?,
            station: text(5)?,
            role: text(6)?,
            user: text(7)?,
            detail: text(8)?,
        })
    });
    rows.and_then(Iterator::collect).map_err(doing("read the records"))
}

/// RFC 4180, with a header. A field that a spreadsheet would take for a formula is made text.
pub fn csv(records: &[Record]) -> String {
    let field = |text: &str| {
        let safe = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.to_owned() };
        if safe.contains(['"', ',', '\n', '\r']) {
            format!("\"{}\"", safe.replace('"', "\"\""))
        } else {
            safe
        }
    };
    let mut out = COLUMNS.join(",") + "\r\n";
    for r in records {
        let fields =
            [&r.at, &r.alert_id, &r.code, &r.study_ref, &r.event, &r.station, &r.role, &r.user, &r.detail];
        out += &fields.map(|f| field(f)).join(",");
        out += "\r\n";
    }
    out
}
