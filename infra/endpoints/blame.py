"""Whose fault it is when an OpenAI-compatible server gives no answer: one judgement for all forms.

    HTTP status, headers, body ──refusal──┐
    an error object in a stream ─at_fault─┴─▶ fault_of ─▶ CallRefused | EndpointOverloaded |
                                                          EndpointMisconfigured | EndpointFailed

    the call        it is malformed, not allowed, too long, or asks what this model can't do:
                    another model may answer it, this pool did nothing wrong
    overload        the server has too much to do, or this account has used up its share
    set-up          key, path, model or account of this pool are set up wrongly
    failure         everything else

Servers say it by status, by `error.code`, by `error.type` or in words alone, and a proxy between
may turn one into another. So names that mean something are believed first, then numbers (a status
200 may carry `{"error": {"code": 400}}`), and words decide where a number means two things: 403 is
a wrong key or a moderated prompt, 404 a wrong path or an image that can't be found.

A server's words are passed on in one line of bounded length, and never with a key in it.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus

import msgspec

from serve.errors import (
    AttemptFailed,
    CallRefused,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointOverloaded,
)

SAID_CHARACTERS_MAX = 500  # enough for a sentence or three; traces and pages of HTML are cut
RETRY_AFTER_S_MAX = 86_400.0  # what says more than a day says nothing


class Fault(Enum):
    """Whose fault it is."""

    CALL = "the call"
    OVERLOAD = "overload"
    SETUP = "set-up"
    FAILURE = "failure"


# Parts of `error.code` and `error.type`, lower case: OpenAI, Azure, Anthropic, Google, vLLM, TGI.
NAMES = (
    (Fault.SETUP, "api_key|authentication|unauthorized|unauthenticated|permission|model_not_found"
     "|not_found_error|deployment_?not_?found|insufficient_quota|billing|account|payment"),
    (Fault.OVERLOAD, "rate_?limit|overload|too_?many|resource_exhausted|capacity|busy|slow_?down"
     "|queue_full|unavailable"),
    (Fault.CALL, "content_?(filter|policy)|moderation|safety|context_length|invalid_?(request|arg"
     "|prompt|image|value|type)|badrequest|bad_request|unsupported|string_above|validation"
     "|unprocessable|too_?large|input_too_long"),
    (Fault.FAILURE, "server_error|internal|api_error|timeout|upstream"),
)  # fmt: skip
NAMED = [(fault, re.compile(names)) for fault, names in NAMES]

CALL = frozenset({400, 406, 411, 412, 413, 414, 415, 416, 417, 418, 422, 428, 431, 451})
OVERLOAD = frozenset({429, 503, 529})
FAILURE = frozenset({408, 409, 425, 499})  # of 4xx: it gave up on us, or was not ready

KEY_WORDS = re.compile(r"api.?key|credential|unauthori[sz]ed|authenticat", re.IGNORECASE)
MODEL_WORDS = re.compile(
    r"\bmodel\b.*(not exist|not found|unknown|no such)|no such model", re.IGNORECASE
)
# An account without money, of which some say so with the status of a malformed call.
ACCOUNT_WORDS = re.compile(
    r"(credit|account|fund|balance|quota)s?\b.{0,40}\b(too low|insufficient|exhausted|depleted"
    r"|overdue|suspended|deactivated|disabled)|(insufficient|out of|not enough|no) (account )?"
    r"(credit|fund|balance|quota)s?\b|exceeded your current quota|billing",
    re.IGNORECASE,
)
CONTENT_WORDS = re.compile(
    r"moderat|content.?(policy|filter|management)|flagged|safety|harmful|prohibited|violat"
    r"|\b(image|file|audio|video|media)\b",
    re.IGNORECASE,
)


def fault_of(status: int | None, names: str, words: str) -> Fault:
    """Whose fault a failure is: by names (`error.code` and `.type`), status and words.

    >>> fault_of(400, "", "max_tokens is too large"), fault_of(200, "rate_limit_error", "")
    (<Fault.CALL: 'the call'>, <Fault.OVERLOAD: 'overload'>)
    """
    if status is None or status < 500:
        named = next((fault for fault, found in NAMED if found.search(names)), None)
        if named is not None and not (named is Fault.CALL and _is_setup(status, words)):
            return named
    return _by_status(status, words)


def _by_status(status: int | None, words: str) -> Fault:
    if status in OVERLOAD:
        return Fault.OVERLOAD
    if status is None or status >= 500 or status in FAILURE:
        return Fault.FAILURE
    if _is_setup(status, words):
        return Fault.SETUP
    if status in (403, 404) and CONTENT_WORDS.search(words):
        return Fault.CALL
    # Another, unknown 4xx is about the call; 401 to 410 and 3xx are about the pool.
    return Fault.CALL if status in CALL or status > 410 else Fault.SETUP


def _is_setup(status: int | None, words: str) -> bool:
    """Whether a malformed call is really a wrong key, model or account: some say 400 for all."""
    found = (KEY_WORDS, MODEL_WORDS, ACCOUNT_WORDS)
    return status in (400, 404) and any(told.search(words) for told in found)


def refusal(
    where: str, status: int, headers: Mapping[str, str], body: bytes, secret: str
) -> AttemptFailed:
    """The error that a response of this status, not 2xx, stands for."""
    found = _decoded(body)
    about = f"{status} {_phrase(status)}".strip()
    said_ = said(body, secret)
    words = f"{about}: {said_}" if body.strip() else about
    fault = fault_of(status, _names(found), said_)
    return _error(where, fault, words, retry_after_s(headers))


def at_fault(where: str, error: object, secret: str) -> AttemptFailed:
    """The error that an error object in a stream, or in a 2xx answer, stands for."""
    words = bounded(_message(error) or _as_text(error), secret)
    fault = fault_of(_status_in(error), _names(error), words)
    return _error(where, fault, f"it failed while answering: {words}", _retry_after_in(error))


def _error(where: str, fault: Fault, words: str, after_s: float | None) -> AttemptFailed:
    match fault:
        case Fault.CALL:
            return CallRefused(where, words)
        case Fault.OVERLOAD:
            return EndpointOverloaded(where, words, after_s)
        case Fault.SETUP:
            wrong = "the pool's url, model, key or account are set up wrongly"
            return EndpointMisconfigured(where, f"{words}; {wrong}")
        case Fault.FAILURE:
            return EndpointFailed(where, words)


# --- when to come back


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until the server wants to be asked again; None where it does not say.

    Source: RFC 9110, section 10.2.3, and OpenAI's `retry-after-ms`, `x-ratelimit-reset-*`.
    """
    if (ms := _number(headers.get("retry-after-ms", ""))) is not None:
        return min(ms / 1000.0, RETRY_AFTER_S_MAX)
    after = headers.get("Retry-After", "").strip()
    found = _number(after)
    if found is None:
        found = _until(after, headers.get("Date", ""))
    if found is None:
        found = exhausted_s(headers) or _duration_s(headers.get("x-ratelimit-reset-requests", ""))
    return None if found is None else min(found, RETRY_AFTER_S_MAX)


