//! Tensors of a request into the slots of a model: matched, checked and written in one pass each.
//!
//! Nothing is half accepted: any error leaves the caller with an error, and a slot that was partly written is never run.

use super::error::{BadRequest, names, place, quote};
use super::request::{Data, Input, Inputs, Request};
use inferd_model::{DType, Manifest, TensorSpec};

/// The deepest nesting of `data` that is read: the 8 dimensions a model may have, and as many of size 1.
const MAX_NESTING: usize = 16;

/// Where inputs are written: one buffer per input of the model, exactly as long as the tensor.
pub trait Slots {
    /// The buffer of input `i`.
    fn input_mut(&mut self, i: usize) -> &mut [u8];
}

/// Writes every input of the request to its slot.
///
/// # Errors
/// [`BadRequest`] for the first thing that does not fit the model; the slots then hold rubbish.
pub fn fill(request: &Request<'_>, model: &Manifest, slots: &mut impl Slots) -> Result<(), BadRequest> {
    match &request.inputs {
        Inputs::Raw(body) => {
            let [spec] = &model.inputs[..] else { return Err(BadRequest::RawInputs(model.inputs.len())) };
            let slot = slots.input_mut(0);
            binary(spec, body, slot)?;
            check(spec, slot)
        }
        Inputs::Named(inputs) => {
            let order = match_inputs(inputs, model)?;
            for (input, &i) in inputs.iter().zip(&order) {
                let spec = &model.inputs[i];
                let slot = slots.input_mut(i);
                match input.data {
                    Data::Binary(bytes) => binary(spec, bytes, slot)?,
                    Data::Json(text) => json(spec, text, slot)?,
                }
                check(spec, slot)?;
            }
            Ok(())
        }
    }
}

