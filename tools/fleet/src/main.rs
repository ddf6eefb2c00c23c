//! Ten thousand appliances against one real Mosquitto: status with a will, a heartbeat every 20 s, opaque alerts, and a
//! region that sees them all. Prints what that costs the broker, and how long an alert takes.
//!
//! Everything runs on one machine over loopback without TLS: what is measured is the broker's work, not the network's
//! and not that of the handshakes.

mod appliance;
mod broker;
mod clock;
mod region;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use clap::Parser;

use appliance::{Appliance, Counts};
use broker::Broker;
use region::{Seen, percentile_ms};

/// Between two heartbeats of a box, as in `[health] heartbeat-s`.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Files that are no connections.
const FILES_SPARE: usize = 200;
/// The scheduler's step.
const STEP: Duration = Duration::from_millis(20);

#[derive(Debug, Parser)]
#[command(about, version)]
struct Args {
    /// How many.
    #[arg(long, default_value_t = 10_000)]
    appliances: usize,
    /// New links per second at the start.
    #[arg(long, default_value_t = 500)]
    ramp_per_s: usize,
    /// Length of the ordinary time that is measured, s.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Alerts of the whole fleet per minute in ordinary time.
    #[arg(long, default_value_t = 60)]
    alerts_per_minute: u64,
    /// Mosquitto.
    #[arg(long, default_value = "/usr/sbin/mosquitto")]
    mosquitto: PathBuf,
}

fn main() -> std::process::ExitCode {
    let mut args = Args::parse();
    let room = broker::files_max().saturating_sub(FILES_SPARE);
    if args.appliances > room {
        println!("open files are limited: {room} appliances instead of {} (ulimit -n)", args.appliances);
        args.appliances = room;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("failed to start the runtime: {error}")),
    };
    match runtime.block_on(run(&args)) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(words) => fail(&words),
    }
}

fn fail(words: &str) -> std::process::ExitCode {
    eprintln!("ichd-fleet: {words}");
    std::process::ExitCode::FAILURE
}

/// The fleet and the other two.
struct Fleet {
    broker: Broker,
    boxes: Vec<Appliance>,
    counts: Arc<Counts>,
    seen: Arc<Seen>,
    alerts: u64,
}

async fn run(args: &Args) -> Result<(), String> {
    let broker = Broker::start(args.mosquitto.clone())
        .map_err(|e| format!("failed to start `{}`: {e}", args.mosquitto.display()))?;
    let seen = region::watch(("127.0.0.1", broker.port));
    let mut fleet = Fleet { broker, boxes: Vec::new(), counts: Arc::new(Counts::default()), seen, alerts: 0 };
    println!(
        "{:<34} {:>10} {:>9} {:>9} {:>11} {:>11} {:>9} {:>9} {:>9}",
        "", "seconds", "broker %", "RSS MiB", "messages/s", "bytes/s", "p50 ms", "p99 ms", "max ms"
    );

    let links = args.appliances;
    let ramp = args.ramp_per_s.max(1);
    fleet
        .phase(
            &format!("{links} boxes link"),
            Duration::from_secs(120 + (links / ramp) as u64),
            |fleet, step| {
                let from = fleet.boxes.len();
                let to = links.min((step as usize + 1) * ramp * STEP.as_millis() as usize / 1000);
                for n in from..to.max(from) {
                    fleet.boxes.push(Appliance::start(
                        n,
                        ("127.0.0.1", fleet.broker.port),
                        fleet.counts.clone(),
                    ));
                }
                fleet.counts.linked.load(Relaxed) as usize == links
            },
        )
        .await?;

    let steps = args.seconds * 1000 / STEP.as_millis() as u64;
    let per_minute = args.alerts_per_minute;
    fleet
        .phase("ordinary time", Duration::from_secs(args.seconds + 60), |fleet, step| {
            let due = step.min(steps) * STEP.as_millis() as u64 * per_minute / 60_000;
            fleet.ordinary(step, if step <= steps { due } else { 0 });
            step > steps && fleet.seen.under_way() == 0
        })
        .await?;

    let before = fleet.alerts;
    fleet
        .phase("every box alerts within 10 s", Duration::from_secs(180), |fleet, step| {
            let due = ((step + 1) * links as u64 * STEP.as_millis() as u64 / 10_000).min(links as u64);
            fleet.beat(step);
            while fleet.alerts - before < due {
                fleet.alert();
            }
            due == links as u64 && fleet.seen.under_way() == 0
        })
        .await?;

    // Who has not noticed yet still counts as linked: wait until as many links were made anew.
    let links_before = fleet.counts.links.load(Relaxed);
    fleet.broker.restart().map_err(|e| format!("failed to restart the broker: {e}"))?;
    fleet
        .phase("broker killed: all boxes are back", Duration::from_secs(300), |fleet, step| {
            fleet.beat(step);
            fleet.counts.links.load(Relaxed) - links_before >= links as u64
        })
        .await?;

    let dropped = fleet.counts.dropped.load(Relaxed);
    println!(
        "{} alerts, all at the region; one connection holds {:.1} KiB of the broker{}",
        fleet.alerts,
        fleet.broker.rss_mib() * 1024.0 / links as f64,
        if dropped > 0 {
            format!("; {dropped} heartbeats were left out, the simulation was too slow")
        } else {
            String::new()
        }
    );
    Ok(())
}

