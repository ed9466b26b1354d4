//! Log lines to journald or standard error, by a thread of their own.
//!
//! Below a keeper whose own standard error is the journal ([`inferd_watch::journal`]) entries go to journald with their fields, and a
//! marked copy of each, as text, to the keeper for the last words; it has a queue and a thread of its own.
//!
//! Whoever logs hands a line to a bounded queue and goes on: a serial console at 115200 baud, a full pipe to the keeper or a stopped
//! journald must not slow a request down. Lines that do not fit are counted, and the count is logged when there is room again.

mod levels;
mod lines;

pub use levels::Levels;

use crate::config::{LogFormat, Logging};
use inferd_watch::journal;
use lines::Lines;
use std::{
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};
use tracing_subscriber::{fmt::MakeWriter, prelude::*, reload};

/// Lines that may wait to be written.
const QUEUE: usize = 1024;
/// How long the end of the process waits for lines still queued.
const FLUSH: Duration = Duration::from_millis(500);
/// Where journald takes entries in its own protocol.
const JOURNALD: &str = "/run/systemd/journal/socket";
/// How long the writing thread waits for a journald that does not read; the line is lost then.
const JOURNALD_PATIENCE: Duration = Duration::from_millis(100);
/// What a pipe takes in one piece (PIPE_BUF): a longer line could be torn by what others write.
const ONE_PIECE: usize = 4096;

/// Hands log lines to the writing thread.
#[derive(Clone, Debug)]
pub struct Log {
    queue: SyncSender<Message>,
    lost: Arc<Lost>,
}

/// Lines that were not written.
#[derive(Debug, Default)]
struct Lost {
    /// Since the log last said so.
    untold: AtomicU64,
    all: Arc<AtomicU64>,
}

impl Lost {
    fn count(&self, lines: u64) {
        self.untold.fetch_add(lines, Ordering::Relaxed);
        self.all.fetch_add(lines, Ordering::Relaxed);
    }
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Everything before it was written: say so.
    Flush(SyncSender<()>),
}

/// Everywhere the lines of this process go.
#[derive(Clone, Debug)]
pub struct Logs {
    log: Log,
    copy: Option<Log>,
}

impl Logs {
    /// Waits, for a bounded time, until what was logged before is written.
    pub fn flush(&self) {
        self.log.flush();
        if let Some(copy) = &self.copy {
            copy.flush();
        }
    }
}

/// Starts logging for this process, panics included.
pub fn start(settings: &Logging) -> (Logs, Levels) {
    let told = journal::is_told();
    let format = resolve(settings.format, told || journal::is_standard_error(), Path::new(JOURNALD));
    let log = match format {
        LogFormat::Journald => Log::to(Journald::at(JOURNALD.into()), format),
        _ => Log::to(io::stderr(), format),
    };
    let copy =
        (told && format == LogFormat::Journald).then(|| Log::to(ForKeeper(io::stderr()), LogFormat::Journal));
    let configured = settings.level.into();
    let (filter, handle) = reload::Layer::new(levels::filter(&configured));
    let logs = Logs { log, copy };
    let layer = |log: &Log, format| {
        tracing_subscriber::fmt::layer().with_writer(log.clone()).with_ansi(false).event_format(Lines(format))
    };
    let mut layers = vec![layer(&logs.log, format)];
    layers.extend(logs.copy.as_ref().map(|copy| layer(copy, LogFormat::Journal)));
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(filter).with(layers))
        .expect("logging is started once, by main");
    let for_panics = logs.clone();
    std::panic::set_hook(Box::new(move |info| {
        let thread = std::thread::current();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let words = info.payload_as_str().unwrap_or("no message");
        tracing::error!(thread = thread.name().unwrap_or("?"), place, "panic: {words}");
        for_panics.flush();
    }));
    let levels = Levels::new(handle, configured, Arc::clone(&logs.log.lost.all));
    (logs, levels)
}

/// What `auto` means where lines end in the journal, or do not. Where journald's own socket is there too, entries keep their fields.
fn resolve(format: LogFormat, in_journal: bool, journald: &Path) -> LogFormat {
    match format {
        LogFormat::Auto if in_journal && journald.exists() => LogFormat::Journald,
        LogFormat::Auto if in_journal => LogFormat::Journal,
        LogFormat::Auto => LogFormat::Text,
        format => format,
    }
}

/// Marks lines that the keeper only keeps. Each is written in one piece; of a longer one the beginning.
struct ForKeeper<W>(W);

