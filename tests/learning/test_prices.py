"""Prices: every claim of docs/prices.md, for any loads, and in loops with requests that respond."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linprog
from strategies import lightly

from learners.criticality import Criticality
from learners.prices import (
    PriceOptions,
    ShedOptions,
    ascend,
    level,
    multiples,
    shed_share,
)
from streams.training.prices import Price

OPTIONS = PriceOptions()
Z_MAX = OPTIONS.z_max
thoroughly = settings(lightly, max_examples=150)
in_loops = settings(lightly, max_examples=15)

# The region that prices are stated to be steady in.
STEEPNESS_MAX, LAG_S_MIN, LAG_S_MAX, DELAY_S_MAX = 4.0, 4.0, 7.0, 3.5

some_load = st.floats(0.0, 100.0) | st.sampled_from([0.0, 1.0, 5.0, 1e12, 5e-324])
some_loads = arrays(np.float64, 3, elements=some_load)
some_z = arrays(np.float64, 3, elements=st.floats(0.0, Z_MAX) | st.sampled_from([0.0, Z_MAX]))
some_s = st.floats(0.0, 3.0) | st.sampled_from([0.0, 300.0, np.inf])
# Stabler and wilder than the defaults: what holds for any loads holds for any options.
some_options = st.builds(
    PriceOptions,
    step_per_s=st.floats(1e-3, 2.0),
    damping=st.floats(0.0, 2.0),
    multiple_max=st.floats(1.0, 1e3),
    load_max=st.floats(1.5, 50.0),
    damped_load_max=st.floats(1.5, 50.0),
)
Demand = Callable[[np.ndarray], np.ndarray]  # multiples (R,) → loads (R,)


# --- one step -----------------------------------------------------------------------------------


@thoroughly
@given(st.lists(st.tuples(some_loads, some_s), max_size=8), some_z, some_options)
def test_prices_are_never_negative_and_never_above_their_bound(history, z, options):
    """
    Whatever loads come, for however long, under whatever options: of the log-price, and of the price
    with its proportional part, which may take it beyond `multiple_max`.
    """
    z = np.minimum(z, options.z_max)
    for load, elapsed_s in history:
        z = ascend(z, load, elapsed_s, options)
        m = multiples(z, load, options)

        assert ((z >= 0.0) & (z <= options.z_max)).all()
        assert ((m >= 0.0) & (np.log1p(m) <= options.log_multiple_max * (1 + 1e-9))).all()


def test_a_load_that_was_reckoned_ahead_may_fall_below_zero():
    """
    Fresh counts correct a load by a difference; less than nothing passes for nothing.
    """
    z = np.array([1.0, 1.0])

    below, none = multiples(z, np.array([-3.0, 0.0]), OPTIONS)

    assert below == none > 0.0


@thoroughly
@given(some_z, some_loads, some_loads, some_z, some_s)
def test_more_load_never_makes_a_price_lower(z, load, other, other_z, elapsed_s):
    """
    In the step, in the price charged, and from any two log-prices one of which is higher: so one
    history of loads that is nowhere below another ends nowhere below it.
    """
    low, high = np.minimum(load, other), np.maximum(load, other)
    low_z, high_z = np.minimum(z, other_z), np.maximum(z, other_z)

    stepped_low, stepped_high = (
        ascend(at, on, elapsed_s, OPTIONS) for at, on in ((low_z, low), (high_z, high))
    )

    assert (stepped_low <= stepped_high).all()
    assert (multiples(low_z, low, OPTIONS) <= multiples(high_z, high, OPTIONS)).all()


def test_more_load_makes_a_price_higher_between_the_bounds():
    """
    Strictly so, both the step and the price.
    """
    z, load = np.full(4, 1.0), np.array([0.5, 1.0, 1.5, 4.9])

    assert (np.diff(ascend(z, load, 1.0, OPTIONS)) > 0.0).all()
    assert (np.diff(multiples(z, load, OPTIONS)) > 0.0).all()


@pytest.mark.parametrize("z", [0.0, 3.0, Z_MAX])
def test_in_total_overload_the_fuller_pool_is_still_the_dearer(z):
    """
    Also where both log-prices are at their bound, as far as loads of 30: else everything would go to
    the pool that is cheapest at the bound.
    """
    load = np.array([5.0, 6.0, 12.0, 29.0, 30.0])

    m = multiples(np.full(5, z), load, OPTIONS)

    np.testing.assert_allclose(np.diff(np.log1p(m)), OPTIONS.damping * np.diff(load))
    assert multiples(np.array([z]), np.array([1e9]), OPTIONS)[0] == m[-1]
    if z == Z_MAX:
        assert (m > OPTIONS.multiple_max).all()
        assert (
            np.log1p(m[-1]) == pytest.approx(OPTIONS.log_multiple_max) == pytest.approx(14.18, 1e-3)
        )


@thoroughly
@given(st.floats(0.0, Z_MAX) | st.just(0.0), some_load, some_options)
def test_one_price_is_charged_as_many_are(z, load, options):
    """
    Of the budget and of power, the proportional part included; without a limit there is none.
    """
    (expected,) = multiples(np.array([z]), np.array([load]), options)

    assert Price(z, load).charged(options) == expected
    assert Price().charged(options) == 0.0


@lightly
@given(some_z, st.floats(0.05, 1.0), st.data())
def test_a_price_is_zero_once_there_was_slack_for_long_enough(z, slack, data):
    """
    With loads of at most 1 − δ, after z_max / (η·δ) at the latest; and it stays zero.
    """
    steps = int(np.ceil(Z_MAX / (OPTIONS.step_per_s * slack))) + 1
    below = arrays(np.float64, (5, 3), elements=st.floats(0.0, 1.0 - slack))
    loads = np.resize(data.draw(below), (steps, 3))

    for load in loads:
        z = ascend(z, load, 1.0, OPTIONS)

    assert (z == 0.0).all()
    assert (multiples(z, loads[-1], OPTIONS) == 0.0).all()


@thoroughly
@given(st.lists(some_loads, min_size=1, max_size=40), some_z)
def test_over_any_time_the_mean_load_is_at_most_one_plus_what_the_price_rose(loads, z):
    """
    mean(ρ) ≤ 1 + (z_end − z_start) / (η·t), while no price is at its bound: what is too much now
    is made up for later, or the price is higher. Loads count as far as `load_max`, and room below
    `room_from` counts more.
    """
    path = [z]
    for load in loads:
        path.append(ascend(path[-1], load, 1.0, OPTIONS))
    assume((np.array(path) < Z_MAX).all())

    room = np.maximum(0.0, OPTIONS.room_from - np.array(loads))
    mean = (np.minimum(loads, OPTIONS.load_max) - OPTIONS.room_factor * room).mean(axis=0)

    rose = (path[-1] - path[0]) / (OPTIONS.step_per_s * len(loads))
    assert (mean <= 1.0 + rose + 1e-9).all()


@thoroughly
@given(some_z, some_loads, some_s, st.permutations(range(3)))
def test_resources_do_not_know_of_each_other(z, load, elapsed_s, order):
    """
    In any order, and each alone, they come to the same bits.
    """
    stepped, charged = ascend(z, load, elapsed_s, OPTIONS), multiples(z, load, OPTIONS)

    for rows in (list(order), [0], [1, 2]):
        np.testing.assert_array_equal(
            ascend(z[rows], load[rows], elapsed_s, OPTIONS), stepped[rows]
        )
        np.testing.assert_array_equal(multiples(z[rows], load[rows], OPTIONS), charged[rows])


@thoroughly
@given(some_z, some_loads, some_s)
def test_equal_inputs_give_equal_bits(z, load, elapsed_s):
    """
    Wherever the arrays lie in memory; and they are not changed.
    """
    kept_z, kept_load = np.repeat(z, 2)[::2], np.repeat(load, 2)[::2]  # strided copies

    one = ascend(z, load, elapsed_s, OPTIONS), multiples(z, load, OPTIONS)
    two = ascend(kept_z, kept_load, elapsed_s, OPTIONS), multiples(kept_z, kept_load, OPTIONS)

    assert [a.tobytes() for a in one] == [a.tobytes() for a in two]
    np.testing.assert_array_equal(z, kept_z)
    np.testing.assert_array_equal(load, kept_load)


# --- time ---------------------------------------------------------------------------------------


@thoroughly
@given(some_z, some_loads, st.floats(OPTIONS.elapsed_s_max, 1e9))
def test_a_silence_makes_no_jump(z, load, silent_s):
    """
    The first word after it moves a price as far as two seconds do, however long it was.
    """
    after = ascend(z, load, silent_s, OPTIONS)

    np.testing.assert_array_equal(after, ascend(z, load, OPTIONS.elapsed_s_max, OPTIONS))
    furthest = OPTIONS.step_per_s * OPTIONS.elapsed_s_max * (OPTIONS.load_max - 1.0)
    assert (np.abs(after - z) <= furthest + 1e-12).all()
    assert furthest < np.log(1.5)  # a price goes up by half at most


@thoroughly
@given(some_z, some_loads)
def test_no_time_and_a_load_of_one_change_nothing(z, load):
    """
    So a resource that nobody reported on is passed as 1.
    """
    np.testing.assert_array_equal(ascend(z, load, 0.0, OPTIONS), z)
    np.testing.assert_array_equal(ascend(z, np.ones(3), 1.0, OPTIONS), z)


@pytest.mark.parametrize(
    ("load", "excess"), [(1.5, 0.5), (1.0, 0.0), (0.8, -0.2), (0.5, -1.4), (0.0, -3.4)]
)
def test_a_price_falls_faster_the_more_room_there_is(load, excess):
    """
    Below a load of 0.8, by three times what is missing to it. Around full nothing is changed.
    """
    z = ascend(np.array([3.0]), np.array([load]), 1.0, OPTIONS)

    assert z[0] == pytest.approx(3.0 + OPTIONS.step_per_s * excess)


@thoroughly
@given(some_z)
def test_prices_are_levelled_no_higher_than_it_takes(z):
    """
    The cheapest ends at `multiple_top` or where it was, the differences stay, and levelling twice
    is levelling once.
    """
    top = float(np.log1p(OPTIONS.multiple_top))

    levelled = level(z, OPTIONS)

    assert levelled.min() == pytest.approx(min(z.min(), top))
    np.testing.assert_allclose(levelled - levelled[0], z - z[0], atol=1e-12)
    np.testing.assert_allclose(level(levelled, OPTIONS), levelled, atol=1e-12)


def test_one_pool_that_is_cheap_keeps_all_from_being_levelled():
    """
    To it, requests can still be moved by what the others cost. Of no pools none is levelled.
    """
    z = np.array([0.0, OPTIONS.z_max])

    assert level(z, OPTIONS).tolist() == z.tolist()
    assert level(np.zeros(0), OPTIONS).tolist() == []


def test_levelled_prices_are_beyond_every_band_of_refusal():
    """
    At its limit a pool at `multiple_top` refuses all who may be refused.
    """
    share = shed_share(np.full(4, OPTIONS.multiple_top), np.arange(4))

    assert share.tolist() == [1.0, 1.0, 1.0, 0.0]


@thoroughly
@given(some_z, some_loads, st.floats(0.0, OPTIONS.elapsed_s_max), st.floats(0.0, 1.0))
def test_it_does_not_matter_how_time_is_cut(z, load, elapsed_s, cut):
    """
    Two steps at one load are one of their sum, also where a bound is met on the way.
    """
    part_s = cut * elapsed_s

    twice = ascend(ascend(z, load, part_s, OPTIONS), load, elapsed_s - part_s, OPTIONS)

    np.testing.assert_allclose(twice, ascend(z, load, elapsed_s, OPTIONS), atol=1e-12)


@pytest.mark.parametrize("load", [-0.1, np.nan, np.inf, -np.inf])
def test_a_load_that_makes_no_sense_is_a_broken_invariant(load):
    """
    Garbage is for the caller to clean: here it would stay in the price for good.
    """
    with pytest.raises(AssertionError, match="clean loads"):
        ascend(np.zeros(2), np.array([1.0, load]), 1.0, OPTIONS)


def test_time_that_goes_back_is_a_broken_invariant():
    """
    As is time that is no number.
    """
    for elapsed_s in (-1.0, np.nan):
        with pytest.raises(AssertionError, match="time"):
            ascend(np.zeros(1), np.ones(1), elapsed_s, OPTIONS)


def test_a_price_that_can_not_be_reckoned_is_a_broken_invariant():
    """
    A reckoning ahead may be negative, not infinite.
    """
    with pytest.raises(AssertionError, match="clean loads"):
        multiples(np.zeros(1), np.array([np.nan]), OPTIONS)


# --- the loop, made linear ----------------------------------------------------------------------


def response(omega, k, lead_s, lag_s, delay_s):
    """The open loop at frequencies ω: k·(1 + iωT₀) / (iω·(1 + iωT)) · exp(−iωτ)."""
    turn = 1j * omega
    return k * (1 + turn * lead_s) / (turn * (1 + turn * lag_s)) * np.exp(-turn * delay_s)


def phase_margin(k: float, lead_s: float, lag_s: float, delay_s: float) -> float:
    """In radians. The gain falls with frequency throughout, so it is one at one frequency only."""
    a, b = lag_s**2, 1.0 - (k * lead_s) ** 2
    omega = np.sqrt(2.0 * k**2 / (b + np.sqrt(b**2 + 4.0 * a * k**2)))
    lag = np.arctan(omega * lag_s) - np.arctan(omega * lead_s) + omega * delay_s
    return np.pi / 2 - lag


def margin_promised(k: float, lead_s: float, lag_s: float, delay_s: float) -> float:
    """What the docs derive."""
    if lag_s >= lead_s:
        return np.pi / 2 - k * delay_s - np.arcsin((lag_s - lead_s) / (lag_s + lead_s))
    return np.pi / 2 - k * delay_s * lead_s / lag_s


@thoroughly
@given(st.floats(1e-3, 1.0), st.floats(0.1, 30), st.floats(0.1, 60), st.floats(0, 30))
def test_the_phase_margin_is_at_least_what_is_derived(k, lead_s, lag_s, delay_s):
    """
    For any gain, lag and delay.
    """
    exact = phase_margin(k, lead_s, lag_s, delay_s)

    assert exact >= margin_promised(k, lead_s, lag_s, delay_s) - 1e-9


@given(st.floats(0.01, 0.4), st.floats(2, 15), st.floats(0, 5))
@lightly
def test_the_phase_margin_is_that_of_the_response(k, lag_s, delay_s):
    """
    The closed form of where the gain is one, against the response itself on a grid.
    """
    omega = np.geomspace(1e-3, 10, 200_000)
    loop = response(omega, k, 5.0, lag_s, delay_s)
    at = np.abs(np.abs(loop) - 1.0).argmin()

    beyond = -np.angle(-loop[at])  # from −180°, the other way round

    difference = beyond + phase_margin(k, 5.0, lag_s, delay_s)
    assert np.remainder(difference + np.pi, 2 * np.pi) - np.pi == pytest.approx(0, abs=1e-2)


def gain_and_lead() -> tuple[float, float]:
    """Of the defaults, where requests are as steep as the region allows."""
    return OPTIONS.step_per_s * STEEPNESS_MAX, OPTIONS.damping / OPTIONS.step_per_s


def region() -> tuple[np.ndarray, np.ndarray]:
    """Lags and delays of the region stated, as two columns of a grid."""
    lag_s, delay_s = np.meshgrid(
        np.linspace(LAG_S_MIN, LAG_S_MAX, 31), np.linspace(0.0, DELAY_S_MAX, 21)
    )
    return lag_s.ravel(), delay_s.ravel()


def test_in_the_region_stated_the_margin_is_forty_degrees():
    """
    With the defaults, of one resource alone, at every lag, delay and steepness: 40 by the bounds
    derived, 46 as it is.
    """
    k, lead_s = gain_and_lead()

    promised, exact = (
        np.degrees(min(margin(k, lead_s, *at) for at in zip(*region(), strict=True)))
        for margin in (margin_promised, phase_margin)
    )

    assert promised == pytest.approx(40, abs=0.5)
    assert exact == pytest.approx(46, abs=0.6)


def test_a_load_that_is_reported_at_once_does_no_harm_either():
    """
    Below the region: a lag of one second leaves 42 degrees.
    """
    k, lead_s = gain_and_lead()

    margins = [phase_margin(k, lead_s, lag_s, DELAY_S_MAX) for lag_s in np.linspace(1, 4, 31)]

    assert np.degrees(min(margins)) == pytest.approx(42, abs=0.5)


@thoroughly
@given(st.floats(0.0, 1.0), st.floats(0.0, 60.0), st.floats(1e-4, 1e3))
def test_with_fresh_counts_the_phase_never_reaches_half_a_circle(share, lag_s, omega):
    """
    What routers sent themselves is counted at once, so the delay is in z alone: at any steepness,
    lag and frequency the phase stays above −π, as long as the delay is no more than T₀.
    """
    _, lead_s = gain_and_lead()
    turn = 1j * omega

    slow_part = np.exp(-turn * share * lead_s) + turn * lead_s
    phase = np.angle(slow_part) - np.pi / 2 - np.arctan(omega * lag_s)

    assert np.angle(slow_part) >= 0.0
    assert phase > -np.pi


def test_pools_of_different_lags_and_delays_do_not_shake_each_other():
    """
    Of many resources the eigenvalues of the loop lie in the convex hull of zero and all s·h(iω).
    It is stable if −1 is outside at every ω: if 1 + s·h turns through less than half a circle.
    """
    k, lead_s = gain_and_lead()
    lag_s, delay_s = region()

    turned = [
        np.ptp(np.append(np.angle(1 + response(omega, k, lead_s, lag_s, delay_s)), 0.0))
        for omega in np.geomspace(1e-3, 30, 500)
    ]

    assert np.degrees(max(turned)) < 120


def test_the_budget_has_a_margin():
    """
    Spending is averaged over a minute, and known when an answer has come: say after ten seconds. Half
    of the margin is the proportional part's.
    """
    _, lead_s = gain_and_lead()

    of_one, of_two, bare = (
        np.degrees(phase_margin(s * OPTIONS.step_per_s, lead, 60.0, 10.0))
        for s, lead in ((1.0, lead_s), (2.0, lead_s), (2.0, 0.0))
    )

    assert (of_one, of_two, bare) == pytest.approx((24, 11, 1), abs=1)


# --- the loop, with requests --------------------------------------------------------------------


def shares_of(multiple: np.ndarray, worth: np.ndarray, work: np.ndarray) -> np.ndarray:
    """What requests (n,) choose, as a table (n, P) of zeros and ones, at prices in GPU costs."""
    net = worth - work * multiple
    best = net == net.max(axis=1, keepdims=True)
    return (best & (net > 0.0)).astype(float)


def demand_of(seed: int, pools: int, spread: float) -> Demand:
    """A thousand kinds of requests of random worth and work choose between pools, or none.

    Together they would fill the pools one and a half to six times over. `spread` is how unlike
    they are; the more alike, the more of them leave at one price.
    """
    rng = np.random.default_rng(seed)
    n = 1000
    work = rng.lognormal(0.0, spread, (n, 1)) * rng.lognormal(0.0, 0.15, (n, pools))
    worth = rng.lognormal(rng.uniform(0.5, 2.0, pools), spread, (n, pools))
    over = rng.uniform(1.5, 6.0)
    capacity = work.mean(axis=1).sum() / pools / over * rng.uniform(0.6, 1.6, pools)
    return lambda m: (shares_of(m, worth, work) * work).sum(axis=0) / capacity


def run(demand: Demand, lag_s, delay_s, options=OPTIONS, seconds=900, z=0.0, fresh=False):
    """Log-prices and loads (seconds, R), of pools whose load follows demand late, reported later.

    With `fresh` counts requests are priced at the load there is, which their router reckoned.
    """
    lag_s, delay_s = np.atleast_1d(lag_s), np.atleast_1d(delay_s).astype(int)
    each = np.arange(len(lag_s))
    z, follow = np.full(len(lag_s), z), 1.0 - np.exp(-1.0 / lag_s)
    loads, path = np.zeros((seconds, len(lag_s))), []
    for second in range(1, seconds):
        reported = loads[np.maximum(0, second - delay_s), each]
        z = ascend(z, reported, 1.0, options)
        asked = demand(multiples(z, loads[second - 1] if fresh else reported, options))
        loads[second] = loads[second - 1] + follow * (asked - loads[second - 1])
        path.append(z)
    return np.array(path), loads


def steepness(demand: Demand, z: np.ndarray) -> float:
    """How much load a unit of log-price moves, in the direction in which it moves most."""
    h = 0.1
    slopes = [
        (demand(np.expm1(np.maximum(z - h * one, 0))) - demand(np.expm1(z + h * one))) / (2 * h)
        for one in np.eye(len(z))
    ]
    return float(np.linalg.eigvals(np.array(slopes)).real.max())


some_lag_s = st.floats(LAG_S_MIN, LAG_S_MAX)
some_delay_s = st.integers(1, int(np.ceil(DELAY_S_MAX)))
lags = arrays(np.float64, 3, elements=some_lag_s)
delays = arrays(np.int64, 3, elements=some_delay_s)
seeds = st.integers(0, 2**32 - 1)


def at_the_border(demand: Demand, pools: int, times: float = 1.0) -> PriceOptions:
    """The step and the damping at which this demand is as steep as the region allows, `times`."""
    slow = replace(OPTIONS, step_per_s=0.02, damping=0.05)
    settled, _ = run(demand, np.full(pools, 2.0), np.ones(pools), slow)
    more = times * STEEPNESS_MAX / steepness(demand, settled[-100:].mean(axis=0))
    step_per_s, damping = more * OPTIONS.step_per_s, more * OPTIONS.damping
    return replace(OPTIONS, step_per_s=step_per_s, damping=damping)


@in_loops
@given(seeds, st.integers(1, 3), st.floats(0.55, 1.2), lags, delays)
def test_prices_settle_where_pools_are_just_full(seed, pools, spread, lag_s, delay_s):
    """
    Requests of any kind whose steepness is in the region, pools of unlike lags and delays: after a
    quarter of an hour prices stand still, and every pool is full or free.
    """
    demand = demand_of(seed, pools, spread)

    z, load = run(demand, lag_s[:pools], delay_s[:pools])

    assume(steepness(demand, z[-1]) <= STEEPNESS_MAX)
    assert np.ptp(z[-100:], axis=0).max() < 0.02
    full_or_free = np.where(z[-1] > 0.0, np.abs(load[-1] - 1.0), np.maximum(0.0, load[-1] - 1.0))
    assert full_or_free.max() < 0.03


@in_loops
@given(seeds, st.integers(1, 3), st.floats(0.5, 1.2), lags, delays)
def test_swings_die_out_at_the_border_of_the_region(seed, pools, spread, lag_s, delay_s):
    """
    The same where steps are scaled to what each demand just bears.
    """
    demand = demand_of(seed, pools, spread)
    options = at_the_border(demand, pools)

    z, _ = run(demand, lag_s[:pools], delay_s[:pools], options)

    assert np.ptp(z[-100:], axis=0).max() < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_far_outside_the_region_prices_swing_for_ever(seed):
    """
    Four times as steep at the longest delay: so the tests above can fail. With fresh counts the same
    demand settles.
    """
    demand = demand_of(seed, 2, 0.7)
    options = at_the_border(demand, 2, times=4.0)

    lag_s, delay_s = np.full(2, 5.0), np.full(2, 4)

    late, _ = run(demand, lag_s, delay_s, options)
    fresh, _ = run(demand, lag_s, delay_s, options, fresh=True)

    assert np.ptp(late[-100:], axis=0).max() > 0.3
    assert np.ptp(fresh[-100:], axis=0).max() < 0.02


@pytest.mark.parametrize("delay_s, steepness_max", [(1, 25.5), (2, 13), (3.5, 7.8)])
def test_the_shorter_the_delay_the_steeper_a_demand_is_borne(delay_s, steepness_max):
    """
    The table in the docs: where lags are of 4 to 7 s, the margin is just above nothing.
    """
    k = OPTIONS.step_per_s * steepness_max
    _, lead_s = gain_and_lead()

    lags_s = np.linspace(LAG_S_MIN, LAG_S_MAX, 27)

    margins = [phase_margin(k, lead_s, lag_s, delay_s) for lag_s in lags_s]

    assert 0 < np.degrees(min(margins)) < 3


def test_without_damping_the_margin_is_gone():
    """
    At the longest lag and delay: what κ is for. At twice the steepness stated it is all there is.
    """
    k, lead_s = gain_and_lead()

    damped, bare, twice, twice_bare = (
        np.degrees(phase_margin(times * k, lead, LAG_S_MAX, DELAY_S_MAX))
        for times, lead in ((1, lead_s), (1, 0.0), (2, lead_s), (2, 0.0))
    )

    assert (damped, bare) == pytest.approx((46, 17), abs=1)
    assert (twice, twice_bare) == pytest.approx((20, -11), abs=1)


@in_loops
@given(seeds, some_lag_s, some_delay_s, st.floats(0.05, 1.0))
def test_what_waits_does_not_keep_prices_swinging(seed, lag_s, delay_s, weight):
    """
    A load has what came, averaged, and what waits, at once. A pool that works off no more than 1.2
    lets the rest wait: up to six times too much builds a queue; it is gone in five minutes, and
    prices stand still.
    """
    demand = demand_of(seed, 1, 0.6)
    z, came, waiting, loads = np.zeros(1), 0.0, 0.0, [0.0] * delay_s
    path = []

    for _ in range(900):
        reported = np.array([loads[-delay_s]])
        z = ascend(z, reported, 1.0, OPTIONS)
        asked = float(demand(multiples(z, reported, OPTIONS))[0])
        came += (asked - came) * (1.0 - np.exp(-1.0 / lag_s))
        waiting = max(0.0, waiting + asked - 1.2)
        loads.append(came + weight * waiting)
        path.append(z[0])

    assert max(loads[300:]) < 1.2
    assert np.ptp(path[-100:]) < 0.02


# --- the optimum --------------------------------------------------------------------------------


def few_requests(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Work and worth of 150 requests in three pools (150, 3), and what each pool carries.

    All three together carry a tenth to three tenths of them.
    """
    rng = np.random.default_rng(seed)
    work = rng.lognormal(0.0, 0.5, (150, 3))
    worth = rng.lognormal(1.0, 0.7, (150, 3))
    return work, worth, work.sum() / 3 * rng.uniform(0.1, 0.3, 3)


