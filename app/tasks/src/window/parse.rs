//! A JSON body to the model's input, in one pass and in place.
//!
//! serde_json walks the body; every number goes straight into the slot, and what is wrong is noted rather than raised, so
//! that the walk always reaches the end. Only then is the contract's order of errors known: JSON, types, number of rows, of
//! columns, finite values, ranges; within one kind the first in row-major order.
//!
//! The original service reads JSON with Python's `json`, which takes `NaN`, `Infinity` and `1e400` for numbers and refuses
//! them as values. serde_json refuses the token. [`mark_non_finite`] bridges that: only a body that serde_json refused is
//! scanned for such tokens, and read again with marks in their place.

use super::{Place, WindowError, WindowShape};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// Which key holds the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKey {
    /// `x`, the seed's `/infer`.
    X,
    /// `imu_window`, the seed's `/encode`; `x` is taken too.
    ImuWindow,
    /// `window`, the EMG form.
    Window,
}

/// What passes for a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbers {
    /// JSON numbers.
    #[default]
    Strict,
    /// Also numeric strings and booleans, as pydantic's lax mode takes them.
    Lenient,
}

impl WindowKey {
    const fn name(self) -> &'static str {
        match self {
            Self::X => "x",
            Self::ImuWindow => "imu_window",
            Self::Window => "window",
        }
    }

    /// The key's own spelling when it is one that holds the window.
    fn accepts(self, key: &str) -> Option<&'static str> {
        match (self, key) {
            (Self::X | Self::ImuWindow, "x") => Some("x"),
            (Self::ImuWindow, "imu_window") => Some("imu_window"),
            (Self::Window, "window") => Some("window"),
            _ => None,
        }
    }
}

impl WindowShape {
    /// Parses `{"x": [[..channels..] ..timesteps..]}` into `slot`. Extra keys are ignored; of duplicate keys the last wins.
    ///
    /// # Errors
    /// [`WindowError`], the first in the contract's order. `slot` then holds nothing of value.
    pub fn parse(
        &self,
        body: &[u8],
        slot: &mut [f32],
        key: WindowKey,
        numbers: Numbers,
    ) -> Result<(), WindowError> {
        let text = text_of(body)?;
        if text.bytes().all(|b| b.is_ascii_whitespace()) {
            return Err(WindowError::Empty);
        }
        let mut window = Window::new(self, slot, key, numbers);
        let refused = match window.read(text) {
            Ok(()) => return window.verdict(),
            Err(e) => e,
        };
        let Some(marked) = mark_non_finite(text).filter(|_| refused.is_syntax()) else {
            return Err(syntax(text, &refused));
        };
        window = Window::new(self, slot, key, numbers);
        match window.read(&marked) {
            Ok(()) => window.verdict(),
            // Positions in the marked text are not the client's; the first refusal is as true and points into the body.
            Err(_) => Err(syntax(text, &refused)),
        }
    }
}

/// The body as text.
pub(crate) fn text_of(body: &[u8]) -> Result<&str, WindowError> {
    let text = std::str::from_utf8(body).map_err(|e| WindowError::Json {
        offset: e.valid_up_to(),
        reason: "the body is not UTF-8".to_owned(),
    })?;
    // A byte order mark says nothing in UTF-8; RFC 8259 lets a reader skip it.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// serde_json's error without its position in words, and with a byte offset as FastAPI gives it.
pub(crate) fn syntax(text: &str, e: &serde_json::Error) -> WindowError {
    let before: usize = text.split_inclusive('\n').take(e.line().saturating_sub(1)).map(str::len).sum();
    let offset = (before + e.column().saturating_sub(1)).min(text.len());
    WindowError::Json { offset, reason: e.to_string() }
}

/// What was found while walking a body.
struct Window<'a> {
    shape: &'a WindowShape,
    slot: &'a mut [f32],
    key: WindowKey,
    numbers: Numbers,
    object: bool,
    found: Option<Found>,
}

/// What was found under one window key.
struct Found {
    key: &'static str,
    timesteps: usize,
    wrong_type: Option<WindowError>,
    wrong_channels: Option<(usize, usize)>,
    non_finite: Option<(Place, f64)>,
    range: Option<(Place, f64)>,
}

impl<'a> Window<'a> {
    fn new(shape: &'a WindowShape, slot: &'a mut [f32], key: WindowKey, numbers: Numbers) -> Self {
        Self { shape, slot, key, numbers, object: false, found: None }
    }

    fn read(&mut self, text: &str) -> Result<(), serde_json::Error> {
        let mut de = serde_json::Deserializer::from_str(text);
        Body(self).deserialize(&mut de)?;
        de.end()
    }

