"""Estimates for contexts that come again and again, computed once.

    rows of the table ─contexts─▶ their contexts, which the router asks about
                                     └─estimate─▶ rows seen before? ──▶ looked up
                                                      └─ no ─▶ Estimator ──▶ kept

A simulation draws its requests from a few thousand rows of a table, and an estimate rests on the
context and on what was learned, on nothing else. So between two snapshots each row is estimated
once, which saves most of a decision's time; and what was asked before a snapshot is estimated with
it, all at once, because it will be asked again.

It belongs to one estimator. Another snapshot has another, and remembers nothing. Whoever asks for
estimates asks about the contexts that were handed out last, so nobody has to find out which they
are: to look up contexts by their bytes took four times as long as all else here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.context import Contexts
from learners.estimates.estimator import Estimates, Estimator
from learners.targets import N_TARGETS
from learners.traits import Traits

BLOCK = 512  # contexts estimated at once
UNKNOWN = -1
Rows = NDArray[np.intp]  # (n,) of the table


class Remembered:
    """Stands in for an `Estimator` where only `estimate` is asked."""

    def __init__(
        self, estimator: Estimator, table: Contexts, before: Remembered | None = None
    ) -> None:
        """`table` (t, 64) are all contexts; `before` is what remembered until now."""
        self._estimator, self._table = estimator, table
        self.model_means, self.effects = estimator.model_means, estimator.effects
        k = len(estimator.models)
        self._known = np.zeros(0, np.intp)  # (m,) rows, in the order they came
        self._place = np.full(len(table), UNKNOWN)  # (t,) where each row is among them
        self._mean = np.zeros((0, k, N_TARGETS), np.float32)
        self._deviation = np.zeros((0, k), np.float32)
        self._asked = table[:0], self._known
        known = self._known if before is None else before._known
        for begin in range(0, len(known), BLOCK):
            self._learn(known[begin : begin + BLOCK])

    def contexts(self, rows: Rows) -> Contexts:
        """Contexts (n, 64) of rows (n,): `estimate` is asked about them next."""
        self._asked = self._table[rows], rows
        return self._asked[0]

    def estimate(self, contexts: Contexts, traits: Traits | None = None) -> Estimates:
        """Estimates for contexts (n, 64), without evidence: nobody asks for it."""
        asked, rows = self._asked
        assert contexts is asked, "estimates are of the contexts that were handed out last"
        at = self._place[rows]
        if (at == UNKNOWN).any():
            self._learn(np.array(list(dict.fromkeys(rows[at == UNKNOWN].tolist()))))
            at = self._place[rows]
        mean, deviation = self._mean[at], self._deviation[at]  # copies
        if traits is not None and self.effects is not None:
            self.effects.add_to(mean, deviation, traits)
        of = self._estimator
        return Estimates(mean, deviation, of.mean_deviation, of.noise, calibration=of.calibration)

    def _learn(self, rows: Rows) -> None:
        n, found = len(self._known), self._estimator.estimate(self._table[rows])
        if n + len(rows) > len(self._mean):
            self._grow(n + len(rows))
        self._mean[n : n + len(rows)] = found.mean
        self._deviation[n : n + len(rows)] = found.deviation
        self._known = np.concatenate([self._known, rows])
        self._place[rows] = np.arange(n, n + len(rows))

    def _grow(self, least: int) -> None:
        more = max(256, 2 * least) - len(self._mean)
        k = self._mean.shape[1]
        self._mean = np.concatenate([self._mean, np.zeros((more, k, N_TARGETS), np.float32)])
        self._deviation = np.concatenate([self._deviation, np.zeros((more, k), np.float32)])
