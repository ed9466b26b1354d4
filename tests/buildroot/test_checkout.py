"""Buildroot itself, where INFERD_BUILDROOT names checkouts of it (with `:` between them). Nothing is downloaded or compiled but its
own Kconfig."""

import json
import os
import re
import subprocess
from pathlib import Path

import board as boards
import pytest

from buildroot import symbols, tree

CHECKOUTS = [Path(path) for path in os.environ.get("INFERD_BUILDROOT", "").split(":") if path]
NAMES = [path.name for path in tree.DEFCONFIGS]

pytestmark = pytest.mark.skipif(not CHECKOUTS, reason="INFERD_BUILDROOT names no checkout of Buildroot")


def called(command, checkout):
    """Runs something of Buildroot's; it must succeed. Returns what it printed."""
    # Buildroot keeps $O and $BR2_EXTERNAL from the environment, and its tools want the system's own Python.
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "HOME": os.environ["HOME"], "LC_ALL": "C.UTF-8"}
    made = subprocess.run(list(map(str, command)), cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"{made.stdout[-3000:]}{made.stderr[-3000:]}"
    return made.stdout


@pytest.fixture(scope="module", params=CHECKOUTS or [None], ids=str)
def checkout(request):
    """Each checkout."""
    return request.param


@pytest.fixture(scope="module", params=NAMES)
def configured(request, checkout, tmp_path_factory):
    """A build folder with one of our defconfigs, and that defconfig."""
    folder = tmp_path_factory.mktemp("output")
    called(["make", "-s", f"O={folder}", f"BR2_EXTERNAL={tree.TREE}", request.param], checkout)
    return folder, tree.TREE / "configs" / request.param


def test_no_symbol_of_a_defconfig_is_dropped(checkout, configured):
    folder, defconfig = configured
    called(["/usr/bin/python3", "support/scripts/check-dotconfig.py", folder / ".config", defconfig], checkout)


def test_a_defconfig_is_minimal_and_in_buildroots_order(checkout, configured):
    folder, defconfig = configured
    called(["make", "-s", f"O={folder}", "savedefconfig", f"BR2_DEFCONFIG={folder}/saved"], checkout)
    assert (folder / "saved").read_text() == defconfig.read_text()


@pytest.fixture(scope="module")
def info(checkout, configured):
    """What Buildroot says of every package that is built."""
    return json.loads(called(["make", "-s", f"O={configured[0]}", "show-info"], checkout))


def test_buildroot_knows_our_packages_with_licence_and_hashes(configured, info):
    _, defconfig = configured
    config = tree.defconfig(defconfig)
    chosen = {name for name in tree.PACKAGES if f"BR2_PACKAGE_{tree.prefix(name)}" in config}
    assert chosen <= set(info) and {"inferd", "linux", "busybox"} <= set(info)
    for name in chosen:
        assert info[name]["licenses"] and info[name]["license_files"], name
        local = name in ("inferd", "inferd-engine-host")
        assert local or info[name]["hashes"], f"{name} has no .hash file"
    board = boards.load(config["BR2_ROOTFS_POST_SCRIPT_ARGS"])
    assert board.kernel.version in info["linux"]["version"] or board.kernel.version in info["linux"]["downloads"][0]["source"]
    if "hailo" in board.engines:
        assert {info[name]["version"] for name in ("hailort", "hailort-driver", "hailo-firmware")} == {"4.23.0"}
        assert info["hailo-firmware"]["redistributable"] is False


def test_a_bill_of_materials_can_be_made_of_it(checkout, info, tmp_path):
    program = checkout / "utils/generate-cyclonedx"
    # It downloads CycloneDX's list of licences, once; this one is shorter.
    version = re.search(r'(?m)^CYCLONEDX_VERSION = "([\d.]+)"', program.read_text())[1]
    (tmp_path / "cyclonedx").mkdir()
    (tmp_path / f"cyclonedx/spdx-{version}.schema.json").write_text('{"enum": ["Apache-2.0", "GPL-2.0", "MIT"]}')
    made = subprocess.run(
        ["/usr/bin/python3", program, "--project-name", "inferd"],
        input=json.dumps(info), capture_output=True, text=True, check=True, cwd=checkout, env={**os.environ, "BR2_DL_DIR": str(tmp_path)},
    )
    found = json.loads(made.stdout)
    assert found["bomFormat"] == "CycloneDX" and {"inferd", "linux"} <= {part["name"] for part in found["components"]}


def test_buildroots_own_style_check_has_nothing_to_say(checkout):
    files = [path for path in tree.TREE.rglob("*") if path.is_file() and path.name != "README.md"]
    called(["/usr/bin/python3", "utils/check-package", "-b", *files], checkout)


def test_the_list_of_symbols_is_what_this_buildroot_has(checkout):
    listed = json.loads(symbols.FILE.read_text())
    version = symbols.version(checkout)
    assert version in listed, "write it anew: symbols.py"
    assert listed[version] == symbols.of(checkout)
