"""Off-policy estimates: a policy's value from the decisions that another policy made.

    IPS    mean of w · r              w = its probability of the logged choice / the logged one
    SNIPS  the same over the mean of w: less variance, a bias that goes with 1 / n
    DR     mean of v(x) + w · (r − q(x, a)), v its expected estimate: right if either w or q is

An estimate is kept as its *influence*, one number per decision whose mean is zero: variances follow
from it by the delta method, also of differences of two estimates, and of decisions that come in
groups (a conversation's are not independent: Liang and Zeger 1986).

Horvitz and Thompson 1952; Swaminathan and Joachims 2015 (SNIPS); Dudik, Langford and Li 2011 (DR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A mean, and how much each of n decisions moves it.

    >>> one = plain(np.array([0.0, 1.0, 1.0, 0.0]))
    >>> one.mean, round(one.deviation(), 3)
    (0.5, 0.289)
    """

    mean: float
    influence: Floats  # (n,)

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two estimates from the same decisions."""
        return Estimate(self.mean - other.mean, self.influence - other.influence)

    def deviation(self, groups: NDArray[np.intp] | None = None) -> float:
        """The standard error; `groups` (n,) number what is not independent of each other."""
        moved = self._moved(groups)
        n, many = len(self.influence), len(moved)
        if many < 2:
            return math.inf
        return math.sqrt(float(moved @ moved) * many / (many - 1)) / n

    def interval(self, groups: NDArray[np.intp] | None = None) -> tuple[float, float]:
        """Where the value is, at 95 %, corrected for skewness (Hall 1992).

        Weights are skewed: the mean of a few large ones and many small ones is more often too low
        than too high, and then looks surer than it is.
        """
        off, z = self.deviation(groups), NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
        moved = self._moved(groups)
        third = float((moved**3).mean()) / max(float((moved**2).mean()) ** 1.5, 1e-300)
        skew = third / math.sqrt(len(moved))
        return self.mean - off * _straightened(z, skew), self.mean - off * _straightened(-z, skew)

    def _moved(self, groups: NDArray[np.intp] | None) -> Floats:
        """The influence of what is independent of each other."""
        moved = self.influence if groups is None else np.bincount(groups, self.influence)
        return np.asarray(moved, np.float64)


def _straightened(z: float, skew: float) -> float:
    """The quantile of a t statistic of skewed values, from the normal one: Hall's g, inverted."""
    if not abs(skew) > 1e-9:
        return z
    return (math.cbrt(1.0 + skew * (z - skew / 6.0)) - 1.0) * 3.0 / skew


def plain(values: Floats) -> Estimate:
    """The mean of what there is."""
    mean = float(values.mean()) if len(values) else math.nan
    return Estimate(mean, values - mean)


def ips(weight: Floats, reward: Floats) -> Estimate:
    """Inverse propensity scores."""
    return plain(weight * reward)


def snips(weight: Floats, reward: Floats) -> Estimate:
    """The same, weights normalised to a mean of one."""
    total = float(weight.mean())
    if total <= 0.0:
        return Estimate(math.nan, np.full(len(weight), math.nan))
    mean = float((weight * reward).mean()) / total
    return Estimate(mean, weight * (reward - mean) / total)


def doubly_robust(weight: Floats, reward: Floats, expected: Floats, estimate: Floats) -> Estimate:
    """DR; `expected` (n,) is estimated of the policy's own choice, `estimate` of the logged one."""
    return plain(expected + weight * (reward - estimate))


def n_effective(weight: Floats) -> float:
    """How many decisions of the policy itself would say as much (Kish 1965)."""
    return float(weight.sum() ** 2 / max(float((weight**2).sum()), 1e-300))