/// Which input of the model each input of the request is; names, datatypes and shapes must match, all must be there.
fn match_inputs(inputs: &[Input<'_>], model: &Manifest) -> Result<Vec<usize>, BadRequest> {
    let mut seen = vec![false; model.inputs.len()];
    let mut order = Vec::with_capacity(inputs.len());
    for input in inputs {
        let Some(i) = model.inputs.iter().position(|s| s.name == input.name) else {
            let known = names(model.inputs.iter().map(|s| s.name.as_str()));
            return Err(BadRequest::UnknownInput { given: quote(&input.name), known });
        };
        if std::mem::replace(&mut seen[i], true) {
            return Err(BadRequest::DuplicateInput(quote(&input.name)));
        }
        let spec = &model.inputs[i];
        if spec.dtype.name() != input.datatype {
            let (input, given) = (quote(&input.name), quote(&input.datatype));
            return Err(BadRequest::Datatype { input, given, want: spec.dtype });
        }
        if !input.shape.iter().copied().eq(spec.shape.iter().map(|&d| u64::from(d))) {
            return Err(BadRequest::ShapeMismatch {
                input: quote(&input.name),
                given: format!("{:?}", input.shape),
                want: format!("{:?}", spec.shape),
            });
        }
        order.push(i);
    }
    if let Some(i) = seen.iter().position(|s| !s) {
        return Err(BadRequest::InputAbsent(quote(&model.inputs[i].name)));
    }
    Ok(order)
}

/// Copies little-endian bytes.
fn binary(spec: &TensorSpec, bytes: &[u8], slot: &mut [u8]) -> Result<(), BadRequest> {
    if bytes.len() != spec.byte_len() {
        let (given, want) = (bytes.len(), spec.byte_len());
        return Err(BadRequest::BinarySize { input: quote(&spec.name), given, want });
    }
    if spec.dtype == DType::Bool
        && let Some(i) = bytes.iter().position(|&b| b > 1)
    {
        return Err(element(spec, i, "a byte other than 0 and 1, which is no BOOL"));
    }
    slot.copy_from_slice(bytes);
    Ok(())
}

fn element(spec: &TensorSpec, i: usize, why: impl Into<String>) -> BadRequest {
    BadRequest::Element { input: quote(&spec.name), at: place(&spec.shape, i), why: why.into() }
}

/// Parses a JSON array, flat or nested as the shape, into a slot. `text` is valid JSON.
fn json(spec: &TensorSpec, text: &str, slot: &mut [u8]) -> Result<(), BadRequest> {
    match spec.dtype {
        DType::Fp16 | DType::Bf16 => {
            Err(BadRequest::BinaryOnly { input: quote(&spec.name), dtype: spec.dtype })
        }
        DType::Bool => numbers(spec, text, slot, |t| match t {
            "true" => Some([1]),
            "false" => Some([0]),
            _ => None,
        }),
        DType::Uint8 => numbers(spec, text, slot, |t| t.parse::<u8>().ok().map(u8::to_le_bytes)),
        DType::Uint16 => numbers(spec, text, slot, |t| t.parse::<u16>().ok().map(u16::to_le_bytes)),
        DType::Uint32 => numbers(spec, text, slot, |t| t.parse::<u32>().ok().map(u32::to_le_bytes)),
        DType::Uint64 => numbers(spec, text, slot, |t| t.parse::<u64>().ok().map(u64::to_le_bytes)),
        DType::Int8 => numbers(spec, text, slot, |t| t.parse::<i8>().ok().map(i8::to_le_bytes)),
        DType::Int16 => numbers(spec, text, slot, |t| t.parse::<i16>().ok().map(i16::to_le_bytes)),
        DType::Int32 => numbers(spec, text, slot, |t| t.parse::<i32>().ok().map(i32::to_le_bytes)),
        DType::Int64 => numbers(spec, text, slot, |t| t.parse::<i64>().ok().map(i64::to_le_bytes)),
        DType::Fp32 => numbers(spec, text, slot, |t| {
            number(t)?.parse::<f32>().ok().filter(|x| x.is_finite()).map(f32::to_le_bytes)
        }),
        DType::Fp64 => numbers(spec, text, slot, |t| {
            number(t)?.parse::<f64>().ok().filter(|x| x.is_finite()).map(f64::to_le_bytes)
        }),
    }
}

/// The token, if it is a JSON number (and not `true`, a string or the like).
fn number(token: &str) -> Option<&str> {
    token.as_bytes().first().is_some_and(|&b| b == b'-' || b.is_ascii_digit()).then_some(token)
}

/// Walks over the array's tokens. Since the text is valid JSON, commas and white space carry no news: brackets tell the
/// nesting, everything else is an element.
fn numbers<const N: usize>(
    spec: &TensorSpec,
    text: &str,
    slot: &mut [u8],
    parse: impl Fn(&str) -> Option<[u8; N]>,
) -> Result<(), BadRequest> {
    let input = || quote(&spec.name);
    let nesting = || BadRequest::Nesting { input: input(), want: format!("{:?}", spec.shape) };
    if !text.starts_with('[') {
        return Err(BadRequest::NotAnArray { input: input() });
    }
    let want = spec.elements();
    let (places, _) = slot.as_chunks_mut::<N>();
    // Per level: children of the open array, and the length every array of that level has, once one has ended.
    let mut open = [0_usize; MAX_NESTING];
    let mut lengths: [Option<usize>; MAX_NESTING] = [None; MAX_NESTING];
    let mut depth = 0;
    let mut leaves_at = None;
    let mut i = 0;
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        match b {
            b' ' | b'\t' | b'\n' | b'\r' | b',' => at += 1,
            b'[' => {
                if depth == MAX_NESTING || leaves_at.is_some_and(|l| depth >= l) {
                    return Err(nesting());
                }
                if depth > 0 {
                    open[depth - 1] += 1;
                }
                open[depth] = 0;
                depth += 1;
                at += 1;
            }
            b']' => {
                depth -= 1;
                if *lengths[depth].get_or_insert(open[depth]) != open[depth] {
                    return Err(nesting());
                }
                at += 1;
            }
            _ => {
                let end =
                    bytes[at..].iter().position(|b| matches!(b, b',' | b']' | b' ' | b'\t' | b'\n' | b'\r'));
                let end = end.map_or(bytes.len(), |n| at + n);
                // A string or an object may hold any byte, but it is refused by how it begins.
                let token = text.get(at..end).unwrap_or_default();
                if *leaves_at.get_or_insert(depth) != depth {
                    return Err(nesting());
                }
                let Some(place) = places.get_mut(i) else {
                    return Err(BadRequest::TooManyElements { input: input(), want });
                };
                match parse(token) {
                    Some(value) => *place = value,
                    None => return Err(element(spec, i, why_not(spec.dtype, token))),
                }
                open[depth - 1] += 1;
                i += 1;
                at = end;
            }
        }
    }
    if i != want {
        return Err(BadRequest::ElementCount { input: input(), given: i, want });
    }
    // Flat, or the shape; dimensions of size 1 may be left out or added, as they change no order.
    let levels = lengths.iter().map_while(|l| *l);
    let flat = leaves_at.is_none_or(|l| l == 1);
    let nested = levels.filter(|&l| l != 1).eq(spec.shape.iter().map(|&d| d as usize).filter(|&d| d != 1));
    if flat || nested { Ok(()) } else { Err(nesting()) }
}

