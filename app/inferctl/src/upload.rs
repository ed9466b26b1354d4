//! One large file up to the daemon, with the answer read whenever it comes.
//!
//! A refusal is usually sent before the whole file was: after the manifest, while most of the payload is still here. A client that
//! only writes would then see a broken pipe and lose the reason, so the socket is looked at before every piece.

use crate::client::{Answer, Client, ClientError};
use crate::secure::Link;
use nix::poll::PollTimeout;
use std::{
    io::{self, Read, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

/// Bytes handed to the socket at once.
const PIECE: usize = 64 << 10;
/// The longest answer that is read.
const MAX_ANSWER: u64 = 1 << 20;
/// The most headers that are understood.
const MAX_HEADERS: usize = 64;

/// While nothing happens the caller is told this often.
const EVERY_MS: u16 = 100;
/// How long a device may take to take a piece, or to answer once it has all: it loads and tries the models before it does.
const LONGEST: Duration = Duration::from_secs(600);

/// What is told of an upload in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of the file were given to the network.
    Sent(u64),
    /// Everything was; the answer is awaited.
    Waiting,
}

/// How an upload ended.
#[derive(Debug)]
pub enum Sent {
    /// With an answer, whether or not everything was sent.
    Answered(Answer),
    /// The connection broke; what arrived is the daemon's to say.
    Cut(io::Error),
}

/// Sends `body`, which is bytes `from..total` of a file, with PUT. `step` is told how far it is.
///
/// # Errors
/// [`ClientError::Unreachable`] when no connection could be made, [`ClientError::Refused`] when the file cannot be read.
pub fn put(
    client: &Client,
    path: &str,
    from: u64,
    total: u64,
    body: &mut impl Read,
    step: &mut dyn FnMut(Step),
) -> Result<Sent, ClientError> {
    let address = client.resolve()?;
    let stream = TcpStream::connect_timeout(&address, client.timeout()).map_err(|e| client.explain_io(&e))?;
    let prepared = stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(client.timeout())))
        .and_then(|()| stream.set_write_timeout(Some(LONGEST)));
    prepared.map_err(|e| client.explain_io(&e))?;
    let mut stream =
        Link::over(stream, client.tls(), &client.base().host).map_err(|e| client.explain_io(&e))?;
    let started = Instant::now();
    let head = head(client, path, from, total);
    if let Err(e) = stream.write_all(head.as_bytes()) {
        return Ok(answer_or(stream, started, e));
    }
    let (mut piece, mut sent) = (vec![0; PIECE], from);
    while sent < total {
        if stream.answers(PollTimeout::ZERO) {
            break;
        }
        let want = usize::try_from(total - sent).unwrap_or(PIECE).min(PIECE);
        let read = body.read(&mut piece[..want]);
        let n = read.map_err(|e| ClientError::Refused(format!("the file cannot be read: {e}")))?;
        if n == 0 {
            return Err(ClientError::Refused("the file became shorter while it was being sent".into()));
        }
        if let Err(e) = stream.write_all(&piece[..n]) {
            return Ok(answer_or(stream, started, e));
        }
        sent += n as u64;
        step(Step::Sent(sent));
    }
    let waiting = Instant::now();
    while !stream.answers(PollTimeout::from(EVERY_MS)) {
        if waiting.elapsed() > LONGEST {
            return Ok(Sent::Cut(io::ErrorKind::TimedOut.into()));
        }
        step(Step::Waiting);
    }
    Ok(match answer(&mut stream, started) {
        Ok(answer) => Sent::Answered(answer),
        Err(e) => Sent::Cut(e),
    })
}

fn head(client: &Client, path: &str, from: u64, total: u64) -> String {
    let base = client.base();
    let mut head = format!(
        "PUT {}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: application/octet-stream\r\n\
         Content-Length: {}\r\nUser-Agent: inferctl/{}\r\n",
        base.prefix,
        base.authority(),
        total - from,
        env!("CARGO_PKG_VERSION")
    );
    if from > 0 {
        head += &format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1);
    }
    if let Some((name, value)) = client.key_header() {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// What the peer said before it closed, else the error that sending met.
fn answer_or(mut stream: Link, started: Instant, error: io::Error) -> Sent {
    // What was sent before the break is already here; a peer that is gone says so at once.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    match answer(&mut stream, started) {
        Ok(answer) => Sent::Answered(answer),
        Err(_) => Sent::Cut(error),
    }
}

