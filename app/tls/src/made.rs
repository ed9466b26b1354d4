//! The certificate a device makes for itself.

use crate::TlsError;
use crate::provider::{new_p256, sign_p256};
use p256::ecdsa::SigningKey;
use p256::elliptic_curve::sec1::ToSec1Point as _;
use p256::pkcs8::EncodePrivateKey as _;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyIdMethod, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use std::net::IpAddr;

/// A key and its certificate, in PEM.
pub struct Made {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS #8.
    pub key: String,
}

struct Own {
    key: SigningKey,
    point: Vec<u8>,
}

impl PublicKeyData for Own {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Own {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(sign_p256(&self.key, message))
    }
}

/// A new ECDSA P-256 key with a certificate it signs itself, for these names and addresses; what is neither is left out.
/// It is good from 2020 to 2120: a device without a clock that is right must be able to use it, and so must its clients.
///
/// # Errors
/// [`TlsError`].
pub fn made(names: &[String]) -> Result<Made, TlsError> {
    let refused = |e: rcgen::Error| TlsError::Refused(e.to_string());
    let secret = new_p256().map_err(|_| TlsError::NoRandomness)?;
    let key = secret
        .to_pkcs8_pem(p256::pkcs8::LineEnding::LF)
        .map_err(|e| TlsError::Refused(e.to_string()))?
        .to_string();
    let own = Own { point: secret.public_key().to_sec1_point(false).as_bytes().to_vec(), key: secret.into() };
    let mut params = CertificateParams::default();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|_| TlsError::NoRandomness)?;
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    // 64 characters is the most a common name may have (X.520).
    let first = names.first().map_or("inferd", String::as_str);
    params.distinguished_name.push(DnType::CommonName, first.chars().take(64).collect::<String>());
    for name in names {
        let alternative = match name.parse::<IpAddr>() {
            Ok(address) => Some(SanType::IpAddress(address)),
            Err(_) if is_host(name) => name.clone().try_into().ok().map(SanType::DnsName),
            Err(_) => None,
        };
        params.subject_alt_names.extend(alternative);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_identifier_method = KeyIdMethod::PreSpecified(serial.to_vec());
    let certificate = params.self_signed(&own).map_err(refused)?;
    Ok(Made { certificate: pem("CERTIFICATE", certificate.der()), key })
}

/// Whether this is a host name: letters, digits and hyphens, in parts of at most 63 with dots between.
fn is_host(name: &str) -> bool {
    let part = |p: &str| {
        (1..=63).contains(&p.len())
            && !p.starts_with('-')
            && !p.ends_with('-')
            && p.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

fn pem(label: &str, der: &[u8]) -> String {
    let label = label.to_owned();
    p256::pkcs8::der::pem::encode_string(&label, p256::pkcs8::LineEnding::LF, der).unwrap_or_default()
}
