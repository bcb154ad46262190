"""Each figure of the decisions benchmark on tables small enough to reckon by hand."""

from __future__ import annotations

import numpy as np
import pytest

from load.bench.decisions.report import metrics

# Two prompts, three models: cheap, middle, best. Means: quality .25 .5 1, cost 1 2 4.
QUALITY = np.array([[0.5, 1.0, 1.0], [0.0, 0.0, 1.0]])
COST = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]])
SPAN = metrics.span_of(QUALITY, COST)


def test_the_span_is_of_the_best_on_average_and_of_the_cheapest_and_dearest():
    """
    The best single model's quality and cost, and between what costs all routers are.
    """
    assert (SPAN.best_quality, SPAN.best_cost_usd) == (1.0, 4.0)
    assert (SPAN.cost_usd_min, SPAN.cost_usd_max) == (1.0, 4.0)
    assert SPAN.cheapest_quality == 0.25
    assert (SPAN.cheapest_model_usd, SPAN.dearest_model_usd) == (1.0, 4.0)


def test_a_point_that_is_matched_by_a_cheaper_one_is_not_on_the_frontier():
    """
    (3, .4) costs more than (2, .5) and gives less; of two that cost 2 the better stays, of two
    that give 1 the cheaper.
    """
    cost, quality = metrics.frontier(
        np.array([3.0, 1, 2, 2, 4, 5]), np.array([0.4, 0.2, 0.3, 0.5, 1, 1])
    )

    np.testing.assert_array_equal(cost, [1, 2, 4])
    np.testing.assert_array_equal(quality, [0.2, 0.5, 1.0])


@pytest.mark.parametrize(
    ("wanted", "cost"), [(0.5, 2.0), (0.75, 3.0), (1.0, 4.0), (0.1, 1.0), (1.01, np.inf)]
)
def test_between_points_the_frontier_is_linear_and_beyond_it_there_is_nothing(wanted, cost):
    """
    Half-way from .5 to 1 costs half-way from 2 to 4; below the cheapest point it costs as much.
    """
    points = np.array([1.0, 2.0, 4.0]), np.array([0.2, 0.5, 1.0])

    assert metrics.cost_at(*points, wanted) == cost


def test_the_cost_share_is_over_the_best_single_models_cost():
    """
    98 % of quality 1 lies at 4 − .02 / .5 · 2 = 3.92, which is .98 of 4.
    """
    points = np.array([1.0, 2.0, 4.0]), np.array([0.2, 0.5, 1.0])

    assert metrics.cost_share(*points, SPAN, 0.98) == pytest.approx(0.98)


def test_the_hull_leaves_out_what_a_mixture_beats():
    """
    (2, .5) is above the line from (1, .2) to (4, 1), at .467; (3, .6) is below that from (2, .5).
    """
    cost, quality = metrics.hull(np.array([1.0, 2, 3, 4]), np.array([0.2, 0.5, 0.6, 1.0]))

    np.testing.assert_array_equal(cost, [1, 2, 4])
    np.testing.assert_array_equal(quality, [0.2, 0.5, 1.0])


def test_aiq_is_the_mean_height_of_the_hull_from_the_cheapest_to_the_dearest_model():
    """
    One point (2, .8): from the null router a line to it, then flat; (.4 + .8) / 2 · 1 + .8 · 2
    over a range of 3.
    """
    value = metrics.aiq(np.array([2.0]), np.array([0.8]), SPAN)

    assert value == pytest.approx((0.6 + 1.6) / 3)


def test_nauc_begins_at_the_cheapest_policy_and_carries_the_last_point_on():
    """
    From (1, .25) to (2, .8), flat to 4: (.525 · 1 + .8 · 2) / 3.
    """
    value = metrics.nauc(np.array([2.0]), np.array([0.8]), SPAN)

    assert value == pytest.approx((0.525 + 1.6) / 3)


