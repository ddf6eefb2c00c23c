//! Proof of life: the golden series of the model package, as a study of its own, through the real DICOM port, reader,
//! database and broker to a station. On a schedule and on demand.
//!
//! ```text
//!  written down -> C-STORE to our own port -> verdict, alert of kind `test` -> broker's PUBACK -> station's receipt
//! ```
//!
//! It succeeds at a station; at the broker only where no station is linked at all. A failure names the link at which
//! the chain is broken, in the status, as a technical alert, and by the age of the last success that stations show.
//! Deliberately absent: a way round any part of the chain. The scores must be the golden ones, to the same tolerance.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dicom_object::FileDicomObject;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::block_in_place as blocking;

use crate::alert::stations::Stations;
use crate::clock;
use crate::config;
use crate::decide::suitability::CT_IMAGE_STORAGE;
use crate::deliver::Sent;
use crate::dicom::{AeTitle, SeriesUid, StudyUid};
use crate::infer::Golden;
use crate::ledger::proofs::{Proof, Reached};
use crate::ledger::{Ledger, LedgerError};
use crate::report::dataset::Dataset;
use crate::report::scu::{self, Object};
use crate::send::Peer;
use crate::spool::Spool;

/// How often a running proof is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// The first one comes soon after the start: an update or a reboot proves itself.
const FIRST: Duration = Duration::from_secs(10);
/// After a failure the next try does not wait for the schedule.
const AGAIN: Duration = Duration::from_secs(60);
/// A station that is linked answers within seconds; then the broker is proof enough that the box is well, and the
/// station's own silence is told apart.
const STATION: Duration = Duration::from_secs(15);

/// Somebody wants a proof now and waits for its outcome.
pub type Wanted = oneshot::Sender<Result<Proof, String>>;

/// The prover and what it sends.
pub struct Prover {
    /// How often, how long, as whom.
    pub config: config::Proof,
    /// Our own AE title.
    pub called: AeTitle,
    /// Our own port.
    pub address: SocketAddr,
    /// What is sent, and its answer.
    pub golden: Golden,
    /// Where proofs are written down.
    pub ledger: Arc<Ledger>,
    /// From which they are removed again.
    pub spool: Arc<Spool>,
    /// Who listens.
    pub stations: Stations,
}

impl Prover {
    /// Runs until shutdown.
    pub async fn run(self, mut wanted: mpsc::Receiver<Wanted>, mut shutdown: watch::Receiver<bool>) {
        let interval = Duration::from_secs(self.config.interval_s);
        let mut wait = if interval.is_zero() { Duration::MAX } else { FIRST.min(interval) };
        loop {
            let asked = tokio::select! {
                asked = wanted.recv() => match asked { Some(asked) => Some(asked), None => return },
                () = tokio::time::sleep(wait.min(Duration::from_secs(30 * 86_400))) => None,
                _ = shutdown.changed() => return,
            };
            if asked.is_none() && interval.is_zero() {
                continue;
            }
            let result = tokio::select! {
                result = self.prove() => result,
                _ = shutdown.changed() => return,
            };
            let failed = !matches!(&result, Ok(Proof { failure: None, .. }));
            self.tell(&result);
            if let Some(asked) = asked {
                let _ = asked.send(result.map_err(|e| crate::chain(&e)));
            }
            wait = match (interval.is_zero(), failed) {
                (true, _) => Duration::MAX,
                (_, true) => AGAIN.min(interval),
                _ => interval,
            };
        }
    }

    fn tell(&self, result: &Result<Proof, LedgerError>) {
        let told = blocking(|| match result {
            Ok(Proof { failure: None, took_ms, reached, .. }) => {
                log::info!(event = "proof_of_life", took_ms = took_ms.unwrap_or(0); "proof of life reached the {reached:?}");
                self.ledger.resolve_technical("proof_failed", "a later proof of life succeeded")
            }
            Ok(Proof { failure: Some(failure), reached, .. }) => {
                log::error!(event = "proof_failed", reason = failure.as_str(); "proof of life failed after it was {reached:?}: {failure}");
                self.ledger.raise_technical("proof_failed", &format!("the chain is broken: {failure}"))
            }
            Err(error) => {
                log::error!(event = "ledger_failed"; "proof of life could not be written down: {}", crate::chain(error));
                Ok(())
            }
        });
        if let Err(error) = told {
            log::error!(event = "ledger_failed"; "a technical alert could not be written down: {}", crate::chain(&error));
        }
    }

