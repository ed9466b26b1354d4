//! A model in memory: read from its directory once, checked against its digests, sealed.
//!
//! What a host loads is this sealed memory, never a path that could have changed since it was checked. It stays for as
//! long as the model is served, so that a host can be started again without touching the disk.

use crate::limits::{MAX_ONNX_BYTES, MAX_SIDE_FILE_BYTES};
use crate::sys::{self, Mapping};
use inferd_model::{FileRef, Golden, LinearHead, MANIFEST_FILE, MAX_MANIFEST_BYTES, Manifest, Motif};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a model directory is refused: one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// A checked model in sealed memory.
pub struct Package {
    /// The directory it came from.
    pub dir: PathBuf,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Its golden vectors.
    pub golden: Arc<Golden>,
    /// The motif head's file, when there is one.
    pub motif_weights: Option<Arc<[u8]>>,
    /// Manifest, golden vectors and network, sealed.
    pub file: File,
    len: usize,
}

const PAGE: usize = 4096;
/// Before the parts: three little-endian u64 lengths, the rest of the page zero.
const PARTS: usize = 3;

impl Package {
    /// Reads a model directory. Blocking; call it off the data plane.
    ///
    /// # Errors
    /// [`LoadError`] for the first thing that is missing, too large, damaged or not as the manifest says.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        let at = |name: &str| dir.join(name);
        let fail = |name: &str, e: &dyn std::fmt::Display| LoadError(format!("{}: {e}", at(name).display()));

        let mut text = String::new();
        open(&at(MANIFEST_FILE))
            .and_then(|f| f.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_string(&mut text))
            .map_err(|e| fail(MANIFEST_FILE, &e))?;
        let manifest = Manifest::from_toml(&text).map_err(|e| fail(MANIFEST_FILE, &e))?;

        let golden_file =
            FileRef { file: manifest.golden.file.clone(), sha256: manifest.golden.sha256.clone() };
        let golden_bytes = read_side_file(dir, &golden_file)?;
        let golden = Golden::parse(&golden_bytes, &manifest).map_err(|e| fail(&golden_file.file, &e))?;
        let motif_weights = match manifest.imu.as_ref().and_then(|i| i.motif.as_ref()) {
            Some(Motif::Linear { file, sha256, .. }) => {
                let head = read_side_file(dir, &FileRef { file: file.clone(), sha256: sha256.clone() })?;
                LinearHead::parse(&head, &manifest).map_err(|e| fail(file, &e))?;
                Some(head.into())
            }
            _ => None,
        };

        let onnx = &manifest.onnx;
        let write = || -> io::Result<(File, usize, u64, String)> {
            let mut out = sys::memory_file("inferd-model")?;
            out.write_all(&[0; PAGE])?;
            append(&mut out, text.as_bytes())?;
            append(&mut out, &golden_bytes)?;
            let (onnx_len, digest) = copy_hashing(open(&at(&onnx.file))?, &mut out)?;
            pad(&mut out)?;
            out.seek(SeekFrom::Start(0))?;
            for len in [text.len() as u64, golden_bytes.len() as u64, onnx_len] {
                out.write_all(&len.to_le_bytes())?;
            }
            sys::seal(&out, true)?;
            let len = usize::try_from(out.metadata()?.len()).map_err(io::Error::other)?;
            Ok((out, len, onnx_len, digest))
        };
        let (file, len, onnx_len, digest) = write().map_err(|e| fail(&onnx.file, &e))?;
        if onnx_len == 0 {
            return Err(fail(&onnx.file, &"the model file is empty"));
        }
        check_digest(dir, onnx, &digest)?;
        Ok(Self {
            dir: dir.to_owned(),
            manifest: Arc::new(manifest),
            golden: Arc::new(golden),
            motif_weights,
            file,
            len,
        })
    }

    /// Bytes of the sealed memory.
    pub fn len(&self) -> usize {
        self.len
    }
}

/// What a host sees of a package.
pub struct Opened {
    /// What the model is.
    pub manifest: Manifest,
    /// Its golden vectors.
    pub golden: Golden,
    /// The network.
    pub onnx: &'static [u8],
}

/// Opens an inherited package for the rest of the process' life.
///
/// # Errors
/// When the memory is not sealed or is not of this form; only a defect can cause that.
pub fn open_inherited(file: &File) -> Result<Opened, String> {
    let len = file.metadata().map_err(|e| e.to_string())?.len();
    let len = usize::try_from(len).map_err(|e| e.to_string())?;
    let bytes = Mapping::new(file, len, false).map_err(|e| e.to_string())?.leak();
    let [manifest, golden, onnx] = parts(bytes).ok_or("the model's memory is damaged")?;
    let text = std::str::from_utf8(manifest).map_err(|e| e.to_string())?;
    let manifest = Manifest::from_toml(text).map_err(|e| e.to_string())?;
    let golden = Golden::parse(golden, &manifest).map_err(|e| e.to_string())?;
    Ok(Opened { manifest, golden, onnx })
}

fn parts(bytes: &'static [u8]) -> Option<[&'static [u8]; PARTS]> {
    let mut at = PAGE;
    let mut out: [&[u8]; PARTS] = [&[]; PARTS];
    for (i, part) in out.iter_mut().enumerate() {
        let len = u64::from_le_bytes(bytes.get(i * 8..i * 8 + 8)?.try_into().ok()?);
        let range: Range<usize> = at..at.checked_add(usize::try_from(len).ok()?)?;
        *part = bytes.get(range.clone())?;
        at = range.end.next_multiple_of(PAGE);
    }
    Some(out)
}

fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    Ok(file)
}

fn read_side_file(dir: &Path, file: &FileRef) -> Result<Vec<u8>, LoadError> {
    let mut bytes = Vec::new();
    let fail = |e: &dyn std::fmt::Display| LoadError(format!("{}: {e}", dir.join(&file.file).display()));
    let opened = open(&dir.join(&file.file)).map_err(|e| fail(&e))?;
    let n = opened.take(MAX_SIDE_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|e| fail(&e))?;
    if n as u64 > MAX_SIDE_FILE_BYTES {
        return Err(fail(&format!("is larger than {MAX_SIDE_FILE_BYTES} bytes")));
    }
    check_digest(dir, file, &hex(&Sha256::digest(&bytes)))?;
    Ok(bytes)
}

fn check_digest(dir: &Path, file: &FileRef, got: &str) -> Result<(), LoadError> {
    if got == file.sha256 {
        return Ok(());
    }
    let path = dir.join(&file.file);
    Err(LoadError(format!("{}: its SHA-256 is {got}, the manifest says {}", path.display(), file.sha256)))
}

fn copy_hashing(mut from: File, to: &mut File) -> io::Result<(u64, String)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut len = 0;
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok((len, hex(&hasher.finalize())));
        }
        len += n as u64;
        if len > MAX_ONNX_BYTES {
            return Err(io::Error::other(format!("is larger than {MAX_ONNX_BYTES} bytes")));
        }
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
    }
}

fn append(out: &mut File, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    pad(out)
}

fn pad(out: &mut File) -> io::Result<()> {
    let at = out.stream_position()?;
    let zeros = at.next_multiple_of(PAGE as u64) - at;
    io::copy(&mut io::repeat(0).take(zeros), out).map(|_| ())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
