"""bitbake itself, where INFERD_YOCTO names a folder with `bitbake`, `openembedded-core`, `meta-raspberrypi`, `meta-tegra`,
`meta-tegra-community` and `meta-openembedded`.

Nothing is downloaded, and no toolchain is made: configurations of all machines, our recipes one by one up to their packages, the pins of
the kas files, and (with INFERD_YOCTO_GRAPH) whether everything that an image wants has a recipe.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import board as boards
import elf
import hosttools
import layout as layouts
import openembedded
import pytest
import yaml

FOLDER = Path(os.environ.get("INFERD_YOCTO") or "/nonexistent")
KAS = openembedded.places.ROOT / "yocto/kas"
LAYERS = {
    "raspberrypi": ["meta-raspberrypi"],
    "jetson": ["meta-tegra", "meta-tegra-community", "meta-openembedded/meta-oe", "meta-openembedded/meta-python"],
}
# wrynose's wic is a program of its own, which is in no layer; scarthgap's came with its core.
WIC = FOLDER / "openembedded-core-scarthgap/scripts/wic"
# A program that is static and for this processor, for the recipe that packages one; the daemon's own where cargo has made it.
PREBUILT = openembedded.places.target() / "aarch64-unknown-linux-musl/release/inferd"
CONF = """MACHINE = "{machine}"
DISTRO = "inferd"
BB_NO_NETWORK = "1"
CONNECTIVITY_CHECK_URIS = ""
INHERIT:remove = "uninative"
INHERIT += "alone"
SKIP_FILEDEPS = "1"
LICENSE_FLAGS_ACCEPTED = "hailo-firmware"
INFERD_PREBUILT = "{prebuilt}"
"""
# For a recipe on its own (bitbake -b): no pseudo, since nothing is built for this machine, so nothing is given away to root either; and the name
# that wrynose's package_pkgdata.bbclass still calls its own function by.
ALONE = """
python () {
    os.lchown = os.chown = lambda *_: None
    for task in ('do_install', 'do_package'):
        d.delVarFlag(task, 'fakeroot')
}

def staging_package_populate_pkgdata_dir(folder, d):
    package_populate_pkgdata_dir(folder, d)
