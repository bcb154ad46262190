"""Fuzzes a running dispatcher: does it crash, hang, grow, or blame itself for a caller's nonsense?

    messages   of every method, spoiled, in sound frames              the lean client
    bodies     of /v1/chat/completions and /v1/feedback, spoiled      HTTP/1.1, kept alive
    heads      of HTTP/1.1, spoiled                                   a connection each
    frames     of HTTP/2, spoiled                                     a connection each
    pressure   all the while: what costs memory or time (see `pressure`)

`crashes` are ends of the process, calls that neither are answered nor end, answers that blame the
server (INTERNAL, UNKNOWN, 500), traces in its log, and connections that end for no reason.
`restarts` are ends of gRPC's own server that ours puts another one in the place of: they alone are
a reason. Memory is compared with what it was after a tenth of it all.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp
import numpy as np

from load.bench.operate.fuzzing.mutations import Rng, spoiled, spoiled_json
from load.bench.operate.fuzzing.pressure import pressed
from load.bench.operate.fuzzing.seeds import BODIES, HEADS, frames, messages
from load.bench.operate.fuzzing.target import Target
from load.bench.speed.wire import Ask, Connection, Ended, connected

HOST = "127.0.0.1"
SHARES = {"messages": 0.70, "bodies": 0.20, "heads": 0.06, "frames": 0.04}
BATCH, CONNECTIONS, AT_ONCE = 256, 4, 32
ANSWER_S_MAX, CLOSE_S_MAX, RESTART_S_MAX = 20.0, 3.0, 2.0
# The batch that is under way, and one whose connections the old server's port still took.
CUT_PER_RESTART = 2
FAULTS = {2: "UNKNOWN", 13: "INTERNAL"}
EXAMPLES_MAX, EXAMPLE_BYTES_MAX = 20, 2000
ROUNDS = 10


@dataclass(slots=True)
class Fuzzed:
    """What came of it all."""

    sent: Counter[str] = field(default_factory=Counter)  # by kind
    statuses: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    cut: int = 0  # batches of which a connection ended
    examples: list[str] = field(default_factory=list)

    def crash(self, what: str, content: bytes = b"") -> None:
        """Count one."""
        self.crashes += 1
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(f"{what}: {content[:EXAMPLE_BYTES_MAX].hex()}")

    def check_cuts(self, restarts: int) -> None:
        """Connections end at restarts; more of them that do are a crash."""
        if self.cut > CUT_PER_RESTART * restarts:
            self.crash(f"connections of {self.cut} batches ended at {restarts} restarts")


async def fuzz(on: Target, n: int, rng: Rng, say: Callable[[str], None]) -> dict[str, Any]:
    """Send `n` of them; stops early where the process has ended."""
    found, before_mb = Fuzzed(), on.rss_mb()
    async with pressed(on.grpc_port, on.http_port) as pressure:
        for turn in range(ROUNDS):
            await _round(on, n // ROUNDS, rng, found)
            if not on.alive:
                found.crash(f"the process has ended with {on.process.returncode}")
                break
            if turn == 0:
                before_mb = on.rss_mb()
            say(f"fuzzed {sum(found.sent.values()):,} of {n:,} …")
        odd = pressure.odd
    if on.alive and not await _answers(on):
        found.crash("a sound call is not answered any more")
    traces, restarts = on.traces(), on.restarts()
    found.check_cuts(restarts)
    found.crashes += len(odd) + len(traces)
    after_mb = on.rss_mb()
    grown = None if before_mb is None or after_mb is None else round(after_mb - before_mb, 1)
    return {
        "fuzzed": sum(found.sent.values()) + pressure.sent,
        "crashes": found.crashes,
        "rss_growth_mb": grown,
        "fuzz": {
            "sent": dict(found.sent) | {"pressure": pressure.sent},
            "statuses": dict(found.statuses),
            "examples": [*found.examples, *odd],
            "traces": traces[:EXAMPLES_MAX],
            "restarts": restarts,
            "cut_at_restarts": found.cut,
        },
    }


async def _round(on: Target, n: int, rng: Rng, found: Fuzzed) -> None:
    """Some of each kind, one kind after the other."""
    kinds: dict[str, Callable[[Target, int, Rng, Fuzzed], Awaitable[None]]] = {
        "messages": _messages,
        "bodies": _bodies,
        "heads": _heads,
        "frames": _frames,
    }
    for name, share in SHARES.items():
        if on.alive:
            n_kind = max(1, round(n * share))
            try:
                await kinds[name](on, n_kind, rng, found)
                found.sent[name] += n_kind
            except OSError as error:
                found.crash(f"{name}: nobody listens: {error}")


# --- gRPC


async def _messages(on: Target, n: int, rng: Rng, found: Fuzzed) -> None:
    known = list(messages())
    for first in range(0, n, BATCH):
        asked = []
        for _ in range(min(BATCH, n - first)):
            path, message = known[int(rng.integers(len(known)))]
            asked.append((path, spoiled(message, rng)))
        await _batch(on, asked, found)


async def _batch(on: Target, asked: Sequence[tuple[str, bytes]], found: Fuzzed) -> None:
    """Call all at once on a few connections; wait for every end."""
    left, cut, done = len(asked), False, asyncio.Event()

    def ended(known_as: object, result: Ended) -> None:
        nonlocal left, cut
        left -= 1
        cut = cut or (result.status is None and not result.answered)
        assert isinstance(known_as, int)
        name = FAULTS.get(result.status or 0, "answered" if result.answered else "refused")
        found.statuses[name if result.status is None else f"{name} {result.status}"] += 1
        if name in FAULTS.values():
            found.crash(f"{asked[known_as][0]}: {name}", asked[known_as][1])
        if not result.answered and result.status is None and not on.alive:
            found.crash(f"{asked[known_as][0]}: the process ended", asked[known_as][1])
        if not left:
            done.set()

    connections = await _connected(on, ended)
    for i, (path, message) in enumerate(asked):
        connections[i % CONNECTIONS].call(Ask.of(path, message), i)
    for connection in connections:
        connection.flush()
    try:
        await asyncio.wait_for(done.wait(), ANSWER_S_MAX)
    except TimeoutError:
        found.crash(f"{left} calls without an answer in {ANSWER_S_MAX:.0f} s")
    found.cut += cut
    for connection in connections:
        connection.close()


async def _connected(on: Target, ended: Callable[[object, Ended], None]) -> list[Connection]:
    """Connections, once gRPC's server is there (again). Raises OSError."""
    ends_s = time.monotonic() + RESTART_S_MAX
    while True:
        try:
            return await connected(on.grpc_port, CONNECTIONS, ended)
        except OSError:
            if not on.alive or time.monotonic() > ends_s:
                raise
            await asyncio.sleep(0.01)


