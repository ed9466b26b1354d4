"""`/metrics`: both formats, by Prometheus' own parsers, and each request counted once."""

import json
import subprocess

import hosttools
from contract.wire import Wire, ask, window
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

# What Prometheus 3 really sends.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
SEED = {
    "hailo_inference_requests": {"status", "model"},
    "hailo_inference_duration_seconds": {"model"},
    "hailo_model_loaded": {"model", "version"},
    "hailo_model_info": {"model", "hef_path", "motifs", "device"},
    "hailo_sidecar_start_time_seconds": set(),
    "hailo_health_checks": {"status"},
    "hailo_build_info": {"version", "hef_sha", "config"},
    "hailo_http_requests": {"method", "endpoint", "status_code"},
    "hailo_http_request_duration_seconds": {"method", "endpoint"},
    "hailo_samples_processed": {"input_type"},
    "hailo_model_output_dimensions": {"output_type"},
}
SEED_BUCKETS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf")]


def scrape(daemon, accept=None):
    answer = ask(daemon, "GET", "/metrics", headers=[("Accept", accept)] if accept else [])
    assert answer.status == 200
    return answer.headers["content-type"], answer.body.decode()


def samples(daemon):
    """{name: {labels: value}} of the classic text."""
    found = {}
    for family in classic(scrape(daemon)[1]):
        for s in family.samples:
            found.setdefault(s.name, {})[tuple(sorted(s.labels.items()))] = s.value
    return found


def change(before, after, name, **labels):
    """By how much the samples with these labels grew."""
    def total(at):
        return sum(v for have, v in at.get(name, {}).items() if set(labels.items()) <= set(have))

    return total(after) - total(before)


def test_both_formats_are_what_they_say(daemon, walk):
    ask(daemon, "POST", "/infer", json.dumps(walk))
    kind, text = scrape(daemon)
    assert kind == "text/plain; version=0.0.4; charset=utf-8" and "# EOF" not in text
    kind, om = scrape(daemon, PROMETHEUS)
    assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8" and om.endswith("# EOF\n")
    old = {f.name: f.type for f in classic(text)}
    new = {f.name: f.type for f in openmetrics(om)}
    assert old == new


def test_promtool_has_nothing_to_say(daemon, walk):
    ask(daemon, "POST", "/infer", json.dumps(walk))
    ask(daemon, "POST", "/infer", "{}")
    promtool = hosttools.Tools(["prometheus"]).path("promtool")
    check = subprocess.run([promtool, "check", "metrics"], input=scrape(daemon)[1], text=True, capture_output=True)
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")


def test_the_seeds_names_labels_and_buckets_are_there(daemon, walk):
    ask(daemon, "POST", "/infer", json.dumps(walk))
    ask(daemon, "GET", "/healthz")
    families = {f.name: f for f in openmetrics(scrape(daemon, PROMETHEUS)[1])}
    for name, labels in SEED.items():
        assert name in families, name
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == labels, name
    buckets = [
        float(s.labels["le"])
        for s in families["hailo_inference_duration_seconds"].samples
        if s.name.endswith("_bucket")
    ]
    assert buckets == SEED_BUCKETS


