"""Budgets, and how much of each every router replica may spend: slices, granted with snapshots.

    replica ──spent so far──▶ telemetry ─▶ trainer ──slices──▶ snapshot ─▶ replica spends within
    feedback ──bills──▶ what was reserved beyond them is released ─┘

A decision *reserves* more than its predicted cost; when its bill comes the difference is released
(reserve, then settle). Per period the amounts are whole numbers, and

    Σ slices  ≤  amount + released            so        Σ bills  ≤  amount

as long as the calls that are not billed yet cost no more than was reserved for them. Nothing
in this depends on how late bills or snapshots are: a slice not known yet is not spent.

Nobody's slice is ever made smaller while it may be spent, so a snapshot that a replica has read
late grants it too little, never too much. What a replica has left comes back when it is *ended*:
when it has said itself, or the kernel has, that it decides no more, and what it spent is known
(`serve.budgets.ledger`). That is said until it is in the accounts, and holds for the rest of the
period, so it may be said twice, late or never. Silence ends nobody: who is cut off from the log
decides all the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.option import option, required
from streams.feedback.feedback import Ingested
from streams.feedback.report import ARMS, COST_BIT, IMPORT, NANO_USD, PAID_BIT, PROBE
from streams.feedback.ticket import CANDIDATE, HEAD, heads_of, key_of, said_of, tenant_of
from streams.telemetry.received import SILENT_MS, Received
from streams.telemetry.records import RouterState

HOUR_MS = 3_600_000
PERIOD_MS = {"hour": HOUR_MS, "day": 24 * HOUR_MS}
UNITS = {"usd": NANO_USD, "tokens": 1.0, "requests": 1.0}  # whole numbers in one of the unit
# A call reserves so much of what it is predicted to cost: what is under way may cost half more.
RESERVED = 1.5
# A replica holds at most this part of its share of what is left: what a dead machine takes along.
SLICES = 8
LACKED_SLICES = 2  # and so much, where it had to refuse as much
RELEASED = "budget_released."  # a counter of the state, followed by a budget's window


@dataclass(frozen=True, slots=True)
class Account:
    """One budget's period so far, in whole numbers of its unit (billionths of a dollar)."""

    budget: str = ""
    start_ms: int = 0
    amount: int = 0
    spent: int = 0  # reserved by decisions, less what bills released
    # By replica, all that it was ever granted in this period.
    granted: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # by those that decide no more, what for

    @property
    def left(self) -> int:
        """What is not spent yet; less than nothing where a budget that is not hard is exceeded."""
        return self.amount - self.spent


Accounts = dict[str, Account]  # by window
Spent = tuple[int, int, int]  # by one replica; the most that a request lacked, and all of them
NO_ACCOUNT = Account()


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What may be spent per hour or day (UTC), by all requests or some."""

    name: str = required("Its name, unique.", min_length=1, max_length=100)
    scope: str = option(
        "all",
        "Whose requests count: all, one tenant's, those one model answers, or those with a tag.",
        choices=("all", "tenant", "model", "tag"),
    )
    value: str = option("", "The tenant, the model, or the tag.", max_length=200)
    unit: str = option("usd", "What is counted.", choices=tuple(UNITS))
    per: str = option("hour", "The period, in UTC.", choices=tuple(PERIOD_MS))
    amount: float = required("What may be spent in a period, in its unit.", gt=0, le=1e12)
    hard: bool = option(
        True, "Never exceeded. False: a price holds spending to it on average, nothing is refused."
    )
    then: str = option(
        "cheaper",
        "When a choice does not fit what is left: a cheaper model that does; only models without "
        "a price; or the request is refused. ration: like cheaper, and requests that are worth "
        "less than what they would use are refused before. Where nothing is left, a request is "
        "refused in any case.",
        choices=("cheaper", "free", "refuse", "ration"),
    )

    @property
    def whole(self) -> int:
        """The amount in whole numbers."""
        return math.floor(self.amount * UNITS[self.unit])

    @property
    def period_ms(self) -> int:
        """The length of its period."""
        return PERIOD_MS[self.per]

    def start_ms(self, at_ms: int) -> int:
        """When the period began that a time is in."""
        return at_ms - at_ms % self.period_ms

    def window(self, at_ms: int) -> str:
        """The name of a period's account."""
        return f"{self.name}@{self.start_ms(at_ms)}"

    def __str__(self) -> str:
        of = f" of {self.scope} {self.value}" if self.value else ""
        return f"{self.name} ({self.amount:g} {self.unit} per {self.per}{of})"


