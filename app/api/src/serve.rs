//! Sockets to requests, replies to sockets.
//!
//! One task per connection. Its times are kept by one timer that looks at one deadline; a request only stores a new deadline,
//! it never touches the timer. Closing is gentle: after a refusal whose request was not read to its end, what the client still
//! sends is read and dropped for a moment, because closing a socket with unread input makes the kernel send a reset, which
//! may destroy the refusal before the client has read it.
//!
//! A client that hangs up ends its request, but a change that came whole is made, and leaves its line: what answers it is not dropped
//! with its connection. Work that must not end in the middle for any other reason either is in a task of its own.
//!
//! A TLS handshake holds a place like any connection, has the time of a request's head, and gives way like an idle one.

use crate::http::Outgoing;
use crate::socket::Session;
use crate::{App, limits, rate, router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A connection that is idle, or reads a body, for less than this is not closed for the sake of another.
const IDLE_ENOUGH: Duration = Duration::from_secs(1);
/// Pause after the system refused a connection (out of descriptors), so that the refusal does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that could not be had at the start.
pub struct Late {
    /// It is bound now.
    pub listener: TcpListener,
    /// It speaks TLS.
    pub tls: bool,
}

/// Serves until `shutdown` completes, then takes no new connections, lets requests in flight end (at most
/// [`crate::ApiConfig::drain_time`]) and returns when every connection is closed.
///
/// What comes from `late` is served like the others from then on. `secure` listeners speak TLS with the certificate of [`App::tls`] at the time of each handshake.
pub async fn serve(
    app: Arc<App>,
    listeners: Vec<TcpListener>,
    secure: Vec<TcpListener>,
    mut late: mpsc::Receiver<Late>,
    shutdown: impl Future<Output = ()>,
) {
    let refusing = Arc::new(Semaphore::new(limits::REFUSALS));
    let door = Arc::new(Door { app, open: Mutex::default(), empty: Notify::new(), refusing });
    let mut accepting = tokio::task::JoinSet::new();
    for (listener, tls) in
        listeners.into_iter().map(|l| (l, false)).chain(secure.into_iter().map(|l| (l, true)))
    {
        accepting.spawn(accept(door.clone(), listener, tls));
    }
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(Late { listener, tls }) = late.recv() => {
                accepting.spawn(accept(door.clone(), listener, tls));
            }
        }
    }
    accepting.shutdown().await;
    door.app.ending.send_replace(true);
    if tokio::time::timeout(door.app.config.drain_time, door.all_closed()).await.is_err() {
        let left = door.abandon();
        tracing::warn!(connections = left, "connections did not end within the drain time and are closed");
        door.all_closed().await;
    }
}

