//! Reads one HTTP/1.1 response at a time, counting body bytes instead of keeping them.

/// The most headers that are understood.
const MAX_HEADERS: usize = 64;
/// The longest head that is taken.
const MAX_HEAD: usize = 64 << 10;
/// Bytes of a refusal that are kept as an example.
const EXCERPT: usize = 400;

/// A complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Whether the connection can carry another request.
    pub keep: bool,
}

/// What does not look like HTTP/1.1, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHttp(pub &'static str);

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    ChunkSize,
    /// Bytes of chunk data left, its CRLF included.
    ChunkData(u64),
    /// In the trailer section; how many bytes of its last line were seen.
    Trailer(usize),
    UntilClose,
}

/// The state of one connection's response.
#[derive(Debug)]
pub struct Reader {
    state: State,
    /// A head, or a chunk-size line, that came in pieces.
    partial: Vec<u8>,
    answer: Answer,
    excerpt: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            state: State::Head,
            partial: Vec::new(),
            answer: Answer { status: 0, keep: true },
            excerpt: Vec::new(),
        }
    }
}

impl Reader {
    /// Takes what was read; gives the answer once it is complete.
    ///
    /// # Errors
    /// [`NotHttp`]; the connection is of no further use then.
    pub fn advance(&mut self, mut bytes: &[u8]) -> Result<Option<Answer>, NotHttp> {
        loop {
            match &mut self.state {
                State::Head => {
                    let Some(rest) = self.head(bytes)? else { return Ok(None) };
                    bytes = rest;
                    if matches!(self.state, State::Length(0)) {
                        return self.done(bytes);
                    }
                }
                State::Length(left) => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= take as u64;
                    let complete = *left == 0;
                    self.keep_excerpt(&bytes[..take]);
                    bytes = &bytes[take..];
                    if complete {
                        return self.done(bytes);
                    }
                }
                State::ChunkSize => {
                    let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
                        self.partial.extend_from_slice(bytes);
                        return if self.partial.len() > 64 {
                            Err(NotHttp("a chunk size without end"))
                        } else {
                            Ok(None)
                        };
                    };
                    self.partial.extend_from_slice(&bytes[..end]);
                    bytes = &bytes[end + 1..];
                    let line = std::mem::take(&mut self.partial);
                    let size = std::str::from_utf8(&line)
                        .ok()
                        .and_then(|l| u64::from_str_radix(l.split(';').next().unwrap_or(l).trim(), 16).ok())
                        .filter(|size| *size < 1 << 40)
                        .ok_or(NotHttp("a chunk size that is not hexadecimal"))?;
                    self.state = if size == 0 { State::Trailer(0) } else { State::ChunkData(size + 2) };
                }
                State::ChunkData(left) => {
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= take as u64;
                    if *left == 0 {
                        self.state = State::ChunkSize;
                    }
                    self.keep_excerpt(&bytes[..take]);
                    bytes = &bytes[take..];
                }
                State::Trailer(line) => {
                    let Some((&byte, rest)) = bytes.split_first() else { return Ok(None) };
                    bytes = rest;
                    match byte {
                        b'\n' if *line == 0 => return self.done(bytes),
                        b'\n' => *line = 0,
                        b'\r' => {}
                        _ => *line += 1,
                    }
                }
                State::UntilClose => {
                    self.keep_excerpt(bytes);
                    return Ok(None);
                }
            }
            if bytes.is_empty() {
                return Ok(None);
            }
        }
    }

    /// The peer closed: the answer, if that is how this response ends.
    pub fn closed(&mut self) -> Option<Answer> {
        matches!(self.state, State::UntilClose).then_some(Answer { status: self.answer.status, keep: false })
    }

    /// The first bytes of the last refusal, as text.
    #[must_use]
    pub fn excerpt(&self) -> String {
        String::from_utf8_lossy(&self.excerpt).into_owned()
    }

    /// Ready for the next response.
    pub fn reset(&mut self) {
        self.state = State::Head;
        self.partial.clear();
        self.excerpt.clear();
    }

    /// Parses the head; gives what follows it, or nothing while it is incomplete.
    fn head<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, NotHttp> {
        let before = self.partial.len();
        if before > 0 {
            self.partial.extend_from_slice(bytes);
        }
        let head = if before > 0 { self.partial.as_slice() } else { bytes };
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(head) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if head.len() > MAX_HEAD => {
                return Err(NotHttp("a head without end"));
            }
            Ok(httparse::Status::Partial) => {
                if before == 0 {
                    self.partial.extend_from_slice(bytes);
                }
                return Ok(None);
            }
            Err(_) => return Err(NotHttp("no HTTP/1.1 head")),
        };
        let status = response.code.unwrap_or(0);
        let mut keep = response.version == Some(1);
        let (mut body, mut chunked) = (None, false);
        for header in response.headers.iter() {
            let value = std::str::from_utf8(header.value).unwrap_or("").trim();
            if header.name.eq_ignore_ascii_case("content-length") {
                body = Some(value.parse::<u64>().map_err(|_| NotHttp("a Content-Length that is no number"))?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = value.to_ascii_lowercase().ends_with("chunked");
            } else if header.name.eq_ignore_ascii_case("connection") {
                if value.eq_ignore_ascii_case("close") {
                    keep = false;
                } else if value.eq_ignore_ascii_case("keep-alive") {
                    keep = true;
                }
            }
        }
        self.answer = Answer { status, keep };
        let informational = (100..200).contains(&status);
        self.state = match body {
            _ if informational => State::Head,
            _ if status == 204 || status == 304 => State::Length(0),
            _ if chunked => State::ChunkSize,
            Some(length) => State::Length(length),
            None => State::UntilClose,
        };
        let consumed = length - before;
        self.partial.clear();
        Ok(Some(&bytes[consumed..]))
    }

    fn done(&self, rest: &[u8]) -> Result<Option<Answer>, NotHttp> {
        if rest.is_empty() { Ok(Some(self.answer)) } else { Err(NotHttp("more bytes than the response has")) }
    }

    fn keep_excerpt(&mut self, bytes: &[u8]) {
        if self.answer.status >= 400 {
            let room = EXCERPT.saturating_sub(self.excerpt.len());
            self.excerpt.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `text` in pieces of every size from 1 to all, and wants the same from each.
    fn read(text: &str) -> Result<Option<Answer>, NotHttp> {
        let whole = Reader::default().advance(text.as_bytes());
        for size in 1..text.len() {
            let mut reader = Reader::default();
            let mut last = Ok(None);
            for piece in text.as_bytes().chunks(size) {
                assert_eq!(last, Ok(None), "complete before its end in pieces of {size}");
                last = reader.advance(piece);
                if last.is_err() {
                    break;
                }
            }
            assert_eq!(last.is_err(), whole.is_err(), "pieces of {size}");
            if whole.is_ok() {
                assert_eq!(last, whole, "pieces of {size}");
            }
        }
        whole
    }

    #[test]
    fn responses_end_where_http_says() {
        let table = [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", 200, true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, true),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, true),
            ("HTTP/1.1 503 Busy\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", 503, false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", 200, false),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx", 200, true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\n\r\n",
                200,
                true,
            ),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n", 200, true),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 422 No\r\nContent-Length: 1\r\n\r\n!", 422, true),
        ];
        for (text, status, keep) in table {
            assert_eq!(read(text), Ok(Some(Answer { status, keep })), "{text:?}");
        }
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for text in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            assert!(Reader::default().advance(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_response_without_length_ends_with_the_connection() {
        let mut reader = Reader::default();
        assert_eq!(reader.advance(b"HTTP/1.1 200 OK\r\n\r\nabc"), Ok(None));
        assert_eq!(reader.closed(), Some(Answer { status: 200, keep: false }));
        let mut cut = Reader::default();
        assert_eq!(cut.advance(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), Ok(None));
        assert_eq!(cut.closed(), None);
    }

    #[test]
    fn a_refusal_keeps_its_reason_and_a_success_keeps_nothing() {
        let mut reader = Reader::default();
        assert!(reader.advance(b"HTTP/1.1 422 X\r\nContent-Length: 4\r\n\r\nwhy!").is_ok());
        assert_eq!(reader.excerpt(), "why!");
        reader.reset();
        assert!(reader.advance(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine").is_ok());
        assert_eq!(reader.excerpt(), "");
    }
}
