//! `ichd status`: how things stand, asked of the running daemon. Exit code 0 only if it is ready.

use super::{ConfigFile, Failure};
use crate::alert::document::State;
use crate::control::{self, Answer, Request};

/// Arguments of `ichd status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// JSON instead of words.
    #[arg(long)]
    json: bool,
}

/// Asks the running daemon; a refusal is a failure.
pub fn ask(config: &ConfigFile, request: &Request) -> Result<Answer, Failure> {
    let config = config.load()?;
    let directory = &config.state.directory;
    let answer = control::ask(directory, request).map_err(|e| {
        Failure::failed(format!(
            "no daemon answers at `{}` ({e}); is `ichd run` running, and is this root?",
            control::path(directory).display()
        ))
    })?;
    match answer.error {
        Some(error) => Err(Failure::failed(error)),
        None => Ok(answer),
    }
}

/// Prints how things stand.
pub fn status(args: &Args) -> Result<(), Failure> {
    let answer = ask(&args.config, &Request::Status)?;
    let standing = answer.standing.ok_or_else(|| Failure::internal("the daemon gave no status"))?;
    if args.json {
        println!("{}", super::json(&standing)?);
    } else {
        let (s, h) = (&standing.status, &standing.heartbeat);
        let age = |s: Option<u64>| s.map_or("never".to_owned(), |s| format!("{s} s ago"));
        println!("{:?}, version {}, link {}", s.state, s.version, s.conn);
        for reason in &s.reasons {
            println!("  reason: {reason}");
        }
        for warning in &s.warnings {
            println!("  warning: {warning}");
        }
        println!(
            "model          {}",
            s.model.as_ref().map_or("none".into(), |m| format!("{} {}", m.id, m.version))
        );
        println!("last study     {}", age(h.last_study_age_s));
        println!("proof of life  {}", age(h.last_proof_age_s));
        println!("open alerts    {}, {} documents waiting", h.open_alerts, h.outbox_depth);
        if let Some(update) = &s.update {
            let version = update.version.as_deref().unwrap_or("");
            println!("update         {:?} {version} {}", update.phase, update.reasons.join("; "));
        }
        for station in &standing.stations {
            let field = |name: &str| station.get(name).and_then(|v| v.as_str()).unwrap_or("").to_owned();
            println!(
                "station        {} {} {} {}",
                field("name"),
                field("serves"),
                field("state"),
                field("user")
            );
        }
        if let Some(silence) = &standing.silence {
            println!("{} by {} until {}: {}", silence.kind, silence.author, silence.until, silence.reason);
        }
        if let Some(value) = h.experience_week.positive_predictive_value {
            let e = &h.experience_week;
            println!(
                "this week      {} right, {} wrong: {:.0} % of judged alerts were right",
                e.right,
                e.wrong,
                value * 100.0
            );
        }
    }
    match standing.status.state {
        State::Ready | State::Maintenance => Ok(()),
        other => Err(Failure::failed(format!("{other:?}: {}", standing.status.reasons.join(", ")))),
    }
}
