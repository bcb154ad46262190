"""Time-decayed means per model and per pool: the plainest learner, and what others shrink towards.

A mean is never reported without its weight, so that "no data" cannot pass for zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.estimates.sums.decayed_sums import DecayedSums
from learners.estimates.sums.influence import InfluenceOptions, by_volume, groups_of
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE

FIGURES = ("error", "output_tokens", "cost_usd", "latency_ms")
# One integer step of each figure: a nano-dollar is a ten-thousandth of the cheapest call measured.
FIGURE_UNITS = np.array([1 / ONE, 1.0, 1e-9, 1 / 16])
UNITS = np.concatenate([np.full(N_TARGETS, 1 / ONE), FIGURE_UNITS])
N_COLUMNS = N_TARGETS + len(FIGURES)


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """Means (k, 7) and their weights (k, 7) in outcomes: three targets, then `FIGURES`."""

    means: NDArray[np.float64]
    weights: NDArray[np.float64]

    def targets(self, prior: NDArray[np.float64], prior_weight: float) -> NDArray[np.float64]:
        """Means of the targets (k, 3), pulled to `prior` (k, 3) by `prior_weight` outcomes."""
        weight = self.weights[:, :N_TARGETS]
        total = weight * self.means[:, :N_TARGETS] + prior_weight * prior
        return total / (weight + prior_weight)

    def figure(
        self, name: str, prior: float | NDArray[np.float64], prior_weight: float
    ) -> NDArray[np.float64]:
        """Means (k,) of one of `FIGURES`, pulled to `prior` by `prior_weight` outcomes."""
        column = N_TARGETS + FIGURES.index(name)
        weight = self.weights[:, column]
        return (weight * self.means[:, column] + prior_weight * prior) / (weight + prior_weight)


def new_statistics(half_life_ms: int) -> DecayedSums:
    """Empty sums: for every key, (7, 2) of value and count."""
    return DecayedSums((N_COLUMNS, 2), half_life_ms)


def values_and_counts(outcomes: Outcomes) -> NDArray[np.int64]:
    """What each outcome (n, 7, 2) adds: its reported values, and one for each."""
    known = np.concatenate([outcomes.known, outcomes.figures_known], axis=1).astype(np.int64)
    values = np.concatenate([outcomes.targets, outcomes.figures], axis=1) * known
    return np.stack([values, known], axis=2)


def groups(outcomes: Outcomes) -> NDArray[np.intp]:
    """The groups (n,) whose sums they enter."""
    return groups_of(outcomes.tenant_hashes, outcomes.producers)


def update(statistics: DecayedSums, keys: NDArray[np.uint64], outcomes: Outcomes) -> None:
    """Fold a batch into the means of `keys` (n,): the outcomes' models or their pools."""
    epochs, weights = statistics.epochs_and_weights(outcomes.decided_at_ms)
    terms = values_and_counts(outcomes) * weights[:, None, None]
    of = groups(outcomes)
    order = np.lexsort((of, epochs, keys))
    keys, epochs, of = keys[order], epochs[order], of[order]
    changes = (keys[1:] != keys[:-1]) | (epochs[1:] != epochs[:-1]) | (of[1:] != of[:-1])
    starts = np.flatnonzero(np.concatenate([np.ones(min(1, len(keys)), bool), changes]))
    totals = np.add.reduceat(terms[order], starts, axis=0)  # (groups, 7, 2)
    for start, total in zip(starts, totals, strict=True):
        statistics.add(int(keys[start]), int(epochs[start]), total, int(of[start]))


def read(
    statistics: DecayedSums,
    keys: list[int],
    as_of_ms: int,
    influence: InfluenceOptions | None = None,
) -> Means:
    """The means of `keys` at a time; mean 0 with weight 0 for a key never seen.

    No group of tenants counts for more than `influence` lets it.
    """
    outcomes_min = (influence or InfluenceOptions()).outcomes_min
    groups = statistics.read_groups(keys, as_of_ms)  # (k, g, 7, 2)
    sums = (groups * by_volume(groups[..., 1], outcomes_min)[..., None]).sum(axis=1)
    weights = sums[:, :, 1]
    means = sums[:, :, 0] * UNITS / np.where(weights > 0, weights, 1.0)
    return Means(means, weights)
