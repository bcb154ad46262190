"""Closed loops: callers that ask again as soon as they are answered.

    sequential   one caller, an ordinary gRPC client: what a lone call takes
    unary        64 callers over 8 connections, the lean client
    batch        one caller of RouteBatch, 256 requests each

Rates of batches are per second of the replica's own processor time, so that what the client takes
of a shared machine does not count.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import grpc
import numpy as np

from load.bench.speed.open_loop import quantile_ms
from load.bench.speed.serving import DIM, Served
from load.bench.speed.wire import Ask, Ended, connected
from serve.proto.fairlead.v1 import router_pb2 as pb

SERVICE = "/fairlead.v1.Router/"
CALLERS, CONNECTIONS = 64, 8
BATCH = 256
SETTLE_S = 0.3  # for the last calls of a closed loop


def message(rng: np.random.Generator, **said: object) -> bytes:
    """A request with an embedding, serialised."""
    embedding = rng.normal(size=DIM).astype("<f4").tobytes()
    return pb.RouteRequest(embedding_f32=embedding, **said).SerializeToString()  # type: ignore[arg-type]


def batch(rng: np.random.Generator, n: int = BATCH) -> bytes:
    """A RouteBatchRequest, serialised."""
    asked = [pb.RouteRequest.FromString(message(rng)) for _ in range(n)]
    return pb.RouteBatchRequest(requests=asked).SerializeToString()


async def sequential_ms(port: int, ask: bytes, n: int, warm: int = 50) -> float:
    """Median time of a call by one caller, milliseconds."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        call: Callable[..., Awaitable[bytes]] = channel.unary_unary(f"{SERVICE}Route")
        took_s = []
        for _ in range(warm + n):
            began_s = time.perf_counter()
            await call(ask)
            took_s.append(time.perf_counter() - began_s)
    return quantile_ms(took_s[warm:], 0.5)


async def unary_per_s(port: int, ask: bytes, seconds: float, callers: int = CALLERS) -> float:
    """Answers per second to so many callers."""
    call, answered = Ask.of(f"{SERVICE}Route", ask), 0
    ends_s = time.monotonic() + seconds

    def ended(known_as: object, result: Ended) -> None:
        nonlocal answered
        assert isinstance(known_as, int)
        if time.monotonic() < ends_s:
            answered += result.answered
            connections[known_as].call(call, known_as)

    connections = await connected(port, CONNECTIONS, ended)
    for caller in range(callers):
        connections[caller % CONNECTIONS].call(call, caller % CONNECTIONS)
    for connection in connections:
        connection.flush()
    await asyncio.sleep(seconds + SETTLE_S)
    for connection in connections:
        connection.close()
    return answered / seconds


async def per_cpu_s(
    server: Served, method: str, ask: bytes, decisions: int, seconds: float
) -> float:
    """Decisions per second of the server's processor time, asked one call after the other."""
    options = [("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", options=options) as channel:
        call: Callable[..., Awaitable[bytes]] = channel.unary_unary(f"{SERVICE}{method}")
        await call(ask)
        calls, began_cpu_s, ends_s = 0, server.cpu_s(), time.monotonic() + seconds
        while time.monotonic() < ends_s:
            await call(ask)
            calls += 1
        return calls * decisions / (server.cpu_s() - began_cpu_s)


def columns(rng: np.random.Generator, n: int = BATCH) -> bytes:
    """A RouteColumnsRequest, serialised."""
    embeddings = rng.normal(size=(n, DIM)).astype("<f4").tobytes()
    return pb.RouteColumnsRequest(embeddings_f32=embeddings).SerializeToString()
