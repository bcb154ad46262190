"""A model that has hardly been tried gets a small share, whatever its estimate promises.

    cap of a model = max(share_max, ((1 + outcomes) / (1 + outcomes_proven))²), at most one

Before its first outcomes an estimate is a guess. Without a cap an untried model that is believed to
be as good as the others and is cheap takes nearly all requests until the first outcomes come back,
however bad it is. With it, a bad one gets `share_max` of the requests that come until then; a good
one doubles its cap with each of its first outcomes. When all are new there is nothing to protect.

What is cut off goes to the proven models, as the policy weighed them against each other. The
probabilities stay exact: they are what is drawn from and what the ticket says.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.option import option
from learners.policies.policy import Mask, Matrix


@dataclass(frozen=True, slots=True, kw_only=True)
class NewcomerOptions:
    """How much of the traffic a model may take before it is known."""

    share_max: float = option(
        0.03, "Largest share of requests for a model that has no outcome yet.", gt=0, le=1
    )
    outcomes_proven: float = option(
        4.0, "Outcomes after which a model's share is no longer capped.", gt=0, le=1e6
    )


def capped(
    p: Matrix, allowed: Mask, n_outcomes: NDArray[np.float64], options: NewcomerOptions
) -> Matrix:
    """Probabilities (n, k) with those of unproven models cut; `n_outcomes` (k,) of each."""
    proof = ((1.0 + n_outcomes) / (1.0 + options.outcomes_proven)) ** 2
    if proof.min() >= 1.0:
        return p
    cap = np.clip(proof, options.share_max, 1.0)
    proven = allowed & (cap >= 1.0)
    cut = np.where(proven, p, np.minimum(p, cap))
    spare = 1.0 - cut.sum(axis=1, keepdims=True)
    # By the policy's own weights; alike, where it gave the proven ones nothing.
    weight = np.where(proven, p, 0.0)
    total = weight.sum(axis=1, keepdims=True)
    count = np.maximum(proven.sum(axis=1, keepdims=True), 1)
    weight = np.where(total > 0, weight / np.where(total > 0, total, 1.0), proven / count)
    return np.where(proven.any(axis=1, keepdims=True), cut + spare * weight, p)
