//! One function per parser.

use crate::announce;
use crate::bench;
use crate::bundle;
use crate::fetch;
use crate::flash;
use crate::inferd::config::{Arguments, Loaded};
use crate::kernel;
use crate::slots;
use crate::sources;
use crate::system;
use crate::watch;
use inferd_api::oip::fuzz as oip;
use inferd_engine::{CpuEngine, Engine, NetworkFile};
use inferd_model::{Golden, GoldenWriter, Manifest, Motif};
use inferd_tasks::{
    emg::{EmgPlan, FIELDS},
    form::{Form, FormError},
    imu::ImuPlan,
    window::{Numbers, WindowKey},
};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{LazyLock, Mutex};

/// A target by name.
type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] = &[
    ("manifest", manifest),
    ("golden", golden),
    ("motif", motif),
    ("network", network),
    ("imu", imu),
    ("form", form),
    ("oip", oip_request),
    ("coding", coding),
    ("paths", paths),
    ("config", config),
    ("state", slots::state),
    ("journal", slots::journal),
    ("bootstate", system::bootstate),
    ("autoboot", system::autoboot),
    ("fat", system::fat),
    ("bmap", flash::bmap),
    ("squashfs", system::squashfs),
    ("mdns", announce::mdns),
    ("minisign", flash::minisign),
    ("beginning", bundle::beginning),
    ("page", bundle::page),
    ("chunk", bundle::chunk),
    ("trust", bundle::trust),
    ("stream", bundle::stream),
    ("ddi", fetch::ddi),
    ("headers", fetch::headers),
    ("kernel", kernel::kernel),
    ("history", watch::history),
    ("keeper", watch::keeper),
    ("benchmark", bench::benchmark),
    ("frame", sources::frame),
    ("legacy", sources::legacy),
    ("mat", sources::mat),
    ("npy", sources::npy),
    ("csv", sources::csv),
    ("session", inferd_api::analysis::fuzz),
];

/// A manifest of this repository.
macro_rules! page {
    ($path:literal) => {
        Manifest::from_toml(include_str!(concat!("../../../", $path, "/manifest.toml")))
            .expect("it is tested elsewhere")
    };
}

static DEFAULT: LazyLock<Manifest> = LazyLock::new(|| page!("app/inferd/models/imu-motion"));

/// Manifests with plain tensors, of several inputs and of every kind of element.
static TENSORS: LazyLock<Vec<Manifest>> = LazyLock::new(|| {
    vec![
        page!("tests/models/two-in-two-out"),
        page!("tests/models/identity-fp32"),
        page!("tests/models/identity-int64"),
        page!("tests/models/identity-bool"),
        page!("tests/models/identity-bf16"),
        page!("tests/models/identity-uint8"),
        page!("tests/models/identity-fp64"),
        DEFAULT.clone(),
        page!("tests/models/qdq-int8-conv"),
        page!("tests/models/dynamic-shape"),
        page!("tests/models/fault-panic"),
        page!("tests/models/fault-alloc"),
    ]
});

/// The first byte, which chooses, and the rest.
fn choice(data: &[u8]) -> Option<(usize, &[u8])> {
    data.split_first().map(|(&first, rest)| (usize::from(first), rest))
}

/// What was accepted is written back, and is the same when it is read again.
fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(first) = Manifest::from_toml(text) else { return };
    let written = first.to_toml();
    // What is written has other white space and escapes; a page near the limit may come out larger than it.
    if written.len() > inferd_model::MAX_MANIFEST_BYTES {
        return;
    }
    let second = Manifest::from_toml(&written).expect("what it wrote, it reads");
    assert_eq!(first, second);
    for spec in first.inputs.iter().chain(&first.outputs) {
        assert!(spec.byte_len() <= inferd_model::MAX_TENSOR_BYTES);
        if spec.channel_count() <= 1 << 12 {
            assert_eq!(spec.limit_per_channel().len(), spec.channel_count());
        }
    }
    let files: BTreeSet<&str> = first.networks().map(|n| n.file).collect();
    assert_eq!(files.len(), first.variants.len() + 1, "every network has a file of its own");
    for &rung in &first.engines {
        let network = first.network(rung).expect("every rung runs something");
        assert_eq!(network.format, inferd_model::NetworkFormat::of(rung.engine));
        assert_eq!(rung.to_string().parse(), Ok(rung));
    }
    let _ = ImuPlan::new(&first, None, 12);
}

