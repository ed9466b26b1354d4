"""Models arrive over the air on the booted appliance: pushed as its operator pushes them, watched, refused, taken back, cut."""

import contextlib
import http.client
import json
import shutil
import subprocess
import threading
import time

import hosttools
import pytest
from appliance import device, variants
from helpers import request, until

# An emulated board is slow and its pace uneven: what a bundle may cost in time is not what these tests are about.
EASY = {"probation_seconds": 5, "probation_max_p99_ratio": 1000}
GATES = ["keys", "role", "revocation", "floor", "target", "engine", "memory", "disk", "install", "load", "golden", "flip"]

# In the appliance's shell: the process that is no engine host.
DAEMON = "$(for p in $(pidof inferd); do grep -qE 'engine-host|keeper' /proc/$p/cmdline || echo $p; done)"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model directories: two that are good and answer differently, and two that are bad."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "better": variants.make(folder / "better", "1.1.0", shift=0.25),
        "best": variants.make(folder / "best", "1.2.0", shift=-0.25),
        "large-better": variants.make(folder / "large-better", "1.1.0", shift=0.25, ballast=6 << 20),
        "large-best": variants.make(folder / "large-best", "1.2.0", shift=-0.25, ballast=6 << 20),
        "permuted": variants.make(folder / "permuted", "1.3.0", permuted=True),
        "untrue": variants.make(folder / "untrue", "1.3.1", permuted=True, golden=False),
    }


@pytest.fixture(scope="module")
def workshop(inferctl, dev_keys, tmp_path_factory):
    """Makes bundles."""
    return device.Workshop(inferctl, dev_keys, tmp_path_factory.mktemp("bundles"))


@pytest.fixture(scope="module")
def medium(patient_image, tmp_path_factory):
    """A medium that keeps what these tests write."""
    return shutil.copyfile(patient_image, tmp_path_factory.mktemp("medium") / "medium.img")


class Unit:
    """The appliance of this module; it can lose power and be started again."""

    def __init__(self, boot, medium, keys, inferctl):
        self.boot, self.medium, self.keys, self.inferctl = boot, medium, keys, inferctl
        self.machine = self.factory = None

    def on(self):
        """Switched on and ready."""
        if self.machine is None:
            self.machine = self.boot(self.medium, dev=True, keep_writes=True).__enter__()
        return self

    def answer_of(self, model):
        """The first latent number that a variant gives, from what the image's own model gave."""
        return pytest.approx(self.factory + {"better": 0.25, "best": -0.25}[model], abs=1e-3)

    def cut(self):
        """The plug is pulled."""
        self.machine.cut_power()
        self.machine.power_off()
        self.machine = None

    def off(self):
        """Switched off at the end."""
        if self.machine:
            self.machine.power_off()

    @property
    def url(self):
        return self.machine.url

    def status(self):
        """What it says of its slots."""
        return device.status(self.url)

    def watch(self):
        """Its events from now on."""
        page = self.status()
        return device.Watch(self.url, since=max([0, *(v["number"] for v in page["verdicts"])]))

    def curl(self, bundle, *flags):
        """Pushes a bundle with curl, as README.md says; the status and the answer."""
        command = [curl_program(), "-sS", "-T", bundle, "-H", f"X-API-Key: {self.keys.api_key}", "-w", "\n%{http_code}", *flags]
        done = subprocess.run([*command, f"{self.url}/api/v1/bundle"], capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        page, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(page)

    def push(self, bundle):
        """Pushes a bundle and looks away: the answer comes when it serves, or is refused, or never when power goes."""
        connection = device.connect(self.url, 300)

        def send():
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("PUT", "/api/v1/bundle", bundle.read_bytes(), {"X-API-Key": self.keys.api_key})
                connection.getresponse().read()

        threading.Thread(target=send, daemon=True).start()

    def ctl(self, *arguments):
        """Runs inferctl against it: (exit status, what it printed)."""
        command = [self.inferctl, "--url", self.url, "--api-key", self.keys.api_key, "--timeout", "60", *arguments]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=300)
        return done.returncode, done.stdout + done.stderr

    def settle(self):
        """Waits until nothing is on trial and what is staged was decided."""
        end = time.monotonic() + 180
        while True:
            page = self.status()
            if page["trial"] is None and page["install"] is None and all(s["status"] not in ("staged", "trial") for s in page["slots"]):
                return page
            assert time.monotonic() < end, f"the trial does not end: {page}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def unit(boot, medium, dev_keys, inferctl):
    """The appliance of this module, on."""
    unit = Unit(boot, medium, dev_keys, inferctl)
    yield unit
    unit.off()


