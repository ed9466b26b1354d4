//! How the program ends when something is not right, and with which exit code.

use crate::{client::ClientError, input::InputError, words};
use std::process::ExitCode;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something about the daemon or its answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something about the input.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Anything else, in one sentence.
    #[error("{0}")]
    Other(String),
    /// A card was not flashed.
    #[error("{text}")]
    Flash {
        /// Why, and what to do.
        text: String,
        /// Whether something was written to it.
        touched: bool,
    },
    /// Everything was said already; only the exit code is missing.
    #[error("")]
    Said,
}

impl From<inferd_bundle::Refusal> for Failure {
    fn from(refusal: inferd_bundle::Refusal) -> Self {
        Self::Other(words::explain(refusal.code(), &refusal.to_string()))
    }
}

impl From<inferd_bundle::build::BuildError> for Failure {
    fn from(error: inferd_bundle::build::BuildError) -> Self {
        match error {
            inferd_bundle::build::BuildError::Refused(refusal) => refusal.into(),
            other => Self::Other(other.to_string()),
        }
    }
}

impl Failure {
    /// 1: asked and refused, or failed; 3: nobody answered; 4: a card was written to and cannot be used. (2 is for wrong arguments.)
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(ClientError::Url { .. } | ClientError::Known { .. }) => ExitCode::from(2),
            Self::Client(ClientError::Unreachable { .. }) => ExitCode::from(3),
            Self::Flash { touched: true, .. } => ExitCode::from(4),
            Self::Client(ClientError::Refused(_))
            | Self::Flash { .. }
            | Self::Input(_)
            | Self::Other(_)
            | Self::Said => ExitCode::FAILURE,
        }
    }
}
