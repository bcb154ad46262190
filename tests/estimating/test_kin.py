"""What is assumed of a model by what it is declared to be like."""

from __future__ import annotations

import numpy as np
import pytest
from router_bench import outcomes

from learners.context import BIAS, BIAS_FEATURE
from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.kin import Kin, levels
from learners.estimates.learned import Learned, MemoryOptions
from learners.targets import to_fixed
from streams.feedback.ticket import key_of

NAMES = ["expert", "other", "new"]
KEYS = [key_of(name) for name in NAMES]
NOTHING = np.full(3, -1)


def kin(*, tier=NOTHING, like=NOTHING, usd=(0.01, 0.01, 0.01)) -> Kin:
    return Kin(np.array(tier), np.array(usd), np.array(like))


SIDES = {"expert": (0.95, 0.25), "other": (0.25, 0.95)}  # quality on either kind of requests


def contexts(sides, rng):
    """Requests of two kinds: sides (n,) are 1 or −1."""
    found = rng.integers(-8, 9, (len(sides), 64))
    found[:, :20] += 40 * np.array(sides)[:, None]
    found[:, BIAS_FEATURE] = BIAS
    return found.astype(np.int8)


def learned(new=()) -> Learned:
    """Two experts of 1,200 outcomes each, and so many answers (kind, quality) of the new model."""
    rng, state = np.random.default_rng(3), Learned(MemoryOptions())
    for model, quality in SIDES.items():
        rows = [(side, quality[0 if side > 0 else 1]) for side in rng.choice([1, -1], 1200)]
        state.update(answered(model, rows, rng))
    if new:
        state.update(answered("new", new, rng))
    state.history.settle()
    return state


def answered(model, rows, rng):
    """Outcomes of one model: (kind, quality) each."""
    batch = outcomes(model, n=len(rows), quality=0.0)
    batch.contexts[:] = contexts([side for side, _ in rows], rng)
    batch.targets[:, 0] = to_fixed(np.array([quality for _, quality in rows]))
    return batch


def of_new(state, declared):
    """What is estimated of the new model on either kind of requests."""
    estimator = Estimator(state, KEYS, np.full(3, np.nan), BlendOptions(), declared)
    rng = np.random.default_rng(9)
    return [
        float(estimator.estimate(contexts([side] * 50, rng)).mean[:, 2, 0].mean())
        for side in (1, -1)
    ]


def test_a_model_that_is_like_another_is_good_at_the_same_before_its_first_outcome():
    """
    One of which nothing is declared is taken to be alike on both.
    """
    state = learned()

    good, bad = of_new(state, kin(like=[-1, -1, 0]))
    plain = of_new(state, None)

    assert good - bad > 0.3
    assert abs(plain[0] - plain[1]) < 0.1


def test_its_own_answers_outvote_a_wrong_declaration():
    """
    Declared to be like the expert, it answers as the other does: eight answers turn the profile.
    """
    state = learned(new=[(1, 0.2), (-1, 0.95)] * 4)

    first, second = of_new(state, kin(like=[-1, -1, 0]))

    assert second > first


def test_nothing_declared_changes_nothing():
    """
    The same bits.
    """
    state = learned()

    assert of_new(state, kin()) == of_new(state, None)


def test_levels_come_from_the_tier_and_the_price():
    """
    A small cheap model is taken to be as the other small cheap one is; before any outcomes the tier
    alone speaks.
    """
    quality, n = np.array([0.3, 0.9, 0.0]), np.array([400.0, 400.0, 0.0])
    tiers = [0, 2, 0]

    small = levels(kin(tier=tiers, usd=(1e-4, 1e-2, 1e-4)), quality, n, 0.6)
    large = levels(kin(tier=[0, 2, 2], usd=(1e-4, 1e-2, 1e-2)), quality, n, 0.6)
    cold = levels(kin(tier=[0, 1, 2]), np.zeros(3), np.zeros(3), 0.5)

    assert small[2] < 0.4 and large[2] > 0.8
    np.testing.assert_allclose(cold, [0.4, 0.5, 0.6])


@pytest.mark.parametrize("named", [0, 1])
def test_a_named_model_counts_alone(named):
    """
    Whatever tiers and prices say.
    """
    declared = kin(tier=[0, 2, 0], like=[-1, -1, named])

    found = levels(declared, np.array([0.3, 0.9, 0.0]), np.full(3, 400.0), 0.6)

    assert found[2] == pytest.approx((0.3, 0.9)[named], abs=0.02)