/// Accepted vectors fit the manifest, agree with themselves, and survive being written.
fn golden(data: &[u8]) {
    let Some((which, file)) = choice(data) else { return };
    let model = &TENSORS[which % TENSORS.len()];
    let Ok(golden) = Golden::parse(file, model) else { return };
    let mut writer = GoldenWriter::default();
    for (i, case) in golden.cases().iter().enumerate() {
        let fits = |buffers: &[Vec<u8>], specs: &[inferd_model::TensorSpec]| {
            buffers.iter().map(Vec::len).eq(specs.iter().map(|s| s.byte_len()))
        };
        assert!(fits(&case.inputs, &model.inputs) && fits(&case.outputs, &model.outputs));
        let outputs: Vec<&[u8]> = case.outputs.iter().map(Vec::as_slice).collect();
        let same = golden.compare(i, &outputs, model, model.golden.tolerance());
        assert!(same.is_ok(), "vectors do not agree with themselves: {same:?}");
        writer.push(case.clone());
    }
    let written = writer.to_bytes(&model.inputs, &model.outputs).expect("they fit");
    assert_eq!(Golden::parse(&written, model).as_ref(), Ok(&golden));
}

/// An accepted head is complete, and gives numbers.
fn motif(data: &[u8]) {
    static MODEL: LazyLock<Manifest> = LazyLock::new(|| {
        let mut model = DEFAULT.clone();
        let imu = model.imu.as_mut().expect("it is an encoder");
        let labels = ["sit", "walk"].map(str::to_owned).to_vec();
        imu.motif =
            Some(Motif::Linear { file: "motif.safetensors".to_owned(), sha256: "0".repeat(64), labels });
        let latent = imu.latent.clone();
        model.outputs.retain(|o| o.name == latent);
        model.outputs[0].shape = vec![1, 4];
        model.validated().expect("it is valid")
    });
    let Ok(plan) = ImuPlan::new(&MODEL, Some(data), 12) else { return };
    assert_eq!((plan.motif().source(), plan.motif().len()), ("linear", 2));
    let latent = [1.0, -1.0, 1e30, -1e-30];
    let answer = plan.answer(|_| Some(&latent)).expect("the latent is finite");
    assert_eq!(answer.scores().filter(|s| (0.0..=1.0).contains(s)).count(), 2, "finite weights give scores");
    serde_json::from_slice::<serde_json::Value>(&answer.to_json()).expect("the answer is JSON");
}

static WORDS: Mutex<String> = Mutex::new(String::new());

/// The panic hook of the target `network`: keeps the words for the case that the panic escapes.
pub fn remember_panic(info: &PanicHookInfo<'_>) {
    if let Ok(mut words) = WORDS.lock() {
        *words = info.to_string();
    }
}

/// A network is described and loaded or refused; no panic of the engine's library gets out.
fn network(data: &[u8]) {
    let Some((which, file)) = choice(data) else { return };
    let model = &TENSORS[which % TENSORS.len()];
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let described = CpuEngine::describe(file);
        // SAFETY: `load` wants memory that outlives the model; `file` does, since the model is dropped before this
        // closure ends, whether it returns or unwinds, and nothing else keeps the slice.
        let file: &'static [u8] = unsafe { std::mem::transmute::<&[u8], &'static [u8]>(file) };
        let loaded = CpuEngine::new().load(NetworkFile::onnx(file), model);
        assert!(described.is_ok() || loaded.is_err(), "a network was loaded that cannot be described");
    }));
    if let Err(panic) = outcome {
        eprintln!("a panic escaped from the engine: {}", WORDS.lock().map(|w| w.clone()).unwrap_or_default());
        resume_unwind(panic);
    }
}

