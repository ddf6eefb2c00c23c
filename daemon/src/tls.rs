//! Certificates as a listener needs them: loaded, watched, and never expired by surprise.
//!
//! BCP 195 by what rustls speaks at all: TLS 1.2 and 1.3, forward secrecy, authenticated encryption, no renegotiation,
//! no compression. Files are looked at with every connection, so a renewed certificate needs no restart; one that
//! cannot be used leaves the old one in place and says so.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use sha2::{Digest, Sha256};

use crate::clock;

const DAY_MS: u64 = 86_400_000;
/// Days ahead at which an expiry is said, and said again.
const WARNINGS_DAYS: [u64; 3] = [1, 7, 30];

/// PEM files of one listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// Authorities whose client certificates are admitted; without them none is asked for.
    pub ca: Option<PathBuf>,
    /// Our certificate, with intermediates behind it.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Revocation lists of the authorities, PEM; a client certificate that no list speaks of is then refused too.
    pub crl: Option<PathBuf>,
}

/// Who showed a certificate that was found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Common name of the subject, where there is exactly one.
    pub common_name: Option<String>,
    /// SHA-256 of the certificate, lower-case hex.
    pub sha256: String,
}

impl Holder {
    /// Who holds an X.509 certificate.
    pub fn of(der: &[u8]) -> Self {
        Holder { common_name: common_name(der), sha256: crate::hex(&Sha256::digest(der)) }
    }

    /// Whether a name in the configuration means it: its common name, or `sha256:` and the hash.
    pub fn is_called(&self, name: &str) -> bool {
        match name.strip_prefix("sha256:") {
            Some(hash) => hash.eq_ignore_ascii_case(&self.sha256),
            None => self.common_name.as_deref() == Some(name),
        }
    }
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{key}: `{path}`: {detail}")]
pub struct TlsError {
    /// `ca`, `certificate`, `key` or `crl`.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub detail: String,
}

/// A server's side of mutual TLS that follows its files.
#[derive(Debug)]
pub struct Server {
    files: Files,
    current: Mutex<(Stamp, Arc<ServerConfig>)>,
}

/// Modification times and lengths: what tells a renewed file.
type Stamp = [Option<(SystemTime, u64)>; 4];

impl Server {
    /// Loads the files once; a mistake in them is found here.
    pub fn load(files: Files) -> Result<Self, TlsError> {
        // Before the files: one that changes in between is loaded again.
        let stamp = files.stamp();
        let config = Arc::new(files.server_config()?);
        Ok(Server { files, current: Mutex::new((stamp, config)) })
    }

    /// What a new connection gets: the files as they are now, or as they last were usable.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if stamp != current.0 {
            // Remembered even where loading fails: it is said once for every change, not with every connection.
            current.0 = stamp;
            match self.files.server_config() {
                Ok(config) => {
                    log::info!(event = "certificates_reloaded"; "certificates changed and were loaded");
                    current.1 = Arc::new(config);
                }
                Err(error) => log::error!(
                    event = "certificates_refused"; "changed certificates cannot be used, the old ones stay: {error}"
                ),
            }
        }
        current.1.clone()
    }
}

impl Files {
    fn stamp(&self) -> Stamp {
        [self.ca.as_ref(), Some(&self.certificate), Some(&self.key), self.crl.as_ref()].map(|path| {
            let metadata = std::fs::metadata(path?).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    /// The client's side of mutual TLS with the same files: for a peer that we call back.
    pub fn client_config(&self) -> Result<rustls::ClientConfig, TlsError> {
        let bad = |key, path: &Path, detail: String| TlsError { key, path: path.into(), detail };
        let chain = certificates("certificate", &self.certificate)?;
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|e| bad("key", &self.key, e.to_string()))?;
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("certificate", &self.certificate, e.to_string()))?
            .with_root_certificates(match &self.ca {
                Some(ca) => roots(ca)?,
                None => RootCertStore::empty(),
            })
            .with_client_auth_cert(chain, key)
            .map_err(|e| bad("key", &self.key, e.to_string()))
    }

    fn server_config(&self) -> Result<ServerConfig, TlsError> {
        let bad = |key, path: &Path, detail: String| TlsError { key, path: path.into(), detail };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = match &self.ca {
            None => None,
            Some(ca) => {
                let mut builder =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider.clone());
                if let Some(crl) = &self.crl {
                    let lists: Result<Vec<_>, _> =
                        CertificateRevocationListDer::pem_file_iter(crl).and_then(Iterator::collect);
                    let lists = lists.map_err(|e| bad("crl", crl, e.to_string()))?;
                    if lists.is_empty() {
                        return Err(bad("crl", crl, "holds no revocation list".into()));
                    }
                    builder = builder.with_crls(lists).only_check_end_entity_revocation();
                }
                Some(builder.build().map_err(|e| bad("ca", ca, e.to_string()))?)
            }
        };
        let chain = certificates("certificate", &self.certificate)?;
        let key =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|e| bad("key", &self.key, e.to_string()))?;
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("certificate", &self.certificate, e.to_string()))?;
        let builder = match verifier {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        builder.with_single_cert(chain, key).map_err(|error| match error {
            rustls::Error::InvalidCertificate(_) if format!("{error}").contains("UnsupportedCertVersion") => {
                let mend = "is an X.509 version 1 certificate; have it signed with extensions (version 3)";
                bad("certificate", &self.certificate, mend.into())
            }
            rustls::Error::InvalidCertificate(_) => bad("certificate", &self.certificate, error.to_string()),
            _ => bad("key", &self.key, format!("does not fit the certificate: {error}")),
        })
    }
}

