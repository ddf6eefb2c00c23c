//! A request becomes a response. Pure: no socket, no file, no clock.

use std::fmt::Write as _;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::config::Config;

/// `ichd.page/1`, `GET /config.json`: what the box tells its page. Anybody may read it; no secret in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PageConfig {
    /// `ichd.page/1`.
    pub schema: &'static str,
    /// Topic level.
    pub site: String,
    /// Devices whose silence the page alarms.
    pub devices: Vec<String>,
    /// MQTT over websockets.
    pub broker_url: String,
    /// Interval of heartbeats, s; three missing ones are alarmed.
    pub heartbeat_s: u64,
    /// Interval of proofs of life, s; heartbeats of a device say their own.
    pub proof_interval_s: Option<u64>,
    /// Program version.
    pub version: &'static str,
}

/// What goes back, status to body.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// HTTP status code.
    pub status: u16,
    /// Name and value.
    pub headers: Vec<(&'static str, String)>,
    /// Empty for HEAD and for every status but 200.
    pub body: Body,
}

/// Embedded bytes cost nothing to send.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// None.
    Empty,
    /// A file of the page.
    Embedded(&'static [u8]),
    /// Made at start.
    Made(String),
}

struct File {
    path: &'static str,
    media_type: &'static str,
    bytes: &'static [u8],
}

macro_rules! file {
    ($path:literal, $name:literal, $media_type:literal) => {
        File {
            path: $path,
            media_type: $media_type,
            bytes: include_bytes!(concat!("../../station/dist/", $name)),
        }
    };
}

const FILES: [File; 9] = [
    file!("/", "index.html", "text/html; charset=utf-8"),
    file!("/station.js", "station.js", "text/javascript; charset=utf-8"),
    file!("/station.css", "station.css", "text/css; charset=utf-8"),
    file!("/tick.js", "tick.js", "text/javascript; charset=utf-8"),
    file!("/sw.js", "sw.js", "text/javascript; charset=utf-8"),
    file!("/manifest.webmanifest", "manifest.webmanifest", "application/manifest+json"),
    file!("/icon.svg", "icon.svg", "image/svg+xml"),
    file!("/icon-192.png", "icon-192.png", "image/png"),
    file!("/icon-512.png", "icon-512.png", "image/png"),
];

/// Everything the server can say, made once.
#[derive(Debug, Clone)]
pub struct Pages {
    config: String,
    policy: String,
    tls: bool,
    etags: [String; FILES.len()],
}

impl Pages {
    /// What this configuration says.
    pub fn new(config: &Config) -> Self {
        let Config { site, health, proof, station, .. } = config;
        let devices =
            if station.devices.is_empty() { vec![site.device.clone()] } else { station.devices.clone() };
        let page = PageConfig {
            schema: "ichd.page/1",
            site: site.name.clone(),
            devices,
            broker_url: station.broker_url.clone(),
            heartbeat_s: health.heartbeat_s,
            proof_interval_s: (proof.interval_s > 0).then_some(proof.interval_s),
            version: crate::VERSION,
        };
        let config = serde_json::to_string(&page).unwrap_or_default();
        let (policy, tls) = (policy(&station.broker_url), station.tls.is_some());
        Pages { config, policy, tls, etags: FILES.each_ref().map(etag) }
    }

    /// Answers one request; `none_match` is the If-None-Match header.
    pub fn answer(&self, method: &str, path: &str, none_match: Option<&str>) -> Response {
        let head = match method {
            "GET" => false,
            "HEAD" => true,
            _ => return self.respond(405, vec![("allow", "GET, HEAD".into())], Body::Empty),
        };
        let path = path.split('?').next().unwrap_or("");
        let body = |body| if head { Body::Empty } else { body };
        if path == "/config.json" {
            let headers = vec![
                ("content-type", "application/json".into()),
                ("content-length", self.config.len().to_string()),
                ("cache-control", "no-store".into()),
            ];
            return self.respond(200, headers, body(Body::Made(self.config.clone())));
        }
        let Some((file, etag)) = FILES.iter().zip(&self.etags).find(|(file, _)| file.path == path) else {
            return self.respond(404, vec![("cache-control", "no-store".into())], Body::Empty);
        };
        // Kept by the browser, asked about each time: an updated box has an updated page at once.
        let mut headers = vec![("etag", etag.clone()), ("cache-control", "no-cache".into())];
        if none_match.is_some_and(|m| m.split(',').any(|tag| tag.trim() == etag)) {
            return self.respond(304, headers, Body::Empty);
        }
        headers.push(("content-type", file.media_type.into()));
        headers.push(("content-length", file.bytes.len().to_string()));
        self.respond(200, headers, body(Body::Embedded(file.bytes)))
    }

