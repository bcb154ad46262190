"""The price of a budget, from what recent requests would have chosen at every price.

    menus of the last requests ──at price m, each takes its best──▶ mean use(m), falling in m
    what may be used per request ──────────────────────────────────▶ the m where both are equal

A request's menu is its models' utilities u and their uses c of the budget. At price m it takes the
model of the highest u − m·g·c, where g is what a unit is worth to its caller. Solving for m on the
last menus, instead of following the error step by step, needs no step size, and a sudden load or a
new price of a model is answered within a few requests. Outcomes have no part in it.

Use falls in steps, so usually no m gives the target exactly. Then some requests get the price just
below a step and some the one just above, in the proportion that does (the linear programme's
optimum mixes in the same way).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RECENT = 256  # menus kept
EVERY = 32  # requests between solutions
M_MIN, M_MAX = 1e-4, 1e6  # of a price, in multiples of what a unit is worth
BISECTIONS = 18  # then the bracket is narrower than a ten-thousandth of the price
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
# What is drawn uses more than the best choices would, as policies explore: by this factor at most.
EXCESS_MAX = 4.0


class Pacer:
    """One budget's price on one replica. Used from one thread."""

    def __init__(self, n_models: int) -> None:
        self._utility = np.zeros((RECENT, n_models))
        self._charge = np.zeros((RECENT, n_models))  # points at a price of one
        self._use = np.zeros((RECENT, n_models))
        self._at_ms = np.zeros(RECENT, np.int64)
        self._n_seen, self._solved_at = 0, -EVERY
        self._low = self._high = 0.0  # the prices above and below the target's use
        self._share_low = 1.0  # of requests, those that get the lower price
        self._best = self._drawn = 0.0  # faded sums of use

    @property
    def price(self) -> float:
        """The mean price now."""
        return self._share_low * self._low + (1.0 - self._share_low) * self._high

    def note(self, utility: Floats, charge: Floats, use: Floats, now_ms: int) -> None:
        """Remember menus (n, k); a utility of −∞ is not to be had."""
        rows = slice(-RECENT, None)
        n = len(utility[rows])
        at = (self._n_seen + np.arange(n)) % RECENT
        self._utility[at], self._charge[at], self._use[at] = utility[rows], charge[rows], use[rows]
        self._at_ms[at] = now_ms
        self._n_seen += n

    def solve(self, use_per_s: float, now_ms: int, *, at_once: bool = False) -> None:
        """Set the price anew if it is time, so that so much is used per second."""
        if not at_once and self._n_seen - self._solved_at < EVERY:
            return
        self._solved_at = self._n_seen
        n = min(self._n_seen, RECENT)
        menus = self._utility[:n], self._charge[:n], self._use[:n]
        target = use_per_s * self._s_per_request(n, now_ms) / self._excess()
        self._low, self._high, self._share_low = _bracket(menus, target)

    def prices(self, n: int) -> Floats:
        """The prices of the next n requests, mixed evenly."""
        turn = (GOLDEN * (self._n_seen - n + np.arange(n))) % 1.0
        return np.where(turn < self._share_low, self._low, self._high)

    def used(self, n: int, *, best: float, drawn: float) -> None:
        """What n requests' best choices would use, and what those that were drawn do."""
        kept = (1.0 - 1.0 / RECENT) ** n
        self._best, self._drawn = kept * self._best + best, kept * self._drawn + drawn

    def _excess(self) -> float:
        if self._best <= 0.0:
            return 1.0
        return min(max(self._drawn / self._best, 1.0 / EXCESS_MAX), EXCESS_MAX)

    def _s_per_request(self, n: int, now_ms: int) -> float:
        """Mean seconds between requests, of those remembered."""
        oldest_ms = self._at_ms[self._n_seen % RECENT if self._n_seen >= RECENT else 0]
        return max(1.0, float(now_ms - oldest_ms)) / 1000.0 / n


Menus = tuple[Floats, Floats, Floats]


def _mean_use(menus: Menus, price: float) -> float:
    utility, charge, use = menus
    best = (utility - price * charge).argmax(axis=1)
    return float(use[np.arange(len(best)), best].mean())


def _bracket(menus: Menus, target: float) -> tuple[float, float, float]:
    """Prices just below and just above where `target` is used, and the share of the former."""
    if _mean_use(menus, 0.0) <= target:
        return 0.0, 0.0, 1.0
    low, high = 0.0, M_MAX
    least = _mean_use(menus, M_MAX)
    if least >= target:
        return M_MAX, M_MAX, 0.0
    log_low, log_high = math.log(M_MIN), math.log(M_MAX)
    for _ in range(BISECTIONS):
        middle = 0.5 * (log_low + log_high)
        if _mean_use(menus, math.exp(middle)) > target:
            log_low, low = middle, math.exp(middle)
        else:
            log_high, high = middle, math.exp(middle)
    more, less = _mean_use(menus, low), _mean_use(menus, high)
    share = (target - less) / (more - less) if more > less else 0.0
    return low, high, min(max(share, 0.0), 1.0)
