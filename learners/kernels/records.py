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
CUBE = "float64[:,:,::1]"
# Where a number comes from: a row of the figures (f, n, k), or one of these columns (n, k).
PROPENSITY_OF, ENERGY_OF = -1, -2
# Offsets of `tickets`: of a head's time, keys and floats; of a candidate's.
MODEL, POOL, PROPENSITY = 0, 1, 2
PREFERENCE, EXPECTED_USD, EXPECTED_MS, CONTEXT, ESTIMATED, ESTIMATED_USD, DECIDED = range(3, 10)
VERDICT = 7
# Sources of `tickets`: five of a candidate from the first on, then of a head.
OF_CANDIDATE, OF_EXPECTED_USD, OF_ESTIMATED, OF_ESTIMATED_USD = 5, 5, 6, 7


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


@inlined
def _row(source: Any, figures: Any, propensity: Any, energy_j: Any, i: Any) -> Any:
    """Numbers (k,) of one request."""
    if source == PROPENSITY_OF:
        return propensity[i]
    return energy_j[i] if source == ENERGY_OF else figures[np.uint64(source), i]


@compiled(
    CUBE,
    MATRIX,
    MATRIX,
    BYTES,
    OFFSETS,
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
    figures: Any,
    propensity: Any,
    energy_j: Any,
    verdict: Any,
    chosen: Any,
    sources: Any,
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

    Numbers of these `sources` are put at the offsets `own_at` and `other_at`; utility is the first
    of the `figures`. Of each row, `order` has the eligible models that were not chosen, best first,
    and `counts` how many they are.
    """
    _, n, k = figures.shape
    one = np.empty(1)
    bits = one.view(np.uint64)
    for i in range(n):
        counts[i] = _rank(figures[0, i], verdict[i], chosen[i], order[i])
        _put(own_template, own[i], 0)
        for m in range(k):
            _put(other_template, others[i * k + m], 0)
        for column in range(len(sources)):
            values = _row(sources[column], figures, propensity, energy_j, i)
            one[0] = values[chosen[i]]
            _put_number(bits[0], 8, own[i], own_at[column])
            for m in range(k):
                one[0] = values[m]
                _put_number(bits[0], 8, others[i * k + m], other_at[column])


@compiled(
    CUBE,
    MATRIX,
    BYTES,
    "int64[:,::1]",
    OFFSETS,
    OFFSETS,
    OFFSETS,
    MATRIX,
    "int8[:,::1]",
    "float64[::1]",
    "uint64[::1]",
    "uint64[::1]",
    "int64",
    OFFSETS,
    OFFSETS,
    BYTES,
    "uint8[:,:,::1]",
)
def tickets(
    figures: Any,
    propensity: Any,
    verdict: Any,
    pools: Any,
    chosen: Any,
    pool: Any,
    sources: Any,
    preference: Any,
    contexts: Any,
    stated_ms: Any,
    model_keys: Any,
    pool_keys: Any,
    at_ms: Any,
    head_at: Any,
    cell_at: Any,
    heads: Any,
    cells: Any,
) -> None:
    """Fill in `heads` (n, size) and `cells` (n, k, size) of tickets, which are templates before.

    The `sources` are those of a candidate's numbers, in the order of their offsets, and of a
    head's: the cost by the catalogue, and quality and cost before calibration.
    """
    n, k = verdict.shape
    single = np.empty(1, np.float32)
    bits = single.view(np.uint32)
    for i in range(n):
        head, c = heads[i], chosen[i]
        _put_number(np.uint64(at_ms), 8, head, head_at[DECIDED])
        _put_number(model_keys[c], 8, head, head_at[MODEL])
        _put_number(pool_keys[pool[i]], 8, head, head_at[POOL])
        single[0] = propensity[i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[PROPENSITY])
        for weight in range(preference.shape[1]):
            single[0] = preference[i, weight]
            _put_number(np.uint64(bits[0]), 4, head, head_at[PREFERENCE] + 4 * weight)
        single[0] = figures[sources[OF_EXPECTED_USD], i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[EXPECTED_USD])
        single[0] = stated_ms[c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[EXPECTED_MS])
        for j in range(contexts.shape[1]):
            head[head_at[CONTEXT] + j] = np.uint8(contexts[i, j])
        single[0] = figures[sources[OF_ESTIMATED], i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[ESTIMATED])
        single[0] = figures[sources[OF_ESTIMATED_USD], i, c]
        _put_number(np.uint64(bits[0]), 4, head, head_at[ESTIMATED_USD])
        for m in range(k):
            cell = cells[i, m]
            _put_number(pool_keys[pool[i] if m == c else pools[i, m]], 8, cell, cell_at[POOL])
            cell[cell_at[VERDICT]] = verdict[i, m]
        for column in range(OF_CANDIDATE):
            values = _row(sources[column], figures, propensity, propensity, i)
            for m in range(k):
                single[0] = values[m]
                _put_number(np.uint64(bits[0]), 4, cells[i, m], cell_at[PROPENSITY + column])
