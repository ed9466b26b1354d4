//! Reads request bodies within their limits.

use crate::{ApiConfig, limits};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

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
