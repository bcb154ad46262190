"""How far a prompt is from everything seen, and whether that is far enough to be careful.

    contexts seen ─┬─ three quarters ─▶ S = mean x xᵀ + λI ──▶ leverage(x) = xᵀ S⁻¹ x
                   └─ a quarter, held out ─▶ the threshold that a stated share of them exceeds

Leverage is what the variance of a linear estimate grows with (a Mahalanobis distance, with the
constant counted in): where it is large, what was learned says little. The threshold is
split-conformal: a prompt like those seen exceeds it with at most the stated probability, however
they are distributed (Vovk et al. 2005). A prompt that was asked often is one prompt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.context import N_FEATURES, Contexts, real
from learners.option import option

RIDGE = 0.01  # λ, of the mean variance: directions that were hardly seen count, but not without end
HELD_OUT = 4  # every so many-th prompt calibrates the threshold
PROMPTS_MAX = 16_384  # the newest; 2 ms to solve


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """Who answers requests that are far from everything seen."""

    model: str = option(
        "",
        "The model that answers such requests, where their limits allow it. Empty: no guard.",
        max_length=200,
    )
    false_alarm_share: float = option(
        0.05, "Share of requests like those seen that are taken to be far.", ge=0.001, le=0.5
    )
    prompts_min: int = option(
        1024, "So many different prompts are seen before any is taken to be far.", ge=64, le=16_384
    )


class Novelty:
    """What was seen. Built once, then only read."""

    def __init__(self, seen: Contexts, options: GuardOptions) -> None:
        """`seen` (m, 64), the newest last, repeated prompts allowed."""
        distinct = np.unique(seen[-PROMPTS_MAX:], axis=0)
        self.known = len(distinct) >= options.prompts_min
        self._inverse, self.threshold = np.eye(N_FEATURES, dtype=np.float32), math.inf
        if not self.known:
            return
        # Sorted rows lie near each other: every fourth of them is like the rest.
        held_out = np.arange(len(distinct)) % HELD_OUT == 0
        x = real(distinct[~held_out]).astype(np.float64)
        moment = x.T @ x / len(x)
        moment += RIDGE * np.trace(moment) / N_FEATURES * np.eye(N_FEATURES)
        self._inverse = np.linalg.inv(moment).astype(np.float32)
        self.threshold = _exceeded_by(self.leverage(distinct[held_out]), options.false_alarm_share)

    def leverage(self, contexts: Contexts) -> NDArray[np.float32]:
        """How far prompts (n, 64) are from what was seen (n,)."""
        x = real(contexts)
        found: NDArray[np.float32] = np.einsum("nd,nd->n", x @ self._inverse, x)
        return found

    def far(self, contexts: Contexts) -> NDArray[np.bool_]:
        """Whether prompts (n,) are too far; none is before enough was seen."""
        if not self.known:
            return np.zeros(len(contexts), bool)
        return np.asarray(self.leverage(contexts) > self.threshold)


def _exceeded_by(scores: NDArray[np.floating], share: float) -> float:
    """What one more such score exceeds with at most this probability.

    >>> _exceeded_by(np.arange(1.0, 100.0), 0.05)
    95.0
    """
    rank = math.ceil((1.0 - share) * (len(scores) + 1))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf
