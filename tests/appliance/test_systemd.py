"""The keeper and the daemon where systemd is process 1: the unit of rootfs-overlay, run by a real systemd in QEMU.

There is no systemd image in this folder's layout; the root filesystem here is an initramfs of Debian's systemd, the static
daemon, its default model and rootfs-overlay's unit. A script in it asks systemd, the daemon and the journal, and prints what they say.
"""

import json
import re
import stat

import cpio
import debian
import places
import pytest
import qemu

SUITE = "trixie"
PACKAGES = ("systemd", "systemd-sysv", "busybox-static", "libnss-systemd")
# What a boot needs nothing of, by path below the tree.
LEFT_OUT = re.compile(
    r"usr/(share/(doc|man|locale|i18n|zsh|bash-completion|lintian|pam|info)|lib/udev/hwdb\.d|include)(/|$)|"
    r"usr/lib/[^/]+/(perl|gconv)(/|$)"
)
ASK = """#!/usr/bin/busybox sh
# Prints between two marks what each command says.
say() { echo "<<$1"; shift; "$@" 2>&1; echo; echo ">>"; }
status() { busybox wget -q -O - http://127.0.0.1:9000/status; }
up() { busybox wget -q -O /dev/null http://127.0.0.1:9000/healthz; }
wait_for() { until "$@"; do busybox sleep 0.5; done; }
exec >/dev/ttyAMA0 2>&1
wait_for up
say unit systemctl show inferd -p ActiveState,SubState,StatusText,WatchdogUSec,NRestarts,Type
say status status
say user busybox ps -o user,args
# A change that is refused: the audit has an entry about a request.
busybox wget -q -O /dev/null --post-data={} http://127.0.0.1:9000/api/v1/safe-mode/leave
say journal journalctl -u inferd -o json --no-pager -n 200
# A daemon that stands still: the keeper falls silent, systemd starts both anew.
for process in /proc/[0-9]*; do
    [ "$(busybox stat -c %u "$process")" = 900 ] && busybox grep -q -e --config "$process/cmdline" && busybox kill -STOP "${process#/proc/}"
done
restarted() { [ "$(systemctl show inferd -P NRestarts)" -ge 1 ] && up; }
wait_for restarted
say after systemctl show inferd -p ActiveState,NRestarts
say history busybox wget -q -O - http://127.0.0.1:9000/api/v1/history
say reasons journalctl -u inferd -o cat --no-pager -n 400
echo INFERD-ASKED
systemctl poweroff --force --force
"""
UNITS = {
    "usr/lib/systemd/system/ask.service": "[Unit]\nAfter=inferd.service\n[Service]\nExecStart=/usr/libexec/ask\n",
    # What a systemd image's own first-boot units do.
    "usr/lib/systemd/system/inferd-places.service": (
        "[Unit]\nDefaultDependencies=no\nBefore=inferd.service\nAfter=local-fs.target\n[Service]\nType=oneshot\n"
        "ExecStart=/usr/bin/busybox sh -c 'mkdir -p /data/keeper /data/inferd /run/inferd/daemon && "
        "chown inferd:inferd /data/inferd /run/inferd/daemon && cp /etc/inferd/inferd.toml /run/inferd/inferd.toml'\n"
    ),
}


def tree_of(architecture):
    return debian.Archive(architecture, [SUITE]).tree(PACKAGES, closure=True).path


def files_of(tree, archive):
    """Puts an unpacked tree into the archive, all below /usr as the merged layout has it."""
    for path in sorted(tree.rglob("*")):
        name = path.relative_to(tree).as_posix()
        if name.startswith(".") or LEFT_OUT.match(name):
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            archive.symlink(name, path.readlink().as_posix())
        elif stat.S_ISDIR(mode):
            archive.directory(name)
        else:
            archive.file(name, path.read_bytes(), stat.S_IMODE(mode))


