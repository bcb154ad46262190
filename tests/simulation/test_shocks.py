"""The whole system under shocks, in virtual time: what docs/autoscaling.md says of each, shown.

Router, trainer, prices, planner and emulated pools are those that serve (`shocked_world`). A
machine takes 40 s to come and a model 30 to 60 s to load; a plan is made every 5 s.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from autoscaled import World, demand
from shocked_world import (
    LARGE,
    LARGE_EU,
    LARGE_US,
    LOW,
    MIDDLE,
    SMALL,
    SMALL_EU,
    SMALL_US,
    STARTUP_S,
    STEP_S,
    TOP,
    Shocked,
    capacity_per_s,
    fleet,
    run,
    traffic,
)

from infra.autoscaling.sizing.stabilisation import StabilisationOptions
from load.simulation.loop.results import Fate
from load.simulation.machines.fleet import unix_ms
from load.simulation.shocks import (
    Available,
    Garbled,
    RegionBack,
    RegionLost,
    Repriced,
    Shock,
    Silent,
)
from streams.telemetry.fleet_view import workload
from streams.telemetry.pool_reports import LOAD_MAX
from streams.training.telemetry_fold import BAD

STRUCK_S = 202.0
READY_S = STARTUP_S + 60.0 + 2 * STEP_S  # from a plan to a large model's replica that answers
FULL = 0.7  # of what a replica carries, the least that the planner uses
DELAY_S = StabilisationOptions().down_s


# --- what holds of every run


def orderly(found: Shocked, peak_per_s: float) -> None:
    """No request without a fate, no class refused before the one below, no runaway scaling."""
    requests = found.run.requests
    assert sum(found.run.count(fate) for fate in Fate) == len(found.run.traffic)
    assert found.run.count(Fate.UNFINISHED) == 0 and requests.tried.max() <= 2
    end_s = found.run.end_s
    top, middle, low = (found.refused(0.0, end_s, of) for of in (TOP, MIDDLE, LOW))
    assert top == 0.0 and middle <= low
    bounded(found, peak_per_s)


def bounded(found: Shocked, peak_per_s: float) -> None:
    """Never more than half as much again as the demand explains, and few changes."""
    plans = [dict(plan.replicas) for _, plan in sorted(found.watched.plans.items())]
    carries = capacity_per_s()
    for model in (SMALL, LARGE):
        pools = [pool for pool in carries if pool.startswith(model)]
        one_each = sum(carries[pool] for pool in pools)
        most = max(sum(plan[pool] * carries[pool] for pool in pools) for plan in plans)
        assert most <= 1.5 * peak_per_s / FULL + one_each
    for pool in plans[0]:
        assert turns([plan[pool] for plan in plans]) <= 2, f"{pool} goes to and fro"
    assert found.changes(0.0, found.run.end_s) <= 24


def turns(counts: list[int]) -> int:
    """How often a series of counts turns from growing to shrinking, or back."""
    steps = [np.sign(after - before) for before, after in pairwise(counts) if after != before]
    return sum(one != other for one, other in pairwise(steps))


def steady(seconds: float, per_s: float = 14.0) -> list[tuple[float, float]]:
    """The same rate all the time."""
    return [(0.0, per_s), (seconds, per_s)]


# --- load five times as high within ten seconds


@cache
def flood() -> Shocked:
    """8 requests a second, 40 from 110 s to 330 s, 8 again."""
    rates = [(0, 8), (100, 8), (110, 40), (330, 40), (340, 8), (640, 8)]
    return run(traffic(rates), tick_s=0.2)


def test_load_times_five_does_not_make_it_run_away():
    orderly(flood(), peak_per_s=40.0)


def test_load_times_five_goes_to_what_has_room_and_refuses_the_lowest_first():
    found = flood()

    assert found.large(0.0, 100.0) > 0.85
    assert found.large(120.0, 200.0) < 0.8
    low, middle, top = (found.refused(110.0, 300.0, of) for of in (LOW, MIDDLE, TOP))
    assert low > 0.3 and low > 3 * middle and top == 0.0


def test_load_times_five_keeps_most_of_the_highest_class_within_target():
    """
    What comes before prices have risen is queued: so late are some in the first two minutes.
    """
    found = flood()

    assert found.within(110.0, 330.0, TOP) > 0.8
    assert found.within(230.0, 330.0, TOP) > 0.97


def test_load_times_five_grows_the_fleet_at_once_and_within_the_limits_of_growth():
    found, options = flood(), StabilisationOptions()

    plans = {at_s: plan.replicas for at_s, plan in found.watched.plans.items()}
    assert found.planned(140.0)[LARGE_EU] > found.planned(100.0)[LARGE_EU]
    for at_s, plan in plans.items():
        past = [plans[t] for t in plans if at_s - options.grow_s <= t <= at_s]
        for pool, n in plan.items():
            least = min(one[pool] for one in past)
            assert n <= options.grow_factor * least + options.grow_least


def test_when_load_falls_quality_and_admission_return_and_replicas_go_after_the_delay():
    found = flood()

    most = sum(found.planned(335.0).values())
    assert found.fewer(110.0, 335.0 + DELAY_S) == 0
    assert sum(found.planned(640.0).values()) < most
    assert all(found.refused(340.0, 640.0, of) == 0.0 for of in (TOP, MIDDLE, LOW))
    assert found.quality(430.0, 640.0) == pytest.approx(found.quality(0.0, 100.0), abs=0.06)
    assert found.within(340.0, 640.0) > 0.99


# --- a type of GPU gone


@cache
def without_h200() -> Shocked:
    """All H200 are gone from 202 s on; they carried the large model."""
    gone = Shock(at_s=STRUCK_S, what=Available(gpu="h200_sxm", gpus=0))
    return run(traffic(steady(520.0)), [gone])


def test_gpu_type_that_goes_is_replaced_by_others_in_the_time_that_machines_take():
    found = without_h200()

    orderly(found, peak_per_s=14.0)
    plan = found.planned(STRUCK_S + 2 * STEP_S)
    assert plan[LARGE_EU] == 0 and plan[LARGE_US] >= 2
    since_s = STRUCK_S + READY_S + 20.0
    assert found.within(since_s, 520.0) > 0.99
    assert found.quality(since_s, 520.0) == pytest.approx(found.quality(0.0, 200.0), abs=0.06)
    assert any("its region or its GPUs are gone" in line for line in found.run.lines)


def test_pools_of_a_gone_gpu_type_are_not_chosen_and_the_small_model_answers_meanwhile():
    found = without_h200()

    requests = found.run.requests
    since = found.rows(STRUCK_S, 520.0)
    assert not (requests.pool[since] == found.pool(LARGE_EU)).any()
    assert found.watched.seen[300.0].pools[LARGE_EU].requests_per_s == 0.0
    assert found.large(STRUCK_S + 1.0, STRUCK_S + 80.0) == 0.0


def test_requests_in_a_pool_that_dies_are_tried_once_elsewhere():
    """
    Those without a first token, of which a rush leaves some; who has received the beginning of an
    answer learns of its end.
    """
    gone = Shock(at_s=38.0, what=Available(gpu="h200_sxm", gpus=0))
    found = run(traffic([(0, 12), (30, 12), (31, 30), (40, 30)]), [gone])

    requests = found.run.requests
    again, lost = requests.tried == 2, requests.fate == Fate.LOST
    assert again.sum() >= 5 and (requests.fate[again] == Fate.FINISHED).all()
    assert (requests.pool[again] == found.pool(SMALL_US)).all()
    assert lost.any() and (requests.tried[lost] == 1).all()
    assert np.isfinite(requests.ttft_s[lost]).all()


def test_highest_class_is_within_target_again_a_minute_after_gpus_went():
    """
    One replica of the small model is left for half as much again as it carries.
    """
    found = without_h200()

    assert found.within(STRUCK_S + 70.0, 520.0, TOP) > 0.97


# --- a price doubled


def test_doubled_price_moves_the_fleet_without_a_late_answer_and_stays_there():
    """
    H200 costs twice as much from 202 s on. Nothing is short, so it waits for the delay's plans to
    want the same, all of them; the old replicas stay until the new ones are ready.
    """
    double = Shock(at_s=STRUCK_S, what=Repriced(gpu="h200_sxm", usd_per_hour=5.2))
    found = run(traffic(steady(760.0)), [double], telemetry_s=2.0)

    orderly(found, peak_per_s=14.0)
    before, after = found.planned(STRUCK_S), found.planned(760.0)
    assert before[LARGE_EU] >= 1
    assert after[LARGE_EU] == 0 and after[LARGE_US] > before[LARGE_US]
    assert found.fewer(STRUCK_S, STRUCK_S + DELAY_S) == 0
    assert found.within_target_everywhere(30.0) > 0.97
    assert found.run.count(Fate.REFUSED) == 0
    since = found.rows(680.0, 760.0)
    assert (found.run.requests.pool[since] == found.pool(LARGE_US)).mean() > 0.8


# --- a region lost


def test_lost_region_is_made_up_for_and_used_again_when_it_is_back():
    """
    The other region has one replica's H100 alone: small models answer what that does not carry.
    """
    back_s = 402.0
    shocks = [
        Shock(at_s=STRUCK_S, what=RegionLost(region="eu")),
        Shock(at_s=back_s, what=RegionBack(region="eu")),
    ]
    found = run(traffic(steady(580.0)), shocks, fleet({"h100_sxm": 2}))

    orderly(found, peak_per_s=14.0)
    plan = found.planned(STRUCK_S + 2 * STEP_S)
    assert plan[LARGE_EU] == plan[SMALL_EU] == 0 and plan[LARGE_US] == 1
    without = found.rows(STRUCK_S, back_s)
    assert not (found.run.requests.pool[without] == found.pool(LARGE_EU)).any()
    assert found.within(STRUCK_S + 70.0, back_s, TOP) > 0.95
    assert 0.1 < found.large(330.0, back_s) < 0.8
    assert found.planned(back_s + 2 * STEP_S)[LARGE_EU] >= 1
    since_s = back_s + READY_S + 20.0
    assert found.large(since_s, 580.0) > 0.85
    assert found.within(since_s, 580.0) > 0.99


# --- telemetry silent


@cache
def silent() -> Shocked:
    """
    22 requests a second where the large model has two replicas at most: its pools have a price.
    No telemetry arrives from 202 s to 382 s; from 340 s on there are 30.
    """
    rates = [(0, 22), (330, 22), (340, 30), (540, 30)]
    there = fleet({"h100_sxm": 2, "h200_sxm": 2}, {SMALL_US: 2, LARGE_US: 1, LARGE_EU: 1})
    return run(traffic(rates), [Shock(at_s=STRUCK_S, what=Silent(for_s=180.0))], there)


def test_while_telemetry_is_silent_plan_and_prices_hold_and_decisions_go_on():
    found = silent()

    orderly(found, peak_per_s=30.0)
    seen = found.watched.seen[200.0]
    assert seen.pools[LARGE_US].price > 0.0 or seen.pools[LARGE_EU].price > 0.0
    prices = {
        tuple(pool.price for pool in observed.pools.values())
        for at_s, observed in found.watched.seen.items()
        if STRUCK_S + STEP_S <= at_s <= 380.0
    }
    assert len(prices) == 1
    assert found.changes(STRUCK_S + STEP_S, 382.0) == 0
    asked = found.rows(STRUCK_S, 382.0)
    assert (found.run.requests.fate[asked] == Fate.FINISHED).all()
    assert found.within(STRUCK_S, 330.0) > 0.99  # routers know what they sent themselves


def test_when_telemetry_is_back_planning_goes_on():
    found = silent()

    said = [line for line in found.run.lines if "telemetry" in line]
    assert ["nothing changes" in said[0], "planning goes on" in said[1], len(said)] == [1, 1, 2]
    assert sum(found.planned(480.0).values()) > sum(found.planned(380.0).values())
    assert found.within(500.0, 540.0, TOP) > 0.97


def test_after_a_silence_of_any_length_nothing_is_taken_away_at_once():
    """
    In the first minute after it rates are a part of what they are.
    """
    world = World()
    before = world.run(1200, small=50.0, large=20.0)
    world.telemetry_age_s = 400.0
    world.run(400, small=50.0, large=20.0)
    world.telemetry_age_s = 1.0
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        plan = world.step(demand("small", 50.0 * share), demand("large", 20.0 * share)).replicas
        assert all(plan[pool] >= before[pool] for pool in before)


# --- telemetry garbled


GARBLED_S, SOUND_S = 150.0, 460.0  # how long, and when the run ends


@cache
def garbled() -> Shocked:
    """Every record is broken, or absurd, from 202 s to 352 s."""
    return run(traffic(steady(SOUND_S)), [Shock(at_s=STRUCK_S, what=Garbled(for_s=GARBLED_S))])


@cache
def undisturbed() -> Shocked:
    """The same without that."""
    return run(traffic(steady(SOUND_S)))


def test_garbled_records_are_counted_and_absurd_numbers_are_not_believed():
    found = garbled()

    orderly(found, peak_per_s=14.0)
    counts = {name: n for name, n in found.state.counts.items() if name.startswith(BAD)}
    assert {name.removeprefix(BAD) for name in counts} >= {"not_json", "bad_field"}
    assert sum(counts.values()) > 250
    during = [o for at_s, o in found.watched.seen.items() if STRUCK_S + STEP_S <= at_s <= 350.0]
    assert max(pool.reports.load or 0.0 for o in during for pool in o.pools.values()) <= LOAD_MAX
    assert max(pool.price for o in during for pool in o.pools.values()) < 1.0


def test_garbled_telemetry_changes_no_replicas_that_would_not_change_without():
    found, plain = garbled(), undisturbed()

    for at_s in np.arange(STRUCK_S, SOUND_S, 20.0).tolist():
        with_it, without = found.planned(at_s), plain.planned(at_s)
        assert all(abs(with_it[pool] - without[pool]) <= 1 for pool in without), at_s
        assert sum(with_it.values()) >= sum(without.values()) - 1, at_s
    assert found.within_target_everywhere(30.0) > 0.97


# --- more than the whole fleet carries


RISE_S, TOP_S, FALL_S, END_S = 60.0, 240.0, 390.0, 560.0


@cache
def overload() -> Shocked:
    """Every GPU runs. It carries about 74 requests a second; 20 come, then 100, then 15."""
    gpus = {"l40s": 4, "l4": 4, "h100_sxm": 2, "h200_sxm": 4}
    all_of_it = {SMALL_US: 4, SMALL_EU: 2, LARGE_US: 1, LARGE_EU: 2}
    rates = [(0, 20), (RISE_S, 20), (TOP_S, 100), (FALL_S, 100), (FALL_S + 20, 15), (END_S, 15)]
    # A router decides within milliseconds of a request's arrival: a coarse tick is a delay.
    return run(traffic(rates), of=fleet(gpus, all_of_it), tick_s=0.2)


def test_beyond_the_fleet_quality_gives_way_before_anybody_is_refused():
    found = overload()

    first_s = float(found.run.traffic.at_s[found.run.requests.shed][0])
    assert RISE_S < first_s < TOP_S
    assert found.quality(first_s - 30.0, first_s) < found.quality(0.0, RISE_S) - 0.08
    assert found.large(0.0, RISE_S) > 0.85
    assert found.large(first_s - 30.0, first_s) < 0.6


def test_beyond_the_fleet_the_lowest_class_is_refused_most_and_the_highest_never():
    found = overload()

    low, middle, top = (found.refused(RISE_S, FALL_S, of) for of in (LOW, MIDDLE, TOP))
    assert low > middle > 0.0 and top == 0.0
    bounded(found, peak_per_s=100.0)


def test_beyond_the_fleet_the_highest_class_is_answered_in_time_once_prices_have_risen():
    found = overload()

    assert found.within(FALL_S - 60.0, FALL_S, TOP) > 0.85
    assert found.within(RISE_S, FALL_S, TOP) > 0.5


def test_what_is_refused_and_what_is_dear_is_seen_in_telemetry():
    found = overload()

    asked, requests = found.run.traffic, found.run.requests
    views = workload(found.state.fleet, unix_ms(found.run.end_s))
    for of, name in enumerate(asked.class_names):
        assert views[name].counts["shed"] == np.count_nonzero(requests.shed & (asked.classes == of))
        assert views[name].counts["arrivals"] == np.count_nonzero(asked.classes == of)
    assert min(found.price(FALL_S - 10.0, pool) for pool in capacity_per_s()) > 3.0


def test_when_load_falls_all_of_it_is_taken_back():
    """
    Within two minutes prices are at zero, nobody is refused, and the large model answers nearly
    all: by now the router has learned some prompts that the small one answers as well, so that
    quality is higher than before.
    """
    found, since_s = overload(), FALL_S + 100.0

    assert all(found.refused(since_s, END_S, of) == 0.0 for of in (TOP, MIDDLE, LOW))
    assert found.quality(since_s, END_S) > found.quality(0.0, RISE_S)
    assert found.large(since_s, END_S) > 0.85
    assert found.within(since_s, END_S) == 1.0
    assert all(price.multiple() < 0.3 for price in found.state.prices.capacity.values())


def test_the_same_shock_makes_the_same_bits():
    gone = Shock(at_s=20.0, what=Available(gpu="h200_sxm", gpus=0))
    first, second = (run(traffic(steady(60.0)), [gone]).run.digest() for _ in range(2))
    assert first == second
