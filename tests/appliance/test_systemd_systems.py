"""A second system where systemd is process 1, as it is in every image of OpenEmbedded: brought over the network, tried, kept or not.

On the medium of a Raspberry Pi, started by a simulator of its firmware on QEMU's `virt`. The root filesystem is that of `systemd.py`, the same in every slot but
where a bad one is wanted.
"""

import dataclasses
import shutil

import board as boards
import hosttools
import image
import layout as layouts
import places
import pytest
import rpi
from appliance import images, pi_firmware, systemd, systems
from appliance.test_pi import NUMBERS, VIRT, get

PATIENCE_S = 600
UNITS = {
    "shell": "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sh -i\nStandardInput=tty\nStandardOutput=tty\nTTYPath=/dev/hvc0\nRestart=always\nKillSignal=SIGHUP\nIgnoreSIGPIPE=no\n",
    # The one function by which `inferd system` knows a kernel that passes the argument of a restart on: Debian's has none.
    "passes-on": """[Unit]
Before=inferd-door.service inferd-system.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo "0000000000000000 t rpi_firmware_notify_reboot" >/run/kallsyms && mount -o bind /run/kallsyms /proc/kallsyms'
""",
}
# A daemon that does not live long; the keeper is the system's own.
CRASHES = """[Service]
ExecStart=
ExecStart=/usr/bin/inferd keeper --config /run/inferd/inferd.toml $KEEPS --user inferd --stderr --cgroup /sys/fs/cgroup/system.slice/%n/daemon \
    --program /usr/libexec/crashes
"""


@pytest.fixture(scope="module")
def pi(board):
    """A Raspberry Pi 4, with a root shell where QEMU has one."""
    return dataclasses.replace(boards.load("rpi4"), dev_shell=board.dev_shell)


@pytest.fixture(scope="module")
def tree(board, pi, daemon_for_board, office, tmp_path_factory):
    """The root filesystem, of a Raspberry Pi."""
    if board.backend != "uboot-env":
        pytest.skip(f"no second system is tried on {board.name}")
    folder = tmp_path_factory.mktemp("tree")
    settings = [("security", "api_key", f'"{systems.API_KEY}"')]
    systemd.root_filesystem(folder / "root", daemon_for_board, pi, office.root, settings, UNITS)
    (folder / "root/usr/lib/systemd/system.conf.d/quiet.conf").write_text("[Manager]\nShowStatus=no\n")
    return folder / "root"


def slots_of(stage, board, folder):
    """A root filesystem as it lies in the slots of a board's image and of an update: they differ in when they were made, which nobody reads."""
    image.furnish(stage, board, [places.DEFAULT_MODEL], "test")
    old = systemd.squashed(stage, folder / "rootfs-1", hosttools.Tools(hosttools.IMAGE))
    content = old.read_bytes()
    (folder / "rootfs-2").write_bytes(content[:8] + bytes(4) + content[12:])
    return old, folder / "rootfs-2"


def verdicts(machine):
    """What the daemon tells of systems."""
    page = machine.request("/api/v1/slots").json()["system"]
    return page["board"], [(said["about"]["version"], said["outcome"], said["code"]) for said in page["state"]["verdicts"]]


def test_a_pis_system_is_tried_by_a_word_of_systemd_and_kept_and_one_whose_daemon_crashes_gives_the_board_back(board, pi, tree, office, tmp_path):
    images.assemble(pi, tmp_path / "pi.img", minimal=True, parts=tmp_path / "parts")
    old, new = slots_of(tree, pi, tmp_path)
    systemd.put_on(tmp_path / "pi.img", old)
    (tree / "usr/lib/systemd/system/inferd.service.d").mkdir()
    (tree / "usr/lib/systemd/system/inferd.service.d/crashes.conf").write_text(CRASHES)
    systemd.put(tree / "usr/libexec/crashes", b"#!/bin/sh\nkill -SEGV $$\n")
    crashing = systemd.squashed(tree, tmp_path / "rootfs-3", hosttools.Tools(hosttools.IMAGE))
    shutil.rmtree(tree / "usr/lib/systemd/system/inferd.service.d")
    boots = {name: tmp_path / "parts" / name for name in ("boot-a", "boot-b")}
    good = office.system(tmp_path / "good.imb", pi.name, 2, {"rootfs": new, **boots})
    bad = office.system(tmp_path / "bad.imb", pi.name, 3, {"rootfs": crashing, **boots})
    firmware = pi_firmware.Firmware(tmp_path / "pi.img", pi, bootable=["config.txt"])
    # Without the watchdog, which counts also while this machine is too busy to emulate.
    wanted = [name for name in board.modules if name not in VIRT and name != board.watchdog.driver]
    drivers = pi_firmware.other_drivers(image.packages_of(pi).path, wanted)
    autoboot = {chosen: rpi.autoboot(layouts.load(pi), chosen) for chosen in "ab"}

    def chosen():
        return get(firmware.medium, firmware.sector_of_autoboot() * layouts.SECTOR, 512)

    with pi_firmware.Started(board, firmware, drivers, dev=True) as machine:
        assert machine.sh("cat /proc/1/comm /run/inferd/slot").split() == ["systemd", "a"]
        with systems.Operator(machine, office.program, good) as pushing:
            pushing({})
            machine.restart(PATIENCE_S)
            assert (machine.start.partition, machine.start.trial) == (NUMBERS["b"], True)
            status, words = pushing.end()
            assert status == 0, words
        assert chosen() == autoboot["b"]
        view, said = verdicts(machine)
        assert view["runs"] == view["chosen"] == "b" and said == [(2, "committed", "ok")]
        with systems.Operator(machine, office.program, bad) as pushing:
            pushing({})
            machine.restart(PATIENCE_S)
            assert (machine.start.partition, machine.start.trial) == (NUMBERS["a"], True)
            machine.restart(PATIENCE_S)
            assert (machine.start.partition, machine.start.trial) == (NUMBERS["b"], False)
            machine.wait_ready(PATIENCE_S)
            status, words = pushing.end()
            assert status == 1 and "safe mode" in words, words
        view, said = verdicts(machine)
        assert view["runs"] == "b" and said[-1] == (3, "returned", "safe-mode")
        assert chosen() == autoboot["b"]
