//! API keys: new ones, and what a configuration holds instead of them.

use crate::fail::Failure;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::io::Read as _;

/// Make API keys and their digests; needs no daemon.
#[derive(Debug, clap::Subcommand)]
pub enum KeyCommand {
    /// Draw a key, and say what the device's configuration holds for it
    New,
    /// Read a key from standard input, and say what the configuration holds for it
    Hash,
}

impl KeyCommand {
    /// Runs it and prints the result.
    ///
    /// # Errors
    /// [`Failure`] when there is no key that a device would take.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        match self {
            Self::New => {
                let mut bits = [0; 16];
                getrandom::fill(&mut bits)
                    .map_err(|e| Failure::Other(format!("the kernel gives no random numbers: {e}")))?;
                let key: String = bits.iter().map(|b| format!("{b:02x}")).collect();
                let digest = digest(&key);
                if json {
                    println!("{}", json!({ "key": key, "digest": digest }));
                } else {
                    println!("key     {key}\ndigest  {digest}");
                }
            }
            Self::Hash => {
                let mut text = String::new();
                let read = std::io::stdin().take(1024).read_to_string(&mut text);
                read.map_err(|e| Failure::Other(format!("standard input cannot be read: {e}")))?;
                let key = text.trim_end_matches(['\r', '\n']);
                let digest = stored(key).map_err(|why| Failure::Other(format!("{why} on standard input")))?;
                if json {
                    println!("{}", json!({ "digest": digest }));
                } else {
                    println!("{digest}");
                }
            }
        }
        Ok(())
    }
}

/// What a configuration holds for a key.
///
/// # Errors
/// When no device would take it.
pub fn stored(key: &str) -> Result<String, String> {
    if !(16..=256).contains(&key.len()) || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("a key is 16 to 256 printable characters".to_owned());
    }
    Ok(digest(key))
}

fn digest(key: &str) -> String {
    let hex: String = Sha256::digest(key).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}
