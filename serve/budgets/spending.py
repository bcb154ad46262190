"""What one replica spends of every budget: at a price that paces it, and within its slice.

    requests ─▶ Purse ─┬─ charge: price of each budget × what a call would use of it ─▶ utilities
                       └─ draw:   what does not fit the slice is barred ─▶ a cheaper or free model,
                                  or none: refused until the budget is renewed; also where it is
                                  worth less than what it uses, if the budget is to be rationed
    choices ──spend──▶ Spending ──windows──▶ telemetry ─▶ trainer ─▶ larger slices

The slice comes with the snapshot (`streams.training.budgets`); a hard budget of which this replica
knows no slice has nothing to spend. So what is granted holds whatever is late or away. A replica
that ends says what it spent of each period: what it had left is granted anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from learners.pacing import Pacer
from learners.targets import COST_USD_MIN
from serve.budgets.ledger import Ledger
from serve.errors import BudgetUsedUp
from streams.telemetry.records import PERIODS_MAX, BudgetWindow, EndedReplica
from streams.training.budgets import NO_ACCOUNT, UNITS, Accounts, Budget, reserved_nano

Floats = NDArray[np.float64]
# Why a budget that is not used up refuses.
NOT_HERE = "this replica gets its part bit by bit, more as it is asked for more"
KEPT = "what this replica has is kept for requests that give more for it"
NONE = -1  # no budget refuses it
# Spending goes evenly with the time left in a period, at this multiple of the average at most: what
# was left over by a quiet hour is not spent in a minute.
HASTE_MAX = 1.5
# Of a budget that is not hard, so much of the average is spent at least: one huge bill must not
# stop everything.
SOFT_MIN = 0.25
LACKED_MAX = 2**63 - 1
CHEAPER_MAX = 0.05  # of its stated price: no call is taken to be cheaper
# Periods of a budget that a replica remembers: its clock may be set back over the turn of one.
PERIODS = PERIODS_MAX - 1
TOKEN_USD = 1e-6  # a price of tokens is a multiple of this; any number would do
REQUEST_USD = 1e-3  # likewise


@dataclass(slots=True)
class _Open:
    """One budget's present period on this replica."""

    window: str
    spent: int = 0
    reported: int = 0  # of it, when telemetry was last told
    requests: int = 0
    refused: int = 0
    wanted: int = 0  # the most that one request needed which did not fit, since told
    lacked: int = 0  # what all of them needed


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """n requests and what k models would use, as the router found it."""

    tenants: Sequence[str]  # (n,)
    tags: Sequence[Collection[str]]  # (n,)
    models: Sequence[str]  # (k,)
    cost_usd: Floats  # (n, k) predicted
    list_usd: Floats  # (n, k) stated
    tokens: Floats  # (n, k) of prompt and answer
    money: Floats  # (n,) points per US dollar

    def counts(self, budget: Budget) -> Floats:
        """Whether each call counts for a budget (n, k): 1, or 0."""
        counts = np.ones(self.cost_usd.shape)
        if budget.scope == "tenant":
            counts[[tenant != budget.value for tenant in self.tenants]] = 0.0
        elif budget.scope == "model":
            counts[:, [model != budget.value for model in self.models]] = 0.0
        elif budget.scope == "tag":
            counts[[budget.value not in tags for tags in self.tags]] = 0.0
        if budget.then == "free":
            counts[self.free] = 0.0
        return counts

    def uses(self, budget: Budget) -> Floats:
        """What each is predicted to use of a budget (n, k), in its unit.

        A prediction may be far too low, even below nothing; the stated price bounds it.
        """
        usd = np.maximum(self.cost_usd, CHEAPER_MAX * self.list_usd)
        return {"usd": usd, "tokens": self.tokens}.get(budget.unit, np.ones_like(usd))

    def reserves(self, budget: Budget) -> Floats:
        """What each would reserve of it (n, k), in whole numbers."""
        if budget.unit == "usd":
            return reserved_nano(self.cost_usd, self.list_usd)
        return np.ceil(self.uses(budget))

    @property
    def free(self) -> NDArray[np.bool_]:
        """Models without a price (n, k)."""
        return np.asarray(self.list_usd < COST_USD_MIN) & (self.cost_usd < COST_USD_MIN)


