//! Whom a device believes: roles, thresholds, succession of roots, revocation, permits.

#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests; helpers are not seen as such

mod common;

use common::*;
use inferd_bundle::{
    Bundle, Digest, Envelope, KeyError, Permit, PublicKey, Refusal, Revocations, Role, Root, Signature,
    SigningKey, Trust, keys,
};

fn signers(numbers: &[u8]) -> Vec<SigningKey> {
    numbers.iter().map(|&n| key(n)).collect()
}

fn with<T>(numbers: &[u8], call: impl FnOnce(&[&SigningKey]) -> T) -> T {
    let keys = signers(numbers);
    call(&keys.iter().collect::<Vec<_>>())
}

/// A bundle signed by these keys.
fn signed(numbers: &[u8]) -> Bundle {
    Bundle::parse(&built(&small(), numbers).1).unwrap()
}

fn dev(numbers: &[u8]) -> Bundle {
    let mut spec = small();
    spec.role = Role::ModelDev;
    Bundle::parse(&built(&spec, numbers).1).unwrap()
}

fn root_envelope(root: Root, numbers: &[u8]) -> Vec<u8> {
    with(numbers, |keys| keys::sign_root(root, keys).unwrap())
}

fn revocations(version: u64, keys: &[u8], bundles: &[Digest], by: &[u8]) -> Vec<u8> {
    let keys = keys.iter().map(|&n| key(n).id()).collect();
    let list = Revocations { version, keys, bundles: bundles.to_vec() };
    with(by, |keys| keys::sign_revocations(list, keys).unwrap())
}

fn permit(device: &str, nonce: u64, by: &[u8]) -> Vec<u8> {
    let permit = Permit { device: device.to_owned(), product: name("walk"), version: 3, nonce };
    with(by, |keys| keys::sign_permit(&permit, keys).unwrap())
}

#[test]
fn a_release_needs_its_threshold_of_different_keys_of_its_role() {
    let trust = trust();
    for (numbers, verdict) in [
        (&[][..], Err("unsigned")),
        (&[11], Err("below-threshold")),
        (&[11, 11], Err("below-threshold")),
        (&[11, 12], Ok(2)),
        (&[12, 13], Ok(2)),
        (&[11, 12, 13], Ok(3)),
        (&[99], Err("unknown-keys")),
        (&[98, 99], Err("unknown-keys")),
        (&[11, 99], Err("below-threshold")),
        (&[11, 12, 99], Ok(2)),
        (&[21], Err("wrong-role")),
        (&[1, 2, 3], Err("wrong-role")),
        (&[31, 41, 42], Err("wrong-role")),
        (&[11, 21], Err("wrong-role")),
        (&[11, 12, 21, 41], Ok(2)),
    ] {
        let result = signed(numbers).authorize(&trust).map(|a| a.keys.len()).map_err(|e| e.code());
        assert_eq!(result, verdict, "{numbers:?}");
    }
}

#[test]
fn the_same_key_in_two_records_is_refused_even_if_it_is_written_by_hand() {
    let forge = Forge::new(&release(&small()));
    let record = [&key(11).id().0[..], &sign(11, "bundle", &forge.manifest)].concat();
    let twice = Forge { signatures: [&2_u32.to_le_bytes()[..], &record, &record].concat(), ..forge };
    assert_eq!(code(judge(&twice.bytes())), "signatures-form");
}

#[test]
fn a_wrong_signature_of_any_known_key_refuses_the_bundle() {
    let trust = trust();
    for wrong in [11, 13, 21, 1] {
        let mut numbers = vec![11, 12, 13, 21, 1];
        numbers.sort_unstable();
        let forge = Forge::new(&built(&small(), &numbers).1);
        let mut forged = forge.clone();
        let id = key(wrong).id().0;
        let at = forge.signatures.windows(32).position(|w| w == id).unwrap();
        forged.signatures[at + 40] ^= 1;
        let refusal = Bundle::parse(&forged.bytes()).unwrap().authorize(&trust).unwrap_err();
        assert_eq!(refusal, Refusal::SignatureWrong(key(wrong).id()));
    }
    // A signature over something else: another domain, another bundle.
    let forge = Forge::new(&release(&small()));
    for kind in ["root", "permit", "revocations", "bundl", "bundle "] {
        let records: Vec<Vec<u8>> = [11, 12]
            .iter()
            .map(|&n| [&key(n).id().0[..], &sign(n, kind, &forge.manifest)].concat())
            .collect();
        let mut records = records;
        records.sort();
        let signatures = [2_u32.to_le_bytes().to_vec(), records.concat()].concat();
        assert_eq!(code(judge(&Forge { signatures, ..forge.clone() }.bytes())), "signature-wrong", "{kind}");
    }
}

