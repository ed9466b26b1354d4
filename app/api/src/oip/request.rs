//! The first look at an inference request: what its JSON says, where its tensors lie. No tensor is read here.
//!
//! The JSON is read once, by a parser that never recurses into what it does not know, and tensors stay behind as
//! slices of the body. Every list has a small limit, so a hostile body costs no more memory than its own bytes.

use super::error::{BadRequest, quote};
use inferd_model::MAX_TENSORS;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, marker::PhantomData, time::Duration};

/// The most dimensions of a shape that are read; a model has at most 8.
const MAX_RANK: usize = 32;

/// An inference request before its tensors are read.
#[derive(Debug)]
pub struct Request<'a> {
    /// The client's id, echoed in the reply.
    pub id: Option<String>,
    /// The parameter `timeout`, where it is above 0.
    pub timeout: Option<Duration>,
    /// The inputs as the client lists them.
    pub inputs: Inputs<'a>,
    /// The outputs the client wants, in its order; `None`: all of the model, in the model's order.
    pub outputs: Option<Vec<Output>>,
    /// Whether outputs come as binary data where they do not say.
    pub binary_output: bool,
}

/// Where the tensors are.
#[derive(Debug)]
pub enum Inputs<'a> {
    /// A raw binary request: the whole body is the model's only input.
    Raw(&'a [u8]),
    /// Named tensors.
    Named(Vec<Input<'a>>),
}

/// One named tensor of a request.
#[derive(Debug)]
pub struct Input<'a> {
    /// Its name.
    pub name: String,
    /// Its datatype, as the client wrote it.
    pub datatype: String,
    /// Its shape, as the client wrote it.
    pub shape: Vec<u64>,
    /// Its elements.
    pub data: Data<'a>,
}

/// The elements of one tensor, not yet looked at.
#[derive(Debug)]
pub enum Data<'a> {
    /// A JSON value, known to be valid JSON.
    Json(&'a str),
    /// Little-endian bytes.
    Binary(&'a [u8]),
}

/// One output the client asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Binary or JSON; `None`: the request's default.
    pub binary: Option<bool>,
    /// How many of the largest elements are wanted as `value:index` instead of the tensor; 0: the tensor.
    pub classes: usize,
}

/// Reads the header `Inference-Header-Content-Length`: `None` where it is absent.
///
/// # Errors
/// When it is given more than once or is not a plain decimal number.
pub fn header_length<'h>(values: impl IntoIterator<Item = &'h [u8]>) -> Result<Option<u64>, BadRequest> {
    let mut values = values.into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    let value = value.trim_ascii();
    if values.next().is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(BadRequest::HeaderLength);
    }
    let text = std::str::from_utf8(value).map_err(|_| BadRequest::HeaderLength)?;
    // All digits and still no u64: it is larger than any body, which the caller says better.
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

/// Looks over a (decompressed) body. `header` is the JSON's length where the client gave it; 0 makes a raw request.
///
/// # Errors
/// [`BadRequest`] when the framing or the JSON is wrong, whatever the model.
pub fn parse(body: &[u8], header: Option<u64>) -> Result<Request<'_>, BadRequest> {
    if header == Some(0) {
        let inputs = Inputs::Raw(body);
        return Ok(Request { id: None, timeout: None, inputs, outputs: None, binary_output: true });
    }
    if body.is_empty() && header.is_none() {
        return Err(BadRequest::Empty);
    }
    let (json, binary) = match header {
        None => (body, &[][..]),
        Some(length) => usize::try_from(length)
            .ok()
            .and_then(|n| body.split_at_checked(n))
            .ok_or(BadRequest::HeaderLengthRange { length, body: body.len() })?,
    };
    let json = std::str::from_utf8(json).map_err(|e| BadRequest::Utf8(e.valid_up_to()))?;
    let top: Object<Top<'_>> = serde_json::from_str(json).map_err(|e| json_error(json, &e))?;
    top.0.finish(binary)
}

/// Reads the body of an index request, which may be empty: whether only models that are ready are wanted.
///
/// # Errors
/// [`BadRequest`] when it is not a JSON object or `ready` is not a boolean.
pub fn index(body: &[u8]) -> Result<bool, BadRequest> {
    let fields: IndexFields = small(body)?;
    let bad = |why| BadRequest::Parameter { name: "ready".to_owned(), why };
    Ok(fields.ready.map(Scalar::bool).transpose().map_err(bad)?.unwrap_or(false))
}

