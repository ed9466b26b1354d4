"""Who may do what: roles, keys, limits of one client, and silent crowds."""

import hashlib
import json
import re
import socket

import pytest
from contract.wire import ask, window
from helpers import request, until

KEYS = {"viewer": "look-but-touch-nothing", "operator": "load-infer-and-unload", "admin": "whatever-it-takes-here"}
# The lowest role of each need, and whether it is needed when the settings leave things open.
ROLES = {"nothing": None, "read": "viewer", "infer": "operator", "operate": "operator", "administer": "admin"}
ORDER = [None, "viewer", "operator", "admin"]


def security(**more):
    """A configuration with a key of each role; the admin's as its digest."""
    digest = hashlib.sha256(KEYS["admin"].encode()).hexdigest()
    lines = [f'viewer_keys = ["{KEYS["viewer"]}"]', f'operator_keys = ["{KEYS["operator"]}"]', f'admin_keys = ["sha256:{digest}"]']
    return "[security]\n" + "\n".join(lines + [f"{key} = {json.dumps(value)}" for key, value in more.items()]) + "\n"


def headers(role, bearer=False):
    """The headers of somebody with this role."""
    if role is None:
        return []
    return [("Authorization", f"Bearer {KEYS[role]}")] if bearer else [("X-API-Key", KEYS[role])]


@pytest.mark.parametrize("opened", [True, False])
def test_every_route_is_open_to_the_roles_its_description_names_and_to_no_other(native, opened):
    daemon = native(config=security(open_reads=opened, open_inference=opened))
    document = request(f"{daemon.url}/openapi.json", headers={"X-API-Key": KEYS["viewer"]}).json()
    seen = 0
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            needs = ROLES[operation["x-inferd-needs"]]
            if opened and operation["x-inferd-needs"] in ("read", "infer"):
                needs = None
            concrete = path.replace("{model}", "nobody").replace("{version}", "1")
            for role in ORDER:
                may = ORDER.index(role) >= ORDER.index(needs)
                if may and operation["x-inferd-needs"] in ("operate", "administer"):
                    continue  # what it would do is another test's
                answer = ask(daemon, verb.upper(), concrete, headers=headers(role))
                seen += 1
                if may:
                    assert answer.status not in (401, 403), (verb, path, role, answer)
                else:
                    assert answer.status == (401 if role is None else 403), (verb, path, role, answer)
                    assert needs in answer.body.decode(), "the reason names the role"
    assert seen > 150
    assert daemon.request("/livez").status == 200


def test_an_operator_loads_models_and_only_an_admin_touches_bundles(native):
    daemon = native(config=security())
    model = ask(daemon, "GET", "/contract").json()["model"]
    load = f"/v2/repository/models/{model}/load"
    for bearer in (False, True):
        assert ask(daemon, "POST", load, headers=headers("viewer", bearer)).status == 403
        assert ask(daemon, "POST", load, headers=headers("operator", bearer)).status == 200
        assert ask(daemon, "POST", load, headers=headers("admin", bearer)).status == 200
    # However the path is written.
    sly = load.replace("load", "%6coad").replace("models", "%6dodels")
    assert ask(daemon, "POST", sly).status == 401
    assert ask(daemon, "POST", sly, headers=headers("operator")).status == 200
    for method, path in (("PUT", "/api/v1/bundle"), ("POST", "/api/v1/rollback"), ("POST", "/api/v1/trust"), ("DELETE", "/api/v1/pull")):
        assert ask(daemon, method, path, headers=headers("operator")).status == 403
        assert ask(daemon, method, path, headers=headers("admin")).status not in (401, 403)
    digest = "sha256:" + hashlib.sha256(KEYS["admin"].encode()).hexdigest()
    assert ask(daemon, "POST", load, headers=[("X-API-Key", digest)]).status == 403, "who reads the file has no key"


