"""Linear models: the sums against plain integers, the solution against one dense least squares."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from strategies import (
    MODELS,
    batches,
    changed,
    contexts,
    group_at,
    joined,
    lightly,
    outcomes,
    whole,
)

from learners.context import N_FEATURES, real
from learners.estimates import ridge
from learners.estimates.learned import examples
from learners.estimates.ridge import FIXED, ROWS_EXACT, SQUARE_UNIT, Ridge, RidgeOptions, solve
from learners.estimates.sums.decayed_sums import DecayedSums
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE, Target

HALF_LIFE_MS = 5_000
AS_OF_MS = 10_000
NOISE_PRIOR = np.array([0.3, 0.7, 0.7])
KEYS = list(MODELS)


def folded(rows: Outcomes, half_life_ms: int = HALF_LIFE_MS) -> DecayedSums:
    statistics = ridge.new_statistics(N_TARGETS, N_FEATURES, half_life_ms)
    ridge.update(statistics, examples(rows, rows.contexts, list(Target)))
    return statistics


def solved(rows: Outcomes, means: np.ndarray, options: RidgeOptions, keys: list[int]) -> Ridge:
    return solve(folded(rows).read(keys, AS_OF_MS), means, NOISE_PRIOR, options)


def weights_of(rows: Outcomes) -> np.ndarray:
    """Each row's weight by age, in the whole steps that learners use."""
    fraction = rows.decided_at_ms % HALF_LIFE_MS / HALF_LIFE_MS
    epoch = rows.decided_at_ms // HALF_LIFE_MS
    return np.floor(256 * 2**fraction) / 256 * 2.0 ** (epoch - AS_OF_MS / HALF_LIFE_MS)


# --- sums ---------------------------------------------------------------------------------------


def naive_sums(rows: Outcomes) -> dict[tuple[int, int, int], np.ndarray]:
    """Sums of zzᵀ in Python's integers, which never round or overflow, one row after another."""
    sums: dict[tuple[int, int, int], np.ndarray] = {}
    for i in range(len(rows)):
        epoch, into_ms = divmod(int(rows.decided_at_ms[i]), HALF_LIFE_MS)
        weight = int(256 * 2 ** (into_ms / HALF_LIFE_MS))
        at = (int(rows.models[i]), epoch, group_at(rows, i))
        for target in np.flatnonzero(rows.known[i]):
            y = int(rows.targets[i, target])
            z = np.array([*rows.contexts[i].tolist(), y], object)
            outer = np.outer(z, z)
            outer[-1, -1] = round(y * y / SQUARE_UNIT)
            held = sums.setdefault(at, np.zeros((N_TARGETS, 65, 65), object))
            held[target] += weight * outer
    return sums


def assert_same_sums(statistics: DecayedSums, want: dict[tuple[int, int, int], np.ndarray]) -> None:
    assert set(statistics.sums) == set(want)
    for at, total in want.items():
        assert (statistics.sums[at] == total).all()


@lightly
@given(batches())
def test_sums_are_those_of_a_loop_over_rows_in_exact_integers(rows):
    """
    Whatever the batch holds, extremes and gaps included, the sums are exact.
    """
    assert_same_sums(folded(rows), naive_sums(rows))


def test_sums_of_a_mixed_batch_are_those_of_its_rows_one_by_one():
    """
    Models, epochs and patterns of what is known are told apart within a batch.
    """
    rows = outcomes(80, np.random.default_rng(0))

    assert_same_sums(folded(rows), naive_sums(rows))


def largest(n: int) -> Outcomes:
    """N outcomes whose contexts and targets are as large as there are, and odd."""
    rows = outcomes(n, np.random.default_rng(0), among=(5,))
    return changed(
        rows,
        contexts=np.full((n, N_FEATURES), 127, np.int8),
        decided_at_ms=np.full(n, HALF_LIFE_MS - 1),
        targets=np.full((n, N_TARGETS), 8 * ONE - 1),
        known=np.ones((n, N_TARGETS), bool),
    )