def reserved_nano(
    cost_usd: NDArray[np.floating], list_usd: NDArray[np.floating]
) -> NDArray[np.float64]:
    """What calls reserve, billionths of a dollar, from predicted and stated cost.

    From 32-bit numbers, as tickets have them: what is released is exactly what was reserved.
    """
    usd = np.maximum(np.asarray(cost_usd, np.float32), np.asarray(list_usd, np.float32))
    found: NDArray[np.float64] = np.ceil(
        RESERVED * NANO_USD * np.maximum(usd, 0.0).astype(np.float64)
    )
    return found


# --- settling


def settled(
    ingested: Ingested, fresh: NDArray[Any], home: NDArray[np.bool_], budgets: Sequence[Budget]
) -> Iterator[tuple[str, int]]:
    """By window, what newly known bills release; less than nothing where they are above it.

    `fresh` are the bits that each outcome at home reports for the first time.
    """
    counted = [budget for budget in budgets if budget.unit == "usd"]
    rows = np.flatnonzero(fresh & (COST_BIT | PAID_BIT))
    if not counted or not len(rows):
        return
    at_home = np.flatnonzero(home)[rows]
    bodies = [ingested.bodies[row] for row in at_home.tolist()]
    heads = heads_of(bodies)
    released = _released(bodies, heads, ingested.spent_nano_usd[at_home], fresh[rows])
    for budget in counted:
        for row in np.flatnonzero(_counts_for(budget, bodies, heads)).tolist():
            yield budget.window(int(heads["decided_at_ms"][row])), int(released[row])


def _released(
    bodies: Sequence[bytes], heads: NDArray[np.void], spent: NDArray[np.int64], fresh: NDArray[Any]
) -> NDArray[np.int64]:
    """What was reserved (n,) less what was billed; nothing is, for what others than routers chose.

    A dispatcher's fallback has a ticket of its own, the choice it stands in for stays reserved.
    """
    first = (fresh & COST_BIT) > 0
    reserved = reserved_nano(_predicted_usd(bodies, heads), heads["expected_cost_usd"])
    own = first & np.isin(heads["policy"], _NOT_RESERVED, invert=True)
    billed = np.where(first, spent[:, 0] + spent[:, 2], 0)
    wasted = np.where(fresh & PAID_BIT, spent[:, 1] + spent[:, 3], 0)
    return np.where(own, reserved, 0.0).astype(np.int64) - billed - wasted


# The policies of tickets whose calls no router reserved for; a test compares `serve.dispatch`.
FURTHER_ATTEMPTS = (
    "first", "retry", "hedge", "reroute", "cascade", "escalation", "fan-out", "fuse", "last-resort",
)  # fmt: skip
_NOT_RESERVED = np.array(
    [key_of(name) for name in (PROBE, IMPORT, ARMS, *FURTHER_ATTEMPTS)], np.uint64
)


def _predicted_usd(bodies: Sequence[bytes], heads: NDArray[np.void]) -> NDArray[np.float32]:
    """What the chosen candidates were predicted to cost (n,)."""
    found = np.zeros(len(bodies), np.float32)
    for row, body in enumerate(bodies):
        of = np.frombuffer(body, CANDIDATE, int(heads["n_candidates"][row]), HEAD.itemsize)
        chosen = np.flatnonzero(of["model"] == heads["model"][row])
        found[row] = of["cost_usd"][chosen[0]] if len(chosen) else 0.0
    return found


