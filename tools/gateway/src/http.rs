//! One POST, judged: taken, later, or never.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::Agent;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Whole request, connection included.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What became of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The target has it.
    Taken,
    /// Not now; the same again later.
    Later(String),
    /// The target will never take this one.
    Never(String),
}

/// How to reach an HTTP target.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Http {
    /// Where to POST; `https`, or `http` on this machine.
    pub url: String,
    /// Authority of the hospital, PEM; without it the public ones are trusted.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// File with a bearer token.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
}

/// A target ready to be told. Without `Debug`: it holds a token.
pub struct Client {
    agent: Agent,
    url: String,
    token: Option<String>,
}

impl Client {
    /// Reads certificate and token; connects to nothing.
    pub fn new(http: &Http) -> Result<Self, String> {
        let here = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
        let local = here.iter().any(|h| {
            http.url.strip_prefix(h).is_some_and(|rest| rest.is_empty() || rest.starts_with([':', '/']))
        });
        if !http.url.starts_with("https://") && !local {
            return Err(format!("url `{}` leaves this machine unencrypted; use https", http.url));
        }
        let mut tls = TlsConfig::builder();
        if let Some(path) = &http.ca {
            let pem = read(path)?;
            let ca =
                Certificate::from_pem(pem.as_bytes()).map_err(|e| format!("`{}`: {e}", path.display()))?;
            tls = tls.root_certs(RootCerts::new_with_certs(&[ca]));
        }
        let agent = Agent::config_builder()
            .tls_config(tls.build())
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .max_redirects(0)
            .build()
            .into();
        let token = http.token_file.as_deref().map(read).transpose()?.map(|t| t.trim().to_owned());
        Ok(Client { agent, url: http.url.clone(), token })
    }

    /// Posts a body.
    pub fn post(&self, content_type: &str, headers: &[(&str, String)], body: &str) -> Outcome {
        let mut request = self.agent.post(&self.url).header("Content-Type", content_type);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        match request.send(body) {
            Ok(response) => judge(response.status().as_u16()),
            Err(error) => Outcome::Later(error.to_string()),
        }
    }
}

/// A status that blames this one message is final; a wrong token, address or proxy is a person's to mend, and the alert
/// waits for that.
fn judge(status: u16) -> Outcome {
    match status {
        200..=299 => Outcome::Taken,
        // 412: several resources carry the identifier that a conditional create asks for; it is there.
        400 | 405 | 406 | 409 | 410 | 412 | 413 | 415 | 422 => Outcome::Never(format!("status {status}")),
        _ => Outcome::Later(format!("status {status}")),
    }
}

/// A file's text; the message names the file.
pub fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("failed to read `{}`: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_leaves_the_machine() {
        let new = |url: &str| Client::new(&Http { url: url.into(), ca: None, token_file: None }).is_ok();
        assert!(
            new("https://fhir.example/Communication")
                && new("http://127.0.0.1:8080/x")
                && new("http://localhost/x")
        );
        assert!(!new("http://fhir.example/x") && !new("http://127.0.0.1.example/x") && !new("ftp://x"));
    }

    #[test]
    fn a_wrong_token_waits_and_a_wrong_message_does_not() {
        assert_eq!(judge(201), Outcome::Taken);
        assert!([401, 403, 404, 302, 429, 500, 503].iter().all(|s| matches!(judge(*s), Outcome::Later(_))));
        assert!([400, 412, 413, 422].iter().all(|s| matches!(judge(*s), Outcome::Never(_))));
    }
}
