"""A batch of outcomes is checked where it is made."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from strategies import changed, outcomes

from learners.outcomes import Outcomes

COLUMNS = [f.name for f in fields(Outcomes)]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_of_another_length_is_refused(name):
    """
    Whichever column is a row short, the batch is not made.
    """
    rows = outcomes(6, np.random.default_rng(0))

    with pytest.raises(AssertionError):
        changed(rows, **{name: getattr(rows, name)[:-1]})


@pytest.mark.parametrize("name", ["contexts", "targets", "known", "figures", "figures_known"])
def test_a_column_of_another_width_is_refused(name):
    """
    Whichever column lacks a feature, a target or a figure, the batch is not made.
    """
    rows = outcomes(6, np.random.default_rng(0))

    with pytest.raises(AssertionError):
        changed(rows, **{name: getattr(rows, name)[:, :-1]})


def test_contexts_that_are_not_rounded_are_refused():
    """
    Contexts of floating-point numbers would make sums that depend on order.
    """
    rows = outcomes(6, np.random.default_rng(0))

    with pytest.raises(AssertionError):
        changed(rows, contexts=rows.contexts.astype(np.float32))


def test_rows_taken_by_mask_or_by_number_are_the_same():
    """
    `take` gives the named rows of every column.
    """
    rows = outcomes(6, np.random.default_rng(0))
    mask = np.array([True, False, False, True, True, False])

    by_mask, by_number = rows.take(mask), rows.take(np.array([0, 3, 4]))

    assert len(by_mask) == 3
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(by_mask, name), getattr(rows, name)[[0, 3, 4]])
        np.testing.assert_array_equal(getattr(by_mask, name), getattr(by_number, name))
