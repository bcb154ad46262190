"""One call, ready to send: all that the two clients share.

    arguments ──▶ Call(method, message, read) ──▶ sent by `Client` or `AsyncClient`
                              reply ──read──▶ plain values
                              failure ──failed──▶ an error of `errors`

The one rule: nothing here waits, so there is one of it and not a sync and an async twin.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from fairlead import errors, wire
from fairlead.channels import RetryOptions
from fairlead.errors import ClientClosed, FairleadError, InvalidOption, RouterFault
from fairlead.messages import Decision, Explanation, Outcome, Problem, Request
from serve.proto.fairlead.v1 import router_pb2 as pb

Answer = TypeVar("Answer")

# A stream is one gRPC call, so its time-out is that of its whole life. A dead connection ends it
# sooner (see `channels`), and each request in it may have its own `deadline_unix_ms`.
STREAM_TIMEOUT_S = 3_600.0

# grpc.health.v1, by hand: one method and one enum do not need another package. The empty message
# asks about the server as a whole; field 1 of the reply is the status, and 1 is SERVING.
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
HEALTH_QUESTION = b""
HEALTH_SERVING = b"\x08\x01"


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One call of the service Router: what to send, and how to read what comes back."""

    method: str
    message: Message
    read: Callable[[Any], Answer]


def route(request: Request) -> Call[Decision]:
    """One request, one decision."""
    return Call("Route", wire.route_request(request), wire.decision)


def route_batch(requests: Sequence[Request]) -> Call[list[Decision | Problem]]:
    """Many requests scored as one."""

    def read(reply: pb.RouteBatchReply) -> list[Decision | Problem]:
        # Replies belong to requests by position alone: a missing one would shift all the others.
        if len(reply.replies) != len(requests):
            found = f"{len(reply.replies)} replies to {len(requests)} requests"
            raise RouterFault("RouteBatch", found)
        return [wire.route_reply(one) for one in reply.replies]

    return Call("RouteBatch", wire.batch_request(requests), read)


def send_feedback(outcomes: Sequence[Outcome]) -> Call[int]:
    """Outcomes to the feedback log; how many were written there."""

    def read(reply: pb.FeedbackReply) -> int:
        return reply.accepted

    return Call("SendFeedback", wire.feedback_request(outcomes), read)


def explain(ticket: bytes) -> Call[Explanation]:
    """What a ticket holds."""
    return Call("Explain", wire.explain_request(ticket), wire.explanation)


class Outgoing:
    """The requests of a stream on their way out, and what broke them off, if something did.

    gRPC takes requests in a thread or task of its own, where an exception would be logged and
    the caller told no more than "Exception iterating requests!". Instead the stream ends there,
    requests already sent get their replies, and then the caller gets `failure`.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def each(self, requests: Iterable[Request]) -> Iterator[pb.RouteRequest]:
        """The messages for `requests`."""
        try:
            for request in requests:
                yield wire.stream_request(request)
        except Exception as failure:  # raised to the caller by the client, after the last reply
            self.failure = failure

    async def each_async(self, requests: AsyncIterable[Request]) -> AsyncIterator[pb.RouteRequest]:
        """The messages for `requests`."""
        try:
            async for request in requests:
                yield wire.stream_request(request)
        except Exception as failure:  # raised to the caller by the client, after the last reply
            self.failure = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a client is told when it is made, checked there."""

    target: str
    timeout_s: float
    connections: int
    credentials: grpc.ChannelCredentials | None
    retries: RetryOptions

    def __post_init__(self) -> None:
        if self.connections < 1:
            raise InvalidOption("client", f"connections {self.connections} is not at least 1")
        self.timeout_of(None, self.timeout_s)

    def timeout_of(self, given_s: float | None, default_s: float) -> float:
        """Return the time-out of one call. There always is one, and it is finite."""
        timeout_s = default_s if given_s is None else given_s
        if not 0.0 < timeout_s < math.inf:
            raise InvalidOption("client", f"timeout_s {timeout_s} is not positive and finite")
        return timeout_s

    def failed(self, method: str, failure: grpc.RpcError, *, is_closed: bool) -> FairleadError:
        """Return the error a caller sees for a call that failed."""
        doing = f"{method} at {self.target}"
        if is_closed and failure.code() is grpc.StatusCode.CANCELLED:
            return ClientClosed(doing, "cancelled by close()")
        return errors.from_status(doing, failure.code(), failure.details() or "")
