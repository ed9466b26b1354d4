//! The manifest: what a bundle is, for whom, and how it proves itself. Canonical CBOR, signed.

use crate::cbor::{self, ascends, check_text};
use crate::limits::{
    CHUNK_MAX_BYTES, MAX_FILE_NAME, MAX_FILES, MAX_LABEL, MAX_MODELS, MAX_PAGES, MAX_PROVENANCE, MAX_SUMMARY,
    MAX_TARGETS, PAGE_CHUNKS,
};
use crate::{Digest, FORMAT, Refusal, Role};
use inferd_model::{Manifest, ModelName, Motif};
use minicbor::{Decode, Encode};
use serde::Serialize;
use std::ops::Range;

/// Everything about a bundle but its content and its signatures. Its digest is the bundle's id.
#[derive(Clone, Debug, PartialEq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct BundleManifest {
    /// Version of the format: [`FORMAT`].
    #[n(0)]
    pub format: u32,
    /// What is inside.
    #[n(1)]
    pub kind: Kind,
    /// What these models together are called. The anti-rollback floor is kept per product.
    #[cbor(n(2), with = "cbor::name")]
    pub product: ModelName,
    /// The anti-rollback number: a device takes none below the highest it committed.
    #[n(3)]
    pub version: u64,
    /// The version for people: `2026.11.3`, 1 to 64 printable characters without spaces.
    #[n(4)]
    pub label: String,
    /// One line for people.
    #[n(5)]
    pub summary: String,
    /// The role whose keys must sign: [`Role::ModelRelease`] or [`Role::ModelDev`] of models, [`Role::SystemRelease`] of a system.
    #[n(6)]
    pub role: Role,
    /// Boards it may run on, ascending; empty: any. A system names at least one.
    #[cbor(n(7), decode_with = "cbor::list::<_, _, MAX_TARGETS>")]
    pub targets: Vec<String>,
    /// The least version of inferd that can run it, `MAJOR.MINOR.PATCH`.
    #[n(8)]
    pub min_inferd: Option<String>,
    /// The models, ascending by name. A system is one entry called [`SYSTEM`] without a manifest: see [`BundleManifest::system`].
    #[cbor(n(9), decode_with = "cbor::list::<_, _, MAX_MODELS>")]
    pub models: Vec<ModelEntry>,
    /// What a device asks of the models before it keeps them.
    #[n(10)]
    pub policy: Policy,
    /// The chunk index.
    #[n(11)]
    pub index: IndexEntry,
    /// When it should no longer be installed, in Unix seconds. Advice: no decision needs the clock.
    #[n(12)]
    pub not_after: Option<u64>,
    /// Where it comes from: free text of several lines.
    #[n(13)]
    pub provenance: String,
}

/// What is in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Kind {
    /// Models.
    #[n(0)]
    Models,
    /// A system: a root filesystem and what starts it.
    #[n(1)]
    System,
}

/// What the one entry of a system bundle is called.
pub const SYSTEM: &str = "system";
/// The root filesystem in a system bundle: the first bytes of `rootfs-a` or `rootfs-b`.
pub const ROOTFS: &str = "rootfs";
/// What starts it, where it is the same for both slots: the first bytes of `boot-a` or `boot-b`.
pub const BOOT: &str = "boot";
/// What starts it, where each slot has its own.
pub const BOOTS: [&str; 2] = ["boot-a", "boot-b"];

/// A system bundle as its manifest has it: files that lie at the beginning of partitions, byte for byte.
#[derive(Clone, Copy, Debug)]
pub struct System<'a> {
    /// The root filesystem.
    pub rootfs: &'a FileEntry,
    /// What starts it from slot a, and from slot b; the same file where it does not matter, none where the boot loader has it.
    pub boot: Option<[&'a FileEntry; 2]>,
}

/// A model in a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct ModelEntry {
    /// The name it is served under; the same as in its manifest.
    #[cbor(n(0), with = "cbor::name")]
    pub name: ModelName,
    /// The text of its `manifest.toml`; read it with [`ModelEntry::parse`].
    #[n(1)]
    pub manifest: String,
    /// Its files, ascending by name.
    #[cbor(n(2), decode_with = "cbor::list::<_, _, MAX_FILES>")]
    pub files: Vec<FileEntry>,
}

/// A file of a model. Its content is the unpacked chunks one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct FileEntry {
    /// The plain name the model's manifest calls it.
    #[n(0)]
    pub name: String,
    /// Bytes.
    #[n(1)]
    pub len: u64,
    /// Digest of the content.
    #[n(2)]
    pub sha256: Digest,
    /// Its first chunk.
    #[n(3)]
    pub first_chunk: u64,
    /// How many chunks it has: none when it is empty.
    #[n(4)]
    pub chunks: u64,
}

