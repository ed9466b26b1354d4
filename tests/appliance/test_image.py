"""The image as it ships, looked at from outside without starting it."""

import hashlib
import re
import stat
import subprocess
import tomllib
from pathlib import Path

import engines
import glibc
import hosttools
import layout as layouts
import targets
import places
import programs
import pytest
import qemu
import rust
from appliance import given


@pytest.fixture(scope="module")
def tools():
    """The programs that read an image."""
    return hosttools.Tools(hosttools.IMAGE)


@pytest.fixture(scope="module")
def partitions(production_image):
    """The image's partitions by name."""
    return {part.name: part for part in layouts.read_gpt(production_image[0])[1]}


@pytest.fixture(scope="module")
def root(production_image, partitions, tools, tmp_path_factory):
    """The root filesystem, unpacked."""
    folder = tmp_path_factory.mktemp("root")
    file = folder / "rootfs.squashfs"
    file.write_bytes(content(production_image[0], partitions["rootfs-a"]))
    unsquashfs = tools.path("unsquashfs")
    subprocess.run([unsquashfs, "-quiet", "-no-progress", "-d", folder / "tree", file], check=True, capture_output=True)
    return folder / "tree"


def content(image, part):
    """A partition's bytes."""
    with open(image, "rb") as file:
        file.seek(part.offset)
        return file.read(part.size)


def test_the_partition_table_is_the_one_layout_of_all_boards(production_image, board):
    layout = layouts.load(board)
    disk, found = layouts.read_gpt(production_image[0])
    assert disk == layout.disk_uuid
    assert [(p.name, p.uuid, p.type, p.size) for p in found] == [(p.name, p.uuid, p.type, p.size) for p in layout.partitions]


def test_slot_a_holds_a_root_filesystem_and_the_other_slots_are_empty(production_image, partitions):
    assert content(production_image[0], partitions["rootfs-a"])[:4] == b"hsqs"
    for name in {"boot-b", "bootstate", "rootfs-b", "models-a", "models-b"} & set(partitions):
        assert not any(content(production_image[0], partitions[name])), f"{name} is not empty"


