//! When the box may change, and which bundle it may take. Pure: told the time and the situation, it answers with a
//! reason. It writes nothing, asks nobody and reads no clock.

use std::fmt;

use serde::Serialize;

use super::version::Version;

/// Part of the day in which the box may change, minutes after midnight UTC; may span midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    from_min: u16,
    to_min: u16,
}

impl Window {
    /// Parses `HH:MM-HH:MM`; the same time twice is the whole day.
    pub fn parse(text: &str) -> Option<Self> {
        let time = |text: &str| {
            let (h, m) = text.split_once(':').filter(|(h, m)| h.len() == 2 && m.len() == 2)?;
            let (h, m): (u16, u16) = (h.parse().ok()?, m.parse().ok()?);
            (h < 24 && m < 60).then_some(h * 60 + m)
        };
        let (from, to) = text.split_once('-')?;
        Some(Window { from_min: time(from)?, to_min: time(to)? })
    }

    /// Whether a wall time lies in it.
    pub fn holds(self, wall_ms: u64) -> bool {
        let now_min = u16::try_from(wall_ms / 60_000 % 1440).unwrap_or(0);
        if self.from_min < self.to_min {
            (self.from_min..self.to_min).contains(&now_min)
        } else {
            now_min >= self.from_min || now_min < self.to_min
        }
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (from, to) = (self.from_min, self.to_min);
        write!(f, "{:02}:{:02}-{:02}:{:02} UTC", from / 60, from % 60, to / 60, to % 60)
    }
}

/// What the box is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Situation {
    /// Alerts for which no person has answered.
    pub open_alerts: u64,
    /// Series that arrive, wait or are being read.
    pub open_series: u64,
    /// The state could not be read: nobody knows who waits.
    pub unknown: Option<String>,
    /// The running slot has still to prove itself: the other one is what the box would go back to.
    pub on_trial: bool,
}

/// Why the box must not change now. It asks again later; nothing is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Hold {
    /// Somebody may be about to answer.
    AlertOpen {
        /// How many.
        count: u64,
    },
    /// A patient's images are on their way through.
    StudyOpen {
        /// Series.
        count: u64,
    },
    /// Outside the maintenance window.
    OutsideWindow {
        /// The window.
        window: String,
    },
    /// Nobody knows whether somebody waits.
    StateUnknown {
        /// What could not be read.
        detail: String,
    },
    /// Writing the other slot would take away what the box goes back to.
    OnTrial,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Hold::AlertOpen { count: 1 } => f.write_str("1 alert waits for a person"),
            Hold::AlertOpen { count } => write!(f, "{count} alerts wait for a person"),
            Hold::StudyOpen { count: 1 } => f.write_str("1 series arrives or is being read"),
            Hold::StudyOpen { count } => write!(f, "{count} series arrive or are being read"),
            Hold::OutsideWindow { window } => write!(f, "outside the maintenance window {window}"),
            Hold::StateUnknown { detail } => write!(f, "cannot tell whether somebody waits: {detail}"),
            Hold::OnTrial => f.write_str("the running slot has not passed its proof of life yet"),
        }
    }
}

/// Every reason why the box must not change at this moment; empty means it may.
pub fn holds(situation: &Situation, window: Option<Window>, wall_ms: u64) -> Vec<Hold> {
    let mut holds = Vec::new();
    if let Some(detail) = &situation.unknown {
        holds.push(Hold::StateUnknown { detail: detail.clone() });
    }
    if situation.open_alerts > 0 {
        holds.push(Hold::AlertOpen { count: situation.open_alerts });
    }
    if situation.open_series > 0 {
        holds.push(Hold::StudyOpen { count: situation.open_series });
    }
    if situation.on_trial {
        holds.push(Hold::OnTrial);
    }
    if let Some(window) = window.filter(|w| !w.holds(wall_ms)) {
        holds.push(Hold::OutsideWindow { window: window.to_string() });
    }
    holds
}

/// What a bundle says of itself, its signature checked by RAUC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bundle {
    /// For which machines.
    pub compatible: String,
    /// Version.
    pub version: String,
    /// SHA-256 of its manifest, where RAUC says it (the newer ones do).
    #[serde(skip)]
    pub manifest_hash: Option<String>,
}

/// What the box is, as far as a bundle is concerned.
#[derive(Debug, Clone, Default)]
pub struct Here {
    /// RAUC's compatible string.
    pub compatible: String,
    /// Version of the slot that runs.
    pub running: Option<Version>,
    /// Version of the other slot, if that slot did not prove itself.
    pub failed: Option<Version>,
}

/// Why a bundle is not taken, now or ever.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Made for another machine.
    #[error("the bundle is for `{bundle}`, this box is `{here}`; take the bundle of this machine")]
    Compatible {
        /// Bundle's.
        bundle: String,
        /// Ours.
        here: String,
    },
    /// Its version cannot be compared.
    #[error("the bundle's version `{0}` is not of the form 1.2.3; it cannot be told from an older one")]
    Version(String),
    /// The same version runs already.
    #[error("version {0} runs already")]
    Same(Version),
    /// Older than what runs.
    #[error(
        "version {bundle} is older than the running {running}; `--allow-downgrade` takes it all the same"
    )]
    Older {
        /// Bundle's.
        bundle: String,
        /// Ours.
        running: String,
    },
    /// An order means another version.
    #[error("the bundle is version {bundle}, ordered is {ordered}")]
    NotOrdered {
        /// Bundle's.
        bundle: String,
        /// The order's.
        ordered: String,
    },
    /// It was here and did not prove itself.
    #[error("version {0} was installed here and failed its proof of life; `--again` tries it once more")]
    Failed(Version),
}

