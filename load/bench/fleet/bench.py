"""The whole fleet in virtual time: what Fairlead costs and keeps, beside its rivals and a bound.

    for every trace:   Fairlead, and with the coupling cut in three ways ─┐
                       rivals: tuned on a stretch, then run on all of it ─┼─▶ figures, ratios
                       the clairvoyant bound                             ─┘
    overload, and how fast the simulation is

Runs are independent and go to two processes. The figures do not depend on which run is where. A
bench that is interrupted says what was done by then, and in `left_out` what was not.

All policies of a trace answer the same requests, and every request counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from load.bench.fleet import overload
from load.bench.fleet.clairvoyant import ClairvoyantOptions, bound, preferred_models
from load.bench.fleet.done import Done, Figures, TraceRuns, known
from load.bench.fleet.overload import OverloadOptions
from load.bench.fleet.picture import Curves, Watched, curves_of, draw
from load.bench.fleet.progress import Told
from load.bench.fleet.runs import (
    built,
    first_replicas,
    run_on,
    scaler_of,
    simulate_with,
    with_fleet,
)
from load.bench.fleet.scenario import (
    BUILT,
    MARKET,
    Scenario,
    ScenarioOptions,
    between,
    homogeneous,
    work_s_of,
)
from load.bench.fleet.tuning import (
    FAIRLEAD,
    OURS,
    QUEUE_LENGTH,
    UTILISATION,
    Contender,
    Grid,
    Tuned,
    best_homogeneous,
    tune,
)
from load.data.traces import HOUR_S, DiurnalOptions
from load.fit.pool_limits import LimitOptions
from load.workers import end, undisturbed, workers

Say = Callable[[str], None]
SPEED_POOLS = 10
SPEED_LEFT_OUT = ("llama-3.1-8b-l4-eu", "llama-3.1-8b-a100-us", "llama-3.1-70b-h100-us")
FULL_ENOUGH = 0.9  # a type of GPU that is fuller than this at the peak is not tried alone
PICTURED = "azure"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetBench:
    """What is run."""

    scenarios: ScenarioOptions = field(default_factory=ScenarioOptions)
    traces: tuple[str, ...] = ("diurnal", "azure", "mooncake")  # the longest first
    alone: tuple[str, ...] = tuple(MARKET)  # types of GPU that homogeneous fleets are tried of
    queue_length: Grid = QUEUE_LENGTH
    utilisation: Grid = UTILISATION
    clairvoyant: ClairvoyantOptions = field(default_factory=ClairvoyantOptions)
    overload: OverloadOptions | None = field(default_factory=OverloadOptions)
    # Of the Azure trace, its busiest: what is due by time costs least of it.
    speed_s: tuple[float, float] = (1500.0, 1900.0)
    workers: int = 2
    picture: Path | None = None


def quick() -> FleetBench:
    """Under a minute: minutes of each trace, two settings per rival. It shows that all runs."""
    return FleetBench(
        scenarios=ScenarioOptions(
            azure_users=12.0,
            azure_s=(1500.0, 1680.0),
            azure_tuning_s=(1260.0, 1380.0),
            mooncake_users=6.0,
            mooncake_s=(0.0, 360.0),
            mooncake_tuning_s=(600.0, 780.0),
            diurnal=DiurnalOptions(days=0.5),
            diurnal_s=(9 * HOUR_S, 9.12 * HOUR_S),
            diurnal_tuning_s=(8.8 * HOUR_S, 8.9 * HOUR_S),
        ),
        queue_length=Grid(scaling="queue_length", targets=(0.15, 0.3), layouts=("cheapest_first",)),
        utilisation=Grid(scaling="utilisation", targets=(0.5, 0.7), layouts=("cheapest_first",)),
        clairvoyant=ClairvoyantOptions(limits=LimitOptions(requests=500, halvings=2)),
        overload=OverloadOptions(
            market_share=0.25,
            static_s=60.0,
            halvings=2,
            ramp_s=60.0,
            settle_s=270.0,
            top_s=40.0,
            multiples=(6.0, 10.0),
        ),
    )


def measure(options: FleetBench, say: Say) -> dict[str, Any]:
    """Run everything. KeyboardInterrupt ends it early: what is done is returned."""
    began_s = time.monotonic()

    def report(text: str) -> None:
        say(f"{time.monotonic() - began_s:5.0f} s  {text}")

    done = Done({name: TraceRuns() for name in options.traces}, options.overload is not None)
    with (
        workers(options.workers) as processes,
        ThreadPoolExecutor(len(options.traces) + 2) as threads,
    ):
        try:
            _run_all(options, done, processes, threads, report)
        except KeyboardInterrupt:
            with undisturbed():
                end(processes)
                threads.shutdown()
    seconds = round(time.monotonic() - began_s)
    return done.result() | {"seed": options.scenarios.seed, "seconds": seconds}


def _run_all(
    options: FleetBench,
    done: Done,
    processes: ProcessPoolExecutor,
    threads: ThreadPoolExecutor,
    say: Say,
) -> None:
    """To the end."""
    seed, speed_s = options.scenarios.seed, options.speed_s
    # Alone first: a neighbour would slow it down.
    done.speed = processes.submit(simulated_requests_per_s, seed, speed_s)
    speed = done.speed.result()
    say(f"{speed:,.0f} simulated requests per second of one core with {SPEED_POOLS} pools")
    traces = [
        threads.submit(_trace, name, options, processes, say, of)
        for name, of in done.traces.items()
    ]
    if options.overload:
        done.overload = threads.submit(_overload, options, processes, say).result()
    for one in traces:
        one.result()


# --- in a worker


def simulated_requests_per_s(seed: int, between_s: tuple[float, float]) -> float:
    """Of one core, with ten pools, on the busiest minutes of the Azure trace, 265 requests/s."""
    of = built("azure", ScenarioOptions(seed=seed))
    pools = tuple(pool for pool in of.fleet.pools if pool.name not in SPEED_LEFT_OUT)
    assert len(pools) == SPEED_POOLS, "the speed is stated of so many pools"
    of = with_fleet(of, replace(of.fleet, pools=pools))
    of = replace(of, traffic=between(of.traffic, between_s[0], end_s=between_s[1]))
    first = first_replicas(of, FAIRLEAD)
    scaler = scaler_of(of, FAIRLEAD, first)
    done = simulate_with(of, first, scaler, FAIRLEAD, seed)
    return done.simulated_requests_per_s


def run_contender(
    name: str, options: ScenarioOptions, contender: Contender, *, tuning: bool
) -> dict[str, Any]:
    """One run's figures, its most GPUs at once, and its digest."""
    told = f"{name} {contender.label}{', to tune it' if tuning else ''}"
    done = run_on(name, options, contender, tuning=tuning, watched=partial(Told, name=told))
    of = built(name, options)
    fleet = homogeneous(contender.gpu) if contender.gpu is not None else of.fleet
    assert fleet is not None
    gpus = np.array([pool.gpus_per_replica for pool in fleet.pools])
    series = done.replicas
    running = (series.ready + series.starting + series.draining) @ gpus
    return {
        **done.figures(),
        "requests": len(done.traffic),
        "peak_gpus": int(running.max(initial=0)),
        "digest": done.digest(),
    }


