//! Writing bundles: the same input gives the same bytes, whatever the order of files, the directory or the clock.

use crate::bundle::{page_bytes, signature_section};
use crate::header::Header;
use crate::keys::{SigningKey, merge, signatures};
use crate::limits::{
    CHUNK_AVERAGE_BYTES, CHUNK_MAX_BYTES, CHUNK_MIN_BYTES, HEADER_BYTES, MAX_PAGES, MAX_SIGNATURES_BYTES,
    PAGE_CHUNKS,
};
use crate::manifest::{SYSTEM, plain_name, references};
use crate::trust::message;
use crate::{
    Bundle, BundleManifest, Chunk, Digest, FORMAT, FileEntry, IndexEntry, Kind, ModelEntry, Policy, Refusal,
    Role, cbor, zstd,
};
use fastcdc::v2020::StreamCDC;
use inferd_model::{MANIFEST_FILE, Manifest, ModelName};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// What to put in a bundle.
#[derive(Debug)]
pub struct BundleSpec {
    /// See [`BundleManifest::product`].
    pub product: ModelName,
    /// See [`BundleManifest::version`].
    pub version: u64,
    /// See [`BundleManifest::label`].
    pub label: String,
    /// See [`BundleManifest::summary`].
    pub summary: String,
    /// See [`BundleManifest::role`].
    pub role: Role,
    /// Boards, in any order; empty: any.
    pub targets: Vec<String>,
    /// See [`BundleManifest::min_inferd`].
    pub min_inferd: Option<String>,
    /// The models, in any order. None in a system.
    pub models: Vec<ModelSource>,
    /// The files of a system, in any order: `rootfs`, and `boot`, or `boot-a` and `boot-b`. None among models.
    pub system: Vec<FileSource>,
    /// See [`BundleManifest::policy`].
    pub policy: Policy,
    /// See [`BundleManifest::not_after`].
    pub not_after: Option<u64>,
    /// See [`BundleManifest::provenance`].
    pub provenance: String,
    /// Store chunks as zstd frames where that makes them shorter. Weights rarely get shorter, and unpacking costs the device time.
    pub compress: bool,
}

impl BundleSpec {
    /// A release of these models with default policy and no words about it.
    #[must_use]
    pub fn new(product: ModelName, version: u64, models: Vec<ModelSource>) -> Self {
        Self {
            product,
            version,
            label: version.to_string(),
            summary: String::new(),
            role: Role::ModelRelease,
            targets: Vec::new(),
            min_inferd: None,
            models,
            system: Vec::new(),
            policy: Policy::default(),
            not_after: None,
            provenance: String::new(),
            compress: false,
        }
    }

    /// A system of these files for these boards, stored compressed: what is unused in a filesystem is zeros.
    #[must_use]
    pub fn system(product: ModelName, version: u64, targets: Vec<String>, files: Vec<FileSource>) -> Self {
        Self {
            role: Role::SystemRelease,
            targets,
            system: files,
            compress: true,
            ..Self::new(product, version, Vec::new())
        }
    }
}

/// A model to put in a bundle. Its name, and which files it has, stand in its manifest.
#[derive(Debug)]
pub struct ModelSource {
    /// The text of `manifest.toml`.
    pub manifest: String,
    /// Every file the manifest refers to, in any order; others are refused.
    pub files: Vec<FileSource>,
}

impl ModelSource {
    /// A model directory: its manifest is read now, its files when the bundle is built.
    ///
    /// # Errors
    /// [`BuildError`] when the manifest cannot be read or is refused.
    pub fn directory(path: &Path) -> Result<Self, BuildError> {
        let page = path.join(MANIFEST_FILE);
        let failed = |error| BuildError::Read { what: page.display().to_string(), error };
        let manifest = std::fs::read_to_string(&page).map_err(failed)?;
        let parsed = Manifest::from_toml(&manifest)
            .map_err(|e| BuildError::Model { model: path.display().to_string(), why: e.to_string() })?;
        let mut files: Vec<FileSource> = Vec::new();
        for (name, _) in references(&parsed) {
            if files.iter().all(|f| f.name != name) {
                files.push(FileSource { name: name.to_owned(), content: Content::Path(path.join(name)) });
            }
        }
        Ok(Self { manifest, files })
    }
}

/// A file to put in a bundle.
#[derive(Debug)]
pub struct FileSource {
    /// The name the manifest calls it.
    pub name: String,
    /// Where its bytes are.
    pub content: Content,
}

/// Where bytes are. They are read twice.
pub enum Content {
    /// A file.
    Path(PathBuf),
    /// Here.
    Bytes(Vec<u8>),
    /// Whatever this opens; each time the same bytes.
    Open(Box<dyn Fn() -> io::Result<Box<dyn Read>>>),
}

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "Path({})", path.display()),
            Self::Bytes(bytes) => write!(f, "Bytes({})", bytes.len()),
            Self::Open(_) => f.write_str("Open"),
        }
    }
}

impl Content {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match self {
            Self::Path(path) => Box::new(File::open(path)?),
            Self::Bytes(bytes) => Box::new(bytes.as_slice()),
            Self::Open(open) => open()?,
        })
    }
}

/// What was built.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// The bundle's id.
    pub id: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// Its manifest.
    pub manifest: BundleManifest,
    /// Chunks that are stored compressed.
    pub compressed: u64,
}

/// Why a bundle was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file cannot be read.
    #[error("{what} cannot be read: {error}")]
    Read {
        /// The file.
        what: String,
        /// Why.
        error: io::Error,
    },
    /// The bundle cannot be written.
    #[error("the bundle cannot be written: {0}")]
    Write(io::Error),
    /// A model is not fit for a bundle.
    #[error("model {model}: {why}")]
    Model {
        /// The model, or where it is.
        model: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file changed while the bundle was built.
    #[error("{0} changed while the bundle was built; build it again")]
    Changed(String),
    /// No device would take it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// A file in the order of the payload.
struct Planned<'a> {
    /// Golden vectors, then small files, then networks.
    class: u8,
    model: ModelName,
    source: &'a FileSource,
}

