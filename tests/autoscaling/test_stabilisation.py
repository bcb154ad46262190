"""How long what is not needed is kept, and what is wanted waits."""

from __future__ import annotations

import json

import pytest
from autoscaled import QUALITY, TARGET, USD, World, fleet, planner, rates

from infra.autoscaling.planner import Planner
from infra.autoscaling.sizing.cold_starts import stated_s
from infra.autoscaling.sizing.mix import MixOptions
from infra.autoscaling.sizing.sizing import SizingOptions
from infra.autoscaling.sizing.stabilisation import (
    Limits,
    StabilisationOptions,
    StabilisationWindow,
)

OPTIONS = StabilisationOptions(down_s=600.0, agreed_s=180.0, fresh_s=0.0)
POOLS = {"cheap": 300.0, "dear": 200.0, "quick": 50.0, "free": 1e9}
LIMITS = {name: Limits(gpu=name, gpus_per_replica=1, least=0, most=9) for name in POOLS}
GPUS = dict.fromkeys(POOLS, 9)


def settled_s(needed: int, *, at_once: bool = True) -> dict[str, float]:
    """When each pool, with two replicas at first, has as many as are needed."""
    window, now, found = StabilisationWindow(OPTIONS), dict.fromkeys(POOLS, 2), {}
    for at_s in range(0, 900, 10):
        want = dict.fromkeys(POOLS, 2 if at_s == 0 else needed)
        now = window.settle(float(at_s), now, want, LIMITS, GPUS, (), at_once, POOLS)
        window.planned(float(at_s), now)
        found |= {name: at_s for name, n in now.items() if n == needed and name not in found}
    return found


def test_each_pool_is_kept_for_its_own_time_and_none_for_ever():
    assert settled_s(1) == {"cheap": 300.0, "dear": 200.0, "quick": 180.0, "free": 600.0}


def test_what_only_saves_money_waits_alike_in_all_pools():
    assert settled_s(3, at_once=False) == dict.fromkeys(POOLS, 180.0)


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
