"""What is assumed of a model by what it is said to be like: its level, and what it is good at.

    tier and price, or a model named  ──▶ likeness to each other model
    likeness · fit to its own answers ──▶ weights ──▶ a level μ, and a profile: how it departs
                                                      from what all models share

A model of which something is declared is shrunk to those it is like instead of to the average, and,
where it departs from what all share, to how they depart (partial pooling within a group). Which of
them it is most like its own answers say soon: each is weighed by how well it would have predicted
them, exp(−Σ residual² / 2 noise²), and so is being like none (Bayesian model averaging). It is
computed from sums, so it is exact, and from few answers. Of models that declare nothing nothing is
assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.context import BIAS, STEP
from learners.estimates.ridge import SQUARE_UNIT, Ridge
from learners.targets import ONE

Floats = NDArray[np.float64]
TIERS = ("small", "medium", "large")
# Before any outcome at all, as one outcome.
TIER_QUALITY = np.array([0.4, 0.5, 0.6])
PRICE_DECADES = 1.0  # prices that are so many powers of ten apart are one deviation apart
OUTCOMES_MAX = 40.0  # of one model that count for another's level
KNOWN_FROM = 100.0  # outcomes from which a model's profile may be another's


@dataclass(frozen=True, slots=True, eq=False)
class Kin:
    """What is declared of k models."""

    tier: NDArray[np.intp]  # (k,) index in `TIERS`; −1: not declared
    list_usd: Floats  # (k,) of a typical call; 0: not stated
    like: NDArray[np.intp]  # (k,) column of the model that it is like; −1: none named

    @property
    def any_declared(self) -> bool:
        """Whether anything is declared at all."""
        return bool((self.tier >= 0).any() or (self.like >= 0).any())

    @property
    def declared(self) -> NDArray[np.bool_]:
        """Of which models (k,) something is."""
        return (self.tier >= 0) | (self.like >= 0)

    def likeness(self) -> Floats:
        """How alike models (k, k) are said to be, 0 to 1; 0 to itself."""
        apart = np.abs(self.tier[:, None] - self.tier[None, :])
        price = np.log10(np.maximum(self.list_usd, 1e-9)) / PRICE_DECADES
        alike = np.exp(-(apart**2) - (price[:, None] - price[None, :]) ** 2 / 2)
        alike[(self.tier < 0)[:, None] | (self.tier < 0)[None, :]] = 0.0
        named = np.flatnonzero(self.like >= 0)
        alike[named] = 0.0
        alike[named, self.like[named]] = 1.0
        np.fill_diagonal(alike, 0.0)
        return alike


def levels(kin: Kin, quality: Floats, n_outcomes: Floats, average: float) -> Floats:
    """The mean quality (k,) assumed of each model, from those of others, known by so many."""
    weights = kin.likeness() * np.minimum(n_outcomes, OUTCOMES_MAX)
    base = np.where(kin.tier >= 0, TIER_QUALITY[kin.tier], average)
    found = (weights @ quality + base) / (weights.sum(axis=1) + 1.0)
    return np.where(kin.declared, found, average)


def profiles(kin: Kin, sums: Floats, solved: Ridge) -> Floats:
    """How each model (k,) is assumed to depart from what all share, (k, d).

    `sums` (k, d + 1, d + 1) are those of zzᵀ that `solved` was solved from.
    """
    k, d = len(sums), sums.shape[-1] - 1
    shared = solved.shared[0].astype(np.float64)
    departures = solved.weights.astype(np.float64).T.reshape(k, -1, d)[:, 0] - shared
    departures[:, -1] = 0.0  # the level is another matter
    known = solved.counts[:, 0] >= KNOWN_FROM
    likeness = np.where(known[None, :], kin.likeness(), 0.0)
    found = np.zeros((k, d))
    for i in np.flatnonzero(kin.declared & likeness.any(axis=1)).tolist():
        candidates = np.vstack([departures, np.zeros(d)])  # the last one: like none
        worse = _squares(sums[i], float(solved.means[i, 0]), shared + candidates)
        chance = np.append(likeness[i], 1.0)
        noise = max(float(solved.noise[i, 0]), 1e-3)
        chance = chance * np.exp(-(worse - worse[chance > 0].min()).clip(0) / (2 * noise**2))
        found[i] = chance @ candidates / chance.sum()
    return found


def _squares(sums: Floats, mean: float, weights: Floats) -> Floats:
    """Sums of squared residuals (c,) of one model's outcomes under weights (c, d)."""
    sxx, sy = sums[:-1, :-1] * STEP**2, sums[-2, -1] / (BIAS * ONE)
    sx = sxx[-1] / (BIAS * STEP)
    n = float(sx[-1] / (BIAS * STEP))
    sxy = sums[:-1, -1] * (STEP / ONE) - sx * mean
    syy = sums[-1, -1] * (SQUARE_UNIT / ONE**2) - 2 * mean * sy + mean**2 * n
    found = syy - 2 * weights @ sxy + np.einsum("cd,de,ce->c", weights, sxx, weights)
    return np.asarray(found)
