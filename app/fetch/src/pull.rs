//! From an address or a file into the device: header, prefix, index pages, then only the chunks that neither slot holds.
//!
//! The way is the same for a server with ranges, one without and a file, because everything is wanted in the order of its place:
//! [`Source`] alone knows whether bytes in between are skipped or never asked for.

use crate::error::FetchError;
use crate::http::Token;
use crate::limits::{FIRST_ASK, LONGEST_PIECE, Limits};
use crate::source::{Remote, Source};
use crate::target::{About, Device, HEADER, Offer, Piece, Refused, Target, Way};
use crate::time::Clock;
use crate::url::Url;
use inferd_bundle::{Bundle, MAGIC};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Sections of a bundle begin at multiples of this.
const PADDING: usize = HEADER;

/// How far a fetch is and what it cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The bundle, once its prefix was taken.
    pub bundle: Option<String>,
    /// Its version.
    pub version: Option<u64>,
    /// Its length in bytes.
    pub total: u64,
    /// Bytes that came over the line or from the stick, whatever became of them.
    pub fetched: u64,
    /// Bytes of chunks that were not asked for: the device holds them already.
    pub reused: u64,
    /// Bytes of chunks that are still to come; known once the index is read. At 0 nothing keeps the bundle from its trial any more.
    pub missing: Option<u64>,
    /// Requests that were made (reads, for a file).
    pub requests: u32,
    /// How often the line broke.
    pub interruptions: u32,
    /// How often it began anew because the content changed.
    pub restarts: u32,
    /// Whether parts could be asked for; without, everything came.
    pub ranges: bool,
}

/// What is asked of a pull.
#[derive(Clone, Default)]
pub struct Wish {
    /// The value of an `Authorization` header for the address's own host.
    pub token: Option<String>,
    /// SHA-256 of the whole bundle that was announced, hex. Checked when every byte comes over the line: a delta is not all of it,
    /// and what it is proves itself by its signatures.
    pub sha256: Option<String>,
    /// Store everything and stop before the end: nothing is staged, no trial begins. The same fetch again, without this, finds
    /// what is stored and needs only the index.
    pub hold: bool,
}

/// A fetch that went well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// What came.
    pub offer: Offer,
    /// What it cost.
    pub report: Report,
}

/// Fetches the bundle at `url` into the device, where its trial begins. `progress` is told what happens.
///
/// Dropping the future ends the fetch; what is stored stays for the next.
pub async fn pull<D: Device>(
    device: &D,
    way: Way,
    url: &str,
    wish: &Wish,
    limits: &Limits,
    clock: &Arc<dyn Clock>,
    progress: &watch::Sender<Report>,
) -> Result<Fetched, FetchError> {
    let url = Url::parse(url)?;
    let token = wish.token.as_deref().and_then(|value| Token::new(&url, value));
    let source = Remote::new(url, token, limits.clone());
    fetch(source, device, way, wish, limits, clock, progress).await
}

/// The way of every bundle.
pub(crate) async fn fetch<S: Source, D: Device>(
    source: S,
    device: &D,
    way: Way,
    wish: &Wish,
    limits: &Limits,
    clock: &Arc<dyn Clock>,
    progress: &watch::Sender<Report>,
) -> Result<Fetched, FetchError> {
    progress.send_replace(Report::default());
    let report = Report::default();
    let mut fetch = Fetch { source, limits, clock, progress, report, failures: 0, began: clock.now() };
    loop {
        let target = device.open(way).await?;
        let outcome = fetch.once(target, wish).await;
        fetch.tell();
        let e = match outcome {
            Ok(offer) => return Ok(Fetched { offer, report: fetch.report }),
            Err(Ending::Final(e)) => return Err(e),
            Err(Ending::Anew(e)) => e,
        };
        if fetch.report.restarts >= limits.restarts {
            return Err(e);
        }
        tracing::warn!(code = e.code(), "{e}; beginning anew");
        fetch.report.restarts += 1;
        fetch.report.reused = 0;
        fetch.report.missing = None;
        fetch.source.reset();
        fetch.pause(fetch.report.restarts, None).await?;
    }
}

/// Why one go ended.
enum Ending {
    /// The answer.
    Final(FetchError),
    /// The content may have changed: begin anew.
    Anew(FetchError),
}

impl From<FetchError> for Ending {
    fn from(e: FetchError) -> Self {
        let anew = match &e {
            FetchError::ContentChanged(_) => true,
            // Bytes of two documents, and the server gave nothing to tell them apart by.
            FetchError::Refused(refused) => refused.about == About::Bytes,
            _ => false,
        };
        if anew { Self::Anew(e) } else { Self::Final(e) }
    }
}

impl From<Refused> for Ending {
    fn from(refused: Refused) -> Self {
        FetchError::from(refused).into()
    }
}

/// SHA-256 over a document whose pieces come in order, with the format's zero padding between them.
struct Whole {
    hash: Sha256,
    at: u64,
    complete: bool,
}

impl Whole {
    fn add(&mut self, at: u64, bytes: &[u8]) {
        self.pad(at);
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
    }

