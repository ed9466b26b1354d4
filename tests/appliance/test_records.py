"""What the booted appliance writes down and shows, through a power cut and safe mode, and what a factory reset leaves of it.

One medium and one story; each start of it takes an emulated board half a minute."""

import contextlib
import gzip
import json
import shutil
import time

import jsonschema
import layout as layouts
import places
import pytest
from appliance import device, variants
from appliance.test_ota import EASY, first_number

SCHEMA = json.loads((places.ROOT / "app/watch/telemetry.schema.json").read_text())
DAEMON = "for p in $(pidof inferd); do grep -qE 'engine-host|keeper' /proc/$p/cmdline || echo $p; done"
# What whoever provisions a device puts on its boot partition. An emulated board is always busy, so nothing is shed.
PROVISIONED = """\
[security]
api_key = "{api_key}"
[updates]
allow_dev = true
[telemetry]
enabled = true
interval_s = 1
write_every_s = 1
[capture]
enabled = true
threshold_percent = 100
[monitor]
shed_at = "off"
[panel]
kind = "simulated"
[tls]
self_signed = true
listen = ["0.0.0.0:9443"]
"""
CONFIGURED = PROVISIONED + "[server]\ndocs_enabled = false\n"
# With one mistake, as a first file may have it.
CLOSING = """\
[device]
hostnme = "shop-3"
[security]
open_reads = false
open_inference = false
admin_keys = ["{api_key}"]
"""
# Emulation on a busy machine.
PATIENCE_S = 240


