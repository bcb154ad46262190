"""Linear models, shared across models: statistics that add, solved per snapshot.

For model k and a target y the estimate is

    ŷ_k(x) = μ_k + (w₀ + w_k)ᵀ x,      minimising  Σ (y − ŷ)² + λ₀‖w₀‖² + λ₁ Σ_k ‖w_k‖²

w₀ is what all models share (most of a prompt's quality is its difficulty), w_k how one model
departs from it, μ_k what is assumed of it before data. All of it is solved from per-model sums of
zzᵀ with z = (x, y), by eliminating each w_k (block elimination; a mixed model with one random
effect per model). The last feature is constant; its own penalty is what μ_k weighs, in outcomes.

The penalties are added when solving and never enter the sums, so forgetting cannot wind up and a
model without data falls back on what all models share.

λ₁ says how far a model is believed to depart before it is known. Where models differ by far more,
the few prompts on which one is best would drown in what all share, and a model whose first outcomes
were of prompts that do not suit it would not be tried on those that do. So λ₁ is checked: if it
held, departures solved of known models would on average have the size

    E ŵᵀMŵ = σ² · tr M (Λ₁⁻¹ − (S + Λ₁)⁻¹),      M the covariance of x

(what a prior leaves unknown and what was learned add up to it). Where they are larger by a factor,
λ₁ is divided by it and all is solved again: a few steps of empirical Bayes (MacKay 1992). As M is
what prompts differ in, vectors that are nearly parallel are weighed by what tells them apart. λ₁ is
never made larger: that models are alike on the prompts of an hour says little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.context import BIAS, STEP
from learners.estimates.sums.decayed_sums import DecayedSums
from learners.kernels.compiled import WIDE
from learners.option import option
from learners.targets import ONE

# 16,384 rows of |x| ≤ 127 times |y| ≤ 8 (2^15) times a weight below 2^9 stay below 2^53: sums of
# that many rows are exact integers even in the float64 of a BLAS product.
ROWS_EXACT = 1 << 14
# y² is summed in units of 64 / ONE²: at 1 / ONE² the int64 of a model whose stated latency is 20
# times too low would wrap round after 120 million outcomes in one half-life; so it takes 7 billion.
SQUARE_UNIT = 64
DIFFERENCE_LEAST = 1.5  # a factor by which λ₁ changes less is taken to be chance
VARIED_LEAST = 1e-9  # of prompts' mean square: what varies less may be rounding of faded sums
# The shared weight of the constant is held at zero: what was assumed of one model is not corrected
# because others were misjudged.
FIXED = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class RidgeOptions:
    """How strongly weights are pulled to zero, in outcomes at a feature of size one."""

    # λ₀ and λ₁; λ₁ is larger, because models differ less than prompts do.
    shared_penalty: float = option(
        300.0, "Ridge penalty of what all models share, in outcomes.", gt=0, le=1e6
    )
    own_penalty: float = option(
        1500.0,
        "Ridge penalty of what sets a model apart, in outcomes; where models are seen to differ "
        "by more than that says, it is divided.",
        gt=0,
        le=1e6,
    )
    prior_weight: float = 2.0  # what is assumed of a model counts as this many outcomes
    noise_weight: float = 10.0  # what all models' noise is counts as this many outcomes of each
    # That models differ as λ₁ says is believed like so many models about which all is known.
    difference_weight: float = 0.3
    difference_max: float = 1000.0  # largest factor by which they may differ more, of variances
    difference_steps: int = 3  # at most so many times λ₁ is divided; 0: it holds


def new_statistics(n_targets: int, n_features: int, half_life_ms: int) -> DecayedSums:
    """Empty sums of zzᵀ, (t, d + 1, d + 1) per model; the last entry, y², in units of its own."""
    return DecayedSums((n_targets, n_features + 1, n_features + 1), half_life_ms)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examples:
    """Rows to learn from: integers only."""

    models: NDArray[np.uint64]  # (n,)
    decided_at_ms: NDArray[np.int64]  # (n,)
    tenant_groups: NDArray[np.intp]  # (n,) see `influence`
    features: NDArray[np.int8]  # (n, d), the last one constant
    targets: NDArray[np.int64]  # (n, t) fixed point
    known: NDArray[np.bool_]  # (n, t)


def update(statistics: DecayedSums, rows: Examples) -> None:
    """Fold a batch of outcomes into the sums."""
    epochs, weights = statistics.epochs_and_weights(rows.decided_at_ms)
    for group in _groups(rows, epochs):
        total = products(rows, group, weights[group], statistics.shape)
        first = group[0]
        tenant_group = int(rows.tenant_groups[first])
        statistics.add(int(rows.models[first]), int(epochs[first]), total, tenant_group)


def products(
    rows: Examples, group: NDArray[np.intp], weights: NDArray[np.int64], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    """The weighted sum of zzᵀ of rows that know the same targets, at most `ROWS_EXACT`."""
    known = np.flatnonzero(rows.known[group[0]])
    x, weight = rows.features[group].astype(np.float64), weights.astype(np.float64)
    y = rows.targets[group][:, known].astype(np.float64)  # (r, t)
    total = np.zeros(shape, np.int64)
    weighted = x * weight[:, None]  # (r, d)
    total[known, :-1, :-1] = (weighted.T @ x).astype(np.int64)
    xy = (weighted.T @ y).astype(np.int64)  # (d, t)
    total[known, :-1, -1] = xy.T
    total[known, -1, :-1] = xy.T
    total[known, -1, -1] = (weight @ np.rint(y * y / SQUARE_UNIT)).astype(np.int64)
    return total


def _groups(rows: Examples, epochs: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Rows that share model, epoch, tenant group and known targets, at most `ROWS_EXACT` each."""
    pattern = rows.known @ (1 << np.arange(rows.known.shape[1]))
    models, tenants = rows.models, rows.tenant_groups
    order = np.lexsort((pattern, tenants, epochs, models))
    order = order[pattern[order] > 0]
    if not len(order):
        return []
    keys = np.stack([models.view(np.int64), epochs, tenants, pattern])[:, order]
    starts = np.flatnonzero((keys[:, 1:] != keys[:, :-1]).any(axis=0)) + 1
    return [
        group[start : start + ROWS_EXACT]
        for group in np.split(order, starts)
        for start in range(0, len(group), ROWS_EXACT)
    ]


