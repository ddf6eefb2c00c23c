//! Sends what waits for one node; [`crate::deliver`] says when. And looks for what was set aside: it gets no verdict, so
//! nothing else would put it into the queue.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Rule, recode};
use crate::atna::Transfer;
use crate::clock;
use crate::deliver::{self, Events, Failure, Queue, Sent};
use crate::dicom::{AeTitle, SeriesUid, SliceHeader, StudyUid, dataset};
use crate::ledger::forwards::ForwardRow;
use crate::ledger::{Ledger, LedgerError, Settled};
use crate::send::{Association, DataSet, Peer, SendError, Wanted};
use crate::spool::Spool;
use crate::tls::Files;

/// How often set-aside instances are looked for.
const LOOK: Duration = Duration::from_secs(5);

/// Everything the tasks are wired to.
#[derive(Clone)]
pub struct Wiring {
    /// The queue.
    pub ledger: Arc<Ledger>,
    /// Owner of the instances.
    pub spool: Arc<Spool>,
    /// Our AE title.
    pub calling: AeTitle,
    /// Certificates for nodes that are reached over TLS.
    pub tls: Option<Files>,
    /// Turns true once.
    pub shutdown: watch::Receiver<bool>,
}

/// Gives up what waits for nobody, then starts a task for each node. Without one it ends with the shutdown.
pub fn spawn(rules: Vec<Rule>, wiring: Wiring) -> JoinHandle<()> {
    tokio::spawn(async move {
        let live: Vec<String> = rules.iter().filter(|r| !r.dry_run).map(Rule::name).collect();
        let orphaned = tokio::task::block_in_place(|| {
            wiring.ledger.forwards_of_others_given_up(&live, clock::wall_ms())
        });
        match orphaned {
            Ok(0) => {}
            Ok(n) => {
                log::warn!(event = "forwards_given_up", reason = "no_destination", count = n; "series waited for a node that is none any more")
            }
            Err(error) => log::error!(event = "ledger_failed"; "waiting series could not be read: {error}"),
        }
        let mut tasks = tokio::task::JoinSet::new();
        if rules.iter().any(|rule| rule.set_aside) {
            tasks.spawn(look_aside(rules.clone(), wiring.clone()));
        }
        for rule in rules.into_iter().filter(|rule| !rule.dry_run) {
            let give_up = Duration::from_secs(rule.give_up_h * 3600);
            tasks.spawn(deliver::run(
                Forwards { rule, wiring: wiring.clone() },
                give_up,
                wiring.shutdown.clone(),
            ));
        }
        let mut shutdown = wiring.shutdown;
        let _ = shutdown.wait_for(|stop| *stop).await;
        while tasks.join_next().await.is_some() {}
    })
}

