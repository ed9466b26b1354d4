"""The resource monitor: what a recorded machine's readings become on the wire, and that no request waits for a sensor."""

import http.client
import json
import os
import re
import subprocess

import hosttools
import places
import pytest
from contract.test_metrics import classic, samples, scrape
from contract.test_probes import check
from contract.wire import ask
from helpers import until

RULES = places.ROOT / "app/api/assets/alert_rules.yml"


class Machine:
    """A recorded /proc and /sys that a daemon reads in place of the kernel's, and that a test rewrites."""

    def __init__(self, folder):
        self.folder = folder
        self.ticks = 0
        (folder / "data").mkdir(parents=True)
        self.write("proc/uptime", "100.00 100.00\n")
        self.write("proc/self/io", "write_bytes: 0\n")
        self.memory(40)
        self.cpu(0)

    def write(self, path, text):
        """Replaces a file as a whole: a reader sees the old text or the new one."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(target.name + ".new")
        beside.write_text(text)
        beside.rename(target)

    def memory(self, used):
        """Percent of the memory in use."""
        self.write("proc/meminfo", f"MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: {1000 - 10 * used} kB\n")

    def cpu(self, busy):
        """Another hundred ticks, so many of them busy."""
        self.ticks += 1
        self.busy = getattr(self, "busy", 0) + busy
        self.write("proc/stat", f"cpu {self.busy} 0 0 {100 * self.ticks - self.busy} 0 0 0 0 0 0\n")

    def temperature(self, celsius, zone=0):
        """A thermal zone."""
        self.write(f"sys/class/thermal/thermal_zone{zone}/type", "cpu-thermal\n")
        self.write(f"sys/class/thermal/thermal_zone{zone}/temp", f"{celsius * 1000}\n")

    def config(self, more="", **limits):
        """Readings every second, two in a row; no disk of the machine under the test raises anything."""
        limits = {"disk_percent": 100, "disk_critical_percent": 100, **limits}
        text = "".join(f"{key} = {value}\n" for key, value in limits.items())
        return f'[monitor]\nroot = "{self.folder}"\ninterval_s = 1\nconsecutive = 2\n{text}[updates]\ndata_dir = "{self.folder}/data"\n{more}'


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "machine")


def readings(daemon, more):
    """Waits for so many readings that began after this call."""
    now = daemon.request("/api/v1/monitoring/status").json()["readings"]
    # The one that runs now may have begun before.
    until(lambda: daemon.request("/api/v1/monitoring/status").json()["readings"] >= now + more + 1, daemon)


def raised(daemon):
    return {a["alert"]: a["severity"] for a in daemon.request("/api/v1/alerts").json()["active"]}


def test_every_route_of_the_monitor_is_as_described(native, machine):
    machine.temperature(90)
    daemon = native(config=machine.config())
    document = daemon.request("/openapi.json").json()
    until(lambda: raised(daemon), daemon)
    for path in ("/api/v1/monitoring/status", "/api/v1/alerts", "/health/performance", "/alert_rules.yml", "/status"):
        answer = ask(daemon, "GET", path)
        assert answer.status == 200, answer
        check(document, path, "GET", answer)
    refused = ask(daemon, "GET", "/api/v1/alerts/events?since=x")
    assert refused.status == 400
    check(document, "/api/v1/alerts/events", "GET", refused)


def test_the_status_has_the_seeds_fields_and_the_newest_reading(native, machine):
    machine.memory(40)
    daemon = native(config=machine.config(cpu_percent=70, memory_percent=75))
    until(lambda: daemon.request("/api/v1/monitoring/status").json()["readings"] >= 1, daemon)
    status = daemon.request("/api/v1/monitoring/status").json()
    monitoring, resources = status["monitoring_status"], status["resource_status"]
    assert {key: monitoring[key] for key in ("monitoring_active", "interval", "thread_name", "thread_alive")} == {
        "monitoring_active": True, "interval": 1, "thread_name": "monitor", "thread_alive": True,
    }
    assert monitoring["resource_monitor_status"] == resources
    assert resources["thresholds"] == {"cpu_threshold": 70, "memory_threshold": 75}
    assert (resources["monitor_interval"], resources["gpu_available"]) == (1, False)
    current = resources["current_resources"]
    assert set(current) == {"cpu_percent", "memory_percent", "memory_used_bytes", "disk_percent", "timestamp"}
    assert (current["memory_percent"], current["memory_used_bytes"]) == (40, 400 << 10)
    assert abs(status["timestamp"] - current["timestamp"]) < 3600

    def thirty_percent():
        # Only the reading that follows sees it.
        machine.cpu(30)
        readings(daemon, 0)
        return daemon.request("/api/v1/monitoring/status").json()["sample"]["cpu_percent"] == 30

    until(thirty_percent, daemon)


def test_an_accelerator_of_a_jetson_is_in_the_seeds_fields(native, machine):
    machine.write("sys/devices/platform/bus@0/17000000.gpu/load", "425\n")
    machine.write("sys/class/thermal/thermal_zone1/type", "gpu-thermal\n")
    machine.write("sys/class/thermal/thermal_zone1/temp", "51500\n")
    daemon = native(config=machine.config())
    until(lambda: daemon.request("/api/v1/monitoring/status").json()["readings"] >= 1, daemon)
    resources = daemon.request("/api/v1/monitoring/status").json()["resource_status"]
    assert resources["gpu_available"] is True
    current = resources["current_resources"]
    assert (current["gpu_utilization_percent"], current["gpu_temperature"]) == (42.5, 51.5)
    assert "gpu_memory_used_bytes" not in current, "it has none of its own"
    assert daemon.request("/health/performance").json()["gpu_utilization"] == 42.5


class Events:
    """A listener to the alerts' stream."""

    def __init__(self, daemon, query="", headers=()):
        self.connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        self.connection.request("GET", f"/api/v1/alerts/events{query}", headers=dict(headers))
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200 and self.answer.headers["Content-Type"] == "text/event-stream"

    def next(self):
        """The next event: its name and its data."""
        fields = {}
        while (line := self.answer.readline()) != b"\n" or "event" not in fields:
            assert line, "the stream ended"
            name, _, value = line.decode().rstrip("\n").partition(": ")
            fields[name] = value
        return fields["event"], json.loads(fields["data"])


