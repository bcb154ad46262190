"""How much one tenant's, or one producer's, outcomes may move what is believed of a model.

    tenant ────hash─▶ 1 to 255 ─▶ one of 4 ─┬─▶ group ─▶ exact sums by group ─▶ weighed when read
    producer ──hash─▶ 0, 1 or 2 ────────────┘
                   └────┴─▶ history: rows are kept in turn from each hash of both

A producer is who says so, if a report names its `source`: a judge, say, that speaks for all
tenants. Sums of a model are kept apart by *group*, of tenants and of producers. When they are read,
each group's are scaled:

- By volume, first producers and then tenants: one counts as at most as many outcomes as the second
  largest, or as `outcomes_min` where all others have fewer. Where only one reports, nothing is
  scaled, nor, among producers, is what names none: that is many.
- By disagreement (`ridge` alone): a group whose outcomes of a model lie further from the estimate
  than the groups' weighted median, by more than a tolerance τ, counts τ / distance. These are the
  weights of Huber's M-estimator, for whole groups. They need three groups to know the odd one.

A scale is a function of the sums alone. So the same outcomes give the same bits in any order,
batch or shard, as they do without scales. Weights cost a least-squares estimate precision, never
its truth, where the groups agree: so it is safe to be strict.

What bounds this does not give: tenants and producers are names that callers choose, so who uses
several counts as several (a tenant that names producers still as one tenant, by volume); and in
contexts that one tenant alone asks about, its outcomes decide.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from learners.option import option

Floats = NDArray[np.float64]

# A group costs 200 KB of sums per model and half-life, in every snapshot and every replica.
TENANT_GROUPS = 4
# Likewise of producers, where reports name them; beside them those that are not named.
PRODUCER_GROUPS = 2
UNNAMED = 0
# The group of what was learned before groups were noted, or imported by the operator: not scaled,
# since it is of all tenants.
EARLIER = 0
N_UNNAMED = 1 + TENANT_GROUPS  # groups where no report names its producer
N_GROUPS = 1 + TENANT_GROUPS * (1 + PRODUCER_GROUPS)
HASHES = 255  # a row of history has one byte for its tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluenceOptions:
    """How much a group of tenants counts, however much it reports."""

    # 500 outcomes tell a model's mean quality within 0.02 (noise 0.35): one tenant that is nearly
    # alone is still served well.
    outcomes_min: float = option(
        500.0,
        "So that nobody decides alone what is known of a model: a group of tenants (by a hash) "
        "counts as so many outcomes, beyond that as the second largest at most. So do producers.",
        key="tenant_outcomes_min",
        ge=1,
        le=1e12,
    )
    tolerance: float = 0.25  # of disagreement with other groups, in deviations of one outcome
    tolerance_errors: float = 2.0  # and in standard errors: a few outcomes differ by chance
    rounds: int = 2  # of weighing by disagreement; the weights change by under 0.05 after


@lru_cache(maxsize=4096)
def hash_of(tenant: bytes) -> int:
    """A tenant as a number from 1 to 255; unnamed requests are a tenant of their own.

    >>> hash_of(b""), hash_of(b"acme")
    (217, 16)
    """
    return 1 + int.from_bytes(hashlib.blake2b(tenant, digest_size=8).digest(), "little") % HASHES


def producer_of(source: str | None) -> int:
    """A producer as a number from 1 to 2, by the name it gives itself; 0 where it gives none.

    >>> producer_of(None), producer_of("judge"), producer_of("user")
    (0, 2, 1)
    """
    if not source:
        return UNNAMED
    return 1 + hashlib.blake2b(source.encode(), digest_size=1).digest()[0] % PRODUCER_GROUPS


def groups_of(hashes: NDArray[np.uint8], producers: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The group whose sums outcomes of these tenants, said by these producers, enter.

    `EARLIER` where no tenant was noted.

    >>> groups_of(np.array([0, 1, 2, 3, 4, 5], np.uint8), np.array([0, 0, 0, 0, 0, 2], np.uint8))
    array([ 0,  2,  3,  4,  1, 10])
    """
    beyond = TENANT_GROUPS * producers.astype(np.intp)
    return np.where(hashes == EARLIER, EARLIER, 1 + hashes % TENANT_GROUPS + beyond)


def tenants_in(groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which of the groups of tenants each group is of; `EARLIER` stays."""
    return np.where(groups == EARLIER, EARLIER, 1 + (groups - 1) % TENANT_GROUPS)


def producers_in(groups: NDArray[np.intp]) -> NDArray[np.intp]:
    """Which of the groups of producers each group is of; `UNNAMED` where none was named."""
    return np.maximum(groups - 1, 0) // TENANT_GROUPS


def by_volume(counts: Floats, outcomes_min: float) -> Floats:
    """Scales (k, g, …) of groups that have so many outcomes (k, g, …), axis 1 in number order.

    >>> by_volume(np.array([[0.0, 2000.0, 800.0, 500.0, 700.0]]), 500.0)
    array([[1. , 0.4, 1. , 1. , 1. ]])
    """
    shape = counts.shape
    # What was learned before groups were noted, or imported, is nobody's.
    apart = counts[:, EARLIER + 1 :].reshape(shape[0], -1, TENANT_GROUPS, *shape[2:])
    producers = _capped(apart.sum(axis=2), outcomes_min)  # (k, p, …)
    producers[:, UNNAMED] = 1.0
    tenants = _capped((apart * producers[:, :, None]).sum(axis=1), outcomes_min)  # (k, t, …)
    scales = np.ones(shape)
    both = producers[:, :, None] * tenants[:, None]
    scales[:, EARLIER + 1 :] = both.reshape(shape[0], -1, *shape[2:])
    return scales


def _capped(counts: Floats, outcomes_min: float) -> Floats:
    """Scales of parts (k, m, …) after which none has more than the second largest had."""
    if counts.shape[1] == 1:
        return np.ones(counts.shape)
    second = np.sort(counts, axis=1)[:, -2]
    alone = (counts > 0).sum(axis=1) <= 1
    cap = np.where(alone, np.inf, np.maximum(second, outcomes_min))
    return np.minimum(1.0, cap[:, None] / np.maximum(counts, 1e-9))


def by_agreement(
    residuals: Floats, noise: Floats, counts: Floats, weights: Floats, options: InfluenceOptions
) -> Floats:
    """Huber weights (k, g, t) of groups whose mean residuals are `residuals` (k, g, t).

    `noise` (k, t) is the deviation of one outcome; of `counts` outcomes each group has, it counts
    as `weights` of them.
    """
    errors = options.tolerance_errors / np.sqrt(np.maximum(counts, 1.0))
    tolerance = noise[:, None] * np.maximum(options.tolerance, errors)
    distance = np.abs(residuals - _median(residuals, weights)[:, None])
    return np.minimum(1.0, tolerance / np.maximum(distance, 1e-12))


def _median(values: Floats, weights: Floats) -> Floats:
    """Weighted medians along axis 1; between two values with half the weight each, their middle."""
    order = np.argsort(values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, 1)
    below = np.cumsum(np.take_along_axis(weights, order, 1), axis=1)
    half = below[:, -1:] / 2
    lower = np.take_along_axis(values, (below >= half).argmax(axis=1)[:, None], 1)
    upper = np.take_along_axis(values, (below > half).argmax(axis=1)[:, None], 1)
    return np.where(half > 0, (lower + upper) / 2, 0.0)[:, 0]
