"""What is required of each pool: what is asked, made asks and offers of one integer programme.

    Workload (asks, pools) ── by model, likely or not ──▶ asks   ─┐
    quality lost where another model answers ─────────────────────┼─▶ mix of all ─▶ Requirement
    how full a pool may be, prices of GPUs, limits ─────▶ offers ─┘

How full a pool may be depends on how many replicas it has: the mix is solved for as many as there
are, and once more if the answer is another number. What nobody is to carry has a price above all
others, higher for classes that are more critical.

Between two mixes it is money that decides. Quality and refusals are weighed in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.demand.expected import ExpectedDemand
from infra.autoscaling.demand.workload import Unknown, Workload, by_model, summed, workload_of
from infra.autoscaling.sizing.cold_starts import stated_s
from infra.autoscaling.sizing.mix import (
    Ask,
    Mix,
    MixOptions,
    Offer,
    Unmet,
    cheapest,
    merged,
    part_of,
)
from infra.autoscaling.sizing.requirement import Requirement, fullness, requirement_of
from infra.autoscaling.sizing.solution_cache import Problem, SolutionCache, SolutionCacheOptions
from infra.autoscaling.sizing.stabilisation import Limits
from infra.capacity.fleet import PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.queueing import load_max
from learners.criticality import Criticality
from learners.work import WorkRates, WorkTable

Floats = NDArray[np.float64]
WORK_LEAST = 1e-3  # replicas' worth: what is less drowns in the solver's tolerance of 1e-6
PREFERENCE_SHARE = 1e-3  # of a request's value: between equals the preferred model
# Of all demand, that tells how much better a model is: all of it would say "without bound".
SHARE_MAX = 0.8
# How often a margin comes, on average: from the median of a normal distribution to its 0.9
# quantile. So another model may answer it, where that is cheaper.
CHANCE = 0.27
PARTS = 2  # of what wants a model
FULL_ALIKE = 0.05  # a pool may be fuller or emptier by so much than it was thought to


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingOptions:
    """What things are worth, and what is taken where nothing is known."""

    value_usd: float = 0.05  # of a point of quality, for one request: as routers take it
    criticality: Mapping[str, Criticality] = field(default_factory=dict)  # missing: CRITICAL
    # Of how full a pool may be, it is planned to be: loads swing within a minute, and where there
    # is nothing to spare the swings have a price.
    filled: float = 0.9
    cv2: float = 1.0  # squared variation of work within a class, where lengths are not known
    lead_s: float = 30.0  # beside the start: until a plan is made and carried out
    lead_s_max: float = 900.0  # forecasts end there
    rate_least: float = 1e-3  # requests/s; less is nothing
    prompt_tokens: float = 1000.0  # until a length is known
    output_tokens: float = 250.0
    kept: SolutionCacheOptions = field(default_factory=SolutionCacheOptions)


class Sizing:
    """Of a fleet's pools with GPUs."""

    def __init__(
        self,
        pools: Mapping[str, PoolPlan],
        rates: Mapping[str, WorkRates],
        target: LatencyTarget,
        quality: Mapping[str, float],
        options: SizingOptions,
        mix: MixOptions,
    ) -> None:
        self._pools, self._names = dict(pools), list(pools)
        self._models = [pool.model for pool in pools.values()]
        self._rates = {name: rates[name] for name in pools}
        self._table = WorkTable([rates[name] for name in pools])
        self._target, self.quality = target, dict(quality)
        self.criticality = dict(options.criticality)
        self._options, self._mix = options, mix
        self._unknown = Unknown(
            prompt_tokens=options.prompt_tokens,
            output_tokens=options.output_tokens,
            cv2=options.cv2,
        )
        self.lead_s: dict[str, float] = {}
        for name, pool in pools.items():
            self.start_within(name, stated_s(pool))
        self._last = SolutionCache(options.kept)

    def start_within(self, name: str, start_s: float) -> None:
        """Plan a pool for the time at which replicas that take so long to start will be ready."""
        self.lead_s[name] = min(start_s + self._options.lead_s, self._options.lead_s_max)

    def learn(self, quality: Mapping[str, float], criticality: Mapping[str, Criticality]) -> None:
        """Take what is known by now of models and of classes; it counts in the next solution."""
        self.quality.update((name, one) for name, one in quality.items() if 0.0 <= one <= 1.0)
        self.criticality.update(criticality)

    def together(
        self,
        demand: ExpectedDemand,
        factors: Mapping[str, float],
        usd_per_hour: Mapping[str, float],
        now: Mapping[str, int],
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
    ) -> Requirement:
        """The cheapest mix; that of the last step where nothing changed, or nothing was found.

        `factors` are on the work of each pool.
        """
        if not self._names:
            return requirement_of({}, {})
        o, lead_s = self._options, [self.lead_s[name] for name in self._names]
        factor = [factors.get(name, 1.0) for name in self._names]
        load = workload_of(demand, self._table, lead_s, factor, self._unknown, o.rate_least)
        problem = Problem(
            at_s=demand.at_s, load=load, usd_per_hour=usd_per_hour, limits=limits, gpus=gpus
        )
        if not self._last.holds(problem):
            found = self._solve(problem, now)
            if found is not None:
                self._last.keep(*found, problem)
        unchanged = {name: now.get(name, 0) for name in self._names}
        required = self._last.required or requirement_of(unchanged, self.lead_s)
        required.demand_now = by_model(load.keys, load.rate_now)
        return required

    def fullness(self, pools: Mapping[str, PoolCondition]) -> dict[str, float]:
        """What ready replicas are thought to carry now, of what they are planned to."""
        required = self._last.required
        return {} if required is None else fullness(required, pools)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._last.as_dict()

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """What `as_dict` said."""
        self._last.restore(saved)

    # --- the programme

    def _solve(
        self, problem: Problem, now: Mapping[str, int]
    ) -> tuple[Requirement, list[list[float]]] | None:
        load, gpus = problem.load, problem.gpus
        asks = self._asks(load, problem.usd_per_hour)
        full = self._full(load, [now.get(name, 0) for name in self._names])
        mix = cheapest(asks, self._offers(full, problem, now), gpus, self._mix)
        if mix is None:
            return None
        again, had = self._full(load, mix.replicas), np.array(mix.replicas) > 0
        if (np.abs(np.array(again) - full) > FULL_ALIKE)[had].any():
            full = again
            mix = cheapest(asks, self._offers(full, problem, now), gpus, self._mix) or mix
        return self._required(merged(mix, asks, PARTS), load, full)

    def _full(self, load: Workload, counts: Sequence[int]) -> list[float]:
        """How full each pool may be with so many replicas, of those who want its model."""
        found = []
        for k, name in enumerate(self._names):
            mean = load.mean(k, self._models[k])
            full = load_max(
                self._rates[name],
                self._target,
                mean.prompt_tokens,
                output_tokens_mean=mean.output_tokens,
                cv2=mean.cv2,
                replicas=max(1, counts[k]),
            )
            found.append(self._options.filled * full)
        return found

    def _offers(
        self, full: Sequence[float], problem: Problem, now: Mapping[str, int]
    ) -> list[Offer]:
        found = []
        for name, load in zip(self._names, full, strict=True):
            usd, limit = usd_per_s(self._pools[name], problem.usd_per_hour), problem.limits[name]
            found.append(
                Offer(
                    pool=name,
                    gpu=limit.gpu,
                    gpus_per_replica=limit.gpus_per_replica,
                    usd_per_s=usd,
                    start_usd=usd * self.lead_s[name],
                    load_max=load,
                    least=limit.least,
                    most=limit.most,
                    now=now.get(name, 0),
                )
            )
        return found

    def _asks(self, load: Workload, usd_per_hour: Mapping[str, float]) -> list[Ask]:
        """Two for each model that is wanted, and two more for those whom no other may answer: what
        is likely to come, and the rest, of which a loss counts as often as that comes.
        """
        o = self._options
        usd = np.array([usd_per_s(pool, usd_per_hour) for pool in self._pools.values()])
        a_replica = float(usd.max(initial=0.0)) * (self._mix.horizon_s + o.lead_s_max)
        free = load.rate[[not key.fixed for key in load.keys]].sum()
        found = []
        for (model, fixed), of in load.grouped().items():
            requests_per_s, asked = load.rate[of].sum(axis=0), load.asked[of].sum(axis=0)
            mean_s = np.average(load.work_s[of], axis=0, weights=load.rate[of].max(axis=1))
            request_usd = self._request_usd(usd * mean_s)
            share = 0.0 if fixed else float(requests_per_s.sum() / free)
            loss = np.array(
                [self._loss_usd(model, other, request_usd, share) for other in self._models]
            )
            if fixed:
                loss[[other != model for other in self._models]] = np.inf
            dearest = o.value_usd + 2.0 * float((usd * load.work_s[of]).max(initial=0.0))
            requests = float(requests_per_s.max(initial=0.0)) * self._mix.horizon_s
            refused_usd, each = 2.0 * max(requests * dearest, a_replica), load.rate[of].max(axis=1)
            parts = tuple(
                Unmet(share=float(one / each.sum()), usd=self._rank(load.keys[i][0]) * refused_usd)
                for i, one in zip(of, each, strict=True)
            )
            whole = Ask(
                work_per_s=tuple(np.maximum(asked, WORK_LEAST).tolist()),
                loss_usd_per_s=tuple((requests_per_s * loss).tolist()),
                unmet=parts,
            )
            likely = load.likely[of].sum(axis=0) / np.maximum(requests_per_s, 1e-12)
            found += [part_of(whole, likely), part_of(whole, 1.0 - likely, chance=CHANCE)]
        return found

    def _rank(self, class_name: str) -> float:
        """How much worse it is to refuse a class than the least critical one."""
        return 2.0 ** self.criticality.get(class_name, Criticality.CRITICAL)

    def _request_usd(self, each_usd: Floats) -> dict[str, float]:
        """What a request costs at full load with each model, on the cheapest of its pools."""
        found: dict[str, float] = {}
        for model, usd in zip(self._models, each_usd.tolist(), strict=True):
            found[model] = min(usd, found.get(model, usd))
        return found

    def _loss_usd(
        self, preferred: str, other: str, request_usd: Mapping[str, float], share: float
    ) -> float:
        """What is lost where another model answers a request of those who prefer one.

        Quality, of the mean prompt. But who prefers a model has the prompts it is better at, by
        at least what it costs more, c: else the other would be preferred. If what it is better by
        is spread evenly from nothing to M, and a share p is above c, then M = c / (1 − p), and the
        mean of those above is (c + M) / 2.
        """
        if preferred == other:
            return 0.0
        known, value_usd = self.quality, self._options.value_usd
        lost = known[preferred] - known[other] if preferred in known and other in known else 0.0
        dearer_usd = request_usd[preferred] - request_usd[other]
        revealed_usd = dearer_usd * (1.0 + 1.0 / (1.0 - min(share, SHARE_MAX))) / 2.0
        return max(0.0, lost * value_usd, revealed_usd) + PREFERENCE_SHARE * value_usd

    # --- and what its solution means

    def _required(
        self, mix: Mix, load: Workload, full: Sequence[float]
    ) -> tuple[Requirement, list[list[float]]]:
        """And the shares (asks, pools)."""
        row = {group: i for i, group in enumerate(load.grouped())}
        of = [row[key.model, key.fixed] for key in load.keys]
        taken = mix.shares[of] * load.rate  # (asks, pools), requests/s
        each = taken.sum(axis=0)
        expected = load.rate.max(axis=1, initial=0.0)
        likely = load.likely.max(axis=1, initial=0.0)
        work_s = {}
        for k, name in enumerate(self._names):
            carried_s = float(taken[:, k] @ load.work_s[:, k])
            work_s[name] = carried_s / each[k] if each[k] else load.mean(k, self._models[k]).work_s
        required = Requirement(
            replicas=dict(zip(self._names, mix.replicas, strict=True)),
            load_max=dict(zip(self._names, full, strict=True)),
            work_s={name: float(one) for name, one in work_s.items()},
            rate=dict(zip(self._names, each.tolist(), strict=True)),
            lead_s=dict(self.lead_s),
            demand=by_model(load.keys, expected.tolist()),
            likely=by_model(load.keys, likely.tolist()),
            fixed=by_model(
                load.keys,
                [one if key.fixed else 0.0 for key, one in zip(load.keys, expected, strict=True)],
            ),
            carried=summed(self._models, each.tolist()),
            unmet=float(mix.unmet[of] @ expected),
        )
        return required, mix.shares[of].tolist()


def usd_per_s(pool: PoolPlan, usd_per_hour: Mapping[str, float]) -> float:
    """What a replica costs."""
    assert pool.gpu is not None
    return usd_per_hour.get(pool.gpu.name, pool.gpu.usd_per_hour) * pool.gpus_per_replica / 3600.0
