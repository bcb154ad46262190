"""The real form of `bench autoscaling`: raylets, live callers, and Ray's own autoscaling interface.

    raylets ─ router, dispatcher, trainer, planner, emulated pools
    arrivals ─▶ callers, each request at its time ─┬─▶ Dispatch: answers, what was lost
                                                   └─▶ Route: decisions served
    Ray Serve's status ─▶ replicas by pool, twice a second;  planner's record ─▶ lines

Callers do not wait for each other: a fleet that falls behind is asked no less.

Every request that was started is in the result, whatever became of it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.live.planner_actor import Scaling
from infra.autoscaling.live.planning import read_record
from infra.autoscaling.live.replicas import ReplicaCount, recording
from infra.autoscaling.live.site_scaling import observe_site, planner_of
from infra.autoscaling.planner import PlannerOptions
from infra.capacity.latency_target import LatencyTarget
from infra.cluster.cluster import Running, running
from infra.cluster.raylets import raylets
from infra.settings.settings import Settings
from load.bench.autoscaling.scenario import (
    CLASSES,
    DECIDED,
    OUTPUT_TOKENS,
    Arrivals,
    machines,
    scaling_options,
)
from load.demo.replay import Connect
from load.errors import LoopStuck
from serve.proto.fairlead.v1 import dispatch_pb2 as pb
from serve.proto.fairlead.v1 import dispatch_pb2_grpc, router_pb2, router_pb2_grpc
from serve.routing.request import BYTES_PER_TOKEN
from streams.clock import now_ms
from streams.telemetry.fleet_view import SPANS_MS, known_within
from streams.training.state import load_fleet

CONNECTIONS = 2
START_S_MAX, ANSWER_S_MAX, DECISION_S_MAX = 90.0, 60.0, 5.0
LOOK_S = 0.5  # between looks at the replicas
TAIL_S = 5.0  # in which the last answers come
FIRST_MODEL = "small"  # readiness is tried on it: demand for the other would start a replica


@dataclass(slots=True)
class Seen:
    """What callers saw."""

    dispatched: int = 0
    lost: list[str] = field(default_factory=list)  # failed before their stream had begun
    broken: list[str] = field(default_factory=list)  # … or after it
    within: int = 0  # answered, and within the target
    decisions: int = 0
    undecided: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Live:
    """What there was, over time; times are seconds from the first phase's beginning."""

    seen: Seen
    counts: list[ReplicaCount]
    lines: list[str]  # of plans, each with its time
    began_ms: int  # Unix time
    silence_s: float  # of the minute before, in which telemetry reported no requests


def run_live(
    settings: Settings,
    path: Path,
    options: PlannerOptions,
    asked: Arrivals,
    connect: Connect,
    say: Callable[[str], None],
) -> Live:
    """All phases, on a cluster of this bench alone. Raises LoopStuck and ClusterFailed."""
    scaling = Scaling(
        options=scaling_options(),
        observe=observe_site,
        make=partial(planner_of, options=options),
    )
    say(f"starting {len(machines())} raylets, a router, a dispatcher, a planner and pools …")
    with raylets(machines()), running(settings, path, scaling) as up:
        return asyncio.run(_phases(up, settings.target(), asked, connect, say))


async def _phases(
    up: Running,
    target: LatencyTarget,
    asked: Arrivals,
    connect: Connect,
    say: Callable[[str], None],
) -> Live:
    deciding, dispatching = (connect(at, CONNECTIONS) for at in (up.address, up.dispatch))
    callers = Callers(
        [router_pb2_grpc.RouterStub(channel) for channel in deciding],
        [dispatch_pb2_grpc.DispatcherStub(channel) for channel in dispatching],
        target,
    )
    try:
        await callers.ready()
        say(f"{len(asked.at_s)} requests in {asked.seconds:.0f} s …")
        silence_s = _silence_s(up, now_ms())
        began_ms, began_s = now_ms(), time.perf_counter()
        with recording(LOOK_S, lambda: time.perf_counter() - began_s) as counts:
            seen = await callers.ask_all(asked, began_s)
            rest_s = began_s + asked.seconds + TAIL_S - time.perf_counter()
            await asyncio.sleep(max(0.0, rest_s))
        return Live(seen, list(counts), _lines(up, began_ms), began_ms, silence_s)
    finally:
        await asyncio.gather(*(channel.close() for channel in (*deciding, *dispatching)))