def test_each_change_leaves_one_line_with_role_route_and_outcome(native):
    daemon = native(config=security())
    model = ask(daemon, "GET", "/contract").json()["model"]
    load = f"/v2/repository/models/{model}/load"
    assert ask(daemon, "POST", load, headers=[*headers("operator"), ("X-Request-ID", "audit-1")]).status == 200
    assert ask(daemon, "POST", load, headers=[*headers("viewer"), ("X-Request-ID", "audit-2")]).status == 403
    assert ask(daemon, "POST", "/infer", window("0.5"), headers=[("X-Request-ID", "audit-3")]).status == 200
    until(lambda: "audit-2" in daemon.log_text(), "the lines are written")
    lines = [line for line in daemon.log_text().splitlines() if "audit-" in line]
    assert len(lines) == 2, lines
    done, refused = lines
    name = hashlib.sha256(KEYS["operator"].encode()).hexdigest()[:8]
    assert "audit" in done and "operator" in done and name in done and "200" in done
    assert "/v2/repository/models/{model}/load" in done
    assert "403" in refused and "forbidden" in refused
    tried = hashlib.sha256(KEYS["viewer"].encode()).hexdigest()[:8]
    assert 'role="viewer"' in refused and tried in refused, "a key of the device has a name when it is refused too"
    assert not any(key in daemon.log_text() for key in KEYS.values())


def test_an_operator_who_asks_for_what_only_an_admin_may_is_named_in_the_log(native):
    daemon = native(config=security())
    asked = ask(daemon, "POST", "/api/v1/reboot", headers=[*headers("operator"), ("X-Request-ID", "audit-4")])
    assert asked.status == 403 and "this changes the device" in asked.json()["detail"]
    until(lambda: "audit-4" in daemon.log_text(), "the line is written")
    [line] = [line for line in daemon.log_text().splitlines() if "audit-4" in line]
    name = hashlib.sha256(KEYS["operator"].encode()).hexdigest()[:8]
    assert 'role="operator"' in line and f'key="{name}"' in line and "status=403" in line, line


def test_who_only_looks_changes_nothing_and_is_not_in_the_log_as_if(native):
    daemon = native(config=security())
    for role, status in ((None, 401), ("operator", 403), ("admin", 200)):
        looked = ask(daemon, "GET", "/api/v1/captures", headers=[*headers(role), ("X-Request-ID", f"look-{status}")])
        assert looked.status == status
        if status != 200:
            assert "this reads and needs" in looked.json()["detail"], looked
    assert ask(daemon, "DELETE", "/api/v1/captures", headers=[("X-Request-ID", "look-end")]).status == 401
    until(lambda: "look-end" in daemon.log_text(), "the lines are written")
    assert not [line for line in daemon.log_text().splitlines() if "look-" in line and "look-end" not in line]


def test_an_array_of_an_orders_values_is_not_the_order(native):
    daemon = native()
    for path in ("reboot", "factory-reset", "watchdog/test"):
        for body in ("[]", '["daemon"]', '"daemon"', '{"what":"daemon","why":"x","more":1}'):
            assert ask(daemon, "POST", f"/api/v1/{path}", body).status == 400, (path, body)
    assert ask(daemon, "PUT", "/api/v1/logging", '["debug",60]').status == 400
    assert ask(daemon, "GET", "/api/v1/logging").json()["level"] == "info"


def test_a_guesser_is_slowed_down_and_learns_nothing_meanwhile(native):
    daemon = native(config=security())
    guess = lambda key: ask(daemon, "POST", "/api/v1/rollback", headers=[("X-API-Key", key)])  # noqa: E731
    answers = [guess(f"a-wrong-key-{n:08}") for n in range(12)]
    assert [a.status for a in answers[:10]] == [403] * 10 and answers[11].status == 429
    late = guess(KEYS["admin"])
    assert late.status == 429, "the right one is not looked at either"
    assert re.fullmatch(r"Rate limit exceeded\. Try again in [1-6]s\.", late.json()["detail"])
    assert 1 <= int(late.headers["retry-after"]) <= 6
    for path in ("/healthz", "/status", "/metrics"):
        assert ask(daemon, "GET", path).status == 200, "what needs no key is as before"


