//! What lies beside an image says what it is: checksums and signatures. Each file is read once, and what is used of it are the bytes
//! that were checked.

use super::{bmap::hex, error::FlashError};
use crate::minisign;
use blake2::Blake2b512;
use inferd_bundle::PublicKey;
use sha2::{Digest as _, Sha256};
use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Lists, signatures and facts beside an image are read up to here.
pub const MAX_TEXT: u64 = 4 << 20;
const LIST: &str = "SHA256SUMS";

/// The checksums beside an image, and whose word they are.
#[derive(Debug)]
pub struct Release {
    list: Option<String>,
    /// The key that must have signed everything that is used.
    key: Option<PublicKey>,
    /// It signed the list.
    signed: bool,
}

/// What the bytes of a file must be.
#[derive(Debug)]
pub struct Expected {
    file: PathBuf,
    /// Who says it, and the SHA-256.
    pub sum: Option<(String, [u8; 32])>,
    /// A signature of the file alone.
    signature: Option<(PublicKey, String)>,
}

/// The digests that are compared.
#[derive(Default)]
pub struct Digests {
    sha256: Sha256,
    blake2b: Blake2b512,
}

impl Digests {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.blake2b.update(bytes);
    }
}

impl Release {
    /// Reads SHA256SUMS beside the image, and with a key its signature.
    ///
    /// # Errors
    /// [`FlashError::Signature`] when it is another key's.
    pub fn read(image: &Path, key: Option<&Path>) -> Result<Self, FlashError> {
        let wrong = |why: String| FlashError::Signature { why };
        let key = key.map(minisign::public_key).transpose().map_err(|e| wrong(e.to_string()))?;
        let file = image.with_file_name(LIST);
        let list = if file.is_file() { Some(read(&file, MAX_TEXT)?) } else { None };
        let mut release = Self { list: None, key, signed: false };
        if let Some(list) = list {
            let own = release.own_signature(&file)?;
            release.signed = own.is_some();
            let mut digests = Digests::default();
            digests.update(&list);
            Expected { file, sum: None, signature: own }.check(digests)?;
            release.list = Some(String::from_utf8_lossy(&list).into_owned());
        }
        Ok(release)
    }

    /// FILE.minisig, where a key asks for it and it is there.
    fn own_signature(&self, file: &Path) -> Result<Option<(PublicKey, String)>, FlashError> {
        let signature = minisign::beside(file);
        match &self.key {
            Some(key) if signature.is_file() => {
                let text = read(&signature, MAX_TEXT)?;
                Ok(Some((*key, String::from_utf8_lossy(&text).into_owned())))
            }
            _ => Ok(None),
        }
    }

    /// What a file of the release must be: what the list says, else FILE.sha256. With a key, it or the list that names it must be
    /// signed.
    ///
    /// # Errors
    /// [`FlashError::Signature`] where a key asks for a signature and there is none.
    pub fn expects(&self, file: &Path) -> Result<Expected, FlashError> {
        let name = file.file_name().unwrap_or_default();
        let useless = |list: &Path| FlashError::Beside {
            path: list.to_owned(),
            why: format!("it has no SHA-256 of {}", name.display()),
        };
        let listed = self.list.as_ref().and_then(|list| sum_of(list, name));
        let listed = listed.map(|sum| sum.ok_or_else(|| useless(&file.with_file_name(LIST)))).transpose()?;
        let signature = self.own_signature(file)?;
        if self.key.is_some() && signature.is_none() && !(self.signed && listed.is_some()) {
            let why = if self.signed {
                format!("the signed {LIST} does not name it")
            } else {
                format!("there is neither its own .minisig nor one of a {LIST}")
            };
            return Err(FlashError::Signature { why: format!("{} is not signed: {why}", file.display()) });
        }
        let mut sum = listed.map(|sum| (LIST.to_owned(), sum));
        let own = with(file, ".sha256");
        if sum.is_none() && own.is_file() {
            let text = read(&own, MAX_TEXT)?;
            let by = own.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let said = sum_of(&String::from_utf8_lossy(&text), name).flatten();
            sum = Some((by, said.ok_or_else(|| useless(&own))?));
        }
        Ok(Expected { file: file.to_owned(), sum, signature })
    }

    /// A file beside the image, whole and as the release has it; `None` where there is none.
    ///
    /// # Errors
    /// [`FlashError`].
    pub fn file(&self, file: &Path, most: u64) -> Result<Option<Vec<u8>>, FlashError> {
        if !file.is_file() {
            return Ok(None);
        }
        let bytes = read(file, most)?;
        let mut digests = Digests::default();
        digests.update(&bytes);
        self.expects(file)?.check(digests)?;
        Ok(Some(bytes))
    }
}

impl Expected {
    /// Nobody says anything of it.
    pub fn is_nothing(&self) -> bool {
        self.sum.is_none() && self.signature.is_none()
    }

    /// Compares; the file's SHA-256.
    ///
    /// # Errors
    /// [`FlashError::Checksum`], [`FlashError::Signature`].
    pub fn check(&self, digests: Digests) -> Result<[u8; 32], FlashError> {
        let sha256: [u8; 32] = digests.sha256.finalize().into();
        if let Some((by, _)) = self.sum.as_ref().filter(|(_, sum)| *sum != sha256) {
            return Err(FlashError::Checksum { path: self.file.clone(), by: by.clone() });
        }
        if let Some((key, text)) = &self.signature {
            minisign::verify(key, &digests.blake2b.finalize().into(), text).map_err(|why| {
                FlashError::Signature { why: format!("{}: {why}", minisign::beside(&self.file).display()) }
            })?;
        }
        Ok(sha256)
    }
}

/// A name with something after it.
pub fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The checksum of a file in a list as sha256sum writes it: `None` where the list does not name it, `Some(None)` where it does and what
/// stands there is no checksum.
fn sum_of(list: &str, name: &OsStr) -> Option<Option<[u8; 32]>> {
    list.lines().find_map(|line| {
        let (sum, file) = line.split_once(' ')?;
        let file = file.strip_prefix(['*', ' ']).unwrap_or(file);
        let file = file.strip_prefix("./").unwrap_or(file);
        (OsStr::new(file) == name).then(|| hex(sum))
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

    #[test]
    fn checksums_are_found_as_sha256sum_writes_them() {
        let sum = "ab".repeat(32);
        let list = format!("{}  other.img\n{sum} *x y.img\n{sum}  z.img\n", "cd".repeat(32));
        assert_eq!(sum_of(&list, OsStr::new("x y.img")), Some(Some([0xab; 32])));
        assert_eq!(sum_of(&list, OsStr::new("z.img")), Some(Some([0xab; 32])));
        assert_eq!(sum_of(&format!("{sum}  ./z.img"), OsStr::new("z.img")), Some(Some([0xab; 32])));
        assert_eq!(sum_of("abab  z.img", OsStr::new("z.img")), Some(None), "named, and no sum");
        assert_eq!(sum_of(&list, OsStr::new("y.img")), None);
    }
}
