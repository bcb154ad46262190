"""Decisions as they are written: models ranked, and numbers put where they stand in a record."""

from __future__ import annotations

import math
from typing import Any

from learners.kernels.compiled import compiled

F64_BYTES = 8


@compiled("float64[:,::1]", "uint8[:,::1]", "int64[::1]", "int64[:,::1]", "int64[::1]")
def rank(utility: Any, verdict: Any, chosen: Any, order: Any, counts: Any) -> None:
    """Of each row, the eligible models that were not chosen, best first, and how many they are."""
    n, k = utility.shape
    for i in range(n):
        count = 0
        for m in range(k):
            if verdict[i, m] != 0 or m == chosen[i] or utility[i, m] == -math.inf:
                continue
            at = count  # insertion; of equals the first stays before
            while at > 0 and utility[i, order[i, at - 1]] < utility[i, m]:
                order[i, at] = order[i, at - 1]
                at -= 1
            order[i, at] = m
            count += 1
        counts[i] = count


@compiled("float64[:,::1]", "uint8[:,::1]", "int64[::1]", "boolean[::1]")
def explored(utility: Any, verdict: Any, chosen: Any, found: Any) -> None:
    """Of each row, whether the chosen model is not eligible, or another has a higher utility."""
    n, k = utility.shape
    for i in range(n):
        found[i] = verdict[i, chosen[i]] != 0
        for m in range(k):
            if verdict[i, m] == 0 and utility[i, m] > utility[i, chosen[i]]:
                found[i] = True


@compiled("uint8[:,::1]", "int64[::1]", "uint8[::1]", "int64[::1]", "uint8[:,::1]")
def write(numbers: Any, offsets: Any, template: Any, cells: Any, records: Any) -> None:
    """Fill in `records` (c, size): the `template` with the numbers of the `cells` (c,) put in.

    `numbers` are the bytes of float64 columns, one behind the other; each has an offset.
    """
    for row in range(len(cells)):
        first = cells[row] * F64_BYTES
        for byte in range(len(template)):
            records[row, byte] = template[byte]
        for column in range(len(offsets)):
            for byte in range(F64_BYTES):
                records[row, offsets[column] + byte] = numbers[column, first + byte]
