"""Two readers of the same specification: the crate, and reader.py, which shares nothing with it."""

import hashlib
import importlib.util
import random
import struct
import subprocess
from pathlib import Path

import cbor2
import nacl.signing
import places
import pytest
import rust

# A module beside a test is not found by name: the tests are imported by path.
_spec = importlib.util.spec_from_file_location("bundle_reader", Path(__file__).parent / "reader.py")
reader = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reader)

DATA = places.ROOT / "app/bundle/tests/data"
BUNDLE = DATA / "motion-42.imb"


def trust():
    return reader.Trust((DATA / "root-1.trust").read_bytes())


def code(call, *arguments):
    with pytest.raises(reader.Refused) as refused:
        call(*arguments)
    return refused.value.args[0]


@pytest.fixture(scope="module")
def device(tmp_path_factory):
    """`device(bundles)`: the crate's verdicts."""
    program = rust.build_for_tests() / "examples/judge"

    def judge(bundles):
        folder = tmp_path_factory.mktemp("bundles")
        paths = []
        for number, data in enumerate(bundles):
            paths.append(folder / f"{number}.imb")
            paths[-1].write_bytes(data)
        listed = folder / "list"
        listed.write_text("".join(f"{path}\n" for path in paths))
        done = subprocess.run(
            [program, DATA / "root-1.trust", listed], capture_output=True, text=True, check=True
        ).stdout.split("\n")[:-1]
        for path in paths:
            path.unlink()
        assert len(done) == len(bundles)
        return done

    return judge


def second(data):
    """The second reader's verdict, in the form of the first's."""
    try:
        return "ok " + reader.read(data, trust())[1]
    except reader.Refused as why:
        return why.args[0]


def split(data):
    """Manifest, signatures, page table, index, payload."""
    parts, _ = reader.sections(data)
    return [data[at : at + length] for at, length in parts]


def assemble(parts):
    """A bundle of these sections, by the specification."""
    places_, at, body = b"", 4096, b""
    for part in parts:
        places_ += struct.pack("<QQ", at, len(part))
        body += part + bytes(-len(part) % 4096)
        at = 4096 + len(body)
    head = b"INFERDMB" + struct.pack("<II", 1, 0) + places_ + struct.pack("<Q", at)
    head += reader.sha256(parts[0]) + reader.sha256(parts[1])
    head += bytes(4064 - len(head))
    return head + reader.sha256(head) + body


def signed(manifest):
    """A signatures section of the release keys, whose seeds the tests know."""
    records = []
    for seed in (11, 12):
        key = nacl.signing.SigningKey(bytes([seed]) * 32)
        records.append(reader.sha256(bytes(key.verify_key)) + key.sign(reader.message("bundle", manifest)).signature)
    return struct.pack("<I", 2) + b"".join(sorted(records))


