//! Bundles and trust documents. What a digest or a signature protects would never be reached by mutation alone, so these
//! targets make digests fit and sign what they are given, with keys whose seeds stand here.

use inferd_bundle::{
    Bundle, Chunk, Digest, Envelope, IndexCheck, IndexPage, Refusal, Root, Signature, SigningKey, Sink,
    Stream, Trust,
};
use std::sync::LazyLock;

/// A bundle of two models that devices starting from [`ROOT`] accept.
static GOOD: LazyLock<Vec<u8>> =
    LazyLock::new(|| include_bytes!("../../../app/bundle/tests/data/motion-42.imb").to_vec());
static ROOT: &[u8] = include_bytes!("../../../app/bundle/tests/data/root-1.trust");
static TRUST: LazyLock<Trust> =
    LazyLock::new(|| Trust::new(Root::from_envelope(ROOT).expect("it is tested elsewhere"), true));

fn long(bytes: &[u8], at: usize) -> usize {
    let bytes = bytes[at..at + 8].try_into().expect("8 bytes");
    usize::try_from(u64::from_le_bytes(bytes)).expect("a length")
}

/// Everything before the index, with the digests that fit: `sections` are manifest, signatures and page table.
fn prefix(sections: [&[u8]; 3], index_len: u64, payload_len: u64) -> Vec<u8> {
    let mut header = b"INFERDMB\x01\0\0\0\0\0\0\0".to_vec();
    let mut at = 4096_u64;
    for len in sections.map(|s| s.len() as u64).into_iter().chain([index_len, payload_len]) {
        header.extend(at.to_le_bytes());
        header.extend(len.to_le_bytes());
        at = (at + len).next_multiple_of(4096);
    }
    header.extend(at.to_le_bytes());
    header.extend(Digest::of(sections[0]).0);
    header.extend(Digest::of(sections[1]).0);
    header.resize(4064, 0);
    let own = Digest::of(&header);
    header.extend(own.0);
    for section in sections {
        header.extend(section);
        header.resize(header.len().next_multiple_of(4096), 0);
    }
    header
}

/// The beginning of a bundle. The first byte: 0 a raw header whose digest is made to fit, 1 raw bytes, else `LEN\nLEN\n`,
/// manifest, signatures and page table, put together with a header that fits and the index and payload of the manifest.
pub fn beginning(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let bytes = match how {
        0 => {
            let mut header = rest.to_vec();
            header.resize(4064, 0);
            let own = Digest::of(&header);
            header.extend(own.0);
            let need = Bundle::prefix_len(header.first_chunk().expect("4096 bytes"));
            if let Ok(need) = need {
                assert!((4096..=856_064).contains(&need), "{need} bytes before the index");
                // Whatever these lengths promise, digests of nothing fit nothing.
                header.resize(usize::try_from(need).expect("below 1 MiB"), 0);
            }
            header
        }
        1 => rest.to_vec(),
        _ => {
            let mut parts = rest.splitn(3, |&b| b == b'\n');
            let mut len = || -> Option<usize> { std::str::from_utf8(parts.next()?).ok()?.parse().ok() };
            let (Some(manifest), Some(signatures)) = (len(), len()) else { return };
            let Some(rest) = parts.next() else { return };
            let Some((manifest, rest)) = rest.split_at_checked(manifest) else { return };
            let Some((signatures, table)) = rest.split_at_checked(signatures) else { return };
            // The payload is what the manifest says, if it says something.
            let payload = minicbor::decode::<inferd_bundle::BundleManifest>(manifest);
            let payload = payload.map_or(1, |m| m.index.payload_len.min(1 << 42));
            prefix([manifest, signatures, table], table.len() as u64 / 32 * 65_536, payload)
        }
    };
    let bundle = match Bundle::parse(&bytes) {
        Ok(bundle) => bundle,
        Err(refusal) => return sound(&refusal),
    };
    let manifest = bundle.manifest();
    let again = minicbor::to_vec(manifest).expect("a manifest can be written");
    assert_eq!(Digest::of(&again), bundle.id(), "what was read is what was signed");
    assert_eq!(u64::from(bundle.pages()), manifest.index.chunks.div_ceil(1365));
    assert_eq!(bundle.payload_range().end.next_multiple_of(4096), bundle.total_len());
    let owned: u64 = manifest.files().map(|(_, f)| f.chunks).sum();
    assert_eq!(owned, manifest.index.chunks);
    assert!(manifest.owner(0).is_some() && manifest.owner(owned).is_none());
    let _ = (manifest.files_len(), manifest.runs_with("0.1.0"), manifest.runs_on("rpi4"));
    for model in &manifest.models {
        if let Err(refusal) = model.parse() {
            sound(&refusal);
        }
    }
    match bundle.authorize(&TRUST) {
        Ok(authorized) => assert!(authorized.keys.len() >= authorized.threshold as usize),
        Err(refusal) => sound(&refusal),
    }
}

