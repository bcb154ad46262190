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
from learners.kernels.vectors import BLOCK, length, product

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@inlined
def _centre(embeddings: Any, centre: Any, lanes: Any, unit: Any) -> None:
    """Embeddings at unit length, less the centre; zero where one is zero."""
    for one in range(len(embeddings)):
        row, to = embeddings[one], unit[one]
        long = length(row, lanes)
        to[:] = ZERO
        if long > ZERO:
            for i in range(len(centre)):
                to[i] = row[i] / long - centre[i]


@inlined
def _round(sums: Any, n_tokens: Any, units: Any, lanes: Any, found: Any) -> None:
    """A context from projected numbers and a count of tokens."""
    n_directions, size = int(units[0]), np.float32(units[1])
    longest = length(sums, lanes)
    scale = longest if longest > ZERO else ONE
    for j in range(n_directions):
        value = np.rint(sums[j] / scale * size)
        found[j] = np.int8(min(max(value, np.float32(-127.0)), np.float32(127.0)))
    octaves = 0.0
    if n_tokens > ZERO:
        octaves = (math.log2(n_tokens) - units[2]) * units[3]
    found[n_directions] = np.int8(min(max(np.rint(octaves), -127.0), 127.0))
    found[n_directions + 1] = np.int8(units[4])


@compiled("float32[:,::1]", "float32[::1]")
def lengths(rows: Any, found: Any) -> None:
    """‖row‖ of each."""
    lanes = np.empty(WIDE, np.float32)
    for row in range(len(rows)):
        found[row] = length(rows[row], lanes)


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
    lanes, n = np.empty(WIDE, np.float32), len(embeddings)
    together = BLOCK if n > 1 else 1
    unit = np.zeros((together, len(centre)), np.float32)
    sums = np.empty((together, directions.shape[1]), np.float32)
    for first in range(0, n, BLOCK):
        some = embeddings[first : first + BLOCK]
        _centre(some, centre, lanes, unit)
        product(unit, directions, len(some), False, sums)
        for one in range(len(some)):
            row = first + one
            _round(sums[one], tokens[row], units, lanes, found[row])