fn roots(ca: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in certificates("ca", ca)? {
        let bad = |e: rustls::Error| TlsError { key: "ca", path: ca.into(), detail: e.to_string() };
        roots.add(authority).map_err(bad)?;
    }
    Ok(roots)
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |detail: String| TlsError { key, path: path.into(), detail };
    let all: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|e| bad(e.to_string()));
    match all? {
        none if none.is_empty() => Err(bad("holds no certificate".into())),
        some => Ok(some),
    }
}

/// Status reason for the soonest expiry among certificate files: `certificate_expired`, or `certificate_expires:N` for
/// N = 1, 7, 30 days. A file that cannot be read or has no date is somebody else's error.
pub fn expiry_reason<'a>(paths: impl Iterator<Item = &'a Path>, now_ms: u64) -> Option<String> {
    let expiries = paths.filter_map(|path| {
        let leaf = CertificateDer::pem_file_iter(path).ok()?.next()?.ok()?;
        not_after_ms(&leaf)
    });
    reason(expiries.min()?, now_ms)
}

/// Whether an [`expiry_reason`] is trouble today; before that it is a warning.
pub fn fails_soon(reason: &str) -> bool {
    matches!(reason, "certificate_expired" | "certificate_expires:1")
}

fn reason(expiry_ms: u64, now_ms: u64) -> Option<String> {
    if expiry_ms <= now_ms {
        return Some("certificate_expired".into());
    }
    let within = |days: &&u64| expiry_ms - now_ms <= **days * DAY_MS;
    WARNINGS_DAYS.iter().find(within).map(|days| format!("certificate_expires:{days}"))
}

/// End of validity of an X.509 certificate (RFC 5280 4.1.2.5), ms since the epoch.
fn not_after_ms(der: &[u8]) -> Option<u64> {
    let (SEQUENCE, validity, _) = element(from_validity(der)?)? else { return None };
    let (kind, text, _) = element(element(validity)?.2)?;
    time_ms(kind, text)
}

/// The one common name of the subject; `None` where it has none, several, or one that is no plain text.
fn common_name(der: &[u8]) -> Option<String> {
    const OID: &[u8] = &[0x55, 0x04, 0x03];
    let (_, mut names, _) = element(element(from_validity(der)?)?.2)?;
    let mut found = None;
    while !names.is_empty() {
        let (_, mut set, rest) = element(names)?;
        names = rest;
        while !set.is_empty() {
            let (_, pair, rest) = element(set)?;
            set = rest;
            let (_, kind, value) = element(pair)?;
            if kind != OID {
                continue;
            }
            // UTF8String or PrintableString.
            let (0x0c | 0x13, text, _) = element(value)? else { return None };
            if found.replace(String::from_utf8(text.to_vec()).ok()?).is_some() {
                return None;
            }
        }
    }
    found
}

const SEQUENCE: u8 = 0x30;

