"""The parts an image is made of: archives, layouts, board pages, kernel modules. Needs no image and no QEMU."""

import fcntl
import gzip
import os
import re
import stat
import struct
import subprocess
import tomllib

import board as boards
import cpio
import debian
import hosttools
import image
import layout as layouts
import modules
import places
import pytest
import rust
import steps
from steps import Failure

BOARD_PAGE = (places.BOARDS / "qemu-aarch64/board.toml").read_text()
LAYOUT_PAGE = (places.BOARDS / "common/layout.toml").read_text()


@pytest.mark.parametrize("name", boards.names())
def test_every_board_page_is_complete_and_fits_the_layout(name):
    board = boards.load(name)
    assert board.name == name, "a board is called like its folder"
    assert {part.content for part in layouts.load(board).partitions} >= {"boot", "rootfs", "data"}
    assert not board.qemu or board.debian, "what QEMU plays is what scripts/image assembles"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("suite = ", "suit = "), "'debian.suite' is missing"),
        (("cpus = 2", 'cpus = "2"'), "'qemu.cpus' is '2', not of type int"),
        (("[watchdog]", "[watchdog]\npaw = 1"), "unknown keys: watchdog.paw"),
        (('backend = "uboot-env"', 'backend = "grub"'), "'boot.backend' is 'grub', not one of initramfs, uboot-env, rpi-tryboot, uefi-nv"),
        (("max-seconds = 2046", "max-seconds = 10"), "'watchdog.max-seconds' is 10, not from 15 to 65536"),
        (("max-seconds = 2046", "max-seconds = true"), "'watchdog.max-seconds' is True, not of type int"),
        (('"onnxruntime"', '"openvino"'), "'engines.kinds' has 'openvino', not one of rten, onnxruntime, hailo, tensorrt"),
        (("page-kib = 4", "page-kib = 5"), "'kernel.page-kib' is 5, not one of 4, 16, 64"),
        (('device = "ttyAMA0"', 'device = "ttyS9"'), "does not name the console 'ttyS9'"),
        (('dev-shell = "hvc0"', ""), "'console.dev-shell' is missing"),
        (("[watchdog]", '[panel]\nled = "ACT"\nbutton-gpio = 27\n[watchdog]'), "'panel.led' is an LED of the kernel's, beside which"),
        (("[watchdog]", "[watchdog"), "board.toml: "),
    ],
)
def test_a_wrong_board_page_is_refused_with_the_key_that_is_wrong(change, says):
    with pytest.raises(Failure, match=says.replace("[", r"\[")):
        boards.parse(BOARD_PAGE.replace(*change), "board.toml")


def test_an_unknown_board_is_refused_with_the_names_of_those_there_are():
    with pytest.raises(Failure, match="no board 'toaster'; there are: .*qemu-aarch64"):
        boards.load("toaster")


def test_a_board_may_change_a_partition_size_but_not_invent_a_partition():
    layout = layouts.parse(LAYOUT_PAGE, {"data": "1G"}, "layout.toml")
    assert layout.named("data").size == 1 << 30
    with pytest.raises(Failure, match="does not have: swap"):
        layouts.parse(LAYOUT_PAGE, {"swap": "1G"}, "layout.toml")


@pytest.mark.parametrize("size", ["", "64", "M", "0M", "-1M", "1.5G", "64MB"])
def test_a_partition_size_that_is_no_size_is_refused(size):
    with pytest.raises(Failure, match="is no size"):
        layouts.parse_size(size)


def test_genimage_lays_a_disk_out_as_the_layout_says(tmp_path):
    layout = layouts.load(boards.load("rpi4"))
    files = {}
    for content in filter(None, (part.content for part in layout.partitions)):
        files[content] = tmp_path / content
        files[content].write_bytes(content.encode() * 100)
    image.disk(layout, files, hosttools.Tools(hosttools.IMAGE), tmp_path, tmp_path / "out.img")
    disk, found = layouts.read_gpt(tmp_path / "out.img")
    assert disk == layout.disk_uuid
    assert [(p.name, p.uuid, p.type, p.size) for p in found] == [(p.name, p.uuid, p.type, p.size) for p in layout.partitions]
    assert all(part.offset % layout.align == 0 for part in found)
    with open(tmp_path / "out.img", "rb") as file:
        file.seek(next(part.offset for part in found if part.name == "rootfs-a"))
        assert file.read(12) == b"rootfsrootfs"


