"""How long replicas take to start is measured, and planned with; so is how long they are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from autoscaled import QUALITY, TARGET, USD, World, fleet, planner, rates

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.planner import Planner
from infra.autoscaling.sizing.cold_starts import ColdStarts, stated_s
from infra.autoscaling.sizing.mix import MixOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.autoscaling.sizing.stabilisation import (
    Limits,
    StabilisationOptions,
    StabilisationWindow,
)

POOL, STATED_S, STEP_S = "small-h100", 120.0, 5.0
POOLS = {pool.name: pool for pool in fleet().pools}


class Starting:
    """Starts of one pool, each of which takes as long as it does."""

    def __init__(self, remembered: object = None) -> None:
        self.measured = ColdStarts(POOLS, remembered)
        self.at_s = 0.0
        self.ready = 0
        self.see()

    def see(self, starting: int = 0) -> None:
        condition = PoolCondition(ready=self.ready, starting=starting)
        self.measured.observe(self.at_s, {POOL: condition})

    def start(self, *takes_s: float) -> None:
        """All at once."""
        began_s, left = self.at_s, sorted(takes_s)
        while left:
            self.see(starting=len(left))
            self.at_s += STEP_S
            came = [one for one in left if self.at_s - began_s >= one]
            left, self.ready = left[len(came) :], self.ready + len(came)
        self.see()

    @property
    def start_s(self) -> float:
        return self.measured.start_s(POOL)


@pytest.mark.parametrize(
    ("takes_s", "planned_s"),
    [
        ((), STATED_S),
        ((300.0,), STATED_S),  # once is chance
        ((300.0, 300.0), 300.0),
        ((125.0,) * 8, STATED_S),  # as stated
        ((40.0,) * 5, STATED_S),  # shorter: believed when most of eight are
        ((40.0,) * 6, 40.0),
        ((300.0,) * 8 + (7200.0,), 300.0),  # a machine that did not come for hours
        ((300.0,) * 8 + (60.0,) * 2, 300.0),  # a machine that was warm
    ],
)
def test_what_starts_take_is_what_is_planned_with(takes_s, planned_s):
    one = Starting()
    for each_s in takes_s:
        one.start(each_s)

    assert one.start_s == planned_s


def test_replicas_that_start_together_are_each_measured():
    one = Starting()
    one.start(250.0, 300.0, 350.0)

    assert one.measured.as_dict()[POOL][1] == [250.0, 300.0, 350.0]


def test_what_was_not_seen_to_begin_is_not_measured():
    """At the first look, and after telemetry was away; nor what was given up."""
    one = Starting()
    one.see(starting=1)
    one.measured.resume()
    one.at_s += 900.0
    one.see(starting=1)
    one.ready = 1
    one.see()
    one.see(starting=1)
    one.at_s += 900.0
    one.see()

    assert one.measured.as_dict().get(POOL, [None, []])[1] == []


def test_it_is_remembered_until_the_pool_is_another():
    one = Starting()
    one.start(300.0)
    one.start(300.0)
    remembered = json.loads(json.dumps(one.measured.as_dict()))

    assert Starting(remembered).start_s == 300.0
    other = POOLS | {POOL: replace(POOLS[POOL], model="another")}
    assert ColdStarts(other, remembered).start_s(POOL) == STATED_S


def test_demand_is_forecast_for_when_a_replica_is_really_ready():
    """Machines that take five times as long as stated: the planner looks that far ahead."""
    world = World()
    for _ in range(3):
        for ready, starting, times in ((0, 1, 60), (1, 0, 1), (0, 0, 1)):
            world.conditions[POOL] = PoolCondition(ready=ready, starting=starting)
            world.run(10.0 * times, small=10.0)

    assert world.planner.knows["start_s"][POOL] == 600.0
    again = planner(remembered=json.loads(json.dumps(world.planner.as_dict())))
    assert again.knows["start_s"] == world.planner.knows["start_s"]
    del world.conditions[POOL]
    world.run(300.0, small=100.0)
    assert any(
        line.startswith(f"{POOL}: ") and "expected in 10 min" in line for line in world.lines
    )


# --- how long what is not needed is kept, and what is wanted waits

OPTIONS = StabilisationOptions(down_s=600.0, agreed_s=180.0, fresh_s=0.0)
KEPT_S = {"cheap": 300.0, "dear": 200.0, "quick": 50.0, "free": 1e9}
LIMITS = {name: Limits(gpu=name, gpus_per_replica=1, least=0, most=9) for name in KEPT_S}
GPUS = dict.fromkeys(KEPT_S, 9)


def settled_s(needed: int, *, at_once: bool = True) -> dict[str, float]:
    """When each pool, with two replicas at first, has as many as are needed."""
    window, now, found = StabilisationWindow(OPTIONS), dict.fromkeys(KEPT_S, 2), {}
    for at_s in range(0, 900, 10):
        want = dict.fromkeys(KEPT_S, 2 if at_s == 0 else needed)
        now = window.settle(float(at_s), now, want, LIMITS, GPUS, (), at_once, KEPT_S)
        window.planned(float(at_s), now)
        found |= {name: at_s for name, n in now.items() if n == needed and name not in found}
    return found


def test_each_pool_is_kept_for_its_own_time_and_none_for_ever():
    assert settled_s(1) == {"cheap": 300.0, "dear": 200.0, "quick": 180.0, "free": 600.0}


def test_what_only_saves_money_waits_alike_in_all_pools():
    assert settled_s(3, at_once=False) == dict.fromkeys(KEPT_S, 180.0)


def test_a_replica_is_kept_until_its_rent_is_what_another_start_would_cost():
    """
    The ski-rental problem: rent until it would be ready again, and a change.
    """
    world = World()
    world.run(10, small=1.0)
    found = world.planner._down_s()

    for pool in fleet().pools:
        rent_usd = USD[pool.gpu.name] / 3600.0 * pool.gpus_per_replica
        another_usd = MixOptions().change_usd + rent_usd * (stated_s(pool) + SizingOptions().lead_s)
        assert found[pool.name] * rent_usd == pytest.approx(another_usd)
    assert found["small-l4"] > found["small-h100"]


def test_gpus_without_a_price_are_kept_as_long_as_any():
    free = World(usd_per_hour=dict.fromkeys(USD, 0.0))
    free.run(10, small=1.0)

    assert set(free.planner._down_s().values()) == {float("inf")}


def test_margins_are_guesses_until_a_planner_has_gone_on_for_ten_minutes():
    """
    One that remembers has them at once.
    """
    world = World(planner=Planner(fleet(), rates(), TARGET, QUALITY))
    world.run(500, small=100.0)
    assert not world.planner._sizing.margins_measured
    world.run(120, small=100.0)
    assert world.planner._sizing.margins_measured

    saved = json.loads(json.dumps(world.planner.as_dict()))
    world.planner = Planner(fleet(), rates(), TARGET, QUALITY, remembered=saved)
    world.run(10, small=100.0)
    assert world.planner._sizing.margins_measured


def test_two_margins_against_different_things_are_not_added():
    """
    For what a minute swings by and for what a forecast is off by: the root of their squares.
    """
    sizing = planner()._sizing
    swing = 1.0 / SizingOptions().filled - 1.0

    assert sizing._filled(0.0) == pytest.approx(SizingOptions().filled)
    assert 1.2 / sizing._filled(0.2) == pytest.approx(1.0 + (0.2**2 + swing**2) ** 0.5)
    sizing.margins_measured = False
    assert sizing._filled(0.2) == SizingOptions().filled


def test_the_margin_is_of_those_who_want_the_model():
    world = World()
    for k in range(60):
        world.run(60, small=100.0 * (1.2 if k % 2 else 0.8), large=20.0)
    problem = []
    sizing = world.planner._sizing
    sizing._last.holds = lambda asked: problem.append(asked)
    world.run(10, small=100.0, large=20.0)

    load = problem[-1].load
    names = sizing._names
    small = load.margin(names.index("small-h100"), "small")
    assert small > load.margin(names.index("large-h100"), "large") >= 0.0
    assert small > 0.05
    assert load.margin(0, "nobody") == 0.0
