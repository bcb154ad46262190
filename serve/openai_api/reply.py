"""Events of an answer, written as OpenAI's objects: one `chat.completion`, or its chunks.

    Routed, Streamed, …, Ended ──StreamWriter──▶ data: {chunk}  …  data: {chunk}  data: [DONE]
                               ──WholeWriter───▶ {completion}

Beside OpenAI's fields there is one of ours, `fairlead`: who answered after which attempts, at what
cost, and the ticket to report its quality with. It comes with the last chunk. A chunk that ends an
answer (one with a `finish_reason`) is therefore held until the next event, so that nobody is sent
a chunk without a choice who did not ask for one: many programs read `choices[0]` blindly.

Deltas, finish reasons and log-probabilities are passed on as they came.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Struct, UnsetType, structs

from serve.dispatch.answers import AttemptRecord, Ended, Event, Routed, Streamed
from serve.dispatch.backend import Answer, Piece
from serve.openai_api.errors import error_body, error_object
from serve.openai_api.request import write_ticket

# Clients and proxies give up on long headers, some at 8 KiB in all. The body has all of it anyway.
HEADER_BYTES_MAX = 4096
# Of an answer, as they are called in `Ended`.
FIGURES = ("attempts", "cost_usd", "paid_usd", "confidence", "first_token_ms", "latency_ms")
FAILED = "error"  # the finish reason of an answer that broke off, in fan-out
NO_PIECE = Piece(delta={})
_PLAIN = "".join(chr(c) for c in range(0x20, 0x7F) if chr(c) != "%")  # stays as it is in a header

JsonObject = dict[str, object]  # a JSON object

_encode = msgspec.json.Encoder().encode


class Choice(Struct):
    """A piece of one answer."""

    index: int
    delta: Mapping[str, object]
    logprobs: Mapping[str, object] | None
    finish_reason: str | None


class Chunk(Struct):
    """OpenAI's `chat.completion.chunk`."""

    id: str
    created: int
    model: str
    choices: tuple[Choice | JsonObject, ...]
    usage: JsonObject | UnsetType | None = UNSET
    fairlead: JsonObject | UnsetType = UNSET
    object: str = "chat.completion.chunk"


class Progress:
    """What is known of the answers so far; several may come where fan-out was asked for."""

    def __init__(self, *, fan_out: bool) -> None:
        self._fan_out = fan_out
        self.routed: dict[int, Routed] = {}
        self.ended: dict[int, Ended] = {}

    @property
    def first(self) -> Routed:
        """The answer that came first speaks for all: in the headers, the id, `fairlead`."""
        return next(iter(self.routed.values()))

    def check_answered(self) -> None:
        """Raises what kept the answers from coming, where none came."""
        if self.routed:
            return
        problems = [ended.problem for ended in self.ended.values() if ended.problem is not None]
        assert problems, "an answer ends with its pieces or with a problem"
        raise problems[0]

    @cached_property
    def completion_id(self) -> str:
        """The same in every chunk."""
        return f"chatcmpl-{self.first.decision.decision_id}"

    def usage(self) -> JsonObject:
        """Tokens of all answers together."""
        usages = [ended.usage for ended in self.ended.values()]
        n_prompt = sum(usage.prompt_tokens for usage in usages)
        n_output = sum(usage.output_tokens for usage in usages)
        details = usages[0].details if len(usages) == 1 else None  # those of several don't add up
        return {
            **(details or {}),
            "prompt_tokens": n_prompt,
            "completion_tokens": n_output,
            "total_tokens": n_prompt + n_output,
            "prompt_tokens_details": {
                **_object(details, "prompt_tokens_details"),
                "cached_tokens": sum(usage.cached_tokens for usage in usages),
            },
        }

    def fairlead(self) -> JsonObject:
        """The object of that name; with fan-out also one for each answer."""
        whole = self._answer(self.first.answer)
        if self._fan_out:
            answers = sorted(self.routed.keys() | self.ended.keys())
            whole["answers"] = [{"index": i, **self._answer(i)} for i in answers]
        return whole

    def _answer(self, index: int) -> JsonObject:
        found: JsonObject = {}
        if routed := self.routed.get(index):
            found |= {"model": routed.model, "pool": routed.pool, "endpoint": routed.endpoint}
            found["ticket"] = write_ticket(routed.ticket)
            found["decision_id"] = routed.decision.decision_id
        if ended := self.ended.get(index):
            found |= {name: getattr(ended, name) for name in FIGURES}
            found["tokens_counted"] = ended.usage.counted
            if ended.unsure:
                found["unsure"] = ended.unsure
            if ended.escalated:
                found["escalated"] = ended.escalated
            if ended.problem is not None:
                found["problem"] = error_object(ended.problem)
        return found


def _object(around: Mapping[str, object] | None, name: str) -> JsonObject:
    found = (around or {}).get(name)
    return dict(found) if isinstance(found, Mapping) else {}


def headers_of(routed: Routed) -> dict[str, str]:
    """Who answers, for those who only look at headers. A ticket that is too long is left out."""
    ticket = write_ticket(routed.ticket)
    headers = {
        "x-fairlead-model": _header(routed.model),
        "x-fairlead-pool": _header(routed.pool),
        "x-fairlead-decision": routed.decision.decision_id,
        "x-fairlead-snapshot-version": str(routed.decision.snapshot_version),
        "x-fairlead-attempts": _attempts_header(routed.attempts),
    }
    if routed.escalated:
        headers["x-fairlead-escalated"] = _header(routed.escalated)
    return headers | ({"x-fairlead-ticket": ticket} if len(ticket) <= HEADER_BYTES_MAX else {})


