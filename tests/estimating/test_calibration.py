"""Calibration: estimates that were wrong in the same way are put right, exactly and in any order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import changed, outcomes

from learners.estimates import calibration
from learners.estimates.calibration import Calibration, fixed, solve
from learners.estimates.learned import Learned, MemoryOptions
from learners.estimates.sums.influence import InfluenceOptions
from learners.outcomes import NOT_ESTIMATED, Outcomes
from learners.targets import ONE, Target

HALF_LIFE_MS = 14 * 86_400_000
MODEL = 7
SEEDS = range(8)


def reported(
    estimate: np.ndarray,
    quality: np.ndarray,
    *,
    cost: np.ndarray | None = None,
    times: float = 2.0,
    model: int = MODEL,
) -> Outcomes:
    """Outcomes of one model: what was estimated, what came; `times` the estimated `cost` if given."""
    n = len(estimate)
    rows = outcomes(
        n,
        np.random.default_rng(0),
        models=np.full(n, model, np.uint64),
        decided_at_ms=np.full(n, 10**12),
    )
    rows = changed(rows, sequences=np.arange(n, dtype=np.uint64))
    targets = np.zeros((n, 3), np.int64)
    targets[:, Target.QUALITY] = np.rint(quality * ONE)
    known, figures_known = np.zeros((n, 3), bool), np.zeros((n, 4), bool)
    known[:, Target.QUALITY] = True
    figures = np.zeros((n, 4), np.int64)
    usd = np.full(n, np.nan) if cost is None else cost
    if cost is not None:
        figures[:, calibration.COST_FIGURE] = np.rint(times * cost * 1e9)
        figures_known[:, calibration.COST_FIGURE] = True
    return changed(
        rows,
        targets=targets,
        known=known,
        figures=figures,
        figures_known=figures_known,
        estimated=fixed(estimate, usd),
    )


def solved(rows: Outcomes, models=(MODEL,), changed_models=()) -> Calibration:
    """The curves after these outcomes."""
    sums = calibration.new_statistics(HALF_LIFE_MS)
    calibration.update(sums, rows)
    return solve(sums, models, 10**12, InfluenceOptions(), changed_models)


def said(found: Calibration, estimates: np.ndarray) -> np.ndarray:
    """Calibrated (n,) of the only model."""
    return found.quality(estimates[:, None])[:, 0]


def gap(estimates: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of bin means: the reliability curve's from the diagonal, without noise."""
    parts = np.array_split(np.argsort(estimates), 10)
    return float(np.mean([abs(estimates[p].mean() - truth[p].mean()) for p in parts]))


@pytest.mark.parametrize(
    "truth",
    [
        lambda p: p**2,  # too high in the middle
        lambda p: 0.5 + 0.5 * (p - 0.5),  # too bold
        lambda p: np.clip(p - 0.15, 0, 1),  # too high throughout: the optimiser's curse
        lambda p: np.clip(1.6 * (p - 0.5) + 0.5, 0, 1),  # too timid
    ],
)
def test_bad_estimates_end_within_three_hundredths_of_the_truth(truth):
    """
    From 3,000 outcomes that are 0 or 1, in eight draws; the estimates themselves are off by more.
    """
    off, left = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        estimates, fresh = rng.random(3000), rng.random(3000)
        came = (rng.random(3000) < truth(estimates)).astype(float)

        found = said(solved(reported(estimates, came)), fresh)

        off.append(gap(fresh, truth(fresh)))
        left.append(gap(found, truth(fresh)))
    assert min(off) > 0.05
    assert max(left) <= 0.03


def test_true_estimates_stay_as_they_are():
    """
    Calibration costs no more than its noise, which is below what it may mend.
    """
    left = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        estimates = rng.beta(4, 2, 3000)
        came = (rng.random(3000) < estimates).astype(float)
        left.append(gap(said(solved(reported(estimates, came)), estimates), estimates))
    assert max(left) < 0.02


def test_without_outcomes_nothing_is_corrected():
    """
    Neither quality nor cost; a model never heard of is as its estimate says.
    """
    found, grid = solved(reported(np.zeros(0), np.zeros(0))), np.linspace(0, 1, 101)

    np.testing.assert_allclose(said(found, grid), grid, atol=1e-12)
    assert found.cost_factor.tolist() == [1.0]