def test_more_rows_than_are_exact_at_once_are_still_summed_exactly():
    """
    A batch beyond `ROWS_EXACT` equals its row times their number.
    """
    n = 2 * ROWS_EXACT + 3

    statistics = folded(largest(n))

    want = {at: n * total for at, total in naive_sums(largest(1)).items()}
    assert_same_sums(statistics, want)


def test_products_are_made_of_few_enough_rows_to_be_exact():
    """
    The largest product of one group stays below 2^53, where float64 stops holding every integer.
    """
    rows = largest(2 * ROWS_EXACT + 3)

    groups = ridge._groups(
        examples(rows, rows.contexts, list(Target)), np.zeros(len(rows), np.int64)
    )

    assert sorted(np.concatenate(groups)) == list(range(len(rows)))
    assert max(map(len, groups)) * 511 * 127 * (8 * ONE) < 2**53
    assert max(map(len, groups)) * 511 * (8 * ONE) ** 2 / SQUARE_UNIT < 2**53


def test_half_a_billion_of_the_largest_outcomes_do_not_wrap_round():
    """
    One model's sums of one half-life hold that many in int64: two hundred a second for a month.
    """
    statistics = folded(largest(1))
    for _ in range(29):
        statistics.merge(statistics)  # twice as many each time

    want = {at: 2**29 * total for at, total in naive_sums(largest(1)).items()}
    assert_same_sums(statistics, want)


def test_outcomes_without_any_target_leave_no_trace():
    """
    A report of an error alone teaches the linear models nothing.
    """
    rows = outcomes(10, np.random.default_rng(0))
    silent = changed(rows, known=np.zeros((10, N_TARGETS), bool))

    assert not folded(silent).sums


# --- the solution -------------------------------------------------------------------------------


def dense(
    rows: Outcomes, means: np.ndarray, options: RidgeOptions, keys: list[int], target: int
) -> tuple[np.ndarray, np.ndarray]:
    """w₀ (d,) and w_k (k, d) of one target, by least squares over all unknowns at once.

    A row of the design is (x, 0 … x … 0) times the root of its weight; a penalty is a row of its
    own, as if the weight had been observed to be zero.
    """
    k, d = len(keys), N_FEATURES
    used = np.flatnonzero(rows.known[:, target] & np.isin(rows.models, np.array(keys, np.uint64)))
    model = np.array([keys.index(int(key)) for key in rows.models[used]], int)
    x = rows.contexts[used] / 32
    design = np.zeros((len(used), d * (k + 1)))
    design[:, :d] = x
    for i, column in enumerate(model):
        design[i, d * (column + 1) : d * (column + 2)] = x[i]
    y = rows.targets[used, target] / ONE - means[model, target]
    root = np.sqrt(weights_of(rows)[used])
    # The last feature is constant: its penalty is what a mean weighs.
    of_shared = [options.shared_penalty] * (d - 1) + [FIXED]
    of_own = [options.own_penalty] * (d - 1) + [options.prior_weight]
    penalties = np.sqrt(of_shared + of_own * k)
    unknown = np.linalg.lstsq(
        np.vstack([design * root[:, None], np.diag(penalties)]),
        np.concatenate([y * root, np.zeros(d * (k + 1))]),
        rcond=None,
    )[0].reshape(k + 1, d)
    return unknown[0], unknown[1:]


def weights(model: Ridge, column: int, target: int) -> np.ndarray:
    return model.weights[:, column * N_TARGETS + target]


MEANS = np.array([[0.5, -0.3, 1.0], [0.7, 0.1, -2.0], [0.2, 0.0, 0.4]])


