//! What goes into a bundle comes out, whatever way it is read.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::*;
use inferd_bundle::build::{BuildError, BundleSpec, Content, FileSource, ModelSource, build, resign};
use inferd_bundle::{Bundle, Digest, IndexCheck, Place, Refusal, Stream, limits};
use std::collections::BTreeMap;

/// Three models: small side by side with large, text with noise, and a file that is empty.
fn several() -> BundleSpec {
    let mut models = vec![
        model("zebra", &words(1, 50_000), &noise(2, 900_000)),
        model("ant", &noise(3, 5_000), &words(4, 700_000)),
        model("mole", &words(5, 20_000), &[]),
    ];
    models[1].files.reverse();
    let mut spec = BundleSpec::new(name("zoo"), 3, models);
    spec.targets = vec!["rpi5-hailo8".to_owned(), "qemu-aarch64".to_owned()];
    spec.min_inferd = Some("0.1.0".to_owned());
    spec
}

fn content(source: &ModelSource) -> BTreeMap<String, Vec<u8>> {
    let bytes = |f: &FileSource| match &f.content {
        Content::Bytes(bytes) => bytes.clone(),
        other => panic!("{other:?}"),
    };
    source.files.iter().map(|f| (f.name.clone(), bytes(f))).collect()
}

/// Every file, put together from chunks.
fn unpacked(bundle: &Bundle, sink: &Collect) -> BTreeMap<(String, String), Vec<u8>> {
    let mut piece = Vec::new();
    bundle
        .manifest()
        .files()
        .map(|(m, f)| {
            let mut bytes = Vec::new();
            for number in f.chunk_range() {
                let (chunk, stored) = &sink.chunks[number as usize];
                chunk.unpack(stored, &mut piece).unwrap();
                bytes.extend_from_slice(&piece);
            }
            assert_eq!((bytes.len() as u64, Digest::of(&bytes)), (f.len, f.sha256));
            ((m.name.to_string(), f.name.clone()), bytes)
        })
        .collect()
}

#[test]
fn every_file_comes_out_as_it_went_in_packed_or_not() {
    for compress in [false, true] {
        let mut spec = several();
        spec.compress = compress;
        let (built, bytes) = built(&spec, &RELEASE[..2]);
        let mut sink = Collect { trust: Some(trust()), ..Collect::default() };
        let mut stream = Stream::new();
        stream.push(&bytes, &mut sink).unwrap();
        let bundle = stream.finish().unwrap();
        assert_eq!(
            (bundle.id(), bundle.total_len(), bundle.manifest()),
            (built.id, built.len, &built.manifest)
        );
        assert_eq!(built.compressed > 0, compress);
        assert!(sink.chunks.iter().any(|(c, _)| !c.compressed), "noise does not get shorter");
        let files = unpacked(&bundle, &sink);
        let mut count = 0;
        for (source, model) in
            spec.models.iter().map(|m| (content(m), inferd_model::Manifest::from_toml(&m.manifest).unwrap()))
        {
            for (file, bytes) in source {
                assert!(files[&(model.name.to_string(), file)] == bytes);
                count += 1;
            }
        }
        assert_eq!(count, files.len());
        for model in &bundle.manifest().models {
            assert_eq!(model.parse().unwrap().name, model.name);
        }
        let authorized = sink.authorized.unwrap();
        assert_eq!((authorized.keys.len(), authorized.threshold, authorized.root), (2, 2, 1));
    }
}

#[test]
fn golden_vectors_come_first_and_networks_last() {
    let (built, _) = built(&several(), &[]);
    let mut order: Vec<_> = built.manifest.files().filter(|(_, f)| f.chunks > 0).collect();
    order.sort_by_key(|(_, f)| f.first_chunk);
    let order: Vec<_> = order.iter().map(|(m, f)| format!("{}/{}", m.name, f.name)).collect();
    assert_eq!(
        order,
        [
            "ant/golden.safetensors",
            "mole/golden.safetensors",
            "zebra/golden.safetensors",
            "ant/model.onnx",
            "zebra/model.onnx"
        ]
    );
}

#[test]
fn the_verdict_and_the_pieces_do_not_depend_on_how_the_bytes_arrive() {
    let mut spec = several();
    spec.compress = true;
    let bytes = release(&spec);
    let mut whole = Collect::default();
    let mut stream = Stream::new();
    stream.push(&bytes, &mut whole).unwrap();
    stream.finish().unwrap();
    let mut random = random(1);
    for round in 0..40_u64 {
        let mut sink = Collect::default();
        let mut stream = Stream::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            // Some rounds byte by byte for a while, some in large pieces, some empty pushes.
            let most = [2, 50, 5_000, 300_000][(round % 4) as usize];
            let most = if rest.len() > 300_000 && round % 4 == 0 { 100_000 } else { most };
            let (now, after) = rest.split_at((below(&mut random, most) as usize).min(rest.len()));
            stream.push(now, &mut sink).unwrap();
            rest = after;
            assert_eq!(stream.position() as usize, bytes.len() - rest.len());
        }
        assert!(stream.is_complete());
        stream.finish().unwrap();
        assert!(sink.prefix == whole.prefix && sink.pages == whole.pages && sink.chunks == whole.chunks);
    }
}

