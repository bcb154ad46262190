"""The gRPC service: reads messages, hands them to the batcher, writes answers.

The one rule: every failure leaves here as a status of the table in `status.py`, and nothing on
the way of `Route` waits for a disk, a network or a lock.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import grpc

from serve.batcher import Batcher, BatcherOptions
from serve.decider import Decider
from serve.encoders import Encoder
from serve.errors import DeadlinePassed, InvalidRequest, NotServing
from serve.live import LiveView
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2_grpc
from serve.reply import write_explanation
from serve.request import BATCH_MAX, Asked, PreferenceDefaults, read_request
from serve.status import status_of
from streams.decisions import DecisionBatch
from streams.feedback import REPORTED, Ingest, encode_report
from streams.outbox import Outbox
from streams.ticket import Sealer

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicerOptions:
    """Limits of the service."""

    preference: PreferenceDefaults = PreferenceDefaults()
    batcher: BatcherOptions = BatcherOptions()
    stream_ongoing_max: int = 256  # requests of one stream being scored; then it is not read


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
        ingest: Ingest,
        decisions: Outbox[DecisionBatch] | None,
        feedback: Outbox[tuple[bytes, bytes]],
        policies: Sequence[str],
        options: ServicerOptions,
    ) -> None:
        self._decider, self._encoder, self._view = decider, encoder, view
        self._sealer, self._ingest = sealer, ingest
        self._decisions, self._feedback = decisions, feedback
        self._policies, self._options = policies, options
        self._batcher: Batcher[Asked, pb.Decision] = Batcher(self._score, options.batcher)
        self.counts = ServicerCounts()
        self.draining = False

    def _score(self, asked: Sequence[Asked]) -> list[pb.Decision | Exception]:
        """One batch against the view of this moment."""
        decided = self._decider.decide(asked, self._view.current)
        if decided.log is not None and self._decisions is not None:
            self._decisions.offer(decided.log)
        return decided.replies

    async def _decide(self, request: pb.RouteRequest) -> pb.Decision:
        """One request's decision. Raises what `status_of` maps."""
        if self.draining:
            raise NotServing("this replica is shutting down; another one serves the same address")
        asked = read_request(request, self._options.preference)
        if self._encoder.blocking and asked.text is not None:
            asked = await self._encoded_elsewhere(asked)
        return await self._batcher.submit(asked)

    async def _encoded_elsewhere(self, asked: Asked) -> Asked:
        """Encode a text in a thread, because this encoder would hold up the event loop."""
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(None, self._encoder.encode, [asked.text])
        return replace(asked, embedding=vectors[0])

    async def _reply(self, request: pb.RouteRequest) -> pb.RouteReply:
        """One request's decision or problem."""
        try:
            decision = await self._decide(request)
        except Exception as error:  # noqa: BLE001 - becomes a status
            return pb.RouteReply(request_id=request.request_id, problem=self._problem(error))
        self.counts.decisions += 1
        return pb.RouteReply(request_id=request.request_id, decision=decision)

    def _problem(self, error: Exception) -> pb.Problem:
        code, message = self._refuse(error)
        return pb.Problem(code=code.value[0], message=message)

    def _refuse(self, error: Exception) -> tuple[grpc.StatusCode, str]:
        """Status and message of an error; our bugs are logged with their trace."""
        self.counts.refused += 1
        code, message = status_of(error)
        if code is grpc.StatusCode.INTERNAL:
            logger.error("a call failed by our fault", exc_info=error)
        return code, message

    async def Route(self, request: pb.RouteRequest, context: Context) -> pb.Decision:
        """One request, one decision."""
        try:
            _check_time_left(context)
            decision = await self._decide(request)
        except Exception as error:  # noqa: BLE001 - becomes a status
            await context.abort(*self._refuse(error))
        self.counts.decisions += 1
        return decision

    async def RouteBatch(
        self, request: pb.RouteBatchRequest, context: Context
    ) -> pb.RouteBatchReply:
        """Many requests, scored together; each bad one fails alone."""
        try:
            _check_count("requests", len(request.requests))
            _check_time_left(context)
        except Exception as error:  # noqa: BLE001 - becomes a status
            await context.abort(*self._refuse(error))
        return pb.RouteBatchReply(
            replies=await asyncio.gather(*(self._reply(one) for one in request.requests))
        )

    async def RouteStream(
        self, requests: AsyncIterator[pb.RouteRequest], context: Context
    ) -> AsyncIterator[pb.RouteReply]:
        """Requests in, replies out as they are ready; reading pauses when too many are ongoing."""
        del context
        done: asyncio.Queue[pb.RouteReply | None] = asyncio.Queue()
        room = asyncio.Semaphore(self._options.stream_ongoing_max)

        async def answer(request: pb.RouteRequest) -> None:
            done.put_nowait(await self._reply(request))

        async def read() -> None:
            async with asyncio.TaskGroup() as ongoing:
                async for request in requests:
                    await room.acquire()
                    ongoing.create_task(answer(request))
            done.put_nowait(None)

        reading = asyncio.create_task(read())
        try:
            while (reply := await done.get()) is not None:
                yield reply
                room.release()
        finally:
            reading.cancel()

    async def SendFeedback(self, request: pb.FeedbackRequest, context: Context) -> pb.FeedbackReply:
        """Check all outcomes as the trainer will, then write them; durable on return."""
        try:
            _check_count("outcomes", len(request.outcomes))
            records = [self._record(i, outcome) for i, outcome in enumerate(request.outcomes)]
            written = [asyncio.wrap_future(self._feedback.submit(record)) for record in records]
            await asyncio.gather(*written)
        except Exception as error:  # noqa: BLE001 - becomes a status
            await context.abort(*self._refuse(error))
        self.counts.feedback += len(records)
        return pb.FeedbackReply(accepted=len(records))

    def _record(self, position: int, outcome: pb.Outcome) -> tuple[bytes, bytes]:
        """Key and value of one feedback record. Raises InvalidRequest and BadTicket."""
        reported = {name: getattr(outcome, name) for name in REPORTED if outcome.HasField(name)}
        for name, value in reported.items():
            if not math.isfinite(value):
                raise InvalidRequest(f"outcomes[{position}].{name}", value, "finite")
        decision_id, _ = self._sealer.open_body(outcome.ticket)
        value = encode_report(outcome.ticket, **reported)
        try:
            self._ingest.check(value)
        except Exception as error:
            raise InvalidRequest(f"outcomes[{position}]", str(error), "valid feedback") from error
        return decision_id.hex().encode(), value

    async def Explain(self, request: pb.ExplainRequest, context: Context) -> pb.Explanation:
        """Open a ticket."""
        try:
            ticket = self._sealer.open(request.ticket)
            return write_explanation(ticket, self._view.current, self._policies)
        except Exception as error:  # noqa: BLE001 - becomes a status
            await context.abort(*self._refuse(error))
            raise AssertionError("abort raises") from error


def _check_count(field: str, n: int) -> None:
    if not 1 <= n <= BATCH_MAX:
        raise InvalidRequest(field, f"{n} long", f"1 to {BATCH_MAX:,} long")


def _check_time_left(context: Context) -> None:
    left_s = context.time_remaining()
    if left_s is not None and left_s <= 0:
        raise DeadlinePassed("the gRPC deadline had passed before the request was scored")
