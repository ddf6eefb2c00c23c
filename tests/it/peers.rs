//! The peers of a night: a broker, a listener, a scanner, an appliance. Everything on free ports and in temp folders.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use dicom_ul::association::client::{ClientAssociation, ClientAssociationOptions};
use dicom_ul::pdu::{PDataValue, PDataValueType, Pdu};
use ichd::receive::dimse;
use ichd_phantom::{Bleed, SeriesOptions, Side};
use serde_json::Value;
use tempfile::TempDir;

/// Machines that run tests are often nearly full.
const ROOM: &str = "free-bytes-min = 1000";

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub fn model() -> PathBuf {
    repository().join("models/ichd-base")
}

pub fn key() -> PathBuf {
    repository().join("models/keys/ichd-base.pub")
}

/// Python with the packages of `tests/requirements.txt`.
pub fn python() -> PathBuf {
    let installed = repository().join("target/venv/bin/python");
    if installed.exists() { installed } else { "python3".into() }
}

/// Real data, where it lies beside the repository.
pub fn testdata() -> Option<PathBuf> {
    let path = std::env::var_os("ICHD_TESTDATA")
        .map_or_else(|| repository().join("../shared/testdata"), PathBuf::from);
    if path.is_dir() {
        return Some(path);
    }
    eprintln!("left out: no test data of real people beside the repository");
    None
}

