//! What the tests of this room share: real bundles, a device that stores them in memory, a server that does what it is told.
#![allow(dead_code, clippy::unwrap_used)]

use inferd_bundle::build::{BundleSpec, Content, FileSource, ModelSource, build};
use inferd_bundle::{Bundle, Chunk, Digest, IndexPage, SigningKey};
use inferd_fetch::{
    About, Clock, Device, FetchError, Fetched, HEADER, Limits, Missing, Offer, Piece, Refused, Report,
    Standing, Target, Way, Wish, pull,
};
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

// === bundles

/// A bundle and where its parts are.
#[derive(Clone)]
pub struct Made {
    pub bytes: Arc<Vec<u8>>,
    pub bundle: Bundle,
    pub chunks: Vec<Chunk>,
}

impl Made {
    pub fn id(&self) -> String {
        self.bundle.id().to_string()
    }

    pub fn total(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Bytes up to the payload.
    pub fn index(&self) -> u64 {
        self.bundle.payload_range().start
    }

    pub fn slice(&self, range: Range<u64>) -> &[u8] {
        &self.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
    }

    pub fn sha256(&self) -> String {
        Digest::of(&self.bytes).to_string()
    }
}

/// Bytes that look random and are the same every time.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    out.truncate(len);
    out
}

/// A bundle of one model whose network is `network`.
pub fn made(version: u64, network: Vec<u8>) -> Made {
    let golden = noise(7, 5000);
    let manifest = format!(
        "schema = 1\nname = \"m\"\nversion = \"{version}\"\ntask = \"tensor\"\nsummary = \"noise\"\nengines = [\"cpu\"]\n\
         [budget]\nmemory_mib = 64\ndeadline_ms = 1000\n[onnx]\nfile = \"model.onnx\"\nsha256 = \"{}\"\n\
         [golden]\nfile = \"golden.safetensors\"\nsha256 = \"{}\"\ncosine = 0.9999\nmax_abs = 0.001\n\
         [[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [2, 3]\n[[outputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [2, 3]\n",
        Digest::of(&network),
        Digest::of(&golden)
    );
    let file = |name: &str, bytes| FileSource { name: name.to_owned(), content: Content::Bytes(bytes) };
    let files = vec![file("golden.safetensors", golden), file("model.onnx", network)];
    let spec = BundleSpec::new(
        inferd_model::ModelName::new("m").unwrap(),
        version,
        vec![ModelSource { manifest, files }],
    );
    let mut bytes = Vec::new();
    build(&spec, &[&SigningKey::from_seed(&[1; 32])], &mut bytes).unwrap();
    let header = bytes.first_chunk::<HEADER>().unwrap();
    let prefix = usize::try_from(Bundle::prefix_len(header).unwrap()).unwrap();
    let bundle = Bundle::parse(&bytes[..prefix]).unwrap();
    let mut chunks = Vec::new();
    for page in 0..bundle.pages() {
        let range = bundle.page_range(page);
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        chunks.extend(bundle.check_page(page, &bytes[range]).unwrap().chunks());
    }
    Made { bytes: Arc::new(bytes), bundle, chunks }
}

/// About a megabyte in some fifteen chunks.
pub fn usual(version: u64) -> Made {
    made(version, noise(version, 1 << 20))
}

// === the device

#[derive(Default)]
pub struct Shelf {
    /// Chunks of the slot that serves.
    pub local: HashMap<Digest, Vec<u8>>,
    /// Per bundle, by place: what is stored of it.
    pub stored: HashMap<String, BTreeMap<u64, Vec<u8>>>,
    /// Bundles whose end was reached, with their way.
    pub finished: Vec<(Way, String)>,
    pub standings: HashMap<String, Standing>,
    pub refuse_open: Option<Refused>,
    pub refuse_begin: Option<Refused>,
    pub mark: u64,
    pub opened: usize,
    /// Called with the number of chunks stored so far, after each.
    pub on_chunk: Option<Box<dyn FnMut(usize) + Send>>,
    pub chunks: usize,
}

#[derive(Clone, Default)]
pub struct Double(Arc<Mutex<Shelf>>);

impl Double {
    pub fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap()
    }

    /// With the chunks of `made` in the slot that serves.
    pub fn serving(made: &Made) -> Self {
        let double = Self::default();
        for chunk in &made.chunks {
            double.shelf().local.insert(chunk.digest, made.slice(chunk.range()).to_vec());
        }
        double
    }

    /// Whether every byte of the bundle is stored, and its end was reached.
    pub fn has(&self, made: &Made) -> bool {
        let shelf = self.shelf();
        let Some(stored) = shelf.stored.get(&made.id()) else { return false };
        let mut bytes = vec![0; made.bytes.len()];
        for (at, piece) in stored {
            let at = usize::try_from(*at).unwrap();
            bytes[at..at + piece.len()].copy_from_slice(piece);
        }
        bytes == *made.bytes && shelf.finished.iter().any(|(_, id)| *id == made.id())
    }
}