def test_an_alert_is_raised_once_and_cleared_once_and_told_everywhere(native, machine):
    daemon = native(config=machine.config())
    events = Events(daemon)
    assert events.next() == ("active", [])
    machine.memory(90)
    name, event = events.next()
    assert (name, event["number"], event["alert"], event["change"], event["severity"]) == ("alert", 1, "memory", "raised", "warning")
    assert (event["value"], event["threshold"]) == (90, 85)
    readings(daemon, 3)
    assert raised(daemon) == {"memory": "warning"}
    active = (("alert", "memory"), ("severity", "warning"))
    assert samples(daemon)["inferd_alert_active"][active] == 1
    machine.memory(82)
    readings(daemon, 3)
    assert raised(daemon) == {"memory": "warning"}, "within five points of the threshold it is not over"
    machine.memory(79)
    name, event = events.next()
    assert (name, event["number"], event["change"]) == ("alert", 2, "cleared")
    assert raised(daemon) == {} and samples(daemon)["inferd_alert_active"][active] == 0
    assert samples(daemon)["inferd_alerts_total"][(("alert", "memory"),)] == 1, "one alert for one episode"
    assert [e["number"] for e in daemon.request("/api/v1/alerts").json()["recent"]] == [1, 2]
    again = Events(daemon, headers={"Last-Event-ID": "1"})
    assert (again.next()[0], again.next()[1]["number"]) == ("active", 2), "as a browser comes back"
    entries = daemon.request("/api/v1/history").json()["entries"]
    alerts = [e["detail"]["change"] for e in entries if e["kind"] == "alert"]
    assert alerts == ["cleared", "raised"], entries
    daemon.logged("over: ")
    log = daemon.log_text()
    assert log.count("90 % of the memory is in use") == 1 and log.count("over: ") == 1, log


