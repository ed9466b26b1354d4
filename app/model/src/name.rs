//! Names of models.

use serde::{Deserialize, Serialize};

/// The name of a model: 1 to 64 characters of `a-z A-Z 0-9 . _ -`, starting with a letter or digit.
///
/// It appears in URLs, file names, cgroup names and metric labels, so nothing else is let in (no `/`, no `..`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// Why a string is not a model's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a model's name is 1 to 64 of a-z A-Z 0-9 . _ - and starts with a letter or digit")]
pub struct NameError;

impl ModelName {
    /// The longest name, in bytes.
    pub const MAX: usize = 64;

    /// Takes a name after checking it.
    ///
    /// # Errors
    /// [`NameError`] when a character or the length is not allowed.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let ok = (1..=Self::MAX).contains(&name.len())
            && name.as_bytes()[0].is_ascii_alphanumeric()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if ok { Ok(Self(name.to_owned())) } else { Err(NameError) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ModelName {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        Self::new(&s)
    }
}

impl From<ModelName> for String {
    fn from(n: ModelName) -> Self {
        n.0
    }
}

impl std::fmt::Display for ModelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "a b", "-a", "ä", "a\0", &"x".repeat(65)] {
            assert!(ModelName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "imu-motion", "yolo11n_640.int8", "7", &"x".repeat(64)] {
            assert!(ModelName::new(good).is_ok(), "{good:?}");
        }
    }
}
