//! `ichd enrol`: makes the site's authority, enrols and puts out identities, writes the broker's configuration.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};

use super::Failure;
use crate::clock;
use crate::enrol::device::DROP_IN;
use crate::enrol::{Added, CLIENT_DAYS, EnrolError, Enrolment, Ports, Proof, Request, Role, Settings};

const DAY_MS: u64 = 86_400_000;

/// Arguments of `ichd enrol`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the enrolment; keep it off the box, it holds the authority's key.
    #[arg(long, default_value = "ichd-enrolment", global = true)]
    dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Makes authority, broker certificate, Mosquitto configuration and ACL in a new folder.
    Init(Init),
    /// Enrols somebody; what goes to them lies in DIR/ROLE/NAME afterwards.
    Add {
        /// What it may do.
        role: Role,
        /// CN, MQTT user and topic level: lower-case letters, digits, hyphens.
        name: String,
        /// Which role of the escalation a station serves: nurse, charge_nurse, physician, phone. [default: nurse]
        #[arg(long)]
        serves: Option<String>,
        /// A password instead of a certificate (stations and viewers in a browser; a device on the loopback listener).
        #[arg(long)]
        password: bool,
        /// Name or address of a device's own servers (station page, DICOM over TLS); repeatable.
        #[arg(long = "address")]
        addresses: Vec<String>,
        /// Days that the certificate is good for.
        #[arg(long, default_value_t = CLIENT_DAYS, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Also a PKCS #12 file for a browser, with its password beside it (needs `openssl`).
        #[arg(long, conflicts_with = "password")]
        p12: bool,
    },
    /// Puts somebody out: revocation list, ACL, password file. Their folder moves to DIR/revoked.
    Revoke {
        /// Who.
        name: String,
    },
    /// A new certificate for the broker, before the old one ends.
    RenewBroker {
        /// Name or address under which clients reach it; repeatable; as before if left out.
        #[arg(long = "broker")]
        broker: Vec<String>,
    },
    /// A new key for patient data in alerts (`[privacy] keys`); older ones stay in the file for what they sealed.
    Key,
    /// Everybody ever enrolled, with the days that are left.
    List {
        /// One JSON object per identity instead of a table.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Init {
    /// Site name, as in `[site] name`.
    #[arg(long)]
    site: String,
    /// Name or address under which clients reach the broker; repeatable.
    #[arg(long = "broker", required = true)]
    broker: Vec<String>,
    /// Address that the broker's listeners bind.
    #[arg(long, default_value = "0.0.0.0")]
    listen: String,
    /// Port for MQTT over mutual TLS; 0 leaves the listener out.
    #[arg(long, default_value_t = 8883)]
    port: u16,
    /// Port for websockets over mutual TLS; 0 leaves the listener out.
    #[arg(long, default_value_t = 8884)]
    websockets_port: u16,
    /// Port for websockets over TLS with name and password, for browsers without a certificate; such as 8885.
    #[arg(long, default_value_t = 0)]
    websockets_password_port: u16,
    /// Port on 127.0.0.1 without TLS, with name and password, for a daemon on the broker's machine; such as 1883.
    #[arg(long, default_value_t = 0)]
    loopback_port: u16,
    /// Where the broker will find its files.
    #[arg(long, default_value = "/etc/mosquitto/ichd")]
    broker_dir: PathBuf,
    /// Where the broker keeps its state.
    #[arg(long, default_value = "/var/lib/mosquitto")]
    persistence_dir: PathBuf,
}