def _header(text: str) -> str:
    """As it is where it is printable ASCII, else percent-encoded."""
    return quote(text, safe=_PLAIN, errors="replace")[:HEADER_BYTES_MAX]


def _attempts_header(attempts: tuple[AttemptRecord, ...]) -> str:
    """The attempts before this one, oldest first, and how many were left out if they are many."""
    short = [
        {"model": a.model, "pool": a.pool, "kind": a.kind, "outcome": a.outcome}
        | {"took_ms": round(a.took_ms, 1)}
        for a in attempts
    ]
    for n in range(len(short), -1, -1):
        left_out = [{"left_out": len(short) - n}] if n < len(short) else []
        text = json.dumps(short[:n] + left_out, separators=(",", ":"))
        if len(text) <= HEADER_BYTES_MAX:
            return text
    raise AssertionError("a number fits")


class StreamWriter:
    """Server-sent events, event by event."""

    def __init__(self, created_s: int, *, include_usage: bool, fan_out: bool) -> None:
        self.progress = Progress(fan_out=fan_out)
        self._created_s = created_s
        self._include_usage = include_usage
        self._usage: UnsetType | None = None if include_usage else UNSET  # of all chunks but one
        self._held: tuple[int, Piece] | None = None

    def write(self, event: Event) -> bytes:
        """What to send now, which may be nothing yet."""
        if isinstance(event, Streamed):
            return self._piece(event.answer, event.piece)
        if isinstance(event, Routed):
            self.progress.routed[event.answer] = event
            return b""
        self.progress.ended[event.answer] = event
        if event.problem is None or event.answer not in self.progress.routed:
            return b""
        return self._piece(event.answer, Piece(delta={}, finish_reason=FAILED))

    def _piece(self, answer: int, piece: Piece) -> bytes:
        before = self._chunk(*self._held) if self._held else b""
        if piece.finish_reason is None:
            self._held = None
            return before + self._chunk(answer, piece)
        self._held = (answer, piece)
        return before

    def _chunk(self, answer: int, piece: Piece, fairlead: JsonObject | UnsetType = UNSET) -> bytes:
        choice = Choice(answer, piece.delta, piece.logprobs, piece.finish_reason)
        model = self.progress.routed[answer].model
        whole = choice if piece.beside is None else {**piece.beside, **structs.asdict(choice)}
        return self._data(model, (whole,), self._usage, fairlead, piece.around)

    def _data(
        self,
        model: str,
        choices: tuple[Choice | JsonObject, ...],
        usage: JsonObject | UnsetType | None,
        fairlead: JsonObject | UnsetType,
        around: Mapping[str, object] | None = None,
    ) -> bytes:
        completion_id = self.progress.completion_id
        chunk = Chunk(completion_id, self._created_s, model, choices, usage, fairlead)
        whole = chunk if around is None else {**around, **_fields(chunk)}
        return b"data: " + _encode(whole) + b"\n\n"

    def end(self) -> bytes:
        """The last chunks, after all events."""
        last, found = self.progress, self.progress.fairlead()
        if self._include_usage:
            held = self._chunk(*self._held) if self._held else b""
            counts = self._data(last.first.model, (), last.usage(), found)
            return held + counts + b"data: [DONE]\n\n"
        answer, piece = self._held or (last.first.answer, NO_PIECE)
        return self._chunk(answer, piece, found) + b"data: [DONE]\n\n"

    def broken(self, error: Exception) -> bytes:
        """The end of a stream that can't be finished: no `[DONE]`, so nobody takes it for whole."""
        held = self._chunk(*self._held) if self._held else b""
        return held + b"data: " + error_body(error) + b"\n\n"


def _fields(chunk: Chunk) -> JsonObject:
    return {name: value for name, value in structs.asdict(chunk).items() if value is not UNSET}


class WholeWriter:
    """One `chat.completion` at the end."""

    def __init__(self, created_s: int, *, fan_out: bool) -> None:
        self.progress = Progress(fan_out=fan_out)
        self._created_s = created_s
        self._answers: dict[int, Answer] = {}

    def add(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Streamed):
            self._answers[event.answer].add(event.piece)
        elif isinstance(event, Routed):
            self.progress.routed[event.answer] = event
            self._answers[event.answer] = Answer()
        else:
            self.progress.ended[event.answer] = event

    def end(self) -> bytes:
        """The completion, after all events."""
        around: JsonObject = {}
        for answer in self._answers.values():
            around |= answer.around
        return _encode(
            {
                **around,
                "id": self.progress.completion_id,
                "object": "chat.completion",
                "created": self._created_s,
                "model": self.progress.first.model,
                "choices": [self._choice(i) for i in sorted(self._answers)],
                "usage": self.progress.usage(),
                "fairlead": self.progress.fairlead(),
            }
        )

    def _choice(self, index: int) -> JsonObject:
        answer, ended = self._answers[index], self.progress.ended[index]
        return {
            **answer.beside,
            "index": index,
            "message": {"content": None, **answer.message},
            "logprobs": answer.logprobs or None,
            "finish_reason": FAILED if ended.problem is not None else answer.finish_reason,
        }
