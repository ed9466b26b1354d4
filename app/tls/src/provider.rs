//! What rustls asks of cryptography, answered by RustCrypto: two AEADs, two key exchanges, two signatures, SHA-256.
//!
//! Nothing here computes: each type hands bytes from the one library's form to the other's. Where rustls has the protocol's
//! part (HKDF, the PRF of TLS 1.2, nonces, additional data, X.509), it is rustls that does it.

use aes_gcm::Aes128Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit, Nonce as AeadNonce, Tag as AeadTag};
use chacha20poly1305::ChaCha20Poly1305;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::{Signer as _, Verifier as _};
use hmac::{Hmac as HmacOf, Mac as _};
use p256::ecdsa;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, KeyBlockShape, MessageDecrypter,
    MessageEncrypter, NONCE_LEN, Nonce, OutboundOpaqueMessage, OutboundPlainMessage, PrefixedPayload,
    Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError, make_tls12_aad, make_tls13_aad,
};
use rustls::crypto::tls12::PrfUsingHmac;
use rustls::crypto::tls13::HkdfUsingHmac;
use rustls::crypto::{
    ActiveKeyExchange, CipherSuiteCommon, CryptoProvider, GetRandomFailed, KeyExchangeAlgorithm, KeyProvider,
    SecureRandom, SharedSecret, SupportedKxGroup, WebPkiSupportedAlgorithms, hash, hmac as tls_hmac,
};
use rustls::pki_types::{
    AlgorithmIdentifier, InvalidSignature, PrivateKeyDer, SignatureVerificationAlgorithm,
    SubjectPublicKeyInfoDer, alg_id,
};
use rustls::sign::{Signer, SigningKey};
use rustls::{
    CipherSuite, ConnectionTrafficSecrets, ContentType, Error, NamedGroup, PeerMisbehaved, ProtocolVersion,
    SignatureAlgorithm, SignatureScheme, SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The provider. ChaCha20 comes first: it is as quick on a Cortex-A72, which has no AES instructions, as elsewhere. A server keeps to
/// this order whatever its client prefers ([`Identity`](crate::Identity) says so to rustls); a client offers it.
pub fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            SupportedCipherSuite::Tls13(&TLS13_CHACHA20),
            SupportedCipherSuite::Tls13(&TLS13_AES_128),
            SupportedCipherSuite::Tls12(&TLS12_CHACHA20),
            SupportedCipherSuite::Tls12(&TLS12_AES_128),
        ],
        kx_groups: vec![&X25519, &Secp256r1],
        signature_verification_algorithms: VERIFIED,
        secure_random: &Kernel,
        key_provider: &Keys,
    }
}

// ------------------------------------------------------------------------------------------------------------- suites

const fn common(suite: CipherSuite, confidentiality_limit: u64) -> CipherSuiteCommon {
    CipherSuiteCommon { suite, hash_provider: &Sha, confidentiality_limit }
}

/// Records under one AES-GCM key (RFC 8446, 5.5): rustls changes the key before, and in TLS 1.2, which cannot, ends the connection.
const GCM_RECORDS: u64 = 1 << 24;
const SCHEMES: &[SignatureScheme] = &[SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256];

static TLS13_CHACHA20: Tls13CipherSuite = Tls13CipherSuite {
    common: common(CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, u64::MAX),
    hkdf_provider: &HkdfUsingHmac(&HmacSha256),
    aead_alg: &Aead::<ChaCha20Poly1305>(PhantomData),
    quic: None,
};
static TLS13_AES_128: Tls13CipherSuite = Tls13CipherSuite {
    common: common(CipherSuite::TLS13_AES_128_GCM_SHA256, GCM_RECORDS),
    hkdf_provider: &HkdfUsingHmac(&HmacSha256),
    aead_alg: &Aead::<Aes128Gcm>(PhantomData),
    quic: None,
};
static TLS12_CHACHA20: Tls12CipherSuite = Tls12CipherSuite {
    common: common(CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, u64::MAX),
    kx: KeyExchangeAlgorithm::ECDHE,
    sign: SCHEMES,
    aead_alg: &Aead::<ChaCha20Poly1305>(PhantomData),
    prf_provider: &PrfUsingHmac(&HmacSha256),
};
static TLS12_AES_128: Tls12CipherSuite = Tls12CipherSuite {
    common: common(CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, GCM_RECORDS),
    kx: KeyExchangeAlgorithm::ECDHE,
    sign: SCHEMES,
    aead_alg: &Aead::<Aes128Gcm>(PhantomData),
    prf_provider: &PrfUsingHmac(&HmacSha256),
};