    fn verdict(self) -> Result<(), WindowError> {
        if !self.object {
            return Err(WindowError::NotAnObject);
        }
        let Some(found) = self.found else { return Err(WindowError::Missing { key: self.key.name() }) };
        let key = found.key;
        if let Some(e) = found.wrong_type {
            return Err(e);
        }
        let (want, got) = (self.shape.timesteps, found.timesteps);
        if want != got {
            return Err(WindowError::Timesteps { key, want, got });
        }
        if let Some((timestep, got)) = found.wrong_channels {
            return Err(WindowError::Channels { key, timestep, want: self.shape.channels.len(), got });
        }
        if let Some((at, value)) = found.non_finite {
            return Err(WindowError::NonFinite { key, at, value });
        }
        if let Some((at, value)) = found.range {
            let channel = &self.shape.channels[at.channel];
            let (quantity, limit) = channel.limit.clone().unwrap_or_default();
            let (name, unit) = (channel.name.clone(), channel.unit.clone());
            return Err(WindowError::Range { key, at, value, quantity, limit, name, unit });
        }
        Ok(())
    }
}

/// The whole body.
struct Body<'w, 'a>(&'w mut Window<'a>);

impl<'de> DeserializeSeed<'de> for Body<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_any(self)
    }
}

/// A visitor's answer to every kind of JSON value it did not hope for: note it, walk on.
macro_rules! otherwise {
    ($($visit:ident($t:ty)),*) => {
        $(fn $visit<E: Error>(self, _: $t) -> Result<Self::Value, E> {
            self.other();
            Ok(())
        })*
    };
    (unit) => {
        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            self.other();
            Ok(())
        }
    };
    (seq) => {
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            self.other();
            Ok(())
        }
    };
    (map) => {
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            self.other();
            Ok(())
        }
    };
}

impl Body<'_, '_> {
    fn other(self) {
        self.0.object = false;
    }
}

impl<'de> Visitor<'de> for Body<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let window = self.0;
        window.object = true;
        while let Some(key) = map.next_key_seed(Key(|key: &str| window.key.accepts(key)))? {
            match key {
                Some(key) => {
                    window.found = Some(Found {
                        key,
                        timesteps: 0,
                        wrong_type: None,
                        wrong_channels: None,
                        non_finite: None,
                        range: None,
                    });
                    map.next_value_seed(Rows(window))?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
    otherwise!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
    otherwise!(unit);
    otherwise!(seq);
}

/// A key of an object: what the function makes of it.
pub(crate) struct Key<F>(pub F);

impl<'de, F: FnOnce(&str) -> Option<&'static str>> DeserializeSeed<'de> for Key<F> {
    type Value = Option<&'static str>;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_str(self)
    }
}

impl<F: FnOnce(&str) -> Option<&'static str>> Visitor<'_> for Key<F> {
    type Value = Option<&'static str>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok((self.0)(key))
    }
}

/// The window: a list of rows.
struct Rows<'w, 'a>(&'w mut Window<'a>);

impl Rows<'_, '_> {
    fn other(self) {
        if let Some(found) = &mut self.0.found {
            found.wrong_type = Some(WindowError::NotAList { key: found.key, timestep: None });
        }
    }
}

impl<'de> DeserializeSeed<'de> for Rows<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Rows<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let window = self.0;
        let Some(found) = window.found.as_mut() else { return Ok(()) };
        let (shape, slot) = (window.shape, &mut *window.slot);
        let width = shape.channels.len();
        for timestep in 0.. {
            // A row beyond the last is walked and counted, and has no place to go.
            let to = slot.get_mut(timestep * width..(timestep + 1) * width).unwrap_or_default();
            let row = Row { shape, found: &mut *found, numbers: window.numbers, timestep, to };
            if seq.next_element_seed(row)?.is_none() {
                break;
            }
            found.timesteps += 1;
        }
        Ok(())
    }
    otherwise!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
    otherwise!(unit);
    otherwise!(map);
}

/// One row: a list of numbers.
struct Row<'w> {
    shape: &'w WindowShape,
    found: &'w mut Found,
    numbers: Numbers,
    timestep: usize,
    to: &'w mut [f32],
}

