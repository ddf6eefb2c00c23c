//! `ichd alert`: proves the chain on demand, and mutes its sound for a while. Asks the running daemon.

use super::{ConfigFile, Failure, status};
use crate::control::Request;

/// Arguments of `ichd alert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    config: ConfigFile,
    /// JSON instead of words.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Sends a synthetic study through the whole chain and says how far it came.
    Test,
    /// Mutes the sound of alerts; they are still shown, escalated and recorded.
    Silence(Window),
    /// The same, and stations show that work is being done on the box.
    Maintenance(Window),
    /// Ends every silence and maintenance window.
    Unsilence {
        /// Who asks.
        #[arg(long)]
        author: String,
    },
}

#[derive(Debug, clap::Args)]
struct Window {
    /// For how long.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Who asks.
    #[arg(long)]
    author: String,
    /// Why.
    #[arg(long)]
    reason: String,
}

/// Asks, and prints the answer.
pub fn alert(args: &Args) -> Result<(), Failure> {
    let window = |kind: &str, w: &Window| Request::Silence {
        kind: kind.into(),
        author: w.author.clone(),
        reason: w.reason.clone(),
        minutes: w.minutes,
    };
    let request = match &args.what {
        What::Test => Request::Proof,
        What::Silence(w) => window("silence", w),
        What::Maintenance(w) => window("maintenance", w),
        What::Unsilence { author } => Request::EndSilences { author: author.clone() },
    };
    let answer = status::ask(&args.config, &request)?;
    if args.json {
        println!("{}", super::json(&answer)?);
    } else if let Some(silence) = &answer.silence {
        println!("{} until {}: sound is muted, the record is not", silence.kind, silence.until);
    } else if let Some(proof) = &answer.proof {
        let took = proof.took_ms.unwrap_or(0);
        match &proof.failure {
            None => println!("proof of life reached the {:?} in {took} ms", proof.reached),
            Some(failure) => println!("proof of life FAILED after {took} ms: {failure}"),
        }
    }
    match answer.proof.and_then(|p| p.failure) {
        Some(failure) => Err(Failure::failed(failure)),
        None => Ok(()),
    }
}
