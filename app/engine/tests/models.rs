//! The committed model directories on the built-in engine.

mod common;

use common::{f32s, i32s, models, read, run};
use inferd_engine::{AlignedBuffer, CpuEngine, EngineError, GoldenCheckError};
use inferd_model::{DType, Golden, GoldenCase, GoldenWriter, Normalization};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[test]
fn every_model_agrees_with_onnx_runtime_but_those_that_must_be_refused() {
    let mut seen = 0;
    for entry in std::fs::read_dir(models()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !entry.path().join("manifest.toml").is_file() {
            continue;
        }
        seen += 1;
        let dir = read(&name);
        if name.starts_with("refused-") {
            assert!(
                matches!(dir.load().err(), Some(EngineError::Unsupported { .. })),
                "{name} was not refused"
            );
            continue;
        }
        let agreement = dir
            .runner()
            .check_golden(&dir.golden(), dir.manifest.golden.tolerance())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(agreement.cosine >= 0.9999 && agreement.max_abs <= 1e-6, "{name}: {agreement:?}");
    }
    assert!(seen >= 19, "only {seen} models were found");
}

#[test]
fn a_padded_dynamically_quantised_convolution_is_refused_by_node_and_operator() {
    let Some(EngineError::Unsupported { node, op, why }) = read("refused-int8-conv").load().err() else {
        panic!("not refused")
    };
    assert_eq!((node.as_str(), op.as_str()), ("conv_quant", "ConvInteger"));
    assert!(why.contains("zero point"), "{why}");
}

#[test]
fn every_type_has_its_model() {
    for dtype in DType::ALL {
        let dir = read(&format!("identity-{}", dtype.name().to_lowercase()));
        assert_eq!(dir.manifest.inputs[0].dtype, dtype);
    }
}

#[test]
fn a_value_the_engine_cannot_hold_is_named_and_never_cut() {
    let refused = |model: &str, input: Vec<u8>, at: usize, shown: &str| match read(model).run(&[&input]) {
        Err(EngineError::Value { name, index, value, .. }) => {
            assert_eq!((name.as_str(), index, value.as_str()), ("x", at, shown), "{model}");
        }
        other => panic!("{model}: {other:?}"),
    };
    let with = |bad: &[u8], at: usize| {
        let mut bytes = vec![0; bad.len() * 6];
        bytes[at * bad.len()..][..bad.len()].copy_from_slice(bad);
        bytes
    };
    refused("identity-int64", with(&(1_i64 << 31).to_le_bytes(), 3), 3, "2147483648");
    refused("identity-int64", with(&((-1_i64 << 31) - 1).to_le_bytes(), 0), 0, "-2147483649");
    refused("identity-uint32", with(&(1_u32 << 31).to_le_bytes(), 5), 5, "2147483648");
    refused("identity-uint64", with(&u64::MAX.to_le_bytes(), 1), 1, "18446744073709551615");
    refused("identity-fp64", with(&1e300_f64.to_le_bytes(), 2), 2, &1e300_f64.to_string());
    refused("identity-bool", with(&[2], 4), 4, "2");
}

#[test]
fn doubles_round_to_the_nearest_float_and_infinity_stays_infinity() {
    let x: Vec<u8> = [0.1, f64::INFINITY, f64::NEG_INFINITY, 1e-300, 3.4e38, -0.1]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    let y = read("identity-fp64").run(&[&x]).unwrap().remove(0);
    let y: Vec<f64> = y.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    assert_eq!(
        y,
        [0.1_f32.into(), f64::INFINITY, f64::NEG_INFINITY, 0.0, 3.4e38_f32.into(), (-0.1_f32).into()]
    );
}

