"""The whole of `learners/` at work: in a small world, without machines, it learns what is best."""

from __future__ import annotations

import numpy as np
import pytest
from strategies import outcomes

from learners.context import Projection
from learners.estimates.estimator import BlendOptions, Estimator
from learners.estimates.learned import Learned, MemoryOptions
from learners.policies.greedy import EpsilonGreedy
from learners.policies.inverse_gap import SquareCb
from learners.policies.policy import Policy, Scores, draw
from learners.policies.thompson import Thompson
from learners.policies.upper_confidence import LinUcb
from learners.targets import Target, to_fixed

MODELS = [11, 2**63 + 11, 2**64 - 11]
DIM, BATCH, N_BATCHES = 96, 100, 24
SECOND = 1000
# Mean quality of a model (column) on a topic (row). The generalist is best on average, so that
# who ignores the context can't do well.
QUALITY = np.array([[0.9, 0.2, 0.6], [0.2, 0.9, 0.6], [0.3, 0.3, 0.7]])


class World:
    """Prompts of three topics, whose embedding tells the topic through noise."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.topics = self.rng.standard_normal((3, DIM))
        self.projection = Projection.random(DIM, self.rng)

    def prompts(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Contexts (n, 64) and the true quality (n, 3) of each model."""
        topic = self.rng.integers(0, 3, n)
        embeddings = self.topics[topic] + 0.7 * self.rng.standard_normal((n, DIM))
        prompt_tokens = self.rng.integers(10, 2000, n).astype(np.float32)
        contexts = self.projection.contexts(embeddings.astype(np.float32), prompt_tokens)
        return contexts, QUALITY[topic]

    def outcome(self, quality: np.ndarray) -> np.ndarray:
        """What is reported: right or wrong, as often as the model is good."""
        return (self.rng.random(len(quality)) < quality).astype(float)


def gains(policy: Policy, world: World, n_batches: int = N_BATCHES) -> np.ndarray:
    """Share, per batch, of what an oracle gains over choosing at random."""
    learned = Learned(MemoryOptions())
    shares = []
    for batch in range(n_batches):
        contexts, quality = world.prompts(BATCH)
        estimator = Estimator(learned, MODELS, np.full(3, np.nan), BlendOptions())
        estimates = estimator.estimate(contexts)
        p = policy.probabilities(
            Scores(
                estimates.mean[:, :, Target.QUALITY].astype(np.float64),
                estimates.deviation.astype(np.float64),
                np.ones((BATCH, 3), bool),
                mean_deviation=np.tile(estimates.mean_deviation[:, Target.QUALITY], (BATCH, 1)),
            )
        )
        chosen = draw(p, world.rng.random(BATCH))
        got = quality[np.arange(BATCH), chosen]
        random, oracle = quality.mean(), quality.max(axis=1).mean()
        shares.append((got.mean() - random) / (oracle - random))
        learned.update(report(world, chosen, contexts, got, batch))
        learned.history.settle()
    return np.array(shares)


def report(world: World, chosen: np.ndarray, contexts: np.ndarray, got: np.ndarray, batch: int):
    known = np.zeros((BATCH, 3), bool)
    known[:, Target.QUALITY] = True
    targets = np.zeros((BATCH, 3))
    targets[:, Target.QUALITY] = world.outcome(got)
    return outcomes(
        BATCH,
        world.rng,
        sequences=np.arange(BATCH, dtype=np.uint64) + np.uint64(batch * BATCH),
        decided_at_ms=np.full(BATCH, batch * SECOND),
        models=np.array(MODELS, np.uint64)[chosen],
        contexts=contexts,
        targets=to_fixed(targets),
        known=known,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_best_for_each_topic_is_learned_from_rights_and_wrongs(seed):
    """
    From nothing known, half of what an oracle gains over chance is gained within 500 outcomes,
    and at least 90 % after 1,600.
    """
    shares = gains(Thompson(), World(seed))

    assert abs(shares[0]) < 0.35
    assert shares[1:5].mean() > 0.5
    assert shares[16:].mean() >= 0.9


@pytest.mark.parametrize(
    "policy", [EpsilonGreedy(), LinUcb(), Thompson()], ids=lambda policy: type(policy).__name__
)
def test_every_policy_learns_far_beyond_the_best_single_model(policy):
    """
    Whoever always took the generalist would gain a third; every policy gains twice that.
    """
    random, oracle = QUALITY.mean(), QUALITY.max(axis=1).mean()
    generalist = (QUALITY.mean(axis=0).max() - random) / (oracle - random)

    shares = gains(policy, World(2))

    assert generalist < 0.37
    assert shares[16:].mean() > 2 * generalist


def test_a_seed_repeats_a_run():
    """
    Nothing but the seed decides.
    """
    first, second = (gains(SquareCb(), World(3), n_batches=4) for _ in range(2))

    np.testing.assert_array_equal(first, second)
