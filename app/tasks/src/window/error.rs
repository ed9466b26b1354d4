//! Why a window is refused, in FastAPI's words where clients may read them.

use serde::Serialize;

/// Where in a window a value stands, both from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The row.
    pub timestep: usize,
    /// The column.
    pub channel: usize,
}

/// The first thing that is wrong with a body, in the order of the contract: JSON, types, rows, columns, finite, ranges.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[allow(missing_docs)]
pub enum WindowError {
    #[error("Field required")]
    Empty,
    #[error("JSON decode error: {reason}")]
    Json { offset: usize, reason: String },
    #[error("Input should be a valid dictionary or object to extract fields from")]
    NotAnObject,
    #[error("Field required")]
    Missing { key: &'static str },
    #[error("Input should be a valid list")]
    NotAList { key: &'static str, timestep: Option<usize> },
    #[error("Input should be a valid number{}", if *.text { ", unable to parse string as a number" } else { "" })]
    NotANumber { key: &'static str, at: Place, text: bool },
    #[error("Value error, Expected {want} timesteps, got {got}")]
    Timesteps { key: &'static str, want: usize, got: usize },
    #[error("Value error, Timestep {timestep} has {got} channels, expected {want}")]
    Channels { key: &'static str, timestep: usize, want: usize, got: usize },
    #[error("Value error, Non-finite value at timestep {}, channel {}: {}", .at.timestep, .at.channel, python(*.value))]
    NonFinite { key: &'static str, at: Place, value: f64 },
    #[error("Value error, {quantity} value out of range: {}", python(*.value))]
    Range {
        key: &'static str,
        at: Place,
        value: f64,
        quantity: String,
        limit: f64,
        name: String,
        unit: String,
    },
}

impl WindowError {
    /// The error's name in pydantic's catalogue.
    #[must_use]
    pub fn pydantic_type(&self) -> &'static str {
        match self {
            Self::Empty | Self::Missing { .. } => "missing",
            Self::Json { .. } => "json_invalid",
            Self::NotAnObject => "model_attributes_type",
            Self::NotAList { .. } => "list_type",
            Self::NotANumber { text: true, .. } => "float_parsing",
            Self::NotANumber { text: false, .. } => "float_type",
            Self::Timesteps { .. } | Self::Channels { .. } | Self::NonFinite { .. } | Self::Range { .. } => {
                "value_error"
            }
        }
    }

    /// `{"detail":[{"type","loc","msg"}]}` as FastAPI writes it, without the echo of the input. A range error also has
    /// `ctx`, which names the timestep, the channel and the limit.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let ctx = match self {
            Self::Range { at, limit, name, unit, .. } => {
                Some(Context { timestep: at.timestep, channel: name, limit: *limit, unit })
            }
            _ => None,
        };
        detail(self.pydantic_type(), self.location(), self.to_string(), ctx)
    }

    /// The sentence of the older client contract, which answers mistakes with 400: rows and columns in its own words.
    #[must_use]
    pub fn to_sentence(&self) -> String {
        match self {
            Self::Timesteps { want, .. } => format!("Input must have exactly {want} rows"),
            Self::Channels { timestep, want, .. } => {
                format!("Row {timestep} must have exactly {want} columns")
            }
            Self::Empty => "the body is empty".to_owned(),
            Self::Missing { key } => format!("{key} is missing"),
            other => {
                let text = other.to_string();
                text.strip_prefix("Value error, ").map_or(text.clone(), str::to_owned)
            }
        }
    }

    fn location(&self) -> Vec<Step> {
        let mut loc = vec![Step::Key("body")];
        let (key, timestep, channel) = match self {
            Self::Empty | Self::NotAnObject => return loc,
            Self::Json { offset, .. } => {
                loc.push(Step::Index(*offset));
                return loc;
            }
            Self::NotAList { key, timestep } => (key, *timestep, None),
            Self::NotANumber { key, at, .. } => (key, Some(at.timestep), Some(at.channel)),
            Self::Missing { key }
            | Self::Timesteps { key, .. }
            | Self::Channels { key, .. }
            | Self::NonFinite { key, .. }
            | Self::Range { key, .. } => (key, None, None),
        };
        loc.push(Step::Key(key));
        loc.extend([timestep, channel].into_iter().flatten().map(Step::Index));
        loc
    }
}

/// One mistake as FastAPI writes it.
pub(crate) fn detail(kind: &'static str, loc: Vec<Step>, msg: String, ctx: Option<Context<'_>>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        detail: [Item<'a>; 1],
    }
    #[derive(Serialize)]
    struct Item<'a> {
        r#type: &'static str,
        loc: Vec<Step>,
        msg: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        ctx: Option<Context<'a>>,
    }
    let item = Item { r#type: kind, loc, msg, ctx };
    serde_json::to_vec(&Body { detail: [item] }).expect("strings and numbers can be written to memory")
}

/// What a range error says beside its sentence.
#[derive(Serialize)]
pub(crate) struct Context<'a> {
    timestep: usize,
    channel: &'a str,
    limit: f64,
    unit: &'a str,
}

/// One step of pydantic's `loc`.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Step {
    Key(&'static str),
    Index(usize),
}

/// A number as Python's `repr` writes it, which is what clients of the original service have seen.
fn python(v: f64) -> String {
    if v.is_nan() {
        return "nan".to_owned();
    }
    let text = format!("{v:?}");
    match text.split_once('e') {
        Some((digits, exponent)) if !exponent.starts_with('-') => format!("{digits}e+{exponent:0>2}"),
        Some((digits, exponent)) => format!("{digits}e-{:0>2}", &exponent[1..]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::python;

    #[test]
    fn numbers_look_as_python_shows_them() {
        for (v, text) in [
            (501.0, "501.0"),
            (-500.5, "-500.5"),
            (1e39, "1e+39"),
            (1.5e-7, "1.5e-07"),
            (1e22, "1e+22"),
            (123_456.789, "123456.789"),
            (f64::INFINITY, "inf"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(python(v), text);
        }
    }
}