/// An accepted window is complete, finite and within its limits, whatever was in the slot; a refusal is JSON.
fn imu(data: &[u8]) {
    static PLANS: LazyLock<Vec<(Manifest, ImuPlan)>> = LazyLock::new(|| {
        // Windows of four rows and three columns are found by mutation, those of 100 x 9 only from seeds.
        let mut small = DEFAULT.clone();
        small.inputs[0].shape = vec![1, 4, 3];
        small.inputs[0].normalization = None;
        let channels = small.inputs[0].channels.as_mut().expect("it has channels");
        channels.names.truncate(3);
        channels.units.truncate(3);
        let names = channels.names.clone();
        small.inputs[0].limits.retain(|l| l.channels.iter().all(|c| names.contains(c)));
        [DEFAULT.clone(), small.validated().expect("it is valid")]
            .into_iter()
            .map(|m| (m.clone(), ImuPlan::new(&m, None, 12).expect("it is an encoder")))
            .collect()
    });
    let Some((which, body)) = choice(data) else { return };
    let (model, plan) = &PLANS[which & 1];
    let key = if which & 2 == 0 { WindowKey::X } else { WindowKey::ImuWindow };
    let numbers = if which & 4 == 0 { Numbers::Strict } else { Numbers::Lenient };
    let read = |background: f32| {
        let mut slot = vec![background; plan.timesteps() * plan.channels()];
        plan.parse(body, &mut slot, key, numbers).map(|()| slot)
    };
    // Compared as bits and words: an error may hold NaN, which is not equal to itself.
    let (one, other) = (read(f32::NAN), read(1e9));
    assert_eq!(format!("{one:?}"), format!("{other:?}"), "the result depends on what was in the slot");
    match one {
        Ok(window) => {
            let limits = model.inputs[0].limit_per_channel();
            for row in window.chunks(plan.channels()) {
                for (value, limit) in row.iter().zip(&limits) {
                    assert!(value.is_finite());
                    // Rounding to FP32 may not carry a value over a limit that FP32 holds exactly.
                    assert!(
                        limit.is_none_or(|(_, max)| f64::from(value.abs()) <= max),
                        "{value} is beyond {limit:?}"
                    );
                }
            }
        }
        Err(refusal) => {
            serde_json::from_slice::<serde_json::Value>(&refusal.to_json()).expect("a refusal is JSON");
            let _ = refusal.to_sentence();
        }
    }
}

/// A form means one thing, and its window is complete and the same whatever was in the slot; a refusal is JSON.
fn form(data: &[u8]) {
    static PLAN: LazyLock<EmgPlan> = LazyLock::new(|| {
        // Small, so that windows are found by mutation; with the filters of the default model.
        let mut small = page!("tests/models/emg-loudest");
        small.emg.as_mut().expect("it is a classifier").filters =
            page!("app/inferd/models/emg-gestures").emg.expect("so is it").filters;
        small.inputs[0].shape = vec![1, 4, 3];
        small.inputs[0].normalization = None;
        let channels = small.inputs[0].channels.as_mut().expect("it has channels");
        channels.names.truncate(3);
        channels.units.truncate(3);
        EmgPlan::new(&small.validated().expect("it is valid")).expect("it is a classifier")
    });
    let Some((which, body)) = choice(data) else { return };
    let is_json = |refusal: &FormError| {
        serde_json::from_slice::<serde_json::Value>(&refusal.to_json()).expect("a refusal is JSON");
    };
    let form = match Form::read(body, FIELDS) {
        Ok(form) => form,
        Err(refusal) => return is_json(&refusal),
    };
    for &field in FIELDS {
        match form.whole(field, 1, 120) {
            Ok(n) => assert!(n.is_none_or(|n| (1..=120).contains(&n))),
            Err(refusal) => is_json(&refusal),
        }
        match form.number_or_null(field) {
            Ok(n) => assert!(n.flatten().is_none_or(f64::is_finite)),
            Err(refusal) => is_json(&refusal),
        }
        let _ = form.truth(field).map_err(|e| is_json(&e));
        let _ = form.text(field).map_err(|e| is_json(&e));
    }
    let _ = PLAN.check(&form).map_err(|e| is_json(&e));
    let numbers = if which & 2 == 0 { Numbers::Strict } else { Numbers::Lenient };
    let read = |background: f32| {
        let mut slot = vec![background; PLAN.timesteps() * PLAN.channels()];
        PLAN.parse(body, &mut slot, numbers, which & 1 == 0).map(|()| slot)
    };
    let (one, other) = (read(f32::NAN), read(1e9));
    assert_eq!(format!("{one:?}"), format!("{other:?}"), "the result depends on what was in the slot");
    match one {
        Ok(window) => assert!(window.iter().all(|v| v.is_finite()) || which & 1 == 0, "a number became none"),
        Err(refusal) => {
            drop(serde_json::from_slice::<serde_json::Value>(&refusal.to_json()).expect("it is JSON"))
        }
    }
}

