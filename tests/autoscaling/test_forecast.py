"""Demand to come: known series, margins that hold, restarts, and comparison with the last value."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from infra.autoscaling.demand.forecast import Forecast, ForecastOptions

MINUTE_S = 60.0


def forecast_of(series, options: ForecastOptions | None = None) -> Forecast:
    """A forecast that saw one rate a minute."""
    forecast = Forecast(options or ForecastOptions())
    for k, rate in enumerate(series):
        forecast.observe(k * MINUTE_S, rate=float(rate))
    return forecast


def day(n: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Minutes of a service that is three times as busy at its peak."""
    rate = 20.0 + 10.0 * np.sin(2.0 * np.pi * np.arange(n) / 1440.0)
    return rate if rng is None else rng.poisson(rate * 60.0) / 60.0


def errors(
    series: np.ndarray, begin: int, minutes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What came less what was expected, by ours and by the last value; and less the upper."""
    forecast, ours, last, upper = Forecast(ForecastOptions()), [], [], []
    for k, rate in enumerate(series[:-minutes]):
        forecast.observe(k * MINUTE_S, rate=float(rate))
        if k >= begin:
            expected, came = forecast.expect(minutes * MINUTE_S), series[k + minutes]
            ours.append(came - expected.mean)
            last.append(came - rate)
            upper.append(came - expected.upper)
    return np.array(ours), np.array(last), np.array(upper)


def pinball(errors: np.ndarray, quantile: float = 0.9) -> float:
    return float(np.maximum(quantile * errors, (quantile - 1.0) * errors).mean())


def test_what_is_constant_stays_so():
    """And once it has proved so, hardly a margin is left."""
    expected = forecast_of([7.0] * 400).expect(600.0)
    assert expected.mean == pytest.approx(7.0)
    assert expected.upper == pytest.approx(7.0, rel=0.02)


def test_nothing_stays_nothing():
    """No requests, no forecast, and no division by it."""
    expected = forecast_of([0.0] * 30).expect(300.0)
    assert expected.mean == 0.0 and math.isfinite(expected.upper)


def test_a_rise_is_followed():
    """Of a steady rise by one a minute a good part is expected to go on, and not twice of it."""
    expected = forecast_of(range(1, 61)).expect(600.0)
    assert 61.0 < expected.mean < 80.0
    assert expected.upper > 66.0


def test_a_start_from_nothing_is_doubled_at_most():
    """Where nothing was expected, an error is no larger than what came: so much may come again."""
    for minutes in (5, 20, 60):
        expected = forecast_of([0.0] * 30 + [300.0] * minutes).expect(300.0)
        assert expected.upper < 2.1 * 300.0


def test_a_jump_is_not_a_trend():
    """From 10 to 50 at once: what is expected stays near 50."""
    forecast = forecast_of([10.0] * 60 + [50.0] * 3)
    assert 20.0 < forecast.expect(300.0).mean < 65.0


@pytest.mark.parametrize("step_s", [10.0, 60.0])
def test_a_ramp_is_forecast_as_if_it_went_on(step_s):
    """After half an hour at 100 it rises by 30 a minute: so it does for three minutes, no farther."""
    forecast = Forecast(ForecastOptions())
    for at_s in np.arange(0.0, 1800.0 + step_s, step_s):
        forecast.observe(at_s, rate=100.0)
    end_s = 2040.0 - step_s % 60.0
    for at_s in np.arange(1800.0 + step_s, end_s + step_s, step_s):
        forecast.observe(at_s, rate=100.0 + (at_s - 1800.0) / 2.0)

    now = 100.0 + (end_s - 1800.0) / 2.0
    assert forecast.ramp(60.0) * now == pytest.approx(now + 30.0)
    assert forecast.ramp(180.0) * now == pytest.approx(now + 90.0)
    assert forecast.ramp(900.0) == forecast.ramp(180.0)


@pytest.mark.parametrize(
    "then",
    [
        [],
        [300.0],
        [200.0, 300.0],
        [150.0, 200.0, 200.0],
        [101.0, 200.0, 300.0],
        [200.0, 300.0, 250.0],
    ],
)
def test_what_does_not_rise_evenly_for_three_minutes_is_no_ramp(then):
    """Neither a level, nor a jump, which is seen whole in two, nor what falls again."""
    assert forecast_of([100.0] * 30 + then).ramp(180.0) == 1.0


@pytest.mark.parametrize(
    ("before", "after"), [(10.0, 20.0), (2.0, 10.0), (50.0, 75.0), (10.0, 50.0)]
)
def test_a_jump_is_hardly_ever_a_ramp(before, after):
    """
    Poisson arrivals, seen every five seconds as the rate of the last minute: in fewer than one of
    thirty jumps is there ever a ramp.
    """
    rng, ramps = np.random.default_rng(1), 0
    for _ in range(150):
        jump = 900 + int(rng.integers(60))
        per_s = np.concatenate([np.full(jump, before), np.full(600, after)])
        arrived = np.concatenate([[0], np.cumsum(rng.poisson(per_s))])
        forecast, seen = Forecast(ForecastOptions()), False
        for at in range(60, len(per_s), 5):
            forecast.observe(float(at), rate=float(arrived[at] - arrived[at - 60]) / 60.0)
            seen |= at >= jump and forecast.ramp(180.0) > 1.0
        ramps += seen
    assert ramps < 5


@pytest.mark.parametrize("per_s", [1.0, 5.0, 50.0])
def test_where_nothing_came_for_hours_chance_is_no_ramp(per_s):
    """
    There was no noise to learn from: it is taken to be that of independent arrivals.
    """
    rng, forecast = np.random.default_rng(2), Forecast(ForecastOptions())
    arrived = np.concatenate([np.zeros(3600), np.cumsum(rng.poisson(per_s, 3600))])
    for at in range(60, len(arrived), 10):
        forecast.observe(float(at), rate=float(arrived[at] - arrived[at - 60]) / 60.0)
        assert at < 3900 or forecast.ramp(180.0) == 1.0


def test_what_an_older_version_saved_has_no_ramps():
    """And loses nothing else."""
    before = forecast_of([100.0] * 30 + [130.0, 160.0, 190.0])
    saved = before.as_dict()
    for new in ("at_s", "told_s", "noise"):
        del saved[new]
    found = Forecast.from_dict(json.loads(json.dumps(saved)), ForecastOptions())
    assert found.ramp(180.0) == 1.0
    assert found.expect(300.0) == before.expect(300.0)
    for k in range(33, 40):
        found.observe(k * MINUTE_S, rate=220.0)
    assert found.ramp(180.0) == 1.0


def test_of_nothing_there_is_no_ramp():
    """Nor of what has hardly begun."""
    assert (
        forecast_of([]).ramp(60.0)
        == forecast_of([5.0]).ramp(60.0)
        == forecast_of([0.0] * 9).ramp(60.0)
        == 1.0
    )


def test_noise_is_no_ramp():
    """Nor is a day's course: in five days of chance there is none."""
    rng = np.random.default_rng(5)
    for _ in range(5):
        forecast = Forecast(ForecastOptions())
        for k, rate in enumerate(day(1440, rng)):
            forecast.observe(k * MINUTE_S, rate=float(rate))
            assert forecast.ramp(180.0) == 1.0


def test_the_newest_rate_counts_at_once():
    """Within the minute, for a flood is not to wait for its end."""
    forecast = forecast_of([10.0] * 60)
    before = forecast.expect(300.0).mean
    forecast.observe(60 * MINUTE_S + 5.0, rate=50.0)
    assert forecast.expect(300.0).mean > before + 8.0


def test_yesterday_tells_of_today():
    """On the second day of a daily course the morning's rise is known before it comes."""
    series = day(1440 + 1300)
    forecast = forecast_of(series)
    assert forecast.expect(900.0).mean == pytest.approx(day(2800)[len(series) + 14], rel=0.03)


def test_nine_in_ten_are_below_the_upper():
    """The margin is a quantile: it holds as often as it says, on bursts it did not see before."""
    rng = np.random.default_rng(8)
    _, _, upper = errors(day(2000, rng), 300, 10)
    assert 0.85 < float(np.mean(upper <= 0.0)) < 0.96


@pytest.mark.parametrize("minutes", [5, 10, 15])
def test_it_is_better_than_the_last_value(minutes):
    """On two noisy days: by a tenth in the mean, and by a third at the quantile."""
    ours, last, upper = errors(day(2880, np.random.default_rng(9)), 1500, minutes)
    assert np.abs(ours).mean() < 0.9 * np.abs(last).mean()
    assert pinball(upper) < 0.67 * pinball(last)


def test_farther_ahead_lies_between():
    """Between two horizons it is interpolated, beyond the last it is that one's."""
    forecast = forecast_of(day(500, np.random.default_rng(1)))
    near, middle, far = (forecast.expect(s).mean for s in (300.0, 450.0, 600.0))
    assert middle == pytest.approx((near + far) / 2.0)
    assert forecast.expect(1e6) == forecast.expect(900.0)
    assert forecast.expect(0.0) == forecast.expect(120.0)


@given(
    before=st.lists(st.floats(0, 1e4), min_size=1, max_size=60),
    after=st.lists(st.floats(0, 1e4), max_size=30),
    gap=st.integers(0, 200),
)
@lightly
def test_a_restart_changes_nothing(before, after, gap):
    """Saved as JSON and restored it goes on as if nothing had happened; never negative or NaN."""
    forecast = forecast_of(before)
    saved = json.loads(json.dumps(forecast.as_dict()))
    again = Forecast.from_dict(saved, ForecastOptions())
    for k, rate in enumerate(after):
        for one in (forecast, again):
            one.observe((len(before) + gap + k) * MINUTE_S, rate=rate)
    expected = forecast.expect(400.0)
    assert expected == again.expect(400.0)
    assert forecast.as_dict() == again.as_dict()
    assert expected.mean >= 0.0 and math.isfinite(expected.upper) and expected.upper >= 0.0


def test_silence_is_as_the_last_minute():
    """A minute without data is no minute without requests."""
    forecast = forecast_of([10.0] * 30)
    forecast.observe(90 * MINUTE_S, rate=10.0)
    assert forecast.expect(300.0).mean == pytest.approx(10.0)


def test_no_more_than_two_days_are_kept():
    """Neither after a long life nor after a long silence."""
    forecast = forecast_of([1.0])
    forecast.observe(1e9, rate=2.0)
    assert len(forecast.as_dict()["bins"]) == 2880
