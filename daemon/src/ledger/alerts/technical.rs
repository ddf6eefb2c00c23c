//! Trouble of the box itself, as alerts that everybody is told of.

use rusqlite::{Transaction, params};

use super::super::{Ledger, LedgerError, doing};
use super::Revision;
use super::row::{Stored, stored};
use crate::alert::document::{AlertState, Kind, Technical};

/// Occasions that an open trouble of the box remembers.
pub(super) const ADDENDA_MAX: usize = 20;

impl Ledger {
    /// Raises trouble of the box: one alert per code while it is open, revised when there is something else to say.
    pub fn raise_technical(&self, code: &str, text: &str) -> Result<(), LedgerError> {
        self.change(|tx| self.set_technical(tx, code, text))
    }

    /// The trouble is over.
    pub fn resolve_technical(&self, code: &str, text: &str) -> Result<(), LedgerError> {
        self.change(|tx| self.clear_technical(tx, code, text))
    }

    pub(in crate::ledger) fn set_technical(
        &self,
        tx: &Transaction,
        code: &str,
        text: &str,
    ) -> Result<(), LedgerError> {
        let subject = format!("technical:{code}");
        if let Some(mut old) = stored(tx, &subject)? {
            if old.document.state.is_open() {
                return self.say_more(tx, &mut old, text);
            }
            // A new occasion is a new alert; the row of the old one makes room, its audit rows stay.
            tx.execute(
                "UPDATE alerts SET study_uid = ?2 WHERE study_uid = ?1",
                params![subject, format!("{subject}:{}", old.document.alert_id)],
            )
            .map_err(doing("write an alert"))?;
        }
        let mut alert = self.new_alert(tx, &subject, Kind::Technical)?;
        alert.document.technical = Some(Technical { code: code.into(), text: text.into() });
        alert.document.subject.r#ref = code.into();
        self.revise(tx, &mut alert, Revision::news("alert_raised"))
    }

    /// The same trouble again. Who has acknowledged it has not heard of this occasion.
    fn say_more(&self, tx: &Transaction, alert: &mut Stored, text: &str) -> Result<(), LedgerError> {
        let document = &mut alert.document;
        let Some(said) = document.technical.as_mut().filter(|said| said.text != text) else { return Ok(()) };
        document.addendum.push(std::mem::replace(&mut said.text, text.into()));
        let too_many = document.addendum.len().saturating_sub(ADDENDA_MAX);
        document.addendum.drain(..too_many);
        if document.state == AlertState::Acknowledged {
            document.state = AlertState::Raised;
            (document.ack, document.claimed_by) = (None, None);
        }
        self.revise(tx, alert, Revision::news("alert_revised"))
    }

    pub(in crate::ledger) fn clear_technical(
        &self,
        tx: &Transaction,
        code: &str,
        text: &str,
    ) -> Result<(), LedgerError> {
        let Some(mut alert) = stored(tx, &format!("technical:{code}"))? else { return Ok(()) };
        if !alert.document.state.is_open() {
            return Ok(());
        }
        alert.document.state = AlertState::Resolved;
        alert.document.addendum.push(text.into());
        self.revise(tx, &mut alert, Revision::silent("alert_resolved"))
    }
}
