"""The external tree, without a Buildroot: what its own tools would say of it, as far as that needs no checkout."""

import json
import os
import re

import board as boards
import kconfiglib
import places
import pytest
import roots
import rpi

from buildroot import symbols, tree

NAMES = [path.name for path in tree.DEFCONFIGS]
HAS = json.loads(symbols.FILE.read_text())
FIRMWARE = "hailo-firmware"


@pytest.fixture(scope="module")
def kconfig():
    """Config.in as Kconfig reads it, inside a menu as Buildroot includes it."""
    os.environ["BR2_EXTERNAL_INFERD_PATH"] = str(tree.TREE)
    return kconfiglib.Kconfig(str(tree.TREE / "Config.in"), warn=True, warn_to_stderr=False)


def test_buildroot_finds_the_tree_by_its_description():
    lines = dict(line.split(": ", 1) for line in (tree.TREE / "external.desc").read_text().splitlines())
    assert lines["name"] == "INFERD" and lines["desc"]


def test_config_in_is_kconfig_and_names_every_package(kconfig):
    for package in tree.PACKAGES:
        symbol = kconfig.syms[f"BR2_PACKAGE_{tree.prefix(package)}"]
        assert symbol.nodes, f"{package} is not sourced by Config.in"
        assert symbol.type == kconfiglib.BOOL
        assert symbol.nodes[0].help, f"{package} does not say what it is"
    assert not [warning for warning in kconfig.warnings if "undefined symbol" not in warning]


@pytest.mark.parametrize("release", HAS)
def test_every_symbol_that_we_use_is_ours_or_that_buildroot_has_it(kconfig, release):
    ours = {name for name, symbol in kconfig.syms.items() if symbol.nodes}
    assert tree.used() - ours - set(HAS[release]) == set()


@pytest.mark.parametrize("package", tree.PACKAGES)
def test_a_package_has_a_version_a_licence_and_its_text(package):
    prefix = tree.prefix(package)
    found = tree.evaluated([f"{prefix}_VERSION", f"{prefix}_LICENSE", f"{prefix}_LICENSE_FILES"])
    assert re.fullmatch(r"\d+\.\d+\.\d+|[0-9a-f]{40}", found[f"{prefix}_VERSION"])
    assert found[f"{prefix}_LICENSE"] and found[f"{prefix}_LICENSE_FILES"]


def hashes(file):
    """A .hash file's SHA-256s by name; every line is as Buildroot wants it."""
    found = {}
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"sha256  ([0-9a-f]{64})  (\S+)", line)
            assert match, f"{file}: {line!r}"
            assert found.setdefault(match[2], match[1]) == match[1]
    return found


@pytest.mark.parametrize("package", tree.PACKAGES)
def test_every_download_and_every_licence_of_a_package_has_a_hash(package):
    prefix = tree.prefix(package)
    names = [f"{prefix}_{key}" for key in ("VERSION", "SOURCE", "SITE_METHOD", "EXTRA_DOWNLOADS", "LICENSE_FILES")]
    version, source, method, extra, licences = (tree.evaluated(names)[name] for name in names)
    if method == "local":
        return  # this checkout
    downloads = {source or f"{package}-{version}.tar.gz", *(url.rpartition("/")[2] for url in extra.split())}
    known = hashes(tree.TREE / f"package/{package}/{package}.hash")
    assert set(known) == downloads | set(licences.split())


def test_what_has_no_hash_is_refused():
    for path in tree.DEFCONFIGS:
        assert tree.defconfig(path)["BR2_DOWNLOAD_FORCE_CHECK_HASHES"] == "y"


def test_the_firmware_is_never_redistributed_and_its_licence_is_shown():
    found = tree.evaluated([f"HAILO_FIRMWARE_{key}" for key in ("REDISTRIBUTE", "LICENSE", "EXTRACT_CMDS")])
    assert found["HAILO_FIRMWARE_REDISTRIBUTE"] == "NO" and found["HAILO_FIRMWARE_LICENSE"] == "PROPRIETARY"
    assert re.search(r"cat \S*hailo_firmware_eula", (tree.TREE / f"package/{FIRMWARE}/{FIRMWARE}.mk").read_text())


def test_library_driver_and_firmware_are_of_one_release():
    found = tree.evaluated([f"{name}_VERSION" for name in ("HAILORT", "HAILORT_DRIVER", "HAILO_FIRMWARE")])
    assert set(found.values()) == {"4.23.0"}


def test_what_hailorts_cmake_would_clone_is_downloaded_and_unpacked_where_it_looks():
    found = tree.evaluated(["HAILORT_EXTERNALS", "HAILORT_EXTRA_DOWNLOADS"])
    unpacked = dict(entry.split("=") for entry in found["HAILORT_EXTERNALS"].split())
    assert set(unpacked) == {url.rpartition("/")[2] for url in found["HAILORT_EXTRA_DOWNLOADS"].split()}
    # libhailort, its common part and hailortcli include these scripts of cmake/external.
    wanted = {"protobuf", "eigen", "spdlog", "readerwriterqueue", "xxhash", "cli11", "json", "dotwriter"}
    assert set(unpacked.values()) == {f"{name}-src" for name in wanted}