// -------------------------------------------------------------------------------------------------------------- AEADs

/// Both AEADs have tags of this length.
const TAG: usize = 16;
/// The part of a nonce that AES-GCM sends along in TLS 1.2.
const EXPLICIT: usize = 8;
/// The most a record may hold (RFC 8446, 5.1).
const FRAGMENT: usize = 1 << 14;

/// An AEAD of RustCrypto.
struct Aead<A>(PhantomData<fn() -> A>);

/// What differs between the two.
trait Cipher: AeadInOut + KeyInit + Send + Sync + 'static {
    const KEY: usize;
    /// Bytes of the nonce that each record of TLS 1.2 carries.
    const EXPLICIT_12: usize;
    fn secrets(key: AeadKey, iv: Iv) -> ConnectionTrafficSecrets;
}

impl Cipher for Aes128Gcm {
    const KEY: usize = 16;
    const EXPLICIT_12: usize = EXPLICIT;
    fn secrets(key: AeadKey, iv: Iv) -> ConnectionTrafficSecrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    }
}

impl Cipher for ChaCha20Poly1305 {
    const KEY: usize = 32;
    const EXPLICIT_12: usize = 0;
    fn secrets(key: AeadKey, iv: Iv) -> ConnectionTrafficSecrets {
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }
    }
}

/// A cipher with its key: rustls hands over keys of the length it was told.
fn keyed<A: Cipher>(key: &AeadKey) -> A {
    A::new_from_slice(key.as_ref()).expect("rustls keeps to the key length it is told")
}

/// Encrypts `data` in place.
fn seal<A: Cipher>(
    cipher: &A,
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    data: &mut [u8],
) -> Result<AeadTag<A>, Error> {
    let nonce = AeadNonce::<A>::try_from(&nonce[..]).map_err(|_| Error::EncryptError)?;
    cipher.encrypt_inout_detached(&nonce, aad, data.into()).map_err(|_| Error::EncryptError)
}

/// Decrypts `data`, which ends with its tag, in place; the length of what it was.
fn open<A: Cipher>(cipher: &A, nonce: &[u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<usize, Error> {
    let plain = data.len().checked_sub(TAG).ok_or(Error::DecryptError)?;
    let (data, tag) = data.split_at_mut(plain);
    let tag = AeadTag::<A>::try_from(&tag[..]).map_err(|_| Error::DecryptError)?;
    let nonce = AeadNonce::<A>::try_from(&nonce[..]).map_err(|_| Error::DecryptError)?;
    cipher.decrypt_inout_detached(&nonce, aad, data.into(), &tag).map_err(|_| Error::DecryptError)?;
    Ok(plain)
}

impl<A: Cipher> Tls13AeadAlgorithm for Aead<A> {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        Box::new(Tls13 { cipher: keyed::<A>(&key), iv })
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Tls13 { cipher: keyed::<A>(&key), iv })
    }

    fn key_len(&self) -> usize {
        A::KEY
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        Ok(A::secrets(key, iv))
    }
}

struct Tls13<A> {
    cipher: A,
    iv: Iv,
}

impl<A: Cipher> MessageEncrypter for Tls13<A> {
    fn encrypt(&mut self, msg: OutboundPlainMessage<'_>, seq: u64) -> Result<OutboundOpaqueMessage, Error> {
        let total = self.encrypted_payload_len(msg.payload.len());
        let mut payload = PrefixedPayload::with_capacity(total);
        payload.extend_from_chunks(&msg.payload);
        payload.extend_from_slice(&msg.typ.to_array());
        let nonce = Nonce::new(&self.iv, seq);
        let tag = seal(&self.cipher, &nonce.0, &make_tls13_aad(total), payload.as_mut())?;
        payload.extend_from_slice(&tag);
        Ok(OutboundOpaqueMessage::new(ContentType::ApplicationData, ProtocolVersion::TLSv1_2, payload))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        payload_len + 1 + TAG
    }
}

