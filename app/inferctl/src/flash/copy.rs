//! Probing, writing and reading back.

use super::{
    error::FlashError,
    image::Image,
    medium::{Medium, PIECE},
};
use sha2::{Digest as _, Sha256};
use std::{io, path::Path};

/// What lies where.
pub struct Piece {
    at: u64,
    length: usize,
    sha256: [u8; 32],
}

/// Bytes of one mark of the probe.
const MARK: usize = 4096;
/// Reads of the probe, and how many MiB are marked for them where that is neither less nor more.
const READS: u64 = 2048;
const MARKED_MIB: std::ops::RangeInclusive<u64> = 8..=64;
const SECTOR: usize = 512;

/// Marks the beginning, every power of two from 1 MiB, and the end, then reads the marks: a card that pretends to be larger than it
/// is loses some of them, or shows one at another's place. What was there is lost. That finds a wrap where address bits are dropped, at a
/// power of two, as f3probe (fight-flash-fraud.readthedocs.io) supposes of all. [`wraps`] finds any other. Takes seconds, not minutes.
///
/// # Errors
/// [`FlashError::Counterfeit`], [`FlashError::Medium`].
pub fn probe(device: &Path, medium: &mut dyn Medium, seed: [u8; 32]) -> Result<(), FlashError> {
    let end = medium.size().saturating_sub(MARK as u64) / MARK as u64 * MARK as u64;
    let powers = (20..63).map(|n| 1_u64 << n).take_while(|at| *at < end);
    let places: Vec<u64> = std::iter::once(0).chain(powers).chain((end > 0).then_some(end)).collect();
    let mark = |at: u64| {
        let line = Sha256::new().chain_update(seed).chain_update(at.to_le_bytes()).finalize();
        line.repeat(MARK / line.len())
    };
    let failed =
        |at, doing| move |source| FlashError::Medium { device: device.to_owned(), at, doing, source };
    // The smallest first: where addresses wrap, the last mark written is the one that stays.
    for at in &places {
        medium.write(&mark(*at), *at).map_err(failed(*at, "probing it"))?;
    }
    medium.sync().map_err(failed(0, "probing it"))?;
    let mut found = vec![0; MARK];
    for at in &places {
        medium.read(&mut found, *at).map_err(failed(*at, "probing it"))?;
        if found != mark(*at) {
            let says = medium.size();
            let why = match places.iter().find(|other| found == mark(**other)) {
                Some(other) => format!(
                    "it says it has {says} bytes, but byte {other} is kept at byte {at}: its real size is at most {}",
                    other.max(at)
                ),
                None => format!(
                    "it says it has {says} bytes, but what is written at byte {at} does not come back"
                ),
            };
            return Err(FlashError::Counterfeit { device: device.to_owned(), why });
        }
    }
    if medium.may_lie() { wraps(device, medium, seed, end) } else { Ok(()) }
}

/// Marks every sector of the first MiB, as many as lie between two of some thousand reads up to the end: whatever the distance at which
/// addresses begin anew, one of those reads shows a mark.
fn wraps(device: &Path, medium: &mut dyn Medium, seed: [u8; 32], end: u64) -> Result<(), FlashError> {
    const MIB: u64 = PIECE as u64;
    let failed =
        |at| move |source| FlashError::Medium { device: device.to_owned(), at, doing: "probing it", source };
    let step = (end / READS / MIB).clamp(*MARKED_MIB.start(), *MARKED_MIB.end()).min(end / MIB / 4) * MIB;
    if step == 0 {
        return Ok(());
    }
    let mut piece = vec![0; PIECE];
    for at in (0..step).step_by(PIECE) {
        for (sector, place) in piece.chunks_exact_mut(SECTOR).zip((at..).step_by(SECTOR)) {
            sector[..32].copy_from_slice(&seed);
            sector[32..40].copy_from_slice(&place.to_le_bytes());
        }
        medium.write(&piece, at).map_err(failed(at))?;
    }
    medium.sync().map_err(failed(0))?;
    let mut block = [0; MARK];
    for at in (step..end).step_by(usize::try_from(step).unwrap_or(PIECE)).chain([end]) {
        medium.read(&mut block, at).map_err(failed(at))?;
        let mut sectors = block.chunks_exact(SECTOR).zip((at..).step_by(SECTOR));
        let found = sectors.find_map(|(sector, here)| {
            let place = u64::from_le_bytes(sector[32..40].try_into().ok()?);
            (sector[..32] == seed && place < here).then(|| here - place)
        });
        if let Some(real) = found {
            let says = medium.size();
            let why = format!(
                "it says it has {says} bytes, but begins anew behind {real}: its real size is at most that"
            );
            return Err(FlashError::Counterfeit { device: device.to_owned(), why });
        }
    }
    Ok(())
}

