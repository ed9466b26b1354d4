use super::*;

fn manifest(emg: &str, input: &str) -> Manifest {
    let digest = "0".repeat(64);
    Manifest::from_toml(&format!(
        r#"
schema = 1
name = "emg"
version = "1"
task = "emg-classifier"
engines = ["cpu"]
budget = {{ memory_mib = 64, deadline_ms = 250 }}
onnx = {{ file = "m.onnx", sha256 = "{digest}" }}
golden = {{ file = "g.safetensors", sha256 = "{digest}", cosine = 0.99, max_abs = 1e-3 }}
[emg]
logits = "logits"
labels = ["Rest", "Open", "Close"]
family = "tcn"
{emg}
[[inputs]]
name = "emg"
dtype = "FP32"
shape = [1, 4, 2]
{input}
[[outputs]]
name = "rate"
dtype = "FP32"
shape = [4]
[[outputs]]
name = "logits"
dtype = "FP32"
shape = [1, 3]
"#
    ))
    .unwrap()
}

const SCALED: &str = "normalization = { mean = [1.0, 2.0], std = [2.0, 4.0] }";

fn plan(emg: &str, input: &str) -> EmgPlan {
    EmgPlan::new(&manifest(emg, input)).unwrap()
}

fn form(body: &str) -> Form {
    Form::read(body.as_bytes(), FIELDS).unwrap()
}

