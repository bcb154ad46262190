"""Lets a call in by its token before its message is read, and makes it speak for its tenant.

    call ──authorization──▶ Access ─┬─ no ─▶ UNAUTHENTICATED or PERMISSION_DENIED; nothing is read
                                    └─ Grant ─▶ the method, reading messages as the grant's tenant

A token with a tenant overrides what a request says of it, in every message that has a tenant, so
that everything behind (limits, sessions, influence, the log) knows no other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import cache
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from serve.access.tokens import Access
from serve.errors import RequestRefused
from serve.grpc_api.grpc_status import refusal_of

HEADER = "authorization"
Methods = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
SCOPES = {  # what a method takes
    "Route": "route",
    "RouteBatch": "route",
    "RouteColumns": "route",
    "RouteStream": "route",
    "RouteArm": "route",
    "RouteArmBatch": "route",
    "SendFeedback": "feedback",
    "TraceFeedback": "feedback",
    "Explain": "read",
    "Dispatch": "dispatch",
    "List": "admin",
    "Change": "admin",
}


class Guard(grpc.GenericRpcHandler):
    """The methods of one service behind tokens."""

    def __init__(
        self,
        service: str,
        methods: Callable[[str], Methods],
        access: Access,
        now_s: Callable[[], float],
    ) -> None:
        """`methods` makes the handlers for a tenant; "" is whoever a request says."""
        self._prefix, self._access, self._now_s = f"/{service}/", access, now_s
        self._methods = cache(methods)  # one set per tenant of the settings' tokens

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call; None if it is another service's."""
        method = str(handler_call_details.method)
        name = method.removeprefix(self._prefix)
        known = self._methods("").get(name)
        if known is None or not method.startswith(self._prefix):
            return None
        if not self._access.asks:  # nothing is looked up on the way of every call
            return known
        headers = dict(handler_call_details.invocation_metadata or ())
        try:
            grant = self._access.grant(headers.get(HEADER), self._now_s())
            grant.require(SCOPES[name])
        except RequestRefused as error:
            return _refusing(known, error)
        return self._methods(grant.tenant)[name]


def _refusing(
    known: grpc.RpcMethodHandler[Any, Any], error: RequestRefused
) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind that reads nothing and refuses."""

    async def refuse(request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        del request
        await context.abort(*refusal_of(error))

    async def refuse_stream(
        request: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        await refuse(request, context)
        yield b""  # never reached: what makes this a stream

    if known.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse_stream)
    if known.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse_stream)
    return grpc.unary_unary_rpc_method_handler(refuse)


def impose(message: Message, tenant: str) -> None:
    """Make a message, and those within it, speak for this tenant; "" changes nothing."""
    if not tenant:
        return
    own, within = _tenants_in(message.DESCRIPTOR)
    if own:
        message.tenant = tenant  # type: ignore[attr-defined]
    for name, repeated in within:
        if repeated:
            for part in getattr(message, name):
                impose(part, tenant)
        else:  # also one that is left out: it would speak for nobody
            impose(getattr(message, name), tenant)


@cache
def _tenants_in(kind: Descriptor) -> tuple[bool, tuple[tuple[str, bool], ...]]:
    """Whether messages of a kind name a tenant, and which of their parts may."""
    within = tuple(
        (field.name, field.is_repeated)
        for field in kind.fields
        if field.message_type is not None and field.message_type is not kind
        if _names_tenant(field.message_type)
    )
    return "tenant" in kind.fields_by_name, within


def _names_tenant(kind: Descriptor) -> bool:
    own, within = _tenants_in(kind)
    return own or bool(within)
