//! Every limit of this room, with its reason. Those a deployment may change are also in [`crate::ApiConfig`].

use crate::RateLimit;
use std::time::Duration;

/// The largest request body. A 100x9 window is 6 to 12 KiB of JSON, a 640x640 RGB frame as binary FP32 is 4.7 MiB.
pub const BODY: usize = 10 << 20;
/// Bytes of bodies held at once, all connections together. A small board must survive 256 clients that each send 10 MiB.
pub const BODIES_TOTAL: usize = 64 << 20;
/// Connections held at once. One more takes the place of the longest idle one or the slowest body, or is answered 503.
pub const CONNECTIONS: usize = 256;
/// Connections of one client address held at once: no single one takes all places. Browsers open 6, pools of clients 10 to 50.
pub const CONNECTIONS_PER_CLIENT: usize = 64;
/// Connections that are told at once that all places are taken. Beyond them a new one is closed without a word.
pub const REFUSALS: usize = 64;
/// Time for the head of a request, from its first byte.
pub const HEAD_TIME: Duration = Duration::from_secs(10);
/// Time for the body of a request.
pub const BODY_TIME: Duration = Duration::from_secs(30);
/// A streamed upload is given up when in this much waiting for its client fewer bytes come than [`UPLOAD_RATE`] asks for. Long
/// enough for a wireless link to lose its access point and find it again.
pub const UPLOAD_WINDOW: Duration = Duration::from_secs(30);
/// Bytes a second, on average over [`UPLOAD_WINDOW`], that a streamed upload must keep up: less than the worst modem does.
pub const UPLOAD_RATE: u64 = 1024;
/// Clients that may listen to `/api/v1/events` at once.
pub const LISTENERS: usize = 16;
/// Clients that may stream from `/infer/stream` and `/emg/stream` at once.
pub const STREAMS: usize = 64;
/// Streams of one client address at once: a person's screens and a robot, and no quarter of the places is one program's that forgets to close.
pub const STREAMS_PER_CLIENT: usize = 16;
/// Bytes that the kernel takes for a client beyond what it can send at once. Its own buffer holds minutes of a stream, which a slow client
/// would read one by one instead of what is new.
pub const UNSENT: u32 = 16 << 10;
/// Bytes of what the client of a WebSocket may send at once: it has nothing to say but pongs, whose load is 125 bytes at most.
pub const SOCKET_MESSAGE: usize = 4 << 10;
/// Pieces that wait for one listener; one more and it is dropped, since it does not read.
pub const LISTENER_BACKLOG: usize = 32;
/// A comment goes out when nothing else did for this long, so that a listener that is gone is noticed.
pub const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a push waits for the gates behind its last byte (load, golden vectors, shadow) before it is answered 202.
pub const SETTLE: Duration = Duration::from_secs(120);
/// Characters of the reason of a rollback, which is kept in its verdict.
pub const REASON: usize = 200;
/// Time between requests on a kept connection. Client pools (AsyncHTTPClient: 60 s) must give up before we do.
pub const IDLE_TIME: Duration = Duration::from_secs(90);
/// Time for requests in flight when the daemon is told to end.
pub const DRAIN_TIME: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
pub const HEAD: usize = 32 << 10;
/// Bytes read at once from a connection; its buffer grows to this and no further.
pub const READ_BUFFER: usize = 64 << 10;
/// After a refusal with unread input we go on reading for a while, so that the refusal is not lost to a reset: up to this many
/// bytes, which lets a client that sends 30 MiB without asking first still read its 413.
pub const LINGER_BYTES: usize = 32 << 20;
/// See [`LINGER_BYTES`]: all in all.
pub const LINGER_TIME: Duration = Duration::from_secs(10);
/// See [`LINGER_BYTES`]: without a byte.
pub const LINGER_SILENCE: Duration = Duration::from_secs(2);
/// Replies of at least this size are compressed when the client asks for it.
pub const GZIP_FROM: usize = 1000;
/// JSON bodies and compressions above this size leave the network thread, so that health checks stay quick.
pub const HEAVY: usize = 256 << 10;
/// Motif scores of a model without a motif head: that many zeros.
pub const MOTIFS: usize = 12;
/// Clients whose request rate is remembered.
pub const RATE_CLIENTS: usize = 1024;
/// Requests of one client that change the device: a person or a fleet server needs far fewer.
pub const CHANGES: RateLimit = RateLimit { per_second: 1.0, burst: 60.0 };
/// Wrong API keys of one client: 10 at once, then 10 a minute. Its right ones are not looked at either while it waits: a
/// guesser learns nothing.
pub const WRONG_KEYS: RateLimit = RateLimit { per_second: 10.0 / 60.0, burst: 10.0 };
/// How long the keeper's history may take to be read; an answer comes without it then.
pub const HISTORY_TIME: Duration = Duration::from_secs(5);
