"""Slices of budgets: granted with snapshots, never more than there is, whatever is late or gone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.dispatch.retickets import REASONS
from streams.telemetry.received import SILENT_MS, Received
from streams.telemetry.records import BudgetWindow, RouterState
from streams.training.budgets import (
    FURTHER_ATTEMPTS,
    HOUR_MS,
    RELEASED,
    Account,
    Accounts,
    Budget,
    accounts,
    forget,
)
from streams.training.prices import Prices

NOON_MS = 490_000 * HOUR_MS
BUDGET = Budget(name="all", amount=1000, unit="requests")
WINDOW = BUDGET.window(NOON_MS)


def router(
    spent: int = 0, wanted: int = 0, received_ms: int = NOON_MS, lacked: int = 0
) -> Received[RouterState]:
    """What one replica reported last."""
    told = BudgetWindow(window=WINDOW, spent=spent, wanted=wanted, lacked=lacked)
    state = RouterState(
        source="0" * 16, sequence=1, from_unix_ms=NOON_MS - 1, to_unix_ms=NOON_MS, budgets=[told]
    )
    return Received(received_ms, state)


def now(before: Accounts, routers: dict, released: int = 0, at_ms: int = NOON_MS) -> Account:
    """The present period's account."""
    return accounts(before, routers, {RELEASED + WINDOW: released}, at_ms, [BUDGET])[WINDOW]


