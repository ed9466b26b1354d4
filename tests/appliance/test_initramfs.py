"""Which partition the initramfs takes for the root, by its own words: its script on a /sys and a /proc of ours."""

import re
import shutil
import subprocess

import places
import pytest

INIT = places.BOARDS / "common/initramfs/init"


@pytest.fixture
def look(tmp_path):
    """Asks for rootfs-a on a machine with these devices, each a partition of that name; those behind a number come up when it was looked for
    so often. What is taken, what is said, and how often it looked."""

    def run(devices, mode=None, late=None):
        proc, sys, said = tmp_path / "proc", tmp_path / "sys/class/block", tmp_path / "said"
        for folder in (proc, sys, tmp_path / "late"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        said.write_text("")
        for node, folder in [*((node, sys) for node in devices), *((node, tmp_path / "late") for node in late or ())]:
            (folder / node).mkdir()
            (folder / node / "uevent").write_text(f"DEVNAME={node}\nPARTN=5\nPARTNAME=rootfs-a\n")
        # What is not meant is there, too.
        (sys / "loop0").mkdir()
        (sys / "loop0/uevent").write_text("DEVNAME=loop0\n")
        if mode is not None:
            told = proc / "device-tree/chosen/bootloader"
            told.mkdir(parents=True)
            (told / "boot-mode").write_bytes(mode.to_bytes(4, "big"))
        text = INIT.read_text()
        words = re.search(r"^say\(\) .*$", text, re.MULTILINE)[0]
        choice = text[text.index("started=''\n") : text.index("for candidate in")]
        script = f"{words}\n{choice}".replace("/dev/kmsg", f"{said}").replace("/sys/", f"{tmp_path}/sys/").replace("/proc/", f"{proc}/")
        script = script.replace(f">{said}", f">>{said}")
        # Nobody waits: time goes by as something comes up.
        sleep = f'sleep() {{ echo >>{tmp_path}/looked; mv {tmp_path}/late/* {sys}/ 2>/dev/null; :; }}\n'
        (tmp_path / "looked").write_text("")
        done = subprocess.run(["sh", "-euc", f"{sleep}{script}\npartition rootfs-a || echo none"], capture_output=True, text=True, check=True)
        assert not done.stderr, done.stderr
        return done.stdout.strip(), said.read_text().strip(), len((tmp_path / "looked").read_text())

    return run


def test_the_only_root_is_taken_without_a_word(look):
    assert look(["mmcblk0p5"]) == ("/dev/mmcblk0p5", "", 0)
    assert look([], late=["sda5"]) == ("/dev/sda5", "", 1)
    assert look([])[0] == "none"


def test_of_two_media_it_is_said_which_one_is_used_and_that_the_other_is_to_be_taken_out(look):
    taken, said, _ = look(["vda5", "vdb5"])
    assert taken == "/dev/vda5" and "rootfs-a of vda5 is used, not vdb5; take the other medium out" in said


@pytest.mark.parametrize(("mode", "taken"), [(1, "mmcblk0p5"), (4, "sda5"), (6, "nvme0n1p5")])
def test_of_two_media_the_one_that_a_raspberry_pis_firmware_started_is_used(look, mode, taken):
    all_three = ["mmcblk0p5", "nvme0n1p5", "sda5"]
    found, said, looked = look(all_three, mode)
    others = " ".join(node for node in all_three if node != taken)
    assert (found, looked) == (f"/dev/{taken}", 0) and f"rootfs-a of {taken} is used, not {others};" in said
    # It comes up when the others are there already.
    found, said, looked = look([node for node in all_three if node != taken], mode, late=[taken])
    assert (found, looked) == (f"/dev/{taken}", 1) and f"not {others};" in said


def test_where_what_was_started_has_no_root_another_medium_is_used_in_the_end(look):
    taken, said, looked = look(["mmcblk0p5", "sda5"], mode=6)
    assert (taken, looked) == ("/dev/mmcblk0p5", 99) and "rootfs-a of mmcblk0p5 is used, not sda5;" in said
    # Started over the network, or by something that nobody knew yet.
    assert look(["mmcblk0p5"], mode=2) == ("/dev/mmcblk0p5", "", 0)
