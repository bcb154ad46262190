"""Inverse gap weighting: the further below the best, the more rarely tried; the best has the rest.

    SquareCB   p_a = 1 / (k + γ (u_best − u_a))                    Foster & Rakhlin 2020
    FastCB     p_a = ℓ_best / (k ℓ_best + γ (ℓ_a − ℓ_best))         Foster & Krishnamurthy 2021

k is the number of *allowed* models: what a request may not have does not change its exploration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from learners.option import option
from learners.policies.policy import Mask, Matrix, Scores, best_takes_rest, gaps, register


@register("squarecb")
@dataclass(frozen=True, slots=True, kw_only=True)
class SquareCb:
    """Inverse gap weighting: p = 1 / (k + γ·gap), the best takes the rest.

    At 1,000, a model 0.02 worse than the best of four is tried about once in 24 times, one 0.3
    worse (a dear one) once in 304.
    """

    gamma: float = option(
        1000.0, "γ, per point of utility: the larger, the less is explored.", ge=0, le=1e6
    )

    def probabilities(self, scores: Scores) -> Matrix:
        gap, best = gaps(scores)
        k = scores.allowed.sum(axis=1, keepdims=True)
        return best_takes_rest(scores.allowed / (k + self.gamma * gap), best)

    def quick(
        self, kernel: Any, utility: Matrix, deviation: Matrix, mean_deviation: Matrix, allowed: Mask
    ) -> Matrix:
        del deviation, mean_deviation
        p = np.empty_like(utility)
        kernel.squarecb(utility, allowed, float(self.gamma), p)
        return p


@register("fastcb")
@dataclass(frozen=True, slots=True, kw_only=True)
class FastCb:
    """Inverse gap weighting that explores less where the best loss is small."""

    gamma: float = option(
        300.0, "γ, per point of utility: the larger, the less is explored.", ge=0, le=1e6
    )
    loss_min: float = option(
        0.01, "The best loss (1 − utility) counts as at least this.", gt=0, le=1
    )

    def probabilities(self, scores: Scores) -> Matrix:
        gap, best = gaps(scores)
        top = np.take_along_axis(scores.barred, best[:, None], axis=1)
        loss = np.maximum(1.0 - top, self.loss_min)
        k = scores.allowed.sum(axis=1, keepdims=True)
        return best_takes_rest(scores.allowed * loss / (k * loss + self.gamma * gap), best)
