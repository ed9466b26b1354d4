//! Real engine hosts that do not serve yet, serve from now on, or follow as a shadow, under load and under faults.
//!
//! The models are networks of a single operator written here, so that every answer tells which model gave it: models of odd
//! versions give their input back, those of even versions its negative.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use inferd_hosts::{
    Candidate, CountingAllocator, Hosts, HostsConfig, InferError, ModelSource, OpenFile, Origin,
    PrepareError, PromoteError, Served, ShadowError, ShadowPolicy, State,
};
use inferd_model::{DType, GoldenCase, GoldenWriter, TensorSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("engine-host") {
        return inferd_hosts::engine_host_main();
    }
    run_all![
        a_candidate_computes_and_is_not_served,
        a_dropped_candidate_ends_its_host,
        every_refusal_says_which_gate_it_is,
        a_candidate_over_its_memory_cap_is_refused_as_that,
        the_peak_of_a_hosts_memory_is_measured,
        a_promoted_model_is_served_and_started_again_from_its_sealed_memory,
        a_candidate_that_has_ended_is_not_promoted,
        what_is_in_flight_ends_on_the_model_it_began_on,
        a_promotion_adds_replaces_and_removes_in_one,
        a_hundred_promotions_of_two_models_under_load_fail_nothing_and_mix_nothing,
        loads_unloads_and_promotions_of_one_name_take_turns,
        an_observation_begins_anew_with_the_model_and_the_numbers_do_not,
        answers_are_summed_up_as_they_are,
        a_shadow_agrees_with_an_equal_and_differs_from_another,
        a_shadow_sees_what_the_client_sent,
        a_stopped_shadow_delays_nothing_and_its_copies_are_dropped,
        a_shadow_rests_while_optional_work_is_shed_and_goes_on_after_it,
        a_killed_shadow_is_reported_and_the_primary_goes_on,
        a_shadow_out_of_memory_is_refused_as_that,
        a_shadow_that_answers_no_numbers_is_counted,
        a_shadow_runs_at_a_lower_priority_and_serves_at_the_daemons,
        a_shadow_of_another_shape_is_given_back,
        a_dropped_shadow_ends_its_candidate,
        memory_and_descriptors_stay_flat_over_promotions_and_dropped_candidates,
    ]
}

// ------------------------------------------------------------------------------------------------------- the models

/// One field of a protobuf message.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
        len >>= 7;
    }
    out.push(u8::try_from(len).unwrap());
    out.extend(bytes);
    out
}

fn number(field: u8, value: u8) -> Vec<u8> {
    vec![field << 3, value]
}

/// The ONNX file of y = op(x), FP32 [1, 4].
fn network(op: &str) -> Vec<u8> {
    let dim = |n| field(1, &number(1, n));
    let shape = field(2, &[dim(1), dim(4)].concat());
    let tensor_type = field(1, &[number(1, 1), shape].concat());
    let value = |name: &str| [field(1, name.as_bytes()), field(2, &tensor_type)].concat();
    let node = [field(1, b"x"), field(2, b"y"), field(3, b"it"), field(4, op.as_bytes())].concat();
    let graph = [field(1, &node), field(2, b"g"), field(11, &value("x")), field(12, &value("y"))].concat();
    [number(1, 8), field(7, &graph), field(8, &number(2, 17))].concat()
}

