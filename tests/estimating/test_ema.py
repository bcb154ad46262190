"""Time-decayed means: as computed directly, as river computes them, and never without a weight."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from river.stats import EWMean
from strategies import MODELS, POOLS, batches, changed, group_at, lightly, outcomes

from learners.estimates import ema
from learners.estimates.ema import FIGURE_UNITS, FIGURES, N_COLUMNS, UNITS, Means
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE, Target

HALF_LIFE_MS = 2_000
AS_OF_MS = 10_000


def read(rows: Outcomes, keys: np.ndarray, asked: list[int], as_of_ms: int = AS_OF_MS) -> Means:
    statistics = ema.new_statistics(HALF_LIFE_MS)
    ema.update(statistics, keys, rows)
    return ema.read(statistics, asked, as_of_ms)


def steady(values: np.ndarray, every_ms: int, column: int) -> tuple[Outcomes, np.ndarray]:
    """Outcomes of key 1 at regular intervals, one figure each; and those keys."""
    n = len(values)
    rows = outcomes(n, np.random.default_rng(0))
    figures = np.zeros((n, len(FIGURES)), np.int64)
    figures[:, column] = np.rint(values / FIGURE_UNITS[column])
    known = np.zeros((n, len(FIGURES)), bool)
    known[:, column] = True
    times = np.arange(1, n + 1) * every_ms
    rows = changed(rows, decided_at_ms=times, figures=figures, figures_known=known)
    return rows, np.ones(n, np.uint64)


# --- oracles ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "asked"), [("models", MODELS), ("pools", POOLS)])
def test_means_are_those_of_a_direct_weighted_mean(column, asked):
    """
    For every key and column, each reported value counts 2^(−age / half-life); weights differ from
    that by less than 1/256, so means by less than 1/128 of the values' range.
    """
    rows = outcomes(300, np.random.default_rng(1), span_ms=AS_OF_MS)
    keys = getattr(rows, column)

    means = read(rows, keys, list(asked))

    values = np.concatenate([rows.targets, rows.figures], axis=1) * UNITS
    known = np.concatenate([rows.known, rows.figures_known], axis=1)
    weight = 0.5 ** ((AS_OF_MS - rows.decided_at_ms) / HALF_LIFE_MS)
    for row, key in enumerate(asked):
        for c in range(N_COLUMNS):
            used = (keys == np.uint64(key)) & known[:, c]
            want = np.average(values[used, c], weights=weight[used])
            assert abs(means.means[row, c] - want) <= np.ptp(values[used, c]) / 128
            total = weight[used].sum()
            assert total * (1 - 1 / 256) <= means.weights[row, c] <= total


def test_a_long_steady_stream_has_the_mean_that_river_gives():
    """
    With outcomes at regular intervals, fading by age is fading by number: river's `EWMean` is the
    same once its first value has faded.
    """
    every_ms = HALF_LIFE_MS // 8
    latency_ms = np.random.default_rng(2).gamma(2.0, 100.0, 2000)
    rows, keys = steady(latency_ms, every_ms, FIGURES.index("latency_ms"))
    theirs = EWMean(fading_factor=1 - 0.5 ** (1 / 8))
    for value in latency_ms:
        theirs.update(value)

    ours = read(rows, keys, [1], int(rows.decided_at_ms.max()))

    assert ours.figure("latency_ms", prior=0.0, prior_weight=0.0)[0] == pytest.approx(
        theirs.get(), rel=0.01
    )


def test_an_outcome_a_half_life_older_counts_half():
    """
    Two values, two thirds for the newer one.
    """
    rows, keys = steady(np.array([0.0, 300.0]), HALF_LIFE_MS, FIGURES.index("latency_ms"))

    means = read(rows, keys, [1], 2 * HALF_LIFE_MS)

    column = N_TARGETS + FIGURES.index("latency_ms")
    assert means.means[0, column] == pytest.approx(200.0)
    assert means.weights[0, column] == pytest.approx(1.5)


@lightly
@given(batches())
def test_sums_are_those_of_a_loop_over_rows_in_exact_integers(rows):
    """
    Whatever the batch holds, extremes and gaps included, and also if it holds nothing.
    """
    statistics = ema.new_statistics(HALF_LIFE_MS)
    ema.update(statistics, rows.models[:0], rows.take(slice(0, 0)))

    ema.update(statistics, rows.models, rows)

    values = np.concatenate([rows.targets, rows.figures], axis=1).tolist()
    known = np.concatenate([rows.known, rows.figures_known], axis=1).tolist()
    want: dict[tuple[int, int, int], list[list[int]]] = {}
    for i in range(len(rows)):
        epoch, into_ms = divmod(int(rows.decided_at_ms[i]), HALF_LIFE_MS)
        weight = int(256 * 2 ** (into_ms / HALF_LIFE_MS))
        at = (int(rows.models[i]), epoch, group_at(rows, i))
        total = want.setdefault(at, [[0, 0] for _ in range(N_COLUMNS)])
        for column in np.flatnonzero(known[i]):
            total[column][0] += weight * values[i][column]
            total[column][1] += weight
    assert {at: total.tolist() for at, total in statistics.sums.items()} == want


# --- no data ------------------------------------------------------------------------------------


def test_a_key_never_seen_has_weight_zero():
    """
    Its mean reads zero and says by its weight that this means nothing; with a prior it is the
    prior.
    """
    rows = outcomes(50, np.random.default_rng(3))

    means = read(rows, rows.models, [MODELS[0], 99])

    assert not means.weights[1].any()
    assert not means.means[1].any()
    assert means.weights[0].all()
    prior = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    np.testing.assert_allclose(means.targets(prior, 4.0)[1], prior[1])
    assert means.figure("latency_ms", prior=800.0, prior_weight=5.0)[1] == 800.0


@pytest.mark.parametrize("column", range(N_COLUMNS))
def test_a_value_that_was_not_reported_does_not_count(column):
    """
    Whichever value is missing from every outcome, its weight is zero and the others stay.
    """
    rows = outcomes(60, np.random.default_rng(4), among=(5,))
    rows = changed(rows, known=np.ones((60, 3), bool), figures_known=np.ones((60, 4), bool))
    known, figures_known = rows.known.copy(), rows.figures_known.copy()
    if column < N_TARGETS:
        known[:, column] = False
    else:
        figures_known[:, column - N_TARGETS] = False

    full = read(rows, rows.models, [5])
    gappy = read(changed(rows, known=known, figures_known=figures_known), rows.models, [5])

    assert gappy.weights[0, column] == 0.0
    assert gappy.means[0, column] == 0.0
    others = np.delete(np.arange(N_COLUMNS), column)
    np.testing.assert_array_equal(gappy.means[0, others], full.means[0, others])
    np.testing.assert_array_equal(gappy.weights[0, others], full.weights[0, others])


# --- priors -------------------------------------------------------------------------------------


def test_targets_are_pulled_to_the_prior_by_its_weight():
    """
    Three outcomes of mean 0.8 and four imaginary ones of 0.1 make 0.4.
    """
    means = Means(np.full((1, N_COLUMNS), 0.8), np.full((1, N_COLUMNS), 3.0))

    np.testing.assert_allclose(means.targets(np.full((1, 3), 0.1), 4.0), np.full((1, 3), 0.4))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_pulled_to_the_prior_by_its_weight(name):
    """
    Each figure by its name, from its own column and weight.
    """
    columns = np.arange(1.0, N_COLUMNS + 1)[None]
    column = N_TARGETS + FIGURES.index(name)

    pulled = Means(columns, columns).figure(name, prior=2.0, prior_weight=5.0)

    value = column + 1.0
    np.testing.assert_allclose(pulled, [(value * value + 5.0 * 2.0) / (value + 5.0)])


# --- units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "off_by"),
    [
        ("error", 0.0, 0.0),
        ("error", 1.0, 0.0),
        ("output_tokens", 1.0, 0.0),
        ("output_tokens", 1e7, 0.0),
        ("cost_usd", 1e-7, 0.5e-9),
        ("cost_usd", 0.003_141_592_6, 0.5e-9),
        ("cost_usd", 100.0, 0.5e-9),
        ("latency_ms", 0.04, 1 / 32),
        ("latency_ms", 1234.57, 1 / 32),
        ("latency_ms", 86_400_000.0, 1 / 32),
    ],
)
def test_a_figure_comes_back_in_its_own_unit(name, value, off_by):
    """
    From the smallest to the largest that may be reported: errors and tokens exactly, costs to the
    nearest nano-dollar, latencies to the nearest sixteenth of a millisecond.
    """
    column = FIGURES.index(name)
    rows, keys = steady(np.full(3, value), 100, column)

    means = read(rows, keys, [1])

    found = means.figure(name, prior=-1.0, prior_weight=0.0)[0]
    assert abs(found - value) <= off_by + value * 1e-12


def test_targets_come_back_on_the_learned_scale():
    """
    The first three columns are the targets, an integer of 4,096 being one.
    """
    rows = outcomes(2, np.random.default_rng(0), among=(5,), span_ms=1)
    rows = changed(
        rows,
        targets=np.tile([ONE // 2, -8 * ONE, 8 * ONE], (2, 1)),
        known=np.ones((2, N_TARGETS), bool),
    )

    means = read(rows, rows.models, [5])

    assert means.means[0, [Target.QUALITY, Target.COST, Target.LATENCY]].tolist() == [0.5, -8, 8]


def test_a_hundred_thousand_of_the_dearest_calls_do_not_wrap_round():
    """
    $10 million on one model within a half-life still adds up.
    """
    column = FIGURES.index("cost_usd")
    rows, keys = steady(np.full(100_000, 100.0), 0, column)
    rows = changed(rows, decided_at_ms=np.full(100_000, HALF_LIFE_MS - 1))

    means = read(rows, keys, [1])

    assert means.figure("cost_usd", prior=0.0, prior_weight=0.0)[0] == pytest.approx(100.0)