@pytest.mark.parametrize(("symbol", "package", "target"), [
    ("BR2_PACKAGE_INFERD_PREBUILT_PATH", "INFERD", "unknown-linux-musl/release/inferd"),
    ("BR2_PACKAGE_INFERD_ENGINE_HOST_PATH", "INFERD_ENGINE_HOST", "unknown-linux-gnu/release/inferd-engine-host"),
])
def test_a_prebuilt_program_is_the_one_that_is_named_else_cargos(symbol, package, target):
    program = f"{package}_PROGRAM"
    named = tree.evaluated([program], **{symbol: '"/tmp/mine"'})
    assert named[program] == "/tmp/mine"
    for architecture in ("aarch64", "x86_64"):
        found = tree.evaluated([program], architecture=architecture, **{symbol: '""'})
        assert found[program] == f"{places.ROOT}/target/{architecture}-{target}"


def test_the_root_document_that_is_named_gets_in_and_goes_with_the_option(office, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    document = target / roots.PLACE
    for _ in range(2):  # every `make` does it
        tree.finalized(BR2_PACKAGE_INFERD_ROOT=f'"{office.root}"', TARGET_DIR=target).check_returncode()
        assert document.read_bytes() == office.root.read_bytes() and document.stat().st_mode & 0o777 == 0o644
    refused = tree.finalized(BR2_PACKAGE_INFERD_ROOT=f'"{office.at("root.key")}"', TARGET_DIR=target)
    assert refused.returncode != 0 and "is a secret key" in refused.stderr
    for empty in ('""', ""):
        tree.finalized(BR2_PACKAGE_INFERD_ROOT=empty, TARGET_DIR=target).check_returncode()
        assert not document.exists(), "nobody is believed any more"


@pytest.mark.parametrize(("rust", "refused"), [("1.82.0", True), ("1.94.1", True), ("1.95.0", False), ("1.97.1", False), ("1.100.0", False)])
def test_a_rust_that_is_too_old_is_refused_with_what_to_do(rust, refused):
    options = {"BR2_PACKAGE_INFERD_CARGO": "y", "BR_BUILDING": "y", "RUST_BIN_VERSION": rust}
    if not refused:
        tree.evaluated(["INFERD_VERSION"], **options)
        return
    with pytest.raises(AssertionError, match=f"this Buildroot has {rust}: choose BR2_PACKAGE_INFERD_PREBUILT"):
        tree.evaluated(["INFERD_VERSION"], **options)


def test_the_user_is_the_one_of_the_overlay():
    table = re.search(r"define INFERD_USERS\n\t(.*)\nendef", (tree.TREE / "package/inferd/inferd.mk").read_text())[1]
    name, uid, group, gid, *_ = table.split()
    overlay = [line.split(":") for line in (places.OVERLAY / "etc/passwd").read_text().splitlines()]
    assert [name, uid, gid] in [[line[0], line[2], line[3]] for line in overlay]
    assert [group, gid] in [line.split(":")[0:3:2] for line in (places.OVERLAY / "etc/group").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_a_defconfig_builds_what_its_board_page_says(name):
    config = tree.defconfig(tree.TREE / "configs" / name)
    board = boards.load(config["BR2_ROOTFS_POST_SCRIPT_ARGS"])
    assert name == f"inferd_{board.name.replace('-', '_')}_defconfig"
    assert config[f"BR2_{board.architecture_in_rust}"] == "y"
    if board.kernel.source == "linux":
        assert config["BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE"] == board.kernel.version
        assert config["BR2_LINUX_KERNEL_CUSTOM_CONFIG_FILE"] == board.kernel.defconfig
        archive = f"linux-{board.kernel.version}.tar.xz"
    else:
        assert config["BR2_LINUX_KERNEL_DEFCONFIG"] == board.kernel.defconfig
        owner, repository = board.kernel.source.split("/")
        archive = f"linux-{board.kernel.version}.tar.gz"
        assert config["BR2_LINUX_KERNEL_CUSTOM_TARBALL_LOCATION"] == f"$(call github,{owner},{repository},{board.kernel.version})/{archive}"
        assert config["BR2_LINUX_KERNEL_INTREE_DTS_NAME"].split() == list(board.kernel.device_trees)
    assert archive in hashes(tree.TREE / "patches/linux/linux.hash")
    assert ("BR2_PACKAGE_HAILORT" in config) == ("hailo" in board.engines)
    assert ("BR2_PACKAGE_INFERD_RPI_FIRMWARE" in config) == bool(board.firmware.files) and "BR2_PACKAGE_RPI_FIRMWARE" not in config
    assert config["BR2_PACKAGE_BUSYBOX_CONFIG_FRAGMENT_FILES"] == "$(BR2_EXTERNAL_INFERD_PATH)/busybox/common.fragment"
    fragments = {"qemu-aarch64": ["qemu"], "qemu-x86_64": ["qemu"], "rpi4": ["rpi"], "rpi5-hailo8": ["rpi", "rpi5-hailo8"]}[board.name]
    wanted = [f"$(BR2_EXTERNAL_INFERD_PATH)/linux/{fragment}.fragment" for fragment in ["common", *fragments]]
    assert config["BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES"].split() == wanted


def test_every_board_that_has_a_kernel_is_built():
    built = {tree.defconfig(path)["BR2_ROOTFS_POST_SCRIPT_ARGS"] for path in tree.DEFCONFIGS}
    assert built == {name for name in boards.names() if boards.load(name).kernel}


@pytest.mark.parametrize("name", NAMES)
def test_a_defconfig_uses_the_shared_overlay_a_read_only_root_and_files_that_there_are(name):
    config = tree.defconfig(tree.TREE / "configs" / name)
    assert config["BR2_ROOTFS_OVERLAY"] == "$(BR2_EXTERNAL_INFERD_PATH)/../rootfs-overlay", "nothing but what every builder lays on"
    assert config["BR2_TARGET_GENERIC_REMOUNT_ROOTFS_RW"] is None and config["BR2_TARGET_ROOTFS_SQUASHFS"] == "y"
    assert config["BR2_TARGET_ENABLE_ROOT_LOGIN"] is None and config["BR2_TARGET_GENERIC_GETTY"] is None
    ours = re.findall(r"\$\(BR2_EXTERNAL_INFERD_PATH\)/([^\s\"]+)", (tree.TREE / "configs" / name).read_text())
    assert ours and not [path for path in ours if not (tree.TREE / path).exists()]


def test_the_kernel_has_what_keeps_its_last_words_limits_memory_and_tells_of_pressure():
    lines = set((tree.TREE / "linux/common.fragment").read_text().splitlines())
    wanted = "MAGIC_SYSRQ PSTORE_CONSOLE PSTORE_PMSG PSTORE_RAM MEMCG CGROUP_PIDS PSI WATCHDOG SQUASHFS SQUASHFS_ZSTD EROFS_FS EXT4_FS SECCOMP_FILTER"
    assert {f"CONFIG_{symbol}=y" for symbol in wanted.split()} <= lines


def test_a_pis_firmware_is_what_its_page_names_with_the_overlays_of_its_config():
    board = boards.load("rpi4")
    overlays = rpi.overlays_of((places.BOARDS / board.name / "config.txt").read_text())
    files = tree.evaluated(["INFERD_RPI_FIRMWARE_FILES"])["INFERD_RPI_FIRMWARE_FILES"].split()
    assert files == [*board.firmware.files, *(f"overlays/{name}.dtbo" for name in overlays)]


def test_a_pis_modules_are_loaded_by_busybox_and_the_chip_has_one_driver():
    lines = {name: (tree.TREE / f"linux/{name}.fragment").read_text().splitlines() for name in ("rpi", "rpi5-hailo8")}
    assert "# CONFIG_MODULE_COMPRESS is not set" in lines["rpi"], "BusyBox and host-kmod read no .ko.xz"
    assert "# CONFIG_MEDIA_PCI_HAILO is not set" in lines["rpi5-hailo8"], "of another release, and of the same name"


def test_a_new_node_of_an_accelerator_or_a_serial_port_is_the_daemons_too():
    rules = [line.split() for line in (places.OVERLAY / "etc/mdev.conf").read_text().splitlines() if not line.startswith("#")]
    for device in ("hailo0", "hailo1", "ttyACM0", "ttyUSB12"):
        first = next(rule for rule in rules if re.fullmatch(rule[0], device))
        assert first[1:] == ["root:inferd", "0660"], device
    assert next(rule for rule in rules if re.fullmatch(rule[0], "mmcblk0"))[1:] == ["root:root", "0660", "!"]


@pytest.mark.parametrize("path", sorted(path for path in tree.TREE.rglob("*") if path.is_file()), ids=lambda path: path.name)
def test_files_are_in_buildroots_style(path):
    text = path.read_text()
    assert text.endswith("\n") and not text.endswith("\n\n"), "one newline at the end"
    for number, line in enumerate(text.splitlines(), 1):
        assert line == line.rstrip(), f"line {number} ends in white space"
        if path.name == "Config.in" and line.startswith("\t  "):
            assert len(line) <= 1 + 2 + 62, f"line {number} of a help text is too long"
    if path.suffix == ".mk" and path.name != "external.mk":
        bar = "#" * 80
        assert text.splitlines()[:5] == [bar, "#", f"# {path.stem}", "#", bar], "the head of a package"
