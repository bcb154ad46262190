"""Thompson sampling with a fixed table of draws: the share of the table is the exact propensity.

    row r of the table:  the winner is  argmax_a  u_a + scale · deviation_a · z[r, a]
    p_a = rows won by a / rows                                         (Thompson 1933)

Sampling once per request would need an integral to know the propensity. With a table of normal
numbers that never changes, the probabilities are counted: exact, the same on every machine, and
4.5 µs for 9 models where the integral takes 72.

The deviation has two parts. What is unknown of the *model* is sampled as it is: with less, a model
that began with bad luck is not tried again. What is unknown of the *context* is tempered by
`context_scale`: contexts have a hundred directions, most of which will never decide anything, and
sampling them in full explores for longer than most streams last.

The largest of k draws lies √(2 ln k) deviations out, so with more models the same deviations mean
more exploration. They are scaled by √(ln 3 / ln k): as much for thirty models as for three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from learners.option import option
from learners.policies.policy import Mask, Matrix, Scores, register

SEED = 128  # any number, never changed: propensities in logs rest on it
MODELS_USUAL = 3  # `scale` is as stated for as many models
ROWS_AT_ONCE = 256  # requests compared with the table at once: bounds the memory


@cache
def normal_table(rows: int, columns: int) -> np.ndarray:
    """Normal numbers (rows, columns) in antithetic pairs; equal bits on every machine.

    Columns never depend on how many there are.
    """
    half = (rows + 1) // 2
    raw = np.stack(
        [np.random.Philox(key=[SEED, column]).random_raw(half) for column in range(columns)], axis=1
    )
    # Stratified: each column has one value in every 1/half of the distribution, in random order.
    place = raw.argsort(axis=0).argsort(axis=0)
    z = _quantiles(half)[place]
    return np.concatenate([z, -z])[:rows].astype(np.float32)


def _quantiles(n: int) -> np.ndarray:
    """Of the normal distribution (n,), at the middles of n equal shares.

    By the standard library: scipy's, the same as float32, takes every process 0.15 s to import.
    """
    inverse = NormalDist().inv_cdf
    return np.array([inverse((i + 0.5) / n) for i in range(n)])


@cache
def _ranked(rows: int, columns: int) -> np.ndarray:
    """The same, a row for each rank."""
    return np.ascontiguousarray(normal_table(rows, columns).T)


@cache
def _scales(scale: float, k: int) -> Matrix:
    """Factors of deviations (k + 1,) by how many models are allowed."""
    allowed = np.maximum(np.arange(k + 1), 2)
    return scale * np.sqrt(np.log(MODELS_USUAL) / np.log(allowed))


def tempered(scores: Scores, context_scale: float) -> Matrix:
    """Deviations (n, k) with the part that depends on the context scaled."""
    if scores.mean_deviation is None:
        return scores.deviation
    mean = np.minimum(scores.mean_deviation, scores.deviation)
    return np.sqrt(mean**2 + context_scale**2 * (scores.deviation**2 - mean**2))


@register("thompson")
@dataclass(frozen=True, slots=True, kw_only=True)
class Thompson:
    """Each model as often as it is the best in a fixed table of draws from what it may be worth."""

    scale: float = option(1.0, "Factor of standard deviations; below 1 explores less.", ge=0, le=10)
    context_scale: float = option(
        0.5, "Factor of the part of the deviation that depends on the request.", ge=0, le=10
    )
    deviation_min: float = option(
        1e-4, "Standard deviations count as at least this: near-equals share.", ge=0, le=1
    )
    draws: int = option(
        128, "Rows of the table; a propensity is a multiple of 1 / rows.", ge=2, le=65_536
    )

    def probabilities(self, scores: Scores) -> Matrix:
        spread = self._scale(scores) * tempered(scores, self.context_scale)
        spread = np.maximum(spread, self.deviation_min)
        table = normal_table(self.draws, scores.utility.shape[1])
        return (
            np.concatenate(
                [
                    self._won(scores.barred[rows], spread[rows], table)
                    for start in range(0, len(spread), ROWS_AT_ONCE)
                    for rows in [slice(start, start + ROWS_AT_ONCE)]
                ]
            )
            if len(spread)
            else np.zeros_like(scores.utility)
        )

    def quick(
        self, kernel: Any, utility: Matrix, deviation: Matrix, mean_deviation: Matrix, allowed: Mask
    ) -> Matrix:
        p, k = np.empty_like(utility), utility.shape[1]
        table, scales = _ranked(self.draws, k), _scales(self.scale, k)
        tempering, least = float(self.context_scale**2), float(self.deviation_min)
        kernel.thompson(
            utility, deviation, mean_deviation, allowed, table, scales, tempering, least, p
        )
        return p

    def _scale(self, scores: Scores) -> Matrix:
        """The factor (n, 1) for as many models as each request may have."""
        allowed = scores.allowed.sum(axis=1, keepdims=True)
        return np.take(_scales(self.scale, scores.allowed.shape[1]), allowed)

    def _won(self, barred: Matrix, spread: Matrix, table: np.ndarray) -> Matrix:
        # The r-th best model takes the table's r-th column: so a model that is not allowed, or
        # another order of the models, changes nothing for the others.
        order = np.argsort(-barred, axis=1, kind="stable")
        ranked = np.take_along_axis(barred, order, axis=1)
        wide = np.take_along_axis(spread, order, axis=1)
        # (k, n, rows of the table): numpy compares whole planes faster than few models in a row.
        level = (wide.T.copy()[:, :, None] * table.T[:, None, :]).astype(np.float32)
        # Differences to the best, so that 32 bits lose nothing that decides.
        level += (ranked - ranked[:, :1]).astype(np.float32).T[:, :, None]
        best = (level == level.max(axis=0)).astype(np.float32)
        won = (best @ np.ones(len(table), np.float32)).astype(np.float64)  # counts: exact
        tied = np.flatnonzero(won.sum(axis=0) != len(table))
        if len(tied):  # of equals the better ranked wins
            first = level[:, tied].argmax(axis=0)[None] == np.arange(len(level))[:, None, None]
            won[:, tied] = np.count_nonzero(first, axis=2)
        p = np.zeros_like(barred)
        np.put_along_axis(p, order, won.T / len(table), axis=1)
        return p