@pytest.mark.parametrize(
    "options",
    [
        RidgeOptions(),
        RidgeOptions(shared_penalty=1.0, own_penalty=1.0),
        RidgeOptions(shared_penalty=200.0, own_penalty=0.5),
    ],
)
@pytest.mark.parametrize("target", Target)
def test_weights_are_those_of_one_dense_least_squares(options, target):
    """
    Eliminating every model's own weights gives what solving for all weights together gives, each
    target from the rows that report it, older rows counting less.
    """
    rows = outcomes(400, np.random.default_rng(1))

    model = solved(rows, MEANS, options, KEYS)

    shared, own = dense(rows, MEANS, options, KEYS, target)
    for column in range(len(KEYS)):
        np.testing.assert_allclose(weights(model, column, target), shared + own[column], atol=1e-6)


def test_a_model_without_outcomes_falls_back_on_what_all_models_share():
    """
    Its weights are the shared ones, and its presence changes nobody else's.
    """
    rows = outcomes(300, np.random.default_rng(2))
    means = np.vstack([MEANS, [0.9, 0.0, 0.0]])

    model = solved(rows, means, RidgeOptions(), [*KEYS, 12])

    without = solved(rows, MEANS, RidgeOptions(), KEYS)
    shared, _ = dense(rows, MEANS, RidgeOptions(), KEYS, Target.QUALITY)
    np.testing.assert_allclose(weights(model, 3, Target.QUALITY), shared, atol=1e-6)
    np.testing.assert_allclose(model.weights[:, :9], without.weights, atol=1e-7)
    together = (model.noise[:3] ** 2 * (model.counts[:3] + 10)).sum(axis=0)
    assert (model.noise[3] > 0).all() and (model.noise[3] ** 2 < together).all()
    assert not model.counts[3].any()


def test_with_no_outcomes_at_all_estimates_are_the_means():
    """
    Before anything is learned a context says nothing.
    """
    model = solve(np.zeros((2, 3, 65, 65)), MEANS[:2], NOISE_PRIOR, RidgeOptions())

    predicted = model.predict(real(contexts(5, np.random.default_rng(0))))

    np.testing.assert_allclose(predicted, np.broadcast_to(MEANS[:2], (5, 2, 3)), rtol=1e-6)


def test_values_not_reported_do_not_count():
    """
    Rows that do not report a target are, for that target, as if they were not there.
    """
    rows = outcomes(200, np.random.default_rng(3))
    reporting = rows.take(rows.known[:, Target.COST])

    model = solved(rows, MEANS, RidgeOptions(), KEYS)

    only = solved(reporting, MEANS, RidgeOptions(), KEYS)
    for column in range(len(KEYS)):
        np.testing.assert_allclose(
            weights(model, column, Target.COST), weights(only, column, Target.COST), atol=1e-7
        )
    np.testing.assert_allclose(model.counts[:, Target.COST], only.counts[:, Target.COST])


def test_counts_are_faded_numbers_of_outcomes():
    """
    An outcome counts by its age, for each model and target on its own.
    """
    rows = outcomes(200, np.random.default_rng(4))

    model = solved(rows, MEANS, RidgeOptions(), KEYS)

    for column, key in enumerate(KEYS):
        of_model = (rows.models == np.uint64(key))[:, None] & rows.known
        np.testing.assert_allclose(model.counts[column], weights_of(rows) @ of_model, rtol=1e-9)


def test_predictions_are_means_and_weights_applied_to_each_context():
    """
    Estimates come as (request, model, target), in the order asked for.
    """
    rows, x = outcomes(200, np.random.default_rng(5)), contexts(7, np.random.default_rng(6))
    model = solved(rows, MEANS, RidgeOptions(), KEYS)

    predicted = model.predict(real(x))

    assert predicted.shape == (7, 3, 3)
    assert predicted.dtype == np.float32
    for column in range(3):
        for target in Target:
            want = MEANS[column, target] + x / 32 @ weights(model, column, target)
            np.testing.assert_allclose(predicted[:, column, target], want, atol=1e-4)


