"""Programs of Debian and what a radio takes, as a root filesystem gets them. Needs no image and no QEMU."""

import dataclasses
import fnmatch
import json

import board as boards
import debian
import image
import programs
import pytest
import sbom
from steps import Failure

# What a Raspberry Pi's kernel calls the radio on SDIO (43455 of Broadcom).
CHIP = "sdio:c00v02D0dA9BF"
WITH_CHIP = ("rpi4", "rpi5-hailo8")


@pytest.fixture(scope="module", params=[name for name in boards.assembled() if boards.load(name).radio.modules])
def installed(request, tmp_path_factory):
    """Each board with a radio: its page, its root filesystem, the packages that something was taken of."""
    board, root = boards.load(request.param), tmp_path_factory.mktemp("root")
    (root / "usr/bin").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    carried = programs.prepare(board)
    packages = carried.install(root, image.packages_of(board).path)
    return board, root, packages, carried


def test_drivers_of_a_radio_are_found_by_name_and_by_chip_with_all_that_they_need(installed):
    board, root, _, _ = installed
    (folder,) = (root / "usr/lib/modules").iterdir()
    files = {path.name for path in folder.glob("*.ko")}
    needs = dict(line.split(":", 1) for line in (folder / "modules.dep").read_text().splitlines())
    assert set(needs) == files and all(set(line.split()) <= files for line in needs.values())
    assert {f"{name.replace('-', '_')}.ko" for name in board.radio.modules} <= files and "cfg80211.ko" in files
    aliases = [line.split()[1:] for line in (folder / "modules.alias").read_text().splitlines()]
    assert {f"{name}.ko" for _, name in aliases} <= files
    if board.name in WITH_CHIP:
        assert {name for pattern, name in aliases if fnmatch.fnmatchcase(CHIP, pattern)} == {"brcmfmac"}


def test_a_radio_has_its_firmware_and_the_rules_of_countries_and_every_licence_goes_with_it(installed):
    board, root, packages, carried = installed
    assert (root / "usr/lib/firmware/regulatory.db").read_bytes()[:4] == b"RGDB" and (root / "usr/lib/firmware/regulatory.db.p7s").is_file()
    for name in board.radio.firmware:
        assert (root / "usr/lib/firmware" / name).is_file() or carried.missing(), name
    taken = set(packages) - set(carried.libraries.versions)
    assert {path.parent.name for path in root.glob("usr/share/licenses/*/copyright")} == taken
    assert taken > {"wireless-regdb", "wpasupplicant"} and "adduser" not in taken, "what something was taken of, and no more"
    components = json.loads(sbom.make({"minimal": True, "build": "x", "sha256": "0" * 64, "packages": packages}, board))["components"]
    assert {entry["name"] for entry in components} >= taken


def test_an_archive_without_the_firmware_of_a_radio_gives_an_image_that_says_so(installed):
    board, root, _, carried = installed
    lacking = dataclasses.replace(carried, firmware=debian.Tree(None, {}))
    assert bool(lacking.missing()) == bool(board.radio.firmware)
    assert all("there is no Wi-Fi" in line for line in lacking.missing())


def test_a_program_that_its_package_does_not_have_is_refused_by_name(installed):
    board, _, _, carried = installed
    page = dataclasses.replace(board, debian=dataclasses.replace(board.debian, programs=("chrony/chimes",)))
    with pytest.raises(Failure, match="chrony has no program chimes"):
        dataclasses.replace(carried, board=page).needed()