class Spending:
    """All budgets on one replica. Used from one thread."""

    def __init__(
        self, budgets: Sequence[Budget], source: str, ledger: Ledger | None = None
    ) -> None:
        """`source` is what telemetry knows this replica by; what is in `ledger` outlives it."""
        self.budgets, self._source, self._ledger = tuple(budgets), source, ledger
        self._known: dict[int, _Open] = {}  # by place: budget and number of the period
        self._open = [_Open("") for _ in budgets]
        self._places = [0 for _ in budgets]
        self._ended = False
        self.groups = _groups(budgets)
        self._pacers: list[Pacer] = []
        self.models: tuple[str, ...] = ()

    def purse(
        self, accounts: Accounts, routers: Mapping[str, Iterable[BudgetWindow]], now_ms: int
    ) -> Purse:
        """For one batch: what may be spent now, by a snapshot's accounts and telemetry."""
        self._turn(now_ms)
        left = [self._left(at, accounts) for at in range(len(self.budgets))]
        pace = [self._per_s(at, accounts, routers, now_ms) for at in range(len(self.budgets))]
        return Purse(self, left, pace, now_ms)

    def hard_windows(self, now_ms: int) -> list[str]:
        """The periods of hard budgets in which there are slices: the present ones and the next."""
        hard = [budget for budget in self.budgets if budget.hard]
        return [b.window(at_ms) for b in hard for at_ms in (now_ms, now_ms + b.period_ms)]

    def end(self, now_ms: int) -> list[EndedReplica]:
        """Spend no more of hard budgets from now on; what was spent of every period."""
        if not any(budget.hard for budget in self.budgets):
            return []
        self._ended = True
        spent = dict.fromkeys(self.hard_windows(now_ms), 0)
        spent |= {one.window: one.spent for one in self._known.values()}
        if self._ledger is not None:
            self._ledger.close()
        return [EndedReplica(source=self._source, spent=spent)]

    def _turn(self, now_ms: int) -> None:
        """Go on in the periods of now, which may be earlier ones than before."""
        for at, budget in enumerate(self.budgets):
            window = budget.window(now_ms)
            if self._open[at].window != window:
                place = at * PERIODS + now_ms // budget.period_ms % PERIODS
                if place not in self._known or self._known[place].window != window:
                    self._known[place] = _Open(window)
                self._open[at], self._places[at] = self._known[place], place

    def windows(self) -> list[BudgetWindow]:
        """What telemetry is told."""
        found = [
            BudgetWindow(
                window=one.window,
                spent=one.spent,
                wanted=one.wanted,
                lacked=min(one.lacked, LACKED_MAX),
                requests=one.requests,
                refused=one.refused,
            )
            for one in self._open
            if one.window
        ]
        for one in self._open:
            one.wanted = one.lacked = 0
        return found

    def _left(self, at: int, accounts: Accounts) -> float:
        """What this replica may still spend; without limit where a budget is not hard."""
        if not self.budgets[at].hard:
            return np.inf
        if self._ended:
            return 0.0
        mine = self._open[at]
        granted = accounts.get(mine.window, NO_ACCOUNT).granted.get(self._source, 0)
        return float(granted - mine.spent)

    def _per_s(
        self,
        at: int,
        accounts: Accounts,
        routers: Mapping[str, Iterable[BudgetWindow]],
        now_ms: int,
    ) -> float:
        """What this replica may use of a budget per second, in its unit, to last evenly."""
        budget, mine = self.budgets[at], self._open[at]
        account = accounts.get(mine.window)
        reported = _reported(routers, mine.window)
        known = reported.get(self._source)
        share = (mine.requests + 1) / (
            mine.requests
            + len({*reported, self._source})
            + sum(one.requests for source, one in reported.items() if source != self._source)
        )
        left = float(account.left if account else budget.whole)
        left -= (mine.spent - (known.spent if known and account else 0)) / share
        left_s = (budget.start_ms(now_ms) + budget.period_ms - now_ms) / 1000.0
        average = budget.whole / (budget.period_ms / 1000.0)
        least = 0.0 if budget.hard else SOFT_MIN
        per_s = min(max(left / max(left_s, 1.0), least * average), HASTE_MAX * average)
        return share * per_s / UNITS[budget.unit]

    def pacers(self, models: tuple[str, ...]) -> list[Pacer]:
        """The pacers of groups of budgets; new ones for another catalogue."""
        if models != self.models:
            self.models = models
            self._pacers = [Pacer(len(group), len(models)) for group in self.groups]
        return self._pacers

    def spend(self, at: int, whole: int, n: int) -> None:
        """Note what n decisions reserve of a budget."""
        mine = self._open[at]
        mine.spent += whole
        mine.requests += n
        if whole and self._ledger is not None and self.budgets[at].hard:
            self._ledger.note(self._places[at], mine.window, mine.spent)

    def refuse(self, at: int, wanted: float = 0.0) -> None:
        """Note that a request was refused, and what it would have needed to fit."""
        self._open[at].refused += 1
        self._open[at].wanted = max(self._open[at].wanted, int(wanted))

    def want(self, at: int, wanted: float) -> None:
        """Note that a choice did not fit, and what it needed."""
        self._open[at].wanted = max(self._open[at].wanted, int(wanted))
        self._open[at].lacked += int(wanted)

    def used_up(self, at: int, accounts: Accounts, now_ms: int) -> BudgetUsedUp:
        """Why a budget has just refused a request: used up, or what is left is not here."""
        budget, mine = self.budgets[at], self._open[at]
        whole = accounts.get(mine.window, NO_ACCOUNT).left
        left = whole / UNITS[budget.unit] if whole >= max(1, mine.wanted) else 0.0
        why = NOT_HERE if mine.wanted else KEPT
        return BudgetUsedUp(
            str(budget), budget.start_ms(now_ms) + budget.period_ms, now_ms, left, why
        )


