//! A form: a JSON object of a few optional fields, read as pydantic's lax mode reads it.
//!
//! Unknown keys are ignored, of duplicate keys the last wins, an empty body is an empty form. A number may be written as a
//! string and a string as nothing else. What is wrong is told in FastAPI's words, without the value. No value is kept that
//! is not a number, a truth or a text of at most [`LONGEST`] bytes: a hostile body costs a walk and nothing else.

use crate::window::{Key, Step, WindowError, detail, mark_non_finite, syntax, text_of};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The longest text that is kept; a longer one is none that anything is called.
pub const LONGEST: usize = 64;

/// What stands in a field.
#[derive(Clone, Debug, PartialEq)]
enum Scalar {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// A list, an object, a long text.
    Other,
}

/// The fields that were found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Form {
    found: Vec<(&'static str, Scalar)>,
}

/// Why a form is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FormError {
    /// It is no JSON object.
    #[error(transparent)]
    Body(#[from] WindowError),
    /// A field holds what it may not.
    #[error("{field}: {msg}")]
    Field {
        /// Its name.
        field: &'static str,
        /// The error's name in pydantic's catalogue.
        kind: &'static str,
        /// What may be there.
        msg: String,
    },
}

impl FormError {
    /// A field that may not hold what it holds.
    #[must_use]
    pub fn field(field: &'static str, kind: &'static str, msg: impl Into<String>) -> Self {
        Self::Field { field, kind, msg: msg.into() }
    }

    /// `{"detail":[{"type","loc","msg"}]}` as FastAPI writes it, without the echo of the input.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        match self {
            Self::Body(e) => e.to_json(),
            Self::Field { field, kind, msg } => {
                detail(kind, vec![Step::Key("body"), Step::Key(field)], msg.clone(), None)
            }
        }
    }
}

