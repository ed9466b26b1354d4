"""What the layer yocto/meta-inferd takes from the rest of the project: files that are generated into it, and the parts of an image.

Generated, and compared by tests/yocto: the list of crates (from Cargo.lock) and the partitions of each board as a wks (from
board/common/layout.toml). Called by recipes: the FATs and the data partition, made by the code of every other builder, and the
storage layouts of a Jetson with our partitions in them, and the judgement whether a Jetson's root filesystem has what keeps it starting.
"""

import argparse
import glob
import json
import os
import shutil
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import board as boards
import builder
import image
import layout as layouts
import places
import release
import roots
import rpi
from steps import Failure, main, say

LAYER = places.ROOT / "yocto/meta-inferd"
CRATES = LAYER / "recipes-inferd/inferd/inferd-crates.inc"
WKS = LAYER / "files/wic"
# Boards whose medium we lay out, each with its machine in OpenEmbedded; a Jetson's is laid out by NVIDIA's tools.
MACHINES = {"qemu-aarch64": "qemuarm64", "rpi4": "raspberrypi4-64", "rpi5-hailo8": "raspberrypi5", "jetson-orin-nano": "jetson-orin-nano-devkit"}
# What fills the rest of a medium in NVIDIA's storage layouts, and what only has a size.
TO_THE_END, SIZED = "0x808", "0x8"
# The FAT for inferd.toml, as NVIDIA's tools are given it: in their folder, so that a file can be put on it before they write it.
TEGRA_BOOT = "inferd-boot.vfat"
# What a Jetson's root filesystem must have of other layers, each as a pattern with what there is without it. Nothing at run time would tell:
# most of it comes by recommendations and by lists of the machine, which an image can leave out without a word.
TEGRA_NEEDS = {
    "usr/sbin/nvbootctrl": "nobody could tell the UEFI that a start went well: after three warm starts it gives a system up",
    "etc/systemd/system/multi-user.target.wants/nv_update_verifier.service": "nobody would tell the UEFI that a start went well: after three warm starts it gives a system up",
    "etc/udev/rules.d/99-tegra-devices.rules": "the daemon could not open the GPU",
    "usr/lib/modules/*/**/nvgpu.ko*": "there is no GPU",
    "usr/lib/modules/*/**/r816[89].ko*": "there is no Ethernet",
    "usr/lib/modules/*/**/watchdog?tegra?t18x.ko*": "the watchdog would be the kernel's own, which may feed itself",
}


def laid_out():
    """The boards of which a wks is made."""
    return [name for name in MACHINES if boards.load(name).backend != "uefi-nv"]


def crates(lock):
    """The crates of a Cargo.lock as a recipe wants them, with their checksums."""
    packages = [package for package in tomllib.loads(lock)["package"] if "source" in package]
    if strange := [package["name"] for package in packages if not package["source"].startswith("registry+") or "checksum" not in package]:
        raise Failure(f"not from a registry, or without a checksum: {', '.join(strange)}")
    names = [f"{package['name']}/{package['version']}" for package in packages]
    lines = ["# Made of Cargo.lock by `python3 -B scripts/lib/openembedded.py generate`; tests/yocto compares them.", 'SRC_URI += " \\']
    lines += [f"    crate://crates.io/{name} \\" for name in names]
    lines += ['"', ""]
    lines += [f'SRC_URI[{name.replace("/", "-")}.sha256sum] = "{package["checksum"]}"' for name, package in zip(names, packages, strict=True)]
    return "\n".join(lines) + "\n"


def wks(board):
    """The partitions of a board as wic's kickstart, a template: recipes put the folder of parts in."""
    layout = layouts.load(board)
    made = {"boot": "boot.vfat", "data": "data.ext4", "rootfs": "rootfs.squashfs"}
    if board.backend == "rpi-tryboot":
        made["system"] = "boot-a.vfat"
    lines = [
        f"# {board.summary}: made of board/common/layout.toml and board/{board.name}/board.toml by",
        "# `python3 -B scripts/lib/openembedded.py generate`; tests/yocto compares them.",
        "bootloader --ptable gpt",
    ]
    for part in layout.partitions:
        words = [f"part --part-name {part.name} --uuid {part.uuid} --part-type {part.type}"]
        # A whole image of the partition, or nothing: then it is zeros. QEMU is given the kernel; no boot loader looks for one there.
        if part.content in made:
            words.append(f"--source rawcopy --sourceparams=file=${{INFERD_PARTS}}/{made[part.content]}")
        else:
            words.append("--fstype none")
        words.append(f"--fixed-size {_mib(part.size)} --align {layout.align >> 10}")
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def parts(board, deploy, folder, tools, epoch):
    """The FATs of a board, and its data partition where we lay the medium out, from what bitbake has deployed, into `folder`."""
    layout = layouts.load(board)
    shutil.rmtree(folder, ignore_errors=True)
    stage = folder / "boot"
    stage.mkdir(parents=True)
    (stage / "inferd.toml.example").write_text(image.example(places.OVERLAY))
    if board.name in laid_out():
        image.data(epoch, layout, tools, folder)
    if board.backend == "rpi-tryboot":
        for name, content in rpi.boot_files(board, layout).items():
            (stage / name).write_bytes(content)
        builder.pi_systems(board, layout, _as_buildroot(board, deploy, folder / "deployed"), folder, tools, epoch)
        shutil.rmtree(folder / "deployed")
        shutil.rmtree(folder / "system")
    image.fat(stage, layout.named("boot"), epoch, tools)
    shutil.rmtree(stage)


