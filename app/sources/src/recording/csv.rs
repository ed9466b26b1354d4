//! Text: a line a row, fields separated by tabs, semicolons, commas or spaces.
//!
//! The separator is the first of these that the first line has. Lines that are empty or begin with `#` are passed over. A
//! first line with a field that is no number is a header: columns named `label`, `labels`, `restimulus`, `stimulus` are
//! labels (the first of those names wins, the others are left out), `rerepetition`, `repetition` repetitions, `t`, `time`,
//! `timestamp`, `index` are left out, all others are channels. Numbers have a decimal point, and there are no quotes.

use super::{Limits, LineError, Recording, RecordingError, finite, whole};
use crate::MAX_CHANNELS;
use std::io::{BufRead as _, BufReader, Read};

/// The longest line.
const MAX_LINE: usize = 16 << 10;

const LABELS: [&str; 4] = ["restimulus", "stimulus", "label", "labels"];
const REPETITIONS: [&str; 2] = ["rerepetition", "repetition"];
const LEFT_OUT: [&str; 4] = ["t", "time", "timestamp", "index"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Channel,
    Label,
    Repetition,
    LeftOut,
}

pub fn read(input: impl Read, limits: &Limits) -> Result<Recording, RecordingError> {
    let mut input = BufReader::with_capacity(super::CHUNK, input);
    let mut line = Vec::new();
    let mut columns: Option<(char, Vec<Column>)> = None;
    let mut out = Recording {
        channels: 0,
        values: Vec::new(),
        block: None,
        labels: None,
        repetitions: None,
        rate_hz: None,
    };
    for number in 1.. {
        line.clear();
        if input.by_ref().take(MAX_LINE as u64 + 2).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let at = |reason| RecordingError::Line { line: number, reason };
        let bytes = line.trim_ascii();
        if line.len() > MAX_LINE + 1 || bytes.len() > MAX_LINE {
            return Err(at(LineError::Long));
        }
        let mut text = std::str::from_utf8(bytes).map_err(|_| at(LineError::Text))?;
        if number == 1 {
            // Spreadsheets begin with a byte order mark.
            text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_start();
        }
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        if text.contains('"') {
            return Err(at(LineError::Quote));
        }
        let (separator, columns) = match &columns {
            Some((separator, columns)) => (*separator, columns),
            None => {
                let separator = ['\t', ';', ','].into_iter().find(|&c| text.contains(c)).unwrap_or(' ');
                let names: Vec<&str> = fields(text, separator).take(MAX_FIELDS + 1).collect();
                if names.len() > MAX_FIELDS {
                    return Err(RecordingError::Channels(names.len()));
                }
                let header = names.iter().any(|name| name.parse::<f64>().is_err());
                let kinds = if header { by_name(&names) } else { vec![Column::Channel; names.len()] };
                out.channels = kinds.iter().filter(|&&k| k == Column::Channel).count();
                if out.channels == 0 || out.channels > MAX_CHANNELS {
                    return Err(RecordingError::Channels(out.channels));
                }
                out.labels = kinds.contains(&Column::Label).then(Vec::new);
                out.repetitions = kinds.contains(&Column::Repetition).then(Vec::new);
                let (separator, kinds) = columns.insert((separator, kinds));
                if header {
                    continue;
                }
                (*separator, &*kinds)
            }
        };
        let found = fields(text, separator).count();
        if found != columns.len() {
            return Err(at(LineError::Fields { found, expected: columns.len() }));
        }
        if out.values.len() + out.channels > limits.values {
            let found = (out.values.len() + out.channels) as u64;
            return Err(RecordingError::TooLarge { found, most: limits.values });
        }
        for (i, (field, column)) in fields(text, separator).zip(columns).enumerate() {
            let value = || field.parse::<f64>().map_err(|_| at(LineError::Number(i + 1)));
            let label = || whole(value()?).ok_or(at(LineError::Label(i + 1)));
            match column {
                Column::Channel => out.values.push(finite(value()?).ok_or(at(LineError::Number(i + 1)))?),
                Column::Label => out.labels.get_or_insert_default().push(label()?),
                Column::Repetition => out.repetitions.get_or_insert_default().push(label()?),
                Column::LeftOut => (),
            }
        }
    }
    if out.channels == 0 {
        return Err(RecordingError::Empty);
    }
    out.validated()
}

/// Channels and what may stand beside them.
const MAX_FIELDS: usize = MAX_CHANNELS + LABELS.len() + REPETITIONS.len() + LEFT_OUT.len();

