"""Weave Router's contract for a policy in a process of its own: `policy_router_v1`.

    GET  /livez, /readyz, /capabilities
    POST /route      candidates in ─▶ one of them, with its propensity
    POST /outcome    what became of it: status, usage, cost      ─▶ feedback, by the route's ticket
    POST /feedback   what its user thought of it                 ─▶ feedback, likewise

Weave Router calls the models itself; its candidates are the models of the catalogue with the same
names. It hands back the `route_id` that it was given with whatever it reports. So that id is its
own, a dot, and the decision's ticket: nothing has to be remembered here, whichever replica is told.

Where `training_allowed` is not true, or only a shadow decision is asked for, the id comes back
without a ticket: then there is nothing that could be learned from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.dispatch.routing_text import routing_text
from serve.errors import InvalidRequest, NoModelFits
from serve.meanings import message_of
from serve.openai_api.body import Bodies, ClientGone
from serve.openai_api.chat import JSON, TENANT
from serve.openai_api.errors import response_of
from serve.openai_api.json_body import read_body
from serve.openai_api.request import read_ticket, write_ticket
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue
from serve.routing.request import NAME_BYTES_MAX, TENANT_BYTES_MAX
from streams.feedback.report import OUTPUT_TOKENS_MAX

SCHEMA = "policy_router_v1"
SERVING = "serving"
LISTED_MAX = 255  # scores, as many as a decision lists
PROMPT_TOKENS_MAX = 10_000_000
RATINGS = {"up": 1.0, "positive": 1.0, "good": 1.0, "down": 0.0, "negative": 0.0, "bad": 0.0}
CAPABILITIES = {
    "schema_version": SCHEMA,
    "reports_outcomes": True,
    "reports_feedback": True,
    "honors_preferred_models": False,
    "honors_quality_price_bias": False,
    "supports_debug_route_detail": False,
    "supports_preview": False,
    "supports_shadow": True,
    "authoritative_per_turn_selection": False,
}

Decide = Callable[[pb.RouteRequest], Awaitable[pb.Decision]]
SendFeedback = Callable[[pb.FeedbackRequest], Awaitable[pb.FeedbackReply]]


class Candidate(Struct):
    """A model that may be chosen."""

    roster_id: str
    provider: str = ""


class Asked(Struct):
    """What is read of a route's request; there may be more in it."""

    schema_version: str
    route_id: str
    candidates: list[Candidate]
    execution_mode: str = SERVING
    prompt_text: str = ""
    latest_user_text: str = ""
    organization_id: str = ""
    feedback_key: str = ""
    client_session_id: str = ""
    estimated_input_tokens: int = 0
    training_allowed: bool = False

    @property
    def learns(self) -> bool:
        """Whether anything of it may be learned from."""
        return self.training_allowed and self.execution_mode == SERVING


class Reported(Struct):
    """What is read of an outcome or of feedback; whatever is left out is not known."""

    route_id: str
    training_allowed: bool = True
    selected_served_model_match: bool = True
    cost_usd: float | None = None
    latency_ms: float | None = None
    output_tokens: Annotated[int, Meta(ge=0, le=OUTPUT_TOKENS_MAX)] | None = None
    status: str | int | None = None
    status_code: int | None = None
    error: Any = None
    rating: str | float | None = None


