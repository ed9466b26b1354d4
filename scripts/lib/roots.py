"""The root document that an image is born with, looked at before it gets in: whom a device believes cannot be put right from afar.

Its form (app/bundle/README.md, "Who may sign") is read as far as it takes to say that it is one, and that as many of its own root keys
as it asks for have signed it. That each signature is right is for `inferctl root show` and for the device: there is no Ed25519 here.
"""

import argparse
import hashlib
import shutil
from pathlib import Path

from steps import Failure, main

PLACE = "etc/inferd/root.imr"
NONE = f"the image has no /{PLACE}: a device with it accepts no bundle, neither of models nor of systems"
MOST = 262_144


def judged(path):
    """The file, where devices would take it for a first root document."""
    if not path.is_file():
        raise Failure(f"{path} is no file; `inferctl root create` makes a root document")
    with open(path, "rb") as file:
        text = file.read(MOST + 1)
    if text.startswith(b"inferd-secret-key"):
        raise Failure(f"{path} is a secret key, which belongs into no image; `inferctl root create` makes a root document")
    try:
        kind, payload, signatures = _fields(_whole(text), 3)
        if kind != "root":
            raise Failure(f"{path} is a document of the kind {kind}, and devices are born with one of the kind root")
        version, keys, roles = _fields(_whole(payload), 3)
        # Role 0 is root; a key's id is its digest.
        known = {hashlib.sha256(_fields(key, 2)[0]).digest() for key in keys}
        needed, holders = next((most, ids) for role, most, ids in (_fields(role, 3) for role in roles) if role == 0)
        signed = {_fields(signature, 2)[0] for signature in signatures} & set(holders) & known
        enough = 1 <= needed <= len(signed)
    except (ValueError, TypeError, IndexError, StopIteration, RecursionError) as error:
        raise Failure(f"{path} is no root document; `inferctl root create` makes one") from error
    if not enough:
        raise Failure(f"{path}: root {version} is signed with {len(signed)} of the {needed} root keys that it needs (`inferctl root sign`)")
    return path


def put(path, root):
    """Puts a root document into a root filesystem; without one there is none afterwards."""
    place = root / PLACE
    if path is None:
        place.unlink(missing_ok=True)
        return
    judged(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)
    place.chmod(0o644)


def digest(root):
    """The SHA-256 of a root filesystem's document, for the facts beside an image."""
    place = root / PLACE
    return hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else None


def _whole(text):
    """What is written in CBOR; nothing may follow it."""
    value, end = _item(text, 0)
    if end != len(text):
        raise ValueError("something follows")
    return value


def _fields(value, count):
    """The values of a map whose keys are 0, 1, 2, ..."""
    if not isinstance(value, dict) or list(value) != [*range(count)]:
        raise ValueError("another map")
    return [*value.values()]


def _item(text, at):
    """One item of canonical CBOR, of the five kinds that documents have, and where the next one begins."""
    major, short = text[at] >> 5, text[at] & 31
    at += 1
    wide = {24: 1, 25: 2, 26: 4}.get(short, 0)
    if short > 26 or len(text) < at + wide:
        raise ValueError("no length of ours")
    number = int.from_bytes(text[at : at + wide], "big") if wide else short
    at += wide
    if major == 0:
        return number, at
    if major in (2, 3):
        part = text[at : at + number]
        # One that is cut off has its end behind the text's: `_whole` sees it.
        return (part.decode() if major == 3 else part), at + number
    if major not in (4, 5):
        raise ValueError("another kind")
    values = []
    for _ in range(number if major == 4 else 2 * number):
        value, at = _item(text, at)
        values.append(value)
    return (values if major == 4 else dict(zip(values[::2], values[1::2], strict=True))), at


def cli():
    """Called by buildroot/package/inferd and by the recipe inferd-appliance."""
    parser = argparse.ArgumentParser(prog="roots.py", description="Puts a root document into a root filesystem, where it is one.")
    parser.add_argument("document", type=Path)
    parser.add_argument("root", type=Path, help="the folder of the root filesystem")
    options = parser.parse_args()
    put(options.document, options.root)
    return 0


if __name__ == "__main__":
    main(cli)
