"""Estimates of all models in one call: landmark features, linear models, deviations.

    context ─▶ φ, the same integers as `landmarks` gives ─▶ w·φ and ‖spread φ‖ of every model

Sums run over features in their order, for all columns side by side, and for four requests at a time
(`vectors`). Numbers are float32 as in `ridge`, whose products numpy adds in another order: so the
two agree to rounding, not to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import WIDE, compiled, inlined
from learners.kernels.vectors import length, product

ZERO, ONE = np.float32(0.0), np.float32(1.0)
TOGETHER = 16  # requests: what is computed of them stays in the first cache


@inlined
def _similar(
    contexts: Any, points: Any, lengths: Any, unit: Any, numbers: Any, dots: Any, similar: Any
) -> None:
    """What contexts have in common with each landmark, as integers. Sums are exact."""
    n, n_similar = len(contexts), len(points)
    for one in range(n):
        for i in range(n_similar):
            numbers[one, i] = np.float32(contexts[one, i])
    product(numbers, points, n, False, dots)
    for one in range(n):
        square, of, found = np.int64(0), dots[one], similar[one]
        for i in range(n_similar):
            square += np.int64(contexts[one, i]) * np.int64(contexts[one, i])
        length = math.sqrt(np.float64(square))
        for j in range(len(lengths)):
            both = length * lengths[j]
            half = (1.0 + np.float64(of[j]) / (both if both > 0.0 else 1.0)) / 2.0
            half = half * half
            found[j] = np.rint(half * half * unit)


@inlined
def _whiten(similar: Any, whitener: Any, shift: Any, units: Any, white: Any, phis: Any) -> None:
    """φ of contexts, on its real scale. Sums are exact."""
    n_landmarks, step = len(whitener), np.float32(units[2])
    product(similar, whitener, len(phis), False, white)
    for one in range(len(phis)):
        phi, to = phis[one], white[one]
        for j in range(n_landmarks):
            value = np.rint(to[j] * units[1] + shift[j])
            phi[j] = np.float32(min(max(value, -127.0), 127.0)) * step
        phi[n_landmarks] = ONE


@inlined
def _product(x: Any, rows: Any, sums: Any) -> None:
    """`sums` = xᵀ `rows`."""
    n, width = rows.shape
    sums[:] = ZERO
    for i in range(0, n, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        one, two, three, four = rows[i], rows[i + 1], rows[i + 2], rows[i + 3]
        for j in range(width):
            sums[j] = sums[j] + (a * one[j] + b * two[j]) + (c * three[j] + d * four[j])


@inlined
def _ratios(contexts: Any, of_ratios: Any, units: Any, figures: Any, mean: Any) -> None:
    """Cost and latency."""
    k, step = mean.shape[1], np.float32(units[2])
    x, ratios = np.empty(len(of_ratios), np.float32), np.empty(2 * k, np.float32)
    for row in range(len(contexts)):
        for i in range(len(x)):
            x[i] = np.float32(contexts[row, i]) * step
        _product(x, of_ratios, ratios)
        for m in range(k):
            mean[row, m, 1] = ratios[m] + figures[1, m]
            mean[row, m, 2] = ratios[k + m] + figures[2, m]


@inlined
def _judge(
    row: Any, m: Any, part: Any, n_features: Any, figures: Any, lanes: Any, mean: Any
) -> Any:
    """Quality, from φᵀ spread; and its deviation, which is returned."""
    mean[row, m, 0] = part[n_features] + figures[0, m]
    part[n_features] = ZERO
    return math.hypot(length(part, lanes) * figures[3, m], figures[4, m])


@inlined
def _blend(nearby: Any, share: Any, ratio: Any, figures: Any, mean: Any) -> None:
    """Let neighbours have their share, and turn units of ratios into ratios of some size."""
    for row in range(len(mean)):
        for m in range(mean.shape[1]):
            if len(nearby):
                for t in range(3):
                    mean[row, m, t] += share * (nearby[row, m, t] - mean[row, m, t])
            mean[row, m, 1] = max(mean[row, m, 1] * ratio, figures[5, m])
            mean[row, m, 2] = max(mean[row, m, 2] * ratio, figures[6, m])


@compiled(
    "int8[:,::1]",
    "float32[:,::1]",
    "float64[::1]",
    "float64[:,::1]",
    "float64[::1]",
    "float64[::1]",
    "float32[:,::1]",
    "float32[:,:,::1]",
    "float32[:,::1]",
    "float32[:,:,::1]",
    "float32[:,:,::1]",
    "float32[:,::1]",
)
def estimate(
    contexts: Any,
    points: Any,
    lengths: Any,
    whitener: Any,
    shift: Any,
    units: Any,
    of_ratios: Any,
    spread: Any,
    figures: Any,
    nearby: Any,
    mean: Any,
    deviation: Any,
) -> None:
    """Fill in `mean` (n, k, 3) and `deviation` (n, k) of `contexts` (n, 64).

    `points` (63, 128) are landmarks of these `lengths` (128,); `units` are those of a similarity,
    of the `whitener` (128, 128), of a feature and of a ratio, and the neighbours' share. `spread`
    (k, 129, more) is that of `Ridge`, with the weights of quality in the first column after it;
    `of_ratios` (64, 2k) are the weights of ratios, `figures` (7, k) means of the three targets,
    noise, the part of the deviation that no context changes, and the least ratios. `nearby`
    (n, k, 3) is what neighbours estimate; without any there are none of them.
    """
    k, n_features, width = spread.shape
    n, lanes, n_landmarks = len(contexts), np.empty(WIDE, np.float32), len(lengths)
    together = TOGETHER if n > 1 else 1
    phis = np.zeros((together, n_features), np.float32)
    sums = np.empty((together, width), np.float32)
    numbers = np.zeros((together, len(points)), np.float32)
    dots = np.empty((together, n_landmarks), np.float32)
    similar, white = np.zeros((together, n_landmarks)), np.empty((together, n_landmarks))
    _ratios(contexts, of_ratios, units, figures, mean)
    for first in range(0, n, TOGETHER):
        some = contexts[first : first + TOGETHER]
        _similar(some, points, lengths, units[0], numbers, dots, similar)
        _whiten(similar, whitener, shift, units, white, phis[: len(some)])
        for m in range(k):
            product(phis, spread[m], len(some), True, sums)
            for i in range(len(some)):
                row = first + i
                deviation[row, m] = _judge(row, m, sums[i], n_features, figures, lanes, mean)
    _blend(nearby, np.float32(units[4]), np.float32(units[3]), figures, mean)


@compiled(
    "float32[:,::1]",
    "int64[:,::1]",
    "float32[:,::1]",
    "int64[::1]",
    "float64[::1]",
    "float32[:,:,::1]",
    "float32[:,:,::1]",
    "float32[::1]",
)
def evidence(
    similarity: Any,
    found: Any,
    terms: Any,
    models: Any,
    options: Any,
    deviation: Any,
    weight: Any,
    nearest: Any,
) -> None:
    """Weigh the rows `found` (n, j) at these similarities: see `history.Neighbours`.

    Each row has `terms` (rows, 6) and a model. `options` are the least similarity that counts and
    the two shrinkages. `deviation` and `weight` (n, k, 3) and `nearest` (n,) are filled in.
    """
    k = deviation.shape[1]
    sums, shared = np.empty((k, 6)), np.empty((2, 3))
    for row in range(len(found)):
        sums[:], shared[:] = 0.0, 0.0
        nearest[row] = ZERO
        for j in range(found.shape[1]):
            near = similarity[row, j]
            if found[row, j] < 0 or not near > np.float32(options[0]):
                continue
            nearest[row] = max(nearest[row], near)
            close = near * near
            close = close * close
            at = found[row, j]
            for t in range(6):
                sums[models[at], t] += np.float64(terms[at, t] * close)
        for m in range(k):
            for t in range(3):
                shared[0, t] += sums[m, 2 * t]
                shared[1, t] += sums[m, 2 * t + 1]
        for t in range(3):
            shared[1, t] /= shared[0, t] + options[1]
        for m in range(k):
            for t in range(3):
                own = sums[m, 2 * t + 1] - sums[m, 2 * t] * shared[1, t]
                own /= sums[m, 2 * t] + options[2]
                deviation[row, m, t] = np.float32(shared[1, t] + own)
                weight[row, m, t] = np.float32(sums[m, 2 * t])


@compiled("int8[:,::1]", "float32[:,::1]")
def unit_directions(contexts: Any, found: Any) -> None:
    """The directions of contexts (n, 64) at unit length: see `context.unit_directions`.

    `found` (n, 64) comes with zeros. Squares are summed exactly, so the bits are the same.
    """
    n_directions = contexts.shape[1] - 2  # the last two are the prompt's length, and constant
    for row in range(len(contexts)):
        square = ZERO
        for j in range(n_directions):
            a = np.float32(contexts[row, j])
            square += a * a
        length = np.float32(math.sqrt(square)) if square > ZERO else ONE
        for j in range(n_directions):
            found[row, j] = np.float32(contexts[row, j]) / length
