"""The client for threads and plain scripts; `async_client` has the one for asyncio.

They share `calls` (what is sent and read) and `connections` (over which channel, with which
time-out). Only waiting is different.

A client may be shared between threads, and one is enough for a process.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import ClassVar, Self, TypeVar, Unpack

import grpc

from fairlead import calls, wire
from fairlead.calls import Call
from fairlead.connections import ANSWER_TIMEOUT_S, STREAM_TIMEOUT_S, Connections
from fairlead.dispatch import DispatchEvent, DispatchRequest, read
from fairlead.errors import DeadlineExceeded, Unavailable
from fairlead.messages import (
    Decision,
    Explanation,
    FeedbackTrace,
    Outcome,
    OutcomeValues,
    Problem,
    Request,
    RequestOptions,
)

Answer = TypeVar("Answer")
STATE_S_MAX = 0.1  # a thread has to be started for it


class Client(Connections):
    """Asks a router which model to use, and reports the outcomes.

        with Client("127.0.0.1:7480") as router:
            decision = router.route("Who wrote Moby-Dick?", tenant="library")
            ...  # call decision.model in decision.pool
            router.send_feedback(decision.ticket, quality=0.9, cost_usd=0.0004)

    Every method takes `timeout_s` for this one call and raises nothing but `FairleadError`s.
    """

    flavour: ClassVar[ModuleType] = grpc

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections; calls under way raise ClientClosed. Safe to call twice."""
        self.is_closed = True
        for channel in self._channels():
            channel.close()

    def route(
        self,
        text: str | None = None,
        *,
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Decision:
        """Choose a model for one prompt: its text, or its `embedding=`.

        The other options are the fields of `Request`, such as `tenant=` and `cost_usd_max=`.
        """
        return self._send(calls.route(Request(text=text, **options)), timeout_s)

    def route_arm(
        self,
        text: str | None = None,
        *,
        groups: Sequence[str] = (),
        timeout_s: float | None = None,
        **options: Unpack[RequestOptions],
    ) -> Decision:
        """Choose one of the operator's arms: tools, retrievers, agents, modes of a model.

        In the decision `model` is the arm's id and `pool` its group. `groups` are those it may be
        of; `allowed_models=` and `denied_models=` name arms here.
        """
        return self._send(calls.route_arm(Request(text=text, **options), groups), timeout_s)

    def route_arm_batch(
        self,
        requests: Sequence[Request],
        *,
        groups: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> list[Decision | Problem]:
        """Choose an arm for each of many prompts, in their order. A bad one gets a `Problem`."""
        return self._send(calls.route_arm_batch(requests, groups), timeout_s)

    def route_batch(
        self, requests: Sequence[Request], *, timeout_s: float | None = None
    ) -> list[Decision | Problem]:
        """Choose for many prompts at once, in their order. A bad one gets a `Problem`."""
        return self._send(calls.route_batch(requests), timeout_s)

    def route_stream(
        self, requests: Iterable[Request], *, timeout_s: float = STREAM_TIMEOUT_S
    ) -> Iterator[Decision | Problem]:
        """Choose for prompts as they come. Replies come in any order: match by `request_id`.

        Begins with the first `next`. `requests` is read in a thread of its own. `timeout_s` is
        for the whole stream. If the stream breaks, what had no reply may be sent again.
        """
        outgoing = calls.Outgoing()
        connection = self._next("RouteStream")
        replies = connection.router.RouteStream(
            outgoing.each(requests),
            timeout=self._time_out_s(timeout_s),
            wait_for_ready=True,
            metadata=self._metadata,
        )
        try:
            for reply in replies:
                yield wire.route_reply(reply)
        except grpc.RpcError as failure:
            raise self._failed("RouteStream", failure, connection) from failure
        finally:
            replies.cancel()  # the caller may have stopped listening before the end
        if outgoing.failure is not None:
            raise outgoing.failure

    def dispatch(
        self, request: DispatchRequest, *, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> Iterator[DispatchEvent]:
        """Have a request answered: the events of its answers as they come (see `dispatch`).

        Begins with the first `next`. The target must be a dispatcher's port. `timeout_s` is for the
        whole answer. Closing the iterator early ends every call made for it. Once an answer has
        begun nothing is tried again: AnswerBroken says that it broke off.
        """
        connection = self._next("Dispatch")
        replies = connection.dispatcher.Dispatch(
            request.message(),
            timeout=self._time_out_s(timeout_s),
            wait_for_ready=True,
            metadata=self._metadata,
        )
        try:
            for reply in replies:
                yield from read(reply)
        except grpc.RpcError as failure:
            raise self._failed("Dispatch", failure, connection) from failure
        finally:
            replies.cancel()  # the caller may have stopped listening before the end

    def send_feedback(
        self, ticket: bytes, *, timeout_s: float | None = None, **values: Unpack[OutcomeValues]
    ) -> None:
        """Report what happened to one decision: what is known now, the rest later.

        The values are the fields of `Outcome`: quality, cost_usd, latency_ms, output_tokens, error,
        paid_usd.
        Returns once they are durably in the feedback log. After an error, report again: each value
        of a decision counts once.
        """
        self._send(calls.send_feedback([Outcome(ticket=ticket, **values)]), timeout_s)

    def send_feedback_batch(
        self, outcomes: Sequence[Outcome], *, timeout_s: float | None = None
    ) -> int:
        """Report what happened to many decisions, all or none; returns how many were written."""
        return self._send(calls.send_feedback(outcomes), timeout_s)

    def trace_feedback(self, ticket: bytes, *, timeout_s: float | None = None) -> FeedbackTrace:
        """Say what became of a decision's outcomes: what was learned, what was refused and why."""
        return self._send(calls.trace_feedback(ticket), timeout_s)

    def explain(self, ticket: bytes, *, timeout_s: float | None = None) -> Explanation:
        """Open a ticket: what was known, what was predicted, and why the other models lost."""
        return self._send(calls.explain(ticket), timeout_s)

    def healthy(self, *, timeout_s: float | None = None) -> bool:
        """Say whether a replica is there and serving. Does not wait for one to come up."""
        try:
            return self._send(calls.HEALTH, timeout_s, wait_for_ready=False)
        except (Unavailable, DeadlineExceeded):
            return False

    def _send(
        self, call: Call[Answer], timeout_s: float | None, *, wait_for_ready: bool = True
    ) -> Answer:
        timeout_s = self._time_out_s(timeout_s)
        connection = self._next(call.method, is_highest=call.is_highest)
        send = call.on(connection)
        try:
            reply = send(
                call.message,
                timeout=timeout_s,
                wait_for_ready=wait_for_ready,
                metadata=self._metadata,
            )
        except grpc.RpcError as failure:
            raise self._failed(call.method, failure, connection) from failure
        return call.read(reply)

    def _is_connected(self, channel: grpc.Channel) -> bool:
        states: SimpleQueue[grpc.ChannelConnectivity] = SimpleQueue()
        channel.subscribe(states.put)  # it is told the present state at once, by a thread
        try:
            return states.get(timeout=STATE_S_MAX) is grpc.ChannelConnectivity.READY
        except Empty:
            return False
        finally:
            channel.unsubscribe(states.put)
