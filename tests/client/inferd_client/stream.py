"""Predictions as they happen: server-sent events of `POST /infer/stream`."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import Client

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0


@dataclass(frozen=True)
class Prediction:
    """One frame. `window` counts the windows of the source, `timestamp` is the device's clock in seconds."""

    frame: int
    window: int
    prediction: int
    label: str
    confidence: float
    latency_ms: float
    backend: str
    source: str
    model: str
    timestamp: float
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Interrupted:
    """No predictions for now, and why. `lost` tells a connection that is tried again from a source that the device says is not well."""

    reason: str
    lost: bool


@dataclass(frozen=True)
class Completed:
    """How the device counted the stream that it ended."""

    total_frames: int
    duration_seconds: float
    avg_fps: float


class Stream:
    """Iterates over `Prediction` and `Interrupted`, and ends when the device says that it is complete (`completed` then).

    A connection that is lost, or on which nothing comes for `silence` seconds, not even the comments that the device writes when
    there is nothing to tell, is made again with pauses from 0.25 to 5 seconds, and the device asked for what was told meanwhile
    (`Last-Event-ID`; it keeps the last 256). A first request that is refused raises; a later one only when asking again cannot help.
    """

    def __init__(self, client: Client, form: dict[str, Any], duration: float | None, reconnect: bool, silence: float):
        self._client, self._form, self._reconnect, self._silence = client, form, reconnect, silence
        self._until = None if duration is None else time.monotonic() + duration
        self._connection: http.client.HTTPConnection | None = None
        self._closed = False
        self._told = self._run()
        self.last_event_id = ""
        self.completed: Completed | None = None

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it: the device stops its work for this client."""
        self._closed = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __iter__(self) -> Iterator[Prediction | Interrupted]:
        return self

    def __next__(self) -> Prediction | Interrupted:
        return next(self._told)

    def _run(self) -> Iterator[Prediction | Interrupted]:
        from .client import Unavailable

        pause, reached = FIRST_PAUSE, False
        try:
            while not self._closed:
                form = dict(self._form)
                if self._until is not None:
                    left = self._until - time.monotonic()
                    if left <= 0:
                        return
                    form["duration_seconds"] = left
                try:
                    headers = {"Last-Event-ID": self.last_event_id, "Accept": "text/event-stream"}
                    self._connection, answer = self._client.open("POST", "/infer/stream", form, headers, self._silence)
                    reached = True
                    for event in self._events(answer):
                        pause = FIRST_PAUSE
                        yield event
                    if self.completed is not None or self._closed:
                        return
                    why = "the connection ended"
                except (OSError, http.client.HTTPException, Unavailable, AttributeError, ValueError) as error:
                    # Closed by another thread in the middle of a read, the standard library's reader fails with any of these.
                    if self._closed:
                        return
                    if isinstance(error, (AttributeError, ValueError)):
                        raise
                    if not reached or not self._reconnect:
                        raise
                    why = str(error) or type(error).__name__
                if not self._reconnect:
                    raise ConnectionError(why)
                self._hang_up()
                yield Interrupted(why, lost=True)
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self.close()

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[Prediction | Interrupted]:
        number, data = "", []
        while line := answer.readline():
            text = line.decode(errors="replace").rstrip("\r\n")
            if text:
                # A comment has no name before its colon: it only shows that the connection lives.
                field, _, value = text.partition(":")
                value = value.removeprefix(" ")
                if field == "id":
                    number = value
                elif field == "data":
                    data.append(value)
                continue
            if not data:
                continue
            event = json.loads("\n".join(data))
            if number:
                self.last_event_id = number
            number, data = "", []
            if event.get("status") == "completed":
                self.completed = Completed(event["total_frames"], event["duration_seconds"], event["avg_fps"])
                return
            yield Interrupted(event["error"], lost=False) if "error" in event else prediction(event)


def prediction(event: dict[str, Any]) -> Prediction:
    """A frame of the wire."""
    return Prediction(
        event["frame"],
        event["window"],
        event["prediction"],
        event["label"],
        event["confidence"],
        event["latency_ms"],
        event["backend"],
        event["source"],
        event["model"],
        event["timestamp"],
        event,
    )
