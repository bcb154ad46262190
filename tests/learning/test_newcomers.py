"""The share of a model that has hardly been tried."""

from __future__ import annotations

import numpy as np
import pytest

from learners.policies.newcomers import NewcomerOptions, capped

OPTIONS = NewcomerOptions()


def test_an_untried_model_gets_the_stated_share_and_the_proven_ones_the_rest():
    """
    As the policy weighed them against each other.
    """
    p = np.array([[0.1, 0.3, 0.6]])

    cut = capped(p, np.ones((1, 3), bool), np.array([50.0, 80.0, 0.0]), OPTIONS)

    np.testing.assert_allclose(cut, [[0.24, 0.72, 0.04]])


@pytest.mark.parametrize(("n_outcomes", "cap"), [(0, 0.04), (1, 0.04 ** (2 / 3)), (3, 1.0)])
def test_the_cap_grows_with_outcomes_until_it_is_none(n_outcomes, cap):
    """
    From the stated share to all of it at three outcomes.
    """
    p = np.array([[0.0, 1.0]])

    cut = capped(p, np.ones((1, 2), bool), np.array([9.0, float(n_outcomes)]), OPTIONS)

    np.testing.assert_allclose(cut, [[1 - cap, cap]])


def test_where_all_are_new_nothing_is_cut():
    """
    There is nothing to protect. Likewise where the proven ones may not be had.
    """
    p, allowed = np.array([[0.5, 0.5, 0.0]]), np.array([[True, True, False]])

    np.testing.assert_array_equal(capped(p, allowed, np.array([0.0, 0.0, 99.0]), OPTIONS), p)
