"""Breaks pools one after another under load, and counts what callers notice.

    several raylets ─ router ×2, dispatcher ×2, trainer, four emulated pools
    open loop: decisions and dispatched requests, at steady rates, through every fault

    raylet_killed   the machine of the busiest pool dies; another one takes its place later
    slow            the busiest pool becomes 20 times as slow
    errors          it answers half of its requests with an error
    silent          it accepts requests and never answers
    garbage         it answers with bytes that are no answer

    decisions_served_share   of the decisions asked for
    lost                     dispatched requests that failed before their stream had begun
    broken                   those that failed after it: nothing can be done for them
    recovery_p50_s, _p99_s   from request to first token, of requests whose first attempt met the
                             fault: what it cost their callers
    settled_s                from the fault until no more requests met it

A request meets a fault when its first attempt did not answer, or it waited for its first token
longer than any before the fault. One that was sent elsewhere at once has not met it.

Every request that was started is in the result, whatever became of it.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np

from infra.cluster.cluster import running
from infra.cluster.raylets import Raylets, raylets
from infra.pools.directory import ask
from infra.settings.settings import read_settings
from load.bench.settings import head
from load.demo.replay import Connect
from load.errors import LoopStuck
from serve.proto.fairlead.v1 import dispatch_pb2 as pb
from serve.proto.fairlead.v1 import dispatch_pb2_grpc, router_pb2, router_pb2_grpc

FAULTS = ("raylet_killed", "slow", "errors", "silent", "garbage")
# Every pool has a machine with two GPUs of its type to itself: model and GPU type by pool.
POOLS = {
    "small-a": ("small", "l40s"),
    "small-b": ("small", "l40s"),
    "small-c": ("small", "h100_sxm"),
    "large": ("large", "h200_sxm"),
}
CONNECTIONS = 4
START_S_MAX, ANSWER_S_MAX = 90.0, 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultsBench:
    """How much load, and for how long each fault lasts."""

    dispatched_per_s: float = 20.0
    decisions_per_s: float = 50.0
    calm_s: float = 6.0  # before each fault
    fault_s: float = 12.0
    rounds: int = 2  # times that each fault is tried
    port: int = 7496


@dataclass(slots=True)
class Asked:
    """One dispatched request, from its start to its end."""

    at_s: float
    pool: str = ""  # that answered
    decided: str = ""  # pool
    first_token_s: float | None = None  # since it was asked
    attempts: int = 0  # before the one that answered
    error: str = ""

    @property
    def lost(self) -> bool:
        """Whether it failed before its stream had begun."""
        return bool(self.error) and self.first_token_s is None


@dataclass(slots=True)
class Seen:
    """All that was asked in one experiment."""

    dispatched: list[Asked] = field(default_factory=list)
    decisions: int = 0
    undecided: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One fault, once."""

    fault: str
    began_s: float
    seen: Seen

    def met(self) -> list[Asked]:
        """The requests that met the fault."""
        before = [a for a in self.seen.dispatched if a.at_s < self.began_s and not a.error]
        slowest_s = max((a.first_token_s or 0.0 for a in before), default=0.0)
        return [
            a
            for a in self.seen.dispatched
            if a.at_s >= self.began_s - ANSWER_S_MAX and _met(a, slowest_s, self.began_s)
        ]


def _met(asked: Asked, slowest_s: float, began_s: float) -> bool:
    if asked.error or asked.attempts:
        return True
    if asked.at_s < began_s or asked.first_token_s is None:
        return False
    return asked.first_token_s > slowest_s


def measure(
    options: FaultsBench, connect: Connect, say: Callable[[str], None]
) -> dict[str, object]:
    """Run all experiments; three to four minutes. Raises LoopStuck."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(_settings(path.parent, options.port))
        settings = read_settings(path)
        say("starting five raylets, two routers, two dispatchers and four pools …")
        with raylets([_machine(pool) for pool in POOLS]) as machines, running(settings, path):
            found = asyncio.run(_experiments(options, machines, connect, say))
    return summary(found)


def _settings(folder: Path, port: int) -> str:
    models = {"small": ("Llama-3.1-8B-Instruct", 1, 0.1), "large": ("Llama-3.1-70B", 1, 1.0)}
    text = f"""{head(folder, port, routers=2, dispatchers=2)}
