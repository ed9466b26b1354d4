use super::*;
use crate::{NotFinite, window::Place};
use inferd_model::{
    Budget, Channels, DType, EngineKind, FileRef, GoldenRef, ImuTask, Limit, ModelName, TensorSpec,
};
use safetensors::tensor::{Dtype, TensorView};

const NAMES: [&str; 9] = ["ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz"];

fn manifest(timesteps: u32, latent: u32, motif: Option<Motif>) -> Manifest {
    let mut input = TensorSpec::plain("imu_window", DType::Fp32, &[1, timesteps, 9]);
    input.channels = Some(Channels {
        names: NAMES.map(str::to_owned).to_vec(),
        units: ["m/s^2", "rad/s", "uT"]
            .into_iter()
            .flat_map(|u| [u.to_owned(), u.to_owned(), u.to_owned()])
            .collect(),
        rate_hz: Some(100.0),
    });
    let limit = |quantity: &str, from: usize, max_abs| Limit {
        quantity: quantity.to_owned(),
        channels: NAMES[from..from + 3].iter().map(|&n| n.to_owned()).collect(),
        max_abs,
    };
    input.limits =
        vec![limit("Accelerometer", 0, 500.0), limit("Gyroscope", 3, 35.0), limit("Magnetometer", 6, 2000.0)];
    let file = |f: &str| FileRef { file: f.to_owned(), sha256: "0".repeat(64) };
    Manifest {
        schema: inferd_model::SCHEMA,
        name: ModelName::new("imu").unwrap(),
        version: "1".to_owned(),
        task: Task::ImuEncoder,
        summary: String::new(),
        engines: vec![EngineKind::Cpu.into()],
        variants: Vec::new(),
        engine_versions: std::collections::BTreeMap::new(),
        budget: Budget { memory_mib: 64, deadline_ms: 100, queue: None, workers: None },
        onnx: file("m.onnx"),
        golden: GoldenRef {
            file: "g.safetensors".to_owned(),
            sha256: "0".repeat(64),
            cosine: 0.99,
            max_abs: 1e-3,
        },
        imu: Some(ImuTask { latent: "latent".to_owned(), motif }),
        emg: None,
        provenance: None,
        accuracy: vec![],
        inputs: vec![input],
        outputs: vec![
            TensorSpec::plain("motif", DType::Fp32, &[1, 2]),
            TensorSpec::plain("latent", DType::Fp32, &[1, latent]),
        ],
    }
    .validated()
    .unwrap()
}

fn plan() -> ImuPlan {
    ImuPlan::new(&manifest(100, 4, None), None, 12).unwrap()
}

/// A window whose value at (t, c) is what the function says.
fn window(rows: usize, value: impl Fn(usize, usize) -> String) -> String {
    let row = |t| format!("[{}]", (0..9).map(|c| value(t, c)).collect::<Vec<_>>().join(","));
    format!("[{}]", (0..rows).map(row).collect::<Vec<_>>().join(","))
}

fn zeros(rows: usize) -> String {
    window(rows, |_, _| "0".to_owned())
}

/// A good window but for one value.
fn with(t: usize, c: usize, token: &str) -> String {
    format!(
        "{{\"x\":{}}}",
        window(100, |i, j| if (i, j) == (t, c) { token.to_owned() } else { "0.5".to_owned() })
    )
}

fn read(body: &str) -> Result<Vec<f32>, WindowError> {
    read_as(body.as_bytes(), WindowKey::X, Numbers::Strict)
}

fn read_as(body: &[u8], key: WindowKey, numbers: Numbers) -> Result<Vec<f32>, WindowError> {
    let mut slot = vec![f32::NAN; 900];
    plan().parse(body, &mut slot, key, numbers).map(|()| slot)
}

/// `type` and `msg` of a refusal.
fn refusal(body: &str) -> (String, String) {
    let e = read(body).expect_err("this body is to be refused");
    (e.pydantic_type().to_owned(), e.to_string())
}