/// Writes what of the image means something. `at` is told how many bytes are through.
///
/// # Errors
/// [`FlashError`].
pub fn write(
    device: &Path,
    image: &Image,
    medium: &mut dyn Medium,
    mut at: impl FnMut(u64),
) -> Result<Vec<Piece>, FlashError> {
    let failed =
        |at| move |source| FlashError::Medium { device: device.to_owned(), at, doing: "writing", source };
    let (mut pieces, mut through, mut buffer) = (Vec::new(), 0, vec![0; PIECE]);
    let mut stream = image.stream();
    for (range, wanted) in image.ranges() {
        let mut from = range.start;
        let mut sha = Sha256::new();
        while from < range.end {
            let length = usize::try_from(range.end - from).map_or(PIECE, |left| left.min(PIECE));
            let piece = &mut buffer[..length];
            stream.fill(from, piece)?;
            if wanted.is_some() {
                sha.update(&*piece);
            }
            medium.write(piece, from).map_err(failed(from))?;
            pieces.push(Piece { at: from, length, sha256: Sha256::digest(&*piece).into() });
            from += length as u64;
            through += length as u64;
            at(through);
        }
        if wanted.is_some_and(|wanted| wanted != <[u8; 32]>::from(sha.finalize())) {
            let map = image.map.clone().unwrap_or_default();
            return Err(FlashError::Differ { path: image.path.clone(), map, at: range.start });
        }
    }
    stream.finish()?;
    medium.sync().map_err(failed(image.end()))?;
    Ok(pieces)
}

/// Reads back what was written, from the medium.
///
/// # Errors
/// [`FlashError::Verify`], [`FlashError::Counterfeit`] when it is what was written elsewhere, [`FlashError::Medium`].
pub fn verify(
    device: &Path,
    pieces: &[Piece],
    medium: &mut dyn Medium,
    mut at: impl FnMut(u64),
) -> Result<(), FlashError> {
    let (mut through, mut buffer) = (0, vec![0; PIECE]);
    for piece in pieces {
        let found = &mut buffer[..piece.length];
        medium.read(found, piece.at).map_err(|source| FlashError::Medium {
            device: device.to_owned(),
            at: piece.at,
            doing: "reading it back",
            source,
        })?;
        let sha256: [u8; 32] = Sha256::digest(&*found).into();
        if sha256 != piece.sha256 {
            let blank = found.iter().all(|byte| *byte == found[0]);
            let other = pieces.iter().find(|other| !blank && other.sha256 == sha256);
            return Err(other.map_or_else(
                || FlashError::Verify { device: device.to_owned(), at: piece.at },
                |other| FlashError::Counterfeit {
                    device: device.to_owned(),
                    why: format!("at byte {} it holds what was written at byte {}", piece.at, other.at),
                },
            ));
        }
        through += piece.length as u64;
        at(through);
    }
    Ok(())
}

/// A seed that no earlier probe had.
///
/// # Errors
/// The kernel's.
pub fn seed() -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What a card may do.
    #[derive(Clone, Copy, Debug)]
    enum Fault {
        None,
        /// Addresses from here on are those from 0 on.
        Wraps(u64),
        /// What is written from here on is gone.
        Loses(u64),
        /// It is pulled out after so many bytes.
        Pulled(u64),
        /// A bit of this byte is kept wrong.
        Flips(u64),
    }

    struct Card {
        bytes: Vec<u8>,
        says: u64,
        fault: Fault,
        written: u64,
    }

    impl Card {
        fn new(says: u64, fault: Fault) -> Self {
            Self { bytes: vec![0xff; usize::try_from(says).unwrap()], says, fault, written: 0 }
        }

        fn place(&self, at: u64) -> usize {
            let at = if let Fault::Wraps(real) = self.fault { at % real } else { at };
            usize::try_from(at).unwrap()
        }
    }

    impl Medium for Card {
        fn size(&self) -> u64 {
            self.says
        }

        fn write(&mut self, data: &[u8], at: u64) -> io::Result<()> {
            self.written += data.len() as u64;
            match self.fault {
                Fault::Pulled(after) if self.written > after => return Err(io::Error::from_raw_os_error(19)),
                Fault::Loses(from) if at >= from => return Ok(()),
                _ => {}
            }
            let place = self.place(at);
            self.bytes[place..place + data.len()].copy_from_slice(data);
            if let Fault::Flips(byte) = self.fault
                && (at..at + data.len() as u64).contains(&byte)
            {
                self.bytes[usize::try_from(byte).unwrap()] ^= 4;
            }
            Ok(())
        }

        fn read(&mut self, into: &mut [u8], at: u64) -> io::Result<()> {
            let place = self.place(at);
            into.copy_from_slice(&self.bytes[place..place + into.len()]);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn probed(fault: Fault) -> Result<(), FlashError> {
        probe(Path::new("card"), &mut Card::new(64 * MIB + 512, fault), [7; 32])
    }

    #[test]
    fn the_probe_finds_a_card_whose_addresses_wrap_and_one_that_forgets() {
        probed(Fault::None).unwrap();
        for fault in [1, 4, 8, 16, 32].map(|real| Fault::Wraps(real * MIB)) {
            assert!(matches!(probed(fault), Err(FlashError::Counterfeit { .. })), "{fault:?}");
        }
        for fault in [4, 9, 24, 33, 63].map(|real| Fault::Loses(real * MIB)) {
            assert!(matches!(probed(fault), Err(FlashError::Counterfeit { .. })), "{fault:?}");
        }
        // At no power of two.
        for fault in
            [11 * MIB, 9 * MIB, 33 * MIB, 57 * MIB, 23 * MIB + 512, 61 * MIB - 1536].map(Fault::Wraps)
        {
            let said = probed(fault).unwrap_err().to_string();
            assert!(said.contains("begins anew behind"), "{fault:?}: {said}");
        }
        let said = probed(Fault::Wraps(16 * MIB)).unwrap_err().to_string();
        assert!(said.contains("67109376 bytes") && said.contains("counterfeit"), "{said}");
    }

    #[test]
    fn a_card_that_is_pulled_out_is_said_to_be_and_where() {
        assert!(matches!(probed(Fault::Pulled(8192)), Err(FlashError::Medium { at: 2_097_152, .. })));
        let folder = tempfile::tempdir().unwrap();
        let (image, _) = image(folder.path());
        let error = write(Path::new("card"), &image, &mut Card::new(8 * MIB, Fault::Pulled(2 * MIB)), |_| ());
        assert!(matches!(error, Err(FlashError::Medium { at: 2_097_152, .. })));
    }

    /// 4 MiB that repeat nowhere.
    fn image(folder: &Path) -> (Image, Vec<u8>) {
        let bytes: Vec<u8> = (0..MIB / 8).flat_map(|n| Sha256::digest(n.to_le_bytes())).collect();
        std::fs::write(folder.join("x.img"), &bytes).unwrap();
        (Image::open(&folder.join("x.img"), None, false, None).unwrap(), bytes)
    }

    fn flashed(fault: Fault) -> Result<Vec<u8>, FlashError> {
        let folder = tempfile::tempdir().unwrap();
        let (image, _) = image(folder.path());
        let mut card = Card::new(8 * MIB, fault);
        let pieces = write(Path::new("card"), &image, &mut card, |_| ())?;
        verify(Path::new("card"), &pieces, &mut card, |_| ())?;
        Ok(card.bytes)
    }

    #[test]
    fn what_comes_back_wrong_is_found_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = image(folder.path()).1;
        assert_eq!(flashed(Fault::None).unwrap()[..bytes.len()], bytes);
        assert!(matches!(flashed(Fault::Flips(3 * MIB + 5)), Err(FlashError::Verify { at: 3_145_728, .. })));
        let wrapped = flashed(Fault::Wraps(2 * MIB)).unwrap_err().to_string();
        assert!(wrapped.contains("at byte 0 it holds what was written at byte 2097152"), "{wrapped}");
    }

    #[test]
    fn an_image_that_changes_after_it_was_checked_is_found_when_it_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = image(folder.path()).1;
        let raw = folder.path().join("x.img");
        let packed = folder.path().join("x.img.zst");
        let zst = |bytes: &[u8]| {
            ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Uncompressed)
        };
        let other: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        for (file, content, changed) in
            [(raw, bytes.clone(), other.clone()), (packed, zst(&bytes), zst(&other))]
        {
            std::fs::write(&file, &content).unwrap();
            let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            std::fs::write(folder.path().join(format!("{name}.sha256")), format!("{sum}  {name}\n")).unwrap();
            let mut image = Image::open(&file, None, false, None).unwrap();
            image.check(|_, _| ()).unwrap();
            let mut card = Card::new(8 * MIB, Fault::None);
            write(Path::new("card"), &image, &mut card, |_| ()).unwrap();
            std::fs::write(&file, &changed).unwrap();
            let error = write(Path::new("card"), &image, &mut card, |_| ());
            assert!(matches!(error, Err(FlashError::Changed { .. })), "{name} changed in its place");
            std::fs::write(&file, &content).unwrap();
            std::fs::write(folder.path().join("new"), &changed).unwrap();
            std::fs::rename(folder.path().join("new"), &file).unwrap();
            write(Path::new("card"), &image, &mut card, |_| ()).unwrap();
            let length = bytes.len();
            assert!(
                card.bytes[..length] == bytes,
                "{name}: what was checked is written, not what took its name"
            );
        }
    }

    #[test]
    fn with_a_block_map_only_its_ranges_are_touched_and_a_changed_image_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (_, bytes) = image(folder.path());
        let map = super::super::bmap::tests::map(&bytes, &[(1, 2), (500, 1023)]);
        std::fs::write(folder.path().join("x.img.bmap"), map).unwrap();
        let open = || Image::open(&folder.path().join("x.img"), None, false, None).unwrap();
        let mut card = Card::new(8 * MIB, Fault::None);
        let mut seen = 0;
        write(Path::new("card"), &open(), &mut card, |at| seen = at).unwrap();
        assert_eq!(seen, (2 + 524) * 4096, "the bar counts what was written");
        assert_eq!(card.bytes[4096..3 * 4096], bytes[4096..3 * 4096]);
        assert!(card.bytes[..4096].iter().chain(&card.bytes[3 * 4096..500 * 4096]).all(|b| *b == 0xff));
        let mut changed = bytes;
        changed[501 * 4096] ^= 1;
        std::fs::write(folder.path().join("x.img"), changed).unwrap();
        let error = write(Path::new("card"), &open(), &mut card, |_| ());
        assert!(matches!(error, Err(FlashError::Differ { .. })));
    }
}