@settings(lightly, max_examples=12)
@given(seeds, some_lag_s, some_delay_s)
def test_prices_find_the_optimum_of_the_linear_programme(seed, lag_s, delay_s):
    """
    Requests that each choose what is best for them alone are, averaged over a quarter of an hour,
    within capacity by 0.5 %, within 0.5 % of the most utility there is, and pay what capacity is
    worth (the programme's dual, within 6 %). Although 150 requests are 150 steps of demand: loads
    are averages over the lag, so no single choice moves one by much.
    """
    work, worth, capacity = few_requests(seed)
    best = programme(worth, work, capacity)
    prices: list[np.ndarray] = []

    def demand(m: np.ndarray) -> np.ndarray:
        prices.append(m)
        return (shares_of(m, worth, work) * work).sum(axis=0) / capacity

    run(demand, np.full(3, lag_s), np.full(3, delay_s), seconds=1500)

    paid = np.array(prices[600:])
    taken = np.mean([shares_of(m, worth, work) for m in paid], axis=0)
    assert ((taken * work).sum(axis=0) <= 1.005 * capacity).all()
    assert (taken * worth).sum() == pytest.approx(-best.fun, rel=0.005)
    np.testing.assert_allclose(
        paid.mean(axis=0), -best.ineqlin.marginals[150:], rtol=0.06, atol=0.02
    )


