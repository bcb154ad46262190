"""Which gRPC status an error becomes, by what it means (`serve.meanings`), with its details.

    error ─▶ code, message, `grpc-status-details-bin`: google.rpc.ErrorInfo with a stable reason,
             BadRequest with the field, RetryInfo with the wait

Reasons are the codes of `serve.meanings` in capitals, the domain is "fairlead". So programs need
not read messages, which may change.
"""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from serve.meanings import Cause, meaning_of, message_of

DOMAIN, DETAILS_KEY = "fairlead", "grpc-status-details-bin"
ABOUT_MAX = 200  # characters of a field's name or limit
TRAILING_BYTES_MAX = 6500  # gRPC drops calls whose trailing metadata is 8 KiB or more
Trailing = tuple[tuple[str, "str | bytes"], ...]
Refusal = tuple[StatusCode, str, Trailing]  # what `ServicerContext.abort` takes
STATUS = {
    Cause.REQUEST: StatusCode.INVALID_ARGUMENT,
    Cause.UNKNOWN_NAME: StatusCode.NOT_FOUND,
    Cause.NOTHING_FITS: StatusCode.FAILED_PRECONDITION,
    Cause.OVERLOAD: StatusCode.RESOURCE_EXHAUSTED,
    Cause.AWAY: StatusCode.UNAVAILABLE,
    Cause.NOBODY: StatusCode.UNAUTHENTICATED,
    Cause.FORBIDDEN: StatusCode.PERMISSION_DENIED,
    Cause.STOPPING: StatusCode.UNAVAILABLE,
    Cause.DEADLINE: StatusCode.DEADLINE_EXCEEDED,
    Cause.BAD_ANSWER: StatusCode.UNAVAILABLE,
    Cause.LATE_ANSWER: StatusCode.UNAVAILABLE,
    Cause.BROKEN_ANSWER: StatusCode.ABORTED,
    Cause.INTERNAL: StatusCode.INTERNAL,
}


def status_of(error: Exception) -> tuple[StatusCode, str]:
    """Status and message for a caller."""
    return STATUS[meaning_of(error).cause], message_of(error, "router")


def refusal_of(error: Exception, trailing: Sequence[tuple[str, str]] = ()) -> Refusal:
    """Status, message and trailing metadata."""
    code, message = status_of(error)
    details = details_of(error, code, message)
    return code, message, (*trailing, *(((DETAILS_KEY, details),) if details else ()))


def reason_of(error: Exception) -> str:
    """The stable reason, as `google.rpc.ErrorInfo` has it: BAD_FIELD, for one."""
    return meaning_of(error).code.upper()


def details_of(error: Exception, code: StatusCode, message: str) -> bytes:
    """A `google.rpc.Status`: reason, field and limit, when to try again. Empty where too long."""
    field = str(getattr(error, "field", ""))
    about = {"field": field, "limit": str(getattr(error, "limit", ""))}
    known = {name: text[:ABOUT_MAX] for name, text in about.items() if text}
    info = error_details_pb2.ErrorInfo(reason=reason_of(error), domain=DOMAIN, metadata=known)
    parts: list[Message] = [info]
    if field and STATUS[meaning_of(error).cause] is StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field[:ABOUT_MAX], description=message[:ABOUT_MAX], reason=reason_of(error)
        )
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    wait_s = getattr(error, "retry_after_s", None)
    if wait_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(1000 * wait_s))
        parts.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code.value[0], message=message)
    for part in parts:
        status.details.add().Pack(part)
    written = status.SerializeToString()
    # In trailing metadata both are longer: what is not ASCII thrice, bytes by a third.
    length = 3 * len(message.encode()) - 2 * sum(map(str.isascii, message)) + 4 * len(written) // 3
    return written if length <= TRAILING_BYTES_MAX else b""
