//! An update that an engineer orders over MQTT: one signed order, checked twice.
//!
//! ```text
//!  station of role engineer --ichd.command/1--> daemon: enrolled? role? signature? for this box? in time? --> file in its
//!  state directory --> `ichd update install` as root: signature, box and time again, not done before --> the usual way
//! ```
//!
//! The order is a compact JWS (RFC 7515) with `alg: EdDSA` (RFC 8037) by one of `update.command-keys`, so neither the
//! broker nor a station nor the daemon can make one. It can ask for what the timer would do too, from another address or
//! for one version; it cannot ask for a downgrade, nor for anything while somebody waits.

use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::version::Version;
use crate::clock;
use crate::config::Site;

/// Name of the file between daemon and root.
const FILE: &str = "update-command.jws";
/// Largest order, bytes.
const BYTES_MAX: u64 = 4 << 10;
/// How long an order may live, ms; what is meant for longer is configuration.
const LIFE_MS_MAX: u64 = 7 * 86_400_000;
/// How far a signer's clock may be ahead, ms.
const AHEAD_MS: u64 = 300_000;
const HEADER: &str = r#"{"alg":"EdDSA"}"#;

/// What is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// `ichd.order/1`.
    pub schema: String,
    /// Unique; done once.
    pub order_id: String,
    /// For which box.
    pub site: String,
    /// For which box.
    pub device: String,
    /// Where the bundle is, https; absent: `update.source`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The one version that is meant; absent: whatever may be taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Wall time, RFC 3339 UTC.
    pub issued_at: String,
    /// Wall time, RFC 3339 UTC; void from then on.
    pub expires_at: String,
}

/// Why an order is void.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    /// No key may order here.
    #[error("this box takes no orders (update.command-keys is empty)")]
    NoKeys,
    /// Not a JWS, or by nobody we know.
    #[error("the order is not signed by one of update.command-keys")]
    Signature,
    /// Signed, and still no order.
    #[error("the order is unreadable: {0}")]
    Unreadable(String),
    /// Meant for another.
    #[error("the order is for device `{device}` of site `{site}`")]
    OtherBox {
        /// Device.
        device: String,
        /// Site.
        site: String,
    },
    /// Too late, too early or too long.
    #[error("the order is not valid now (it lives at most 7 days)")]
    Time,
}

impl Order {
    /// Signs; the compact JWS.
    pub fn sign(&self, key: &SigningKey) -> Result<String, serde_json::Error> {
        let payload = serde_json::to_vec(self)?;
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(HEADER), URL_SAFE_NO_PAD.encode(payload));
        let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).to_bytes());
        Ok(format!("{signed}.{signature}"))
    }

    /// Checks signature, then meaning, then box, then time.
    pub fn check(jws: &str, keys: &[VerifyingKey], site: &Site, now_wall_ms: u64) -> Result<Self, Void> {
        if keys.is_empty() {
            return Err(Void::NoKeys);
        }
        let (signed, signature) = jws.trim().rsplit_once('.').ok_or(Void::Signature)?;
        let (header, payload) = signed.split_once('.').ok_or(Void::Signature)?;
        let bytes = |text| URL_SAFE_NO_PAD.decode(text).map_err(|_| Void::Signature);
        let signature = Signature::from_slice(&bytes(signature)?).map_err(|_| Void::Signature)?;
        if !keys.iter().any(|key| key.verify_strict(signed.as_bytes(), &signature).is_ok()) {
            return Err(Void::Signature);
        }
        let unreadable = |e: serde_json::Error| Void::Unreadable(e.to_string());
        let header: serde_json::Value = serde_json::from_slice(&bytes(header)?).map_err(unreadable)?;
        if header["alg"] != "EdDSA" || header.get("crit").is_some() {
            return Err(Void::Unreadable("its header is not {\"alg\":\"EdDSA\"}".into()));
        }
        let order: Order = serde_json::from_slice(&bytes(payload)?).map_err(unreadable)?;
        if order.schema != "ichd.order/1" || order.order_id.is_empty() {
            return Err(Void::Unreadable("it is no ichd.order/1 with an order_id".into()));
        }
        if order.source.as_deref().is_some_and(|s| !s.starts_with("https://")) {
            return Err(Void::Unreadable("its source is not https".into()));
        }
        if order.version.as_deref().is_some_and(|v| Version::parse(v).is_none()) {
            return Err(Void::Unreadable("its version is not of the form 1.2.3".into()));
        }
        if (order.site.as_str(), order.device.as_str()) != (site.name.as_str(), site.device.as_str()) {
            return Err(Void::OtherBox { device: order.device, site: order.site });
        }
        let time = |text: &str| clock::parse_rfc3339(text).ok_or(Void::Time);
        let (issued, expires) = (time(&order.issued_at)?, time(&order.expires_at)?);
        let lives = issued <= now_wall_ms + AHEAD_MS
            && now_wall_ms < expires
            && expires - issued.min(expires) <= LIFE_MS_MAX;
        if lives { Ok(order) } else { Err(Void::Time) }
    }
}

/// Where the daemon leaves an order for root. Its directory belongs to the daemon: root believes nothing it finds there.
#[derive(Debug, Clone)]
pub struct Mailbox {
    keys: Vec<VerifyingKey>,
    site: Site,
    path: PathBuf,
}

impl Mailbox {
    /// In a state directory, for one box.
    pub fn new(state: &Path, site: &Site, keys: Vec<VerifyingKey>) -> Self {
        Mailbox { keys, site: site.clone(), path: state.join(FILE) }
    }

