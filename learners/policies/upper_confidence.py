"""The best upper confidence bound: with contexts, with a discount, or over a window of outcomes.

The choice is certain, so its propensity is one, and its log can't be used for off-policy estimates
of other choices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learners.option import option
from learners.policies.policy import Matrix, Scores, register, sure


@register("linucb")
@dataclass(frozen=True, slots=True, kw_only=True)
class LinUcb:
    """The best upper confidence bound of the estimate (Li et al. 2010, algorithm 1)."""

    alpha: float = option(1.0, "α: standard deviations above the estimate.", ge=0, le=1e6)

    def probabilities(self, scores: Scores) -> Matrix:
        bound = scores.utility + self.alpha * scores.deviation
        return sure(np.where(scores.allowed, bound, -np.inf))


def _bound(mean: Matrix, n_outcomes: np.ndarray, width: float, allowed: np.ndarray) -> Matrix:
    """Mean + width·√(ln N / n), infinite for a model without an outcome."""
    total = np.maximum((allowed * n_outcomes).sum(axis=1, keepdims=True), np.e)
    with np.errstate(divide="ignore"):
        bonus = width * np.sqrt(np.log(total) / n_outcomes)
    return np.where(allowed, np.where(n_outcomes > 0, mean + bonus, np.inf), -np.inf)


@register("discounted-ucb")
@dataclass(frozen=True, slots=True, kw_only=True)
class DiscountedUcb:
    """UCB on means that fade with the memory's half-life (Garivier & Moulines 2011)."""

    width: float = option(0.5, "Factor of the bonus √(ln N / n).", ge=0, le=1e6)

    def probabilities(self, scores: Scores) -> Matrix:
        if scores.plain_utility is None or scores.n_outcomes is None:
            return sure(scores.barred)
        bound = _bound(scores.plain_utility, scores.n_outcomes, self.width, scores.allowed)
        return sure(bound)


@register("sliding-window-ucb")
@dataclass(frozen=True, slots=True, kw_only=True)
class SlidingWindowUcb:
    """UCB on each model's latest outcomes only (Garivier & Moulines 2011; Dream11's router)."""

    width: float = option(0.5, "Factor of the bonus √(ln N / n).", ge=0, le=1e6)

    def probabilities(self, scores: Scores) -> Matrix:
        if scores.recent_utility is None or scores.n_recent is None:
            return sure(scores.barred)
        return sure(_bound(scores.recent_utility, scores.n_recent, self.width, scores.allowed))
