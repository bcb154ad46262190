"""Feedback of every shape, from bytes to the learned state: each exactly once, in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.feedback.shapes import believed, compared, counts, shared_out

SHARE = st.floats(0.0, 1.0)


@given(SHARE, SHARE)
def test_a_win_raises_the_winner_and_lowers_the_loser_by_how_much_it_surprises(a, b):
    winner, loser = compared(a, loser=b)

    assert a <= winner <= 1.0 and 0.0 <= loser <= b


def test_predictions_that_are_right_are_left_as_they_are_on_average():
    """
    Of models at 0.6 and 0.4 the first wins as often as Bradley and Terry say: nothing moves.
    """
    odds = 0.6 / 0.4 / (0.6 / 0.4 + 0.4 / 0.6)
    wins, losses = compared(0.6, loser=0.4), compared(0.4, loser=0.6)

    assert odds * wins[0] + (1 - odds) * losses[1] == pytest.approx(0.6)
    assert odds * wins[1] + (1 - odds) * losses[0] == pytest.approx(0.4)


@given(SHARE, st.lists(st.floats(0.3, 0.7), min_size=1, max_size=64))
def test_what_is_shared_out_is_the_sessions_on_average(quality, steps):
    found = shared_out(quality, steps)

    assert len(found) == len(steps) and all(0.0 <= one <= 1.0 for one in found)
    if all(0.0 < one < 1.0 for one in found):
        assert np.mean(found) == pytest.approx(quality)


@given(SHARE, SHARE)
def test_who_is_sure_is_believed_and_who_is_not_says_what_was_predicted(quality, expected):
    assert believed(quality, expected=expected, confidence=1.0) == quality
    assert believed(quality, expected=expected, confidence=0.0) == expected


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_of_outcomes_as_many_count_as_their_weight_says(weight):
    ids = [i.to_bytes(12, "big") for i in range(4000)]

    assert np.mean([counts(one, weight) for one in ids]) == pytest.approx(weight, abs=0.03)
    assert [counts(one, weight) for one in ids] == [counts(one, weight) for one in ids]
