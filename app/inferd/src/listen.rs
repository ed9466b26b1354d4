//! The sockets that the endpoint listens on.
//!
//! An address that cannot be bound takes nothing away from the others: it is told in the log, in `/status` and by the probes, and tried again
//! ([`Retry`]). An address that this machine does not have yet (a slow DHCP server, a cable that comes later) is bound all the same
//! (`IP_FREEBIND`) and served from the moment it is there.

use crate::config::{Config, DEFAULT_LISTEN};
use inferd_api::{App, Late, Unbound};
use nix::unistd::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tracing::{error, info};

/// Of plain listeners.
pub const PLAIN: &str = "server.listen";
/// Of TLS listeners.
pub const SECURE: &str = "tls.listen";
/// What safe mode listens on when nothing of [`PLAIN`] can be had.
const FALLBACK: &str = "the default of server.listen";
/// The pause before the first new try; it doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(5);
/// See [`FIRST`].
const LONGEST: Duration = Duration::from_secs(60);
/// Connections that wait to be accepted, as the standard library has it.
const BACKLOG: i32 = 128;

/// Nothing to listen on; one sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{}. Is another inferd running, or may only root use this port?", sentences(.0))]
pub struct NotOne(pub Vec<Unbound>);

fn sentences(unbound: &[Unbound]) -> String {
    unbound.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// What could be bound of a list of addresses, and what could not.
#[derive(Debug, Default)]
pub struct Bound {
    /// These answer.
    pub listeners: Vec<TcpListener>,
    /// These do not.
    pub unbound: Vec<Unbound>,
}

impl Bound {
    /// Binds each of these addresses that can be.
    pub fn of(setting: &'static str, addresses: &[SocketAddr]) -> Self {
        let mut all = Self::default();
        for address in addresses {
            match bind(*address) {
                Ok(listener) => all.listeners.push(listener),
                Err(why) => all.unbound.push(Unbound { setting, address: *address, why: why.to_string() }),
            }
        }
        all
    }

    /// The plain listeners of this configuration.
    ///
    /// # Errors
    /// [`NotOne`] when there would be none, in safe mode not even the built-in default: whoever keeps ending for its address could never be put
    /// right over the network.
    pub fn plain(config: &Config, safe_mode: bool) -> Result<Self, NotOne> {
        let fallback = DEFAULT_LISTEN.parse().ok().filter(|_| safe_mode);
        Self::or(&config.server.listen, fallback)
    }

    fn or(addresses: &[SocketAddr], fallback: Option<SocketAddr>) -> Result<Self, NotOne> {
        let mut plain = Self::of(PLAIN, addresses);
        if plain.listeners.is_empty()
            && let Some(fallback) = fallback
        {
            let mut other = Self::of(FALLBACK, &[fallback]);
            plain.listeners.append(&mut other.listeners);
            if plain.listeners.is_empty() {
                plain.unbound.append(&mut other.unbound);
            }
        }
        if plain.listeners.is_empty() { Err(NotOne(plain.unbound)) } else { Ok(plain) }
    }
}

/// Bound and listening, whether or not this machine has the address now.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    // A kernel that cannot do it binds the addresses that are there.
    let _ = match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true),
        SocketAddr::V6(_) => socket.set_freebind_v6(true),
    };
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Connections of a daemon that ended a moment ago are no reason.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// What `--check` says of one address.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It can be bound; or it is in use, perhaps by the daemon itself.
    Nothing,
    /// It is worth knowing.
    Note(String),
    /// A start would not have it.
    Problem(String),
}

/// What a start would find of all addresses of this configuration; listens nowhere.
pub fn check(config: &Config) -> Vec<Said> {
    let mut wanted: Vec<_> = config.server.listen.iter().map(|at| (PLAIN, *at)).collect();
    if crate::tls::wanted(config) {
        wanted.extend(config.tls.listen.iter().map(|at| (SECURE, *at)));
    }
    wanted.into_iter().map(|(setting, address)| look(setting, address)).collect()
}

fn look(setting: &'static str, address: SocketAddr) -> Said {
    let tried = socket(address).and_then(|socket| socket.bind(&SockAddr::from(address)));
    match tried {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => Said::Nothing,
        Err(e) if e.kind() == io::ErrorKind::AddrNotAvailable => {
            Said::Note(format!("{setting} {address} is not on this machine now; it is served once it is"))
        }
        Err(why) => Said::Problem(Unbound { setting, address, why: why.to_string() }.to_string()),
        Ok(()) if geteuid().is_root() && privileged(address.port()) => Said::Note(format!(
            "{setting} {address} can be bound by root; a daemon that runs as another user, as an image's does, may not have port {}",
            address.port()
        )),
        Ok(()) => Said::Nothing,
    }
}

