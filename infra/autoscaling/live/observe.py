"""From what a snapshot says of fleet and prices to what a scaler sees.

    FleetState ─wishes─▶ Demand, output tokens from what was learned
               ─loads──▶ PoolCondition, price from `Prices`
    Fleet      ─────────▶ USD per hour and number of GPUs, by type

The one rule: a pure function of its arguments: the same live and in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from infra.autoscaling.contract import Demand, Observed, PoolCondition
from infra.capacity.fleet import Fleet
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.fleet_view import (
    SILENT_MS,
    SPANS_MS,
    Load,
    Wish,
    heard_within,
    loads,
    prompt_variation,
    spans,
    wishes,
)
from streams.telemetry.tally import parted
from streams.training.prices import LOAD_MAX, Prices

# A minute's mean is half a minute old, and a machine takes two to come: a rise is looked for in the
# last twenty seconds, too, and believed if it is twice what chance would make.
LATELY_MS, DEVIATIONS = 20_000, 2.0


def observe(
    state: FleetState,
    prices: Prices,
    fleet: Fleet,
    output_tokens: Mapping[str, float],
    now_ms: int,
    lost_regions: frozenset[str] = frozenset(),
) -> Observed:
    """What there is to see at a time; `output_tokens` are means, by model."""
    lately, variation = wishes(state, now_ms, LATELY_MS), prompt_variation(state, now_ms)
    demands = tuple(
        Demand(
            class_name=name,
            model=model,
            requests_per_s=max(wish.requests_per_s, _certain(lately.get((name, model)))),
            prompt_tokens=wish.prompt_tokens,
            output_tokens=output_tokens[model],
            prompt_cv2=variation.get(name),
        )
        for (name, model), wish in wishes(state, now_ms).items()
        if model in output_tokens
    )
    found, rates = loads(state), _decided_per_s(state, now_ms)
    alive = [r for r in state.routers.values() if state.heard_ms - r.heard_ms <= SILENT_MS]
    return Observed(
        at_s=now_ms / 1000.0,
        demands=demands,
        pools={
            plan.name: _condition(
                found.get(plan.name, Load()),
                prices.capacity[plan.name].multiple() if plan.name in prices.capacity else 0.0,
                rates.get(plan.name, 0.0),
                available=plan.region not in lost_regions,
            )
            for plan in fleet.pools
        },
        usd_per_hour={gpu.name: gpu.usd_per_hour for gpu in fleet.gpus},
        gpus_available={gpu.name: gpu.available for gpu in fleet.gpus},
        routers=len(alive),
        router_busy_share=sum(router.loop_busy_share for router in alive),
        telemetry_age_s=max(0, now_ms - _heard_ms(state)) / 1000.0,
    )


def _certain(lately: Wish | None) -> float:
    """Requests a second that there were lately, less what may be chance (Poisson's deviation)."""
    if lately is None:
        return 0.0
    per_s = lately.requests_per_s
    return per_s - DEVIATIONS * math.sqrt(per_s * 1000.0 / LATELY_MS)


def _heard_ms(state: FleetState) -> int:
    """When a router was last heard of, because they tell what is asked for; else anybody."""
    return max((router.heard_ms for router in state.routers.values()), default=state.heard_ms)


def _condition(
    load: Load, price: float, requests_per_s: float, *, available: bool
) -> PoolCondition:
    return PoolCondition(
        ready=load.ready,
        starting=load.starting,
        draining=load.draining,
        queued=load.queued,
        running=load.running,
        load=load.load if load.load is None or load.load <= LOAD_MAX else None,
        price=price,
        requests_per_s=requests_per_s,
        available=available,
    )


def _decided_per_s(state: FleetState, now_ms: int) -> dict[str, float]:
    """Decisions a second for every pool, over the last minute."""
    heard_s = heard_within(state, now_ms, SPANS_MS["1m"]) / 1000.0
    found: dict[str, float] = {}
    for share, tally in spans(state, now_ms, SPANS_MS["1m"]):
        for key, mix in tally.mix.items():
            pool = parted(key)[1]
            found[pool] = found.get(pool, 0.0) + share * mix.decisions / heard_s
    return found