    fn pad(&mut self, to: u64) {
        match usize::try_from(to.saturating_sub(self.at)) {
            Ok(gap) if gap < PADDING => self.hash.update(&[0; PADDING][..gap]),
            _ => self.complete = false,
        }
        self.at = to;
    }
}

struct Fetch<'a, S> {
    source: S,
    limits: &'a Limits,
    clock: &'a Arc<dyn Clock>,
    progress: &'a watch::Sender<Report>,
    report: Report,
    /// Interruptions since the last piece.
    failures: u32,
    began: Duration,
}

impl<S: Source> Fetch<'_, S> {
    /// Everything once, from the header to the end.
    async fn once<T: Target>(&mut self, mut target: T, wish: &Wish) -> Result<Offer, Ending> {
        let header = self.header().await?;
        let len = target.measure(&header).await?;
        let prefix = self.prefix(&header, len).await?;
        let mut whole = wish.sha256.is_some().then(|| Whole { hash: Sha256::new(), at: 0, complete: true });
        if let Some(whole) = &mut whole {
            whole.add(0, &prefix);
        }
        let offer = target.begin(prefix).await?;
        self.report.bundle = Some(offer.id.clone());
        self.report.version = Some(offer.version);
        self.report.total = offer.total;
        self.source.budget(offer.total.saturating_mul(self.limits.total_factor).saturating_add(1 << 20));
        self.length(offer.total)?;

        let mut missing: Vec<Piece> = Vec::new();
        let index_end = offer.pages.last().map_or(0, |page| page.end);
        for (number, page) in (0u32..).zip(&offer.pages) {
            let bytes = self.take(page.clone(), index_end).await?;
            if let Some(whole) = &mut whole {
                whole.add(page.start, &bytes);
            }
            let wanted = target.page(number, bytes).await?;
            self.report.reused += wanted.reused;
            missing.extend(wanted.pieces);
            self.tell();
        }
        let mut left: u64 = missing.iter().map(|piece| u64::from(piece.len)).sum();
        self.report.missing = Some(left);
        self.tell();
        let groups = merged(&missing, self.limits.gap, self.limits.requests);
        let mut group = 0;
        for piece in missing {
            while groups.get(group).is_some_and(|range| range.end <= piece.offset) {
                group += 1;
            }
            let ask = groups.get(group).map_or(piece.range().end, |range| range.end);
            let stored = self.take(piece.range(), ask).await?;
            if let Some(whole) = &mut whole {
                whole.add(piece.offset, &stored);
            }
            target.chunk(piece, stored).await?;
            left -= u64::from(piece.len);
            self.report.missing = Some(left);
            self.tell();
        }
        if let (Some(mut whole), Some(announced)) = (whole, &wish.sha256) {
            whole.pad(offer.total);
            let found = hex(&whole.hash.finalize());
            if whole.complete && self.report.reused == 0 && !found.eq_ignore_ascii_case(announced.trim()) {
                let announced = announced.chars().take(64).collect();
                return Err(FetchError::WrongDigest { found, announced }.into());
            }
        }
        if !wish.hold {
            target.finish().await?;
        }
        Ok(offer)
    }

    /// The header of something that begins like a bundle.
    async fn header(&mut self) -> Result<[u8; HEADER], FetchError> {
        let header = self.up_to(0..HEADER as u64, FIRST_ASK).await?;
        let begins = header.len().min(MAGIC.len());
        if header.is_empty() || header[..begins] != MAGIC[..begins] {
            let text = header.iter().find(|b| !b.is_ascii_whitespace());
            let page = self.source.is_page() || text == Some(&b'<');
            let name = self.source.name();
            return Err(if page { FetchError::CaptivePortal(name) } else { FetchError::NotABundle(name) });
        }
        <[u8; HEADER]>::try_from(header).map_err(|short| {
            let (name, has) = (self.source.name(), short.len() as u64);
            FetchError::Truncated { name, has, wants: HEADER as u64 }
        })
    }

    /// The prefix of `len` bytes that begins with `header`.
    async fn prefix(&mut self, header: &[u8; HEADER], len: u64) -> Result<Vec<u8>, FetchError> {
        if !(HEADER as u64..=LONGEST_PIECE).contains(&len) {
            return Err(FetchError::NotABundle(self.source.name()));
        }
        let mut prefix = header.to_vec();
        if len > HEADER as u64 {
            prefix.extend(self.take(HEADER as u64..len, len).await?);
        }
        Ok(prefix)
    }

    /// Whether the document is as long as the bundle in it.
    fn length(&self, wants: u64) -> Result<(), FetchError> {
        let name = self.source.name();
        match self.source.total() {
            Some(has) if has < wants => Err(FetchError::Truncated { name, has, wants }),
            Some(has) if has > wants => Err(FetchError::TooLong { name, has, wants }),
            _ => Ok(()),
        }
    }

    /// All bytes of a range.
    async fn take(&mut self, range: Range<u64>, ask: u64) -> Result<Vec<u8>, FetchError> {
        let (start, wants) = (range.start, range.end);
        let bytes = self.up_to(range, ask).await?;
        let has = start + bytes.len() as u64;
        if has < wants {
            let wants = self.report.total.max(wants);
            return Err(FetchError::Truncated { name: self.source.name(), has, wants });
        }
        Ok(bytes)
    }

    /// The bytes of a range, as far as the document goes; interruptions are waited out.
    async fn up_to(&mut self, range: Range<u64>, ask: u64) -> Result<Vec<u8>, FetchError> {
        let len = range.end.checked_sub(range.start).filter(|len| *len <= LONGEST_PIECE);
        let len = len.and_then(|len| usize::try_from(len).ok());
        let Some(len) = len else { return Err(FetchError::NotABundle(self.source.name())) };
        let mut bytes = Vec::with_capacity(len);
        self.source.want(range, ask);
        while bytes.len() < len {
            match self.source.next().await {
                Ok(Some(more)) => {
                    bytes.extend_from_slice(&more);
                    self.on_time()?;
                }
                Ok(None) => return Ok(bytes),
                Err(e) if e.is_interruption() => self.interrupted(e).await?,
                Err(e) => return Err(e),
            }
        }
        self.failures = 0;
        Ok(bytes)
    }

    async fn interrupted(&mut self, e: FetchError) -> Result<(), FetchError> {
        self.failures += 1;
        self.report.interruptions += 1;
        self.tell();
        tracing::info!(code = e.code(), failures = self.failures, "{e}");
        if self.failures >= self.limits.tries {
            return Err(FetchError::GaveUp { tries: self.failures, last: Box::new(e) });
        }
        let asked = match e {
            FetchError::ServerBusy { retry_after, .. } => retry_after,
            _ => None,
        };
        self.pause(self.failures, asked).await
    }

    async fn pause(&mut self, failures: u32, asked: Option<u64>) -> Result<(), FetchError> {
        let pause = self.limits.backoff.pause(failures, self.clock.random(), asked);
        self.clock.sleep(pause).await;
        self.on_time()
    }

    fn on_time(&self) -> Result<(), FetchError> {
        if self.clock.now().saturating_sub(self.began) > self.limits.total_time {
            return Err(FetchError::TookTooLong(self.limits.total_time.as_secs()));
        }
        Ok(())
    }

    fn tell(&mut self) {
        (self.report.fetched, self.report.requests) = self.source.spent();
        self.report.ranges = self.source.ranges();
        self.progress.send_replace(self.report.clone());
    }
}

