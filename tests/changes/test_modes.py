"""Modes of a change on one replica: who decides, what is logged, and that propensities are honest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from learners.policies.policy import Scores
from serve.changes.trial import Split, Trial, draw_of
from streams.training.change import ChangeOptions

SCORES = Scores(np.zeros((400, 3)), np.ones((400, 3)), np.ones((400, 3), bool))


@dataclass(frozen=True)
class Fixed:
    """The same probabilities for each request."""

    chances: tuple[float, ...]

    def probabilities(self, scores: Scores) -> np.ndarray:
        return np.tile(self.chances, (len(scores.utility), 1))


OURS, THEIRS = Fixed((0.7, 0.2, 0.1)), Fixed((0.1, 0.2, 0.7))


def split(mode: str = "canary", share: float = 0.25, counts: dict | None = None) -> Split:
    trial = Trial(ChangeOptions(mode=mode, share=share, name="t"), THEIRS)
    draws = np.linspace(0, 1, 400, endpoint=False)
    return trial.split(OURS, draws, counts or {})[0]


def test_a_share_of_requests_is_decided_by_the_candidate_with_its_own_probabilities():
    turns = split()
    p = turns.probabilities(SCORES)

    assert turns.theirs.sum() == 100
    assert np.allclose(p[turns.theirs], THEIRS.chances)
    assert np.allclose(p[~turns.theirs], OURS.chances)


def test_in_the_shadow_it_decides_nothing():
    assert not split("shadow").theirs.any()


@pytest.mark.parametrize(("step", "share"), [("promoted", 0.9), ("rolled_back", 0.0)])
def test_after_a_step_it_decides_what_the_step_says(step, share):
    assert split(counts={f"change.t.{step}": 1}).theirs.mean() == pytest.approx(share)


def test_requests_of_a_session_always_fall_to_the_same_policy():
    draws = [draw_of("t", "acme", f"session {i}") for i in range(2000)]

    assert draws == [draw_of("t", "acme", f"session {i}") for i in range(2000)]
    assert np.mean(np.array(draws) < 0.1) == pytest.approx(0.1, abs=0.03)
    assert draws[0] != draw_of("another", "acme", "session 0") != draw_of("t", "b", "session 0")


def test_alike_is_what_one_draw_would_have_chosen_of_both():
    turns = split()
    p = turns.probabilities(SCORES)

    assert turns.alike(np.full(400, 0.05), p).all(), "both the first"
    assert turns.alike(np.full(400, 0.95), p).all(), "both the last"
    assert not turns.alike(np.full(400, 0.4), p).any()


def test_a_choice_that_limits_or_budgets_changed_is_never_taken_for_alike():
    turns = split()
    p = turns.probabilities(SCORES)
    p[:, 0] = 0.0

    assert not turns.alike(np.full(400, 0.95), p / p.sum(axis=1, keepdims=True)).any()
