//! The verifier's memory does not grow with the bundle: counted by the allocator, on bundles whose bytes are made as they are
//! sent and never there as a whole.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::*;
use inferd_bundle::{
    Bundle, BundleManifest, Chunk, Digest, FileEntry, IndexPage, ModelEntry, Place, Refusal, Sink, Stream,
    limits,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What the specification promises, at any size.
const PROMISE: usize = 16 << 20;

thread_local! {
    /// Bytes this thread holds, and the most it ever held.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(more: usize, less: usize) {
    // A thread that ends frees after its counters are gone.
    let _ = HELD.try_with(|held| {
        let (now, peak) = held.get();
        let now = (now + more).saturating_sub(less);
        held.set((now, peak.max(now)));
    });
}

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old bytes stay until the new ones are there.
        count(size, 0);
        count(0, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(at, layout, size) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// The most bytes that `call` held at once beyond what was held before.
fn peak<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.with(|held| {
        let (now, _) = held.get();
        held.set((now, now));
        now
    });
    let out = call();
    (out, HELD.with(Cell::get).1 - before)
}

/// A bundle of `chunks` times the same chunk, which is never in memory as a whole.
struct Endless {
    chunk: Vec<u8>,
    chunks: u64,
    prefix: Vec<u8>,
}

impl Endless {
    fn new(chunk: Vec<u8>, chunks: u64, fill: impl FnOnce(&mut BundleManifest)) -> Self {
        let mut endless = Self { chunk, chunks, prefix: Vec::new() };
        let mut manifest = Forge::new(&release(&small())).read();
        let len = endless.chunk.len() as u64;
        manifest.models.truncate(1);
        manifest.models[0].files.truncate(1);
        let file = &mut manifest.models[0].files[0];
        (file.len, file.first_chunk, file.chunks) = (len * chunks, 0, chunks);
        fill(&mut manifest);
        let digests = (0..endless.pages()).flat_map(|p| Digest::of(&endless.page(p)).0);
        let table: Vec<u8> = digests.collect();
        manifest.index.chunks = chunks;
        manifest.index.pages = endless.pages();
        manifest.index.payload_len = len * chunks;
        manifest.index.table_sha256 = Digest::of(&table);
        let manifest = minicbor::to_vec(&manifest).unwrap();
        let forge =
            Forge { manifest, signatures: vec![], table, index: vec![], payload: vec![] }.sign(&RELEASE[..2]);
        let lens = [forge.table.len() as u64, u64::from(endless.pages()) * 65_536, len * chunks];
        let mut prefix = header(&forge.manifest, &forge.signatures, lens);
        for section in [&forge.manifest, &forge.signatures, &forge.table] {
            prefix.extend(section);
            prefix.resize(prefix.len().div_ceil(4096) * 4096, 0);
        }
        endless.prefix = prefix;
        endless
    }

    fn pages(&self) -> u32 {
        self.chunks.div_ceil(1365) as u32
    }

    fn page(&self, page: u32) -> Vec<u8> {
        let (first, len) = (u64::from(page) * 1365, self.chunk.len());
        let records = (self.chunks - first).min(1365);
        let mut bytes = (first * len as u64).to_le_bytes().to_vec();
        bytes.extend((records as u32).to_le_bytes());
        bytes.extend([0; 4]);
        let mut record = Digest::of(&self.chunk).0.to_vec();
        record.extend((len as u32).to_le_bytes());
        record.extend((len as u32).to_le_bytes());
        record.extend([0; 8]);
        bytes.extend(record.repeat(records as usize));
        bytes.resize(65_536, 0);
        bytes
    }

    fn send(&self, stream: &mut Stream, sink: &mut Nothing<'_>, most: u64) -> Result<(), Refusal> {
        stream.push(&self.prefix, sink)?;
        for page in 0..self.pages() {
            stream.push(&self.page(page), sink)?;
        }
        // Several small chunks at once, as a socket would bring them.
        let at_once = (65_536 / self.chunk.len() as u64).max(1);
        let many = self.chunk.repeat(at_once as usize);
        let mut left = self.chunks.min(most);
        while left > 0 {
            let now = left.min(at_once);
            stream.push(&many[..now as usize * self.chunk.len()], sink)?;
            left -= now;
        }
        let payload = self.chunks * self.chunk.len() as u64;
        stream.push(&vec![0; (payload.next_multiple_of(4096) - payload) as usize], sink)
    }
}

/// A sink that keeps nothing and can make every page again, if it may.
struct Nothing<'a> {
    bundle: &'a Endless,
    recalls: bool,
    recalled: u32,
    chunks: u64,
    end: u64,
}