#[test]
fn signatures_that_only_lenient_verifiers_take_are_refused() {
    // S + L instead of S: the same equation, another encoding.
    const L: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let message = b"message";
    let good = {
        use ed25519_dalek::Signer as _;
        ed25519_dalek::SigningKey::from_bytes(&[11; 32]).sign(message).to_bytes()
    };
    assert!(key(11).public().verifies(message, &good));
    let mut other = good;
    let mut carry = 0_u16;
    for (byte, l) in other[32..].iter_mut().zip(L) {
        carry += u16::from(*byte) + u16::from(l);
        [*byte, _] = carry.to_le_bytes();
        carry >>= 8;
    }
    assert!(other != good && !key(11).public().verifies(message, &other));
    // Keys of small order, for which one signature fits many messages, and bytes that are no point.
    let mut small_order = [0; 32];
    small_order[0] = 1;
    let mut no_point = [0; 32];
    no_point[0] = 2;
    for bytes in [[0; 32], small_order, no_point] {
        assert_eq!(PublicKey::new(bytes), Err(KeyError::Weak));
    }
}

#[test]
fn development_bundles_run_only_where_the_device_says_so() {
    let strict = trust();
    let open = Trust::new(strict.root().clone(), true);
    assert_eq!(code(dev(&[21]).authorize(&strict)), "dev-role");
    assert_eq!(dev(&[21]).authorize(&open).unwrap().role, Role::ModelDev);
    // A development key signs no release, a release key no development.
    assert_eq!(code(signed(&[21]).authorize(&open)), "wrong-role");
    assert_eq!(code(dev(&[11, 12]).authorize(&open)), "wrong-role");
    assert!(open.allows_dev() && !strict.allows_dev());
}

#[test]
fn a_role_that_nobody_has_signs_nothing() {
    let mut root = root(1);
    root.roles.retain(|r| r.role != Role::ModelRelease);
    let trust = Trust::new(Root::from_envelope(&root_envelope(root, &[1, 2])).unwrap(), true);
    assert_eq!(code(signed(&[11, 12]).authorize(&trust)), "role-unassigned");
}

#[test]
fn a_root_follows_the_one_before_by_one_and_is_signed_by_both() {
    let mut trust = trust();
    // Root 2: key 1 is lost, key 4 takes its place.
    let next = |version| {
        let mut root = root(version);
        let fresh = key(4);
        root.keys.iter_mut().find(|k| k.public == key(1).public()).unwrap().public = fresh.public();
        root.roles[0].keys = [4, 2, 3].map(|n| key(n).id()).to_vec();
        root
    };
    for (numbers, want) in [
        (&[2][..], "below-threshold"),
        (&[4, 2], "below-threshold"), // only one of the old
        (&[1, 2], "below-threshold"), // only one of the new
        (&[11, 12], "wrong-role"),
        (&[98, 99], "unknown-keys"),
        (&[], "unsigned"),
    ] {
        assert_eq!(code(trust.rotate(&root_envelope(next(2), numbers))), want, "{numbers:?}");
    }
    assert_eq!(code(trust.rotate(&root_envelope(next(1), &[1, 2, 4]))), "root-replayed");
    assert_eq!(code(trust.rotate(&root_envelope(next(3), &[1, 2, 4]))), "root-skipped");
    assert_eq!(code(trust.rotate(&root_envelope(next(u64::MAX), &[1, 2, 4]))), "root-skipped");
    assert_eq!(trust.root_version(), 1, "a refusal changes nothing");
    let two = root_envelope(next(2), &[2, 3]);
    trust.rotate(&two).unwrap();
    assert_eq!(code(trust.rotate(&two)), "root-replayed");
    assert_eq!(code(trust.rotate(&root_envelope(root(2), &[1, 2]))), "root-replayed");
    assert_eq!(
        code(trust.rotate(&root_envelope(root(3), &[1, 2]))),
        "below-threshold",
        "key 1 counts no more"
    );
    trust.rotate(&root_envelope(next(3), &[4, 3])).unwrap();
    assert_eq!(trust.root_version(), 3);
}