/// What a device asks of the models before it keeps them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct Policy {
    /// Comparison with live requests before the models serve; absent: none.
    #[n(0)]
    pub shadow: Option<ShadowPolicy>,
    /// The time after they serve in which they may be taken back.
    #[n(1)]
    pub probation: ProbationPolicy,
}

/// Live requests are run by the candidate too, after they were answered.
#[derive(Clone, Debug, PartialEq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct ShadowPolicy {
    /// Requests to mirror, 1 to 1,000,000.
    #[n(0)]
    pub requests: u32,
    /// Least cosine similarity of an output to the serving model's, -1 to 1.
    #[n(1)]
    pub min_cosine: f64,
    /// Least share of requests whose largest element is at the same place, 0 to 1.
    #[n(2)]
    pub min_agreement: f64,
    /// Largest ratio of compute times, above 0 and at most 1000.
    #[n(3)]
    pub max_latency_ratio: f64,
    /// Largest share of requests that fail, 0 to 1.
    #[n(4)]
    pub max_error_rate: f64,
}

/// Bounds on new models while they serve and may still be taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct ProbationPolicy {
    /// How long, in seconds; at most a week.
    #[n(0)]
    pub seconds: u32,
    /// After how many requests it may end early; 0: never early.
    #[n(1)]
    pub requests: u32,
    /// Largest share of requests that fail, 0 to 1.
    #[n(2)]
    pub max_error_rate: f64,
    /// Largest ratio of the 99th percentile of compute time to the old model's, above 0 and at most 1000.
    #[n(3)]
    pub max_p99_ratio: f64,
    /// Largest drift of outputs from the old model's, 0 to 1,000,000; what it measures is the device's business.
    #[n(4)]
    pub max_drift: f64,
}

impl Default for ProbationPolicy {
    fn default() -> Self {
        Self { seconds: 300, requests: 0, max_error_rate: 0.01, max_p99_ratio: 2.0, max_drift: 0.25 }
    }
}

/// The chunk index: how large it is, and the digest of its page table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct IndexEntry {
    /// Chunks in all.
    #[n(0)]
    pub chunks: u64,
    /// Index pages: `chunks` by [`PAGE_CHUNKS`], rounded up.
    #[n(1)]
    pub pages: u32,
    /// Stored bytes of all chunks.
    #[n(2)]
    pub payload_len: u64,
    /// Digest of the page table.
    #[n(3)]
    pub table_sha256: Digest,
}

