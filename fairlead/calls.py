"""One call, ready to send: all that the two clients share.

    arguments ──▶ Call(method, message, read) ──sent by `Client` or `AsyncClient`──▶ router
                                       values ◀──read── reply ◀──────────────────────┘

Nothing here waits, so there is one of it and not a sync and an async twin.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from fairlead import wire
from fairlead.connections import Connection
from fairlead.errors import RouterFault
from fairlead.messages import Decision, Explanation, FeedbackTrace, Outcome, Problem, Request
from serve.proto.fairlead.v1 import router_pb2 as pb

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One call of the service Router: what to send, and how to read what comes back."""

    method: str
    message: Message | bytes
    read: Callable[[Any], Answer]
    is_highest: bool = False  # of the highest criticality: it may use the reserved port

    def on(self, connection: Connection) -> Callable[..., Any]:
        """Return the method itself, of `grpc` or of `grpc.aio`, on one connection."""
        return getattr(connection.router, self.method)


class HealthCall(Call[bool]):
    """The one call of another service, grpc.health.v1, whose generated code is not installed."""

    def on(self, connection: Connection) -> Callable[..., Any]:
        """Return the method, which takes and gives plain bytes."""
        return connection.channel.unary_unary("/grpc.health.v1.Health/Check")


# One method and one enum, so written by hand: the empty message asks about the server as a whole;
# field 1 of the reply is its status, and 1 is SERVING.
HEALTH = HealthCall("Check", b"", b"\x08\x01".__eq__)


def route(request: Request) -> Call[Decision]:
    """One request, one decision."""
    message = wire.route_request(request)
    return Call("Route", message, wire.decision, _are_highest(message))


def route_arm(request: Request, groups: Sequence[str]) -> Call[Decision]:
    """One request, one of the operator's arms."""
    message = wire.arm_request(request, groups)
    return Call("RouteArm", message, wire.decision, _are_highest(message.request))


def route_batch(requests: Sequence[Request]) -> Call[list[Decision | Problem]]:
    """Many requests scored as one."""
    message = wire.batch_request(requests)
    read = _replies("RouteBatch", len(requests))
    return Call("RouteBatch", message, read, _are_highest(*message.requests))


def route_arm_batch(
    requests: Sequence[Request], groups: Sequence[str]
) -> Call[list[Decision | Problem]]:
    """Many requests for arms, decided together."""
    message = wire.arm_batch_request(requests, groups)
    highest = _are_highest(*(one.request for one in message.requests))
    return Call("RouteArmBatch", message, _replies("RouteArmBatch", len(requests)), highest)


def _replies(method: str, n: int) -> Callable[[pb.RouteBatchReply], list[Decision | Problem]]:
    """What reads the reply to `n` requests."""

    def read(reply: pb.RouteBatchReply) -> list[Decision | Problem]:
        # Replies belong to requests by position alone: a missing one would shift all the others.
        if len(reply.replies) != n:
            raise RouterFault(method, f"{len(reply.replies)} replies to {n} requests")
        return [wire.route_reply(one) for one in reply.replies]

    return read


def _are_highest(*requests: pb.RouteRequest) -> bool:
    """A call counts as its lowest request, as where calls are admitted."""
    return min((one.criticality for one in requests), default=0) == pb.CRITICAL_PLUS


def send_feedback(outcomes: Sequence[Outcome]) -> Call[int]:
    """Outcomes to the feedback log; how many were written there."""

    def read(reply: pb.FeedbackReply) -> int:
        return reply.accepted

    return Call("SendFeedback", wire.feedback_request(outcomes), read)


def trace_feedback(ticket: bytes) -> Call[FeedbackTrace]:
    """What became of a decision's outcomes."""
    return Call("TraceFeedback", wire.trace_request(ticket), wire.feedback_trace)


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
        except Exception as failure:  # noqa: BLE001 - the caller gets it, see above
            self.failure = failure

    async def each_async(self, requests: AsyncIterable[Request]) -> AsyncIterator[pb.RouteRequest]:
        """The messages for `requests`."""
        try:
            async for request in requests:
                yield wire.stream_request(request)
        except Exception as failure:  # noqa: BLE001 - the caller gets it, see above
            self.failure = failure
