//! Answers of a model to a reply: which outputs, in which order, as JSON or as binary data, or as classes.

use super::describe::labels;
use super::error::{BadRequest, names, place, quote};
use super::request::{Output, Request};
use half::{bf16, f16};
use inferd_model::{DType, Manifest, TensorSpec};
use std::io::Write;

/// What a reply will hold. It owns what it needs of the request, so the body can go before the model has run.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    id: Option<String>,
    outputs: Vec<Planned>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Planned {
    /// The output of the model.
    index: usize,
    binary: bool,
    /// So many classes instead of the tensor; 0: the tensor.
    classes: usize,
}

/// A reply's body, and how much of it is JSON when binary data follows.
#[derive(Clone, Debug, PartialEq)]
pub struct Body {
    /// JSON, then the binary tensors in the order of `outputs`.
    pub bytes: Vec<u8>,
    /// `Inference-Header-Content-Length`, when there is binary data.
    pub header_length: Option<usize>,
}

/// Decides what the reply holds, before the model runs: a request whose reply could not be written costs no inference.
///
/// # Errors
/// [`BadRequest`] when an output is unknown, asked for twice, or has no JSON form and was not asked for as binary data.
pub fn plan(request: &Request<'_>, model: &Manifest) -> Result<Plan, BadRequest> {
    let mut outputs = Vec::with_capacity(model.outputs.len());
    match &request.outputs {
        None => outputs.extend((0..model.outputs.len()).map(|index| Planned {
            index,
            binary: request.binary_output,
            classes: 0,
        })),
        Some(wanted) => {
            for want in wanted {
                let planned = plan_one(want, request.binary_output, model)?;
                if outputs.iter().any(|o: &Planned| o.index == planned.index) {
                    return Err(BadRequest::DuplicateOutput(quote(&want.name)));
                }
                outputs.push(planned);
            }
        }
    }
    for o in &outputs {
        let spec = &model.outputs[o.index];
        let (output, dtype) = (|| quote(&spec.name), spec.dtype);
        if o.classes > 0 && dtype == DType::Bool {
            return Err(BadRequest::NotClassifiable { output: output(), dtype });
        }
        if o.classes == 0 && !o.binary && matches!(dtype, DType::Fp16 | DType::Bf16) {
            return Err(BadRequest::OutputBinaryOnly { output: output(), dtype });
        }
    }
    Ok(Plan { id: request.id.clone(), outputs })
}

fn plan_one(want: &Output, binary: bool, model: &Manifest) -> Result<Planned, BadRequest> {
    let Some(index) = model.outputs.iter().position(|s| s.name == want.name) else {
        let known = names(model.outputs.iter().map(|s| s.name.as_str()));
        return Err(BadRequest::UnknownOutput { given: quote(&want.name), known });
    };
    Ok(Planned { index, binary: want.binary.unwrap_or(binary), classes: want.classes })
}

impl Plan {
    /// About how many bytes of work the reply is: JSON numbers are some 12 characters each, binary data is copied.
    #[must_use]
    pub fn size_hint(&self, model: &Manifest) -> usize {
        let cost = |o: &Planned| {
            let spec = &model.outputs[o.index];
            if o.binary && o.classes == 0 { spec.byte_len() / 8 } else { spec.elements().saturating_mul(12) }
        };
        self.outputs.iter().map(cost).fold(0, usize::saturating_add)
    }

