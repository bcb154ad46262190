"""What an OpenAI-compatible server means when it does not answer with an answer.

    status, headers, body ──refusal──▶ CallRefused | EndpointOverloaded | EndpointFailed

    400 413 422   the call itself is wrong: another server would say so, too
    429 503       it has too much to do: another one may not
    other 4xx     key, path or model of this pool are set up wrongly: another pool may work
    else          it failed

The one rule: a server's words are passed on, in one line of bounded length, and never a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from serve.errors import AttemptFailed, CallRefused, EndpointFailed, EndpointOverloaded

SAID_CHARACTERS_MAX = 500  # enough for a sentence or three; traces and pages of HTML are cut

CALL_WRONG = frozenset({400, 413, 422})
OVERLOADED = frozenset({429, 503})


def refusal(
    where: str, status: int, headers: Mapping[str, str], body: bytes, secret: str
) -> AttemptFailed:
    """The error that a response of this status, not 2xx, stands for."""
    about = f"{status} {_phrase(status)}".strip()
    words = f"{about}: {said(body, secret)}" if body.strip() else about
    if status in CALL_WRONG:
        return CallRefused(where, words)
    if status in OVERLOADED:
        after = headers.get("Retry-After", "")
        wait = f" (retry after {int(after)} s)" if after.isdecimal() and len(after) < 10 else ""
        return EndpointOverloaded(where, words + wait)
    if 300 <= status < 500:
        wrong = "the pool's url, model or key are set up wrongly"
        return EndpointFailed(where, f"{words}; {wrong}")
    return EndpointFailed(where, words)


def said(body: bytes, secret: str) -> str:
    """The message in an error's body: OpenAI's form, FastAPI's, or whatever it is.

    `secret` is hidden in it, should the server repeat it; "": there is none.
    """
    try:
        found = _message(msgspec.json.decode(body))
    except (ValueError, RecursionError):
        found = None
    return bounded(found or body.decode(errors="replace"), secret)


def bounded(words: str, secret: str) -> str:
    """One line of at most 500 characters, without the secret."""
    if secret:  # first: half of it would not be found
        words = words.replace(secret, "<hidden>")
    words = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    short = len(words) <= SAID_CHARACTERS_MAX
    return words if short else words[: SAID_CHARACTERS_MAX - 1] + "…"


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
