//! One real request to the endpoint's own listener.

use super::Http;
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

/// What is asked. One connection a question: that a new one is taken is part of the proof.
const QUESTION: &[u8] =
    b"GET /livez HTTP/1.1\r\nHost: localhost\r\nUser-Agent: inferd-progress\r\nConnection: close\r\n\r\n";

/// What the endpoint and its questions know of each other: the local address the next question comes from, so that the endpoint
/// knows its own questions (they take no client's place and are not counted as requests); and how many requests it has answered.
#[derive(Debug, Default)]
pub struct ProbeMark {
    own: Mutex<Option<SocketAddr>>,
    answered: AtomicU64,
}

impl ProbeMark {
    /// Whether this peer is the question that is being asked.
    #[must_use]
    pub fn is(&self, peer: SocketAddr) -> bool {
        // Without scope and flow, which both sides need not see alike.
        let plain = |a: SocketAddr| (a.ip().to_canonical(), a.port());
        self.own.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|own| plain(own) == plain(peer))
    }

    /// The endpoint has made one answer, whoever asked.
    pub fn answered_one(&self) {
        self.answered.fetch_add(1, Relaxed);
    }

    fn set(&self, address: Option<SocketAddr>) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }
}

/// Asks the endpoint.
#[derive(Debug)]
pub struct Probe {
    addresses: Vec<SocketAddr>,
    patience: Duration,
    mark: Arc<ProbeMark>,
}

/// What became of one question.
enum Asked {
    Answered(u16),
    TurnedAway,
    /// The address is not on this machine.
    Gone,
    Silent(String),
}

impl Probe {
    /// Of the endpoint that listens on these addresses, as they were really bound.
    #[must_use]
    pub fn new(addresses: &[SocketAddr], patience: Duration, mark: Arc<ProbeMark>) -> Self {
        Self { addresses: addresses.iter().flat_map(reachable).collect(), patience, mark }
    }

    /// Asks once: every address in turn until one answers.
    #[must_use]
    pub fn ask(&self) -> Http {
        let before = self.mark.answered.load(Relaxed);
        let mut silent = None;
        for address in &self.addresses {
            let asked = self.ask_at(*address).unwrap_or_else(|e| fate(&e, self.patience));
            self.mark.set(None);
            match asked {
                Asked::Answered(status) => return Http::Answered(status),
                Asked::TurnedAway => return Http::TurnedAway,
                Asked::Gone => {}
                Asked::Silent(why) => {
                    silent.get_or_insert(format!("{address}: {why}"));
                }
            }
        }
        match silent {
            None => Http::NoAddress,
            Some(_) if self.mark.answered.load(Relaxed) != before => Http::Busy,
            Some(why) => Http::Silent(why),
        }
    }

    fn ask_at(&self, to: SocketAddr) -> io::Result<Asked> {
        let until = Instant::now() + self.patience;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        // From the very address it listens on: the packets stay on this machine, and an address that left it says so.
        let mut from = to;
        from.set_port(0);
        match socket.bind(&from.into()) {
            Err(e)
                if e.kind() == io::ErrorKind::AddrNotAvailable || e.raw_os_error() == Some(libc::ENODEV) =>
            {
                return Ok(Asked::Gone);
            }
            bound => bound?,
        }
        self.mark.set(socket.local_addr()?.as_socket());
        socket.connect_timeout(&to.into(), self.patience)?;
        let mut stream = TcpStream::from(socket);
        // From here on the endpoint has the connection, or the kernel keeps it for it.
        if let Err(e) = stream.write_all(QUESTION) {
            return if closed(&e) { Ok(Asked::TurnedAway) } else { Err(e) };
        }
        let mut head = [0; 12];
        let mut have = 0;
        while have < head.len() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut head[have..]) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if closed(&e) => break,
                Err(e) => return Err(e),
            }
        }
        Ok(status(&head[..have]).map_or(Asked::TurnedAway, Asked::Answered))
    }
}

/// The status in `HTTP/1.1 200`.
fn status(head: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(head).ok()?;
    let (version, code) = text.split_once(' ')?;
    (version.starts_with("HTTP/1.") && code.len() == 3).then(|| code.parse().ok()).flatten()
}

/// The other side closed, which a hung one does not.
fn closed(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof
    )
}

fn fate(e: &io::Error, patience: Duration) -> Asked {
    let late = matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
    if late {
        Asked::Silent(format!("no answer within {} s", patience.as_secs_f64()))
    } else {
        Asked::Silent(e.to_string())
    }
}

