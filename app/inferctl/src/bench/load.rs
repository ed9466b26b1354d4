//! The load generator: closed loop, keep-alive, non-blocking sockets in few threads.
//!
//! Each connection sends the same prepared bytes, waits for the whole response, notes the time, and sends again. One epoll
//! loop per thread serves many connections, so a request costs the client about three system calls and the server under
//! test keeps the cores. A request counts when it was started after the warm-up and answered before the end.

use super::http::Reader;
use hdrhistogram::Histogram;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
        socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, sockopt},
    },
};
use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long a connection waits after it could not be made.
const RECONNECT_AFTER: Duration = Duration::from_millis(20);
/// How often a thread looks at time limits while nothing happens.
const TICK_MS: u16 = 10;

/// What is sent, where, and how much at once.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server.
    pub address: SocketAddr,
    /// A complete request, head and body.
    pub request: Arc<[u8]>,
    /// Connections, each with one request in flight.
    pub connections: usize,
    /// Threads of the client.
    pub threads: usize,
    /// When to give up a request or a connection attempt.
    pub timeout: Duration,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Nanoseconds from the first byte sent to the last byte received, of successes.
    pub latency: Histogram<u64>,
    /// Answers with 2xx.
    pub ok: u64,
    /// Everything else by kind: `http_503`, `timeout`, `closed`, `connect`, `not_http`.
    pub errors: BTreeMap<String, u64>,
    /// The first refusal: its kind and the beginning of its body.
    pub example: Option<(String, String)>,
    /// When the last counted request ended.
    pub last: Option<Instant>,
}

impl Default for Tally {
    fn default() -> Self {
        // From a nanosecond to an hour at three digits: fixed memory, about 0.3 MiB.
        let latency = Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("constant bounds are valid");
        Self { latency, ok: 0, errors: BTreeMap::new(), example: None, last: None }
    }
}

impl Tally {
    /// Every request that came to an end.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.ok + self.failed()
    }

    /// Requests that were really sent: attempts to connect do not count.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.requests() - self.errors.get("connect").copied().unwrap_or(0)
    }

    /// Requests without a success.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        self.latency += &other.latency;
        self.ok += other.ok;
        for (kind, count) in &other.errors {
            *self.errors.entry(kind.clone()).or_default() += count;
        }
        self.example = self.example.take().or_else(|| other.example.clone());
        self.last = self.last.max(other.last);
    }
}

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// What the threads share.
#[derive(Debug)]
struct Shared {
    phase: AtomicU8,
    /// Requests that may still be started and counted; `u64::MAX` is no limit.
    tickets: AtomicU64,
}

/// A running load.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    threads: Vec<Thread>,
}

/// One thread and what it counts.
#[derive(Debug)]
struct Thread {
    tally: Arc<Mutex<Tally>>,
    handle: JoinHandle<io::Result<()>>,
}

impl Load {
    /// Starts the threads; nothing is counted yet.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub fn start(&self) -> io::Result<Running> {
        let shared = Arc::new(Shared { phase: AtomicU8::new(WARM_UP), tickets: AtomicU64::new(u64::MAX) });
        let threads = self.threads.clamp(1, self.connections.max(1));
        let mut running = Running { shared: Arc::clone(&shared), threads: Vec::with_capacity(threads) };
        for i in 0..threads {
            let mine = self.connections / threads + usize::from(i < self.connections % threads);
            let tally = Arc::new(Mutex::new(Tally::default()));
            let worker = Worker::new(self.clone(), mine, Arc::clone(&shared), Arc::clone(&tally))?;
            let handle =
                std::thread::Builder::new().name(format!("bench-{i}")).spawn(move || worker.run())?;
            running.threads.push(Thread { tally, handle });
        }
        Ok(running)
    }
}

impl Running {
    /// Counts from now on, at most `requests` when given. Gives the time it began.
    pub fn measure(&self, requests: Option<u64>) -> Instant {
        self.shared.tickets.store(requests.unwrap_or(u64::MAX), Ordering::SeqCst);
        let now = Instant::now();
        self.shared.phase.store(MEASURE, Ordering::SeqCst);
        now
    }

