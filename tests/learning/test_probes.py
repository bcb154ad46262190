"""What one more answer is worth: the knowledge gradient, against what it is defined as."""

from __future__ import annotations

import numpy as np
import pytest

from learners.policies.probes import gradient, worth

ALL = np.ones((1, 3), bool)
NOISE = np.full((1, 3), 0.4)


def gradients(utility, deviation, *, eligible=ALL, noise=NOISE):
    """Of one request."""
    return gradient(np.array([utility]), np.array([deviation]), noise, eligible)[0]


def test_it_is_what_deciding_after_the_answer_is_worth_more_than_before_it():
    """
    By its definition: the expected best mean after one answer, minus the best mean now.
    """
    utility, deviation = np.array([0.7, 0.6, 0.2]), np.array([0.1, 0.2, 0.1])
    rng = np.random.default_rng(0)

    found = gradients(utility, deviation)

    for column in range(3):
        moved = deviation[column] ** 2 / np.hypot(deviation[column], 0.4)
        after = np.tile(utility, (400_000, 1))
        after[:, column] += moved * rng.standard_normal(400_000)
        assert found[column] == pytest.approx(after.max(axis=1).mean() - 0.7, abs=3e-4)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (([0.7, 0.69, 0.1], [0.05, 0.2, 0.05]), ([0.7, 0.69, 0.1], [0.05, 0.1, 0.05])),
        (([0.7, 0.69, 0.1], [0.05, 0.2, 0.05]), ([0.7, 0.50, 0.1], [0.05, 0.2, 0.05])),
    ],
)
def test_little_known_and_close_calls_are_worth_more(better, worse):
    """
    The more uncertain of two at the same gap, the closer of two as uncertain.
    """
    assert gradients(*better)[1] > gradients(*worse)[1]


def test_what_is_known_or_may_not_be_had_teaches_nothing():
    """
    Nor does the only model there is.
    """
    found = gradients([0.7, 0.69, 0.68], [0.0, 0.2, 0.2], eligible=np.array([[1, 1, 0]], bool))
    alone = gradients([0.7, 0.69, 0.68], [0.3, 0.3, 0.3], eligible=np.array([[1, 0, 0]], bool))

    assert found[0] < 1e-9 < found[1] and found[2] == 0.0
    assert not alone.any()


def test_the_most_per_dollar_is_bought_never_the_one_that_answers_anyway():
    """
    A cheap model of half the value comes before one that costs a hundred times as much.
    """
    value, usd = np.array([[0.5, 0.01, 0.02]]), np.array([[0.001, 0.0001, 0.01]])

    found = worth(value, usd, np.zeros(1), np.array([0]), horizon_requests=1000.0)

    assert found.column[0] == 1
    assert found.per_usd[0] == pytest.approx(100.0) and found.usd[0] == 0.0001


def test_an_answer_that_later_requests_do_not_pay_back_is_not_bought():
    """
    0.001 points for a thousand requests are worth 1 point: at 20 points a dollar, 5 cents.
    """
    value, money = np.full((1, 2), 0.001), np.array([20.0])

    def per_usd(usd):
        return worth(value, np.full((1, 2), usd), money, np.array([0]), 1000.0).per_usd[0]

    assert per_usd(0.049) > 0.0 and per_usd(0.051) == 0.0