/// Reads a whole answer; informational ones are passed over.
fn answer(stream: &mut Link, started: Instant) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut piece = [0; 8 << 10];
    loop {
        if let Some(answer) = complete(&mut bytes, false, started)? {
            return Ok(answer);
        }
        if bytes.len() as u64 > MAX_ANSWER {
            return Err(io::Error::other("the answer is larger than 1 MiB"));
        }
        match stream.read(&mut piece) {
            Ok(0) => {
                return complete(&mut bytes, true, started)?
                    .ok_or_else(|| io::ErrorKind::UnexpectedEof.into());
            }
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
    }
}

/// The answer in `bytes`, once it is all there.
fn complete(bytes: &mut Vec<u8>, closed: bool, started: Instant) -> io::Result<Option<Answer>> {
    loop {
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut lines);
        let parsed =
            response.parse(bytes).map_err(|_| io::Error::other("what answers there is not HTTP/1.1"))?;
        let httparse::Status::Complete(head) = parsed else { return Ok(None) };
        let status = response.code.unwrap_or(0);
        if (100..200).contains(&status) {
            bytes.drain(..head);
            continue;
        }
        let mut headers = HeaderMap::new();
        for line in response.headers.iter() {
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(line.name.as_bytes()), HeaderValue::from_bytes(line.value))
            {
                headers.append(name, value);
            }
        }
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
        let body = &bytes[head..];
        let body = if text("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
            unchunked(body)
        } else {
            match text("content-length").map(str::parse::<usize>) {
                Some(Ok(length)) => body.get(..length).map(<[u8]>::to_vec),
                Some(Err(_)) => return Err(io::Error::other("the answer's Content-Length is no number")),
                None => closed.then(|| body.to_vec()),
            }
        };
        return Ok(body.map(|body| Answer { status, headers, body, took: started.elapsed() }));
    }
}

/// A body in chunks, once its last one is there.
fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n")?;
        let line = std::str::from_utf8(&bytes[..end]).ok()?;
        let size = usize::from_str_radix(line.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        let data = bytes.get(end + 2..)?;
        body.extend_from_slice(data.get(..size)?);
        bytes = data.get(size.checked_add(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Serves one connection: reads `take` bytes of the body, sends `answer` and closes; returns the head it was sent.
    fn server(take: usize, answer: &'static str) -> (Client, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") {
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            stream.read_exact(&mut vec![0; take]).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(head).unwrap()
        });
        (Client::new(&url, Some("k".repeat(16)), Duration::from_secs(20)).unwrap(), serving)
    }

    fn send(client: &Client, from: u64, body: &[u8]) -> (Sent, u64) {
        let mut last = from;
        let total = from + body.len() as u64;
        let sent = put(client, "/b", from, total, &mut &*body, &mut |step| {
            if let Step::Sent(n) = step {
                last = n;
            }
        })
        .unwrap();
        (sent, last)
    }

    #[test]
    fn everything_is_sent_and_counted_and_the_answer_read() {
        let (client, serving) = server(
            200_000,
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok",
        );
        let (sent, last) = send(&client, 0, &vec![7; 200_000]);
        let Sent::Answered(answer) = sent else { panic!("{sent:?}") };
        assert_eq!((answer.status, answer.body.as_slice(), last), (201, &b"ok"[..], 200_000));
        let head = serving.join().unwrap();
        assert!(head.contains("Content-Length: 200000\r\n") && head.contains("X-API-Key: kkk"), "{head}");
        assert!(!head.contains("Content-Range"), "{head}");
    }

    #[test]
    fn a_part_says_which_one_it_is() {
        let (client, serving) = server(10, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n");
        let (sent, last) = send(&client, 90, &[7; 10]);
        assert!(matches!(sent, Sent::Answered(Answer { status: 204, .. })), "{sent:?}");
        assert_eq!(last, 100);
        assert!(serving.join().unwrap().contains("Content-Range: bytes 90-99/100\r\n"));
    }

    #[test]
    fn an_answer_before_the_end_is_read_and_the_rest_is_not_sent() {
        let refusal = "HTTP/1.1 409 Conflict\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno,\r\n6;x=y\r\n never\r\n0\r\n\r\n";
        let (client, serving) = server(1000, refusal);
        let body = vec![7; 64 << 20];
        let (sent, last) = send(&client, 0, &body);
        let Sent::Answered(answer) = sent else { panic!("{sent:?}") };
        assert_eq!((answer.status, answer.body.as_slice()), (409, &b"no, never"[..]));
        assert!(last < body.len() as u64, "{last}");
        serving.join().unwrap();
    }

    #[test]
    fn a_connection_that_breaks_is_a_cut_and_no_answer() {
        let (client, serving) = server(1000, "");
        let (sent, _) = send(&client, 0, &vec![7; 64 << 20]);
        assert!(matches!(sent, Sent::Cut(_)), "{sent:?}");
        serving.join().unwrap();
    }
}
