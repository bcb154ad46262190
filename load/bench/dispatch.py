"""What Dispatch adds to calling the backend directly, and whether every token arrives in order.

    caller ──Dispatch (gRPC)──▶ dispatcher ──▶ emulated pool      ┐ the same requests at the same
    caller ──OpenAI's API──────────────────▶ emulated pool        ┘ rate, in turns
    caller ──OpenAI's API──▶ dispatcher ──▶ emulated pool         (beside them)

    overhead_p50_ms, overhead_p99_ms   differences of the quantiles of the time to the first token
    tokens, tokens_wrong               streamed tokens, and those out of order, missing or doubled
    dispatcher_us, http_dispatcher_us  processor time that the dispatcher took, per request
    pieces_per_s_per_core, http_…      tokens over that time

Requests start at their times whatever became of those before (open loop), and none is left out.
The emulated answers are numbered words, so one that is lost, doubled or out of order shows.

The three ways take turns in short stretches, so that a busy machine is as busy for
each.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from infra.endpoints.connections import Connections
from infra.endpoints.openai_endpoint import OpenAiEndpoint
from infra.endpoints.options import OpenAiOptions
from load.bench.loop import started
from load.bench.processor import cpu_s_of_replicas
from load.bench.settings import head
from load.demo.replay import Connect
from load.errors import LoopStuck
from serve.deploy.dispatch_deployment import DISPATCH_APP
from serve.dispatch.backend import Call, Piece
from serve.proto.fairlead.v1 import dispatch_pb2 as pb
from serve.proto.fairlead.v1 import dispatch_pb2_grpc, router_pb2

RATE_PER_S = 100.0
OUTPUT_TOKENS = 32
STRETCH_S = 4.0  # of one way before the next has its turn
CONNECTIONS = 4
START_S_MAX = 60.0
ANSWER_S_MAX = 20.0
WAYS = ("direct", "dispatch", "http")


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchBench:
    """How much to send."""

    tokens: int = 100_000  # through the dispatcher
    port: int = 7493

    @property
    def rounds(self) -> int:
        """Turns of each way."""
        return max(1, round(self.tokens / (2 * RATE_PER_S * STRETCH_S * OUTPUT_TOKENS)) + 1)


@dataclass(slots=True)
class Seen:
    """What came of the requests that went one way."""

    first_token_ms: list[float] = field(default_factory=list)
    tokens: int = 0
    warm: int = 0  # of these, in the turn that is not measured
    wrong: int = 0
    failed: list[str] = field(default_factory=list)
    cpu_s: float = 0.0  # of the dispatcher, while they went this way

    def answer(self, text: str, stated: int) -> None:
        """Check a whole answer against what it should be."""
        words = text.split()
        expected = [f"w{i}" for i in range(stated)]
        self.tokens += len(words)
        self.wrong += sum(a != b for a, b in zip(words, expected, strict=False))
        self.wrong += abs(len(words) - len(expected))


def measure(
    options: DispatchBench, connect: Connect, say: Callable[[str], None]
) -> dict[str, float]:
    """Run all; about two minutes. Raises LoopStuck."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "fairlead.toml"
        settings.write_text(_settings(settings.parent, options.port))
        say("starting `fairlead up` with a dispatcher and an emulated pool …")
        with started(settings):
            return uvloop.run(_measure(options, connect, say))


def _settings(folder: Path, port: int) -> str:
    """One pool of a fast GPU, so that there is little but overhead."""
    return f"""{head(folder, port)}
[[gpus]]
name = "h200_sxm"
usd_per_hour = 2.6
[[models]]
name = "fast"
shape = "Llama-3.1-8B-Instruct"
output_tokens = {OUTPUT_TOKENS}
[[pools]]
name = "fast"
model = "fast"
gpu = "h200_sxm"
backend = "emulated"
"""


async def _measure(
    options: DispatchBench, connect: Connect, say: Callable[[str], None]
) -> dict[str, float]:
    channels = connect(f"127.0.0.1:{options.port + 1}", CONNECTIONS)
    stubs = [dispatch_pb2_grpc.DispatcherStub(channel) for channel in channels]
    connections = Connections()
    try:
        address = await _ready(stubs[0])
        direct = _endpoint("direct", f"http://{address}/v1", connections)
        http = _endpoint("http", f"http://127.0.0.1:{options.port + 2}/v1", connections)
        seen = {way: Seen() for way in WAYS}
        asks: dict[str, Callable[[int], Coroutine[Any, Any, None]]] = {
            "direct": lambda i: _call(direct, i, seen["direct"]),
            "dispatch": lambda i: _dispatch(stubs[i % CONNECTIONS], i, seen["dispatch"]),
            "http": lambda i: _call(http, i, seen["http"]),
        }
        number = 0
        for turn in range(-1, options.rounds):
            say(f"turn {turn + 1} of {options.rounds} …")
            for way in WAYS:
                before_s = cpu_s_of_replicas(DISPATCH_APP)
                number = await _open_loop(asks[way], number)
                seen[way].cpu_s += cpu_s_of_replicas(DISPATCH_APP) - before_s
            if turn < 0:  # the first warms up
                for way in WAYS:
                    seen[way].first_token_ms.clear()
                    seen[way].cpu_s, seen[way].warm = 0.0, seen[way].tokens
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
        await connections.close()
    return _found(seen)


