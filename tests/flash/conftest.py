"""Images, cards, and loop devices where there are any."""

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

import hosttools
import pytest

MIB = 1 << 20
BLOCK = 4096


def noise(size, seed=0):
    """Bytes that repeat nowhere, the same for a seed."""
    return hashlib.shake_128(str(seed).encode()).digest(size)


def disk(size, seed=0):
    """Noise that begins as a disk with a table of partitions does."""
    return noise(510, seed) + b"\x55\xaa" + noise(size, seed)[512:]


def bmap(image_size, ranges, read, block=BLOCK):
    """A block map as bmaptool 2.0 writes it; `read(offset, length)` gives the image's bytes."""
    rows = ""
    for first, last in ranges:
        content = read(first * block, min((last + 1) * block, image_size) - first * block)
        rows += f'<Range chksum="{hashlib.sha256(content).hexdigest()}"> {first}-{last} </Range>\n'
    zeros = "0" * 64
    text = (
        f'<?xml version="1.0" ?>\n<bmap version="2.0"><ImageSize> {image_size} </ImageSize><BlockSize> {block} </BlockSize>'
        f"<BlocksCount> {-(-image_size // block)} </BlocksCount><ChecksumType> sha256 </ChecksumType>"
        f"<BmapFileChecksum> {zeros} </BmapFileChecksum><BlockMap>\n{rows}</BlockMap></bmap>\n"
    )
    return text.replace(zeros, hashlib.sha256(text.encode()).hexdigest(), 1)


LACKING = "cards were not tested on block devices: "


def lacking(why):
    """Leaves out a test of block devices; where they must be had, it fails."""
    if os.environ.get("INFERD_NEED_LOOPS") == "1":
        pytest.fail(f"{why}, and INFERD_NEED_LOOPS=1 asks for them")
    pytest.skip(LACKING + why)


def pytest_terminal_summary(terminalreporter):
    """One line where tests were left out."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    reasons = [reason.partition(LACKING)[2] for reason in reasons if LACKING in reason]
    if reasons:
        terminalreporter.write_line(f"{LACKING}left out {len(reasons)} times ({reasons[0].splitlines()[0]})")


@pytest.fixture
def image(tmp_path):
    """An image of 3 MiB and 512 bytes: its end is no whole block."""
    file = tmp_path / "x.img"
    file.write_bytes(disk(3 * MIB + 512))
    return file


@pytest.fixture
def card(tmp_path):
    """A file of a card's size with something on it already."""
    file = tmp_path / "card"
    file.write_bytes(b"\xee" * (8 * MIB))
    return file


@pytest.fixture
def flash(inferctl):
    """Runs `inferctl flash --json` and gives exit code and answer."""

    def run(*arguments, **options):
        done = inferctl("--json", "flash", *arguments, **options)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)

    return run


@pytest.fixture
def loop():
    """Block devices over files: `loop(file, "-r")` gives its node; needs root."""
    with contextlib.ExitStack() as stack:

        def attach(file, *options):
            command = ["losetup", "--find", "--show", *options, str(file)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except FileNotFoundError:
                lacking("this machine has no losetup")
            if done.returncode != 0:
                lacking(f"no loop devices here: {done.stderr.strip()}")
            device = Path(done.stdout.strip())
            stack.callback(subprocess.run, ["losetup", "--detach", str(device)], capture_output=True, check=False)
            return device

        yield attach


@pytest.fixture
def place():
    """A folder to mount in, below /tmp: a checkout or TMPDIR may lie below what is taken for the system's."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="inferd-flash-") as folder:
        yield Path(folder)


@pytest.fixture
def mounted(place):
    """Mounts: `mounted(source, folder, "-t", "ext4")`; unmounted when the test ends, before `place` is removed."""
    assert place.is_dir()
    with contextlib.ExitStack() as stack:

        def mount(source, folder, *options):
            folder.mkdir(exist_ok=True)
            done = subprocess.run(["mount", *options, str(source), str(folder)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                lacking(f"nothing can be mounted here: {done.stderr.strip()}")
            stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], capture_output=True, check=False)
            return folder

        yield mount


@pytest.fixture(scope="session")
def tools():
    """Programs of Debian: `tools("minisign")`."""

    def path(program):
        # Those of images are unpacked together.
        packages = hosttools.IMAGE if program in ("genimage", "mkfs.ext4", "mkfs.fat", "mtype", "mcopy") else [program]
        return hosttools.Tools(packages).path(program)

    return path


@pytest.fixture(scope="session")
def zstd(tools):
    """Packs a file beside itself."""

    def pack(file):
        subprocess.run([tools("zstd"), "-q", "-f", "-3", file], check=True)
        return file.with_name(file.name + ".zst")

    return pack


def beginning(file, size):
    """What a card begins with."""
    with open(file, "rb") as opened:
        return opened.read(size)


def gpt_image(file, tools):
    """An image with a FAT called boot, as genimage makes them; also where that begins."""
    folder = file.parent
    fat = folder / "boot.vfat"
    fat.touch()
    os.truncate(fat, 4 * MIB)
    subprocess.run([tools("mkfs.fat"), "-F", "12", fat], check=True, capture_output=True)
    (folder / "empty").mkdir()
    settings = folder / "genimage.cfg"
    settings.write_text(
        f'image {file.name} {{\n hdimage {{\n partition-table-type = "gpt"\n align = 1M\n }}\n'
        ' partition other { size = 1M }\n partition boot { image = "boot.vfat" }\n}\n'
    )
    command = [tools("genimage"), "--config", settings, "--inputpath", folder, "--outputpath", folder]
    subprocess.run([*command, "--rootpath", folder / "empty", "--tmppath", folder / "tmp"], check=True, capture_output=True)
    return file, 2 * MIB
