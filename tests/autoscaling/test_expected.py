"""Demand, series by series: what is believed, margins of many, lengths, silence, restarts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from infra.autoscaling.contract import Demand
from infra.autoscaling.demand.expected import ALL, ExpectedDemand, ExpectedOptions

STEP_S = 10.0
KEY = ("chat", "m")


def wanted(rate: float, class_name: str = "chat", **changes: object) -> Demand:
    plain = {"model": "m", "prompt_tokens": 1000.0, "output_tokens": 200.0}
    return Demand(class_name=class_name, requests_per_s=rate, **{**plain, **changes})


def observed(*steps: list[Demand], found: ExpectedDemand | None = None) -> ExpectedDemand:
    found = found or ExpectedDemand(ExpectedOptions())
    begin_s = max(0.0, found.at_s + STEP_S)
    for k, step in enumerate(steps):
        found.observe(begin_s + k * STEP_S, step)
    return found


def test_who_is_not_named_has_none():
    """And after ten minutes without a request nothing is expected, whatever there was."""
    found = observed(*[[wanted(5.0)]] * 30, [])
    assert found.series[KEY].rate == 0.0
    assert KEY in found.rates(300.0)
    observed(*[[]] * 58, found=found)
    assert KEY in found.rates(300.0)
    observed([], found=found)
    assert found.rates(300.0) == {}


def test_margins_of_many_are_smaller_than_their_sum():
    """Nine alike and independent: a third of the sum of margins, more or less; means add up."""
    rng = np.random.default_rng(4)
    names = [f"c{k}" for k in range(9)]
    rates = rng.poisson(20 * 60.0, (200, 9)) / 60.0
    steps = [[wanted(r, n) for r, n in zip(row, names, strict=True)] for row in rates.tolist()]
    found = ExpectedDemand(ExpectedOptions())
    for k, step in enumerate(steps):
        found.observe(60.0 * k, step)
    one = [found.series[(name, "m")].forecast.expect(300.0) for name in names]
    together = found.rates(300.0)
    alone = sum(each.upper - each.mean for each in one)
    joint = sum(max(0.0, each.upper - each.mean) for each in together.values())
    assert sum(each.mean for each in together.values()) == pytest.approx(sum(e.mean for e in one))
    assert 0.25 * alone < joint < 0.75 * alone


def test_all_go_along_with_a_ramp_of_the_sum():
    """Three quarters rise by half in four minutes, one does not: each is expected to go on as all do."""
    calm = [[wanted(90.0, "a"), wanted(30.0, "b")]] * 180
    rising = [[wanted(90.0 + 2.0 * k, "a"), wanted(30.0, "b")] for k in range(1, 25)]
    found = observed(*calm, *rising)
    ramp = found.series[ALL].forecast.ramp(180.0)
    assert ramp == pytest.approx(1.0 + 36.0 / 168.0, rel=0.02)
    rates = found.rates(180.0)
    assert rates[("a", "m")].upper == pytest.approx(ramp * 138.0)
    assert rates[("b", "m")].upper == pytest.approx(ramp * 30.0)


def test_what_is_expected_is_not_less_than_what_is():
    """A rise of this moment counts, whatever the mean says."""
    found = observed(*[[wanted(5.0)]] * 60, [wanted(60.0)])
    assert found.rates(900.0)[KEY].upper >= 60.0


def test_what_comes_already_is_likely_and_the_margin_is_not():
    """After a jump the mean lags behind what comes; without one it is what is likely."""
    (jumped,) = observed(*[[wanted(10.0)]] * 60, [wanted(40.0)]).rates(240.0).values()
    assert jumped.mean < 40.0 == jumped.least <= jumped.likely <= jumped.upper
    (calm,) = observed(*[[wanted(10.0)]] * 60, [wanted(0.1)]).rates(240.0).values()
    assert calm.likely == calm.mean < calm.upper


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0])
def test_a_rate_that_is_none_is_said_and_the_last_one_holds(rate):
    found = observed(*[[wanted(5.0)]] * 6)
    (line,) = found.observe(found.at_s + STEP_S, [wanted(rate)])
    assert "the last one holds" in line and "chat for m" in line
    assert found.series[KEY].rate == 5.0


def test_a_hundredfold_is_believed_after_two_minutes():
    """Not before; a hundred times exactly is believed at once; and one lapse starts anew."""
    found = observed(*[[wanted(5.0)]] * 6)
    for k in range(12):
        (line,) = found.observe(found.at_s + STEP_S, [wanted(501.0)])
        assert "not believed yet" in line, k
        assert found.series[KEY].rate == 5.0
    assert found.observe(found.at_s + STEP_S, [wanted(501.0)]) == []
    assert found.series[KEY].rate == 501.0
    found = observed(*[[wanted(5.0)]] * 6, *[[wanted(501.0)]] * 11, [wanted(5.0)], [wanted(501.0)])
    assert found.series[KEY].rate == 5.0
    assert observed(*[[wanted(5.0)]] * 6, [wanted(500.0)]).series[KEY].rate == 500.0


def test_a_start_from_nothing_counts_from_one_a_second():
    """From 0.001 to 90 is nothing to doubt."""
    assert observed([wanted(0.001)], [wanted(90.0)]).series[KEY].rate == 90.0


def test_mean_lengths_follow_in_minutes():
    """The first are taken as they are, then with a time constant of five minutes."""
    found = observed([wanted(1.0)], *[[wanted(1.0, prompt_tokens=3000.0)]] * 30)
    assert found.series[KEY].prompt_tokens == pytest.approx(3000.0 - 2000.0 / math.e)
    assert found.series[KEY].output_tokens == pytest.approx(200.0)


def test_mean_lengths_of_many_requests_follow_sooner():
    """A thousand requests are sure enough, but not before the time of telemetry's own mean."""
    after_50s = [[wanted(20.0, prompt_tokens=3000.0)]] * 5
    found = observed([wanted(20.0)], *after_50s)
    assert found.series[KEY].prompt_tokens == pytest.approx(3000.0 - 2000.0 / math.e)
    after_30s = [[wanted(5000.0, prompt_tokens=3000.0)]] * 3
    found = observed([wanted(5000.0)], *[[wanted(5000.0)]] * 13, *after_30s)
    assert found.series[KEY].prompt_tokens == pytest.approx(3000.0 - 2000.0 / math.e)


