"""The benchmark that chooses, on the real daemon with the real ONNX Runtime: jobs, their record and reports, the tool before them."""

import contextlib
import csv
import html.parser
import io
import itertools
import json
import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hosttools
import pytest
from helpers import request, until

from engines import quantised

JOBS = "/api/v1/benchmarks"
# Small, so that the suite stays quick; the numbers are not looked at.
SMALL = {"iterations": 20, "warm_up": 5, "most_repeats": 3, "batches": [2], "in_flight": [1, 2], "soak_s": 1}
LONG = {"iterations": 10000, "warm_up": 0, "repeats": 10, "most_repeats": 20, "batches": [], "in_flight": [], "soak_s": 600}


@pytest.fixture
def daemon_of(native, with_ort, tmp_path):
    """A daemon with both engines, whose benchmarks are kept in the same place when it is started again."""

    def start(**options):
        daemon = native(config=with_ort(more=f'[updates]\ndata_dir = "{tmp_path}/data"\n'), **options)
        until(lambda: daemon.request(JOBS).status == 200, "what was kept to be read")
        return daemon

    return start


def ask(daemon, wish):
    return daemon.request(JOBS, wish)


def begin(daemon, **wish):
    answer = ask(daemon, wish)
    assert answer.status == 202, answer.body
    number = answer.json()["id"]
    assert answer.headers["Location"] == f"{JOBS}/{number}"
    return number


def job(daemon, number):
    return daemon.request(f"{JOBS}/{number}").json()


def over(daemon, number):
    until(lambda: job(daemon, number)["state"] in ("completed", "failed", "cancelled"), "the end of the benchmark", timeout=120)
    return job(daemon, number)


def states(daemon):
    return [j["state"] for j in reversed(daemon.request(JOBS).json()["benchmarks"])]


def report(daemon, number, query=""):
    answer = daemon.request(f"{JOBS}/{number}/report{query}")
    assert answer.status == 200, answer.body
    return answer


def by_the_rule(record):
    """Of the rungs that were measured, all within the constraints, the one that has to be selected."""
    rungs = [(r["rung"], r["measured"]) for r in record["rungs"]]
    # In whole nanoseconds, as they were measured.
    least = min(round(m["latency"]["p50_ms"] * 1e6) for _, m in rungs)
    rungs = [(name, m) for name, m in rungs if round(m["latency"]["p50_ms"] * 1e6) * 100 <= least * 105]
    most = max(round(m["throughput_per_s"] * 1e9) for _, m in rungs)
    rungs = [(name, m) for name, m in rungs if round(m["throughput_per_s"] * 1e9) * 100 >= most * 95]
    return min(rungs, key=lambda r: (r[1]["memory"]["peak_bytes"], r[0]))[0]


