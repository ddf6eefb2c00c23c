//! Alerts and receipts as rows.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::{LedgerError, doing, integer, stage_text};
use crate::alert::document::{Alert, AlertFinding, Quality, Receipt};
use crate::alert::inbound::ReceiptStage;
use crate::alert::ladder::EVERYONE;
use crate::alert::lifecycle::Existing;
use crate::clock;
use crate::decide::Stage;
use crate::dicom::SeriesUid;

/// Migration that makes the columns and tables of the chain; run by `schema`.
pub(in crate::ledger) const MIGRATION: &str = "
ALTER TABLE alerts ADD COLUMN raised_elapsed_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN next_step_at_ms INTEGER;
ALTER TABLE alerts ADD COLUMN sent_elapsed_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN resends INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN delivered_elapsed_ms INTEGER;
ALTER TABLE alerts ADD COLUMN content_rev INTEGER NOT NULL DEFAULT 0;
ALTER TABLE alerts ADD COLUMN called_unheard INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN not_before_ms INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
CREATE TABLE receipts (
    alert_id TEXT NOT NULL,
    station TEXT NOT NULL,
    role TEXT NOT NULL,
    stage TEXT NOT NULL,
    rev INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    elapsed_ms INTEGER NOT NULL,
    PRIMARY KEY (alert_id, station)
) STRICT;
CREATE TABLE actions (
    action_id TEXT PRIMARY KEY,
    alert_id TEXT NOT NULL,
    station TEXT NOT NULL,
    role TEXT NOT NULL,
    user TEXT NOT NULL,
    verb TEXT NOT NULL,
    value TEXT,
    reason TEXT,
    rev INTEGER NOT NULL,
    reply TEXT NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX actions_by_alert ON actions (alert_id);
CREATE TABLE silences (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    author TEXT NOT NULL,
    reason TEXT NOT NULL,
    from_ms INTEGER NOT NULL,
    until_ms INTEGER NOT NULL,
    until_elapsed_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE proofs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    study_uid TEXT NOT NULL UNIQUE,
    begun_ms INTEGER NOT NULL,
    begun_elapsed_ms INTEGER NOT NULL,
    alert_id TEXT,
    reached TEXT NOT NULL,
    ended_ms INTEGER,
    ended_elapsed_ms INTEGER,
    failure TEXT
) STRICT;
";

/// What a series that suspects something says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Behind {
    pub(super) priority: u8,
    pub(super) stage: Stage,
    pub(super) finding: AlertFinding,
    pub(super) quality: Quality,
    pub(super) slices: usize,
    #[serde(default)]
    pub(super) location: Option<String>,
    #[serde(default)]
    pub(super) enc: Option<String>,
    /// Order of speaking.
    pub(super) nth: u64,
}

/// A row of `alerts`.
#[derive(Debug, Clone)]
pub(in crate::ledger) struct Stored {
    /// Study Instance UID, `technical:CODE` or `test:N`.
    pub(super) subject: String,
    pub(in crate::ledger) document: Alert,
    pub(super) raised_by: BTreeMap<SeriesUid, Behind>,
    pub(super) content: String,
    pub(super) raised_wall_ms: u64,
    pub(super) raised_elapsed_ms: u64,
    pub(super) next_step_at_ms: Option<u64>,
    pub(super) sent_elapsed_ms: u64,
    pub(super) resends: u32,
    /// When the ladder began, from which a receipt is due.
    pub(super) begun_elapsed_ms: u64,
    /// When a station first had it, whoever looks there.
    pub(super) delivered_elapsed_ms: Option<u64>,
    /// When a station of a role that was called first had it.
    pub(super) heard_elapsed_ms: Option<u64>,
    pub(super) content_rev: u64,
    pub(super) called_unheard: bool,
}

impl Stored {
    /// Whether the ladder has called this role by now.
    pub(super) fn calls(&self, role: &str) -> bool {
        self.document.escalation.roles.iter().any(|called| called == EVERYONE || called == role)
    }

    pub(super) fn existing(&self) -> Existing {
        Existing {
            state: self.document.state,
            stage: self.document.stage,
            raised_by: self.raised_by.keys().cloned().collect(),
            content: self.content.clone(),
        }
    }

