//! The site's own certificate authority: ECDSA P-256, one level, no network.
//!
//! Times are chosen so that nothing ends by surprise at night. Certificates of people and devices begin in 2020: a box
//! whose clock battery died comes up years in the past and must still reach its broker. A revocation list and the
//! authority last as long as each other, because OpenSSL refuses everybody once a list is out of date. Only server
//! certificates are short, since browsers insist.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use ring::rand::{SecureRandom, SystemRandom};

use super::{EnrolError, SERVER_DAYS};
use crate::hex;

const DAY_MS: u64 = 86_400_000;
/// The authority and its lists end on 1 January of this year.
const LAST_YEAR: i32 = 2056;
/// A server certificate begins this long ago: clocks of tablets are not all right.
const BACKDATE_MS: u64 = 14 * DAY_MS;

/// A certificate for somebody, with its key; PEM.
pub struct Made {
    pub certificate: String,
    pub key: String,
    /// Hex.
    pub serial: String,
    pub expires_ms: u64,
}

/// The authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

fn failed<E: std::fmt::Display>(doing: &'static str) -> impl Fn(E) -> EnrolError {
    move |e| EnrolError::Certificate { doing, detail: e.to_string() }
}

fn params(site: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "ichd");
    params.distinguished_name.push(DnType::CommonName, format!("ichd site {site}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::Sha256;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(LAST_YEAR, 1, 1);
    params
}

impl Authority {
    /// A new authority with a new key.
    pub fn make(site: &str) -> Result<Self, EnrolError> {
        let key = KeyPair::generate().map_err(failed("make the authority's key"))?;
        let mut params = params(site);
        params.serial_number = Some(SerialNumber::from_slice(&serial()?));
        let certificate = params.self_signed(&key).map_err(failed("make the authority's certificate"))?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), certificate })
    }

    /// The authority of a folder.
    pub fn load(site: &str, certificate: String, key_pem: &str) -> Result<Self, EnrolError> {
        let key = KeyPair::from_pem(key_pem).map_err(failed("read the authority's key"))?;
        Ok(Authority { issuer: Issuer::new(params(site), key), certificate })
    }

    /// PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// PKCS #8 PEM.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A client certificate: `CN = name`, `OU = role`.
    pub fn client(&self, name: &str, role: &str, days: u32, now_ms: u64) -> Result<Made, EnrolError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationalUnitName, role);
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        self.sign(params, now_ms + u64::from(days) * DAY_MS)
    }

    /// A server certificate for names and addresses; certificate, key, end in ms since the epoch.
    pub fn server(&self, names: &[String], now_ms: u64) -> Result<(String, String, u64), EnrolError> {
        let mut all = names.to_vec();
        all.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
        all.dedup();
        let mut params = CertificateParams::new(all).map_err(failed("name the server"))?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("localhost", |n| n.as_str()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = at(now_ms.saturating_sub(BACKDATE_MS));
        let end_ms = now_ms + u64::from(SERVER_DAYS) * DAY_MS - BACKDATE_MS - DAY_MS;
        let made = self.sign(params, end_ms)?;
        Ok((made.certificate, made.key, made.expires_ms))
    }

    fn sign(&self, mut params: CertificateParams, expires_ms: u64) -> Result<Made, EnrolError> {
        let serial = serial()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params.not_after = at(expires_ms);
        let key = KeyPair::generate().map_err(failed("make a key"))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed("sign a certificate"))?;
        Ok(Made {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            serial: hex(&serial),
            expires_ms,
        })
    }

    /// The revocation list over serial numbers (hex) and times.
    pub fn revocation_list(
        &self,
        revoked: &[(String, u64)],
        number: u64,
        now_ms: u64,
    ) -> Result<String, EnrolError> {
        let revoked_certs = revoked
            .iter()
            .map(|(serial, at_ms)| RevokedCertParams {
                serial_number: SerialNumber::from_slice(&unhex(serial)),
                revocation_time: at(*at_ms),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let params = CertificateRevocationListParams {
            // A broker whose clock is behind would refuse everybody over a list from the future.
            this_update: at(now_ms.saturating_sub(BACKDATE_MS)),
            next_update: date_time_ymd(LAST_YEAR, 1, 1),
            crl_number: SerialNumber::from_slice(&number.to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).map_err(failed("sign the revocation list"))?;
        list.pem().map_err(failed("write the revocation list"))
    }
}

/// 120 random bits in letters and digits that are not mistaken for one another, in groups to type from paper.
pub fn password() -> Result<String, EnrolError> {
    const DIGITS: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz023456789";
    let bytes: [u8; 24] = random()?;
    let groups: Vec<String> = bytes
        .chunks(4)
        .map(|group| group.iter().map(|b| char::from(DIGITS[usize::from(b & 31)])).collect())
        .collect();
    Ok(groups.join("-"))
}

/// Bytes from the system.
pub fn random<const N: usize>() -> Result<[u8; N], EnrolError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(failed("read randomness"))?;
    Ok(bytes)
}

/// 127 random bits; positive, and never shortened by a leading zero byte.
fn serial() -> Result<[u8; 16], EnrolError> {
    let mut serial: [u8; 16] = random()?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

fn at(ms: u64) -> time::OffsetDateTime {
    date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(ms / 1000)
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).filter_map(|i| u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()).collect()
}
