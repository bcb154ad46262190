"""What requests take up in every pool, what they are charged for it, and every model's best pool.

    prompts, preferences, pools ─charge─▶ work, energy, points  ─▶ the best pool of each model
    prices, loads, who may answer ─cheapest─▶ the least price of what a request could take

The same bits as numpy gives in `serve.routing.placement`, which says what is charged and why.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import compiled

# Rows (P,) of what a view says of pools: what a request is to it (`learners.work`), the length of
# its model's answers, how much more work requests were found to be; power, cost; whether it has
# replicas, and whether it gets no more requests.
PROMPT_S, OUTPUT_S, CONTEXT_S, REQUEST_S, SPARE, PER_SEQUENCE, PER_HELD = range(7)
LENGTH, FACTOR, WATTS, USD_PER_S, OPEN, DRAINING = range(7, 13)
# Rows (P,) of what changes with every request, as `place` has them: how full, seconds to an answer,
# prices.
LOAD, LATENCY_S, MULTIPLE = 0, 1, 6
# What is found of pools (n, P), and at every model's best pool (n, k).
WORK, ENERGY, POINTS, FIXED, REFERENCE_USD = range(5)
POINTS_BEST, FIXED_BEST, REFERENCE_BEST, ENERGY_BEST = range(4)
# Settings: what power costs; a point's worth; the least weights of latency and quality; what
# headroom is worth, from which load on there is none; what a pool without replicas ranks.
USD_PER_J, VALUE_USD, LATENCY_MIN, QUALITY_MIN, HEADROOM, ROOM_FROM, CLOSED = range(7)

MATRIX, CUBE, COLUMN = "float64[:,::1]", "float64[:,:,::1]", "float64[::1]"
PLACES = "int64[::1]"


@compiled(
    COLUMN, MATRIX, MATRIX, MATRIX, MATRIX, PLACES, PLACES, COLUMN, CUBE, CUBE, COLUMN,
    "int64[:,::1]",
)  # fmt: skip
def charge(
    tokens: Any,
    preference: Any,
    pools: Any,
    now: Any,
    spread: Any,
    starts: Any,
    columns: Any,
    settings: Any,
    found: Any,
    at_best: Any,
    money: Any,
    best: Any,
) -> None:
    """Fill in `found` (5, n, P), `at_best` (4, n, k), what a dollar is worth (n,), and `best`.

    Model m has the pools `columns[starts[m] : starts[m + 1]]`. Without rows of `spread` prices are
    the same for all.
    """
    n, n_pools = found.shape[1:]
    rank = np.empty(n_pools)
    for i in range(n):
        prompt, energy_weight = tokens[i], preference[i, 3] / 1000.0
        money[i] = max(preference[i, 1], preference[i, 0] / settings[VALUE_USD])
        latency = max(preference[i, 2], settings[LATENCY_MIN])
        late = max(preference[i, 0], settings[QUALITY_MIN])
        for p in range(n_pools):
            output, load = pools[LENGTH, p], now[LOAD, p]
            held = (prompt + output / 2.0) * output
            least = pools[REQUEST_S, p] + prompt * pools[PROMPT_S, p]
            least = least + output * pools[OUTPUT_S, p] + held * pools[CONTEXT_S, p]
            full = max(output * pools[PER_SEQUENCE, p], held * pools[PER_HELD, p])
            work_s = max(least / pools[SPARE, p], least + full) * pools[FACTOR, p]
            energy_j, usd = work_s * pools[WATTS, p], work_s * pools[USD_PER_S, p]
            fixed = energy_weight * energy_j
            if settings[USD_PER_J] != 0.0:
                fixed = fixed + money[i] * (settings[USD_PER_J] * energy_j)
            priced = usd * now[MULTIPLE, p]
            if len(spread):
                priced = priced * spread[i, p]
            found[WORK, i, p], found[ENERGY, i, p] = work_s, energy_j
            found[FIXED, i, p], found[POINTS, i, p] = fixed, fixed + money[i] * priced
            found[REFERENCE_USD, i, p] = usd
            rank[p] = fixed + latency * now[LATENCY_S, p] + settings[HEADROOM] * load
            rank[p] += late * max(0.0, load - settings[ROOM_FROM])
            rank[p] = rank[p] if pools[OPEN, p] else settings[CLOSED]
            rank[p] = math.inf if pools[DRAINING, p] else rank[p]
        for m in range(best.shape[1]):
            taken, usd = columns[starts[m]], math.inf
            for at in range(starts[m], starts[m + 1]):
                p = columns[at]
                taken = p if rank[p] < rank[taken] else taken
                usd = min(usd, found[REFERENCE_USD, i, p])
            best[i, m], at_best[REFERENCE_BEST, i, m] = taken, usd
            at_best[POINTS_BEST, i, m] = found[POINTS, i, taken]
            at_best[FIXED_BEST, i, m] = found[FIXED, i, taken]
            at_best[ENERGY_BEST, i, m] = found[ENERGY, i, taken]


@compiled(COLUMN, COLUMN, MATRIX, PLACES, PLACES, "float64", "boolean[:,::1]", COLUMN)
def cheapest(
    multiple: Any,
    load: Any,
    pools: Any,
    starts: Any,
    columns: Any,
    room_from: Any,
    eligible: Any,
    least: Any,
) -> None:
    """Fill in the least price (n,) of eligible models (n, k), as far as their pools are full."""
    n, k = eligible.shape
    of_model = np.empty(k)
    for m in range(k):
        lowest = math.inf
        for at in range(starts[m], starts[m + 1]):
            p = columns[at]
            if pools[OPEN, p]:
                full = min(max((load[p] - room_from) / (1.0 - room_from), 0.0), 1.0)
                lowest = min(lowest, multiple[p] * full)
        of_model[m] = lowest if lowest < math.inf else 0.0  # nothing is known of it
    for i in range(n):
        lowest = math.inf
        for m in range(k):
            if eligible[i, m]:
                lowest = min(lowest, of_model[m])
        least[i] = lowest
