//! First boot: what a laptop wrote into `inferd.toml` on the boot partition becomes the device's own.
//!
//! | module | what |
//! |---|---|
//! | [`decode`] | bytes of any editor (UTF-8, with or without a mark, UTF-16, Windows-1252) to text, and back to their places |
//! | [`file`] | the sections that are this room's: `[device]`, `[network]`, `[ssh]`, `[time]`; every mistake with line and key |
//! | [`secrets`] | where keys and passphrases stand in a file, and what stands there afterwards |
//! | [`settle`] | taking a file over: the order of writes that a power cut may end anywhere |
//! | [`gpt`] | the last partition grown to the medium's end, and the order of those writes |
//! | [`grow`] | the same done to a running system |
//! | [`report`] | `inferd-report.txt`: what was taken, what not and why |
//!
//! A file is taken whole or not at all: with one mistake in it what was taken before stays in use. Secrets are overwritten where they
//! stand, in the same number of bytes, so that neither the FAT nor a directory changes: the file holds [`secrets::KEPT`] there, and
//! the device keeps what was there. Whoever writes something else there changes it; whoever takes the line out forgets it.
//!
//! Nothing here but [`grow`] opens a file or a device: [`settle::Card`] and [`settle::Store`] are the doors of the others.

#![deny(unsafe_code)]

pub mod decode;
pub mod file;
pub mod gpt;
pub mod grow;
pub mod report;
pub mod secrets;
pub mod settle;

/// The largest `inferd.toml` that is read, in bytes: as written, a UTF-16 file has twice its letters.
pub const MAX_BYTES: usize = 256 * 1024;

/// The sections of `inferd.toml` that are this room's; the daemon knows all others.
pub const SECTIONS: [&str; 4] = ["device", "network", "ssh", "time"];

/// One mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; 0: of the file as a whole.
    pub line: usize,
    /// What is wrong, with its key, as one sentence.
    pub says: String,
}

impl Problem {
    /// A mistake at a line.
    #[must_use]
    pub fn at(line: usize, says: impl Into<String>) -> Self {
        Self { line, says: says.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line == 0 { f.write_str(&self.says) } else { write!(f, "line {}: {}", self.line, self.says) }
    }
}

/// The end of a sentence about an unknown name: `; did you mean X?` when something is near, else a full stop.
#[must_use]
pub fn nearest<'a>(name: &str, among: impl Iterator<Item = &'a str>) -> String {
    among
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .min()
        .filter(|(distance, _)| *distance <= 3.min(name.len() / 2))
        .map_or_else(|| ".".to_owned(), |(_, candidate)| format!("; did you mean {candidate}?"))
}