impl<W: Write> Write for ForKeeper<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        let text = &text[..text.len().min(ONE_PIECE - 2)];
        self.0.write_all(&[&[journal::MARK], text, b"\n"].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// journald's socket. Each entry is one datagram; one that cannot be sent in time is lost and counted.
struct Journald {
    at: PathBuf,
    socket: Option<UnixDatagram>,
}

impl Journald {
    fn at(at: PathBuf) -> Self {
        Self { at, socket: None }
    }

    fn socket(&mut self) -> io::Result<&UnixDatagram> {
        if self.socket.is_none() {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(JOURNALD_PATIENCE))?;
            self.socket = Some(socket);
        }
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Write for Journald {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        // Not connected: a journald that was started anew listens at the same place.
        let at = self.at.clone();
        self.socket()?.send_to(entry, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// A log that ends in `sink`.
    fn to(sink: impl Write + Send + 'static, format: LogFormat) -> Self {
        let (queue, lines) = sync_channel(QUEUE);
        let lost = Arc::new(Lost::default());
        let count = Arc::clone(&lost);
        let writer = std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_lines(&lines, &count, sink, format));
        // Without a thread every line is counted as dropped; that is all that can be done at this point.
        drop(writer);
        Self { queue, lost }
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
            self.lost.count(1);
        }
    }
}

/// The writing thread. A sink that fails is not a reason to stop: a console may come back.
fn write_lines(lines: &Receiver<Message>, lost: &Lost, mut sink: impl Write, format: LogFormat) {
    while let Ok(message) = lines.recv() {
        let untold = lost.untold.swap(0, Ordering::Relaxed);
        if untold > 0 {
            let words = "log lines were dropped: they came faster than they could be written";
            let told = match format {
                LogFormat::Json => {
                    format!(
                        "{{\"level\":\"WARN\",\"target\":\"inferd\",\"message\":\"{words}\",\"lines\":{untold}}}\n"
                    )
                }
                LogFormat::Journal => format!("<4>{words} lines={untold}\n"),
                LogFormat::Journald => {
                    format!(
                        "PRIORITY=4\nSYSLOG_IDENTIFIER=inferd\nTARGET=inferd\nMESSAGE={words}\nF_LINES={untold}\n"
                    )
                }
                LogFormat::Text | LogFormat::Auto => format!("WARN {words} lines={untold}\n"),
            };
            if sink.write_all(told.as_bytes()).is_err() {
                // Not told yet.
                lost.untold.fetch_add(untold, Ordering::Relaxed);
            }
        }
        match message {
            Message::Line(line) => {
                if sink.write_all(&line).is_err() {
                    lost.count(1);
                }
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

    fn logged(format: LogFormat, say: impl FnOnce()) -> String {
        let shared = Shared::default();
        let log = Log::to(shared.clone(), format);
        let subscriber = tracing_subscriber::fmt()
            .with_writer(log.clone())
            .with_ansi(false)
            .event_format(Lines(format))
            .finish();
        tracing::subscriber::with_default(subscriber, say);
        log.flush();
        shared.text()
    }

    #[test]
    fn journal_lines_carry_their_priority_and_never_break() {
        let text = logged(LogFormat::Journal, || {
            tracing::warn!(target: "inferd", model = "imu", "two\nlines");
            tracing::info!(target: "inferd", "plain");
        });
        assert_eq!(text, "<4>inferd: two\\nlines model=\"imu\"\n<6>inferd: plain\n");
    }

    #[test]
    fn what_a_line_looks_like_is_decided_by_where_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let none = dir.path().join("none");
        for (format, in_journal, journald, expected) in [
            (LogFormat::Auto, false, dir.path(), LogFormat::Text),
            (LogFormat::Auto, true, dir.path(), LogFormat::Journald),
            (LogFormat::Auto, true, none.as_path(), LogFormat::Journal),
            (LogFormat::Json, true, dir.path(), LogFormat::Json),
            (LogFormat::Text, true, dir.path(), LogFormat::Text),
        ] {
            assert_eq!(resolve(format, in_journal, journald), expected, "{format:?} {in_journal}");
        }
    }

    #[test]
    fn a_copy_for_the_keeper_is_one_marked_line_in_one_piece() {
        let shared = Shared::default();
        let log = Log::to(ForKeeper(shared.clone()), LogFormat::Journal);
        log.line(b"<6>one\n".to_vec());
        log.line([vec![b'x'; 9000], b"\n".to_vec()].concat());
        log.flush();
        let text = shared.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "\x06<6>one");
        assert!(lines[1].starts_with("\x06x") && lines[1].len() + 1 == ONE_PIECE, "{}", lines[1].len());
        assert_eq!(lines.len(), 2);
    }

    #[test]
    fn a_json_line_has_its_own_keys_whatever_the_fields_are_called() {
        let text = logged(LogFormat::Json, || {
            tracing::error!(target: "inferd", level = "none", target = 7, n = f64::NAN, long = "x".repeat(9999), "a \"b\"");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["target"], "inferd");
        assert_eq!(line["message"], "a \"b\"");
        assert_eq!(line["n"], "NaN");
        assert!(line["long"].as_str().unwrap().len() < 5000);
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn an_entry_for_journald_keeps_its_fields_and_nothing_in_it_poses_as_another() {
        let text = logged(LogFormat::Journald, || {
            tracing::error!(target: "inferd_hosts", pid = 7, why = "a\nPRIORITY=0", "gone\nMESSAGE=x");
        });
        assert_eq!(
            text,
            "PRIORITY=3\nSYSLOG_IDENTIFIER=inferd\nTARGET=inferd_hosts\nMESSAGE=gone\\nMESSAGE=x\nF_PID=7\nF_WHY=a\\nPRIORITY=0\n"
        );
    }

    #[test]
    fn a_journald_that_does_not_read_stops_nobody_and_one_that_comes_back_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("socket");
        let log = Log::to(Journald::at(at.clone()), LogFormat::Journald);
        let journald = UnixDatagram::bind(&at).unwrap();
        // More than the queue of a datagram socket holds (net.unix.max_dgram_qlen), and nobody reads.
        let lines = 4096;
        for _ in 0..lines {
            log.line(b"MESSAGE=x\n".to_vec());
        }
        let lost = log.lost.all.load(Ordering::Relaxed);
        assert!(lost > 0, "handing over waits for nobody");
        drop(journald);
        std::fs::remove_file(&at).unwrap();
        let journald = UnixDatagram::bind(&at).unwrap();
        journald.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut entry = [0; 4096];
        let reports = loop {
            log.line(b"MESSAGE=y\n".to_vec());
            let Ok(n) = journald.recv(&mut entry) else { panic!("nothing came") };
            let text = String::from_utf8_lossy(&entry[..n]).into_owned();
            if text.contains("were dropped") {
                break text;
            }
        };
        let told: u64 = reports.split("F_LINES=").nth(1).unwrap().trim().parse().unwrap();
        assert!(told > 0 && told <= log.lost.all.load(Ordering::Relaxed), "{reports}");
    }
}
