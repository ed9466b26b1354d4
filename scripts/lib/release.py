"""What is handed out of an image: packed, with a block map, checksums and a signature; the same bytes for the same image.

    NAME.img.zst          the image, by Debian's zstd
    NAME.img.bmap         which blocks mean something, as bmaptool 2.0 reads it
    NAME.img.json         what is in it; nothing that depends on where it was made
    NAME.img.cdx.json     the bill of materials of an image made here; Buildroot and OpenEmbedded make their own
    SHA256SUMS            of all of them, also of other boards' in the same folder
    SHA256SUMS.minisig    with a key of `inferctl keygen`; minisign.pub is that key as minisign reads it
"""

import argparse
import hashlib
import json
import os
import tempfile
from pathlib import Path

import hosttools
import layout as layouts
import rust
from steps import Failure, main, run, say, step

BLOCK = 4096
MIB = 1 << 20
# Facts of the machine that made it: how its file system keeps holes.
LOCAL = ("image_bytes_written",)
# Images of 300 to 1300 MB whose content is packed already: more costs minutes and gains a percent.
LEVEL = 9
KINDS = (".img.zst", ".img.bmap", ".img.json", ".img.cdx.json")
DEV = "an image with --dev has a root shell and the developer's API key: it is not released"


def facts_of(beside):
    """What the JSON beside an image says of it."""
    try:
        facts = json.loads(beside.read_text())
    except ValueError as error:
        raise Failure(f"{beside} is no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise Failure(f"{beside} does not say what an image is")
    return facts


def make(image, folder, key=None, inferctl=None, name=None, sbom=None):
    """Puts a release of `image` into `folder`, signed where there is a `key`; returns the files of this image. It is called as the image is, or
    `name`; `sbom` is its bill of materials."""
    name = name or image.name.removesuffix(".img")
    if image.name == name:
        raise Failure(f"{image.name} must end in .img to be released")
    beside = image.with_name(image.name + ".json")
    stated = facts_of(beside)
    if unsaid := {"dev", "startable", "missing"} - set(stated):
        raise Failure(f"{beside} does not say what a release is judged by: {', '.join(sorted(unsaid))}")
    if stated["dev"]:
        raise Failure(DEV)
    if not stated["startable"]:
        raise Failure(f"{image.name} does not start as it is and is not released: it lacks {' and '.join(stated['missing'])}")
    folder.mkdir(parents=True, exist_ok=True)
    others = checked(folder, [name + kind for kind in KINDS], key, inferctl)
    with step(f"Making {folder.name}/{name}.img.zst and what belongs to it") as remark:
        packed, mapped, facts, bill = (folder / (name + kind) for kind in KINDS)
        pack(image, packed)
        mapped.write_text(bmap(image))
        facts.write_text(json.dumps({name: fact for name, fact in stated.items() if name not in LOCAL}, indent=2) + "\n")
        # That of an earlier image of this name is not this one's.
        bill.unlink(missing_ok=True)
        if sbom:
            bill.write_text(sbom)
        files = [packed, mapped, facts, *([bill] if sbom else [])]
        for file in files:
            file.chmod(0o644)
        remark.append(f"{packed.stat().st_size / MIB:.1f} MiB, of {image.stat().st_size / MIB:.0f}")
        write_list(folder, others + [line_of(file) for file in files], key, inferctl)
    return files


def checked(folder, mine, key, inferctl):
    """The lines of SHA256SUMS of the other releases in a folder. What is not as it was listed there, and signed, is refused: a new list
    would vouch for it, too."""
    listed, signature = folder / "SHA256SUMS", folder / "SHA256SUMS.minisig"
    if signature.exists() and not key:
        raise Failure(f"{folder} is signed; a release without --release-key goes into another folder")
    others = sorted(path for path in folder.iterdir() if path.name.endswith(KINDS) and path.name not in mine)
    if others and key and not signature.exists():
        raise Failure(f"nobody has signed {others[0]}; a release with --release-key goes into another folder")
    if others and key:
        with tempfile.TemporaryDirectory() as scratch:
            any_file, public = Path(scratch) / "any", Path(scratch) / "pub"
            any_file.touch()
            run([inferctl, "sign", any_file, "--key", key, "--write-pub", public])
            run([inferctl, "verify", listed, "--pub", public])
    known = set(listed.read_text().splitlines(keepends=True)) if listed.exists() else set()
    lines = [line_of(path) for path in others]
    for path, line in zip(others, lines, strict=True):
        if line not in known:
            raise Failure(f"{path} is not what {listed} says; take it out, or make a folder anew")
    return lines


def write_list(folder, lines, key, inferctl):
    """SHA256SUMS, as sha256sum writes and checks it, and where there is a key its signature: both are there before they take the place of the old ones."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sums-") as scratch:
        fresh = Path(scratch) / "SHA256SUMS"
        fresh.write_text("".join(sorted(lines, key=lambda line: line.split("  ")[1])))
        if key:
            run([inferctl, "sign", fresh, "--key", key, "--write-pub", Path(scratch) / "minisign.pub"])
        for path in sorted(Path(scratch).iterdir()):
            path.chmod(0o644)
            path.replace(folder / path.name)


def pack(image, output):
    """zstd's frames do not depend on how many threads made them, but on whether any did."""
    zstd = hosttools.Tools(["zstd"]).path("zstd")
    # Half a file never has the name of a whole one.
    fresh = output.with_name(f".{output.name}.new")
    run([zstd, "-q", "-f", "-T2", f"-{LEVEL}", "--no-progress", "-o", fresh, image])
    fresh.replace(output)


def line_of(path):
    """A file's line of SHA256SUMS."""
    with open(path, "rb") as file:
        return f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n"


def bmap(image):
    """The block map of an image, as text."""
    size = image.stat().st_size
    ranges = mapped(image)
    rows = []
    with open(image, "rb") as file:
        for first, last in ranges:
            file.seek(first * BLOCK)
            digest = hashlib.sha256()
            left = (last + 1 - first) * BLOCK
            while left and (part := file.read(min(left, MIB))):
                digest.update(part)
                left -= len(part)
            blocks = f"{first}-{last}" if first != last else f"{first}"
            rows.append(f'        <Range chksum="{digest.hexdigest()}"> {blocks} </Range>\n')
    count = sum(last + 1 - first for first, last in ranges)
    zeros = "0" * 64
    text = f"""<?xml version="1.0" ?>
<bmap version="2.0">
    <ImageSize> {size} </ImageSize>
    <BlockSize> {BLOCK} </BlockSize>
    <BlocksCount> {-(-size // BLOCK)} </BlocksCount>
    <MappedBlocksCount> {count} </MappedBlocksCount>
    <ChecksumType> sha256 </ChecksumType>
    <BmapFileChecksum> {zeros} </BmapFileChecksum>
    <BlockMap>
{"".join(rows)}    </BlockMap>
</bmap>
"""
    return text.replace(zeros, hashlib.sha256(text.encode()).hexdigest(), 1)


def mapped(image):
    """First and last block of every range that must be on a card: what lies outside of partitions; file systems that are written
    to, whole; of the other partitions the first MiB (so that nothing of a former life is found there) and what is not zero. It
    follows from the image's bytes, never from how a file system keeps them."""
    size = image.stat().st_size
    partitions = sorted(layouts.read_gpt(image)[1], key=lambda part: part.offset)
    wanted, end = [], 0
    with open(image, "rb") as file:
        for part in partitions:
            wanted.append((end, part.offset))
            end = part.offset + part.size
            used = last_used(file, part.offset, end)
            # Where mkfs left a hole in a file system that is written to, zeros are meant, and a used card holds something else.
            whole = used > part.offset and (part.type == layouts.TYPES["boot"] or part.name == "data")
            wanted.append((part.offset, end if whole else max(used, min(end, part.offset + MIB))))
    wanted.append((end, size))
    ranges = []
    for start, stop in wanted:
        if start >= stop:
            continue
        first, last = start // BLOCK, (stop - 1) // BLOCK
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(last, ranges[-1][1]))
        else:
            ranges.append((first, last))
    return ranges


