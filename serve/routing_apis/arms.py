"""Arms over HTTP: `RouteArm` in JSON, its fields by the same names.

    POST /v1/arms   {"text": "will it rain", "groups": ["tools"], "tenant": "acme"}
      ─▶ {"model": arm, "pool": group, "propensity", "quality", "fallbacks", "ticket", …}

Outcomes are reported with the ticket to /v1/feedback. What is refused is refused in OpenAI's form.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from google.protobuf.json_format import MessageToDict
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.openai_api.body import Bodies
from serve.openai_api.chat import JSON, TENANT
from serve.openai_api.json_body import read_body
from serve.openai_api.request import RouteOptions, said_in, write_ticket
from serve.proto.fairlead.v1 import router_pb2 as pb

PATH = "/v1/arms"

DecideArm = Callable[[pb.RouteArmRequest], Awaitable[pb.Decision]]


class Asked(RouteOptions):  # which knows no further fields
    """The body: the prompt, its options, and the groups that may answer."""

    text: str | None = None
    embedding: list[float] | None = None
    prompt_tokens: int | None = None
    groups: list[str] | None = None


@dataclass(frozen=True, slots=True)
class ArmsApi:
    """The face."""

    decide: DecideArm
    bodies: Bodies

    def routes(self) -> list[Route]:
        """Its path."""
        return [Route(PATH, self.route, methods=["POST"])]

    async def route(self, request: Request) -> Response:
        """Choose an arm."""
        asked = await self.bodies.read(request.scope, request.receive, _read)
        asked.request.tenant = request.scope.get(TENANT) or asked.request.tenant
        decision = await self.decide(asked)
        return Response(msgspec.json.encode(_written(decision)), headers=JSON)


def _read(content: bytes) -> pb.RouteArmRequest:
    """Raises InvalidRequest."""
    _, asked = read_body(content, Asked)
    prompt: dict[str, Any] = {"text": asked.text, "prompt_tokens": asked.prompt_tokens}
    if asked.embedding is not None:
        prompt["embedding"] = pb.Embedding(values=asked.embedding)
    request = pb.RouteRequest(**said_in(asked), **prompt)
    return pb.RouteArmRequest(request=request, groups=asked.groups)


def _written(decision: pb.Decision) -> dict[str, object]:
    """A decision in JSON: numbers as numbers, the ticket as everywhere over HTTP."""
    found = MessageToDict(decision, preserving_proto_field_name=True)
    counts = ("snapshot_version", "snapshot_age_ms")  # which protobuf would write as texts
    return (
        found
        | {name: getattr(decision, name) for name in counts}
        | {"ticket": write_ticket(decision.ticket)}
    )