fn bytes(values: [f32; 4]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// y = op(x). The golden input is such that the operators used here agree on it but for `Neg`.
fn model(name: &str, version: u32, op: &str) -> ModelSource {
    let x = [0.0, 1.0, 1.0, 0.0];
    let y = if op == "Neg" { x.map(|v| -v) } else { x };
    let spec = |name| [TensorSpec::plain(name, DType::Fp32, &[1, 4])];
    let mut golden = GoldenWriter::default();
    golden.push(GoldenCase { inputs: vec![bytes(x)], outputs: vec![bytes(y)] });
    let golden = golden.to_bytes(&spec("x"), &spec("y")).unwrap();
    let onnx = network(op);
    let manifest = format!(
        "schema = 1\nname = \"{name}\"\nversion = \"{version}\"\ntask = \"tensor\"\nengines = [\"cpu\"]\n\
         [budget]\nmemory_mib = 48\ndeadline_ms = 1000\n\
         [onnx]\nfile = \"model.onnx\"\nsha256 = \"{}\"\n\
         [golden]\nfile = \"golden.safetensors\"\nsha256 = \"{}\"\ncosine = 0.9999\nmax_abs = 0.001\n\
         [[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [1, 4]\n\
         [[outputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [1, 4]\n",
        hex(&Sha256::digest(&onnx)),
        hex(&Sha256::digest(&golden)),
    );
    source(u64::from(version), manifest, [("model.onnx", onnx), ("golden.safetensors", golden)])
}

/// The model of this version: odd ones give the input back, even ones its negative.
fn edition(name: &str, version: u32) -> ModelSource {
    model(name, version, if version % 2 == 1 { "Identity" } else { "Neg" })
}

fn source<const N: usize>(version: u64, manifest: String, files: [(&str, Vec<u8>); N]) -> ModelSource {
    let files: BTreeMap<String, Vec<u8>> = files.into_iter().map(|(n, b)| (n.to_owned(), b)).collect();
    let open: OpenFile = Box::new(move |name| {
        let bytes = files.get(name).ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Box::new(Cursor::new(bytes.clone())) as Box<dyn Read>)
    });
    let origin = Origin::Bundle { id: "0".repeat(64), slot: 'A', product: "acme".into(), version };
    ModelSource { origin, manifest, files: open }
}

/// A model directory of tests/models as a source, with another memory budget and, if wanted, golden vectors of our own.
fn budgeted(name: &str, memory_mib: u32, golden: Option<&[u8]>) -> ModelSource {
    let dir = copy(name);
    if let Some(golden) = golden {
        forge(dir.path(), "golden", golden);
    }
    let mut source = ModelSource::directory(dir.path()).unwrap();
    let old = source.manifest.lines().find(|l| l.starts_with("memory_mib")).unwrap().to_owned();
    source.manifest = source.manifest.replace(&old, &format!("memory_mib = {memory_mib}"));
    let mut open = source.files;
    // The directory lives as long as the source.
    source.files = Box::new(move |file| {
        let _dir = &dir;
        open(file)
    });
    source
}

/// Golden vectors for `fault-alloc` that need `n` bytes.
fn needing(n: i32) -> Vec<u8> {
    let mut golden = GoldenWriter::default();
    #[allow(clippy::cast_precision_loss)]
    let y = (n / 4) as f32;
    golden
        .push(GoldenCase { inputs: vec![n.to_le_bytes().to_vec()], outputs: vec![y.to_le_bytes().to_vec()] });
    let x = [TensorSpec::plain("n", DType::Int32, &[1])];
    golden.to_bytes(&x, &[TensorSpec::plain("y", DType::Fp32, &[1])]).unwrap()
}

/// One request; the version that answered and the answer.
async fn request(served: &Arc<Served>, x: [f32; 4]) -> Result<(u32, Vec<f32>), InferError> {
    let mut ticket = served.begin(None)?;
    ticket.input_mut(0).copy_from_slice(&bytes(x));
    let answer = ticket.run().await?;
    Ok((answer.manifest().version.parse().unwrap(), floats(answer.output(0))))
}

/// One request of which the answer must be that of the version which gave it.
async fn version(served: &Arc<Served>, x: [f32; 4]) -> u32 {
    let (version, y) = request(served, x).await.expect("no request fails");
    let right = if version % 2 == 1 { x } else { x.map(|v| -v) };
    assert_eq!(y, right, "an answer of version {version}");
    version
}

async fn promoted(hosts: &Arc<Hosts>, sources: Vec<ModelSource>) {
    let mut candidates = vec![];
    for source in sources {
        candidates.push(hosts.prepare(source).await.unwrap());
    }
    hosts.promote(candidates, &[]).await.unwrap().finished().await;
}

/// A served model `m` of version 1.
async fn primary() -> (Arc<Hosts>, Arc<Served>) {
    let hosts = Hosts::new(config());
    promoted(&hosts, vec![edition("m", 1)]).await;
    let served = hosts.get("m").unwrap();
    (hosts, served)
}

