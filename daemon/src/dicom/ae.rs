//! Application entity titles.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not an AE title (DICOM PS3.5 table 6.2-1, VR AE).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AeTitleError {
    /// Only spaces.
    #[error("AE title is empty")]
    Empty,
    /// 16 characters are allowed after trimming.
    #[error("AE title has {length} characters, 16 are allowed")]
    TooLong {
        /// Length found.
        length: usize,
    },
    /// Backslash and control characters are not allowed.
    #[error("AE title holds a character that VR AE forbids")]
    BadCharacter,
}

/// An application entity title: 1 to 16 characters of the default repertoire, significant case, padding trimmed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AeTitle(Box<str>);

impl AeTitle {
    /// Parses text from the network or the configuration.
    pub fn parse(text: &str) -> Result<Self, AeTitleError> {
        let text = text.trim_matches([' ', '\0']);
        match text.len() {
            0 => Err(AeTitleError::Empty),
            length @ 17.. => Err(AeTitleError::TooLong { length }),
            _ if !text.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'\\') => {
                Err(AeTitleError::BadCharacter)
            }
            _ => Ok(AeTitle(text.into())),
        }
    }

    /// The trimmed title.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AeTitle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for AeTitle {
    type Err = AeTitleError;
    fn from_str(text: &str) -> Result<Self, AeTitleError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for AeTitle {
    type Error = AeTitleError;
    fn try_from(text: String) -> Result<Self, AeTitleError> {
        Self::parse(&text)
    }
}

impl From<AeTitle> for String {
    fn from(ae: AeTitle) -> String {
        ae.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_trimmed_and_bounded() {
        assert_eq!(AeTitle::parse("  CT1   ").unwrap().as_str(), "CT1");
        assert_eq!(AeTitle::parse("    "), Err(AeTitleError::Empty));
        assert_eq!(AeTitle::parse("ABCDEFGHIJKLMNOPQ"), Err(AeTitleError::TooLong { length: 17 }));
        assert_eq!(AeTitle::parse("A\\B"), Err(AeTitleError::BadCharacter));
    }
}
