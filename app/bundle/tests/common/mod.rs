//! Models, keys and sinks for the tests of this room, and a writer that puts bundles together as nobody should.

#![allow(dead_code, clippy::cast_possible_truncation)] // no test program needs all of it; 64-bit machines test

use inferd_bundle::build::{Built, BundleSpec, Content, FileSource, ModelSource, build};
use inferd_bundle::{
    Authorized, Bundle, BundleManifest, Chunk, Digest, IndexPage, Refusal, Role, RoleKeys, Root, RootKey,
    SigningKey, Sink, Stream, Trust, keys,
};
use inferd_model::ModelName;
use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};

/// Seeded random numbers.
pub fn random(seed: u64) -> Pcg64 {
    Pcg64::seed_from_u64(seed)
}

/// A number below `bound`.
pub fn below(random: &mut Pcg64, bound: u64) -> u64 {
    random.next_u64() % bound
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    random(seed).fill_bytes(&mut bytes);
    bytes
}

/// Bytes that compress.
pub fn words(seed: u64, len: usize) -> Vec<u8> {
    let mut random = random(seed);
    let list = ["slot ", "bundle ", "gate ", "probation ", "window ", "latent\n"];
    let mut text = String::new();
    while text.len() < len {
        text.push_str(list[(random.next_u64() % 6) as usize]);
    }
    text.into_bytes()[..len].to_vec()
}

pub fn name(text: &str) -> ModelName {
    ModelName::new(text).unwrap()
}

/// A model whose files are these bytes. The network need not be one: this room does not look inside.
pub fn model(name: &str, golden: &[u8], network: &[u8]) -> ModelSource {
    let manifest = format!(
        r#"schema = 1
name = "{name}"
version = "1"
task = "tensor"
engines = ["cpu"]
budget = {{ memory_mib = 64, deadline_ms = 1000 }}
onnx = {{ file = "model.onnx", sha256 = "{}" }}
golden = {{ file = "golden.safetensors", sha256 = "{}", cosine = 0.9999, max_abs = 0.001 }}
inputs = [{{ name = "x", dtype = "FP32", shape = [2] }}]
outputs = [{{ name = "y", dtype = "FP32", shape = [2] }}]
"#,
        Digest::of(network),
        Digest::of(golden)
    );
    let file = |name: &str, bytes: &[u8]| FileSource {
        name: name.to_owned(),
        content: Content::Bytes(bytes.to_vec()),
    };
    ModelSource { manifest, files: vec![file("model.onnx", network), file("golden.safetensors", golden)] }
}

/// A bundle of one small model.
pub fn small() -> BundleSpec {
    BundleSpec::new(name("walk"), 7, vec![model("walk", &words(1, 9_000), &noise(2, 40_000))])
}

/// A system of these files for two boards.
pub fn system(files: &[&str]) -> BundleSpec {
    let file = |(n, name): (usize, &&str)| FileSource {
        name: (*name).to_owned(),
        content: Content::Bytes([noise(n as u64, 150_000), vec![0; 300_000]].concat()),
    };
    let boards = vec!["qemu-aarch64".to_owned(), "rpi4".to_owned()];
    BundleSpec::system(name("inferd-os"), 4, boards, files.iter().enumerate().map(file).collect())
}

/// Keys that everybody knows: `key(n)` is always the same.
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_seed(&[n; 32])
}

pub const ROOTS: [u8; 3] = [1, 2, 3];
pub const RELEASE: [u8; 3] = [11, 12, 13];
pub const DEV: u8 = 21;
pub const SYSTEM: u8 = 31;
pub const REVOKERS: [u8; 2] = [41, 42];

/// Two of three keys for root and release, one for the rest.
pub fn root(version: u64) -> Root {
    let all = [&ROOTS[..], &RELEASE[..], &[DEV, SYSTEM], &REVOKERS[..]].concat();
    let role = |role, threshold, numbers: &[u8]| RoleKeys {
        role,
        threshold,
        keys: numbers.iter().map(|&n| key(n).id()).collect(),
    };
    Root {
        version,
        keys: all.iter().map(|&n| RootKey { public: key(n).public(), note: format!("key {n}") }).collect(),
        roles: vec![
            role(Role::Root, 2, &ROOTS),
            role(Role::ModelRelease, 2, &RELEASE),
            role(Role::ModelDev, 1, &[DEV]),
            role(Role::SystemRelease, 1, &[SYSTEM]),
            role(Role::Revocation, 1, &REVOKERS),
        ],
    }
}