@pytest.fixture(scope="module")
def asked(board, daemon_for_board, production_image, tmp_path_factory):
    """What the script said, by mark."""
    if board.name != "qemu-aarch64":
        pytest.skip("its console is written for qemu-aarch64")
    overlay = places.ROOT / "rootfs-overlay"
    archive = cpio.Archive()
    files_of(tree_of("arm64"), archive)
    for name in ("bin", "sbin", "lib"):
        archive.symlink(name, f"usr/{name}")
    for name in ("dev", "proc", "sys", "run", "tmp", "data", "root", "usr/libexec", "usr/share/inferd", "usr/share/inferd/models", "etc/inferd"):
        archive.directory(name)
    archive.symlink("init", "usr/lib/systemd/systemd")
    archive.file("usr/bin/inferd", daemon_for_board.read_bytes(), 0o755)
    archive.file("usr/libexec/ask", ASK.encode(), 0o755)
    for name, text in UNITS.items():
        archive.file(name, text.encode())
    for name in ("usr/lib/systemd/system/inferd.service", "etc/passwd", "etc/group", "etc/inferd/inferd.toml"):
        archive.file(name, (overlay / name).read_bytes())
    for name in ("inferd", "inferd-places", "ask"):
        wants = "etc/systemd/system/multi-user.target.wants"
        if name == "inferd":
            for folder in ("etc/systemd", "etc/systemd/system", wants):
                archive.directory(folder)
        archive.symlink(f"{wants}/{name}.service", f"/usr/lib/systemd/system/{name}.service")
    archive.symlink("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target")
    for name in ("getty-static.service", "getty.target", "systemd-update-done.service"):
        archive.symlink(f"etc/systemd/system/{name}", "/dev/null")
    archive.file("etc/machine-id", b"00000000000000000000000000000001\n")
    archive.file("etc/os-release", b"ID=inferd-test\nNAME=test\n")
    model = places.DEFAULT_MODEL
    archive.directory(f"usr/share/inferd/models/{model.name}")
    for path in sorted(model.iterdir()):
        archive.file(f"usr/share/inferd/models/{model.name}/{path.name}", path.read_bytes())
    initramfs = tmp_path_factory.mktemp("systemd") / "initramfs"
    initramfs.write_bytes(archive.bytes())
    cmdline = "console=ttyAMA0 loglevel=4 panic=-1 systemd.show_status=0 systemd.getty_auto=no"
    machine = qemu.Machine(board, production_image[0], initramfs=initramfs, cmdline=cmdline)
    with machine:
        machine.wait_for_console("^INFERD-ASKED", 400)
        console = machine.console().replace("\r", "")
    return dict(re.findall(r"^<<(\w+)\n(.*?)^>>$", console, re.MULTILINE | re.DOTALL))


def shown(text):
    """`systemctl show`'s lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if line)


def test_systemd_is_told_that_the_daemon_is_ready_and_how_it_is(asked):
    unit = shown(asked["unit"])
    assert (unit["ActiveState"], unit["SubState"], unit["Type"]) == ("active", "running", "notify")
    assert unit["WatchdogUSec"] == "20s" and unit["NRestarts"] == "0"
    assert unit["StatusText"], "the daemon's own words"
    status = json.loads(asked["status"])
    assert status["ready"] and status["watchdog"] is None, "the hardware is systemd's, not the keeper's"


def test_the_daemon_is_not_root_and_its_keeper_is(asked):
    rows = [row.split(None, 1) for row in asked["user"].splitlines() if "inferd" in row]
    assert {user for user, args in rows if "keeper" in args} == {"root"}
    assert {user for user, args in rows if "--config" in args and "keeper" not in args} == {"inferd"}


def test_the_journal_has_the_daemons_lines_and_the_keepers(asked):
    entries = [json.loads(line) for line in asked["journal"].splitlines() if line.startswith("{")]
    words = [str(entry["MESSAGE"]) for entry in entries if entry.get("_SYSTEMD_UNIT") == "inferd.service"]
    assert any("listening" in line for line in words) and any(line.startswith("keeper: boot") for line in words)


def test_the_daemons_entries_keep_their_fields_and_each_is_there_once(asked):
    entries = [json.loads(line) for line in asked["journal"].splitlines() if line.startswith("{")]
    native = [entry for entry in entries if "TARGET" in entry]
    starts = [entry for entry in native if entry["MESSAGE"] == "inferd starts"]
    assert len(starts) == 1, starts
    (start,) = starts
    assert (start["TARGET"], start["PRIORITY"], start["_TRANSPORT"]) == ("inferd", "6", "journal")
    assert start["F_VERSION"] and start["_UID"] == "900", "its own field, sent by the daemon and not by its keeper"
    (asked_for,) = [entry for entry in native if entry["TARGET"] == "audit"]
    assert asked_for["REQUEST_ID"], "an entry about a request names it"
    passed_on = [entry["MESSAGE"] for entry in entries if entry.get("_TRANSPORT") == "stdout"]
    twice = [text for text in passed_on for entry in native if entry["MESSAGE"] in text]
    assert passed_on and not twice, twice


def test_a_daemon_that_stands_still_is_started_anew_by_systemds_watchdog(asked):
    after = shown(asked["after"])
    assert after["ActiveState"] == "active" and int(after["NRestarts"]) >= 1
    assert "Watchdog timeout" in asked["reasons"]
    kinds = [entry["kind"] for entry in json.loads(asked["history"])["entries"]]
    assert "let-go" in kinds, "the keeper says why it fell silent"
