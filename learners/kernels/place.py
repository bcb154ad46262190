"""A batch's requests into pools, one after another, in one call.

    chosen models, ranks of pools ─place─▶ pools, each request counting for the next

The same bits as `serve.routing.placement.BatchPlacer` gives, which it stands for.
"""

from __future__ import annotations

import math
from typing import Any

from learners.kernels.compiled import compiled

# Rows (P,) of what pools are like: how full, seconds to an answer, requests that wait, seconds to
# an answer when empty; and what one more request that waits, and a second of work, add.
LOAD, LATENCY_S, WAITING, EMPTY_S, PER_REQUEST, PER_WORK = range(6)
# Settings: the least weights of latency and quality; what headroom is worth, and from which load
# on there is none.
LATENCY_MIN, QUALITY_MIN, HEADROOM, ROOM_FROM = range(4)

MATRIX, COLUMN, PLACES = "float64[:,::1]", "float64[::1]", "int64[::1]"


@compiled(PLACES, PLACES, PLACES, MATRIX, MATRIX, MATRIX, MATRIX, COLUMN, PLACES)
def place(
    chosen: Any,
    starts: Any,
    columns: Any,
    fixed: Any,
    work: Any,
    weighed: Any,
    pool: Any,
    settings: Any,
    placed: Any,
) -> None:
    """Fill in `placed` (n,) where the chosen model has several pools; `pool` is kept up to date.

    What quality and latency are worth are the first and third of what is `weighed` (n, 4).
    Model m has the pools `columns[starts[m] : starts[m + 1]]`, the first one first.
    """
    for i in range(len(chosen)):
        first, end = starts[chosen[i]], starts[chosen[i] + 1]
        if end - first < 2:
            continue
        best, least = columns[first], math.inf
        latency = max(weighed[i, 2], settings[LATENCY_MIN])
        late = max(weighed[i, 0], settings[QUALITY_MIN])
        for at in range(first, end):
            p = columns[at]
            load = pool[LOAD, p]
            rank = fixed[i, p] + latency * pool[LATENCY_S, p] + settings[HEADROOM] * load
            if load > settings[ROOM_FROM]:
                rank += late * (load - settings[ROOM_FROM])
            if rank < least:
                best, least = p, rank
        placed[i] = best
        pool[WAITING, best] += 1.0
        waits = max(0.0, pool[WAITING, best]) * pool[PER_REQUEST, best]
        pool[LATENCY_S, best] = pool[EMPTY_S, best] * (1.0 + waits)
        pool[LOAD, best] += pool[PER_WORK, best] * work[i, best]
