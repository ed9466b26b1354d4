#!/usr/bin/env python3
"""A second reader of bundles and trust documents, written from app/bundle/README.md alone. `reader.py BUNDLE [ROOT]`.

It shares no code with the crate, reads whole files, and is slow: it exists to show that the specification is enough, and
that the crate does what the specification says."""

import hashlib
import io
import re
import struct
import sys
from pathlib import Path

import cbor2
import nacl.exceptions
import nacl.signing
import zstandard

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
FILE = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
ROOT, MODEL_RELEASE, MODEL_DEV, SYSTEM_RELEASE, REVOCATION = 0, 1, 2, 3, 4
MODELS, SYSTEM = 0, 1
PAGE, CHUNKS, LARGEST = 65536, 1365, 262144


class Refused(Exception):
    """Its first argument is the code of the specification."""


def refuse_unless(good, code):
    if not good:
        raise Refused(code)


def sha256(data):
    return hashlib.sha256(data).digest()


def canonical(value):
    """The one encoding of a document."""

    def head(major, number):
        if number < 24:
            return bytes([major << 5 | number])
        for width, (info, form) in {1: (24, ">B"), 2: (25, ">H"), 4: (26, ">I"), 8: (27, ">Q")}.items():
            if number < 1 << 8 * width:
                return bytes([major << 5 | info]) + struct.pack(form, number)
        raise ValueError("too large")

    if isinstance(value, bool) or value is None:
        raise TypeError("not in a document of ours")
    if isinstance(value, int) and value >= 0:
        return head(0, value)
    if isinstance(value, float):
        return b"\xfb" + struct.pack(">d", value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(canonical, value))
    if isinstance(value, dict):
        items = sorted(value.items())
        return head(5, len(items)) + b"".join(canonical(key) + canonical(item) for key, item in items)
    raise TypeError("not in a document of ours")


def document(data, code):
    """Decodes canonical CBOR."""
    try:
        value = cbor2.loads(data)
        good = canonical(value) == data
    except Exception as why:  # noqa: BLE001  whatever the library raises at damaged input
        raise Refused(code) from why
    refuse_unless(good, code)
    return value


def form(value, fields, code, optional=()):
    """A map of exactly these keys, each of its type."""
    refuse_unless(isinstance(value, dict), code)
    refuse_unless(set(fields) - set(optional) <= set(value) <= set(fields), code)
    for key, item in value.items():
        refuse_unless(isinstance(item, fields[key]), code)
    return value


def items(value, kind, most, code):
    refuse_unless(isinstance(value, list) and len(value) <= most and all(isinstance(i, kind) for i in value), code)
    return value


def ascends(values):
    return all(a < b for a, b in zip(values, values[1:]))


def octets(text):
    return text.encode()


def uint32(value, code):
    refuse_unless(value < 1 << 32, code)


# --- header


