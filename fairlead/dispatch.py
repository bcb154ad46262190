"""What a dispatched request is asked with, and what comes of it; and between these and protobuf.

    DispatchRequest ─▶ dispatcher ─▶ Routed, Piece, Piece, …, Ended      per answer

An answer's `Routed` comes first and its `Ended` last, each once. Of several answers one may fail
before it begins: it has an `Ended` alone, with its `problem`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead import wire
from fairlead.errors import FairleadError, InvalidRequest, from_number
from fairlead.messages import Decision, Request
from serve.proto.fairlead.v1 import dispatch_pb2 as pb
from serve.proto.fairlead.v1 import router_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchRequest:
    """A request to be answered, and how."""

    route: Request | None  # who asks and what matters; None: all as the router's settings say
    # The conversation as OpenAI has it, {"role": …, "content": …}; empty: the route's text.
    messages: Sequence[Mapping[str, object]] = ()
    # Further fields of an OpenAI chat completion: max_tokens, temperature, tools, …
    options: Mapping[str, object] = field(default_factory=dict)
    confidence_min: float | None = None  # cascade: ask a better model below this; 0 to 1
    by_gain: bool = False  # cascade: ask a better model where that is expected to be worth it
    # Cascade: ask the cheap model so often, 2 to 8, and a better one by how its answers agree.
    probes: int | None = None
    temperature: float | None = None  # of these; above 0 to 2
    fan_out: int | None = None  # ask so many models at once; 1 to 8
    merge: str | None = None  # of these give one: "agreement", "judge" or "fuse"; else all
    agreement_min: float | None = None  # with merge: with less they contradict each other; 0 to 1
    escalate_to: str | None = None  # asked where all others failed or contradicted each other

    def message(self) -> pb.DispatchRequest:
        """Write it. Raises InvalidRequest."""
        options = dict(self.options)
        if self.messages:
            options["messages"] = list(self.messages)
        try:
            # JSON has no NaN; Python would write one all the same.
            text = json.dumps(options, allow_nan=False) if options else ""
        except (TypeError, ValueError, RecursionError) as problem:
            raise InvalidRequest("Dispatch", f"options or messages: {problem}") from problem
        return wire.built(
            pb.DispatchRequest,
            route=self._route(bool(options.get("messages"))),
            options_json=text,
            cascade=self._cascade(),
            fan_out=self.fan_out,
            merge=self.merge,
            agreement_min=self.agreement_min,
            escalate_to=self.escalate_to,
            joined=True,
        )

    def _cascade(self) -> pb.Cascade | None:
        sampled = self.probes is not None or self.temperature is not None
        if self.confidence_min is None and not self.by_gain and not sampled:
            return None
        return wire.built(
            pb.Cascade,
            confidence_min=self.confidence_min,
            by="self_consistency" if sampled else "gain" if self.by_gain else "",
            probes=self.probes,
            temperature=self.temperature,
        )

    def _route(self, with_messages: bool) -> router_pb2.RouteRequest | None:
        if self.route is None and not with_messages:
            raise InvalidRequest("Dispatch", "route and messages: neither given, one is needed")
        if self.route is None:
            return None
        return wire.route_request(self.route, prompt_elsewhere=with_messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One call to one endpoint of a pool."""

    model: str
    pool: str
    endpoint: str
    kind: str  # first, retry, hedge, reroute, cascade, escalation, fan-out, fuse, last-resort
    outcome: str  # answered, unsure, compared, cancelled, or why it failed
    detail: str
    began_ms: float  # since the request came in
    took_ms: float
    cost_usd: float  # paid for it, whether or not it answered


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Who answers; comes with the first token."""

    answer: int  # which of the fan-out, from 0
    model: str
    pool: str
    endpoint: str
    ticket: bytes  # of the attempt that answers: report its quality with it
    decision: Decision
    attempts: tuple[Attempt, ...]  # those before it
    escalated: str = ""  # why `escalate_to` answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A part of an answer."""

    answer: int
    text: str
    delta: Mapping[str, object]  # as OpenAI has it; more than the text for tool calls and the like
    finish_reason: str  # "" but in the last piece


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The end of an answer."""

    answer: int
    prompt_tokens: int
    output_tokens: int
    cost_usd: float  # of the attempt that answered
    paid_usd: float  # of all attempts
    first_token_ms: float  # since the request came in
    latency_ms: float
    confidence: float | None
    attempts: tuple[Attempt, ...]
    problem: FairleadError | None  # fan-out: why this answer failed; the others go on
    unsure: str = ""  # why an answer is given that was not good enough, fused, or agreed with
    escalated: str = ""  # as in `Routed`


DispatchEvent = Routed | Piece | Ended


def read(reply: pb.DispatchReply) -> Iterator[DispatchEvent]:
    """Read the events of a message, but for those that this client is too old to know."""
    return filter(None, map(_event, (reply, *reply.followed_by)))


def _event(reply: pb.DispatchReply) -> DispatchEvent | None:
    kind = reply.WhichOneof("part")
    if kind == "piece":
        piece = reply.piece
        delta = json.loads(piece.delta_json) if piece.delta_json else {"content": piece.text}
        return Piece(
            answer=reply.answer, text=piece.text, delta=delta, finish_reason=piece.finish_reason
        )
    if kind == "routed":
        routed = reply.routed
        return Routed(
            answer=reply.answer,
            model=routed.model,
            pool=routed.pool,
            endpoint=routed.endpoint,
            ticket=routed.ticket,
            decision=wire.decision(routed.decision),
            attempts=_attempts(routed.attempts),
            escalated=routed.escalated,
        )
    return _ended(reply.answer, reply.ended) if kind == "ended" else None


def _ended(answer: int, ended: pb.Ended) -> Ended:
    return Ended(
        answer=answer,
        prompt_tokens=ended.prompt_tokens,
        output_tokens=ended.output_tokens,
        cost_usd=ended.cost_usd,
        paid_usd=ended.paid_usd,
        first_token_ms=ended.first_token_ms,
        latency_ms=ended.latency_ms,
        confidence=ended.confidence if ended.HasField("confidence") else None,
        attempts=_attempts(ended.attempts),
        problem=from_number("Dispatch", ended.problem_code, ended.problem)
        if ended.problem_code
        else None,
        unsure=ended.unsure,
        escalated=ended.escalated,
    )


def _attempts(attempts: Sequence[pb.Attempt]) -> tuple[Attempt, ...]:
    names = Attempt.__slots__
    return tuple(Attempt(**{name: getattr(one, name) for name in names}) for one in attempts)
