"""One contender on one scenario, from the description of both to its figures.

    Contender, Scenario ─▶ fleet with first replicas, Scaler, router ─▶ simulate ─▶ Run

All contenders begin with the same knowledge, with replicas for the demand of the first minutes, and
start, load, bill and see telemetry alike.

What a contender may use is in `Contender`; everything else is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from infra.autoscaling.contract import Observed, Plan, Scaler
from infra.autoscaling.planner import Planner, PlannerOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.capacity.fleet import Fleet
from infra.capacity.load import rates_of
from load.bench.fleet.clairvoyant import replicas_for
from load.bench.fleet.independent import IndependentPlanner
from load.bench.fleet.rivals import (
    Policy,
    QueueLength,
    QueueLengthOptions,
    Rival,
    RivalPool,
    Utilisation,
    UtilisationOptions,
    cheapest_first,
    side_by_side,
)
from load.bench.fleet.scenario import (
    CLASSES,
    Scenario,
    ScenarioOptions,
    between,
    homogeneous,
    scenario,
    started,
    usd_per_s,
    work_s_of,
)
from load.bench.fleet.tuning import Contender
from load.data.traffic import Traffic
from load.simulation.loop.results import Run
from load.simulation.simulation import SimulationOptions, simulate
from load.simulation.warm_start import learned_state
from serve.routing.catalogue import Catalogue

# Rows of the table come again and again, which prompts do not: more would be learning by heart.
FEEDBACK_SHARE = 0.002
# What the first replicas are for: the busiest of the first ten minutes. A trace begins at once, and
# no way of scaling has had the time before it in which a fleet would have grown.
FIRST_S = 600.0
FIRST_LOAD = 0.8  # at which they have some to spare
SAMPLE = 5000  # requests whose lengths are taken, for limits and rates


@dataclass(frozen=True, slots=True)
class Fixed:
    """A scaler that never changes anything."""

    replicas: Mapping[str, int]

    def step(self, observed: Observed) -> Plan:
        """What it always says."""
        return Plan(replicas=self.replicas, routers=max(1, observed.routers))


@lru_cache(maxsize=4)
def built(name: str, options: ScenarioOptions) -> Scenario:
    """A scenario; kept, as a worker runs several contenders on it."""
    return scenario(name, options)


def run_on(
    name: str,
    options: ScenarioOptions,
    contender: Contender,
    *,
    tuning: bool,
    watched: Callable[[Scaler, float], Scaler] = lambda scaler, span_s: scaler,
) -> Run:
    """Run a contender on a scenario, or on its tuning stretch; see `run`."""
    found = built(name, options)
    if tuning:
        found = replace(found, traffic=found.tuning)
    return run(found, contender, options.seed, watched)


def run(
    of: Scenario,
    contender: Contender,
    seed: int,
    watched: Callable[[Scaler, float], Scaler] = lambda scaler, span_s: scaler,
) -> Run:
    """Run a contender; `watched` may look on at its scaler, and is told how long it will be."""
    if contender.gpu is not None:
        fleet = homogeneous(contender.gpu)
        assert fleet is not None, f"{contender.gpu} does not run every model"
        of = with_fleet(of, fleet)
    first, span_s = first_replicas(of, contender), float(of.traffic.at_s.max(initial=0.0))
    scaler = watched(scaler_of(of, contender, first), span_s)
    return simulate_with(of, first, scaler, contender, seed)


def first_replicas(of: Scenario, contender: Contender) -> dict[str, int]:
    """What every run begins with: the cheapest mix for the busiest of the first minutes.

    Side by side every pool has a replica: with none it would never be asked.
    """
    loads = np.full(len(of.fleet.pools), FIRST_LOAD)
    minutes = np.bincount((of.traffic.at_s[of.traffic.at_s < FIRST_S] // 60.0).astype(int))
    busiest_s = 60.0 * int(minutes.argmax())
    found = replicas_for(of, between(of.traffic, busiest_s, end_s=busiest_s + 60.0), loads)
    rival = contender.scaling in ("queue_length", "utilisation")
    least = int(rival and contender.layout == "side_by_side")
    return {name: max(least, replicas) for name, replicas in found.items()}


def simulate_with(
    of: Scenario, first: Mapping[str, int], scaler: Scaler, contender: Contender, seed: int
) -> Run:
    """Simulate a scenario that begins with these replicas."""
    preference = of.preference
    options = SimulationOptions(
        target=of.target,
        preference=(
            preference.quality,
            preference.per_usd,
            preference.latency,
            preference.energy,
        ),
        router_priced=contender.router_priced,
        feedback_share=FEEDBACK_SHARE,
        seed=seed,
    )
    return simulate(
        of.traffic,
        of.table,
        started(of.fleet, first),
        of.catalogue,
        scaler,
        options,
        start=lambda: learned_state(of.table, of.known, of.catalogue),
    )


def with_fleet(of: Scenario, fleet: Fleet) -> Scenario:
    """The same scenario on other pools; list prices stay as they are."""
    plans = [replace(plan, target=of.target) for plan in fleet.pools]
    pools = [plan.for_router(reports=True) for plan in plans]
    catalogue = Catalogue(of.catalogue.models, pools, of.catalogue.prompt_tokens)
    return replace(of, fleet=fleet, catalogue=catalogue)


def rival_pools(of: Scenario) -> tuple[RivalPool, ...]:
    """What rivals know of the pools: by the mean request of the trace."""
    sample = _sample(of)
    prompt, output = sample.prompt_tokens.mean(), sample.output_tokens.mean()
    mean_s = work_s_of(of.fleet, sample, of.target).mean(axis=0)
    found = []
    for pool, work_s in zip(of.fleet.pools, mean_s.tolist(), strict=True):
        rates = rates_of(pool.engine.performance, of.target)
        per_s = 1.0 / work_s
        busy = per_s * (
            rates.prompt_token_s * prompt
            + rates.output_token_s * output
            + rates.context_token_s * output * (prompt + output / 2.0)
        )
        # The iteration's time at that rate (see `learners.work`), and by Little's law who is in it.
        iteration_s = min(rates.tpot_s, rates.fixed_s / max(1.0 - busy, 1e-6))
        running = min(rates.sequences_max, per_s * output * iteration_s)
        found.append(
            RivalPool(
                name=pool.name,
                model=pool.model,
                gpu=pool.machine.name,
                gpus=pool.gpus_per_replica,
                requests_per_s=per_s,
                usd_per_hour=usd_per_s(pool) * 3600.0,
                replicas_max=pool.replicas_max,
                running=max(1.0, float(running)),
            )
        )
    return tuple(found)


def scaler_of(of: Scenario, contender: Contender, first: Mapping[str, int]) -> Scaler:
    """The contender's scaler, which begins with these replicas."""
    if contender.scaling == "static":
        return Fixed(first)
    if contender.scaling == "fairlead":
        planner = Planner if contender.sized_by_mix else IndependentPlanner
        return planner(
            started(of.fleet, first),
            {p.name: rates_of(p.engine.performance, of.target) for p in of.fleet.pools},
            of.target,
            dict(zip(of.known.models, of.known.quality.mean(axis=0).tolist(), strict=True)),
            PlannerOptions(
                sizing=SizingOptions(
                    value_usd=of.preference.quality / of.preference.per_usd,
                    criticality={name: level for name, _, level in CLASSES},
                ),
            ),
        )
    layout = cheapest_first if contender.layout == "cheapest_first" else side_by_side
    return Rival(groups=layout(rival_pools(of)), policy=_policy(contender), initial=dict(first))


def _policy(contender: Contender) -> Callable[[], Policy]:
    delay = contender.down_s
    if contender.scaling == "queue_length":
        queue = QueueLengthOptions(target=contender.target)
        queue = queue if delay is None else replace(queue, downscale_delay_s=delay)
        return lambda: QueueLength(queue)
    share = UtilisationOptions(target=contender.target)
    share = share if delay is None else replace(share, down_window_s=delay)
    return lambda: Utilisation(share)


def _sample(of: Scenario) -> Traffic:
    n = len(of.traffic)
    if n <= SAMPLE:
        return of.traffic
    rows = np.linspace(0, n - 1, SAMPLE).astype(np.intp)
    traffic = of.traffic
    return replace(
        traffic,
        at_s=traffic.at_s[rows],
        prompt_tokens=traffic.prompt_tokens[rows],
        output_tokens=traffic.output_tokens[rows],
        rows=traffic.rows[rows],
        classes=traffic.classes[rows],
    )