def sections(data):
    """The header's fields, checked: (place, length) of manifest, signatures, page table, index, payload; file length."""
    refuse_unless(len(data) >= 4096, "truncated")
    header = data[:4096]
    refuse_unless(header[:8] == b"INFERDMB", "not-a-bundle")
    refuse_unless(struct.unpack_from("<I", header, 8)[0] == 1, "format-version")
    refuse_unless(sha256(header[:4064]) == header[4064:], "header-digest")
    refuse_unless(not any(header[12:16]) and not any(header[168:4064]), "header")
    numbers = struct.unpack_from("<11Q", header, 16)
    parts = list(zip(numbers[0:10:2], numbers[1:10:2]))
    limits = (262144, 65536, 524288, 16384 * PAGE, 16384 * CHUNKS * LARGEST)
    refuse_unless(all(length <= most for (_, length), most in zip(parts, limits)), "too-large")
    refuse_unless(parts[2][1] % 32 == 0 and parts[3][1] == parts[2][1] // 32 * PAGE, "header")
    place = 4096
    for at, length in parts:
        refuse_unless(at == place, "header")
        place = (place + length + 4095) // 4096 * 4096
    refuse_unless(numbers[10] == place, "header")
    return parts, place


# --- manifest


def check_manifest(data):
    m = form(
        document(data, "manifest-form"),
        {0: int, 1: int, 2: str, 3: int, 4: str, 5: str, 6: int, 7: list, 8: str, 9: list, 10: dict, 11: dict, 12: int, 13: str},
        "manifest-form",
        optional=(8, 12),
    )
    uint32(m[0], "manifest-form")
    refuse_unless(m[1] in (0, 1) and m[6] in range(5) and NAME.fullmatch(m[2]), "manifest-form")
    items(m[7], str, 32, "manifest-form")
    for model in items(m[9], dict, 64, "manifest-form"):
        form(model, {0: str, 1: str, 2: list}, "manifest-form")
        refuse_unless(NAME.fullmatch(model[0]), "manifest-form")
        for file in items(model[2], dict, 16, "manifest-form"):
            form(file, {0: str, 1: int, 2: bytes, 3: int, 4: int}, "manifest-form")
            refuse_unless(len(file[2]) == 32, "manifest-form")
    policy = form(m[10], {0: dict, 1: dict}, "manifest-form", optional=(0,))
    numbers = {2: float, 3: float, 4: float}
    if 0 in policy:
        uint32(form(policy[0], {0: int, 1: float} | numbers, "manifest-form")[0], "manifest-form")
    form(policy[1], {0: int, 1: int} | numbers, "manifest-form")
    uint32(policy[1][0], "manifest-form")
    uint32(policy[1][1], "manifest-form")
    index = form(m[11], {0: int, 1: int, 2: int, 3: bytes}, "manifest-form")
    uint32(index[1], "manifest-form")
    refuse_unless(len(index[3]) == 32, "manifest-form")

    refuse_unless(m[0] == 1, "format-version")
    refuse_unless(m[1] in (MODELS, SYSTEM), "manifest-form")
    refuse_unless(m[6] in ((MODEL_RELEASE, MODEL_DEV) if m[1] == MODELS else (SYSTEM_RELEASE,)), "manifest")
    refuse_unless(re.fullmatch(r"[!-~]{1,64}", m[4]), "manifest")
    refuse_unless(len(octets(m[5])) <= 1024 and not controls(m[5], ""), "manifest")
    refuse_unless(len(octets(m[13])) <= 16384 and not controls(m[13], "\n\t"), "manifest")
    refuse_unless(all(NAME.fullmatch(t) for t in m[7]) and ascends(list(map(octets, m[7]))), "manifest")
    if 8 in m:
        three = re.fullmatch(r"(0|[1-9][0-9]{0,9})\.(0|[1-9][0-9]{0,9})\.(0|[1-9][0-9]{0,9})", m[8])
        refuse_unless(three and all(int(n) < 1 << 32 for n in three.groups()), "manifest")
    if 0 in policy:
        shadow = policy[0]
        refuse_unless(1 <= shadow[0] <= 1_000_000 and -1 <= shadow[1] <= 1 and 0 <= shadow[2] <= 1, "manifest")
        refuse_unless(0 < shadow[3] <= 1000 and 0 <= shadow[4] <= 1, "manifest")
    probation = policy[1]
    refuse_unless(probation[0] <= 604_800 and 0 <= probation[2] <= 1, "manifest")
    refuse_unless(0 < probation[3] <= 1000 and 0 <= probation[4] <= 1_000_000, "manifest")

    refuse_unless(m[9] and ascends([octets(model[0]) for model in m[9]]), "manifest")
    spans = []
    for model in m[9]:
        names = [file[0] for file in model[2]]
        refuse_unless(len(octets(model[1])) <= 262144, "manifest")
        refuse_unless(names and ascends(list(map(octets, names))) and all(map(FILE.fullmatch, names)), "manifest")
        for file in model[2]:
            refuse_unless(file[4] <= file[1] <= file[4] * LARGEST, "manifest")
            if file[4]:
                spans.append((file[3], file[4]))
            else:
                refuse_unless(file[3] == 0, "manifest")
    following = 0
    for first, count in sorted(spans):
        refuse_unless(first == following, "manifest")
        following += count
    refuse_unless(following == index[0] >= 1, "manifest")
    refuse_unless(index[1] == -(-index[0] // CHUNKS) <= 16384, "manifest")
    refuse_unless(index[0] <= index[2] <= index[0] * LARGEST, "manifest")
    if m[1] == SYSTEM:
        refuse_unless(m[7] and 0 not in policy and len(m[9]) == 1, "manifest")
        (entry,) = m[9]
        names = [file[0] for file in entry[2]]
        refuse_unless(entry[0] == "system" and not entry[1] and all(file[1] for file in entry[2]), "manifest")
        refuse_unless(names in (["rootfs"], ["boot", "rootfs"], ["boot-a", "boot-b", "rootfs"]), "manifest")
    return m


def controls(text, allowed):
    return any((ord(c) < 32 or 127 <= ord(c) < 160) and c not in allowed for c in text)


# --- signatures and trust


def verifies(public, message, signature):
    try:
        nacl.signing.VerifyKey(public).verify(message, signature)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def message(kind, data):
    return f"inferd {kind} v1".encode() + b"\0" + sha256(data)


def check_signatures(section):
    refuse_unless(len(section) >= 4 and (len(section) - 4) % 96 == 0, "signatures-form")
    refuse_unless(struct.unpack_from("<I", section)[0] == (len(section) - 4) // 96, "signatures-form")
    records = [(section[at : at + 32], section[at + 32 : at + 96]) for at in range(4, len(section), 96)]
    refuse_unless(ascends([key for key, _ in records]), "signatures-form")
    return records


def envelope(data, kind):
    """(payload, records) of a trust document."""
    refuse_unless(len(data) <= 262144, "too-large")
    e = form(document(data, "trust-form"), {0: str, 1: bytes, 2: list}, "trust-form")
    refuse_unless(e[0] in ("root", "revocations", "permit"), "trust-form")
    records = []
    for record in items(e[2], dict, 64, "trust-form"):
        form(record, {0: bytes, 1: bytes}, "trust-form")
        refuse_unless(len(record[0]) == 32 and len(record[1]) == 64, "trust-form")
        records.append((record[0], record[1]))
    refuse_unless(ascends([key for key, _ in records]), "trust-form")
    refuse_unless(e[0] == kind, "trust-kind")
    return e[1], records


class Root:
    """A root document."""

    def __init__(self, payload):
        r = form(document(payload, "trust-form"), {0: int, 1: list, 2: list}, "trust-form")
        self.version = r[0]
        self.keys = {}
        for key in items(r[1], dict, 32, "trust-form"):
            form(key, {0: bytes, 1: str}, "trust-form")
            refuse_unless(len(key[0]) == 32, "trust-form")
            refuse_unless(len(octets(key[1])) <= 128 and not controls(key[1], ""), "trust-document")
            self.keys[sha256(key[0])] = key[0]
        refuse_unless(len(self.keys) == len(r[1]) and ascends(list(self.keys)), "trust-document")
        self.roles = {}
        for role in items(r[2], dict, 5, "trust-form"):
            form(role, {0: int, 1: int, 2: list}, "trust-form")
            items(role[2], bytes, 32, "trust-form")
            refuse_unless(role[0] in range(5), "trust-form")
            refuse_unless(ascends(role[2]) and all(key in self.keys for key in role[2]), "trust-document")
            refuse_unless(1 <= role[1] <= len(role[2]), "trust-document")
            self.roles[role[0]] = (role[1], role[2])
        refuse_unless(self.version >= 1 and ROOT in self.roles, "trust-document")
        refuse_unless(ascends([role[0] for role in r[2]]), "trust-document")

    def judge(self, role, text, records, revoked=()):
        """The ids of the keys that count."""
        refuse_unless(role in self.roles, "role-unassigned")
        threshold, holders = self.roles[role]
        refuse_unless(records, "unsigned")
        count, gone, other = [], [], []
        for key, signature in records:
            if key not in self.keys:
                continue
            refuse_unless(verifies(self.keys[key], text, signature), "signature-wrong")
            (gone if key in revoked else count if key in holders else other).append(key)
        if len(count) < threshold:
            raise Refused("key-revoked" if gone else "wrong-role" if other else "below-threshold" if count else "unknown-keys")
        return count


class Trust:
    """Whom a device believes."""

    def __init__(self, first, dev=False):
        payload, records = envelope(first, "root")
        self.root, self.dev = Root(payload), dev
        self.root.judge(ROOT, message("root", payload), records)
        self.version, self.keys, self.bundles = 0, [], []

    def rotate(self, data):
        payload, records = envelope(data, "root")
        following = Root(payload)
        refuse_unless(following.version > self.root.version, "root-replayed")
        refuse_unless(following.version == self.root.version + 1, "root-skipped")
        for root in (self.root, following):
            root.judge(ROOT, message("root", payload), records)
        self.root = following

    def revoke(self, data):
        payload, records = envelope(data, "revocations")
        r = form(document(payload, "trust-form"), {0: int, 1: list, 2: list}, "trust-form")
        for ids, most in ((r[1], 1024), (r[2], 4096)):
            items(ids, bytes, most, "trust-form")
            refuse_unless(all(len(i) == 32 for i in ids), "trust-form")
            refuse_unless(ascends(ids), "trust-document")
        refuse_unless(r[0] >= 1, "trust-document")
        self.root.judge(REVOCATION, message("revocations", payload), records, self.keys)
        refuse_unless(r[0] > self.version, "revocations-replayed")
        refuse_unless(set(self.keys) <= set(r[1]) and set(self.bundles) <= set(r[2]), "revocations-shrunk")
        self.version, self.keys, self.bundles = r[0], r[1], r[2]

    def permit(self, data, device, last):
        payload, records = envelope(data, "permit")
        p = form(document(payload, "trust-form"), {0: str, 1: str, 2: int, 3: int}, "trust-form")
        refuse_unless(NAME.fullmatch(p[1]), "trust-form")
        refuse_unless(re.fullmatch(r"[!-~]{1,128}", p[0]) and p[3] >= 1, "trust-document")
        self.root.judge(MODEL_RELEASE, message("permit", payload), records, self.keys)
        refuse_unless(p[0] == device, "permit-device")
        refuse_unless(p[3] > last, "permit-replayed")
        return {"device": p[0], "product": p[1], "version": p[2], "nonce": p[3]}

    def authorize(self, manifest, identity, records):
        refuse_unless(manifest[6] != MODEL_DEV or self.dev, "dev-role")
        text = b"inferd bundle v1\0" + identity
        count = self.root.judge(manifest[6], text, records, self.keys)
        refuse_unless(identity not in self.bundles, "bundle-revoked")
        return count


# --- index and payload


def chunks(data, parts, m):
    """(place, stored length, raw length, packed, digest) of every chunk."""
    found, following = [], 0
    index_at, (payload_at, payload_len) = parts[3][0], parts[4]
    for page in range(m[11][1]):
        at = index_at + page * PAGE
        raw = data[at : at + PAGE]
        entry = parts[2][0] + 32 * page
        refuse_unless(sha256(raw) == data[entry : entry + 32], "page-digest")
        first, records, zero = struct.unpack_from("<QII", raw)
        refuse_unless(first == following and records == min(CHUNKS, m[11][0] - page * CHUNKS) and zero == 0, "page")
        for i in range(records):
            digest = raw[16 + 48 * i : 48 + 48 * i]
            stored, length, flags, zero = struct.unpack_from("<IIII", raw, 48 + 48 * i)
            refuse_unless(flags in (0, 1) and zero == 0 and 1 <= stored and length <= LARGEST, "page")
            refuse_unless(stored < length if flags else stored == length, "page")
            found.append((payload_at + following, stored, length, flags, digest))
            following += stored
        refuse_unless(not any(raw[16 + 48 * records :]), "page")
        refuse_unless(following <= payload_len, "page")
    refuse_unless(following == payload_len, "page")
    return found


def unpack(stored, length, packed):
    if not packed:
        return stored
    try:
        frame = zstandard.get_frame_parameters(stored)
        refuse_unless(frame.window_size <= LARGEST and frame.dict_id == 0, "compression")
        decoder = zstandard.ZstdDecompressor().decompressobj()
        raw = decoder.decompress(stored)
        good = decoder.eof and not decoder.unused_data and len(raw) == length
    except zstandard.ZstdError as why:
        raise Refused("compression") from why
    refuse_unless(good, "compression")
    return raw


def read(data, trust=None):
    """(manifest, id, {(model, file): content}) of a whole bundle, or `Refused`."""
    parts, total = sections(data)
    (manifest_at, manifest_len), (signatures_at, signatures_len), (table_at, table_len) = parts[:3]
    refuse_unless(len(data) >= parts[3][0], "truncated")
    for at, length in parts[:3]:
        refuse_unless(not any(data[at + length : (at + length + 4095) // 4096 * 4096]), "padding")
    raw = data[manifest_at : manifest_at + manifest_len]
    identity = sha256(raw)
    refuse_unless(identity == data[104:136], "manifest-digest")
    signatures = data[signatures_at : signatures_at + signatures_len]
    refuse_unless(sha256(signatures) == data[136:168], "signatures-digest")
    m = check_manifest(raw)
    refuse_unless(m[11][1] * 32 == table_len and m[11][2] == parts[4][1], "header")
    refuse_unless(sha256(data[table_at : table_at + table_len]) == m[11][3], "page-table-digest")
    records = check_signatures(signatures)
    if trust:
        trust.authorize(m, identity, records)
    refuse_unless(len(data) >= total, "truncated")
    refuse_unless(len(data) == total, "trailing-bytes")
    found = chunks(data, parts, m)
    for model in m[9]:
        for file in model[2]:
            lengths = (length for _, _, length, _, _ in found[file[3] : file[3] + file[4]])
            refuse_unless(sum(lengths) == file[1], "file-length")
    for at, stored, _, _, digest in found:
        refuse_unless(sha256(data[at : at + stored]) == digest, "chunk-digest")
    refuse_unless(not any(data[parts[4][0] + parts[4][1] :]), "padding")
    contents = {}
    for model in m[9]:
        for file in model[2]:
            content = io.BytesIO()
            for at, stored, length, packed, _ in found[file[3] : file[3] + file[4]]:
                content.write(unpack(data[at : at + stored], length, packed))
            contents[model[0], file[0]] = content.getvalue()
            refuse_unless(sha256(content.getvalue()) == file[2], "file-digest")
    return m, identity.hex(), contents


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    trust = Trust(Path(sys.argv[2]).read_bytes()) if len(sys.argv) == 3 else None
    try:
        m, identity, contents = read(Path(sys.argv[1]).read_bytes(), trust)
    except Refused as why:
        sys.exit(f"refused: {why}")
    print(f"{m[2]} {m[3]} ({m[4]}): {identity}" + ("" if trust else ", signatures not judged"))
    for (model, file), content in contents.items():
        print(f"  {model}/{file}: {len(content)} bytes")


if __name__ == "__main__":
    main()
