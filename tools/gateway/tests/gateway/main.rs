//! The real gateway between the real Mosquitto and small real servers.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up its peers has failed")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use serde_json::{Value, json};

mod ntfy;
mod receiver;

const PATIENCE: Duration = Duration::from_secs(60);

fn free_port() -> u16 {
    // Below the range from which the system gives ports to others: nobody takes it before its server, or while that is down.
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let begin = 22_000 + (std::process::id() % 100) as u16 * 100;
    loop {
        let port = begin + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed) % 100;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Broker {
    port: u16,
    _dir: tempfile::TempDir,
    _process: Process,
}

impl Broker {
    fn start() -> Self {
        Self::with("")
    }

    fn with(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let file = dir.path().join("mosquitto.conf");
        std::fs::write(&file, format!("listener {port} 127.0.0.1\nallow_anonymous true\n{more}")).unwrap();
        let usual = Path::new("/usr/sbin/mosquitto");
        let program = if usual.exists() { usual } else { Path::new("mosquitto") };
        let child = Command::new(program)
            .arg("-c")
            .arg(file)
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is needed");
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Broker { port, _dir: dir, _process: Process(child) }
    }

    /// Retained, as the daemon does.
    fn publish(&self, alert: &Value) {
        let topic = format!("ichd/1/north/dev/ct-1/alert/{}", alert["alert_id"].as_str().unwrap());
        let status = Command::new("mosquitto_pub")
            .args([
                "-V",
                "5",
                "-q",
                "1",
                "-r",
                "-p",
                &self.port.to_string(),
                "-t",
                &topic,
                "-m",
                &alert.to_string(),
            ])
            .status();
        assert!(status.expect("mosquitto_pub is needed").success());
    }
}

fn alert(id: &str, rev: u64, state: &str) -> Value {
    json!({"schema": "ichd.alert/1", "alert_id": id, "rev": rev, "kind": "finding", "stage": "final", "state": state,
           "priority": 1, "device": "ct-1", "site": "north", "raised_at": "2026-11-25T22:01:30.123Z",
           "published_at": "2026-11-25T22:01:31.000Z", "subject": {"ref": "K7P-29", "enc": "SEALED"},
           "finding": {"subtypes": ["subdural"], "side": "left"}, "disclaimer": "not a diagnosis"})
}

/// A request as it came.
struct Request {
    head: HashMap<String, String>,
    body: String,
}

/// Answers with these statuses in turn, the last one for ever.
fn http_server(statuses: &'static [u16]) -> (u16, Receiver<Request>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        for (n, stream) in listener.incoming().flatten().enumerate() {
            let _ = serve(stream, statuses[n.min(statuses.len() - 1)], &tx);
        }
    });
    (port, rx)
}

fn serve(stream: TcpStream, status: u16, tx: &Sender<Request>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = HashMap::new();
    let mut line = String::new();
    reader.read_line(&mut line)?;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        head.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; head.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    (&stream).write_all(
        format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let _ = tx.send(Request { head, body });
    Ok(())
}

/// Acknowledges with these codes in turn, the last one for ever.
fn mllp_server(codes: &'static [&'static str]) -> (u16, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        for (n, mut stream) in listener.incoming().flatten().enumerate() {
            let mut bytes = Vec::new();
            let mut byte = [0];
            while !bytes.ends_with(&[0x1c, 0x0d]) && stream.read(&mut byte).unwrap_or(0) == 1 {
                bytes.push(byte[0]);
            }
            let text = String::from_utf8_lossy(&bytes).trim_matches(['\u{b}', '\u{1c}', '\r']).to_owned();
            let id = text.split('|').nth(9).unwrap_or_default().to_owned();
            let code = codes[n.min(codes.len() - 1)];
            let ack = format!("\u{b}MSH|^~\\&|A|B|C|D|20261125||ACK^R40|1|P|2.6\rMSA|{code}|{id}\r\u{1c}\r");
            let _ = stream.write_all(ack.as_bytes());
            let _ = tx.send(text);
        }
    });
    (port, rx)
}

struct Gateway {
    dir: tempfile::TempDir,
    process: Option<Process>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- gateway log\n{}", self.log());
        }
    }
}