impl BundleManifest {
    /// Reads a manifest and checks all that can be checked without the rest of the bundle.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, Refusal> {
        let manifest: Self = cbor::from_bytes(bytes).map_err(Refusal::ManifestForm)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The model of this name.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.models.iter().find(|m| m.name.as_str() == name)
    }

    /// The files of a system; `None` in a bundle of models.
    #[must_use]
    pub fn system(&self) -> Option<System<'_>> {
        let entry = self.model(SYSTEM).filter(|_| self.kind == Kind::System)?;
        let boot = match (entry.file(BOOT), BOOTS.map(|name| entry.file(name))) {
            (Some(both), _) => Some([both, both]),
            (None, [Some(a), Some(b)]) => Some([a, b]),
            _ => None,
        };
        Some(System { rootfs: entry.file(ROOTFS)?, boot })
    }

    /// Whether it may run on a board.
    #[must_use]
    pub fn runs_on(&self, board: &str) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|t| t == board)
    }

    /// Whether inferd of version `have` (`MAJOR.MINOR.PATCH`, what follows a `-` or `+` is left out) is new enough.
    #[must_use]
    pub fn runs_with(&self, have: &str) -> bool {
        let plain = have.split(['-', '+']).next().unwrap_or_default();
        self.min_inferd.as_deref().is_none_or(|least| match (three(least), three(plain)) {
            (Some(least), Some(have)) => have >= least,
            _ => false,
        })
    }

    /// The model and file a chunk belongs to.
    #[must_use]
    pub fn owner(&self, chunk: u64) -> Option<(&ModelEntry, &FileEntry)> {
        self.files().find(|(_, f)| f.chunk_range().contains(&chunk))
    }

    /// Every file with its model.
    pub fn files(&self) -> impl Iterator<Item = (&ModelEntry, &FileEntry)> {
        self.models.iter().flat_map(|m| m.files.iter().map(move |f| (m, f)))
    }

    /// Bytes of all files, unpacked. It cannot overflow: a length is bounded by the chunks.
    #[must_use]
    pub fn files_len(&self) -> u64 {
        self.files().map(|(_, f)| f.len).sum()
    }

    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.format != FORMAT {
            return Err(Refusal::Format(self.format));
        }
        match (self.kind, self.role) {
            (Kind::Models, Role::ModelRelease | Role::ModelDev) | (Kind::System, Role::SystemRelease) => {}
            (Kind::Models, role) => {
                return Err(Refusal::manifest("role", format!("{role} cannot sign models")));
            }
            (Kind::System, role) => {
                return Err(Refusal::manifest("role", format!("{role} cannot sign a system")));
            }
        }
        if self.label.is_empty()
            || self.label.len() > MAX_LABEL
            || !self.label.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(Refusal::manifest("label", "1 to 64 printable characters without spaces"));
        }
        check_text("summary", &self.summary, MAX_SUMMARY, false)?;
        check_text("provenance", &self.provenance, MAX_PROVENANCE, true)?;
        if !ascends(&self.targets) || self.targets.iter().any(|t| ModelName::new(t).is_err()) {
            return Err(Refusal::manifest("targets", "names of boards, ascending, each once"));
        }
        if self.min_inferd.as_deref().is_some_and(|v| three(v).is_none()) {
            return Err(Refusal::manifest("min_inferd", "three numbers, as in 1.2.3"));
        }
        self.policy.check()?;
        self.check_models()?;
        if self.kind == Kind::System {
            self.check_system()?;
        }
        self.index.check()
    }

    /// One entry with the files a system has, for boards that are named.
    fn check_system(&self) -> Result<(), Refusal> {
        let [entry] = self.models.as_slice() else {
            return Err(Refusal::manifest("models", "a system is one entry"));
        };
        if entry.name.as_str() != SYSTEM || !entry.manifest.is_empty() {
            return Err(Refusal::manifest("models", "a system is called `system` and has no manifest"));
        }
        let names: Vec<&str> = entry.files.iter().map(|f| f.name.as_str()).collect();
        let known = [&[ROOTFS][..], &[BOOT, ROOTFS], &[BOOTS[0], BOOTS[1], ROOTFS]];
        if !known.contains(&names.as_slice()) || entry.files.iter().any(|f| f.len == 0) {
            let why =
                "a system has `rootfs`, and `boot`, or `boot-a` and `boot-b`, or neither; none is empty";
            return Err(Refusal::manifest("models.files", why));
        }
        if self.targets.is_empty() {
            return Err(Refusal::manifest("targets", "a system names the boards it is for"));
        }
        if self.policy.shadow.is_some() {
            return Err(Refusal::manifest("policy.shadow", "a system has no shadow"));
        }
        Ok(())
    }

    /// Names ascend; the chunks of the files are the chunks of the bundle, each once.
    fn check_models(&self) -> Result<(), Refusal> {
        if self.models.is_empty() || !ascends(self.models.iter().map(|m| &m.name)) {
            return Err(Refusal::manifest("models", "at least one, ascending by name, each once"));
        }
        for model in &self.models {
            if model.manifest.len() > inferd_model::MAX_MANIFEST_BYTES {
                return Err(Refusal::manifest("models.manifest", "it is too long"));
            }
            if model.files.is_empty() || !ascends(model.files.iter().map(|f| &f.name)) {
                return Err(Refusal::manifest("models.files", "at least one, ascending by name, each once"));
            }
            if let Some(file) = model.files.iter().find(|f| !plain_name(&f.name)) {
                return Err(Refusal::manifest(
                    "models.files",
                    format!("{:?} is not a plain file name", file.name),
                ));
            }
        }
        let mut spans = Vec::new();
        for (_, file) in self.files() {
            let most = file.chunks.checked_mul(CHUNK_MAX_BYTES as u64);
            if file.len < file.chunks || most.is_none_or(|most| file.len > most) {
                return Err(Refusal::manifest(
                    "models.files",
                    format!("{:?}: chunks do not fit the length", file.name),
                ));
            }
            if file.chunks > 0 {
                spans.push((file.first_chunk, file.chunks));
            } else if file.first_chunk != 0 {
                return Err(Refusal::manifest(
                    "models.files",
                    format!("{:?}: empty, yet it starts somewhere", file.name),
                ));
            }
        }
        spans.sort_unstable();
        let mut next = 0_u64;
        for (first, chunks) in spans {
            if first != next {
                return Err(Refusal::manifest(
                    "models.files",
                    "two files share a chunk, or a chunk is nobody's",
                ));
            }
            // `next` is at most index.chunks in a good manifest; a sum that leaves u64 is none.
            next = next
                .checked_add(chunks)
                .ok_or_else(|| Refusal::manifest("models.files", "too many chunks"))?;
        }
        if next != self.index.chunks {
            return Err(Refusal::manifest("index.chunks", "not as many as the files have"));
        }
        Ok(())
    }
}