"""

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="INFERD_YOCTO names no folder of checkouts")


def as_somebody(folder):
    """bitbake refuses root: then `nobody` runs it, in a folder of its own."""
    if os.getuid():
        return {}
    # What a server of bitbake's that ends now takes away meanwhile is no fault.
    subprocess.run(["chown", "-R", "-f", "nobody", folder], check=False)
    return {"user": "nobody", "group": "nogroup", "extra_groups": []}


class Build:
    """A build folder for one machine."""

    def __init__(self, folder, machine):
        self.folder, self.machine = folder, machine
        layers = [FOLDER / "openembedded-core/meta", openembedded.LAYER]
        layers += [FOLDER / name for prefix, names in LAYERS.items() if machine.startswith(prefix) for name in names]
        (folder / "conf").mkdir(parents=True)
        (folder / "classes").mkdir()
        (folder / "classes/alone.bbclass").write_text(ALONE)
        (folder / "conf/bblayers.conf").write_text(f'BBPATH = "${{TOPDIR}}"\nBBFILES ?= ""\nBBLAYERS = "{" ".join(map(str, layers))}"\n')
        (folder / "conf/local.conf").write_text(CONF.format(machine=machine, prebuilt=PREBUILT))

    def run(self, *words):
        """Runs bitbake."""
        path = f"{FOLDER}/bitbake/bin:{FOLDER}/openembedded-core/scripts:/usr/sbin:/usr/bin:/sbin:/bin"
        given = {"PATH": path, "HOME": str(self.folder), "LC_ALL": "en_US.UTF-8", "BBPATH": str(self.folder), "BUILDDIR": str(self.folder)}
        return subprocess.run(
            ["bitbake", *map(str, words)], cwd=self.folder, env=given, capture_output=True, text=True, check=False, **as_somebody(self.folder)
        )

    def bitbake(self, *words):
        """Runs bitbake; it must succeed. Returns what it printed."""
        made = self.run(*words)
        assert made.returncode == 0, f"{made.stdout[-3000:]}{made.stderr[-2000:]}"
        return made.stdout

    def recipe(self, name):
        """What bitbake -e shows of a recipe with all that layers append to it, which -b leaves out. No other recipe is read."""
        # Packages that it wants beside its own are no recipe that was read, and would keep it from being shown.
        (self.folder / "conf/one.conf").write_text(f'BBMASK = "^(?!.*/{name}(_[^/]*)?\\.bb)"\nRDEPENDS:{name}:forcevariable = ""\n')
        # It misses the recipes that this one builds upon, says so, and shows it all the same.
        made = self.run("-R", "conf/one.conf", "-e", name)
        assert f'\nPN="{name}"\n' in made.stdout, f"{made.stdout[-3000:]}{made.stderr[-2000:]}"
        return made.stdout

    def variables(self, *words):
        """What bitbake -e shows, by name."""
        return named(self.bitbake("-e", *words))


def named(shown):
    """The variables in what bitbake -e shows, by name."""
    lines = (line for line in shown.splitlines() if "=" in line and not line.startswith(("#", " ", "\t")))
    return {name: value.strip('"') for name, value in (line.removeprefix("export ").split("=", 1) for line in lines)}


def function(shown, name):
    """The body of a shell function in what bitbake -e shows."""
    return shown.split(f"\n{name}() {{")[1].split("\n}")[0]


@pytest.fixture(scope="module", params=openembedded.MACHINES.items(), ids=lambda pair: pair[1])
def build(request, tmp_path_factory):
    """Each machine."""
    board, machine = request.param
    folder = tmp_path_factory.mktemp("oe")
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o755)
    made = Build(folder / "build", machine)
    made.board = board
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def test_a_machine_is_configured_with_our_layer(build):
    found = build.variables()
    assert found["INFERD_BOARD"] == build.board
    assert "systemd" in found["DISTRO_FEATURES"].split() and "inferd-os" in found["OVERRIDES"].split(":")
    if build.board == "jetson-orin-nano":
        assert found["PARTITION_LAYOUT_TEMPLATE"].endswith("_rootfs_ab.xml"), "two systems"
        assert "panic=10" in found["KERNEL_ARGS"].split()


def test_an_image_is_followed_by_its_map_and_its_facts_and_a_jetsons_package_has_its_fat(build):
    (recipe,) = openembedded.LAYER.rglob("inferd-image.bb")
    shown = build.bitbake("-b", recipe, "-e")
    assert "python do_create_image_sbom_spdx () {" in shown, "a bill of materials beside each image"
    if build.board == "jetson-orin-nano":
        # Its medium is laid out by NVIDIA's tools, from a folder that this function completes.
        hook = function(shown, "tegraflash_custom_pre")
        assert hook.split()[-1] == f"./{openembedded.TEGRA_BOOT}" and "do_inferd_parts" in shown
        return
    task = function(shown, "do_image_wic")
    steps = ["sgdisk --disk-guid=", f"openembedded.py map {build.board} ", f"openembedded.py facts {build.board} "]
    assert sorted(steps, key=task.index) == steps and "bmaptool" not in task


def test_a_jetsons_image_has_what_its_machine_names_beside_what_starts_it(build):
    (recipe,) = openembedded.LAYER.rglob("inferd-image.bb")
    wanted = build.variables("-b", recipe)["IMAGE_INSTALL"].split()
    # Of a Raspberry Pi it would be every module of the kernel and firmware for Bluetooth; of QEMU's machine it is empty.
    assert ("packagegroup-machine-base" in wanted) == (build.board == "jetson-orin-nano")
    if build.board != "jetson-orin-nano":
        return
    found = build.variables("-b", FOLDER / "openembedded-core/meta/recipes-core/packagegroups/packagegroup-base.bb")
    must, should = (found[f"{kind}:packagegroup-machine-base"].split() for kind in ("RDEPENDS", "RRECOMMENDS"))
    assert {"tegra-redundant-boot", "tegra-configs-udev", "nvidia-kernel-oot-compute-nvgpu", "tegra-nvfancontrol"} <= set(must)
    assert {"nv-kernel-module-r8168", "linux-firmware-rtl8168"} <= set(should)


def test_who_tells_a_jetsons_uefi_that_a_start_went_well_is_nvidias_with_our_word_beside_it(build):
    if build.board != "jetson-orin-nano":
        pytest.skip("no UEFI of L4T")
    shown = build.recipe("tegra-redundant-boot")
    found = named(shown)
    assert found["SYSTEMD_SERVICE:tegra-redundant-boot"] == "nv_update_verifier.service" and found.get("SYSTEMD_AUTO_ENABLE", "enable") == "enable"
    unit = (FOLDER / "meta-tegra/recipes-bsp/tegra-binaries/tegra-redundant-boot/nv_update_verifier.service").read_text()
    assert "ExecStart=/usr/sbin/nvbootctrl verify\n" in unit and "WantedBy=multi-user.target\n" in unit
    # One that failed would stay a failure without a word, and would not be started anew.
    assert "Restart=" not in unit and "file://inferd.conf" in found["SRC_URI"].split()
    assert function(shown, "do_install").split()[-1].endswith("/usr/lib/systemd/system/nv_update_verifier.service.d/inferd.conf")
    assert "/usr/lib/systemd/system/nv_update_verifier.service.d" in found["FILES:tegra-redundant-boot"].split()
    (file,) = [path for folder in found["FILESPATH"].split(":") if (path := Path(folder) / "inferd.conf").exists()]
    assert file.is_relative_to(openembedded.LAYER)


# NVIDIA's storage layouts lie in NVIDIA's archive; what is relied on is in these.
LAYOUT = """<?xml version="1.0"?>
<partition_layout version="01.00.0000">
    <device type="spi" instance="0" sector_size="512"><partition name="mb1" id="2" type="mb1_bootloader"><size> 262144 </size></partition></device>
    <device type="{medium}" instance="0" sector_size="512" num_sectors="119537664">
        <partition name="APP" id="1" type="data"><size> APPSIZE </size><allocation_attribute> 0x8 </allocation_attribute><filename> APPFILE </filename></partition>
        <partition name="APP_b" id="2" type="data"><size> APPSIZE </size><allocation_attribute> 0x8 </allocation_attribute><filename> APPFILE_b </filename></partition>
        <partition name="secondary_gpt" type="secondary_gpt"><size> 0xFFFFFFFFFFFFFFFF </size></partition>
    </device>