/// Whether only root may bind this port.
fn privileged(port: u16) -> bool {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    let first = first.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(1024_u32);
    port != 0 && u32::from(port) < first
}

/// Tries again what could not be bound, until all of it is.
pub struct Retry {
    app: Arc<App>,
    found: mpsc::Sender<Late>,
    pause: Duration,
}

impl Retry {
    /// What is bound later goes to `found`.
    pub fn new(app: Arc<App>, found: mpsc::Sender<Late>) -> Self {
        Self { app, found, pause: FIRST }
    }

    /// Ends when nothing is left, or nobody wants it any more. A bind never waits for anything.
    pub async fn run(mut self) {
        while !self.app.listening.load().unbound.is_empty() {
            tokio::time::sleep(self.pause).await;
            self.pause = (self.pause * 2).min(LONGEST);
            let mut now = (*self.app.listening.load_full()).clone();
            let waiting = std::mem::take(&mut now.unbound);
            for mut unbound in waiting {
                let bound = bind(unbound.address).and_then(|listener| {
                    let at = listener.local_addr()?;
                    Ok((at, tokio::net::TcpListener::from_std(listener)?))
                });
                match bound {
                    Ok((at, listener)) => {
                        info!("{} {at} is served from now on", unbound.setting);
                        let tls = unbound.setting == SECURE;
                        if self.found.send(Late { listener, tls }).await.is_err() {
                            return;
                        }
                        if tls { now.secure.push(at) } else { now.plain.push(at) }
                    }
                    Err(why) => {
                        let why = why.to_string();
                        if why != unbound.why {
                            unbound.why = why;
                            error!("{unbound}");
                        }
                        now.unbound.push(unbound);
                    }
                }
            }
            self.app.listening.store(Arc::new(now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn taken() -> (TcpListener, SocketAddr) {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        (taken, address)
    }

    #[test]
    fn an_address_that_is_not_there_yet_is_bound() {
        // Reserved for documentation: no machine has them.
        assert!(TcpListener::bind("192.0.2.1:0").is_err(), "this machine has 192.0.2.1");
        let bound = Bound::of(PLAIN, &[at("192.0.2.1:0")]);
        assert!(bound.unbound.is_empty(), "{:?}", bound.unbound);
        assert_eq!(bound.listeners[0].local_addr().unwrap().ip(), at("192.0.2.1:0").ip());
        if TcpListener::bind("[::1]:0").is_ok() {
            assert!(Bound::of(PLAIN, &[at("[2001:db8::1]:0")]).unbound.is_empty());
        }
        assert!(
            matches!(look(PLAIN, at("192.0.2.1:9000")), Said::Note(said) if said.contains("not on this machine"))
        );
    }

    #[test]
    fn an_address_that_cannot_be_bound_takes_none_of_the_others() {
        let (_taken, address) = taken();
        let bound = Bound::or(&[address, at("127.0.0.1:0")], None).unwrap();
        assert_eq!(bound.listeners.len(), 1);
        assert!(
            bound.unbound[0].to_string().starts_with(&format!("server.listen {address} cannot be bound: "))
        );
        assert_eq!(look(PLAIN, address), Said::Nothing, "perhaps it is the daemon itself");
    }

    #[test]
    fn only_safe_mode_falls_back_to_the_default_and_only_when_nothing_else_is_left() {
        let (_taken, address) = taken();
        let ended = Bound::or(&[address], None).unwrap_err().to_string();
        assert!(ended.contains(&format!("server.listen {address} cannot be bound")), "{ended}");
        let fallback = at("127.0.0.1:0");
        let kept = Bound::or(&[address], Some(fallback)).unwrap();
        assert_eq!((kept.listeners.len(), kept.unbound.len()), (1, 1), "it is told all the same");
        let own = Bound::or(&[at("127.0.0.2:0")], Some(fallback)).unwrap();
        assert_eq!(own.listeners[0].local_addr().unwrap().ip(), at("127.0.0.2:0").ip());
        assert_eq!(own.listeners.len(), 1, "what the configuration closes stays closed");
        assert_eq!(Bound::or(&[address], Some(address)).unwrap_err().0.len(), 2);
        assert_eq!(DEFAULT_LISTEN.parse(), Ok(at("0.0.0.0:9000")));
    }
}