/// What a document offers, by its prefix; nothing is stored or judged.
pub(crate) async fn peek<S: Source>(
    source: S,
    limits: &Limits,
    clock: &Arc<dyn Clock>,
) -> Result<Offer, FetchError> {
    let (progress, _) = watch::channel(Report::default());
    let report = Report::default();
    let mut fetch =
        Fetch { source, limits, clock, progress: &progress, report, failures: 0, began: clock.now() };
    let header = fetch.header().await?;
    let len = Bundle::prefix_len(&header).map_err(Refused::from)?;
    let prefix = fetch.prefix(&header, len).await?;
    let bundle = Bundle::parse(&prefix).map_err(Refused::from)?;
    Ok(Offer::of(&bundle))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// The ranges in which pieces (in order) are asked for: neighbours with at most `gap` unneeded bytes between them go together, and
/// the gap grows until there are at most `most` ranges.
fn merged(pieces: &[Piece], gap: u64, most: usize) -> Vec<Range<u64>> {
    let mut gap = gap;
    loop {
        let mut groups: Vec<Range<u64>> = Vec::new();
        for piece in pieces {
            let range = piece.range();
            match groups.last_mut() {
                Some(last) if range.start.saturating_sub(last.end) <= gap => {
                    last.end = last.end.max(range.end)
                }
                _ => groups.push(range),
            }
        }
        if groups.len() <= most.max(1) {
            return groups;
        }
        gap = gap.max(4096).saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, len: u32) -> Piece {
        Piece { number: 0, offset, len }
    }

    #[test]
    fn neighbours_are_asked_for_together() {
        let pieces = [piece(0, 10), piece(10, 10), piece(25, 5), piece(100, 1)];
        assert_eq!(merged(&pieces, 0, 99), [0..20, 25..30, 100..101]);
        assert_eq!(merged(&pieces, 5, 99), [0..30, 100..101]);
        assert_eq!(merged(&pieces, 70, 99), vec![0..101; 1]);
        assert_eq!(merged(&[], 5, 99), Vec::<Range<u64>>::new());
    }

    #[test]
    fn requests_never_exceed_their_number() {
        let pieces: Vec<Piece> = (0..10_000).map(|i| piece(i * 200_000, 65_536)).collect();
        for most in [1, 2, 500] {
            let groups = merged(&pieces, 0, most);
            assert!(groups.len() <= most);
            assert!(
                pieces.iter().all(|p| groups.iter().any(|g| g.start <= p.offset && p.range().end <= g.end))
            );
        }
    }
}
