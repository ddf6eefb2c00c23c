//! A real ntfy server, where `ICHD_NTFY` names its program (2.13 was tried), over TLS with an authority of its own and
//! closed to everybody but the gateway, who may only write, and a phone, who may only read.

use std::fs::read_to_string;

use super::*;

const PHONE: &str = "phone:a-password-of-the-phone";

struct Server {
    dir: tempfile::TempDir,
    program: String,
    port: u16,
    process: Option<Process>,
}

impl Server {
    /// None, with one line that says so, where there is no ntfy.
    fn new() -> Option<Self> {
        let Ok(program) = std::env::var("ICHD_NTFY") else {
            eprintln!("left out: no ntfy server (ICHD_NTFY names its program)");
            return None;
        };
        let mut server =
            Server { dir: tempfile::tempdir().unwrap(), program, port: free_port(), process: None };
        server.certificates();
        let file = |name: &str| server.file(name).display().to_string();
        let config = format!(
            "base-url: https://127.0.0.1:{port}\nlisten-http: \"-\"\nlisten-https: 127.0.0.1:{port}\n\
             cert-file: {}\nkey-file: {}\nauth-file: {}\nauth-default-access: deny-all\ncache-file: {}\n",
            file("box.crt"),
            file("box.key"),
            file("user.db"),
            file("cache.db"),
            port = server.port
        );
        std::fs::write(server.file("server.yml"), config).unwrap();
        // The server makes its database of users when it first starts.
        server.up();
        for (user, access) in [("gateway", "write-only"), ("phone", "read-only")] {
            server.ntfy(&["user", "add", user], user);
            server.ntfy(&["access", user, "ichd-*", access], user);
        }
        let said = server.ntfy(&["token", "add", "gateway"], "gateway");
        let token = said.split_whitespace().find(|w| w.starts_with("tk_")).expect("a token");
        std::fs::write(server.file("token"), token).unwrap();
        Some(server)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One of the server's own commands; `token add` says on stderr what it made.
    fn ntfy(&self, words: &[&str], user: &str) -> String {
        let (command, rest) = words.split_first().unwrap();
        let output = Command::new(&self.program)
            .args([command, &"--config", &self.file("server.yml").display().to_string().as_str()])
            .args(rest)
            .env("NTFY_PASSWORD", format!("a-password-of-the-{user}"))
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "ntfy {words:?}: {said}");
        said
    }

