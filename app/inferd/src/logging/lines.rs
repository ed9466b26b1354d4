//! What a log line looks like: for people, as JSON, with a priority before it, or as journald's own fields.
//!
//! A line that is written while a request is handled carries the request's id, however deep down it is written.

use crate::config::LogFormat;
use serde_json::{Map, Value};
use std::fmt;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    registry::LookupSpan,
};

/// The most bytes of one value that are logged; the rest is cut off. What a peer sends may end up in a line.
const VALUE: usize = 4096;
/// The field that names the request, everywhere.
const REQUEST_ID: &str = "request_id";

/// Writes events in this format.
pub struct Lines(pub LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = Fields::default();
        event.record(&mut line);
        if let Some(id) = inferd_api::request_in_hand() {
            line.put(REQUEST_ID, Value::String(id.as_str().to_owned()), Wrote::AsItIs);
        }
        let (level, target) = (*event.metadata().level(), event.metadata().target());
        match self.0 {
            LogFormat::Json => line.json(&mut out, level, target),
            LogFormat::Journald => line.journald(&mut out, level, target),
            LogFormat::Journal => {
                write!(out, "<{}>{target}: ", priority(level))?;
                line.text(&mut out)
            }
            LogFormat::Text | LogFormat::Auto => {
                SystemTime.format_time(&mut out)?;
                write!(out, " {level:>5} {target}: ")?;
                line.text(&mut out)
            }
        }
    }
}

/// As syslog counts, see sd-daemon(3).
pub fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The fields of one event.
#[derive(Default)]
struct Fields {
    message: String,
    rest: Vec<(&'static str, Value, Wrote)>,
}

/// How a field was written in the source.
#[derive(Clone, Copy, PartialEq)]
enum Wrote {
    /// A string: quoted in text.
    String,
    /// A number, or something that says itself how it looks.
    AsItIs,
}

impl Fields {
    fn take(&mut self, field: &Field, value: Value, wrote: Wrote) {
        match (field.name(), value) {
            ("message", Value::String(s)) => self.message = s,
            ("message", other) => self.message = other.to_string(),
            (name, value) => self.put(name.strip_prefix("r#").unwrap_or(name), value, wrote),
        }
    }

    /// A name stands for one value: the last one.
    fn put(&mut self, name: &'static str, value: Value, wrote: Wrote) {
        self.rest.retain(|(known, _, _)| *known != name);
        self.rest.push((name, value, wrote));
    }

    fn take_text(&mut self, field: &Field, mut text: String, wrote: Wrote) {
        if text.len() > VALUE {
            let mut end = VALUE;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text.truncate(end);
            text.push('…');
        }
        self.take(field, Value::String(text), wrote);
    }

    /// `message key=value`; a line break would end the line, and what follows it would lose its priority.
    fn text(&self, out: &mut Writer<'_>) -> fmt::Result {
        escaped(out, &self.message)?;
        for (name, value, wrote) in &self.rest {
            write!(out, " {name}=")?;
            match value {
                Value::String(s) if *wrote == Wrote::String => write!(out, "{s:?}")?,
                Value::String(s) => escaped(out, s)?,
                other => write!(out, "{other}")?,
            }
        }
        out.write_char('\n')
    }

    /// One object; the keys that every line has cannot be overwritten by a field of the same name.
    fn json(self, out: &mut Writer<'_>, level: Level, target: &str) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut all: Map<String, Value> =
            self.rest.into_iter().map(|(name, value, _)| (name.to_owned(), value)).collect();
        for (key, value) in [
            ("timestamp", time),
            ("level", level.to_string()),
            ("target", target.to_owned()),
            ("message", self.message),
        ] {
            all.insert(key.to_owned(), Value::String(value));
        }
        writeln!(out, "{}", Value::Object(all))
    }

    /// journald's own protocol: `KEY=value` lines, one datagram per entry. Names are in capitals; ours begin with `F_`, so that
    /// no field of a line can pose as one of journald's.
    fn journald(&self, out: &mut Writer<'_>, level: Level, target: &str) -> fmt::Result {
        write!(out, "PRIORITY={}\nSYSLOG_IDENTIFIER=inferd\nTARGET={target}\nMESSAGE=", priority(level))?;
        escaped(out, &self.message)?;
        out.write_char('\n')?;
        for (name, value, _) in &self.rest {
            if *name == REQUEST_ID {
                out.write_str("REQUEST_ID=")?;
            } else {
                out.write_str("F_")?;
                for c in name.chars() {
                    out.write_char(if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })?;
                }
                out.write_char('=')?;
            }
            match value {
                Value::String(s) => escaped(out, s)?,
                other => write!(out, "{other}")?,
            }
            out.write_char('\n')?;
        }
        Ok(())
    }
}

fn escaped(out: &mut Writer<'_>, text: &str) -> fmt::Result {
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            c if c.is_control() => write!(out, "{}", c.escape_default())?,
            c => out.write_char(c)?,
        }
    }
    Ok(())
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN; a number that is none is told in words.
        let number = serde_json::Number::from_f64(value);
        self.take(
            field,
            number.map_or_else(|| Value::String(value.to_string()), Value::Number),
            Wrote::AsItIs,
        );
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value.into(), Wrote::AsItIs);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value.into(), Wrote::AsItIs);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, value.into(), Wrote::AsItIs);
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take_text(field, value.to_owned(), Wrote::String);
    }
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take_text(field, format!("{value:?}"), Wrote::AsItIs);
    }
}
