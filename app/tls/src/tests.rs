use super::*;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite as S, ClientConfig, ClientConnection, ServerConnection, SupportedProtocolVersion};
use std::io::{Read as _, Write as _};

fn names() -> Vec<String> {
    ["box-7", "box-7.local", "localhost", "127.0.0.1", "::1", "not a name!"].map(str::to_owned).to_vec()
}

fn identity() -> (Made, Identity) {
    let made = made(&names()).unwrap();
    let identity = Identity::from_pem(made.certificate.as_bytes(), made.key.as_bytes()).unwrap();
    (made, identity)
}

/// Moves everything one side has to say to the other; the first error of the receiver.
fn carry(
    from: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<impl rustls::SideData>>,
    to: &mut impl std::ops::DerefMut<Target = rustls::ConnectionCommon<impl rustls::SideData>>,
    harm: &mut dyn FnMut(&mut Vec<u8>),
) -> Result<bool, rustls::Error> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).unwrap();
    }
    let moved = !wire.is_empty();
    harm(&mut wire);
    let mut rest = &wire[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets()?;
    }
    Ok(moved)
}

fn talk(server: &Identity, client: Arc<ClientConfig>, name: &str) -> Result<(), rustls::Error> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server.config.clone()).unwrap();
    let nothing = &mut |_: &mut Vec<u8>| {};
    while carry(&mut client, &mut server, nothing)? | carry(&mut server, &mut client, nothing)? {}
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(server.alpn_protocol(), Some(&b"http/1.1"[..]));
    // Many records each way, some of the largest size, some of one byte.
    for size in [1, 100, 16_384, 16_385, 70_000] {
        let text: Vec<u8> = (0..size).map(|n| u8::try_from(n % 251).unwrap()).collect();
        for way in 0..2 {
            let mut got = vec![0; size];
            let mut at = 0;
            let mut left = &text[..];
            while at < size {
                let piece = &left[..left.len().min(16_384)];
                let sent = if way == 0 { client.writer().write(piece) } else { server.writer().write(piece) };
                left = &left[sent.unwrap()..];
                let read = if way == 0 {
                    carry(&mut client, &mut server, nothing)?;
                    server.reader().read(&mut got[at..])
                } else {
                    carry(&mut server, &mut client, nothing)?;
                    client.reader().read(&mut got[at..])
                };
                at += read.unwrap();
            }
            assert_eq!(got, text);
        }
    }
    Ok(())
}

