"""What the appliance's scripts share, in a shell of this machine with programs in place of those that touch hardware."""

import os
import subprocess
from pathlib import Path

import places
import pytest

COMMON = places.ROOT / "rootfs-overlay/usr/libexec/inferd/common"


@pytest.fixture
def shell(tmp_path):
    """Runs lines of shell behind `common`, whose RUN, boot partition and log are in a folder; `inferd` there writes down its arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "inferd").write_text(
        f'#!/bin/sh\nmkdir {tmp_path}/alone || echo "two at once" >>{tmp_path}/calls\n'
        f'echo "$*" >>{tmp_path}/calls\nsleep 0.2\nrmdir {tmp_path}/alone\n'
    )
    (programs / "inferd").chmod(0o755)
    (tmp_path / "data").write_text("ext4\n")
    script = tmp_path / "common"
    text = COMMON.read_text().replace("RUN=/run/inferd", f"RUN={tmp_path}").replace(">/dev/kmsg", f">>{tmp_path}/log")
    script.write_text(text.replace("/data/provision/address", f"{tmp_path}/address"))

    def run(lines):
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        command = ["sh", "-c", f". {script}\npartition() {{ return 1; }}\n{lines}"]
        subprocess.run(command, check=True, env=environment, timeout=60)
        calls = tmp_path / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    run.folder = tmp_path
    return run


def test_the_boot_partition_is_used_by_one_at_a_time(shell):
    calls = shell("for n in 1 2 3; do provision --number $n & done; wait")
    assert sorted(calls) == [f"provision --number {n}" for n in (1, 2, 3)]
    assert not os.path.lexists(shell.folder / "provisioning")


def test_who_was_killed_while_using_the_boot_partition_keeps_nobody_away(shell):
    gone = subprocess.Popen(["true"])
    gone.wait()
    (shell.folder / "provisioning").symlink_to(str(gone.pid))
    assert shell("provision --number 1") == ["provision --number 1"]


def test_an_address_that_changes_again_and_again_is_reported_once_an_hour(shell):
    def told(lines):
        return [line.rsplit(" ", 1)[1] for line in shell(lines)]

    assert told("tell_report 10.0.0.1; tell_report 10.0.0.2; tell_report 10.0.0.3") == ["10.0.0.1"]
    # An hour later.
    uptime = int(float(Path("/proc/uptime").read_text().split()[0]))
    (shell.folder / "told").write_text(f"{uptime - 3600}\n")
    assert told("tell_report 10.0.0.4") == ["10.0.0.1", "10.0.0.4"]
    # The one that was told last is not told again.
    (shell.folder / "told").unlink()
    (shell.folder / "address").write_text("10.0.0.4\n")
    assert told("tell_report 10.0.0.4") == ["10.0.0.1", "10.0.0.4"]


@pytest.mark.parametrize("there", [None, "", "a key"])
def test_a_host_key_that_a_power_cut_left_empty_is_made_anew_and_a_whole_one_stays(shell, there):
    folder = shell.folder
    keys = folder / "keys"
    keys.mkdir()
    if there is not None:
        (keys / "ed25519").write_text(there)
    (keys / "ed25519.new").write_text("half")
    keygen = folder / "bin/ssh-keygen"
    # As the real one: it does not write over a file without being told to.
    keygen.write_text(
        '#!/bin/sh\nfor file; do :; done\nif [ "$1" = -y ]; then [ -s "$file" ]; else [ ! -e "$file" ] && echo "a new key" >"$file"; fi\n'
    )
    (folder / "bin/sshd").write_text("#!/bin/sh\n")
    for program in (keygen, folder / "bin/sshd"):
        program.chmod(0o755)
    (folder / "data").write_text("volatile\n")
    (folder / "ssh").mkdir()
    (folder / "ssh/authorized_keys").write_text("ssh-ed25519 AAAA me@desk\n")
    text = COMMON.with_name("services").read_text().replace("/usr/libexec/inferd/common", str(folder / "common"))
    text = text.replace("/data/identity/ssh", str(keys)).replace("while :; do", "while false; do").replace("command -v dropbear", "false")
    script = folder / "services"
    script.write_text(text)
    shell(f"sh {script}")
    assert (keys / "ed25519").read_text() == (there or "a new key\n")


@pytest.fixture
def chosen(shell):
    """The configuration that the end of `boot` chooses: `inferd` finds something wrong with every file that has `bad` in it."""
    folder = shell.folder
    provisions = f'#!/bin/sh\nif [ "$1" = provision ]; then echo "$*" >>{folder}/calls; exit; fi\n'
    (folder / "bin/inferd").write_text(provisions + '! grep -q bad "$2" || { echo "problem: it is bad"; exit 2; }\n')
    lines = COMMON.with_name("boot").read_text().partition("# The last good one of three")[2]
    lines = "#" + lines.partition("# Which device this is")[0]
    lines = lines.replace("/etc/inferd/inferd.toml", f"{folder}/own.toml").replace("/data/inferd.toml", f"{folder}/data.toml")

    def choose(**files):
        for name in ("refused", "overruled", "closed", "log"):
            (folder / name).unlink(missing_ok=True)
        if "why_closed" in files:
            (folder / "closed").write_text(files["why_closed"])
        for name in ("own", "closed", "boot", "data"):
            (folder / f"{name}.toml").unlink(missing_ok=True)
            if name in files:
                (folder / f"{name}.toml").write_text(files[name])
        (folder / "provisioned").unlink(missing_ok=True)
        if files.get("provisioned", True):
            (folder / "provisioned").write_text("TIMEZONE=''\n")
        shell(lines)
        return (folder / "inferd.toml").resolve()

    choose.folder = folder
    return choose


def test_a_refused_configuration_that_says_who_may_what_opens_no_door(chosen):
    folder, start = chosen.folder, {"own": "", "closed": "# closed"}
    assert chosen(**start) == folder / "own.toml"
    assert chosen(**start, boot="good") == folder / "boot.toml"
    assert chosen(**start, boot="good", data="good") == folder / "data.toml"
    assert chosen(**start, boot="good", data="bad [security]") == folder / "boot.toml"
    assert chosen(**start, boot="bad") == folder / "own.toml"
    for closing in ("[security]", "[tls]", "server.listen = 1"):
        assert chosen(**start, boot=f"bad\n{closing}") == folder / "closed.toml"
    assert chosen(**start, boot="bad [security]", data="good") == folder / "closed.toml"
    assert "is not used: problem: it is bad" in (folder / "log").read_text()


def test_what_somebody_wrote_on_the_device_opens_no_door_of_a_closed_one_and_is_told_where_it_wins(chosen):
    folder, start = chosen.folder, {"own": "", "closed": "# closed"}
    log = lambda: (folder / "log").read_text() if (folder / "log").exists() else ""  # noqa: E731
    # Closed: `boot.toml` is what `inferd provision` has left.
    assert chosen(**start, boot="# closed", data="good", why_closed="the record is gone\n") == folder / "boot.toml"
    assert f"boot: {folder}/data.toml is not used: the device is CLOSED" in log()
    assert chosen(**start, data="good", provisioned=False) == folder / "closed.toml"
    assert not (folder / "calls").exists() and not (folder / "overruled").exists()
    # Open: the last one wins, and console and report say so.
    assert chosen(**start, boot="good", data="good") == folder / "data.toml"
    assert (folder / "overruled").read_text() == f"{folder}/data.toml\n"
    assert f"the daemon starts with {folder}/data.toml, not with the inferd.toml of the boot partition" in log()
    assert (folder / "calls").read_text().startswith("provision --report --name ")
    # Nothing of the card is overruled where there is nothing of it, or the daemon does not take it anyway.
    assert chosen(**start, data="good") == folder / "data.toml"
    assert not (folder / "overruled").exists() and "not with the inferd.toml" not in log()


@pytest.fixture
def asked(shell):
    """The factory reset of `boot`, with files in place of the boot partition and the data partition; returns what `inferd` was called with.
    What stands in the mark as it is called is written down, too."""
    folder = shell.folder
    for name in ("fat", "keeper"):
        (folder / name).mkdir()
    mark = folder / "keeper/factory-reset"
    (folder / "bin/inferd").write_text(f'#!/bin/sh\ncp {mark} {folder}/seen\necho "$*" >>{folder}/calls\n')
    lines = COMMON.with_name("boot").read_text().partition("# A factory reset by a file on the boot partition")[2]
    lines = "#" + lines.partition("# What belongs to the daemon")[0]
    lines = lines.replace("/data/keeper", f"{folder}/keeper").replace("/boot", f"{folder}/fat").replace("chown ", ": ")
    stubs = "data=ext4; partition() { echo /dev/null; }; umount() { :; }; sync() { :; }; "

    def start(*, takes_writes=True):
        (folder / "seen").unlink(missing_ok=True)
        shell(stubs + f"mount() {{ [ \"$1\" = -t ] || {'true' if takes_writes else 'false'}; }}\n" + lines)
        return (folder / "seen").read_text().strip() if (folder / "seen").exists() else None

    start.folder, start.mark = folder, mark
    return start


def test_a_factory_reset_by_a_file_is_obeyed_once_and_takes_nothing_from_one_that_waits(asked):
    file = asked.folder / "fat/factory-reset"
    assert asked() is None
    file.touch()
    assert asked() == "1" and not file.exists()
    # The program takes the mark away; this one did not, as after a failure.
    assert asked() == "1"
    for waits, becomes in (("everything", "everything"), ("everything 3", "everything"), ("1 3", "1")):
        asked.mark.write_text(f"{waits}\n")
        file.touch()
        assert asked() == becomes, "what was asked for stays, and is tried anew"
    # Where the file cannot be taken away it is not obeyed, and what waits is not forgotten for that.
    file.touch()
    asked.mark.write_text("everything 2\n")
    assert asked(takes_writes=False) == "everything 2"
    asked.mark.unlink()
    assert asked(takes_writes=False) is None and file.exists() and not asked.mark.exists()
    assert "no factory reset: factory-reset cannot be taken off" in (asked.folder / "log").read_text()
    # Nor is it taken away where it cannot be kept in mind.
    (asked.folder / "keeper").rmdir()
    assert asked() is None and file.exists()
    assert "no factory reset: the data partition takes no writes" in (asked.folder / "log").read_text()


def test_an_interface_that_is_not_there_is_looked_for_at_times(shell):
    one = COMMON.with_name("network").read_text().partition("\none() {")[2].partition("\n}\n")[0]
    stubs = f'sleep() {{ echo "waits $1" >>{shell.folder}/calls; }}\nip() {{ echo "$*" >>{shell.folder}/calls; }}\nudhcpc() {{ exit; }}\n'
    lines = stubs + "one() {" + one.replace("exec udhcpc", "udhcpc").replace("/sys/class/net", f"{shell.folder}/net") + "\n}\n"
    assert shell(f"{lines}one eth7 {shell.folder}/no\n") == ["waits 15"]
    (shell.folder / "net/eth7").mkdir(parents=True)
    (shell.folder / "calls").unlink()
    assert shell(f"{lines}one eth7 {shell.folder}/no\n") == ["link set eth7 up"]


def test_the_report_on_the_card_has_the_last_word_about_what_the_daemon_does_not_start_with(chosen):
    said = chosen.folder / "calls"
    chosen(own="", boot="good", data="bad")
    assert not said.exists() and not (chosen.folder / "refused").exists(), "the report is about the card"
    chosen(own="", boot="bad")
    assert (chosen.folder / "refused").read_text() == "problem: it is bad\n"
    assert said.read_text().startswith("provision --report --name ")


def test_a_start_that_could_take_nothing_over_opens_no_door(chosen):
    assert chosen(own="", provisioned=False) == chosen.folder / "closed.toml"
    assert (chosen.folder / "closed.toml").read_text() == "[security]\nopen_reads = false\nopen_inference = false\n"
    assert "boot: CLOSED" in (chosen.folder / "log").read_text()


def test_an_interface_with_a_section_of_its_own_is_not_the_first_one_too(shell):
    first = COMMON.with_name("network").read_text().partition("\nfirst() {")[2].partition("\n}\n")[0]
    stubs = f'interface() {{ echo eth0; }}\nsleep() {{ echo waits >>{shell.folder}/calls; }}\nstart() {{ echo "$*" >>{shell.folder}/calls; }}'
    lines = stubs + "\nfirst() {" + first.replace('"$0"', "start") + "\n}\n"
    assert shell(f"{lines}INTERFACES='eth1'\nfirst\n") == [f"eth0 {shell.folder}/net/wired"]
    (shell.folder / "calls").unlink()
    assert shell(f"{lines}INTERFACES='eth1 eth0'\nfirst\n") == ["waits"]


def test_the_leds_of_a_board_become_the_daemons_and_a_board_without_any_is_no_mistake(shell):
    lines = COMMON.with_name("boot").read_text().partition("# The daemon lights the board's LED.")[2].partition("\n\n")[0]
    lines = f"chown() {{ echo \"$*\" >>{shell.folder}/calls; }}\n" + lines.replace("/sys/class/leds", f"{shell.folder}/leds")
    assert shell(lines) == []
    (shell.folder / "leds/ACT").mkdir(parents=True)
    (shell.folder / "leds/ACT/brightness").touch()
    led = shell.folder / "leds/ACT"
    assert shell(lines) == [f"inferd {led}/brightness {led}/trigger"]


@pytest.fixture
def radio(shell):
    """`network` with a wpa_supplicant in place of the real one, which says these lines each time it is started, and is given the configuration with
    WPA3; what it then has said, and what it has called."""
    folder = shell.folder
    (folder / "wpa.conf").write_text('sae_pwe=2\nnetwork={\n    key_mgmt=WPA-PSK SAE\n    psk="a SAE"\n}\n')
    head, mark, _ = COMMON.with_name("network").read_text().partition("\nkeep() {")
    assert mark
    asked = f'if [ $# = 2 ]; then echo "address $*" >>{folder}/calls; exit; fi\n'
    script = folder / "network"
    script.write_text(head.replace("/usr/libexec/inferd/common", str(folder / "common")) + f"\npartition() {{ return 1; }}\ninterface() {{ echo lo; }}\n{asked}wireless\nwait\n")
    (folder / "bin/ip").write_text("#!/bin/sh\n")
    for file in (script, folder / "bin/ip"):
        file.chmod(0o755)

    def run(*events, fails=""):
        said = "".join(f"echo '{event}'\n" for event in events)
        # It stays until an address was asked for: whoever asks ends with it.
        asked = f"n=0; until grep -q '^address' {folder}/calls || [ $n = 100 ]; do sleep 0.1; n=$((n + 1)); done\n" if JOINED in events else ""
        supplicant = folder / "bin/wpa_supplicant"
        supplicant.write_text(f'#!/bin/sh\ncp "$4" {folder}/given\n{fails}\n{said}{asked}')
        supplicant.chmod(0o755)
        shell(f"{script}")
        log, calls = folder / "log", folder / "calls"
        return log.read_text().splitlines() if log.exists() else [], calls.read_text().splitlines() if calls.exists() else []

    run.folder = folder
    return run


REFUSED = 'lo: CTRL-EVENT-SSID-TEMP-DISABLED id=0 ssid="x" auth_failures=1 duration=10 reason=WRONG_KEY'
JOINED = "lo: CTRL-EVENT-CONNECTED - Connection to 02:00:00:00:01:00 completed"


def test_why_a_wireless_network_is_not_joined_is_told_when_it_changes_and_no_address_is_asked_for_before(radio):
    log, calls = radio("Successfully initialized wpa_supplicant")
    assert (log, calls) == ([], []), "a search takes its time"
    log, calls = radio(*[REFUSED] * 9)
    assert [line.partition("lo: ")[2].split(";")[0] for line in log] == ["the wireless network does not take the passphrase"]
    assert [line.split()[-1] for line in calls] == ["--report"] and "passphrase" in (radio.folder / "wifi").read_text()
    log, calls = radio(JOINED, JOINED)
    assert log[1].endswith("lo: is in the wireless network") and not (radio.folder / "wifi").exists()
    assert sorted(line.split()[0] for line in calls) == ["address"] + ["provision"] * 2


def test_of_a_wireless_network_that_comes_and_goes_the_report_hears_four_times_in_a_start_at_most_and_each_time_how_it_ended(radio):
    log, calls = radio(*[JOINED, "lo: CTRL-EVENT-DISCONNECTED bssid=02:00:00:00:01:00 reason=3"] * 9)
    assert len(log) == 18, "the console is told each time"
    assert len([line for line in calls if line.startswith("provision")]) == 8


def test_a_wpa_supplicant_without_wpa3_is_given_what_it_understands_the_next_time(radio):
    refuses = "! grep -q 'sae_pwe\\|SAE$' \"$4\" || { echo 'Failed to read or parse configuration x'; exit 255; }"
    radio(JOINED, fails=refuses)
    log, _ = radio(JOINED, fails=refuses)
    assert (radio.folder / "given").read_text() == 'network={\n    key_mgmt=WPA-PSK\n    psk="a SAE"\n}\n'
    assert (radio.folder / "wpa.plain").stat().st_mode & 0o77 == 0 and log[-1].endswith("is in the wireless network")