def _found(seen: dict[str, Seen]) -> dict[str, float]:
    for way, of in seen.items():
        if of.failed:
            raise LoopStuck(f"{len(of.failed)} requests failed ({way}): {of.failed[0]}")
    p50 = {way: float(np.percentile(seen[way].first_token_ms, 50)) for way in WAYS}
    p99 = {way: float(np.percentile(seen[way].first_token_ms, 99)) for way in WAYS}
    return {
        "overhead_p50_ms": round(p50["dispatch"] - p50["direct"], 2),
        "overhead_p99_ms": round(p99["dispatch"] - p99["direct"], 2),
        "http_overhead_p50_ms": round(p50["http"] - p50["direct"], 2),
        "http_overhead_p99_ms": round(p99["http"] - p99["direct"], 2),
        "direct_p50_ms": round(p50["direct"], 2),
        "direct_p99_ms": round(p99["direct"], 2),
        **_costs("", seen["dispatch"]),
        **_costs("http_", seen["http"]),
        "requests": sum(len(of.first_token_ms) for of in seen.values()),
        "tokens": seen["dispatch"].tokens + seen["http"].tokens,
        "tokens_wrong": seen["dispatch"].wrong + seen["http"].wrong,
    }


def _costs(prefix: str, seen: Seen) -> dict[str, float]:
    """What the dispatcher took; nothing where the system does not say."""
    if not seen.cpu_s:
        return {}
    return {
        f"{prefix}dispatcher_us": round(seen.cpu_s / len(seen.first_token_ms) * 1e6),
        f"{prefix}pieces_per_s_per_core": round((seen.tokens - seen.warm) / seen.cpu_s),
    }


def _endpoint(name: str, url: str, connections: Connections) -> OpenAiEndpoint:
    return OpenAiEndpoint(name, OpenAiOptions(url=url, model="fast"), connections)


async def _ready(stub: dispatch_pb2_grpc.DispatcherStub) -> str:
    """Wait for an answer; where it came from. Raises LoopStuck."""
    ends_s, endpoint = time.perf_counter() + START_S_MAX, ""
    while not endpoint:
        try:
            request = _request(0)
            async for reply in stub.Dispatch(request, timeout=ANSWER_S_MAX, wait_for_ready=True):
                endpoint = reply.routed.endpoint or endpoint
        except grpc.aio.AioRpcError as error:
            if time.perf_counter() > ends_s:
                raise LoopStuck(f"no answer within {START_S_MAX:.0f} s: {error}") from error
            await asyncio.sleep(0.1)
    return endpoint


async def _open_loop(ask: Callable[[int], Coroutine[Any, Any, None]], number: int) -> int:
    """Requests at their times for one stretch; all are waited for."""
    n, began_s = round(RATE_PER_S * STRETCH_S), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for i in range(n):
            rest_s = began_s + i / RATE_PER_S - time.perf_counter()
            if rest_s > 0:
                await asyncio.sleep(rest_s)
            group.create_task(ask(number + i))
    return number + n


def _text(number: int) -> str:
    return f"question {number}: what is a fairlead?"


def _request(number: int) -> pb.DispatchRequest:
    return pb.DispatchRequest(
        route=router_pb2.RouteRequest(text=_text(number)),
        options_json=f'{{"max_tokens": {OUTPUT_TOKENS}}}',
        joined=True,  # as our clients do
    )


async def _dispatch(stub: dispatch_pb2_grpc.DispatcherStub, number: int, seen: Seen) -> None:
    began_s, text, first = time.perf_counter(), [], 0.0
    try:
        async for message in stub.Dispatch(_request(number), timeout=ANSWER_S_MAX):
            for reply in (message, *message.followed_by):
                if reply.HasField("piece"):
                    first = first or time.perf_counter()
                    text.append(reply.piece.text)
                elif reply.HasField("ended"):
                    seen.answer("".join(text), reply.ended.output_tokens)
    except grpc.aio.AioRpcError as error:
        seen.failed.append(str(error.details()))
        return
    seen.first_token_ms.append((first - began_s) * 1000)


async def _call(endpoint: OpenAiEndpoint, number: int, seen: Seen) -> None:
    call = Call(
        body={
            "messages": [{"role": "user", "content": _text(number)}],
            "max_tokens": OUTPUT_TOKENS,
        },
        prompt_tokens=10,
    )
    began_s, text, first = time.perf_counter(), [], 0.0
    try:
        async with aclosing(endpoint.stream(call)) as parts:
            async for part in parts:
                if isinstance(part, Piece):
                    first = first or time.perf_counter()
                    text.append(part.text)
                else:
                    seen.answer("".join(text), part.output_tokens)
    except Exception as error:  # noqa: BLE001 - reported with the result
        seen.failed.append(str(error))
        return
    seen.first_token_ms.append((first - began_s) * 1000)
