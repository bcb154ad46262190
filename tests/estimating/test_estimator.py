"""The blend: what each learner says, put together by the stated formula; and sane without data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from strategies import MODELS, changed, contexts, joined, outcomes

from learners.context import N_FEATURES, TOKENS_FEATURE, real
from learners.estimates import ema, ridge
from learners.estimates.estimator import (
    QUALITY_NOISE,
    RATIO_NOISE,
    RATIO_RIDGE,
    RATIO_SHARE_MIN,
    BlendOptions,
    Estimator,
)
from learners.estimates.history import Neighbours
from learners.estimates.learned import Learned, MemoryOptions
from learners.outcomes import Outcomes
from learners.targets import N_TARGETS, ONE, RATIO_UNIT, VALUE_MAX, Target

HALF_LIFE_S = 5.0
MEMORY = MemoryOptions(model_half_life_s=HALF_LIFE_S, pool_half_life_s=1.0)
BLEND = BlendOptions()
KEYS = list(MODELS)
NOISE = np.array([QUALITY_NOISE, RATIO_NOISE * RATIO_UNIT, RATIO_NOISE * RATIO_UNIT])


def learned(*parts: Outcomes) -> Learned:
    state = Learned(MEMORY)
    for part in parts:
        state.update(part)
    state.history.settle()
    return state


def estimator(
    state: Learned,
    keys: list[int] = KEYS,
    quality: list[float] | None = None,
    options: BlendOptions = BLEND,
) -> Estimator:
    stated = np.full(len(keys), np.nan) if quality is None else np.array(quality)
    return Estimator(state, keys, stated, options)


def graded(n: int, model: int, quality: float, *, at_ms: int = 0, seed: int = 0) -> Outcomes:
    """N outcomes of one model that report its quality alone, always the same."""
    rows = outcomes(n, np.random.default_rng(seed), among=(model,))
    targets, known = np.zeros((n, N_TARGETS), np.int64), np.zeros((n, N_TARGETS), bool)
    targets[:, Target.QUALITY], known[:, Target.QUALITY] = round(quality * ONE), True
    return changed(rows, targets=targets, known=known, decided_at_ms=np.full(n, at_ms))


ASKED = contexts(6, np.random.default_rng(99))


# --- the formula --------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_estimate_is_the_stated_blend_of_its_parts(share):
    """
    Means by weight and prior, ridge and neighbours each around those means, and the share of
    either: computed here from the parts, step by step.
    """
    rows = outcomes(300, np.random.default_rng(0))
    state, options = learned(rows), replace(BLEND, neighbours_share=share)
    stated = np.array([0.9, np.nan, 0.1])

    estimates = estimator(state, quality=stated.tolist(), options=options).estimate(ASKED)

    as_of_ms = int(rows.decided_at_ms.max())
    seen = ema.read(state.models, KEYS, as_of_ms)
    weight, mean = seen.weights[:, 0], seen.means[:, 0]
    prior = np.full((3, 3), 1 / RATIO_UNIT)
    prior[:, 0] = [0.9, (weight @ mean + 0.5) / (weight.sum() + 1.0), 0.1]
    sums = [one.read(KEYS, as_of_ms) for one in (state.quality, state.cost, state.latency)]
    noise = np.full(1, QUALITY_NOISE), np.full(1, RATIO_NOISE)
    quality = ridge.solve(sums[0], prior[:, :1], noise[0], BLEND.ridge)
    cost = ridge.solve(sums[1], prior[:, 1:2], noise[1], RATIO_RIDGE)
    latency = ridge.solve(sums[2], prior[:, 2:], noise[1], RATIO_RIDGE)
    phi = real(state.landmarks.features(ASKED))
    linear = np.concatenate(
        [quality.predict(phi), cost.predict(real(ASKED)), latency.predict(real(ASKED))], axis=2
    )
    kept = state.history.rows
    fade = 0.5 ** ((as_of_ms - kept["decided_at_ms"]) / (HALF_LIFE_S * 1000))
    means = seen.targets(prior, BLEND.ridge.prior_weight)
    near = Neighbours(kept, None, KEYS, means, fade, MEMORY.history).evidence(ASKED)
    want = (1 - share) * linear + share * (means + near.deviation)
    usual = seen.targets(prior, RATIO_RIDGE.prior_weight)[:, 1:]
    least = np.maximum(RATIO_SHARE_MIN * usual, 0.0)
    want[:, :, 1:] = np.maximum(want[:, :, 1:], least) * RATIO_UNIT
    np.testing.assert_allclose(estimates.mean, want, atol=1e-5)
    assert (estimates.evidence is None) == (share == 0.0)
    counts = np.concatenate([quality.counts, cost.counts, latency.counts], axis=1)
    of_mean = estimates.noise / np.sqrt(counts + BLEND.mean_weight)
    np.testing.assert_allclose(estimates.mean_deviation, of_mean, rtol=1e-5)
    whole = np.hypot(quality.deviation(phi), of_mean[:, 0])
    np.testing.assert_allclose(estimates.deviation, whole, rtol=1e-5)


def test_no_prompt_is_predicted_to_cost_nothing():
    """
    Of calls that cost ten times as much for one long prompt in ten, a line through all is below
    nothing at the short ones; they count as a share of the model's mean.
    """
    rows = outcomes(400, np.random.default_rng(3), among=(KEYS[0],))
    long = np.arange(400) % 10 == 0
    rows.contexts[:, TOKENS_FEATURE] = np.where(long, 100, -20)
    targets = np.zeros((400, N_TARGETS), np.int64)
    targets[:, Target.COST] = np.where(long, 10 * ONE, 0) // RATIO_UNIT
    state = learned(changed(rows, targets=targets, known=np.ones((400, N_TARGETS), bool)))
    asked = ASKED.copy()
    asked[:, TOKENS_FEATURE] = -100

    ratios = estimator(state).estimate(asked).mean[:, 0, Target.COST]

    mean = ema.read(state.models, KEYS, state.as_of_ms).means[0, Target.COST] * RATIO_UNIT
    assert 0.9 < mean < 1.1
    np.testing.assert_allclose(ratios, RATIO_SHARE_MIN * mean, rtol=0.05)


def test_shapes_and_types_are_as_stated():
    """
    (request, model, target), in single precision.
    """
    estimates = estimator(learned(outcomes(50, np.random.default_rng(1)))).estimate(ASKED)

    assert estimates.mean.shape == (6, 3, N_TARGETS)
    assert estimates.deviation.shape == (6, 3)
    assert estimates.noise.shape == (3, N_TARGETS)
    assert estimates.mean_deviation.shape == (3, N_TARGETS)
    for array in (estimates.mean, estimates.deviation, estimates.noise):
        assert array.dtype == np.float32


def test_estimates_of_a_batch_are_those_of_its_requests():
    """
    A request is judged alike alone and in company.
    """
    view = estimator(learned(outcomes(300, np.random.default_rng(2))))

    together = view.estimate(ASKED)

    for i in range(len(ASKED)):
        alone = view.estimate(ASKED[i : i + 1])
        np.testing.assert_allclose(together.mean[i], alone.mean[0], atol=1e-5)
        np.testing.assert_allclose(together.deviation[i], alone.deviation[0], rtol=1e-4)


def test_estimates_do_not_depend_on_the_order_of_outcomes():
    """
    Learned in another order and in pieces, the same is expected, but for the last bits.
    """
    rows = outcomes(300, np.random.default_rng(3))
    other = rows.take(np.random.default_rng(4).permutation(300))

    one = estimator(learned(rows)).estimate(ASKED)
    two = estimator(learned(other.take(slice(0, 77)), other.take(slice(77, 300)))).estimate(ASKED)

    np.testing.assert_allclose(one.mean, two.mean, atol=1e-5)
    np.testing.assert_allclose(one.deviation, two.deviation, atol=1e-5)


# --- priors -------------------------------------------------------------------------------------


def test_before_any_outcome_the_estimate_is_what_was_stated():
    """
    Stated quality, else the middle; cost and latency as the catalogue expects. Uncertain by the
    prior noise: in the mean as if seen once, in the departure by the penalties.
    """
    state = Learned(MEMORY)

    estimates = estimator(state, quality=[0.9, np.nan, 0.0]).estimate(ASKED)

    np.testing.assert_allclose(
        estimates.mean, np.broadcast_to([[0.9, 1, 1], [0.5, 1, 1], [0, 1, 1]], (6, 3, 3)), rtol=1e-6
    )
    phi = real(state.landmarks.features(ASKED)).astype(float)
    square = (phi[:, :-1] ** 2).sum(axis=1) / BLEND.ridge.own_penalty
    want = QUALITY_NOISE * np.sqrt(square + 1 / BLEND.ridge.prior_weight + 1 / BLEND.mean_weight)
    np.testing.assert_allclose(estimates.deviation, np.tile(want[:, None], 3), rtol=1e-5)
    np.testing.assert_allclose(estimates.noise, np.tile(NOISE, (3, 1)), rtol=1e-6)


def test_what_was_stated_counts_as_two_outcomes():
    """
    Eighteen outcomes of 0.5 against a stated 0.9: most of the way to 0.5, for that model alone.
    """
    view = estimator(learned(graded(18, KEYS[0], 0.5)), quality=[0.9, 0.9, 0.9])

    mean = view.estimate(ASKED).mean[:, :, Target.QUALITY]
    assert (np.abs(mean[:, 0] - 0.5) < 0.1).all()
    assert (mean[:, 1] > mean[:, 0] + 0.1).all()


def test_a_model_nothing_was_stated_of_starts_as_the_average_of_the_others():
    """
    Weighed by their outcomes, with one imaginary outcome in the middle.
    """
    state = learned(graded(30, KEYS[0], 1.0), graded(9, KEYS[1], 0.0))

    view = estimator(state)

    assert view.quality.means[2, 0] == pytest.approx((30 + 0.5) / 40, abs=1e-4)


def test_an_old_outcome_counts_less_than_a_new_one():
    """
    A model that was good and now is bad is believed to be bad; the same outcomes the other way
    round say the opposite.
    """
    half_life_ms = round(HALF_LIFE_S * 1000)
    declining = learned(
        graded(50, 3, 1.0, at_ms=0), graded(50, 3, 0.0, at_ms=6 * half_life_ms, seed=1)
    )
    rising = learned(
        graded(50, 3, 0.0, at_ms=0), graded(50, 3, 1.0, at_ms=6 * half_life_ms, seed=1)
    )

    for asked in (ASKED, outcomes(50, np.random.default_rng(0)).contexts):  # the second: seen
        assert (estimator(declining, [3]).estimate(asked).mean[:, 0, 0] < 0.25).all()
        assert (estimator(rising, [3]).estimate(asked).mean[:, 0, 0] > 0.75).all()


# --- models come and go -------------------------------------------------------------------------


def test_a_new_model_changes_nothing_for_the_others():
    """
    Listed without any outcome, it leaves the sums, estimates and deviations of the others alone.
    """
    state = learned(outcomes(300, np.random.default_rng(5)))
    sums = state.quality.read(KEYS, state.as_of_ms)

    before = estimator(state, quality=[0.5] * 3).estimate(ASKED)
    after = estimator(state, [*KEYS, 12], quality=[0.5] * 4).estimate(ASKED)

    np.testing.assert_array_equal(state.quality.read([*KEYS, 12], state.as_of_ms)[:3], sums)
    np.testing.assert_allclose(after.mean[:, :3], before.mean, atol=1e-5)
    np.testing.assert_allclose(after.deviation[:, :3], before.deviation, rtol=1e-5)


def test_a_removed_model_no_longer_teaches_the_others():
    """
    Without it in the catalogue, estimates are as if its outcomes had never been.
    """
    rng = np.random.default_rng(6)
    rows = outcomes(300, rng)
    left = [KEYS[0], KEYS[2]]
    others = rows.take(rows.models != np.uint64(KEYS[1]))
    newest = outcomes(1, rng, among=(KEYS[0],), decided_at_ms=np.array([20_000]))

    with_it = estimator(learned(rows, newest), left).estimate(ASKED)
    without = estimator(learned(others, newest), left).estimate(ASKED)

    np.testing.assert_allclose(with_it.mean, without.mean, atol=1e-5)
    np.testing.assert_allclose(with_it.deviation, without.deviation, rtol=1e-5)


def test_models_may_be_listed_in_any_order():
    """
    Columns follow the list.
    """
    state = learned(outcomes(300, np.random.default_rng(7)))

    forward = estimator(state, quality=[0.1, 0.2, 0.3]).estimate(ASKED)
    backward = estimator(state, KEYS[::-1], quality=[0.3, 0.2, 0.1]).estimate(ASKED)

    np.testing.assert_allclose(backward.mean[:, ::-1], forward.mean, atol=1e-5)
    np.testing.assert_allclose(backward.deviation[:, ::-1], forward.deviation, rtol=1e-5)
    np.testing.assert_allclose(backward.noise[::-1], forward.noise, rtol=1e-5)


# --- extremes -----------------------------------------------------------------------------------


def one_context(n: int) -> Outcomes:
    rows = outcomes(n, np.random.default_rng(8))
    return changed(rows, contexts=np.repeat(rows.contexts[:1], n, axis=0))


def outermost(n: int) -> Outcomes:
    rng = np.random.default_rng(9)
    sign = rng.choice([-1, 1], (n, N_TARGETS))
    return changed(
        outcomes(n, rng, contexts=(127 * rng.choice([-1, 1], (n, N_FEATURES))).astype(np.int8)),
        targets=sign * round(VALUE_MAX * ONE),
        known=np.ones((n, N_TARGETS), bool),
    )


EXTREMES = {
    "one outcome": lambda: outcomes(1, np.random.default_rng(10)),
    "one context": lambda: one_context(500),
    "largest values": lambda: outermost(500),
    "contexts of zeros": lambda: changed(
        outcomes(50, np.random.default_rng(11)), contexts=np.zeros((50, N_FEATURES), np.int8)
    ),
    "an age apart": lambda: joined(
        [graded(5, KEYS[0], 1.0, at_ms=0), graded(5, KEYS[1], 0.0, at_ms=2 * 10**12)]
    ),
    "figures alone": lambda: changed(
        outcomes(20, np.random.default_rng(12)), known=np.zeros((20, N_TARGETS), bool)
    ),
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_estimates_are_finite_whatever_was_learned(extreme):
    """
    A single outcome, always the same prompt, the largest values there are, outcomes of which all
    but the last have faded: every number is finite, and deviations are above zero.
    """
    rows = EXTREMES[extreme]()
    asked = np.concatenate([ASKED, rows.contexts[:3], np.zeros((1, N_FEATURES), np.int8)])

    estimates = estimator(learned(rows)).estimate(asked)

    for array in (estimates.mean, estimates.deviation, estimates.noise, estimates.mean_deviation):
        assert np.isfinite(array).all()
    assert (estimates.deviation > 0).all()
    assert (estimates.noise > 0).all()


def test_two_hundred_and_fifty_five_models_are_estimated_each_for_itself():
    """
    As many models as a ticket can name, two of them with outcomes, in one pass.
    """
    keys = list(range(100, 355))
    state = learned(graded(200, 100, 1.0), graded(200, 354, 0.0, seed=1))

    estimates = estimator(state, keys, quality=[0.5] * 255).estimate(ASKED)

    assert estimates.mean.shape == (6, 255, 3)
    assert np.isfinite(estimates.mean).all()
    assert (estimates.mean[:, 0, Target.QUALITY] > 0.9).all()
    assert (estimates.mean[:, -1, Target.QUALITY] < 0.1).all()
    assert (estimates.deviation[:, 1:-1].min(axis=1) > estimates.deviation[:, 0]).all()