    pub(super) fn save(&self, tx: &Transaction) -> Result<(), LedgerError> {
        let text = |v: serde_json::Value| v.as_str().unwrap_or_default().to_owned();
        let document = &self.document;
        tx.execute(
            "INSERT INTO alerts (study_uid, alert_id, rev, state, stage, raised_by, content, document, raised_ms,
                 raised_elapsed_ms, next_step_at_ms, sent_elapsed_ms, resends,
                 delivered_elapsed_ms, content_rev, called_unheard, begun_elapsed_ms, heard_elapsed_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)
             ON CONFLICT (study_uid) DO UPDATE SET rev = ?3, state = ?4, stage = ?5, raised_by = ?6, content = ?7,
                 document = ?8, next_step_at_ms = ?11, sent_elapsed_ms = ?12, resends = ?13,
                 delivered_elapsed_ms = ?14, content_rev = ?15, called_unheard = ?16, begun_elapsed_ms = ?17,
                 heard_elapsed_ms = ?18",
            params![
                self.subject,
                document.alert_id,
                integer(document.rev),
                text(json!(document.state)),
                stage_text(document.stage),
                serde_json::to_string(&self.raised_by).map_err(LedgerError::Document)?,
                self.content,
                serde_json::to_string(document).map_err(LedgerError::Document)?,
                integer(self.raised_wall_ms),
                integer(self.raised_elapsed_ms),
                self.next_step_at_ms.map(integer),
                integer(self.sent_elapsed_ms),
                self.resends,
                self.delivered_elapsed_ms.map(integer),
                integer(self.content_rev),
                self.called_unheard,
                integer(self.begun_elapsed_ms),
                self.heard_elapsed_ms.map(integer),
            ],
        )
        .map(|_| ())
        .map_err(doing("write an alert"))
    }
}

/// A row as SQLite gives it; the documents in it are read outside of SQLite's own error type.
struct Raw {
    subject: String,
    alert_id: String,
    document: String,
    raised_by: String,
    content: String,
    raised_wall_ms: u64,
    raised_elapsed_ms: u64,
    next_step_at_ms: Option<u64>,
    sent_elapsed_ms: u64,
    resends: u32,
    begun_elapsed_ms: u64,
    delivered_elapsed_ms: Option<u64>,
    heard_elapsed_ms: Option<u64>,
    content_rev: u64,
    called_unheard: bool,
}

fn raw(row: &Row) -> rusqlite::Result<Raw> {
    let number = |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, i64>(name)?.unsigned_abs());
    let maybe =
        |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(name)?.map(i64::unsigned_abs));
    Ok(Raw {
        subject: row.get("study_uid")?,
        alert_id: row.get("alert_id")?,
        document: row.get("document")?,
        raised_by: row.get("raised_by")?,
        content: row.get("content")?,
        raised_wall_ms: number("raised_ms")?,
        raised_elapsed_ms: number("raised_elapsed_ms")?,
        next_step_at_ms: maybe("next_step_at_ms")?,
        sent_elapsed_ms: number("sent_elapsed_ms")?,
        resends: row.get("resends")?,
        begun_elapsed_ms: number("begun_elapsed_ms")?,
        delivered_elapsed_ms: maybe("delivered_elapsed_ms")?,
        heard_elapsed_ms: maybe("heard_elapsed_ms")?,
        content_rev: number("content_rev")?,
        called_unheard: row.get("called_unheard")?,
    })
}

impl Raw {
    fn read(self) -> Result<Stored, LedgerError> {
        Ok(Stored {
            subject: self.subject,
            document: serde_json::from_str(&self.document).map_err(LedgerError::Document)?,
            // The first version kept the names of the series only; what they said follows with their next verdict.
            raised_by: serde_json::from_str(&self.raised_by).unwrap_or_default(),
            content: self.content,
            raised_wall_ms: self.raised_wall_ms,
            raised_elapsed_ms: self.raised_elapsed_ms,
            next_step_at_ms: self.next_step_at_ms,
            sent_elapsed_ms: self.sent_elapsed_ms,
            resends: self.resends,
            begun_elapsed_ms: self.begun_elapsed_ms.max(self.raised_elapsed_ms),
            delivered_elapsed_ms: self.delivered_elapsed_ms,
            heard_elapsed_ms: self.heard_elapsed_ms,
            content_rev: self.content_rev,
            called_unheard: self.called_unheard,
        })
    }
}

