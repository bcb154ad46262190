"""Our plan against what one does by hand, judged by the same simulation with other seeds.

    one replica of the best model, by type of GPU ─▶ its highest rate within target ─┐
    the trace's busiest minute × 1.3 ─────────────────────────────────────────────────┴─▶ by hand
    the cheapest fleet of no less quality ────────────────────────────────────────────▶ ours
    the same for 1.3 times as many users ─────────────────────────────────────────────▶ with reserve

By hand: the best model at the site's own weight of cost that can keep the target at all, on the
type of GPU on which it is cheapest, as many replicas as the busiest minute times 1.3 takes, rounded
up. A replica's rate is measured as a load test would: Poisson arrivals, the trace's own lengths.
That fleet has a reserve, and ours has none: so another one of ours is made for as many more users,
and all three are judged with them, too.

A rate of less than one request in four seconds counts as none: dozens of replicas would be dear.

The one rule: neither plan is judged on the draws that it was made with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from load.planning.compare import interval
from load.planning.events import Events
from load.planning.plan import busier
from load.planning.questions import questions_of, traffic_of
from load.planning.search import (
    PlanOptions,
    Point,
    Search,
    able,
    fleet_of_replicas,
    gpus_of,
)
from load.planning.simulating import SimulateOptions, simulated
from load.planning.site import Site
from load.planning.sizing import busiest_per_s, demand_of
from load.simulation.loop.results import Run
from load.traces.made import MadeOptions, made
from load.traces.reading import TraceFile

HEADROOM = 1.3
TEST_S, TEST_REQUESTS = 120.0, 300.0  # a load test is at least so long, and has about so many
RATE_MIN = 0.25  # requests per second
HALVINGS = 4  # of the factor two between a rate that was kept and one that was not: 4 % apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Hand:
    """A plan made by hand."""

    model: str
    pool: str
    replicas: int
    one_replica_per_s: float
    usd_per_h: float


def by_hand(
    site: Site, file: TraceFile, seeds: Sequence[int], say: Callable[[str], None]
) -> dict[str, Any]:
    """All plans, each made with seed 0 and judged with `seeds`: cost, target and quality."""
    questions = questions_of(site.catalogue, None, file)
    wanted = PlanOptions(points=0, unlimited=True, stretch_s=float(file.trace.at_s[-1]))
    search = Search(site, file, questions, wanted, say)
    hand = planned_by_hand(search)
    fleet = fleet_of_replicas(site, {hand.pool: hand.replicas})
    theirs = search.tried(site, fleet)

    def afresh(file: TraceFile) -> Search:
        """Knows nothing of what was found, but for how good it is with these very requests."""
        quality = Search(site, file, questions, wanted, say).tried(site, fleet).figures["quality"]
        least = math.floor(quality * 1e3) / 1e3
        return Search(site, file, questions, replace(wanted, quality_min=least), say)

    search, more = afresh(file), afresh(busier(file, HEADROOM, wanted.seed))
    ours, why = planned(search)
    reserved, _ = planned(more)
    found: dict[str, Any] = {"by_hand": _described(site, hand)}
    if ours is None or reserved is None:
        return found | {"cost_ratio": None, "missing": why}
    return {
        **found,
        **_judged(search, ours, theirs, seeds),
        "with_more_users": _judged(more, ours, theirs, seeds),
        "with_reserve": _judged(more, reserved, theirs, seeds),
    }


def planned(search: Search) -> tuple[Point | None, str]:
    """Ours; none, and why."""
    chosen, why = search.chosen(search.frontier())
    return (None if chosen is None else search.trimmed(chosen)), why


def planned_by_hand(search: Search) -> Hand:
    """The first of the models, best first, of which a replica keeps the target at some rate."""
    site = search.site
    peak = HEADROOM * busiest_per_s(search.file.trace.at_s)
    for model in _best_first(search):
        plans = [plan for plan in site.fleet.pools if plan.model == model]
        hands = []
        for plan in {plan.machine.name: plan for plan in plans}.values():
            rate = one_replica_per_s(search, plan.name)
            if not rate:
                continue
            n = math.ceil(peak / rate)
            search.say(f"by hand: {n} x {plan.name}, of which one keeps {rate:.2f} a second")
            hands.append(
                Hand(
                    model=model,
                    pool=plan.name,
                    replicas=n,
                    one_replica_per_s=rate,
                    usd_per_h=n * plan.usd_per_hour,
                )
            )
        if hands:
            return min(hands, key=lambda one: one.usd_per_h)
    raise AssertionError("no model of the site keeps its target on any GPU")


def _best_first(search: Search) -> list[str]:
    site, questions = search.site, search.questions
    traffic = traffic_of(search.file, questions, np.random.default_rng(0))
    demand = demand_of(traffic, site, questions, search.file.clock_s)
    quality, per_usd, _, _ = site.preference
    worth = quality * demand.worth.mean(axis=0) - per_usd * demand.usd.mean(axis=0)
    return [site.catalogue.names[column] for column in np.argsort(-worth)]


def one_replica_per_s(search: Search, pool: str) -> float:
    """The highest rate at which a single replica keeps the target; 0 if at none."""
    rate = 1.0
    if _keeps(search, pool, rate):
        while _keeps(search, pool, 2.0 * rate):
            rate *= 2.0
    else:
        while not _keeps(search, pool, rate := rate / 2.0):
            if rate <= RATE_MIN:
                return 0.0
    factor = 2.0
    for _ in range(HALVINGS):
        factor = math.sqrt(factor)
        rate = rate * factor if _keeps(search, pool, rate * factor) else rate
    return rate


def _keeps(search: Search, pool: str, rate: float) -> bool:
    seconds = max(TEST_S, TEST_REQUESTS / rate)
    how = MadeOptions(kind="poisson", requests_per_s=rate, seconds=seconds)
    trace = made(how, search.file.trace, np.random.default_rng(0))
    test = TraceFile(trace=trace, format="made", rows=len(trace))
    fleet = fleet_of_replicas(search.site, {pool: 1})
    return search.simulate(search.site, fleet, test).within_target >= search.options.share


def _described(site: Site, hand: Hand) -> dict[str, Any]:
    return {
        "model": hand.model,
        "gpus": gpus_of(site, fleet_of_replicas(site, {hand.pool: hand.replicas})),
        "one_replica_per_s": round(hand.one_replica_per_s, 3),
        "usd_per_h": round(hand.usd_per_h, 4),
    }


def _judged(search: Search, ours: Point, theirs: Point, seeds: Sequence[int]) -> dict[str, Any]:
    """What ours has more, over seeds; a fleet costs the same whatever the seed."""
    rows = []
    for seed in seeds:
        pair = [_run(search, point, seed) for point in (ours, theirs)]
        rows.append([(run.within_target, run.quality) for run in pair])
    figures = np.array(rows, float)
    more = figures[:, 0] - figures[:, 1]

    def of(plan: int) -> dict[str, Any]:
        within, quality = figures[:, plan].T
        return {
            "within_target": round(float(within.mean()), 6),
            "within_target_least": round(float(within.min()), 6),
            "quality": round(float(quality.mean()), 6),
        }

    return {
        "cost_ratio": round(ours.usd_per_h / theirs.usd_per_h, 4),
        "gpus": gpus_of(search.site, ours.sized),
        "usd_per_h": round(ours.usd_per_h, 4),
        **of(0),
        "judged_by_hand": of(1),
        "more_within_target": interval(more[:, 0]),
        "more_quality": interval(more[:, 1]),
    }


def _run(search: Search, point: Point, seed: int) -> Run:
    site = able(search.site.with_cost_weight(point.per_usd), point.sized)
    how = SimulateOptions(seed=seed, feedback_share=0.0, scales=False)
    return simulated(site, search.file, search.questions, Events(), how)
