"""Arms over HTTP: `RouteArm` in JSON, its fields by the same names.

    POST /v1/arms   {"text": "will it rain", "groups": ["tools"], "tenant": "acme"}
      ─▶ {"model": arm, "pool": group, "propensity", "quality", "fallbacks", "ticket", …}

    POST /v1/arms   {"requests": [{"text": …}, …]}      up to 1,024 of them, decided together
      ─▶ {"decisions": [{"model", …} or {"error": {…}}, …]}, in their order

Outcomes are reported with the ticket to /v1/feedback. What is refused is refused in OpenAI's form.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from google.protobuf.json_format import MessageToDict
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serve.openai_api.body import Bodies
from serve.openai_api.chat import JSON, TENANT
from serve.openai_api.errors import error_object
from serve.openai_api.json_body import read_body
from serve.openai_api.request import RouteOptions, said_in, write_ticket
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.request import BATCH_MAX

PATH = "/v1/arms"

DecideArm = Callable[[pb.RouteArmRequest], Awaitable[pb.Decision]]


class Asked(RouteOptions):  # which knows no further fields
    """The body: the prompt, its options, and the groups that may answer."""

    text: str | None = None
    embedding: list[float] | None = None
    prompt_tokens: int | None = None
    groups: list[str] | None = None


class Several(Struct, forbid_unknown_fields=True):
    """The body with several."""

    requests: Annotated[list[Asked], Meta(min_length=1, max_length=BATCH_MAX)]


@dataclass(frozen=True, slots=True)
class ArmsApi:
    """The face."""

    decide: DecideArm
    bodies: Bodies

    def routes(self) -> list[Route]:
        """Its path."""
        return [Route(PATH, self.route, methods=["POST"])]

    async def route(self, request: Request) -> Response:
        """Choose an arm, or one for each of several requests."""
        asked = await self.bodies.read(request.scope, request.receive, _read)
        tenant = request.scope.get(TENANT)
        if isinstance(asked, pb.RouteArmRequest):
            found = _written(await self._decided(asked, tenant))
        else:
            parts = [self._decided(one, tenant) for one in asked]
            every = await asyncio.gather(*parts, return_exceptions=True)
            found = {"decisions": [_of_several(one) for one in every]}
        return Response(msgspec.json.encode(found), headers=JSON)

    async def _decided(self, asked: pb.RouteArmRequest, tenant: str | None) -> pb.Decision:
        asked.request.tenant = tenant or asked.request.tenant
        return await self.decide(asked)


def _of_several(found: pb.Decision | BaseException) -> dict[str, object]:
    """One decision of several, or why there is none. Raises what is no refusal of it."""
    if isinstance(found, pb.Decision):
        return _written(found)
    if not isinstance(found, Exception):
        raise found
    return {"error": error_object(found)}


def _read(content: bytes) -> pb.RouteArmRequest | list[pb.RouteArmRequest]:
    """Raises InvalidRequest."""
    body, _ = read_body(content, Struct)
    if "requests" in body:
        return [_request(one) for one in read_body(content, Several)[1].requests]
    return _request(read_body(content, Asked)[1])


def _request(asked: Any) -> pb.RouteArmRequest:
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
