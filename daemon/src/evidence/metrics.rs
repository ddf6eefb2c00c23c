//! Metrics for Prometheus: text format 0.0.4 over HTTP on loopback, `GET /metrics` and nothing else.
//!
//! Off unless `metrics.listen` is set. What is known of series, alerts and reports comes from the ledger at the moment of
//! asking; what happened comes from `counts`. No UID, no AE title of a patient's scanner and no patient text in a label.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::counts::{self, Counts, VERDICT_MS_BOUNDS};
use crate::alert::publisher::Link;
use crate::clock;
use crate::health::Pulses;
use crate::infer::ModelId;
use crate::ledger::Ledger;
use crate::spool::free_bytes;

/// `[metrics]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen; loopback only, off if absent.
    pub listen: Option<SocketAddr>,
}

const CONNECTIONS_MAX: usize = 8;
const REQUEST_BYTES_MAX: usize = 4096;
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// What is asked when somebody asks.
pub struct Wiring {
    /// Series, alerts, reports.
    pub ledger: Arc<Ledger>,
    /// Which model reads.
    pub model: ModelId,
    /// Whether the stages are alive.
    pub pulses: Pulses,
    /// The link to the broker.
    pub link: watch::Receiver<Link>,
    /// Whose free space counts.
    pub state_directory: PathBuf,
    /// When the daemon started.
    pub started: Instant,
}

/// Answers until shutdown.
pub async fn serve(listener: TcpListener, wiring: Wiring, mut shutdown: watch::Receiver<bool>) {
    let wiring = Arc::new(wiring);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = shutdown.wait_for(|stop| *stop) => return,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // A connection too many is closed; the scraper comes again.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let wiring = wiring.clone();
        tokio::spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(REQUEST_TIME, answer(socket, &wiring)).await;
        });
    }
}

async fn answer(mut socket: TcpStream, wiring: &Wiring) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|w| w == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        let mut buffer = [0; 1024];
        match socket.read(&mut buffer).await? {
            0 => return Ok(()),
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let line = String::from_utf8_lossy(&request);
    let mut words = line.split_ascii_whitespace();
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => ("200 OK", tokio::task::block_in_place(|| wiring.text())),
        (Some("GET"), _) => ("404 Not Found", "only /metrics is here\n".into()),
        _ => ("405 Method Not Allowed", "only GET\n".into()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    socket.write_all(body.as_bytes()).await?;
    socket.shutdown().await
}

impl Wiring {
    fn text(&self) -> String {
        let mut page = Page::default();
        let model = &self.model;
        page.family("ichd_build_info", "gauge", "Program and model; always 1.");
        let labels = [
            ("version", crate::VERSION),
            ("model", model.id.as_str()),
            ("model_version", model.version.as_str()),
        ];
        page.sample("ichd_build_info", &labels, 1.0);
        let now = clock::now();
        page.one(
            "ichd_uptime_seconds",
            "gauge",
            "Time since the daemon started.",
            seconds(now - self.started),
        );
        page.family("ichd_stage_silent_seconds", "gauge", "Time since a stage last gave a sign of life.");
        for (stage, age) in self.pulses.ages(now) {
            page.sample("ichd_stage_silent_seconds", &[("stage", stage)], seconds(age));
        }
        let connected = f64::from(u8::from(self.link.borrow().connected));
        page.one("ichd_broker_connected", "gauge", "1 while the broker has accepted us.", connected);
        if let Some(free) = free_bytes(&self.state_directory) {
            page.one("ichd_state_free_bytes", "gauge", "Free space of the state directory.", free as f64);
        }
        self.ledger_families(&mut page);
        from_counts(&mut page, &counts::so_far());
        page.0
    }

    fn ledger_families(&self, page: &mut Page) {
        let ledger = &self.ledger;
        page.family("ichd_series", "gauge", "Series in the ledger by disposition and reason.");
        for (disposition, reason, n) in ledger.series_counts().unwrap_or_default() {
            page.sample("ichd_series", &[("disposition", &disposition), ("reason", &reason)], n as f64);
        }
        let mut gauge = |name, help, value: Option<u64>| {
            if let Some(value) = value {
                page.one(name, "gauge", help, value as f64);
            }
        };
        gauge("ichd_outbox_depth", "Documents that wait for the broker.", ledger.outbox_depth().ok());
        gauge("ichd_open_alerts", "Alerts that wait for a person.", ledger.open_alert_count().ok());
        let age_s = ledger.last_decided_age_ms().ok().flatten().map(|ms| ms / 1000);
        gauge("ichd_last_verdict_age_seconds", "Time since the last verdict.", age_s);
        let waiting = ledger.is_audited().then(|| ledger.atna_depth().ok()).flatten();
        gauge("ichd_atna_waiting", "Audit messages that wait for the repository.", waiting);
        page.family("ichd_reports", "gauge", "Reports to the PACS by destination and state.");
        for (destination, state, n) in ledger.report_counts().unwrap_or_default() {
            page.sample("ichd_reports", &[("destination", &destination), ("state", &state)], n as f64);
        }
        page.family(
            "ichd_forwards",
            "gauge",
            "Series and set-aside instances to further nodes by destination and state.",
        );
        for (destination, state, n) in ledger.forward_counts().unwrap_or_default() {
            page.sample("ichd_forwards", &[("destination", &destination), ("state", &state)], n as f64);
        }
    }
}

fn from_counts(page: &mut Page, counts: &Counts) {
    page.family("ichd_events_total", "counter", "Events of the journal since the start.");
    for ((event, reason), n) in &counts.events {
        page.sample("ichd_events_total", &[("event", event), ("reason", reason)], *n as f64);
    }
    let help = "Instances acknowledged to senders, by associations that have ended.";
    page.one("ichd_instances_received_total", "counter", help, counts.instances as f64);
    let name = "ichd_last_slice_to_verdict_seconds";
    page.family(name, "histogram", "From the last slice on disk to the final verdict of its series.");
    let mut n = 0;
    for (i, in_bucket) in counts.verdicts.iter().enumerate() {
        n += in_bucket;
        let bound = VERDICT_MS_BOUNDS.get(i).map_or("+Inf".into(), |ms| (*ms as f64 / 1e3).to_string());
        page.sample(&format!("{name}_bucket"), &[("le", &bound)], n as f64);
    }
    page.sample(&format!("{name}_sum"), &[], counts.verdict_ms_sum as f64 / 1e3);
    page.sample(&format!("{name}_count"), &[], n as f64);
}

fn seconds(duration: Duration) -> f64 {
    clock::ms(duration) as f64 / 1e3
}

/// The text format, one family after the other.
#[derive(Default)]
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_cannot_break_out_of_its_quotes() {
        let mut page = Page::default();
        page.sample("ichd_x", &[("l", "a\"b\\c\nd")], 1.5);
        assert_eq!(page.0, "ichd_x{l=\"a\\\"b\\\\c\\nd\"} 1.5\n");
    }
}
