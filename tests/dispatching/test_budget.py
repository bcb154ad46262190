"""Retries and hedges stay within their budgets, whatever is asked of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from serve.dispatch.budget import HedgeBudget, HedgeOptions, RetryBudget, RetryOptions

steps = st.lists(st.sampled_from(["begin", "begin", "end", "retry", "retry", "end retry"]))


def test_retry_defaults_are_those_of_envoy_and_the_sre_book():
    """
    RetryBudget: "Defaults to 20%", "Defaults to 3"; SRE: "up to three attempts".
    """
    options = RetryOptions()
    assert (options.share_max, options.concurrent_min) == (0.20, 3)
    assert options.attempts_max == 3


def test_hedge_defaults_are_five_in_a_hundred():
    assert (HedgeOptions().share_max, HedgeOptions().burst_max) == (0.05, 5.0)


@given(steps)
@lightly
def test_retries_begin_only_within_a_fifth_of_the_requests_or_three(script):
    """
    The limit is that of the moment; a retry that runs on as requests end is not called back.
    """
    budget, requests, retries = RetryBudget(), 0, 0
    for step in script:
        if step == "begin":
            budget.request_began()
            requests += 1
        elif step == "end" and requests:
            budget.request_ended()
            requests -= 1
        elif step == "end retry" and retries:
            budget.retry_ended()
            retries -= 1
        elif step == "retry":
            room = retries < max(3, requests // 5)
            assert budget.try_retry(attempts_made=1) is room
            retries += room
        assert (budget.requests_in_flight, budget.retries_in_flight) == (requests, retries)


def test_a_fifth_is_exact_for_every_number_of_requests():
    """
    0.2 is not a fifth in binary: no multiple of five may lose a retry to that.
    """
    budget = RetryBudget()
    for n in range(1, 2049):
        budget.request_began()
        assert budget.retries_max == max(3, n // 5)


def test_three_attempts_are_the_last_even_with_budget_to_spare():
    budget = RetryBudget()
    assert [budget.try_retry(made) for made in (1, 2, 3)] == [True, True, False]
    assert (budget.retries_in_flight, budget.refusals) == (2, 0), "not the budget refused"


def test_a_refused_retry_is_counted_and_takes_no_place():
    budget = RetryBudget()
    assert [budget.try_retry(1) for _ in range(5)] == [True] * 3 + [False] * 2
    assert (budget.retries_in_flight, budget.refusals) == (3, 2)


@given(st.lists(st.booleans(), max_size=400))
@lightly
def test_hedges_are_never_more_than_their_share_of_any_stretch_of_requests(asks):
    """
    From the start: 5 in 100, to the hedge. In any stretch: that and the burst.
    """
    budget, hedges = HedgeBudget(), 0
    history = [(0, 0)]
    for requests, ask in enumerate(asks, start=1):
        budget.request_began()
        while ask and budget.try_hedge():
            hedges += 1
        history.append((requests, hedges))
        assert hedges * 20 <= requests
        assert all(hedges - h <= 5 + (requests - r) / 20 + 1e-9 for r, h in history)
    assert budget.hedges == hedges


@pytest.mark.parametrize("every", [5, 10, 20, 100])
def test_the_share_is_reached_exactly_over_many_requests(every):
    """
    Ten times 0.1 is less than one in binary; a hedge must not come late for that.
    """
    budget = HedgeBudget(HedgeOptions(share_max=1 / every))
    hedged = 0
    for n in range(1, 20_001):
        budget.request_began()
        hedged += budget.try_hedge()
        assert hedged == n // every


def test_tokens_saved_up_are_a_burst_and_no_more():
    budget = HedgeBudget()
    for _ in range(10_000):
        budget.request_began()
    assert sum(budget.try_hedge() for _ in range(10)) == 5
    assert budget.refusals == 5
