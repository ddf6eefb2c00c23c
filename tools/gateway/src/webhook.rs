//! Signed webhook: JSON over POST, with a signature that proves sender, content and age.
//!
//! `X-Ichd-Signature: t=<seconds>,v1=<hex>` where the hex is HMAC-SHA256 under the shared secret over
//! `<seconds>.<body>`. A receiver recomputes it, compares in constant time, refuses what is older than some minutes, and
//! drops a `X-Ichd-Delivery` that it has had.

use ring::hmac;
use serde_json::json;

use crate::event::Event;

/// Body of an event.
pub fn body(event: &Event) -> String {
    json!({"schema": "ichd.webhook/1", "id": event.id, "change": event.change, "alert": event.alert})
        .to_string()
}

/// Value of `X-Ichd-Signature`.
pub fn signature(secret: &[u8], seconds: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, format!("{seconds}.{body}").as_bytes());
    let hex: String = tag.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    format!("t={seconds},v1={hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_hmac_sha256() {
        // printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
        let signed = signature(b"secret", 1_700_000_000, "{}");
        assert_eq!(
            signed,
            "t=1700000000,v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
        );
    }
}
