"""How far outcomes of one task, tag or tenant lie from what their contexts say, by model.

    outcomes with traits ─▶ exact sums by model and trait ─┐
    ridge of quality ──────────────────────────────────────┴─▶ residuals ─▶ shifts (k,) by trait

For model k and the traits T of a request its quality is estimated as

    ŷ_k(x) + Σ_{t∈T} (e₀t + e_kt)        e₀t ~ N(0, τ₀²),  e_kt ~ N(0, τ₁²)

with ŷ of `ridge`, which knows nothing of traits. e₀ is what all models share of a trait (a hard
task, a strict tenant), e_k how one model departs from that: a mixed model with crossed random
effects, solved after ŷ rather than together with it. Traits that always come together share what is
found, since how often each pair came together is summed as well.

How far effects are shrunk is not stated but estimated: τ² of each kind (tasks, tags, tenants) by
the method of moments, from how much further residuals lie from zero than noise alone would put
them. Where traits say nothing τ² goes to zero and so do all shifts. A trait that is new has the
deviation τ, so models are tried again where a task may be different.

The sums hold features, not residuals: the residuals are those of today's ridge, so nothing of its
first guesses stays in them, and the same outcomes give the same bits in any order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.context import STEP
from learners.estimates.ridge import ROWS_EXACT, Ridge
from learners.estimates.sums.decayed_sums import DecayedSums
from learners.estimates.sums.influence import InfluenceOptions, by_volume, groups_of
from learners.outcomes import Outcomes
from learners.targets import ONE, Target
from learners.traits import KINDS, N_TRAITS, TENANTS, Traits

Floats = NDArray[np.float64]

PRIOR_DEVIATION = 0.05  # τ before data: a task is assumed to matter a little
PRIOR_OUTCOMES = 60.0  # of one trait that this assumption counts as
OF_TRAIT = 0x9E3779B97F4A7C15  # odd: a model and a trait make a key of their own
KEY_MASK = (1 << 64) - 1


def new_statistics(n_features: int, half_life_ms: int) -> DecayedSums:
    """Empty sums: for every model and trait, Σφ, how often each trait came with it, and Σy."""
    return DecayedSums((n_features + N_TRAITS + 1,), half_life_ms)


def key_at(model: int, trait: int) -> int:
    """The key of a model's sums of one trait."""
    return model ^ (trait * OF_TRAIT & KEY_MASK)


def update(statistics: DecayedSums, outcomes: Outcomes, features: NDArray[np.int8]) -> None:
    """Fold in a batch of qualities; `features` (n, d) are those of the ridge."""
    named = np.flatnonzero(outcomes.traits.any(axis=1))
    if not len(named):
        return
    outcomes, features = outcomes.take(named), features[named]
    epochs, weights = statistics.epochs_and_weights(outcomes.decided_at_ms)
    groups = groups_of(outcomes.tenant_hashes, outcomes.producers)
    for rows in _alike(outcomes.models, epochs, groups):
        first = rows[0]
        traits = _indicators(outcomes.traits[rows])
        used = np.flatnonzero(traits.any(axis=0))  # a few of all there may be
        chosen = traits[:, used]
        y = outcomes.targets[rows, Target.QUALITY, None]
        beside = np.concatenate([features[rows], chosen, y], axis=1).astype(np.float64)
        found = ((chosen * weights[rows, None]).T.astype(np.float64) @ beside).astype(np.int64)
        n_features = features.shape[1]
        total = np.zeros((len(used), *statistics.shape), np.int64)
        total[:, :n_features] = found[:, :n_features]
        total[:, n_features + used] = found[:, n_features:-1]
        total[:, -1] = found[:, -1]
        model, epoch, group = int(outcomes.models[first]), int(epochs[first]), int(groups[first])
        for trait, sums in zip(used.tolist(), total, strict=True):
            statistics.add(key_at(model, trait), epoch, sums, group)


def _alike(*columns: NDArray[np.generic]) -> Iterator[NDArray[np.intp]]:
    """Rows that share the values of all columns (n,), at most `ROWS_EXACT` each."""
    order = np.lexsort(columns[::-1])
    changes = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    for rows in np.split(order, np.flatnonzero(changes) + 1):
        for start in range(0, len(rows), ROWS_EXACT):
            yield rows[start : start + ROWS_EXACT]


def _indicators(traits: Traits) -> NDArray[np.int64]:
    """Which traits (n, N_TRAITS) requests have."""
    found = np.zeros((len(traits), N_TRAITS), np.int64)
    found[np.arange(len(traits))[:, None], traits] = 1
    found[:, 0] = 0
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """Solved: shifts (N_TRAITS, k) of quality, and their variances; those of trait 0 are zero."""

    shifts: NDArray[np.float32]
    variances: NDArray[np.float32]
    deviations: Floats  # (kinds,) τ₁: how much models depart from each other on average
    counts: Floats  # (N_TRAITS, k) outcomes that they rest on

    def add_to(
        self, mean: NDArray[np.float32], deviation: NDArray[np.float32], traits: Traits
    ) -> None:
        """Shift qualities in `mean` (n, k, 3), and widen `deviation` (n, k), in place."""
        used = traits[:, traits.any(axis=0)]
        mean[:, :, Target.QUALITY] += self.shifts[used].sum(axis=1)
        np.sqrt(deviation**2 + self.variances[used].sum(axis=1), out=deviation)


