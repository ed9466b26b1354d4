//! Where bytes come from: an HTTP server with or without ranges, or a file.

use crate::error::FetchError;
use crate::header::{ContentRange, content_range, strong_etag};
use crate::http::{Client, Token, frame, identity, status_error};
use crate::limits::Limits;
use crate::url::Url;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED,
    RANGE, TRANSFER_ENCODING,
};
use std::future::Future;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Bytes of one document, by their place. [`Source::want`] says which, [`Source::next`] hands them over in order.
pub(crate) trait Source: Send {
    /// The next bytes are those of `range`; up to `ask` more may be wanted soon, so a request asks for that much.
    fn want(&mut self, range: Range<u64>, ask: u64);
    /// The next bytes of the range, at least one; `None` where the document ends. After an interruption it continues where it was.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, FetchError>> + Send;
    /// Forgets everything: the document is another.
    fn reset(&mut self);
    /// The document's length, when it is known.
    fn total(&self) -> Option<u64>;
    /// Whether it says of itself that it is a page for people.
    fn is_page(&self) -> bool;
    /// What it is called in a sentence.
    fn name(&self) -> String;
    /// Bytes that came, and requests that were made.
    fn spent(&self) -> (u64, u32);
    /// Whether parts can be asked for.
    fn ranges(&self) -> bool;
    /// No more than this may come.
    fn budget(&mut self, bytes: u64);
}

/// What identifies a document between requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    etag: Option<String>,
    modified: Option<String>,
    total: Option<u64>,
}

impl Known {
    /// Whether `newer` may be the same document: nothing that both know differs.
    fn agrees(&self, newer: &Self) -> bool {
        fn same<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        same(self.etag.as_ref(), newer.etag.as_ref())
            && same(self.modified.as_ref(), newer.modified.as_ref())
            && same(self.total.as_ref(), newer.total.as_ref())
    }
}

/// A body that is arriving.
struct Arriving {
    body: Incoming,
    /// Place of the next byte it brings.
    at: u64,
    /// Where it will end; `u64::MAX` for a body of unknown length.
    end: u64,
    /// Whether its end can be told from a cut.
    definite: bool,
    /// Whether it brought anything.
    useful: bool,
}

/// A document on an HTTP server.
pub(crate) struct Remote {
    client: Client,
    limits: Limits,
    origin: Url,
    /// Where redirects led; forgotten at the first failure.
    via: Option<Url>,
    known: Option<Known>,
    /// Bytes up to here were handed over: the document has at least these.
    reached: u64,
    ranges: bool,
    page: bool,
    wanted: Range<u64>,
    ask: u64,
    arriving: Option<Arriving>,
    left: Bytes,
    fetched: u64,
    requests: u32,
    budget: u64,
    /// Waiting time and bytes since the rate was last judged.
    waited: Duration,
    came: u64,
}

impl Remote {
    pub(crate) fn new(url: Url, token: Option<Token>, limits: Limits) -> Self {
        Self {
            client: Client::new(limits.clone(), token),
            limits,
            origin: url,
            via: None,
            known: None,
            reached: 0,
            ranges: false,
            page: false,
            wanted: 0..0,
            ask: 0,
            arriving: None,
            left: Bytes::new(),
            fetched: 0,
            requests: 0,
            budget: u64::MAX,
            waited: Duration::ZERO,
            came: 0,
        }
    }

    fn host(&self) -> String {
        self.via.as_ref().unwrap_or(&self.origin).authority()
    }

    fn changed(&self) -> FetchError {
        FetchError::ContentChanged(self.origin.shown())
    }

