"""The dispatcher as OpenAI's API: a program changes its base URL, and `model` may be "auto".

    POST /v1/chat/completions   an answer, see `chat`
    POST /v1/feedback           what became of an answer
    GET  /v1/models[/ID]        "auto" and the catalogue
    GET  /health                200 while this process serves
    GET  /dashboard[/…]         for who runs the site, see `infra.dashboard`

Whatever is refused, here or by Starlette, is refused in OpenAI's form.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from learners.option import option
from serve.access.tokens import Access, Token, keys_as_tokens
from serve.errors import AccessDenied, RequestRefused, ServeError, UnknownModel
from serve.openai_api.body import Bodies, BodyOptions, ClientGone
from serve.openai_api.chat import JSON, TENANT, Answers, ChatCompletions, Reply
from serve.openai_api.errors import error_body, response_of
from serve.openai_api.request import AUTO, read_feedback
from serve.proto.fairlead.v1 import router_pb2 as pb
from serve.routing.catalogue import Catalogue, Model
from streams.errors import StreamError

SendFeedback = Callable[[pb.FeedbackRequest], Awaitable[pb.FeedbackReply]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    """What is taken, from whom."""

    body: BodyOptions = BodyOptions()
    # The HTML standard's advice for server-sent events; proxies give up after 30 to 100 s.
    heartbeat_s: float = option(
        15.0,
        "Seconds of silence in a stream over HTTP after which a comment is sent, so that proxies "
        "do not take it for dead. Before the first token that decides the status: 200, and a "
        "failure after it is an `error` event. 0: no comments.",
        ge=0,
        le=3600,
    )
    api_keys: tuple[str, ...] = option(
        (), "HTTP callers must show one of these; empty: none is asked for.", secret=True
    )


def make_app(
    answer: Answers,
    models: Callable[[], Catalogue],
    send_feedback: SendFeedback,
    options: HttpOptions,
    now_s: Callable[[], float] = time.time,
    tokens: Sequence[Token] = (),
    beside: Callable[[Bodies], Sequence[Route]] = lambda bodies: (),
) -> Starlette:
    """The app. `answer` and `send_feedback` may raise whatever `serve.meanings` knows.

    `beside` makes further paths, see `serve.routing_apis`; their scopes are in `SCOPES`.

    Callers show a key of the options or one of these tokens; where there are none of both, nothing.
    """
    access = Access([*tokens, *keys_as_tokens(options.api_keys)])
    bodies = Bodies(options.body)

    async def feedback(request: Request) -> Response:
        outcomes = await bodies.read(request.scope, request.receive, read_feedback)
        reply = await send_feedback(outcomes)
        return _json({"accepted": reply.accepted})

    async def list_models(_: Request) -> Response:
        return _json({"object": "list", "data": _listed(models())})

    async def one_model(request: Request) -> Response:
        name, listed = request.path_params["name"], _listed(models())
        for found in listed:
            if found["id"] == name:
                return _json(found)
        raise UnknownModel("model", name, tuple(str(one["id"]) for one in listed))

    async def health(_: Request) -> Response:
        return _json({"status": "ok"})

    return Starlette(
        routes=[
            Route(
                "/v1/chat/completions",
                ChatCompletions(answer, models, bodies, options.heartbeat_s, now_s),
                methods=["POST"],
            ),
            Route("/v1/feedback", feedback, methods=["POST"]),
            Route("/v1/models", list_models),
            Route("/v1/models/{name:path}", one_model),
            Route("/health", health),
            *beside(bodies),
        ],
        middleware=[Middleware(TokenRequired, access, now_s)] if access.asks else [],
        # `Exception` is for bugs: Starlette answers with it and raises on, so that uvicorn logs it.
        exception_handlers=dict.fromkeys(
            (HTTPException, ClientGone, ServeError, StreamError, Exception), _refused
        ),
    )


OPEN = {"/health", "/livez", "/readyz", "/dashboard"}  # that we are there; a page without figures
SCOPES = {
    "/v1/chat/completions": "dispatch",
    "/v1/feedback": "feedback",
    "/v1/arms": "route",
    "/internal/route": "route",
    "/route": "route",
    "/outcome": "feedback",
    "/feedback": "feedback",
}
NO_LIMIT = Model(name="").context_tokens_max  # of a model of which no context is stated


OF_ALL = "/dashboard/"  # what is below it is of all tenants


class TokenRequired:
    """ASGI middleware: a token with the path's scope must be shown, but where nothing is told.

    The call goes on as the token's tenant.
    """

    def __init__(self, app: ASGIApp, access: Access, now_s: Callable[[], float]) -> None:
        self._app, self._access, self._now_s = app, access, now_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the call through, or answer 401 or 403."""
        try:
            if scope["path"] not in OPEN:
                shown = dict(scope["headers"]).get(b"authorization")
                grant = self._access.grant(shown, self._now_s())
                grant.require(_scope_of(scope["path"]))
                if scope["path"].startswith(OF_ALL) and grant.tenant:
                    raise AccessDenied(grant.name, "read", "the whole site, of no tenant")
                scope[TENANT] = grant.tenant
        except RequestRefused as error:
            await Reply(send).fail(error)
        else:
            await self._app(scope, receive, send)


def _scope_of(path: str) -> str:
    """What a path takes; one that is not known takes the least, and is answered with 404."""
    return SCOPES.get(path, "read")


def _listed(catalogue: Catalogue) -> list[dict[str, object]]:
    """The models in OpenAI's form; it wants to know when each was made, and nobody does."""
    listed: dict[str, dict[str, object]] = {AUTO: {"models": catalogue.names}}
    listed |= {model.name: _figures(model, catalogue) for model in catalogue.models}
    form = {"object": "model", "created": 0, "owned_by": "fairlead"}
    return [{"id": name, **form, "fairlead": figures} for name, figures in listed.items()]


def _figures(model: Model, catalogue: Catalogue) -> dict[str, object]:
    """What is stated of a model; not a number and infinity are written as null."""
    pools = catalogue.pools_of[catalogue.column_of[model.name]]
    figures = {name: value for name, value in asdict(model).items() if name != "name"}
    if model.context_tokens_max >= NO_LIMIT:
        figures["context_tokens_max"] = None
    return {"pools": [{"name": pool.name, "region": pool.region} for pool in pools], **figures}


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), headers=JSON)


# Without the path: what callers send is in no message that is logged.
NO_PATH = HTTPException(
    404,
    "there is no such path here; a client's base URL ends with /v1, and /v1/chat/completions, "
    "/v1/feedback and /v1/models are answered. What else a model's server can do, such as "
    "embeddings, is asked of that server itself.",
)


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == NO_PATH.status_code:
        error = NO_PATH
    found = response_of(error)
    return Response(error_body(error), found.status, {**JSON, **found.headers})