/// Runs `ichd enrol`.
pub fn enrol(args: &Args) -> Result<(), Failure> {
    let failed = |e: EnrolError| Failure::failed(crate::chain(&e));
    let open = || Enrolment::open(&args.dir).map_err(failed);
    let now_ms = clock::wall_ms();
    match &args.command {
        Command::Init(init) => {
            let enrolment = Enrolment::init(&args.dir, settings(init), now_ms).map_err(failed)?;
            println!("authority and broker of site {} are in {}", init.site, args.dir.display());
            // The listeners are new: a broker that runs cannot take them up by a reload.
            install(&enrolment, "restart");
        }
        Command::Add { role, name, serves, password, addresses, days, p12 } => {
            let request = Request {
                role: *role,
                name: name.clone(),
                password: *password,
                addresses: addresses.clone(),
                days: *days,
                serves: serves.clone(),
            };
            let mut enrolment = open()?;
            let added = enrolment.add(&request, now_ms).map_err(failed)?;
            println!("{} {name} is enrolled; bring to it: {}/", role.as_str(), added.folder.display());
            for file in &added.files {
                println!("  {file}");
            }
            if *p12 {
                pkcs12(&added, *role, name)?;
            }
            install(&enrolment, "reload");
            match role {
                Role::Device => install_device(&enrolment, &added),
                _ => install_stations(&enrolment, *role),
            }
            let links = enrolment.setup_links(name);
            if !links.is_empty() {
                println!("on it, set up by this address (it fills in name and role):");
                links.iter().for_each(|link| println!("  {link}"));
            }
        }
        Command::Revoke { name } => {
            let mut enrolment = open()?;
            let gone = enrolment.revoke(name, now_ms).map_err(failed)?;
            println!("{} {name} is put out once the broker has the new files", gone.role.as_str());
            install(&enrolment, "reload");
            install_stations(&enrolment, gone.role);
        }
        Command::RenewBroker { broker } => {
            let mut enrolment = open()?;
            let names = (!broker.is_empty()).then(|| broker.clone());
            enrolment.renew_broker(names, now_ms).map_err(failed)?;
            println!(
                "the broker has a new certificate until {}",
                clock::rfc3339(enrolment.broker_expires_ms())
            );
            install(&enrolment, "reload");
        }
        Command::Key => {
            let path = open()?.rotate_key(now_ms).map_err(failed)?;
            println!("bring {} to every box and station of the site, never to the broker", path.display());
            println!("on every box, with level \"identified\" or \"image\" in [privacy]:");
            println!("  install -D -m 0600 {} -t /etc/credstore/", path.display());
            println!("  systemctl restart ichd");
            println!(
                "on every station: the content of the file, as \"Keys for patient identity\" where it is set up"
            );
        }
        Command::List { json } => list(&open()?, *json, now_ms)?,
    }
    Ok(())
}

fn settings(init: &Init) -> Settings {
    Settings {
        site: init.site.clone(),
        broker_names: init.broker.clone(),
        listen: init.listen.clone(),
        ports: Ports {
            mqtt: init.port,
            websockets: init.websockets_port,
            websockets_password: init.websockets_password_port,
            loopback: init.loopback_port,
        },
        broker_dir: init.broker_dir.clone(),
        persistence_dir: init.persistence_dir.clone(),
    }
}

/// The one thing that is left to do by hand after every change.
fn install(enrolment: &Enrolment, taken_up_by: &str) {
    let (from, to) = (enrolment.broker_folder(), enrolment.settings().broker_dir.clone());
    println!("on the broker:");
    if from == to {
        println!("  systemctl {taken_up_by} mosquitto");
        return;
    }
    let (from, to) = (from.display(), to.display());
    println!("  install -d -o mosquitto -m 0700 {to} {to}/conf.d");
    println!("  install -o mosquitto -m 0600 $(find {from} -maxdepth 1 -type f) {to}/");
    println!("  install -m 0644 {from}/mosquitto.conf /etc/mosquitto/mosquitto.conf");
    println!("  systemctl {taken_up_by} mosquitto");
}

/// The daemon is the second check: it believes only whom it is told of.
fn install_stations(enrolment: &Enrolment, role: Role) {
    if matches!(role, Role::Station | Role::Engineer) {
        println!("on every box:");
        println!("  install -D -m 0644 {} -t /etc/ichd/ichd.toml.d/", enrolment.stations_file().display());
        println!("  systemctl restart ichd");
    }
}

