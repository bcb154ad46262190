"""How much one tenant's outcomes may move what is believed of a model, and so what others get.

    tenant ─hash─▶ 1 to 255 ─┬─▶ one of 4 groups ─▶ exact sums by group ─▶ weighed when read
                             └─▶ history: rows are kept in turn from each hash

Sums of a model are kept apart by *group* of tenants. When they are read, each group's are scaled:

- By volume: a group counts as at most as many outcomes as the second largest, or as
  `outcomes_min` where all others have fewer. Where only one tenant reports, nothing is scaled.
- By disagreement (`ridge` alone): a group whose outcomes of a model lie further from the estimate
  than the groups' weighted median, by more than a tolerance τ, counts τ / distance. These are the
  weights of Huber's M-estimator, for whole groups. They need three groups to know the odd one.

A scale is a function of the sums alone. So the same outcomes give the same bits in any order,
batch or shard, as they do without scales. Weights cost a least-squares estimate precision, never
its truth, where the groups agree: so it is safe to be strict.

What bounds this does not give: tenants are names that callers choose, so who uses several counts
as several; and in contexts that one tenant alone asks about, its outcomes decide.
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
# The group of what was learned before groups were noted, or imported by the operator: not scaled,
# since it is of all tenants.
EARLIER = 0
N_GROUPS = 1 + TENANT_GROUPS
HASHES = 255  # a row of history has one byte for its tenant


@dataclass(frozen=True, slots=True, kw_only=True)
class InfluenceOptions:
    """How much a group of tenants counts, however much it reports."""

    # 500 outcomes tell a model's mean quality within 0.02 (noise 0.35): one tenant that is nearly
    # alone is still served well.
    outcomes_min: float = option(
        500.0,
        "Outcomes of a model that tenants sharing a hash group count for, however few others "
        "report. Above that they count as at most the second largest group.",
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


def groups_of(hashes: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The group whose sums outcomes of these tenants enter; `EARLIER` where none was noted.

    >>> groups_of(np.array([0, 1, 2, 3, 4, 5], np.uint8))
    array([0, 2, 3, 4, 1, 2])
    """
    return np.where(hashes == EARLIER, EARLIER, 1 + hashes % TENANT_GROUPS).astype(np.intp)


def by_volume(counts: Floats, outcomes_min: float) -> Floats:
    """Scales (k, g, …) of groups that have so many outcomes (k, g, …), axis 1 in number order.

    >>> by_volume(np.array([[0.0, 2000.0, 800.0, 500.0, 700.0]]), 500.0)
    array([[1. , 0.4, 1. , 1. , 1. ]])
    """
    second = np.sort(counts[:, EARLIER + 1 :], axis=1)[:, -2]
    # What was learned before groups were noted, or imported, is nobody's.
    alone = (counts[:, EARLIER + 1 :] > 0).sum(axis=1) <= 1
    cap = np.where(alone, np.inf, np.maximum(second, outcomes_min))
    scales = np.minimum(1.0, cap[:, None] / np.maximum(counts, 1e-9))
    scales[:, EARLIER] = 1.0
    return scales


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
