"""Who wins in a fixed table of draws, and whom a number draws among probabilities.

    utility, deviations ─thompson─▶ draws won by each model, as probabilities ──pick──▶ chosen

The same bits as `learners.policies` gives with numpy. Of 128 draws nearly all is done for whole
vectors of them at once: which is why each model's are counted one model after another.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import compiled, inlined

MATRIX, COLUMN, MASK = "float64[:,::1]", "float64[::1]", "boolean[:,::1]"


@inlined
def _best_first(utility: Any, allowed: Any, i: Any, order: Any) -> Any:
    """Order the models that request i may have; how many they are."""
    count = 0
    for m in range(len(order)):
        if allowed[i, m]:
            at = count  # insertion, best first; of equals the first stays before
            while at > 0 and utility[i, order[at - 1]] < utility[i, m]:
                order[at] = order[at - 1]
                at -= 1
            order[at] = m
            count += 1
    return count


@inlined
def _compete(r: Any, wide: Any, below: Any, table: Any, top: Any, winner: Any) -> None:
    """The model of rank r, in every draw, against those before it."""
    if r == 0:
        for t in range(len(top)):
            top[t] = np.float32(wide * np.float64(table[r, t])) + below
            winner[t] = np.int32(0)
        return
    for t in range(len(top)):
        value = np.float32(wide * np.float64(table[r, t])) + below
        ahead = value > top[t]
        top[t] = value if ahead else top[t]
        winner[t] = np.int32(r) if ahead else winner[t]


@inlined
def _won(r: Any, winner: Any) -> Any:
    """In how many draws; added up whole vectors at a time, which counts by winner can't be."""
    n = np.int32(0)
    for t in range(len(winner)):
        n += np.int32(winner[t] == np.int32(r))
    return np.float64(n)


@compiled(MATRIX, MATRIX, MATRIX, MASK, "float32[:,::1]", COLUMN, "float64", "float64", MATRIX)
def thompson(
    utility: Any,
    deviation: Any,
    mean_deviation: Any,
    allowed: Any,
    table: Any,
    scales: Any,
    context_variance: Any,
    deviation_min: Any,
    p: Any,
) -> None:
    """Fill in the probabilities of `thompson.Thompson`.

    `table` (k, rows) are draws, `scales` (k + 1,) factors by how many models are allowed.
    """
    n, k = utility.shape
    draws = table.shape[1]
    order, winner = np.empty(k, np.int64), np.empty(draws, np.int32)
    top = np.empty(draws, np.float32)
    for i in range(n):
        count = _best_first(utility, allowed, i, order)
        best = utility[i, order[0]]
        for r in range(count):
            m = order[r]
            own = min(mean_deviation[i, m], deviation[i, m])
            rest = deviation[i, m] * deviation[i, m] - own * own
            wide = scales[count] * math.sqrt(own * own + context_variance * rest)
            below = np.float32(utility[i, m] - best)
            _compete(r, max(wide, deviation_min), below, table, top, winner)
        for m in range(k):
            p[i, m] = 0.0
        for r in range(count):
            p[i, order[r]] = _won(r, winner) / draws


@compiled(MATRIX, MATRIX, "int64[::1]")
def pick(p: Any, uniform: Any, chosen: Any) -> None:
    """Draw as `policy.draw` does, by the first column of `uniform`."""
    n, k = p.shape
    edges = np.empty(k)
    for i in range(n):
        total = 0.0
        for m in range(k):
            total += p[i, m]
            edges[m] = total
        at, picked = uniform[i, 0] * total, 0
        for m in range(k):
            if edges[m] <= at:
                picked += 1
        chosen[i] = min(picked, k - 1)