@pytest.fixture(scope="module", autouse=True)
def factory(unit, walk):
    """What the image's own model answers, before anything is installed."""
    unit.on()
    unit.factory = served(unit, walk)


def curl_program():
    """This machine's curl, else Debian's."""
    return shutil.which("curl") or hosttools.Tools(["curl"]).path("curl")


class Load:
    """Clients that ask for inferences without a pause and keep what is not an answer, and which answers there were."""

    def __init__(self, url, window, clients=2):
        self.url, self.window = url, window
        self.failures, self.answers, self.count = [], set(), 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(60)

    def run(self):
        while not self.stop.is_set():
            answer = request(f"{self.url}/infer", self.window, timeout=60)
            self.count += 1
            if answer.status == 200:
                self.answers.add(first_number(answer.json()))
            else:
                self.failures.append((answer.status, answer.body))


def first_number(answer):
    """The first latent number, which tells the variants apart."""
    return round(answer["latent"][0], 4)


def served(unit, walk):
    return first_number(unit.machine.infer(walk))


def test_a_bundle_pushed_with_curl_passes_every_gate_and_replaces_the_model_under_load(unit, workshop, models, walk):
    before = served(unit, walk)
    assert unit.status()["serving"]["from"] == "factory"
    file, bundle = workshop.bundle("better", models["better"], 1, **EASY)
    watch = unit.watch()
    with Load(unit.url, walk) as load:
        status, page = unit.curl(file)
        assert status in (200, 201, 202), page
        assert watch.wait(lambda: watch.has("commit", bundle), 180), watch.verdicts
        after = served(unit, walk)
        until(lambda: after in load.answers, "an answer of the new model under load")
    gates = [verdict["gate"] for verdict in watch.verdicts if verdict["bundle"] == bundle]
    assert [gate for gate in gates if gate in GATES] == GATES, gates
    assert {verdict["outcome"] for verdict in watch.verdicts} == {"pass"}
    assert not load.failures and load.count > 10
    assert after == unit.answer_of("better")
    assert load.answers == {before, after}, "an answer of neither model, or of one of them only"
    page = unit.status()
    assert page["serving"]["bundle"] == bundle and page["floors"] == {"collar": 1}
    print(f"{load.count} requests during the update, none failed")


def test_inferctl_pushes_the_next_one_and_tells_every_gate(unit, workshop, models, walk):
    file, bundle = workshop.bundle("best", models["best"], 2, **EASY)
    status, said = unit.ctl("push", file, "--wait", "committed")
    assert status == 0, said
    for gate in ("keys", "golden", "commit"):
        assert gate in said, said
    page = unit.status()
    assert page["serving"]["bundle"] == bundle and page["floors"] == {"collar": 2}
    assert unit.ctl("slots")[1].count("committed") >= 1


def test_a_model_that_does_not_reproduce_its_golden_vectors_never_serves(unit, workshop, models, walk):
    before, serving = served(unit, walk), unit.settle()["serving"]
    file, bundle = workshop.bundle("untrue", models["untrue"], 3, **EASY)
    watch = unit.watch()
    with Load(unit.url, walk, clients=1) as load:
        status, said = unit.ctl("push", file, "--wait", "committed")
        assert status != 0 and "golden" in said, said
    assert watch.wait(lambda: watch.has("golden", bundle, "refuse"), 10), watch.verdicts
    assert not watch.has("flip", bundle)
    assert not load.failures and load.answers == {before}
    page = unit.settle()
    assert page["serving"]["bundle"] == serving["bundle"] and page["floors"] == {"collar": 2}
    verdict = next(v for v in page["verdicts"] if v["bundle"] == bundle and v["outcome"] == "refuse")
    assert verdict["gate"] == "golden" and verdict["sentence"] and verdict["evidence"]