    /// The daemon leaves an order, if it is one.
    pub fn leave(&self, jws: &str, now_wall_ms: u64) -> Result<Order, LeaveError> {
        let order = Order::check(jws, &self.keys, &self.site, now_wall_ms).map_err(LeaveError::Void)?;
        let half = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file = std::fs::File::create(&half)?;
            file.write_all(jws.trim().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&half, &self.path)
        };
        write().map_err(LeaveError::Write)?;
        Ok(order)
    }

    /// Root looks: an order that holds, or why the one there does not.
    pub fn look(&self, now_wall_ms: u64) -> Option<Result<Order, Void>> {
        // No link is followed and no pipe waited for: whoever can write there may try.
        let flags = nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_NONBLOCK;
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits()).open(&self.path).ok()?;
        let mut text = String::new();
        let read = file.take(BYTES_MAX).read_to_string(&mut text);
        Some(
            read.map_err(|_| Void::Signature)
                .and_then(|_| Order::check(&text, &self.keys, &self.site, now_wall_ms)),
        )
    }

    /// Done with, whatever came of it.
    pub fn clear(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Why an order was not left.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// Not from a station that may.
    #[error("only a station that is enrolled as an engineer's may order (alert.stations)")]
    NotAllowed,
    /// It is none.
    #[error("{0}")]
    Void(Void),
    /// The disk.
    #[error("the order could not be written down")]
    Write(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Profile;
    use proptest::prelude::*;

    const NOW: &str = "2026-03-01T12:00:00Z";

    fn site() -> Site {
        Site { name: "north".into(), device: "ct-1".into(), profile: Profile::Assist }
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[5; 32])
    }

    fn order() -> Order {
        Order {
            schema: "ichd.order/1".into(),
            order_id: "o-1".into(),
            site: "north".into(),
            device: "ct-1".into(),
            source: Some("https://updates.example.org/x.raucb".into()),
            version: None,
            issued_at: "2026-03-01T11:00:00Z".into(),
            expires_at: "2026-03-02T11:00:00Z".into(),
        }
    }

    fn check(order: &Order) -> Result<Order, Void> {
        let jws = order.sign(&key()).unwrap();
        Order::check(&jws, &[key().verifying_key()], &site(), clock::parse_rfc3339(NOW).unwrap())
    }

    #[test]
    fn an_order_is_for_one_box_for_a_while_and_by_a_known_key() {
        assert_eq!(check(&order()), Ok(order()));
        assert!(matches!(check(&Order { device: "ct-2".into(), ..order() }), Err(Void::OtherBox { .. })));
        for (issued, expires) in [
            ("2026-02-20T11:00:00Z", "2026-02-21T11:00:00Z"),
            ("2026-03-01T12:10:00Z", "2026-03-02T11:00:00Z"),
            ("2026-02-25T11:00:00Z", "2026-03-30T11:00:00Z"),
            ("yesterday", "2026-03-02T11:00:00Z"),
        ] {
            let other = Order { issued_at: issued.into(), expires_at: expires.into(), ..order() };
            assert_eq!(check(&other), Err(Void::Time), "{issued} {expires}");
        }
        assert!(matches!(
            check(&Order { source: Some("/media/usb".into()), ..order() }),
            Err(Void::Unreadable(_))
        ));
        assert!(matches!(
            check(&Order { version: Some("newest".into()), ..order() }),
            Err(Void::Unreadable(_))
        ));
        let now = clock::parse_rfc3339(NOW).unwrap();
        let jws = order().sign(&key()).unwrap();
        assert_eq!(Order::check(&jws, &[], &site(), now), Err(Void::NoKeys));
        let stranger = SigningKey::from_bytes(&[6; 32]).verifying_key();
        assert_eq!(Order::check(&jws, &[stranger], &site(), now), Err(Void::Signature));
        let payload =
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(&Order { order_id: "o-2".into(), ..order() }).unwrap());
        let mut parts: Vec<&str> = jws.split('.').collect();
        parts[1] = &payload;
        assert_eq!(
            Order::check(&parts.join("."), &[key().verifying_key()], &site(), now),
            Err(Void::Signature)
        );
    }

    #[test]
    fn root_believes_nothing_that_lies_in_the_mailbox_and_follows_no_link() {
        let state = tempfile::tempdir().unwrap();
        let now = clock::parse_rfc3339(NOW).unwrap();
        let mailbox = Mailbox::new(state.path(), &site(), vec![key().verifying_key()]);
        assert_eq!(mailbox.look(now), None);
        let jws = order().sign(&key()).unwrap();
        mailbox.leave(&jws, now).unwrap();
        assert_eq!(mailbox.look(now), Some(Ok(order())));
        assert_eq!(mailbox.look(now + 2 * LIFE_MS_MAX), Some(Err(Void::Time)));
        std::fs::write(state.path().join(FILE), "forged").unwrap();
        assert_eq!(mailbox.look(now), Some(Err(Void::Signature)));
        mailbox.clear();
        std::fs::write(state.path().join("elsewhere"), &jws).unwrap();
        std::os::unix::fs::symlink(state.path().join("elsewhere"), state.path().join(FILE)).unwrap();
        assert_eq!(mailbox.look(now), None);
        assert!(mailbox.leave("a.b.c", now).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_an_order_or_void(text in ".{0,200}") {
            let _ = Order::check(&text, &[key().verifying_key()], &site(), 0);
        }
    }
}