def test_the_data_filesystem_is_sound(production_image, partitions, tools, tmp_path):
    file = tmp_path / "data.ext4"
    file.write_bytes(content(production_image[0], partitions["data"]))
    checked = subprocess.run([tools.path("e2fsck"), "-f", "-n", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_boot_partition_holds_what_a_boot_loader_needs(production_image, board, tmp_path):
    kernel, initramfs, cmdline = qemu.boot_files(production_image[0], tmp_path)
    assert kernel.stat().st_size > 1 << 20
    assert initramfs.read_bytes()[:2] == b"\x1f\x8b"
    slot = ["inferd.slot=a"] if board.backend == "uboot-env" else []
    words = board.cmdline.split() + slot
    # Where drivers are built in, their parameters stand there too.
    assert [word for word in cmdline.split() if word in words] == words and f"console={board.console}" in cmdline


def test_the_kernel_is_the_one_that_the_facts_tell_of_and_gets_the_boards_command_line_and_nothing_else(production_image, board, tmp_path):
    given.skip_for_another_builder("which kernel and modules Debian's packages have")
    kernel, _, cmdline = qemu.boot_files(production_image[0], tmp_path)
    assert kernel.stat().st_size == production_image[1]["kernel_bytes"]
    assert cmdline == board.cmdline + (" inferd.slot=a" if board.backend == "uboot-env" else "")


def passwords(file):
    """What a file of accounts has in place of a password, by name."""
    return {line.split(":")[0]: line.split(":")[1] for line in file.read_text().splitlines()} if file.exists() else {}


def test_nobody_can_log_in_on_a_production_image(root):
    lines = [line for line in (root / "etc/inittab").read_text().splitlines() if line and not line.startswith("#")]
    assert lines, "the image has no inittab"
    assert not [line for line in lines if not line.startswith("::")], "something runs on a terminal"
    assert not [line for line in lines if re.search(r"getty|login|[/-]sh\b", line)]
    accounts, shadow = passwords(root / "etc/passwd"), passwords(root / "etc/shadow")
    assert accounts
    for name, password in [*accounts.items(), *shadow.items()]:
        # Beginning with * or !, no password is the right one; x stands for the one in the shadow.
        password = shadow.get(name, "") if password == "x" else password
        assert password[:1] in ("*", "!"), name
    # An SSH server may be there: only `services` starts it, where the boot partition has a key.
    remote = {"sshd", "dropbear", "telnetd", "rlogind", "rshd", "tftpd", "ftpd"}
    started = [path for path in (root / "etc/init.d").rglob("*") if path.is_file()] + [root / "etc/inittab"]
    started += [path for path in (root / "usr/libexec/inferd").iterdir() if path.name != "services"]
    for path in root.rglob("*"):
        assert path.name not in remote - {"sshd", "dropbear"} or path.is_symlink(), f"{path.relative_to(root)} lets somebody in"
    for path in started:
        words = set(re.findall(r"[a-z]+", re.sub(r"(?m)^\s*#.*", "", path.read_text(errors="replace"))))
        assert not words & (remote | {"getty"}), path
    assert not list(root.glob("root/.ssh/*")) and not list(root.glob("home/*/.ssh/*"))
    assert "VARIANT_ID=production" in (root / "etc/os-release").read_text()


def test_no_file_is_setuid_or_writable_by_others(root):
    for path in root.rglob("*"):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IWGRP | stat.S_IWOTH), f"{path.relative_to(root)} {mode:o}"


def test_the_daemon_in_the_image_is_the_one_that_was_built(root, daemon_for_board):
    given.skip_for_another_builder("Buildroot strips every program once more")
    assert (root / "usr/bin/inferd").read_bytes() == daemon_for_board.read_bytes()


def test_the_engines_in_the_image_are_whole(root, board, production_image):
    given.skip_for_another_builder("where scripts/image puts Debian's C library and ONNX Runtime")
    facts, folder = production_image[1], root / engines.FOLDER
    assert not facts["minimal"] and facts["onnxruntime"] == engines.ONNXRUNTIME
    libraries = glibc.Glibc(board.architecture_in_rust)
    assert facts["packages"].items() >= libraries.versions.items()
    host, library = folder / engines.PACKAGE, folder / f"libonnxruntime.so.{engines.ONNXRUNTIME}"
    assert host.stat().st_mode & 0o111 and library.read_bytes() == engines.onnxruntime(board.architecture_in_rust).library.read_bytes()
    assert (folder / "libonnxruntime.so").readlink() == Path(library.name), "the engine looks for this name"
    needed = glibc.together([host, library], libraries)
    there = root / f"usr/lib/{board.architecture_in_rust}-linux-gnu"
    wanted = needed.libraries | programs.prepare(board).needed()[1]
    assert {file.name: file.read_bytes() for file in there.iterdir()} == {name: file.read_bytes() for name, file in wanted.items()}
    loader = root / needed.loader.lstrip("/")
    assert loader.resolve() == there / loader.name
    assert {file.name for file in (root / engines.LICENSES).iterdir()} == {"LICENSE", "ThirdPartyNotices.txt"}


def test_the_programs_that_inferd_toml_may_ask_for_are_in_the_image_with_their_licences_and_are_told(root, board, production_image):
    given.skip_for_another_builder("which programs of Debian scripts/image takes")
    assert board.debian.programs
    for entry in board.debian.programs:
        package, name = entry.split("/")
        assert (root / "usr/bin" / name).stat().st_mode & 0o111 and not (root / "usr/bin" / name).is_symlink(), "the package's, not an applet"
        assert (root / "usr/share/licenses" / package / "copyright").stat().st_size > 500 and package in production_image[1]["packages"]


def test_the_models_in_the_image_are_whole(root, production_image):
    models = sorted((root / "usr/share/inferd/models").iterdir())
    names = [model.name for model in models]
    assert "imu-motion" in names and names == (production_image[1]["models"] if given.image() else ["imu-motion"])
    for model in models:
        manifest = tomllib.loads((model / "manifest.toml").read_text())
        for part in ("onnx", "golden"):
            file = model / manifest[part]["file"]
            assert hashlib.sha256(file.read_bytes()).hexdigest() == manifest[part]["sha256"]


@pytest.mark.parametrize("target", targets.MUSL)
def test_the_shipped_daemon_is_static(target):
    program = places.target() / target / "release/inferd"
    if not program.is_file():
        pytest.skip(f"no daemon is built for {target}; scripts/test builds both")
    rust.check_static(program, target)
