//! The image: raw or zstd, read as a stream in bounded memory, with its block map and what lies beside it. It is opened once, and what is
//! written must still hash to what was checked.

use super::{
    bmap::{Bmap, MAX_BMAP, hex},
    error::FlashError,
    release::{Digests, Expected, MAX_TEXT, Release, with},
};
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::{
    ffi::OsStr,
    fs::{self, File, Metadata},
    hash::Hasher as _,
    io::{self, BufRead, BufReader, Read},
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};
use twox_hash::XxHash64;

/// The largest window that a packed image may ask for: that of `zstd --ultra -22`, and the memory it costs.
const WINDOW: u64 = 128 << 20;

/// An image that is there, and what of it is written.
#[derive(Debug)]
pub struct Image {
    /// Where it is.
    pub path: PathBuf,
    file: File,
    packed: bool,
    /// Bytes, unpacked.
    pub size: u64,
    /// Which of them mean something; without one all do.
    pub bmap: Option<Bmap>,
    /// NAME.img.json beside it.
    pub facts: Option<Value>,
    /// The file of the block map.
    pub map: Option<PathBuf>,
    expected: Expected,
    /// The SHA-256 that was checked.
    sum: Option<[u8; 32]>,
}

/// How files begin that other programs packed.
const OTHERS: [(&[u8], &str); 5] = [
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "xz"),
    (&[0x1f, 0x8b], "gzip"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (&[b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c], "7-Zip"),
];

