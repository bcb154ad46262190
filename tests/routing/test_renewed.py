"""A view that has decided and is renewed by telemetry decides as one that is made anew."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from reporting_pools import WORKING, reported, requests, view, working
from router_bench import NOON_MS

from learners.policies.inverse_gap import SquareCb
from serve.routing.choices import Choices
from serve.routing.live import Live
from serve.routing.load_tracker import LoadTracker
from serve.routing.placement import PlacementOptions
from serve.routing.router import route
from streams.training.prices import Price

OPTIONS = PlacementOptions()
POOLS = (*WORKING, working("m", "medium"), working("l", "large"))
STATES = ("starting", "ready", "draining", "silent")
CONDITION = st.tuples(
    st.sampled_from(STATES),
    st.integers(0, 20),  # queued
    st.sampled_from([0.1, 0.8, 1.1]),  # load
    st.sampled_from([0.0, 0.4, 2.0]),  # log-price
)
PRICE = st.sampled_from([0.0, 0.7])
FLEET = st.tuples(st.tuples(*[CONDITION] * len(POOLS)), PRICE, PRICE)


def fleet_view(fleet: tuple) -> Live:
    """Of pools in these conditions, with prices of the budget and of power."""
    conditions, budget, power = fleet
    records, prices = [], {}
    for pool, (state, queued, load, log_price) in zip(POOLS, conditions, strict=True):
        if state != "silent":
            records.append(reported(pool.name, state=state, queued=queued, running=4, load=load))
            prices[pool.name] = Price(log_price, load)
    return view(
        *records, pools=POOLS, prices=prices, budget=Price(budget, 1.0), power=Price(power, 1.0)
    )


def decide(live: Live, seed: int) -> Choices:
    """A few requests that weigh everything."""
    rng, n = np.random.default_rng(seed), 3
    preference = rng.random((n, 4)) * [1.0, 20.0, 0.1, 0.1]
    asked = requests(live, n, preference=preference, allowed=rng.random((n, 3)) < 0.8)
    pool_load = LoadTracker(OPTIONS.pricing).now(live, NOON_MS + 300)
    return route(asked, live, pool_load, SquareCb(), rng.random((n, 2)), None, OPTIONS)


@given(fleets=st.lists(FLEET, min_size=2, max_size=4), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_renewed_view_decides_as_one_that_is_made_anew(fleets, seed):
    """
    Whatever was kept of it: pools lose their replicas and get them back, fill and empty, and
    prices move.
    """
    live = fleet_view(fleets[0])
    for i, fleet in enumerate(fleets):
        anew = fleet_view(fleet)
        live = live.renewed(i, NOON_MS, anew.fleet, anew.prices)

        found, want = decide(live, seed + i), decide(anew, seed + i)

        for field in fields(Choices):
            np.testing.assert_array_equal(
                getattr(found, field.name), getattr(want, field.name), field.name
            )
