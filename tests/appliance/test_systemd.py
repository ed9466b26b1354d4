"""The overlay's units and scripts where systemd is process 1, run by a real systemd in QEMU.

There is no image of ours with systemd that could be started here (yocto/ describes one). So the root filesystem of an ordinary image is
replaced: Debian's systemd, BusyBox for what the scripts call, the static daemon, its default model, the overlay. Kernel, initramfs and partitions are the
image's own, but that the data partition is empty, as NVIDIA's tools leave it. It infers and is updated; then a script asks systemd, the daemon and the
journal, and prints what they say. Then it is reset as it was delivered, asked again, and restarted with a word to its firmware.
"""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import hosttools
import layout as layouts
import places
import pytest
from appliance import device, systemd, variants
from appliance.ssh import Ssh
from appliance.test_ota import EASY

# On the boot partition: a key, and with it what the image's own configuration says.
PROVISIONED = """\
[ssh]
authorized_keys = ["{key}"]
[security]
api_key = "{api_key}"
[updates]
allow_dev = true
"""
ON_STICK = "hello from a stick\n"
ASK = """#!/usr/bin/busybox sh
# Prints between two marks what each command says.
say() { echo "<<$1"; shift; "$@" 2>&1; echo; echo ">>"; }
status() { busybox wget -q -O - http://127.0.0.1:9000/status; }
up() { busybox wget -q -O /dev/null http://127.0.0.1:9000/healthz; }
wait_for() { until "$@"; do busybox sleep 0.5; done; }
exec >/dev/console 2>&1
told() { busybox dmesg | busybox grep -q "$1"; }
wait_for up
if [ -e /data/keeper/asked ]; then
    say forgotten busybox sh -c 'dmesg | grep "boot: factory reset"; ls /data /data/keeper'
    say now status
    say listens busybox netstat -ltn
    say kept busybox wget -q -O - http://127.0.0.1:9000/api/v1/slots
    # A watch over a system on trial: the script is killed first, then the watch is, for lack of memory.
    mkdir -p /run/systemd/system/inferd-system.service.d
    cat >/run/watch <<'END'
#!/bin/sh
[ ! -e /run/second ] || exec busybox dd if=/dev/zero of=/dev/null bs=64M count=1
echo >/run/watched
exec busybox sleep 3600
END
    printf '#!/bin/sh\necho restarts >>/run/restarted\n' >/run/restart
    busybox sed 's/$/ inferd.try=1/' /proc/cmdline >/run/cmdline
    busybox chmod 755 /run/watch /run/restart
    cat >/run/systemd/system/inferd-system.service.d/test.conf <<'END'
[Service]
BindReadOnlyPaths=/run/watch:/usr/bin/inferd /run/restart:/usr/bin/systemctl /run/cmdline:/proc/cmdline
MemoryMax=32M
END
    systemctl daemon-reload
    systemctl start inferd-system
    wait_for test -e /run/watched
    echo >/run/second
    busybox kill -9 "$(systemctl show inferd-system -P MainPID)"
    wait_for test -e /run/restarted
    say watch busybox sh -c 'dmesg | grep "system: "; systemctl show inferd-system -p NRestarts -p ActiveState; cat /run/restarted'
    echo INFERD-ASKED-AGAIN
    say restart ask '{"ask": "reboot", "why": "a test", "argument": "0 tryboot"}'
    exit
fi
wait_for told INFERD-NET
wait_for told 'sticks: .* is mounted'
listens() { busybox netstat -ltn | busybox grep -q ":$1 "; }
wait_for listens 22
updated() { busybox wget -q -O - http://127.0.0.1:9000/api/v1/slots | busybox grep -q '"status":"committed"'; }
wait_for updated
say scripts systemctl show inferd-boot inferd-network inferd-services inferd-sticks inferd-system inferd-door -p Id,ActiveState,Result,NRestarts
say told busybox sh -c "dmesg | sed 's/^.[^]]*. //' | grep -E '^(INFERD-|boot: |network: |services: |sticks: )'"
say data busybox sh -c 'cat /run/inferd/data; grep " /data " /proc/mounts'
say door busybox wget -q -O - http://127.0.0.1:9000/api/v1/slots
say slots busybox sh -c 'cat /run/inferd/slot; for letter in a b; do stat -L -c "%U %F" /run/inferd/slots/$letter; done'
say stick busybox sh -c 'cat /run/inferd/usb/*/hello'
say confined busybox sh -c '
    main=$(systemctl show inferd -P MainPID)
    grep -E "^(NoNewPrivs|Seccomp|CapBnd):" /proc/$main/status
    seen=/proc/$main/root
    try() { if "$@" 2>/dev/null; then echo done; else echo refused; fi; }
    for folder in /run /etc /run/inferd/keeper /data/keeper; do
        echo "$folder: $(try touch $seen$folder/probe)"
        rm -f $seen$folder/probe 2>/dev/null
    done
    put() { echo "$2" >"$seen$1"; }
    for file in /proc/sys/vm/swappiness /sys/kernel/profiling /sys/bus/pci/rescan; do echo "$file: $(try put $file 1)"; done
    cat $seen/run/inferd/usb/*/hello
    grep ^Groups: /proc/$(cat /proc/$main/task/$main/children | sed "s/ .*//")/status
'
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
# The start script's own words for another partition, one that nobody needs any more.
say partition /bin/sh -c '
    . /usr/libexec/inferd/common
    eval "$(sed -n "/^make_data()/,/^}/p" /usr/libexec/inferd/boot)"
    spare=$(partition models-b)
    put() { dd of="$spare" bs=1M seek="$1" conv=notrunc,fsync 2>/dev/null; }
    echo something | put 40
    make_data "$spare" || echo "with something on it: refused, $(dd if="$spare" bs=1M skip=40 count=1 2>/dev/null | head -n 1) stays"
    # A power cut while it was being made.
    echo "inferd makes a file system here" | put 63
    make_data "$spare" && mount -t ext4 -o ro "$spare" /boot && umount /boot && echo "begun before: made"
    make_data "$spare" || echo "made: refused"
'
say provisioned /bin/sh -c '. /usr/libexec/inferd/common; mount -t vfat "$(partition boot)" /boot && rm /boot/inferd.toml && umount /boot && echo gone'
echo '# somebody was here' >/data/inferd.toml
echo >/data/keeper/asked
busybox sync
echo INFERD-ASKED
"""
UNITS = {"ask": "[Unit]\nAfter=inferd.service inferd-network.service\n[Service]\nExecStart=/usr/libexec/ask\nIgnoreSIGPIPE=no\n"}
# The appliance's own, but that nothing arms the watchdog: it counts also while this machine is too busy to emulate.
INIT = (places.BOARDS / "common/initramfs/init").read_text().replace(": >/dev/watchdog0 && armed=yes", "armed=yes")


