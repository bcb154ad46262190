"""The answer to "what would I have to buy": a plan, verified, with its frontier and what-ifs.

    Search ─▶ frontier ─▶ chosen, trimmed ─▶ verified on all of the trace
                                          ─▶ as it would be if it followed demand
                                          ─▶ sensitivity: growth, bursts, prices, a lost zone, 1.5 ×
    the same for demand and service times 1.5 times the forecast ─▶ hedged

The one rule: the first lines are true of all the trace, or say that no plan was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from load.data import traces
from load.planning.events import Events
from load.planning.figures.summary import percentiles, summary
from load.planning.inflated import dearer, slower
from load.planning.questions import Questions
from load.planning.search import (
    PlanOptions,
    Point,
    Search,
    able,
    gpus_of,
    only_model,
    stretch_of,
)
from load.planning.simulating import Say, SimulateOptions, simulated
from load.planning.site import Site
from load.planning.sizing import Sized
from load.shares import percent
from load.simulation.loop.results import Fate, Run
from load.simulation.shocks import PoolBack, PoolLost, RegionBack, RegionLost, Shock, What
from load.traces.made import burstier
from load.traces.reading import TraceFile

INFLATION = 1.5
AGAIN_MAX = 6  # fleets that are tried instead of one that all of the trace is too much for


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Planned:
    """A fleet and what it does on all of the trace."""

    point: Point
    run: Run
    site: Site  # with the weight of cost


def plan(
    site: Site, file: TraceFile, questions: Questions, options: PlanOptions, say: Say
) -> tuple[dict[str, Any], Sized | None, float]:
    """The whole answer as JSON, the fleet, and the weight of cost that routers are to have."""
    search = Search(site, file, questions, options, say)
    frontier = search.frontier()
    chosen, why = search.chosen(frontier)
    found: dict[str, Any] = {
        "share": options.share,
        "budget_usd_per_h": options.budget_usd_per_h,
        "quality_min": options.quality_min,
        "feasible": chosen is not None,
        "reason": why,
        "frontier": [described(search, point, questions) for point in _sorted(frontier)],
    }
    if chosen is None:
        return (
            found
            | dict.fromkeys(("plan", "verified", "autoscaled", "hedged"))
            | {"sensitivity": []},
            None,
            site.preference[1],
        )
    planned = _verified(search, chosen, say)
    found["frontier"] = [described(search, point, questions) for point in _sorted(search.best())]
    verified = summary(planned.run, planned.site, quality_known=questions.quality_known)
    found["feasible"] = search.keeps(
        within_target=planned.run.within_target, quality=planned.run.quality
    )
    found["reason"] = _why_not(planned.run, options)
    found["plan"] = described(search, planned.point, questions)
    found["verified"] = verified
    say("as it would be if replicas followed demand")
    found["autoscaled"] = _autoscaled(search, planned, questions)
    found["sensitivity"] = _sensitivity(search, planned, questions, say)
    say(f"the plan for demand and service times {INFLATION} times the forecast")
    found["hedged"] = hedged(search, planned, questions, say)
    return found, planned.point.sized, planned.point.per_usd


def _why_not(run: Run, options: PlanOptions) -> str:
    """What a fleet lacks on all of the trace; nothing, if nothing."""
    if run.within_target < options.share:
        return (
            f"on all of the trace {percent(run.within_target)} are within target, not "
            f"{percent(options.share)}: more GPUs would be needed than there are"
            + ("" if options.budget_usd_per_h is None else ", or than the budget pays for")
        )
    if run.quality < (options.quality_min or 0.0):
        return (
            f"on all of the trace quality is {run.quality:.4f}, not {options.quality_min:g}: it is "
            "higher in the busiest stretch, by which fleets are chosen"
        )
    return ""


def _sorted(frontier: list[Point]) -> list[Point]:
    return sorted(frontier, key=lambda point: (point.usd_per_h, -point.figures["quality"]))


def described(search: Search, point: Point, questions: Questions) -> dict[str, Any]:
    """A point of the frontier, or the plan, as JSON."""
    site, fleet = search.site, point.sized
    return {
        "cost_weight": point.per_usd,
        "gpus": gpus_of(site, fleet),
        "pools": {
            plan.name: {
                "model": plan.model,
                "gpu": plan.machine.name,
                "region": plan.region,
                "replicas": fleet.replicas[plan.name],
                "gpus_per_replica": plan.gpus_per_replica,
            }
            for plan in site.fleet.pools
            if fleet.replicas.get(plan.name)
        },
        "usd_per_h": round(point.usd_per_h, 4),
        "hosted_usd_per_h": round(point.hosted_usd_per_h, 4),
        "within_target": point.figures["within_target"],
        "quality": point.figures["quality"] if questions.quality_known else None,
        "joules_per_request": point.figures["joules_per_request"],
        "meets": point.meets,
    }


def _verified(search: Search, chosen: Point, say: Say) -> Planned:
    """On all of the trace. Where that is too much for a fleet, the next best is taken."""
    say("the plan is verified on all of the trace")
    planned = _simulated(search, chosen)
    for _ in range(AGAIN_MAX):
        within_target, quality = planned.run.within_target, planned.run.quality
        if search.keeps(within_target=within_target, quality=quality):
            break
        say(f"{_why_not(planned.run, search.options)}; the next best fleet is tried")
        search.fell_short(planned.point, within_target=within_target, quality=quality)
        other, _ = search.chosen(search.best())
        if other is None:
            break
        planned = _simulated(search, other)
    return planned


def _simulated(search: Search, chosen: Point) -> Planned:
    point, site = search.trimmed(chosen), search.site.with_cost_weight(chosen.per_usd)
    return Planned(point=point, run=search.simulate(site, point.sized, search.file), site=site)


def _autoscaled(search: Search, planned: Planned, questions: Questions) -> dict[str, Any]:
    """The planned fleet as the most there is, its replicas following demand."""
    site = able(planned.site, planned.point.sized)
    pools = tuple(replace(p, replicas_max=p.replicas, replicas_min=0) for p in site.fleet.pools)
    site = replace(site, fleet=replace(site.fleet, pools=pools))
    options = SimulateOptions(seed=search.options.seed, feedback_share=0.0, scales=True)
    run = simulated(site, search.file, questions, Events(), options, search.say)
    return _brief(run, site, questions)


def _brief(run: Run, site: Site, questions: Questions) -> dict[str, Any]:
    found = summary(run, site, quality_known=questions.quality_known)
    keys = ("within_target", "ttft_ms", "tpot_ms", "quality")
    return {key: found[key] for key in keys} | {
        "usd_per_h": found["cost"]["usd_per_h"],
        "refused": found["refused"],
        "unfinished": found["unfinished"],
    }


def _sensitivity(
    search: Search, planned: Planned, questions: Questions, say: Say
) -> list[dict[str, Any]]:
    """The same fleet where the busiest stretch, or the world, is other than expected."""
    stretch, site, fleet = search.stretch, planned.site, planned.point.sized
    found = []

    def case(name: str, site: Site, file: TraceFile, events: Events | None = None) -> None:
        options = SimulateOptions(seed=search.options.seed, feedback_share=0.0, scales=False)
        run = simulated(able(site, fleet), file, questions, events or Events(), options, say)
        ttft = percentiles(run.requests.ttft_s * 1e3, wanted_of(run))
        brief = _brief(run, site, questions)
        held = brief["within_target"] >= search.options.share
        found.append({"case": name, "held": held, "ttft_ms_p99": ttft["p99"], **brief})
        say(f"{name}: {percent(brief['within_target'])} within target")

    case("as planned", site, stretch)
    for growth in (1.2, INFLATION):
        case(f"demand x {growth:g}", site, busier(stretch, growth, search.options.seed))
    bursty = stretch.with_trace(burstier(stretch.trace, 2.0), np.arange(len(stretch.trace)))
    case("twice as bursty", site, bursty)
    case(f"service times x {INFLATION:g}", slower(site, INFLATION), stretch)
    case(
        f"demand and service times x {INFLATION:g}",
        slower(site, INFLATION),
        busier(stretch, INFLATION, search.options.seed),
    )
    case("GPU prices x 1.5", dearer(site, 1.5), stretch)
    for name, what, back in _zones(site, fleet):
        case(f"{name} lost", site, stretch, _lost(what, back, stretch))
    return found


def wanted_of(run: Run) -> int:
    """Requests that rules did not refuse."""
    return len(run.traffic) - run.count(Fate.RULED_OUT)


def busier(file: TraceFile, factor: float, seed: int) -> TraceFile:
    """So many times as many users."""
    return file.with_trace(traces.scaled(file.trace, factor, np.random.default_rng([seed, 3])))


def _zones(site: Site, fleet: Sized) -> list[tuple[str, What, What]]:
    """What may be lost at once: each region, and each pool that is said to be in none."""
    used = [plan for plan in site.fleet.pools if fleet.replicas.get(plan.name)]
    regions = sorted({plan.region for plan in used if plan.region})
    return [
        *((f"zone {one}", RegionLost(region=one), RegionBack(region=one)) for one in regions),
        *(
            (f"pool {plan.name}", PoolLost(pool=plan.name), PoolBack(pool=plan.name))
            for plan in used
            if not plan.region
        ),
    ]


def _lost(what: What, back: What, file: TraceFile) -> Events:
    """For a third of the stretch, in its middle."""
    third_s = float(file.trace.at_s[-1]) / 3.0
    return Events(shocks=(Shock(at_s=third_s, what=what), Shock(at_s=2 * third_s, what=back)))


def hedged(search: Search, planned: Planned, questions: Questions, say: Say) -> dict[str, Any]:
    """The cheapest that holds at 1.5 times the forecast, of the quality that was asked for.

    That is the plan if it does. Else more of the same is tried, its model alone on other GPUs, and
    where neither will do others beside it. What it costs is told, whatever the budget.
    """
    floor = search.options.quality_min or 0.0
    options = replace(search.options, points=0, quality_min=0.0, budget_usd_per_h=None)
    file = busier(stretch_of(search.file, options.stretch_s), INFLATION, options.seed)
    harder = slower(planned.site, INFLATION)
    hedging = Search(harder, file, questions, options, say)
    plain = hedging.tried(harder, planned.point.sized)

    def as_forecast(point: Point) -> Point:
        return search.tried(planned.site, point.sized)

    def is_good(point: Point) -> bool:
        return as_forecast(point).figures["quality"] >= floor

    point = plain if plain.meets else _holding(hedging, planned.point, is_good)
    calm = as_forecast(point)
    return {
        **described(hedging, point, questions),
        "usd_per_h": round(calm.usd_per_h, 4),
        "hosted_usd_per_h": round(calm.hosted_usd_per_h, 4),
        "within_target_as_forecast": calm.figures["within_target"],
        "usd_per_h_more": round(calm.usd_per_h - planned.point.usd_per_h, 4),
        "held": point.meets and is_good(point),
        "plain_within_target": plain.figures["within_target"],
    }


def _holding(hedging: Search, plan: Point, is_good: Callable[[Point], bool]) -> Point:
    """The cheapest of what was tried that holds; what comes nearest, if nothing does."""
    alone = only_model(hedging.site, plan.sized)
    hedging.more_of(hedging.site, plan.sized)
    point = hedging.cheapest(plan.per_usd, alone)
    if alone and not point.meets:
        hedging.cheapest(plan.per_usd)
    for one in sorted(hedging.best(), key=lambda one: one.usd_per_h):
        if one.meets and is_good(one):
            less = hedging.trimmed(one)
            return less if is_good(less) else one
    return max(hedging.best(), key=lambda one: one.figures["within_target"])
