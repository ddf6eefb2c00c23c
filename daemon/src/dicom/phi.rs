//! Patient text that cannot be printed by accident.

use std::fmt;

/// Protected health information: `Debug` and `Display` redact; [`Phi::reveal`] is the only way out and is easy to find.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Phi<T>(T);

impl<T> Phi<T> {
    /// Wraps a value that names or describes a person.
    pub fn new(value: T) -> Self {
        Phi(value)
    }

    /// The value itself; every call site must be able to say where it ends up.
    pub fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Phi<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl<T> fmt::Display for Phi<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patient_text_does_not_print() {
        let name = Phi::new("DOE^JANE".to_owned());
        assert_eq!(format!("{name} {name:?}"), "[redacted] [redacted]");
        assert_eq!(name.reveal(), "DOE^JANE");
    }
}