[preference]
latency = 0.05
"""
    for gpu in ("l40s", "h100_sxm", "h200_sxm"):
        text += f'[[gpus]]\nname = "{gpu}"\nusd_per_hour = 1.0\navailable = 4\n'
    for name, (shape, parallel, usd) in models.items():
        text += (
            f'[[models]]\nname = "{name}"\nshape = "{shape}"\ntensor_parallel = {parallel}\n'
            f"usd_per_1m_output_tokens = {usd}\noutput_tokens = 24\nlatency_ms = 500\n"
        )
    for name, (model, gpu) in POOLS.items():
        text += (
            f'[[pools]]\nname = "{name}"\nmodel = "{model}"\ngpu = "{gpu}"\n'
            f'backend = "emulated"\nspeed = 2\n'
        )
    return text


# --- experiments


async def _experiments(
    options: FaultsBench, machines: Raylets, connect: Connect, say: Callable[[str], None]
) -> list[Experiment]:
    deciding = connect(f"127.0.0.1:{options.port}", CONNECTIONS)
    dispatching = connect(f"127.0.0.1:{options.port + 1}", CONNECTIONS)
    routers = [router_pb2_grpc.RouterStub(channel) for channel in deciding]
    dispatchers = [dispatch_pb2_grpc.DispatcherStub(channel) for channel in dispatching]
    world = World(options, machines, routers, dispatchers)
    try:
        await world.ready()
        found = []
        for turn in range(options.rounds):
            for fault in FAULTS:
                say(f"{fault}, {turn + 1} of {options.rounds} …")
                found.append(await world.experiment(fault))
        return found
    finally:
        await asyncio.gather(*(channel.close() for channel in (*deciding, *dispatching)))


class World:
    """The running system, as its callers and as whoever breaks it see it."""

    def __init__(
        self,
        options: FaultsBench,
        machines: Raylets,
        routers: Sequence[router_pb2_grpc.RouterStub],
        dispatchers: Sequence[dispatch_pb2_grpc.DispatcherStub],
    ) -> None:
        self._options, self._machines = options, machines
        self._routers, self._dispatchers = routers, dispatchers
        self._machine_of = {pool: number for number, pool in enumerate(POOLS)}
        self._number = 0

    async def ready(self) -> None:
        """Wait until every pool is known and answers. Raises LoopStuck."""
        ends_s = time.perf_counter() + START_S_MAX
        while True:
            seen = Seen()
            await asyncio.gather(*(self._dispatch(seen) for _ in range(8)))
            problems = [asked.error for asked in seen.dispatched if asked.error]
            if not problems and set(await self._addresses()) == set(self._machine_of):
                return
            if time.perf_counter() > ends_s:
                raise LoopStuck(f"not ready within {START_S_MAX:.0f} s: {problems[:1]}")
            await asyncio.sleep(0.25)

    async def _addresses(self) -> dict[str, list[str]]:
        return {pool: list(found) for pool, found in (await ask())[1].items()}

    async def experiment(self, fault: str) -> Experiment:
        """Load; in the middle of it the busiest pool is broken, and mended at the end."""
        seen, options = Seen(), self._options
        ends_s = time.perf_counter() + options.calm_s + options.fault_s
        load = [
            asyncio.create_task(
                _open_loop(lambda: self._dispatch(seen), options.dispatched_per_s, ends_s)
            ),
            asyncio.create_task(
                _open_loop(lambda: self._decide(seen), options.decisions_per_s, ends_s)
            ),
        ]
        try:
            await asyncio.sleep(options.calm_s)
            victim = _busiest(seen)
            began_s = time.perf_counter()
            await self._break(fault, victim)
            await asyncio.gather(*load)
        finally:
            for task in load:
                task.cancel()
        await self._mend(fault, victim)
        return Experiment(fault, began_s, seen)

    async def _break(self, fault: str, pool: str) -> None:
        if fault == "raylet_killed":
            # Beside the load: ending processes takes a second, which callers must not wait for.
            await asyncio.to_thread(self._machines.kill, self._machine_of[pool])
        else:
            await self._order(pool, {"kind": fault})

    async def _mend(self, fault: str, pool: str) -> None:
        if fault == "raylet_killed":
            # On the main thread, because Ray sets signal handlers; nothing is under way.
            self._machine_of[pool] = self._machines.add(_machine(pool))
        else:
            await self._order(pool, {"kind": "none"})
        await self.ready()
        # Ejected endpoints come back after 30 s at the earliest: the next fault begins afresh
        # only when they have.
        await self._healed(pool)

    async def _order(self, pool: str, fault: dict[str, object]) -> None:
        async with aiohttp.ClientSession() as session:
            for address in (await self._addresses())[pool]:
                url = f"http://{address}/emulator/fault"
                async with session.put(url, json=fault) as reply:
                    reply.raise_for_status()

    async def _healed(self, pool: str) -> None:
        """Wait until the pool answers as decided again. Raises LoopStuck."""
        ends_s = time.perf_counter() + 2 * START_S_MAX
        while time.perf_counter() < ends_s:
            seen = Seen()
            await asyncio.gather(*(self._dispatch(seen) for _ in range(20)))
            if all(not a.error and not a.attempts and a.pool == a.decided for a in seen.dispatched):
                return
            await asyncio.sleep(0.5)
        raise LoopStuck(f"{pool} was not used again within {2 * START_S_MAX:.0f} s of being mended")

    async def _dispatch(self, seen: Seen) -> None:
        """One request, to its end."""
        self._number += 1
        asked = Asked(time.perf_counter())
        seen.dispatched.append(asked)
        stub = self._dispatchers[self._number % CONNECTIONS]
        route = router_pb2.RouteRequest(text=f"question {self._number}: what is a fairlead?")
        try:
            async for reply in stub.Dispatch(
                pb.DispatchRequest(route=route), timeout=ANSWER_S_MAX, wait_for_ready=True
            ):
                if reply.HasField("routed"):
                    asked.first_token_s = time.perf_counter() - asked.at_s
                    asked.pool, asked.decided = reply.routed.pool, reply.routed.decision.pool
                    asked.attempts = len(reply.routed.attempts)
        except grpc.aio.AioRpcError as error:
            asked.error = f"{error.code().name}: {error.details()}"

    async def _decide(self, seen: Seen) -> None:
        self._number += 1
        seen.decisions += 1
        request = router_pb2.RouteRequest(text=f"question {self._number}")
        try:
            await self._routers[self._number % CONNECTIONS].Route(
                request, timeout=5.0, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            seen.undecided.append(f"{error.code().name}: {error.details()}")


def _machine(pool: str) -> dict[str, float]:
    """The resources of a pool's machine."""
    return {f"gpu_{POOLS[pool][1]}": 2.0}