def root_filesystem(stage, daemon, board, keys, asks):
    """The root filesystem, which believes these keys. `asks` is a program that asks the keeper."""
    settings = [("updates", "allow_dev", "true"), ("security", "api_key", f'"{keys.api_key}"')]
    systemd.root_filesystem(stage, daemon, board, keys.root, settings, UNITS)
    with open(stage / "etc/group", "a", encoding="ascii") as groups:
        groups.write("video:x:44:inferd\n")  # as NVIDIA's rules for udev want it of whoever opens the GPU
    systemd.put(stage / "usr/bin/ask", asks.read_bytes())
    systemd.put(stage / "usr/libexec/ask", ASK.encode())
    (stage / "usr/lib/systemd/system.conf.d/inferd.conf").unlink()  # arms the watchdog, see below


def empty_data(disk):
    """Empties the data partition of an image, as NVIDIA's tools leave it."""
    part = next(part for part in layouts.read_gpt(disk)[1] if part.name == "data")
    with open(disk, "r+b") as file:
        file.seek(part.offset)
        file.write(bytes(part.size))


@pytest.fixture(scope="module")
def bundle(inferctl, dev_keys, tmp_path_factory):
    """A model that answers otherwise than the image's own."""
    folder = tmp_path_factory.mktemp("bundle")
    model = variants.make(folder / "model", "1.1.0", shift=0.25)
    return device.Workshop(inferctl, dev_keys, folder).bundle("better", model, 1, **EASY)[0]


