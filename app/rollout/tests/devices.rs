//! Whole devices: signed bundles in, real engine hosts, every way a bundle can be wrong, every moment a run can end.
//!
//! The test program is its own engine host. The models are networks of operators written here (`tests/common`), so that every
//! answer tells which model gave it. Time passes when a test says so.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use inferd_bundle::{Digest, Permit, Revocations, Role, ShadowPolicy, keys};
use inferd_hosts::{CountingAllocator, State};
use inferd_model::ModelName;
use inferd_rollout::{Busy, Gate, InstallError, On, Outcome, Serves, ServingFrom, TrialPhase, Way};
use inferd_slots::{FileMedium, SlotId, Step, Store};
use libtest_mimic::{Arguments, Trial};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("engine-host") {
        return inferd_hosts::engine_host_main();
    }
    macro_rules! trials {
        ($($name:ident),* $(,)?) => { vec![$(Trial::test(stringify!($name), || run($name()))),*] };
    }
    let trials = trials![
        a_good_bundle_takes_over_under_load_without_a_failed_request,
        every_gate_leaves_its_verdict_in_order,
        a_bundle_without_traffic_is_committed_after_its_golden_vectors_ran_once_more,
        probation_ends_early_when_enough_requests_came,
        a_bundle_of_several_models_takes_over_as_one,
        a_model_that_the_new_bundle_lacks_ends_and_the_images_own_comes_back,
        what_can_be_refused_before_the_payload_is_and_nothing_is_written,
        wrong_golden_vectors_are_refused_before_they_serve,
        a_model_over_its_memory_is_refused_before_it_serves,
        other_classes_are_taken_back,
        zeros_on_live_requests_are_taken_back,
        values_that_are_no_numbers_are_taken_back,
        a_model_that_became_slow_is_taken_back,
        a_model_that_ends_its_host_is_taken_back,
        a_shadow_keeps_out_what_differs_on_live_requests,
        a_shadow_lets_in_what_agrees,
        a_shadow_waits_while_optional_work_is_shed_but_only_as_long_again,
        the_background_verification_rests_while_optional_work_is_shed,
        a_first_bundle_that_fails_leaves_the_images_own_models,
        a_model_of_the_image_that_fails_beside_others_is_against_a_commit,
        a_model_on_less_than_under_the_system_before_is_against_a_commit,
        the_bundle_in_the_other_slot_is_proven_on_a_system_on_trial,
        a_bundle_that_has_no_room_to_be_proven_is_no_reason_and_is_told,
        a_bundle_whose_bytes_have_rotted_says_nothing_about_the_system,
        a_slot_that_holds_nothing_committed_is_no_way_back_to_prove,
        a_model_that_is_started_again_does_not_serve_and_counts_with_what_it_served_on,
        a_replacement_by_hand_that_fails_is_no_reason_while_what_should_serve_does,
        an_interrupted_upload_goes_on_where_it_was,
        an_upload_that_is_continued_in_the_middle_goes_on_there,
        damaged_bytes_are_refused_and_the_transfer_can_be_repeated,
        a_fetch_asks_only_for_what_no_slot_has,
        one_transfer_at_a_time_and_none_during_a_trial,
        the_same_bundle_again_is_accepted_and_changes_nothing,
        a_permit_lets_one_older_version_in_once,
        a_power_cut_does_not_burn_a_permit,
        a_power_cut_is_forgiven_in_every_phase,
        a_crash_is_held_against_the_bundle_in_every_phase,
        a_stop_on_purpose_is_forgiven,
        a_panic_and_a_watchdog_are_held_against_the_bundle,
        too_many_power_cuts_end_a_trial,
        a_committed_bundle_serves_after_every_kind_of_end,
        a_device_that_is_not_to_serve_serves_what_commits_next,
        a_crash_is_held_against_the_bundle_also_where_nothing_is_to_serve,
        a_trial_goes_on_after_a_power_cut_where_nothing_is_to_serve,
        a_bundle_that_fails_where_nothing_is_to_serve_leaves_nothing,
        the_operator_goes_back_where_nothing_is_to_serve,
        the_operator_takes_a_trial_back,
        the_operator_goes_back_to_the_bundle_before,
        what_is_revoked_while_it_serves_is_taken_back_at_once,
        what_is_revoked_in_the_other_slot_is_no_way_back,
        a_permit_of_revoked_signers_is_worth_nothing,
        when_the_newest_of_what_was_found_fails_the_other_is_tried,
        rot_is_found_and_the_other_slot_takes_over,
        rot_with_nothing_to_fall_back_on_is_said_and_serving_goes_on,
        slots_that_do_not_verify_leave_the_images_own_models,
        verdicts_are_there_after_a_restart,
    ];
    // One at a time: two cores are few, and one test measures time against time.
    let arguments = Arguments { test_threads: Some(1), ..Arguments::from_args() };
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Requests that never end until they are told to; every answer must be one of `right`.
struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<u64>>,
}

impl Load {
    fn begin(device: &Device, clients: usize, right: fn(&[f32]) -> Vec<f32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |n: usize| {
            let (served, stop) = (device.served(), stop.clone());
            tokio::spawn(async move {
                let mut answers = 0;
                while !stop.load(Relaxed) {
                    let x = class(n + usize::try_from(answers % 10).unwrap());
                    let (_, y) = ask(&served, &x).await.expect("no request fails");
                    assert_eq!(y, right(&x));
                    answers += 1;
                }
                answers
            })
        };
        Self { clients: (0..clients).map(client).collect(), stop }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Relaxed);
        let mut all = 0;
        for client in self.clients {
            all += client.await.unwrap();
        }
        all
    }
}

/// An input of a class: seven of ten are of class 0, two of 1, one of 2. The lowest element is at another place than the
/// highest, so that scores with their sign turned say another class.
fn class(n: usize) -> [f32; 4] {
    match n % 10 {
        0..=6 => [3.0, 1.0, 0.5, 0.0],
        7 | 8 => [1.0, 3.0, 0.5, 0.0],
        _ => [1.0, 0.5, 3.0, 0.0],
    }
}

fn same(x: &[f32]) -> Vec<f32> {
    x.to_vec()
}

/// `n` requests of the usual classes.
async fn traffic(device: &Device, n: usize) {
    for i in 0..n {
        device.ask(class(i)).await;
    }
}

/// A device on which version 1 of the good model is committed.
async fn committed() -> Device {
    let device = device().await;
    device.commit(&release(&good(1))).await;
    device
}

const BAD: [Outcome; 2] = [Outcome::Refuse, Outcome::Reverse];

// ------------------------------------------------------------------------------------------------ good bundles

async fn a_good_bundle_takes_over_under_load_without_a_failed_request() {
    let device = committed().await;
    let load = Load::begin(&device, 3, same);
    for version in 2..6 {
        let status = device.try_out(&release(&good(version))).await;
        assert_eq!(code(status.verdicts.last().unwrap()), "flip pass ok");
        assert_eq!(device.ask([0.0; 4]).await.0, version);
        assert!(!device.updater.commit_ready(None).ready, "a trial is open");
        device.until(|s| s.trial.as_ref().is_some_and(|t| t.requests > 100)).await;
        device.pass().await;
        assert_eq!(code(&device.last()), "commit pass ok");
    }
    assert!(load.end().await > 400);
    let status = device.status();
    assert_eq!((status.floors["acme"], status.serving.version), (5, Some(5)));
    assert_eq!(device.last().evidence["not_compared"], serde_json::json!([]));
    assert_eq!(device.updater.commit_ready(None).reasons, Vec::<String>::new());
    device.shut_down().await;
}

