"""A small whole system to be shocked: two models on four types of GPU in two regions, and who asks.

    8B:  L40S in us, L4 in eu        70B:  H100 in us, H200 in eu

Every model has a pool on another type and in another region, so that whatever goes can be replaced.
Speeds, prices and answers' qualities are those of `load.bench.fleet.scenario`, the router knows models as
one that has served for a while, and the planner sizes the fleet. Machines come in 40 s instead of
two minutes, and most of them are few: a run of twenty minutes takes a second or two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

import numpy as np

from infra.autoscaling.contract import Observed, Plan
from infra.autoscaling.planner import Planner, PlannerOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.autoscaling.sizing.stabilisation import StabilisationOptions
from infra.capacity.fleet import Fleet
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.load import rates_of
from learners.criticality import Criticality
from load.bench.fleet.scenario import gpu_types, outcomes, pool_plan, usd_per_s, work_s_of
from load.data.kinds import Kind
from load.data.tables import OutcomeTable
from load.data.traffic import Traffic
from load.simulation.loop.results import Fate, Run
from load.simulation.machines.fleet import UNIX_MS
from load.simulation.shocks import Shock
from load.simulation.simulation import SimulationOptions, simulate
from load.simulation.warm_start import halves, learned_state
from serve.routing.catalogue import Catalogue, Model
from streams.training.state import State

SMALL, LARGE = "llama-3.1-8b", "llama-3.1-70b"
SMALL_US, SMALL_EU = f"{SMALL}-l40s-us", f"{SMALL}-l4-eu"
LARGE_US, LARGE_EU = f"{LARGE}-h100-us", f"{LARGE}-h200-eu"
POOLS = (
    (SMALL, "l40s", "us"),
    (SMALL, "l4", "eu"),
    (LARGE, "h100_sxm", "us"),
    (LARGE, "h200_sxm", "eu"),
)
GPUS = {"l40s": 6, "l4": 8, "h100_sxm": 12, "h200_sxm": 12}
STARTUP_S = 40.0
FIRST = {SMALL_US: 1, LARGE_EU: 2}  # what carries the usual load
LEAST = {SMALL_US: 1}  # what is left when everything else goes
PROMPT, OUTPUT = 1000, 200  # tokens, mean
CLASSES = (
    ("top", Criticality.CRITICAL_PLUS, 0.2),
    ("middle", Criticality.CRITICAL, 0.4),
    ("low", Criticality.SHEDDABLE, 0.4),
)
TOP, MIDDLE, LOW = range(3)
PREFERENCE = (1.0, 1000.0, 0.0, 0.0)  # most prefer the large model, some for the small one
TARGET = LatencyTarget()
STEP_S = 5.0
TAIL_S = 30.0


def fleet(gpus: dict[str, int] | None = None, replicas: dict[str, int] | None = None) -> Fleet:
    """The four pools, with so many GPUs and first replicas."""
    there = GPUS | (gpus or {})
    types = {
        gpu.name: replace(gpu, available=there[gpu.name], startup_s=STARTUP_S)
        for gpu in gpu_types()
        if gpu.name in there
    }
    plans = [pool_plan(*pool) for pool in POOLS]
    first = FIRST if replicas is None else replicas
    pools = tuple(
        replace(
            plan,
            gpu=types[plan.gpu.name],
            replicas=first.get(plan.name, 0),
            replicas_min=LEAST.get(plan.name, 0),
            replicas_max=there[plan.gpu.name] // plan.gpus_per_replica,
        )
        for plan in plans
    )
    return Fleet(gpus=tuple(types.values()), pools=pools)


@cache
def tables() -> tuple[OutcomeTable, OutcomeTable]:
    """Of the two models: prompts that are asked, and others that were learned before."""
    whole = outcomes().shuffled(seed=1, n_max=800)
    return halves(whole.only((SMALL, LARGE)))


def catalogue(of: Fleet) -> Catalogue:
    """List prices are what the cheapest GPU costs for the mean request."""
    mean = work_s_of(of, traffic([(0.0, 1.0), (100.0, 1.0)]), TARGET).mean(axis=0)
    usd = [seconds * usd_per_s(pool) for seconds, pool in zip(mean, of.pools, strict=True)]
    models = []
    for model in (SMALL, LARGE):
        pools = [pool for pool in of.pools if pool.model == model]
        rates = rates_of(pools[0].emulation.performance, TARGET)
        cheapest = min(u for u, pool in zip(usd, of.pools, strict=True) if pool.model == model)
        models.append(
            Model(
                name=model,
                usd_per_1m_input_tokens=float(cheapest / (PROMPT + 2 * OUTPUT) * 1e6),
                usd_per_1m_output_tokens=float(2 * cheapest / (PROMPT + 2 * OUTPUT) * 1e6),
                output_tokens=OUTPUT,
                latency_ms=OUTPUT * rates.tpot_s / 3 * 1e3,
                context_tokens_max=pools[0].emulation.context_tokens_max,
            )
        )
    pools = [replace(plan, target=TARGET).for_router(reports=True) for plan in of.pools]
    return Catalogue(models, pools, prompt_tokens=PROMPT)


def traffic(rates: Sequence[tuple[float, float]], seed: int = 1) -> Traffic:
    """Poisson arrivals; the rate goes straight from one (second, per second) to the next."""
    rng = np.random.default_rng(seed)
    at, rate = np.array(rates).T
    second = np.arange(int(at[-1]))
    counts = rng.poisson(np.interp(second + 0.5, at, rate))
    at_s = np.sort(np.repeat(second, counts) + rng.random(int(counts.sum())))
    n = len(at_s)
    return Traffic(
        at_s=at_s,
        prompt_tokens=rng.integers(PROMPT // 2, PROMPT * 3 // 2, n),
        output_tokens=rng.integers(OUTPUT // 2, OUTPUT * 3 // 2, n),
        rows=rng.integers(0, len(tables()[0]), n),
        classes=rng.choice(len(CLASSES), n, p=[share for _, _, share in CLASSES]),
        kinds=tuple(Kind(tenant=name, criticality=level) for name, level, _ in CLASSES),
    )


@cache
def capacity_per_s() -> dict[str, float]:
    """Mean requests a second that a replica of each pool carries when it is full."""
    of = fleet()
    mean_s = work_s_of(of, traffic([(0.0, 1.0), (100.0, 1.0)]), TARGET).mean(axis=0)
    return {pool.name: 1.0 / s for pool, s in zip(of.pools, mean_s.tolist(), strict=True)}


class Watched:
    """A scaler that keeps what it was shown and what it said, by second of the run."""

    def __init__(self, scaler: Planner) -> None:
        self._scaler = scaler
        self.seen: dict[float, Observed] = {}
        self.plans: dict[float, Plan] = {}

    def step(self, observed: Observed) -> Plan:
        """The scaler's own."""
        at_s = observed.at_s - UNIX_MS / 1000.0
        self.seen[at_s] = observed
        self.plans[at_s] = self._scaler.step(observed)
        return self.plans[at_s]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shocked:
    """A run, and what was seen of it."""

    run: Run
    watched: Watched
    state: State = field(repr=False)  # as it is at the end

    def rows(self, begin_s: float, end_s: float, of_class: int | None = None) -> np.ndarray:
        """Which requests came in a stretch, of one class or all."""
        asked = self.run.traffic
        within = (asked.at_s >= begin_s) & (asked.at_s < end_s)
        return within if of_class is None else within & (asked.classes == of_class)

    def within(self, begin_s: float, end_s: float, of_class: int | None = None) -> float:
        """Share within target of those."""
        met = self.run.requests.within(self.run.traffic, self.run.target)
        return float(met[self.rows(begin_s, end_s, of_class)].mean())

    def refused(self, begin_s: float, end_s: float, of_class: int) -> float:
        """Share that was refused of those."""
        refused = self.run.requests.fate == Fate.REFUSED
        return float(refused[self.rows(begin_s, end_s, of_class)].mean())

    def quality(self, begin_s: float, end_s: float) -> float:
        """Mean of answers to who came in a stretch."""
        rows = self.rows(begin_s, end_s) & (self.run.requests.fate == Fate.FINISHED)
        return float(self.run.requests.quality[rows].mean())

    def large(self, begin_s: float, end_s: float) -> float:
        """Share of answers that the large model gave."""
        rows = self.rows(begin_s, end_s) & (self.run.requests.fate == Fate.FINISHED)
        return float((self.run.requests.model[rows] == 1).mean())

    def planned(self, at_s: float) -> dict[str, int]:
        """The plan at a time."""
        return dict(self.watched.plans[max(t for t in self.watched.plans if t <= at_s)].replicas)

    def pool(self, name: str) -> int:
        """Its place among the fleet's pools."""
        return self.run.replicas.pools.index(name)

    def within_target_everywhere(self, stretch_s: float) -> float:
        """The worst share of any stretch of this length."""
        last_s = float(self.run.traffic.at_s[-1])
        begins = np.arange(0.0, last_s - stretch_s, stretch_s).tolist()
        return min(self.within(begin_s, begin_s + stretch_s) for begin_s in begins)

    def changes(self, begin_s: float, end_s: float) -> int:
        """Replicas that plans of a stretch asked for more or fewer."""
        return sum(abs(step) for step in self._steps(begin_s, end_s))

    def fewer(self, begin_s: float, end_s: float) -> int:
        """Replicas that plans of a stretch took away."""
        return sum(max(0, -step) for step in self._steps(begin_s, end_s))

    def _steps(self, begin_s: float, end_s: float) -> Iterator[int]:
        for (_, before), (at_s, plan) in pairwise(sorted(self.watched.plans.items())):
            if begin_s <= at_s < end_s:
                yield from (plan.replicas[pool] - n for pool, n in before.replicas.items())

    def price(self, at_s: float, pool: str) -> float:
        """What the scaler was told that a pool's capacity is worth, as a multiple."""
        return self.watched.seen[at_s].pools[pool].price


