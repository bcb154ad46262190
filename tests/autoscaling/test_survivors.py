"""What may not go, and what can wait: loads, replicas and demand of two pools, by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.sizing.needs import Needs
from infra.autoscaling.sizing.survivors import held, urgent

# Half a second of work a request; full at a load of 0.8: 1.6 requests/s a replica.
ALIKE = {"a": SimpleNamespace(model="m"), "b": SimpleNamespace(model="m")}
OTHERS = {"a": SimpleNamespace(model="m"), "b": SimpleNamespace(model="other")}
EACH = 1.6


def needs(a: int, b: int = 0, **changes: object) -> Needs:
    plain = {
        "replicas": {"a": a, "b": b},
        "load_max": {"a": 0.8, "b": 0.8},
        "work_s": {"a": 0.5, "b": 0.5},
        "rate": {},
        "lead_s": {},
        "wished": {"m": 4.0},
        "carried": {"m": 4.0},
        "now": {"m": 4.0},
    }
    return Needs(**{**plain, **changes})


def there(ready: int, load: float | None = None) -> PoolCondition:
    return PoolCondition(ready=ready, load=load)


def test_replicas_stay_until_those_that_replace_them_are_ready():
    """Three of a are to become three of b: not before they are there."""
    wanted = needs(0, 3)
    assert held(ALIKE, wanted, {"a": there(3), "b": there(0)}) == {"a", "b"}
    assert held(ALIKE, wanted, {"a": there(3), "b": there(2)}) == {"a", "b"}
    assert held(ALIKE, wanted, {"a": there(3), "b": there(3)}) == set()


def test_what_waits_for_another_model_stays_too():
    """The small model's replicas are to make way for the large one's, which is not there yet."""
    wanted = needs(3, 0)
    assert held(OTHERS, wanted, {"a": there(0), "b": there(3)}) == {"a", "b"}
    assert held(OTHERS, wanted, {"a": there(3), "b": there(3)}) == set()


def test_only_what_is_wished_now_is_waited_for():
    """Twice of it is expected in a while: half of the replicas that come are enough."""
    wanted = needs(0, 4, wished={"m": 6.0}, carried={"m": 6.0}, now={"m": 3.0})
    assert held(ALIKE, wanted, {"a": there(4), "b": there(2)}) == set()
    assert held(ALIKE, wanted, {"a": there(4), "b": there(1)}) == {"a", "b"}


def test_nothing_goes_if_the_rest_would_be_overloaded():
    """Four at 0.6 are 2.4 full replicas, whatever was thought of the work: two cannot do that."""
    crowded, idle = {"a": there(4, 0.6)}, {"a": there(4, 0.4)}
    little = {"wished": {"m": 1.0}, "carried": {"m": 1.0}, "now": {"m": 1.0}}
    assert held(ALIKE, needs(2, **little), crowded) == {"a", "b"}
    assert held(ALIKE, needs(3, **little), crowded) == set()
    assert held(ALIKE, needs(2, **little), idle) == set()


def test_a_load_is_a_share_of_how_full_a_pool_may_be():
    """Four at a load of 0.6 carry 0.6 · 4 · 1.6 requests/s: pools are compared in these."""
    of = {"wished": {"m": 1.0}, "carried": {"m": 1.0}, "now": {"m": 1.0}}
    pools = {"a": there(4, 0.6), "b": there(3)}
    alike = needs(0, 3, **of)
    assert held(ALIKE, alike, pools) == set()
    slower = needs(0, 3, load_max={"a": 0.8, "b": 0.6}, **of)
    assert held(ALIKE, slower, pools) == {"a", "b"}


def test_what_others_are_to_take_need_not_be_carried():
    """Of four requests/s that wish for the model another one is to answer three."""
    wanted = needs(1, 0, wished={"m": 4.0}, carried={"m": 1.0}, now={"m": 4.0})
    assert held(ALIKE, wanted, {"a": there(4, 0.9)}) == set()


@pytest.mark.parametrize("load", [None, math.nan, math.inf, -1.0])
def test_a_load_that_is_none_holds_nothing(load):
    """It is not known that anything is carried."""
    of = {"wished": {"m": 1.0}, "carried": {"m": 1.0}, "now": {"m": 1.0}}
    assert held(ALIKE, needs(1, **of), {"a": there(4, load)}) == set()


@given(n=st.integers(0, 20), ready=st.integers(0, 20), load=st.floats(0, 3))
@lightly
def test_with_more_to_stay_nothing_more_is_held(n, ready, load):
    """And who keeps all that is ready, and waits for nothing, holds nothing."""
    pools = {"a": there(ready, min(load, 1.0))}
    of = {"wished": {"m": 1.0}, "carried": {"m": 1.0}, "now": {"m": 1.0}}
    assert held(ALIKE, needs(n + 1, **of), pools) <= held(ALIKE, needs(n, **of), pools) or (
        n + 1 > ready
    )
    if ready:
        assert held(ALIKE, needs(ready, **of), pools) == set()


def test_what_is_there_and_carries_all_is_no_hurry():
    """Four requests/s are 2.5 replicas."""
    assert not urgent(ALIKE, needs(0, 3), {"a": 3, "b": 0})
    assert not urgent(ALIKE, needs(0, 3), {"a": 2, "b": 1})
    assert urgent(ALIKE, needs(0, 3), {"a": 2, "b": 0})


def test_others_may_go_on_answering():
    """The mix would answer more with m; who wishes for the other now is answered by it, too."""
    two = {"wished": {"m": 4.0, "other": 4.0}, "carried": {"m": 8.0, "other": 0.0}}
    wanted = needs(5, 0, **two)
    assert not urgent(OTHERS, wanted, {"a": 3, "b": 3})
    assert urgent(OTHERS, wanted, {"a": 1, "b": 2})
