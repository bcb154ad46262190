"""Health checks and reflection: open to everybody, so read and bounded like our own services.

    bytes ──methods_of──▶ message, or the error it is ─┬─▶ gRPC's own servicer
                                                       └─▶ INVALID_ARGUMENT, without a trace

gRPC's libraries would register these servicers themselves; then every message that can't be read is
UNKNOWN and twelve lines of log, and open streams have no bound: nobody has to show a token for one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from serve.errors import InvalidRequest, RequestRefused
from serve.grpc_api.grpc_status import refusal_of
from serve.grpc_api.methods import methods_of
from serve.grpc_api.streams import StreamOptions, Streams

Context = grpc.aio.ServicerContext[Any, Any]


def open_to_all(
    checks: health.aio.HealthServicer, services: Sequence[str]
) -> Sequence[grpc.GenericRpcHandler]:
    """The handlers of health checks, and of reflection of `services`."""
    names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
    streams = Streams(StreamOptions())
    return [
        _handler(health_pb2, health.SERVICE_NAME, checks, streams),
        _handler(
            reflection_pb2,
            reflection.SERVICE_NAME,
            ReflectionServicer(names, cast("descriptor_pool.DescriptorPool", _MethodsFound())),
            streams,
        ),
    ]


def _handler(file: Any, name: str, servicer: object, streams: Streams) -> grpc.GenericRpcHandler:
    service: ServiceDescriptor = file.DESCRIPTOR.services_by_name[name.rpartition(".")[2]]
    careful = _Careful(service, servicer, streams)
    return grpc.method_handlers_generic_handler(name, dict(methods_of(service, careful, "")))


class _Careful:
    """A servicer whose methods are those of another one, for sound messages and open streams."""

    def __init__(self, service: ServiceDescriptor, servicer: object, streams: Streams) -> None:
        for method in service.methods:
            setattr(self, method.name, _careful(method, getattr(servicer, method.name), streams))


def _careful(
    method: MethodDescriptor, does: Callable[..., Any], streams: Streams
) -> Callable[..., Any]:
    async def once(request: object, context: Context) -> Any:
        if isinstance(request, InvalidRequest):
            await context.abort(*refusal_of(request))
        return await does(request, context)

    async def watch(request: object, context: Context) -> None:
        try:
            with streams.opened():
                await once(request, context)
        except RequestRefused as error:
            await context.abort(*refusal_of(error))

    async def converse(requests: AsyncIterator[object], context: Context) -> AsyncIterator[Any]:
        try:
            with streams.opened():
                async for reply in does(_sound(streams.reading(requests)), context):
                    yield reply
        except RequestRefused as error:
            await context.abort(*refusal_of(error))

    if method.client_streaming:
        return converse
    return watch if method.server_streaming else once


async def _sound(requests: AsyncIterator[object]) -> AsyncIterator[object]:
    """The requests up to one that can't be read. Raises it."""
    async for request in requests:
        if isinstance(request, InvalidRequest):
            raise request
        yield request


class _MethodsFound:
    """The default pool of descriptors, in which methods can be found, too.

    `grpcurl describe` and `ghz` ask for the file of `package.Service.Method`. Python's descriptor
    pool knows messages, fields and services by name, but no methods: their service is looked up.
    """

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def __getattr__(self, name: str) -> object:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - as the pool's
        """The file that declares a symbol. Raises KeyError where none does."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            if method not in found.methods_by_name:
                raise
            return found.file