#[test]
fn two_inputs_and_two_outputs_keep_their_places() {
    let a: Vec<u8> = [1.5_f32, 2.0, -3.0, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let out = read("two-in-two-out").run(&[&a, &i32s(&[1, 2, 3, 4])]).unwrap();
    assert_eq!(f32s(&out[0]), [2.5, 4.0, 0.0, 4.0]);
    assert_eq!(out[1], i32s(&[1, 4, -9, 0]));
}

#[test]
fn a_panic_of_the_library_leaves_the_model_usable_for_a_new_session() {
    let dir = read("fault-panic");
    let model = dir.load().unwrap();
    let manifest = std::sync::Arc::new(dir.manifest.clone());
    let mut runner = inferd_engine::Runner::new(&*model, manifest.clone()).unwrap();
    let good = [i32s(&[9, 8, 7, 6]), i32s(&[3, 2, 1, -6])];
    let zero = [i32s(&[9, 8, 7, 6]), i32s(&[3, 0, 1, -6])];
    let bad = [i32s(&[9, i32::MIN, 7, 6]), i32s(&[3, -1, 1, -6])];
    let error = run(&mut runner, &manifest, &[&zero[0], &zero[1]]).unwrap_err();
    assert!(matches!(&error, EngineError::Run(why) if why.contains("divide")), "{error}");
    std::panic::set_hook(Box::new(|_| ()));
    let panicked = catch_unwind(AssertUnwindSafe(|| run(&mut runner, &manifest, &[&bad[0], &bad[1]])));
    let _ = std::panic::take_hook();
    assert!(
        panicked.is_err(),
        "the one quotient INT32 cannot hold should panic inside the library: {panicked:?}"
    );
    drop(runner);
    let mut runner = inferd_engine::Runner::new(&*model, manifest.clone()).unwrap();
    let out = run(&mut runner, &manifest, &[&good[0], &good[1]]).unwrap();
    assert_eq!(out[0], i32s(&[3, 4, 7, -1]));
}

#[test]
fn memory_and_time_follow_the_input_of_the_fault_models() {
    let answer = read("fault-alloc").run(&[&i32s(&[8 << 20])]).unwrap();
    assert_eq!(f32s(&answer[0]), [f32::from(2_u8) * 1_048_576.0]);
    let rows = f32s(&read("fault-slow").run(&[&i32s(&[1000])]).unwrap()[0]);
    let norm: f32 = rows.iter().map(|v| v.abs()).sum();
    assert!(norm.is_finite() && norm > 0.01, "{rows:?}");
}

#[test]
fn buffers_that_are_not_the_manifests_are_refused_with_their_numbers() {
    let dir = read("identity-fp32");
    let mut runner = dir.runner();
    let input = AlignedBuffer::zeroed(24);
    let mut output = AlignedBuffer::zeroed(24);
    let mut go = |inputs: &[&[u8]], outputs: &mut [&mut [u8]]| runner.run(inputs, outputs).unwrap_err();

    let e = go(&[], &mut [output.as_mut_bytes()]);
    assert_eq!(e, EngineError::Count { what: "input", got: 0, want: 1 });
    let e = go(&[input.as_bytes()], &mut []);
    assert_eq!(e, EngineError::Count { what: "output", got: 0, want: 1 });
    let e = go(&[&input.as_bytes()[..20]], &mut [output.as_mut_bytes()]);
    assert_eq!(e, EngineError::Length { name: "x".into(), got: 20, want: 24 });
    let e = go(&[input.as_bytes()], &mut [&mut output.as_mut_bytes()[..4]]);
    assert_eq!(e, EngineError::Length { name: "y".into(), got: 4, want: 24 });
    let shifted = AlignedBuffer::zeroed(32);
    let e = go(&[&shifted.as_bytes()[8..]], &mut [output.as_mut_bytes()]);
    assert_eq!(e, EngineError::Alignment { name: "x".into(), want: 64 });
}

#[test]
fn normalisation_comes_before_the_network_and_golden_vectors_cover_it() {
    let mut dir = read("identity-fp32");
    dir.manifest.inputs[0].normalization =
        Some(Normalization { mean: vec![1.0, 2.0, 3.0], std: vec![2.0, 4.0, 0.5] });
    let raw: Vec<u8> = [3.0_f32, 6.0, 3.5, 1.0, 2.0, 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let out = dir.run(&[&raw]).unwrap().remove(0);
    assert_eq!(f32s(&out), [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);

    let mut writer = GoldenWriter::default();
    writer.push(GoldenCase { inputs: vec![raw.clone()], outputs: vec![out] });
    let bytes = writer.to_bytes(&dir.manifest.inputs, &dir.manifest.outputs).unwrap();
    let golden = Golden::parse(&bytes, &dir.manifest).unwrap();
    assert_eq!(dir.runner().check_golden(&golden, dir.manifest.golden.tolerance()).unwrap().max_abs, 0.0);
    dir.manifest.inputs[0].normalization = None;
    assert!(matches!(
        dir.runner().check_golden(&golden, dir.manifest.golden.tolerance()),
        Err(GoldenCheckError::Mismatch(_))
    ));
}

#[test]
fn a_golden_case_the_engine_refuses_is_named() {
    let dir = read("identity-int64");
    let mut writer = GoldenWriter::default();
    let big: Vec<u8> = [1_i64 << 40; 6].iter().flat_map(|v| v.to_le_bytes()).collect();
    let small = vec![0; 48];
    writer.push(GoldenCase { inputs: vec![small.clone()], outputs: vec![small] });
    writer.push(GoldenCase { inputs: vec![big.clone()], outputs: vec![big] });
    let bytes = writer.to_bytes(&dir.manifest.inputs, &dir.manifest.outputs).unwrap();
    let golden = Golden::parse(&bytes, &dir.manifest).unwrap();
    let error = dir.runner().check_golden(&golden, dir.manifest.golden.tolerance()).unwrap_err();
    assert!(
        matches!(error, GoldenCheckError::Engine { case: 1, error: EngineError::Value { .. } }),
        "{error}"
    );
}

#[test]
fn a_network_describes_itself_without_being_loaded() {
    let info = CpuEngine::describe(read("fault-slow").onnx).unwrap();
    assert_eq!(info.opset, Some(17));
    assert_eq!(info.producer, "tests/models");
    assert_eq!(info.operators["MatMul"], 1, "operators inside of a loop count: {:?}", info.operators);
    assert_eq!(info.parameters, 64 * 64 * 2);
    assert_eq!(info.inputs[0].to_string(), "INT32 [1]");
    assert_eq!(info.outputs[0].to_string(), "FP32 [64]");
    assert_eq!(info.inputs[0].shape.as_ref().unwrap()[0].size, Some(1));
}