    /// What was counted up to now.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut all = Tally::default();
        for thread in &self.threads {
            all.add(&lock(&thread.tally));
        }
        all
    }

    /// Successes and sent requests up to now; costs next to nothing.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        self.threads.iter().fold((0, 0), |(ok, sent), thread| {
            let tally = lock(&thread.tally);
            (ok + tally.ok, sent + tally.sent())
        })
    }

    /// Whether every thread still works; one that ended has an error to tell.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.threads.iter().all(|thread| !thread.handle.is_finished())
    }

    /// Ends the load; requests in flight are given up and not counted.
    ///
    /// # Errors
    /// When a thread could not go on.
    pub fn stop(self) -> io::Result<Tally> {
        self.shared.phase.store(STOP, Ordering::SeqCst);
        let mut all = Tally::default();
        for Thread { tally, handle } in self.threads {
            handle.join().map_err(|_| io::Error::other("a load thread panicked"))??;
            all.add(&lock(&tally));
        }
        Ok(all)
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a connection is doing.
enum Doing {
    /// Nothing until then.
    Waiting {
        until: Instant,
    },
    Connecting {
        stream: TcpStream,
        since: Instant,
    },
    /// A request is on its way or awaited.
    Busy {
        stream: TcpStream,
        sent: usize,
        since: Instant,
        counted: bool,
    },
    /// No ticket was left.
    Idle {
        _stream: Option<TcpStream>,
    },
}

struct Connection {
    doing: Doing,
    reader: Reader,
    /// What epoll watches the stream for.
    interest: EpollFlags,
}

/// One thread's share of the load.
struct Worker {
    load: Load,
    shared: Arc<Shared>,
    tally: Arc<Mutex<Tally>>,
    epoll: Epoll,
    connections: Vec<Connection>,
    scratch: Vec<u8>,
}

/// How a request ended.
enum End {
    Answer { status: u16, keep: bool },
    Failed(&'static str),
}

impl Worker {
    fn new(
        load: Load,
        connections: usize,
        shared: Arc<Shared>,
        tally: Arc<Mutex<Tally>>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let connections = (0..connections).map(|_| Connection {
            doing: Doing::Waiting { until: now },
            reader: Reader::default(),
            interest: EpollFlags::empty(),
        });
        Ok(Self {
            load,
            shared,
            tally,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            connections: connections.collect(),
            scratch: vec![0; 64 << 10],
        })
    }

    fn run(mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); self.connections.len().clamp(1, 256)];
        let mut next_check = Instant::now();
        loop {
            if self.shared.phase.load(Ordering::Relaxed) == STOP {
                return Ok(());
            }
            let now = Instant::now();
            if now >= next_check {
                for i in 0..self.connections.len() {
                    self.check(i, now)?;
                }
                next_check = now + Duration::from_millis(u64::from(TICK_MS));
            }
            let ready = match self.epoll.wait(&mut events, TICK_MS) {
                Ok(n) => n,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(e.into()),
            };
            for event in &events[..ready] {
                if let Ok(i) = usize::try_from(event.data()) {
                    self.ready(i)?;
                }
            }
        }
    }

    /// Looks at a connection's time limits.
    fn check(&mut self, i: usize, now: Instant) -> io::Result<()> {
        match &self.connections[i].doing {
            Doing::Waiting { until } if now >= *until => self.connect(i),
            Doing::Connecting { since, .. } if now.duration_since(*since) > self.load.timeout => {
                self.lost(i, "connect", self.measuring());
                Ok(())
            }
            Doing::Busy { since, counted, .. } if now.duration_since(*since) > self.load.timeout => {
                let counted = *counted;
                self.lost(i, "timeout", counted);
                Ok(())
            }
            // Tickets may have come with the measuring phase.
            Doing::Idle { .. } if self.shared.tickets.load(Ordering::Relaxed) > 0 => self.connect(i),
            _ => Ok(()),
        }
    }

    fn measuring(&self) -> bool {
        self.shared.phase.load(Ordering::Relaxed) == MEASURE
    }

    /// Begins a connection.
    fn connect(&mut self, i: usize) -> io::Result<()> {
        let family = if self.load.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket::socket(family, SockType::Stream, flags, None)?;
        let outcome = socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(self.load.address));
        let stream = TcpStream::from(fd);
        stream.set_nodelay(true)?;
        match outcome {
            Ok(()) | Err(Errno::EINPROGRESS) => {
                self.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLOUT, i as u64))?;
                self.connections[i].interest = EpollFlags::EPOLLOUT;
                self.connections[i].doing = Doing::Connecting { stream, since: Instant::now() };
            }
            // No address or no port of our own left is not the server's fault, but it is a fact to show.
            Err(_) => self.lost(i, "connect", self.measuring()),
        }
        Ok(())
    }

    /// Drops a connection that did not give an answer.
    fn lost(&mut self, i: usize, kind: &'static str, counted: bool) {
        self.connections[i].doing = Doing::Waiting { until: Instant::now() + RECONNECT_AFTER };
        if counted {
            *lock(&self.tally).errors.entry(kind.to_owned()).or_default() += 1;
            if kind == "connect" {
                return; // no ticket was taken for it
            }
            lock(&self.tally).last = Some(Instant::now());
        }
    }

    /// Something happened on a connection.
    fn ready(&mut self, i: usize) -> io::Result<()> {
        match &mut self.connections[i].doing {
            Doing::Connecting { stream, .. } => match socket::getsockopt(stream, sockopt::SocketError) {
                Ok(0) => {
                    let stream = self.take_stream(i).expect("a connecting connection has a stream");
                    self.begin(i, stream)
                }
                _ => {
                    self.lost(i, "connect", self.measuring());
                    Ok(())
                }
            },
            Doing::Busy { sent, .. } if *sent < self.load.request.len() => {
                self.send(i)?;
                self.receive(i) // a server may refuse before it has read everything
            }
            Doing::Busy { .. } => self.receive(i),
            // The server closed a connection that has nothing to do.
            Doing::Idle { .. } => {
                self.connections[i].doing = Doing::Idle { _stream: None };
                Ok(())
            }
            Doing::Waiting { .. } => Ok(()),
        }
    }

    fn take_stream(&mut self, i: usize) -> Option<TcpStream> {
        let idle = Doing::Idle { _stream: None };
        match std::mem::replace(&mut self.connections[i].doing, idle) {
            Doing::Connecting { stream, .. } | Doing::Busy { stream, .. } => Some(stream),
            Doing::Idle { .. } | Doing::Waiting { .. } => None,
        }
    }

    /// Sends the next request on a connection, if there is one to send.
    fn begin(&mut self, i: usize, stream: TcpStream) -> io::Result<()> {
        let counted = self.measuring();
        let take = |left: u64| match left {
            u64::MAX => Some(u64::MAX),
            left => left.checked_sub(1),
        };
        if counted && self.shared.tickets.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            self.connections[i].doing = Doing::Idle { _stream: Some(stream) };
            return Ok(());
        }
        self.connections[i].reader.reset();
        self.connections[i].doing = Doing::Busy { stream, sent: 0, since: Instant::now(), counted };
        self.send(i)
    }

    fn send(&mut self, i: usize) -> io::Result<()> {
        let Connection { doing: Doing::Busy { stream, sent, counted, .. }, interest, .. } =
            &mut self.connections[i]
        else {
            return Ok(());
        };
        let (mut wanted, counted) = (EpollFlags::EPOLLIN, *counted);
        while *sent < self.load.request.len() {
            match stream.write(&self.load.request[*sent..]) {
                Ok(n) => *sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    wanted |= EpollFlags::EPOLLOUT;
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.lost(i, "closed", counted);
                    return Ok(());
                }
            }
        }
        if *interest != wanted {
            self.epoll.modify(&*stream, &mut EpollEvent::new(wanted, i as u64))?;
            *interest = wanted;
        }
        Ok(())
    }

    fn receive(&mut self, i: usize) -> io::Result<()> {
        let Connection { doing: Doing::Busy { stream, sent, counted, since }, reader, .. } =
            &mut self.connections[i]
        else {
            return Ok(());
        };
        let complete = *sent == self.load.request.len();
        let end = loop {
            match stream.read(&mut self.scratch) {
                Ok(0) => match reader.closed() {
                    Some(answer) => break End::Answer { status: answer.status, keep: false },
                    None => break End::Failed("closed"),
                },
                Ok(n) => match reader.advance(&self.scratch[..n]) {
                    Ok(Some(answer)) => {
                        break End::Answer { status: answer.status, keep: answer.keep && complete };
                    }
                    // A short read means the socket is empty: ask epoll, not the socket again.
                    Ok(None) if n < self.scratch.len() => return Ok(()),
                    Ok(None) => {}
                    Err(_) => break End::Failed("not_http"),
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break End::Failed("closed"),
            }
        };
        let (counted, since) = (*counted, *since);
        match end {
            End::Failed(kind) => self.lost(i, kind, counted),
            End::Answer { status, keep } => {
                if counted {
                    let now = Instant::now();
                    let tally = &mut *lock(&self.tally);
                    tally.last = Some(now);
                    if (200..300).contains(&status) {
                        let nanos = u64::try_from(now.duration_since(since).as_nanos()).unwrap_or(u64::MAX);
                        tally.latency.saturating_record(nanos);
                        tally.ok += 1;
                    } else {
                        let kind = format!("http_{status}");
                        tally
                            .example
                            .get_or_insert_with(|| (kind.clone(), self.connections[i].reader.excerpt()));
                        *tally.errors.entry(kind).or_default() += 1;
                    }
                }
                match self.take_stream(i).filter(|_| keep) {
                    Some(stream) => self.begin(i, stream)?,
                    None => self.connect(i)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
