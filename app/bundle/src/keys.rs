//! Keys: ed25519, one line of text each, and signing with them. Only the laptop has secret ones.

use crate::cbor;
use crate::digest::{from_hex, to_hex};
use crate::trust::{Envelope, PERMIT, Permit, REVOCATIONS, ROOT, Revocations, Root, Signature, message};
use crate::{Digest, Refusal};
use ed25519_dalek::{Signer as _, VerifyingKey};
use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use serde::{Serialize, Serializer};
use std::fmt;

/// How a secret key's line begins.
pub const SECRET: &str = "inferd-secret-key";
/// How a public key's line begins.
const PUBLIC: &str = "inferd-public-key";
/// The algorithm both lines name.
const ALGORITHM: &str = "ed25519";

/// Why a key is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The line is not of this form.
    #[error("a {0} is one line: {0} ed25519 64-HEX-DIGITS [NOTE]")]
    Line(&'static str),
    /// A public key was given where a secret one is needed.
    #[error("this is a public key; signing needs the secret one")]
    Public,
    /// A secret key was given where a public one is needed.
    #[error("this is a secret key; give the public one, and keep this one to yourself")]
    Secret,
    /// The bytes are no public key, or one that proves nothing.
    #[error("this is not an ed25519 public key that can be trusted")]
    Weak,
    /// The kernel gave no random numbers.
    #[error("no random numbers from the kernel: {0}")]
    Random(String),
}

/// A public key: a point that is on the curve and not of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Takes the 32 bytes of a key after checking them.
    ///
    /// # Errors
    /// [`KeyError::Weak`].
    pub fn new(bytes: [u8; 32]) -> Result<Self, KeyError> {
        match VerifyingKey::from_bytes(&bytes) {
            Ok(key) if !key.is_weak() => Ok(Self(bytes)),
            _ => Err(KeyError::Weak),
        }
    }

    /// The key as 32 bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Its id: the digest of its bytes.
    #[must_use]
    pub fn id(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// Whether a signature over `message` is this key's, by the strict rules: canonical numbers, no points of small order.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        let signature = ed25519_dalek::Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }

    /// Whether a signature of [`SigningKey::sign_own`] is this key's.
    #[must_use]
    pub fn verifies_own(&self, purpose: &str, bytes: &[u8], signature: &[u8; 64]) -> bool {
        self.verifies(&own(purpose, bytes), signature)
    }

    /// The key as a line, with the line end.
    #[must_use]
    pub fn to_line(&self, note: &str) -> String {
        line(PUBLIC, &self.0, note)
    }

    /// Reads a line; the note comes back too.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_line(text: &str) -> Result<(Self, String), KeyError> {
        if text.trim_start().starts_with(SECRET) {
            return Err(KeyError::Secret);
        }
        let (bytes, note) = read_line(PUBLIC, text)?;
        Ok((Self::new(bytes)?, note))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", to_hex(&self.0))
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&to_hex(&self.0))
    }
}

impl<C> minicbor::Encode<C> for PublicKey {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for PublicKey {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let bytes = d.bytes()?.try_into().map_err(|_| decode::Error::message("a public key is 32 bytes"))?;
        Self::new(bytes).map_err(decode::Error::message)
    }
}

/// A secret key. It is wiped from memory when it is dropped, and never printed.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// A new key from the kernel's random numbers.
    ///
    /// # Errors
    /// [`KeyError::Random`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| KeyError::Random(e.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a seed. Only for keys that need not be secret: tests, and the development key of development images.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The public key beside it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Its id: the public key's.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.public().id()
    }

    /// The secret as a line, with the line end. Write it to a file that only its owner can read.
    #[must_use]
    pub fn to_line(&self, note: &str) -> String {
        line(SECRET, self.0.as_bytes(), note)
    }

    /// Reads a line; the note comes back too.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_line(text: &str) -> Result<(Self, String), KeyError> {
        if text.trim_start().starts_with(PUBLIC) {
            return Err(KeyError::Public);
        }
        let (seed, note) = read_line(SECRET, text)?;
        Ok((Self::from_seed(&seed), note))
    }

    /// Its signature over bytes that are no document of a bundle: a device signs with a key of its own what it made itself. `purpose`
    /// is part of what is signed, so that nothing can be taken for something else; [`PublicKey::verifies_own`] asks for the same.
    #[must_use]
    pub fn sign_own(&self, purpose: &str, bytes: &[u8]) -> [u8; 64] {
        self.0.sign(&own(purpose, bytes)).to_bytes()
    }

    /// Its signature over the bytes as they are: for formats of others, which say themselves what they sign. `message` must never
    /// begin as those of bundles, trust documents and [`Self::sign_own`] do; a digest does not.
    #[must_use]
    pub fn sign_detached(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Signature {
        Signature { key: self.id(), signature: self.0.sign(message).to_bytes() }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.id())
    }
}

