//! Who listens: stations as their retained status tells, and who among them is enrolled. Memory only: with a new link
//! everybody is taken for gone until the broker, or the station itself, says otherwise.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;

use super::inbound::{Presence, StationStatus};
use crate::config;

/// One station, for people who ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StationView {
    /// Topic level and certificate name.
    pub name: String,
    /// Whom it serves by enrolment; by its own word where nobody is enrolled.
    pub serves: String,
    /// Enrolled here.
    pub enrolled: bool,
    /// What it last said of itself.
    #[serde(flatten)]
    pub status: StationStatus,
}

/// The stations; share it.
#[derive(Debug, Clone)]
pub struct Stations {
    enrolled: Arc<BTreeMap<String, String>>,
    anybody: bool,
    known: Arc<Mutex<BTreeMap<String, StationStatus>>>,
}

impl Stations {
    /// Nobody is known yet.
    pub fn new(config: &config::Alert) -> Self {
        Stations {
            enrolled: Arc::new(config.stations.clone()),
            anybody: config.stations.is_empty() && config.tls.is_none(),
            known: Arc::default(),
        }
    }

    /// May it act and be believed? The broker's ACL has bound the name to a certificate already.
    pub fn admits(&self, station: &str) -> bool {
        self.anybody || self.enrolled.contains_key(station)
    }

    /// The role that it was enrolled with; what it says of itself does not count.
    pub fn enrolled_role(&self, station: &str) -> Option<&str> {
        self.enrolled.get(station).map(String::as_str)
    }

    /// Whom it serves: by enrolment, else as it says itself.
    pub fn role(&self, station: &str) -> String {
        if let Some(role) = self.enrolled.get(station) {
            return role.clone();
        }
        self.lock().get(station).map_or_else(String::new, |s| s.role.clone())
    }

    /// A status came, or was purged.
    pub fn heard(&self, station: &str, status: Option<StationStatus>) {
        match status {
            Some(status) => self.lock().insert(station.to_owned(), status),
            None => self.lock().remove(station),
        };
    }

    /// A new link to the broker, which may have forgotten who was there, and not have been told who has gone since.
    pub fn relinked(&self) {
        for status in self.lock().values_mut() {
            status.state = Presence::Offline;
        }
    }

    /// Somebody has a shift on and can be told.
    pub fn any_ready(&self) -> bool {
        self.lock().iter().any(|(name, s)| s.state == Presence::Ready && self.admits(name))
    }

    /// Somebody is linked.
    pub fn any_linked(&self) -> bool {
        self.lock().iter().any(|(name, s)| s.state != Presence::Offline && self.admits(name))
    }

    /// Stations that are linked and set up for another role than they are enrolled for: they sound when that other role
    /// is called, while their receipts count for the enrolled one.
    pub fn misplaced(&self) -> Vec<String> {
        let known = self.lock();
        let linked = known.iter().filter(|(_, s)| s.state != Presence::Offline);
        let misplaced =
            linked.filter(|(name, s)| self.enrolled.get(*name).is_some_and(|role| *role != s.role));
        misplaced.map(|(name, _)| name.clone()).collect()
    }

    /// Everybody known.
    pub fn list(&self) -> Vec<StationView> {
        let known = self.lock().clone();
        let view = |(name, status): (String, StationStatus)| StationView {
            serves: self.enrolled.get(&name).cloned().unwrap_or_else(|| status.role.clone()),
            enrolled: self.admits(&name),
            name,
            status,
        };
        known.into_iter().map(view).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, StationStatus>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: Presence) -> StationStatus {
        serde_json::from_value(
            serde_json::json!({"schema": "ichd.station/1", "state": state, "role": "viewer"}),
        )
        .unwrap()
    }

    #[test]
    fn only_enrolled_stations_count_and_their_role_is_the_enrolments() {
        let mut config = config::Alert::default();
        assert!(Stations::new(&config).admits("anybody"), "a broker on this machine without TLS");
        config.stations.insert("ward-3".into(), "nurse".into());
        let stations = Stations::new(&config);
        stations.heard("intruder", Some(status(Presence::Ready)));
        assert!(!stations.admits("intruder") && !stations.any_ready());
        stations.heard("ward-3", Some(status(Presence::Ready)));
        assert!(stations.any_ready());
        assert_eq!(stations.role("ward-3"), "nurse");
        assert_eq!(stations.misplaced(), ["ward-3"], "set up as a viewer");
        let views = serde_json::to_value(stations.list()).unwrap();
        assert_eq!((&views[1]["serves"], &views[1]["role"]), (&"nurse".into(), &"viewer".into()));
        stations.heard("ward-3", Some(status(Presence::Offline)));
        assert!(!stations.any_linked() && stations.misplaced().is_empty());
    }

    #[test]
    fn after_a_new_link_nobody_is_there_who_does_not_say_so() {
        let stations = Stations::new(&config::Alert::default());
        stations.heard("ward-3", Some(status(Presence::Ready)));
        stations.relinked();
        assert!(!stations.any_linked(), "it may have died with the broker that held its will");
        assert_eq!(stations.role("ward-3"), "viewer", "what it says may come before its status");
        stations.heard("ward-3", Some(status(Presence::Ready)));
        assert!(stations.any_ready());
    }
}
