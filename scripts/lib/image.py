"""Assembles a board's image: kernel and BusyBox from Debian packages, our overlay, our daemon, the engines of vendors, one GPT
disk image.

Needs no root and mounts nothing. The same inputs give the same bytes: times come from SOURCE_DATE_EPOCH (default: the
last commit's), identifiers are fixed or derived from names. Beside FILE stands FILE.json, which says what is in it.
"""

import argparse
import dataclasses
import gzip
import hashlib
import json
import os
import re
import shutil
import tomllib
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import board as boards
import cpio
import debian
import devkeys
import engines
import hosttools
import layout as layouts
import modules
import places
import programs
import release
import roots
import rpi
import rust
import sbom
import targets
import uboot
from steps import Failure, main, run, say, step, workroom

SYSTEM_PRODUCT = "inferd-os"  # as `inferctl bundle build --system` calls it too
MODELS_IN_IMAGE = "usr/share/inferd/models"
FOLDERS = ("boot", "data", "dev", "proc", "root", "run", "sys", "tmp", "usr/bin", "usr/lib", "var")
LINKS = {"bin": "usr/bin", "sbin": "usr/bin", "lib": "usr/lib", "usr/sbin": "bin", "var/run": "/run", "var/log": "/run"}
APPLETS_NEEDED = {"init", "sh", "mount", "insmod", "switch_root", "udhcpc", "ip", "start-stop-daemon", "arping"}


@dataclass
class Recipe:
    """What goes into an image."""

    board: boards.Board
    inferd: Path
    models: list
    vendors: engines.Engines | None = None  # those of vendors; without them only the built-in one serves
    carried: programs.Programs | None = None  # those of Debian that inferd.toml may ask for
    dev: bool = False
    root: Path | None = None  # the root document it is born with; without one it accepts no bundle
    api_key: str | None = None  # dev images only: lets other machines than the appliance change it
    refresh: bool = False
    epoch: int = field(default_factory=lambda: source_date_epoch())
    build_id: str = field(default_factory=lambda: build_id())
    system: tuple[str, int] | None = None  # its product and version, as the bundle of the same system has them; where it is not to go back
    squeeze: int = 19  # zstd's level for the root filesystem: half a minute of a core for a tenth less to download


def source_date_epoch():
    """The time that every file in the image carries, in seconds since 1970."""
    chosen = os.environ.get("SOURCE_DATE_EPOCH")
    if chosen:
        if not re.fullmatch(r"\d{1,10}", chosen):
            raise Failure(f"SOURCE_DATE_EPOCH is {chosen!r}, not seconds since 1970")
        return int(chosen)
    try:
        return int(run(["git", "log", "-1", "--format=%ct"], cwd=places.ROOT).strip())
    except Failure:
        return 0


def build_id():
    """What the image calls itself in /etc/os-release: $INFERD_BUILD_ID, else the commit."""
    chosen = os.environ.get("INFERD_BUILD_ID")
    if chosen:
        return chosen
    try:
        return run(["git", "describe", "--always", "--dirty", "--tags"], cwd=places.ROOT).strip()
    except Failure:
        return "unknown"


def system(product=None, version=None):
    """Which system the image holds, its product and version: what is given, else $INFERD_IMAGE_ID and $INFERD_IMAGE_VERSION. None where nobody
    gives a version: a device then knows only what it has committed."""
    product, version = product or os.environ.get("INFERD_IMAGE_ID"), version or os.environ.get("INFERD_IMAGE_VERSION")
    if product and not version:
        raise Failure(f"which version of {product} is it? (--system-version, or INFERD_IMAGE_VERSION)")
    if not version:
        return None
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", product or SYSTEM_PRODUCT):
        raise Failure(f"{product!r} is no name of a system")
    if not re.fullmatch(r"[0-9]{1,19}", version):
        raise Failure(f"{version!r} is no version of a system: it is a number that rises")
    return product or SYSTEM_PRODUCT, int(version)


def facts_of(system):
    """The same for a program."""
    return {"product": system[0], "version": system[1]} if system else None


