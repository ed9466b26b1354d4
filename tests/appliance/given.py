"""A finished image of another builder, `$INFERD_TEST_IMAGE`, in place of those that scripts/image assembles.

A test that wants it as it ships gets its bytes. What another test wants otherwise (a root shell, other models, whom it believes) is put
into a copy of its root filesystem, by the code with which scripts/image puts it into its own. All else stays its builder's: the kernel,
initramfs and command line, what the boot loader reads, the partitions, every other file of the root filesystem.
"""

import json
import os
import re
import shutil
import struct
import tempfile
from pathlib import Path

import engines
import hosttools
import image as images
import layout as layouts
import places
import pytest
from steps import Failure, run

VARIABLE = "INFERD_TEST_IMAGE"
BLOCK = 4096
SQUASHFS = b"hsqs"


def image():
    """The image that is tested instead; None where there is none."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    if not Path(named).is_file():
        raise Failure(f"{VARIABLE} names {named}, which is no file")
    return Path(named).absolute()


def skip_for_another_builder(why):
    """Ends a test that is about what only scripts/image makes, where another builder's image is tested."""
    if finished := image():
        pytest.skip(f"{finished.name} is another builder's ({VARIABLE}): {why}")


def adapted(finished, recipe, output, minimal=False, parts=None):
    """Writes the finished image to `output`, changed where `recipe` wants something else than the image as it ships; returns the facts about it."""
    facts = facts_of(finished)
    if facts["board"] != recipe.board.name:
        pytest.skip(f"{finished.name} ({VARIABLE}) is of {facts['board']}, and this test starts an image of {recipe.board.name}")
    tools = hosttools.Tools(hosttools.IMAGE)
    table = {part.name: part for part in layouts.read_gpt(finished)[1]}
    run(["cp", "--sparse=always", finished, output])
    output.chmod(0o644)
    with tempfile.TemporaryDirectory(prefix="inferd-given-") as folder:
        work = Path(folder)
        rootfs, tree = work / "rootfs", work / "tree"
        rootfs.write_bytes(squashfs(finished, table["rootfs-a"]))
        refuse_other_owners(rootfs, tools)
        run([tools.path("unsquashfs"), "-quiet", "-no-progress", "-d", tree, rootfs])
        if asks_for_something(recipe, minimal):
            rootfs = changed(tree, recipe, minimal, tools, work / "changed")
            write(output, table["rootfs-a"], rootfs)
        facts |= {
            "dev": recipe.dev,
            "sha256": images.digest(output),
            "rootfs_bytes": rootfs.stat().st_size,
            "minimal": minimal,
            "models": sorted(path.name for path in (tree / images.MODELS_IN_IMAGE).iterdir()),
            "has_onnxruntime": (tree / engines.FOLDER / "libonnxruntime.so").exists(),
        }
        if parts:
            with open(finished, "rb") as medium:
                medium.seek(table["boot-a"].offset)
                (work / "boot-a").write_bytes(medium.read(table["boot-a"].size))
            images.put_parts(rootfs, {"boot-a": work / "boot-a"}, recipe.board, parts)
    output.with_name(output.name + ".json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


def facts_of(finished):
    """What its builder says of it."""
    page = finished.with_name(finished.name + ".json")
    if not page.is_file():
        raise Failure(f"beside {finished} there is no {page.name}, which every builder of ours leaves there")
    return json.loads(page.read_text())


def asks_for_something(recipe, minimal):
    """Whether a test wants anything but the image as it ships."""
    asked = (recipe.dev, recipe.root, recipe.api_key, recipe.system, recipe.inferd, minimal)
    return any(asked) or recipe.models != [places.DEFAULT_MODEL]


def changed(tree, recipe, minimal, tools, file):
    """The root filesystem with what the recipe says."""
    if not (tree / "etc/inittab").is_file():
        raise Failure("its init has no /etc/inittab, where a root shell for tests is put")
    shutil.rmtree(tree / images.MODELS_IN_IMAGE)
    images.tell(recipe, tree)
    images.readable(tree / images.MODELS_IN_IMAGE)
    if recipe.inferd:
        shutil.copy(recipe.inferd, tree / "usr/bin/inferd")
    if minimal:
        shutil.rmtree(tree / engines.FOLDER, ignore_errors=True)
    return images.squashed(tree, recipe, tools, file)


def squashfs(medium, part):
    """The file system at the beginning of a partition, without what lies behind it."""
    with open(medium, "rb") as file:
        file.seek(part.offset)
        superblock = file.read(96)
        if superblock[:4] != SQUASHFS:
            raise Failure(f"{part.name} of {medium} is no squashfs")
        (used,) = struct.unpack_from("<Q", superblock, 40)
        file.seek(part.offset)
        return file.read(-(-used // BLOCK) * BLOCK)


def refuse_other_owners(file, tools):
    """Who unpacks it and is not root cannot give a file back to anybody but root: so it must have been root's."""
    listing = run([tools.path("unsquashfs"), "-lln", file])
    owners = re.findall(r"(?m)^[a-z-][rwxsStT-]{9} +(\d+/\d+) .* (squashfs-root\S*)", listing)
    if not owners:
        raise Failure(f"{file} lists nothing")
    if others := [name.removeprefix("squashfs-root") for owner, name in owners if owner != "0/0"]:
        raise Failure(f"not all of its root filesystem is root's: {', '.join(others[:10])}")


def write(medium, part, content):
    """Puts a file at the beginning of a partition, and zeros behind it."""
    room = part.size - content.stat().st_size
    if room < 0:
        raise Failure(f"{content.stat().st_size} bytes do not fit into {part.name}")
    with open(medium, "r+b") as file:
        file.seek(part.offset)
        file.write(content.read_bytes())
        file.write(bytes(room))
