"""Estimates for contexts that come again and again, computed once.

    contexts ──seen before?──▶ looked up
                  └─ no ─────▶ Estimator ──▶ kept

A simulation draws its requests from a few thousand rows of a table, and an estimate rests on the
context and on what was learned, on nothing else. So between two snapshots each row is estimated
once, which saves most of a decision's time; and what was asked before a snapshot is estimated with
it, all at once, because it will be asked again.

It belongs to one estimator. Another snapshot has another, and remembers nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from learners.context import N_FEATURES, Contexts
from learners.estimates.estimator import Estimates, Estimator
from learners.targets import N_TARGETS
from learners.traits import Traits

ROW = np.dtype((np.void, N_FEATURES))  # a context as one value
BLOCK = 512  # contexts estimated at once


class Remembered:
    """Stands in for an `Estimator` where only `estimate` is asked."""

    def __init__(self, estimator: Estimator, before: Remembered | None = None) -> None:
        """`before` is what remembered until now."""
        self._estimator = estimator
        self.model_means, self.effects = estimator.model_means, estimator.effects
        k = len(estimator.models)
        self._place: dict[bytes, int] = {}
        self._mean = np.zeros((0, k, N_TARGETS), np.float32)
        self._deviation = np.zeros((0, k), np.float32)
        self._noise = estimator.noise
        if before is not None:
            keys = list(before._place)
            contexts = np.array(keys, ROW).view(np.int8).reshape(-1, N_FEATURES)
            for begin in range(0, len(keys), BLOCK):
                self._learn(keys[begin : begin + BLOCK], contexts[begin : begin + BLOCK])

    def estimate(self, contexts: Contexts, traits: Traits | None = None) -> Estimates:
        """Estimates for contexts (n, 64), without evidence: nobody asks for it."""
        keys: Any = np.ascontiguousarray(contexts).view(ROW).ravel().tolist()  # bytes, as ROW says
        place = self._place
        rows: Any = list(map(place.get, keys))
        if None in rows:
            fresh = {key: i for i, key in enumerate(keys) if key not in place}
            self._learn(list(fresh), contexts[list(fresh.values())])
            rows = [place[key] for key in keys]
        at = np.array(rows)
        mean, deviation = self._mean[at], self._deviation[at]  # copies
        if traits is not None and self.effects is not None:
            self.effects.add_to(mean, deviation, traits)
        return Estimates(
            mean,
            deviation,
            self._estimator.mean_deviation,
            self._noise,
            calibration=self._estimator.calibration,
        )

    def _learn(self, keys: list[bytes], contexts: Contexts) -> None:
        n, found = len(self._place), self._estimator.estimate(contexts)
        if n + len(keys) > len(self._mean):
            self._grow(n + len(keys))
        self._mean[n : n + len(keys)] = found.mean
        self._deviation[n : n + len(keys)] = found.deviation
        self._place.update(zip(keys, range(n, n + len(keys)), strict=True))

    def _grow(self, least: int) -> None:
        more = max(256, 2 * least) - len(self._mean)
        k = self._mean.shape[1]
        self._mean = np.concatenate([self._mean, np.zeros((more, k, N_TARGETS), np.float32)])
        self._deviation = np.concatenate([self._deviation, np.zeros((more, k), np.float32)])
