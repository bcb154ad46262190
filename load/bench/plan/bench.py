"""`bench plan`: live against simulated, plan against vllm-sr-sim, 1.5 times the forecast, speed.

live_vs_simulated        relative differences of TTFT, cost and mix on one emulated site
plan_vs_vllm_sr_sim      by workload: cost over its cost, and whether the target is met
plan_vs_by_hand          by stretch: cost over that of what one does by hand, target and quality
inflated                 share within target at 1.5 times demand and service times
simulated_requests_per_s of one core
replay                   decisions in batches, intended and delivered
left_out                 what could not be measured, by key, and why
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from infra.settings.settings import read_settings
from load.bench.plan.by_hand import by_hand
from load.bench.plan.live import LiveOptions
from load.bench.plan.live import measure as measure_live
from load.bench.plan.versus import WORKLOADS, Workload, versus
from load.data import traces
from load.planning.candidates import with_candidates
from load.planning.compare import interval
from load.planning.events import Events
from load.planning.inflated import slower
from load.planning.plan import INFLATION, busier
from load.planning.questions import questions_of
from load.planning.search import PlanOptions, Search, able
from load.planning.simulating import SimulateOptions, simulated
from load.planning.site import Site, site_of
from load.planning.sizing import Sized
from load.replay.targets import Connect
from load.traces.reading import TraceFile, read_trace
from serve.routing.catalogue import Catalogue

EXAMPLE = Path(__file__).parents[3] / "infra" / "example-fleet.toml"
BUSIEST_S = 1500.0  # of the Azure hour
SPEED_POOLS = 10
BY_HAND_S = 600.0
BY_HAND = tuple(  # all of both traces, by whole ten minutes: no stretch was chosen
    (name, begin_s) for name in ("azure", "mooncake") for begin_s in np.arange(5) * BY_HAND_S
)
BY_HAND_SEEDS = range(1, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanBench:
    """What is run."""

    workloads: dict[str, Workload] = field(default_factory=lambda: dict(WORKLOADS))
    by_hand: Sequence[tuple[str, float]] = BY_HAND  # a trace, and since when
    live: LiveOptions = LiveOptions()
    inflated_s: float = 300.0  # of the Azure trace's busiest time
    speed_users: float = 35.0
    # Of trace. With 120 s a third of all that is simulated is the minute after its end, in which
    # nobody asks; and ten minutes take three seconds.
    speed_s: float = 600.0
    seed: int = 0


def quick() -> PlanBench:
    """Under a minute on a quiet machine: it shows that all runs, but for plans by hand."""
    azure = WORKLOADS["azure_8b"]
    return PlanBench(
        workloads={"azure_8b": replace(azure, requests_per_s=10.0, seconds=60.0)},
        live=LiveOptions(
            seconds=10.0, warm_up_s=2.0, requests_per_s=10.0, length=0.1, decisions_s=3.0
        ),
        by_hand=(),
        inflated_s=60.0,
        speed_s=300.0,
    )


def measure(options: PlanBench, connect: Connect, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all of it."""
    speed = requests_per_s(options)
    say(f"{speed:,.0f} simulated requests per second of one core")
    plans: dict[str, Any] = {}

    def plan() -> None:
        for name, workload in options.workloads.items():
            say(f"{name}: ours and vllm-sr-sim's plan")
            plans[name] = versus(workload, options.seed, say)
        plans["by_hand"] = versus_hand(options.by_hand, say)
        plans["inflated"] = inflated(options, say)

    live = measure_live(options.live, connect, say, meanwhile=plan)
    found, hand = plans.pop("inflated"), plans.pop("by_hand")
    return {
        "live_vs_simulated": live["live_vs_simulated"],
        "plan_vs_vllm_sr_sim": plans,
        "plan_vs_by_hand": hand,
        "inflated": found,
        "simulated_requests_per_s": round(speed),
        "replay": live["replay"],
        "left_out": live["left_out"],
        "seed": options.seed,
    }


def _site() -> Site:
    return site_of(read_settings(EXAMPLE))


def versus_hand(
    stretches: Sequence[tuple[str, float]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Each stretch, and over all of them what ours costs of what one by hand does."""
    found: dict[str, Any] = {f"{name} {at:g}": _by_hand(name, at, say) for name, at in stretches}
    kept = [one for one in found.values() if one["cost_ratio"] is not None]
    if len(kept) > 1:
        reserved = [one["with_reserve"]["cost_ratio"] for one in kept]
        found["all"] = {
            "cost_ratio": interval(np.array([one["cost_ratio"] for one in kept])),
            "cost_ratio_with_reserve": interval(np.array(reserved)),
        }
    return found


def _by_hand(name: str, begin_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{name}: ours and a plan by hand")
    whole = read_trace(name)
    part = whole.with_trace(whole.trace.between(begin_s, end_s=begin_s + BY_HAND_S), None)
    return by_hand(site_of(with_candidates(read_settings(EXAMPLE))), part, BY_HAND_SEEDS, say)


def _azure(seconds: float) -> TraceFile:
    trace = traces.azure().between(BUSIEST_S, end_s=BUSIEST_S + seconds)
    return TraceFile(trace=trace, format="plain-ms", rows=len(trace))


def requests_per_s(options: PlanBench) -> float:
    """Ten pools with room for many users, on the busiest minutes of the Azure trace."""
    site, file = site_of(with_candidates(read_settings(EXAMPLE))), _azure(options.speed_s)
    rng = np.random.default_rng(options.seed)
    file = file.with_trace(traces.scaled(file.trace, options.speed_users, rng))
    fleet = replace(site.fleet, pools=site.fleet.pools[:SPEED_POOLS])
    plans = [plan.for_router(reports=True) for plan in fleet.pools]
    catalogue = Catalogue(site.catalogue.models, plans, site.catalogue.prompt_tokens)
    site = replace(site, fleet=fleet, catalogue=catalogue)
    each = {plan.name: max(1, round(options.speed_users / 5.0)) for plan in fleet.pools}
    sized = Sized(replicas=each, unmet=0.0, usd_per_h=0.0)
    questions = questions_of(site.catalogue, None, file)
    how = SimulateOptions(seed=options.seed, feedback_share=0.002, scales=False)
    run = simulated(able(site, sized), file, questions, Events(), how)
    return run.simulated_requests_per_s


def inflated(options: PlanBench, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan and the hedged plan where demand and service times are 1.5 times the forecast."""
    site, file = _site(), _azure(options.inflated_s)
    questions = questions_of(site.catalogue, None, file)
    wanted = PlanOptions(points=0, unlimited=True, stretch_s=options.inflated_s, seed=options.seed)
    plain = Search(site, file, questions, wanted, say).cheapest(site.preference[1])
    harder = slower(site, INFLATION)
    hedging = Search(harder, busier(file, INFLATION, options.seed), questions, wanted, say)
    hedged = hedging.cheapest(site.preference[1])
    fell = hedging.tried(harder, plain.sized)
    return {
        "factor": INFLATION,
        "plain": {
            "within_target": fell.figures["within_target"],
            "as_forecast": plain.figures["within_target"],
            "usd_per_h": round(plain.usd_per_h, 4),
        },
        "hedged": {
            "within_target": hedged.figures["within_target"],
            "usd_per_h": round(hedged.usd_per_h, 4),
        },
    }
