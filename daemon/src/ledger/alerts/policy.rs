//! The rules of the chain, from the configuration.

use crate::alert::ladder::{Ladder, Limits};

/// The rules of the chain, from the configuration.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Ladders of the shifts; the first that fits is taken.
    pub shifts: Vec<Shift>,
    /// Ladder when no shift fits.
    pub ladder: Ladder,
    /// Limits of the ladder.
    pub limits: Limits,
    /// A late slice withdraws a final alert only when the score has fallen this far below the operating point.
    pub hysteresis: f32,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            shifts: vec![],
            ladder: Ladder::default(),
            limits: Limits { receipt_ms: 10_000, expiry_ms: 43_200_000 },
            hysteresis: 0.05,
        }
    }
}

/// A ladder for some hours of the day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    /// Begins, minutes of the local day.
    pub from_min: u32,
    /// Ends, minutes of the local day; before `from_min`: on the next day.
    pub to_min: u32,
    /// Local time, minutes ahead of UTC.
    pub utc_offset_min: i32,
    /// Its ladder.
    pub ladder: Ladder,
}

impl Shift {
    /// Whether a moment lies in it; wall time, ms since the epoch.
    pub fn holds(&self, wall_ms: u64) -> bool {
        let local = i64::try_from(wall_ms / 60_000).unwrap_or(0) + i64::from(self.utc_offset_min);
        let minute = u32::try_from(local.rem_euclid(1440)).unwrap_or(0);
        if self.from_min <= self.to_min {
            (self.from_min..self.to_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.to_min
        }
    }
}

impl Policy {
    pub(super) fn ladder_at(&self, wall_ms: u64) -> &Ladder {
        self.shifts.iter().find(|s| s.holds(wall_ms)).map_or(&self.ladder, |s| &s.ladder)
    }

    pub(super) fn ladder_named(&self, name: &str) -> &Ladder {
        self.shifts.iter().map(|s| &s.ladder).find(|l| l.name == name).unwrap_or(&self.ladder)
    }
}