def test_few_outcomes_correct_little():
    """
    Three surprises move an estimate by less than 0.07.
    """
    found = solved(reported(np.full(3, 0.9), np.zeros(3)))

    assert 0.83 < said(found, np.array([0.9]))[0] < 0.9


def test_a_model_without_outcomes_is_corrected_as_the_others_are():
    """
    What is wrong with all estimates is wrong with a new model's, too.
    """
    rng = np.random.default_rng(0)
    estimates = rng.random(4000)
    rows = reported(estimates, np.clip(estimates - 0.2, 0, 1))

    found = solved(rows, models=(MODEL, 8)).quality(np.array([[0.7, 0.7]]))[0]

    assert found == pytest.approx([0.5, 0.5], abs=0.05)


def test_what_was_seen_of_a_model_before_it_changed_says_nothing():
    """
    Its estimates rest on what came since, so errors of before are not theirs.
    """
    rows = reported(np.full(500, 0.9), np.full(500, 0.3))

    assert said(solved(rows), np.array([0.9]))[0] < 0.45
    assert said(solved(rows, changed_models={MODEL}), np.array([0.9]))[0] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("times", "wanted"), [(1.03, 1.03), (0.97, 0.97), (2.0, 1.05), (1000.0, 1.05), (0.0, 1 / 1.05)]
)
def test_costs_are_put_right_by_what_was_paid_over_what_was_estimated(times, wanted):
    """
    As a ratio of sums, by 5 % at most: what is further off was estimated before the estimator
    had learned it, and would be counted twice.
    """
    usd = np.geomspace(1e-6, 1e-2, 400)
    half = np.full(400, 0.5)

    factor = solved(reported(half, half, cost=usd, times=times)).cost_factor

    assert factor[0] == pytest.approx(wanted, rel=0.01)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=60))
@settings(max_examples=60, deadline=None)
def test_curves_rise_and_stay_within_zero_and_one(pairs):
    """
    Whatever came: a better estimate is never told as worse, and a probability is one.
    """
    estimates, came = np.array(pairs).T
    levels = said(solved(reported(estimates, came)), np.linspace(0, 1, 201))

    assert (np.diff(levels) >= -1e-12).all()
    assert levels.min() >= 0.0 and levels.max() <= 1.0


def test_sums_are_the_same_in_any_order_and_in_any_shards():
    """
    To the bit, also after being saved and restored.
    """
    rng = np.random.default_rng(4)
    rows = reported(rng.random(300), rng.random(300), cost=rng.random(300) * 0.01)
    whole, shards = Learned(MemoryOptions()), [Learned(MemoryOptions()) for _ in range(2)]
    whole.update(rows)
    order = rng.permutation(300)
    for part, shard in zip((order[:117], order[117:]), shards, strict=True):
        shard.update(rows.take(part))
    shards[1].merge(shards[0])
    shards[1].history.settle()

    restored = Learned.restore(MemoryOptions(), shards[1].statistics(), shards[1].history.rows)

    assert restored.digest() == whole.digest()
    assert whole.statistics()["calibration"]["sums"].any()


def test_a_snapshot_from_before_calibration_corrects_nothing():
    """
    It is read as it is, and calibration begins with the next outcome.
    """
    learned = Learned(MemoryOptions())
    learned.update(reported(np.full(50, 0.9), np.full(50, 0.1)))
    saved = learned.statistics()
    del saved["calibration"]

    restored = Learned.restore(MemoryOptions(), saved, learned.history.rows)

    assert not restored.calibration.sums
    assert restored.models.sums


def test_what_was_not_estimated_or_not_reported_counts_for_nothing():
    """
    Tickets of before carry no estimate; a latency alone is no quality.
    """
    rows = reported(np.full(4, 0.9), np.full(4, 0.1))
    without = np.full((4, 2), NOT_ESTIMATED)
    unsaid = np.zeros((4, 3), bool)

    for row in (changed(rows, estimated=without), changed(rows, known=unsaid)):
        sums = calibration.new_statistics(HALF_LIFE_MS)
        calibration.update(sums, row)
        assert not sums.sums
    assert (fixed(np.array([np.nan]), np.array([np.nan])) == NOT_ESTIMATED).all()
