//! Whom a device believes: the root document, its succession, revocations and permits. No decision here needs a clock.
//!
//! A device starts from a [`Root`] baked into its image. A newer root replaces it only if both the old and the new one's
//! root keys signed it, one version at a time. Revocations only grow. A permit allows one older version once.

use crate::cbor::{self, ascends};
use crate::keys::PublicKey;
use crate::limits::{
    MAX_DEVICE_ID, MAX_ENVELOPE_BYTES, MAX_ENVELOPE_SIGNATURES, MAX_NOTE, MAX_REVOKED_BUNDLES,
    MAX_REVOKED_KEYS, MAX_ROOT_KEYS,
};
use crate::{Bundle, Digest, Refusal};
use inferd_model::ModelName;
use minicbor::decode::{self, Decoder};
use minicbor::encode::{self, Encoder, Write};
use minicbor::{Decode, Encode};
use serde::Serialize;
use std::fmt;

/// What a key may sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
#[cbor(index_only)]
pub enum Role {
    /// The next root document.
    #[n(0)]
    Root,
    /// Bundles of models for every device, and permits.
    #[n(1)]
    ModelRelease,
    /// Bundles of models for devices that say they accept development.
    #[n(2)]
    ModelDev,
    /// Bundles of root filesystems. Reserved.
    #[n(3)]
    SystemRelease,
    /// Revocation lists.
    #[n(4)]
    Revocation,
}

impl Role {
    /// Every role, in the order of its number.
    pub const ALL: [Self; 5] =
        [Self::Root, Self::ModelRelease, Self::ModelDev, Self::SystemRelease, Self::Revocation];

    /// Its name: `root`, `model-release`, `model-dev`, `system-release` or `revocation`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::ModelRelease => "model-release",
            Self::ModelDev => "model-dev",
            Self::SystemRelease => "system-release",
            Self::Revocation => "revocation",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is not a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a role is root, model-release, model-dev, system-release or revocation")]
pub struct RoleError;

impl std::str::FromStr for Role {
    type Err = RoleError;
    fn from_str(text: &str) -> Result<Self, RoleError> {
        Self::ALL.into_iter().find(|r| r.name() == text).ok_or(RoleError)
    }
}

/// An ed25519 signature and who says to have made it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature {
    /// The id of the key: the digest of the public key.
    pub key: Digest,
    /// R and S.
    pub signature: [u8; 64],
}

impl Signature {
    pub(crate) fn from_record(record: &[u8; 96]) -> Self {
        let (key, signature) = record.split_at(32);
        Self {
            key: Digest(key.try_into().unwrap_or([0; 32])),
            signature: signature.try_into().unwrap_or([0; 64]),
        }
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", self.key)
    }
}

impl<C> Encode<C> for Signature {
    fn encode<W: Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.map(2)?.u8(0)?.bytes(&self.key.0)?.u8(1)?.bytes(&self.signature)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Signature {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        // Canonical form is compared afterwards; this only has to read it.
        let form = || decode::Error::message("a signature is a map of key (0) and signature (1)");
        if d.map()? != Some(2) || d.u8()? != 0 {
            return Err(form());
        }
        let key = Digest::decode(d, ctx)?;
        if d.u8()? != 1 {
            return Err(form());
        }
        let signature =
            d.bytes()?.try_into().map_err(|_| decode::Error::message("a signature is 64 bytes"))?;
        Ok(Self { key, signature })
    }
}

/// The message that a signature is over: what is signed, and the digest of it.
pub(crate) fn message(kind: &str, digest: Digest) -> Vec<u8> {
    let mut message = format!("inferd {kind} v1\0").into_bytes();
    message.extend_from_slice(&digest.0);
    message
}

/// A trust document and its signatures, as it travels.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
#[cbor(map)]
pub struct Envelope {
    /// Which document: `root`, `revocations` or `permit`.
    #[n(0)]
    pub kind: String,
    /// The document: canonical CBOR.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// Signatures, ascending by key.
    #[cbor(n(2), decode_with = "cbor::list::<_, _, MAX_ENVELOPE_SIGNATURES>")]
    pub signatures: Vec<Signature>,
}

