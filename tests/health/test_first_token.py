"""Quantiles of recent waits against numpy's, and what is made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from serve.health.first_token import (
    GROWTH,
    N_BUCKETS,
    WAIT_S_MIN,
    FirstTokenOptions,
    FirstTokens,
    bucket,
    upper_edge_s,
)

OPTIONS = FirstTokenOptions()
WAIT_S_MAX = upper_edge_s(N_BUCKETS - 1)


def counted(waits_s, now_s: float = 0.0) -> FirstTokens:
    waits = FirstTokens(OPTIONS)
    for wait_s in waits_s:
        waits.add(wait_s, now_s=now_s)
    return waits


@given(
    st.lists(st.floats(WAIT_S_MIN, WAIT_S_MAX), min_size=20, max_size=200),
    st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]),
    st.floats(0.0, 1e6),
)
@lightly
def test_quantiles_are_within_a_bucket_of_numpys(waits_s, q, now_s):
    """
    Never below the true one, and at most a bucket's width above, at any time of day.
    """
    exact_s = np.quantile(waits_s, q, method="inverted_cdf")

    found_s = counted(waits_s, now_s).quantile_s(max(q, 1e-6), now_s=now_s)

    assert exact_s * (1 - 1e-6) <= found_s <= exact_s * GROWTH * (1 + 1e-6)


@given(st.floats(1e-9, 1e9))
@lightly
def test_a_wait_lies_within_its_bucket(wait_s):
    index = bucket(wait_s)
    assert 0 <= index < N_BUCKETS
    if WAIT_S_MIN < wait_s < WAIT_S_MAX:
        assert upper_edge_s(index - 1) * (1 - 1e-8) <= wait_s <= upper_edge_s(index) * (1 + 1e-8)


def test_the_buckets_reach_ten_minutes():
    assert WAIT_S_MAX > 600.0


def test_a_wait_counts_half_after_the_half_life():
    """
    Twenty waits of 1 s, then sixty seconds later thirty of 4 s: 10 to 30.
    """
    waits = counted([1.0] * 20)
    for _ in range(30):
        waits.add(4.0, now_s=OPTIONS.half_life_s)

    assert waits.samples(OPTIONS.half_life_s) == pytest.approx(40.0)
    assert waits.quantile_s(0.24, now_s=OPTIONS.half_life_s) == pytest.approx(1.0, rel=0.1)
    assert waits.quantile_s(0.26, now_s=OPTIONS.half_life_s) == pytest.approx(4.0, rel=0.1)


def test_weights_never_overflow_however_long_it_runs():
    """
    A year without a pause, and a year of silence: the weights are scaled back in time.
    """
    waits = FirstTokens(OPTIONS)
    for hour in range(24 * 365):
        for _ in range(3):
            waits.add(1.0, now_s=hour * 3600.0)
    later_s = 2 * 24 * 365 * 3600.0
    assert waits.quantile_s(0.5, now_s=later_s) is None
    for _ in range(20):
        waits.add(2.0, now_s=later_s)
    assert waits.quantile_s(0.01, now_s=later_s) == pytest.approx(2.0, rel=0.1)


def test_too_few_waits_are_no_estimate():
    """
    The defaults hold until there are enough, and again when they have faded.
    """
    few = counted([0.1] * 19)
    assert few.quantile_s(0.95, now_s=0.0) is None
    assert few.hedge_delay_s(0.0) == OPTIONS.hedge_delay_default_s
    assert few.timeout_s(0.0) == OPTIONS.timeout_default_s

    enough = counted([0.1] * 20)
    assert enough.hedge_delay_s(0.0) == pytest.approx(0.1, rel=0.1)
    assert enough.hedge_delay_s(60.0) == OPTIONS.hedge_delay_default_s


def test_the_hedging_delay_is_the_95th_percentile():
    assert counted(np.arange(1, 1001) / 100).hedge_delay_s(0.0) == pytest.approx(9.5, rel=0.1)


def test_the_timeout_is_a_multiple_of_the_99th_percentile():
    """
    Within the floor below and the deadline above.
    """
    waits = counted(np.arange(1, 1001) / 100)
    assert waits.timeout_s(0.0) == pytest.approx(29.7, rel=0.1)
    assert counted([0.01] * 100).timeout_s(0.0) == OPTIONS.timeout_s_min


def test_quantiles_are_read_again_after_a_second():
    waits = counted([0.1] * 100)
    before_s = waits.hedge_delay_s(0.0)
    for _ in range(100):
        waits.add(5.0, now_s=0.5)

    assert waits.hedge_delay_s(0.9) == before_s
    assert waits.hedge_delay_s(1.0) == pytest.approx(5.0, rel=0.1)


def test_the_first_timeout_does_not_disturb_the_hedging_delay():
    waits = counted([0.1] * 90 + [3.0] * 10)
    assert math.isclose(waits.timeout_s(0.0), 3 * waits.quantile_s(0.99, now_s=0.0))
    assert waits.hedge_delay_s(0.0) == waits.quantile_s(0.95, now_s=0.0)


def test_a_longer_prompt_may_take_as_many_times_as_long():
    """
    A prompt of 50,000 tokens among those of 500 is no stuck one; a shorter one has no less time.
    """
    waits = FirstTokens(OPTIONS)
    for _ in range(100):
        waits.add(1.0, now_s=0.0, prompt_tokens=500.0)

    usual_s = waits.timeout_s(0.0, prompt_tokens=500.0)
    assert waits.timeout_s(0.0, prompt_tokens=50_000.0) == pytest.approx(100 * usual_s, rel=0.01)
    assert waits.timeout_s(0.0, prompt_tokens=5.0) == waits.timeout_s(0.0) == usual_s
    assert waits.hedge_delay_s(0.0, prompt_tokens=1000.0) == pytest.approx(
        2 * waits.hedge_delay_s(0.0), rel=0.01
    )
