"""Probes and pages: what they promise, held against the OpenAPI document the device serves about itself."""

import hashlib
import json
import re
import shutil

import jsonschema
import numpy
import places
import pytest
from contract.conftest import linear_model
from contract.wire import ask
from safetensors.numpy import load_file, save_file

PAGES = ["/", "/healthz", "/livez", "/readyz", "/health", "/status", "/contract", "/openapi.json"]


@pytest.fixture(scope="module")
def document(daemon):
    """The device's own description."""
    return daemon.request("/openapi.json").json()


def check(document, path, verb, answer):
    """The answer is one the document describes, with a body of the described shape."""
    operation = document["paths"][path][verb.lower()]
    described = operation["responses"].get(str(answer.status))
    assert described is not None, f"{verb} {path} answered {answer.status}, which is not described: {answer}"
    if shared := described.get("$ref"):
        described = document["components"]["responses"][shared.rsplit("/", 1)[1]]
    content = described.get("content", {})
    if content:
        kind = answer.headers["content-type"]
        assert kind in content, f"{verb} {path}: {kind} is not described"
        if kind == "application/json":
            schema = {**content[kind]["schema"], "components": document["components"]}
            jsonschema.Draft202012Validator(schema).validate(answer.json())
    for name in described.get("headers", {}):
        if name.lower() not in ("x-inferd-latent-clipped", "x-inferd-engine"):
            assert name.lower() in answer.headers, f"{verb} {path}: {name} is missing"


@pytest.mark.parametrize("path", [*PAGES, "/metrics", "/docs", "/redoc"])
def test_every_page_is_as_described(daemon, document, path):
    answer = ask(daemon, "GET", path)
    assert answer.status == (307 if path == "/redoc" else 200), answer
    check(document, path, "GET", answer)


def test_every_answer_to_an_inference_is_as_described(daemon, document, walk):
    good, bad = json.dumps(walk), '{"x":[]}'
    for path in ("/infer", "/infer/infer", "/encode", "/api/v1/analysis/infer"):
        for body, headers in (
            (good, []),
            (bad, []),
            (good, [("Inference-Deadline-Ms", "soon")]),
            (good, [("Content-Encoding", "br")]),
            (b" " * (11 << 20), []),
        ):
            check(document, path, "POST", ask(daemon, "POST", path, body, headers))
    check(document, "/test", "POST", ask(daemon, "POST", "/test"))


def test_every_described_path_exists(daemon, document):
    for path, item in document["paths"].items():
        concrete = path.replace("{model}", "nobody").replace("{version}", "1").replace("{file}", "nobody").replace("{id}", "nobody").replace("{engine}", "nobody").replace("{name}", "nobody")
        for verb in item:
            if path.endswith(("/load", "/unload", "/benchmark")) or (verb, path) == ("post", "/api/v1/benchmarks"):
                continue
            answer = ask(daemon, verb.upper(), concrete)
            assert answer.status != 405, (verb, path)
            if answer.status == 404:
                # In a sentence of its own, which a path that nobody answers does not get.
                told = answer.body.decode()
                own = not path.startswith("/v2") and answer.json().get("detail") not in (None, "Not Found")
                assert own or "nobody" in told, f"{verb} {path} is not found at all"


def test_without_a_model_every_page_is_as_described(native):
    daemon = native(models=[], ready=False).wait_listening()
    document = daemon.request("/openapi.json").json()
    for path in PAGES:
        answer = ask(daemon, "GET", path)
        check(document, path, "GET", answer)
        if path in ("/healthz", "/readyz", "/health", "/contract"):
            assert answer.status == 503
    for path in ("/infer", "/encode", "/api/v1/analysis/infer", "/test"):
        answer = ask(daemon, "POST", path, '{"x":[]}')
        assert answer.status == 503
        check(document, path, "POST", answer)
    assert daemon.request("/status").json()["endpoint_status"] == "model_not_loaded"


def test_a_device_with_tensor_models_only_is_healthy_and_says_what_it_has_not(native):
    daemon = native(models=[places.ROOT / "tests/models/identity-fp32"])
    document = daemon.request("/openapi.json").json()
    for path in PAGES:
        answer = ask(daemon, "GET", path)
        assert answer.status == (503 if path == "/contract" else 200), answer
        check(document, path, "GET", answer)
    answer = ask(daemon, "POST", "/test")
    assert answer.status == 200 and answer.json()["parity"]["agrees"] is True
    check(document, "/test", "POST", answer)
    for path in ("/infer", "/encode"):
        answer = ask(daemon, "POST", path, '{"x":[]}')
        assert answer.status == 503 and "not imu-encoder" in answer.json()["detail"]
        check(document, path, "POST", answer)