def test_a_part_that_does_not_fit_its_partition_is_refused_with_the_key_to_change(tmp_path):
    rootfs = tmp_path / "rootfs"
    with open(rootfs, "wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(Failure, match=r"rootfs part is 64\.0 MiB.*raise rootfs-a under \[sizes\]"):
        image.disk(layouts.load(), {"rootfs": rootfs}, None, tmp_path, tmp_path / "out.img")


def test_a_damaged_partition_table_is_noticed(tmp_path):
    layout = layouts.load()
    files = {part.content: tmp_path / part.content for part in layout.partitions if part.content}
    for file in files.values():
        file.write_bytes(b"x")
    image.disk(layout, files, hosttools.Tools(hosttools.IMAGE), tmp_path, tmp_path / "out.img")
    with open(tmp_path / "out.img", "r+b") as file:
        file.seek(512 + 72)
        first_entry = int.from_bytes(file.read(8), "little") * 512
        file.seek(first_entry + 56)
        file.write(b"B")
    with pytest.raises(Failure, match="entries' checksum is wrong"):
        layouts.read_gpt(tmp_path / "out.img")


def test_a_cpio_archive_holds_what_was_added(tmp_path):
    archive = cpio.Archive()
    archive.directory("bin")
    archive.file("bin/tool", b"#!/bin/sh\n", 0o755)
    archive.symlink("bin/link", "tool")
    archive.file("odd", b"12345")
    subprocess.run([hosttools.Tools(["cpio"]).path("cpio"), "-i", "--quiet"], input=archive.bytes(), cwd=tmp_path, check=True)
    assert (tmp_path / "bin/tool").read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE((tmp_path / "bin/tool").stat().st_mode) == 0o755
    assert (tmp_path / "bin/link").readlink().name == "tool"
    assert (tmp_path / "odd").read_bytes() == b"12345"


def test_a_cpio_archive_is_the_same_bytes_every_time_and_carries_the_console_device():
    def make():
        archive = cpio.Archive()
        archive.character_device("dev/console", 5, 1)
        return archive.bytes()

    assert make() == make()
    head = make()[:110]
    fields = [int(head[6 + 8 * n : 14 + 8 * n], 16) for n in range(13)]
    assert stat.S_ISCHR(fields[1]) and fields[9:11] == [5, 1] and fields[5] == 0


@pytest.fixture(scope="module", params=boards.assembled())
def packages(request):
    """Each board with its kernel and BusyBox."""
    board = boards.load(request.param)
    return board, image.packages_of(board).path


def test_modules_are_loaded_after_what_they_depend_on_and_built_in_ones_are_left_out(packages):
    board, tree = packages
    known = modules.Modules(tree)
    order = [name for name, _ in known.load_order(["virtio_net", "ext4"])]
    assert order.index("net_failover") < order.index("virtio_net")
    assert len(order) == len(set(order))
    assert not set(order) & known.builtin
    assert set(order) | known.builtin >= {"ext4", "virtio_net"}


def test_the_watchdog_of_the_board_is_the_first_of_its_modules_and_cannot_be_stopped(packages):
    board, tree = packages
    needed = [name for name, _ in modules.Modules(tree).load_order([board.watchdog.driver])]
    order = [name for name, _ in modules.Modules(tree).load_order(board.modules)]
    assert order[: len(needed)] == needed
    parameters = dict(word.split("=") for word in board.module_parameters[board.watchdog.driver].split())
    # As long as the rest of the start may take, or the longest that this watchdog has.
    assert parameters["nowayout"] == "1" and min(30, board.watchdog.max_s) <= int(parameters["heartbeat"]) <= min(60, board.watchdog.max_s)


def test_the_watchdog_runs_on_while_the_kernel_restarts_the_board(packages):
    """Its core has it stopped at a restart unless told otherwise; a built-in one reads the command line, a module what it is loaded with."""
    board, tree = packages
    if "watchdog" in modules.Modules(tree).builtin:
        assert "watchdog.stop_on_reboot=0" in board.cmdline.split()
    else:
        assert board.module_parameters["watchdog"] == "stop_on_reboot=0"


def test_systemd_spares_the_keeper_and_counts_its_ends_as_keepers_do_elsewhere():
    unit = (places.OVERLAY / "usr/lib/systemd/system/inferd.service").read_text().splitlines()
    assert {"OOMScoreAdjust=-1000", "StartLimitBurst=4", "StartLimitIntervalSec=600", "StartLimitAction=reboot-force"} <= set(unit)


def test_a_panic_restarts_the_board_before_the_watchdog_does_and_a_hang_of_the_kernel_is_a_panic(packages):
    words = packages[0].cmdline.split()
    # Of the watchdog's 15 s the last feeding may have used five.
    assert 0 < int(next(word for word in words if word.startswith("panic=")).partition("=")[2]) <= 15 - 5
    assert {"softlockup_panic=1", "hung_task_panic=1"} <= set(words)


def test_the_kernel_leaves_the_memory_of_ramoops_alone(packages):
    """The memory that the module takes is memory the machine has, and the command line keeps the kernel off it."""
    board, _ = packages
    if "ramoops" not in board.modules:
        pytest.skip(f"{board.name} has no memory for ramoops that is known to outlive a reset")
    words = dict(word.split("=") for word in board.module_parameters["ramoops"].split())
    begin, size = int(words["mem_address"], 16), int(words["mem_size"], 16)
    # The kernel's console has a part of it; the rest, but two pages for what nobody writes, is for dumps.
    assert 0 < int(words["console_size"], 16) <= size - int(words["record_size"], 16) - (2 << 12)
    kept = next(word for word in board.cmdline.split() if word.startswith("mem=")).removeprefix("mem=").removesuffix("M")
    ram = {"virt": 1 << 30, "q35": 0}[board.qemu.machine]  # where the machine has its memory
    assert ram + (int(kept) << 20) <= begin and begin + size <= ram + (board.qemu.memory_mib << 20)


def test_a_module_that_the_kernel_lacks_is_refused_by_name(packages):
    with pytest.raises(Failure, match="has no module flux_capacitor"):
        modules.Modules(packages[1]).load_order(["flux_capacitor"])


def test_the_initramfs_is_reproducible_and_loads_what_the_board_needs(packages):
    board, tree = packages
    first = image.initramfs(board, tree)
    assert first == image.initramfs(board, tree)
    content = gzip.decompress(first)
    for name in {name.replace("-", "_") for name in board.modules} - modules.Modules(tree).builtin:
        assert content.count(f"lib/modules/{name}.ko".encode()) == 1, name
    assert f"{board.watchdog.driver} {board.module_parameters[board.watchdog.driver]}\n".encode() in content


def test_a_modules_parameters_are_what_follows_its_name(packages):
    board, tree = packages
    content = gzip.decompress(image.initramfs(board, tree))
    assert board.module_parameters
    for name, given in board.module_parameters.items():
        assert f"{name.replace('-', '_')} {given}\n".encode() in content


def test_an_initramfs_says_at_every_start_what_its_image_lacks(packages):
    content = gzip.decompress(image.initramfs(*packages, ["a wheel", "a sail"]))
    assert b"lib/missing\0" in content and b"a wheel\na sail\n" in content
    assert b"lib/missing\0" not in gzip.decompress(image.initramfs(*packages))


def test_busybox_applets_are_read_from_the_binary_of_any_architecture(packages):
    names = image.applets((packages[1] / "usr/bin/busybox").read_bytes())
    assert {"init", "sh", "udhcpc", "zcat"} <= set(names)
    with pytest.raises(Failure, match="lacks .*init"):
        image.applets(b"no applets here")


def test_models_are_named_by_their_manifests_and_two_of_one_name_are_refused(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "manifest.toml").write_text('name = "same"')
    assert image.named_models([tmp_path / "one"]) == {"same": tmp_path / "one"}
    with pytest.raises(Failure, match="both called 'same'"):
        image.named_models([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(Failure, match="has no manifest.toml"):
        image.named_models([tmp_path])


@pytest.mark.parametrize("name", boards.names())
def test_an_image_tells_its_daemon_the_led_and_the_button_of_its_board(name, tmp_path):
    (tmp_path / "etc/inferd").mkdir(parents=True)
    image.furnish(tmp_path, boards.load(name), [places.DEFAULT_MODEL], "build")
    # app/inferd/src/panel.rs looks for them there.
    said = tomllib.loads((tmp_path / "etc/inferd/board.toml").read_text()).get("panel", {})
    panel = boards.load(name).panel
    assert (said.get("led", ""), said.get("led-gpio", 0), said.get("button-gpio", 0)) == (panel.led, panel.led_gpio, panel.button_gpio)
    assert bool(panel.led) == name.startswith("rpi")


def test_an_image_says_which_system_it_holds_where_somebody_has_said_it(tmp_path, monkeypatch):
    def says(system):
        (tmp_path / "etc/inferd").mkdir(parents=True, exist_ok=True)
        image.furnish(tmp_path, boards.load("qemu-aarch64"), [places.DEFAULT_MODEL], "build", system=system)
        return (tmp_path / "etc/os-release").read_text().splitlines()[-2:]

    for name in ("INFERD_IMAGE_ID", "INFERD_IMAGE_VERSION"):
        monkeypatch.delenv(name, raising=False)
    assert image.system() is None and says(None) == ['BUILD_ID="build"', "VARIANT_ID=production"]
    assert says(image.system(version="7")) == ["IMAGE_ID=inferd-os", "IMAGE_VERSION=7"], "as `inferctl bundle build --system` has it"
    monkeypatch.setenv("INFERD_IMAGE_VERSION", "8")
    assert image.system() == ("inferd-os", 8) and image.system("other", "9") == ("other", 9)
    monkeypatch.setenv("INFERD_IMAGE_ID", "its-os")
    assert image.system() == ("its-os", 8)


@pytest.mark.parametrize(("product", "version", "says"), [("os", None, "which version of os"), ("a b", "1", "'a b' is no name"), (None, "1.2", "'1.2' is no version")])
def test_a_system_that_no_bundle_could_be_called_is_refused(product, version, says, monkeypatch):
    monkeypatch.delenv("INFERD_IMAGE_VERSION", raising=False)
    with pytest.raises(Failure, match=says):
        image.system(product, version)


def elf(program_type, content=b""):
    """The least of an x86_64 ELF file: one segment that is loaded, all of the file, and one of this type, from byte 176 on."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    whole = struct.pack("<IIQQQQQQ", 1, 4, 0, 0, 0, 176 + len(content), 176 + len(content), 8)
    entry = struct.pack("<IIQQQQQQ", program_type, 4, 176, 176, 176, len(content), len(content), 8)
    return head + whole + entry + content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (elf(3, b"/lib64/ld-linux-x86-64.so.2\0"), "names the loader /lib64/ld-linux-x86-64.so.2"),
        (elf(2, struct.pack("<6Q", 1, 0, 5, 176 + 48, 0, 0) + b"libc.so.6\0"), "needs shared libraries"),
        (elf(2, struct.pack("<4Q", 1, 7, 0, 0)), "is damaged: no names"),
        (b"#!/bin/sh\n", "is no 64-bit ELF file"),
    ],
)
def test_a_program_that_is_not_static_is_refused_before_it_gets_into_an_image(tmp_path, content, says):
    program = tmp_path / "inferd"
    program.write_bytes(content)
    with pytest.raises(Failure, match=says):
        rust.check_static(program, "x86_64-unknown-linux-musl")


def test_a_static_pie_program_is_accepted(tmp_path):
    program = tmp_path / "inferd"
    program.write_bytes(elf(2, struct.pack("<QQQQ", 30, 8, 0, 0)))
    rust.check_static(program, "x86_64-unknown-linux-musl")
    with pytest.raises(Failure, match="no 64-bit program for aarch64"):
        rust.check_static(program, "aarch64-unknown-linux-musl")


@pytest.mark.parametrize(
    ("sources", "mirror"),
    [
        ("Types: deb\nURIs: http://mirror.example/debian-security\n\nURIs: http://mirror.example/debian/\n", "http://mirror.example/debian"),
        ("# deb http://old.example/debian x main\ndeb [signed-by=/k.gpg] https://mirror.example/debian bookworm main\n", "https://mirror.example/debian"),
        ("deb http://mirror.example/ubuntu noble main\n", None),
    ],
)
def test_the_debian_archive_is_found_in_old_and_new_source_files(sources, mirror):
    assert debian.mirror_in(sources) == mirror


def test_a_workroom_is_empty_and_one_persons_alone_and_gone_behind_her(tmp_path):
    room = tmp_path / "new" / "image.work"
    room.mkdir(parents=True)
    (room / "of one that was killed").write_text("left")
    with steps.workroom(room) as mine:
        assert mine == room and not list(mine.iterdir())
        (mine / "part").write_text("half")
        with pytest.raises(Failure, match="somebody else is at work in .*image.work"), steps.workroom(room):
            pass
        assert (mine / "part").read_text() == "half", "who comes second touches nothing"
    assert not room.exists()
    with pytest.raises(RuntimeError), steps.workroom(room):
        raise RuntimeError
    assert not room.exists(), "a failure leaves nothing either"


def test_who_waited_for_a_workroom_that_went_gets_a_new_one(tmp_path, monkeypatch):
    room = tmp_path / "image.work"
    lock, stale = fcntl.flock, []

    def others_end_first(held, how):
        """Whoever was there before removes it between the opening and the lock, once."""
        if not stale:
            stale.append(room.rmdir())
        lock(held, how)

    monkeypatch.setattr(fcntl, "flock", others_end_first)
    with steps.workroom(room) as mine:
        assert mine.is_dir() and stale


@pytest.mark.parametrize(("variables", "options", "says"), [
    ({"SOURCE_DATE_EPOCH": "yesterday"}, [], "SOURCE_DATE_EPOCH is 'yesterday', not seconds"),
    ({}, ["-o", "/dev/null/image"], "error: .*'/dev/null'"),
])
def test_what_cannot_be_is_said_in_a_sentence(variables, options, says, tmp_path):
    program = tmp_path / "inferd"
    command = [places.ROOT / "scripts/image", "--board", "qemu-aarch64", "--minimal", "--inferd", program, *options]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and re.search(says, done.stderr) and "Traceback" not in done.stderr, done.stderr