    /// One proof, to its end.
    pub async fn prove(&self) -> Result<Proof, LedgerError> {
        let study = StudyUid::parse(&uid()?).map_err(unparsed)?;
        let series = SeriesUid::parse(&uid()?).map_err(unparsed)?;
        let id = blocking(|| self.ledger.begin_proof(study.as_str()))?;
        let failure = self.send_and_wait(id, &study, &series).await?;
        let proof = blocking(|| self.ledger.end_proof(id, failure.as_deref()))?;
        blocking(|| {
            if let Err(error) = self.spool.remove_series(&study, &series) {
                log::warn!(event = "spool_failed"; "a synthetic series could not be removed: {}", crate::chain(&error));
            }
        });
        Ok(proof.unwrap_or(Proof {
            id,
            begun_at: String::new(),
            reached: Reached::Begun,
            took_ms: None,
            failure,
        }))
    }

    /// `Some` says why it failed.
    async fn send_and_wait(
        &self,
        id: i64,
        study: &StudyUid,
        series: &SeriesUid,
    ) -> Result<Option<String>, LedgerError> {
        let started = clock::now();
        let objects = match objects(&self.golden, study, series) {
            Ok(objects) => objects,
            Err(detail) => return Ok(Some(format!("the golden series cannot be sent: {detail}"))),
        };
        let peer = Peer {
            calling: &self.config.ae_title,
            called: &self.called,
            address: &reachable(self.address).to_string(),
            tls: None,
        };
        let sent = scu::send(peer, &objects, &mut Sent::default()).await;
        if let Err(error) = sent {
            return Ok(Some(format!("dicom: {error}")));
        }
        blocking(|| self.ledger.proof_came_to(id, Reached::Stored))?;
        let limit = Duration::from_secs(self.config.limit_s);
        let mut at_broker = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let (reached, verdict) = blocking(|| standing(&self.ledger, id, study, self.golden.any))?;
            if let Some(Err(wrong)) = verdict {
                return Ok(Some(wrong));
            }
            // A provisional alert, or one that is suspected for a wrong reason, may be at a station before its verdict.
            if verdict.is_some() && reached == Reached::Station {
                return Ok(None);
            }
            if verdict.is_some() && reached == Reached::Broker {
                let since = *at_broker.get_or_insert_with(clock::now);
                if !self.stations.any_linked() {
                    return Ok(None);
                }
                if clock::now() - since > STATION {
                    return Ok(Some("station: linked, and has not answered".into()));
                }
            }
            if clock::now() - started > limit {
                return Ok(Some(match reached {
                    _ if verdict.is_none() => "reader: no verdict in time".into(),
                    Reached::Begun | Reached::Stored | Reached::Verdict => {
                        "broker: the alert was not taken".into()
                    }
                    Reached::Broker | Reached::Station => "station: no answer in time".into(),
                }));
            }
        }
    }
}

/// How far a proof has come, and, once its final verdict is there, whether that is the golden one.
fn standing(
    ledger: &Ledger,
    id: i64,
    study: &StudyUid,
    expected: f32,
) -> Result<(Reached, Option<Result<(), String>>), LedgerError> {
    let reached = ledger.proof(id)?.map_or(Reached::Begun, |p| p.reached);
    let Some(row) = ledger.series_of(study.as_str())?.into_iter().rfind(|row| row.stage == "final") else {
        return Ok((reached, None));
    };
    let verdict: serde_json::Value = serde_json::from_str(&row.verdict).map_err(LedgerError::Document)?;
    let any = verdict
        .pointer("/scores/any")
        .or_else(|| verdict.pointer("/scores/0"))
        .and_then(serde_json::Value::as_f64);
    let right = any.is_some_and(|p| (p - f64::from(expected)).abs() <= 1e-3);
    if right && row.disposition == "suspected" {
        return Ok((reached, Some(Ok(()))));
    }
    let reason = row.reason.as_deref().unwrap_or("");
    let wrong = format!(
        "reader: the golden series was answered with {} {reason} {any:?}, expected {expected}",
        row.disposition
    );
    Ok((reached, Some(Err(wrong))))
}

