"""The learned scale: ratios that are never infinite, and integers that stand for numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from learners.targets import COST_USD_MIN, ONE, RATIO_MAX, RATIO_UNIT, VALUE_MAX, ratio, to_fixed

FLOOR = 1e-3


@pytest.mark.parametrize(
    ("measured", "expected", "wanted"),
    [
        (2.0, 1.0, 2.0),
        (1.0, 2.0, 0.5),
        (0.0, 1.0, 0.0),
        (1.0, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (FLOOR, FLOOR / 10, 0.0),
        (1e9, 1e-3, RATIO_MAX),
        (math.inf, 1.0, RATIO_MAX),
    ],
)
def test_a_ratio_is_to_what_was_expected_and_bounded(measured, expected, wanted):
    """
    Free calls have a ratio of zero, beyond 32 it is cut off; where nothing was expected there is
    none.
    """
    found = ratio(np.array([measured]), np.array([expected]), FLOOR)

    np.testing.assert_allclose(found * RATIO_UNIT, [wanted], atol=1e-12)


@lightly
@given(st.floats(0, 1e12), st.floats(0, 1e12))
def test_any_two_amounts_have_a_ratio_that_can_be_learned(measured, expected):
    """
    Whatever was measured and expected, `to_fixed` takes the ratio.
    """
    found = ratio(np.array([measured]), np.array([expected]), COST_USD_MIN)

    assert abs(int(to_fixed(found)[0])) <= VALUE_MAX * ONE


@lightly
@given(st.floats(-VALUE_MAX, VALUE_MAX))
def test_a_value_is_kept_to_the_nearest_of_4096_steps(value):
    """
    The integer is the nearest one, so the error is at most half a step either way.
    """
    fixed = to_fixed(np.array([value]))

    assert fixed.dtype == np.int64
    assert abs(fixed[0] / ONE - value) <= 0.5 / ONE


@pytest.mark.parametrize("step", [-VALUE_MAX * ONE, -1, 0, 1, ONE, VALUE_MAX * ONE])
def test_a_number_of_steps_is_kept_exactly(step):
    """
    What is a whole number of steps comes back unchanged, both ends of the scale included.
    """
    assert to_fixed(np.array([step / ONE]))[0] == step


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 8.001, -8.001, np.nextafter(8.0, 9.0), 1e300]
)
def test_a_value_that_would_poison_the_sums_is_refused(value):
    """
    A value that is not finite, or beyond the scale, stops the program rather than enter a sum,
    wherever it hides in a batch.
    """
    with pytest.raises(AssertionError):
        to_fixed(np.array([[0.0, 1.0], [value, 0.0]]))
