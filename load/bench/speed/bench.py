"""How fast decisions are, beside an empty handler in the same run.

    servers (processes)   our full path │ an empty handler on our listener │ ours, views swapped
                          an empty handler behind Ray Serve: its proxy │ its direct ingress
    measured in turns     sequential, unary, batches, columns: medians of the turns' ratios
                          open loop at one rate: quantiles of the turns' calls
    then                  open loop at other rates, swaps, overload
    in process            the scorer, beside other projects'; folding feedback; a history's memory

Client and servers share the machine, so its cores are named, and ratios count more than rates. What
this does not measure is named in `left_out`, with the reason, instead of a figure.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import uvloop

from infra.pools.ports import free_ports
from load.bench.speed import held, scorer, stages
from load.bench.speed.calls import (
    BATCH,
    SERVICE,
    batch,
    columns,
    message,
    per_cpu_s,
    sequential_ms,
    unary_per_s,
)
from load.bench.speed.folding import folded_per_s
from load.bench.speed.open_loop import Seen, Stream, drive, quantile_ms
from load.bench.speed.others import peers
from load.bench.speed.others.ray_serve import DIRECT, PROXY, behind_ray
from load.bench.speed.overload import Spent, overloaded
from load.bench.speed.serving import Served, Serving, served
from load.bench.speed.wire import Ask
from load.errors import LoopStuck

Say = Callable[[str], None]
OPEN_PER_S = 1000.0
QUANTILES = {"p50": 0.5, "p99": 0.99, "p999": 0.999}
P99_LIMITS_MS = (1, 5, 10)
SWAP_S = 1.0
NO_NATIVE = "`pygrpc-native` fails contract tests (no TLS, no connection age): docs/speed.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedBench:
    """How much is asked."""

    alternations: int = 5
    calls: int = 500  # of a sequential turn
    seconds: float = 2.0  # of a turn of the other kinds
    open_s: float = 10.0
    rates_per_s: tuple[float, ...] = (125, 250, 500, 1000, 1500, 2000, 3000, 4000)
    rate_s: float = 4.0  # at each of these
    factors: tuple[float, ...] = (2.0, 5.0, 10.0)
    overload_s: float = 5.0
    history: int = 100_000  # rows searched by the scorer where it searches any
    held_rows: int = 100_000  # of a history whose memory is measured
    feedback: int = 100_000  # records folded
    ray_turns: int = 5  # of `seconds` each, ours beside both of Ray Serve's ways
    seed: int = 0


def quick() -> SpeedBench:
    """Under a minute, and as much less sure."""
    return SpeedBench(
        calls=100,
        seconds=0.4,
        open_s=2.0,
        rates_per_s=(250, 500, 1000, 2000),
        rate_s=1.0,
        overload_s=1.0,
        held_rows=50_000,
        feedback=20_000,
        ray_turns=3,
    )


def measure(options: SpeedBench, say: Say) -> dict[str, Any]:
    """Run all. Raises LoopStuck."""
    rng = np.random.default_rng(options.seed)
    found: dict[str, Any] = {"cores": os.cpu_count()}
    say("the scorer in process …")
    found["scorer"] = scorer.measure(rng, history=options.history)
    found["stages"] = stages.measure(rng)
    with closing(_Ray()) as ray:
        found |= _others(options, rng, found["scorer"], say)
        full = Serving(kind="fairlead", reserved_port=free_ports(1)[0])
        with served(Serving(kind="empty")) as empty, served(full) as ours:
            found |= _ray(options, ours, ray, rng, found["left_out"])
            ray.close()
            found |= uvloop.run(_beside(options, empty, ours, rng, say))
            found |= uvloop.run(_open(options, empty, ours, rng, say))
            found["overload"] = uvloop.run(_overload(options, ours, rng, say))
    with served(Serving(kind="fairlead", swap_s=SWAP_S)) as swapping:
        say("a new view every second …")
        seen = uvloop.run(_at(swapping, OPEN_PER_S, options.open_s, rng))
        found["swap"] = {"p99_ms": quantile_ms(seen.answered_s, 0.99)}
    found["transport"]["native"] = None
    found["left_out"]["transport.native"] = NO_NATIVE
    return found


def _others(
    options: SpeedBench, rng: np.random.Generator, ours: dict[str, float], say: Say
) -> dict[str, Any]:
    """What is timed in processes of its own, and by processor time: whatever runs beside it."""
    say("other projects …")
    theirs, why = peers.timed(rng)
    say("a history, and feedback …")
    of_replica = held.of_replica(options.held_rows)
    return {
        "scorer": ours | peers.compared(ours, theirs),
        "left_out": peers.left_out(why),
        "history_row_bytes": {name: of_replica[name] for name in ("memory", "snapshot")},
        "bytes_per_history_row": of_replica["memory"],
        "folded_per_s": folded_per_s(options.feedback, rng),
    }


class _Ray:
    """Ray Serve takes ten seconds to start: begun early, and ended when it was timed."""

    def __init__(self) -> None:
        self._up, self._starter = ExitStack(), ThreadPoolExecutor(1)
        way = behind_ray(*free_ports(1))
        self._ports = self._starter.submit(self._up.enter_context, way)

    def ports(self) -> dict[str, int]:
        """Its ways' ports, once it has started. Raises LoopStuck."""
        return self._ports.result()

    def close(self) -> None:
        """End it; a second time does nothing."""
        with suppress(LoopStuck):
            self._ports.result()
        self._starter.shutdown()
        self._up.close()