def system(board, folder, output):
    """What a bundle of the system consists of, for a Raspberry Pi: of the parts in `folder`, where the root filesystem is as well."""
    if board.backend == "rpi-tryboot":
        image.put_parts(folder / "rootfs.squashfs", {f"boot-{slot}": folder / f"boot-{slot}.vfat" for slot in rpi.SLOTS}, board, output)


def _as_buildroot(board, deploy, view):
    """A folder with the names that Buildroot gives to what meta-raspberrypi has deployed."""
    (view / "rpi-firmware/overlays").mkdir(parents=True)
    names = {board.kernel.image: board.kernel.image}
    names |= {f"{Path(tree).name}.dtb": f"{Path(tree).name}.dtb" for tree in board.kernel.device_trees}
    names |= {f"rpi-firmware/{name}": f"bootfiles/{name}" for name in board.firmware.files}
    names |= {f"rpi-firmware/overlays/{path.name}": path.name for path in deploy.glob("*.dtbo")}
    for to, what in names.items():
        if (deploy / what).exists():
            (view / to).symlink_to((deploy / what).resolve())
    return view


def furnish(board, folder):
    """What a root filesystem serves from the first boot and says of its board; os-release is the distribution's."""
    (folder / "etc/inferd").mkdir(parents=True, exist_ok=True)
    image.furnish(folder, board, places.SHIPPED_MODELS, "yocto")
    (folder / "etc/os-release").unlink()


def whole(board, root):
    """Refuses the root filesystem of a Jetson that lacks what keeps it starting and reachable; of other boards it says nothing."""
    if board.backend != "uefi-nv":
        return
    if lacking := [f"{what}: {why}" for what, why in TEGRA_NEEDS.items() if not glob.glob(what, root_dir=root, recursive=True)]:
        raise Failure("\n  ".join(["the root filesystem lacks what packagegroup-machine-base brings:", *lacking]))


def storage_layouts(board, written, paths):
    """Puts our partitions into those of these storage layouts that have two systems; the one that is written to the medium must be one of them."""
    if written not in [path.name for path in paths if path.exists()]:
        raise Failure(f"there is no {written}, the storage layout that is written")
    for path in paths:
        if path.exists() and (path.name == written or _second_system(ET.fromstring(path.read_text())) is not None):
            try:
                path.write_text(with_our_partitions(path.read_text(), board))
            except Failure as failure:
                raise Failure(f"{path.name}: {failure}") from None


def _second_system(layout):
    return next((device for device in layout.iter("device") if device.find("partition[@name='APP_b']") is not None), None)


def with_our_partitions(text, board):
    """A storage layout of NVIDIA's with boot, models-a, models-b and data behind the last system partition.

    The layouts are not public text (they come in NVIDIA's archive): what is relied on is that one device has a partition APP, and that
    its last ones are `secondary_gpt`. The redundant one has APP_b; one without is refused, and so is a second partition that wants the rest.
    """
    tree = ET.ElementTree(ET.fromstring(text, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))))
    device = _second_system(tree)
    if device is None:
        raise Failure("this storage layout has no APP_b: build with USE_REDUNDANT_FLASH_LAYOUT_DEFAULT = \"1\"")
    rows = list(device.findall("partition"))
    wanted = [part for part in layouts.load(board).partitions if part.name in ("boot", "models-a", "models-b", "data")]
    if taken := {row.get("name") for row in rows} & {part.name for part in wanted}:
        raise Failure(f"this storage layout has {', '.join(sorted(taken))} already")
    for row in rows:
        attribute = row.find("allocation_attribute")
        if attribute is not None and attribute.text.strip() == TO_THE_END and row.get("name") not in ("secondary_gpt", "secondary_gpt_backup"):
            # UDA stands before APP and is NVIDIA's own (for its updates): it keeps its size, ours takes the rest.
            attribute.text = f" {SIZED} "
    ids = [int(row.get("id")) for row in rows if (row.get("id") or "").isdigit()]
    behind = next((row for row in rows if row.get("name") == "secondary_gpt"), None)
    at = list(device).index(behind) if behind is not None else len(device)
    for number, part in enumerate(wanted):
        device.insert(at + number, _tegra_partition(part, max(ids, default=0) + 1 + number, last=part.name == "data"))
    ET.indent(tree)
    return '<?xml version="1.0"?>\n' + ET.tostring(tree.getroot(), encoding="unicode") + "\n"


