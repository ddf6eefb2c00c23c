//! The only reader of time. Everything else is *given* the time, so that tests are scripts of events.
//!
//! Durations between events are measured on the monotonic clock; wall time only labels what people read.
//! A wrong wall clock must never hide how old an alert is (`age_ms` in every alert).
#![expect(clippy::disallowed_methods, reason = "this is the one place that reads time")]

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic now; never goes back, knows nothing of dates.
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch by the wall clock; 0 if the clock stands before 1970.
pub fn wall_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Milliseconds since the machine started, suspended time included; goes on across restarts of the daemon.
pub fn boot_ms() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    time.map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}

/// Identity of this run of the machine; [`boot_ms`] values compare only within one.
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".into(), |s| s.trim().into())
}

/// One look at both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Wall clock, ms since the epoch.
    pub wall_ms: u64,
    /// Monotonic clock, ms since the machine started.
    pub boot_ms: u64,
    /// Whether something keeps the wall clock right; `None` if nobody says.
    pub synced: Option<bool>,
}

/// Where the time comes from: the system's clocks, or a script in a test.
#[derive(Clone)]
pub struct Source(Arc<dyn Fn() -> Reading + Send + Sync>);

impl Source {
    /// The system's clocks.
    pub fn system() -> Self {
        Source(Arc::new(|| Reading { wall_ms: wall_ms(), boot_ms: boot_ms(), synced: synced() }))
    }

    /// A clock that says what `read` says.
    pub fn scripted(read: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        Source(Arc::new(read))
    }

    /// Looks.
    pub fn read(&self) -> Reading {
        (self.0)()
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.read())
    }
}

/// Whether something keeps the wall clock right; `None` if nobody says. systemd-timesyncd and chrony leave this mark.
pub fn synced() -> Option<bool> {
    let runs = std::path::Path::new("/run/systemd/timesync");
    runs.is_dir().then(|| runs.join("synchronized").exists())
}

/// Milliseconds since the epoch of an RFC 3339 text in UTC (`Z`), as [`rfc3339`] writes it; fractions are optional.
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z')?;
    let (date, time) = text.split_once('T')?;
    let number = |s: &str, len: usize| {
        (s.len() == len && s.bytes().all(|b| b.is_ascii_digit())).then(|| s.parse::<u64>().ok())?
    };
    let mut parts = date.split('-');
    let (y, m, d) = (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut parts = clock.split(':');
    let (h, min, s) = (number(parts.next()?, 2)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let ms = format!("{fraction:0<3}").get(..3)?.parse::<u64>().ok()?;
    Some(ms_of_civil([y, m, d], [h, min, s])? + ms)
}

/// RFC 3339 UTC text with milliseconds, for documents that people and other systems read.
pub fn rfc3339(wall_ms: u64) -> String {
    let (days, ms_of_day) = (wall_ms / 86_400_000, wall_ms % 86_400_000);
    let (year, month, day) = civil_from_days(days);
    let (h, m, s, ms) =
        (ms_of_day / 3_600_000, ms_of_day / 60_000 % 60, ms_of_day / 1000 % 60, ms_of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

/// Whole milliseconds of a duration, saturating.
pub fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds since the epoch of a UTC date [year, month, day] and time [hour, minute, second]; `None` before 1970 and
/// for numbers that no calendar has.
pub fn ms_of_civil([year, month, day]: [u64; 3], [h, m, s]: [u64; 3]) -> Option<u64> {
    let in_range = (1970..=9999).contains(&year) && (1..=12).contains(&month) && h < 24 && m < 60 && s <= 60;
    let days = days_from_civil(year, month, day);
    // Not every month has a 31st.
    let is_date = in_range && civil_from_days(days) == (year, month, day);
    is_date.then(|| ((days * 24 + h) * 60 + m) * 60_000 + s * 1000)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = year.saturating_sub(u64::from(month <= 2));
    let (era, yoe) = (year / 400, year % 400);
    let doy = (153 * ((month + 9) % 12) + 2) / 5 + day.saturating_sub(1);
    (era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy).saturating_sub(719_468)
}

/// Gregorian date of a day count since 1970-01-01, by counting 400-year eras from 0000-03-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_and_its_day_count_are_each_others_inverse() {
        for days in 0..200 * 366 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(ms_of_civil([year, month, day], [0, 0, 0]), Some(days * 86_400_000));
        }
        assert_eq!(ms_of_civil([2000, 2, 29], [12, 34, 56]), Some(951_827_696_000));
        assert_eq!(ms_of_civil([2000, 13, 1], [0, 0, 0]), None);
        for [year, month, day] in [[2001, 2, 29], [2000, 2, 31], [2000, 4, 31], [2000, 1, 0]] {
            assert_eq!(ms_of_civil([year, month, day], [0, 0, 0]), None, "{year}-{month}-{day}");
        }
    }

    #[test]
    fn wall_time_reads_as_a_calendar_date() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_827_696_789), "2000-02-29T12:34:56.789Z");
        assert_eq!(rfc3339(4_102_444_799_999), "2099-12-31T23:59:59.999Z");
    }

    #[test]
    fn a_calendar_date_reads_back_as_wall_time() {
        for ms in [0, 951_827_696_789, 4_102_444_799_999, 1_709_210_096_000, 1_767_225_600_001] {
            assert_eq!(parse_rfc3339(&rfc3339(ms)), Some(ms));
        }
        assert_eq!(parse_rfc3339("2000-02-29T12:34:56Z"), Some(951_827_696_000));
        for bad in [
            "",
            "Z",
            "2000-02-29",
            "2000-13-01T00:00:00Z",
            "2000-02-31T00:00:00Z",
            "2000-01-01T00:00:00+01:00",
            "20000-1-1T0:0:0Z",
            "2000-01-01T00:00:00.é9Z",
        ] {
            assert_eq!(parse_rfc3339(bad), None, "{bad}");
        }
    }
}
