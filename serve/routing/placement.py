"""Where a model's requests go: which of its pools, and what taking up its capacity is charged.

    work of a request in every pool ─┬─ · price of the pool's capacity ──▶ charge, US dollars
                                     └─ · watts ─────────────────────────▶ energy, joules
    charge, energy, expected latency, load ─▶ rank of every pool ─▶ the best of each model
                                                                └─▶ after the draw: one by one

Where requests are no work nothing is charged, and where every model has one pool none is ranked: a
small site pays nothing for what it does not use.

A request is charged what its work takes up, at the pool's price, turned into points by its own
weight of money. A caller who does not weigh money is taken to value a point of quality at
`value_usd`; otherwise free riders would hold the capacity that others pay for.

A price moves requests from model to model, never between pools of one model: they are perfect
substitutes, so the smallest difference of price would move all requests at once, and then back. Of
a model's pools the fastest is taken while it has room, then the one with the most headroom.

What requests are charged varies a little between them, at random (`spread`). Otherwise, when
capacity is so dear that nothing else counts, all would choose the same model, then all another: a
step-shaped demand that no price can control. Varied so, demand has the slope that the step size of
the prices was chosen for.

Requests of one batch are placed one after another, each counting for the next: the pools of a model
fill evenly, also if a thousand requests come at once.

A pool that has no replicas is never taken while another one of the model has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.kernels.compiled import kernels, writable
from learners.option import option
from learners.policies.limits import LimitOptions
from serve.budgets.spending import Asked
from serve.routing.eligible import RequestBatch
from serve.routing.live import Live
from serve.routing.load_tracker import PoolLoad
from streams.training.prices import PricingOptions

Floats = NDArray[np.float64]
KERNEL, CHARGES = "learners.kernels.place", "learners.kernels.charge"
NO_POOLS = np.zeros(0, np.intp)
ALIKE = np.zeros((0, 0))  # a spread of prices where all are charged the same

# What decides between pools that cost the request the same: a second of waiting, even for who does
# not weigh it, and headroom, in points. Both are far below what anybody weighs.
LATENCY_WEIGHT_MIN = 1e-6
HEADROOM = 1e-4
# Above this load an answer's chance of being late begins to grow: it costs its quality's worth by
# as much as the load is more. So a fast pool is preferred while it has room, and no longer.
ROOM_FROM = 0.7
CLOSED = 1e12  # points that a pool without replicas ranks behind the others
QUALITY_WEIGHT_MIN = 1e-3
LEAST, ROOM = (
    (LATENCY_WEIGHT_MIN, QUALITY_WEIGHT_MIN),
    (HEADROOM, ROOM_FROM),
)  # as kernels take them
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementOptions:
    """How capacity, power and the budget are charged."""

    pricing: PricingOptions = field(default_factory=PricingOptions)
    # What a point of quality is worth to callers who do not weigh money: as much as to those of the
    # default preference, 20 points a dollar.
    value_usd: float = option(
        0.05, "USD that a point of quality is worth to callers who do not weigh cost.", gt=0, le=1e6
    )
    usd_per_kwh: float = option(
        0.2, "USD per kilowatt-hour; the price of power is a multiple of it.", gt=0, le=1000
    )
    # Of the logarithm of prices, between requests: then a load falls by at most 1 / SPREAD for one
    # unit of log-price more, 3, of the 4 that the ascent is steady for.
    spread: float = 0.35
    limits: LimitOptions = field(default_factory=LimitOptions)


def spread_of(
    n: int, live: Live, pool_load: PoolLoad, options: PlacementOptions, rng: np.random.Generator
) -> Floats | None:
    """How much prices vary, factors (n, P); None where there are no prices to vary."""
    if not live.priced or not pool_load.multiple.any():
        return None
    return np.exp(options.spread * rng.standard_normal((n, len(live.catalogue.pool_names))))


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What n requests would take up and be charged in P pools, (n, P) each but where said."""

    money: Floats  # (n,) points per US dollar
    work_s: Floats
    energy_j: Floats
    points: Floats  # all charges, points
    fixed: Floats  # of them, those that do not depend on how full a pool is: for energy and power
    reference_usd: Floats  # work at the price of the GPUs
    best: NDArray[np.intp]  # (n, k) the best pool of each model, among `Catalogue.pool_names`
    # (4, n, k) at the best pools: points, those that are fixed, the least of the model's
    # `reference_usd`, energy; as kernels take them.
    at_best: Floats | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What a view says of P pools, as kernels take it."""

    pools: Floats  # (c, P) rows of `learners.kernels.charge`
    starts: NDArray[np.intp]  # (k + 1,) of each model's pools, among …
    of_model: NDArray[np.intp]  # … these (P,)
    open_starts: NDArray[np.intp]  # the same of pools that have replicas, where there is a choice
    open_of_model: NDArray[np.intp]
    reported: bool  # whether telemetry knows any of them

    def of_open(self, model: int) -> NDArray[np.intp]:
        """A model's pools that have replicas; none where there is no choice."""
        return self.open_of_model[self.open_starts[model] : self.open_starts[model + 1]]

    @classmethod
    def of(cls, live: Live) -> Columns:
        """Of a view: made once, when it is first asked for."""
        found: Columns | None = live.columns
        if found is None:
            found = live.columns = cls._made(live)
        return found

    @classmethod
    def _made(cls, live: Live) -> Columns:
        catalogue = live.catalogue
        several = {model: of[live.open[of]] for model, of in catalogue.several}
        open_of = [several.get(model, NO_POOLS) for model in range(len(catalogue))]
        rows = [
            live.output_tokens[catalogue.model_of_pool],
            live.work_factor,
            catalogue.watts,
            catalogue.usd_per_s,
            live.open,
            catalogue.draining,
        ]
        return cls(
            pools=np.concatenate([catalogue.work.columns, rows]),
            starts=_starts(catalogue.columns_of),
            of_model=np.concatenate(catalogue.columns_of),
            open_starts=_starts(open_of),
            open_of_model=np.concatenate(open_of),
            reported=bool(live.reported.any()),
        )


