//! What time demands of open alerts.

use rusqlite::Transaction;

use super::super::{Ledger, LedgerError, integer};
use super::Revision;
use super::row::{OPEN, Stored, alerts_that, is_waiting, receipts};
use crate::alert::document::AlertState;
use crate::alert::ladder::{self, Due, EVERYONE, Limits, Standing};

impl Ledger {
    /// Does everything that is due; returns how many alerts changed or go out again.
    pub fn tick(&self) -> Result<usize, LedgerError> {
        let failed = self.is_failing();
        let done = self.change(|tx| {
            let mut done = 0;
            for mut stored in self.possibly_due(tx)? {
                let standing = self.standing(tx, &stored)?;
                let Some(due) = ladder::due(&stored.document, &standing, self.policy.limits) else {
                    continue;
                };
                done += 1;
                match due {
                    Due::Unheard => {
                        stored.called_unheard = true;
                        self.step_up(&mut stored);
                        self.revise(tx, &mut stored, Revision::sounding("alert_unheard"))?;
                        let text = format!(
                            "no station that was called has shown alert {} after {} s",
                            stored.document.subject.r#ref,
                            standing.since_begun_ms / 1000
                        );
                        self.set_technical(tx, "nobody_listening", &text)?;
                    }
                    Due::Step => {
                        self.step_up(&mut stored);
                        self.revise(tx, &mut stored, Revision::sounding("alert_escalated"))?;
                    }
                    Due::Resend => {
                        (stored.sent_elapsed_ms, stored.resends) =
                            (self.elapsed_ms(), stored.resends.saturating_add(1));
                        stored.save(tx)?;
                        self.enqueue(tx, &stored.document)?;
                    }
                    Due::Expire => {
                        stored.document.state = AlertState::Expired;
                        stored.document.addendum.push("expired: nobody acknowledged it".into());
                        self.revise(tx, &mut stored, Revision::silent("alert_expired"))?;
                        let text = format!(
                            "alert {} expired without an acknowledgement",
                            stored.document.subject.r#ref
                        );
                        self.set_technical(tx, "expired_unacknowledged", &text)?;
                    }
                    Due::Close => {
                        stored.document.state = AlertState::Resolved;
                        stored.document.addendum.push("closed by time".into());
                        self.revise(tx, &mut stored, Revision::silent("alert_resolved"))?;
                    }
                }
            }
            self.keep_time_now_and_then(tx)?;
            Ok(done)
        })?;
        if failed {
            self.recovered();
        }
        Ok(done)
    }

    /// Open alerts of which something may be due; a storm of others costs nothing.
    fn possibly_due(&self, tx: &Transaction) -> Result<Vec<Stored>, LedgerError> {
        let Limits { receipt_ms, expiry_ms } = self.policy.limits;
        let due = "(raised_elapsed_ms + next_step_at_ms <= ?1 OR sent_elapsed_ms + ?2 <= ?1
             OR delivered_elapsed_ms + ?4 <= ?1
             OR (heard_elapsed_ms IS NULL AND NOT called_unheard AND begun_elapsed_ms + ?3 <= ?1))";
        let limits = [self.elapsed_ms(), ladder::RESEND_MIN_MS, receipt_ms, expiry_ms].map(integer);
        alerts_that(tx, &format!("{OPEN} AND {due}"), &limits)
    }

    fn standing(&self, tx: &Transaction, stored: &Stored) -> Result<Standing, LedgerError> {
        let now = self.elapsed_ms();
        let heard = receipts(tx, &stored.document.alert_id)?;
        let has = |role: &String| {
            let mut of_rev = heard.iter().filter(|r| r.rev >= stored.content_rev);
            of_rev.any(|r| role == EVERYONE || r.role == *role)
        };
        // The last transmission may still wait for the broker; it is not lost before it was sent.
        let waits = is_waiting(tx, &stored.document.alert_id)?;
        Ok(Standing {
            age_ms: now.saturating_sub(stored.raised_elapsed_ms),
            since_begun_ms: now.saturating_sub(stored.begun_elapsed_ms),
            next_step_at_ms: stored.next_step_at_ms,
            since_sent_ms: if waits { 0 } else { now.saturating_sub(stored.sent_elapsed_ms) },
            resends: stored.resends,
            since_delivered_ms: stored.delivered_elapsed_ms.map(|at| now.saturating_sub(at)),
            heard_by_all: stored.document.escalation.roles.iter().all(has),
            heard: stored.heard_elapsed_ms.is_some(),
            called_unheard: stored.called_unheard,
        })
    }
}
