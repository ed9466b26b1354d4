//! What a client of the protocol can do wrong, and the sentence it is told.

use inferd_model::DType;

/// The longest piece of a client's own text an error repeats.
const ECHO: usize = 48;

/// A mistake in a request. Each names the thing, what it was and what it should have been; none repeats more of the
/// request than a short name or a number.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BadRequest {
    #[error("Inference-Header-Content-Length is not a decimal number of bytes")]
    HeaderLength,
    #[error("Inference-Header-Content-Length is {length}, but the body has {body} bytes")]
    HeaderLengthRange { length: u64, body: usize },
    #[error(
        "the body is empty; an inference request is a JSON object, then the binary tensors if there are any"
    )]
    Empty,
    #[error("the request's JSON is not UTF-8: byte {0} starts no character")]
    Utf8(usize),
    #[error("the request's JSON is not valid: {0}")]
    Json(String),
    #[error(
        "the request's JSON is not valid: {0}; JSON has no NaN and no Infinity, send such a tensor as binary data"
    )]
    NotANumber(String),
    #[error("the request has no {0:?}")]
    Missing(&'static str),
    #[error("the field {0:?} is not known here; this request has \"parameters\" and nothing else")]
    UnknownField(String),
    #[error("parameter {name:?} {why}")]
    Parameter { name: String, why: &'static str },
    #[error("input {input}: {what:?} is missing")]
    InputMissing { input: String, what: &'static str },
    #[error("input {input}: shape {why}")]
    Shape { input: String, why: String },
    #[error(
        "input {input}: give the tensor once, as \"data\" or as binary data with the parameter \"binary_data_size\""
    )]
    TwoSources { input: String },
    #[error("input {input}: parameter {name:?} {why}")]
    InputParameter { input: String, name: &'static str, why: &'static str },
    #[error("output {output}: parameter {name:?} {why}")]
    OutputParameter { output: String, name: &'static str, why: &'static str },
    #[error(
        "input {input}: binary_data_size is {size}, but only {left} bytes of binary data are left; is \
         Inference-Header-Content-Length the length of the JSON?"
    )]
    BinaryShort { input: String, size: u64, left: usize },
    #[error(
        "{0} bytes follow the last binary tensor; binary_data_size of the inputs does not account for them"
    )]
    Trailing(usize),
    #[error("a raw binary request carries one tensor, but the model has {0} inputs; send a JSON header")]
    RawInputs(usize),
    #[error("the model has no input {given}; it has {known}")]
    UnknownInput { given: String, known: String },
    #[error("the model has no output {given}; it has {known}")]
    UnknownOutput { given: String, known: String },
    #[error("input {0} is given twice")]
    DuplicateInput(String),
    #[error("output {0} is asked for twice")]
    DuplicateOutput(String),
    #[error("input {0} is missing")]
    InputAbsent(String),
    #[error("input {input}: datatype is {given}, the model takes {want}")]
    Datatype { input: String, given: String, want: DType },
    #[error("input {input}: shape is {given}, the model takes {want}")]
    ShapeMismatch { input: String, given: String, want: String },
    #[error("input {input}: {given} bytes of binary data, shape and datatype make {want}")]
    BinarySize { input: String, given: usize, want: usize },
    #[error("input {input}: {dtype} has no JSON form; send it as binary data")]
    BinaryOnly { input: String, dtype: DType },
    #[error("input {input}: data is not an array")]
    NotAnArray { input: String },
    #[error("input {input}: data has {given} elements, the shape makes {want}")]
    ElementCount { input: String, given: usize, want: usize },
    #[error("input {input}: data has more than the {want} elements of its shape")]
    TooManyElements { input: String, want: usize },
    #[error("input {input}: data is neither flat nor nested as its shape {want}")]
    Nesting { input: String, want: String },
    #[error("input {input}: element {at} is {why}")]
    Element { input: String, at: String, why: String },
    #[error(
        "input {input}: element {at} is not a finite number; this input is a measurement in physical units"
    )]
    NotFinite { input: String, at: String },
    #[error(
        "{quantity} value out of range: {value} at element {at} of input {input}, at most {limit} {unit}"
    )]
    OutOfRange { quantity: String, value: f32, at: String, input: String, limit: f64, unit: String },
    #[error(
        "output {output} is {dtype}, which has no JSON form; ask for it with the parameter \"binary_data\": true"
    )]
    OutputBinaryOnly { output: String, dtype: DType },
    #[error(
        "output {output} holds a value that is not a finite number at element {at}, which JSON cannot carry; ask for \
         it with the parameter \"binary_data\": true"
    )]
    OutputNotFinite { output: String, at: String },
    #[error("output {output}: classification of {dtype} is not possible")]
    NotClassifiable { output: String, dtype: DType },
}

/// A client's text, short and printable, for an error message.
#[must_use]
pub fn quote(text: &str) -> String {
    if text.chars().count() <= ECHO {
        format!("{text:?}")
    } else {
        let head: String = text.chars().take(ECHO).collect();
        format!("{head:?}...")
    }
}

/// The known names, for an error message.
pub fn names<'a>(specs: impl Iterator<Item = &'a str>) -> String {
    specs.map(quote).collect::<Vec<_>>().join(", ")
}

/// The place of the flat index `i` in a tensor: `[0, 13, 6]`.
#[must_use]
pub fn place(shape: &[u32], i: usize) -> String {
    let mut rest = i;
    let mut at: Vec<usize> = Vec::with_capacity(shape.len());
    for &size in shape.iter().rev() {
        let size = size as usize;
        at.push(rest % size);
        rest /= size;
    }
    at.reverse();
    format!("{at:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_cut_in_an_error() {
        assert_eq!(quote("x\n"), "\"x\\n\"");
        assert!(quote(&"y".repeat(1 << 20)).len() < 64);
    }

    #[test]
    fn a_place_is_told_by_dimension() {
        assert_eq!(place(&[1, 100, 9], 13 * 9 + 6), "[0, 13, 6]");
        assert_eq!(place(&[], 0), "[]");
    }
}
