//! The last words of a host: what it wrote to its standard error.
//!
//! Each line goes to the daemon's log and into a ring of the last [`LAST_LINES`]. A host that writes without end costs a bounded
//! part of the daemon: lines beyond [`LOG_LINES_PER_SECOND`] are counted instead of logged, and beyond
//! [`STDERR_BYTES_PER_SECOND`] nothing is read until the second is over, so that the host waits for its own pipe.

use crate::limits::{LAST_LINES, LOG_LINES_PER_SECOND, MAX_LINE, STDERR_BYTES_PER_SECOND};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long the rest of a dead host's words is waited for: a process it left behind may hold the pipe open.
const REST: Duration = Duration::from_millis(200);

/// The words of one host.
pub struct Words {
    last: Arc<Mutex<Lines>>,
    reader: JoinHandle<()>,
}

#[derive(Default)]
struct Lines {
    whole: VecDeque<String>,
    /// The line that has no end yet.
    open: Vec<u8>,
    /// What the open line has beyond its place is being passed over.
    cut: bool,
}

impl Lines {
    /// Takes bytes in; calls `each` with every line that ended.
    fn push(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &b in bytes {
            if b == b'\n' {
                self.end(&mut each);
            } else if self.open.len() < MAX_LINE {
                self.open.push(b);
            } else {
                self.cut = true;
            }
        }
    }

    fn end(&mut self, each: &mut impl FnMut(&str)) {
        let mut line = plain(&String::from_utf8_lossy(&self.open));
        if self.cut {
            line.push_str(" ...");
        }
        self.open.clear();
        self.cut = false;
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        each(line);
        if self.whole.len() == LAST_LINES {
            self.whole.pop_front();
        }
        self.whole.push_back(line.to_owned());
    }
}

/// A log is shown on terminals: nothing in it may move a cursor or have a colour of its own.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == '\u{1b}' && rest.next_if_eq(&'[').is_some() {
            // What a terminal would do ends with a letter (ECMA-48, 5.4).
            while rest.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
            rest.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
        } else {
            plain.push(if c.is_control() { ' ' } else { c });
        }
    }
    plain
}

/// The exit status of the dynamic linker and of a shell: there is no program to run.
const NO_PROGRAM: i32 = 127;

/// What a process that could not be loaded lacks, in words, when that is how it ended. The dynamic linker says it in a line of its own.
pub fn not_loaded(status: i32, lines: &[String]) -> Option<String> {
    let what = |line: &String| Some(line.split_once("error while loading shared libraries: ")?.1.to_owned());
    (status == NO_PROGRAM).then(|| match lines.iter().rev().find_map(what) {
        Some(library) => format!("its program cannot be loaded: it lacks {library}"),
        None => "its program cannot be loaded: a library of it is missing (status 127)".to_owned(),
    })
}

impl Words {
    /// Begins to read a host's standard error.
    pub fn read(from: impl AsyncRead + Unpin + Send + 'static, model: String, pid: u32) -> Self {
        let last = Arc::new(Mutex::new(Lines::default()));
        let reader = tokio::spawn(follow(from, last.clone(), model, pid));
        Self { last, reader }
    }

    /// The last lines of a host that has ended.
    pub async fn last(mut self) -> Vec<String> {
        if tokio::time::timeout(REST, &mut self.reader).await.is_err() {
            self.reader.abort();
        }
        let mut lines = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        lines.end(&mut |_| ());
        std::mem::take(&mut lines.whole).into()
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn follow(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    last: Arc<Mutex<Lines>>,
    model: String,
    pid: u32,
) {
    let mut buffer = vec![0; 4096];
    let (mut second, mut bytes, mut logged, mut kept_back) = (Instant::now(), 0, 0_u32, 0_u64);
    loop {
        // An error is as good as the end: nothing more comes.
        let Ok(n @ 1..) = from.read(&mut buffer).await else { return };
        if second.elapsed() >= Duration::from_secs(1) {
            if kept_back > 0 {
                tracing::warn!(
                    model,
                    pid,
                    lines = kept_back,
                    "lines of an engine host were not logged: too many"
                );
            }
            (second, bytes, logged, kept_back) = (Instant::now(), 0, 0, 0);
        }
        last.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..n], |line| {
            if logged < LOG_LINES_PER_SECOND {
                logged += 1;
                tracing::info!(model, pid, line, "engine host says");
            } else {
                kept_back += 1;
            }
        });
        bytes += n;
        if bytes >= STDERR_BYTES_PER_SECOND {
            tokio::time::sleep_until(second + Duration::from_secs(1)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> (Vec<String>, Vec<String>) {
        let (mut lines, mut seen) = (Lines::default(), vec![]);
        // In pieces of three: an end may come anywhere.
        bytes.chunks(3).for_each(|c| lines.push(c, |l| seen.push(l.to_owned())));
        lines.end(&mut |_| ());
        (seen, lines.whole.into())
    }

    #[test]
    fn the_last_lines_are_kept_the_unfinished_one_too() {
        let text: String = (0..100).map(|i| format!("line {i}\n")).collect::<String>() + "rest";
        let (seen, kept) = lines(text.as_bytes());
        assert_eq!(seen.len(), 100);
        assert_eq!(kept.len(), LAST_LINES);
        assert_eq!(kept.last().map(String::as_str), Some("rest"));
    }

    #[test]
    fn a_line_is_text_of_a_bounded_length_without_control_characters() {
        let (_, kept) = lines(b"\x1b[2J\x1b[1;31mred\x07\x1b[m\x1b7\n\n\xff\xfe\n\x1b[0;9");
        assert_eq!(kept, ["red  7", "\u{fffd}\u{fffd}"]);
        let (_, kept) = lines(&[b'x'; 10 * MAX_LINE]);
        assert_eq!(kept[0].len(), MAX_LINE + " ...".len());
    }

    #[test]
    fn who_could_not_be_loaded_lacks_what_the_linker_says() {
        let line = "/usr/bin/host: error while loading shared libraries: libgomp.so.1: cannot open shared object file";
        let said = not_loaded(127, &["something".to_owned(), line.to_owned()]).unwrap();
        assert_eq!(
            said,
            "its program cannot be loaded: it lacks libgomp.so.1: cannot open shared object file"
        );
        assert!(not_loaded(127, &[]).unwrap().contains("a library of it is missing"));
        assert_eq!(not_loaded(1, &[line.to_owned()]), None, "another status has another reason");
    }
}