def test_a_threshold_of_nothing_is_passed_by_the_real_machine(native):
    daemon = native(config="[monitor]\nmemory_percent = 0\nmemory_critical_percent = 0\ninterval_s = 1\nconsecutive = 1\n")
    until(lambda: raised(daemon).get("memory") == "critical", daemon)
    assert daemon.request("/healthz").status == 200, "an alert costs no request"
    assert daemon.request("/health/performance").json()["status"] == "degraded"


def test_critical_load_sheds_and_inference_goes_on(native, machine, walk):
    daemon = native(config=machine.config())
    machine.memory(97)
    until(lambda: samples(daemon).get("inferd_shedding") == {(): 1}, daemon)
    assert ask(daemon, "POST", "/infer", json.dumps(walk)).status == 200
    assert daemon.request("/status").json()["shed"] == "optional"
    machine.memory(50)
    until(lambda: samples(daemon)["inferd_shedding"] == {(): 0}, daemon)


def test_a_benchmark_that_is_refused_for_want_of_room_names_the_alert(native):
    daemon = native(config="[monitor]\nmemory_percent = 0\nmemory_critical_percent = 0\ninterval_s = 1\nconsecutive = 1\n")
    until(lambda: samples(daemon).get("inferd_shedding") == {(): 1}, daemon)
    refused = ask(daemon, "POST", "/api/v1/benchmarks", "{}")
    assert refused.status == 503 and refused.json()["error"] == "shedding"
    assert "the device sheds optional work; no benchmark begins: alert memory, " in refused.json()["detail"]


def test_a_sensor_that_hangs_delays_no_request_and_no_other_reading(native, machine):
    machine.temperature(40, zone=0)
    machine.temperature(50, zone=2)
    zone = machine.folder / "sys/class/thermal/thermal_zone1"
    zone.mkdir(parents=True)
    (zone / "type").write_text("sick\n")
    os.mkfifo(zone / "temp")
    daemon = native(config=machine.config())
    until(lambda: samples(daemon).get("inferd_monitor_hanging") == {(("sensor", "thermal_zone1"),): 1}, daemon)
    readings(daemon, 2)
    sample = daemon.request("/api/v1/monitoring/status").json()["sample"]
    assert [t["celsius"] for t in sample["temperatures"]] == [40, 50]
    # It comes back, and is read again.
    with open(zone / "temp", "w") as sensor:
        (zone / "temp.new").write_text("60000\n")
        (zone / "temp.new").rename(zone / "temp")
        sensor.write("1\n")
    until(lambda: "inferd_monitor_hanging" not in samples(daemon), daemon)
    until(lambda: len(daemon.request("/api/v1/monitoring/status").json()["sample"]["temperatures"]) == 3, daemon)


def test_an_open_breaker_is_an_alert(native, machine):
    daemon = native(models=[places.DEFAULT_MODEL, places.ROOT / "tests/models/fault-panic"],
                    config=machine.config("[hosts]\nbreaker_pause_s = 300\n"))
    assert daemon.request("/health/performance").json()["circuit_breaker_state"] == "closed"
    tensors = [{"name": name, "shape": [4], "datatype": "INT32", "data": data} for name, data in (("a", [-(2**31)] * 4), ("b", [-1] * 4))]

    def degraded():
        # One that comes while the host is started anew is refused, too, and counts for nothing.
        assert daemon.request("/v2/models/fault-panic/infer", {"inputs": tensors}).status == 503
        return daemon.request("/health/performance").json()["status"] == "degraded"

    until(degraded, daemon)
    until(lambda: raised(daemon) == {"breaker_open": "critical"}, daemon)
    [alert] = daemon.request("/api/v1/alerts").json()["active"]
    assert alert["about"] == "cpu of fault-panic" and alert["sentence"] == "the circuit breaker of cpu of fault-panic is open"
    performance = daemon.request("/health/performance").json()
    assert (performance["status"], performance["circuit_breaker_state"]) == ("degraded", "open")