def _starts(of_model: Sequence[NDArray[np.intp]]) -> NDArray[np.intp]:
    return np.cumsum([0, *map(len, of_model)])


def money_of(preference: Floats, options: PlacementOptions) -> Floats:
    """What a US dollar is worth to each of n requests, in points."""
    return np.maximum(preference[:, 1], preference[:, 0] / options.value_usd)


def charge(
    preference: Floats,
    prompt_tokens: Floats,
    live: Live,
    pool_load: PoolLoad,
    spread: Floats | None,
    options: PlacementOptions,
) -> Placement:
    """Charge n requests; `preference` (n, 4), `prompt_tokens` (n,), `spread` (n, P) of prices."""
    catalogue = live.catalogue
    if live.kernel is not None and catalogue.any_work:
        return _charge_compiled(preference, prompt_tokens, live, pool_load, spread, options)
    money = money_of(preference, options)
    if not catalogue.any_work:
        none = np.zeros((len(preference), len(live.catalogue.pool_names)))
        best = best_pools(none, preference, live, pool_load)
        return Placement(money, none, none, none, none, none, best)
    lengths = live.output_tokens[catalogue.model_of_pool][None]
    work_s = catalogue.work.work_s(prompt_tokens, lengths) * live.work_factor
    energy_j = work_s * catalogue.watts
    reference_usd = work_s * catalogue.usd_per_s
    fixed = preference[:, 3:] / 1000.0 * energy_j
    usd_per_j = _usd_per_j(live, options)
    if usd_per_j:
        fixed = fixed + money[:, None] * (usd_per_j * energy_j)
    usd = reference_usd * pool_load.multiple
    points = fixed + money[:, None] * (usd if spread is None else usd * spread)
    best = best_pools(fixed, preference, live, pool_load)
    return Placement(money, work_s, energy_j, points, fixed, reference_usd, best)


def _usd_per_j(live: Live, options: PlacementOptions) -> float:
    """What power costs, US dollars a joule."""
    power = live.prices.power.charged(options.pricing.ascent)
    return power * options.usd_per_kwh / JOULES_PER_KWH