impl Policy {
    fn check(&self) -> Result<(), Refusal> {
        let within = |key: &'static str, value: f64, least: f64, most: f64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else if least == f64::MIN_POSITIVE {
                Err(Refusal::manifest(key, format!("{value} is not above 0 and at most {most}")))
            } else {
                Err(Refusal::manifest(key, format!("{value} is not between {least} and {most}")))
            }
        };
        if let Some(shadow) = &self.shadow {
            within("policy.shadow.requests", f64::from(shadow.requests), 1.0, 1e6)?;
            within("policy.shadow.min_cosine", shadow.min_cosine, -1.0, 1.0)?;
            within("policy.shadow.min_agreement", shadow.min_agreement, 0.0, 1.0)?;
            within("policy.shadow.max_latency_ratio", shadow.max_latency_ratio, f64::MIN_POSITIVE, 1e3)?;
            within("policy.shadow.max_error_rate", shadow.max_error_rate, 0.0, 1.0)?;
        }
        let probation = &self.probation;
        within("policy.probation.seconds", f64::from(probation.seconds), 0.0, 604_800.0)?;
        within("policy.probation.max_error_rate", probation.max_error_rate, 0.0, 1.0)?;
        within("policy.probation.max_p99_ratio", probation.max_p99_ratio, f64::MIN_POSITIVE, 1e3)?;
        within("policy.probation.max_drift", probation.max_drift, 0.0, 1e6)
    }
}

impl IndexEntry {
    fn check(&self) -> Result<(), Refusal> {
        if self.pages > MAX_PAGES {
            return Err(Refusal::manifest(
                "index.pages",
                format!("{}, at most {MAX_PAGES} are allowed", self.pages),
            ));
        }
        if self.chunks == 0 || self.chunks.div_ceil(u64::from(PAGE_CHUNKS)) != u64::from(self.pages) {
            return Err(Refusal::manifest("index.pages", "not as many as the chunks need"));
        }
        // No overflow: the chunks of 16,384 pages are below 2^25.
        if self.payload_len < self.chunks || self.payload_len > self.chunks * CHUNK_MAX_BYTES as u64 {
            return Err(Refusal::manifest("index.payload_len", "not what the chunks can hold"));
        }
        Ok(())
    }
}

impl ModelEntry {
    /// The file of this name.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&FileEntry> {
        self.files.iter().find(|f| f.name == name)
    }

    /// Reads the model's own manifest and checks that it has this name and that every file it refers to is in the bundle
    /// with the digest it says. Do this once the signatures are accepted.
    ///
    /// # Errors
    /// [`Refusal::ModelManifest`].
    pub fn parse(&self) -> Result<Manifest, Refusal> {
        let refuse = |why: String| Refusal::ModelManifest { model: self.name.to_string(), why };
        let manifest = Manifest::from_toml(&self.manifest).map_err(|e| refuse(e.to_string()))?;
        if manifest.name != self.name {
            return Err(refuse(format!("its manifest calls it {}", manifest.name)));
        }
        for (name, sha256) in references(&manifest) {
            match self.file(name) {
                None => return Err(refuse(format!("{name} is not in the bundle"))),
                Some(file) if file.sha256.to_string() != sha256 => {
                    return Err(refuse(format!("{name} has another digest than its manifest says")));
                }
                Some(_) => {}
            }
        }
        Ok(manifest)
    }
}

impl FileEntry {
    /// Whether `content` is the digest of this file. Its chunks were authenticated one by one; this is for whoever puts all of
    /// them together anyway.
    ///
    /// # Errors
    /// [`Refusal::FileDigest`].
    pub fn check(&self, content: Digest) -> Result<(), Refusal> {
        if content == self.sha256 { Ok(()) } else { Err(Refusal::FileDigest(self.name.clone())) }
    }

    /// The chunks it is made of.
    #[must_use]
    pub fn chunk_range(&self) -> Range<u64> {
        self.first_chunk..self.first_chunk.saturating_add(self.chunks)
    }
}

/// Every file a model's manifest refers to, with the digest it says: golden vectors first, then small ones, then the networks.
pub(crate) fn references(manifest: &Manifest) -> Vec<(&str, &str)> {
    let mut all = vec![(manifest.golden.file.as_str(), manifest.golden.sha256.as_str())];
    if let Some(Motif::Linear { file, sha256, .. }) = manifest.imu.as_ref().and_then(|imu| imu.motif.as_ref())
    {
        all.push((file, sha256));
    }
    all.extend(manifest.networks().map(|n| (n.file, n.sha256)));
    all
}

/// A file name that cannot leave a directory.
pub(crate) fn plain_name(name: &str) -> bool {
    (1..=MAX_FILE_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.starts_with('.')
}

/// `MAJOR.MINOR.PATCH` as numbers, written without leading zeros or signs.
fn three(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split('.').map(|part| {
        let number: u32 = part.parse().ok()?;
        (number.to_string() == part).then_some(number)
    });
    let three = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(three)
}