async def _beside(
    options: SpeedBench, empty: Served, ours: Served, rng: np.random.Generator, say: Say
) -> dict[str, Any]:
    """What is measured in turns with the empty handler."""
    ask, many, matrix = message(rng), batch(rng), columns(rng)
    alone_ms, alone, unary, rates = [], [], [], []
    batches, columnar, cpu_s = [], [], []
    for turn in range(options.alternations):
        say(f"turn {turn + 1} of {options.alternations} …")
        base_ms = await sequential_ms(empty.port, ask, options.calls)
        alone_ms.append(await sequential_ms(ours.port, ask, options.calls))
        alone.append(alone_ms[-1] / base_ms)
        base_per_s = await unary_per_s(empty.port, ask, options.seconds)
        began_cpu_s = ours.cpu_s()
        rates.append(await unary_per_s(ours.port, ask, options.seconds))
        cpu_s.append((ours.cpu_s() - began_cpu_s) / max(1.0, rates[-1] * options.seconds))
        unary.append(rates[-1] / max(1.0, base_per_s))
        batches.append(await per_cpu_s(ours, "RouteBatch", many, BATCH, options.seconds))
        columnar.append(await per_cpu_s(ours, "RouteColumns", matrix, BATCH, options.seconds))
    return {
        "sequential": {"p50_ms": median(alone_ms), "p50_vs_empty": median(alone)},
        "unary_vs_empty": median(unary),
        "batch_per_s_per_core": median(batches),
        "columnar_per_s_per_core": median(columnar),
        "cpu_s_per_1000_decisions": 1000.0 * median(cpu_s),
        "transport": {"grpcio": median(rates)},
    }


def _ray(
    options: SpeedBench,
    ours: Served,
    ray: _Ray,
    rng: np.random.Generator,
    left_out: dict[str, str],
) -> dict[str, float | None]:
    """What is measured in turns with Ray Serve, where it can be started."""
    try:
        return uvloop.run(_beside_ray(options, ours, ray.ports(), rng))
    except LoopStuck as error:
        left_out["unary_vs_ray_proxy, ray_direct"] = str(error)
        return {"unary_vs_ray_proxy": None, "ray_direct": None}