def test_permuted_classes_are_seen_in_the_shadow_of_live_requests(unit, workshop, models, walk):
    before = served(unit, walk)
    file, bundle = workshop.bundle("shadowed", models["permuted"], 4, shadow_requests=10, shadow_max_latency_ratio=1000, **EASY)
    watch = unit.watch()
    with Load(unit.url, walk, clients=1) as load:
        unit.push(file)
        assert watch.wait(lambda: watch.has("shadow", bundle), 180), watch.verdicts
    assert watch.has("shadow", bundle, "refuse") and not watch.has("flip", bundle)
    assert not load.failures and load.answers == {before}
    unit.settle()


def test_permuted_classes_that_got_through_are_taken_back_in_probation(unit, workshop, models, walk):
    before = served(unit, walk)
    # Answers of the old model to compare with; a daemon that has just started has none.
    for _ in range(40):
        assert served(unit, walk) == before
    floors = unit.status()["floors"]
    file, bundle = workshop.bundle("drifting", models["permuted"], 5, **{**EASY, "probation_seconds": 60})
    watch = unit.watch()
    with Load(unit.url, walk, clients=1) as load:
        unit.push(file)
        assert watch.wait(lambda: watch.has("return", bundle), 180), watch.verdicts
        page = unit.settle()
        assert served(unit, walk) == before
    assert not load.failures
    assert page["floors"] == floors, "the floor rose without a commit"
    verdict = next(v for v in page["verdicts"] if v["bundle"] == bundle and v["outcome"] == "reverse")
    assert "drift" in verdict["code"] + verdict["sentence"], verdict


def test_a_bundle_for_another_board_or_of_an_older_version_is_refused_before_its_payload(unit, workshop, models, walk):
    unit.settle()
    for name, version, options, gate in (("other-board", 6, {"target": "rpi4"}, "target"), ("older", 1, {}, "floor")):
        file, bundle = workshop.bundle(name, models["better"], version, **EASY, **options)
        status, page = unit.curl(file)
        assert 400 <= status < 500, page
        assert page["verdict"]["gate"] == gate and page["verdict"]["outcome"] == "refuse"
        assert bundle not in [slot["bundle"] for slot in unit.status()["slots"]]


def test_a_rollback_brings_the_models_before_back_without_a_failed_request(unit, workshop, models, walk):
    unit.settle()
    file, bundle = workshop.bundle("again", models["better"], 7, **EASY)
    before = served(unit, walk)
    assert unit.ctl("push", file, "--wait", "committed")[0] == 0
    assert served(unit, walk) != before
    with Load(unit.url, walk, clients=1) as load:
        status, said = unit.ctl("rollback", "--reason", "the operator wants the old one")
        assert status == 0, said
        unit.settle()
        assert served(unit, walk) == before
    assert not load.failures
    page = unit.status()
    assert page["floors"] == {"collar": 7}, "a rollback must not lower the floor"
    assert page["serving"]["bundle"] != bundle


@pytest.mark.parametrize(("version", "phase"), [(11, "install"), (12, "gates"), (13, "probation"), (14, "commit")])
def test_power_lost_in_the_middle_leaves_the_old_model_or_the_new_one_and_the_update_goes_on(
    unit, workshop, models, walk, version, phase
):
    unit.settle()
    old = served(unit, walk)
    # Whichever serves now, the other one.
    name = "best" if old == unit.answer_of("better") else "better"
    new = unit.answer_of(name)
    # So large that the appliance has made a part of it durable before it has all of it.
    model = models["large-" + name] if phase == "install" else models[name]
    file, bundle = workshop.bundle(f"cut-{phase}", model, version, **EASY)
    watch = unit.watch()
    if phase == "install":
        send_part(unit, file, 5 << 20)
    else:
        unit.push(file)
        last = {"gates": "install", "probation": "flip", "commit": "commit"}[phase]
        assert watch.wait(lambda: watch.has(last, bundle, "pass"), 180), watch.verdicts
    unit.cut()
    unit.on()
    now = served(unit, walk)
    assert now in (old, new)
    page = unit.status()
    if phase == "commit":
        assert now == new, "the commit was seen"
    if phase == "install":
        assert now == old
        status, answer = unit.curl(file)
        assert status < 300, answer
        assert answer["bundle"]["saved"]["resumed"] > 0, f"nothing was kept of the interrupted transfer: {answer}"
    page = unit.settle()
    assert page["serving"]["bundle"] == bundle and served(unit, walk) == new, page["verdicts"]
    assert page["floors"]["collar"] == version
    assert not [v for v in page["verdicts"] if v["bundle"] == bundle and v["outcome"] in ("refuse", "reverse")]


