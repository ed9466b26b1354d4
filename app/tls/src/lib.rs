//! TLS 1.2 and 1.3 without C.
//!
//! rustls speaks the protocol; what it needs of cryptography comes from RustCrypto (`provider`), because a static musl binary
//! is built here for two architectures without a C cross compiler: `ring` and `aws-lc-rs` need one, `rustls-graviola` needs AES
//! instructions that a Raspberry Pi 4 does not have, and `rustls-rustcrypto` is an alpha over older releases of the same crates.
//!
//! * [`Identity`]: a certificate and its key, ready to serve, and the fingerprint it is known by.
//! * [`made`]: a key and a self-signed certificate, with no dependence on a clock.
//! * [`client`]: how a client knows its device: by fingerprint, or by the certificate of who signed.
//!
//! Keys are ECDSA P-256 or Ed25519, of servers as of who signs for them: RSA would bring a library with an open advisory
//! (RUSTSEC-2023-0071). No client certificates, no early data.

#![forbid(unsafe_code)]

mod made;
mod provider;
mod trust;

pub use made::{Made, made};
pub use rustls;
pub use trust::{Trust, client};

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The largest file of certificates or keys that is read: a chain of four is 8 KiB.
pub const MAX_PEM: u64 = 256 << 10;

/// Why there is no TLS; one sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// There is no certificate in the file.
    #[error("it holds no certificate in PEM (-----BEGIN CERTIFICATE-----)")]
    NoCertificate,
    /// There is no key in the file.
    #[error("it holds no private key in PEM (-----BEGIN PRIVATE KEY----- or -----BEGIN EC PRIVATE KEY-----)")]
    NoKey,
    /// What is between the lines of PEM cannot be read.
    #[error("its PEM cannot be read: {0}")]
    Pem(String),
    /// rustls does not take them.
    #[error("certificate and key cannot be used: {0}")]
    Refused(String),
    /// The kernel gave no random numbers.
    #[error("no key can be made: the kernel gives no random numbers")]
    NoRandomness,
}

/// SHA-256 of a certificate in DER: what `openssl x509 -fingerprint -sha256` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// 64 hex digits, with colons between the bytes or without.
impl std::str::FromStr for Fingerprint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let why = "a SHA-256 fingerprint is 64 hex digits, with colons or without";
        let digits: Option<Vec<u32>> = text.chars().filter(|c| *c != ':').map(|c| c.to_digit(16)).collect();
        let bytes: Result<Vec<u8>, _> =
            digits.ok_or(why)?.chunks(2).map(|p| u8::try_from(p.iter().fold(0, |n, d| n << 4 | d))).collect();
        let even = text.chars().filter(|c| *c != ':').count() == 64;
        bytes.ok().and_then(|b| b.try_into().ok()).filter(|_| even).map(Self).ok_or(why)
    }
}

/// The one provider of this process.
fn crypto() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(provider::provider())).clone()
}

/// A certificate with its key, ready to serve.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For rustls.
    pub config: Arc<ServerConfig>,
    /// Of the first certificate, the device's own.
    pub fingerprint: Fingerprint,
}

impl Identity {
    /// From PEM: certificates, the device's own first, and its private key.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(certificates).collect::<Result<_, _>>().map_err(unreadable)?;
        let fingerprint = chain.first().map(Fingerprint::of).ok_or(TlsError::NoCertificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| match e {
            PemError::NoItemsFound => TlsError::NoKey,
            other => unreadable(other),
        })?;
        let refused = |e: rustls::Error| TlsError::Refused(e.to_string());
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(refused)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // ChaCha20 is the first of ours, and the quickest on boards without AES instructions.
        config.ignore_client_order = true;
        Ok(Self { config: Arc::new(config), fingerprint })
    }
}

fn unreadable(error: PemError) -> TlsError {
    TlsError::Pem(error.to_string())
}

#[cfg(test)]
mod tests;
