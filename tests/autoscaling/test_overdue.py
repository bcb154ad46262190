"""Replicas that never become ready are not waited for without end."""

from __future__ import annotations

import json

import pytest
from autoscaled import World, condition, planner

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.planner import PlannerOptions
from streams.telemetry.pool_reports import PoolReports

OPTIONS = PlannerOptions()
START_S = 120.0  # stated of every type
WAITED_S = START_S + OPTIONS.ready_s_max


class Stuck(World):
    """Replicas of some pools stay pending for ever, beyond those that were ready before."""

    stuck: tuple[str, ...] = ()
    ready = 0
    placed = False  # whether they have a machine, from which they report
    fails = False  # or end there before they can
    flickers = False  # every other step none starts: its server has just ended

    def run_stuck(self, seconds: float, small: float, large: float = 0.0) -> dict[str, int]:
        end_s, plan = self.at_s + seconds, {}
        while self.at_s < end_s:
            planned = self.plans[-1][1] if self.plans else {}
            for name in self.stuck:
                n = planned.get(name, 0)
                ready = min(n, self.ready)
                starts = n - ready if not self.flickers or self.at_s % 20.0 else 0
                reports = condition(state="starting").reports if self.placed else PoolReports()
                self.conditions[name] = PoolCondition(
                    ready=ready,
                    starting=starts,
                    reports=reports if starts else PoolReports(),
                    failing=self.fails,
                )
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


@pytest.mark.parametrize("flickers", [False, True])
@pytest.mark.parametrize("how", ["placed", "fails"])
def test_a_server_that_does_not_start_is_given_up_alone(how, flickers):
    """It has its machine, so that there are some: the large model is planned on that type still."""
    world = Stuck()
    world.stuck, world.flickers = ("small-h100",), flickers
    setattr(world, how, True)
    world.run_stuck(WAITED_S + 300, small=100.0)
    assert world.plans[-1][1]["small-h100"] == 0
    assert world.run_stuck(300, small=100.0, large=40.0)["large-h100"] > 0
    (said,) = [line for line in world.lines if "none became ready" in line]
    assert "replicas have a machine" in said and "no more of small-h100 are planned" in said


def test_what_is_waited_for_and_what_was_given_up_are_conditions():
    """From when a start takes longer than starts do; until it has come, or is tried again."""
    world = Stuck()
    world.stuck = ("small-h100",)
    world.run_stuck(100, small=100.0)
    assert world.planner.step(world.observed()).conditions == ()
    world.run_stuck(200, small=100.0)
    (waits,) = world.planner.step(world.observed()).conditions
    assert (waits.pool, waits.kind, waits.given_up) == ("small-h100", "no_machine", False)
    world.run_stuck(WAITED_S, small=100.0)
    (gone,) = world.planner.step(world.observed()).conditions
    assert (gone.pool, gone.kind, gone.given_up) == ("small-h100", "no_machine", True)
    assert "no more of h100 are planned" in gone.cause and gone.since_ms == waits.since_ms
    world.conditions["small-h100"] = PoolCondition(ready=1)
    assert world.planner.step(world.observed()).conditions == ()


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