#[test]
fn a_rotated_key_no_longer_releases() {
    let mut trust = trust();
    assert!(signed(&[11, 12]).authorize(&trust).is_ok());
    let mut next = root(2);
    let fresh = key(14);
    next.keys.iter_mut().find(|k| k.public == key(11).public()).unwrap().public = fresh.public();
    next.roles[1].keys = [14, 12, 13].map(|n| key(n).id()).to_vec();
    trust.rotate(&root_envelope(next, &[1, 2])).unwrap();
    assert_eq!(code(signed(&[11, 12]).authorize(&trust)), "below-threshold");
    assert_eq!(signed(&[14, 12]).authorize(&trust).unwrap().root, 2);
}

#[test]
fn a_device_starts_only_from_a_root_that_signed_itself() {
    assert!(Root::from_envelope(&root_envelope(root(5), &[3, 1])).is_ok());
    for (numbers, want) in [(&[1][..], "below-threshold"), (&[11, 12], "wrong-role"), (&[99], "unknown-keys")]
    {
        assert_eq!(code(Root::from_envelope(&root_envelope(root(1), numbers))), want);
    }
    let mut damaged = root_envelope(root(1), &[1, 2]);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert_eq!(code(Root::from_envelope(&damaged)), "signature-wrong");
    assert_eq!(code(Root::from_envelope(&permit("d", 1, &[11, 12]))), "trust-kind");
}

#[test]
fn every_flipped_bit_of_a_root_is_refused() {
    let good = root_envelope(root(1), &[1, 2]);
    let mut codes = std::collections::BTreeMap::<_, usize>::new();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut copy = good.clone();
            copy[at] ^= 1 << bit;
            *codes.entry(code(Root::from_envelope(&copy))).or_default() += 1;
        }
    }
    for len in 0..good.len() {
        assert_eq!(code(Root::from_envelope(&good[..len])), "trust-form");
    }
    println!(
        "every bit of a root: {} refused {codes:?}; cut anywhere: {} refused",
        good.len() * 8,
        good.len()
    );
}

#[test]
fn a_root_that_cannot_be_is_refused_by_signer_and_device() {
    let refused = |what: &str, change: &dyn Fn(&mut Root)| {
        let mut wrong = root(1);
        change(&mut wrong);
        assert_eq!(code(with(&[1, 2], |k| keys::sign_root(wrong.clone(), k))), "trust-document", "{what}");
        // Signed by hand, as the laptop would not.
        let payload = minicbor::to_vec(&wrong).unwrap();
        let mut signatures: Vec<_> =
            [1, 2].map(|n| Signature { key: key(n).id(), signature: sign(n, "root", &payload) }).to_vec();
        signatures.sort_unstable();
        let envelope = Envelope { kind: "root".to_owned(), payload, signatures };
        let refused = code(Root::from_envelope(&envelope.to_bytes()));
        assert!(matches!(refused, "trust-document" | "trust-form"), "{what}: {refused}");
    };
    refused("version 0", &|r| r.version = 0);
    refused("a key twice", &|r| r.keys.push(r.keys[0].clone()));
    refused("no root role", &|r| r.roles.remove(0).keys.clear());
    refused("a role twice", &|r| r.roles.push(r.roles[4].clone()));
    refused("a threshold of 0", &|r| r.roles[1].threshold = 0);
    refused("a threshold beyond the keys", &|r| r.roles[1].threshold = 4);
    refused("a threshold of 2^32-1", &|r| r.roles[1].threshold = u32::MAX);
    refused("a key of a role twice", &|r| r.roles[1].keys = vec![key(11).id(); 3]);
    refused("a key that is not listed", &|r| r.roles[1].keys[0] = key(99).id());
    refused("a role without keys", &|r| r.roles[2].keys.clear());
    refused("a note of two lines", &|r| r.keys[0].note = "a\nb".to_owned());
    refused("a long note", &|r| r.keys[0].note = "x".repeat(129));
    refused("too many keys", &|r| {
        r.keys.extend(
            (100..130).map(|n| inferd_bundle::RootKey { public: key(n).public(), note: String::new() }),
        );
    });
}

