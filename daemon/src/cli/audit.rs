//! `ichd audit`: the chain of what was decided, said and done, read beside a running daemon.

use super::{ConfigFile, Failure};
use crate::clock;
use crate::ledger::audit::{self, Head};

/// Arguments of `ichd audit`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Checks the whole chain; exit code 1 names the first row that does not hold.
    Verify {
        #[command(flatten)]
        config: ConfigFile,
        /// A head printed earlier, `SEQ:HASH`: the chain must still hold it.
        #[arg(long, value_parser = parse_head)]
        expect: Option<Head>,
        /// One JSON object instead of a line.
        #[arg(long)]
        json: bool,
    },
    /// Every row, oldest first.
    List {
        #[command(flatten)]
        config: ConfigFile,
        /// One JSON object per row instead of a table.
        #[arg(long)]
        json: bool,
    },
}

/// Runs `ichd audit`.
pub fn audit(args: &Args) -> Result<(), Failure> {
    let failed = |e: &dyn std::error::Error| Failure::failed(crate::chain(e));
    match &args.command {
        Command::Verify { config, expect, json } => {
            let state = config.load()?.state.directory;
            let head =
                audit::verify(&state, expect.as_ref()).map_err(|e| failed(&e))?.map_err(|e| failed(&e))?;
            if *json {
                println!("{}", super::json(&head)?);
            } else {
                println!("audit log holds: {} rows, head {}:{}", head.seq, head.seq, head.hash);
            }
        }
        Command::List { config, json } => {
            let state = config.load()?.state.directory;
            for row in audit::list(&state).map_err(|e| failed(&e))? {
                if *json {
                    println!("{}", super::json(&row)?);
                } else {
                    let at = clock::rfc3339(row.at_ms.unsigned_abs());
                    println!("{:6}  {at}  {:20} {}", row.seq, row.event, row.body);
                }
            }
        }
    }
    Ok(())
}

fn parse_head(text: &str) -> Result<Head, String> {
    let (seq, hash) = text.split_once(':').ok_or("write SEQ:HASH, as `ichd audit verify` prints it")?;
    let seq = seq.parse().map_err(|_| format!("`{seq}` is not a row number"))?;
    if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("the hash is not 64 hexadecimal digits".into());
    }
    Ok(Head { seq, hash: hash.to_ascii_lowercase() })
}
