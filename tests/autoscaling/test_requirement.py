"""What may not go, and what can wait: loads, replicas and demand of two pools, by hand."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from autoscaled import condition
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.sizing.requirement import (
    Requirement,
    capacity_shortfall,
    fullness,
    pools_to_keep,
    requirement_of,
)
from infra.autoscaling.sizing.stabilisation import (
    Limits,
    StabilisationOptions,
    StabilisationWindow,
)
from infra.capacity.fleet import PoolPlan

# Half a second of work a request; full at a load of 0.8: 1.6 requests/s a replica.
ALIKE = {"a": SimpleNamespace(model="m"), "b": SimpleNamespace(model="m")}
OTHERS = {"a": SimpleNamespace(model="m"), "b": SimpleNamespace(model="other")}
EACH = 1.6


def required(a: int, b: int = 0, **changes: object) -> Requirement:
    plain = {
        "replicas": {"a": a, "b": b},
        "load_max": {"a": 0.8, "b": 0.8},
        "work_s": {"a": 0.5, "b": 0.5},
        "rate": {},
        "lead_s": {},
        "demand": {"m": 4.0},
        "carried": {"m": 4.0},
        "demand_now": {"m": 4.0},
    }
    of = {**plain, **changes}
    return Requirement(**{"likely": of["demand"], **of})


def there(ready: int, load: float | None = None) -> PoolCondition:
    return condition(ready, load=load)


def test_replicas_stay_until_those_that_replace_them_are_ready():
    """Three of a are to become three of b: not before they are there."""
    wanted = required(0, 3)
    assert pools_to_keep(ALIKE, wanted, {"a": there(3), "b": there(0)}) == {"a", "b"}
    assert pools_to_keep(ALIKE, wanted, {"a": there(3), "b": there(2)}) == {"a", "b"}
    assert pools_to_keep(ALIKE, wanted, {"a": there(3), "b": there(3)}) == set()


def test_how_full_a_pool_is_thought_to_be():
    """2.4 requests/s of half a second for two replicas, each of which may have 0.8 of a second."""
    pools = {"a": replace(there(2), requests_per_s=2.4), "b": there(0), "new": there(1)}
    assert fullness(required(2), pools) == {"a": pytest.approx(0.75)}


def test_what_waits_for_another_model_stays_too():
    """The small model's replicas are to make way for the large one's, which is not there yet."""
    wanted = required(3, 0)
    assert pools_to_keep(OTHERS, wanted, {"a": there(0), "b": there(3)}) == {"a", "b"}
    assert pools_to_keep(OTHERS, wanted, {"a": there(3), "b": there(3)}) == set()


def test_only_what_is_asked_for_now_is_waited_for():
    """Twice of it is expected in a while: half of the replicas that come are enough."""
    wanted = required(0, 4, demand={"m": 6.0}, carried={"m": 6.0}, demand_now={"m": 3.0})
    assert pools_to_keep(ALIKE, wanted, {"a": there(4), "b": there(2)}) == set()
    assert pools_to_keep(ALIKE, wanted, {"a": there(4), "b": there(1)}) == {"a", "b"}


def test_nothing_goes_if_the_rest_would_be_overloaded():
    """Four at 0.6 are 2.4 full replicas, whatever was thought of the work: two cannot do that."""
    busy, idle = {"a": there(4, 0.6)}, {"a": there(4, 0.4)}
    little = {"demand": {"m": 1.0}, "carried": {"m": 1.0}, "demand_now": {"m": 1.0}}
    assert pools_to_keep(ALIKE, required(2, **little), busy) == {"a", "b"}
    assert pools_to_keep(ALIKE, required(3, **little), busy) == set()
    assert pools_to_keep(ALIKE, required(2, **little), idle) == set()


def test_a_load_is_a_share_of_how_full_a_pool_may_be():
    """Four at a load of 0.6 carry 0.6 · 4 · 1.6 requests/s: pools are compared in these."""
    of = {"demand": {"m": 1.0}, "carried": {"m": 1.0}, "demand_now": {"m": 1.0}}
    pools = {"a": there(4, 0.6), "b": there(3)}
    alike = required(0, 3, **of)
    assert pools_to_keep(ALIKE, alike, pools) == set()
    slower = required(0, 3, load_max={"a": 0.8, "b": 0.6}, **of)
    assert pools_to_keep(ALIKE, slower, pools) == {"a", "b"}


def test_what_others_are_to_take_need_not_be_carried():
    """Of four requests/s that prefer the model another one is to answer three."""
    wanted = required(1, 0, demand={"m": 4.0}, carried={"m": 1.0}, demand_now={"m": 4.0})
    assert pools_to_keep(ALIKE, wanted, {"a": there(4, 0.9)}) == set()


def test_who_stands_by_for_a_margin_takes_nothing_of_what_comes():
    """
    Two a second come, two more may; those another model is to answer. One replica is too little for
    what comes, and nothing goes before what replaces it is there.
    """
    of = {"demand": {"m": 4.0}, "likely": {"m": 2.0}, "carried": {"m": 2.0}}
    wanted = required(1, demand_now={"m": 2.0}, **of)
    assert pools_to_keep(ALIKE, wanted, {"a": there(2, 0.7)}) == {"a", "b"}
    swapped = required(0, 2, demand_now={"m": 2.0}, **of)
    assert pools_to_keep(ALIKE, swapped, {"a": there(2), "b": there(1)}) == {"a", "b"}
    assert pools_to_keep(ALIKE, swapped, {"a": there(2), "b": there(2)}) == set()


def test_what_was_kept_before_margins_were_apart_is_read():
    saved = asdict(required(2))
    del saved["likely"]
    assert Requirement.restored(saved) == required(2)


@pytest.mark.parametrize("load", [None, math.nan, math.inf, -1.0])
def test_a_load_that_is_none_holds_nothing(load):
    """It is not known that anything is carried."""
    of = {"demand": {"m": 1.0}, "carried": {"m": 1.0}, "demand_now": {"m": 1.0}}
    assert pools_to_keep(ALIKE, required(1, **of), {"a": there(4, load)}) == set()


@given(n=st.integers(0, 20), ready=st.integers(0, 20), load=st.floats(0, 3))
@lightly
def test_with_more_to_stay_nothing_more_is_held(n, ready, load):
    """And who keeps all that is ready, and waits for nothing, holds nothing."""
    pools = {"a": there(ready, min(load, 1.0))}
    of = {"demand": {"m": 1.0}, "carried": {"m": 1.0}, "demand_now": {"m": 1.0}}
    assert pools_to_keep(ALIKE, required(n + 1, **of), pools) <= pools_to_keep(
        ALIKE, required(n, **of), pools
    ) or (n + 1 > ready)
    if ready:
        assert pools_to_keep(ALIKE, required(ready, **of), pools) == set()


def test_what_is_there_and_carries_all_is_no_hurry():
    """Four requests/s are 2.5 replicas."""
    assert not capacity_shortfall(ALIKE, required(0, 3), {"a": 3, "b": 0})
    assert not capacity_shortfall(ALIKE, required(0, 3), {"a": 2, "b": 1})
    assert capacity_shortfall(ALIKE, required(0, 3), {"a": 2, "b": 0}) > 0.0


def test_others_may_go_on_answering():
    """The mix would answer more with m; who prefers the other now is answered by it, too."""
    two = {"demand": {"m": 4.0, "other": 4.0}, "carried": {"m": 8.0, "other": 0.0}}
    wanted = required(5, 0, **two)
    assert not capacity_shortfall(OTHERS, wanted, {"a": 3, "b": 3})
    assert capacity_shortfall(OTHERS, wanted, {"a": 1, "b": 2}) > 0.0


def test_for_what_callers_name_others_going_on_is_no_help():
    """Two a second name the large model, which has no replica: that is a hurry."""
    required = replace(
        requirement_of({"large": 1, "small": 1}, {}),
        work_s={"large": 0.1, "small": 0.1},
        demand={"large": 2.0, "small": 8.0},
        carried={"large": 2.0, "small": 0.0},
    )
    fleet = {
        name: PoolPlan(name=name, model=name, backend="emulated") for name in required.replicas
    }
    there = {"large": 0, "small": 1}

    assert capacity_shortfall(fleet, required, there) == 0.0
    assert capacity_shortfall(fleet, replace(required, fixed={"large": 2.0}), there) == 2.0


def test_what_was_saved_under_former_names_is_restored():
    """A planner's record of before: `wished` and `now` were demand."""
    wanted = required(2, 1)
    saved = asdict(wanted)
    saved["wished"], saved["now"] = saved.pop("demand"), saved.pop("demand_now")
    assert Requirement.restored(saved) == Requirement.restored(asdict(wanted)) == wanted


