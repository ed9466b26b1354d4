//! Bundles that were changed, cut, forged or put together from two: every one is refused, with a reason. Counts are printed
//! (`cargo test -p inferd-bundle --test attacks -- --nocapture`).

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::*;
use inferd_bundle::build::BundleSpec;
use inferd_bundle::{Bundle, Kind, Place, Refusal, Stream};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

/// Refusals by code.
type Codes = BTreeMap<&'static str, usize>;

fn report(what: &str, codes: &Codes) {
    let all: usize = codes.values().sum();
    println!("{what}: {all} refused {codes:?}");
}

/// Every bit of `bytes[range]` flipped, on all cores; `refused` says how it is refused.
fn flip_all(bytes: &[u8], range: Range<usize>, refused: impl Fn(&[u8]) -> &'static str + Sync) -> Codes {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let codes = Mutex::new(Codes::new());
    let share = range.len().div_ceil(cores);
    std::thread::scope(|scope| {
        for core in 0..cores {
            let (codes, refused) = (&codes, &refused);
            let mine = range.start + core * share..(range.start + (core + 1) * share).min(range.end);
            scope.spawn(move || {
                let mut copy = bytes.to_vec();
                let mut mine_codes = Codes::new();
                for at in mine {
                    for bit in 0..8 {
                        copy[at] ^= 1 << bit;
                        *mine_codes.entry(refused(&copy)).or_default() += 1;
                        copy[at] ^= 1 << bit;
                    }
                }
                let mut codes = codes.lock().unwrap();
                mine_codes.into_iter().for_each(|(code, n)| *codes.entry(code).or_default() += n);
            });
        }
    });
    codes.into_inner().unwrap()
}

#[test]
fn every_flipped_bit_before_the_index_is_refused() {
    let bytes = release(&small());
    judge(&bytes).unwrap();
    let need = Bundle::prefix_len(bytes.first_chunk().unwrap()).unwrap() as usize;
    let mut all = Codes::new();
    for (what, at, len) in [
        ("header", 0, 4096),
        ("manifest", long(&bytes, 16) as usize, long(&bytes, 32) - long(&bytes, 16)),
        ("signatures", long(&bytes, 32) as usize, long(&bytes, 48) - long(&bytes, 32)),
        ("page table", long(&bytes, 48) as usize, long(&bytes, 64) - long(&bytes, 48)),
    ] {
        let codes = flip_all(&bytes[..need], at..at + len as usize, |b| code(Bundle::parse(b)));
        assert_eq!(codes.values().sum::<usize>(), len as usize * 8);
        report(&format!("every bit of the {what} and its padding"), &codes);
        codes.into_iter().for_each(|(code, n)| *all.entry(code).or_default() += n);
    }
    assert_eq!(all.values().sum::<usize>(), need * 8, "the sections are the whole prefix");
}

#[test]
fn every_flipped_bit_of_the_index_is_refused() {
    let bytes = release(&small());
    let bundle = Bundle::parse(&bytes).unwrap();
    let at = bundle.page_range(0);
    let page = &bytes[at.start as usize..at.end as usize];
    bundle.check_page(0, page).unwrap();
    let codes = flip_all(page, 0..page.len(), |b| code(bundle.check_page(0, b)));
    assert_eq!(codes, Codes::from([("page-digest", 65_536 * 8)]));
    report("every bit of the index", &codes);
}

#[test]
fn every_flipped_bit_of_the_payload_of_a_small_bundle_is_refused_by_the_stream() {
    // Small enough to send the whole bundle for one bit of every byte.
    let spec = BundleSpec::new(name("walk"), 7, vec![model("walk", &noise(3, 300), &noise(4, 700))]);
    let bytes = release(&spec);
    let payload = Bundle::parse(&bytes).unwrap().payload_range();
    let codes = flip_all(&bytes, payload.start as usize..bytes.len(), |b| {
        // The beginning is known to be right: only the payload is judged again.
        let mut sink = Collect {
            pages: vec![b[payload.start as usize - 65_536..payload.start as usize].to_vec()],
            ..Collect::default()
        };
        let mut stream = Stream::resume(Bundle::parse(b).unwrap(), Place::Chunk(0), &mut sink).unwrap();
        code(stream.push(&b[payload.start as usize..], &mut sink))
    });
    assert_eq!(codes["chunk-digest"], 1000 * 8);
    assert_eq!(codes["padding"], (4096 - 1000) * 8);
    report("every bit of a payload and its padding", &codes);
}