#[test]
fn reading_at_random_finds_what_reading_in_order_finds() {
    let bytes = release(&several());
    let mut sink = Collect::default();
    let mut stream = Stream::new();
    stream.push(&bytes, &mut sink).unwrap();
    let need = Bundle::prefix_len(bytes.first_chunk().unwrap()).unwrap();
    let bundle = Bundle::parse(&bytes[..need as usize]).unwrap();
    assert_eq!(bundle, stream.finish().unwrap());
    assert_eq!(bundle, Bundle::parse(&bytes).unwrap(), "what follows is ignored");
    assert_eq!(code(Bundle::parse(&bytes[..need as usize - 1])), "truncated");
    let range = |r: std::ops::Range<u64>| &bytes[r.start as usize..r.end as usize];
    let mut check = IndexCheck::new(&bundle);
    let mut chunks = Vec::new();
    for number in 0..bundle.pages() {
        let page = bundle.check_page(number, range(bundle.page_range(number))).unwrap();
        check.page(&bundle, &page).unwrap();
        for chunk in page.chunks() {
            chunk.check(range(chunk.range())).unwrap();
            assert_eq!(page.chunk(chunk.number), Some(chunk));
            assert_eq!(bundle.page_of(chunk.number), Some(number));
            chunks.push((chunk, range(chunk.range()).to_vec()));
        }
    }
    assert!(check.is_complete(&bundle) && chunks == sink.chunks);
    assert_eq!(bundle.page_of(chunks.len() as u64), None);
    assert_eq!(chunks.last().unwrap().0.range().end, bundle.payload_range().end);
    assert_eq!(code(bundle.check_page(bundle.pages(), &[])), "no-such-page");
}

#[test]
fn a_transfer_goes_on_at_every_page_and_chunk() {
    let bytes = release(&several());
    let mut whole = Collect::default();
    let mut stream = Stream::new();
    stream.push(&bytes, &mut whole).unwrap();
    let bundle = stream.finish().unwrap();
    let chunks = whole.chunks.len() as u64;
    let places = (0..bundle.pages()).map(Place::Page).chain((0..=chunks).map(Place::Chunk));
    for place in places {
        let mut sink = Collect { pages: whole.pages.clone(), ..Collect::default() };
        if let Place::Page(page) = place {
            sink.pages.truncate(page as usize);
        }
        let mut stream = Stream::resume(bundle.clone(), place, &mut sink).unwrap();
        let at = stream.position() as usize;
        stream.push(&bytes[at..], &mut sink).unwrap();
        stream.finish().unwrap();
        let from = if let Place::Chunk(number) = place { number as usize } else { 0 };
        assert!(sink.pages == whole.pages && sink.chunks == whole.chunks[from..], "{place:?}");
    }
    for place in [Place::Page(bundle.pages()), Place::Chunk(chunks + 1)] {
        assert_eq!(code(Stream::resume(bundle.clone(), place, &mut whole)), "no-such-page");
    }
}

#[test]
fn after_a_refusal_a_stream_takes_nothing_more() {
    let mut bytes = release(&small());
    bytes[4200] ^= 1;
    let mut sink = Collect::default();
    let mut stream = Stream::new();
    assert_eq!(code(stream.push(&bytes, &mut sink)), "manifest-digest");
    bytes[4200] ^= 1;
    assert_eq!(code(stream.push(&bytes, &mut sink)), "spent");
    assert_eq!(code(stream.finish()), "spent");
}

#[test]
fn a_second_holder_of_a_key_signs_later_and_the_id_stays() {
    let (first, one) = built(&several(), &RELEASE[..1]);
    assert_eq!(code(judge(&one)), "below-threshold");
    let mut two = Vec::new();
    let second = resign(&mut one.as_slice(), &[&key(RELEASE[1])], &mut two).unwrap();
    assert_eq!(second.id, first.id);
    assert_eq!(judge(&two).unwrap().id(), first.id);
    assert_eq!(two, release(&several()), "as if both had signed at once");
    let mut again = Vec::new();
    resign(&mut two.as_slice(), &[&key(RELEASE[1])], &mut again).unwrap();
    assert_eq!(again, two);
    let cut = resign(&mut &two[..two.len() - 1], &[], &mut Vec::new());
    assert!(matches!(cut, Err(BuildError::Refused(Refusal::Truncated { .. }))), "{cut:?}");
}