impl Image {
    /// Opens an image and reads its block map (the one named, else the one beside it, unless `whole`). With a key, what lies beside it
    /// is refused unless that signed it.
    ///
    /// # Errors
    /// [`FlashError`].
    pub fn open(
        path: &Path,
        bmap: Option<&Path>,
        whole: bool,
        key: Option<&Path>,
    ) -> Result<Self, FlashError> {
        let unreadable = |source| FlashError::Read { path: path.to_owned(), source };
        // Before it is opened: a pipe would wait for whoever writes to it.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(unreadable(io::Error::other(
                "it is no file; save it to one, it is read more than once",
            )));
        }
        let file = File::open(path).map_err(unreadable)?;
        let release = Release::read(path, key)?;
        let mut expected = release.expects(path)?;
        let mut magic = [0; 6];
        let packed = match file.read_exact_at(&mut magic, 0) {
            Ok(()) => magic[..4] == [0x28, 0xb5, 0x2f, 0xfd],
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(e) => return Err(unreadable(e)),
        };
        if let Some((_, packer)) = OTHERS.iter().find(|(begin, _)| magic.starts_with(begin)) {
            let why = format!("it is packed by {packer}: unpack it first, only zstd is unpacked here");
            return Err(FlashError::NoImage { path: path.to_owned(), why });
        }
        let beside = [unpacked_name(path), path.to_owned()].map(|name| with(&name, ".bmap"));
        let bmap = match (bmap, whole) {
            (_, true) => None,
            (Some(named), false) => Some(named.to_owned()),
            (None, false) => beside.into_iter().find(|file| file.is_file()),
        };
        let bmap = match bmap {
            Some(map) => {
                let bytes = release.file(&map, MAX_BMAP)?;
                let bytes = bytes
                    .ok_or_else(|| FlashError::Bmap { path: map.clone(), why: "there is none".into() })?;
                let bmap = Bmap::parse(&bytes).map_err(|why| FlashError::Bmap { path: map.clone(), why })?;
                Some((bmap, map))
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
            None if packed => unpacked_size(path, &file)?,
            None => length,
        };
        if size == 0 {
            return Err(unreadable(io::Error::other("it is empty")));
        }
        let json = with(&unpacked_name(path), ".json");
        let useless = |why: String| FlashError::Beside { path: json.clone(), why };
        let facts = release.file(&json, MAX_TEXT)?;
        let facts: Option<Value> = facts
            .map(|bytes| serde_json::from_slice(&bytes).map_err(|e| useless(format!("it is no JSON: {e}"))))
            .transpose()?;
        if expected.sum.is_none()
            && !packed
            && let Some(stated) = facts.as_ref().and_then(|facts| facts.get("sha256"))
        {
            let sum = stated.as_str().and_then(hex);
            let sum = sum.ok_or_else(|| useless("its sha256 is none: 64 hex digits".into()))?;
            expected.sum = Some(("its .json".into(), sum));
        }
        let (bmap, map) = bmap.unzip();
        Ok(Self { path: path.to_owned(), file, packed, size, bmap, map, facts, expected, sum: None })
    }

    /// A card without a table of partitions starts nothing, and one whose table says more than there is was cut.
    ///
    /// # Errors
    /// [`FlashError::NoImage`].
    pub fn is_of_a_disk(&self) -> Result<(), FlashError> {
        let no_image = |why: String| Err(FlashError::NoImage { path: self.path.clone(), why });
        let mut head = [0; 1024];
        if self.size < head.len() as u64 {
            return no_image(format!("it has {} bytes", self.size));
        }
        self.stream().fill(0, &mut head)?;
        if head[510..512] != [0x55, 0xaa] {
            return no_image("it does not begin with a table of partitions".into());
        }
        let number = |at: usize| head[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        // The header of a GPT says where its copy at the end of the disk is.
        let last = if head[512..520] == *b"EFI PART" { number(544) } else { 0 };
        match last.checked_add(1).and_then(|sectors| sectors.checked_mul(512)) {
            Some(needs) if needs <= self.size => Ok(()),
            _ => no_image(format!(
                "its table of partitions speaks of {last} sectors and more, it has {}: it was cut",
                self.size / 512
            )),
        }
    }

    /// An image is not written onto itself.
    ///
    /// # Errors
    /// [`FlashError::Refused`].
    pub fn differs_from(&self, device: &Path, status: &Metadata) -> Result<(), FlashError> {
        let own =
            self.file.metadata().map_err(|source| FlashError::Read { path: self.path.clone(), source })?;
        if (own.dev(), own.ino()) != (status.dev(), status.ino()) {
            return Ok(());
        }
        let why = "it is the image itself".to_owned();
        Err(FlashError::Refused { device: device.to_owned(), code: "image-itself", why })
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

    /// Compares the file with the checksum beside it (a line of SHA256SUMS, NAME.sha256, or NAME.img.json where it is not
    /// packed) and with its signature. Returns which checksum was there.
    ///
    /// # Errors
    /// [`FlashError::Checksum`], [`FlashError::Signature`].
    pub fn check(&mut self, mut at: impl FnMut(u64, u64)) -> Result<Option<String>, FlashError> {
        if self.expected.is_nothing() {
            return Ok(None);
        }
        let unreadable = |source| FlashError::Read { path: self.path.clone(), source };
        let total = self.file.metadata().map_err(unreadable)?.len();
        let (mut digests, mut done, mut buffer) = (Digests::default(), 0, vec![0; 1 << 20]);
        loop {
            let n = self.file.read_at(&mut buffer, done).map_err(unreadable)?;
            if n == 0 {
                break;
            }
            digests.update(&buffer[..n]);
            done += n as u64;
            at(done, total);
        }
        self.sum = Some(self.expected.check(digests)?);
        Ok(self.expected.sum.as_ref().map(|(by, _)| by.clone()))
    }

    /// The image from its beginning.
    pub fn stream(&self) -> Stream<'_> {
        let source = Reader { file: &self.file, at: 0, sha256: self.sum.map(|_| Sha256::new()) };
        let from =
            if self.packed { From::Packed(Box::new(Unpack::new(source)), 0) } else { From::Raw(source) };
        Stream { image: self, from }
    }
}

/// An image that is being read, forwards.
pub struct Stream<'a> {
    image: &'a Image,
    from: From<'a>,
}

enum From<'a> {
    Raw(Reader<'a>),
    Packed(Box<Unpack<Reader<'a>>>, u64),
}

/// A file that is read from a place of its own, and hashed as long as nothing is left out.
struct Reader<'a> {
    file: &'a File,
    at: u64,
    sha256: Option<Sha256>,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(buffer, self.at)?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(&buffer[..n]);
        }
        self.at += n as u64;
        Ok(n)
    }
}

