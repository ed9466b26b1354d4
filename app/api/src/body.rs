//! Reads request bodies within their limits.

use crate::{ApiConfig, limits};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Bytes of all request bodies in memory.
#[derive(Debug, Default)]
pub struct Held(AtomicUsize);

/// One body's share of [`Held`], given back when the request ends.
#[derive(Debug)]
pub struct Share<'a> {
    held: &'a Held,
    bytes: usize,
}

impl Held {
    /// Bytes now.
    pub fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }

    fn share(&self) -> Share<'_> {
        Share { held: self, bytes: 0 }
    }
}

impl Share<'_> {
    /// Whether `more` bytes may be held too.
    fn grow(&mut self, more: usize, limit: usize) -> bool {
        self.bytes += more;
        self.held.0.fetch_add(more, Relaxed) + more <= limit
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// Why a body is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum BodyError {
    #[error("the body is larger than the {limit} bytes that are allowed")]
    TooLarge { limit: usize },
    #[error("the body did not come within {seconds} s")]
    Slow { seconds: u64 },
    #[error("the bodies of other requests take all of the {limit} bytes there are for them")]
    NoRoom { limit: usize },
    #[error("the body ended before it was complete")]
    Broken,
    #[error("the body came with less than {bytes} bytes in {seconds} s")]
    Dripping { bytes: u64, seconds: u64 },
    #[error("this device is going down; what has come is kept")]
    Ending,
}

/// A request body that is handed on piece by piece, at its client's pace within reason.
///
/// Only the time spent waiting for the client counts: in every [`ApiConfig::upload_window`] of it at least
/// [`ApiConfig::upload_rate`] bytes a second must come. A client that keeps that up may take as long as it needs; one that
/// drips a byte a second is given up after the first window, whatever it has sent before.
#[derive(Debug)]
pub(crate) struct Upload {
    body: Incoming,
    window: Duration,
    least: u64,
    waited: Duration,
    came: u64,
    ending: watch::Receiver<bool>,
}

impl Upload {
    /// Over this body. `ending` turns true when the endpoint goes down.
    pub(crate) fn new(body: Incoming, config: &ApiConfig, ending: watch::Receiver<bool>) -> Self {
        let window = config.upload_window.max(Duration::from_millis(1));
        let least = u64::try_from(u128::from(config.upload_rate) * window.as_millis() / 1000);
        let least = least.unwrap_or(u64::MAX).max(1);
        Self { body, window, least, waited: Duration::ZERO, came: 0, ending }
    }

    /// How many bytes the head announced, if it did.
    pub(crate) fn announced(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// The next piece; `None` after the last.
    ///
    /// # Errors
    /// [`BodyError::Broken`], [`BodyError::Dripping`] or [`BodyError::Ending`]; the connection cannot be used again then.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, BodyError> {
        loop {
            let since = Instant::now();
            let frame = tokio::select! {
                biased;
                frame = self.body.frame() => Some(frame),
                () = tokio::time::sleep(self.window.saturating_sub(self.waited)) => None,
                _ = self.ending.wait_for(|ending| *ending) => return Err(BodyError::Ending),
            };
            self.waited += since.elapsed();
            match frame {
                Some(None) => return Ok(None),
                Some(Some(Err(_))) => return Err(BodyError::Broken),
                Some(Some(Ok(frame))) => {
                    // Trailers say nothing here.
                    if let Ok(data) = frame.into_data() {
                        self.came = self.came.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
                        return Ok(Some(data));
                    }
                }
                None if self.came < self.least => {
                    return Err(BodyError::Dripping { bytes: self.least, seconds: self.window.as_secs() });
                }
                None => (self.waited, self.came) = (Duration::ZERO, 0),
            }
        }
    }
}

/// Reads the body. What the head already tells is decided before a byte of it is read.
///
/// # Errors
/// [`BodyError`]; the connection cannot be used again then, since the rest of the body is still to come.
pub async fn read<'a>(
    mut body: Incoming,
    config: &ApiConfig,
    held: &'a Held,
) -> Result<(Bytes, Share<'a>), BodyError> {
    let mut share = held.share();
    let limit = config.body_limit;
    let too_large = BodyError::TooLarge { limit };
    let announced = body.size_hint().exact();
    if announced.is_some_and(|n| usize::try_from(n).map_or(true, |n| n > limit)) {
        return Err(too_large);
    }
    if body.is_end_stream() {
        return Ok((Bytes::new(), share));
    }
    let all = async {
        let mut whole = Bytes::new();
        let mut parts = BytesMut::new();
        while let Some(frame) = body.frame().await {
            // Trailers say nothing here.
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            if whole.len() + parts.len() + data.len() > limit {
                return Err(too_large);
            }
            if !share.grow(data.len(), config.bodies_total) {
                return Err(BodyError::NoRoom { limit: config.bodies_total });
            }
            if whole.is_empty() && parts.is_empty() {
                // Most bodies come whole, in hyper's own buffer: nothing is copied.
                whole = data;
                continue;
            }
            if parts.is_empty() {
                // Room for what was announced, up to a size that lies do no harm with.
                let announced = announced.and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
                parts.reserve(announced.min(limits::HEAVY).max(whole.len() + data.len()));
                parts.extend_from_slice(&std::mem::take(&mut whole));
            }
            parts.extend_from_slice(&data);
        }
        Ok(if parts.is_empty() { whole } else { parts.freeze() })
    };
    match tokio::time::timeout(config.body_time, all).await {
        Ok(done) => Ok((done?, share)),
        Err(_) => Err(BodyError::Slow { seconds: config.body_time.as_secs() }),
    }
}