/// A request of the Open Inference Protocol: framing, JSON, binary tensors, and the reply to it.
///
/// The first byte chooses the model and, by its high bit, whether the first line is the header
/// `Inference-Header-Content-Length`.
fn oip_request(data: &[u8]) {
    let Some((which, mut body)) = choice(data) else { return };
    let model = &TENSORS[which % TENSORS.len()];
    let mut header: Vec<&[u8]> = Vec::new();
    if which & 0x80 != 0 {
        let Some(end) = body.iter().position(|&b| b == b'\n') else { return };
        header.extend(body[..end].split(|&b| b == b'|'));
        body = &body[end + 1..];
    }
    let one = oip::infer(body, &header, model, 0);
    let other = oip::infer(body, &header, model, 0xff);
    assert_eq!(one, other, "the result depends on what was in the slot");
    let accepted = match one {
        Ok(accepted) => accepted,
        Err(refusal) => {
            assert!(!refusal.is_empty() && refusal.len() < 4096, "{} bytes of refusal", refusal.len());
            return;
        }
    };
    for (spec, bytes) in model.inputs.iter().zip(&accepted.inputs) {
        assert_eq!(bytes.len(), spec.byte_len());
        if spec.dtype == inferd_model::DType::Bool {
            assert!(bytes.iter().all(|&b| b <= 1));
        }
        let limits = spec.limit_per_channel();
        if limits.iter().any(Option::is_some) {
            for (i, bytes) in bytes.chunks_exact(4).enumerate() {
                let value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                let limit = limits[i % limits.len()];
                assert!(value.is_finite() && limit.is_none_or(|(_, max)| f64::from(value.abs()) <= max));
            }
        }
    }
    // Zeros can be written in every form.
    let (bytes, json) = accepted.reply.expect("an accepted request has a reply");
    let json = bytes.get(..json.unwrap_or(bytes.len())).expect("the JSON is within the reply");
    serde_json::from_slice::<serde_json::Value>(json).expect("a reply begins with JSON");
}

/// Compressed bodies: no more than the limit comes out, and what is encoded decodes to the same.
fn coding(data: &[u8]) {
    const LIMIT: usize = 64 << 10;
    let Some((which, body)) = choice(data) else { return };
    let name: &[u8] = if which & 1 == 0 { b"gzip" } else { b"deflate" };
    if let Ok(out) = oip::decode(name, body, LIMIT) {
        assert!(out.len() <= LIMIT);
        assert_eq!(oip::decode(name, body, out.len()).as_ref(), Ok(&out), "the limit itself is allowed");
        if let Some(less) = out.len().checked_sub(1) {
            assert!(oip::decode(name, body, less).is_err(), "more than the limit came out");
        }
    }
    assert_eq!(oip::there_and_back(name, body).as_deref(), Ok(body));
}

/// Lines of a head and the small bodies: a path, `Content-Encoding`, `Accept-Encoding`, then a body.
fn paths(data: &[u8]) {
    let mut parts = data.splitn(4, |&b| b == b'\n');
    let mut next = || parts.next().unwrap_or_default();
    let (path, content, accept, body) = (next(), next(), next(), next());
    let Ok(path) = std::str::from_utf8(path) else { return };
    let first = oip::small(path, body);
    assert_eq!(first, oip::small(path, body));
    let _ = oip::decode(content, body, 4096);
    assert_eq!(oip::there_and_back(accept, body).as_deref(), Ok(body));
}

/// The configuration file: what is accepted, is the same configuration when it is printed and read again.
fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let load = |text: &str| {
        Loaded::from_layers(&Arguments::default(), BTreeMap::new(), Some((Path::new("/inferd.toml"), text)))
    };
    match load(text) {
        // A secret is not printed, so there is nothing to read again.
        Ok(first) if first.config.security.api_key.is_some() => {}
        Ok(first) => {
            let second = load(&first.to_toml()).unwrap_or_else(|e| panic!("what it printed it refuses: {e}"));
            assert_eq!((first.config, first.sha256), (second.config, second.sha256));
        }
        Err(e) => assert!(!e.0.is_empty(), "refused without a reason"),
    }
}
