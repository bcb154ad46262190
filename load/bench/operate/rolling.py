"""A rolling update of routers and dispatchers under load: what callers lose.

    calls      Route, open loop                     lost where it has no decision in the end
    streams    RouteStream, always open             what has no reply is sent again, as documented
    answers    Dispatch, streamed                   lost where it breaks off or fails

Callers are connected as the Python client connects: a call that a stopping replica has not taken
is tried again by gRPC. `resent` says how often a stream had to be opened again; `lost` what was
lost, `problems` what streams were told besides.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from infra.cluster.cluster import renew
from load.bench.operate.site import HOST, Attacked
from serve.proto.fairlead.v1 import dispatch_pb2 as dispatch
from serve.proto.fairlead.v1 import dispatch_pb2_grpc, router_pb2_grpc
from serve.proto.fairlead.v1 import router_pb2 as pb

# Target, connections, and whom to trust.
ConnectSafely = Callable[[str, int, bytes], list[grpc.aio.Channel]]
CALLS_PER_S, ANSWERS_PER_S, STREAMS, STREAM_PER_S = 25.0, 3.0, 4, 5.0
CONNECTIONS, CALL_S_MAX, REPLY_S_MAX = 4, 10.0, 10.0
BEFORE_S, AFTER_S = 1.0, 2.0
EXAMPLES_MAX = 5


@dataclass(slots=True)
class Rolled:
    """What callers sent and what came of it."""

    sent: int = 0
    answered: int = 0
    slowest_ms: float = 0.0  # of the calls that were answered
    resent: int = 0
    lost: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # after which a stream goes on

    def lose(self, what: str) -> None:
        """Note why one was lost."""
        if len(self.lost) < EXAMPLES_MAX:
            self.lost.append(what)

    def stumble(self, what: str) -> None:
        """Note what is tried again."""
        if len(self.problems) < EXAMPLES_MAX:
            self.problems.append(what)


async def rolling(at: Attacked, connect: ConnectSafely) -> dict[str, Any]:
    """Update all replicas while callers go on."""
    seen, stopping = Rolled(), asyncio.Event()
    router, dispatcher, _ = at.ports
    channels = connect(f"{HOST}:{router}", CONNECTIONS, at.trusted)
    to_dispatcher = connect(f"{HOST}:{dispatcher}", CONNECTIONS, at.trusted)
    headers = (("authorization", f"Bearer {at.tokens['all']}"),)
    routers = [router_pb2_grpc.RouterStub(one) for one in channels]
    dispatchers = [dispatch_pb2_grpc.DispatcherStub(one) for one in to_dispatcher]
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        ways: list[tuple[float, list[Any], Callable[..., Awaitable[None]]]] = [
            (CALLS_PER_S, routers, _call),
            (ANSWERS_PER_S, dispatchers, _answer),
        ]
        for per_s, stubs, ask in ways:
            group.create_task(_open_loop(per_s, stubs, ask, headers, seen, stopping))
        for i in range(STREAMS):
            stream = _Stream(f"stream-{i}", headers, seen, stopping)
            group.create_task(stream.run(routers[i % CONNECTIONS]))
        await asyncio.sleep(BEFORE_S)
        await asyncio.to_thread(renew, at.settings, at.up)
        await asyncio.sleep(AFTER_S)
        stopping.set()
    await asyncio.gather(*(one.close() for one in (*channels, *to_dispatcher)))
    return {
        "rolling_lost": seen.sent - seen.answered,
        "rolling": {
            "sent": seen.sent,
            "resent": seen.resent,
            "slowest_ms": round(seen.slowest_ms),
            "took_s": round(time.monotonic() - began_s, 1),
            "lost": seen.lost,
            "problems": seen.problems,
        },
    }


async def _open_loop(
    per_s: float,
    stubs: list[Any],
    ask: Callable[..., Awaitable[None]],
    headers: Any,
    seen: Rolled,
    stopping: asyncio.Event,
) -> None:
    """Calls at their times, whatever became of those before; all are waited for."""
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for i in itertools.count():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began_s + i / per_s - time.monotonic())):
                    await stopping.wait()
            if stopping.is_set():
                return
            seen.sent += 1
            call = ask(stubs[i % len(stubs)], headers)
            what = f"{ask.__name__.strip('_')} after {time.monotonic() - began_s:.1f} s"
            group.create_task(_counted(call, what, seen))


async def _counted(call: Awaitable[None], what: str, seen: Rolled) -> None:
    began_s = time.monotonic()
    try:
        await call
        seen.answered += 1
        seen.slowest_ms = max(seen.slowest_ms, 1000.0 * (time.monotonic() - began_s))
    except grpc.aio.AioRpcError as error:
        seen.lose(f"{what}: {error.code().name} {error.details()}")
    except _Cut as error:
        seen.lose(f"{what}: {error}")


class _Cut(Exception):
    """An answer without an end."""


async def _call(stub: router_pb2_grpc.RouterStub, headers: Any) -> None:
    request = pb.RouteRequest(text="What is a fairlead?")
    await stub.Route(request, metadata=headers, timeout=CALL_S_MAX, wait_for_ready=True)


async def _answer(stub: dispatch_pb2_grpc.DispatcherStub, headers: Any) -> None:
    request = dispatch.DispatchRequest(route=pb.RouteRequest(text="What is a fairlead?"))
    ended = False
    async for reply in stub.Dispatch(
        request, metadata=headers, timeout=CALL_S_MAX, wait_for_ready=True
    ):
        ended = ended or reply.HasField("ended")
    if not ended:
        raise _Cut("an answer broke off")


class _Stream:
    """One stream, opened again where it breaks; what has no reply is asked again."""

    def __init__(self, name: str, headers: Any, seen: Rolled, stopping: asyncio.Event) -> None:
        self._name, self._headers, self._seen, self._stopping = name, headers, seen, stopping
        self._waiting: dict[str, pb.RouteRequest] = {}
        self._numbers = itertools.count()

    async def run(self, stub: router_pb2_grpc.RouterStub) -> None:
        """Ask on until told to stop and all is answered, or nothing is any more."""
        ends_s = float("inf")
        while (not self._stopping.is_set() or self._waiting) and time.monotonic() < ends_s:
            try:
                replies = stub.RouteStream(
                    self._requests(), metadata=self._headers, wait_for_ready=True
                )
                async for reply in replies:
                    self._take(reply)
            except grpc.aio.AioRpcError as error:
                self._seen.stumble(f"a stream ended: {error.code().name} {error.details()}")
            if not self._stopping.is_set():
                self._seen.resent += 1
            elif ends_s == float("inf"):
                ends_s = time.monotonic() + REPLY_S_MAX
        for name in self._waiting:
            self._seen.lose(f"{name}: no decision {REPLY_S_MAX:.0f} s after the update")

    async def _requests(self) -> AsyncIterator[pb.RouteRequest]:
        for request in list(self._waiting.values()):
            yield request
        while not self._stopping.is_set():
            name = f"{self._name}-{next(self._numbers)}"
            self._waiting[name] = pb.RouteRequest(request_id=name, text="hello")
            self._seen.sent += 1
            yield self._waiting[name]
            await asyncio.sleep(1.0 / STREAM_PER_S)

    def _take(self, reply: pb.RouteReply) -> None:
        """A decision answers; a replica that is stopping says so, and it is asked elsewhere."""
        if reply.HasField("decision"):
            self._seen.answered += self._waiting.pop(reply.request_id, None) is not None
        elif reply.HasField("problem"):
            self._seen.stumble(f"{reply.request_id}: {reply.problem.message}")