impl Refusal {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::Compatible { .. } => "incompatible",
            Refusal::Version(_) => "version_unreadable",
            Refusal::Same(_) => "up_to_date",
            Refusal::Older { .. } => "downgrade",
            Refusal::NotOrdered { .. } => "not_ordered",
            Refusal::Failed(_) => "failed_before",
        }
    }
}

/// What a person asked for beside the rules.
#[derive(Debug, Clone, Default)]
pub struct Insist {
    /// Take an older version.
    pub downgrade: bool,
    /// Take a version that failed here.
    pub again: bool,
    /// Take this version only.
    pub only: Option<Version>,
}

/// Whether a bundle may be taken: compatible first, then newer than what runs, then not one that failed here.
pub fn take(bundle: &Bundle, here: &Here, insist: &Insist) -> Result<Version, Refusal> {
    if bundle.compatible != here.compatible {
        return Err(Refusal::Compatible { bundle: bundle.compatible.clone(), here: here.compatible.clone() });
    }
    let version = Version::parse(&bundle.version).ok_or_else(|| Refusal::Version(bundle.version.clone()))?;
    if let Some(only) = insist.only.as_ref().filter(|only| **only != version) {
        return Err(Refusal::NotOrdered { bundle: version.to_string(), ordered: only.to_string() });
    }
    if let Some(running) = &here.running {
        match version.cmp(running) {
            std::cmp::Ordering::Equal if !insist.again => return Err(Refusal::Same(version)),
            std::cmp::Ordering::Less if !insist.downgrade => {
                return Err(Refusal::Older { bundle: version.to_string(), running: running.to_string() });
            }
            _ => {}
        }
    }
    if here.failed.as_ref() == Some(&version) && !insist.again {
        return Err(Refusal::Failed(version));
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn a_window_may_span_midnight() {
        let night = Window::parse("22:30-04:00").unwrap();
        let inside = |h: u64, m: u64| night.holds(86_400_000 * 20_000 + h * HOUR_MS + m * 60_000);
        assert!(inside(22, 30) && inside(23, 59) && inside(0, 0) && inside(3, 59));
        assert!(!inside(4, 0) && !inside(12, 0) && !inside(22, 29));
        assert!(Window::parse("00:00-00:00").unwrap().holds(HOUR_MS));
        for text in ["", "1:00-2:00", "24:00-01:00", "01:60-02:00", "01:00", "01:00-02:00-03:00"] {
            assert_eq!(Window::parse(text), None, "{text}");
        }
    }

    #[test]
    fn nobody_who_waits_is_cut_off() {
        let window = Window::parse("01:00-02:00");
        let quiet = Situation::default();
        assert_eq!(holds(&quiet, window, HOUR_MS), []);
        assert_eq!(holds(&quiet, None, 13 * HOUR_MS), []);
        let busy = Situation { open_alerts: 1, open_series: 2, unknown: Some("disk".into()), on_trial: true };
        let codes: Vec<_> = holds(&busy, window, 3 * HOUR_MS)
            .iter()
            .map(|h| serde_json::to_value(h).unwrap()["code"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(codes, ["state_unknown", "alert_open", "study_open", "on_trial", "outside_window"]);
    }

    #[test]
    fn only_a_newer_bundle_for_this_machine_that_did_not_fail_here_is_taken() {
        let here = Here {
            compatible: "ichd-x86-64".into(),
            running: Version::parse("1.2.0"),
            failed: Version::parse("1.4.0"),
        };
        let code = |compatible: &str, version: &str, insist: &Insist| {
            let bundle =
                Bundle { compatible: compatible.into(), version: version.into(), manifest_hash: None };
            take(&bundle, &here, insist).map_or_else(|r| r.code(), |_| "taken")
        };
        let none = &Insist::default();
        let all = &Insist { downgrade: true, again: true, only: None };
        let one = &Insist { only: Version::parse("1.3.1"), ..Insist::default() };
        assert_eq!(
            (code("ichd-x86-64", "1.3.0", one), code("ichd-x86-64", "1.3.1", one)),
            ("not_ordered", "taken")
        );
        assert_eq!(code("ichd-x86-64", "1.3.0", none), "taken");
        assert_eq!(code("ichd-arm64", "1.3.0", all), "incompatible");
        assert_eq!(code("ichd-x86-64", "latest", all), "version_unreadable");
        assert_eq!(code("ichd-x86-64", "1.2.0", none), "up_to_date");
        assert_eq!(
            (code("ichd-x86-64", "1.1.9", none), code("ichd-x86-64", "1.1.9", all)),
            ("downgrade", "taken")
        );
        assert_eq!(
            (code("ichd-x86-64", "1.4.0", none), code("ichd-x86-64", "1.4.0", all)),
            ("failed_before", "taken")
        );
    }
}