impl Form {
    /// Reads the fields of these names.
    ///
    /// # Errors
    /// [`FormError::Body`] when the body is not empty and no JSON object.
    pub fn read(body: &[u8], names: &'static [&'static str]) -> Result<Self, FormError> {
        let text = text_of(body)?;
        if text.bytes().all(|b| b.is_ascii_whitespace()) {
            return Ok(Self::default());
        }
        let parse = |text: &str| {
            let mut de = serde_json::Deserializer::from_str(text);
            let form = Object(names).deserialize(&mut de)?;
            de.end().map(|()| form)
        };
        let form = parse(text).or_else(|e| {
            // NaN and its like are values, which the field they stand in is asked about.
            let marked = mark_non_finite(text).filter(|_| e.is_syntax());
            marked.and_then(|marked| parse(&marked).ok()).ok_or_else(|| syntax(text, &e))
        })?;
        form.ok_or(FormError::Body(WindowError::NotAnObject))
    }

    /// Whether the field is there, and not null.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.get(field).is_some_and(|v| *v != Scalar::Null)
    }

    fn get(&self, field: &str) -> Option<&Scalar> {
        self.found.iter().rev().find(|(name, _)| *name == field).map(|(_, v)| v)
    }

    /// A whole number from `least` to `most`; `None` when it is not there.
    ///
    /// # Errors
    /// [`FormError::Field`] when it is something else, null included.
    pub fn whole(&self, field: &'static str, least: i64, most: i64) -> Result<Option<i64>, FormError> {
        let refused = |kind, msg: &str| Err(FormError::field(field, kind, msg));
        let value = match self.get(field) {
            None => return Ok(None),
            Some(Scalar::Number(v)) => *v,
            Some(Scalar::Text(text)) => match text.trim().parse::<i64>() {
                #[allow(clippy::cast_precision_loss)] // what is not exact is out of every range there is
                Ok(v) => v as f64,
                Err(_) => {
                    let msg = "Input should be a valid integer, unable to parse string as an integer";
                    return refused("int_parsing", msg);
                }
            },
            Some(_) => return refused("int_type", "Input should be a valid integer"),
        };
        if value.fract() != 0.0 {
            let msg = "Input should be a valid integer, got a number with a fractional part";
            return refused("int_from_float", msg);
        }
        #[allow(clippy::cast_precision_loss)] // the ranges of forms are far below 2^53
        let (low, high) = (least as f64, most as f64);
        if value < low {
            let msg = format!("Input should be greater than or equal to {least}");
            return Err(FormError::field(field, "greater_than_equal", msg));
        }
        if value > high {
            let msg = format!("Input should be less than or equal to {most}");
            return Err(FormError::field(field, "less_than_equal", msg));
        }
        #[allow(clippy::cast_possible_truncation)] // whole, and within the range
        Ok(Some(value as i64))
    }

    /// A finite number, or null; `None` when it is not there.
    ///
    /// # Errors
    /// [`FormError::Field`] when it is something else.
    pub fn number_or_null(&self, field: &'static str) -> Result<Option<Option<f64>>, FormError> {
        let value = match self.get(field) {
            None => return Ok(None),
            Some(Scalar::Null) => return Ok(Some(None)),
            Some(Scalar::Number(v)) => *v,
            Some(Scalar::Text(text)) => text.trim().parse().map_err(|_| {
                let msg = "Input should be a valid number, unable to parse string as a number";
                FormError::field(field, "float_parsing", msg)
            })?,
            Some(_) => return Err(FormError::field(field, "float_type", "Input should be a valid number")),
        };
        if value.is_finite() {
            Ok(Some(Some(value)))
        } else {
            Err(FormError::field(field, "finite_number", "Input should be a finite number"))
        }
    }

    /// Yes or no, in any way pydantic takes it.
    ///
    /// # Errors
    /// [`FormError::Field`] when it is something else, null included.
    pub fn truth(&self, field: &'static str) -> Result<Option<bool>, FormError> {
        let word = match self.get(field) {
            None => return Ok(None),
            Some(Scalar::Bool(b)) => return Ok(Some(*b)),
            Some(Scalar::Number(v)) => v.to_string(),
            Some(Scalar::Text(text)) => text.trim().to_ascii_lowercase(),
            Some(Scalar::Null | Scalar::Other) => String::new(),
        };
        match word.as_str() {
            "1" | "true" | "t" | "yes" | "y" | "on" => Ok(Some(true)),
            "0" | "false" | "f" | "no" | "n" | "off" => Ok(Some(false)),
            _ => Err(FormError::field(
                field,
                "bool_parsing",
                "Input should be a valid boolean, unable to interpret input",
            )),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// [`FormError::Field`] when it is something else, null included, or longer than [`LONGEST`].
    pub fn text(&self, field: &'static str) -> Result<Option<&str>, FormError> {
        match self.get(field) {
            None => Ok(None),
            Some(Scalar::Text(text)) => Ok(Some(text)),
            Some(_) => {
                let msg = format!("Input should be a valid string of at most {LONGEST} characters");
                Err(FormError::field(field, "string_type", msg))
            }
        }
    }
}

/// Whether one of the keys of a body's object is one of these: where they are looked for when the body need not be JSON.
/// The first that is found, in the order of the body.
pub(crate) fn first_key<'k>(body: &[u8], keys: &[&'k str]) -> Option<&'k str> {
    let (mut at, mut depth) = (0usize, 0u32);
    while let Some(&b) = body.get(at) {
        match b {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => {
                let from = at + 1;
                at = from;
                while body.get(at).is_some_and(|&b| b != b'"') {
                    at += if body[at] == b'\\' { 2 } else { 1 };
                }
                let word = body.get(from..at)?;
                let colon = body[at..].iter().skip(1).find(|b| !b.is_ascii_whitespace()) == Some(&b':');
                if depth == 1
                    && colon
                    && let Some(key) = keys.iter().find(|k| k.as_bytes() == word)
                {
                    return Some(key);
                }
            }
            _ => {}
        }
        at += 1;
    }
    None
}

/// The whole body; nothing when it is no object.
struct Object(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Object {
    type Value = Option<Form>;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object {
    type Value = Option<Form>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found: Vec<(&'static str, Scalar)> = Vec::new();
        while let Some(key) =
            map.next_key_seed(Key(|key: &str| self.0.iter().find(|name| **name == key).copied()))?
        {
            let value = map.next_value_seed(Value)?;
            if let Some(key) = key {
                found.retain(|(k, _)| *k != key);
                found.push((key, value));
            }
        }
        Ok(Some(Form { found }))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
    /// `null` is FastAPI's body that is not there.
    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Some(Form::default()))
    }
    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }
}

