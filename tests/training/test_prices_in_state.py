"""Prices as part of the trainer's state: what moves them, what does not, and that they come back."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import ENCODER, MEMORY, NOW_MS
from memory_log import MemoryLog, Storage
from reporting_pools import reported
from sharded import OPTIONS as SHARDED
from sharded import Site, finish, written

from learners.estimates.learned import Learned
from learners.prices import PriceOptions
from streams.log.contract import TELEMETRY
from streams.telemetry.fleet_state import FleetState
from streams.telemetry.pool_reports import LOAD_MAX
from streams.telemetry.received import SILENT_MS
from streams.telemetry.records import encode
from streams.training.folder import Folder
from streams.training.prices import (
    FORGOTTEN_MS,
    PERIOD_MS,
    SPENDING_S,
    Price,
    Prices,
    PricingOptions,
)
from streams.training.snapshots import Store
from streams.training.state import Loader, Saver, State
from streams.training.telemetry_fold import TelemetryFold

OPTIONS = PricingOptions()
ASCENT = PriceOptions()
LOAD = OPTIONS.load_target
lightly = settings(max_examples=40)


def fleet(*records, at_ms: int = NOW_MS) -> FleetState:
    state = FleetState()
    for record in records:
        state.fold(record, at_ms)
    return state


def begun(**prices: object) -> Prices:
    """Prices that were last advanced a second ago."""
    return Prices(as_of_ms=NOW_MS - PERIOD_MS, **prices)


def of_pool(prices: Prices, *records, options: PricingOptions = OPTIONS) -> Price | None:
    """The price of pool p after a second with these words."""
    return prices.advanced(fleet(*records), 0.0, NOW_MS, options).capacity.get("p")


def word(load: float | None, **gauges: object):
    return reported("p", NOW_MS, load=load, **gauges)


# --- one advance -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("load", "relative"), [(LOAD, 1.0), (2 * LOAD, 2.0), (0.9 * LOAD, 0.9)])
def test_a_price_follows_its_pools_load(load, relative):
    """
    By hand: ln(1 + m) moves by η · 1 s · (ρ − 1), where ρ is relative to what it should carry.
    """
    found = of_pool(begun(capacity={"p": Price(1.0, 1.0)}), word(load))

    assert found == Price(pytest.approx(1.0 + ASCENT.step_per_s * (relative - 1)), relative)


def test_a_price_falls_faster_with_room():
    """
    By hand: at half load, 0.3 are missing to 0.8, and three times as much is taken off besides.
    """
    found = of_pool(begun(capacity={"p": Price(1.0, 1.0)}), word(0.5 * LOAD))

    assert found == Price(pytest.approx(1.0 + ASCENT.step_per_s * (-0.5 - 3 * 0.3)), 0.5)


def test_twice_the_time_moves_prices_twice_as_far():
    """
    And spending is a rate: a dollar in two seconds is half of a dollar in one, twice as long.
    """
    options = PricingOptions(budget_usd_per_hour=1800.0)
    prices = Prices(as_of_ms=NOW_MS - 2 * PERIOD_MS, capacity={"p": Price(1.0, 1.0)})

    after = prices.advanced(fleet(word(2 * LOAD)), 1.0, NOW_MS, options)

    assert after.capacity["p"].log_price == pytest.approx(1.0 + 2 * ASCENT.step_per_s)
    assert after.budget.load == pytest.approx(2 / SPENDING_S)


def test_load_is_the_mean_of_ready_replicas_that_tell():
    """
    One that starts, one that drains and one that says nothing of it have no part.
    """
    records = [
        word(load, replica=f"r{i}", state=state)
        for i, (load, state) in enumerate(
            [(0.4, "ready"), (0.8, "ready"), (9.0, "starting"), (9.0, "draining"), (None, "ready")]
        )
    ]

    assert of_pool(begun(), *records).load == pytest.approx(0.6 / LOAD)


@pytest.mark.parametrize("load", [None, 1e9, LOAD_MAX * 1.001])
def test_load_that_is_missing_or_makes_no_sense_holds_the_price(load):
    before = Price(1.25, 1.5)

    assert of_pool(begun(capacity={"p": before}), word(load)) == before
    assert of_pool(begun(), word(load)) == Price()


@pytest.mark.parametrize("load", [101.0, 3000.0])
def test_a_burst_on_one_small_replica_is_a_load(load):
    """
    Taken for nonsense it was no load at all: routers sent twenty thousand requests to a replica
    that a burst had filled a hundred times.
    """
    assert of_pool(begun(), word(load)).log_price > 0.0


def test_load_that_makes_no_sense_holds_no_other_price():
    prices = begun(capacity={"p": Price(1.0, 1.0), "q": Price(1.0, 1.0)})

    after = prices.advanced(
        fleet(word(1e9), reported("q", NOW_MS, load=2 * LOAD)), 0.0, NOW_MS, OPTIONS
    ).capacity

    assert after["p"].log_price == 1.0
    assert after["q"].log_price > 1.0


def test_a_pool_without_live_replicas_has_no_price():
    """
    It has no capacity that could be dear. When it reports again, it begins at what the others charge.
    """
    state = fleet(word(2.0), at_ms=NOW_MS - SILENT_MS - 1)
    state.fold(reported("other", NOW_MS, load=0.5), NOW_MS)
    prices = begun(capacity={"p": Price(3.0, 2.0)})

    after = prices.advanced(state, 0.0, NOW_MS, OPTIONS)
    state.fold(reported("p", NOW_MS + 1, load=LOAD), NOW_MS + 1)
    again = after.advanced(state, 0.0, NOW_MS + PERIOD_MS, OPTIONS)

    assert list(after.capacity) == ["other"]
    assert after.capacity["other"].log_price > 2.0
    assert again.capacity["p"] == Price(after.capacity["other"].log_price, 1.0)


@pytest.mark.parametrize(
    ("others", "market"), [({}, 0.0), ({"q": 2.0}, 2.0), ({"q": 2.0, "r": 3.0}, 2.0)]
)
def test_a_pool_that_comes_to_a_market_begins_at_its_least_price(others, market):
    """
    At nothing it would be flooded. Where there is no market, or one without prices, it is free.
    """
    prices = begun(capacity={name: Price(z, 1.0) for name, z in others.items()})
    records = [reported(name, NOW_MS, load=LOAD) for name in others]

    after = prices.advanced(fleet(*records, word(LOAD)), 0.0, NOW_MS, OPTIONS).capacity

    assert after["p"] == Price(pytest.approx(market), 1.0)
    assert {name: after[name].log_price for name in others} == pytest.approx(others)


def test_when_all_are_dearer_than_it_takes_all_are_lowered():
    """
    The cheapest to `multiple_top`, the rest by as much; budget and power are no part of it.
    """
    top, options = math.log1p(ASCENT.multiple_top), PricingOptions(budget_usd_per_hour=1.0)
    prices = begun(
        capacity={"p": Price(top + 0.5, 1.0), "q": Price(top + 1.5, 1.0)},
        budget=Price(top + 1.0, 1.0),
    )
    state = fleet(word(LOAD), reported("q", NOW_MS, load=LOAD))

    after = prices.advanced(state, 0.0, NOW_MS, options)

    assert after.capacity["p"].log_price == pytest.approx(top)
    assert after.capacity["q"].log_price == pytest.approx(top + 1.0)
    assert after.budget.log_price > top + 0.9


def test_silence_holds_all_prices():
    """
    After more than ten seconds without a word nothing is known of now: whatever was said last, only
    the time is noted, so that the silence does not count afterwards either.
    """
    prices = begun(capacity={"p": Price(1.0, 2.0)}, budget=Price(0.5, 2.0), power=Price(0.25, 2.0))
    state = fleet(word(3.0), at_ms=NOW_MS)
    late_ms = NOW_MS + SILENT_MS + 1

    after = prices.advanced(state, 5.0, late_ms, OPTIONS)

    assert after == replace(prices, as_of_ms=late_ms, spent_usd=5.0)
    assert prices.advanced(state, 5.0, late_ms - 1, OPTIONS).capacity["p"].log_price > 1.0


def test_who_comes_back_after_minutes_finds_no_prices_of_before():
    """
    As it finds no replicas of before. Otherwise a site that was stopped while it was full would
    refuse requests when it is started the next day. What is spent stays spent.
    """
    prices = begun(capacity={"p": Price(1.0, 2.0)}, budget=Price(0.5, 2.0), power=Price(0.25, 2.0))
    state = fleet(word(3.0), at_ms=NOW_MS)

    def capacity_after(silent_ms: int) -> dict[str, Price]:
        return prices.advanced(state, 5.0, NOW_MS + silent_ms, OPTIONS).capacity

    assert capacity_after(FORGOTTEN_MS) == prices.capacity
    assert capacity_after(FORGOTTEN_MS + 1) == {}
    tomorrow = prices.advanced(state, 5.0, NOW_MS + 86_400_000, OPTIONS)
    assert (tomorrow.power, tomorrow.budget) == (Price(), prices.budget)


def test_the_first_advance_notes_only_time_and_spending():
    assert Prices().due(NOW_MS)
    assert Prices().advanced(fleet(word(3.0)), 7.0, NOW_MS, OPTIONS) == Prices(
        as_of_ms=NOW_MS, spent_usd=7.0
    )


@pytest.mark.parametrize(("after_ms", "due"), [(PERIOD_MS - 1, False), (PERIOD_MS, True)])
def test_prices_are_due_once_a_second(after_ms, due):
    assert begun().due(NOW_MS - PERIOD_MS + after_ms) is due
    assert not begun().due(NOW_MS - 10 * PERIOD_MS)  # another partition's record, of before


# --- budget and power ------------------------------------------------------------------------------


def spending(usd_per_hour: float, seconds: int, prices: Prices, options: PricingOptions) -> Prices:
    """Prices after so long at a steady rate."""
    state = fleet(word(0.0))
    for _ in range(seconds):
        at_ms = prices.as_of_ms + PERIOD_MS
        state.fold(reported("p", at_ms, load=0.0), at_ms)
        prices = prices.advanced(state, prices.spent_usd + usd_per_hour / 3600, at_ms, options)
    return prices


def test_budget_price_rises_while_more_is_spent_than_there_is_and_falls_back_to_nothing():
    """
    At twice the budget it rises until the minute it is averaged over is past, then by η a second; at
    half of it, it falls, and stops at nothing.
    """
    options = PricingOptions(budget_usd_per_hour=10.0)

    minute = spending(20.0, int(3 * SPENDING_S), Prices(as_of_ms=NOW_MS), options)
    second = spending(20.0, 1, minute, options)
    after = spending(5.0, 600, second, options)

    assert minute.budget.load == pytest.approx(2.0, abs=0.11)
    rise = second.budget.log_price - minute.budget.log_price
    assert rise == pytest.approx(ASCENT.step_per_s * (second.budget.load - 1))
    assert after.budget.log_price == 0.0
    assert after.budget.load == pytest.approx(0.5, abs=0.01)


def test_spending_is_averaged_over_a_minute():
    """
    Feedback comes in lumps: a cent in one second is one sixtieth of itself in the mean.
    """
    options = PricingOptions(budget_usd_per_hour=10.0)

    after = begun().advanced(fleet(word(0.0)), 0.01, NOW_MS, options)

    assert after.budget.load == pytest.approx(0.01 * 3600 / 10.0 / SPENDING_S)
    assert after.spent_usd == 0.01


def test_spending_that_is_counted_anew_is_no_spending():
    """
    Fewer trainers count less than before; a load below nothing would be none.
    """
    options = PricingOptions(budget_usd_per_hour=10.0)

    after = begun(spent_usd=50.0).advanced(fleet(word(0.0)), 10.0, NOW_MS, options)

    assert after.budget == Price(0.0, 0.0)
    assert after.spent_usd == 10.0


def test_without_a_budget_or_a_cap_neither_has_a_price():
    prices = begun(budget=Price(1.0, 0.0), power=Price(1.0, 2.0))

    after = prices.advanced(fleet(word(0.5, watts=1e6)), 1e6, NOW_MS, OPTIONS)

    empty = -1.0 - ASCENT.room_factor * ASCENT.room_from
    falling = Price(pytest.approx(1.0 + ASCENT.step_per_s * empty), 0.0)
    assert (after.budget, after.power) == (falling, falling)


def test_power_price_follows_all_pools_watts():
    """
    Two pools of 600 W under a cap of 1,000 W: a load of 1.2.
    """
    state = fleet(word(0.5, watts=600.0), reported("q", NOW_MS, load=0.5, watts=600.0))
    options = PricingOptions(power_w_max=1000.0)

    after = begun().advanced(state, 0.0, NOW_MS, options)
    slack = replace(after, as_of_ms=NOW_MS - PERIOD_MS).advanced(
        fleet(word(0.5, watts=100.0)), 0.0, NOW_MS, options
    )

    assert after.power == Price(pytest.approx(ASCENT.step_per_s * 0.2), pytest.approx(1.2))
    assert slack.power.log_price == 0.0


# --- the fold --------------------------------------------------------------------------------------

WORDS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 400, 999, 1000, 1700, 15_000]),  # ms since the last one
        st.sampled_from(["p", "q"]),
        st.none() | st.sampled_from([0.0, 0.3, 0.85, 1.4, 80.0, 1e9]),
        st.floats(0, 900),
    ),
    min_size=1,
    max_size=30,
)  # fmt: skip


@given(words=WORDS, sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4))
@lightly
def test_prices_do_not_depend_on_how_many_records_a_step_reads(words, sizes):
    """
    Time is the log's, so the same records make the same bits, read one by one or all at once, by
    one process or by one that was started again half-way from what was saved.
    """
    pricing = PricingOptions(power_w_max=1000.0, budget_usd_per_hour=1.0)
    log = MemoryLog(Storage(1), lambda: NOW_MS)
    at_ms, last = NOW_MS, {}
    for gap_ms, pool, load, watts in words:
        at_ms += gap_ms
        last[pool] = max(last.get(pool, 0) + 1, at_ms)
        ((key, value),) = encode([reported(pool, last[pool], load=load, watts=watts)])
        log.place(TELEMETRY, 0, value, key=key, at_ms=at_ms)

    def folded(sizes: list[int]) -> State:
        state, left = State(encoder=ENCODER, learned=Learned(MEMORY)), list(sizes)
        while True:
            # Another process: what it knows is in the state alone.
            state.prices = Prices.from_dict(json.loads(json.dumps(state.prices.as_dict())))
            fold = TelemetryFold(
                log, state, left[0], NOW_MS, pricing, lambda: {"spent_nano_usd.a": 10**9}
            )
            left.append(left.pop(0))
            passed = fold.step(NOW_MS)
            fold.close()
            if not passed:
                return state

    found, expected = folded(sizes), folded([100])

    assert bits(found.prices) == bits(expected.prices)
    assert found.fleet == expected.fleet


def bits(prices: Prices) -> str:
    return repr(prices)  # of a float, repr says every bit


@pytest.mark.parametrize("after_ms", [FORGOTTEN_MS + 5000, 86_400_000])
def test_scarcity_outlasts_a_log_that_was_away_and_a_clock_that_jumps_but_no_restart(after_ms):
    """
    All look alike to the clock. But those who report are the same processes, or others.
    """

    def after(replica: str) -> Prices:
        state = State(encoder=ENCODER, learned=Learned(MEMORY))
        log = MemoryLog(Storage(1), lambda: NOW_MS)
        for ms, who in ((0, "r"), (1000, "r"), (after_ms, replica)):
            ((key, value),) = encode([reported("p", NOW_MS + ms, who, load=3 * LOAD)])
            log.place(TELEMETRY, 0, value, key=key, at_ms=NOW_MS + ms)
        state.fleet = fleet(reported("p", NOW_MS - 1, "r"), at_ms=NOW_MS - 1)
        state.prices = begun(capacity={"p": Price(1.0, 2.0)})
        TelemetryFold(log, state, 100, NOW_MS).step(NOW_MS)
        return state.prices

    assert after("r").capacity["p"].log_price > 1.0
    assert after("another").capacity == {}


def test_prices_are_advanced_by_what_was_folded_before():
    """
    The record that ends a second is of the next one.
    """
    state = State(encoder=ENCODER, learned=Learned(MEMORY))
    log = MemoryLog(Storage(1), lambda: NOW_MS)
    for after_ms, load in ((0, LOAD), (500, 2 * LOAD), (1000, 3 * LOAD)):
        ((key, value),) = encode([reported("p", NOW_MS + after_ms, load=load)])
        log.place(TELEMETRY, 0, value, key=key, at_ms=NOW_MS + after_ms)

    TelemetryFold(log, state, 100, NOW_MS).step(NOW_MS)

    assert state.prices.as_of_ms == NOW_MS + 1000
    assert state.prices.capacity["p"] == Price(pytest.approx(ASCENT.step_per_s), 2.0)


# --- snapshots -------------------------------------------------------------------------------------

FLOATS = st.floats(0, 100, allow_nan=False)
PRICE = st.builds(Price, FLOATS, FLOATS)
PRICES = st.builds(
    Prices,
    as_of_ms=st.integers(0, 2**53),
    capacity=st.dictionaries(st.text(min_size=1, max_size=9), PRICE, max_size=5),
    budget=PRICE,
    power=PRICE,
    spent_usd=st.floats(0, 1e12),
)


@given(prices=PRICES)
@lightly
def test_prices_survive_json_to_the_last_bit(prices):
    again = Prices.from_dict(json.loads(json.dumps(prices.as_dict())))

    assert bits(again) == bits(prices)


@pytest.fixture
def store(tmp_path) -> Store:
    found = Store(Folder(str(tmp_path)))
    found.claim()
    return found


def state_with(prices: Prices) -> State:
    return State(encoder=ENCODER, learned=Learned(MEMORY), prices=prices)


def test_prices_are_in_a_snapshot(store):
    prices = begun(capacity={"p": Price(0.1 + 0.2, 1 / 3)}, budget=Price(0.7, 1.1), spent_usd=2 / 3)

    Saver(store).save(state_with(prices), NOW_MS)

    for with_seen in (True, False):
        state, _ = Loader(store, ENCODER, MEMORY, with_seen=with_seen).load_newest()
        assert bits(state.prices) == bits(prices)


def test_a_snapshot_of_before_there_were_prices_loads(store, monkeypatch):
    publish = store.publish

    def without(about, blobs):
        return publish({n: v for n, v in about.items() if n != "prices"}, blobs)

    monkeypatch.setattr(store, "publish", without)
    Saver(store).save(state_with(begun(capacity={"p": Price(1.0, 1.0)})), NOW_MS)

    state, manifest = Loader(store, ENCODER, MEMORY).load_newest()

    assert "prices" not in manifest.about
    assert state.prices == Prices()


@pytest.mark.parametrize("n", [1, 3])
def test_another_number_of_trainers_keeps_prices_and_begins_to_count_spending_anew(tmp_path, n):
    """
    Prices are the first shard's. What all spent until then, counted as its own times their number,
    would be a fortune spent in a second.
    """
    site = Site(tmp_path, written(misplaced=False))
    trainers, merger = site.trainers(2)
    trainers[0].state.prices = Prices(
        as_of_ms=NOW_MS, capacity={"p": Price(1.5, 1.0)}, budget=Price(0.5, 1.0), spent_usd=1.0
    )
    finish(trainers, merger)
    assert site.published().prices == trainers[0].state.prices

    again, _ = site.trainers(n)

    first = again[0].state.prices
    assert first.capacity == {"p": Price(1.5, 1.0)}
    assert first.due(0) is False
    assert first.advanced(fleet(word(0.5)), 1e6, NOW_MS, OPTIONS).budget == Price(0.5, 1.0)
    assert all(trainer.state.prices == Prices() for trainer in again[1:])
    assert SHARDED.pricing == OPTIONS


def test_loads_come_out_of_the_log_as_finite_numbers():
    """
    So nothing in a record can make a price that is none.
    """
    rng = np.random.default_rng(0)
    prices = begun()
    for _ in range(200):
        load = float(rng.choice([0.0, 1e-300, 99.0, 101.0, 1e9]))
        at_ms = prices.as_of_ms + PERIOD_MS
        state = fleet(reported("p", at_ms, load=load, watts=1e9), at_ms=at_ms)
        prices = prices.advanced(state, 1e12, at_ms, PricingOptions(power_w_max=1e-3))
        found = [*prices.capacity.values(), prices.budget, prices.power]
        assert all(0.0 <= one.log_price <= ASCENT.z_max for one in found)


# --- what is reported can't be trusted to come evenly ---------------------------------------------


@pytest.mark.parametrize("usd", [0.01, 1.0, 100.0, 1e6])
@pytest.mark.parametrize("flow_share", [0.0, 0.5])
def test_one_report_moves_the_price_of_money_by_little(usd, flow_share):
    """
    However much it says: for who spends half of the budget, 1 + m rises by a fifth at the most in
    the ten minutes after it, and is back within hours.
    """
    budget = 10.0
    options = PricingOptions(budget_usd_per_hour=budget)
    prices, spent, multiples = Prices(as_of_ms=NOW_MS), 0.0, []
    for second in range(1, 4 * 3600):
        spent += flow_share * budget / 3600.0 + (usd if second == 60 else 0.0)
        at_ms = NOW_MS + 1000 * second
        prices = prices.advanced(_reported(at_ms), spent, at_ms, options)
        multiples.append(1.0 + prices.budget.charged(options.ascent))
    assert max(multiples[:600]) <= 1.2
    assert max(multiples) <= 1.2
    assert prices.budget.multiple() == pytest.approx(0.0, abs=1e-9)


def test_a_budget_that_is_overspent_evenly_is_priced_in_full():
    """
    Twice the budget, in calls of a few cents: the price rises as if nothing were carried over.
    """
    options = PricingOptions(budget_usd_per_hour=10.0)
    prices, spent = Prices(as_of_ms=NOW_MS), 0.0
    for second in range(1, 600):
        spent += 2 * 10.0 / 3600.0
        at_ms = NOW_MS + 1000 * second
        prices = prices.advanced(_reported(at_ms), spent, at_ms, options)
    assert prices.carried_usd == 0.0
    assert prices.budget.load == pytest.approx(2.0, rel=1e-3)
    assert prices.budget.multiple() > 100.0


def _reported(at_ms: int) -> FleetState:
    """Telemetry that was just there, and says nothing."""
    fleet = FleetState()
    fleet._opened().received_ms = at_ms
    return fleet
