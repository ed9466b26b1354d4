//! Signatures and public keys in minisign's form.
//!
//! The format (jedisct1.github.io/minisign, "Signature format"): a comment, `ED` + key number + signature of the file's BLAKE2b-512,
//! a trusted comment, and a signature of signature and trusted comment. minisign numbers keys at random; ours are numbered by the
//! first 8 bytes of their id.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use inferd_bundle::{PublicKey, SigningKey};
use sha2::{Digest as _, Sha256};

/// Signature of a file's BLAKE2b-512.
const HASHED: &[u8; 2] = b"ED";
/// A key; also a signature of the file itself, which is not taken: it cannot be checked in bounded memory.
const PLAIN: &[u8; 2] = b"Ed";
const TRUSTED: &str = "trusted comment: ";

/// The file `.minisig` of what hashes to `hash`.
pub fn signed(key: &SigningKey, hash: &[u8; 64], comment: &str) -> String {
    let signature = key.sign_detached(hash);
    let whole = key.sign_detached(&[&signature[..], comment.as_bytes()].concat());
    let line = [&HASHED[..], &number(&key.public()), &signature].concat();
    let whose = key.id().to_string();
    let whose = whose.get(..16).unwrap_or_default();
    format!(
        "untrusted comment: signature of inferctl, key {whose}\n{}\n{TRUSTED}{comment}\n{}\n",
        BASE64_STANDARD.encode(line),
        BASE64_STANDARD.encode(whole)
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

/// A public key as minisign takes it on a command line, before its base64.
fn public_bytes(key: &PublicKey) -> Vec<u8> {
    [&PLAIN[..], &number(key), &key.to_bytes()].concat()
}

/// A public key as a file of minisign.
pub fn public_text(key: &PublicKey) -> String {
    let number = u64::from_le_bytes(number(key));
    format!("untrusted comment: minisign public key {number:016X}\n{}\n", public_line(key))
}

/// A public key as minisign takes it on a command line.
pub fn public_line(key: &PublicKey) -> String {
    BASE64_STANDARD.encode(public_bytes(key))
}

/// The first key of minisign's form in a text; `None` where there is none, an error where it is no point of the curve.
pub fn public(text: &str) -> Option<Result<PublicKey, String>> {
    let bytes = text.lines().filter_map(unbase64).find(|bytes| bytes.len() == 42 && &bytes[..2] == PLAIN)?;
    let bytes: [u8; 32] = bytes[10..].try_into().unwrap_or([0; 32]);
    Some(PublicKey::new(bytes).map_err(|e| e.to_string()))
}

fn unbase64(line: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(line.trim()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let error =
            verify(&key.public(), &hash, &text.replace(line, &BASE64_STANDARD.encode(bytes))).unwrap_err();
        assert!(error.contains("old form"), "{error}");
    }
}
