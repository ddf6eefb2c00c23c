//! Compact JWE with a shared key (RFC 7516; `alg: dir`, `enc: A256GCM`) and the JWK Set (RFC 7517) that holds it.
//!
//! ```text
//! base64url(header) . (no encrypted key) . base64url(96-bit nonce) . base64url(ciphertext) . base64url(tag)
//! ```
//!
//! The header's text is the additional data. The first key of a set seals; the others only name what was sealed before a
//! rotation. A page reads it with WebCrypto: `importKey("jwk", ...)`, `decrypt({name: "AES-GCM", iv, additionalData})`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// Keys that a rotation keeps, the new one included.
const KEYS_MAX: usize = 4;

/// A JWK Set as it stands in the file.
#[derive(Serialize, Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Jwk {
    kty: String,
    kid: String,
    alg: String,
    k: String,
}

/// Keys to seal with; prints no key.
pub struct KeySet {
    kid: String,
    key: LessSafeKey,
    random: SystemRandom,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeySet").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Sealing failed; the reason holds neither key nor text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SealError(&'static str);

impl KeySet {
    /// Takes the first key of a JWK Set. The message never holds a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        // serde_json quotes what it found; a key could be in it.
        let set: Jwks = serde_json::from_str(text).map_err(|e| {
            format!("is no JWK Set with kty, kid, alg and k (line {}, column {})", e.line(), e.column())
        })?;
        let first = set.keys.into_iter().next().ok_or("holds no key")?;
        if first.kty != "oct" || first.alg != "A256GCM" {
            return Err("begins with a key that is not `oct` for `A256GCM`".into());
        }
        let bytes =
            URL_SAFE_NO_PAD.decode(first.k.as_bytes()).map_err(|_| "holds a key that is no base64url")?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| "holds a key that has not 256 bits")?;
        Ok(KeySet { kid: first.kid, key: LessSafeKey::new(key), random: SystemRandom::new() })
    }

    /// Seals a text under the first key with a random nonce.
    pub fn seal(&self, text: &[u8]) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(|_| SealError("no randomness"))?;
        self.seal_with(text, nonce)
    }

    fn seal_with(&self, text: &[u8], nonce: [u8; NONCE_LEN]) -> Result<String, SealError> {
        let header = serde_json::json!({"alg": "dir", "cty": "json", "enc": "A256GCM", "kid": self.kid});
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        let mut bytes = text.to_vec();
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(header.as_bytes()),
                &mut bytes,
            )
            .map_err(|_| SealError("AES-GCM refused"))?;
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        Ok(format!("{header}..{}.{}.{}", encode(&nonce), encode(&bytes), encode(tag.as_ref())))
    }
}

/// A set with a new first key; older ones stay for readers. `kid` must be new.
pub fn rotated(old: Option<&str>, kid: &str) -> Result<String, String> {
    let mut set = match old {
        Some(text) => serde_json::from_str(text).map_err(|_| "the set there is no JWK Set")?,
        None => Jwks { keys: vec![] },
    };
    if set.keys.iter().any(|k| k.kid == kid) {
        return Err(format!("a key `{kid}` is there already"));
    }
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| "no randomness")?;
    let new =
        Jwk { kty: "oct".into(), kid: kid.into(), alg: "A256GCM".into(), k: URL_SAFE_NO_PAD.encode(key) };
    set.keys.insert(0, new);
    set.keys.truncate(KEYS_MAX);
    serde_json::to_string_pretty(&set).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &str = r#"{"keys":[{"kty":"oct","kid":"2026-11","alg":"A256GCM","k":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}]}"#;

    /// Made by Node's WebCrypto from the same key, nonce and text.
    const VECTOR: &str = "eyJhbGciOiJkaXIiLCJjdHkiOiJqc29uIiwiZW5jIjoiQTI1NkdDTSIsImtpZCI6IjIwMjYtMTEifQ..BwcHBwcHBwcHBwcH.dEjIPQJq9c7kzVvBzgW71v8UyDLM1fw.AnQUr6k-8fZkBdPihqlEJg";

    #[test]
    fn a_known_text_seals_to_what_webcrypto_makes_of_it() {
        let keys = KeySet::parse(SET).unwrap();
        let sealed = keys.seal_with(br#"{"name":"PHANTOM^HEAD"}"#, [7; NONCE_LEN]).unwrap();
        assert_eq!(sealed, VECTOR);
    }

    #[test]
    fn no_two_texts_share_a_nonce() {
        let keys = KeySet::parse(SET).unwrap();
        let (a, b) = (keys.seal(b"x").unwrap(), keys.seal(b"x").unwrap());
        assert_ne!(a, b);
        assert_eq!(a.split('.').map(str::len).collect::<Vec<_>>()[1..3], [0, 16]);
    }

    #[test]
    fn what_is_wrong_with_a_set_is_said_without_its_keys() {
        for (text, wrong) in [
            ("secret-k", "no JWK Set"),
            (r#"{"keys":[]}"#, "no key"),
            (r#"{"keys":[{"kty":"RSA","kid":"a","alg":"A256GCM","k":"secret-k"}]}"#, "not `oct`"),
            (r#"{"keys":[{"kty":"oct","kid":"a","alg":"A256GCM","k":"c2VjcmV0LWs"}]}"#, "256 bits"),
            (r#"{"keys":[{"kty":"oct","kid":"a","alg":"A256GCM","k":"secret/k"}]}"#, "base64url"),
            (r#"{"keys":[{"kty":"oct","kid":"a","alg":"A256GCM","k":["secret-k"]}]}"#, "no JWK Set"),
        ] {
            let said = KeySet::parse(text).unwrap_err();
            assert!(said.contains(wrong) && !said.contains("secret") && !said.contains("c2Vj"), "{said}");
        }
        assert_eq!(format!("{:?}", KeySet::parse(SET).unwrap()), r#"KeySet { kid: "2026-11", .. }"#);
    }

    #[test]
    fn a_rotation_puts_the_new_key_first_and_keeps_the_old() {
        let mut set = rotated(None, "k0").unwrap();
        assert!(rotated(Some(&set), "k0").is_err());
        for n in 1..6 {
            set = rotated(Some(&set), &format!("k{n}")).unwrap();
        }
        let kids: Vec<String> =
            serde_json::from_str::<Jwks>(&set).unwrap().keys.into_iter().map(|k| k.kid).collect();
        assert_eq!(kids, ["k5", "k4", "k3", "k2"]);
        assert_eq!(KeySet::parse(&set).unwrap().kid, "k5");
    }
}