impl<'a> Nothing<'a> {
    fn new(bundle: &'a Endless, recalls: bool) -> Self {
        Self { bundle, recalls, recalled: 0, chunks: 0, end: 0 }
    }
}

impl Sink for Nothing<'_> {
    type Error = Refusal;
    fn prefix(&mut self, bundle: &Bundle, _: &[u8]) -> Result<(), Refusal> {
        bundle.authorize(&trust()).map(drop)
    }
    fn page(&mut self, _: &Bundle, _: &IndexPage, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }
    fn chunk(&mut self, _: &Bundle, chunk: &Chunk, _: &[u8]) -> Result<(), Refusal> {
        self.chunks += 1;
        self.end = chunk.range().end;
        Ok(())
    }
    fn recall(&mut self, _: &Bundle, page: u32, into: &mut Vec<u8>) -> Result<bool, Refusal> {
        self.recalled += 1;
        into.extend_from_slice(&self.bundle.page(page));
        Ok(self.recalls)
    }
}

fn verify(endless: &Endless) -> (Bundle, u32, usize) {
    let ((bundle, recalled), peak) = peak(|| {
        let (mut stream, mut sink) = (Stream::new(), Nothing::new(endless, true));
        endless.send(&mut stream, &mut sink, u64::MAX).unwrap();
        let bundle = stream.finish().unwrap();
        assert_eq!((sink.chunks, sink.end), (endless.chunks, bundle.payload_range().end));
        (bundle, sink.recalled)
    });
    assert!(peak < PROMISE, "{peak} bytes at once");
    (bundle, recalled, peak)
}

#[test]
fn a_bundle_of_more_than_4_gib_is_verified_in_bounded_memory() {
    let endless = Endless::new(noise(1, 262_144), 16_500, |_| {});
    let (bundle, recalled, peak) = verify(&endless);
    assert!(bundle.total_len() > 1 << 32 && recalled == 0);
    println!("{} bytes verified, {peak} bytes of memory at once", bundle.total_len());
    // Beyond 4 GiB a transfer goes on as anywhere.
    let mut sink = Nothing::new(&endless, true);
    let mut stream = Stream::resume(bundle, Place::Chunk(16_499), &mut sink).unwrap();
    assert!(stream.position() > 1 << 32);
    stream.push(&endless.chunk, &mut sink).unwrap();
    stream.finish().unwrap();
}

#[test]
fn an_index_of_more_pages_than_are_kept_is_read_back_from_the_sink() {
    // Chunks of one byte: the largest index for its payload.
    let endless = Endless::new(vec![7], 120 * 1365 + 5, |_| {});
    let (bundle, recalled, peak) = verify(&endless);
    assert_eq!(recalled, bundle.pages() - limits::KEPT_PAGES);
    println!("{} pages, {recalled} read back, {peak} bytes of memory at once", bundle.pages());
    // A sink that cannot do it says so where the first such chunk begins.
    let (mut stream, mut sink) = (Stream::new(), Nothing::new(&endless, false));
    assert_eq!(code(endless.send(&mut stream, &mut sink, u64::MAX)), "index-memory");
    assert_eq!(sink.chunks, u64::from(limits::KEPT_PAGES) * 1365);
}

