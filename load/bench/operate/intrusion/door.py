"""Knocks at a site: calls as nobody's client would make them, and what came of each.

    grpc(port, path, message, headers)   any path, any metadata, TLS or not
    http(port, request bytes)            a request as it is, byte by byte

What comes back is a `Reply`; whether that is as it should be is for others to say.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

TIMEOUT_S = 10.0
HEAD_END = b"\r\n\r\n"
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one call: OK with a message, or a code without."""

    code: str  # OK, another gRPC status, an HTTP status, or what kept it from being sent
    body: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.code == "OK" or self.code.startswith("2")

    @property
    def fault(self) -> bool:
        """Whether the server blames itself."""
        return self.code in {"INTERNAL", "UNKNOWN", "500"}


@dataclass(slots=True)
class Door:
    """One site's listeners, as they are called from outside. Close it in the end."""

    host: str
    trusted: bytes  # PEM; empty: no TLS
    key: bytes = b""  # of the certificate that is shown
    shown: bytes = b""
    _channels: dict[tuple[int, bool], Any] = field(default_factory=dict)

    async def grpc(
        self,
        port: int,
        path: str,
        message: bytes,
        headers: Headers = (),
        *,
        streamed: bool = False,
        plain: bool = False,
    ) -> Reply:
        """One call; of a stream, the first reply."""
        channel = self._channel(port, plain)
        call = (channel.stream_stream if streamed else channel.unary_unary)(path)
        asked = [message] if streamed else message
        try:
            replies = call(asked, metadata=tuple(headers), timeout=TIMEOUT_S)
            if not streamed:
                return Reply("OK", await replies)
            async for reply in replies:
                return Reply("OK", reply)
            return Reply((await replies.code()).name)
        except grpc.aio.AioRpcError as error:
            return Reply(error.code().name, str(error.details()).encode())
        except (TypeError, ValueError, grpc.RpcError) as error:  # no client would send it
            return Reply(f"not sent ({type(error).__name__})")

    def _channel(self, port: int, plain: bool) -> Any:
        at = port, plain
        if at not in self._channels:
            target = f"{self.host}:{port}"
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            if plain or not self.trusted:
                made = grpc.aio.insecure_channel(target, options=options)
            else:
                pair = (self.key or None, self.shown or None)
                credentials = grpc.ssl_channel_credentials(self.trusted, *pair)
                made = grpc.aio.secure_channel(target, credentials, options=options)
            self._channels[at] = made
        return self._channels[at]

    async def close(self) -> None:
        """Let go of all connections."""
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        self._channels.clear()

    def context(self) -> ssl.SSLContext:
        """How a client of ours speaks TLS."""
        return ssl.create_default_context(cadata=self.trusted.decode())

    async def http(
        self, port: int, request: bytes, context: ssl.SSLContext | bool | None = True
    ) -> Reply:
        """Send bytes, read the head of the reply and what came with it."""
        tls = self.context() if context is True and self.trusted else context or None
        try:
            async with asyncio.timeout(TIMEOUT_S):
                name = self.host if tls else None
                reader, writer = await asyncio.open_connection(
                    self.host, port, ssl=tls, server_hostname=name
                )
                try:
                    writer.write(request)
                    head = await reader.readuntil(HEAD_END)
                    body = await reader.read(1 << 16)
                finally:
                    writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            return Reply(f"closed ({type(error).__name__})")
        except TimeoutError:
            return Reply("silent")
        return Reply(head.split(b" ", 2)[1].decode("latin-1"), body)


def get(path: str, headers: Headers = (), *, method: str = "GET", body: bytes = b"") -> bytes:
    """An HTTP request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body