#[test]
fn a_good_window_fills_the_slot_row_by_row() {
    let slot = read(&format!("{{\"x\":{}}}", window(100, |t, c| format!("{}.{c}", t % 30)))).unwrap();
    assert_eq!(slot[0], 0.0);
    assert_eq!(slot[9 * 7 + 3], 7.3);
    assert_eq!(slot[899], 9.8);
    assert!(slot.iter().all(|v| v.is_finite()), "every element was written");
}

#[test]
fn every_way_to_write_a_number_is_read() {
    for (token, value) in [
        ("1", 1.0),
        ("-0", -0.0),
        ("1e0", 1.0),
        ("1E+2", 100.0),
        ("25e-1", 2.5),
        ("-3.5", -3.5),
        ("0.1", 0.1),
    ] {
        assert_eq!(read(&with(3, 0, token)).unwrap()[27].to_bits(), f32::to_bits(value), "{token}");
    }
}

#[test]
fn bounds_are_accepted_and_what_is_past_them_is_not() {
    for (channel, bound, past, quantity) in [
        (0, "500", "500.001", "Accelerometer"),
        (2, "-500.0", "-500.5", "Accelerometer"),
        (3, "35", "35.1", "Gyroscope"),
        (5, "-35", "-36", "Gyroscope"),
        (6, "2000", "2000.5", "Magnetometer"),
        (8, "-2e3", "-1e39", "Magnetometer"),
    ] {
        assert!(read(&with(99, channel, bound)).is_ok(), "{bound} is within");
        let (kind, message) = refusal(&with(99, channel, past));
        assert_eq!(kind, "value_error");
        assert!(message.starts_with(&format!("Value error, {quantity} value out of range: ")), "{message}");
    }
}

#[test]
fn a_range_error_names_the_place_the_limit_and_the_unit() {
    let e = read(&with(7, 4, "35.5")).unwrap_err();
    assert_eq!(
        String::from_utf8(e.to_json()).unwrap(),
        r#"{"detail":[{"type":"value_error","loc":["body","x"],"msg":"Value error, Gyroscope value out of range: 35.5","ctx":{"timestep":7,"channel":"gy","limit":35.0,"unit":"rad/s"}}]}"#
    );
}

#[test]
fn mistakes_are_told_in_fastapis_words() {
    let row = |n: usize| format!("[{}]", vec!["0"; n].join(","));
    let rows = |i: usize, with: String| {
        let all: Vec<String> = (0..100).map(|t| if t == i { with.clone() } else { row(9) }).collect();
        format!("{{\"x\":[{}]}}", all.join(","))
    };
    let x = |v: &str| format!("{{\"x\":{v}}}");
    for (body, kind, message) in [
        (String::new(), "missing", "Field required"),
        (" \r\n\t".to_owned(), "missing", "Field required"),
        ("{}".to_owned(), "missing", "Field required"),
        ("{\"y\":1}".to_owned(), "missing", "Field required"),
        ("{\"imu_window\":[]}".to_owned(), "missing", "Field required"),
        (
            "[]".to_owned(),
            "model_attributes_type",
            "Input should be a valid dictionary or object to extract fields from",
        ),
        (
            "null".to_owned(),
            "model_attributes_type",
            "Input should be a valid dictionary or object to extract fields from",
        ),
        (
            "3".to_owned(),
            "model_attributes_type",
            "Input should be a valid dictionary or object to extract fields from",
        ),
        (x("null"), "list_type", "Input should be a valid list"),
        (x("\"abc\""), "list_type", "Input should be a valid list"),
        (x("{}"), "list_type", "Input should be a valid list"),
        (rows(5, "null".to_owned()), "list_type", "Input should be a valid list"),
        (rows(5, "1".to_owned()), "list_type", "Input should be a valid list"),
        (with(1, 2, "null"), "float_type", "Input should be a valid number"),
        (with(1, 2, "true"), "float_type", "Input should be a valid number"),
        (with(1, 2, "\"1.5\""), "float_type", "Input should be a valid number"),
        (with(1, 2, "[1]"), "float_type", "Input should be a valid number"),
        (with(1, 2, "{\"a\":[]}"), "float_type", "Input should be a valid number"),
        (x("[]"), "value_error", "Value error, Expected 100 timesteps, got 0"),
        (x(&zeros(50)), "value_error", "Value error, Expected 100 timesteps, got 50"),
        (x(&zeros(99)), "value_error", "Value error, Expected 100 timesteps, got 99"),
        (x(&zeros(105)), "value_error", "Value error, Expected 100 timesteps, got 105"),
        (rows(7, row(8)), "value_error", "Value error, Timestep 7 has 8 channels, expected 9"),
        (rows(7, row(10)), "value_error", "Value error, Timestep 7 has 10 channels, expected 9"),
        (rows(99, "[]".to_owned()), "value_error", "Value error, Timestep 99 has 0 channels, expected 9"),
        (with(3, 4, "NaN"), "value_error", "Value error, Non-finite value at timestep 3, channel 4: nan"),
        (
            with(3, 4, "Infinity"),
            "value_error",
            "Value error, Non-finite value at timestep 3, channel 4: inf",
        ),
        (
            with(3, 4, "-Infinity"),
            "value_error",
            "Value error, Non-finite value at timestep 3, channel 4: -inf",
        ),
        (with(3, 4, "1e400"), "value_error", "Value error, Non-finite value at timestep 3, channel 4: inf"),
        (
            with(3, 4, "-1.5E+999"),
            "value_error",
            "Value error, Non-finite value at timestep 3, channel 4: -inf",
        ),
        (
            with(3, 4, &"9".repeat(400)),
            "value_error",
            "Value error, Non-finite value at timestep 3, channel 4: inf",
        ),
    ] {
        assert_eq!(refusal(&body), (kind.to_owned(), message.to_owned()), "{}", &body[..body.len().min(60)]);
    }
}