steps = st.lists(
    st.tuples(
        st.integers(0, 3),  # which replica
        st.floats(0.0, 1.0),  # of its slice, what it spends before it reports
        st.integers(0, 50),  # what it lacked
        st.integers(-50, 50),  # what bills release
        st.booleans(),  # whether it reports at all
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=100)
def test_slices_never_exceed_the_amount_and_what_was_released(played):
    """Whoever reports what and when: the sum of slices is within what there is when one is granted."""
    found, routers, spent, released = {}, {}, [0] * 4, 0
    for source, share, wanted, change, reports in played:
        before = found[WINDOW].granted if found else {}
        slice_ = before.get(str(source), 0)
        spent[source] += int(share * (slice_ - spent[source]))
        if reports:
            routers[str(source)] = router(spent[source], wanted)
        released += change
        counts = {RELEASED + WINDOW: released}
        found = accounts(found, routers, counts, NOON_MS, [BUDGET])
        after = found[WINDOW].granted
        assert all(after[name] >= n for name, n in before.items()), "slices are never taken back"
        assert sum(after.values()) <= max(BUDGET.whole + released, sum(before.values()))
        assert sum(spent) <= sum(after.values())


def test_a_replica_gets_what_it_lacks_and_a_silent_one_nothing():
    """A new replica has an eighth of its share; one that spent it has more of what is left."""
    alone = now({}, {"a": router()})
    assert alone.granted == {"a": 125}
    after = now({WINDOW: alone}, {"a": router(spent=125)})
    assert after.granted == {"a": 125 + 875 // 8 + 1}, "an eighth, rounded up"
    late_ms = NOON_MS + SILENT_MS + 1
    two = now(
        {WINDOW: after}, {"a": router(spent=125), "b": router(received_ms=late_ms)}, 0, late_ms
    )
    assert two.granted["a"] == after.granted["a"]
    assert two.granted["b"] > 0


def test_of_a_small_budget_each_replica_has_a_request_to_begin_with():
    """Nobody is refused while all of it is left."""
    small = Budget(name="all", amount=5, unit="requests")
    routers = {source: router() for source in "abc"}
    found = accounts({}, routers, {}, NOON_MS, [small])[WINDOW]
    assert found.granted == {"a": 1, "b": 1, "c": 1}


def test_a_replica_that_refused_much_gets_up_to_half_of_its_share():
    """What all that it refused needed, in place of an eighth."""
    for lacked, granted in ((100, 125), (300, 300), (10_000, 500)):
        assert now({}, {"a": router(wanted=1, lacked=lacked)}).granted == {"a": granted}


def test_a_request_larger_than_a_slice_is_served_while_there_is_enough():
    """A slice grows to what a replica says it lacked, not beyond what is free."""
    assert now({}, {"a": router(wanted=600)}).granted == {"a": 600}
    assert now({}, {"a": router(wanted=6000)}).granted == {"a": 1000}


def test_of_a_replica_that_is_gone_all_it_might_have_spent_counts():
    """What it held is not given to others."""
    before = {WINDOW: Account("all", 0, 1000, 0, {"gone": 400})}
    after = now(before, {"a": router(wanted=1000)})
    assert after.granted == {"gone": 400, "a": 600}
    assert after.spent == 400


def test_the_next_period_begins_with_slices():
    """So nobody is refused at the turn of the hour for want of a snapshot."""
    found = accounts({}, {"a": router()}, {}, NOON_MS, [BUDGET])
    following = found[BUDGET.window(NOON_MS + HOUR_MS)]
    assert following.granted == {"a": 125}
    later = accounts(found, {"a": router()}, {}, NOON_MS + HOUR_MS, [BUDGET])
    assert later[WINDOW] == found[WINDOW], "for a clock that is set back"
    assert WINDOW not in accounts(later, {"a": router()}, {}, NOON_MS + 2 * HOUR_MS, [BUDGET])


def test_one_time_that_is_wrong_by_a_day_makes_nothing_forgotten():
    """The log's clock jumps ahead and is right again: what was granted is known as before."""
    before = {WINDOW: Account("all", NOON_MS, 1000, 0, {"gone": 400}, {"ended": 100})}
    ahead_ms = NOON_MS + 99 * HOUR_MS
    ahead = accounts(before, {}, {}, ahead_ms, [BUDGET], trusted_ms=NOON_MS)
    after = accounts(ahead, {"a": router(wanted=1000)}, {}, NOON_MS + 1, [BUDGET], NOON_MS + 1)
    assert after[WINDOW].granted == {"gone": 400, "a": 500}
    assert set(after) == {WINDOW, BUDGET.window(NOON_MS + HOUR_MS)}


def test_a_budget_that_is_not_hard_has_an_account_without_slices():
    """It is paced, and shown."""
    soft = Budget(name="soft", amount=10, unit="requests", hard=False)
    counts = {RELEASED + soft.window(NOON_MS): 3}
    found = accounts({}, {}, counts, NOON_MS, [soft])[soft.window(NOON_MS)]
    assert (found.granted, found.left) == ({}, 13)


def test_accounts_survive_a_snapshot():
    """And a snapshot that was made before there were any has none."""
    prices = Prices(accounts={WINDOW: now({}, {"a": router()})})
    assert Prices.from_dict(prices.as_dict()) == prices
    old = prices.as_dict()
    del old["accounts"]
    assert Prices.from_dict(old).accounts == {}


def test_counters_of_periods_long_over_are_dropped():
    """Others stay."""
    counts = {RELEASED + WINDOW: 1, RELEASED + "all@0": 2, "learned": 3}
    forget(counts, NOON_MS)
    assert counts == {RELEASED + WINDOW: 1, "learned": 3}


def test_further_attempts_are_named_as_dispatchers_name_them():
    """What a dispatcher tries beside a decision was not reserved for."""
    assert set(FURTHER_ATTEMPTS) == set(REASONS)


@pytest.mark.parametrize(("per", "hours"), [("hour", 1), ("day", 24)])
def test_periods_begin_with_the_hour_and_the_day_in_utc(per, hours):
    """Whenever it is asked."""
    budget = Budget(name="b", amount=1, per=per)
    start_ms = budget.start_ms(NOON_MS + 1234)
    assert start_ms % (hours * HOUR_MS) == 0
    assert 0 <= NOON_MS + 1234 - start_ms < budget.period_ms
