"""The gRPC service: reads messages, hands them to the batcher, writes answers.

Every failure leaves here as a status of the table in `serve.meanings`, and nothing on the way of
`Route` waits for a disk, a network or a lock.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from serve.access.rates import Rates
from serve.arms.asked import ArmInput, read_arm_request
from serve.arms.decider import ArmDecider
from serve.encoders import Encoder
from serve.encoders.elsewhere import Elsewhere
from serve.errors import NoArms, NotServing, QueueFull, RateExceeded
from serve.grpc_api.admission import Admission, AdmissionOptions, pushback_of, time_left
from serve.grpc_api.batcher import Batcher, BatcherOptions
from serve.grpc_api.bulk import BULK, Bulk, check_count, lowest, or_error, slices
from serve.grpc_api.grpc_status import Trailing, reason_of, refusal_of
from serve.grpc_api.reporting import Reporting
from serve.grpc_api.streams import Flow, StreamOptions, Streams, abort
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from serve.routing.decider import Decider
from serve.routing.live_view import LiveView
from serve.routing.request import (
    MODELS_LISTED_MAX,
    PreferenceDefaults,
    RouteInput,
    read_columns,
    read_request,
    whole,
)
from serve.routing.writing.decision_bytes import batch_reply_bytes, reply_bytes
from serve.routing.writing.records import Kept
from serve.routing.writing.reply import write_explanation
from streams.feedback.decisions import DecisionBatch
from streams.feedback.ticket import Sealer
from streams.log.outbox import Outbox
from streams.telemetry.window import RouterWindow

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext
Answer = TypeVar("Answer")
Asked = TypeVar("Asked", RouteInput, ArmInput)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicerOptions:
    """Limits of the service."""

    preference: PreferenceDefaults = PreferenceDefaults()
    batcher: BatcherOptions = BatcherOptions()
    admission: AdmissionOptions = AdmissionOptions()
    bulk: AdmissionOptions = BULK
    stream_ongoing_max: int = 256  # requests of one stream being scored; then it is not read
    streams: StreamOptions = StreamOptions()


@dataclass(slots=True)
class ServicerCounts:
    """What this replica has answered since it started."""

    decisions: int = 0
    refused: int = 0
    feedback: int = 0


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
        self._telemetry, self._rates, self._arms = telemetry, rates, arms
        self._decider, self._encoder, self._view = decider, encoder, view
        self._sealer, self._decisions, self._reporting = sealer, decisions, reporting
        self._policies, self._options, self._now_ms = policies, options, now_ms
        self._elsewhere = Elsewhere(encoder, options.batcher.waiting_max)
        self._batcher: Batcher[RouteInput, bytes] = Batcher(self._score, options.batcher)
        self._of_arms = Batcher(arms.decide, options.batcher) if arms is not None else None
        self._admission, self._bulk = Admission(options.admission), Bulk(options.bulk)
        self._streams = Streams(options.streams)
        self.counts = ServicerCounts()
        # Open streams are to be opened elsewhere. A call that has come this far is answered: to
        # refuse it while its connection is still open would have it come back by the same one.
        self.draining = False

    def _score(self, asked: Sequence[RouteInput]) -> list[bytes | Exception]:
        """One batch against the view of this moment."""
        decided = self._decider.decide(asked, self._view.current)
        self._keep(decided.kept)
        return decided.replies

    def _keep(self, kept: Kept | None) -> None:
        """Write down what was decided, and count it."""
        if kept is None:
            return
        if self._decisions is not None and (log := kept.log()) is not None:
            self._decisions.offer(log)
        if self._telemetry is not None:
            self._telemetry.count_batch(kept.decisions)

    async def decide(self, request: pb.RouteRequest, *, measured: bool = False) -> pb.Decision:
        """One request's decision, whatever else is under way. Raises what `status_of` maps.

        `measured`: who asks makes the call, too, reports what it took, and may need every
        fallback.
        """
        asked = self._read(request)
        if measured:
            asked = replace(asked, measured=True, fallbacks_max=MODELS_LISTED_MAX)
        began_s = time.monotonic()
        decided = await self._scored(asked)
        if self._telemetry is not None:
            self._telemetry.count_took(time.monotonic() - began_s)
        return pb.Decision.FromString(decided)

    async def decide_arm(self, request: pb.RouteArmRequest) -> pb.Decision:
        """The same of an arm."""
        return pb.Decision.FromString(await self._scored(self._read_arm(request)))

    def _read(self, request: pb.RouteRequest, left_s: float = math.inf) -> RouteInput:
        latest_ms = self._now_ms() + left_s * 1000.0
        asked = read_request(whole(request), self._options.preference, latest_ms)
        self._take_rate(asked.tenant)
        return asked

    def _read_arm(self, request: pb.RouteArmRequest, left_s: float = math.inf) -> ArmInput:
        latest_ms = self._now_ms() + left_s * 1000.0
        asked = read_arm_request(whole(request), self._options.preference, latest_ms)
        if self._arms is None:
            raise NoArms("there are no arms here: name their file as `arms.file` in the settings")
        self._take_rate(asked.tenant)
        return asked

    def _take_rate(self, tenant: str, n: int = 1) -> None:
        if self._rates is not None:
            self._rates.take(tenant, n, now_s=time.monotonic())

    async def _scored(self, asked: RouteInput | ArmInput) -> bytes:
        if self._encoder.blocking and asked.text is not None:
            asked = await self._encoded(asked)
        if isinstance(asked, RouteInput):
            return await self._batcher.submit(asked)
        assert self._of_arms is not None, "without arms nothing is read"
        return await self._of_arms.submit(asked)

    async def _admitted(
        self,
        request: Any,
        context: Context[Any, Any],
        read: Callable[[Any, float], RouteInput | ArmInput],
    ) -> bytes:
        """One call's decision, unless more are under way than can be answered in time."""
        left_s = time_left(context.time_remaining())
        asked = read(request, left_s)
        began_s = time.monotonic()
        self._admission.enter(asked.tenant, asked.criticality, left_s, now_s=began_s)
        try:
            return await self._scored(asked)
        finally:
            self._leave(asked, began_s)

    def _leave(self, asked: RouteInput | ArmInput, began_s: float) -> None:
        """One that was admitted is answered."""
        ended_s = time.monotonic()
        self._admission.leave(asked.tenant, ended_s - began_s, now_s=ended_s)
        if self._telemetry is not None:
            self._telemetry.count_took(ended_s - began_s)

    async def _encoded(self, asked: RouteInput | ArmInput) -> RouteInput | ArmInput:
        """The same with its text encoded in a thread: this encoder would hold up the loop."""
        embedding = await self._elsewhere.embedding(asked.text or "")
        if isinstance(asked, ArmInput):
            return replace(asked, route=replace(asked.route, embedding=embedding))
        return replace(asked, embedding=embedding)

    async def _reply(self, request: pb.RouteRequest, flow: Flow) -> bytes:
        """The decision of a stream's request, or its problem, as a RouteReply."""
        try:
            self._check_stream()
            return self._written(request, await self._streamed(self._read(request), flow))
        except Exception as error:  # noqa: BLE001 - becomes a status
            return self._written(request, error)

    async def _streamed(self, asked: RouteInput, flow: Flow) -> bytes:
        """The same as of a call; a stream's deadline is not its requests'."""
        enter, began_s = self._admission.enter, time.monotonic()

        def admit() -> None:
            nonlocal began_s
            began_s = time.monotonic()
            enter(asked.tenant, asked.criticality, math.inf, now_s=began_s)

        await flow.enter(admit)
        try:
            return await self._scored(asked)
        finally:
            flow.leave()
            self._leave(asked, began_s)

    def _check_stream(self) -> None:
        if self.draining:
            raise NotServing("this replica is shutting down; open the stream at another one")

    def _problem(self, error: Exception, request: object = None) -> pb.Problem:
        code, message, _ = self._refuse(error, request=request)
        return pb.Problem(code=code.value[0], message=message, reason=reason_of(error))

    def _written(self, request: pb.RouteRequest, result: bytes | Exception) -> bytes:
        """A decision or what went wrong, as a RouteReply."""
        request_id = getattr(request, "request_id", "")  # a message that can't be read has none
        if isinstance(result, Exception):
            problem = self._problem(result, request)
            return pb.RouteReply(request_id=request_id, problem=problem).SerializeToString()
        self.counts.decisions += 1
        return reply_bytes(request_id, result)

    def _refuse(self, error: Exception, *of: Any, **more: Any) -> Any:
        """The same as `_said`, of a request that gets no decision."""
        self.counts.refused += 1
        return self._said(error, *of, **more)

    def _said(
        self, error: Exception, trailing: Sequence[tuple[str, str]] = (), request: object = None
    ) -> tuple[grpc.StatusCode, str, Trailing]:
        """What `abort` takes; our bugs are logged with their trace, and by which request."""
        refusal, reason = refusal_of(error, trailing), reason_of(error)
        about = {"request_id": getattr(request, "request_id", ""), "reason": reason}
        if refusal[0] is grpc.StatusCode.INTERNAL:
            logger.error("a call failed with an internal error", exc_info=error, extra=about)
        else:
            logger.debug("a request was refused: %s", reason, extra=about)
        return refusal

    async def Route(self, request: pb.RouteRequest, context: Context[Any, Any]) -> bytes:
        """One request, one decision."""
        return await self._decided(request, context, self._read)

    async def RouteArm(self, request: pb.RouteArmRequest, context: Context[Any, Any]) -> bytes:
        """One request, one of the operator's arms."""
        return await self._decided(request, context, self._read_arm)

    async def _decided(
        self,
        request: Any,
        context: Context[Any, Any],
        read: Callable[[Any, float], RouteInput | ArmInput],
    ) -> bytes:
        try:
            decision = await self._admitted(request, context, read)
        except RateExceeded as error:
            await context.abort(*self._refuse(error, pushback_of(error.retry_after_s), request))
        except QueueFull as error:
            pushback = self._admission.pushback()
            await context.abort(*self._refuse(error, pushback, request))
        except Exception as error:  # noqa: BLE001 - becomes a status
            await context.abort(*self._refuse(error, request=request))
        self.counts.decisions += 1
        return decision

    async def RouteBatch(self, request: pb.RouteBatchRequest, context: Context[Any, Any]) -> bytes:
        """Many requests, scored together as they came; each bad one fails alone."""
        many = self._batch(request, context, lambda one: one, self._read, self._score)
        return await self._answered(context, many)

    async def RouteArmBatch(
        self, request: pb.RouteArmBatchRequest, context: Context[Any, Any]
    ) -> bytes:
        """The same of arms."""
        # Without arms no request is read, so there is none to decide.
        decide = self._arms.decide if self._arms is not None else lambda asked: []
        many = self._batch(request, context, lambda one: one.request, self._read_arm, decide)
        return await self._answered(context, many)

    async def _batch(
        self,
        request: Any,
        context: Context[Any, Any],
        route_of: Callable[[Any], pb.RouteRequest],
        read: Callable[[Any], Asked],
        score: Callable[[Sequence[Asked]], list[bytes | Exception]],
    ) -> bytes:
        many = whole(request).requests
        check_count("requests", len(many))
        routes = [route_of(one) for one in many]
        left_s, tenant = time_left(context.time_remaining()), routes[0].tenant
        async with self._bulk.admitted(len(many), tenant, lowest(routes), left_s):
            results = await self._all_scored(many, left_s, read, score)
        return batch_reply_bytes(list(map(self._written, routes, results)))

    async def RouteColumns(
        self, request: pb.RouteColumnsRequest, context: Context[Any, Any]
    ) -> bytes:
        """Many requests that differ in their prompts alone; each bad row fails alone."""
        return await self._answered(context, self._columns(request, context))

    async def _columns(self, request: pb.RouteColumnsRequest, context: Context[Any, Any]) -> bytes:
        left_s = time_left(context.time_remaining())
        latest_ms = self._now_ms() + left_s * 1000.0
        asked = read_columns(whole(request), self._options.preference, latest_ms)
        embeddings, tokens = self._decider.matrix(asked)
        n, shared = len(embeddings), asked.shared
        self._take_rate(shared.tenant, n)
        admitted = self._bulk.admitted(n, shared.tenant, shared.criticality, left_s)
        async with admitted, self._bulk.turn(left_s):
            return await self._columns_scored(shared, embeddings, tokens)

    async def _answered(self, context: Any, answer: Awaitable[Answer], said: Any = None) -> Answer:
        """The answer, or the call's end with a status, as `said` tells it, by default `_refuse`."""
        try:
            return await answer
        except Exception as error:
            full = isinstance(error, QueueFull)
            pushback = self._bulk.admission.pushback() if full else ()
            await context.abort(*(said or self._refuse)(error, pushback))
            raise AssertionError("abort raises") from error

    async def _columns_scored(
        self, shared: RouteInput, embeddings: NDArray[np.float32], tokens: NDArray[Any]
    ) -> bytes:
        """Columns in slices against one view; parts of a message that are joined are one."""
        live = self._view.current
        head = pb.RouteColumnsReply(
            models=live.catalogue.names,
            pools=live.catalogue.pool_names,
            snapshot_version=live.version,
            snapshot_age_ms=live.age_ms(self._now_ms()),
        )
        parts = [b""]
        async for rows in slices(len(embeddings), self._options.batcher.batch_max):
            decided = self._decider.decide_columns(shared, embeddings[rows], tokens[rows], live)
            self._keep(decided.kept)
            parts.append(decided.reply)
            head.problems.extend(
                pb.RowProblem(row=rows.start + row, problem=self._problem(problem))
                for row, problem in sorted(decided.problems.items())
            )
        self.counts.decisions += len(embeddings) - len(head.problems)
        parts[0] = head.SerializeToString()
        return b"".join(parts)

    async def _all_scored(
        self,
        requests: Sequence[Any],
        left_s: float,
        read: Callable[[Any], Asked],
        score: Callable[[Sequence[Asked]], list[bytes | Exception]],
    ) -> list[bytes | Exception]:
        """Decisions of one caller's requests in slices, between which others have their turn."""
        results: list[Any] = []
        size = self._options.batcher.batch_max
        async with self._bulk.turn(left_s):
            async for rows in slices(len(requests), size):
                results += [or_error(read, request) for request in requests[rows]]
        if self._encoder.blocking:
            await self._encode_all(results)
        at = [i for i, one in enumerate(results) if not isinstance(one, Exception)]
        async with self._bulk.turn(left_s):
            async for rows in slices(len(at), size):
                asked = [results[i] for i in at[rows]]
                scored = or_error(score, asked)
                if isinstance(scored, Exception):  # our bug; it is each request's problem
                    scored = [scored] * len(asked)
                for i, result in zip(at[rows], scored, strict=True):
                    results[i] = result
        return results

    async def _encode_all(self, asked: list[Any]) -> None:
        """Put encoded requests, or errors, in the place of those with texts."""
        texts = [i for i, one in enumerate(asked) if getattr(one, "text", None) is not None]
        encoded = await asyncio.gather(
            *(self._encoded(asked[i]) for i in texts), return_exceptions=True
        )
        for i, one in zip(texts, encoded, strict=True):
            asked[i] = one

    async def RouteStream(
        self, requests: AsyncIterator[pb.RouteRequest], context: Context[Any, Any]
    ) -> None:
        """Requests in, replies out as they are ready; reading pauses when too many are ongoing."""
        try:
            with self._streams.opened() as tenancy:
                most = self._options.stream_ongoing_max
                await self._streams.answer(requests, context.write, tenancy, self._reply, most)
        except Exception as error:  # noqa: BLE001 - becomes a status
            await abort(context, *self._refuse(error))

    async def SendFeedback(
        self, request: pb.FeedbackRequest, context: Context[Any, Any]
    ) -> pb.FeedbackReply:
        """Check all outcomes as the trainer will, then write them; durable on return."""
        return await self._answered(context, self.send_feedback(request), self._said)

    async def send_feedback(self, request: pb.FeedbackRequest) -> pb.FeedbackReply:
        """The same, for other front ends. Raises what `status_of` maps."""
        accepted = await self._reporting.send(whole(request))
        self.counts.feedback += accepted
        return pb.FeedbackReply(accepted=accepted)

    async def TraceFeedback(
        self, request: pb.TraceFeedbackRequest, context: Context[Any, Any]
    ) -> pb.FeedbackTrace:
        """Say what became of a decision's outcomes."""
        try:
            return await self._reporting.trace(whole(request).ticket)
        except Exception as error:
            await context.abort(*self._said(error))
            raise AssertionError("abort raises") from error

    async def Explain(
        self, request: pb.ExplainRequest, context: Context[Any, Any]
    ) -> pb.Explanation:
        """Open a ticket."""
        try:
            return self.explained(whole(request).ticket)
        except Exception as error:
            await context.abort(*self._said(error))
            raise AssertionError("abort raises") from error

    def explained(self, ticket: bytes) -> pb.Explanation:
        """The same, for other front ends. Raises BadTicket."""
        opened, arms = self._sealer.open(ticket), self._arms.names if self._arms else {}
        return write_explanation(opened, self._view.current, self._policies, arms)
