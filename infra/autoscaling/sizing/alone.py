"""Each pool on its own: the sizing without prices, for comparison.

    requests decided for a pool ─▶ forecast ─▶ replicas_for ─▶ as many as there are GPUs for

It is blind to prices, to what else could carry the requests, and to what a GPU costs. A model that
is wanted and has no replica anywhere begins with one where one is cheapest: nothing is decided for
a pool without replicas, so it would stay without for ever.

The one rule: it differs from the mix in what it looks at, and in nothing else: the same forecast,
the same queueing, the same hysteresis.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.autoscaling.contract import Demand, PoolCondition
from infra.autoscaling.demand.expected import ALL, ExpectedDemand
from infra.autoscaling.sizing.needs import Needs, needs_of
from infra.autoscaling.sizing.sizing import SizingOptions, usd_per_s
from infra.autoscaling.sizing.steady import Limits
from infra.capacity.fleet import PoolPlan
from infra.capacity.latency_target import LatencyTarget
from infra.capacity.queueing import load_max, replicas_for
from learners.work import WorkRates

CLASS = "decided"  # of the series that forecasts are made of; their models are the pools


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


def alone(
    fleet: Mapping[str, PoolPlan],
    rates: Mapping[str, WorkRates],
    target: LatencyTarget,
    options: SizingOptions,
    wanted: ExpectedDemand,
    expected: ExpectedDemand,
    lead_s: Mapping[str, float],
    usd_per_hour: Mapping[str, float],
    limits: Mapping[str, Limits],
    gpus: Mapping[str, int],
) -> Needs:
    """What each pool needs; `wanted` by model, `expected` by pool, in the fleet's order."""
    needs, left = needs_of(dict.fromkeys(fleet, 0), dict(lead_s)), dict(gpus)
    for name, plan in fleet.items():
        found = expected.rates(lead_s[name]).get((CLASS, name))
        rate = found.upper if found else 0.0
        prompt, output = _lengths(wanted, plan.model, options)
        work_s = rates[name].work_s(prompt, output_tokens=output)
        of, cv2 = (rates[name], target, prompt), options.cv2
        n = 0
        if rate >= options.rate_least:
            n = replicas_for(rate * work_s, *of, output_tokens_mean=output, cv2=cv2)
        needs.replicas[name] = _take(name, n, limits, left)
        needs.load_max[name] = load_max(
            *of, output_tokens_mean=output, cv2=cv2, replicas=max(1, needs.replicas[name])
        )
        needs.rate[name], needs.work_s[name] = rate, work_s
    for model in sorted({plan.model for plan in fleet.values()}):
        names = [name for name, plan in fleet.items() if plan.model == model]
        asked = [one.rate for key, one in wanted.series.items() if key[1] == model]
        if any(asked) and not any(needs.replicas[name] for name in names):
            for name in sorted(names, key=lambda n: usd_per_s(fleet[n], usd_per_hour)):
                needs.replicas[name] = _take(name, 1, limits, left)
                if needs.replicas[name]:
                    break
    return needs


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
