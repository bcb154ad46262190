"""Independent sizing: each pool on its own, without prices; what Fairlead's mix is compared with.

    requests decided for a pool ─▶ forecast ─▶ replicas_for ─▶ as many as there are GPUs for

It is blind to prices, to what else could carry the requests, and to what a GPU costs. A model that
is wanted and has no replica anywhere begins with one where one is cheapest: nothing is decided for
a pool without replicas, so it would stay without for ever.

It differs from the mix in what it looks at, and in nothing else: the same forecast,
the same queueing, the same stabilisation.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.autoscaling.contract import Demand, Observed, PoolCondition
from infra.autoscaling.demand.expected import ALL, ExpectedDemand
from infra.autoscaling.planner import Planner, PlannerOptions
from infra.autoscaling.sizing.requirement import Requirement, requirement_of
from infra.autoscaling.sizing.sizing import SizingOptions, usd_per_s
from infra.autoscaling.sizing.stabilisation import Limits
from infra.capacity.fleet import Fleet, PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.queueing import load_max, replicas_for
from learners.work import WorkRates

CLASS = "decided"  # of the series that forecasts are made of; their models are the pools


class IndependentPlanner(Planner):
    """Fairlead's planner with independent sizing in the place of the mix."""

    def __init__(
        self,
        fleet: Fleet,
        rates: Mapping[str, WorkRates],
        target: LatencyTarget,
        quality: Mapping[str, float],
        options: PlannerOptions,
    ) -> None:
        super().__init__(fleet, rates, target, quality, options)
        self._target = target
        self._decided = ExpectedDemand(options.expected)

    def required(
        self,
        observed: Observed,
        now: Mapping[str, int],
        limits: Mapping[str, Limits],
        gpus: Mapping[str, int],
    ) -> Requirement:
        """What each pool needs for what is decided for it."""
        del now
        options, left = self._options.sizing, dict(gpus)
        asked = decided(self._pools, observed.pools, self._demand, options)
        self._decided.observe(observed.at_s, asked)
        required = requirement_of(dict.fromkeys(self._pools, 0), self._sizing.lead_s)
        for name in self._pools:
            self._size(name, required, limits, left)
        self._begin(required, limits, left)
        return required

    def at_once(self, required: Requirement, there: Mapping[str, int]) -> bool:
        """Whatever is required comes without delay: there is nothing else that could carry it."""
        del required, there
        return True

    def _size(
        self, name: str, required: Requirement, limits: Mapping[str, Limits], left: dict[str, int]
    ) -> None:
        """One pool, for the rate that is expected of it."""
        options, rates = self._options.sizing, self._rates[name]
        expected = self._decided.rates(required.lead_s[name]).get((CLASS, name))
        rate = expected.upper if expected else 0.0
        prompt, output = _lengths(self._demand, self._pools[name].model, options)
        work_s, target = rates.work_s(prompt, output_tokens=output), self._target
        spread = {"output_tokens_mean": output, "cv2": options.cv2}
        needed = rate >= options.rate_least
        n = replicas_for(rate * work_s, rates, target, prompt, **spread) if needed else 0
        required.replicas[name] = _take(name, n, limits, left)
        required.load_max[name] = load_max(
            rates, target, prompt, **spread, replicas=max(1, required.replicas[name])
        )
        required.rate[name], required.work_s[name] = rate, work_s

    def _begin(
        self, required: Requirement, limits: Mapping[str, Limits], left: dict[str, int]
    ) -> None:
        """One replica for each model that is wanted and has none, where one is cheapest."""
        for model in sorted({plan.model for plan in self._pools.values()}):
            names = [name for name, plan in self._pools.items() if plan.model == model]
            wanted = any(one.rate for key, one in self._demand.series.items() if key[1] == model)
            if not wanted or any(required.replicas[name] for name in names):
                continue
            for name in sorted(names, key=lambda n: usd_per_s(self._pools[n], self._usd_per_hour)):
                required.replicas[name] = _take(name, 1, limits, left)
                if required.replicas[name]:
                    break


def decided(
    fleet: Mapping[str, PoolPlan],
    pools: Mapping[str, PoolCondition],
    demand: ExpectedDemand,
    options: SizingOptions,
) -> list[Demand]:
    """What was decided for each pool, as a demand of its own."""
    found = []
    for name, plan in fleet.items():
        prompt, output = _lengths(demand, plan.model, options)
        found.append(
            Demand(
                class_name=CLASS,
                model=name,
                requests_per_s=pools[name].requests_per_s if name in pools else 0.0,
                prompt_tokens=prompt,
                output_tokens=output,
            )
        )
    return found


def _take(name: str, n: int, limits: Mapping[str, Limits], left: dict[str, int]) -> int:
    """As many as there are GPUs left for, which are taken."""
    limit = limits[name]
    room = max(0, left.get(limit.gpu, 0)) // limit.gpus_per_replica
    n = min(max(n, limit.least), limit.most, room)
    left[limit.gpu] = left.get(limit.gpu, 0) - n * limit.gpus_per_replica
    return n


def _lengths(demand: ExpectedDemand, model: str, options: SizingOptions) -> tuple[float, float]:
    """Mean lengths of who wants the model, or else of all; weighted by their rates."""
    known = [(k, one) for k, one in demand.series.items() if k != ALL and one.prompt_tokens]
    of = [one for key, one in known if key[1] == model] or [one for _, one in known]
    if not of:
        return options.prompt_tokens, options.output_tokens
    weights = [one.rate + 1e-9 for one in of]  # with none at present: their plain mean
    prompt = sum(w * one.prompt_tokens for w, one in zip(weights, of, strict=True))
    output = sum(w * one.output_tokens for w, one in zip(weights, of, strict=True))
    return prompt / sum(weights), output / sum(weights)
