"""Which gRPC status an error becomes, by what it means (`serve.meanings`)."""

from __future__ import annotations

from grpc import StatusCode

from serve.meanings import Cause, meaning_of, message_of

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