/// A refusal has a code and a sentence.
fn sound(refusal: &Refusal) {
    assert!(!refusal.code().is_empty());
    let text = refusal.to_string();
    assert!(!text.is_empty() && text.len() < 16 << 10, "{} bytes of refusal", text.len());
}

/// An index page. The first 6 bytes: chunks and payload of the manifest; then the page, filled up with zeros.
pub fn page(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<6>() else { return };
    let chunks = u64::from(u16::from_le_bytes([head[0], head[1]]) % 1365).max(1);
    let payload = u64::from(u32::from_le_bytes([head[2], head[3], head[4], head[5]]));
    let mut bytes = rest.to_vec();
    bytes.resize(65_536, 0);
    let table = Digest::of(&bytes).0;
    let mut manifest = Bundle::parse(&GOOD).expect("it is tested elsewhere").manifest().clone();
    manifest.models.truncate(1);
    manifest.models[0].files.truncate(1);
    manifest.index.chunks = chunks;
    manifest.index.payload_len = payload;
    manifest.index.table_sha256 = Digest::of(&table);
    let file = &mut manifest.models[0].files[0];
    (file.len, file.first_chunk, file.chunks) = (payload, 0, chunks);
    let manifest = minicbor::to_vec(&manifest).expect("a manifest can be written");
    let start = prefix([&manifest, &[0; 4], &table], 65_536, payload);
    let Ok(bundle) = Bundle::parse(&start) else { return };
    let page = match bundle.check_page(0, &bytes) {
        Ok(page) => page,
        Err(refusal) => return sound(&refusal),
    };
    let mut next = bundle.payload_range().start;
    for chunk in page.chunks() {
        assert_eq!(chunk.offset, next, "chunks follow each other");
        assert!((1..=262_144).contains(&chunk.raw_len) && (1..=chunk.raw_len).contains(&chunk.stored_len));
        assert_eq!(chunk.compressed, chunk.stored_len < chunk.raw_len);
        next = chunk.range().end;
    }
    assert_eq!((page.chunks().len() as u64, next), (chunks, bundle.payload_range().end));
    let raw: u64 = page.chunks().map(|c| u64::from(c.raw_len)).sum();
    let mut check = IndexCheck::new(&bundle);
    assert_eq!(check.page(&bundle, &page).is_ok(), raw == payload, "a file is as long as its chunks");
}

/// A compressed chunk whose digest fits: the raw length in 3 bytes, then the frame.
pub fn chunk(data: &[u8]) {
    let Some((head, stored)) = data.split_first_chunk::<3>() else { return };
    let raw_len = u32::from_le_bytes([head[0], head[1], head[2], 0]) % 262_145;
    let Ok(stored_len) = u32::try_from(stored.len()) else { return };
    let chunk =
        Chunk { number: 0, digest: Digest::of(stored), offset: 0, stored_len, raw_len, compressed: true };
    let mut out = vec![1];
    match chunk.unpack(stored, &mut out) {
        Ok(()) => assert_eq!(out.len(), raw_len as usize),
        Err(refusal) => {
            sound(&refusal);
            assert!(out.is_empty(), "nothing of a bad chunk comes out");
        }
    }
    assert!(out.capacity() <= 1 << 20, "{} bytes taken", out.capacity());
}

/// Trust documents. The first byte: 0 an envelope as it is, 1 to 3 the payload of a root, a revocation list or a permit,
/// which is signed.
pub fn trust(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let envelope = match how {
        0 => rest.to_vec(),
        1 => signed("root", rest, &[1, 2]),
        2 => signed("revocations", rest, &[41]),
        3 => signed("permit", rest, &[11, 12]),
        _ => return,
    };
    if let Ok(opened) = Envelope::from_bytes(&envelope) {
        assert_eq!(opened.to_bytes(), envelope, "one form only");
    }
    if let Ok(root) = Root::from_envelope(&envelope) {
        assert!(root.check().is_ok());
    }
    let mut device = TRUST.clone();
    match device.accept(&envelope) {
        Ok("root") => assert_eq!(device.root_version(), 2),
        Ok(_) => assert!(device.revocation_version() > 0),
        Err(refusal) => {
            sound(&refusal);
            assert_eq!(device, *TRUST, "a refusal changes nothing");
        }
    }
    match TRUST.permit(&envelope, "board-7", 8) {
        Ok(permit) => assert!(permit.device == "board-7" && permit.nonce > 8),
        Err(refusal) => sound(&refusal),
    }
}

