//! One MQTT 5 connection by hand, over TCP, TLS or websockets: what a client library would not let a test do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::v5::{Connect, Filter, LastWill, Login, Packet, Publish, Subscribe};
use rumqttc::v5::mqttbytes::{Error, QoS};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const WAIT: Duration = Duration::from_secs(20);

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// How to reach the broker and what to say first.
#[derive(Default, Clone)]
pub struct Dial {
    pub port: u16,
    /// Authority to trust; none: plain TCP.
    pub ca: Option<Vec<u8>>,
    /// Certificate and key, PEM.
    pub certificate: Option<(Vec<u8>, Vec<u8>)>,
    pub websockets: bool,
    pub client_id: String,
    pub login: Option<(String, String)>,
    /// Topic and payload.
    pub will: Option<(String, String)>,
}

impl Dial {
    /// With everything of an enrolled identity's folder: certificate, or the password of its name.
    pub fn enrolled(port: u16, folder: &Path) -> Self {
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let role = folder.parent().unwrap().file_name().unwrap().to_str().unwrap();
        let read = |file: String| std::fs::read(folder.join(file)).ok();
        let certificate = read(format!("{role}.crt")).zip(read(format!("{role}.key")));
        let login = read("password".into()).map(|p| (name.clone(), String::from_utf8(p).unwrap()));
        Dial { port, ca: read("ca.crt".into()), certificate, login, client_id: name, ..Dial::default() }
    }

    pub fn connect(&self) -> Result<Wire, String> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).map_err(|e| e.to_string())?;
        tcp.set_read_timeout(Some(WAIT)).unwrap();
        let mut stream: Box<dyn Stream> = match &self.ca {
            None => Box::new(tcp),
            Some(ca) => Box::new(StreamOwned::new(self.tls(ca), tcp)),
        };
        if self.websockets {
            upgrade(&mut stream)?;
        }
        let mut wire = Wire {
            stream,
            websockets: self.websockets,
            raw: BytesMut::new(),
            mqtt: BytesMut::new(),
            stash: vec![],
            pkid: 0,
        };
        let connect = Connect {
            keep_alive: 60,
            client_id: self.client_id.clone(),
            clean_start: true,
            properties: None,
        };
        let login = self.login.as_ref().map(|(user, password)| Login::new(user, password));
        let will = self.will.as_ref().map(|(t, p)| LastWill::new(t, p.clone(), QoS::AtLeastOnce, true, None));
        wire.send(&Packet::Connect(connect, will, login))?;
        match wire.receive()? {
            Packet::ConnAck(ack) if format!("{:?}", ack.code) == "Success" => Ok(wire),
            other => Err(format!("{other:?}")),
        }
    }

    fn tls(&self, ca: &[u8]) -> ClientConnection {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate).unwrap()],
                    PrivateKeyDer::from_pem_slice(key).unwrap(),
                )
                .unwrap(),
        };
        ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
    }
}

/// RFC 6455, as far as a client needs it.
fn upgrade(stream: &mut dyn Stream) -> Result<(), String> {
    let request = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(|e| e.to_string())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(|e| format!("no websocket: {e}"))?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.starts_with("HTTP/1.1 101") { Ok(()) } else { Err(head) }
}

pub struct Wire {
    stream: Box<dyn Stream>,
    websockets: bool,
    raw: BytesMut,
    mqtt: BytesMut,
    stash: Vec<(String, String)>,
    pkid: u16,
}

impl Wire {
    fn send(&mut self, packet: &Packet) -> Result<(), String> {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, None).map_err(|e| format!("{e:?}"))?;
        if self.websockets {
            // A masked binary frame; the mask is zero, which is as good as any other to a broker.
            let mut frame = BytesMut::new();
            frame.extend_from_slice(&[0x82, 0xfe]);
            frame.extend_from_slice(&u16::try_from(bytes.len()).unwrap().to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            frame.extend_from_slice(&bytes);
            bytes = frame;
        }
        self.stream.write_all(&bytes).and_then(|()| self.stream.flush()).map_err(|e| e.to_string())
    }

    /// The next packet.
    fn receive(&mut self) -> Result<Packet, String> {
        loop {
            match Packet::read(&mut self.mqtt, None) {
                Ok(packet) => return Ok(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(format!("{error:?}")),
            }
            let mut buffer = [0; 4096];
            let n = self.stream.read(&mut buffer).map_err(|e| e.to_string())?;
            if n == 0 {
                return Err("closed".into());
            }
            if self.websockets {
                self.raw.extend_from_slice(&buffer[..n]);
                self.unframe();
            } else {
                self.mqtt.extend_from_slice(&buffer[..n]);
            }
        }
    }

    fn unframe(&mut self) {
        while self.raw.len() >= 2 {
            let (head, n) = match self.raw[1] & 0x7f {
                126 if self.raw.len() >= 4 => {
                    (4, usize::from(u16::from_be_bytes([self.raw[2], self.raw[3]])))
                }
                126 | 127 => return,
                n => (2, usize::from(n)),
            };
            if self.raw.len() < head + n {
                return;
            }
            let frame = self.raw.split_to(head + n);
            if frame[0] & 0x0f <= 2 {
                self.mqtt.extend_from_slice(&frame[head..]);
            }
        }
    }

    /// Publishes with QoS 1; the reason of the PUBACK.
    pub fn publish(&mut self, topic: &str, payload: &str, retain: bool) -> Result<String, String> {
        self.pkid += 1;
        let mut publish =
            Publish::new(topic, QoS::AtLeastOnce, Bytes::copy_from_slice(payload.as_bytes()), None);
        (publish.pkid, publish.retain) = (self.pkid, retain);
        self.send(&Packet::Publish(publish))?;
        loop {
            match self.receive()? {
                Packet::PubAck(ack) if ack.pkid == self.pkid => return Ok(format!("{:?}", ack.reason)),
                other => self.keep(other)?,
            }
        }
    }

    pub fn subscribe(&mut self, filter: &str) -> Result<(), String> {
        self.pkid += 1;
        let mut subscribe = Subscribe::new(Filter::new(filter, QoS::AtLeastOnce), None);
        subscribe.pkid = self.pkid;
        self.send(&Packet::Subscribe(subscribe))?;
        loop {
            match self.receive()? {
                Packet::SubAck(_) => return Ok(()),
                other => self.keep(other)?,
            }
        }
    }

    /// Everything that arrives up to and including a payload.
    pub fn until(&mut self, payload: &str) -> Result<Vec<(String, String)>, String> {
        while self.stash.last().is_none_or(|(_, p)| p != payload) {
            let packet = self.receive()?;
            self.keep(packet)?;
        }
        Ok(std::mem::take(&mut self.stash))
    }

    /// The next document of a schema.
    pub fn next(&mut self, schema: &str) -> Result<serde_json::Value, String> {
        loop {
            for (_, payload) in std::mem::take(&mut self.stash) {
                let document: serde_json::Value = serde_json::from_str(&payload).unwrap_or_default();
                if document["schema"] == schema {
                    return Ok(document);
                }
            }
            let packet = self.receive()?;
            self.keep(packet)?;
        }
    }

    fn keep(&mut self, packet: Packet) -> Result<(), String> {
        match packet {
            Packet::Publish(publish) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                self.stash.push((text(&publish.topic), text(&publish.payload)));
                if publish.qos == QoS::AtLeastOnce {
                    let ack = rumqttc::v5::mqttbytes::v5::PubAck::new(publish.pkid, None);
                    self.send(&Packet::PubAck(ack))?;
                }
                Ok(())
            }
            Packet::Disconnect(reason) => Err(format!("{:?}", reason.reason_code)),
            _ => Ok(()),
        }
    }
}
