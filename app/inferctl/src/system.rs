//! `inferctl system`: what is said to a device about the system that is staged there.

use crate::{client::Client, fail::Failure, push::Wait};

/// What `system` does.
#[derive(Debug, clap::Subcommand)]
pub enum SystemCommand {
    /// Restart the device to try the system that is staged there, and follow that
    Try(Try),
}

/// Arguments of `system try`.
#[derive(Debug, clap::Args)]
pub struct Try {
    /// What to wait for before this command ends
    #[arg(long, value_enum, default_value_t)]
    wait: Wait,
}

impl SystemCommand {
    /// Says it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, client: &Client, json: bool) -> Result<(), Failure> {
        let Self::Try(how) = self;
        crate::push::follow_try(client, how.wait, json)
    }
}
