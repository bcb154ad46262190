"""Where one more answer teaches most per dollar: the knowledge gradient, over the price of asking.

    s    deviation of a model's estimated utility      s̃ = s² / √(s² + noise²)
    gap  to the best of the others                     value = s̃ · f(−|gap| / s̃)
                                                       f(z) = φ(z) + z Φ(z)

(Frazier, Powell and Dayanik 2008.) s̃ is how far one answer is expected to move the estimate, and
the value what deciding after it is worth more than deciding before it, for a request like this one.
It is large for a model that is nearly as good as the best and little known, so for new models, for
those that were not asked for long and for close calls; it is nothing for a model that is known, or
far from the best. Divided by what the answer costs, cheap models come first.

An answer serves the requests that come after it: it is worth buying where its value over
`horizon_requests` of them exceeds what it costs at the request's own weight of money.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.option import option
from learners.policies.policy import Mask, Matrix

# Of every number of an array. scipy's takes every process 0.15 s to import.
_erfc = np.frompyfunc(math.erfc, 1, 1)
USD_MIN = 1e-9  # what is free is asked for as if it cost this


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeOptions:
    """How many extra answers are bought to learn from."""

    budget_usd_per_day: float = option(
        0.0,
        "US dollars a day for extra answers, of all replicas, paced evenly. 0: none are bought.",
        ge=0,
        le=1e9,
    )
    share_max: float = option(
        0.5, "Largest share of requests for which an extra answer is bought.", ge=0, le=1
    )
    horizon_requests: float = option(
        1000.0, "Later requests that an answer is taken to serve; more buys more.", ge=0, le=1e12
    )


@dataclass(frozen=True, slots=True, eq=False)
class Worth:
    """Of n requests: the model whose answer teaches most per dollar, and how much."""

    column: NDArray[np.intp]  # (n,)
    per_usd: NDArray[np.float64]  # (n,) points per US dollar; 0: nothing is worth buying
    usd: NDArray[np.float64]  # (n,) what it is expected to cost


def gradient(utility: Matrix, deviation: Matrix, noise: Matrix, eligible: Mask) -> Matrix:
    """The knowledge gradient (n, k) in points of utility; 0 where not eligible."""
    barred = np.where(eligible, utility, -np.inf)
    best = barred.max(axis=1, keepdims=True)
    others = np.where(barred == best, -np.inf, barred).max(axis=1, keepdims=True)
    tied = (barred == best).sum(axis=1, keepdims=True) > 1
    rival = np.where((barred == best) & ~tied, others, best)  # the best of the others
    moved = deviation**2 / np.sqrt(np.maximum(deviation**2 + noise**2, 1e-24))
    safe = np.maximum(moved, 1e-12)
    gap = np.where(eligible & np.isfinite(rival), np.abs(barred - rival), np.inf)
    z = -np.minimum(gap / safe, 40.0)
    density = np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
    below = np.asarray(_erfc(-z / math.sqrt(2)), np.float64) / 2  # the normal distribution's share
    return np.where(np.isfinite(gap), safe * np.maximum(density + z * below, 0.0), 0.0)


def worth(
    value: Matrix,
    cost_usd: Matrix,
    money: NDArray[np.float64],
    chosen: NDArray[np.intp],
    horizon_requests: float,
) -> Worth:
    """What to buy beside the `chosen` models (n,); `money` (n,) is points per US dollar."""
    usd, rows = np.maximum(cost_usd, USD_MIN), np.arange(len(value))
    pays = value * horizon_requests >= money[:, None] * usd
    per_usd = np.where(pays, value / usd, 0.0)
    per_usd[rows, chosen] = 0.0  # that answer comes anyway
    column = per_usd.argmax(axis=1)
    return Worth(column, per_usd[rows, column], usd[rows, column])