# --- uncertainty --------------------------------------------------------------------------------


def test_noise_is_the_root_mean_square_residual_pulled_to_all_models():
    """
    Per model and target, around the fitted model itself: ten imaginary outcomes are at the noise of all
    models together, which has ten at the prior noise.
    """
    rows = outcomes(400, np.random.default_rng(7))

    model = solved(rows, MEANS, RidgeOptions(), KEYS)

    for target in Target:
        shared, own = dense(rows, MEANS, RidgeOptions(), KEYS, target)
        squares, count = np.zeros(3), np.zeros(3)
        for column, key in enumerate(KEYS):
            used = (rows.models == np.uint64(key)) & rows.known[:, target]
            fit = MEANS[column, target] + rows.contexts[used] / 32 @ (shared + own[column])
            squares[column] = weights_of(rows)[used] @ (rows.targets[used, target] / ONE - fit) ** 2
            count[column] = weights_of(rows)[used].sum()
        together = (squares.sum() + 10 * NOISE_PRIOR[target] ** 2) / (count.sum() + 10)
        want = np.sqrt((squares + 10 * together) / (count + 10))
        np.testing.assert_allclose(model.noise[:, target], want, atol=1e-5)


@pytest.mark.parametrize("noise", [0.05, 0.2, 2.0])
def test_the_noise_that_was_put_in_is_found(noise):
    """
    From a few thousand outcomes around a linear model the estimate is right to a tenth, whether
    outcomes scatter by a twentieth or by two.
    """
    rng = np.random.default_rng(8)
    rows = known_line(4000, rng, noise=noise)

    model = solved(
        rows, np.array([[0.5, 0, 0]]), RidgeOptions(shared_penalty=1.0, own_penalty=1.0), [5]
    )

    assert model.noise[0, Target.QUALITY] == pytest.approx(noise, rel=0.1)


def known_line(n: int, rng: np.random.Generator, noise: float) -> Outcomes:
    """Outcomes of model 5 whose quality is linear in the context, but for noise."""
    return line_of(5, rng.normal(0, 0.05, N_FEATURES), n, rng, noise)


def line_of(key: int, line: np.ndarray, n: int, rng: np.random.Generator, noise: float) -> Outcomes:
    """Outcomes of a model whose quality is this linear function of the context, but for noise."""
    rows = outcomes(n, rng, among=(key,), span_ms=1)
    quality = 0.5 + rows.contexts / 32 @ line + rng.normal(0, noise, n)
    targets, known = rows.targets.copy(), rows.known.copy()
    targets[:, Target.QUALITY], known[:, Target.QUALITY] = np.rint(quality * ONE), True
    return replace(rows, targets=targets, known=known)


def test_deviation_is_the_posterior_formula():
    """
    σ·√(xᵀ(S + λ₁)⁻¹x), with σ and S of quality and of the model itself.
    """
    rows, x = outcomes(400, np.random.default_rng(9)), contexts(9, np.random.default_rng(10)) / 32

    model = solved(rows, MEANS, RidgeOptions(), KEYS)
    deviation = model.deviation(x.astype(np.float32))

    assert deviation.shape == (9, 3)
    assert deviation.dtype == np.float32
    for column, key in enumerate(KEYS):
        used = (rows.models == np.uint64(key)) & rows.known[:, Target.QUALITY]
        z = rows.contexts[used] / 32
        penalty = [RidgeOptions().own_penalty] * (N_FEATURES - 1) + [RidgeOptions().prior_weight]
        penalised = (z.T * weights_of(rows)[used]) @ z + np.diag(penalty)
        variance = np.einsum("nd,nd->n", x, np.linalg.solve(penalised, x.T).T)
        want = np.sqrt(variance) * model.noise[column, 0]
        np.testing.assert_allclose(deviation[:, column], want, rtol=1e-4)