def _tegra_partition(part, number, last):
    row = ET.Element("partition", name=part.name, id=str(number), type="data")
    facts = {
        "allocation_policy": "sequential",
        "filesystem_type": "basic",
        "size": part.size,
        "file_system_attribute": 0,
        "allocation_attribute": TO_THE_END if last else SIZED,
        "align_boundary": 16384,
        "percent_reserved": 0,
        "unique_guid": part.uuid.upper(),
    }
    # No <filename> for the others: a name without a file ends NVIDIA's tools. They stay empty: the appliance's start script makes the file
    # system of `data`, and a model slot without a bundle is all zeros anyway.
    if part.name == "boot":
        facts["filename"] = TEGRA_BOOT
    for name, value in facts.items():
        ET.SubElement(row, name).text = f" {value} "
    return row


def beside(disk, ending):
    """The file of this ending beside an image, where `inferctl flash` looks for it."""
    return disk.with_name(disk.name + ending)


def facts(board, disk, recipe, root):
    """What `inferctl flash` reads beside an image: for which board, whether with a root shell, whom it believes, and its checksum."""
    return {"board": board.name, "dev": recipe.endswith("-dev"), "root_sha256": roots.digest(root), "startable": True, "missing": [], "sha256": image.digest(disk), "image_bytes": disk.stat().st_size}


def _mib(size):
    if size % (1 << 20):
        raise Failure(f"{size} bytes are no whole MiB, and wic knows nothing smaller")
    return f"{size >> 20}M"


def generated():
    """Every generated file with what it must hold."""
    found = {CRATES: crates((places.ROOT / "Cargo.lock").read_text())}
    return found | {WKS / f"inferd-{name}.wks.in": wks(boards.load(name)) for name in laid_out()}


def cli():
    """Called by people (`generate`) and by the recipes of meta-inferd."""
    parser = argparse.ArgumentParser(prog="openembedded.py", description="See yocto/README.md.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("generate", help="write what the layer has of other files")
    command = verbs.add_parser("judge", help="called by a recipe: whether an image may hold a system of this product and version")
    command.add_argument("product")
    command.add_argument("version")
    verbs_of_recipes = {"parts": ("deploy", "folder", "tools"), "system": ("folder", "output"), "furnish": ("folder",), "whole": ("root",), "map": ("disk",), "facts": ("disk", "recipe", "root")}
    for verb, given in verbs_of_recipes.items():
        command = verbs.add_parser(verb, help="called by recipes")
        command.add_argument("board", choices=sorted(MACHINES))
        for name in given:
            command.add_argument(name, type=str if name == "recipe" else Path)
    command = verbs.add_parser("tegra", help="called by a recipe: our partitions in NVIDIA's storage layouts")
    command.add_argument("board", choices=sorted(MACHINES))
    command.add_argument("written")
    command.add_argument("xml", type=Path, nargs="+")
    options = parser.parse_args()
    if options.verb == "generate":
        for path, text in generated().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            say(path.relative_to(places.ROOT))
        return 0
    if options.verb == "judge":
        image.system(options.product, options.version)
        return 0
    board = boards.load(options.board)
    if options.verb == "parts":
        epoch = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
        parts(board, options.deploy, options.folder, builder.HostTools(options.tools), epoch)
    elif options.verb == "system":
        system(board, options.folder, options.output)
    elif options.verb == "furnish":
        furnish(board, options.folder)
    elif options.verb == "map":
        beside(options.disk, ".bmap").write_text(release.bmap(options.disk))
    elif options.verb == "facts":
        beside(options.disk, ".json").write_text(json.dumps(facts(board, options.disk, options.recipe, options.root), indent=2) + "\n")
    elif options.verb == "whole":
        whole(board, options.root)
    else:
        storage_layouts(board, options.written, options.xml)
    return 0


if __name__ == "__main__":
    main(cli)