def test_writes_over_the_budget_are_counted_and_alarmed(native, machine):
    daemon = native(config=machine.config("[wear]\ndaily_write_mib = 1\n"))
    readings(daemon, 1)
    machine.write("proc/self/io", f"write_bytes: {3 << 19}\n")
    until(lambda: raised(daemon) == {"write_budget": "warning"}, daemon)
    found = samples(daemon)
    assert found["inferd_data_written_bytes_total"] == {(): 3 << 19}
    assert found["inferd_data_write_budget_bytes"] == {(): 1 << 20}
    source = daemon.request("/api/v1/monitoring/status").json()["sample"]["wear"]["source"]
    assert source == {"counts": "process"}, "the recorded machine has no partition for it, and that is said"


def test_what_the_machine_does_not_tell_has_no_sample(native, machine):
    (machine.folder / "proc/meminfo").unlink()
    daemon = native(config=machine.config())
    readings(daemon, 2)
    found = samples(daemon)
    for name in ("memory_usage_bytes", "inferd_temperature_celsius", "inferd_accelerator_load_ratio", "inferd_throttled", "inferd_pressure_ratio"):
        assert name not in found, name
    assert daemon.request("/api/v1/monitoring/status").json()["resource_status"]["current_resources"]["memory_percent"] is None
    assert daemon.request("/health/performance").json()["gpu_utilization"] is None


def test_the_seed_services_names_are_a_switch(native, machine):
    daemon = native(config=machine.config("[compat]\nmetric_aliases = true\n"))
    readings(daemon, 1)
    found = samples(daemon)
    assert found["edge_memory_usage_percent"] == {(): 40}
    assert {"edge_high_cpu_alerts_total", "edge_high_memory_alerts_total", "edge_memory_usage_bytes"} <= set(found)