def test_our_histograms_see_below_a_millisecond(daemon, walk):
    ask(daemon, "POST", "/infer", json.dumps(walk))
    families = {f.name: f for f in openmetrics(scrape(daemon, PROMETHEUS)[1])}
    for name in ("inferd_request", "inferd_queue", "inferd_compute", "inferd_parse", "inferd_receive", "inferd_serialize"):
        family = families[f"{name}_duration_seconds"]
        bounds = {float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")}
        assert sum(b < 0.001 for b in bounds) >= 4, name


def test_each_inference_is_counted_once(daemon, walk):
    good = json.dumps(walk)
    model = daemon.request("/contract").json()["model"]
    for path, body, status, surface, outcome in (
        ("/infer", good, 200, "infer", "success"),
        ("/infer/infer", good, 200, "infer", "success"),
        ("/encode", good, 200, "encode", "success"),
        ("/infer", window(rows=3), 422, "infer", "validation_error"),
        ("/infer", "{", 422, "infer", "validation_error"),
        ("/api/v1/analysis/infer", "{}", 400, "infer", "validation_error"),
        ("/infer", b" " * (11 << 20), 413, "infer", "payload_too_large"),
    ):
        before = samples(daemon)
        assert ask(daemon, "POST", path, body).status == status
        after = samples(daemon)
        assert change(before, after, "inferd_requests_total") == 1, (path, outcome)
        assert change(before, after, "inferd_requests_total", surface=surface, outcome=outcome) == 1, (path, outcome)
        seed = "success" if outcome == "success" else "error"
        assert change(before, after, "hailo_inference_requests_total") == 1
        assert change(before, after, "hailo_inference_requests_total", status=seed) == 1
        assert change(before, after, "hailo_samples_processed_total", input_type="imu-encoder") == (1 if outcome == "success" else 0)
        assert change(before, after, "hailo_errors_total") == (0 if outcome == "success" else 1)
        assert change(before, after, "inferd_inferences_total", model=model) == (1 if outcome == "success" else 0)
        assert change(before, after, "hailo_http_requests_total", endpoint=path, status_code=str(status)) == 1


def test_a_health_check_is_counted_once(native):
    daemon = native(models=[], ready=False).wait_listening()
    before = samples(daemon)
    assert ask(daemon, "GET", "/healthz").status == 503
    after = samples(daemon)
    assert change(before, after, "hailo_health_checks_total") == 1
    assert change(before, after, "hailo_health_checks_total", status="unhealthy") == 1


def test_what_clients_invent_never_becomes_a_label(daemon):
    with Wire(daemon) as wire:
        for i in range(200):
            wire.request("GET", f"/invented-{i}").answer()
            wire.request("POST", f"/v2/models/invented-{i}/infer", "{}").answer()
            wire.request(f"BREW{i}", "/").answer()
    assert "invented" not in (text := scrape(daemon)[1])
    assert "BREW" not in text


def test_the_process_and_the_model_are_described(daemon):
    found = samples(daemon)
    health = daemon.request("/healthz").json()
    assert list(found["process_resident_memory_bytes"].values())[0] > 1_000_000
    [info] = [dict(labels) for labels in found["inferd_model_info"]]
    assert info["sha256"] == health["model_sha256"] and info["engine"] == "cpu"
    dimensions = {dict(labels)["output_type"]: value for labels, value in found["hailo_model_output_dimensions"].items()}
    assert dimensions == {"latent_embeddings": 64, "motif_scores": 12}
    [build] = [dict(labels) for labels in found["hailo_build_info"]]
    assert build["config"] == health["config_version"]


def test_config_ok_compares_with_what_is_expected(native):
    daemon = native()
    assert "hailo_config_ok" not in samples(daemon), "nothing is expected, nothing is claimed"
    actual = daemon.request("/healthz").json()["config_version"]
    wrong = native(env={"INFERD_CONFIG_EXPECTED_SHA256": "0" * 64})
    [(labels, value)] = samples(wrong)["hailo_config_ok"].items()
    assert value == 0 and dict(labels)["expected"] == "0" * 64 and len(actual) == 64


def test_the_names_of_the_seeds_other_services_are_a_switch_and_the_same_numbers(native, daemon, walk):
    ours = {name for name in samples(daemon) if name.startswith(("inference_", "model_load"))}
    assert ours == set(), "without being asked for"
    told = native(config="[compat]\nmetric_aliases = true\n")
    assert ask(told, "POST", "/infer", json.dumps(walk)).status == 200
    assert ask(told, "POST", "/infer", "{}").status == 422
    found = samples(told)
    for alias, name in (
        ("inference_requests_total", "hailo_inference_requests_total"),
        ("inference_request_duration_seconds_bucket", "hailo_inference_duration_seconds_bucket"),
        ("inference_duration_seconds_count", "hailo_inference_duration_seconds_count"),
    ):
        assert found[alias] == found[name] != {}, alias
    assert list(found["inference_session_ready"].values()) == [1]
    assert {f.name: f.type for f in classic(scrape(told)[1])} == {f.name: f.type for f in openmetrics(scrape(told, PROMETHEUS)[1])}
    page = "".join(line + "\n" for line in scrape(told)[1].splitlines() if "inference_" in line or "# " not in line)
    promtool = hosttools.Tools(["prometheus"]).path("promtool")
    check = subprocess.run([promtool, "check", "metrics"], input=page, text=True, capture_output=True)
    assert not [line for line in (check.stdout + check.stderr).splitlines() if line.startswith("inference_")], check


def test_the_p99_of_a_page_is_one_of_whole_requests(native, walk):
    daemon = native()
    latency = lambda: daemon.request("/health/performance").json()["inference_latency_p99"]  # noqa: E731
    assert latency() is None, "nothing was asked yet"
    assert ask(daemon, "POST", "/infer", json.dumps(walk)).status == 200
    found, p99 = samples(daemon), latency()
    total = sum(found["inferd_request_duration_seconds_sum"].values())
    # Of one request it is that request, to the microsecond it is kept in.
    assert 0 <= 1000 * total - p99 < 0.0011, (total, p99)


def test_tritons_names_are_a_switch(native, walk):
    daemon = native(config="[compat]\ntriton_metrics = true\n")
    assert ask(daemon, "POST", "/infer", json.dumps(walk)).status == 200
    found = samples(daemon)
    [(labels, value)] = found["nv_inference_request_success"].items()
    assert value == 1 and dict(labels)["model"] == daemon.request("/contract").json()["model"]
    for name in ("nv_inference_count", "nv_inference_compute_infer_duration_us", "nv_inference_pending_request_count"):
        assert name in found
    assert [f.name for f in openmetrics(scrape(daemon, PROMETHEUS)[1])].count("nv_inference_count") == 1
