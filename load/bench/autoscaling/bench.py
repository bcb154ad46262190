"""Autoscaling for real and in virtual time: the same load, the same fleet, the same planner.

    low, high, low, nothing, low ─┬─▶ raylets, live callers, Ray's autoscaling ─▶ replicas over time
                                  └─▶ `simulate`, a few seconds of it            ─▶ the same

    decisions_served_share   of the decisions asked for, live
    lost, broken             dispatched requests that failed before, or after, their stream began
    within_target            share of the dispatched requests, by form
    replica_seconds          ready replicas, integrated over time, by pool
    curve_difference         mean absolute difference of the two curves, relative to the live mean
    scaled_up, scaled_down   replicas that came and went, live
    to_zero_and_back         whether a pool had replicas, then none, then some again, live

The planner's forecasts know minutes of the clock, and means are over the minute before: the
simulated one has the same clock, and begins with as much silence as there was live. What the
two do not share is how long Ray takes to start a process, noise in telemetry, and chance in
routing. The quick form ends before anything could be idle for long enough: nothing goes to zero.

Figures are of one live run, as it came; nothing is chosen among several.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.contract import Observed, Plan, Scaler
from infra.autoscaling.live.site_scaling import planner_of
from infra.autoscaling.planner import PlannerOptions
from infra.pools.site import LocalSite
from infra.settings.settings import Settings, read_settings
from load.bench.autoscaling.live import TAIL_S, Live, run_live, sampled
from load.bench.autoscaling.picture import Curves, draw
from load.bench.autoscaling.scenario import (
    POOLS,
    STEP_S,
    Arrivals,
    Phase,
    arrivals,
    outcomes,
    planner_options,
    scaling_options,
    settings_toml,
)
from load.demo.replay import Connect
from load.simulation.loop.results import Run
from load.simulation.machines.fleet import UNIX_MS
from load.simulation.simulation import SimulationOptions, simulate
from serve.routing.placement import PlacementOptions
from serve.routing.request import PreferenceDefaults

LOW, HIGH = 2.0, 14.0  # dispatched requests a second
PROBLEMS_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingBench:
    """How much load, for how long."""

    # Demand is a mean over a minute, and idle is who asks nothing for a while.
    phases: tuple[Phase, ...] = (
        Phase(seconds=30.0, dispatched_per_s=LOW),
        Phase(seconds=60.0, dispatched_per_s=HIGH),
        Phase(seconds=60.0, dispatched_per_s=LOW),
        Phase(seconds=110.0, dispatched_per_s=0.0),
        Phase(seconds=50.0, dispatched_per_s=LOW),
    )
    port: int = 7500
    seed: int = 6
    picture: Path | None = None


def quick() -> AutoscalingBench:
    """Up, and no further."""
    return AutoscalingBench(
        phases=(
            Phase(seconds=6.0, dispatched_per_s=LOW),
            Phase(seconds=28.0, dispatched_per_s=HIGH),
        )
    )


def measure(
    options: AutoscalingBench, connect: Connect, say: Callable[[str], None]
) -> dict[str, Any]:
    """Run both; as long as the phases, and half a minute. Raises LoopStuck and ClusterFailed."""
    asked = arrivals(options.phases, options.seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fairlead.toml"
        path.write_text(settings_toml(Path(folder), options.port))
        settings = read_settings(path)
        planning = planner_options(settings.options(PlacementOptions).value_usd)
        # Made before anything is learned: as the live one, of what is stated.
        planner = planner_of(LocalSite.of(settings, path), {}, planning)
        live = run_live(settings, path, planning, asked, connect, say)
    say("the same in virtual time …")
    before_s = live.silence_s
    clock = OnClock(planner, live.began_ms - round(before_s * 1000.0))
    run = run_simulated(settings, asked.later(before_s), clock, options.seed)
    real, made_up = curves(live, run, asked)
    if options.picture is not None:
        draw(real, made_up, asked.at_s[asked.dispatched], options.picture)
    return summary(live, run, real, made_up, asked) | stated(options, planning)


# --- in virtual time


@dataclass(frozen=True, slots=True)
class OnClock:
    """A scaler of a simulation on another clock: one that began at a Unix time."""

    scaler: Scaler
    began_ms: int

    def step(self, observed: Observed) -> Plan:
        """As the scaler says at that time."""
        shift_s = (self.began_ms - UNIX_MS) / 1000.0
        return self.scaler.step(replace(observed, at_s=observed.at_s + shift_s))


def run_simulated(settings: Settings, asked: Arrivals, scaler: Scaler, seed: int) -> Run:
    """The same requests, fleet, prices and targets; telemetry and plans as often as live."""
    replica = settings.deployment().replica
    wants = settings.options(PreferenceDefaults)
    options = SimulationOptions(
        target=settings.target(),
        preference=(wants.quality, wants.cost, wants.latency, wants.energy),
        policy=replica.policy,
        placement=replica.placement,
        feedback_share=1.0,  # a dispatcher reports all that it dispatches
        feedback_s=STEP_S,
        publish_s=5.0,
        telemetry_s=STEP_S,
        scale_s=STEP_S,
        tick_s=STEP_S / 4,
        tail_s=asked.seconds + TAIL_S - float(asked.at_s[-1]),
        seed=seed,
    )
    return simulate(
        asked.traffic(), outcomes(), settings.fleet(), settings.catalogue(), scaler, options
    )


# --- side by side


def curves(live: Live, run: Run, asked: Arrivals) -> tuple[Curves, Curves]:
    """Ready replicas of both forms, every second of the same stretch."""
    grid_s = np.arange(0.0, asked.seconds + TAIL_S)
    series = run.replicas
    places = np.searchsorted(series.at_s, live.silence_s + grid_s, side="right") - 1
    of = dict(zip(series.pools, series.ready[places].T.astype(np.float64), strict=True))
    made_up = {pool: of[pool] for pool in POOLS}
    return Curves(grid_s, sampled(live.counts, tuple(POOLS), grid_s)), Curves(grid_s, made_up)


def summary(live: Live, run: Run, real: Curves, made_up: Curves, asked: Arrivals) -> dict[str, Any]:
    """The figures."""
    seen = live.seen
    within = run.requests.within(run.traffic, run.target)[asked.dispatched]
    changes = {pool: np.diff(replicas) for pool, replicas in real.replicas.items()}
    return {
        "decisions_served_share": _share(seen.decisions - len(seen.undecided), seen.decisions),
        "decisions": seen.decisions,
        "dispatched": seen.dispatched,
        "lost": len(seen.lost),
        "broken": len(seen.broken),
        "within_target": {
            "live": round(_share(seen.within, seen.dispatched), 4),
            "simulated": round(float(within.mean()), 4),
        },
        "replica_seconds": {
            pool: {
                "live": float(real.replicas[pool].sum()),
                "simulated": float(made_up.replicas[pool].sum()),
            }
            for pool in real.replicas
        },
        "curve_difference": {
            pool: round(difference(real.replicas[pool], made_up.replicas[pool]), 3)
            for pool in real.replicas
        },
        "scaled_up": int(sum(np.clip(change, 0, None).sum() for change in changes.values())),
        "scaled_down": int(sum(np.clip(-change, 0, None).sum() for change in changes.values())),
        "to_zero_and_back": any(to_zero_and_back(one) for one in real.replicas.values()),
        "problems": sorted({*seen.lost, *seen.broken, *seen.undecided})[:PROBLEMS_MAX],
        "silence_before_s": round(live.silence_s, 1),
        "plan_lines": {"live": live.lines, "simulated": _sooner(run.lines, live.silence_s)},
    }


def _sooner(lines: Sequence[str], by_s: float) -> list[str]:
    """A simulation's lines, with times from the first phase on."""
    parts = [line.partition(" s: ") for line in lines]
    return [f"{float(at_s) - by_s:.0f} s: {text}" for at_s, _, text in parts]


def difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Mean absolute difference of two curves (t,), relative to the mean of the first.

    Relative to the second's where the first is zero throughout.
    """
    mean = float(one.mean()) or float(other.mean())
    return float(np.abs(one - other).mean()) / mean if mean else 0.0


def to_zero_and_back(replicas: NDArray[np.float64]) -> bool:
    """Whether a curve (t,) has some, then none, then some again."""
    some = np.flatnonzero(replicas > 0)
    return bool(len(some)) and bool((replicas[some[0] : some[-1]] == 0).any())


def stated(options: AutoscalingBench, planning: PlannerOptions) -> dict[str, Any]:
    """What both were given, other than by default."""
    window, sizing, expected = planning.stabilisation, planning.sizing, planning.expected
    return {
        "phases": [asdict(phase) for phase in options.phases],
        "planner": {
            "step_s": scaling_options().step_s,
            "down_s": window.down_s,
            "grow_s": window.grow_s,
            "idle_s": expected.idle_s,
            "lead_s": sizing.lead_s,
        },
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
