"""What Buildroot calls while it builds (buildroot/): the root filesystem completed, the kernel's configuration checked, the image made.

Layout, boot files and board facts are those of every other builder; the tools are the ones that Buildroot has made.
"""

import argparse
import gzip
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import board as boards
import cpio
import glibc
import image
import layout as layouts
import places
import roots
import rpi
import uboot
from steps import Failure, main, say

ENGINE_HOST = "usr/lib/inferd/inferd-engine-host"
# Among Buildroot's images: what a bundle of the system consists of.
PARTS = "parts"
HAILO_FIRMWARE = "lib/firmware/hailo/hailo8_fw.bin"


class HostTools:
    """Programs that Buildroot has made for the machine that builds."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def path(self, name):
        """The program called `name`."""
        for below in ("bin", "sbin"):
            if (self.folder / below / name).exists():
                return self.folder / below / name
        raise Failure(f"{self.folder} has no {name}; the board's defconfig selects what makes it")


@dataclass(frozen=True)
class Sysroot:
    """The C library of a root filesystem, where `glibc.together` looks for what programs need."""

    root: Path
    architecture: str

    @property
    def folder(self):
        """Where libraries are: /usr is merged."""
        return self.root / "usr/lib"

    @property
    def versions(self):
        """What an error names."""
        return {"the root filesystem": str(self.root)}


def rootfs(board, target, build_id, system=None):
    """Completes the root filesystem that Buildroot has laid out with our overlay on it."""
    for folder in image.FOLDERS:
        # /run and /tmp are links or folders of Buildroot's; what is there stays.
        if not (target / folder).exists() and not (target / folder).is_symlink():
            (target / folder).mkdir(parents=True)
    have = {path.name for folder in ("usr/bin", "usr/sbin") for path in (target / folder).glob("*")}
    if missing := image.APPLETS_NEEDED - have:
        raise Failure(f"this BusyBox lacks {', '.join(sorted(missing))}")
    if not (target / "usr/bin/inferd").exists():
        raise Failure("the root filesystem has no inferd; select BR2_PACKAGE_INFERD")
    (target / "etc/os-release").unlink(missing_ok=True)  # a link to Buildroot's own
    (target / "README.md").unlink(missing_ok=True)  # the overlay's own
    image.furnish(target, board, places.SHIPPED_MODELS, build_id, system=system)
    if (target / ENGINE_HOST).exists():
        glibc.together([target / ENGINE_HOST], Sysroot(target, board.architecture_in_rust))
    if "hailo" in board.engines and not (target / HAILO_FIRMWARE).exists():
        say(f"the image has no {HAILO_FIRMWARE}: its Hailo-8 will not run (buildroot/README.md)")
    # Of the package's option, or of somebody's own overlay.
    if (target / roots.PLACE).exists():
        roots.judged(target / roots.PLACE)
    else:
        say(f"WARNING: {roots.NONE} (BR2_PACKAGE_INFERD_ROOT, buildroot/README.md)")


def check_kernel(config, fragments):
    """Refuses a kernel's configuration that lacks a line of a fragment: Kconfig drops what it cannot have without a word."""
    has = set(config.read_text().splitlines())
    wanted = [line.strip() for fragment in fragments for line in fragment.read_text().splitlines()]
    wanted = [line for line in wanted if re.match(r"(# )?CONFIG_", line)]
    # What is off may also be absent.
    missing = [line for line in wanted if line not in has and not line.endswith(" is not set")]
    for line in wanted:
        if line.endswith(" is not set"):
            symbol = line.split()[1]
            missing += [line for found in has if found.startswith(f"{symbol}=")]
    if missing:
        raise Failure(f"{config} lacks {'; '.join(missing)}")


def disk(board, target, binaries, tools, epoch):
    """The board's image, made of what Buildroot has put into `binaries`, and beside it the facts about it in a JSON and what a bundle of
    its system consists of, in a folder. Returns the image."""
    layout = layouts.load(board)
    work = binaries / f"{board.name}.work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    files = {"data": image.data(epoch, layout, tools, work), "rootfs": work / "rootfs.squashfs"}
    shutil.copyfile(_made(binaries / "rootfs.squashfs"), files["rootfs"])
    boot = work / "boot"
    boot.mkdir()
    (boot / "inferd.toml.example").write_text(image.example(target))
    systems = {}
    if board.backend == "rpi-tryboot":
        image.write(boot, rpi.boot_files(board, layout))
        systems = pi_systems(board, layout, binaries, work, tools, epoch)
    elif board.backend == "uboot-env":
        image.write(boot, uboot.boot_files(epoch))
        systems["boot-a"] = image.fat(_kernel(board, target, binaries, work / "system"), layout.named("system"), epoch, tools)
    else:
        shutil.copytree(_kernel(board, target, binaries, work / "system"), boot, dirs_exist_ok=True)
    shutil.rmtree(binaries / PARTS, ignore_errors=True)
    if systems:
        files["system"] = systems[layout.named("system").name]
        image.put_parts(files["rootfs"], systems, board, binaries / PARTS)
    files["boot"] = image.fat(boot, layout.named("boot"), epoch, tools)
    output = binaries / f"{board.name}.img"
    image.disk(layout, files, tools, work, output)
    # What `inferctl flash` and scripts/lib/release.py read of it. Firmware that is not there would have ended this long before.
    facts = {
        "board": board.name,
        "dev": False,
        "root_sha256": roots.digest(target),
        "build": image.build_id(),
        "system": image.facts_of(image.system()),
        "sha256": image.digest(output),
        "rootfs_bytes": files["rootfs"].stat().st_size,
        "image_bytes": output.stat().st_size,
        "startable": True,
        "missing": [],
    }
    output.with_name(output.name + ".json").write_text(json.dumps(facts, indent=2) + "\n")
    shutil.rmtree(work)
    return output