/// What a device signs of its own: never a message that a bundle or a trust document has.
fn own(purpose: &str, bytes: &[u8]) -> Vec<u8> {
    [b"inferd own\0", purpose.as_bytes(), b"\0", bytes].concat()
}

fn line(kind: &str, bytes: &[u8], note: &str) -> String {
    let note: String = note.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = format!("{kind} {ALGORITHM} {} {}", to_hex(bytes), note.trim());
    format!("{}\n", text.trim_end())
}

fn read_line(kind: &'static str, text: &str) -> Result<([u8; 32], String), KeyError> {
    let wrong = KeyError::Line(kind);
    let text = text.trim();
    if text.contains('\n') {
        return Err(wrong);
    }
    let mut words = text.splitn(4, ' ');
    if words.next() != Some(kind) || words.next() != Some(ALGORITHM) {
        return Err(wrong);
    }
    let bytes = words.next().and_then(from_hex).ok_or(wrong)?;
    Ok((bytes, words.next().unwrap_or_default().to_owned()))
}

/// Signatures of `signers` over `message`, ascending by key, each key once.
pub(crate) fn signatures(signers: &[&SigningKey], message: &[u8]) -> Vec<Signature> {
    let mut signatures: Vec<Signature> = signers.iter().map(|s| s.sign(message)).collect();
    signatures.sort_unstable();
    signatures.dedup_by_key(|s| s.key);
    signatures
}

fn seal<T: minicbor::Encode<()>>(kind: &str, document: &T, signers: &[&SigningKey]) -> Vec<u8> {
    let payload = cbor::to_bytes(document);
    let signatures = signatures(signers, &message(kind, Digest::of(&payload)));
    Envelope { kind: kind.to_owned(), payload, signatures }.to_bytes()
}

/// A root in its envelope. Keys and roles are put in order first; whether enough sign is judged by who reads it.
///
/// # Errors
/// [`Refusal::TrustDocument`] when no device would take it.
pub fn sign_root(mut root: Root, signers: &[&SigningKey]) -> Result<Vec<u8>, Refusal> {
    root.keys.sort_by_key(|k| k.public.id());
    root.roles.sort_by_key(|r| r.role);
    root.roles.iter_mut().for_each(|r| r.keys.sort_unstable());
    root.check()?;
    Ok(seal(ROOT, &root, signers))
}

/// A revocation list in its envelope; ids are put in order first, each once.
///
/// # Errors
/// [`Refusal::TrustDocument`].
pub fn sign_revocations(mut list: Revocations, signers: &[&SigningKey]) -> Result<Vec<u8>, Refusal> {
    for ids in [&mut list.keys, &mut list.bundles] {
        ids.sort_unstable();
        ids.dedup();
    }
    list.check()?;
    Ok(seal(REVOCATIONS, &list, signers))
}

/// A permit in its envelope.
///
/// # Errors
/// [`Refusal::TrustDocument`].
pub fn sign_permit(permit: &Permit, signers: &[&SigningKey]) -> Result<Vec<u8>, Refusal> {
    permit.check()?;
    Ok(seal(PERMIT, permit, signers))
}

/// Adds signatures to an envelope, so that holders of keys can sign one after the other. A signature of the same key is
/// replaced.
///
/// # Errors
/// [`Refusal`] when the envelope cannot be read.
pub fn add_signatures(envelope: &[u8], signers: &[&SigningKey]) -> Result<Vec<u8>, Refusal> {
    let mut envelope = Envelope::from_bytes(envelope)?;
    let more = signatures(signers, &envelope.message());
    merge(&mut envelope.signatures, more);
    Ok(envelope.to_bytes())
}

/// Puts `more` among `all`, in the place of older ones of the same keys.
pub(crate) fn merge(all: &mut Vec<Signature>, more: Vec<Signature>) {
    all.retain(|s| more.iter().all(|m| m.key != s.key));
    all.extend(more);
    all.sort_unstable();
}
