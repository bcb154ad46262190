"""Independent sizing, in the small world of the planner's own tests."""

from __future__ import annotations

from autoscaled import QUALITY, TARGET, USD, World, fleet, rates

from infra.autoscaling.planner import PlannerOptions
from load.bench.fleet.independent import IndependentPlanner


def test_each_pool_is_sized_for_what_it_got():
    """Blind to prices and substitutes: what is decided for a pool is what it is given."""
    planner = IndependentPlanner(fleet(), rates(), TARGET, QUALITY, PlannerOptions())
    world = World(planner=planner)
    assert world.run(60, small=20.0)["small-l4"] == 1  # where it is cheapest to begin
    world.changed("small-l4", ready=1, requests_per_s=20.0)
    world.usd_per_hour = USD | {"l4": 40.0}
    plan = world.run(600, small=20.0)  # longer, and replicas that never start count as missing
    work = 20.0 * rates()["small-l4"].work_s(1000.0, output_tokens=200.0)
    assert work < plan["small-l4"] < 2.5 * work
    assert plan["small-h100"] == 0