#[test]
fn what_is_not_json_says_where() {
    for body in [
        "{",
        "{\"x\":",
        "{\"x\":[[1,]]}",
        "{\"x\":[[1}",
        "{x:1}",
        "nope",
        "{\"x\":[]} extra",
        "{\"x\":[[01]]}",
        "{\"x\":[[+1]]}",
        "{\"x\":[[.5]]}",
        "{\"x\":[[1.]]}",
        "{\"x\":[[nan]]}",
        "{\"x\":[[NaN]",
        "{\"x\":\"\\q\"}",
        "{'x':[]}",
        "{\"x\":[[0x10]]}",
        "{\"x\":[[00e999]]}",
    ] {
        let e = read(body).unwrap_err();
        assert!(matches!(&e, WindowError::Json { offset, .. } if *offset <= body.len()), "{body}: {e:?}");
        assert_eq!(e.pydantic_type(), "json_invalid");
    }
    assert!(matches!(
        read_as(b"{\"x\":[[\xff\xfe]]}", WindowKey::X, Numbers::Strict),
        Err(WindowError::Json { offset: 7, .. })
    ));
    let e = read("{\"x\":\n[[1,\n ?]]}").unwrap_err();
    assert!(matches!(e, WindowError::Json { offset: 12, .. }), "the offset counts lines before it: {e:?}");
}

#[test]
fn errors_come_in_the_order_of_the_contract() {
    // Each body has every mistake from its own kind on.
    let mut rows: Vec<Vec<&str>> = vec![vec!["0"; 9]; 99];
    rows[2][0] = "501";
    rows[4][1] = "NaN";
    rows[6].pop();
    rows[8][3] = "null";
    let body = |rows: &[Vec<&str>]| {
        let rows: Vec<String> = rows.iter().map(|r| format!("[{}]", r.join(","))).collect();
        format!("{{\"x\":[{}]}}", rows.join(","))
    };
    let of = |rows: &[Vec<&str>]| read(&body(rows)).unwrap_err();
    assert!(matches!(read(&format!("{},", body(&rows))).unwrap_err(), WindowError::Json { .. }));
    assert!(matches!(of(&rows), WindowError::NotANumber { at: Place { timestep: 8, channel: 3 }, .. }));
    rows[8][3] = "0";
    assert!(matches!(of(&rows), WindowError::Timesteps { got: 99, .. }));
    rows.push(vec!["0"; 9]);
    assert!(matches!(of(&rows), WindowError::Channels { timestep: 6, got: 8, .. }));
    rows[6].push("0");
    assert!(matches!(of(&rows), WindowError::NonFinite { at: Place { timestep: 4, channel: 1 }, .. }));
    rows[4][1] = "0";
    assert!(matches!(of(&rows), WindowError::Range { at: Place { timestep: 2, channel: 0 }, .. }));
    rows[2][0] = "500";
    assert!(read(&body(&rows)).is_ok());
}