#[test]
fn a_hundred_thousand_random_flips_in_the_payload_are_refused() {
    let mut spec = BundleSpec::new(
        name("two"),
        1,
        vec![
            model("a", &words(1, 30_000), &noise(2, 500_000)),
            model("b", &words(3, 200_000), &noise(4, 100_000)),
        ],
    );
    spec.compress = true;
    let mut bytes = release(&spec);
    let mut whole = Collect::default();
    let mut stream = Stream::new();
    stream.push(&bytes, &mut whole).unwrap();
    let bundle = stream.finish().unwrap();
    let payload = bundle.payload_range();
    let (mut random, mut out, mut refused) = (random(5), Vec::new(), 0);
    for round in 0..100_000 {
        let at = payload.start + below(&mut random, payload.end - payload.start);
        let bit = 1 << below(&mut random, 8);
        bytes[at as usize] ^= bit;
        let (chunk, _) = whole.chunks.iter().find(|(c, _)| c.range().contains(&at)).unwrap();
        let stored = &bytes[chunk.range().start as usize..chunk.range().end as usize];
        assert_eq!(code(chunk.unpack(stored, &mut out)), "chunk-digest");
        assert!(out.is_empty(), "nothing of a damaged chunk is handed on");
        if round % 200 == 0 {
            // And as a stream, which hands on what came before the flip and nothing after.
            let mut sink = Collect::default();
            let refusal = Stream::new().push(&bytes, &mut sink).unwrap_err();
            assert_eq!(refusal, Refusal::ChunkDigest(chunk.number));
            assert_eq!(sink.chunks.len() as u64, chunk.number);
        }
        bytes[at as usize] ^= bit;
        refused += 1;
    }
    println!("random flips in the payload: {refused} refused, 500 of them as whole streams");
    judge(&bytes).unwrap();
}

#[test]
fn a_bundle_cut_anywhere_is_refused() {
    let mut spec = small();
    spec.compress = true;
    let bytes = release(&spec);
    let mut borders: Vec<usize> = (0..bytes.len()).step_by(4096).collect();
    for at in [16, 32, 48, 64, 80] {
        let (start, len) = (long(&bytes, at) as usize, long(&bytes, at + 8) as usize);
        borders.extend([start - 1, start, start + 1, start + len - 1, start + len, start + len + 1]);
    }
    let bundle = Bundle::parse(&bytes).unwrap();
    let mut sink = Collect::default();
    Stream::new().push(&bytes, &mut sink).unwrap();
    for (chunk, _) in &sink.chunks {
        borders.extend([
            chunk.range().end as usize - 1,
            chunk.range().end as usize,
            chunk.range().end as usize + 1,
        ]);
    }
    borders.push(bytes.len() - 1);
    borders.sort_unstable();
    borders.dedup();
    borders.retain(|&n| n < bytes.len());
    for &len in &borders {
        let refusal = judge(&bytes[..len]).unwrap_err();
        let Refusal::Truncated { have, need } = refusal else { panic!("{len}: {refusal}") };
        assert!(have == len as u64 && need > have && need <= bundle.total_len(), "{len}: {refusal}");
    }
    println!("cut at every 4 KiB and around every border: {} refused", borders.len());
}

#[test]
fn what_follows_the_end_is_refused() {
    let bytes = release(&small());
    for more in [&[0_u8][..], &bytes, b"GET / HTTP/1.1"] {
        assert_eq!(code(judge(&[&bytes[..], more].concat())), "trailing-bytes");
    }
}

#[test]
fn a_manifest_with_any_bit_flipped_and_all_digests_made_to_fit_is_refused() {
    let bytes = release(&small());
    let forge = Forge::new(&bytes);
    let trust = trust();
    let codes = flip_all(&forge.manifest, 0..forge.manifest.len(), |manifest| {
        let prefix = Forge {
            manifest: manifest.to_vec(),
            index: vec![0; 65_536],
            payload: Vec::new(),
            ..forge.clone()
        };
        let mut prefix = prefix.bytes();
        // The lengths of the real index and payload.
        prefix[64..104].copy_from_slice(&bytes[64..104]);
        prefix.truncate(long(&bytes, 64) as usize);
        let mut header = prefix[..4096].to_vec();
        repair(&mut header);
        prefix[..4096].copy_from_slice(&header);
        code(Bundle::parse(&prefix).and_then(|b| b.authorize(&trust)))
    });
    assert!(
        codes["signature-wrong"] > 1000,
        "most flips are well formed: only the signature refuses them: {codes:?}"
    );
    assert!(codes.keys().all(|c| !c.ends_with("digest") || *c == "page-table-digest"), "{codes:?}");
    report("every bit of the manifest, digests made to fit", &codes);
}

