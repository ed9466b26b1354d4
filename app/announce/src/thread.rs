//! The one thread: sockets, the clock, and the interfaces as they come and go.

use crate::interfaces::{Choice, places};
use crate::names::Wanted;
use crate::responder::{LinkId, Outgoing, PORT, Place, Responder};
use crate::wire::MAX_MESSAGE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, Socket, Type};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// Datagrams that are looked at in one [`SLICE`]; the kernel keeps what its buffer holds, and drops the rest.
pub const PER_SLICE: u32 = 200;
/// How long they are looked at in one [`SLICE`]: the rest of it is the announcements', whatever a datagram costs.
pub const LOOKING: Duration = Duration::from_millis(20);
/// See [`PER_SLICE`].
pub const SLICE: Duration = Duration::from_millis(100);
/// How often the interfaces are looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What is wrong for longer is logged: at a start most interfaces have no address yet.
const PATIENCE: Duration = Duration::from_secs(10);
/// A goodbye is said twice, this far apart: wireless links lose what is sent to everybody.
const GOODBYE_AGAIN: Duration = Duration::from_millis(100);
const STACK: usize = 256 * 1024;
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
/// Those on the link alone (RFC 6762, section 11).
const HOPS: u32 = 255;

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The name people see; `None`: nothing is to be announced.
    pub name: Option<String>,
    /// `HOST.local`
    pub host: Option<String>,
    /// Where the service listens.
    pub port: Option<u16>,
    /// Interfaces on which it is announced.
    pub interfaces: Vec<String>,
    /// How often somebody else was called so.
    pub conflicts: u64,
    /// Why it is announced nowhere, or not everywhere; with what to do.
    pub problem: Option<String>,
}

