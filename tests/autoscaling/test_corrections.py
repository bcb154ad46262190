"""What prices say of how much replicas carry: how fast it counts, how far, and how it is forgotten."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.autoscaling.contract import PoolCondition
from infra.autoscaling.demand.corrections import CORRECTION_MAX, HALF_LIFE_S, M_MAX, Corrections

POOLS = {
    "a": SimpleNamespace(model="m"),
    "b": SimpleNamespace(model="m"),
    "c": SimpleNamespace(model="other"),
}


def priced(a: float, b: float | None = None, c: float = 0.0, ready: int = 1) -> dict:
    given = {"a": a, "b": a if b is None else b, "c": c}
    return {name: PoolCondition(ready=ready, price=price) for name, price in given.items()}


def after(
    minutes: float, conditions: dict, found: Corrections | None = None, step_s=10.0, **fullness
):
    found = found or Corrections(POOLS)
    at_s = found.as_dict()["at_s"] or 0.0
    found.observe(at_s, conditions, fullness)
    for k in range(round(minutes * 60.0 / step_s)):
        found.observe(at_s + (k + 1) * step_s, conditions, fullness)
    return found


def test_at_a_price_of_one_work_counts_for_a_tenth_more_in_a_minute():
    """exp(0.1), half of the exponent at half the price, and no more for a higher price."""
    assert after(1, priced(1.0)).factors() == {"m": round(math.exp(0.1), 2), "other": 1.0}
    assert after(1, priced(0.5)).factors()["m"] == round(math.exp(0.05), 2)
    assert M_MAX == 1.0 and after(1, priced(9.0)).factors()["m"] == round(math.exp(0.1), 2)


@pytest.mark.parametrize("step_s", [5.0, 10.0, 30.0])
def test_it_is_a_matter_of_time_not_of_steps(step_s):
    assert after(1, priced(1.0), step_s=step_s).factors()["m"] == round(math.exp(0.1), 2)


def test_it_has_an_end():
    """However long it lasts; and from there half of it is forgotten in a half-life."""
    found = after(60, priced(5.0))
    assert found.factors()["m"] == CORRECTION_MAX < 1.5
    assert after(HALF_LIFE_S / 60.0, priced(0.0), found).factors()["m"] == round(
        math.sqrt(CORRECTION_MAX), 2
    )
    assert after(60, priced(0.0), found).factors()["m"] == 1.0


def test_one_pool_with_room_is_room_for_all():
    """The lowest price counts; a pool that has no replicas or is gone has no say."""
    assert after(5, priced(3.0, 0.0)).factors()["m"] == 1.0
    empty = priced(3.0, 0.0) | {"b": PoolCondition(ready=0, price=0.0)}
    assert after(5, empty).factors()["m"] == CORRECTION_MAX
    lost = priced(3.0, 0.0) | {"b": PoolCondition(ready=2, price=0.0, available=False)}
    assert after(5, lost).factors()["m"] == CORRECTION_MAX
    assert after(5, {}).factors() == {"m": 1.0, "other": 1.0}


def test_where_a_pool_is_thought_to_be_full_its_price_says_nothing_new():
    """Replicas are still to come, or requests to go elsewhere: that was to be expected."""
    assert after(5, priced(1.0), a=1.0, b=0.2).factors()["m"] == 1.0
    assert after(5, priced(1.0), a=0.9, b=0.2).factors()["m"] == CORRECTION_MAX
    gone = priced(1.0) | {"a": PoolCondition(ready=0, price=1.0)}
    assert after(5, gone, a=1.0, b=0.2).factors()["m"] == CORRECTION_MAX


def test_a_correction_ends_where_it_explains_the_price():
    """A pool that carries a fifth less than was thought is thought full at 1.25."""
    found = Corrections(POOLS)
    for k in range(60):
        found.observe(10.0 * k, priced(1.0), {"a": 0.8 * found.factors()["m"]})
    assert found.factors()["m"] == pytest.approx(1.25, rel=0.03)


def test_a_silence_says_nothing_about_its_time():
    """An hour between two steps counts for a minute; and time never goes back."""
    found = Corrections(POOLS)
    for at_s in (0.0, 3600.0, 1800.0):
        found.observe(at_s, priced(1.0), {})
    assert found.factors()["m"] == round(math.exp(0.1), 2)


def test_a_restart_changes_nothing():
    """As JSON and back; a model that is new begins with what was thought."""
    found = after(2, priced(1.0))
    again = Corrections(POOLS, json.loads(json.dumps(found.as_dict())))
    for one in (found, again):
        after(1, priced(1.0), one)
    assert again.as_dict() == found.as_dict()
    assert Corrections({"n": SimpleNamespace(model="new")}, found.as_dict()).factors() == {
        "new": 1.0
    }


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats() | st.none()), max_size=30))
@lightly
def test_whatever_the_prices_it_stays_between_its_bounds(steps):
    """Also with what is no number."""
    found, at_s = Corrections(POOLS), 0.0
    for passed_s, price in steps:
        at_s += passed_s
        found.observe(at_s, {} if price is None else priced(price), {})
        assert all(1.0 <= factor <= CORRECTION_MAX for factor in found.factors().values())
