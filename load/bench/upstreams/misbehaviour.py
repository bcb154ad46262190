"""What a server sends, as steps: bytes, pauses, ends. And what should come of it.

    Misbehaviour = status x body x form of the stream x moment

A step is bytes to send, `Pause`, `Cut` (the connection is reset) or `Silence` (nothing more, the
connection stays). `serving` makes whole HTTP replies of statuses, streams and JSON bodies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing is sent for so long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection is reset."""


Step = bytes | Pause | Cut
# What is sent for a request with this body.
Steps = Callable[[Json], tuple[Step, ...]]
Fault = Literal["nobody", "caller", "pool"]
Answerer = Literal["itself", "other"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaviour:
    """One way to misbehave, and who should answer in spite of it."""

    name: str
    steps: Steps
    fault: Fault = "nobody"
    answerer: Answerer = "itself"
    # After its first token: a stream can only end with an error, a whole answer is got elsewhere.
    breaks_off: bool = False
    message: Json = field(default_factory=lambda: {"content": TEXT})  # what it answers
    body: Json = field(default_factory=dict)  # asked beside the messages
    pool: Json = field(default_factory=dict)  # settings of its pool


TEXT = "Grüße, 世界 😀"
WORDS = ("Grüße", ", ", "世界", " 😀")
TOOLS: Json = {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}


# --- replies


def head(status: int, kind: str, extra: str = "") -> bytes:
    """Status line and headers; the body ends with the connection."""
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Odd"
    return (
        f"HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\nConnection: close\r\n{extra}\r\n"
    ).encode()


def stream(*parts: Step) -> tuple[Step, ...]:
    """A 200 whose body is these parts."""
    return (head(200, "text/event-stream"), *parts)


def whole(body: object, status: int = 200, extra: str = "") -> tuple[Step, ...]:
    """A reply of one JSON object."""
    return (head(status, "application/json", extra), json.dumps(body).encode())


def refused(status: int, words: str = "", *, extra: str = "", **names: object) -> Steps:
    """An error of OpenAI's form."""
    error = {"message": words or "refused", **names}
    return lambda body: whole({"error": error}, status, extra)


def always(*steps: Step) -> Steps:
    """The same whatever is asked."""
    return lambda body: steps


# --- events


def event(data: object) -> bytes:
    """One server-sent event of JSON."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


def raw(data: bytes) -> bytes:
    """One server-sent event of these bytes."""
    return b"data: " + data + b"\n\n"


def chunk(delta: object = None, finish: str | None = None, **more: object) -> dict[str, object]:
    """A `chat.completion.chunk`."""
    choice: dict[str, object] = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    beside = more.pop("choice", {})
    assert isinstance(beside, dict)
    about = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    return {**about, "choices": [{**choice, **beside}], **more}


def said(text: str, **more: Any) -> bytes:
    """A token."""
    return event(chunk({"content": text}, **more))


DONE = raw(b"[DONE]")
STOP = event(chunk({}, "stop"))
CALLED = event(chunk({}, "tool_calls"))
ROLE = event(chunk({"role": "assistant", "content": ""}))
USAGE = event(
    {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}}
)
TOKENS = b"".join(map(said, WORDS))


def deltas(*parts: object, end: bytes = STOP) -> Steps:
    """A stream of these deltas."""
    return always(*stream(ROLE, *(event(chunk(part)) for part in parts), end, USAGE, DONE))