pub fn refused(code: &'static str, about: About) -> Refused {
    Refused { code: code.into(), sentence: format!("refused: {code}"), about }
}

fn damaged(refusal: &inferd_bundle::Refusal) -> Refused {
    Refused { code: refusal.code().into(), sentence: refusal.to_string(), about: About::Bytes }
}

pub struct Install {
    double: Double,
    way: Way,
    bundle: Option<Bundle>,
    pages: Vec<IndexPage>,
}

impl Device for Double {
    type Target = Install;

    async fn open(&self, way: Way) -> Result<Install, Refused> {
        let mut shelf = self.shelf();
        shelf.opened += 1;
        match shelf.refuse_open.clone() {
            Some(refused) => Err(refused),
            None => Ok(Install { double: self.clone(), way, bundle: None, pages: Vec::new() }),
        }
    }

    fn mark(&self) -> u64 {
        self.shelf().mark
    }

    fn standing(&self, id: &str, _after: u64) -> Standing {
        self.shelf().standings.get(id).cloned().unwrap_or(Standing::Unknown)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("board".to_owned(), "qemu-x86_64".to_owned())])
    }
}

impl Target for Install {
    async fn measure(&mut self, header: &[u8; HEADER]) -> Result<u64, Refused> {
        Ok(Bundle::prefix_len(header)?)
    }

    async fn begin(&mut self, prefix: Vec<u8>) -> Result<Offer, Refused> {
        let bundle = Bundle::parse(&prefix)?;
        let mut shelf = self.double.shelf();
        if let Some(refused) = shelf.refuse_begin.clone() {
            return Err(refused);
        }
        let offer = Offer::of(&bundle);
        shelf.stored.entry(offer.id.clone()).or_default().insert(0, prefix);
        self.bundle = Some(bundle);
        Ok(offer)
    }

    async fn page(&mut self, number: u32, bytes: Vec<u8>) -> Result<Missing, Refused> {
        let bundle = self.bundle.as_ref().unwrap();
        let page = bundle.check_page(number, &bytes).map_err(|e| damaged(&e))?;
        let mut shelf = self.double.shelf();
        let shelf = &mut *shelf;
        let stored = shelf.stored.get_mut(&bundle.id().to_string()).unwrap();
        stored.insert(bundle.page_range(number).start, bytes);
        let mut missing = Missing::default();
        for chunk in page.chunks() {
            if let Some(bytes) = shelf.local.get(&chunk.digest) {
                stored.insert(chunk.offset, bytes.clone());
            }
            if stored.contains_key(&chunk.offset) {
                missing.reused += u64::from(chunk.stored_len);
            } else {
                missing.pieces.push(Piece {
                    number: chunk.number,
                    offset: chunk.offset,
                    len: chunk.stored_len,
                });
            }
        }
        self.pages.push(page);
        Ok(missing)
    }

    async fn chunk(&mut self, piece: Piece, stored: Vec<u8>) -> Result<(), Refused> {
        let chunk = self.pages.iter().find_map(|page| page.chunk(piece.number)).unwrap();
        chunk.check(&stored).map_err(|e| damaged(&e))?;
        let id = self.bundle.as_ref().unwrap().id().to_string();
        let mut shelf = self.double.shelf();
        shelf.stored.get_mut(&id).unwrap().insert(piece.offset, stored);
        shelf.chunks += 1;
        let chunks = shelf.chunks;
        if let Some(hook) = &mut shelf.on_chunk {
            hook(chunks);
        }
        Ok(())
    }

    async fn finish(self) -> Result<(), Refused> {
        let id = self.bundle.as_ref().unwrap().id().to_string();
        let mut shelf = self.double.shelf();
        shelf.finished.push((self.way, id.clone()));
        shelf.standings.entry(id).or_insert(Standing::Trial("gates".into()));
        Ok(())
    }
}

// === time

/// A thousand times as fast as it says; remembers what it was asked to wait.
pub struct Fast {
    began: Instant,
    pub slept: Mutex<Vec<Duration>>,
}

impl Fast {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), slept: Mutex::default() })
    }
}

impl Clock for Fast {
    fn now(&self) -> Duration {
        Duration::from_secs(3600) + self.began.elapsed() * 1000
    }

    fn sleep(&self, how_long: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.slept.lock().unwrap().push(how_long);
        Box::pin(tokio::time::sleep(how_long / 1000))
    }

    fn random(&self) -> f64 {
        0.5
    }
}

// === pulling

pub struct Pulled {
    pub result: Result<Fetched, FetchError>,
    pub report: Report,
    pub slept: Vec<Duration>,
}

impl Pulled {
    pub fn code(&self) -> &str {
        self.result.as_ref().map_or_else(|e| e.code(), |_| "fetched")
    }
}

