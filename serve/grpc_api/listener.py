"""A replica's own gRPC server, on an address shared with the other replicas of this host.

Every replica binds the same port with SO_REUSEPORT; the kernel spreads connections over them.
Ray Serve's proxy would cost an extra hop (500 calls a second against 6,900 here) and can neither
do TLS nor bind to one address.

Stopping is stop accepting, finish what is under way, then close.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import grpc
from grpc_health.v1 import health, health_pb2

from learners.option import option
from serve.access.tokens import OPEN, Access
from serve.addresses import joined
from serve.grpc_api.guard import Guard
from serve.grpc_api.methods import methods_of
from serve.grpc_api.open_services import open_to_all
from serve.proto.fairlead.v1 import admin_pb2, dispatch_pb2, router_pb2
from streams.quiet import once_a_minute

logger = once_a_minute(logging.getLogger(__name__))


def _no_headers(record: logging.LogRecord) -> bool:
    """Whether gRPC says something else than which bytes it could not decode."""
    return not str(record.msg).startswith("Invalid encoding")


logging.getLogger("grpc._cython.cygrpc").addFilter(_no_headers)

# Clients ask every 10 s, which is the most often that gRPC's libraries allow them. By default a
# server throws out whoever asks three times within five minutes without data.
PING_INTERVAL_MS_MIN = 5_000

SERVICES = {
    service.full_name: service
    for file in (router_pb2, dispatch_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
}
LOOK_S = 0.05  # between looks whether the server has ended
ROUTER, DISPATCHER, ADMIN = "fairlead.v1.Router", "fairlead.v1.Dispatcher", "fairlead.v1.Admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """Where and how to listen."""

    host: str = option(
        "127.0.0.1", "Address to bind. Only this host can call unless it is changed."
    )
    port: int = option(7480, "TCP port, shared by all replicas.", ge=1, le=65_535)
    # A server of its own, so a queue of its own before Python: see `pending_max`.
    reserved_port: int = option(
        0,
        "A second TCP port, for callers who must not be lost when the first is flooded: gRPC ends "
        "calls that nobody can take in before it knows their criticality. Python's client takes it "
        "as `reserved_target`. 0: none.",
        ge=0,
        le=65_535,
    )
    # A connection stays with one replica.
    connection_age_s_max: float = option(
        300.0, "Seconds until a connection is renewed: so new replicas get calls.", ge=1, le=86_400
    )
    grace_s: float = option(5.0, "Seconds for ongoing calls when stopping.", ge=0, le=600)
    message_bytes_max: int = 16 * 1024 * 1024  # taken: 1,024 requests of 16 KB
    # Calls that wait in gRPC's core, unseen by Python: a fifth of a second at 2,000 a second. Its
    # threads end further ones at once, with CANCELLED: no other status can be had there. In Python
    # a refusal costs 100 to 200 µs of the event loop and an answer 400, so from about twice the
    # capacity on nothing would be answered any more for refusing. gRPC's own bound is 1,000 to
    # 3,000 calls: more than a second, after which most are not waited for any more.
    pending_max: int = 400
    # TLS when both are given: PEM texts, not paths.
    tls_certificate: bytes = option(
        b"", "PEM file; with `tls_key`, serve TLS.", file=True, secret=True
    )
    tls_key: bytes = option(b"", "PEM file of the certificate's key.", file=True, secret=True)
    tls_client_ca: bytes = option(
        b"",
        "PEM file; with it, callers must show a certificate that is signed by one of these.",
        file=True,
        secret=True,
    )


class Listener:
    """Starts and stops one server around the servicers of its services, by name.

    grpc.aio ends a whole server when a caller names a method in bytes that are no UTF-8 (1.85): it
    takes no more connections, and says so in a log alone. So the server is watched, and another one
    takes its place at the same port; what the old one has under way it finishes.
    """

    def __init__(
        self,
        servicers: Mapping[str, object],
        options: ListenerOptions,
        access: Access = OPEN,
        now_s: Callable[[], float] = time.time,
        around: Callable[[grpc.GenericRpcHandler], grpc.GenericRpcHandler] | None = None,
    ) -> None:
        """`around` is put around the methods of each service; None costs no call anything."""
        self._servicers, self._options, self._around = servicers, options, around
        self._access, self._now_s = access, now_s
        self._health = health.aio.HealthServicer()
        self._server = self._made()
        self._ending: set[asyncio.Task[None]] = set()  # servers that finish what they have
        self._watching: asyncio.Task[None] | None = None
        self.port = 0

    def _made(self) -> grpc.aio.Server:
        """A server that is not bound yet."""
        options = self._options
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 1),
                # Without a grace, an old connection takes no new calls and finishes those it has:
                # an answer of minutes is not cut. `grace_s` is for stopping alone.
                ("grpc.max_connection_age_ms", int(options.connection_age_s_max * 1000)),
                # Clients may ask whether we are there, also while they wait for a first token.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MS_MIN),
                ("grpc.max_receive_message_length", options.message_bytes_max),
                ("grpc.server.max_pending_requests", options.pending_max),
                ("grpc.server.max_pending_requests_hard_limit", options.pending_max),
                # A reply is as long as what was asked: 1,024 decisions between 255 models, 70 MB.
                ("grpc.max_send_message_length", -1),
            ]
        )
        for name, servicer in self._servicers.items():
            methods = partial(methods_of, SERVICES[name], servicer)
            guard = Guard(name, methods, self._access, self._now_s)
            handler = self._around(guard) if self._around else guard
            server.add_generic_rpc_handlers((handler,))
        server.add_generic_rpc_handlers(open_to_all(self._health, tuple(self._servicers)))
        return server

    async def start(self) -> None:
        """Bind and serve. Raises RuntimeError if the address can't be bound."""
        self.port = self._bound(self._options.port)
        # Whoever is told to stop meanwhile has a started one to stop: half started, it breaks.
        await asyncio.shield(self._server.start())
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        self._watching = asyncio.create_task(self._watch())

    def _bound(self, port: int) -> int:
        address = joined(self._options.host, port)
        if not self._options.tls_certificate:
            return self._server.add_insecure_port(address)
        pair = (self._options.tls_key, self._options.tls_certificate)
        authorities = self._options.tls_client_ca or None
        credentials = grpc.ssl_server_credentials(
            [pair], root_certificates=authorities, require_client_auth=authorities is not None
        )
        return self._server.add_secure_port(address, credentials)

    async def _watch(self) -> None:
        """Put another server in the place of one that has ended by itself."""
        while True:
            try:
                await self._server.wait_for_termination(LOOK_S)
            except Exception as error:  # noqa: BLE001 - whatever ended it
                logger.error("the gRPC server has ended and is started anew: %s", error)
                await self._renew()

    async def _renew(self) -> None:
        ending = asyncio.create_task(self._server.stop(self._options.connection_age_s_max))
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
        self._server = self._made()
        self._bound(self.port)
        await self._server.start()

    async def stop(self) -> None:
        """Say so to health checks, refuse new work, let ongoing work finish, close."""
        if self._watching is not None:
            self._watching.cancel()
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(self._options.grace_s)
        for ending in tuple(self._ending):
            ending.cancel()

    async def _say(self, status: int) -> None:
        for name in ("", *self._servicers):
            await self._health.set(name, status)