/// Writes a bundle to `out` and signs it. Without signers it is well formed and no device takes it until it is signed
/// ([`resign`]).
///
/// # Errors
/// [`BuildError`]; what was written by then is not a bundle.
pub fn build(spec: &BundleSpec, signers: &[&SigningKey], out: &mut impl Write) -> Result<Built, BuildError> {
    let kind = if spec.system.is_empty() { Kind::Models } else { Kind::System };
    let mut parsed = Vec::new();
    for model in &spec.models {
        parsed.push((parse(model)?, model));
    }
    parsed.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let mut planned = Vec::new();
    for (manifest, model) in &parsed {
        for source in &model.files {
            let class = match source.name.as_str() {
                name if name == manifest.golden.file => 0,
                name if manifest.networks().any(|n| n.file == name) => 2,
                _ => 1,
            };
            planned.push(Planned { class, model: manifest.name.clone(), source });
        }
    }
    planned.sort_by(|a, b| (a.class, &a.model, &a.source.name).cmp(&(b.class, &b.model, &b.source.name)));

    let mut chunks = Vec::new();
    let mut entries: Vec<ModelEntry> = Vec::new();
    for (manifest, model) in &parsed {
        entries.push(ModelEntry {
            name: manifest.name.clone(),
            manifest: model.manifest.clone(),
            files: Vec::new(),
        });
    }
    if kind == Kind::System {
        if !spec.models.is_empty() {
            return Err(Refusal::manifest("models", "a system carries no models").into());
        }
        let name = ModelName::new(SYSTEM)
            .map_err(|e| BuildError::Model { model: SYSTEM.to_owned(), why: e.to_string() })?;
        // What starts it before what it starts: the smaller one fails earlier.
        planned.extend(spec.system.iter().map(|source| Planned { class: 0, model: name.clone(), source }));
        planned.sort_by(|a, b| a.source.name.cmp(&b.source.name));
        entries.push(ModelEntry { name, manifest: String::new(), files: Vec::new() });
    }
    for file in &planned {
        let entry = cut(file, spec.compress, &mut chunks)?;
        if let Some(model) = entries.iter_mut().find(|m| m.name == file.model) {
            model.files.push(entry);
        }
    }
    entries.iter_mut().for_each(|m| m.files.sort_by(|a, b| a.name.cmp(&b.name)));

    let pages: Vec<Vec<u8>> = chunks
        .chunks(PAGE_CHUNKS as usize)
        .map(|page| page_bytes(page.first().map_or(0, |c| c.offset), page))
        .collect();
    let table: Vec<u8> = pages.iter().flat_map(|p| Digest::of(p).0).collect();
    let page_count = u32::try_from(pages.len())
        .ok()
        .filter(|&n| n <= MAX_PAGES)
        .ok_or(Refusal::TooLarge { what: "the index", len: pages.len() as u64, max: u64::from(MAX_PAGES) })?;
    let payload_len = chunks.last().map_or(0, |c| c.range().end);
    let mut targets = spec.targets.clone();
    targets.sort_unstable();
    targets.dedup();
    let manifest = BundleManifest {
        format: FORMAT,
        kind,
        product: spec.product.clone(),
        version: spec.version,
        label: spec.label.clone(),
        summary: spec.summary.clone(),
        role: spec.role,
        targets,
        min_inferd: spec.min_inferd.clone(),
        models: entries,
        policy: spec.policy.clone(),
        index: IndexEntry {
            chunks: chunks.len() as u64,
            pages: page_count,
            payload_len,
            table_sha256: Digest::of(&table),
        },
        not_after: spec.not_after,
        provenance: spec.provenance.clone(),
    };
    let manifest_bytes = cbor::to_bytes(&manifest);
    let id = Digest::of(&manifest_bytes);
    let section = signature_section(&signatures(signers, &message("bundle", id)));
    let (header, prefix) = prefix(&manifest_bytes, &section, &table, page_count, payload_len)?;
    // A reader judges it before anyone else does.
    let bundle = Bundle::parse(&prefix)?;
    if kind == Kind::Models {
        for model in &bundle.manifest().models {
            model.parse()?;
        }
    }

    out.write_all(&prefix).map_err(BuildError::Write)?;
    for page in &pages {
        out.write_all(page).map_err(BuildError::Write)?;
    }
    let mut number = 0;
    for file in &planned {
        for piece in pieces(file)? {
            let piece = piece?;
            let (stored, chunk) = store(&piece, spec.compress, &chunks, number);
            let expected = chunks.get(number).ok_or_else(|| BuildError::Changed(file.source.name.clone()))?;
            if *expected != chunk {
                return Err(BuildError::Changed(file.source.name.clone()));
            }
            out.write_all(&stored).map_err(BuildError::Write)?;
            number += 1;
        }
    }
    if number != chunks.len() {
        return Err(BuildError::Changed("a file".to_owned()));
    }
    let padding = header.total_len - (header.payload_at + payload_len);
    io::copy(&mut io::repeat(0).take(padding), out).map_err(BuildError::Write)?;
    out.flush().map_err(BuildError::Write)?;
    let compressed = chunks.iter().filter(|c| c.compressed).count() as u64;
    Ok(Built { id, len: header.total_len, manifest, compressed })
}

/// Copies a bundle and adds signatures, so that holders of keys can sign one after the other. Its id stays the same; a
/// signature of the same key is replaced. The payload is copied as it is, not verified.
///
/// # Errors
/// [`BuildError`]; what was written by then is not a bundle.
pub fn resign(
    input: &mut impl Read,
    signers: &[&SigningKey],
    out: &mut impl Write,
) -> Result<Built, BuildError> {
    let failed = |error| BuildError::Read { what: "the bundle".to_owned(), error };
    let mut first = [0; HEADER_BYTES];
    input.read_exact(&mut first).map_err(failed)?;
    let need = Bundle::prefix_len(&first)?;
    let mut bytes = first.to_vec();
    let rest = need - HEADER_BYTES as u64;
    input.take(rest).read_to_end(&mut bytes).map_err(failed)?;
    let bundle = Bundle::parse(&bytes)?;
    let old = bundle.header();
    let part = |at: u64, len: u64| {
        let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        bytes.get(place(at)..place(at + len)).unwrap_or_default()
    };
    let mut all = bundle.signatures().to_vec();
    merge(&mut all, signatures(signers, &message("bundle", bundle.id())));
    let (header, prefix) = prefix(
        part(old.manifest_at, old.manifest_len),
        &signature_section(&all),
        part(old.table_at, old.table_len),
        old.pages,
        old.payload_len,
    )?;
    out.write_all(&prefix).map_err(BuildError::Write)?;
    let copied = io::copy(input, out).map_err(BuildError::Write)?;
    let expected = header.total_len - header.index_at;
    if copied != expected {
        return Err(Refusal::Truncated { have: need + copied, need: need + expected }.into());
    }
    out.flush().map_err(BuildError::Write)?;
    Ok(Built { id: bundle.id(), len: header.total_len, manifest: bundle.manifest().clone(), compressed: 0 })
}