#[test]
fn the_first_in_row_major_order_is_named() {
    let body = |t: &str| {
        let value = |i, j| if (i, j) == (4, 8) || (i, j) == (5, 0) { t.to_owned() } else { "0".to_owned() };
        format!("{{\"x\":{}}}", window(100, value))
    };
    assert!(matches!(
        read(&body("1e5")).unwrap_err(),
        WindowError::Range { at: Place { timestep: 4, channel: 8 }, .. }
    ));
    assert!(matches!(
        read(&body("NaN")).unwrap_err(),
        WindowError::NonFinite { at: Place { timestep: 4, channel: 8 }, .. }
    ));
    assert!(matches!(
        read(&body("{}")).unwrap_err(),
        WindowError::NotANumber { at: Place { timestep: 4, channel: 8 }, .. }
    ));
}

#[test]
fn a_value_too_large_for_the_model_is_not_finite_even_without_a_limit() {
    let mut m = manifest(100, 4, None);
    m.inputs[0].limits.clear();
    let plan = ImuPlan::new(&m, None, 12).unwrap();
    let mut slot = vec![0.0; 900];
    let e = plan.parse(with(0, 1, "1e39").as_bytes(), &mut slot, WindowKey::X, Numbers::Strict).unwrap_err();
    assert_eq!(e.to_string(), "Value error, Non-finite value at timestep 0, channel 1: 1e+39");
}

#[test]
fn the_last_of_duplicate_keys_wins() {
    let (good, bad) = (zeros(100), zeros(3));
    assert!(read(&format!("{{\"x\":{bad},\"x\":{good}}}")).is_ok());
    assert!(read(&format!("{{\"x\":null,\"x\":{good}}}")).is_ok());
    assert!(read(&format!("{{\"x\":[[NaN]],\"x\":{good}}}")).is_ok());
    assert!(matches!(
        read(&format!("{{\"x\":{good},\"x\":{bad}}}")),
        Err(WindowError::Timesteps { got: 3, .. })
    ));
}

#[test]
fn other_keys_are_ignored_whatever_they_hold() {
    let good = zeros(100);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for other in
        ["1e400", "NaN", "\"\\u0000\\ud83d\\ude00\"", "{\"x\":[1]}", "[[[]]]", "\"-Infinity, NaN\"", &deep]
    {
        let body = format!("{{\"note\":{other},\"x\":{good},\"\\u0078y\":{other}}}");
        assert!(read(&body).is_ok(), "{}", &body[..40]);
    }
    assert!(read(&format!("{{\"\\u0078\":{good}}}")).is_ok(), "an escaped key is the same key");
}

#[test]
fn depth_and_size_are_refused_without_a_crash() {
    let deep = |open: &str| open.repeat(1_000_000);
    for body in [
        deep("["),
        deep("{\"x\":"),
        format!("{{\"x\":{}", deep("[")),
        format!("{{\"x\":[[{}", deep("{\"a\":")),
        format!("{{\"x\":[[{}{}]]}}", "[".repeat(50_000), "]".repeat(50_000)),
        format!("{{\"x\":[{}]}}", vec!["[0]"; 200_000].join(",")),
        format!("{{\"x\":[[{}]]}}", vec!["0"; 200_000].join(",")),
        format!("{{\"x\":[[{}]]}}", "1".repeat(1_000_000)),
        format!("{{\"{}\":1}}", "k".repeat(1_000_000)),
    ] {
        assert!(read(&body).is_err());
    }
}