def _busiest(seen: Seen) -> str:
    pools = [asked.pool for asked in seen.dispatched if asked.pool]
    return max(sorted(set(pools)), key=pools.count)


async def _open_loop(
    ask_one: Callable[[], Coroutine[Any, Any, None]], rate_per_s: float, ends_s: float
) -> None:
    """Start requests at their times until `ends_s`; wait for all."""
    began_s, i = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        while (at_s := began_s + i / rate_per_s) < ends_s:
            await asyncio.sleep(max(0.0, at_s - time.perf_counter()))
            group.create_task(ask_one())
            i += 1


# --- what came of it


def summary(found: Sequence[Experiment]) -> dict[str, object]:
    """The figures, over all and by fault."""
    by_fault = {
        fault: _figures([one for one in found if one.fault == fault])
        for fault in FAULTS
        if any(one.fault == fault for one in found)
    }
    whole = _figures(found)
    return {
        "decisions_served_share": whole["decisions_served_share"],
        "lost": whole["lost"],
        "broken": whole["broken"],
        "dispatched": whole["dispatched"],
        "recovery_p50_s": {fault: of["recovery_p50_s"] for fault, of in by_fault.items()},
        "recovery_p99_s": {fault: of["recovery_p99_s"] for fault, of in by_fault.items()},
        "settled_s": {fault: of["settled_s"] for fault, of in by_fault.items()},
        "by_fault": by_fault,
        "problems": sorted(
            {a.error for one in found for a in one.seen.dispatched if a.lost}
            | {problem for one in found for problem in one.seen.undecided}
        )[:5],
    }


def _figures(found: Sequence[Experiment]) -> dict[str, float]:
    asked = [a for one in found for a in one.seen.dispatched]
    met = [(one, a) for one in found for a in one.met()]
    waits_s = [a.first_token_s for _, a in met if a.first_token_s is not None] or [0.0]
    decisions = sum(one.seen.decisions for one in found)
    undecided = sum(len(one.seen.undecided) for one in found)
    return {
        "decisions_served_share": round(1.0 - undecided / decisions, 6) if decisions else 1.0,
        "dispatched": len(asked),
        "lost": sum(a.lost for a in asked),
        "broken": sum(bool(a.error) and not a.lost for a in asked),
        "met": len(met),
        "recovery_p50_s": round(float(np.percentile(waits_s, 50)), 3),
        "recovery_p99_s": round(float(np.percentile(waits_s, 99)), 3),
        "settled_s": round(max((a.at_s - one.began_s for one, a in met), default=0.0), 2),
    }
