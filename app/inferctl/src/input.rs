//! What is sent to a model: a file as clients write it, or a made-up input of the right shape, in each of the wire forms.

use half::{bf16, f16};
use inferd_model::DType;
use serde::Deserialize;
use serde_json::{Value, json};

/// A model's tensors as `/v2/models/NAME` describes them.
#[derive(Clone, Debug, Deserialize)]
pub struct Metadata {
    /// The model's name.
    pub name: String,
    /// What goes in.
    pub inputs: Vec<Tensor>,
}

/// One tensor's description.
#[derive(Clone, Debug, Deserialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its element type, by the protocol's name.
    pub datatype: String,
    /// Its shape; -1 is any length.
    pub shape: Vec<i64>,
}

/// How a request looks on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// `POST /infer` with `{"x": [[..9] x100]}`
    Infer,
    /// Open Inference Protocol, tensors as JSON numbers both ways
    OipJson,
    /// Open Inference Protocol, tensors as binary data both ways (what tritonclient does)
    OipBinary,
    /// Open Inference Protocol, the body is the bytes of the only input
    OipRaw,
}

/// A request body with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Headers of this form, `Content-Type` first.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

/// Why an input cannot be made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum InputError {
    #[error("{0} is not JSON: {1}")]
    NotJson(String, String),
    #[error(
        "the input holds neither x, imu_window nor inputs, and is no array; these are the forms clients send"
    )]
    UnknownForm,
    #[error("the input is not an array of numbers: {0} is in it")]
    NotNumbers(String),
    #[error("the input has {given} numbers, but {tensor} of model {model} takes {wanted} ({shape})")]
    Length { given: usize, tensor: String, model: String, wanted: usize, shape: String },
    #[error(
        "model {model} has {inputs} inputs; a file with x or a plain array fills only one, so write an OIP request with inputs"
    )]
    Inputs { model: String, inputs: usize },
    #[error("the input has no tensor {0}")]
    Missing(String),
    #[error("{value} does not fit into {datatype} of tensor {tensor}")]
    Value { value: String, datatype: String, tensor: String },
    #[error("datatype {0} is not one this program can write")]
    Datatype(String),
}

/// The numbers for each input of a model, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    tensors: Vec<(Option<String>, Vec<Value>)>,
}

impl Sample {
    /// Takes a file apart: `{"x": ..}`, `{"imu_window": ..}`, an OIP request, or a plain array.
    ///
    /// # Errors
    /// [`InputError`].
    pub fn from_json(value: &Value) -> Result<Self, InputError> {
        let one = |data: &Value| Ok(Self { tensors: vec![(None, flatten(data)?)] });
        match value {
            Value::Array(_) => one(value),
            Value::Object(map) => {
                if let Some(window) = map.get("x").or_else(|| map.get("imu_window")) {
                    return one(window);
                }
                let inputs = map.get("inputs").and_then(Value::as_array).ok_or(InputError::UnknownForm)?;
                let tensors = inputs
                    .iter()
                    .map(|t| Ok((t["name"].as_str().map(str::to_owned), flatten(&t["data"])?)))
                    .collect::<Result<_, InputError>>()?;
                Ok(Self { tensors })
            }
            _ => Err(InputError::UnknownForm),
        }
    }

    /// A made-up input for this model: for IMU windows a slow sway under gravity, else small numbers of the right type.
    #[must_use]
    pub fn synthetic(model: &Metadata) -> Self {
        let tensors = model.inputs.iter().map(|t| (Some(t.name.clone()), synthetic_values(t))).collect();
        Self { tensors }
    }

    /// The numbers of a 100x9 IMU window that any `/infer` takes.
    #[must_use]
    pub fn synthetic_window() -> Self {
        Self { tensors: vec![(None, imu_window(100).into_iter().map(number).collect())] }
    }

    /// The body of `POST /infer`, rows of nine.
    #[must_use]
    pub fn to_infer(&self) -> Request {
        let rows: Vec<&[Value]> =
            self.tensors.first().map(|(_, v)| v.chunks(9).collect()).unwrap_or_default();
        Request {
            path: "/infer".into(),
            headers: vec![("Content-Type".into(), "application/json".into())],
            body: json!({ "x": rows }).to_string().into_bytes(),
        }
    }