class Unit:
    """The appliance on a medium that keeps what it writes."""

    def __init__(self, machine, api_key):
        self.machine, self.api_key = machine, api_key

    def until(self, condition, what):
        """Waits for something that happens by itself; while nobody answers, it has not happened."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                if found := condition():
                    return found
            assert time.monotonic() < end, f"it did not come to this: {what}\n{self.machine.console()[-2000:]}"
            time.sleep(0.05)

    def page(self, path):
        """A page that is JSON."""
        answer = self.machine.request(path)
        assert answer.status == 200, answer.body
        return answer.json()

    def shows(self):
        """What the LED shows."""
        return self.page("/status")["panel"]["shows"]

    def order(self, path):
        """An order to the keeper, by who may give it."""
        answer = self.machine.request(path, {"why": "a test"}, method="POST", headers={"X-API-Key": self.api_key})
        assert answer.status == 202, answer.body

    def shown_until(self, wanted):
        """Everything the LED shows from now on, in order, until it shows this."""
        seen = []

        def look():
            if (now := self.shows()) not in seen[-1:]:
                seen.append(now)
            return seen[-1] == wanted

        self.until(look, f"the LED shows {wanted}")
        return seen

    def history(self, store):
        """The entries of one of the two histories, newest first."""
        return [entry for entry in self.page("/api/v1/history?limit=512")["entries"] if entry["store"] == store]

    def telemetry(self):
        """Every line that is on the medium: each is whole and as the schema describes it."""
        found = []
        for file in self.page("/api/v1/telemetry")["files"]:
            content = self.machine.request(f"/api/v1/telemetry/{file['name']}").body
            content = gzip.decompress(content) if file["name"].endswith(".gz") else content
            assert content.endswith(b"\n"), "a line that is not whole"
            for line in content.splitlines():
                jsonschema.Draft202012Validator(SCHEMA).validate(page := json.loads(line))
                found.append(page)
        return found

    def captures(self):
        """The windows it has captured; for an admin."""
        answer = self.machine.request("/api/v1/captures", headers={"X-API-Key": self.api_key})
        assert answer.status == 200, answer.body
        return answer.json()["files"]

    def crash_until_safe_mode(self):
        """Kills the daemon until it is started in safe mode."""
        for _ in range(6):
            before = self.until(lambda: self.machine.root(DAEMON)[1].split(), "a daemon")
            self.machine.sh(f"kill -KILL {before[0]}")
            self.until(lambda: self.machine.root(DAEMON)[1].split() not in ([], before), "another daemon")  # noqa: B023
            self.until(lambda: self.machine.request("/livez").status == 200, "an answer")
            if self.page("/status")["safe_mode"]:
                return
        raise AssertionError("no safe mode")


@pytest.fixture
def unit(boot, patient_image, dev_keys, tmp_path):
    """A provisioned device, switched on for the first time; not ready yet."""
    medium = shutil.copyfile(patient_image, tmp_path / "medium.img")
    device.put_on_boot_partition(medium, "inferd.toml", PROVISIONED.format(api_key=dev_keys.api_key), tmp_path)
    with boot(medium, dev=True, keep_writes=True, restarts=True, wait=False) as machine:
        yield Unit(machine, dev_keys.api_key)


def test_what_is_written_down_survives_a_power_cut_the_led_tells_and_a_factory_reset_forgets_all_but_the_evidence(
    unit, walk, inferctl, dev_keys, tmp_path
):
    machine = unit.machine

    # The first start: booting, which a fast machine is done with before it answers, then healthy.
    seen = unit.shown_until("healthy")
    assert set(seen) <= {"booting", "degraded", "healthy"}, seen
    machine.wait_ready(PATIENCE_S)
    factory = first_number(machine.infer(walk))

    # Everything a device comes to have: a configuration, a bundle with its floor, a key of its own, captured windows.
    bundle, identity = device.Workshop(inferctl, dev_keys, tmp_path).bundle(
        "better", variants.make(tmp_path / "better", "1.1.0", shift=0.25), 1, **EASY
    )
    pushed = machine.request("/api/v1/bundle", bundle.read_bytes(), method="PUT", headers={"X-API-Key": unit.api_key}, timeout=300)
    assert pushed.status in (200, 202), pushed.body
    unit.until(lambda: device.status(machine.url)["trial"] is None, "the bundle is judged")
    before = device.status(machine.url)
    assert before["serving"]["bundle"] == identity and before["floors"], before
    assert first_number(machine.infer(walk)) == pytest.approx(factory + 0.25, abs=1e-3)
    unit.until(unit.captures, "a captured window")
    fingerprint = unit.page("/status")["tls"]["fingerprint_sha256"]
    machine.sh(f"cat >/data/inferd.toml <<'END'\n{CONFIGURED.format(api_key=unit.api_key)}END\nsync")
    unit.until(lambda: sum(line["kind"] == "sample" for line in unit.telemetry()) >= 3, "three samples")

    # The plug is pulled while lines are being written.
    kept, boot = unit.telemetry(), unit.page("/status")["boot"]["number"]
    # One thread writes: where more has come, what was there before has reached the medium.
    unit.until(lambda: len(unit.telemetry()) > len(kept), "more lines")
    machine.cut_power()
    machine.power_on()
    machine.wait_ready(PATIENCE_S)
    now = unit.page("/status")
    assert (now["boot"]["number"], now["boot"]["reason"]) == (boot + 1, "power"), now["boot"]
    assert machine.request("/docs").status == 404, "the configuration of /data is in use"
    assert now["tls"]["fingerprint_sha256"] == fingerprint
    unit.until(lambda: unit.telemetry()[-1]["boot"] == boot + 1, "lines of this boot")
    lines = unit.telemetry()
    assert lines[: len(kept)] == kept, "what was on the medium is there, line for line"
    starts = [line["boot"] for line in lines if line["kind"] == "start"]
    assert starts == [boot, boot + 1] and not [line for line in lines if line["kind"] == "stop"], "a start without a stop tells of the cut"

    # Safe mode shows as such.
    unit.crash_until_safe_mode()
    assert unit.shown_until("safe-mode")[-1] == "safe-mode"
    unit.order("/api/v1/safe-mode/leave")
    unit.shown_until("healthy")
    evidence = unit.history("keeper")

    # As it was delivered.
    unit.order("/api/v1/factory-reset")
    machine.forget_shell()
    unit.until(lambda: unit.page("/status")["boot"]["number"] == boot + 2, "another boot")
    machine.wait_ready(PATIENCE_S)
    machine.wait_for_console("boot: factory reset: forgetting", 60)
    now, slots = unit.page("/status"), device.status(machine.url)
    assert now["boot"]["reason"] == "request" and "factory reset: asked for by" in now["boot"]["sentence"], now["boot"]
    assert machine.request("/docs").status == 200, "the configuration of the boot partition is in use again"
    assert now["tls"]["fingerprint_sha256"] == fingerprint, "it is the same device"
    assert first_number(machine.infer(walk)) == pytest.approx(factory + 0.25, abs=1e-3), "with its committed model"
    assert (slots["serving"]["bundle"], slots["floors"]) == (identity, before["floors"]), slots
    assert {slot["status"] for slot in slots["slots"]} == {"committed", "empty"}
    assert {line["boot"] for line in unit.telemetry()} <= {boot + 2}, "only what came since"
    # The key went from the card to the device when it was first started, and the device has forgotten it.
    answer = machine.request("/api/v1/captures", headers={"X-API-Key": unit.api_key})
    assert answer.status in (401, 403), answer.body
    assert int(machine.sh("find /data/inferd/capture -type f 2>/dev/null | wc -l")) <= 1, "only what came since"
    assert all(entry["boot"] == boot + 2 for entry in unit.history("daemon"))
    assert "factory-reset" not in machine.sh("ls /data/keeper; ls /data"), "the mark is gone: the next start forgets nothing"
    # The evidence stays: every entry of before, and who asked for this.
    told = unit.history("keeper")
    assert told[-len(evidence) :] == evidence
    assert any(entry["kind"] == "request" and "factory reset" in entry["sentence"] for entry in told[: -len(evidence)]), told

    # As it is sold: nothing of it is left, in no file and in no block of the data partition. The next owner's card has a mistake.
    medium = tmp_path / "medium.img"
    left = {name: f"left-in-{name}-{time.monotonic_ns()}" for name in ("inferd.toml", "identity/ssh/dropbear", "inferd/capture/window", "keeper/system.json")}
    for name, content in left.items():
        machine.sh(f"mkdir -p $(dirname /data/{name}) && echo '# {content}' >/data/{name}")
    left["the key of its certificate"] = machine.sh("cat /data/inferd/tls/key.pem").splitlines()[1].strip()
    left["its identity"] = machine.sh("cat /data/identity/id")
    machine.sh("echo everything >/data/keeper/factory-reset && sync")
    machine.cut_power()
    assert not [name for name, content in left.items() if content.encode() not in partition(medium, "data")], "they can be found"
    device.put_on_boot_partition(medium, "inferd.toml", CLOSING.format(api_key=dev_keys.api_key), tmp_path)
    machine.power_on()
    machine.wait_ready(PATIENCE_S)
    machine.wait_for_console("boot: factory reset: forgetting everything", PATIENCE_S)
    machine.wait_for_console("provision: CLOSED: inferd.toml is refused", PATIENCE_S)
    assert machine.request("/status").status in (401, 403), "the defaults are open, and its file meant to shut them"
    assert machine.sh("cat /data/identity/id") != left["its identity"]
    assert "safe mode" not in machine.read("/data/keeper/history.jsonl")
    assert not {"factory-reset", "system.json"} & set(machine.sh("ls /data/keeper").split())
    machine.sh("sync")
    machine.cut_power()
    assert not [name for name, content in left.items() if content.encode() in partition(medium, "data")]
    assert [partition(medium, f"models-{letter}")[:4096] for letter in "ab"] == [bytes(4096)] * 2


def partition(medium, name):
    """What a partition of a medium holds."""
    part = next(part for part in layouts.read_gpt(medium)[1] if part.name == name)
    with medium.open("rb") as file:
        file.seek(part.offset)
        return file.read(part.size)