#[test]
fn a_body_with_x_is_an_imu_window_and_every_other_object_an_emg_form() {
    for (body, wanted) in [
        ("", Asks::Either),
        ("  \n", Asks::Either),
        ("{}", Asks::Either),
        ("null", Asks::Either),
        (r#"{"X":[]}"#, Asks::Either),
        (r#"{"window":[[1]]}"#, Asks::Emg),
        (r#"{"batch":1,"channels":16,"length":200,"steps":1}"#, Asks::Emg),
        (r#"{"model_prefix":"tcn"}"#, Asks::Emg),
        (r#"{"window":[[1]],"x":[[1]]}"#, Asks::Imu),
        (r#"{"x":[[NaN"#, Asks::Imu),
        ("[1]", Asks::Imu),
        ("{x", Asks::Either),
        ("x", Asks::Imu),
    ] {
        assert_eq!(asks(body.as_bytes()), wanted, "{body}");
    }
}

#[test]
fn scores_of_any_size_become_probabilities() {
    let plan = plan("", "");
    for (logits, index, confidence) in [
        ([0.0, 0.0, 0.0], 0, 1.0 / 3.0),
        ([1000.0, 1001.0, -1000.0], 1, 0.731_058_6),
        ([-3e38, -3e38, 3e38], 2, 1.0),
        ([-1e5, -1e5, -1e5], 0, 1.0 / 3.0),
    ] {
        let rate = [1.0; 4];
        let gesture = plan.answer(|i| Some([&rate[..], &logits[..]][i])).unwrap();
        assert_eq!(gesture.index, index, "{logits:?}");
        assert!((gesture.confidence() - confidence).abs() < 1e-6, "{logits:?}: {gesture:?}");
        assert!((gesture.probabilities.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{logits:?}: {gesture:?}");
    }
}

#[test]
fn what_is_no_number_is_no_gesture() {
    let plan = plan("", "");
    for bad in [&[0.0, f32::NAN, 0.0][..], &[0.0, f32::INFINITY, 0.0], &[0.0, 0.0]] {
        assert_eq!(plan.answer(|_| Some(bad)), Err(NotFinite), "{bad:?}");
    }
    assert_eq!(plan.answer(|_| None), Err(NotFinite));
}

#[test]
fn spikes_are_counted_where_the_network_has_some() {
    let rate = [1.0, 2.0, 0.25, 0.5];
    let spikes = |emg| {
        let outputs = [&rate[..], &[0.0, 1.0, 0.0]];
        plan(emg, "").answer(|i| Some(outputs[i])).unwrap().spikes
    };
    assert_eq!((spikes(""), spikes("spikes = \"rate\"")), (0, 4));
}

#[test]
fn every_value_of_an_answer_is_a_string() {
    let plan = plan("", "");
    let gesture = plan.answer(|i| Some(&[[0.0; 3], [0.0, 0.0, 9.0]][i][..])).unwrap();
    let json: serde_json::Value =
        serde_json::from_slice(&gesture.to_form_json(&plan, 1.23456, 7.0, "cpu")).unwrap();
    assert_eq!(
        json,
        json!({
            "latency_ms": "1.235", "cpu_percent": "7.0", "pred_idx": "2", "pred_label": "Close", "conf": "0.9998",
            "probs": "[0.000123, 0.000123, 0.999753]", "prediction": "2", "confidence": "0.9998", "spikes": "0",
            "shape": "[1, 3]", "backend": "cpu",
        })
    );
}

#[test]
fn a_window_reaches_the_host_filtered_and_scaled_once_or_raw() {
    let body = r#"{"window":[[1,2],[3,2],[1,6],[3,-2]]}"#;
    let read = |emg, input, preprocess| {
        let mut slot = [0.0; 8];
        plan(emg, input).parse(body.as_bytes(), &mut slot, Numbers::Strict, preprocess).unwrap();
        slot
    };
    let raw = [1.0, 2.0, 3.0, 2.0, 1.0, 6.0, 3.0, -2.0];
    assert_eq!(read("", SCALED, true), raw, "the host scales");
    // (x - mean) / std of this is the window again.
    assert_eq!(read("", SCALED, false), [3.0, 10.0, 7.0, 10.0, 3.0, 26.0, 7.0, -6.0]);
    let own = read("scaling = \"per-window\"", "", true);
    let root = 8f32.sqrt();
    for (got, want) in own.iter().zip([-1.0, 0.0, 1.0, 0.0, -1.0, 4.0 / root, 1.0, -4.0 / root]) {
        assert!((got - want).abs() < 1e-6, "{own:?}");
    }
    assert_eq!(read("scaling = \"per-window\"", "", false), raw);
    let channels = "channels = { names = [\"a\", \"b\"], rate_hz = 2000.0 }";
    let high = "filters = [{ kind = \"high-pass\", hz = 20.0, order = 2 }]";
    let filtered = read(high, channels, true);
    assert!(filtered[0].abs() < 1e-5, "a steady offset is no signal: {filtered:?}");
    assert_eq!(read(high, channels, false), raw);
}

#[test]
fn what_was_fitted_for_a_person_takes_the_place_of_scaler_and_logits() {
    let scaler = Some(Normalization { mean: vec![1.0, 0.0], std: vec![4.0, 0.5] });
    let personal = Personal {
        scaler,
        weight: vec![0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0],
        bias: vec![0.0, 2.0, 0.0],
    };
    let shipped = plan("features = \"rate\"", SCALED);
    let plan = shipped.clone().with_personal(Some(Arc::new(personal)));
    let mut window = [5.0, 2.0, 1.0, -1.0, 9.0, 0.5, 1.0, 0.0];
    plan.scale(&mut window, true);
    // What the host makes of it, (x - mean) / std, is the person's scaling.
    let reaches: Vec<f32> = window.chunks(2).flat_map(|s| [(s[0] - 1.0) / 2.0, (s[1] - 2.0) / 4.0]).collect();
    assert_eq!(reaches, [1.0, 4.0, 0.0, -2.0, 2.0, 1.0, 0.0, 0.0]);
    let named = |plan: &EmgPlan, features: [f32; 4]| {
        let logits = [9.0, 0.0, 0.0];
        plan.answer(|i| Some([&features[..], &logits[..]][i])).map(|g| g.index)
    };
    assert_eq!(named(&shipped, [0.0; 4]), Ok(0));
    assert_eq!(named(&plan, [0.0; 4]), Ok(1));
    assert_eq!(named(&plan, [0.0, 7.0, 0.0, 0.0]), Ok(2));
    assert_eq!(named(&plan, [f32::NAN; 4]), Err(NotFinite));
    assert_eq!(named(&shipped.with_personal(None), [f32::NAN; 4]), Ok(0));
}

#[test]
fn a_form_that_speaks_of_another_shape_is_refused_by_name() {
    let plan = plan("", "");
    let good = r#"{"batch":1,"channels":"2","length":4,"steps":1,"encoding_type":"rate","device":"cuda"}"#;
    assert_eq!(plan.check(&form(good)), Ok(()));
    for (body, field) in [
        (r#"{"batch":2}"#, "batch"),
        (r#"{"channels":16}"#, "channels"),
        (r#"{"length":-1}"#, "length"),
        (r#"{"steps":0}"#, "steps"),
        (r#"{"encoding_type":"latency"}"#, "encoding_type"),
        (r#"{"device":3}"#, "device"),
    ] {
        let e = plan.check(&form(body)).unwrap_err();
        assert!(matches!(e, FormError::Field { field: f, .. } if f == field), "{body}: {e}");
        let json: serde_json::Value = serde_json::from_slice(&e.to_json()).unwrap();
        assert_eq!(json["detail"][0]["loc"], json!(["body", field]));
    }
}

#[test]
fn a_window_is_refused_in_the_words_of_imu_windows() {
    let plan = plan("", "");
    let refused = |body: &str| {
        plan.parse(body.as_bytes(), &mut [0.0; 8], Numbers::Strict, true).unwrap_err().to_string()
    };
    assert_eq!(refused(r#"{"window":[[1,2]]}"#), "Value error, Expected 4 timesteps, got 1");
    assert_eq!(
        refused(r#"{"window":[[1,2],[1],[1,2],[1,2]]}"#),
        "Value error, Timestep 1 has 1 channels, expected 2"
    );
    assert!(refused(r#"{"window":[[1,2],[1,NaN],[1,2],[1,2]]}"#).contains("Non-finite"));
    assert_eq!(refused(r#"{"x":[[1,2],[1,2],[1,2],[1,2]]}"#), "Field required");
}

#[test]
fn another_task_and_impossible_filters_give_no_plan() {
    let mut other = manifest("", "");
    other.task = Task::Tensor;
    assert_eq!(
        EmgPlan::new(&other).unwrap_err().to_string(),
        "model emg is of task tensor, not emg-classifier"
    );
    let channels = "channels = { names = [\"a\", \"b\"], rate_hz = 100.0 }";
    let e = EmgPlan::new(&manifest("filters = [{ kind = \"notch\", hz = 60.0, q = 30.0 }]", channels));
    assert!(e.unwrap_err().to_string().contains("49"), "50 Hz is half the rate");
}