/// What makes a box a member of the site; keys go where systemd alone can read them.
fn install_device(enrolment: &Enrolment, added: &Added) {
    let folder = added.folder.display();
    let stations = enrolment.stations_file();
    println!("on the box:");
    println!("  install -D -m 0644 {folder}/{DROP_IN} {} -t /etc/ichd/ichd.toml.d/", stations.display());
    println!("  install -D -m 0644 {folder}/*.crt -t /etc/ichd/tls/");
    for file in &added.files {
        match file.as_str() {
            "device.key" => println!("  install -D -m 0600 {folder}/device.key -t /etc/credstore/"),
            "server.key" => println!("  install -D -m 0600 {folder}/server.key /etc/credstore/station.key"),
            "password" => println!("  install -D -m 0600 {folder}/password -t /etc/credstore/"),
            _ => {}
        }
    }
    println!("  systemctl restart ichd");
}

/// PKCS #12 through OpenSSL's own program: a format of the 1990s is no reason for a dozen crates. The password goes
/// through a pipe, since arguments are there for everybody to read.
fn pkcs12(added: &Added, role: Role, name: &str) -> Result<(), Failure> {
    let password = crate::enrol::password().map_err(|e| Failure::failed(crate::chain(&e)))?;
    let failed =
        |what: &str| Failure::failed(format!("the PKCS #12 file was not made ({what}); all else was"));
    let file = |ending: &str| added.folder.join(format!("{}.{ending}", role.as_str()));
    let mut child = Process::new("openssl")
        .args(["pkcs12", "-export", "-passout", "stdin", "-name", name])
        .args(["-in".as_ref(), file("crt").as_os_str(), "-inkey".as_ref(), file("key").as_os_str()])
        .args(["-certfile".as_ref(), added.folder.join("ca.crt").as_os_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| failed(&format!("openssl did not start: {e}")))?;
    let sent = child.stdin.take().map(|mut pipe| writeln!(pipe, "{password}"));
    let output = child.wait_with_output().map_err(|e| failed(&e.to_string()))?;
    if !output.status.success() || output.stdout.is_empty() || !matches!(sent, Some(Ok(()))) {
        return Err(failed("openssl refused"));
    }
    let write = |path: &Path, bytes: &[u8]| {
        crate::enrol::write_secret(path, bytes).map_err(|e| Failure::failed(crate::chain(&e)))
    };
    write(&file("p12"), &output.stdout)?;
    write(&added.folder.join("p12-password"), password.as_bytes())?;
    println!("  {}.p12, its password in p12-password", role.as_str());
    Ok(())
}

fn list(enrolment: &Enrolment, json: bool, now_ms: u64) -> Result<(), Failure> {
    for identity in enrolment.identities() {
        if json {
            println!("{}", super::json(identity)?);
            continue;
        }
        let how = match identity.proof {
            Proof::Certificate { .. } => "certificate",
            Proof::Password { .. } => "password",
        };
        let standing = match (identity.revoked_ms, identity.expires_ms) {
            (Some(at), _) => format!("revoked {}", clock::rfc3339(at)),
            (None, Some(end)) => days_left(end, now_ms),
            (None, None) => "no end".into(),
        };
        println!("{:8} {:32} {how:12} {standing}", identity.role.as_str(), identity.name);
    }
    if !json {
        println!(
            "{:8} {:32} {:12} {}",
            "broker",
            "",
            "certificate",
            days_left(enrolment.broker_expires_ms(), now_ms)
        );
    }
    Ok(())
}

fn days_left(end_ms: u64, now_ms: u64) -> String {
    match end_ms.checked_sub(now_ms) {
        Some(left) => format!("{} days left", left / DAY_MS),
        None => format!("ENDED {}", clock::rfc3339(end_ms)),
    }
}