    fn certificates(&self) {
        let openssl = |words: &str| {
            let done = Command::new("openssl").args(words.split(' ')).current_dir(self.dir.path()).output();
            assert!(done.unwrap().status.success(), "openssl {words}");
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.crt -subj /CN=hospital"));
        openssl(&format!("req -new {key} -keyout box.key -out box.csr -subj /CN=ntfy"));
        std::fs::write(self.file("san"), "subjectAltName=IP:127.0.0.1").unwrap();
        openssl(
            "x509 -req -in box.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile san -out box.crt",
        );
    }

    fn up(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.file("log")).unwrap();
        let child = Command::new(&self.program)
            .args(["serve", "--config"])
            .arg(self.file("server.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        self.process = Some(Process(child.unwrap()));
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As a power cut would.
    fn down(&mut self) {
        self.process = None;
    }

    /// A topic of the gateway's configuration, told with the token in a file.
    fn target(&self, topic: &str, says: &str, token: &str) -> String {
        format!(
            "[[target]]\nname = {topic:?}\ntell = [\"raised\", \"escalated\"]\n\
             ntfy = {{says = {says:?}, http = {{url = \"https://127.0.0.1:{}/ichd-{topic}\", ca = {:?}, token-file = {:?}}}}}\n",
            self.port,
            self.file("ca.crt"),
            self.file(token)
        )
    }

    /// What a phone hears on a topic, from the beginning: the JSON stream of `GET /topic/json`.
    fn listen(&self, topic: &str) -> (Process, Receiver<Value>) {
        let mut curl = Command::new("curl")
            .args(["-sN", "--cacert", &self.file("ca.crt").display().to_string(), "-u", PHONE])
            .arg(format!("https://127.0.0.1:{}/ichd-{topic}/json?since=all", self.port))
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl is needed");
        let (tx, rx) = channel();
        let lines = BufReader::new(curl.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            let heard = lines.map_while(Result::ok).map(|l| serde_json::from_str(&l).unwrap());
            heard.filter(|m: &Value| m["event"] == "message").for_each(|m| drop(tx.send(m)));
        });
        (Process(curl), rx)
    }
}

fn located(id: &str, rev: u64, state: &str) -> Value {
    let mut alert = alert(id, rev, state);
    alert["subject"]["location"] = json!("CT 1, emergency");
    alert
}

#[test]
fn a_real_ntfy_server_wakes_a_phone_with_what_it_may_say_and_loses_nothing_while_it_is_down() {
    let Some(mut server) = Server::new() else { return };
    std::fs::write(server.file("wrong"), "tk_thisisnotatokenofthisserver12").unwrap();
    let broker = Broker::start();
    let mut gateway = Gateway::start(
        &broker,
        &[
            server.target("nothing", "nothing", "token"),
            server.target("code", "code", "token"),
            server.target("location", "location", "token"),
            server.target("mistyped", "nothing", "wrong"),
        ]
        .concat(),
    );
    gateway.waits_for("broker_connected");
    let (phone, wakes) = server.listen("nothing");
    broker.publish(&located("01JA", 1, "raised"));

    let message = wakes.recv_timeout(PATIENCE).unwrap();
    let words = ["title", "message", "priority", "tags"].map(|name| message[name].clone());
    let expected = [
        json!("ichd"),
        json!("New notification. Open the station page."),
        json!(5),
        json!(["rotating_light"]),
    ];
    assert_eq!(words, expected);
    // The server's own fields and those above: nothing of the patient is in any other place either.
    let mut names: Vec<_> = message.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["event", "expires", "id", "message", "priority", "tags", "time", "title", "topic"]);
    for (topic, text) in [
        ("code", "New notification. K7P-29. Open the station page."),
        ("location", "New notification. K7P-29. CT 1, emergency. Open the station page."),
    ] {
        let (_phone, wakes) = server.listen(topic);
        assert_eq!(wakes.recv_timeout(PATIENCE).unwrap()["message"], text);
    }

    // The server goes away; three alerts and a call of the next person come meanwhile.
    drop(phone);
    server.down();
    for n in 1..=3 {
        broker.publish(&located(&format!("01JB{n}"), 1, "raised"));
    }
    broker.publish(&located("01JA", 2, "delivered"));
    broker.publish(&located("01JA", 3, "escalated"));
    gateway.waits_for("event=later target=nothing id=01JB1-1");
    gateway.kill();
    gateway.up();
    server.up();
    gateway.waits_for("event=told target=nothing id=01JA-3");
    let (_phone, wakes) = server.listen("nothing");
    let told: Vec<Value> = (0..5).map(|_| wakes.recv_timeout(PATIENCE).unwrap()).collect();
    let told: Vec<_> = told.iter().map(|m| m["message"].as_str().unwrap()).collect();
    let new = "New notification. Open the station page.";
    assert_eq!(told, [new, new, new, new, "A notification still waits. Open the station page."]);

    // A token that the server does not know held up nobody else, and loses nothing once a person has mended it.
    gateway.waits_for("event=later target=mistyped id=01JA-1 reason=\"status 401\"");
    gateway.kill();
    std::fs::copy(server.file("token"), server.file("wrong")).unwrap();
    gateway.up();
    gateway.waits_for("event=told target=mistyped id=01JA-3");
    let (_phone, wakes) = server.listen("mistyped");
    let mended: Vec<_> = (0..5).map(|_| wakes.recv_timeout(PATIENCE).unwrap()["message"].clone()).collect();
    assert_eq!(mended, told);
    let token = read_to_string(server.file("token")).unwrap();
    assert!(!gateway.log().contains(&token) && !gateway.log().contains("tk_"), "no secret in the log");
}