    /// Asks for the wanted range and judges the answer's head.
    async fn open(&mut self) -> Result<Arriving, FetchError> {
        let first = self.wanted.start;
        let last = self.ask.max(self.wanted.end) - 1;
        let mut headers = HeaderMap::new();
        if let Ok(range) = HeaderValue::from_str(&format!("bytes={first}-{last}")) {
            headers.insert(RANGE, range);
        }
        let tag = self.known.as_ref().and_then(|known| known.etag.clone());
        if let Some(tag) = tag.as_ref().and_then(|tag| HeaderValue::from_str(tag).ok()) {
            headers.insert(IF_RANGE, tag);
        }
        self.requests = self.requests.saturating_add(1);
        let url = self.via.clone().unwrap_or_else(|| self.origin.clone());
        let redirected = self.via.is_some();
        let answer = self.client.get(&url, &headers).await?;
        let host = answer.url.authority();
        let head = answer.response.headers();
        let said = |name| head.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let length = said(CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        let chunked = head.contains_key(TRANSFER_ENCODING);
        let mut newer = Known {
            etag: said(ETAG).and_then(strong_etag).map(str::to_owned),
            modified: said(LAST_MODIFIED).map(str::to_owned),
            total: None,
        };
        let arriving = match answer.response.status().as_u16() {
            206 => {
                identity(&host, head)?;
                let range = said(CONTENT_RANGE).and_then(content_range);
                let Some(ContentRange { bytes: Some((from, to)), total }) = range else {
                    return Err(FetchError::WrongRange { host });
                };
                newer.total = total;
                let fits = from == first && to <= last && length.is_none_or(|length| length == to - from + 1);
                if !fits {
                    // Another length may have moved the range: that is a change, not a mistake.
                    let moved = self.known.as_ref().is_some_and(|known| !known.agrees(&newer));
                    return Err(if moved { self.changed() } else { FetchError::WrongRange { host } });
                }
                self.ranges = true;
                Arriving {
                    body: answer.response.into_body(),
                    at: from,
                    end: to + 1,
                    definite: true,
                    useful: false,
                }
            }
            200 => {
                identity(&host, head)?;
                newer.total = length;
                // With If-Range, 200 says that the tag is no longer the document's.
                if tag.is_some() && self.ranges && first > 0 && newer.etag != tag {
                    return Err(self.changed());
                }
                self.page = said(CONTENT_TYPE)
                    .is_some_and(|t| t.trim().to_ascii_lowercase().starts_with("text/html"));
                self.ranges = false;
                let definite = length.is_some() || chunked;
                let end = length.unwrap_or(u64::MAX);
                Arriving { body: answer.response.into_body(), at: 0, end, definite, useful: false }
            }
            416 => {
                let total = said(CONTENT_RANGE).and_then(content_range).and_then(|range| range.total);
                return Err(match (&self.known, total) {
                    (None, Some(total)) if first == 0 && total == 0 => FetchError::Truncated {
                        name: self.name(),
                        has: 0,
                        wants: crate::target::HEADER as u64,
                    },
                    (Some(_), _) => self.changed(),
                    _ => FetchError::WrongRange { host },
                });
            }
            // Addresses that redirects lead to may be valid for a while only: ask again where it began.
            401 | 403 | 404 | 410 if redirected => {
                return Err(FetchError::RedirectExpired { host });
            }
            _ => return Err(status_error(&host, &answer.response)),
        };
        if newer.total.is_some_and(|total| total < self.reached) {
            return Err(self.changed());
        }
        match &mut self.known {
            Some(known) if !known.agrees(&newer) => return Err(self.changed()),
            Some(known) => known.total = known.total.or(newer.total),
            None => self.known = Some(newer),
        }
        self.via = Some(answer.url).filter(|url| *url != self.origin);
        Ok(arriving)
    }

    /// Judges the rate after `waited` brought `bytes`.
    fn rate(&mut self, waited: Duration, bytes: u64) -> Result<(), FetchError> {
        self.waited += waited;
        self.came += bytes;
        if self.waited < self.limits.rate_window {
            return Ok(());
        }
        let millis = u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX);
        let least = self.limits.least_rate.saturating_mul(millis) / 1000;
        let slow = self.came < least;
        self.waited = Duration::ZERO;
        self.came = 0;
        if slow {
            Err(FetchError::TooSlow { host: self.host(), limit: self.limits.least_rate })
        } else {
            Ok(())
        }
    }