/// Reads the body of a load or unload request, which may be empty. A model comes from its directory as it is there, so
/// parameters that would override it are refused; others (Triton's `unload_dependents`) are accepted and change nothing. The
/// protocol has no other field than `parameters`: what this end does not know might have said not to do it.
///
/// # Errors
/// [`BadRequest`] when it is not a JSON object, has another field than `parameters`, or asks for an override.
pub fn control(body: &[u8]) -> Result<(), BadRequest> {
    let fields: ControlFields = small(body)?;
    if let Some(name) = fields.unknown {
        return Err(BadRequest::UnknownField(name));
    }
    match fields.parameters.and_then(|p| p.0.overriding) {
        Some(name) => Err(BadRequest::Parameter {
            name,
            why: "cannot be honoured: a model is loaded from its directory as it is there",
        }),
        None => Ok(()),
    }
}

/// Reads a JSON object; nothing at all counts as an empty one.
fn small<'a, T: Fields<'a>>(body: &'a [u8]) -> Result<T, BadRequest> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    let json = std::str::from_utf8(body).map_err(|e| BadRequest::Utf8(e.valid_up_to()))?;
    let object: Object<T> = serde_json::from_str(json).map_err(|e| json_error(json, &e))?;
    Ok(object.0)
}

/// Turns the parser's error into ours. Where a value is of the wrong type the parser says what it found, which may be a
/// string of the client's; what it expected are words of this file.
fn json_error(json: &str, e: &serde_json::Error) -> BadRequest {
    let text = e.to_string();
    let message = match (text.starts_with("invalid "), text.rsplit_once(", expected ")) {
        (true, Some((_, expected))) => format!("expected {expected}"),
        (true, None) => format!("a value of another type at line {} column {}", e.line(), e.column()),
        (false, _) => text,
    };
    let line = json.split_inclusive('\n').nth(e.line().saturating_sub(1)).unwrap_or_default().as_bytes();
    // The parser stops at the first character that cannot be, which for `nan` is the second.
    let near = line.get(e.column().saturating_sub(3)..(e.column() + 3).min(line.len())).unwrap_or_default();
    let near = near.to_ascii_lowercase();
    let is_syntax = e.classify() == serde_json::error::Category::Syntax;
    if is_syntax && near.windows(3).any(|w| w == b"nan" || w == b"inf") {
        BadRequest::NotANumber(message)
    } else {
        BadRequest::Json(message)
    }
}

// ---- the JSON, field by field -------------------------------------------------------------------------------------

/// A JSON object whose known fields `T` collects; anything else than an object is refused.
struct Object<T>(T);

/// Collects the fields of an object.
trait Fields<'de>: Default {
    /// What the object is, for the error when it is something else.
    const WHAT: &'static str;
    /// Takes or ignores the value of `key`.
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

impl<'de, T: Fields<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T>(PhantomData<T>);
        impl<'de, T: Fields<'de>> Visitor<'de> for V<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::WHAT)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<T>, A::Error> {
                let mut t = T::default();
                while let Some(Text(key)) = map.next_key()? {
                    t.field(&key, &mut map)?;
                }
                Ok(Object(t))
            }
        }
        d.deserialize_map(V(PhantomData))
    }
}

/// A JSON string.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, s: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(s)))
            }
            fn visit_str<E>(self, s: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(s.to_owned())))
            }
        }
        d.deserialize_str(V)
    }
}

/// A JSON array of at most `N` values.
struct Few<T, const N: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Few<T, N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for V<T, N> {
            type Value = Few<T, N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at most {N} values")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Few<T, N>, A::Error> {
                let mut few = Vec::new();
                while let Some(value) = seq.next_element()? {
                    if few.len() == N {
                        return Err(serde::de::Error::custom(format_args!(
                            "an array has more than {N} values"
                        )));
                    }
                    few.push(value);
                }
                Ok(Few(few))
            }
        }
        d.deserialize_seq(V(PhantomData))
    }
}

/// Any JSON value, as far as a parameter needs it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Scalar {
    Null,
    Bool(bool),
    Unsigned(u64),
    /// A negative or fractional number.
    Number,
    Text {
        empty: bool,
    },
    Nested,
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Scalar;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a parameter's value")
            }
            fn visit_unit<E>(self) -> Result<Scalar, E> {
                Ok(Scalar::Null)
            }
            fn visit_bool<E>(self, b: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(b))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Scalar, E> {
                Ok(Scalar::Unsigned(n))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Scalar, E> {
                Ok(u64::try_from(n).map_or(Scalar::Number, Scalar::Unsigned))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number)
            }
            fn visit_str<E>(self, s: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text { empty: s.is_empty() })
            }
            // The inner values are skipped without recursion.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Nested)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Nested)
            }
        }
        d.deserialize_any(V)
    }
}

