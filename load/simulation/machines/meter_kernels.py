"""`infra.pools.replica_meter` as machine code, for many replicas at once: the same bits.

    gauges of engines, what came ─measure─▶ what each reports of itself: load, power, …
    latencies by replica         ─merge───▶ latencies by pool

What is measured, and why, is said there and in `infra.capacity`; this is that, with its names.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import compiled, inlined

# `can`: of a replica. Rates of its work, power, tokens its cache holds, and when it was launched.
PROMPT_S, FIXED_S, TPOT_S, IDLE_W, DECODE_W, PREFILL_W, KV_MAX, BEGAN = range(8)
# `known`: of a replica, what was so when it reported last, or when its load began to be measured.
TOLD_S, TOLD_J, TOLD_TOKENS, LOOKED_S, LOOKED_BUSY, LOOKED_ITERATIONS, FLOW = range(7)
RECENT = 7  # five sums over the last minute's requests
N_CAN, N_KNOWN = 8, 12
# Sums of what came, in a window and in the last minute.
REQUESTS, PROMPT, OUTPUT, WORK, SQUARES = range(5)
# `seen`: gauges as `engine_kernels.look` finds them.
NOW, QUEUED, RUNNING, KV, TOKENS, ITERATIONS, WAITING, BUSY, PREFILL = range(9)
# `settings`: numbers that are declared in `infra.capacity`.
TTFT_S, TTFT_PER_1K, TARGET_TPOT, FLOW_S, LENGTHS_S, REPLICAS = range(6)
READING, SPREAD, LOAD_MIN, LOAD_MAX = range(6, 10)
# `found`: a column of what is reported.
R_QUEUED, R_RUNNING, R_KV_USE, R_LOAD, R_WATTS, R_JOULES, R_TOKENS = range(7)
N_FOUND = 7

MATRIX, COLUMN, PLACES = "float64[:,::1]", "float64[::1]", "int64[::1]"


@inlined
def _energy_j(can: Any, r: Any, seen: Any, at: Any) -> Any:
    """`Power.energy_j`."""
    all_s, busy_s, prefill_s = seen[at, NOW] - can[r, BEGAN], seen[at, BUSY], seen[at, PREFILL]
    energy_j = can[r, IDLE_W] * (all_s - busy_s) + can[r, DECODE_W] * (busy_s - prefill_s)
    return energy_j + can[r, PREFILL_W] * prefill_s


@inlined
def _load_for_wait(waits: Any, service_s: Any, cv2: Any, most_s: Any, load_max: Any) -> Any:
    """`queueing._load_for_wait`."""
    if most_s < 0.0:
        return 0.0
    unit_s = service_s * (1.0 + cv2)
    if unit_s * waits[-1] <= most_s:
        return load_max
    wanted = most_s / unit_s
    above = np.searchsorted(waits, wanted, side="right")
    share = (wanted - waits[above - 1]) / (waits[above] - waits[above - 1])
    return load_max * (above - 1 + share) / (len(waits) - 1)


@inlined
def _full(can: Any, known: Any, r: Any, settings: Any, waits: Any) -> Any:
    """`LoadGauge._full`, and `queueing.load_max`."""
    n, work_s = known[r, RECENT + REQUESTS], known[r, RECENT + WORK]
    if n < 1.0:
        return 1.0
    cv2 = 0.0
    if work_s != 0.0:
        cv2 = max(0.0, known[r, RECENT + SQUARES] * n / (work_s * work_s) - 1.0)
    prompt, output = known[r, RECENT + PROMPT] / n, known[r, RECENT + OUTPUT] / n
    reading_s = can[r, PROMPT_S] * prompt / (1.0 - can[r, FIXED_S] / can[r, TPOT_S])
    answer_s = max(1.0, output) * settings[TARGET_TPOT]
    left_s = settings[TTFT_S] + settings[TTFT_PER_1K] * prompt / 1000.0 - can[r, PROMPT_S] * prompt
    service_s = settings[READING] * reading_s
    first = _load_for_wait(waits, service_s, cv2, left_s, settings[LOAD_MAX])
    if output <= 1.0:
        return max(first, settings[LOAD_MIN])
    spread = settings[SPREAD] * reading_s * math.sqrt((1.0 + cv2) / settings[REPLICAS]) / answer_s
    root = (math.sqrt(spread * spread + 4.0) - spread) / 2.0
    return min(max(min(first, root * root), settings[LOAD_MIN]), settings[LOAD_MAX])


@inlined
def _end_window(known: Any, r: Any, reals: Any, sums: Any, window_s: Any, settings: Any) -> None:
    """`LoadGauge._end_window`."""
    kept = math.exp(-window_s / settings[FLOW_S])
    known[r, FLOW] = kept * known[r, FLOW] + (1.0 - kept) * reals[r, sums + WORK] / window_s
    kept = math.exp(-window_s / settings[LENGTHS_S])
    for of in range(5):
        known[r, RECENT + of] = kept * known[r, RECENT + of] + reals[r, sums + of]
        reals[r, sums + of] = 0.0


@inlined
def _load(
    can: Any, known: Any, r: Any, seen: Any, at: Any, reals: Any, sums: Any, settings: Any,
    waits: Any,
) -> Any:  # fmt: skip
    """`LoadGauge.read`."""
    window_s = seen[at, NOW] - known[r, LOOKED_S]
    busy_s = seen[at, BUSY] - known[r, LOOKED_BUSY]
    iterations = seen[at, ITERATIONS] - known[r, LOOKED_ITERATIONS]
    known[r, LOOKED_S], known[r, LOOKED_BUSY] = seen[at, NOW], seen[at, BUSY]
    known[r, LOOKED_ITERATIONS] = seen[at, ITERATIONS]
    if window_s > 0.0:
        _end_window(known, r, reals, sums, window_s, settings)
    waiting_s = seen[at, WAITING] * can[r, PROMPT_S]
    token_s = busy_s / iterations if iterations > 0.0 else 0.0
    late = max(0.0, token_s / settings[TARGET_TPOT] - 1.0)
    load = known[r, FLOW] / _full(can, known, r, settings, waits)
    return load + waiting_s / settings[TTFT_S] + late


@compiled(PLACES, MATRIX, MATRIX, MATRIX, "int64", MATRIX, COLUMN, COLUMN, MATRIX)
def measure(
    rows: Any, can: Any, known: Any, reals: Any, sums: Any, seen: Any, settings: Any, waits: Any,
    found: Any,
) -> None:  # fmt: skip
    """Fill in `found` (N_FOUND, R) of replicas `rows` (R,), whose gauges are `seen` (R, 9).

    `can`, `known` and `reals` are of all replicas; what came since the last report are the five
    columns of `reals` from `sums` on. `waits` is `queueing.waits`.
    """
    for at in range(len(rows)):
        r = rows[at]
        energy_j, elapsed_s = _energy_j(can, r, seen, at), seen[at, NOW] - known[r, TOLD_S]
        spent_j = max(0.0, energy_j - known[r, TOLD_J])
        found[R_QUEUED, at], found[R_RUNNING, at] = seen[at, QUEUED], seen[at, RUNNING]
        found[R_KV_USE, at] = min(max(seen[at, KV] / can[r, KV_MAX], 0.0), 1.0)
        found[R_LOAD, at] = _load(can, known, r, seen, at, reals, sums, settings, waits)
        found[R_WATTS, at] = spent_j / elapsed_s if elapsed_s > 0.0 else 0.0
        found[R_JOULES, at] = spent_j
        found[R_TOKENS, at] = max(0.0, seen[at, TOKENS] - known[r, TOLD_TOKENS])
        known[r, TOLD_S], known[r, TOLD_J] = seen[at, NOW], energy_j
        known[r, TOLD_TOKENS] = seen[at, TOKENS]


@compiled(PLACES, PLACES, "int64[:,:,::1]", "int64[:,:,::1]")
def merge(rows: Any, starts: Any, counts: Any, found: Any) -> None:
    """Move latencies of replicas into `found` (P, 2, buckets) of their pools.

    Those of pool p are `rows[starts[p] : starts[p + 1]]`.
    """
    for p in range(len(found)):
        for at in range(starts[p], starts[p + 1]):
            for kind in range(counts.shape[1]):
                for bucket in range(counts.shape[2]):
                    n = counts[rows[at], kind, bucket]
                    if n:  # of hundreds only a few: nothing is written for the others
                        found[p, kind, bucket] += n
                        counts[rows[at], kind, bucket] = 0
