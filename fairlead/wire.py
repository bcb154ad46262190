"""Between `messages` and protobuf: one function a message, and nothing else knows both.

A field that was not set here is not set on the wire, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any, TypeVar

from google.protobuf.message import Message

from fairlead import messages
from fairlead.errors import InvalidRequest
from learners.criticality import Criticality
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import Preference

Built = TypeVar("Built", bound=Message)


def route_request(request: messages.Request, *, prompt_elsewhere: bool = False) -> pb.RouteRequest:
    """Write a request. Raises InvalidRequest."""
    if request.text is None and request.embedding is None and not prompt_elsewhere:
        raise InvalidRequest("request", "text or embedding: neither given, one is needed")
    said = {field.name: getattr(request, field.name) for field in fields(request)}
    said["embedding_f32"] = said.pop("embedding")
    said["criticality"] = _criticality(request.criticality)
    if request.preference is not None:
        said["preference"] = built(pb.Preference, **asdict(request.preference))
    return built(pb.RouteRequest, **said)


def arm_request(request: messages.Request, groups: Sequence[str]) -> pb.RouteArmRequest:
    """Write a request for an arm."""
    named = messages.names("groups", groups)
    return built(pb.RouteArmRequest, request=route_request(request), groups=named)


def arm_batch_request(
    requests: Iterable[messages.Request], groups: Sequence[str]
) -> pb.RouteArmBatchRequest:
    """Write a batch of requests for arms."""
    return pb.RouteArmBatchRequest(requests=[arm_request(request, groups) for request in requests])


def stream_request(request: messages.Request) -> pb.RouteRequest:
    """Write a request of a stream, where replies find their requests by id alone."""
    if not request.request_id:
        raise InvalidRequest("stream", "request_id is empty, but replies come in any order")
    return route_request(request)


def batch_request(requests: Iterable[messages.Request]) -> pb.RouteBatchRequest:
    """Write a batch."""
    return pb.RouteBatchRequest(requests=[route_request(request) for request in requests])


def feedback_request(outcomes: Iterable[messages.Outcome]) -> pb.FeedbackRequest:
    """Write what happened to some decisions."""
    return pb.FeedbackRequest(outcomes=[_outcome(outcome) for outcome in outcomes])


def trace_request(ticket: bytes) -> pb.TraceFeedbackRequest:
    """Write a question after a decision's outcomes."""
    return built(pb.TraceFeedbackRequest, ticket=ticket)


def explain_request(ticket: bytes) -> pb.ExplainRequest:
    """Write a request to open a ticket."""
    return built(pb.ExplainRequest, ticket=ticket)


def _criticality(said: Criticality | str | None) -> str | None:
    """The proto's name for it."""
    if said is None or isinstance(said, Criticality):
        return None if said is None else said.name
    if said not in (words := Criticality.words()):
        raise InvalidRequest("request", f"criticality is {said!r}; it must be one of {words}")
    return said.upper()


def _outcome(outcome: messages.Outcome) -> pb.Outcome:
    return built(
        pb.Outcome,
        ticket=outcome.ticket,
        quality=outcome.quality,
        cost_usd=outcome.cost_usd,
        latency_ms=outcome.latency_ms,
        output_tokens=outcome.output_tokens,
        error=outcome.error,
        paid_usd=outcome.paid_usd,
        confidence=outcome.confidence,
        weight=outcome.weight,
        source=outcome.source,
        revision=outcome.revision,
        better_than=outcome.better_than,
        steps=outcome.steps,
    )


def built(kind: type[Built], **fields: Any) -> Built:
    """Return a message of `kind`; fields that are None stay unset. Raises InvalidRequest."""
    try:
        return kind(**fields)
    except (TypeError, ValueError) as problem:
        raise InvalidRequest(kind.DESCRIPTOR.name, _culprit(kind, fields)) from problem


def _culprit(kind: type[Message], fields: dict[str, Any]) -> str:
    """Say which field can't be written; protobuf's own errors leave out its name."""
    for name, value in fields.items():
        try:
            kind(**{name: value})
        except (TypeError, ValueError) as problem:
            return f"{name} is {value!r:.100}: {problem}"
    raise AssertionError(f"{kind} refused its fields together, but each alone passes")