/// The fields of an X.509 certificate from its validity on: validity, subject, and what follows (RFC 5280 4.1).
fn from_validity(der: &[u8]) -> Option<&[u8]> {
    const VERSION: u8 = 0xa0;
    let (_, certificate, _) = element(der)?;
    let (_, mut fields, _) = element(certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    Some(fields)
}

/// One DER element: tag, content, what follows.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], mut rest) = bytes.split_first_chunk::<2>()?;
    let length = match first {
        0..=0x7f => usize::from(first),
        0x81..=0x84 => {
            let (length, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
            rest = after;
            length.iter().fold(0, |n, b| n << 8 | usize::from(*b))
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// UTCTime `YYMMDDHHMMSSZ` (50 and later is 19xx) or GeneralizedTime `YYYYMMDDHHMMSSZ`.
fn time_ms(kind: u8, text: &[u8]) -> Option<u64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |digits: &[u8]| digits.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0'));
    let (year, rest) = match (kind, digits.len()) {
        (0x17, 12) => (number(&digits[..2]), &digits[2..]),
        (0x18, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let year = match kind {
        0x17 if year >= 50 => year + 1900,
        0x17 => year + 2000,
        _ => year,
    };
    let two = |i: usize| number(&rest[2 * i..2 * i + 2]);
    clock::ms_of_civil([year, two(0), two(1)], [two(2), two(3), two(4)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn openssl(dir: &Path, arguments: &str) {
        let output =
            Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn certificate(dir: &Path, name: &str, days: u32) {
        openssl(
            dir,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -days {days} \
                 -keyout {name}.key -out {name}.crt"
            ),
        );
    }

    #[test]
    fn the_end_of_validity_is_what_openssl_says() {
        let dir = tempfile::tempdir().unwrap();
        for days in [20, 200, 20_000] {
            certificate(dir.path(), "a", days);
            let leaf = CertificateDer::from_pem_file(dir.path().join("a.crt")).unwrap();
            let said = Command::new("openssl")
                .args(["x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in", "a.crt"])
                .current_dir(dir.path())
                .output()
                .unwrap();
            let said = String::from_utf8(said.stdout).unwrap();
            let said = said.trim().strip_prefix("notAfter=").unwrap().replace(' ', "T").replace('Z', ".000Z");
            assert_eq!(clock::rfc3339(not_after_ms(&leaf).unwrap()), said);
            let holder = Holder::of(&leaf);
            assert_eq!(holder.common_name.as_deref(), Some("a"));
            let print = Command::new("openssl")
                .args(["x509", "-noout", "-fingerprint", "-sha256", "-in", "a.crt"])
                .current_dir(dir.path())
                .output()
                .unwrap();
            let print = String::from_utf8(print.stdout).unwrap();
            let print = print.trim().rsplit_once('=').unwrap().1.replace(':', "");
            assert!(holder.is_called("a") && holder.is_called(&format!("sha256:{print}")));
            assert!(!holder.is_called("b") && !holder.is_called("sha256:") && !holder.is_called(""));
            for cut in 0..leaf.len() {
                let _ = (not_after_ms(&leaf[..cut]), common_name(&leaf[..cut]));
            }
        }
    }

    #[test]
    fn an_expiry_is_said_30_7_and_1_days_ahead() {
        let said = |days_left: u64| reason(100 * DAY_MS, (100 - days_left) * DAY_MS);
        assert_eq!(said(31), None);
        assert_eq!(said(30).as_deref(), Some("certificate_expires:30"));
        assert_eq!(said(8).as_deref(), Some("certificate_expires:30"));
        assert_eq!(said(7).as_deref(), Some("certificate_expires:7"));
        assert_eq!(said(1).as_deref(), Some("certificate_expires:1"));
        assert_eq!(said(0).as_deref(), Some("certificate_expired"));
        // It degrades the box only when it is about to.
        let soon: Vec<bool> = [30, 7, 1, 0].map(|days| fails_soon(&said(days).unwrap())).into();
        assert_eq!(soon, [false, false, true, true]);
    }

    #[test]
    fn a_renewed_certificate_is_taken_up_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        certificate(dir.path(), "a", 100);
        certificate(dir.path(), "b", 200);
        let files = Files { ca: Some(at("a.crt")), certificate: at("a.crt"), key: at("a.key"), crl: None };
        let server = Server::load(files).unwrap();
        let first = server.config();
        assert!(Arc::ptr_eq(&first, &server.config()), "nothing changed, nothing is loaded");
        // The certificate without its key, as between two writes of a renewal.
        std::fs::write(at("a.crt"), [std::fs::read(at("b.crt")).unwrap(), b"\n".to_vec()].concat()).unwrap();
        assert!(Arc::ptr_eq(&first, &server.config()));
        std::fs::write(at("a.key"), [std::fs::read(at("b.key")).unwrap(), b"\n".to_vec()].concat()).unwrap();
        assert!(!Arc::ptr_eq(&first, &server.config()));
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said_by_key_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        certificate(dir.path(), "a", 100);
        certificate(dir.path(), "b", 100);
        let load = |ca: &str, certificate: &str, key: &str| {
            let files = Files { ca: Some(at(ca)), certificate: at(certificate), key: at(key), crl: None };
            Server::load(files).map(|_| ()).unwrap_err().to_string()
        };
        assert!(load("none.crt", "a.crt", "a.key").starts_with("ca: "));
        assert!(load("a.crt", "a.key", "a.key").contains("holds no certificate"));
        assert!(load("a.crt", "a.crt", "b.key").starts_with("key: "));
    }
}
