//! The last words of the daemon: what it said last on standard error, and every line of it passed on, except those that the daemon
//! writes into the journal itself ([`crate::journal`]).

use crate::journal::MARK;
use std::collections::VecDeque;

/// Lines kept.
pub const MAX_LINES: usize = 100;
/// Bytes kept.
pub const MAX_BYTES: usize = 16 * 1024;
/// The longest line; the kernel's log takes 1024 bytes with what it adds. A longer one becomes several.
pub const MAX_LINE: usize = 900;

/// Cuts a stream into lines and keeps the last ones.
#[derive(Debug, Default)]
pub struct Words {
    kept: VecDeque<String>,
    bytes: usize,
    partial: Vec<u8>,
    /// Marks count.
    marks: bool,
    /// The line that is being read has one: it is somebody else's to pass on.
    marked: bool,
}

impl Words {
    /// Of a daemon that marks the lines it writes into the journal itself, or of one that does not.
    #[must_use]
    pub fn new(marks: bool) -> Self {
        Self { marks, ..Self::default() }
    }

    /// Takes bytes in; gives the lines to be passed on that they complete, without their ends.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in bytes {
            if byte == MARK && self.marks {
                // What was there before it is a line of somebody who has not ended it.
                lines.extend(self.complete());
                self.marked = true;
                continue;
            }
            if byte != b'\n' {
                self.partial.push(byte);
            }
            if byte == b'\n' || self.partial.len() >= MAX_LINE {
                lines.extend(self.complete());
            }
            if byte == b'\n' {
                self.marked = false;
            }
        }
        lines
    }

    /// The stream has ended: what is left of it is a line too.
    pub fn finish(&mut self) -> Option<String> {
        let line = self.complete();
        self.marked = false;
        line
    }

    /// Keeps a line; gives it if it is to be passed on.
    fn complete(&mut self) -> Option<String> {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.partial)).into_owned();
        if line.trim().is_empty() {
            return None;
        }
        self.bytes += line.len();
        self.kept.push_back(line.clone());
        while self.kept.len() > MAX_LINES || self.bytes > MAX_BYTES {
            let Some(old) = self.kept.pop_front() else { break };
            self.bytes -= old.len();
        }
        (!self.marked).then_some(line)
    }

    /// The last lines, oldest first, without marks of their level; the next daemon begins with none.
    pub fn last(&mut self) -> Vec<String> {
        self.bytes = 0;
        self.kept.drain(..).map(|line| plain(&line)).collect()
    }

    /// The same, and they stay.
    #[must_use]
    pub fn so_far(&self) -> Vec<String> {
        self.kept.iter().map(|line| plain(line)).collect()
    }
}

/// A line without the level in front of it (`<4>`) and without control characters.
fn plain(line: &str) -> String {
    let rest = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    let rest = rest.filter(|(level, _)| level.len() <= 3 && level.bytes().all(|b| b.is_ascii_digit()));
    rest.map_or(line, |(_, rest)| rest).chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_stream_is_cut() {
        let text = b"one\n\ntwo \xff\nthree";
        for cut in 0..text.len() {
            let mut words = Words::default();
            let mut lines = words.take(&text[..cut]);
            lines.extend(words.take(&text[cut..]));
            lines.extend(words.finish());
            assert_eq!(lines, ["one", "two \u{fffd}", "three"], "cut at {cut}");
        }
    }

    #[test]
    fn the_last_hundred_lines_and_sixteen_kib_are_kept() {
        let mut words = Words::default();
        for n in 0..1000 {
            words.take(format!("<4>line {n}\n").as_bytes());
        }
        assert_eq!(words.so_far().len(), MAX_LINES);
        assert_eq!(words.last().last().unwrap(), "line 999");
        assert!(words.last().is_empty(), "the next daemon begins with none");
        words.take(&vec![b'x'; 10 * MAX_BYTES]);
        let kept = words.last();
        assert!(
            kept.iter().map(String::len).sum::<usize>() <= MAX_BYTES && kept.len() >= 18,
            "{}",
            kept.len()
        );
        assert!(kept.iter().all(|line| line.len() <= MAX_LINE));
    }

    #[test]
    fn a_marked_line_is_kept_and_not_passed_on_wherever_the_stream_is_cut() {
        let long = "y".repeat(2 * MAX_LINE);
        let text = format!("\x06<6>one\nabort \x06<4>two\nfree(): invalid\n\x06{long}\nlast\n\x06three");
        for cut in 0..text.len() {
            let mut words = Words::new(true);
            let mut lines = words.take(&text.as_bytes()[..cut]);
            lines.extend(words.take(&text.as_bytes()[cut..]));
            lines.extend(words.finish());
            assert_eq!(lines, ["abort ", "free(): invalid", "last"], "cut at {cut}");
            let kept = words.last();
            assert_eq!(kept[..4], ["one", "abort ", "two", "free(): invalid"], "cut at {cut}");
            assert_eq!(kept[4..].concat(), format!("{long}lastthree"), "cut at {cut}");
            assert_eq!(words.take(b"next\n"), ["next"], "the next daemon begins without a mark");
        }
    }

    #[test]
    fn a_mark_means_nothing_of_a_daemon_that_was_not_told_to_make_any() {
        assert_eq!(Words::default().take(b"\x06one\n"), ["\x06one"]);
    }

    #[test]
    fn a_line_that_only_looks_like_a_level_stays() {
        assert_eq!(plain("<html>x"), "<html>x");
        assert_eq!(plain("<30>x\u{1b}[0m"), "x[0m");
    }
}
