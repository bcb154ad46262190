"""The gRPC service: reads messages, hands them to the batcher, writes answers.

    Route, RouteArm              admitted one by one                          here
    RouteStream                  the same, as long as the stream is read      here, `streams`
    RouteBatch, …, RouteColumns  admitted as so many requests                 `many`
    SendFeedback, TraceFeedback  written to the log, looked up                `reporting`

Every failure leaves here as a status of the table in `serve.meanings`, and nothing on the way of
`Route` waits for a disk, a network or a lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc

from serve.access.rates import Rates
from serve.arms.asked import ArmInput
from serve.arms.decider import ArmDecider
from serve.encoders import Encoder
from serve.errors import NotServing, QueueFull, RateExceeded
from serve.grpc_api.asking.admission import Admission, AdmissionOptions, pushback_of, time_left
from serve.grpc_api.asking.asking import Asking
from serve.grpc_api.asking.batcher import BatcherOptions
from serve.grpc_api.asking.bulk import BULK, Bulk
from serve.grpc_api.asking.many import Many, Message
from serve.grpc_api.grpc_status import Refusal
from serve.grpc_api.replies import Replies
from serve.grpc_api.reporting import Reporting
from serve.grpc_api.streams import Flow, StreamOptions, Streams, abort
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from serve.routing.decider import Decider
from serve.routing.live_view import LiveView
from serve.routing.request import MODELS_LISTED_MAX, PreferenceDefaults, RouteInput, whole
from serve.routing.writing.reply import write_explanation
from streams.feedback.decisions import DecisionBatch
from streams.feedback.ticket import Sealer
from streams.log.outbox import Outbox
from streams.telemetry.window import RouterWindow

Context = grpc.aio.ServicerContext[Any, Any]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicerOptions:
    """Limits of the service."""

    preference: PreferenceDefaults = PreferenceDefaults()
    batcher: BatcherOptions = BatcherOptions()
    admission: AdmissionOptions = AdmissionOptions()
    bulk: AdmissionOptions = BULK
    stream_ongoing_max: int = 256  # requests of one stream being scored; then it is not read
    streams: StreamOptions = StreamOptions()


class RouterServicer(router_pb2_grpc.RouterServicer):
    """See router.proto for what each call promises."""

    def __init__(
        self,
        decider: Decider,
        encoder: Encoder,
        view: LiveView,
        sealer: Sealer,
        decisions: Outbox[DecisionBatch] | None,
        reporting: Reporting,
        policies: Sequence[str],
        options: ServicerOptions,
        now_ms: Callable[[], int],
        telemetry: RouterWindow | None = None,
        rates: Rates | None = None,
        arms: ArmDecider | None = None,
    ) -> None:
        self._sealer, self._view, self._reporting = sealer, view, reporting
        self._policies, self._options, self._arms = policies, options, arms
        self._asking = Asking(
            decider,
            encoder,
            view,
            decisions,
            options.preference,
            options.batcher,
            now_ms,
            telemetry,
            rates,
            arms,
        )
        self._replies = Replies()
        self.counts = self._replies.counts
        self._admission, self._bulk = Admission(options.admission), Bulk(options.bulk)
        self._many = Many(self._asking, self._replies, self._bulk)
        self._streams = Streams(options.streams)
        # Open streams are to be opened elsewhere. A call that has come this far is answered: to
        # refuse it while its connection is still open would have it come back by the same one.
        self.draining = False

    # --- for other front ends

    async def decide(self, request: pb.RouteRequest, *, measured: bool = False) -> pb.Decision:
        """One request's decision, whatever else is under way. Raises what `status_of` maps.

        `measured`: who asks makes the call, too, reports what it took, and may need every
        fallback.
        """
        asked = self._asking.read(request)
        if measured:
            asked = replace(asked, measured=True, fallbacks_max=MODELS_LISTED_MAX)
        began_s = time.monotonic()
        decided = await self._asking.decided(asked)
        self._asking.took(time.monotonic() - began_s)
        return pb.Decision.FromString(decided)

    async def decide_arm(self, request: pb.RouteArmRequest) -> pb.Decision:
        """The same of an arm."""
        return pb.Decision.FromString(await self._asking.decided(self._asking.read_arm(request)))

    async def send_feedback(self, request: pb.FeedbackRequest) -> pb.FeedbackReply:
        """Check all outcomes as the trainer will, then write them. Raises what `status_of` maps."""
        accepted = await self._reporting.send(whole(request))
        self.counts.feedback += accepted
        return pb.FeedbackReply(accepted=accepted)

    def explained(self, ticket: bytes) -> pb.Explanation:
        """A ticket opened. Raises BadTicket."""
        opened, arms = self._sealer.open(ticket), self._arms.names if self._arms else {}
        return write_explanation(opened, self._view.current, self._policies, arms)

    # --- single requests

    async def Route(self, request: pb.RouteRequest, context: Context) -> bytes:
        """One request, one decision."""
        return await self._one(request, context, self._asking.read)

    async def RouteArm(self, request: pb.RouteArmRequest, context: Context) -> bytes:
        """One request, one of the operator's arms."""
        return await self._one(request, context, self._asking.read_arm)

    async def _one(
        self,
        request: Message,
        context: Context,
        read: Callable[[Message, float], RouteInput | ArmInput],
    ) -> bytes:
        try:
            decision = await self._admitted(request, context, read)
        except RateExceeded as error:
            pushback = pushback_of(error.retry_after_s)
            await context.abort(*self._replies.refusal(error, pushback, request))
        except QueueFull as error:
            pushback = self._admission.pushback()
            await context.abort(*self._replies.refusal(error, pushback, request))
        except Exception as error:  # noqa: BLE001 - becomes a status
            await context.abort(*self._replies.refusal(error, request=request))
        self.counts.decisions += 1
        return decision

    async def _admitted(
        self,
        request: Message,
        context: Context,
        read: Callable[[Message, float], RouteInput | ArmInput],
    ) -> bytes:
        """One call's decision, unless more are under way than can be answered in time."""
        left_s = time_left(context.time_remaining())
        asked = read(request, left_s)
        began_s = time.monotonic()
        self._admission.enter(asked.tenant, asked.criticality, left_s, now_s=began_s)
        try:
            return await self._asking.decided(asked)
        finally:
            self._leave(asked, began_s)

    def _leave(self, asked: RouteInput | ArmInput, began_s: float) -> None:
        """One that was admitted is answered."""
        ended_s = time.monotonic()
        self._admission.leave(asked.tenant, ended_s - began_s, now_s=ended_s)
        self._asking.took(ended_s - began_s)

    # --- streams

    async def RouteStream(self, requests: AsyncIterator[pb.RouteRequest], context: Context) -> None:
        """Requests in, replies out as they are ready; reading pauses when too many are ongoing."""
        try:
            with self._streams.opened() as tenancy:
                most = self._options.stream_ongoing_max
                await self._streams.answer(requests, context.write, tenancy, self._reply, most)
        except Exception as error:  # noqa: BLE001 - becomes a status
            await abort(context, *self._replies.refusal(error))

    async def _reply(self, request: pb.RouteRequest, flow: Flow) -> bytes:
        """The decision of a stream's request, or its problem, as a RouteReply."""
        try:
            self._check_stream()
            decision = await self._streamed(self._asking.read(request), flow)
            return self._replies.reply(request, decision)
        except Exception as error:  # noqa: BLE001 - becomes a status
            return self._replies.reply(request, error)

    async def _streamed(self, asked: RouteInput, flow: Flow) -> bytes:
        """The same as of a call; a stream's deadline is not its requests'."""
        enter, began_s = self._admission.enter, time.monotonic()

        def admit() -> None:
            nonlocal began_s
            began_s = time.monotonic()
            enter(asked.tenant, asked.criticality, math.inf, now_s=began_s)

        await flow.enter(admit)
        try:
            return await self._asking.decided(asked)
        finally:
            flow.leave()
            self._leave(asked, began_s)

    def _check_stream(self) -> None:
        if self.draining:
            raise NotServing("this replica is shutting down; open the stream at another one")

    # --- many requests in one call

    async def RouteBatch(self, request: pb.RouteBatchRequest, context: Context) -> bytes:
        """Many requests, scored together as they came; each bad one fails alone."""
        many = self._many.batch(request, context.time_remaining())
        return await self._answered(context, many, self._replies.refusal)

    async def RouteArmBatch(self, request: pb.RouteArmBatchRequest, context: Context) -> bytes:
        """The same of arms."""
        many = self._many.arm_batch(request, context.time_remaining())
        return await self._answered(context, many, self._replies.refusal)

    async def RouteColumns(self, request: pb.RouteColumnsRequest, context: Context) -> bytes:
        """Many requests that differ in their prompts alone; each bad row fails alone."""
        many = self._many.columns(request, context.time_remaining())
        return await self._answered(context, many, self._replies.refusal)

    async def _answered(
        self,
        context: Context,
        answer: Awaitable[Answer],
        said: Callable[[Exception, Sequence[tuple[str, str]]], Refusal],
    ) -> Answer:
        """The answer, or the call's end with a status, as `said` tells it."""
        try:
            return await answer
        except Exception as error:
            full = isinstance(error, QueueFull)
            pushback = self._bulk.admission.pushback() if full else ()
            await context.abort(*said(error, pushback))
            raise AssertionError("abort raises") from error

    # --- what became of decisions

    async def SendFeedback(self, request: pb.FeedbackRequest, context: Context) -> pb.FeedbackReply:
        """Check all outcomes as the trainer will, then write them; durable on return."""
        return await self._answered(context, self.send_feedback(request), self._replies.status)

    async def TraceFeedback(
        self, request: pb.TraceFeedbackRequest, context: Context
    ) -> pb.FeedbackTrace:
        """Say what became of a decision's outcomes."""
        try:
            return await self._reporting.trace(whole(request).ticket)
        except Exception as error:
            await context.abort(*self._replies.status(error))
            raise AssertionError("abort raises") from error

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        """Open a ticket."""
        try:
            return self.explained(whole(request).ticket)
        except Exception as error:
            await context.abort(*self._replies.status(error))
            raise AssertionError("abort raises") from error
