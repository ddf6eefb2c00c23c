//! Versions of bundles and model packages, and which of two is newer. Semantic versioning 2.0, section 11.

use std::cmp::Ordering;
use std::fmt;

/// `major.minor.patch[-pre]`; build metadata after `+` does not count. Text that is none of that is no version, and
/// what cannot be compared is not installed.
#[derive(Debug, Clone)]
pub struct Version {
    numbers: [u64; 3],
    pre: Vec<Identifier>,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    Number(u64),
    Text(String),
}

impl Version {
    /// Parses; a leading `v` is allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let core = text.strip_prefix('v').unwrap_or(text);
        let core = core.split_once('+').map_or(core, |(core, _)| core);
        let (core, pre) = core.split_once('-').map_or((core, None), |(core, pre)| (core, Some(pre)));
        let mut parts = core.split('.');
        let mut number = || digits(parts.next()?);
        let numbers = [number()?, number()?, number()?];
        if parts.next().is_some() || text.len() > 64 {
            return None;
        }
        let pre = pre.map_or(Some(Vec::new()), |pre| pre.split('.').map(identifier).collect())?;
        Some(Version { numbers, pre, text: text.into() })
    }
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn identifier(text: &str) -> Option<Identifier> {
    if let Some(number) = digits(text) {
        return Some(Identifier::Number(number));
    }
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain.then(|| Identifier::Text(text.into()))
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let pre = |v: &Version| !v.pre.is_empty();
        // A pre-release comes before its release.
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| pre(other).cmp(&pre(self)))
            .then_with(|| self.pre.cmp(&other.pre))
    }
}

/// As `cmp`: `v1.2.0` and `1.2.0+b2` are the version `1.2.0`.
impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_are_in_the_order_of_semantic_versioning() {
        let order = [
            "0.9.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-rc.2",
            "1.0.0-rc.11",
            "1.0.0",
            "1.0.1",
            "1.10.0",
            "2.0.0",
        ];
        for pair in order.windows(2) {
            assert!(Version::parse(pair[0]) < Version::parse(pair[1]), "{pair:?}");
        }
        assert_eq!(Version::parse("1.0.0+a"), Version::parse("v1.0.0+b"));
    }

    #[test]
    fn what_cannot_be_compared_is_no_version() {
        for text in [
            "",
            "1",
            "1.2",
            "1.2.3.4",
            "1.2.x",
            "one",
            "1.2.3-",
            "1.2.3-a..b",
            "-1.2.3",
            "1.2.+3",
            "99999999999999999999.0.0",
        ] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,80}") {
            let _ = Version::parse(&text);
        }
    }
}
