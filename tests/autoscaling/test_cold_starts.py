"""How long replicas take to start is measured, and planned with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from autoscaled import World, fleet, planner

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.sizing.cold_starts import ColdStarts

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
