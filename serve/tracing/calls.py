"""A span for a call that comes in, over gRPC and HTTP: the current one while it is answered.

It says which method, and the code that the caller got. ERROR is what the server is to blame for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.trace import Span, SpanKind, StatusCode

from serve.tracing.tracing import Tracing, parent_of, started

# Of gRPC's codes those that OpenTelemetry's conventions call a server's errors.
OURS = {
    code.value[0]
    for code in (
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    )
}
HTTP_OURS = 500
if TYPE_CHECKING:  # a replica that only decides has no HTTP
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    # gRPC's own class takes no parameters when it runs.
    Handler = grpc.RpcMethodHandler[Any, Any]
Behaviour = Callable[[Any, Any], Awaitable[Any]]


class TracedCalls(grpc.GenericRpcHandler):
    """A service's methods, calls with spans."""

    def __init__(self, inner: grpc.GenericRpcHandler, tracing: Tracing) -> None:
        self._inner, self._tracer, self._drawn = inner, tracing.tracer, tracing.drawn

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """The handler of a call; None if it is another service's."""
        handler = self._inner.service(handler_call_details)
        if handler is None:
            return None
        name = str(handler_call_details.method).removeprefix("/")
        return _with(handler, lambda behaviour: self._traced(name, behaviour))

    def _traced(self, name: str, behaviour: Behaviour) -> Behaviour:
        async def answer(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> object:
            headers: Any = dict(context.invocation_metadata() or ())
            parent = parent_of(headers)
            if parent is None and not self._drawn():
                return await behaviour(request, context)
            with started(self._tracer, name, parent, SpanKind.SERVER) as span:
                try:
                    return await behaviour(request, context)
                finally:
                    _say(span, name, context)

        return answer


def _say(span: Span, name: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    said: Any = context.code()
    code = said.value[0] if isinstance(said, grpc.StatusCode) else int(said or 0)
    span.set_attributes({"rpc.system": "grpc", "rpc.method": name, "rpc.grpc.status_code": code})
    if code in OURS:
        span.set_status(StatusCode.ERROR)


def _with(handler: Handler, wrapped: Callable[[Behaviour], Behaviour]) -> Handler:
    """A handler like it, around whichever behaviour it has."""
    kinds: list[tuple[Any, Any]] = [
        (handler.unary_unary, grpc.unary_unary_rpc_method_handler),
        (handler.unary_stream, grpc.unary_stream_rpc_method_handler),
        (handler.stream_stream, grpc.stream_stream_rpc_method_handler),
    ]
    behaviour, make = next(one for one in kinds if one[0] is not None)
    made: Handler = make(
        wrapped(behaviour),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return made


class TracedApp:
    """An ASGI application, requests with spans."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracer, self._drawn = app, tracing.tracer, tracing.drawn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; the span's name has no path of the caller's making."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        parent = parent_of(headers)
        if parent is None and not self._drawn():
            return await self._app(scope, receive, send)
        with started(self._tracer, scope["method"], parent, SpanKind.SERVER) as span:

            async def said(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _say_http(span, message["status"])
                await send(message)

            try:
                await self._app(scope, receive, said)
            finally:
                route = scope.get("route")
                if route is not None:
                    span.update_name(f"{scope['method']} {route.path}")
                    span.set_attribute("http.route", route.path)
        return None


def _say_http(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= HTTP_OURS:
        span.set_status(StatusCode.ERROR)