/// Queues set-aside instances as they come, and those that come before the series that their rule waits for.
async fn look_aside(rules: Vec<Rule>, wiring: Wiring) {
    let mut shutdown = wiring.shutdown.clone();
    // By file: its study, its senders, and the rules that have taken it.
    let mut known: HashMap<PathBuf, (StudyUid, Vec<String>, BTreeSet<String>)> = HashMap::new();
    while !*shutdown.borrow() {
        let looked = tokio::task::block_in_place(|| {
            let files = wiring.spool.set_aside()?;
            known.retain(|path, _| files.contains(path));
            for path in files {
                if known.contains_key(&path) {
                    continue;
                }
                let Ok(header) = SliceHeader::read(&path) else { continue };
                let senders = dataset::source_ae(&path).ok().flatten().into_iter().collect();
                known.insert(path, (header.study, senders, BTreeSet::new()));
            }
            Ok::<_, crate::spool::SpoolError>(())
        });
        if let Err(error) = looked {
            log::error!(event = "spool_unreadable"; "set-aside instances could not be looked for: {}", crate::chain(&error));
        }
        for (path, (study, senders, taken)) in &mut known {
            let Some(sop) = path.file_stem().and_then(|s| s.to_str()) else { continue };
            for rule in rules.iter().filter(|rule| rule.set_aside && rule.takes_from(senders)) {
                if taken.contains(&rule.name()) {
                    continue;
                }
                let queued = tokio::task::block_in_place(|| {
                    wiring.ledger.forward_set_aside(rule, study.as_str(), sop, clock::wall_ms())
                });
                match queued {
                    Ok(true) => drop(taken.insert(rule.name())),
                    Ok(false) => {}
                    Err(error) => {
                        log::error!(event = "ledger_failed"; "a set-aside instance could not be queued: {error}")
                    }
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
    }
}

struct Forwards {
    rule: Rule,
    wiring: Wiring,
}

impl deliver::Item for ForwardRow {
    fn seq(&self) -> i64 {
        self.seq
    }

    fn since_ms(&self) -> u64 {
        self.queued_ms
    }
}

impl Queue for Forwards {
    type Item = ForwardRow;
    const EVENTS: Events = Events { failed: "forward_failed", given_up: "forwards_given_up" };

    fn destination(&self) -> String {
        self.rule.name()
    }

    fn waiting(&self, most: usize, but: &[i64]) -> Result<Vec<ForwardRow>, LedgerError> {
        self.wiring.ledger.forwards_waiting(&self.rule.name(), most, but)
    }

    async fn deliver(&self, row: &ForwardRow) -> Result<(), Failure> {
        let files = tokio::task::block_in_place(|| self.files(row));
        if files.is_empty() {
            return Err(Failure { reason: "instances_gone".into(), is_outage: false });
        }
        let (rule, name) = (&self.rule, self.rule.name());
        let peer = Peer {
            calling: &self.wiring.calling,
            called: &rule.ae_title,
            address: &rule.address,
            tls: self.wiring.tls.as_ref().filter(|_| rule.tls),
        };
        let began_ms = clock::wall_ms();
        let mut association = Association::open(peer, &wanted(&files)).await?;
        let mut sent = Sent::default();
        let result = send_all(&mut association, &files, &mut sent).await;
        association.end(&result).await;
        self.tell(row, &files, began_ms, sent, result.as_ref().err().map(SendError::to_string));
        let n_recoded = result?;
        let study = self.wiring.ledger.reference(&row.study_uid);
        for (from, to, n) in n_recoded.into_iter().map(|((from, to), n)| (from, to, n)) {
            log::warn!(
                event = "forward_recoded", destination = name.as_str(), study = study.as_str(), count = n;
                "{name} does not take {from}: {n} instances went as {to}"
            );
        }
        log::info!(
            event = "forwarded", destination = name.as_str(), study = study.as_str(), count = files.len();
            "{} instances forwarded", files.len()
        );
        Ok(())
    }

    fn failed(&self, seq: i64, reason: &str) -> Result<(), LedgerError> {
        self.wiring.ledger.forward_failed(seq, reason)
    }

    fn settled(&self, seq: i64, how: Settled) -> Result<(), LedgerError> {
        self.wiring.ledger.forward_settled(seq, how, clock::wall_ms())
    }
}

struct File {
    path: PathBuf,
    header: Arc<SliceHeader>,
}

impl Forwards {
    fn files(&self, row: &ForwardRow) -> Vec<File> {
        let spool = &self.wiring.spool;
        if let Some(sop) = &row.sop_uid {
            let path = spool.set_aside_path(sop);
            let header = SliceHeader::read(&path).ok();
            return header.map(|header| File { path, header: Arc::new(header) }).into_iter().collect();
        }
        let (Ok(study), Ok(series)) = (StudyUid::parse(&row.study_uid), SeriesUid::parse(&row.series_uid))
        else {
            return Vec::new();
        };
        let instances = spool.series(&study, &series).unwrap_or_else(|error| {
            log::error!(event = "spool_unreadable"; "a series could not be read: {}", crate::chain(&error));
            Vec::new()
        });
        let mut files: Vec<File> =
            instances.into_iter().map(|i| File { path: i.path, header: i.header }).collect();
        // As a scanner would, for nodes that show images as they come.
        files.sort_by(|a, b| {
            let key = |f: &File| (f.header.instance_number, f.header.sop.clone());
            key(a).cmp(&key(b))
        });
        files
    }

    fn tell(&self, row: &ForwardRow, files: &[File], began_ms: u64, sent: Sent, failure: Option<String>) {
        let ledger = &self.wiring.ledger;
        if !ledger.is_audited() {
            return;
        }
        let mut transfer = Transfer { study_uid: row.study_uid.clone(), ..Transfer::default() };
        for file in files {
            transfer.patient_id.clone_from(file.header.patient_id.reveal());
            *transfer.instances.entry(file.header.sop_class.clone()).or_default() += 1;
        }
        let to = (&self.rule.ae_title, self.rule.address.as_str());
        deliver::tell(ledger, transfer, to, began_ms, sent, failure);
    }
}

/// For every SOP class and encoding there is: that encoding alone, then what we can make of it.
fn wanted(files: &[File]) -> Vec<Wanted> {
    let kinds: BTreeSet<(&str, &str)> =
        files.iter().map(|f| (f.header.sop_class.as_str(), f.header.transfer_syntax.as_str())).collect();
    let mut wanted = Vec::new();
    for (class, syntax) in kinds {
        let others = recode::MADE.into_iter().filter(|made| *made != syntax);
        for transfer_syntaxes in [vec![syntax.to_owned()], others.map(str::to_owned).collect()] {
            let one = Wanted { sop_class: class.into(), transfer_syntaxes };
            if !wanted.contains(&one) {
                wanted.push(one);
            }
        }
    }
    wanted
}

/// Sends every file; returns how many went in another encoding, by both encodings.
async fn send_all(
    association: &mut Association,
    files: &[File],
    sent: &mut Sent,
) -> Result<BTreeMap<(String, String), usize>, SendError> {
    let mut recoded = BTreeMap::new();
    for File { path, header } in files {
        let (class, syntax, sop) = (&header.sop_class, &header.transfer_syntax, header.sop.as_str());
        let as_it_is = association.accepted(class).find(|c| c.transfer_syntax == *syntax).cloned();
        if let Some(context) = as_it_is {
            sent.begin();
            association.store(&context, sop, DataSet::File(path)).await?;
            sent.took(class);
            continue;
        }
        let other = association.accepted(class).find(|c| recode::MADE.contains(&c.transfer_syntax.as_str()));
        let Some(context) = other.cloned() else { return Err(SendError::ClassRefused(class.clone())) };
        let to = context.transfer_syntax.clone();
        let bytes = tokio::task::block_in_place(|| recode::recoded(path, header, &to)).map_err(|why| {
            log::warn!(event = "forward_not_recoded"; "an instance in {syntax} cannot be sent as {to}: {why}");
            SendError::ClassRefused(class.clone())
        })?;
        sent.begin();
        association.store(&context, sop, DataSet::Bytes(&bytes)).await?;
        sent.took(class);
        *recoded.entry((syntax.clone(), to)).or_insert(0) += 1;
    }
    Ok(recoded)
}
