//! `inferctl bundle verify`: every byte of a bundle, judged as a device does.

use super::{open, refused, unreadable};
use crate::{fail::Failure, root, show};
use inferd_bundle::{Bundle, Chunk, Digest, IndexPage, Refusal, Sink, Stream, Trust};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{
    fs::File,
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The bundle
    file: PathBuf,
    /// The root document that devices have; with newer ones in order when there are
    #[arg(long = "root", value_name = "ROOT", required = true)]
    roots: Vec<PathBuf>,
    /// The revocation list that devices have
    #[arg(long, value_name = "FILE")]
    revocations: Option<PathBuf>,
    /// As a device does that accepts bundles signed for development
    #[arg(long)]
    allow_dev: bool,
}

impl Verify {
    /// Judges it.
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let trust = root::trust(&self.roots, self.revocations.as_deref(), self.allow_dev)?;
        // The prefix alone decides who may be told more than "damaged".
        open(&self.file)?;
        let bundle = judge(&self.file, &trust)?;
        let authorized = bundle.authorize(&trust).map_err(|e| refused(&self.file, &e))?;
        let m = bundle.manifest();
        if json {
            show::json(&json!({
                "file": self.file, "id": bundle.id(), "product": m.product, "version": m.version,
                "authorized": authorized, "verified_bytes": bundle.total_len(),
            }));
            return Ok(());
        }
        show::line(&format!(
            "{} is good: {} {} ({}), every one of {} bytes verified",
            self.file.display(),
            m.product,
            m.version,
            m.label,
            bundle.total_len()
        ));
        show::line(&format!(
            "{} of the {} keys needed signed as {}, by root {}{}",
            authorized.keys.len(),
            authorized.threshold,
            authorized.role,
            authorized.root,
            if authorized.revocations == 0 {
                String::new()
            } else {
                format!(" and revocation list {}", authorized.revocations)
            }
        ));
        Ok(())
    }
}

/// Reads it all through the verifier.
fn judge(path: &Path, trust: &Trust) -> Result<Bundle, Failure> {
    let mut file = File::open(path).map_err(|e| unreadable(path, &e))?;
    let again = File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut sink = Judge { trust, again, file: None, plain: Vec::new() };
    let mut stream = Stream::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut piece).map_err(|e| unreadable(path, &e))?;
        if n == 0 {
            break;
        }
        stream.push(&piece[..n], &mut sink).map_err(|e| e.told(path))?;
    }
    let bundle = stream.finish().map_err(|e| refused(path, &e))?;
    sink.close(&bundle).map_err(|e| e.told(path))?;
    Ok(bundle)
}

/// Looks at what was verified: who signed, and whether files have their digests.
struct Judge<'a> {
    trust: &'a Trust,
    again: File,
    /// The file that chunks belong to now: its first chunk, and its digest so far.
    file: Option<(u64, Sha256)>,
    plain: Vec<u8>,
}

/// Why it is not good.
enum Bad {
    Refused(Refusal),
    Digest { model: String, file: String },
    Io(std::io::Error),
}

impl From<Refusal> for Bad {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Bad {
    fn told(&self, path: &Path) -> Failure {
        match self {
            Self::Refused(refusal) => refused(path, refusal),
            Self::Digest { model, file } => Failure::Other(format!(
                "{}: model {model}: {file} does not have the SHA-256 the manifest says: it was put together wrongly",
                path.display()
            )),
            Self::Io(e) => unreadable(path, e),
        }
    }
}

impl Judge<'_> {
    /// The file that was read last is complete: it has its digest or not.
    fn close(&mut self, bundle: &Bundle) -> Result<(), Bad> {
        let Some((first, sha)) = self.file.take() else { return Ok(()) };
        let Some((model, file)) = bundle.manifest().owner(first) else { return Ok(()) };
        if Digest(sha.finalize().into()) == file.sha256 {
            return Ok(());
        }
        Err(Bad::Digest { model: model.name.to_string(), file: file.name.clone() })
    }
}

impl Sink for Judge<'_> {
    type Error = Bad;

    fn prefix(&mut self, bundle: &Bundle, _bytes: &[u8]) -> Result<(), Bad> {
        bundle.authorize(self.trust)?;
        Ok(())
    }

    fn page(&mut self, _: &Bundle, _: &IndexPage, _: &[u8]) -> Result<(), Bad> {
        Ok(())
    }

    fn chunk(&mut self, bundle: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), Bad> {
        let Some((_, file)) = bundle.manifest().owner(chunk.number) else { return Ok(()) };
        let first = file.first_chunk;
        if self.file.as_ref().is_none_or(|(at, _)| *at != first) {
            self.close(bundle)?;
        }
        self.plain.clear();
        chunk.unpack(stored, &mut self.plain)?;
        let (_, sha) = self.file.get_or_insert_with(|| (first, Sha256::new()));
        sha.update(&self.plain);
        Ok(())
    }

    fn recall(&mut self, bundle: &Bundle, page: u32, into: &mut Vec<u8>) -> Result<bool, Bad> {
        let range = bundle.page_range(page);
        let read = self
            .again
            .seek(SeekFrom::Start(range.start))
            .and_then(|_| (&mut self.again).take(range.end - range.start).read_to_end(into));
        read.map_err(Bad::Io)?;
        Ok(true)
    }
}