async fn accept(door: Arc<Door>, listener: TcpListener, tls: bool) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => door.clone().admit(stream, peer, tls),
            Err(e) => {
                tracing::warn!(error = %e, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// All connections of the endpoint.
struct Door {
    app: Arc<App>,
    open: Mutex<Vec<Arc<Connection>>>,
    /// Notified when the last connection is gone.
    empty: Notify,
    /// Bounds the connections that are being refused: they have no place in `open`.
    refusing: Arc<Semaphore>,
}

/// What the task of a connection, its requests and the door know of each other.
pub(crate) struct Connection {
    /// Whose it is.
    client: IpAddr,
    started: Instant,
    /// Milliseconds since `started` when the connection has run out of time; `NEVER` while a request is being answered.
    deadline: AtomicU64,
    /// Milliseconds since `started` when the last request ended; `NEVER` while one is in progress (its head excepted).
    idle_since: AtomicU64,
    /// Milliseconds since `started` when the body in progress began to come; `NEVER` while none is.
    body_since: AtomicU64,
    /// Bytes read since then.
    body_bytes: AtomicU64,
    /// Bytes of the next request's head came.
    in_head: AtomicBool,
    /// The last reply is a body that comes piece by piece.
    streams: AtomicBool,
    /// What answers has looked at the request in progress.
    looked: AtomicBool,
    /// The request in progress is a change that is made though its client hangs up.
    changes: AtomicBool,
    /// That the client of this request hung up has been kept back.
    kept_back: AtomicBool,
    /// What goes on here after a 101.
    session: Mutex<Option<Box<Session>>>,
    /// The client does not take what is written.
    blocked: Arc<AtomicBool>,
    /// The door asks the task to close now.
    close: Notify,
}

const NEVER: u64 = u64::MAX;

impl Connection {
    fn new(client: IpAddr, idle_time: Duration) -> Self {
        let c = Self {
            client: rate::network(client),
            started: Instant::now(),
            deadline: AtomicU64::new(NEVER),
            idle_since: AtomicU64::new(0),
            body_since: AtomicU64::new(NEVER),
            body_bytes: AtomicU64::new(0),
            in_head: AtomicBool::new(false),
            streams: AtomicBool::new(false),
            looked: AtomicBool::new(false),
            changes: AtomicBool::new(false),
            kept_back: AtomicBool::new(false),
            session: Mutex::default(),
            blocked: Arc::default(),
            close: Notify::new(),
        };
        c.wait_for_request(idle_time);
        c
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// The reply is on its way; the client has `idle_time` for its next request.
    fn wait_for_request(&self, idle_time: Duration) {
        let now = self.now();
        self.in_head.store(false, Relaxed);
        self.body_since.store(NEVER, Relaxed);
        self.idle_since.store(now, Relaxed);
        self.deadline.store(now.saturating_add(millis(idle_time)), Relaxed);
    }

    /// The reply comes piece by piece: the client has `idle_time` for each, and the connection cannot be spared.
    fn stream(&self, idle_time: Duration) {
        self.wait_for_request(idle_time);
        self.streams.store(true, Relaxed);
    }

    /// A TLS handshake begins: its time runs, and the connection can be spared.
    fn handshake(&self, time: Duration) {
        self.deadline.store(self.now().saturating_add(millis(time)), Relaxed);
    }

    /// Something came in. The first bytes of a request start the time for its head.
    fn received(&self, bytes: usize, head_time: Duration) {
        if self.body_since.load(Relaxed) != NEVER {
            self.body_bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Relaxed);
        } else if self.idle_since.load(Relaxed) != NEVER && !self.in_head.swap(true, Relaxed) {
            self.deadline.store(self.now().saturating_add(millis(head_time)), Relaxed);
        }
    }

    /// The client took some of the reply.
    fn sent(&self, idle_time: Duration) {
        if self.idle_since.load(Relaxed) != NEVER && !self.in_head.load(Relaxed) {
            self.deadline.store(self.now().saturating_add(millis(idle_time)), Relaxed);
        }
    }

    /// The head is complete: from here the request has its own limits.
    fn busy(&self) {
        self.idle_since.store(NEVER, Relaxed);
        self.deadline.store(NEVER, Relaxed);
        self.streams.store(false, Relaxed);
        self.body_bytes.store(0, Relaxed);
        self.body_since.store(self.now(), Relaxed);
        for flag in [&self.looked, &self.changes, &self.kept_back] {
            flag.store(false, Relaxed);
        }
    }

    /// What answers has the request, and says whether it is a change that is made though its client hangs up.
    pub(crate) fn looked_at(&self, changes: bool) {
        self.looked.store(true, Relaxed);
        self.changes.store(changes, Relaxed);
    }

    /// Whether it is kept from hyper that the client hung up, which would drop what answers: a change that was asked for whole is
    /// made, and leaves its line, though nobody waits for it. An end that came together with the request is seen before the
    /// request, or its body, is; so it is kept back until they are.
    fn keeps_back(&self, cx: &Context<'_>) -> bool {
        let answering = self.idle_since.load(Relaxed) == NEVER;
        if !answering {
            return false;
        }
        let looked = self.looked.load(Relaxed);
        if looked && !self.changes.load(Relaxed) {
            return false;
        }
        if looked && self.body_since.load(Relaxed) == NEVER {
            // See `go_on`.
            self.kept_back.store(true, Relaxed);
            return true;
        }
        if looked && self.kept_back.swap(true, Relaxed) {
            return false;
        }
        cx.waker().wake_by_ref();
        true
    }

    /// There is a reply: from now on hyper is told what was kept back, for which it reads once more.
    fn go_on(&self, cx: &Context<'_>) -> Poll<()> {
        if self.kept_back.swap(false, Relaxed) {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(())
    }

    /// The reply is a 101: this speaks from then on.
    pub(crate) fn go_on_as(&self, session: Box<Session>) {
        // Only ever taken or put.
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    /// Whether the client does not take what is written, now.
    pub(crate) fn blocked(&self) -> &Arc<AtomicBool> {
        &self.blocked
    }

    /// What goes on here. It keeps times of its own, and the connection cannot be spared.
    fn goes_on(&self) -> Option<Box<Session>> {
        let session = self.session.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        self.busy();
        self.body_done();
        self.streams.store(true, Relaxed);
        Some(session)
    }

    /// The body is complete or given up; what takes its time now is ours.
    pub(crate) fn body_done(&self) {
        self.body_since.store(NEVER, Relaxed);
    }

    /// How well this connection can be spared for a new one; `None` when it cannot. Idle ones before those that send a body,
    /// the longest idle and the slowest body first; never one whose request is being answered.
    fn spare(&self) -> Option<Spare> {
        if self.streams.load(Relaxed) {
            return None;
        }
        let long = |since: u64| {
            let lasts = self.now().saturating_sub(since);
            (since != NEVER && lasts >= millis(IDLE_ENOUGH)).then_some(lasts)
        };
        let idle = long(self.idle_since.load(Relaxed)).map(Spare::Idle);
        idle.or_else(|| {
            let lasts = long(self.body_since.load(Relaxed))?;
            // Microseconds per byte.
            Some(Spare::Body(lasts.saturating_mul(1000) / self.body_bytes.load(Relaxed).saturating_add(1)))
        })
    }

    /// Waits until the deadline has passed. Every deadline is at least `step` away when it is set, so looking once per `step`
    /// is never late.
    async fn expired(&self, step: Duration) {
        loop {
            let deadline = self.deadline.load(Relaxed);
            if deadline <= self.now() {
                return;
            }
            let next = self.now().saturating_add(millis(step).max(1)).min(deadline);
            tokio::time::sleep_until(self.started + Duration::from_millis(next)).await;
        }
    }
}

/// Why a connection can be spared; the greater the better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spare {
    /// It sends a body, at so many microseconds per byte.
    Body(u64),
    /// It is idle for so many milliseconds.
    Idle(u64),
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(NEVER / 2)
}

impl Door {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        // A push or a removal is all that happens under the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in; when all places are taken, or those of its client, in the place of one that can be spared (see
    /// [`Connection::spare`]); when none can, not.
    fn admit(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, tls: bool) {
        let config = &self.app.config;
        let connection = Arc::new(Connection::new(peer.ip(), config.idle_time));
        if self.app.alive.mark.is(peer) {
            // The daemon's own question whether this endpoint lives: it takes no client's place and drives nobody out.
            tokio::spawn(async move { talk(&self, &connection, stream, peer).await });
            return;
        }
        {
            let mut open = self.lock();
            let local = connection.client.is_loopback();
            let same = |c: &Arc<Connection>| c.client == connection.client;
            let too_many_of_one =
                !local && open.iter().filter(|c| same(c)).count() >= config.max_connections_per_client;
            if too_many_of_one || open.len() >= config.max_connections {
                let sparable =
                    |i: usize| (!too_many_of_one || same(&open[i])).then(|| open[i].spare()).flatten();
                let best = (0..open.len()).filter_map(|i| sparable(i).map(|s| (s, i))).max();
                let Some((_, place)) = best else {
                    drop(open);
                    self.app.metrics.connections_refused.inc();
                    // Past that many, a word costs more than it is worth: the socket is closed as it is. So is one that
                    // would have to be told in TLS.
                    if tls {
                        return;
                    }
                    if let Ok(permit) = self.refusing.clone().try_acquire_owned() {
                        tokio::spawn(async move {
                            refuse(stream).await;
                            drop(permit);
                        });
                    }
                    return;
                };
                open.swap_remove(place).close.notify_one();
                self.app.metrics.connections_evicted.inc();
            }
            open.push(connection.clone());
        }
        self.app.metrics.connections.inc();
        tokio::spawn(async move {
            // Also when the task is dropped with the runtime or a handler panics, the place is given back.
            let place = Place { door: &self, connection: &connection };
            // Without it the kernel may hold a small reply back for up to 40 ms. It only fails on a socket that is dead already.
            let _ = stream.set_nodelay(true);
            // As long as it is not so, slow clients of streams read what is old.
            let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(limits::UNSENT);
            if tls {
                if let Some(stream) = self.shake_hands(&connection, stream, peer).await {
                    // Boxed: a plain connection would carry its size.
                    Box::pin(talk(&self, &connection, stream, peer)).await;
                }
            } else {
                talk(&self, &connection, stream, peer).await;
            }
            drop(place);
        });
    }

    /// The TLS side of a connection; `None` when the client did not get through the handshake in its time.
    async fn shake_hands(
        &self,
        connection: &Connection,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Option<Box<TlsStream<TcpStream>>> {
        let config = &self.app.config;
        let identity = self.app.tls.load().identity.clone()?;
        connection.handshake(config.head_time);
        let mut told = self.app.ending.subscribe();
        let shaken = tokio::select! {
            shaken = TlsAcceptor::from(identity.config).accept(stream) => shaken.map_err(|e| e.to_string()),
            () = connection.expired(config.head_time) => Err("no time left".to_owned()),
            () = connection.close.notified() => Err("its place was needed".to_owned()),
            _ = told.wait_for(|leave| *leave) => return None,
        };
        match shaken {
            Ok(stream) => {
                connection.wait_for_request(config.idle_time);
                Some(Box::new(stream))
            }
            Err(why) => {
                self.app.metrics.tls_handshakes_failed.inc();
                tracing::debug!(%peer, error = why, "TLS handshake failed");
                None
            }
        }
    }

    async fn all_closed(&self) {
        let mut emptied = pin!(self.empty.notified());
        loop {
            emptied.as_mut().enable();
            if self.lock().is_empty() {
                return;
            }
            emptied.as_mut().await;
            emptied.set(self.empty.notified());
        }
    }

    /// Asks every connection to close at once; how many there were.
    fn abandon(&self) -> usize {
        let open = self.lock();
        open.iter().for_each(|c| c.close.notify_one());
        open.len()
    }
}

struct Place<'a> {
    door: &'a Door,
    connection: &'a Arc<Connection>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.door.app.metrics.connections.dec();
        let mut open = self.door.lock();
        open.retain(|c| !Arc::ptr_eq(c, self.connection));
        if open.is_empty() {
            self.door.empty.notify_waiters();
        }
    }
}

/// How a connection ended.
#[derive(PartialEq)]
enum End {
    /// By HTTP: the client closed, or a reply said so.
    Done,
    /// The client ran out of time.
    Expired,
    /// The door asked for it.
    Closed,
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    door: &Arc<Door>,
    connection: &Arc<Connection>,
    mut stream: S,
    peer: SocketAddr,
) {
    let config = &door.app.config;
    let (end, begun) = {
        let service = hyper::service::service_fn(|request: hyper::Request<Incoming>| {
            connection.busy();
            let (app, connection) = (&door.app, connection);
            async move {
                let reply = router::answer(app, request, peer, connection).await;
                match reply.body() {
                    Outgoing::Whole(_) => connection.wait_for_request(app.config.idle_time),
                    Outgoing::Stream(_) => connection.stream(app.config.idle_time),
                }
                std::future::poll_fn(|cx| connection.go_on(cx)).await;
                Ok::<_, Infallible>(reply)
            }
        });
        let io = Watched { stream: &mut stream, connection, head: config.head_time, idle: config.idle_time };
        let mut http = http1::Builder::new()
            .header_read_timeout(None)
            .max_header_size(limits::HEAD)
            .max_buf_size(limits::READ_BUFFER)
            .serve_connection(TokioIo::new(io), service);
        let mut expired = pin!(connection.expired(config.head_time.min(config.idle_time)));
        let mut told = door.app.ending.subscribe();
        let mut leaving = false;
        let end = loop {
            tokio::select! {
                biased;
                ended = Pin::new(&mut http) => {
                    if let Err(e) = ended {
                        tracing::debug!(%peer, error = %e, "connection ended early");
                    }
                    break End::Done;
                }
                () = &mut expired => break End::Expired,
                () = connection.close.notified() => break End::Closed,
                _ = told.wait_for(|leave| *leave), if !leaving => {
                    leaving = true;
                    Pin::new(&mut http).graceful_shutdown();
                }
            }
        };
        (end, http.into_parts().read_buf)
    };
    if end == End::Done
        && let Some(session) = connection.goes_on()
    {
        tokio::select! {
            () = session.run(&mut stream, begun) => {}
            () = connection.close.notified() => return,
        }
    }
    if end == End::Expired && connection.in_head.load(Relaxed) {
        door.app.metrics.slow_heads.inc();
        let text = raw("408 Request Timeout", "slow_head", "the head of the request did not come in time");
        say(&mut stream, &text).await;
    }
    if end == End::Closed {
        if connection.body_since.load(Relaxed) != NEVER {
            // Likely lost when the client has more on its way, but it costs nothing to say.
            let text = raw(
                "503 Service Unavailable",
                "connections",
                "all connections are taken, and this one is slow",
            );
            say(&mut stream, &text).await;
        }
        return;
    }
    // Whoever only reads what nobody wants can be spared.
    connection.streams.store(false, Relaxed);
    connection.wait_for_request(config.idle_time);
    tokio::select! {
        () = linger(&mut stream) => {}
        () = connection.close.notified() => {}
    }
}

/// Writes what the socket takes at once; a client that takes nothing is not waited for.
async fn say(stream: &mut (impl AsyncWrite + Unpin), text: &str) {
    let mut write = pin!(async {
        if stream.write_all(text.as_bytes()).await.is_ok() {
            let _ = stream.flush().await;
        }
    });
    std::future::poll_fn(|cx| {
        let _ = write.as_mut().poll(cx);
        Poll::Ready(())
    })
    .await;
}

/// A reply for a connection that hyper does not answer on.
fn raw(status: &str, error: &str, detail: &str) -> String {
    let body = format!(r#"{{"detail":"{detail}","error":"{error}"}}"#);
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn refuse(mut stream: TcpStream) {
    // A fresh socket's send buffer holds it; a client that is gone already needs no refusal.
    let text = raw("503 Service Unavailable", "connections", "all connections are taken");
    let _ = stream.writable().await;
    let _ = stream.try_write(text.as_bytes());
    linger(&mut stream).await;
}

/// Says that nothing more will be sent, then reads and drops what still comes, within limits.
async fn linger(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let drain = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut left = limits::LINGER_BYTES;
        let mut sink = vec![0; 16 << 10];
        while let Ok(Ok(n)) = tokio::time::timeout(limits::LINGER_SILENCE, stream.read(&mut sink)).await {
            if n == 0 || n >= left {
                return;
            }
            left -= n;
        }
    };
    // Out of time is as good as done: the client had its chance.
    let _ = tokio::time::timeout(limits::LINGER_TIME, drain).await;
}

/// The socket, telling the connection's times when bytes move.
struct Watched<'a, S> {
    stream: &'a mut S,
    connection: &'a Connection,
    head: Duration,
    idle: Duration,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut *self.stream).poll_read(cx, buf));
        let n = buf.filled().len() - before;
        if n > 0 {
            self.connection.received(n, self.head);
        } else if self.connection.keeps_back(cx) {
            return Poll::Pending;
        }
        Poll::Ready(read)
    }
}

