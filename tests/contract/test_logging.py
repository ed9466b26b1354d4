"""The log: every line of a request carries its id, the level changes while the daemon runs, and changes of the device are told."""

import json
import shutil

import places
import pytest
from contract.test_probes import check
from contract.wire import ask
from helpers import until

JSON = {"INFERD_LOGGING_FORMAT": "json"}


def lines(daemon):
    """What was logged, one dictionary per line."""
    # The last one may be on its way.
    return [json.loads(line) for line in daemon.log_text().splitlines() if line.endswith("}")]


def logged(daemon, **wanted):
    """Waits for a line with these values, and gives it."""
    def found():
        return next((line for line in lines(daemon) if wanted.items() <= line.items()), None)

    return until(found, daemon)


def put(daemon, wish, **options):
    return ask(daemon, "PUT", "/api/v1/logging", json.dumps(wish), **options)


def test_every_line_of_a_request_carries_its_id_also_from_deep_down(native, tmp_path):
    shutil.copytree(places.DEFAULT_MODEL, folder := tmp_path / "model")
    daemon = native(env={**JSON, "INFERD_LOGGING_LEVEL": "debug"}, models=[folder])
    (folder / "manifest.toml").write_text("not a manifest")
    load = "/v2/repository/models/imu-motion/load"
    assert daemon.request(load, b"{}", method="POST", headers={"X-Request-ID": "deep-1"}).status >= 400
    assert logged(daemon, target="inferd_hosts::set", request_id="deep-1")["message"] == "model not loaded"
    assert logged(daemon, target="inferd::access", request_id="deep-1")["path"] == load
    assert logged(daemon, target="audit", request_id="deep-1")["role"] == "local"
    assert all("request_id" not in line for line in lines(daemon) if line["message"] in ("inferd starts", "listening", "ready"))


def test_the_level_changes_while_it_runs_and_comes_back_by_itself(native):
    daemon = native(env=JSON)
    document = daemon.request("/openapi.json").json()
    daemon.request("/livez", headers={"X-Request-ID": "before"})
    answer = put(daemon, {"level": "info,inferd::access=debug", "for_s": 5})
    check(document, "/api/v1/logging", "PUT", answer)
    assert answer.status == 200 and answer.json()["level"] == "info,inferd::access=debug"
    daemon.request("/livez", headers={"X-Request-ID": "during"})
    logged(daemon, request_id="during", level="DEBUG")
    until(lambda: daemon.request("/api/v1/logging").json()["for_s"] is None, daemon)
    told = ask(daemon, "GET", "/api/v1/logging")
    check(document, "/api/v1/logging", "GET", told)
    assert told.json() == {"level": "info", "configured": "info", "for_s": None, "lines_dropped": 0}
    daemon.request("/livez", headers={"X-Request-ID": "after"})
    put(daemon, {"level": "warn"}, headers=[("X-Request-ID", "mark")])
    logged(daemon, target="audit", request_id="mark")
    seen = {line.get("request_id") for line in lines(daemon) if line["target"] == "inferd::access"}
    assert "during" in seen and not {"before", "after"} & seen
    assert b"inferd_log_lines_dropped_total{} 0" in daemon.request("/metrics").body


@pytest.mark.parametrize(
    "wish, status",
    [
        ({"level": "loud"}, 422),
        ({"level": ""}, 422),
        ({"level": "info,warn"}, 422),
        ({"level": "inferd=debug"}, 422),
        ({"level": "info,a b=debug"}, 422),
        ({"level": "info" + ",a=info" * 40}, 422),
        ({"level": "info", "for_s": 0}, 422),
        ({"level": "info", "for_s": 86_401}, 422),
        ({"level": "info", "for": 5}, 400),
        ({"level": 5}, 400),
        ({}, 400),
        ([], 400),
        ("info", 400),
    ],
)
def test_what_is_no_level_is_refused_with_its_reason_and_changes_nothing(daemon, wish, status):
    answer = put(daemon, wish)
    check(daemon.request("/openapi.json").json(), "/api/v1/logging", "PUT", answer)
    assert answer.status == status, answer
    assert daemon.request("/api/v1/logging").json()["level"] == "info"


def test_who_may_not_change_it_is_told_so_and_the_attempt_is_in_the_log(native):
    daemon = native(env={**JSON, "INFERD_LOGGING_LEVEL": "error", "INFERD_SECURITY_API_KEY": "correct-horse-battery"})
    assert put(daemon, {"level": "trace"}, headers=[("X-Request-ID", "thief")]).status == 401
    line = logged(daemon, target="audit", request_id="thief")
    assert line["status"] == 401 and line["route"] == "/api/v1/logging" and line["peer"].startswith("127.0.0.1:")
    key = [("X-API-Key", "correct-horse-battery"), ("X-Request-ID", "owner")]
    assert put(daemon, {"level": "warn"}, headers=key).status == 200
    line = logged(daemon, target="audit", request_id="owner")
    assert line["status"] == 200 and line["role"] == "admin"
    assert "correct-horse" not in daemon.log_text()


def test_inferctl_shows_and_changes_the_level(native, inferctl):
    daemon = native()
    assert inferctl("log-level", url=daemon.url).stdout == "info\n"
    done = inferctl("log-level", "warn,inferd_hosts=debug", "--for", "10m", url=daemon.url)
    assert done.returncode == 0 and done.stdout.startswith("warn,inferd_hosts=debug for "), done
    assert done.stdout.endswith("then info\n")
    refused = inferctl("log-level", "loud", url=daemon.url)
    assert refused.returncode == 1 and "off, error, warn" in refused.stderr
    assert inferctl("log-level", "info", "--for", "2d", url=daemon.url).returncode == 2