def assemble(recipe, output, parts=None):
    """Writes the image to `output` and the facts about it to `output`.json; returns those facts. What a system update consists of is
    put into the folder `parts`, where one is named."""
    with workroom(output.with_name(output.name + ".work")) as work:
        return _assemble(recipe, output, parts, work)


def _assemble(recipe, output, parts, work):
    rust.check_static(recipe.inferd, recipe.board.rust_target)
    layout = layouts.load(recipe.board)
    with step("Unpacking the image tools, the kernel and BusyBox from Debian packages (nothing is installed)") as remark:
        tools = hosttools.Tools(hosttools.IMAGE, refresh=recipe.refresh)
        packages = packages_of(recipe.board, recipe.refresh)
        given = firmware(recipe.board, recipe.refresh)
        versions = packages.versions | given.versions | (recipe.vendors.glibc.versions if recipe.vendors else {})
        lacks = missing(recipe.board, given) + (recipe.carried.missing() if recipe.carried else [])
        remark += [f"{name} {version}" for name, version in versions.items()]
    output.with_name(output.name + ".bmap").unlink(missing_ok=True)  # an older image's
    with step(f"Assembling {output.name} for {recipe.board.summary}{', with a root shell' if recipe.dev else ''}") as remark:
        root, more = rootfs(recipe, packages.path, tools, work)
        versions |= more
        files = {"rootfs": root, "data": data(recipe.epoch, layout, tools, work)}
        systems, files["boot"] = boot(recipe, packages.path, given, lacks, layout, tools, work)
        if systems:
            files["system"] = systems[layout.named("system").name]
        if parts:
            put_parts(files["rootfs"], systems, recipe.board, parts)
        disk(layout, files, tools, work, output)
        remark += [f"root {mib(files['rootfs'])}", f"image {mib(output)}, of which written {mib(output, True)}"]
    facts = {
        "board": recipe.board.name,
        "dev": recipe.dev,
        "root_sha256": digest(recipe.root) if recipe.root else None,
        "build": recipe.build_id,
        "system": facts_of(recipe.system),
        "sha256": digest(output),
        "rootfs_bytes": files["rootfs"].stat().st_size,
        "initramfs_bytes": (work / "kernel" / "initramfs").stat().st_size,
        "kernel_bytes": (work / "kernel" / kernel_name(recipe.board)).stat().st_size,
        "inferd_bytes": recipe.inferd.stat().st_size,
        "image_bytes": output.stat().st_size,
        "image_bytes_written": output.stat().st_blocks * 512,
        "minimal": recipe.vendors is None,
        "startable": not board_lacks_firmware(recipe.board, given),
        "missing": lacks,
        **(recipe.vendors.facts() if recipe.vendors else {}),
        "packages": dict(sorted(versions.items())),
        "tools": {name: tools.versions[name] for name in hosttools.IMAGE},
        "models": sorted(path.name for path in (work / "rootfs" / MODELS_IN_IMAGE).iterdir()),
    }
    output.with_name(output.name + ".json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def packages_of(board, refresh=False):
    """The board's kernel and BusyBox, unpacked."""
    suites = [board.debian.suite, board.debian.kernel_suite] if board.debian.kernel_suite else [board.debian.suite]
    archive = debian.Archive(board.debian.architecture, suites)
    return archive.tree([board.debian.kernel, "busybox-static"], follow=[board.debian.kernel], refresh=refresh)


def firmware(board, refresh=False):
    """What starts before the kernel and lies beside it, unpacked; nothing where the board has none or the archive at hand has it not."""
    return debian.not_free(board.debian.architecture, board.debian.firmware_suite, board.debian.firmware, refresh)


def board_lacks_firmware(board, given):
    """Whether a board does not start from its image as it is: what starts before the kernel has to be brought from elsewhere."""
    return bool(board.firmware.files) and given.path is None


def missing(board, given):
    """What the board would need and Debian does not have: sentences, in the facts about the image and on the console at every start."""
    if board.backend != "rpi-tryboot":
        return []
    lacks = []
    if board_lacks_firmware(board, given):
        names = " and ".join(board.firmware.files)
        lacks.append(f"{names} for boot-a and boot-b: it does not start without them; they are in boot/ of github.com/raspberrypi/firmware (stable)")
    overlays = rpi.overlays_of((places.BOARDS / board.name / "config.txt").read_text())
    lacks += [f"the overlay {name}: what a kernel says at its end is not kept" for name in overlays if name.startswith("ramoops")]
    if "hailo" in board.engines:
        lacks.append("the driver, the firmware and the library of the Hailo-8: other engines serve; an image with them is built by Buildroot")
    return lacks


def put_parts(rootfs, systems, board, folder):
    """What a bundle of this system consists of, each file as it is written to the beginning of its partition: the root filesystem, and
    the FAT with the kernel, `boot` where the same fits both slots, else `boot-a` and `boot-b`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("rootfs", "boot", "boot-a", "boot-b"):
        (folder / name).unlink(missing_ok=True)
    shutil.copyfile(rootfs, folder / "rootfs")
    one = {"boot": systems["boot-a"]} if board.backend == "uboot-env" else systems
    for name, file in one.items():
        content = file.read_bytes().rstrip(b"\0")
        # Behind its last file a FAT holds nothing: what lies there on the medium is nobody's.
        (folder / name).write_bytes(content + bytes(-len(content) % 4096))


def rootfs(recipe, packages, tools, work):
    """The read-only root: overlay, BusyBox, daemon, engines, programs, models, as squashfs. And which packages of Debian are in it beside BusyBox."""
    stage = work / "rootfs"
    for folder in FOLDERS:
        (stage / folder).mkdir(parents=True, exist_ok=True)
    for link, to in LINKS.items():
        (stage / link).symlink_to(to)
    shutil.copytree(places.OVERLAY, stage, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    install_busybox(packages, stage / "usr/bin")
    shutil.copy(recipe.inferd, stage / "usr/bin/inferd")
    if recipe.vendors:
        recipe.vendors.install(stage)
    versions = recipe.carried.install(stage, packages) if recipe.carried else {}
    tell(recipe, stage)
    readable(stage)
    return squashed(stage, recipe, tools, work / "rootfs.squashfs"), versions


def tell(recipe, stage):
    """What of a recipe stands in the files of a root filesystem: what it says of itself, what it serves, whom it believes, who gets in."""
    furnish(stage, recipe.board, recipe.models, recipe.build_id, recipe.dev, recipe.system)
    trust(recipe, stage)
    if recipe.dev:
        with open(stage / "etc/inittab", "a", encoding="utf-8") as inittab:
            inittab.write(f"{recipe.board.dev_shell}::respawn:-/bin/sh\n")


def readable(stage):
    """Whatever the umask of who builds is: everybody reads, root writes, what may be started may be by all."""
    for path in [stage, *stage.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def squashed(stage, recipe, tools, squashfs):
    """A folder as a squashfs in which all is root's."""
    epoch = recipe.epoch
    run(
        [tools.path("mksquashfs"), stage, squashfs, "-noappend", "-no-progress", "-quiet", "-all-root", "-no-xattrs"]
        + ["-comp", "zstd", "-Xcompression-level", recipe.squeeze, "-mkfs-time", epoch, "-all-time", epoch],
        drop=["SOURCE_DATE_EPOCH"],  # mksquashfs refuses its own time options beside it
    )
    return squashfs


def furnish(stage, board, models, build_id, dev=False, system=None):
    """What a root filesystem says of itself and serves from the first boot, whoever builds it."""
    for name, folder in named_models(models).items():
        shutil.copytree(
            folder, stage / MODELS_IN_IMAGE / name, ignore=shutil.ignore_patterns(".*", "__pycache__"), dirs_exist_ok=True
        )
    version = tomllib.loads((places.ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    (stage / "etc/os-release").write_text(
        f'NAME="inferd appliance"\nID=inferd\nVERSION_ID={version}\nPRETTY_NAME="inferd appliance {version}"\n'
        f'BUILD_ID="{build_id}"\nVARIANT_ID={"dev" if dev else "production"}\n'
        + (f"IMAGE_ID={system[0]}\nIMAGE_VERSION={system[1]}\n" if system else "")
    )
    (stage / "etc/inferd/board").write_text(f"{board.name}\n")
    (stage / "etc/inferd/board.toml").write_text((places.BOARDS / board.name / "board.toml").read_text())


def trust(recipe, stage):
    """Whom the image believes: its root document, and in a dev image also what is signed for development."""
    roots.put(recipe.root, stage)
    if not recipe.dev:
        return
    config = stage / "etc/inferd/inferd.toml"
    text = config.read_text()
    if recipe.root:
        text = with_setting(text, "updates", "allow_dev", "true")
    if recipe.api_key:
        text = with_setting(text, "security", "api_key", f'"{recipe.api_key}"')
    config.write_text(text)


def with_setting(text, section, key, value):
    """A configuration file with one of its settings, which stands there as a comment, set."""
    head, mark, rest = text.partition(f"\n[{section}]\n")
    body, following, tail = rest.partition("\n[")
    changed, count = re.subn(rf"(?m)^#{re.escape(key)} = .*$", f"{key} = {value}", body)
    if not mark or count != 1:
        raise Failure(f"rootfs-overlay/etc/inferd/inferd.toml has no setting {key} under [{section}]")
    return head + mark + changed + following + tail


def install_busybox(packages, folder):
    """BusyBox and a link for every applet it says it has."""
    program = packages / "usr/bin/busybox"
    shutil.copy(program, folder / "busybox")
    names = applets(program.read_bytes())
    for name in names:
        if name != "busybox":
            (folder / name).symlink_to("busybox")
    return names


def applets(binary):
    """The applets a BusyBox binary holds, from the table in it: it may be another architecture's and cannot be asked."""
    match = re.search(rb"\[\0\[\[\0((?:[a-z0-9_-]+\0)+)", binary)
    names = {name.decode() for name in match[1].split(b"\0") if name} if match else set()
    missing = APPLETS_NEEDED - names
    if missing:
        raise Failure(f"this BusyBox lacks {', '.join(sorted(missing))}")
    return ["[", "[[", *sorted(names)]


def named_models(folders):
    """Model directories by the name their manifests give them; two of one name are refused."""
    found = {}
    for folder in map(Path, folders):
        manifest = folder / "manifest.toml"
        if not manifest.is_file():
            raise Failure(f"{folder} is no model directory: it has no manifest.toml (`inferctl model import` makes one)")
        name = tomllib.loads(manifest.read_text()).get("name", "")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise Failure(f"{manifest} gives no usable name: {name!r}")
        if name in found:
            raise Failure(f"{folder} and {found[name]} are both called {name!r}")
        found[name] = folder
    if not found:
        raise Failure("an image needs at least one model (--model DIR)")
    return found


def initramfs(board, packages, lacks=()):
    """BusyBox, our init and the modules the board needs to reach its root filesystem; and what it says at every start is missing."""
    archive = cpio.Archive()
    for folder in ("bin", "dev", "proc", "sys", "root", "lib", "lib/modules"):
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    busybox = (packages / "usr/bin/busybox").read_bytes()
    archive.file("bin/busybox", busybox, 0o755)
    for name in applets(busybox):
        if name != "busybox":
            archive.symlink(f"bin/{name}", "busybox")
    order = modules.Modules(packages).load_order(board.modules)
    for name, content in order:
        archive.file(f"lib/modules/{name}.ko", content)
    parameters = {name.replace("-", "_"): given for name, given in board.module_parameters.items()}
    lines = [f"{name} {parameters.get(name, '')}".strip() for name, _ in order]
    archive.file("lib/modules/order", "".join(f"{line}\n" for line in lines).encode())
    if lacks:
        archive.file("lib/missing", "".join(f"{line}\n" for line in lacks).encode())
    archive.file("init", (places.BOARDS / "common/initramfs/init").read_bytes(), 0o755)
    return gzip.compress(archive.bytes(), compresslevel=6, mtime=0)


def kernel_name(board):
    """What the kernel is called where the boot loader looks for it."""
    return board.kernel.image if board.backend == "rpi-tryboot" else "kernel"


def boot(recipe, packages, given, lacks, layout, tools, work):
    """The FATs. First those of systems by their partitions' names: kernel, initramfs, command line and what else its boot loader wants
    there; none where there is one kernel for all. Then `boot`: what the boot loader reads first, and the configuration as an example."""
    board, system, stage = recipe.board, work / "kernel", work / "boot"
    system.mkdir()
    shutil.copyfile(the_one(packages, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"), system / kernel_name(board))
    (system / "initramfs").write_bytes(initramfs(board, packages, lacks))
    (system / "cmdline.txt").write_text(board.cmdline + "\n")
    systems = {}
    if board.backend == "initramfs":
        shutil.copytree(system, stage)
    else:
        stage.mkdir()
    if board.backend == "uboot-env":
        write(stage, uboot.boot_files(recipe.epoch))
        systems["boot-a"] = fat(system, layout.named("system"), recipe.epoch, tools)
    elif board.backend == "rpi-tryboot":
        write(stage, rpi.boot_files(board, layout))
        copy_for_a_pi(board, packages, given, system)
        systems = pi_systems(system, layout, recipe.epoch, tools, lambda slot: rpi.system_files(
            board_on_debian(board), layout, slot, initramfs=True, overlays=()
        ))
    # The image's own: who starts from it keeps what makes a dev image one.
    (stage / "inferd.toml.example").write_text(example(work / "rootfs"))
    return systems, fat(stage, layout.named("boot"), recipe.epoch, tools)


def pi_systems(stage, layout, epoch, tools, files):
    """The FATs of a Raspberry Pi's systems by their partitions' names: what is in `stage`, and what `files` says of a slot."""
    systems = {}
    for slot in rpi.SLOTS:
        write(stage, files(slot))
        partition = next(part for part in layout.partitions if part.name == f"boot-{slot}")
        systems[partition.name] = fat(stage, partition, epoch, tools)
    return systems


def copy_for_a_pi(board, packages, given, folder):
    """Device trees and firmware, to where a Raspberry Pi's firmware looks for them."""
    for tree, name in zip(board.kernel.device_trees, board.debian.device_trees or board.kernel.device_trees, strict=True):
        shutil.copyfile(the_one(packages, f"usr/lib/linux-image-*/{name}.dtb"), folder / f"{Path(tree).name}.dtb")
    for name in board.firmware.files if given.path else ():
        shutil.copyfile(given.path / "usr/lib/raspi-firmware" / name, folder / name)
    if given.path:
        rpi.check_firmware(board, folder)


def board_on_debian(board):
    """The board as Debian's kernel sees it: its console may have another name there."""
    console = board.debian.console or board.console
    return dataclasses.replace(board, console=console, cmdline=board.cmdline.replace(f"console={board.console}", f"console={console}"))


def the_one(folder, *patterns):
    """The one file that one of the patterns finds."""
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    if len(found) != 1:
        raise Failure(f"{folder} holds {len(found)} of {' or '.join(patterns)}, not one")
    return found[0]


def write(folder, files):
    """Puts files, by name, into a folder."""
    for name, content in files.items():
        (folder / name).write_bytes(content)


def example(root):
    """What an operator may write into inferd.toml: the sections of the first boot, then the daemon's settings."""
    return (root / "etc/inferd/provision.toml").read_text() + (root / "etc/inferd/inferd.toml").read_text()


def fat(stage, partition, epoch, tools):
    """A FAT with all that is in `stage`, for a partition; it lies beside `stage`."""
    file = stage.with_name(f"{partition.name}.vfat")
    with open(file, "wb") as image:
        image.truncate(partition.size)
    environment = {"SOURCE_DATE_EPOCH": epoch, "TZ": "UTC", "MTOOLS_SKIP_CHECK": "1"}
    serial = hashlib.sha256(partition.uuid.encode()).hexdigest()[:8]
    label = "INFERD-BOOT" if partition.name == "boot" else "INFERD-SYS"  # 11 characters at most
    run([tools.path("mkfs.fat"), "--invariant", "-F", "32", "-n", label, "-i", serial, file], env=environment)
    for path in sorted(stage.rglob("*")):
        os.utime(path, (epoch, epoch))
    for path in sorted(stage.rglob("*")):
        name = f"::{path.relative_to(stage)}"
        if path.is_dir():
            run([tools.path("mmd"), "-i", file, name], env=environment)
        else:
            run([tools.path("mcopy"), "-m", "-i", file, path, name], env=environment)
    return file


def data(epoch, layout, tools, work):
    """An empty ext4 for state and overrides."""
    partition = layout.named("data")
    image = work / "data.ext4"
    with open(image, "wb") as file:
        file.truncate(partition.size)
    seed = uuid.uuid5(uuid.UUID(partition.uuid), "hash_seed")
    options = f"hash_seed={seed},root_owner=0:0,lazy_itable_init=1,nodiscard"
    environment = {"SOURCE_DATE_EPOCH": epoch, "E2FSPROGS_FAKE_TIME": epoch or 1, "MKE2FS_CONFIG": os.devnull}
    run(
        [tools.path("mkfs.ext4"), "-q", "-F", "-L", "data", "-U", partition.uuid, "-E", options, "-m", "1", "-b", "4096"]
        # No metadata_csum: its checksum of the superblock lies in another 512-byte sector than what it covers, and a write
        # of it that a power cut tears between the two keeps the kernel from mounting the partition for ever.
        + ["-O", "none,has_journal,extent,64bit,dir_index,filetype,flex_bg,sparse_super,large_file", "-I", "256"]
        + [image],
        env=environment,
    )
    return image


def disk(layout, files, tools, work, output):
    """One GPT image of all parts, put in place whole."""
    for content, file in files.items():
        room = layout.named(content).size
        if file.stat().st_size > room:
            raise Failure(
                f"the {content} part is {mib(file)}, its partition {room >> 20} MiB; "
                f"raise {layout.named(content).name} under [sizes] in the board's board.toml"
            )
    config = work / "genimage.cfg"
    config.write_text(layouts.genimage(layout, "disk.img", {content: file.name for content, file in files.items()}))
    for folder in ("empty", "genimage.tmp"):
        (work / folder).mkdir()
    run(
        [tools.path("genimage"), "--config", config, "--inputpath", work, "--outputpath", work]
        + ["--rootpath", work / "empty", "--tmppath", work / "genimage.tmp"],
    )
    (work / "disk.img").replace(output)


def mib(path, written=False):
    """A file's size for people; `written`: what it takes on the disk, holes left out."""
    status = path.stat()
    return f"{(status.st_blocks * 512 if written else status.st_size) / (1 << 20):.1f} MiB"


def digest(path):
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


MINIMAL = "without the engines of vendors, Debian's programs for Wi-Fi, SSH and the time, and the C library they need: only the built-in engine serves"


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/image",
        description="Assemble a bootable image for a board: Debian's kernel and BusyBox, the init scripts of "
        "rootfs-overlay, the static daemon, the engines of vendors and models. Needs no root.",
    )
    parser.add_argument("--board", required=True, choices=boards.assembled(), help="which board")
    parser.add_argument("-o", "--output", type=Path, help="image file (default: target/image/BOARD.img)")
    parser.add_argument("--model", type=Path, action="append", default=[], metavar="DIR", help="one more model; repeatable")
    parser.add_argument("--no-default-model", action="store_true", help="only the models named with --model")
    parser.add_argument("--inferd", type=Path, metavar="FILE", help="use this daemon instead of building it")
    parser.add_argument("--minimal", action="store_true", help=MINIMAL)
    parser.add_argument(
        "--root", type=Path, metavar="FILE", help="the root document whose keys it believes (`inferctl root create`); without one "
        "it accepts no bundle (default with --dev: this machine's developer keys)",
    )
    parser.add_argument(
        "--dev", action="store_true", help="a root shell on a second port of the machine, bundles signed for development, and the "
        "developer's API key; never ship it",
    )
    parser.add_argument("--release", type=Path, metavar="DIR", help="also make there what is handed out: NAME.img.zst, its block map, "
                        "its facts, its bill of materials and SHA256SUMS")
    parser.add_argument("--release-key", type=Path, metavar="NAME.key", help="sign SHA256SUMS with this key of `inferctl keygen`")
    parser.add_argument(
        "--parts", type=Path, metavar="DIR", help="leave there what a bundle of this system consists of: rootfs, and boot, or boot-a and "
        "boot-b, with the kernel (`inferctl bundle build --system`)",
    )
    parser.add_argument(
        "--system-version", metavar="N", help="which version of the system this is: its device takes no older one. The one that the bundle "
        "of its parts is signed under (default: $INFERD_IMAGE_VERSION, else it is not said)",
    )
    parser.add_argument(
        "--system-product", metavar="NAME", help="what that system is called: its device takes no other one "
        f"(default: $INFERD_IMAGE_ID, else {SYSTEM_PRODUCT})",
    )
    parser.add_argument("--refresh", action="store_true", help="ask the Debian archive for newer packages")
    return parser.parse_args()


def cli():
    """scripts/image"""
    options = arguments()
    if options.release_key and not options.release:
        raise Failure("--release-key signs what --release makes")
    if options.release_key and not options.release_key.is_file():
        raise Failure(f"there is no {options.release_key}; `inferctl keygen` makes a key")
    if options.release and options.dev:
        raise Failure(release.DEV)
    holds = system(options.system_product, options.system_version)
    board = boards.load(options.board)
    root, api_key = trusted(options.root, options.dev)
    inferd = options.inferd or built_daemon(board)
    vendors = None if options.minimal else engines.prepare(board.architecture_in_rust, options.refresh)
    carried = None if options.minimal else programs.prepare(board, options.refresh)
    models = ([] if options.no_default_model else [*places.SHIPPED_MODELS]) + options.model
    output = (options.output or default_output(board, dev=options.dev, minimal=options.minimal)).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(board, inferd, models, vendors, carried, dev=options.dev, root=root, api_key=api_key, refresh=options.refresh, system=holds)
    facts = assemble(recipe, output, options.parts)
    say(f"\n{output}\nsha256 {facts['sha256']}\nserves {', '.join(facts['models'])}; facts in {output.name}.json")
    if options.release:
        made = release.make(output, options.release, options.release_key, options.release_key and rust.build_for_host("inferctl"), sbom=sbom.make(facts, board))
        say(f"released: {', '.join(file.name for file in made)} in {options.release}")
        if options.release_key:
            key = (options.release / "minisign.pub").read_text().splitlines()[1]
            say(f"for who downloads it, had from another place: minisign -Vm SHA256SUMS -P {key}")
        else:
            say("nobody has signed it: --release-key does")
    for line in facts["missing"]:
        say(f"missing: {line}")
    if root is None:
        say("accepts no bundle, neither of models nor of systems: it was made without --root")
    return 0


def trusted(root, dev, inferctl=None):
    """The root document and the API key of an image: this machine's developer keys for a dev image, else what was given."""
    if root:
        roots.judged(root)
    if not dev:
        return root, None
    keys = devkeys.ensure(inferctl or rust.build_for_host("inferctl"))
    return root or keys.root, keys.api_key


def default_output(board, *, dev, minimal):
    """Where an image is written when no file is named."""
    return places.images() / f"{board.name}{'-minimal' if minimal else ''}{'-dev' if dev else ''}.img"


def built_daemon(board):
    """The static daemon for a board, built now."""
    targets.ensure([board.rust_target])
    with step(f"Building the daemon for {board.rust_target} (static; the first build takes some minutes)"):
        return rust.build("inferd", board.rust_target)


if __name__ == "__main__":
    main(cli)
