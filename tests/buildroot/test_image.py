"""What Buildroot calls as it builds, on made-up inputs: no Buildroot and no kernel is at hand."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import tomllib

import board as boards
import builder
import debian
import glibc
import hosttools
import image
import layout as layouts
import places
import pytest
import roots
import rpi
import uboot
from steps import Failure

PIS = [name for name in boards.names() if boards.load(name).backend == "rpi-tryboot"]


# What a start4.elf says of itself.
WORDS = b"\0VC_BUILD_ID_TIME: 18:28:41\0VC_BUILD_ID_TIME: Jan 16 2025\0"
SQUASHFS = (b"hsqs" + bytes(92)).ljust(4096, b"-")


@pytest.fixture
def target(tmp_path):
    """A root filesystem as Buildroot hands it over: the overlay, BusyBox and a daemon."""
    root = tmp_path / "target"
    shutil.copytree(places.OVERLAY, root, symlinks=True)
    (root / "usr/bin").mkdir()
    for name in (*image.APPLETS_NEEDED, "inferd"):
        (root / "usr/bin" / name).touch()
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    return root


def test_a_root_filesystem_gets_what_every_builder_puts_there(target):
    board = boards.load("qemu-aarch64")
    builder.rootfs(board, target, "build-7")
    builder.rootfs(board, target, "build-7")  # Buildroot calls it at every `make`
    assert (target / "etc/inferd/board").read_text() == "qemu-aarch64\n"
    assert 'BUILD_ID="build-7"\nVARIANT_ID=production' in (target / "etc/os-release").read_text()
    builder.rootfs(board, target, "build-7", ("inferd-os", 5))
    assert (target / "etc/os-release").read_text().endswith("\nIMAGE_ID=inferd-os\nIMAGE_VERSION=5\n")
    assert not (target / "etc/os-release").is_symlink()
    assert (target / image.MODELS_IN_IMAGE / "imu-motion/manifest.toml").is_file()
    assert not (target / "README.md").exists(), "the overlay's own is for people who build"
    assert all((target / folder).is_dir() for folder in image.FOLDERS)


def test_the_daemon_of_an_image_finds_the_led_of_its_board(target):
    board = boards.load("rpi4")
    builder.rootfs(board, target, "build-7")
    # Where app/inferd/src/panel.rs looks for it.
    assert tomllib.loads((target / "etc/inferd/board.toml").read_text())["panel"] == {"led": board.panel.led}
    assert board.panel.led == "ACT"


@pytest.mark.parametrize(("gone", "says"), [("udhcpc", "this BusyBox lacks udhcpc"), ("inferd", "has no inferd; select BR2_PACKAGE_INFERD")])
def test_a_root_filesystem_that_could_not_start_is_refused(target, gone, says):
    (target / "usr/bin" / gone).unlink()
    with pytest.raises(Failure, match=says):
        builder.rootfs(boards.load("qemu-aarch64"), target, "x")


def test_an_image_for_a_hailo_without_its_firmware_says_so(target, capsys):
    builder.rootfs(boards.load("rpi5-hailo8"), target, "x")
    assert "its Hailo-8 will not run" in capsys.readouterr().out
    (target / builder.HAILO_FIRMWARE).parent.mkdir(parents=True)
    (target / builder.HAILO_FIRMWARE).touch()
    builder.rootfs(boards.load("rpi5-hailo8"), target, "x")
    assert "Hailo" not in capsys.readouterr().out


def test_an_image_that_believes_nobody_says_so_and_whom_it_believes_is_judged(target, office, capsys):
    board = boards.load("qemu-aarch64")
    builder.rootfs(board, target, "x")
    assert f"WARNING: {roots.NONE}" in capsys.readouterr().out
    roots.put(office.root, target)
    builder.rootfs(board, target, "x")
    assert "WARNING" not in capsys.readouterr().out
    # Of somebody's own overlay.
    (target / roots.PLACE).write_bytes(office.at("root.pub").read_bytes())
    with pytest.raises(Failure, match="is no root document"):
        builder.rootfs(board, target, "x")


def test_only_a_root_document_that_enough_of_its_keys_signed_gets_into_an_image(office, tmp_path):
    root, models = office.at("root.pub"), office.at("models.pub")
    half, other = tmp_path / "half.imr", tmp_path / "list.imr"
    office.run("root", "create", "-o", half, "--role", f"root=2:{root},{models}", "--role", f"revocation=1:{root}", "--key", office.at("root.key"))
    with pytest.raises(Failure, match="root 1 is signed with 1 of the 2 root keys"):
        roots.judged(half)
    office.run("root", "sign", half, "--key", office.at("models.key"))
    assert roots.judged(half) == half
    office.run("root", "revoke", "--revoke-key", models, "-o", other, "--key", office.at("root.key"))
    whole = office.root.read_bytes()
    bad = {"of the kind revocations": other.read_bytes(), "is a secret key": office.at("root.key").read_bytes()}
    for says, content in [*bad.items(), *(("is no root document", part) for part in (b"", whole[:-1], whole + b"\0", b"\x81" * 9999))]:
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(Failure, match=says):
            roots.put(tmp_path / "x", tmp_path)
    with pytest.raises(Failure, match="nothing is no file"):
        roots.put(tmp_path / "nothing", tmp_path)
    assert not (tmp_path / roots.PLACE).exists()
    roots.put(office.root, tmp_path)
    assert roots.digest(tmp_path) == image.digest(office.root)
    roots.put(None, tmp_path)
    assert not (tmp_path / roots.PLACE).exists() and roots.digest(tmp_path) is None


def cbor(value):
    """Canonical CBOR of what documents are made of."""

    def head(major, number):
        return bytes([major << 5 | number]) if number < 24 else bytes([major << 5 | 25]) + number.to_bytes(2, "big")

    match value:
        case int():
            return head(0, value)
        case bytes():
            return head(2, len(value)) + value
        case str():
            return head(3, len(value)) + value.encode()
        case list():
            return head(4, len(value)) + b"".join(map(cbor, value))
        case dict():
            return head(5, len(value)) + b"".join(cbor(part) for pair in value.items() for part in pair)


def document(signers, *, needed=1, holders=(0,), keys=(0, 1), role=0, fields=(0, 1, 2)):
    """A root document in form: which keys it knows, who of them has the role, how many it needs, and who signed it."""
    public = [bytes([number]) * 32 for number in range(3)]
    ids = [hashlib.sha256(key).digest() for key in public]
    roles = [{0: role, 1: needed, 2: [ids[number] for number in holders]}]
    payload = dict(zip(fields, (1, [{0: public[number], 1: "a key"} for number in keys], roles), strict=True))
    return cbor({0: "root", 1: cbor(payload), 2: [{0: ids[number], 1: bytes(64)} for number in signers]})


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (document([0]), None),
        (document([0, 1], needed=2, holders=[0, 1]), None),
        (document([]), "signed with 0 of the 1"),
        (document([], needed=0), "signed with 0 of the 0"),
        (document([1]), "signed with 0 of the 1"),
        (document([0, 0], needed=2, holders=[0, 1]), "signed with 1 of the 2"),
        (document([2], holders=[2]), "signed with 0 of the 1"),
        (document([0], role=1), "is no root document"),
        (document([0], fields=(0, 1, 3)), "is no root document"),
    ],
    ids=["signed", "signed-by-two", "unsigned", "nobody-is-needed", "another-role", "one-twice", "unknown-key", "no-root-role", "another-field"],
)
def test_only_signatures_of_root_keys_that_the_document_knows_count(tmp_path, content, refused):
    file = tmp_path / "root.imr"
    file.write_bytes(content)
    if refused is None:
        assert roots.judged(file) == file
        return
    with pytest.raises(Failure, match=refused):
        roots.judged(file)


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ("CONFIG_PSI=y\n# CONFIG_DEBUG is not set\n", None),
        ("CONFIG_PSI=y\n", None),
        ("# CONFIG_PSI is not set\n", "CONFIG_PSI=y"),
        ("CONFIG_PSI=m\n", "CONFIG_PSI=y"),
        ("CONFIG_PSI=y\nCONFIG_DEBUG=y\n", "CONFIG_DEBUG=y|CONFIG_DEBUG is not set"),
    ],
)
def test_a_kernel_that_dropped_a_line_of_a_fragment_is_refused(tmp_path, config, missing):
    fragment, made = tmp_path / "a.fragment", tmp_path / ".config"
    fragment.write_text("# why\nCONFIG_PSI=y\n# CONFIG_DEBUG is not set\n")
    made.write_text(config)
    if missing is None:
        builder.check_kernel(made, [fragment])
        return
    with pytest.raises(Failure, match=missing):
        builder.check_kernel(made, [fragment])


@pytest.fixture(scope="module")
def tools():
    """The same programs as Buildroot makes, from Debian."""
    return hosttools.Tools([*hosttools.IMAGE])


def made(board, folder):
    """A folder of images as Buildroot leaves it for a board."""
    folder.mkdir()
    names = [board.kernel.image, *(f"{tree.rpartition('/')[2]}.dtb" for tree in board.kernel.device_trees)]
    names += [f"rpi-firmware/{name}" for name in board.firmware.files] + ["rpi-firmware/overlays/ramoops-pi4.dtbo"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() + (WORDS if name.endswith(".elf") else b""))
    (folder / "rootfs.squashfs").write_bytes(SQUASHFS)
    return folder


def in_fat(tools, disk, partition, name):
    """A file of a FAT on a disk."""
    _, found = layouts.read_gpt(disk)
    offset = next(part.offset for part in found if part.name == partition)
    command = [tools.path("mtype"), "-i", f"{disk}@@{offset}", f"::{name}"]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("name", PIS)
def test_a_raspberry_pis_disk_starts_its_first_system(name, target, office, tools, tmp_path):
    roots.put(office.root, target)
    board = boards.load(name)
    layout = layouts.load(board)
    disk = builder.disk(board, target, made(board, tmp_path / "images"), tools, 1_000_000_000)
    guid, found = layouts.read_gpt(disk)
    assert guid == layout.disk_uuid
    assert [(part.name, part.uuid, part.size) for part in found] == [(part.name, part.uuid, part.size) for part in layout.partitions]
    assert in_fat(tools, disk, "boot", "autoboot.txt") == rpi.autoboot(layout, "a")
    assert in_fat(tools, disk, "boot", "inferd.toml.example") == b"".join(
        (places.OVERLAY / "etc/inferd" / name).read_bytes() for name in ("provision.toml", "inferd.toml")
    )
    assert in_fat(tools, disk, "boot-a", "cmdline.txt").decode() == rpi.cmdline(board, layout, "a")
    assert in_fat(tools, disk, "boot-a", "config.txt") == (places.BOARDS / name / "config.txt").read_bytes()
    assert in_fat(tools, disk, "boot-a", "Image") == b"Image"
    for file in [*(f"{tree.rpartition('/')[2]}.dtb" for tree in board.kernel.device_trees), *board.firmware.files]:
        assert in_fat(tools, disk, "boot-a", file)
    assert [path.name for path in disk.parent.iterdir() if path.suffix == ".work"] == []
    facts = json.loads(disk.with_name(f"{name}.img.json").read_text())
    assert (facts["board"], facts["dev"], facts["sha256"]) == (name, False, image.digest(disk)), "what `inferctl flash --board` asks for"
    assert facts["root_sha256"] == image.digest(office.root)


@pytest.mark.parametrize("name", PIS)
def test_a_system_of_a_raspberry_pi_is_bundled_from_what_lies_beside_its_disk(name, target, office, tools, tmp_path):
    board = boards.load(name)
    layout = layouts.load(board)
    disk = builder.disk(board, target, made(board, tmp_path / "images"), tools, 1_000_000_000)
    parts = {path.name: path for path in (disk.parent / builder.PARTS).iterdir()}
    assert set(parts) == {"rootfs", "boot-a", "boot-b"}
    for slot in rpi.SLOTS:
        read = [tools.path("mtype"), "-i", parts[f"boot-{slot}"], "::cmdline.txt"]
        assert subprocess.run(read, capture_output=True, check=True).stdout.decode() == rpi.cmdline(board, layout, slot)
    # What is written to slot a is what the disk has there.
    found = next(part for part in layouts.read_gpt(disk)[1] if part.name == "boot-a")
    with open(disk, "rb") as file:
        file.seek(found.offset)
        assert file.read(parts["boot-a"].stat().st_size) == parts["boot-a"].read_bytes()
    assert parts["rootfs"].read_bytes() == (disk.parent / "rootfs.squashfs").read_bytes()
    bundle = office.system(tmp_path / "os-2.imb", name, 2, parts)
    office.run("bundle", "verify", bundle, "--root", office.root)


def test_an_overlay_that_config_txt_names_lies_beside_the_kernel(target, tools, tmp_path):
    board = boards.load("rpi4")
    images = made(board, tmp_path / "images")
    assert in_fat(tools, builder.disk(board, target, images, tools, 1), "boot-a", "overlays/ramoops-pi4.dtbo")
    (images / "rpi-firmware/overlays/ramoops-pi4.dtbo").unlink()
    with pytest.raises(Failure, match="Buildroot has not made .*ramoops-pi4.dtbo"):
        builder.disk(board, target, images, tools, 1)


@pytest.mark.parametrize(("said", "says"), [(b"VC_BUILD_ID_TIME: Nov 25 2024", "is of 2024-11-25.* of 2025-01-16 or later"), (b"none", "does not say when")])
def test_firmware_that_the_boot_loader_does_not_start_from_is_refused(said, says, target, tools, tmp_path):
    images = made(boards.load("rpi4"), tmp_path / "images")
    (images / "rpi-firmware/start4.elf").write_bytes(said)
    with pytest.raises(Failure, match=says):
        builder.disk(boards.load("rpi4"), target, images, tools, 1)


def test_the_same_inputs_give_the_same_disk(target, tools, tmp_path):
    small = {"boot": "40M", "boot-a": "40M", "boot-b": "1M", "rootfs-a": "1M", "rootfs-b": "1M", "models-a": "1M", "models-b": "1M", "data": "16M"}
    board = dataclasses.replace(boards.load("rpi4"), sizes=small)
    images = made(board, tmp_path / "images")
    first = image.digest(builder.disk(board, target, images, tools, 1_000_000_000))
    assert image.digest(builder.disk(board, target, images, tools, 1_000_000_000)) == first


def test_a_board_of_qemu_gets_an_initramfs_with_busybox_and_what_it_needs(target, tools, tmp_path):
    board = boards.load("qemu-aarch64")
    libraries = glibc.Glibc("aarch64")
    busybox = debian.Archive("arm64", [board.debian.suite]).tree(["busybox-static"]).path / "usr/bin/busybox"
    shutil.copy(busybox, target / "usr/bin/busybox")
    for path in (target / "usr/lib").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (target / "usr/lib").rmdir()
    (target / "usr/lib").symlink_to(libraries.folder)
    disk = builder.disk(board, target, made(board, tmp_path / "images"), tools, 1)
    (tmp_path / "initramfs").write_bytes(in_fat(tools, disk, "boot-a", "initramfs"))
    listed = subprocess.run(
        f"gzip -dc '{tmp_path}/initramfs' | '{hosttools.Tools(['cpio']).path('cpio')}' -t --quiet", shell=True, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"init", "bin/busybox", "bin/mount", "lib/ld-linux-aarch64.so.1", "lib/modules/order", "dev/console"} <= set(listed)
    assert in_fat(tools, disk, "boot-a", "kernel") == b"Image"
    assert in_fat(tools, disk, "boot-a", "cmdline.txt").decode() == builder.cmdline(board) + "\n"
    assert in_fat(tools, disk, "boot", "boot.scr") == uboot.boot_files(1)["boot.scr"]


def test_built_in_drivers_are_told_on_the_command_line_what_modules_are_told_as_they_load():
    words = builder.cmdline(boards.load("qemu-x86_64")).split()
    assert {"i6300esb.heartbeat=60", "i6300esb.nowayout=1", "watchdog.stop_on_reboot=0", "ramoops.ecc=1"} <= set(words)
    words = builder.cmdline(boards.load("qemu-aarch64")).split()
    assert words.count("watchdog.stop_on_reboot=0") == 1


def test_a_tool_that_buildroot_has_not_made_is_named(tmp_path):
    with pytest.raises(Failure, match="has no genimage; the board's defconfig selects"):
        builder.HostTools(tmp_path).path("genimage")
