//! Pages of a record for people: technical and simple, as HTML, Markdown and CSV. JSON is the record itself.
//!
//! They are made of the record alone: the same record, the same bytes. An HTML page refers to nothing outside itself, prints well, and
//! every word that came from elsewhere (names, reasons) is escaped.

mod html;
mod markdown;

use crate::record::{BatchOf, BatchPoint, Conditions, Found, Measured, Record, RungResult, StepResult, Stop};
use crate::select::Outcome;
use std::fmt::Write as _;

/// What a report looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Format {
    Json,
    Html,
    Markdown,
    Csv,
}

impl Format {
    /// By its name in a query or its ending.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "json" => Self::Json,
            "html" => Self::Html,
            "md" => Self::Markdown,
            "csv" => Self::Csv,
            _ => return None,
        })
    }

    /// Its media type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Html => "text/html; charset=utf-8",
            Self::Markdown => "text/markdown; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8",
        }
    }
}

/// For whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Every number.
    Technical,
    /// What was chosen, why, and what to do with it.
    Simple,
}

impl View {
    /// By its name in a query.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "technical" => Some(Self::Technical),
            "simple" => Some(Self::Simple),
            _ => None,
        }
    }
}

/// Makes a report. JSON and CSV have one view: everything.
#[must_use]
pub fn render(record: &Record, format: Format, view: View) -> String {
    match format {
        Format::Json => record.to_json() + "\n",
        Format::Csv => csv(record),
        Format::Html => html::page(record, view),
        Format::Markdown => markdown::page(record, view),
    }
}

const COLUMNS: [&str; 22] = [
    "rung",
    "engine",
    "precision",
    "library",
    "device",
    "workers",
    "samples",
    "min_ms",
    "mean_ms",
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "max_ms",
    "throughput_per_s",
    "cpu_ms_per_inference",
    "memory_bytes",
    "cosine",
    "max_abs",
    "stable",
    "verdict",
    "reasons",
];

fn csv(record: &Record) -> String {
    let mut out = COLUMNS.join(",") + "\n";
    for rung in &record.rungs {
        let mut cells = vec![rung.info.rung.clone(), rung.info.engine.clone(), rung.info.precision.clone()];
        match &rung.measured {
            None => cells.resize(20, String::new()),
            Some(m) => {
                let l = &m.latency;
                cells.extend([
                    m.library.clone(),
                    m.device.clone(),
                    m.workers.to_string(),
                    l.samples.to_string(),
                ]);
                cells.extend([l.min, l.mean, l.p50, l.p90, l.p95, l.p99, l.max].map(|t| t.ms().to_string()));
                let optional = |n: Option<String>| n.unwrap_or_default();
                cells.extend([
                    m.throughput_per_s.value().to_string(),
                    optional(m.cpu_per_inference.map(|t| t.ms().to_string())),
                    optional(m.memory.as_ref().map(|p| p.peak_bytes.to_string())),
                    optional(m.cosine.map(|n| n.value().to_string())),
                    optional(m.max_abs.map(|n| n.value().to_string())),
                    m.stable.to_string(),
                ]);
            }
        }
        let (verdict, reasons) = verdict(record, rung);
        cells.extend([verdict, reasons.join("; ")]);
        let line: Vec<String> = cells.iter().map(|c| csv_cell(c)).collect();
        let _ = writeln!(out, "{}", line.join(","));
    }
    out
}

/// Quoted where it must be; what a spreadsheet would take for a formula is made text.
fn csv_cell(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '@', '\t', '\r'])
        || (text.starts_with('-') && text.parse::<f64>().is_err());
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

/// What the decision says of a rung: a word, and why.
fn verdict(record: &Record, rung: &RungResult) -> (String, Vec<String>) {
    let found = record.decision.verdicts.iter().find(|v| v.rung == rung.info.rung);
    let Some(found) = found else { return ("unknown".into(), Vec::new()) };
    let word = match (found.place, &rung.measured) {
        (Some(1), _) => "selected".into(),
        (Some(n), _) => format!("place {n}"),
        (None, Some(_)) => "rejected".into(),
        (None, None) => "not measured".into(),
    };
    (word, found.reasons.clone())
}

/// Milliseconds with three figures that count.
fn ms(ms: f64) -> String {
    figures(ms)
}

fn figures(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else if value >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.digits$}")
}

pub(crate) fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