#[test]
fn a_header_with_any_bit_flipped_and_its_digest_made_to_fit_is_refused() {
    let bytes = release(&small());
    let need = long(&bytes, 64) as usize;
    let codes = flip_all(&bytes[..need], 0..4064, |b| {
        let mut header = b[..4096].to_vec();
        repair(&mut header);
        header.extend(&b[4096..]);
        code(Bundle::parse(&header))
    });
    assert!(!codes.contains_key("header-digest"), "{codes:?}");
    report("every bit of the header, its digest made to fit", &codes);
}

#[test]
fn signatures_with_any_bit_flipped_and_the_digest_made_to_fit_are_refused() {
    let forge = Forge::new(&release(&small()));
    let trust = trust();
    let codes = flip_all(&forge.signatures, 0..forge.signatures.len(), |signatures| {
        let forged = Forge { signatures: signatures.to_vec(), ..forge.clone() }.bytes();
        code(Bundle::parse(&forged).and_then(|b| b.authorize(&trust)))
    });
    assert!(codes["signature-wrong"] >= 2 * 512, "every bit of both signatures: {codes:?}");
    report("every bit of the signatures, the digest made to fit", &codes);
}

#[test]
fn lengths_and_places_that_cannot_be_are_refused_before_anything_is_allocated() {
    let bytes = release(&small());
    let huge = [
        1 << 31,
        1 << 32,
        (1 << 40) + 5,
        (1 << 63) - 1,
        1 << 63,
        (1 << 63) + 4096,
        u64::MAX - 4095,
        u64::MAX,
    ];
    let mut codes = Codes::new();
    for field in (16..104).step_by(8) {
        let value = long(&bytes, field);
        let near = [0, value.wrapping_sub(1), value + 1, value.wrapping_sub(4096), value + 4096, value * 2];
        // Every place of another section: sections on top of each other.
        let others = (16..104).step_by(8).map(|f| long(&bytes, f));
        for wrong in huge.into_iter().chain(near).chain(others).filter(|&w| w != value) {
            let mut header = bytes[..4096].to_vec();
            header[field..field + 8].copy_from_slice(&wrong.to_le_bytes());
            repair(&mut header);
            let refused = match Bundle::prefix_len(header.first_chunk().unwrap()) {
                Err(refusal) => refusal.code(),
                // A length that ends in the same 4 KiB moves nothing: digests and the manifest refuse it.
                Ok(need) => {
                    assert!(need <= 1 << 20 && wrong.abs_diff(value) < 4096, "{field}: {wrong}");
                    header.extend(&bytes[4096..]);
                    code(judge(&header))
                }
            };
            *codes.entry(refused).or_default() += 1;
        }
    }
    assert!(
        codes
            .keys()
            .all(|c| ["header", "too-large", "manifest-digest", "signatures-digest", "padding"].contains(c))
    );
    report("lengths and places that cannot be", &codes);
    for (wrong, refused) in [(0_u32, "format-version"), (2, "format-version"), (1 << 31, "format-version")] {
        let mut header = bytes[..4096].to_vec();
        header[8..12].copy_from_slice(&wrong.to_le_bytes());
        repair(&mut header);
        assert_eq!(code(judge(&header)), refused);
    }
    assert_eq!(code(judge(&[0; 8192])), "not-a-bundle");
    assert_eq!(code(judge(&[0x1f; 5000])), "not-a-bundle");
}

