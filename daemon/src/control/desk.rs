//! Answers what an engineer's station asks over the broker, one at a time, and never before a patient.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::alert::request::{Answer, AnswerCode, Asked, Command, Replay};
use crate::clock;
use crate::evidence::replay;
use crate::infer::Reader;
use crate::infer::driver::Idle;
use crate::ledger::Ledger;
use crate::proof::Wanted;

/// Requests that wait; one more is told that the box is busy.
pub const WAITING_MAX: usize = 4;
/// Series that are told at once.
const LEDGER_MAX: u32 = 100;

/// Who answers, and with what.
pub struct Desk {
    /// What became of every series.
    pub ledger: Arc<Ledger>,
    /// To the prover.
    pub proof_wanted: mpsc::Sender<Wanted>,
    /// Reads again.
    pub reader: Arc<Reader>,
    /// Whether the line has something to do.
    pub idle: Idle,
    /// Spool and database.
    pub state_directory: PathBuf,
    /// As in `[assemble]`.
    pub slices_max: usize,
    /// Wakes the publisher.
    pub wake: Arc<Notify>,
}

impl Desk {
    /// Runs until shutdown.
    pub async fn run(self, mut asked: mpsc::Receiver<Asked>, mut shutdown: watch::Receiver<bool>) {
        loop {
            let one = tokio::select! {
                one = asked.recv() => match one { Some(one) => one, None => return },
                _ = shutdown.changed() => return,
            };
            let answer = tokio::select! {
                answer = self.answer(&one) => answer,
                _ = shutdown.changed() => return,
            };
            if let Err(error) = tokio::task::block_in_place(|| self.ledger.answer(&one, &answer)) {
                log::error!(event = "ledger_failed"; "an answer could not be written down: {}", crate::chain(&error));
            }
            self.wake.notify_one();
        }
    }

    async fn answer(&self, Asked { request, .. }: &Asked) -> Answer {
        let say = |code, message: &str| Answer::to(request, code, message);
        let late = request
            .expires_at
            .as_deref()
            .and_then(clock::parse_rfc3339)
            .is_some_and(|t| t < clock::wall_ms());
        // As with actions: a box whose own clock is wrong refuses nobody for it.
        if late && clock::synced() == Some(true) {
            return say(AnswerCode::Expired, "the request came too late");
        }
        match request.command {
            Command::Proof => {
                let (tx, rx) = oneshot::channel();
                if self.proof_wanted.try_send(tx).is_err() {
                    return say(AnswerCode::Busy, "a proof of life is running already");
                }
                match rx.await {
                    Ok(Ok(proof)) => {
                        let failure = proof.failure.clone().unwrap_or_default();
                        let code = if failure.is_empty() { AnswerCode::Ok } else { AnswerCode::Failed };
                        Answer { proof: Some(proof), ..say(code, &failure) }
                    }
                    Ok(Err(error)) => say(AnswerCode::Failed, &error),
                    Err(_) => say(AnswerCode::Failed, "the daemon is stopping"),
                }
            }
            Command::Ledger => match tokio::task::block_in_place(|| self.ledger.newest(LEDGER_MAX)) {
                Ok(lines) => Answer { ledger: Some(lines), ..say(AnswerCode::Ok, "") },
                Err(error) => say(AnswerCode::Failed, &crate::chain(&error)),
            },
            Command::Replay => {
                let Some(series_ref) = request.series_ref.clone() else {
                    return say(AnswerCode::UnknownSeries, "no series is named");
                };
                if let Err(busy) = self.idle.check() {
                    return say(AnswerCode::Busy, &busy);
                }
                match self.replay(series_ref).await {
                    Ok(replay) => Answer { replay: Some(replay), ..say(AnswerCode::Ok, "") },
                    Err((code, message)) => say(code, &message),
                }
            }
        }
    }

    async fn replay(&self, series_ref: String) -> Result<Replay, (AnswerCode, String)> {
        let (ledger, reader, idle) = (self.ledger.clone(), self.reader.clone(), self.idle.clone());
        let (state, slices_max) = (self.state_directory.clone(), self.slices_max);
        let again = tokio::task::spawn_blocking(move || {
            let row = ledger
                .series_by_reference(&series_ref)
                .map_err(|e| (AnswerCode::Failed, crate::chain(&e)))?
                .ok_or_else(|| (AnswerCode::UnknownSeries, "the ledger holds no such series".to_owned()))?;
            let verdict = replay::again(&row, &state, slices_max, &reader, Some(&idle))
                .map_err(|why| (idle.check().err().map_or(AnswerCode::Failed, |_| AnswerCode::Busy), why))?;
            let equal = verdict == row.verdict;
            let difference = (!equal).then(|| replay::difference(&row, &verdict, &reader));
            Ok(Replay { series_ref, equal, difference })
        });
        again.await.unwrap_or_else(|_| Err((AnswerCode::Failed, "the reading ended in a panic".into())))
    }
}