struct Value;

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Scalar;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Scalar;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
        Ok(Scalar::Null)
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<Scalar, E> {
        Ok(Scalar::Bool(v))
    }
    #[allow(clippy::cast_precision_loss)] // no field of a form needs more
    fn visit_i64<E: Error>(self, v: i64) -> Result<Scalar, E> {
        Ok(Scalar::Number(v as f64))
    }
    #[allow(clippy::cast_precision_loss)]
    fn visit_u64<E: Error>(self, v: u64) -> Result<Scalar, E> {
        Ok(Scalar::Number(v as f64))
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Scalar, E> {
        Ok(Scalar::Number(v))
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Scalar, E> {
        Ok(if v.len() <= LONGEST { Scalar::Text(v.to_owned()) } else { Scalar::Other })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Scalar, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &[&str] = &["fps", "duration", "preprocess", "mode", "window"];

    fn read(body: &str) -> Form {
        Form::read(body.as_bytes(), NAMES).unwrap()
    }

    fn kind<T: fmt::Debug>(of: Result<T, FormError>) -> &'static str {
        match of.unwrap_err() {
            FormError::Field { kind, .. } => kind,
            FormError::Body(e) => e.pydantic_type(),
        }
    }

    #[test]
    fn a_form_may_be_empty_and_have_more_than_is_asked_for() {
        for body in ["", " \n", "null", "{}", r#"{"other":[1,{"fps":3}]}"#] {
            assert_eq!(read(body), Form::default(), "{body}");
        }
        assert_eq!(read(r#"{"fps":1,"fps":"30"}"#).whole("fps", 1, 120), Ok(Some(30)), "the last wins");
    }

    #[test]
    fn what_a_field_holds_is_read_as_pydantic_does_and_refused_in_its_words() {
        let fps = |v: &str| read(&format!(r#"{{"fps":{v}}}"#)).whole("fps", 1, 120);
        assert_eq!((fps("30"), fps("30.0"), fps("\" 12 \"")), (Ok(Some(30)), Ok(Some(30)), Ok(Some(12))));
        for (value, kind_of) in [
            ("12.5", "int_from_float"),
            ("0", "greater_than_equal"),
            ("-1", "greater_than_equal"),
            ("121", "less_than_equal"),
            ("1e300", "less_than_equal"),
            ("\"abc\"", "int_parsing"),
            ("NaN", "int_parsing"),
            ("null", "int_type"),
            ("[1]", "int_type"),
            ("true", "int_type"),
        ] {
            assert_eq!(kind(fps(value)), kind_of, "{value}");
        }
        let duration = |v: &str| read(&format!(r#"{{"duration":{v}}}"#)).number_or_null("duration");
        assert_eq!((duration("null"), duration("\"2.5\"")), (Ok(Some(None)), Ok(Some(Some(2.5)))));
        assert_eq!(kind(duration("\"inf\"")), "finite_number");
        let preprocess = |v: &str| read(&format!(r#"{{"preprocess":{v}}}"#)).truth("preprocess");
        assert_eq!((preprocess("0"), preprocess("\"Yes\"")), (Ok(Some(false)), Ok(Some(true))));
        assert_eq!(kind(preprocess("2")), "bool_parsing");
        assert_eq!(kind(read(r#"{"mode":null}"#).text("mode")), "string_type");
        let long = format!(r#"{{"mode":"{}"}}"#, "x".repeat(65));
        assert_eq!(kind(read(&long).text("mode")), "string_type");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (body, kind_of) in
            [("[]", "model_attributes_type"), ("3", "model_attributes_type"), ("{", "json_invalid")]
        {
            assert_eq!(kind(Form::read(body.as_bytes(), NAMES)), kind_of, "{body}");
        }
        assert_eq!(kind(Form::read(b"{\"\xff\":1}", NAMES)), "json_invalid");
    }

    #[test]
    fn keys_are_found_at_the_top_and_nowhere_else() {
        let first = |body: &str| first_key(body.as_bytes(), &["x", "window"]);
        assert_eq!(first(r#"{"x": NaN"#), Some("x"));
        assert_eq!(first(r#"{"a":{"x":1},"b":["x"],"c":"x","d\"":1, "window" : [] }"#), Some("window"));
        for none in ["", "[]", r#"["x"]"#, r#"{"y":{"x":1}}"#, r#"{"x"#, r#"{"\"#, "\"x\":"] {
            assert_eq!(first(none), None, "{none}");
        }
    }
}
