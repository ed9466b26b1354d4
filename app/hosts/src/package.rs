//! A model in memory: read from its source once, checked against its digests, sealed.
//!
//! What a host loads is this sealed memory, never a path that could have changed since it was checked. It stays for as
//! long as the model is served, so that a host can be started again without touching the disk.

use crate::limits::{MAX_ONNX_BYTES, MAX_SIDE_FILE_BYTES};
use crate::sys::{self, Mapping};
use inferd_engine::NetworkFile;
use inferd_model::{
    EngineKind, FileRef, Golden, LinearHead, MANIFEST_FILE, MAX_MANIFEST_BYTES, MAX_VARIANTS, Manifest,
    Motif, Rung, Tolerance,
};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a model is refused: one sentence for the operator.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct LoadError(pub String);

/// Where a model comes from. As text: the directory's path, or `bundle PRODUCT VERSION in slot A`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A model directory.
    Directory(PathBuf),
    /// A verified bundle in a slot.
    Bundle {
        /// The bundle's id: SHA-256 of its manifest, 64 hex digits.
        id: String,
        /// The slot, `A` or `B`.
        slot: char,
        /// The bundle's product.
        product: String,
        /// The bundle's version.
        version: u64,
    },
}

impl Origin {
    /// The directory, when it is one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Directory(dir) => Some(dir),
            Self::Bundle { .. } => None,
        }
    }

    /// One of its files as the operator knows it: the path in a directory, `bundle PRODUCT VERSION in slot A: FILE` else.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        match self {
            Self::Directory(dir) => dir.join(name).display().to_string(),
            Self::Bundle { .. } => format!("{self}: {name}"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => dir.display().fmt(f),
            Self::Bundle { slot, product, version, .. } => {
                write!(f, "bundle {product} {version} in slot {slot}")
            }
        }
    }
}

/// Opens a file of a model by the name its manifest gives it.
pub type OpenFile = Box<dyn FnMut(&str) -> io::Result<Box<dyn Read>> + Send>;

/// What a model is made from: its manifest and a way to its files. Nothing of it is trusted: every file is read once, to its
/// limit, and must have the digest the manifest gives it.
pub struct ModelSource {
    /// Where it comes from; only named, never opened.
    pub origin: Origin,
    /// The text of its `manifest.toml`.
    pub manifest: String,
    /// Its files. Called off the data plane, once a file.
    pub files: OpenFile,
}

impl ModelSource {
    /// The model of a directory. Reads the manifest: blocking.
    ///
    /// # Errors
    /// [`LoadError`] when there is no manifest that can be read.
    pub fn directory(dir: &Path) -> Result<Self, LoadError> {
        let (origin, dir) = (Origin::Directory(dir.to_owned()), dir.to_owned());
        let mut manifest = String::new();
        open(&dir.join(MANIFEST_FILE))
            .and_then(|f| f.take(MAX_MANIFEST_BYTES as u64 + 1).read_to_string(&mut manifest))
            .map_err(|e| LoadError(format!("{}: {e}", origin.file(MANIFEST_FILE))))?;
        let files: OpenFile =
            Box::new(move |name| open(&dir.join(name)).map(|f| Box::new(f) as Box<dyn Read>));
        Ok(Self { origin, manifest, files })
    }
}

impl fmt::Debug for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelSource").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Why a source gives no package.
#[derive(Clone, Debug, PartialEq)]
pub enum Unfit {
    /// The manifest cannot be read as one.
    Manifest(LoadError),
    /// A file is missing, too large, or not what the manifest says.
    File(LoadError),
}

impl From<Unfit> for LoadError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Manifest(e) | Unfit::File(e) => e,
        }
    }
}

/// A checked model in sealed memory.
pub struct Package {
    /// Where it came from.
    pub origin: Origin,
    /// What it is.
    pub manifest: Arc<Manifest>,
    /// Its golden vectors.
    pub golden: Arc<Golden>,
    /// The motif head's file, when there is one.
    pub motif_weights: Option<Arc<[u8]>>,
    /// Manifest, golden vectors and networks, sealed.
    pub file: File,
    len: usize,
}

const PAGE: usize = 4096;
/// Before the parts: as many little-endian u64 lengths, the rest of the page zero. The parts are the manifest, the golden vectors,
/// and the networks in the manifest's order ([`Manifest::networks`]), empty where they were not read.
const PARTS: usize = 2 + 1 + MAX_VARIANTS;

impl Package {
    /// Reads a source: of its networks those that the engines here can run, the others need not be there. Blocking; call it off
    /// the data plane.
    ///
    /// # Errors
    /// [`Unfit`] for the first thing that is missing, too large, damaged or not as the manifest says.
    pub fn read(source: ModelSource, here: impl Fn(EngineKind) -> bool) -> Result<Self, Unfit> {
        let ModelSource { origin, manifest: text, files } = source;
        let manifest = Manifest::from_toml(&text)
            .map_err(|e| Unfit::Manifest(LoadError(format!("{}: {e}", origin.file(MANIFEST_FILE)))))?;
        Self::read_files(Files { origin, open: files }, &text, manifest, here).map_err(Unfit::File)
    }

