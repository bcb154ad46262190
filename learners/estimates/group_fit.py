"""Linear models of which no group of tenants decides more than its share.

    sums by group ─scale by volume─▶ solve ─▶ mean residual of each group ─▶ scale by agreement ─┐
                                       ▲                                                         │
                                       └─────────────────── twice ───────────────────────────────┘

See `influence` for what the scales are and what they bound. Where one tenant is alone nothing is
scaled and the models are solved once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.context import STEP
from learners.estimates.ridge import Ridge, RidgeOptions, outcome_counts, solve
from learners.estimates.sums.influence import InfluenceOptions, by_agreement, by_volume
from learners.targets import ONE

Floats = NDArray[np.float64]


def fit(
    groups: Floats,
    means: Floats,
    noise_prior: Floats,
    options: RidgeOptions,
    influence: InfluenceOptions,
    *,
    with_spread: bool = True,
    profiles: Floats | None = None,
) -> Ridge:
    """Solve from faded sums by group (k, g, t, d + 1, d + 1); the rest is as in `solve`."""
    counts = outcome_counts(groups)  # (k, g, t)
    scales = by_volume(counts, influence.outcomes_min)
    weights = counts * scales
    # One group with half of the weight would be the median, and the others would be the odd ones.
    judged = (weights.max(axis=1) < weights.sum(axis=1) / 2)[:, None]  # (k, 1, t)
    for _ in range(influence.rounds if judged.any() else 0):
        total = _total(groups, scales)
        solved = solve(total, means, noise_prior, options, with_spread=False, profiles=profiles)
        residuals = _mean_residuals(groups, counts, solved)
        agreement = by_agreement(
            residuals, solved.noise.astype(np.float64), counts, weights, influence
        )
        scales = np.where(judged, agreement, 1.0) * by_volume(counts, influence.outcomes_min)
    total = _total(groups, scales)
    return solve(total, means, noise_prior, options, with_spread=with_spread, profiles=profiles)


def _total(groups: Floats, scales: Floats) -> Floats:
    total = np.zeros_like(groups[:, 0])
    for group in np.flatnonzero((groups[..., -2, -2] > 0).any(axis=(0, 2))):
        total += groups[:, group] * scales[:, group, :, None, None]
    return total


def _mean_residuals(groups: Floats, counts: Floats, solved: Ridge) -> Floats:
    """How far each group's outcomes lie from the estimates, on average (k, g, t)."""
    k, _, t, size, _ = groups.shape
    weights = solved.weights.astype(np.float64).reshape(size - 1, k, t)
    predicted = np.einsum("kgtd,dkt->kgt", groups[..., -2, :-1] * STEP**2, weights)
    residuals = groups[..., -2, -1] * (STEP / ONE) - predicted - counts * solved.means[:, None]
    return residuals / np.maximum(counts, 1e-9)
