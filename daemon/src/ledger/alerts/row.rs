//! Alerts and receipts as rows.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::super::{LedgerError, doing, integer, stage_text};
use crate::alert::document::{Alert, AlertFinding, Quality, Receipt};
use crate::alert::inbound::ReceiptStage;
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
    pub(super) delivered_elapsed_ms: Option<u64>,
    pub(super) content_rev: u64,
    pub(super) called_unheard: bool,
}

const COLUMNS: &str =
    "study_uid, document, raised_by, content, raised_ms, raised_elapsed_ms, next_step_at_ms,
     sent_elapsed_ms, resends, delivered_elapsed_ms, content_rev, called_unheard";

impl Stored {
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
                 delivered_elapsed_ms, content_rev, called_unheard)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
             ON CONFLICT (study_uid) DO UPDATE SET rev = ?3, state = ?4, stage = ?5, raised_by = ?6, content = ?7,
                 document = ?8, next_step_at_ms = ?11, sent_elapsed_ms = ?12, resends = ?13,
                 delivered_elapsed_ms = ?14, content_rev = ?15, called_unheard = ?16",
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
            ],
        )
        .map(|_| ())
        .map_err(doing("write an alert"))
    }
}

/// Columns as SQLite gives them; the documents in it are read outside of SQLite's own error type.
struct Raw(String, String, String, Stored0);
type Stored0 = (String, i64, i64, Option<i64>, i64, u32, Option<i64>, i64, bool);

fn raw(row: &Row) -> rusqlite::Result<Raw> {
    let rest = (
        row.get(3)?,
        row.get(4)?,
        row.get(5)?,
        row.get(6)?,
        row.get(7)?,
        row.get(8)?,
        row.get(9)?,
        row.get(10)?,
        row.get(11)?,
    );
    Ok(Raw(row.get(0)?, row.get(1)?, row.get(2)?, rest))
}

impl Raw {
    fn read(self) -> Result<Stored, LedgerError> {
        let Raw(subject, document, raised_by, rest) = self;
        // The first version kept the names of the series only; what they said follows with their next verdict.
        let raised_by = serde_json::from_str(&raised_by).unwrap_or_default();
        let (content, raised, raised_elapsed, next, sent, resends, delivered, content_rev, called_unheard) =
            rest;
        Ok(Stored {
            subject,
            document: serde_json::from_str(&document).map_err(LedgerError::Document)?,
            raised_by,
            content,
            raised_wall_ms: raised.unsigned_abs(),
            raised_elapsed_ms: raised_elapsed.unsigned_abs(),
            next_step_at_ms: next.map(i64::unsigned_abs),
            sent_elapsed_ms: sent.unsigned_abs(),
            resends,
            delivered_elapsed_ms: delivered.map(i64::unsigned_abs),
            content_rev: content_rev.unsigned_abs(),
            called_unheard,
        })
    }
}

pub(super) fn stored(tx: &Transaction, subject: &str) -> Result<Option<Stored>, LedgerError> {
    let sql = format!("SELECT {COLUMNS} FROM alerts WHERE study_uid = ?1");
    let row = tx.query_row(&sql, [subject], raw).optional().map_err(doing("read an alert"))?;
    row.map(Raw::read).transpose()
}

pub(in crate::ledger) fn stored_by_id(
    tx: &Transaction,
    alert_id: &str,
) -> Result<Option<Stored>, LedgerError> {
    let sql = format!("SELECT {COLUMNS} FROM alerts WHERE alert_id = ?1");
    let row = tx.query_row(&sql, [alert_id], raw).optional().map_err(doing("read an alert"))?;
    row.map(Raw::read).transpose()
}

pub(in crate::ledger) fn open_alerts(tx: &Transaction) -> Result<Vec<Stored>, LedgerError> {
    open_alerts_that(tx, "", &[])
}

pub(super) fn open_alerts_that(
    tx: &Transaction,
    condition: &str,
    values: &[i64],
) -> Result<Vec<Stored>, LedgerError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM alerts WHERE state NOT IN ('resolved', 'withdrawn', 'expired') {condition}
         ORDER BY alert_id"
    );
    let mut statement = tx.prepare(&sql).map_err(doing("read open alerts"))?;
    let rows = statement
        .query_map(rusqlite::params_from_iter(values), raw)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(doing("read open alerts"))?;
    // One that cannot be read must not keep the others from being told.
    let read = rows.into_iter().filter_map(|row| {
        let subject = row.1.len();
        row.read().map_err(|e| log::error!(event = "alert_unreadable", bytes = subject; "a stored alert cannot be read: {e}")).ok()
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