def test_collapse_counts_calls_of_the_best_where_a_cheaper_model_was_as_good():
    """
    Only on the first prompt does a cheaper model match the best one.
    """
    assert metrics.collapse(np.array([2, 2]), QUALITY, COST) == 1.0
    assert metrics.collapse(np.array([1, 2]), QUALITY, COST) == 0.0
    assert metrics.collapse(np.array([-1, 0]), QUALITY, COST) == 0.0


def test_nothing_collapses_where_the_best_model_is_the_cheapest():
    """
    There is then no cheaper one to prefer.
    """
    assert metrics.collapse(np.array([0, 0]), np.array([[1.0, 0.0]] * 2), COST[:, :2]) == 0.0


def test_break_even_is_the_cost_of_learning_over_what_each_request_saves():
    """
    10 dollars too much, 4 − 1 − .5 saved each: 4 requests; where nothing is saved, never.
    """
    assert metrics.break_even_requests(10.0, best_usd=4.0, routed_usd=1.0, overhead_usd=0.5) == 4.0
    assert metrics.break_even_requests(10.0, best_usd=4.0, routed_usd=4.0) == np.inf
    assert metrics.break_even_requests(-3.0, best_usd=4.0, routed_usd=1.0) == 0.0


def test_calibration_is_the_mean_gap_of_predicted_and_true_over_bins():
    """
    Two bins, off by .1 and by .3: .2.
    """
    predicted, outcome = np.array([0.1, 0.1, 0.7, 0.7]), np.array([0.0, 0.0, 1.0, 1.0])

    assert metrics.calibration_error(predicted, outcome, bins=2) == pytest.approx(0.2)


def test_a_predictor_that_is_right_shows_as_much_error_as_chance_makes():
    """
    True probabilities, 80 coins to a bin: their measured error is on average what is said to be
    chance, to a tenth. Who says a third too much shows twice as much, and chance is as before.
    """
    rng = np.random.default_rng(3)
    truth = rng.uniform(0.3, 0.6, (60, 800))
    coins = (rng.random(truth.shape) < truth).astype(float)

    def means(predicted):
        pairs = list(zip(predicted, coins, strict=True))
        measures = metrics.calibration_error, metrics.calibration_error_by_chance
        return [np.mean([measure(*pair) for pair in pairs]) for measure in measures]

    right, by_chance = means(truth)
    assert right == pytest.approx(by_chance, rel=0.1)
    wrong, by_chance_too = means(truth * 4 / 3)
    assert wrong > 2 * right
    assert by_chance_too == pytest.approx(by_chance, rel=0.1)


def test_coverage_is_the_share_of_outcomes_within_so_many_deviations():
    """
    Off by .1, .2, .3 where .15 is stated: one within one deviation, two within 1.96.
    """
    predicted, outcome = np.full(3, 0.5), np.array([0.6, 0.3, 0.8])
    deviation = np.full(3, 0.15)

    found = [metrics.coverage(predicted, deviation, outcome, z) for z in (1.0, 1.96)]

    assert found == pytest.approx([1 / 3, 2 / 3])


def test_an_interval_holds_the_mean_and_is_the_same_each_time():
    """
    Of equal values it has no width; of different ones it is inside their range.
    """
    assert metrics.interval([0.5, 0.5, 0.5]) == [0.5, 0.5, 0.5]
    mean, low, high = metrics.interval([0.0, 1.0, 2.0, 3.0])

    assert mean == 1.5 and 0.0 <= low < 1.5 < high <= 3.0
    assert metrics.interval([0.0, 1.0, 2.0, 3.0]) == [mean, low, high]


def test_a_miss_is_counted_and_not_dropped():
    """
    An infinite value is kept: the median stays finite while most are, the interval tells.
    """
    middle, low, high = metrics.median_interval([1.0, 2.0, 3.0, np.inf, np.inf])
    assert (middle, low, high) == (3.0, 1.0, None)
    assert metrics.median_interval([1.0, np.inf, np.inf])[0] is None