/// A device that starts from `root(1)`.
pub fn trust() -> Trust {
    let envelope = keys::sign_root(root(1), &[&key(1), &key(2)]).unwrap();
    Trust::new(Root::from_envelope(&envelope).unwrap(), false)
}

/// Builds and signs with these keys.
pub fn built(spec: &BundleSpec, signers: &[u8]) -> (Built, Vec<u8>) {
    let signers: Vec<SigningKey> = signers.iter().map(|&n| key(n)).collect();
    let mut bytes = Vec::new();
    let built = build(spec, &signers.iter().collect::<Vec<_>>(), &mut bytes).unwrap();
    assert_eq!(built.len, bytes.len() as u64);
    (built, bytes)
}

/// A release that `trust()` accepts.
pub fn release(spec: &BundleSpec) -> Vec<u8> {
    built(spec, &RELEASE[..2]).1
}

/// Keeps all it is given.
#[derive(Default)]
pub struct Collect {
    pub prefix: Vec<u8>,
    pub pages: Vec<Vec<u8>>,
    pub chunks: Vec<(Chunk, Vec<u8>)>,
    pub trust: Option<Trust>,
    pub authorized: Option<Authorized>,
}

impl Sink for Collect {
    type Error = Refusal;
    fn prefix(&mut self, bundle: &Bundle, bytes: &[u8]) -> Result<(), Refusal> {
        if let Some(trust) = &self.trust {
            self.authorized = Some(bundle.authorize(trust)?);
        }
        self.prefix = bytes.to_vec();
        Ok(())
    }
    fn page(&mut self, _: &Bundle, page: &IndexPage, bytes: &[u8]) -> Result<(), Refusal> {
        assert_eq!(page.number() as usize, self.pages.len());
        self.pages.push(bytes.to_vec());
        Ok(())
    }
    fn chunk(&mut self, _: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), Refusal> {
        self.chunks.push((*chunk, stored.to_vec()));
        Ok(())
    }
    fn recall(&mut self, _: &Bundle, page: u32, into: &mut Vec<u8>) -> Result<bool, Refusal> {
        into.extend_from_slice(&self.pages[page as usize]);
        Ok(true)
    }
}

/// What a device with `trust()` says to these bytes.
pub fn judge(bytes: &[u8]) -> Result<Bundle, Refusal> {
    let mut sink = Collect { trust: Some(trust()), ..Collect::default() };
    let mut stream = Stream::new();
    stream.push(bytes, &mut sink)?;
    stream.finish()
}

/// The code of a refusal.
pub fn code<T: std::fmt::Debug>(result: Result<T, Refusal>) -> &'static str {
    let refusal = result.expect_err("it is refused");
    assert!(!refusal.to_string().is_empty() && refusal.to_string().len() < 1000, "{refusal}");
    refusal.code()
}

/// The sections of a bundle, to be changed and put together again by the specification alone.
#[derive(Clone)]
pub struct Forge {
    pub manifest: Vec<u8>,
    pub signatures: Vec<u8>,
    pub table: Vec<u8>,
    pub index: Vec<u8>,
    pub payload: Vec<u8>,
}

