"""More than the whole fleet can carry: how far it goes by answering with smaller models.

    static   every GPU runs the largest model      ──bisection──▶ the most it holds within target
    Fairlead any model on any GPU of that market   ──a ramp to a multiple of that, and it stays──▶
                                                   share within target, quality

The rate gained is the largest multiple that was tried at which at least 95 % of the requests at the
top of the ramp were within the target; beside it stand what they lost in quality, and what would be
gained if every GPU ran the model that carries most on it, at full load. Beside the scenario's
four models there is one of last resort: without it even that would be less than seven times.

Both have the same GPUs, and all of them may run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from infra.capacity.fleet import Fleet
from load.bench.fleet.runs import Fixed, run, simulate_with, with_fleet
from load.bench.fleet.scenario import (
    LAST_RESORT,
    MODELS,
    Scenario,
    ScenarioOptions,
    catalogue_of,
    everywhere,
    outcomes,
    scenario,
    work_s_of,
)
from load.bench.fleet.tuning import FAIRLEAD, Contender
from load.data.traffic import Traffic
from load.simulation.loop.results import Fate, Run
from load.simulation.warm_start import halves
from serve.routing.catalogue import Catalogue, Pool

LARGEST = "llama-3.1-70b"
STATIC = Contender(scaling="static")


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadOptions:
    """How it is tried."""

    market_share: float = 0.5  # of the GPUs: a bench of all of them would take twice as long
    within_static: float = 0.99
    within_min: float = 0.95
    static_s: float = 240.0
    halvings: int = 4  # of the static fleet's rate
    ramp_s: float = 480.0  # longer than a machine takes to come
    settle_s: float = 600.0  # some GPUs change hands more than once, where no machine is there yet
    top_s: float = 180.0
    multiples: tuple[float, ...] = (8.0, 11.0, 14.0)  # and two more in the gap above what holds
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What a rate is a multiple of."""

    requests_per_s: float  # that the static fleet holds
    quality: float  # of its model, on average
    full_per_s: float  # at full load on the same GPUs, of the models that carry most