@pytest.fixture(scope="module")
def asked(board, boot, daemon_for_board, production_image, dev_keys, bundle, walk, tmp_path_factory):
    """What the script said, by mark; as `answers` what was inferred before an update, as `console` everything since the factory reset, as
    `logins` what came of a login with the key of the boot partition and of one with another."""
    folder, tools = tmp_path_factory.mktemp("systemd"), hosttools.Tools(hosttools.IMAGE)
    root_filesystem(folder / "root", daemon_for_board, board, dev_keys, device.compiled(Path(__file__).parent / "ask.rs", board, folder))
    disk = shutil.copyfile(production_image[0], folder / "systemd.img")
    systemd.put_on(disk, systemd.squashed(folder / "root", folder / "rootfs.squashfs", tools))
    empty_data(disk)
    ssh = Ssh(folder)
    device.put_on_boot_partition(disk, "inferd.toml", PROVISIONED.format(key=ssh.keys["given"], api_key=dev_keys.api_key), folder)
    stick = folder / "stick"
    stick.touch()
    os.truncate(stick, 8 << 20)
    (folder / "hello").write_text(ON_STICK)
    subprocess.run([tools.path("mkfs.fat"), stick], check=True, capture_output=True)
    subprocess.run([tools.path("mcopy"), "-i", stick, folder / "hello", "::hello"], check=True)
    cmdline = f"{board.cmdline} loglevel=4 systemd.show_status=0 systemd.getty_auto=no"
    with boot(disk, cmdline=cmdline, early=INIT, sticks=[stick], restarts=True) as machine:
        answers = machine.infer(walk)
        connection = device.connect(machine.url, 300)
        connection.request("PUT", "/api/v1/bundle", bundle.read_bytes(), {"X-API-Key": dev_keys.api_key})
        reply = connection.getresponse()
        assert reply.status in (200, 201, 202), reply.read()
        machine.wait_for_console("^INFERD-ASKED", 600)
        logins = {name: ssh.login(machine, name, "cat /run/inferd/slot; id -u") for name in ssh.keys}
        reply = machine.request("/api/v1/factory-reset", b"", headers={"X-API-Key": dev_keys.api_key}, timeout=300)
        assert reply.status == 202, reply.body
        machine.wait_for_console("^INFERD-ASKED-AGAIN", 600)
        machine.wait_for_console("reboot: Restarting system with command", 300)
        console = machine.console().replace("\r", "")
    said = dict(re.findall(r"^<<(\w+)\n(.*?)^>>$", console, re.MULTILINE | re.DOTALL))
    return {**said, "answers": answers, "logins": logins, "console": console.partition("INFERD-ASKED\n")[2]}


def shown(text):
    """`systemctl show`'s lines."""
    return dict(line.split("=", 1) for line in text.splitlines() if line)


def test_every_script_has_run_and_none_was_started_again(asked):
    units = {unit["Id"]: unit for unit in map(shown, asked["scripts"].strip().split("\n\n"))}
    assert set(units) == {f"inferd-{name}.service" for name in systemd.SCRIPTS}
    assert {unit["Result"] for unit in units.values()} == {"success"}, units
    for name in ("boot", "network", "sticks", "door"):
        assert units[f"inferd-{name}.service"]["ActiveState"] == "active"
    assert {unit.get("NRestarts", "0") for unit in units.values()} == {"0"}
    told = asked["told"]
    assert re.search("^INFERD-UP inferd-[0-9a-f]{6} slot=a data=ext4 ", told, re.MULTILINE), told
    assert re.search(r"^INFERD-NET \S+ 10\.0\.2\.15\b", told, re.MULTILINE), told


def test_an_empty_data_partition_gets_its_file_system_and_no_other_one(asked):
    assert "boot: the data partition is empty: making its file system" in asked["told"]
    assert asked["data"].startswith("ext4\n") and " /data ext4 rw,nosuid,nodev,noexec,noatime,errors=remount-ro" in asked["data"]
    assert asked["partition"].strip().splitlines() == ["with something on it: refused, something stays", "begun before: made", "made: refused"]


def test_the_daemon_is_given_the_model_slots_of_the_medium(asked):
    assert asked["slots"].split("\n")[:3] == ["a", "inferd block special file", "inferd block special file"]


def test_the_confined_daemon_reaches_roots_door_and_hears_what_the_boot_loader_can(asked, board):
    system = json.loads(asked["door"])["system"]
    assert system["board"]["backend"] == board.backend
    assert (system["refused"] is None) == (board.backend == "uboot-env"), system


def test_a_stick_is_mounted_for_the_daemon(asked):
    assert asked["stick"].startswith(ON_STICK)
    assert ON_STICK in asked["confined"], "where the daemon looks"


def test_the_confined_daemon_infers_and_is_updated(asked):
    assert asked["answers"]
    status = json.loads(asked["status"])
    assert status["ready"], status
    assert status["models"][0]["host"]["memory_cap_kind"] == "cgroup"


