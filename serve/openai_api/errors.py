"""Errors over HTTP, in the form OpenAI's clients read, by what they mean (`serve.meanings`).

    {"error": {"message": "…", "type": "invalid_request_error", "param": "n", "code": "bad_field"}}

The official clients turn the status into an exception class, and by themselves try again, twice,
after 408, 409, 429 and everything from 500 on, unless a header says `x-should-retry: false`. So:

- What is wrong with the request stays below 500 and avoids those: 400, 404, 422. 422 is what no
  other reason uses: a sound request that no model can satisfy.
- A deadline that has passed stays so. 504 says what happened, and the header says not to try
  again. (408 would blame the client for being slow to send.)
- 429 and 503 mean: later, or at another replica. They say when, in `retry-after`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from starlette.exceptions import HTTPException

from serve.meanings import Cause, meaning_of, message_of, shortened

# A second: long enough for a queue to drain or another replica to start, short enough to wait for.
LATER = {"retry-after": "1"}
# The next call of this client belongs on another replica, so on another connection.
ELSEWHERE = {"retry-after": "1", "connection": "close"}
NO_RETRY = {"x-should-retry": "false"}
UNREAD = {"connection": "close"}  # the body that is still coming is not read
CLIENTS, SERVERS = "invalid_request_error", "server_error"  # whose fault, in OpenAI's words


class Response(NamedTuple):
    """How a cause is answered."""

    status: int
    type: str  # OpenAI's broad kinds
    headers: Mapping[str, str] = {}


RESPONSES = {
    Cause.REQUEST: Response(400, CLIENTS),
    Cause.UNKNOWN_NAME: Response(404, CLIENTS),
    Cause.NOTHING_FITS: Response(422, CLIENTS),
    Cause.OVERLOAD: Response(429, "rate_limit_error", LATER),
    Cause.AWAY: Response(503, SERVERS, LATER),
    Cause.NOBODY: Response(401, "authentication_error", UNREAD | {"www-authenticate": "Bearer"}),
    Cause.FORBIDDEN: Response(403, "permission_error", UNREAD),
    Cause.STOPPING: Response(503, SERVERS, ELSEWHERE),
    Cause.DEADLINE: Response(504, SERVERS, NO_RETRY),
    Cause.BAD_ANSWER: Response(502, SERVERS),
    Cause.LATE_ANSWER: Response(504, SERVERS),
    Cause.BROKEN_ANSWER: Response(502, SERVERS),
    Cause.INTERNAL: Response(500, SERVERS),
}


def response_of(error: Exception) -> Response:
    """Status, type and headers."""
    if isinstance(error, HTTPException):  # refused by HTTP itself
        kind = "authentication_error" if error.status_code == 401 else CLIENTS
        return Response(error.status_code, kind, error.headers or {})
    response = RESPONSES[meaning_of(error).cause]
    after_s = getattr(error, "retry_after_s", None)
    return response if after_s is None else response._replace(headers=_after(after_s))


def _after(after_s: float) -> Mapping[str, str]:
    """When to ask again, in whole seconds: a little late rather than too early."""
    return {"retry-after": str(max(1, math.ceil(after_s)))}


def error_object(error: Exception) -> dict[str, object]:
    """The value of `error` in OpenAI's form."""
    if isinstance(error, HTTPException):
        message = shortened(error.detail)
        code = {401: "invalid_api_key", 413: "body_too_large"}.get(error.status_code, "bad_call")
    else:
        message, code = message_of(error, "dispatcher"), meaning_of(error).code
    return {
        "message": message,
        "type": response_of(error).type,
        "param": getattr(error, "field", None),
        "code": code,
    }


def error_body(error: Exception) -> bytes:
    """The whole body of a failed call, and an event of a stream that breaks off."""
    return msgspec.json.encode({"error": error_object(error)})