    /// Writes the reply from the model's outputs.
    ///
    /// # Errors
    /// [`BadRequest::OutputNotFinite`] when an output asked for as JSON holds NaN or an infinity.
    pub fn write<'o>(
        &self,
        model: &Manifest,
        output: impl Fn(usize) -> &'o [u8],
    ) -> Result<Body, BadRequest> {
        let mut json = Vec::with_capacity(512);
        let mut binary: Vec<u8> = Vec::new();
        json.extend_from_slice(b"{");
        if let Some(id) = &self.id {
            json.extend_from_slice(b"\"id\":");
            string(&mut json, id);
            json.push(b',');
        }
        json.extend_from_slice(b"\"model_name\":");
        string(&mut json, model.name.as_str());
        json.extend_from_slice(b",\"model_version\":");
        string(&mut json, &model.version);
        json.extend_from_slice(b",\"outputs\":[");
        let mut any_binary = false;
        for (n, o) in self.outputs.iter().enumerate() {
            if n > 0 {
                json.push(b',');
            }
            let spec = &model.outputs[o.index];
            let bytes = output(o.index);
            json.extend_from_slice(b"{\"name\":");
            string(&mut json, &spec.name);
            any_binary |= o.binary;
            if o.classes > 0 {
                let classes = classes(spec, bytes, o.classes, labels(model, &spec.name));
                write_to(&mut json, format_args!(",\"datatype\":\"BYTES\",\"shape\":[{}]", classes.len()));
                if o.binary {
                    let start = binary.len();
                    for class in &classes {
                        // A label is part of a manifest of at most 256 KiB.
                        let n = u32::try_from(class.len()).unwrap_or(u32::MAX);
                        binary.extend_from_slice(&n.to_le_bytes());
                        binary.extend_from_slice(class.as_bytes());
                    }
                    size_parameter(&mut json, binary.len() - start);
                } else {
                    array(&mut json, &classes, |json, class| string(json, class));
                }
            } else {
                write_to(&mut json, format_args!(",\"datatype\":\"{}\",\"shape\":[", spec.dtype));
                for (axis, size) in spec.shape.iter().enumerate() {
                    write_to(&mut json, format_args!("{}{size}", if axis > 0 { "," } else { "" }));
                }
                json.push(b']');
                if o.binary {
                    binary.extend_from_slice(bytes);
                    size_parameter(&mut json, bytes.len());
                } else {
                    elements(spec, bytes, &mut json)?;
                }
            }
            json.push(b'}');
        }
        json.extend_from_slice(b"]}");
        let header_length = any_binary.then_some(json.len());
        json.append(&mut binary);
        Ok(Body { bytes: json, header_length })
    }
}

/// Writes to memory, which cannot fail.
fn write_to(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a Vec takes every byte");
}

fn size_parameter(json: &mut Vec<u8>, bytes: usize) {
    write_to(json, format_args!(",\"parameters\":{{\"binary_data_size\":{bytes}}}"));
}

fn string(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a string has a JSON form and a Vec takes every byte");
}

fn array<T>(json: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
    json.extend_from_slice(b",\"data\":[");
    for (i, item) in items.into_iter().enumerate() {
        if i > 0 {
            json.push(b',');
        }
        write(json, item);
    }
    json.push(b']');
}

/// Writes `,"data":[..]`, flat and row-major as Triton does.
fn elements(spec: &TensorSpec, bytes: &[u8], json: &mut Vec<u8>) -> Result<(), BadRequest> {
    macro_rules! whole {
        ($t:ty) => {
            array(json, bytes.as_chunks().0, |json, b| {
                write_to(json, format_args!("{}", <$t>::from_le_bytes(*b)));
            })
        };
    }
    macro_rules! float {
        ($t:ty) => {{
            let values = || bytes.as_chunks().0.iter().map(|b| <$t>::from_le_bytes(*b));
            if let Some(i) = values().position(|x| !x.is_finite()) {
                let at = place(&spec.shape, i);
                return Err(BadRequest::OutputNotFinite { output: quote(&spec.name), at });
            }
            // The shortest text that reads back as the same number.
            array(json, values(), |json, x| {
                serde_json::to_writer(json, &x).expect("a finite number has a JSON form");
            });
        }};
    }
    match spec.dtype {
        DType::Bool => array(json, bytes, |json, b| {
            json.extend_from_slice(if *b == 0 { &b"false"[..] } else { b"true" });
        }),
        DType::Uint8 => whole!(u8),
        DType::Uint16 => whole!(u16),
        DType::Uint32 => whole!(u32),
        DType::Uint64 => whole!(u64),
        DType::Int8 => whole!(i8),
        DType::Int16 => whole!(i16),
        DType::Int32 => whole!(i32),
        DType::Int64 => whole!(i64),
        DType::Fp32 => float!(f32),
        DType::Fp64 => float!(f64),
        DType::Fp16 | DType::Bf16 => {
            return Err(BadRequest::OutputBinaryOnly { output: quote(&spec.name), dtype: spec.dtype });
        }
    }
    Ok(())
}

