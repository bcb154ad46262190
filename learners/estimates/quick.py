"""A solved state as the arrays that `learners.kernels.estimate` takes, and the call of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.context import STEP, Contexts
from learners.estimates.landmarks import KERNEL_BITS, Landmarks
from learners.estimates.ridge import Ridge
from learners.kernels.compiled import kernels, writable
from learners.targets import RATIO_UNIT

F32 = NDArray[np.float32]
MODULE = "learners.kernels.estimate"
NONE_NEARBY = np.zeros((0, 0, 0), np.float32)


class _Points(NamedTuple):
    """Landmarks, one column each."""

    points: F32
    lengths: NDArray[np.float64]
    whitener: NDArray[np.float64]
    shift: NDArray[np.float64]


@lru_cache(maxsize=4)
def _points(landmarks: Landmarks) -> _Points:
    points = landmarks.points.astype(np.float64)
    return _Points(
        np.ascontiguousarray(landmarks.points.T, np.float32),
        np.sqrt((points * points).sum(axis=1)),
        np.ascontiguousarray(landmarks.whitener),
        np.ascontiguousarray(landmarks.shift, np.float64),
    )


class Quick:
    """Linear models of k models, ready for the kernel. There must be one, see `kernels`."""

    def __init__(
        self,
        landmarks: Landmarks,
        quality: Ridge,
        ratios: Sequence[Ridge],
        mean_deviation: F32,
        neighbours_share: float,
        ratios_least: F32,
    ) -> None:
        self._call: Any = getattr(kernels(MODULE), "estimate")  # noqa: B009
        units = [2.0**KERNEL_BITS, landmarks.scale, STEP, RATIO_UNIT, neighbours_share]
        spread = np.array(quality.spread, np.float32, order="C")
        spread[:, :, len(quality.weights)] = quality.weights.T  # there are more columns than rows
        means = [one.means[:, 0] for one in (quality, *ratios)]
        self._held = (
            *_points(landmarks),
            np.array(units),
            np.ascontiguousarray(np.concatenate([one.weights for one in ratios], axis=1)),
            spread,
            np.stack([*means, quality.noise[:, 0], mean_deviation, *ratios_least.T]).astype(
                np.float32
            ),
        )
        self._k = len(quality.means)

    def __call__(self, contexts: Contexts, nearby: F32 | None) -> tuple[F32, F32]:
        """Means (n, k, 3) and deviations (n, k) of contexts (n, 64)."""
        n, k = len(contexts), self._k
        mean, deviation = np.empty((n, k, 3), np.float32), np.empty((n, k), np.float32)
        near = NONE_NEARBY if nearby is None else nearby
        self._call(writable(contexts, np.int8), *self._held, near, mean, deviation)
        return mean, deviation