@pytest.mark.parametrize("length", [math.nan, 0.0, -5.0, 1e8, math.inf])
def test_lengths_that_are_none_are_said_and_the_last_hold(length):
    """Whichever of the two; the rate counts."""
    for name in ("prompt_tokens", "output_tokens"):
        found = observed([wanted(1.0, prompt_cv2=2.0)])
        (line,) = found.observe(STEP_S, [wanted(2.0, **{name: length})])
        assert "lengths" in line
        one = found.series[KEY]
        assert (one.rate, one.prompt_tokens, one.output_tokens) == (2.0, 1000.0, 200.0)


def test_variation_is_the_last_that_was_reported():
    """None, and what is none, leaves it; with no request nothing is known of it."""
    found = observed([wanted(1.0)])
    assert found.series[KEY].prompt_cv2 is None
    for stated, kept in ((2.0, 2.0), (None, 2.0), (math.nan, 2.0), (-1.0, 2.0), (0.0, 0.0)):
        observed([wanted(1.0, prompt_cv2=stated)], found=found)
        assert found.series[KEY].prompt_cv2 == kept
    observed([wanted(0.0, prompt_cv2=5.0)], found=found)
    assert found.series[KEY].prompt_cv2 == 0.0


def test_a_restart_changes_nothing():
    """As JSON and back, also before anything was observed."""
    assert (
        ExpectedDemand(ExpectedOptions(), json.loads(json.dumps(observed().as_dict()))).series == {}
    )
    rising = [[wanted(float(k), prompt_cv2=1.5)] for k in range(1, 90)]
    found = observed(*rising, [wanted(1e5)])
    again = ExpectedDemand(ExpectedOptions(), json.loads(json.dumps(found.as_dict())))
    for one in (found, again):
        observed(*[[wanted(1e5)]] * 20, found=one)
    assert again.as_dict() == found.as_dict() and again.rates(200.0) == found.rates(200.0)


def test_tenants_that_come_and_go_do_not_fill_the_memory():
    """
    Twenty new ones every ten minutes for a day: the newest are kept, and one that always has
    requests is never lost.
    """
    expected = ExpectedDemand(ExpectedOptions(series_max=50))
    for step in range(144):
        names = ["always", *(f"tenant-{step}-{i}" for i in range(20))]
        expected.observe(600.0 * step, [wanted(1.0, name) for name in names])
    assert len(expected.series) == 51  # and the sum of all
    assert {"always", "tenant-143-0", "tenant-142-19"} <= {key[0] for key in expected.series}


def test_what_was_saved_under_a_former_name_is_restored():
    """The time of the last request was `heard_s`; of a series without one it was null."""
    found = observed([wanted(5.0)], [])
    saved = found.as_dict()
    for entry in saved["series"]:
        entry["of"]["heard_s"] = entry["of"].pop("requested_s")
    again = ExpectedDemand(ExpectedOptions(), json.loads(json.dumps(saved)))
    assert again.as_dict() == found.as_dict()