/// A client of one version, one suite and one group.
fn only(
    made: &Made,
    version: &'static SupportedProtocolVersion,
    suite: rustls::CipherSuite,
    group: rustls::NamedGroup,
) -> Arc<ClientConfig> {
    let mut provider = provider::provider();
    provider.cipher_suites.retain(|s| s.suite() == suite);
    provider.kx_groups.retain(|g| g.name() == group);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// Every suite there is, with its version.
const SUITES: [(&SupportedProtocolVersion, S); 4] = [
    (&TLS13, S::TLS13_CHACHA20_POLY1305_SHA256),
    (&TLS13, S::TLS13_AES_128_GCM_SHA256),
    (&TLS12, S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    (&TLS12, S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
];

#[test]
fn every_suite_and_group_of_both_versions_carries_data_both_ways() {
    let (made, identity) = identity();
    for (version, suite) in SUITES {
        for group in [rustls::NamedGroup::X25519, rustls::NamedGroup::secp256r1] {
            talk(&identity, only(&made, version, suite, group), "box-7.local").unwrap();
        }
    }
}

#[test]
fn a_client_takes_the_certificate_it_knows_and_no_other() {
    let (made, right) = identity();
    let (_, other) = identity();
    let by_fingerprint = client(Trust::Fingerprint(right.fingerprint)).unwrap();
    talk(&right, by_fingerprint.clone(), "10.0.0.9").unwrap();
    assert!(talk(&other, by_fingerprint, "10.0.0.9").is_err());
    let by_signer = client(Trust::Signers(made.certificate.clone().into_bytes())).unwrap();
    for name in ["box-7", "box-7.local", "localhost", "127.0.0.1"] {
        talk(&right, by_signer.clone(), name).unwrap();
    }
    assert!(talk(&right, by_signer.clone(), "box-8.local").is_err(), "another name");
    assert!(talk(&right, by_signer.clone(), "10.0.0.9").is_err(), "another address");
    assert!(talk(&other, by_signer, "localhost").is_err(), "another key");
    assert_eq!(client(Trust::Signers(b"nothing".to_vec())).unwrap_err(), TlsError::NoCertificate);
}

#[test]
fn a_server_that_has_the_certificate_but_not_its_key_is_not_believed() {
    let (mine, right) = identity();
    let (theirs, _) = identity();
    // rustls itself refuses the pair, so no such server can be configured by mistake.
    let mixed = Identity::from_pem(mine.certificate.as_bytes(), theirs.key.as_bytes());
    assert!(matches!(mixed, Err(TlsError::Refused(_))), "{mixed:?}");
    // And a client checks the signature, not only the certificate: one bit of the handshake changed on its way.
    let config = client(Trust::Fingerprint(right.fingerprint)).unwrap();
    for byte in (0..900).step_by(7) {
        let mut c = ClientConnection::new(config.clone(), ServerName::try_from("a").unwrap()).unwrap();
        let mut s = ServerConnection::new(right.config.clone()).unwrap();
        carry(&mut c, &mut s, &mut |_| {}).unwrap();
        let mut reached = false;
        let harmed = carry(&mut s, &mut c, &mut |wire| {
            // Not the dummy record between the two, which means nothing.
            if byte > 140 && byte < wire.len() {
                wire[byte] ^= 1;
                reached = true;
            }
        });
        assert!(!reached || harmed.is_err() || c.is_handshaking(), "byte {byte}");
    }
}

#[test]
fn records_changed_on_their_way_are_refused() {
    let (made, identity) = identity();
    for (version, suite) in SUITES {
        // Every byte behind the 5 of the record's head, one bit of it; and records of every short length.
        for case in 0..48_usize {
            let config = only(&made, version, suite, rustls::NamedGroup::X25519);
            let mut c = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
            let mut s = ServerConnection::new(identity.config.clone()).unwrap();
            while carry(&mut c, &mut s, &mut |_| {}).unwrap() | carry(&mut s, &mut c, &mut |_| {}).unwrap() {}
            c.writer().write_all(b"hello device").unwrap();
            let refused = carry(&mut c, &mut s, &mut |wire| {
                let at = 5 + case / 2;
                if case % 2 == 0 {
                    let at = at.min(wire.len() - 1);
                    wire[at] ^= 0x10;
                } else {
                    wire.truncate(at);
                    let length = u16::try_from(at - 5).unwrap().to_be_bytes();
                    wire[3..5].copy_from_slice(&length);
                }
            });
            assert!(refused.is_err(), "{suite:?} case {case}");
        }
    }
}

#[test]
fn garbage_instead_of_a_handshake_is_refused() {
    let (_, identity) = identity();
    for bytes in
        [&b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &[0; 300], &[0xff; 300]]
    {
        let mut server = ServerConnection::new(identity.config.clone()).unwrap();
        let mut rest = bytes;
        let mut refused = false;
        while !rest.is_empty() && !refused {
            server.read_tls(&mut rest).unwrap();
            refused = server.process_new_packets().is_err();
        }
        assert!(refused);
    }
}

#[test]
fn what_cannot_be_used_is_said_in_a_sentence() {
    let (made, _) = identity();
    let (certificate, key) = (made.certificate.as_bytes(), made.key.as_bytes());
    let of = |c: &[u8], k: &[u8]| Identity::from_pem(c, k).unwrap_err();
    assert_eq!(of(b"", key), TlsError::NoCertificate);
    assert_eq!(of(key, key), TlsError::NoCertificate);
    assert_eq!(of(certificate, b"nothing"), TlsError::NoKey);
    assert_eq!(of(certificate, certificate), TlsError::NoKey);
    assert!(matches!(of(&certificate[..200], key), TlsError::Pem(_) | TlsError::NoCertificate));
    let rsa = b"-----BEGIN RSA PRIVATE KEY-----\nMAA=\n-----END RSA PRIVATE KEY-----\n";
    let why = of(certificate, rsa).to_string();
    assert!(why.contains("ECDSA P-256 and Ed25519"), "{why}");
    for cut in 0..made.key.len() {
        assert!(Identity::from_pem(certificate, &key[..cut]).is_err() || cut + 1 >= key.len());
    }
}

#[test]
fn a_fingerprint_is_read_as_openssl_writes_it() {
    let (_, identity) = identity();
    let plain = identity.fingerprint.to_string();
    let colons: Vec<String> =
        plain.as_bytes().chunks(2).map(|p| String::from_utf8_lossy(p).to_uppercase()).collect();
    assert_eq!(plain.parse(), Ok(identity.fingerprint));
    assert_eq!(colons.join(":").parse(), Ok(identity.fingerprint));
    for bad in ["", "00", &plain[..63], &format!("{plain}0"), &plain.replace(&plain[..1], "g")] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
    }
}
