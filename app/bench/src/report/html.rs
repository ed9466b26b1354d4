//! HTML: one page, nothing outside it.

use super::{
    View, advice, conditions, figures, headline, mib, ms, reasons, selected, step_words, table, verdict,
};
use crate::record::{Found, Record};
use std::fmt::Write as _;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{text-align:right;padding:.25rem .5rem;border-bottom:1px solid #d0d7de}th:first-child,td:first-child,\
th:nth-child(2),td:nth-child(2),th:last-child,td:last-child{text-align:left}tr.selected{background:#e6f4ea}\
.big{font-size:1.25rem}svg{max-width:100%;height:auto}text{font:12px system-ui,sans-serif;fill:#1b1f24}\
@media print{body{margin:0;max-width:none;font-size:11px}h2{break-after:avoid}table,svg,li{break-inside:avoid}\
tr.selected{background:none;font-weight:bold}}";

pub(super) fn text(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    for c in raw.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn list(lines: &[String], ordered: bool) -> String {
    let tag = if ordered { "ol" } else { "ul" };
    let items: String = lines.iter().map(|l| format!("<li>{}</li>\n", text(l))).collect();
    format!("<{tag}>\n{items}</{tag}>\n")
}

pub(super) fn page(record: &Record, view: View) -> String {
    let s = &record.subject;
    let title = text(&format!("{} {}: {}", s.model, s.version, headline(record)));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n<p class=\"big\">{}.</p>\n",
        text(&record.decision.because)
    );
    if let Some((rung, m)) = selected(record) {
        let memory =
            m.memory.as_ref().map_or_else(String::new, |p| format!(", {} of memory", mib(p.peak_bytes)));
        let _ = writeln!(
            out,
            "<p><b>{}</b>: p50 {} ms, p95 {} ms, p99 {} ms{memory}.</p>",
            text(&rung.info.rung),
            ms(m.latency.p50.ms()),
            ms(m.latency.p95.ms()),
            ms(m.latency.p99.ms())
        );
    }
    out += &list(&advice(record), false);
    out += &latency_plot(record);
    if view == View::Technical {
        technical(record, &mut out);
    }
    out += "</body>\n</html>\n";
    out
}

fn technical(record: &Record, out: &mut String) {
    let (heads, rows) = table(record);
    *out += "<h2>Rungs</h2>\n<table>\n<tr>";
    heads.iter().for_each(|h| {
        let _ = write!(out, "<th>{h}</th>");
    });
    *out += "</tr>\n";
    for (row, rung) in rows.iter().zip(&record.rungs) {
        let class = if verdict(record, rung).0 == "selected" { " class=\"selected\"" } else { "" };
        let _ = write!(out, "<tr{class}>");
        row.iter().for_each(|c| {
            let _ = write!(out, "<td>{}</td>", text(c));
        });
        *out += "</tr>\n";
    }
    *out += "</table>\n<h2>Decision</h2>\n";
    let constraints: Vec<String> = record.constraints().iter().map(ToString::to_string).collect();
    let said = if constraints.is_empty() { "none".into() } else { constraints.join(", ") };
    let _ = writeln!(out, "<p>Constraints: {}.</p>", text(&said));
    *out += &list(&reasons(record), false);
    *out += "<h2>The nine steps</h2>\n";
    let steps: Vec<String> =
        record.steps.iter().map(|s| format!("{}: {}", s.step.words(), step_words(record, s))).collect();
    *out += &list(&steps, true);
    *out += &load_plot(record);
    *out += "<h2>Against the baseline</h2>\n";
    let regressions: Vec<String> = record
        .regressions
        .iter()
        .map(|r| {
            let why =
                if r.reasons.is_empty() { String::new() } else { format!(": {}", r.reasons.join("; ")) };
            format!("{}: {}{why}", r.rung, super::markdown::level_words(r.level))
        })
        .collect();
    *out += &list(&regressions, false);
    let (s, r) = (&record.subject, &record.request);
    *out += "<h2>Where</h2>\n";
    *out += &list(
        &[
            format!("firmware {}, {}, {} cores", s.firmware, s.arch, s.cores),
            format!("network {}", s.sha256),
            format!("before: {}", conditions(&record.before)),
            format!("after: {}", conditions(&record.after)),
            format!(
                "{} inferences to warm up, then runs of {}, {} that agree of at most {}",
                r.warm_up, r.iterations, r.repeats, r.most_repeats
            ),
        ],
        false,
    );
}

/// A bar each for p50 (dark) and p99 (light) of every rung that was measured.
fn latency_plot(record: &Record) -> String {
    let measured: Vec<_> = record.rungs.iter().filter_map(|r| Some((r, r.measured.as_ref()?))).collect();
    let Some(longest) = measured.iter().map(|(_, m)| m.latency.p99.nanos()).max().filter(|n| *n > 0) else {
        return String::new();
    };
    let height = 26 * measured.len() + 10;
    let mut out = format!(
        "<svg role=\"img\" aria-label=\"latency of each rung: p50 and p99\" viewBox=\"0 0 720 {height}\" width=\"720\" height=\"{height}\">\n"
    );
    for (i, (rung, m)) in measured.iter().enumerate() {
        let y = 26 * i + 4;
        // Whole pixels of 440, by integer arithmetic: the same everywhere.
        let width = |nanos: u64| u128::from(nanos) * 440 / u128::from(longest);
        let (p50, p99) = (width(m.latency.p50.nanos()), width(m.latency.p99.nanos()));
        let _ = writeln!(
            out,
            "<text x=\"0\" y=\"{}\">{}</text><rect x=\"130\" y=\"{y}\" width=\"{p99}\" height=\"18\" fill=\"#b6d4f2\"/>\
             <rect x=\"130\" y=\"{y}\" width=\"{p50}\" height=\"18\" fill=\"#1f6feb\"/><text x=\"{}\" y=\"{}\">{} / {} ms</text>",
            y + 14,
            text(&rung.info.rung),
            138 + p99,
            y + 14,
            ms(m.latency.p50.ms()),
            ms(m.latency.p99.ms())
        );
    }
    out += "</svg>\n<p>p50 and p99 of each rung.</p>\n";
    out
}

/// Throughput against requests in flight.
fn load_plot(record: &Record) -> String {
    let points = record.steps.iter().find_map(|s| match &s.found {
        Found::Load { points, .. } => Some(points),
        _ => None,
    });
    let Some(points) = points.filter(|p| p.len() > 1) else { return String::new() };
    let per_s = |p: &crate::record::LoadPoint| p.throughput_per_s.value();
    let most = points.iter().map(per_s).fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let mut out = "<svg role=\"img\" aria-label=\"throughput by requests in flight\" viewBox=\"0 0 720 190\" width=\"720\" height=\"190\">\n".to_owned();
    for (i, p) in points.iter().enumerate() {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 0 to 130
        let height = (per_s(p) / most * 130.0).round().clamp(0.0, 130.0) as u32;
        let x = 20 + 85 * i;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{}\" width=\"50\" height=\"{height}\" fill=\"#1f6feb\"/><text x=\"{x}\" y=\"{}\">{}/s</text>\
             <text x=\"{x}\" y=\"182\">{} in flight</text>",
            165 - height,
            158 - height,
            figures(per_s(p)),
            p.in_flight
        );
    }
    out += "</svg>\n";
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_came_from_elsewhere_is_escaped() {
        assert_eq!(super::text("<script>\"x\" & 'y'\u{7}"), "&lt;script&gt;&quot;x&quot; &amp; &#39;y&#39; ");
    }
}
