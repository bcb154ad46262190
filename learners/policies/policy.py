"""From utilities to probabilities to a choice.

A policy turns estimated utilities into a probability for every allowed model; `draw` then picks
by those very probabilities. So a propensity is exact by construction, for every policy alike, and
a choice can be replayed from one uniform number.

The one rule: probabilities are non-negative, zero where not allowed, and each row sums to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from learners.option import option

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Policy(Protocol):
    """How to weigh what seems best against what might be learned."""

    def probabilities(self, utility: Matrix, deviation: Matrix, allowed: Mask) -> Matrix:
        """Probabilities (n, k) from utilities, their standard deviations, and what is allowed.

        All are (n, k); every row of `allowed` has at least one True; inputs are finite.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """Always the best estimate; equals share."""

    def probabilities(self, utility: Matrix, deviation: Matrix, allowed: Mask) -> Matrix:
        del deviation
        barred = np.where(allowed, utility, -np.inf)
        best = barred == barred.max(axis=1, keepdims=True)
        return best / best.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpsilonGreedy:
    """The best estimate, but a share `epsilon` goes to all allowed models alike."""

    epsilon: float = option(
        0.05, "ε: share of requests that go to all allowed models alike.", ge=0, le=1
    )

    def probabilities(self, utility: Matrix, deviation: Matrix, allowed: Mask) -> Matrix:
        best = Greedy().probabilities(utility, deviation, allowed)
        uniform = allowed / allowed.sum(axis=1, keepdims=True)
        return (1.0 - self.epsilon) * best + self.epsilon * uniform


@dataclass(frozen=True, slots=True, kw_only=True)
class LinUcb:
    """The best upper confidence bound (Li et al. 2010, algorithm 1: θᵀx + α·√(xᵀA⁻¹x)).

    The choice is certain, so its propensity is one and its log can't be used for off-policy
    estimates of other choices.
    """

    alpha: float = option(1.0, "α: standard deviations above the estimate.", ge=0, le=1e6)

    def probabilities(self, utility: Matrix, deviation: Matrix, allowed: Mask) -> Matrix:
        return Greedy().probabilities(utility + self.alpha * deviation, deviation, allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thompson:
    """Each model as often as it is the best one, if utilities are independent Gaussians.

        p_a = ∫ φ(z) Π_{b≠a} Φ((u_a + s_a z − u_b) / s_b) dz

    Integrated on a grid rather than sampled: the propensity is a number, not a frequency
    (Thompson 1933; the integral is the probability matching it prescribes).
    """

    scale: float = option(
        1.0, "Factor of standard deviations; below 1 explores less.", ge=0, le=1e6
    )
    deviation_min: float = option(
        1e-3, "Standard deviations count as at least this: near-equals share.", gt=0, le=1
    )

    # Weights φ(z)·dz of a trapezoid over ±4 deviations, normalised. 33 points are right to 1e-3
    # while deviations are within a factor of eight, to 0.03 at a hundred.
    _GRID = np.linspace(-4.0, 4.0, 33)

    def probabilities(self, utility: Matrix, deviation: Matrix, allowed: Mask) -> Matrix:
        spread = np.maximum(self.scale * deviation, self.deviation_min)
        level = utility[:, :, None] + spread[:, :, None] * self._GRID  # (n, a, z)
        logs = np.zeros_like(level)
        for other in range(utility.shape[1]):
            below = (level - utility[:, other, None, None]) / spread[:, other, None, None]
            term = log_ndtr(below)
            term[:, other] = 0.0
            logs += np.where(allowed[:, other, None, None], term, 0.0)
        mass = np.exp(logs - self._GRID**2 / 2).sum(axis=2) * allowed
        return mass / mass.sum(axis=1, keepdims=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class SquareCb:
    """Inverse gap weighting: p_a = 1 / (k + γ (u_best − u_a)), the best takes the rest.

    Foster & Rakhlin 2020. `gamma` is in 1 / utility: at 1,000, a model 0.02 worse than the best of
    four is tried about once in 24 times, one 0.3 worse (a dear one) once in 304.
    """

    gamma: float = option(
        1000.0, "γ, per point of utility: the larger, the less is explored.", ge=0, le=1e6
    )

    def probabilities(self, utility: Matrix, deviation: Matrix, allowed: Mask) -> Matrix:
        del deviation
        barred = np.where(allowed, utility, -np.inf)
        best = barred.argmax(axis=1)[:, None]
        gap = np.take_along_axis(barred, best, axis=1) - np.where(allowed, utility, 0.0)
        k = allowed.sum(axis=1, keepdims=True)
        p = allowed / (k + self.gamma * np.where(allowed, gap, 0.0))
        np.put_along_axis(p, best, 0.0, axis=1)
        np.put_along_axis(p, best, 1.0 - p.sum(axis=1, keepdims=True), axis=1)
        return p


def draw(probabilities: Matrix, uniform: NDArray[np.float64]) -> NDArray[np.intp]:
    """Pick a column per row by its probability, from uniform numbers (n,) in [0, 1)."""
    edges = np.cumsum(probabilities, axis=1)
    # Rounding may leave the last edge a hair below one; scale, so that no draw falls off the end.
    picked = (edges <= (uniform * edges[:, -1])[:, None]).sum(axis=1)
    return np.minimum(picked, probabilities.shape[1] - 1)


# By the name that settings and logs know it by. The first parameter is the main one.
POLICIES: dict[str, type[Policy]] = {
    "greedy": Greedy,
    "epsilon-greedy": EpsilonGreedy,
    "linucb": LinUcb,
    "thompson": Thompson,
    "squarecb": SquareCb,
}