impl Fleet {
    /// Takes steps until one says that it is over; then one line of what it cost.
    async fn phase(
        &mut self,
        name: &str,
        limit: Duration,
        mut step: impl FnMut(&mut Fleet, u64) -> bool,
    ) -> Result<(), String> {
        let began = clock::now();
        let cpu = self.broker.cpu_s();
        let (messages, bytes) = (self.seen.messages.load(Relaxed), self.seen.bytes.load(Relaxed));
        let mut ticks = tokio::time::interval(STEP);
        for n in 0.. {
            ticks.tick().await;
            if step(self, n) {
                break;
            }
            if clock::now() - began > limit {
                return Err(format!(
                    "{name}: not over after {} s; {} boxes linked, {} alerts under way",
                    limit.as_secs(),
                    self.counts.linked.load(Relaxed),
                    self.seen.under_way()
                ));
            }
        }
        let seconds = (clock::now() - began).as_secs_f64();
        let took = self.seen.take();
        let rate = |now: u64, then: u64| (now - then) as f64 / seconds;
        let time = |share: f64| {
            if took.is_empty() { "-".into() } else { format!("{:.1}", percentile_ms(&took, share)) }
        };
        println!(
            "{name:<34} {seconds:>10.1} {:>9.1} {:>9.1} {:>11.0} {:>11.0} {:>9} {:>9} {:>9}",
            (self.broker.cpu_s() - cpu) / seconds * 100.0,
            self.broker.rss_mib(),
            rate(self.seen.messages.load(Relaxed), messages),
            rate(self.seen.bytes.load(Relaxed), bytes),
            time(0.5),
            time(0.99),
            time(1.0),
        );
        Ok(())
    }

    /// Heartbeats, and alerts up to as many as are due since the phase began.
    fn ordinary(&mut self, step: u64, due: u64) {
        self.beat(step);
        while self.alerts < due {
            self.alert();
        }
    }

    /// The heartbeats of this step: each box has its own moment within the 20 s.
    fn beat(&self, step: u64) {
        let steps = HEARTBEAT.as_millis() / STEP.as_millis();
        let turn = (u128::from(step) % steps) as usize;
        for appliance in self.boxes.iter().skip(turn).step_by(steps as usize) {
            if !appliance.heartbeat(step / 50) {
                self.counts.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    /// The next box raises an alert; the one that it raised before is over.
    fn alert(&mut self) {
        let n = self.alerts;
        self.alerts += 1;
        let count = self.boxes.len() as u64;
        let appliance = &self.boxes[(n % count) as usize];
        if let Some(old) = n.checked_sub(count) {
            appliance.purge(&format!("{old:026}"));
        }
        let id = format!("{n:026}");
        self.seen.leaves(&id);
        // What its queue does not take now, a real box would hold in its outbox.
        if !appliance.alert(&id) {
            self.counts.dropped.fetch_add(1, Relaxed);
        }
    }
}
