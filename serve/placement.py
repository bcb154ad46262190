"""Where a model's requests go: which of its pools, and what taking up its capacity is charged.

    work of a request in every pool ─┬─ · price of the pool's capacity ──▶ charge, US dollars
                                     └─ · watts ─────────────────────────▶ energy, joules
    charge, energy, expected latency, load ─▶ rank of every pool ─▶ the best of each model
                                                                └─▶ after the draw: one by one

Where requests are no work nothing is charged, and where every model has one pool none is ranked: a
small site pays nothing for what it does not use.

A request is charged what its work takes up, at the pool's price, turned into points by its own
weight of money. Who does not weigh money is taken to value a point of quality at `value_usd`: or
else free riders would hold the capacity that others pay for.

What requests are charged varies a little between them, at random (`spread`). When capacity is so dear
that nothing else counts, all would choose the same pool, then all another: a demand without slope,
that no price can steer. So varied, it has one that the step size was made for (docs/prices.md).

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
    # Of the logarithm of prices, between requests: then a load falls by at most 1 / SPREAD for one
    # unit of log-price more, 3, of the 4 that the ascent is steady for.
    spread: float = 0.35


def spread_of(
    n: int, live: Live, crowd: Crowd, options: PlacementOptions, rng: np.random.Generator
) -> Floats | None:
    """How much prices vary, factors (n, P); None where there are no prices to vary."""
    if not options.priced or not crowd.multiple.any():
        return None
    return np.exp(options.spread * rng.standard_normal((n, len(live.pool_names))))


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What n requests would take up and be charged in P pools, (n, P) each but where said."""

    money: Floats  # (n,) points per US dollar
    work_s: Floats
    energy_j: Floats
    points: Floats  # all charges, points
    reference_usd: Floats  # work at the price of the GPUs
    at_one: Floats  # what a price multiple of one is to each request, points
    best: NDArray[np.intp]  # (n, k) the best pool of each model, among `Live.pool_names`


def charge(
    preference: Floats,
    prompt_tokens: Floats,
    live: Live,
    crowd: Crowd,
    spread: Floats | None,
    options: PlacementOptions,
) -> Placement:
    """Charge n requests; `preference` (n, 4), `prompt_tokens` (n,), `spread` (n, P) of prices."""
    catalogue = live.catalogue
    money = np.maximum(preference[:, 1], preference[:, 0] / options.value_usd)
    if not catalogue.any_work:
        none = np.zeros((len(preference), len(live.pool_names)))
        best = best_pools(none, preference, live, crowd)
        return Placement(money, none, none, none, none, none, best)
    work_s = catalogue.work.work_s(prompt_tokens, live.output_tokens[catalogue.model_of_pool][None])
    energy_j = work_s * catalogue.watts
    reference_usd = work_s * catalogue.usd_per_s
    at_one_usd = reference_usd if spread is None else reference_usd * spread
    usd = at_one_usd * crowd.multiple
    points = preference[:, 3:] / 1000.0 * energy_j
    power = live.prices.power.charged(options.pricing.ascent) if options.priced else 0.0
    if power:
        usd = usd + power * options.usd_per_kwh / JOULES_PER_KWH * energy_j
    points = points + money[:, None] * usd
    best = best_pools(points, preference, live, crowd)
    at_one = money[:, None] * at_one_usd
    return Placement(money, work_s, energy_j, points, reference_usd, at_one, best)


def best_pools(points: Floats, preference: Floats, live: Live, crowd: Crowd) -> NDArray[np.intp]:
    """The best pool (n, k) of each model, where n requests are charged `points` (n, P)."""
    best = live.first_pool[None].repeat(len(points), axis=0)
    if live.several:
        latency = np.maximum(preference[:, 2:3], LATENCY_WEIGHT_MIN)
        rank = points + latency * (crowd.latency_ms / 1000.0) + HEADROOM * crowd.load
        rank[:, ~live.open] = np.inf
        for model, columns in live.several:
            best[:, model] = columns[rank[:, columns].argmin(axis=1)]
    return best


def place(
    chosen: NDArray[np.intp],
    placement: Placement,
    preference: Floats,
    live: Live,
    crowd: Crowd,
    options: PlacementOptions,
) -> NDArray[np.intp]:
    """The pools (n,) of n requests whose models (n,) are chosen, each counting for the next."""
    pools = placement.best[np.arange(len(chosen)), chosen]
    if len(chosen) == 1 or not live.several or not live.told.any():
        return pools
    filling = _Filling(live, crowd, options)
    several = {
        model: [p for p in columns.tolist() if live.open[p]] for model, columns in live.several
    }
    fixed = (placement.points - placement.at_one * crowd.multiple).tolist()
    priced, work = placement.at_one.tolist(), placement.work_s.tolist()
    weight = np.maximum(preference[:, 2], LATENCY_WEIGHT_MIN).tolist()
    for i, model in enumerate(chosen.tolist()):
        if len(several.get(model, ())) > 1:
            pools[i] = filling.take(several[model], fixed[i], priced[i], weight[i], work[i])
    return pools


class _Filling:
    """Pools that fill up while a batch is placed. Lists: numpy is slow at single numbers."""

    def __init__(self, live: Live, crowd: Crowd, options: PlacementOptions) -> None:
        self._ascent = options.pricing.ascent
        self._most = self._ascent.log_multiple_max
        self._priced = (live.loaded & options.priced).tolist()
        self._log_price, self._load = live.log_price.tolist(), crowd.load.tolist()
        self._multiple = crowd.multiple.tolist()
        self._latency_s, self._waiting = (
            (crowd.latency_ms / 1000.0).tolist(),
            crowd.waiting.tolist(),
        )
        self._empty_s = (live.pool_latency_ms / 1000.0).tolist()
        # What one more request that waits, and a request's work, do to latency and load.
        self._per_request = (live.told / live.running).tolist()
        filled = live.n_routers / live.ready / options.pricing.load_target / FILL_S
        self._per_work = np.where(live.loaded, filled, 0.0).tolist()

    def take(
        self,
        pools: list[int],
        fixed: list[float],
        priced: list[float],
        weight: float,
        work: list[float],
    ) -> int:
        """The best of these pools for one request, which takes its place in it."""
        latency_s, load, multiple = self._latency_s, self._load, self._multiple
        best, least = pools[0], math.inf
        for p in pools:
            points = fixed[p] + priced[p] * multiple[p] + weight * latency_s[p] + HEADROOM * load[p]
            if points < least:
                best, least = p, points
        self._waiting[best] += 1.0
        waits = max(0.0, self._waiting[best]) * self._per_request[best]
        latency_s[best] = self._empty_s[best] * (1.0 + waits)
        if self._priced[best]:
            load[best] += self._per_work[best] * work[best]
            multiple[best] = self._multiple_of(best)
        return best

    def _multiple_of(self, p: int) -> float:
        """As `learners.prices.multiples`, of one pool."""
        ascent = self._ascent
        excess = min(self._load[p], ascent.crowd_max) - 1.0
        damped = self._log_price[p] + ascent.damping * excess
        return math.expm1(min(damped, self._most)) if damped > 0.0 else 0.0