    fn respond(&self, status: u16, mut headers: Vec<(&'static str, String)>, body: Body) -> Response {
        headers.extend([
            ("content-security-policy", self.policy.clone()),
            ("x-content-type-options", "nosniff".into()),
            ("referrer-policy", "no-referrer".into()),
            ("cross-origin-opener-policy", "same-origin".into()),
            ("cross-origin-resource-policy", "same-origin".into()),
            (
                "permissions-policy",
                "camera=(), microphone=(), geolocation=(), screen-wake-lock=(self)".into(),
            ),
        ]);
        if self.tls {
            headers.push(("strict-transport-security", "max-age=31536000".into()));
        }
        Response { status, headers, body }
    }
}

/// Scripts, styles and pictures from here alone; connections to here and to the broker.
fn policy(broker_url: &str) -> String {
    let mut policy =
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; worker-src 'self'; \
         manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; connect-src 'self'"
            .to_owned();
    let _ = write!(policy, " {broker_url}");
    // Where the page lets the browser choose a certificate before it opens the websocket.
    if let Some(broker) = broker_url.strip_prefix("wss") {
        let _ = write!(policy, " https{broker}");
    }
    policy
}

fn etag(file: &File) -> String {
    format!("\"{}\"", &crate::hex(&Sha256::digest(file.bytes))[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(tls: bool) -> Pages {
        Pages::new(&config_of(tls))
    }

    fn config_of(tls: bool) -> Config {
        let tls = if tls { "[station.tls]\ncertificate = \"c\"\nkey = \"k\"\n" } else { "" };
        Config::parse(&format!(
            "[site]\nname = \"north\"\ndevice = \"ct-1\"\nprofile = \"assist\"\n\
             [station]\nlisten = \"127.0.0.1:8443\"\nbroker-url = \"wss://box:8884\"\n{tls}",
        ))
        .unwrap()
    }

    fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
        response.headers.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn every_answer_carries_the_headers_that_keep_the_page_honest() {
        let pages = pages(true);
        for (method, path, status) in [
            ("GET", "/", 200),
            ("GET", "/station.js?x=1", 200),
            ("HEAD", "/config.json", 200),
            ("GET", "/../ichd.db", 404),
            ("GET", "/index.html", 404),
            ("POST", "/", 405),
        ] {
            let response = pages.answer(method, path, None);
            assert_eq!(response.status, status, "{method} {path}");
            let policy = header(&response, "content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
            assert!(policy.ends_with("connect-src 'self' wss://box:8884 https://box:8884"), "{policy}");
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(header(&response, "x-content-type-options"), Some("nosniff"));
            assert!(header(&response, "strict-transport-security").is_some());
        }
        assert_eq!(
            header(&super::tests::pages(false).answer("GET", "/", None), "strict-transport-security"),
            None
        );
    }

    #[test]
    fn the_page_is_told_where_to_listen_and_no_secret() {
        let response = pages(true).answer("GET", "/config.json", None);
        let Body::Made(text) = &response.body else { panic!("no body") };
        let config: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            config,
            serde_json::json!({
                "schema": "ichd.page/1", "site": "north", "devices": ["ct-1"], "broker_url": "wss://box:8884",
                "heartbeat_s": 20, "proof_interval_s": config_of(false).proof.interval_s, "version": crate::VERSION,
            })
        );
        assert_eq!(header(&response, "cache-control"), Some("no-store"));
    }

    #[test]
    fn a_file_that_the_browser_has_is_not_sent_again() {
        let pages = pages(true);
        let first = pages.answer("GET", "/station.js", None);
        let etag = header(&first, "etag").unwrap();
        assert_eq!(pages.answer("GET", "/station.js", Some(etag)).status, 304);
        assert_eq!(pages.answer("GET", "/station.js", Some("\"other\"")).status, 200);
    }

    /// A page that asks the outside for anything is blank in a hospital without internet.
    #[test]
    fn the_page_needs_nothing_from_outside() {
        let text = |path| {
            let file = FILES.iter().find(|f| f.path == path).unwrap();
            std::str::from_utf8(file.bytes).unwrap()
        };
        for path in ["/", "/station.css", "/manifest.webmanifest", "/sw.js", "/tick.js"] {
            assert!(!text(path).contains("http"), "{path} names another host");
        }
        // All that the shell names is there.
        for name in ["/station.js", "/station.css", "/manifest.webmanifest", "/icon.svg", "/icon-192.png"] {
            assert!(text("/").contains(name), "{name}");
        }
        for file in &FILES {
            assert!(file.path == "/sw.js" || text("/sw.js").contains(file.path), "{} is not kept", file.path);
        }
    }
}
