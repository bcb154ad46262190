"""Replicas that never become ready are not waited for without end."""

from __future__ import annotations

import json

import pytest
from autoscaled import World, planner

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.planner import PlannerOptions

OPTIONS = PlannerOptions()
START_S = 120.0  # stated of every type
WAITED_S = START_S + OPTIONS.ready_s_max


class Stuck(World):
    """Replicas of some pools stay pending for ever, beyond those that were ready before."""

    stuck: tuple[str, ...] = ()
    ready = 0

    def run_stuck(self, seconds: float, small: float, large: float = 0.0) -> dict[str, int]:
        end_s, plan = self.at_s + seconds, {}
        while self.at_s < end_s:
            planned = self.plans[-1][1] if self.plans else {}
            for name in self.stuck:
                n = planned.get(name, 0)
                ready = min(n, self.ready)
                self.conditions[name] = PoolCondition(ready=ready, starting=n - ready)
            plan = self.run(self.step_s, small=small, large=large)
        return plan


def test_what_never_becomes_ready_is_planned_elsewhere_after_a_bounded_wait():
    """No cloud says that it has no H100 left: the replicas just stay pending."""
    world = Stuck()
    world.stuck = ("small-h100", "large-h100")
    assert world.run_stuck(300, small=100.0)["small-h100"] >= 2
    after = world.run_stuck(WAITED_S, small=100.0)
    assert after["small-h100"] == 0
    assert after["small-l4"] > 10
    (said,) = [line for line in world.lines if "none became ready" in line]
    assert said.startswith("small-h100: ") and "no more of h100 are planned for 1800 s" in said


def test_its_other_pools_of_that_place_are_not_tried_one_after_another():
    """The large model, first wanted while there is no H100, goes to a B200 at once."""
    world = Stuck()
    world.stuck = ("small-h100", "large-h100")
    world.run_stuck(WAITED_S + 300, small=100.0)
    plans = [world.run_stuck(10, small=100.0, large=40.0) for _ in range(20)]
    assert all(plan["large-h100"] == 0 for plan in plans)
    assert plans[-1]["large-b200"] > 0


def test_what_is_ready_there_is_kept():
    world = Stuck()
    world.stuck, world.ready = ("small-h100",), 1
    world.run_stuck(WAITED_S + 300, small=100.0)
    assert world.plans[-1][1]["small-h100"] == 1


def test_it_is_planned_again_after_a_while():
    world = Stuck()
    world.stuck = ("small-h100", "large-h100")
    world.run_stuck(WAITED_S + 300 + OPTIONS.without_s, small=100.0)
    assert sum("may be planned again" in line for line in world.lines) == 2
    # It has come back: what is planned there becomes ready as anywhere.
    world.stuck = ()
    world.conditions.clear()
    assert world.run(900, small=300.0)["small-h100"] >= 2


def test_what_starts_within_its_time_is_never_given_up():
    """Also where one comes after the other for an hour."""
    world = World()
    for k in range(12):
        world.run(300, small=20.0 + 20.0 * k, large=5.0)
    assert not any("none became ready" in line for line in world.lines)


def test_a_silence_of_telemetry_is_no_waiting():
    world = Stuck()
    world.stuck = ("small-h100", "large-h100")
    world.run_stuck(300, small=100.0)
    world.telemetry_age_s = 100.0
    world.run_stuck(WAITED_S, small=100.0)
    world.telemetry_age_s = 1.0
    world.run_stuck(60, small=100.0)
    assert not any("none became ready" in line for line in world.lines)


@pytest.mark.parametrize("after_s", [300.0, WAITED_S + 300.0])
def test_a_restart_of_the_planner_waits_no_longer(after_s):
    one, other = Stuck(), Stuck()
    for world in (one, other):
        world.stuck = ("small-h100", "large-h100")
        world.run_stuck(after_s, small=100.0)
    other.planner = planner(remembered=json.loads(json.dumps(other.planner.as_dict())))
    for world in (one, other):
        world.run_stuck(WAITED_S, small=100.0)
    assert one.plans == other.plans