impl<S> Watched<'_, S> {
    fn moved(
        &self,
        cx: &mut Context<'_>,
        written: Poll<std::io::Result<usize>>,
    ) -> Poll<std::io::Result<usize>> {
        let blocked = written.is_pending();
        if self.connection.blocked.swap(blocked, Relaxed) && !blocked {
            // What waits for this is polled before the write, and not again after it.
            cx.waker().wake_by_ref();
        }
        if matches!(&written, Poll::Ready(Ok(n)) if *n > 0) {
            self.connection.sent(self.idle);
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut *self.stream).poll_write(cx, buf);
        self.moved(cx, written)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut *self.stream).poll_write_vectored(cx, bufs);
        self.moved(cx, written)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that exists for ten seconds and is busy with a request whose body is complete.
    fn busy() -> Connection {
        let mut c = Connection::new(IpAddr::from([10, 0, 0, 1]), Duration::from_secs(90));
        c.started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        c.busy();
        c.body_done();
        c
    }

    fn body(since: u64, bytes: usize) -> Connection {
        let c = busy();
        c.body_since.store(since, Relaxed);
        c.received(bytes, Duration::ZERO);
        c
    }

    fn idle(since: u64) -> Connection {
        let c = busy();
        c.wait_for_request(Duration::from_secs(90));
        c.idle_since.store(since, Relaxed);
        c
    }

    #[test]
    fn the_longest_idle_is_spared_first_then_the_slowest_body() {
        let in_order = [idle(0), idle(2000), body(0, 1), body(0, 100), body(5000, 100), body(0, 1 << 20)];
        for pair in in_order.windows(2) {
            assert!(pair[0].spare().unwrap() > pair[1].spare().unwrap());
        }
    }

    #[test]
    fn what_is_being_answered_or_has_just_begun_is_not_spared() {
        assert_eq!(busy().spare(), None);
        assert_eq!(idle(9900).spare(), None);
        assert_eq!(body(9900, 0).spare(), None);
    }
}
