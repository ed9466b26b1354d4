//! `inferctl sign` and `inferctl verify`: detached signatures of any file in minisign's format, so that who has no inferctl verifies a
//! release with `minisign -V`. The keys are those of `keygen`.
//!
//! The format (jedisct1.github.io/minisign, "Signature format"): a comment, `ED` + key number + signature of the file's BLAKE2b-512,
//! a trusted comment, and a signature of signature and trusted comment. minisign numbers keys at random; ours are numbered by the
//! first 8 bytes of their id.

use crate::{
    fail::Failure,
    files::{self, Unwritten},
    show,
};
use blake2::Blake2b512;
use inferd_bundle::{PublicKey, SigningKey};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// The longest signature or key file.
const MAX: u64 = 4096;
/// Signature of a file's BLAKE2b-512.
const HASHED: &[u8; 2] = b"ED";
/// A key; also a signature of the file itself, which is not taken: it cannot be checked in bounded memory.
const PLAIN: &[u8; 2] = b"Ed";
const TRUSTED: &str = "trusted comment: ";

/// Arguments of `sign`.
#[derive(Debug, clap::Args)]
pub struct Sign {
    /// The file; its signature becomes FILE.minisig
    file: PathBuf,
    /// A secret key of `inferctl keygen`
    #[arg(long, value_name = "NAME.key")]
    key: PathBuf,
    /// Signed with it and shown to who verifies [default: the file's name]
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Also write the public key as minisign reads it
    #[arg(long, value_name = "FILE")]
    write_pub: Option<PathBuf>,
}

impl Sign {
    /// Signs.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let key = files::secret(&self.key)?;
        let name = self.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let comment = self.comment.clone().unwrap_or_else(|| format!("file:{name}"));
        if comment.contains(char::is_control) {
            return Err(Failure::Other("a comment is one line".into()));
        }
        let text = signed(&key, &blake2b(&self.file)?, &comment);
        let output = beside(&self.file);
        let put = |path: &Path, text: &str| {
            files::replace(path, |out| out.write_all(text.as_bytes()).map_err(Unwritten::Io))
        };
        put(&output, &text)?;
        if let Some(path) = &self.write_pub {
            put(path, &public_text(&key.public()))?;
        }
        let public = base64(&public_bytes(&key.public()));
        if json {
            show::json(&json!({ "signature": output, "public": public, "id": key.id() }));
        } else {
            show::line(&format!(
                "{}; verify it: minisign -Vm {} -P {public}",
                output.display(),
                self.file.display()
            ));
        }
        Ok(())
    }
}

/// Arguments of `verify`.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The file; FILE.minisig lies beside it
    file: PathBuf,
    /// The public key: NAME.pub of `keygen`, or minisign's
    #[arg(long = "pub", value_name = "FILE")]
    public: PathBuf,
    /// Where the signature is [default: FILE.minisig]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
}

impl Verify {
    /// Verifies.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn run(&self, json: bool) -> Result<(), Failure> {
        let signature = self.signature.clone().unwrap_or_else(|| beside(&self.file));
        let comment = verify_file(&self.file, &signature, &self.public)?;
        if json {
            show::json(&json!({ "file": self.file, "verified": true, "comment": comment }));
        } else {
            show::line(&format!("{} is signed by this key; {comment}", self.file.display()));
        }
        Ok(())
    }
}

/// FILE.minisig.
pub fn beside(file: &Path) -> PathBuf {
    let mut name: OsString = file.as_os_str().to_owned();
    name.push(".minisig");
    name.into()
}

/// Checks a file's signature; the trusted comment comes back.
///
/// # Errors
/// [`Failure`].
pub fn verify_file(file: &Path, signature: &Path, public: &Path) -> Result<String, Failure> {
    let said = |why: &str| Failure::Other(format!("{}: {why}", signature.display()));
    let key = public_key(public)?;
    let text = String::from_utf8(files::read(signature, MAX)?).map_err(|_| said("it is no signature"))?;
    verify(&key, &blake2b(file)?, &text).map_err(|why| said(&why))
}

fn blake2b(file: &Path) -> Result<[u8; 64], Failure> {
    let mut hash = Blake2b512::new();
    each(file, |part| hash.update(part))?;
    Ok(hash.finalize().into())
}

fn each(path: &Path, mut part: impl FnMut(&[u8])) -> Result<(), Failure> {
    let unreadable = |e: io::Error| Failure::Other(format!("{} cannot be read: {e}", path.display()));
    let (mut file, mut buffer) = (File::open(path).map_err(unreadable)?, vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(unreadable)? {
            0 => return Ok(()),
            n => part(&buffer[..n]),
        }
    }
}

fn signed(key: &SigningKey, hash: &[u8; 64], comment: &str) -> String {
    let signature = key.sign_detached(hash);
    let whole = key.sign_detached(&[&signature[..], comment.as_bytes()].concat());
    let line = [&HASHED[..], &number(&key.public()), &signature].concat();
    let whose = key.id().to_string();
    let whose = whose.get(..16).unwrap_or_default();
    format!(
        "untrusted comment: signature of inferctl, key {whose}\n{}\n{TRUSTED}{comment}\n{}\n",
        base64(&line),
        base64(&whole)
    )
}