pub async fn pulled(device: &Double, url: &str, wish: Wish, limits: &Limits) -> Pulled {
    let fast = Fast::new();
    let clock: Arc<dyn Clock> = fast.clone();
    let (progress, seen) = watch::channel(Report::default());
    let result = pull(device, Way::Pull, url, &wish, limits, &clock, &progress).await;
    let report = seen.borrow().clone();
    let slept = fast.slept.lock().unwrap().clone();
    Pulled { result, report, slept }
}

// === the server

#[derive(Clone, Debug)]
pub struct Asked {
    /// How many requests came before.
    pub number: usize,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// First and last byte of a Range.
    pub fn range(&self) -> Option<(u64, u64)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().unwrap(), last.parse().unwrap()))
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// An answer, byte by byte if need be.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection ends after so many bytes of the body.
    pub cut: Option<usize>,
    /// It does not end but is reset: what the client has not read yet is lost.
    pub reset: bool,
    /// So many bytes at a time, with a pause after each.
    pub trickle: Option<(usize, Duration)>,
    /// No Content-Length: the end of the connection is the end.
    pub unsized_body: bool,
    /// Nothing is ever sent.
    pub silent: bool,
    /// Sent instead of everything.
    pub raw: Option<Vec<u8>>,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: body.into(), ..Self::default() }
    }

    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    pub fn json(body: &serde_json::Value) -> Self {
        Self::new(200, body.to_string()).with("content-type", "application/json")
    }
}

/// A good file server: ranges, a strong tag, If-Range.
pub fn file(asked: &Asked, content: &[u8], tag: &str) -> Answer {
    let total = content.len() as u64;
    let fresh = asked.header("if-range").is_none_or(|known| known == tag);
    match asked.range().filter(|_| fresh) {
        None => Answer::new(200, content).with("etag", tag),
        Some((first, _)) if first >= total => {
            Answer::new(416, "").with("content-range", format!("bytes */{total}"))
        }
        Some((first, last)) => {
            let last = last.min(total - 1);
            let part = &content[usize::try_from(first).unwrap()..=usize::try_from(last).unwrap()];
            Answer::new(206, part)
                .with("etag", tag)
                .with("content-range", format!("bytes {first}-{last}/{total}"))
        }
    }
}

type Script = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

pub struct Server {
    pub address: std::net::SocketAddr,
    pub log: Arc<Mutex<Vec<Asked>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub async fn new(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let script: Script = Arc::new(script);
        let kept = log.clone();
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(serve(stream, script.clone(), kept.clone()));
            }
        });
        Self { address, log, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.log.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, script: Script, log: Arc<Mutex<Vec<Asked>>>) {
    let mut buffer = Vec::new();
    while let Some(asked) = read(&mut stream, &mut buffer, &log).await {
        let answer = script(&asked);
        if answer.silent {
            let mut ignored = [0; 64];
            while stream.read(&mut ignored).await.is_ok_and(|n| n > 0) {}
            return;
        }
        if !write(&mut stream, &answer).await {
            if answer.reset {
                let _best_effort = stream.set_zero_linger();
            } else {
                let _closed = stream.shutdown().await;
            }
            return;
        }
        if answer.unsized_body || answer.raw.is_some() {
            let _closed = stream.shutdown().await;
            return;
        }
    }
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>, log: &Mutex<Vec<Asked>>) -> Option<Asked> {
    let head = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(buffer[..head].to_vec()).unwrap();
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut asked = Asked { number: 0, method, path, headers, body: Vec::new() };
    let len: usize = asked.header("content-length").map_or(0, |v| v.parse().unwrap());
    while buffer.len() < head + len {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    asked.body = buffer[head..head + len].to_vec();
    buffer.drain(..head + len);
    let mut log = log.lock().unwrap();
    asked.number = log.len();
    log.push(asked.clone());
    Some(asked)
}

/// Whether the connection may go on.
async fn write(stream: &mut TcpStream, answer: &Answer) -> bool {
    if let Some(raw) = &answer.raw {
        return stream.write_all(raw).await.is_ok();
    }
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let says_length = answer.headers.iter().any(|(name, _)| name == "content-length");
    if !answer.unsized_body && !says_length {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    head.push_str("\r\n");
    if stream.write_all(head.as_bytes()).await.is_err() {
        return false;
    }
    let end = answer.cut.unwrap_or(usize::MAX).min(answer.body.len());
    match answer.trickle {
        None => {
            if stream.write_all(&answer.body[..end]).await.is_err() {
                return false;
            }
        }
        Some((step, pause)) => {
            for part in answer.body[..end].chunks(step) {
                if stream.write_all(part).await.is_err() {
                    return false;
                }
                tokio::time::sleep(pause).await;
            }
        }
    }
    answer.cut.is_none()
}