def test_its_metrics_pass_promtool(native, machine):
    machine.temperature(50)
    machine.write("sys/devices/platform/bus@0/17000000.gpu/load", "425\n")
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    for what in ("cpu", "memory", "io"):
        machine.write(f"proc/pressure/{what}", "some avg10=0.00 avg60=0 avg300=0 total=0\nfull avg10=0.00 avg60=0 avg300=0 total=0\n")
    daemon = native(config=machine.config())
    machine.cpu(10)
    until(lambda: "cpu_usage_percent" in samples(daemon), daemon)
    promtool = hosttools.Tools(["prometheus"]).path("promtool")
    run = subprocess.run([promtool, "check", "metrics"], input=scrape(daemon)[1], text=True, capture_output=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# Ports that are not there, so that both are told as unplugged.
SENSED = '[[sources]]\nname = "arm"\nkind = "serial"\npath = "/dev/inferd-arm"\n[[actuators]]\nname = "hand"\npath = "/dev/inferd-hand"\nneutral = [1500]\n'


def test_the_served_rules_are_good_and_every_metric_in_them_exists(native, machine, walk, tmp_path):
    daemon = native(config=machine.config(SENSED))
    assert ask(daemon, "POST", "/infer", json.dumps(walk)).status == 200
    ask(daemon, "POST", "/infer", "{}")
    served = ask(daemon, "GET", "/alert_rules.yml").body
    assert served == RULES.read_bytes()
    (rules := tmp_path / "rules.yml").write_bytes(served)
    promtool = hosttools.Tools(["prometheus"]).path("promtool")
    run = subprocess.run([promtool, "check", "rules", "--lint-fatal", rules], text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    exported = {sample.name for family in classic(scrape(daemon)[1]) for sample in family.samples}
    # Those that stand for what this machine has not.
    exported |= {"up", "inferd_monitor_hanging", "inferd_flash_life_used_ratio"}
    source = (places.ROOT / "app/api/src/metrics/monitor.rs").read_text()
    assert all(f'"{name}"' in source for name in ("inferd_monitor_hanging", "inferd_flash_life_used_ratio"))
    assert named(served.decode()) <= exported


def judged(rules, tmp_path, series, *, minutes, alert, labels, summary):
    """Holds the rules to an alert that they raise after so many minutes of these series, one value a minute; `labels` None: to none."""
    labels = labels and {**labels, "instance": "device"}
    text = lambda name: name.replace("{", '{instance="device",')  # noqa: E731
    test = {
        "rule_files": [str(rules)],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": text(name), "values": values} for name, values in series],
            "alert_rule_test": [{
                "eval_time": f"{minutes}m",
                "alertname": alert,
                "exp_alerts": [{"exp_labels": labels, "exp_annotations": {"summary": summary}}] if labels else [],
            }],
        }],
    }
    # JSON is YAML.
    (file := tmp_path / "judged.yml").write_text(json.dumps(test))
    promtool = hosttools.Tools(["prometheus"]).path("promtool")
    run = subprocess.run([promtool, "test", "rules", file], text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_rules_tell_of_a_sensor_and_a_hand_that_a_device_shows_to_be_gone(native, machine, tmp_path):
    """What the device exports, held for some minutes, is what Prometheus judges: labels and their values are the real ones."""
    daemon = native(config=machine.config(SENSED))

    def gone(name):
        return {dict(labels)["state"] for labels, value in samples(daemon)[name].items() if value} == {"unplugged"}

    until(lambda: gone("source_state") and gone("actuator_state"), daemon)
    page = scrape(daemon)[1].splitlines()
    shown = [line.rsplit(" ", 1) for line in page if line.startswith(("source_state{", "actuator_state{", "emg_gate_state{"))]
    held = [(name, f"{value}x5") for name, value in shown]
    for alert, labels, what in (
        ("InferdSourceGone", {"source": "arm"}, "source arm is unplugged; GET /api/v1/sources says why"),
        ("InferdActuatorStands", {"actuator": "hand"}, "actuator hand is unplugged; GET /api/v1/actuators says why"),
    ):
        raised = {**labels, "state": "unplugged", "severity": "warning"}
        judged(RULES, tmp_path, held, minutes=3, alert=alert, labels=raised, summary=f"device: {what}")
    well = [(name, "1x5" if 'state="live"' in name else "0x5") for name, _ in held]
    judged(RULES, tmp_path, well, minutes=3, alert="InferdSourceGone", labels=None, summary="")
    # One of fifty, and one of a thousand.
    of = {"source": "arm", "severity": "warning"}
    for dropped, labels in ((60, of), (3, None)):
        series = [('source_windows_total{source="arm"}', f"0+{3000 - dropped}x20"), ('source_dropped_windows_total{source="arm"}', f"0+{dropped}x20")]
        summary = "device: 2% of the windows of arm were too old before the model was free"
        judged(RULES, tmp_path, series, minutes=15, alert="InferdWindowsDropped", labels=labels, summary=summary)
    released = [('emg_gate_state{source="arm",state="released"}', "1x20"), ('source_state{source="arm",state="live"}', "1x20")]
    summary = "device: nothing that is recognised in arm may be acted on"
    judged(RULES, tmp_path, released, minutes=15, alert="InferdGateReleased", labels={**of, "state": "released"}, summary=summary)


def test_every_query_of_the_grafana_dashboard_is_good_and_every_metric_and_label_in_it_exists(native, machine, walk, tmp_path):
    """A label of a legend that a metric does not have is an empty name on the screen."""
    machine.temperature(50)
    updates = "slot_size_mib = 16\n"
    source = '[[sources]]\nname = "arm"\nkind = "synthetic"\n'
    daemon = native(config=machine.config(updates + source), models=places.SHIPPED_MODELS, arguments=["--updates-dir", tmp_path / "updates"])
    assert ask(daemon, "POST", "/infer", json.dumps(walk)).status == 200
    machine.cpu(10)
    until(lambda: {"cpu_usage_percent", "inferd_temperature_celsius", "inferd_slot_active"} <= set(samples(daemon)), daemon)
    until(lambda: any(samples(daemon)["emg_predictions_total"].values()), daemon)
    labels = {}
    for family in classic(scrape(daemon)[1]):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    page = json.loads((places.ROOT / "board/common/grafana/inferd.json").read_text())
    queries = [(target["expr"], target["legendFormat"]) for panel in page["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 20
    rules = "".join(f"      - record: query:{i}:x\n        expr: {json.dumps(expr)}\n" for i, (expr, _) in enumerate(queries))
    for variable, value in (("$__rate_interval", "1m"), ("$instance", ".*")):
        rules = rules.replace(variable, value)
    (file := tmp_path / "queries.yml").write_text(f"groups:\n  - name: queries\n    rules:\n{rules}")
    promtool = hosttools.Tools(["prometheus"]).path("promtool")
    run = subprocess.run([promtool, "check", "rules", file], text=True, capture_output=True)
    assert run.returncode == 0, run.stdout + run.stderr
    for expr, legend in queries:
        metrics = re.findall(r"([a-z_][a-z_0-9]*)\{", expr)
        assert metrics and set(metrics) <= set(labels), expr
        wanted = set(re.findall(r"\{\{(\w+)\}\}", legend)) - {"instance"}
        kept = re.search(r"by \(([^)]*)\)", expr)
        has = {label.strip() for label in kept[1].split(",")} if kept else set.union(*(labels[m] for m in metrics))
        assert wanted <= has and has - {"instance", "le"} <= set.union(*(labels[m] for m in metrics)), (expr, legend)


def test_no_mistake_of_a_client_counts_as_an_error_of_the_device(native, machine, walk):
    key = [("X-API-Key", "correct-horse-battery")]
    settings = '[security]\napi_key = "correct-horse-battery"\nopen_inference = false\nrate_limit_per_s = 1\nrate_limit_burst = 8\n'
    daemon = native(config=machine.config(settings))
    assert ask(daemon, "POST", "/infer", json.dumps(walk), headers=key).status == 200
    assert ask(daemon, "POST", "/infer", "{}", headers=key).status == 422
    assert ask(daemon, "POST", "/infer", json.dumps(walk)).status == 401
    assert ask(daemon, "POST", "/infer", " " * (11 << 20), headers=key).status == 413
    assert ask(daemon, "POST", "/v2/models/nobody/infer", "{}", headers=key).status == 404
    until(lambda: ask(daemon, "POST", "/infer", "{}", headers=key).status == 429, daemon)
    told = {dict(labels)["outcome"] for labels in samples(daemon)["inferd_requests_total"]}
    assert told == {"success", "validation_error", "forbidden", "payload_too_large", "not_found", "rate_limited"}
    leave_out = set(re.findall(r'outcome!~"([^"]+)"', RULES.read_text()))
    assert len(leave_out) == 1, "every rule means the same"
    assert all(re.fullmatch(*leave_out, outcome) for outcome in told)
    assert not re.fullmatch(*leave_out, "host_lost")


def named(rules):
    """The metrics in the expressions of a rules file."""
    found = set()
    lines, at = rules.splitlines(), 0
    while at < len(lines):
        if match := re.match(r"(\s+)expr: (.*)", lines[at]):
            text = match[2]
            while at + 1 < len(lines) and lines[at + 1].startswith(match[1] + "  "):
                at += 1
                text += " " + lines[at]
            text = re.sub(r"\{[^}]*\}|\[[^\]]*\]|by \([^)]*\)", " ", text)
            words = re.findall(r"[a-z_][a-z_0-9]*", text)
            found |= {w for w in words if "_" in w or w == "up"} - {"histogram_quantile"}
        at += 1
    assert {"up", "inferd_alert_active", "inferd_requests_total"} <= found, found
    return found
