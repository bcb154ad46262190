"""Pools of real servers, by kind: pushed past their limit, scaled, and with an idle model beside.

    overload.answered_share   answers that came, of those that a dispatcher which knew the servers
                              would have had given, to the same requests (`carried`)
    overload.busy_share       answers that came, of those that the servers there were had time for
    overload.timed_out        callers that waited in vain: must be 0
    overload.refused_ms_p99   how soon the others were told
    two_models.answered_share of requests that could go to a full model or an idle one
    replicas                  over time: [seconds, ready], at each change
    learned_capacity_error    learned requests/s of one server against what it does, relative
    learned_from              answers that it was learned from

Each by kind of server. Overload is judged by what was asked or answered after half a minute: until
then the limit has to be found. Of an answer that lies across the beginning or the end the part
counts that its server worked within: servers that answer eight at a time end a round just before or
just after, which is 4 % of all. Servers are stand-ins that do what their own metrics pages say; the
cluster, the dispatcher, the trainer and the planner are the real ones.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from infra.autoscaling.live.planning import read_record
from infra.autoscaling.live.replicas import ReplicaCount, recording
from infra.cluster.cluster import Running, local_ray, running
from infra.pools.directory import ask
from infra.pools.ports import free_ports
from infra.settings.settings import read_settings
from load.bench.pools.callers import Asked, Callers
from load.bench.pools.carried import carried, worked
from load.bench.pools.scaling import scaling
from load.bench.pools.scenario import (
    ANSWER_S,
    FIRST,
    SECOND,
    SLOTS,
    TRUE_PER_S,
    PoolsBench,
    settings_text,
)
from load.bench.pools.server import StandIn
from load.errors import LoopStuck
from streams.telemetry.capacity import capacities
from streams.training.state import load_fleet

HOST = "127.0.0.1"
LOOK_S, READY_S_MAX = 0.5, 120.0
Phase = dict[str, list[Asked]]  # by kind


def measure(options: PoolsBench, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all; under two minutes, half of it asking. Raises ClusterFailed and LoopStuck."""
    names = [kind + which for kind in options.kinds for which in (FIRST, SECOND)]
    ports = dict(zip(names, free_ports(len(names), HOST), strict=True))
    urls = {name: f"http://{HOST}:{port}/v1" for name, port in ports.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(settings_text(path.parent, options, urls))
        settings = read_settings(path)
        say("starting a cluster, a router, a dispatcher, a planner and pools …")
        planned = scaling(idle_s=30.0, down_s=30.0)
        with local_ray(settings.fleet().resources()), running(settings, path, planned) as up:
            return asyncio.run(_phases(up, options, ports, say))


async def _phases(
    up: Running, options: PoolsBench, ports: Mapping[str, int], say: Callable[[str], None]
) -> dict[str, Any]:
    async with AsyncExitStack() as stack:
        for name, port in ports.items():
            kind = name.removesuffix(FIRST).removesuffix(SECOND)
            await stack.enter_async_context(StandIn(kind, SLOTS, ANSWER_S, HOST, port))
        connections = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connections))
        await _ready(options)
        began_s = time.monotonic()
        callers = Callers(up.openai, session, patience_s=options.patience_s, began_s=began_s)
        with recording(LOOK_S, lambda: time.monotonic() - began_s) as counts:
            async with callers.said(say):
                say(f"{options.overload_per_s:g} requests/s for pools that do {TRUE_PER_S:g} …")
                overload = await _asked(callers, options, "overload")
                say("more than the first model can do, with an idle one beside it …")
                two_models = await _asked(callers, options, "two_models")
        say("what was learned …")
        return _summary(up, options, overload, two_models, list(counts))


async def _ready(options: PoolsBench) -> None:
    """Wait until every server that Ray runs answers. Raises LoopStuck."""
    ends_s = time.monotonic() + READY_S_MAX
    while set(options.kinds) - set((await ask())[1]):
        if time.monotonic() > ends_s:
            raise LoopStuck(f"not ready within {READY_S_MAX:.0f} s: the servers of pools")
        await asyncio.sleep(LOOK_S)


async def _asked(callers: Callers, options: PoolsBench, what: str) -> Phase:
    """One phase, of all kinds side by side."""

    async def of(number: int, kind: str) -> tuple[str, list[Asked]]:
        rng = np.random.default_rng((options.seed, number, what == "overload"))
        if what == "overload":
            asked = callers.ask(
                [kind], rng, per_s=options.overload_per_s, seconds=options.overload_s
            )
        else:
            models = [kind + FIRST, kind + SECOND]
            asked = callers.ask(
                models, rng, per_s=options.two_models_per_s, seconds=options.two_models_s
            )
        return kind, await asked

    return dict(await asyncio.gather(*(of(*one) for one in enumerate(options.kinds))))