    /// The next bytes, wherever they belong; the place of the first.
    async fn advance(&mut self) -> Result<Option<()>, FetchError> {
        let at = self.wanted.start;
        if self.known.as_ref().and_then(|known| known.total).is_some_and(|total| at >= total) {
            return Ok(None);
        }
        let keeps = self.arriving.as_ref().is_some_and(|arriving| arriving.at <= at && at < arriving.end);
        if !keeps {
            self.arriving = None;
            self.left = Bytes::new();
            self.arriving = Some(self.open().await?);
        }
        let host = self.host();
        let Some(arriving) = &mut self.arriving else { return Ok(None) };
        let began = Instant::now();
        let bytes = frame(&mut arriving.body, &host, self.limits.silence).await?;
        let waited = began.elapsed();
        match bytes {
            Some(bytes) => {
                let came = bytes.len() as u64;
                arriving.useful = true;
                self.left = bytes;
                self.fetched += came;
                if self.fetched > self.budget {
                    let total = self.total().unwrap_or(0);
                    return Err(FetchError::TooManyBytes { fetched: self.fetched, total });
                }
                self.rate(waited, came)?;
                Ok(Some(()))
            }
            None => {
                let ended = self.arriving.take();
                match ended {
                    // The whole, read to its end. What ends before the document does is another one: a login page, a proxy's words.
                    Some(ended) if ended.definite && !self.ranges => {
                        if ended.at < self.total().unwrap_or(self.reached) {
                            return Err(self.changed());
                        }
                        if let Some(known) = &mut self.known {
                            known.total = known.total.or(Some(ended.at));
                        }
                        Ok(Some(()))
                    }
                    // A shorter range than was asked for is allowed; an empty one forever is not.
                    Some(ended) if ended.definite && ended.useful => Ok(Some(())),
                    _ => Err(FetchError::Cut { host, reason: "the answer ended too early".to_owned() }),
                }
            }
        }
    }
}

impl Source for Remote {
    fn want(&mut self, range: Range<u64>, ask: u64) {
        self.wanted = range;
        self.ask = ask;
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            // Bytes at hand: pass over those before the range, hand over those in it, keep those after it.
            if !self.left.is_empty()
                && let Some(arriving) = &mut self.arriving
            {
                let at = arriving.at;
                let have = self.left.len() as u64;
                let skip =
                    usize::try_from(self.wanted.start.saturating_sub(at).min(have)).unwrap_or(usize::MAX);
                let usable = at <= self.wanted.start;
                if usable {
                    drop(self.left.split_to(skip));
                    arriving.at += skip as u64;
                    if !self.left.is_empty() {
                        let room = usize::try_from(self.wanted.end - self.wanted.start).unwrap_or(usize::MAX);
                        let bytes = self.left.split_to(room.min(self.left.len()));
                        arriving.at += bytes.len() as u64;
                        self.wanted.start += bytes.len() as u64;
                        self.reached = self.reached.max(self.wanted.start);
                        return Ok(Some(bytes));
                    }
                } else {
                    // Going back: only a new request helps.
                    self.arriving = None;
                    self.left = Bytes::new();
                }
            }
            match self.advance().await {
                Ok(Some(())) => {}
                Ok(None) => return Ok(None),
                Err(e) => {
                    self.arriving = None;
                    self.left = Bytes::new();
                    self.via = None;
                    return Err(e);
                }
            }
        }
    }

    fn reset(&mut self) {
        self.arriving = None;
        self.left = Bytes::new();
        self.known = None;
        self.reached = 0;
        self.via = None;
        self.ranges = false;
        self.page = false;
    }

    fn total(&self) -> Option<u64> {
        self.known.as_ref().and_then(|known| known.total)
    }

    fn is_page(&self) -> bool {
        self.page
    }

    fn name(&self) -> String {
        self.origin.shown()
    }

    fn spent(&self) -> (u64, u32) {
        (self.fetched, self.requests)
    }

    fn ranges(&self) -> bool {
        self.ranges
    }

    fn budget(&mut self, bytes: u64) {
        self.budget = bytes;
    }
}