def test_loads_of_single_seconds_would_not_find_it():
    """
    Without the average the same requests, all moved by one price at once, go to and fro between
    idle and many times too much. Room counts more than excess then, and a pool stays too full.
    """
    work, worth, capacity = few_requests(seed=29)

    def demand(m: np.ndarray) -> np.ndarray:
        return (shares_of(m, worth, work) * work).sum(axis=0) / capacity

    _, load = run(demand, np.full(3, 1e-3), np.ones(3), seconds=1500)

    assert load[600:].mean(axis=0).max() > 1.2


def programme(worth: np.ndarray, work: np.ndarray, capacity: np.ndarray):
    """Most worth, each request once at most, each pool within its capacity; shares may be parts."""
    n, pools = worth.shape
    once = np.kron(np.eye(n), np.ones((1, pools)))
    within = np.concatenate([np.diag(row) for row in work], axis=1)
    return linprog(
        -worth.ravel(),
        A_ub=np.concatenate([once, within]),
        b_ub=np.concatenate([np.ones(n), capacity]),
        bounds=(0, None),
        method="highs",
    )


# --- refusals -----------------------------------------------------------------------------------

ALL = np.array(list(Criticality))


@thoroughly
@given(st.floats(0.0, 600.0) | st.floats(0.0, 1e6) | st.just(np.inf), st.floats(0.0, 100.0))
def test_the_lowest_class_is_refused_first_and_the_highest_never(multiple, more):
    """
    At any price: a class loses nothing before the class below has lost all; more price never
    refuses less; and however high, `CRITICAL_PLUS` is served.
    """
    share = shed_share(np.full(4, multiple), ALL)

    assert ((share >= 0.0) & (share <= 1.0)).all()
    assert all(share[c] == 0.0 or share[c - 1] == 1.0 for c in (1, 2, 3))
    assert (shed_share(np.full(4, multiple + more), ALL) >= share).all()
    assert share[Criticality.CRITICAL_PLUS] == 0.0