    /// The request in one of the protocol's forms.
    ///
    /// # Errors
    /// [`InputError`] when the numbers do not fit the model.
    pub fn to_oip(&self, model: &Metadata, form: Form) -> Result<Request, InputError> {
        if form == Form::Infer {
            return Ok(self.to_infer());
        }
        let values = self.matched(model)?;
        let path = format!("/v2/models/{}/infer", percent(&model.name));
        if form == Form::OipJson {
            let inputs: Vec<Value> = model
                .inputs
                .iter()
                .zip(&values)
                .map(|(t, v)| json!({"name": t.name, "shape": shape(t), "datatype": t.datatype, "data": v}))
                .collect();
            return Ok(Request {
                path,
                headers: vec![("Content-Type".into(), "application/json".into())],
                body: json!({ "inputs": inputs }).to_string().into_bytes(),
            });
        }
        let tensors =
            model.inputs.iter().zip(&values).map(|(t, v)| encode(t, v)).collect::<Result<Vec<_>, _>>()?;
        let header = if form == Form::OipRaw {
            if model.inputs.len() != 1 {
                return Err(InputError::Inputs { model: model.name.clone(), inputs: model.inputs.len() });
            }
            String::new()
        } else {
            let inputs: Vec<Value> = model
                .inputs
                .iter()
                .zip(&tensors)
                .map(|(t, bytes)| {
                    json!({"name": t.name, "shape": shape(t), "datatype": t.datatype,
                           "parameters": {"binary_data_size": bytes.len()}})
                })
                .collect();
            json!({ "inputs": inputs, "parameters": {"binary_data_output": true} }).to_string()
        };
        let mut body = header.clone().into_bytes();
        tensors.iter().for_each(|bytes| body.extend_from_slice(bytes));
        Ok(Request {
            path,
            headers: vec![
                ("Content-Type".into(), "application/octet-stream".into()),
                ("Inference-Header-Content-Length".into(), header.len().to_string()),
            ],
            body,
        })
    }

    /// The values of each input in the model's order, their number checked.
    fn matched(&self, model: &Metadata) -> Result<Vec<&[Value]>, InputError> {
        let named = self.tensors.iter().any(|(name, _)| name.is_some());
        if !named && model.inputs.len() != 1 {
            return Err(InputError::Inputs { model: model.name.clone(), inputs: model.inputs.len() });
        }
        model
            .inputs
            .iter()
            .map(|tensor| {
                let found =
                    self.tensors.iter().find(|(name, _)| !named || name.as_deref() == Some(&tensor.name));
                let (_, values) = found.ok_or_else(|| InputError::Missing(tensor.name.clone()))?;
                let wanted = elements(tensor);
                if values.len() == wanted {
                    Ok(values.as_slice())
                } else {
                    Err(InputError::Length {
                        given: values.len(),
                        tensor: tensor.name.clone(),
                        model: model.name.clone(),
                        wanted,
                        shape: shape(tensor).iter().map(ToString::to_string).collect::<Vec<_>>().join("x"),
                    })
                }
            })
            .collect()
    }
}

/// A shape with every free length taken as 1.
fn shape(tensor: &Tensor) -> Vec<u64> {
    tensor.shape.iter().map(|n| u64::try_from(*n).unwrap_or(1)).collect()
}

fn elements(tensor: &Tensor) -> usize {
    shape(tensor).iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).product()
}

fn flatten(value: &Value) -> Result<Vec<Value>, InputError> {
    fn walk(value: &Value, out: &mut Vec<Value>) -> Result<(), InputError> {
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| walk(item, out)),
            Value::Number(_) | Value::Bool(_) => {
                out.push(value.clone());
                Ok(())
            }
            other => Err(InputError::NotNumbers(other.to_string())),
        }
    }
    let mut out = Vec::new();
    walk(value, &mut out)?;
    Ok(out)
}

fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// Raw sensor units: m/s2, rad/s, uT. A slow sway under gravity, in three decimals as sensors print them.
fn imu_window(rows: u16) -> Vec<f64> {
    (0..rows)
        .flat_map(|row| {
            let t = f64::from(row) / 100.0 * std::f64::consts::TAU;
            let [a, b, c] = [t.sin(), (2.0 * t).sin(), (2.0 * t).cos()];
            [0.8 * b, 0.5 * c, 9.81 + 0.6 * a, 0.3 * c, 0.2 * a, 0.1 * b, 25.0 + 2.0 * a, -8.0 + b, 43.0 + c]
        })
        .map(|v| (v * 1000.0).round() / 1000.0)
        .collect()
}

fn synthetic_values(tensor: &Tensor) -> Vec<Value> {
    let count = elements(tensor);
    let dtype = DType::from_name(&tensor.datatype);
    match (dtype, tensor.shape.as_slice()) {
        (Some(DType::Fp32), [.., rows, 9]) if count == usize::try_from(*rows).unwrap_or(0) * 9 => {
            imu_window(u16::try_from(*rows).unwrap_or(100)).into_iter().map(number).collect()
        }
        (Some(DType::Bool), _) => (0..count).map(|i| Value::Bool(i % 2 == 0)).collect(),
        (Some(d), _) if d.is_float() => {
            (0..100_u8).cycle().take(count).map(|i| json!(f64::from(i) / 100.0)).collect()
        }
        _ => (0..100_u8).cycle().take(count).map(|i| json!(i)).collect(),
    }
}

/// Little-endian bytes of one tensor.
fn encode(tensor: &Tensor, values: &[Value]) -> Result<Vec<u8>, InputError> {
    let dtype =
        DType::from_name(&tensor.datatype).ok_or_else(|| InputError::Datatype(tensor.datatype.clone()))?;
    let mut out = Vec::with_capacity(values.len() * dtype.size());
    for value in values {
        put(dtype, value, &mut out).ok_or_else(|| InputError::Value {
            value: value.to_string(),
            datatype: tensor.datatype.clone(),
            tensor: tensor.name.clone(),
        })?;
    }
    Ok(out)
}

/// Appends one element; `None` when the value does not fit the type.
#[allow(clippy::cast_possible_truncation)] // FP64 to FP32 is the rounding that every JSON reader does
fn put(dtype: DType, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    fn int<T: TryFrom<i128>>(value: &Value) -> Option<T> {
        let wide = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))?;
        T::try_from(wide).ok()
    }
    match dtype {
        DType::Bool => {
            out.push(value.as_bool().or_else(|| int::<u8>(value).filter(|n| *n < 2).map(|n| n == 1))?.into())
        }
        DType::Uint8 => out.push(int(value)?),
        DType::Uint16 => out.extend(int::<u16>(value)?.to_le_bytes()),
        DType::Uint32 => out.extend(int::<u32>(value)?.to_le_bytes()),
        DType::Uint64 => out.extend(int::<u64>(value)?.to_le_bytes()),
        DType::Int8 => out.extend(int::<i8>(value)?.to_le_bytes()),
        DType::Int16 => out.extend(int::<i16>(value)?.to_le_bytes()),
        DType::Int32 => out.extend(int::<i32>(value)?.to_le_bytes()),
        DType::Int64 => out.extend(int::<i64>(value)?.to_le_bytes()),
        DType::Fp16 => out.extend(f16::from_f64(value.as_f64()?).to_le_bytes()),
        DType::Bf16 => out.extend(bf16::from_f64(value.as_f64()?).to_le_bytes()),
        DType::Fp32 => out.extend((value.as_f64()? as f32).to_le_bytes()),
        DType::Fp64 => out.extend(value.as_f64()?.to_le_bytes()),
    }
    Some(())
}

