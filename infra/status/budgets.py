"""Budgets for status: what their present period has left, and when it is renewed.

    settings' budgets ┐
    snapshot's accounts ┴─▶ BudgetView ─▶ `fairlead status`, metrics

What is spent is what decisions reserved, less what their bills released: the cautious figure that
slices are granted by.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from streams.telemetry.received import Received
from streams.telemetry.records import RouterState
from streams.training.budgets import NO_ACCOUNT, UNITS, Accounts, Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetView:
    """One budget now, in its unit."""

    scope: str
    value: str
    unit: str
    per: str
    hard: bool
    then: str
    amount: float
    spent: float
    left: float
    refused: int  # requests, in this period
    used_up: bool  # a replica lacked something for a request, or nothing is left
    renewed_at_unix_ms: int

    def json(self) -> dict[str, object]:
        """As plain JSON."""
        return asdict(self)


def budget_views(
    budgets: Sequence[Budget],
    accounts: Accounts,
    routers: Iterable[Received[RouterState]],
    now_ms: int,
) -> dict[str, BudgetView]:
    """By name."""
    told = [one for router in routers for one in router.record.budgets]
    found = {}
    for budget in budgets:
        window, unit = budget.window(now_ms), UNITS[budget.unit]
        account = accounts.get(window, NO_ACCOUNT)
        mine = [one for one in told if one.window == window]
        spent = account.spent / unit
        found[budget.name] = BudgetView(
            scope=budget.scope,
            value=budget.value,
            unit=budget.unit,
            per=budget.per,
            hard=budget.hard,
            then=budget.then,
            amount=budget.amount,
            spent=spent,
            left=budget.amount - spent,
            refused=sum(one.refused for one in mine),
            used_up=spent >= budget.amount or any(one.wanted for one in mine),
            renewed_at_unix_ms=budget.start_ms(now_ms) + budget.period_ms,
        )
    return found