def solve(
    statistics: DecayedSums,
    models: Sequence[int],
    as_of_ms: int,
    quality: Ridge,
    influence: InfluenceOptions,
    changed: Collection[int] = (),
) -> Effects | None:
    """The effects on `models` (k keys), `quality` being their ridge.

    None where nothing counts that was named. What came before a model `changed` says nothing.
    """
    known = [i for i, model in enumerate(models) if model not in changed]
    held = {key for key, _, _ in statistics.sums}
    at = [(i, t) for i in known for t in range(1, N_TRAITS) if key_at(models[i], t) in held]
    if not at:
        return None
    groups = statistics.read_groups([key_at(models[i], t) for i, t in at], as_of_ms)  # (m, g, …)
    of, trait = np.array(at, np.intp).T
    sums = (groups * _scales(groups, of, trait, influence)[..., None]).sum(axis=1)
    d, k = len(quality.weights), len(models)
    together, residual = np.zeros((k, N_TRAITS, N_TRAITS)), np.zeros((k, N_TRAITS))
    together[of, trait] = sums[:, d:-1]
    if not together.any():  # all of it has faded, or is of a time to come
        return None
    linear = np.einsum("md,dm->m", sums[:, :d] * STEP, quality.weights[:, of].astype(np.float64))
    stated = quality.means[of, 0] * sums[np.arange(len(of)), d + trait]
    residual[of, trait] = sums[:, -1] / ONE - linear - stated
    return _solved(together, residual, quality.noise[:, 0].astype(np.float64))


def _scales(
    groups: Floats, of: NDArray[np.intp], trait: NDArray[np.intp], influence: InfluenceOptions
) -> Floats:
    """How much groups of tenants count (m, g): of a model each as little as in any of its traits.

    One scale for all traits keeps the sums those of so many whole outcomes. A tenant's own trait
    concerns nobody else.
    """
    counts = groups[np.arange(len(of)), :, groups.shape[2] - N_TRAITS - 1 + trait]  # (m, g)
    scales = by_volume(counts, influence.outcomes_min)
    scales[np.isin(trait, TENANTS)] = 1.0
    least = np.ones((int(of.max()) + 1, groups.shape[1]))
    np.minimum.at(least, of, scales)
    return least[of]


def _solved(together: Floats, residual: Floats, noise: Floats) -> Effects:
    """Shared effects first, then each model's departures from them."""
    counts = np.einsum("ktt->kt", together)  # (k, T)
    in_all, sums = counts.sum(axis=0), residual.sum(axis=0)
    share = np.where(in_all > 0, sums / np.maximum(in_all, 1e-9), 0.0)
    own = residual - counts * share
    free = counts * (1.0 - counts / np.maximum(in_all, 1e-9))  # what the mean of all left of each
    mean_square = (noise[:, None] ** 2 * counts).sum(axis=0)
    shared_tau2 = _variances(sums[None] ** 2 - mean_square[None], in_all[None])
    own_tau2 = _variances(own**2 - noise[:, None] ** 2 * free, free)
    noise2 = float((noise**2 * counts.sum(axis=1)).sum() / counts.sum())
    whole = together.sum(axis=0)
    common = np.linalg.solve(whole + np.diag(noise2 / shared_tau2), sums)
    common_var = np.diagonal(np.linalg.inv(whole / noise2 + np.diag(1.0 / shared_tau2)))
    shifts, variances = np.zeros_like(residual), np.zeros_like(residual)
    for i, one in enumerate(together):
        precision = one / noise[i] ** 2 + np.diag(1.0 / own_tau2)
        covariance = np.linalg.inv(precision)
        shifts[i] = common + covariance @ ((residual[i] - one @ common) / noise[i] ** 2)
        variances[i] = np.diagonal(covariance) + common_var
    shifts[:, 0] = variances[:, 0] = 0.0
    return Effects(
        np.ascontiguousarray(shifts.T, np.float32),
        np.ascontiguousarray(variances.T, np.float32),
        np.sqrt([own_tau2[kind[0]] for kind in KINDS]),
        np.ascontiguousarray(counts.T),
    )


def _variances(excess: Floats, counts: Floats) -> Floats:
    """τ² of each trait (T,), alike within a kind: by how much squared sums exceed noise."""
    found = np.ones(N_TRAITS)
    imagined = PRIOR_OUTCOMES**2
    for kind in KINDS:
        at = list(kind)
        total, weight = excess[:, at].sum(), (counts[:, at] ** 2).sum()
        tau2 = (max(total, 0.0) + imagined * PRIOR_DEVIATION**2) / (weight + imagined)
        found[at] = max(tau2, 1e-8)
    return found