impl Envelope {
    /// Reads an envelope; its signatures are not judged here.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::TrustForm`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_ENVELOPE_BYTES {
            let (len, max) = (bytes.len() as u64, MAX_ENVELOPE_BYTES as u64);
            return Err(Refusal::TooLarge { what: "the trust document", len, max });
        }
        let envelope: Self = cbor::from_bytes(bytes).map_err(Refusal::TrustForm)?;
        if !matches!(envelope.kind.as_str(), ROOT | REVOCATIONS | PERMIT) {
            return Err(Refusal::TrustForm(format!("there is no kind {:?}", short(&envelope.kind))));
        }
        if !ascends(envelope.signatures.iter().map(|s| s.key)) {
            return Err(Refusal::TrustForm("signatures ascend by key, each key once".to_owned()));
        }
        Ok(envelope)
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        cbor::to_bytes(self)
    }

    /// What its signatures are over.
    #[must_use]
    pub fn message(&self) -> Vec<u8> {
        message(&self.kind, Digest::of(&self.payload))
    }

    fn of_kind(bytes: &[u8], want: &'static str) -> Result<Self, Refusal> {
        let envelope = Self::from_bytes(bytes)?;
        if envelope.kind != want {
            return Err(Refusal::TrustKind { want, got: envelope.kind });
        }
        Ok(envelope)
    }

    fn document<T: for<'b> Decode<'b, ()> + Encode<()>>(&self) -> Result<T, Refusal> {
        cbor::from_bytes(&self.payload).map_err(Refusal::TrustForm)
    }
}

/// Kinds of envelopes.
pub(crate) const ROOT: &str = "root";
pub(crate) const REVOCATIONS: &str = "revocations";
pub(crate) const PERMIT: &str = "permit";

fn short(text: &str) -> String {
    text.chars().take(32).collect()
}

/// The root document: every key a device knows, and what each may sign.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct Root {
    /// Its number; each root follows the one before by 1.
    #[n(0)]
    pub version: u64,
    /// Every key, ascending by id.
    #[cbor(n(1), decode_with = "cbor::list::<_, _, MAX_ROOT_KEYS>")]
    pub keys: Vec<RootKey>,
    /// Who may do what, ascending by role.
    #[cbor(n(2), decode_with = "cbor::list::<_, _, 5>")]
    pub roles: Vec<RoleKeys>,
}

/// A key and what people know of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct RootKey {
    /// The key. Its id is the digest of these 32 bytes and stands nowhere: nothing can disagree with it.
    #[n(0)]
    pub public: PublicKey,
    /// Who holds it, or where.
    #[n(1)]
    pub note: String,
}

/// Who may sign in a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct RoleKeys {
    /// The role.
    #[n(0)]
    pub role: Role,
    /// How many of the keys must sign.
    #[n(1)]
    pub threshold: u32,
    /// Ids of the keys, ascending.
    #[cbor(n(2), decode_with = "cbor::list::<_, _, MAX_ROOT_KEYS>")]
    pub keys: Vec<Digest>,
}

impl Root {
    /// Reads a root that signed itself: the one a device starts from.
    ///
    /// # Errors
    /// [`Refusal`] when it is not a root, or its own root keys did not sign it.
    pub fn from_envelope(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = Envelope::of_kind(bytes, ROOT)?;
        let root: Self = envelope.document()?;
        root.check()?;
        root.judge(&[], Role::Root, &envelope.message(), &envelope.signatures)?;
        Ok(root)
    }

    /// Checks a root that is about to be signed.
    ///
    /// # Errors
    /// [`Refusal::TrustDocument`].
    pub fn check(&self) -> Result<(), Refusal> {
        let wrong = |why| Err(Refusal::TrustDocument { kind: ROOT, why });
        if self.version == 0 {
            return wrong("versions begin with 1");
        }
        if self.keys.len() > MAX_ROOT_KEYS || !ascends(self.keys.iter().map(|k| k.public.id())) {
            return wrong("at most 32 keys, ascending by id, each once");
        }
        if self.keys.iter().any(|k| k.note.len() > MAX_NOTE || k.note.chars().any(char::is_control)) {
            return wrong("a note is at most 128 bytes on one line");
        }
        if !ascends(self.roles.iter().map(|r| r.role)) || self.role(Role::Root).is_none() {
            return wrong("roles ascend, each once, and the role root is among them");
        }
        for role in &self.roles {
            if !ascends(role.keys.iter()) || role.keys.iter().any(|id| self.key(id).is_none()) {
                return wrong("the keys of a role ascend, each once, and are among the keys");
            }
            if role.threshold == 0 || role.threshold as usize > role.keys.len() {
                return wrong("the threshold of a role is between 1 and the number of its keys");
            }
        }
        Ok(())
    }

    /// The key of this id.
    #[must_use]
    pub fn key(&self, id: &Digest) -> Option<&RootKey> {
        self.keys.iter().find(|k| k.public.id() == *id)
    }

    /// Who may sign in a role.
    #[must_use]
    pub fn role(&self, role: Role) -> Option<&RoleKeys> {
        self.roles.iter().find(|r| r.role == role)
    }

