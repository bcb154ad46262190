"""What costs a server memory or time without being wrong, kept up while it is fuzzed.

    idle       connections that say nothing
    half       heads and frames that stop in the middle
    dripping   a head that comes byte by byte
    unread     streams whose answers nobody reads
    bombs      64 MB of zeros in 64 KB of gzip, as a gRPC message and as an HTTP body
    metadata   headers of a megabyte

A bomb or a head that is answered instead of refused is odd, and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from load.bench.speed.wire import PREFACE, Ask
from serve.proto.fairlead.v1 import router_pb2 as pb

HOST = "127.0.0.1"
IDLE, HALF, UNREAD, DRIPPING = 100, 50, 20, 5
BOMB_BYTES = 64 << 20
DRIP_S, EVERY_S = 0.2, 2.0
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
CHAT = b'{"messages":[{"role":"user","content":"hello"}],"stream":true}'


@dataclass(slots=True)
class Pressure:
    """What was sent, and what of it was answered in an odd way."""

    sent: int = 0
    odd: list[str] = field(default_factory=list)


@asynccontextmanager
async def pressed(grpc_port: int, http_port: int) -> AsyncIterator[Pressure]:
    """Keep it up for the length of a block."""
    seen, opened = Pressure(), []
    try:
        for port, content in _held(grpc_port, http_port):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port, limit=1)
                opened.append(writer)
                writer.write(content)
                seen.sent += 1
        acting = asyncio.create_task(_act(seen, grpc_port, http_port, opened))
        try:
            yield seen
        finally:
            acting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await acting
    finally:
        for writer in opened:
            writer.transport.abort()


def _held(grpc_port: int, http_port: int) -> list[tuple[int, bytes]]:
    """Connections that are opened once, and what is said on them."""
    chat = HEAD + b"content-length: %d\r\n\r\n" % len(CHAT) + CHAT
    ask = pb.RouteBatchRequest(requests=[pb.RouteRequest(text="hello")] * 50).SerializeToString()
    call = Ask.of("/fairlead.v1.Router/RouteBatch", ask)
    number = (1).to_bytes(4, "big")
    whole = PREFACE + call.head + number + call.between + number + call.rest
    held = [(port, b"") for port in (grpc_port, http_port) for _ in range(IDLE)]
    held += [(grpc_port, PREFACE[:10])] * HALF + [(grpc_port, whole[: len(whole) // 2])] * HALF
    held += [(http_port, HEAD)] * HALF + [(http_port, chat[:-5])] * HALF
    return held + [(http_port, chat)] * UNREAD + [(grpc_port, whole)] * UNREAD


async def _act(
    seen: Pressure, grpc_port: int, http_port: int, opened: list[asyncio.StreamWriter]
) -> None:
    """Bombs now and then, and drops all the time."""
    bomb = gzip.compress(bytes(BOMB_BYTES))
    dripping = [await asyncio.open_connection(HOST, http_port) for _ in range(DRIPPING)]
    opened += [writer for _, writer in dripping]
    while True:
        for _, writer in dripping:
            writer.write(b"a")
        seen.sent += 1
        await _bomb_grpc(seen, grpc_port)
        await _bomb_http(seen, http_port, bomb)
        await _metadata(seen, grpc_port, http_port)
        for _ in range(round(EVERY_S / DRIP_S)):
            await asyncio.sleep(DRIP_S)
            for _, writer in dripping:
                writer.write(b"a")


async def _bomb_grpc(seen: Pressure, port: int) -> None:
    """A message that unpacks to more than is taken."""
    async with grpc.aio.insecure_channel(
        f"{HOST}:{port}", options=[("grpc.max_send_message_length", -1)]
    ) as channel:
        call: Any = channel.unary_unary("/fairlead.v1.Router/Route")
        seen.sent += 1
        try:
            zeros, packed = bytes(BOMB_BYTES), grpc.Compression.Gzip
            await call(zeros, compression=packed, timeout=20.0, wait_for_ready=True)
            seen.odd.append("a message of 64 MB in 64 KB was taken")
        except grpc.aio.AioRpcError as error:
            if error.code() not in {
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.CANCELLED,  # more calls wait than are taken
                grpc.StatusCode.UNAVAILABLE,  # gRPC's server is just replaced
            }:
                seen.odd.append(f"a message of 64 MB in 64 KB: {error.code().name}")


async def _bomb_http(seen: Pressure, port: int, bomb: bytes) -> None:
    head = HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(bomb)
    reply = await _asked(port, head + bomb)
    seen.sent += 1
    if b" 200 " in reply or b" 500 " in reply:
        seen.odd.append(f"a body of 64 MB in 64 KB: {reply!r}")


async def _metadata(seen: Pressure, grpc_port: int, http_port: int) -> None:
    long = "a" * (1 << 20)
    reply = await _asked(http_port, HEAD + b"x: " + long.encode() + b"\r\n\r\n")
    seen.sent += 1
    if b" 200 " in reply or b" 500 " in reply:
        seen.odd.append(f"a head of a megabyte: {reply!r}")
    async with grpc.aio.insecure_channel(f"{HOST}:{grpc_port}") as channel:
        call: Any = channel.unary_unary("/fairlead.v1.Router/Route")
        seen.sent += 1
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call(b"\x12\x01a", metadata=(("x", long),), timeout=10.0)
            seen.odd.append("a gRPC header of a megabyte was taken")


async def _asked(port: int, content: bytes) -> bytes:
    """The first line of the answer."""
    with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            async with asyncio.timeout(10.0):
                writer.write(content)
                return await reader.readline()
        finally:
            writer.transport.abort()
    return b""