def test_refusal_rises_linearly_in_the_log_price_through_each_band():
    """
    The bands as they are documented, each a doubling of 1 + m; nobody is refused below 3.
    """
    doublings = np.array([2, 2.25, 2.5, 3, 4, 4.5, 5, 6, 6.75, 7, 20])

    shares = {
        c.name: pytest.approx(shed_share(2**doublings - 1, np.full(11, c)), abs=1e-12)
        for c in Criticality
    }

    assert shares == {
        "SHEDDABLE": [0, 0.25, 0.5, 1, 1, 1, 1, 1, 1, 1, 1],
        "SHEDDABLE_PLUS": [0, 0, 0, 0, 0, 0.5, 1, 1, 1, 1, 1],
        "CRITICAL": [0, 0, 0, 0, 0, 0, 0, 0, 0.75, 1, 1],
        "CRITICAL_PLUS": [0] * 11,
    }


def test_prices_reach_the_end_of_every_band():
    """
    Else a class could not be refused altogether. And bands are in order, one after the other.
    """
    edges = [edge for band in ShedOptions().bands for edge in band]

    assert edges == sorted(edges)
    assert edges[-1] < OPTIONS.multiple_max
    assert multiples(np.array([Z_MAX]), np.array([1.0]), OPTIONS)[0] == pytest.approx(1023.0)