def decision(reply: pb.Decision) -> messages.Decision:
    """Read a decision."""
    return messages.Decision(
        request_id=reply.request_id,
        decision_id=reply.decision_id,
        model=reply.model,
        pool=reply.pool,
        propensity=reply.propensity,
        utility=reply.utility,
        quality=_estimate(reply.quality),
        cost_usd=_estimate(reply.cost_usd),
        latency_ms=_estimate(reply.latency_ms),
        fallbacks=tuple(_alternative(fallback) for fallback in reply.fallbacks),
        snapshot_version=reply.snapshot_version,
        snapshot_age_ms=reply.snapshot_age_ms,
        ticket=reply.ticket,
        energy_j=reply.energy_j,
        probe=_probe(reply.probe) if reply.HasField("probe") else None,
        session_usd=reply.session_usd if reply.HasField("session_usd") else None,
        below_quality_min=reply.below_quality_min,
        rules=tuple(reply.rules),
        guarded=reply.guarded,
        suggested_model=reply.suggested_model,
    )


def route_reply(reply: pb.RouteReply) -> messages.Decision | messages.Problem:
    """Read what became of one request of a batch or a stream."""
    if reply.HasField("decision"):
        return decision(reply.decision)
    return messages.Problem(
        request_id=reply.request_id, code=reply.problem.code, message=reply.problem.message
    )


def feedback_trace(reply: pb.FeedbackTrace) -> messages.FeedbackTrace:
    """Read what became of a decision's outcomes."""
    return messages.FeedbackTrace(
        decision_id=reply.decision_id,
        snapshot_version=reply.snapshot_version,
        learned=tuple(reply.learned),
        quality=reply.quality if reply.HasField("quality") else None,
        revision=reply.revision if reply.HasField("revision") else None,
        records=tuple(_traced(one) for one in reply.records),
        complete=reply.complete,
    )


def _traced(reply: pb.TracedRecord) -> messages.TracedRecord:
    return messages.TracedRecord(
        partition=reply.partition,
        offset=reply.offset,
        appended_at_unix_ms=reply.appended_at_unix_ms,
        became=reply.became,
        reason=reply.reason,
        detail=reply.detail,
        decisions=reply.decisions,
        said_json=reply.said_json,
    )


def explanation(reply: pb.Explanation) -> messages.Explanation:
    """Read what a ticket holds."""
    weights = reply.preference
    return messages.Explanation(
        decision_id=reply.decision_id,
        tenant=reply.tenant,
        decided_at_unix_ms=reply.decided_at_unix_ms,
        snapshot_version=reply.snapshot_version,
        encoder=reply.encoder,
        context=tuple(reply.context),
        preference=Preference(
            quality=weights.quality if weights.HasField("quality") else None,
            cost=weights.cost if weights.HasField("cost") else None,
            latency=weights.latency if weights.HasField("latency") else None,
            energy=weights.energy if weights.HasField("energy") else None,
        ),
        policy=reply.policy,
        models=tuple(_considered(model) for model in reply.models),
        task=reply.task,
        tags=tuple(reply.tags),
        rules=tuple(reply.rules),
        guarded=reply.guarded,
    )


def _probe(reply: pb.Probe) -> messages.Probe:
    return messages.Probe(
        decision_id=reply.decision_id,
        model=reply.model,
        pool=reply.pool,
        ticket=reply.ticket,
        quality=_estimate(reply.quality),
        cost_usd=_estimate(reply.cost_usd),
    )


def _estimate(reply: pb.Estimate) -> messages.Estimate:
    return messages.Estimate(mean=reply.mean, deviation=reply.deviation)


def _alternative(reply: pb.Alternative) -> messages.Alternative:
    return messages.Alternative(
        model=reply.model,
        pool=reply.pool,
        utility=reply.utility,
        propensity=reply.propensity,
        quality=_estimate(reply.quality),
        cost_usd=_estimate(reply.cost_usd),
        latency_ms=_estimate(reply.latency_ms),
        energy_j=reply.energy_j,
    )


def _considered(reply: pb.Considered) -> messages.Considered:
    return messages.Considered(
        model=reply.model,
        pool=reply.pool,
        chosen=reply.chosen,
        propensity=reply.propensity,
        utility=reply.utility,
        quality=reply.quality,
        cost_usd=reply.cost_usd,
        latency_ms=reply.latency_ms,
        reason=reply.reason,
        energy_j=reply.energy_j,
    )
