"""Which HTTP status an error becomes, in the form OpenAI's clients read.

    {"error": {"message": "…", "type": "invalid_request_error", "param": "n", "code": "bad_field"}}

The official clients turn the status into an exception class, and by themselves try again, twice,
after 408, 409, 429 and everything from 500 on, unless a header says `x-should-retry: false`. So:

- What is wrong with the request stays below 500 and off those: 400, 404, 422. 422 is what no
  other reason uses: a sound request that no model can satisfy.
- A deadline that has passed stays so. 504 says what happened, and the header that trying again is
  in vain. (408 would blame the client for being slow to send.)
- 429 and 503 mean: later, or at another replica. They say when, in `retry-after`.

The one rule: the table is the mapping; tests compare it with the errors there are, and with what
the official client makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from starlette.exceptions import HTTPException

from serve.errors import (
    AnswerBroken,
    AnswerGarbled,
    AnswerLate,
    AttemptFailed,
    CallRefused,
    DeadlinePassed,
    EncoderUnavailable,
    EndpointFailed,
    FleetFull,
    InvalidRequest,
    NoModelFits,
    NotServing,
    QueueFull,
    TextRefused,
    UnknownModel,
)
from streams.errors import BadFeedback, BadTicket, LogUnavailable, OutboxClosed

MESSAGE_BYTES_MAX = 2000  # as over gRPC: a list of 255 models helps nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What an error is over HTTP."""

    status: int
    type: str  # OpenAI's broad kinds
    code: str  # stable, for programs
    headers: Mapping[str, str] = field(default_factory=dict)


def _asked(status: int, code: str) -> Meaning:
    return Meaning(status=status, type="invalid_request_error", code=code)


def _ours(status: int, code: str, headers: Mapping[str, str] | None = None) -> Meaning:
    return Meaning(status=status, type="server_error", code=code, headers=headers or {})


# A second: long enough for a queue to drain or another replica to start, short enough to wait for.
LATER = {"retry-after": "1"}
# The next call of this client belongs on another replica, so on another connection.
ELSEWHERE = {"retry-after": "1", "connection": "close"}
IN_VAIN = {"x-should-retry": "false"}

MEANING: dict[type[Exception], Meaning] = {
    InvalidRequest: _asked(400, "bad_field"),
    BadTicket: _asked(400, "bad_ticket"),
    BadFeedback: _asked(400, "bad_feedback"),
    CallRefused: _asked(400, "call_refused"),
    UnknownModel: _asked(404, "model_not_found"),
    NoModelFits: _asked(422, "no_model_fits"),
    TextRefused: _asked(422, "text_refused"),
    QueueFull: Meaning(status=429, type="rate_limit_error", code="queue_full", headers=LATER),
    FleetFull: Meaning(status=429, type="rate_limit_error", code="fleet_full", headers=LATER),
    AnswerBroken: _ours(502, "answer_broken"),
    AnswerGarbled: _ours(502, "answer_garbled"),
    EndpointFailed: _ours(502, "endpoint_failed"),
    AttemptFailed: _ours(503, "no_answer", LATER),  # NoAnswer, EndpointUnreachable, …Overloaded
    EncoderUnavailable: _ours(503, "encoder_unavailable", LATER),
    LogUnavailable: _ours(503, "log_unavailable", LATER),
    NotServing: _ours(503, "not_serving", ELSEWHERE),
    OutboxClosed: _ours(503, "not_serving", ELSEWHERE),
    AnswerLate: _ours(504, "answer_late"),
    DeadlinePassed: _ours(504, "deadline_passed", IN_VAIN),
}
BUG = _ours(500, "internal_error")


def meaning_of(error: Exception) -> Meaning:
    """Status, type, code and headers. An error that is not in the table is our bug."""
    if isinstance(error, HTTPException):
        kind = "authentication_error" if error.status_code == 401 else "invalid_request_error"
        code = {401: "invalid_api_key", 413: "body_too_large"}.get(error.status_code, "bad_call")
        headers = error.headers or {}
        return Meaning(status=error.status_code, type=kind, code=code, headers=headers)
    return next((MEANING[kind] for kind in type(error).__mro__ if kind in MEANING), BUG)


def error_object(error: Exception) -> dict[str, object]:
    """The value of `error` in OpenAI's form; details of a bug stay in our log."""
    meaning = meaning_of(error)
    return {
        "message": _message(error, meaning),
        "type": meaning.type,
        "param": getattr(error, "field", None),
        "code": meaning.code,
    }


def error_body(error: Exception) -> bytes:
    """The whole body of a failed call, and an event of a stream that breaks off."""
    return msgspec.json.encode({"error": error_object(error)})


def _message(error: Exception, meaning: Meaning) -> str:
    if meaning is BUG:
        return f"internal error ({type(error).__name__}); see the dispatcher's log"
    message = error.detail if isinstance(error, HTTPException) else str(error)
    # Surrogates can't travel as JSON; whoever named a model so gets question marks.
    data = message.encode("utf-8", "replace")
    if len(data) <= MESSAGE_BYTES_MAX:
        return data.decode()
    return data[:MESSAGE_BYTES_MAX].decode(errors="ignore") + " …"
