//! The committed models, and what the trainer writes, run by an engine that is not the trainer.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up has failed")]

use inferd_model::{Golden, MANIFEST_FILE, Manifest};
use inferd_sources::motion::{CHANNELS, Conditions, Motion, STEPS, Sample, window};
use inferd_sources::synthetic;
use inferd_train::emg_gestures::{self, Came};
use inferd_train::head::{FitOptions, LinearHead, Link};
use inferd_train::imu_motion::{self, MOTIONS, Quality};
use inferd_train::net::Tcn;
use inferd_train::onnx::{Border, to_onnx};
use inferd_train::training::normalized;
use ndarray::{Array1, Array2, Axis};
use rten_tensor::{AsView, NdTensorView};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A network in rten, with its two outputs.
struct Engine(rten::Model);

impl Engine {
    fn load(onnx: Vec<u8>) -> Self {
        Self(rten::Model::load(onnx).unwrap())
    }

    /// Latent and scores of one window in raw units.
    fn run(&self, raw: &[Sample]) -> [Vec<f32>; 2] {
        let x = normalized(raw, &imu_motion::normalization());
        let x = NdTensorView::from_data([1, raw.len(), CHANNELS], x.as_slice().unwrap());
        let input = self.0.node_id("imu_window").unwrap();
        let outputs = ["latent_embeddings", "motif_scores"].map(|o| self.0.node_id(o).unwrap());
        let answer = self.0.run_n(vec![(input, x.into())], outputs, None).unwrap();
        answer.map(|v| v.into_tensor::<f32>().unwrap().to_vec())
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../inferd/models/imu-motion")
}

fn committed() -> (Manifest, Engine) {
    let manifest = std::fs::read_to_string(directory().join(MANIFEST_FILE)).unwrap();
    let manifest = Manifest::from_toml(&manifest).unwrap();
    let onnx = std::fs::read(directory().join(&manifest.onnx.file)).unwrap();
    (manifest, Engine::load(onnx))
}

fn samples(bytes: &[u8]) -> Vec<Sample> {
    let values: Vec<f32> = bytes.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    values.chunks_exact(CHANNELS).map(|c| c.try_into().unwrap()).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn the_onnx_file_computes_what_the_trainer_computes() {
    for (widths, latent, seed) in
        [(&[CHANNELS, 8][..], 5, 1), (&[CHANNELS, 6, 10, 7], 16, 2), (&imu_motion::WIDTHS, 64, 3)]
    {
        let net = Tcn::new(widths, latent, MOTIONS, Link::Sigmoid, seed);
        let border =
            Border { input: "imu_window", latent: "latent_embeddings", scores: "motif_scores", steps: STEPS };
        let engine = Engine::load(to_onnx(&net, &border, "test", ""));
        for motion in [Motion::Stay, Motion::Come] {
            let raw = window(motion, seed, Conditions::Usual);
            let (ours, theirs) = (imu_motion::answer(&net, &raw), engine.run(&raw));
            for (a, b) in [(&ours.latent, &theirs[0]), (&ours.scores, &theirs[1])] {
                assert_eq!(a.len(), b.len());
                // Random weights give latents of some tens: rounding is relative to the largest.
                let scale = a.iter().fold(1.0_f32, |m, v| m.max(v.abs()));
                let off = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off <= 1e-5 * scale, "{widths:?} {motion}: off by {off} of {scale}");
            }
        }
    }
}

#[test]
fn the_manifest_names_the_files_that_are_there() {
    let (manifest, _) = committed();
    for (file, want) in
        [(&manifest.onnx.file, &manifest.onnx.sha256), (&manifest.golden.file, &manifest.golden.sha256)]
    {
        let digest = Sha256::digest(std::fs::read(directory().join(file)).unwrap());
        let digest: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(&digest, want, "{file}");
    }
    let normalization = manifest.inputs[0].normalization.as_ref();
    assert_eq!(normalization, Some(&imu_motion::normalization()));
    let labels = manifest.imu.unwrap().motif.unwrap().labels().to_vec();
    assert_eq!(labels, Motion::ALL.map(Motion::name));
}

#[test]
fn the_committed_model_reproduces_its_golden_vectors() {
    let (manifest, engine) = committed();
    let golden = std::fs::read(directory().join(&manifest.golden.file)).unwrap();
    let golden = Golden::parse(&golden, &manifest).unwrap();
    for (i, case) in golden.cases().iter().enumerate() {
        let [latent, scores] = engine.run(&samples(&case.inputs[0])).map(|v| bytes(&v));
        golden.compare(i, &[&latent, &scores], &manifest, manifest.golden.tolerance()).unwrap();
    }
}

#[test]
fn the_committed_model_is_as_good_on_new_windows_as_its_manifest_says() {
    let (manifest, engine) = committed();
    let scores = |w: &[Sample]| Ok::<_, std::convert::Infallible>(engine.run(w)[1].clone());
    for (conditions, stated) in
        [Conditions::Usual, Conditions::Hard].into_iter().zip(manifest.accuracy.chunks(2))
    {
        let Ok(q) = Quality::measure(60, 0x5eed, conditions, scores);
        assert_eq!((stated[0].metric.as_str(), stated.len()), ("top-1", 2));
        assert!(q.top1() >= stated[0].value - 0.02, "{conditions:?}: {} of {}", q.top1(), stated[0].value);
        // 60 windows are too few to see 2 points: 5 are 3 windows.
        assert!(
            q.rejection() >= stated[1].value - 0.05,
            "{conditions:?}: {} of {}",
            q.rejection(),
            stated[1].value
        );
    }
}

#[test]
fn the_network_sees_more_than_the_mean_and_deviation_of_each_channel() {
    let (_, engine) = committed();
    let features = |w: &[Sample]| {
        let x = normalized(w, &imu_motion::normalization());
        let mean = x.mean_axis(Axis(0)).unwrap();
        let log = x.std_axis(Axis(0), 0.0).mapv(|s| (s + 0.02).ln());
        ndarray::concatenate![Axis(0), mean, log]
    };
    let (mut x, mut y) = (Array2::zeros((0, 2 * CHANNELS)), Array2::zeros((0, MOTIONS)));
    for (motion, seed) in Motion::ALL.into_iter().flat_map(|m| (60_000..60_040).map(move |s| (m, s))) {
        x.push_row(features(&window(motion, seed, Conditions::Usual)).view()).unwrap();
        let mut target = Array1::zeros(MOTIONS);
        target[motion.index()] = 1.0;
        y.push_row(target.view()).unwrap();
    }
    let head = LinearHead::fit(x.view(), y.view(), &FitOptions::new(Link::Softmax)).unwrap();
    let simple = |w: &[Sample]| Ok::<_, std::convert::Infallible>(head.scores(features(w).view()).to_vec());
    let Ok(simple) = Quality::measure(40, 7, Conditions::Hard, simple);
    let network = |w: &[Sample]| Ok::<_, std::convert::Infallible>(engine.run(w)[1].clone());
    let Ok(network) = Quality::measure(40, 7, Conditions::Hard, network);
    println!("linear head on 18 features: {:.3}, network: {:.3}", simple.top1(), network.top1());
    assert!(network.top1() > simple.top1() + 0.02, "{} and {}", network.top1(), simple.top1());
}

#[test]
fn scores_and_latents_of_real_sensor_ranges_stay_in_bounds() {
    let (_, engine) = committed();
    for motion in Motion::ALL {
        for seed in 500..510 {
            let [latent, scores] = engine.run(&window(motion, seed, Conditions::Hard));
            assert!(scores.iter().all(|s| (0.0..=1.0).contains(s)), "{motion}: {scores:?}");
            assert!(latent.iter().all(|v| v.abs() < 10.0), "{motion}: {latent:?}");
        }
    }
}

#[test]
fn a_head_fitted_to_a_few_latents_of_the_committed_model_names_new_windows() {
    let (_, engine) = committed();
    // New labels on the old encoder, as a device is calibrated: moving or at rest, from five windows of each motion.
    let moving = |m: Motion| !matches!(m, Motion::Sit | Motion::Stay | Motion::Down);
    let examples = |seeds: std::ops::Range<u64>| {
        let mut latents = Array2::zeros((0, imu_motion::LATENT));
        let mut targets = Array2::zeros((0, 2));
        for (motion, seed) in Motion::ALL.into_iter().flat_map(|m| seeds.clone().map(move |s| (m, s))) {
            let [latent, _] = engine.run(&window(motion, seed, Conditions::Usual));
            latents.push_row(ndarray::ArrayView1::from(&latent)).unwrap();
            let target = if moving(motion) { [1.0, 0.0] } else { [0.0, 1.0] };
            targets.push_row(ndarray::ArrayView1::from(&target)).unwrap();
        }
        (latents, targets)
    };
    let (latents, targets) = examples(40_000..40_005);
    let head = LinearHead::fit(latents.view(), targets.view(), &FitOptions::new(Link::Sigmoid)).unwrap();
    let (latents, targets) = examples(50_000..50_010);
    let right = |(l, t): (ndarray::ArrayView1<'_, f32>, ndarray::ArrayView1<'_, f32>)| {
        let s = head.scores(l);
        (s[0] > s[1]) == (t[0] > t[1])
    };
    let named = latents.outer_iter().zip(targets.outer_iter()).filter(|p| right(*p)).count();
    assert!(named >= 114, "{named} of 120");
}

/// The committed EMG model in rten: features and logits of a filtered window in uV.
struct Gestures {
    manifest: Manifest,
    network: rten::Model,
}

impl Gestures {
    fn directory() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../inferd/models/emg-gestures")
    }