#[test]
fn many_signatures_move_the_payload_and_nothing_else() {
    let spec = small();
    // 64 KiB hold 682 records; 100 need three blocks of 4 KiB.
    let signers: Vec<u8> = (100..200).chain(RELEASE).collect();
    let (many, bytes) = built(&spec, &signers);
    let (few, _) = built(&spec, &RELEASE);
    assert_eq!((many.id, many.len), (few.id, few.len + 8192));
    assert_eq!(judge(&bytes).unwrap().signatures().len(), 103);
}

#[test]
fn a_builder_refuses_what_no_device_would_load() {
    let refused = |change: &dyn Fn(&mut BundleSpec), words: &str| {
        let mut spec = small();
        change(&mut spec);
        let error = build(&spec, &[], &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains(words), "{error:?} does not say {words:?}");
    };
    refused(&|s| s.models.clear(), "at least one");
    refused(&|s| s.models.push(model("walk", b"a", b"b")), "each once");
    refused(&|s| s.models[0].files.truncate(1), "golden.safetensors is needed");
    refused(&|s| s.models[0].files[0].name = "other.onnx".to_owned(), "model.onnx is needed");
    refused(&|s| s.models[0].files[0].content = Content::Bytes(vec![1]), "another digest");
    refused(&|s| s.models[0].files[0].content = Content::Path("/nonexistent/file".into()), "cannot be read");
    refused(&|s| s.models[0].manifest.push_str("nonsense"), "not valid TOML");
    refused(
        &|s| {
            let more = FileSource { name: "notes.txt".to_owned(), content: Content::Bytes(vec![]) };
            s.models[0].files.push(more);
        },
        "does not refer to notes.txt",
    );
    refused(&|s| s.label = "1 2".to_owned(), "label");
    refused(&|s| s.label.clear(), "label");
    refused(&|s| s.summary = "two\nlines".to_owned(), "summary");
    refused(&|s| s.summary = "x".repeat(limits::MAX_SUMMARY + 1), "summary");
    refused(&|s| s.provenance = "bell \u{7}".to_owned(), "provenance");
    refused(&|s| s.targets = vec!["no board".to_owned()], "targets");
    refused(&|s| s.targets = (0..33).map(|i| format!("b{i}")).collect(), "longer than allowed");
    for version in ["1", "1.2", "1.2.3.4", "01.2.3", "+1.2.3", "1.2.x", ""] {
        refused(&|s| s.min_inferd = Some(version.to_owned()), "min_inferd");
    }
    refused(&|s| s.role = inferd_bundle::Role::Root, "role");
    refused(&|s| s.policy.probation.max_error_rate = f64::NAN, "max_error_rate");
    refused(&|s| s.policy.probation.max_p99_ratio = 0.0, "max_p99_ratio");
    refused(&|s| s.policy.probation.max_drift = f64::INFINITY, "max_drift");
    refused(&|s| s.policy.probation.seconds = 604_801, "seconds");
    refused(&|s| s.provenance = "x".repeat(limits::MAX_PROVENANCE + 1), "provenance");
    let calls = std::cell::Cell::new(0_u8);
    let mut spec = small();
    spec.models[0].files[0].content = {
        let golden = noise(2, 40_000);
        Content::Open(Box::new(move || {
            calls.set(calls.get() + 1);
            let mut bytes = golden.clone();
            bytes[0] ^= calls.get() - 1;
            Ok(Box::new(std::io::Cursor::new(bytes)))
        }))
    };
    let changed = build(&spec, &[], &mut Vec::new());
    assert!(matches!(changed, Err(BuildError::Changed(_))), "{changed:?}");
}

#[test]
fn a_bundle_says_where_and_with_what_it_runs() {
    let (built, _) = built(&several(), &[]);
    let manifest = built.manifest;
    assert_eq!(manifest.targets, ["qemu-aarch64", "rpi5-hailo8"]);
    assert!(manifest.runs_on("rpi5-hailo8") && !manifest.runs_on("rpi4"));
    for (have, enough) in
        [("0.1.0", true), ("0.1.1-dev+abc", true), ("1.0.0", true), ("0.0.9", false), ("", false)]
    {
        assert_eq!(manifest.runs_with(have), enough, "{have}");
    }
    assert_eq!(manifest.files_len(), 50_000 + 900_000 + 5_000 + 700_000 + 20_000);
    assert_eq!(manifest.owner(0).unwrap().0.name.as_str(), "ant");
    assert_eq!(manifest.owner(manifest.index.chunks).map(|(m, _)| m.name.clone()), None);
    assert!(manifest.model("zebra").unwrap().file("model.onnx").is_some());
}

