"""An image of another builder in place of those of scripts/image; here that other builder is scripts/image itself."""

import board as boards
import hosttools
import layout as layouts
import pytest
from appliance import given, images
from steps import Failure, run


@pytest.fixture(autouse=True)
def nobody_elses():
    """These tests name their own."""
    given.skip_for_another_builder("these tests are about how one is taken")


@pytest.fixture
def finished(production_image, monkeypatch):
    """The image as it ships, as if another builder had made it."""
    monkeypatch.setenv(given.VARIABLE, str(production_image[0]))
    return production_image[0]


def rootfs(image):
    """The root filesystem of slot a."""
    part = next(part for part in layouts.read_gpt(image)[1] if part.name == "rootfs-a")
    return given.squashfs(image, part)


def parts_but(image, name):
    """The bytes of all partitions but one."""
    found = {}
    with open(image, "rb") as medium:
        for part in layouts.read_gpt(image)[1]:
            medium.seek(part.offset)
            found[part.name] = medium.read(part.size)
    assert found.pop(name)
    return found


def test_what_a_test_wants_otherwise_is_put_into_it_as_into_an_image_of_our_own(finished, dev_image, dev_keys, make_image):
    changed, facts = make_image("changed.img", dev=True, root=dev_keys.root, api_key=dev_keys.api_key)
    assert rootfs(changed) == rootfs(dev_image) != rootfs(finished)
    assert parts_but(changed, "rootfs-a") == parts_but(finished, "rootfs-a")
    assert facts["dev"] and facts["models"] == ["imu-motion"]


def test_where_nothing_is_wanted_otherwise_it_stays_what_it_is(finished, board, tmp_path):
    images.assemble(board, tmp_path / "same.img", parts=tmp_path / "parts")
    assert (tmp_path / "same.img").read_bytes() == finished.read_bytes()
    assert (tmp_path / "parts/rootfs").read_bytes() == rootfs(finished)
    assert finished.read_bytes().find((tmp_path / "parts/boot").read_bytes()) > 0


def test_a_test_of_another_board_is_skipped_and_names_both(finished, tmp_path):
    with pytest.raises(pytest.skip.Exception, match=rf"{finished.name} .* is of qemu-aarch64, and .* of qemu-x86_64"):
        images.assemble(boards.load("qemu-x86_64"), tmp_path / "x.img")


def test_what_is_not_roots_or_is_not_there_is_refused(monkeypatch, tmp_path):
    tools = hosttools.Tools(hosttools.IMAGE)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/hosts").touch()
    for owner, file in ((0, tmp_path / "roots"), (7, tmp_path / "others")):
        run([tools.path("mksquashfs"), tmp_path / "tree", file, "-quiet", "-no-progress", "-force-uid", owner, "-force-gid", owner])
    given.refuse_other_owners(tmp_path / "roots", tools)
    with pytest.raises(Failure, match=r"not all of its root filesystem is root's: .*/hosts"):
        given.refuse_other_owners(tmp_path / "others", tools)
    monkeypatch.setenv(given.VARIABLE, str(tmp_path / "gone.img"))
    with pytest.raises(Failure, match=r"gone\.img, which is no file"):
        given.image()