def exhausted_s(headers: Mapping[str, str]) -> float:
    """Seconds until an account has room again, of which an answer says that it has none; else 0.

    Source: OpenAI's `x-ratelimit-remaining-*` and `-reset-*`, of requests and of tokens.
    """
    waits = [
        _duration_s(headers.get(f"x-ratelimit-reset-{what}", "")) or 0.0
        for what in ("requests", "tokens")
        if _number(headers.get(f"x-ratelimit-remaining-{what}", "")) == 0.0
    ]
    return min(max(waits, default=0.0), RETRY_AFTER_S_MAX)


def _until(date: str, now: str) -> float | None:
    """Seconds from the server's own `Date` to a date: its clock is not ours."""
    try:
        then, began = map(email.utils.parsedate_to_datetime, (date, now))
        return max(0.0, (then - began).total_seconds())
    except (TypeError, ValueError):
        return None


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d+)?", text) else None


UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def _duration_s(text: str) -> float | None:
    """A duration as Go writes it: "6m0s", "120ms"."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return sum(float(n) * UNITS_S[unit] for n, unit in parts)


def _retry_after_in(error: object) -> float | None:
    """Seconds that an error object names, as OpenRouter's and Google's do."""
    if not isinstance(error, dict):
        return None
    found = error.get("retry_after", error.get("retry_after_s"))
    return (
        float(found) if isinstance(found, int | float) and 0 < found < RETRY_AFTER_S_MAX else None
    )


# --- what was said


def said(body: bytes, secret: str) -> str:
    """The message in an error's body: OpenAI's form, FastAPI's, or whatever it is.

    `secret` is hidden in it, should the server repeat it; "": there is none.
    """
    return bounded(_message(_decoded(body)) or body.decode(errors="replace"), secret)


def bounded(words: str, secret: str) -> str:
    """One line of at most 500 characters, without the secret."""
    if secret:  # first: half of it would not be found
        words = words.replace(secret, "<hidden>")
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    short = len(words) <= SAID_CHARACTERS_MAX
    return words if short else words[: SAID_CHARACTERS_MAX - 1] + "…"


def _decoded(body: bytes) -> object:
    try:
        return msgspec.json.decode(body)
    except (ValueError, RecursionError):
        return None


def _as_text(error: object) -> str:
    try:
        return msgspec.json.encode(error).decode()
    except (TypeError, ValueError, RecursionError):
        return str(error)


def _inner(error: object) -> object:
    """The error object within what a server sent: some wrap it once more."""
    if isinstance(error, list) and error:
        return _inner(error[0])
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        return _inner(error["error"])
    return error


def _names(error: object) -> str:
    """`code`, `type` and `status` of an error object, as one text in lower case."""
    found = _inner(error)
    if not isinstance(found, dict):
        return ""
    names = [found.get(name) for name in ("code", "type", "status")]
    return " ".join(name.lower() for name in names if isinstance(name, str))


def _status_in(error: object) -> int | None:
    """An HTTP status that an error object names."""
    found = _inner(error)
    for name in ("code", "status", "status_code"):
        value = found.get(name) if isinstance(found, dict) else None
        if str(value).isdecimal() and 300 <= int(str(value)) < 600:
            return int(str(value))
    return None


def _message(body: object) -> str | None:
    """The words somewhere in decoded JSON; None where there are none."""
    if isinstance(body, str):
        return body
    if isinstance(body, list):  # FastAPI: one item per field
        return "; ".join(filter(None, map(_message, body[:8]))) or None
    if not isinstance(body, dict):
        return None
    if isinstance(body.get("msg"), str):  # FastAPI: {"loc": ["body", "messages"], "msg": "…"}
        loc = body.get("loc")
        at = ".".join(map(str, loc)) + ": " if isinstance(loc, list) else ""
        return at + body["msg"]
    for name in ("error", "message", "detail"):
        if found := _message(body.get(name)):
            return found
    return None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