def _charge_compiled(
    preference: Floats,
    prompt_tokens: Floats,
    live: Live,
    pool_load: PoolLoad,
    spread: Floats | None,
    options: PlacementOptions,
) -> Placement:
    """As `charge`, where there is numba."""
    kernel: Any = kernels(CHARGES)
    columns, n, k = Columns.of(live), len(preference), len(live.catalogue)
    n_pools = columns.pools.shape[1]
    found, at_best = np.empty((5, n, n_pools)), np.empty((4, n, k))
    money, best = np.empty(n), np.empty((n, k), np.intp)
    kernel.charge(
        writable(prompt_tokens),
        writable(preference),
        columns.pools,
        pool_load.rows,
        ALIKE if spread is None else spread,
        columns.starts,
        columns.of_model,
        np.array([_usd_per_j(live, options), options.value_usd, *LEAST, *ROOM, CLOSED]),
        found,
        at_best,
        money,
        best,
    )
    work_s, energy_j, points, fixed, reference_usd = found
    return Placement(money, work_s, energy_j, points, fixed, reference_usd, best, at_best)


def known_tokens_of(said: Floats, live: Live) -> Floats:
    """Prompts' lengths (n,), as the catalogue assumes where they are not `said`."""
    return np.where(said > 0, said, live.catalogue.prompt_tokens)


def least_multiple(pool_load: PoolLoad, eligible: NDArray[np.bool_], live: Live) -> Floats:
    """The least price (n,) of the capacity that requests could take, in multiples of its cost.

    Prices fall later than loads, and nobody is to be refused where there is room again: so a price
    counts as far as its pool is full.
    """
    if not live.priced:
        return np.zeros(len(eligible))
    if live.kernel is not None:
        return _least_compiled(pool_load, eligible, live)
    full = np.minimum(np.maximum((pool_load.load - ROOM_FROM) / (1.0 - ROOM_FROM), 0.0), 1.0)
    of_model = live.catalogue.least(np.where(live.open, pool_load.multiple * full, np.inf))
    of_model[np.isinf(of_model)] = 0.0  # nothing is known of it
    return np.where(eligible, of_model, np.inf).min(axis=1)


def _least_compiled(pool_load: PoolLoad, eligible: NDArray[np.bool_], live: Live) -> Floats:
    columns, least, kernel = Columns.of(live), np.empty(len(eligible)), kernels(CHARGES)
    assert kernel is not None, "the view has kernels"
    kernel.cheapest(
        writable(pool_load.multiple),
        writable(pool_load.load),
        columns.pools,
        columns.starts,
        columns.of_model,
        ROOM_FROM,
        writable(eligible, np.bool_),
        least,
    )
    return least


def best_pools(
    fixed: Floats, preference: Floats, live: Live, pool_load: PoolLoad
) -> NDArray[np.intp]:
    """The best pool (n, k) of each model, where n requests are charged `fixed` (n, P) anyway."""
    best = live.catalogue.first_pool[None].repeat(len(preference), axis=0)
    if live.catalogue.several:
        latency = np.maximum(preference[:, 2:3], LATENCY_WEIGHT_MIN)
        late = np.maximum(preference[:, :1], QUALITY_WEIGHT_MIN)
        rank = fixed + latency * pool_load.latency_s + HEADROOM * pool_load.load
        rank += late * np.maximum(0.0, pool_load.load - ROOM_FROM)
        rank[:, ~live.open] = CLOSED  # not unthinkable: our news may be old
        rank[:, live.catalogue.draining] = np.inf
        for model, columns in live.catalogue.several:
            best[:, model] = columns[rank[:, columns].argmin(axis=1)]
    return best