def test_deviation_shrinks_with_outcomes_of_that_model_alone():
    """
    More outcomes of one model make it surer, and no other, however much models are said to differ.
    """
    rng = np.random.default_rng(11)
    few = outcomes(100, rng)
    line = known_line(2000, rng, noise=0.0)
    more = joined([few, replace(line, decided_at_ms=np.full(len(line), AS_OF_MS))])
    x, keys, means = real(contexts(5, rng)), [5, KEYS[0]], np.zeros((2, 3))

    options = RidgeOptions(difference_max=1.0)

    before = solved(few, means, options, keys)
    after = solved(more, means, options, keys)

    part_before, part_after = (m.deviation(x) / m.noise[:, 0] for m in (before, after))
    assert (part_after[:, 0] < 0.8 * part_before[:, 0]).all()
    np.testing.assert_allclose(part_after[:, 1], part_before[:, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("more", "low", "high"), [(0.25, 1.0, 1.0), (4.0, 2.7, 4.4), (16, 10.7, 17.6)]
)
def test_models_that_differ_more_than_assumed_are_doubted_as_much_more(more, low, high):
    """
    Where known models depart by a multiple of the variance that their penalty stands for, that
    multiple is found, to a third, and is the variance of a model of which nothing is known. It is
    never less than assumed.
    """
    rng, keys, penalty, noise = np.random.default_rng(13), list(range(1, 13)), 6.0, 0.2
    own = rng.normal(0, noise * np.sqrt(more / penalty), (len(keys), N_FEATURES))
    own[:, -1] = 0.0
    rows = joined(
        [line_of(key, line, 1000, rng, noise) for key, line in zip(keys, own, strict=True)]
    )
    x, means = real(contexts(5, rng)), np.full((13, 3), 0.5)
    x[:, -1] = 0.0  # how good a model is on all prompts is doubted as before

    options = RidgeOptions(own_penalty=penalty)
    wide, assumed = (
        solved(rows, means, replace(options, difference_max=most), [*keys, 99]).deviation(x)[:, -1]
        for most in (options.difference_max, 1.0)
    )

    found = (wide / assumed) ** 2
    assert (found >= low - 1e-4).all() and (found <= high + 1e-4).all()


def missed_by(rows: Outcomes, quality: np.ndarray, steps: int) -> float:
    """How far estimates of eight models lie from the mean `quality` that rows were drawn around."""
    options = RidgeOptions(difference_steps=steps)
    model = solved(rows, np.full((8, 3), 0.5), options, list(range(1, 9)))
    found = model.predict(real(rows.contexts))[:, :, Target.QUALITY]
    own = found[np.arange(len(rows)), rows.models.astype(int) - 1]
    return float(np.sqrt(((own - quality) ** 2).mean()))


def apart(x: np.ndarray, size: float, rng: np.random.Generator) -> tuple[Outcomes, np.ndarray]:
    """Eight models that differ in four of the features of contexts `x` (n, 64), and the truth."""
    rows = outcomes(len(x), rng, among=tuple(range(1, 9)), span_ms=1)
    lines = np.zeros((8, N_FEATURES))
    lines[:, :4] = rng.normal(0, size, (8, 4))
    varied = (x - x.mean(axis=0)) / 32
    quality = 0.5 + (varied * lines[rows.models.astype(int) - 1]).sum(axis=1)
    targets, known = rows.targets.copy(), rows.known.copy()
    noisy = quality + rng.normal(0, 0.2, len(x))
    targets[:, Target.QUALITY], known[:, Target.QUALITY] = np.rint(noisy * ONE), True
    return replace(rows, contexts=x.astype(np.int8), targets=targets, known=known), quality


def test_models_that_differ_more_than_assumed_are_estimated_by_what_they_did():
    """
    Where models differ far more than λ₁ says estimates miss half as much as with it, or less.
    """
    rng = np.random.default_rng(15)
    rows, quality = apart(contexts(16_000, rng), 0.15, rng)

    assert missed_by(rows, quality, steps=3) < 0.5 * missed_by(rows, quality, steps=0)


def test_models_that_differ_as_assumed_are_estimated_as_before():
    """
    Where models differ no more than λ₁ says it holds, to the bit.
    """
    rng = np.random.default_rng(15)
    rows, quality = apart(contexts(8_000, rng), 0.01, rng)

    assert missed_by(rows, quality, steps=3) == missed_by(rows, quality, steps=0)


def test_contexts_that_are_nearly_parallel_are_told_apart_by_how_they_differ():
    """
    What all prompts have in common, however much, does not hide that models differ on the rest.
    """
    rng = np.random.default_rng(16)
    common = np.clip(contexts(1, rng).astype(int), -100, 100)
    x = common + rng.integers(-8, 9, (16_000, N_FEATURES))
    x[:, -1] = 32
    rows, quality = apart(x, 3.0, rng)

    assert missed_by(rows, quality, steps=8) < 0.5 * missed_by(rows, quality, steps=0)


def test_of_one_context_over_and_over_nothing_is_concluded_on_how_models_differ_by_context():
    """
    Sums that have faded are rounded, and the variance of what is always the same was that rounding:
    models seemed to differ a thousand times more than assumed.
    """
    rng = np.random.default_rng(17)
    z = np.concatenate([np.repeat(contexts(1, rng), 4, axis=0), [[0], [ONE], [ONE], [0]]], axis=1)
    sums = np.einsum("ka,kb->kab", z.astype(float), z)[:, None]
    sums[..., -1, -1] /= SQUARE_UNIT
    held, checked = RidgeOptions(difference_steps=0), RidgeOptions()
    for times in 3000 * rng.random(30):
        faded = sums * times
        found = [solve(faded, np.zeros((4, 1)), NOISE_PRIOR[:1], o).spread for o in (held, checked)]
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("times", "own_penalty"),
    [(1.0, 150.0), (1e6, 1e-3), (1e9, 150.0), (1e11, 150.0), (1e12, 150.0)],
)
def test_one_context_over_and_over_is_solved(times, own_penalty):
    """
    However often the same thing came back, the solution is finite and its deviation right, though
    one direction outweighs all others by eleven orders of magnitude.
    """
    x = contexts(1, np.random.default_rng(12)).astype(float)
    z = np.append(x[0], 0.7 * ONE)
    sums = np.broadcast_to(np.outer(z, z) * times, (1, 3, 65, 65)).copy()
    sums[:, :, -1, -1] /= SQUARE_UNIT
    options = RidgeOptions(own_penalty=own_penalty, prior_weight=own_penalty, difference_max=1.0)

    model = solve(sums, np.zeros((1, 3)), NOISE_PRIOR, options)

    square = (x @ x.T).item() / 32**2
    part = model.deviation(real(x.astype(np.int8))) / model.noise[:, 0]
    assert part.item() == pytest.approx(np.sqrt(square / (times * square + own_penalty)), rel=0.01)
    assert all(np.isfinite(a).all() for a in (model.weights, model.noise, model.spread))
    if times > 1:
        predicted = model.predict(real(x.astype(np.int8)))
        np.testing.assert_allclose(predicted, 0.7, atol=1e-3)


def test_a_noiseless_model_is_not_believed_to_be_noiseless_at_once():
    """
    One outcome hit exactly still leaves a noise near the prior.
    """
    rows = whole(
        {
            **{name: getattr(largest(1), name) for name in Outcomes.__slots__},
            "contexts": contexts(1, np.random.default_rng(0)),
            "decided_at_ms": np.array([AS_OF_MS]),
        }
    )
    rows = replace(rows, targets=np.full((1, 3), ONE // 2))

    model = solved(rows, np.full((1, 3), 0.5), RidgeOptions(), [5])

    np.testing.assert_allclose(model.noise[0], NOISE_PRIOR * 10 / 11, rtol=1e-3)