/// Announces from its start to its end.
#[derive(Debug)]
pub struct Announcer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    wish: Mutex<Wish>,
    view: Mutex<View>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct Wish {
    announce: Option<(Wanted, Choice)>,
    changed: bool,
    end: bool,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // Values are replaced under it, nothing else.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Announcer {
    /// Starts the thread, which announces nothing yet.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn start() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let shared = Arc::new(Shared { wish: Mutex::default(), view: Mutex::default(), wake });
        let mut seed = [0; 8];
        // Without randomness two devices that are switched on together speak together, once.
        let _ = getrandom::fill(&mut seed);
        let worker = Worker::new(Arc::clone(&shared), u64::from_le_bytes(seed));
        let thread = Builder::new().name("mdns".into()).stack_size(STACK).spawn(move || worker.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// From now on this is announced, or nothing. Saying the same again costs nothing.
    pub fn announce(&self, wanted: Option<(Wanted, Choice)>) {
        let mut wish = lock(&self.shared.wish);
        if wish.announce != wanted {
            (wish.announce, wish.changed) = (wanted, true);
            drop(wish);
            self.shared.wake();
        }
    }

    /// How it stands.
    #[must_use]
    pub fn view(&self) -> View {
        lock(&self.shared.view).clone()
    }
}

impl Drop for Announcer {
    /// Says goodbye.
    fn drop(&mut self) {
        lock(&self.shared.wish).end = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // Only a counter that nobody has read for 2^64 wakes refuses.
        let _ = self.wake.write(1);
    }
}

/// An open link.
#[derive(Debug)]
struct Open {
    place: Place,
    socket: UdpSocket,
}

/// What strangers have had of this part of a second.
#[derive(Clone, Copy, Debug)]
struct Slice {
    began: Instant,
    datagrams: u32,
    looking: Duration,
}

impl Slice {
    fn new(began: Instant) -> Self {
        Self { began, datagrams: 0, looking: Duration::ZERO }
    }

    fn end(&self) -> Instant {
        self.began + SLICE
    }

    /// Whether nothing more is looked at before its end.
    fn is_full(&self) -> bool {
        self.datagrams >= PER_SLICE || self.looking >= LOOKING
    }

    /// A datagram was looked at for so long.
    fn count(&mut self, looking: Duration) {
        self.datagrams += 1;
        self.looking += looking;
    }
}

struct Worker {
    shared: Arc<Shared>,
    seed: u64,
    choice: Choice,
    responder: Option<Responder>,
    port: Option<u16>,
    links: Vec<Open>,
    look: Instant,
    /// Why the interfaces cannot be had, or not all of them.
    missing: Option<String>,
    /// What could not be sent last.
    unsent: BTreeMap<LinkId, String>,
    slice: Slice,
    buffer: Vec<u8>,
    /// What is wrong, since when, and whether it was logged.
    wrong: Option<(String, Instant, bool)>,
    /// What was logged of where it is announced.
    said: Option<(String, Vec<String>)>,
}

impl Worker {
    fn new(shared: Arc<Shared>, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            shared,
            seed,
            choice: Choice::default(),
            responder: None,
            port: None,
            links: Vec::new(),
            look: now,
            missing: None,
            unsent: BTreeMap::new(),
            slice: Slice::new(now),
            buffer: vec![0; MAX_MESSAGE + 1],
            wrong: None,
            said: None,
        }
    }

    fn run(mut self) {
        loop {
            let now = Instant::now();
            let (end, change) = {
                let mut wish = lock(&self.shared.wish);
                let changed = std::mem::take(&mut wish.changed);
                (wish.end, changed.then(|| wish.announce.clone()))
            };
            if end {
                return self.goodbye();
            }
            if let Some(wanted) = change {
                self.change(wanted, now);
            }
            if self.responder.is_some() && now >= self.look {
                self.look_around(now);
            }
            if let Some(responder) = &mut self.responder {
                let out = responder.tick(now);
                self.send(&out);
            }
            self.publish(now);
            self.wait(now);
        }
    }

    /// Something else is to be announced.
    fn change(&mut self, wanted: Option<(Wanted, Choice)>, now: Instant) {
        let Some((wanted, choice)) = wanted else {
            self.goodbye();
            (self.responder, self.port) = (None, None);
            self.links.clear();
            self.unsent.clear();
            self.missing = None;
            return;
        };
        self.port = Some(wanted.port);
        let out = match &mut self.responder {
            Some(responder) => responder.set_wanted(wanted, now),
            None => {
                self.responder = Some(Responder::new(wanted, self.seed));
                self.look = now;
                Vec::new()
            }
        };
        self.send(&out);
        if choice != self.choice {
            (self.choice, self.look) = (choice, now);
        }
    }

    /// Opens what came, closes what went.
    fn look_around(&mut self, now: Instant) {
        self.look = now + LOOK_EVERY;
        let (wanted, own) = match places(&self.choice) {
            Ok(found) => found,
            Err(e) => return self.missing = Some(format!("the interfaces cannot be listed: {e}")),
        };
        self.missing = wanted.is_empty().then(|| nowhere(&self.choice));
        // A socket of an interface whose addresses changed would go on sending from the old one.
        self.links.retain(|link| wanted.contains(&link.place));
        self.unsent.retain(|id, _| wanted.iter().any(|place| place.id == *id));
        for place in wanted {
            if self.links.iter().any(|link| link.place == place) {
                continue;
            }
            match open(&place) {
                Ok(socket) => self.links.push(Open { place, socket }),
                Err(e) => self.missing = Some(format!("not on {}: {}", place.name, advice(&e))),
            }
        }
        let open = self.links.iter().map(|link| link.place.clone()).collect();
        if let Some(responder) = &mut self.responder {
            responder.set_places(open, own, now);
        }
    }

    fn send(&mut self, out: &[Outgoing]) {
        for one in out {
            let Some(link) = self.links.iter().find(|link| link.place.id == one.link) else { continue };
            let group = match one.link.v6 {
                false => SocketAddr::from((GROUP, PORT)),
                true => SocketAddrV6::new(GROUP_V6, PORT, 0, one.link.interface).into(),
            };
            match (link.socket.send_to(&one.bytes, one.to.unwrap_or(group)), one.to) {
                (Ok(_), None) => {
                    self.unsent.remove(&one.link);
                }
                (Err(e), None) => {
                    self.unsent.insert(
                        one.link,
                        format!("nothing can be sent on {}: {}", link.place.name, advice(&e)),
                    );
                }
                // Whoever asked may be gone, or never have been there.
                (Err(e), Some(to)) => debug!("no answer to {to}: {e}"),
                (Ok(_), Some(_)) => {}
            }
        }
    }

    /// Until something is due, comes, or is wanted.
    fn wait(&mut self, now: Instant) {
        if now >= self.slice.end() {
            self.slice = Slice::new(now);
        }
        let crowded = self.slice.is_full();
        let due = self.responder.as_ref().and_then(Responder::next);
        let look = self.responder.as_ref().map(|_| self.look);
        let pause = crowded.then_some(self.slice.end());
        let until = due.into_iter().chain(look).chain(pause).min();
        // A millisecond more than is left, since the rest is cut off.
        let left = until.map(|at| at.saturating_duration_since(now) + Duration::from_millis(1));
        let patience =
            left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        let mut fds = vec![PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
        if !crowded {
            fds.extend(self.links.iter().map(|link| PollFd::new(link.socket.as_fd(), PollFlags::POLLIN)));
        }
        if poll(&mut fds, patience).is_err() {
            return;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if ready[0] {
            let _ = self.shared.wake.read();
        }
        let readable: Vec<usize> =
            (0..self.links.len()).filter(|n| ready.get(n + 1) == Some(&true)).collect();
        for n in readable {
            self.receive(n);
        }
    }

    fn receive(&mut self, n: usize) {
        while !self.slice.is_full() {
            let began = Instant::now();
            let received = self.links[n].socket.recv_from(&mut self.buffer);
            if received.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                return;
            }
            // What was said of an earlier datagram is no datagram: the next one may be there.
            if let (Ok((length, from)), Some(responder)) = (received, &mut self.responder) {
                let id = self.links[n].place.id;
                let out = responder.receive(id, from, &self.buffer[..length], began);
                self.send(&out);
            }
            self.slice.count(began.elapsed());
        }
    }

    fn goodbye(&mut self) {
        let Some(responder) = &mut self.responder else { return };
        let out = responder.goodbye();
        if !out.is_empty() {
            self.send(&out);
            std::thread::sleep(GOODBYE_AGAIN);
            self.send(&out);
        }
    }

    fn publish(&mut self, now: Instant) {
        let problem = self.missing.clone().or_else(|| self.unsent.values().next().cloned());
        let view = self.responder.as_ref().map_or_else(View::default, |responder| {
            let standing = responder.standing();
            View {
                name: Some(standing.name),
                host: Some(standing.host),
                port: self.port,
                interfaces: standing.interfaces,
                conflicts: standing.conflicts,
                problem: problem.clone(),
            }
        });
        self.wrong = problem.map(|why| match self.wrong.take() {
            Some((before, since, logged)) if before == why => (why, since, logged),
            _ => (why, now, false),
        });
        if let Some((why, since, logged @ false)) = &mut self.wrong
            && now >= *since + PATIENCE
        {
            warn!("not announced on the LAN: {why}");
            *logged = true;
        }
        if let (Some(name), false) = (&view.name, view.interfaces.is_empty()) {
            let now = (name.clone(), view.interfaces.clone());
            if self.said.as_ref() != Some(&now) {
                let host = view.host.as_deref();
                info!(name, host, port = view.port, interfaces = ?view.interfaces, "announced on the LAN as _inferd._tcp");
                self.said = Some(now);
            }
        }
        *lock(&self.shared.view) = view;
    }
}

/// Why there is no interface.
fn nowhere(choice: &Choice) -> String {
    let listens: Vec<String> = choice.listens.iter().map(ToString::to_string).collect();
    let which = match &choice.names[..] {
        [] => "no interface to others (loopback and point to point are left out)".to_owned(),
        names => format!("none of the interfaces {} (mdns.interfaces)", names.join(", ")),
    };
    format!("{which} is up with an address that the endpoint answers at ({})", listens.join(", "))
}

/// What the system says, and what to do.
fn advice(e: &io::Error) -> String {
    let advice = match e.kind() {
        ErrorKind::AddrInUse => {
            "another program holds UDP port 5353 and shares it with nobody; end it, or set mdns.enabled = \"off\""
        }
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::NetworkDown => {
            "is there a link?"
        }
        ErrorKind::PermissionDenied => "a firewall or the sandbox of this service forbids it",
        ErrorKind::Unsupported | ErrorKind::InvalidInput | ErrorKind::AddrNotAvailable => {
            "the kernel needs CONFIG_IP_MULTICAST, or the interface does no multicast"
        }
        _ => "it is tried again",
    };
    format!("{e} ({advice})")
}

/// A socket for this link alone. It is bound to the group, so that what is sent to this machine alone stays with whoever asked for it.
fn open(place: &Place) -> io::Result<UdpSocket> {
    let interface = place.id.interface;
    let domain = if place.id.v6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    // Beside avahi, systemd-resolved and whoever else takes part.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if place.id.v6 {
        socket.set_only_v6(true)?;
        // Since Linux 4.20; without it datagrams of other interfaces come too, and are no neighbours'.
        let _ = socket.set_multicast_all_v6(false);
        socket.bind(&SockAddr::from(SocketAddrV6::new(GROUP_V6, PORT, 0, interface)))?;
        socket.join_multicast_v6(&GROUP_V6, interface)?;
        socket.set_multicast_if_v6(interface)?;
        socket.set_multicast_hops_v6(HOPS)?;
    } else {
        let own = place.addresses.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        });
        let own = own.ok_or(ErrorKind::AddrNotAvailable)?;
        socket.set_multicast_all_v4(false)?;
        socket.bind(&SockAddr::from(SocketAddr::from((GROUP, PORT))))?;
        socket.join_multicast_v4_n(&GROUP, &InterfaceIndexOrAddress::Index(interface))?;
        // By address, since a machine without a route for multicast has one to its own addresses.
        socket.set_multicast_if_v4(&own)?;
        socket.set_multicast_ttl_v4(HOPS)?;
    }
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many datagrams are looked at in one slice where each takes this long.
    fn looked_at(each: Duration) -> u32 {
        let mut slice = Slice::new(Instant::now());
        while !slice.is_full() {
            slice.count(each);
        }
        slice.datagrams
    }

    #[test]
    fn a_slice_is_full_by_datagrams_and_by_the_time_that_they_take() {
        assert_eq!(looked_at(Duration::from_micros(1)), PER_SLICE);
        assert_eq!(looked_at(Duration::from_millis(1)), 20);
        assert_eq!(looked_at(SLICE), 1, "one is looked at whatever it takes, or none ever were");
    }
}
