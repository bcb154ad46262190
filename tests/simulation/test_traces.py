"""That traces are what was measured, and that more users or other days keep what they are about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import lightly

from load.data import traces
from load.data.traces import DiurnalOptions, Trace, diurnal, diurnal_rate, scaled

CALM = DiurnalOptions(noise=0.0, bursts_per_day=0.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def variation(trace: Trace, window_s: float) -> float:
    """Standard deviation of the arrivals per window, over their mean."""
    counts = np.bincount((trace.at_s / window_s).astype(int))
    return counts.std() / counts.mean()


# --- what ships


@pytest.mark.parametrize(
    ("trace", "requests", "prompt", "output"),
    [(traces.azure(), 19_366, 1154.7, 211.1), (traces.mooncake(), 12_031, 12_035.1, 342.6)],
    ids=["azure", "mooncake"],
)
def test_the_bundled_traces_are_the_measured_ones(trace, requests, prompt, output):
    """
    Rows and mean lengths are those of the sources.
    """
    assert len(trace) == requests
    assert trace.prompt_tokens.mean() == pytest.approx(prompt, abs=0.1)
    assert trace.output_tokens.mean() == pytest.approx(output, abs=0.1)
    assert trace.at_s[0] == 0.0 and (np.diff(trace.at_s) >= 0).all()


def test_a_trace_is_read_as_it_was_written(tmp_path):
    """
    To the millisecond, and every token.
    """
    trace = Trace("t", np.array([0.0, 0.0015, 7.25]), np.array([5, 2, 90_000]), np.array([1, 1, 9]))

    traces.write(trace, tmp_path / "t.parquet")
    found = traces.read(tmp_path / "t.parquet")

    np.testing.assert_allclose(found.at_s, trace.at_s, atol=5.1e-4)
    np.testing.assert_array_equal(found.prompt_tokens, trace.prompt_tokens)
    np.testing.assert_array_equal(found.output_tokens, trace.output_tokens)


def test_a_stretch_begins_at_zero_and_leaves_its_end_out():
    """
    So stretches put one after another are the whole.
    """
    trace = Trace("t", np.array([0.0, 10.0, 15.0, 20.0]), np.arange(4) + 1, np.arange(4) + 1)

    found = trace.between(10.0, end_s=20.0)

    np.testing.assert_array_equal(found.at_s, [0.0, 5.0])
    np.testing.assert_array_equal(found.prompt_tokens, [2, 3])


# --- more users


@pytest.mark.parametrize("factor", [0.25, 1.0, 7.6])
def test_so_many_times_the_users_send_so_many_times_the_requests(factor):
    """
    On average, also where the factor is no whole number.
    """
    trace = traces.azure()

    found = scaled(trace, factor, rng())

    assert len(found) == pytest.approx(factor * len(trace), rel=0.02)
    assert (np.diff(found.at_s) >= 0).all() and found.at_s[-1] <= trace.at_s[-1]


def test_bursts_stay_bursts_however_many_users_there_are():
    """
    From half a minute up the load varies as in the trace; independent users would even it out.
    """
    trace = traces.azure()

    found = scaled(trace, 20.0, rng())

    for window_s in (30.0, 60.0, 300.0):
        assert variation(found, window_s) == pytest.approx(variation(trace, window_s), rel=0.06)


def test_copies_are_as_long_as_what_came_about_then():
    """
    Long requests stay at the time of day they came at.
    """
    n = 2000
    late = np.arange(n) >= n // 2
    prompt = np.where(late, 9000, 10)
    trace = Trace("t", np.arange(n) * 1.0, prompt, prompt)

    found = scaled(trace, 5.0, rng())

    early = found.prompt_tokens[found.at_s < n / 2 - 60]
    assert (early == 10).all()
    assert (found.prompt_tokens[found.at_s > n / 2 + 60] == 9000).all()
    np.testing.assert_array_equal(found.prompt_tokens, found.output_tokens)


@given(st.integers(0, 50))
@lightly
def test_one_seed_makes_one_trace(seed):
    """
    Whatever was drawn before.
    """
    trace = traces.azure().between(0.0, end_s=60.0)

    one, other = scaled(trace, 2.5, rng(seed)), scaled(trace, 2.5, rng(seed))

    np.testing.assert_array_equal(one.at_s, other.at_s)
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)


# --- days


def test_a_day_has_its_peak_where_it_is_said_and_nights_are_quiet():
    """
    Without noise and bursts the rate is the daily shape alone.
    """
    options = replace(CALM, lunch_dip=0.0, weekday_shares=(1.0,) * 7)

    rate = diurnal_rate(options, rng())

    hours = np.arange(len(rate)) * options.step_s / 3600.0
    assert hours[rate.argmax()] % 24 == pytest.approx(options.peak_hour, abs=0.01)
    assert rate.max() == pytest.approx(1.6 * options.requests_per_s, rel=0.01)
    assert rate.min() == pytest.approx(0.4 * options.requests_per_s, rel=0.01)
    assert rate.mean() == pytest.approx(options.requests_per_s, rel=0.01)


def test_a_saturday_is_no_friday():
    """
    The second of the two days is the weekend's, by the shares of weekdays.
    """
    rate = diurnal_rate(CALM, rng())

    friday, saturday = rate.reshape(2, -1).mean(axis=1)

    assert saturday / friday == pytest.approx(0.65 / 0.95, rel=1e-6)


def test_bursts_double_or_triple_the_rate_and_end():
    """
    They are above the calm rate in places, by at most their height, and most of the day is calm.
    """
    calm, bursty = diurnal_rate(CALM, rng()), diurnal_rate(replace(CALM, bursts_per_day=6.0), rng())

    ratio = bursty / calm

    assert ratio.min() == 1.0
    assert 2.0 <= ratio.max() <= 3.0
    assert 0.01 < (ratio > 1.0).mean() < 0.25


def test_noise_varies_the_rate_by_what_is_said():
    """
    Its logarithm has the stated deviation, and neighbouring minutes differ little.
    """
    options = replace(CALM, days=60.0, noise=0.1)

    log_noise = np.log(
        diurnal_rate(options, rng()) / diurnal_rate(replace(options, noise=0.0), rng())
    )

    assert log_noise.std() == pytest.approx(0.1, rel=0.1)
    assert np.abs(np.diff(log_noise)).mean() < 0.02


def test_arrivals_follow_the_rate_and_lengths_are_drawn_together():
    """
    As many requests come as the rate says; no prompt gets another request's answer.
    """
    lengths = traces.mooncake()
    options = replace(CALM, days=1.0, requests_per_s=2.0)

    found = diurnal(lengths, options, rng())

    expected = diurnal_rate(options, rng()).sum() * options.step_s
    assert len(found) == pytest.approx(expected, rel=0.02)
    assert (np.diff(found.at_s) >= 0).all()
    pairs = set(zip(lengths.prompt_tokens.tolist(), lengths.output_tokens.tolist(), strict=True))
    made = zip(found.prompt_tokens[:500].tolist(), found.output_tokens[:500].tolist(), strict=True)
    assert set(made) <= pairs
