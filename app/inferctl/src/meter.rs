//! A progress bar of bytes that really went out, on standard error.

use crate::show;
use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Cells of the bar.
const CELLS: u64 = 28;
/// Between two drawings on a terminal.
const EVERY: Duration = Duration::from_millis(100);
/// No speed is shown before.
const MEANINGFUL_MS: u128 = 500;

/// Draws how much of a file is through; on a terminal in place, otherwise one line per quarter.
#[derive(Debug)]
pub struct Meter {
    what: String,
    total: u64,
    first: u64,
    now: u64,
    terminal: bool,
    quiet: bool,
    began: Instant,
    drawn: Option<Instant>,
    quarter: u64,
    rest: bool,
}

impl Meter {
    /// A meter for `total` bytes of which `first` are through already. A quiet one draws nothing.
    pub fn new(what: &str, first: u64, total: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let quarter = quarters(first, total);
        let began = Instant::now();
        Self {
            what: what.to_owned(),
            total,
            first,
            now: first,
            terminal,
            quiet,
            began,
            drawn: None,
            quarter,
            rest: false,
        }
    }

    /// Also says how long the rest will take at this speed.
    pub fn with_rest(mut self) -> Self {
        self.rest = true;
        self
    }

    /// `now` bytes are through.
    pub fn at(&mut self, now: u64) {
        self.now = now;
        if self.quiet {
            return;
        }
        if self.terminal {
            if now == self.total || self.drawn.is_none_or(|at| at.elapsed() >= EVERY) {
                self.drawn = Some(Instant::now());
                self.write(&format!("\r{}\x1b[K", self.line()));
            }
        } else if quarters(now, self.total) > self.quarter {
            self.quarter = quarters(now, self.total);
            self.write(&format!("{}\n", self.line()));
        }
    }

    /// Leaves the line as it stands.
    pub fn end(&mut self) {
        if !self.quiet && self.terminal && self.drawn.is_some() {
            self.write("\n");
        }
    }

    fn line(&self) -> String {
        let left = self.speed().filter(|n| self.rest && *n > 0 && self.now < self.total);
        format!(
            "{}  [{}] {:>3} %  {} of {}{}{}",
            self.what,
            bar(self.now, self.total),
            percent(self.now, self.total),
            show::bytes(self.now),
            show::bytes(self.total),
            self.speed().map_or(String::new(), |n| format!("  {}/s", show::bytes(n))),
            left.map_or(String::new(), |n| format!(
                "  {} left",
                show::age((self.total - self.now).div_ceil(n))
            )),
        )
    }

    /// Bytes per second, once they say more than how large the buffers on the way are.
    fn speed(&self) -> Option<u64> {
        let ms = self.began.elapsed().as_millis();
        let sent = u128::from(self.now - self.first);
        (ms >= MEANINGFUL_MS).then(|| u64::try_from(sent * 1000 / ms).unwrap_or(u64::MAX))
    }

    /// A standard error that is gone is no reason to stop sending.
    fn write(&self, text: &str) {
        let mut out = std::io::stderr().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}

/// What part of the total is through, in percent; rounded down, so that 100 means all.
fn percent(now: u64, total: u64) -> u64 {
    parts(now, total, 100)
}

fn quarters(now: u64, total: u64) -> u64 {
    parts(now, total, 4)
}

fn parts(now: u64, total: u64, parts: u64) -> u64 {
    let share = u128::from(now.min(total)) * u128::from(parts) / u128::from(total.max(1));
    u64::try_from(share).unwrap_or(parts)
}

fn bar(now: u64, total: u64) -> String {
    let full = parts(now, total, CELLS);
    (0..CELLS).map(|cell| if cell < full { '#' } else { '.' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_everything_is_a_hundred_percent() {
        assert_eq!((percent(0, 10), percent(9_999_999, 10_000_000), percent(10, 10)), (0, 99, 100));
        assert_eq!((percent(u64::MAX - 1, u64::MAX), percent(0, 0)), (99, 0));
        assert_eq!(bar(5, 10), format!("{}{}", "#".repeat(14), ".".repeat(14)));
    }
}