impl Scalar {
    fn bool(self) -> Result<bool, &'static str> {
        if let Self::Bool(b) = self { Ok(b) } else { Err("must be true or false") }
    }
    fn unsigned(self) -> Result<u64, &'static str> {
        if let Self::Unsigned(n) = self { Ok(n) } else { Err("must be a whole number, 0 or more") }
    }
}

/// Takes a field that may come once.
fn once<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
    slot: &mut Option<T>,
    key: &str,
    map: &mut A,
) -> Result<(), A::Error> {
    if slot.replace(map.next_value()?).is_some() {
        return Err(serde::de::Error::custom(format_args!("{key:?} is given twice in one object")));
    }
    Ok(())
}

fn ignore<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(drop)
}

#[derive(Default)]
struct Top<'a> {
    id: Option<Text<'a>>,
    parameters: Option<Object<TopParameters>>,
    inputs: Option<Few<Object<InputFields<'a>>, MAX_TENSORS>>,
    outputs: Option<Few<Object<OutputFields<'a>>, MAX_TENSORS>>,
}

impl<'de> Fields<'de> for Top<'de> {
    const WHAT: &'static str = "an inference request: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => once(&mut self.id, key, map),
            "parameters" => once(&mut self.parameters, key, map),
            "inputs" => once(&mut self.inputs, key, map),
            "outputs" => once(&mut self.outputs, key, map),
            _ => ignore(map),
        }
    }
}

/// The parameters of a request that mean something here. Others are accepted and change nothing, as the protocol's
/// parameters extension has it.
#[derive(Default)]
struct TopParameters {
    timeout: Option<Scalar>,
    priority: Option<Scalar>,
    binary_data_output: Option<Scalar>,
    sequence_id: Option<Scalar>,
    sequence_start: Option<Scalar>,
    sequence_end: Option<Scalar>,
    reserved: Option<String>,
}

impl<'de> Fields<'de> for TopParameters {
    const WHAT: &'static str = "parameters: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "timeout" => once(&mut self.timeout, key, map),
            "priority" => once(&mut self.priority, key, map),
            "binary_data_output" => once(&mut self.binary_data_output, key, map),
            "sequence_id" => once(&mut self.sequence_id, key, map),
            "sequence_start" => once(&mut self.sequence_start, key, map),
            "sequence_end" => once(&mut self.sequence_end, key, map),
            _ => {
                if key.starts_with("triton_") {
                    self.reserved.get_or_insert_with(|| key.chars().take(48).collect());
                }
                ignore(map)
            }
        }
    }
}

impl TopParameters {
    /// (timeout, whether outputs are binary by default)
    fn finish(self) -> Result<(Option<Duration>, bool), BadRequest> {
        let bad = |name: &str| {
            let name = name.to_owned();
            move |why| BadRequest::Parameter { name, why }
        };
        if let Some(name) = self.reserved {
            return Err(BadRequest::Parameter { name, why: "is reserved: keys that begin with triton_ are" });
        }
        const STATELESS: &str = "cannot be honoured: models here are stateless, there are no sequences";
        if !matches!(
            self.sequence_id,
            None | Some(Scalar::Null | Scalar::Unsigned(0) | Scalar::Text { empty: true })
        ) {
            return Err(bad("sequence_id")(STATELESS));
        }
        for (name, value) in [("sequence_start", self.sequence_start), ("sequence_end", self.sequence_end)] {
            match value.filter(|v| *v != Scalar::Null).map(Scalar::bool).transpose() {
                Ok(None | Some(false)) => {}
                Ok(Some(true)) => return Err(bad(name)(STATELESS)),
                Err(why) => return Err(bad(name)(why)),
            }
        }
        // Read and ignored, as the protocol has it for models without priority levels.
        self.priority.map(Scalar::unsigned).transpose().map_err(bad("priority"))?;
        let timeout = self.timeout.map(Scalar::unsigned).transpose().map_err(bad("timeout"))?;
        let binary = self.binary_data_output.map(Scalar::bool).transpose();
        let binary = binary.map_err(bad("binary_data_output"))?.unwrap_or(false);
        Ok((timeout.filter(|&us| us > 0).map(Duration::from_micros), binary))
    }
}

/// The dimensions of a shape, or what is wrong with them; the error waits until the input's name is known.
struct Dims(Result<Vec<u64>, String>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Dims;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a shape: an array of dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let mut dims = Ok(Vec::new());
                let mut axis = 0_usize;
                while let Some(size) = seq.next_element::<Scalar>()? {
                    if let Ok(sizes) = &mut dims {
                        match size {
                            _ if axis == MAX_RANK => {
                                dims = Err(format!("has more than {MAX_RANK} dimensions"))
                            }
                            Scalar::Unsigned(n) => sizes.push(n),
                            _ => dims = Err(format!("has no whole number, 0 or more, as dimension {axis}")),
                        }
                    }
                    axis = axis.saturating_add(1);
                }
                Ok(Dims(dims))
            }
        }
        d.deserialize_seq(V)
    }
}