impl Stream<'_> {
    /// Fills `buffer` with the bytes at `offset`, which lies at or behind where the last call ended.
    ///
    /// # Errors
    /// [`FlashError::Read`], [`FlashError::Packed`].
    pub fn fill(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), FlashError> {
        let path = &self.image.path;
        match &mut self.from {
            From::Raw(file) => {
                if file.at != offset {
                    // The map has a checksum for what is read of it.
                    (file.at, file.sha256) = (offset, None);
                }
                file.read_exact(buffer).map_err(|source| FlashError::Read { path: path.clone(), source })
            }
            From::Packed(unpack, at) => {
                let broken = |why: io::Error| FlashError::Packed { path: path.clone(), why: in_words(&why) };
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

    /// Reads what is left: an image is as long as its map says, and still what was checked.
    ///
    /// # Errors
    /// [`FlashError::Packed`], [`FlashError::Changed`].
    pub fn finish(self) -> Result<(), FlashError> {
        let image = self.image;
        let file = match self.from {
            From::Raw(file) => file,
            From::Packed(mut unpack, at) => {
                let broken = |why: String| FlashError::Packed { path: image.path.clone(), why };
                let rest = io::copy(&mut unpack, &mut io::sink()).map_err(|e| broken(in_words(&e)))?;
                if at + rest != image.size {
                    return Err(broken(format!("it holds {} bytes, not {}", at + rest, image.size)));
                }
                unpack.source.into_inner()
            }
        };
        let whole = image.packed || file.at == image.size;
        match (file.sha256.map(|sha256| <[u8; 32]>::from(sha256.finalize())), image.sum) {
            (Some(read), Some(checked)) if whole && read != checked => {
                Err(FlashError::Changed { path: image.path.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// Frames of zstd, one after the other, as bytes.
struct Unpack<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    /// Of what was taken out of this frame so far.
    sum: XxHash64,
    inside: bool,
}

impl<R: Read> Unpack<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(WINDOW);
        let source = BufReader::with_capacity(1 << 18, source);
        Self { source, decoder, sum: XxHash64::with_seed(0), inside: false }
    }

    /// Goes into the next frame; `false` at the end.
    fn next_frame(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => {
                    self.sum = XxHash64::with_seed(0);
                    return Ok(true);
                }
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
                    let taken = self.decoder.read(buffer)?;
                    self.sum.write(&buffer[..taken]);
                    return Ok(taken);
                }
                if !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(|e| io::Error::other(e.to_string()))?;
                    continue;
                }
                // The format keeps the lower half.
                let found = self.sum.finish() & 0xffff_ffff;
                if self.decoder.get_checksum_from_data().is_some_and(|stated| u64::from(stated) != found) {
                    return Err(io::Error::other("its checksum is of other bytes: it was damaged"));
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
fn unpacked_size(path: &Path, file: &File) -> Result<u64, FlashError> {
    io::copy(&mut Unpack::new(Reader { file, at: 0, sha256: None }), &mut io::sink())
        .map_err(|e| FlashError::Packed { path: path.to_owned(), why: in_words(&e) })
}

/// What the unpacker has against it; of an end in the middle it has only its own types to show.
fn in_words(error: &io::Error) -> String {
    let text = error.to_string();
    if text.contains("UnexpectedEof") { "it ends too early".into() } else { text }
}

/// `x.img` of `x.img.zst`.
fn unpacked_name(path: &Path) -> PathBuf {
    if path.extension() == Some(OsStr::new("zst")) { path.with_extension("") } else { path.to_owned() }
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
    fn a_frame_whose_checksum_is_of_other_bytes_is_refused() {
        // As `zstd --check` makes it: magic number, descriptor, window, a raw block's header, its bytes, the checksum.
        let text = b"an image, packed by zstd\n";
        let head = [0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x68, 0xc9, 0, 0];
        let packed = [&head[..], text, &[0x63, 0x57, 0xae, 0x01]].concat();
        assert_eq!(unpack(&packed).unwrap(), text);
        assert_eq!(
            unpack(&[&packed[..], &packed].concat()).unwrap(),
            text.repeat(2),
            "each frame has its own"
        );
        for at in [head.len(), packed.len() - 1] {
            let mut damaged = packed.clone();
            damaged[at] ^= 1;
            assert!(unpack(&damaged).unwrap_err().to_string().contains("checksum"));
        }
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
}