def test_healthz_has_the_seeds_fields_and_tells_the_truth(daemon):
    health = daemon.request("/healthz").json()
    assert {"ok", "model", "uptime_s", "config_version", "hef_sha256", "version", "device", "latency_ms"} <= set(health)
    assert health["ok"] is True and health["device"] == "cpu", "it runs on the CPU and says so"
    assert re.fullmatch("[0-9a-f]{64}", health["model_sha256"]) and health["model_sha256"].startswith(health["hef_sha256"])
    assert len(health["hef_sha256"]) == 16
    assert health["golden"]["cosine"] > 0.999


def test_latency_is_that_of_a_real_inference(native, walk):
    daemon = native()
    assert daemon.request("/healthz").json()["latency_ms"] == 0.0
    daemon.request("/infer", walk)
    assert daemon.request("/healthz").json()["latency_ms"] > 0.0


def test_a_model_whose_golden_vectors_do_not_agree_never_serves(native, tmp_path):
    folder = tmp_path / "wrong"
    shutil.copytree(places.DEFAULT_MODEL, folder)
    golden = load_file(folder / "golden.safetensors")
    name = next(n for n in golden if "/out/" in n)
    golden[name] = golden[name] + numpy.float32(0.5)
    save_file(golden, folder / "golden.safetensors")
    page = (folder / "manifest.toml").read_text()
    section = page.index("[golden]")
    digest = hashlib.sha256((folder / "golden.safetensors").read_bytes()).hexdigest()
    page = page[:section] + re.sub(r'sha256 = "[0-9a-f]*"', f'sha256 = "{digest}"', page[section:], count=1)
    (folder / "manifest.toml").write_text(page)
    daemon = native(models=[folder], ready=False).wait_listening()
    while not (health := daemon.request("/healthz")).json()["reason"].startswith("model "):
        pass
    assert health.status == 503 and "golden" in health.json()["reason"]
    assert daemon.request("/infer", {"x": []}).status == 503


@pytest.mark.parametrize(
    ("broken", "reason"),
    [({"weight": numpy.zeros((3, 63))}, "[3, 64]"), ({"bias": numpy.full(3, numpy.nan)}, "not finite"), ({"weight": None}, '"weight"')],
    ids=["shape", "nan", "missing"],
)
def test_a_motif_head_that_does_not_fit_is_refused_at_load(native, tmp_path, broken, reason):
    tensors = {"weight": numpy.zeros((3, 64)), "bias": numpy.zeros(3)} | broken
    folder = linear_model(tmp_path / "linear", {name: values for name, values in tensors.items() if values is not None})
    daemon = native(models=[folder], ready=False).wait_listening()
    while (health := daemon.request("/healthz")).status == 503 and "head" not in health.json()["reason"]:
        pass
    assert health.status == 503, "a model whose every answer would be an error is not ready"
    assert "head.safetensors" in health.json()["reason"] and reason in health.json()["reason"]


def test_the_test_runs_the_golden_vectors(daemon):
    answer = daemon.request("/test", b"", method="POST")
    body = answer.json()
    assert answer.status == 200 and body["test_status"] == "success"
    assert (body["latent_shape"], body["motif_shape"]) == (64, 12)
    assert body["parity"]["agrees"] is True and body["parity"]["cases"] >= 1
    assert body["parity"]["cosine"] >= body["parity"]["least_cosine"]
    assert body["parity"]["max_abs"] <= body["parity"]["largest_max_abs"]
    assert ask(daemon, "GET", "/test").status == 405


def test_the_contract_says_what_a_window_is(daemon):
    contract = daemon.request("/contract").json()
    seed = {k: contract[k] for k in ("window_len", "channels", "latent_dims", "motif_classes")}
    assert seed == {"window_len": 100, "channels": 9, "latent_dims": 64, "motif_classes": 12}
    assert contract["channel_names"] == ["ax", "ay", "az", "gx", "gy", "gz", "mx", "my", "mz"]
    assert [l["max_abs"] for l in contract["limits"]] == [500, 35, 2000]
    assert contract["normalization"]["applied_by"] == "server" and contract["rate_hz"] == 100


def test_the_page_of_the_documentation_is_complete_without_the_internet(daemon):
    page = ask(daemon, "GET", "/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert not re.search(rb"https?:|src\s*=|@import|url\(", page.body)


def test_the_status_shows_every_model_and_its_host(daemon, walk):
    daemon.request("/infer", walk)
    status = daemon.request("/status").json()
    assert status["ready"] is True and status["endpoint_status"] == "healthy" and status["api_version"] == "1.0.0"
    [model] = [m for m in status["models"] if m["default"]]
    assert model["state"] == "ready" and model["requests"]["success"] >= 1
    assert model["host"]["rss_bytes"] > 0 and model["host"]["memory_cap_bytes"] > model["host"]["rss_bytes"]
    assert sum(w["requests"] for w in model["host"]["workers"]) >= 1
    assert model["queue"]["in_use"] == 0, "every slot was given back"