def outcome_counts(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many outcomes (…) sums of zzᵀ (…, d + 1, d + 1) are of: the constant feature, squared."""
    return sums[..., -2, -2] / BIAS**2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ridge:
    """Solved linear models for k models: predict with `predict`.

    `noise` is the residual standard deviation per model and target; `spread` turns features into
    the part of the first target's uncertainty that more outcomes of that model would remove.
    """

    weights: NDArray[np.float32]  # (d, k·t), column k·t + j is w₀ + w_k of target j
    means: NDArray[np.float32]  # (k, t) μ
    noise: NDArray[np.float32]  # (k, t)
    # (k, d, d and more): ‖xᵀ spread_k‖² = variance / noise², an upper triangle, then zeros
    spread: NDArray[np.float32]
    counts: NDArray[np.float64]  # (k, t) faded number of outcomes
    shared: NDArray[np.float32]  # (t, d) w₀

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Estimates (n, k, t) for real features (n, d)."""
        return (x @ self.weights).reshape(len(x), *self.means.shape) + self.means

    def deviation(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standard deviation (n, k) of the first target's estimate, noise not included."""
        parts = x @ self.spread  # (k, n, d)
        return np.sqrt(np.einsum("knd,knd->nk", parts, parts)) * self.noise[:, 0]


def solve(
    sums: NDArray[np.float64],
    means: NDArray[np.float64],
    noise_prior: NDArray[np.float64],
    options: RidgeOptions,
    *,
    with_spread: bool = True,
    profiles: NDArray[np.float64] | None = None,
) -> Ridge:
    """Solve for all models at once.

    `sums` (k, t, d + 1, d + 1) faded sums of zzᵀ as integers of the fixed-point scales; `means`
    (k, t) the μ to depart from; `noise_prior` (t,) the standard deviation assumed before data;
    `profiles` (k, d) weights to depart from, beside what all share; None: none.
    """
    k, d = len(sums), sums.shape[-1] - 1
    one = BIAS * STEP  # the constant feature
    sxx = sums[:, :, :d, :d] * STEP**2
    sx = sxx[:, :, d - 1, :] / one
    counts = sx[:, :, d - 1] / one
    sy = sums[:, :, d - 1, d] / (BIAS * ONE)
    # Centre y on μ: Σ x (y − μ) and Σ (y − μ)².
    sxy = sums[:, :, :d, d] * (STEP / ONE) - sx * means[:, :, None]
    syy = sums[:, :, d, d] * (SQUARE_UNIT / ONE**2) - 2 * means * sy + means**2 * counts

    if profiles is not None:  # likewise: Σ x (y − μ − cᵀx) and Σ (y − μ − cᵀx)²
        along = np.einsum("ktde,ke->ktd", sxx, profiles)
        syy = syy - 2 * np.einsum("kd,ktd->kt", profiles, sxy)
        syy = syy + np.einsum("kd,ktd->kt", profiles, along)
        sxy = sxy - along

    moments = _Moments(sxx, sxy, syy, counts)
    fitted, differs = _fit(moments, 1.0, noise_prior, options), 1.0
    for _ in range(options.difference_steps):
        differs = _difference(moments, fitted, options)
        if differs < DIFFERENCE_LEAST * fitted.factor:
            break
        fitted = _fit(moments, differs, noise_prior, options)
    weights, noise = fitted.weights, fitted.noise
    if with_spread:
        # Deviations are of the newest factor. It is never below the one that was fitted with: it
        # rises from 1 towards what holds (in all of 800 made-up worlds, with prompts repeated and
        # nearly parallel, models apart in kind, and outliers).
        # (S + Λ₁)⁻¹ = C⁻ᵀC⁻¹ with S + Λ₁ = CCᵀ: the sum is positive definite however many
        # outcomes, while its computed inverse may not be.
        spread = np.zeros((k, d, (d // WIDE + 1) * WIDE))
        doubt = np.append(np.full(d - 1, options.own_penalty / differs), options.prior_weight)
        spread[:, :, :d] = np.diag(1 / np.sqrt(doubt))
        seen = counts[:, 0] > 0
        triangle = np.linalg.cholesky(sxx[seen, 0] + np.diag(doubt))
        spread[seen, :, :d] = np.linalg.inv(triangle).transpose(0, 2, 1)
    else:
        spread = np.zeros((0, d, WIDE))
    if profiles is not None:
        weights = weights + profiles[:, None]
    return Ridge(
        shared=fitted.shared.astype(np.float32),
        weights=weights.transpose(2, 0, 1).reshape(d, -1).astype(np.float32),
        means=means.astype(np.float32),
        noise=noise.astype(np.float32),
        spread=np.ascontiguousarray(spread, np.float32),
        counts=counts,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    """Sums of k models and t targets, on the real scale, y centred on μ."""

    xx: NDArray[np.float64]  # (k, t, d, d)
    xy: NDArray[np.float64]  # (k, t, d)
    yy: NDArray[np.float64]  # (k, t)
    counts: NDArray[np.float64]  # (k, t)


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """Weights for λ₁ divided by a factor."""

    factor: float
    own_penalty: NDArray[np.float64]  # (d,) the diagonal of Λ₁
    own: NDArray[np.float64]  # (k, t, d, d) (S + Λ₁)⁻¹
    shared: NDArray[np.float64]  # (t, d)
    departure: NDArray[np.float64]  # (k, t, d)
    weights: NDArray[np.float64]  # (k, t, d)
    noise: NDArray[np.float64]  # (k, t)


def _fit(
    of: _Moments, factor: float, noise_prior: NDArray[np.float64], options: RidgeOptions
) -> _Fit:
    d = of.xx.shape[-1]
    own_penalty = np.full(d, options.own_penalty / factor)
    shared_penalty = np.full(d, options.shared_penalty)
    own_penalty[-1], shared_penalty[-1] = options.prior_weight, FIXED
    own = _inverse(of.xx, own_penalty, of.counts > 0)
    # Eliminating w_k leaves Σ_k Λ₁ (S_k + Λ₁)⁻¹ (S_k w₀ − b_k) + Λ₀ w₀ = 0; Λ₁ (S + Λ₁)⁻¹ S is
    # computed as Λ₁ − Λ₁ (S + Λ₁)⁻¹ Λ₁, which stays symmetric.
    shrink = own_penalty[:, None] * own
    left = np.diag(own_penalty) - shrink * own_penalty
    right = np.einsum("ktde,kte->ktd", shrink, of.xy)
    shared = np.linalg.solve(
        left.sum(axis=0) + np.diag(shared_penalty), right.sum(axis=0)[..., None]
    )[..., 0]
    departure = np.einsum("ktde,kte->ktd", own, of.xy - np.einsum("ktde,te->ktd", of.xx, shared))
    weights = shared + departure

    residual = of.yy - 2 * (weights * of.xy).sum(-1)
    residual += np.einsum("ktd,ktd->kt", np.einsum("ktd,ktde->kte", weights, of.xx), weights)
    noise = _noise(np.maximum(residual, 0.0), of.counts, noise_prior, options.noise_weight)
    return _Fit(factor, own_penalty, own, shared, departure, weights, noise)


def _inverse(
    sums: NDArray[np.float64], penalty: NDArray[np.float64], seen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(S + Λ)⁻¹ (k, t, d, d) for a diagonal Λ (d,); where nothing was `seen` (k, t) S is zero."""
    inverse = np.broadcast_to(np.diag(1 / penalty), sums.shape).copy()
    inverse[seen] = np.linalg.inv(sums[seen] + np.diag(penalty))
    return inverse


def _difference(of: _Moments, fitted: _Fit, options: RidgeOptions) -> float:
    """How much more than λ₁ says, at least 1, models differ in the first target, of variances.

    Of the constant, which says how good a model is on all prompts, nothing is counted.
    """
    n = max(float(of.counts[:, 0].sum()), 1.0)
    every = of.xx[:, 0, :-1].sum(axis=0) / n  # (d − 1, d)
    mean = every[:, -1] / (BIAS * STEP)
    typical = every[:, :-1] - np.outer(mean, mean)  # M
    varied = float(np.trace(typical))
    if varied <= VARIED_LEAST * float(np.trace(every)):  # one prompt over and over
        return 1.0
    believed = varied / fitted.own_penalty[0]
    w = fitted.departure[:, 0, :-1]
    unknown = np.einsum("kde,de->k", fitted.own[:, 0, :-1, :-1], typical)
    learned = np.einsum("kd,de,ke->k", w, typical, w, optimize=True) / fitted.noise[:, 0] ** 2
    weight = options.difference_weight * believed  # of models that differ as λ₁ says
    found = (fitted.factor * learned.sum() + weight) / ((believed - unknown).sum() + weight)
    return float(np.clip(found, 1.0, options.difference_max))


def _noise(
    squares: NDArray[np.float64],
    counts: NDArray[np.float64],
    prior: NDArray[np.float64],
    weight: float,
) -> NDArray[np.float64]:
    """Residual deviations (k, t): each model's, pulled to all models', pulled to the prior.

    A model seen once is not believed to be noiseless.
    """
    together = (squares.sum(axis=0) + weight * prior**2) / (counts.sum(axis=0) + weight)  # (t,)
    return np.sqrt((squares + weight * together) / (counts + weight))