pub fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Forge {
    pub fn new(bundle: &[u8]) -> Self {
        let part = |at: usize| {
            let (start, len) = (long(bundle, at) as usize, long(bundle, at + 8) as usize);
            bundle[start..start + len].to_vec()
        };
        Self { manifest: part(16), signatures: part(32), table: part(48), index: part(64), payload: part(80) }
    }

    pub fn read(&self) -> BundleManifest {
        minicbor::decode(&self.manifest).unwrap()
    }

    /// Changes the manifest and signs it again with release keys.
    pub fn edit(mut self, change: impl FnOnce(&mut BundleManifest)) -> Self {
        let mut manifest = self.read();
        change(&mut manifest);
        self.manifest = minicbor::to_vec(&manifest).unwrap();
        self.sign(&RELEASE[..2])
    }

    pub fn sign(mut self, signers: &[u8]) -> Self {
        let mut records: Vec<Vec<u8>> = signers
            .iter()
            .map(|&n| {
                let mut record = key(n).id().0.to_vec();
                record.extend(sign(n, "bundle", &self.manifest));
                record
            })
            .collect();
        records.sort();
        self.signatures = u32::try_from(records.len()).unwrap().to_le_bytes().to_vec();
        self.signatures.extend(records.concat());
        self
    }

    /// Makes the table and the manifest fit the index, then signs.
    pub fn settle(mut self) -> Self {
        self.table = self.index.chunks(65_536).flat_map(|p| Digest::of(p).0).collect();
        let (table, pages) = (Digest::of(&self.table), self.table.len() / 32);
        let payload_len = self.payload.len() as u64;
        self.edit(|m| {
            m.index.table_sha256 = table;
            m.index.pages = pages as u32;
            m.index.payload_len = payload_len;
        })
    }

    pub fn header(&self) -> Vec<u8> {
        let lens = [self.table.len(), self.index.len(), self.payload.len()].map(|n| n as u64);
        header(&self.manifest, &self.signatures, lens)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for section in [&self.manifest, &self.signatures, &self.table, &self.index, &self.payload] {
            out.extend(section);
            out.resize(out.len().div_ceil(4096) * 4096, 0);
        }
        out
    }

    /// One record of the first page: digest, stored length, raw length, flags, zero.
    pub fn record(&mut self, chunk: usize) -> &mut [u8] {
        &mut self.index[16 + 48 * chunk..][..48]
    }

    /// The only chunk of a one-chunk file replaced by these stored bytes, with everything around it made to fit.
    pub fn one_chunk(stored: &[u8], raw_len: u32, compressed: bool) -> Self {
        let mut forge = Self::new(&release(&small()));
        let mut page = vec![0; 65_536];
        page[8] = 1;
        page[16..48].copy_from_slice(&Digest::of(stored).0);
        page[48..52].copy_from_slice(&(stored.len() as u32).to_le_bytes());
        page[52..56].copy_from_slice(&raw_len.to_le_bytes());
        page[56] = u8::from(compressed);
        forge.index = page;
        forge.payload = stored.to_vec();
        let mut manifest = forge.read();
        manifest.index.chunks = 1;
        manifest.models.truncate(1);
        let file = &mut manifest.models[0].files;
        file.truncate(1);
        (file[0].len, file[0].first_chunk, file[0].chunks) = (u64::from(raw_len), 0, 1);
        forge.manifest = minicbor::to_vec(&manifest).unwrap();
        forge.settle()
    }
}

/// A header by the specification alone; `lens` are those of page table, index and payload.
pub fn header(manifest: &[u8], signatures: &[u8], lens: [u64; 3]) -> Vec<u8> {
    let mut header = b"INFERDMB\x01\0\0\0\0\0\0\0".to_vec();
    let mut at = 4096_u64;
    for len in [manifest.len() as u64, signatures.len() as u64].into_iter().chain(lens) {
        header.extend(at.to_le_bytes());
        header.extend(len.to_le_bytes());
        at = (at + len).div_ceil(4096) * 4096;
    }
    header.extend(at.to_le_bytes());
    header.extend(Digest::of(manifest).0);
    header.extend(Digest::of(signatures).0);
    header.resize(4064, 0);
    repair(&mut header);
    header
}

/// Makes a header's own digest right again.
pub fn repair(header: &mut Vec<u8>) {
    header.truncate(4064);
    let own = Digest::of(header);
    header.extend(own.0);
}

/// A signature over a document, made from the specification with the signing library alone.
pub fn sign(n: u8, kind: &str, document: &[u8]) -> [u8; 64] {
    use ed25519_dalek::Signer as _;
    let mut message = format!("inferd {kind} v1").into_bytes();
    message.push(0);
    message.extend(Digest::of(document).0);
    ed25519_dalek::SigningKey::from_bytes(&[n; 32]).sign(&message).to_bytes()
}
