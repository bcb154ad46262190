"""Ray Serve's contract for an *ingress request router*: HAProxy asks which replica gets a request.

    POST /internal/route        the client's body, a part of it, or none
      ─▶ {"host", "port", "replica_id", "deployment", "model", "request_headers"}

HAProxy (Ray 2.60, `ingress_request_router.lua.tmpl`) sends the client's chat completion where
`RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY` is set, cut off at its buffer's size with the header
`X-Body-Truncated`, else nothing; the session's header; and takes 200 with a `replica_id` for an
answer, anything else for a failure. It puts `request_headers` on the request to the replica: so the
ticket gets to whoever answers. `deployment` is the pool's name; Ray will read it with its pull
request 66258.

What can't be read of a body is decided without it: this never refuses what a server would take.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from learners.criticality import Criticality
from serve.dispatch.routing_text import NO_TEXT
from serve.errors import InvalidRequest, UnknownModel
from serve.meanings import message_of
from serve.openai_api.body import Bodies, ClientGone
from serve.openai_api.chat import JSON, TENANT
from serve.openai_api.errors import response_of
from serve.openai_api.request import read_chat, write_ticket
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue
from serve.routing.request import NAME_BYTES_MAX, TEXT_BYTES_MAX
from serve.routing_apis.placing import Placing

PATH = "/internal/route"
SESSION = "x-session-id"  # RAY_SERVE_SESSION_ID_HEADER_KEY, unless it is set
TICKET, MODEL = "x-serve-router-ticket", "x-serve-router-model"  # Ray strips clients' own of these
_MODEL = re.compile(rb'"model"\s*:\s*"([^"\\]{1,256})"')

Decide = Callable[[pb.RouteRequest], Awaitable[pb.Decision]]


@dataclass(frozen=True, slots=True)
class Ingress:
    """The face."""

    decide: Decide
    placing: Placing
    models: Callable[[], Catalogue]
    bodies: Bodies

    def routes(self) -> list[Route]:
        """Its path."""
        return [Route(PATH, self.route, methods=["POST"])]

    async def route(self, request: Request) -> Response:
        """Which replica gets a request."""
        try:
            asked = await self.bodies.read(request.scope, request.receive, self._read)
            asked.session = _session(request)
            asked.tenant = request.scope.get(TENANT) or asked.tenant
            decision = await self.decide(asked)
            found = self.placing.place(decision, Criticality(asked.criticality or 3))
        except ClientGone:
            return Response(status_code=HTTPStatus.BAD_REQUEST)
        except Exception as error:
            failed = response_of(error)
            if failed.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                raise  # our bug: it is logged
            said = {"detail": message_of(error, "router")}
            return Response(msgspec.json.encode(said), failed.status, dict(failed.headers) | JSON)
        answer = {
            "host": found.host,
            "port": found.port,
            "replica_id": found.replica,
            "deployment": decision.pool,
            "model": decision.model,
            "request_headers": {TICKET: write_ticket(decision.ticket), MODEL: decision.model},
        }
        return Response(msgspec.json.encode(answer), headers=JSON)

    def _read(self, content: bytes) -> pb.RouteRequest:
        """As much as can be read."""
        models = self.models()
        try:
            return read_chat(content, models).dispatch.route
        except (InvalidRequest, UnknownModel):
            said = content[:TEXT_BYTES_MAX].decode("utf-8", "ignore").strip()
            named = _MODEL.search(content)
            name = named[1].decode("utf-8", "replace") if named else ""
            allowed = [name] if name in models.column_of else []
            return pb.RouteRequest(text=said or NO_TEXT, allowed_models=allowed)


def _session(request: Request) -> str:
    """As Ray reads it: proxies may have written the one for the other of "-" and "_"."""
    said = request.headers.get(SESSION) or request.headers.get(SESSION.replace("-", "_")) or ""
    return said if len(said.encode()) <= NAME_BYTES_MAX else ""