def cmdline(board):
    """The kernel's command line where drivers are built in: a module's parameters stand there, with its name before them."""
    parameters = [f"{name}.{word}" for name, given in board.module_parameters.items() for word in given.split()]
    # One that the board's own line has already, such as the watchdog core's, is not said twice.
    return " ".join(dict.fromkeys([*board.cmdline.split(), *parameters]))


def initramfs(board, target):
    """Our init, BusyBox and the C library it needs. No module: the kernel has them built in."""
    busybox = target / "usr/bin/busybox"
    if not busybox.exists():
        raise Failure(f"{target} has no usr/bin/busybox")
    needed = glibc.together([busybox], Sysroot(target, board.architecture_in_rust))
    archive = cpio.Archive()
    for folder in ("bin", "dev", "proc", "sys", "root", "lib", "lib/modules"):
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    archive.symlink("lib64", "lib")
    archive.file("bin/busybox", busybox.read_bytes(), 0o755)
    for name in image.applets(busybox.read_bytes()):
        if name != "busybox":
            archive.symlink(f"bin/{name}", "busybox")
    for name, file in needed.libraries.items():
        archive.file(f"lib/{name}", file.read_bytes(), 0o755)
    archive.file("lib/modules/order", b"")
    archive.file("init", (places.BOARDS / "common/initramfs/init").read_bytes(), 0o755)
    return gzip.compress(archive.bytes(), compresslevel=6, mtime=0)


def _kernel(board, target, binaries, stage):
    """Kernel, initramfs and command line, in a folder of their own."""
    stage.mkdir()
    shutil.copyfile(_made(binaries / board.kernel.image), stage / "kernel")
    (stage / "initramfs").write_bytes(initramfs(board, target))
    (stage / "cmdline.txt").write_text(cmdline(board) + "\n")
    return stage


def pi_systems(board, layout, binaries, work, tools, epoch):
    """The FATs of both slots, by their partitions' names."""
    stage = work / "system"
    stage.mkdir()
    shutil.copyfile(_made(binaries / board.kernel.image), stage / board.kernel.image)
    for tree in board.kernel.device_trees:
        name = f"{Path(tree).name}.dtb"
        shutil.copyfile(_made(binaries / name), stage / name)
    for name in board.firmware.files:
        shutil.copyfile(_made(binaries / "rpi-firmware" / name), stage / name)
    rpi.check_firmware(board, stage)
    overlays = rpi.overlays_of((places.BOARDS / board.name / "config.txt").read_text())
    if overlays:
        (stage / "overlays").mkdir()
    for name in overlays:
        shutil.copyfile(_made(binaries / f"rpi-firmware/overlays/{name}.dtbo"), stage / f"overlays/{name}.dtbo")
    return image.pi_systems(stage, layout, epoch, tools, lambda slot: rpi.system_files(board, layout, slot))


def _made(path):
    if not path.exists():
        raise Failure(f"Buildroot has not made {path}")
    return path


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(prog="builder.py", description="Called by Buildroot; see buildroot/README.md.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, help_ in (("rootfs", "complete the root filesystem"), ("image", "make the image")):
        command = verbs.add_parser(verb, help=help_)
        command.add_argument("board", choices=[name for name in boards.names() if boards.load(name).kernel])
        command.add_argument("folder", type=Path, help="what Buildroot names first")
    command = verbs.add_parser("kernel", help="check the kernel's configuration against fragments")
    command.add_argument("config", type=Path)
    command.add_argument("fragments", type=Path, nargs="+")
    return parser.parse_args()


def cli():
    """Called by buildroot/external.mk, post-build.sh and post-image.sh."""
    options = arguments()
    if options.verb == "kernel":
        check_kernel(options.config, options.fragments)
    elif options.verb == "rootfs":
        rootfs(boards.load(options.board), options.folder, image.build_id(), image.system())
    else:
        target, host = os.environ["TARGET_DIR"], os.environ["HOST_DIR"]
        made = disk(boards.load(options.board), Path(target), options.folder, HostTools(host), image.source_date_epoch())
        say(f"{made}\nsha256 {image.digest(made)}")
    return 0


if __name__ == "__main__":
    main(cli)