/// A path segment, everything but letters, digits and `-_.~` percent-encoded.
#[must_use]
pub fn percent(segment: &str) -> String {
    use std::fmt::Write as _;
    segment.bytes().fold(String::with_capacity(segment.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(inputs: &[(&str, &str, &[i64])]) -> Metadata {
        let tensor = |(name, datatype, shape): &(&str, &str, &[i64])| Tensor {
            name: (*name).into(),
            datatype: (*datatype).into(),
            shape: shape.to_vec(),
        };
        Metadata { name: "m 1".into(), inputs: inputs.iter().map(tensor).collect() }
    }

    #[test]
    fn the_forms_clients_send_give_the_same_numbers() {
        let forms = [
            json!([[1, 2], [3, 4]]),
            json!({"x": [[1, 2], [3, 4]]}),
            json!({"imu_window": [[1, 2], [3, 4]], "other": "ignored"}),
            json!([1, 2, 3, 4]),
        ];
        for form in forms {
            let request =
                Sample::from_json(&form).unwrap().to_oip(&model(&[("a", "INT8", &[1, 4])]), Form::OipRaw);
            assert_eq!(request.unwrap().body, [1, 2, 3, 4], "{form}");
        }
        assert_eq!(Sample::from_json(&json!({"y": 1})), Err(InputError::UnknownForm));
        assert_eq!(Sample::from_json(&json!({"x": [[null]]})), Err(InputError::NotNumbers("null".into())));
    }

    #[test]
    fn a_binary_request_is_a_json_header_and_the_tensors_in_its_order() {
        let model = model(&[("a", "INT16", &[-1, 2]), ("b", "FP32", &[1])]);
        let file = json!({"inputs": [{"name": "b", "data": [1.5]}, {"name": "a", "data": [[-1, 258]]}]});
        let request = Sample::from_json(&file).unwrap().to_oip(&model, Form::OipBinary).unwrap();
        assert_eq!(request.path, "/v2/models/m%201/infer");
        let length: usize = request.headers[1].1.parse().unwrap();
        let (header, tensors) = request.body.split_at(length);
        let header: Value = serde_json::from_slice(header).unwrap();
        assert_eq!(header["inputs"][0]["name"], "a");
        assert_eq!(header["inputs"][0]["shape"], json!([1, 2]));
        assert_eq!(header["inputs"][0]["parameters"]["binary_data_size"], 4);
        assert_eq!(header["parameters"]["binary_data_output"], true);
        assert_eq!(tensors, [0xff, 0xff, 2, 1, 0, 0, 0xc0, 0x3f]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let two = Sample::from_json(&json!([300, 1])).unwrap();
        let error = two.to_oip(&model(&[("a", "UINT8", &[2])]), Form::OipRaw).unwrap_err();
        assert_eq!(error.to_string(), "300 does not fit into UINT8 of tensor a");
        let error = two.to_oip(&model(&[("a", "FP32", &[1, 100, 9])]), Form::OipJson).unwrap_err();
        assert_eq!(error.to_string(), "the input has 2 numbers, but a of model m 1 takes 900 (1x100x9)");
        let error =
            two.to_oip(&model(&[("a", "FP32", &[2]), ("b", "FP32", &[2])]), Form::OipJson).unwrap_err();
        assert!(error.to_string().contains("has 2 inputs"), "{error}");
    }

    #[test]
    fn a_made_up_input_fits_every_type() {
        for dtype in DType::ALL {
            let model = model(&[("a", dtype.name(), &[2, 60])]);
            let request = Sample::synthetic(&model).to_oip(&model, Form::OipBinary).unwrap();
            let header: usize = request.headers[1].1.parse().unwrap();
            assert_eq!(request.body.len() - header, 120 * dtype.size(), "{dtype:?}");
        }
        let imu = model(&[("imu_window", "FP32", &[1, 100, 9])]);
        let request = Sample::synthetic(&imu).to_oip(&imu, Form::OipRaw).unwrap();
        assert_eq!(request.body.len(), 3600);
        let rows: Value = serde_json::from_slice(&Sample::synthetic_window().to_infer().body).unwrap();
        assert_eq!(rows["x"].as_array().unwrap().len(), 100);
        assert!(rows["x"].as_array().unwrap().iter().all(|row| row.as_array().unwrap().len() == 9));
    }
}
