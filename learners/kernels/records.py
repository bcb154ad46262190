"""Decisions as they are written: models ranked, and numbers put where they stand in a record.

    columns (n, k) ─cases───▶ the chosen models and all of them, as in a reply; who comes next
                   └─tickets─▶ heads and candidates of tickets

A record is copied from a template; offsets say where its numbers stand. They are written as the
processor has them, the lowest byte first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import compiled, inlined

MATRIX, BYTES, OFFSETS = "float64[:,::1]", "uint8[:,::1]", "int64[::1]"
# Offsets of `tickets`: of a head's keys and of its floats; of a candidate's.
MODEL, POOL, PROPENSITY = 0, 1, 2
PREFERENCE, EXPECTED_USD, EXPECTED_MS, CONTEXT, ESTIMATED, ESTIMATED_USD = range(3, 9)
UTILITY, QUALITY, COST_USD, LATENCY_MS, VERDICT = range(3, 8)


@inlined
def _put(content: Any, record: Any, at: Any) -> None:
    place = record[at : at + len(content)]  # a slice: an index that may be negative is slower
    for byte in range(len(content)):
        place[byte] = content[byte]


@inlined
def _put_number(bits: Any, n_bytes: Any, record: Any, at: Any) -> None:
    place = record[at : at + n_bytes]
    for byte in range(n_bytes):
        place[byte] = np.uint8((bits >> np.uint64(8 * byte)) & np.uint64(255))


@inlined
def _rank(utility: Any, verdict: Any, chosen: Any, order: Any) -> Any:
    """Fill in one row of `cases`' order; how many they are."""
    count = 0
    for m in range(len(utility)):
        if verdict[m] != 0 or m == chosen or utility[m] == -math.inf:
            continue
        at = count  # insertion; of equals the first stays before
        while at > 0 and utility[order[at - 1]] < utility[m]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = m
        count += 1
    return count


@compiled(
    f"UniTuple({MATRIX}, 9)",
    MATRIX,
    BYTES,
    OFFSETS,
    OFFSETS,
    "uint8[::1]",
    OFFSETS,
    "uint8[::1]",
    BYTES,
    BYTES,
    "int64[:,::1]",
    OFFSETS,
)
def cases(
    numbers: Any,
    utility: Any,
    verdict: Any,
    chosen: Any,
    own_at: Any,
    own_template: Any,
    other_at: Any,
    other_template: Any,
    own: Any,
    others: Any,
    order: Any,
    counts: Any,
) -> None:
    """Fill in records of the chosen models, `own` (n, size), and of all, `others` (nk, size).

    `numbers` (n, k) each are put at the offsets `own_at` and `other_at`. Of each row, `order` has
    the eligible models that were not chosen, best first, and `counts` how many they are.
    """
    n, k = utility.shape
    one = np.empty(1)
    bits = one.view(np.uint64)
    for i in range(n):
        counts[i] = _rank(utility[i], verdict[i], chosen[i], order[i])
        _put(own_template, own[i], 0)
        for column in range(len(own_at)):
            one[0] = numbers[column][i, chosen[i]]
            _put_number(bits[0], 8, own[i], own_at[column])
        for m in range(k):
            record = others[i * k + m]
            _put(other_template, record, 0)
            for column in range(len(other_at)):
                one[0] = numbers[column][i, m]
                _put_number(bits[0], 8, record, other_at[column])


@compiled(
    f"UniTuple({MATRIX}, 5)",
    BYTES,
    "int64[:,::1]",
    OFFSETS,
    OFFSETS,
    f"UniTuple({MATRIX}, 3)",
    MATRIX,
    "int8[:,::1]",
    "float64[::1]",
    "uint64[::1]",
    "uint64[::1]",
    OFFSETS,
    OFFSETS,
    BYTES,
    "uint8[:,:,::1]",
)
def tickets(
    numbers: Any,
    verdict: Any,
    pools: Any,
    chosen: Any,
    pool: Any,
    of_chosen: Any,
    preference: Any,
    contexts: Any,
    stated_ms: Any,
    model_keys: Any,
    pool_keys: Any,
    head_at: Any,
    cell_at: Any,
    heads: Any,
    cells: Any,
) -> None:
    """Fill in `heads` (n, size) and `cells` (n, k, size) of tickets, which are templates before.

    `numbers` (n, k) each are propensities, utilities, qualities, costs and latencies; `of_chosen`
    costs by the catalogue, and quality and cost before calibration.
    """
    n, k = verdict.shape
    single = np.empty(1, np.float32)
    bits = single.view(np.uint32)
    for i in range(n):
        head, c = heads[i], chosen[i]
        _put_number(model_keys[c], 8, head, head_at[MODEL])
        _put_number(pool_keys[pool[i]], 8, head, head_at[POOL])
        single[0] = numbers[0][i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[PROPENSITY])
        for weight in range(preference.shape[1]):
            single[0] = preference[i, weight]
            _put_number(np.uint64(bits[0]), 4, head, head_at[PREFERENCE] + 4 * weight)
        single[0] = of_chosen[0][i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[EXPECTED_USD])
        single[0] = stated_ms[c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[EXPECTED_MS])
        for j in range(contexts.shape[1]):
            head[head_at[CONTEXT] + j] = np.uint8(contexts[i, j])
        single[0] = of_chosen[1][i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[ESTIMATED])
        single[0] = of_chosen[2][i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[ESTIMATED_USD])
        for m in range(k):
            cell = cells[i, m]
            _put_number(pool_keys[pool[i] if m == c else pools[i, m]], 8, cell, cell_at[POOL])
            for column in range(5):
                single[0] = numbers[column][i, m]
                _put_number(np.uint64(bits[0]), 4, cell, cell_at[PROPENSITY + column])
            cell[cell_at[VERDICT]] = verdict[i, m]