#[test]
fn chunks_are_about_64_kib_and_change_only_where_the_file_does() {
    let network = noise(9, 6_000_000);
    let mut changed = network.clone();
    changed.splice(3_000_000..3_000_010, *b"inserted, longer than what was there");
    let chunks = |network: &[u8]| {
        let bytes = release(&BundleSpec::new(name("big"), 1, vec![model("big", b"g", network)]));
        let mut sink = Collect::default();
        Stream::new().push(&bytes, &mut sink).unwrap();
        sink.chunks.into_iter().map(|(c, _)| c).collect::<Vec<_>>()
    };
    let (old, new) = (chunks(&network), chunks(&changed));
    let average = network.len() / new.len();
    assert!((40_000..120_000).contains(&average), "{average} bytes on average");
    let diff = inferd_bundle::delta::diff(old.iter().copied(), new.iter().copied());
    assert!((1..=3).contains(&diff.new_chunks), "{diff:?}");
    let plan =
        inferd_bundle::delta::plan(new.iter().copied(), |c| old.iter().any(|o| o.digest == c.digest), 0);
    assert_eq!((plan.fetch.len(), plan.need_bytes), (1, diff.new_bytes));
    assert_eq!(plan.fetch_bytes, plan.need_bytes);
    assert_eq!(plan.saved_bytes(), diff.shared_bytes);
    let all = inferd_bundle::delta::plan(new.iter().copied(), |_| false, 0);
    assert_eq!((all.fetch.len(), all.saved_bytes(), all.have_chunks), (1, 0, 0));
}

#[test]
fn a_plan_bridges_gaps_that_cost_less_than_a_request() {
    let bytes = release(&several());
    let mut sink = Collect::default();
    Stream::new().push(&bytes, &mut sink).unwrap();
    let chunks: Vec<_> = sink.chunks.iter().map(|(c, _)| *c).collect();
    let plan = |bridge| inferd_bundle::delta::plan(chunks.iter().copied(), |c| c.number % 2 == 1, bridge);
    let (apart, together) = (plan(0), plan(1 << 20));
    assert_eq!(apart.fetch.len() as u64, apart.fetch_chunks);
    assert!(apart.fetch.windows(2).all(|w| w[0].end < w[1].start));
    assert_eq!(together.fetch.len(), 1);
    assert!(together.fetch_bytes > together.need_bytes && together.need_bytes == apart.fetch_bytes);
}

#[test]
fn a_system_comes_out_as_it_went_in_and_says_which_file_starts_which_slot() {
    for files in [&["rootfs"][..], &["rootfs", "boot"], &["boot-b", "rootfs", "boot-a"]] {
        let spec = system(files);
        let (built, bytes) = built(&spec, &[SYSTEM]);
        let mut sink = Collect { trust: Some(trust()), ..Collect::default() };
        let mut stream = Stream::new();
        stream.push(&bytes, &mut sink).unwrap();
        let bundle = stream.finish().unwrap();
        assert!(built.compressed > 0, "what is unused in a filesystem costs nothing");
        for ((entry, file), bytes) in unpacked(&bundle, &sink) {
            let source = spec.system.iter().find(|f| f.name == file).unwrap();
            let Content::Bytes(want) = &source.content else { panic!() };
            assert!(entry == "system" && bytes == *want, "{file}");
        }
        let system = bundle.manifest().system().unwrap();
        let boots = system.boot.map(|both| both.map(|f| f.name.as_str()));
        let want = match files.len() {
            1 => None,
            2 => Some(["boot", "boot"]),
            _ => Some(["boot-a", "boot-b"]),
        };
        assert_eq!((system.rootfs.name.as_str(), boots), ("rootfs", want));
    }
}

#[test]
fn a_system_without_a_root_filesystem_or_with_other_files_is_not_built() {
    for files in
        [&["boot"][..], &["rootfs", "boot-a"], &["rootfs", "boot", "boot-a", "boot-b"], &["rootfs", "kernel"]]
    {
        let result = build(&system(files), &[], &mut Vec::new());
        assert!(
            matches!(result, Err(BuildError::Refused(Refusal::Manifest { .. }))),
            "{files:?}: {result:?}"
        );
    }
    let mut both = system(&["rootfs"]);
    both.models = small().models;
    assert!(build(&both, &[], &mut Vec::new()).is_err(), "models beside a system");
}

#[test]
fn keys_that_release_models_release_no_system() {
    let mut sink = Collect { trust: Some(trust()), ..Collect::default() };
    let bytes = built(&system(&["rootfs"]), &RELEASE).1;
    let refused = Stream::new().push(&bytes, &mut sink).unwrap_err();
    assert_eq!(refused.code(), "wrong-role");
    assert!(sink.chunks.is_empty(), "known before the payload");
}