def last_used(file, start, end):
    """One after the last block between two places that is not all zeros; `start` where all are. Holes are not read."""
    used, at = start, start
    while at < end:
        try:
            at = max(at, os.lseek(file.fileno(), at, os.SEEK_DATA) // BLOCK * BLOCK)
        except OSError:  # ENXIO: only a hole is left
            break
        if at >= end:
            break
        part = os.pread(file.fileno(), min(MIB, end - at), at)
        kept = len(part.rstrip(b"\0"))
        if kept:
            used = min(end, at + -(-kept // BLOCK) * BLOCK)
        at += len(part)
    return used


def of_another_builder(image, folder, key, name, inferctl):
    """A release of what Buildroot or OpenEmbedded has made, which says in a JSON beside it what it is."""
    beside = image.with_name(image.name + ".json")
    if not image.is_file() or not beside.is_file():
        raise Failure(f"{image if not image.is_file() else beside} is not there: Buildroot's images are NAME.img, OpenEmbedded's NAME.wic, each with its JSON")
    with open(image, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != facts_of(beside).get("sha256"):
            raise Failure(f"{image} is not the image that {beside.name} tells of")
    return make(image, folder, key, inferctl, name)


def cli():
    """`python3 -B scripts/lib/release.py`: scripts/image --release for an image that is there."""
    parser = argparse.ArgumentParser(prog="release.py", description="Make what is handed out of an image by Buildroot or OpenEmbedded.")
    parser.add_argument("image", type=Path, help="NAME.img or NAME.wic, with its JSON beside it")
    parser.add_argument("folder", type=Path, help="where the release goes; other boards' may be there")
    parser.add_argument("--key", type=Path, metavar="NAME.key", help="sign SHA256SUMS with this key of `inferctl keygen`")
    parser.add_argument("--name", help="what the release is called (default: as the image, without its ending)")
    options = parser.parse_args()
    if options.key and not options.key.is_file():
        raise Failure(f"there is no {options.key}; `inferctl keygen` makes a key")
    name = options.name or options.image.name.removesuffix(".img").removesuffix(".wic")
    inferctl = rust.build_for_host("inferctl") if options.key else None
    for file in of_another_builder(options.image, options.folder, options.key, name, inferctl):
        say(file)
    return 0


if __name__ == "__main__":
    main(cli)
