//! Audit messages on their way to the repository, written with what they tell of. The table is of migration 3.

use rusqlite::{Transaction, params};

use super::{Ledger, LedgerError, doing, integer};
use crate::atna::{Event, Source};
use crate::clock;

impl Ledger {
    /// Lets audit messages be queued from now on.
    pub fn auditing(mut self, source: Option<Source>) -> Self {
        self.audit_source = source;
        self
    }

    /// Whether anybody wants audit messages.
    pub fn is_audited(&self) -> bool {
        self.audit_source.is_some()
    }

    /// Queues messages with when it happened (wall time in ms), if anybody wants them.
    pub fn atna(&self, events: &[(u64, Event)]) -> Result<(), LedgerError> {
        match &self.audit_source {
            Some(source) => self.change(|tx| queue(tx, source, events)),
            None => Ok(()),
        }
    }

    /// Queues a message in the transaction of what it tells of.
    pub(super) fn atna_queue(&self, tx: &Transaction, event: Event) -> Result<(), LedgerError> {
        match &self.audit_source {
            Some(source) => queue(tx, source, &[(clock::wall_ms(), event)]),
            None => Ok(()),
        }
    }

    /// The oldest messages that wait.
    pub fn atna_waiting(&self, most: usize) -> Result<Vec<(i64, String)>, LedgerError> {
        let connection = self.lock();
        let mut statement = connection
            .prepare_cached("SELECT seq, message FROM atna ORDER BY seq LIMIT ?1")
            .map_err(doing("read audit messages"))?;
        let rows = statement.query_map([integer(most as u64)], |r| Ok((r.get(0)?, r.get(1)?)));
        rows.and_then(Iterator::collect).map_err(doing("read audit messages"))
    }

    /// The repository has everything up to this one.
    pub fn atna_done(&self, last: i64) -> Result<(), LedgerError> {
        let sql = "DELETE FROM atna WHERE seq <= ?1";
        self.lock().execute(sql, [last]).map(|_| ()).map_err(doing("clear audit messages"))
    }

    /// Messages that wait.
    pub fn atna_depth(&self) -> Result<u64, LedgerError> {
        self.number("SELECT count(*) FROM atna")
    }
}

/// Beyond the limit messages are dropped, aloud: the hash chain has what matters, and a repository that is away must not
/// fill the disk.
pub(super) fn queue(tx: &Transaction, source: &Source, events: &[(u64, Event)]) -> Result<(), LedgerError> {
    for (at_ms, event) in events {
        let n = tx
            .execute(
                "INSERT INTO atna (message) SELECT ?1
                 WHERE (SELECT coalesce(max(seq) - min(seq) + 1, 0) FROM atna) < ?2",
                params![event.syslog(source, *at_ms), integer(source.queue_max)],
            )
            .map_err(doing("queue an audit message"))?;
        if n == 0 {
            log::error!(event = "atna_full"; "too many audit messages wait, one was dropped");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Profile, Site};

    #[test]
    fn messages_wait_in_order_up_to_a_limit_and_only_where_somebody_wants_them() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        let start = (0, Event::Application { started: true });
        {
            let ledger = Ledger::open(dir.path(), &site).unwrap();
            ledger.atna(std::slice::from_ref(&start)).unwrap();
            assert_eq!(ledger.atna_depth().unwrap(), 0);
        }
        let source = crate::atna::message::tests::source();
        let ledger = Ledger::open(dir.path(), &site).unwrap().auditing(Some(source));
        ledger.atna(&vec![start.clone(); 12]).unwrap();
        assert_eq!(ledger.atna_depth().unwrap(), 10, "the limit");
        let first = ledger.atna_waiting(3).unwrap();
        ledger.atna_done(first[2].0).unwrap();
        ledger.atna(&vec![start; 12]).unwrap();
        let rest = ledger.atna_waiting(100).unwrap();
        assert_eq!(rest.len(), 10);
        assert!(rest.windows(2).all(|w| w[0].0 < w[1].0) && rest[0].0 > first[2].0);
    }
}