#[test]
fn lenient_numbers_are_a_switch() {
    let lenient = |body: &str| read_as(body.as_bytes(), WindowKey::X, Numbers::Lenient);
    assert_eq!(lenient(&with(0, 0, "\" 1.5 \"")).unwrap()[0], 1.5);
    assert_eq!(lenient(&with(0, 0, "true")).unwrap()[0], 1.0);
    assert_eq!(lenient(&with(0, 0, "false")).unwrap()[0], 0.0);
    let e = lenient(&with(2, 1, "\"abc\"")).unwrap_err();
    assert_eq!(
        String::from_utf8(e.to_json()).unwrap(),
        r#"{"detail":[{"type":"float_parsing","loc":["body","x",2,1],"msg":"Input should be a valid number, unable to parse string as a number"}]}"#
    );
    assert!(matches!(lenient(&with(0, 0, "\"nan\"")), Err(WindowError::NonFinite { .. })));
    assert!(matches!(lenient(&with(0, 0, "null")), Err(WindowError::NotANumber { .. })));
}

#[test]
fn encode_takes_both_keys_and_names_the_one_it_found() {
    let read = |body: &str| read_as(body.as_bytes(), WindowKey::ImuWindow, Numbers::Strict);
    assert!(read(&format!("{{\"imu_window\":{}}}", zeros(100))).is_ok());
    assert!(read(&format!("{{\"x\":{}}}", zeros(100))).is_ok());
    assert!(matches!(read("{\"imu_data\":[]}"), Err(WindowError::Missing { key: "imu_window" })));
    assert!(matches!(read("{\"x\":[]}"), Err(WindowError::Timesteps { key: "x", .. })));
    assert!(matches!(read("{\"imu_window\":[]}"), Err(WindowError::Timesteps { key: "imu_window", .. })));
}

#[test]
fn a_byte_order_mark_is_skipped() {
    assert!(read(&format!("\u{feff}{{\"x\":{}}}", zeros(100))).is_ok());
}

#[test]
fn a_refusal_never_repeats_the_body() {
    let secret = "s3cret-7731";
    for body in [
        format!("{{\"x\":\"{secret}\"}}"),
        format!("{{\"{secret}\":1}}"),
        secret.to_owned(),
        with(0, 0, &format!("\"{secret}\"")),
        format!("{{\"x\":[[{secret}]]}}"),
        format!("{{\"x\":[[\"\\{secret}\"]]}}"),
    ] {
        let json = String::from_utf8(read(&body).unwrap_err().to_json()).unwrap();
        assert!(!json.contains(secret), "{json}");
        assert!(json.starts_with("{\"detail\":[{\"type\":\""), "{json}");
    }
}

#[test]
fn the_older_contracts_sentences() {
    assert_eq!(
        read(&format!("{{\"x\":{}}}", zeros(50))).unwrap_err().to_sentence(),
        "Input must have exactly 100 rows"
    );
    let mut rows = vec!["[0,0,0,0,0,0,0,0,0]"; 100];
    rows[3] = "[0,0,0,0,0]";
    assert_eq!(
        read(&format!("{{\"x\":[{}]}}", rows.join(","))).unwrap_err().to_sentence(),
        "Row 3 must have exactly 9 columns"
    );
    assert_eq!(
        read(&with(0, 0, "501")).unwrap_err().to_sentence(),
        "Accelerometer value out of range: 501.0"
    );
}

/// xorshift64*: the same bodies on every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }
}

