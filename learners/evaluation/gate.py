"""Whether a change is for the better: promoted when that is sure, taken back when it is worse.

    request ─┬─ a share c ─▶ candidate's choice ─┐ where the two would have chosen alike,
             └─ the rest ──▶ incumbent's choice ─┘ nothing can differ: X = 0
    else, of rewards r and what v was expected of the request:
             X = (r − v) / c  for the candidate's,   X = −(r − v) / (1 − c)  for the incumbent's

The mean of X is by how much the candidate is better, in points per request. Both policies use the
same draw, so requests that they agree on add no noise; v takes out what makes requests hard. Their
sums are integers: in whatever order outcomes come, the verdict is the same.

The one rule: a candidate that is not better by the margin is promoted with probability at most
`error_rate`, however long it is tried and however often it is looked at (`sequences`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from learners.evaluation.sequences import Sums

UNIT = 4096.0  # values are summed as integers of 1/4096
REWARD_OFF_MAX = 1.0  # a reward counts as at most this far from what was expected

Floats = NDArray[np.float64]


class Verdict(StrEnum):
    """What is to be done with a candidate."""

    GO_ON = "go on"
    PROMOTE = "promote"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True)
class Arms:
    """Of n requests: by whom each was decided, and whether the other would have chosen alike."""

    candidate: NDArray[np.bool_]  # (n,)
    alike: NDArray[np.bool_]  # (n,)


def values(arms: Arms, reward: Floats, expected: Floats, share: float) -> NDArray[np.int64]:
    """X (n,) of outcomes, as integers."""
    off = np.clip(reward - expected, -REWARD_OFF_MAX, REWARD_OFF_MAX)
    found = np.where(arms.candidate, off / share, -off / (1.0 - share))
    return np.rint(np.where(arms.alike, 0.0, found) * UNIT).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a candidate: integer sums of X, that add up over shards."""

    n: int
    total: int
    squares: int
    share: float  # of the requests that the candidate decides

    @property
    def mean(self) -> float:
        """By how much the candidate is better, as far as it is known; 0 before anything is."""
        return self.total / UNIT / max(1, self.n)

    def bounds(self, error_rate: float) -> tuple[float, float]:
        """Of that, each exceeded ever with probability `error_rate`."""
        low, high = self._sums(1).lower(error_rate), -self._sums(-1).lower(error_rate)
        return max(low, -REWARD_OFF_MAX), min(high, REWARD_OFF_MAX)

    def verdict(self, error_rate: float, *, margin: float) -> Verdict:
        """Promoted where surely better by the margin, taken back where surely worse.

        >>> Evidence(4000, 4000 * 200, 4000 * 1200**2, 0.5).verdict(0.05, margin=0.0)
        <Verdict.PROMOTE: 'promote'>
        """
        low, high = self.bounds(error_rate)
        if low > margin:
            return Verdict.PROMOTE
        return Verdict.ROLL_BACK if high < 0.0 else Verdict.GO_ON

    def _sums(self, sign: int) -> Sums:
        span = REWARD_OFF_MAX / min(self.share, 1.0 - self.share)
        return Sums(self.n, sign * self.total / UNIT, self.squares / UNIT**2, span)