#[test]
fn a_system_that_cannot_be_is_refused_even_when_it_is_signed() {
    let forge = Forge::new(&built(&system(&["boot-a", "boot-b", "rootfs"]), &[SYSTEM]).1);
    assert!(judge(&forge.bytes()).is_ok(), "as it was built");
    let refused = |what: &str, change: &dyn Fn(&mut inferd_bundle::BundleManifest)| {
        assert_eq!(code(judge(&forge.clone().edit(change).bytes())), "manifest", "{what}");
    };
    refused("called models", &|m| m.kind = Kind::Models);
    for role in [inferd_bundle::Role::Root, inferd_bundle::Role::ModelRelease, inferd_bundle::Role::ModelDev]
    {
        refused("a role that cannot sign a system", &|m| m.role = role);
    }
    refused("for any board", &|m| m.targets.clear());
    refused("another entry", &|m| m.models[0].name = name("systems"));
    refused("a manifest", &|m| m.models[0].manifest = "schema = 1".to_owned());
    refused("one boot of two", &|m| m.models[0].files[1].name = "boot-c".to_owned());
    refused("no rootfs", &|m| m.models[0].files[2].name = "rootfs-a".to_owned());
    refused("a shadow", &|m| {
        let (least, most) = (0.0, 1.0);
        m.policy.shadow = Some(inferd_bundle::ShadowPolicy {
            requests: 1,
            min_cosine: least,
            min_agreement: least,
            max_latency_ratio: most,
            max_error_rate: most,
        });
    });
}

#[test]
fn a_manifest_that_cannot_be_is_refused_even_when_it_is_signed() {
    let forge = Forge::new(&release(&BundleSpec::new(
        name("two"),
        1,
        vec![model("a", &noise(1, 100), &noise(2, 200)), model("b", &noise(3, 100), &noise(4, 200))],
    )));
    let refused = |what: &str, want: &str, change: &dyn Fn(&mut inferd_bundle::BundleManifest)| {
        assert_eq!(code(judge(&forge.clone().edit(change).bytes())), want, "{what}");
    };
    refused("another format", "format-version", &|m| m.format = 2);
    refused("models called a system", "manifest", &|m| m.kind = Kind::System);
    refused("models called a system, and signed as one", "manifest", &|m| {
        (m.kind, m.role) = (Kind::System, inferd_bundle::Role::SystemRelease);
    });
    for role in
        [inferd_bundle::Role::Root, inferd_bundle::Role::SystemRelease, inferd_bundle::Role::Revocation]
    {
        refused("a role that cannot sign models", "manifest", &|m| m.role = role);
    }
    refused("a chunk of two files", "manifest", &|m| m.models[1].files[0].first_chunk = 0);
    refused("a chunk of nobody", "manifest", &|m| m.index.chunks += 1);
    refused("a file outside", "manifest", &|m| m.models[1].files[1].first_chunk += 1);
    refused("a file at 2^63", "manifest", &|m| m.models[0].files[0].first_chunk = 1 << 63);
    refused("2^64-1 chunks", "manifest", &|m| m.models[0].files[0].chunks = u64::MAX);
    refused("chunks that wrap around", "manifest", &|m| {
        m.models[0].files[0].chunks = u64::MAX;
        m.models[0].files[0].len = u64::MAX;
    });
    refused("a file of 2^63 bytes", "manifest", &|m| m.models[0].files[0].len = 1 << 63);
    refused("a file longer than its chunk", "file-length", &|m| m.models[0].files[0].len += 1);
    refused("a file shorter than its chunk", "file-length", &|m| m.models[0].files[0].len -= 1);
    refused("2^64-1 chunks in the index", "manifest", &|m| m.index.chunks = u64::MAX);
    refused("no chunk", "manifest", &|m| m.index.chunks = 0);
    refused("a page more", "manifest", &|m| m.index.pages += 1);
    refused("2^32-1 pages", "manifest", &|m| m.index.pages = u32::MAX);
    refused("a payload of 2^64-1", "manifest", &|m| m.index.payload_len = u64::MAX);
    refused("a payload one longer", "header", &|m| m.index.payload_len += 1);
    refused("models out of order", "manifest", &|m| m.models.reverse());
    refused("a model twice", "manifest", &|m| m.models[1].name = m.models[0].name.clone());
    refused("files out of order", "manifest", &|m| m.models[0].files.reverse());
    refused("a file that leaves its directory", "manifest", &|m| {
        m.models[0].files[1].name = "../../etc/passwd".to_owned()
    });
    refused("a hidden file", "manifest", &|m| m.models[0].files[0].name = ".golden".to_owned());
    refused("65 models", "manifest-form", &|m| m.models = vec![m.models[0].clone(); 65]);
    refused("17 files", "manifest-form", &|m| m.models[0].files = vec![m.models[0].files[0].clone(); 17]);
    refused("boards out of order", "manifest", &|m| m.targets = vec!["b".to_owned(), "a".to_owned()]);
    refused("a board twice", "manifest", &|m| m.targets = vec!["a".to_owned(), "a".to_owned()]);
    refused("another page table", "page-table-digest", &|m| m.index.table_sha256.0[0] ^= 1);
    // What only a look into the model's own manifest shows.
    let parse = |change: &dyn Fn(&mut inferd_bundle::BundleManifest)| {
        let bundle = judge(&forge.clone().edit(change).bytes()).unwrap();
        code(bundle.manifest().models[0].parse())
    };
    assert_eq!(parse(&|m| m.models[0].manifest.push_str("more = 1")), "model-manifest");
    assert_eq!(parse(&|m| m.models[0].name = name("a2")), "model-manifest");
    assert_eq!(parse(&|m| m.models[0].files[0].sha256.0[0] ^= 1), "model-manifest");
    assert_eq!(parse(&|m| m.models[0].files[0].name = "golden.safetensor".to_owned()), "model-manifest");
}