#[test]
fn damaged_bodies_are_read_or_refused_and_agree_with_serde_json() {
    let mut random = Random(42);
    let pristine =
        format!("{{\"id\":\"a\\u00e9\",\"x\":{}}}", window(100, |t, c| format!("{}.{}e-1", t % 30, c)));
    let tokens: [&[u8]; 12] =
        [b"NaN", b"1e400", b"\"", b"[", b"]", b"{", b"}", b",", b"null", b"-", b"\xff", b"\\"];
    let mut accepted = 0;
    for _ in 0..3000 {
        let mut body = pristine.clone().into_bytes();
        match random.below(3) {
            0 => body.truncate(random.below(body.len())),
            1 => {
                for _ in 0..=random.below(4) {
                    let at = random.below(body.len());
                    let byte = random.next().to_le_bytes()[0];
                    // Half of them digits, so that some damaged bodies still are good ones.
                    body[at] = if random.below(2) == 0 { b'0' + byte % 10 } else { byte };
                }
            }
            _ => {
                let (at, token) = (random.below(body.len()), tokens[random.below(tokens.len())]);
                body.splice(at..at, token.iter().copied());
            }
        }
        // The oracle: a tree of values, checked by the rules of the contract. It is silent where it refuses NaN and overflow.
        let oracle = serde_json::from_slice::<serde_json::Value>(&body).ok().and_then(|v| {
            let rows = v.get("x")?.as_array()?.clone();
            let values: Option<Vec<f64>> = rows
                .iter()
                .map(|r| r.as_array().filter(|r| r.len() == 9))
                .collect::<Option<Vec<_>>>()?
                .into_iter()
                .flatten()
                .map(serde_json::Value::as_f64)
                .collect();
            let limits = [500.0, 500.0, 500.0, 35.0, 35.0, 35.0, 2000.0, 2000.0, 2000.0];
            let values = values.filter(|v| v.len() == 900)?;
            values.iter().enumerate().all(|(i, v)| v.abs() <= limits[i % 9]).then_some(values)
        });
        match (read_as(&body, WindowKey::X, Numbers::Strict), oracle) {
            (Ok(slot), Some(values)) => {
                accepted += 1;
                #[allow(clippy::cast_possible_truncation)]
                let same = slot.iter().zip(&values).all(|(a, b)| *a == *b as f32);
                assert!(same, "values differ for {}", String::from_utf8_lossy(&body));
            }
            (Err(e), None) => assert!(serde_json::from_slice::<serde_json::Value>(&e.to_json()).is_ok()),
            // An `id` that holds NaN or an overflow is none of this parser's business.
            (Ok(_), None) => assert!(serde_json::from_slice::<serde_json::Value>(&body).is_err()),
            (Err(e), Some(_)) => panic!("{e:?} for {}", String::from_utf8_lossy(&body)),
        }
    }
    assert!(accepted > 50, "some damage is harmless: {accepted}");
}

fn weights(weight: &[f32], shape: &[usize], bias: &[f32]) -> Vec<u8> {
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let (w, b) = (bytes(weight), bytes(bias));
    let tensors = [
        ("weight", TensorView::new(Dtype::F32, shape.to_vec(), &w).unwrap()),
        ("bias", TensorView::new(Dtype::F32, vec![bias.len()], &b).unwrap()),
    ];
    safetensors::serialize(tensors, None).unwrap()
}

fn linear() -> Option<Motif> {
    Some(Motif::Linear {
        file: "head.safetensors".to_owned(),
        sha256: "0".repeat(64),
        labels: vec!["walk".to_owned(), "run".to_owned()],
    })
}

#[test]
fn an_answer_has_the_clients_form() {
    let plan = ImuPlan::new(&manifest(100, 3, None), None, 4).unwrap();
    let latent = [0.1_f32, -38.8, 12.0];
    let answer = plan.answer(|i| (i == 1).then_some(&latent[..])).unwrap();
    assert_eq!(
        String::from_utf8(answer.to_json()).unwrap(),
        r#"{"latent":[0.1,-10.0,10.0],"motif_scores":[0.0,0.0,0.0,0.0]}"#
    );
    assert_eq!(answer.clipped(), 2);
    assert_eq!(plan.motif().source(), "none");
    assert_eq!(
        String::from_utf8(answer.to_encode_json("1.0", Some(0.5))).unwrap(),
        r#"{"latent_embedding":[0.1,-10.0,10.0],"model_version":"1.0","accuracy":0.5}"#
    );
}

