"""A replica's own HTTP server, on an address shared with the other replicas of this host.

As with gRPC (see `listener`), every replica binds the same port with SO_REUSEPORT and the kernel
spreads connections over them. uvicorn does the HTTP; it runs within the event loop that is already
there, in whatever thread that is, and leaves signals alone.

Stopping is stop accepting, finish what is under way, then close.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from learners.option import option, same_as
from serve.addresses import resolved
from serve.openai_api.http_protocol import ConnectionOptions, bounded
from streams.quiet import once_a_minute

once_a_minute(logging.getLogger("uvicorn.error"))  # a line for every call that can't be read
FAREWELL_S = 1.0  # for telling the clients of answers that are cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpListenerOptions:
    """Where and how to listen."""

    host: str = same_as("127.0.0.1", "listener.host")
    # 0, which settings do not take, is any free one.
    port: int = option(
        7491, "TCP port of OpenAI's API, on `listener.host`.", key="http_port", ge=1, le=65_535
    )
    # For what is under way when stopping: a long answer takes that long.
    grace_s: float = same_as(30.0, "listener.grace_s")
    # Longer than clients keep idle connections (the official one: 5 s), so that it is they who
    # close: a server that closes first now and then meets a request already on its way.
    keep_alive_s: int = 75
    backlog: int = 2048  # connections waiting to be accepted
    # PEM texts; HTTPS where the first two are given, with certificates of callers for the third.
    tls_certificate: bytes = same_as(b"", "listener.tls_certificate", secret=True)
    tls_key: bytes = same_as(b"", "listener.tls_key", secret=True)
    tls_client_ca: bytes = same_as(b"", "listener.tls_client_ca", secret=True)
    connection: ConnectionOptions = ConnectionOptions()


class _Server(uvicorn.Server):
    """uvicorn's, without its handling of signals, and telling when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, which is not ours."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections."""
        await super().startup(sockets)
        self.up.set()


class HttpListener:
    """Starts and stops one server around an app."""

    def __init__(self, app: ASGIApp, options: HttpListenerOptions) -> None:
        self._app, self._options = app, options
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Bind and serve. Raises OSError if the address can't be bound."""
        bound = _bound(self._options)
        self.port = bound.getsockname()[1]
        config = self._config()
        config.load()
        config.ssl = _tls(self._options)
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[bound]))
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait((up, self._serving), return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            up.cancel()
            await self._serving  # raises what kept it from starting

    def _config(self) -> uvicorn.Config:
        return uvicorn.Config(
            self._app,
            http=bounded(self._options.connection),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nobody's address is asked for
            backlog=self._options.backlog,
            timeout_keep_alive=self._options.keep_alive_s,
            timeout_graceful_shutdown=self._options.grace_s,  # type: ignore[arg-type]
        )

    async def stop(self) -> None:
        """Accept no more, let ongoing answers finish within the grace, cut off the rest."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await self._serving
        # What took longer has been cancelled by now, and says so to its client, if that reads.
        if late := list(self._server.server_state.tasks):
            _, stuck = await asyncio.wait(late, timeout=FAREWELL_S)
            for connection in list(self._server.server_state.connections) if stuck else ():
                connection.transport.abort()
        self._server = self._serving = None


def _tls(options: HttpListenerOptions) -> ssl.SSLContext | None:
    """How connections are encrypted; None where they are not. Raises SSLError."""
    if not options.tls_certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python reads certificate and key from a file alone; only we can read this one, and briefly.
    with tempfile.NamedTemporaryFile() as file:
        file.write(options.tls_key + b"\n" + options.tls_certificate)
        file.flush()
        context.load_cert_chain(file.name)
    if options.tls_client_ca:
        context.load_verify_locations(cadata=options.tls_client_ca.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _bound(options: HttpListenerOptions) -> socket.socket:
    family, address = resolved(options.host, options.port)
    return socket.create_server(address, family=family, backlog=options.backlog, reuse_port=True)
