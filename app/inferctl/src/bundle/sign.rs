//! `inferctl bundle sign`: one more signature, where the key is.

use super::{open, unreadable};
use crate::{
    fail::Failure,
    files::{self, Unwritten},
    root::short,
    show,
};
use inferd_bundle::{
    MAGIC, SigningKey,
    build::{BuildError, resign},
};
use serde_json::json;
use std::{fs::File, path::PathBuf};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The bundle
    file: PathBuf,
    /// A secret key to sign with; repeatable
    #[arg(long = "key", value_name = "NAME.key", required = true)]
    keys: Vec<PathBuf>,
    /// Where to write it [default: in its own place]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Sign {
    /// Signs.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let signers = files::secrets(&self.keys)?;
        let signers: Vec<&SigningKey> = signers.iter().collect();
        open(&self.file)?;
        let mut input = File::open(&self.file).map_err(|e| unreadable(&self.file, &e))?;
        let output = self.output.as_ref().unwrap_or(&self.file);
        files::replace(output, &MAGIC, |out| {
            resign(&mut input, &signers, out).map_err(|e| match e {
                BuildError::Write(e) => Unwritten::Io(e),
                other => Unwritten::Content(other.into()),
            })?;
            Ok(())
        })?;
        let bundle = open(output)?;
        let signed_by: Vec<_> = bundle.signatures().iter().map(|s| s.key).collect();
        if json {
            show::json(&json!({ "file": output, "id": bundle.id(), "signed_by": signed_by }));
        } else {
            let keys: Vec<String> = signed_by.iter().map(short).collect();
            show::line(&format!("{}: signed by {}", output.display(), keys.join(", ")));
        }
        Ok(())
    }
}
