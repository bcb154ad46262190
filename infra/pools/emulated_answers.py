"""What an emulated server is asked and says, in the form that OpenAI's API gives it.

    ChatRequest ─▶ (Planned) ─▶ completion, or chunk, chunk, …, last_chunk      or refusal

The text is numbered words, "w0 w1 w2 …", a token each.

Nothing here knows when anything is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

encode = msgspec.json.Encoder().encode


class ChatRequest(msgspec.Struct):
    """What is read of a request; the rest does not matter to an emulation."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    model: str = ""
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    max_tokens: Annotated[int, Meta(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Meta(ge=1)] | None = None
    logprobs: bool | None = False
    priority: int = 0  # vLLM's, as the next two: lower is served earlier
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    ignore_eos: bool | None = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """An answer before it is made."""

    id: str
    model: str
    created: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    finish_reason: str
    logprob: float | None  # of each token
    messages: list[dict[str, Any]]
    priority: int


def chunk(planned: Planned, first: int, end: int) -> dict[str, Any]:
    """The words from `first` to before `end`; with the very first comes the role."""
    role = {} if first else {"role": "assistant"}
    choice: dict[str, Any] = {
        "index": 0,
        "delta": role | {"content": text(first, end)},
        "finish_reason": planned.finish_reason if end == planned.output_tokens else None,
    }
    if planned.logprob is not None:
        choice["logprobs"] = {"content": logprobs(first, end, planned.logprob)}
    return _head(planned, "chat.completion.chunk") | {"choices": [choice]}


def last_chunk(planned: Planned) -> dict[str, Any]:
    """The usage, after the last words."""
    return _head(planned, "chat.completion.chunk") | {"choices": [], "usage": usage(planned)}


def text(first: int, end: int) -> str:
    """The words from `first` to before `end`."""
    return "".join(f"w{i} " for i in range(first, end))


def logprobs(first: int, end: int, logprob: float) -> list[dict[str, Any]]:
    """Of each of these words."""
    return [{"token": f"w{i} ", "logprob": logprob} for i in range(first, end)]


def usage(planned: Planned) -> dict[str, Any]:
    """What the answer took."""
    return {
        "prompt_tokens": planned.prompt_tokens,
        "completion_tokens": planned.output_tokens,
        "total_tokens": planned.prompt_tokens + planned.output_tokens,
        "prompt_tokens_details": {"cached_tokens": planned.cached_tokens},
    }


def completion(planned: Planned) -> dict[str, Any]:
    """The whole answer."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": text(0, planned.output_tokens)},
        "finish_reason": planned.finish_reason,
    }
    if planned.logprob is not None:
        choice["logprobs"] = {"content": logprobs(0, planned.output_tokens, planned.logprob)}
    head = _head(planned, "chat.completion")
    return head | {"choices": [choice], "usage": usage(planned)}


def refusal(message: str, kind: str, code: str | None = None) -> bytes:
    """An error's body."""
    return encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def _head(planned: Planned, kind: str) -> dict[str, Any]:
    return {
        "id": planned.id,
        "object": kind,
        "created": planned.created,
        "model": planned.model,
    }