#[test]
fn cbor_that_is_not_canonical_is_refused_even_when_it_is_signed() {
    let forge = Forge::new(&release(&small()));
    let good = forge.manifest.clone();
    let refused = |what: &str, manifest: Vec<u8>| {
        let forged = Forge { manifest, ..forge.clone() }.sign(&RELEASE[..2]);
        assert_eq!(code(judge(&forged.bytes())), "manifest-form", "{what}");
    };
    assert_eq!(good[0] & 0xe0, 0xa0, "a map of less than 24 keys");
    assert_eq!(good[1..3], [0x00, 0x01], "format: 1");
    let with = |at: Range<usize>, bytes: &[u8]| {
        let mut copy = good.clone();
        copy.splice(at, bytes.iter().copied());
        copy
    };
    refused("an integer in two bytes", with(2..3, &[0x18, 0x01]));
    refused("a key in two bytes", with(1..2, &[0x18, 0x00]));
    refused("a map of indefinite length", [&[0xbf][..], &good[1..], &[0xff]].concat());
    refused("a map length in two bytes", with(0..1, &[0xb8, good[0] & 0x1f]));
    refused("a key twice", with(0..1, &[good[0] + 1, 0x00, 0x01]));
    refused("an unknown key", [&[good[0] + 1][..], &good[1..], &[0x18, 0x63, 0x00]].concat());
    refused("keys out of order", with(1..5, &[good[3], good[4], good[1], good[2]]));
    refused("bytes after it", [&good[..], &[0]].concat());
    refused("a tag", [&[0xc6][..], &good].concat());
    refused("nothing", vec![0xa0]);
    refused("an integer", vec![0x00]);
    refused("65,535 nested lists", vec![0x81; 65_535]);
    refused("a text of 2^64-1 bytes", [&[0xa1, 0x04, 0x7b][..], &[0xff; 8]].concat());
    refused("a list of 2^32-1 models", [&[0xa1, 0x09, 0x9a][..], &[0xff; 4]].concat());
    let text = good.windows(2).position(|w| w == [0x04, 0x61]).unwrap();
    refused("text that is not UTF-8", with(text + 2..text + 3, &[0xff]));
    let forged = Forge { manifest: vec![0; 256 * 1024 + 1], ..forge.clone() };
    assert_eq!(code(judge(&forged.bytes())), "too-large");
    let forged = Forge { manifest: Vec::new(), ..forge.clone() };
    assert_eq!(code(judge(&forged.bytes())), "manifest-form");
}

