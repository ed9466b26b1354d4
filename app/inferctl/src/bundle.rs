//! `inferctl bundle`: signed bundles of model directories, and of systems. No daemon is asked.
//!
//! [`build`] writes one and proves its models first, [`inspect`] shows what one says of itself, [`verify`] judges every byte as a
//! device does, [`diff`] says how much of one a device that holds another would fetch, [`sign`] adds a signature later.

mod build;
mod diff;
mod inspect;
mod parts;
mod rootfs;
mod sign;
mod verify;

use crate::fail::Failure;
use inferd_bundle::{Bundle, Chunk, Refusal, limits::HEADER_BYTES};
use std::{
    fs::File,
    io::{Read, Seek as _, SeekFrom},
    path::Path,
};

/// What to do with bundles.
#[derive(Debug, clap::Subcommand)]
pub enum BundleCommand {
    /// Build a bundle of model directories or of a system, and sign it
    Build(Box<build::Build>),
    /// Show what a bundle says of itself; nothing is judged
    Inspect(inspect::Inspect),
    /// Judge a bundle as a device does: its keys, and every byte
    Verify(verify::Verify),
    /// How much of a new bundle a device that holds an old one would fetch
    Diff(diff::DiffCommand),
    /// Add a signature to a bundle; its id stays the same
    Sign(sign::Sign),
}

impl BundleCommand {
    /// Does it.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        match self {
            Self::Build(command) => command.run(json),
            Self::Inspect(command) => command.run(json),
            Self::Verify(command) => command.run(json),
            Self::Diff(command) => command.run(json),
            Self::Sign(command) => command.run(json),
        }
    }
}

/// What a bundle says of itself: everything before its index.
///
/// # Errors
/// [`Failure`] when the file cannot be read or is no bundle.
pub fn open(path: &Path) -> Result<Bundle, Failure> {
    let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
    read_prefix(&mut file, path)
}

/// The same of a file that is open, from its begin.
///
/// # Errors
/// [`Failure`].
pub fn read_prefix(file: &mut File, path: &Path) -> Result<Bundle, Failure> {
    let mut bytes = Vec::new();
    let take = |file: &mut File, upto: u64, bytes: &mut Vec<u8>| {
        let more = upto - bytes.len() as u64;
        file.take(more).read_to_end(bytes).map_err(|e| unreadable(path, &e))?;
        if (bytes.len() as u64) < upto {
            return Err(refused(path, &Refusal::Truncated { have: bytes.len() as u64, need: upto }));
        }
        Ok(())
    };
    take(file, HEADER_BYTES as u64, &mut bytes).map_err(|short| {
        // What is too short to be a bundle and does not begin like one is something else.
        if bytes.starts_with(&inferd_bundle::MAGIC) { short } else { refused(path, &Refusal::Magic) }
    })?;
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&bytes);
    let need = Bundle::prefix_len(&header).map_err(|e| refused(path, &e))?;
    take(file, need, &mut bytes)?;
    Bundle::parse(&bytes).map_err(|e| refused(path, &e))
}

/// Every chunk of a bundle, from its index.
///
/// # Errors
/// [`Failure`].
pub fn chunks(path: &Path) -> Result<(Bundle, Vec<Chunk>), Failure> {
    let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let bundle = read_prefix(&mut file, path)?;
    let mut all = Vec::new();
    for page in 0..bundle.pages() {
        let range = bundle.page_range(page);
        let mut bytes = Vec::new();
        let read = file
            .seek(SeekFrom::Start(range.start))
            .and_then(|_| (&mut file).take(range.end - range.start).read_to_end(&mut bytes));
        read.map_err(|e| unreadable(path, &e))?;
        let page = bundle.check_page(page, &bytes).map_err(|e| refused(path, &e))?;
        all.extend(page.chunks());
    }
    Ok((bundle, all))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Other(format!("{} cannot be read: {error}", path.display()))
}

fn refused(path: &Path, refusal: &Refusal) -> Failure {
    Failure::Other(format!(
        "{}: {}",
        path.display(),
        crate::words::explain(refusal.code(), &refusal.to_string())
    ))
}