async fn every_gate_leaves_its_verdict_in_order() {
    let device = committed().await;
    let gates: Vec<String> = device.status().verdicts.iter().map(|v| v.gate.name().to_owned()).collect();
    let expected = [
        "keys",
        "role",
        "revocation",
        "floor",
        "target",
        "engine",
        "memory",
        "disk",
        "install",
        "load",
        "golden",
        "memory-measured",
        "flip",
        "commit",
    ];
    assert_eq!(gates, expected);
    for verdict in &device.status().verdicts {
        assert_eq!(verdict.outcome, Outcome::Pass, "{verdict:?}");
        assert!(!verdict.sentence.is_empty() && verdict.evidence.is_object(), "{verdict:?}");
        assert_eq!((verdict.version, verdict.boot_id.as_str()), (Some(1), "boot-0"), "{verdict:?}");
    }
    let memory = device.status().verdicts.iter().find(|v| v.gate == Gate::MemoryMeasured).unwrap().clone();
    let (peak, cap) =
        (memory.evidence["m"]["peak_bytes"].as_u64(), memory.evidence["m"]["cap_bytes"].as_u64());
    assert!(peak.unwrap() > 0 && peak <= cap, "{memory:?}");
    device.shut_down().await;
}

async fn a_bundle_without_traffic_is_committed_after_its_golden_vectors_ran_once_more() {
    let device = device().await;
    device.try_out(&release(&good(1))).await;
    device.pass().await;
    assert_eq!(code(&device.last()), "commit pass ok-rechecked");
    assert_eq!(device.last().evidence["not_compared"], serde_json::json!(["m"]));
    assert_eq!(device.served().snapshot().success, 1, "the golden case went the way of a request");
    device.shut_down().await;
}

async fn probation_ends_early_when_enough_requests_came() {
    let device = committed().await;
    let mut spec = good(2);
    spec.policy.probation.requests = 50;
    device.try_out(&release(&spec)).await;
    traffic(&device, 50).await;
    device.over().await;
    assert_eq!(code(&device.last()), "commit pass ok");
    device.shut_down().await;
}

