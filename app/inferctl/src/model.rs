//! `inferctl model`: making model directories of ONNX files, and proving directories right. No daemon is asked; the
//! network runs in this program, on the built-in engine.
//!
//! [`import`] writes a directory, [`check`] judges one; an import ends with the check of what it wrote. Networks from
//! strangers are best imported where a crash does no harm: a hostile file can make any engine's loader use all memory.

pub mod check;
mod import;
mod plausible;
mod reference;

use crate::show;
use std::process::ExitCode;

/// What to do with a model directory.
#[derive(Debug, clap::Subcommand)]
pub enum ModelCommand {
    /// Make a model directory of an ONNX file
    Import(Box<import::Import>),
    /// Prove that a model directory is complete and gives the answers it promises
    Check(check::Check),
}

/// Does it.
#[must_use]
pub fn run(command: ModelCommand, json: bool) -> ExitCode {
    let done = match command {
        ModelCommand::Import(import) => import.run().map(|report| {
            if json {
                show::json(&report)
            } else {
                show::line(&report.to_string())
            }
            report.check.passed()
        }),
        ModelCommand::Check(check) => {
            let report = check.run();
            if json {
                show::json(&report)
            } else {
                show::line(&report.to_string())
            }
            Ok(report.passed())
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("inferctl: {error}");
            ExitCode::FAILURE
        }
    }
}

/// SHA-256 in lower-case hex, as manifests carry it.
fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
