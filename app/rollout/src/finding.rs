//! What was found, before it becomes a verdict: a code, a sentence and its numbers.

use serde_json::Value;

/// A reason with its evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// For programs: kebab-case, stable.
    pub code: String,
    /// For people.
    pub sentence: String,
    /// The numbers.
    pub evidence: Value,
}

impl Finding {
    /// A reason.
    pub fn new(code: impl Into<String>, sentence: impl Into<String>, evidence: Value) -> Self {
        Self { code: code.into(), sentence: sentence.into(), evidence }
    }
}