def _reported(
    routers: Mapping[str, Iterable[BudgetWindow]], window: str
) -> dict[str, BudgetWindow]:
    return {s: one for s, found in routers.items() for one in found if one.window == window}


def _groups(budgets: Sequence[Budget]) -> list[list[int]]:
    """The budgets that count the same requests, by their numbers: those are priced together."""
    found: dict[tuple[str, str], list[int]] = {}
    for at, budget in enumerate(budgets):
        of_some = budget.scope in ("tenant", "tag")
        found.setdefault((budget.scope, budget.value) if of_some else ("all", ""), []).append(at)
    return list(found.values())


class Purse:
    """One batch's view of the budgets: `charge`, then `draw`, then `spend`."""

    def __init__(
        self, of: Spending, left: Sequence[float], per_s: Sequence[float], now_ms: int
    ) -> None:
        self._of, self._left, self._per_s, self._now_ms = of, list(left), per_s, now_ms
        self._uses: list[Floats] = []
        self._reserves: list[Floats] = []
        self._free: NDArray[np.bool_] = np.zeros((0, 0), bool)
        self._rationed, self._none = np.zeros(0, np.intp), np.zeros(0)
        self._others: Floats = np.zeros((1, 1))  # charged by budgets that do not ration
        self.barred: NDArray[np.bool_] = np.zeros((1, 1), bool)  # (n, k) what did not fit

    def charge(self, asked: Asked, utility: Floats, eligible: NDArray[np.bool_]) -> Floats:
        """What the budgets' prices take from each utility (n, k)."""
        total, self._others = np.zeros_like(utility), np.zeros_like(utility)
        self._free = asked.free
        points = [self._points(budget, asked) for budget in self._of.budgets]
        self._note_rations(utility, eligible)
        pacers = self._of.pacers(tuple(asked.models))
        for group, pacer in zip(self._of.groups, pacers, strict=True):
            charges = np.stack([points[at] for at in group])
            uses = np.stack([self._uses[at] for at in group])
            rows = np.flatnonzero(uses.any(axis=(0, 2)))
            if len(rows):
                net = np.where(eligible[rows], (utility - total)[rows], -np.inf)
                none = self._none_of(group)[rows]
                pacer.note(net, none, charges[:, rows], uses[:, rows], self._now_ms)
                pacer.solve(np.array([self._per_s[at] for at in group]), self._now_ms)
                prices = pacer.prices(len(rows))
                taken = np.einsum("bn,bnk->nk", prices, charges[:, rows])
                total[rows] += taken
                if not self._rations(group):
                    self._others[rows] += taken
        return total

    def holds(self, asked: Asked) -> NDArray[np.bool_]:
        """Which calls (n, k) fit what is left of every budget that counts them."""
        found = np.ones(asked.cost_usd.shape, bool)
        for budget, left in zip(self._of.budgets, self._left, strict=True):
            found &= asked.counts(budget) * asked.reserves(budget) <= left
        return found

    def _points(self, budget: Budget, asked: Asked) -> Floats:
        """What a budget charges for each call at a price of one; what it uses is noted."""
        counts = asked.counts(budget)
        self._uses.append(counts * asked.uses(budget))
        self._reserves.append(counts * asked.reserves(budget))
        worth = {"usd": 1.0, "tokens": TOKEN_USD}.get(budget.unit, REQUEST_USD)
        return asked.money[:, None] * worth * self._uses[-1]

    def _note_rations(self, utility: Floats, eligible: NDArray[np.bool_]) -> None:
        """Which budget rations each request (n,), or NONE, and what refusing is worth.

        A refused request has no quality and no cost. One that is worth less than that to its own
        caller is refused at any price.
        """
        self._rationed = np.full(len(utility), NONE, np.intp)
        for at, budget in enumerate(self._of.budgets):
            if budget.hard and budget.then == "ration":
                mine = self._uses[at].any(axis=1) & (self._rationed == NONE)
                self._rationed[mine] = at
        best = np.where(eligible, utility, -np.inf).max(axis=1)
        self._none = np.where(self._rationed == NONE, -np.inf, np.minimum(0.0, best))

    def _none_of(self, group: Sequence[int]) -> Floats:
        """What refusing is worth (n,) to the requests that a group of budgets may ration."""
        return self._none if self._rations(group) else np.full_like(self._none, -np.inf)

    def _rations(self, group: Sequence[int]) -> bool:
        return any(self._of.budgets[at].then == "ration" for at in group)

    def draw(
        self,
        p: Floats,
        chosen: NDArray[np.intp],
        utility: Floats,
        eligible: NDArray[np.bool_],
        uniform: Floats,
    ) -> tuple[Floats, NDArray[np.intp], NDArray[np.intp]]:
        """Probabilities (n, k) and choices (n,) that fit, and which budget refuses a row, or NONE.

        A row depends on what the rows before it drew, never on its own draw.
        """
        refused = np.full(len(p), NONE, np.intp)
        tight = [at for at in range(len(self._left)) if not self._fits_all(at, eligible)]
        # What others charge is no reason to be refused here: it moves all of a request's models.
        worthy = eligible & (utility + self._others >= self._none[:, None])
        if not tight and (worthy == eligible).all():
            return p, chosen, refused
        p, chosen, self.barred = p.copy(), chosen.copy(), np.zeros_like(eligible)
        for row in range(len(p)):
            if not eligible[row].any():  # it is refused already
                continue
            allowed = worthy[row].copy()
            if not allowed.any():
                refused[row] = self._rationed[row]
                self._of.refuse(refused[row])
                self.barred[row] = eligible[row]
                continue
            best = int(np.where(allowed, utility[row], -np.inf).argmax())
            for at in tight:
                allowed, full = self._cut(at, row, best, allowed)
                if full:
                    refused[row] = at
                    break
            self.barred[row] = eligible[row] & (~allowed | (refused[row] != NONE))
            if refused[row] != NONE:
                continue
            p[row] = _within(p[row], allowed, utility[row])
            edges = np.cumsum(p[row])
            chosen[row] = min(int((edges <= uniform[row] * edges[-1]).sum()), p.shape[1] - 1)
            for at in tight:
                self._left[at] -= self._reserves[at][row, chosen[row]]
        return p, chosen, refused

    def spend(
        self, rows: NDArray[np.intp], chosen: NDArray[np.intp], best: NDArray[np.intp]
    ) -> None:
        """Take from the slices what decisions (their rows and models) reserve."""
        for at, (uses, reserves) in enumerate(zip(self._uses, self._reserves, strict=True)):
            n = int(uses[rows].any(axis=1).sum())
            self._of.spend(at, int(reserves[rows, chosen].sum()), n)
        for group, pacer in zip(self._of.groups, self._of.pacers(self._of.models), strict=True):
            uses = np.stack([self._uses[at][rows] for at in group])
            each = np.arange(len(rows))
            n = int(uses.any(axis=(0, 2)).sum())
            pacer.used(
                n, best=uses[:, each, best].sum(axis=1), drawn=uses[:, each, chosen].sum(axis=1)
            )

    def _fits_all(self, at: int, eligible: NDArray[np.bool_]) -> bool:
        """Whether all of a batch fits, whatever is drawn."""
        most = np.where(eligible, self._reserves[at], 0.0).max(axis=1).sum()
        return bool(most <= self._left[at])

    def _cut(
        self, at: int, row: int, best: int, allowed: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], bool]:
        """Which models still fit a budget, and whether it refuses the request."""
        needs, then = self._reserves[at][row], self._of.budgets[at].then
        fits = needs <= self._left[at]
        if not (allowed & ~fits).any():
            return allowed, False
        self._of.want(at, needs[best])
        if then == "refuse" and not fits[best]:
            fits = np.zeros_like(fits)
        elif then == "free" and not fits[best]:
            fits = self._free[row]
        left = allowed & fits
        if left.any():
            return left, False
        self._of.refuse(at, float(np.where(allowed, needs, np.inf).min()))
        return allowed, True


def _within(p: Floats, allowed: NDArray[np.bool_], utility: Floats) -> Floats:
    """Probabilities (k,) on what is allowed alone; where there are none, all on the best of it."""
    cut, all_ = np.where(allowed, p, 0.0), p.sum()
    total = cut.sum()
    if total > 0.0:
        return all_ / total * cut
    cut[np.where(allowed, utility, -np.inf).argmax()] = all_
    return cut