@dataclass(frozen=True, slots=True)
class PolicyRouter:
    """The face."""

    decide: Decide
    send_feedback: SendFeedback
    models: Callable[[], Catalogue]
    bodies: Bodies

    def routes(self) -> list[Route]:
        """Its paths."""
        return [
            Route("/livez", _alive),
            Route("/readyz", self.ready),
            Route("/capabilities", _capabilities),
            Route("/route", self.route, methods=["POST"]),
            Route("/outcome", self.outcome, methods=["POST"]),
            Route("/feedback", self.feedback, methods=["POST"]),
        ]

    async def ready(self, _: Request) -> Response:
        """Whether there are models to choose from."""
        return _json({"ready": True}) if self.models().names else _said(503, "no models yet")

    async def route(self, request: Request) -> Response:
        """Choose one of the candidates."""
        return await _answered(self._route(request))

    async def outcome(self, request: Request) -> Response:
        """Take what became of a route."""
        return await _answered(self._report(request, _outcome))

    async def feedback(self, request: Request) -> Response:
        """Take what somebody thought of an answer."""
        return await _answered(self._report(request, _rating))

    async def _route(self, request: Request) -> object:
        asked = await self.bodies.read(
            request.scope, request.receive, lambda body: read_body(body, Asked)[1]
        )
        if asked.schema_version != SCHEMA:
            raise InvalidRequest("schema_version", asked.schema_version, f'"{SCHEMA}"')
        offered = {one.roster_id: one.provider for one in asked.candidates}
        known = [name for name in offered if name in self.models().column_of]
        if not known:
            names = ", ".join(self.models().names[:8])
            raise NoModelFits(f"none of the candidates' roster_id is a model here: {names}")
        wanted = _request(asked, known)
        wanted.tenant = request.scope.get(TENANT) or wanted.tenant
        decision = await self.decide(wanted)
        return _chosen(asked, decision, offered)

    async def _report(
        self, request: Request, read: Callable[[Reported], dict[str, Any]]
    ) -> dict[str, object]:
        """Hand over what is learned of a route; nothing where nothing may be, or is known."""
        reported = await self.bodies.read(
            request.scope, request.receive, lambda body: read_body(body, Reported)[1]
        )
        said = read(reported)
        _, dot, ticket = reported.route_id.rpartition(".")
        if not (dot and said and reported.training_allowed):
            return {"accepted": 0}
        try:
            outcome = pb.Outcome(ticket=read_ticket(ticket), **said)
        except ValueError as error:
            raise InvalidRequest("route_id", error, "as /route gave it") from error
        reply = await self.send_feedback(pb.FeedbackRequest(outcomes=[outcome]))
        return {"accepted": reply.accepted}


def _request(asked: Asked, models: list[str]) -> pb.RouteRequest:
    """What the router is asked; a session and a tenant only where they are short enough."""
    session = asked.client_session_id or asked.feedback_key
    tokens = min(asked.estimated_input_tokens, PROMPT_TOKENS_MAX)
    return pb.RouteRequest(
        text=routing_text([asked.latest_user_text or asked.prompt_text]),
        prompt_tokens=tokens if tokens > 0 else None,
        tenant=_short(asked.organization_id, TENANT_BYTES_MAX),
        session=_short(session, NAME_BYTES_MAX) if asked.learns else "",
        allowed_models=models[:LISTED_MAX],
        fallbacks_max=LISTED_MAX,
    )


def _short(text: str, bytes_max: int) -> str:
    return text if len(text.encode()) <= bytes_max else ""


def _chosen(asked: Asked, decision: pb.Decision, offered: dict[str, str]) -> dict[str, object]:
    scores = {other.model: other.utility for other in decision.fallbacks}
    scores[decision.model] = decision.utility
    ticket = f".{write_ticket(decision.ticket)}" if asked.learns else ""
    return {
        "schema_version": SCHEMA,
        "route_id": asked.route_id + ticket,
        "selected_roster_id": decision.model,
        "selected_provider": offered[decision.model],
        "score": decision.utility,
        "candidate_scores": scores,
        "score_kind": "utility",
        "propensity": decision.propensity,
        "policy_route_key": decision.pool,
        "policy_artifact_id": f"fairlead-snapshot-{decision.snapshot_version}",
    }


def _outcome(reported: Reported) -> dict[str, Any]:
    """What became of a call. Another model than the chosen one says nothing of that."""
    if not reported.selected_served_model_match:
        return {}
    if _failed(reported):
        return {"error": True}
    said = {
        "cost_usd": reported.cost_usd,
        "latency_ms": reported.latency_ms,
        "output_tokens": reported.output_tokens,
    }
    return {name: value for name, value in said.items() if value is not None}


def _failed(reported: Reported) -> bool:
    status = reported.status_code if reported.status_code is not None else reported.status
    if isinstance(status, int):
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return bool(reported.error) or status in {"error", "failed"}


def _rating(reported: Reported) -> dict[str, Any]:
    """A thumb, or a number from 0 to 1."""
    rating = reported.rating
    if isinstance(rating, str):
        rating = RATINGS.get(rating.lower())
    return {} if rating is None else {"quality": rating}


async def _answered(work: Awaitable[object]) -> Response:
    """As this contract has errors: `{"error": text}`."""
    try:
        return _json(await work)
    except ClientGone:
        return Response(status_code=HTTPStatus.BAD_REQUEST)
    except Exception as error:
        status = response_of(error).status
        if status == HTTPStatus.INTERNAL_SERVER_ERROR:
            raise  # our bug: it is logged
        return _said(status, message_of(error, "router"))


async def _alive(_: Request) -> Response:
    return _json({"alive": True})


async def _capabilities(_: Request) -> Response:
    return _json(CAPABILITIES)


def _said(status: int, text: str) -> Response:
    return Response(msgspec.json.encode({"error": text}), status, JSON)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), headers=JSON)
