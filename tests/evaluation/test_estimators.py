"""Off-policy estimates: they find a policy's value, and their intervals hold it as often as said."""

from __future__ import annotations

import numpy as np
import pytest

from learners.evaluation.cross_fitted import cross_fitted
from learners.evaluation.estimators import (
    Estimate,
    doubly_robust,
    ips,
    n_effective,
    plain,
    snips,
)

TRUTH = 0.7  # of the policy that mostly takes the better of two coins
COINS, LOGGED, TARGET = np.array([0.8, 0.3]), np.array([0.4, 0.6]), np.array([0.8, 0.2])


def log(seed: int, n: int = 400):
    """Weights and rewards (n,) of a log, and the coins that were chosen."""
    rng = np.random.default_rng(seed)
    chosen = (rng.random(n) < LOGGED[1]).astype(int)
    reward = (rng.random(n) < COINS[chosen]).astype(float)
    return TARGET[chosen] / LOGGED[chosen], reward, chosen


def estimates(seed: int) -> dict[str, Estimate]:
    weight, reward, chosen = log(seed)
    of = cross_fitted(np.zeros((len(reward), 0)), chosen, reward, 2)
    return {
        "ips": ips(weight, reward),
        "snips": snips(weight, reward),
        "dr": doubly_robust(weight, reward, of @ TARGET, of[np.arange(len(of)), chosen]),
    }


@pytest.mark.parametrize("how", ["ips", "snips", "dr"])
def test_an_interval_holds_the_truth_in_95_of_100_logs(how):
    """
    400 logs: a true share of 95 % is seen as 92 to 98 %.
    """
    found = [estimates(seed)[how] for seed in range(400)]

    held = [low <= TRUTH <= high for low, high in (one.interval() for one in found)]
    assert np.mean([one.mean for one in found]) == pytest.approx(TRUTH, abs=0.01)
    assert 0.92 <= np.mean(held) <= 0.98


def test_estimates_that_are_right_make_intervals_narrow():
    """
    What the doubly robust estimate is for.
    """
    weight, reward, chosen = log(0)
    knowing = doubly_robust(weight, reward, np.full(len(reward), TRUTH), COINS[chosen])

    assert knowing.deviation() < ips(weight, reward).deviation()


def test_wrong_estimates_do_no_harm_to_what_is_found():
    """
    Right if the propensities are, whatever was estimated.
    """
    found = []
    for seed in range(100):
        weight, reward, _ = log(seed)
        wrong = np.zeros(len(reward))
        found.append(doubly_robust(weight, reward, wrong + 0.1, wrong + 0.1).mean)

    assert np.mean(found) == pytest.approx(TRUTH, abs=0.01)


def test_skewed_weights_make_an_interval_that_reaches_further_up():
    """
    A few large weights: the value is more often above the mean than the plain interval says.
    """
    weight = np.array([0.1] * 95 + [10.0] * 5)
    one = ips(weight, np.ones(100))
    low, high = one.interval()

    assert high - one.mean > 1.2 * (one.mean - low)


def test_a_conversation_counts_as_one_observation():
    """
    Ten copies of a log say no more than one.
    """
    weight, reward, _ = log(1)
    once = ips(weight, reward)
    copies = ips(np.tile(weight, 10), np.tile(reward, 10))
    groups = np.tile(np.arange(len(reward)), 10)

    assert copies.deviation(groups) == pytest.approx(once.deviation())
    assert copies.deviation() < 0.4 * once.deviation()


def test_a_difference_of_the_same_decisions_is_surer_than_two_intervals():
    weight, reward, _ = log(2)
    one, other = snips(weight, reward), snips(weight * 0.9 + 0.1, reward)

    gap = other.minus(one)
    assert gap.mean == pytest.approx(other.mean - one.mean)
    assert gap.deviation() < 0.5 * one.deviation()


def test_equal_weights_are_worth_all_decisions_and_a_single_one_is_worth_one():
    assert n_effective(np.full(50, 0.3)) == pytest.approx(50)
    assert n_effective(np.eye(50)[0]) == pytest.approx(1)


def test_one_decision_says_nothing():
    assert plain(np.array([1.0])).interval() == (-np.inf, np.inf)


def test_where_no_outcome_is_known_nothing_is_fitted():
    """
    Of a day that nobody judged yet, what answers cost can be estimated all the same.
    """
    nothing = cross_fitted(np.zeros((0, 3)), np.zeros(0, np.intp), np.zeros(0), 2)
    assert nothing.shape == (0, 2)