#[test]
fn a_linear_head_sees_the_latent_as_it_is() {
    let file = weights(&[1.0, 0.0, 0.0, 0.0, 0.1, 0.0], &[2, 3], &[0.0, 1.0]);
    let plan = ImuPlan::new(&manifest(100, 3, linear()), Some(&file), 12).unwrap();
    let latent = [0.0_f32, 30.0, -500.0];
    let answer = plan.answer(|_| Some(&latent[..])).unwrap();
    let scores: Vec<f32> = answer.scores().collect();
    assert_eq!(scores[0], 0.5);
    assert!((scores[1] - 1.0 / (1.0 + (-4.0_f32).exp())).abs() < 1e-6, "30 * 0.1 + 1, before any clipping");
    assert_eq!((plan.motif().source(), plan.motif().labels()[1].as_str()), ("linear", "run"));
}

#[test]
fn a_head_that_saturates_stays_within_its_range() {
    let file = weights(&[f32::MAX, 0.0, 0.0, -f32::MAX, 0.0, 0.0], &[2, 3], &[0.0, 0.0]);
    let plan = ImuPlan::new(&manifest(100, 3, linear()), Some(&file), 12).unwrap();
    let latent = [f32::MAX, 0.0, 0.0];
    assert_eq!(plan.answer(|_| Some(&latent[..])).unwrap().scores().collect::<Vec<_>>(), [1.0, 0.0]);
}

#[test]
fn opposite_products_beyond_f32_never_become_null() {
    let file = weights(&[f32::MAX, f32::MAX, 0.0, 0.0, 0.0, 0.0], &[2, 3], &[0.0, 0.0]);
    let plan = ImuPlan::new(&manifest(100, 3, linear()), Some(&file), 12).unwrap();
    let latent = [f32::MAX, -f32::MAX, 0.0];
    let json = String::from_utf8(plan.answer(|_| Some(&latent[..])).unwrap().to_json()).unwrap();
    assert!(json.ends_with(r#""motif_scores":[0.5,0.5]}"#), "{json}");
}

#[test]
fn scores_of_the_network_are_kept_in_range() {
    let motif = Motif::Output { output: "motif".to_owned(), labels: vec!["a".to_owned(), "b".to_owned()] };
    let plan = ImuPlan::new(&manifest(100, 3, Some(motif)), None, 12).unwrap();
    let (latent, motif) = ([0.0_f32; 3], [1.000_000_1_f32, -0.000_1]);
    let answer = plan.answer(|i| Some(if i == 0 { &motif[..] } else { &latent[..] })).unwrap();
    assert_eq!(answer.scores().collect::<Vec<_>>(), [1.0, 0.0]);
}

#[test]
fn an_answer_that_is_no_number_is_not_passed_on() {
    let plan = ImuPlan::new(&manifest(100, 3, None), None, 12).unwrap();
    let nan = [0.0_f32, f32::NAN, 0.0];
    assert_eq!(plan.answer(|_| Some(&nan[..])).unwrap_err(), NotFinite);
    assert_eq!(plan.answer(|_| Some(&nan[..1])).unwrap_err(), NotFinite, "too short");
    assert_eq!(plan.answer(|_| None).unwrap_err(), NotFinite, "missing");
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    let m = manifest(100, 3, linear());
    let fails = |file: Option<&[u8]>| ImuPlan::new(&m, file, 12).unwrap_err().to_string();
    assert_eq!(fails(None), "model imu: motif weights: the file was not loaded");
    assert!(fails(Some(b"rubbish")).contains("safetensors"));
    assert!(fails(Some(&weights(&[0.0; 8], &[2, 4], &[0.0; 2]))).contains("[2, 3]"));
    assert!(fails(Some(&weights(&[f32::NAN; 6], &[2, 3], &[0.0; 2]))).contains("not finite"));
    let mut tensor = m.clone();
    tensor.task = Task::Tensor;
    assert!(matches!(ImuPlan::new(&tensor, None, 12), Err(PlanError::Task { .. })));
}