/// One daemon at a time keeps two cores honest.
pub fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub fn free_port() -> u16 {
    // Below the range from which the system gives ports to clients: none of those can take it before its server does.
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let begin = 12_000 + (std::process::id() % 100) as u16 * 100;
    loop {
        let port = begin + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 8_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Mosquitto, usually without persistence: what it forgets, the appliance must say again.
pub struct Mosquitto {
    pub port: u16,
    dir: TempDir,
    child: Option<Child>,
}

impl Mosquitto {
    pub fn start() -> Self {
        Self::with("persistence false\n")
    }

    /// One that keeps on disk what it has, now and then.
    pub fn durable() -> Self {
        // As root it would become somebody who may not write to our folder.
        Self::with("persistence true\npersistence_location DIR/\nautosave_interval 1\nuser root\n")
    }

    fn with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let more = more.replace("DIR", &dir.path().to_string_lossy());
        let config = format!("listener {port} 127.0.0.1\nallow_anonymous true\n{more}");
        std::fs::write(dir.path().join("mosquitto.conf"), config).unwrap();
        let mut broker = Mosquitto { port, dir, child: None };
        broker.up();
        broker
    }

    pub fn up(&mut self) {
        let program = ["/usr/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|p| Path::new(p).exists())
            .unwrap_or("mosquitto");
        let child = Command::new(program)
            .arg("-c")
            .arg(self.dir.path().join("mosquitto.conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is needed (tests/run installs it)");
        self.child = Some(child);
        wait_until("mosquitto listens", || std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.down();
    }
}

/// `mosquitto_sub` on everything; documents as (topic, JSON). One that is not as `docs/contract` says fails its test.
pub struct Listener {
    child: Child,
    lines: Receiver<(String, Value)>,
    complaints: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    pub fn on(broker: &Mosquitto) -> Self {
        let mut child = Command::new("mosquitto_sub")
            .args(["-V", "5", "-q", "1", "-t", "ichd/1/#", "-F", "%t %p", "-p", &broker.port.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("mosquitto_sub is needed (tests/run installs it)");
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tx, lines) = channel();
        let complaints = Arc::<Mutex<Vec<String>>>::default();
        let wrong = complaints.clone();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let Some((topic, body)) = line.split_once(' ') else { continue };
                let Ok(body) = serde_json::from_str(body) else { continue };
                let found = crate::contract::complaints(&body);
                if !found.is_empty() {
                    wrong.lock().unwrap().push(format!("{topic} {body}: {found:?}"));
                }
                if tx.send((topic.to_owned(), body)).is_err() {
                    return;
                }
            }
        });
        Listener { child, lines, complaints }
    }

    /// The next document of a schema.
    pub fn next(&self, schema: &str) -> Value {
        loop {
            let (_, body) =
                self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {schema} in time"));
            if body["schema"] == schema {
                return body;
            }
        }
    }

    /// The next document of one of several schemas.
    pub fn next_of(&self, schemas: &[&str]) -> Value {
        loop {
            let (_, body) =
                self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {schemas:?} in time"));
            if schemas.iter().any(|schema| body["schema"] == *schema) {
                return body;
            }
        }
    }

    /// Every document up to and including the next one of a schema.
    pub fn until(&self, schema: &str) -> Vec<Value> {
        let mut seen = Vec::new();
        while seen.last().is_none_or(|body: &Value| body["schema"] != schema) {
            seen.push(self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {schema} in time")).1);
        }
        seen
    }

    /// Everything that has arrived so far.
    pub fn drain(&self) -> Vec<(String, Value)> {
        self.lines.try_iter().collect()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let complaints = self.complaints.lock().unwrap();
        if !std::thread::panicking() {
            assert!(complaints.is_empty(), "not as docs/contract says: {complaints:#?}");
        }
    }
}

/// What the daemon's unit puts into its environment.
fn unit_environment() -> Vec<(String, String)> {
    let unit = std::fs::read_to_string(repository().join("daemon/ichd.service")).unwrap();
    let lines = unit.lines().filter_map(|l| l.strip_prefix("Environment=")?.split_once('='));
    lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// The real daemon with a configuration of its own.
pub struct Appliance {
    pub dir: TempDir,
    pub port: u16,
    broker_port: u16,
    extra: String,
    notify: Option<PathBuf>,
    /// Logs all it can.
    loud: bool,
    /// What else stands in its environment.
    pub env: Vec<(&'static str, PathBuf)>,
    /// Program and arguments that start it in other surroundings.
    pub started_by: Vec<String>,
    own_state: bool,
    child: Option<Child>,
}

impl Appliance {
    pub fn alerts_to(broker: &Mosquitto) -> Self {
        Self::with(broker.port, ROOM)
    }

    /// `extra` lines go to the table `[receive]`.
    pub fn with(broker_port: u16, extra: &str) -> Self {
        let mut appliance = Self::down(broker_port, extra);
        appliance.up();
        appliance
    }

    /// Tells systemd's notify socket how it is.
    pub fn notifying(broker: &Mosquitto, socket: &Path) -> Self {
        let mut appliance = Self::down(broker.port, ROOM);
        appliance.notify = Some(socket.to_owned());
        appliance.up();
        appliance
    }

    /// An enrolled device; `alert` lines go to the table `[alert]`.
    pub fn enrolled(device: &str, broker_port: u16, alert: &str) -> Self {
        let mut appliance = Self::down(broker_port, ROOM);
        let text =
            std::fs::read_to_string(appliance.config()).unwrap().replace("\"ct-1\"", &format!("{device:?}"));
        std::fs::write(appliance.config(), text + alert).unwrap();
        appliance.loud = true;
        appliance.up();
        appliance
    }

    /// Not yet started.
    pub fn off(broker: &Mosquitto) -> Self {
        Self::down(broker.port, ROOM)
    }

    fn down(broker_port: u16, extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let appliance = Appliance {
            dir,
            port: 0,
            broker_port,
            extra: extra.into(),
            notify: None,
            loud: false,
            env: Vec::new(),
            started_by: Vec::new(),
            own_state: false,
            child: None,
        };
        appliance.write_config();
        appliance
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("ichd.toml")
    }

    fn write_config(&self) {
        let text = format!(
            "[site]\nname = \"north\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n[state]\ndirectory = {:?}\n\
             [receive]\nlisten = \"127.0.0.1:0\"\ncalling-ae-titles = [\"CT1\"]\n{}\n\
             [assemble]\nquiet-ms = 400\nquiet-incomplete-ms = 1500\n\
             [proof]\ninterval-s = 0\nlimit-s = 15\n[infer]\nmodel = {:?}\ntrusted-keys = [{:?}]\n[alert]\nbroker-port = {}\n",
            self.state(),
            self.extra,
            model(),
            key(),
            self.broker_port
        );
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn up(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let ichd = env!("CARGO_BIN_EXE_ichd").to_owned();
        let mut words = self.started_by.iter().chain(std::iter::once(&ichd));
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .arg("run")
            .arg("--config")
            .arg(self.config())
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .stdout(Stdio::piped())
            .stderr(log)
            .env_remove("STATE_DIRECTORY")
            .envs(unit_environment())
            .envs(self.loud.then_some(("ICHD_LOG", "trace")))
            .envs(self.notify.iter().map(|socket| ("NOTIFY_SOCKET", socket)))
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        self.port = line
            .trim()
            .rsplit(':')
            .next()
            .and_then(|p| p.parse().ok())
            .unwrap_or_else(|| panic!("the daemon did not come up: {}", self.log()));
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// As a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// As systemd would.
    pub fn terminate(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let _ = Command::new("kill").arg(child.id().to_string()).status();
        child.wait().unwrap()
    }

    /// `ichd ledger --json`.
    pub fn ledger(&self) -> Vec<Value> {
        let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
            .args(["ledger", "--json", "--config"])
            .arg(self.config())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// Waits for `n` final dispositions.
    pub fn dispositions(&self, n: usize) -> Vec<Value> {
        let mut rows = Vec::new();
        wait_until(&format!("{n} dispositions"), || {
            rows = self.ledger();
            rows.retain(|r| r["stage"] == "final");
            rows.len() >= n
        });
        rows
    }

    /// Whether the spool has a file's instance.
    pub fn holds(&self, file: &Path) -> bool {
        self.state().join(Self::place(file)).is_file()
    }

    /// Where in a state directory a file's instance lies.
    pub fn place(file: &Path) -> PathBuf {
        let header = ichd::dicom::SliceHeader::read(file).unwrap();
        format!("spool/studies/{}/{}/{}.dcm", header.study, header.series, header.sop).into()
    }

    /// The instance of a file, under its last name or under its first.
    pub fn stored_or_arriving(&self, file: &Path) -> Option<PathBuf> {
        let wanted = ichd::dicom::SliceHeader::read(file).unwrap().sop;
        let is_it = |path: &Path| ichd::dicom::SliceHeader::read(path).is_ok_and(|h| h.sop == wanted);
        let arriving = std::fs::read_dir(self.state().join("spool/incoming")).into_iter().flatten().flatten();
        let mut places =
            std::iter::once(self.state().join(Self::place(file))).chain(arriving.map(|e| e.path()));
        places.find(|path| is_it(path))
    }

    /// Instances on their way; names made in advance are none.
    pub fn arriving(&self) -> usize {
        let entries = std::fs::read_dir(self.state().join("spool/incoming")).into_iter().flatten().flatten();
        entries.filter(|e| e.metadata().is_ok_and(|m| m.len() > 0)).count()
    }

    /// Where its state is.
    pub fn state(&self) -> PathBuf {
        match self.own_state {
            true => self.dir.path().join("state"),
            false => self.dir.path().to_owned(),
        }
    }

    /// Its state in a folder of its own, without configuration and log.
    pub fn use_own_state(&mut self) {
        self.own_state = true;
        std::fs::create_dir(self.state()).unwrap();
        self.write_config();
    }

    pub fn stored(&self) -> usize {
        fn count(path: &Path) -> usize {
            let Ok(entries) = std::fs::read_dir(path) else { return 0 };
            entries.flatten().map(|e| if e.path().is_dir() { count(&e.path()) } else { 1 }).sum()
        }
        count(&self.state().join("spool/studies"))
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- daemon log\n{}", self.log());
        }
    }
}

/// DCMTK's `storescu`: files over one association. Whether every one was acknowledged with success, and its words.
pub fn storescu(port: u16, paths: &[PathBuf], more: &[&str]) -> (bool, String) {
    let (ok, words) = dcmtk("storescu", port, paths, more);
    // Its exit code is 0 even where the peer refused to store.
    (ok && words.matches("Received Store Response (Success)").count() == paths.len(), words)
}

/// DCMTK's `dcmsend`: proposes each file in the encoding it has.
pub fn dcmsend(port: u16, paths: &[PathBuf]) -> (bool, String) {
    dcmtk(
        "dcmsend",
        port,
        paths,
        &["--scan-directories", "--recurse", "--no-uid-checks", "--no-halt", "--decompress-never"],
    )
}

fn dcmtk(program: &str, port: u16, paths: &[PathBuf], more: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    if !more.contains(&"-aet") {
        command.args(["-aet", "CT1"]);
    }
    if !more.contains(&"-aec") {
        command.args(["-aec", "ICHD"]);
    }
    let output = command
        .args(["-v", "-to", "20"])
        .args(more)
        .args(["127.0.0.1", &port.to_string()])
        .args(paths)
        .output()
        .expect("dcmtk is needed (tests/run installs it)");
    let words =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), words)
}

/// A scanner played by hand, for what no other would send: an association for the class and encoding of one file.
pub struct ByHand {
    association: ClientAssociation<std::net::TcpStream>,
    context: u8,
    header: ichd::dicom::SliceHeader,
}

impl ByHand {
    pub fn associate(port: u16, file: &Path) -> Self {
        let header = ichd::dicom::SliceHeader::read(file).unwrap();
        let association = ClientAssociationOptions::new()
            .calling_ae_title("CT1")
            .called_ae_title("ICHD")
            .with_presentation_context(header.sop_class.as_str(), vec![header.transfer_syntax.as_str()])
            .establish(("127.0.0.1", port))
            .unwrap();
        let context = association.presentation_contexts()[0].id;
        ByHand { association, context, header }
    }

    /// Command set of a C-STORE of the file.
    pub fn store_request(&self, message_id: u16) -> Vec<u8> {
        dimse::store_request(&self.header.sop_class, self.header.sop.as_str(), message_id)
    }

    /// One piece of a command set or data set.
    pub fn send(&mut self, value_type: PDataValueType, is_last: bool, data: &[u8]) {
        let value =
            PDataValue { presentation_context_id: self.context, value_type, is_last, data: data.to_vec() };
        self.association.send(&Pdu::PData { data: vec![value] }).unwrap();
    }

    /// Message id and status that come back; then the association is released.
    pub fn answer(mut self) -> (u16, u16) {
        let Pdu::PData { data } = self.association.receive().unwrap() else { panic!("no response") };
        let (message_id, status) = dimse::response_status(&data[0].data).unwrap();
        self.association.release().unwrap();
        (message_id, status.0)
    }
}

/// Gives a model package this manifest, signed by a key of the tests whose public half is written too.
pub fn sign(package: &Path, manifest: &str, public_key: &Path) {
    use ed25519_dalek::{Signer, SigningKey};
    let key = SigningKey::from_bytes(&[9; 32]);
    std::fs::write(package.join("manifest.sig"), key.sign(manifest.as_bytes()).to_bytes()).unwrap();
    std::fs::write(package.join("manifest.toml"), manifest).unwrap();
    std::fs::write(public_key, ichd::hex(key.verifying_key().as_bytes())).unwrap();
}

/// What follows the file meta in a Part 10 file.
pub fn data_set(file: &[u8]) -> &[u8] {
    let group_length = u32::from_le_bytes(file[140..144].try_into().unwrap()) as usize;
    &file[144 + group_length..]
}

/// The phantom series that the tests send, made once: files in slice order.
pub struct Phantom {
    pub files: Vec<PathBuf>,
    _dir: TempDir,
}

impl Phantom {
    /// Of another seed it is another study of another head.
    pub fn make(seed: u64, bleed: Bleed) -> Self {
        let mut options = SeriesOptions::default();
        options.scan.matrix = 256;
        options.scan.slices = 30;
        let dir = tempfile::tempdir().unwrap();
        let files = ichd_phantom::study(seed, bleed, &options)
            .unwrap()
            .iter()
            .enumerate()
            .map(|(i, instance)| {
                let path = dir.path().join(format!("{i:03}.dcm"));
                std::fs::write(&path, instance.file_bytes().unwrap()).unwrap();
                path
            })
            .collect();
        Phantom { files, _dir: dir }
    }

    pub fn quiet() -> &'static Phantom {
        static QUIET: OnceLock<Phantom> = OnceLock::new();
        QUIET.get_or_init(|| Phantom::make(11, Bleed::None))
    }

    pub fn bleed() -> &'static Phantom {
        static BLEED: OnceLock<Phantom> = OnceLock::new();
        let bleed = Bleed::Intraparenchymal { side: Side::Left, volume_ml: 45.0 };
        BLEED.get_or_init(|| Phantom::make(12, bleed))
    }
}

pub fn wait_until(what: &str, mut test: impl FnMut() -> bool) {
    let tries = PATIENCE.as_millis() / 50;
    for _ in 0..tries {
        if test() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("waited in vain: {what}");
}

/// `ichd analyze --json`: one line per series.
pub fn analyze(paths: &[impl AsRef<std::ffi::OsStr>]) -> Vec<Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_ichd"))
        .args(["analyze", "--json", "--model"])
        .arg(model())
        .arg("--key")
        .arg(key())
        .args(paths)
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(!words.contains("panicked"), "{words}");
    String::from_utf8_lossy(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}