def test_probes_metrics_and_the_documentation_are_never_limited(native):
    daemon = native(config="[security]\nrate_limit_per_s = 1\nrate_limit_burst = 2\n")

    def one_too_many():
        answer = ask(daemon, "POST", "/infer", window("0.5"))
        return answer.status == 429 and answer

    limited = until(one_too_many, "the limit is reached")
    assert limited.headers["retry-after"] == "1"
    assert limited.json()["detail"] == "Rate limit exceeded. Try again in 1s."
    for path in ("/healthz", "/livez", "/readyz", "/health", "/metrics", "/docs", "/v2/health/live", "/v2/health/ready"):
        assert [ask(daemon, "GET", path).status for _ in range(5)] == [200] * 5, path


@pytest.fixture
def lan():
    """An address of this machine that is not loopback."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]
    except OSError:
        pytest.skip("this machine has no address but loopback")
    finally:
        probe.close()


def far_ask(daemon, address, method, path, body="", extra=()):
    """One request from an address that is not loopback."""
    with socket.create_connection((address, daemon.port), timeout=30) as wire:
        head = f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        wire.sendall((head + "".join(f"{n}: {v}\r\n" for n, v in extra) + "\r\n" + body).encode())
        answer = b""
        while piece := wire.recv(65536):
            answer += piece
    return int(answer.split()[1]) if answer else 0


def everywhere(native, config=""):
    """A daemon that listens on every address of this machine, on one port."""
    return native(config=config, listen="0.0.0.0")


def test_without_keys_another_machine_reads_and_infers_and_changes_nothing(native, lan):
    daemon = everywhere(native)
    model = ask(daemon, "GET", "/contract").json()["model"]
    assert far_ask(daemon, lan, "GET", "/status") == 200
    assert far_ask(daemon, lan, "POST", "/infer", window("0.5")) == 200
    assert far_ask(daemon, lan, "POST", f"/v2/repository/models/{model}/load") == 403
    assert far_ask(daemon, lan, "POST", "/api/v1/rollback") == 403


def test_one_client_of_another_machine_changes_the_device_only_so_often(native, lan):
    daemon = everywhere(native, security(change_limit_per_min=3))
    changes = [far_ask(daemon, lan, "DELETE", "/api/v1/pull", extra=headers("admin")) for _ in range(5)]
    assert 429 not in changes[:3] and changes[4] == 429
    assert far_ask(daemon, lan, "GET", "/status") == 200
    assert ask(daemon, "DELETE", "/api/v1/pull", headers=headers("admin")).status != 429, "the device itself is not limited"


def test_one_client_cannot_take_all_places(native, lan):
    daemon = everywhere(native, "[server]\nmax_connections = 40\nmax_connections_per_client = 8\n")
    crowd = [socket.create_connection((lan, daemon.port), timeout=30) for _ in range(39)]
    try:
        taken = lambda: ask(daemon, "GET", "/status").json()["connections"]  # noqa: E731
        until(lambda: taken() == 9, "8 of the crowd and the one that asks")
        assert far_ask(daemon, lan, "GET", "/healthz") in (200, 503)
        until(lambda: far_ask(daemon, lan, "GET", "/healthz") == 200, "an idle one of the same client gave way")
    finally:
        for wire in crowd:
            wire.close()


def test_three_hundred_silent_clients_keep_nobody_out(native):
    daemon = native()
    silent = [socket.create_connection(("127.0.0.1", daemon.port), timeout=30) for _ in range(300)]
    try:
        for n, wire in enumerate(silent):
            if n % 3 == 0:
                try:
                    wire.sendall(b"POST /infer HT")
                except OSError:
                    pass  # it had to give way already

        def served():
            try:
                return ask(daemon, "GET", "/healthz").status == 200 and ask(daemon, "POST", "/infer", window("0.5")).status == 200
            except (AssertionError, OSError):
                return False

        until(served, "a new client is served")
        assert ask(daemon, "GET", "/healthz").status == 200
    finally:
        for wire in silent:
            wire.close()