pub(super) fn stored(tx: &Transaction, subject: &str) -> Result<Option<Stored>, LedgerError> {
    let row = tx
        .query_row("SELECT * FROM alerts WHERE study_uid = ?1", [subject], raw)
        .optional()
        .map_err(doing("read an alert"))?;
    row.map(Raw::read).transpose()
}

pub(in crate::ledger) fn stored_by_id(
    tx: &Transaction,
    alert_id: &str,
) -> Result<Option<Stored>, LedgerError> {
    let row = tx
        .query_row("SELECT * FROM alerts WHERE alert_id = ?1", [alert_id], raw)
        .optional()
        .map_err(doing("read an alert"))?;
    row.map(Raw::read).transpose()
}

/// States of an alert that waits for a person or is in somebody's hands, for SQL: `alerts_by_state` finds them.
pub(in crate::ledger) const OPEN: &str = "state IN ('raised', 'delivered', 'acknowledged', 'escalated')";

pub(in crate::ledger) fn open_alerts(tx: &Transaction) -> Result<Vec<Stored>, LedgerError> {
    alerts_that(tx, OPEN, &[])
}

/// What was closed since a moment of elapsed time.
pub(in crate::ledger) fn closed_since(tx: &Transaction, elapsed_ms: u64) -> Result<Vec<Stored>, LedgerError> {
    let closed = "state IN ('resolved', 'withdrawn', 'expired') AND sent_elapsed_ms >= ?1";
    alerts_that(tx, closed, &[integer(elapsed_ms)])
}

pub(super) fn alerts_that(
    tx: &Transaction,
    condition: &str,
    values: &[i64],
) -> Result<Vec<Stored>, LedgerError> {
    let sql = format!("SELECT * FROM alerts WHERE {condition} ORDER BY alert_id");
    let mut statement = tx.prepare(&sql).map_err(doing("read alerts"))?;
    let rows = statement
        .query_map(rusqlite::params_from_iter(values), raw)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(doing("read alerts"))?;
    // One that cannot be read must not keep the others from being told.
    let read = rows.into_iter().filter_map(|row| {
        let alert_id = row.alert_id.clone();
        row.read().map_err(|e| log::error!(event = "alert_unreadable", alert_id = alert_id.as_str(); "a stored alert cannot be read: {e}")).ok()
    });
    Ok(read.collect())
}

/// A document of the alert is on its way to the broker.
pub(in crate::ledger) fn is_waiting(tx: &Transaction, alert_id: &str) -> Result<bool, LedgerError> {
    let sql = "SELECT count(*) FROM outbox WHERE alert_id = ?1";
    tx.query_row(sql, [alert_id], |r| r.get::<_, i64>(0)).map(|n| n > 0).map_err(doing("read the outbox"))
}

pub(in crate::ledger) fn receipts(
    connection: &rusqlite::Connection,
    alert_id: &str,
) -> Result<Vec<Receipt>, LedgerError> {
    let sql = "SELECT station, role, stage, rev, at_ms FROM receipts WHERE alert_id = ?1 ORDER BY elapsed_ms, station";
    let mut statement = connection.prepare(sql).map_err(doing("read receipts"))?;
    let rows = statement.query_map([alert_id], |r| {
        Ok(Receipt {
            station: r.get(0)?,
            role: r.get(1)?,
            stage: match r.get::<_, String>(2)?.as_str() {
                "sounded" => ReceiptStage::Sounded,
                "displayed" => ReceiptStage::Displayed,
                _ => ReceiptStage::Received,
            },
            rev: r.get::<_, i64>(3)?.unsigned_abs(),
            at: clock::rfc3339(r.get::<_, i64>(4)?.unsigned_abs()),
        })
    });
    rows.and_then(Iterator::collect).map_err(doing("read receipts"))
}

pub(super) fn stage_name(stage: ReceiptStage) -> &'static str {
    match stage {
        ReceiptStage::Received => "received",
        ReceiptStage::Displayed => "displayed",
        ReceiptStage::Sounded => "sounded",
    }
}
