"""Bills that exceed what was predicted are an alarm, and chance is one no more often than stated."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import contexts, joined, outcomes

from learners.estimates.billing import (
    DAY_MS,
    RATIO_MAX,
    RATIO_ONE,
    BillingOptions,
    log_evidence,
    new_statistics,
    overbilled,
    update,
)
from learners.estimates.calibration import fixed
from learners.outcomes import Outcomes

MODEL, OTHER = 3, 2**63 + 5
OPTIONS = BillingOptions(false_alarms_per_year=0.1, tolerance=0.15)


def bills(ratios: np.ndarray, day: int = 100, model: int = MODEL, seed: int = 1) -> Outcomes:
    """Outcomes whose bills are so many times what was predicted: a cent."""
    n, rng = len(ratios), np.random.default_rng(seed)
    usd = np.full(n, 0.01)
    figures = np.zeros((n, 4), np.int64)
    figures[:, 2] = np.rint(usd * ratios / 1e-9)
    known = np.zeros((n, 4), bool)
    known[:, 2] = True
    return outcomes(
        n,
        rng,
        models=np.full(n, model, np.uint64),
        decided_at_ms=np.full(n, day * DAY_MS),
        contexts=contexts(n, rng),
        known=np.zeros((n, 3), bool),
        figures=figures,
        figures_known=known,
        estimated=fixed(np.full(n, 0.5), usd),
    )


def found(*parts: Outcomes, day: int = 100, options: BillingOptions = OPTIONS):
    sums = new_statistics()
    for part in parts:
        update(sums, part)
    return overbilled(sums, [MODEL, OTHER], day * DAY_MS, options)


def skewed(n: int, mean: float, rng: np.random.Generator, sigma: float = 0.7) -> np.ndarray:
    """Ratios as of answers' lengths: lognormal, of this mean."""
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, n)


@pytest.mark.parametrize("mean", [0.8, 1.0, 1.15])
def test_chance_alone_is_an_alarm_no_more_often_than_stated(mean):
    """
    2,000 streams of 1,000 bills at what is tolerated or below, looked at after every single one:
    at a level of 5 % at most 5 % ever cross the bar.
    """
    rng, streams = np.random.default_rng(1), 2000
    x = np.minimum(skewed(streams * 1000, mean, rng).reshape(streams, 1000), RATIO_MAX)
    ones = np.cumsum(np.ones_like(x), axis=1)
    sums = np.stack([ones, np.cumsum(x, 1) * RATIO_ONE, np.cumsum(x**2, 1) * RATIO_ONE**2], -1)

    crossed = (log_evidence(sums, 1.15) >= np.log(1 / 0.05)).any(axis=1)

    assert crossed.mean() <= 0.05


@pytest.mark.parametrize(("mean", "n"), [(1.5, 400), (2.0, 120), (4.0, 40)])
def test_a_provider_that_bills_more_is_noticed(mean, n):
    """
    The more, the sooner; the cause names how many bills, and how much too high they are.
    """
    (alarm,) = found(bills(skewed(n, mean, np.random.default_rng(2))))

    assert alarm.model == MODEL and alarm.outcomes == n
    assert alarm.ratio == pytest.approx(mean, rel=0.15)
    assert alarm.chance <= 0.1 / 365
    assert f"{n} bills were {alarm.ratio:.2f} times" in str(alarm)


def test_what_is_as_predicted_or_little_above_is_no_alarm():
    """
    5,000 bills each at what was predicted, and a tenth above it.
    """
    rng = np.random.default_rng(3)

    assert found(bills(skewed(5000, 1.0, rng)), bills(skewed(5000, 1.1, rng), model=OTHER)) == []


def test_an_old_good_time_does_not_hide_a_bad_week():
    """
    A month as predicted, then a day at one and a half: since that day.
    """
    rng = np.random.default_rng(4)
    month = [bills(skewed(400, 1.0, rng), day=70 + i) for i in range(29)]

    (alarm,) = found(*month, bills(skewed(400, 1.5, rng), day=100))

    assert alarm.since_ms == 100 * DAY_MS
    assert found(*month) == []


def test_one_absurd_bill_is_no_alarm():
    """
    It counts eightfold at most.
    """
    assert found(bills(np.array([1.0] * 10 + [1e6]))) == []


def test_bills_of_which_nothing_was_predicted_count_for_nothing():
    """
    Also those of models that are all but free.
    """
    rows = bills(np.full(200, 5.0))
    cheap = outcomes(
        200,
        np.random.default_rng(1),
        models=np.full(200, MODEL, np.uint64),
        figures=rows.figures,
        figures_known=rows.figures_known,
        estimated=np.tile(np.array([100, 99]), (200, 1)),
    )
    sums = new_statistics()
    update(sums, cheap)

    assert not sums.sums
    assert len(found(rows)) == 1


def test_the_order_of_bills_and_batches_changes_nothing():
    """
    The same sums, to the bit.
    """
    rng = np.random.default_rng(5)
    rows = joined(
        [bills(skewed(100, 1.3, rng)), bills(skewed(100, 1.0, rng), day=101, model=OTHER)]
    )
    whole, parts = new_statistics(), new_statistics()
    update(whole, rows)
    for some in np.array_split(rng.permutation(200), 9):
        update(parts, rows.take(some))

    for name, column in whole.arrays().items():
        np.testing.assert_array_equal(parts.arrays()[name], column)
