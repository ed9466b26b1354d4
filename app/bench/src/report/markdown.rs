//! Markdown.

use super::{View, advice, conditions, headline, mib, ms, reasons, selected, step_words, table};
use crate::record::Record;
use crate::regress::Level;
use std::fmt::Write as _;

/// Marks of Markdown and HTML are taken literally.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '\n' | '\r' => out.push(' '),
            '|' | '*' | '_' | '`' | '[' | ']' | '\\' | '#' | '!' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}

pub(super) fn page(record: &Record, view: View) -> String {
    let s = &record.subject;
    let mut out = format!("# {} {}: {}\n\n", plain(&s.model), plain(&s.version), headline(record));
    let _ = writeln!(out, "{}.\n", plain(&record.decision.because));
    if let Some((rung, m)) = selected(record) {
        let _ = writeln!(
            out,
            "**{}**: p50 {} ms, p95 {} ms, p99 {} ms{}.\n",
            plain(&rung.info.rung),
            ms(m.latency.p50.ms()),
            ms(m.latency.p95.ms()),
            ms(m.latency.p99.ms()),
            m.memory.as_ref().map_or_else(String::new, |p| format!(", {} of memory", mib(p.peak_bytes)))
        );
    }
    advice(record).iter().for_each(|line| {
        let _ = writeln!(out, "- {}", plain(line));
    });
    out.push('\n');
    if view == View::Simple {
        return out;
    }
    let (heads, rows) = table(record);
    let _ = writeln!(out, "## Rungs\n\n| {} |\n|{}", heads.join(" | "), "---|".repeat(heads.len()));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|c| plain(c)).collect();
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
    out += "\n## Decision\n\n";
    let constraints: Vec<String> = record.constraints().iter().map(ToString::to_string).collect();
    let said = if constraints.is_empty() { "none".into() } else { constraints.join(", ") };
    let _ = writeln!(out, "Constraints: {}.\n", plain(&said));
    reasons(record).iter().for_each(|line| {
        let _ = writeln!(out, "- {}", plain(line));
    });
    out += "\n## The nine steps\n\n";
    for step in &record.steps {
        let _ = writeln!(
            out,
            "{}. {}: {}",
            step.step.number(),
            step.step.words(),
            plain(&step_words(record, step))
        );
    }
    out += "\n## Against the baseline\n\n";
    for r in &record.regressions {
        let level = level_words(r.level);
        let why = if r.reasons.is_empty() { String::new() } else { format!(": {}", r.reasons.join("; ")) };
        let _ = writeln!(out, "- {}: {level}{}", plain(&r.rung), plain(&why));
    }
    out += "\n## Where\n\n";
    let _ = writeln!(out, "- firmware {}, {}, {} cores", plain(&s.firmware), plain(&s.arch), s.cores);
    let _ = writeln!(out, "- network {}", plain(&s.sha256));
    let _ = writeln!(out, "- before: {}", conditions(&record.before));
    let _ = writeln!(out, "- after: {}", conditions(&record.after));
    let r = &record.request;
    let _ = writeln!(
        out,
        "- {} inferences to warm up, then runs of {}, {} that agree of at most {}",
        r.warm_up, r.iterations, r.repeats, r.most_repeats
    );
    out
}

pub(super) fn level_words(level: Level) -> &'static str {
    match level {
        Level::NoBaseline => "there was no baseline",
        Level::TooFew => "too few samples to say",
        Level::Ok => "as before",
        Level::Warning => "warning",
        Level::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn marks_are_taken_literally() {
        assert_eq!(super::plain("a|b <i>_x_</i>\n# y"), "a\\|b &lt;i&gt;\\_x\\_&lt;/i&gt; \\# y");
    }
}