</partition_layout>
"""


@pytest.mark.parametrize(("machine", "written"), [("jetson-orin-nano-devkit", "flash.xml.in"), ("jetson-orin-nano-devkit-nvme", "external-flash.xml.in")])
def test_the_storage_layout_that_nvidias_tools_write_from_has_our_partitions(machine, written, tmp_path_factory):
    folder = tmp_path_factory.mktemp("oe")
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o755)
    build = Build(folder / "build", machine)
    # meta-tegra's own recipe, with our word in it, over made-up layouts; and its own tool, which makes the internal one of a machine with an NVMe.
    tools = FOLDER / "meta-tegra/recipes-bsp/tegra-binaries/tegra-helper-scripts"
    for path, medium in ((folder / "internal.xml", "sdcard"), (folder / "external.xml", "nvme")):
        path.write_text(LAYOUT.format(medium=medium))
    (folder / "nvflashxmlparse").symlink_to(tools / "nvflashxmlparse.py")
    with open(build.folder / "conf/local.conf", "a", encoding="utf-8") as conf:
        conf.write(f'PARTITION_FILE:pn-tegra-storage-layout = "{folder}/internal.xml"\n')
        conf.write(f'PARTITION_FILE_EXTERNAL:pn-tegra-storage-layout = "{folder}/external.xml"\n')
    shown = build.recipe("tegra-storage-layout")
    copy, task = (function(shown, name) for name in ("copy_in_flash_layout", "do_compile"))
    made = folder / "made/tegraflash"
    made.mkdir(parents=True)
    path = f"{folder}:{os.environ['PATH']}"
    script = f"copy_in_flash_layout() {{{copy}\n}}\ndo_compile() {{{task}\n}}\ndo_compile"
    subprocess.run(["sh", "-e", "-c", script], cwd=made, env={**os.environ, "PATH": path}, check=True)
    # Which of them is written, by the lines of the image's class that choose it.
    (recipe,) = openembedded.LAYER.rglob("inferd-image.bb")
    shown = build.bitbake("-b", recipe, "-e")
    found = named(shown)
    config, package = (function(shown, name) for name in ("tegraflash_create_flash_config", "create_tegraflash_pkg"))
    choice = package[package.index("tegraflash_create_flash_config flash.xml.in") : package.index("tegraflash_create_flash_config rcmboot")].rpartition("if ")[0]
    script = f"tegraflash_create_flash_config() {{{config}\n}}\n{choice}".replace(found["STAGING_DATADIR"], str(made.parent))
    work = folder / "package"
    work.mkdir()
    subprocess.run(["sh", "-e", "-c", script], cwd=work, check=True)
    # As meta-tegra's initrd-flash chooses, by EXTERNAL_ROOTFS_DRIVE.
    assert written == ("external-flash.xml.in" if found["TEGRAFLASH_ROOTFS_EXTERNAL"] == "1" else "flash.xml.in")
    command = [sys.executable, tools / "nvflashxmlparse.py", "-t", "rootfs", work / written]
    rows = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    names = [word.partition("=")[2].strip('"') for row in rows for word in row.split(";") if word.startswith("partname=")]
    assert names[names.index("APP_b") + 1 :][:4] == ["boot", "models-a", "models-b", "data"]
    assert [row for row in rows if 'partname="boot"' in row and openembedded.TEGRA_BOOT in row], "with the FAT for inferd.toml"
    shutil.rmtree(folder, ignore_errors=True)


def test_our_kernel_fragments_reach_the_kernel_of_every_machine(build):
    kernels = {"qemu-aarch64": "linux-yocto", "jetson-orin-nano": "linux-noble-nvidia-tegra"}
    shown = build.recipe(kernels.get(build.board, "linux-raspberrypi"))
    found = named(shown)
    assert found["PN"] == found["PREFERRED_PROVIDER_virtual/kernel"]
    wanted = {"common"} | {"qemu-aarch64": {"qemu"}, "rpi4": {"rpi"}, "rpi5-hailo8": {"rpi", "rpi5-hailo8"}}.get(build.board, set())
    assert {f"file://inferd-{name}.cfg" for name in wanted} == {word for word in found["SRC_URI"].split() if word.startswith("file://inferd-")}
    # None of them is dropped by Kconfig without a word.
    assert function(shown, "do_configure").split()[-len(wanted) :] == [f"{openembedded.LAYER}/files/linux/inferd-{name}.cfg" for name in found["INFERD_FRAGMENTS"].split()]


@pytest.mark.skipif(not WIC.exists(), reason="INFERD_YOCTO has no openembedded-core-scarthgap")
@pytest.mark.parametrize("name", openembedded.laid_out())
def test_wic_makes_the_same_medium_as_every_other_builder(name, tmp_path):
    files = {"boot": "boot.vfat", "system": "boot-a.vfat", "rootfs": "rootfs.squashfs", "data": "data.ext4"}
    parts = {content: tmp_path / "parts" / file for content, file in files.items()}
    template = (openembedded.WKS / f"inferd-{name}.wks.in").read_text()
    (tmp_path / "parts").mkdir()
    for content, file in parts.items():
        file.write_bytes(content.encode() * 1024 if file.name in template else b"")
    wks = tmp_path / f"inferd-{name}.wks"
    wks.write_text(template.replace("${INFERD_PARTS}", f"{tmp_path}/parts"))
    # Where wic looks for its programs, and what it asks bitbake for.
    (tmp_path / "native/usr/sbin").mkdir(parents=True)
    for program in ("parted", "sfdisk", "sgdisk"):
        (tmp_path / f"native/usr/sbin/{program}").symlink_to(f"/usr/sbin/{program}")
    facts = dict.fromkeys(("IMAGE_ROOTFS", "DEPLOY_DIR_IMAGE", "STAGING_KERNEL_DIR", "STAGING_DATADIR"), tmp_path / "parts")
    facts["RECIPE_SYSROOT_NATIVE"] = tmp_path / "native"
    (tmp_path / "core.env").write_text("".join(f'{fact}="{value}"\n' for fact, value in facts.items()))
    given = {"PATH": f"{FOLDER}/bitbake/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "BUILDDIR": str(tmp_path)}
    command = [WIC, "create", wks, "-e", "core", "--vars", tmp_path, "-o", tmp_path / "out", "-w", tmp_path / "work"]
    done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    (disk,) = (tmp_path / "out").glob("*.direct")
    layout = layouts.load(boards.load(name))
    openembedded.image.disk(layout, parts, hosttools.Tools(hosttools.IMAGE), tmp_path / "parts", tmp_path / "other.img")
    # The disk's own GUID is set by the recipe, after wic.
    _, found = layouts.read_gpt(disk)
    assert found == layouts.read_gpt(tmp_path / "other.img")[1]
    with open(disk, "rb") as one, open(tmp_path / "other.img", "rb") as other:
        for part in found:
            one.seek(part.offset)
            other.seek(part.offset)
            assert one.read(part.size) == other.read(part.size), part.name
    for image in (disk, tmp_path / "other.img"):
        image.unlink()


@pytest.mark.skipif("INFERD_YOCTO_GRAPH" not in os.environ, reason="INFERD_YOCTO_GRAPH is not set: some minutes for each machine")
def test_everything_an_image_wants_has_a_recipe(build):
    shown = build.bitbake("-g", "inferd-image", "inferd-image-dev")
    assert not [line for line in shown.splitlines() if line.startswith("WARNING") and ("inferd" in line or "hailo" in line)]
    wanted = (build.folder / "pn-buildlist").read_text().split()
    assert {"inferd-bin", "inferd-appliance", "inferd-engine-host", "systemd", "busybox"} <= set(wanted)
    assert ({"hailort", "hailort-driver"} <= set(wanted)) == (build.board == "rpi5-hailo8")
    jetsons = {"tensorrt-core", "tegra-libraries-cuda", "onnxruntime", "tegra-redundant-boot", "tegra-configs", "nvidia-kernel-oot"}
    assert (jetsons <= set(wanted)) == (build.board == "jetson-orin-nano")


@pytest.fixture(scope="module")
def alone(office, tmp_path_factory):
    """A build folder of qemuarm64 for single recipes."""
    folder = tmp_path_factory.mktemp("oe")
    for above in (folder, folder.parent, folder.parent.parent):
        above.chmod(0o755)
    made = Build(folder / "build", "qemuarm64")
    # Where whoever runs bitbake can read it.
    shutil.copyfile(office.root, made.folder / "mine.imr")
    with open(made.folder / "conf/local.conf", "a", encoding="utf-8") as conf:
        conf.write(f'INFERD_ROOT = "{made.folder}/mine.imr"\nINFERD_IMAGE_VERSION = "7"\n')
    yield made
    shutil.rmtree(folder, ignore_errors=True)


def packaged(build, recipe):
    """The files of the package of a recipe of ours, by path."""
    (path,) = openembedded.LAYER.rglob(f"{recipe}_*.bb")
    build.bitbake("-b", path, "-c", "package")
    (folder,) = build.folder.glob(f"tmp/work/*/{recipe}/*/packages-split/{recipe}")
    return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if not file.is_dir()}


@pytest.mark.parametrize("recipe", sorted(openembedded.LAYER.glob("recipes-*/*/*_[0-9]*.bb")), ids=lambda path: path.stem)
def test_cores_own_check_of_recipes_refuses_none(alone, recipe):
    # One of cargo's is not for this tree's Rust.
    if recipe.stem.startswith("inferd_"):
        pytest.skip("its Rust is newer than this tree's")
    alone.bitbake("-b", recipe, "-c", "recipe_qa")


@pytest.mark.skipif(not PREBUILT.exists(), reason="cargo has not made the daemon for aarch64")
def test_the_daemon_is_packaged_with_its_unit(alone):
    files = packaged(alone, "inferd-bin")
    unit = "usr/lib/systemd/system/inferd.service"
    assert files[unit].read_bytes() == (openembedded.places.OVERLAY / unit).read_bytes()
    assert elf.read(files["usr/bin/inferd"]).is_for("aarch64") and files["usr/bin/inferd"].stat().st_size == PREBUILT.stat().st_size
    assert {"etc/inferd/inferd.toml", "usr/lib/systemd/system.conf.d/inferd.conf", "usr/lib/udev/rules.d/60-inferd-serial.rules"} <= set(files)
    assert files["usr/lib/systemd/system-shutdown/inferd"].stat().st_mode & 0o111 == 0o111


def test_the_appliance_is_packaged_with_models_scripts_whom_it_believes_and_the_page_of_its_board(alone, office):
    files = packaged(alone, "inferd-appliance")
    assert files["etc/inferd/board"].read_text() == "qemu-aarch64\n"
    assert files["root/.ssh"].readlink().as_posix() == "/run/inferd/ssh"
    assert files["etc/inferd/root.imr"].read_bytes() == office.root.read_bytes()
    wanted = {f"usr/libexec/inferd/{name}" for name in ("boot", "common", "network", "sticks", "dhcp-event")}
    assert wanted | {"usr/share/inferd/models/imu-motion/manifest.toml", "usr/lib/systemd/system/inferd-boot.service"} <= set(files)


def test_os_release_says_which_system_an_image_holds(alone):
    alone.bitbake("-b", FOLDER / "openembedded-core/meta/recipes-core/os-release/os-release.bb", "-c", "install")
    (file,) = alone.folder.glob("tmp/work/*/os-release/*/image/usr/lib/os-release")
    said = dict(line.split("=", 1) for line in file.read_text().splitlines())
    # A device knows by ID that the rest is about us.
    assert [said[name].strip('"') for name in ("ID", "IMAGE_ID", "IMAGE_VERSION")] == ["inferd", "inferd-os", "7"]


def test_an_image_of_a_system_that_no_bundle_could_be_called_is_refused(alone):
    (alone.folder / "conf/other.conf").write_text('INFERD_IMAGE_VERSION = "1.2"\n')
    (recipe,) = openembedded.LAYER.rglob("inferd-image.bb")
    with pytest.raises(AssertionError, match="'1.2' is no version of a system"):
        alone.bitbake("-R", alone.folder / "conf/other.conf", "-b", recipe, "-c", "listtasks")


def test_kas_files_pin_commits_that_these_checkouts_have():
    for path in sorted(KAS.glob("*.yml")):
        for name, repo in yaml.safe_load(path.read_text()).get("repos", {}).items():
            if repo.get("commit"):
                command = ["git", "-c", "safe.directory=*", "-C", FOLDER / name, "cat-file", "-t", repo["commit"]]
                assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "commit\n", f"{path.name}: {name}"