impl Gateway {
    fn start(broker: &Broker, targets: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "state-directory = {:?}\n[mqtt]\nhost = \"127.0.0.1\"\nport = {}\nsite = \"north\"\nname = \"gateway\"\n{targets}",
            dir.path().join("state"),
            broker.port
        );
        std::fs::write(dir.path().join("gateway.toml"), text).unwrap();
        let mut gateway = Gateway { dir, process: None };
        gateway.up();
        gateway
    }

    fn up(&mut self) {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_ichd-gateway"))
            .arg("--config")
            .arg(self.dir.path().join("gateway.toml"))
            .stderr(log)
            .spawn();
        self.process = Some(Process(child.unwrap()));
    }

    /// As a power cut would.
    fn kill(&mut self) {
        self.process = None;
    }

    fn waits_for(&self, words: &str) {
        for _ in 0..PATIENCE.as_millis() / 50 {
            if self.log().contains(words) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("waited in vain for `{words}`:\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn refused(&self, target: &str) -> Vec<PathBuf> {
        std::fs::read_dir(self.dir.path().join("state").join(target).join("refused"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect()
    }
}

#[test]
fn an_alert_reaches_all_four_kinds_of_target_in_their_own_words() {
    let broker = Broker::start();
    let ((mllp, hl7), (fhir, communications), (ntfy, wakes), (hook, deliveries)) =
        (mllp_server(&["AA"]), http_server(&[201]), http_server(&[200]), http_server(&[204]));
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "a shared secret of the site\n").unwrap();
    let gateway = Gateway::start(
        &broker,
        &format!(
            "[[target]]\nname = \"hl7\"\nmllp = {{address = \"127.0.0.1:{mllp}\"}}\n\
             [[target]]\nname = \"fhir\"\nfhir = {{url = \"http://127.0.0.1:{fhir}/Communication\"}}\n\
             [[target]]\nname = \"ntfy\"\nntfy = {{http = {{url = \"http://127.0.0.1:{ntfy}/topic\"}}}}\n\
             [[target]]\nname = \"hook\"\nwebhook = {{secret-file = {:?}, http = {{url = \"http://127.0.0.1:{hook}/x\"}}}}\n",
            secret.path()
        ),
    );
    gateway.waits_for("broker_connected");
    broker.publish(&alert("01JA", 1, "raised"));

    let message = hl7.recv_timeout(PATIENCE).unwrap();
    assert!(
        message.starts_with("MSH|^~\\&|ICHD^ct-1|north|") && message.contains("|ORU^R40^ORU_R40|01JA-1|"),
        "{message}"
    );
    let request = communications.recv_timeout(PATIENCE).unwrap();
    let resource: Value = serde_json::from_str(&request.body).unwrap();
    assert_eq!(
        (&resource["resourceType"], &resource["status"]),
        (&json!("Communication"), &json!("in-progress"))
    );
    assert_eq!(request.head["if-none-exist"], "identifier=urn:ichd:event|01JA-1");
    let wake = wakes.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        (wake.body.as_str(), wake.head["priority"].as_str()),
        ("New notification. Open the station page.", "5")
    );
    let delivery = deliveries.recv_timeout(PATIENCE).unwrap();
    assert!(signed(&delivery, "a shared secret of the site") && !signed(&delivery, "another secret"));
    assert_eq!(delivery.head["x-ichd-delivery"], "01JA-1");

    // A receipt is no news; an acknowledgement is.
    broker.publish(&alert("01JA", 2, "delivered"));
    broker.publish(&alert("01JA", 3, "acknowledged"));
    assert!(hl7.recv_timeout(PATIENCE).unwrap().contains("|01JA-3|"));
    for text in [&message, &request.body, &wake.body] {
        assert!(!text.contains("SEALED"), "what is sealed goes to the webhook only: {text}");
    }
}

/// As a receiver checks it, with OpenSSL.
fn signed(request: &Request, secret: &str) -> bool {
    let (seconds, hex) =
        request.head["x-ichd-signature"].strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    let mut openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    write!(openssl.stdin.take().unwrap(), "{seconds}.{}", request.body).unwrap();
    String::from_utf8_lossy(&openssl.wait_with_output().unwrap().stdout).trim().ends_with(hex)
}

#[test]
fn a_target_that_is_down_and_a_gateway_that_is_killed_lose_nothing_and_keep_the_order() {
    let broker = Broker::start();
    let port = free_port();
    let mut gateway = Gateway::start(
        &broker,
        &format!("[[target]]\nname = \"hl7\"\nmllp = {{address = \"127.0.0.1:{port}\"}}\n"),
    );
    gateway.waits_for("broker_connected");
    for n in 1..=3 {
        broker.publish(&alert(&format!("01J{n}"), 1, "raised"));
    }
    gateway.waits_for("event=taken id=01J3-1");
    gateway.kill();
    // What happens while it is down is told when it is back.
    broker.publish(&alert("01J1", 2, "acknowledged"));
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (tx, rx) = channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut bytes = Vec::new();
            let mut byte = [0];
            while !bytes.ends_with(&[0x1c, 0x0d]) && stream.read(&mut byte).unwrap_or(0) == 1 {
                bytes.push(byte[0]);
            }
            let id = String::from_utf8_lossy(&bytes).split('|').nth(9).unwrap_or_default().to_owned();
            let _ = stream.write_all(format!("\u{b}MSH|^~\\&\rMSA|AA|{id}\r\u{1c}\r").as_bytes());
            let _ = tx.send(id);
        }
    });
    gateway.up();
    let told: Vec<String> = (0..4).map(|_| rx.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(told, ["01J1-1", "01J2-1", "01J3-1", "01J1-2"]);
    gateway.waits_for("event=taken id=01J1-2");
    gateway.waits_for("event=told target=hl7 id=01J1-2");
    // A restart with everything retained at the broker tells nothing again.
    gateway.kill();
    gateway.up();
    broker.publish(&alert("01J9", 1, "raised"));
    assert_eq!(rx.recv_timeout(PATIENCE).unwrap(), "01J9-1");
}

/// The client hands over ten packets for each request that it takes: a channel of acknowledgements would fill.
#[test]
fn a_backlog_of_hundreds_is_taken_in_one_run() {
    const N: usize = 400;
    let broker = Broker::with("max_inflight_messages 0\nmax_queued_messages 0\n");
    for n in 0..N {
        broker.publish(&alert(&format!("01J{n:04}"), 1, "raised"));
    }
    let target = format!("[[target]]\nname = \"hl7\"\nmllp = {{address = \"127.0.0.1:{}\"}}\n", free_port());
    let gateway = Gateway::start(&broker, &target);
    for _ in 0..PATIENCE.as_millis() / 50 {
        if gateway.log().matches("event=taken").count() == N {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(gateway.log().matches("event=taken").count(), N);
    broker.publish(&alert("01J9999", 1, "raised"));
    gateway.waits_for("event=taken id=01J9999-1");
    assert_eq!(gateway.log().matches("broker_connected").count(), 1);
}

#[test]
fn a_busy_target_is_tried_again_and_a_refused_message_holds_up_nothing() {
    let broker = Broker::start();
    let ((hook, deliveries), (mllp, hl7)) = (http_server(&[503, 422, 200]), mllp_server(&["AE", "AR", "AA"]));
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "a shared secret of the site").unwrap();
    let gateway = Gateway::start(
        &broker,
        &format!(
            "[[target]]\nname = \"hook\"\nwebhook = {{secret-file = {:?}, http = {{url = \"http://127.0.0.1:{hook}/x\"}}}}\n\
             [[target]]\nname = \"hl7\"\nmllp = {{address = \"127.0.0.1:{mllp}\"}}\n",
            secret.path()
        ),
    );
    gateway.waits_for("broker_connected");
    broker.publish(&alert("01JA", 1, "raised"));
    broker.publish(&alert("01JB", 1, "raised"));
    let ids: Vec<String> =
        (0..3).map(|_| deliveries.recv_timeout(PATIENCE).unwrap().head["x-ichd-delivery"].clone()).collect();
    assert_eq!(ids, ["01JA-1", "01JA-1", "01JB-1"]);
    let ids: Vec<String> =
        (0..3).map(|_| hl7.recv_timeout(PATIENCE).unwrap().split('|').nth(9).unwrap().to_owned()).collect();
    assert_eq!(ids, ["01JA-1", "01JA-1", "01JB-1"]);
    gateway.waits_for("event=told target=hook id=01JB-1");
    gateway.waits_for("event=told target=hl7 id=01JB-1");
    assert_eq!((gateway.refused("hook").len(), gateway.refused("hl7").len()), (1, 1));
}