fn signed(kind: &str, payload: &[u8], seeds: &[u8]) -> Vec<u8> {
    let keys: Vec<SigningKey> = seeds.iter().map(|&seed| SigningKey::from_seed(&[seed; 32])).collect();
    let signatures: Vec<Signature> = Vec::new();
    let envelope = Envelope { kind: kind.to_owned(), payload: payload.to_vec(), signatures };
    let envelope = envelope.to_bytes();
    // Too large is refused here already.
    inferd_bundle::keys::add_signatures(&envelope, &keys.iter().collect::<Vec<_>>()).unwrap_or(envelope)
}

/// What a stream handed on.
#[derive(Default, PartialEq, Debug)]
struct Seen {
    pieces: Vec<(u64, usize)>,
    judge: bool,
}

impl Seen {
    fn note(&mut self, at: u64, bytes: &[u8], good: &[u8]) {
        let at_good = usize::try_from(at).ok().and_then(|at| good.get(at..at + bytes.len()));
        assert!(!self.judge || at_good == Some(bytes), "something unverified was handed on");
        self.pieces.push((at, bytes.len()));
    }
}

impl Sink for Seen {
    type Error = Refusal;
    fn prefix(&mut self, bundle: &Bundle, bytes: &[u8]) -> Result<(), Refusal> {
        if self.judge {
            bundle.authorize(&TRUST)?;
        }
        self.pieces.push((0, bytes.len()));
        Ok(())
    }
    fn page(&mut self, bundle: &Bundle, page: &IndexPage, bytes: &[u8]) -> Result<(), Refusal> {
        self.note(bundle.page_range(page.number()).start, bytes, &GOOD);
        Ok(())
    }
    fn chunk(&mut self, _: &Bundle, chunk: &Chunk, stored: &[u8]) -> Result<(), Refusal> {
        self.note(chunk.offset, stored, &GOOD);
        Ok(())
    }
}

/// A good bundle with changes, in pieces. The first byte: bit 0 digests before the signatures are made to fit, bit 1
/// signatures are judged, bit 2 what follows the changes is cut off; then 2 bytes for how it is cut into pieces, then changes of
/// 4 bytes: where and what.
pub fn stream(data: &[u8]) {
    let Some((head, rest)) = data.split_first_chunk::<3>() else { return };
    let mut bytes = GOOD.clone();
    let mut last = bytes.len();
    for change in rest.as_chunks::<4>().0 {
        let at = u32::from_le_bytes([change[0], change[1], change[2], 0]) as usize % bytes.len();
        bytes[at] = change[3];
        last = at;
    }
    if head[0] & 1 != 0 {
        let place = |field: usize| long(&GOOD, field)..long(&GOOD, field) + long(&GOOD, field + 8);
        let (manifest, signatures) = (Digest::of(&bytes[place(16)]), Digest::of(&bytes[place(32)]));
        bytes[104..136].copy_from_slice(&manifest.0);
        bytes[136..168].copy_from_slice(&signatures.0);
        let own = Digest::of(&bytes[..4064]);
        bytes[4064..4096].copy_from_slice(&own.0);
    }
    if head[0] & 4 != 0 {
        bytes.truncate(last);
    }
    let judge = head[0] & 2 != 0;
    let run = |pieces: &mut dyn FnMut(usize) -> usize| {
        let (mut stream, mut seen) = (Stream::new(), Seen { judge, ..Seen::default() });
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, after) = rest.split_at(pieces(rest.len()).min(rest.len()));
            rest = after;
            if let Err(refusal) = stream.push(now, &mut seen) {
                sound(&refusal);
                assert_eq!(stream.push(rest, &mut seen), Err(Refusal::Spent));
                return (Err(refusal), seen);
            }
        }
        (stream.finish(), seen)
    };
    let whole = run(&mut |all| all);
    let mut state = u32::from(head[1]) << 8 | u32::from(head[2]);
    let cut = run(&mut |_| {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        // From one byte to 64 KiB, small ones often.
        1 + (state >> 16 >> (state & 15)) as usize
    });
    assert_eq!(whole, cut, "the verdict depends on how the bytes arrive");
    if let (Ok(bundle), true) = (whole.0, judge) {
        assert_eq!(bundle.id(), Bundle::parse(&GOOD).expect("it is tested elsewhere").id());
    }
}