def settled(parts, change=None):
    """The sections made to fit each other, and signed again."""
    _, _, _, index, payload = parts
    table = b"".join(reader.sha256(index[at : at + 65536]) for at in range(0, len(index), 65536))
    manifest = cbor2.loads(parts[0])
    manifest[11] |= {1: len(table) // 32, 2: len(payload), 3: reader.sha256(table)}
    if change:
        change(manifest)
    manifest = reader.canonical(manifest)
    return assemble([manifest, signed(manifest), table, index, payload])


def test_the_committed_bundle_is_read_from_the_specification_alone():
    data = BUNDLE.read_bytes()
    manifest, identity, contents = reader.read(data, trust())
    assert (manifest[2], manifest[3], manifest[4]) == ("motion", 42, "2026.11.1")
    assert identity == hashlib.sha256(split(data)[0]).hexdigest()
    assert {name: len(content) for name, content in contents.items()} == {
        ("jump", "golden.safetensors"): 2500,
        ("jump", "model.onnx"): 40_000,
        ("walk", "golden.safetensors"): 3000,
        ("walk", "model.onnx"): 200_000,
    }
    for model in manifest[9]:
        for file in model[2]:
            assert hashlib.sha256(contents[model[0], file[0]]).digest() == file[2]
            assert file[2].hex() in model[1], "the model's own manifest names the same digest"


def test_the_committed_trust_documents_are_read_from_the_specification_alone():
    one, two, revocations, permit = (
        (DATA / f"{name}.trust").read_bytes() for name in ("root-1", "root-2", "revocations", "permit")
    )
    device = reader.Trust(one)
    assert device.permit(permit, "board-7", 8) == {"device": "board-7", "product": "motion", "version": 41, "nonce": 9}
    assert code(device.permit, permit, "board-8", 8) == "permit-device"
    assert code(device.permit, permit, "board-7", 9) == "permit-replayed"
    assert code(device.rotate, one) == "root-replayed"
    device.rotate(two)
    assert code(device.rotate, two) == "root-replayed"
    device.revoke(revocations)
    assert code(device.revoke, revocations) == "revocations-replayed"
    # Key 13 is revoked; the bundle is signed by 11 and 12.
    assert reader.read(BUNDLE.read_bytes(), device)[0][3] == 42


def test_a_bundle_put_together_from_the_specification_is_taken_by_the_crate(device):
    parts = split(BUNDLE.read_bytes())
    assert assemble(parts) == BUNDLE.read_bytes()
    other = settled(parts, lambda m: m.update({3: 43, 4: "from-python"}))
    verdicts = device([assemble(parts), other])
    assert verdicts == [second(assemble(parts)), second(other)]
    assert all(verdict.startswith("ok ") for verdict in verdicts) and verdicts[0] != verdicts[1]


def faults():
    """Bundles with one fault each that only a signer could make, and the code the specification gives it."""
    parts = split(BUNDLE.read_bytes())

    def manifest(change):
        return settled(parts, change)

    def index(at, value):
        changed = parts[3][:at] + value + parts[3][at + len(value) :]
        return settled(parts[:3] + [changed, parts[4]])

    def raw(data):
        return assemble([data, signed(data), *parts[2:]])

    def set_(*path):
        *way, last, value = path

        def change(m):
            for key in way:
                m = m[key]
            m[last] = value

        return change

    good = parts[0]
    yield "format-version", manifest(set_(0, 2))
    yield "manifest", manifest(set_(1, 1))
    yield "manifest", manifest(lambda m: m.update({1: 1, 6: 3, 7: ["rpi4"]}))
    yield "manifest-form", manifest(set_(1, 2))
    yield "manifest", manifest(set_(6, 3))
    yield "dev-role", manifest(set_(6, 2))
    yield "manifest", manifest(set_(4, "a b"))
    yield "manifest", manifest(set_(5, "two\nlines"))
    yield "manifest", manifest(set_(5, "x" * 1025))
    yield "manifest", manifest(set_(7, ["b", "a"]))
    yield "manifest-form", manifest(set_(7, [f"b{i:02}" for i in range(33)]))
    yield "manifest", manifest(set_(8, "1.2"))
    yield "manifest", manifest(set_(8, "1.2.4294967296"))
    yield "manifest", manifest(set_(9, []))
    yield "manifest", manifest(lambda m: m[9].reverse())
    yield "manifest", manifest(set_(9, 0, 2, 0, 0, "../walk"))
    yield "manifest", manifest(set_(9, 0, 2, 0, 3, 1))
    yield "manifest", manifest(set_(9, 0, 2, 0, 4, (1 << 64) - 1))
    yield "manifest", manifest(set_(9, 0, 2, 0, 1, 0))
    yield "file-length", manifest(set_(9, 0, 2, 0, 1, 2501))
    yield "file-digest", manifest(set_(9, 0, 2, 0, 2, bytes(32)))
    yield "manifest", manifest(set_(10, 0, 0, 0))
    yield "manifest", manifest(set_(10, 0, 3, 0.0))
    yield "manifest", manifest(set_(10, 1, 2, float("nan")))
    yield "manifest", manifest(set_(10, 1, 4, float("inf")))
    yield "manifest-form", manifest(set_(10, 1, 0, 1 << 32))
    yield "manifest-form", manifest(set_(10, 1, 2, 0))
    yield "manifest-form", manifest(set_(14, 0))
    yield "manifest-form", manifest(lambda m: m.pop(13))
    yield "page-table-digest", manifest(set_(11, 3, bytes(32)))
    yield "manifest", manifest(set_(13, "\a"))
    yield "manifest-form", raw(good + b"\0")
    yield "manifest-form", raw(good.replace(b"\x00\x01\x01\x00", b"\x00\x18\x01\x01\x00", 1))
    yield "manifest-form", raw(bytes([0xB8, good[0] & 31]) + good[1:])
    yield "manifest-form", raw(b"\xbf" + good[1:] + b"\xff")
    yield "manifest-form", raw(b"\xd9\xd9\xf7" + good)
    yield "page", index(0, b"\1")
    yield "page", index(8, b"\0")
    yield "page", index(12, b"\1")
    yield "page", index(16 + 32, bytes(4))
    yield "page", index(16 + 40, b"\2")
    yield "page", index(16 + 44, b"\1")
    yield "page", index(65535, b"\1")
    yield "chunk-digest", index(16, bytes(32))
    yield "page", settled(parts[:4] + [parts[4] + b"\0"])


def test_both_readers_give_the_same_reason_for_the_same_fault(device):
    wanted, bundles = zip(*faults(), strict=True)
    assert [second(data) for data in bundles] == list(wanted)
    assert device(bundles) == list(wanted)
    print(f"{len(bundles)} faults, each with one reason in both readers")


def mutations(count):
    """Bundles with a few bytes changed anywhere, digests and signatures made to fit or not."""
    chance = random.Random(3)
    original = BUNDLE.read_bytes()
    parts = split(original)

    def changed(data):
        data = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            kind, at = chance.randrange(4), chance.randrange(len(data))
            if kind == 0:
                data[at] ^= 1 << chance.randrange(8)
            elif kind == 1:
                data[at] = chance.choice((0, 1, 0x18, 0x7F, 0x80, 0xFF))
            elif kind == 2:
                del data[at : at + chance.randint(1, 4)]
            else:
                data[at:at] = chance.randbytes(chance.randint(1, 4))
        return bytes(data)

    for _ in range(count):
        which = chance.randrange(6)
        if which == 5:
            yield changed(original)
            continue
        mixed = list(parts)
        # The index is mostly zeros: change where something is.
        mixed[which] = changed(parts[3][:512]) + parts[3][512:] if which == 3 else changed(parts[which])
        mixed[3] = (mixed[3] + bytes(65536))[:65536]
        if which == 0:
            mixed[1] = signed(mixed[0])
        if which in (3, 4):
            yield settled(mixed)
        else:
            yield assemble(mixed)


def test_both_readers_agree_on_bundles_that_were_changed_at_random(device):
    bundles = list(mutations(1500))
    ours, theirs = device(bundles), [second(data) for data in bundles]
    accepted = sum(verdict.startswith("ok ") for verdict in ours)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        # Which of several faults is named first is not specified; whether there is one, is.
        assert one.startswith("ok ") == other.startswith("ok "), f"{number}: {one} and {other}"
        assert one == other or not one.startswith("ok ")
    assert 0 < accepted < len(bundles) // 2, "a few changes mean nothing: text of the manifest, signed again"
    print(f"{len(bundles)} changed bundles: {len(bundles) - accepted} refused, {accepted} taken, by both readers")
