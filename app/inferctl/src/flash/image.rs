//! The image: raw or zstd, read as a stream in bounded memory, with its block map and what lies beside it.

use super::{
    bmap::{Bmap, MAX_BMAP, hex},
    error::FlashError,
};
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// The largest window that a packed image may ask for: that of `zstd --ultra -22`, and the memory it costs.
const WINDOW: u64 = 128 << 20;
/// Digests and facts beside an image are read up to here.
const MAX_TEXT: u64 = 4 << 20;

/// An image that is there, and what of it is written.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    packed: bool,
    /// Bytes, unpacked.
    pub size: u64,
    /// Which of them mean something; without one all do.
    pub bmap: Option<Bmap>,
    /// NAME.img.json beside it.
    pub facts: Option<Value>,
}

impl Image {
    /// Opens an image and reads its block map (the one named, else the one beside it, unless `whole`).
    ///
    /// # Errors
    /// [`FlashError`].
    pub fn open(path: &Path, bmap: Option<&Path>, whole: bool) -> Result<Self, FlashError> {
        let unreadable = |source| FlashError::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(unreadable)?;
        let mut magic = [0; 4];
        let packed = match file.read_exact(&mut magic) {
            Ok(()) => magic == [0x28, 0xb5, 0x2f, 0xfd],
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(e) => return Err(unreadable(e)),
        };
        let beside = [unpacked_name(path), path.to_owned()].map(|name| with(&name, ".bmap"));
        let bmap = match (bmap, whole) {
            (_, true) => None,
            (Some(named), false) => Some(named.to_owned()),
            (None, false) => beside.into_iter().find(|file| file.is_file()),
        };
        let bmap = match bmap {
            Some(file) => {
                let bytes = read(&file, MAX_BMAP)?;
                Some((Bmap::parse(&file, &bytes)?, file))
            }
            None => None,
        };
        let length = file.metadata().map_err(unreadable)?.len();
        let size = match &bmap {
            Some((bmap, file)) if !packed && bmap.image_size != length => {
                let why = format!("it maps {} bytes, the image has {length}", bmap.image_size);
                return Err(FlashError::Bmap { path: file.clone(), why });
            }
            Some((bmap, _)) => bmap.image_size,
            None if packed => unpacked_size(path)?,
            None => length,
        };
        if size == 0 {
            return Err(unreadable(io::Error::other("it is empty")));
        }
        let facts = with(&unpacked_name(path), ".json");
        let facts =
            if facts.is_file() { serde_json::from_slice(&read(&facts, MAX_TEXT)?).ok() } else { None };
        Ok(Self { path: path.to_owned(), packed, size, bmap: bmap.map(|(bmap, _)| bmap), facts })
    }

    /// What is written, in order, with the SHA-256 that it must have.
    pub fn ranges(&self) -> Vec<(Range<u64>, Option<[u8; 32]>)> {
        match &self.bmap {
            Some(map) => map.ranges.iter().map(|r| (r.bytes.clone(), Some(r.sha256))).collect(),
            None => vec![(0..self.size, None)],
        }
    }

    /// One after the last byte that is written: what a card must hold.
    pub fn end(&self) -> u64 {
        self.bmap.as_ref().and_then(|map| map.ranges.last()).map_or(self.size, |last| last.bytes.end)
    }

    /// Bytes that are written.
    pub fn written(&self) -> u64 {
        self.ranges().iter().map(|(range, _)| range.end - range.start).sum()
    }

    /// The board that it says it is for.
    pub fn board(&self) -> Option<&str> {
        self.facts.as_ref()?.get("board")?.as_str()
    }

    /// Compares the file with the checksum beside it: a line of SHA256SUMS, NAME.sha256, or NAME.img.json where it is not
    /// packed. Returns which was there.
    ///
    /// # Errors
    /// [`FlashError::Checksum`].
    pub fn check(&self, mut at: impl FnMut(u64, u64)) -> Result<Option<String>, FlashError> {
        let Some((by, wanted)) = self.expected()? else { return Ok(None) };
        let unreadable = |source| FlashError::Read { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(unreadable)?;
        let total = file.metadata().map_err(unreadable)?.len();
        let (mut sha, mut done, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 20]);
        loop {
            let n = file.read(&mut buffer).map_err(unreadable)?;
            if n == 0 {
                break;
            }
            sha.update(&buffer[..n]);
            done += n as u64;
            at(done, total);
        }
        if <[u8; 32]>::from(sha.finalize()) == wanted {
            Ok(Some(by))
        } else {
            Err(FlashError::Checksum { path: self.path.clone(), by })
        }
    }

    fn expected(&self) -> Result<Option<(String, [u8; 32])>, FlashError> {
        let name = self.path.file_name().unwrap_or_default();
        for file in [self.path.with_file_name("SHA256SUMS"), with(&self.path, ".sha256")] {
            if file.is_file() {
                let text = read(&file, MAX_TEXT)?;
                if let Some(sum) = sum_of(&String::from_utf8_lossy(&text), name) {
                    return Ok(Some((file.file_name().unwrap_or_default().to_string_lossy().into(), sum)));
                }
            }
        }
        let stated = self.facts.as_ref().and_then(|facts| facts.get("sha256")).and_then(Value::as_str);
        Ok(stated.filter(|_| !self.packed).and_then(hex).map(|sum| ("its .json".into(), sum)))
    }