#[test]
fn revoked_keys_do_not_count_and_revoked_bundles_do_not_install() {
    let mut trust = trust();
    let bundle = signed(&[11, 12]);
    trust.revoke(&revocations(1, &[11], &[], &[41])).unwrap();
    let refusal = bundle.authorize(&trust).unwrap_err();
    let Refusal::KeyRevoked { key: revoked, have: 1, need: 2, .. } = refusal else { panic!("{refusal}") };
    assert_eq!(revoked, key(11).id());
    assert_eq!(signed(&[11, 12, 13]).authorize(&trust).unwrap().keys.len(), 2, "the others are enough");
    assert_eq!(code(signed(&[11]).authorize(&trust)), "key-revoked");
    let good = signed(&[12, 13]);
    assert_eq!(good.authorize(&trust).unwrap().revocations, 1);
    trust.revoke(&revocations(2, &[11], &[good.id()], &[42])).unwrap();
    assert_eq!(good.authorize(&trust), Err(Refusal::BundleRevoked(good.id())));
}

#[test]
fn a_revocation_list_is_newer_complete_and_signed_by_keys_that_still_count() {
    let mut trust = trust();
    let id = signed(&[]).id();
    let one = revocations(4, &[11], &[id], &[41]);
    for (list, want) in [
        (revocations(4, &[11], &[], &[11]), "wrong-role"),
        (revocations(4, &[11], &[], &[99]), "unknown-keys"),
        (revocations(4, &[11], &[], &[]), "unsigned"),
        (root_envelope(root(2), &[1, 2]), "trust-kind"),
    ] {
        assert_eq!(code(trust.revoke(&list)), want);
    }
    trust.revoke(&one).unwrap();
    assert_eq!(code(trust.revoke(&one)), "revocations-replayed");
    assert_eq!(code(trust.revoke(&revocations(3, &[11, 12], &[id], &[41]))), "revocations-replayed");
    assert_eq!(code(trust.revoke(&revocations(5, &[], &[id], &[41]))), "revocations-shrunk");
    assert_eq!(code(trust.revoke(&revocations(5, &[11], &[], &[41]))), "revocations-shrunk");
    // A revocation key can be revoked by the other one, and is then worth nothing.
    trust.revoke(&revocations(5, &[11, 41], &[id], &[42])).unwrap();
    assert_eq!(code(trust.revoke(&revocations(6, &[11, 41], &[id], &[41]))), "key-revoked");
    assert_eq!(trust.revocation_version(), 5);
    assert_eq!(trust.revocations().keys.len(), 2);
}

#[test]
fn root_keys_are_replaced_by_roots_and_not_revoked() {
    let mut trust = trust();
    trust.revoke(&revocations(1, &[1, 2, 3], &[], &[41])).unwrap();
    trust.rotate(&root_envelope(root(2), &[1, 2])).unwrap();
    assert_eq!(trust.root_version(), 2);
}

#[test]
fn a_permit_is_for_one_device_and_serves_once() {
    let mut trust = trust();
    let good = permit("board-7", 5, &[11, 12]);
    let taken = trust.permit(&good, "board-7", 4).unwrap();
    assert_eq!((taken.product.as_str(), taken.version, taken.nonce), ("walk", 3, 5));
    assert_eq!(trust.permit(&good, "board-8", 4), Err(Refusal::PermitDevice("board-7".to_owned())));
    assert_eq!(code(trust.permit(&good, "board-7", 5)), "permit-replayed");
    assert_eq!(code(trust.permit(&good, "board-7", u64::MAX)), "permit-replayed");
    for (numbers, want) in [
        (&[11][..], "below-threshold"),
        (&[1, 2], "wrong-role"),
        (&[21], "wrong-role"),
        (&[99], "unknown-keys"),
    ] {
        assert_eq!(code(trust.permit(&permit("board-7", 5, numbers), "board-7", 4)), want);
    }
    trust.revoke(&revocations(1, &[12], &[], &[41])).unwrap();
    assert_eq!(code(trust.permit(&good, "board-7", 4)), "key-revoked");
    assert_eq!(code(trust.permit(&revocations(1, &[12], &[], &[41]), "board-7", 4)), "trust-kind");
    let wrong = |change: &dyn Fn(&mut Permit)| {
        let mut permit = Permit { device: "d".to_owned(), product: name("walk"), version: 1, nonce: 1 };
        change(&mut permit);
        code(with(&[11, 12], |k| keys::sign_permit(&permit, k)))
    };
    assert_eq!(wrong(&|p| p.device.clear()), "trust-document");
    assert_eq!(wrong(&|p| p.device = "two words".to_owned()), "trust-document");
    assert_eq!(wrong(&|p| p.device = "x".repeat(129)), "trust-document");
    assert_eq!(wrong(&|p| p.nonce = 0), "trust-document");
}

