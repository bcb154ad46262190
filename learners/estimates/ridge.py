"""Linear models of every target, shared across models: statistics that add, solved per snapshot.

For model k and target y the estimate is

    ŷ_k(x) = μ_k + (w₀ + w_k)ᵀ x,      minimising  Σ (y − ŷ)² + λ₀‖w₀‖² + λ₁ Σ_k ‖w_k‖²

w₀ is what all models share (most of a prompt's quality is its difficulty), w_k how one model
departs from it, μ_k its mean. All of it is solved from per-model sums of zzᵀ with z = (x, y), by
eliminating each w_k (block elimination; a mixed model with one random effect per model).

The one rule: the penalties are added when solving and never enter the sums, so forgetting cannot
wind up and a model without data falls back on what all models share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.context import BIAS, BIAS_FEATURE, N_FEATURES, STEP
from learners.estimates.decayed_sums import DecayedSums
from learners.option import option
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE, Target

# 16,384 rows of |x| ≤ 127 times |y| ≤ 8 (2^15) times a weight below 2^9 stay below 2^53: sums of
# that many rows are exact integers even in the float64 of a BLAS product.
ROWS_EXACT = 1 << 14
# y² is summed in units of 64 / ONE²: at 1 / ONE² the int64 of a model whose stated latency is 20
# times too low would wrap round after 120 million outcomes in one half-life; so it takes 7 billion.
SQUARE_UNIT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeOptions:
    """How strongly weights are pulled to zero, in units of outcomes on the context's scale."""

    # λ₀
    shared_penalty: float = option(
        10.0, "Outcomes' worth of doubt in what all models share.", gt=0, le=1e6
    )
    # λ₁; larger than λ₀, because models differ less than prompts do.
    own_penalty: float = option(
        150.0, "Outcomes' worth of doubt in what sets a model apart.", gt=0, le=1e6
    )


def new_statistics(half_life_ms: int) -> DecayedSums:
    """Empty sums of zzᵀ, (3, 65, 65) per model; the last entry, y², in units of its own."""
    return DecayedSums((N_TARGETS, N_FEATURES + 1, N_FEATURES + 1), half_life_ms)


def update(statistics: DecayedSums, outcomes: Outcomes) -> None:
    """Fold a batch of outcomes into the sums."""
    epochs, weights = statistics.epochs_and_weights(outcomes.decided_at_ms)
    contexts = outcomes.contexts.astype(np.float64)
    for rows in _groups(outcomes.models, epochs, outcomes.known):
        at, known = rows[0], np.flatnonzero(outcomes.known[rows[0]])
        x, weight = contexts[rows], weights[rows].astype(np.float64)
        y = outcomes.targets[rows][:, known].astype(np.float64)  # (r, t)
        total = np.zeros(statistics.shape, np.int64)
        weighted = x * weight[:, None]  # (r, d)
        total[known, :-1, :-1] = (weighted.T @ x).astype(np.int64)
        xy = (weighted.T @ y).astype(np.int64)  # (d, t)
        total[known, :-1, -1] = xy.T
        total[known, -1, :-1] = xy.T
        total[known, -1, -1] = (weight @ np.rint(y * y / SQUARE_UNIT)).astype(np.int64)
        statistics.add(int(outcomes.models[at]), int(epochs[at]), total)