/// The golden series as a study of its own.
fn objects(golden: &Golden, study: &StudyUid, series: &SeriesUid) -> Result<Vec<Object>, String> {
    let object = |(n, bytes): (usize, &Vec<u8>)| {
        let file = FileDicomObject::from_reader(skip_preamble(bytes)).map_err(|e| e.to_string())?;
        let sop = format!("{}.{}", series.as_str(), n + 1);
        let mut dataset = Dataset::new();
        for element in file.iter() {
            let tag = (element.header().tag.group(), element.header().tag.element());
            let value = element.value().to_bytes().map_err(|e| e.to_string())?;
            dataset = dataset.bytes(tag, element.vr().to_string(), value.into_owned());
        }
        let dataset = dataset
            .text((0x0020, 0x000d), "UI", study.as_str())
            .text((0x0020, 0x000e), "UI", series.as_str())
            .text((0x0008, 0x0018), "UI", &sop);
        Ok(Object { sop_class: CT_IMAGE_STORAGE, sop, dataset, is_optional: false })
    };
    golden.files.iter().enumerate().map(object).collect()
}

fn skip_preamble(bytes: &[u8]) -> &[u8] {
    if bytes.get(128..132) == Some(b"DICM") { &bytes[128..] } else { bytes }
}

/// A UID of our own: `2.25.` and a random number (PS3.5 B.2).
fn uid() -> Result<String, LedgerError> {
    Ok(format!("2.25.{}", u128::from_be_bytes(crate::ledger::random()?) >> 8))
}

fn unparsed(error: impl std::fmt::Display) -> LedgerError {
    LedgerError::Random(std::io::Error::other(error.to_string()))
}

/// Where a listener that is bound to every address can be reached from here.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::inbound::{ReceiptMessage, ReceiptStage};
    use crate::alert::lifecycle::tests::verdict;
    use crate::config::{Profile, Site};
    use crate::decide::Stage;
    use crate::ledger::Record;
    use crate::ledger::alerts::Speaker;

    /// The alert of a proof is in the outbox in the same transaction as its verdict, and may be at a station long before
    /// the final one: neither says that the scores are right.
    #[test]
    fn a_wrong_score_that_is_still_suspected_fails_however_far_its_alert_came() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        let ledger = Ledger::open(dir.path(), &site).unwrap();
        let study = StudyUid::parse("1.2.3").unwrap();
        let id = ledger.begin_proof(study.as_str()).unwrap();
        let record = |stage, p| ledger.record(&verdict(1, stage, Some(p)), &Record::default()).unwrap();
        let (alert_id, rev) = record(Stage::Provisional, 0.9).alert.unwrap();
        let receipt =
            ReceiptMessage { schema: "ichd.receipt/1".into(), alert_id, rev, stage: ReceiptStage::Displayed };
        ledger.receipt(Speaker { station: "ward-3", role: "nurse" }, &receipt).unwrap();
        let at = |expected| standing(&ledger, id, &study, expected).unwrap();
        assert_eq!(at(0.9), (Reached::Station, None), "a provisional look is no verdict");
        record(Stage::Final, 0.9);
        assert_eq!(at(0.9), (Reached::Station, Some(Ok(()))));
        assert_eq!(at(0.9005), (Reached::Station, Some(Ok(()))), "to the tolerance of the golden series");
        let (reached, tampered) = at(0.8);
        assert_eq!(reached, Reached::Station);
        assert!(
            tampered
                .unwrap()
                .unwrap_err()
                .starts_with("reader: the golden series was answered with suspected")
        );
        ledger.record(&verdict(1, Stage::Final, None), &Record::default()).unwrap();
        assert!(at(0.9).1.unwrap().is_err(), "not suspected");
    }
}