def send_part(unit, file, size):
    """Sends the first bytes of a bundle, and waits until the appliance has made a part of them durable (it syncs after 4 MiB)."""
    raw = file.read_bytes()
    assert len(raw) > size
    connection = device.connect(unit.url, 60)
    connection.putrequest("PUT", "/api/v1/bundle")
    connection.putheader("X-API-Key", unit.keys.api_key)
    connection.putheader("Content-Length", str(len(raw)))
    connection.endheaders()
    connection.send(raw[:size])
    # The rest in small parts: how far it is, is told while something comes.
    for at in range(size, len(raw) - 1, 16 << 10):
        connection.send(raw[at : min(at + (16 << 10), len(raw) - 1)])
        if (unit.status()["install"] or {}).get("done", 0) >= (4 << 20) + (512 << 10):
            return
        time.sleep(0.1)
    raise AssertionError(f"no part of it was stored: {unit.status()}")


def quietly(ask):
    """What a daemon says that may not be there for a moment, else None."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask()


def start_trial(unit, workshop, models, walk, version):
    """Has a bundle on probation that serves, and lasts longer than the test: the number it answered before, and its id."""
    unit.settle()
    old = served(unit, walk)
    name = "best" if old == unit.answer_of("better") else "better"
    file, bundle = workshop.bundle(f"trial-{version}", models[name], version, **{**EASY, "probation_seconds": 600})
    watch = unit.watch()
    unit.push(file)
    assert watch.wait(lambda: watch.has("flip", bundle, "pass"), 180), watch.verdicts
    assert served(unit, walk) == unit.answer_of(name)
    return old, bundle


def assert_taken_back(unit, walk, old, bundle, code):
    """The bundle was taken back for this reason, and what served before serves."""
    page = unit.settle()
    reasons = [v["code"] for v in page["verdicts"] if v["bundle"] == bundle and v["outcome"] == "reverse"]
    assert code in reasons, page["verdicts"][-5:]
    assert served(unit, walk) == old and page["serving"]["bundle"] != bundle
    assert next(s["status"] for s in page["slots"] if s["bundle"] == bundle) == "bad"


def test_a_daemon_that_ends_by_itself_during_a_trial_takes_the_bundle_back(unit, workshop, models, walk):
    old, bundle = start_trial(unit, workshop, models, walk, 20)
    unit.machine.sh(f"kill -KILL {DAEMON}")
    end = time.monotonic() + 120
    while (trial := quietly(unit.status)) is None or trial["trial"]:
        assert time.monotonic() < end, "the trial does not end"
        time.sleep(0.2)
    unit.machine.wait_ready(120)
    assert_taken_back(unit, walk, old, bundle, "daemon-crashed")


def test_a_daemon_that_is_stopped_on_purpose_during_a_trial_goes_on_with_it(unit, workshop, models, walk):
    old, bundle = start_trial(unit, workshop, models, walk, 21)
    unit.machine.sh(f"kill -TERM {DAEMON}")
    end = time.monotonic() + 120
    while True:
        trial = (quietly(unit.status) or {}).get("trial")
        if trial and trial["phase"] == "probation" and trial["interruptions"] == 1:
            break
        assert time.monotonic() < end, "the trial does not go on"
        time.sleep(0.2)
    assert served(unit, walk) != old
    assert unit.ctl("rollback", "--reason", "enough seen")[0] == 0
    unit.settle()


def test_a_reset_by_the_watchdog_during_a_trial_takes_the_bundle_back(boot, patient_image, dev_keys, inferctl, workshop, models, walk, tmp_path):
    medium = shutil.copyfile(patient_image, tmp_path / "medium.img")
    with boot(medium, dev=True, keep_writes=True, restarts=True) as machine:
        unit = Unit(boot, medium, dev_keys, inferctl)
        unit.machine, unit.factory = machine, first_number(machine.infer(walk))
        old, bundle = start_trial(unit, workshop, models, walk, 1)
        boot_id = machine.sh("cat /proc/sys/kernel/random/boot_id")
        number = json.loads(machine.read("/run/inferd/keeper/state.json"))["boot"]
        # Nobody feeds it any more: the hardware restarts the machine.
        machine.sh("kill -STOP $(cat /run/inferd/keeper/pid)")
        machine.forget_shell()
        machine.wait_for_console(f"keeper: boot {number + 1}: ", 240)
        machine.wait_ready(240)
        assert machine.sh("cat /proc/sys/kernel/random/boot_id") != boot_id
        assert_taken_back(unit, walk, old, bundle, "watchdog-reset")


def test_a_slow_medium_costs_an_update_time_and_no_request(boot, patient_image, dev_keys, inferctl, workshop, models, walk, tmp_path):
    medium = shutil.copyfile(patient_image, tmp_path / "medium.img")
    unit = Unit(boot, medium, dev_keys, inferctl)
    with boot(medium, dev=True, keep_writes=True, write_speed=512 << 10) as machine:
        unit.machine, unit.factory = machine, first_number(machine.infer(walk))
        file, bundle = workshop.bundle("slow-medium", models["large-better"], 1, **EASY)
        watch = unit.watch()
        with Load(unit.url, walk, clients=1) as load:
            unit.push(file)
            assert watch.wait(lambda: watch.has("commit", bundle), 240), watch.verdicts
            after = served(unit, walk)
            until(lambda: after in load.answers, "an answer of the new model under load")
        at = {verdict["gate"]: verdict["uptime_ms"] for verdict in watch.verdicts}
        assert at["install"] - at["disk"] > 6000, "the medium was not slow"
        assert not load.failures and load.answers == {unit.factory, after}


@pytest.mark.parametrize("clock", ["1970-01-01T00:00:00", "2106-02-07T06:28:00"])
def test_a_clock_that_is_wrong_and_steps_keeps_no_update_from_being_judged(
    boot, patient_image, dev_keys, inferctl, workshop, models, walk, tmp_path, clock
):
    medium = shutil.copyfile(patient_image, tmp_path / "medium.img")
    unit = Unit(boot, medium, dev_keys, inferctl)
    with boot(medium, dev=True, keep_writes=True, clock=clock) as machine:
        assert machine.sh("date -u +%Y") == clock[:4]
        unit.machine, unit.factory = machine, first_number(machine.infer(walk))
        # Expired in 2001, if there were a clock to believe.
        file, bundle = workshop.bundle("clock", models["better"], 1, not_after=1_000_000_000, **EASY)
        watch = unit.watch()
        unit.push(file)
        assert watch.wait(lambda: watch.has("flip", bundle, "pass"), 180), watch.verdicts
        # Fifty years to the other side in the middle of probation.
        machine.sh(f"date -u -s '{'2020' if clock < '2000' else '1971'}-06-01 00:00:00'")
        assert watch.wait(lambda: watch.has("commit", bundle), 180), watch.verdicts
        assert served(unit, walk) == unit.answer_of("better")
        machine.cut_power()
    with boot(medium, dev=True, keep_writes=True, clock="1970-01-01T00:00:00") as machine:
        unit.machine = machine
        assert served(unit, walk) == unit.answer_of("better")
        assert unit.settle()["serving"]["bundle"] == bundle


def test_a_production_image_refuses_what_the_developers_key_signed(boot, make_image, workshop, dev_keys, models, walk, tmp_path):
    image = make_image("production-with-root.img", root=dev_keys.root)[0]
    device.put_on_boot_partition(image, "inferd.toml", f'[security]\napi_key = "{dev_keys.api_key}"\n', tmp_path)
    file, bundle = workshop.bundle("dev-signed", models["better"], 1, **EASY)
    with boot(image) as machine:
        before = first_number(machine.infer(walk))
        answer = request(
            f"{machine.url}/api/v1/bundle", file.read_bytes(), method="PUT", headers={"X-API-Key": dev_keys.api_key}
        )
        assert 400 <= answer.status < 500 and answer.json()["verdict"]["gate"] == "role", answer.body
        page = device.status(machine.url)
        assert page["trust"]["root_version"] >= 1 and not page["trust"]["dev"]
        assert first_number(machine.infer(walk)) == before