fn raw(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

async fn gone(pid: u32) {
    while kill(raw(pid), None).is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// How many processes have this one as their parent.
fn children() -> usize {
    let me = std::process::id().to_string();
    let parent = |stat: String| stat.rsplit(')').next()?.split_ascii_whitespace().nth(1).map(str::to_owned);
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|p| std::fs::read_to_string(p.ok()?.path().join("stat")).ok())
        .filter(|stat| parent(stat.clone()).as_deref() == Some(&me))
        .count()
}

// ---------------------------------------------------------------------------------------------------- candidates

async fn a_candidate_computes_and_is_not_served() {
    let hosts = Hosts::new(config());
    let candidate = hosts.prepare(edition("m", 2)).await.unwrap();
    assert!(hosts.list().is_empty() && hosts.get("m").is_none() && hosts.known().is_empty());
    let answer = candidate.run(&[&bytes([1.0, -2.0, 3.0, 4.0])]).await.unwrap();
    assert_eq!(floats(answer.output(0)), [-1.0, 2.0, -3.0, -4.0]);
    assert!(candidate.run(&[&[0; 3]]).await.is_err() && candidate.run(&[]).await.is_err());
    assert_eq!(candidate.engine().kind, "cpu");
    assert!(candidate.agreement().cosine > 0.9999);
}

async fn a_dropped_candidate_ends_its_host() {
    let hosts = Hosts::new(config());
    let candidate = hosts.prepare(edition("m", 1)).await.unwrap();
    let pid = candidate.host_pid();
    drop(candidate);
    gone(pid).await;
}

async fn every_refusal_says_which_gate_it_is() {
    let hosts = Hosts::new(config());
    let refused = async |change: &dyn Fn(&mut ModelSource)| {
        let mut source = edition("m", 1);
        change(&mut source);
        hosts.prepare(source).await.expect_err("a refusal")
    };
    let e = refused(&|s| s.manifest.push_str("nonsense")).await;
    assert!(matches!(e, PrepareError::Manifest(_)), "{e:?}");
    let e = refused(&|s| s.manifest = s.manifest.replace("\"cpu\"", "\"ort\"")).await;
    assert!(matches!(&e, PrepareError::Engine { wanted, .. } if wanted[0].to_string() == "ort"), "{e:?}");
    assert_eq!(e.to_string(), "it wants engine ort, this image has cpu");
    let e = refused(&|s| s.files = Box::new(|_| Ok(Box::new(Cursor::new(b"other bytes"))))).await;
    assert!(matches!(e, PrepareError::Load(_)), "{e:?}");
    assert!(e.to_string().starts_with("bundle acme 1 in slot A: golden.safetensors: its SHA-256"), "{e}");
    let e = refused(&|s| s.files = Box::new(|_| Err(std::io::Error::other("a bad chunk")))).await;
    assert!(e.to_string().contains("a bad chunk"), "{e}");

    // A network that is not the one the golden vectors are of.
    let mut wrong = model("m", 1, "Identity");
    let neg = network("Neg");
    let (old, new) = (hex(&Sha256::digest(network("Identity"))), hex(&Sha256::digest(&neg)));
    wrong.manifest = wrong.manifest.replace(&old, &new);
    let mut open = wrong.files;
    wrong.files = Box::new(move |name| match name {
        "model.onnx" => Ok(Box::new(Cursor::new(neg.clone())) as Box<dyn Read>),
        other => open(other),
    });
    let e = hosts.prepare(wrong).await.unwrap_err();
    let PrepareError::Golden { reason, cosine: Some(cosine), max_abs: Some(max_abs), .. } = &e else {
        panic!("{e:?}")
    };
    assert!(*cosine < -0.99 && (*max_abs - 2.0).abs() < 1e-6 && reason.contains("golden case 0"), "{e:?}");
    assert_eq!(children(), 0);
}

async fn a_candidate_over_its_memory_cap_is_refused_as_that() {
    let hosts = Hosts::new(config());
    let served = hosts.load(&models().join("fault-alloc")).await.unwrap();
    let e = hosts.prepare(budgeted("fault-alloc", 48, Some(&needing(1 << 28)))).await.unwrap_err();
    let PrepareError::Memory { cap, reason } = &e else { panic!("{e:?}") };
    assert!(*cap >= 48 << 20 && *cap < 64 << 20 && reason.contains("memory cap"), "{e:?}");
    golden(&served).await.unwrap();
    hosts.shutdown().await;
}

async fn the_peak_of_a_hosts_memory_is_measured() {
    let hosts = Hosts::new(HostsConfig { workers: 1, ..config() });
    let peak = async |n| {
        let candidate = hosts.prepare(budgeted("fault-alloc", 96, Some(&needing(n)))).await.unwrap();
        candidate.peak_memory().unwrap()
    };
    let (small, large) = (peak(4).await, peak(32 << 20).await);
    let more = large.bytes - small.bytes;
    // The kernel counts resident pages of each thread in lots of 64.
    assert!((31 << 20..40 << 20).contains(&more), "{small:?} became {large:?}");
    assert!(large.bytes < large.cap, "{large:?}");
}

// ----------------------------------------------------------------------------------------------------- promotion

async fn a_promoted_model_is_served_and_started_again_from_its_sealed_memory() {
    let (hosts, served) = primary().await;
    assert_eq!((served.state(), served.snapshot().starts), (State::Ready, 1));
    assert!(matches!(hosts.origin("m").unwrap(), Origin::Bundle { version: 1, .. }));
    assert_eq!(hosts.directory("m"), None);
    promoted(&hosts, vec![edition("m", 2)]).await;
    assert!(Arc::ptr_eq(&served, &hosts.get("m").unwrap()));
    let old = pid(&served).await;
    kill(old, Signal::SIGKILL).unwrap();
    replaced(&served, old).await;
    assert_eq!(version(&served, [1.0; 4]).await, 2);
    assert_eq!((ends(&served, "signal"), served.snapshot().starts), (1, 3));
    hosts.shutdown().await;
    assert_eq!(children(), 0);
}

async fn a_candidate_that_has_ended_is_not_promoted() {
    let (hosts, served) = primary().await;
    let (good, bad) =
        (hosts.prepare(edition("n", 2)).await.unwrap(), hosts.prepare(edition("m", 2)).await.unwrap());
    kill(raw(bad.host_pid()), Signal::SIGKILL).unwrap();
    while bad.ended().is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let e = hosts.promote(vec![good, bad], &[]).await.err().unwrap();
    assert!(matches!(&e, PromoteError::Ended { name, .. } if name == "m"), "{e}");
    assert_eq!((version(&served, [1.0; 4]).await, hosts.list().len()), (1, 1));

    let twice =
        vec![hosts.prepare(edition("m", 2)).await.unwrap(), hosts.prepare(edition("m", 4)).await.unwrap()];
    assert!(matches!(hosts.promote(twice, &[]).await, Err(PromoteError::Doubled { .. })));
    assert_eq!(version(&served, [1.0; 4]).await, 1);
    hosts.shutdown().await;
}

async fn what_is_in_flight_ends_on_the_model_it_began_on() {
    let (hosts, served) = primary().await;
    let old = pid(&served).await;
    let x = [1.0, 2.0, 3.0, 4.0];
    let mut early = served.begin(None).unwrap();
    early.input_mut(0).copy_from_slice(&bytes(x));
    let candidate = hosts.prepare(edition("m", 2)).await.unwrap();
    let promotion = hosts.promote(vec![candidate], &[]).await.unwrap();
    assert_eq!(version(&served, x).await, 2);
    assert!(!promotion.is_finished(), "the old host waits for the request in it");
    let answer = early.run().await.unwrap();
    assert_eq!((answer.manifest().version.as_str(), floats(answer.output(0))), ("1", x.to_vec()));
    assert_eq!(served.observe().success, 1, "it counts for the old edition");
    drop(answer);
    promotion.finished().await;
    assert!(kill(old, None).is_err());
    hosts.shutdown().await;
}

async fn a_promotion_adds_replaces_and_removes_in_one() {
    let hosts = Hosts::new(config());
    promoted(&hosts, vec![edition("a", 1), edition("b", 1)]).await;
    let (a, b) = (hosts.get("a").unwrap(), hosts.get("b").unwrap());
    let candidates =
        vec![hosts.prepare(edition("a", 2)).await.unwrap(), hosts.prepare(edition("c", 2)).await.unwrap()];
    let remove = ["a", "b", "never"].map(str::to_owned);
    hosts.promote(candidates, &remove).await.unwrap().finished().await;
    let names: Vec<String> = hosts.list().iter().map(|m| m.manifest().name.to_string()).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(version(&a, [1.0; 4]).await, 2);
    assert_eq!(b.begin(None).err().unwrap().kind(), "model_unavailable");
    assert_eq!((b.state(), children()), (State::Stopped, 2));
    hosts.shutdown().await;
}

async fn a_hundred_promotions_of_two_models_under_load_fail_nothing_and_mix_nothing() {
    let hosts = Hosts::new(config());
    promoted(&hosts, vec![edition("a", 1), edition("b", 1)]).await;
    let (a, b) = (hosts.get("a").unwrap(), hosts.get("b").unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4_u8)
        .map(|i| {
            let (a, b, stop) = (a.clone(), b.clone(), stop.clone());
            tokio::spawn(async move {
                let (mut seen, mut answers) = (0, 0_u64);
                let x = [1.0, 2.0, 3.0, f32::from(i)];
                while !stop.load(Relaxed) {
                    // Whoever has met one model of a bundle meets none of the bundle before any more, in either.
                    for served in [&a, &b, &a] {
                        let version = version(served, x).await;
                        assert!(version >= seen, "version {version} after {seen}");
                        seen = version;
                        answers += 1;
                    }
                }
                answers
            })
        })
        .collect();
    for version in 2..102 {
        promoted(&hosts, vec![edition("a", version), edition("b", version)]).await;
    }
    stop.store(true, Relaxed);
    let mut answers = 0;
    for client in clients {
        answers += client.await.unwrap();
    }
    println!("{answers} requests over 100 promotions");
    let failed = |s: &Arc<Served>| s.snapshot().failures.iter().map(|(_, n)| n).sum::<u64>();
    assert_eq!((failed(&a), failed(&b)), (0, 0));
    assert_eq!(a.snapshot().success + b.snapshot().success, answers);
    assert_eq!(children(), 2);
    hosts.shutdown().await;
}

async fn loads_unloads_and_promotions_of_one_name_take_turns() {
    let hosts = Hosts::new(config());
    let dir = models().join("identity-fp32");
    for i in 0..10 {
        let candidate = hosts.prepare(edition("identity-fp32", 2)).await.unwrap();
        let (loaded, unloaded, promoted) = tokio::join!(
            hosts.load(&dir),
            hosts.unload("identity-fp32"),
            hosts.promote(vec![candidate], &[])
        );
        // What came in a bundle gives way to no directory.
        if let Err(e) = loaded {
            assert!(e.to_string().contains("came in a bundle"), "{e}");
        }
        promoted.unwrap().finished().await;
        // An unload with nothing to unload says so; what came after it serves.
        let _ = unloaded;
        let served = hosts.list();
        assert_eq!(children(), served.len(), "round {i}: a host for each model, and no other");
    }
    hosts.shutdown().await;
    assert_eq!(children(), 0);
}

// ----------------------------------------------------------------------------------------------------- observation

async fn an_observation_begins_anew_with_the_model_and_the_numbers_do_not() {
    let (hosts, served) = primary().await;
    for _ in 0..10 {
        version(&served, [1.0, 2.0, 3.0, 4.0]).await;
    }
    let before = served.observe();
    assert_eq!(before.success, 10, "a candidate's trial runs count for nobody");
    for _ in 0..5 {
        version(&served, [1.0, 2.0, 3.0, 4.0]).await;
    }
    let old = pid(&served).await;
    kill(old, Signal::SIGKILL).unwrap();
    replaced(&served, old).await;
    let stretch = served.observe().since(&before);
    assert_eq!((stretch.success, stretch.compute.count()), (5, 5));
    assert_eq!(stretch.ends().find(|(cause, _)| *cause == "signal"), Some(("signal", 1)));
    assert!(stretch.compute.quantile(0.99) >= stretch.compute.quantile(0.5));

    let candidate = hosts.prepare(edition("m", 2)).await.unwrap();
    candidate.run(&[&bytes([1.0; 4])]).await.unwrap();
    hosts.promote(vec![candidate], &[]).await.unwrap().finished().await;
    version(&served, [1.0, 2.0, 3.0, 4.0]).await;
    let after = served.observe();
    assert!(!after.same_edition(&before));
    assert_eq!((after.success, after.since(&before).success, served.snapshot().success), (1, 1, 16));
    let drift = after.drift(&stretch);
    assert!(drift.mean_shift.unwrap() > 4.0, "the negative of the answers before: {drift:?}");

    let stopped = hosts.unload("m").await;
    stopped.unwrap();
    served.begin(None).err().unwrap();
    assert_eq!(served.observe().faults(), 1);
}

async fn answers_are_summed_up_as_they_are() {
    let (hosts, served) = primary().await;
    for (i, times) in [3, 0, 1, 2].into_iter().enumerate() {
        for _ in 0..times {
            let mut x = [1.0; 4];
            x[i] = 5.0;
            request(&served, x).await.unwrap();
        }
    }
    let seen = served.observe();
    assert_eq!(seen.outputs.classes, [3, 0, 1, 2]);
    assert_eq!((seen.outputs.mean(), seen.outputs.variance()), (Some(2.0), Some(3.0)));
    request(&served, [1.0, f32::NAN, f32::INFINITY, 0.0]).await.unwrap();
    let seen = served.observe();
    assert_eq!((seen.outputs.non_finite, seen.outputs.elements), (1, 26));
    hosts.shutdown().await;
}

// --------------------------------------------------------------------------------------------------------- shadows

/// As many buffers as there are, every answer.
const ALL: ShadowPolicy = ShadowPolicy { every: 1, busy_every: 1, queue: 64 };

fn shadow(hosts: &Hosts, candidate: Candidate) -> inferd_hosts::Shadow {
    hosts.start_shadow(candidate, ALL).unwrap_or_else(|(e, _)| panic!("{e}"))
}

/// Waits until nothing waits for the candidate any more.
async fn settled(shadow: &inferd_hosts::Shadow) -> inferd_hosts::ShadowReport {
    loop {
        let r = shadow.report();
        if r.mirrored + r.failed + r.dropped + r.left_out + r.shed == r.seen {
            return r;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn a_shadow_agrees_with_an_equal_and_differs_from_another() {
    let (hosts, served) = primary().await;
    let equal = shadow(&hosts, hosts.prepare(edition("m", 3)).await.unwrap());
    for _ in 0..50 {
        version(&served, [1.0, -2.0, 3.0, 4.0]).await;
    }
    let report = settled(&equal).await;
    // On a busy machine a copy is dropped rather than waited for.
    assert_eq!((report.seen, report.failed, report.mirrored + report.dropped), (50, 0, 50));
    assert!(report.mirrored > 0);
    assert_eq!((report.argmax_agreement, report.max_abs), (Some(1.0), 0.0));
    assert!(report.min_cosine.unwrap() > 0.999_999);
    assert!(report.primary_compute.is_some() && report.candidate_compute.is_some());
    assert!(report.peak_memory.unwrap().bytes > 0);
    let taken = hosts.start_shadow(hosts.prepare(edition("m", 3)).await.unwrap(), ALL).err().unwrap();
    assert!(matches!(taken.0, ShadowError::Taken { .. }));
    let candidate = equal.finish().await.unwrap();
    hosts.promote(vec![candidate], &[]).await.unwrap().finished().await;
    assert_eq!(version(&served, [1.0; 4]).await, 3);
    assert_eq!(served.observe().success, 1, "what ran in the shadow is nobody's request");

    // Right on its golden vectors, wrong live: it forgets the sign.
    let other = shadow(&hosts, hosts.prepare(model("m", 4, "Abs")).await.unwrap());
    for _ in 0..10 {
        version(&served, [1.0, -4.0, 3.0, 2.0]).await;
    }
    let report = settled(&other).await;
    assert_eq!((report.argmax_agreement, report.max_abs), (Some(0.0), 8.0));
    assert!(report.min_cosine.unwrap() < 0.0, "{report:?}");
    hosts.shutdown().await;
}

async fn a_shadow_sees_what_the_client_sent() {
    // Normalised in the worker: an input that was normalised in its slot would be normalised twice.
    let normalised = |version| {
        let mut source = edition("m", version);
        let name = "[[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [1, 4]\n";
        let constants = "[inputs.normalization]\nmean = [3.0, 3.0, 3.0, 3.0]\nstd = [2.0, 2.0, 2.0, 2.0]\n";
        source.manifest = source.manifest.replace(name, &format!("{name}{constants}"));
        let mut golden = GoldenWriter::default();
        let (x, y) = ([3.0, 5.0, 1.0, 3.0], [0.0, 1.0, -1.0, 0.0]);
        golden.push(GoldenCase { inputs: vec![bytes(x)], outputs: vec![bytes(y)] });
        let spec = |name| [TensorSpec::plain(name, DType::Fp32, &[1, 4])];
        let golden = golden.to_bytes(&spec("x"), &spec("y")).unwrap();
        let old = source.manifest.split("[golden]").nth(1).unwrap().split('"').nth(3).unwrap().to_owned();
        source.manifest = source.manifest.replace(&old, &hex(&Sha256::digest(&golden)));
        let mut open = source.files;
        source.files = Box::new(move |file| match file {
            "golden.safetensors" => Ok(Box::new(Cursor::new(golden.clone())) as Box<dyn Read>),
            other => open(other),
        });
        source
    };
    let hosts = Hosts::new(config());
    promoted(&hosts, vec![normalised(1)]).await;
    let served = hosts.get("m").unwrap();
    let shadow = shadow(&hosts, hosts.prepare(normalised(3)).await.unwrap());
    let (_, y) = request(&served, [5.0, 7.0, 3.0, 1.0]).await.unwrap();
    assert_eq!(y, [1.0, 2.0, 0.0, -1.0]);
    let report = settled(&shadow).await;
    assert_eq!((report.mirrored, report.max_abs), (1, 0.0));
    hosts.shutdown().await;
}

async fn a_stopped_shadow_delays_nothing_and_its_copies_are_dropped() {
    let (hosts, served) = primary().await;
    let candidate = hosts.prepare(edition("m", 3)).await.unwrap();
    freeze(raw(candidate.host_pid())).await;
    let policy = ShadowPolicy { queue: 4, ..ALL };
    let shadow = hosts.start_shadow(candidate, policy).unwrap_or_else(|(e, _)| panic!("{e}"));
    for _ in 0..500 {
        version(&served, [1.0; 4]).await;
    }
    let report = shadow.report();
    assert_eq!((report.seen, report.mirrored), (500, 0));
    assert!(report.dropped >= 496 - report.failed, "four are kept, all others are dropped: {report:?}");
    // In the end it is past its deadline and killed, like any host.
    while shadow.report().ended.is_none() {
        version(&served, [1.0; 4]).await;
    }
    assert!(settled(&shadow).await.ended.unwrap().contains("deadline"));
    let e = shadow.finish().await.unwrap_err();
    assert!(e.to_string().contains("deadline"), "{e}");
    let s = served.snapshot();
    assert!(s.failures.iter().all(|(_, n)| *n == 0) && s.ends.iter().all(|(_, n)| *n == 0), "{s:?}");
    hosts.shutdown().await;
}

async fn a_shadow_rests_while_optional_work_is_shed_and_goes_on_after_it() {
    let (hosts, served) = primary().await;
    let shadow = shadow(&hosts, hosts.prepare(edition("m", 3)).await.unwrap());
    hosts.shed(true);
    for _ in 0..50 {
        version(&served, [1.0; 4]).await;
    }
    let report = settled(&shadow).await;
    assert_eq!((report.seen, report.shed, report.mirrored, report.dropped), (50, 50, 0, 0), "{report:?}");
    assert_eq!(served.snapshot().success, 50, "inference is never shed");
    hosts.shed(false);
    while settled(&shadow).await.mirrored == 0 {
        version(&served, [1.0; 4]).await;
    }
    assert_eq!(shadow.report().shed, 50);
    assert!(served.snapshot().failures.iter().all(|(_, n)| *n == 0));
    hosts.shutdown().await;
}

async fn a_killed_shadow_is_reported_and_the_primary_goes_on() {
    let (hosts, served) = primary().await;
    let candidate = hosts.prepare(edition("m", 3)).await.unwrap();
    let pid = candidate.host_pid();
    let shadow = shadow(&hosts, candidate);
    version(&served, [1.0; 4]).await;
    kill(raw(pid), Signal::SIGKILL).unwrap();
    while shadow.report().ended.is_none() {
        version(&served, [1.0; 4]).await;
    }
    let seen = shadow.report().seen;
    for _ in 0..20 {
        version(&served, [1.0; 4]).await;
    }
    let report = settled(&shadow).await;
    assert!(report.seen == seen + 20 && report.dropped >= 20, "{report:?}");
    assert!(report.ended.unwrap().contains("SIGKILL"));
    assert!(matches!(shadow.finish().await, Err(PrepareError::Load(_))));
    assert!(served.snapshot().ends.iter().all(|(_, n)| *n == 0));
    hosts.shutdown().await;
}

async fn a_shadow_out_of_memory_is_refused_as_that() {
    let hosts = Hosts::new(config());
    promoted(&hosts, vec![budgeted("fault-alloc", 256, None)]).await;
    let served = hosts.get("fault-alloc").unwrap();
    let shadow = shadow(&hosts, hosts.prepare(budgeted("fault-alloc", 48, None)).await.unwrap());
    ask(&served, 100 << 20).await.expect("enough for the primary");
    while shadow.report().ended.is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(matches!(shadow.finish().await, Err(PrepareError::Memory { .. })));
    ask(&served, 100).await.unwrap();
    hosts.shutdown().await;
}

async fn a_shadow_that_answers_no_numbers_is_counted() {
    let (hosts, served) = primary().await;
    // The root of 0 and 1 is right; that of a negative number is none.
    let shadow = shadow(&hosts, hosts.prepare(model("m", 4, "Sqrt")).await.unwrap());
    version(&served, [0.0, 1.0, 0.0, 1.0]).await;
    assert!(settled(&shadow).await.min_cosine.unwrap() > 0.999_999);
    version(&served, [-1.0, 1.0, 0.0, 1.0]).await;
    let report = settled(&shadow).await;
    assert_eq!((report.mirrored, report.non_finite, report.min_cosine), (2, 1, Some(-1.0)));
    // When the primary's answer is none either, nothing can be compared.
    request(&served, [f32::NAN; 4]).await.unwrap();
    let report = settled(&shadow).await;
    assert_eq!((report.mirrored, report.non_finite, report.primary_non_finite), (3, 2, 1));
    assert!(report.mean_cosine.unwrap().abs() < 1e-6, "1 and -1: {report:?}");
    hosts.shutdown().await;
}

/// The niceness of every thread of a process.
fn nice(pid: u32) -> Vec<i64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let stat =
        |t: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(t.unwrap().path().join("stat"));
    tasks
        .map(|t| {
            stat(t).unwrap().rsplit(')').next().unwrap().split_ascii_whitespace().nth(16).unwrap().parse()
        })
        .map(Result::unwrap)
        .collect()
}

async fn a_shadow_runs_at_a_lower_priority_and_serves_at_the_daemons() {
    let (hosts, _served) = primary().await;
    let own = nice(std::process::id())[0];
    let candidate = hosts.prepare(edition("m", 3)).await.unwrap();
    let pid = candidate.host_pid();
    assert!(nice(pid).iter().all(|n| *n == own));
    let shadow = shadow(&hosts, candidate);
    // 19 is the least of all, where this program itself was started at a low priority.
    let lower = (own + 10).min(19);
    assert!(nice(pid).len() >= 3 && nice(pid).iter().all(|n| *n == lower), "{:?}", nice(pid));
    let candidate = shadow.finish().await.unwrap();
    // The same host where priorities may be raised, another one elsewhere.
    assert!(nice(candidate.host_pid()).iter().all(|n| *n == own));
    drop(candidate);
    gone(pid).await;
    hosts.shutdown().await;
}

async fn a_shadow_of_another_shape_is_given_back() {
    let (hosts, served) = primary().await;
    let mut source = ModelSource::directory(&models().join("identity-fp32")).unwrap();
    source.manifest = source.manifest.replace("name = \"identity-fp32\"", "name = \"m\"");
    let (e, candidate) = hosts.start_shadow(hosts.prepare(source).await.unwrap(), ALL).err().unwrap();
    assert_eq!(e, ShadowError::Different { what: "inputs" });
    assert!(candidate.ended().is_none());
    let other = hosts.prepare(edition("nobody", 1)).await.unwrap();
    assert!(matches!(hosts.start_shadow(other, ALL), Err((ShadowError::NotServed { .. }, _))));
    version(&served, [1.0; 4]).await;
    hosts.shutdown().await;
}

async fn a_dropped_shadow_ends_its_candidate() {
    let (hosts, served) = primary().await;
    let candidate = hosts.prepare(edition("m", 3)).await.unwrap();
    let pid = candidate.host_pid();
    let shadow = shadow(&hosts, candidate);
    version(&served, [1.0; 4]).await;
    drop(shadow);
    version(&served, [1.0; 4]).await;
    gone(pid).await;
    hosts.shutdown().await;
}

async fn memory_and_descriptors_stay_flat_over_promotions_and_dropped_candidates() {
    let (hosts, served) = primary().await;
    let mut next = 2;
    stays_flat(200, async || {
        let dropped = hosts.prepare(edition("m", next)).await.unwrap();
        let pid = dropped.host_pid();
        drop(dropped);
        gone(pid).await;
        let shadow = shadow(&hosts, hosts.prepare(edition("m", next)).await.unwrap());
        version(&served, [1.0; 4]).await;
        let candidate = shadow.finish().await.unwrap();
        hosts.promote(vec![candidate], &[]).await.unwrap().finished().await;
        assert_eq!(version(&served, [1.0; 4]).await, next);
        next += 1;
    })
    .await;
    assert_eq!(children(), 1);
    hosts.shutdown().await;
}