# --- HTTP


async def _bodies(on: Target, n: int, rng: Rng, found: Fuzzed) -> None:
    paths = list(BODIES)
    asked = []
    for _ in range(n):
        path = paths[int(rng.integers(len(paths)))]
        asked.append((path, spoiled_json(BODIES[path], rng)))
    url = f"http://{HOST}:{on.http_port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:

        async def post(path: str, body: bytes) -> None:
            headers = {"content-type": "application/json"}
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    async with session.post(url + path, data=body, headers=headers) as reply:
                        await reply.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                found.crash(f"{path}: {type(error).__name__}", body)
                return
            found.statuses[f"HTTP {reply.status}"] += 1
            if reply.status == 500:
                found.crash(f"{path}: 500", body)

        await _all(AT_ONCE, [partial(post, *one) for one in asked])


async def _heads(on: Target, n: int, rng: Rng, found: Fuzzed) -> None:
    asked = [spoiled(HEADS[int(rng.integers(len(HEADS)))], rng) for _ in range(n)]

    async def one(content: bytes) -> None:
        reply = await raw(on.http_port, content)
        if b" 500 " in reply[:40]:
            found.crash("a head: 500", content)

    await _all(AT_ONCE, [partial(one, one_) for one_ in asked])


async def _frames(on: Target, n: int, rng: Rng, found: Fuzzed) -> None:
    del found  # whether it still serves is asked after each round
    known = frames()
    asked = [spoiled(known[int(rng.integers(len(known)))], rng) for _ in range(n)]
    await _all(AT_ONCE, [partial(raw, on.grpc_port, one) for one in asked])


async def raw(port: int, content: bytes) -> bytes:
    """Send bytes and the end of them; what came back until it was closed."""
    with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await asyncio.open_connection(HOST, port)
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                writer.write(content)
                writer.write_eof()
                return await reader.read()
        finally:
            writer.transport.abort()
    return b""


async def _all(at_once: int, calls: Sequence[Callable[[], Awaitable[Any]]]) -> None:
    """Run all, a few at a time."""
    room = asyncio.Semaphore(at_once)

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        async with room:
            await call()

    await asyncio.gather(*(one(call) for call in calls))


async def _answers(on: Target) -> bool:
    """Whether a sound call on each listener is answered."""
    path, message = next(iter(messages()))
    found = Fuzzed()
    await _batch(on, [(path, message)], found)
    reply = await raw(on.http_port, b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    return found.statuses["answered"] + found.statuses["answered 0"] == 1 and b" 200 " in reply[:40]


def generator(seed: int) -> Rng:
    """The same mutants for the same seed."""
    return np.random.default_rng(seed)