/// Everything before the index.
fn prefix(
    manifest: &[u8],
    signatures: &[u8],
    table: &[u8],
    pages: u32,
    payload_len: u64,
) -> Result<(Header, Vec<u8>), Refusal> {
    debug_assert!(signatures.len() as u64 <= MAX_SIGNATURES_BYTES);
    let header = Header::new(
        (manifest.len() as u64, Digest::of(manifest)),
        (signatures.len() as u64, Digest::of(signatures)),
        pages,
        payload_len,
    )?;
    let mut bytes = header.encode().to_vec();
    for (section, end) in
        [(manifest, header.signatures_at), (signatures, header.table_at), (table, header.index_at)]
    {
        bytes.extend_from_slice(section);
        bytes.resize(usize::try_from(end).unwrap_or(usize::MAX), 0);
    }
    Ok((header, bytes))
}

/// A model's manifest, when the files beside it are those it refers to.
fn parse(model: &ModelSource) -> Result<Manifest, BuildError> {
    let manifest = Manifest::from_toml(&model.manifest).map_err(|e| BuildError::Model {
        model: model.manifest.lines().find(|l| l.starts_with("name")).unwrap_or("without a name").to_owned(),
        why: e.to_string(),
    })?;
    let refuse = |why: String| Err(BuildError::Model { model: manifest.name.to_string(), why });
    let needed = references(&manifest);
    for (name, _) in &needed {
        if model.files.iter().filter(|f| f.name == *name).count() != 1 {
            return refuse(format!("{name} is needed, once"));
        }
    }
    if let Some(file) = model.files.iter().find(|f| needed.iter().all(|(name, _)| *name != f.name)) {
        return refuse(format!("its manifest does not refer to {}", file.name));
    }
    if let Some(file) = model.files.iter().find(|f| !plain_name(&f.name)) {
        return refuse(format!(
            "{:?}: a file in a bundle has a name of a-z A-Z 0-9 . _ - not starting with a dot",
            file.name
        ));
    }
    Ok(manifest)
}

/// The pieces of a file, cut where its content says.
fn pieces<'a>(
    file: &'a Planned<'_>,
) -> Result<impl Iterator<Item = Result<Vec<u8>, BuildError>> + 'a, BuildError> {
    let failed = |error| BuildError::Read { what: file.source.name.clone(), error };
    let source = file.source.content.open().map_err(failed)?;
    let cutter = StreamCDC::new(source, CHUNK_MIN_BYTES, CHUNK_AVERAGE_BYTES, CHUNK_MAX_BYTES);
    Ok(cutter.map(move |piece| piece.map(|p| p.data).map_err(|e| failed(e.into()))))
}

/// A piece as it is stored, and its record as chunk `number`, which follows the one before.
fn store(raw: &[u8], compress: bool, chunks: &[Chunk], number: usize) -> (Vec<u8>, Chunk) {
    let packed = if compress { zstd::pack(raw) } else { None };
    let compressed = packed.is_some();
    let stored = packed.unwrap_or_else(|| raw.to_vec());
    let offset = number.checked_sub(1).and_then(|i| chunks.get(i)).map_or(0, |c| c.range().end);
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let chunk = Chunk {
        number: number as u64,
        digest: Digest::of(&stored),
        offset,
        stored_len: len(&stored),
        raw_len: len(raw),
        compressed,
    };
    (stored, chunk)
}

/// Cuts a file and adds its chunks, whose offsets count from the payload's start.
fn cut(file: &Planned<'_>, compress: bool, chunks: &mut Vec<Chunk>) -> Result<FileEntry, BuildError> {
    let first = chunks.len();
    let (mut len, mut sha256) = (0_u64, Sha256::new());
    for piece in pieces(file)? {
        let piece = piece?;
        len += piece.len() as u64;
        sha256.update(&piece);
        let (_, chunk) = store(&piece, compress, chunks, chunks.len());
        chunks.push(chunk);
    }
    let count = (chunks.len() - first) as u64;
    Ok(FileEntry {
        name: file.source.name.clone(),
        len,
        sha256: Digest(sha256.finalize().into()),
        first_chunk: if count == 0 { 0 } else { first as u64 },
        chunks: count,
    })
}
