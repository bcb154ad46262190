"""The gRPC service that answers requests: reads messages, streams the dispatcher's events.

    DispatchRequest ─▶ DispatchInput ─▶ Dispatcher.answer ─▶ DispatchReply, …

Every failure leaves here as a status of the table in `serve.meanings`; when the caller leaves,
everything made for it ends.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, cast

import grpc
import msgspec

from serve.dispatch.answers import (
    N_PROBES,
    AttemptRecord,
    DispatchInput,
    Ended,
    Escalate,
    Event,
    Merge,
    Routed,
    Streamed,
)
from serve.dispatch.routing_text import routing_text
from serve.errors import AttemptFailed, InvalidRequest
from serve.grpc_api.grpc_status import reason_of, refusal_of, status_of
from serve.grpc_api.paced import PacedWriter
from serve.grpc_api.streams import StreamOptions, Streams, abort
from serve.proto.fairlead.v1 import dispatch_pb2 as pb
from serve.proto.fairlead.v1 import dispatch_pb2_grpc, router_pb2
from serve.routing.request import whole

logger = logging.getLogger(__name__)

NO_RETRY = ("grpc-retry-pushback-ms", "-1")  # gRPC's word for "don't" (grpc/proposal A6)
OPTIONS_BYTES_MAX = 1024 * 1024  # also said in the proto
# The dispatcher says these itself; in the options they would contradict it.
OURS = ("model", "stream", "stream_options", "priority")


class DispatcherServicer(dispatch_pb2_grpc.DispatcherServicer):
    """See dispatch.proto for what the call promises."""

    def __init__(
        self,
        answer: Callable[[DispatchInput], AsyncGenerator[Event, None]],
        now_ms: Callable[[], int],
        streams: StreamOptions | None = None,
    ) -> None:
        self._answer, self._now_ms = answer, now_ms
        self._streams = Streams(streams or StreamOptions())

    async def Dispatch(  # noqa: N802 - gRPC's name
        self,
        request: pb.DispatchRequest | InvalidRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """Decide, call, stream.

        Written, not yielded: of a generator gRPC would let go without closing it, when the caller
        leaves while it waits to be asked for more.
        """
        try:
            asked = whole(request)
            dispatch = read_dispatch(asked)
            left_s = context.time_remaining()
            if left_s is not None:
                _limit_deadline(dispatch.route, self._now_ms() + int(left_s * 1000))
            with self._streams.opened() as tenancy:
                tenancy.belongs_to(dispatch.route.tenant)

                async def written(events: Sequence[Event]) -> None:
                    replies = list(map(write, events))
                    for reply in [joined(replies)] if asked.joined else replies:
                        await self._streams.written(context.write(reply))

                await PacedWriter(written).send(self._answer(dispatch))
        except Exception as error:
            # A client's own retries would multiply the attempts that have failed already.
            final = (NO_RETRY,) if isinstance(error, AttemptFailed) else ()
            code, message, trailing = refusal_of(error, final)
            route = getattr(request, "route", None)  # none in bytes that are no message
            about = {"request_id": getattr(route, "request_id", ""), "reason": reason_of(error)}
            if code is grpc.StatusCode.INTERNAL:
                logger.error(
                    "a dispatch failed with an internal error", exc_info=error, extra=about
                )
            else:
                logger.debug("a dispatch was refused: %s", about["reason"], extra=about)
            await abort(context, code, message, trailing)


def read_dispatch(request: pb.DispatchRequest) -> DispatchInput:
    """Check one request. Raises InvalidRequest."""
    route = router_pb2.RouteRequest()
    route.CopyFrom(request.route)
    kind = route.WhichOneof("prompt")
    body = _options(request.options_json)
    if "messages" not in body:
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        if not messages and kind == "text":
            messages = [{"role": "user", "content": route.text}]
        if not messages:
            raise InvalidRequest("messages", "empty", "given, or `route.text`")
        body["messages"] = messages
    if kind is None:
        route.text = routing_text(_contents(body["messages"]))
    cascade = request.cascade
    return DispatchInput(
        route=route,
        body=body,
        confidence_min=cascade.confidence_min if request.HasField("cascade") else None,
        escalate=cast("Escalate", cascade.by or "confidence"),
        n_probes=cascade.probes if cascade.HasField("probes") else N_PROBES,
        probe_temperature=cascade.temperature if cascade.HasField("temperature") else None,
        fan_out=request.fan_out if request.HasField("fan_out") else 1,
        merge=cast("Merge", request.merge or "none"),
        agreement_min=request.agreement_min,
        escalate_to=request.escalate_to,
    )


def _contents(messages: Any) -> list[object]:
    return [message.get("content") for message in messages if isinstance(message, dict)]


def _options(text: str) -> dict[str, object]:
    """Further fields of the chat completion."""
    n_bytes = len(text.encode())
    if n_bytes > OPTIONS_BYTES_MAX:
        raise InvalidRequest("options_json", f"{n_bytes} bytes", f"at most {OPTIONS_BYTES_MAX:,}")
    try:
        options = msgspec.json.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest("options_json", f"not JSON ({error})", "a JSON object") from error
    if not isinstance(options, dict):
        raise InvalidRequest("options_json", type(options).__name__, "a JSON object")
    for name in OURS:
        if name in options:
            raise InvalidRequest(f"options_json.{name}", "given", "left out: it is decided here")
    if not isinstance(options.get("messages", []), list):
        raise InvalidRequest("options_json.messages", "no list", "a list of messages")
    return options


def _limit_deadline(route: router_pb2.RouteRequest, deadline_ms: int) -> None:
    if not route.HasField("deadline_unix_ms") or route.deadline_unix_ms > deadline_ms:
        route.deadline_unix_ms = deadline_ms


def joined(replies: Sequence[pb.DispatchReply]) -> pb.DispatchReply:
    """One message of several."""
    first, *others = replies
    first.followed_by.extend(others)
    return first


def write(event: Event) -> pb.DispatchReply:
    """An event as the message for it."""
    match event:
        case Streamed(answer=answer, piece=piece):
            text_alone = set(piece.delta) <= {"content", "role"}
            part = pb.AnswerPiece(
                text=piece.text,
                delta_json="" if text_alone else msgspec.json.encode(piece.delta).decode(),
                finish_reason=piece.finish_reason or "",
            )
            return pb.DispatchReply(answer=answer, piece=part)
        case Routed():
            return pb.DispatchReply(
                answer=event.answer,
                routed=pb.Routed(
                    model=event.model,
                    pool=event.pool,
                    endpoint=event.endpoint,
                    ticket=event.ticket,
                    decision=event.decision,
                    attempts=[_attempt(attempt) for attempt in event.attempts],
                    escalated=event.escalated,
                ),
            )
        case Ended():
            return pb.DispatchReply(answer=event.answer, ended=_ended(event))


def _ended(event: Ended) -> pb.Ended:
    code, problem = 0, ""
    if event.problem is not None:
        status, problem = status_of(event.problem)
        code = status.value[0]
    return pb.Ended(
        prompt_tokens=event.usage.prompt_tokens,
        output_tokens=event.usage.output_tokens,
        cost_usd=event.cost_usd,
        paid_usd=event.paid_usd,
        first_token_ms=event.first_token_ms,
        latency_ms=event.latency_ms,
        confidence=event.confidence,
        attempts=[_attempt(attempt) for attempt in event.attempts],
        problem_code=code,
        problem=problem,
        unsure=event.unsure,
        escalated=event.escalated,
    )


def _attempt(attempt: AttemptRecord) -> pb.Attempt:
    return pb.Attempt(
        **{name: getattr(attempt, name) for name in attempt.__slots__},
    )