#[test]
fn the_largest_beginning_is_read_in_bounded_memory() {
    // As many models and files as may be, and text up to the limit.
    let chunks = 300 * 1365_u64;
    let endless = Endless::new(vec![7], chunks, |manifest| {
        let mut first = 0;
        let text = "#".repeat(3100);
        manifest.models = (0..64_u32)
            .map(|m| {
                let files = (0..16_u32).map(|f| {
                    let count = if m * 16 + f == 1023 { chunks - 1023 } else { 1 };
                    let entry = FileEntry {
                        name: format!("file-{f:02}"),
                        len: count,
                        sha256: Digest([9; 32]),
                        first_chunk: first,
                        chunks: count,
                    };
                    first += count;
                    entry
                });
                ModelEntry { name: name(&format!("m{m:02}")), manifest: text.clone(), files: files.collect() }
            })
            .collect();
    });
    assert!(long(&endless.prefix, 24) > 240 << 10, "{} bytes of manifest", long(&endless.prefix, 24));
    let (_, _, peak) = verify(&endless);
    println!("1024 files, {} bytes of manifest: {peak} bytes of memory at once", long(&endless.prefix, 24));
}

#[test]
#[ignore = "a minute or more: 16,384 pages, 22 million chunks"]
fn the_largest_index_is_verified_in_bounded_memory() {
    let endless = Endless::new(vec![7], 16_384 * 1365, |_| {});
    let (bundle, recalled, peak) = verify(&endless);
    assert_eq!((bundle.pages(), recalled), (16_384, 16_384 - limits::KEPT_PAGES));
    println!("16,384 pages, {} chunks: {peak} bytes of memory at once", bundle.manifest().index.chunks);
}

#[test]
fn a_chunk_that_would_unpack_to_gigabytes_takes_little_memory_to_refuse() {
    let block = |last: u32, len: u32| [&(last | 1 << 1 | len << 3).to_le_bytes()[..3], b"a"].concat();
    let bomb = [&[0x28, 0xb5, 0x2f, 0xfd, 0, 8 << 3][..], &block(0, 128 * 1024).repeat(50_000), &block(1, 1)]
        .concat();
    for (stored, what) in [
        (bomb, "6.5 GB of repeated bytes"),
        ([&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xf8][..], &block(1, 1000)].concat(), "a window of 2 TiB"),
        (
            [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0, 0, 0, 0x80][..], &block(1, 1000)].concat(),
            "one segment of 2 GiB",
        ),
    ] {
        let chunk = Chunk {
            number: 0,
            digest: Digest::of(&stored),
            offset: 0,
            stored_len: stored.len() as u32,
            raw_len: 262_144,
            compressed: true,
        };
        let (refused, peak) = peak(|| code(chunk.unpack(&stored, &mut Vec::new())));
        assert_eq!(refused, "compression");
        assert!(peak < 3 << 20, "{what}: {peak} bytes at once");
        println!("{what}: refused, {peak} bytes of memory at once");
    }
}

#[test]
fn lengths_alone_allocate_nothing() {
    // A header that promises the largest sections: memory is taken for what comes, at most the prefix.
    let mut header = header(&[1; 262_144], &[2; 65_536], [524_288, 16_384 * 65_536, 1 << 42]);
    let (refused, peak) = peak(|| {
        let endless = Endless { chunk: vec![7], chunks: 0, prefix: Vec::new() };
        let mut stream = Stream::new();
        stream.push(&header, &mut Nothing::new(&endless, false)).unwrap();
        code(stream.finish())
    });
    assert_eq!(refused, "truncated");
    assert!(peak <= 1 << 20, "{peak} bytes at once");
    header[24..32].copy_from_slice(&(u64::MAX - 4096).to_le_bytes());
    repair(&mut header);
    assert_eq!(code(judge(&header)), "too-large");
}
