"""Modes of a change on one replica: who decides, what is logged, and that propensities are honest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from estimated import Estimated, requests

from learners.policies.policy import Scores
from serve.changes.trial import Split, Trial, draw_of
from serve.routing.catalogue import Model
from serve.routing.chooser import Chooser
from serve.routing.placement import PlacementOptions
from streams.training.budgets import Budget
from streams.training.change import ChangeOptions
from streams.training.prices import PricingOptions

UNTOUCHED = np.zeros(400, bool)
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

    assert turns.alike(np.full(400, 0.05), p, UNTOUCHED).all(), "both the first"
    assert turns.alike(np.full(400, 0.95), p, UNTOUCHED).all(), "both the last"
    assert not turns.alike(np.full(400, 0.4), p, UNTOUCHED).any()
    assert not turns.alike(np.full(400, 0.05), p, ~UNTOUCHED).any()


def test_a_choice_that_limits_or_budgets_changed_is_never_taken_for_alike():
    turns = split()
    p = turns.probabilities(SCORES)
    p[:, 0] = 0.0

    assert not turns.alike(np.full(400, 0.95), p / p.sum(axis=1, keepdims=True), UNTOUCHED).any()


@dataclass(frozen=True)
class Allowed:
    """The same for each request, among those that may be chosen."""

    chances: tuple[float, ...]

    def probabilities(self, scores: Scores) -> np.ndarray:
        p = np.where(scores.allowed, self.chances, 0.0)
        return p / p.sum(axis=1, keepdims=True)


MEANS = np.tile([[0.5, 0.0, 0.0]], (600, 3, 1))
SPREAD, FIRST = Allowed((0.6, 0.2, 0.2)), Allowed((1.0, 0.0, 0.0))
TRIED = ChangeOptions(mode="canary", share=0.5, name="t")


@pytest.mark.parametrize("hindrance", ["none", "budget", "strong share", "newcomers"])
def test_what_is_alike_does_not_depend_on_whose_turn_it_is(hindrance):
    """
    A budget has nothing left for a model that only the one policy would call: by the other's
    probabilities nothing was changed. Were its requests alike all the same, those of the first
    would count against it and those of the other for nobody: the worse could be promoted.
    """
    budgets = (Budget(name="last", scope="model", value="c", unit="requests", amount=1e-6),)
    pricing = PricingOptions(budgets=budgets if hindrance == "budget" else ())
    chooser = Chooser(
        SPREAD,
        PlacementOptions(pricing=pricing),
        np.random.default_rng(0),
        trial=Trial(TRIED, FIRST),
    )
    draws = np.random.default_rng(1).random(600)
    limit = {"strong_share_max": np.full(600, 0.3)} if hindrance == "strong share" else {}
    asked = requests(600, 3, draws=draws, **limit)
    view = Estimated(MEANS, models=[Model(name=name, quality=0.5) for name in "abc"])
    if hindrance != "newcomers":
        view.n_proving = np.full(3, 1e6)
    arms = [arm.rpartition("/")[2] for arm in chooser.choose(asked, view, 0).arm]
    turns = np.where(draws < 0.5, "candidate", "incumbent")
    alike = np.array(arms) == "alike"
    shares = [alike[turns == who].mean() for who in ("candidate", "incumbent")]

    assert shares[0] == pytest.approx(shares[1], abs=0.1)
    assert (shares[0] > 0.4) == (hindrance == "none")