#[test]
fn an_index_that_cannot_be_is_refused_even_when_it_is_signed() {
    let forge = Forge::new(&release(&small()));
    let refused = |what: &str, want: &str, change: &dyn Fn(&mut Forge)| {
        let mut forged = forge.clone();
        change(&mut forged);
        assert_eq!(code(judge(&forged.settle().bytes())), want, "{what}");
    };
    let word =
        |f: &mut Forge, at: usize, value: u32| f.index[at..at + 4].copy_from_slice(&value.to_le_bytes());
    let place = |f: &mut Forge, value: u64| f.index[..8].copy_from_slice(&value.to_le_bytes());
    for value in [1, 4096, 1 << 40, 1 << 63, u64::MAX] {
        refused("a first chunk elsewhere", "page", &|f| place(f, value));
    }
    for value in [0, 1, 1366, 65_536, u32::MAX] {
        refused("another number of records", "page", &|f| word(f, 8, value));
    }
    refused("a reserved field", "page", &|f| word(f, 12, 1));
    for value in [0, 1, 262_145, u32::MAX] {
        refused("another stored length", "page", &|f| word(f, 16 + 32, value));
        refused("another raw length", "page", &|f| word(f, 16 + 36, value));
        refused("both", "page", &|f| {
            word(f, 16 + 32, value);
            word(f, 16 + 36, value);
        });
    }
    for value in [1, 2, 3, 1 << 31, u32::MAX] {
        refused("another flag", "page", &|f| word(f, 16 + 40, value));
    }
    refused("a reserved field of a record", "page", &|f| word(f, 16 + 44, 1));
    refused("a byte after the records", "page", &|f| f.index[65_535] = 1);
    refused("another digest", "chunk-digest", &|f| f.record(0)[0] ^= 1);
    refused("a payload that is longer", "page", &|f| f.payload.push(0));
    refused("a payload that is shorter", "page", &|f| {
        f.payload.pop();
    });
    refused("a page more", "manifest", &|f| f.index.extend(vec![0; 65_536]));
}

#[test]
fn a_signatures_section_that_cannot_be_is_refused() {
    let forge = Forge::new(&release(&small()));
    let refused = |want: &str, signatures: Vec<u8>| {
        assert_eq!(code(judge(&Forge { signatures, ..forge.clone() }.bytes())), want);
    };
    let good = &forge.signatures;
    let (one, two) = (&good[4..100], &good[100..196]);
    refused("unsigned", 0_u32.to_le_bytes().to_vec());
    refused("signatures-form", Vec::new());
    refused("signatures-form", good[..3].to_vec());
    refused("signatures-form", good[..195].to_vec());
    refused("signatures-form", [good, &[0][..]].concat());
    for count in [0, 1, 3, 1 << 31, u32::MAX] {
        refused("signatures-form", [&count.to_le_bytes()[..], &good[4..]].concat());
    }
    refused("signatures-form", [&good[..4], two, one].concat());
    refused("signatures-form", [&good[..4], one, one].concat());
    refused("too-large", vec![0; 64 * 1024 + 1]);
}

