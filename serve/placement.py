"""Where a model's requests go: which of its pools, and what taking up its capacity is charged.

    work of a request in every pool ─┬─ · price of the pool's capacity ──▶ charge, US dollars
                                     └─ · watts ─────────────────────────▶ energy, joules
    charge, energy, expected latency, load ─▶ rank of every pool ─▶ the best of each model
                                                                └─▶ after the draw: one by one

A request is charged what its work takes up, at the pool's price, turned into points by its own
weight of money. Who does not weigh money is taken to value a point of quality at `value_usd`: or else
free riders would hold the capacity that others pay for.

Requests of one batch are placed one after another, each counting for the next: the pools of a model
fill evenly, also if a thousand requests come at once.

The one rule: a pool that has no replicas is never taken while another one of the model has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve.crowding import FILL_S, Crowd
from serve.live import Live
from streams.prices import PricingOptions

Floats = NDArray[np.float64]

# What decides between pools that cost the request the same: a second of waiting, even for who does
# not weigh it, and headroom, in points. Both are far below what anybody weighs.
LATENCY_WEIGHT_MIN = 1e-6
HEADROOM = 1e-4
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementOptions:
    """How capacity, power and the budget are charged."""

    pricing: PricingOptions = field(default_factory=PricingOptions)
    # What a point of quality is worth to callers who do not weigh money: as much as to those of the
    # default preference, 20 points a dollar.
    value_usd: float = 0.05
    usd_per_kwh: float = 0.2  # the price of power is a multiple of this
    priced: bool = True  # False: blind to prices


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What n requests would take up and be charged in P pools, (n, P) each but where said."""

    money: Floats  # (n,) points per US dollar
    work_s: Floats
    energy_j: Floats
    points: Floats  # all charges, points
    rank: Floats  # the less the better; infinite where there are no replicas
    reference_usd: Floats  # work at the price of the GPUs


def charge(
    preference: Floats,
    prompt_tokens: Floats,
    live: Live,
    crowd: Crowd,
    options: PlacementOptions,
) -> Placement:
    """Charge n requests; `preference` (n, 4), `prompt_tokens` (n,)."""
    catalogue = live.catalogue
    work_s = catalogue.work.work_s(prompt_tokens, live.output_tokens[catalogue.model_of_pool][None])
    energy_j = work_s * catalogue.watts
    money = np.maximum(preference[:, 1], preference[:, 0] / options.value_usd)
    reference_usd = work_s * catalogue.usd_per_s
    usd = reference_usd * crowd.multiple
    points = preference[:, 3:] / 1000.0 * energy_j
    if options.priced and live.prices.power.log_price:
        usd_per_j = live.prices.power.multiple() * options.usd_per_kwh / JOULES_PER_KWH
        usd = usd + usd_per_j * energy_j
    points = points + money[:, None] * usd
    latency = np.maximum(preference[:, 2:3], LATENCY_WEIGHT_MIN)
    rank = points + latency * (crowd.latency_ms / 1000.0) + HEADROOM * crowd.load
    rank[:, ~live.open] = np.inf
    return Placement(money, work_s, energy_j, points, rank, reference_usd)


def best_pools(rank: Floats, live: Live) -> NDArray[np.intp]:
    """The best pool (n, k) of each model by rank (n, P), as columns of the latter."""
    return np.stack(
        [columns[rank[:, columns].argmin(axis=1)] for columns in live.columns_of], axis=1
    )


def place(
    chosen: NDArray[np.intp],
    placement: Placement,
    preference: Floats,
    live: Live,
    crowd: Crowd,
    options: PlacementOptions,
) -> NDArray[np.intp]:
    """The pools (n,) of n requests whose models (n,) are chosen, each counting for the next."""
    best = best_pools(placement.rank, live)
    pools = best[np.arange(len(chosen)), chosen]
    if len(chosen) == 1 or not live.told.any():
        return pools
    filling = _Filling(live, crowd, options)
    several = {
        model: [p for p in columns.tolist() if live.open[p]]
        for model, columns in enumerate(live.columns_of)
    }
    usd = (placement.money[:, None] * placement.reference_usd).tolist()
    fixed = (placement.points - np.asarray(usd) * crowd.multiple).tolist()
    work = placement.work_s.tolist()
    weight = np.maximum(preference[:, 2], LATENCY_WEIGHT_MIN).tolist()
    for i, model in enumerate(chosen.tolist()):
        if len(several[model]) > 1:
            pools[i] = filling.take(several[model], usd[i], fixed[i], work[i], weight[i])
    return pools


class _Filling:
    """Pools that fill up while a batch is placed."""

    def __init__(self, live: Live, crowd: Crowd, options: PlacementOptions) -> None:
        ascent = options.pricing.ascent
        self._damping, self._most = ascent.damping, math.log1p(ascent.multiple_max)
        self._priced = (live.loaded & options.priced).tolist()
        self._log_price, self._load = live.log_price.tolist(), crowd.load.tolist()
        self._latency_s = (crowd.latency_ms / 1000.0).tolist()
        # What one more request, and its work, do to latency and load.
        per_request = np.where(live.told, live.pool_latency_ms / 1000.0 / live.running, 0.0)
        self._per_request = per_request.tolist()
        filled = live.n_routers / live.ready / options.pricing.load_target / FILL_S
        self._per_work = np.where(live.loaded, filled, 0.0).tolist()

    def take(
        self,
        pools: list[int],
        usd: list[float],
        fixed: list[float],
        work: list[float],
        weight: float,
    ) -> int:
        """The best of these pools for one request, which takes its place in it."""
        best, least = pools[0], math.inf
        for p in pools:
            load = self._load[p]
            points = fixed[p] + weight * self._latency_s[p] + HEADROOM * load
            if self._priced[p]:
                log_price = self._log_price[p] + self._damping * (load - 1.0)
                if log_price > 0.0:
                    points += usd[p] * math.expm1(min(log_price, self._most))
            if points < least:
                best, least = p, points
        self._latency_s[best] += self._per_request[best]
        self._load[best] += self._per_work[best] * work[best]
        return best