    fn committed() -> Self {
        let manifest = std::fs::read_to_string(Self::directory().join(MANIFEST_FILE)).unwrap();
        let manifest = Manifest::from_toml(&manifest).unwrap();
        let network =
            rten::Model::load(std::fs::read(Self::directory().join(&manifest.onnx.file)).unwrap()).unwrap();
        Self { manifest, network }
    }

    fn run(&self, window: &[[f32; synthetic::CHANNELS]]) -> [Vec<f32>; 2] {
        let x = normalized(window, self.manifest.inputs[0].normalization.as_ref().unwrap());
        let x = NdTensorView::from_data([1, window.len(), synthetic::CHANNELS], x.as_slice().unwrap());
        let input = self.network.node_id("emg").unwrap();
        let outputs = ["gesture_features", "logits"].map(|o| self.network.node_id(o).unwrap());
        let answer = self.network.run_n(vec![(input, x.into())], outputs, None).unwrap();
        answer.map(|v| v.into_tensor::<f32>().unwrap().to_vec())
    }
}

#[test]
fn the_committed_gestures_reproduce_their_golden_vectors_and_name_each_once() {
    let model = Gestures::committed();
    let golden = std::fs::read(Gestures::directory().join(&model.manifest.golden.file)).unwrap();
    let golden = Golden::parse(&golden, &model.manifest).unwrap();
    let mut named = Vec::new();
    for (i, case) in golden.cases().iter().enumerate() {
        let values: Vec<f32> =
            case.inputs[0].chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        let window: Vec<[f32; synthetic::CHANNELS]> =
            values.chunks_exact(synthetic::CHANNELS).map(|c| c.try_into().unwrap()).collect();
        let [features, logits] = model.run(&window);
        named.push((0..logits.len()).fold(0, |b, k| if logits[k] > logits[b] { k } else { b }));
        let outputs = [bytes(&features), bytes(&logits)];
        golden
            .compare(i, &[&outputs[0], &outputs[1]], &model.manifest, model.manifest.golden.tolerance())
            .unwrap();
    }
    assert_eq!(named, (0..emg_gestures::GESTURES).collect::<Vec<_>>());
}

#[test]
fn the_committed_patterns_are_those_of_the_people_of_training() {
    let emg = Gestures::committed().manifest.emg.unwrap();
    assert_eq!(emg.features.as_deref(), Some("gesture_features"));
    assert_eq!(emg.patterns, emg_gestures::patterns(1));
}

#[test]
fn the_committed_gestures_are_as_good_on_new_people_as_their_manifest_says() {
    let model = Gestures::committed();
    let conditions = [synthetic::Conditions::USUAL, synthetic::Conditions::HARD];
    let asked = conditions.into_iter().flat_map(|c| [Came::Live, Came::Whole].map(|came| (c, came)));
    for ((drawn, came), stated) in asked.zip(&model.manifest.accuracy) {
        let scores =
            |w: &[[f32; synthetic::CHANNELS]]| Ok::<_, std::convert::Infallible>(model.run(w)[1].clone());
        let Ok(confusion) = emg_gestures::measure(12, 0x5eed, drawn, came, scores);
        assert!(
            confusion.top1() >= stated.value - 0.04,
            "{came:?}: {} of {}",
            confusion.top1(),
            stated.value
        );
    }
}