def run_pictured(name: str, options: ScenarioOptions) -> Curves:
    """Fairlead's curves on a trace."""
    of = built(name, options)
    first = first_replicas(of, FAIRLEAD)
    watched = Watched(scaler_of(of, FAIRLEAD, first))
    done = simulate_with(of, first, watched, FAIRLEAD, options.seed)
    return curves_of(done, of, watched)


def run_bound(name: str, options: ScenarioOptions, how: ClairvoyantOptions) -> dict[str, float]:
    """The clairvoyant bound's figures."""
    found = bound(built(name, options), how, options.seed)
    return {
        "within_target": 1.0,
        "gpu_cost_usd": found.gpu_cost_usd,
        "quality": found.quality,
        "joules_per_request": found.joules_per_request,
        "replica_changes_per_h": found.replica_changes_per_h,
        "unserved": found.unserved,
        "whole_usd": found.whole_usd,
    }


def types_that_carry(
    name: str, options: ScenarioOptions, among: Sequence[str] = tuple(MARKET)
) -> list[str]:
    """GPU types of which there are enough for every model at the tuning stretch's peak minute."""
    of = built(name, options)
    of = replace(of, traffic=of.tuning)
    found = {gpu: _fullness(of, gpu) for gpu in among if homogeneous(gpu) is not None}
    carrying = [gpu for gpu, full in found.items() if full <= FULL_ENOUGH]
    return carrying or [min(found, key=lambda gpu: found[gpu])]


