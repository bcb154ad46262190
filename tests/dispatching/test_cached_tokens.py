"""What input costs that a server had in its cache."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from dispatch_bench import SIZES, bench
from hypothesis import given
from hypothesis import strategies as st
from made_up_endpoint import answers
from router_bench import catalogue
from strategies import lightly

from serve.dispatch.backend import Usage

SMALL, MEDIUM, LARGE = SIZES  # LARGE: 10 and 20 USD per million tokens


@pytest.mark.parametrize(
    ("price", "cached", "wanted"),
    [
        (math.nan, 80, 100 * 10 + 4 * 20),  # not stated: as other input
        (1.0, 80, 20 * 10 + 80 * 1 + 4 * 20),
        (0.0, 80, 20 * 10 + 4 * 20),
        (1.0, 0, 100 * 10 + 4 * 20),
        (1.0, 1000, 100 * 1 + 4 * 20),  # more than there were in all
        (1.0, -5, 100 * 10 + 4 * 20),
    ],
)
def test_a_call_is_charged_and_reported_with_the_price_of_cached_input(price, cached, wanted):
    models = catalogue([SMALL, MEDIUM, replace(LARGE, usd_per_1m_cached_input_tokens=price)])
    usage = Usage(prompt_tokens=100, output_tokens=4, cached_tokens=cached)
    with bench({"large": answers(4, usage=usage)}, models=models) as up:
        got = up.get()

        assert got.ended.cost_usd == pytest.approx(wanted / 1e6)
        ((_, values),) = up.reports
        assert values["cost_usd"] == got.ended.cost_usd


@lightly
@given(prompt=st.integers(0, 10**6), cached=st.integers(0, 10**6), price=st.floats(0, 10))
def test_no_call_costs_more_for_what_was_cached(prompt, cached, price):
    """At any price up to that of other input; without a cache the price does not matter."""
    models = catalogue([replace(LARGE, usd_per_1m_cached_input_tokens=price)])
    plain = models.cost_usd("large", prompt, 7)
    assert models.cost_usd("large", prompt, 7, cached_tokens=0) == plain
    assert models.cost_usd("large", prompt, 7, cached_tokens=cached) <= plain * (1 + 1e-12)