def place(
    chosen: NDArray[np.intp],
    placement: Placement,
    preference: Floats,
    live: Live,
    pool_load: PoolLoad,
) -> NDArray[np.intp]:
    """The pools (n,) of n requests whose models (n,) are chosen, each counting for the next."""
    pools = placement.best[np.arange(len(chosen)), chosen]
    columns = Columns.of(live)
    if len(chosen) == 1 or not live.catalogue.several or not columns.reported:
        return pools
    state = pool_load.rows.copy()
    if live.kernel is None:
        several = {model: columns.of_open(model) for model, _ in live.catalogue.several}
        BatchPlacer(state).place(chosen, several, placement, preference, pools)
    else:
        starts, of_model = columns.open_starts, columns.open_of_model
        place_compiled(chosen, starts, of_model, placement, preference, state, pools)
    return pools


def place_compiled(
    chosen: NDArray[np.intp],
    starts: NDArray[np.intp],
    of_model: NDArray[np.intp],
    placement: Placement,
    preference: Floats,
    state: Floats,
    pools: NDArray[np.intp],
) -> None:
    """As `BatchPlacer.place`, where there is numba; `state` is kept up to date.

    Model m has a choice of the pools `of_model[starts[m] : starts[m + 1]]`.
    """
    kernel: Any = kernels(KERNEL)
    kernel.place(
        chosen,
        starts,
        of_model,
        writable(placement.fixed),
        writable(placement.work_s),
        writable(preference),
        state,
        np.array([*LEAST, *ROOM]),
        pools,
    )


class BatchPlacer:
    """Places a batch's requests one by one, and keeps the pools' load up to date meanwhile.

    With lists: numpy is slow at single numbers. `learners.kernels.place` does the same.
    """

    def __init__(self, state: Floats) -> None:
        """`state` are the rows (7, P) of the kernel."""
        (
            self.load, self.latency_s, self.waiting, self._empty_s, self._per_request,
            self._per_work, _,
        ) = state.tolist()  # fmt: skip

    def place(
        self,
        chosen: NDArray[np.intp],
        several: Mapping[int, NDArray[np.intp]],
        placement: Placement,
        preference: Floats,
        pools: NDArray[np.intp],
    ) -> None:
        """Fill in the pools (n,) of requests whose model has several; `preference` is (n, 4)."""
        choice = {model: of.tolist() for model, of in several.items() if len(of) > 1}
        latency = np.maximum(preference[:, 2], LATENCY_WEIGHT_MIN).tolist()
        late = np.maximum(preference[:, 0], QUALITY_WEIGHT_MIN).tolist()
        fixed, work = placement.fixed.tolist(), placement.work_s.tolist()
        for i, model in enumerate(chosen.tolist()):
            if model in choice:
                pools[i] = self._take(choice[model], fixed[i], latency[i], late[i], work[i])

    def _take(
        self, pools: list[int], fixed: list[float], latency: float, late: float, work: list[float]
    ) -> int:
        """The best of these pools for one request, which takes its place in it."""
        latency_s, load = self.latency_s, self.load
        best, least = pools[0], math.inf
        for p in pools:
            rank = fixed[p] + latency * latency_s[p] + HEADROOM * load[p]
            if load[p] > ROOM_FROM:
                rank += late * (load[p] - ROOM_FROM)
            if rank < least:
                best, least = p, rank
        self.waiting[best] += 1.0
        waits = max(0.0, self.waiting[best]) * self._per_request[best]
        latency_s[best] = self._empty_s[best] * (1.0 + waits)
        load[best] += self._per_work[best] * work[best]
        return best


def asked_of(
    requests: RequestBatch,
    live: Live,
    cost_usd: Floats,
    list_usd: Floats,
    options: PlacementOptions,
) -> Asked:
    """What budgets need to know of n requests, each of which would cost so much (n, k)."""
    n, tokens = len(requests), known_tokens_of(requests.prompt_tokens, live)
    return Asked(
        tenants=[""] * n if requests.tenants is None else requests.tenants.tolist(),
        tags=[()] * n if requests.said is None else [one.tags for one in requests.said.tolist()],
        models=live.catalogue.names,
        cost_usd=cost_usd,
        list_usd=np.broadcast_to(list_usd, cost_usd.shape),
        tokens=np.reshape(tokens, (n, 1)) + live.output_tokens,
        money=money_of(requests.preference, options),
    )