    /// The ids of the keys that count, when they are enough.
    ///
    /// Every signature of a key this root knows must be right, whatever the key's role; others are not looked at.
    fn judge(
        &self,
        revoked: &[Digest],
        role: Role,
        message: &[u8],
        signatures: &[Signature],
    ) -> Result<Vec<Digest>, Refusal> {
        let holders = self.role(role).ok_or(Refusal::RoleUnassigned(role))?;
        let need = holders.threshold;
        if signatures.is_empty() {
            return Err(Refusal::Unsigned { role, need });
        }
        let (mut good, mut gone, mut other) = (Vec::new(), Vec::new(), Vec::new());
        for signature in signatures {
            let Some(key) = self.key(&signature.key) else { continue };
            if !key.public.verifies(message, &signature.signature) {
                return Err(Refusal::SignatureWrong(signature.key));
            }
            if revoked.binary_search(&signature.key).is_ok() {
                gone.push(signature.key);
            } else if holders.keys.binary_search(&signature.key).is_ok() {
                good.push(signature.key);
            } else {
                other.push(signature.key);
            }
        }
        let have = u32::try_from(good.len()).unwrap_or(u32::MAX);
        if have >= need {
            return Ok(good);
        }
        Err(if let Some(&key) = gone.first() {
            Refusal::KeyRevoked { key, role, have, need }
        } else if let Some(&key) = other.first() {
            Refusal::WrongRole { key, role, have, need }
        } else if have == 0 {
            Refusal::UnknownKeys
        } else {
            Refusal::BelowThreshold { role, have, need }
        })
    }
}

/// What is no longer believed. It applies to every role but `root`: root keys are replaced by the next root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct Revocations {
    /// Its number; only a higher one replaces it.
    #[n(0)]
    pub version: u64,
    /// Ids of keys, ascending.
    #[cbor(n(1), decode_with = "cbor::list::<_, _, MAX_REVOKED_KEYS>")]
    pub keys: Vec<Digest>,
    /// Ids of bundles, ascending.
    #[cbor(n(2), decode_with = "cbor::list::<_, _, MAX_REVOKED_BUNDLES>")]
    pub bundles: Vec<Digest>,
}

impl Revocations {
    /// Checks a list that is about to be signed.
    ///
    /// # Errors
    /// [`Refusal::TrustDocument`].
    pub fn check(&self) -> Result<(), Refusal> {
        let wrong = |why| Err(Refusal::TrustDocument { kind: "revocation list", why });
        if self.version == 0 {
            return wrong("versions begin with 1");
        }
        if self.keys.len() > MAX_REVOKED_KEYS || self.bundles.len() > MAX_REVOKED_BUNDLES {
            return wrong("at most 1024 keys and 4096 bundles");
        }
        if !ascends(self.keys.iter()) || !ascends(self.bundles.iter()) {
            return wrong("ids ascend, each once");
        }
        Ok(())
    }

    fn contains_all(&self, older: &Self) -> bool {
        older.keys.iter().all(|k| self.keys.binary_search(k).is_ok())
            && older.bundles.iter().all(|b| self.bundles.binary_search(b).is_ok())
    }
}

/// Leave to install one version below the floor, once, on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Encode, Decode)]
#[cbor(map)]
pub struct Permit {
    /// The device's id.
    #[n(0)]
    pub device: String,
    /// The product.
    #[cbor(n(1), with = "cbor::name")]
    pub product: ModelName,
    /// The version that is allowed, and no other.
    #[n(2)]
    pub version: u64,
    /// Its number. It must exceed the last one used on the device, so that a permit serves once.
    #[n(3)]
    pub nonce: u64,
}

impl Permit {
    /// Checks a permit that is about to be signed.
    ///
    /// # Errors
    /// [`Refusal::TrustDocument`].
    pub fn check(&self) -> Result<(), Refusal> {
        let wrong = |why| Err(Refusal::TrustDocument { kind: PERMIT, why });
        if self.device.is_empty()
            || self.device.len() > MAX_DEVICE_ID
            || !self.device.bytes().all(|b| b.is_ascii_graphic())
        {
            return wrong("a device id is 1 to 128 printable characters without spaces");
        }
        if self.nonce == 0 {
            return wrong("numbers begin with 1");
        }
        Ok(())
    }
}

/// Who authorised a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Authorized {
    /// The role that signed.
    pub role: Role,
    /// Ids of the keys that count, ascending.
    pub keys: Vec<Digest>,
    /// How many were needed.
    pub threshold: u32,
    /// The root by which it was judged.
    pub root: u64,
    /// The revocation list by which it was judged; 0: none.
    pub revocations: u64,
}