@pytest.mark.parametrize(
    "level, load", [(0, 6.545), (1, 12.09), (2, 17.64)], ids=["lowest", "middle", "default"]
)
def test_a_load_beyond_measure_is_refused_at_once(level, load):
    """
    Where nothing had a price: the proportional part alone reaches each band, at the loads documented.
    """
    m = multiples(np.zeros(3), load + np.array([-0.01, 0.01, 2.8]), OPTIONS)

    share = shed_share(m, np.full(3, level))

    assert (share[0], share[2]) == (0.0, 1.0)
    assert 0.0 < share[1] < 0.01


@in_loops
@given(
    arrays(np.float64, 3, elements=st.floats(0.0, 5.0)),
    st.floats(0.0, 0.9),
    some_lag_s,
    some_delay_s,
)
def test_with_nowhere_else_to_go_just_enough_are_refused(asked, top, lag_s, delay_s):
    """
    Three classes, each of which asks for at most five fleets, one that is never refused, and one
    pool: in half an hour it is full, and what is refused stands still. There is no hysteresis, and
    none is needed. Once half a fleet is asked for, everyone is served again within four minutes.
    """
    asked = np.append(asked, top)

    def demand(m: np.ndarray, asked: np.ndarray = asked) -> np.ndarray:
        return np.array([(asked * (1.0 - shed_share(np.repeat(m, 4), ALL))).sum()])

    def less(m: np.ndarray) -> np.ndarray:
        return demand(m, asked * min(1.0, 0.5 / asked.sum()))

    z, load = run(demand, lag_s, delay_s, seconds=1800)
    after, _ = run(less, lag_s, delay_s, seconds=240, z=z[-1, 0])

    share = shed_share(np.expm1(np.repeat(z[-100:], 4, axis=0)).ravel(), np.tile(ALL, 100))
    assert np.ptp(share.reshape(100, 4) * asked, axis=0).max() < 0.02
    assert np.ptp(load[-100:]) < 0.05
    assert load[-1, 0] == pytest.approx(min(1.0, asked.sum()), abs=0.05)
    assert (shed_share(np.repeat(np.expm1(after[-1]), 4), ALL) == 0.0).all()


@pytest.mark.parametrize(
    "broken", [{"step_per_s": 0.0}, {"damping": -0.1}, {"load_max": 1.0}, {"damped_load_max": 1.0}]
)
def test_options_that_can_not_work_are_a_broken_invariant(broken):
    """
    A step of nothing, damping that excites, a load that can't rise above one.
    """
    with pytest.raises(AssertionError):
        PriceOptions(**broken)
