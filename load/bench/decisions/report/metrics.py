"""What a contender's choices were worth: from outcomes to the figures of a benchmark.

    per setting of the dial:  quality, cost ─▶ points ─▶ frontier ─▶ cost shares, areas, collapse
    per order of the prompts: one figure    ─▶ mean and bootstrap interval over the orders

Every definition has its equation and source in docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Triple = list[float | None]  # mean, low, high
Values = Sequence[float] | Floats

N_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Span:
    """What the single models of a table give over the measured prompts."""

    best_quality: float  # of the model that is best on average
    best_cost_usd: float  # of that model
    cost_usd_min: float  # mean over prompts of the cheapest model's cost
    cost_usd_max: float  # likewise of the dearest
    cheapest_quality: float  # mean quality of always taking each prompt's cheapest model
    cheapest_model_usd: float  # mean cost of the model that is cheapest on average
    dearest_model_usd: float  # and of the dearest


def span_of(quality: Floats, cost_usd: Floats) -> Span:
    """The span of outcomes (n, k)."""
    best, costs = int(quality.mean(axis=0).argmax()), cost_usd.mean(axis=0)
    rows, cheapest = np.arange(len(quality)), cost_usd.argmin(axis=1)
    return Span(
        float(quality[:, best].mean()),
        float(costs[best]),
        float(cost_usd.min(axis=1).mean()),
        float(cost_usd.max(axis=1).mean()),
        float(quality[rows, cheapest].mean()),
        float(costs.min()),
        float(costs.max()),
    )


def frontier(cost_usd: Floats, quality: Floats) -> tuple[Floats, Floats]:
    """Of points (p,), those that no cheaper or equally dear one matches, by rising cost."""
    order = np.lexsort((-quality, cost_usd))
    cost, best = cost_usd[order], quality[order]
    kept = np.concatenate([[True], best[1:] > np.maximum.accumulate(best)[:-1]])
    return cost[kept], best[kept]


def cost_at(cost_usd: Floats, quality: Floats, wanted: float) -> float:
    """The least cost at which the linearly interpolated frontier reaches a quality; or infinity."""
    cost, reached = frontier(cost_usd, quality)
    if wanted > reached[-1]:
        return float("inf")
    return float(np.interp(wanted, reached, cost))


def cost_share(cost_usd: Floats, quality: Floats, span: Span, share: float) -> float:
    """Cost of `share` of the best single model's quality, over that model's cost; or infinity."""
    return cost_at(cost_usd, quality, share * span.best_quality) / span.best_cost_usd


def hull(cost_usd: Floats, quality: Floats) -> tuple[Floats, Floats]:
    """The upper convex hull of the frontier: what mixing two settings of the dial can reach."""
    points = list(zip(*frontier(cost_usd, quality), strict=True))
    kept: list[tuple[float, float]] = []
    for cost, value in points:
        while len(kept) > 1 and _below(kept[-2], kept[-1], (cost, value)):
            kept.pop()
        kept.append((cost, value))
    return np.array([c for c, _ in kept]), np.array([q for _, q in kept])


def _below(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b is on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])


def aiq(cost_usd: Floats, quality: Floats, span: Span) -> float:
    """RouterBench's: mean height of the hull from the cheapest to the dearest model's cost.

    Below the router's cheapest point the hull runs to the null router, which costs and gives
    nothing; beyond its dearest it stays as high.
    """
    cost, value = hull(np.append(cost_usd, 0.0), np.append(quality, 0.0))
    return _mean_height(cost, value, span.cheapest_model_usd, span.dearest_model_usd)


def nauc(cost_usd: Floats, quality: Floats, span: Span) -> float:
    """ORBIT's: mean height of the best quality so far, between the least and the most possible.

    The left end is every prompt's cheapest model for all routers; between points it is linear.
    """
    cost, value = frontier(
        np.append(cost_usd, span.cost_usd_min), np.append(quality, span.cheapest_quality)
    )
    return _mean_height(cost, value, span.cost_usd_min, span.cost_usd_max)


def _mean_height(cost: Floats, value: Floats, low: float, high: float) -> float:
    """The mean of a piecewise linear curve over [low, high], flat beyond its ends."""
    if high <= low:
        return float(np.interp(high, cost, value))
    at = np.unique(np.concatenate([[low, high], cost[(cost > low) & (cost < high)]]))
    return float(np.trapezoid(np.interp(at, cost, value), at) / (high - low))


def collapse(chosen: NDArray[np.intp], quality: Floats, cost_usd: Floats) -> float:
    """Routing collapse: how often the best single model, or a dearer, was called needlessly.

    Of the prompts on which a model that is cheaper on average did at least as well as the best
    single one, the share sent to that one or to a dearer. `chosen` (n,) is at a dial that asks for
    quality alone. 0 where no prompt is of that kind.
    """
    best, mean_usd = int(quality.mean(axis=0).argmax()), cost_usd.mean(axis=0)
    cheaper = mean_usd < mean_usd[best]
    if not cheaper.any():
        return 0.0
    needless = quality[:, cheaper].max(axis=1) >= quality[:, best]
    taken = (chosen >= 0) & ~cheaper[np.maximum(chosen, 0)]
    return float(taken[needless].mean()) if needless.any() else 0.0


def calibration_error(predicted: Floats, outcome: Floats, bins: int = 10) -> float:
    """Expected calibration error: mean |predicted − outcome| of bins of equal counts."""
    gaps = [len(off) * abs(off.mean()) for off in _residuals(predicted, outcome, bins)]
    return float(sum(gaps) / len(predicted))


def calibration_error_by_chance(predicted: Floats, outcome: Floats, bins: int = 10) -> float:
    """What a predictor that is right in every bin would show, as outcomes scatter around it.

    The mean of n outcomes of deviation σ is off by σ · √(2 / πn) on average.
    """
    parts = _residuals(predicted, outcome, bins)
    gaps = [len(off) * off.std() * np.sqrt(2.0 / (np.pi * len(off))) for off in parts]
    return float(sum(gaps) / len(predicted))


def _residuals(predicted: Floats, outcome: Floats, bins: int) -> list[Floats]:
    """Predicted − outcome by bins of equal counts, from the least predicted to the largest."""
    order = np.argsort(predicted, kind="stable")
    return [(predicted - outcome)[p] for p in np.array_split(order, bins) if len(p)]


def coverage(predicted: Floats, deviation: Floats, outcome: Floats, z: float) -> float:
    """The share of outcomes within `z` stated deviations of what was predicted."""
    return float((np.abs(outcome - predicted) <= z * deviation).mean())


def break_even_requests(
    learning_usd: float, *, best_usd: float, routed_usd: float, overhead_usd: float = 0.0
) -> float:
    """SAVERouter's SA-BEP: ⌈C₀ / (C_b − C_r − C_o)⌉; infinity where nothing is saved."""
    saved = best_usd - routed_usd - overhead_usd
    return float(np.ceil(max(0.0, learning_usd) / saved)) if saved > 0 else float("inf")


def interval(values: Values, seed: int = 0) -> Triple:
    """Mean and bootstrap interval over orders. Infinite ones make it null."""
    return _interval(values, np.mean, seed)


def median_interval(values: Values, seed: int = 0) -> Triple:
    """Median and bootstrap interval over orders; null where it is infinite."""
    return _interval(values, np.median, seed)


def _interval(values: Values, middle: Callable[..., Any], seed: int) -> Triple:
    known = np.asarray(values, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(known), (N_RESAMPLES, len(known)))
    with np.errstate(invalid="ignore"):
        means = middle(known[picks], axis=1)
        centre = float(middle(known))
    edge = (1.0 - CONFIDENCE) / 2
    # No interpolation: between a number and infinity there is nothing.
    low, high = np.quantile(means, [edge, 1.0 - edge], method="nearest")
    return [_finite(centre), _finite(float(low)), _finite(float(high))]


def _finite(value: float) -> float | None:
    return round(value, 12) if np.isfinite(value) else None
