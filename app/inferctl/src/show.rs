//! Words and numbers for people.

use serde::Serialize;
use std::io::Write as _;

/// Prints a line. When the reader of a pipe has gone, the program ends quietly, as shell tools do.
pub fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(e) = writeln!(out, "{text}").and_then(|()| out.flush()) {
        let gone = e.kind() == std::io::ErrorKind::BrokenPipe;
        if !gone {
            eprintln!("inferctl: standard output cannot be written: {e}");
        }
        std::process::exit(if gone { 0 } else { 1 });
    }
}

/// A text that may hold what a downloaded file says, for a terminal: what would steer it, or turn the text around, is written out.
#[must_use]
pub fn harmless(text: &str) -> String {
    let steers = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::new(), |mut out, c| {
        if steers(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        out
    })
}

/// Prints a value as JSON, indented.
pub fn json(value: &impl Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(e) => eprintln!("inferctl: the result has no JSON form: {e}"),
    }
}

/// Microseconds in the unit that reads best: `950us`, `1.25ms`, `31.0ms`, `2.50s`.
#[must_use]
pub fn micros(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0}us"),
        us if us < 10_000.0 => format!("{:.2}ms", us / 1e3),
        us if us < 1_000_000.0 => format!("{:.1}ms", us / 1e3),
        us => format!("{:.2}s", us / 1e6),
    }
}

/// Bytes in the unit that reads best: `900 B`, `52.4 kB`, `1.3 MB`. Decimal, as disks and networks count.
#[must_use]
#[allow(clippy::cast_precision_loss)] // three digits are shown
pub fn bytes(n: u64) -> String {
    match n {
        n if n < 1_000 => format!("{n} B"),
        n if n < 1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        n if n < 1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        n => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// Seconds as people say them: `45 s`, `3 min`, `5 h 12 min`, `3 d 4 h`.
#[must_use]
pub fn age(seconds: u64) -> String {
    match seconds {
        s if s < 120 => format!("{s} s"),
        s if s < 7200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// A bar for a score in [0, 1], twenty cells wide.
#[must_use]
pub fn bar(score: f64) -> String {
    let cells = (1..=20_u8).filter(|i| score * 20.0 >= f64::from(*i) - 0.5).count();
    "█".repeat(cells)
}

/// Rows under their heads, columns as wide as their widest cell.
#[must_use]
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count());
        cells.chain([heads[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let print = |cells: Vec<&str>| {
        let padded: Vec<String> =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![print(heads.to_vec())];
    lines.extend(rows.iter().map(|row| print(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_steer_a_terminal_is_written_out() {
        let text = "evil \u{1b}[31m\u{202e}gpj\r\u{7f}\u{9b}2J, \tfür\nall";
        assert_eq!(harmless(text), "evil \\u{1b}[31m\\u{202e}gpj\\u{d}\\u{7f}\\u{9b}2J, \tfür\nall");
    }

    #[test]
    fn times_are_shown_in_the_unit_that_reads_best() {
        let table = [
            (0.4, "0us"),
            (950.0, "950us"),
            (1250.0, "1.25ms"),
            (31_000.0, "31.0ms"),
            (2_500_000.0, "2.50s"),
        ];
        for (us, text) in table {
            assert_eq!(micros(us), text);
        }
        let table = [(900, "900 B"), (52_400, "52.4 kB"), (1_300_000, "1.3 MB"), (5_000_000_000, "5.00 GB")];
        for (n, text) in table {
            assert_eq!(bytes(n), text);
        }
        let table = [(45, "45 s"), (200, "3 min"), (18_720, "5 h 12 min"), (273_600, "3 d 4 h")];
        for (seconds, text) in table {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn bars_are_as_long_as_the_score() {
        for (score, cells) in
            [(0.0, 0), (0.02, 0), (0.5, 10), (0.97, 19), (1.0, 20), (7.0, 20), (f64::NAN, 0)]
        {
            assert_eq!(bar(score).chars().count(), cells, "{score}");
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["imu-motion".to_owned(), "READY".to_owned()], vec!["x".to_owned(), String::new()]];
        assert_eq!(table(&["name", "state"], &rows), "name        state\nimu-motion  READY\nx");
    }
}