#[test]
fn an_envelope_of_another_form_is_refused() {
    let good = permit("d", 1, &[11, 12]);
    let opened = Envelope::from_bytes(&good).unwrap();
    assert_eq!(opened.to_bytes(), good);
    let refused = |change: &dyn Fn(&mut Envelope)| {
        let mut copy = opened.clone();
        change(&mut copy);
        code(Envelope::from_bytes(&copy.to_bytes()))
    };
    assert_eq!(refused(&|e| e.kind = "bundle".to_owned()), "trust-form");
    assert_eq!(refused(&|e| e.signatures.reverse()), "trust-form");
    assert_eq!(refused(&|e| e.signatures.push(e.signatures[1])), "trust-form");
    assert_eq!(
        refused(&|e| e.signatures =
            (0..65).map(|n| Signature { key: Digest([n; 32]), signature: [0; 64] }).collect()),
        "trust-form"
    );
    assert_eq!(refused(&|e| e.payload = vec![0; 256 << 10]), "too-large");
    assert_eq!(code(Envelope::from_bytes(b"")), "trust-form");
    assert_eq!(code(trust().accept(&good)), "trust-kind");
    assert_eq!(code(trust().accept(b"\xa0")), "trust-form");
    let mut payload = opened.clone();
    payload.payload.push(0);
    assert_eq!(code(trust().permit(&payload.to_bytes(), "d", 0)), "trust-form");
}

#[test]
fn holders_of_keys_sign_one_after_the_other() {
    let together = root_envelope(root(2), &[1, 2]);
    let one = root_envelope(root(2), &[2]);
    assert_eq!(code(trust().accept(&one)), "below-threshold");
    let both = with(&[1], |keys| keys::add_signatures(&one, keys).unwrap());
    assert_eq!(both, together);
    assert_eq!(with(&[1, 2], |keys| keys::add_signatures(&both, keys).unwrap()), together);
    assert_eq!(trust().accept(&both), Ok("root"));
    assert_eq!(trust().accept(&revocations(1, &[], &[], &[41])), Ok("revocations"));
}

#[test]
fn a_key_is_one_line_and_says_what_it_is() {
    let key = key(7);
    let (public, secret) = (key.public().to_line("Ada's laptop"), key.to_line(""));
    assert_eq!(PublicKey::from_line(&public).unwrap(), (key.public(), "Ada's laptop".to_owned()));
    let (again, note) = SigningKey::from_line(&secret).unwrap();
    assert_eq!((again.id(), note.as_str()), (key.id(), ""));
    assert!(
        public.starts_with("inferd-public-key ed25519 ") && secret.starts_with("inferd-secret-key ed25519 ")
    );
    assert_eq!((public.lines().count(), secret.lines().count()), (1, 1));
    assert!(!format!("{key:?}").contains(&secret[26..40]), "a secret key is never printed");
    assert_eq!(PublicKey::from_line(&secret).unwrap_err(), KeyError::Secret);
    assert_eq!(SigningKey::from_line(&public).unwrap_err(), KeyError::Public);
    assert_eq!(key.to_line("two\nlines").lines().count(), 1);
    for bad in [
        "",
        "inferd-secret-key",
        &secret[..80],
        &secret.replace("ed25519", "rsa"),
        &format!("{secret}{secret}"),
    ] {
        assert!(SigningKey::from_line(bad).is_err(), "{bad:?}");
    }
    assert!(PublicKey::from_line(&format!("inferd-public-key ed25519 {}", "0".repeat(64))).is_err());
    let (one, two) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
    assert_ne!(one.id(), two.id());
    assert_eq!("model-release".parse(), Ok(Role::ModelRelease));
    assert!("release".parse::<Role>().is_err());
}