def run(
    asked: Traffic,
    shocks: Sequence[Shock] = (),
    of: Fleet | None = None,
    *,
    seed: int = 0,
    **changed: object,
) -> Shocked:
    """The whole system on this traffic."""
    there = of or fleet()
    table, known = tables()
    stated = catalogue(there)
    state = learned_state(table, known, stated)
    watched = Watched(planner(there, known))
    options = SimulationOptions(
        **{
            "target": TARGET,
            "preference": PREFERENCE,
            "feedback_share": 0.002,
            "telemetry_s": 1.0,
            "scale_s": STEP_S,
            "tail_s": TAIL_S,
            "seed": seed,
            **changed,
        }
    )
    found = simulate(asked, table, there, stated, watched, options, shocks, start=lambda: state)
    return Shocked(run=found, watched=watched, state=state)


def planner(of: Fleet, known: OutcomeTable) -> Planner:
    """The scaler that serves, told what points of quality are worth to those who ask."""
    return Planner(
        of,
        {pool.name: rates_of(pool.emulation.performance, TARGET) for pool in of.pools},
        TARGET,
        dict(zip(known.models, known.quality.mean(axis=0).tolist(), strict=True)),
        PlannerOptions(
            sizing=SizingOptions(
                value_usd=PREFERENCE[0] / PREFERENCE[1],
                criticality={name: criticality for name, criticality, _ in CLASSES},
            ),
            stabilisation=StabilisationOptions(fresh_s=0.0),  # it has planned for a while
        ),
    )
