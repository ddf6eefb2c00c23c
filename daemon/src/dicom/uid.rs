//! Unique identifiers, parsed once; afterwards they are safe file names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a text is not a UID (DICOM PS3.5 section 9).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UidError {
    /// Nothing between the delimiters.
    #[error("uid is empty")]
    Empty,
    /// PS3.5 allows 64 characters.
    #[error("uid has {length} characters, 64 are allowed")]
    TooLong {
        /// Length found.
        length: usize,
    },
    /// Only digits separated by single dots may stand in a UID.
    #[error("uid component {component} is not a number")]
    BadComponent {
        /// Zero-based index of the component.
        component: usize,
    },
}

/// Checks the PS3.5 9.1 form. Leading zeros are let through: old devices send them and they are harmless as names.
fn parse(text: &str) -> Result<Box<str>, UidError> {
    let text = text.trim_end_matches(['\0', ' ']);
    if text.is_empty() {
        return Err(UidError::Empty);
    }
    if text.len() > 64 {
        return Err(UidError::TooLong { length: text.len() });
    }
    for (component, part) in text.split('.').enumerate() {
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return Err(UidError::BadComponent { component });
        }
    }
    Ok(text.into())
}

macro_rules! uid {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Parses text from the network or a file; trailing padding is dropped.
            pub fn parse(text: &str) -> Result<Self, UidError> {
                parse(text).map($name)
            }

            /// The digits and dots, safe as a file name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = UidError;
            fn from_str(text: &str) -> Result<Self, UidError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = UidError;
            fn try_from(text: String) -> Result<Self, UidError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(uid: $name) -> String {
                uid.0.into()
            }
        }
    };
}

uid! {
    /// Study Instance UID (0020,000D).
    StudyUid
}
uid! {
    /// Series Instance UID (0020,000E).
    SeriesUid
}
uid! {
    /// SOP Instance UID (0008,0018).
    SopInstanceUid
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padding_is_dropped_and_paths_are_refused() {
        assert_eq!(SeriesUid::parse("1.2.840\0").unwrap().as_str(), "1.2.840");
        assert_eq!(SeriesUid::parse(""), Err(UidError::Empty));
        for hostile in ["..", "1..2", "../../etc/passwd", "1.2/3", "1.2.", ".1", "1.2\n", "１.2"] {
            assert!(SeriesUid::parse(hostile).is_err(), "{hostile:?}");
        }
        assert_eq!(SeriesUid::parse(&"1".repeat(65)), Err(UidError::TooLong { length: 65 }));
    }

    proptest! {
        #[test]
        fn whatever_parses_is_a_plain_file_name(text in "\\PC*") {
            if let Ok(uid) = SopInstanceUid::parse(&text) {
                prop_assert!(uid.as_str().bytes().all(|b| b.is_ascii_digit() || b == b'.'));
                prop_assert!(!uid.as_str().starts_with('.') && uid.as_str().len() <= 64);
            }
        }
    }
}