#[derive(Default)]
struct InputFields<'a> {
    name: Option<Text<'a>>,
    datatype: Option<Text<'a>>,
    shape: Option<Dims>,
    parameters: Option<Object<InputParameters>>,
    data: Option<&'a RawValue>,
}

impl<'de> Fields<'de> for InputFields<'de> {
    const WHAT: &'static str = "an input: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "name" => once(&mut self.name, key, map),
            "datatype" => once(&mut self.datatype, key, map),
            "shape" => once(&mut self.shape, key, map),
            "parameters" => once(&mut self.parameters, key, map),
            "data" => once(&mut self.data, key, map),
            _ => ignore(map),
        }
    }
}

#[derive(Default)]
struct InputParameters {
    binary_data_size: Option<Scalar>,
    shared_memory: Option<Scalar>,
}

impl<'de> Fields<'de> for InputParameters {
    const WHAT: &'static str = "parameters of an input: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "binary_data_size" => once(&mut self.binary_data_size, key, map),
            "shared_memory_region" => once(&mut self.shared_memory, key, map),
            _ => ignore(map),
        }
    }
}

const NO_SHARED_MEMORY: &str = "cannot be honoured: this server has no shared memory with its clients";

#[derive(Default)]
struct OutputFields<'a> {
    name: Option<Text<'a>>,
    parameters: Option<Object<OutputParameters>>,
}

impl<'de> Fields<'de> for OutputFields<'de> {
    const WHAT: &'static str = "an output: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "name" => once(&mut self.name, key, map),
            "parameters" => once(&mut self.parameters, key, map),
            _ => ignore(map),
        }
    }
}

#[derive(Default)]
struct OutputParameters {
    binary_data: Option<Scalar>,
    classification: Option<Scalar>,
    shared_memory: Option<Scalar>,
}

impl<'de> Fields<'de> for OutputParameters {
    const WHAT: &'static str = "parameters of an output: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "binary_data" => once(&mut self.binary_data, key, map),
            "classification" => once(&mut self.classification, key, map),
            "shared_memory_region" => once(&mut self.shared_memory, key, map),
            _ => ignore(map),
        }
    }
}

#[derive(Default)]
struct IndexFields {
    ready: Option<Scalar>,
}

impl<'de> Fields<'de> for IndexFields {
    const WHAT: &'static str = "an index request: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if key == "ready" { once(&mut self.ready, key, map) } else { ignore(map) }
    }
}

#[derive(Default)]
struct ControlFields {
    parameters: Option<Object<ControlParameters>>,
    /// The first field that the protocol does not have here.
    unknown: Option<String>,
}

impl<'de> Fields<'de> for ControlFields {
    const WHAT: &'static str = "a load or unload request: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if key == "parameters" {
            return once(&mut self.parameters, key, map);
        }
        self.unknown.get_or_insert_with(|| key.chars().take(48).collect());
        ignore(map)
    }
}

#[derive(Default)]
struct ControlParameters {
    /// The first parameter that would replace something of the directory.
    overriding: Option<String>,
}

impl<'de> Fields<'de> for ControlParameters {
    const WHAT: &'static str = "parameters: a JSON object";
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        if key == "config" || key.starts_with("file:") {
            self.overriding.get_or_insert_with(|| key.chars().take(48).collect());
        }
        ignore(map)
    }
}

