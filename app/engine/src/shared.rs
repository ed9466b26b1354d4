//! Shared objects of vendors, looked at before they are loaded.
//!
//! The dynamic linker maps a file and touches its pages: one that was cut short ends the process with a bus error, and one for
//! another processor is refused without a word why. Both are said here in a sentence.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// This processor in an ELF header.
#[cfg(target_arch = "x86_64")]
const HERE: (u16, &str) = (62, "x86_64");
#[cfg(target_arch = "aarch64")]
const HERE: (u16, &str) = (183, "aarch64");

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const ET_DYN: u16 = 3;

/// Whether a file is a whole shared object for this processor.
///
/// # Errors
/// Why it is not, one sentence.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    look(path).map_err(|why| format!("{}: {why}", path.display()))
}

fn look(path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|e| e.to_string())?;
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err("it is no file".to_owned());
    }
    let mut header = [0; HEADER];
    let whole = file.read_exact(&mut header).is_ok();
    if !whole || !header.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is no shared object of 64 bits".to_owned());
    }
    let (kind, machine) = (u16_at(&header, 16), u16_at(&header, 18));
    if machine != HERE.0 {
        let theirs = match machine {
            62 => "x86_64".to_owned(),
            183 => "aarch64".to_owned(),
            other => format!("ELF machine {other}"),
        };
        return Err(format!("it is for {theirs}, this is {}", HERE.1));
    }
    let (at, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if kind != ET_DYN || usize::from(size) != PROGRAM_HEADER {
        return Err("it is no shared object".to_owned());
    }
    let mut table = vec![0; usize::from(count) * PROGRAM_HEADER];
    let cut = |_| "it was cut short".to_owned();
    file.seek(SeekFrom::Start(at)).map_err(cut)?;
    file.read_exact(&mut table).map_err(cut)?;
    let (segments, _) = table.as_chunks::<PROGRAM_HEADER>();
    let end = segments
        .iter()
        .filter(|s| u32_at(&s[..], 0) == PT_LOAD)
        .map(|s| u64_at(s, 8).saturating_add(u64_at(s, 32)))
        .max()
        .unwrap_or(u64::MAX);
    if end > meta.len() {
        return Err(format!("it was cut short: it has {} bytes of at least {end}", meta.len()));
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_for_this_processor_and_whole() {
        // A test program is position independent: to an ELF reader a shared object.
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let dir = std::env::temp_dir().join(format!("inferd-shared-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let try_with = |bytes: &[u8]| {
            let path = dir.join("lib.so");
            std::fs::write(&path, bytes).unwrap();
            look(&path)
        };
        assert_eq!(try_with(&whole), Ok(()));
        let mut other = whole.clone();
        other[18] = if HERE.0 == 62 { 183 } else { 62 };
        assert!(try_with(&other).unwrap_err().starts_with("it is for "));
        for length in [0, 1, 63] {
            assert_eq!(try_with(&whole[..length]).unwrap_err(), "it is no shared object of 64 bits");
        }
        for length in [64, 200, 4096] {
            assert!(try_with(&whole[..length]).unwrap_err().starts_with("it was cut short"), "{length}");
        }
        assert!(
            try_with(b"INPUT(libonnxruntime.so.1)\n and so on, until it is long enough for a header")
                .is_err()
        );
        assert!(look(&dir).is_err());
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn numbers_that_lie_are_an_error_and_no_panic() {
        let whole = std::fs::read("/proc/self/exe").unwrap();
        let dir = std::env::temp_dir().join(format!("inferd-shared-lies-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("lib.so");
        for at in 16..HEADER {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole[..4096].to_vec();
                bytes[at] = value;
                std::fs::write(&path, &bytes).unwrap();
                let _ = look(&path);
            }
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
