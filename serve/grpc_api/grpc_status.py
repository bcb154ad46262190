"""Which gRPC status an error becomes. The table is the mapping; a test keeps it complete."""

from __future__ import annotations

from grpc import StatusCode

from serve.errors import (
    AnswerBroken,
    AnswerGarbled,
    AnswerLate,
    AttemptFailed,
    CallRefused,
    DeadlinePassed,
    EncoderUnavailable,
    EndpointFailed,
    EndpointMisconfigured,
    EndpointOverloaded,
    EndpointUnreachable,
    FleetFull,
    InvalidRequest,
    NoAnswer,
    NoModelFits,
    NotServing,
    QueueFull,
    TextRefused,
    UnknownModel,
)
from streams.errors import BadFeedback, BadTicket, LogUnavailable, OutboxClosed

STATUS: dict[type[Exception], StatusCode] = {
    InvalidRequest: StatusCode.INVALID_ARGUMENT,
    BadTicket: StatusCode.INVALID_ARGUMENT,
    BadFeedback: StatusCode.INVALID_ARGUMENT,
    UnknownModel: StatusCode.NOT_FOUND,
    NoModelFits: StatusCode.FAILED_PRECONDITION,
    TextRefused: StatusCode.FAILED_PRECONDITION,
    DeadlinePassed: StatusCode.DEADLINE_EXCEEDED,
    QueueFull: StatusCode.RESOURCE_EXHAUSTED,
    FleetFull: StatusCode.RESOURCE_EXHAUSTED,
    CallRefused: StatusCode.INVALID_ARGUMENT,
    AnswerBroken: StatusCode.ABORTED,
    NoAnswer: StatusCode.UNAVAILABLE,
    AttemptFailed: StatusCode.UNAVAILABLE,
    EndpointUnreachable: StatusCode.UNAVAILABLE,
    EndpointOverloaded: StatusCode.UNAVAILABLE,
    EndpointFailed: StatusCode.UNAVAILABLE,
    EndpointMisconfigured: StatusCode.UNAVAILABLE,
    AnswerGarbled: StatusCode.UNAVAILABLE,
    AnswerLate: StatusCode.UNAVAILABLE,
    EncoderUnavailable: StatusCode.UNAVAILABLE,
    NotServing: StatusCode.UNAVAILABLE,
    LogUnavailable: StatusCode.UNAVAILABLE,
    OutboxClosed: StatusCode.UNAVAILABLE,
}


# A status travels in trailing metadata, where gRPC escapes what is not ASCII to thrice its length
# and begins to drop calls at 8 KiB: names of 255 models would turn any status into another one.
MESSAGE_BYTES_MAX = 2000


def status_of(error: Exception) -> tuple[StatusCode, str]:
    """Status and message for a caller. An error that is not in the table is our bug."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind], _shortened(str(error))
    # The details of a bug belong into our log, not to strangers.
    return StatusCode.INTERNAL, f"internal error ({type(error).__name__}); see the router's log"


def _shortened(message: str) -> str:
    data = message.encode("utf-8", "replace")
    if len(data) <= MESSAGE_BYTES_MAX:
        return message
    return data[:MESSAGE_BYTES_MAX].decode(errors="ignore") + " …"
