"""The keeper and the hardware watchdog on the booted appliance: what hangs is reset, what crashes is started again, and afterwards the
appliance says what happened."""

import json
import shutil
import time
from pathlib import Path

import pytest
from appliance.device import DAEMON

COMMAND = f"tr '\\0' '\\n' </proc/$({DAEMON})/cmdline"
KEEPER = "cat /run/inferd/keeper/pid"
# A PCI device of the class of displays, which the keeper takes for an accelerator. Nothing in the image uses it; the kernel's own driver binds it.
SPARE = "virtio-gpu-pci"
DEVICES = "/sys/bus/pci/devices"
# Emulation on two busy cores: a boot takes 6 to 30 seconds, and what is waited for here takes one.
BACK_S = 240


def state(machine):
    """What the keeper knows of this boot."""
    return json.loads(machine.read("/run/inferd/keeper/state.json"))


def history(machine, kind=None):
    """The keeper's entries, all or those of a kind."""
    lines = machine.read("/data/keeper/history.jsonl").splitlines()
    entries = [json.loads(line)["entry"] for line in lines]
    return [entry for entry in entries if kind in (None, entry["kind"])]


def eventually(condition, timeout=60):
    """Asks until the condition holds; what it gave."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return found


def comes_back(machine, boot):
    """The board has been restarted after `boot` and serves again."""
    machine.forget_shell()
    machine.wait_for_console(rf"keeper: boot {boot + 1}: ", BACK_S)
    machine.wait_ready(BACK_S)
    found = state(machine)
    assert found["boot"] == boot + 1
    return found


@pytest.fixture(scope="module")
def unit(boot, dev_image, tmp_path_factory):
    """An appliance that a reset starts again, as on a board."""
    medium = shutil.copyfile(dev_image, tmp_path_factory.mktemp("watchdog") / "medium.img")
    with boot(medium, dev=True, keep_writes=True, restarts=True, devices=[SPARE]) as machine:
        yield machine


@pytest.fixture
def ask(unit, tmp_path):
    """Asks the keeper as root: `ask(question)` is its answer."""
    program = unit.bring(Path(__file__).with_name("ask.rs"), tmp_path)

    def asked(**question):
        return json.loads(unit.sh(f"{program} '{json.dumps(question)}'"))

    return asked


def test_the_watchdog_is_armed_from_the_initramfs_on_and_fed_by_the_keeper_alone(unit):
    found = state(unit)["watchdog"]
    assert found["identity"] == "i6300ESB timer" and found["accepted_s"] == 15
    assert found["armed_before"] and found["remarks"] == [], found
    assert unit.sh("cat /sys/class/watchdog/watchdog0/nowayout /sys/class/watchdog/watchdog0/state") == "1\nactive"
    assert unit.sh("stat -c '%u %a' /dev/watchdog0") == "0 600"
    holders = unit.sh("for p in /proc/[0-9]*; do ls -l $p/fd 2>/dev/null | grep -q watchdog0 && echo ${p#/proc/}; done; true")
    assert holders == unit.sh(KEEPER)


def test_the_daemon_and_its_hosts_can_never_have_a_privilege_again_and_the_keeper_is_spared_when_memory_is_short(unit):
    for pid in [unit.sh(DAEMON), *unit.sh("cat /sys/fs/cgroup/inferd/host-*/cgroup.procs").split()]:
        fields = dict(line.split(":\t", 1) for line in unit.sh(f"cat /proc/{pid}/status").splitlines() if ":\t" in line)
        assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert fields["NoNewPrivs"] == "1" and fields["Groups"].strip() == ""
        assert unit.sh(f"cat /proc/{pid}/oom_score_adj") == "0"
    assert unit.sh(f"cat /proc/$({KEEPER})/oom_score_adj") == "-1000"


def test_a_daemon_that_is_killed_is_started_again_and_its_last_words_are_kept(unit):
    before, count = unit.sh(DAEMON), len(history(unit, "daemon-end"))
    unit.sh(f"kill -9 {before}")
    eventually(lambda: unit.root(DAEMON)[1].strip() not in ("", before))
    unit.wait_ready(BACK_S)
    entries = eventually(lambda: history(unit, "daemon-end")[count:])
    assert len(entries) == 1 and entries[0]["sentence"].startswith("the daemon was ended by signal 9 (SIGKILL)")
    assert any("listening" in line for line in entries[0]["words"]), entries[0]["words"]


def test_a_keeper_that_is_killed_takes_the_daemon_along_and_the_next_one_starts_another(unit):
    keeper, daemon = unit.sh(KEEPER), unit.sh(DAEMON)
    unit.sh(f"kill -9 {keeper}")
    eventually(lambda: unit.sh(KEEPER) != keeper and unit.root(DAEMON)[1].strip() not in ("", daemon))
    unit.wait_ready(BACK_S)
    assert unit.root(f"kill -0 {daemon}")[0] != 0, "two daemons"
    eventually(lambda: history(unit)[-1]["kind"] == "keeper")


def test_a_daemon_that_stands_still_is_reset_by_the_watchdog_and_its_last_words_are_kept(unit):
    before = state(unit)
    unit.sh(f"kill -STOP $({DAEMON})")
    found = comes_back(unit, before["boot"])
    assert found["reset"] == {"reason": "watchdog", "sentence": "the daemon proved no progress for 10 s"}
    entry = history(unit, "let-go")[-1]
    assert entry["boot"] == before["boot"] and entry["words"], entry
    assert found["watchdog"]["boot_status"] & 0x20, "it was not the hardware that reset the board"


def test_a_keeper_that_stands_still_is_reset_by_the_watchdog(unit):
    before = state(unit)
    # Debian's kernels keep no console; what another builder's keeps are the last words of a reset that leaves no others.
    keeps_console = "ramoops" in unit.sh("cat /proc/consoles")
    unit.sh(f"echo '<4>the last that was said' >/dev/kmsg; kill -STOP $({KEEPER})")
    found = comes_back(unit, before["boot"])
    assert found["reset"]["reason"] == "watchdog" and "nobody left word" in found["reset"]["sentence"]
    entry = eventually(lambda: (last := history(unit, "boot")[-1])["boot"] == found["boot"] and last)
    said = [line for line in entry.get("words", ()) if line.endswith("the last that was said")]
    assert (entry["detail"].get("words_of"), len(said)) == (("console", 1) if keeps_console else (None, 0)), entry
    if keeps_console:
        unit.sh("grep -q 'the last that was said' /data/keeper/console-*.txt && grep -q 'the last that was said' /sys/fs/pstore/console-ramoops-*")


def test_after_a_kernel_panic_the_board_restarts_and_has_kept_what_the_kernel_said(unit):
    # The resets before this one were bad boots; too many in a row would be safe mode.
    eventually(lambda: state(unit)["unhealthy_boots"] == 0, BACK_S)
    before = state(unit)
    unit.sh("(sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    found = comes_back(unit, before["boot"])
    assert found["reset"] == {"reason": "panic", "sentence": "the kernel panicked: sysrq triggered crash"}
    entry = eventually(lambda: (last := history(unit, "boot")[-1])["boot"] == found["boot"] and last)
    assert any("Kernel panic" in line for line in entry["words"]), entry["words"]
    assert entry["detail"]["words_of"] == "panic"
    # Looked for there, not here: see history.
    unit.sh("grep -q 'sysrq triggered crash' /data/keeper/kernel-*")
    # What a kernel with pstore's console said in its last run is no dump, and stays: see reason.rs.
    assert unit.sh("ls /sys/fs/pstore | sed /^console-/d") == "", "the same panic would be seen again"


def test_a_restart_that_was_asked_for_is_told_from_all_others(unit):
    before = state(unit)
    unit.sh("reboot")
    assert comes_back(unit, before["boot"])["reset"]["reason"] == "request"
    assert "words" not in history(unit, "boot")[-1], "nothing went wrong"


def test_a_pci_device_is_bound_anew_and_removed_and_found_again_by_the_keeper(unit, ask):
    def of_class(base):
        return unit.sh(f"cd {DEVICES} && grep -l ^{base} */class").removesuffix("/class")

    def number(path):
        """Of a directory of sysfs: another one of the same name has another."""
        return unit.sh(f"stat -c %i {path}")

    device, medium = of_class("0x0380"), of_class("0x0100")
    folder = f"{DEVICES}/{device}"
    driver = unit.sh(f"basename $(readlink {folder}/driver)")
    done = {"answer": "done"}
    # What the driver made of it, and the device itself.
    bound, there = number(f"{folder}/virtio*"), number(folder)
    assert ask(ask="rebind", device=device, driver=driver) == done
    assert number(f"{folder}/virtio*") != bound and number(folder) == there, "it was not taken away from its driver, or not given back"
    unit.sh(f"echo {device} >{folder}/driver/unbind; ! ls {folder}/driver")
    assert ask(ask="rebind", device=device, driver=driver) == done
    bound = number(f"{folder}/virtio*")
    assert ask(ask="rescan", device=device) == done
    assert number(folder) != there and number(f"{folder}/virtio*") != bound, "it was not removed, or not found again"
    # The medium it runs from, and a device that is gone.
    before = number(f"{DEVICES}/{medium}/driver/")
    for question in ({"ask": "rebind", "driver": driver}, {"ask": "rescan"}):
        assert "is no accelerator" in ask(device=medium, **question)["why"]
    assert number(f"{DEVICES}/{medium}/driver/") == before
    unit.sh(f"echo 1 >{folder}/remove")
    assert "there is no PCI device" in ask(ask="rescan", device=device)["why"]
    unit.sh("echo 1 >/sys/bus/pci/rescan")


def test_a_timeout_that_the_driver_refuses_is_told_and_the_watchdog_is_fed_by_what_it_holds(unit):
    before = unit.sh("readlink /run/inferd/inferd.toml")

    def settled(settings, asked_s):
        """What a keeper that is started with these settings knows of the watchdog."""
        unit.sh(f"ln -sfn {settings} /run/inferd/inferd.toml && kill -9 $({KEEPER})")
        eventually(lambda: state(unit)["watchdog"]["asked_s"] == asked_s)
        unit.wait_ready(BACK_S)
        return state(unit)["watchdog"]

    def uptime():
        return float(unit.sh("cat /proc/uptime").split()[0])

    assert unit.sh("cat /sys/class/watchdog/watchdog0/max_timeout") == "2046"
    unit.sh(f"sed 's/^#*timeout_s = .*/timeout_s = 3000/' {before} >/run/odd.toml")
    found = settled("/run/odd.toml", 3000)
    assert found["accepted_s"] == 15 and found["armed_before"], found
    assert found["remarks"] == ["a timeout of 3000 s was refused: Invalid argument (os error 22)"]
    unit.wait_for_console(r"keeper: a timeout of 3000 s was refused", 30)
    keeper, resets, end = unit.sh(KEEPER), unit.watchdog_resets(), uptime() + 2 * 15
    eventually(lambda: uptime() > end)
    assert (unit.sh(KEEPER), unit.watchdog_resets()) == (keeper, resets), "it was not fed"
    assert settled(before, 15)["remarks"] == []


def test_a_daemon_that_keeps_ending_is_started_in_safe_mode(boot, dev_image):
    with boot(dev_image, dev=True) as machine:
        for _ in range(3):
            pid = eventually(lambda: machine.root(DAEMON)[1].strip())
            machine.sh(f"kill -9 {pid}")
            eventually(lambda pid=pid: machine.root(DAEMON)[1].strip() not in ("", pid))
        machine.wait_for_console("keeper: safe mode: the daemon ended 3 times within 10 minutes", BACK_S)
        # At first the new process is still a copy of the keeper.
        command = eventually(lambda: "--safe-mode" in (words := machine.root(COMMAND)[1].splitlines()) and words)
        assert command[command.index("--safe-mode") + 1] == state(machine)["safe_mode"]
        told = ["boot", "daemon-end", "daemon-end", "daemon-end", "safe-mode"]
        eventually(lambda: [entry["kind"] for entry in history(machine)] == told)
