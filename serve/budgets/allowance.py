"""Money for something beside requests, filled evenly over the day: a token bucket.

    US dollars a day ─/ replicas ─▶ bucket of six hours ─take─▶ spent, or not enough now

Replicas don't talk to each other: each has an equal part. A bucket starts empty, so that no restart
gives a budget twice, and fills so much more slowly that no 24 hours exceed the budget, with
what is in the bucket when they begin.
"""

from __future__ import annotations

DAY_S = 86_400.0
BURST_S = 6 * 3600.0  # of the budget, that may be spent at once


class Allowance:
    """One replica's part.

    >>> allowance = Allowance(usd_per_day=10.8)
    >>> allowance.fill(1, 1000), round(allowance.fill(1, 11_000), 6)
    (0.0, 0.001)
    >>> allowance.take(9e-4), allowance.take(9e-4)
    (True, False)
    """

    def __init__(self, usd_per_day: float) -> None:
        self.usd_per_day = usd_per_day
        self.usd = 0.0  # in the bucket; below zero where calls were dearer than expected
        self._filled_ms = 0

    def fill(self, n_replicas: int, now_ms: int) -> float:
        """Let money in for the time that has passed; how much."""
        before, self._filled_ms = self._filled_ms or now_ms, max(now_ms, self._filled_ms)
        per_s = self.usd_per_day / (DAY_S + BURST_S) / n_replicas
        came = per_s * max(0, now_ms - before) / 1000.0
        self.usd = min(self.usd + came, per_s * BURST_S)
        return came

    def take(self, usd: float) -> bool:
        """Take so much out, if it is there."""
        if usd > self.usd:
            return False
        self.usd -= usd
        return True
