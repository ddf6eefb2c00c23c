//! Against a real broker, skipped where there is no mosquitto, and against a scripted one.

use super::*;
use crate::alert::lifecycle::tests::verdict;
use crate::config::{Profile, Site};
use crate::decide::Stage;
use crate::health::Pulses;
use crate::ledger::Record;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MOSQUITTO: &str = "/usr/sbin/mosquitto";

fn absent() -> bool {
    let absent = !Path::new(MOSQUITTO).exists();
    if absent {
        eprintln!("skipped: no {MOSQUITTO}");
    }
    absent
}

struct Broker {
    dir: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Broker {
    fn start(more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more = more.replace("$DIR", dir.path().to_str().unwrap());
        let more = if more.contains("persistence") { more } else { format!("persistence false\n{more}") };
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\n{more}\n");
        std::fs::write(dir.path().join("m.conf"), text).unwrap();
        // Read only by the broker whose configuration names it.
        let acl = "topic read #\ntopic write ichd/1/north/dev/ct-1/status\n";
        std::fs::write(dir.path().join("acl"), acl).unwrap();
        let child = Self::run(dir.path(), port);
        Broker { dir, port, child }
    }

    fn run(dir: &Path, port: u16) -> Child {
        let mut child =
            Command::new(MOSQUITTO).arg("-c").arg(dir.join("m.conf")).stderr(Stdio::null()).spawn().unwrap();
        for _ in 0..100 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return child;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = child.kill();
        let _ = child.wait();
        panic!("mosquitto does not listen");
    }

    fn down(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What it has now is on its disk, and nothing that comes later.
    fn writes_to_disk(&self) {
        let db = self.dir.path().join("mosquitto.db");
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-USR1", &pid]).status().unwrap().success());
        for _ in 0..100 {
            if db.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("mosquitto wrote nothing");
    }

    fn up(&mut self) {
        self.child = Self::run(self.dir.path(), self.port);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.down();
    }
}

/// Lines of `topic payload`, with the time of arrival.
struct Listener {
    child: Child,
    lines: std::sync::mpsc::Receiver<(std::time::Instant, String)>,
}

impl Listener {
    fn on(port: u16, topic: &str) -> Self {
        let mut child = Command::new("mosquitto_sub")
            .args(["-V", "5", "-p", &port.to_string(), "-t", topic, "-v"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tx, lines) = std::sync::mpsc::channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = tx.send((clock::now(), line));
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        Listener { child, lines }
    }

    fn next(&self, word: &str, within: Duration) -> Option<(std::time::Instant, String)> {
        let end = clock::now() + within;
        loop {
            let left = end.checked_duration_since(clock::now())?;
            match self.lines.recv_timeout(left) {
                Ok(line) if line.1.contains(word) => return Some(line),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct House {
    ledger: Arc<Ledger>,
    links: Links,
    wake: Arc<Notify>,
    _shutdown: watch::Sender<bool>,
    _dir: tempfile::TempDir,
}

impl House {
    fn new(config: config::Alert) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist };
        let ledger = Arc::new(Ledger::open(dir.path(), &site).unwrap());
        let model = ModelId { id: "m".into(), version: "1".into(), sha256: "00".into() };
        let publisher = Publisher::new(&config, &config::Health::default(), ledger.clone(), model).unwrap();
        let wake = Arc::new(Notify::new());
        let (shutdown, rx) = watch::channel(false);
        let pulse = Pulses::new(clock::now()).register("alert");
        let links = publisher.spawn(wake.clone(), pulse, rx);
        House { ledger, links, wake, _shutdown: shutdown, _dir: dir }
    }

    fn on(port: u16) -> Self {
        House::new(config::Alert { broker_port: port, ..config::Alert::default() })
    }

    fn record(&self, n: u8, p: Option<f32>) -> Option<(String, u64)> {
        let record = Record { decided_wall_ms: clock::wall_ms(), ..Record::default() };
        let recorded = self.ledger.record(&verdict(n, Stage::Final, p), &record).unwrap();
        self.wake.notify_one();
        recorded.alert
    }

    fn link(&self) -> Link {
        self.links.link.borrow().clone()
    }

    async fn until(&self, seconds: u64, mut test: impl FnMut(&House) -> bool) -> bool {
        for _ in 0..seconds * 20 {
            if test(self) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_its_time_is_reached_all_the_same() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut house = House::on(listener.local_addr().unwrap().port());
    // A scripted broker: its CONNACK comes after several of the publisher's own ticks.
    let broker = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        assert!(socket.read(&mut request).await.unwrap() > 0);
        tokio::time::sleep(Duration::from_millis(1_300)).await;
        socket.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
        while socket.read(&mut request).await.unwrap_or(0) > 0 {}
    });
    let connected = house.links.link.wait_for(|link| link.connected);
    tokio::time::timeout(Duration::from_secs(30), connected).await.unwrap().unwrap();
    broker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alert_of_an_outage_arrives_once_under_its_identity() {
    if absent() {
        return;
    }
    let mut broker = Broker::start("");
    let house = House::on(broker.port);
    assert!(house.until(10, |h| h.link().connected).await);
    broker.down();
    assert!(house.until(10, |h| !h.link().connected).await);
    let (id, rev) = house.record(1, Some(0.9)).unwrap();
    assert_eq!(house.ledger.outbox_depth().unwrap(), 2);
    broker.up();
    let listener = Listener::on(broker.port, "ichd/1/north/dev/ct-1/alert/#");
    let (_, line) = listener.next("ichd.alert/1", Duration::from_secs(15)).unwrap();
    assert!(line.contains(&id) && line.contains(&format!("\"rev\":{rev}")), "{line}");
    assert!(house.until(10, |h| h.ledger.outbox_depth().unwrap() == 0).await);
    assert!(listener.next("ichd.alert/1", Duration::from_secs(2)).is_none(), "told twice on one connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_closed_does_not_come_back_with_a_broker_that_lost_its_last_minute() {
    if absent() {
        return;
    }
    // As root it would become somebody who may not write to our folder.
    let mut broker =
        Broker::start("persistence true\npersistence_location $DIR/\nautosave_interval 0\nuser root");
    let house = House::on(broker.port);
    assert!(house.until(10, |h| h.link().connected).await);
    let (taken, _) = house.record(1, Some(0.9)).unwrap();
    assert!(house.until(10, |h| h.ledger.outbox_depth().unwrap() == 0).await);
    broker.writes_to_disk();
    let resolve = inbound::ActionMessage {
        schema: "ichd.action/1".into(),
        action_id: "action-1".into(),
        alert_id: taken.clone(),
        rev: 1,
        verb: inbound::Verb::Resolve,
        user: "Ann".into(),
        reason: None,
        feedback: None,
        expires_at: None,
    };
    house.ledger.act(Speaker { station: "ward-3", role: "nurse" }, &resolve, true).unwrap();
    house.wake.notify_one();
    assert!(
        house.until(10, |h| h.ledger.outbox_depth().unwrap() == 0).await,
        "the broker has taken the purge"
    );
    broker.down();
    assert!(house.until(10, |h| !h.link().connected).await);
    broker.up();
    let came_back = Listener::on(broker.port, "ichd/1/north/dev/ct-1/alert/#");
    assert!(came_back.next("\"rev\":1,", Duration::from_secs(10)).is_some(), "from the disk, open");
    assert!(house.until(20, |h| h.link().connected).await);
    assert!(came_back.next("\"state\":\"resolved\"", Duration::from_secs(10)).is_some());
    assert!(house.until(10, |h| h.ledger.outbox_depth().unwrap() == 0).await);
    let late = Listener::on(broker.port, "ichd/1/north/dev/ct-1/alert/#");
    assert!(late.next("", Duration::from_secs(2)).is_none(), "who comes later sees it as open");
}

#[tokio::test(flavor = "multi_thread")]
async fn that_nobody_listens_stays_said_until_somebody_does() {
    if absent() {
        return;
    }
    let broker = Broker::start("");
    let house = House::on(broker.port);
    assert!(house.until(10, |h| h.link().connected).await);
    house.record(1, Some(0.9));
    assert!(house.until(10, |h| h.ledger.outbox_depth().unwrap() == 0).await);
    assert_eq!(house.link().reasons, ["nobody_listening"]);
    let _listener = Listener::on(broker.port, "ichd/1/#");
    house.record(1, Some(0.95));
    assert!(house.until(10, |h| h.ledger.outbox_depth().unwrap() == 0).await);
    assert!(house.link().reasons.is_empty(), "{:?}", house.link());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_too_large_for_the_broker_is_set_aside_loudly_and_holds_up_nothing() {
    if absent() {
        return;
    }
    let broker = Broker::start("max_packet_size 900");
    let house = House::on(broker.port);
    assert!(house.until(10, |h| h.link().connected).await);
    let listener = Listener::on(broker.port, "ichd/1/north/dev/ct-1/#");
    house.record(1, Some(0.9));
    assert!(
        listener.next("ichd.study/1", Duration::from_secs(15)).is_some(),
        "the study document was held up"
    );
    assert!(house.until(5, |h| h.link().reasons == ["alert_too_large"]).await, "{:?}", house.link());
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(house.link(), Link { connected: true, reasons: vec!["alert_too_large".into()] });
    assert_eq!(house.ledger.outbox_depth().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_denied_alert_stays_and_says_so() {
    if absent() {
        return;
    }
    let broker = Broker::start("acl_file $DIR/acl");
    let house = House::on(broker.port);
    assert!(house.until(10, |h| h.link().connected).await);
    house.record(1, Some(0.9));
    assert!(house.until(5, |h| h.link().reasons == ["publish_denied"]).await, "{:?}", house.link());
    assert_eq!(house.ledger.outbox_depth().unwrap(), 2);
}

/// Seconds between the death of a connection and the word "lost".
#[tokio::test(flavor = "multi_thread")]
async fn lost_is_said_only_after_the_will_delay() {
    if absent() {
        return;
    }
    let broker = Broker::start("");
    let house = House::on(broker.port);
    assert!(house.until(10, |h| h.link().connected).await);
    let listener = Listener::on(broker.port, "ichd/1/north/dev/ct-1/status");
    house.links.task.abort();
    let died = clock::now();
    let (at, _) = listener.next("\"lost\"", Duration::from_secs(20)).expect("lost is said");
    let delay = at - died;
    eprintln!("lost was said after {delay:?}");
    assert!(delay > Duration::from_secs(8), "lost was said after {delay:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mutual_tls_reaches_the_broker_and_a_wrong_ca_does_not() {
    if absent() || !Path::new("/usr/bin/openssl").exists() {
        return;
    }
    let pki = tempfile::tempdir().unwrap();
    let script = "set -e
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca
        openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.pem -days 2 -subj /CN=other-ca
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > ext
        for n in broker ct-1; do
            openssl req -newkey rsa:2048 -nodes -keyout $n.key -out $n.csr -subj /CN=$n
            openssl x509 -req -in $n.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $n.pem
        done
        chmod 644 *.key";
    let made = Command::new("sh").arg("-c").arg(script).current_dir(pki.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = |name: &str| pki.path().join(name);
    let tls = format!(
        "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nuse_identity_as_username true",
        file("ca.pem").display(),
        file("broker.pem").display(),
        file("broker.key").display()
    );
    let broker = Broker::start(&tls);
    let config = |ca: &str| config::Alert {
        broker_host: "localhost".into(),
        broker_port: broker.port,
        tls: Some(config::AlertTls { ca: file(ca), certificate: file("ct-1.pem"), key: file("ct-1.key") }),
        ..config::Alert::default()
    };
    let house = House::new(config("ca.pem"));
    assert!(house.until(10, |h| h.link().connected).await, "{:?}", house.link());
    house.record(1, Some(0.9));
    assert!(house.until(10, |h| h.ledger.outbox_depth().unwrap() == 0).await);
    let stranger = House::new(config("other.pem"));
    assert!(!stranger.until(3, |h| h.link().connected).await, "a broker of another CA was believed");
}

type Topics = Arc<std::sync::Mutex<std::collections::BTreeSet<String>>>;

/// A broker that does as it is told: answers every packet but those that `withhold` names, by number of the connection
/// (from 1) and of the publish on it (from 1). Counts the distinct documents that it has acknowledged.
struct Scripted {
    port: u16,
    taken: Topics,
    denied: Topics,
    task: JoinHandle<()>,
}

const CONNACK: [u8; 5] = [0x20, 3, 0, 0, 0];
/// The client may have one publish on the way.
const CONNACK_RECEIVE_MAXIMUM_1: [u8; 8] = [0x20, 6, 0, 0, 3, 0x21, 0, 1];

impl Scripted {
    async fn start(greeting: Vec<u8>, withhold: impl Fn(u32, u32) -> bool + Send + Sync + 'static) -> Self {
        Self::script([&CONNACK[..], &greeting].concat(), withhold, |_| false).await
    }

    /// Begins its first connection with `hello`; has no quota for the topics that `denies` names.
    async fn script(
        hello: Vec<u8>,
        withhold: impl Fn(u32, u32) -> bool + Send + Sync + 'static,
        denies: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (taken, denied) = (Topics::default(), Topics::default());
        let (told, refused) = (taken.clone(), denied.clone());
        let task = tokio::spawn(async move {
            for connection in 1.. {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut publishes = 0;
                while let Some((head, body)) = packet(&mut socket).await {
                    let answer = match head >> 4 {
                        1 if connection == 1 => hello.clone(),
                        1 => CONNACK.to_vec(),
                        8 => vec![0x90, 6, body[0], body[1], 0, 1, 1, 1],
                        12 => vec![0xd0, 0],
                        3 if head & 0x06 != 0 => {
                            publishes += 1;
                            let n = usize::from(body[0]) << 8 | usize::from(body[1]);
                            if withhold(connection, publishes) {
                                continue;
                            }
                            let topic = String::from_utf8_lossy(&body[2..2 + n]).into_owned();
                            if denies(&topic) {
                                refused.lock().unwrap().insert(topic);
                                vec![0x40, 3, body[2 + n], body[3 + n], 0x97]
                            } else {
                                told.lock().unwrap().insert(topic);
                                vec![0x40, 2, body[2 + n], body[3 + n]]
                            }
                        }
                        _ => continue,
                    };
                    if socket.write_all(&answer).await.is_err() {
                        break;
                    }
                }
            }
        });
        Scripted { port, taken, denied, task }
    }

    fn alerts(&self) -> usize {
        self.taken.lock().unwrap().iter().filter(|topic| topic.contains("/alert/")).count()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn packet(socket: &mut tokio::net::TcpStream) -> Option<(u8, Vec<u8>)> {
    let head = socket.read_u8().await.ok()?;
    let (mut length, mut shift) = (0usize, 0);
    loop {
        let byte = socket.read_u8().await.ok()?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.ok()?;
    Some((head, body))
}

fn impatient(port: u16) -> config::Alert {
    config::Alert {
        broker_port: port,
        puback_timeout_ms: 400,
        inbound_bytes_max: 4096,
        ..config::Alert::default()
    }
}

fn many(house: &House, n: u32) {
    for i in 0..n {
        let mut v = verdict(1, Stage::Final, Some(0.9));
        v.study = crate::dicom::StudyUid::parse(&format!("1.2.9.{i}")).unwrap();
        v.series = crate::dicom::SeriesUid::parse(&format!("1.2.9.{i}.1")).unwrap();
        let record = Record { decided_wall_ms: clock::wall_ms(), ..Record::default() };
        house.ledger.record(&v, &record).unwrap();
    }
    house.wake.notify_one();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_hangs_is_left_and_nothing_of_it_is_lost() {
    // On the first connection it takes the status and then says nothing more.
    let broker = Scripted::start(vec![], |connection, publish| connection == 1 && publish > 1).await;
    let house = House::new(impatient(broker.port));
    many(&house, 3);
    assert!(house.until(20, |h| h.ledger.outbox_depth().unwrap() == 0).await, "{:?}", house.link());
    assert_eq!(broker.alerts(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_identifier_that_stays_taken_stops_nobody() {
    // The first publish of every connection is never acknowledged; the identifiers come round after a hundred.
    let broker = Scripted::start(vec![], |_, publish| publish == 1).await;
    let house = House::new(impatient(broker.port));
    many(&house, 130);
    assert!(house.until(60, |h| h.ledger.outbox_depth().unwrap() == 0).await, "{:?}", house.link());
    assert_eq!(broker.alerts(), 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbound_packet_above_our_limit_costs_a_connection_and_no_alert() {
    let topic = "ichd/1/north/sta/ward-3/receipt/ct-1";
    let body_bytes = 100_000usize;
    let length = 2 + topic.len() + 1 + body_bytes;
    let mut huge =
        vec![0x30, (length & 0x7f) as u8 | 0x80, (length >> 7 & 0x7f) as u8 | 0x80, (length >> 14) as u8];
    huge.extend([0, topic.len() as u8]);
    huge.extend(topic.as_bytes());
    huge.push(0);
    huge.extend(vec![b' '; body_bytes]);
    let broker = Scripted::start(huge, |_, _| false).await;
    let house = House::new(impatient(broker.port));
    many(&house, 3);
    assert!(house.until(20, |h| h.ledger.outbox_depth().unwrap() == 0).await, "{:?}", house.link());
    assert_eq!(broker.alerts(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_request_channel_neither_hangs_nor_loses() {
    let broker = Scripted::start(vec![], |connection, publish| connection == 1 && publish > 1).await;
    let house = House::new(config::Alert { puback_timeout_ms: 2_000, ..impatient(broker.port) });
    assert!(house.until(10, |h| h.link().connected).await);
    for n in 0..500 {
        house.links.status.send_modify(|status| status.reasons = vec![format!("reason_{n}")]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    many(&house, 3);
    assert!(house.until(30, |h| h.ledger.outbox_depth().unwrap() == 0).await, "{:?}", house.link());
    assert_eq!(broker.alerts(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_acknowledgement_of_a_status_is_never_counted_for_an_alert() {
    // A status that is asked for behind a row is sent only after the row's PUBACK, when the next row waits already.
    let odd = |topic: &str| topic.contains("/alert/") && topic.bytes().last().is_some_and(|b| b % 2 == 1);
    let broker = Scripted::script(CONNACK_RECEIVE_MAXIMUM_1.to_vec(), |_, _| false, odd).await;
    let patient = config::Alert { puback_timeout_ms: 60_000, ..impatient(broker.port) };
    let house = House::new(patient);
    assert!(house.until(10, |h| h.link().connected).await);
    many(&house, 60);
    let all = || broker.alerts() + broker.denied.lock().unwrap().len();
    let mut n = 0;
    let told = house.until(30, |h| {
        n += 1;
        h.links.status.send_modify(|status| status.reasons = vec![format!("reason_{n}")]);
        all() == 60
    });
    let more = async {
        loop {
            house.links.status.send_modify(|status| status.boot += 1);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        told = told => assert!(told, "{} of 60", all()),
        () = more => {}
    }
    let denied = broker.denied.lock().unwrap().len() as u64;
    assert!(denied > 0);
    let kept = house.until(10, |h| h.ledger.outbox_depth().unwrap() == denied).await;
    assert!(kept, "{} wait of {denied} that the broker has denied", house.ledger.outbox_depth().unwrap());
}
