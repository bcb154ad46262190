"""Estimates of all models in one call: landmark features, linear models, deviations.

    context ─▶ φ, the same integers as `landmarks` gives ─▶ w·φ and ‖spread φ‖ of every model

Sums run over features in their order, for all models or columns side by side: that is what a
processor's vector units do well without reordering anything. Numbers are float32 as in `ridge`,
whose products numpy adds in another order: so the two agree to rounding, not to the bit.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from learners.kernels.compiled import WIDE, compiled, inlined

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@inlined
def _features(
    context: Any, points: Any, lengths: Any, whitener: Any, shift: Any, units: Any, phi: Any
) -> None:
    """φ of one context, on its real scale. All sums are of integers, so they are exact."""
    n_similar, n_landmarks = points.shape
    dots = np.zeros(n_landmarks, np.float32)
    square = ZERO
    for i in range(n_similar):
        a = np.float32(context[i])
        square += a * a
        for j in range(n_landmarks):
            dots[j] += a * points[i, j]
    length = math.sqrt(np.float64(square))
    similar, white = np.empty(n_landmarks), np.zeros(n_landmarks)
    for j in range(n_landmarks):
        both = length * lengths[j]
        half = (1.0 + np.float64(dots[j]) / (both if both > 0.0 else 1.0)) / 2.0
        half = half * half
        similar[j] = np.rint(half * half * units[0])
    for i in range(0, n_landmarks, 4):
        a, b, c, d = similar[i], similar[i + 1], similar[i + 2], similar[i + 3]
        for j in range(n_landmarks):
            one, other = a * whitener[i, j] + b * whitener[i + 1, j], c * whitener[i + 2, j]
            white[j] += one + (other + d * whitener[i + 3, j])
    step = np.float32(units[2])
    for j in range(n_landmarks):
        value = np.rint(white[j] * units[1] + shift[j])
        phi[j] = np.float32(min(max(value, -127.0), 127.0)) * step
    phi[n_landmarks] = ONE


@inlined
def _norm(phi: Any, spread: Any, part: Any) -> Any:
    """‖φᵀ spread‖ of an upper triangle: in the columns before a row's own there is nothing."""
    n, width = spread.shape
    part[:] = ZERO
    for i in range(0, n - n % 4, 4):
        a, b, c, d = phi[i], phi[i + 1], phi[i + 2], phi[i + 3]
        for j in range(i - i % WIDE, width):
            sum_ab = a * spread[i, j] + b * spread[i + 1, j]
            part[j] += sum_ab + (c * spread[i + 2, j] + d * spread[i + 3, j])
    for i in range(n - n % 4, n):
        for j in range(i - i % WIDE, width):
            part[j] += phi[i] * spread[i, j]
    sums = np.zeros(WIDE, np.float32)
    for j in range(0, width, WIDE):
        for lane in range(WIDE):
            sums[lane] += part[j + lane] * part[j + lane]
    total = ZERO
    for lane in range(WIDE):
        total += sums[lane]
    return math.sqrt(total)


@compiled(
    "int8[:,::1]",
    "float32[:,::1]",
    "float64[::1]",
    "float64[:,::1]",
    "float64[::1]",
    "float64[::1]",
    "float32[:,::1]",
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
    of_quality: Any,
    of_ratios: Any,
    spread: Any,
    figures: Any,
    nearby: Any,
    mean: Any,
    deviation: Any,
) -> None:
    """Fill in `mean` (n, k, 3) and `deviation` (n, k) of `contexts` (n, 64).

    `points` (63, 128) are landmarks of these `lengths` (128,); `units` are those of a similarity,
    of the `whitener` (128, 128), of a feature and of a ratio, and the neighbours' share.
    `of_quality` (129, k) and `of_ratios` (64, 2k) are weights, `figures` (5, k) means of the three
    targets, noise and the part of the deviation that no context changes. `nearby` (n, k, 3) is what
    neighbours estimate; without any there are none of them.
    """
    k = spread.shape[0]
    phi, part = np.empty(spread.shape[1], np.float32), np.empty(spread.shape[2], np.float32)
    quality, ratios = np.empty(k, np.float32), np.empty(2 * k, np.float32)
    step, ratio, share = np.float32(units[2]), np.float32(units[3]), np.float32(units[4])
    for row in range(len(contexts)):
        context = contexts[row]
        _features(context, points, lengths, whitener, shift, units, phi)
        quality[:] = ZERO
        for i in range(len(of_quality)):
            for m in range(k):
                quality[m] += phi[i] * of_quality[i, m]
        ratios[:] = ZERO
        for i in range(len(of_ratios)):
            a = np.float32(context[i]) * step
            for m in range(2 * k):
                ratios[m] += a * of_ratios[i, m]
        for m in range(k):
            mean[row, m, 0] = quality[m] + figures[0, m]
            mean[row, m, 1] = ratios[m] + figures[1, m]
            mean[row, m, 2] = ratios[k + m] + figures[2, m]
            if len(nearby):
                for t in range(3):
                    mean[row, m, t] += share * (nearby[row, m, t] - mean[row, m, t])
            mean[row, m, 1] = max(mean[row, m, 1] * ratio, ZERO)
            mean[row, m, 2] = max(mean[row, m, 2] * ratio, ZERO)
            own = _norm(phi, spread[m], part) * figures[3, m]
            deviation[row, m] = math.hypot(own, figures[4, m])


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