class Page(html.parser.HTMLParser):
    """Whether every tag is closed, and what the page refers to."""

    VOID = {"meta", "rect", "line"}

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.outside, self.tags = [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.outside += [a for a in attributes if a[0] in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_benchmark_measures_both_engines_and_its_reports_stay_the_same(daemon_of, walk):
    daemon = daemon_of()
    # A baseline because it is asked for: whether the runs agree is the machine's matter.
    number = begin(daemon, **SMALL, constraints=["cosine>0.99", "p95_ms<10000"], baseline=True)
    done = over(daemon, number)
    assert done["state"] == "completed", done
    record = done["record"]
    assert [r["rung"] for r in record["rungs"]] == ["ort", "cpu"]
    for rung in record["rungs"]:
        numbers = rung["measured"]
        latency = numbers["latency"]
        assert 0 < latency["min_ms"] <= latency["p50_ms"] <= latency["p95_ms"] <= latency["p99_ms"] <= latency["max_ms"]
        assert latency["samples"] == 60 and numbers["errors"] == 0
        assert numbers["compute"]["p50_ms"] <= latency["p50_ms"]
        assert numbers["cpu_ms_per_inference"] > 0 and numbers["memory"]["peak_bytes"] > 1 << 20
        assert 0.999 < numbers["cosine"] <= 1
        assert "power_w" not in numbers, "nothing here measures it, and 0 would be a lie"
    assert record["rungs"][0]["measured"]["library"].startswith("onnxruntime")
    assert [s["outcome"] for s in record["steps"]] == [
        "rungs", "rungs", "skipped", "skipped", "batch", "share", "memory", "load", "soak"
    ]
    assert all(s.get("reason") for s in record["steps"] if s["outcome"] == "skipped")
    batch = record["steps"][4]
    assert "imu_window FP32 [1, 100, 9]" in batch["because"] and [r["rung"] for r in batch["rungs"]] == ["ort", "cpu"]
    for rung in batch["rungs"]:
        (two,) = rung["points"]
        assert (two["at_once"], two["errors"], two["latency"]["samples"], two["whole"]["samples"]) == (2, 0, 20, 10)
        assert two["latency"]["max_ms"] == two["whole"]["max_ms"], "the whole is there with its last answer"
    best = by_the_rule(record)
    assert record["decision"]["rung"] == done["decision"]["rung"] == best
    metrics = daemon.request("/metrics").body.decode()
    assert f'inferd_engine_selected{{model="imu-motion",engine="{best}"}} 1' in metrics
    promtool = hosttools.Tools(["prometheus"]).path("promtool")
    check = subprocess.run([promtool, "check", "metrics"], input=metrics, text=True, capture_output=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")

    pages = {}
    for query in ("?format=json", "?format=html", "?format=html&view=simple", "?format=md", "?format=csv"):
        pages[query] = report(daemon, number, query).body
        assert report(daemon, number, query).body == pages[query], "the same bytes"
    assert json.loads(pages["?format=json"]) == record
    page = Page(pages["?format=html"].decode())
    assert page.outside == [] and {"table", "svg", "style"} <= page.tags and "script" not in page.tags
    assert "table" not in Page(pages["?format=html&view=simple"].decode()).tags
    rows = list(csv.DictReader(io.StringIO(pages["?format=csv"].decode())))
    assert [row["rung"] for row in rows] == ["ort", "cpu"]
    assert [row["verdict"] for row in rows].count("selected") == 1

    model = daemon.request("/status").json()["models"][0]
    assert model["decision"]["rung"] == best and model["decision"]["record_id"] == done["record_id"]
    assert model["fallback"] is None and model["engine"]["kind"] == "ort", "what serves is as it was"
    metrics = daemon.request("/metrics").body.decode()
    assert f'inferd_engine_selected{{model="imu-motion",engine="{best}"}} 1' in metrics
    assert 'inferd_benchmark_jobs{state="completed"} 1' in metrics
    assert daemon.request("/infer", walk).status == 200

    daemon.stop()
    daemon = daemon_of()
    assert report(daemon, number, "?format=html").body == pages["?format=html"], "after a restart too"
    again = over(daemon, begin(daemon, **SMALL, rungs=["cpu"]))
    assert [(r["rung"], r["baseline_job"]) for r in again["record"]["regressions"]] == [("cpu", int(number))]
    assert daemon.request(f"{JOBS}/{number}", method="DELETE").json() == {"removed": number}
    assert daemon.request(f"{JOBS}/{number}").status == 404


def test_a_choice_by_measurement_serves_what_was_selected(native, with_ort, tmp_path, walk):
    folder = quantised.ladder(tmp_path / "model", ["ort-int8", "ort", "cpu"])
    settings = f'[updates]\ndata_dir = "{tmp_path}/data"\n'

    def start(choice):
        daemon = native(models=[folder], config=with_ort(more=settings).replace("[hosts]", f'[hosts]\nengine_choice = "{choice}"'))
        until(lambda: daemon.request(JOBS).status == 200, "what was kept to be read")
        return daemon

    def model(daemon):
        return daemon.request("/status").json()["models"][0]

    def serves(daemon, rung):
        until(lambda: (model(daemon)["engine"]["rung"], model(daemon)["state"]) == (rung, "ready"), f"{rung} serves")

    daemon = start("measured")
    serves(daemon, "ort-int8")
    assert model(daemon)["preferred"] == {"rung": "ort-int8", "by": "manifest"}
    # Whoever of the other two is faster: the constraint leaves them.
    number = begin(daemon, **SMALL, constraints=["cosine>0.99999"])
    chosen = over(daemon, number)["decision"]["rung"]
    assert chosen in ("ort", "cpu")
    # Only what agreed is followed, and on a busy machine nothing need agree: say that it did.
    daemon.stop()
    (kept,) = (tmp_path / "data/benchmarks").glob("job-*.json")
    kept.write_text(re.sub(r'"stable":\s*false', '"stable":true', kept.read_text()))
    daemon = start("measured")
    serves(daemon, chosen)
    seen = model(daemon)
    assert seen["preferred"] == {"rung": chosen, "by": "measured"} and seen["fallback"] is None
    answer = daemon.request("/infer", walk)
    assert answer.status == 200 and "X-Inferd-Engine" not in answer.headers, "nothing has fallen back"
    # A host that ends comes back on the same rung.
    os.kill(seen["host"]["pid"], signal.SIGKILL)
    until(lambda: model(daemon)["host"]["pid"] not in (None, seen["host"]["pid"]), "another host")
    serves(daemon, chosen)

    daemon.stop()
    daemon = start("measured")
    serves(daemon, chosen)
    assert daemon.request(f"{JOBS}/{number}", method="DELETE").status == 200
    serves(daemon, "ort-int8")

    daemon.stop()
    daemon = start("manifest")
    number = begin(daemon, **SMALL, constraints=["cosine>0.99999"])
    assert over(daemon, number)["decision"]["rung"] in ("ort", "cpu")
    assert model(daemon)["preferred"] == {"rung": "ort-int8", "by": "manifest"} and model(daemon)["engine"]["rung"] == "ort-int8"


def test_a_chip_that_serves_is_measured_where_it_serves_and_keeps_serving(native, with_chip, hailo_model, chip, tmp_path, walk, inferctl):
    settings = f'[updates]\ndata_dir = "{tmp_path}/data"\n'
    # By the manifest: which of the two the double makes faster is chance, and the faster one would take over.
    daemon = native(models=[hailo_model()], config=with_chip() + settings)
    until(lambda: daemon.request(JOBS).status == 200, "what was kept to be read")

    def model():
        return daemon.request("/status").json()["models"][0]

    before = model()
    assert before["engine"]["rung"] == "hailo"
    run = inferctl("bench", "--engines", "all", "--iterations", "40", "--soak", "1", "--json", url=daemon.url)
    assert run.returncode == 0, run.stderr
    hailo, cpu = json.loads(run.stdout)["record"]["rungs"]
    assert hailo["measured"]["device"] == "hailo8" and hailo["measured"]["requests"] == 0, hailo
    assert hailo["measured"]["after"]["accelerator_celsius"] == 45 and hailo["measured"]["after"]["accelerator_hot"] is False
    assert cpu["rung"] == "cpu" and "requests" not in cpu["measured"]
    # The same host all the time, and nothing of it in the model's numbers.
    after = model()
    assert [after["host"][what] for what in ("pid", "starts")] == [before["host"][what] for what in ("pid", "starts")]
    assert after["requests"] == before["requests"]
    # Requests go on meanwhile, and are counted.
    number = begin(daemon, **{**LONG, "rungs": ["hailo"]})
    until(lambda: job(daemon, number).get("progress", {}).get("rung") == "hailo", "the chip to be measured")
    for _ in range(20):
        answer = daemon.request("/infer", walk)
        assert answer.status == 200 and "X-Inferd-Engine" not in answer.headers
    daemon.request(f"{JOBS}/{number}", method="DELETE")
    assert over(daemon, number)["state"] == "cancelled"
    assert model()["host"]["pid"] == before["host"]["pid"], "cancelling ends no host that serves"
    assert daemon.request("/infer", walk).status == 200
    daemon.stop()
    assert chip.misuse() == ""


def test_a_rung_that_cannot_start_is_a_result_with_its_reason(native, tmp_path):
    daemon = native(config=f'[updates]\ndata_dir = "{tmp_path}/data"\n')
    done = over(daemon, begin(daemon, **SMALL))
    assert done["state"] == "completed"
    reasons = {r["rung"]: r.get("reason") for r in done["record"]["rungs"]}
    assert "ort" in reasons["ort"] and reasons["cpu"] is None
    assert done["decision"]["rung"] == "cpu"


def measured_host(daemon, but):
    """The process of a host that is no host in `but`, once it has computed for longer than it takes to come up."""

    def busy(pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") > 0.7

    def found():
        lists = [file.read_text().split() for file in Path(f"/proc/{daemon.process.pid}/task").glob("*/children")]
        with contextlib.suppress(FileNotFoundError):
            return [pid for pid in map(int, itertools.chain(*lists)) if pid not in but and busy(pid)]

    return until(found, "a host to be measured")[0]


def test_a_host_that_is_killed_while_it_is_measured_is_started_again_once_and_the_record_says_so(daemon_of):
    daemon = daemon_of()
    hosts = [daemon.request("/status").json()["models"][0]["host"]["pid"]]
    rungs = {"rungs": ["cpu"], "warm_up": 0, "iterations": 10000, "batches": [], "in_flight": [], "soak_s": 0}
    wish = {**rungs, "run_s": 2, "repeats": 2, "most_repeats": 2}

    def kill():
        hosts.append(measured_host(daemon, hosts))
        os.kill(hosts[-1], signal.SIGKILL)

    number = begin(daemon, **wish)
    kill()
    (rung,) = over(daemon, number)["record"]["rungs"]
    assert "SIGKILL" in rung["restarted"] and rung["measured"]["errors"] == 0 and "reason" not in rung, rung
    # Twice is not chance.
    number = begin(daemon, **wish)
    kill()
    kill()
    done = over(daemon, number)
    assert (done["state"], done["decision"]["outcome"]) == ("completed", "nothing-ran"), done
    (rung,) = done["record"]["rungs"]
    assert rung["reason"].startswith("its host ended twice while it was measured: ") and rung["reason"].count("SIGKILL") == 2, rung
    assert daemon.request("/status").json()["models"][0]["host"]["pid"] == hosts[0], "who serves is left alone"


def test_an_engine_that_became_slow_is_found_against_the_stored_baseline(native, with_chip, hailo_model, chip, tmp_path, inferctl):
    config = with_chip() + f'[updates]\ndata_dir = "{tmp_path}/data"\n'
    model = hailo_model()

    def measure(*options):
        daemon = native(models=[model], config=config)
        until(lambda: daemon.request(JOBS).status == 200, "what was kept to be read")
        run = inferctl("bench", "--engines", "hailo", "--iterations", "10", "--soak", "0", *options, url=daemon.url)
        assert run.returncode == 0, run.stdout + run.stderr
        newest = daemon.request(JOBS).json()["benchmarks"][0]["id"]
        (found,) = job(daemon, newest)["record"]["regressions"]
        daemon.stop()
        return run.stdout, found

    _, first = measure("--baseline")
    assert (first["rung"], first["level"], first["baseline_job"]) == ("hailo", "no-baseline", None)
    # The same model, engine and firmware; every frame takes 200 ms longer.
    chip.has(frames=[{"delay_ms": 200}])
    said, found = measure()
    assert (found["level"], found["baseline_job"]) == ("critical", 1)
    # Of ten, the slowest is the tail: a baseline that was held up once has a long one.
    worse = [reason.split()[0] for reason in found["reasons"]]
    assert worse in (["mean", "p95", "p99", "throughput"], ["mean", "throughput"]), worse
    assert "CRITICAL, hailo against its baseline: mean is " in said


def test_requests_are_answered_while_a_benchmark_runs_and_it_can_be_cancelled(daemon_of, walk):
    daemon = daemon_of()
    number = begin(daemon, **LONG)
    until(lambda: job(daemon, number)["state"] == "running", "the benchmark to run")
    until(lambda: job(daemon, number).get("progress", {}).get("rung"), "a rung to be measured")
    for _ in range(50):
        assert daemon.request("/infer", walk).status == 200
    assert job(daemon, number)["state"] == "running"
    assert daemon.request(f"{JOBS}/{number}/report").status == 409
    assert daemon.request(f"{JOBS}/{number}", method="DELETE").status == 202
    assert over(daemon, number)["state"] == "cancelled"
    assert "FellBack" not in daemon.log_text() and "another engine serves" not in daemon.log_text()


def test_two_run_at_once_and_one_while_requests_are_answered(daemon_of, walk):
    daemon = daemon_of()
    numbers = [begin(daemon, **LONG) for _ in range(3)]
    until(lambda: states(daemon) == ["running", "running", "queued"], "two to run")
    for number in numbers:
        daemon.request(f"{JOBS}/{number}", method="DELETE")
    until(lambda: set(states(daemon)) == {"cancelled"}, "all to end")
    with ThreadPoolExecutor(1) as pool:
        busy, answers = True, []

        def load():
            while busy:
                daemon.request("/infer", walk)
                answers.append(time.monotonic())

        def one_runs():
            """Live traffic is an answer in the last 2 s: a machine that came to none for that long has proven nothing."""
            seen = states(daemon)[3:] == ["running", "queued"]
            times = [*answers, time.monotonic()]
            return seen or max(b - a for a, b in itertools.pairwise(times)) > 1.5

        client = pool.submit(load)
        try:
            until(lambda: answers, "a request to be answered")
            numbers = [begin(daemon, **LONG) for _ in range(2)]
            until(one_runs, "one to run")
            for _ in range(20):
                assert one_runs(), states(daemon)
                daemon.request("/livez")
        finally:
            busy = False
        client.result()
    until(lambda: states(daemon)[3:] == ["running", "running"], "the other to run once nobody asks")
    for number in numbers:
        daemon.request(f"{JOBS}/{number}", method="DELETE")


def test_the_queue_is_bounded(daemon_of):
    daemon = daemon_of()
    answers = [ask(daemon, LONG) for _ in range(12)]
    assert [a.status for a in answers[:8]] == [202] * 8
    refused = answers[-1]
    assert refused.status == 503 and refused.json()["error"] == "benchmarks_full"
    assert int(refused.headers["Retry-After"]) > 0


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_a_restart_ends_has_failed_and_says_so(daemon_of, end):
    daemon = daemon_of()
    number = begin(daemon, **LONG)
    until(lambda: job(daemon, number)["state"] == "running", "the benchmark to run")
    daemon.process.send_signal(end)
    daemon.process.wait(30)
    daemon = daemon_of()
    ended = job(daemon, number)
    assert (ended["state"], ended["reason"]) == ("failed", "the daemon ended before the benchmark did")


def test_a_damaged_record_is_set_aside(daemon_of, tmp_path):
    daemon = daemon_of()
    numbers = [begin(daemon, **SMALL, rungs=["cpu"]) for _ in range(2)]
    for number in numbers:
        over(daemon, number)
    until(lambda: len(list((tmp_path / "data/benchmarks").glob("job-*.json"))) == 2, "both to be kept")
    daemon.stop()
    first = tmp_path / "data/benchmarks" / f"job-{int(numbers[0]):08}.json"
    first.write_bytes(first.read_bytes()[:500])
    daemon = daemon_of()
    assert daemon.request(f"{JOBS}/{numbers[0]}").status == 404
    assert job(daemon, numbers[1])["state"] == "completed"
    assert first.with_suffix(".bad").exists()
    daemon.logged("was set aside")


@pytest.mark.parametrize(
    ("wish", "status", "said"),
    [
        ({"model": "nobody"}, 404, "there are imu-motion"),
        ({"rungs": ["warp"]}, 422, "there are ort, cpu"),
        ({"constraints": ["p95_ms<=5"]}, 400, "a constraint is a name"),
        ({"constraints": ["speed<5"]}, 400, "nothing of this name"),
        ({"iterations": 0}, 422, "iterations is 0, allowed are 1 to 10000"),
        ({"iterations": 10**6}, 422, "allowed are 1 to 10000"),
        ({"soak_s": 3601}, 422, "soak_s is 3601"),
        ({"in_flight": [65]}, 422, "in_flight is 65"),
        ({"fast": True}, 400, "unknown field"),
        ([], 400, "a JSON object is needed"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(daemon, wish, status, said):
    answer = ask(daemon, wish)
    assert answer.status == status and said in answer.json()["detail"], answer.body


@pytest.mark.parametrize("path", [f"{JOBS}/0", f"{JOBS}/x", f"{JOBS}/99999999999999999999", f"{JOBS}/1/report/x"])
def test_an_unknown_job_is_not_found(daemon, path):
    assert daemon.request(path).status == 404


def test_the_seeds_benchmark_answers_with_its_names_and_percentiles(daemon_of):
    daemon = daemon_of()
    answer = daemon.request("/benchmark?num_iterations=50", method="POST")
    assert answer.status == 200, answer.body
    said = answer.json()
    assert set(said["engines"]) == {"ort", "cpu"} and said["tensorrt"] is None
    assert said["pytorch"] == said["engines"]["cpu"], "the plain engine, under its own name too"
    for numbers in said["engines"].values():
        assert numbers["iterations"] == 50
        assert 0 < numbers["mean_latency_ms"] and 0 < numbers["median_latency_ms"] <= numbers["p99_latency_ms"]
        assert {"p50_latency_ms", "p90_latency_ms", "p95_latency_ms", "throughput_qps"} <= set(numbers)
    for query in ("num_iterations=0", "num_iterations=10001", "num_iterations=x", "x=1"):
        assert daemon.request(f"/benchmark?{query}", method="POST").status == 422
    assert daemon.request("/benchmark?model=nobody", method="POST").status == 404


def test_who_may_look_and_who_may_ask(native, tmp_path):
    keys = 'viewer_keys = ["look-but-touch-nothing"]\noperator_keys = ["load-infer-and-unload"]'
    daemon = native(config=f'[security]\n{keys}\nopen_reads = false\n[updates]\ndata_dir = "{tmp_path}/data"\n')

    def by(key, path, method="GET", body=None):
        return request(f"{daemon.url}{path}", body, method=method, headers={"X-API-Key": key} if key else {}).status

    assert by(None, JOBS) == 401
    assert by("look-but-touch-nothing", JOBS) == 200
    for path in (JOBS, "/benchmark"):
        assert by("look-but-touch-nothing", path, "POST", {}) == 403
    assert by("load-infer-and-unload", JOBS, "POST", {**SMALL, "rungs": ["cpu"]}) == 202
    assert by("look-but-touch-nothing", f"{JOBS}/1", "DELETE") == 403
    assert by("load-infer-and-unload", f"{JOBS}/1", "DELETE") in (200, 202)


# ----------------------------------------------------------------------------------------------------------- inferctl bench


def test_inferctl_prints_the_table_and_the_decision_and_replays_it(daemon_of, inferctl, tmp_path):
    daemon = daemon_of()
    saved, page = tmp_path / "record.json", tmp_path / "report.html"
    run = inferctl(
        "bench", "--engines", "all", "--model", "imu-motion", "--iterations", "20", "--soak", "1",
        "--constraint", "cosine>0.99", "--save", saved, "--report", page, url=daemon.url,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "step 1 of 9" in run.stderr
    lines = run.stdout.splitlines()
    head = next(line for line in lines if line.startswith("rung "))
    assert all(column in head for column in ("precision", "p50 ms", "p95 ms", "p99 ms", "per s", "CPU ms", "memory", "cosine", "verdict"))
    rows = [line.split()[0] for line in lines[lines.index(head) + 1 :][:2]]
    assert rows == ["ort", "cpu"]
    assert sum("selected" in line for line in lines) == 1
    assert lines[-1].startswith("decision ") and "is the best that keeps to every constraint" in lines[-1]
    assert Page(page.read_text()).outside == []

    # No daemon is needed for the decision.
    replayed = inferctl("bench", "--replay", saved, "--json")
    assert replayed.returncode == 0 and replayed.stdout == saved.read_text(), "byte for byte"
    told = inferctl("bench", "--replay", saved)
    assert "the same decision, byte for byte" in told.stdout
    record = json.loads(saved.read_text())
    record["decision"]["rung"] = "hailo"
    (forged := tmp_path / "forged.json").write_text(json.dumps(record))
    assert inferctl("bench", "--replay", forged).returncode == 1
    (tmp_path / "none.json").write_text("{}")
    assert "no record" in inferctl("bench", "--replay", tmp_path / "none.json").stderr


def test_inferctl_ends_with_1_when_no_engine_keeps_to_the_constraints(daemon_of, inferctl):
    daemon = daemon_of()
    run = inferctl("bench", "--engines", "ort,cpu", "--iterations", "10", "--soak", "0", "--constraint", "p50_ms<0.000001", "--json", url=daemon.url)
    assert run.returncode == 1
    done = json.loads(run.stdout)
    assert done["decision"]["outcome"] == "none-fits" and done["decision"]["nearest"] in ("ort", "cpu")
    assert all(v["reasons"][0].startswith("p50_ms<0.000001: it is ") for v in done["decision"]["verdicts"])
    unknown = inferctl("bench", "--engines", "warp", url=daemon.url)
    assert unknown.returncode == 1 and "there are ort, cpu" in unknown.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--constraint", "p95_ms<50"], 2, "--engines"),
        (["--report", "page.html"], 2, "--engines"),
        (["--replay", "record.json", "--constraint", "p95_ms<50"], 2, "cannot be used with"),
        (["--engines", "all", "-c", "8"], 2, "cannot be used with"),
        (["--engines", "all,ort"], 1, "all of them leaves none to name"),
        (["--engines", "all", "--report", "page.pdf"], 1, "a report ends in html, md, csv or json"),
        (["--engines", "all", "--report", "{folder}/no/page.html"], 1, "page.html cannot be written"),
        (["--engines", "all", "--save", "{folder}"], 1, "cannot be written"),
    ],
)
def test_inferctl_says_what_it_cannot_do_before_anything_is_measured(daemon_of, inferctl, tmp_path, options, code, said):
    daemon = daemon_of()
    options = [option.format(folder=tmp_path) for option in options]
    run = inferctl("bench", *options, url=daemon.url)
    assert run.returncode == code and said in run.stderr, run.stderr
    assert daemon.request(JOBS).json()["benchmarks"] == [], "no job was asked for"
    assert not (tmp_path / "no").exists()


def test_inferctl_that_is_interrupted_cancels_its_job(daemon_of, inferctl):
    daemon = daemon_of()
    command = [str(inferctl.program), "--url", daemon.url, "bench", "--engines", "cpu", "--iterations", "10000", "--soak", "600"]
    tool = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: states(daemon) == ["running"], "the job to run")
        tool.send_signal(signal.SIGINT)
        _, said = tool.communicate(timeout=30)
    finally:
        tool.kill()
    assert tool.returncode == 1 and "the benchmark was cancelled" in said
    assert over(daemon, "1")["state"] == "cancelled"