/// The largest elements over the whole tensor as `value:index[:label]`, as Triton writes them for a model without a
/// batch dimension; equal values in the order of their index, NaN last.
fn classes(spec: &TensorSpec, bytes: &[u8], count: usize, labels: &[String]) -> Vec<String> {
    fn top<T: PartialOrd + Copy>(
        values: impl Iterator<Item = T>,
        count: usize,
        text: impl Fn(T) -> String,
        labels: &[String],
    ) -> Vec<String> {
        let mut ranked: Vec<(usize, T)> = values.enumerate().collect();
        // NaN, the only value that is not equal to itself, is below everything.
        #[expect(clippy::eq_op, reason = "x != x is what tells NaN for every T")]
        let order = |a: &(usize, T), b: &(usize, T)| {
            let by_nan = (a.1 != a.1).cmp(&(b.1 != b.1));
            by_nan.then(b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal)).then(a.0.cmp(&b.0))
        };
        let count = count.min(ranked.len());
        if count < ranked.len() {
            ranked.select_nth_unstable_by(count, order);
            ranked.truncate(count);
        }
        ranked.sort_unstable_by(order);
        let line = |(i, x): (usize, T)| match labels.get(i) {
            Some(label) => format!("{}:{i}:{label}", text(x)),
            None => format!("{}:{i}", text(x)),
        };
        ranked.into_iter().map(line).collect()
    }
    macro_rules! ranked {
        ($t:ty, $text:expr) => {
            top(bytes.as_chunks().0.iter().map(|b| <$t>::from_le_bytes(*b)), count, $text, labels)
        };
    }
    // Six decimals, as Triton has.
    let float = |x: f64| format!("{x:.6}");
    match spec.dtype {
        // `plan` lets no BOOL get here; as numbers they rank all the same.
        DType::Bool | DType::Uint8 => ranked!(u8, |x| x.to_string()),
        DType::Uint16 => ranked!(u16, |x| x.to_string()),
        DType::Uint32 => ranked!(u32, |x| x.to_string()),
        DType::Uint64 => ranked!(u64, |x| x.to_string()),
        DType::Int8 => ranked!(i8, |x| x.to_string()),
        DType::Int16 => ranked!(i16, |x| x.to_string()),
        DType::Int32 => ranked!(i32, |x| x.to_string()),
        DType::Int64 => ranked!(i64, |x| x.to_string()),
        DType::Fp16 => ranked!(f16, |x| float(x.to_f64())),
        DType::Bf16 => ranked!(bf16, |x| float(x.to_f64())),
        DType::Fp32 => ranked!(f32, |x| float(f64::from(x))),
        DType::Fp64 => ranked!(f64, float),
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::parse;
    use super::super::testing::manifest;
    use super::*;
    use inferd_model::Motif;
    use serde_json::{Value, json};

    fn model(dtype: DType, shape: &[u32]) -> Manifest {
        let x = TensorSpec::plain("x", DType::Uint8, &[1]);
        manifest(
            vec![x],
            vec![TensorSpec::plain("y", dtype, shape), TensorSpec::plain("z", DType::Bool, &[2])],
        )
    }

    fn planned(model: &Manifest, request: &Value) -> Result<Plan, BadRequest> {
        plan(&parse(request.to_string().as_bytes(), None).unwrap(), model)
    }

    fn answer(model: &Manifest, request: &Value, y: &[u8]) -> Result<(Value, Vec<u8>), BadRequest> {
        let body = planned(model, request)?.write(model, |i| [y, &[0, 1]][i])?;
        let at = body.header_length.unwrap_or(body.bytes.len());
        Ok((serde_json::from_slice(&body.bytes[..at]).unwrap(), body.bytes[at..].to_vec()))
    }

    #[test]
    fn all_outputs_come_as_json_unless_asked_otherwise() {
        let m = model(DType::Uint8, &[1, 3]);
        let (got, tail) = answer(&m, &json!({"id":"a\"b","inputs":[]}), &[1, 2, 255]).unwrap();
        assert_eq!(
            got,
            json!({"id":"a\"b","model_name":"m","model_version":"1.0","outputs":[
                {"name":"y","datatype":"UINT8","shape":[1,3],"data":[1,2,255]},
                {"name":"z","datatype":"BOOL","shape":[2],"data":[false,true]}]})
        );
        assert!(tail.is_empty());
    }

    #[test]
    fn binary_outputs_follow_the_json_in_the_order_asked_for() {
        let m = model(DType::Uint8, &[3]);
        let all = json!({"inputs":[],"parameters":{"binary_data_output":true}});
        let (got, tail) = answer(&m, &all, &[7, 8, 9]).unwrap();
        assert_eq!(
            got["outputs"][0],
            json!({"name":"y","datatype":"UINT8","shape":[3],"parameters":{"binary_data_size":3}})
        );
        assert_eq!(tail, [7, 8, 9, 0, 1]);
        let some =
            json!({"inputs":[],"outputs":[{"name":"z","parameters":{"binary_data":true}},{"name":"y"}]});
        let (got, tail) = answer(&m, &some, &[7, 8, 9]).unwrap();
        assert_eq!(got["outputs"][1]["data"], json!([7, 8, 9]));
        assert_eq!((got["outputs"][0]["name"].as_str(), tail), (Some("z"), vec![0, 1]));
        let mixed = json!({"inputs":[],"parameters":{"binary_data_output":true},
            "outputs":[{"name":"z","parameters":{"binary_data":false}}]});
        let (got, tail) = answer(&m, &mixed, &[7, 8, 9]).unwrap();
        assert_eq!((got["outputs"].as_array().unwrap().len(), tail), (1, vec![]));
    }

    #[test]
    fn outputs_that_cannot_be_given_are_refused_before_the_model_runs() {
        let m = model(DType::Fp16, &[1]);
        let go = |outputs: Value| planned(&m, &json!({"inputs":[],"outputs":outputs}));
        let is_binary = json!({"binary_data":true});
        assert!(
            matches!(go(json!([{"name":"q"}])), Err(BadRequest::UnknownOutput { known, .. }) if known == "\"y\", \"z\"")
        );
        assert!(matches!(go(json!([{"name":"z"},{"name":"z"}])), Err(BadRequest::DuplicateOutput(_))));
        assert!(matches!(go(json!([{"name":"y"}])), Err(BadRequest::OutputBinaryOnly { .. })));
        assert!(
            matches!(go(json!([])), Err(BadRequest::OutputBinaryOnly { .. })),
            "an empty list asks for all"
        );
        assert!(go(json!([{"name":"y","parameters":is_binary}])).is_ok());
        assert!(matches!(
            go(json!([{"name":"z","parameters":{"classification":1}}])),
            Err(BadRequest::NotClassifiable { .. })
        ));
    }

    #[test]
    fn numbers_read_back_as_the_same_numbers() {
        let y32 = [0.1_f32, -1.0e-30, 3.402_823_5e38, 16_777_217.0];
        let bytes: Vec<u8> = y32.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (got, _) = answer(&model(DType::Fp32, &[4]), &json!({"inputs":[]}), &bytes).unwrap();
        let back: Vec<f32> = got["outputs"][0]["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.to_string().parse().unwrap())
            .collect();
        assert_eq!(back, y32);
        let bytes: Vec<u8> = [i64::MIN, i64::MAX].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (got, _) = answer(&model(DType::Int64, &[2]), &json!({"inputs":[]}), &bytes).unwrap();
        assert_eq!(got["outputs"][0]["data"], json!([i64::MIN, i64::MAX]));
    }

    #[test]
    fn json_never_holds_a_value_that_is_not_finite() {
        let m = model(DType::Fp32, &[1, 2]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let bytes: Vec<u8> = [1.0, bad].iter().flat_map(|x| x.to_le_bytes()).collect();
            let got = answer(&m, &json!({"inputs":[]}), &bytes).unwrap_err();
            assert!(matches!(got, BadRequest::OutputNotFinite { at, .. } if at == "[0, 1]"));
            let binary = json!({"inputs":[],"parameters":{"binary_data_output":true}});
            assert_eq!(answer(&m, &binary, &bytes).unwrap().1[..8], bytes, "binary data carries it");
        }
    }

    #[test]
    fn classes_are_value_index_and_label() {
        let mut m = model(DType::Fp32, &[1, 4]);
        let bytes: Vec<u8> = [1.1_f32, 3.3, 0.5, 2.4].iter().flat_map(|x| x.to_le_bytes()).collect();
        let ask = |n: u64, binary: bool| json!({"inputs":[],"outputs":[{"name":"y","parameters":{"classification":n,"binary_data":binary}}]});
        let (got, _) = answer(&m, &ask(2, false), &bytes).unwrap();
        assert_eq!(
            got["outputs"],
            json!([{"name":"y","datatype":"BYTES","shape":[2],"data":["3.300000:1","2.400000:3"]}])
        );
        let (got, _) = answer(&m, &ask(u64::MAX, false), &bytes).unwrap();
        assert_eq!(got["outputs"][0]["shape"], json!([4]), "no more classes than elements");
        m.imu = Some(inferd_model::ImuTask {
            latent: "y".into(),
            motif: Some(Motif::Output {
                output: "y".into(),
                labels: ["walk", "run", "sit", "lie"].map(String::from).into(),
            }),
        });
        let (got, tail) = answer(&m, &ask(1, true), &bytes).unwrap();
        assert_eq!(got["outputs"][0]["parameters"], json!({"binary_data_size":18}));
        assert_eq!(tail, b"\x0e\x00\x00\x003.300000:1:run");
        let nan: Vec<u8> = [f32::NAN, 1.0, f32::NAN, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (got, _) = answer(&m, &ask(3, false), &nan).unwrap();
        assert_eq!(got["outputs"][0]["data"], json!(["1.000000:1:run", "1.000000:3:lie", "NaN:0:walk"]));
    }
}
