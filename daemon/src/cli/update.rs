//! `ichd update`: bundles through RAUC. Run as root beside the daemon, which has no right to change the box.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{ConfigFile, Failure, LATER, UNAVAILABLE, journal, json};
use crate::clock;
use crate::infer::package::read_keys;
use crate::update::command::{Mailbox, Order};
use crate::update::gate::{Hold, Insist, Refusal};
use crate::update::version::Version;
use crate::update::{self, Event, Marked, Outcome, Plan, RaucError, UpdateError};

/// Arguments of `ichd update`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Slots, versions, and why an update would wait now.
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// Installs a bundle into the slot that does not run. Exit code 75: deferred, ask again.
    Install(Install),
    /// Marks the running slot good after a proof of life.
    ///
    /// Without one in time, a slot on trial is marked bad and the proven one boots next (exit code 1); a slot that was
    /// proven before, or has no other to go to, stays as it is (exit code 75: ask again). Exit code 69: RAUC or
    /// update.directory cannot be used, so nothing was judged.
    MarkGood {
        #[command(flatten)]
        common: Common,
        /// How long to wait for the proof, s.
        #[arg(long, default_value_t = 600, value_name = "S")]
        wait_s: u64,
        /// Reboot at once where the other slot has to take over.
        #[arg(long)]
        reboot: bool,
    },
    /// Signs an order to update, for a station to send as `ichd.command/1`; prints it.
    Sign(Sign),
}

#[derive(Debug, clap::Args)]
struct Sign {
    /// Private key: 64 hex digits, such as `openssl rand -hex 32` makes.
    #[arg(long)]
    key: PathBuf,
    /// Print the public half for update.command-keys instead.
    #[arg(long)]
    public: bool,
    /// Site of the box.
    #[arg(long, required_unless_present = "public")]
    site: Option<String>,
    /// The box.
    #[arg(long, required_unless_present = "public")]
    device: Option<String>,
    /// The one version that is meant.
    #[arg(long)]
    version: Option<String>,
    /// Hours that the order lives.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=168))]
    valid_h: u64,
    /// Bundle, https; default: the box's update.source.
    source: Option<String>,
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    config: ConfigFile,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Install {
    #[command(flatten)]
    common: Common,
    /// Bundle file, folder of bundles (an update stick) or https address; default: update.source.
    source: Option<String>,
    /// Succeed without doing anything where update.source is not set or holds nothing newer (for the timer).
    #[arg(long)]
    if_configured: bool,
    /// At once, whoever waits; a person takes the responsibility.
    #[arg(long)]
    now: bool,
    /// Take an older version than the running one.
    #[arg(long)]
    allow_downgrade: bool,
    /// Take a version that failed its proof of life here, or that runs already.
    #[arg(long)]
    again: bool,
    /// Reboot into it when nobody waits any more.
    #[arg(long)]
    reboot: bool,
}

/// Runs a verb.
pub fn update(args: &Args) -> Result<(), Failure> {
    if let Verb::Sign(args) = &args.verb {
        return sign(args);
    }
    journal::install()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::internal(format!("failed to start the runtime: {e}")))?;
    runtime.block_on(async {
        match &args.verb {
            Verb::Sign(_) => Ok(()),
            Verb::Status { common } => status(common).await,
            Verb::Install(args) => install(args).await,
            Verb::MarkGood { common, wait_s, reboot } => {
                mark_good(common, Duration::from_secs(*wait_s), *reboot).await
            }
        }
    })
}

fn plan(common: &Common) -> Result<(Plan, Option<String>), Failure> {
    let config = common.config.load()?;
    let plan = Plan {
        state: state(&config.state.directory),
        window: config.update.window(),
        directory: config.update.directory,
        insist: Insist::default(),
        now: false,
    };
    Ok((plan, config.update.source))
}

/// With `DynamicUser` the state lies in `private/`, behind a link that only the unit's own name space follows freely.
fn state(directory: &Path) -> PathBuf {
    directory.canonicalize().unwrap_or_else(|_| directory.into())
}

