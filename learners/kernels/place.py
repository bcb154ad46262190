"""How full pools are at a moment, and a batch's requests into them, one after another.

    what telemetry said, what was sent since ─reckon─▶ pools now
    chosen models, ranks of pools            ─place──▶ pools, each request counting for the next

The same bits as `serve.routing.load_tracker` gives with numpy, and `placement.BatchPlacer`.
"""

from __future__ import annotations

import math
from typing import Any

from learners.kernels.compiled import compiled

# Rows (P,) of what a view says of pools: whether they are reported on, requests queued and running;
# whether they have a load that counts, it, and the logarithm of its price; their usual latency.
REPORTED, QUEUED, RUNNING, LOADED, LOAD_THEN, LOG_PRICE, EMPTY_MS = range(7)
# Rows (P,) of what pools are like now: how full, seconds to an answer, requests that wait, seconds
# to an answer when empty; what one more request that waits, and a second of work, add; the price.
LOAD, LATENCY_S, WAITING, EMPTY_S, PER_REQUEST, PER_WORK, MULTIPLE = range(7)
# What was sent since (P,): requests, their work.
SENT, WORK_S = range(2)
# Settings of `reckon`: seconds that fill a pool; of `learners.prices`.
FILL_S, DAMPED_LOAD_MAX, DAMPING, LOG_MULTIPLE_MAX = range(4)
# Settings of `place`: the least weights of latency and quality; what headroom is worth, and from
# which load on there is none.
LATENCY_MIN, QUALITY_MIN, HEADROOM, ROOM_FROM = range(4)

MATRIX, COLUMN, PLACES = "float64[:,::1]", "float64[::1]", "int64[::1]"


@compiled(MATRIX, MATRIX, COLUMN, "float64", COLUMN, MATRIX)
def reckon(
    known: Any, since: Any, per_work: Any, since_s: Any, settings: Any, now: Any
) -> None:  # fmt: skip
    """Fill in `now` (7, P); of prices the logarithm, whose power numpy knows to the last bit."""
    for p in range(now.shape[1]):
        empty_s, running, waiting = known[EMPTY_MS, p] / 1000.0, known[RUNNING, p], 0.0
        if known[REPORTED, p] != 0.0:
            waiting = known[QUEUED, p] + since[SENT, p] - running * since_s / empty_s
        lengthened = 1.0 + max(0.0, waiting) / running
        gone, charged = 0.0, 0.0
        if known[LOADED, p] != 0.0:
            gone = known[LOAD_THEN, p] * since_s / settings[FILL_S]
        load = max(0.0, known[LOAD_THEN, p] + since[WORK_S, p] * per_work[p] - gone)
        if known[LOADED, p] != 0.0:
            excess = min(load, settings[DAMPED_LOAD_MAX]) - 1.0
            charged = max(known[LOG_PRICE, p] + settings[DAMPING] * excess, 0.0)
        now[LOAD, p], now[WAITING, p] = load, waiting
        now[LATENCY_S, p], now[EMPTY_S, p] = known[EMPTY_MS, p] * lengthened / 1000.0, empty_s
        now[PER_REQUEST, p], now[PER_WORK, p] = known[REPORTED, p] / running, per_work[p]
        now[MULTIPLE, p] = min(charged, settings[LOG_MULTIPLE_MAX])


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
