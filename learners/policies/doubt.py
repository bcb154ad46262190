"""Variance-aware inverse gap weighting: a model is tried as far as it may be better after all.

    z = (u_best − u_a) / deviation_a       p_a = max(exp(−z²/2) / (1 + z²), 1 / (1 + γ·gap)) / k

The first part is about the chance that a Gaussian exceeds its mean by z deviations: what was tried
3,000 times and what was tried 3 times at the same gap get different shares. The second is a floor
for estimates that are wrong beyond what their deviation says, as after a change.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learners.option import option
from learners.policies.policy import Matrix, Scores, best_takes_rest, gaps, register
from learners.policies.thompson import tempered


@register("doubt")
@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Inverse gap weighting by how many deviations a model is below the best, with a floor."""

    scale: float = option(1.0, "Factor of standard deviations; below 1 explores less.", ge=0, le=10)
    context_scale: float = option(
        0.3, "Factor of the part of the deviation that depends on the request.", ge=0, le=10
    )
    gamma: float = option(0.0, "γ of the floor 1 / (k (1 + γ·gap)); 0: no floor.", ge=0, le=1e6)

    def probabilities(self, scores: Scores) -> Matrix:
        gap, best = gaps(scores)
        spread = np.maximum(self.scale * tempered(scores, self.context_scale), 1e-9)
        z = gap / spread
        share = np.exp(-np.minimum(z * z / 2, 700.0)) / (1.0 + z * z)
        if self.gamma:
            share = np.maximum(share, 1.0 / (1.0 + self.gamma * gap))
        k = scores.allowed.sum(axis=1, keepdims=True)
        return best_takes_rest(scores.allowed * share / k, best)