#[test]
fn a_chunk_that_unpacks_to_anything_but_what_the_index_says_is_refused() {
    const HEAD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    // A block: last, kind (0 raw, 1 one byte repeated), length.
    let block = |last: u32, kind: u32, len: u32, body: &[u8]| {
        [&(last | kind << 1 | len << 3).to_le_bytes()[..3], body].concat()
    };
    let frame = |descriptor: &[u8], blocks: &[Vec<u8>]| [&HEAD[..], descriptor, &blocks.concat()].concat();
    // Window of 128 KiB: exponent 7.
    let window = [0x00, 7 << 3];
    let unpack = |stored: &[u8], raw_len: u32| {
        let forged = Forge::one_chunk(stored, raw_len, true);
        let mut sink = Collect { trust: Some(trust()), ..Collect::default() };
        let mut stream = Stream::new();
        stream.push(&forged.bytes(), &mut sink).unwrap();
        stream.finish().unwrap();
        let mut out = vec![1, 2, 3];
        let (chunk, stored) = &sink.chunks[0];
        let done = chunk.unpack(stored, &mut out);
        assert_eq!(out.is_empty(), done.is_err(), "nothing is handed on of what is refused");
        done.map(|()| out)
    };
    let good = frame(&window, &[block(0, 1, 1000, b"a"), block(1, 0, 3, b"end")]);
    assert_eq!(unpack(&good, 1003).unwrap(), [vec![b'a'; 1000], b"end".to_vec()].concat());

    let bomb = vec![vec![block(0, 1, 128 * 1024, b"a"); 10_000].concat(), block(1, 1, 128 * 1024, b"a")];
    let cases: Vec<(&str, Vec<u8>, u32)> = vec![
        ("1.3 GB from 40 KB", frame(&window, &bomb), 262_144),
        ("one byte more", good.clone(), 1002),
        ("one byte less", good.clone(), 1004),
        ("bytes after the frame", [&good[..], b"x"].concat(), 1003),
        ("two frames", [&good[..], &good[..]].concat(), 1003),
        ("a skippable frame", [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"abcd", &good].concat(), 1003),
        ("a window of 512 KiB", frame(&[0x00, 9 << 3], &[block(1, 1, 1000, b"a")]), 1000),
        ("a window of 3.75 TiB", frame(&[0x00, 0xff], &[block(1, 1, 1000, b"a")]), 1000),
        ("one segment of 2 GiB", frame(&[0xa0, 0, 0, 0, 0x80], &[block(1, 1, 1000, b"a")]), 1000),
        (
            "one segment of 2^64-1",
            [&frame(&[0xe0], &[vec![0xff; 8]])[..], &block(1, 1, 1000, b"a")].concat(),
            1000,
        ),
        ("a dictionary", frame(&[0x01, 7 << 3, 1], &[block(1, 1, 1000, b"a")]), 1000),
        ("a block of kind 3", frame(&window, &[block(1, 3, 5, b"abcde")]), 1000),
        ("a cut frame", good[..good.len() - 1].to_vec(), 1003),
        ("no last block", frame(&window, &[block(0, 1, 1000, b"a")]), 1000),
        ("no frame", b"not zstd at all".to_vec(), 1000),
        ("another magic", [&[0x27][..], &good[1..]].concat(), 1003),
        ("80,000 empty blocks", frame(&window, &vec![block(0, 0, 0, b""); 80_000]), 262_144),
    ];
    for (what, stored, raw_len) in &cases {
        assert_eq!(code(unpack(stored, *raw_len)), "compression", "{what}");
    }
    println!("chunks that unpack to something else: {} refused", cases.len());
    // Random damage inside an authenticated frame: only a signer could do it, and it must not panic either.
    let packed = {
        let mut spec = BundleSpec::new(name("walk"), 1, vec![model("walk", b"g", &words(8, 60_000))]);
        spec.compress = true;
        let mut sink = Collect::default();
        Stream::new().push(&release(&spec), &mut sink).unwrap();
        sink.chunks.into_iter().find(|(c, _)| c.compressed).unwrap()
    };
    let (mut random, mut refused, mut out) = (random(6), 0, Vec::new());
    for _ in 0..20_000 {
        let mut stored = packed.1.clone();
        for _ in 0..=below(&mut random, 3) {
            let at = below(&mut random, stored.len() as u64) as usize;
            stored[at] ^= 1 << below(&mut random, 8);
        }
        let chunk = inferd_bundle::Chunk { digest: inferd_bundle::Digest::of(&stored), ..packed.0 };
        match chunk.unpack(&stored, &mut out) {
            Ok(()) => assert_eq!(out.len() as u32, chunk.raw_len),
            Err(refusal) => {
                assert_eq!(refusal.code(), "compression");
                refused += 1;
            }
        }
    }
    println!("frames damaged at random: {refused} of 20000 refused, the others as long as the index says");
}

#[test]
fn parts_of_two_bundles_do_not_go_together() {
    // Same lengths everywhere, so that only the content differs.
    let make = |seed| {
        let spec =
            BundleSpec::new(name("walk"), 7, vec![model("walk", &noise(seed, 1000), &noise(seed + 1, 3000))]);
        Forge::new(&release(&spec))
    };
    let (a, b) = (make(1), make(3));
    assert_eq!((a.manifest.len(), a.payload.len()), (b.manifest.len(), b.payload.len()));
    let mix = |change: &dyn Fn(&mut Forge)| {
        let mut mixed = a.clone();
        change(&mut mixed);
        code(judge(&mixed.bytes()))
    };
    assert_eq!(mix(&|m| m.payload.clone_from(&b.payload)), "chunk-digest");
    assert_eq!(mix(&|m| m.index.clone_from(&b.index)), "page-digest");
    assert_eq!(mix(&|m| m.table.clone_from(&b.table)), "page-table-digest");
    assert_eq!(mix(&|m| m.signatures.clone_from(&b.signatures)), "signature-wrong");
    assert_eq!(mix(&|m| m.manifest.clone_from(&b.manifest)), "page-table-digest");
    assert_eq!(
        mix(&|m| {
            m.manifest.clone_from(&b.manifest);
            m.table.clone_from(&b.table);
        }),
        "signature-wrong"
    );
    // A transfer of `a` that goes on with `b`: the content changed between two requests.
    let (one, two) = (a.bytes(), b.bytes());
    let payload = long(&one, 80) as usize;
    for cut in [4096, 8192, payload - 65_536, payload - 1, payload, payload + 1000, payload + 2000] {
        let refused = code(judge(&[&one[..cut], &two[cut..]].concat()));
        assert!(refused.ends_with("-digest"), "{cut}: {refused}");
    }
}
