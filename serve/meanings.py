"""What an error means to whoever called: one table, written down by gRPC and by HTTP.

    error ──MEANINGS──▶ cause, code ─┬─▶ gRPC status                 `grpc_api.grpc_status`
                                     └─▶ HTTP status, type, headers  `openai_api.errors`

An error that is not in the table, nor any class above it, is a bug of ours: an internal error. Its
details belong into our log, not to strangers.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from serve import errors
from streams.errors import BadFeedback, BadTicket, LogUnavailable, OutboxClosed

# A gRPC status travels in trailing metadata, where what is not ASCII is escaped to thrice its
# length and calls begin to be dropped at 8 KiB: names of 255 models would turn any status into
# another one. Over HTTP so much helps nobody either.
MESSAGE_BYTES_MAX = 2000


class Cause(Enum):
    """What kept a call from its answer, as far as it tells a caller what to do next."""

    REQUEST = auto()  # it is malformed: correct it
    UNKNOWN_NAME = auto()  # it names what is not there: correct it
    NOTHING_FITS = auto()  # it is sound, and nothing here satisfies it: ask for less
    OVERLOAD = auto()  # too much is asked for at present: later
    AWAY = auto()  # something needed is away: later
    NOBODY = auto()  # who calls is not known: with a valid token
    FORBIDDEN = auto()  # who calls may not: with another token
    STOPPING = auto()  # this replica is starting or stopping: at another one
    DEADLINE = auto()  # its own deadline has passed: asking again is too late
    BAD_ANSWER = auto()  # a pool answered with an error or nonsense
    LATE_ANSWER = auto()  # a pool did not answer in time
    BROKEN_ANSWER = auto()  # a pool's answer broke off after its first token
    INTERNAL = auto()  # a bug of ours


class Meaning(NamedTuple):
    """What an error means."""

    cause: Cause
    code: str  # stable, for programs


MEANINGS: dict[type[Exception], Meaning] = {
    errors.InvalidRequest: Meaning(Cause.REQUEST, "bad_field"),
    BadTicket: Meaning(Cause.REQUEST, "bad_ticket"),
    BadFeedback: Meaning(Cause.REQUEST, "bad_feedback"),
    errors.CallRefused: Meaning(Cause.REQUEST, "call_refused"),
    errors.ChangeRefused: Meaning(Cause.REQUEST, "change_refused"),
    errors.UnknownModel: Meaning(Cause.UNKNOWN_NAME, "model_not_found"),
    errors.EntryNotFound: Meaning(Cause.UNKNOWN_NAME, "entry_not_found"),
    errors.NoModelFits: Meaning(Cause.NOTHING_FITS, "no_model_fits"),
    errors.NoArms: Meaning(Cause.NOTHING_FITS, "no_arms"),
    errors.RuledOut: Meaning(Cause.NOTHING_FITS, "ruled_out"),
    errors.TextRefused: Meaning(Cause.NOTHING_FITS, "text_refused"),
    errors.QueueFull: Meaning(Cause.OVERLOAD, "queue_full"),
    errors.FleetFull: Meaning(Cause.OVERLOAD, "fleet_full"),
    errors.RateExceeded: Meaning(Cause.OVERLOAD, "rate_exceeded"),
    errors.BudgetUsedUp: Meaning(Cause.OVERLOAD, "budget_used_up"),
    errors.EncoderUnavailable: Meaning(Cause.AWAY, "encoder_unavailable"),
    LogUnavailable: Meaning(Cause.AWAY, "log_unavailable"),
    errors.Unauthenticated: Meaning(Cause.NOBODY, "invalid_api_key"),
    errors.AccessDenied: Meaning(Cause.FORBIDDEN, "access_denied"),
    errors.LoopbackOnly: Meaning(Cause.FORBIDDEN, "loopback_only"),
    errors.NotServing: Meaning(Cause.STOPPING, "not_serving"),
    OutboxClosed: Meaning(Cause.STOPPING, "not_serving"),
    errors.DeadlinePassed: Meaning(Cause.DEADLINE, "deadline_passed"),
    errors.AttemptFailed: Meaning(Cause.AWAY, "no_answer"),
    errors.NoAnswer: Meaning(Cause.AWAY, "no_answer"),
    errors.PoolsOverloaded: Meaning(Cause.OVERLOAD, "pools_overloaded"),
    errors.PoolsStarting: Meaning(Cause.AWAY, "pools_starting"),
    errors.EndpointUnreachable: Meaning(Cause.AWAY, "no_answer"),
    errors.EndpointOverloaded: Meaning(Cause.AWAY, "no_answer"),
    errors.EndpointFailed: Meaning(Cause.BAD_ANSWER, "endpoint_failed"),
    errors.EndpointMisconfigured: Meaning(Cause.BAD_ANSWER, "endpoint_failed"),
    errors.AnswerGarbled: Meaning(Cause.BAD_ANSWER, "answer_garbled"),
    errors.AnswerLate: Meaning(Cause.LATE_ANSWER, "answer_late"),
    errors.AnswerBroken: Meaning(Cause.BROKEN_ANSWER, "answer_broken"),
}
BUG = Meaning(Cause.INTERNAL, "internal_error")


def meaning_of(error: Exception) -> Meaning:
    """What it means, by its class or the nearest one above it."""
    return next((MEANINGS[kind] for kind in type(error).__mro__ if kind in MEANINGS), BUG)


def message_of(error: Exception, log: str) -> str:
    """What its caller is told; `log` is whose log has the details of a bug."""
    if meaning_of(error) is BUG:
        return f"internal error ({type(error).__name__}); see the {log}'s log"
    return shortened(str(error))


def shortened(message: str) -> str:
    """At most `MESSAGE_BYTES_MAX`, and fit to be sent: question marks stand for surrogates."""
    data = message.encode("utf-8", "replace")
    if len(data) <= MESSAGE_BYTES_MAX:
        return data.decode()
    return data[:MESSAGE_BYTES_MAX].decode(errors="ignore") + " …"