async fn status(common: &Common) -> Result<(), Failure> {
    let (plan, _) = plan(common)?;
    let status = update::status(&plan).await.map_err(failed)?;
    if common.json {
        println!("{}", json(&status)?);
        return Ok(());
    }
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let proven =
        if status.proven { "has passed its proof of life" } else { "has not passed a proof of life" };
    println!("running        {} in slot {}, {proven}", or_dash(&status.version), status.rauc.running_name());
    println!("compatible     {}", status.rauc.compatible);
    for slot in &status.rauc.slots {
        println!(
            "slot {:9} {} {:8} boot {:4}  bundle {:10} installed {}",
            slot.name,
            or_dash(&slot.bootname),
            slot.state,
            or_dash(&slot.boot_status),
            or_dash(&slot.version),
            or_dash(&slot.installed_at)
        );
    }
    if status.reboot_pending {
        println!("reboot         pending: {} boots next", or_dash(&status.rauc.primary));
    }
    if let Some(failed) = &status.failed {
        println!("failed here    {failed}; it is not taken again without --again");
    }
    if status.holds.is_empty() {
        println!("update         may happen now");
    }
    status.holds.iter().for_each(|hold| println!("update waits   {hold}"));
    Ok(())
}

async fn install(args: &Install) -> Result<(), Failure> {
    let (mut plan, configured) = plan(&args.common)?;
    plan.now = args.now;
    plan.insist = Insist { downgrade: args.allow_downgrade, again: args.again, only: None };
    let mailbox = mailbox(&args.common, &plan)?;
    let order = if args.if_configured { update::ordered(&plan, &mailbox) } else { None };
    if let Some(order) = &order {
        plan.insist.only = order.version.as_deref().and_then(Version::parse);
    }
    let ordered = order.as_ref().and_then(|o| o.source.clone());
    let outcome = match args.source.clone().or(ordered).or(configured) {
        Some(source) => {
            let as_json = args.common.json;
            Some(update::install(&source, &plan, |event| print(&event, as_json)).await)
        }
        // Somebody else may have written a bundle, such as hawkBit's client: the restart waits for us all the same.
        None if args.if_configured => None,
        None => return Err(Failure { code: 64, message: "name a bundle, or set update.source".into() }),
    };
    let is_later = matches!(&outcome, Some(Ok(Outcome::Deferred(_)) | Err(UpdateError::Busy(_))));
    if let Some(order) = order.as_ref().filter(|_| !is_later) {
        update::close_order(&plan, &mailbox, order).map_err(failed)?;
    }
    if let Some(Err(error)) = outcome.as_ref().filter(|_| !is_later)
        && !(args.if_configured && order.is_none() && nothing_newer(error))
    {
        update::tell_refused(&plan, order.as_ref(), &words(error));
    }
    let written = match outcome {
        None => false,
        Some(Ok(Outcome::Installed(_))) => true,
        Some(Ok(Outcome::Deferred(holds))) => return Err(later(&holds)),
        // The timer comes every quarter of an hour; being up to date is success, and so is a stick that is not there.
        Some(Err(error)) if args.if_configured && nothing_newer(&error) => false,
        Some(Err(error)) => return Err(failed(error)),
    };
    // Also the way on after a deferred reboot.
    if args.reboot && (written || update::status(&plan).await.map_err(failed)?.reboot_pending) {
        let holds = plan.holds(false);
        return if holds.is_empty() { reboot() } else { Err(later(&holds)) };
    }
    Ok(())
}

/// Where the daemon leaves orders.
fn mailbox(common: &Common, plan: &Plan) -> Result<Mailbox, Failure> {
    let config = common.config.load()?;
    let keys = read_keys(&config.update.command_keys).map_err(|e| Failure::config(&e))?;
    Ok(Mailbox::new(&plan.state, &config.site, keys))
}

