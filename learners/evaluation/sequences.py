"""Confidence sequences: bounds that hold at all times at once, however often one looks.

An interval is right in 95 of 100 cases if it is looked at once. Who looks after every outcome, and
acts when it is good, is wrong far more often. A confidence sequence may be looked at always.

    values X ≥ c − span, c chosen before X is seen ─▶ n, Σ X, Σ (X − c)² ─▶ lower bound of the mean

For every λ in (0, 1) and every mean μ, with Y = (X − c) / span,

    exp(λ Σ (X − μ) / span − ψ(λ) Σ Y²),    ψ(λ) = −ln(1 − λ) − λ

is a supermartingale (Fan, Grama and Liu 2015; Howard, Ramdas, McAuliffe and Sekhon 2021), and so is
a mixture of them. It exceeds 1/α ever with probability at most α (Ville 1939): those μ are excluded
for which it does. No distribution is assumed, and no upper bound of X: so it holds for importance
weights, too (Karampatziakis, Mineiro and Ramdas 2021; Waudby-Smith, Wu, Ramdas, Karampatziakis and
Mineiro 2022: `Modelled` is their theorem 3 with a constant k).

The one rule: only sums are kept, so that where c is constant the order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ALPHA = 0.05
# λ near √(2 ln(1/α) / Σ Y²) is best: these serve sums of squares from 10 to 10⁷.
LAMBDAS = np.geomspace(5e-4, 0.9, 48)
PSI = -np.log1p(-LAMBDAS) - LAMBDAS
STEPS = 60  # of bisection: to the last bit
TRUNCATED = 1.0  # k of theorem 3: estimates count up to this over the weight


@dataclass(frozen=True, slots=True)
class Sums:
    """Of n values: their sum, and the sum of their squared distances from what was guessed."""

    n: int
    total: float
    squares: float
    span: float  # no value is further below its guess

    def lower(self, alpha: float = ALPHA) -> float:
        """No greater than the mean at any time, with probability 1 − `alpha`.

        >>> round(Sums(1000, 800.0, 160.0, 1.0).lower(), 2)
        0.76
        """
        if not self.n:
            return -math.inf
        mean, enough = self.total / self.n, math.log(1.0 / alpha)
        below = self.span
        while self.evidence(mean - below) < enough:
            below *= 2.0
        least, most = mean - below, mean
        for _ in range(STEPS):
            middle = 0.5 * (least + most)
            excluded = self.evidence(middle) >= enough
            least, most = (middle, most) if excluded else (least, middle)
        return least

    def evidence(self, at: float) -> float:
        """Against a mean of at most `at`: the logarithm of what a fair bet on it has become."""
        found = evidence(np.array([self.total - self.n * at]), np.array([self.squares]), self.span)
        return float(found[0])


def evidence(above: Floats, squares: Floats, span: float) -> Floats:
    """The same (n,) of sums `above` what they would be by the hypothesis."""
    each = np.outer(above / span, LAMBDAS) - np.outer(squares / span**2, PSI)
    most = each.max(axis=1, keepdims=True)
    return np.asarray(most[:, 0] + np.log(np.exp(each - most).mean(axis=1)))


def guessed(values: Floats, *, floor: float, least: float = 0.0, most: float = 1.0) -> Sums:
    """Sums of values (n,) ≥ `floor` in the order they came; guesses are the means so far."""
    before = np.concatenate([[0.5 * (least + most)], values[:-1]])
    guess = np.clip(np.cumsum(before) / np.arange(1, len(values) + 1), least, most)
    squares = float(((values - guess) ** 2).sum())
    return Sums(len(values), float(values.sum()), squares, most - floor)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Modelled:
    """What is known of all k models for each of n decisions."""

    chance: Floats  # (n, k) that the policy takes each
    logged: Floats  # (n, k) that the policy which decided took each
    estimates: Floats  # (n, k) of the reward, 0 to 1
    chosen: NDArray[np.intp]  # (n,) column of the logged choice

    def weights(self) -> Floats:
        """Of every choice (n, k)."""
        found = np.zeros_like(self.chance)
        return np.divide(self.chance, self.logged, out=found, where=self.logged > 0.0)


def value(weight: Floats, reward: Floats, modelled: Modelled | None) -> tuple[float, float]:
    """Bounds of a policy's value at any time; rewards from 0 to 1, `weight` (n,) of the choices."""

    def lower(good: Floats, estimates: Floats) -> float:
        if modelled is None:
            return guessed(weight * good, floor=0.0).lower(ALPHA / 2)
        kept, of_chosen = _truncated(modelled, estimates)
        values = weight * (good - of_chosen) + (modelled.chance * kept).sum(axis=1)
        return guessed(values, floor=-TRUNCATED).lower(ALPHA / 2)

    low, high = _from_both_sides(lower, reward, modelled)
    return max(low, 0.0), min(1.0 + high, 1.0)


def gain(weight: Floats, reward: Floats, modelled: Modelled | None) -> tuple[float, float]:
    """Bounds of by how much a policy is better than the one that decided."""

    def lower(good: Floats, estimates: Floats) -> float:
        if modelled is None:
            return guessed((weight - 1.0) * good, floor=-1.0, least=-1.0).lower(ALPHA / 2)
        kept, of_chosen = _truncated(modelled, estimates)
        values = (weight - 1.0) * (good - of_chosen)
        values += ((modelled.chance - modelled.logged) * kept).sum(axis=1)
        return guessed(values, floor=-1.0 - TRUNCATED, least=-1.0).lower(ALPHA / 2)

    low, high = _from_both_sides(lower, reward, modelled)
    return max(low, -1.0), min(high, 1.0)


def _truncated(modelled: Modelled, estimates: Floats) -> tuple[Floats, Floats]:
    """Estimates (n, k), at most k over their weight, and those (n,) of the choices."""
    kept = np.minimum(estimates, TRUNCATED / np.maximum(modelled.weights(), 1e-12))
    return kept, kept[np.arange(len(kept)), modelled.chosen]


def _from_both_sides(
    lower: Callable[[Floats, Floats], float], reward: Floats, modelled: Modelled | None
) -> tuple[float, float]:
    """A lower bound, and minus that of the opposite: what is lost is gained by 1 − reward."""
    estimates = np.zeros((0, 0)) if modelled is None else modelled.estimates
    return lower(reward, estimates), -lower(1.0 - reward, 1.0 - estimates)
