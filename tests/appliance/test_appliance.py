"""The booted appliance, asked from outside as its users do, and looked into through the dev image's root shell."""

import re
import shutil
import subprocess
import time
import tomllib

import hosttools
import layout as layouts
import places
import pytest
from appliance.device import DAEMON, put_on_boot_partition
from prometheus_client.parser import text_string_to_metric_families

MANIFEST = tomllib.loads((places.DEFAULT_MODEL / "manifest.toml").read_text())
LABELS = MANIFEST["imu"]["motif"]["labels"]


def wait_until(condition, timeout=60):
    """Asks until the condition holds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def host_status(machine):
    """What /status says about the engine host of the default model."""
    return machine.request("/status").json()["models"][0]["host"]


def test_it_says_it_is_healthy_alive_and_ready(appliance):
    assert [appliance.request(path).status for path in ("/healthz", "/livez", "/readyz")] == [200, 200, 200]
    assert appliance.request("/healthz", method="HEAD").body == b""


def test_a_second_of_walking_is_answered_with_64_latent_numbers_and_12_scores_of_which_walking_is_the_highest(appliance, walk):
    answer = appliance.infer(walk)
    assert len(answer["latent"]) == 64 and len(answer["motif_scores"]) == 12
    assert all(0 <= score <= 1 for score in answer["motif_scores"])
    best = max(range(12), key=lambda index: answer["motif_scores"][index])
    assert LABELS[best] == "walk"


def test_it_computes_what_the_daemon_computes_on_this_machine(appliance, daemon, walk):
    there, here = appliance.infer(walk), daemon.request("/infer", walk).json()
    assert there["latent"] == pytest.approx(here["latent"], abs=1e-4)
    assert there["motif_scores"] == pytest.approx(here["motif_scores"], abs=1e-4)


def test_a_window_of_the_wrong_shape_is_a_client_error(appliance, walk):
    assert 400 <= appliance.request("/infer", {"x": walk["x"][:-1]}).status < 500


def test_its_metrics_are_read_by_prometheus_own_parser_and_count_inferences(appliance, walk):
    def answered():
        families = text_string_to_metric_families(appliance.request("/metrics").body.decode())
        samples = [s for f in families for s in f.samples]
        return sum(s.value for s in samples if s.name == "inferd_requests_total" and s.labels["outcome"] == "success")

    before = answered()
    appliance.infer(walk)
    appliance.infer(walk)
    assert answered() == before + 2


def test_the_console_says_where_it_is_and_in_which_state(appliance):
    up = appliance.wait_for_console(r"INFERD-UP (inferd-[0-9a-f]{6}) slot=a data=ext4 config=/etc/inferd/inferd\.toml", 60)
    assert appliance.sh("hostname") == up[1]
    appliance.wait_for_console(r"INFERD-NET eth0 10\.0\.2\.15", 60)


def test_the_root_filesystem_cannot_be_written(appliance):
    status, output = appliance.root("touch /etc/x /usr/bin/x; mount -o remount,rw / && touch /etc/x")
    assert status != 0 and "Read-only file system" in output


def test_the_daemon_runs_without_privileges_in_its_own_control_group(appliance):
    status = appliance.sh(f"cat /proc/$({DAEMON})/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {"900"} and set(fields["Gid"].split()) == {"900"}
    assert int(fields["CapEff"], 16) == 0
    assert appliance.sh(f"cat /proc/$({DAEMON})/cgroup") == "0::/inferd/daemon"


def test_the_engine_host_is_capped_at_its_manifests_budget(appliance):
    groups = appliance.sh("ls -d /sys/fs/cgroup/inferd/host-*").split()
    assert len(groups) == 1
    # The budget is what the host may have of its own; the ring and the model's files are charged to it on top.
    budget = MANIFEST["budget"]["memory_mib"] << 20
    assert budget <= int(appliance.sh(f"cat {groups[0]}/memory.max")) <= budget + (2 << 20)
    assert appliance.sh(f"cat {groups[0]}/memory.swap.max") == "0"
    assert host_status(appliance)["memory_cap_kind"] == "cgroup"
    assert appliance.sh(f"wc -l <{groups[0]}/cgroup.procs") == "1"


def test_over_its_cap_the_host_dies_and_the_daemon_lives_and_answers_again(appliance, walk):
    daemon = appliance.sh(DAEMON)
    host = appliance.sh("cat /sys/fs/cgroup/inferd/host-*/cgroup.procs")
    # A process that grows without end, put where the host is: the kernel must kill both.
    status, _ = appliance.root(
        "sh -c 'for group in /sys/fs/cgroup/inferd/host-*; do echo $$ >$group/cgroup.procs; done; exec tail /dev/zero'"
    )
    assert status == 128 + 9
    wait_until(lambda: appliance.root("cat /sys/fs/cgroup/inferd/host-*/cgroup.procs")[1].strip() not in ("", host))
    appliance.wait_ready(60)
    assert len(appliance.infer(walk)["latent"]) == 64
    assert appliance.sh(DAEMON) == daemon
    assert host_status(appliance)["ends"]["oom"] == 1, "the daemon does not know why its host died"


def test_a_killed_daemon_is_started_again_and_answers(appliance, walk):
    before = appliance.sh(DAEMON)
    appliance.sh(f"kill -9 {before}")
    wait_until(lambda: appliance.root(DAEMON)[1].strip() not in ("", before))
    appliance.wait_ready(60)
    assert len(appliance.infer(walk)["latent"]) == 64
    assert len(appliance.sh("ls -d /sys/fs/cgroup/inferd/host-*").split()) == 1, "a host of the killed daemon is left"


def test_at_poweroff_the_daemon_ends_the_data_partition_is_clean_and_the_machine_switches_off(boot, dev_image, tmp_path):
    medium = tmp_path / "medium.img"
    shutil.copyfile(dev_image, medium)
    with boot(medium, dev=True, keep_writes=True) as machine:
        machine.sh("echo kept >/data/note; poweroff")
        machine.wait_exit(60)
        assert "INFERD-DOWN" in machine.console()
    part = next(part for part in layouts.read_gpt(medium)[1] if part.name == "data")
    check = [hosttools.Tools(hosttools.IMAGE).path("e2fsck"), "-f", "-n", f"{medium}?offset={part.offset}"]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and "recovering journal" not in checked.stdout, checked.stdout
    with boot(medium, dev=True, keep_writes=True) as machine:
        assert machine.sh("cat /data/note") == "kept"


def test_a_configuration_on_the_boot_partition_is_used(boot, dev_image, tmp_path):
    medium = tmp_path / "medium.img"
    shutil.copyfile(dev_image, medium)
    put_on_boot_partition(medium, "inferd.toml", "[server]\ndocs_enabled = false\n", tmp_path)
    with boot(medium, dev=True) as machine:
        assert "config=/run/inferd/boot.toml" in machine.console()
        assert machine.request("/docs").status == 404
        assert machine.sh("mount | grep -c vfat || true") == "0", "the boot partition stays mounted"


def test_a_broken_configuration_on_the_boot_partition_is_named_and_left_aside(boot, dev_image, tmp_path, walk):
    medium = tmp_path / "medium.img"
    shutil.copyfile(dev_image, medium)
    put_on_boot_partition(medium, "inferd.toml", "[server]\nthreads = 'many'\n", tmp_path)
    with boot(medium, dev=True) as machine:
        assert "config=/etc/inferd/inferd.toml" in machine.console()
        machine.wait_for_console(r"/boot/inferd\.toml is not used: line 2: server\.threads", 60)
        assert len(machine.infer(walk)["latent"]) == 64


def test_without_a_data_partition_it_still_answers_and_says_so(boot, dev_image, dev_keys, tmp_path, walk):
    medium = tmp_path / "medium.img"
    shutil.copyfile(dev_image, medium)
    part = next(part for part in layouts.read_gpt(medium)[1] if part.name == "data")
    with open(medium, "r+b") as file:
        file.seek(part.offset)
        # Which leaves nothing but zeros; and the only mke2fs here is BusyBox's, which makes no journal.
        file.write(bytes(1 << 20))
    with boot(medium, dev=True) as machine:
        assert "data=volatile" in machine.console()
        machine.wait_for_console("the data partition cannot be mounted", 60)
        # Without records that last, the slots are left alone.
        machine.wait_for_console("model slots are left alone", 60)
        assert machine.sh("ls /run/inferd/slots") == ""
        # Nobody knows whether somebody had shut its doors: health is told, everything else to whoever has a key that is in the image.
        machine.wait_for_console("provision: CLOSED: there is no data partition at this start", 60)
        assert machine.request("/healthz").status == 200
        assert [machine.request(path).status for path in ("/status", "/commit-ready")] == [401, 401]
        assert machine.request("/infer", walk).status == 401
        key = {"X-API-Key": dev_keys.api_key}
        assert machine.request("/status", headers=key).status == 200
        # A system that cannot find its slots must not be made the one that stays.
        answer = machine.request("/commit-ready", headers=key)
        assert answer.status == 503 and "no model slots" in " ".join(answer.json()["reasons"]), answer.body


def test_the_daemon_owns_its_two_slots_and_its_records_and_nothing_else_on_the_medium(appliance):
    owners = dict(reversed(line.split()) for line in appliance.sh("stat -c '%u %n' /dev/vda*").splitlines())
    slots = {appliance.sh(f"readlink /run/inferd/slots/{letter}") for letter in "ab"}
    assert len(slots) == 2 and {device for device, owner in owners.items() if owner == "900"} == slots
    assert appliance.sh("stat -c '%u %a' /data /data/inferd") == "0 755\n900 700"


def test_it_knows_its_board_and_its_own_name(appliance, board):
    assert appliance.sh("cat /etc/inferd/board") == board.name
    assert appliance.sh("cat /run/inferd/device") == appliance.sh("sed s/://g /sys/class/net/eth0/address")


def test_a_stick_with_a_fat_is_mounted_read_only_and_a_second_appliances_medium_is_not_taken_for_its_own(
    boot, dev_image, tmp_path
):
    stick, other = tmp_path / "stick.img", tmp_path / "other.img"
    stick.write_bytes(bytes(8 << 20))
    shutil.copyfile(dev_image, other)
    tools = hosttools.Tools(hosttools.IMAGE)
    subprocess.run([tools.path("mkfs.fat"), stick], check=True, capture_output=True)
    (tmp_path / "new.imb").write_bytes(b"a bundle")
    subprocess.run([tools.path("mcopy"), "-i", stick, tmp_path / "new.imb", "::new.imb"], check=True)
    with boot(dev_image, dev=True, sticks=[stick, other]) as machine:
        machine.wait_for_console("sticks: vdb is mounted", 30)
        assert machine.sh("cat /run/inferd/usb/vdb/new.imb") == "a bundle"
        assert machine.root("touch /run/inferd/usb/vdb/x")[0] != 0
        assert {machine.sh(f"readlink /run/inferd/slots/{letter}")[:8] for letter in "ab"} == {"/dev/vda"}
        assert machine.sh("mount | grep -c ext4") == "1"
        assert re.search(r"two media have a system: rootfs-a of vda\d+ is used, not vdc\d+; take the other medium out", machine.console())


def test_an_empty_slot_is_skipped_for_the_one_that_holds_a_root_filesystem(boot, production_image):
    with boot(production_image[0], slot="b", wait=False) as machine:
        machine.wait_for_console(r"slot b holds no root filesystem; using slot a", 120)
        machine.wait_for_console(r"INFERD-UP \S+ slot=a", 120)


def test_without_any_root_filesystem_it_says_so_and_restarts(boot, production_image, tmp_path):
    medium = tmp_path / "medium.img"
    shutil.copyfile(production_image[0], medium)
    part = next(part for part in layouts.read_gpt(medium)[1] if part.name == "rootfs-a")
    with open(medium, "r+b") as file:
        file.seek(part.offset)
        file.write(bytes(4096))
    with boot(medium, wait=False) as machine:
        # QEMU runs with -no-reboot: a restart of the board ends it.
        machine.wait_exit(180)
        assert "no slot holds a root filesystem" in machine.console()


def test_without_a_dhcp_server_it_takes_a_link_local_address(boot, production_image):
    with boot(production_image[0], dhcp=False, wait=False) as machine:
        machine.wait_for_console(r"INFERD-NET eth0 169\.254\.\d+\.\d+ \(no DHCP server answers; still asking\)", 180)


def test_the_answer_of_a_stranger_path_is_a_json_404(appliance):
    answer = appliance.request("/no/such/path")
    assert answer.status == 404 and answer.json()