fn sign(args: &Sign) -> Result<(), Failure> {
    let unusable =
        |what: String| Failure { code: 78, message: format!("--key `{}` {what}", args.key.display()) };
    let text = std::fs::read_to_string(&args.key).map_err(|e| unusable(format!("cannot be read: {e}")))?;
    let key = signing_key(text.trim()).ok_or_else(|| unusable("holds no 64 hex digits".into()))?;
    if args.public {
        println!("{}", crate::hex(key.verifying_key().as_bytes()));
        return Ok(());
    }
    let now = clock::wall_ms();
    let id: [u8; 16] = crate::ledger::random().map_err(|e| Failure::internal(crate::chain(&e)))?;
    let order = Order {
        schema: "ichd.order/1".into(),
        order_id: crate::hex(&id),
        site: args.site.clone().unwrap_or_default(),
        device: args.device.clone().unwrap_or_default(),
        source: args.source.clone(),
        version: args.version.clone(),
        issued_at: clock::rfc3339(now),
        expires_at: clock::rfc3339(now + args.valid_h * 3_600_000),
    };
    println!("{}", order.sign(&key).map_err(|e| Failure::internal(e.to_string()))?);
    Ok(())
}

fn signing_key(text: &str) -> Option<ed25519_dalek::SigningKey> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(ed25519_dalek::SigningKey::from_bytes(&bytes))
}

fn nothing_newer(error: &UpdateError) -> bool {
    match error {
        UpdateError::Refused(Refusal::Same(_)) | UpdateError::Empty(_) => true,
        UpdateError::Source { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
        _ => false,
    }
}

fn reboot() -> Result<(), Failure> {
    match std::process::Command::new("systemctl").arg("reboot").status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failure::failed(format!("systemctl reboot ended with {status}"))),
        Err(error) => Err(Failure::failed(format!("failed to start systemctl: {error}"))),
    }
}

fn later(holds: &[Hold]) -> Failure {
    let reasons: Vec<String> = holds.iter().map(ToString::to_string).collect();
    Failure { code: LATER, message: format!("deferred: {}", reasons.join("; ")) }
}

fn print(event: &Event, as_json: bool) {
    if as_json {
        if let Ok(line) = json(event) {
            println!("{line}");
        }
        return;
    }
    match event {
        Event::Bundle(bundle) => println!("bundle         {} for {}", bundle.version, bundle.compatible),
        Event::Progress(progress) => println!("{:3} %          {}", progress.percent, progress.step),
        Event::Installed { version } => println!("installed      {version}, boots next"),
        // The failure that ends the command says it.
        Event::Deferred { .. } => {}
    }
}

async fn mark_good(common: &Common, wait: Duration, reboots: bool) -> Result<(), Failure> {
    let (plan, _) = plan(common)?;
    let marked = update::mark_good(&plan, wait).await.map_err(failed)?;
    if common.json {
        println!("{}", json(&marked)?);
    }
    match marked {
        Marked::Good { words } if !common.json => println!("good           {words}"),
        Marked::Good { .. } => {}
        Marked::Bad { reason } => {
            if reboots {
                reboot()?;
            }
            return Err(Failure::failed(format!("no proof of life: {reason}; the other slot takes over")));
        }
        Marked::Unproven { reason } => {
            return Err(Failure {
                code: LATER,
                message: format!("no proof of life: {reason}; staying here"),
            });
        }
    }
    Ok(())
}

fn failed(error: UpdateError) -> Failure {
    let code = match error {
        UpdateError::Busy(_) => LATER,
        UpdateError::Rauc(RaucError::Reach(_) | RaucError::Silent(_)) | UpdateError::Book { .. } => {
            UNAVAILABLE
        }
        _ => 1,
    };
    Failure { code, message: words(&error) }
}

fn words(error: &UpdateError) -> String {
    match error {
        UpdateError::Refused(refusal) => format!("refused ({}): {refusal}", refusal.code()),
        other => crate::chain(other),
    }
}
