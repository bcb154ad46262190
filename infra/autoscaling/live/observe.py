"""From what a snapshot says of fleet and prices to what a scaler sees.

    FleetState ─demand by model─▶ Demand, output tokens from what was learned and what ended lately
               ─pool reports────▶ PoolCondition, price from `Prices`
    Fleet      ─────────────────▶ USD per hour and number of GPUs, by type

A pure function of its arguments: the same live and in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from infra.autoscaling.contract import Demand, Observed, PoolCondition
from infra.capacity.fleet import Fleet, PoolPlan
from streams.telemetry.capacity import Capacity, capacities
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.fleet_view import (
    SPANS_MS,
    ModelDemand,
    answered_by_class,
    criticality_by_class,
    demand_by_model,
    known_within,
    prompt_variation,
    spans,
)
from streams.telemetry.pool_reports import PoolReports
from streams.telemetry.tally import parted
from streams.training.prices import Prices

# A minute's mean is half a minute old, and a machine takes two to come: a rise is looked for in the
# last twenty seconds, too, and believed if it is twice what chance would make.
RECENT_MS, DEVIATIONS = 20_000, 2.0
# How long answers are was learned over hours, and changes within minutes: what ended in the last
# minute counts, what was learned as so many answers.
LEARNED_ANSWERS = 100.0
LONGER_MAX = 16.0  # times as long, or as short: beyond that it is the telemetry that is wrong


def observe(
    state: FleetState,
    prices: Prices,
    fleet: Fleet,
    output_tokens: Mapping[str, float],
    now_ms: int,
    lost_regions: frozenset[str] = frozenset(),
    quality: Mapping[str, float] | None = None,
) -> Observed:
    """What there is to see at a time; `output_tokens` and `quality` are means, by model."""
    recent, variation = demand_by_model(state, now_ms, RECENT_MS), prompt_variation(state, now_ms)
    wanted = {
        key: one for key, one in demand_by_model(state, now_ms).items() if key[1] in output_tokens
    }
    longer = _longer(state, wanted, output_tokens, now_ms)
    demands = tuple(
        Demand(
            class_name=name,
            model=model,
            requests_per_s=max(one.requests_per_s, _certain(recent.get((name, model)))),
            prompt_tokens=one.prompt_tokens,
            output_tokens=output_tokens[model] * longer[name],
            prompt_cv2=variation.get(name),
            fixed_share=one.fixed_share,
        )
        for (name, model), one in wanted.items()
    )
    first_token_s = max((plan.target.ttft_s for plan in fleet.pools), default=0.0)  # one for all
    found, rates = capacities(state, first_token_s), _decided_per_s(state, now_ms)
    return Observed(
        at_s=now_ms / 1000.0,
        demands=demands,
        pools={
            plan.name: _condition(
                plan,
                found.get(plan.name),
                prices.capacity[plan.name].multiple() if plan.name in prices.capacity else 0.0,
                rates.get(plan.name, 0.0),
                available=plan.region not in lost_regions,
            )
            for plan in fleet.pools
        },
        usd_per_hour={gpu.name: gpu.usd_per_hour for gpu in fleet.gpus},
        gpus_available={gpu.name: gpu.available for gpu in fleet.gpus},
        quality=quality or {},
        criticality=criticality_by_class(state, now_ms),
        routers=len(state.live_routers),
        router_busy_share=sum(router.loop_busy_share for router in state.live_routers),
        telemetry_age_s=max(0, now_ms - _received_ms(state)) / 1000.0,
    )


def _longer(
    state: FleetState,
    wanted: Mapping[tuple[str, str], ModelDemand],
    output_tokens: Mapping[str, float],
    now_ms: int,
) -> dict[str, float]:
    """How many times as long as was learned of its mix of models each class's answers are now."""
    learned: dict[str, tuple[float, float]] = {}
    for (name, model), one in wanted.items():
        per_s, tokens = learned.get(name, (0.0, 0.0))
        added = one.requests_per_s * output_tokens[model]
        learned[name] = per_s + one.requests_per_s, tokens + added
    ended, found = answered_by_class(state, now_ms), {}
    for name, (per_s, tokens) in learned.items():
        mean, (n, total) = tokens / per_s, ended.get(name, (0.0, 0.0))
        believed = n > 0.0 and mean > 0.0 and 1 / LONGER_MAX <= total / (n * mean) <= LONGER_MAX
        found[name] = (total / mean + LEARNED_ANSWERS) / (n + LEARNED_ANSWERS) if believed else 1.0
    return found


def _certain(recent: ModelDemand | None) -> float:
    """Requests a second of the last seconds, less what may be chance (Poisson's deviation)."""
    if recent is None:
        return 0.0
    per_s = recent.requests_per_s
    return per_s - DEVIATIONS * math.sqrt(per_s * 1000.0 / RECENT_MS)


def _received_ms(state: FleetState) -> int:
    """When a router's last report came, because they report what is asked for; else anybody's."""
    return max((one.received_ms for one in state.routers.values()), default=state.received_ms)


def _condition(
    plan: PoolPlan, known: Capacity | None, price: float, requests_per_s: float, *, available: bool
) -> PoolCondition:
    reports = known.reports if known else PoolReports()
    return PoolCondition(
        ready=reports.in_state("ready"),
        starting=reports.in_state("starting"),
        draining=reports.in_state("draining"),
        reports=reports,
        price=price,
        requests_per_s=requests_per_s,
        load=known.load if known else None,
        capacity_per_s=known.of.service.capacity_per_s if known else 0.0,
        work_factor=known.work_factor(plan.rates) if known else 1.0,
        available=available,
    )


def _decided_per_s(state: FleetState, now_ms: int) -> dict[str, float]:
    """Decisions a second for every pool, over the last minute."""
    known_s = known_within(state, now_ms, SPANS_MS["1m"]) / 1000.0
    found: dict[str, float] = {}
    for share, tally in spans(state, now_ms, SPANS_MS["1m"]):
        for key, mix in tally.mix.items():
            pool = parted(key)[1]
            found[pool] = found.get(pool, 0.0) + share * mix.decisions / known_s
    return found
