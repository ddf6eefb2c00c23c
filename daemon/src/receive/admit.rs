//! Who may associate. Pure: no I/O, no clock.

use std::net::IpAddr;

use crate::config;
use crate::dicom::AeTitle;

/// The answer to an A-ASSOCIATE-RQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Welcome.
    Accept,
    /// Calling AE title is not in the list (rejected permanent, PS3.8 9.3.4).
    UnknownCalling,
    /// Called AE title is not ours (rejected permanent).
    UnknownCalled,
}

/// Whether an address may connect at all; an empty list admits loopback only.
pub fn peer(address: IpAddr, config: &config::Receive) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || config.peer_addresses.contains(&address)
}

/// Judges an association request by its titles.
pub fn association(calling: &str, called: &str, config: &config::Receive) -> Admission {
    let title = |text: &str| AeTitle::parse(text).ok();
    if title(called).as_ref() != Some(&config.ae_title) {
        return Admission::UnknownCalled;
    }
    if !title(calling).is_some_and(|t| config.calling_ae_titles.contains(&t)) {
        return Admission::UnknownCalling;
    }
    Admission::Accept
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
        assert_eq!(association("CT1 ", "ICHD", &config), Admission::Accept);
        assert_eq!(association("CT2", "ICHD", &config), Admission::UnknownCalling);
        assert_eq!(association("ct1", "ICHD", &config), Admission::UnknownCalling);
        assert_eq!(association("CT1", "STORE", &config), Admission::UnknownCalled);
        assert!(peer("10.1.2.3".parse().unwrap(), &config) && peer("::1".parse().unwrap(), &config));
        assert!(peer("::ffff:10.1.2.3".parse().unwrap(), &config));
        assert!(!peer("10.1.2.4".parse().unwrap(), &config));
    }
}