def _groups(
    models: NDArray[np.uint64], epochs: NDArray[np.int64], known: NDArray[np.bool_]
) -> list[NDArray[np.intp]]:
    """Rows that share model, epoch and set of known targets, at most `ROWS_EXACT` together."""
    pattern = known @ (1 << np.arange(N_TARGETS))
    order = np.lexsort((pattern, epochs, models))
    order = order[pattern[order] > 0]
    if not len(order):
        return []
    keys = np.stack([models[order].view(np.int64), epochs[order], pattern[order]])
    starts = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    return [
        group[start : start + ROWS_EXACT]
        for group in np.split(order, starts)
        for start in range(0, len(group), ROWS_EXACT)
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ridge:
    """Solved linear models for k models: predict with `predict`.

    `noise` is the residual standard deviation per model and target; `spread` turns a context into
    the part of its uncertainty that more outcomes of that model would remove.
    """

    weights: NDArray[np.float32]  # (d, k·3), column k·3+t is w₀ + w_k of target t
    means: NDArray[np.float32]  # (k, 3) μ
    noise: NDArray[np.float32]  # (k, 3)
    spread: NDArray[np.float32]  # (d, k·d), for quality: ‖xᵀ spread_k‖² = variance / noise²
    counts: NDArray[np.float64]  # (k, 3) faded number of outcomes

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Estimates (n, k, 3) for real contexts (n, d)."""
        return (x @ self.weights).reshape(len(x), *self.means.shape) + self.means

    def deviation(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standard deviation (n, k) of the quality estimate's own part, noise not included."""
        k, d = len(self.means), x.shape[1]
        parts = (x @ self.spread).reshape(len(x), k, d)
        return np.sqrt(np.einsum("nkd,nkd->nk", parts, parts)) * self.noise[:, 0]


def solve(
    sums: NDArray[np.float64],
    means: NDArray[np.float64],
    noise_prior: NDArray[np.float64],
    options: RidgeOptions,
) -> Ridge:
    """Solve for all models at once.

    `sums` (k, 3, 65, 65) faded sums of zzᵀ as integers of the fixed-point scales; `means` (k, 3)
    the μ to depart from; `noise_prior` (3,) the standard deviation assumed before data.
    """
    k, d = len(sums), N_FEATURES
    sxx = sums[:, :, :d, :d] * STEP**2
    sx = sxx[:, :, BIAS_FEATURE, :] / (BIAS * STEP)
    counts = sx[:, :, BIAS_FEATURE] / (BIAS * STEP)
    sy = sums[:, :, BIAS_FEATURE, d] / (BIAS * ONE)
    # Centre y on μ: Σ x (y − μ) and Σ (y − μ)².
    sxy = sums[:, :, :d, d] * (STEP / ONE) - sx * means[:, :, None]
    syy = sums[:, :, d, d] * (SQUARE_UNIT / ONE**2) - 2 * means * sy + means**2 * counts

    own = np.linalg.inv(sxx + options.own_penalty * np.eye(d))  # (k, 3, d, d): (S + λ₁)⁻¹
    # Eliminating w_k leaves Σ_k λ₁ (S_k + λ₁)⁻¹ (S_k w₀ − b_k) + λ₀ w₀ = 0; S(S + λ₁)⁻¹ λ₁ is
    # computed as λ₁ (I − λ₁ (S + λ₁)⁻¹), which stays symmetric.
    shrink = options.own_penalty * own
    left = options.own_penalty * (np.eye(d) - shrink)
    right = np.einsum("ktde,kte->ktd", shrink, sxy)
    shared = np.linalg.solve(
        left.sum(axis=0) + options.shared_penalty * np.eye(d), right.sum(axis=0)[..., None]
    )[..., 0]  # (3, d)
    departure = np.einsum("ktde,kte->ktd", own, sxy - np.einsum("ktde,te->ktd", sxx, shared))
    weights = shared + departure  # (k, 3, d)

    residual = (
        syy - 2 * (weights * sxy).sum(-1) + np.einsum("ktd,ktde,kte->kt", weights, sxx, weights)
    )
    # Two imaginary outcomes at the prior noise: a model seen once is not believed to be noiseless.
    noise = np.sqrt((np.maximum(residual, 0.0) + 2 * noise_prior**2) / (counts + 2))
    # (S + λ₁)⁻¹ = C⁻ᵀC⁻¹ with S + λ₁ = CCᵀ: the sum is positive definite however many outcomes,
    # while its computed inverse may not be.
    factor = np.linalg.cholesky(sxx[:, Target.QUALITY] + options.own_penalty * np.eye(d))
    upper = np.linalg.inv(factor).transpose(0, 2, 1)  # (k, d, d)
    return Ridge(
        weights=weights.transpose(2, 0, 1).reshape(d, -1).astype(np.float32),
        means=means.astype(np.float32),
        noise=noise.astype(np.float32),
        spread=np.ascontiguousarray(upper.transpose(1, 0, 2).reshape(d, k * d), np.float32),
        counts=counts,
    )
