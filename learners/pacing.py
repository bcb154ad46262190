"""The prices of budgets, from what recent requests would have chosen at every price.

    menus of the last requests ──at price m, each takes its best──▶ mean use(m), falling in m
    what may be used per request ──────────────────────────────────▶ the m where both are equal

A request's menu is its models' utilities u and their uses c of the budget. At price m it takes the
model of the highest u − m·g·c, where g is what a unit is worth to its caller. Solving for m on the
last menus, instead of following the error step by step, needs no step size, and a sudden load or a
new price of a model is answered within a few requests. Outcomes have no part in it.

Several budgets that count the same requests (one for each model, say) are priced together: each in
turn, at the others' present prices, until they hardly move (coordinate descent on the dual of the
linear programme). Priced one by one they would each take the other models to be free.

A menu may end in *none*: what refusing the request is worth. Where everything else is worth less at
the budgets' prices it takes that, and uses nothing.

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
# Before so much time nobody can say how many requests come per second, and so whom to refuse.
KNOWN_MS = 1000
M_MIN, M_MAX = 1e-4, 1e6  # of a price, in multiples of what a unit is worth
BISECTIONS = 18  # then the bracket is narrower than a ten-thousandth of the price
SWEEPS = 4  # through all budgets per solution; the next one goes on from there
STILL = 0.02  # a price that moved less, of itself, has settled
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
# What is drawn uses more than the best choices would, as policies explore: by this factor at most.
EXCESS_MAX = 4.0


class Pacer:
    """The prices on one replica of b budgets that count the same requests. Used from one thread."""

    def __init__(self, n_budgets: int, n_models: int) -> None:
        options = n_models + 1  # the last is none
        self._utility = np.zeros((RECENT, options))
        self._charge = np.zeros((n_budgets, RECENT, options))  # points at a price of one
        self._use = np.zeros((n_budgets, RECENT, options))
        self._at_ms = np.zeros(RECENT, np.int64)
        self._n_seen, self._solved_at = 0, -EVERY
        self._refuses = False  # whether any menu ended in none
        # By budget the prices above and below the target's use, and the share of requests that get
        # the lower one.
        self._low, self._high, self._share_low = np.zeros((3, n_budgets))
        self._best, self._drawn = np.zeros((2, n_budgets))  # faded sums of use

    @property
    def price(self) -> Floats:
        """The mean prices (b,) now."""
        return self._share_low * self._low + (1.0 - self._share_low) * self._high

    def note(self, utility: Floats, none: Floats, charge: Floats, use: Floats, now_ms: int) -> None:
        """Remember menus (n, k), and what each budget (b, n, k) charges and uses of them.

        A utility of −∞ is not to be had; `none` (n,) is what refusing is worth.
        """
        rows = slice(-RECENT, None)
        n = len(utility[rows])
        at = (self._n_seen + np.arange(n)) % RECENT
        self._utility[at, :-1], self._utility[at, -1] = utility[rows], none[rows]
        self._charge[:, at, :-1], self._use[:, at, :-1] = charge[:, rows], use[:, rows]
        self._at_ms[at] = now_ms
        self._refuses = self._refuses or bool(np.isfinite(none).any())
        self._n_seen += n

    def solve(self, use_per_s: Floats, now_ms: int) -> None:
        """Set the prices anew if it is time, so that so much (b,) is used per second."""
        n, elapsed_ms = min(self._n_seen, RECENT), self._elapsed_ms(now_ms)
        unknown = self._refuses and n < RECENT and elapsed_ms < KNOWN_MS
        if unknown or self._n_seen - self._solved_at < EVERY:
            return
        self._solved_at = self._n_seen
        target = use_per_s * (max(1, elapsed_ms) / 1000.0 / n) / self._excess()
        charge, use = self._charge[:, :n], self._use[:, :n]
        net = self._utility[:n] - np.einsum("b,bnk->nk", self.price, charge)
        for _ in range(SWEEPS if len(target) > 1 else 1):
            before = self.price
            for at in range(len(target)):
                net += self.price[at] * charge[at]
                found = _bracket((net, charge[at], use[at]), target[at])
                self._low[at], self._high[at], self._share_low[at] = found
                net -= self.price[at] * charge[at]
            if (np.abs(self.price - before) <= STILL * before).all():
                return

    def prices(self, n: int) -> Floats:
        """The prices (b, n) of the next n requests, mixed evenly."""
        turn = (GOLDEN * (self._n_seen - n + np.arange(n))) % 1.0
        low, high, share = self._low[:, None], self._high[:, None], self._share_low[:, None]
        return np.where(turn < share, low, high)

    def used(self, n: int, *, best: Floats, drawn: Floats) -> None:
        """What n requests' best choices would use (b,), and what those that were drawn do."""
        kept = (1.0 - 1.0 / RECENT) ** n
        self._best, self._drawn = kept * self._best + best, kept * self._drawn + drawn

    def _excess(self) -> Floats:
        known = self._best > 0.0
        ratio = np.where(known, self._drawn / np.where(known, self._best, 1.0), 1.0)
        return np.clip(ratio, 1.0 / EXCESS_MAX, EXCESS_MAX)

    def _elapsed_ms(self, now_ms: int) -> int:
        """Since the oldest request that is remembered."""
        return now_ms - int(self._at_ms[self._n_seen % RECENT if self._n_seen >= RECENT else 0])


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