/// Checks a signature of what hashes to `hash`; the trusted comment comes back.
///
/// # Errors
/// Why not, in a sentence.
pub fn verify(key: &PublicKey, hash: &[u8; 64], text: &str) -> Result<String, String> {
    let mut lines = text.lines();
    let (_, line, comment, whole) = (lines.next(), lines.next(), lines.next(), lines.next());
    let line = line.and_then(unbase64).filter(|line| line.len() == 74);
    let comment = comment.and_then(|text| text.strip_prefix(TRUSTED));
    let whole = whole.and_then(unbase64).and_then(|whole| <[u8; 64]>::try_from(whole).ok());
    let (Some(line), Some(comment), Some(whole)) = (line, comment, whole) else {
        return Err("it is no signature of minisign's form".into());
    };
    let signature: [u8; 64] = line[10..].try_into().unwrap_or([0; 64]);
    if &line[..2] == PLAIN {
        return Err("it is of minisign's old form (-l); sign it again without -l".into());
    }
    if &line[..2] != HASHED {
        return Err("it is no signature of minisign's form".into());
    }
    if !key.verifies(hash, &signature) {
        return Err("it is not this key's signature of this file".into());
    }
    if !key.verifies(&[&signature[..], comment.as_bytes()].concat(), &whole) {
        return Err("its trusted comment was changed".into());
    }
    Ok(comment.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}

/// minisign's number of a key.
fn number(key: &PublicKey) -> [u8; 8] {
    let id = Sha256::digest(key.to_bytes());
    let mut number = [0; 8];
    number.copy_from_slice(&id[..8]);
    number
}

fn public_bytes(key: &PublicKey) -> Vec<u8> {
    [&PLAIN[..], &number(key), &key.to_bytes()].concat()
}

fn public_text(key: &PublicKey) -> String {
    let number = u64::from_le_bytes(number(key));
    format!("untrusted comment: minisign public key {number:016X}\n{}\n", base64(&public_bytes(key)))
}

/// A public key in either form.
///
/// # Errors
/// [`Failure`].
pub fn public_key(path: &Path) -> Result<PublicKey, Failure> {
    let text = String::from_utf8_lossy(&files::read(path, MAX)?).into_owned();
    let bytes = text.lines().filter_map(unbase64).find(|bytes| bytes.len() == 42 && &bytes[..2] == PLAIN);
    let Some(bytes) = bytes else { return Ok(files::public(path)?.0) };
    let bytes: [u8; 32] = bytes[10..].try_into().unwrap_or([0; 32]);
    PublicKey::new(bytes).map_err(|e| Failure::Other(format!("{}: {e}", path.display())))
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0_u32, |bits, i| bits << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    let letters = text.trim_end_matches('=');
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    if text.is_empty() || !text.len().is_multiple_of(4) || text.len() - letters.len() > 2 {
        return None;
    }
    for letter in letters.bytes() {
        let value = LETTERS.iter().position(|l| *l == letter)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 0xff) as u8);
        }
    }
    (bits & ((1 << held) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_as_it_is_written_and_only_so() {
        for (bytes, text) in
            [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"\xff\xfe", "//4=")]
        {
            assert_eq!(base64(bytes), text);
            assert_eq!(unbase64(text), (!text.is_empty()).then(|| bytes.to_vec()));
        }
        for wrong in ["Zg", "Zg=", "Zh==", "Z===", "Z g=", "Zm9v="] {
            assert_eq!(unbase64(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_signature_is_of_one_file_by_one_key_with_one_comment() {
        let (key, hash) = (SigningKey::from_seed(&[1; 32]), [9; 64]);
        let text = signed(&key, &hash, "file:x");
        assert_eq!(verify(&key.public(), &hash, &text).unwrap(), "file:x");
        assert!(verify(&key.public(), &[8; 64], &text).is_err(), "another file");
        assert!(verify(&SigningKey::from_seed(&[2; 32]).public(), &hash, &text).is_err(), "another key");
        assert!(verify(&key.public(), &hash, &text.replace("file:x", "file:y")).is_err(), "another comment");
        for end in 0..text.len() - 2 {
            assert!(verify(&key.public(), &hash, &text[..end]).is_err(), "cut after {end}");
        }
    }

    #[test]
    fn the_old_form_is_refused_and_says_what_to_do() {
        let (key, hash) = (SigningKey::from_seed(&[1; 32]), [9; 64]);
        let text = signed(&key, &hash, "x");
        let line = text.lines().nth(1).unwrap();
        let mut bytes = unbase64(line).unwrap();
        bytes[1] = b'd';
        let error = verify(&key.public(), &hash, &text.replace(line, &base64(&bytes))).unwrap_err();
        assert!(error.contains("old form"), "{error}");
    }
}