    /// The image from its beginning.
    ///
    /// # Errors
    /// [`FlashError::Read`].
    pub fn stream(&self) -> Result<Stream<'_>, FlashError> {
        let file =
            File::open(&self.path).map_err(|source| FlashError::Read { path: self.path.clone(), source })?;
        let from = if self.packed { From::Packed(Box::new(Unpack::new(file)), 0) } else { From::Raw(file) };
        Ok(Stream { image: self, from })
    }
}

/// An image that is being read, forwards.
pub struct Stream<'a> {
    image: &'a Image,
    from: From,
}

enum From {
    Raw(File),
    Packed(Box<Unpack<File>>, u64),
}

impl Stream<'_> {
    /// Fills `buffer` with the bytes at `offset`, which lies at or behind where the last call ended.
    ///
    /// # Errors
    /// [`FlashError::Read`], [`FlashError::Packed`].
    pub fn fill(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), FlashError> {
        let path = &self.image.path;
        match &mut self.from {
            From::Raw(file) => file
                .read_exact_at(buffer, offset)
                .map_err(|source| FlashError::Read { path: path.clone(), source }),
            From::Packed(unpack, at) => {
                let broken = |why: io::Error| FlashError::Packed { path: path.clone(), why: why.to_string() };
                let skipped = io::copy(&mut unpack.take(offset - *at), &mut io::sink()).map_err(broken)?;
                if *at + skipped != offset {
                    return Err(broken(io::Error::other("it ends early")));
                }
                unpack.read_exact(buffer).map_err(broken)?;
                *at = offset + buffer.len() as u64;
                Ok(())
            }
        }
    }

    /// Reads what is left: an image is as long as its map says.
    ///
    /// # Errors
    /// [`FlashError::Packed`].
    pub fn finish(self) -> Result<(), FlashError> {
        let From::Packed(mut unpack, at) = self.from else { return Ok(()) };
        let broken = |why: String| FlashError::Packed { path: self.image.path.clone(), why };
        let rest = io::copy(&mut unpack, &mut io::sink()).map_err(|e| broken(e.to_string()))?;
        if at + rest == self.image.size {
            return Ok(());
        }
        Err(broken(format!("it holds {} bytes, not {}", at + rest, self.image.size)))
    }
}

/// Frames of zstd, one after the other, as bytes.
struct Unpack<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    inside: bool,
}

impl<R: Read> Unpack<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW);
        Self { source: BufReader::with_capacity(1 << 18, source), decoder, inside: false }
    }

    /// Goes into the next frame; `false` at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                }
                Err(e) => return Err(io::Error::other(e.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: Read> Read for Unpack<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.inside {
                if self.decoder.can_collect() > 0 {
                    return self.decoder.read(buffer);
                }
                if !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(|e| io::Error::other(e.to_string()))?;
                    continue;
                }
                self.inside = false;
            }
            self.inside = self.next_frame()?;
            if !self.inside {
                return Ok(0);
            }
        }
    }
}

/// How long a packed image is, by unpacking it once.
fn unpacked_size(path: &Path) -> Result<u64, FlashError> {
    let file = File::open(path).map_err(|source| FlashError::Read { path: path.to_owned(), source })?;
    io::copy(&mut Unpack::new(file), &mut io::sink())
        .map_err(|e| FlashError::Packed { path: path.to_owned(), why: e.to_string() })
}

/// `x.img` of `x.img.zst`.
pub fn unpacked_name(path: &Path) -> PathBuf {
    if path.extension() == Some(OsStr::new("zst")) { path.with_extension("") } else { path.to_owned() }
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The checksum of a file in a list as sha256sum writes it.
pub fn sum_of(list: &str, name: &OsStr) -> Option<[u8; 32]> {
    list.lines().find_map(|line| {
        let (sum, file) = line.split_once(' ')?;
        let file = file.strip_prefix(['*', ' ']).unwrap_or(file);
        (OsStr::new(file) == name).then(|| hex(sum))?
    })
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>, FlashError> {
    let mut bytes = Vec::new();
    let all = File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    let source = match all {
        Ok(n) if n as u64 <= most => return Ok(bytes),
        Ok(_) => io::Error::other(format!("it is larger than {most} bytes")),
        Err(e) => e,
    };
    Err(FlashError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Unpack::new(packed).read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn several_frames_and_frames_to_skip_are_one_image() {
        let one = compress_to_vec(&b"first "[..], CompressionLevel::Fastest);
        let two = compress_to_vec(&b"second"[..], CompressionLevel::Fastest);
        let skip = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
        assert_eq!(unpack(&[&one[..], &skip, &two].concat()).unwrap(), b"first second");
        for end in 1..one.len() {
            assert!(unpack(&one[..end]).is_err(), "cut after {end} bytes");
        }
        assert!(unpack(b"not zstd at all").is_err());
    }

    #[test]
    fn checksums_are_found_as_sha256sum_writes_them() {
        let sum = "ab".repeat(32);
        let list = format!("{}  other.img\n{sum} *x y.img\n{sum}  z.img\n", "cd".repeat(32));
        assert_eq!(sum_of(&list, OsStr::new("x y.img")), Some([0xab; 32]));
        assert_eq!(sum_of(&list, OsStr::new("z.img")), Some([0xab; 32]));
        assert_eq!(sum_of(&list, OsStr::new("y.img")), None);
    }
}