def _fullness(of: Scenario, gpu: str) -> float:
    """GPUs needed at full load in the busiest minute, over those there are."""
    fleet = homogeneous(gpu)
    assert fleet is not None
    preferred = preferred_models(of)
    work_s = work_s_of(fleet, of.traffic, of.target)
    minute = (of.traffic.at_s / 60.0).astype(int)
    total = np.zeros(minute.max(initial=0) + 1)
    for column, pool in enumerate(fleet.pools):
        rows = preferred == of.table.models.index(pool.model)
        work = np.bincount(minute[rows], work_s[rows, column], minlength=len(total))
        total += work / 60.0 * pool.gpus_per_replica
    return float(total.max() / MARKET[gpu][1])


def overload_base(options: ScenarioOptions, how: OverloadOptions) -> overload.Base:
    """What a static fleet of the largest model holds."""
    return overload.base_of(overload.tried_scenario(options, how), how)


def overload_at(
    options: ScenarioOptions, how: OverloadOptions, base: float, *, multiple: float
) -> dict[str, float]:
    """What comes of one multiple of it."""
    return overload.at_multiple(
        overload.tried_scenario(options, how), base, multiple=multiple, options=how
    )


# --- in the main process: what runs after what


def _trace(
    name: str, options: FleetBench, processes: ProcessPoolExecutor, say: Say, of: TraceRuns
) -> None:
    """All policies on one trace."""
    scenarios = options.scenarios

    def submit(contender: Contender, *, tuning: bool) -> Future[Any]:
        return processes.submit(run_contender, name, scenarios, contender, tuning=tuning)

    def run_all(contenders: Sequence[Contender]) -> list[Mapping[str, float]]:
        runs = [submit(contender, tuning=True) for contender in contenders]
        return [one.result() for one in runs]

    def begin(policy: str, run: Future[Figures]) -> None:
        of.runs[policy] = run
        run.add_done_callback(lambda _: _say_figures(f"{name} {policy}", run, say))

    for policy, contender in OURS.items():
        begin(policy, submit(contender, tuning=False))
    begin("clairvoyant", processes.submit(run_bound, name, scenarios, options.clairvoyant))
    pictured = None
    if options.picture is not None and name == PICTURED:
        pictured = processes.submit(run_pictured, name, scenarios)
    of.tuned |= _tuned(name, options, processes, run_all)
    for policy, tuned in of.tuned.items():
        begin(policy, submit(tuned.contender, tuning=False))
    for run in of.runs.values():
        run.result()
    if pictured is not None and options.picture is not None:
        draw(pictured.result(), options.picture)
        say(f"picture: {options.picture}")


def _say_figures(name: str, run: Future[Figures], say: Say) -> None:
    """At once, so that they are there whatever becomes of the bench."""
    if (found := known(run)) is not None:
        say(f"{name}: {_line(found)}")


def _tuned(
    name: str,
    options: FleetBench,
    processes: ProcessPoolExecutor,
    run_all: Callable[[Sequence[Contender]], Sequence[Mapping[str, float]]],
) -> dict[str, Tuned]:
    gpus = processes.submit(types_that_carry, name, options.scenarios, options.alone).result()
    grids = (options.queue_length, options.utilisation)
    return {
        "ray_default": tune(options.queue_length, run_all),
        "hpa": tune(options.utilisation, run_all),
        "homogeneous": best_homogeneous(grids, gpus, run_all),
    }


def _overload(options: FleetBench, processes: ProcessPoolExecutor, say: Say) -> dict[str, Any]:
    how = options.overload
    assert how is not None
    base = processes.submit(overload_base, options.scenarios, how).result()
    rate = base.requests_per_s
    say(f"overload: a static fleet of {overload.LARGEST} holds {rate:.1f} requests/s")

    def run_all(rate: float, multiples: Sequence[float]) -> list[dict[str, Any]]:
        runs = [
            processes.submit(overload_at, options.scenarios, how, rate, multiple=multiple)
            for multiple in multiples
        ]
        return [one.result() for one in runs]

    found = overload.summed_up(base, overload.search(rate, how, run_all), how)
    say(f"overload: {found['rate_gain']} times that within target, at {found['quality_loss']} less")
    return found


def _line(figures: Mapping[str, Any]) -> str:
    return (
        f"{figures['within_target']:.4f} within target, ${figures['gpu_cost_usd']:.2f}, "
        f"quality {figures['quality']:.4f}, {figures['replica_changes_per_h']:.0f} changes/h"
    )


assert set(BUILT) >= set(FleetBench().traces)
