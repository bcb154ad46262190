"""Embeddings to contexts in one call: unit length, centred, projected, rounded.

The sums run in the order of the embedding's numbers, so a context does not depend on what else is
in its batch. numpy's products are added in another order: now and then a number that lies between
two integers is rounded to the other one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import WIDE, compiled, inlined

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@inlined
def _length(row: Any, lanes: Any) -> Any:
    """‖row‖, squares being added in lanes."""
    lanes[:] = ZERO
    end = len(row) - len(row) % WIDE
    for j in range(0, end, WIDE):
        here = row[j : j + WIDE]
        for lane in range(WIDE):
            lanes[lane] += here[lane] * here[lane]
    total = ZERO
    for lane in range(WIDE):
        total += lanes[lane]
    for j in range(end, len(row)):
        total += row[j] * row[j]
    return math.sqrt(total)


@inlined
def _project(row: Any, length: Any, centre: Any, directions: Any, unit: Any, sums: Any) -> None:
    """`sums` = (row / length - centre) @ directions."""
    n, width = directions.shape
    for i in range(n):
        unit[i] = row[i] / length - centre[i]
    sums[:] = ZERO
    end = n - n % 4
    for i in range(0, end, 4):
        a, b, c, d = unit[i], unit[i + 1], unit[i + 2], unit[i + 3]
        one, two, three, four = (
            directions[i],
            directions[i + 1],
            directions[i + 2],
            directions[i + 3],
        )
        for j in range(width):
            sums[j] = sums[j] + (a * one[j] + b * two[j]) + (c * three[j] + d * four[j])
    for i in range(end, n):
        one = directions[i]
        for j in range(width):
            sums[j] += unit[i] * one[j]


@compiled("float32[:,::1]", "float32[::1]")
def lengths(rows: Any, found: Any) -> None:
    """‖row‖ of each."""
    lanes = np.empty(WIDE, np.float32)
    for row in range(len(rows)):
        found[row] = _length(rows[row], lanes)


@compiled(
    "float32[:,::1]",
    "float32[::1]",
    "float32[::1]",
    "float32[:,::1]",
    "float64[::1]",
    "int8[:,::1]",
)
def contexts(
    embeddings: Any, tokens: Any, centre: Any, directions: Any, units: Any, found: Any
) -> None:
    """Fill in contexts (n, 64) of `embeddings` (n, dim) and counts of `tokens` (n,).

    `directions` are (dim, WIDE or more), zero beyond the real ones. `units`: the number of
    directions, the length of a projected vector, tokens at zero in octaves, an octave, the bias.
    """
    n_directions = int(units[0])
    unit, sums = np.empty(len(centre), np.float32), np.empty(directions.shape[1], np.float32)
    lanes, size = np.empty(WIDE, np.float32), np.float32(units[1])
    for row in range(len(embeddings)):
        length = _length(embeddings[row], lanes)
        if length > ZERO:
            _project(embeddings[row], length, centre, directions, unit, sums)
        else:
            sums[:] = ZERO
        longest = _length(sums, lanes)
        scale = longest if longest > ZERO else ONE
        for j in range(n_directions):
            value = np.rint(sums[j] / scale * size)
            found[row, j] = np.int8(min(max(value, np.float32(-127.0)), np.float32(127.0)))
        octaves = 0.0
        if tokens[row] > ZERO:
            octaves = (math.log2(tokens[row]) - units[2]) * units[3]
        found[row, n_directions] = np.int8(min(max(np.rint(octaves), -127.0), 127.0))
        found[row, n_directions + 1] = np.int8(units[4])
