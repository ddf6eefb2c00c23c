//! Who may associate. Pure: no I/O, no clock.

use std::net::IpAddr;

use crate::config;
use crate::dicom::AeTitle;
use crate::tls::Holder;

/// The answer to an A-ASSOCIATE-RQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Welcome.
    Accept,
    /// Calling AE title is not in the list (rejected permanent, PS3.8 9.3.4).
    UnknownCalling,
    /// Called AE title is not ours (rejected permanent).
    UnknownCalled,
    /// This title must come over TLS (rejected permanent).
    PlaintextRefused,
    /// The certificate is good, and not one that may use this title (rejected permanent).
    CertificateMismatch,
}

/// Whether an address may connect at all; an empty list admits loopback only.
pub fn peer(address: IpAddr, config: &config::Receive) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || config.peer_addresses.contains(&address)
}

/// Judges an association request by its titles, and by whether and with whose certificate it came over mutual TLS.
/// A proof of life comes from this machine, and only from it.
pub fn association(
    calling: &str,
    called: &str,
    is_secure: bool,
    holder: Option<&Holder>,
    is_own: bool,
    config: &config::Receive,
) -> Admission {
    let title = |text: &str| AeTitle::parse(text).ok();
    if title(called).as_ref() != Some(&config.ae_title) {
        return Admission::UnknownCalled;
    }
    if is_own && config.proof_ae_title.is_some() && title(calling) == config.proof_ae_title {
        return Admission::Accept;
    }
    let Some(calling) = title(calling).filter(|t| config.calling_ae_titles.contains(t)) else {
        return Admission::UnknownCalling;
    };
    match &config.tls {
        Some(tls) if !is_secure && !tls.plaintext_ae_titles.contains(&calling) => Admission::PlaintextRefused,
        Some(tls) if is_secure && !tls.ae_titles.is_empty() => {
            let may_use = |(name, titles): (&String, &Vec<AeTitle>)| {
                holder.is_some_and(|h| h.is_called(name)) && titles.contains(&calling)
            };
            if tls.ae_titles.iter().any(may_use) { Admission::Accept } else { Admission::CertificateMismatch }
        }
        _ => Admission::Accept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_titles_and_addresses_are_admitted() {
        let config = config::Receive {
            calling_ae_titles: vec![AeTitle::parse("CT1").unwrap()],
            peer_addresses: vec!["10.1.2.3".parse().unwrap()],
            ..Default::default()
        };
        for secure in [true, false] {
            assert_eq!(association("CT1 ", "ICHD", secure, None, false, &config), Admission::Accept);
            assert_eq!(association("CT2", "ICHD", secure, None, false, &config), Admission::UnknownCalling);
            assert_eq!(association("ct1", "ICHD", secure, None, false, &config), Admission::UnknownCalling);
            assert_eq!(association("CT1", "STORE", secure, None, false, &config), Admission::UnknownCalled);
        }
        assert!(peer("10.1.2.3".parse().unwrap(), &config) && peer("::1".parse().unwrap(), &config));
        assert!(peer("::ffff:10.1.2.3".parse().unwrap(), &config));
        assert!(!peer("10.1.2.4".parse().unwrap(), &config));
    }

    #[test]
    fn a_proof_of_life_comes_from_this_machine_only() {
        let proof_ae_title = Some(AeTitle::parse("ICHD_PROOF").unwrap());
        let config = config::Receive { proof_ae_title, ..Default::default() };
        assert_eq!(association("ICHD_PROOF", "ICHD", false, None, true, &config), Admission::Accept);
        assert_eq!(association("ICHD_PROOF", "ICHD", true, None, false, &config), Admission::UnknownCalling);
    }

    #[test]
    fn with_tls_only_the_named_titles_may_come_in_plaintext() {
        let title = |t| AeTitle::parse(t).unwrap();
        let tls = config::ReceiveTls {
            listen: "127.0.0.1:2762".parse().unwrap(),
            ca: "ca".into(),
            certificate: "certificate".into(),
            key: "key".into(),
            plaintext_ae_titles: vec![title("OLD")],
            crl: None,
            ae_titles: Default::default(),
        };
        let calling_ae_titles = vec![title("CT1"), title("OLD")];
        let config = config::Receive { calling_ae_titles, tls: Some(tls), ..Default::default() };
        assert_eq!(association("CT1", "ICHD", true, None, false, &config), Admission::Accept);
        assert_eq!(association("CT1", "ICHD", false, None, false, &config), Admission::PlaintextRefused);
        assert_eq!(association("OLD", "ICHD", false, None, false, &config), Admission::Accept);
        assert_eq!(association("CT2", "ICHD", false, None, false, &config), Admission::UnknownCalling);
    }

    #[test]
    fn a_certificate_may_use_the_titles_of_its_holder_and_no_other() {
        let title = |t| AeTitle::parse(t).unwrap();
        let holder = |name: &str| Holder { common_name: Some(name.into()), sha256: "ab".repeat(32) };
        let mut tls = config::ReceiveTls {
            listen: "127.0.0.1:2762".parse().unwrap(),
            ca: "ca".into(),
            certificate: "certificate".into(),
            key: "key".into(),
            plaintext_ae_titles: vec![],
            crl: None,
            ae_titles: [("ct1".to_owned(), vec![title("CT1")])].into(),
        };
        let calling_ae_titles = vec![title("CT1"), title("CT2")];
        let config = |tls: &config::ReceiveTls| config::Receive {
            calling_ae_titles: calling_ae_titles.clone(),
            tls: Some(tls.clone()),
            ..Default::default()
        };
        let judged = |calling: &str, holder: Option<&Holder>, config: &config::Receive| {
            association(calling, "ICHD", true, holder, false, config)
        };
        assert_eq!(judged("CT1", Some(&holder("ct1")), &config(&tls)), Admission::Accept);
        assert_eq!(judged("CT2", Some(&holder("ct1")), &config(&tls)), Admission::CertificateMismatch);
        assert_eq!(judged("CT1", Some(&holder("ct2")), &config(&tls)), Admission::CertificateMismatch);
        assert_eq!(judged("CT1", None, &config(&tls)), Admission::CertificateMismatch);
        tls.ae_titles.insert(format!("sha256:{}", "AB".repeat(32)), vec![title("CT2")]);
        assert_eq!(judged("CT2", Some(&holder("ct2")), &config(&tls)), Admission::Accept);
        tls.ae_titles.clear();
        assert_eq!(judged("CT2", Some(&holder("ct1")), &config(&tls)), Admission::Accept);
    }
}