/// Why this token is no element of the type, without repeating more than a number.
fn why_not(dtype: DType, token: &str) -> String {
    let is = match token.as_bytes().first() {
        Some(b'"') => "a string".to_owned(),
        Some(b'{') => "an object".to_owned(),
        Some(b'n') => "null".to_owned(),
        Some(b't' | b'f') => "a boolean".to_owned(),
        _ if token.len() <= 24 => token.to_owned(),
        _ => "a number".to_owned(),
    };
    let wants = match dtype {
        DType::Bool => "true or false",
        DType::Fp16 | DType::Bf16 | DType::Fp32 | DType::Fp64 => "a number in range",
        _ => "a whole number in range",
    };
    format!("{is}; {dtype} takes {wants}")
}

/// Checks a measurement: an input with limits or normalisation holds finite numbers, within the limits. Inputs without
/// either are plain tensors, where NaN is the client's business.
fn check(spec: &TensorSpec, slot: &[u8]) -> Result<(), BadRequest> {
    if spec.dtype != DType::Fp32 || (spec.limits.is_empty() && spec.normalization.is_none()) {
        return Ok(());
    }
    let values = || slot.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b));
    if let Some(i) = values().position(|x| !x.is_finite()) {
        return Err(BadRequest::NotFinite { input: quote(&spec.name), at: place(&spec.shape, i) });
    }
    if spec.limits.is_empty() {
        return Ok(());
    }
    let limits = spec.limit_per_channel();
    for (i, (value, limit)) in values().zip(limits.iter().cycle()).enumerate() {
        if let Some((quantity, limit)) = limit
            && f64::from(value).abs() > *limit
        {
            let units = spec.channels.as_ref().map_or(&[][..], |c| &c.units);
            return Err(BadRequest::OutOfRange {
                quantity: (*quantity).to_owned(),
                value,
                at: place(&spec.shape, i),
                input: quote(&spec.name),
                limit: *limit,
                unit: units.get(i % spec.channel_count()).cloned().unwrap_or_default(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::request::parse;
    use super::super::testing::{Buffers, manifest};
    use super::*;
    use inferd_model::{Channels, Limit, Normalization};

    /// Fills slots, and other slots that held something else: what is accepted has written every byte.
    fn run(model: &Manifest, body: &[u8], header: Option<u64>) -> Result<Buffers, BadRequest> {
        let (mut slots, mut others) = (Buffers::of(model, 0xa5), Buffers::of(model, 0x5a));
        let request = parse(body, header)?;
        let filled = fill(&request, model, &mut slots);
        assert_eq!(
            filled,
            fill(&request, model, &mut others),
            "the answer does not depend on what a slot held"
        );
        filled?;
        assert_eq!(slots, others, "every byte of an accepted request is written");
        Ok(slots)
    }

    fn one(dtype: DType, shape: &[u32]) -> Manifest {
        manifest(vec![TensorSpec::plain("x", dtype, shape)], vec![TensorSpec::plain("y", dtype, shape)])
    }

    fn data(dtype: DType, shape: &[u32], data: &str) -> Result<Vec<u8>, BadRequest> {
        let body =
            format!(r#"{{"inputs":[{{"name":"x","datatype":"{dtype}","shape":{shape:?},"data":{data}}}]}}"#);
        run(&one(dtype, shape), body.as_bytes(), None).map(|s| s.0[0].clone())
    }

    #[test]
    fn json_elements_become_little_endian_bytes() {
        use DType::*;
        let bytes = |d, text| data(d, &[2], text).unwrap();
        assert_eq!(bytes(Bool, "[true,false]"), [1, 0]);
        assert_eq!(bytes(Uint8, "[0, 255]"), [0, 255]);
        assert_eq!(bytes(Int8, "[-128,127]"), [128, 127]);
        assert_eq!(bytes(Uint16, "[258,65535]"), [2, 1, 255, 255]);
        assert_eq!(bytes(Int16, "[-2,-32768]"), [254, 255, 0, 128]);
        assert_eq!(bytes(Uint32, "[1,4294967295]"), [1, 0, 0, 0, 255, 255, 255, 255]);
        assert_eq!(bytes(Int32, "[\n-1\t,\r2147483647 ]"), [255, 255, 255, 255, 255, 255, 255, 127]);
        assert_eq!(bytes(Uint64, "[18446744073709551615,0]")[..8], [255; 8]);
        assert_eq!(bytes(Int64, "[-9223372036854775808,-1]")[7], 128);
        let f: Vec<u8> = [0.1_f32, -1.5e-3].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(bytes(Fp32, "[0.1,-15E-4]"), f);
        let f: Vec<u8> = [0.1_f64, 1e300].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(bytes(Fp64, "[0.1,1e300]"), f);
        assert_eq!(bytes(Fp32, "[1e-400,-0]"), [0, 0, 0, 0, 0, 0, 0, 128], "too small is zero");
    }

    #[test]
    fn elements_outside_the_type_are_refused_by_place() {
        use DType::*;
        for (dtype, bad) in [
            (Uint8, "256"),
            (Uint8, "-1"),
            (Int8, "128"),
            (Int8, "-129"),
            (Uint16, "65536"),
            (Int16, "32768"),
            (Uint32, "4294967296"),
            (Int32, "2147483648"),
            (Uint64, "18446744073709551616"),
            (Uint64, "-1"),
            (Int64, "9223372036854775808"),
            (Int32, "1.0"),
            (Int32, "1e2"),
            (Int32, "true"),
            (Int32, "null"),
            (Int32, "\"1\""),
            (Int32, "{}"),
            (Fp32, "1e39"),
            (Fp32, "-1e39"),
            (Fp32, "1e400"),
            (Fp64, "1e400"),
            (Fp32, "true"),
            (Fp32, "null"),
            (Fp32, "\"nan\""),
            (Fp32, "{\"a\":[1,2]}"),
            (Bool, "1"),
            (Bool, "0"),
            (Bool, "null"),
            (Bool, "\"true\""),
            (Fp32, "\"1,2]\""),
        ] {
            let fine = if dtype == Bool { "true" } else { "1" };
            let got = data(dtype, &[1, 2], &format!("[[{fine},{bad}]]")).unwrap_err();
            assert!(matches!(&got, BadRequest::Element { at, .. } if at == "[0, 1]"), "{dtype} {bad}: {got}");
            assert!(got.to_string().len() < 200);
        }
        for dtype in [Fp16, Bf16] {
            assert!(matches!(data(dtype, &[1], "[1]"), Err(BadRequest::BinaryOnly { .. })));
        }
    }

    #[test]
    fn data_is_flat_or_nested_as_the_shape() {
        let d = |text| data(DType::Uint8, &[1, 2, 3], text);
        for good in [
            "[1,2,3,4,5,6]",
            "[[[1,2,3],[4,5,6]]]",
            "[[1,2,3],[4,5,6]]",
            "[[1,2,3],[4,5,6]]",
            "[[[[1],[2],[3]],[[4],[5],[6]]]]",
            "[[1,2,3,4,5,6]]",
            " [ 1 , 2,3,4,5,6 ] ",
        ] {
            // One level too many around a flat list is no other order either, but it is not the shape.
            let flat_in_one = good == "[[1,2,3,4,5,6]]";
            assert_eq!(d(good).is_ok(), !flat_in_one, "{good}");
            if !flat_in_one {
                assert_eq!(d(good).unwrap(), [1, 2, 3, 4, 5, 6]);
            }
        }
        for bad in [
            "[[1,2],[3,4],[5,6]]",
            "[[1,2,3],[4,5],[6]]",
            "[1,[2,3],4,5,6]",
            "[[1,2,3],4,5,6]",
            "[[[1,2,3]],[[4,5,6],[]]]",
        ] {
            assert!(matches!(d(bad), Err(BadRequest::Nesting { .. })), "{bad}: {:?}", d(bad));
        }
        for bad in ["[]", "[[]]", "[1,2,3,4,5]", "[[[]]]"] {
            assert!(matches!(d(bad), Err(BadRequest::ElementCount { .. })), "{bad}: {:?}", d(bad));
        }
        assert!(matches!(d("[1,2,3,4,5,6,7]"), Err(BadRequest::TooManyElements { .. })));
        for bad in ["1", "\"[1]\"", "{}", "null", "true"] {
            assert!(
                matches!(d(bad), Err(BadRequest::NotAnArray { .. } | BadRequest::InputMissing { .. })),
                "{bad}"
            );
        }
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(data(DType::Uint8, &[1], &deep), Err(BadRequest::Nesting { .. })));
        assert_eq!(data(DType::Uint8, &[], "[7]").unwrap(), [7], "a scalar is an array of one");
        assert_eq!(data(DType::Uint8, &[1], "[[[7]]]").unwrap(), [7]);
    }

    #[test]
    fn a_tensor_is_matched_by_name_type_and_shape() {
        let spec = |n: &str| TensorSpec::plain(n, DType::Uint8, &[2]);
        let model = manifest(vec![spec("a"), spec("b")], vec![spec("y")]);
        let tensor = |n: &str, d: &str, s: &str| {
            format!(r#"{{"name":"{n}","datatype":"{d}","shape":{s},"data":[1,2]}}"#)
        };
        let go =
            |list: &[String]| run(&model, format!(r#"{{"inputs":[{}]}}"#, list.join(",")).as_bytes(), None);
        let (a, b) = (
            tensor("a", "UINT8", "[2]"),
            r#"{"name":"b","datatype":"UINT8","shape":[2],"data":[3,4]}"#.to_owned(),
        );
        assert_eq!(go(&[b.clone(), a.clone()]).unwrap().0, [[1, 2], [3, 4]], "order is free");
        assert!(matches!(go(std::slice::from_ref(&a)), Err(BadRequest::InputAbsent(n)) if n == "\"b\""));
        assert!(matches!(go(&[]), Err(BadRequest::InputAbsent(_))));
        assert!(matches!(go(&[a.clone(), a.clone()]), Err(BadRequest::DuplicateInput(_))));
        assert!(
            matches!(go(&[a.clone(), tensor("c", "UINT8", "[2]")]), Err(BadRequest::UnknownInput { known, .. }) if known == "\"a\", \"b\"")
        );
        for d in ["INT8", "uint8", "BYTES", "FP32", ""] {
            assert!(
                matches!(go(&[tensor("a", d, "[2]"), b.clone()]), Err(BadRequest::Datatype { .. })),
                "{d}"
            );
        }
        for s in [
            "[]",
            "[1,2]",
            "[2,1]",
            "[3]",
            "[0]",
            "[4294967298]",
            "[18446744073709551615]",
            "[16,1152921504606846978]",
        ] {
            assert!(
                matches!(go(&[tensor("a", "UINT8", s), b.clone()]), Err(BadRequest::ShapeMismatch { .. })),
                "{s}"
            );
        }
    }

    #[test]
    fn binary_tensors_have_exactly_their_size() {
        for dtype in DType::ALL {
            let model = one(dtype, &[2, 3]);
            let want = 6 * dtype.size();
            for n in [0, 1, want - 1, want, want + 1] {
                let json = format!(
                    r#"{{"inputs":[{{"name":"x","datatype":"{dtype}","shape":[2,3],"parameters":{{"binary_data_size":{n}}}}}]}}"#
                );
                let body: Vec<u8> = json.bytes().chain((0..n).map(|i| u8::from(i % 2 == 1))).collect();
                let got = run(&model, &body, Some(json.len() as u64));
                assert_eq!(got.is_ok(), n == want, "{dtype} {n}");
                let raw: Vec<u8> = (0..n).map(|i| u8::from(i % 2 == 1)).collect();
                let got = run(&model, &raw, Some(0));
                assert_eq!(got.map(|s| s.0[0].clone()).ok(), (n == want).then_some(raw), "{dtype} raw {n}");
            }
        }
        assert!(
            matches!(run(&one(DType::Bool, &[2]), &[1, 2], Some(0)), Err(BadRequest::Element { at, .. }) if at == "[1]")
        );
    }

    #[test]
    fn a_raw_request_needs_a_model_with_one_input() {
        let spec = |n: &str| TensorSpec::plain(n, DType::Uint8, &[1]);
        let two = manifest(vec![spec("a"), spec("b")], vec![spec("y")]);
        assert_eq!(run(&two, &[1, 2], Some(0)).unwrap_err(), BadRequest::RawInputs(2));
    }

    fn sensor() -> Manifest {
        let mut spec = TensorSpec::plain("imu", DType::Fp32, &[1, 3, 2]);
        spec.channels = Some(Channels {
            names: vec!["ax".into(), "gx".into()],
            units: vec!["m/s^2".into(), "rad/s".into()],
            rate_hz: Some(100.0),
        });
        spec.limits =
            vec![Limit { quantity: "Gyroscope".into(), channels: vec!["gx".into()], max_abs: 35.0 }];
        manifest(vec![spec], vec![TensorSpec::plain("y", DType::Fp32, &[1])])
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn a_measurement_is_finite_and_within_its_limits() {
        let go = |values: [f32; 6]| run(&sensor(), &floats(&values), Some(0));
        assert!(go([1e30, 35.0, 0.0, -35.0, 0.0, 0.0]).is_ok(), "bounds are inclusive, ax has none");
        let got = go([0.0, 0.0, 0.0, -35.5, 0.0, 0.0]).unwrap_err();
        assert_eq!(
            got.to_string(),
            "Gyroscope value out of range: -35.5 at element [0, 1, 1] of input \"imu\", at most 35 rad/s"
        );
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let got = go([0.0, 0.0, 0.0, 0.0, bad, 0.0]).unwrap_err();
            assert!(matches!(got, BadRequest::NotFinite { at, .. } if at == "[0, 2, 0]"));
        }
        let json = r#"{"inputs":[{"name":"imu","datatype":"FP32","shape":[1,3,2],"data":[0,0,0,0,0,36]}]}"#;
        assert!(matches!(run(&sensor(), json.as_bytes(), None), Err(BadRequest::OutOfRange { .. })));
    }

    #[test]
    fn a_normalised_input_is_a_measurement_and_a_plain_one_may_be_anything() {
        let mut model = one(DType::Fp32, &[2]);
        let raw = floats(&[f32::NAN, f32::INFINITY]);
        assert!(run(&model, &raw, Some(0)).is_ok());
        model.inputs[0].normalization = Some(Normalization { mean: vec![0.0; 2], std: vec![1.0; 2] });
        assert!(matches!(run(&model, &raw, Some(0)), Err(BadRequest::NotFinite { .. })));
    }

    /// What was accepted means to us what it means to a parser that builds the whole tree.
    fn as_an_ordinary_parser_reads_it(model: &Manifest, body: &[u8], slots: &Buffers) {
        fn flat<'v>(v: &'v serde_json::Value, out: &mut Vec<&'v serde_json::Value>) {
            match v.as_array() {
                Some(list) => list.iter().for_each(|v| flat(v, out)),
                None => out.push(v),
            }
        }
        let tree: serde_json::Value = match serde_json::from_slice(body) {
            Ok(tree) => tree,
            // 1e999 is a number of JSON, and harmless where nobody reads it; a tree has no place for it.
            Err(e) if e.to_string().contains("number out of range") => return,
            Err(e) => panic!("what we accept is JSON, but: {e}\n{}", String::from_utf8_lossy(body)),
        };
        for (spec, slot) in model.inputs.iter().zip(&slots.0) {
            let inputs = tree["inputs"].as_array().expect("a list");
            let mut mine = inputs.iter().filter(|i| i["name"] == spec.name.as_str());
            let (Some(input), None) = (mine.next(), mine.next()) else {
                panic!("{} is there once", spec.name)
            };
            assert_eq!(input["datatype"], spec.dtype.name());
            let mut elements = Vec::new();
            flat(&input["data"], &mut elements);
            let bytes: Vec<u8> = match spec.dtype {
                #[expect(clippy::cast_possible_truncation, reason = "this is what FP32 means")]
                DType::Fp32 => {
                    elements.iter().flat_map(|v| (v.as_f64().unwrap() as f32).to_le_bytes()).collect()
                }
                DType::Int16 => {
                    // That parser makes a float of -0, which is a whole number all the same.
                    let whole = |v: &serde_json::Value| match v.as_i64() {
                        Some(n) => n,
                        None if v.as_f64() == Some(0.0) => 0,
                        None => panic!("{v} is not whole"),
                    };
                    elements.iter().flat_map(|v| i16::try_from(whole(v)).unwrap().to_le_bytes()).collect()
                }
                DType::Bool => elements.iter().map(|v| u8::from(v.as_bool().unwrap())).collect(),
                other => panic!("the model has no {other}"),
            };
            assert_eq!(&bytes, slot, "{}", String::from_utf8_lossy(body));
        }
    }

    /// Mutations of good requests: the parser never panics, and what it accepts has written every byte of every slot.
    /// The seed is fixed, so a failure comes back.
    #[test]
    fn mutated_requests_are_accepted_whole_or_refused() {
        let spec = |n: &str, d, s: &[u32]| TensorSpec::plain(n, d, s);
        let model = manifest(
            vec![
                spec("a", DType::Fp32, &[2, 2]),
                spec("b", DType::Int16, &[3]),
                spec("c", DType::Bool, &[2]),
            ],
            vec![spec("y", DType::Fp32, &[2]), spec("z", DType::Uint8, &[1])],
        );
        let plain = br#"{"id":"q","parameters":{"binary_data_output":true,"timeout":5},"inputs":[{"name":"a","shape":[2,2],"datatype":"FP32","data":[[1.5,-2e3],[0,4]]},{"name":"b","shape":[3],"datatype":"INT16","data":[1,-2,3]},{"name":"c","shape":[2],"datatype":"BOOL","data":[true,false]}],"outputs":[{"name":"y","parameters":{"binary_data":false}},{"name":"z"}]}"#.to_vec();
        let head = br#"{"inputs":[{"name":"a","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}},{"name":"c","shape":[2],"datatype":"BOOL","data":[true,false]},{"name":"b","shape":[3],"datatype":"INT16","parameters":{"binary_data_size":6}}]}"#;
        let mut framed = head.to_vec();
        framed.extend([0_u8; 22]);
        let seeds = [(plain, None), (framed, Some(head.len() as u64))];
        let tokens: [&[u8]; 22] = [
            b"[",
            b"]",
            b"{",
            b"}",
            b",",
            b":",
            b"\"",
            b"null",
            b"true",
            b"-1",
            b"1e999",
            b"NaN",
            b"18446744073709551616",
            b"\\u0000",
            b"\xff",
            b"[[",
            b"\"data\":[1]",
            b"\"inputs\":",
            b"0",
            b"\"binary_data_size\":0",
            b" ",
            b"\"a\"",
        ];
        // xorshift64*: small, seeded, good enough to pick places.
        let mut state = 0x1234_5678_9abc_def1_u64;
        let mut next = move |bound: usize| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound.max(1)
        };
        let (mut accepted, mut refused) = (0, 0);
        for round in 0..60_000 {
            let (seed, header) = &seeds[round % 2];
            let (mut body, mut header) = (seed.clone(), *header);
            for _ in 0..=next(3) {
                let at = next(body.len() + 1);
                match next(6) {
                    0 => body.truncate(at),
                    1 if at < body.len() => body[at] ^= 1 << next(8),
                    2 if at < body.len() => drop(body.remove(at)),
                    3 => {
                        let end = (at + next(40)).min(body.len());
                        let piece = body[at.min(end)..end].to_vec();
                        let to = next(body.len() + 1);
                        body.splice(to..to, piece);
                    }
                    4 => {
                        let end = (at + next(12)).min(body.len());
                        body.splice(at..end.max(at), tokens[next(tokens.len())].iter().copied());
                    }
                    _ => drop(body.splice(at..at, tokens[next(tokens.len())].iter().copied())),
                }
            }
            if next(8) == 0 {
                header = [None, Some(0), Some(next(600) as u64), Some(u64::MAX)][next(4)];
            }
            // `run` asserts that an accepted request wrote every byte.
            match run(&model, &body, header) {
                Ok(slots) => {
                    accepted += 1;
                    if header.is_none() {
                        as_an_ordinary_parser_reads_it(&model, &body, &slots);
                    }
                }
                Err(e) => {
                    refused += 1;
                    assert!(e.to_string().len() < 1000, "{e}");
                }
            }
        }
        assert!(
            accepted > 500 && refused > 20_000,
            "the mutations are worth something: {accepted} {refused}"
        );
    }
}
