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
    /// `raised`, `told`, or the verb of a person: `ack`, `claim`, `resolve` and so on.
    pub event: String,
    /// Where: a station, or nothing where the box itself acted.
    pub station: String,
    /// Whom that station serves.
    pub role: String,
    /// Who acted by name.
    pub user: String,
    /// `received`, `displayed`, `sounded` for one who was told; the outcome for one who acted.
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
    let sql = format!(
        "SELECT raised_ms AS at, alert_id, code, ref, 'raised' AS event, '' AS station, '' AS role, '' AS user,
             json_extract(document, '$.stage') AS detail {findings}
         UNION ALL
         SELECT r.at_ms, r.alert_id, code, ref, 'told', r.station, r.role, '', r.stage
             {findings} JOIN receipts r ON r.alert_id = a.alert_id
         UNION ALL
         SELECT c.at_ms, c.alert_id, code, ref, c.verb, c.station, c.role, c.user,
             coalesce(c.value || ' ', '') || json_extract(c.reply, '$.code')
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