/// Whom a device believes now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    root: Root,
    revocations: Revocations,
    allow_dev: bool,
}

impl Trust {
    /// Trust in a root and what follows it. `allow_dev`: bundles signed in the role `model-dev` are accepted too.
    #[must_use]
    pub fn new(root: Root, allow_dev: bool) -> Self {
        Self { root, revocations: Revocations::default(), allow_dev }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// The root's version.
    #[must_use]
    pub fn root_version(&self) -> u64 {
        self.root.version
    }

    /// What was revoked.
    #[must_use]
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// The version of the revocation list; 0: none.
    #[must_use]
    pub fn revocation_version(&self) -> u64 {
        self.revocations.version
    }

    /// Whether bundles signed for development are accepted.
    #[must_use]
    pub fn allows_dev(&self) -> bool {
        self.allow_dev
    }

    /// Takes the next root: one version higher, signed by the root keys of this root and by its own.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn rotate(&mut self, envelope: &[u8]) -> Result<(), Refusal> {
        let opened = Envelope::of_kind(envelope, ROOT)?;
        let next: Root = opened.document()?;
        next.check()?;
        let (have, got) = (self.root.version, next.version);
        if got <= have {
            return Err(Refusal::RootReplayed { have, got });
        }
        if got - have > 1 {
            return Err(Refusal::RootSkipped { have, got });
        }
        let message = opened.message();
        self.root.judge(&[], Role::Root, &message, &opened.signatures)?;
        next.judge(&[], Role::Root, &message, &opened.signatures)?;
        self.root = next;
        Ok(())
    }

    /// Takes a newer revocation list, signed in the role `revocation` by keys that are not revoked.
    ///
    /// # Errors
    /// [`Refusal`]; nothing has changed then.
    pub fn revoke(&mut self, envelope: &[u8]) -> Result<(), Refusal> {
        let opened = Envelope::of_kind(envelope, REVOCATIONS)?;
        let next: Revocations = opened.document()?;
        next.check()?;
        self.root.judge(&self.revocations.keys, Role::Revocation, &opened.message(), &opened.signatures)?;
        let (have, got) = (self.revocations.version, next.version);
        if got <= have {
            return Err(Refusal::RevocationsReplayed { have, got });
        }
        if !next.contains_all(&self.revocations) {
            return Err(Refusal::RevocationsShrunk);
        }
        self.revocations = next;
        Ok(())
    }

    /// Takes a root or a revocation list, whichever it is; its kind comes back.
    ///
    /// # Errors
    /// As [`Trust::rotate`] and [`Trust::revoke`]; [`Refusal::TrustKind`] for a permit, which is judged by [`Trust::permit`].
    pub fn accept(&mut self, envelope: &[u8]) -> Result<&'static str, Refusal> {
        match Envelope::from_bytes(envelope)?.kind.as_str() {
            REVOCATIONS => self.revoke(envelope).map(|()| REVOCATIONS),
            _ => self.rotate(envelope).map(|()| ROOT),
        }
    }

    /// Judges a permit for this device: signed in the role `model-release`, its number above the last one used.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn permit(&self, envelope: &[u8], device: &str, last_nonce: u64) -> Result<Permit, Refusal> {
        let opened = Envelope::of_kind(envelope, PERMIT)?;
        let permit: Permit = opened.document()?;
        permit.check()?;
        self.root.judge(&self.revocations.keys, Role::ModelRelease, &opened.message(), &opened.signatures)?;
        if permit.device != device {
            return Err(Refusal::PermitDevice(permit.device));
        }
        if permit.nonce <= last_nonce {
            return Err(Refusal::PermitReplayed { got: permit.nonce, last: last_nonce });
        }
        Ok(permit)
    }

    pub(crate) fn authorize(&self, bundle: &Bundle) -> Result<Authorized, Refusal> {
        let role = bundle.manifest().role;
        if role == Role::ModelDev && !self.allow_dev {
            return Err(Refusal::DevRole);
        }
        let message = message("bundle", bundle.id());
        let keys = self.root.judge(&self.revocations.keys, role, &message, bundle.signatures())?;
        if self.revocations.bundles.binary_search(&bundle.id()).is_ok() {
            return Err(Refusal::BundleRevoked(bundle.id()));
        }
        Ok(Authorized {
            role,
            keys,
            threshold: self.root.role(role).map_or(0, |r| r.threshold),
            root: self.root.version,
            revocations: self.revocations.version,
        })
    }
}