impl<A: Cipher> MessageDecrypter for Tls13<A> {
    fn decrypt<'a>(
        &mut self,
        mut msg: InboundOpaqueMessage<'a>,
        seq: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let nonce = Nonce::new(&self.iv, seq);
        let aad = make_tls13_aad(msg.payload.len());
        let plain = open(&self.cipher, &nonce.0, &aad, &mut msg.payload)?;
        msg.payload.truncate(plain);
        msg.into_tls13_unpadded_message()
    }
}

impl<A: Cipher> Tls12AeadAlgorithm for Aead<A> {
    fn encrypter(&self, key: AeadKey, iv: &[u8], explicit: &[u8]) -> Box<dyn MessageEncrypter> {
        // The 4 secret bytes and the 8 that are sent (AES-GCM), or all 12 secret (ChaCha20).
        let mut whole = [0; NONCE_LEN];
        let (secret, sent) = whole.split_at_mut(NONCE_LEN - A::EXPLICIT_12);
        secret.copy_from_slice(iv);
        sent.copy_from_slice(&explicit[..A::EXPLICIT_12]);
        Box::new(Tls12 { cipher: keyed::<A>(&key), iv: Iv::new(whole) })
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        let mut whole = [0; NONCE_LEN];
        whole[..NONCE_LEN - A::EXPLICIT_12].copy_from_slice(iv);
        Box::new(Tls12 { cipher: keyed::<A>(&key), iv: Iv::new(whole) })
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        KeyBlockShape {
            enc_key_len: A::KEY,
            fixed_iv_len: NONCE_LEN - A::EXPLICIT_12,
            explicit_nonce_len: A::EXPLICIT_12,
        }
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: &[u8],
        explicit: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        let mut whole = [0; NONCE_LEN];
        let (secret, sent) = whole.split_at_mut(NONCE_LEN - A::EXPLICIT_12);
        secret.copy_from_slice(iv);
        sent.copy_from_slice(&explicit[..A::EXPLICIT_12]);
        Ok(A::secrets(key, Iv::new(whole)))
    }
}

struct Tls12<A> {
    cipher: A,
    iv: Iv,
}

impl<A: Cipher> MessageEncrypter for Tls12<A> {
    fn encrypt(&mut self, msg: OutboundPlainMessage<'_>, seq: u64) -> Result<OutboundOpaqueMessage, Error> {
        let mut payload = PrefixedPayload::with_capacity(self.encrypted_payload_len(msg.payload.len()));
        // The bytes that are sent are xored with the number of the record: no nonce comes twice under a key.
        let nonce = Nonce::new(&self.iv, seq);
        let aad = make_tls12_aad(seq, msg.typ, msg.version, msg.payload.len());
        payload.extend_from_slice(&nonce.0[NONCE_LEN - A::EXPLICIT_12..]);
        payload.extend_from_chunks(&msg.payload);
        let tag = seal(&self.cipher, &nonce.0, &aad, &mut payload.as_mut()[A::EXPLICIT_12..])?;
        payload.extend_from_slice(&tag);
        Ok(OutboundOpaqueMessage::new(msg.typ, msg.version, payload))
    }

    fn encrypted_payload_len(&self, payload_len: usize) -> usize {
        A::EXPLICIT_12 + payload_len + TAG
    }
}

impl<A: Cipher> MessageDecrypter for Tls12<A> {
    fn decrypt<'a>(
        &mut self,
        mut msg: InboundOpaqueMessage<'a>,
        seq: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let explicit = A::EXPLICIT_12;
        let length = msg.payload.len().checked_sub(explicit + TAG).ok_or(Error::DecryptError)?;
        let mut nonce = Nonce::new(&self.iv, seq).0;
        if explicit > 0 {
            nonce = Nonce::new(&self.iv, 0).0;
            nonce[NONCE_LEN - explicit..].copy_from_slice(&msg.payload[..explicit]);
        }
        let aad = make_tls12_aad(seq, msg.typ, msg.version, length);
        let plain = open(&self.cipher, &nonce, &aad, &mut msg.payload[explicit..])?;
        if plain > FRAGMENT {
            return Err(Error::PeerSentOversizedRecord);
        }
        msg.payload.copy_within(explicit..explicit + plain, 0);
        msg.payload.truncate(plain);
        Ok(msg.into_plain_message())
    }
}