fn fields(text: &str, separator: char) -> impl Iterator<Item = &str> {
    // Several spaces are one separator, several of another are empty fields, which are no numbers.
    text.split(separator).filter(move |field| separator != ' ' || !field.is_empty()).map(str::trim)
}

fn by_name(names: &[&str]) -> Vec<Column> {
    let names: Vec<String> = names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let first_of = |kinds: &[&str]| kinds.iter().find_map(|kind| names.iter().position(|name| name == kind));
    let (label, repetition) = (first_of(&LABELS), first_of(&REPETITIONS));
    let special = |name: &String| [&LABELS[..], &REPETITIONS, &LEFT_OUT].concat().contains(&name.as_str());
    let kind = |(i, name)| match i {
        i if Some(i) == label => Column::Label,
        i if Some(i) == repetition => Column::Repetition,
        _ if special(name) => Column::LeftOut,
        _ => Column::Channel,
    };
    names.iter().enumerate().map(kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<Recording, RecordingError> {
        Recording::read(text.as_bytes(), &Limits { values: 100, bytes: 1 << 20 })
    }

    fn line(line: usize, reason: LineError) -> Result<Recording, RecordingError> {
        Err(RecordingError::Line { line, reason })
    }

    #[test]
    fn every_separator_is_read_with_and_without_header() {
        for separator in [",", ";", "\t", " ", "   ", " , "] {
            for header in ["", "a,b\n", "# a comment\r\n\r\n"] {
                let text = format!("{}1,-2.5\r\n3e2,.5\n\n", header).replace(',', separator);
                let recording = open(&text).unwrap();
                assert_eq!(recording.values(), [1.0, -2.5, 300.0, 0.5], "{text:?}");
                assert_eq!((recording.channels(), recording.label(0)), (2, None));
            }
        }
    }

    #[test]
    fn columns_are_known_by_their_names() {
        let text = "time,Emg1,stimulus,emg2,restimulus,repetition\n0.0,1,5,2,6,1\n0.5,3,5,4,0,2\n";
        let recording = open(text).unwrap();
        assert_eq!(recording.values(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!([0, 1, 2].map(|row| recording.label(row)), [Some(6), Some(0), None]);
        assert_eq!([0, 1].map(|row| recording.repetition(row)), [Some(1), Some(2)]);
    }

    #[test]
    fn a_byte_order_mark_and_a_missing_end_are_no_obstacle() {
        assert_eq!(open("\u{feff}1,2\n3,4").unwrap().values(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(open("\u{feff}# x\n7").unwrap().values(), [7.0]);
    }

    #[test]
    fn what_is_no_row_is_refused_by_its_line() {
        assert_eq!(open("1,2\n3\n"), line(2, LineError::Fields { found: 1, expected: 2 }));
        assert_eq!(open("a,b\n\n1,2,3\n"), line(3, LineError::Fields { found: 3, expected: 2 }));
        assert_eq!(open("1,2\n3,x\n"), line(2, LineError::Number(2)));
        assert_eq!(open("1,2\n,4\n"), line(2, LineError::Number(1)));
        for bad in ["nan", "NaN", "inf", "-Infinity", "1e300", "0x10", "1_000"] {
            assert_eq!(open(&format!("1,2\n{bad},4\n")), line(2, LineError::Number(1)), "{bad}");
        }
        assert_eq!(open("1;2,5\n"), open("a;b"), "a decimal comma makes a header, and there is no row");
        assert_eq!(open("1,2\n\"3\",4\n"), line(2, LineError::Quote));
        assert_eq!(open("x,label\n1,0.5\n"), line(2, LineError::Label(2)));
        let bytes = b"1,2\n\xff,4\n";
        assert_eq!(Recording::read(&bytes[..], &Limits::default()), line(2, LineError::Text));
        assert_eq!(open(&format!("1\n{}1\n", "0".repeat(MAX_LINE))), line(2, LineError::Long));
        assert_eq!(open(&format!("1\n{}\n", "0".repeat(MAX_LINE))).unwrap().rows(), 2);
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(open(&"1,2\n".repeat(51)), Err(RecordingError::TooLarge { found: 102, most: 100 }));
        assert_eq!(open(&"1,".repeat(33)), Err(RecordingError::Channels(34)));
        assert_eq!(open(&"1,".repeat(99)), Err(RecordingError::Channels(43)));
        assert_eq!(open("time,label\n1,2\n"), Err(RecordingError::Channels(0)));
        for nothing in ["", "\n\n", "# only words\n", "a,b\n"] {
            assert_eq!(open(nothing), Err(RecordingError::Empty), "{nothing:?}");
        }
    }
}