def _silence_s(up: Running, at_ms: int) -> float:
    """Seconds of the last minute that telemetry is of, as the newest snapshot has it."""
    store = up.site.store()
    newest = store.newest()
    if not newest:
        return 0.0
    fleet = load_fleet(store, store.load(newest))
    return known_within(fleet, at_ms, SPANS_MS["1m"]) / 1000.0


def _lines(up: Running, began_ms: int) -> list[str]:
    record = read_record(up.site.state_dir)
    lines = record.lines if record else ()
    return [f"{(at_ms - began_ms) / 1000:.0f} s: {text}" for at_ms, text in lines]


class Callers:
    """Those who ask."""

    def __init__(
        self,
        routers: list[router_pb2_grpc.RouterStub],
        dispatchers: list[dispatch_pb2_grpc.DispatcherStub],
        target: LatencyTarget,
    ) -> None:
        self._routers, self._dispatchers, self._target = routers, dispatchers, target
        self._number = 0

    async def ready(self) -> None:
        """Wait until a request is answered. Raises LoopStuck."""
        ends_s = time.perf_counter() + START_S_MAX
        while True:
            seen = Seen()
            await self._dispatch(seen, "default", 1, [FIRST_MODEL])
            if not (seen.lost or seen.broken):
                return
            if time.perf_counter() > ends_s:
                raise LoopStuck(f"not ready within {START_S_MAX:.0f} s: {seen.lost or seen.broken}")
            await asyncio.sleep(0.5)

    async def ask_all(self, asked: Arrivals, began_s: float) -> Seen:
        """Start every request at its time; wait for all."""
        seen = Seen()
        columns = zip(
            asked.at_s.tolist(), asked.classes.tolist(), asked.prompt_tokens.tolist(), strict=True
        )
        async with asyncio.TaskGroup() as group:
            for at_s, of, tokens in columns:
                await asyncio.sleep(max(0.0, began_s + at_s - time.perf_counter()))
                if CLASSES[of] == DECIDED:
                    group.create_task(self._decide(seen, tokens))
                else:
                    group.create_task(self._dispatch(seen, CLASSES[of], tokens))
        return seen

    async def _decide(self, seen: Seen, tokens: int) -> None:
        seen.decisions += 1
        request = self._request(DECIDED, tokens)
        try:
            await self._routers[self._number % CONNECTIONS].Route(
                request, timeout=DECISION_S_MAX, wait_for_ready=True
            )
        except grpc.aio.AioRpcError as error:
            seen.undecided.append(_said(error))

    async def _dispatch(
        self, seen: Seen, class_name: str, tokens: int, models: list[str] | None = None
    ) -> None:
        seen.dispatched += 1
        request = pb.DispatchRequest(
            route=self._request(class_name, tokens, models),
            options_json=json.dumps({"max_tokens": OUTPUT_TOKENS}),
        )
        begun = False
        try:
            async for reply in self._dispatchers[self._number % CONNECTIONS].Dispatch(
                request, timeout=ANSWER_S_MAX, wait_for_ready=True
            ):
                begun = begun or reply.HasField("routed")
                if reply.HasField("ended"):
                    seen.within += self._met(tokens, reply.ended)
        except grpc.aio.AioRpcError as error:
            (seen.broken if begun else seen.lost).append(_said(error))

    def _request(
        self, class_name: str, tokens: int, models: list[str] | None = None
    ) -> router_pb2.RouteRequest:
        """A prompt of so many tokens, unlike all others from its first word on."""
        self._number += 1
        n_bytes = round(tokens * BYTES_PER_TOKEN)
        text = f"{self._number} and what a fairlead is ".ljust(n_bytes, "x")[: max(8, n_bytes)]
        return router_pb2.RouteRequest(
            text=text, prompt_tokens=tokens, tenant=class_name, allowed_models=models or []
        )

    def _met(self, tokens: int, ended: pb.Ended) -> bool:
        more = max(1, ended.output_tokens - 1)
        tpot_s = (ended.latency_ms - ended.first_token_ms) / 1000.0 / more
        return self._target.met(tokens, ttft_s=ended.first_token_ms / 1000.0, tpot_s=tpot_s)


def _said(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}"


def sampled(
    counts: list[ReplicaCount], pools: tuple[str, ...], grid_s: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Replicas (t,) by pool at each time of a grid: as last looked at before."""
    at_s = np.array([count.at_s for count in counts])
    places = np.clip(np.searchsorted(at_s, grid_s, side="right") - 1, 0, len(counts) - 1)
    return {
        pool: np.array([counts[place].by_pool.get(pool, 0) for place in places], np.float64)
        for pool in pools
    }