// -------------------------------------------------------------------------------------------------------------- hashes

struct Sha;

impl hash::Hash for Sha {
    fn start(&self) -> Box<dyn hash::Context> {
        Box::new(Hashing(Sha256::new()))
    }
    fn hash(&self, data: &[u8]) -> hash::Output {
        hash::Output::new(&Sha256::digest(data))
    }
    fn output_len(&self) -> usize {
        32
    }
    fn algorithm(&self) -> hash::HashAlgorithm {
        hash::HashAlgorithm::SHA256
    }
}

struct Hashing(Sha256);

impl hash::Context for Hashing {
    fn fork_finish(&self) -> hash::Output {
        hash::Output::new(&self.0.clone().finalize())
    }
    fn fork(&self) -> Box<dyn hash::Context> {
        Box::new(Self(self.0.clone()))
    }
    fn finish(self: Box<Self>) -> hash::Output {
        hash::Output::new(&self.0.finalize())
    }
    fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }
}

struct HmacSha256;

impl tls_hmac::Hmac for HmacSha256 {
    fn with_key(&self, key: &[u8]) -> Box<dyn tls_hmac::Key> {
        Box::new(HmacKey(HmacOf::new_from_slice(key).expect("HMAC takes keys of any length")))
    }
    fn hash_output_len(&self) -> usize {
        32
    }
}

struct HmacKey(HmacOf<Sha256>);

impl tls_hmac::Key for HmacKey {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> tls_hmac::Tag {
        let mut mac = self.0.clone();
        mac.update(first);
        middle.iter().for_each(|part| mac.update(part));
        mac.update(last);
        tls_hmac::Tag::new(&mac.finalize().into_bytes())
    }
    fn tag_len(&self) -> usize {
        32
    }
}

// -------------------------------------------------------------------------------------------------------- key exchange

#[derive(Debug)]
struct X25519;
#[derive(Debug)]
struct Secp256r1;

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, GetRandomFailed> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|_| GetRandomFailed)?;
    Ok(bytes)
}

fn misbehaved() -> Error {
    PeerMisbehaved::InvalidKeyShare.into()
}

impl SupportedKxGroup for X25519 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let secret = x25519_dalek::StaticSecret::from(*random::<32>()?);
        let public = x25519_dalek::PublicKey::from(&secret);
        Ok(Box::new(X25519Exchange { secret, public }))
    }
    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct X25519Exchange {
    secret: x25519_dalek::StaticSecret,
    public: x25519_dalek::PublicKey,
}

impl ActiveKeyExchange for X25519Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer: [u8; 32] = peer.try_into().map_err(|_| misbehaved())?;
        let shared = self.secret.diffie_hellman(&peer.into());
        // RFC 8446, 7.4.2: an all-zero secret ends the handshake.
        if shared.was_contributory() {
            Ok(SharedSecret::from(&shared.as_bytes()[..]))
        } else {
            Err(misbehaved())
        }
    }
    fn pub_key(&self) -> &[u8] {
        self.public.as_bytes()
    }
    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

/// A new key of P-256. A random number is none with a chance of 2^-32, so it is drawn again.
pub(crate) fn new_p256() -> Result<p256::SecretKey, GetRandomFailed> {
    loop {
        if let Ok(key) = p256::SecretKey::from_slice(&*random::<32>()?) {
            return Ok(key);
        }
    }
}

impl SupportedKxGroup for Secp256r1 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let secret = new_p256()?;
        let public = secret.public_key().to_sec1_point(false).as_bytes().to_vec();
        Ok(Box::new(P256Exchange { secret, public }))
    }
    fn name(&self) -> NamedGroup {
        NamedGroup::secp256r1
    }
}

struct P256Exchange {
    secret: p256::SecretKey,
    public: Vec<u8>,
}