impl Row<'_> {
    fn other(self) {
        let (key, timestep) = (self.found.key, Some(self.timestep));
        self.found.wrong_type.get_or_insert(WindowError::NotAList { key, timestep });
    }
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<(), D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a row of numbers")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { shape, found, numbers, timestep, to } = self;
        let mut channel = 0;
        while let Some(value) = seq.next_element_seed(Value(numbers))? {
            let at = Place { timestep, channel };
            channel += 1;
            let value = match value {
                Read::Number(v) => v,
                Read::Other { text } => {
                    found.wrong_type.get_or_insert(WindowError::NotANumber { key: found.key, at, text });
                    continue;
                }
            };
            let Some(spec) = shape.channels.get(at.channel) else { continue };
            #[allow(clippy::cast_possible_truncation)] // rounding to the model's precision is the purpose
            let narrow = value as f32;
            if spec.limit.as_ref().is_some_and(|(_, limit)| value.is_finite() && value.abs() > *limit) {
                found.range.get_or_insert((at, value));
            } else if !narrow.is_finite() {
                found.non_finite.get_or_insert((at, value));
            }
            if let Some(place) = to.get_mut(at.channel) {
                *place = narrow;
            }
        }
        if channel != shape.channels.len() {
            found.wrong_channels.get_or_insert((timestep, channel));
        }
        Ok(())
    }
    otherwise!(visit_bool(bool), visit_i64(i64), visit_u64(u64), visit_f64(f64), visit_str(&str));
    otherwise!(unit);
    otherwise!(map);
}

/// What stood where a number should be.
enum Read {
    Number(f64),
    Other { text: bool },
}

/// One value of a row.
struct Value(Numbers);

impl<'de> DeserializeSeed<'de> for Value {
    type Value = Read;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Read, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value {
    type Value = Read;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number")
    }
    fn visit_f64<E: Error>(self, v: f64) -> Result<Read, E> {
        Ok(Read::Number(v))
    }
    #[allow(clippy::cast_precision_loss)] // JSON has one kind of number; FP32 has fewer digits anyway
    fn visit_u64<E: Error>(self, v: u64) -> Result<Read, E> {
        Ok(Read::Number(v as f64))
    }
    #[allow(clippy::cast_precision_loss)]
    fn visit_i64<E: Error>(self, v: i64) -> Result<Read, E> {
        Ok(Read::Number(v as f64))
    }
    fn visit_bool<E: Error>(self, v: bool) -> Result<Read, E> {
        Ok(match self.0 {
            Numbers::Strict => Read::Other { text: false },
            Numbers::Lenient => Read::Number(f64::from(u8::from(v))),
        })
    }
    fn visit_str<E: Error>(self, v: &str) -> Result<Read, E> {
        Ok(match (v, self.0) {
            (MARK_NAN, _) => Read::Number(f64::NAN),
            (MARK_PLUS, _) => Read::Number(f64::INFINITY),
            (MARK_MINUS, _) => Read::Number(f64::NEG_INFINITY),
            (_, Numbers::Strict) => Read::Other { text: false },
            (_, Numbers::Lenient) => v.trim().parse().map_or(Read::Other { text: true }, Read::Number),
        })
    }
    fn visit_unit<E: Error>(self) -> Result<Read, E> {
        Ok(Read::Other { text: false })
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Read, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Read::Other { text: false })
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Read, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Read::Other { text: false })
    }
}

/// Marks are strings of private-use characters: should a client send one itself, it is refused as the value it marks.
const MARK_NAN: &str = "\u{f8ff}nan";
const MARK_PLUS: &str = "\u{f8ff}inf";
const MARK_MINUS: &str = "\u{f8ff}-inf";

/// The text with every bare `NaN`, `Infinity`, `-Infinity` and overflowing number outside of strings replaced by its mark;
/// `None` when there is none.
pub(crate) fn mark_non_finite(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    let (mut at, mut copied) = (0, 0);
    while let Some(&b) = bytes.get(at) {
        if b == b'"' {
            at += 1;
            while let Some(&b) = bytes.get(at) {
                at += if b == b'\\' { 2 } else { 1 };
                if b == b'"' {
                    break;
                }
            }
            continue;
        }
        let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
        if !word(b) {
            at += 1;
            continue;
        }
        let end = bytes[at..].iter().position(|&b| !word(b)).map_or(bytes.len(), |n| at + n);
        if let Some(mark) = mark_of(&text[at..end]) {
            out.push_str(&text[copied..at]);
            out.extend(["\"", mark, "\""]);
            copied = end;
        }
        at = end;
    }
    out.push_str(&text[copied..]);
    (copied > 0).then_some(out)
}

fn mark_of(token: &str) -> Option<&'static str> {
    match token {
        "NaN" => Some(MARK_NAN),
        "Infinity" => Some(MARK_PLUS),
        "-Infinity" => Some(MARK_MINUS),
        _ if token.ends_with(|c: char| c.is_ascii_digit()) => {
            let overflows = token.parse::<f64>().ok().filter(|v| v.is_infinite())?;
            // What is no JSON number (a leading zero or plus) stays the syntax error it is.
            serde_json::from_str::<IgnoredAny>(token).ok()?;
            Some(if overflows > 0.0 { MARK_PLUS } else { MARK_MINUS })
        }
        _ => None,
    }
}