def _counts_for(
    budget: Budget, bodies: Sequence[bytes], heads: NDArray[np.void]
) -> NDArray[np.bool_]:
    """Which decisions (n,) a budget counts."""
    if budget.scope == "tenant":
        return np.array([tenant_of(body) == budget.value.encode() for body in bodies], bool)
    if budget.scope == "model":
        return np.asarray(heads["model"] == key_of(budget.value))
    if budget.scope == "tag":
        return np.array([budget.value in said_of(body).tags for body in bodies], bool)
    return np.ones(len(bodies), bool)


# --- granting


def accounts(
    before: Accounts,
    routers: Mapping[str, Received[RouterState]],
    counts: Mapping[str, int],
    at_ms: int,
    budgets: Iterable[Budget],
    trusted_ms: int | None = None,
) -> Accounts:
    """The accounts now: of the present period and the next, so that it begins with slices.

    Others stay as they are until their period is over and one more, by the log's clock where that
    is trusted: one time that is wrong by a day must not make what was spent today forgotten.
    """
    past_ms = at_ms if trusted_ms is None else trusted_ms
    here = sorted(s for s, one in routers.items() if at_ms - one.received_ms <= SILENT_MS)
    found: Accounts = {}
    for budget in budgets:
        found |= {
            window: one
            for window, one in before.items()
            if one.budget == budget.name
            and -2 * budget.period_ms < one.start_ms - past_ms <= budget.period_ms
        }
        for when_ms in (at_ms, at_ms + budget.period_ms):
            window = budget.window(when_ms)
            known = before.get(window, NO_ACCOUNT)
            ended = _ended(known.ended, routers, window)
            granted = {s: n for s, n in known.granted.items() if s not in ended}
            spent = _spent(granted, routers, window, ended)
            released = counts.get(RELEASED + window, 0)
            gone = sum(ended.values())
            able = [source for source in here if source not in ended]
            amount = budget.whole + released - gone
            slices = _slices(granted, spent, able, amount) if budget.hard else {}
            total = gone + sum(already for already, *_ in spent.values()) - released
            found[window] = Account(
                budget.name, budget.start_ms(when_ms), budget.whole, total, slices, ended
            )
    return found


def _ended(
    known: Mapping[str, int], routers: Mapping[str, Received[RouterState]], window: str
) -> dict[str, int]:
    """By replica that spends no more, what it spent in a window. What is known stays."""
    found = dict(known)
    for router in routers.values():
        for one in router.record.ended:
            if window in one.spent:
                found.setdefault(one.source, one.spent[window])
    return found


def _spent(
    known: Mapping[str, int],
    routers: Mapping[str, Received[RouterState]],
    window: str,
    ended: Collection[str],
) -> dict[str, Spent]:
    """By replica, what it has spent in a window, and what it lacked for a request, and for all.

    Of one that reports no more nobody knows what it spent: all it might.
    """
    found = {source: (n, 0, 0) for source, n in known.items() if source not in routers}
    for source, router in routers.items():
        for one in router.record.budgets:
            if one.window == window and source not in ended:
                found[source] = (one.spent, one.wanted, one.lacked)
    return found


def _slices(
    before: Mapping[str, int],
    spent: Mapping[str, Spent],
    here: Sequence[str],
    amount: int,
) -> dict[str, int]:
    """One window's slices, by replica, after those that report were given what they lack."""
    found = dict(before)
    for source, (already, *_) in spent.items():  # an older snapshot may have been restored
        found[source] = max(found.get(source, 0), already)
    free, left = amount - sum(found.values()), amount - sum(n for n, *_ in spent.values())
    for source in here:
        already, wanted, lacked = spent.get(source, (0, 0, 0))
        share = left // len(here)
        due = max(-(-share // SLICES), min(lacked, share // LACKED_SLICES), wanted)
        due -= found.get(source, 0) - already
        given = max(0, min(due, free))
        found[source] = found.get(source, 0) + given
        free -= given
    return found


def forget(counts: dict[str, int], at_ms: int) -> None:
    """Drop counters of periods that are long over."""
    horizon_ms = at_ms - 3 * PERIOD_MS["day"]
    for name in [n for n in counts if n.startswith(RELEASED)]:
        if int(name.rpartition("@")[2]) < horizon_ms:
            del counts[name]