impl ActiveKeyExchange for P256Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        // TLS has no other form of a point than the uncompressed one; that it is on the curve is checked by the library.
        if peer.first() != Some(&4) {
            return Err(misbehaved());
        }
        let peer = p256::PublicKey::from_sec1_bytes(peer).map_err(|_| misbehaved())?;
        let shared = p256::ecdh::diffie_hellman(self.secret.to_nonzero_scalar(), peer.as_affine());
        Ok(SharedSecret::from(&shared.raw_secret_bytes()[..]))
    }
    fn pub_key(&self) -> &[u8] {
        &self.public
    }
    fn group(&self) -> NamedGroup {
        NamedGroup::secp256r1
    }
}

// ---------------------------------------------------------------------------------------------------------- signatures

static VERIFIED: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
    all: &[&VerifyP256, &VerifyEd25519],
    mapping: &[
        (SignatureScheme::ECDSA_NISTP256_SHA256, &[&VerifyP256]),
        (SignatureScheme::ED25519, &[&VerifyEd25519]),
    ],
};

#[derive(Debug)]
struct VerifyP256;

impl SignatureVerificationAlgorithm for VerifyP256 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = ecdsa::VerifyingKey::from_sec1_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = ecdsa::Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify(message, &signature).map_err(|_| InvalidSignature)
    }
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }
    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA256
    }
}

#[derive(Debug)]
struct VerifyEd25519;

impl SignatureVerificationAlgorithm for VerifyEd25519 {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = key.try_into().map_err(|_| InvalidSignature)?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(key).map_err(|_| InvalidSignature)?;
        let signature = ed25519_dalek::Signature::from_slice(signature).map_err(|_| InvalidSignature)?;
        key.verify_strict(message, &signature).map_err(|_| InvalidSignature)
    }
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED25519
    }
    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED25519
    }
}

#[derive(Debug)]
struct Keys;

impl KeyProvider for Keys {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let (sec1, pkcs8) = match &key {
            PrivateKeyDer::Sec1(der) => (Some(der.secret_sec1_der()), None),
            PrivateKeyDer::Pkcs8(der) => (None, Some(der.secret_pkcs8_der())),
            _ => (None, None),
        };
        if let Some(key) = sec1.and_then(|der| p256::SecretKey::from_sec1_der(der).ok()) {
            return Ok(Arc::new(P256Key(Arc::new(key.into()))));
        }
        if let Some(der) = pkcs8 {
            if let Ok(key) = p256::SecretKey::from_pkcs8_der(der) {
                return Ok(Arc::new(P256Key(Arc::new(key.into()))));
            }
            if let Ok(key) = ed25519_dalek::SigningKey::from_pkcs8_der(der) {
                return Ok(Arc::new(Ed25519Key(Arc::new(key))));
            }
        }
        Err(Error::General("this is no private key of the kinds ECDSA P-256 and Ed25519".to_owned()))
    }
}

#[derive(Clone)]
struct P256Key(Arc<ecdsa::SigningKey>);
#[derive(Clone)]
struct Ed25519Key(Arc<ed25519_dalek::SigningKey>);

impl fmt::Debug for P256Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("P256Key")
    }
}

impl fmt::Debug for Ed25519Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ed25519Key")
    }
}

impl SigningKey for P256Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.scheme()).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        let point = self.0.verifying_key().to_sec1_point(false);
        Some(rustls::sign::public_key_to_spki(&alg_id::ECDSA_P256, point.as_bytes()))
    }
    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for P256Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(sign_p256(&self.0, message))
    }
    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// An ECDSA signature (RFC 6979: it needs no randomness) over SHA-256, as ASN.1 has it.
pub(crate) fn sign_p256(key: &ecdsa::SigningKey, message: &[u8]) -> Vec<u8> {
    let signature: ecdsa::Signature = key.sign(message);
    signature.to_der().as_bytes().to_vec()
}

impl SigningKey for Ed25519Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.scheme()).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(rustls::sign::public_key_to_spki(&alg_id::ED25519, self.0.verifying_key().as_bytes()))
    }
    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Ed25519Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

// ---------------------------------------------------------------------------------------------------------- randomness

#[derive(Debug)]
struct Kernel;

impl SecureRandom for Kernel {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        getrandom::fill(buffer).map_err(|_| GetRandomFailed)
    }
}