async fn a_bundle_of_several_models_takes_over_as_one() {
    let device = device().await;
    let models = |version| {
        vec![
            Net { version, ..GOOD }.source(),
            of_directory("app/inferd/models/imu-motion"),
            of_directory("tests/models/two-in-two-out"),
        ]
    };
    device.commit(&release(&spec(1, models(1)))).await;
    let names: Vec<String> = device.status().serving.models.iter().map(|m| m.name.clone()).collect();
    assert_eq!(names, ["imu-motion", "m", "two-in-two-out"]);
    device.commit(&release(&spec(2, models(2)))).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn a_model_that_the_new_bundle_lacks_ends_and_the_images_own_comes_back() {
    let device = device_with(|dir, config| {
        config.factory = vec![Net { version: 77, name: "own", ..GOOD }.directory(dir)];
    })
    .await;
    assert_eq!(device.status().serving.from, ServingFrom::Factory);
    let named = |name, version| Net { name, version, ..GOOD }.source();
    device.commit(&release(&spec(1, vec![named("m", 1), named("own", 1), named("extra", 1)]))).await;
    let version = async |name| ask(&device.hosts.get(name).unwrap(), &[0.0; 4]).await.unwrap().0;
    assert_eq!(version("own").await, 1);
    device.commit(&release(&good(2))).await;
    assert_eq!((version("own").await, version("m").await), (77, 2));
    assert!(device.hosts.get("extra").is_none());
    device.shut_down().await;
}

// ------------------------------------------------------------------------------------------------ refused

async fn what_can_be_refused_before_the_payload_is_and_nothing_is_written() {
    let device = committed().await;
    let revoked = release(&good(9));
    let list = Revocations { version: 1, keys: vec![], bundles: vec![id(&revoked)] };
    let list = keys::sign_revocations(list, &[&key(REVOKER)]).unwrap();
    device.updater.trust(list).await.unwrap();

    let changed = |change: fn(&mut inferd_bundle::build::BundleSpec)| {
        let mut spec = good(2);
        change(&mut spec);
        release(&spec)
    };
    let net = |net: Net| release(&spec(2, vec![net.source()]));
    let dev = {
        let mut spec = good(2);
        spec.role = Role::ModelDev;
        signed(&spec, &[DEV])
    };
    let bundles = [
        (signed(&good(2), &[STRANGER]), "keys refuse unknown-keys"),
        (signed(&good(2), &RELEASE[..1]), "role refuse below-threshold"),
        (signed(&good(2), &[DEV]), "role refuse wrong-role"),
        (dev, "role refuse dev-role"),
        (revoked, "revocation refuse bundle-revoked"),
        (release(&good(0)), "floor refuse older-version"),
        (changed(|s| s.targets = vec!["other-board".into()]), "target refuse wrong-board"),
        (changed(|s| s.min_inferd = Some("999.0.0".into())), "target refuse inferd-too-old"),
        (net(Net { engines: "[\"ort\"]", ..GOOD }), "engine refuse engine-missing"),
        (
            net(Net { engines: "[\"cpu\"]\nengine_versions = { cpu = \">=99\" }", ..GOOD }),
            "engine refuse engine-version",
        ),
        (net(Net { memory_mib: 8192, ..GOOD }), "memory refuse memory-limit"),
    ];
    let before = std::fs::read(device.slot_file('B')).unwrap();
    let sequence = |d: &Device| d.slot('B');
    let slot = sequence(&device);
    for (bundle, expected) in bundles {
        // All but the payload: the answer must not need it.
        let header: &[u8; 4096] = bundle.first_chunk().unwrap();
        let prefix = usize::try_from(inferd_bundle::Bundle::prefix_len(header).unwrap()).unwrap();
        let mut upload = device.begin().await;
        let refused = upload.push(&bundle[..prefix]).await.unwrap_err();
        let InstallError::Refused(verdict) = refused else { panic!("{expected}: {refused:?}") };
        assert_eq!(code(&verdict), expected);
        assert_eq!(device.last(), *verdict);
        drop(upload);
        assert_eq!(sequence(&device), slot, "{expected}");
    }
    assert!(std::fs::read(device.slot_file('B')).unwrap() == before, "the free slot was not touched");

    let mut upload = device.begin().await;
    let refused = upload.push(&[7; 5000]).await.unwrap_err();
    assert_eq!(refused.code(), "not-a-bundle");
    drop(upload);

    // All there is, and not even a beginning: nobody is told to send it again.
    for beginning in [&b"{\"this is\": \"no bundle\"}"[..], &release(&good(2))[..4097]] {
        let mut upload = device.begin().await;
        upload.push(beginning).await.unwrap();
        let refused = upload.finish().await.unwrap_err();
        assert_eq!((refused.code(), refused.retry()), ("truncated", false));
        let verdict = refused.verdict().unwrap();
        assert_eq!((verdict.gate, verdict.outcome), (Gate::Keys, Outcome::Refuse));
    }
    assert_eq!(device.ask([0.0; 4]).await.0, 1);
    device.shut_down().await;
}

fn id(bundle: &[u8]) -> Digest {
    inferd_bundle::Bundle::parse(bundle).unwrap().id()
}

/// Tries a bundle on a device that serves version 1 and waits for the end of it.
async fn refused(device: &Device, bundle: &[u8]) -> String {
    let host = device.served().snapshot().host_pid;
    device.try_out(bundle).await;
    device.over().await;
    assert_eq!(device.ask([0.0; 4]).await.0, 1);
    assert_eq!(device.served().snapshot().host_pid, host, "what serves was not touched");
    assert_eq!(device.slot('B').status, "bad");
    assert_eq!(device.status().floors["acme"], 1);
    code(&device.last())
}

async fn wrong_golden_vectors_are_refused_before_they_serve() {
    let device = committed().await;
    let bundle = release(&spec(2, vec![Net { op: "Neg", wrong_golden: true, version: 2, ..GOOD }.source()]));
    assert_eq!(refused(&device, &bundle).await, "golden refuse golden-differs");
    assert!(device.last().evidence["cosine"].as_f64().unwrap() < 0.0, "{:?}", device.last());
    device.commit(&release(&good(3))).await;
    device.shut_down().await;
}

async fn a_model_over_its_memory_is_refused_before_it_serves() {
    let device = committed().await;
    // 96 MiB where 48 are declared.
    let bundle = release(&spec(2, vec![GOOD.source(), allocating(96 << 20)]));
    assert_eq!(refused(&device, &bundle).await, "memory-measured refuse memory-over-budget");
    device.shut_down().await;
}

// ------------------------------------------------------------------------------------------------ taken back

/// Commits version 1, lets it answer, tries `bad`, lets that answer until it is taken back, and says why it was.
async fn taken_back(bad: Net, live: impl Fn(usize) -> [f32; 4]) -> String {
    let device = committed().await;
    for i in 0..100 {
        device.ask(live(i)).await;
    }
    let status = device.try_out(&release(&spec(2, vec![Net { version: 2, ..bad }.source()]))).await;
    assert_eq!(
        code(status.verdicts.last().unwrap()),
        "flip pass ok",
        "it passes every gate before it serves"
    );
    let mut asked = 0;
    while device.status().trial.is_some() {
        device.ask(live(asked)).await;
        asked += 1;
    }
    let verdicts = device.status().verdicts.clone();
    let [.., found, back] = &verdicts[..] else { unreachable!("two at least") };
    assert_eq!(code(back), "return reverse restored");
    assert!(
        back.evidence["safe_after_ms"].is_u64() && back.evidence["because"] == found.code.as_str(),
        "{back:?}"
    );
    assert_eq!(device.ask([0.0; 4]).await, (1, vec![0.0; 4]));
    let status = device.status();
    assert_eq!((status.serving.version, status.floors["acme"]), (Some(1), 1));
    assert_eq!(device.slot('B').status, "bad");
    let found = code(found);
    device.shut_down().await;
    found
}

async fn other_classes_are_taken_back() {
    assert_eq!(taken_back(Net { op: "Neg", ..GOOD }, class).await, "probation reverse drift");
}

async fn zeros_on_live_requests_are_taken_back() {
    // Right on the golden vectors, which hold no negative number.
    let live = |n| class(n).map(|v| v - 4.0);
    assert_eq!(taken_back(Net { op: "Relu", ..GOOD }, live).await, "probation reverse drift");
}

async fn values_that_are_no_numbers_are_taken_back() {
    let live = |n| class(n).map(|v| v - 4.0);
    assert_eq!(taken_back(Net { op: "Sqrt", ..GOOD }, live).await, "probation reverse non-finite");
}

async fn a_model_that_became_slow_is_taken_back() {
    const WIDE: usize = 1 << 16;
    let device = device().await;
    let bundle = |version: u32, times| {
        let net = Net { op: "Relu", times, width: WIDE, version, memory_mib: 256, ..GOOD };
        let mut spec = spec(version.into(), vec![net.source()]);
        spec.policy.probation.max_p99_ratio = 2.5;
        release(&spec)
    };
    let x = vec![1.0; WIDE];
    device.commit(&bundle(1, 100)).await;
    for _ in 0..40 {
        ask(&device.served(), &x).await.unwrap();
    }
    device.try_out(&bundle(2, 500)).await;
    while device.status().trial.is_some() {
        ask(&device.served(), &x).await.unwrap();
    }
    assert!(device.codes(&BAD).contains(&"probation reverse slower".to_owned()), "{:?}", device.codes(&BAD));
    assert_eq!(ask(&device.served(), &x).await.unwrap().0, 1);
    device.shut_down().await;
}

async fn a_model_that_ends_its_host_is_taken_back() {
    let device = device().await;
    let bundle = |version| release(&spec(version, vec![of_directory("tests/models/fault-alloc")]));
    device.commit(&bundle(1)).await;
    device.try_out(&bundle(2)).await;
    let served = device.hosts.get("fault-alloc").unwrap();
    let mut ticket = served.begin(None).unwrap();
    ticket.input_mut(0).copy_from_slice(&(1_i32 << 30).to_le_bytes());
    let e = ticket.run().await.err().unwrap();
    assert_eq!(e.kind(), "host_lost");
    device.over().await;
    assert_eq!(device.codes(&BAD), ["probation reverse host-ended", "return reverse restored"]);
    assert_eq!(device.status().serving.version, Some(1));
    device.shut_down().await;
}

fn shadowed(net: Net, shadow: ShadowPolicy) -> Vec<u8> {
    let mut spec = spec(2, vec![Net { version: 2, ..net }.source()]);
    spec.policy.shadow = Some(shadow);
    release(&spec)
}

const SHADOW: ShadowPolicy = ShadowPolicy {
    requests: 40,
    min_cosine: 0.99,
    min_agreement: 0.95,
    max_latency_ratio: 1000.0,
    max_error_rate: 0.0,
};

async fn a_shadow_keeps_out_what_differs_on_live_requests() {
    let lenient = ShadowPolicy { min_cosine: -1.0, ..SHADOW };
    for (op, shadow, expected) in [
        ("Neg", SHADOW, "shadow refuse shadow-cosine"),
        ("Neg", lenient.clone(), "shadow refuse shadow-agreement"),
        ("Sqrt", lenient, "shadow refuse shadow-non-finite"),
    ] {
        let device = committed().await;
        let accepted = device.push(&shadowed(Net { op, ..GOOD }, shadow)).await.unwrap();
        let mut n = 0;
        while !device
            .status()
            .verdicts
            .iter()
            .any(|v| v.number > accepted.verdict && BAD.contains(&v.outcome))
        {
            let (version, _) = device.ask(class(n).map(|v| v - 4.0)).await;
            assert_eq!(version, 1, "it never serves");
            n += 1;
        }
        device.over().await;
        assert_eq!(device.codes(&BAD), [expected]);
        device.shut_down().await;
    }
}

async fn a_shadow_lets_in_what_agrees() {
    let device = committed().await;
    let accepted = device.push(&shadowed(GOOD, SHADOW)).await.unwrap();
    device.until(|s| s.trial.as_ref().is_some_and(|t| t.phase == TrialPhase::Shadow)).await;
    while !device.status().verdicts.iter().any(|v| v.number > accepted.verdict && v.gate == Gate::Flip) {
        traffic(&device, 1).await;
    }
    let compared = device.status().verdicts.iter().find(|v| v.gate == Gate::Shadow).unwrap().clone();
    assert_eq!(code(&compared), "shadow pass ok");
    assert!(compared.evidence["models"]["m"]["mirrored"].as_u64().unwrap() >= 40, "{compared:?}");
    device.pass().await;
    assert_eq!(device.status().serving.version, Some(2));
    device.shut_down().await;
}

async fn a_shadow_waits_while_optional_work_is_shed_but_only_as_long_again() {
    for again in [true, false] {
        let device = committed().await;
        let limit = u64::from(spec(2, vec![]).policy.probation.seconds);
        device.hosts.shed(true);
        let accepted = device.push(&shadowed(GOOD, SHADOW)).await.unwrap();
        device.until(|s| s.trial.as_ref().is_some_and(|t| t.phase == TrialPhase::Shadow)).await;
        traffic(&device, 100).await;
        device.clock.forward(limit);
        device.until(|s| s.trial.as_ref().is_some_and(|t| t.elapsed_ms >= limit * 1000)).await;
        let phase = device.status().trial.as_ref().map(|t| t.phase);
        assert_eq!(phase, Some(TrialPhase::Shadow), "nothing was compared yet, and it is not over");
        let compared = |s: &inferd_rollout::Status| {
            s.verdicts.iter().find(|v| v.number > accepted.verdict && v.gate == Gate::Shadow).map(code)
        };
        if again {
            device.hosts.shed(false);
            while compared(&device.status()).is_none() {
                traffic(&device, 1).await;
            }
            assert_eq!(compared(&device.status()).unwrap(), "shadow pass ok");
        } else {
            device.clock.forward(limit);
            device.until(|s| compared(s).is_some()).await;
            assert_eq!(compared(&device.status()).unwrap(), "shadow pass shadow-thin");
        }
        device.shut_down().await;
    }
}

async fn the_background_verification_rests_while_optional_work_is_shed() {
    let device = device_with(|_, config| config.scrub_bytes_per_s = 1 << 30).await;
    device.hosts.shed(true);
    device.commit(&release(&good(1))).await;
    device.until(|s| s.scrub.rested >= 2).await;
    assert_eq!((device.status().scrub.done, device.status().scrub.rounds), (0, 0));
    device.hosts.shed(false);
    device.until(|s| s.scrub.rounds >= 1).await;
    device.shut_down().await;
}

async fn a_first_bundle_that_fails_leaves_the_images_own_models() {
    let device = device_with(|dir, config| {
        config.factory = vec![Net { version: 77, ..GOOD }.directory(dir)];
    })
    .await;
    for i in 0..100 {
        assert_eq!(device.ask(class(i)).await.0, 77);
    }
    device.try_out(&release(&spec(1, vec![Net { op: "Neg", ..GOOD }.source()]))).await;
    while device.status().trial.is_some() {
        device.ask(class(0)).await;
    }
    assert_eq!(device.codes(&BAD), ["probation reverse drift", "return reverse restored-factory"]);
    assert_eq!(device.ask([0.0; 4]).await.0, 77);
    assert_eq!(device.status().serving.from, ServingFrom::Factory);
    device.shut_down().await;
}

// ------------------------------------------------------------------------------------------------ transfers

/// A bundle of some hundred KiB.
fn large(version: u32) -> Vec<u8> {
    let motion = of_directory("app/inferd/models/imu-motion");
    release(&spec(version.into(), vec![Net { version, ..GOOD }.source(), motion]))
}

async fn an_interrupted_upload_goes_on_where_it_was() {
    let mut device = committed().await;
    let bundle = large(2);
    for after_a_restart in [false, true] {
        let mut upload = device.begin().await;
        // Beyond the index, into the payload.
        upload.push(&bundle[..bundle.len() * 3 / 4]).await.unwrap();
        drop(upload);
        device.until(|s| s.install.is_none()).await;
        assert_eq!(code(&device.last()), "install interrupted transfer-interrupted");
        assert_eq!(device.slot('B').status, "writing");
        if after_a_restart {
            device = device.restart(End::PowerCut).await;
        }
    }
    let accepted = device.push(&bundle).await.unwrap();
    assert!(accepted.saved.resumed > 0, "{:?}", accepted.saved);
    assert!(
        accepted.saved.received + accepted.saved.resumed < accepted.saved.total + 4096,
        "{:?}",
        accepted.saved
    );
    device.updater.settled(accepted.verdict).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn an_upload_that_is_continued_in_the_middle_goes_on_there() {
    let mut device = committed().await;
    assert_eq!(device.updater.resumable().await, None);
    let mut upload = device.updater.begin_at(Way::Push, 4096).await.unwrap();
    assert_eq!(upload.push(&[0; 100]).await.unwrap_err().code(), "nothing-to-resume");
    drop(upload);

    let bundle = large(2);
    let mut upload = device.begin().await;
    upload.push(&bundle[..bundle.len() * 3 / 4]).await.unwrap();
    drop(upload);
    device.until(|s| s.install.is_none()).await;
    let known = device.updater.resumable().await.unwrap();
    device = device.restart(End::PowerCut).await;
    let found = device.updater.resumable().await.unwrap();
    assert_eq!(found, known, "it is found on the medium as it was known before");
    assert!(found.offset > 0 && found.offset <= bundle.len() as u64 * 3 / 4, "{found:?}");

    let from = usize::try_from(found.offset).unwrap();
    let mut upload = device.updater.begin_at(Way::Push, found.offset + 1).await.unwrap();
    assert_eq!(upload.push(&bundle[from + 1..]).await.unwrap_err().code(), "gap");
    drop(upload);
    device.until(|s| s.install.is_none()).await;
    // A sender may repeat some bytes.
    let mut upload = device.updater.begin_at(Way::Push, found.offset - 100).await.unwrap();
    for part in bundle[from - 100..].chunks(7_000) {
        upload.push(part).await.unwrap();
    }
    let accepted = upload.finish().await.unwrap();
    device.updater.settled(accepted.verdict).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn damaged_bytes_are_refused_and_the_transfer_can_be_repeated() {
    let device = committed().await;
    let bundle = large(2);
    let mut damaged = bundle.clone();
    let at = bundle.len() / 2;
    damaged[at] ^= 1;
    let e = device.push(&damaged).await.unwrap_err();
    assert_eq!((e.code(), e.retry()), ("chunk-digest", false), "{e}");
    assert_eq!(code(&device.last()), "install refuse chunk-digest");
    let mut short = device.begin().await;
    short.push(&bundle[..bundle.len() - 1]).await.unwrap();
    let e = short.finish().await.unwrap_err();
    assert!(matches!(e, InstallError::Interrupted(_)), "{e:?}");
    device.try_out(&bundle).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn a_fetch_asks_only_for_what_no_slot_has() {
    let device = device().await;
    device.commit(&large(1)).await;
    let bundle = large(2);
    let part = |from: u64, len: u64| {
        bundle[usize::try_from(from).unwrap()..][..usize::try_from(len).unwrap()].to_vec()
    };
    let mut fetch = device.updater.begin_fetch(Way::Pull).await.unwrap();
    let need = fetch.prefix_len(&bundle[..4096]).await.unwrap();
    fetch.prefix(part(0, need)).await.unwrap();
    assert_eq!(fetch.total(), bundle.len() as u64);
    for page in 0..fetch.pages() {
        let range = fetch.page_range(page);
        let bytes = part(range.start, range.end - range.start);
        let mut wrong = bytes.clone();
        wrong[20] ^= 1;
        assert_eq!(fetch.page(page, wrong).await.unwrap_err().code(), "page-digest");
        for wanted in fetch.page(page, bytes).await.unwrap() {
            let bytes = part(wanted.offset, wanted.len.into());
            let mut wrong = bytes.clone();
            wrong[0] ^= 1;
            let e = fetch.chunk(wanted.chunk, wrong).await.unwrap_err();
            assert!(e.code() == "chunk-digest" && e.retry(), "{e:?}");
            fetch.chunk(wanted.chunk, bytes).await.unwrap();
        }
    }
    let saved = fetch.saved();
    // Another version of `m` only: the other model's chunks are in slot A.
    let motion = of_directory("app/inferd/models/imu-motion");
    assert_eq!(motion.files.len(), 2);
    assert!(saved.local > saved.received, "{saved:?}");
    let accepted = fetch.finish().await.unwrap();
    device.updater.settled(accepted.verdict).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn one_transfer_at_a_time_and_none_during_a_trial() {
    let device = committed().await;
    let upload = device.begin().await;
    let busy = device.updater.begin(Way::Usb).await.err().unwrap();
    assert_eq!(busy, Busy::Transfer(Way::Push));
    drop(upload);
    device.try_out(&release(&good(2))).await;
    assert_eq!(device.updater.begin_fetch(Way::Pull).await.err().unwrap(), Busy::Trial);
    device.pass().await;
    drop(device.begin().await);
    device.updater.stop().await;
    assert_eq!(device.updater.begin(Way::Push).await.err().unwrap(), Busy::Stopping);
    device.shut_down().await;
}

async fn the_same_bundle_again_is_accepted_and_changes_nothing() {
    let device = committed().await;
    let host = device.served().snapshot().host_pid;
    let accepted = device.push(&release(&good(1))).await.unwrap();
    assert!(accepted.already && accepted.slot == 'A', "{accepted:?}");
    assert_eq!(code(&device.last()), "install pass already-serving");
    assert_eq!(device.served().snapshot().host_pid, host);
    assert_eq!(device.slot('B').status, "empty");
    device.shut_down().await;
}

// ------------------------------------------------------------------------------------------------ permits

fn permit(version: u64, nonce: u64, device: &str) -> Vec<u8> {
    let permit = Permit { device: device.into(), product: ModelName::new("acme").unwrap(), version, nonce };
    keys::sign_permit(&permit, &[&key(RELEASE[0]), &key(RELEASE[1])]).unwrap()
}

async fn a_permit_lets_one_older_version_in_once() {
    let device = device().await;
    device.commit(&release(&good(5))).await;
    let e = device.updater.trust(permit(3, 1, "another-device")).await.unwrap_err();
    assert_eq!(e.code, "permit-device");
    device.updater.trust(permit(3, 1, "device-7")).await.unwrap();
    assert_eq!(device.status().permit, Some(("acme".into(), 3)));
    assert_eq!(device.push(&release(&good(4))).await.unwrap_err().code(), "older-version");
    device.commit(&release(&good(3))).await;
    let status = device.status();
    assert_eq!((status.serving.version, status.floors["acme"], status.permit.clone()), (Some(3), 5, None));
    assert_eq!(device.updater.trust(permit(3, 1, "device-7")).await.unwrap_err().code, "permit-replayed");
    device.commit(&release(&good(6))).await;
    assert_eq!(device.push(&release(&good(3))).await.unwrap_err().code(), "older-version");
    device.shut_down().await;
}

async fn a_power_cut_does_not_burn_a_permit() {
    let mut device = device().await;
    device.commit(&release(&good(5))).await;
    device.updater.trust(permit(3, 1, "device-7")).await.unwrap();
    device = device.restart(End::PowerCut).await;
    // Refused by its golden vectors: that does not use the permit up either.
    let wrong = Net { op: "Neg", wrong_golden: true, version: 3, ..GOOD };
    device.try_out(&release(&spec(3, vec![wrong.source()]))).await;
    device.over().await;
    device.try_out(&release(&good(3))).await;
    device = device.restart(End::PowerCut).await;
    device.until(|s| s.trial.as_ref().is_some_and(|t| t.phase == TrialPhase::Probation)).await;
    device.pass().await;
    assert_eq!(device.status().serving.version, Some(3));
    // Between the commit and the note that the permit is used: as if the power had gone there.
    device = device
        .end(End::PowerCut, |store| {
            assert_eq!(store.state().last_permit_nonce, 1, "the commit was behind it")
        })
        .await;
    assert_eq!(device.push(&release(&good(4))).await.unwrap_err().code(), "older-version");
    device.shut_down().await;
}

// ------------------------------------------------------------------------------------------------ ends of runs

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Everything is on the medium, the trial has not begun.
    Staged,
    /// The trial has begun, nothing is loaded.
    Gates,
    /// It is compared.
    Shadow,
    /// The record says that it serves, and it does not yet.
    Flip,
    /// It serves.
    Probation,
}

const EVERYWHERE: [At; 5] = [At::Staged, At::Gates, At::Shadow, At::Flip, At::Probation];

/// Puts a complete bundle into the free slot, as a transfer does, and records what `at` says.
fn put(store: &Store<FileMedium>, bundle: &[u8], at: At) {
    let header: &[u8; 4096] = bundle.first_chunk().unwrap();
    let prefix = usize::try_from(inferd_bundle::Bundle::prefix_len(header).unwrap()).unwrap();
    let mut install = store.begin_install(&bundle[..prefix]).unwrap();
    inferd_bundle::Stream::new().push(bundle, &mut install).unwrap();
    install.finish().unwrap();
    let slot = SlotId::B;
    if at != At::Staged {
        store.step(&Step::Try { slot, boot_id: "boot-0".into() }).unwrap();
    }
    if at == At::Flip {
        store.step(&Step::Advance { phase: inferd_slots::Phase::Probation }).unwrap();
    }
}

/// A device with version 1 committed whose run with version 2 ended at `at`, in the run after that.
async fn ended(at: At, how: End) -> Device {
    let device = committed().await;
    let bundle = if at == At::Shadow { shadowed(GOOD, SHADOW) } else { release(&good(2)) };
    match at {
        At::Staged | At::Gates | At::Flip => device.end(how, |store| put(&store, &bundle, at)).await,
        At::Shadow => {
            device.push(&bundle).await.unwrap();
            device.until(|s| s.trial.as_ref().is_some_and(|t| t.phase == TrialPhase::Shadow)).await;
            device.restart(how).await
        }
        At::Probation => {
            device.try_out(&bundle).await;
            device.restart(how).await
        }
    }
}

async fn a_power_cut_is_forgiven_in_every_phase() {
    for at in EVERYWHERE {
        let device = ended(at, End::PowerCut).await;
        let (version, _) = device.ask([0.0; 4]).await;
        assert!(version == 1 || version == 2, "{at:?}: it answers at once");
        if at == At::Shadow {
            while device.status().trial.as_ref().is_none_or(|t| t.phase != TrialPhase::Probation) {
                traffic(&device, 1).await;
            }
        }
        let status =
            device.until(|s| s.trial.as_ref().is_some_and(|t| t.phase == TrialPhase::Probation)).await;
        assert_eq!(status.trial.as_ref().unwrap().interruptions, u8::from(at != At::Staged), "{at:?}");
        device.pass().await;
        assert_eq!((device.status().serving.version, device.codes(&BAD)), (Some(2), vec![]), "{at:?}");
        device.shut_down().await;
    }
}

async fn a_crash_is_held_against_the_bundle_in_every_phase() {
    for at in EVERYWHERE.into_iter().filter(|at| *at != At::Staged) {
        let device = ended(at, End::Crash).await;
        assert!(device.status().trial.is_none(), "{at:?}");
        let outcome = if matches!(at, At::Flip | At::Probation) { "reverse" } else { "refuse" };
        assert_eq!(device.codes(&BAD), [format!("boot {outcome} daemon-crashed")], "{at:?}");
        assert_eq!((device.ask([0.0; 4]).await.0, device.slot('B').status), (1, "bad"), "{at:?}");
        assert_eq!(device.status().floors["acme"], 1);
        device.commit(&release(&good(3))).await;
        device.shut_down().await;
    }
}

async fn a_stop_on_purpose_is_forgiven() {
    for at in EVERYWHERE {
        let device = ended(at, End::Stop).await;
        device.until(|s| s.trial.is_some()).await;
        assert_eq!(device.codes(&BAD), Vec::<String>::new(), "{at:?}");
        device.shut_down().await;
    }
}

async fn a_panic_and_a_watchdog_are_held_against_the_bundle() {
    for (how, expected) in [(End::Panic, "kernel-panic"), (End::Watchdog, "watchdog-reset")] {
        let mut device = ended(At::Probation, how).await;
        assert_eq!(device.codes(&BAD), [format!("boot reverse {expected}")]);
        assert_eq!(device.ask([0.0; 4]).await.0, 1);
        // The record of the panic is still there after the next power cut, and is nobody's fault any more.
        device.try_out(&release(&good(3))).await;
        let seen = device.told.clone();
        device = device.end(End::PowerCut, |_| ()).await;
        drop(seen);
        device.until(|s| s.trial.is_some()).await;
        device.shut_down().await;
    }
}

async fn too_many_power_cuts_end_a_trial() {
    let mut device = committed().await;
    device.try_out(&release(&good(2))).await;
    for n in 1..=5 {
        device = device.restart(End::PowerCut).await;
        let status =
            device.until(|s| s.trial.as_ref().is_some_and(|t| t.phase == TrialPhase::Probation)).await;
        assert_eq!(status.trial.as_ref().unwrap().interruptions, n);
    }
    device = device.restart(End::PowerCut).await;
    assert_eq!(device.codes(&BAD), ["boot reverse interrupted-too-often"]);
    assert_eq!(device.ask([0.0; 4]).await.0, 1);
    device.shut_down().await;
}

async fn a_committed_bundle_serves_after_every_kind_of_end() {
    let mut device = committed().await;
    for how in [End::PowerCut, End::Crash, End::Stop, End::Panic, End::Watchdog] {
        device = device.restart(how).await;
        assert_eq!(device.ask([0.0; 4]).await.0, 1, "{how:?}");
        assert_eq!(device.codes(&BAD), Vec::<String>::new(), "{how:?}");
        assert!(device.updater.commit_ready(None).ready, "{:?}", device.updater.commit_ready(None));
    }
    device.shut_down().await;
}

// ------------------------------------------------------------------------------------------------ serving nothing

async fn a_device_that_is_not_to_serve_serves_what_commits_next() {
    let mut device = committed().await.restart_without_serving(End::Crash).await;
    assert!(device.hosts.list().is_empty(), "neither a slot nor the image");
    let status = device.status();
    assert_eq!(status.serving.from, ServingFrom::Nothing);
    assert!(!device.updater.commit_ready(None).ready);
    device.clock.forward(3600);
    let held = device.slot_file('A');
    let before = std::fs::read(&held).unwrap();
    device.commit(&release(&good(2))).await;
    assert!(device.hosts.list().len() == 1 && device.ask([0.0; 4]).await.0 == 2);
    assert_eq!((device.slot('A').status, device.slot('B').active), ("committed", true));
    assert!(std::fs::read(&held).unwrap() == before, "the slot that was active is not written to");
    device = device.restart(End::Crash).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn a_crash_is_held_against_the_bundle_also_where_nothing_is_to_serve() {
    for (how, code) in
        [(End::Crash, "daemon-crashed"), (End::Watchdog, "watchdog-reset"), (End::Panic, "kernel-panic")]
    {
        let device = committed().await;
        device.try_out(&release(&good(2))).await;
        let device = device.restart_without_serving(how).await;
        assert!(device.status().trial.is_none());
        assert_eq!(device.codes(&BAD), [format!("boot reverse {code}")]);
        assert!(device.hosts.list().is_empty());
        assert_eq!((device.slot('A').active, device.slot('B').status), (true, "bad"));
        let device = device.restart(End::Stop).await;
        assert_eq!(device.ask([0.0; 4]).await.0, 1, "what served before the trial");
        device.shut_down().await;
    }
}

async fn a_trial_goes_on_after_a_power_cut_where_nothing_is_to_serve() {
    let device = committed().await.restart_without_serving(End::Crash).await;
    device.try_out(&release(&good(2))).await;
    let device = device.restart_without_serving(End::PowerCut).await;
    device.pass().await;
    assert_eq!((device.status().serving.version, device.ask([0.0; 4]).await.0), (Some(2), 2));
    device.shut_down().await;
}

async fn a_bundle_that_fails_where_nothing_is_to_serve_leaves_nothing() {
    let device = committed().await.restart_without_serving(End::Crash).await;
    let wrong = Net { op: "Neg", wrong_golden: true, version: 2, ..GOOD };
    device.try_out(&release(&spec(2, vec![wrong.source()]))).await;
    device.over().await;
    assert!(device.hosts.list().is_empty());
    device.try_out(&release(&good(3))).await;
    device.updater.rollback("no").await.unwrap();
    assert!(device.hosts.list().is_empty(), "what was on trial is gone, what was before does not come");
    assert!(device.slot('A').active);
    device.shut_down().await;
}

async fn the_operator_goes_back_where_nothing_is_to_serve() {
    let device = committed().await;
    device.commit(&release(&good(2))).await;
    let device = device.restart_without_serving(End::Crash).await;
    device.updater.rollback("2 ends the daemon").await.unwrap();
    assert_eq!(device.ask([0.0; 4]).await.0, 1);
    device.shut_down().await;
}

// ------------------------------------------------------------------------------------------------ back

async fn the_operator_takes_a_trial_back() {
    let device = committed().await;
    device.try_out(&release(&good(2))).await;
    device.updater.rollback("the dog is always asleep").await.unwrap();
    assert_eq!(device.codes(&BAD), ["return reverse rollback-asked", "return reverse restored"]);
    assert!(device.status().verdicts.iter().any(|v| v.sentence.contains("always asleep")));
    assert_eq!((device.ask([0.0; 4]).await.0, device.slot('B').status), (1, "bad"));
    device.shut_down().await;
}

async fn the_operator_goes_back_to_the_bundle_before() {
    let mut device = committed().await;
    assert_eq!(device.updater.rollback("").await.unwrap_err().code, "nothing-to-go-back-to");
    device.commit(&release(&good(2))).await;
    device.updater.rollback("").await.unwrap();
    assert_eq!((device.ask([0.0; 4]).await.0, device.status().floors["acme"]), (1, 2));
    device = device.restart(End::PowerCut).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 1, "it stays so");
    device.updater.rollback("and forward").await.unwrap();
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn what_is_revoked_while_it_serves_is_taken_back_at_once() {
    let mut device = committed().await;
    let bundle = release(&good(2));
    device.commit(&bundle).await;
    let list = Revocations { version: 1, keys: vec![], bundles: vec![id(&bundle)] };
    let list = keys::sign_revocations(list, &[&key(REVOKER)]).unwrap();
    device.updater.trust(list.clone()).await.unwrap();
    assert_eq!(device.ask([0.0; 4]).await.0, 1);
    assert!(device.codes(&BAD).contains(&"revocation reverse bundle-revoked".to_owned()));
    assert_eq!(device.updater.trust(list).await.unwrap_err().code, "revocations-replayed");
    device = device.restart(End::PowerCut).await;
    assert_eq!((device.ask([0.0; 4]).await.0, device.status().trust.revocation_version), (1, 1));
    assert_eq!(device.push(&bundle).await.unwrap_err().code(), "bundle-revoked");
    device.shut_down().await;
}

async fn what_is_revoked_in_the_other_slot_is_no_way_back() {
    let mut device = committed().await;
    device.commit(&release(&good(2))).await;
    let list = Revocations { version: 1, keys: vec![], bundles: vec![id(&release(&good(1)))] };
    device.updater.trust(keys::sign_revocations(list, &[&key(REVOKER)]).unwrap()).await.unwrap();
    assert_eq!(device.slot('A').status, "bad");
    // Without the list that says so, too.
    let lists = std::fs::read_dir(device.dir.path().join("data/trust")).unwrap();
    for file in lists.filter_map(Result::ok).filter(|f| f.file_name().to_string_lossy().starts_with("revo")) {
        std::fs::remove_file(file.path()).unwrap();
    }
    device = device.restart(End::PowerCut).await;
    assert_eq!(device.updater.rollback("back").await.unwrap_err().code, "nothing-to-go-back-to");
    assert_eq!(device.ask([0.0; 4]).await.0, 2);
    device.shut_down().await;
}

async fn a_permit_of_revoked_signers_is_worth_nothing() {
    let device = device().await;
    device.updater.trust(permit(3, 1, "device-7")).await.unwrap();
    assert_eq!(device.status().permit, Some(("acme".into(), 3)));
    let list = Revocations { version: 1, keys: vec![key(RELEASE[0]).id()], bundles: vec![] };
    device.updater.trust(keys::sign_revocations(list, &[&key(REVOKER)]).unwrap()).await.unwrap();
    assert_eq!(device.status().permit, None);
    device.shut_down().await;
}

async fn when_the_newest_of_what_was_found_fails_the_other_is_tried() {
    let mut device = committed().await;
    let wrong = Net { op: "Neg", wrong_golden: true, version: 2, ..GOOD };
    device.try_out(&release(&spec(2, vec![wrong.source()]))).await;
    device.over().await;
    let state = device.dir.path().join("data/state");
    device = device.end(End::PowerCut, |_| std::fs::write(state, [0; 8192]).unwrap()).await;
    device.until(|s| s.verdicts.last().is_some_and(|v| v.gate == Gate::Flip && v.version == Some(1))).await;
    device.pass().await;
    assert_eq!(device.status().serving.version, Some(1));
    assert!(device.codes(&BAD).contains(&"golden refuse golden-differs".to_owned()));
    device.shut_down().await;
}

/// Flips a bit in the last chunk of a slot, as a medium does.
fn rot(device: &Device, slot: char, bundle: &[u8]) {
    use std::os::unix::fs::FileExt as _;
    let at = inferd_bundle::Bundle::parse(bundle).unwrap().payload_range().end - 1;
    let file = std::fs::File::options().write(true).open(device.slot_file(slot)).unwrap();
    file.write_all_at(&[bundle[usize::try_from(at).unwrap()] ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

async fn rot_is_found_and_the_other_slot_takes_over() {
    let device = device_with(|_, config| config.scrub_bytes_per_s = 1 << 30).await;
    device.commit(&release(&good(1))).await;
    let bundle = release(&good(2));
    device.commit(&bundle).await;
    device.until(|s| s.scrub.rounds >= 1).await;
    rot(&device, 'B', &bundle);
    device.until(|s| s.scrub.damages >= 1).await;
    device.until(|s| s.verdicts.last().is_some_and(|v| v.gate == Gate::Scrub)).await;
    assert_eq!(code(&device.last()), "scrub reverse rot");
    assert_eq!(device.ask([0.0; 4]).await.0, 1);
    device.until(|s| s.slots.iter().any(|v| v.slot == 'A' && v.active)).await;
    assert_eq!(device.slot('B').status, "bad");
    device.shut_down().await;
}

async fn rot_with_nothing_to_fall_back_on_is_said_and_serving_goes_on() {
    let mut device = device_with(|dir, config| {
        config.scrub_bytes_per_s = 1 << 30;
        config.factory = vec![Net { version: 77, ..GOOD }.directory(dir)];
    })
    .await;
    let bundle = release(&good(1));
    device.commit(&bundle).await;
    rot(&device, 'A', &bundle);
    device.until(|s| s.verdicts.last().is_some_and(|v| v.gate == Gate::Scrub)).await;
    assert_eq!(code(&device.last()), "scrub interrupted rot");
    assert!(
        device.status().warnings.iter().any(|w| w.contains("from memory")),
        "{:?}",
        device.status().warnings
    );
    assert_eq!(device.ask([0.0; 4]).await.0, 1);
    device = device.restart(End::PowerCut).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 77);
    assert_eq!(device.codes(&BAD), ["boot refuse rot"]);
    device.commit(&bundle).await;
    device.shut_down().await;
}

async fn slots_that_do_not_verify_leave_the_images_own_models() {
    let mut device = device_with(|dir, config| {
        config.factory = vec![Net { version: 77, ..GOOD }.directory(dir)];
    })
    .await;
    let (one, two) = (release(&good(1)), release(&good(2)));
    device.commit(&one).await;
    device.commit(&two).await;
    rot(&device, 'B', &two);
    device = device.restart(End::PowerCut).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 1, "the other slot serves");
    rot(&device, 'A', &one);
    device = device.restart(End::PowerCut).await;
    assert_eq!(device.ask([0.0; 4]).await.0, 77);
    assert_eq!(device.status().serving.from, ServingFrom::Factory);
    device.shut_down().await;
}

async fn a_model_of_the_image_that_fails_beside_others_is_against_a_commit() {
    let mut device = device_with(|dir, config| {
        let second = Net { name: "second", wrong_golden: true, ..GOOD };
        config.factory = vec![GOOD.directory(dir), second.directory(dir)];
    })
    .await;
    for from in ["the image", "a bundle, and the image beside it"] {
        assert_eq!(device.ask([0.0; 4]).await.0, 1, "{from}");
        let more = device.hosts.announce_loading();
        let reasons = device.updater.commit_ready(None).reasons;
        assert!(reasons.iter().any(|reason| reason == "models are being loaded"), "{from}: {reasons:?}");
        drop(more);
        let ready = device.updater.commit_ready(None);
        let [reason] = &*ready.reasons else { panic!("{from}: {ready:?}") };
        assert!(!ready.ready && reason.contains("model second") && reason.contains("golden"), "{reason}");
        // Nor on a system that is tried, but where it failed before as well.
        let none = Serves::default();
        assert_eq!(&device.updater.commit_ready(Some(&none)).reasons, &ready.reasons);
        let before = Serves::now(&device.hosts, &none);
        assert_eq!(device.updater.commit_ready(Some(&before)).reasons, Vec::<String>::new());
        if from == "the image" {
            device.commit(&release(&good(1))).await;
            device = device.restart(End::Stop).await;
        }
    }
    device.shut_down().await;
}

async fn a_model_on_less_than_under_the_system_before_is_against_a_commit() {
    let ladder = Net { engines: "[\"ort\", \"cpu\"]", ..GOOD };
    let device = device_with(|dir, config| config.factory = vec![ladder.directory(dir)]).await;
    let against = |rung: &str| {
        let on = On { rung: rung.into(), provider: None };
        let before = Serves { models: [("m".to_owned(), on)].into(), ..Serves::default() };
        device.updater.commit_ready(Some(&before)).reasons
    };
    let [reason] = &*against("ort") else { panic!("{:?}", against("ort")) };
    assert!(reason.contains("model m serves on cpu, and under the system before on ort"), "{reason}");
    assert_eq!(against("cpu"), Vec::<String>::new());
    assert!(device.updater.commit_ready(None).ready, "no system is on trial");
    // A bundle on trial may have been lent a device: while it is, nothing else is against the system, and root's clock stands.
    device.try_out(&release(&spec(1, vec![ladder.source()]))).await;
    assert_eq!(against("ort"), ["version 1 of acme is on trial"]);
    device.pass().await;
    assert_eq!(against("ort").len(), 1);
    assert_ne!(against("ort"), ["version 1 of acme is on trial"]);
    device.shut_down().await;
}

async fn a_replacement_by_hand_that_fails_is_no_reason_while_what_should_serve_does() {
    let device = device_with(|dir, config| config.factory = vec![GOOD.directory(dir)]).await;
    let none = Serves::default();
    let still_ready = || {
        for before in [None, Some(&none)] {
            assert_eq!(device.updater.commit_ready(before).reasons, Vec::<String>::new());
        }
    };
    let elsewhere = tempfile::tempdir().unwrap();
    let wrong = Net { wrong_golden: true, ..GOOD }.directory(elsewhere.path());
    assert!(device.hosts.load(&wrong).await.is_err(), "it is known by its name");
    still_ready();
    std::fs::write(device.dir.path().join("m/manifest.toml"), "no manifest").unwrap();
    assert!(device.hosts.load(&device.dir.path().join("m")).await.is_err(), "it is known by its directory");
    still_ready();
    assert!(device.hosts.load(&elsewhere.path().join("nothing")).await.is_err());
    assert_eq!(device.updater.commit_ready(None).reasons.len(), 1, "what never served does not");
    device.shut_down().await;
}

async fn a_model_that_is_started_again_does_not_serve_and_counts_with_what_it_served_on() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/models/fault-alloc");
    let device = device_with(|_, config| config.factory = vec![model]).await;
    let none = Serves::default();
    let before = Serves::now(&device.hosts, &none);
    assert_eq!(before.models["fault-alloc"], On { rung: "cpu".into(), provider: None });
    let served = device.hosts.get("fault-alloc").unwrap();
    // More than it may have: its host ends.
    let mut ticket = served.begin(None).unwrap();
    ticket.input_mut(0).copy_from_slice(&(1_i32 << 30).to_le_bytes());
    assert_eq!(ticket.run().await.err().unwrap().kind(), "host_lost");
    while served.state() == State::Ready {
        tokio::task::yield_now().await;
    }
    // One thread: nothing starts it again between these lines.
    assert_eq!(Serves::now(&device.hosts, &before), before);
    assert_eq!(Serves::now(&device.hosts, &none).models.len(), 0, "nobody knows");
    assert_eq!(device.updater.commit_ready(Some(&before)).reasons, ["model fault-alloc does not serve"]);
    device.shut_down().await;
}

/// Two committed bundles; the first one's model is as large as `first` says.
async fn two_committed(first: u32) -> Device {
    let device = device_with(|_, config| config.memory_limit = Some(512 << 20)).await;
    let large = Net { version: 1, memory_mib: first, ..GOOD };
    device.commit(&release(&spec(1, vec![large.source()]))).await;
    device.commit(&release(&good(2))).await;
    device
}

async fn the_bundle_in_the_other_slot_is_proven_on_a_system_on_trial() {
    let device = two_committed(48).await;
    let none = Serves::default();
    let [reason] = &*device.updater.commit_ready(Some(&none)).reasons else { panic!("it is to be proven") };
    assert!(reason.contains("slot A is still to be proven"), "{reason}");
    assert!(device.updater.commit_ready(None).ready, "nobody asks for that without a system on trial");
    device.updater.system_is_on_trial(true);
    while !device.updater.commit_ready(Some(&none)).ready {
        tokio::task::yield_now().await;
    }
    assert_eq!(device.status().warnings, Vec::<String>::new());
    assert_eq!(device.ask([0.0; 4]).await.0, 2, "what serves goes on");
    // Another one is another matter.
    device.commit(&release(&good(3))).await;
    while !device.updater.commit_ready(Some(&none)).ready {
        tokio::task::yield_now().await;
    }
    device.shut_down().await;
}

async fn a_bundle_whose_bytes_have_rotted_says_nothing_about_the_system() {
    let device = two_committed(48).await;
    let none = Serves::default();
    device.updater.system_is_on_trial(true);
    while !device.updater.commit_ready(Some(&none)).ready {
        tokio::task::yield_now().await;
    }
    // The next one goes over the one that was proven. What is the way back then has two models, and the last of its bytes rot.
    let second = Net { name: "second", ..GOOD };
    let way_back = release(&spec(3, vec![Net { version: 3, ..GOOD }.source(), second.source()]));
    device.commit(&way_back).await;
    rot(&device, 'A', &way_back);
    device.commit(&release(&good(4))).await;
    while !device.updater.commit_ready(Some(&none)).ready {
        tokio::task::yield_now().await;
    }
    // At the very moment at which it is no reason any more it was looked at, to its last model.
    let status = device.status();
    let [warning] = &*status.warnings else { panic!("{:?}", status.warnings) };
    assert!(warning.contains("the bundle in slot A is not proven on this system"), "{warning}");
    device.shut_down().await;
}

async fn a_slot_that_holds_nothing_committed_is_no_way_back_to_prove() {
    let device = committed().await;
    let bundle = release(&spec(2, vec![Net { op: "Neg", wrong_golden: true, version: 2, ..GOOD }.source()]));
    device.try_out(&bundle).await;
    device.over().await;
    assert_eq!(device.slot('B').status, "bad");
    device.updater.system_is_on_trial(true);
    assert_eq!(device.updater.commit_ready(Some(&Serves::default())).reasons, Vec::<String>::new());
    device.shut_down().await;
}

async fn a_bundle_that_has_no_room_to_be_proven_is_no_reason_and_is_told() {
    let device = two_committed(400).await.restart_with_memory(End::Stop, 300 << 20).await;
    device.updater.system_is_on_trial(true);
    let none = Serves::default();
    while !device.updater.commit_ready(Some(&none)).ready {
        tokio::task::yield_now().await;
    }
    let status = device.status();
    let [warning] = &*status.warnings else { panic!("{:?}", status.warnings) };
    assert!(
        warning.contains("slot A is not proven") && warning.contains("are free beside what runs"),
        "{warning}"
    );
    device.updater.system_is_on_trial(false);
    device.until(|status| status.warnings.is_empty()).await;
    device.shut_down().await;
}

async fn verdicts_are_there_after_a_restart() {
    let mut device = committed().await;
    let refused = device.push(&release(&good(0))).await.unwrap_err();
    let verdict = refused.verdict().unwrap().clone();
    let number = device.updater.last_verdict();
    device = device.restart(End::PowerCut).await;
    assert_eq!(device.status().verdicts.iter().find(|v| v.number == verdict.number), Some(&verdict));
    assert_eq!(device.updater.last_verdict(), number);
    device.commit(&release(&good(2))).await;
    let numbers: Vec<u64> = device.status().verdicts.iter().map(|v| v.number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
    device.shut_down().await;
}