/// The table of rungs, as text: heads and rows.
fn table(record: &Record) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let heads = vec![
        "rung",
        "precision",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "per s",
        "CPU ms",
        "memory",
        "cosine",
        "stable",
        "verdict",
    ];
    let row = |rung: &RungResult| {
        let mut cells = vec![rung.info.rung.clone(), rung.info.precision.clone()];
        let dash = || "-".to_owned();
        match &rung.measured {
            None => cells.extend((0..8).map(|_| dash())),
            Some(m) => cells.extend([
                ms(m.latency.p50.ms()),
                ms(m.latency.p95.ms()),
                ms(m.latency.p99.ms()),
                figures(m.throughput_per_s.value()),
                m.cpu_per_inference.map_or_else(dash, |t| ms(t.ms())),
                m.memory.as_ref().map_or_else(dash, |p| mib(p.peak_bytes)),
                m.cosine.map_or_else(dash, |c| format!("{:.6}", c.value())),
                if m.stable { "yes".into() } else { format!("no ({} %)", figures(m.spread_percent.value())) },
            ]),
        }
        cells.push(verdict(record, rung).0);
        cells
    };
    (heads, record.rungs.iter().map(row).collect())
}

/// The table of rungs for a terminal.
#[must_use]
pub fn text_table(record: &Record) -> String {
    let (heads, rows) = table(record);
    let width = |i: usize| {
        rows.iter().map(|r| r[i].chars().count()).chain([heads[i].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(i, (cell, w))| {
            if i < 2 || i + 1 == widths.len() { format!("{cell:<w$}") } else { format!("{cell:>w$}") }
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    let mut out = line(heads.clone());
    rows.iter().for_each(|row| out += &line(row.iter().map(String::as_str).collect()));
    out
}

/// Why rungs are not first, and what hosts ended meanwhile, one line each.
#[must_use]
pub fn reasons(record: &Record) -> Vec<String> {
    let of = |v: &crate::select::Verdict| {
        (!v.reasons.is_empty()).then(|| format!("{}: {}", v.rung, v.reasons.join("; ")))
    };
    let ended = |r: &RungResult| {
        let why = r.restarted.as_ref()?;
        Some(format!("{}: measured in a second host, because the first one ended: {why}", r.info.rung))
    };
    record.decision.verdicts.iter().filter_map(of).chain(record.rungs.iter().filter_map(ended)).collect()
}

/// What a step's rungs came to, and how much faster the best of them is. Only of numbers that the record has.
fn rungs_words(record: &Record, rungs: &[String], stop: &Stop) -> String {
    let found = |name: &String| record.rung(name);
    let one = |name: &String| match found(name) {
        Some(r) if r.measured.is_none() => format!("{name} (not measured)"),
        Some(r) if r.restarted.is_some() => format!("{name} (in a second host)"),
        _ => name.clone(),
    };
    let better = match stop.improvement_percent {
        _ if rungs.iter().all(|name| found(name).is_some_and(|r| r.measured.is_none())) => String::new(),
        None => String::new(),
        // A step that changed nothing, or less than would be written.
        Some(p) if p.value() < 0.000_5 => "; not faster than the best before".to_owned(),
        Some(p) => format!("; {} % faster than the best before", figures(p.value())),
    };
    let end = if stop.holds { "; the stop rules hold" } else { "" };
    format!("{}{better}{end}", rungs.iter().map(one).collect::<Vec<_>>().join(", "))
}

/// What several at once came to on one rung.
fn batch_words(of: &BatchOf) -> String {
    let one = |p: &BatchPoint| {
        let p95 = p.latency.as_ref().map_or_else(|| "-".into(), |l| ms(l.p95.ms()));
        let errors = if p.errors > 0 { format!(", {} failed", p.errors) } else { String::new() };
        format!("{} at once {}/s (each p95 {p95} ms{errors})", p.at_once, figures(p.throughput_per_s.value()))
    };
    let mut words = vec![format!("one by one {}/s", figures(of.one_by_one_per_s.value()))];
    words.extend(of.points.iter().map(one));
    words.extend(of.stopped.clone());
    format!("{} {}", of.rung, words.join(", "))
}

/// The step in one line.
#[must_use]
pub fn step_words(record: &Record, step: &StepResult) -> String {
    match &step.found {
        Found::Skipped { reason } => format!("skipped: {reason}"),
        Found::Rungs { rungs, stop } => rungs_words(record, rungs, stop),
        Found::Batch { because, rungs } => {
            let rungs = rungs.iter().map(batch_words).collect::<Vec<_>>().join("; ");
            format!("requests handed over at once, as {because}: {rungs}")
        }
        Found::Share { rung, parse_ms, normalise_ms, serialise_ms, compute_ms, around_percent, .. } => {
            format!(
                "{rung}: parse {} ms, normalise {} ms, compute {} ms, serialise {} ms: {} % is around the computing",
                ms(parse_ms.ms()),
                ms(normalise_ms.ms()),
                ms(compute_ms.ms()),
                ms(serialise_ms.ms()),
                figures(around_percent.value())
            )
        }
        Found::Memory { peaks } => {
            let one = |p: &crate::record::MemoryOf| {
                format!("{} {} ({} % of its cap)", p.rung, mib(p.peak.peak_bytes), figures(p.percent.value()))
            };
            peaks.iter().map(one).collect::<Vec<_>>().join(", ")
        }
        Found::Load { rung, points, stopped } => {
            let one = |p: &crate::record::LoadPoint| {
                let p95 = p.latency.as_ref().map_or_else(|| "-".into(), |l| ms(l.p95.ms()));
                format!("{} in flight: {}/s, p95 {p95} ms", p.in_flight, figures(p.throughput_per_s.value()))
            };
            let points = points.iter().map(one).collect::<Vec<_>>().join("; ");
            let end = stopped.as_ref().map_or_else(String::new, |s| format!("; {s}"));
            format!("{rung}: {points}{end}")
        }
        Found::Soak { rung, seconds, requests, errors, latency, drift_percent, ended, .. } => {
            let p99 = latency.as_ref().map_or_else(|| "-".into(), |l| ms(l.p99.ms()));
            let drift =
                drift_percent.map_or_else(String::new, |d| format!(", median drift {:.1} %", d.value()));
            format!(
                "{rung}: {} s without a pause, {requests} inferences, {errors} errors, p99 {p99} ms{drift}{}",
                figures(seconds.value()),
                ended.as_ref().map_or_else(String::new, |why| format!("; {why}"))
            )
        }
    }
}

fn conditions(c: &Conditions) -> String {
    let mut words = Vec::new();
    if let Some(t) = c.celsius {
        words.push(format!("{:.1} C", t.value()));
    }
    if let Some(t) = c.accelerator_celsius {
        words.push(format!("accelerator {:.1} C", t.value()));
    }
    if let Some(p) = c.cpu_percent {
        words.push(format!("processors {:.0} % busy", p.value()));
    }
    for (flag, yes, no) in [
        (c.throttled, "throttled", "not throttled"),
        (c.under_voltage, "supply too low", "supply good"),
        (c.accelerator_hot, "accelerator too warm", "accelerator not too warm"),
    ] {
        words.extend(flag.map(|on| if on { yes } else { no }.to_owned()));
    }
    if words.is_empty() { "nothing here tells".into() } else { words.join(", ") }
}

/// One line for the head of a page.
fn headline(record: &Record) -> &'static str {
    match record.decision.outcome {
        Outcome::Selected => "selected",
        Outcome::NoneFits => "no rung fits",
        Outcome::NothingRan => "nothing could be measured",
    }
}

/// What the operator does with it.
fn advice(record: &Record) -> Vec<String> {
    let model = &record.subject.model;
    match (&record.decision.rung, &record.decision.nearest) {
        (Some(rung), _) => {
            let mut steps = Vec::new();
            let first = record.rungs.first().map(|r| r.info.rung.as_str());
            if first == Some(rung) {
                steps.push(format!(
                    "{rung} is what the manifest of {model} prefers: nothing has to be changed."
                ));
            } else {
                steps.push(format!(
                    "Put {rung} first in engines of the manifest of {model}, and ship it in a bundle."
                ));
            }
            if record.rung(rung).and_then(|r| r.measured.as_ref()).is_some_and(|m| !m.stable) {
                steps.push(
                    "Its runs differ by 5 % or more: measure again while the device has nothing else to do."
                        .into(),
                );
            }
            steps
        }
        (None, Some(near)) => vec![format!(
            "Loosen the constraints that {near} breaks, or bring a smaller or quantised network."
        )],
        (None, None) => reasons(record),
    }
}

fn selected(record: &Record) -> Option<(&RungResult, &Measured)> {
    let name = record.decision.rung.as_ref().or(record.decision.nearest.as_ref())?;
    let rung = record.rung(name)?;
    Some((rung, rung.measured.as_ref()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_csv_are_quoted_and_are_no_formulas() {
        assert_eq!(csv_cell("a,b"), "\"a,b\"");
        assert_eq!(csv_cell("say \"x\""), "\"say \"\"x\"\"\"");
        assert_eq!(csv_cell("=1+1"), "'=1+1");
        assert_eq!(csv_cell("-0.5"), "-0.5");
        assert_eq!(csv_cell("-cmd"), "'-cmd");
    }

    #[test]
    fn numbers_keep_the_figures_that_count() {
        for (value, text) in [(0.0123, "0.012"), (1.2345, "1.23"), (12.345, "12.3"), (1234.5, "1234")] {
            assert_eq!(figures(value), text);
        }
        assert_eq!(mib(3 << 19), "1.5 MiB");
    }
}
