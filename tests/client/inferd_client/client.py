"""Requests with one answer."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from .stream import Stream

Rows = Sequence[Sequence[float]]


class Refused(Exception):
    """The device answered, and not with what was asked for; `status` and its own sentence say why."""

    def __init__(self, status: int, reason: str, retry_after: float | None = None):
        super().__init__(f"{status}: {reason}")
        self.status, self.reason, self.retry_after = status, reason, retry_after


class Unavailable(Refused):
    """It cannot now (429 or 503): a model that loads, a source that is not live, too many requests. Asking later may help."""


@dataclass(frozen=True)
class Gesture:
    """What a window of muscle signals was recognised as. The device answers in texts, for its oldest clients; these are numbers."""

    prediction: int
    label: str
    confidence: float
    probabilities: tuple[float, ...]
    latency_ms: float
    backend: str


@dataclass(frozen=True)
class Pushed:
    """What became of samples that were pushed: how many were taken, the number of the next one, how many were missing before."""

    taken: int
    next: int
    missing: int


@dataclass(frozen=True)
class Source:
    """A source of live input; `state` is `live` or says what is wrong, `reason` in a sentence; `raw` has every field."""

    name: str
    kind: str
    state: str
    reason: str
    model: str | None
    raw: Mapping[str, Any]


class Client:
    """One device. `timeout` is in seconds and for each answer; a stream has its own. Every call has a connection of its own, so that
    one client may be used by many threads."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:9000",
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        tls: ssl.SSLContext | None = None,
    ):
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is no URL such as http://device.lan:9000")
        self._secure, self._host = parts.scheme == "https", parts.hostname
        self._port = parts.port or (443 if self._secure else 80)
        self._prefix = parts.path.rstrip("/")
        self._key, self._timeout, self._tls = api_key, timeout, tls

    # ---- what there is

    def health(self) -> dict[str, Any]:
        """`/health`: `status` is `ok` while it serves."""
        return self.request("GET", "/health")

    def status(self) -> dict[str, Any]:
        """`/status`: everything it says of itself."""
        return self.request("GET", "/status")

    def sources(self) -> list[Source]:
        """Its sources of live input."""
        found = self.request("GET", "/api/v1/sources")["sources"]
        return [Source(s["name"], s["kind"], s["state"], s["reason"], s["model"], s) for s in found]

    def stream_stats(self) -> dict[str, Any]:
        """`/infer/stream/stats`: measured; null is not known."""
        return self.request("GET", "/infer/stream/stats")

    # ---- what it recognises

    def infer(self, window: Rows | None = None, *, source: str | None = None, preprocess: bool = True) -> Gesture:
        """A window of muscle signals (rows of one value for each channel), or the newest window of a source."""
        form: dict[str, Any] = {"preprocess": preprocess}
        if window is not None:
            form["window"] = [list(map(float, row)) for row in window]
        elif source is not None:
            form["emg_mode"] = source
        told = self.request("POST", "/infer", form)
        return Gesture(
            int(told["pred_idx"]),
            told["pred_label"],
            float(told["conf"]),
            tuple(json.loads(told["probs"])),
            float(told["latency_ms"]),
            told["backend"],
        )

    def infer_imu(self, window: Rows) -> dict[str, list[float]]:
        """A second of a nine-axis sensor, 100 rows of 9: `latent` (64 numbers) and `motif_scores` (12)."""
        return self.request("POST", "/infer", {"x": [list(map(float, row)) for row in window]})

    def stream(
        self,
        source: str | None = None,
        *,
        fps: int = 30,
        duration: float | None = None,
        preprocess: bool = True,
        reconnect: bool = True,
        silence: float = 40.0,
    ) -> Stream:
        """What a source is recognised as, as it happens; the first source where none is named. See `Stream`."""
        form = {"fps": fps, "preprocess": preprocess, **({"emg_mode": source} if source is not None else {})}
        return Stream(self, form, duration, reconnect, silence)

    # ---- being a sensor

    def push(self, source: str, samples: Rows, sequence: int | None = None) -> Pushed:
        """Samples of a source of kind `push`, one row each; `sequence` is the number of the first row."""
        body: dict[str, Any] = {"samples": [list(map(float, row)) for row in samples]}
        if sequence is not None:
            body["sequence"] = sequence
        told = self.request("POST", f"/api/v1/sources/{quote(source, safe='')}/samples", body)
        return Pushed(told["taken"], told["next"], told["missing"])

    # ---- below

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One request; the answer's JSON. Raises `Refused`, `Unavailable`, or `OSError` where nobody answers."""
        connection, answer = self.open(method, path, body, {}, self._timeout)
        try:
            return json.loads(answer.read())
        finally:
            connection.close()

    def open(
        self, method: str, path: str, body: Any, headers: Mapping[str, str], timeout: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """An answer with 2xx whose body was not read yet, and its connection."""
        connection: http.client.HTTPConnection
        if self._secure:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
        sent = dict(headers)
        if self._key is not None:
            sent["X-API-Key"] = self._key
        data = None
        if body is not None:
            data, sent["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            connection.request(method, self._prefix + path, data, sent)
            answer = connection.getresponse()
            if 200 <= answer.status < 300:
                return connection, answer
            kind = Unavailable if answer.status in (429, 503) else Refused
            wait = answer.getheader("Retry-After", "")
            raise kind(answer.status, reason(answer.read(65536)), float(wait) if wait.isdigit() else None)
        except http.client.HTTPException as error:
            connection.close()
            raise ConnectionError(f"what answered is no HTTP: {error!r}") from error
        except BaseException:
            connection.close()
            raise


def reason(body: bytes) -> str:
    """The sentence in a refusal: FastAPI's `detail`, a text or a list, the protocol's `error`, or the text."""
    try:
        page = json.loads(body)
    except ValueError:
        return body.decode(errors="replace").strip()[:300] or "without a reason"
    detail = page.get("detail", page.get("error")) if isinstance(page, dict) else page
    if isinstance(detail, list):
        said = [d for d in detail if isinstance(d, dict)]
        return "; ".join(f"{'.'.join(map(str, d.get('loc', [])))}: {d.get('msg', 'invalid')}" for d in said)
    return str(detail)