/// Where a listener on this address is reached from this machine.
fn reachable(bound: &SocketAddr) -> Vec<SocketAddr> {
    let port = bound.port();
    match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => vec![(Ipv4Addr::LOCALHOST, port).into()],
        // It may hear both families, or only one of them may be there.
        IpAddr::V6(ip) if ip.is_unspecified() => {
            vec![(Ipv6Addr::LOCALHOST, port).into(), (Ipv4Addr::LOCALHOST, port).into()]
        }
        _ => vec![*bound],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const PATIENCE: Duration = Duration::from_millis(300);

    fn probe(addresses: &[SocketAddr]) -> Probe {
        Probe::new(addresses, PATIENCE, Arc::default())
    }

    /// A listener that does this with every connection; where it is.
    fn endpoint(address: &str, serve: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind(address).unwrap();
        let at = listener.local_addr().unwrap();
        std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
        at
    }

    fn answering(text: &'static [u8]) -> impl Fn(TcpStream) + Send + 'static {
        move |mut stream| {
            let mut asked = [0; QUESTION.len()];
            let _ = stream.read_exact(&mut asked);
            assert_eq!(asked, QUESTION);
            let _ = stream.write_all(text);
        }
    }

    #[test]
    fn any_status_is_an_answer_on_any_kind_of_address() {
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            let at = endpoint(address, answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n"));
            assert_eq!(probe(&[at]).ask(), Http::Answered(503), "{address}");
        }
    }

    #[test]
    fn who_closes_at_once_or_speaks_otherwise_is_there() {
        let shut = endpoint("127.0.0.1:0", drop);
        assert_eq!(probe(&[shut]).ask(), Http::TurnedAway);
        let tls = endpoint("127.0.0.1:0", answering(b"\x15\x03\x03\x00\x02\x02\x32"));
        assert_eq!(probe(&[tls]).ask(), Http::TurnedAway);
    }

    #[test]
    fn who_takes_a_connection_and_says_nothing_is_silent() {
        let (keep, _kept) = std::sync::mpsc::channel();
        let mute = endpoint("127.0.0.1:0", move |s| keep.send(s).unwrap());
        let Http::Silent(why) = probe(&[mute]).ask() else { panic!("answered") };
        assert!(why.ends_with("no answer within 0.3 s"), "{why}");
    }

    #[test]
    fn who_answers_others_meanwhile_is_busy() {
        let (keep, _kept) = std::sync::mpsc::channel();
        let mark = Arc::new(ProbeMark::default());
        let of_endpoint = mark.clone();
        let busy = endpoint("127.0.0.1:0", move |s| {
            of_endpoint.answered_one();
            keep.send(s).unwrap();
        });
        assert_eq!(Probe::new(&[busy], PATIENCE, mark).ask(), Http::Busy);
    }

    #[test]
    fn who_does_not_even_take_connections_is_silent() {
        // The kernel completes connections of a process that hangs, up to its backlog, and then no more.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        assert!(matches!(probe(&[at]).ask(), Http::Silent(_)));
        drop(listener);
        let Http::Silent(why) = probe(&[at]).ask() else { panic!("answered") };
        assert!(why.contains("refused"), "{why}");
    }

    #[test]
    fn one_address_that_answers_is_enough() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = listener.local_addr().unwrap();
        drop(listener);
        let at = endpoint("127.0.0.1:0", answering(b"HTTP/1.1 200 OK\r\n\r\n"));
        assert_eq!(probe(&[closed, at]).ask(), Http::Answered(200));
    }

    #[test]
    fn an_address_that_is_not_on_this_machine_cannot_be_asked() {
        // RFC 5737: documentation only.
        assert_eq!(probe(&["192.0.2.1:9000".parse().unwrap()]).ask(), Http::NoAddress);
    }

    #[test]
    fn the_endpoint_knows_its_own_questions() {
        let mark = Arc::new(ProbeMark::default());
        let (tell, told) = std::sync::mpsc::channel();
        let of_endpoint = mark.clone();
        let at = endpoint("[::]:0", move |stream| {
            let own = of_endpoint.is(stream.peer_addr().unwrap());
            tell.send(own).unwrap();
        });
        let _ = Probe::new(&[at], PATIENCE, mark.clone()).ask();
        assert!(told.recv().unwrap());
        let _stranger = TcpStream::connect((Ipv4Addr::LOCALHOST, at.port())).unwrap();
        assert!(!told.recv().unwrap());
    }
}
