"""`then = "ration"`: what is left goes to the requests that give most for it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from serve.budgets.spending import NONE, Asked, Spending
from serve.routing.eligible import preferred_of
from streams.training.budgets import Account, Budget

N, NOW_MS = 320, 1_760_000_400_000 + 1_800_000  # half of the hour is over
DEAR = np.arange(N) % 2 == 1


def budget(**stated) -> Budget:
    return Budget(**{"name": "all", "amount": 1.0, "then": "ration"} | stated)


def asked(cost_usd: np.ndarray) -> Asked:
    """Requests that two models would answer at these costs (n, 2)."""
    n = len(cost_usd)
    return Asked(
        tenants=[""] * n,
        tags=[()] * n,
        models=("a", "b"),
        cost_usd=cost_usd,
        list_usd=np.full((n, 2), 0.01),
        tokens=np.ones((n, 2)),
        money=np.full(n, 20.0),
    )


def refused(of: Budget, utility: np.ndarray, granted_usd: float = 1.0) -> np.ndarray:
    """Which requests (n,) are refused, ten a second, at the prices that the last of them see."""
    cost = np.where(DEAR, 0.03, 0.01)[:, None] * np.ones((N, 2))
    spending, eligible = Spending([of], "me"), np.ones((32, 2), bool)
    window = of.window(NOW_MS)
    whole = int(granted_usd * 1e9)
    accounts = {window: Account("all", of.start_ms(NOW_MS), whole, 0, {"me": whole})}
    found = np.zeros(N, bool)
    for start in range(0, N, 32):
        rows = slice(start, start + 32)
        purse = spending.purse(accounts, {}, NOW_MS + start * 100)
        net = utility[rows] - purse.charge(asked(cost[rows]), utility[rows], eligible)
        p, chosen, by = purse.draw(
            np.tile([0.5, 0.5], (32, 1)), np.zeros(32, np.intp), net, eligible, np.full(32, 0.3)
        )
        found[rows] = by != NONE
        kept = np.flatnonzero(by == NONE)
        assert p[kept].sum(axis=1) == pytest.approx(1.0)
        purse.spend(kept, chosen[kept], net.argmax(axis=1)[kept])
    return found


def test_requests_that_use_more_for_the_same_are_refused_first():
    """There is enough for those at a cent, and for none at three."""
    found = refused(budget(amount=120.0), np.full((N, 2), 0.8), granted_usd=120.0)
    assert found[DEAR][64:].mean() > 0.9
    assert found[~DEAR].mean() < 0.2


def test_without_rationing_nobody_is_refused_while_there_is_money():
    """The naive way: first come, first served."""
    of = budget(amount=200.0, then="cheaper")
    assert not refused(of, np.full((N, 2), 0.8), granted_usd=200.0).any()


def test_a_budget_that_is_not_hard_refuses_nothing():
    """Whatever it says of what happens then."""
    assert not refused(budget(amount=0.01, hard=False), np.full((N, 2), 0.8)).any()


def test_where_there_is_enough_nothing_is_refused():
    """Prices are nought then."""
    assert not refused(budget(amount=1e6), np.full((N, 2), 0.8), granted_usd=1e6).any()


def small(of: Budget, granted_usd: float) -> tuple[Spending, dict[str, Account]]:
    """One replica with so much of a budget, of which ten times as much is left."""
    whole = round(granted_usd * 1e9)
    window = of.window(NOW_MS)
    account = Account(of.name, of.start_ms(NOW_MS), 10 * whole, 0, {"me": whole})
    return Spending([of], "me"), {window: account}


def test_a_preferred_model_that_no_budget_holds_gives_way_to_those_that_one_does():
    """A rule's `prefer` refuses nobody; without a purse it stays as it was."""
    cost = np.array([[0.01, 0.01], [0.01, 0.01]])
    of = budget(scope="model", value="a", then="cheaper")
    spending, accounts = small(of, 0.001)
    holds = spending.purse(accounts, {}, NOW_MS).holds(asked(cost))
    assert holds.tolist() == [[False, True]] * 2
    rows = SimpleNamespace(preferred=np.array([[True, False]] * 2))
    for known, left in ((None, [True, False]), (holds, [True, True])):
        eligible, verdict = np.ones((2, 2), bool), np.zeros((2, 2), np.uint8)
        assert preferred_of(rows, eligible, verdict, known).tolist() == [left] * 2


def test_who_is_refused_is_told_whether_to_come_back_in_seconds_or_when_it_is_renewed():
    """By what is left in all, and what was needed."""
    of = budget(then="refuse")
    spending, accounts = small(of, 0.001)
    for needed_usd, retry_after_s, said in (
        (0.005, 2.0, "of 0.01 that are left"),
        (1.0, 1800.0, "nothing left"),
    ):
        spending.purse(accounts, {}, NOW_MS)
        spending.refuse(0, needed_usd * 1e9)
        error = spending.used_up(0, accounts, NOW_MS)
        assert error.retry_after_s == retry_after_s
        assert said in str(error)
        assert "2025-10-09T10:00:00Z" in str(error)
        spending.windows()


def test_a_price_of_a_budget_that_does_not_ration_refuses_nobody():
    """A tenant's requests are few, and dear; a model's budget that rations has plenty for all."""
    of_model = budget(scope="model", value="a", amount=1e6)
    of_tenant = budget(name="few", scope="tenant", value="acme", unit="requests", then="cheaper")
    spending = Spending([of_model, of_tenant], "me")
    accounts = {
        of.window(NOW_MS): Account(of.name, of.start_ms(NOW_MS), whole, 0, {"me": whole})
        for of, whole in ((of_model, 10**15), (of_tenant, 10_000))
    }
    made, eligible = (
        replace(asked(np.full((32, 2), 0.01)), tenants=["acme"] * 32),
        np.ones((32, 2), bool),
    )
    utility, refusing = np.full((32, 2), 0.8), []
    for turn in range(8):
        purse = spending.purse(accounts, {}, NOW_MS + turn * 1000)
        net = utility - purse.charge(made, utility, eligible)
        *_, by = purse.draw(
            np.full((32, 2), 0.5), np.zeros(32, np.intp), net, eligible, np.full(32, 0.3)
        )
        refusing += by.tolist()
    assert (net < 0).all(), "or it shows nothing"
    assert set(refusing) == {NONE}