# --- for how long

LIMITS = {name: Limits(gpu="g", gpus_per_replica=1, least=0, most=9) for name in "ab"}
NOW = {"a": 2, "b": 0}
SWAP, LESS = {"a": 1, "b": 1}, {"a": 1, "b": 0}  # what two plans need that cost nearly the same


def settled(window: StabilisationWindow, at_s: float, needed: dict, keep: set) -> int:
    """Replicas of a, where nothing is in a hurry."""
    return window.settle(at_s, NOW, needed, LIMITS, {"g": 99}, keep, at_once=False)["a"]


def test_who_was_not_to_go_yet_does_not_go_by_a_single_plan():
    """
    One of a is to make way for one of b once that is there. For a moment one of a alone is
    cheapest: it went then, and was wanted back in the next step.
    """
    window = StabilisationWindow(StabilisationOptions(fresh_s=0.0))
    for step in range(60):
        swaps = step % 5 != 4
        needed, keep = (SWAP, {"a", "b"}) if swaps else (LESS, set())
        assert settled(window, 10.0 * step, needed, keep) == 2

    again = StabilisationWindow(StabilisationOptions(fresh_s=0.0), window.as_dict())
    late = [settled(again, at_s, LESS, set()) for at_s in (600.0, 630.0, 640.0)]
    assert late == [2, 2, 1]  # the last plan in which it was not to go is of 580 s
