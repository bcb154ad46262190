"""Confidence sequences and the gate: right at all times at once, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.evaluation.gate import UNIT, Arms, Evidence, Verdict, values
from learners.evaluation.sequences import Modelled, Sums, evidence, gain, guessed, value

N = 2000


def test_a_true_mean_is_excluded_in_few_of_many_runs_watched_throughout():
    """
    500 runs of 2,000 skewed values, looked at after each one: at 5 %, at most 25 may ever err.
    """
    erred = 0
    for seed in range(500):
        x = np.random.default_rng(seed).exponential(0.2, N) - 0.2  # mean 0, at least −0.2
        erred += bool((evidence(x.cumsum(), (x**2).cumsum(), 0.2) >= np.log(20)).any())

    assert erred <= 25


def test_a_bound_comes_closer_with_more_values():
    rng = np.random.default_rng(0)
    found = [
        0.5 - guessed((rng.random(n) < 0.5).astype(float), floor=0.0).lower()
        for n in (100, 1000, 10_000)
    ]

    assert found[0] > 2 * found[1] > 4 * found[2] > 0


def test_nothing_seen_excludes_nothing():
    assert Sums(0, 0.0, 0.0, 1.0).lower() == -np.inf


@given(st.integers(1, 10_000), st.floats(0.0, 1.0), st.floats(0.01, 1.0))
def test_a_lower_bound_is_below_the_mean_and_where_the_evidence_says(n, mean, spread):
    one = Sums(n, n * mean, n * spread, 1.0)

    assert one.lower() <= mean
    assert one.evidence(one.lower()) == pytest.approx(np.log(20), abs=1e-3)


def logged(seed: int, better: float):
    """A log of two coins, 0.5 and 0.5 + `better`, and a policy that takes the second."""
    rng = np.random.default_rng(seed)
    chosen = (rng.random(N) < 0.5).astype(int)
    reward = (rng.random(N) < 0.5 + better * chosen).astype(float)
    half, second = np.full((N, 2), 0.5), np.tile([0.0, 1.0], (N, 1))
    modelled = Modelled(
        chance=second, logged=half, estimates=np.tile([0.5, 0.5 + better], (N, 1)), chosen=chosen
    )
    return chosen * 2.0, reward, modelled


def test_bounds_of_a_policy_hold_its_value_and_what_it_gains():
    for seed in range(30):
        weight, reward, modelled = logged(seed, 0.3)
        for known in (None, modelled):
            low, high = value(weight, reward, known)
            assert low <= 0.8 <= high
            low, high = gain(weight, reward, known)
            assert low <= 0.15 <= high


def test_estimates_make_bounds_narrower():
    weight, reward, modelled = logged(0, 0.3)
    (a, b), (c, d) = gain(weight, reward, None), gain(weight, reward, modelled)
    assert d - c < b - a


# --- the gate


def tried(better: float, seed: int, share: float = 0.2) -> Evidence:
    """A candidate that decides a third of its requests otherwise, and is better there."""
    rng = np.random.default_rng(seed)
    candidate, alike = rng.random(20_000) < share, rng.random(20_000) < 2 / 3
    odds = 0.5 + better * (candidate & ~alike)
    reward = (rng.random(20_000) < odds).astype(float)
    x = values(Arms(candidate, alike), reward, np.full(20_000, 0.5), share)
    return Evidence(len(x), int(x.sum()), int((x**2).sum()), share)


def test_a_better_candidate_is_promoted_and_a_worse_one_taken_back():
    assert tried(+0.3, 0).verdict(0.05, margin=0.0) is Verdict.PROMOTE
    assert tried(-0.3, 0).verdict(0.05, margin=0.0) is Verdict.ROLL_BACK
    assert tried(0.0, 0).verdict(0.05, margin=0.0) is Verdict.GO_ON


def test_better_by_less_than_the_margin_is_not_enough():
    assert tried(+0.3, 0).verdict(0.05, margin=0.2) is Verdict.GO_ON


def test_what_is_found_is_by_how_much_it_is_better():
    found = [tried(0.3, seed).mean for seed in range(10)]
    assert np.mean(found) == pytest.approx(0.1, abs=0.01)


def test_requests_that_both_decide_alike_add_no_noise():
    x = values(Arms(np.array([True, False]), np.array([True, True])), np.ones(2), np.zeros(2), 0.1)
    assert x.tolist() == [0, 0]


def test_one_outcome_counts_within_bounds():
    """
    However wrong a reward is, X is at most its weight.
    """
    x = values(Arms(np.array([True]), np.array([False])), np.array([1e9]), np.zeros(1), 0.25)
    assert x.tolist() == [4 * UNIT]