def shrunk(of: Scenario, share: float) -> Scenario:
    """The same with a part of every type's GPUs."""
    gpus = tuple(replace(gpu, available=int(gpu.available * share)) for gpu in of.fleet.gpus)
    by_name = {gpu.name: gpu for gpu in gpus}
    pools = tuple(
        replace(
            pool,
            gpu=by_name[pool.machine.name],
            replicas_max=max(1, by_name[pool.machine.name].available // pool.gpus_per_replica),
        )
        for pool in of.fleet.pools
    )
    return with_fleet(of, Fleet(gpus=gpus, pools=pools))


def steady(of: Scenario, rates: Sequence[tuple[float, float]], seed: int) -> Traffic:
    """Poisson arrivals whose rate goes straight from one (second, rate) to the next."""
    rng = np.random.default_rng([seed, 77])
    at, rate = np.array(rates).T
    second = np.arange(int(at[-1]))
    counts = rng.poisson(np.interp(second + 0.5, at, rate))
    at_s = np.sort(np.repeat(second, counts) + rng.random(int(counts.sum())))
    rows = rng.integers(0, len(of.traffic), len(at_s))
    lengths = of.traffic
    return replace(
        lengths,
        at_s=at_s,
        prompt_tokens=lengths.prompt_tokens[rows],
        output_tokens=lengths.output_tokens[rows],
        rows=rng.integers(0, len(of.table), len(at_s)),
        classes=lengths.classes[rows],
    )


def static_scenario(of: Scenario) -> Scenario:
    """The largest model on every GPU that can run it, and no other."""
    large = everywhere(LARGEST)
    available = {gpu.name: gpu.available for gpu in of.fleet.gpus}
    pools = tuple(p for p in large.pools if available[p.machine.name] >= p.gpus_per_replica)
    model = of.catalogue.models[of.catalogue.column_of[LARGEST]]
    named = [Pool(name=pool.name, model=pool.model, region=pool.region) for pool in pools]
    return replace(
        of,
        fleet=Fleet(gpus=of.fleet.gpus, pools=pools),
        table=of.table.only([LARGEST]),
        known=of.known.only([LARGEST]),
        catalogue=Catalogue([model], named, of.catalogue.prompt_tokens),
    )


def static_rate(of: Scenario, options: OverloadOptions) -> float:
    """The most requests per second that the static fleet holds within the target."""
    of = static_scenario(of)
    available = {gpu.name: gpu.available for gpu in of.fleet.gpus}
    replicas = {p.name: available[p.machine.name] // p.gpus_per_replica for p in of.fleet.pools}
    work_s = work_s_of(of.fleet, of.traffic, of.target).mean(axis=0)
    most = sum(replicas[p.name] / w for p, w in zip(of.fleet.pools, work_s.tolist(), strict=True))
    low, high = 0.25 * most, 1.1 * most
    for _ in range(options.halvings):
        middle = (low + high) / 2
        rates = [(0.0, middle), (options.static_s, middle)]
        tried = replace(of, traffic=steady(of, rates, options.seed))
        done = simulate_with(tried, replicas, Fixed(replicas), STATIC, options.seed)
        if _within(done, options.static_s / 4) >= options.within_static:
            low = middle
        else:
            high = middle
    return low


def at_multiple(
    of: Scenario, base: float, *, multiple: float, options: OverloadOptions
) -> dict[str, Any]:
    """What comes of a ramp to so many times the base rate.

    Shares within the target: of all at the top, and of the highest class all the way.
    """
    judged_s = options.ramp_s + options.settle_s
    end_s = judged_s + options.top_s
    rates = [(0.0, base), (options.ramp_s, base * multiple), (end_s, base * multiple)]
    done = run(replace(of, traffic=steady(of, rates, options.seed)), FAIRLEAD, options.seed)
    top = (done.traffic.at_s >= judged_s) & (done.requests.fate == Fate.FINISHED)
    criticality = np.array(done.traffic.criticality)
    level = criticality[done.traffic.classes]
    highest = level == level.max()
    quality = float(done.requests.quality[top].mean()) if top.any() else 0.0
    return {
        "multiple": multiple,
        "within_target": _within(done, judged_s),
        "highest_class": float(done.requests.within(done.traffic, done.target)[highest].mean()),
        "quality": quality,
    }


def _within(done: Run, from_s: float) -> float:
    judged = done.traffic.at_s >= from_s
    return float(done.requests.within(done.traffic, done.target)[judged].mean())


def tried_scenario(options: ScenarioOptions, overload: OverloadOptions) -> Scenario:
    """Azure's lengths on a part of the market, every model on every type that can run it."""
    of = scenario("azure", options)
    table, known = halves(outcomes())
    fleet = everywhere(*MODELS, *LAST_RESORT)
    catalogue = catalogue_of(fleet, of.traffic, of.target)
    of = replace(of, table=table.only(catalogue.names), known=known.only(catalogue.names))
    return shrunk(replace(of, fleet=fleet, catalogue=catalogue), overload.market_share)


def base_of(of: Scenario, options: OverloadOptions) -> Base:
    """Of a scenario's GPUs."""
    quality = of.table.quality[:, of.table.models.index(LARGEST)].mean()
    return Base(
        requests_per_s=static_rate(of, options), quality=float(quality), full_per_s=full_rate(of)
    )


def full_rate(of: Scenario) -> float:
    """Requests per second if every GPU ran, at full load, the model that carries most on it."""
    work_s = work_s_of(of.fleet, of.traffic, of.target).mean(axis=0).tolist()
    best: dict[str, float] = {}
    for pool, each_s in zip(of.fleet.pools, work_s, strict=True):
        carried = pool.machine.available // pool.gpus_per_replica / each_s
        best[pool.machine.name] = max(best.get(pool.machine.name, 0.0), carried)
    return sum(best.values())


RunMultiples = Callable[[float, Sequence[float]], Sequence[dict[str, Any]]]


def search(base: float, options: OverloadOptions, run_all: RunMultiples) -> list[dict[str, Any]]:
    """All multiples that were tried, in their order: the given ones, and then between."""
    tried = sorted(run_all(base, options.multiples), key=lambda one: one["multiple"])
    held = [one for one in tried if one["within_target"] >= options.within_min]
    low = max((one["multiple"] for one in held), default=1.0)
    above = [one["multiple"] for one in tried if one["multiple"] > low]
    if above:
        gap = min(above) - low
        tried += run_all(base, [low + gap / 3, low + 2 * gap / 3])
    return sorted(tried, key=lambda one: one["multiple"])


def summed_up(
    base: Base, tried: Sequence[dict[str, Any]], options: OverloadOptions
) -> dict[str, Any]:
    """For JSON. Where no multiple holds, the least one is stated with what it reached."""
    held = [one for one in tried if one["within_target"] >= options.within_min]
    best = held[-1] if held else tried[0]
    return {
        "rate_gain": round(best["multiple"] if held else 0.0, 2),
        "within_target": round(best["within_target"], 4),
        "quality_loss": round(base.quality - best["quality"], 4),
        "static_requests_per_s": round(base.requests_per_s, 1),
        "most_possible": round(base.full_per_s / base.requests_per_s, 2),
        "tried": {
            f"{one['multiple']:.2f}": {
                "within_target": round(one["within_target"], 4),
                "highest_class": round(one["highest_class"], 4),
                "quality": round(one["quality"], 4),
            }
            for one in tried
        },
    }
