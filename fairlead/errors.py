"""What can go wrong for a caller, and what to do about it.

FairleadError
├── InvalidRequest      something asked is malformed or out of bounds; correct the named field
├── UnknownModel        a model named in the request is not in the router's catalogue
├── NoModelFits         the request leaves no model, or needs an encoder this router lacks
├── DeadlineExceeded    no answer in time: it would be too late to be useful
│   └── Unreachable     and no connection to the router either, all that time
├── Overloaded          the router's queue is full, or the fleet; try later or elsewhere
├── Unavailable         the router is starting, stopping or gone; it was tried more than once
├── AnswerBroken        a dispatched answer broke off after its first token
├── NotAllowed          the router, or something in front of it, does not know this caller
├── Unsupported         the router lacks this method; most likely it is older than this client
├── RouterFault         the router broke while answering: a bug there, not in the request
├── InvalidOption       an argument of the client itself makes no sense
└── ClientClosed        the client was closed before or during the call

Every gRPC status has its class in `BY_STATUS`, so no caller ever needs to catch `grpc.RpcError`.
Constructors are positional, so that every error survives pickling.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class FairleadError(Exception):
    """Base of all errors of the client: what was being done, what happened, what to do."""

    advice: ClassVar[str] = ""
    retriable: ClassVar[bool] = False  # may the very same call succeed later?

    def __init__(self, doing: str, message: str) -> None:
        super().__init__(doing, message)  # args survive pickling
        self.doing, self.message = doing, message

    def __str__(self) -> str:
        return f"{self.doing}: {self.message.rstrip('.')}. {self.advice}".rstrip()


class InvalidRequest(FairleadError):
    """A field is malformed or out of bounds, or a ticket can't be opened."""

    advice = "The same request will fail again: correct the field named here."


class UnknownModel(FairleadError):
    """A model named in the request is not in the catalogue."""

    advice = "Correct the name, or add the model to the router's catalogue."


class NoModelFits(FairleadError):
    """The request is well-formed, but no model satisfies it, or its encoder is missing."""

    advice = "Loosen the limits or the lists of models, or send the form of prompt named here."


class DeadlineExceeded(FairleadError):
    """The time allowed had passed before there was an answer."""

    advice = "Allow more time, or go on without an answer."
    retriable = True


class Unreachable(DeadlineExceeded):
    """There was no connection to send the call over.

    While nothing listens, a call waits for a connection as long as it may (see `channels`), so
    this is how a router that is down shows itself.
    """

    advice = (
        "See that the router is running, that the address is right and that both sides agree on "
        "TLS (`healthy()` does not wait)."
    )


class Overloaded(FairleadError):
    """The router's queue is full, or the fleet is and requests of this criticality are refused.

    Not retried by the client, for that would fill it further.
    """

    advice = "Slow down, wait before trying again, or choose a model without the router."
    retriable = True


class Unavailable(FairleadError):
    """The router is starting, stopping or has gone away under the call.

    Seen only after the attempts allowed, or once the retry budget is spent (see `channels`).
    """

    advice = "Try again in a moment; see that the router is running."
    retriable = True


class AnswerBroken(FairleadError):
    """A dispatched answer broke off after its first token, so that no other pool was asked."""

    advice = "What came is not whole: ask again from the beginning, if it may be asked twice."
    retriable = True


class NotAllowed(FairleadError):
    """The caller is not known, or not known to be allowed."""

    advice = "Check the credentials given to the client."


class Unsupported(FairleadError):
    """The router has no such method."""

    advice = "Most likely the router is older than this client, or another service answers there."


class RouterFault(FairleadError):
    """The router broke while answering."""

    advice = "This is a bug in the router: look for the cause in its log."


class InvalidOption(FairleadError):
    """An argument of the client itself makes no sense."""


class ClientClosed(FairleadError):
    """The client was closed before the call or while it was under way."""

    advice = "Close the client only after its last call; a closed one can't be opened again."


# What the statuses mean is written at the top of router.proto. CANCELLED is gRPC's own: callers
# see it when a server stops under their call, since cancelling their own raises elsewhere.
BY_STATUS: dict[grpc.StatusCode, type[FairleadError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: UnknownModel,
    grpc.StatusCode.FAILED_PRECONDITION: NoModelFits,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: NotAllowed,
    grpc.StatusCode.PERMISSION_DENIED: NotAllowed,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
    grpc.StatusCode.UNKNOWN: RouterFault,
    grpc.StatusCode.INTERNAL: RouterFault,
    grpc.StatusCode.DATA_LOSS: RouterFault,
    grpc.StatusCode.ABORTED: AnswerBroken,
    grpc.StatusCode.ALREADY_EXISTS: RouterFault,
}

# What a call is known to wait for, where a router is there and does not answer.
WAITS_FOR = {
    "SendFeedback": (
        "outcomes are answered once they are in the feedback log: see in `fairlead status` whether "
        "it can be written (is its disk full?). These may be written yet; to report them again "
        "does no harm"
    )
}


def late(doing: str, method: str, *, connected: bool) -> DeadlineExceeded:
    """Return the error for a call that nobody answered in time."""
    if not connected:
        return Unreachable(doing, "no connection, all the time allowed")
    known = "no answer in the time allowed, from a router that is connected"
    return DeadlineExceeded(doing, "; ".join(filter(None, (known, WAITS_FOR.get(method)))))


_BY_NUMBER = {status.value[0]: error for status, error in BY_STATUS.items()}


def from_status(doing: str, status: grpc.StatusCode, message: str) -> FairleadError:
    """Return the error for a call that ended with `status`."""
    return BY_STATUS[status](doing, message or status.name)


def from_number(doing: str, number: int, message: str) -> FairleadError:
    """Return the error for a status given as its number, as in a `Problem` on the wire."""
    return _BY_NUMBER.get(number, RouterFault)(doing, message or f"status {number}")