def _summary(
    up: Running,
    options: PoolsBench,
    overload: Phase,
    two_models: Phase,
    counts: Sequence[ReplicaCount],
) -> dict[str, Any]:
    record = read_record(up.site.state_dir)
    kinds, learned = options.kinds, _learned(up)
    first_token_s = up.site.fleet.pools[0].target.ttft_s
    settled = {
        kind: overloaded(overload[kind], counts, kind, options, first_token_s) for kind in kinds
    }
    return {
        "overload": by_figure(settled),
        "two_models": by_figure({kind: _outcomes(two_models[kind]) for kind in kinds}),
        "replicas": {kind: _changes(counts, kind) for kind in kinds},
        **by_figure({kind: learned.get(kind, {}) for kind in kinds}),
        "lines": [text for _, text in record.lines] if record else [],
    }


def by_figure(by_kind: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures by kind of server as figures, each by kind."""
    names = dict.fromkeys(name for of in by_kind.values() for name in of)
    return {name: {kind: of.get(name) for kind, of in by_kind.items()} for name in names}


def overloaded(
    asked: Sequence[Asked],
    counts: Sequence[ReplicaCount],
    kind: str,
    options: PoolsBench,
    first_token_s: float,
) -> dict[str, Any]:
    """What became of an overload, once it was settled; `first_token_s` is what one may take."""
    late = [one for one in asked if one.at_s >= options.settled_s]
    span = {"since_s": options.settled_s, "until_s": options.overload_s}
    servers, asked_s = _servers(counts, kind), [one.at_s for one in asked]
    could = carried(asked_s, servers, **span, first_token_s=first_token_s)
    slots = _slots(servers, **span)
    answered = sum(worked(one.ended_s, **span) for one in asked if one.outcome == "answered")
    told_ms = [1000.0 * (one.ended_s - one.at_s) for one in late if one.outcome == "refused"]
    return _outcomes(late) | {
        "answered_share": round(answered / could, 4) if could else None,
        "could": round(could, 1),
        "busy_share": round(answered / slots, 4) if slots else None,
        "refused_ms_p99": round(float(np.quantile(told_ms, 0.99)), 1) if told_ms else None,
    }


def _slots(servers: Sequence[tuple[float, int]], *, since_s: float, until_s: float) -> float:
    """Answers that so many servers, at each change, have time for."""
    within = [(max(at_s, since_s), n) for at_s, n in servers if at_s < until_s]
    ends = itertools.pairwise([*within, (until_s, 0)])
    return sum(TRUE_PER_S * n * (end_s - at_s) for (at_s, n), (end_s, _) in ends)


def _servers(counts: Sequence[ReplicaCount], kind: str) -> list[tuple[float, int]]:
    return [(count.at_s, count.by_pool.get(kind, 0)) for count in counts]


def _outcomes(asked: Sequence[Asked]) -> dict[str, Any]:
    found = Counter(one.outcome for one in asked)
    said = Counter(one.said for one in asked if one.outcome == "failed")
    share = found["answered"] / len(asked) if asked else None
    return {
        "asked": len(asked),
        "answered_share": None if share is None else round(share, 4),
        **{name: found[name] for name in ("answered", "refused", "timed_out", "failed")},
        "first_failure": next(iter(said), ""),
    }


def _changes(counts: Sequence[ReplicaCount], kind: str) -> list[list[float]]:
    """Ready replicas at the beginning and at each change."""
    found: list[list[float]] = []
    for count in counts:
        ready = count.by_pool.get(kind, 0)
        if not found or found[-1][1] != ready:
            found.append([round(count.at_s, 1), ready])
    return found


def _learned(up: Running) -> dict[str, dict[str, Any]]:
    """What the newest snapshot knows of each pool's servers."""
    store = up.site.store()
    newest = store.newest()
    if not newest:
        return {}
    known = capacities(load_fleet(store, store.load(newest)), up.site.fleet.pools[0].target.ttft_s)
    return {
        pool: {
            "learned_capacity_error": round(
                abs(one.of.service.capacity_per_s - TRUE_PER_S) / TRUE_PER_S, 4
            ),
            "learned_per_s": round(one.of.service.capacity_per_s, 3),
            "learned_deviation_per_s": round(one.of.service.deviation_per_s, 3),
            "learned_from": one.of.service.finished,
            "learned_by": one.of.by,
        }
        for pool, one in known.items()
        if one.of.service.finished
    }
