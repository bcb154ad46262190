"""What each model would have earned, by a ridge regression that never saw the decision itself.

    reward ≈ b + w · features + c of the model      fitted on four fifths, asked of the last fifth

Doubly robust estimates need a guess of every model's reward. One that learned from the very reward
it is compared with would call noise knowledge; cross-fitting keeps the two apart (Chernozhukov et
al. 2018). Most of a prompt's reward is its difficulty, which models share: hence one w for all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FOLDS = 5
PENALTY = 10.0  # outcomes that say: as all others


def cross_fitted(
    features: Floats, chosen: NDArray[np.intp], reward: Floats, n_models: int
) -> Floats:
    """Estimates (n, k) from `features` (n, d), the columns `chosen` (n,) and their `reward` (n,).

    Consecutive decisions share a fold: neighbours in time are alike, too.
    """
    n = len(reward)
    found = np.zeros((n, n_models))
    spread = np.maximum(features.std(axis=0), 1e-9) if n else 1.0
    scaled = (features - features.mean(axis=0)) / spread if n else features
    for held in np.array_split(np.arange(n), max(1, min(FOLDS, n))):
        others = np.ones(n, bool)
        others[held] = False
        mean, weights = _fitted(scaled[others], chosen[others], reward[others], n_models)
        found[held] = mean + (scaled[held] @ weights[:-n_models])[:, None] + weights[-n_models:]
    return found


def _fitted(
    features: Floats, chosen: NDArray[np.intp], reward: Floats, n_models: int
) -> tuple[float, Floats]:
    """The mean, and the weights (d + k,) of what adds to it."""
    mean = float(reward.mean()) if len(reward) else 0.0
    design = np.concatenate([features, np.eye(n_models)[chosen]], axis=1)
    gram = design.T @ design
    gram[np.diag_indices_from(gram)] += PENALTY
    return mean, np.linalg.solve(gram, design.T @ (reward - mean))