def test_the_unit_leaves_the_keeper_what_it_needs_and_no_more(asked):
    lines = dict(line.split(":", 1) for line in asked["confined"].splitlines() if ":" in line)
    found = {name: " ".join(value.split()) for name, value in lines.items()}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
    # chown, kill, setgid, setuid, setpcap, sys_boot.
    assert int(found["CapBnd"], 16) == sum(1 << number for number in (0, 5, 6, 7, 8, 22))
    assert found["Groups"] == "44", "the daemon is in its user's groups and no other"
    refused = {"/run", "/etc", "/proc/sys/vm/swappiness", "/sys/kernel/profiling"}
    done = {"/run/inferd/keeper", "/data/keeper", "/sys/bus/pci/rescan"}
    assert {name: found[name] for name in refused | done} == dict.fromkeys(refused, "refused") | dict.fromkeys(done, "done")


def test_systemd_is_told_that_the_daemon_is_ready_and_how_it_is(asked):
    unit = shown(asked["unit"])
    assert (unit["ActiveState"], unit["SubState"], unit["Type"]) == ("active", "running", "notify")
    assert unit["WatchdogUSec"] == "20s" and unit["NRestarts"] == "0"
    assert unit["StatusText"], "the daemon's own words"
    status = json.loads(asked["status"])
    assert status["ready"] and status["watchdog"] is None, "the hardware is systemd's, not the keeper's"


def test_the_daemon_is_not_root_and_its_keeper_and_who_installs_systems_are(asked):
    rows = [row.split(None, 1) for row in asked["user"].splitlines() if "inferd" in row]
    assert {user for user, args in rows if "keeper" in args} == {"root"}
    assert {user for user, args in rows if "inferd system" in args} == {"root"}
    rest = [user for user, args in rows if "--config" in args and "keeper" not in args and "inferd system" not in args]
    assert set(rest) == {"inferd"}


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
    asked_for = [entry for entry in native if entry["TARGET"] == "audit"]
    assert len(asked_for) == 2, "the update, and what was refused"
    assert all(entry["REQUEST_ID"] for entry in asked_for), "an entry about a request names it"
    passed_on = [entry["MESSAGE"] for entry in entries if entry.get("_TRANSPORT") == "stdout"]
    twice = [text for text in passed_on for entry in native if entry["MESSAGE"] in text]
    assert passed_on and not twice, twice


def test_a_daemon_that_stands_still_is_started_anew_by_systemds_watchdog(asked):
    after = shown(asked["after"])
    assert after["ActiveState"] == "active" and int(after["NRestarts"]) >= 1
    assert "Watchdog timeout" in asked["reasons"]
    kinds = [entry["kind"] for entry in json.loads(asked["history"])["entries"]]
    assert "let-go" in kinds, "the keeper says why it fell silent"


def test_a_factory_reset_forgets_what_was_configured_and_keeps_the_evidence_and_the_committed_model(asked):
    forgotten, before = asked["forgotten"], json.loads(asked["door"])
    assert "forgetting what was configured and installed" in forgotten
    there = set(forgotten.split())
    assert {"identity", "asked", "history.jsonl"} <= there and not {"inferd.toml", "factory-reset"} & there, there
    told = json.loads(asked["now"])["boot"]
    assert told["reason"] == "request" and "factory reset: asked for by" in told["sentence"], told
    assert json.loads(asked["kept"])["serving"] == before["serving"] and before["serving"]["bundle"]


def test_a_system_on_trial_that_nobody_watches_any_more_is_not_kept(asked):
    watch = asked["watch"]
    assert "NRestarts=1" in watch, "the script was killed and began anew"
    assert "system: the system on trial is not watched; the board is restarted" in watch and "restarts\n" in watch


def test_a_restart_says_to_the_firmware_what_the_keeper_was_asked_for(asked):
    restarts = re.findall(r"reboot: Restarting system(?: with command '(.*)')?$", asked["console"], re.MULTILINE)
    assert restarts == ["", "0 tryboot"], "the factory reset's, and this one"


def test_root_logs_in_with_the_key_of_the_boot_partition_and_with_no_other(asked):
    given, other = asked["logins"]["given"], asked["logins"]["other"]
    assert (given.returncode, given.stdout.split()) == (0, ["a", "0"]), given
    assert other.returncode != 0 and not other.stdout and "No auth methods could be used" in other.stderr, other


def test_without_a_key_there_is_no_server(asked):
    assert asked["provisioned"].startswith("gone")
    ports = set(re.findall(r":(\d+) .*LISTEN", asked["listens"]))
    assert "9000" in ports and "22" not in ports, ports
