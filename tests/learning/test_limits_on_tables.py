"""Limits on a small table: is what is asked for met, at which cost, and against a coin?"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from outcome_tables import columns, written

from load.bench.decisions import limits
from load.bench.decisions.limits import Limit, Limited
from load.bench.decisions.orders import Orders, orders_of
from load.bench.decisions.report.results import over_orders
from load.bench.decisions.streams import play
from load.data import tables

N = 640


@pytest.fixture(scope="module")
def orders(tmp_path_factory) -> Orders:
    """The large model is right on all prompts; the small one, at a tenth, mostly on one side."""
    folder, made = tmp_path_factory.mktemp("tables"), columns(N)
    side = np.stack(made["embedding"].to_numpy(zero_copy_only=False))[:, 0] > 0
    changes = {
        "quality:small": pa.array(np.where(side, 0.8, 0.0)),
        "quality:large": pa.array(np.ones(N)),
        "cost_usd:small": pa.array(np.full(N, 0.001)),
        "cost_usd:large": pa.array(np.full(N, 0.01)),
    }
    return orders_of(tables.read(written(folder, made | changes)), n_seeds=1)


def test_a_quality_that_is_asked_for_is_met_below_the_cost_of_a_fixed_model(orders):
    """
    Only the large model has it on average; the small one has it on half of the prompts.
    """
    found = limits.quality_min(orders, 0, N, 0.5)

    assert found["quality_min"] == pytest.approx(0.5)
    assert found["quality_over"] > 0.0
    assert found["below_share"] < 0.1
    assert 0.4 < found["cost_over_cheapest_fixed"] < 0.85
    assert set(found["uncalibrated"]) == set(found) - {"quality_min", "uncalibrated"}


def test_what_nobody_can_reach_is_said_of_every_prompt(orders):
    """
    And then the best model is chosen, at any cost.
    """
    stream = orders.stream(0, 0.0)
    with Limited(stream, Limit(quality_min=1.0)) as player:
        chosen = play(player, stream)

    assert player.below[N // 2 :].mean() > 0.5
    assert (chosen[N // 2 :] == 1).mean() > 0.5


def test_the_uncalibrated_rival_has_no_curves(orders):
    """
    Else it would be no rival.
    """
    stream = orders.stream(0, 0.0)
    for calibrated in (True, False):
        with Limited(stream, Limit(), calibrated=calibrated) as player:
            assert (player._view().estimator.calibration is not None) == calibrated


def test_the_strong_model_goes_where_it_is_needed_and_no_more_often_than_it_may(orders):
    """
    With half of the prompts it is there for all that need it; a coin misses every other one.
    """
    found = limits.strong_share_max(orders, 0, N)

    assert list(found) == ["0.2", "0.5"]
    assert found["0.2"]["share"] == pytest.approx(0.2, abs=0.05)
    assert found["0.5"]["share"] <= 0.6
    assert found["0.5"]["over_random_mixing"] > 0.1


def test_only_the_first_prompts_of_an_order_are_played(orders):
    """
    The rest would take longer and say little more.
    """
    stream, half = limits._measured(orders, 0, 100)

    assert len(stream) == len(stream.due) == 100 and half == slice(50, None)
    whole = orders.stream(0, 0.0)
    np.testing.assert_array_equal(stream.quality, whole.quality[:100])


def test_figures_of_orders_become_intervals_at_every_depth():
    """
    An order without a figure, being infinite, makes its mean null.
    """
    each = [{"a": 1.0, "b": {"c": 2.0}}, {"a": 3.0, "b": {"c": float("inf")}}]

    found = over_orders(each)

    assert found["a"][0] == 2.0 and found["b"]["c"][0] is None
