"""The nearest vectors of an index in lists (`learners.estimates.nearest.ivf`), found in one call.

    direction ─▶ its nearest centroids ─▶ their lists, number by number ─▶ the best of what was read

FAISS keeps the best in a heap, which takes as long as reading does. Here all that was read is kept,
and the best are those above a bar that is found by counting. Lists are read where FAISS has
them: nothing is copied.

Numbers of 8 bits are multiplied with those of the direction in 16 bits, and added as whole numbers:
so similarities have the same bits on any processor, in a batch of any size. They are off by less
than what 8 bits make a vector be off.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.extending import intrinsic

from learners.kernels.compiled import compiled, inlined

ZERO = np.float32(0.0)
N_NUMBERS = 64  # of a vector: said here, so that the loop over them is vectorised
FINE = 32767.0  # the largest number of a direction in 16 bits
BINS = 512  # that similarities are counted in
TOGETHER = 16  # directions that the centroids are read for once


def _of_address(typing_context: Any, address: Any) -> Any:  # noqa: ARG001 - as numba calls it
    """An address as what `carray` takes."""

    def cast(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.uint64), cast


_pointer: Any = intrinsic(_of_address)


@inlined
def _closest(to_centroids: Any, lists: Any) -> None:
    """Fill in the `lists` of the highest values, best first."""
    n, count = len(lists), 0
    bar = -np.inf
    for one in range(len(to_centroids)):
        value = to_centroids[one]
        if count == n and not value > bar:
            continue
        at = count if count < n else n - 1
        while at > 0 and to_centroids[lists[at - 1]] < value:
            lists[at] = lists[at - 1]
            at -= 1
        lists[at] = one
        count = min(count + 1, n)
        bar = to_centroids[lists[count - 1]]


@inlined
def _fine(direction: Any, low: Any, span: Any, fine: Any) -> Any:
    """The direction in 16 bits of each number's span; what one is worth, and what all 0 are."""
    most, least = 1e-12, 0.0
    for i in range(len(low)):
        one = np.float64(direction[i])
        most = max(most, abs(one * span[i]))
        least += one * (low[i] + span[i] / 510.0)
    for i in range(len(low)):
        fine[i] = np.int16(np.rint(np.float64(direction[i]) * span[i] / most * FINE))
    return most / FINE / 255.0, least


@inlined
def _read(codes: Any, fine: Any, values: Any) -> None:
    """The products of a list's vectors with a direction."""
    for row in range(len(codes)):
        code, total = codes[row], np.int32(0)
        for i in range(N_NUMBERS):
            total += np.int32(code[i]) * np.int32(fine[i])
        values[row] = total


@inlined
def _count(values: Any, counts: Any) -> Any:
    """How many of the values are in each of `BINS` equal spans: the least value, and a span."""
    low, high = np.int64(values[0]), np.int64(values[0])
    for one in values:
        low, high = min(low, np.int64(one)), max(high, np.int64(one))
    width = (high - low) // BINS + 1
    counts[:] = 0
    for one in values:
        counts[(np.int64(one) - low) // width] += 1
    return low, width


@inlined
def _best(values: Any, counts: Any, rows: Any) -> Any:
    """Fill in the `rows` of the highest values, in no order; how many they are."""
    wanted = min(len(rows), len(values))
    if not wanted:
        return 0
    low, width = _count(values, counts)
    sure, span = 0, BINS - 1
    while sure + counts[span] < wanted:
        sure += counts[span]
        span -= 1
    bar, n, end = low + span * width, 0, sure
    for row in range(len(values)):
        value = np.int64(values[row])
        if value >= bar + width:
            rows[n] = row
            n += 1
        elif value >= bar:  # of this span only the best: by insertion, as there are few
            at = min(end, wanted - 1)
            if end == wanted and value <= values[rows[at]]:
                continue
            while at > sure and values[rows[at - 1]] < value:
                rows[at] = rows[at - 1]
                at -= 1
            rows[at] = row
            end = min(end + 1, wanted)
    return wanted


@inlined
def _centroids(directions: Any, centroids: Any, found: Any) -> None:
    """Similarities (n, lists) of directions to `centroids` (64, lists), one column each."""
    found[:] = ZERO
    for i in range(0, len(centroids), 4):
        p, q, r, s = centroids[i], centroids[i + 1], centroids[i + 2], centroids[i + 3]
        for one in range(len(directions)):
            a, b = directions[one, i], directions[one, i + 1]
            c, d, to = directions[one, i + 2], directions[one, i + 3], found[one]
            for j in range(len(to)):
                to[j] += (a * p[j] + b * q[j]) + (c * r[j] + d * s[j])


@inlined
def _search(
    direction: Any,
    lists: Any,
    places: Any,
    scale: Any,
    fine: Any,
    values: Any,
    ids: Any,
    counts: Any,
    rows: Any,
    similarity: Any,
    found: Any,
) -> None:
    """One direction's nearest among the vectors of some lists."""
    unit, least = _fine(direction, scale[0], scale[1], fine)
    n = 0
    for one in lists:
        size = places[2, one]
        if size:
            codes = numba.carray(_pointer(places[0, one]), (size, N_NUMBERS), np.uint8)
            numbers = numba.carray(_pointer(places[1, one]), (size,), np.int64)
            _read(codes, fine, values[n : n + size])
            ids[n : n + size] = numbers
            n += size
    most = _best(values[:n], counts, rows)
    for at in range(len(found)):
        similarity[at], found[at] = -np.inf, -1
        if at < most:
            similarity[at] = np.float32(least + unit * np.float64(values[rows[at]]))
            found[at] = ids[rows[at]]


@compiled(
    "float32[:,::1]",
    "float32[:,::1]",
    "uint64[:,::1]",
    "float64[:,::1]",
    "int64",
    "int64",
    "float32[:,::1]",
    "int64[:,::1]",
)
def search(
    directions: Any,
    centroids: Any,
    places: Any,
    scale: Any,
    n_lists: Any,
    read_max: Any,
    similarity: Any,
    found: Any,
) -> None:
    """Fill in similarities and numbers (n, j) of the vectors nearest to directions (n, 64).

    `places` (3, lists) are the addresses of each list's codes and numbers, and how many they are;
    `scale` (2, 64) the least and the span of each number of a vector; `read_max` how many vectors
    any `n_lists` lists have.
    """
    n, wanted = found.shape
    near = np.empty((min(n, TOGETHER), centroids.shape[1]), np.float32)
    lists, rows = np.empty(n_lists, np.int64), np.empty(wanted, np.int64)
    values, ids = np.empty(read_max, np.int32), np.empty(read_max, np.int64)
    fine, counts = np.empty(N_NUMBERS, np.int16), np.empty(BINS, np.int64)
    for first in range(0, n, TOGETHER):
        some = directions[first : first + TOGETHER]
        _centroids(some, centroids, near[: len(some)])
        for i in range(len(some)):
            _closest(near[i], lists)
            _search(
                some[i],
                lists,
                places,
                scale,
                fine,
                values,
                ids,
                counts,
                rows,
                similarity[first + i],
                found[first + i],
            )