async def _beside_ray(
    options: SpeedBench, ours: Served, ports: dict[str, int], rng: np.random.Generator
) -> dict[str, float | None]:
    """Our answers a second in parts of those of an empty handler behind Ray Serve, in turns."""
    ask, ratios = message(rng), defaultdict[str, list[float]](list)
    for _ in range(options.ray_turns):
        our_per_s = await unary_per_s(ours.port, ask, options.seconds)
        for way, port in ports.items():
            ray_per_s = await unary_per_s(port, ask, options.seconds)
            ratios[way].append(our_per_s / max(1.0, ray_per_s))
    return {"unary_vs_ray_proxy": median(ratios[PROXY]), "ray_direct": median(ratios[DIRECT])}


async def _at(server: Served, per_s: float, seconds: float, rng: np.random.Generator) -> Seen:
    """Poisson arrivals at a rate."""
    ask = Ask.of(f"{SERVICE}Route", message(rng))
    seen = await drive(server.port, [Stream(name="", ask=ask, per_s=per_s)], seconds, rng)
    return seen[""]


async def _beside_open(
    options: SpeedBench, empty: Served, ours: Served, rng: np.random.Generator
) -> dict[str, float]:
    """Latency at one rate, in turns with the empty handler; quantiles are of all turns' calls."""
    took_s, base_s, ratios, lost = list[float](), list[float](), [], 0
    for _ in range(options.alternations):
        base = await _at(empty, OPEN_PER_S, options.open_s / options.alternations, rng)
        seen = await _at(ours, OPEN_PER_S, options.open_s / options.alternations, rng)
        base_s += base.answered_s
        took_s += seen.answered_s
        lost += seen.sent - len(seen.answered_s)
        base_ms = max(quantile_ms(base.answered_s, 0.5), 1e-9)
        ratios.append(quantile_ms(seen.answered_s, 0.5) / base_ms)
    figures = {f"{name}_ms": quantile_ms(took_s, q) for name, q in QUANTILES.items()}
    beside = {f"empty_{name}_ms": quantile_ms(base_s, q) for name, q in QUANTILES.items()}
    return {"rate": OPEN_PER_S, **figures, "lost": lost, "p50_vs_empty": median(ratios), **beside}


async def _open(
    options: SpeedBench, empty: Served, ours: Served, rng: np.random.Generator, say: Say
) -> dict[str, Any]:
    """Latency at one rate, and the highest rates at which it stays within limits."""
    say(f"open loop at {OPEN_PER_S:,.0f}/s …")
    open_loop = await _beside_open(options, empty, ours, rng)
    within = {f"{limit}ms": 0.0 for limit in P99_LIMITS_MS}
    for per_s in options.rates_per_s:
        say(f"open loop at {per_s:,.0f}/s …")
        seen = await _at(ours, per_s, options.rate_s, rng)
        for limit in P99_LIMITS_MS:
            if len(seen.answered_s) == seen.sent and quantile_ms(seen.answered_s, 0.99) <= limit:
                within[f"{limit}ms"] = per_s
    return {"open_loop": open_loop, "decisions_per_s_at_p99": within}


async def _overload(
    options: SpeedBench, ours: Served, rng: np.random.Generator, say: Say
) -> dict[str, Any]:
    """By factor, against the best of several closed loops."""
    say("the peak …")
    ask = message(rng)
    spent = Spent(ours)
    peaks = [await unary_per_s(ours.port, ask, options.seconds) for _ in range(3)]
    cores, loop_s = spent(len(peaks) * options.seconds)
    answered = max(1.0, sum(peaks) * options.seconds)
    found: dict[str, Any] = {
        "peak_per_s": max(peaks),
        "peak_cores": cores,
        "peak_loop_us_per_answer": 1e6 * loop_s / answered,
    }
    for factor in options.factors:
        say(f"{factor:g} times the peak …")
        found[f"{factor:g}"] = await overloaded(
            ours,
            rng,
            peak_per_s=max(peaks),
            factor=factor,
            seconds=options.overload_s,
        )
    return found