    fn read_files(
        mut files: Files,
        text: &str,
        manifest: Manifest,
        here: impl Fn(EngineKind) -> bool,
    ) -> Result<Self, LoadError> {
        let golden_file =
            FileRef { file: manifest.golden.file.clone(), sha256: manifest.golden.sha256.clone() };
        let golden_bytes = files.side_file(&golden_file)?;
        let golden =
            Golden::parse(&golden_bytes, &manifest).map_err(|e| files.fail(&golden_file.file, &e))?;
        let motif_weights = match manifest.imu.as_ref().and_then(|i| i.motif.as_ref()) {
            Some(Motif::Linear { file, sha256, .. }) => {
                let head = files.side_file(&FileRef { file: file.clone(), sha256: sha256.clone() })?;
                LinearHead::parse(&head, &manifest).map_err(|e| files.fail(file, &e))?;
                Some(head.into())
            }
            _ => None,
        };

        let usable = manifest.engines.iter().filter(|r| here(r.engine));
        let usable: Vec<usize> = usable.filter_map(|&r| manifest.network_index(r)).collect();
        let sealing = |e: io::Error| LoadError(format!("{}: {e}", files.origin));
        let mut lens = vec![text.len() as u64, golden_bytes.len() as u64];
        let begin = || -> io::Result<File> {
            let mut out = sys::memory_file("inferd-model")?;
            out.write_all(&[0; PAGE])?;
            append(&mut out, text.as_bytes())?;
            append(&mut out, &golden_bytes)?;
            Ok(out)
        };
        let mut file = begin().map_err(sealing)?;
        for (i, network) in manifest.networks().enumerate() {
            lens.push(match usable.contains(&i) {
                true => files.network(network.file, network.sha256, &mut file)?,
                false => 0,
            });
        }
        let end = |out: &mut File| -> io::Result<usize> {
            out.seek(SeekFrom::Start(0))?;
            for len in lens {
                out.write_all(&len.to_le_bytes())?;
            }
            sys::seal(out, true)?;
            usize::try_from(out.metadata()?.len()).map_err(io::Error::other)
        };
        let len = end(&mut file).map_err(|e| LoadError(format!("{}: {e}", files.origin)))?;
        Ok(Self {
            origin: files.origin,
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
    /// The network of the host's rung.
    pub network: NetworkFile,
    /// How near it must come to the golden vectors.
    pub tolerance: Tolerance,
}

/// Maps an inherited package for the rest of the process' life. Nothing of it is read.
///
/// # Errors
/// When the memory is not sealed; only a defect can cause that.
pub fn map_inherited(file: &File) -> Result<&'static [u8], String> {
    Ok(Mapping::whole(file, false).map_err(|e| e.to_string())?.leak())
}

/// Reads a package that was mapped, for a host of this rung.
///
/// # Errors
/// When the memory is not of this form, or has no network for the rung; only a defect can cause that.
pub fn read_inherited(bytes: &'static [u8], rung: Rung) -> Result<Opened, String> {
    let [manifest, golden, networks @ ..] = parts(bytes).ok_or("the model's memory is damaged")?;
    let text = std::str::from_utf8(manifest).map_err(|e| e.to_string())?;
    let manifest = Manifest::from_toml(text).map_err(|e| e.to_string())?;
    let golden = Golden::parse(golden, &manifest).map_err(|e| e.to_string())?;
    let bytes = manifest.network_index(rung).and_then(|i| networks.get(i).copied());
    let found = bytes.filter(|b| !b.is_empty()).zip(manifest.network(rung));
    let Some((bytes, network)) = found else {
        return Err(format!("the model's memory has no network for {rung}"));
    };
    let (format, tolerance) = (network.format, network.tolerance);
    Ok(Opened { network: NetworkFile { bytes, format }, tolerance, manifest, golden })
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
    // Opening a named pipe would wait for somebody to write into it.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    Ok(file)
}

/// The files of a source, with words for what is wrong with one.
struct Files {
    origin: Origin,
    open: OpenFile,
}

impl Files {
    fn fail(&self, name: &str, e: &dyn fmt::Display) -> LoadError {
        LoadError(format!("{}: {e}", self.origin.file(name)))
    }

    fn side_file(&mut self, file: &FileRef) -> Result<Vec<u8>, LoadError> {
        let mut bytes = Vec::new();
        let opened = (self.open)(&file.file).map_err(|e| self.fail(&file.file, &e))?;
        let limit = MAX_SIDE_FILE_BYTES;
        let n = opened.take(limit + 1).read_to_end(&mut bytes).map_err(|e| self.fail(&file.file, &e))?;
        if n as u64 > limit {
            return Err(self.fail(&file.file, &format!("is larger than {limit} bytes")));
        }
        self.check_digest(file, &hex(&Sha256::digest(&bytes)))?;
        Ok(bytes)
    }

    /// Copies a network to the end of `out`; its length.
    fn network(&mut self, file: &str, sha256: &str, out: &mut File) -> Result<u64, LoadError> {
        let mut copy = || -> io::Result<(u64, String)> {
            let copied = copy_hashing((self.open)(file)?, out)?;
            pad(out)?;
            Ok(copied)
        };
        let (len, digest) = copy().map_err(|e| self.fail(file, &e))?;
        if len == 0 {
            return Err(self.fail(file, &"the model file is empty"));
        }
        self.check_digest(&FileRef { file: file.to_owned(), sha256: sha256.to_owned() }, &digest)?;
        Ok(len)
    }

    fn check_digest(&self, file: &FileRef, got: &str) -> Result<(), LoadError> {
        if got == file.sha256 {
            return Ok(());
        }
        Err(self.fail(&file.file, &format!("its SHA-256 is {got}, the manifest says {}", file.sha256)))
    }
}

fn copy_hashing(mut from: impl Read, to: &mut File) -> io::Result<(u64, String)> {
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