impl<'a> Top<'a> {
    /// Checks what needs no model and cuts the binary part into tensors.
    fn finish(self, binary: &'a [u8]) -> Result<Request<'a>, BadRequest> {
        let (timeout, binary_output) = self.parameters.map_or(Ok((None, false)), |p| p.0.finish())?;
        let mut left = binary;
        let inputs = self.inputs.ok_or(BadRequest::Missing("inputs"))?.0;
        let inputs = inputs
            .into_iter()
            .enumerate()
            .map(|(i, Object(fields))| fields.finish(i, &mut left))
            .collect::<Result<_, _>>()?;
        if !left.is_empty() {
            return Err(BadRequest::Trailing(left.len()));
        }
        // An empty list asks for nothing in particular, as in Triton.
        let outputs = self.outputs.map(|o| o.0).filter(|o| !o.is_empty());
        let outputs = outputs
            .map(|list| list.into_iter().map(|Object(o)| o.finish()).collect::<Result<_, _>>())
            .transpose()?;
        let id = self.id.map(|Text(id)| id.into_owned());
        Ok(Request { id, timeout, inputs: Inputs::Named(inputs), outputs, binary_output })
    }
}

impl<'a> InputFields<'a> {
    /// Makes the `i`-th input and takes its binary data off the front of `left`.
    fn finish(self, i: usize, left: &mut &'a [u8]) -> Result<Input<'a>, BadRequest> {
        let Some(Text(name)) = self.name else {
            return Err(BadRequest::InputMissing { input: format!("number {i}"), what: "name" });
        };
        let input = || quote(&name);
        let missing = |what| BadRequest::InputMissing { input: input(), what };
        let datatype = self.datatype.ok_or_else(|| missing("datatype"))?.0.into_owned();
        let shape = self.shape.ok_or_else(|| missing("shape"))?.0;
        let shape = shape.map_err(|why| BadRequest::Shape { input: input(), why })?;
        let parameters = self.parameters.map(|p| p.0).unwrap_or_default();
        let parameter = |name, why| BadRequest::InputParameter { input: input(), name, why };
        if parameters.shared_memory.is_some() {
            return Err(parameter("shared_memory_region", NO_SHARED_MEMORY));
        }
        let size = parameters.binary_data_size.map(Scalar::unsigned).transpose();
        let size = size.map_err(|why| parameter("binary_data_size", why))?;
        let data = match (self.data, size) {
            (Some(_), Some(_)) => return Err(BadRequest::TwoSources { input: input() }),
            (None, None) => return Err(missing("data")),
            (Some(json), None) => Data::Json(json.get()),
            (None, Some(size)) => {
                let split = usize::try_from(size).ok().and_then(|n| left.split_at_checked(n));
                let (mine, rest) = split.ok_or_else(|| BadRequest::BinaryShort {
                    input: input(),
                    size,
                    left: left.len(),
                })?;
                *left = rest;
                Data::Binary(mine)
            }
        };
        Ok(Input { name: name.into_owned(), datatype, shape, data })
    }
}

impl OutputFields<'_> {
    fn finish(self) -> Result<Output, BadRequest> {
        let Some(Text(name)) = self.name else { return Err(BadRequest::Missing("name of an output")) };
        let p = self.parameters.map(|p| p.0).unwrap_or_default();
        let bad = |parameter, why| BadRequest::OutputParameter { output: quote(&name), name: parameter, why };
        if p.shared_memory.is_some() {
            return Err(bad("shared_memory_region", NO_SHARED_MEMORY));
        }
        let binary = p.binary_data.map(Scalar::bool).transpose().map_err(|why| bad("binary_data", why))?;
        let classes = p.classification.map(Scalar::unsigned).transpose();
        let classes = classes.map_err(|why| bad("classification", why))?.unwrap_or(0);
        // More classes than elements gives all elements, so saturating is exact.
        let classes = usize::try_from(classes).unwrap_or(usize::MAX);
        Ok(Output { name: name.into_owned(), binary, classes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> BadRequest {
        parse(body.as_bytes(), None).expect_err(body)
    }

    fn input(extra: &str) -> String {
        format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":[2]{extra}}}]}}"#)
    }

    #[test]
    fn the_header_length_is_a_plain_number_given_once() {
        assert_eq!(header_length([]), Ok(None));
        assert_eq!(header_length([&b"120"[..]]), Ok(Some(120)));
        assert_eq!(header_length([&b" 0 "[..]]), Ok(Some(0)));
        assert_eq!(header_length([&b"99999999999999999999999"[..]]), Ok(Some(u64::MAX)));
        for bad in [&b""[..], b" ", b"-1", b"+1", b"1.0", b"0x10", b"12abc", b"\xff", "\u{0661}".as_bytes()] {
            assert_eq!(header_length([bad]), Err(BadRequest::HeaderLength), "{bad:?}");
        }
        assert_eq!(header_length([&b"3"[..], b"3"]), Err(BadRequest::HeaderLength));
    }

    #[test]
    fn the_binary_part_begins_where_the_header_says_and_belongs_to_the_inputs_in_order() {
        let json = r#"{"id":"7","parameters":{"binary_data_output":true,"timeout":1500,"mine":{"a":[1]}},
            "inputs":[{"name":"a","datatype":"UINT8","shape":[1],"parameters":{"binary_data_size":1}},
                      {"name":"b","datatype":"UINT8","shape":[2],"data":[1,2]},
                      {"name":"c","datatype":"UINT8","shape":[2],"parameters":{"binary_data_size":2}}],
            "outputs":[{"name":"y","parameters":{"binary_data":false,"classification":3}},{"name":"z"}],"model_name":"m"}"#;
        let mut body = json.as_bytes().to_vec();
        body.extend([10, 20, 30]);
        let r = parse(&body, Some(json.len() as u64)).unwrap();
        assert_eq!((r.id.as_deref(), r.timeout), (Some("7"), Some(Duration::from_micros(1500))));
        assert!(r.binary_output);
        let Inputs::Named(inputs) = r.inputs else { panic!("named") };
        assert!(matches!(inputs[0].data, Data::Binary(&[10])));
        assert!(matches!(inputs[1].data, Data::Json("[1,2]")));
        assert!(matches!(inputs[2].data, Data::Binary(&[20, 30])));
        let y = Output { name: "y".into(), binary: Some(false), classes: 3 };
        let z = Output { name: "z".into(), binary: None, classes: 0 };
        assert_eq!(r.outputs.unwrap(), [y, z]);
    }

    #[test]
    fn a_header_length_of_zero_makes_the_body_the_tensor() {
        let r = parse(b"\x01\x02", Some(0)).unwrap();
        assert!(matches!(r.inputs, Inputs::Raw(&[1, 2])) && r.binary_output);
        assert!(parse(b"", Some(0)).is_ok(), "the size is checked against the model");
    }

    #[test]
    fn the_header_length_cannot_reach_past_the_body() {
        let body = input(r#","data":[1,2]"#);
        let n = body.len() as u64;
        assert!(parse(body.as_bytes(), Some(n)).is_ok());
        for length in [n + 1, u64::from(u32::MAX), u64::MAX] {
            let got = parse(body.as_bytes(), Some(length)).unwrap_err();
            assert_eq!(got, BadRequest::HeaderLengthRange { length, body: body.len() });
        }
        assert!(matches!(parse(body.as_bytes(), Some(n - 1)), Err(BadRequest::Json(_))));
        assert_eq!(parse(b"", None).unwrap_err(), BadRequest::Empty);
    }

    #[test]
    fn binary_data_must_fit_the_body_exactly() {
        let json = input(r#","parameters":{"binary_data_size":8}"#);
        let with = |extra: usize| {
            let mut body = json.clone().into_bytes();
            body.resize(body.len() + extra, 0);
            parse(&body, Some(json.len() as u64)).err()
        };
        assert_eq!(with(8), None);
        assert_eq!(with(9), Some(BadRequest::Trailing(1)));
        assert!(matches!(with(7), Some(BadRequest::BinaryShort { size: 8, left: 7, .. })));
        let huge = input(r#","parameters":{"binary_data_size":18446744073709551615}"#);
        assert!(matches!(refused(&huge), BadRequest::BinaryShort { size: u64::MAX, .. }));
        // Without the header everything is JSON, and no binary data is left for the tensor.
        assert!(matches!(refused(&json), BadRequest::BinaryShort { left: 0, .. }));
        for bad in ["-8", "8.0", "\"8\"", "null", "true", "[8]", "18446744073709551616"] {
            let got = refused(&input(&format!(r#","parameters":{{"binary_data_size":{bad}}}"#)));
            assert!(
                matches!(got, BadRequest::InputParameter { name: "binary_data_size", .. }),
                "{bad}: {got}"
            );
        }
        assert!(matches!(
            refused(&input(r#","data":[1,2],"parameters":{"binary_data_size":8}"#)),
            BadRequest::TwoSources { .. }
        ));
    }

    #[test]
    fn json_that_is_not_a_request_is_refused_with_the_place() {
        for bad in [
            "null",
            "[]",
            "5",
            "\"x\"",
            "true",
            "{",
            "{}x",
            "{\"inputs\":}",
            "{\"inputs\":{}}",
            "{\"inputs\":[[]]}",
            "{\"inputs\":[5]}",
            "{\"inputs\":[],}",
            "{\"inputs\":[{\"name\":5}]}",
            "{\"id\":7,\"inputs\":[]}",
            "{\"inputs\":[],\"inputs\":[]}",
            "{\"inputs\":[],\"outputs\":[3]}",
            "{\"inputs\":[],\"parameters\":[]}",
            "{\"inputs\":[{\"name\":\"x\",\"name\":\"x\"}]}",
            "{\"inputs\":[{\"shape\":4}]}",
            "{\"inputs\":[{\"data\":[01]}]}",
            "{\"inputs\":[{\"data\":[1}]",
            "{\"inputs\":[{\"data\":[1,2}]}",
            "{\"inputs\":[\"\\ud800\"]}",
            "\u{feff}{}",
            "{\"inputs\":[{\"data\":[1.]}]}",
            "{\"inputs\":[{\"data\":[+1]}]}",
            "{\"inputs\":[{\"data\":[1,]}]}",
        ] {
            assert!(matches!(refused(bad), BadRequest::Json(_)), "{bad}: {}", refused(bad));
        }
        assert_eq!(refused("{}"), BadRequest::Missing("inputs"));
        assert!(matches!(parse(b"{\"id\":\"\xff\"}", None), Err(BadRequest::Utf8(7))));
    }

    #[test]
    fn not_a_number_is_told_apart_from_other_bad_json() {
        for token in ["NaN", "Infinity", "-Infinity", "nan", "inf"] {
            for list in [format!("[1.0,\n{token}]"), format!("[{token}, 1]"), format!("[-1, {token}]")] {
                let got = refused(&input(&format!(",\"data\":{list}")));
                assert!(matches!(got, BadRequest::NotANumber(_)), "{list}: {got}");
            }
        }
    }

    #[test]
    fn a_number_outside_f64_is_left_to_the_tensor_parser() {
        let body = input(",\"data\":[1e400,0]");
        assert!(parse(body.as_bytes(), None).is_ok(), "the place is named later");
    }

    #[test]
    fn what_an_input_lacks_is_named() {
        let lacking = [
            (r#"{"inputs":[{}]}"#, "input number 0: \"name\" is missing"),
            (r#"{"inputs":[{"name":"x"}]}"#, "input \"x\": \"datatype\" is missing"),
            (r#"{"inputs":[{"name":"x","datatype":"FP32"}]}"#, "input \"x\": \"shape\" is missing"),
            (
                r#"{"inputs":[{"name":"x","datatype":"FP32","shape":[1]}]}"#,
                "input \"x\": \"data\" is missing",
            ),
            (r#"{"inputs":[],"outputs":[{}]}"#, "the request has no \"name of an output\""),
        ];
        for (body, want) in lacking {
            assert_eq!(refused(body).to_string(), want);
        }
    }

    #[test]
    fn dimensions_are_whole_numbers() {
        for bad in
            ["[-5]", "[2,1.5]", "[null]", "[\"2\"]", "[[2]]", "[1e2]", "[true]", "[18446744073709551616]"]
        {
            let got = refused(&format!(
                r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":{bad},"data":[1]}}]}}"#
            ));
            assert!(matches!(got, BadRequest::Shape { .. }), "{bad}: {got}");
        }
        let many = format!("[{}1]", "1,".repeat(100_000));
        let got =
            refused(&format!(r#"{{"inputs":[{{"name":"x","datatype":"FP32","shape":{many},"data":[1]}}]}}"#));
        assert!(matches!(got, BadRequest::Shape { .. }));
    }

    #[test]
    fn a_list_without_end_is_cut_short() {
        let many = format!(r#"{{"inputs":[{}{{}}]}}"#, "{},".repeat(100_000));
        assert!(matches!(refused(&many), BadRequest::Json(m) if m.contains("more than 16")));
        let many = format!(r#"{{"inputs":[],"outputs":[{}{{}}]}}"#, "{},".repeat(16));
        assert!(matches!(refused(&many), BadRequest::Json(m) if m.contains("more than 16")));
    }

    #[test]
    fn deep_nesting_costs_no_stack() {
        let deep = |open: &str, close: &str| format!("{}{}", open.repeat(500_000), close.repeat(500_000));
        for nested in [deep("[", "]"), format!("{}1{}", "{\"a\":".repeat(300_000), "}".repeat(300_000))] {
            // Where nobody looks, depth does not matter; everywhere else it is the wrong type.
            let body = format!(r#"{{"unknown":{nested},"inputs":[],"parameters":{{"mine":{nested}}}}}"#);
            assert!(parse(body.as_bytes(), None).is_ok());
            for body in [
                nested.clone(),
                format!(r#"{{"id":{nested}}}"#),
                format!(r#"{{"inputs":{nested}}}"#),
                format!(r#"{{"inputs":[{{"shape":{nested}}}]}}"#),
                format!(r#"{{"inputs":[],"parameters":{{"timeout":{nested}}}}}"#),
                format!(r#"{{"inputs":[],"outputs":[{{"name":{nested}}}]}}"#),
            ] {
                parse(body.as_bytes(), None).expect_err("the wrong type");
            }
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let with = |p: &str| parse(format!(r#"{{"inputs":[],"parameters":{{{p}}}}}"#).as_bytes(), None).err();
        for good in [
            "",
            "\"priority\":3",
            "\"timeout\":0",
            "\"sequence_id\":0",
            "\"sequence_id\":\"\"",
            "\"sequence_start\":false",
            "\"anything\":[{}]",
            "\"headers\":null",
        ] {
            assert_eq!(with(good), None, "{good}");
        }
        for bad in [
            "\"priority\":-1",
            "\"timeout\":-1",
            "\"timeout\":1.5",
            "\"timeout\":\"1\"",
            "\"sequence_id\":3",
            "\"sequence_id\":\"s\"",
            "\"sequence_start\":true",
            "\"sequence_end\":true",
            "\"sequence_end\":1",
            "\"binary_data_output\":1",
            "\"binary_data_output\":\"true\"",
            "\"triton_x\":1",
            "\"timeout\":99999999999999999999",
        ] {
            assert!(matches!(with(bad), Some(BadRequest::Parameter { .. })), "{bad}");
        }
        assert!(matches!(with("\"timeout\":1,\"timeout\":2"), Some(BadRequest::Json(_))));
        let shm = r#","parameters":{"shared_memory_region":"r","shared_memory_byte_size":8}"#;
        assert!(refused(&input(shm)).to_string().contains("shared memory"));
        let out =
            |p: &str| refused(&format!(r#"{{"inputs":[],"outputs":[{{"name":"y","parameters":{{{p}}}}}]}}"#));
        for bad in [
            "\"binary_data\":1",
            "\"classification\":-1",
            "\"classification\":\"2\"",
            "\"shared_memory_region\":\"r\"",
        ] {
            assert!(matches!(out(bad), BadRequest::OutputParameter { .. }), "{bad}");
        }
    }

    #[test]
    fn an_index_request_may_ask_for_ready_models_only() {
        for (body, want) in [
            ("", false),
            (" \n", false),
            ("{}", false),
            ("{\"ready\":true}", true),
            ("{\"ready\":false,\"x\":[]}", false),
        ] {
            assert_eq!(index(body.as_bytes()), Ok(want), "{body}");
        }
        let deep = format!("{{\"ready\":{}true{}}}", "[".repeat(250_000), "]".repeat(250_000));
        for bad in [
            "{\"ready\":1}",
            "{\"ready\":\"true\"}",
            "[]",
            "true",
            "{",
            "{\"ready\":true,\"ready\":true}",
            &deep,
        ] {
            assert!(index(bad.as_bytes()).is_err(), "{}", &bad[..bad.len().min(40)]);
        }
        assert!(index(b"\xff").is_err());
    }

    #[test]
    fn a_load_request_cannot_replace_files() {
        for good in [
            "",
            "{}",
            "{\"parameters\":{}}",
            "{\"parameters\":{\"unload_dependents\":true,\"x\":1}}",
            "{\"parameters\":{\"unload_dependents\":false}}",
        ] {
            assert_eq!(control(good.as_bytes()), Ok(()), "{good}");
        }
        let long = format!("{{\"parameters\":{{\"file:{}\":\"YQ==\"}}}}", "A".repeat(100_000));
        for bad in [
            "{\"parameters\":{\"config\":\"{}\"}}",
            "{\"parameters\":{\"file:1/model.onnx\":\"\"}}",
            "{\"y\":[[]]}",
            "{\"unload_dependents\":true}",
            "{\"parameters\":{},\"dry_run\":true}",
            &format!("{{\"{}\":1}}", "z".repeat(100_000)),
            "[]",
            "x",
            &long,
        ] {
            let got = control(bad.as_bytes()).unwrap_err().to_string();
            assert!(got.len() < 200, "{got}");
        }
    }

    #[test]
    fn an_error_repeats_little_of_the_request() {
        let long = "y".repeat(1 << 20);
        for body in [
            format!("{{\"inputs\":\"{long}\"}}"),
            format!("\"{long}\""),
            format!("{{\"inputs\":[{{\"name\":\"{long}\"}}]}}"),
            format!("{{\"inputs\":[],\"parameters\":{{\"triton_{long}\":1}}}}"),
        ] {
            assert!(refused(&body).to_string().len() < 400);
        }
    }

    #[test]
    fn a_string_in_the_wrong_place_is_not_repeated() {
        for body in [
            r#"{"inputs":"my secret, expected"}"#,
            r#""my secret, expected x""#,
            r#"{"inputs":["my secret"]}"#,
            r#"{"inputs":[{"name":"x","shape":"my secret","datatype":"FP32"}]}"#,
            r#"{"inputs":[{"name":"x","shape":["my secret"],"datatype":"FP32"}]}"#,
            r#"{"inputs":[],"parameters":"my secret"}"#,
            r#"{"inputs":[],"outputs":{"my secret":1}}"#,
        ] {
            let told = refused(body).to_string();
            assert!(!told.contains("secret"), "{told}");
        }
        let told = refused("{\"inputs\":\n \"my secret\"}").to_string();
        assert!(told.contains("expected ") && told.contains("line 2"), "{told}");
    }
}
