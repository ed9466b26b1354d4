//! `inferctl model`: importing and checking model directories. Not part of this build yet.

use std::process::ExitCode;

/// What to do with a model directory.
#[derive(Debug, clap::Subcommand)]
pub enum ModelCommand {}

/// Does it.
#[must_use]
pub fn run(command: ModelCommand, _json: bool) -> ExitCode {
    match command {}
}
