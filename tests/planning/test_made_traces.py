"""Made-up arrivals have the shape they are named for, and a seed makes them again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import load.traces.made
from load.data import traces
from load.data.traces import DAY_S, Trace
from load.errors import TraceRefused
from load.traces.figures import burstiness
from load.traces.made import KINDS, MadeOptions, Scaling, burstier, made, scaled
from load.traces.reading import read_trace

LENGTHS = traces.azure()
HOUR = MadeOptions(kind="poisson", requests_per_s=20.0, seconds=3600.0)


def make(seed: int = 0, **changed):
    return made(replace(HOUR, **changed), LENGTHS, np.random.default_rng(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_arrivals_come_at_the_stated_rate_and_again_with_their_seed(kind):
    """
    In order, within the time, the same for the same seed and others for another.
    """
    one, same, other = make(kind=kind), make(kind=kind), make(seed=1, kind=kind)

    assert np.array_equal(one.at_s, same.at_s)
    assert len(one) != len(other) or not np.array_equal(one.at_s, other.at_s)
    assert (np.diff(one.at_s) >= 0.0).all() and one.at_s[-1] < 3600.0
    if kind in ("poisson", "gamma"):
        assert len(one) == pytest.approx(72_000, rel=0.05)


def test_bursts_are_as_bursty_as_asked():
    """
    A Poisson process has a coefficient of variation of 1, gamma bursts the stated one.
    """
    assert burstiness(make())["gaps_cv"] == pytest.approx(1.0, abs=0.03)
    assert burstiness(make(kind="gamma", cv=3.0))["gaps_cv"] == pytest.approx(3.0, rel=0.1)


def test_a_flash_crowd_is_as_high_as_stated():
    minutes = np.bincount((make(kind="flash", flash_times=5.0).at_s / 60.0).astype(int))
    assert minutes.max() / np.median(minutes) == pytest.approx(5.0, rel=0.15)


def test_growth_is_by_month(monkeypatch):
    """
    The third month is busier than the first by the square of the stated factor.
    """
    assert load.traces.made.MONTH_S == 30 * DAY_S
    monkeypatch.setattr("load.traces.made.MONTH_S", DAY_S)  # months of a day are as good
    asked = {"kind": "growth", "requests_per_s": 2.0, "seconds": 3 * DAY_S}
    grown, flat = (make(growth_per_month=factor, **asked) for factor in (1.5, 1.0))
    months, same = (np.bincount((t.at_s / DAY_S).astype(int)) for t in (grown, flat))
    assert months[2] / same[2] == pytest.approx(1.5**2, rel=0.02)


def test_growth_beyond_what_can_be_made_is_refused():
    """
    By what is expected of all months, not of the first.
    """
    with pytest.raises(TraceRefused, match="more than 50,000,000 requests"):
        make(kind="growth", requests_per_s=0.01, seconds=400 * DAY_S, growth_per_month=10.0)


def test_a_trace_of_months_is_written_and_read_as_it_is(tmp_path):
    """
    Milliseconds of more than 24 days need more than 32 bits: they came back negative.
    """
    long = Trace("long", np.array([0.0, 300 * DAY_S]), np.array([5, 6]), np.array([7, 8]))

    traces.write(long, tmp_path / "long.parquet")

    assert read_trace(str(tmp_path / "long.parquet"), 0).trace.at_s.tolist() == [0.0, 300 * DAY_S]


def test_a_trace_is_scaled_in_rate_length_and_time():
    """
    Twice the users, half the lengths, ten minutes of it.
    """
    rng = np.random.default_rng(0)
    found = scaled(LENGTHS, Scaling(rate=2.0, length=0.5, begin_s=600.0, end_s=1200.0), rng)
    part = LENGTHS.between(600.0, end_s=1200.0)
    assert len(found) == pytest.approx(2 * len(part), rel=0.02)
    assert found.prompt_tokens.mean() == pytest.approx(part.prompt_tokens.mean() / 2, rel=0.05)
    assert found.at_s[-1] <= 600.0
    with pytest.raises(TraceRefused, match="fewer than two requests"):
        scaled(LENGTHS, Scaling(begin_s=1e6), rng)


def test_burstier_keeps_requests_and_exaggerates_busy_minutes():
    found = burstier(LENGTHS, 2.0)
    assert len(found) == len(LENGTHS)
    assert (np.diff(found.at_s) >= 0.0).all()
    before, after = (np.histogram(t.at_s, bins=58)[0] for t in (LENGTHS, found))
    assert after.std() / before.std() == pytest.approx(2.0, rel=0.15)


def test_a_minute_can_be_made_burstier_too():
    """
    By its tenths, which are all it has.
    """
    minute = LENGTHS.between(1500.0, end_s=1560.0)
    tenths = [
        np.histogram(t.at_s, bins=10, range=(0.0, minute.at_s[-1]))[0]
        for t in (minute, burstier(minute, 2.0))
    ]
    assert tenths[1].std() / tenths[0].std() == pytest.approx(2.0, rel=0.15)
    same = Trace("same", np.zeros(3), np.ones(3, np.int64), np.ones(3, np.int64))
    assert burstier(same, 2.0).at_s.tolist() == [0.0, 0.0, 0.0]
