//! Log lines to standard error, by a thread of their own.
//!
//! Whoever logs hands a line to a bounded queue and goes on: a serial console at 115200 baud or a stopped journald must not
//! slow a request down. Lines that do not fit are counted, and the count is logged when there is room again.

use crate::config::{LogFormat, Logging};
use std::{
    fmt,
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};
use tracing::{Event, Level, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer},
    registry::LookupSpan,
};

/// Lines that may wait to be written.
const QUEUE: usize = 1024;
/// How long the end of the process waits for lines still queued.
const FLUSH: Duration = Duration::from_millis(500);

/// Hands log lines to the writing thread.
#[derive(Clone, Debug)]
pub struct Log {
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Everything before it was written: say so.
    Flush(SyncSender<()>),
}

/// Starts logging for this process, panics included.
pub fn start(settings: Logging) -> Log {
    let format = resolve(settings.format);
    let log = Log::to(io::stderr(), format);
    let filter = LevelFilter::from_level(settings.level);
    let base = tracing_subscriber::fmt().with_max_level(filter).with_writer(log.clone()).with_ansi(false);
    let outcome = match format {
        LogFormat::Json => tracing::subscriber::set_global_default(base.json().flatten_event(true).finish()),
        LogFormat::Journal => {
            tracing::subscriber::set_global_default(base.event_format(JournalLine).finish())
        }
        LogFormat::Text | LogFormat::Auto => tracing::subscriber::set_global_default(base.finish()),
    };
    outcome.expect("logging is started once, by main");
    let for_panics = log.clone();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let words = info.payload_as_str().unwrap_or("no message");
        tracing::error!(thread = thread.name().unwrap_or("?"), place, "panic: {words}");
        for_panics.flush();
    }));
    log
}

/// What `auto` means here: journald says in JOURNAL_STREAM which file it gave us as standard error.
fn resolve(format: LogFormat) -> LogFormat {
    if format != LogFormat::Auto {
        return format;
    }
    let ours = std::fs::metadata("/proc/self/fd/2").map(|m| format!("{}:{}", m.dev(), m.ino())).ok();
    match (std::env::var("JOURNAL_STREAM").ok(), ours) {
        (Some(journal), Some(ours)) if journal == ours => LogFormat::Journal,
        _ => LogFormat::Text,
    }
}

impl Log {
    /// A log that ends in `sink`.
    fn to(sink: impl Write + Send + 'static, format: LogFormat) -> Self {
        let (queue, lines) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        let writer = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&lines, &count, sink, format));
        // Without a thread every line is counted as dropped; that is all that can be done at this point.
        drop(writer);
        Self { queue, dropped }
    }

    /// Waits, for a bounded time, until what was logged before is written.
    pub fn flush(&self) {
        let deadline = Instant::now() + FLUSH;
        let (done, written) = sync_channel(1);
        while self.queue.try_send(Message::Flush(done.clone())).is_err() {
            if Instant::now() >= deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // Whether it was written or the time is up: there is nothing more to do.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn line(&self, line: Vec<u8>) {
        if self.queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The writing thread. A sink that fails is not a reason to stop: a console may come back.
fn write_lines(lines: &Receiver<Message>, dropped: &AtomicU64, mut sink: impl Write, format: LogFormat) {
    while let Ok(message) = lines.recv() {
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let words = "log lines were dropped: they came faster than they could be written";
            let _ = match format {
                LogFormat::Json => writeln!(sink, r#"{{"level":"WARN","message":"{words}","lines":{lost}}}"#),
                LogFormat::Journal => writeln!(sink, "<4>{words} lines={lost}"),
                LogFormat::Text | LogFormat::Auto => writeln!(sink, "WARN {words} lines={lost}"),
            };
        }
        match message {
            Message::Line(line) => {
                let _ = sink.write_all(&line);
            }
            Message::Flush(done) => {
                let _ = sink.flush();
                let _ = done.try_send(());
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, bytes: Vec::with_capacity(256) }
    }
}

/// One line that is being put together.
pub struct Line<'a> {
    log: &'a Log,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.log.line(std::mem::take(&mut self.bytes));
        }
    }
}

/// `<6>target: message field=value`, see sd-daemon(3).
struct JournalLine;

impl<S, N> FormatEvent<S, N> for JournalLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let meta = event.metadata();
        let priority = match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        // A line break would end the entry and lose its priority.
        let mut text = String::new();
        ctx.format_fields(Writer::new(&mut text), event)?;
        writeln!(out, "<{priority}>{}: {}", meta.target(), text.replace('\n', "\\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Mutex, mpsc};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// A sink that blocks until it is let go.
    struct Stuck(mpsc::Receiver<()>, Shared);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_console_stops_nobody_and_lost_lines_are_counted() {
        let (go, gate) = mpsc::channel();
        let shared = Shared::default();
        let log = Log::to(Stuck(gate, shared.clone()), LogFormat::Text);
        for _ in 0..QUEUE + 101 {
            log.line(b"line\n".to_vec());
        }
        drop(go);
        log.flush();
        let text = shared.text();
        let written = text.lines().filter(|l| *l == "line").count();
        let lost: usize = text
            .lines()
            .filter_map(|l| l.rsplit_once("were dropped: they came faster than they could be written lines="))
            .map(|(_, n)| n.parse::<usize>().unwrap())
            .sum();
        assert!(lost >= 100, "{lost}");
        assert_eq!(written + lost, QUEUE + 101);
    }

    #[test]
    fn journal_lines_carry_their_priority_and_never_break() {
        let shared = Shared::default();
        let log = Log::to(shared.clone(), LogFormat::Journal);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .event_format(JournalLine)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "inferd", model = "imu", "two\nlines");
            tracing::info!(target: "inferd", "plain");
        });
        log.flush();
        assert_eq!(shared.text(), "<4>inferd: two\\nlines model=\"imu\"\n<6>inferd: plain\n");
    }
}
